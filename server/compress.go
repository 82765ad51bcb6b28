package server

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"sync"
)

// Answers above packAbove bytes are sent as gzip to who takes it. Problems never
// are.
//
// What compresses tells by its length what is in it (CRIME, BREACH). That needs
// somebody who has another's requests sent with words of his own in them, and
// watches the lengths. Here a request takes a token that no browser sends by
// itself, no foreign page may call (there is no CORS), and no answer repeats
// free text: only EANs, days and names of the profile, in their one form. What
// remains is whoever watches the line and is nobody: that a day of nothing but
// zeros packs well, an empty house's, would show. So a length is rounded up to
// whole packSteps, with filling that gzip's own header has a place for.
const (
	packAbove = 2 << 10
	packStep  = 1 << 10
)

// call's answers in JSON, without the line's end.
func (c *call) rendered(b []byte) *body { return &body{bytes: append(b, '\n'), packed: c.packed} }

var packers = sync.Pool{New: func() any {
	w, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		panic(err) // of the level, which is one
	}
	return w
}}

const gzipHead = 10 // bytes of a header without anything optional (RFC 1952)

// pack compresses b; what it used is wiped.
func pack(b []byte) []byte {
	w := packers.Get().(*gzip.Writer)
	var buf bytes.Buffer
	buf.Grow(len(b) + len(b)/64 + packStep) // never outgrown: what is outgrown is not wiped
	w.Reset(&buf)
	_, _ = w.Write(b) // into memory
	_ = w.Close()
	wipePacker(w)
	packers.Put(w)

	z := buf.Bytes()
	fill := (packStep - (len(z)+6)%packStep) % packStep // besides the lengths and the name of the field
	out := make([]byte, 0, len(z)+6+fill)
	out = append(out, z[:gzipHead]...)
	out[3] |= 1 << 2 // FLG.FEXTRA
	out = binary.LittleEndian.AppendUint16(out, uint16(4+fill))
	out = append(out, 'K', 'L')
	out = binary.LittleEndian.AppendUint16(out, uint16(fill))
	out = append(out, make([]byte, fill)...)
	out = append(out, z[gzipHead:]...)
	clear(z)
	return out
}

// wipePacker gives a packer other things to remember than what it saw last.
func wipePacker(w *gzip.Writer) {
	w.Reset(io.Discard)
	var zeros [16 << 10]byte
	for range 12 {
		_, _ = w.Write(zeros[:])
	}
}
