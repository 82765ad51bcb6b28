package meter

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Day is a local calendar day of the market, counted from 1970-01-01. It says
// nothing of a time zone: the profile's location turns it into instants.
type Day int32

// Month is a local calendar month, counted from January 1970.
type Month int32

// MaxDay stands for "no end": it is the To of a range that is still open.
const MaxDay Day = math.MaxInt32

// ErrDay says that a text is not a calendar day.
var ErrDay = errors.New("not a day: want YYYY-MM-DD, a day that exists")

// ParseDay accepts an RFC 3339 full-date.
func ParseDay(s string) (Day, error) {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil || t.Year() < 1970 {
		return 0, ErrDay
	}
	return Day(t.Unix() / 86400), nil
}

// DayOf returns the local day that holds the instant.
func DayOf(t time.Time, loc *time.Location) Day {
	y, m, d := t.In(loc).Date()
	return DayFromDate(y, m, d)
}

// DayFromDate normalises like time.Date. Days beyond MaxDay become MaxDay.
func DayFromDate(y int, m time.Month, d int) Day {
	n := time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Unix() / 86400
	return Day(min(max(n, math.MinInt32), int64(MaxDay)))
}

func (d Day) utc() time.Time { return time.Unix(int64(d)*86400, 0).UTC() }

func (d Day) String() string { return d.utc().Format(time.DateOnly) }

// Date splits the day.
func (d Day) Date() (int, time.Month, int) { return d.utc().Date() }

// Start is the day's first instant: local 00:00, the first of two where the
// clocks are set back over it, or the first moment that exists where they
// skip it.
func (d Day) Start(loc *time.Location) time.Time {
	y, m, dd := d.Date()
	t := time.Date(y, m, dd, 0, 0, 0, 0, loc)
	since, until := t.ZoneBounds()
	if (since.IsZero() || t.Sub(since) > far) && (until.IsZero() || until.Sub(t) > far) {
		return t
	}
	// Near a change of the clocks time.Date may choose either offset. The first
	// instant whose local time is 00:00 or later is a change, or 00:00 by the
	// offset of before or after one.
	wall := int64(d) * 86400
	first := time.Time{}
	for _, c := range []time.Time{since.Add(-1), since, t, until} {
		_, offset := c.Zone()
		for _, c := range []time.Time{c, time.Unix(wall-int64(offset), 0).In(loc)} {
			if _, offset := c.Zone(); c.Unix()+int64(offset) >= wall && (first.IsZero() || c.Before(first)) {
				first = c
			}
		}
	}
	return first
}

// Month returns the month that holds the day.
func (d Day) Month() Month {
	y, m, _ := d.Date()
	return Month((y-1970)*12 + int(m) - 1)
}

// AddMonths moves to the same day n months on, or the month's last day where
// that does not exist. MaxDay stays MaxDay.
func (d Day) AddMonths(n int) Day {
	if d == MaxDay {
		return MaxDay
	}
	_, _, dd := d.Date()
	first := (d.Month() + Month(n)).First()
	last := (d.Month() + Month(n) + 1).First() - 1
	return Day(min(int64(first)+int64(dd)-1, int64(last)))
}

// First is the month's first day.
func (m Month) First() Day { return DayFromDate(1970, time.January+time.Month(m), 1) }

func (m Month) String() string {
	y, mm, _ := m.First().Date()
	return fmt.Sprintf("%04d-%02d", y, int(mm))
}

// DayRange is the half-open range of days [From, To); empty when To <= From.
type DayRange struct{ From, To Day }

// Empty reports whether the range holds no day.
func (r DayRange) Empty() bool { return r.To <= r.From }

// Len counts the days.
func (r DayRange) Len() int { return max(0, int(int64(r.To)-int64(r.From))) }

// Contains reports whether the day lies in the range.
func (r DayRange) Contains(d Day) bool { return r.From <= d && d < r.To }

// Intersect returns the days in both ranges.
func (r DayRange) Intersect(o DayRange) DayRange {
	return DayRange{max(r.From, o.From), min(r.To, o.To)}
}

// WholeMonths returns the days of the calendar months that lie wholly in the
// range. One without an end stays without an end.
func (r DayRange) WholeMonths() DayRange {
	if m := r.From.Month(); r.From != m.First() {
		r.From = (m + 1).First()
	}
	if r.To != MaxDay {
		r.To = r.To.Month().First()
	}
	return r
}
