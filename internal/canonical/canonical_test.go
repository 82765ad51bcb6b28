package canonical

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestGolden fixes the encoding for ever: signatures rest on it.
func TestGolden(t *testing.T) {
	t.Parallel()
	w := New("kluis/test", 7)
	w.U8(1)
	w.U16(0x0203)
	w.U32(0x04050607)
	w.U64(0x08090a0b0c0d0e0f)
	w.I32(-2)
	w.I64(math.MinInt64)
	w.Bool(true)
	w.Time(time.Date(2026, 3, 29, 1, 0, 0, 123456789, time.UTC))
	w.Time(time.Time{})
	w.Fixed([]byte{0xaa, 0xbb})
	w.Bytes([]byte{0xcc})
	w.String("")
	w.Count(3)
	const want = "0000000a6b6c7569732f7465737407" + "01" + "0203" + "04050607" + "08090a0b0c0d0e0f" +
		"fffffffe" + "8000000000000000" + "01" + "00064e1f40e76640" + "0000000000000000" + "aabb" + "00000001cc" + "00000000" + "00000003"
	if got := hex.EncodeToString(w.Encoded()); got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
}

type sample struct {
	A uint8
	B uint32
	C int64
	D bool
	E []byte
	F string
	G [4]byte
	H []uint16
}

func (s sample) encode() []byte {
	w := New("kluis/sample", 1)
	w.U8(s.A)
	w.U32(s.B)
	w.I64(s.C)
	w.Bool(s.D)
	w.Bytes(s.E)
	w.String(s.F)
	w.Fixed(s.G[:])
	w.Count(len(s.H))
	for _, v := range s.H {
		w.U16(v)
	}
	return w.Encoded()
}

func decode(b []byte) (s sample, err error) {
	r, _, err := Open(b, "kluis/sample", 1)
	if err != nil {
		return s, err
	}
	s.A, s.B, s.C, s.D = r.U8(), r.U32(), r.I64(), r.Bool()
	s.E, s.F = bytes.Clone(r.Bytes(1000)), r.String(1000)
	r.Fixed(s.G[:])
	for range r.Count(1000) {
		s.H = append(s.H, r.U16())
	}
	return s, r.Close()
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := sample{
			A: rapid.Byte().Draw(t, "a"), B: rapid.Uint32().Draw(t, "b"), C: rapid.Int64().Draw(t, "c"), D: rapid.Bool().Draw(t, "d"),
			E: rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "e"), F: rapid.StringN(0, 20, 80).Draw(t, "f"),
			H: rapid.SliceOfN(rapid.Uint16(), 0, 20).Draw(t, "h"),
		}
		b := s.encode()
		got, err := decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.encode(), b) {
			t.Fatal("re-encoding differs")
		}
		cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
		if _, err := decode(b[:cut]); !errors.Is(err, ErrMalformed) {
			t.Fatalf("a prefix of %d bytes was accepted: %v", cut, err)
		}
		if _, err := decode(append(bytes.Clone(b), 0)); !errors.Is(err, ErrMalformed) {
			t.Fatal("a trailing byte was accepted")
		}
	})
}

func TestReaderRefuses(t *testing.T) {
	t.Parallel()
	other := New("kluis/other!", 1).Encoded()
	if _, _, err := Open(other, "kluis/sample", 1); !errors.Is(err, ErrMalformed) {
		t.Error("another domain of the same length was accepted")
	}
	if _, _, err := Open(New("kluis/sample", 2).Encoded(), "kluis/sample", 1); !errors.Is(err, ErrMalformed) {
		t.Error("an unknown version was accepted")
	}
	for name, read := range map[string]func(*Reader){
		"boolean 2":       func(r *Reader) { r.U8(); r.U8(); r.U8(); r.Bool() },
		"long bytes":      func(r *Reader) { r.Bytes(3) },
		"forged count":    func(r *Reader) { r.Count(math.MaxInt32) },
		"refused by type": func(r *Reader) { r.Refuse("out of range") },
	} {
		w := New("kluis/sample", 1)
		w.U32(0x00000402) // as a length: 1026; its fourth byte is no boolean
		w.U8(9)
		r, _, err := Open(w.Encoded(), "kluis/sample", 1)
		if err != nil {
			t.Fatal(err)
		}
		read(r)
		if r.Err() == nil {
			t.Errorf("%s was accepted", name)
		}
		// After the first error everything reads as zero and Close repeats it.
		if r.U64() != 0 || r.String(9) != "" || r.Close() == nil {
			t.Errorf("%s: reading went on after the error", name)
		}
	}
}

// TestZeroTimeHasOneEncoding: the zero time is 0, and nothing else reads as it.
func TestZeroTimeHasOneEncoding(t *testing.T) {
	t.Parallel()
	w := New("kluis/sample", 1)
	w.I64(time.Time{}.UnixMicro())
	r, _, err := Open(w.Encoded(), "kluis/sample", 1)
	if err != nil {
		t.Fatal(err)
	}
	if r.Time(); r.Close() == nil {
		t.Error("the zero time was accepted in a second encoding")
	}
}

func FuzzReader(f *testing.F) {
	f.Add(sample{A: 1, E: []byte("x"), F: "y", H: []uint16{1, 2}}.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decode(b)
		if err == nil && !bytes.Equal(s.encode(), b) {
			t.Fatal("what parsed does not re-encode identically")
		}
	})
}
