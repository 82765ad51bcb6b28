package meter

import "time"

// Calendar answers for one location what Day.Start and Slots do, and remembers
// between which changes of the clocks the last day lay: of days in a row few
// take a look at the zone. Not safe for concurrent use.
type Calendar struct {
	loc *time.Location
	// The days from first to before end start at 00:00 by the same offset, and
	// no change is near them.
	first, end Day
	offset     int64
}

// NewCalendar is the calendar of a location.
func NewCalendar(loc *time.Location) Calendar { return Calendar{loc: loc} }

// far from a change of the clocks is nothing but one local 00:00.
const far = 48 * time.Hour

// near a change are so many days that are looked up each by itself.
const near = 6

// Start is Day.Start.
func (c *Calendar) Start(d Day) time.Time {
	if c.known(d) {
		return time.Unix(int64(d)*86400-c.offset, 0).In(c.loc)
	}
	return d.Start(c.loc)
}

// Slots is the function Slots.
func (c *Calendar) Slots(d Day, r Resolution) int {
	if length := r.duration(); length != 0 && c.known(d) && d+1 < c.end {
		return int(24 * time.Hour / length)
	}
	return Slots(d, r, c.loc)
}

// known says whether the day is far from all changes.
func (c *Calendar) known(d Day) bool {
	if c.first <= d && d < c.end {
		return true
	}
	if c.first < c.end && c.first-near < d && d < c.end+near || d == MaxDay {
		return false
	}
	t := d.Start(c.loc)
	since, until := t.ZoneBounds()
	// A year either way is enough.
	if since.IsZero() || t.Sub(since) > 366*24*time.Hour {
		since = t.AddDate(-1, 0, 0)
	}
	if until.IsZero() || until.Sub(t) > 366*24*time.Hour {
		until = t.AddDate(1, 0, 0)
	}
	if t.Sub(since) <= far || until.Sub(t) <= far {
		return false
	}
	_, offset := t.Zone()
	c.offset = int64(offset)
	c.first = d - Day((t.Sub(since)-far)/(24*time.Hour)) // each of 24 hours
	c.end = d + Day((until.Sub(t)-far)/(24*time.Hour))
	return c.first <= d && d < c.end
}
