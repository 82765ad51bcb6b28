package meter

import (
	"cmp"
	"iter"
	"slices"
)

// DaySet is a set of days, held as sorted, disjoint, non-adjacent ranges. The
// zero value is the empty set. Immutable.
type DaySet struct{ r []DayRange }

// NewDaySet returns the days in any of the ranges, which may overlap, touch
// and come in any order; empty ones are ignored.
func NewDaySet(r ...DayRange) DaySet {
	in := make([]DayRange, 0, len(r))
	for _, x := range r {
		if !x.Empty() {
			in = append(in, x)
		}
	}
	slices.SortFunc(in, func(a, b DayRange) int { return cmp.Compare(a.From, b.From) })
	return DaySet{merge(in)}
}

// merge joins ranges that overlap or touch, in place. They are sorted by From
// and none is empty.
func merge(in []DayRange) []DayRange {
	if len(in) == 0 {
		return nil
	}
	out := in[:1]
	for _, x := range in[1:] {
		if last := &out[len(out)-1]; x.From <= last.To {
			last.To = max(last.To, x.To)
		} else {
			out = append(out, x)
		}
	}
	return out
}

// Ranges returns a copy of the set's ranges: sorted, and with at least one day
// between any two.
func (s DaySet) Ranges() []DayRange { return slices.Clone(s.r) }

// All yields the days in order. A set without an end does not end.
func (s DaySet) All() iter.Seq[Day] {
	return func(yield func(Day) bool) {
		for _, x := range s.r {
			for d := x.From; d < x.To; d++ {
				if !yield(d) {
					return
				}
			}
		}
	}
}

// Empty reports whether the set holds no day.
func (s DaySet) Empty() bool { return len(s.r) == 0 }

// Len counts the days.
func (s DaySet) Len() int {
	n := 0
	for _, x := range s.r {
		n += x.Len()
	}
	return n
}

// Contains reports whether the day is in the set.
func (s DaySet) Contains(d Day) bool {
	// The first range that ends after the day is the only one that can hold it.
	i, _ := slices.BinarySearchFunc(s.r, d, func(x DayRange, d Day) int {
		if x.To <= d {
			return -1
		}
		return 1
	})
	return i < len(s.r) && s.r[i].Contains(d)
}

// Equal reports whether both sets hold the same days.
func (s DaySet) Equal(o DaySet) bool { return slices.Equal(s.r, o.r) }

// Union returns the days in either set.
func (s DaySet) Union(o DaySet) DaySet {
	return NewDaySet(append(slices.Clone(s.r), o.r...)...)
}

// Intersect returns the days in both sets.
func (s DaySet) Intersect(o DaySet) DaySet {
	var out []DayRange
	for i, j := 0, 0; i < len(s.r) && j < len(o.r); {
		if x := s.r[i].Intersect(o.r[j]); !x.Empty() {
			out = append(out, x)
		}
		if s.r[i].To < o.r[j].To {
			i++
		} else {
			j++
		}
	}
	return DaySet{out}
}

// Subtract returns the days of s that are not in o.
func (s DaySet) Subtract(o DaySet) DaySet {
	var out []DayRange
	j := 0
	for _, x := range s.r {
		for j < len(o.r) && o.r[j].To <= x.From {
			j++
		}
		from := x.From
		for k := j; k < len(o.r) && o.r[k].From < x.To; k++ {
			if o.r[k].From > from {
				out = append(out, DayRange{from, o.r[k].From})
			}
			from = max(from, o.r[k].To)
		}
		if from < x.To {
			out = append(out, DayRange{from, x.To})
		}
	}
	return DaySet{out}
}

// WholeMonths returns the days of the calendar months that lie wholly in the
// set. A range without an end stays without an end.
func (s DaySet) WholeMonths() DaySet {
	var out []DayRange
	for _, x := range s.r {
		if x = x.WholeMonths(); !x.Empty() {
			out = append(out, x)
		}
	}
	return DaySet{out}
}
