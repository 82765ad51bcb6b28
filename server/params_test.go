package server

import (
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/meter"
	"kluis/openapi"
)

func dutch(t testing.TB) *meter.Profile {
	t.Helper()
	p, err := meter.ParseProfile(meter.NL())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func codes(t testing.TB, p *meter.Profile, names ...string) []meter.FieldCode {
	t.Helper()
	var out []meter.FieldCode
	for _, n := range names {
		f, ok := p.Field(n)
		if !ok {
			t.Fatalf("no field %s", n)
		}
		out = append(out, f.Code)
	}
	return out
}

const testEAN = "871687140000000019"

func TestParseReadings(t *testing.T) {
	t.Parallel()
	profile := dutch(t)
	day := func(s string) meter.Day {
		d, err := meter.ParseDay(s)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	ok := readingsParams{ean: testEAN, from: "2026-03-01", to: "2026-04-01", purpose: "BILLING"}
	with := func(change func(*readingsParams)) readingsParams {
		p := ok
		change(&p)
		return p
	}
	march := meter.DayRange{From: day("2026-03-01"), To: day("2026-04-01")}
	base := query{ean: mustEAN(t, testEAN), purpose: meter.Billing, days: march}
	for name, tc := range map[string]struct {
		in   readingsParams
		want func(*query)
		errs []string // pointers
	}{
		"least":              {in: ok, want: func(*query) {}},
		"fields":             {in: with(func(p *readingsParams) { p.fields = []string{"import_normal", "import_low"} }), want: func(q *query) { q.fields = codes(t, profile, "import_normal", "import_low") }},
		"class":              {in: with(func(p *readingsParams) { p.class = "intervals" }), want: func(q *query) { q.class = meter.Intervals }},
		"all said":           {in: with(func(p *readingsParams) { p.resolution, p.kind = "P1M", "CONSUMPTION" }), want: func(q *query) { q.resolution, q.kind = meter.P1M, meter.Consumption }},
		"366 days":           {in: with(func(p *readingsParams) { p.to = "2027-03-02" }), want: func(q *query) { q.days.To = day("2027-03-02") }},
		"367 days":           {in: with(func(p *readingsParams) { p.to = "2027-03-03" }), errs: []string{"/query/to"}},
		"100 years":          {in: with(func(p *readingsParams) { p.from = "1970-01-01"; p.to = "2070-01-01" }), errs: []string{"/query/to"}},
		"reversed":           {in: with(func(p *readingsParams) { p.to = "2026-02-01" }), errs: []string{"/query/to"}},
		"empty period":       {in: with(func(p *readingsParams) { p.to = p.from }), errs: []string{"/query/to"}},
		"no such day":        {in: with(func(p *readingsParams) { p.from = "2026-02-30" }), errs: []string{"/query/from"}},
		"before 1970":        {in: with(func(p *readingsParams) { p.from = "1969-12-31" }), errs: []string{"/query/from"}},
		"check digit":        {in: with(func(p *readingsParams) { p.ean = "871687140000000018" }), errs: []string{"/path/ean"}},
		"17 digits":          {in: with(func(p *readingsParams) { p.ean = "87168714000000001" }), errs: []string{"/path/ean"}},
		"other digits":       {in: with(func(p *readingsParams) { p.ean = "٨٧١٦٨٧١٤٠" }), errs: []string{"/path/ean"}},
		"unknown field":      {in: with(func(p *readingsParams) { p.fields = []string{"import_low", "nonsense"} }), errs: []string{"/query/fields"}},
		"repeated field":     {in: with(func(p *readingsParams) { p.fields = []string{"import_low", "import_low"} }), errs: []string{"/query/fields"}},
		"fields and class":   {in: with(func(p *readingsParams) { p.fields = []string{"import_low"}; p.class = "registers" }), errs: []string{"/query/class"}},
		"as of":              {in: with(func(p *readingsParams) { p.asOf = "2026-03-15T13:00:00.5+01:00" }), want: func(q *query) { q.asOf = time.Date(2026, 3, 15, 12, 0, 0, 5e8, time.UTC) }},
		"as of now":          {in: with(func(p *readingsParams) { p.asOf = storyNow.Format(time.RFC3339) }), want: func(q *query) { q.asOf = storyNow.UTC() }},
		"as of the future":   {in: with(func(p *readingsParams) { p.asOf = storyNow.Add(time.Second).Format(time.RFC3339) }), errs: []string{"/query/asOf"}},
		"as of the epoch":    {in: with(func(p *readingsParams) { p.asOf = "1970-01-01T00:00:00Z" }), errs: []string{"/query/asOf"}},
		"as of a day":        {in: with(func(p *readingsParams) { p.asOf = "2026-03-15" }), errs: []string{"/query/asOf"}},
		"as of a local time": {in: with(func(p *readingsParams) { p.asOf = "2026-03-15T12:00:00" }), errs: []string{"/query/asOf"}},
		"everything wrong": {
			in:   readingsParams{ean: "x", from: "y", to: "", purpose: "FUN", fields: []string{"q"}, class: "z", resolution: "P1Y", kind: "BOTH", asOf: "then"},
			errs: []string{"/path/ean", "/query/from", "/query/to", "/query/purpose", "/query/fields", "/query/class", "/query/resolution", "/query/kind", "/query/asOf"},
		},
	} {
		got, errs := tc.in.parse(profile, storyNow)
		var pointers []string
		for _, e := range errs {
			pointers = append(pointers, e.Pointer)
		}
		if !slices.Equal(pointers, tc.errs) {
			t.Errorf("%s: faults at %q, want %q", name, pointers, tc.errs)
			continue
		}
		want := query{}
		if tc.want != nil {
			want = base
			tc.want(&want)
		}
		if got.ean != want.ean || got.days != want.days || got.purpose != want.purpose || !slices.Equal(got.fields, want.fields) ||
			got.class != want.class || got.resolution != want.resolution || got.kind != want.kind || !got.asOf.Equal(want.asOf) {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}

func TestFieldsFollowCommodityAndClass(t *testing.T) {
	t.Parallel()
	profile := dutch(t)
	for _, tc := range []struct {
		q         query
		commodity meter.Commodity
		want      []string
	}{
		{query{}, meter.Gas, []string{"gas", "gas_intervals"}},
		{query{class: meter.Registers}, meter.Gas, []string{"gas"}},
		{query{class: meter.Registers}, meter.Electricity, []string{"import_low", "import_normal", "export_low", "export_normal"}},
		{query{class: meter.Intervals}, meter.Electricity, []string{"import_intervals", "export_intervals"}},
		{query{fields: codes(t, profile, "gas")}, meter.Electricity, []string{"gas"}}, // Decide withholds it
	} {
		got := tc.q.request(tc.commodity, profile).Fields
		want := codes(t, profile, tc.want...)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%+v of %v: fields %v, want %v", tc.q, tc.commodity, got, want)
		}
	}
}

// A refusal says what is wanted and never what was sent.
func FuzzParseReadings(f *testing.F) {
	f.Add(testEAN, "from=2026-03-01&to=2026-04-01&purpose=BILLING")
	f.Add(testEAN, "from=2026-03-01&to=2026-04-01&purpose=BILLING&fields=import_low,gas&resolution=P1D&kind=REGISTER")
	f.Add(testEAN, "from=2026-03-01&to=2026-04-01&purpose=BILLING&asOf=2026-03-15T12:00:00Z")
	f.Add("", "from=&to=%zz&fields=,,")
	f.Add("1", "from=2026-03-01&from=2026-03-02&unknown=1;x")
	profile := dutch(f)
	f.Fuzz(func(t *testing.T, ean, raw string) {
		q, _ := url.ParseQuery(raw)
		sent := sentReadingsParams(ean, q)
		got, errs := sent.parse(profile, storyNow)
		if len(errs) == 0 {
			if got.ean.String() != ean || got.days.From.String() != q.Get("from") || got.days.To.String() != q.Get("to") ||
				got.purpose.String() != q.Get("purpose") || got.days.Empty() || got.days.Len() > 366 {
				t.Errorf("accepted as %+v", got)
			}
			return
		}
		seen := map[string]bool{}
		for _, e := range errs {
			if seen[e.Pointer] {
				t.Errorf("%s is faulted twice", e.Pointer)
			}
			seen[e.Pointer] = true
			for _, v := range []string{ean, sent.from, sent.to, sent.purpose, sent.class, sent.resolution, sent.kind, sent.asOf} {
				if len(v) > 3 && strings.Contains(e.Reason, v) && !strings.Contains(knownReasons, v) {
					t.Errorf("%s repeats what was sent", e.Pointer)
				}
			}
		}
	})
}

// The words of the reasons, which a caller may happen to send.
const knownReasons = wantEAN + wantDay + "must be later than from must be at most 366 days after from " +
	"must be one of BILLING, ENERGY_MANAGEMENT, SWITCH, MOVE, CUSTOMER_SERVICE must be names of the market profile's fields, separated by commas " +
	"must not name a field twice must be one of registers, intervals must not be given together with fields " +
	"must be one of PT15M, PT1H, P1D, P1M must be one of REGISTER, CONSUMPTION" + wantAsOf

func TestBoundAndSentParametersAreReadAlike(t *testing.T) {
	t.Parallel()
	profile := dutch(t)
	var r openapi.GetReadingsRequestObject
	r.Ean = testEAN
	if err := r.Params.From.UnmarshalText([]byte("2026-03-01")); err != nil {
		t.Fatal(err)
	}
	if err := r.Params.To.UnmarshalText([]byte("2026-04-01")); err != nil {
		t.Fatal(err)
	}
	r.Params.Purpose = openapi.PurposeENERGYMANAGEMENT
	r.Params.Fields = &[]string{"import_low", "export_low"}
	res, kind := openapi.P1D, openapi.ReadingKindCONSUMPTION
	asOf := time.Date(2026, 3, 15, 12, 0, 0, 123456000, time.UTC)
	r.Params.Resolution, r.Params.Kind, r.Params.AsOf = &res, &kind, &asOf
	bound, errs := boundReadingsParams(r).parse(profile, storyNow)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	q, err := url.ParseQuery("from=2026-03-01&to=2026-04-01&purpose=ENERGY_MANAGEMENT&fields=import_low,export_low&resolution=P1D&kind=CONSUMPTION&asOf=2026-03-15T13:00:00.123456%2B01:00")
	if err != nil {
		t.Fatal(err)
	}
	sent, errs := sentReadingsParams(testEAN, q).parse(profile, storyNow)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if !slices.Equal(bound.fields, sent.fields) || bound.days != sent.days || bound.purpose != sent.purpose ||
		bound.resolution != sent.resolution || bound.kind != sent.kind || bound.ean != sent.ean ||
		bound.asOf != asOf || sent.asOf != asOf {
		t.Errorf("bound %+v\nsent  %+v", bound, sent)
	}
}
