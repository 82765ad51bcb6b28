package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The daemon exports what it measures, and the command compares.
func TestKeysFacts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if out := w.must("keys", "facts"); out != "0 of 0 legal files and supplier records are behind.\n" {
		t.Error(out)
	}
	if out := w.must("keys", "facts", "--json"); strings.Join(strings.Fields(out), "") != `{"behind":[],"checked":0,"stray":[]}` {
		t.Error(out)
	}
	var text string
	for end := time.Now().Add(20 * time.Second); !strings.Contains(text, "kluis_custodian_facts_looked_timestamp_seconds 1."); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never looked:\n%s", text)
		}
		text = scraped(t, w.metrics)
	}
	for _, want := range []string{"kluis_custodian_revocation_delay_seconds_count 0", "kluis_custodian_facts_behind 0", "kluis_custodian_facts_stray 0"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s:\n%s", want, text)
		}
	}
}

// scraped reads the metrics of a daemon.
func scraped(t *testing.T, address string) string {
	t.Helper()
	r, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
