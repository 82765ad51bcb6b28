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
