package config

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Oversight is what the auditor's daemon counts by.
type Oversight struct {
	// WorkingHours of the grid operator's employees, in the market's time zone;
	// default Monday to Saturday, 07:00 to 22:00.
	WorkingHours WorkingHours `yaml:"working_hours,omitempty"`
	// KeepDays is how long counts are kept; default 92, 35 to 3660.
	KeepDays int `yaml:"keep_days,omitempty"`
}

// WorkingHours are the same on each of the days.
type WorkingHours struct {
	Days []string `yaml:"days,omitempty"` // mon, tue, wed, thu, fri, sat, sun
	From string   `yaml:"from,omitempty"` // as 07:00
	To   string   `yaml:"to,omitempty"`   // as 22:00; 24:00 is the end of the day
}

// Times are the days by time.Weekday, and the hours since midnight.
func (w WorkingHours) Times() (days [7]bool, from, to time.Duration, err error) {
	for _, d := range w.Days {
		i := slices.Index([]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}, d)
		if i < 0 {
			return days, 0, 0, errors.New("days are mon, tue, wed, thu, fri, sat, sun")
		}
		days[i] = true
	}
	for text, at := range map[string]*time.Duration{w.From: &from, w.To: &to} {
		if *at, err = clock(text); err != nil {
			return days, 0, 0, err
		}
	}
	if len(w.Days) == 0 || from >= to {
		return days, 0, 0, errors.New("needs days, from, and a later to")
	}
	return days, from, to, nil
}

func clock(s string) (time.Duration, error) {
	if s == "24:00" {
		return 24 * time.Hour, nil
	}
	t, err := time.Parse("15:04", s)
	if err != nil || len(s) != 5 {
		return 0, errors.New("from and to are hours and minutes, as 07:00")
	}
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, nil
}

// Given says whether anything is said of them.
func (w WorkingHours) Given() bool { return len(w.Days) > 0 || w.From != "" || w.To != "" }

// What is unusual is told by comparison with four weeks.
const (
	minKeepDays = 35
	maxKeepDays = 3660
)

func (p *problems) oversight(c Oversight) {
	if c.WorkingHours.Given() {
		if _, _, _, err := c.WorkingHours.Times(); err != nil {
			p.add("oversight.working_hours", err.Error())
		}
	}
	if c.KeepDays != 0 {
		p.check(c.KeepDays >= minKeepDays && c.KeepDays <= maxKeepDays, "oversight.keep_days", fmt.Sprintf("must be from %d to %d", minKeepDays, maxKeepDays))
	}
}
