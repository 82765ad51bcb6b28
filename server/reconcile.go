package server

import (
	"cmp"
	"slices"

	"kluis/authz"
	"kluis/meter"
)

// reconcile makes one answer of two decisions. The cryptoserver decided after
// the gateway, on the same evidence with its own clock. What it withholds is
// withheld. What it would give beyond the gateway's grant (midnight passed, or
// its clock is ahead) it had no blocks for, so it is nulls that look like
// gaps: those days are taken out again and stay withheld for the gateway's
// reason.
func reconcile(o Opened, decided []authz.Withheld) ([]meter.Series, []authz.Withheld) {
	later := daysWithheld(o.Withheld)
	withheld := slices.Clone(o.Withheld)
	var beyond []authz.Withheld
	for _, w := range decided {
		for _, days := range meter.NewDaySet(w.Days).Subtract(later[w.Field]).Ranges() {
			beyond = append(beyond, authz.Withheld{Field: w.Field, Days: days, Reason: w.Reason})
		}
	}
	if len(beyond) == 0 {
		return o.Series, withheld
	}
	withheld = append(withheld, beyond...)
	slices.SortStableFunc(withheld, func(a, b authz.Withheld) int {
		return cmp.Or(cmp.Compare(a.Field, b.Field), cmp.Compare(a.Days.From, b.Days.From))
	})
	out := daysWithheld(beyond)
	var series []meter.Series
	for _, s := range o.Series {
		if s = without(s, out[s.Field]); len(s.Days) > 0 {
			series = append(series, s)
		}
	}
	return series, withheld
}

func daysWithheld(list []authz.Withheld) map[meter.FieldCode]meter.DaySet {
	sets := map[meter.FieldCode]meter.DaySet{}
	for _, w := range list {
		sets[w.Field] = sets[w.Field].Union(meter.NewDaySet(w.Days))
	}
	return sets
}

// without takes days out of a series. A register read belongs to the day (at
// P1M, the month) it starts and to the one it closes, and stays with either; a
// single read, to its own day.
func without(s meter.Series, out meter.DaySet) meter.Series {
	if out.Empty() {
		return s
	}
	next := func(d meter.Day) meter.Day { return d + 1 }
	if s.Resolution == meter.P1M {
		next = func(d meter.Day) meter.Day { return (d.Month() + 1).First() }
	}
	gone := func(d meter.Day) bool {
		return !out.Intersect(meter.NewDaySet(meter.DayRange{From: d, To: next(d)})).Empty()
	}
	reads := s.Kind == meter.Register && s.Resolution >= meter.P1D && !s.Basis.SingleReads()
	var kept []meter.SeriesDay
	expected, delivered := 0, 0
	for i, d := range s.Days {
		keep := !gone(d.Day)
		if reads {
			starts := i+1 < len(s.Days) && s.Days[i+1].Day == next(d.Day)
			closes := i > 0 && next(s.Days[i-1].Day) == d.Day
			keep = starts && keep || closes && !gone(s.Days[i-1].Day)
		}
		if !keep {
			continue
		}
		kept = append(kept, d)
		expected += len(d.Values)
		for _, v := range d.Values {
			if v != meter.Null {
				delivered++
			}
		}
	}
	s.Days, s.Expected, s.Delivered = kept, expected, delivered
	return s
}
