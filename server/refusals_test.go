package server

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"kluis/meter"
	"kluis/openapi"
)

// p4Codes are the field's refusals that Kluis has to have an answer to.
var p4Codes = []string{"003", "006", "007", "008", "010", "011", "013", "038", "040", "041"}

// rows are the cells of a table's rows, from a heading to the next.
func rows(t *testing.T, doc, heading string) [][]string {
	t.Helper()
	_, section, ok := strings.Cut(doc, "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("no section %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var out [][]string
	for line := range strings.Lines(section) {
		line, ok := strings.CutPrefix(strings.TrimSpace(line), "| ")
		if !ok {
			continue
		}
		cells := strings.Split(strings.TrimSuffix(line, " |"), " | ")
		out = append(out, cells)
	}
	return out[1:] // not the header; its ruler begins with |-
}

// docs/REFUSALS.md, the contract and the code list the same reasons and
// problems; each says when it happens and what to do, and has a code of the
// field or none.
func TestRefusalsAreDocumented(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../docs/REFUSALS.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	contract, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	names := func(heading string, width int) (out []string, statuses []string) {
		for _, r := range rows(t, doc, heading) {
			if len(r) != width {
				t.Fatalf("%s: %q has %d cells", heading, r, len(r))
			}
			for _, cell := range r {
				if strings.TrimSpace(cell) == "" {
					t.Errorf("%s: %s has an empty cell", heading, r[0])
				}
			}
			if code := r[width-3]; code != "-" && !slices.Contains(p4Codes, code) {
				t.Errorf("%s has the unknown code %q", r[0], code)
			}
			out = append(out, strings.Trim(r[0], "`"))
			statuses = append(statuses, r[1])
		}
		return out, statuses
	}
	same := func(what string, a, b []string) {
		t.Helper()
		a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
		if !slices.Equal(a, b) {
			t.Errorf("%s:\n%q\n%q", what, a, b)
		}
	}

	var code []string
	for r := meter.Reason(1); !strings.HasPrefix(r.String(), "Reason("); r++ {
		code = append(code, r.String())
	}
	documented, _ := names("Reasons", 4)
	same("reasons of the document and the code", documented, code)
	schema := contract.Components.Schemas["WithheldReason"].Value
	var enum, table []string
	for _, v := range schema.Enum {
		enum = append(enum, v.(string))
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\|").FindAllStringSubmatch(schema.Description, -1) {
		table = append(table, m[1])
	}
	same("reasons of the contract's enumeration and the code", enum, code)
	same("reasons of the contract's description and the code", table, code)

	slugs, statuses := names("Problems", 5)
	var list []string
	for i, p := range problems {
		list = append(list, p.slug)
		if j := slices.Index(slugs, p.slug); j >= 0 && statuses[j] != strconv.Itoa(p.status) {
			t.Errorf("%s (%d) is documented with status %s", problems[i].slug, p.status, statuses[j])
		}
	}
	same("problems of the document and the code", slugs, list) // the contract's: TestProblemsAreTheContracts

	var answered []string
	for _, r := range rows(t, doc, "From the field's codes") {
		answered = append(answered, r[0])
		for _, m := range regexp.MustCompile("`([A-Z_]{5,}|[a-z]+-[a-z-]+|unauthenticated)`").FindAllStringSubmatch(r[2], -1) {
			if !slices.Contains(code, m[1]) && !slices.Contains(list, m[1]) && m[1] != "Retry-After" {
				t.Errorf("%s is answered by %q, which is neither a reason nor a problem", r[0], m[1])
			}
		}
	}
	same("codes of the field", answered, p4Codes)

	// What a code is mapped to, it is mapped to from both sides.
	for _, r := range append(rows(t, doc, "Reasons"), rows(t, doc, "Problems")...) {
		p4 := r[len(r)-3]
		for _, f := range rows(t, doc, "From the field's codes") {
			named := strings.Contains(f[2], r[0])
			if f[0] == p4 && !named && p4 != "041" || f[0] != p4 && named && p4 != "-" && !strings.Contains("006 007", f[0]) {
				t.Errorf("%s is mapped to %s, but the field's %s says %q", r[0], p4, f[0], f[2])
			}
		}
	}
}
