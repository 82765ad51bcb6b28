package main

import (
	"encoding/csv"
	"encoding/xml"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"kluis/internal/audit"
	"kluis/openapi/client"
)

func (w *world) getAs(s *supplier, path, accept string) reply {
	w.t.Helper()
	if s.client == nil {
		s.client = w.http(s.cert)
	}
	return w.do(s.client, http.MethodGet, path, func(r *http.Request) {
		bearer(w.token(s))(r)
		r.Header.Set("Accept", accept)
	})
}

// The formats of an answer differ in nothing but their form: the same way
// through the gateway, the same record, the same values.
func TestFormats(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a, w.consent(w.a))
	w.fill(e)
	path := w.path(e, "fields", "import_low,export_intervals")

	r := w.get(w.a, path)
	a := w.answerOf(r)
	var values []string
	for _, s := range a.Series {
		for _, d := range s.Days {
			for _, v := range d.Values {
				values = append(values, *v)
			}
		}
	}
	calls := w.tap.taken()
	if r.header.Get("Vary") != "Accept" || r.header.Get("Content-Type") != "application/json" || len(values) < 1000 {
		t.Fatalf("%v, %d values", r.header, len(values))
	}

	r = w.getAs(w.a, path, "text/csv")
	lines, err := csv.NewReader(strings.NewReader(string(r.body))).ReadAll()
	if err != nil || r.status != 200 || r.header.Get("Content-Type") != "text/csv; charset=utf-8; header=present" || r.header.Get("Vary") != "Accept" ||
		r.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v: %v", r.status, r.header, err)
	}
	column := map[string]int{}
	for i, name := range lines[0] {
		column[name] = i
	}
	var got []string
	for _, line := range lines[1:] {
		if line[column["record"]] == "value" {
			got = append(got, line[column["value"]])
		}
	}
	if !reflect.DeepEqual(got, values) {
		t.Errorf("the table has %d values, the JSON %d", len(got), len(values))
	}
	if taken := w.tap.taken(); taken != calls {
		t.Errorf("for a table: %s, for JSON: %s", taken, calls)
	}

	r = w.getAs(w.a, path, "application/atom+xml, application/json;q=0.5")
	var feed struct {
		XMLName xml.Name `xml:"http://www.w3.org/2005/Atom feed"`
		ID      string   `xml:"id"`
		Values  []int64  `xml:"entry>content>IntervalBlock>IntervalReading>value"`
	}
	if err := xml.Unmarshal(r.body, &feed); err != nil || r.status != 200 || r.header.Get("Content-Type") != "application/atom+xml; charset=utf-8; type=feed" {
		t.Fatalf("%d %v: %v", r.status, r.header, err)
	}
	if len(feed.Values) != len(values) || feed.ID != "urn:uuid:"+r.header.Get("X-Interaction-Id") {
		t.Errorf("the feed %s has %d values, the JSON %d", feed.ID, len(feed.Values), len(values))
	}
	if taken := w.tap.taken(); taken != calls {
		t.Errorf("for a feed: %s, for JSON: %s", taken, calls)
	}

	recs := w.records()
	if len(recs) != 3 {
		t.Fatalf("%d records", len(recs))
	}
	for _, rec := range recs[1:] {
		rec.InteractionID, rec.At, rec.TokenID, rec.Receipt = recs[0].InteractionID, recs[0].At, recs[0].TokenID, recs[0].Receipt
		if rec.Outcome != audit.Given || !reflect.DeepEqual(rec, recs[0]) {
			t.Errorf("the records of two formats differ:\n%+v\n%+v", recs[0], rec)
		}
	}

	// What cannot be given is refused before anything is read, and not
	// recorded; what is wrong with the request is told first.
	for _, accept := range []string{"text/html", "application/xml", "application/json;q=0"} {
		r := w.getAs(w.a, path, accept)
		if r.status != 406 || r.problem(t) != "not-acceptable" || r.header.Get("Vary") != "Accept" {
			t.Errorf("%s: %d %s", accept, r.status, r.body)
		}
	}
	if r := w.getAs(w.a, w.path(e, "from", "x"), "text/html"); r.problem(t) != "invalid-parameters" {
		t.Errorf("%d %s", r.status, r.body)
	}
	if taken := w.tap.taken(); strings.Contains(taken, "legal-file") || len(w.records()) != 3 {
		t.Errorf("refused, but %s", taken)
	}
	// A problem is one in every format.
	var p client.Problem
	r = w.getAs(w.a, w.path(w.ean(9)), "text/csv")
	holdsTo(t, "Problem", r.body, &p)
	if r.status != 404 || r.header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%d %v", r.status, r.header)
	}
}
