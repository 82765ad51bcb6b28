package server

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/authz"
	"kluis/meter"
	"kluis/openapi"
)

// readTable parses a table strictly: RFC 4180, each line of the header's
// length, no cell a formula.
func readTable(t interface {
	Helper()
	Fatalf(string, ...any)
}, table []byte) []map[string]string {
	t.Helper()
	if bytes.Count(table, []byte("\n")) != bytes.Count(table, []byte("\r\n")) {
		t.Fatalf("a line does not end as RFC 4180 says")
	}
	r := csv.NewReader(bytes.NewReader(table))
	lines, err := r.ReadAll()
	if err != nil {
		t.Fatalf("not a table: %v\n%s", err, table)
	}
	if got := strings.Join(lines[0], ",") + "\r\n"; got != csvHeader {
		t.Fatalf("columns %s", got)
	}
	var rows []map[string]string
	for _, line := range lines[1:] {
		row := map[string]string{}
		for i, cell := range line {
			row[lines[0][i]] = cell
			if cell != "" && strings.ContainsRune("=+-@\t\r\n", rune(cell[0])) {
				if _, err := strconv.ParseFloat(cell, 64); err != nil || lines[0][i] != "value" {
					t.Fatalf("a spreadsheet takes %q for a formula", cell)
				}
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// fromTable makes of a table what the JSON of the same answer has.
func fromTable(rows []map[string]string, loc *time.Location) (series []openapi.Series, withheld []openapi.Withheld, err error) {
	series, withheld = []openapi.Series{}, []openapi.Withheld{}
	var last time.Time // local midnight of the day that values are added to
	for _, row := range rows {
		var used []string
		get := func(column string) string {
			used = append(used, column)
			return row[column]
		}
		number := func(column string) int {
			n, e := strconv.Atoi(get(column))
			if e != nil {
				err = e
			}
			return n
		}
		switch get("record") {
		case "series":
			get("ean")
			series = append(series, openapi.Series{
				Field: get("field"), Obis: get("obis"), ReadingKind: openapi.ReadingKind(get("readingKind")), Resolution: openapi.Resolution(get("resolution")),
				Unit: get("unit"), LegalBasis: openapi.LegalBasis(get("legalBasis")), Rule: get("rule"),
				ExpectedCount: number("expectedCount"), DeliveredCount: number("deliveredCount"), Days: []openapi.DayValues{},
			})
			last = time.Time{}
		case "value":
			s := &series[len(series)-1]
			if get("field") != s.Field || get("obis") != s.Obis || get("readingKind") != string(s.ReadingKind) || get("resolution") != string(s.Resolution) ||
				get("unit") != s.Unit || get("legalBasis") != string(s.LegalBasis) || get("rule") != s.Rule {
				return nil, nil, fmt.Errorf("a value is not of the series above it")
			}
			get("ean")
			start, e := time.Parse(time.RFC3339, get("start"))
			if e != nil {
				return nil, nil, e
			}
			if day := meter.DayOf(start, loc).Start(loc); last.IsZero() || !day.Equal(last) {
				s.Days = append(s.Days, openapi.DayValues{Start: start, Values: []*string{}})
				last = day
			}
			d := &s.Days[len(s.Days)-1]
			if v := get("value"); v != "" {
				d.Values = append(d.Values, &v)
			} else {
				d.Values = append(d.Values, nil)
			}
			if q := get("quality"); q != "" {
				if d.Quality == nil {
					d.Quality = &[]openapi.QualityRun{}
				}
				n := len(d.Values) - 1
				if runs := *d.Quality; len(runs) > 0 && runs[len(runs)-1].Index+runs[len(runs)-1].Count == n && string(runs[len(runs)-1].Quality) == q {
					runs[len(runs)-1].Count++
				} else {
					*d.Quality = append(*d.Quality, openapi.QualityRun{Index: n, Count: 1, Quality: openapi.Quality(q)})
				}
			}
		case "withheld":
			get("ean")
			w := openapi.Withheld{Field: get("field"), Reason: openapi.WithheldReason(get("reason"))}
			for column, to := range map[string]*time.Time{"from": &w.From.Time, "to": &w.To.Time} {
				if *to, err = time.Parse(time.DateOnly, get(column)); err != nil {
					return nil, nil, err
				}
			}
			withheld = append(withheld, w)
		default:
			return nil, nil, fmt.Errorf("a row of another kind")
		}
		get("sequence")
		for _, column := range used {
			delete(row, column)
		}
		for column, cell := range row {
			if cell != "" {
				return nil, nil, fmt.Errorf("%q in a column %s that does not apply", cell, column)
			}
		}
	}
	return series, withheld, err
}

func tableOf(a *answer) []byte { return a.appendCSV([]byte(csvHeader)) }

func TestTableGolden(t *testing.T) {
	t.Parallel()
	a := goldenAnswer(t)
	got := tableOf(a)
	path := filepath.Join("testdata", "readings.golden.csv")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("rendered\n%s\nwant\n%s", got, want)
	}
	for _, row := range readTable(t, a.appendRows([]byte(csvHeader), 17)) {
		if row["sequence"] != "17" {
			t.Fatalf("in a stream a row has the number %q", row["sequence"])
		}
	}
	if got := schemaOf(t, "Table").Example.(string); !strings.HasPrefix(got, strings.TrimSuffix(csvHeader, "\r\n")+"\n") {
		t.Errorf("the contract has other columns: %s", got)
	}
}

// drawAnswer is any answer: all kinds of series, days of any length, values to
// the ends of what a block may hold.
func drawAnswer(t *rapid.T, a *answer) {
	loc := a.profile.Location()
	a.series, a.withheld = nil, nil
	var fields []meter.Field
	for _, c := range []meter.Commodity{meter.Electricity, meter.Gas} {
		fields = append(fields, a.profile.Fields(c)...)
	}
	drawDays := func(label string) meter.DayRange {
		from := meter.Day(rapid.IntRange(0, 40000).Draw(t, label))
		return meter.DayRange{From: from, To: from + meter.Day(rapid.IntRange(1, 400).Draw(t, label))}
	}
	for range rapid.IntRange(0, 4).Draw(t, "series") {
		f := rapid.SampledFrom(fields).Draw(t, "field")
		s := meter.Series{
			Field: f.Code, Kind: rapid.SampledFrom([]meter.Kind{meter.Register, meter.Consumption}).Draw(t, "kind"),
			Resolution: rapid.SampledFrom([]meter.Resolution{meter.PT15M, meter.PT1H, meter.P1D, meter.P1M}).Draw(t, "resolution"),
			Basis:      rapid.SampledFrom([]meter.Basis{meter.SupplyPeriodic, meter.CustomerServiceBasis, meter.Consent}).Draw(t, "basis"),
			Rule:       rapid.StringMatching(`[a-z][a-z0-9-]{0,62}`).Draw(t, "rule"),
			Expected:   rapid.IntRange(0, 1<<31-1).Draw(t, "expected"), Delivered: rapid.IntRange(0, 1<<31-1).Draw(t, "delivered"),
		}
		day := meter.Day(rapid.IntRange(0, 40000).Draw(t, "day"))
		for range rapid.IntRange(0, 4).Draw(t, "days") {
			d := meter.SeriesDay{Day: day}
			n := 1
			if step := stepOf(s.Resolution); step > 0 {
				n = int((day + 1).Start(loc).Sub(day.Start(loc)) / step)
			} else if s.Resolution == meter.P1M {
				d.Day = day.Month().First()
			}
			noted := rapid.Bool().Draw(t, "quality")
			for range n {
				d.Values = append(d.Values, rapid.OneOf(rapid.Just(meter.Null), rapid.Map(rapid.Int64(), func(v int64) meter.Value { return meter.Value(v) })).Draw(t, "value"))
				if noted {
					d.Quality = append(d.Quality, rapid.SampledFrom([]meter.Quality{
						meter.AsProvided, meter.Adjusted, meter.NotAvailable, meter.Estimated, meter.Incomplete, meter.Calculated, meter.Temporary,
					}).Draw(t, "quality"))
				}
			}
			s.Days = append(s.Days, d)
			day += meter.Day(rapid.IntRange(1, 40).Draw(t, "gap"))
			if s.Resolution == meter.P1M {
				day = d.Day.AddMonths(rapid.IntRange(1, 3).Draw(t, "months"))
			}
		}
		a.series = append(a.series, s)
	}
	for range rapid.IntRange(0, 3).Draw(t, "withheld") {
		a.withheld = append(a.withheld, authz.Withheld{
			Field: rapid.SampledFrom(fields).Draw(t, "field").Code, Days: drawDays("withheld"),
			Reason: rapid.SampledFrom([]meter.Reason{meter.NoSupply, meter.NotGrantedAtThisGranularity, meter.Erased}).Draw(t, "reason"),
		})
	}
}

// A table and the JSON of an answer hold the same, whatever it is; and neither
// outgrows its buffer but by values that no block holds.
func TestTableSaysWhatTheJSONSays(t *testing.T) {
	t.Parallel()
	golden := goldenAnswer(t)
	loc := golden.profile.Location()
	rapid.Check(t, func(t *rapid.T) {
		a := *golden
		drawAnswer(t, &a)
		var want openapi.Readings
		if err := json.Unmarshal(a.appendTo(nil), &want); err != nil {
			t.Fatal(err)
		}
		series, withheld, err := fromTable(readTable(t, tableOf(&a)), loc)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := json.Marshal(openapi.Readings{Series: series, Withheld: withheld})
		wanted, _ := json.Marshal(openapi.Readings{Series: want.Series, Withheld: want.Withheld})
		if !bytes.Equal(got, wanted) {
			t.Fatalf("the table\n%s\nsays\n%s\nthe JSON\n%s", tableOf(&a), got, wanted)
		}
		if n := a.csvSize(); cap(a.appendRows(make([]byte, 0, n), 1<<31-1)) != n {
			t.Fatalf("the buffer of %d bytes grew: plaintext is left behind in the one outgrown", n)
		}
	})
}

func TestTableRow(t *testing.T) {
	t.Parallel()
	r := tableRow{
		record: "end", ean: testEAN, field: "gas", from: "2026-03-01", to: "2026-04-01", reason: `a "b", c`, expected: "1", delivered: "0",
		sequence: "7", cursor: "AQwY2tXe-egT", manifest: "e30.e30.c2ln",
	}
	n := len(csvHeader) + r.size()
	table := r.appendTo(append(make([]byte, 0, n), csvHeader...))
	if cap(table) != n {
		t.Error("the row is longer than its size")
	}
	got := readTable(t, table)[0]
	for column, want := range map[string]string{
		"record": r.record, "ean": r.ean, "field": r.field, "obis": "", "value": "", "from": r.from, "to": r.to, "reason": r.reason,
		"expectedCount": r.expected, "deliveredCount": r.delivered, "sequence": r.sequence, "cursor": r.cursor, "manifest": r.manifest,
	} {
		if got[column] != want {
			t.Errorf("%s is %q, want %q", column, got[column], want)
		}
	}
}

// No cell is a formula, whatever it is made of, and each reads back.
func FuzzAppendCell(f *testing.F) {
	for _, s := range []string{"", "-0.500", "=1+1", "-1+1", "+1", "@SUM(A1)", "\t=1", "a\"b", "a,b", "a\r\nb", "-", "-.", "-1.", "1.2.3", "--1", "-0\"00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := string(appendCell(nil, s))
		if strings.ContainsAny(s, "\",\r\n") != strings.HasPrefix(got, `"`) {
			t.Fatalf("%q is written %s", s, got)
		}
		if strings.HasPrefix(got, `"`) {
			got = strings.ReplaceAll(got[1:len(got)-1], `""`, `"`)
		}
		if got != s && got != "'"+s {
			t.Fatalf("%q reads back as %q", s, got)
		}
		if got == "" || !strings.ContainsRune("=+-@\t\r\n", rune(got[0])) {
			return
		}
		// A number, in the fewest words: no exponent, no sign but this one.
		if strings.Trim(got, "-.0123456789") != "" || strings.Count(got, "-") > 1 || strings.Count(got, ".") > 1 {
			t.Fatalf("%q can be taken for a formula", got)
		}
	})
}

// BenchmarkTable is BenchmarkRender's answer as a table.
func BenchmarkTable(b *testing.B) {
	a := benchmarkAnswer(b)
	b.ReportAllocs()
	for b.Loop() {
		b.SetBytes(int64(len(a.appendCSV(make([]byte, 0, a.csvSize())))))
	}
}
