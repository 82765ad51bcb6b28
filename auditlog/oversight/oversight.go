// Package oversight counts access records by party and hour, and says what of it
// is unusual. It knows no database and no clock.
//
// A party is a supplier, or an employee of the grid operator. A request for
// several metering points has one access record for each, and counts as often.
package oversight

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"kluis/internal/audit"
	"kluis/meter"
)

// Party is who asks.
type Party struct {
	GLN      meter.GLN // the grid operator's own for an employee
	Employee string    // as in the record; empty for a supplier
}

func (p Party) compare(q Party) int {
	return cmp.Or(cmp.Compare(p.GLN.Int64(), q.GLN.Int64()), cmp.Compare(p.Employee, q.Employee))
}

// Hour is what a party asked for in an hour.
type Hour struct {
	Party
	At       time.Time // its beginning
	Requests int64     // access records: the sum of the three below
	Given    int64     // all or part of it was given, told or done, or the caller had it
	Refused  int64     // no relation, no right, or a step that could not be taken
	Failed   int64     // no answer left
	Points   int64     // records that name a metering point, but for those of a search by address
	Searches int64     // searches by address, each once; one whose records come in two pages counts twice
	OffHours int64     // an employee's outside of working hours
	LastAt   time.Time // of the newest record
}

// Look says that an employee looked at a metering point on a local day, or was
// told of it by a search.
type Look struct {
	Employee string
	Day      meter.Day
	EAN      meter.EAN
	Found    bool // told of by a search
}

// Breadth is at how many different metering points an employee looked on a
// local day, and how many searches told of.
type Breadth struct {
	Employee string
	Day      meter.Day
	Points   int64 // looked at
	Found    int64
}

// WorkingHours are those of a week in which employees are expected to work.
type WorkingHours struct {
	Days     [7]bool       // by time.Weekday
	From, To time.Duration // since midnight, the same on each day; To is after the last
}

// DefaultHours are Monday to Saturday, 7 to 22.
func DefaultHours() WorkingHours {
	h := WorkingHours{From: 7 * time.Hour, To: 22 * time.Hour}
	for d := time.Monday; d <= time.Saturday; d++ {
		h.Days[d] = true
	}
	return h
}

// covers says whether a local time is in working hours.
func (h WorkingHours) covers(local time.Time) bool {
	at := time.Duration(local.Hour())*time.Hour + time.Duration(local.Minute())*time.Minute + time.Duration(local.Second())*time.Second
	return h.Days[local.Weekday()] && at >= h.From && at < h.To
}

// Rules are an installation's.
type Rules struct {
	Zone    *time.Location // of the market
	Working WorkingHours
	Keep    int // days that counts are kept for; 0: DefaultKeep
}

// Days that counts are kept for. Fewer than MinKeep would leave nothing to
// compare with.
const (
	DefaultKeep = 92
	MinKeep     = history + 7
	MaxKeep     = 3660
)

// Check completes the rules, or refuses them.
func (r *Rules) Check() error {
	if r.Keep == 0 {
		r.Keep = DefaultKeep
	}
	switch {
	case r.Zone == nil:
		return errors.New("oversight: the market's time zone is not given")
	case r.Working.From < 0 || r.Working.To > 24*time.Hour || r.Working.To <= r.Working.From:
		return errors.New("oversight: working hours end before they begin")
	case r.Keep < MinKeep || r.Keep > MaxKeep:
		return fmt.Errorf("oversight: counts are kept for %d to %d days", MinKeep, MaxKeep)
	}
	return nil
}

// Oldest is the beginning of the oldest local day of which counts are kept.
func (r Rules) Oldest(now time.Time) time.Time {
	y, m, d := now.In(r.Zone).Date()
	return time.Date(y, m, d-r.Keep, 0, 0, 0, 0, r.Zone)
}

// Tally counts records. The zero value is of no use: NewTally.
type Tally struct {
	rules Rules
	hours map[hourKey]*Hour
	looks map[Look]struct{}
	// searches that were counted, by interaction.
	searches map[[16]byte]struct{}
}

type hourKey struct {
	Party
	at int64
}

// NewTally makes an empty one. The rules were checked.
func NewTally(r Rules) *Tally {
	return &Tally{rules: r, hours: map[hourKey]*Hour{}, looks: map[Look]struct{}{}, searches: map[[16]byte]struct{}{}}
}

// Add counts a record that was found at now. A time is the gateway's word: one of
// the future counts at now, and one from before what is kept does not count, so
// that no clock makes rows without end.
func (t *Tally) Add(r *audit.Record, now time.Time) {
	at := r.At
	if at.After(now) {
		at = now
	}
	if at.Before(t.rules.Oldest(now)) {
		return
	}
	key := hourKey{Party{r.Supplier, r.Employee}, at.Truncate(time.Hour).Unix()}
	h := t.hours[key]
	if h == nil {
		h = &Hour{Party: key.Party, At: time.Unix(key.at, 0).UTC()}
		t.hours[key] = h
	}
	h.Requests++
	switch r.Outcome {
	case audit.Given, audit.Partly, audit.Unchanged:
		h.Given++
	case audit.Failed:
		h.Failed++
	default:
		h.Refused++
	}
	if h.LastAt.Before(at) {
		h.LastAt = at
	}
	search := r.Operation == audit.Find
	if !search && !r.EAN.IsZero() {
		h.Points++
	}
	if _, counted := t.searches[r.InteractionID]; search && !counted {
		t.searches[r.InteractionID] = struct{}{}
		h.Searches++
	}
	if r.Employee == "" {
		return
	}
	local := at.In(t.rules.Zone)
	if concerns(r) && !t.rules.Working.covers(local) {
		h.OffHours++
	}
	if !r.EAN.IsZero() {
		t.looks[Look{r.Employee, meter.DayOf(at, t.rules.Zone), r.EAN, search}] = struct{}{}
	}
}

// Hours are what was counted, in the order of party and time.
func (t *Tally) Hours() []Hour {
	out := make([]Hour, 0, len(t.hours))
	for _, h := range t.hours {
		out = append(out, *h)
	}
	slices.SortFunc(out, func(a, b Hour) int { return cmp.Or(a.compare(b.Party), a.At.Compare(b.At)) })
	return out
}

// Looks are the metering points that employees looked at, and those that searches
// told them of, each once a day.
func (t *Tally) Looks() []Look {
	out := make([]Look, 0, len(t.looks))
	for l := range t.looks {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b Look) int {
		return cmp.Or(cmp.Compare(a.Employee, b.Employee), cmp.Compare(a.Day, b.Day), cmp.Compare(a.EAN.Int64(), b.EAN.Int64()), compareBool(a.Found, b.Found))
	})
	return out
}

// compareBool: false comes first.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// concerns says whether a record concerns a customer or a supplier. Who looks
// after the system at night, or at what is told here, does nothing unusual.
func concerns(r *audit.Record) bool { return r.Operation != audit.Oversee }

// Result is what a check of the log found, and how much of it it looked at.
type Result struct {
	At          time.Time // when it ended
	Whole       bool      // kluis audit verify; else the daemon's check of what is new
	First, Size int64     // leaves from, and to before
	Findings    []Count   // none: nothing was altered, as far as this check can tell
}

// Count is how many findings there are of a kind (package auditlog, What).
type Count struct {
	Code  string `json:"code"`
	Count int64  `json:"count"`
}

// Sum is what oversight has of some time.
type Sum struct {
	Party
	Requests, Refused, OffHours int64
	// Points of a supplier are requests that name a metering point; of an employee,
	// the different metering points of each day.
	Points int64
}

// HourSum is what all parties asked for in an hour.
type HourSum struct {
	At                time.Time
	Requests, Refused int64
}

// Checks sum up what is known of the log.
type Checks struct {
	Newest   time.Time // when anything was last checked; zero: never
	Size     int64     // leaves that a check has looked at, from the first on
	Next     int64     // the leaf from which the daemon's next check goes on
	Whole    time.Time // when all was last checked against all; zero: never
	Findings []Count   // of the newest whole check, and of all since
}

// Overview is what oversight tells.
type Overview struct {
	CountedAt time.Time // of the newest record that is counted; zero: none is
	Parties   []Sum
	Unusual   []Unusual
	Hours     []HourSum
	Checks    Checks
}
