package server

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"kluis/authz"
	"kluis/meter"
)

func TestReconcile(t *testing.T) {
	t.Parallel()
	const f, g = meter.FieldCode(1), meter.FieldCode(2)
	days := func(from, to meter.Day) meter.DayRange { return meter.DayRange{From: from, To: to} }
	series := func(kind meter.Kind, res meter.Resolution, values map[meter.Day][]meter.Value, order ...meter.Day) meter.Series {
		s := meter.Series{Field: f, Kind: kind, Resolution: res}
		for _, d := range order {
			s.Days = append(s.Days, meter.SeriesDay{Day: d, Values: values[d]})
			for _, v := range values[d] {
				s.Expected++
				if v != meter.Null {
					s.Delivered++
				}
			}
		}
		return s
	}
	null := meter.Null
	reads := map[meter.Day][]meter.Value{10: {1}, 11: {2}, 12: {3}, 13: {null}}
	single := func(order ...meter.Day) meter.Series {
		s := series(meter.Register, meter.P1D, reads, order...)
		s.Basis = meter.SwitchBasis
		return s
	}
	jan, feb, mar, apr := meter.Month(600).First(), meter.Month(601).First(), meter.Month(602).First(), meter.Month(603).First()
	months := map[meter.Day][]meter.Value{jan: {1}, feb: {2}, mar: {3}, apr: {null}}
	future := func(from, to meter.Day) authz.Withheld {
		return authz.Withheld{Field: f, Days: days(from, to), Reason: meter.PeriodInFuture}
	}
	for name, tc := range map[string]struct {
		opened   Opened
		decided  []authz.Withheld
		series   []meter.Series
		withheld []authz.Withheld
	}{
		"the same decision": {
			opened:   Opened{Series: []meter.Series{series(meter.Register, meter.P1D, reads, 10, 11, 12)}, Withheld: []authz.Withheld{future(12, 14)}},
			decided:  []authz.Withheld{future(12, 14)},
			series:   []meter.Series{series(meter.Register, meter.P1D, reads, 10, 11, 12)},
			withheld: []authz.Withheld{future(12, 14)},
		},
		"the cryptoserver withholds more": {
			opened:   Opened{Series: []meter.Series{series(meter.Register, meter.P1D, reads, 10, 11)}, Withheld: []authz.Withheld{{Field: f, Days: days(11, 12), Reason: meter.ConsentRevoked}, future(12, 14)}},
			decided:  []authz.Withheld{future(12, 14)},
			series:   []meter.Series{series(meter.Register, meter.P1D, reads, 10, 11)},
			withheld: []authz.Withheld{{Field: f, Days: days(11, 12), Reason: meter.ConsentRevoked}, future(12, 14)},
		},
		"another reason is the cryptoserver's": {
			opened:   Opened{Series: []meter.Series{series(meter.Register, meter.P1D, reads, 10, 11)}, Withheld: []authz.Withheld{{Field: f, Days: days(11, 14), Reason: meter.ConsentRevoked}}},
			decided:  []authz.Withheld{future(12, 14)},
			series:   []meter.Series{series(meter.Register, meter.P1D, reads, 10, 11)},
			withheld: []authz.Withheld{{Field: f, Days: days(11, 14), Reason: meter.ConsentRevoked}},
		},
		"midnight passed: reads": {
			// The gateway fetched the reads of 10 to 12, the closing one; the
			// cryptoserver would give 12 too, and closes with a null it has no
			// block for.
			opened:   Opened{Series: []meter.Series{series(meter.Register, meter.P1D, reads, 10, 11, 12, 13)}, Withheld: []authz.Withheld{future(13, 14)}},
			decided:  []authz.Withheld{future(12, 14)},
			series:   []meter.Series{series(meter.Register, meter.P1D, reads, 10, 11, 12)},
			withheld: []authz.Withheld{future(12, 13), future(13, 14)},
		},
		"midnight passed: consumption": {
			opened:   Opened{Series: []meter.Series{series(meter.Consumption, meter.P1D, reads, 10, 11, 13)}, Withheld: []authz.Withheld{future(14, 15)}},
			decided:  []authz.Withheld{future(13, 15)},
			series:   []meter.Series{series(meter.Consumption, meter.P1D, reads, 10, 11)},
			withheld: []authz.Withheld{future(13, 14), future(14, 15)},
		},
		"a month began: reads": {
			opened:   Opened{Series: []meter.Series{series(meter.Register, meter.P1M, months, jan, feb, mar, apr)}},
			decided:  []authz.Withheld{{Field: f, Days: days(mar, apr), Reason: meter.PartialPeriod}},
			series:   []meter.Series{series(meter.Register, meter.P1M, months, jan, feb, mar)},
			withheld: []authz.Withheld{{Field: f, Days: days(mar, apr), Reason: meter.PartialPeriod}},
		},
		"a month began: consumption": {
			opened:   Opened{Series: []meter.Series{series(meter.Consumption, meter.P1M, months, jan, feb, mar)}},
			decided:  []authz.Withheld{{Field: f, Days: days(mar+30, apr), Reason: meter.PeriodInFuture}},
			series:   []meter.Series{series(meter.Consumption, meter.P1M, months, jan, feb)},
			withheld: []authz.Withheld{{Field: f, Days: days(mar+30, apr), Reason: meter.PeriodInFuture}},
		},
		"midnight passed: single reads": {
			// Each stands for its own day: no neighbour keeps it, or takes it away.
			opened:   Opened{Series: []meter.Series{single(10, 12, 13)}, Withheld: []authz.Withheld{future(14, 15)}},
			decided:  []authz.Withheld{future(13, 15)},
			series:   []meter.Series{single(10, 12)},
			withheld: []authz.Withheld{future(13, 14), future(14, 15)},
		},
		"all of a series goes": {
			opened:   Opened{Series: []meter.Series{series(meter.Register, meter.P1D, reads, 12, 13)}},
			decided:  []authz.Withheld{future(12, 13)},
			withheld: []authz.Withheld{future(12, 13)},
		},
		"other fields stay": {
			opened:   Opened{Series: []meter.Series{series(meter.Register, meter.P1D, reads, 10, 11)}, Withheld: []authz.Withheld{{Field: g, Days: days(1, 9), Reason: meter.Damaged}}},
			decided:  []authz.Withheld{{Field: g, Days: days(10, 11), Reason: meter.NoConsent}},
			series:   []meter.Series{series(meter.Register, meter.P1D, reads, 10, 11)},
			withheld: []authz.Withheld{{Field: g, Days: days(1, 9), Reason: meter.Damaged}, {Field: g, Days: days(10, 11), Reason: meter.NoConsent}},
		},
	} {
		series, withheld := reconcile(tc.opened, tc.decided)
		if !reflect.DeepEqual(series, tc.series) {
			t.Errorf("%s: series %+v, want %+v", name, series, tc.series)
		}
		if !reflect.DeepEqual(withheld, tc.withheld) {
			t.Errorf("%s: withheld %+v, want %+v", name, withheld, tc.withheld)
		}
	}
}

// Whatever the two decide, what either withholds is withheld, and nothing the
// gateway withheld is given as a period's value.
func TestReconcileProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		runs := func(label string) (out []authz.Withheld, set meter.DaySet) {
			for range rapid.IntRange(0, 3).Draw(t, label) {
				from := meter.Day(rapid.IntRange(0, 20).Draw(t, "from"))
				w := authz.Withheld{Field: 1, Days: meter.DayRange{From: from, To: from + meter.Day(rapid.IntRange(1, 5).Draw(t, "length"))}, Reason: meter.NoSupply}
				out, set = append(out, w), set.Union(meter.NewDaySet(w.Days))
			}
			return out, set
		}
		decided, gateway := runs("gateway")
		later, cryptoserver := runs("cryptoserver")
		s := meter.Series{Field: 1, Kind: meter.Consumption, Resolution: meter.P1D}
		for d := range meter.NewDaySet(meter.DayRange{From: 0, To: 25}).Subtract(cryptoserver).All() {
			s.Days = append(s.Days, meter.SeriesDay{Day: d, Values: []meter.Value{meter.Value(d)}})
		}
		s.Expected, s.Delivered = len(s.Days), len(s.Days)
		series, withheld := reconcile(Opened{Series: []meter.Series{s}, Withheld: later}, decided)
		all := meter.DaySet{}
		for _, w := range withheld {
			all = all.Union(meter.NewDaySet(w.Days))
		}
		if want := gateway.Union(cryptoserver); !reflect.DeepEqual(all.Ranges(), want.Ranges()) {
			t.Fatalf("withheld %v, want %v", all, want)
		}
		for _, s := range series {
			if s.Expected != len(s.Days) {
				t.Fatalf("expected %d of %d", s.Expected, len(s.Days))
			}
			for _, d := range s.Days {
				if gateway.Contains(d.Day) {
					t.Fatalf("day %d is given", d.Day)
				}
			}
		}
	})
}
