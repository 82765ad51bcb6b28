package server

import (
	"testing"

	"kluis/meter"
)

func mustEAN(t testing.TB, s string) meter.EAN {
	t.Helper()
	e, err := meter.ParseEAN(s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestCursor(t *testing.T) {
	t.Parallel()
	ean := mustEAN(t, "871687140000000019")
	const golden = "AQwY2tXe-egT"
	if got := encodeCursor(ean); got != golden {
		t.Errorf("cursor is %s, want %s", got, golden)
	}
	if got, err := decodeCursor(golden); err != nil || got != ean {
		t.Errorf("decoded %v, %v", got, err)
	}
	for name, bad := range map[string]string{
		"empty":           "",
		"another version": "AgwY2tXe-egT",
		"bad check digit": "AQwY2tXe-egU",
		"too short":       "AQwY2tXe-eg",
		"too long":        "AQwY2tXe-egTAA",
		"padding":         "AQwY2tXe-egT=",
		"standard base64": "AQwY2tXe+egT",
		"line break":      "AQwY2tXe\n-egT",
		"negative":        "Af__________",
	} {
		if got, err := decodeCursor(bad); err == nil {
			t.Errorf("%s: decoded as %v", name, got)
		}
	}
}

func FuzzCursor(f *testing.F) {
	f.Add("AQwY2tXe-egT")
	f.Add("")
	f.Add("AgwY2tXe-egT")
	f.Fuzz(func(t *testing.T, s string) {
		ean, err := decodeCursor(s)
		if err != nil {
			return
		}
		if ean.IsZero() || encodeCursor(ean) != s {
			t.Errorf("%q decodes to a metering point that encodes otherwise", s)
		}
	})
}
