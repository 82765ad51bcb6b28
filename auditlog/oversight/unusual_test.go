package oversight

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"kluis/internal/audit"
	"kluis/meter"
)

func amsterdam(t testing.TB) *time.Location {
	t.Helper()
	zone, err := time.LoadLocation("Europe/Amsterdam")
	if err != nil {
		t.Fatal(err)
	}
	return zone
}

func gln(t testing.TB, s string) meter.GLN {
	t.Helper()
	g, err := meter.ParseGLN(s)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// past makes rows of a party, the last day being day 0.
type past struct {
	t     testing.TB
	zone  *time.Location
	last  meter.Day
	party Party
	hours []Hour
	days  []Breadth
}

func newPast(t testing.TB, employee string) *past {
	zone := amsterdam(t)
	// A Monday, four weeks after the clocks went forward in one of them.
	last := meter.DayOf(time.Date(2026, 4, 13, 12, 0, 0, 0, zone), zone)
	return &past{t: t, zone: zone, last: last, party: Party{gln(t, "8712345000004"), employee}}
}

// hour adds an hour, so many days back, with so many metering points.
func (p *past) hour(back, hour int, points int64, more ...func(*Hour)) *past {
	y, m, d := (p.last - meter.Day(back)).Date()
	h := Hour{Party: p.party, At: time.Date(y, m, d, hour, 0, 0, 0, p.zone).UTC(), Requests: points, Given: points, Points: points}
	for _, f := range more {
		f(&h)
	}
	p.hours = append(p.hours, h)
	return p
}

func refused(n int64) func(*Hour) { return func(h *Hour) { h.Refused, h.Given = n, h.Requests-n } }
func off(n int64) func(*Hour)     { return func(h *Hour) { h.OffHours = n } }

func searched(n int64) func(*Hour) {
	return func(h *Hour) { h.Searches, h.Requests, h.Given = n, h.Requests+n, h.Given+n }
}

func (p *past) looked(back int, points int64) *past {
	p.days = append(p.days, Breadth{p.party.Employee, p.last - meter.Day(back), points, 0})
	return p
}

func (p *past) found(back int, points int64) *past {
	p.days = append(p.days, Breadth{p.party.Employee, p.last - meter.Day(back), 0, points})
	return p
}

// every repeats a day on each of the weekdays of four weeks.
func (p *past) every(days int, f func(back int)) *past {
	for back := days; back <= history; back += days {
		f(back)
	}
	return p
}

func (p *past) detect() []Unusual { return Detect(p.zone, p.hours, p.days, p.last.Start(p.zone)) }

// TestDetect: the thresholds, from both sides.
func TestDetect(t *testing.T) {
	t.Parallel()
	kinds := func(k ...Kind) []Kind { return k }
	for name, c := range map[string]struct {
		p    *past
		want []Kind
	}{
		"nothing at all": {newPast(t, ""), nil},

		// BURST
		"a new supplier's first big hour is shown": {newPast(t, "").hour(0, 10, 10_000), kinds(Burst)},
		"just below the floor":                     {newPast(t, "").hour(0, 10, 9_999), nil},
		"what runs every Monday": {func() *past {
			p := newPast(t, "")
			return p.every(7, func(b int) { p.hour(b, 10, 50_000) }).hour(0, 10, 60_000)
		}(), nil},
		"every Monday, an hour later": {func() *past {
			p := newPast(t, "")
			return p.every(7, func(b int) { p.hour(b, 9, 50_000) }).hour(0, 10, 60_000)
		}(), nil},
		"every Monday, in the afternoon": {func() *past {
			p := newPast(t, "")
			return p.every(7, func(b int) { p.hour(b, 15, 50_000) }).hour(0, 10, 60_000)
		}(), kinds(Burst)},
		"every Sunday, now on Monday": {func() *past {
			p := newPast(t, "")
			return p.every(7, func(b int) { p.hour(b+1, 10, 50_000) }).hour(0, 10, 60_000)
		}(), kinds(Burst)},
		"five times what is usual": {func() *past {
			p := newPast(t, "")
			return p.every(7, func(b int) { p.hour(b, 10, 4_000) }).hour(0, 10, 20_000)
		}(), nil},
		"more than that": {func() *past {
			p := newPast(t, "")
			return p.every(7, func(b int) { p.hour(b, 10, 4_000) }).hour(0, 10, 20_001)
		}(), kinds(Burst)},
		"one burst four weeks long ago is not usual": {func() *past {
			p := newPast(t, "")
			return p.every(7, func(b int) { p.hour(b, 10, 100) }).hour(14, 10, 90_000).hour(0, 10, 90_000)
		}(), kinds(Burst)},
		"employee: ten requests a minute":              {newPast(t, "jan").hour(0, 10, 600), kinds(Burst)},
		"employee: a busy hour":                        {newPast(t, "jan").hour(0, 10, 599), nil},
		"supplier: what would be a burst of employees": {newPast(t, "").hour(0, 10, 600), nil},

		// BREADTH
		"a busy day on the telephone":   {newPast(t, "jan").hour(0, 10, 59).looked(0, 59), nil},
		"sixty on somebody's first day": {newPast(t, "jan").hour(0, 10, 60).looked(0, 60), kinds(BroadLook)},
		"sixty by who looks at thirty": {func() *past {
			p := newPast(t, "jan")
			return p.every(1, func(b int) { p.looked(b, 30) }).hour(0, 10, 60).looked(0, 60)
		}(), nil},
		"more than three times as many": {func() *past {
			p := newPast(t, "jan")
			return p.every(1, func(b int) { p.looked(b, 30) }).hour(0, 10, 91).looked(0, 91)
		}(), kinds(BroadLook)},
		"two hundred, whatever was usual": {func() *past {
			p := newPast(t, "jan")
			return p.every(1, func(b int) { p.looked(b, 190) }).hour(0, 10, 200).looked(0, 200)
		}(), kinds(BroadLook)},
		"many requests, few metering points":   {newPast(t, "jan").hour(0, 10, 500).looked(0, 3), nil},
		"days off are not days of no requests": {newPast(t, "jan").looked(20, 50).looked(21, 50).hour(0, 10, 140).looked(0, 140), nil},

		// OFF_HOURS
		"a call that went on":      {newPast(t, "jan").hour(0, 22, 10, off(10)), nil},
		"an evening of looking":    {newPast(t, "jan").hour(0, 23, 11, off(11)), kinds(OffHours)},
		"two hours of one evening": {newPast(t, "jan").hour(0, 22, 6, off(6)).hour(0, 23, 6, off(6)), kinds(OffHours)},
		"two evenings":             {newPast(t, "jan").hour(1, 23, 6, off(6)).hour(0, 23, 6, off(6)), nil},
		"who works nights": {func() *past {
			p := newPast(t, "jan")
			return p.every(1, func(b int) { p.hour(b, 23, 40, off(40)) }).hour(0, 23, 100, off(100))
		}(), nil},
		"who works nights, and much more": {func() *past {
			p := newPast(t, "jan")
			return p.every(1, func(b int) { p.hour(b, 23, 40, off(40)) }).hour(0, 23, 121, off(121))
		}(), kinds(OffHours)},

		// REFUSALS
		"a quarter refused, and many": {newPast(t, "").hour(0, 10, 2000, refused(500)), kinds(Refusals)},
		"less than a quarter":         {newPast(t, "").hour(0, 10, 2001, refused(500)), nil},
		"all refused, but few":        {newPast(t, "").hour(0, 10, 499, refused(499)), nil},
		"in the course of a day":      {newPast(t, "").hour(0, 10, 300, refused(300)).hour(0, 13, 300, refused(300)), kinds(Refusals)},
		"over midnight":               {newPast(t, "").hour(1, 23, 300, refused(300)).hour(0, 0, 300, refused(300)), nil},
		"employee who tries out":      {newPast(t, "jan").hour(0, 10, 40, refused(30)), kinds(Refusals)},
		"employee who mistypes":       {newPast(t, "jan").hour(0, 10, 40, refused(29)), nil},
		"a supplier that is refused every day": {func() *past {
			p := newPast(t, "")
			return p.every(1, func(b int) { p.hour(b, 10, 800, refused(600)) }).hour(0, 10, 2000, refused(1500))
		}(), nil},
		"hidden in much, out of the usual": {func() *past {
			p := newPast(t, "")
			return p.every(1, func(b int) { p.hour(b, 10, 9000, refused(300)) }).hour(0, 10, 39_900, refused(5000))
		}(), kinds(Refusals)},
		"much, but only tenfold": {func() *past {
			p := newPast(t, "")
			return p.every(1, func(b int) { p.hour(b, 10, 9000, refused(500)) }).hour(0, 10, 39_900, refused(5000))
		}(), nil},

		// SEARCHES
		"a search for each call of a busy day":  {newPast(t, "jan").hour(0, 10, 0, searched(59)), nil},
		"sixty searches, on two parts of a day": {newPast(t, "jan").hour(0, 10, 0, searched(30)).hour(0, 15, 0, searched(30)), kinds(Searches)},
		"who searches thirty times a day": {func() *past {
			p := newPast(t, "jan")
			return p.every(1, func(b int) { p.hour(b, 10, 0, searched(30)) }).hour(0, 10, 0, searched(90))
		}(), nil},
		"more than three times as often": {func() *past {
			p := newPast(t, "jan")
			return p.every(1, func(b int) { p.hour(b, 10, 0, searched(30)) }).hour(0, 10, 0, searched(91))
		}(), kinds(Searches)},
		"two hundred searches, whatever was usual": {func() *past {
			p := newPast(t, "jan")
			return p.every(1, func(b int) { p.hour(b, 10, 0, searched(190)) }).hour(0, 10, 0, searched(200))
		}(), kinds(Searches)},
		"ten searches a minute":              {newPast(t, "jan").hour(0, 10, 0, searched(600)), kinds(Burst, Searches)},
		"looking and searching in one hour":  {newPast(t, "jan").hour(0, 10, 560, searched(40)), kinds(Burst)},
		"searches of addresses nobody is at": {newPast(t, "jan").hour(0, 10, 0, searched(60), refused(29)), kinds(Searches)},

		// FOUND
		"seven blocks of flats":             {newPast(t, "jan").hour(0, 10, 0, searched(8)).found(0, 499), nil},
		"a street of them":                  {newPast(t, "jan").hour(0, 10, 0, searched(8)).found(0, 500), kinds(Found)},
		"what is found is not looked at":    {newPast(t, "jan").hour(0, 10, 0, searched(30)).found(0, 200), nil},
		"days of looks are none of finding": {newPast(t, "jan").looked(1, 50).hour(0, 10, 0, searched(9)).found(0, 500), kinds(Found)},
		"who finds two hundred a day": {func() *past {
			p := newPast(t, "jan")
			return p.every(1, func(b int) { p.found(b, 200) }).hour(0, 10, 0, searched(50)).found(0, 600)
		}(), nil},
		"two thousand, whatever was usual": {func() *past {
			p := newPast(t, "jan")
			return p.every(1, func(b int) { p.found(b, 1900) }).hour(0, 10, 0, searched(50)).found(0, 2000)
		}(), kinds(Found)},

		"all at once": {newPast(t, "jan").hour(0, 23, 700, off(700), refused(400), searched(300)).looked(0, 300), kinds(Burst, BroadLook, OffHours, Refusals, Searches)},
		"what was before the day is not looked at": {newPast(t, "jan").hour(3, 23, 700, off(700), refused(400)).looked(3, 300), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []Kind
			for _, u := range c.p.detect() {
				got = append(got, u.Kind)
				if u.Party != c.p.party || !u.To.After(u.From) || u.Count <= 0 {
					t.Errorf("%+v", u)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
			// Without the parties of which nothing can be unusual it is the same.
			since := c.p.last.Start(c.p.zone)
			some := Candidates(c.p.zone, c.p.hours, c.p.days, since)
			if len(some) == 0 && len(got) > 0 {
				t.Error("no candidate")
			}
		})
	}
}

// TestAddressesHarvested: whoever asks for address after address, in working hours
// and with what is found each time, is seen: by the hour, by the day, and by what
// was found, also where each of them alone would not do.
func TestAddressesHarvested(t *testing.T) {
	t.Parallel()
	zone := amsterdam(t)
	operator := gln(t, "8716867000009")
	at := time.Date(2026, 3, 4, 10, 0, 0, 0, zone)
	for _, c := range []struct {
		searches, points int
		every            time.Duration
		want             []Kind
	}{
		{3600, 5, time.Second, []Kind{Burst, Searches, Found}},
		{80, 3, 6 * time.Minute, []Kind{Searches}}, // slowly
		{40, 64, 6 * time.Minute, []Kind{Found}},   // large buildings
		{80, 0, 6 * time.Minute, []Kind{Searches}}, // finds nothing
		{40, 3, 10 * time.Minute, nil},             // a day's work
		{700, 1, 5 * time.Second, []Kind{Burst, Searches, Found}},
	} {
		tally := NewTally(rules(t))
		n := 0
		for s := range c.searches {
			r := audit.Record{InteractionID: [16]byte{byte(s), byte(s >> 8)}, Operation: audit.Find, Outcome: audit.Given, Supplier: operator, Employee: "mallory", At: at.Add(time.Duration(s) * c.every)}
			if c.points == 0 {
				tally.Add(&r, at.Add(12*time.Hour))
			}
			for range c.points {
				n++
				r.EAN = nthEAN(t, n)
				tally.Add(&r, at.Add(12*time.Hour))
			}
		}
		days := map[meter.Day]int64{}
		for _, l := range tally.Looks() {
			if !l.Found {
				t.Fatalf("looked at: %+v", l)
			}
			days[l.Day]++
		}
		var breadths []Breadth
		for d, n := range days {
			breadths = append(breadths, Breadth{"mallory", d, 0, n})
		}
		since := at.Add(-24 * time.Hour)
		found := map[Kind]bool{}
		for _, u := range Detect(zone, tally.Hours(), breadths, since) {
			if u.Employee != "mallory" || u.GLN != operator || u.Kind == Searches && u.Count != int64(c.searches) || u.Kind == Found && u.Count != int64(n) {
				t.Errorf("%+v", u)
			}
			found[u.Kind] = true
		}
		got := slices.Sorted(maps.Keys(found))
		if !slices.Equal(got, c.want) {
			t.Errorf("%d searches, %d points each: %v, want %v", c.searches, c.points, got, c.want)
		}
		if parties := Candidates(zone, tally.Hours(), breadths, since); (len(parties) == 1) != (len(c.want) > 0) {
			t.Errorf("%d searches: candidates %v", c.searches, parties)
		}
	}
}

// nthEAN makes an EAN with a good check digit.
func nthEAN(t testing.TB, n int) meter.EAN {
	t.Helper()
	for digit := range 10 {
		if e, err := meter.ParseEAN(fmt.Sprintf("8716871%010d%d", n, digit)); err == nil {
			return e
		}
	}
	t.Fatal("no check digit")
	return meter.EAN{}
}

// TestDetectTimes: an hour is an hour, and a day a local one, when the clocks
// change as well.
func TestDetectTimes(t *testing.T) {
	t.Parallel()
	p := newPast(t, "jan")
	p.last = meter.DayOf(time.Date(2026, 3, 29, 12, 0, 0, 0, p.zone), p.zone) // 23 hours
	got := p.hour(0, 12, 700, off(20)).detect()
	want := []Unusual{
		{OffHours, p.party, time.Date(2026, 3, 28, 23, 0, 0, 0, time.UTC), time.Date(2026, 3, 29, 22, 0, 0, 0, time.UTC), 20, 0},
		{Burst, p.party, time.Date(2026, 3, 29, 10, 0, 0, 0, time.UTC), time.Date(2026, 3, 29, 11, 0, 0, 0, time.UTC), 700, 0},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	// The same local hour of the week before is another hour in UTC.
	p.hours = nil
	p.every(7, func(b int) { p.hour(b, 12, 400) }).hour(0, 12, 700)
	if got := p.detect(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// TestDetectProperties: the order of rows is nothing; a party is judged by its own
// rows alone; more of the same never ends an alarm; what the floors let through
// is all that Detect needs.
func TestDetectProperties(t *testing.T) {
	t.Parallel()
	zone := amsterdam(t)
	r := rand.New(rand.NewPCG(7, 42))
	operator := gln(t, "8712345000004")
	key := func(u Unusual) string { return fmt.Sprint(u.Kind, u.Party, u.From.Unix()) }
	alarms := 0
	for range 300 {
		last := meter.DayOf(time.Date(2026, 1, 20, 12, 0, 0, 0, zone), zone) + meter.Day(r.IntN(300))
		since := last.Start(zone)
		parties := []Party{{gln(t, "8712000000011"), ""}, {operator, "a"}, {operator, "b"}}
		var hours []Hour
		var days []Breadth
		for _, p := range parties {
			scale := int64(1) << r.IntN(16)
			for back := range meter.Day(history + 1) {
				looked, found := int64(0), int64(0)
				for h := r.IntN(8); h < 24; h += 1 + r.IntN(8) {
					y, m, d := (last - back).Date()
					at := time.Date(y, m, d, h, 0, 0, 0, zone).UTC()
					if slices.ContainsFunc(hours, func(o Hour) bool { return o.Party == p && o.At.Equal(at) }) {
						continue // an hour that the clocks skipped
					}
					x := Hour{Party: p, At: at, Requests: r.Int64N(scale) + 1}
					x.Refused = r.Int64N(x.Requests + 1)
					x.Given = x.Requests - x.Refused
					if p.Employee != "" {
						x.Searches = r.Int64N(x.Requests + 1)
					}
					x.Points = x.Requests - x.Searches
					if p.Employee != "" && (h < 7 || h >= 22) {
						x.OffHours = x.Requests
					}
					hours = append(hours, x)
					looked += r.Int64N(x.Points + 1)
					found += r.Int64N(5*x.Searches + 1)
				}
				if p.Employee != "" && looked+found > 0 {
					days = append(days, Breadth{p.Employee, last - back, looked, found})
				}
			}
		}
		all := Detect(zone, hours, days, since)
		alarms += len(all)

		r.Shuffle(len(hours), func(i, j int) { hours[i], hours[j] = hours[j], hours[i] })
		r.Shuffle(len(days), func(i, j int) { days[i], days[j] = days[j], days[i] })
		if got := Detect(zone, hours, days, since); !reflect.DeepEqual(got, all) {
			t.Fatalf("another order:\n%+v\n%+v", got, all)
		}

		var apart []string
		for _, p := range Candidates(zone, hours, days, since) {
			own := slices.DeleteFunc(slices.Clone(hours), func(h Hour) bool { return h.Party != p })
			mine := slices.DeleteFunc(slices.Clone(days), func(b Breadth) bool { return b.Employee != p.Employee })
			for _, u := range Detect(zone, own, mine, since) {
				apart = append(apart, key(u))
			}
		}
		var want []string
		for _, u := range all {
			want = append(want, key(u))
			if u.From.Add(25 * time.Hour).Before(since) {
				t.Fatalf("of long before: %+v", u)
			}
		}
		slices.Sort(apart)
		slices.Sort(want)
		if !slices.Equal(apart, want) {
			t.Fatalf("party by party %v, together %v", apart, want)
		}

		more := slices.Clone(hours)
		for i := range more {
			if !more[i].At.Before(since) { // of today, and as much of it refused
				more[i].Requests, more[i].Refused, more[i].Given = more[i].Requests*2, more[i].Refused*2, more[i].Given*2
				more[i].Points, more[i].Searches, more[i].OffHours = more[i].Points*2, more[i].Searches*2, more[i].OffHours*2
			}
		}
		still := map[string]bool{}
		for _, u := range Detect(zone, more, days, since) {
			still[key(u)] = true
		}
		for _, w := range want {
			if !still[w] {
				t.Fatalf("%s ended by more of it", w)
			}
		}
	}
	if alarms < 100 {
		t.Errorf("only %d alarms: the cases are too quiet to say anything", alarms)
	}
}
