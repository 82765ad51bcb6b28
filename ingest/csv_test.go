package ingest

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"strings"
	"testing"

	"kluis/meter"
)

const wide = `
description: a test layout
time: {columns: [Start], format: RFC3339, marks: start}
every: PT1H
fields:
  - {field: import_intervals, reads: consumption, columns: [A, B], unit: kWh}
  - {field: import_low, reads: consumption, columns: [A], unit: kWh, start: "10.5"}
`

func mapping(t testing.TB, text string) *Mapping {
	t.Helper()
	m, err := ParseMapping("test.yaml", []byte(text), testProfile(t))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func read(t testing.TB, m *Mapping, text string, opt ReadOptions) (*File, error) {
	t.Helper()
	return m.Read(strings.NewReader(text), "file.csv", testProfile(t), opt)
}

func mustRead(t *testing.T, m *Mapping, text string, opt ReadOptions) *result {
	t.Helper()
	f, err := read(t, m, text, opt)
	if err != nil {
		t.Fatal(err)
	}
	return index(t, testProfile(t), f)
}

func TestReadRefusesBadLines(t *testing.T) {
	t.Parallel()
	const head = "Start,A,B\n"
	const good = "2024-01-01T00:00:00+01:00,1.5,2.25\n"
	for name, c := range map[string]struct {
		text         string
		line, column int
		reason       string
	}{
		"letters in a value":       {head + good + "2024-01-01T01:00:00+01:00,1.5,x\n", 3, 31, "not a decimal value"},
		"exponent":                 {head + "2024-01-01T01:00:00+01:00,1e3,1\n", 2, 27, "not a decimal value"},
		"sign":                     {head + "2024-01-01T01:00:00+01:00,+1,1\n", 2, 27, "not a decimal value"},
		"space":                    {head + "2024-01-01T01:00:00+01:00, 1,1\n", 2, 27, "not a decimal value"},
		"decimal comma":            {head + "2024-01-01T01:00:00+01:00,\"1,5\",1\n", 2, 27, "not a decimal value"},
		"negative":                 {head + "2024-01-01T01:00:00+01:00,-0.001,1\n", 2, 27, "negative"},
		"too many decimals":        {head + "2024-01-01T01:00:00+01:00,0.0001,1\n", 2, 27, "rounding: carry"},
		"too large":                {head + "2024-01-01T01:00:00+01:00,99999999999999999999,1\n", 2, 27, "too large"},
		"sum too large":            {head + "2024-01-01T01:00:00+01:00,9000000000,9000000000\n", 2, 38, "too large"},
		"time of another form":     {head + "2024-01-01 01:00:00,1,1\n", 2, 1, "not a time of the form"},
		"time without offset":      {head + "2024-01-01T01:00:00,1,1\n", 2, 1, "not a time of the form"},
		"time with fraction":       {head + "2024-01-01T01:00:00.5+01:00,1,1\n", 2, 1, "not a time of the form"},
		"day that is none":         {head + "2024-02-30T01:00:00+01:00,1,1\n", 2, 1, "not a time that exists"},
		"off the hour":             {head + "2024-01-01T01:15:00+01:00,1,1\n", 2, 1, "PT1H interval"},
		"too few columns":          {head + good + "2024-01-01T01:00:00+01:00,1\n", 3, 1, "number of columns"},
		"too many columns":         {head + good + "2024-01-01T01:00:00+01:00,1,2,3\n", 3, 1, "number of columns"},
		"bare quote":               {head + "2024-01-01T01:00:00+01:00,1\",2\n", 2, 28, "not well-formed CSV"},
		"not UTF-8":                {head + "2024-01-01T01:00:00+01:00,\xff,2\n", 2, 27, "not UTF-8"},
		"the same hour twice":      {head + good + good, 3, 27, "same time as line 2"},
		"the same hour, elsewhere": {head + good + "2023-12-31T23:00:00Z,1,1\n", 3, 22, "same time as line 2"},
		"missing column":           {"Start,A\n2024-01-01T01:00:00+01:00,1\n", 1, 1, `"B"`},
		"column twice":             {"Start,A,B,B\n2024-01-01T01:00:00+01:00,1,2,3\n", 1, 1, `"B"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := mapping(t, wide)
			f, err := read(t, m, c.text, ReadOptions{})
			var at *LineError
			if f != nil || !errors.As(err, &at) || !errors.Is(err, ErrFile) {
				t.Fatalf("got %v, %v; want a LineError", f, err)
			}
			if at.Line != c.line || at.Column != c.column || !strings.Contains(at.Reason, c.reason) || at.File != "file.csv" {
				t.Errorf("got %q, want line %d, column %d, %q", at, c.line, c.column, c.reason)
			}
		})
	}
}

func TestReadRefusesFiles(t *testing.T) {
	t.Parallel()
	packed := func(text string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write([]byte(text))
		_ = z.Close()
		return b.String()
	}
	const row = "2024-01-01T00:00:00+01:00,1,1\n"
	for name, c := range map[string]struct{ text, reason string }{
		"empty":            {"", "is empty"},
		"heading only":     {"Start,A,B\n", "no rows"},
		"UTF-16":           {"\xff\xfeS\x00t\x00", "UTF-16"},
		"cut archive":      {packed("Start,A,B\n" + strings.Repeat(row, 1000))[:60], "unexpected EOF"},
		"runaway quote":    {"Start,A,B\n2024-01-01T00:00:00+01:00,\"1,1\n" + row, "quoted text runs on"},
		"quoted line feed": {"Start,A,B\n2024-01-01T00:00:00+01:00,\"1\n\",1\n", "quoted text runs on"},
	} {
		for _, skip := range []bool{false, true} { // what hides other lines stops in any case
			_, err := read(t, mapping(t, wide), c.text, ReadOptions{SkipBad: skip})
			if !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("%s: got %v, want %q", name, err, c.reason)
			}
		}
	}
	// The same, packed and whole, is fine.
	if r := mustRead(t, mapping(t, wide), packed("\ufeffStart,A,B\r\n"+row), ReadOptions{}); r.Rows != 1 {
		t.Errorf("packed: %d rows", r.Rows)
	}
}

func TestErrorsDoNotRepeatTheFile(t *testing.T) {
	t.Parallel()
	const secret = "871687200000001236"
	for _, text := range []string{
		"Start,A,B\n" + secret + ",1,1\n",
		"Start,A,B\n2024-01-01T00:00:00+01:00," + secret + "x,1\n",
		"Start,A,B\n2024-01-01T00:00:00+01:00,1,1," + secret + "\n",
		"Start,A,B\n2024-01-01T00:00:00+01:00,1\"" + secret + ",1\n",
		secret + ",A,B\n2024-01-01T00:00:00+01:00,1,1\n",
	} {
		_, err := read(t, mapping(t, wide), text, ReadOptions{})
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("error says too much: %v", err)
		}
	}
}

func TestSkipBad(t *testing.T) {
	t.Parallel()
	text := "Start,A,B\n" +
		"2024-01-01T00:00:00+01:00,1,1\n" +
		"2024-01-01T01:00:00+01:00,1,broken\n" +
		"nonsense\n" +
		"2024-01-01T03:00:00+01:00,,1\n" +
		"2024-01-01T04:00:00+01:00,2,2\n" +
		"2024-01-01T04:00:00+01:00,3,3\n"
	r := mustRead(t, mapping(t, wide), text, ReadOptions{SkipBad: true})
	if r.Rows != 6 || len(r.Bad) != 4 || r.Bad[0].Line != 3 || r.Bad[1].Line != 4 || r.Bad[2].Line != 7 {
		t.Errorf("rows %d, bad %+v", r.Rows, r.Bad)
	}
	// A line counts as a whole: its good column is left out as well.
	got := r.by["import_intervals"][mustDay(t, "2024-01-01")].Values[:6]
	want := fmt.Sprint([]meter.Value{2000, meter.Null, meter.Null, meter.Null, 4000, meter.Null})
	if fmt.Sprint(got) != want {
		t.Errorf("values %v, want %s", got, want)
	}
	if r.NoValue["import_intervals"] != 1 || r.NoValue["import_low"] != 1 {
		t.Errorf("without value: %v", r.NoValue)
	}
}

const cumulative = `
csv: {delimiter: ";", decimal: ","}
time: {columns: [Time], format: epoch}
every: PT15M
fields:
  - {field: import_intervals, reads: cumulative, columns: [R], unit: kWh}
  - {field: import_normal, reads: cumulative, columns: [R], unit: kWh}
`

func TestCumulative(t *testing.T) {
	t.Parallel()
	m := mapping(t, cumulative)
	start := mustDay(t, "2024-03-31").Start(testProfile(t).Location()).Unix()
	at := func(quarters int64) int64 { return start + 900*quarters }

	t.Run("gap and day of 92 quarters", func(t *testing.T) {
		t.Parallel()
		text := fmt.Sprintf("Time;R\n%d;5,5\n%d;5,75\n%d;\n%d;7\n%d;8\n%d;9,125\n%d;10\n", at(0), at(1), at(2), at(3), at(4), at(91), at(92))
		r := mustRead(t, m, text, ReadOptions{})
		b := r.by["import_intervals"][mustDay(t, "2024-03-31")]
		if len(b.Values) != 92 || b.Start != 5500 || b.Values[0] != 250 || b.Values[1] != meter.Null ||
			b.Values[2] != meter.Null || b.Values[3] != 1000 || b.Values[91] != 875 || countValues(b.Values) != 3 {
			t.Errorf("block %+v", b)
		}
		r.wantReads("import_normal", map[string]string{"2024-03-31": "5.500", "2024-04-01": "10.000"})
		if _, ok := r.by["import_intervals"][mustDay(t, "2024-04-01")]; ok {
			t.Error("the read at midnight alone made a block of the next day")
		}
	})
	t.Run("a file that begins after midnight says nothing of the read at midnight", func(t *testing.T) {
		t.Parallel()
		r := mustRead(t, m, fmt.Sprintf("Time;R\n%d;5\n%d;6\n%d;7\n", at(1), at(2), at(93)), ReadOptions{})
		if _, ok := r.by["import_normal"][mustDay(t, "2024-03-31")]; ok {
			t.Error("a gap where another file may have the read")
		}
		if b, ok := r.by["import_normal"][mustDay(t, "2024-04-01")]; !ok || b.Values[0] != meter.Null {
			t.Error("no gap for the midnight that the file passes over")
		}
	})
	t.Run("falling register", func(t *testing.T) {
		t.Parallel()
		text := fmt.Sprintf("Time;R\n%d;5\n%d;4,999\n%d;6\n", at(0), at(1), at(2))
		_, err := read(t, m, text, ReadOptions{})
		var le *LineError
		if !errors.As(err, &le) || le.Line != 3 || !strings.Contains(le.Reason, "lower than before") {
			t.Fatalf("got %v", err)
		}
		r := mustRead(t, m, text, ReadOptions{SkipBad: true})
		if n := countValues(r.by["import_intervals"][mustDay(t, "2024-03-31")].Values); n != 0 || len(r.Bad) != 2 {
			t.Errorf("%d values, bad %+v", n, r.Bad)
		}
	})
	t.Run("reads between the quarters are not needed", func(t *testing.T) {
		t.Parallel()
		text := fmt.Sprintf("Time;R\n%d;5\n%d;5,1\n%d;6\n", at(0), at(0)+600, at(1))
		r := mustRead(t, m, text, ReadOptions{})
		if r.OffGrid["import_intervals"] != 1 || r.by["import_intervals"][mustDay(t, "2024-03-31")].Values[0] != 1000 {
			t.Errorf("off grid %v", r.OffGrid)
		}
	})
	t.Run("a jump too large to store", func(t *testing.T) {
		t.Parallel()
		_, err := read(t, m, fmt.Sprintf("Time;R\n%d;5\n%d;5000000\n", at(0), at(1)), ReadOptions{})
		if !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), "line 3") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("decimal point in a file with commas", func(t *testing.T) {
		t.Parallel()
		_, err := read(t, m, fmt.Sprintf("Time;R\n%d;5.000\n", at(0)), ReadOptions{})
		if err == nil || !strings.Contains(err.Error(), "decimal comma") {
			t.Errorf("got %v", err)
		}
	})
}

const local = `
time: {columns: [Date, Time], format: "DD-MM-YYYY HH:mm", zone: Europe/Amsterdam, marks: %s}
every: PT1H
status: {column: Status, rules: [{is: E, quality: ESTIMATED}, {is: X, quality: NO_VALUE}, {is: "", quality: AS_PROVIDED}]}
fields:
  - {field: import_intervals, reads: consumption, columns: [V], unit: Wh, where: {Kind: [in, day]}}
  - {field: export_intervals, reads: consumption, columns: [V], unit: Wh, where: {Kind: out}}
`

func TestLocalTimes(t *testing.T) {
	t.Parallel()
	const head = "Date,Time,Kind,V,Status\n"
	autumn := mustDay(t, "2024-10-27")
	start, end := mapping(t, fmt.Sprintf(local, "start")), mapping(t, fmt.Sprintf(local, "end"))
	for name, c := range map[string]struct {
		m    *Mapping
		text string
		want []meter.Value // from slot 1 of import_intervals
	}{
		"one hour after the other": {start, "27-10-2024,01:00,in,1,\n27-10-2024,02:00,in,2,\n27-10-2024,02:00,in,3,\n27-10-2024,03:00,in,4,\n", []meter.Value{1, 2, 3, 4}},
		"kinds interleaved":        {start, "27-10-2024,02:00,in,2,\n27-10-2024,02:00,out,9,\n27-10-2024,02:00,in,3,\n27-10-2024,02:00,out,9,\n", []meter.Value{meter.Null, 2, 3, meter.Null}},
		"end of the interval":      {end, "27-10-2024,02:00,in,1,\n27-10-2024,02:00,in,2,\n27-10-2024,03:00,in,3,\n27-10-2024,04:00,in,4,\n", []meter.Value{1, 2, 3, 4}},
		"two kinds for one field":  {start, "27-10-2024,01:00,in,1,\n27-10-2024,01:00,day,2,\n", []meter.Value{3, meter.Null, meter.Null, meter.Null}},
		"statuses":                 {start, "27-10-2024,01:00,in,1,E\n27-10-2024,03:00,in,4,X\n", []meter.Value{1, meter.Null, meter.Null, meter.Null}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := mustRead(t, c.m, head+c.text, ReadOptions{})
			b := r.by["import_intervals"][autumn]
			if len(b.Values) != 25 || fmt.Sprint(b.Values[1:5]) != fmt.Sprint(c.want) {
				t.Errorf("values %v, want %v", b.Values[1:5], c.want)
			}
			if name == "statuses" && b.Quality[1] != meter.Estimated {
				t.Errorf("quality %v", b.Quality[1])
			}
		})
	}
	for name, c := range map[string]struct {
		text   string
		line   int
		reason string
	}{
		"repeated hour once":        {"27-10-2024,01:00,in,1,\n27-10-2024,02:00,in,2,\n27-10-2024,03:00,in,4,\n", 3, "which one is meant"},
		"repeated hour three times": {strings.Repeat("27-10-2024,02:00,in,2,\n", 3), 4, "third time"},
		"hour that is skipped":      {"31-03-2024,02:00,in,2,\n", 2, "the clocks skip it"},
		"unknown status":            {"27-10-2024,01:00,in,1,Z\n", 2, "add a rule"},
		"month 13":                  {"27-13-2024,01:00,in,1,\n", 2, "not a time that exists"},
		"hour 24":                   {"27-10-2024,24:00,in,1,\n", 2, "not a time that exists"},
		"minute 60":                 {"27-10-2024,01:60,in,1,\n", 2, "not a time that exists"},
		"short year":                {"27-10-24,01:00,in,1,\n", 2, "not a time of the form"},
		"finer than Wh":             {"27-10-2024,01:00,in,0.5,\n", 2, "more than the 3 decimals"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := read(t, start, head+c.text, ReadOptions{})
			var le *LineError
			if !errors.As(err, &le) || le.Line != c.line || !strings.Contains(le.Reason, c.reason) {
				t.Errorf("got %v, want line %d, %q", err, c.line, c.reason)
			}
		})
	}
	t.Run("repeated hour once, skipped", func(t *testing.T) {
		t.Parallel()
		r := mustRead(t, start, head+"27-10-2024,01:00,in,1,\n27-10-2024,02:00,in,2,\n", ReadOptions{SkipBad: true})
		if n := countValues(r.by["import_intervals"][autumn].Values); n != 1 || len(r.Bad) != 1 {
			t.Errorf("%d values, bad %+v", n, r.Bad)
		}
	})
}

func TestCumulativeRowsNeedEveryPart(t *testing.T) {
	t.Parallel()
	m := mapping(t, `
time: {columns: [T], format: RFC3339}
every: PT15M
fields: [{field: import_intervals, reads: cumulative, columns: [V], unit: kWh, where: {Tariff: [low, normal]}}]
`)
	r := mustRead(t, m, "T,Tariff,V\n2024-01-01T00:00:00Z,low,1\n2024-01-01T00:00:00Z,normal,2\n"+
		"2024-01-01T00:15:00Z,low,1\n2024-01-01T00:15:00Z,normal,3\n2024-01-01T00:30:00Z,normal,9\n", ReadOptions{})
	b := r.by["import_intervals"][mustDay(t, "2024-01-01")]
	if b.Values[4] != 1000 || b.Values[5] != meter.Null {
		t.Errorf("values %v", b.Values[4:6])
	}
}

func TestAccumulate(t *testing.T) {
	t.Parallel()
	hour := func(h string) string { return "2024-01-" + h + ":00:00+01:00" }
	// Known: 1 Jan 22:00; 2 Jan 00:00 to 01:00 (the hour before midnight is
	// missing); 2 Jan 23:00 (the hour after midnight is missing); 4 Jan 05:00.
	text := "Start,A,B\n"
	for _, h := range []string{"01T22", "02T00", "02T01", "02T23", "04T05"} {
		text += hour(h) + ",1,0\n"
	}
	r := mustRead(t, mapping(t, wide), text, ReadOptions{})
	r.wantReads("import_low", map[string]string{
		"2024-01-01": "", "2024-01-02": "11.500", "2024-01-03": "14.500", "2024-01-04": "", "2024-01-05": "",
	})
	if _, ok := r.by["import_low"][mustDay(t, "2024-01-01")]; ok {
		t.Error("a gap for the midnight before the file begins")
	}
	m, err := mapping(t, wide).WithStart(map[string]string{"import_low": "100"})
	if err != nil {
		t.Fatal(err)
	}
	mustRead(t, m, text, ReadOptions{}).wantReads("import_low", map[string]string{"2024-01-02": "101.000"})
	for _, bad := range []map[string]string{{"import_low": "1.0005"}, {"import_low": "-1"}, {"import_intervals": "1"}, {"nothing": "1"}} {
		if _, err := mapping(t, wide).WithStart(bad); !errors.Is(err, ErrMapping) {
			t.Errorf("start %v: %v", bad, err)
		}
	}
}

func TestHomes(t *testing.T) {
	t.Parallel()
	m := mapping(t, strings.Replace(wide, "every:", "select: Home\nevery:", 1))
	const text = "Home,Start,A,B\na,2024-01-01T00:00:00Z,1,1\nb,2024-01-01T00:00:00Z,5,5\nb,broken,5,5\n"
	r := mustRead(t, m, text, ReadOptions{Home: "a"})
	if got, _, _ := r.sum("import_intervals", "2024-01-01", "2024-01-02"); got != "2.000" || r.OtherHomes != 2 {
		t.Errorf("%s, %d others", got, r.OtherHomes)
	}
	for _, home := range []string{"", "c"} {
		if _, err := read(t, m, text, ReadOptions{Home: home}); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), "--home") {
			t.Errorf("home %q: %v", home, err)
		}
	}
	if _, err := read(t, mapping(t, wide), "Start,A,B\n", ReadOptions{Home: "a"}); !errors.Is(err, ErrFile) {
		t.Errorf("home without a column: %v", err)
	}
}

func TestHeaderInTheMapping(t *testing.T) {
	t.Parallel()
	m := mapping(t, "csv: {header: [Start, A, B], no_value: [NaN]}\n"+strings.TrimPrefix(wide, "\n"))
	r := mustRead(t, m, "2024-01-01T00:00:00Z,1,1\n2024-01-01T01:00:00Z,1,NaN\n", ReadOptions{})
	if got, known, _ := r.sum("import_intervals", "2024-01-01", "2024-01-02"); got != "2.000" || known != 1 {
		t.Errorf("%s in %d", got, known)
	}
}
