package meter

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseEAN(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"871685900012345674", "541448800000000017", "000000000000000017"} {
		e, err := ParseEAN(s)
		if err != nil || e.String() != s || e.IsZero() {
			t.Errorf("ParseEAN(%q) = %s, %v", s, e, err)
		}
		if back, err := EANFromInt64(e.Int64()); err != nil || back != e {
			t.Errorf("%s comes back from the database as %s, %v", e, back, err)
		}
	}
	for _, s := range []string{
		"", "0", "871685900012345670", "87168590001234567", "8716859000123456740", "000000000000000000",
		"87168590001234567x", " 71685900012345674", "+71685900012345674", "８71685900012345674", "8716-5900012345674",
	} {
		e, err := ParseEAN(s)
		if !errors.Is(err, ErrEAN) || !e.IsZero() {
			t.Errorf("ParseEAN(%q) = %s, %v", s, e, err)
		} else if len(s) > 3 && strings.Contains(err.Error(), s) {
			t.Errorf("the error echoes the text: %v", err)
		}
	}
	for _, n := range []int64{0, -1, 1, 1 << 62, 871685900012345670} {
		if e, err := EANFromInt64(n); !errors.Is(err, ErrEAN) {
			t.Errorf("EANFromInt64(%d) = %s, %v", n, e, err)
		}
	}
}

func TestParseGLN(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"8712423010208", "4006381333931", "0000000000017"} {
		g, err := ParseGLN(s)
		if err != nil || g.String() != s || g.IsZero() {
			t.Errorf("ParseGLN(%q) = %s, %v", s, g, err)
		}
		if back, err := GLNFromInt64(g.Int64()); err != nil || back != g {
			t.Errorf("%s comes back from the database as %s, %v", g, back, err)
		}
	}
	for _, s := range []string{"", "8712423010209", "871242301020", "87124230102088", "871242301020X", "0000000000000"} {
		if g, err := ParseGLN(s); !errors.Is(err, ErrGLN) || !g.IsZero() {
			t.Errorf("ParseGLN(%q) = %s, %v", s, g, err)
		}
	}
	for _, n := range []int64{0, -1, 8712423010209, 1 << 62} {
		if g, err := GLNFromInt64(n); !errors.Is(err, ErrGLN) {
			t.Errorf("GLNFromInt64(%d) = %s, %v", n, g, err)
		}
	}
}

// The check digit finds every wrong digit.
func TestCheckDigitFindsWrongDigits(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		body := rapid.StringMatching(`[1-9][0-9]{16}`).Draw(t, "body")
		var valid []string
		for d := range 10 {
			if s := fmt.Sprint(body, d); parses(ParseEAN(s)) {
				valid = append(valid, s)
			}
		}
		if len(valid) != 1 {
			t.Fatalf("%s has %d check digits", body, len(valid))
		}
		wrong := []byte(valid[0])
		at := rapid.IntRange(0, 17).Draw(t, "at")
		wrong[at] = '0' + (wrong[at]-'0'+byte(rapid.IntRange(1, 9).Draw(t, "by")))%10
		if parses(ParseEAN(string(wrong))) {
			t.Fatalf("%s passes for %s", wrong, valid[0])
		}
	})
}

func parses[T any](_ T, err error) bool { return err == nil }
