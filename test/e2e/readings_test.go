package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi/client"
)

func day(s string) openapi_types.Date {
	return openapi_types.Date{Time: must(time.Parse(time.DateOnly, s))}
}

// period makes parameters.
func period(from, to, purpose string) client.GetReadingsParams {
	return client.GetReadingsParams{From: day(from), To: day(to), Purpose: client.Purpose(purpose)}
}

func dayOf(s string) meter.Day { return must(meter.ParseDay(s)) }

// exact reads a decimal without rounding.
func exact(t testing.TB, s string) *big.Rat {
	t.Helper()
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		t.Fatalf("%q is no decimal", s)
	}
	return r
}

// total adds up values; nil when one is missing.
func total(t testing.TB, values []*string) *big.Rat {
	t.Helper()
	sum := new(big.Rat)
	for _, v := range values {
		if v == nil {
			return nil
		}
		sum.Add(sum, exact(t, *v))
	}
	return sum
}

// same compares a value of an answer with an expected number, nil being null.
func same(t testing.TB, got *string, want *big.Rat) bool {
	t.Helper()
	if got == nil || want == nil {
		return (got == nil) == (want == nil)
	}
	return exact(t, *got).Cmp(want) == 0
}

// firstDay is the local day that an entry of days starts, which must be local
// midnight, told with the zone's offset then.
func firstDay(t testing.TB, d client.DayValues, loc *time.Location) meter.Day {
	t.Helper()
	got := meter.DayOf(d.Start, loc)
	if !got.Start(loc).Equal(d.Start) || d.Start.Format(time.TimeOnly) != "00:00:00" {
		t.Fatalf("%s is not local midnight", d.Start.Format(time.RFC3339))
	}
	return got
}

// checkSeries checks the form of a series against its own words: which days it
// has, how many values each, and the counts. It returns the days given.
func checkSeries(t testing.TB, s client.Series, loc *time.Location) meter.DayRange {
	t.Helper()
	if len(s.Days) == 0 {
		t.Fatalf("%s: no days", s.Field)
	}
	entries := s.Days
	register := s.ReadingKind == client.ReadingKindREGISTER
	days := meter.DayRange{From: firstDay(t, entries[0], loc)}
	days.To = days.From
	count, known := 0, 0
	for i, e := range entries {
		d := firstDay(t, e, loc)
		if d != days.To {
			t.Fatalf("%s: an entry starts on %s, want %s", s.Field, d, days.To)
		}
		closing := register && i == len(entries)-1
		want := 1
		switch {
		case closing:
		case s.Resolution == client.P1M:
			days.To = (d.Month() + 1).First()
		case s.Resolution == client.P1D:
			days.To++
		default:
			days.To++
			want = meter.Slots(d, must(meter.ParseResolution(string(s.Resolution))), loc)
		}
		if len(e.Values) != want {
			t.Errorf("%s on %s: %d values, want %d", s.Field, d, len(e.Values), want)
		}
		count += len(e.Values)
		for _, v := range e.Values {
			if v == nil {
				continue
			}
			known++
			if i := strings.IndexByte(*v, '.'); i < 0 || len(*v)-i != 4 {
				t.Errorf("%s on %s: a value does not have three decimals", s.Field, d)
			}
		}
		if e.Quality != nil {
			at := 0
			for _, q := range *e.Quality {
				if q.Index < at || q.Count < 1 || q.Index+q.Count > len(e.Values) {
					t.Errorf("%s on %s: quality run %+v", s.Field, d, q)
				}
				at = q.Index + q.Count
			}
		}
	}
	if s.ExpectedCount != count || s.DeliveredCount != known {
		t.Errorf("%s: counts %d/%d, the values %d/%d", s.Field, s.DeliveredCount, s.ExpectedCount, known, count)
	}
	return days
}

// checkWhole: every field and day asked for is either in a series or withheld,
// exactly once.
func checkWhole(t testing.TB, r client.Readings, fields []string, loc *time.Location) {
	t.Helper()
	seen := map[string]int{}
	asked := meter.DayRange{From: dayOf(r.From.String()), To: dayOf(r.To.String())}
	note := func(field string, days meter.DayRange) {
		for d := days.From; d < days.To; d++ {
			seen[field+d.String()]++
		}
	}
	for _, s := range r.Series {
		note(s.Field, checkSeries(t, s, loc))
	}
	for _, h := range r.Withheld {
		note(h.Field, meter.DayRange{From: dayOf(h.From.String()), To: dayOf(h.To.String())})
	}
	n := 0
	for _, f := range fields {
		for d := asked.From; d < asked.To; d++ {
			if k := seen[f+d.String()]; k != 1 {
				t.Errorf("%s on %s is %d times in the answer", f, d, k)
				return
			}
			n++
		}
	}
	if n != len(seen) {
		t.Errorf("the answer has %d fields and days that were not asked for", len(seen)-n)
	}
}

// checkRecord: the answer has exactly one row in the access log, which says
// what it says.
func (w *world) checkRecord(t testing.TB, c *caller, r client.Readings) logRow {
	t.Helper()
	row := w.onlyRow(t, r.InteractionId.String())
	want := audit.Given
	switch {
	case len(r.Withheld) > 0 && row.receipt != nil: // opened, if only to find that it is stored coarser
		want = audit.Partly
	case len(r.Withheld) > 0:
		want = audit.Withheld
	}
	if row.Outcome != want || row.Supplier.String() != c.clientID || row.EAN.String() != r.Ean || row.Purpose.String() != string(r.Purpose) ||
		row.Days.From.String() != r.From.String() || row.Days.To.String() != r.To.String() || len(row.Withheld) != len(r.Withheld) {
		t.Errorf("the access record is not of the answer: %v %v %v", row.Outcome, row.Purpose, row.Days)
	}
	if fmt.Sprintf("%x", row.Certificate) != fmt.Sprintf("%x", sha256.Sum256(c.cert.Certificate[0])) {
		t.Error("the access record names another certificate")
	}
	if age := time.Since(row.At); age < 0 || age > 5*time.Minute {
		t.Errorf("the access was recorded as of %s ago", age)
	}
	if len(r.Series) > 0 && row.receipt == nil {
		t.Fatal("readings without a receipt")
	}
	if rc := row.receipt; rc != nil {
		if rc.InteractionID != row.InteractionID || rc.Supplier != row.Supplier || rc.EAN != row.EAN || rc.TokenID != row.TokenID || rc.Purpose != row.Purpose ||
			rc.LegalFile != row.LegalFile || rc.FileVersion != row.FileVersion || rc.Profile != row.Profile || rc.Refused+rc.Damaged != 0 {
			t.Errorf("the receipt is not of the record: %+v", rc)
		}
	}
	return row
}

// Everything the ready file promises is given, as promised.
func TestEveryPromiseIsKept(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	loc := w.profile(t).Location()
	today := meter.DayOf(time.Now(), loc)
	promises := 0
	for _, p := range w.ready.MeteringPoints {
		if len(p.Access) == 0 {
			t.Errorf("%s: nobody may read anything", p.Commodity)
		}
		for _, a := range p.Access {
			promises++
			t.Run(fmt.Sprintf("%s %s %s", a.Basis, a.Resolution, p.EAN[14:]), func(t *testing.T) {
				t.Parallel()
				w := sharedWorld(t)
				c := w.supplierNamed(t, a.Supplier)
				from, to := dayOf(a.From), dayOf(a.To)
				if a.Resolution == "P1M" { // whole months within a year
					from = max(from, (to.Month() - 12).First())
				} else {
					from = max(from, to-366)
				}
				params := period(from.String(), to.String(), a.Purpose)
				params.Fields = &a.Fields
				reserved := to < today-366
				if reserved { // nothing is stored yet that could say how fine it is
					params.Resolution = ptr(client.Resolution(a.Resolution))
				}
				r := c.readings(t, p.EAN, params)
				checkWhole(t, r, a.Fields, loc)
				row := w.checkRecord(t, c, r)
				if r.Ean != p.EAN || r.TimeZone != loc.String() || r.Links.Next != nil {
					t.Errorf("%s %s %v", r.TimeZone, r.ProfileVersion, r.Links.Next)
				}
				if len(r.Withheld) != 0 || len(r.Series) != len(a.Fields) || len(row.Granted) != len(a.Fields) {
					t.Fatalf("%d series, withheld %+v", len(r.Series), r.Withheld)
				}
				for i, s := range r.Series {
					if s.Field != a.Fields[i] || string(s.LegalBasis) != a.Basis || string(s.Resolution) != a.Resolution {
						t.Errorf("%s on %s at %s", s.Field, s.LegalBasis, s.Resolution)
					}
					if got := (meter.DayRange{From: from, To: to}); checkSeries(t, s, loc) != got {
						t.Errorf("%s: days %v, want %v", s.Field, checkSeries(t, s, loc), got)
					}
					register := s.ReadingKind == client.ReadingKindREGISTER
					switch {
					case register == strings.Contains(s.Field, "intervals"):
						t.Errorf("%s is answered as %s", s.Field, s.ReadingKind)
					case reserved:
						if s.DeliveredCount != 0 {
							t.Errorf("%s: readings where none can be", s.Field)
						}
					case register && s.DeliveredCount != s.ExpectedCount:
						t.Errorf("%s: %d of %d", s.Field, s.DeliveredCount, s.ExpectedCount)
					case s.DeliveredCount*100 < s.ExpectedCount*95: // meters have their gaps
						t.Errorf("%s: %d of %d", s.Field, s.DeliveredCount, s.ExpectedCount)
					}
				}
				if !reserved && row.receipt.Opened == 0 {
					t.Error("the receipt says that nothing was opened")
				}
			})
		}
	}
	if promises < 50 {
		t.Errorf("only %d promises", promises)
	}
}

// What lies outside is withheld, each part with its reason.
func TestWithheldReasons(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	loc := w.profile(t).Location()
	today := meter.DayOf(time.Now(), loc)
	lastMonth := today.Month() - 1
	at := func(d meter.Day) string { return d.String() }
	points := w.ready.MeteringPoints // in the order of the demo's plan
	first := func(p readyPoint, gln, basis string) readyAccess { return accessFor(t, p, gln, basis) }
	a, b := w.ready.Suppliers[0].ID, w.ready.Suppliers[1].ID

	switched := points[8]
	change := first(switched, a, "SUPPLY_DAILY").To
	if first(switched, b, "SUPPLY_DAILY").From != change {
		t.Fatal("the demo's plan has changed: no switch of supplier where this test looks for one")
	}
	optedOut := points[13]
	out := first(optedOut, a, "SUPPLY_DAILY").To

	for name, tc := range map[string]struct {
		point    readyPoint
		supplier string
		from, to string
		purpose  string
		more     func(*client.GetReadingsParams)
		want     string // field from to reason
	}{
		"today is not over": {points[0], a, at(today - 1), at(today + 1), "ENERGY_MANAGEMENT", fields("import_low"),
			"import_low " + at(today) + " " + at(today+1) + " PERIOD_IN_FUTURE"},
		"tomorrow": {points[0], a, at(today + 1), at(today + 2), "ENERGY_MANAGEMENT", fields("import_low"),
			"import_low " + at(today+1) + " " + at(today+2) + " PERIOD_IN_FUTURE"},
		"next century": {points[0], a, "2126-01-01", "2126-02-01", "BILLING", fields("import_low"),
			"import_low 2126-01-01 2126-02-01 PERIOD_IN_FUTURE"},
		"past retention": {points[0], a, at(today.AddMonths(-60) - 2), at(today.AddMonths(-60)), "ENERGY_MANAGEMENT", fields("import_low"),
			"import_low " + at(today.AddMonths(-60)-2) + " " + at(today.AddMonths(-60)) + " PERIOD_TOO_OLD"},
		"before the first supplier": {points[0], a, at(dayOf(first(points[0], a, "SUPPLY_DAILY").From) - 3), first(points[0], a, "SUPPLY_DAILY").From, "ENERGY_MANAGEMENT", fields("import_low"),
			"import_low " + at(dayOf(first(points[0], a, "SUPPLY_DAILY").From)-3) + " " + first(points[0], a, "SUPPLY_DAILY").From + " NO_SUPPLY"},
		"after the switch, the old supplier": {switched, a, at(dayOf(change) - 2), at(dayOf(change) + 2), "ENERGY_MANAGEMENT", fields("import_low"),
			"import_low " + change + " " + at(dayOf(change)+2) + " NO_SUPPLY"},
		"before the switch, the new supplier": {switched, b, at(dayOf(change) - 2), at(dayOf(change) + 2), "ENERGY_MANAGEMENT", fields("import_low"),
			"import_low " + at(dayOf(change)-2) + " " + change + " NO_SUPPLY"},
		"opted out": {optedOut, a, at(dayOf(out) - 2), at(dayOf(out) + 2), "ENERGY_MANAGEMENT", fields("import_low"),
			"import_low " + out + " " + at(dayOf(out)+2) + " OPTED_OUT"},
		"opted out, with consent": {optedOut, a, out, at(dayOf(out) + 2), "ENERGY_MANAGEMENT", fields("import_intervals"),
			"import_intervals " + out + " " + at(dayOf(out)+2) + " OPTED_OUT"},
		"consent revoked": {points[5], b, at(today - 2), at(today), "ENERGY_MANAGEMENT", fields("import_intervals"),
			"import_intervals " + at(today-2) + " " + at(today) + " CONSENT_REVOKED"},
		"no consent": {points[7], b, at(today - 2), at(today), "ENERGY_MANAGEMENT", fields("import_intervals"),
			"import_intervals " + at(today-2) + " " + at(today) + " NO_CONSENT"},
		"quarters, consent for hours": {points[4], a, at(today - 2), at(today), "ENERGY_MANAGEMENT", both(fields("import_intervals"), resolution(client.PT15M)),
			"import_intervals " + at(today-2) + " " + at(today) + " NOT_GRANTED_AT_THIS_GRANULARITY"},
		"quarters, stored as hours": {points[6], a, at(today - 2), at(today), "ENERGY_MANAGEMENT", both(fields("import_intervals"), resolution(client.PT15M)),
			"import_intervals " + at(today-2) + " " + at(today) + " FINER_THAN_STORED"},
		"days for billing": {points[0], a, lastMonth.First().String(), today.Month().First().String(), "BILLING", both(fields("import_low"), resolution(client.P1D)),
			"import_low " + lastMonth.First().String() + " " + today.Month().First().String() + " NOT_GRANTED_AT_THIS_GRANULARITY"},
		"part of a month": {points[0], a, at(lastMonth.First() + 1), at(today.Month().First()), "BILLING", fields("import_low"),
			"import_low " + at(lastMonth.First()+1) + " " + at(today.Month().First()) + " PARTIAL_PERIOD"},
		"intervals for billing": {points[0], a, at(today - 2), at(today), "BILLING", fields("import_intervals"),
			"import_intervals " + at(today-2) + " " + at(today) + " NOT_COVERED"},
		"gas of an electricity meter": {points[0], a, at(today - 2), at(today), "ENERGY_MANAGEMENT", fields("gas"),
			"gas " + at(today-2) + " " + at(today) + " NOT_COVERED"},
		"purpose without a rule": {points[0], a, at(today - 2), at(today), "CUSTOMER_SERVICE", fields("import_low"),
			"import_low " + at(today-2) + " " + at(today) + " PURPOSE_NOT_AVAILABLE"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := w.supplierNamed(t, tc.supplier)
			p := period(tc.from, tc.to, tc.purpose)
			tc.more(&p)
			r := c.readings(t, tc.point.EAN, p)
			checkWhole(t, r, *p.Fields, loc)
			w.checkRecord(t, c, r)
			var got []string
			for _, h := range r.Withheld {
				got = append(got, fmt.Sprint(h.Field, " ", h.From, " ", h.To, " ", h.Reason))
			}
			if strings.Join(got, "; ") != tc.want {
				t.Errorf("withheld %v, want %s", got, tc.want)
			}
		})
	}
}

func fields(names ...string) func(*client.GetReadingsParams) {
	return func(p *client.GetReadingsParams) { p.Fields = &names }
}

func resolution(r client.Resolution) func(*client.GetReadingsParams) {
	return func(p *client.GetReadingsParams) { p.Resolution = &r }
}

func kind(k client.ReadingKind) func(*client.GetReadingsParams) {
	return func(p *client.GetReadingsParams) { p.Kind = &k }
}

func both(f ...func(*client.GetReadingsParams)) func(*client.GetReadingsParams) {
	return func(p *client.GetReadingsParams) {
		for _, f := range f {
			f(p)
		}
	}
}

// read is readings with changes to the parameters.
func (c *caller) read(t testing.TB, ean, from, to, purpose string, more ...func(*client.GetReadingsParams)) client.Readings {
	t.Helper()
	p := period(from, to, purpose)
	both(more...)(&p)
	return c.readings(t, ean, p)
}

// Reads and amounts agree, at every resolution, to the last digit.
func TestResolutionsAgree(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	loc := w.profile(t).Location()
	today := meter.DayOf(time.Now(), loc)
	for _, i := range []int{0, 6, 14} { // solar and quarters, hours, gas
		p := w.ready.MeteringPoints[i]
		t.Run(p.Commodity+p.EAN[14:], func(t *testing.T) {
			t.Parallel()
			c := w.supplierNamed(t, accessOf(p, "CONSENT").Supplier)
			stored := client.Resolution(accessOf(p, "CONSENT").Resolution)
			from, to := (today.Month() - 11).First().String(), today.Month().First().String()
			days := meter.DayRange{From: dayOf(from), To: dayOf(to)}

			// Registers.
			for _, r := range []client.Resolution{client.P1D, client.P1M} {
				class := func(p *client.GetReadingsParams) { p.Class = ptr(client.Registers) }
				reads := c.read(t, p.EAN, from, to, "ENERGY_MANAGEMENT", class, resolution(r))
				amounts := c.read(t, p.EAN, from, to, "ENERGY_MANAGEMENT", class, resolution(r), kind(client.ReadingKindCONSUMPTION))
				if len(reads.Series) == 0 || len(reads.Series) != len(amounts.Series) || len(reads.Withheld)+len(amounts.Withheld) > 0 {
					t.Fatalf("%d and %d series, withheld %v %v", len(reads.Series), len(amounts.Series), reads.Withheld, amounts.Withheld)
				}
				for k, s := range reads.Series {
					if checkSeries(t, s, loc) != days || checkSeries(t, amounts.Series[k], loc) != days {
						t.Fatal("other days than asked for")
					}
					for j, amount := range amounts.Series[k].Days {
						want := new(big.Rat).Sub(total(t, s.Days[j+1].Values), total(t, s.Days[j].Values))
						if !same(t, amount.Values[0], want) {
							t.Fatalf("%s at %s: the amount of entry %d is not the difference of its reads", s.Field, r, j)
						}
					}
				}
			}

			// Intervals, and the registers beside them.
			class := func(p *client.GetReadingsParams) { p.Class = ptr(client.Intervals) }
			fine := c.read(t, p.EAN, from, to, "ENERGY_MANAGEMENT", class)
			gaps, compared := 0, 0
			for _, r := range []client.Resolution{client.PT1H, client.P1D, client.P1M} {
				coarse := c.read(t, p.EAN, from, to, "ENERGY_MANAGEMENT", class, resolution(r))
				if len(coarse.Series) != len(fine.Series) || len(coarse.Withheld) > 0 {
					t.Fatalf("%s: withheld %v", r, coarse.Withheld)
				}
				for k, s := range fine.Series {
					if s.Resolution != stored || checkSeries(t, s, loc) != days || checkSeries(t, coarse.Series[k], loc) != days {
						t.Fatalf("%s at %s", s.Field, s.Resolution)
					}
					flat := func(ds []client.DayValues) (v []*string) {
						for _, d := range ds {
							v = append(v, d.Values...)
						}
						return v
					}
					next := 0
					parts := flat(s.Days)
					for _, d := range coarse.Series[k].Days {
						for range d.Values {
							n := 1
							switch r {
							case client.PT1H:
								if stored == client.PT15M {
									n = 4
								}
							case client.P1D:
								n = meter.Slots(firstDay(t, d, loc), must(meter.ParseResolution(string(stored))), loc)
							case client.P1M:
								n = 0
								for m := firstDay(t, d, loc); m < (firstDay(t, d, loc).Month() + 1).First(); m++ {
									n += meter.Slots(m, must(meter.ParseResolution(string(stored))), loc)
								}
							}
							want := total(t, parts[next:next+n])
							next += n
							compared++
							if want == nil {
								gaps++
							}
							if got := d.Values[0]; r != client.PT1H && !same(t, got, want) {
								t.Fatalf("%s at %s: the value of %s is not the sum of its parts", s.Field, r, d.Start)
							}
						}
					}
					if r == client.PT1H {
						compareHours(t, s, coarse.Series[k])
					}
					if next != len(parts) {
						t.Errorf("%s: %d parts in %s, %d there are", s.Field, next, r, len(parts))
					}
				}
			}
			t.Logf("%d aggregates compared, %d of them null because a part is", compared, gaps)

			// A month without gaps is what the registers say of it.
			months := c.read(t, p.EAN, from, to, "ENERGY_MANAGEMENT", class, resolution(client.P1D))
			regs := c.read(t, p.EAN, from, to, "ENERGY_MANAGEMENT", func(p *client.GetReadingsParams) { p.Class = ptr(client.Registers) }, resolution(client.P1D), kind(client.ReadingKindCONSUMPTION))
			whole := 0
			for k, s := range months.Series {
				for j, d := range s.Days {
					if d.Values[0] == nil {
						continue
					}
					want := new(big.Rat)
					for _, rs := range regs.Series {
						if strings.HasPrefix(rs.Field, strings.TrimSuffix(s.Field, "_intervals")) {
							want.Add(want, total(t, rs.Days[j].Values))
						}
					}
					whole++
					if !same(t, d.Values[0], want) {
						t.Fatalf("%s on %s: the intervals do not add up to the registers", months.Series[k].Field, d.Start)
					}
				}
			}
			if whole < 100 {
				t.Errorf("only %d days without gaps", whole)
			}
		})
	}
}

// compareHours compares day by day: an hour is four quarters.
func compareHours(t testing.TB, fine, hours client.Series) {
	t.Helper()
	for i, d := range hours.Days {
		n := len(fine.Days[i].Values) / len(d.Values)
		for j, v := range d.Values {
			if !same(t, v, total(t, fine.Days[i].Values[j*n:(j+1)*n])) {
				t.Fatalf("%s: hour %d of %s is not the sum of its parts", fine.Field, j, d.Start)
			}
		}
	}
}

func accessOf(p readyPoint, basis string) readyAccess {
	i := slices.IndexFunc(p.Access, func(a readyAccess) bool { return a.Basis == basis })
	if i < 0 {
		return readyAccess{}
	}
	return p.Access[i]
}

// The days on which the clocks change have 23 and 25 hours, told with the
// offsets of that day.
func TestDaysOfClockChange(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	loc := w.profile(t).Location()
	today := meter.DayOf(time.Now(), loc)
	c := w.supplier(t, 0)
	p, gas := w.ready.MeteringPoints[0], w.ready.MeteringPoints[14]
	found := 0
	for d := today - 365; d < today; d++ {
		hours := meter.Slots(d, meter.PT1H, loc)
		if hours == 24 {
			continue
		}
		found++
		zone := map[int]string{23: "+01:00", 25: "+02:00"}[hours]
		for _, tc := range []struct {
			ean, field string
			r          client.Resolution
			n          int
		}{
			{p.EAN, "import_intervals", client.PT15M, 4 * hours},
			{p.EAN, "import_intervals", client.PT1H, hours},
			{p.EAN, "export_intervals", client.PT15M, 4 * hours},
			{gas.EAN, "gas_intervals", client.PT1H, hours},
		} {
			r := c.read(t, tc.ean, d.String(), (d + 1).String(), "ENERGY_MANAGEMENT", fields(tc.field), resolution(tc.r))
			if len(r.Series) != 1 || len(r.Series[0].Days) != 1 || len(r.Series[0].Days[0].Values) != tc.n || r.Series[0].ExpectedCount != tc.n {
				t.Errorf("%s of %s at %s: %+v", tc.field, d, tc.r, r.Series)
				continue
			}
			if got, want := r.Series[0].Days[0].Start.Format(time.RFC3339), d.String()+"T00:00:00"+zone; got != want {
				t.Errorf("starts at %s, want %s", got, want)
			}
		}
	}
	if found != 2 {
		t.Errorf("%d days of clock change in the demo's year", found)
	}
}

// A year is the most that can be asked for; what is longer comes in parts that
// join without a seam.
func TestLongestPeriod(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c := w.supplier(t, 0)
	p := w.ready.MeteringPoints[0]
	today := meter.DayOf(time.Now(), w.profile(t).Location())
	year := meter.DayRange{From: today - 366, To: today}
	r := c.read(t, p.EAN, year.From.String(), year.To.String(), "ENERGY_MANAGEMENT", fields("import_low"))
	if len(r.Series) == 0 {
		t.Fatalf("%+v", r)
	}
	a := c.with(t, c.accessToken(t), readingsPath(p.EAN, (year.From-1).String(), year.To.String(), "ENERGY_MANAGEMENT"))
	if a.status != http.StatusBadRequest || len(*a.Errors) != 1 || (*a.Errors)[0].Pointer != "/query/to" {
		t.Errorf("367 days: %d %s", a.status, a.body)
	}
	middle := today - 100
	left := c.read(t, p.EAN, (middle - 5).String(), middle.String(), "ENERGY_MANAGEMENT", fields("import_low"))
	right := c.read(t, p.EAN, middle.String(), (middle + 5).String(), "ENERGY_MANAGEMENT", fields("import_low"))
	end, begin := left.Series[0].Days[5].Values[0], right.Series[0].Days[0].Values[0]
	if end == nil || begin == nil || *end != *begin {
		t.Error("the closing read of one period is not the opening read of the next")
	}
}

// The end read of the old supplier is the begin read of the new one.
func TestSwitchSharesOneRead(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready.MeteringPoints[8]
	a, b := w.supplier(t, 0), w.supplier(t, 1)
	at := dayOf(accessFor(t, p, a.clientID, "SUPPLY_DAILY").To)
	for _, field := range []string{"import_low", "import_normal"} {
		old := a.read(t, p.EAN, (at - 3).String(), (at + 3).String(), "ENERGY_MANAGEMENT", fields(field))
		next := b.read(t, p.EAN, (at - 3).String(), (at + 3).String(), "ENERGY_MANAGEMENT", fields(field))
		if len(old.Series) != 1 || len(next.Series) != 1 || len(old.Series[0].Days) != 4 || len(next.Series[0].Days) != 4 {
			t.Fatalf("%+v %+v", old.Series, next.Series)
		}
		if x, y := old.Series[0].Days[3].Values[0], next.Series[0].Days[0].Values[0]; x == nil || y == nil || *x != *y {
			t.Errorf("%s: the reads at the switch differ", field)
		}
	}
}

// listAll pages through the whole list.
func listAll(t testing.TB, c *caller, limit int) []client.MeteringPoint {
	t.Helper()
	params := &client.ListMeteringPointsParams{Limit: &limit}
	var all []client.MeteringPoint
	for {
		res, err := c.api.ListMeteringPointsWithResponse(t.Context(), params)
		if err != nil {
			t.Fatal(err)
		}
		page := res.JSON200
		if page == nil {
			t.Fatalf("%d %s", res.StatusCode(), res.Body)
		}
		row := c.w.onlyRow(t, page.InteractionId.String())
		if !row.EAN.IsZero() || row.Outcome != audit.Given || row.receipt != nil || row.Supplier.String() != c.clientID {
			t.Errorf("the list's access record: %+v", row.Record)
		}
		if len(page.MeteringPoints) > limit {
			t.Fatalf("%d on a page of %d", len(page.MeteringPoints), limit)
		}
		all = append(all, page.MeteringPoints...)
		if page.Links.Next == nil {
			return all
		}
		u, err := url.Parse(*page.Links.Next)
		if err != nil || !strings.HasPrefix(*page.Links.Next, c.w.ready.GatewayURL+"/v1/metering-points?") {
			t.Fatalf("next is %q", *page.Links.Next)
		}
		cursor := u.Query().Get("cursor")
		params = &client.ListMeteringPointsParams{Limit: &limit, Cursor: &cursor}
		if got := u.Query().Get("limit"); got != fmt.Sprint(limit) {
			t.Fatalf("next has limit %s", got)
		}
	}
}

// Paging through gives every metering point once, whatever the page size.
func TestListPages(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	for n := range 2 {
		c := w.supplier(t, n)
		whole := listAll(t, c, 1000)
		paged := listAll(t, c, 10)
		if len(whole) <= 10 {
			t.Errorf("supplier %d has %d metering points: too few for two pages", n, len(whole))
		}
		if !slices.EqualFunc(whole, paged, func(a, b client.MeteringPoint) bool { return a.Ean == b.Ean }) {
			t.Errorf("one page lists %d metering points, pages of 10 %d", len(whole), len(paged))
		}
		if !slices.IsSortedFunc(whole, func(a, b client.MeteringPoint) int { return strings.Compare(a.Ean, b.Ean) }) {
			t.Error("not in ascending order")
		}
		for _, p := range w.ready.MeteringPoints {
			i := slices.IndexFunc(whole, func(m client.MeteringPoint) bool { return m.Ean == p.EAN })
			if (i >= 0) != supplies(p, c.clientID) {
				t.Errorf("supplier %d: listed %v, may read something %v", n, i >= 0, supplies(p, c.clientID))
			}
			if i < 0 {
				continue
			}
			if string(whole[i].Commodity) != p.Commodity {
				t.Errorf("listed as %s", whole[i].Commodity)
			}
			for _, a := range p.Access {
				if a.Supplier == c.clientID && !slices.Contains(whole[i].LegalBases, client.LegalBasis(a.Basis)) {
					t.Errorf("%s is not among the listed bases %v", a.Basis, whole[i].LegalBases)
				}
			}
		}
	}
}

func TestStatusAndProbes(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c := w.supplier(t, 0)
	res, err := c.api.GetStatusWithResponse(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	s := res.JSON200
	if s == nil || s.Status != client.StatusStatusUP || len(s.Backends) != 3 || s.Profile.Country != "NL" || s.Profile.RetentionMonths != 60 {
		t.Fatalf("%d: %s", res.StatusCode(), res.Body)
	}
	if rows := w.accessLog(t, s.InteractionId.String()); len(rows) != 0 {
		t.Error("the status is in the access log, though it names nobody")
	}
	yesterday := meter.DayOf(time.Now(), w.profile(t).Location()) - 1
	if s.Freshness.LastStoredAt == nil || s.Freshness.LastCompleteDay == nil || s.Freshness.LastCompleteDay.String() != yesterday.String() {
		t.Errorf("freshness %+v", s.Freshness)
	}
	health, err := c.api.GetHealthWithResponse(t.Context())
	if err != nil || health.JSON200 == nil || health.JSON200.Status != client.ProbeStatusOk {
		t.Errorf("healthz: %s %v", health.Body, err)
	}
	ready, err := c.api.GetReadinessWithResponse(t.Context())
	if err != nil || ready.JSON200 == nil || ready.JSON200.Status != client.ProbeStatusOk {
		t.Errorf("readyz: %s %v", ready.Body, err)
	}
	// The operator's port has them as well, in plain HTTP, and nothing else.
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 200, "/v1/status": 404, "/": 404} {
		res, err := http.Get(strings.TrimSuffix(w.ready.MetricsURL, "/metrics") + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s on the metrics port: %d", path, res.StatusCode)
		}
	}
}

// The metrics count requests and hold nothing of metering points.
func TestMetrics(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	side := w.sidecar(t) // its counters are the test's alone
	c := w.supplier(t, 0).at(t, side.url)
	token := c.accessToken(t)
	p := w.ready.MeteringPoints[0]
	a := accessFor(t, p, c.clientID, "SUPPLY_PERIODIC")
	for range 3 {
		if got := c.with(t, token, readingsPath(p.EAN, a.From, a.To, a.Purpose)); got.status != http.StatusOK {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	c.get(t, "/v1/status")
	c.get(t, "/nowhere", "Bearer "+token)
	gateway, crypto := scrape(t, side.metrics), scrape(t, side.cryptoMetrics)
	for pattern, want := range map[string]float64{
		`^kluis_gateway_requests_total\{.*route="/v1/metering-points/\{ean\}/readings".*status="200"`:            3,
		`^kluis_gateway_requests_total\{problem="unauthenticated",route="/v1/status",status="401",supplier=""\}`: 1,
		`^kluis_gateway_requests_total\{problem="not-found",route="none",status="404"`:                           1,
		`^kluis_gateway_request_duration_seconds_count\{route="/v1/metering-points/\{ean\}/readings"\}`:          3,
		`^kluis_gateway_evidence_age_seconds_count`:                                                              3,
		`^kluis_gateway_block_faults_total`:                                                                      0,
		`^kluis_gateway_evidence_invalid_total`:                                                                  0,
	} {
		if got := gateway.sum(pattern); got != want {
			t.Errorf("%s: %v, want %v", pattern, got, want)
		}
	}
	if got := crypto.sum(`^kluis_cryptoserver_calls_total\{.*Open`); got != 3 {
		t.Errorf("%v calls of Open, want 3", got)
	}
	if got := crypto.sum(`^kluis_cryptoserver_token_up`); got != 5 {
		t.Errorf("%v tokens up, want 5", got)
	}
	for _, m := range []metrics{gateway, crypto} {
		for series := range m {
			if err := w.secrets.search([]byte(series)); err != nil {
				t.Errorf("a metric holds %v", err)
			}
		}
	}
}

// However many ask at once, each request has its one row, and the receipts of
// one boot form a chain: each names the one before.
func TestEachRequestIsRecordedOnceInOneChain(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready.MeteringPoints[0]
	today := meter.DayOf(time.Now(), w.profile(t).Location())
	c := w.supplier(t, 0)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 4 {
				params := period((today - 2).String(), today.String(), "ENERGY_MANAGEMENT")
				res, err := c.api.GetReadingsWithResponse(t.Context(), p.EAN, &params)
				if err != nil || res.JSON200 == nil {
					t.Errorf("%v %s", err, res.Body)
					return
				}
				rows := w.accessLog(t, res.JSON200.InteractionId.String())
				if len(rows) != 1 || rows[0].Outcome != audit.Given || rows[0].receipt == nil {
					t.Errorf("%d rows", len(rows))
				}
			}
		})
	}
	wg.Wait()
	if links, _ := w.chain(t); links < 16 {
		t.Errorf("only %d pairs of receipts that follow each other", links)
	}
}

// Who goes away while a request is under way leaves its row all the same:
// nothing is opened without one.
func TestCallerGoesAway(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	side := w.sidecar(t)
	c := w.supplier(t, 0).at(t, side.url)
	token := c.accessToken(t)
	p := w.ready.MeteringPoints[0]
	today := meter.DayOf(time.Now(), w.profile(t).Location())
	path := readingsPath(p.EAN, (today - 40).String(), today.String(), "ENERGY_MANAGEMENT")
	known := c.with(t, token, path)
	boot := w.onlyRow(t, known.header.Get("X-Interaction-Id")).receipt.BootID
	gone := 0
	for i := range 40 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+i)*time.Millisecond)
		if _, err := c.trySend(ctx, http.MethodGet, path, nil, "Bearer "+token); err != nil {
			gone++
		}
		cancel()
	}
	opened := func() float64 { return scrape(t, side.cryptoMetrics).sum(`^kluis_cryptoserver_units_total\{.*"ok"`) }
	var receipts int
	eventually(t, "every receipt is in the access log", func() bool {
		rows, err := w.accessRows(`WHERE ean = $1`, p.EAN)
		if err != nil {
			t.Fatal(err)
		}
		receipts = 0
		for _, r := range rows {
			if r.receipt != nil && r.receipt.BootID == boot {
				receipts++
			}
		}
		return float64(receipts) == opened()
	})
	t.Logf("%d of 40 went away; %d metering points opened, each with its receipt in the log", gone, receipts)
	if gone == 0 {
		t.Error("nobody went away: the test attacks nothing")
	}
}

// chain follows the receipts in the access log: how many pairs are linked, and
// how many receipts there are by boot.
func (w *world) chain(t testing.TB) (links int, boots map[[16]byte]int) {
	t.Helper()
	rows, err := w.accessRows("")
	if err != nil {
		t.Fatal(err)
	}
	type place struct {
		boot     [16]byte
		sequence uint64
	}
	at := map[place]logRow{}
	boots = map[[16]byte]int{}
	for _, r := range rows {
		if r.receipt == nil {
			continue
		}
		k := place{r.receipt.BootID, r.receipt.Sequence}
		if _, twice := at[k]; twice {
			t.Errorf("two receipts of %s have the sequence %d", r.receipt.ServerID, k.sequence)
		}
		at[k] = r
		boots[k.boot]++
	}
	for k, r := range at {
		if k.sequence == 1 {
			if r.receipt.Previous != [32]byte{} {
				t.Error("the first receipt of a boot names one before")
			}
			continue
		}
		if before, ok := at[place{k.boot, k.sequence - 1}]; ok {
			links++
			if sha256.Sum256(before.Receipt) != r.receipt.Previous {
				t.Errorf("receipt %d of %s does not name the one before", k.sequence, r.receipt.ServerID)
			}
		}
	}
	return links, boots
}
