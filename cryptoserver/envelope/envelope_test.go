package envelope_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

func mustEAN(t testing.TB, s string) meter.EAN {
	t.Helper()
	e, err := meter.ParseEAN(s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func mustGLN(t testing.TB, s string) meter.GLN {
	t.Helper()
	g, err := meter.ParseGLN(s)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func fill16(b byte) (a [16]byte) {
	for i := range a {
		a[i] = b
	}
	return a
}

func fill32(b byte) (a [32]byte) {
	for i := range a {
		a[i] = b
	}
	return a
}

const testEAN = "871685900000000004"

func testID(t testing.TB) envelope.BlockID {
	return envelope.BlockID{
		EAN: mustEAN(t, testEAN), Field: 3, Day: 19797, Resolution: meter.PT15M, Version: 2, KeyID: fill16(0xa1),
	}
}

func testReceipt(t testing.TB) envelope.Receipt {
	return envelope.Receipt{
		ServerID: "cs1", BootID: fill16(1), Sequence: 7, Previous: fill32(2),
		At:            time.Date(2024, 3, 31, 1, 2, 3, 456789000, time.UTC),
		InteractionID: fill16(3), Supplier: mustGLN(t, "8712345000004"), TokenID: fill32(4), Employee: fill32(8),
		EAN: mustEAN(t, testEAN), Purpose: meter.EnergyManagement, LegalFile: fill32(5), FileVersion: 9,
		Profile: fill32(6), Opened: 186, Refused: 1, Damaged: 2, Content: fill32(7),
	}
}

func testKeyRecord(t testing.TB) envelope.KeyRecord {
	return envelope.KeyRecord{
		ID: fill16(0xa1), EAN: mustEAN(t, testEAN), Class: meter.Intervals, Month: 650, Occupancy: 19000, Epoch: 1,
		Wrapped: bytes.Repeat([]byte{0xbb}, envelope.WrappedKeySize), MAC: fill32(0xcc),
	}
}

// TestGolden pins every format to its bytes: what is stored and signed must
// stay readable, so a change here is a new format version, not an edit.
func TestGolden(t *testing.T) {
	t.Parallel()
	id := testID(t)
	ct := envelope.AppendCiphertext(nil, envelope.Ciphertext{
		KeyID: id.KeyID, IV: bytes.Repeat([]byte{0x11}, 12), Body: bytes.Repeat([]byte{0x22}, 20),
	})
	digest := envelope.ContentDigest([]envelope.Opened{{ID: id, Basis: meter.Consent, Given: meter.PT1H}})
	empty := envelope.ContentDigest(nil)
	employee := envelope.EmployeeDigest(fill32(4), "https://id.test#kim", "customer on the line")
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"aad", id.AppendAAD(nil), goldenAAD},
		{"content", envelope.ContentMessage(id, []byte{1, 2, 3}), goldenContent},
		{"ciphertext", ct, goldenCiphertext},
		{"key record", testKeyRecord(t).Message(), goldenKeyRecord},
		{"receipt", testReceipt(t).Encode(), goldenReceipt},
		{"employee", employee[:], goldenEmployee},
		{"opened", digest[:], goldenOpened},
		{"nothing opened", empty[:], goldenNothing},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func TestAADIsFixedLengthAndAppends(t *testing.T) { // not parallel: it counts allocations
	id := testID(t)
	if n := len(id.AppendAAD(nil)); n != envelope.AADSize {
		t.Fatalf("AAD of %d bytes, AADSize says %d", n, envelope.AADSize)
	}
	buf := make([]byte, 0, 2*envelope.AADSize)
	if n := testing.AllocsPerRun(100, func() { buf = id.AppendAAD(id.AppendAAD(buf[:0])) }); n != 0 {
		t.Errorf("%v allocations for an AAD in a buffer that has room", n)
	}
	if !bytes.Equal(buf[:envelope.AADSize], buf[envelope.AADSize:]) {
		t.Error("AAD depends on where it is appended")
	}
}

// TestEveryPartBinds changes one part at a time: each must change the bytes.
func TestEveryPartBinds(t *testing.T) {
	t.Parallel()
	other := mustEAN(t, "871685900000000011")
	base := testID(t)
	seen := map[string]string{string(base.AppendAAD(nil)): "base"}
	for name, change := range map[string]func(*envelope.BlockID){
		"ean":        func(b *envelope.BlockID) { b.EAN = other },
		"field":      func(b *envelope.BlockID) { b.Field++ },
		"day":        func(b *envelope.BlockID) { b.Day++ },
		"resolution": func(b *envelope.BlockID) { b.Resolution = meter.PT1H },
		"version":    func(b *envelope.BlockID) { b.Version++ },
		"key":        func(b *envelope.BlockID) { b.KeyID[15]++ },
	} {
		id := base
		change(&id)
		a := string(id.AppendAAD(nil))
		if was, dup := seen[a]; dup {
			t.Errorf("AAD with another %s equals %s", name, was)
		}
		seen[a] = name
	}

	rec := testKeyRecord(t)
	recs := map[string]string{string(rec.Message()): "base"}
	for name, change := range map[string]func(*envelope.KeyRecord){
		"id":        func(k *envelope.KeyRecord) { k.ID[0]++ },
		"ean":       func(k *envelope.KeyRecord) { k.EAN = other },
		"class":     func(k *envelope.KeyRecord) { k.Class = meter.Registers },
		"month":     func(k *envelope.KeyRecord) { k.Month++ },
		"occupancy": func(k *envelope.KeyRecord) { k.Occupancy++ },
		"epoch":     func(k *envelope.KeyRecord) { k.Epoch++ },
		"wrapped": func(k *envelope.KeyRecord) {
			k.Wrapped = append([]byte{1}, k.Wrapped[1:]...)
		},
	} {
		k := rec
		change(&k)
		m := string(k.Message())
		if was, dup := recs[m]; dup {
			t.Errorf("key record with another %s equals %s", name, was)
		}
		recs[m] = name
	}
	rec.MAC[0]++
	if recs[string(rec.Message())] != "base" {
		t.Error("the MAC is part of the message it is over")
	}
}

func TestContentMessageLeavesVersionAndKeyOut(t *testing.T) {
	t.Parallel()
	a, b := testID(t), testID(t)
	b.Version, b.KeyID = 99, fill16(9)
	if !bytes.Equal(envelope.ContentMessage(a, []byte("x")), envelope.ContentMessage(b, []byte("x"))) {
		t.Error("equal content, different message: ingest could not be idempotent")
	}
	if n := len(envelope.ContentMessage(a, []byte("x"))); n != envelope.ContentMessageSize(1) {
		t.Errorf("content message of %d bytes, ContentMessageSize says %d", n, envelope.ContentMessageSize(1))
	}
}

func TestCiphertextRefuses(t *testing.T) {
	t.Parallel()
	good := envelope.AppendCiphertext(nil, envelope.Ciphertext{IV: make([]byte, 12), Body: make([]byte, 17)})
	if _, err := envelope.ParseCiphertext(good); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"empty":          nil,
		"cut head":       good[:20],
		"cut tag":        good[:len(good)-2],
		"magic":          append([]byte{'X'}, good[1:]...),
		"version":        append([]byte{'K', 'B', 2}, good[3:]...),
		"suite":          append([]byte{'K', 'B', 1, 2}, good[4:]...),
		"IV length":      append(append(append([]byte{}, good[:20]...), 16), good[21:]...),
		"absurdly large": append(good, make([]byte, 65<<10)...),
	} {
		if _, err := envelope.ParseCiphertext(b); !errors.Is(err, envelope.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReceiptRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*envelope.Receipt){
		"no server":  func(r *envelope.Receipt) { r.ServerID = "" },
		"no party":   func(r *envelope.Receipt) { r.Supplier = meter.GLN{} },
		"no point":   func(r *envelope.Receipt) { r.EAN = meter.EAN{} },
		"no purpose": func(r *envelope.Receipt) { r.Purpose = 0 },
		"no time":    func(r *envelope.Receipt) { r.At = time.Time{} },
		"sequence":   func(r *envelope.Receipt) { r.Sequence = 0 },
		"version":    func(r *envelope.Receipt) { r.FileVersion = 0 },
	} {
		r := testReceipt(t)
		change(&r)
		if _, err := envelope.ParseReceipt(r.Encode()); !errors.Is(err, envelope.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := testReceipt(t).Encode()
	for name, b := range map[string][]byte{
		"empty": nil, "cut": good[:len(good)-1], "trailing": append(good, 0),
		"another type": testKeyRecord(t).Message(),
	} {
		if _, err := envelope.ParseReceipt(b); !errors.Is(err, envelope.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReceiptRoundTrip(t *testing.T) {
	t.Parallel()
	eans := []meter.EAN{mustEAN(t, testEAN), mustEAN(t, "871685900000000011")}
	rapid.Check(t, func(t *rapid.T) {
		r := envelope.Receipt{
			ServerID:    rapid.StringMatching(`[a-z0-9-]{1,64}`).Draw(t, "server"),
			BootID:      fill16(rapid.Byte().Draw(t, "boot")),
			Sequence:    rapid.Uint64Min(1).Draw(t, "sequence"),
			Previous:    fill32(rapid.Byte().Draw(t, "previous")),
			At:          time.UnixMicro(rapid.Int64Range(1, 1<<52).Draw(t, "at")).UTC(),
			Supplier:    testReceiptGLN,
			EAN:         rapid.SampledFrom(eans).Draw(t, "ean"),
			Purpose:     meter.Purpose(rapid.IntRange(1, 5).Draw(t, "purpose")),
			FileVersion: rapid.Uint64Min(1).Draw(t, "version"),
			Opened:      rapid.Uint32().Draw(t, "opened"),
			Content:     fill32(rapid.Byte().Draw(t, "content")),
		}
		got, err := envelope.ParseReceipt(r.Encode())
		if err != nil || got != r {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, r)
		}
	})
}

var testReceiptGLN = func() meter.GLN {
	g, err := meter.ParseGLN("8712345000004")
	if err != nil {
		panic(err)
	}
	return g
}()

// Whatever parses re-encodes to the same bytes.
func FuzzCiphertext(f *testing.F) {
	good, _ := hex.DecodeString(goldenCiphertext)
	f.Add(good)
	f.Add([]byte("KB\x01\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := envelope.ParseCiphertext(b)
		if err != nil {
			if !errors.Is(err, envelope.ErrFormat) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if got := envelope.AppendCiphertext(nil, c); !bytes.Equal(got, b) {
			t.Fatalf("accepted %x, which re-encodes to %x", b, got)
		}
	})
}

func FuzzReceipt(f *testing.F) {
	good, _ := hex.DecodeString(goldenReceipt)
	f.Add(good)
	f.Add(good[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := envelope.ParseReceipt(b)
		if err != nil {
			if !errors.Is(err, envelope.ErrFormat) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if got := r.Encode(); !bytes.Equal(got, b) {
			t.Fatalf("accepted %x, which re-encodes to %x", b, got)
		}
	})
}

const (
	goldenEmployee   = "df56eb757918a0b7e26f220eaa3cc1d9b4c2a0255a0bac7ad3d96ddcf56fd791"
	goldenAAD        = "0000000f6b6c7569732f626c6f636b2d616164010c18d9b529377804000300004d550100000002a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1"
	goldenContent    = "0000000d6b6c7569732f636f6e74656e74010c18d9b529377804000300004d550100000003010203"
	goldenCiphertext = "4b420101a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a10c1111111111111111111111112222222222222222222222222222222222222222"
	goldenKeyRecord  = "000000106b6c7569732f6b65792d7265636f726401a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a10c18d9b529377804020000028a00004a380000000100000028bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	goldenReceipt    = "0000000d6b6c7569732f7265636569707401000000036373310101010101010101010101010101010100000000000000070202020202020202020202020202020202020202020202020202020202020202000614ea6bc8511503030303030303030303030303030303000007ec803a9844040404040404040404040404040404040404040404040404040404040404040408080808080808080808080808080808080808080808080808080808080808080c18d9b52937780402050505050505050505050505050505050505050505050505050505050505050500000000000000090606060606060606060606060606060606060606060606060606060606060606000000ba00000001000000020707070707070707070707070707070707070707070707070707070707070707"
	goldenOpened     = "d3e64229377cede594df79ddeedbb220a9a8cd9d827f93d41ff66a9657d7df80"
	goldenNothing    = "86f84bdf08a6e3842c526906e43271e1a48f27481140cb3fde8966bf083e2bb8"
)
