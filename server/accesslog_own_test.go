package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

// ownCaller is a caller of Decide.
type ownCaller struct {
	gln      meter.GLN
	employee *authz.Employee
}

func (c ownCaller) Supplier() meter.GLN       { return c.gln }
func (c ownCaller) Employee() *authz.Employee { return c.employee }

// TestOtherCustomersOutcome: a supplier of the first customer only, that asks
// for days of both, or for all its consents, is a stranger to the second one.
func TestOtherCustomersOutcome(t *testing.T) {
	t.Parallel()
	f := twoCustomers(t)
	b, first := mustGLN(t, glnB), meter.NewDaySet(span(t, "2026-01-01", "2026-03-01"))
	read := request(t, "2026-03-05T10:00:00Z", "2026-01-01", "2026-03-03")
	read.Supplier, read.Outcome, read.Granted[0].Days = b, audit.Partly, first
	read.Withheld = []authz.Withheld{{Field: 1, Days: span(t, "2026-03-01", "2026-03-03"), Reason: meter.NoSupply}}
	failed := read
	failed.Outcome = audit.Failed
	withheld := read
	withheld.Outcome, withheld.Granted = audit.Withheld, nil
	dry := read
	dry.Operation, dry.Purpose, dry.Outcome, dry.Withheld, dry.Receipt = audit.DryRun, 0, audit.Given, nil, nil
	list := refusedAs(read, audit.Given)
	list.Operation, list.Purpose, list.Days, list.Fields, list.Withheld = audit.Consents, 0, meter.DayRange{}, nil, nil
	asked := list
	asked.Operation, asked.Action, asked.Purpose, asked.Outcome = audit.ConsentStep, authz.ActionRequest, meter.EnergyManagement, audit.Failed
	for name, r := range map[string]audit.Record{
		"readings": opened(read, 60), "failed": opened(failed, 60), "failed before opening": refusedAs(failed, audit.Failed), "withheld": refusedAs(withheld, audit.Withheld),
		"dry run": dry, "list of consents": list, "a request for consent that failed": asked,
	} {
		stranger := refusedAs(r, audit.NoRelation)
		stranger.Withheld = nil
		row, as := rowOf(t, r), rowOf(t, stranger)
		got, shown, err := viewOf(t, f, "2026-03-01", nil).entry(&row)
		want, _, werr := viewOf(t, f, "2026-03-01", nil).entry(&as)
		if err != nil || werr != nil || !shown || want.Outcome != openapi.REFUSED || brief(&got) != brief(&want) {
			t.Errorf("%s: shown %+v\nas a stranger: %+v, %v %v", name, brief(&got), brief(&want), err, werr)
		}
	}
	// With what it has to do with the second customer, it is shown as it was.
	related := askedByB(t, f)
	list.At = time.Date(2026, 3, 12, 10, 0, 0, 0, time.UTC)
	row := rowOf(t, list)
	if e, _, err := viewOf(t, related, "2026-03-01", nil).entry(&row); err != nil || e.Outcome != openapi.GIVEN {
		t.Errorf("%+v, %v", e, err)
	}
	list.At = time.Date(2026, 3, 10, 10, 0, 0, 0, time.UTC) // before it had
	row = rowOf(t, list)
	if e, _, err := viewOf(t, related, "2026-03-01", nil).entry(&row); err != nil || e.Outcome != openapi.REFUSED {
		t.Errorf("%+v, %v", e, err)
	}
}

// brief is an entry without what is not rendered.
func brief(e *logEntry) string {
	b, err := json.Marshal(e.AccessLogEntry)
	return fmt.Sprintf("%s %v %v", b, e.reasons, err)
}

// otherCustomer is what there was before the second customer moved in.
type otherCustomer struct {
	supplier string // "": none
	consents []otherConsent
	optedOut bool
}

type otherConsent struct {
	supplier      string
	revoked, ends bool
}

// ownAndOther is a metering point with a given first customer; the second one is
// always the same: supplied by A, with a consent given to A, that is revoked if
// so said, and a request of A's, not answered.
func ownAndOther(t *rapid.T, loc *time.Location, own ownFacts, other otherCustomer) *authz.LegalFile {
	var f *authz.LegalFile
	registrar := authz.Actor{Kind: authz.ByOperator, Name: "registrar"}
	customer := authz.Actor{Kind: authz.ByCustomer, Name: agent17}
	take := func(at string, by authz.Actor, step authz.Step) {
		when, err := time.Parse(time.RFC3339, at)
		if err == nil {
			f, err = authz.Apply(f, step, by, when, loc)
		}
		if err != nil {
			t.Fatalf("%T: %v", step, err)
		}
	}
	day := func(s string) meter.Day {
		d, err := meter.ParseDay(s)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	since := func(s string) meter.DayRange { return meter.DayRange{From: day(s), To: meter.MaxDay} }
	gln := func(s string) meter.GLN {
		g, err := meter.ParseGLN(s)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	grant := func(id [16]byte, g string, until time.Time) authz.GrantConsent {
		return authz.GrantConsent{ID: id, Supplier: gln(g), Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
			Granularity: meter.PT15M, Days: since("2024-01-01"), ValidUntil: until, Evidence: "form"}
	}
	ean, err := meter.ParseEAN(testEAN)
	if err != nil {
		t.Fatal(err)
	}
	late := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	take("2025-06-01T10:00:00Z", registrar, authz.Register{EAN: ean, Commodity: meter.Electricity})
	take("2025-06-01T10:00:00Z", registrar, authz.SetOccupancy{Days: since("2025-06-01")})
	if other.supplier != "" {
		take("2025-06-01T10:00:00Z", registrar, authz.SetSupply{Supplier: gln(other.supplier), Days: meter.DayRange{From: day("2025-06-01"), To: day("2026-03-01")}})
	}
	if other.optedOut {
		take("2025-06-01T10:00:00Z", registrar, authz.SetOptOut{Days: meter.DayRange{From: day("2025-07-01"), To: day("2026-01-01")}})
	}
	for i, c := range other.consents {
		id, until := [16]byte{100, byte(i)}, late
		if c.ends {
			until = time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)
		}
		take(fmt.Sprintf("2025-07-%02dT10:00:00Z", 1+i), customer, grant(id, c.supplier, until))
		if c.revoked {
			take(fmt.Sprintf("2025-07-%02dT11:00:00Z", 1+i), customer, authz.RevokeConsent{ID: id})
		}
	}
	take("2026-03-01T10:00:00Z", registrar, authz.SetOccupancy{Days: since("2026-03-01")})
	take("2026-03-01T10:00:00Z", registrar, authz.SetSupply{Supplier: gln(glnA), Days: since("2026-03-01")})
	if own.consent {
		take("2026-03-02T10:00:00Z", customer, grant(consentOfSecond, glnA, late))
		if own.revoked {
			take("2026-03-03T10:00:00Z", customer, authz.RevokeConsent{ID: consentOfSecond})
		}
	}
	if own.optedOut {
		take("2026-03-04T10:00:00Z", registrar, authz.SetOptOut{Days: meter.DayRange{From: day("2026-03-20"), To: day("2026-03-25")}})
	}
	return f
}

type ownFacts struct{ consent, revoked, optedOut bool }

// asks is a request, to be recorded as the gateway does by what the file says.
type asks struct {
	at       time.Time
	gln      string
	employee bool
	op       audit.Operation
	purpose  meter.Purpose
	days     meter.DayRange
	fails    bool // if anything is to be opened
	opened   uint32
}

func (a asks) row(t *testing.T, p *meter.Profile, f *authz.LegalFile, i int) LogRow {
	t.Helper()
	ean := mustEAN(t, testEAN)
	r := audit.Record{InteractionID: uuid.NewSHA1(uuid.Nil, fmt.Append(nil, i)), At: a.at, Operation: a.op, Supplier: mustGLN(t, a.gln), TokenID: [32]byte{7}, EAN: ean}
	c := ownCaller{gln: r.Supplier}
	var fields []meter.FieldCode
	for _, x := range p.Fields(meter.Electricity) {
		fields = append(fields, x.Code)
	}
	if a.employee {
		r.Supplier, r.Employee, r.Reason = mustGLN(t, glnOperator), agent17, "zaak"
		c = ownCaller{r.Supplier, &authz.Employee{Subject: agent17, Role: authz.Agent,
			Errand: authz.Errand{Kind: authz.ErrandReadings, EAN: ean, Reason: "zaak", Days: a.days, Fields: fields}}}
		a.op, a.purpose = audit.Readings, meter.CustomerService
		r.Operation = a.op
	}
	switch a.op {
	case audit.Readings:
		r.Purpose, r.Days, r.Fields = a.purpose, a.days, fields
		g, withheld, err := authz.Decide(c, authz.Request{EAN: ean, Purpose: a.purpose, Days: a.days, Fields: fields}, f, p, a.at)
		if err != nil {
			r.Outcome = audit.NoRelation
			break
		}
		r = on(r, f)
		r.Granted, r.Withheld, r.Outcome = audit.GrantedItems(g), withheld, outcome(g, withheld)
		if !g.Empty() {
			if a.fails {
				r.Outcome = audit.Failed
			}
			r = opened(r, a.opened)
		}
	case audit.DryRun:
		r.Days, r.Outcome = a.days, audit.Given
		x, err := authz.DryRun(c, authz.AccessRequest{EAN: ean, Days: a.days, Fields: fields}, f, p, a.at)
		if err != nil {
			r.Outcome = audit.NoRelation
			break
		}
		r = on(r, f)
		r.Fields, r.Granted = fields, audit.AccessItems(x)
		r.Granted = slices.DeleteFunc(r.Granted, func(g audit.Granted) bool { return g.Basis == meter.MoveBasis || g.Basis == meter.SwitchBasis })
	default:
		if r.Outcome = audit.NoRelation; f.Relates(r.Supplier) {
			r = on(r, f)
			r.Outcome = audit.Given
		}
	}
	return rowOf(t, r)
}

// TestNothingOfTheOther: change all there is of another customer (suppliers,
// consents, opt-outs): of the same requests this customer is told the same, byte
// for byte. Left out are the reads on the day of the move itself, which are of
// both.
func TestNothingOfTheOther(t *testing.T) {
	t.Parallel()
	p := dutch(t)
	changes := 0
	rapid.Check(t, func(rt *rapid.T) {
		supplier := rapid.SampledFrom([]string{"", glnA, glnB})
		other := rapid.Custom(func(rt *rapid.T) otherCustomer {
			return otherCustomer{
				supplier: supplier.Draw(rt, "supplier"), optedOut: rapid.Bool().Draw(rt, "opted out"),
				consents: rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) otherConsent {
					return otherConsent{rapid.SampledFrom([]string{glnA, glnB}).Draw(rt, "of"), rapid.Bool().Draw(rt, "revoked"), rapid.Bool().Draw(rt, "ends")}
				}), 0, 3).Draw(rt, "consents"),
			}
		})
		own := ownFacts{rapid.Bool().Draw(rt, "consent"), rapid.Bool().Draw(rt, "revoked"), rapid.Bool().Draw(rt, "opted out")}
		requests := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) asks {
			from := mustDay(t, "2026-01-01") + meter.Day(rapid.IntRange(0, 100).Draw(rt, "from"))
			return asks{
				at:  time.Date(2026, 3, 12, 10, 0, 0, 0, time.UTC).Add(time.Duration(rapid.IntRange(0, 40*24).Draw(rt, "hour")) * time.Hour),
				gln: rapid.SampledFrom([]string{glnA, glnB}).Draw(rt, "by"), employee: rapid.IntRange(0, 4).Draw(rt, "employee") == 0,
				op:      rapid.SampledFrom([]audit.Operation{audit.Readings, audit.Readings, audit.DryRun, audit.Consents}).Draw(rt, "operation"),
				purpose: rapid.SampledFrom([]meter.Purpose{meter.Billing, meter.EnergyManagement}).Draw(rt, "purpose"),
				days:    meter.DayRange{From: from, To: from + meter.Day(rapid.IntRange(1, 100).Draw(rt, "days"))},
				fails:   rapid.IntRange(0, 4).Draw(rt, "fails") == 0, opened: uint32(rapid.IntRange(1, 300).Draw(rt, "opened")),
			}
		}), 1, 6).Draw(rt, "requests")
		var told []string
		var logs [][]LogRow
		for range 2 {
			f := ownAndOther(rt, p.Location(), own, other.Draw(rt, "other"))
			var log fakeLog
			for i, a := range requests {
				log = append(log, a.row(t, p, f, i))
			}
			slices.SortFunc(log, func(a, b LogRow) int { return b.Place.At.Compare(a.Place.At) })
			logs = append(logs, log)
			out := ""
			for _, bounds := range []logBounds{pageBounds(100), statementBounds()} {
				v := viewOf(t, f, "2026-03-01", nil)
				v.bounds = bounds
				if err := v.collect(t.Context(), log); err != nil || len(v.unreadable) > 0 {
					rt.Fatal(err, v.unreadable)
				}
				d, err := v.json(uuid.UUID{1}, nil)
				h, herr := v.html("x", mustGLN(t, glnOperator), storyID, storyNow, nil)
				c, cerr := v.csv(storyNow, nil)
				if err := errors.Join(err, herr, cerr); err != nil {
					rt.Fatal(err)
				}
				out += string(d.body) + string(h.body) + string(c.body)
			}
			told = append(told, out)
		}
		if !slices.EqualFunc(logs[0], logs[1], func(a, b LogRow) bool { return string(a.Record) == string(b.Record) }) {
			changes++
		}
		if told[0] != told[1] {
			rt.Fatalf("told\n%.3000s\nand of another\n%.3000s", told[0], told[1])
		}
	})
	if changes == 0 {
		t.Error("no record was another")
	}
}

// TestStepsTold: a step is told as taken only by whom the sealed file names, and
// every repeat of it is.
func TestStepsTold(t *testing.T) {
	t.Parallel()
	f := twoCustomers(t)
	yes := byEmployee(t, request(t, "2026-03-10T10:00:01Z", "2026-01-01", "2026-01-02"), audit.ConsentStep)
	yes.Action, yes.ConsentID, yes.Purpose, yes.FileVersion = authz.ActionGrant, consentOfSecond, meter.EnergyManagement, f.Version()
	for name, c := range map[string]struct {
		change func(*LogRow, *audit.Record)
		want   string // "": told; else unreadable or nothing
	}{
		"as it was":         {func(*LogRow, *audit.Record) {}, ""},
		"again, much later": {func(_ *LogRow, r *audit.Record) { r.At = r.At.AddDate(0, 1, 0) }, ""},
		"by a clock behind": {func(_ *LogRow, r *audit.Record) { r.At = r.At.Add(-time.Minute) }, ""},
		"asked for": {func(_ *LogRow, r *audit.Record) {
			r.Action, r.Supplier, r.Employee, r.Reason = authz.ActionRequest, mustGLN(t, glnA), "", ""
		}, ""},
		"refused":             {func(_ *LogRow, r *audit.Record) { r.Employee, r.Outcome = "somebody", audit.Refused }, ""},
		"put down to another": {func(_ *LogRow, r *audit.Record) { r.Employee = "https://idp.example#agent-99" }, "unreadable"},
		"to a supplier":       {func(_ *LogRow, r *audit.Record) { r.Supplier, r.Employee, r.Reason = mustGLN(t, glnA), "", "" }, "unreadable"},
		"asked for by another": {func(_ *LogRow, r *audit.Record) {
			r.Action, r.Supplier, r.Employee, r.Reason = authz.ActionRequest, mustGLN(t, glnB), "", ""
		}, "unreadable"},
		"another step":                {func(_ *LogRow, r *audit.Record) { r.Action = authz.ActionReject }, "unreadable"},
		"registered":                  {func(_ *LogRow, r *audit.Record) { r.Action = authz.ActionRegister }, "unreadable"},
		"revoked":                     {func(_ *LogRow, r *audit.Record) { r.Action = authz.ActionRevoke }, "unreadable"},
		"of another consent":          {func(_ *LogRow, r *audit.Record) { r.ConsentID = otherOfSecond }, "unreadable"},
		"of none":                     {func(_ *LogRow, r *audit.Record) { r.ConsentID = [16]byte{99} }, "unreadable"},
		"for another purpose":         {func(_ *LogRow, r *audit.Record) { r.Purpose = meter.Billing }, "unreadable"},
		"before it was":               {func(_ *LogRow, r *audit.Record) { r.At = r.At.Add(-time.Hour) }, "unreadable"},
		"of a later file, long since": {func(_ *LogRow, r *audit.Record) { r.FileVersion++; r.Action = authz.ActionRevoke }, "unreadable"},
		"since the file was read": {func(row *LogRow, r *audit.Record) {
			r.FileVersion++
			r.Action, r.At = authz.ActionRevoke, storyNow
			row.Place.At = storyNow.Add(time.Second)
		}, "nothing"},
	} {
		r := yes
		row := rowOf(t, r)
		c.change(&row, &r)
		row.Record = rowOf(t, r).Record
		v := viewOf(t, f, "2026-03-01", nil)
		if err := v.collect(t.Context(), fakeLog{row}); err != nil {
			t.Fatal(err)
		}
		got := ""
		switch {
		case len(v.unreadable) > 0:
			got = "unreadable"
		case len(v.entries) == 0:
			got = "nothing"
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestRequestOfAnother: after a move was corrected a consent is whose it was on
// the day it was asked for.
func TestRequestOfAnother(t *testing.T) {
	t.Parallel()
	f := twoCustomers(t)
	f, err := authz.Apply(f, authz.CorrectMove{Was: mustDay(t, "2026-03-01"), Is: mustDay(t, "2026-03-10")},
		authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Date(2026, 3, 16, 10, 0, 0, 0, time.UTC), dutch(t).Location())
	if err != nil {
		t.Fatal(err)
	}
	r := refusedAs(request(t, "2026-03-09T12:00:00Z", "2026-01-01", "2026-01-02"), audit.Given)
	r.Operation, r.Action, r.ConsentID, r.Purpose, r.Days, r.Fields = audit.ConsentStep, authz.ActionRequest, otherOfSecond, meter.EnergyManagement, meter.DayRange{}, nil
	row := rowOf(t, r)
	for since, want := range map[string]bool{"2024-01-01": true, "2026-03-10": false} {
		if _, shown, err := viewOf(t, f, since, nil).entry(&row); err != nil || shown != want {
			t.Errorf("since %s: %v, %v", since, shown, err)
		}
	}
}
