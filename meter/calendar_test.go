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
		resolutions := [...]Resolution{PT15M, PT1H, P1D, P1M, 0, 77}
		type facts struct {
			slots [len(resolutions)]int
			start time.Time
			text  string
		}
		known := map[Day]facts{} // each day is looked at several times
		check := func(c *Calendar, d Day) {
			want, ok := known[d]
			if !ok {
				for i, r := range resolutions {
					want.slots[i] = Slots(d, r, loc)
				}
				want.start = d.Start(loc)
				want.text = want.start.Format(time.RFC3339)
				known[d] = want
			}
			for i, r := range resolutions {
				if got := c.Slots(d, r); got != want.slots[i] {
					t.Fatalf("%s: %s has %d slots of %s, want %d", name, d, got, r, want.slots[i])
				}
			}
			if got := c.Start(d); !got.Equal(want.start) || got.Format(time.RFC3339) != want.text || got.Location() != want.start.Location() {
				t.Fatalf("%s: %s starts %s, want %s", name, d, got, want.start)
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
