package conformance

import (
	"slices"
	"sync"
	"time"

	"kluis/meter"
)

// Stored is readings of one field as they are stored.
type Stored struct {
	Field      string
	Days       []meter.DayRange
	Resolution meter.Resolution // P1D for registers

	Absent    []meter.Day // days of which nothing came in
	Gaps      []Slots     // intervals that the meter did not report
	Estimated []Slots     // intervals that somebody estimated
	NoStart   bool        // intervals without the register at the day's start
	Corrected []meter.Day // stored with other values first, then with these
}

// Slots are intervals of a day, From included, To not, counted from 0.
type Slots struct {
	Day      meter.Day
	From, To int
}

func holds(all []Slots, d meter.Day, slot int) bool {
	return slices.ContainsFunc(all, func(s Slots) bool { return s.Day == d && s.From <= slot && slot < s.To })
}

// has says whether anything of the day is stored.
func (s *Stored) has(d meter.Day) bool {
	return !slices.Contains(s.Absent, d) && slices.ContainsFunc(s.Days, func(r meter.DayRange) bool { return r.Contains(d) })
}

// all lists the days stored, in order.
func (s *Stored) all() []meter.Day {
	var out []meter.Day
	for _, r := range s.Days {
		for d := r.From; d < r.To; d++ {
			if s.has(d) {
				out = append(out, d)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// field is what the contract says of a field, and its digit in the values.
type field struct {
	name, obis, unit string
	digit            int64
	register         bool
}

var fields = []field{
	{"import_low", "1-0:1.8.1", "kWh", 1, true},
	{"import_normal", "1-0:1.8.2", "kWh", 2, true},
	{"export_low", "1-0:2.8.1", "kWh", 3, true},
	{"export_normal", "1-0:2.8.2", "kWh", 4, true},
	{"gas", "0-n:24.2.1", "m3", 5, true},
	{"import_intervals", "1-0:1.8.0", "kWh", 6, false},
	{"export_intervals", "1-0:2.8.0", "kWh", 7, false},
	{"gas_intervals", "0-n:24.2.1", "m3", 8, false},
}

func fieldNamed(name string) field {
	for _, f := range fields {
		if f.name == name {
			return f
		}
	}
	panic("conformance: no field " + name)
}

// The values say where they come from. They are in thousandths of the unit:
// Wh, or dm3.

// interval is the consumption of one interval: the field's digit, month, day and
// the number of the interval in two digits each. 6.11.29 and the interval 08 is
// 6112.908 kWh of import_intervals on 29 November from 02:00 to 02:15.
func (f field) interval(d meter.Day, slot int) int64 {
	_, m, dd := date(d)
	return f.digit*1_000_000 + int64(m)*10_000 + int64(dd)*100 + int64(slot)
}

// used is the consumption of a day by a register: the field's digit, month and
// day. 1.11.29 is 11.129 kWh of import_low on 29 November.
func (f field) used(d meter.Day) int64 {
	_, m, dd := date(d)
	return f.digit*10_000 + int64(m)*100 + int64(dd)
}

// installed is when all meters stood at zero.
var installed = dayOn(2020, time.January, 1)

// read is a register at the start of a day: all that was used before. The field's
// digit counts every day, month and day are added up in monthsAndDays.
func (f field) read(d meter.Day) int64 {
	return f.digit*10_000*int64(d-installed) + monthsAndDays()[d-installed]
}

// monthsAndDays are the sums, for the days since installed, of what used adds for
// month and day.
var monthsAndDays = sync.OnceValue(func() []int64 {
	sums := []int64{0}
	for d := installed; d < dayOn(2100, time.January, 1); d++ {
		sums = append(sums, sums[len(sums)-1]+field{}.used(d))
	}
	return sums
})

// readOfIntervals is the register beside intervals at the start of a day: a
// million units for every day since the meter was installed.
func (f field) readOfIntervals(d meter.Day) int64 { return int64(d-installed) * 1_000_000_000 }

// slots is how many intervals a local day has.
func (c calendar) slots(d meter.Day, length time.Duration) int {
	n := 0
	for t := c.midnight(d); t.Before(c.midnight(d + 1)); t = t.Add(length) {
		n++
	}
	return n
}

func length(r meter.Resolution) time.Duration {
	switch r {
	case meter.PT15M:
		return 15 * time.Minute
	case meter.PT1H:
		return time.Hour
	}
	panic("conformance: not a resolution of intervals")
}

// Block is a block to be stored.
type Block struct {
	Field string
	meter.Block
}

// Blocks are the readings of a metering point. Those of the first round hold
// other values on the days that are corrected; the second round is the
// corrections, and may be empty.
func (p *Point) Blocks(m Market) (first, second []Block) {
	c := calendar{Market: m}
	for i := range p.Readings {
		s := &p.Readings[i]
		for _, d := range s.all() {
			b := Block{s.Field, s.block(c, d)}
			if slices.Contains(s.Corrected, d) {
				second = append(second, b)
				wrong := Block{s.Field, b.Block}
				wrong.Values = slices.Clone(b.Values)
				for i := range wrong.Values {
					wrong.Values[i] += 1_000_000
				}
				b = wrong
			}
			first = append(first, b)
		}
	}
	return first, second
}

func (s *Stored) block(c calendar, d meter.Day) meter.Block {
	f := fieldNamed(s.Field)
	b := meter.Block{Day: d, Resolution: s.Resolution, Start: meter.Null}
	if f.register {
		b.Values = []meter.Value{meter.Value(f.read(d))}
		return b
	}
	if !s.NoStart {
		b.Start = meter.Value(f.readOfIntervals(d))
	}
	for slot := range c.slots(d, length(s.Resolution)) {
		v, q := meter.Value(f.interval(d, slot)), meter.AsProvided
		switch {
		case holds(s.Gaps, d, slot):
			v = meter.Null
		case holds(s.Estimated, d, slot):
			q = meter.Estimated
		}
		b.Values, b.Quality = append(b.Values, v), append(b.Quality, q)
	}
	return b
}
