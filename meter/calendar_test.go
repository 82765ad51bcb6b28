package meter

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestCalendar: whatever days it is asked for, in whatever order, it says what
// Day.Start and Slots say.
func TestCalendar(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"Europe/Amsterdam", "Europe/Brussels", "UTC", "Australia/Lord_Howe", "America/Sao_Paulo", "America/Asuncion",
		"Pacific/Apia", "Africa/Casablanca", "Asia/Gaza", "Asia/Kathmandu", "Antarctica/Troll",
	} {
		loc, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		check := func(c *Calendar, d Day) {
			for _, r := range []Resolution{PT15M, PT1H, P1D, P1M, 0, 77} {
				if got, want := c.Slots(d, r), Slots(d, r, loc); got != want {
					t.Fatalf("%s: %s has %d slots of %s, want %d", name, d, got, r, want)
				}
			}
			got, want := c.Start(d), d.Start(loc)
			if !got.Equal(want) || got.Format(time.RFC3339) != want.Format(time.RFC3339) || got.Location() != want.Location() {
				t.Fatalf("%s: %s starts %s, want %s", name, d, got, want)
			}
		}
		from, to := DayFromDate(1969, 1, 1), DayFromDate(2045, 1, 1)
		c := NewCalendar(loc)
		for d := from; d < to; d++ {
			check(&c, d)
		}
		back := NewCalendar(loc)
		for d := to; d > from; d-- {
			check(&back, d)
		}
		for range 20_000 {
			check(&c, from+rand.N(to-from))
			d := from + rand.N(to-from)
			if now, want := back.Slots(d, PT15M), Slots(d, PT15M, loc); now != want {
				t.Fatalf("%s: %s: %d, want %d", name, d, now, want)
			}
		}
		check(&c, MaxDay)
	}
}

func BenchmarkCalendar(b *testing.B) {
	loc, err := time.LoadLocation("Europe/Amsterdam")
	if err != nil {
		b.Fatal(err)
	}
	c := NewCalendar(loc)
	for i := 0; b.Loop(); i++ {
		c.Slots(Day(20730+i%31), PT15M)
	}
}
