package conformance

import (
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables of docs/CONFORMANCE.md anew")

const page = "../docs/CONFORMANCE.md"

// The page's tables are those of the pack.
func TestPage(t *testing.T) {
	t.Parallel()
	pack := seededOn(t, profile(t), day(t, "2026-11-23"), day(t, "2026-11-23"))
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	want := got
	for name, table := range map[string]string{"suppliers": supplierTable(pack), "points": pointTable(pack), "cases": caseTable(pack)} {
		begin := "<!-- " + name + " -->\n"
		before, rest, ok := strings.Cut(want, begin)
		_, after, closed := strings.Cut(rest, "<!-- end -->")
		if !ok || !closed {
			t.Fatalf("%s has no place for the %s", page, name)
		}
		want = before + begin + table + "<!-- end -->" + after
	}
	if got == want {
		return
	}
	if !*update {
		t.Fatalf("%s is not of this pack: go test ./conformance -run TestPage -update", page)
	}
	if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

func supplierTable(p *Pack) string {
	var b strings.Builder
	fmt.Fprint(&b, "| name | GLN | scopes | is there for |\n|---|---|---|---|\n")
	for _, s := range p.Suppliers {
		fmt.Fprintf(&b, "| `%s` | %s | `%s` | %s |\n", s.Name, s.GLN, strings.Join(s.Scopes, "`, `"), s.Is)
	}
	return b.String()
}

func pointTable(p *Pack) string {
	var b strings.Builder
	fmt.Fprint(&b, "| name | EAN | shows | cases |\n|---|---|---|---|\n")
	for _, m := range p.Points {
		var of []string
		for _, c := range p.Cases {
			if strings.Contains(c.Request.Path, m.EAN.String()) && c.Want.Problem == "" {
				of = append(of, c.Name)
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.EAN, m.Shows, strings.Join(of, ", "))
	}
	return b.String()
}

func caseTable(p *Pack) string {
	var b strings.Builder
	fmt.Fprint(&b, "| case | as | asks | shows | must be answered |\n|---|---|---|---|---|\n")
	for _, c := range p.Cases {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", c.Name, p.Suppliers[c.Supplier].Name, asks(p, c), c.Says, c.Want.Summary())
	}
	return b.String()
}

// asks is a request in few words: the metering point by its name.
func asks(p *Pack, c Case) string {
	what := strings.TrimPrefix(c.Request.Path, "/v1/metering-points/")
	for _, m := range p.Points {
		what = strings.Replace(what, m.EAN.String(), m.Name, 1)
	}
	if c.Request.Method != http.MethodGet {
		what = c.Request.Method + " " + what
	}
	query, err := url.QueryUnescape(c.Request.Query)
	if err != nil {
		panic(err)
	}
	if query != "" {
		what += "?" + query
	}
	out := "`" + what + "`"
	if c.Request.Body != "" {
		out += " and a body"
		if c.Request.ContentType != "" {
			out += " (`" + c.Request.ContentType + "`)"
		}
	}
	switch c.Request.IfMatch {
	case "":
	case Current:
		out += " and its `ETag` in `If-Match`"
	default:
		out += " and `If-Match: " + c.Request.IfMatch + "`"
	}
	switch c.Request.Token {
	case None:
		out += " without a token"
	case Garbage:
		out += " with `not-a-token`"
	case Foreign:
		out += " with south's token"
	}
	return out
}
