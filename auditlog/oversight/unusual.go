package oversight

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"kluis/meter"
)

// Kind says in what way something is unusual.
type Kind uint8

// The values are stored: never renumber.
const (
	// Burst: an hour with far more metering points asked for, and addresses searched
	// for, than this party usually asks for around that hour of that day of the week.
	Burst Kind = 1
	// BroadLook: a day on which an employee looked at many more different
	// metering points than usual, or at more than work on the telephone explains.
	BroadLook Kind = 2
	// OffHours: a day on which an employee did much outside of working hours.
	OffHours Kind = 3
	// Refusals: a day on which much of what a party asked for was refused, as
	// when somebody tries out what there is.
	Refusals Kind = 4
	// Searches: a day on which an employee searched by address many more times than
	// usual, or than work on the telephone explains, whatever was found.
	Searches Kind = 5
	// Found: a day on which an employee's searches told of many more different
	// metering points than usual, as when somebody maps the grid.
	Found Kind = 6
)

// Kinds are all there are.
func Kinds() []Kind { return []Kind{Burst, BroadLook, OffHours, Refusals, Searches, Found} }

// String is the name in the contract and in the metrics.
func (k Kind) String() string {
	names := [...]string{"", "BURST", "BREADTH", "OFF_HOURS", "REFUSALS", "SEARCHES", "FOUND"}
	if k < Burst || int(k) >= len(names) {
		return fmt.Sprintf("Kind(%d)", uint8(k))
	}
	return names[k]
}

// Unusual is one hour or day of a party. It proves nothing: somebody who knows
// the party should look at it.
type Unusual struct {
	Kind
	Party
	From, To time.Time
	Count    int64 // records; metering points of BroadLook and Found, searches of Searches, both of a Burst
	Usual    int64 // of such an hour or day of the party's last four weeks; 0: there was none
}

// What is unusual. All numbers are of access records (one for each metering point
// of a request) but for breadth, searches and what they found. docs/AUDIT.md explains each.
const (
	history = 28 // days that are compared with

	// A burst is more than five times what is usual, and so much that it matters: a
	// supplier that fetches the readings of so many homes in an hour, or an
	// employee who makes ten requests a minute for an hour.
	burstFactor   = 5
	burstSupplier = 10_000
	burstEmployee = 600

	// Breadth: sixty homes are a busy day on the telephone (eight minutes each),
	// and three times as many as the employee's usual day is another kind of work.
	// Two hundred are unusual whatever was usual: less than two and a half minutes
	// each, all day.
	breadthFactor = 3
	breadthFloor  = 60
	breadthAlways = 200

	// Searches: one for each home of a busy day, as above.
	searchFactor = 3
	searchFloor  = 60
	searchAlways = 200

	// Found: a search tells of all there is at an address, a few mostly, dozens in a
	// block of flats; more than eight for each home of a busy day. Two thousand are
	// unusual whatever was usual.
	foundFactor = 3
	foundFloor  = 500
	foundAlways = 2000

	// Off hours: to open one home in the portal takes about five requests. Two of
	// them are a call that went on after closing time.
	offFactor = 3
	offFloor  = 11

	// Refusals: a quarter of the day's requests, and many (a supplier that runs the
	// test pack a few times a day stays below); or, of a party that asks
	// for so much that a quarter is never reached, ten times the floor and ten times
	// what is usual.
	refusedShare    = 4
	refusedFactor   = 3
	refusedSupplier = 500
	refusedEmployee = 30
	refusedMany     = 10
)

// asks is what counts of an hour for a burst.
func (h *Hour) asks() int64 { return h.Points + h.Searches }

func (p Party) floor(supplier, employee int64) int64 {
	if p.Employee == "" {
		return supplier
	}
	return employee
}

// Day is the beginning of the local day of a time, and how far back rows
// are needed to say what is unusual from that day on.
func Day(zone *time.Location, at time.Time) (day, since time.Time) {
	d := meter.DayOf(at, zone)
	return d.Start(zone), (d - history - 1).Start(zone)
}

// Candidates are the parties of which an hour or day from since on may be
// unusual, by the floors alone: of no other party is the past needed.
func Candidates(zone *time.Location, hours []Hour, days []Breadth, since time.Time) []Party {
	found := map[Party]bool{}
	for p, hours := range byParty(hours) {
		_, mine := daysOf(zone, hours)
		for _, h := range hours {
			found[p] = found[p] || !h.At.Before(since) && h.asks() >= p.floor(burstSupplier, burstEmployee)
		}
		for d, sum := range mine {
			late := !(d + 1).Start(zone).Before(since)
			found[p] = found[p] || late && (sum.off >= offFloor || sum.searches >= searchFloor || sum.refused >= p.floor(refusedSupplier, refusedEmployee))
		}
	}
	operators := operatorsOf(hours)
	for _, b := range days {
		p := Party{operators[b.Employee], b.Employee}
		if (b.Points >= breadthFloor || b.Found >= foundFloor) && !(b.Day + 1).Start(zone).Before(since) && !p.GLN.IsZero() {
			found[p] = true
		}
	}
	var out []Party
	for p, is := range found {
		if is {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, Party.compare)
	return out
}

// Detect says what is unusual in the hours that begin, and the local days that
// end, at since or later. The rows are those of since's day and later, and the
// history of the four weeks before; each hour and day at most once, in any order.
func Detect(zone *time.Location, hours []Hour, days []Breadth, since time.Time) []Unusual {
	var out []Unusual
	for p, hours := range byParty(hours) {
		first, mine := daysOf(zone, hours)
		asked := make(map[time.Time]int64, len(hours))
		for _, h := range hours {
			asked[h.At.UTC()] += h.asks()
		}
		for _, h := range hours {
			if h.At.Before(since) || h.asks() < p.floor(burstSupplier, burstEmployee) {
				continue
			}
			if usual := usualHour(zone, asked, first, h.At); h.asks() > burstFactor*usual {
				out = append(out, Unusual{Burst, p, h.At.UTC(), h.At.UTC().Add(time.Hour), h.asks(), usual})
			}
		}
		for d, sum := range mine {
			if (d + 1).Start(zone).Before(since) {
				continue
			}
			day := func(k Kind, count, usual int64) {
				out = append(out, Unusual{k, p, d.Start(zone).UTC(), (d + 1).Start(zone).UTC(), count, usual})
			}
			if usual := usualDay(mine, d, func(s daySum) int64 { return s.off }); sum.off >= offFloor && sum.off > offFactor*usual {
				day(OffHours, sum.off, usual)
			}
			searched := usualDay(mine, d, func(s daySum) int64 { return s.searches })
			if n := sum.searches; n >= searchFloor && (n > searchFactor*searched || n >= searchAlways) {
				day(Searches, n, searched)
			}
			floor := p.floor(refusedSupplier, refusedEmployee)
			usual := usualDay(mine, d, func(s daySum) int64 { return s.refused })
			share := sum.refused >= floor && sum.refused*refusedShare >= sum.requests && sum.refused > refusedFactor*usual
			if share || sum.refused >= refusedMany*floor && sum.refused > refusedMany*usual {
				day(Refusals, sum.refused, usual)
			}
		}
	}
	operators := operatorsOf(hours)
	looked := func(b Breadth) int64 { return b.Points }
	found := func(b Breadth) int64 { return b.Found }
	out = append(out, broad(zone, operators, days, since, BroadLook, looked, breadthFloor, breadthFactor, breadthAlways)...)
	out = append(out, broad(zone, operators, days, since, Found, found, foundFloor, foundFactor, foundAlways)...)
	slices.SortFunc(out, func(a, b Unusual) int {
		return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.Kind, b.Kind), a.compare(b.Party))
	})
	return out
}

// broad says which days have too many different metering points, as of tells them.
// A day with none is no day to compare with.
func broad(zone *time.Location, operators map[string]meter.GLN, days []Breadth, since time.Time, kind Kind, of func(Breadth) int64, floor, factor, always int64) []Unusual {
	looked := map[string]map[meter.Day]int64{}
	for _, b := range days {
		if of(b) == 0 {
			continue
		}
		if looked[b.Employee] == nil {
			looked[b.Employee] = map[meter.Day]int64{}
		}
		looked[b.Employee][b.Day] = of(b)
	}
	var out []Unusual
	for employee, mine := range looked {
		for d, n := range mine {
			if n < floor || (d + 1).Start(zone).Before(since) || operators[employee].IsZero() {
				continue
			}
			usual := usualDay(mine, d, func(n int64) int64 { return n })
			if n > factor*usual || n >= always {
				out = append(out, Unusual{kind, Party{operators[employee], employee}, d.Start(zone).UTC(), (d + 1).Start(zone).UTC(), n, usual})
			}
		}
	}
	return out
}

// operatorsOf are the GLNs under which employees ask.
func operatorsOf(hours []Hour) map[string]meter.GLN {
	out := map[string]meter.GLN{}
	for _, h := range hours {
		if h.Employee != "" {
			out[h.Employee] = h.GLN
		}
	}
	return out
}

func byParty(hours []Hour) map[Party][]Hour {
	out := map[Party][]Hour{}
	for _, h := range hours {
		out[h.Party] = append(out[h.Party], h)
	}
	return out
}

// daySum is what a party did on a local day.
type daySum struct{ requests, refused, off, searches int64 }

// daysOf sums a party's hours by local day, and says when the first of them is.
func daysOf(zone *time.Location, hours []Hour) (first time.Time, sums map[meter.Day]daySum) {
	sums = map[meter.Day]daySum{}
	for _, h := range hours {
		if first.IsZero() || h.At.Before(first) {
			first = h.At
		}
		d := meter.DayOf(h.At, zone)
		s := sums[d]
		s.requests, s.refused, s.off, s.searches = s.requests+h.Requests, s.refused+h.Refused, s.off+h.OffHours, s.searches+h.Searches
		sums[d] = s
	}
	return first, sums
}

// usualHour is the median, over those of the last four weeks in which the party
// was there, of the busiest of the three hours around the same local hour of the
// same day of the week: what runs once a week, and not always on the minute, is
// usual.
func usualHour(zone *time.Location, asked map[time.Time]int64, first, at time.Time) int64 {
	local := at.In(zone)
	var weeks []int64
	for w := 7; w <= history; w += 7 {
		same := time.Date(local.Year(), local.Month(), local.Day()-w, local.Hour(), local.Minute(), 0, 0, zone).UTC()
		if same.Add(time.Hour).Before(first) {
			break
		}
		weeks = append(weeks, max(asked[same.Add(-time.Hour)], asked[same], asked[same.Add(time.Hour)]))
	}
	return median(weeks)
}

// usualDay is the median of those days of the four weeks before that there are:
// on which the party did anything.
func usualDay[T any](days map[meter.Day]T, d meter.Day, of func(T) int64) int64 {
	var counts []int64
	for back := meter.Day(1); back <= history; back++ {
		if day, ok := days[d-back]; ok {
			counts = append(counts, of(day))
		}
	}
	return median(counts)
}

// median is the upper one of an even number; 0 of none.
func median(v []int64) int64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[len(v)/2]
}
