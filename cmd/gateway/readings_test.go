package main

import (
	"bytes"
	"encoding/json"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
	"kluis/openapi/client"
)

var contract = sync.OnceValues(openapi.Load)

// holdsTo checks a body against a schema of the contract and decodes it.
func holdsTo(t testing.TB, schema string, body []byte, into any) {
	t.Helper()
	doc, err := contract()
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	if err := doc.Components.Schemas[schema].Value.VisitJSON(v, openapi3.EnableFormatValidation()); err != nil {
		t.Errorf("%s, against the contract: %v", schema, err)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		t.Errorf("%s: %v", schema, err)
	}
}

// answerOf checks an answer against the contract and decodes it.
func (w *world) answerOf(r reply) client.Readings {
	w.t.Helper()
	if r.status != 200 {
		w.t.Fatalf("status %d: %s", r.status, r.body)
	}
	var a client.Readings
	holdsTo(w.t, "Readings", r.body, &a)
	if a.InteractionId.String() != r.header.Get("X-Interaction-Id") {
		w.t.Errorf("interaction %s in the body, %s in the header", a.InteractionId, r.header.Get("X-Interaction-Id"))
	}
	return a
}

func text(v meter.Value) string { return string(meter.AppendValue(nil, v, 3)) }

func TestReadings(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a, w.consent(w.a))
	w.fill(e)
	low := w.field("import_low")
	intervals := w.field("import_intervals")
	days := w.days()

	a := w.answerOf(w.get(w.a, w.path(e)))
	if len(a.Series) != 6 || len(a.Withheld) != 0 {
		t.Fatalf("%d series, withheld %v", len(a.Series), a.Withheld)
	}
	for _, s := range a.Series {
		switch s.Field {
		case "import_low":
			if s.ReadingKind != client.ReadingKindREGISTER || s.Resolution != client.P1D || s.LegalBasis != client.LegalBasisSUPPLYDAILY ||
				s.ExpectedCount != days.Len()+1 || s.DeliveredCount != s.ExpectedCount || len(s.Days) != days.Len()+1 {
				t.Errorf("%+v", s)
			}
			for i, d := range s.Days {
				if *d.Values[0] != text(read(low, days.From+meter.Day(i))) {
					t.Errorf("read %d is %s", i, *d.Values[0])
				}
			}
		case "import_intervals":
			if s.ReadingKind != client.ReadingKindCONSUMPTION || s.Resolution != client.PT15M || s.LegalBasis != client.LegalBasisCONSENT || s.DeliveredCount != s.ExpectedCount {
				t.Errorf("%s %s %s %d/%d", s.ReadingKind, s.Resolution, s.LegalBasis, s.DeliveredCount, s.ExpectedCount)
			}
			for _, d := range s.Days {
				for i, v := range d.Values {
					if *v != text(slot(intervals, i)) {
						t.Fatalf("slot %d is %s", i, *v)
					}
				}
			}
		}
	}
	if got := w.tap.taken(); got != "supplier legal-file blocks open record" {
		t.Errorf("calls: %s", got)
	}
	recs := w.records()
	if len(recs) != 1 || recs[0].Outcome != audit.Given || recs[0].InteractionID != [16]byte(a.InteractionId) || recs[0].EAN != e ||
		len(recs[0].Receipt) == 0 || recs[0].FileVersion != 4 || len(recs[0].Granted) != 6 {
		t.Errorf("records %+v", recs)
	}

	// The annual bill: one month, by the month.
	a = w.answerOf(w.get(w.a, w.path(e, "purpose", "BILLING", "fields", "import_low")))
	if len(a.Series) != 1 || a.Series[0].Resolution != client.P1M || a.Series[0].LegalBasis != client.LegalBasisSUPPLYPERIODIC ||
		len(a.Series[0].Days) != 2 || *a.Series[0].Days[1].Values[0] != text(read(low, days.To)) {
		t.Errorf("%+v", a.Series)
	}
	a = w.answerOf(w.get(w.a, w.path(e, "purpose", "BILLING", "class", "registers", "kind", "CONSUMPTION")))
	if len(a.Series) != 4 || *a.Series[0].Days[0].Values[0] != text(meter.Value(10*days.Len())) {
		t.Errorf("%+v", a.Series)
	}
	// Coarser than stored is computed; finer than granted is withheld.
	a = w.answerOf(w.get(w.a, w.path(e, "fields", "import_intervals", "resolution", "PT1H")))
	if len(a.Series) != 1 || *a.Series[0].Days[0].Values[0] != text(slot(intervals, 0)+slot(intervals, 1)+slot(intervals, 2)+slot(intervals, 3)) {
		t.Errorf("%+v", a.Series)
	}
	w.tap.taken()
	a = w.answerOf(w.get(w.a, w.path(e, "purpose", "BILLING", "fields", "import_low", "resolution", "P1D")))
	if len(a.Series) != 0 || len(a.Withheld) != 1 || a.Withheld[0].Reason != client.NOTGRANTEDATTHISGRANULARITY {
		t.Errorf("%+v", a)
	}
	if got := w.tap.taken(); got != "supplier legal-file record" {
		t.Errorf("all withheld, but calls: %s", got)
	}
	recs = w.records()
	if last := recs[len(recs)-1]; len(recs) != 5 || last.Outcome != audit.Withheld || len(last.Receipt) != 0 {
		t.Errorf("%d records, last %+v", len(recs), last)
	}
}

func (w *world) field(name string) meter.FieldCode {
	w.t.Helper()
	f, ok := w.profile.Field(name)
	if !ok {
		w.t.Fatalf("no field %s", name)
	}
	return f.Code
}
