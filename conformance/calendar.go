package conformance

import (
	"time"

	"kluis/meter"
)

// calendar is what the tables say days with.
type calendar struct {
	Market
	seeded, today meter.Day
}

func newCalendar(m Market, seeded, today meter.Day) calendar { return calendar{m, seeded, today} }

// dayOn is the day with this date, however far beyond the month dd is.
func dayOn(y int, m time.Month, dd int) meter.Day {
	return meter.Day(time.Date(y, m, dd, 0, 0, 0, 0, time.UTC).Unix() / 86400)
}

// date splits a day.
func date(d meter.Day) (int, time.Month, int) {
	return time.Unix(int64(d)*86400, 0).UTC().Date()
}

// monthStart is the first day of the month n months after that of seeding.
func (c calendar) monthStart(n int) meter.Day {
	y, m, _ := date(c.seeded)
	return dayOn(y, m+time.Month(n), 1)
}

// nextMonth is the first day of the month after that of d.
func nextMonth(d meter.Day) meter.Day {
	y, m, _ := date(d)
	return dayOn(y, m+1, 1)
}

// midnight is when a local day begins.
func (c calendar) midnight(d meter.Day) time.Time {
	y, m, dd := date(d)
	return time.Date(y, m, dd, 0, 0, 0, 0, c.Location)
}

// lastOf is the last day that is so many hours long, and over as of the day of
// seeding together with the day after it: the clocks change twice a year.
func (c calendar) lastOf(hours int) meter.Day {
	for d := c.seeded - 2; d > c.seeded-400; d-- {
		if c.midnight(d+1).Sub(c.midnight(d)) == time.Duration(hours)*time.Hour {
			return d
		}
	}
	return c.seeded - 2 // a market without changes of the clocks: an ordinary day
}

func (c calendar) spring() meter.Day { return c.lastOf(23) }
func (c calendar) autumn() meter.Day { return c.lastOf(25) }

// retained is the first day of which readings are kept as of a day.
func (c calendar) retained(as meter.Day) meter.Day {
	y, m, dd := date(as)
	first := dayOn(y, m-time.Month(c.RetentionMonths), 1)
	return min(first+meter.Day(dd)-1, nextMonth(first)-1)
}

// long is a day before everything that is kept.
func (c calendar) long() meter.Day { return c.retained(c.seeded) - 100 }

// days is the half-open range [from, to).
func days(from, to meter.Day) meter.DayRange { return meter.DayRange{From: from, To: to} }

// since is a range without an end.
func since(from meter.Day) meter.DayRange { return meter.DayRange{From: from, To: meter.MaxDay} }
