package main

import (
	"bytes"
	"testing"
	"time"
)

func TestBarLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		done, total int64
		elapsed     time.Duration
		terminal    bool
		want        string
	}{
		{0, 0, 0, false, "keys  0 of 0 (100 %)"},
		{0, 20, time.Minute, false, "keys  0 of 20 (0 %)"},
		{5000, 20000, 2 * time.Second, false, "keys  5,000 of 20,000 (25 %), 2,500/s, 6s left"},
		{5000, 20000, 2 * time.Second, true, "keys  [######..................]  5,000 of 20,000 (25 %), 2,500/s, 6s left"},
		{21, 20, time.Second, true, "keys  [########################]  21 of 20 (100 %), 21/s, 0s left"}, // more came meanwhile
	} {
		if got := barLine("keys", c.done, c.total, c.elapsed, c.terminal); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// Off a terminal there is a line every few seconds, never one that is written
// over.
func TestProgressLines(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	p := newProgress(&b)
	p.bar("keys", 1, 2)
	if b.Len() > 0 {
		t.Errorf("at once: %q", b.String())
	}
	p.last = p.last.Add(-6 * time.Second)
	p.bar("keys", 1, 2)
	p.bar("keys", 2, 2)
	p.done()
	if got := b.String(); got != "keys  1 of 2 (50 %)\n" {
		t.Errorf("%q", got)
	}
}
