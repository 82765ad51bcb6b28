package web

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestGroupPanic: a panic beside a page is an error of the page, and its value,
// which may hold anything, is not logged.
func TestGroupPanic(t *testing.T) {
	t.Parallel()
	var b buffer
	g := &group{log: slog.New(slog.NewJSONHandler(&b, nil)), route: "/c/{case}"}
	ran := false
	g.Go(func() error { panic("of " + ean) })
	g.Go(func() error { ran = true; return nil })
	if err := g.Wait(); err == nil || !ran {
		t.Errorf("%v, the other ran: %v", err, ran)
	}
	if log := b.String(); !strings.Contains(log, "TestGroupPanic") || !strings.Contains(log, "/c/{case}") || strings.Contains(log, ean) {
		t.Error(log)
	}
	g = &group{}
	fault := errors.New("a fault")
	g.Go(func() error { return fault })
	if err := g.Wait(); !errors.Is(err, fault) {
		t.Error(err)
	}
}

// TestGroupEverywhere: no page has goroutines that nobody catches.
func TestGroupEverywhere(t *testing.T) {
	t.Parallel()
	files := must(filepath.Glob("*.go"))
	for _, f := range files {
		if f != "group.go" && !strings.HasSuffix(f, "_test.go") && bytes.Contains(must(os.ReadFile(f)), []byte(`"golang.org/x/sync/errgroup"`)) {
			t.Errorf("%s: use p.group", f)
		}
	}
	if len(files) < 10 {
		t.Error(files)
	}
}
