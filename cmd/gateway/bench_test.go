package main

import (
	"net/http"
	"testing"
)

// BenchmarkReadings is one supplier request: a month of daily registers and of
// quarter-hours, over TLS, PostgreSQL and a cryptoserver on SoftHSM, all of
// whose work counts here. `make bench` measures the processes apart.
func BenchmarkReadings(b *testing.B) {
	w := newWorld(b, options{})
	e := w.customer(1, w.a, w.consent(w.a))
	w.fill(e)
	w.get(w.a, w.path(e))
	b.ReportAllocs()
	for b.Loop() {
		if r := w.get(w.a, w.path(e)); r.status != http.StatusOK {
			b.Fatalf("%d %s", r.status, r.body)
		}
	}
}
