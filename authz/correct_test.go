package authz

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/meter"
)

// supplied and housed say it of one day of a file.
func supplied(f *LegalFile, d meter.Day) meter.GLN {
	for _, s := range f.SupplyPeriods() {
		if s.Days.Contains(d) {
			return s.Supplier
		}
	}
	return meter.GLN{}
}

// After CorrectSupply every day of Days has that supplier, or nobody, and all
// others have whom they had; all else is as it was.
func TestCorrectSupplyChangesItsDaysOnly(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := roll(t)
		w := d.world()
		f := w.file(t)
		s := CorrectSupply{pick(d, alpha, beta, gamma, meter.GLN{}), d.days()}
		next, err := Apply(f, s, operator, f.sealedAt, amsterdam)
		changes := false
		for x := day("2022-12-01"); x < day("2030-01-01"); x++ {
			want := supplied(f, x)
			if s.Days.Contains(x) {
				changes = changes || want != s.Supplier
				want = s.Supplier
			}
			if err == nil && supplied(next, x) != want {
				t.Fatalf("%+v: on %s", s, x)
			}
		}
		if changes != (err == nil) {
			t.Fatalf("%+v: %v, though it changes something %v", s, err, changes)
		}
		if err != nil {
			wantRefusal(t, err, "nothing to do")
			return
		}
		if !reflect.DeepEqual(next.occupancies, f.occupancies) || !reflect.DeepEqual(next.consents, f.consents) || !slices.Equal(next.optOuts, f.optOuts) {
			t.Fatal("something else changed")
		}
		// No period is cut where nothing was corrected.
		for _, p := range next.supply {
			for _, edge := range []meter.Day{p.Days.From, p.Days.To} {
				was := slices.ContainsFunc(f.supply, func(o SupplyPeriod) bool { return o.Days.From == edge || o.Days.To == edge })
				if !was && edge != s.Days.From && edge != s.Days.To {
					t.Fatalf("%+v cuts on %s", s, edge)
				}
			}
		}
	})
}

func wantRefusal(t interface{ Fatalf(string, ...any) }, err error, words string) {
	if kindOf(err) != ErrStep || !strings.Contains(err.Error(), words) {
		t.Fatalf("refused with %v, want words %q", err, words)
	}
}

// CorrectMove moves exactly one boundary: of each occupancy only the ends that
// were on that day, and consents go with their occupancy.
func TestCorrectMoveMovesOneBoundary(t *testing.T) {
	t.Parallel()
	moved := 0
	rapid.Check(t, func(t *rapid.T) {
		d := roll(t)
		w := d.world()
		f := w.file(t)
		s := CorrectMove{d.day(), d.day()}
		if o := f.occupancies; len(o) > 0 && !d.once(4) {
			x := pick(d, o...).Days
			s.Was = pick(d, x.From, x.To)
			s.Is = s.Was + meter.Day(d.among(-60, 60))
		}
		next, err := Apply(f, s, operator, f.sealedAt, amsterdam)
		// What it would be.
		want := slices.Clone(f.occupancies)
		found, possible := false, s.Was != s.Is && validDay(s.Was) && validDay(s.Is)
		for i := range want {
			for _, edge := range []*meter.Day{&want[i].Days.From, &want[i].Days.To} {
				if *edge == s.Was {
					*edge, found = s.Is, true
				}
			}
		}
		for i, o := range want {
			possible = possible && o.Days.From < o.Days.To && (i == 0 || want[i-1].Days.To <= o.Days.From)
		}
		if (err == nil) != (found && possible) {
			t.Fatalf("%+v of %v: %v", s, f.occupancies, err)
		}
		if err != nil {
			wantRefusal(t, err, "")
			return
		}
		moved++
		if !slices.Equal(next.occupancies, want) || !slices.Equal(next.supply, f.supply) || !slices.Equal(next.optOuts, f.optOuts) || len(next.consents) != len(f.consents) {
			t.Fatalf("%+v of %v: %v", s, f.occupancies, next.occupancies)
		}
		for i, c := range next.consents {
			was := f.consents[i]
			home := slices.IndexFunc(f.occupancies, func(o Occupancy) bool { return o.Days.From == was.Occupancy })
			if c.Occupancy != next.occupancies[home].Days.From {
				t.Fatalf("%+v: a consent changed hands", s)
			}
			c.Occupancy = was.Occupancy
			if !reflect.DeepEqual(c, was) {
				t.Fatalf("%+v: a consent changed", s)
			}
		}
	})
	if moved == 0 {
		t.Error("nothing moved")
	}
}

// No customer's consent counts on another's days, however a move is corrected:
// one given on a day that turns out to be the other customer's counts for
// nobody.
func TestCorrectedMovesAndConsents(t *testing.T) {
	t.Parallel()
	p, keeps := dutch(t), lasting(t)
	f := history(t, instant("2026-03-20T10:00:00Z"), Register{home, meter.Electricity}, SetSupply{alpha, days("2024-01-01", "")},
		SetOccupancy{days("2024-01-01", "")}, SetOccupancy{days("2026-03-15", "")})
	f = must(Apply(f, grant(1, func(g *GrantConsent) { g.Days = days("2024-01-01", "") }), byEmployee, instant("2026-03-20T11:00:00Z"), amsterdam))(t)
	f = must(Apply(f, request(2, func(r *RequestConsent) { r.Supplier, r.Days = alpha, days("2024-01-01", "") }), bySupplier(alpha), instant("2026-03-20T12:00:00Z"), amsterdam))(t)
	now := instant("2026-04-10T10:00:00Z")
	given := func(p *meter.Profile, f *LegalFile) string {
		g, _, err := Decide(caller(alpha), Request{EAN: home, Purpose: meter.EnergyManagement, Days: days("2026-03-01", "2026-04-10"), Fields: []meter.FieldCode{importIntervals}}, f, p, now)
		wantErr(t, err, nil)
		if g.Empty() {
			return "nothing"
		}
		r := g.Items()[0].Spec.Days.Ranges()
		return r[0].From.String() + " " + r[len(r)-1].To.String()
	}
	for _, c := range []struct {
		is           string
		given        string
		stands, asks Standing
	}{
		{"2026-03-15", "2026-03-15 2026-04-10", StandsActive, StandsRequested},
		{"2026-03-01", "2026-03-01 2026-04-10", StandsActive, StandsRequested},
		{"2026-03-20", "2026-03-20 2026-04-10", StandsActive, StandsRequested},
		{"2026-03-21", "nothing", StandsEndedByMove, StandsEndedByMove}, // given by who lived there before, as it turns out, who was asked, too
		{"2026-04-10", "nothing", StandsEndedByMove, StandsEndedByMove},
		{"2026-04-11", "nothing", StandsEndedByMove, StandsEndedByMove},
	} {
		next := f
		if c.is != "2026-03-15" {
			next = must(Apply(f, CorrectMove{day("2026-03-15"), day(c.is)}, operator, now, amsterdam))(t)
			if !Narrows(f, next) {
				t.Errorf("%s: does not narrow", c.is)
			}
		}
		for _, p := range []*meter.Profile{p, keeps} {
			if got := given(p, next); got != c.given {
				t.Errorf("%s: %s", c.is, got)
			}
			one, _ := next.Consent(uuid(1))
			two, _ := next.Consent(uuid(2))
			if got, asks := next.Standing(&one, p, now), next.Standing(&two, p, now); got != c.stands || asks != c.asks || one.Occupancy != day(c.is) {
				t.Errorf("%s: %s, %s, of %s", c.is, got, asks, one.Occupancy)
			}
			// What one customer was asked, another does not answer, nor has the
			// registrar answer.
			for _, step := range []Step{AcceptConsent{uuid(2), "call/1"}, RejectConsent{uuid(2)}} {
				want := map[Standing]error{StandsEndedByMove: ErrConsentEnded}[c.asks]
				if _, err := Permit(toTake(step, next), step, next, p, now); kindOf(err) != want {
					t.Errorf("%s: %T: %v", c.is, step, err)
				}
				if _, err := Apply(next, step, operator, now, amsterdam); kindOf(err) != want {
					t.Errorf("%s: %T by the registrar: %v", c.is, step, err)
				}
			}
		}
		// Put right again, it is as it was.
		if c.is != "2026-03-15" {
			back := must(Apply(next, CorrectMove{day(c.is), day("2026-03-15")}, operator, now, amsterdam))(t)
			if !reflect.DeepEqual(back.facts, f.facts) || given(p, back) != "2026-03-15 2026-04-10" {
				t.Errorf("%s, and back: %+v", c.is, back.facts)
			}
		}
	}
	// The other way round: given by who, as it turns out, came later, it opens
	// nothing of who lived there before.
	before := history(t, instant("2026-03-10T10:00:00Z"), Register{home, meter.Electricity}, SetSupply{alpha, days("2024-01-01", "")},
		SetOccupancy{days("2024-01-01", "")}, grant(1, func(g *GrantConsent) { g.Days = days("2024-01-01", "") }), SetOccupancy{days("2026-03-15", "")})
	for _, p := range []*meter.Profile{p, keeps} {
		want := map[bool]string{true: "nothing", false: "2026-03-01 2026-03-15"}[p.ConsentTerms().EndedByMove]
		if got := given(p, before); got != want {
			t.Errorf("as recorded: %s, want %s", got, want)
		}
		if got := given(p, must(Apply(before, CorrectMove{day("2026-03-15"), day("2026-03-10")}, operator, now, amsterdam))(t)); got != "nothing" {
			t.Errorf("as it was: %s", got)
		}
	}
}

// What is refused, in which words.
func TestCorrectionsRefused(t *testing.T) {
	t.Parallel()
	f := history(t, t0, Register{home, meter.Electricity}, SetOccupancy{days("2020-01-01", "2022-01-01")}, SetOccupancy{days("2022-03-01", "")}, SetOccupancy{days("2025-03-15", "")},
		SetSupply{alpha, days("2020-01-01", "")}, SetSupply{beta, days("2025-07-01", "")})
	for _, c := range []struct {
		step  Step
		words string // "": taken
	}{
		{CorrectMove{day("2025-03-15"), day("2025-03-15")}, "nothing to do"},
		{CorrectMove{day("2025-03-16"), day("2025-03-15")}, "nobody moved in or out on 2025-03-16"},
		{CorrectMove{day("2025-03-15"), day("2022-03-01")}, "no day of an occupancy would be left"},
		{CorrectMove{day("2025-03-15"), day("2022-03-02")}, ""},
		{CorrectMove{day("2022-01-01"), day("2020-01-01")}, "no day of an occupancy would be left"},
		{CorrectMove{day("2022-01-01"), day("2022-03-01")}, ""},
		{CorrectMove{day("2022-01-01"), day("2022-03-02")}, "overlaps an occupancy"},
		{CorrectMove{day("2022-03-01"), day("2021-12-31")}, "overlaps an occupancy"},
		{CorrectMove{day("2022-03-01"), day("2025-03-15")}, "no day of an occupancy would be left"},
		{CorrectMove{meter.MaxDay, day("2026-01-01")}, "between 1970-01-01 and 9999-12-31"},
		{CorrectMove{day("2025-03-15"), meter.MaxDay}, "between 1970-01-01 and 9999-12-31"},
		{CorrectMove{day("2020-01-01"), -1}, "between 1970-01-01 and 9999-12-31"},
		{CorrectSupply{alpha, days("2021-01-01", "2022-01-01")}, "recorded so already"},
		{CorrectSupply{beta, days("2025-07-01", "")}, "recorded so already"},
		{CorrectSupply{meter.GLN{}, days("2019-01-01", "2020-01-01")}, "recorded so already"},
		{CorrectSupply{meter.GLN{}, days("2019-01-01", "2020-01-02")}, ""},
		{CorrectSupply{alpha, days("2022-01-01", "2022-01-01")}, "end after they start"},
		{CorrectSupply{alpha, meter.DayRange{From: -1, To: 4}}, "1970"},
	} {
		next, err := Apply(f, c.step, operator, t0.Add(time.Hour), amsterdam)
		switch {
		case c.words == "" && err != nil:
			t.Errorf("%+v: %v", c.step, err)
		case c.words != "" && (next != nil || kindOf(err) != ErrStep || !strings.Contains(err.Error(), c.words)):
			t.Errorf("%+v: %v, want words %q", c.step, err, c.words)
		}
	}
	for _, who := range []Actor{bySupplier(alpha), byEmployee} {
		for _, s := range []Step{CorrectSupply{alpha, days("2025-07-01", "")}, CorrectMove{day("2025-03-15"), day("2025-03-16")}, SetSupply{alpha, days("2030-01-01", "")}} {
			if _, err := Apply(f, s, who, t0.Add(time.Hour), amsterdam); kindOf(err) != ErrStep || !strings.Contains(err.Error(), "no "+who.Kind.String()+" takes this step") {
				t.Errorf("%T by a %s: %v", s, who.Kind, err)
			}
		}
	}
}

// The periods of a correction, written out.
func TestCorrectSupply(t *testing.T) {
	t.Parallel()
	f := history(t, t0, Register{home, meter.Electricity}, SetSupply{alpha, days("2020-01-01", "")}, SetSupply{beta, days("2025-07-01", "")})
	for _, c := range []struct {
		step CorrectSupply
		want []SupplyPeriod
	}{
		{CorrectSupply{alpha, days("2025-07-01", "")}, []SupplyPeriod{{alpha, days("2020-01-01", "")}}}, // the switch that was not
		{CorrectSupply{alpha, days("2025-07-01", "2025-08-01")}, []SupplyPeriod{{alpha, days("2020-01-01", "2025-08-01")}, {beta, days("2025-08-01", "")}}},
		{CorrectSupply{beta, days("2025-06-01", "2025-07-01")}, []SupplyPeriod{{alpha, days("2020-01-01", "2025-06-01")}, {beta, days("2025-06-01", "")}}},
		{CorrectSupply{beta, days("2022-01-01", "2023-01-01")}, []SupplyPeriod{{alpha, days("2020-01-01", "2022-01-01")}, {beta, days("2022-01-01", "2023-01-01")}, {alpha, days("2023-01-01", "2025-07-01")}, {beta, days("2025-07-01", "")}}},
		{CorrectSupply{gamma, days("2018-01-01", "2019-01-01")}, []SupplyPeriod{{gamma, days("2018-01-01", "2019-01-01")}, {alpha, days("2020-01-01", "2025-07-01")}, {beta, days("2025-07-01", "")}}},
		{CorrectSupply{gamma, days("2018-01-01", "")}, []SupplyPeriod{{gamma, days("2018-01-01", "")}}},
		{CorrectSupply{meter.GLN{}, days("2025-06-01", "2025-08-01")}, []SupplyPeriod{{alpha, days("2020-01-01", "2025-06-01")}, {beta, days("2025-08-01", "")}}},
		{CorrectSupply{meter.GLN{}, days("2018-01-01", "")}, nil},
	} {
		next, err := Apply(f, c.step, operator, t0.Add(time.Hour), amsterdam)
		if err != nil || !slices.Equal(next.SupplyPeriods(), c.want) {
			t.Errorf("%+v: %v %v", c.step, next.SupplyPeriods(), err)
		}
		if c.step.Supplier.IsZero() && next.Relates(meter.GLN{}) {
			t.Error("nobody is somebody")
		}
	}
}
