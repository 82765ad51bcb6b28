package authz

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/meter"
)

func renderAccess(p market, a Access) []string {
	var out []string
	name := func(c meter.FieldCode) string {
		f, _ := p.FieldByCode(c)
		return f.Name
	}
	for _, it := range a.Items() {
		for _, r := range it.Days.Ranges() {
			out = append(out, fmt.Sprintf("%s %s %s %s: %s %s by %s", it.Purpose, name(it.Field), r.From, r.To, it.Granularity, it.Kind, it.Rule))
		}
	}
	for _, w := range a.Withheld() {
		out = append(out, fmt.Sprintf("%s %s %s %s: %s", w.Purpose, name(w.Field), w.Days.From, w.Days.To, w.Reason))
	}
	return out
}

// The story of one metering point, asked about as a whole.
func TestDryRun(t *testing.T) {
	t.Parallel()
	p, f := dutch(t), story(t)
	all := days("2024-01-20", "2026-01-20")
	if got := Retained(p, storyNow); got != days("2024-01-20", "2026-01-21") {
		t.Fatal(got)
	}
	for _, c := range []struct {
		name    string
		caller  meter.GLN
		purpose meter.Purpose
		days    meter.DayRange
		fields  []meter.FieldCode
		want    []string
	}{
		{"the former supplier's bill", alpha, meter.Billing, all, []meter.FieldCode{importLow}, []string{
			"BILLING import_low 2024-02-01 2025-07-01: P1M REGISTER by nl-billing-periodic",
			"BILLING import_low 2024-01-20 2024-02-01: PARTIAL_PERIOD",
			"BILLING import_low 2025-07-01 2026-01-20: NO_SUPPLY",
		}},
		{"the present one's", beta, meter.Billing, all, []meter.FieldCode{importLow}, []string{
			"BILLING import_low 2025-07-01 2025-11-01: P1M REGISTER by nl-billing-periodic",
			"BILLING import_low 2025-12-01 2026-01-01: P1M REGISTER by nl-billing-periodic",
			"BILLING import_low 2024-01-20 2025-07-01: NO_SUPPLY",
			"BILLING import_low 2025-11-01 2025-11-10: PARTIAL_PERIOD",
			"BILLING import_low 2025-11-10 2025-11-20: OPTED_OUT",
			"BILLING import_low 2025-11-20 2025-12-01: PARTIAL_PERIOD",
			"BILLING import_low 2026-01-01 2026-01-20: PARTIAL_PERIOD",
		}},
		{"intervals by consent", alpha, meter.EnergyManagement, days("2025-03-01", "2025-08-01"), []meter.FieldCode{importIntervals}, []string{
			"ENERGY_MANAGEMENT import_intervals 2025-06-01 2025-07-01: PT1H CONSUMPTION by nl-consent-intervals",
			"ENERGY_MANAGEMENT import_intervals 2025-03-01 2025-04-01: NO_CONSENT",
			"ENERGY_MANAGEMENT import_intervals 2025-04-01 2025-05-01: CONSENT_EXPIRED",
			"ENERGY_MANAGEMENT import_intervals 2025-05-01 2025-06-01: CONSENT_REVOKED",
			"ENERGY_MANAGEMENT import_intervals 2025-07-01 2025-08-01: NO_SUPPLY",
		}},
		{"a consent that needs supply there never was", gamma, meter.EnergyManagement, all, []meter.FieldCode{importIntervals}, []string{
			"ENERGY_MANAGEMENT import_intervals 2024-01-20 2026-01-20: NO_SUPPLY",
		}},
		{"older than is kept", alpha, meter.Billing, days("2016-01-20", "2024-03-01"), []meter.FieldCode{importLow}, []string{
			"BILLING import_low 2024-02-01 2024-03-01: P1M REGISTER by nl-billing-periodic",
			"BILLING import_low 2016-01-20 2024-01-20: PERIOD_TOO_OLD",
			"BILLING import_low 2024-01-20 2024-02-01: PARTIAL_PERIOD",
		}},
		{"longer than may be asked", alpha, meter.Billing, days("2010-01-01", "2026-01-01"), []meter.FieldCode{importLow}, []string{
			"BILLING import_low 2010-01-01 2026-01-01: NOT_COVERED",
		}},
	} {
		a, err := DryRun(caller(c.caller), AccessRequest{EAN: home, Purpose: c.purpose, Days: c.days, Fields: c.fields}, f, p, storyNow)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := renderAccess(p, a); !slices.Equal(got, c.want) {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

// Without a purpose, all there are.
func TestDryRunOfEveryPurpose(t *testing.T) {
	t.Parallel()
	f := history(t, t0, Register{home, meter.Electricity}, SetOccupancy{days("2023-01-01", "")}, SetSupply{alpha, days("2023-01-01", "")})
	m := &testMarket{retention: 24, fields: append(dutch(t).Fields(meter.Electricity), dutch(t).Fields(meter.Gas)...), rules: []meter.Rule{
		{ID: "bill", Basis: meter.SupplyPeriodic, Purpose: meter.Billing, Classes: []meter.Class{meter.Registers}, Granularity: meter.P1M, Days: always(), Enabled: true},
		{ID: "days", Basis: meter.SupplyDaily, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Registers}, Granularity: meter.P1D, Days: always(), Enabled: true},
	}}
	a, err := dryRun(AccessRequest{EAN: home, Days: days("2025-12-31", "2026-01-21"), Fields: []meter.FieldCode{importLow, gas}},
		func(q Request) (Grant, []Withheld, error) { return decide(caller(alpha), q, f, m, storyNow) })
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"ENERGY_MANAGEMENT import_low 2025-12-31 2026-01-20: P1D REGISTER by days",
		"BILLING import_low 2025-12-31 2026-01-20: PARTIAL_PERIOD",
		"BILLING import_low 2026-01-20 2026-01-21: PERIOD_IN_FUTURE",
		"BILLING gas 2025-12-31 2026-01-21: NOT_COVERED",
		"ENERGY_MANAGEMENT import_low 2026-01-20 2026-01-21: PERIOD_IN_FUTURE",
		"ENERGY_MANAGEMENT gas 2025-12-31 2026-01-21: NOT_COVERED",
	}
	for p := meter.Switch; knownPurpose(p); p++ {
		want = append(want, p.String()+" import_low 2025-12-31 2026-01-21: PURPOSE_NOT_AVAILABLE", p.String()+" gas 2025-12-31 2026-01-21: PURPOSE_NOT_AVAILABLE")
	}
	if got := renderAccess(m, a); !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

// Who has nothing to do with the metering point is told nothing, after one
// question to Decide.
func TestDryRunWithoutRelation(t *testing.T) {
	t.Parallel()
	p, f := dutch(t), story(t)
	r := AccessRequest{EAN: home, Days: Retained(p, storyNow), Fields: []meter.FieldCode{importLow}}
	for name, ask := range map[string]func() (Access, error){
		"stranger":        func() (Access, error) { return DryRun(caller(testGLN(9)), r, f, p, storyNow) },
		"unknown":         func() (Access, error) { return DryRun(caller(alpha), r, nil, p, storyNow) },
		"nobody":          func() (Access, error) { return DryRun(nil, r, f, p, storyNow) },
		"another's file":  func() (Access, error) { r := r; r.EAN = testEAN(2); return DryRun(caller(alpha), r, f, p, storyNow) },
		"without profile": func() (Access, error) { return DryRun(caller(alpha), r, f, nil, storyNow) },
	} {
		a, err := ask()
		wantErr(t, err, ErrNoRelation)
		if len(a.Items())+len(a.Withheld())+len(a.Grants()) > 0 {
			t.Errorf("%s: %+v", name, a)
		}
	}
	n := 0
	_, err := dryRun(r, func(q Request) (Grant, []Withheld, error) {
		n++
		return Decide(caller(testGLN(9)), q, f, p, storyNow)
	})
	if wantErr(t, err, ErrNoRelation); n != 1 {
		t.Errorf("Decide was asked %d times", n)
	}
}

// What one rule gives by day and another by month breaks up the months, unless
// months are asked for: the dry run tells of both ways.
func TestDryRunFindsMonthsBesideDays(t *testing.T) {
	t.Parallel()
	f := history(t, t0, Register{home, meter.Electricity}, SetOccupancy{days("2023-01-01", "")}, SetSupply{alpha, days("2023-01-01", "")})
	m := &testMarket{retention: 24, fields: dutch(t).Fields(meter.Electricity), rules: []meter.Rule{
		{ID: "days", Basis: meter.SupplyDaily, Purpose: meter.Billing, Classes: []meter.Class{meter.Registers}, Granularity: meter.P1D, Days: days("2025-03-15", "2025-04-10"), Enabled: true},
		{ID: "months", Basis: meter.SupplyPeriodic, Purpose: meter.Billing, Classes: []meter.Class{meter.Registers}, Granularity: meter.P1M, Days: always(), Enabled: true},
	}}
	a, err := dryRun(AccessRequest{EAN: home, Purpose: meter.Billing, Days: days("2025-02-01", "2025-06-01"), Fields: []meter.FieldCode{importLow}},
		func(q Request) (Grant, []Withheld, error) { return decide(caller(alpha), q, f, m, storyNow) })
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"BILLING import_low 2025-03-15 2025-04-10: P1D REGISTER by days",
		"BILLING import_low 2025-02-01 2025-06-01: P1M REGISTER by months",
	}
	if got := renderAccess(m, a); !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

// The dry run is Decide's word, both ways: what it promises a request gets,
// on the same rule, from exactly the stored days it says may be looked for;
// and what it does not promise no request gets, whatever it asks for.
func TestDryRunPromisesWhatDecideGrants(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := roll(t)
		w := d.world()
		f := w.file(t)
		me := pick(d, alpha, alpha, alpha, beta)
		ask := func(q Request) (Grant, []Withheld, error) { return decide(caller(me), q, f, w.market, w.now) }
		from := d.day()
		r := AccessRequest{
			EAN: home, Purpose: pick(d, 0, meter.EnergyManagement, meter.Billing), Days: meter.DayRange{From: from, To: from + meter.Day(d.among(1, 1100))},
			Fields: []meter.FieldCode{1, 2, 5, 6, 8},
		}
		a, err := dryRun(r, ask)
		if err != nil {
			if _, _, same := ask(Request{EAN: home, Purpose: meter.Billing, Days: r.Days, Fields: r.Fields}); same == nil {
				t.Fatal("no relation, but Decide finds one")
			}
			return
		}
		type key struct {
			purpose meter.Purpose
			fieldDay
		}
		promised, refused := map[key]bool{}, map[key]meter.Reason{}
		readable := map[fieldDay]bool{}
		for _, g := range a.Grants() {
			for k := range readSet(g) {
				readable[k] = true
			}
		}
		for _, it := range a.Items() {
			for _, run := range it.Days.Ranges() {
				for day := run.From; day < run.To; day++ {
					promised[key{it.Purpose, fieldDay{it.Field, day}}] = true
				}
				for _, resolution := range []meter.Resolution{it.Granularity, 0} {
					// A day that is in two items is given, at no resolution,
					// by the one that gives it finer.
					if resolution == 0 && slices.ContainsFunc(a.Items(), func(o AccessItem) bool {
						return o.Purpose == it.Purpose && o.Field == it.Field && o.Granularity != it.Granularity && !o.Days.Intersect(it.Days).Empty()
					}) {
						continue
					}
					for _, piece := range requestable(run) {
						g, withheld, err := ask(Request{EAN: home, Purpose: it.Purpose, Days: piece, Fields: []meter.FieldCode{it.Field}, Resolution: resolution})
						if err != nil || len(withheld) > 0 || len(g.Items()) != 1 {
							t.Fatalf("promised %+v, but %s to %s at %v: %+v %+v %v", it, piece.From, piece.To, resolution, g.Items(), withheld, err)
						}
						got := g.Items()[0]
						if got.Rule != it.Rule || got.Basis != it.Basis || got.Spec.Granularity != it.Granularity || got.Spec.Kind != it.Kind {
							t.Fatalf("promised %+v, granted %+v", it, got)
						}
						for k := range readSet(g) {
							if !readable[k] {
								t.Fatalf("field %d of %s is opened for an item, but no grant of the dry run reads it", k.field, k.day)
							}
						}
					}
				}
			}
		}
		for i, x := range a.Withheld() {
			if i > 0 {
				if y := a.Withheld()[i-1]; y.Purpose == x.Purpose && y.Field == x.Field && (y.Days.To > x.Days.From || y.Days.To == x.Days.From && y.Reason == x.Reason) {
					t.Fatalf("%+v and %+v overlap, or are one", y, x)
				}
			}
			for day := x.Days.From; day < x.Days.To; day++ {
				k := key{x.Purpose, fieldDay{x.Field, day}}
				if promised[k] {
					t.Fatalf("%+v is promised and withheld", k)
				}
				refused[k] = x.Reason
			}
		}
		purposes := map[meter.Purpose]bool{}
		for k := range refused {
			purposes[k.purpose] = true
		}
		for k := range promised {
			purposes[k.purpose] = true
		}
		want := 0
		for p := meter.Billing; knownPurpose(p); p++ {
			want++
		}
		if r.Purpose != 0 && len(purposes) != 1 || r.Purpose == 0 && len(purposes) != want || len(promised)+len(refused) != len(purposes)*len(r.Fields)*r.Days.Len() {
			t.Fatalf("%d field days promised and %d withheld of %d", len(promised), len(refused), len(purposes)*len(r.Fields)*r.Days.Len())
		}
		// A request's own period, as one request: word for word Decide's.
		if r.Days.Len() <= MaxRequestDays {
			for purpose := range purposes {
				_, withheld, _ := ask(Request{EAN: home, Purpose: purpose, Days: r.Days, Fields: r.Fields})
				for _, x := range withheld {
					for day := x.Days.From; day < x.Days.To; day++ {
						k := key{purpose, fieldDay{x.Field, day}}
						if reason, ok := refused[k]; ok && reason != x.Reason || !ok && !promised[k] {
							t.Fatalf("%+v: %v, the dry run says %v", k, x.Reason, reason)
						}
					}
				}
			}
		}
		// Requests for anything within the period.
		for range 8 {
			q := Request{
				EAN: home, Purpose: pick(d, meter.EnergyManagement, meter.EnergyManagement, meter.Billing, meter.Move), Fields: r.Fields,
				Resolution: meter.Resolution(d.IntN(5)), Kind: meter.Kind(d.IntN(3)),
			}
			if r.Purpose != 0 {
				q.Purpose = r.Purpose
			}
			q.Days.From = r.Days.From + meter.Day(d.IntN(r.Days.Len()))
			if d.once(2) {
				q.Days.From = max(r.Days.From, q.Days.From.Month().First())
			}
			q.Days.To = min(r.Days.To, q.Days.From+meter.Day(d.among(1, MaxRequestDays)))
			g, _, err := ask(q)
			if err != nil {
				t.Fatal(err)
			}
			for _, it := range g.Items() {
				for day := range it.Spec.Days.All() {
					if !promised[key{q.Purpose, fieldDay{it.Spec.Field.Code, day}}] {
						t.Fatalf("%+v is granted on %s, the dry run says %v", it, day, refused[key{q.Purpose, fieldDay{it.Spec.Field.Code, day}}])
					}
				}
			}
			for k := range readSet(g) {
				if !readable[k] {
					t.Fatalf("field %d of %s may be opened, but not for the dry run", k.field, k.day)
				}
			}
		}
	})
}

// Facts about others change nothing: neither a promise nor a reason.
func TestDryRunOfOthersFacts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := roll(t)
		w := d.world()
		other := w
		other.facts.supply = slices.Clone(w.facts.supply)
		for i := range other.facts.supply {
			if other.facts.supply[i].Supplier != alpha {
				other.facts.supply[i].Supplier = testGLN(7)
			}
		}
		other.facts.consents = slices.DeleteFunc(slices.Clone(w.facts.consents), func(c Consent) bool { return c.Supplier != alpha })
		r := AccessRequest{EAN: home, Days: days("2024-01-01", "2026-01-01"), Fields: []meter.FieldCode{1, 6}}
		run := func(w world) (string, error) {
			f := w.file(t)
			a, err := dryRun(r, func(q Request) (Grant, []Withheld, error) { return decide(caller(alpha), q, f, w.market, w.now) })
			return fmt.Sprint(renderAccess(w.market, a)), err
		}
		got, err1 := run(w)
		want, err2 := run(other)
		if got != want || err1 != err2 {
			t.Fatalf("with others' facts %s (%v), without %s (%v)", got, err1, want, err2)
		}
	})
}

func TestRetained(t *testing.T) {
	t.Parallel()
	p := dutch(t)
	loc := p.Location()
	for _, now := range []time.Time{storyNow, day("2026-03-29").Start(loc), day("2026-03-30").Start(loc).Add(-time.Microsecond), day("2024-02-29").Start(loc)} {
		r := Retained(p, now)
		today := meter.DayOf(now, loc)
		if r.To != today+1 {
			t.Errorf("%s: %v", now, r)
		}
		// It ends where Decide says so, on both sides.
		_, withheld, err := Decide(caller(alpha), Request{EAN: home, Purpose: meter.Billing, Days: meter.DayRange{From: r.From - 1, To: r.From + 1}, Fields: []meter.FieldCode{importLow}}, story(t), p, now)
		if err != nil || withheld[0].Reason != meter.PeriodTooOld || withheld[0].Days.Len() != 1 {
			t.Errorf("%s: %+v %v", now, withheld, err)
		}
	}
}

func BenchmarkDryRun(b *testing.B) {
	p, f := dutch(b), story(b)
	r := AccessRequest{EAN: home, Days: Retained(p, storyNow), Fields: []meter.FieldCode{1, 2, 3, 4, 6, 7}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DryRun(caller(beta), r, f, p, storyNow); err != nil {
			b.Fatal(err)
		}
	}
}
