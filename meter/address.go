package meter

import (
	"errors"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Postcode is a postcode as its market writes it, without blanks, in capitals
// ("1234AB"). The zero value is none.
type Postcode struct{ s string }

// HouseNumber is the number of a house without its addition, 1 to 99999. The
// zero value is none.
type HouseNumber struct{ n uint32 }

var (
	// ErrPostcode says that a text is no postcode of the market. It never
	// echoes the text; so below.
	ErrPostcode = errors.New("not a postcode of the market: capital letters and digits without blanks, as the market profile's pattern says")
	// ErrHouseNumber says that a text is not a house number.
	ErrHouseNumber = errors.New("not a house number: 1 to 99999, digits only, without its addition")
	// ErrPerson is wrapped by the errors of Person.Check; they name the text.
	ErrPerson = errors.New("not a name and address")
)

// Bounds of the texts, in bytes of UTF-8.
const (
	MaxPostcode = 10
	MaxName     = 128
	MaxStreet   = 96
	MaxAddition = 16
	MaxCity     = 64

	maxHouseNumber = 99999
)

// ParsePostcode accepts exactly what the market's pattern says. Where the
// profile keeps no identities, there are no postcodes.
func (p *Profile) ParsePostcode(s string) (Postcode, error) {
	c, err := ParsePostcode(s)
	if err != nil || p.identity.pattern == nil || !p.identity.pattern.MatchString(s) {
		return Postcode{}, ErrPostcode
	}
	return c, nil
}

// ParsePostcode accepts what could be a postcode of some market: what was
// sealed or signed under a profile is read by it, whatever the pattern is now.
func ParsePostcode(s string) (Postcode, error) {
	if s == "" || len(s) > MaxPostcode {
		return Postcode{}, ErrPostcode
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'A' || c > 'Z') {
			return Postcode{}, ErrPostcode
		}
	}
	return Postcode{s}, nil
}

func (p Postcode) String() string { return p.s }

// IsZero tells the zero value from a parsed postcode.
func (p Postcode) IsZero() bool { return p.s == "" }

// ParseHouseNumber accepts decimal digits without a sign or leading zeros.
func ParseHouseNumber(s string) (HouseNumber, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return HouseNumber{}, ErrHouseNumber
	}
	return HouseNumberFromInt(int64(n))
}

// HouseNumberFromInt is ParseHouseNumber for a number.
func HouseNumberFromInt(n int64) (HouseNumber, error) {
	if n < 1 || n > maxHouseNumber {
		return HouseNumber{}, ErrHouseNumber
	}
	return HouseNumber{uint32(n)}, nil
}

// String is in decimal, "" for none.
func (h HouseNumber) String() string {
	if h.IsZero() {
		return ""
	}
	return strconv.FormatUint(uint64(h.n), 10)
}

// Int is the number, 0 for none.
func (h HouseNumber) Int() int { return int(h.n) }

// IsZero tells the zero value from a parsed house number.
func (h HouseNumber) IsZero() bool { return h.n == 0 }

// Address is where a metering point is.
type Address struct {
	Street      string
	HouseNumber HouseNumber
	Addition    string // to the house number ("A", "2 hoog"); "" where there is none
	Postcode    Postcode
	City        string
}

// Person is who lives at a metering point, and where that is: personal data,
// which is sealed like readings. No error, log or metric ever holds any of it.
type Person struct {
	Name    string
	Address Address
}

// Check says whether the texts are within their bounds: one line of printable
// UTF-8, without a blank at either end.
func (p *Person) Check() error {
	a := &p.Address
	switch {
	case !plainLine(p.Name, MaxName):
		return badPerson("name", MaxName)
	case !plainLine(a.Street, MaxStreet):
		return badPerson("street", MaxStreet)
	case a.HouseNumber.IsZero():
		return errors.Join(ErrPerson, ErrHouseNumber)
	case a.Addition != "" && !plainLine(a.Addition, MaxAddition):
		return badPerson("house number addition", MaxAddition)
	case a.Postcode.IsZero():
		return errors.Join(ErrPerson, ErrPostcode)
	case !plainLine(a.City, MaxCity):
		return badPerson("city", MaxCity)
	}
	return nil
}

type personError struct {
	text string
	max  int
}

func badPerson(text string, max int) error { return &personError{text, max} }

func (e *personError) Error() string {
	return "the " + e.text + " must be one line of 1 to " + strconv.Itoa(e.max) + " printable bytes of UTF-8, without a blank at either end"
}

func (e *personError) Unwrap() error { return ErrPerson }

// plainLine says whether s is one line of 1 to max bytes that all can be seen:
// no control characters, and none that turn the direction of writing.
func plainLine(s string, max int) bool {
	if s == "" || len(s) > max || !utf8.ValidString(s) || strings.TrimSpace(s) != s {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
