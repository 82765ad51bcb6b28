package server

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"
)

func testCursorKey(b byte) (k [32]byte) {
	for i := range k {
		k[i] = b
	}
	return k
}

func testCursors(t testing.TB, keys ...byte) cursors {
	t.Helper()
	var all [][32]byte
	for _, b := range keys {
		all = append(all, testCursorKey(b))
	}
	c, err := newCursors(all)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustOf(t testing.TB, c cursors, kind cursorKind, caller string, binding [32]byte) cursorsOf {
	t.Helper()
	of, err := c.of(kind, mustGLN(t, caller), binding)
	if err != nil {
		t.Fatal(err)
	}
	return of
}

const (
	cursorCaller  = "8712423010208"
	cursorAnother = "8716867000009"
)

var cursorTime = time.Date(2026, 11, 2, 3, 4, 5, 6, time.UTC)

// goldenCursor was computed once with another implementation of HKDF and
// AES-GCM: see its test. Clients hold such texts for days, and gateways of two
// versions run side by side.
const goldenCursor = "AQABAgMEBQYHCAkKC_VMtK0D6j091ql76LoFf8MfIw0TnM3sX7w7pK-3WuvO"

func TestCursorGolden(t *testing.T) {
	t.Parallel()
	of := mustOf(t, testCursors(t, 0xc1), cursorList, cursorCaller, [32]byte{})
	ean := mustEAN(t, "871687140000000019")
	got := of.sealWith([12]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, listState(ean), cursorTime)
	if got != goldenCursor {
		t.Errorf("cursor is %s, want %s", got, goldenCursor)
	}
	state, err := of.open(goldenCursor, cursorTime)
	if err != nil {
		t.Fatal(err)
	}
	if at, err := parseListState(state); err != nil || at != ean {
		t.Errorf("opened %v, %v", at, err)
	}
}

func TestCursorBinding(t *testing.T) {
	t.Parallel()
	c := testCursors(t, 1)
	binding := [32]byte{7}
	state := []byte("where to go on")
	of := mustOf(t, c, cursorQuery, cursorCaller, binding)
	text := of.seal(state, cursorTime)
	if got, err := of.open(text, cursorTime); err != nil || !bytes.Equal(got, state) {
		t.Fatalf("opened %q, %v", got, err)
	}
	if again := of.seal(state, cursorTime); again == text {
		t.Error("two cursors are the same: the nonce is not random")
	}
	if strings.Contains(text, base64.RawURLEncoding.EncodeToString(state[3:9])) {
		t.Error("the state can be read")
	}
	for name, other := range map[string]cursorsOf{
		"another caller's":    mustOf(t, c, cursorQuery, cursorAnother, binding),
		"another request's":   mustOf(t, c, cursorQuery, cursorCaller, [32]byte{8}),
		"another operation's": mustOf(t, c, cursorChanges, cursorCaller, binding),
		"another key's":       mustOf(t, testCursors(t, 2), cursorQuery, cursorCaller, binding),
	} {
		if _, err := other.open(text, cursorTime); err != errCursor {
			t.Errorf("%s: %v, want what is said of one made up", name, err)
		}
		// Not told apart from one that is too old, either.
		if _, err := other.open(text, cursorTime.AddDate(1, 0, 0)); err != errCursor {
			t.Errorf("%s, old: %v, want what is said of one made up", name, err)
		}
	}
}

func TestCursorAge(t *testing.T) {
	t.Parallel()
	of := mustOf(t, testCursors(t, 1), cursorList, cursorCaller, [32]byte{})
	text := of.seal([]byte{1}, cursorTime)
	for after, want := range map[time.Duration]error{
		0: nil, time.Hour: nil, 7*24*time.Hour - time.Second: nil,
		7*24*time.Hour + time.Second: errCursorOld, 1000 * time.Hour: errCursorOld,
		-4 * time.Minute: nil, -time.Hour: errCursorOld,
	} {
		if _, err := of.open(text, cursorTime.Add(after)); !errors.Is(err, want) {
			t.Errorf("after %v: %v, want %v", after, err, want)
		}
	}
}

// Every bit of a cursor counts.
func TestCursorForged(t *testing.T) {
	t.Parallel()
	of := mustOf(t, testCursors(t, 1), cursorList, cursorCaller, [32]byte{})
	text := of.seal([]byte{1, 2, 3}, cursorTime)
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(raw) * 8 {
		bad := bytes.Clone(raw)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := of.open(base64.RawURLEncoding.EncodeToString(bad), cursorTime); err != errCursor {
			t.Fatalf("bit %d turned: %v", i, err)
		}
	}
	for i := range len(text) {
		if _, err := of.open(text[:i], cursorTime); err != errCursor {
			t.Fatalf("cut to %d: %v", i, err)
		}
	}
	for name, bad := range map[string]string{
		"longer":          text + "AAAA",
		"padding":         text + "=",
		"line break":      text[:9] + "\n" + text[9:],
		"standard base64": "AQ+/" + text[4:],
		"twice":           text + text,
		"too long":        strings.Repeat("A", maxCursor+4),
		"old form":        "AQwY2tXe-egT",
		"not text":        "\xff\x00",
	} {
		if _, err := of.open(bad, cursorTime); err != errCursor {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCursorKeys(t *testing.T) {
	t.Parallel()
	// A key is changed in three steps at two gateways, one after the other.
	steps := [][]byte{{1}, {1, 2}, {2, 1}, {2}}
	for i := range steps[1:] {
		for _, pair := range [][2][]byte{{steps[i], steps[i+1]}, {steps[i+1], steps[i]}} {
			from := mustOf(t, testCursors(t, pair[0]...), cursorList, cursorCaller, [32]byte{})
			to := mustOf(t, testCursors(t, pair[1]...), cursorList, cursorCaller, [32]byte{})
			_, err := to.open(from.seal(nil, cursorTime), cursorTime)
			if last := i == 2; err != nil && !last {
				t.Errorf("sealed under %v, opened under %v: %v", pair[0], pair[1], err)
			}
		}
	}
	for name, keys := range map[string][][32]byte{
		"none":      nil,
		"all zero":  {{}},
		"twice":     {testCursorKey(1), testCursorKey(1)},
		"too many":  {{1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}, {9}},
		"zero last": {testCursorKey(1), {}},
	} {
		if _, err := newCursors(keys); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestListState(t *testing.T) {
	t.Parallel()
	ean := mustEAN(t, "871687140000000019")
	if got, err := parseListState(listState(ean)); err != nil || got != ean {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range [][]byte{nil, {1}, make([]byte, 8), make([]byte, 9), append(listState(ean), 0), bytes.Repeat([]byte{0xff}, 8)} {
		if got, err := parseListState(bad); err == nil {
			t.Errorf("%x is %v", bad, got)
		}
	}
}

func FuzzCursor(f *testing.F) {
	of := mustOf(f, testCursors(f, 0xc1), cursorList, cursorCaller, [32]byte{})
	f.Add(goldenCursor)
	f.Add("")
	f.Add("AQwY2tXe-egT")
	f.Fuzz(func(t *testing.T, s string) {
		state, err := of.open(s, cursorTime)
		if err != nil {
			return
		}
		// Nobody can make one up: this is one that was sealed.
		raw, _ := base64.RawURLEncoding.DecodeString(s)
		if again := of.sealWith([12]byte(raw[1:13]), state, cursorTime); again != s {
			t.Errorf("%q opens, and is sealed otherwise", s)
		}
	})
}
