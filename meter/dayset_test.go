package meter

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The model of a DaySet is a map over a window of days; wild ranges beyond it
// are covered by TestDaySetOpenEnd.
const (
	modelFrom Day = 19700 // 2023-12-09
	modelTo   Day = 19950 // 2024-08-15
)

type dayModel map[Day]bool

func drawRanges(t *rapid.T, label string) []DayRange {
	day := rapid.Int32Range(int32(modelFrom), int32(modelTo))
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) DayRange {
		return DayRange{Day(day.Draw(t, "from")), Day(day.Draw(t, "to"))}
	}), 0, 8).Draw(t, label)
}

func modelOf(rs []DayRange) dayModel {
	m := dayModel{}
	for _, r := range rs {
		for d := r.From; d < r.To; d++ {
			m[d] = true
		}
	}
	return m
}

func (m dayModel) filter(keep func(Day) bool) dayModel {
	out := dayModel{}
	for d := range m {
		if keep(d) {
			out[d] = true
		}
	}
	return out
}

func checkSet(t *rapid.T, what string, s DaySet, m dayModel) {
	t.Helper()
	if s.Len() != len(m) {
		t.Fatalf("%s: Len() = %d, model has %d", what, s.Len(), len(m))
	}
	if s.Empty() != (len(m) == 0) {
		t.Fatalf("%s: Empty() = %v with %d days", what, s.Empty(), len(m))
	}
	for d := modelFrom - 32; d < modelTo+32; d++ {
		if s.Contains(d) != m[d] {
			t.Fatalf("%s: Contains(%s) = %v", what, d, s.Contains(d))
		}
	}
	rs := s.Ranges()
	for i, r := range rs {
		if r.Empty() || i > 0 && r.From <= rs[i-1].To {
			t.Fatalf("%s: not sorted, disjoint and non-adjacent: %v", what, rs)
		}
	}
	all := slices.Collect(s.All())
	if len(all) != len(m) || !slices.IsSorted(all) {
		t.Fatalf("%s: All() gives %d days", what, len(all))
	}
}

func TestDaySetAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ra, rb := drawRanges(t, "a"), drawRanges(t, "b")
		a, b := NewDaySet(ra...), NewDaySet(rb...)
		ma, mb := modelOf(ra), modelOf(rb)

		checkSet(t, "a", a, ma)
		checkSet(t, "union", a.Union(b), modelOf(append(slices.Clone(ra), rb...)))
		checkSet(t, "intersection", a.Intersect(b), ma.filter(func(d Day) bool { return mb[d] }))
		checkSet(t, "difference", a.Subtract(b), ma.filter(func(d Day) bool { return !mb[d] }))
		checkSet(t, "whole months", a.WholeMonths(), ma.filter(func(d Day) bool {
			for x := d.Month().First(); x < (d.Month() + 1).First(); x++ {
				if !ma[x] {
					return false
				}
			}
			return true
		}))
		checkSet(t, "a, unchanged", a, ma)

		if !a.Union(b).Equal(b.Union(a)) || !a.Intersect(b).Equal(b.Intersect(a)) {
			t.Fatal("union or intersection depends on the order")
		}
		if !a.Subtract(b).Union(a.Intersect(b)).Equal(a) {
			t.Fatal("difference and intersection do not make up the set")
		}
	})
}

func TestDaySetIsImmutable(t *testing.T) {
	t.Parallel()
	in := []DayRange{{10, 20}, {30, 40}}
	s := NewDaySet(in...)
	in[0] = DayRange{0, 1000}
	s.Ranges()[1] = DayRange{0, 1000}
	s.Union(NewDaySet(DayRange{20, 30}))
	if want := []DayRange{{10, 20}, {30, 40}}; !slices.Equal(s.Ranges(), want) {
		t.Errorf("set changed to %v", s.Ranges())
	}
}

func TestDaySetOpenEnd(t *testing.T) {
	t.Parallel()
	from := day(t, "2024-01-15")
	open := NewDaySet(DayRange{from, MaxDay})
	for name, tt := range map[string]struct{ got, want DaySet }{
		"whole months":      {open.WholeMonths(), NewDaySet(DayRange{day(t, "2024-02-01"), MaxDay})},
		"union with open":   {open.Union(NewDaySet(DayRange{from - 5, MaxDay})), NewDaySet(DayRange{from - 5, MaxDay})},
		"adjacent":          {NewDaySet(DayRange{MaxDay - 1, MaxDay}, DayRange{from, MaxDay - 1}), open},
		"subtract the tail": {open.Subtract(NewDaySet(DayRange{from + 3, MaxDay})), NewDaySet(DayRange{from, from + 3})},
		"subtract the head": {open.Subtract(NewDaySet(DayRange{0, from + 3})), NewDaySet(DayRange{from + 3, MaxDay})},
		"last months":       {NewDaySet(DayRange{MaxDay - 3, MaxDay}).WholeMonths(), DaySet{}},
	} {
		if !tt.got.Equal(tt.want) {
			t.Errorf("%s: %v, want %v", name, tt.got.Ranges(), tt.want.Ranges())
		}
	}
	if got, want := open.Len(), int(MaxDay-from); got != want {
		t.Errorf("Len() = %d, want %d", got, want)
	}
	if got := (DayRange{-MaxDay, MaxDay}).Len(); got != 2*int(MaxDay) {
		t.Errorf("Len() of everything = %d", got)
	}
	if MaxDay.AddMonths(1) != MaxDay || (MaxDay-1).AddMonths(1) < MaxDay-1 {
		t.Error("a day after the last one is earlier")
	}
	if open.Contains(MaxDay) || !open.Contains(MaxDay-1) {
		t.Error("MaxDay is no day, the one before is")
	}
}
