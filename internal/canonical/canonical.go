// Package canonical is the one binary encoding of everything Kluis signs,
// MACs, authenticates or hashes.
//
// A value has exactly one encoding: a domain tag, a format version, then its
// fields in a fixed order. Integers are big endian and of fixed width; byte
// strings and lists carry a 32-bit length. There are no optional fields, no
// padding and no trailing bytes, so whatever Reader accepts re-encodes to the
// same bytes.
//
// The domain tag keeps the bytes of one type from being taken for those of
// another under the same key.
package canonical

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// ErrMalformed is wrapped by every error of Reader.
var ErrMalformed = errors.New("malformed canonical encoding")

// Writer appends fields to a byte slice. The zero value is not ready: use New.
type Writer struct{ b []byte }

// New starts an encoding with its domain tag and format version. The tag is
// an ASCII constant of the caller ("kluis/legal-file").
func New(domain string, version uint8) *Writer {
	w := &Writer{b: make([]byte, 0, 256)}
	w.String(domain)
	w.U8(version)
	return w
}

// Append is New on a buffer the caller owns, for hot paths.
func Append(dst []byte, domain string, version uint8) Writer {
	w := Writer{b: dst}
	w.String(domain)
	w.U8(version)
	return w
}

func (w *Writer) U8(v uint8)   { w.b = append(w.b, v) }
func (w *Writer) U16(v uint16) { w.b = binary.BigEndian.AppendUint16(w.b, v) }
func (w *Writer) U32(v uint32) { w.b = binary.BigEndian.AppendUint32(w.b, v) }
func (w *Writer) U64(v uint64) { w.b = binary.BigEndian.AppendUint64(w.b, v) }

// I32 and I64 are two's complement.
func (w *Writer) I32(v int32) { w.U32(uint32(v)) }
func (w *Writer) I64(v int64) { w.U64(uint64(v)) }

// Bool writes 0 or 1.
func (w *Writer) Bool(v bool) {
	if v {
		w.U8(1)
	} else {
		w.U8(0)
	}
}

// Time writes microseconds since 1970-01-01 UTC; the zero time is 0.
func (w *Writer) Time(t time.Time) {
	if t.IsZero() {
		w.I64(0)
		return
	}
	w.I64(t.UnixMicro())
}

// Fixed writes bytes whose length the format fixes (a digest, an id).
func (w *Writer) Fixed(p []byte) { w.b = append(w.b, p...) }

// Bytes writes a length-prefixed byte string.
func (w *Writer) Bytes(p []byte) {
	w.U32(uint32(len(p)))
	w.b = append(w.b, p...)
}

// String writes a length-prefixed string.
func (w *Writer) String(s string) {
	w.U32(uint32(len(s)))
	w.b = append(w.b, s...)
}

// Count writes the length of the list whose elements follow.
func (w *Writer) Count(n int) { w.U32(uint32(n)) }

// Encoded returns the bytes written so far.
func (w *Writer) Encoded() []byte { return w.b }

// Reader takes an encoding apart. It remembers the first error; the caller
// checks once, with Close, which also refuses trailing bytes.
type Reader struct {
	b   []byte
	off int
	err error
}

// Open checks the domain tag and the version, which must be one of versions,
// and returns the version found.
func Open(b []byte, domain string, versions ...uint8) (*Reader, uint8, error) {
	r := &Reader{b: b}
	got := r.String(len(domain))
	v := r.U8()
	if r.err == nil && got != domain {
		r.fail("another type than " + domain)
	}
	if r.err == nil {
		known := false
		for _, k := range versions {
			known = known || k == v
		}
		if !known {
			r.fail(fmt.Sprintf("unknown version %d of %s", v, domain))
		}
	}
	return r, v, r.err
}

func (r *Reader) fail(why string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s at byte %d", ErrMalformed, why, r.off)
	}
}

func (r *Reader) take(n int) []byte {
	if r.err != nil {
		return nil
	}
	if n < 0 || len(r.b)-r.off < n {
		r.fail("too short")
		return nil
	}
	p := r.b[r.off : r.off+n : r.off+n]
	r.off += n
	return p
}

func (r *Reader) U8() uint8 {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *Reader) U16() uint16 {
	if p := r.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (r *Reader) U32() uint32 {
	if p := r.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (r *Reader) U64() uint64 {
	if p := r.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (r *Reader) I32() int32 { return int32(r.U32()) }
func (r *Reader) I64() int64 { return int64(r.U64()) }

// Bool refuses anything but 0 and 1.
func (r *Reader) Bool() bool {
	switch r.U8() {
	case 0:
		return false
	case 1:
		return true
	}
	r.fail("not a boolean")
	return false
}

// Time reads what Writer.Time wrote, in UTC; 0 is the zero time.
func (r *Reader) Time() time.Time {
	v := r.I64()
	if v == 0 {
		return time.Time{}
	}
	t := time.UnixMicro(v).UTC()
	if t.IsZero() { // the first instant of year 1 would be written as 0
		r.fail("not an instant")
	}
	return t
}

// Fixed copies len(dst) bytes.
func (r *Reader) Fixed(dst []byte) { copy(dst, r.take(len(dst))) }

// Bytes reads a byte string of at most max bytes. It aliases the input.
func (r *Reader) Bytes(max int) []byte {
	n := r.U32()
	if r.err == nil && uint64(n) > uint64(max) {
		r.fail("byte string too long")
	}
	return r.take(int(n))
}

// String reads a string of at most max bytes.
func (r *Reader) String(max int) string { return string(r.Bytes(max)) }

// Count reads the length of a list of at most max elements, each of at least
// one byte, so that a forged length cannot make the caller allocate.
func (r *Reader) Count(max int) int {
	n := r.U32()
	if r.err == nil && (uint64(n) > uint64(max) || uint64(n) > uint64(len(r.b)-r.off)) {
		r.fail("list too long")
	}
	if r.err != nil {
		return 0
	}
	return int(n)
}

// Refuse records that the value read is outside its type's range.
func (r *Reader) Refuse(why string) { r.fail(why) }

// Err is the first error so far.
func (r *Reader) Err() error { return r.err }

// Close returns the first error, or refuses trailing bytes.
func (r *Reader) Close() error {
	if r.err == nil && r.off != len(r.b) {
		r.fail("trailing bytes")
	}
	return r.err
}
