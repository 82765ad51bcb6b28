package server

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/uuid"
	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/authz"
	"kluis/meter"
	"kluis/openapi"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func mustDay(t testing.TB, s string) meter.Day {
	t.Helper()
	d, err := meter.ParseDay(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func goldenAnswer(t testing.TB) *answer {
	profile := dutch(t)
	day := func(s string) meter.Day { return mustDay(t, s) }
	c := codes(t, profile, "import_low", "import_intervals", "export_low")
	hours := make([]meter.Value, 23) // the day on which the clocks go forward
	quality := make([]meter.Quality, 23)
	for i := range hours {
		hours[i] = meter.Value(i * 125)
	}
	hours[3], hours[4] = meter.Null, meter.Null
	quality[3], quality[4] = meter.NotAvailable, meter.NotAvailable
	quality[5], quality[6], quality[7], quality[22] = meter.Estimated, meter.Estimated, meter.Calculated, meter.Adjusted
	return &answer{
		interaction: uuid.MustParse("019acf2e-8a51-7b0c-9d4e-0f6a1c2b3d4e"),
		profile:     profile,
		query: query{
			ean: mustEAN(t, testEAN), purpose: meter.EnergyManagement,
			days: meter.DayRange{From: day("2026-03-28"), To: day("2026-03-31")},
		},
		series: []meter.Series{
			{Field: c[0], Kind: meter.Register, Resolution: meter.P1D, Basis: meter.SupplyDaily, Rule: "nl-daily", Expected: 3, Delivered: 2,
				Days: []meter.SeriesDay{
					{Day: day("2026-03-28"), Values: []meter.Value{6328420}},
					{Day: day("2026-03-29"), Values: []meter.Value{meter.Null}},
					{Day: day("2026-03-30"), Values: []meter.Value{6330005}, Quality: []meter.Quality{meter.AsProvided}},
				}},
			{Field: c[1], Kind: meter.Consumption, Resolution: meter.PT1H, Basis: meter.Consent, Rule: "nl-consent-intervals", Expected: 23, Delivered: 21,
				Days: []meter.SeriesDay{{Day: day("2026-03-29"), Values: hours, Quality: quality}}},
			{Field: c[2], Kind: meter.Consumption, Resolution: meter.P1M, Basis: meter.SupplyPeriodic, Rule: "nl-billing-periodic", Expected: 1, Delivered: 1,
				Days: []meter.SeriesDay{{Day: day("2026-03-01"), Values: []meter.Value{-500}}}},
		},
		withheld: []authz.Withheld{
			{Field: c[0], Days: meter.DayRange{From: day("2026-03-30"), To: day("2026-03-31")}, Reason: meter.PeriodInFuture},
			{Field: c[1], Days: meter.DayRange{From: day("2026-03-28"), To: day("2026-03-29")}, Reason: meter.NotCoveredByRule},
		},
	}
}

// schemaOf finds a schema of the contract.
func schemaOf(t testing.TB, name string) *openapi3.Schema {
	t.Helper()
	doc, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	return doc.Components.Schemas[name].Value
}

// holdsTo checks JSON against a schema of the contract, and that the generated
// type takes every member of it.
func holdsTo(t testing.TB, schema string, body []byte, into any) {
	t.Helper()
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		t.Fatalf("not JSON: %v", err)
	}
	if err := schemaOf(t, schema).VisitJSON(v, openapi3.EnableFormatValidation()); err != nil {
		t.Errorf("against the contract: %v", err)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		t.Errorf("into the generated type: %v", err)
	}
}

func TestRenderGolden(t *testing.T) {
	t.Parallel()
	for name, a := range map[string]*answer{
		"readings": goldenAnswer(t),
		"nothing": {
			interaction: uuid.MustParse("019acf2e-8a51-7b0c-9d4e-0f6a1c2b3d4e"), profile: dutch(t),
			query: query{ean: mustEAN(t, testEAN), purpose: meter.Billing, days: meter.DayRange{From: 1, To: 2}},
		},
	} {
		got := a.appendTo(nil)
		path := filepath.Join("testdata", name+".golden.json")
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, got, "", "  "); err != nil {
			t.Fatalf("%s: not JSON: %v\n%s", name, err, got)
		}
		if *update {
			if err := os.WriteFile(path, pretty.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(pretty.Bytes(), want) {
			t.Errorf("%s: rendered\n%s\nwant\n%s", name, pretty.Bytes(), want)
		}
		if n := a.size(); cap(a.appendTo(make([]byte, 0, n))) != n {
			t.Errorf("%s: the buffer of %d bytes grew for %d: plaintext is left behind in the one outgrown", name, n, len(got))
		}
		var r openapi.Readings
		holdsTo(t, "Readings", got, &r)
	}
}

// What is rendered by hand must read back as what the generated types write.
func TestRenderAgreesWithGeneratedTypes(t *testing.T) {
	t.Parallel()
	a := goldenAnswer(t)
	var byHand openapi.Readings
	if err := json.Unmarshal(a.appendTo(nil), &byHand); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(byHand)
	if err != nil {
		t.Fatal(err)
	}
	byType, err := json.Marshal(generated(a))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, byType) {
		t.Errorf("by hand\n%s\nby type\n%s", again, byType)
	}
}

// generated builds the answer in the generated types.
func generated(a *answer) *openapi.Readings {
	loc := a.profile.Location()
	date := func(d meter.Day) openapi_types.Date {
		y, m, dd := d.Date()
		return openapi_types.Date{Time: time.Date(y, m, dd, 0, 0, 0, 0, time.UTC)}
	}
	r := &openapi.Readings{
		InteractionId: a.interaction, Ean: a.query.ean.String(), Purpose: openapi.Purpose(a.query.purpose.String()),
		From: date(a.query.days.From), To: date(a.query.days.To), TimeZone: loc.String(), ProfileVersion: a.profile.Version(),
		Series: []openapi.Series{}, Withheld: []openapi.Withheld{},
	}
	for _, s := range a.series {
		f, _ := a.profile.FieldByCode(s.Field)
		o := openapi.Series{
			Field: f.Name, Obis: f.OBIS, Unit: f.Unit, ReadingKind: openapi.ReadingKind(s.Kind.String()), Resolution: openapi.Resolution(s.Resolution.String()),
			LegalBasis: openapi.LegalBasis(s.Basis.String()), Rule: s.Rule, ExpectedCount: s.Expected, DeliveredCount: s.Delivered,
			Days: make([]openapi.DayValues, 0, len(s.Days)),
		}
		for i := range s.Days {
			d := &s.Days[i]
			v := openapi.DayValues{Start: d.Day.Start(loc), Values: make([]*string, len(d.Values))}
			for j, x := range d.Values {
				if x != meter.Null {
					text := string(meter.AppendValue(nil, x, f.Precision))
					v.Values[j] = &text
				}
			}
			var runs []openapi.QualityRun
			for j := range d.Quality {
				q := exceptional(d, j)
				if n := len(runs); n > 0 && runs[n-1].Index+runs[n-1].Count == j && string(runs[n-1].Quality) == q.String() {
					runs[n-1].Count++
				} else if q != meter.AsProvided {
					runs = append(runs, openapi.QualityRun{Index: j, Count: 1, Quality: openapi.Quality(q.String())})
				}
			}
			if runs != nil {
				v.Quality = &runs
			}
			o.Days = append(o.Days, v)
		}
		r.Series = append(r.Series, o)
	}
	for _, w := range a.withheld {
		f, _ := a.profile.FieldByCode(w.Field)
		r.Withheld = append(r.Withheld, openapi.Withheld{Field: f.Name, From: date(w.Days.From), To: date(w.Days.To), Reason: openapi.WithheldReason(w.Reason.String())})
	}
	return r
}

func TestAppendString(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "kWh", `a"b\c`, "line\nbreak\x00", "Zürich", "\xff\xfe", "\u2028", "😀"} {
		got := appendString(nil, s)
		var back string
		if err := json.Unmarshal(got, &back); err != nil {
			t.Errorf("%q: %v", s, err)
		}
		if want := strings.ToValidUTF8(s, "\ufffd"); back != want && s != "\xff\xfe" {
			t.Errorf("%q reads back as %q", s, back)
		}
	}
}

func TestErase(t *testing.T) {
	t.Parallel()
	a := goldenAnswer(t)
	b := newBody(a, &call{media: mediaJSON})
	for _, s := range a.series {
		for _, d := range s.Days {
			for i := range d.Values {
				if d.Values[i] != 0 {
					t.Fatal("a value is left in memory")
				}
			}
		}
	}
	w := &sink{header: http.Header{}}
	if err := b.write(w); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(w.body, []byte(`"6328.420"`)) {
		t.Errorf("sent %s", w.body)
	}
	for _, c := range b.bytes {
		if c != 0 {
			t.Fatal("the rendered answer is left in memory")
		}
	}
}

type sink struct {
	header http.Header
	body   []byte
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(b []byte) (int, error) { s.body = append(s.body, b...); return len(b), nil }

// benchmarkAnswer is a month of quarter-hours of two fields and the daily
// registers, as in docs/PERFORMANCE.md.
func benchmarkAnswer(b *testing.B) *answer {
	profile := dutch(b)
	a := &answer{
		interaction: uuid.MustParse("019acf2e-8a51-7b0c-9d4e-0f6a1c2b3d4e"), profile: profile,
		query: query{ean: mustEAN(b, testEAN), purpose: meter.EnergyManagement, days: meter.DayRange{From: mustDay(b, "2026-03-01"), To: mustDay(b, "2026-04-01")}},
	}
	for _, f := range profile.Fields(meter.Electricity) {
		s := meter.Series{Field: f.Code, Kind: meter.Register, Resolution: meter.P1D, Basis: meter.SupplyDaily, Rule: "nl-daily"}
		n, days := 1, 32
		if f.Class == meter.Intervals {
			s.Kind, s.Resolution, s.Basis, s.Rule = meter.Consumption, meter.PT15M, meter.Consent, "nl-consent-intervals"
			n, days = 96, 31
		}
		for d := range days {
			values := make([]meter.Value, n)
			for i := range values {
				values[i] = meter.Value(123456 + 1000*d + i)
			}
			s.Days = append(s.Days, meter.SeriesDay{Day: a.query.days.From + meter.Day(d), Values: values})
		}
		a.series = append(a.series, s)
	}
	return a
}

func BenchmarkRender(b *testing.B) {
	a := benchmarkAnswer(b)
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			b.SetBytes(int64(len(a.appendTo(make([]byte, 0, a.size())))))
		}
	})
	b.Run("encoding-json", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			out, err := json.Marshal(generated(a))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(out)))
		}
	})
}
