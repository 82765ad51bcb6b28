package ingest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/meter"
)

// TestCumulativeAndConsumptionAgree writes the same home once as registers and
// once as consumption, in every form of time, and wants the same values.
func TestCumulativeAndConsumptionAgree(t *testing.T) {
	t.Parallel()
	p := testProfile(t)
	loc := p.Location()
	reads := mapping(t, `
time: {columns: [T], format: epoch}
every: PT15M
fields:
  - {field: import_intervals, reads: cumulative, columns: [V], unit: Wh}
  - {field: import_low, reads: cumulative, columns: [V], unit: Wh}
`)
	forms := map[string]*Mapping{}
	for name, form := range map[string]string{
		"epoch": "format: epoch, marks: start", "end": "format: epoch, marks: end", "RFC3339": "format: RFC3339, marks: start",
		"local": `format: "YYYY/MM/DD HH.mm.ss", zone: Europe/Amsterdam, marks: start`,
	} {
		forms[name] = mapping(t, fmt.Sprintf(`
time: {columns: [T], %s}
every: PT15M
fields:
  - {field: import_intervals, reads: consumption, columns: [V], unit: Wh}
  - {field: import_low, reads: consumption, columns: [V], unit: Wh, start: "7.5"}
`, form))
	}
	rapid.Check(t, func(t *rapid.T) {
		// Around the days the clocks change, as often as not.
		day := rapid.OneOf(rapid.Just(meter.DayFromDate(2024, time.March, 31)), rapid.Just(meter.DayFromDate(2024, time.October, 27)),
			rapid.Custom(func(t *rapid.T) meter.Day { return meter.Day(rapid.IntRange(15000, 25000).Draw(t, "n")) })).Draw(t, "day")
		n := rapid.IntRange(1, 250).Draw(t, "quarters")
		start := day.Start(loc).Unix() - 900*int64(rapid.IntRange(0, 100).Draw(t, "before"))
		values := rapid.SliceOfN(rapid.Int64Range(0, 5000), n, n).Draw(t, "values")
		text := map[string]*strings.Builder{"reads": {}}
		for form := range forms {
			text[form] = &strings.Builder{}
			text[form].WriteString("T,V\n")
		}
		text["reads"].WriteString("T,V\n")
		total := int64(7500)
		for i, v := range values {
			at := start + 900*int64(i)
			local := time.Unix(at, 0).In(loc)
			fmt.Fprintf(text["reads"], "%d,%d\n", at, total)
			fmt.Fprintf(text["epoch"], "%d,%d\n", at, v)
			fmt.Fprintf(text["end"], "%d,%d\n", at+900, v)
			fmt.Fprintf(text["RFC3339"], "%s,%d\n", local.Format(time.RFC3339), v)
			fmt.Fprintf(text["local"], "%s,%d\n", local.Format("2006/01/02 15.04.05"), v)
			total += v
		}
		fmt.Fprintf(text["reads"], "%d,%d\n", start+900*int64(n), total)
		want := parse(t, reads, text["reads"].String(), p)
		for form, m := range forms {
			f, err := m.Read(strings.NewReader(text[form].String()), form, p, ReadOptions{})
			if form == "local" && errors.Is(err, ErrFile) && strings.Contains(err.Error(), "which one is meant") {
				continue // the file ends within the repeated hour
			}
			if err != nil {
				t.Fatalf("%s: %v", form, err)
			}
			got := byKey(f)
			if len(got) != len(want) {
				t.Fatalf("%s: %d blocks, want %d", form, len(got), len(want))
			}
			for k, b := range want {
				if !slices.Equal(got[k].Values, b.Values) || len(b.Values) != meter.Slots(k.day, b.Resolution, loc) {
					t.Fatalf("%s: field %d on %s: %v, want %v", form, k.field, k.day, got[k].Values, b.Values)
				}
			}
		}
	})
}

func parse(t *rapid.T, m *Mapping, text string, p *meter.Profile) map[fieldDay]meter.Block {
	f, err := m.Read(strings.NewReader(text), "file", p, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return byKey(f)
}

func byKey(f *File) map[fieldDay]meter.Block {
	out := map[fieldDay]meter.Block{}
	for _, b := range f.Blocks {
		if countValues(b.Block.Values) > 0 {
			out[fieldDay{b.Field, b.Block.Day}] = b.Block
		}
	}
	return out
}

// TestCarry: what is rounded off is never lost, whatever the decimals.
func TestCarry(t *testing.T) {
	t.Parallel()
	p := testProfile(t)
	m := mapping(t, `
time: {columns: [T], format: epoch, marks: start}
every: PT1H
fields: [{field: import_intervals, reads: consumption, columns: [V], unit: kWh, rounding: carry}]
`)
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Int64Range(0, 3e9), 1, 100).Draw(t, "billionths")
		var text strings.Builder
		text.WriteString("T,V\n")
		sum := int64(0)
		for i, v := range values {
			fmt.Fprintf(&text, "%d,%d.%09d\n", 1699999200+3600*i, v/1e9, v%1e9)
			sum += v
		}
		var got meter.Value
		for _, b := range parse(t, m, text.String(), p) {
			for _, v := range b.Values {
				if v != meter.Null {
					if v < 0 {
						t.Fatal("negative")
					}
					got += v
				}
			}
		}
		if off := int64(got)*1e6 - sum; off > 5e5 || off < -5e5 {
			t.Fatalf("total is off by %d billionths", off)
		}
	})
}

// TestOrderOfRowsDoesNotMatter where times are instants.
func TestOrderOfRowsDoesNotMatter(t *testing.T) {
	t.Parallel()
	p := testProfile(t)
	m := mapping(t, wide)
	rapid.Check(t, func(t *rapid.T) {
		var rows []string
		for i := range rapid.IntRange(1, 60).Draw(t, "rows") {
			if rapid.Bool().Draw(t, "there") {
				rows = append(rows, fmt.Sprintf("%s,%d,1\n", time.Unix(1711785600+int64(i)*3600, 0).UTC().Format(time.RFC3339), i))
			}
		}
		if len(rows) == 0 {
			return
		}
		want := parse(t, m, "Start,A,B\n"+strings.Join(rows, ""), p)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		r.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
		got := parse(t, m, "Start,A,B\n"+strings.Join(rows, ""), p)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatal("differs")
		}
	})
}

// TestLocalInstants: every instant is found again from its local time, in
// file order where the clocks show it twice.
func TestLocalInstants(t *testing.T) {
	t.Parallel()
	zones := []string{"Europe/Amsterdam", "America/St_Johns", "Australia/Lord_Howe", "Africa/Casablanca", "UTC", "Asia/Kathmandu"}
	layout, err := parseLayout("YYYY-MM-DDTHH:mm:ss")
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		loc, err := time.LoadLocation(rapid.SampledFrom(zones).Draw(t, "zone"))
		if err != nil {
			t.Fatal(err)
		}
		at := rapid.Int64Range(1e6, 4e9).Draw(t, "at")
		if rapid.Bool().Draw(t, "near a change") {
			_, end := time.Unix(at, 0).In(loc).ZoneBounds()
			if !end.IsZero() && end.Unix() < 4e9 {
				at = end.Unix() + rapid.Int64Range(-7300, 7300).Draw(t, "off")
			}
		}
		c := clock{layout: layout, loc: loc}
		s, err := c.read(time.Unix(at, 0).In(loc).Format("2006-01-02T15:04:05"))
		if err != nil {
			t.Fatal(err)
		}
		if s.first != at && !(s.ambiguous && s.second == at) {
			t.Fatalf("%d became %+v", at, s)
		}
		if s.ambiguous && s.first >= s.second {
			t.Fatalf("out of order: %+v", s)
		}
	})
}

func FuzzRead(f *testing.F) {
	p := testProfile(f)
	maps := []*Mapping{mapping(f, wide), mapping(f, cumulative), mapping(f, fmt.Sprintf(local, "start"))}
	for _, name := range BuiltIn() {
		m, err := LoadMapping(name, p)
		if err != nil {
			f.Fatal(err)
		}
		maps = append(maps, m)
	}
	f.Add(uint8(0), "Start,A,B\n2024-01-01T00:00:00+01:00,1.5,2.25\n2024-10-27T02:00:00+02:00,,1\n")
	f.Add(uint8(1), "\ufeffTime;R\n1711839600;5,5\n1711840500;5,75\n")
	f.Add(uint8(2), "Date,Time,Kind,V,Status\n27-10-2024,02:00,in,2,\n27-10-2024,02:00,in,3,E\n")
	f.Add(uint8(5), "From (date);From (time);Until (date);Until (time);EAN code;Meter;Meter type;Register;Volume;Unit;Validation status;Description\n"+
		"29/10/2023;02:00:00;29/10/2023;02:15:00;=\"1\";M;D;Offtake Night;0,276;kWh;Read;\n")
	f.Add(uint8(0), "\x1f\x8b\x08\x00")
	f.Fuzz(func(t *testing.T, which uint8, text string) {
		m := maps[int(which)%len(maps)]
		for _, skip := range []bool{false, true} {
			opt := ReadOptions{SkipBad: skip}
			if m.SeveralHomes() {
				opt.Home = "CL-01"
			}
			file, err := m.Read(strings.NewReader(text), "fuzz.csv", p, opt)
			if err != nil {
				if !errors.Is(err, ErrFile) {
					t.Fatalf("not an ErrFile: %v", err)
				}
				continue
			}
			seen := map[fieldDay]bool{}
			for _, b := range file.Blocks {
				k := fieldDay{b.Field, b.Block.Day}
				if seen[k] {
					t.Fatalf("field %d on %s twice", b.Field, b.Block.Day)
				}
				seen[k] = true
				field, _ := p.FieldByCode(b.Field)
				if _, err := meter.AppendBlock(nil, &b.Block, field.Class, p.Location()); err != nil {
					t.Fatalf("what was read cannot be sealed: %v", err)
				}
			}
		}
	})
}

func FuzzParseMapping(f *testing.F) {
	p := testProfile(f)
	f.Add(wide)
	f.Add(cumulative)
	f.Add(fmt.Sprintf(local, "end"))
	f.Add("fields: [{where: {a: [b]}}]\n")
	for _, name := range BuiltIn() {
		raw, err := builtIn.ReadFile("mappings/" + name + ".yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(raw))
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := ParseMapping("fuzz", []byte(text), p)
		if err != nil {
			if !errors.Is(err, ErrMapping) {
				t.Fatalf("not an ErrMapping: %v", err)
			}
			return
		}
		// Whatever is accepted can be used on any file.
		_, err = m.Read(strings.NewReader("a,b,c\n1,2,3\n"), "x", p, ReadOptions{Home: m.y.Select})
		if err != nil && !errors.Is(err, ErrFile) {
			t.Fatal(err)
		}
	})
}

func FuzzClock(f *testing.F) {
	loc, err := time.LoadLocation("Europe/Amsterdam")
	if err != nil {
		f.Fatal(err)
	}
	f.Add("DD/MM/YYYY HH:mm:ss", "29/10/2023 02:15:00")
	f.Add("YYYY-MM-DD HH", "2024-03-31 02")
	f.Add("RFC3339", "2024-03-31T02:00:00+01:00")
	f.Add("epoch", "1711839600")
	f.Fuzz(func(t *testing.T, format, text string) {
		c := clock{epoch: format == "epoch", rfc3339: format == "RFC3339", loc: loc}
		if !c.epoch && !c.rfc3339 {
			if c.layout, err = parseLayout(format); err != nil {
				return
			}
		}
		s, err := c.read(text)
		if err != nil {
			return
		}
		if s.first < 0 || s.ambiguous && s.second <= s.first {
			t.Fatalf("%+v", s)
		}
		if c.rfc3339 && len(text) == 20 && time.Unix(s.first, 0).UTC().Format(time.RFC3339) != text {
			t.Fatal("accepts another spelling")
		}
	})
}

func FuzzExact(f *testing.F) {
	f.Add("1828.818", false, false)
	f.Add("0,173", true, true)
	f.Add("00012.5", false, true)
	f.Fuzz(func(t *testing.T, text string, comma, wh bool) {
		decimal, shift := byte('.'), 0
		if comma {
			decimal = ','
		}
		if wh {
			shift = -3
		}
		v, err := parseExact([]byte(text), decimal, shift)
		if err != nil {
			return
		}
		if v < 0 {
			t.Fatal("negative")
		}
		if r := v.round(3); v.fits(3) && exact(r)*1e6 != v {
			t.Fatalf("%d rounds to %d", v, r)
		}
	})
}
