package server

import (
	"strings"
	"testing"
)

func TestNegotiate(t *testing.T) {
	t.Parallel()
	for accept, want := range map[string]string{
		"": mediaJSON, " ": mediaJSON, "*/*": mediaJSON, "application/json": mediaJSON, "text/html": mediaHTML, "text/csv": mediaCSV, "text/*": mediaHTML,
		"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8": mediaHTML, // a browser
		"application/json;q=0.5, text/csv;q=0.7":                                                mediaCSV,
		"*/*, application/json;q=0":                                                             mediaHTML,
		"text/*;q=0.9, text/html;q=0.1, application/json;q=0.5":                                 mediaCSV,
		"TEXT/CSV; charset=utf-8":                                                               mediaCSV,
		"text/plain":                                                                            "", "application/json;q=0": "", "application/*": mediaJSON, "nonsense": "", "text/html;q=2": "", "text/html;q=x": "", "text/html;q=NaN": "",
		"text/html;q=0.0001": "", "text/html;q=-1": "", "text/html;q=1e0": "", "application/jsonx": "", "*/html": "", ",": "", ",,text/csv,": mediaCSV,
	} {
		if got := negotiate([]string{accept}, logMedia); got != want {
			t.Errorf("Accept: %s gives %q, want %q", accept, got, want)
		}
	}
	if got := negotiate([]string{"text/csv;q=0.1", "text/html;q=0.2"}, logMedia); got != mediaHTML {
		t.Errorf("two headers: %q", got)
	}
	for accept, want := range map[string]string{
		"": mediaJSON, "application/*": mediaJSON, "text/*": mediaCSV, "application/atom+xml": mediaAtom, "application/atom+xml;type=feed": mediaAtom,
		"application/json;q=0.1, application/*;q=0.2": mediaAtom, "application/xml": "", "text/html": "",
	} {
		if got := negotiate([]string{accept}, readingsMedia); got != want {
			t.Errorf("Accept: %s gives %q of readings, want %q", accept, got, want)
		}
	}
	if got := negotiate(nil, logMedia); got != mediaJSON {
		t.Errorf("no header: %q", got)
	}
}

func FuzzNegotiate(f *testing.F) {
	for _, s := range []string{"", "*/*", "text/html;q=0.5, text/csv", "text/*;q=0, */*", "a/b;c=\"d,e\"", ";q=1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, accept string) {
		switch got := negotiate([]string{accept}, logMedia); got {
		case "", mediaJSON, mediaHTML, mediaCSV:
			// A type that is refused by name is not chosen.
			if got != "" && strings.TrimSpace(accept) == got+";q=0" {
				t.Fatal(got)
			}
		default:
			t.Fatalf("%q", got)
		}
	})
}
