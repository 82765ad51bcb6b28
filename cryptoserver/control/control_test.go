package control_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/authz"
	"kluis/cryptoserver/control"
	"kluis/meter"
)

var at = time.Date(2026, 11, 23, 8, 0, 0, 123456000, time.UTC)

func id(n byte) control.KeyID { return control.KeyID{n, 15: n} }

func mustEAN(t testing.TB) meter.EAN {
	t.Helper()
	e, err := meter.ParseEAN("871685900000000004")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func laterEAN(t testing.TB) meter.EAN {
	t.Helper()
	e, err := meter.ParseEAN("871685900000000011")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func mustGLN(t testing.TB) meter.GLN {
	t.Helper()
	g, err := meter.ParseGLN("8712345000004")
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func encode(t testing.TB, e control.Entry) []byte {
	t.Helper()
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// signer signs with a key made for the test.
type signer struct {
	key *ecdsa.PrivateKey
	id  authz.KeyID
}

func newSigner(t testing.TB) signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{k, authz.KeyIDOf(&k.PublicKey)}
}

func (s signer) KeyID() authz.KeyID { return s.id }

func (s signer) SignDigest(digest [32]byte) (sig [64]byte, err error) {
	r, v, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err == nil {
		r.FillBytes(sig[:32])
		v.FillBytes(sig[32:])
	}
	return sig, err
}

func pin(t testing.TB, s ...signer) *authz.SealKeys {
	t.Helper()
	var keys []*ecdsa.PublicKey
	for _, s := range s {
		keys = append(keys, &s.key.PublicKey)
	}
	k, err := authz.NewSealKeys(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// constant is a signer whose signature is always the same, for golden bytes.
type constant struct{ digest *[32]byte }

func (constant) KeyID() authz.KeyID { return authz.KeyID{1, 2, 3, 4, 5, 6, 7, 8} }

func (c constant) SignDigest(digest [32]byte) (sig [64]byte, err error) {
	*c.digest = digest
	sig[31], sig[63] = 1, 1
	return sig, nil
}

func entries(t testing.TB) map[string]control.Entry {
	return map[string]control.Entry{
		"activate":   {At: at, Kind: control.ActivateEpoch, Epoch: 2},
		"erase":      {At: at, Kind: control.EraseKeys, Cause: control.CauseRequest, EAN: mustEAN(t), Keys: []control.KeyID{id(1), id(2)}},
		"erase many": {At: at, Kind: control.EraseKeys, Cause: control.CauseReplaced, Keys: []control.KeyID{id(3)}},
		"before":     {At: at, Kind: control.EraseBefore, Cause: control.CauseRetention, Month: 658},
		"destroy":    {At: at, Kind: control.DestroyEpoch, Epoch: 1},
		"files":      {At: at, Kind: control.MinimumFiles, Files: []control.FileMinimum{{EAN: mustEAN(t), Version: 7, SealedAt: at}, {EAN: laterEAN(t), Version: 1<<63 - 1, SealedAt: at.Add(time.Microsecond)}}},
		"suppliers":  {At: at, Kind: control.MinimumSuppliers, Suppliers: []control.SupplierMinimum{{GLN: mustGLN(t), Version: 2}}},
	}
}

// TestGolden pins the formats to their bytes: what is signed must stay
// readable, so a change here is a new format version, not an edit.
func TestGolden(t *testing.T) {
	t.Parallel()
	for name, e := range entries(t) {
		if got := hex.EncodeToString(encode(t, e)); got != goldenEntries[name] {
			t.Errorf("%s:\n got %s\nwant %s", name, got, goldenEntries[name])
		}
	}
	first := encode(t, entries(t)["activate"])
	one := control.Hash{}.Next(first)
	two := one.Next(encode(t, entries(t)["before"]))
	for name, c := range map[string][2]string{
		"first": {hex.EncodeToString(one[:]), goldenOne}, "second": {hex.EncodeToString(two[:]), goldenTwo},
	} {
		if c[0] != c[1] {
			t.Errorf("chain after the %s: %s, want %s", name, c[0], c[1])
		}
	}
	var digest [32]byte
	for name, c := range map[string]struct {
		head control.Head
		want string
	}{
		"head":      {control.Head{Sequence: 2, Hash: two, At: at}, goldenHead},
		"no entry":  {control.Head{At: at}, goldenEmptyHead},
		"of a time": {control.Head{At: at.Add(999 * time.Nanosecond)}, goldenEmptyHead}, // microseconds
	} {
		signed, err := c.head.Sign(constant{&digest})
		if err != nil {
			t.Fatal(err)
		}
		before := signed[:len(signed)-64]
		if got := hex.EncodeToString(before); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
		if digest != sha256.Sum256(before) {
			t.Errorf("%s: something else was signed", name)
		}
	}
}

func TestEntriesRoundTrip(t *testing.T) {
	t.Parallel()
	for name, e := range entries(t) {
		got, err := control.ParseEntry(encode(t, e))
		if err != nil || hex.EncodeToString(encode(t, got)) != hex.EncodeToString(encode(t, e)) || !got.At.Equal(e.At) || got.Kind != e.Kind {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestEntriesRefused(t *testing.T) {
	t.Parallel()
	ok := entries(t)
	many := make([]control.KeyID, control.MaxKeys+1)
	for i := range many {
		many[i] = control.KeyID{byte(i >> 8), byte(i)}
	}
	with := func(name string, change func(*control.Entry)) control.Entry {
		e := ok[name]
		change(&e)
		return e
	}
	for name, e := range map[string]control.Entry{
		"nothing":                       {},
		"no kind":                       {At: at},
		"an unknown kind":               {At: at, Kind: 5, Epoch: 1},
		"no time":                       with("activate", func(e *control.Entry) { e.At = time.Time{} }),
		"epoch 0":                       with("activate", func(e *control.Entry) { e.Epoch = 0 }),
		"an epoch beyond the tables":    with("activate", func(e *control.Entry) { e.Epoch = 1 << 31 }),
		"destroying epoch 0":            with("destroy", func(e *control.Entry) { e.Epoch = 0 }),
		"an activation with a month":    with("activate", func(e *control.Entry) { e.Month = 1 }),
		"an activation with keys":       with("activate", func(e *control.Entry) { e.Keys = []control.KeyID{id(1)} }),
		"an activation with a cause":    with("activate", func(e *control.Entry) { e.Cause = 1 }),
		"a destruction with an EAN":     with("destroy", func(e *control.Entry) { e.EAN = mustEAN(t) }),
		"an erasure of nothing":         with("erase", func(e *control.Entry) { e.Keys = nil }),
		"an erasure without a cause":    with("erase", func(e *control.Entry) { e.Cause = 0 }),
		"an erasure of another cause":   with("erase", func(e *control.Entry) { e.Cause = 4 }),
		"an erasure with an epoch":      with("erase", func(e *control.Entry) { e.Epoch = 1 }),
		"an erasure with a month":       with("erase", func(e *control.Entry) { e.Month = 1 }),
		"keys not ascending":            with("erase", func(e *control.Entry) { e.Keys = []control.KeyID{id(2), id(1)} }),
		"a key twice":                   with("erase", func(e *control.Entry) { e.Keys = []control.KeyID{id(1), id(1)} }),
		"too many keys":                 with("erase", func(e *control.Entry) { e.Keys = many }),
		"all months of all time":        with("before", func(e *control.Entry) { e.Month = 0 }),
		"a month before 1970":           with("before", func(e *control.Entry) { e.Month = -1 }),
		"months for another cause":      with("before", func(e *control.Entry) { e.Cause = control.CauseRequest }),
		"months of one metering point":  with("before", func(e *control.Entry) { e.EAN = mustEAN(t) }),
		"months and keys":               with("before", func(e *control.Entry) { e.Keys = []control.KeyID{id(1)} }),
		"a destruction with keys":       with("destroy", func(e *control.Entry) { e.Keys = []control.KeyID{id(1)} }),
		"a destruction with a month":    with("destroy", func(e *control.Entry) { e.Month = 1 }),
		"an activation of one and more": with("activate", func(e *control.Entry) { e.EAN = mustEAN(t) }),
		"an activation with a file":     with("activate", func(e *control.Entry) { e.Files = ok["files"].Files }),
		"an erasure with a supplier":    with("erase", func(e *control.Entry) { e.Suppliers = ok["suppliers"].Suppliers }),
		"no file":                       with("files", func(e *control.Entry) { e.Files = nil }),
		"no supplier":                   with("suppliers", func(e *control.Entry) { e.Suppliers = nil }),
		"files of no time":              with("files", func(e *control.Entry) { e.At = time.Time{} }),
		"files and suppliers":           with("files", func(e *control.Entry) { e.Suppliers = ok["suppliers"].Suppliers }),
		"suppliers and files":           with("suppliers", func(e *control.Entry) { e.Files = ok["files"].Files }),
		"files with an epoch":           with("files", func(e *control.Entry) { e.Epoch = 1 }),
		"files with a month":            with("files", func(e *control.Entry) { e.Month = 1 }),
		"files with a cause":            with("files", func(e *control.Entry) { e.Cause = 1 }),
		"files with an EAN":             with("files", func(e *control.Entry) { e.EAN = mustEAN(t) }),
		"files with keys":               with("files", func(e *control.Entry) { e.Keys = []control.KeyID{id(1)} }),
		"a file of version 0":           with("files", func(e *control.Entry) { e.Files = []control.FileMinimum{{EAN: mustEAN(t), SealedAt: at}} }),
		"a version beyond": with("files", func(e *control.Entry) {
			e.Files = []control.FileMinimum{{EAN: mustEAN(t), Version: 1 << 63, SealedAt: at}}
		}),
		"a file sealed at no time": with("files", func(e *control.Entry) { e.Files = []control.FileMinimum{{EAN: mustEAN(t), Version: 1}} }),
		"a file of nothing":        with("files", func(e *control.Entry) { e.Files = []control.FileMinimum{{Version: 1, SealedAt: at}} }),
		"a file twice":             with("files", func(e *control.Entry) { e.Files = []control.FileMinimum{e.Files[0], e.Files[0]} }),
		"files not ascending":      with("files", func(e *control.Entry) { e.Files = []control.FileMinimum{e.Files[1], e.Files[0]} }),
		"too many files":           with("files", func(e *control.Entry) { e.Files = make([]control.FileMinimum, control.MaxMinimums+1) }),
		"a supplier of version 0":  with("suppliers", func(e *control.Entry) { e.Suppliers = []control.SupplierMinimum{{GLN: mustGLN(t)}} }),
	} {
		if b, err := e.Encode(); !errors.Is(err, control.ErrEntry) || b != nil {
			t.Errorf("%s: %x, %v; want ErrEntry", name, b, err)
		}
	}
	good := encode(t, ok["erase"])
	bad := bytes.Clone(good)
	bad[len(bad)-40]++ // in the count or the EAN
	head, err := control.Head{At: at}.Sign(newSigner(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"empty": nil, "cut": good[:len(good)-1], "trailing": append(bytes.Clone(good), 0), "another version": bytes.Replace(good, []byte("entry\x01"), []byte("entry\x03"), 1),
		"keys in the version of minimums": bytes.Replace(good, []byte("entry\x01"), []byte("entry\x02"), 1),
		"minimums in the version of keys": bytes.Replace(encode(t, ok["files"]), []byte("entry\x02"), []byte("entry\x01"), 1),
		"minimums cut":                    encode(t, ok["files"])[:60], "minimums trailing": append(encode(t, ok["files"]), 0),

		"another type": bytes.Replace(good, []byte("control-entry"), []byte("control-other"), 1), "a head": head, "a wrong EAN": bad,
	} {
		if _, err := control.ParseEntry(b); !errors.Is(err, control.ErrEntry) {
			t.Errorf("%s: %v, want ErrEntry", name, err)
		}
	}
}

func TestHeadsRefused(t *testing.T) {
	t.Parallel()
	s, stranger := newSigner(t), newSigner(t)
	keys := pin(t, s)
	for name, h := range map[string]control.Head{
		"a hash of nothing": {Hash: control.Hash{1}, At: at}, "a sequence without a hash": {Sequence: 1, At: at}, "no time": {Sequence: 1, Hash: control.Hash{1}},
	} {
		if _, err := h.Sign(s); !errors.Is(err, control.ErrHead) {
			t.Errorf("%s: %v, want ErrHead", name, err)
		}
	}
	h := control.Head{Sequence: 7, Hash: control.Hash{7}, At: at}
	signed, err := h.Sign(s)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := control.OpenHead(signed, keys); err != nil || got != h {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range signed {
		b := bytes.Clone(signed)
		b[i] ^= 1
		if _, err := control.OpenHead(b, keys); !errors.Is(err, control.ErrHead) {
			t.Errorf("byte %d changed: %v, want ErrHead", i, err)
		}
	}
	foreign, err := h.Sign(stranger)
	if err != nil {
		t.Fatal(err)
	}
	// The signature of an entry's bytes, or of a sealed fact, is none of a head.
	for name, b := range map[string][]byte{
		"by a key not pinned": foreign, "cut": signed[:len(signed)-1], "trailing": append(bytes.Clone(signed), 0), "empty": nil,
		"an entry": encode(t, entries(t)["activate"]),
	} {
		if _, err := control.OpenHead(b, keys); !errors.Is(err, control.ErrHead) {
			t.Errorf("%s: %v, want ErrHead", name, err)
		}
	}
}

// history is a feed: its entries, encoded, and its heads, from the empty one.
type history struct {
	entries [][]byte
	heads   []control.Head
}

func (h *history) add(b []byte) {
	if len(h.heads) == 0 {
		h.heads = []control.Head{{At: at}}
	}
	last := h.heads[len(h.heads)-1]
	h.entries = append(h.entries, b)
	h.heads = append(h.heads, control.Head{Sequence: last.Sequence + 1, Hash: last.Hash.Next(b), At: last.At.Add(time.Second)})
}

var (
	someEANs = func() (out []meter.EAN) {
		for n := int64(871685900000000000); len(out) < 4; n++ {
			if e, err := meter.EANFromInt64(n); err == nil {
				out = append(out, e)
			}
		}
		return out
	}()
	someGLN = func() meter.GLN {
		g, err := meter.ParseGLN("8712345000004")
		if err != nil {
			panic(err)
		}
		return g
	}()
)

func anEntry(t *rapid.T) control.Entry {
	e := control.Entry{At: at.Add(time.Duration(rapid.IntRange(0, 1e6).Draw(t, "at")) * time.Microsecond)}
	switch rapid.IntRange(1, 6).Draw(t, "kind") {
	case 1:
		e.Kind, e.Epoch = control.ActivateEpoch, uint32(rapid.IntRange(1, 4).Draw(t, "epoch"))
	case 2:
		e.Kind, e.Cause = control.EraseKeys, control.Cause(rapid.IntRange(1, 3).Draw(t, "cause"))
		from := rapid.IntRange(0, 20).Draw(t, "from")
		for i := range rapid.IntRange(1, 5).Draw(t, "keys") {
			e.Keys = append(e.Keys, id(byte(from+i)))
		}
	case 3:
		e.Kind, e.Cause, e.Month = control.EraseBefore, control.CauseRetention, meter.Month(rapid.IntRange(1, 40).Draw(t, "month"))
	case 4:
		e.Kind, e.Epoch = control.DestroyEpoch, uint32(rapid.IntRange(1, 4).Draw(t, "epoch"))
	case 5:
		e.Kind = control.MinimumFiles
		for _, of := range someEANs[rapid.IntRange(0, len(someEANs)-1).Draw(t, "from"):] {
			e.Files = append(e.Files, control.FileMinimum{EAN: of, Version: rapid.Uint64Range(1, 9).Draw(t, "version"), SealedAt: at.Add(time.Duration(rapid.IntRange(0, 9).Draw(t, "sealed")) * time.Second)})
		}
	case 6:
		e.Kind, e.Suppliers = control.MinimumSuppliers, []control.SupplierMinimum{{GLN: someGLN, Version: rapid.Uint64Range(1, 9).Draw(t, "version")}}
	}
	return e
}

func aHistory(t *rapid.T, least int) *history {
	h := &history{heads: []control.Head{{At: at}}}
	for range rapid.IntRange(least, 12).Draw(t, "entries") {
		b, err := anEntry(t).Encode()
		if err != nil {
			t.Fatal(err)
		}
		h.add(b)
	}
	return h
}

// state is all that can be asked of a feed.
type state struct {
	active    uint32
	before    meter.Month
	destroyed [6]bool
	erased    map[byte]bool
	count     int
	minimums  [5]uint64 // of someEANs, and of someGLN
	sealed    [4]int64  // of someEANs: the second after at from which on a file of any version counts
}

func stateOf(f *control.Feed) state {
	s := state{active: f.Active(), before: f.Before(), count: f.ErasedKeys(), erased: map[byte]bool{}}
	for i := range s.destroyed {
		s.destroyed[i] = f.Destroyed(uint32(i))
	}
	for i := range byte(40) {
		if f.Erased(id(i), 1<<30) {
			s.erased[i] = true
		}
	}
	for i, e := range someEANs {
		s.minimums[i] = f.FileMinimum(e)
		for !f.CountsFile(e, 9, at.Add(time.Duration(s.sealed[i])*time.Second)) {
			s.sealed[i]++
		}
	}
	s.minimums[4] = f.SupplierMinimum(someGLN)
	return s
}

func same(a, b state) bool {
	return a.active == b.active && a.before == b.before && a.destroyed == b.destroyed && a.count == b.count && a.minimums == b.minimums && a.sealed == b.sealed && maps.Equal(a.erased, b.erased)
}

// within says that b knows all that a knows.
func (a state) within(b state) bool {
	ok := a.active <= b.active && a.before <= b.before && a.count <= b.count
	for i := range a.destroyed {
		ok = ok && (!a.destroyed[i] || b.destroyed[i])
	}
	for k := range a.erased {
		ok = ok && b.erased[k]
	}
	for i := range a.minimums {
		ok = ok && a.minimums[i] <= b.minimums[i]
	}
	for i := range a.sealed {
		ok = ok && a.sealed[i] <= b.sealed[i]
	}
	return ok
}

// follow takes a history in, in chunks that may overlap what is known.
func follow(t *rapid.T, f *control.Feed, h *history) {
	for done := 0; done < len(h.entries); {
		from := rapid.IntRange(0, done).Draw(t, "first")
		to := rapid.IntRange(done+1, len(h.entries)).Draw(t, "to")
		before := stateOf(f)
		beyond := rapid.IntRange(to, len(h.entries)).Draw(t, "beyond") // entries the head does not vouch for yet
		if _, err := f.Advance(h.heads[to], uint64(from+1), h.entries[from:beyond]); err != nil {
			t.Fatalf("entries %d to %d: %v", from+1, to, err)
		}
		if after := stateOf(f); !before.within(after) {
			t.Fatalf("something became less: %+v, %+v", before, after)
		}
		done = to
	}
}

func TestAnySplitEndsTheSame(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := aHistory(t, 0)
		whole, parts := control.NewFeed(), control.NewFeed()
		if _, err := whole.Advance(h.heads[len(h.entries)], 1, h.entries); err != nil {
			t.Fatal(err)
		}
		follow(t, parts, h)
		if a, b := stateOf(whole), stateOf(parts); !same(a, b) {
			t.Fatalf("%+v, in parts %+v", a, b)
		}
		if len(h.entries) > 0 && whole.Head() != parts.Head() {
			t.Fatalf("%+v, in parts %+v", whole.Head(), parts.Head())
		}
		// The model: what the entries say, one after another.
		var want state
		want.erased = map[byte]bool{}
		for _, b := range h.entries {
			e, err := control.ParseEntry(b)
			if err != nil {
				t.Fatal(err)
			}
			switch e.Kind {
			case control.ActivateEpoch:
				want.active = max(want.active, e.Epoch)
			case control.EraseKeys:
				for _, k := range e.Keys {
					want.erased[k[0]] = true
				}
			case control.EraseBefore:
				want.before = max(want.before, e.Month)
			case control.DestroyEpoch:
				want.destroyed[e.Epoch] = true
			case control.MinimumFiles:
				for _, m := range e.Files {
					i := slices.Index(someEANs, m.EAN)
					want.minimums[i] = max(want.minimums[i], m.Version)
					want.sealed[i] = max(want.sealed[i], int64(m.SealedAt.Sub(at)/time.Second))
				}
			case control.MinimumSuppliers:
				want.minimums[4] = max(want.minimums[4], e.Suppliers[0].Version)
			}
		}
		want.count = len(want.erased)
		if got := stateOf(whole); !same(got, want) {
			t.Fatalf("%+v, want %+v", got, want)
		}
	})
}

// TestNoOtherFeed: under one head nothing but its very entries is taken in, and
// whatever is refused changes nothing.
func TestNoOtherFeed(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := aHistory(t, 2)
		n := len(h.entries)
		f := control.NewFeed()
		known := rapid.IntRange(0, n-1).Draw(t, "known")
		if _, err := f.Advance(h.heads[known], 1, h.entries[:known]); err != nil {
			t.Fatal(err)
		}
		before, head := stateOf(f), f.Head()
		forged := append([][]byte{}, h.entries[known:]...)
		i := rapid.IntRange(0, len(forged)-1).Draw(t, "where")
		switch rapid.SampledFrom([]string{"drop", "duplicate", "insert", "change", "reorder"}).Draw(t, "forgery") {
		case "drop":
			forged = append(forged[:i:i], forged[i+1:]...)
		case "duplicate":
			forged = append(forged[:i+1:i+1], forged[i:]...)
		case "insert":
			b, err := anEntry(t).Encode()
			if err != nil {
				t.Fatal(err)
			}
			forged = append(append(forged[:i:i], b), forged[i:]...)
		case "change":
			b := bytes.Clone(forged[i])
			b[rapid.IntRange(0, len(b)-1).Draw(t, "byte")] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
			forged[i] = b
		case "reorder":
			j := rapid.IntRange(0, len(forged)-1).Draw(t, "with")
			forged[i], forged[j] = forged[j], forged[i]
		}
		vouched := forged[:min(len(forged), n-known)]
		for i := range vouched {
			if !bytes.Equal(vouched[i], h.entries[known+i]) {
				break
			}
			if i == n-known-1 {
				return // the forgery lies beyond the head, or is none
			}
		}
		_, err := f.Advance(h.heads[n], uint64(known+1), forged)
		if !errors.Is(err, control.ErrFork) && !errors.Is(err, control.ErrGap) && !errors.Is(err, control.ErrEntry) {
			t.Fatalf("a forged feed: %v", err)
		}
		if !same(before, stateOf(f)) || f.Head() != head {
			t.Fatal("what was refused changed something")
		}
	})
}

// TestEarlierHeads: no earlier head, of this feed or of another, whenever it
// was signed, changes anything or makes the feed look newer.
func TestEarlierHeads(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := aHistory(t, 1)
		n := len(h.entries)
		f := control.NewFeed()
		if _, err := f.Advance(h.heads[n], 1, h.entries); err != nil {
			t.Fatal(err)
		}
		before, head := stateOf(f), f.Head()
		old := h.heads[rapid.IntRange(0, n-1).Draw(t, "old")]
		if rapid.Bool().Draw(t, "signed again") {
			old.At = head.At.Add(time.Hour)
		}
		if rapid.Bool().Draw(t, "of another feed") && old.Sequence > 0 {
			old.Hash[0]++
		}
		if _, err := f.Advance(old, 1, h.entries); !errors.Is(err, control.ErrBehind) || !errors.Is(err, control.ErrFork) {
			t.Fatalf("a shorter feed: %v", err)
		}
		// The same end, signed before: no error, and no older time.
		same1 := head
		same1.At = head.At.Add(-time.Hour)
		if erases, err := f.Advance(same1, 0, nil); err != nil || erases {
			t.Fatal(err)
		}
		// Another end of the same length.
		other := head
		other.Hash[31]++
		other.At = head.At.Add(time.Hour)
		if _, err := f.Advance(other, 1, h.entries); !errors.Is(err, control.ErrFork) || errors.Is(err, control.ErrBehind) {
			t.Fatalf("another feed: %v", err)
		}
		if !same(before, stateOf(f)) || f.Head() != head {
			t.Fatal("an earlier head changed something")
		}
	})
}

func TestGaps(t *testing.T) {
	t.Parallel()
	h := &history{}
	for range 5 {
		h.add(encode(t, control.Entry{At: at, Kind: control.ActivateEpoch, Epoch: 1}))
	}
	f := control.NewFeed()
	if _, err := f.Advance(h.heads[2], 1, h.entries[:2]); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		head    int
		first   uint64
		entries [][]byte
	}{
		"no entries":            {5, 3, nil},
		"one missing":           {5, 4, h.entries[3:]},
		"the last missing":      {5, 3, h.entries[2:4]},
		"numbered from 0":       {5, 0, h.entries},
		"numbered far away":     {5, 1<<64 - 1, h.entries},
		"numbered to overflow":  {5, 1<<64 - 3, h.entries},
		"only those known":      {5, 1, h.entries[:2]},
		"known and then a hole": {5, 1, h.entries[:4]},
	} {
		if _, err := f.Advance(h.heads[c.head], c.first, c.entries); !errors.Is(err, control.ErrGap) {
			t.Errorf("%s: %v, want ErrGap", name, err)
		}
	}
	if f.Head() != h.heads[2] {
		t.Errorf("%+v", f.Head())
	}
	if _, err := f.Advance(control.Head{Sequence: 1<<64 - 1, Hash: control.Hash{1}, At: at}, 3, h.entries[2:]); !errors.Is(err, control.ErrGap) {
		t.Errorf("an absurd head: %v", err)
	}
}

func TestFresh(t *testing.T) {
	t.Parallel()
	f := control.NewFeed()
	if f.Fresh(at) || f.Fresh(time.Time{}) {
		t.Error("fresh without a head")
	}
	if _, err := f.Advance(control.Head{At: at}, 0, nil); err != nil {
		t.Fatal(err)
	}
	for d, want := range map[time.Duration]bool{
		0: true, control.MaxAge: true, control.MaxAge + 1: false, time.Hour: false, -control.MaxSkew: true, -control.MaxSkew - 1: false,
	} {
		if f.Fresh(at.Add(d)) != want {
			t.Errorf("%v after the head: fresh is %v", d, !want)
		}
	}
}

func TestErases(t *testing.T) {
	t.Parallel()
	f, h := control.NewFeed(), &history{}
	for i, c := range []struct {
		entry  control.Entry
		erases bool
	}{
		{control.Entry{Kind: control.ActivateEpoch, Epoch: 2}, false},
		{control.Entry{Kind: control.EraseKeys, Cause: control.CauseRequest, Keys: []control.KeyID{id(1)}}, true},
		{control.Entry{Kind: control.EraseBefore, Cause: control.CauseRetention, Month: 600}, true},
		{control.Entry{Kind: control.DestroyEpoch, Epoch: 1}, true},
	} {
		c.entry.At = at
		h.add(encode(t, c.entry))
		erases, err := f.Advance(h.heads[i+1], uint64(i+1), h.entries[i:])
		if err != nil || erases != c.erases {
			t.Errorf("kind %d: %v, %v", c.entry.Kind, erases, err)
		}
	}
	for _, c := range []struct {
		id    control.KeyID
		month meter.Month
		want  bool
	}{{id(1), 700, true}, {id(2), 700, false}, {id(2), 600, false}, {id(2), 599, true}, {id(2), -5, true}} {
		if f.Erased(c.id, c.month) != c.want {
			t.Errorf("key %d of month %d: %v", c.id[0], c.month, !c.want)
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	f, h := control.NewFeed(), &history{}
	for _, e := range []control.Entry{
		{Kind: control.ActivateEpoch, Epoch: 1}, {Kind: control.ActivateEpoch, Epoch: 3}, {Kind: control.DestroyEpoch, Epoch: 1},
		{Kind: control.DestroyEpoch, Epoch: 5}, // written by hand: of a later one
		{Kind: control.EraseBefore, Cause: control.CauseRetention, Month: 600},
	} {
		e.At = at
		h.add(encode(t, e))
	}
	if _, err := f.Advance(h.heads[5], 1, h.entries); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		entry control.Entry
		want  string
	}{
		"a later epoch":             {control.Entry{Kind: control.ActivateEpoch, Epoch: 4}, ""},
		"the active one again":      {control.Entry{Kind: control.ActivateEpoch, Epoch: 3}, "no later one"},
		"back to an earlier one":    {control.Entry{Kind: control.ActivateEpoch, Epoch: 2}, "no later one"},
		"a destroyed one":           {control.Entry{Kind: control.ActivateEpoch, Epoch: 5}, "destroyed"},
		"an old epoch's end":        {control.Entry{Kind: control.DestroyEpoch, Epoch: 2}, ""},
		"the active epoch's end":    {control.Entry{Kind: control.DestroyEpoch, Epoch: 3}, "not older"},
		"a later epoch's end":       {control.Entry{Kind: control.DestroyEpoch, Epoch: 4}, "not older"},
		"months more":               {control.Entry{Kind: control.EraseBefore, Month: 601}, ""},
		"the same months":           {control.Entry{Kind: control.EraseBefore, Month: 600}, "already"},
		"fewer months":              {control.Entry{Kind: control.EraseBefore, Month: 500}, "already"},
		"keys, erased or not":       {control.Entry{Kind: control.EraseKeys, Keys: []control.KeyID{id(1)}}, ""},
		"an epoch destroyed before": {control.Entry{Kind: control.DestroyEpoch, Epoch: 1}, ""},
	} {
		err := f.Check(c.entry)
		if (err == nil) != (c.want == "") || err != nil && (!errors.Is(err, control.ErrOrder) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzParseEntry(f *testing.F) {
	for _, e := range entries(f) {
		f.Add(encode(f, e))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := control.ParseEntry(b)
		if err != nil {
			if !errors.Is(err, control.ErrEntry) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if got, err := e.Encode(); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("accepted %x, which re-encodes to %x (%v)", b, got, err)
		}
	})
}

// FuzzOpenHead signs what the fuzzer makes of a head, so that it gets past the
// signature: whatever is accepted re-encodes to the same bytes.
func FuzzOpenHead(f *testing.F) {
	s := newSigner(f)
	keys := pin(f, s)
	for _, h := range []control.Head{{At: at}, {Sequence: 3, Hash: control.Hash{3}, At: at}} {
		signed, err := h.Sign(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(signed[:len(signed)-64-8], true)
		f.Add(signed, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, sign bool) {
		if sign {
			b = append(bytes.Clone(b), s.id[:]...)
			sig, err := authz.SignDigest(s, sha256.Sum256(b))
			if err != nil {
				t.Fatal(err)
			}
			b = append(b, sig[:]...)
		}
		h, err := control.OpenHead(b, keys)
		if err != nil {
			if !errors.Is(err, control.ErrHead) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		again, err := h.Sign(s)
		if err != nil || !bytes.Equal(again[:len(again)-64], b[:len(b)-64]) {
			t.Fatalf("accepted %x, which re-encodes to %x (%v)", b, again, err)
		}
	})
}

var goldenEntries = map[string]string{
	"files":      "000000136b6c7569732f636f6e74726f6c2d656e74727902000660ecfb03824005000000020c18d9b5293778040000000000000007000660ecfb0382400c18d9b52937780b7fffffffffffffff000660ecfb038241",
	"suppliers":  "000000136b6c7569732f636f6e74726f6c2d656e74727902000660ecfb0382400600000001000007ec803a98440000000000000002",
	"activate":   "000000136b6c7569732f636f6e74726f6c2d656e74727901000660ecfb03824001000000020000000000000000000000000000000000",
	"erase":      "000000136b6c7569732f636f6e74726f6c2d656e74727901000660ecfb038240020000000000000000010c18d9b529377804000000020100000000000000000000000000000102000000000000000000000000000002",
	"erase many": "000000136b6c7569732f636f6e74726f6c2d656e74727901000660ecfb0382400200000000000000000300000000000000000000000103000000000000000000000000000003",
	"before":     "000000136b6c7569732f636f6e74726f6c2d656e74727901000660ecfb03824003000000000000029202000000000000000000000000",
	"destroy":    "000000136b6c7569732f636f6e74726f6c2d656e74727901000660ecfb03824004000000010000000000000000000000000000000000",
}

const (
	goldenOne       = "6699d4eb96b340cdfcc613e75ddbd8a1e7b60ba14db43281f2adb31709c05f5c"
	goldenTwo       = "3ab8f6fe6513adf945c280e3ab9071f1f54808130c437545f3292e6b172dbf79"
	goldenHead      = "000000126b6c7569732f636f6e74726f6c2d686561640100000000000000023ab8f6fe6513adf945c280e3ab9071f1f54808130c437545f3292e6b172dbf79000660ecfb0382400102030405060708"
	goldenEmptyHead = "000000126b6c7569732f636f6e74726f6c2d686561640100000000000000000000000000000000000000000000000000000000000000000000000000000000000660ecfb0382400102030405060708"
)
