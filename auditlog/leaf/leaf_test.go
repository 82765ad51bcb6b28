package leaf_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"kluis/auditlog/leaf"
)

func accessRow() leaf.Row {
	return leaf.Row{Key: leaf.Key{Kind: leaf.Access, ID: [16]byte{1}, Number: 2},
		Salt: bytes.Repeat([]byte{9}, 16), Content: []byte("record"), Receipt: []byte("receipt")}
}

// TestGolden pins the hashes: exported checkpoints and proofs must stay good.
func TestGolden(t *testing.T) {
	t.Parallel()
	r := accessRow()
	entry := leaf.Row{Key: leaf.Key{Kind: leaf.Journal}, Content: []byte("entry")}
	for name, c := range map[string]struct{ got, want string }{
		"access":  {hashOf(r), goldenAccess},
		"journal": {hashOf(entry), goldenJournal},
		"end":     {hex.EncodeToString(end().Encode()), goldenEnd},
		"stored":  {hex.EncodeToString(stored().Encode()), goldenStored},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s", name, c.got)
		}
	}
}

func hashOf(r leaf.Row) string {
	h := r.Hash()
	return hex.EncodeToString(h[:])
}

func end() leaf.JournalEnd {
	return leaf.JournalEnd{ServerID: "cs1", BootID: [16]byte{7}, Last: 258, Torn: true}
}

func stored() leaf.BlocksStored {
	return leaf.BlocksStored{BootID: [16]byte{7}, Sequence: 3, Stored: []bool{true, false, true, true, false, false, false, false, true}}
}

// TestHash: every part counts, and no part can be taken for another.
func TestHash(t *testing.T) {
	t.Parallel()
	base := accessRow()
	seen := map[string]string{hashOf(base): "the row itself"}
	for name, change := range map[string]func(*leaf.Row){
		"salt":    func(r *leaf.Row) { r.Salt = bytes.Repeat([]byte{8}, 16) },
		"record":  func(r *leaf.Row) { r.Content = []byte("Record") },
		"receipt": func(r *leaf.Row) { r.Receipt = nil },
		"moved":   func(r *leaf.Row) { r.Content, r.Receipt = []byte("recordr"), []byte("eceipt") },
		"kind":    func(r *leaf.Row) { r.Kind = leaf.Journal },
		"kind 3":  func(r *leaf.Row) { r.Kind = leaf.LegalFile },
	} {
		r := accessRow()
		change(&r)
		h := hashOf(r)
		if other, ok := seen[h]; ok {
			t.Errorf("%s has the hash of %s", name, other)
		}
		seen[h] = name
	}
}

func TestStatementsRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := leaf.BlocksStored{Sequence: rapid.Uint64Range(1, 1<<63-1).Draw(t, "sequence"), Stored: rapid.SliceOfN(rapid.Bool(), 1, 300).Draw(t, "stored")}
		got, err := leaf.ParseBlocksStored(s.Encode())
		if err != nil || got.Sequence != s.Sequence || !slices.Equal(got.Stored, s.Stored) {
			t.Fatalf("%+v, %v", got, err)
		}
		e := leaf.JournalEnd{ServerID: "x", Last: rapid.Uint64Range(0, 1<<63-1).Draw(t, "last"), Torn: rapid.Bool().Draw(t, "torn")}
		if got, err := leaf.ParseJournalEnd(e.Encode()); err != nil || got != e {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}

// Whatever parses is written the same way again.
func FuzzStatements(f *testing.F) {
	f.Add(end().Encode())
	f.Add(stored().Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := leaf.ParseJournalEnd(b); err == nil && !bytes.Equal(e.Encode(), b) {
			t.Fatalf("end: %x", b)
		} else if err != nil && !errors.Is(err, leaf.ErrStatement) {
			t.Fatal(err)
		}
		if s, err := leaf.ParseBlocksStored(b); err == nil && !bytes.Equal(s.Encode(), b) {
			t.Fatalf("stored: %x", b)
		} else if err != nil && !errors.Is(err, leaf.ErrStatement) {
			t.Fatal(err)
		}
	})
}

const (
	goldenAccess  = "f5d634413ed7ccad207cff35474b1de7d04024de3fec808513586860d21cb108"
	goldenJournal = "a34e6149af6591623d4348909525acc27f6c556223d375a82c1c976b88fee0d7"
	goldenEnd     = "000000176b6c7569732f61756469742d6a6f75726e616c2d656e64010000000363733107000000000000000000000000000000000000000000010201"
	goldenStored  = "000000126b6c7569732f61756469742d73746f7265640107000000000000000000000000000000000000000000000300000009b080"
)
