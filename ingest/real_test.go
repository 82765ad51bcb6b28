package ingest

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"kluis/meter"
)

// sharedData opens one of the real households' files, or skips: they are no
// part of the project.
func sharedData(t *testing.T, name string) []byte {
	t.Helper()
	dir := os.Getenv("KLUIS_SHARED_DATA")
	if dir == "" {
		dir = filepath.Join("..", "..", "shared", "data")
	}
	raw, err := os.ReadFile(filepath.Join(dir, "interval", name))
	if err != nil {
		t.Skipf("real readings not found (KLUIS_SHARED_DATA, or ../shared/data beside the module): %v", err)
	}
	return raw
}

func testProfile(t testing.TB) *meter.Profile {
	t.Helper()
	p, err := meter.ParseProfile(meter.NL())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// readReal reads a real file by a mapping that comes with the project.
func readReal(t *testing.T, mapping, file string, opt ReadOptions) *result {
	t.Helper()
	raw := sharedData(t, file)
	p := testProfile(t)
	m, err := LoadMapping(mapping, p)
	if err != nil {
		t.Fatal(err)
	}
	f, err := m.Read(bytes.NewReader(raw), file, p, opt)
	if err != nil {
		t.Fatal(err)
	}
	return index(t, p, f)
}

// result is a File, by field and day.
type result struct {
	*File
	t  *testing.T
	p  *meter.Profile
	by map[string]map[meter.Day]meter.Block
}

func index(t *testing.T, p *meter.Profile, f *File) *result {
	t.Helper()
	r := &result{f, t, p, map[string]map[meter.Day]meter.Block{}}
	for _, b := range f.Blocks {
		field, ok := p.FieldByCode(b.Field)
		if !ok {
			t.Fatalf("field %d", b.Field)
		}
		if r.by[field.Name] == nil {
			r.by[field.Name] = map[meter.Day]meter.Block{}
		}
		if _, twice := r.by[field.Name][b.Block.Day]; twice {
			t.Fatalf("%s on %s twice", field.Name, b.Block.Day)
		}
		// Every block can be sealed.
		if _, err := meter.AppendBlock(nil, &b.Block, field.Class, p.Location()); err != nil {
			t.Fatalf("%s on %s: %v", field.Name, b.Block.Day, err)
		}
		r.by[field.Name][b.Block.Day] = b.Block
	}
	return r
}

// read is a register read as text, "" for a gap.
func (r *result) read(field, day string) string {
	r.t.Helper()
	b, ok := r.by[field][mustDay(r.t, day)]
	if !ok || b.Values[0] == meter.Null {
		return ""
	}
	f, _ := r.p.Field(field)
	return string(meter.AppendValue(nil, b.Values[0], f.Precision))
}

// sum adds up interval values of days [from, to), and counts the slots.
func (r *result) sum(field, from, to string) (total string, known, slots int) {
	r.t.Helper()
	f, _ := r.p.Field(field)
	var s meter.Value
	res := meter.PT15M
	for _, b := range r.by[field] {
		res = b.Resolution
	}
	for d := mustDay(r.t, from); d < mustDay(r.t, to); d++ {
		slots += meter.Slots(d, res, r.p.Location())
		for _, v := range r.by[field][d].Values {
			if v != meter.Null {
				known++
				s += v
			}
		}
	}
	return string(meter.AppendValue(nil, s, f.Precision)), known, slots
}

func (r *result) wantSum(field, from, to, total string, known, slots int) {
	r.t.Helper()
	gotTotal, gotKnown, gotSlots := r.sum(field, from, to)
	if gotTotal != total || gotKnown != known || gotSlots != slots {
		r.t.Errorf("%s %s to %s: %s in %d of %d values, want %s in %d of %d", field, from, to, gotTotal, gotKnown, gotSlots, total, known, slots)
	}
}

func (r *result) wantReads(field string, want map[string]string) {
	r.t.Helper()
	for _, day := range slices.Sorted(maps.Keys(want)) {
		if got := r.read(field, day); got != want[day] {
			r.t.Errorf("%s on %s: read %q, want %q", field, day, got, want[day])
		}
	}
}

// wantAssembled checks the consumption that the blocks give when they are
// read: the total, and how many values of how many slots.
func (r *result) wantAssembled(field string, res meter.Resolution, from, to, total string, delivered, expected int) {
	r.t.Helper()
	f, _ := r.p.Field(field)
	blocks := map[meter.Day]*meter.Block{}
	for d, b := range r.by[field] {
		blocks[d] = &b
	}
	series, short := meter.Assemble(meter.SeriesSpec{
		Field: f, Kind: meter.Consumption, Resolution: res, Granularity: res,
		Days: meter.NewDaySet(meter.DayRange{From: mustDay(r.t, from), To: mustDay(r.t, to)}),
	}, blocks, r.p.Location())
	if len(series) != 1 || len(short) != 0 {
		r.t.Fatalf("%s: %d series, short %v", field, len(series), short)
	}
	var sum meter.Value
	for _, d := range series[0].Days {
		for _, v := range d.Values {
			if v != meter.Null {
				sum += v
			}
		}
	}
	got := string(meter.AppendValue(nil, sum, f.Precision))
	if got != total || series[0].Delivered != delivered || series[0].Expected != expected {
		r.t.Errorf("%s at %s: %s in %d of %d, want %s in %d of %d", field, res, got, series[0].Delivered, series[0].Expected, total, delivered, expected)
	}
}

// wantDays checks the number of days with and without a known value.
func (r *result) wantDays(field string, total, without int) {
	r.t.Helper()
	empty := 0
	for _, b := range r.by[field] {
		if countValues(b.Values) == 0 {
			empty++
		}
	}
	if len(r.by[field]) != total || empty != without {
		r.t.Errorf("%s: %d days, %d of them without a value; want %d and %d", field, len(r.by[field]), empty, total, without)
	}
}

func mustDay(t *testing.T, s string) meter.Day {
	t.Helper()
	d, err := meter.ParseDay(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDSMRReader2024(t *testing.T) {
	t.Parallel()
	r := readReal(t, "nl_dsmrreader", "nl_dsmrreader_2024_hourly_elec_gas.csv.gz", ReadOptions{})
	if r.Rows != 8754 {
		t.Errorf("%d rows", r.Rows)
	}
	// The midnight between 16 and 17 March lies in a gap of 29 hours.
	for field, total := range map[string]string{
		"import_low": "1828.818", "import_normal": "1914.313", "export_low": "651.104", "export_normal": "1477.279", "gas": "621.827",
	} {
		r.wantReads(field, map[string]string{"2023-12-31": "", "2024-01-01": "0.000", "2024-03-17": "", "2025-01-01": total, "2025-01-02": ""})
		r.wantDays(field, 367, 1)
		// As a supplier gets it: consumption per month, all twelve, calculated.
		r.wantAssembled(field, meter.P1M, "2024-01-01", "2025-01-01", total, 12, 12)
		for _, b := range r.by[field] {
			if b.Values[0] != meter.Null && b.Quality[0] != meter.Calculated {
				t.Errorf("%s on %s: quality %s", field, b.Day, b.Quality[0])
			}
		}
	}
	r.wantAssembled("import_intervals", meter.PT1H, "2024-01-01", "2025-01-01", "3743.131", 8754, 8784)
	r.wantAssembled("export_intervals", meter.PT1H, "2024-01-01", "2025-01-01", "2128.383", 8754, 8784)
	r.wantSum("import_intervals", "2024-01-01", "2025-01-01", "3743.131", 8754, 8784)
	r.wantSum("export_intervals", "2024-01-01", "2025-01-01", "2128.383", 8754, 8784)
	r.wantSum("gas_intervals", "2024-01-01", "2025-01-01", "621.827", 8754, 8784)
	r.wantDays("import_intervals", 366, 0)
	for day, slots := range map[string]int{"2024-03-31": 23, "2024-10-27": 25} {
		if got := countValues(r.by["import_intervals"][mustDay(t, day)].Values); got != slots {
			t.Errorf("%s: %d values, want %d", day, got, slots)
		}
	}
}

func TestSlimmemeterportal(t *testing.T) {
	t.Parallel()
	r := readReal(t, "nl_slimmemeterportal", "nl_slimmemeterportal_15min_cumulative.csv.gz", ReadOptions{})
	if r.Rows != 58645 {
		t.Errorf("%d rows", r.Rows)
	}
	r.wantReads("import_low", map[string]string{
		"2023-01-01": "", "2024-01-01": "6328.420",
		"2024-01-27": "", "2024-01-28": "", "2024-01-29": "", "2024-09-06": "9942.400", "2024-09-07": "",
	})
	r.wantReads("import_normal", map[string]string{
		"2023-01-01": "", "2024-01-01": "2455.100", "2024-01-27": "", "2024-01-28": "", "2024-01-29": "", "2024-09-06": "3943.720",
	})
	if r.read("import_low", "2024-01-26") == "" || r.read("import_low", "2024-01-30") == "" {
		t.Error("the reads around the gap are missing")
	}
	r.wantReads("gas", map[string]string{"2024-01-29": "4349.580", "2024-01-28": "", "2023-01-01": ""})
	r.wantSum("import_intervals", "2023-01-01", "2024-09-07", "13885.750", 58635, 59036)
	r.wantSum("export_intervals", "2023-01-01", "2024-09-07", "0.000", 58635, 59036)
	r.wantAssembled("import_intervals", meter.PT15M, "2023-01-01", "2024-09-07", "13885.750", 58635, 59036)
	r.wantSum("gas_intervals", "2023-01-01", "2024-09-07", "5637.170", 14659, 14759)

	first := r.by["import_intervals"][mustDay(t, "2023-01-01")]
	if first.Start != meter.Null || first.Values[0] != meter.Null || first.Values[1] != 110 {
		t.Errorf("first day: start %v, values %v", first.Start, first.Values[:3])
	}
	if s := r.by["import_intervals"][mustDay(t, "2024-01-01")].Start; s != 6328420+2455100 {
		t.Errorf("register at the start of 2024: %d", s)
	}
	if _, ok := r.by["import_intervals"][mustDay(t, "2024-01-28")]; ok {
		t.Error("a day that the file says nothing of has a block")
	}
}

func TestFluvius(t *testing.T) {
	t.Parallel()
	r := readReal(t, "be_fluvius_electricity", "be_fluvius_en_elec_15min.csv.gz", ReadOptions{})
	if r.Rows != 13640 || r.NoValue["import_intervals"] != 1 || r.NoValue["export_intervals"] != 1 {
		t.Errorf("%d rows, without value %v", r.Rows, r.NoValue)
	}
	r.wantSum("import_intervals", "2023-10-22", "2024-01-01", "1462.321", 6819, 6820)
	r.wantSum("export_intervals", "2023-10-22", "2024-01-01", "124.930", 6819, 6820)
	for field, total := range map[string]string{"import_low": "738.829", "import_normal": "723.492", "export_low": "43.611", "export_normal": "81.319"} {
		r.wantReads(field, map[string]string{"2024-01-01": total})
	}
	// The first night interval has no value, so the night register starts
	// later; the day register used nothing in it.
	r.wantReads("import_low", map[string]string{"2023-10-22": ""})
	r.wantReads("import_normal", map[string]string{"2023-10-22": "0.000"})
	r.wantDays("import_low", 72, 1)
	r.wantDays("import_normal", 72, 0)
	// The repeated hour of 29 October, interleaved in the file.
	b := r.by["import_intervals"][mustDay(t, "2023-10-29")]
	want := []meter.Value{276, 286, 269, 295, 261, 268, 273, 286, 283}
	if len(b.Values) != 100 || !slices.Equal(b.Values[8:17], want) {
		t.Errorf("repeated hour: %d values, %v; want %v", len(b.Values), b.Values[8:17], want)
	}

	g := readReal(t, "be_fluvius_gas", "be_fluvius_en_gas_hourly.csv.gz", ReadOptions{})
	g.wantSum("gas_intervals", "2023-10-22", "2024-01-01", "628.173", 1699, 1705)
	g.wantReads("gas", map[string]string{"2023-10-22": "", "2024-01-01": "628.173"})
	if g.read("gas", "2023-10-23") == "" || g.NotMapped != 1699 {
		t.Errorf("first full day has no read, or %d rows not mapped", g.NotMapped)
	}
}

func TestOPSD(t *testing.T) {
	t.Parallel()
	r := readReal(t, "de_opsd_residential4", "opsd_residential4_60min_cumulative.csv.gz", ReadOptions{})
	// The last reads are at noon: the register at midnight and what came since.
	for field, want := range map[string]string{"import": "6321.393", "export": "9563.098"} {
		b := r.by[field+"_intervals"][mustDay(t, "2017-02-09")]
		last := b.Start
		for _, v := range b.Values {
			if v != meter.Null {
				last += v
			}
		}
		if got := string(meter.AppendValue(nil, last, 3)); got != want {
			t.Errorf("last %s read %s, want %s", field, got, want)
		}
		if reg := r.by[field+"_normal"][mustDay(t, "2017-02-09")]; reg.Values[0] != b.Start {
			t.Errorf("%s: register %d, intervals start at %d", field, reg.Values[0], b.Start)
		}
	}
	estimated := 0
	for _, b := range r.by["import_intervals"] {
		for _, q := range b.Quality {
			if q == meter.Estimated {
				estimated++
			}
		}
	}
	if estimated == 0 {
		t.Error("interpolated reads are not marked")
	}
}

func TestCityLearn(t *testing.T) {
	t.Parallel()
	for home, total := range map[string]string{"CL-01": "7026.809", "CL-02": "6557.630", "CL-03": "4506.633"} {
		r := readReal(t, "us_citylearn", "citylearn2022_hourly.csv.gz", ReadOptions{Home: home})
		got, known, _ := r.sum("import_intervals", "2016-07-31", "2017-08-02")
		if got != total || known != 8760 || r.OtherHomes != 9*8760 {
			t.Errorf("%s: %s in %d values, %d rows of others", home, got, known, r.OtherHomes)
		}
	}
	r := readReal(t, "sample_small", "sample_small_60min.csv", ReadOptions{Home: "CL-01"})
	if got, known, _ := r.sum("import_intervals", "2016-07-31", "2017-08-02"); got != "1869.258" || known != 2208 {
		t.Errorf("sample: %s in %d values", got, known)
	}
}

func TestBuiltInMappings(t *testing.T) {
	t.Parallel()
	p := testProfile(t)
	for _, name := range BuiltIn() {
		m, err := LoadMapping(name, p)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if m.Description() == "" {
			t.Errorf("%s has no description", name)
		}
	}
	if len(BuiltIn()) != 7 {
		t.Errorf("built in: %v", BuiltIn())
	}
}
