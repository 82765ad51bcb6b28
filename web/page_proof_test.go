package web

import (
	"bytes"
	"strings"
	"testing"
)

// TestProofSays: the page of a proof shows what the record says, and nothing green
// beside a line that says something else.
func TestProofSays(t *testing.T) {
	t.Parallel()
	l := newLogged(t)
	p := &Portal{profile: l.profile, static: must(newStatic())}
	if err := p.parseTemplates(); err != nil {
		t.Fatal(err)
	}
	found := must(l.check(l.proof))
	says := logLineOf(found.Record, l.profile)
	leaf := found
	leaf.Whole, leaf.Record = false, nil
	for kind, d := range map[string]*proofData{
		"whole": {Proven: &found, Says: &says}, "differs": {Proven: &found, Says: &says, Differs: true}, "leaf": {Proven: &leaf}, "failed": {Failed: true},
	} {
		for _, lang := range languages {
			var b bytes.Buffer
			if err := p.templates[lang].pages["proof"].ExecuteTemplate(&b, "proof", &view{visit: &visit{Lang: lang}, Data: d}); err != nil {
				t.Fatal(err)
			}
			page := b.String()
			if !strings.Contains(page, `data-proof="`+kind+`"`) || strings.Contains(page, "alert ok") != (kind == "whole") {
				t.Errorf("%s: %s", kind, page)
			}
			for _, part := range []string{"agent-17", "case 4711", "8712423000018"} {
				if want := d.Says != nil; strings.Contains(page, part) != want {
					t.Errorf("%s: %q shown: %v", kind, part, !want)
				}
			}
		}
	}
}
