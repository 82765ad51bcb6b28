package meter

import (
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func field(t testing.TB, name string) Field {
	t.Helper()
	f, ok := nl(t).Field(name)
	if !ok {
		t.Fatalf("no field %s", name)
	}
	return f
}

// days reads "2024-01-01/2024-02-01 2024-03-01/2024-04-01".
func days(t testing.TB, s string) DaySet {
	t.Helper()
	var rs []DayRange
	for _, r := range strings.Fields(s) {
		from, to, _ := strings.Cut(r, "/")
		rs = append(rs, DayRange{day(t, from), day(t, to)})
	}
	return NewDaySet(rs...)
}

// show writes an answer the way the tables below spell it.
func show(series []Series, shortfalls []Shortfall) string {
	var out []string
	for _, s := range series {
		out = append(out, fmt.Sprintf("%s %s %d/%d", s.Kind, s.Resolution, s.Delivered, s.Expected))
		for _, d := range s.Days {
			line := d.Day.String()
			for i, v := range d.Values {
				if line += " "; v == Null {
					line += "null"
				} else {
					line += fmt.Sprint(int64(v))
				}
				if d.Quality != nil && d.Quality[i] != AsProvided {
					line += ":" + d.Quality[i].String()
				}
			}
			out = append(out, line)
		}
	}
	for _, s := range shortfalls {
		out = append(out, fmt.Sprintf("%s/%s %s", s.Days.From, s.Days.To, s.Reason))
	}
	return strings.Join(out, "\n")
}

func checkShown(t *testing.T, got, want string) {
	t.Helper()
	var lines []string
	for _, l := range strings.Split(strings.TrimSpace(want), "\n") {
		lines = append(lines, strings.TrimSpace(l))
	}
	if want = strings.Join(lines, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAssembleRegisters(t *testing.T) {
	t.Parallel()
	ams := zone(t, "Europe/Amsterdam")
	blocks := map[Day]*Block{}
	read := func(d string, v Value, q Quality) {
		x := day(t, d)
		blocks[x] = &Block{Day: x, Resolution: P1D, Start: Null, Values: []Value{v}, Quality: []Quality{q}}
	}
	read("2024-01-01", 1000, AsProvided)
	read("2024-01-02", 1010, AsProvided)
	read("2024-01-03", 1030, Estimated)
	// 2024-01-04 is missing.
	read("2024-01-05", Null, NotAvailable)
	read("2024-01-06", 1100, AsProvided)
	read("2024-01-07", 900, AsProvided) // a register that decreases
	read("2024-02-01", 1500, Calculated)
	read("2024-03-01", 1800, Calculated)
	read("2024-04-01", 2000, AsProvided)

	for name, tt := range map[string]struct {
		kind    Kind
		res     Resolution
		granted Resolution
		days    string
		want    string
	}{
		"reads, with the closing one": {Register, 0, P1D, "2024-01-01/2024-01-03",
			`REGISTER P1D 3/3
			 2024-01-01 1000
			 2024-01-02 1010
			 2024-01-03 1030:ESTIMATED`},
		"two runs, a closing read each": {Register, P1D, P1D, "2024-01-01/2024-01-02 2024-01-06/2024-01-07",
			`REGISTER P1D 4/4
			 2024-01-01 1000
			 2024-01-02 1010
			 2024-01-06 1100
			 2024-01-07 900`},
		"gaps are null": {Register, 0, P1D, "2024-01-03/2024-01-06",
			`REGISTER P1D 2/4
			 2024-01-03 1030:ESTIMATED
			 2024-01-04 null
			 2024-01-05 null:NOT_AVAILABLE
			 2024-01-06 1100`},
		"differences": {Consumption, 0, P1D, "2024-01-01/2024-01-07",
			`CONSUMPTION P1D 3/6
			 2024-01-01 10
			 2024-01-02 20:ESTIMATED
			 2024-01-03 null
			 2024-01-04 null:NOT_AVAILABLE
			 2024-01-05 null:NOT_AVAILABLE
			 2024-01-06 -200`},
		"month boundaries": {Register, P1M, P1D, "2024-01-01/2024-04-01",
			`REGISTER P1M 4/4
			 2024-01-01 1000
			 2024-02-01 1500:CALCULATED
			 2024-03-01 1800:CALCULATED
			 2024-04-01 2000`},
		"months, for that is all that is granted": {Consumption, 0, P1M, "2024-01-01/2024-04-01",
			`CONSUMPTION P1M 3/3
			 2024-01-01 500:CALCULATED
			 2024-02-01 300:CALCULATED
			 2024-03-01 200:CALCULATED`},
		"part months are withheld": {Consumption, P1M, P1M, "2023-12-20/2024-02-10 2024-02-20/2024-04-02",
			`CONSUMPTION P1M 2/2
			 2024-01-01 500:CALCULATED
			 2024-03-01 200:CALCULATED
			 2023-12-20/2024-01-01 PARTIAL_PERIOD
			 2024-02-01/2024-02-10 PARTIAL_PERIOD
			 2024-02-20/2024-03-01 PARTIAL_PERIOD
			 2024-04-01/2024-04-02 PARTIAL_PERIOD`},
		"no whole month":         {Register, 0, P1M, "2024-01-02/2024-01-30", `2024-01-02/2024-01-30 PARTIAL_PERIOD`},
		"nothing there":          {Register, 0, P1D, "2025-01-01/2025-01-02", "REGISTER P1D 0/2\n2025-01-01 null\n2025-01-02 null"},
		"finer than granted":     {Register, P1D, P1M, "2024-01-01/2024-02-01", `2024-01-01/2024-02-01 NOT_GRANTED_AT_THIS_GRANULARITY`},
		"finer than stored":      {Register, PT1H, PT15M, "2024-01-01/2024-02-01", `2024-01-01/2024-02-01 FINER_THAN_STORED`},
		"granularity not stated": {Register, 0, 0, "2024-01-01/2024-02-01", `2024-01-01/2024-02-01 NOT_GRANTED_AT_THIS_GRANULARITY`},
		"kind not stated":        {0, 0, P1D, "2024-01-01/2024-02-01", `2024-01-01/2024-02-01 KIND_NOT_AVAILABLE`},
		"no days":                {Register, 0, P1D, "", ``},
		"resolution unheard of":  {Register, 9, P1D, "2024-01-01/2024-02-01", `2024-01-01/2024-02-01 NOT_GRANTED_AT_THIS_GRANULARITY`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := SeriesSpec{field(t, "import_low"), tt.kind, tt.res, tt.granted, days(t, tt.days), false}
			series, short := Assemble(spec, blocks, ams)
			checkShown(t, show(series, short), tt.want)
			for _, s := range series {
				if s.Field != 1 || s.Basis != 0 || s.Rule != "" {
					t.Errorf("series of field %d", s.Field)
				}
			}
		})
	}
}

// Single reads: of days side by side too, none is a closing read, and nothing
// is subtracted.
func TestAssemblePoints(t *testing.T) {
	t.Parallel()
	ams := zone(t, "Europe/Amsterdam")
	blocks := map[Day]*Block{}
	for _, s := range []string{"2025-03-14", "2025-03-15", "2025-03-16", "2025-03-17", "2025-06-30", "2025-07-01", "2025-07-02"} {
		d := day(t, s)
		blocks[d] = &Block{Day: d, Resolution: P1D, Start: Null, Values: []Value{Value(d)}}
	}
	const granted = "2025-03-15/2025-03-17 2025-07-01/2025-07-02 2025-08-01/2025-08-02"
	all := func(reason string) string {
		return strings.ReplaceAll(granted, " ", " "+reason+"\n") + " " + reason
	}
	for name, tt := range map[string]struct {
		field        string
		kind         Kind
		res, granted Resolution
		want         string
	}{
		"reads":                {"import_low", Register, 0, P1D, "REGISTER P1D 3/4\n2025-03-15 20162\n2025-03-16 20163\n2025-07-01 20270\n2025-08-01 null"},
		"reads asked for":      {"import_low", Register, P1D, P1D, "REGISTER P1D 3/4\n2025-03-15 20162\n2025-03-16 20163\n2025-07-01 20270\n2025-08-01 null"},
		"no consumption":       {"import_low", Consumption, 0, P1D, all("KIND_NOT_AVAILABLE")},
		"no months":            {"import_low", Register, P1M, P1D, all("PARTIAL_PERIOD")},
		"no months by grant":   {"import_low", Register, 0, P1M, all("PARTIAL_PERIOD")},
		"no intervals":         {"import_intervals", Register, 0, PT15M, all("NOT_COVERED")},
		"no intervals' totals": {"import_intervals", Consumption, P1D, P1D, all("NOT_COVERED")},
		"none within the day":  {"import_low", Register, PT1H, PT15M, all("FINER_THAN_STORED")},
		"none finer":           {"import_low", Register, PT1H, P1D, all("NOT_GRANTED_AT_THIS_GRANULARITY")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			series, short := Assemble(SeriesSpec{field(t, tt.field), tt.kind, tt.res, tt.granted, days(t, granted), true}, blocks, ams)
			checkShown(t, show(series, short), tt.want)
		})
	}
}

// steady is a block whose every slot is v.
func steady(d Day, r Resolution, v, start Value, loc *time.Location) *Block {
	b := intervalBlock(d, r, loc)
	b.Start = start
	for i := range b.Values {
		b.Values[i] = v
	}
	return b
}

func TestAssembleIntervals(t *testing.T) {
	t.Parallel()
	ams := zone(t, "Europe/Amsterdam")
	put := func(m map[Day]*Block, bs ...*Block) map[Day]*Block {
		for _, b := range bs {
			m[b.Day] = b
		}
		return m
	}
	d := func(s string) Day { return day(t, s) }

	gap := steady(d("2024-05-02"), PT1H, 5, 100, ams)
	gap.Values[1], gap.Quality[1] = Null, NotAvailable
	gap.Values[2], gap.Quality[2] = 7, Estimated
	gap.Quality[0] = Estimated
	quarterGap := steady(d("2024-05-02"), PT15M, 5, 100, ams)
	quarterGap.Values[0], quarterGap.Quality[0] = Null, NotAvailable
	quarterGap.Values[1], quarterGap.Quality[1] = Null, Adjusted

	for name, tt := range map[string]struct {
		field   string
		kind    Kind
		res     Resolution
		granted Resolution
		days    string
		blocks  map[Day]*Block
		want    string
	}{
		"the days the clocks change, as hours": {"import_intervals", Consumption, PT1H, PT15M, "2024-03-31/2024-04-01 2024-10-27/2024-10-28",
			put(map[Day]*Block{}, steady(d("2024-03-31"), PT15M, 2, Null, ams), steady(d("2024-10-27"), PT15M, 3, Null, ams)),
			"CONSUMPTION PT1H 48/48\n2024-03-31" + strings.Repeat(" 8", 23) + "\n2024-10-27" + strings.Repeat(" 12", 25)},
		"the days the clocks change, as days": {"import_intervals", Consumption, P1D, PT15M, "2024-03-31/2024-04-01 2024-10-27/2024-10-28",
			put(map[Day]*Block{}, steady(d("2024-03-31"), PT15M, 2, Null, ams), steady(d("2024-10-27"), PT1H, 3, Null, ams)),
			"CONSUMPTION P1D 2/2\n2024-03-31 184\n2024-10-27 75"},
		"only days are granted": {"import_intervals", Consumption, 0, P1D, "2024-03-31/2024-04-01",
			put(map[Day]*Block{}, steady(d("2024-03-31"), PT15M, 2, Null, ams)),
			"CONSUMPTION P1D 1/1\n2024-03-31 184"},
		"a null and an estimate in an hour": {"import_intervals", Consumption, 0, PT15M, "2024-05-02/2024-05-03",
			put(map[Day]*Block{}, gap),
			"CONSUMPTION PT1H 23/24\n2024-05-02 5:ESTIMATED null:NOT_AVAILABLE 7:ESTIMATED" + strings.Repeat(" 5", 21)},
		"the worst null names a gap": {"import_intervals", Consumption, PT1H, PT15M, "2024-05-02/2024-05-03",
			put(map[Day]*Block{}, quarterGap), "CONSUMPTION PT1H 23/24\n2024-05-02 null:NOT_AVAILABLE" + strings.Repeat(" 20", 23)},
		"a day with a gap": {"import_intervals", Consumption, P1D, PT15M, "2024-05-02/2024-05-03",
			put(map[Day]*Block{}, gap), "CONSUMPTION P1D 0/1\n2024-05-02 null:NOT_AVAILABLE"},
		"registers stop at a gap": {"import_intervals", Register, PT1H, PT15M, "2024-05-02/2024-05-03",
			put(map[Day]*Block{}, gap),
			"REGISTER PT1H 2/24\n2024-05-02 100 105:ESTIMATED" + strings.Repeat(" null:NOT_AVAILABLE", 22)},
		"registers by the hour from quarters": {"import_intervals", Register, PT1H, PT15M, "2024-03-31/2024-04-01",
			put(map[Day]*Block{}, steady(d("2024-03-31"), PT15M, 1, 50, ams)),
			"REGISTER PT1H 23/23\n2024-03-31 50 54 58 62 66 70 74 78 82 86 90 94 98 102 106 110 114 118 122 126 130 134 138"},
		"registers by the day": {"import_intervals", Register, P1D, PT15M, "2024-05-01/2024-05-04",
			put(map[Day]*Block{}, gap, steady(d("2024-05-03"), PT1H, 5, Null, ams)),
			"REGISTER P1D 1/2\n2024-05-01 null\n2024-05-02 100\n2024-05-03/2024-05-04 KIND_NOT_AVAILABLE"},
		"registers by the month": {"import_intervals", Register, P1M, PT15M, "2024-03-01/2024-07-01",
			put(map[Day]*Block{}, steady(d("2024-04-01"), PT1H, 5, 77, ams), steady(d("2024-04-02"), PT1H, 5, Null, ams), steady(d("2024-05-01"), PT1H, 5, Null, ams)),
			"REGISTER P1M 1/3\n2024-03-01 null\n2024-04-01 77\n2024-06-01 null\n2024-05-01/2024-06-01 KIND_NOT_AVAILABLE"},
		"a month with a missing day": {"import_intervals", Consumption, P1M, PT15M, "2024-02-01/2024-03-01",
			put(map[Day]*Block{}, steady(d("2024-02-02"), PT1H, 5, 77, ams)), "CONSUMPTION P1M 0/1\n2024-02-01 null"},
		"mixed, nothing asked": {"import_intervals", Consumption, 0, PT15M, "2024-05-01/2024-05-04",
			put(map[Day]*Block{}, steady(d("2024-05-01"), PT1H, 4, Null, ams), steady(d("2024-05-02"), PT15M, 1, Null, ams), steady(d("2024-05-03"), PT1H, 4, Null, ams)),
			"CONSUMPTION PT15M 96/96\n2024-05-02" + strings.Repeat(" 1", 96) +
				"\nCONSUMPTION PT1H 48/48\n2024-05-01" + strings.Repeat(" 4", 24) + "\n2024-05-03" + strings.Repeat(" 4", 24)},
		"mixed, only hours granted": {"import_intervals", Consumption, 0, PT1H, "2024-05-01/2024-05-03",
			put(map[Day]*Block{}, steady(d("2024-05-01"), PT1H, 4, Null, ams), steady(d("2024-05-02"), PT15M, 1, Null, ams)),
			"CONSUMPTION PT1H 48/48\n2024-05-01" + strings.Repeat(" 4", 24) + "\n2024-05-02" + strings.Repeat(" 4", 24)},
		"finer than stored": {"import_intervals", Consumption, PT15M, PT15M, "2024-05-01/2024-05-05",
			put(map[Day]*Block{}, steady(d("2024-05-01"), PT1H, 4, Null, ams), steady(d("2024-05-03"), PT15M, 1, Null, ams)),
			"CONSUMPTION PT15M 96/192\n2024-05-03" + strings.Repeat(" 1", 96) + "\n2024-05-04" + strings.Repeat(" null", 96) +
				"\n2024-05-01/2024-05-03 FINER_THAN_STORED"},
		"a missing day is like the one before": {"import_intervals", Consumption, 0, PT15M, "2024-05-01/2024-05-05",
			put(map[Day]*Block{}, steady(d("2024-05-02"), PT1H, 4, Null, ams), steady(d("2024-05-04"), PT15M, 1, Null, ams)),
			"CONSUMPTION PT15M 96/96\n2024-05-04" + strings.Repeat(" 1", 96) + "\nCONSUMPTION PT1H 24/72\n2024-05-01" + strings.Repeat(" null", 24) +
				"\n2024-05-02" + strings.Repeat(" 4", 24) + "\n2024-05-03" + strings.Repeat(" null", 24)},
		"nothing there, nothing asked": {"import_intervals", Consumption, 0, PT15M, "2024-03-31/2024-04-01",
			nil, "CONSUMPTION PT1H 0/23\n2024-03-31" + strings.Repeat(" null", 23)},
		"nothing there, only days granted": {"import_intervals", Consumption, 0, P1D, "2024-03-31/2024-04-01", nil, "CONSUMPTION P1D 0/1\n2024-03-31 null"},
		"nothing there, quarters asked": {"import_intervals", Consumption, PT15M, PT15M, "2024-03-31/2024-04-01",
			nil, "CONSUMPTION PT15M 0/92\n2024-03-31" + strings.Repeat(" null", 92)},
		"nothing there, and never could be": {"gas_intervals", Consumption, PT15M, PT15M, "2024-03-31/2024-04-01",
			nil, "2024-03-31/2024-04-01 FINER_THAN_STORED"},
		"finer than granted": {"import_intervals", Consumption, PT15M, PT1H, "2024-05-02/2024-05-03",
			put(map[Day]*Block{}, steady(d("2024-05-02"), PT15M, 1, 1, ams)), "2024-05-02/2024-05-03 NOT_GRANTED_AT_THIS_GRANULARITY"},
		"granularity not stated": {"import_intervals", Consumption, PT15M, 0, "2024-05-02/2024-05-03",
			put(map[Day]*Block{}, steady(d("2024-05-02"), PT15M, 1, 1, ams)), "2024-05-02/2024-05-03 NOT_GRANTED_AT_THIS_GRANULARITY"},
		"resolution unheard of":  {"import_intervals", Consumption, 9, PT15M, "2024-05-02/2024-05-03", nil, "2024-05-02/2024-05-03 NOT_GRANTED_AT_THIS_GRANULARITY"},
		"granularity unheard of": {"import_intervals", Consumption, 0, 9, "2024-05-02/2024-05-03", nil, "2024-05-02/2024-05-03 NOT_GRANTED_AT_THIS_GRANULARITY"},
		"a block under another day": {"import_intervals", Consumption, P1D, PT15M, "2024-05-02/2024-05-03",
			map[Day]*Block{d("2024-05-02"): steady(d("2024-05-01"), PT15M, 1, 1, ams)}, "CONSUMPTION P1D 0/1\n2024-05-02 null"},
		"a block that does not fit its day": {"import_intervals", Consumption, P1D, PT15M, "2024-03-31/2024-04-01",
			map[Day]*Block{d("2024-03-31"): {Day: d("2024-03-31"), Resolution: PT15M, Start: 1, Values: make([]Value, 96)}}, "CONSUMPTION P1D 0/1\n2024-03-31 null"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := SeriesSpec{field(t, tt.field), tt.kind, tt.res, tt.granted, days(t, tt.days), false}
			checkShown(t, show(Assemble(spec, tt.blocks, ams)), tt.want)
		})
	}
}

func TestAssembleSharesNothing(t *testing.T) {
	t.Parallel()
	ams := zone(t, "Europe/Amsterdam")
	d := day(t, "2024-05-02")
	b := steady(d, PT15M, 1, 1, ams)
	b.Quality[0] = Estimated
	series, _ := Assemble(SeriesSpec{field(t, "import_intervals"), Consumption, 0, PT15M, NewDaySet(DayRange{d, d + 1}), false}, map[Day]*Block{d: b}, ams)
	want := show(series, nil)
	for i := range b.Values {
		b.Values[i], b.Quality[i] = 99, Temporary
	}
	if got := show(series, nil); got != want {
		t.Error("the series changed with the block")
	}
}

// The largest values that DecodeBlock lets through do not overflow.
func TestAssembleExtremes(t *testing.T) {
	t.Parallel()
	ams := zone(t, "Europe/Amsterdam")
	month := days(t, "2024-10-01/2024-11-01")
	for _, sign := range []Value{1, -1} {
		blocks, want := map[Day]*Block{}, new(big.Int)
		for d := range month.All() {
			b := steady(d, PT15M, sign*MaxInterval, sign*MaxRegister, ams)
			blocks[d] = b
			want.Add(want, new(big.Int).Mul(big.NewInt(int64(sign*MaxInterval)), big.NewInt(int64(len(b.Values)))))
		}
		f := field(t, "import_intervals")
		series, _ := Assemble(SeriesSpec{f, Consumption, P1M, PT15M, month, false}, blocks, ams)
		if got := series[0].Days[0].Values[0]; big.NewInt(int64(got)).Cmp(want) != 0 {
			t.Errorf("month: %d, want %s", got, want)
		}
		series, _ = Assemble(SeriesSpec{f, Register, PT15M, PT15M, month, false}, blocks, ams)
		for _, d := range series[0].Days {
			last := d.Values[len(d.Values)-1]
			if want := sign * (MaxRegister + MaxInterval*Value(len(d.Values)-1)); last != want {
				t.Errorf("%s: register %d, want %d", d.Day, last, want)
			}
		}

		first := month.Ranges()[0].From
		reads := map[Day]*Block{
			first:     {Day: first, Resolution: P1D, Values: []Value{-sign * MaxRegister}},
			first + 1: {Day: first + 1, Resolution: P1D, Values: []Value{sign * MaxRegister}},
		}
		series, _ = Assemble(SeriesSpec{field(t, "import_low"), Consumption, 0, P1D, NewDaySet(DayRange{first, first + 1}), false}, reads, ams)
		if got := series[0].Days[0].Values[0]; got != 2*sign*MaxRegister {
			t.Errorf("difference %d", got)
		}
	}
}

// ---- Assemble against a model that works with instants and big integers ----

type modelPart struct {
	at      time.Time // start of the interval
	value   *big.Int  // nil: null
	quality Quality
}

type modelValue struct {
	value   *big.Int
	quality Quality
}

func (v modelValue) String() string {
	if v.value == nil {
		return "null:" + v.quality.String()
	}
	return v.value.String() + ":" + v.quality.String()
}

type modelAnswer struct {
	values   map[Resolution]map[Day][]string
	withheld map[Day]Reason
}

func (m *modelAnswer) put(r Resolution, d Day, v modelValue) {
	if m.values[r] == nil {
		m.values[r] = map[Day][]string{}
	}
	m.values[r][d] = append(m.values[r][d], v.String())
}

var modelQualityOrder = []Quality{AsProvided, Adjusted, Calculated, Temporary, Estimated, Incomplete, NotAvailable}

func modelSum(parts []modelPart) modelValue {
	pick := func(null bool) Quality {
		at := 0
		for _, p := range parts {
			if (p.value == nil) == null {
				at = max(at, slices.Index(modelQualityOrder, p.quality))
			}
		}
		return modelQualityOrder[at]
	}
	sum := new(big.Int)
	for _, p := range parts {
		if p.value == nil {
			return modelValue{nil, pick(true)}
		}
		sum.Add(sum, p.value)
	}
	return modelValue{sum, pick(false)}
}

func modelNumber(v Value) *big.Int {
	if v == Null {
		return nil
	}
	return big.NewInt(int64(v))
}

func (b *Block) modelParts(loc *time.Location) []modelPart {
	step := map[Resolution]time.Duration{PT15M: 15 * time.Minute, PT1H: time.Hour}[b.Resolution]
	var out []modelPart
	for i, v := range b.Values {
		out = append(out, modelPart{b.Day.Start(loc).Add(time.Duration(i) * step), modelNumber(v), b.Quality[i]})
	}
	return out
}

// pointsRefused says why no single reads can be had, or 0.
func (s *SeriesSpec) pointsRefused() Reason {
	switch {
	case s.Field.Class != Registers:
		return NotCoveredByRule
	case s.Kind != Register:
		return KindNotAvailable
	case s.Resolution == P1M || s.Granularity == P1M:
		return PartialPeriod
	}
	return 0
}

func modelAssemble(spec SeriesSpec, blocks map[Day]*Block, loc *time.Location) modelAnswer {
	ans := modelAnswer{map[Resolution]map[Day][]string{}, map[Day]Reason{}}
	granted := map[Day]bool{}
	for d := range spec.Days.All() {
		granted[d] = true
	}
	wholeMonth := func(d Day) bool {
		for x := d; x.Month() == d.Month(); x-- {
			if !granted[x] {
				return false
			}
		}
		for x := d; x.Month() == d.Month(); x++ {
			if !granted[x] {
				return false
			}
		}
		return true
	}
	sorted := slices.Sorted(maps.Keys(granted))

	if spec.Resolution != 0 && spec.Resolution < spec.Granularity {
		for _, d := range sorted {
			ans.withheld[d] = NotGrantedAtThisGranularity
		}
		return ans
	}

	if reason := spec.pointsRefused(); spec.Points && reason != 0 {
		for _, d := range sorted {
			ans.withheld[d] = reason
		}
		return ans
	}

	if spec.Field.Class == Registers {
		read := func(d Day, sign int64) modelPart {
			if blocks[d] == nil {
				return modelPart{quality: AsProvided}
			}
			p := blocks[d].modelParts(loc)[0]
			if p.value != nil {
				p.value.Mul(p.value, big.NewInt(sign))
			}
			return p
		}
		res := max(P1D, spec.Granularity, spec.Resolution)
		for _, d := range sorted {
			start, end := true, d+1
			if res == P1M {
				start, end = d == d.Month().First(), (d.Month() + 1).First()
				if !wholeMonth(d) {
					ans.withheld[d] = PartialPeriod
					continue
				}
			}
			if spec.Resolution != 0 && spec.Resolution < P1D {
				ans.withheld[d] = FinerThanStored
				continue
			}
			if !start {
				continue
			}
			if spec.Kind == Consumption {
				ans.put(res, d, modelSum([]modelPart{read(end, 1), read(d, -1)}))
				continue
			}
			ans.put(res, d, modelSum([]modelPart{read(d, 1)}))
			if last := !spec.Points && (!granted[end] || res == P1M && !wholeMonth(end)); last {
				ans.put(res, end, modelSum([]modelPart{read(end, 1)}))
			}
		}
		return ans
	}

	storedAt := func(d Day) Resolution {
		for x := d; x >= sorted[0]; x-- {
			if granted[x] && blocks[x] != nil {
				return blocks[x].Resolution
			}
		}
		for x := d; x <= sorted[len(sorted)-1]; x++ {
			if granted[x] && blocks[x] != nil {
				return blocks[x].Resolution
			}
		}
		if spec.Resolution != 0 {
			return spec.Field.Stored[0]
		}
		return spec.Field.Stored[len(spec.Field.Stored)-1]
	}
	between := func(from, to time.Time, ds ...Day) []modelPart {
		var out []modelPart
		for _, d := range ds {
			if blocks[d] == nil {
				out = append(out, modelPart{at: from})
				continue
			}
			for _, p := range blocks[d].modelParts(loc) {
				if !p.at.Before(from) && p.at.Before(to) {
					out = append(out, p)
				}
			}
		}
		return out
	}
	for _, d := range sorted {
		res := spec.Resolution
		if res == 0 {
			res = max(storedAt(d), spec.Granularity)
		}
		b := blocks[d]
		switch {
		case res == P1M && !wholeMonth(d):
			ans.withheld[d] = PartialPeriod
		case res == P1M:
			first := d.Month().First()
			if spec.Kind == Register {
				if f := blocks[first]; f == nil {
					if d == first {
						ans.put(res, d, modelValue{})
					}
				} else if f.Start == Null {
					ans.withheld[d] = KindNotAvailable
				} else if d == first {
					ans.put(res, d, modelValue{value: modelNumber(f.Start)})
				}
			} else if d == first {
				var month []Day
				for x := first; x.Month() == first.Month(); x++ {
					month = append(month, x)
				}
				ans.put(res, d, modelSum(between(first.Start(loc), (first.Month()+1).First().Start(loc), month...)))
			}
		case storedAt(d) > res:
			ans.withheld[d] = FinerThanStored
		case spec.Kind == Register && b != nil && b.Start == Null:
			ans.withheld[d] = KindNotAvailable
		default:
			end := (d + 1).Start(loc)
			step := map[Resolution]time.Duration{PT15M: 15 * time.Minute, PT1H: time.Hour, P1D: end.Sub(d.Start(loc))}[res]
			for from := d.Start(loc); from.Before(end); from = from.Add(step) {
				switch {
				case spec.Kind == Consumption:
					ans.put(res, d, modelSum(between(from, from.Add(step), d)))
				case b == nil:
					ans.put(res, d, modelValue{})
				default:
					start := modelPart{value: modelNumber(b.Start)}
					ans.put(res, d, modelSum(append([]modelPart{start}, between(d.Start(loc), from, d)...)))
				}
			}
		}
	}
	return ans
}

func answerOf(t *rapid.T, spec SeriesSpec, series []Series, shortfalls []Shortfall) modelAnswer {
	ans := modelAnswer{map[Resolution]map[Day][]string{}, map[Day]Reason{}}
	for i, s := range series {
		if s.Field != spec.Field.Code || s.Kind != spec.Kind || i > 0 && series[i-1].Resolution >= s.Resolution {
			t.Fatalf("series %d is %s %s of field %d", i, s.Kind, s.Resolution, s.Field)
		}
		expected, delivered := 0, 0
		for j, d := range s.Days {
			if j > 0 && s.Days[j-1].Day >= d.Day {
				t.Fatalf("days out of order at %s", d.Day)
			}
			if d.Quality != nil && (len(d.Quality) != len(d.Values) || slices.Max(d.Quality) == AsProvided) {
				t.Fatalf("qualities of %s: %v", d.Day, d.Quality)
			}
			for k, v := range d.Values {
				q := AsProvided
				if d.Quality != nil {
					q = d.Quality[k]
				}
				ans.put(s.Resolution, d.Day, modelValue{modelNumber(v), q})
				expected++
				if v != Null {
					delivered++
				}
			}
		}
		if s.Expected != expected || s.Delivered != delivered || expected == 0 {
			t.Fatalf("counts %d of %d, want %d of %d", s.Delivered, s.Expected, delivered, expected)
		}
	}
	for i, s := range shortfalls {
		if i > 0 && (shortfalls[i-1].Days.To > s.Days.From || shortfalls[i-1].Days.To == s.Days.From && shortfalls[i-1].Reason == s.Reason) {
			t.Fatalf("shortfalls not sorted, disjoint and merged: %v", shortfalls)
		}
		for d := s.Days.From; d < s.Days.To; d++ {
			ans.withheld[d] = s.Reason
		}
	}
	return ans
}

func TestAssembleAgainstModel(t *testing.T) {
	t.Parallel()
	ams := zone(t, "Europe/Amsterdam")
	fields := []Field{field(t, "import_low"), field(t, "import_intervals"), field(t, "gas_intervals")}
	spans := []DayRange{days(t, "2024-02-20/2024-04-10").Ranges()[0], days(t, "2024-09-25/2024-11-05").Ranges()[0]}
	qualities := []Quality{AsProvided, AsProvided, Adjusted, NotAvailable, Estimated, Incomplete, Calculated, Temporary}
	rapid.Check(t, func(t *rapid.T) {
		span := rapid.SampledFrom(spans).Draw(t, "span")
		spec := SeriesSpec{
			Field:       rapid.SampledFrom(fields).Draw(t, "field"),
			Kind:        rapid.SampledFrom([]Kind{Register, Consumption}).Draw(t, "kind"),
			Resolution:  rapid.SampledFrom([]Resolution{0, PT15M, PT1H, P1D, P1M}).Draw(t, "resolution"),
			Granularity: rapid.SampledFrom([]Resolution{PT15M, PT1H, P1D, P1M}).Draw(t, "granularity"),
			Days:        NewDaySet(span),
			Points:      rapid.SampledFrom([]bool{false, false, true}).Draw(t, "points"),
		}
		holes := rapid.SliceOfN(rapid.Int32Range(0, int32(span.Len()-1)), 0, 3).Draw(t, "holes")
		for _, h := range holes {
			spec.Days = spec.Days.Subtract(NewDaySet(DayRange{span.From + Day(h), span.From + Day(h) + 2}))
		}

		blocks := map[Day]*Block{}
		// One choice per day keeps draws few; the values follow from a seed.
		seed := rapid.Int64Range(0, 1<<40).Draw(t, "seed")
		next := func(n int64) int64 {
			seed = (seed*6364136223846793005 + 1442695040888963407) & (1<<62 - 1)
			return (seed >> 20) % n
		}
		missing := rapid.Int64Range(0, 3).Draw(t, "missing") // of 10 blocks
		gaps := rapid.Int64Range(0, 200).Draw(t, "gaps")     // of 1000 values
		starts := rapid.Int64Range(0, 10).Draw(t, "starts")  // of 10 blocks
		mixed := rapid.Bool().Draw(t, "mixed")
		odd := rapid.Int64Range(0, 200).Draw(t, "odd qualities") // of 1000
		for d := span.From; d <= span.To; d++ {
			if next(10) < missing {
				continue
			}
			b := &Block{Day: d, Resolution: P1D, Start: Null, Values: make([]Value, 1), Quality: make([]Quality, 1)}
			limit := int64(MaxRegister)
			if spec.Field.Class == Intervals {
				res := spec.Field.Stored[0]
				if mixed {
					res = spec.Field.Stored[next(int64(len(spec.Field.Stored)))]
				}
				b = intervalBlock(d, res, ams)
				limit = int64(MaxInterval)
				if next(10) < starts {
					b.Start = Value(next(int64(MaxRegister)))
				}
			}
			for i := range b.Values {
				if b.Values[i] = Value(next(2*limit) - limit); next(1000) < gaps {
					b.Values[i] = Null
				}
				if next(1000) < odd {
					b.Quality[i] = qualities[next(int64(len(qualities)))]
				}
			}
			blocks[d] = b
		}

		series, shortfalls := Assemble(spec, blocks, ams)
		got, want := answerOf(t, spec, series, shortfalls), modelAssemble(spec, blocks, ams)
		for _, r := range []Resolution{PT15M, PT1H, P1D, P1M} {
			if !maps.EqualFunc(got.values[r], want.values[r], slices.Equal) {
				for _, d := range slices.Sorted(maps.Keys(want.values[r])) {
					if !slices.Equal(got.values[r][d], want.values[r][d]) {
						t.Fatalf("%s at %s:\n%v, want\n%v", d, r, got.values[r][d], want.values[r][d])
					}
				}
				t.Fatalf("%s: %d days, want %d", r, len(got.values[r]), len(want.values[r]))
			}
		}
		if !maps.Equal(got.withheld, want.withheld) {
			t.Fatalf("withheld %v, want %v", got.withheld, want.withheld)
		}
	})
}

func benchmarkBlocks(b *testing.B, f Field, from Day, n int, loc *time.Location) (DaySet, map[Day]*Block) {
	b.Helper()
	blocks := map[Day]*Block{}
	for d := from; d <= from+Day(n); d++ {
		if f.Class == Registers {
			blocks[d] = &Block{Day: d, Resolution: P1D, Start: Null, Values: []Value{Value(d)}, Quality: []Quality{AsProvided}}
		} else {
			blocks[d] = steady(d, PT15M, 25, 1000, loc)
		}
	}
	return NewDaySet(DayRange{from, from + Day(n)}), blocks
}

func BenchmarkAssemble(b *testing.B) {
	ams := zone(b, "Europe/Amsterdam")
	for _, bb := range []struct {
		field string
		kind  Kind
		res   Resolution
		n     int
	}{
		{"import_intervals", Consumption, PT15M, 62},
		{"import_intervals", Register, PT15M, 62},
		{"import_intervals", Consumption, P1D, 62},
		{"import_low", Register, P1D, 31},
		{"import_low", Consumption, P1D, 31},
	} {
		b.Run(fmt.Sprintf("%s/%s/%s/%d", bb.field, bb.kind, bb.res, bb.n), func(b *testing.B) {
			f := field(b, bb.field)
			granted, blocks := benchmarkBlocks(b, f, day(b, "2024-03-01"), bb.n, ams)
			spec := SeriesSpec{f, bb.kind, bb.res, bb.res, granted, false}
			b.ReportAllocs()
			for b.Loop() {
				if series, short := Assemble(spec, blocks, ams); len(series) != 1 || len(short) != 0 {
					b.Fatal("unexpected answer")
				}
			}
		})
	}
}
