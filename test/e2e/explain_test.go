package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"kluis/meter"
)

// explanation is what `kluis explain --json` prints of one record.
type explanation struct {
	Outcome, Verdict, Why, Employee, Reason string
	Request                                 struct{ Operation string }
	LegalFile                               *struct{ Version int }
	Answer                                  []explainedLine
	Hindsight                               *struct {
		Version int
		Verdict string
		Changes []struct {
			Fields     []string
			From, To   string
			Then, Else *explainedLine
		}
		ChangedBy []struct{ Version int }
	}
}

type explainedLine struct {
	Fields                           []string
	From, To                         string
	Given                            bool
	Granularity, Basis, Rule, Reason string
}

func (l *lab) explain(t *testing.T, ean meter.EAN, id string) explanation {
	t.Helper()
	var all []explanation
	out := l.kluis(t, "explain", "--json", "--interaction", id, "--ean", ean.String())
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	return all[0]
}

// TestExplain reads through the API, corrects the register, and has it
// explained what was lawful when.
func TestExplain(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	v, other := l.vendor(t), l.vendor(t)
	h := l.home(t, v)

	read := seenIn(t, v.fetch(t, h.path()))
	read.want(t, h.corrected, nil)
	e := l.explain(t, h.ean, read.id)
	if e.Verdict != "AGREES" || e.Outcome != "given" || e.LegalFile == nil || e.LegalFile.Version != 4 || e.Hindsight != nil {
		t.Errorf("%+v", e)
	}
	given := map[string]string{}
	for _, a := range e.Answer {
		for _, f := range a.Fields {
			given[f] = fmt.Sprint(a.Given, " ", a.From, " ", a.To, " ", a.Basis, " ", a.Granularity)
		}
	}
	days := h.first.String() + " " + h.last.String()
	for _, f := range homeFields {
		want := "true " + days + " SUPPLY_DAILY P1D"
		if f == "import_intervals" {
			want = "true " + days + " CONSENT PT15M"
		}
		if given[f] != want {
			t.Errorf("%s: %s, want %s", f, given[f], want)
		}
	}

	// Refusals, a dry run and a stranger are explained too.
	partly := seenIn(t, v.fetch(t, readingsPath(h.ean.String(), h.first.String(), h.last.String(), "BILLING")))
	if e := l.explain(t, h.ean, partly.id); e.Verdict != "AGREES" || e.Outcome != "withheld" || len(e.Answer) != 2 {
		t.Errorf("%+v", e)
	}
	id := func(a answer) string {
		var body struct{ InteractionID string }
		if err := json.Unmarshal(a.body, &body); err != nil || body.InteractionID == "" {
			t.Fatalf("%v: %s", err, a.body)
		}
		return body.InteractionID
	}
	dry := id(v.fetch(t, "/v1/metering-points/"+h.ean.String()+"/access"))
	if e := l.explain(t, h.ean, dry); e.Verdict != "AGREES" || e.Request.Operation != "dry_run" || len(e.Answer) == 0 {
		t.Errorf("%+v", e)
	}
	refused := other.fetch(t, h.path())
	refused.problem(t, http.StatusNotFound, "metering-point-not-found")
	if e := l.explain(t, h.ean, id(refused)); e.Verdict != "AGREES" || !strings.Contains(e.Why, "had never had anything to do") {
		t.Errorf("%+v", e)
	}

	// The register says now that the other supplied since the middle.
	extract := func(change meter.Day) string {
		return writeTemp(t, "extract.csv", fmt.Sprintf("ean;supplier;supply_from;supply_to\n%s;%s;%s;%s\n%s;%s;%s;\n",
			h.ean, v.gln, h.turn-60, change, h.ean, other.gln, change))
	}
	l.kluis(t, "supply", "import", extract(h.last+3))
	if e := l.explain(t, h.ean, read.id); e.Verdict != "AGREES" || e.Hindsight != nil {
		t.Errorf("after a switch that came later: %+v", e)
	}
	if out := l.kluisFails(t, 3, "supply", "import", extract(h.turn)); !strings.Contains(out, "--correct") {
		t.Error(out)
	}
	l.kluis(t, "supply", "import", "--correct", extract(h.turn))
	e = l.explain(t, h.ean, read.id)
	if e.Verdict != "AGREES" || e.Hindsight == nil || !strings.HasPrefix(e.Hindsight.Verdict, "Lawful when read, by version 4 ") || len(e.Hindsight.ChangedBy) == 0 {
		t.Fatalf("%+v", e)
	}
	var lost []string
	for _, c := range e.Hindsight.Changes {
		if c.From != h.turn.String() || c.To != h.last.String() || !c.Then.Given || c.Else.Reason != "NO_SUPPLY" {
			t.Errorf("%+v", c)
		}
		lost = append(lost, c.Fields...)
	}
	slices.Sort(lost)
	if want := slices.Sorted(slices.Values(homeFields)); !slices.Equal(lost, want) {
		t.Errorf("%v, want %v", lost, want)
	}
	// And from the next request on it counts.
	now := seenIn(t, v.fetch(t, h.path()))
	for k := range now.values {
		field, day, _ := strings.Cut(k, " ")
		closes := field != "import_intervals" && day == h.turn.String()
		if day >= h.turn.String() && !closes {
			t.Errorf("%s is still given", k)
		}
	}
	if e := l.explain(t, h.ean, now.id); e.Verdict != "AGREES" || e.Outcome != "partly" || e.Hindsight != nil {
		t.Errorf("%+v", e)
	}
}
