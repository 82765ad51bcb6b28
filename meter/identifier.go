package meter

import (
	"errors"
	"fmt"
)

// EAN identifies a metering point: a GS1 code of 18 digits whose last is the
// check digit (GS1 General Specifications, 7.9: modulo 10, weights 3 and 1
// from the right). The zero value is no metering point.
type EAN struct{ n uint64 }

// GLN identifies a market party (supplier, grid operator): a GS1 Global
// Location Number (EAN-13) of 13 digits with the same check digit. The zero
// value is no party.
type GLN struct{ n uint64 }

var (
	// ErrEAN says that a text is not an EAN-18. It never echoes the text.
	ErrEAN = errors.New("not an EAN-18: 18 digits with a valid GS1 check digit")
	// ErrGLN says that a text is not a GLN. It never echoes the text.
	ErrGLN = errors.New("not a GLN: 13 digits with a valid GS1 check digit")
)

// ParseEAN accepts exactly 18 ASCII digits with a valid check digit.
func ParseEAN(s string) (EAN, error) {
	n, ok := parseGS1(s, 18)
	if !ok {
		return EAN{}, ErrEAN
	}
	return EAN{n}, nil
}

// EANFromInt64 is ParseEAN for the form stored in the database.
func EANFromInt64(n int64) (EAN, error) {
	if n < 0 {
		return EAN{}, ErrEAN
	}
	return ParseEAN(fmt.Sprintf("%018d", n))
}

// ParseGLN accepts exactly 13 ASCII digits with a valid check digit.
func ParseGLN(s string) (GLN, error) {
	n, ok := parseGS1(s, 13)
	if !ok {
		return GLN{}, ErrGLN
	}
	return GLN{n}, nil
}

// GLNFromInt64 is ParseGLN for the form stored in the database.
func GLNFromInt64(n int64) (GLN, error) {
	if n < 0 {
		return GLN{}, ErrGLN
	}
	return ParseGLN(fmt.Sprintf("%013d", n))
}

func (e EAN) String() string { return fmt.Sprintf("%018d", e.n) }

// Int64 is the form stored in the database.
func (e EAN) Int64() int64 { return int64(e.n) }

// IsZero tells the zero value from a parsed EAN.
func (e EAN) IsZero() bool { return e.n == 0 }

func (g GLN) String() string { return fmt.Sprintf("%013d", g.n) }

// Int64 is the form stored in the database.
func (g GLN) Int64() int64 { return int64(g.n) }

// IsZero tells the zero value from a parsed GLN.
func (g GLN) IsZero() bool { return g.n == 0 }

func parseGS1(s string, digits int) (uint64, bool) {
	if len(s) != digits {
		return 0, false
	}
	var n uint64
	sum := 0
	for i := 0; i < digits; i++ {
		d := s[i] - '0'
		if d > 9 {
			return 0, false
		}
		n = n*10 + uint64(d)
		if (digits-i)%2 == 0 { // weight 3 on every second digit, counted from the right
			sum += 3 * int(d)
		} else {
			sum += int(d)
		}
	}
	return n, n != 0 && sum%10 == 0
}
