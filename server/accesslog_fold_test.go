package server

import (
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

// follow reads all pages of a log, each from the link of the one before.
func follow(t testing.TB, f *authz.LegalFile, log AccessLog, media string, bounds logBounds, page func(*logView)) {
	t.Helper()
	s := &Server{profile: dutch(t), public: &url.URL{Scheme: "https", Host: "api.test"}}
	for cursor, pages := "", 0; ; pages++ {
		p := logParams{ean: testEAN, occupancy: "2026-03-01", cursor: cursor, lang: "en"}
		q, errs := p.parse(media, s.profile.Location())
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		o, ok := occupancyOf(f, q, mustDay(t, "2026-05-02"))
		if !ok || pages > 1000 {
			t.Fatalf("%d pages", pages)
		}
		v := &logView{profile: s.profile, file: f, asOf: storyNow, occupancy: o, query: q, bounds: bounds}
		if err := v.collect(t.Context(), log); err != nil {
			t.Fatal(err)
		}
		page(v)
		more := s.restOf(v)
		if more == nil {
			return
		}
		u, err := url.Parse(more.link)
		if err != nil || u.Query().Get("cursor") != more.cursor || u.Query().Get("occupancy") != "2026-03-01" || u.Query().Get("lang") != "en" {
			t.Fatalf("%s, %v", more.link, err)
		}
		cursor = more.cursor
	}
}

// flood is n requests of nothing on one day, all that one party can vary in it,
// with a read in their midst.
func flood(t testing.TB, n int) (fakeLog, audit.Record) {
	t.Helper()
	real := request(t, "2026-04-10T10:00:00Z", "2026-04-01", "2026-04-05")
	base := refusedAs(request(t, "2026-04-10T21:00:00Z", "2026-03-01", "2026-03-02"), audit.NoRelation)
	log := make(fakeLog, 0, n+1)
	step := 22 * time.Hour / time.Duration(n)
	for i := range n {
		if i == n/2 {
			log = append(log, rowOf(t, real))
		}
		r := base
		r.At = base.At.Add(-time.Duration(i) * step).Truncate(time.Microsecond)
		r.InteractionID = uuid.NewSHA1(uuid.Nil, strconv.AppendInt(nil, int64(i), 10))
		r.Days.To += meter.Day(i % 300)
		switch i % 5 {
		case 0:
			r.Supplier = mustGLN(t, glnB)
		case 1: // told, and each time something else
			r.Operation, r.Purpose, r.Outcome = audit.DryRun, 0, audit.Given
			r.Granted = []audit.Granted{{Field: meter.FieldCode(1 + i%2), Days: meter.NewDaySet(r.Days), Kind: meter.Register, Granularity: meter.P1D, Basis: meter.SupplyDaily, Rule: "nl-daily"}}
		case 2:
			r.Outcome, r.FileVersion = audit.Withheld, 3
			r.Withheld = []authz.Withheld{{Field: 1, Days: r.Days, Reason: meter.Reason(1 + i%16)}}
		case 3: // a step repeated
			r.Operation, r.Action, r.ConsentID, r.Purpose, r.Days, r.Fields, r.Outcome, r.FileVersion =
				audit.ConsentStep, authz.ActionRequest, consentOfSecond, meter.EnergyManagement, meter.DayRange{}, nil, audit.Given, 5
		case 4:
			r.Purpose = meter.Purpose(1 + i%3)
		}
		log = append(log, rowOf(t, r))
	}
	slices.SortFunc(log, func(a, b LogRow) int {
		return cmp.Or(b.Place.At.Compare(a.Place.At), bytes.Compare(a.Place.Interaction[:], b.Place.Interaction[:]))
	})
	return log, real
}

// TestStatementFlood: a party that asks for nothing all day hides no read, on
// no medium, and none of its requests is lost or told twice.
func TestStatementFlood(t *testing.T) {
	t.Parallel()
	f := twoCustomers(t)
	for _, n := range []int{10_000, 200_000} {
		if n > 10_000 && testing.Short() {
			continue
		}
		log, real := flood(t, n)
		pages, requests, reads := 0, 0, 0
		follow(t, f, log, mediaHTML, statementBounds(), func(v *logView) {
			pages++
			for i := range v.entries {
				requests += v.entries[i].requests
				if v.entries[i].InteractionId == real.InteractionID {
					reads++
					if pages != 1 {
						t.Errorf("the read is on page %d", pages)
					}
				}
			}
			if len(v.entries) > 100 {
				t.Errorf("%d lines", len(v.entries))
			}
			d, err := v.html("x", mustGLN(t, glnOperator), storyID, storyNow, nil)
			if err != nil || len(d.body) > 200_000 || !strings.Contains(string(d.body), uuid.UUID(real.InteractionID).String()) {
				t.Errorf("%d bytes, %v", len(d.body), err)
			}
		})
		if pages != 1 || requests != n+1 || reads != 1 {
			t.Errorf("%d pages, %d requests of %d, the read %d times", pages, requests, n+1, reads)
		}
		// With less room it is on one of the pages, once, and nothing is lost.
		requests, reads = 0, 0
		follow(t, f, log, mediaCSV, logBounds{entries: 10, folded: 7, rows: n/4 + 1, runs: 100}, func(v *logView) {
			d, err := v.csv(storyNow, &rest{cursor: "AQ"})
			if err != nil {
				t.Fatal(err)
			}
			lines, err := csv.NewReader(bytes.NewReader(d.body)).ReadAll()
			if err != nil {
				t.Fatal(err)
			}
			at := slices.Index(lines[0], "requests")
			for _, l := range lines[1:] {
				k, _ := strconv.Atoi(l[at])
				requests += k
				if l[0] == uuid.UUID(real.InteractionID).String() {
					reads++
				}
			}
		})
		if requests != n+1 || reads != 1 {
			t.Errorf("page by page: %d requests of %d, the read %d times", requests, n+1, reads)
		}
	}
}

// TestFolded: what a folded line says is true of what is in it.
func TestFolded(t *testing.T) {
	t.Parallel()
	at := func(s string, change func(*audit.Record)) audit.Record {
		r := refusedAs(request(t, s, "2026-04-01", "2026-04-05"), audit.Withheld)
		r.Withheld = []authz.Withheld{{Field: 1, Days: r.Days, Reason: meter.NoConsent}}
		if change != nil {
			change(&r)
		}
		return r
	}
	failed := func(n uint32) func(*audit.Record) {
		return func(r *audit.Record) {
			x := request(t, r.At.Format(time.RFC3339), "2026-04-01", "2026-04-05")
			x.Outcome = audit.Failed
			*r = opened(x, n)
		}
	}
	dry := func(days ...string) func(*audit.Record) {
		return func(r *audit.Record) {
			x := dryRunOf(t, r.At.Format(time.RFC3339), days[0], days[1])
			*r = x
		}
	}
	employee := func(op audit.Operation, reason string) func(*audit.Record) {
		return func(r *audit.Record) {
			*r = byEmployee(t, *r, op)
			r.Outcome, r.Withheld, r.Reason = audit.Given, nil, reason
		}
	}
	step := func(id [16]byte, o audit.Outcome) func(*audit.Record) {
		return func(r *audit.Record) {
			r.Operation, r.Action, r.ConsentID, r.Purpose, r.Days, r.Fields, r.Withheld, r.Outcome, r.FileVersion =
				audit.ConsentStep, authz.ActionRequest, id, meter.EnergyManagement, meter.DayRange{}, nil, nil, o, 5
		}
	}
	third, fourth := otherOfSecond, [16]byte{4}
	for name, c := range map[string]struct {
		log  []audit.Record
		want []string
	}{
		"alike": {[]audit.Record{at("2026-04-10T12:00:00Z", nil), at("2026-04-10T08:00:00Z", nil)},
			[]string{"2 08:00 12:00 2026-04-01 2026-04-05 [NO_CONSENT] 1 withheld"}},
		"days, reasons": {[]audit.Record{
			at("2026-04-10T12:00:00Z", nil),
			at("2026-04-10T08:00:00Z", func(r *audit.Record) { r.Days = span(t, "2026-03-01", "2026-04-02") }),
			at("2026-04-10T07:00:00Z", func(r *audit.Record) { r.Withheld[0].Reason = meter.NoSupply }),
		}, []string{"3 07:00 12:00 2026-03-01 2026-04-05 [NO_CONSENT NO_SUPPLY] 0 withheld"}},
		"local days": {[]audit.Record{at("2026-04-10T22:00:00Z", nil), at("2026-04-10T21:59:59Z", nil)},
			[]string{"1 22:00 22:00 2026-04-01 2026-04-05 [NO_CONSENT] 1 withheld", "1 21:59 21:59 2026-04-01 2026-04-05 [NO_CONSENT] 1 withheld"}},
		"parties, purposes, outcomes": {[]audit.Record{
			at("2026-04-10T12:00:00Z", nil), at("2026-04-10T11:00:00Z", func(r *audit.Record) { r.Supplier = mustGLN(t, glnB) }),
			at("2026-04-10T10:00:00Z", func(r *audit.Record) { r.Purpose = meter.Move }),
			at("2026-04-10T09:00:00Z", func(r *audit.Record) { *r = refusedAs(*r, audit.NoRelation); r.Withheld = nil }),
		}, []string{"1 12:00 12:00 2026-04-01 2026-04-05 [NO_CONSENT] 1 withheld", "1 11:00 11:00 2026-04-01 2026-04-05 [NO_CONSENT] 1 withheld",
			"1 10:00 10:00 2026-04-01 2026-04-05 [NO_CONSENT] 1 withheld", "1 09:00 09:00 2026-04-01 2026-04-05 [] 0 withheld"}},
		"reads": {[]audit.Record{request(t, "2026-04-10T12:00:00Z", "2026-04-01", "2026-04-05"), request(t, "2026-04-10T11:00:00Z", "2026-04-01", "2026-04-05")},
			[]string{"1 12:00 12:00 2026-04-01 2026-04-05 [] 0 withheld 2026-04-01/2026-04-05 opened 5", "1 11:00 11:00 2026-04-01 2026-04-05 [] 0 withheld 2026-04-01/2026-04-05 opened 5"}},
		"failed, opened and not": {[]audit.Record{at("2026-04-10T12:00:00Z", failed(4)), at("2026-04-10T11:00:00Z", failed(3)),
			at("2026-04-10T10:00:00Z", func(r *audit.Record) { *r = refusedAs(*r, audit.Failed); r.Withheld = nil })},
			[]string{"2 11:00 12:00 2026-04-01 2026-04-05 [] 0 withheld opened 7", "1 10:00 10:00 2026-04-01 2026-04-05 [] 0 withheld"}},
		"told": {[]audit.Record{at("2026-04-10T12:00:00Z", dry("2026-04-01", "2026-04-03")), at("2026-04-10T11:00:00Z", dry("2026-04-02", "2026-04-05")),
			at("2026-04-10T10:00:00Z", dry("2026-03-01", "2026-03-03")), at("2026-04-10T09:00:00Z", dry("2026-03-01", "2026-03-02"))},
			[]string{"4 09:00 12:00 2026-03-01 2026-04-05 [] 0 withheld 2026-03-01/2026-03-03 2026-04-01/2026-04-05"}},
		"employees by their reasons": {[]audit.Record{at("2026-04-10T12:00:00Z", employee(audit.Consents, "a")), at("2026-04-10T11:00:00Z", employee(audit.Consents, "b")),
			at("2026-04-10T10:00:00Z", employee(audit.Consents, "a"))},
			[]string{"2 10:00 12:00 [] 0 withheld", "1 11:00 11:00 [] 0 withheld"}},
		"steps taken": {[]audit.Record{at("2026-04-10T12:00:00Z", step(consentOfSecond, audit.Given)), at("2026-04-10T11:00:00Z", step(third, audit.Given)),
			at("2026-04-10T10:00:00Z", step(consentOfSecond, audit.Given))},
			[]string{"2 10:00 12:00 [] 0 withheld consent 2", "1 11:00 11:00 [] 0 withheld consent 3"}},
		"steps not taken": {[]audit.Record{at("2026-04-10T12:00:00Z", step(fourth, audit.Refused)), at("2026-04-10T11:00:00Z", step(third, audit.Refused))},
			[]string{"2 11:00 12:00 [] 0 withheld"}},
	} {
		v := viewOf(t, askedByB(t, twoCustomers(t)), "2026-03-01", nil)
		v.bounds = statementBounds()
		var log fakeLog
		for _, r := range c.log {
			log = append(log, rowOf(t, r))
		}
		if err := v.collect(t.Context(), log); err != nil || len(v.unreadable) > 0 {
			t.Errorf("%s: %v %v", name, v.unreadable, err)
			continue
		}
		var got []string
		for i := range v.entries {
			e := &v.entries[i]
			s := fmt.Sprintf("%d %s %s", e.requests, e.first.Format("15:04"), e.At.Format("15:04"))
			if e.From != nil {
				s += " " + e.From.String() + " " + e.To.String()
			}
			s += fmt.Sprintf(" %v %d withheld", e.reasons, len(e.Withheld))
			for _, g := range e.Granted {
				s += " " + g.From.String() + "/" + g.To.String()
			}
			if e.Opened > 0 {
				s += fmt.Sprintf(" opened %d", e.Opened)
			}
			if e.ConsentId != nil {
				s += fmt.Sprintf(" consent %d", e.ConsentId[0])
			}
			got = append(got, s)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

// However a log is made and pages are cut, they hold each request once: each
// read by itself, all others by their number.
func TestFoldedPages(t *testing.T) {
	t.Parallel()
	f := askedByB(t, twoCustomers(t))
	rapid.Check(t, func(rt *rapid.T) {
		var log fakeLog
		reads := map[uuid.UUID]int{}
		var unreadable []uuid.UUID
		want := map[string]int{}
		start := time.Date(2026, 4, 12, 12, 0, 0, 0, time.UTC)
		n := rapid.IntRange(0, 40).Draw(rt, "requests")
		for i := range n {
			r := request(t, "2026-04-10T10:00:00Z", "2026-04-01", "2026-04-05")
			if r.Supplier = mustGLN(t, glnA); rapid.Bool().Draw(rt, "other") {
				r.Supplier = mustGLN(t, glnB)
			}
			r.Purpose = meter.Purpose(rapid.IntRange(1, 2).Draw(rt, "purpose"))
			r.At = start.Add(-time.Duration(rapid.IntRange(0, 3*24*60).Draw(rt, "minute")) * time.Minute)
			r.InteractionID = uuid.NewSHA1(uuid.Nil, fmt.Append(nil, i))
			o := rapid.SampledFrom([]audit.Outcome{audit.Given, audit.Withheld, audit.NoRelation, audit.Failed, 0, 99}).Draw(rt, "outcome")
			switch o {
			case audit.Given:
				r = opened(r, 5)
				reads[r.InteractionID] = 0
			case 0: // a look
				r = refusedAs(r, audit.Given)
				r.Operation, r.Purpose, r.Days, r.Fields, r.FileVersion = audit.Consents, 0, meter.DayRange{}, nil, 0
			case 99:
				r = opened(r, 5)
			default:
				r = refusedAs(r, o)
			}
			row := rowOf(t, r)
			// Recorded in another order than decided.
			row.Place.At = row.Place.At.Add(time.Duration(rapid.IntRange(0, 120).Draw(rt, "late")) * time.Second)
			if o == 99 {
				row.Record = nil
				unreadable = append(unreadable, r.InteractionID)
			} else if o != audit.Given {
				want[fmt.Sprint(meter.DayOf(r.At, dutch(t).Location()), r.Supplier, r.Operation, r.Purpose, r.Outcome)]++
			}
			log = append(log, row)
		}
		slices.SortFunc(log, func(a, b LogRow) int {
			return cmp.Or(b.Place.At.Compare(a.Place.At), bytes.Compare(a.Place.Interaction[:], b.Place.Interaction[:]))
		})
		bounds := logBounds{
			entries: rapid.IntRange(1, 10).Draw(rt, "entries"), folded: rapid.IntRange(1, 10).Draw(rt, "folded"),
			rows: rapid.IntRange(1, 50).Draw(rt, "rows"), runs: rapid.IntRange(1, 50).Draw(rt, "runs"),
		}
		got := map[string]int{}
		var damaged []uuid.UUID
		follow(t, f, log, mediaHTML, bounds, func(v *logView) {
			damaged = append(damaged, v.unreadable...)
			if v.own > bounds.entries || len(v.entries)-v.own+len(v.unreadable) > bounds.folded {
				rt.Fatalf("%d entries", len(v.entries))
			}
			for i := range v.entries {
				e := &v.entries[i]
				if _, ok := reads[e.InteractionId]; ok {
					reads[e.InteractionId] += e.requests
					continue
				}
				op, _ := map[openapi.AccessLogEntryOperation]audit.Operation{openapi.READINGS: audit.Readings, openapi.CONSENTS: audit.Consents}[e.Operation]
				o := map[openapi.AccessLogEntryOutcome]audit.Outcome{openapi.GIVEN: audit.Given, openapi.WITHHELD: audit.Withheld, openapi.REFUSED: audit.NoRelation, openapi.FAILED: audit.Failed}[e.Outcome]
				var purpose meter.Purpose
				for p := range meter.CustomerService + 1 {
					if p.String() == text(e.Purpose) {
						purpose = p
					}
				}
				day := meter.DayOf(e.first, dutch(t).Location())
				if day != meter.DayOf(e.At, dutch(t).Location()) || e.At.Before(e.first) {
					rt.Fatalf("from %v to %v", e.first, e.At)
				}
				got[fmt.Sprint(day, e.supplier, op, purpose, o)] += e.requests
			}
		})
		for id, times := range reads {
			if times != 1 {
				rt.Errorf("a read %s is told %d times", id, times)
			}
		}
		if len(got) != len(want) || !slices.Equal(sorted(damaged), sorted(unreadable)) {
			rt.Errorf("%v, want %v; %v, want %v", got, want, damaged, unreadable)
		}
		for k, n := range want {
			if got[k] != n {
				rt.Errorf("%s: %d times, want %d", k, got[k], n)
			}
		}
	})
}

func sorted(ids []uuid.UUID) []uuid.UUID {
	return slices.SortedFunc(slices.Values(ids), func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
}

// TestLateLog: a log too long for the time there is ends in a link, not in an
// error, and each answer comes further.
func TestLateLog(t *testing.T) {
	t.Parallel()
	f := twoCustomers(t)
	log, _ := flood(t, 4*logBatch-1)
	for _, bounds := range []logBounds{statementBounds(), pageBounds(1000)} {
		seen, pages := 0, 0
		for after := (LogPlace{At: forever}); ; pages++ {
			v := viewOf(t, f, "2026-03-01", nil)
			v.bounds, v.query.after, v.late = bounds, after, func() bool { return true }
			if err := v.collect(t.Context(), log); err != nil {
				t.Fatal(err)
			}
			for i := range v.entries {
				seen += v.entries[i].requests
			}
			if v.next == nil || pages > 10 {
				break
			}
			after = *v.next
		}
		if seen != len(log) || pages != 3 { // as many batches, the last one full
			t.Errorf("%d requests of %d in %d pages", seen, len(log), pages)
		}
	}
	if halfOf(context.Background()) != nil {
		t.Error("no deadline, but late")
	}
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if late := halfOf(ctx); late == nil || !late() {
		t.Error("past the deadline, but not late")
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if halfOf(ctx)() {
		t.Error("late at once")
	}
}
