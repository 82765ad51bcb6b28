package meter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Block is the plaintext of one field for one day.
//
// A register block (Resolution P1D) has one value: the cumulative read at the
// day's start. An interval block has Slots(day, resolution) consumption
// values, and in Start the register at the day's start, or Null.
type Block struct {
	Day        Day
	Resolution Resolution
	Start      Value // of no meaning for registers: not encoded, Null when decoded
	Values     []Value
	Quality    []Quality // same length as Values, or nil: all AsProvided
}

// Limits of the values of a block. Differences of registers, and a register
// with a month of intervals added, stay within int64.
const (
	// MaxRegister bounds register reads either way: 18 digits.
	MaxRegister Value = 1e18 - 1
	// MaxInterval bounds the consumption of one interval either way.
	MaxInterval Value = math.MaxInt32
)

// ErrBlock is wrapped by the errors of AppendBlock and DecodeBlock. They tell
// the shape and the place, never a value.
var ErrBlock = errors.New("bad block")

// The encoding, big endian:
//
//	u8   format, 1
//	u8   shape: 1 register, 2 intervals (the Class)
//	u8   resolution
//	u16  slots
//	i64  register at the day's start; the minimum for none
//	     slots values: i64 for a register, i32 for intervals; the minimum for none
//	     slots quality codes of u8
//
// There is one encoding per block, and its length tells no more than class,
// resolution and day.
const (
	blockFormat  = 1
	blockHeader  = 1 + 1 + 1 + 2 + 8
	nullInterval = math.MinInt32
)

// blockShape returns the slots and the bytes per value of a block.
func (c *Calendar) blockShape(d Day, r Resolution, class Class) (slots, width int, err error) {
	switch {
	case class == Registers && r == P1D:
		return 1, 8, nil
	case class == Intervals && r.duration() != 0:
		return c.Slots(d, r), 4, nil
	default:
		return 0, 0, fmt.Errorf("%w: %s are not stored at %s", ErrBlock, class, r)
	}
}

func blockLen(slots, width int) int { return blockHeader + slots*(width+1) }

// AppendBlock encodes b, for the day it names, onto dst. The length depends
// only on class, resolution and the number of slots. It refuses what
// DecodeBlock could not give back: another number of values than the day has
// slots, values beyond MaxInterval or MaxRegister, unknown qualities.
func AppendBlock(dst []byte, b *Block, class Class, loc *time.Location) ([]byte, error) {
	c := NewCalendar(loc)
	slots, width, err := c.blockShape(b.Day, b.Resolution, class)
	if err != nil {
		return dst, err
	}
	if len(b.Values) != slots || b.Quality != nil && len(b.Quality) != slots {
		return dst, fmt.Errorf("%w: %d values and %d qualities for %d slots", ErrBlock, len(b.Values), len(b.Quality), slots)
	}
	start, limit := Null, MaxRegister
	if class == Intervals {
		start, limit = b.Start, MaxInterval
	}
	if !within(start, MaxRegister) {
		return dst, fmt.Errorf("%w: the register at the start has more than 18 digits", ErrBlock)
	}
	for i, v := range b.Values {
		if !within(v, limit) {
			return dst, fmt.Errorf("%w: value %d of %d is too large", ErrBlock, i+1, slots)
		}
	}
	for i, q := range b.Quality {
		if !q.known() {
			return dst, fmt.Errorf("%w: quality %d of %d is unknown", ErrBlock, i+1, slots)
		}
	}

	n := blockLen(slots, width)
	dst = slices.Grow(dst, n)
	p := dst[len(dst) : len(dst)+n]
	p[0], p[1], p[2] = blockFormat, byte(class), byte(b.Resolution)
	binary.BigEndian.PutUint16(p[3:], uint16(slots))
	binary.BigEndian.PutUint64(p[5:], uint64(start))
	values, quality := p[blockHeader:blockHeader+slots*width], p[blockHeader+slots*width:]
	if class == Registers {
		binary.BigEndian.PutUint64(values, uint64(b.Values[0]))
	} else {
		for i, v := range b.Values {
			if v == Null {
				v = nullInterval
			}
			binary.BigEndian.PutUint32(values[4*i:], uint32(v))
		}
	}
	clear(quality)
	for i, q := range b.Quality {
		quality[i] = byte(q)
	}
	return dst[:len(dst)+n], nil
}

// within reports whether v is Null or at most limit either way.
func within(v, limit Value) bool { return v == Null || -limit <= v && v <= limit }

// DecodeBlock decodes p into b and refuses anything AppendBlock would not have
// written for the same day, resolution and class. It reuses b's slices; after
// an error b is as before.
func DecodeBlock(p []byte, b *Block, day Day, r Resolution, class Class, loc *time.Location) error {
	c := NewCalendar(loc)
	return c.DecodeBlock(p, b, day, r, class)
}

// DecodeBlock is the function DecodeBlock.
func (c *Calendar) DecodeBlock(p []byte, b *Block, day Day, r Resolution, class Class) error {
	slots, width, err := c.blockShape(day, r, class)
	if err != nil {
		return err
	}
	if len(p) != blockLen(slots, width) {
		return fmt.Errorf("%w: %d bytes, want %d", ErrBlock, len(p), blockLen(slots, width))
	}
	if p[0] != blockFormat || p[1] != byte(class) || p[2] != byte(r) || int(binary.BigEndian.Uint16(p[3:])) != slots {
		return fmt.Errorf("%w: header is not of format %d for %s at %s with %d slots", ErrBlock, blockFormat, class, r, slots)
	}
	start := Value(binary.BigEndian.Uint64(p[5:]))
	if !within(start, MaxRegister) || class == Registers && start != Null {
		return fmt.Errorf("%w: register at the start out of range", ErrBlock)
	}
	values, quality := p[blockHeader:blockHeader+slots*width], p[blockHeader+slots*width:]
	for i, q := range quality {
		if !Quality(q).known() {
			return fmt.Errorf("%w: quality %d of %d is unknown", ErrBlock, i+1, slots)
		}
	}
	if class == Registers {
		v := Value(binary.BigEndian.Uint64(values))
		if !within(v, MaxRegister) {
			return fmt.Errorf("%w: register out of range", ErrBlock)
		}
		b.Values = append(b.Values[:0], v)
	} else {
		// Every 32-bit value is one AppendBlock writes.
		b.Values = slices.Grow(b.Values[:0], slots)[:slots]
		for i := range b.Values {
			v := Value(int32(binary.BigEndian.Uint32(values)))
			if v == nullInterval {
				v = Null
			}
			b.Values[i], values = v, values[4:]
		}
	}
	b.Day, b.Resolution, b.Start = day, r, start
	b.Quality = slices.Grow(b.Quality[:0], slots)[:slots]
	for i, q := range quality {
		b.Quality[i] = Quality(q)
	}
	return nil
}
