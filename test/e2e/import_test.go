package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kluis/ingest"
	"kluis/meter"
)

// sharedFile finds one of the real households' files, or skips: they are no
// part of the project.
func sharedFile(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("KLUIS_SHARED_DATA")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "data")
	}
	path := filepath.Join(dir, "interval", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("real readings not found (KLUIS_SHARED_DATA, or ../shared/data beside the module): %v", err)
	}
	return path
}

// customer is a home that was registered by the operator's commands alone: an
// electricity and a gas metering point, supplied and with consent since 2015.
type customer struct {
	l                *lab
	v                vendor
	electricity, gas string
}

func (l *lab) customer(t testing.TB, v vendor) customer {
	t.Helper()
	c := customer{l, v, labEAN(), labEAN()}
	for ean, commodity := range map[string]string{c.electricity: "electricity", c.gas: "gas"} {
		l.secrets.add("an EAN", ean)
		l.kluis(t, "supply", "set", "--ean", ean, "--commodity", commodity, "--supplier", v.clientID, "--from", "2015-01-01")
		finest := map[string]string{"electricity": "PT15M", "gas": "PT1H"}[commodity]
		l.kluis(t, "consent", "grant", "--ean", ean, "--supplier", v.clientID, "--granularity", finest, "--from", "2015-01-01",
			"--valid-until", time.Now().AddDate(1, 0, 0).Format(time.DateOnly), "--evidence", "test")
	}
	return c
}

// report is what `kluis ingest csv --json` prints.
type report struct {
	Rows      int
	Fields    []ingest.Counts
	Stored    int
	Corrected int
	Unchanged int
	LeftOut   []string         `json:"fieldsLeftOut"`
	Bad       []ingest.BadLine `json:"badLines"`
	Others    int              `json:"rowsOfOtherHomes"`
}

func (c customer) ingest(t testing.TB, args ...string) report {
	t.Helper()
	var r report
	out := c.l.kluis(t, append([]string{"ingest", "csv", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r
}

// stored is how many blocks a metering point has, versions counted.
func (c customer) stored(t testing.TB, ean string) (n int) {
	t.Helper()
	return one[int](t, c.l.world, `SELECT count(*) FROM sealed_block WHERE ean = $1`, ean)
}

// sum adds up what a supplier is given of a field, exactly.
func (c customer) sum(t testing.TB, ean, from, to, field, purpose, resolution string) (total string, known, all int) {
	t.Helper()
	var n int64
	for start, end := sure(meter.ParseDay(from)), sure(meter.ParseDay(to)); start < end; {
		next := min(meter.DayFromDate(1+year(start), time.January, 1), end)
		s := seenIn(t, c.v.fetch(t, readingsPath(ean, start.String(), next.String(), purpose, "fields", field, "resolution", resolution, "kind", "CONSUMPTION")))
		if len(s.withheld) != 0 {
			t.Errorf("withheld %q", s.withheld)
		}
		for _, values := range s.values {
			for v := range strings.FieldsSeq(values) {
				all++
				if v != "null" {
					known++
					n += thousandths(t, v)
				}
			}
		}
		start = next
	}
	return fmt.Sprintf("%d.%03d", n/1000, n%1000), known, all
}

func year(d meter.Day) int {
	y, _, _ := d.Date()
	return y
}

func thousandths(t testing.TB, v string) int64 {
	t.Helper()
	whole, part, ok := strings.Cut(v, ".")
	n, err := strconv.ParseInt(whole+part, 10, 64)
	if !ok || len(part) != 3 || err != nil {
		t.Fatalf("%q does not have three decimals", v)
	}
	return n
}

func (c customer) wantSum(t testing.TB, ean, from, to, field, purpose, resolution, total string, known, all int) {
	t.Helper()
	if gotTotal, gotKnown, gotAll := c.sum(t, ean, from, to, field, purpose, resolution); gotTotal != total || gotKnown != known || gotAll != all {
		t.Errorf("%s at %s: %s in %d of %d values, want %s in %d of %d", field, resolution, gotTotal, gotKnown, gotAll, total, known, all)
	}
}

// wantReads checks register reads at midnights.
func (c customer) wantReads(t testing.TB, ean, field string, want map[string]string) {
	t.Helper()
	for _, day := range slices.Sorted(maps.Keys(want)) {
		d := sure(meter.ParseDay(day))
		s := seenIn(t, c.v.fetch(t, readingsPath(ean, day, (d+1).String(), "ENERGY_MANAGEMENT", "fields", field)))
		if got := s.values[field+" "+day]; got != want[day] {
			t.Errorf("%s on %s: read %q, want %q", field, day, got, want[day])
		}
	}
}

const (
	billing = "BILLING"
	energy  = "ENERGY_MANAGEMENT"
)

func TestImportDSMRReader(t *testing.T) {
	t.Parallel()
	file := sharedFile(t, "nl_dsmrreader_2024_hourly_elec_gas.csv.gz")
	l := sharedWorld(t).lab(t)
	c := l.customer(t, l.vendor(t))
	r := c.ingest(t, "--mapping", "nl_dsmrreader", "--ean", c.electricity, "--gas-ean", c.gas, file)
	if r.Rows != 8754 || r.Corrected != 0 || r.Unchanged != 0 || len(r.Bad) != 0 || len(r.LeftOut) != 0 {
		t.Errorf("%+v", r)
	}
	if n := c.stored(t, c.electricity) + c.stored(t, c.gas); n != r.Stored {
		t.Errorf("%d blocks, said were %d", n, r.Stored)
	}
	const from, to = "2024-01-01", "2025-01-01"
	for field, total := range map[string]string{"import_low": "1828.818", "import_normal": "1914.313", "export_low": "651.104", "export_normal": "1477.279"} {
		c.wantSum(t, c.electricity, from, to, field, billing, "P1M", total, 12, 12)
	}
	c.wantSum(t, c.gas, from, to, "gas", billing, "P1M", "621.827", 12, 12)
	c.wantSum(t, c.electricity, from, to, "import_intervals", energy, "PT1H", "3743.131", 8754, 8784)
	c.wantSum(t, c.electricity, from, to, "export_intervals", energy, "PT1H", "2128.383", 8754, 8784)
	c.wantSum(t, c.gas, from, to, "gas_intervals", energy, "PT1H", "621.827", 8754, 8784)

	again := c.ingest(t, "--mapping", "nl_dsmrreader", "--ean", c.electricity, "--gas-ean", c.gas, file)
	if again.Stored != 0 || again.Unchanged != r.Stored {
		t.Errorf("again: %d stored, %d unchanged", again.Stored, again.Unchanged)
	}
	if n := c.stored(t, c.electricity) + c.stored(t, c.gas); n != r.Stored {
		t.Errorf("again: %d blocks, want %d", n, r.Stored)
	}
}

func TestImportSlimmemeterportal(t *testing.T) {
	t.Parallel()
	file := sharedFile(t, "nl_slimmemeterportal_15min_cumulative.csv.gz")
	l := sharedWorld(t).lab(t)
	c := l.customer(t, l.vendor(t))
	r := c.ingest(t, "--mapping", "nl_slimmemeterportal", "--ean", c.electricity, "--gas-ean", c.gas, file)
	if r.Rows != 58645 || len(r.Bad) != 0 {
		t.Errorf("%+v", r)
	}
	c.wantReads(t, c.electricity, "import_low", map[string]string{"2023-01-01": "null", "2024-01-01": "6328.420", "2024-01-27": "null",
		"2024-01-28": "null", "2024-01-29": "null", "2024-09-06": "9942.400"})
	c.wantReads(t, c.electricity, "import_normal", map[string]string{"2023-01-01": "null", "2024-01-01": "2455.100", "2024-01-27": "null",
		"2024-01-28": "null", "2024-01-29": "null", "2024-09-06": "3943.720"})
	c.wantReads(t, c.gas, "gas", map[string]string{"2024-01-28": "null", "2024-01-29": "4349.580"})
	c.wantSum(t, c.electricity, "2023-01-01", "2024-09-07", "import_intervals", energy, "PT15M", "13885.750", 58635, 59036)
	c.wantSum(t, c.electricity, "2023-01-01", "2024-09-07", "export_intervals", energy, "PT15M", "0.000", 58635, 59036)
	c.wantSum(t, c.gas, "2023-01-01", "2024-09-07", "gas_intervals", energy, "PT1H", "5637.170", 14659, 14759)
}

func TestImportFluvius(t *testing.T) {
	t.Parallel()
	electricity, gas := sharedFile(t, "be_fluvius_en_elec_15min.csv.gz"), sharedFile(t, "be_fluvius_en_gas_hourly.csv.gz")
	l := sharedWorld(t).lab(t)
	c := l.customer(t, l.vendor(t))
	if r := c.ingest(t, "--mapping", "be_fluvius_electricity", "--ean", c.electricity, electricity); r.Rows != 13640 || len(r.Bad) != 0 {
		t.Errorf("%+v", r)
	}
	if r := c.ingest(t, "--mapping", "be_fluvius_gas", "--ean", c.gas, gas); len(r.Bad) != 0 {
		t.Errorf("%+v", r)
	}
	const from, to = "2023-10-22", "2024-01-01"
	c.wantSum(t, c.electricity, from, to, "import_intervals", energy, "PT15M", "1462.321", 6819, 6820)
	c.wantSum(t, c.electricity, from, to, "export_intervals", energy, "PT15M", "124.930", 6819, 6820)
	for field, total := range map[string]string{"import_low": "738.829", "import_normal": "723.492", "export_low": "43.611", "export_normal": "81.319"} {
		c.wantReads(t, c.electricity, field, map[string]string{"2024-01-01": total})
	}
	c.wantSum(t, c.gas, from, to, "gas_intervals", energy, "PT1H", "628.173", 1699, 1705)
	c.wantReads(t, c.gas, "gas", map[string]string{"2023-10-22": "null", "2024-01-01": "628.173"})
}

// Files of years that are kept no longer: stored, counted, and not given.
func TestImportOldFiles(t *testing.T) {
	t.Parallel()
	for _, f := range []struct {
		mapping, file, home string
		values              map[string]int // 0: some
		others              int
		day                 string
	}{
		{"us_citylearn", "citylearn2022_hourly.csv.gz", "CL-01", map[string]int{"import_intervals": 8760, "export_intervals": 8760}, 9 * 8760, "2016-10-01"},
		{"sample_small", "sample_small_60min.csv", "CL-01", map[string]int{"import_intervals": 2208, "export_intervals": 2208}, 2 * 2208, "2016-10-01"},
		{"de_opsd_residential4", "opsd_residential4_60min_cumulative.csv.gz", "",
			map[string]int{"import_normal": 0, "export_normal": 0, "import_intervals": 0, "export_intervals": 0}, 0, "2016-10-01"},
	} {
		t.Run(f.mapping, func(t *testing.T) {
			t.Parallel()
			file := sharedFile(t, f.file)
			l := sharedWorld(t).lab(t)
			c := l.customer(t, l.vendor(t))
			args := []string{"--mapping", f.mapping, "--ean", c.electricity}
			if f.home != "" {
				args = append(args, "--home", f.home)
			}
			r := c.ingest(t, append(args, file)...)
			if len(r.Fields) != len(f.values) || len(r.Bad) != 0 || r.Others != f.others {
				t.Errorf("%+v", r)
			}
			for _, n := range r.Fields {
				if want, ok := f.values[n.Field]; !ok || n.Values == 0 || want != 0 && n.Values != want {
					t.Errorf("%s: %d values, want %d", n.Field, n.Values, want)
				}
			}
			if n := c.stored(t, c.electricity); n != r.Stored || n == 0 {
				t.Errorf("%d blocks, said were %d", n, r.Stored)
			}
			d := sure(meter.ParseDay(f.day))
			s := seenIn(t, c.v.fetch(t, readingsPath(c.electricity, f.day, (d+1).String(), energy, "fields", "import_intervals")))
			s.want(t, map[string]string{}, []string{fmt.Sprint("import_intervals ", d, " ", d+1, " PERIOD_TOO_OLD")})
		})
	}
}

// quarters is a file of n quarter-hours from a local midnight on.
func quarters(l *lab, from string, n int, value func(i int) string) string {
	at := sure(meter.ParseDay(from)).Start(l.profile.Location()).UTC()
	var b strings.Builder
	b.WriteString("T,V\n")
	for i := range n {
		fmt.Fprintf(&b, "%s,%s\n", at.Add(time.Duration(i)*15*time.Minute).Format(time.RFC3339), value(i))
	}
	return b.String()
}

const quarterMapping = `
time: {columns: [T], format: RFC3339, marks: start}
every: PT15M
fields:
  - {field: import_intervals, reads: consumption, columns: [V], unit: kWh}
`

func TestImportSemantics(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	c := l.customer(t, l.vendor(t))
	mapping := writeTemp(t, "quarters.yaml", quarterMapping)
	args := func(file string, more ...string) []string {
		return append([]string{"--mapping", mapping, "--ean", c.electricity, file}, more...)
	}
	value := func(i int) string { return fmt.Sprintf("0.%03d", 100+i%800) }
	day := func(d string) string {
		next := sure(meter.ParseDay(d)) + 1
		return seenIn(t, c.v.fetch(t, readingsPath(c.electricity, d, next.String(), energy, "fields", "import_intervals"))).values["import_intervals "+d]
	}
	series := func(from, n int, value func(int) string) string {
		var v []string
		for i := range n {
			v = append(v, value(from+i))
		}
		return strings.Join(v, " ")
	}

	// Three days in spring of 96, 92 and 96 quarters, and in autumn one of 100.
	good := quarters(l, "2024-03-30", 96+92+96, value)
	file := writeTemp(t, "spring.csv", good)
	if r := c.ingest(t, args(file)...); r.Stored != 3 || r.Rows != 284 {
		t.Fatalf("%+v", r)
	}
	autumn := writeTemp(t, "autumn.csv", quarters(l, "2024-10-27", 100, value))
	c.ingest(t, args(autumn)...)
	for d, want := range map[string]string{
		"2024-03-30": series(0, 96, value), "2024-03-31": series(96, 92, value), "2024-04-01": series(188, 96, value), "2024-10-27": series(0, 100, value),
	} {
		if got := day(d); got != want {
			t.Errorf("%s: %q\nwant %q", d, got, want)
		}
	}

	// The same again changes nothing.
	if r := c.ingest(t, args(file)...); r.Stored != 0 || r.Unchanged != 3 || c.stored(t, c.electricity) != 4 {
		t.Errorf("again: %+v", r)
	}
	// One corrected value is a new version of one day.
	corrected := func(i int) string {
		if i == 100 {
			return "7.777"
		}
		return value(i)
	}
	fixed := writeTemp(t, "fixed.csv", quarters(l, "2024-03-30", 284, corrected))
	if r := c.ingest(t, args(fixed)...); r.Stored != 1 || r.Corrected != 1 || r.Unchanged != 2 {
		t.Errorf("corrected: %+v", r)
	}
	if got := day("2024-03-31"); got != series(96, 92, corrected) {
		t.Errorf("after the correction: %q", got)
	}
	versions := one[string](t, l.world, `SELECT string_agg(day || ':' || version, ' ' ORDER BY day, version) FROM sealed_block WHERE ean = $1`, c.electricity)
	if want := "2024-03-30:1 2024-03-31:1 2024-03-31:2 2024-04-01:1 2024-10-27:1"; versions != want {
		t.Errorf("versions %q, want %q", versions, want)
	}

	// What is refused stores nothing.
	before := c.stored(t, c.electricity)
	short := writeTemp(t, "short.csv", quarters(l, "2024-03-30", 96+91, value))
	lines := strings.Split(good, "\n")
	lines[5] = strings.Replace(lines[5], ",", ",x", 1)
	malformed := writeTemp(t, "malformed.csv", strings.Join(lines, "\n"))
	cut := writeTemp(t, "cut.csv.gz", "\x1f\x8b\x08\x00")
	unknown := labEAN()
	wrong := c.electricity[:17] + strconv.Itoa(int(c.electricity[17]-'0'+1)%10)
	for name, r := range map[string]struct {
		code int
		args []string
		want string
	}{
		"fewer values":       {3, args(short), "import_intervals on 2024-03-31 has 91, stored are 92"},
		"malformed line":     {3, args(malformed), "malformed.csv: line 6, column 22: "},
		"cut off":            {3, args(cut), "cut.csv.gz"},
		"gas metering point": {1, []string{"--mapping", mapping, "--ean", c.gas, file}, "commodity mismatch"},
		"unknown EAN":        {1, []string{"--mapping", mapping, "--ean", unknown, file}, "not registered"},
		"wrong check digit":  {2, []string{"--mapping", mapping, "--ean", wrong, file}, "check digit"},
		"no such file":       {2, args(file + ".not"), "no such file"},
		"no such mapping":    {2, []string{"--mapping", "nothing", "--ean", c.electricity, file}, "nl_dsmrreader"},
		"senseless mapping":  {2, []string{"--mapping", file, "--ean", c.electricity, file}, "mapping"},
		"no EAN":             {2, []string{"--mapping", mapping, file}, "--ean"},
	} {
		complaint := l.kluisFails(t, r.code, append([]string{"ingest", "csv"}, r.args...)...)
		if !strings.Contains(complaint, r.want) {
			t.Errorf("%s: %s", name, complaint)
		}
		for _, ean := range []string{c.electricity, c.gas, unknown, wrong} {
			if strings.Contains(complaint, ean) {
				t.Errorf("%s: the complaint repeats an EAN", name)
			}
		}
	}
	if n := c.stored(t, c.electricity) + c.stored(t, c.gas); n != before {
		t.Errorf("%d blocks, %d before", n, before)
	}

	// Told to, both are stored.
	r := c.ingest(t, args(malformed, "--skip-bad", "--replace")...)
	if len(r.Bad) != 1 || r.Bad[0].Line != 6 || r.Corrected != 2 {
		t.Errorf("--skip-bad: %+v", r)
	}
	if got, want := day("2024-03-30"), strings.Replace(series(0, 96, value), value(4), "null", 1); got != want {
		t.Errorf("--skip-bad: %q\nwant %q", got, want)
	}
	c.ingest(t, args(short, "--replace")...)
	if got, want := day("2024-03-31"), series(96, 91, value)+" null"; got != want {
		t.Errorf("--replace: %q\nwant %q", got, want)
	}
}
