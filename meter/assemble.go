package meter

import (
	"cmp"
	"slices"
	"time"
)

// Assemble makes the series that spec allows out of the stored blocks, keyed
// by their day. Everything is exact:
//
//   - REGISTER of a register field at P1D is the read at the start of every
//     day of a run, and the closing read at the run's end; at P1M the reads at
//     month boundaries.
//   - Points of a register field are the reads at the start of the days, each
//     by itself, as REGISTER at P1D only. Two of them are never subtracted, and
//     there is no closing read: the day after may be another supplier's, or
//     another customer's.
//   - CONSUMPTION of a register field is the difference between the read at the
//     end of the day or month and the one at its start. A register that
//     decreases gives a negative difference.
//   - CONSUMPTION of intervals at a coarser resolution is the sum.
//   - REGISTER of intervals is the register at the start of every period, from
//     the register at the day's start; it is null after a gap in the day. There
//     is no closing read.
//
// A missing block counts as nulls, and so does one that does not fit its day.
// A null makes every value that needs it null. The quality of a value computed
// from others is the worst among them (AsProvided, Adjusted, Calculated,
// Temporary, Estimated, Incomplete, NotAvailable); of a null, the worst among
// its null parts.
//
// When no resolution was asked for, days stored at different resolutions come
// as one series each, finest first. A missing day is taken to be stored like
// the nearest day before it that is there, else the nearest after it; if there
// is none at all, as coarse as the field allows, or as fine as it allows when a
// resolution was asked for.
//
// Days that cannot be given are not in any series nor in its Expected, but
// among the shortfalls, which are sorted by day: FinerThanStored;
// KindNotAvailable for REGISTER of intervals stored without a register;
// PartialPeriod for days outside a whole month at P1M. What would be finer than
// granted comes back NotGrantedAtThisGranularity whatever the blocks hold: an
// unset or unknown Granularity grants nothing.
//
// Values share no memory with the blocks. Blocks within the limits that
// DecodeBlock enforces cannot overflow, whatever the period.
func Assemble(spec SeriesSpec, blocks map[Day]*Block, loc *time.Location) ([]Series, []Shortfall) {
	c := NewCalendar(loc)
	return c.Assemble(spec, func(d Day) *Block { return blocks[d] })
}

// Assemble is the function Assemble with blocks by a function of their day.
func (c *Calendar) Assemble(spec SeriesSpec, blocks func(Day) *Block) ([]Series, []Shortfall) {
	a := assembler{spec: &spec, blocks: blocks, calendar: c}
	switch {
	case spec.Days.Empty():
	case spec.Granularity == 0 || spec.Resolution != 0 && spec.Resolution < spec.Granularity,
		max(spec.Resolution, spec.Granularity) > P1M:
		a.withholdAll(NotGrantedAtThisGranularity)
	case spec.Kind != Register && spec.Kind != Consumption:
		a.withholdAll(KindNotAvailable)
	case spec.Points && spec.Field.Class != Registers:
		a.withholdAll(NotCoveredByRule)
	case spec.Points && spec.Kind != Register:
		a.withholdAll(KindNotAvailable)
	case spec.Points && max(spec.Resolution, spec.Granularity) == P1M:
		a.withholdAll(PartialPeriod)
	case spec.Field.Class == Registers:
		a.registers()
	case spec.Field.Class == Intervals:
		a.intervals()
	default:
		a.withholdAll(NotCoveredByRule)
	}
	return a.series, a.shortfalls()
}

type assembler struct {
	spec     *SeriesSpec
	blocks   func(Day) *Block
	calendar *Calendar
	series   []Series
	withheld [NotCoveredByRule + 1][]DayRange // by reason
}

func (a *assembler) withhold(reason Reason, days ...DayRange) {
	a.withheld[reason] = append(a.withheld[reason], days...)
}

func (a *assembler) withholdAll(reason Reason) { a.withhold(reason, a.spec.Days.r...) }

func (a *assembler) shortfalls() []Shortfall {
	var out []Shortfall
	for reason, days := range a.withheld {
		for _, r := range NewDaySet(days...).r {
			out = append(out, Shortfall{r, Reason(reason)})
		}
	}
	slices.SortStableFunc(out, func(x, y Shortfall) int { return cmp.Compare(x.Days.From, y.Days.From) })
	return out
}

func (a *assembler) done(b *seriesBuilder) {
	if len(b.Days) > 0 {
		a.series = append(a.series, b.Series)
	}
}

// wholeMonths returns the granted days that make up whole months, and
// withholds the others.
func (a *assembler) wholeMonths() DaySet {
	whole := a.spec.Days.WholeMonths()
	a.withhold(PartialPeriod, a.spec.Days.Subtract(whole).r...)
	return whole
}

// block returns the block of a day, or nil when it is missing or does not fit.
func (a *assembler) block(d Day) *Block {
	b := a.blocks(d)
	if b == nil || b.Day != d {
		return nil
	}
	slots, _, err := a.calendar.blockShape(d, b.Resolution, a.spec.Field.Class)
	if err != nil || len(b.Values) != slots || b.Quality != nil && len(b.Quality) != slots {
		return nil
	}
	return b
}

func (b *Block) at(i int) reading {
	if b.Quality == nil {
		return reading{b.Values[i], AsProvided}
	}
	return reading{b.Values[i], b.Quality[i]}
}

// registers assembles a register field: reads at the starts of days, taken
// daily or at the starts of months.
func (a *assembler) registers() {
	res := max(a.spec.Resolution, a.spec.Granularity, P1D)
	if r := a.spec.Resolution; r != 0 && r < P1D {
		a.withholdAll(FinerThanStored)
		return
	}
	days := a.spec.Days
	next := func(d Day) Day { return d + 1 }
	if res == P1M {
		days = a.wholeMonths()
		next = func(d Day) Day { return (d.Month() + 1).First() }
	}

	n := days.Len()
	if res == P1M {
		n /= 28
	}
	if !a.spec.Points {
		n += len(days.r) // the closing reads
	}
	b := newSeriesBuilder(a.spec, res, n, n)
	for _, run := range days.r {
		for d := run.From; d < run.To; {
			end := next(d)
			b.begin(d, 1)
			if a.spec.Kind == Register {
				b.set(0, a.read(d))
			} else {
				b.set(0, a.difference(d, end))
			}
			d = end
		}
		if a.spec.Kind == Register && !a.spec.Points {
			b.begin(run.To, 1)
			b.set(0, a.read(run.To))
		}
	}
	a.done(b)
}

func (a *assembler) read(d Day) reading {
	if b := a.block(d); b != nil {
		return b.at(0)
	}
	return missing
}

func (a *assembler) difference(from, to Day) reading {
	start := a.read(from)
	if start.value != Null {
		start.value = -start.value
	}
	var t total
	t.add(start)
	t.add(a.read(to))
	return t.reading()
}

// storedDay is a granted day of an interval field.
type storedDay struct {
	day    Day
	block  *Block     // nil when missing
	stored Resolution // of the block, or presumed
	slots  int        // at the resolution of the answer
}

// intervals assembles an interval field.
func (a *assembler) intervals() {
	days := a.spec.Days
	if max(a.spec.Resolution, a.spec.Granularity) == P1M {
		days = a.wholeMonths()
	}
	var byResolution [P1M + 1][]storedDay
	for _, d := range a.storedDays(days) {
		res := a.spec.Resolution
		if res == 0 {
			res = max(d.stored, a.spec.Granularity)
		}
		switch {
		case d.stored > res:
			a.withhold(FinerThanStored, DayRange{d.day, d.day + 1})
		case a.spec.Kind == Register && res != P1M && d.block != nil && d.block.Start == Null:
			a.withhold(KindNotAvailable, DayRange{d.day, d.day + 1})
		default:
			if byResolution[res] == nil {
				byResolution[res] = make([]storedDay, 0, days.Len())
			}
			byResolution[res] = append(byResolution[res], d)
		}
	}
	for res, days := range byResolution {
		switch {
		case len(days) == 0:
		case Resolution(res) == P1M:
			a.monthly(days)
		default:
			a.daily(Resolution(res), days)
		}
	}
}

// storedDays looks up the blocks and settles the resolution of missing ones.
func (a *assembler) storedDays(days DaySet) []storedDay {
	out := make([]storedDay, 0, days.Len())
	var first, last Resolution
	for d := range days.All() {
		b := a.block(d)
		if b != nil {
			last = b.Resolution
			if first == 0 {
				first = last
			}
		}
		out = append(out, storedDay{day: d, block: b, stored: last})
	}
	if first == 0 {
		first = a.presumed()
	}
	for i := range out {
		if out[i].stored != 0 {
			break
		}
		out[i].stored = first
	}
	return out
}

// presumed is the stored resolution when nothing is stored.
func (a *assembler) presumed() Resolution {
	stored := a.spec.Field.Stored
	switch {
	case len(stored) == 0:
		return PT15M
	case a.spec.Resolution != 0:
		return stored[0]
	default:
		return stored[len(stored)-1]
	}
}

// daily assembles days at a resolution within the day, or P1D.
func (a *assembler) daily(res Resolution, days []storedDay) {
	n := 0
	for i := range days {
		if d := &days[i]; d.block != nil && d.stored == res {
			d.slots = len(d.block.Values)
		} else {
			d.slots = a.calendar.Slots(d.day, res)
		}
		n += days[i].slots
	}
	b := newSeriesBuilder(a.spec, res, len(days), n)
	for _, d := range days {
		b.begin(d.day, d.slots)
		if d.block == nil {
			for i := range d.slots {
				b.set(i, missing)
			}
			continue
		}
		if d.stored == res && a.spec.Kind == Consumption {
			b.copy(d.block)
			continue
		}
		parts := len(d.block.Values) // of one value
		if res != P1D {
			parts = int(res.duration() / d.stored.duration())
		}
		var t total
		if a.spec.Kind == Register {
			t.add(reading{value: d.block.Start})
		}
		for i := range d.slots {
			if a.spec.Kind == Register {
				b.set(i, t.reading())
			} else {
				t = total{}
			}
			for j := i * parts; j < min((i+1)*parts, len(d.block.Values)); j++ {
				t.add(d.block.at(j))
			}
			if a.spec.Kind == Consumption {
				b.set(i, t.reading())
			}
		}
	}
	a.done(b)
}

// monthly assembles whole months, given as all their days.
func (a *assembler) monthly(days []storedDay) {
	months := len(days)/28 + 1
	b := newSeriesBuilder(a.spec, P1M, months, months)
	for len(days) > 0 {
		month := DayRange{days[0].day, (days[0].day.Month() + 1).First()}
		part := days[:month.Len()]
		days = days[month.Len():]

		var t total
		if a.spec.Kind == Register {
			if first := part[0].block; first == nil {
				t.add(missing)
			} else if first.Start == Null {
				a.withhold(KindNotAvailable, month)
				continue
			} else {
				t.add(reading{value: first.Start})
			}
		} else {
			for _, d := range part {
				if d.block == nil {
					t.add(missing)
					continue
				}
				for i := range d.block.Values {
					t.add(d.block.at(i))
				}
			}
		}
		b.begin(month.From, 1)
		b.set(0, t.reading())
	}
	a.done(b)
}
