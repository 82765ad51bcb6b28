package server

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

const (
	glnA        = "8712423000018"
	glnB        = "8712423000025"
	glnOperator = "8716867000009"
	agent17     = "https://idp.example#agent-17"
)

func mustGLN(t testing.TB, s string) meter.GLN {
	t.Helper()
	g, err := meter.ParseGLN(s)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func span(t testing.TB, from, to string) meter.DayRange {
	t.Helper()
	d := meter.DayRange{From: mustDay(t, from), To: meter.MaxDay}
	if to != "" {
		d.To = mustDay(t, to)
	}
	return d
}

var (
	consentOfFirst  = [16]byte{1}
	consentOfSecond = [16]byte{2}
	otherOfSecond   = [16]byte{3} // asked for, and not answered
)

// twoCustomers is a metering point whose first customer lived there from 2024 to
// the end of February 2026, and whose second one does since. Each gave a consent.
func twoCustomers(t testing.TB) *authz.LegalFile {
	t.Helper()
	loc := dutch(t).Location()
	var f *authz.LegalFile
	by := authz.Actor{Kind: authz.ByOperator, Name: "registrar"}
	take := func(at string, step authz.Step) {
		t.Helper()
		when, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		if f, err = authz.Apply(f, step, by, when, loc); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(id [16]byte) authz.Step {
		return authz.RequestConsent{ID: id, Supplier: mustGLN(t, glnA), Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
			Granularity: meter.PT15M, Days: span(t, "2024-01-01", ""), ValidUntil: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), Evidence: "form"}
	}
	take("2024-01-01T10:00:00Z", authz.Register{EAN: mustEAN(t, testEAN), Commodity: meter.Electricity})
	take("2024-01-01T10:00:00Z", authz.SetOccupancy{Days: span(t, "2024-01-01", "")})
	take("2024-01-01T10:00:00Z", authz.SetSupply{Supplier: mustGLN(t, glnA), Days: span(t, "2024-01-01", "")})
	supplier, customer := authz.Actor{Kind: authz.BySupplier, Name: glnA}, authz.Actor{Kind: authz.ByCustomer, Name: agent17}
	by = supplier
	take("2024-06-01T10:00:00Z", ask(consentOfFirst))
	by = customer
	take("2024-06-02T10:00:00Z", authz.AcceptConsent{ID: consentOfFirst, Evidence: "call"})
	by = authz.Actor{Kind: authz.ByOperator, Name: "registrar"}
	take("2026-03-01T10:00:00Z", authz.SetOccupancy{Days: span(t, "2026-03-01", "")})
	by = supplier
	take("2026-03-09T12:00:00Z", ask(consentOfSecond))
	take("2026-03-09T12:00:00Z", ask(otherOfSecond))
	by = customer
	take("2026-03-10T10:00:00Z", authz.AcceptConsent{ID: consentOfSecond, Evidence: "call"})
	if n := len(f.Occupancies()); n != 2 {
		t.Fatalf("%d occupancies", n)
	}
	return f
}

// askedByB is the file after another supplier asked the second customer for a
// consent.
func askedByB(t testing.TB, f *authz.LegalFile) *authz.LegalFile {
	t.Helper()
	b := authz.RequestConsent{ID: [16]byte{4}, Supplier: mustGLN(t, glnB), Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
		Granularity: meter.PT15M, Days: span(t, "2024-01-01", ""), ValidUntil: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), Evidence: "form"}
	f, err := authz.Apply(f, b, authz.Actor{Kind: authz.BySupplier, Name: glnB}, time.Date(2026, 3, 11, 10, 0, 0, 0, time.UTC), dutch(t).Location())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// viewOf is what the customer who moved in on the day is shown.
func viewOf(t testing.TB, f *authz.LegalFile, since string, change func(*logParams)) *logView {
	t.Helper()
	p := logParams{ean: testEAN, occupancy: since}
	if change != nil {
		change(&p)
	}
	profile := dutch(t)
	q, errs := p.parse(mediaJSON, profile.Location())
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	o, ok := occupancyOf(f, q, mustDay(t, "2026-05-02"))
	if !ok {
		t.Fatal("no such occupancy")
	}
	return &logView{profile: profile, file: f, asOf: storyNow, occupancy: o, query: q, bounds: pageBounds(q.limit)}
}

// request is a record of readings given.
func request(t testing.TB, at, from, to string) audit.Record {
	t.Helper()
	when, err := time.Parse(time.RFC3339, at)
	if err != nil {
		t.Fatal(err)
	}
	days := span(t, from, to)
	r := audit.Record{
		InteractionID: uuid.NewSHA1(uuid.Nil, []byte(at+from+to)), At: when, Operation: audit.Readings, Supplier: mustGLN(t, glnA), TokenID: [32]byte{7},
		EAN: mustEAN(t, testEAN), Purpose: meter.Billing, Days: days, Fields: []meter.FieldCode{1}, Outcome: audit.Given, FileVersion: 3,
		Granted: []audit.Granted{{Field: 1, Days: meter.NewDaySet(days), Kind: meter.Register, Granularity: meter.P1D, Basis: meter.SupplyDaily, Rule: "nl-daily"}},
	}
	return opened(r, uint32(days.Len()+1))
}

// opened gives a record the receipt of so many blocks.
func opened(r audit.Record, n uint32) audit.Record {
	r.FileVersion = max(1, r.FileVersion)
	rc := envelope.Receipt{
		ServerID: "cryptoserver-1", BootID: [16]byte{1}, Sequence: 1, At: r.At, InteractionID: r.InteractionID, Supplier: r.Supplier, TokenID: r.TokenID,
		EAN: r.EAN, Purpose: r.Purpose, LegalFile: r.LegalFile, FileVersion: r.FileVersion, Profile: r.Profile, Opened: n,
	}
	if r.Employee != "" {
		rc.Employee = envelope.EmployeeDigest(r.TokenID, r.Employee, r.Reason)
	}
	r.Receipt = rc.Encode()
	return r
}

// refusedAs is a record of which nothing came.
func refusedAs(r audit.Record, o audit.Outcome) audit.Record {
	r.Outcome, r.Granted, r.Receipt = o, nil, nil
	if o == audit.NoRelation {
		r.FileVersion = 0
	}
	return r
}

// employee makes it one of an employee's.
func byEmployee(t testing.TB, r audit.Record, op audit.Operation) audit.Record {
	r.Operation, r.Supplier, r.Employee, r.Reason = op, mustGLN(t, glnOperator), agent17, "zaak 4711"
	if op != audit.Readings {
		r.Purpose, r.Days, r.Fields, r.Granted, r.Receipt = 0, meter.DayRange{}, nil, nil, nil
	}
	return r
}

func rowOf(t testing.TB, r audit.Record) LogRow {
	t.Helper()
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return LogRow{Place: LogPlace{At: r.At.Add(3 * time.Millisecond), Interaction: r.InteractionID}, Record: b, Receipt: r.Receipt}
}

func days(e *logEntry) string {
	var out []string
	if e.From != nil {
		out = append(out, "asked "+e.From.String()+" "+e.To.String())
	}
	for _, g := range e.Granted {
		out = append(out, g.From.String()+" "+g.To.String())
	}
	return strings.Join(append(out, fmt.Sprint("opened ", e.Opened)), ", ")
}

// TestWhoseRequest: each customer is shown what concerns days of theirs, cut to
// these, and nothing of the other's.
func TestWhoseRequest(t *testing.T) {
	t.Parallel()
	f := twoCustomers(t)
	first, second := viewOf(t, f, "2024-01-01", nil), viewOf(t, f, "2026-03-01", nil)
	step := func(at string, id [16]byte, o audit.Outcome) audit.Record {
		r := refusedAs(request(t, at, "2026-01-01", "2026-01-02"), o)
		r.Operation, r.Action, r.ConsentID, r.Purpose, r.Days, r.Fields = audit.ConsentStep, authz.ActionRequest, id, meter.EnergyManagement, meter.DayRange{}, nil
		if o == audit.Given {
			r.FileVersion = 3
		}
		return r
	}
	for name, c := range map[string]struct {
		r             audit.Record
		first, second string // "-": not shown
	}{
		"of the first":                 {request(t, "2026-01-10T10:00:00Z", "2026-01-01", "2026-01-05"), "asked 2026-01-01 2026-01-05, 2026-01-01 2026-01-05, opened 5", "-"},
		"of the second":                {request(t, "2026-04-10T10:00:00Z", "2026-04-01", "2026-04-05"), "-", "asked 2026-04-01 2026-04-05, 2026-04-01 2026-04-05, opened 5"},
		"of the first, in the second":  {request(t, "2026-04-10T10:00:00Z", "2026-02-01", "2026-03-01"), "asked 2026-02-01 2026-03-01, 2026-02-01 2026-03-01, opened 29", "-"},
		"of both":                      {request(t, "2026-04-10T10:00:00Z", "2026-02-25", "2026-03-11"), "asked 2026-02-25 2026-03-01, 2026-02-25 2026-03-01, opened 5", "asked 2026-03-01 2026-03-11, 2026-03-01 2026-03-11, opened 11"},
		"of both, little of it there":  {opened(request(t, "2026-04-10T10:00:00Z", "2026-02-25", "2026-03-11"), 2), "asked 2026-02-25 2026-03-01, 2026-02-25 2026-03-01, opened 5", "asked 2026-03-01 2026-03-11, 2026-03-01 2026-03-11, opened 11"},
		"from before either":           {refusedAs(request(t, "2026-04-10T10:00:00Z", "2020-01-01", "2020-02-01"), audit.Withheld), "-", "-"},
		"withheld":                     {refusedAs(request(t, "2026-04-10T10:00:00Z", "2026-02-25", "2026-03-11"), audit.Withheld), "asked 2026-02-25 2026-03-01, opened 0", "asked 2026-03-01 2026-03-11, opened 0"},
		"by a stranger":                {refusedAs(request(t, "2026-04-10T10:00:00Z", "2026-01-01", "2026-01-02"), audit.NoRelation), "asked 2026-01-01 2026-01-02, opened 0", "-"},
		"of the second, before":        {refusedAs(request(t, "2026-02-10T10:00:00Z", "2026-03-01", "2026-03-02"), audit.Withheld), "-", "asked 2026-03-01 2026-03-02, opened 0"},
		"a step of the first's":        {step("2026-01-10T10:00:00Z", consentOfFirst, audit.Given), "opened 0", "-"},
		"the first's, in the second":   {step("2026-04-10T10:00:00Z", consentOfFirst, audit.Refused), "opened 0", "-"},
		"a step of the second's":       {step("2026-04-10T10:00:00Z", consentOfSecond, audit.Given), "-", "opened 0"},
		"a step of none, in the first": {step("2026-01-10T10:00:00Z", [16]byte{9}, audit.Refused), "opened 0", "-"},
		// Local midnight is 23:00Z the day before.
		"a step of none, on the last evening":   {step("2026-02-28T22:59:59Z", [16]byte{9}, audit.Refused), "opened 0", "-"},
		"a step of none, on the first morning":  {step("2026-02-28T23:00:00Z", [16]byte{9}, audit.Refused), "-", "opened 0"},
		"a look at consents":                    {byEmployee(t, request(t, "2026-04-10T10:00:00Z", "2026-01-01", "2026-01-02"), audit.Consents), "-", "opened 0"},
		"a dry run by its days, not its moment": {dryRunOf(t, "2026-04-10T10:00:00Z", "2026-01-01", "2026-02-01"), "asked 2026-01-01 2026-02-01, 2026-01-01 2026-02-01, opened 0", "-"},
		"an access log of the first's": {func() audit.Record {
			r := byEmployee(t, request(t, "2026-04-10T10:00:00Z", "2026-01-01", "2026-01-02"), audit.AccessLog)
			r.Days = span(t, "2024-01-01", "2026-03-01")
			return r
		}(), "opened 0", "-"},
		"an access log refused": {refusedAs(byEmployee(t, request(t, "2026-04-10T10:00:00Z", "2026-01-01", "2026-01-02"), audit.AccessLog), audit.Refused), "-", "opened 0"},
		"failed after opening": {func() audit.Record {
			r := request(t, "2026-04-10T10:00:00Z", "2026-02-25", "2026-03-11")
			r.Outcome = audit.Failed
			return r
		}(), "asked 2026-02-25 2026-03-01, opened 5", "asked 2026-03-01 2026-03-11, opened 11"},
	} {
		row := rowOf(t, c.r)
		for who, x := range map[string]struct {
			v    *logView
			want string
		}{"first": {first, c.first}, "second": {second, c.second}} {
			e, shown, err := x.v.entry(&row)
			got := "-"
			if shown {
				got = days(&e)
			}
			if err != nil || got != x.want {
				t.Errorf("%s: the %s customer is shown %q, %v; want %q", name, who, got, err, x.want)
			}
		}
	}
}

// Why days were withheld is told of the customer's days only, and of nothing
// that failed.
func TestWithheldOfOneCustomer(t *testing.T) {
	t.Parallel()
	f := twoCustomers(t)
	r := refusedAs(request(t, "2026-04-10T10:00:00Z", "2026-02-25", "2026-03-11"), audit.Withheld)
	r.Withheld = []authz.Withheld{
		{Field: 1, Days: span(t, "2026-02-25", "2026-02-27"), Reason: meter.NoSupply},
		{Field: 1, Days: span(t, "2026-02-27", "2026-03-11"), Reason: meter.OptedOut},
		{Field: 2, Days: span(t, "2026-03-01", "2026-03-11"), Reason: meter.NoConsent},
	}
	for since, want := range map[string]string{
		"2024-01-01": "1 2026-02-25 2026-02-27 NO_SUPPLY, 1 2026-02-27 2026-03-01 OPTED_OUT",
		"2026-03-01": "1 2026-03-01 2026-03-11 OPTED_OUT, 2 2026-03-01 2026-03-11 NO_CONSENT",
	} {
		v, row := viewOf(t, f, since, nil), rowOf(t, r)
		e, _, err := v.entry(&row)
		var got []string
		for _, h := range e.Withheld {
			field, _ := v.profile.Field(h.Field)
			got = append(got, fmt.Sprint(uint16(field.Code), " ", h.From, " ", h.To, " ", h.Reason))
		}
		if err != nil || strings.Join(got, ", ") != want {
			t.Errorf("since %s: %s, %v; want %s", since, strings.Join(got, ", "), err, want)
		}
		failed := r
		failed.Outcome = audit.Failed // to open what was granted
		failed.Granted = []audit.Granted{{Field: 3, Days: meter.NewDaySet(r.Days), Kind: meter.Register, Granularity: meter.P1D, Basis: meter.SupplyDaily, Rule: "nl-daily"}}
		row = rowOf(t, failed)
		if e, _, err := v.entry(&row); err != nil || e.Withheld == nil || len(e.Withheld)+len(e.reasons) > 0 {
			t.Errorf("%+v, %v", e, err)
		}
	}
}

func dryRunOf(t testing.TB, at, from, to string) audit.Record {
	r := request(t, at, from, to)
	r.Operation, r.Purpose, r.Receipt = audit.DryRun, 0, nil
	return r
}

// Whatever is asked for and granted, a customer is shown no day of another's,
// and of two customers together every day of theirs.
func TestNoDayOfAnother(t *testing.T) {
	t.Parallel()
	f := twoCustomers(t)
	views := []*logView{viewOf(t, f, "2024-01-01", nil), viewOf(t, f, "2026-03-01", nil)}
	rapid.Check(t, func(rt *rapid.T) {
		day := rapid.Custom(func(rt *rapid.T) meter.DayRange {
			from := mustDay(t, "2023-12-01") + meter.Day(rapid.IntRange(0, 1000).Draw(rt, "from"))
			return meter.DayRange{From: from, To: from + meter.Day(rapid.IntRange(1, 60).Draw(rt, "days"))}
		})
		asked := day.Draw(rt, "asked")
		r := request(t, "2026-04-10T10:00:00Z", asked.From.String(), asked.To.String())
		r.Granted = nil
		for range rapid.IntRange(0, 3).Draw(rt, "items") {
			set := meter.NewDaySet(rapid.SliceOfN(day, 1, 4).Draw(rt, "runs")...).Intersect(meter.NewDaySet(asked))
			if !set.Empty() {
				r.Granted = append(r.Granted, audit.Granted{Field: meter.FieldCode(rapid.IntRange(1, 2).Draw(rt, "field")), Days: set, Kind: meter.Register,
					Granularity: meter.P1D, Basis: meter.SupplyDaily, Rule: "nl-daily"})
			}
		}
		row := rowOf(t, r)
		shown := meter.DaySet{}
		for _, v := range views {
			e, concerned, err := v.entry(&row)
			if err != nil {
				rt.Fatal(err)
			}
			if !concerned {
				if !asked.Intersect(v.occupancy.Days).Empty() {
					rt.Fatal("not shown to whom it concerns")
				}
				continue
			}
			for _, g := range e.Granted {
				run := meter.DayRange{From: meter.DayFromDate(g.From.Date()), To: meter.DayFromDate(g.To.Date())}
				if run.Empty() || run.Intersect(v.occupancy.Days) != run {
					rt.Fatalf("%v shown to the customer of %v", run, v.occupancy.Days)
				}
				shown = shown.Union(meter.NewDaySet(run))
			}
		}
		want := meter.DaySet{}
		for _, g := range r.Granted {
			want = want.Union(g.Days)
		}
		if want = want.Intersect(meter.NewDaySet(span(t, "2024-01-01", ""))); !want.Equal(shown) {
			rt.Fatalf("granted %v, shown %v", want.Ranges(), shown.Ranges())
		}
	})
}

// TestUnreadable: a row that is not what a gateway recorded is not shown as if
// it were, and not passed over.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	f := twoCustomers(t)
	good := request(t, "2026-04-10T10:00:00Z", "2026-04-01", "2026-04-05")
	other := request(t, "2026-04-11T10:00:00Z", "2026-04-01", "2026-04-05")
	encode := func(r audit.Record) []byte { return rowOf(t, r).Record }
	for name, change := range map[string]func(*LogRow){
		"bytes":           func(r *LogRow) { r.Record = []byte("?") },
		"nothing":         func(r *LogRow) { r.Record = nil },
		"cut":             func(r *LogRow) { r.Record = r.Record[:len(r.Record)-1] },
		"another's":       func(r *LogRow) { r.Record, r.Receipt = rowOf(t, other).Record, other.Receipt },
		"no receipt":      func(r *LogRow) { r.Receipt = nil },
		"another receipt": func(r *LogRow) { r.Receipt = other.Receipt },
		"receipt is junk": func(r *LogRow) { x := good; x.Receipt = []byte("junk"); r.Record, r.Receipt = encode(x), x.Receipt },
		"other's receipt": func(r *LogRow) { x := good; x.Receipt = other.Receipt; r.Record, r.Receipt = encode(x), x.Receipt },
		"receipt, EAN": func(r *LogRow) {
			x := withReceipt(good, func(c *envelope.Receipt) { c.EAN = mustEAN(t, "871687140000000026") })
			*r = rowOf(t, x)
		},
		"receipt, caller": func(r *LogRow) {
			*r = rowOf(t, withReceipt(good, func(c *envelope.Receipt) { c.Supplier = mustGLN(t, glnB) }))
		},
		"receipt, token": func(r *LogRow) { *r = rowOf(t, withReceipt(good, func(c *envelope.Receipt) { c.TokenID[0]++ })) },
		"receipt, purpose": func(r *LogRow) {
			*r = rowOf(t, withReceipt(good, func(c *envelope.Receipt) { c.Purpose = meter.Move }))
		},
		"metering point": func(r *LogRow) { x := good; x.EAN = mustEAN(t, "871687140000000026"); *r = rowOf(t, opened(x, 5)) },
		"list": func(r *LogRow) {
			*r = rowOf(t, audit.Record{InteractionID: good.InteractionID, At: good.At, Operation: audit.List, Supplier: good.Supplier, Outcome: audit.Given})
		},
		"unknown field": func(r *LogRow) {
			x := good
			x.Granted = changed(x.Granted, func(g *audit.Granted) { g.Field = 250 })
			*r = rowOf(t, x)
		},
		"unknown basis": func(r *LogRow) {
			x := good
			x.Granted = changed(x.Granted, func(g *audit.Granted) { g.Basis = 99 })
			*r = rowOf(t, x)
		},
		"unknown field withheld": func(r *LogRow) {
			x := good
			x.Withheld = []authz.Withheld{{Field: 250, Days: x.Days, Reason: meter.NoConsent}}
			*r = rowOf(t, x)
		},
		"unknown reason": func(r *LogRow) {
			x := good
			x.Withheld = []authz.Withheld{{Field: 1, Days: x.Days, Reason: 99}}
			*r = rowOf(t, x)
		},
		"unknown granularity": func(r *LogRow) {
			x := good
			x.Granted = changed(x.Granted, func(g *audit.Granted) { g.Granularity = 99 })
			*r = rowOf(t, x)
		},
	} {
		v := viewOf(t, f, "2026-03-01", nil)
		row := rowOf(t, good)
		change(&row)
		row.Place.Interaction = good.InteractionID
		err := v.collect(t.Context(), fakeLog{rowOf(t, other), row})
		if err != nil || len(v.entries) != 1 || !slices.Equal(v.unreadable, []uuid.UUID{good.InteractionID}) {
			t.Errorf("%s: %d entries, unreadable %v, %v", name, len(v.entries), v.unreadable, err)
		}
		d, err := v.json(uuid.UUID{1}, nil)
		if err != nil || !strings.Contains(string(d.body), `"unreadable":["`+uuid.UUID(good.InteractionID).String()+`"]`) {
			t.Errorf("%s: %s, %v", name, d.body, err)
		}
	}
}

func changed(g []audit.Granted, change func(*audit.Granted)) []audit.Granted {
	g = slices.Clone(g)
	change(&g[0])
	return g
}

func withReceipt(r audit.Record, change func(*envelope.Receipt)) audit.Record {
	rc, err := envelope.ParseReceipt(r.Receipt)
	if err != nil {
		panic(err)
	}
	change(&rc)
	r.Receipt = rc.Encode()
	return r
}

// fakeLog is an access log in memory, latest first.
type fakeLog []LogRow

func (l fakeLog) AccessLog(_ context.Context, _ meter.EAN, after LogPlace, since time.Time, limit int) ([]LogRow, bool, error) {
	var out []LogRow
	for _, r := range l[sort.Search(len(l), func(i int) bool { return !l[i].Place.At.After(after.At) }):] {
		if r.Place.At.Before(since) {
			break
		}
		if r.Place.At.Equal(after.At) && bytes.Compare(r.Place.Interaction[:], after.Interaction[:]) <= 0 {
			continue
		}
		if len(out) == limit {
			return out, true, nil
		}
		out = append(out, r)
	}
	return out, false, nil
}

func (fakeLog) Suppliers(context.Context, []meter.GLN) (map[meter.GLN][]byte, error) { return nil, nil }

// manyRows are n requests, one a minute; every third is the other customer's.
func manyRows(t testing.TB, n int) fakeLog {
	var log fakeLog
	base := request(t, "2026-04-10T10:00:00Z", "2026-04-01", "2026-04-05")
	foreign := request(t, "2026-04-10T10:00:00Z", "2026-01-01", "2026-01-05")
	for i := range n {
		r := base
		if i%3 == 2 {
			r = foreign
		}
		r.At = base.At.Add(-time.Duration(i) * time.Minute)
		r.InteractionID = uuid.NewSHA1(uuid.Nil, fmt.Append(nil, i))
		log = append(log, rowOf(t, opened(r, 5)))
	}
	return log
}

// TestPages: page by page each request comes once, in order, also while new
// ones are recorded.
func TestPages(t *testing.T) {
	t.Parallel()
	f := twoCustomers(t)
	log := manyRows(t, 1700)
	var want []uuid.UUID
	for i, r := range log {
		if i%3 != 2 {
			want = append(want, r.Place.Interaction)
		}
	}
	for _, limit := range []string{"10", "333", "1000"} {
		current := slices.Clone(log)
		var got []uuid.UUID
		cursor := ""
		for pages := 0; ; pages++ {
			v := viewOf(t, f, "2026-03-01", func(p *logParams) { p.limit, p.cursor = limit, cursor })
			if err := v.collect(t.Context(), current); err != nil {
				t.Fatal(err)
			}
			if len(v.entries) > v.query.limit {
				t.Fatalf("%d entries in a page of %s", len(v.entries), limit)
			}
			for _, e := range v.entries {
				got = append(got, e.InteractionId)
			}
			if v.next == nil {
				break
			}
			cursor = encodeLogCursor(*v.next)
			next := request(t, "2026-04-12T10:00:00Z", "2026-04-01", "2026-04-05")
			next.At = next.At.Add(time.Duration(pages) * time.Second)
			next.InteractionID = uuid.NewSHA1(uuid.Nil, fmt.Append(nil, "new", pages))
			current = append(fakeLog{rowOf(t, opened(next, 5))}, current...)
		}
		if !slices.Equal(got, want) {
			t.Errorf("by %s: %d requests, want %d", limit, len(got), len(want))
		}
	}
}

// TestLogBounds: no answer looks at more, or holds more, than it may, and the
// next one goes on where it stopped.
func TestLogBounds(t *testing.T) {
	t.Parallel()
	f := twoCustomers(t)
	log := manyRows(t, 30)
	for name, b := range map[string]logBounds{
		"entries": {7, 0, 1000, 1000}, "rows": {1000, 0, 9, 1000}, "runs": {1000, 0, 1000, 5}, "one of each": {1, 0, 1, 1},
		"reads": {7, 9, 1000, 1000}, "one of each, folded": {1, 1, 1, 1},
	} {
		seen, after := 0, LogPlace{At: forever}
		for n := 0; ; n++ {
			v := viewOf(t, f, "2026-03-01", nil)
			v.bounds, v.query.after = b, after
			if err := v.collect(t.Context(), log); err != nil {
				t.Fatal(err)
			}
			seen += len(v.entries)
			if len(v.entries) > b.entries || len(v.entries) > b.rows || len(v.entries) > b.runs || n > 100 {
				t.Fatalf("%s: %d entries", name, len(v.entries))
			}
			if v.next == nil {
				break
			}
			after = *v.next
		}
		if seen != 20 {
			t.Errorf("%s: %d requests of 20", name, seen)
		}
	}
}

// Requests of days are those decided on them, by local time, whenever they were
// recorded; of a supplier, those its record names.
func TestLogFilters(t *testing.T) {
	t.Parallel()
	f := twoCustomers(t)
	at := func(s string, recorded time.Duration) LogRow {
		r := rowOf(t, request(t, s, "2026-04-01", "2026-04-05"))
		r.Place.At = r.Place.At.Add(recorded)
		return r
	}
	foreign := refusedAs(request(t, "2026-04-10T12:00:00Z", "2026-04-01", "2026-04-05"), audit.NoRelation)
	foreign.Supplier = mustGLN(t, glnB)
	log := fakeLog{
		at("2026-04-10T22:00:00Z", 0),           // midnight: the 11th
		at("2026-04-10T21:59:59Z", time.Minute), // the 10th, recorded on the 11th
		rowOf(t, foreign),
		at("2026-04-09T22:00:00Z", -time.Minute), // the 10th, by a clock that is ahead
		at("2026-04-09T21:59:59Z", 0),
	}
	for name, c := range map[string]struct {
		change func(*logParams)
		want   []int
	}{
		"all":             {nil, []int{0, 1, 2, 3, 4}},
		"the 10th":        {func(p *logParams) { p.from, p.to = "2026-04-10", "2026-04-11" }, []int{1, 2, 3}},
		"from the 10th":   {func(p *logParams) { p.from = "2026-04-10" }, []int{0, 1, 2, 3}},
		"before the 10th": {func(p *logParams) { p.to = "2026-04-10" }, []int{4}},
		"the other":       {func(p *logParams) { p.supplier = glnB }, []int{2}},
		"nobody":          {func(p *logParams) { p.supplier = glnOperator }, nil},
	} {
		v := viewOf(t, f, "2026-03-01", c.change)
		if err := v.collect(t.Context(), log); err != nil {
			t.Fatal(err)
		}
		var got []int
		for _, e := range v.entries {
			got = append(got, slices.IndexFunc(log, func(r LogRow) bool { return r.Place.Interaction == e.InteractionId }))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestOccupancyChosen(t *testing.T) {
	t.Parallel()
	f := twoCustomers(t)
	for said, want := range map[string]string{"": "2026-03-01", "2026-03-01": "2026-03-01", "2024-01-01": "2024-01-01", "2024-01-02": "", "2023-12-31": "", "2026-02-28": ""} {
		q, errs := logParams{ean: testEAN, occupancy: said}.parse(mediaJSON, time.UTC)
		o, ok := occupancyOf(f, q, mustDay(t, "2026-05-02"))
		if len(errs) > 0 || ok != (want != "") || ok && o.Days.From.String() != want {
			t.Errorf("%q: %v %v %v", said, o, ok, errs)
		}
	}
	if _, ok := occupancyOf(f, logQuery{}, mustDay(t, "2023-12-31")); ok {
		t.Error("somebody lived there before the first")
	}
}

func TestLogParameters(t *testing.T) {
	t.Parallel()
	cursor := encodeLogCursor(LogPlace{At: time.Unix(1, 0)})
	for name, c := range map[string]struct {
		media string
		p     logParams
		want  string
	}{
		"nothing said":     {mediaJSON, logParams{}, ""},
		"all of it":        {mediaJSON, logParams{from: "2026-01-01", to: "2026-02-01", occupancy: "2024-01-01", supplier: glnA, lang: "nl", cursor: cursor, limit: "10"}, ""},
		"reversed":         {mediaJSON, logParams{from: "2026-02-01", to: "2026-02-01"}, "/query/to"},
		"days":             {mediaHTML, logParams{from: "2026-02-30", to: "x", occupancy: "1969-12-31"}, "/query/from /query/occupancy /query/to"},
		"others":           {mediaJSON, logParams{supplier: "1", lang: "de", cursor: "AQ", limit: "9"}, "/query/cursor /query/lang /query/limit /query/supplier"},
		"limit too high":   {mediaJSON, logParams{limit: "1001"}, "/query/limit"},
		"limit no number":  {mediaJSON, logParams{limit: "x"}, "/query/limit"},
		"cursor of a list": {mediaJSON, logParams{cursor: mustOf(t, testCursors(t, 1), cursorList, cursorCaller, [32]byte{}).seal(listState(mustEAN(t, testEAN)), cursorTime)}, "/query/cursor"},
		"pages of a table": {mediaCSV, logParams{cursor: cursor, limit: "10"}, "/query/limit"},
		"pages of a page":  {mediaHTML, logParams{limit: "10"}, "/query/limit"},
		"table, cursor":    {mediaCSV, logParams{cursor: cursor}, ""},
		"page, cursor":     {mediaHTML, logParams{cursor: cursor, to: "2026-01-01"}, ""},
		"page, no cursor":  {mediaHTML, logParams{cursor: "AQ"}, "/query/cursor"},
	} {
		c.p.ean = testEAN
		_, errs := c.p.parse(c.media, time.UTC)
		var got []string
		for _, e := range errs {
			got = append(got, e.Pointer)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v", name, errs)
		}
	}
	if _, errs := (logParams{ean: "1"}).parse(mediaJSON, time.UTC); len(errs) != 1 || errs[0].Pointer != "/path/ean" {
		t.Errorf("%v", errs)
	}
}

func FuzzLogCursor(f *testing.F) {
	f.Add(encodeLogCursor(LogPlace{At: time.Unix(1, 0), Interaction: [16]byte{1}}))
	f.Add(encodeLogCursor(LogPlace{At: forever}))
	f.Add("AQ")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := decodeLogCursor(s)
		if err != nil {
			if !errors.Is(err, errCursor) {
				t.Fatal(err)
			}
			return
		}
		if encodeLogCursor(p) != s || p.At.Before(time.Unix(0, 0)) || p.At.After(forever) {
			t.Fatalf("%q is %+v", s, p)
		}
	})
}

// TestLogCursorGolden: links that clients keep go on working.
func TestLogCursorGolden(t *testing.T) {
	t.Parallel()
	p := LogPlace{At: time.Date(2026, 5, 2, 9, 30, 0, 123456000, time.UTC), Interaction: [16]byte{1, 15: 2}}
	const want = "AQAGUNJXaRhAAQAAAAAAAAAAAAAAAAAAAg"
	if got := encodeLogCursor(p); got != want {
		t.Errorf("%s", got)
	}
	if back, err := decodeLogCursor(want); err != nil || back != p {
		t.Errorf("%+v, %v", back, err)
	}
}

// FuzzDefused: no cell, however made, begins a formula or holds a control
// character, and a cell of plain words stays as it is.
func FuzzDefused(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, cell string) {
		got := defused(cell)
		if regexp.MustCompile(`^[\s"]*[=+@|%＝＋－＠-]`).MatchString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("%q becomes %q", cell, got)
		}
		if regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 .:_=+-]*$`).MatchString(cell) && got != cell {
			t.Fatalf("%q becomes %q", cell, got)
		}
	})
}

// storyLog are the requests of the golden statements, latest first.
func storyLog(t testing.TB) fakeLog {
	t.Helper()
	code := func(name string) meter.FieldCode {
		f, ok := dutch(t).Field(name)
		if !ok {
			t.Fatal(name)
		}
		return f.Code
	}
	daily := request(t, "2026-04-30T04:15:00Z", "2026-04-01", "2026-04-30")
	registers := func(r audit.Record) audit.Record {
		g := r.Granted[0]
		r.Granted = nil
		for _, name := range []string{"import_low", "import_normal", "export_low", "export_normal"} {
			g.Field = code(name)
			r.Granted = append(r.Granted, g)
		}
		return opened(r, 120)
	}
	quarters := request(t, "2026-05-01T18:30:00Z", "2026-04-29", "2026-05-01")
	quarters.Purpose, quarters.Outcome = meter.EnergyManagement, audit.Partly
	quarters.Granted = []audit.Granted{
		{Field: code("import_intervals"), Days: meter.NewDaySet(span(t, "2026-04-29", "2026-04-30")), Kind: meter.Consumption, Granularity: meter.PT15M, Basis: meter.Consent, Rule: "nl-consent-intervals"},
	}
	quarters.Withheld = []authz.Withheld{
		{Field: code("import_intervals"), Days: span(t, "2026-04-30", "2026-05-01"), Reason: meter.PeriodInFuture},
		{Field: code("export_intervals"), Days: span(t, "2026-04-29", "2026-05-01"), Reason: meter.NoConsent},
	}
	quarters = opened(quarters, 1)
	// A supplier that asks for nothing it may have, again and again.
	var noise []LogRow
	for i := range 5 {
		r := refusedAs(request(t, fmt.Sprintf("2026-04-21T%02d:10:00Z", 20-3*i), "2026-03-01", fmt.Sprintf("2026-04-%02d", 20-i)), audit.NoRelation)
		r.Supplier = mustGLN(t, glnB)
		noise = append(noise, rowOf(t, r))
	}
	less := refusedAs(request(t, "2026-04-11T14:05:00Z", "2026-02-20", "2026-04-01"), audit.Withheld)
	less.Withheld = []authz.Withheld{
		{Field: code("import_low"), Days: span(t, "2026-02-20", "2026-04-01"), Reason: meter.OptedOut},
		{Field: code("import_normal"), Days: span(t, "2026-02-20", "2026-04-01"), Reason: meter.OptedOut},
	}
	moved := request(t, "2026-03-05T08:00:00Z", "2026-02-20", "2026-03-05")
	moved.Purpose = meter.Move
	moved.Granted[0].Basis, moved.Granted[0].Rule = meter.MoveBasis, "nl-move"
	moved.Granted[0].Days = meter.NewDaySet(span(t, "2026-03-01", "2026-03-02"))
	moved = opened(moved, 2)
	stranger := refusedAs(request(t, "2026-04-12T14:05:00Z", "2026-03-01", "2026-04-01"), audit.NoRelation)
	stranger.Supplier = mustGLN(t, glnB)
	asked := refusedAs(request(t, "2026-03-09T12:00:00Z", "2026-01-01", "2026-01-02"), audit.Given)
	asked.Operation, asked.Action, asked.ConsentID, asked.Purpose, asked.Days, asked.Fields, asked.FileVersion =
		audit.ConsentStep, authz.ActionRequest, consentOfSecond, meter.EnergyManagement, meter.DayRange{}, nil, 5
	yes := byEmployee(t, request(t, "2026-03-10T10:00:00Z", "2026-01-01", "2026-01-02"), audit.ConsentStep)
	yes.Action, yes.ConsentID, yes.Purpose, yes.FileVersion = authz.ActionGrant, consentOfSecond, meter.EnergyManagement, 6
	no := byEmployee(t, refusedAs(request(t, "2026-03-10T11:00:00Z", "2026-01-01", "2026-01-02"), audit.Refused), audit.ConsentStep)
	no.Action, no.ConsentID, no.Purpose, no.FileVersion = authz.ActionRevoke, consentOfSecond, meter.EnergyManagement, 6
	look := byEmployee(t, request(t, "2026-05-01T19:00:00Z", "2026-01-01", "2026-01-02"), audit.AccessLog)
	look.Days = span(t, "2026-03-01", "")
	failed := refusedAs(request(t, "2026-04-02T10:00:00Z", "2026-04-01", "2026-04-02"), audit.Failed)
	served := byEmployee(t, request(t, "2026-04-20T09:00:00Z", "2026-04-01", "2026-04-15"), audit.Readings)
	served.Purpose = meter.CustomerService
	served.Granted[0].Basis, served.Granted[0].Rule = meter.CustomerServiceBasis, "nl-customer-service"
	served = opened(served, 15)
	// DST ends: 02:30 twice.
	log := slices.Concat(fakeLog{rowOf(t, look), rowOf(t, quarters), rowOf(t, registers(daily))}, noise, fakeLog{
		rowOf(t, served), rowOf(t, stranger), rowOf(t, less),
		rowOf(t, dryRunOf(t, "2026-04-03T09:00:00Z", "2026-03-15", "2026-04-03")), rowOf(t, failed), rowOf(t, no), rowOf(t, yes), rowOf(t, asked), rowOf(t, moved),
		rowOf(t, request(t, "2026-01-10T10:00:00Z", "2026-01-01", "2026-01-05")), // the other customer's
	})
	return log
}

// named gives the callers names, as nameCallers does.
func named(v *logView, names map[string]string) {
	for i := range v.entries {
		if n, ok := names[v.entries[i].Caller.Gln]; ok {
			v.entries[i].Caller.Name = &n
		}
	}
}

var (
	storyNames = map[string]string{glnA: "Voorbeeld Energie", glnB: "Ander Licht & Warmte", glnOperator: "Netbeheer Midden"}
	storyNow   = time.Date(2026, 5, 2, 9, 30, 0, 0, time.UTC)
	storyID    = uuid.MustParse("019acf2e-8a51-7b0c-9d4e-0f6a1c2b3d4e")
)

func storyView(t testing.TB, change func(*logParams)) *logView {
	v := viewOf(t, twoCustomers(t), "2026-03-01", change)
	v.bounds = statementBounds()
	if err := v.collect(t.Context(), storyLog(t)); err != nil {
		t.Fatal(err)
	}
	named(v, storyNames)
	return v
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs from what is rendered (go test ./server -update, and look at it):\n%s", path, got)
	}
}

// TestStatementEntry: what was not done does not read as done, and one time is
// said once.
func TestStatementEntry(t *testing.T) {
	t.Parallel()
	step := openapi.AccessLogEntryStepGRANT
	amsterdam := dutch(t).Location()
	for _, c := range []struct {
		lang          string
		operation     openapi.AccessLogEntryOperation
		step          *openapi.AccessLogEntryStep
		outcome       openapi.AccessLogEntryOutcome
		asked, result string
	}{
		{"nl", openapi.CONSENTSTEP, &step, openapi.GIVEN, "Uw ja op een verzoek om toestemming vastgelegd", "Gedaan"},
		{"nl", openapi.CONSENTSTEP, &step, openapi.REFUSED, "Poging om uw ja op een verzoek om toestemming vast te leggen", "Niet gedaan: geweigerd"},
		{"en", openapi.CONSENTSTEP, &step, openapi.FAILED, "Tried to record your yes to a request for consent", "Not done: failed"},
		{"en", openapi.CONSENTS, nil, openapi.REFUSED, "Tried to look at consents", "Not done: refused"},
		{"en", openapi.READINGS, nil, openapi.REFUSED, "Meter readings", "Refused"},
	} {
		e := logEntry{requests: 1}
		e.Operation, e.Step, e.Outcome, e.At = c.operation, c.step, c.outcome, storyNow
		if got := words[c.lang].entry(&e, amsterdam); got.Asked != c.asked || got.Result != c.result || got.Time != "11:30" {
			t.Errorf("%s, %s, %s", got.Asked, got.Result, got.Time)
		}
	}
	for first, want := range map[time.Duration]string{
		20 * time.Second: "11:30", time.Minute: "11:29–11:30",
	} {
		e := logEntry{requests: 2, first: storyNow.Add(30*time.Second - first)}
		e.Operation, e.Outcome, e.At = openapi.READINGS, openapi.REFUSED, storyNow.Add(30*time.Second)
		if got := wordsNL.entry(&e, amsterdam); got.Time != want {
			t.Errorf("%s after the first: %s", first, got.Time)
		}
	}
	// The hour that comes twice.
	e := logEntry{requests: 2, first: time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC)}
	e.Operation, e.Outcome, e.At = openapi.READINGS, openapi.REFUSED, e.first.Add(time.Hour)
	if got := wordsNL.entry(&e, amsterdam); got.Time != "02:30–02:30" {
		t.Error(got.Time)
	}
}

// TestStatementGolden fixes what customers get, in each language.
func TestStatementGolden(t *testing.T) {
	t.Parallel()
	for _, lang := range []string{"nl", "en"} {
		v := storyView(t, func(p *logParams) { p.lang = lang })
		if len(v.entries) != 13 {
			t.Errorf("%d entries", len(v.entries))
		}
		d, err := v.html("Netbeheer Midden", mustGLN(t, glnOperator), storyID, storyNow, nil)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "statement."+lang+".golden.html", d.body)
		if d.header["Content-Language"] != lang || d.header["Link"] != "" {
			t.Errorf("%v", d.header)
		}
	}
	v := storyView(t, func(p *logParams) { p.from, p.to, p.supplier = "2026-04-01", "2026-05-01", glnA })
	v.query.sent.cursor, v.query.after.At = "AQ", time.Date(2026, 4, 30, 21, 59, 0, 0, time.UTC)
	v.unreadable = []uuid.UUID{{1}}
	d, err := v.html("Netbeheer Midden", mustGLN(t, glnOperator), storyID, storyNow, &rest{time.Date(2026, 4, 2, 9, 30, 0, 0, time.UTC), "AQAGUNJX", "https://api.test/x?a=1&b=2"})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "statement.cut.golden.html", d.body)
	if d.header["Link"] != `<https://api.test/x?a=1&b=2>; rel="next"` {
		t.Errorf("%v", d.header)
	}
	v.entries = nil
	if d, err = v.html("x", mustGLN(t, glnOperator), storyID, storyNow, &rest{}); err != nil || strings.Contains(string(d.body), wordsEN.Nobody) ||
		!strings.Contains(string(d.body), wordsEN.NobodyHere) {
		t.Errorf("%s, %v", d.body, err)
	}
	empty := viewOf(t, twoCustomers(t), "2024-01-01", func(p *logParams) { p.lang = "nl" })
	if d, err = empty.html("Netbeheer Midden", mustGLN(t, glnOperator), storyID, storyNow, nil); err != nil || !strings.Contains(string(d.body), wordsNL.Nobody) ||
		!strings.Contains(string(d.body), "1 januari 2024 t/m 28 februari 2026") {
		t.Errorf("%s, %v", d.body, err)
	}
}

// hostile are names and reasons that must stay text.
var hostile = []string{
	`</td><script>alert(1)</script>`, `<img src=x onerror=alert(1)>`, `"><svg/onload=alert(1)>`, `javascript:alert(1)`, `{{.W.Title}}`, `</style><b>`, `--></title>`,
	`=HYPERLINK("http://x")`, `+1+1`, `-2+3`, `@SUM(A1)`, " =1", `"=1"`, "'=1", "＝1", "|calc", "%0A", `a,"b";c`, "\u202egnirts", "\t=1", "a\r\n=b", "\x00=1", "\ufeff=1", "שלום",
}

// TestHostileWords: whatever a party or an employee is called, and whatever the
// reason is, the page runs nothing, and no cell is a formula.
func TestHostileWords(t *testing.T) {
	t.Parallel()
	for _, word := range hostile {
		v := storyView(t, func(p *logParams) { p.supplier = glnOperator })
		named(v, map[string]string{glnOperator: word})
		for i := range v.entries {
			v.entries[i].Caller.Employee, v.entries[i].Caller.Reason = &word, &word
		}
		d, err := v.html(word, mustGLN(t, glnOperator), storyID, storyNow, &rest{storyNow, "AQ", "https://api.test"})
		if err != nil {
			t.Fatal(err)
		}
		page := string(d.body)
		for _, bad := range []string{"<script", "<img", "<svg", "onerror=alert(1)>", "<b>", "<a ", " style=", " href"} {
			if strings.Contains(page, bad) {
				t.Errorf("%q: the page holds %q", word, bad)
			}
		}
		if n := strings.Count(page, "<style>"); n != 1 || strings.Count(page, "<title>") != 1 || strings.Count(page, "</title>") != 1 {
			t.Errorf("%q: another page", word)
		}
		c, err := v.csv(storyNow, nil)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := csv.NewReader(bytes.NewReader(c.body)).ReadAll()
		if err != nil {
			t.Fatalf("%q: %v", word, err)
		}
		for _, cell := range slices.Concat(lines...) {
			if strings.ContainsAny(cell, "\x00\t\r\n\u202e\ufeff") || regexp.MustCompile(`^[\s"]*[=+@|%＝-]`).MatchString(cell) {
				t.Errorf("%q: a cell %q", word, cell)
			}
		}
	}
}

// TestPolicy: the style in the page is the only one the policy allows, and
// nothing else is loaded or run.
func TestPolicy(t *testing.T) {
	t.Parallel()
	d, err := storyView(t, nil).html("x", mustGLN(t, glnOperator), storyID, storyNow, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?s)<style>(.*?)</style>`).FindSubmatch(d.body)
	if m == nil {
		t.Fatal("no style")
	}
	want := "default-src 'none'; style-src 'sha256-" + styleHash(string(m[1])) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	if got := d.header["Content-Security-Policy"]; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	for _, bad := range []string{"url(", "@import", "http:", "https:", "<link", "expression"} {
		if bytes.Contains(d.body, []byte(bad)) {
			t.Errorf("the page holds %q", bad)
		}
	}
	// Tables for people who cannot see them.
	if th, scoped := bytes.Count(d.body, []byte("<th ")), bytes.Count(d.body, []byte("<th scope=")); th == 0 || th != scoped || bytes.Contains(d.body, []byte("<th>")) {
		t.Errorf("%d of %d header cells have a scope", scoped, th)
	}
}

// TestWords: each language has a word for everything.
func TestWords(t *testing.T) {
	t.Parallel()
	for lang, w := range words {
		x := reflect.ValueOf(*w)
		for i := range x.NumField() {
			f, name := x.Field(i), x.Type().Field(i).Name
			switch f.Kind() {
			case reflect.String:
				if f.String() == "" {
					t.Errorf("%q: %s is empty", lang, name)
				}
			default:
				if f.Len() == 0 {
					t.Errorf("%q: %s is empty", lang, name)
				}
			}
		}
		for _, f := range append(dutch(t).Fields(meter.Electricity), dutch(t).Fields(meter.Gas)...) {
			if w.fields[f.Name] == "" {
				t.Errorf("%q: no word for %s", lang, f.Name)
			}
		}
		if w.field("new_field") != "new field" {
			t.Errorf("%q: %s", lang, w.field("new_field"))
		}
		doc, err := openapi.Load()
		if err != nil {
			t.Fatal(err)
		}
		enum := func(schema, property string, has func(string) bool) {
			t.Helper()
			s := doc.Components.Schemas[schema].Value
			if property != "" {
				s = s.Properties[property].Value
			}
			if len(s.Enum) == 0 {
				t.Fatalf("%s has no words", schema)
			}
			for _, e := range s.Enum {
				if !has(e.(string)) {
					t.Errorf("%q: no word for %s %s", lang, schema, e)
				}
			}
		}
		enum("AccessLogEntry", "operation", func(s string) bool { return w.operations[openapi.AccessLogEntryOperation(s)] != "" })
		enum("AccessLogEntry", "step", func(s string) bool {
			words := w.steps[openapi.AccessLogEntryStep(s)]
			return words[0] != "" && words[1] != "" && words[0] != words[1]
		})
		enum("AccessLogEntry", "outcome", func(s string) bool {
			return w.outcomes[openapi.AccessLogEntryOutcome(s)] != "" && w.otherOutcomes[openapi.AccessLogEntryOutcome(s)] != ""
		})
		enum("WithheldReason", "", func(s string) bool { return w.reasons[openapi.WithheldReason(s)] != "" })
		enum("Resolution", "", func(s string) bool { return w.granularities[openapi.Resolution(s)] != "" })
		enum("LegalBasis", "", func(s string) bool { return w.bases[openapi.LegalBasis(s)][1] != "" })
		enum("Purpose", "", func(s string) bool { return w.purposes[openapi.Purpose(s)][1] != "" })
	}
}

// TestTable: the table says what the JSON says.
func TestTable(t *testing.T) {
	t.Parallel()
	v := storyView(t, nil)
	v.unreadable = []uuid.UUID{{1}}
	d, err := v.csv(storyNow, &rest{storyNow, "AQAGUNJX", "https://api.test/x"})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "accesslog.golden.csv", d.body)
	if d.header["Content-Disposition"] != `attachment; filename="access-log-2026-05-02.csv"` || d.header["Link"] != `<https://api.test/x>; rel="next"` {
		t.Errorf("%v", d.header)
	}
	if strings.Contains(strings.ReplaceAll(string(d.body), "\r\n", ""), "\n") {
		t.Error("lines end in more than CRLF")
	}
	lines, err := csv.NewReader(bytes.NewReader(d.body)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int{}
	for i, c := range lines[0] {
		at[c] = i
	}
	j, err := v.json(storyID, nil) // folded as well, so that it can be compared
	if err != nil {
		t.Fatal(err)
	}
	var log openapi.AccessLog
	if err := json.Unmarshal(j.body, &log); err != nil {
		t.Fatal(err)
	}
	var fromJSON, fromCSV []string
	for _, e := range log.Entries {
		line := []string{e.InteractionId.String(), e.At.Format(time.RFC3339Nano), string(e.Operation), string(e.Outcome), e.Caller.Gln, text(e.Caller.Name),
			text(e.Caller.Employee), text(e.Caller.Reason), text(e.Purpose), text(e.Step), fmt.Sprint(e.Opened)}
		if e.ConsentId != nil {
			line = append(line, e.ConsentId.String())
		}
		if e.From != nil {
			line = append(line, e.From.String(), e.To.String())
		}
		for _, g := range e.Granted {
			line = append(line, g.Field, g.From.String(), g.To.String(), string(g.Granularity), string(g.LegalBasis), g.Rule)
		}
		fromJSON = append(fromJSON, strings.Join(slices.DeleteFunc(line, func(s string) bool { return s == "" }), " "))
	}
	requests := 0
	for _, l := range lines[1 : len(lines)-2] {
		get := func(c string) string { return l[at[c]] }
		run := strings.Fields(strings.Join([]string{get("field"), get("from"), get("to"), get("granularity"), get("legalBasis"), get("rule")}, " "))
		if n, err := strconv.Atoi(get("requests")); err == nil {
			requests += n
			if (n == 1) != (get("firstAt") == get("at")) {
				t.Errorf("%v", l)
			}
		}
		if (get("opened") == "") != (get("requests") == "") {
			t.Errorf("%v", l)
		}
		if get("opened") == "" {
			fromCSV[len(fromCSV)-1] += " " + strings.Join(run, " ")
			continue
		}
		line := []string{get("interactionId"), get("at"), get("operation"), get("outcome"), get("gln"), get("name"), get("employee"), get("reason"), get("purpose"), get("step"),
			get("opened"), get("consentId"), get("askedFrom"), get("askedTo")}
		fromCSV = append(fromCSV, strings.Join(slices.DeleteFunc(append(line, run...), func(s string) bool { return s == "" }), " "))
	}
	if !slices.Equal(fromJSON, fromCSV) {
		t.Errorf("JSON\n%s\nCSV\n%s", strings.Join(fromJSON, "\n"), strings.Join(fromCSV, "\n"))
	}
	if n := len(storyLog(t)) - 1; requests != n {
		t.Errorf("%d requests, want %d", requests, n)
	}
	if l := lines[len(lines)-2]; l[at["outcome"]] != csvUnreadable || l[at["interactionId"]] != (uuid.UUID{1}).String() {
		t.Errorf("%v", l)
	}
	if l := lines[len(lines)-1]; l[at["outcome"]] != csvCut || l[at["next"]] != "AQAGUNJX" {
		t.Errorf("%v", l)
	}
}

// BenchmarkStatement is a statement as long as one may be.
func BenchmarkStatement(b *testing.B) {
	log := manyRows(b, 15_000)
	f := twoCustomers(b)
	b.ReportAllocs()
	for b.Loop() {
		v := viewOf(b, f, "2026-03-01", nil)
		v.bounds = statementBounds()
		if err := v.collect(b.Context(), log); err != nil {
			b.Fatal(err)
		}
		d, err := v.html("x", mustGLN(b, glnOperator), storyID, storyNow, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(len(v.entries)), "entries")
		b.ReportMetric(float64(len(d.body)), "bytes")
	}
}
