package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi/client"
	"kluis/server"
)

// accessPath is a dry run; pairs of names and values.
func accessPath(e meter.EAN, query ...string) string {
	q := url.Values{}
	for i := 0; i+1 < len(query); i += 2 {
		q.Set(query[i], query[i+1])
	}
	return "/v1/metering-points/" + e.String() + "/access?" + q.Encode()
}

func (w *world) accessOf(r reply) client.Access {
	w.t.Helper()
	if r.status != 200 {
		w.t.Fatalf("status %d: %s", r.status, r.body)
	}
	var a client.Access
	holdsTo(w.t, "Access", r.body, &a)
	if a.InteractionId.String() != r.header.Get("X-Interaction-Id") {
		w.t.Errorf("interaction %s in the body, %s in the header", a.InteractionId, r.header.Get("X-Interaction-Id"))
	}
	return a
}

func (w *world) lastRecord() audit.Record {
	w.t.Helper()
	recs := w.records()
	if len(recs) == 0 {
		w.t.Fatal("nothing was recorded")
	}
	return recs[len(recs)-1]
}

const dryRunCalls = "supplier legal-file stored record"

// What the dry run says is what requests for readings then get, line by line,
// and what it withholds is withheld for the reason it said. Nothing is opened.
func TestDryRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	out := w.days().From + 10
	e := w.customer(1, w.a, w.consent(w.a), authz.SetOptOut{Days: meter.DayRange{From: out, To: out + 2}})
	w.fill(e)
	from, to := (w.month - 2).First().String(), w.days().To.String()

	w.tap.taken()
	started := time.Now().Truncate(time.Second)
	a := w.accessOf(w.get(w.a, accessPath(e, "from", from, "to", to)))
	if calls := w.tap.taken(); calls != dryRunCalls {
		t.Errorf("calls %q", calls)
	}
	if a.Ean != e.String() || a.From.String() != from || a.To.String() != to || a.TimeZone != "Europe/Amsterdam" ||
		a.ProfileVersion != w.profile.Version() || a.DecidedAt.Before(started) || a.DecidedAt.After(time.Now()) {
		t.Errorf("%+v", a)
	}
	rec := w.lastRecord()
	if rec.Operation != audit.DryRun || rec.Outcome != audit.Given || rec.EAN != e || rec.Purpose != 0 || rec.Days.From.String() != from || len(rec.Receipt) != 0 ||
		rec.Profile != w.profile.Digest() || rec.FileVersion == 0 || len(rec.Granted) == 0 || len(rec.Fields) != 6 || len(rec.Withheld) != 0 {
		t.Errorf("record %+v", rec)
	}

	if len(a.Granted) == 0 || len(a.Withheld) == 0 || len(a.Stored) == 0 {
		t.Fatalf("%+v", a)
	}
	type fieldDay struct{ field, day string }
	stored := map[fieldDay]bool{}
	for _, s := range a.Stored {
		if s.LastStoredAt.After(time.Now()) || time.Since(s.LastStoredAt) > 5*time.Minute {
			t.Errorf("stored %+v", s)
		}
		for d := day(s.From.String()); d < day(s.To.String()); d++ {
			stored[fieldDay{s.Field, d.String()}] = true
		}
	}
	read := func(purpose, field, from, to string, more ...string) client.Readings {
		t.Helper()
		return w.answerOf(w.get(w.a, w.path(e, append([]string{"purpose", purpose, "fields", field, "from", from, "to", to}, more...)...)))
	}
	rules := map[string]bool{}
	for _, g := range a.Granted {
		rules[g.Rule] = true
		for _, more := range [][]string{nil, {"resolution", string(g.Granularity)}} {
			got := read(string(g.Purpose), g.Field, g.From.String(), g.To.String(), more...)
			if len(got.Withheld) != 0 || len(got.Series) != 1 {
				t.Errorf("promised %+v, got %+v and %d series", g, got.Withheld, len(got.Series))
				continue
			}
			s := got.Series[0]
			if s.Rule != g.Rule || s.LegalBasis != g.LegalBasis || s.Resolution != g.Granularity || s.ReadingKind != g.ReadingKind {
				t.Errorf("promised %+v, got %s %s %s %s", g, s.Rule, s.LegalBasis, s.Resolution, s.ReadingKind)
			}
			// A value is there exactly where a day is said to be stored.
			for _, d := range s.Days {
				is := stored[fieldDay{g.Field, meter.DayOf(d.Start, w.profile.Location()).String()}]
				if known := slices.ContainsFunc(d.Values, func(v *string) bool { return v != nil }); known != is {
					t.Errorf("%s on %s: stored %v, but a value %v", g.Field, d.Start, is, known)
				}
			}
		}
	}
	reasons := map[client.WithheldReason]bool{}
	for _, x := range a.Withheld {
		reasons[x.Reason] = true
		for _, resolution := range []string{"", "P1M"} {
			got := read(string(x.Purpose), x.Field, x.From.String(), x.To.String(), "resolution", resolution)
			if len(got.Series) != 0 || len(got.Withheld) != 1 || resolution == "" && got.Withheld[0].Reason != x.Reason {
				t.Errorf("withheld %+v, but readings say %+v", x, got.Withheld)
			}
		}
	}
	if !rules["nl-billing-periodic"] || !rules["nl-daily"] || !rules["nl-consent-intervals"] || !reasons[client.OPTEDOUT] || !reasons[client.PARTIALPERIOD] {
		t.Errorf("the test world is poor: %v %v", rules, reasons)
	}

	// One purpose only; and nothing opened for any of the dry runs.
	w.tap.taken()
	one := w.accessOf(w.get(w.a, accessPath(e, "from", from, "to", to, "purpose", "BILLING")))
	want := slices.DeleteFunc(slices.Clone(a.Granted), func(g client.AccessGranted) bool { return g.Purpose != "BILLING" })
	if !reflect.DeepEqual(one.Granted, want) {
		t.Errorf("for billing %+v, want %+v", one.Granted, want)
	}
	for _, s := range one.Stored { // only month boundaries, on that ground
		if day(s.From.String()).Month().First().String() != s.From.String() || day(s.To.String())-day(s.From.String()) != 1 {
			t.Errorf("for billing %s of %s is said to be stored", s.Field, s.From)
		}
	}
	if rec := w.lastRecord(); rec.Operation != audit.DryRun || rec.Outcome != audit.Given || rec.Purpose != meter.Billing {
		t.Errorf("record %+v", rec)
	}
	// Nothing said: all that is retained.
	all := w.accessOf(w.get(w.a, accessPath(e)))
	if r := authz.Retained(w.profile, time.Now()); all.From.String() != r.From.String() || all.To.String() != r.To.String() {
		t.Errorf("from %s to %s", all.From, all.To)
	}
	if calls := w.tap.taken(); calls != dryRunCalls+" "+dryRunCalls {
		t.Errorf("calls %q", calls)
	}
}

// An unknown metering point and another supplier's: the same answer but for the
// id, the same calls, a record of the same shape, as with readings.
func TestDryRunOfUnknownAndForeignIsAlike(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	foreign := w.customer(1, w.b, w.consent(w.b))
	w.fill(foreign)
	gas := w.ean(2)
	w.legalFile(gas, meter.Gas, authz.SetOccupancy{Days: meter.DayRange{From: 0, To: meter.MaxDay}}, authz.SetSupply{Supplier: w.b.gln, Days: meter.DayRange{From: 0, To: meter.MaxDay}})
	bare := w.ean(3) // registered, without a fact
	w.legalFile(bare, meter.Electricity)
	unknown := w.ean(4)
	type seen struct {
		status                      int
		body, header, calls, record string
	}
	for name, query := range map[string][]string{
		"nothing said": {}, "a purpose": {"purpose", "BILLING"}, "no rule": {"purpose", "CUSTOMER_SERVICE"},
		"a period": {"from", "2025-01-01", "to", "2026-01-01"}, "ten years": {"from", "2017-01-01", "to", "2027-01-01"},
	} {
		var want seen
		for i, e := range []meter.EAN{unknown, foreign, gas, bare} {
			w.tap.taken()
			r := w.get(w.a, accessPath(e, query...))
			id := r.header.Get("X-Interaction-Id")
			r.header.Del("Date")
			rec := w.lastRecord()
			if rec.EAN != e || rec.Operation != audit.DryRun || rec.Outcome != audit.NoRelation {
				t.Errorf("record %+v", rec)
			}
			rec.EAN, rec.InteractionID, rec.At, rec.TokenID = unknown, [16]byte{1}, time.Unix(1, 0), [32]byte{}
			got := seen{
				r.status, strings.ReplaceAll(string(r.body), id, "ID"), strings.ReplaceAll(string(must(json.Marshal(r.header))), id, "ID"),
				w.tap.taken(), string(must(rec.Encode())),
			}
			if got.status != 404 || r.problem(t) != "metering-point-not-found" || got.calls != "supplier legal-file record" {
				t.Fatalf("%s: %+v", name, got)
			}
			if i == 0 {
				want = got
			} else if got != want {
				t.Errorf("%s: metering point %d is answered\n%+v\nand an unknown one\n%+v", name, i, got, want)
			}
		}
		// And the same document as a request for readings is refused with.
		r := w.get(w.a, w.path(unknown))
		if body := strings.ReplaceAll(string(r.body), r.header.Get("X-Interaction-Id"), "ID"); body != want.body {
			t.Errorf("%s: readings are refused with %s", name, body)
		}
	}
}

// A former supplier learns of its own time only: neither who came after, nor
// when the customer moved, nor what is stored, nor consents of others.
func TestDryRunTellsNothingOfOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	start := meter.DayRange{From: day("2020-01-01"), To: meter.MaxDay}
	left := (w.month - 3).First()
	until := func(d meter.Day) meter.DayRange { return meter.DayRange{From: d, To: meter.MaxDay} }
	// Alone: the caller's supply ends, and nobody comes.
	alone := w.ean(1)
	w.legalFile(alone, meter.Electricity, authz.SetOccupancy{Days: start}, authz.SetSupply{Supplier: w.a.gln, Days: meter.DayRange{From: start.From, To: left}})
	w.fill(alone)
	// Busy: the same for the caller; another supplier, a move, an opt-out, a
	// consent and readings after its time.
	busy := w.ean(2)
	moved := left + 20
	consent := w.consent(w.b)
	consent.Days = until(moved)
	w.legalFile(busy, meter.Electricity, authz.SetOccupancy{Days: start}, authz.SetSupply{Supplier: w.a.gln, Days: start},
		authz.SetSupply{Supplier: w.b.gln, Days: until(left)}, authz.SetOccupancy{Days: until(moved)}, consent,
		authz.SetOptOut{Days: meter.DayRange{From: moved + 3, To: moved + 9}})
	w.fill(busy)

	look := func(e meter.EAN) (client.Access, string) {
		r := w.get(w.a, accessPath(e))
		a := w.accessOf(r)
		s := strings.ReplaceAll(string(r.body), r.header.Get("X-Interaction-Id"), "ID")
		s = strings.ReplaceAll(s, a.DecidedAt.Format(time.RFC3339), "NOW")
		return a, strings.ReplaceAll(s, e.String(), "EAN")
	}
	a, want := look(alone)
	_, got := look(busy)
	if got != want {
		t.Errorf("with others after it:\n%s\nwithout:\n%s", got, want)
	}
	if len(a.Granted) == 0 || len(a.Stored) != 0 {
		t.Errorf("%+v", a)
	}
	for _, g := range a.Granted {
		if day(g.To.String()) > left+1 {
			t.Errorf("granted %+v after the supply ended", g)
		}
	}
	for _, x := range a.Withheld {
		if day(x.To.String()) > left+1 && (x.Reason == client.OPTEDOUT || x.Reason == client.NOTOCCUPIED || x.Reason == client.NOCONSENT) {
			t.Errorf("a reason that tells of the customer after the supply ended: %+v", x)
		}
	}
	// The new supplier learns of the stored days of its own time.
	fresh := w.accessOf(w.get(w.b, accessPath(busy)))
	if len(fresh.Stored) == 0 || len(fresh.Granted) == 0 {
		t.Errorf("%+v", fresh)
	}
	for _, g := range fresh.Granted {
		if day(g.From.String()) < left {
			t.Errorf("granted %+v before the supply began", g)
		}
	}
}

// A revocation counts from the next dry run, as it does for readings.
func TestDryRunAfterRevocation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	k := w.consent(w.a)
	e := w.customer(1, w.a, k)
	has := func() bool {
		a := w.accessOf(w.get(w.a, accessPath(e, "purpose", "ENERGY_MANAGEMENT", "from", w.days().From.String(), "to", w.days().To.String())))
		return slices.ContainsFunc(a.Granted, func(g client.AccessGranted) bool { return g.LegalBasis == "CONSENT" })
	}
	if !has() {
		t.Fatal("no consent to revoke")
	}
	w.legalFile(e, meter.Electricity, authz.RevokeConsent{ID: k.ID})
	if has() {
		t.Error("a revoked consent is promised")
	}
}

// Failures: no record, no answer; a database that fails is said and recorded;
// and the cryptoservers are not missed.
func TestDryRunFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	w.fill(e)
	w.tap.record = func(context.Context, audit.Record, server.Recorder) error { return errFault }
	if r := w.get(w.a, accessPath(e)); r.status != 503 || r.problem(t) != "record-not-written" || strings.Contains(string(r.body), "granted") {
		t.Errorf("no record: %d %s", r.status, r.body)
	}
	w.tap.record = nil
	w.tap.stored = func(context.Context, []authz.Grant, server.Rows) ([]server.StoredRun, error) { return nil, errFault }
	if r := w.get(w.a, accessPath(e)); r.status != 503 || r.problem(t) != "database-unavailable" || r.header.Get("Retry-After") == "" {
		t.Errorf("stored days: %d %s", r.status, r.body)
	}
	if rec := w.lastRecord(); rec.Operation != audit.DryRun || rec.Outcome != audit.Failed {
		t.Errorf("record %+v", rec)
	}
	w.tap.stored = nil
	w.tap.facts = func(context.Context) error { return errFault }
	if r := w.get(w.a, accessPath(e)); r.status != 503 || r.problem(t) != "database-unavailable" {
		t.Errorf("legal file: %d %s", r.status, r.body)
	}
	w.tap.facts = nil
	// Facts that do not verify promise nothing.
	w.sql(`UPDATE legal_file SET file = set_bit(file, 300, 1 - get_bit(file, 300)) WHERE ean = $1`, e.Int64())
	w.tap.taken()
	if r := w.get(w.a, accessPath(e)); r.status != 500 || r.problem(t) != "evidence-invalid" {
		t.Errorf("forged: %d %s", r.status, r.body)
	}
	if calls := w.tap.taken(); calls != "supplier legal-file record" {
		t.Errorf("calls %q", calls)
	}
	if rec := w.lastRecord(); rec.Operation != audit.DryRun || rec.Outcome != audit.Failed || len(rec.Granted) != 0 {
		t.Errorf("record %+v", rec)
	}
}

func TestDryRunParameters(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	before := len(w.records())
	for query, want := range map[string]string{
		"from=2026-03-01":                 "/query/to",
		"to=2026-03-01":                   "/query/from",
		"from=2026-03-01&to=2026-03-01":   "/query/to",
		"from=2026-03-02&to=2026-03-01":   "/query/to",
		"from=2010-01-01&to=2026-01-01":   "/query/to",
		"from=2026-02-30&to=2026-03-01":   "/query/from",
		"from=1969-12-31&to=1970-01-02":   "/query/from",
		"from=&to=":                       "/query/from /query/to",
		"purpose=CURIOSITY":               "/query/purpose",
		"purpose=":                        "/query/purpose",
		"purpose=BILLING&purpose=BILLING": "/query/purpose",
		"secret=1":                        "/query",
		"fields=import_low":               "/query",
		"resolution=P1D&from=2026-01-01&to=x&purpose=secret": "/query /query/purpose /query/to",
	} {
		r := w.get(w.a, "/v1/metering-points/"+e.String()+"/access?"+query)
		var p client.Problem
		if r.problem(t) != "invalid-parameters" || json.Unmarshal(r.body, &p) != nil || p.Errors == nil || strings.Contains(string(r.body), "secret") {
			t.Errorf("%s: %d %s", query, r.status, r.body)
			continue
		}
		var got []string
		for _, f := range *p.Errors {
			got = append(got, f.Pointer)
		}
		slices.Sort(got)
		if fmt.Sprint(got) != "["+want+"]" {
			t.Errorf("%s: %v, want %s", query, got, want)
		}
	}
	if r := w.get(w.a, "/v1/metering-points/"+e.String()[:17]+"x/access"); r.status != 400 || !strings.Contains(string(r.body), "/path/ean") {
		t.Errorf("%d %s", r.status, r.body)
	}
	if got := len(w.records()); got != before {
		t.Errorf("%d records of what was not understood", got-before)
	}
}
