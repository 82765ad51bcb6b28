package control_test

import (
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"kluis/cryptoserver/control"
	"kluis/meter"
)

// eans are the first n EANs there are.
func eans(n int) []meter.EAN {
	out := make([]meter.EAN, 0, n)
	for i := int64(871685900000000000); len(out) < n; i++ {
		if e, err := meter.EANFromInt64(i); err == nil {
			out = append(out, e)
		}
	}
	return out
}

// TestMinimums: lists are complete and in order, and Check refuses what says
// nothing new.
func TestMinimums(t *testing.T) {
	t.Parallel()
	points := eans(5000)
	h := &history{heads: []control.Head{{At: at}}}
	for from := 0; from < len(points); from += control.MaxMinimums {
		e := control.Entry{At: at, Kind: control.MinimumFiles}
		for i, p := range points[from:min(from+control.MaxMinimums, len(points))] {
			e.Files = append(e.Files, control.FileMinimum{EAN: p, Version: uint64(from + i + 1), SealedAt: at})
		}
		b := encode(t, e)
		if len(b) > 1<<17 {
			t.Fatalf("an entry of %d bytes does not fit its column", len(b))
		}
		h.add(b)
	}
	h.add(encode(t, entries(t)["suppliers"]))
	f := control.NewFeed()
	if erases, err := f.Advance(h.heads[3], 1, h.entries); err != nil || erases {
		t.Fatalf("%v, %v: a minimum erases no key", erases, err)
	}
	files := f.FileMinimums()
	if len(files) != len(points) {
		t.Fatalf("%d", len(files))
	}
	for i, m := range files {
		if m != (control.FileMinimum{EAN: points[i], Version: uint64(i + 1), SealedAt: at}) {
			t.Fatalf("%d: %+v", i, m)
		}
	}
	if s := f.SupplierMinimums(); len(s) != 1 || s[0] != (control.SupplierMinimum{GLN: mustGLN(t), Version: 2}) {
		t.Errorf("%+v", s)
	}
	if n, m := f.Minimums(); n != 5000 || m != 1 {
		t.Errorf("%d, %d", n, m)
	}
	for name, c := range map[string]struct {
		versions [2]uint64
		want     error
	}{
		"both older": {[2]uint64{10, 20}, control.ErrOrder}, "both the same": {[2]uint64{100, 200}, control.ErrOrder},
		"one newer": {[2]uint64{10, 201}, nil},
	} {
		e := control.Entry{Kind: control.MinimumFiles, Files: []control.FileMinimum{{EAN: points[99], Version: c.versions[0], SealedAt: at}, {EAN: points[199], Version: c.versions[1], SealedAt: at}}}
		if err := f.Check(e); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for version, want := range map[uint64]error{2: control.ErrOrder, 3: nil} {
		e := control.Entry{Kind: control.MinimumSuppliers, Suppliers: []control.SupplierMinimum{{GLN: mustGLN(t), Version: version}}}
		if err := f.Check(e); !errors.Is(err, want) {
			t.Errorf("supplier version %d: %v", version, err)
		}
	}
}

// TestMinimumMemory says what the minimums of all metering points of an
// operator take: KLUIS_MINIMUMS=2700000 go test -run MinimumMemory -v
func TestMinimumMemory(t *testing.T) {
	n := 100_000
	if os.Getenv("KLUIS_MINIMUMS") != "" {
		n = 2_700_000
	}
	points := eans(n)
	var entries [][]byte
	head := control.Head{At: at}
	bytes := 0
	for from := 0; from < n; from += control.MaxMinimums {
		e := control.Entry{At: at, Kind: control.MinimumFiles}
		for _, p := range points[from:min(from+control.MaxMinimums, n)] {
			e.Files = append(e.Files, control.FileMinimum{EAN: p, Version: 5, SealedAt: at})
		}
		b := encode(t, e)
		bytes += len(b)
		head.Sequence, head.Hash = head.Sequence+1, head.Hash.Next(b)
		entries = append(entries, b)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f := control.NewFeed()
	began := time.Now()
	if _, err := f.Advance(head, 1, entries); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := float64(after.HeapAlloc-before.HeapAlloc) / float64(n)
	began = time.Now()
	for range 10 {
		for _, p := range points[:10_000] {
			if f.FileMinimum(p) != 5 {
				t.Fatal("not there")
			}
		}
	}
	look := time.Since(began) / 100_000
	t.Logf("%d minimums in %d entries: %.1f bytes each on the wire, %.1f in memory; taken in in %s; a look-up %s",
		n, len(entries), float64(bytes)/float64(n), each, took.Round(time.Millisecond), look)
	if each > 80 {
		t.Errorf("%.1f bytes of memory each", each)
	}
	runtime.KeepAlive(f)
	runtime.KeepAlive(entries)
}
