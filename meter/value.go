package meter

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// MaxPrecision is the greatest number of decimals a field may have.
const MaxPrecision = 9

// ErrValue is wrapped by the errors of ParseValue. They never echo the text.
var ErrValue = errors.New("not a decimal value")

// AppendValue writes v with exactly precision (0 to MaxPrecision) decimals:
// "1828.818", "-0.5". Null becomes "null".
func AppendValue(dst []byte, v Value, precision int) []byte {
	if v == Null {
		return append(dst, "null"...)
	}
	u := uint64(v)
	if v < 0 {
		dst = append(dst, '-')
		u = -u
	}
	// Written from its end, where it is to be.
	size := digits(u)
	if precision > 0 {
		size = max(size, precision+1) + 1
	}
	dst = slices.Grow(dst, size)
	to := dst[len(dst) : len(dst)+size]
	at := size - 1
	if precision > 0 {
		for ; at >= size-precision; at-- {
			to[at] = byte('0' + u%10)
			u /= 10
		}
		to[at] = '.'
		at--
	}
	for ; at >= 0; at-- {
		to[at] = byte('0' + u%10)
		u /= 10
	}
	return dst[:len(dst)+size]
}

// digits counts the decimal digits.
func digits(u uint64) int {
	n := 1
	for ; u >= 1000; u /= 1000 {
		n += 3
	}
	if u >= 100 {
		return n + 2
	}
	if u >= 10 {
		return n + 1
	}
	return n
}

// ParseValue reads an exact decimal with at most precision decimals: digits,
// optionally a leading "-" and a point with digits on both sides. Leading
// zeros are accepted, as meters send them; more decimals than precision,
// exponents, other signs, spaces and overflow are not. It never returns Null.
func ParseValue(s string, precision int) (Value, error) {
	rest := s
	neg := len(rest) > 0 && rest[0] == '-'
	if neg {
		rest = rest[1:]
	}
	const limit = uint64(math.MaxInt64)
	var u uint64
	digits, decimals, point := 0, 0, false
	for i := 0; i < len(rest); i++ {
		c := rest[i]
		if c == '.' && !point && digits > 0 {
			point = true
			continue
		}
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("%w: unexpected character at position %d", ErrValue, len(s)-len(rest)+i+1)
		}
		if point {
			if decimals++; decimals > precision {
				return 0, fmt.Errorf("%w: more than %d decimals", ErrValue, precision)
			}
		} else {
			digits++
		}
		d := uint64(c - '0')
		if u > (limit-d)/10 {
			return 0, fmt.Errorf("%w: too large", ErrValue)
		}
		u = u*10 + d
	}
	if digits == 0 {
		return 0, fmt.Errorf("%w: no digits", ErrValue)
	}
	if point && decimals == 0 {
		return 0, fmt.Errorf("%w: no digits after the point", ErrValue)
	}
	for ; decimals < precision; decimals++ {
		if u > limit/10 {
			return 0, fmt.Errorf("%w: too large", ErrValue)
		}
		u *= 10
	}
	if neg {
		return -Value(u), nil
	}
	return Value(u), nil
}
