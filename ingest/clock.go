package ingest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// clock reads the time column of a mapping.
type clock struct {
	epoch   bool
	rfc3339 bool
	layout  []token        // of local times
	loc     *time.Location // of local times
}

// stamp is a time as read: one instant, or two where local clocks show the
// same time twice.
type stamp struct {
	first, second int64 // seconds since 1970; second is 0 unless ambiguous
	ambiguous     bool
}

var (
	errTimeForm  = errors.New("is not a time of the form the mapping says")
	errTimeRange = errors.New("is not a time that exists")
	errNoSuch    = errors.New("does not exist: the clocks skip it on that day")
)

// token is a number of fixed width, or a literal.
type token struct {
	unit    byte // Y M D h m s; 0 for a literal
	literal string
}

var tokenNames = []struct {
	name string
	unit byte
}{{"YYYY", 'Y'}, {"MM", 'M'}, {"DD", 'D'}, {"HH", 'h'}, {"mm", 'm'}, {"ss", 's'}}

// parseLayout reads a format as "DD/MM/YYYY HH:mm:ss". Year, month, day and
// hour must be there, each part at most once.
func parseLayout(s string) ([]token, error) {
	var out []token
	seen := map[byte]bool{}
next:
	for s != "" {
		for _, t := range tokenNames {
			if rest, ok := strings.CutPrefix(s, t.name); ok {
				if seen[t.unit] {
					return nil, fmt.Errorf("says %s twice", t.name)
				}
				seen[t.unit] = true
				out = append(out, token{unit: t.unit})
				s = rest
				continue next
			}
		}
		if !strings.Contains(" -/.:,T", s[:1]) {
			return nil, errors.New("has a part that is none of YYYY MM DD HH mm ss and no separator")
		}
		out = append(out, token{literal: s[:1]})
		s = s[1:]
	}
	for _, t := range tokenNames[:4] {
		if !seen[t.unit] {
			return nil, fmt.Errorf("lacks %s", t.name)
		}
	}
	return out, nil
}

// read parses one time.
func (c *clock) read(s string) (stamp, error) {
	switch {
	case c.epoch:
		if s == "" || len(s) > 11 {
			return stamp{}, errTimeForm
		}
		n, ok := number(s)
		if !ok {
			return stamp{}, errTimeForm
		}
		return stamp{first: n}, nil
	case c.rfc3339:
		return readRFC3339(s)
	default:
		return c.readLocal(s)
	}
}

// readRFC3339 reads "2006-01-02T15:04:05+01:00" and nothing looser: an offset
// or Z, no fractions.
func readRFC3339(s string) (stamp, error) {
	if len(s) < 20 || s[10] != 'T' || (len(s) != 20) != (s[19] != 'Z') || s[19] != 'Z' && len(s) != 25 {
		return stamp{}, errTimeForm
	}
	for i := range 19 {
		if c := s[i]; i != 4 && i != 7 && i != 10 && i != 13 && i != 16 && (c < '0' || c > '9') {
			return stamp{}, errTimeForm
		}
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || t.Unix() < 0 {
		return stamp{}, errTimeRange
	}
	return stamp{first: t.Unix()}, nil
}

// readLocal reads a local time by the layout and finds its instants.
func (c *clock) readLocal(s string) (stamp, error) {
	var part [256]int
	for _, t := range c.layout {
		if t.unit == 0 {
			rest, ok := strings.CutPrefix(s, t.literal)
			if !ok {
				return stamp{}, errTimeForm
			}
			s = rest
			continue
		}
		width := 2
		if t.unit == 'Y' {
			width = 4
		}
		if len(s) < width {
			return stamp{}, errTimeForm
		}
		n, ok := number(s[:width])
		if !ok {
			return stamp{}, errTimeForm
		}
		part[t.unit] = int(n)
		s = s[width:]
	}
	if s != "" {
		return stamp{}, errTimeForm
	}
	y, mo, d, h, mi, sec := part['Y'], part['M'], part['D'], part['h'], part['m'], part['s']
	if y < 1970 || h > 23 || mi > 59 || sec > 59 {
		return stamp{}, errTimeRange
	}
	wall := time.Date(y, time.Month(mo), d, h, mi, sec, 0, time.UTC)
	if wall.Month() != time.Month(mo) || wall.Day() != d {
		return stamp{}, errTimeRange
	}
	return c.instants(wall.Unix())
}

// instants finds when the wall clock (seconds as if UTC) showed this.
func (c *clock) instants(wall int64) (stamp, error) {
	const aDay = 86400
	var found []int64
	for _, near := range []int64{wall - 2*aDay, wall + 2*aDay} { // before and after a change
		off := c.offset(near)
		if at := wall - off; c.offset(at) == off && !slices.Contains(found, at) {
			found = append(found, at)
		}
	}
	switch {
	case len(found) == 0:
		return stamp{}, errNoSuch
	case found[0] < 0:
		return stamp{}, errTimeRange
	case len(found) == 1:
		return stamp{first: found[0]}, nil
	default:
		return stamp{first: min(found[0], found[1]), second: max(found[0], found[1]), ambiguous: true}, nil
	}
}

func (c *clock) offset(at int64) int64 {
	_, off := time.Unix(at, 0).In(c.loc).Zone()
	return int64(off)
}

func number(s string) (int64, bool) {
	var n int64
	for i := range len(s) {
		d := s[i] - '0'
		if d > 9 {
			return 0, false
		}
		n = n*10 + int64(d)
	}
	return n, true
}
