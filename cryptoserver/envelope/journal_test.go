package envelope_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

func testLink() envelope.Link {
	return envelope.Link{ServerID: "cs1", BootID: fill16(1), Sequence: 7, Previous: fill32(2)}
}

// testEvents has one of each kind.
func testEvents(t testing.TB) map[string]envelope.SealEvent {
	at := time.Date(2024, 3, 31, 1, 2, 3, 456789000, time.UTC)
	blocks := []envelope.SealedDigest{
		{Field: 3, Day: 19797, Version: 2, Digest: fill16(0xd1)},
		{Field: 4, Day: 19798, Version: 1, Digest: fill16(0xd2)},
	}
	ean, gln := mustEAN(t, testEAN), mustGLN(t, "8712345000004")
	return map[string]envelope.SealEvent{
		"sealed":     {Link: testLink(), At: at, Client: "ingest", Kind: envelope.BlocksSealed, EAN: ean, Blocks: blocks},
		"resealed":   {Link: testLink(), At: at, Client: "custodian", Kind: envelope.BlocksResealed, EAN: ean, Blocks: blocks[:1]},
		"legal file": {Link: testLink(), At: at, Client: "registrar", Kind: envelope.LegalFile, EAN: ean, Version: 9, Digest: fill32(5)},
		"supplier":   {Link: testLink(), At: at, Client: "registrar", Kind: envelope.SupplierRecord, GLN: gln, Version: 2, Digest: fill32(6)},
		"control":    {Link: testLink(), At: at, Client: "custodian", Kind: envelope.ControlHead, Version: 12, Digest: fill32(7)},
		"empty feed": {Link: testLink(), At: at, Client: "custodian", Kind: envelope.ControlHead},
	}
}

// TestGoldenSealEvents pins the format to its bytes, as TestGolden does.
func TestGoldenSealEvents(t *testing.T) {
	t.Parallel()
	for name, e := range testEvents(t) {
		b := e.Encode()
		if got := hex.EncodeToString(b); got != goldenEvents[name] {
			t.Errorf("%q: %q,", name, got)
		}
		back, err := envelope.ParseSealEvent(b)
		if err != nil || !reflect.DeepEqual(back, e) {
			t.Errorf("%s: %+v, %v", name, back, err)
		}
	}
	digest := envelope.CiphertextDigest([]byte("KB"))
	if got := hex.EncodeToString(digest[:]); got != "59281a6b29351cfa2ea93986fe7aa7b8" {
		t.Errorf("ciphertext digest: %s", got)
	}
}

// TestSealEventRefuses: an event has what its kind has, and nothing else.
func TestSealEventRefuses(t *testing.T) {
	t.Parallel()
	for of, changes := range map[string]map[string]func(*envelope.SealEvent){
		"sealed": {
			"no server":   func(e *envelope.SealEvent) { e.ServerID = "" },
			"no client":   func(e *envelope.SealEvent) { e.Client = "" },
			"no sequence": func(e *envelope.SealEvent) { e.Sequence = 0 },
			"no time":     func(e *envelope.SealEvent) { e.At = time.Time{} },
			"no kind":     func(e *envelope.SealEvent) { e.Kind = 0 },
			"unknown":     func(e *envelope.SealEvent) { e.Kind = 6 },
			"no EAN":      func(e *envelope.SealEvent) { e.EAN = meter.EAN{} },
			"a GLN":       func(e *envelope.SealEvent) { e.GLN = testReceiptGLN },
			"a version":   func(e *envelope.SealEvent) { e.Version = 1 },
			"a digest":    func(e *envelope.SealEvent) { e.Digest = fill32(1) },
			"no blocks":   func(e *envelope.SealEvent) { e.Blocks = nil },
			"block 0":     func(e *envelope.SealEvent) { e.Blocks = []envelope.SealedDigest{{}} },
			"long names":  func(e *envelope.SealEvent) { e.Client = string(make([]byte, 65)) },
		},
		"legal file": {
			"blocks":     func(e *envelope.SealEvent) { e.Blocks = []envelope.SealedDigest{{Version: 1}} },
			"no version": func(e *envelope.SealEvent) { e.Version = 0 },
			"no digest":  func(e *envelope.SealEvent) { e.Digest = [32]byte{} },
			"supplier":   func(e *envelope.SealEvent) { e.Kind = envelope.SupplierRecord },
		},
		"supplier": {
			"an EAN":  func(e *envelope.SealEvent) { e.EAN = mustEAN(t, testEAN) },
			"no GLN":  func(e *envelope.SealEvent) { e.GLN = meter.GLN{} },
			"a file":  func(e *envelope.SealEvent) { e.Kind = envelope.LegalFile },
			"control": func(e *envelope.SealEvent) { e.Kind = envelope.ControlHead },
		},
		"control": {
			"no hash":     func(e *envelope.SealEvent) { e.Digest = [32]byte{} },
			"no sequence": func(e *envelope.SealEvent) { e.Version = 0 },
		},
	} {
		for name, change := range changes {
			e := testEvents(t)[of]
			change(&e)
			if _, err := envelope.ParseSealEvent(e.Encode()); !errors.Is(err, envelope.ErrFormat) {
				t.Errorf("%s, %s: %v", of, name, err)
			}
		}
	}
	e := testEvents(t)["sealed"]
	good := e.Encode()
	for name, b := range map[string][]byte{
		"empty": nil, "cut": good[:len(good)-1], "trailing": append(good, 0), "a receipt": testReceipt(t).Encode(),
	} {
		if _, err := envelope.ParseSealEvent(b); !errors.Is(err, envelope.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// chained is a journal as a server writes it.
func chained(t testing.TB) [][]byte {
	t.Helper()
	link := envelope.Link{ServerID: "cs1", BootID: fill16(1)}
	events := testEvents(t)
	var out [][]byte
	for i, kind := range []string{"legal file", "", "sealed", "", "control"} {
		link.Sequence = uint64(i) + 1
		var b []byte
		if kind == "" {
			r := testReceipt(t)
			r.ServerID, r.BootID, r.Sequence, r.Previous = link.ServerID, link.BootID, link.Sequence, link.Previous
			b = r.Encode()
		} else {
			e := events[kind]
			e.Link = link
			b = e.Encode()
		}
		out = append(out, b)
		link.Previous = sha256.Sum256(b)
	}
	return out
}

// TestChainShowsTampering: an entry that is missing, changed, repeated, moved or
// another's is noticed at the entry itself or at the next.
func TestChainShowsTampering(t *testing.T) {
	t.Parallel()
	read := func(entries [][]byte) (envelope.Chain, error) {
		c := envelope.Chain{ServerID: "cs1", BootID: fill16(1)}
		for _, e := range entries {
			if _, err := c.Next(e); err != nil {
				return c, err
			}
		}
		return c, nil
	}
	whole := chained(t)
	end, err := read(whole)
	if err != nil || end.Sequence != 5 || end.Hash != sha256.Sum256(whole[4]) {
		t.Fatalf("%+v, %v", end, err)
	}
	for name, tamper := range map[string]func([][]byte) [][]byte{
		"the first missing":    func(e [][]byte) [][]byte { return e[1:] },
		"one missing":          func(e [][]byte) [][]byte { return slices.Delete(e, 2, 3) },
		"two swapped":          func(e [][]byte) [][]byte { e[1], e[2] = e[2], e[1]; return e },
		"one repeated":         func(e [][]byte) [][]byte { return slices.Insert(e, 2, e[1]) },
		"one cut":              func(e [][]byte) [][]byte { e[2] = e[2][:len(e[2])-1]; return e },
		"another server's":     func(e [][]byte) [][]byte { e[0] = bytes.Replace(e[0], []byte("cs1"), []byte("cs2"), 1); return e },
		"one changed":          func(e [][]byte) [][]byte { e[1] = flip(e[1], len(e[1])-1); return e },
		"one changed and kept": func(e [][]byte) [][]byte { e[3] = flip(e[3], len(e[3])-40); return e },
	} {
		clone := make([][]byte, len(whole))
		for i := range whole {
			clone[i] = bytes.Clone(whole[i])
		}
		if c, err := read(tamper(clone)); !errors.Is(err, envelope.ErrChain) && !errors.Is(err, envelope.ErrFormat) {
			t.Errorf("%s: read to %d, %v", name, c.Sequence, err)
		}
	}
	// What was refused did not move the chain.
	c := envelope.Chain{ServerID: "cs1", BootID: fill16(1)}
	if _, err := c.Next(whole[1]); err == nil || c.Sequence != 0 {
		t.Errorf("%v, %d", err, c.Sequence)
	}
	if e, err := c.Next(whole[0]); err != nil || e.SealEvent == nil || e.Receipt != nil || e.Link().Sequence != 1 {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := c.Next(whole[1]); err != nil || e.Receipt == nil || e.SealEvent != nil || e.Link().Sequence != 2 {
		t.Errorf("%+v, %v", e, err)
	}
}

func flip(b []byte, at int) []byte { b[at] ^= 1; return b }

func TestSealEventRoundTrip(t *testing.T) {
	t.Parallel()
	ean := mustEAN(t, testEAN)
	rapid.Check(t, func(t *rapid.T) {
		e := envelope.SealEvent{
			Link: envelope.Link{
				ServerID: rapid.StringMatching(`[a-z0-9-]{1,64}`).Draw(t, "server"), BootID: fill16(rapid.Byte().Draw(t, "boot")),
				Sequence: rapid.Uint64Min(1).Draw(t, "sequence"), Previous: fill32(rapid.Byte().Draw(t, "previous")),
			},
			At:     time.UnixMicro(rapid.Int64Range(1, 1<<52).Draw(t, "at")).UTC(),
			Client: rapid.StringMatching(`[a-z]{1,64}`).Draw(t, "client"),
			Kind:   envelope.SealKind(rapid.IntRange(1, 2).Draw(t, "kind")), EAN: ean,
		}
		for range rapid.IntRange(1, 50).Draw(t, "blocks") {
			e.Blocks = append(e.Blocks, envelope.SealedDigest{
				Field: meter.FieldCode(rapid.Uint16().Draw(t, "field")), Day: meter.Day(rapid.Int32().Draw(t, "day")),
				Version: rapid.Uint32Min(1).Draw(t, "version"), Digest: fill16(rapid.Byte().Draw(t, "digest")),
			})
		}
		got, err := envelope.ParseSealEvent(e.Encode())
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, e)
		}
	})
}

// Whatever parses re-encodes to the same bytes.
func FuzzEntry(f *testing.F) {
	for _, e := range testEvents(f) {
		f.Add(e.Encode())
	}
	f.Add(testReceipt(f).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := envelope.ParseEntry(b)
		if err != nil {
			if !errors.Is(err, envelope.ErrFormat) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		var got []byte
		if e.Receipt != nil {
			got = e.Receipt.Encode()
		} else {
			got = e.SealEvent.Encode()
		}
		if !bytes.Equal(got, b) {
			t.Fatalf("accepted %x, which re-encodes to %x", b, got)
		}
		if (e.Receipt == nil) == (e.SealEvent == nil) || e.Link().Sequence == 0 {
			t.Fatalf("%+v", e)
		}
	})
}

var goldenEvents = map[string]string{
	"empty feed": "000000106b6c7569732f7365616c2d6576656e7401000000036373310101010101010101010101010101010100000000000000070202020202020202020202020202020202020202020202020202020202020202000614ea6bc8511500000009637573746f6469616e05000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
	"sealed":     "000000106b6c7569732f7365616c2d6576656e7401000000036373310101010101010101010101010101010100000000000000070202020202020202020202020202020202020202020202020202020202020202000614ea6bc8511500000006696e67657374010c18d9b52937780400000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000002000300004d5500000002d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1000400004d5600000001d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2",
	"resealed":   "000000106b6c7569732f7365616c2d6576656e7401000000036373310101010101010101010101010101010100000000000000070202020202020202020202020202020202020202020202020202020202020202000614ea6bc8511500000009637573746f6469616e020c18d9b52937780400000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000001000300004d5500000002d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1",
	"legal file": "000000106b6c7569732f7365616c2d6576656e7401000000036373310101010101010101010101010101010100000000000000070202020202020202020202020202020202020202020202020202020202020202000614ea6bc8511500000009726567697374726172030c18d9b52937780400000000000000000000000000000009050505050505050505050505050505050505050505050505050505050505050500000000",
	"supplier":   "000000106b6c7569732f7365616c2d6576656e7401000000036373310101010101010101010101010101010100000000000000070202020202020202020202020202020202020202020202020202020202020202000614ea6bc8511500000009726567697374726172040000000000000000000007ec803a98440000000000000002060606060606060606060606060606060606060606060606060606060606060600000000",
	"control":    "000000106b6c7569732f7365616c2d6576656e7401000000036373310101010101010101010101010101010100000000000000070202020202020202020202020202020202020202020202020202020202020202000614ea6bc8511500000009637573746f6469616e0500000000000000000000000000000000000000000000000c070707070707070707070707070707070707070707070707070707070707070700000000",
}
