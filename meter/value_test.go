package meter

import (
	"errors"
	"math"
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseValue(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		s         string
		precision int
		want      Value
		canonical string
	}{
		{"0", 3, 0, "0.000"},
		{"-0", 3, 0, "0.000"},
		{"1828.818", 3, 1828818, "1828.818"},
		{"1828.8", 3, 1828800, "1828.800"},
		{"001581.123", 3, 1581123, "1581.123"},
		{"-0.5", 1, -5, "-0.5"},
		{"0.001", 3, 1, "0.001"},
		{"-0.001", 3, -1, "-0.001"},
		{"42", 0, 42, "42"},
		{"9223372036854775807", 0, math.MaxInt64, "9223372036854775807"},
		{"-9223372036854775807", 0, -math.MaxInt64, "-9223372036854775807"},
		{"9223372036.854775807", 9, math.MaxInt64, "9223372036.854775807"},
		{strings.Repeat("0", 100) + "1", 0, 1, "1"},
	} {
		got, err := ParseValue(tt.s, tt.precision)
		if err != nil || got != tt.want {
			t.Errorf("ParseValue(%q, %d) = %d, %v, want %d", tt.s, tt.precision, got, err, tt.want)
		}
		if s := string(AppendValue(nil, got, tt.precision)); s != tt.canonical {
			t.Errorf("%q comes back as %q, want %q", tt.s, s, tt.canonical)
		}
	}
	for _, s := range []string{
		"", "-", ".", "-.5", ".5", "5.", "1.2345", "1.2340", "1,5", "1e3", "+1", " 1", "1 ", "--1", "1-", "1.2.3", "0x10", "NaN",
		"null", "Inf", "٣", "1_000", "9223372036854776", "-9223372036854775.808", "9223372036854775.808", "99999999999999999999999",
	} {
		if got, err := ParseValue(s, 3); !errors.Is(err, ErrValue) {
			t.Errorf("ParseValue(%q, 3) = %d, %v", s, got, err)
		}
	}
	if _, err := ParseValue("-9223372036854775808", 0); err == nil {
		t.Error("Null can be parsed from a number")
	}
	if got := string(AppendValue([]byte("x"), Null, 3)); got != "xnull" {
		t.Errorf("Null is written as %q", got)
	}
}

func TestAppendValueAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		v := Value(rapid.Int64Min(math.MinInt64+1).Draw(t, "value"))
		precision := rapid.IntRange(0, MaxPrecision).Draw(t, "precision")
		scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(precision)), nil)
		want := new(big.Rat).SetFrac(big.NewInt(int64(v)), scale).FloatString(precision)
		s := string(AppendValue(nil, v, precision))
		if s != want {
			t.Fatalf("%d with %d decimals is %q, want %q", v, precision, s, want)
		}
		if back, err := ParseValue(s, precision); err != nil || back != v {
			t.Fatalf("%q comes back as %d, %v, want %d", s, back, err, v)
		}
	})
}

func FuzzParseValue(f *testing.F) {
	for _, s := range []string{"0", "-1.5", "001581.123", "9223372036854775807", ".5", "1e3"} {
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, s string, precision int) {
		if precision < 0 || precision > MaxPrecision {
			return
		}
		v, err := ParseValue(s, precision)
		if err != nil {
			return
		}
		want, ok := new(big.Rat).SetString(s)
		scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(precision)), nil)
		if !ok || v == Null || want.Cmp(new(big.Rat).SetFrac(big.NewInt(int64(v)), scale)) != 0 {
			t.Fatalf("%q with %d decimals read as %d", s, precision, v)
		}
		if back, err := ParseValue(string(AppendValue(nil, v, precision)), precision); err != nil || back != v {
			t.Fatalf("%q: %d comes back as %d, %v", s, v, back, err)
		}
	})
}
