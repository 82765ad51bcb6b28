package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

type wireChanges struct {
	Changes []wireChange
	Cursor  string
	More    bool
}

type wireChange struct {
	Kind, Ean  string
	At         time.Time
	Fields     []string
	From, To   string
	LegalBases []string
}

// changesUntil polls the feed until it has told a change of a kind; it returns
// all that was told, and the cursor.
func (v vendor) changesUntil(t *testing.T, q url.Values, kind string) ([]wireChange, string) {
	t.Helper()
	var all []wireChange
	for deadline := time.Now().Add(time.Minute); ; {
		a := v.fetch(t, "/v1/changes?"+q.Encode())
		var c wireChanges
		if err := json.Unmarshal(a.body, &c); err != nil || a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		all = append(all, c.Changes...)
		if !c.More && slices.ContainsFunc(all, func(c wireChange) bool { return c.Kind == kind }) {
			return all, c.Cursor
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s in %+v", kind, all)
		}
		q = url.Values{"cursor": {c.Cursor}}
		if !c.More {
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// TestChanges: what kluis ingest stores shows in the feed of the supplier, and of
// no other; what it replaced can be read as of a moment before, and is explained
// and audited like any other read.
func TestChanges(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	v, other := l.vendor(t), l.vendor(t)
	h, foreign := l.home(t, v), l.home(t, other)
	all, cursor := v.changesUntil(t, url.Values{"since": {time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)}, "limit": {"10"}}, "CORRECTED")
	if all[0].Kind != "BASES" || slices.ContainsFunc(all, func(c wireChange) bool { return c.Ean != h.ean.String() }) {
		t.Errorf("%+v", all)
	}
	told := map[string]int{}
	var corrected wireChange
	for _, c := range all {
		told[c.Kind]++
		if c.Kind == "CORRECTED" {
			corrected = c
		}
	}
	if told["ARRIVED"] == 0 || told["CORRECTED"] != 1 || fmt.Sprint(corrected.Fields) != "[import_intervals]" || corrected.From != (h.turn+1).String() || corrected.To != (h.turn+2).String() {
		t.Errorf("%v %+v", told, corrected)
	}

	asOf := func(at time.Time) seen {
		t.Helper()
		return seenIn(t, v.fetch(t, h.path()+"&asOf="+url.QueryEscape(at.Format(time.RFC3339Nano))))
	}
	seenIn(t, v.fetch(t, h.path())).want(t, h.corrected, nil)
	asOf(corrected.At).want(t, h.corrected, nil)
	former := asOf(corrected.At.Add(-time.Microsecond))
	former.want(t, h.old, nil)
	if !strings.Contains(string(former.body), `"asOf":"`) {
		t.Error("the answer does not say as of when")
	}
	if e := l.explain(t, h.ean, former.id); e.Verdict != "AGREES" || e.Outcome != "given" {
		t.Errorf("%+v", e)
	}

	mapping := writeTemp(t, "m.yaml", "time: {columns: [T], format: RFC3339, marks: start}\nevery: PT15M\n"+
		"fields:\n  - {field: import_intervals, reads: consumption, columns: [V], unit: kWh}\n")
	spare := h.last + 3
	file := writeTemp(t, "f.csv", "T,V\n"+spare.Start(l.profile.Location()).Format(time.RFC3339)+",0.125\n")
	for _, to := range []string{foreign.ean.String(), h.ean.String()} {
		l.kluis(t, "ingest", "csv", "--mapping", mapping, "--ean", to, file)
	}
	all, cursor = v.changesUntil(t, url.Values{"cursor": {cursor}}, "ARRIVED")
	if len(all) != 1 || all[0].Ean != h.ean.String() || fmt.Sprint(all[0].Fields) != "[import_intervals]" || all[0].From != spare.String() {
		t.Errorf("%+v", all)
	}
	if a := other.fetch(t, "/v1/changes?cursor="+cursor); a.status != http.StatusBadRequest {
		t.Errorf("another's cursor: %d %s", a.status, a.body)
	}
}
