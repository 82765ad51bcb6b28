package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	"kluis/meter"
)

// exact is a quantity in billionths of a field's unit, so that columns can be
// added and remainders carried without loss.
type exact int64

const exactDecimals = meter.MaxPrecision

var errTooLarge = errors.New("is too large")

// units a column may have, by the field's unit: the power of ten that makes
// one of the other.
var units = map[string]map[string]int{
	"kWh": {"kWh": 0, "Wh": -3},
	"m3":  {"m3": 0, "dm3": -3},
}

// parseExact reads digits with at most one decimal mark; shift is the power
// of ten of its unit (0 or negative). The error never repeats the text.
func parseExact(text []byte, decimal byte, shift int) (exact, error) {
	if decimal != '.' {
		if bytes.IndexByte(text, '.') >= 0 {
			return 0, errors.New("has a point, but the mapping says decimal comma")
		}
		text = bytes.ReplaceAll(text, []byte{decimal}, []byte{'.'})
	}
	v, err := meter.ParseValue(string(text), exactDecimals+shift)
	if err != nil {
		return 0, fmt.Errorf("is %w", err)
	}
	if v < 0 {
		return 0, errors.New("is negative")
	}
	return exact(v), nil
}

func (a exact) plus(b exact) (exact, error) {
	if a > math.MaxInt64-b {
		return 0, errTooLarge
	}
	return a + b, nil
}

// round gives the nearest value of a precision, halves up.
func (a exact) round(precision int) meter.Value {
	unit := exact(1)
	for range exactDecimals - precision {
		unit *= 10
	}
	q, r := a/unit, a%unit
	if r >= unit-r {
		q++
	}
	return meter.Value(q)
}

// fits says whether round loses nothing.
func (a exact) fits(precision int) bool {
	for range exactDecimals - precision {
		if a%10 != 0 {
			return false
		}
		a /= 10
	}
	return true
}
