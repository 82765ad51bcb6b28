package meter

import (
	"testing"
	"time"
)

func day(t testing.TB, s string) Day {
	t.Helper()
	d, err := ParseDay(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func TestSlots(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		zone, day       string
		quarters, hours int
	}{
		{"Europe/Amsterdam", "2024-03-30", 96, 24},
		{"Europe/Amsterdam", "2024-03-31", 92, 23},
		{"Europe/Amsterdam", "2024-04-01", 96, 24},
		{"Europe/Amsterdam", "2024-10-27", 100, 25},
		{"Europe/Amsterdam", "2024-10-28", 96, 24},
		{"Europe/Amsterdam", "2026-03-29", 92, 23},
		{"Europe/Amsterdam", "2026-10-25", 100, 25},
		{"Europe/Amsterdam", "2027-03-28", 92, 23},
		{"Europe/Amsterdam", "2027-10-31", 100, 25},
		{"UTC", "2024-03-31", 96, 24},
		// Clocks that skip or repeat midnight itself.
		{"America/Sao_Paulo", "2018-11-03", 96, 24},
		{"America/Sao_Paulo", "2018-11-04", 92, 23},
		{"America/Sao_Paulo", "2018-02-17", 100, 25},
		{"America/Sao_Paulo", "2018-02-18", 96, 24},
		{"America/Havana", "2024-11-02", 96, 24},
		{"America/Havana", "2024-11-03", 100, 25},
		{"America/Havana", "2024-03-10", 92, 23},
		{"Asia/Amman", "2021-10-28", 96, 24},
		{"Asia/Amman", "2021-10-29", 100, 25},
		{"Pacific/Apia", "2011-12-29", 96, 24},
		{"Pacific/Apia", "2011-12-30", 0, 0}, // skipped: the date line moved
		{"Pacific/Apia", "2011-12-31", 96, 24},
		{"America/Toronto", "1919-03-30", 94, 24}, // from 23:30 the clocks go to 00:30
		{"America/Toronto", "1919-03-31", 94, 24},
		{"Australia/Lord_Howe", "2024-04-07", 98, 25}, // 24 hours and a half
	} {
		loc := zone(t, tt.zone)
		at, err := time.Parse(time.DateOnly, tt.day)
		if err != nil {
			t.Fatal(err)
		}
		d := DayFromDate(at.Date())
		if q, h := Slots(d, PT15M, loc), Slots(d, PT1H, loc); q != tt.quarters || h != tt.hours {
			t.Errorf("%s %s: %d quarters, %d hours, want %d, %d", tt.zone, tt.day, q, h, tt.quarters, tt.hours)
		}
		if Slots(d, P1D, loc) != 1 || Slots(d, P1M, loc) != 1 || Slots(d, 0, loc) != 0 || Slots(d, 9, loc) != 0 {
			t.Errorf("%s %s: calendar periods", tt.zone, tt.day)
		}
	}
}

// Days must tile the time line: each starts where the one before ends, and its
// first instant lies in it while the instant before does not.
func TestDayStart(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Europe/Amsterdam", "America/Sao_Paulo", "America/Havana", "Africa/Cairo", "Asia/Amman", "Asia/Beirut", "Atlantic/Azores", "UTC"} {
		loc := zone(t, name)
		for d := day(t, "2016-01-01"); d < day(t, "2028-01-01"); d++ {
			s := d.Start(loc)
			if DayOf(s, loc) != d {
				t.Errorf("%s: %s starts at %s, another day", name, d, s)
			}
			if DayOf(s.Add(-time.Nanosecond), loc) >= d {
				t.Errorf("%s: %s starts before %s", name, d, s)
			}
		}
	}
}

func TestDay(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "2024-02-30", "2024-2-3", "1969-12-31", "2024-01-01T00:00:00Z", " 2024-01-01", "+2024-01-01"} {
		if d, err := ParseDay(s); err == nil {
			t.Errorf("ParseDay(%q) = %s", s, d)
		}
	}
	for _, tt := range []struct {
		from string
		n    int
		want string
	}{
		{"2024-01-31", 1, "2024-02-29"},
		{"2023-01-31", 1, "2023-02-28"},
		{"2024-03-31", -1, "2024-02-29"},
		{"2024-02-29", -12, "2023-02-28"},
		{"2026-11-23", -24, "2024-11-23"},
		{"2024-12-31", 1, "2025-01-31"},
	} {
		if got := day(t, tt.from).AddMonths(tt.n).String(); got != tt.want {
			t.Errorf("%s + %d months = %s, want %s", tt.from, tt.n, got, tt.want)
		}
	}
	if got := day(t, "2024-12-31").Month().String(); got != "2024-12" {
		t.Errorf("month %s", got)
	}
	for d := Day(-800); d < 30000; d++ {
		y, m, dd := d.Date()
		if DayFromDate(y, m, dd) != d || d.Month().First() > d || (d.Month()+1).First() <= d {
			t.Fatalf("%s does not survive", d)
		}
	}
}
