package authz

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/meter"
)

// lasting is the Dutch profile in which a move ends no consent.
func lasting(t testing.TB) *meter.Profile {
	t.Helper()
	p, err := meter.ParseProfile(bytes.Replace(meter.NL(), []byte("ended_by_move: true"), []byte("ended_by_move: false"), 1))
	if err != nil || p.ConsentTerms().EndedByMove {
		t.Fatal(err)
	}
	return p
}

func dutch(t testing.TB) *meter.Profile {
	t.Helper()
	p, err := meter.ParseProfile(meter.NL())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// render writes a decision as lines, so that tables can be read.
func render(p market, g Grant, withheld []Withheld) []string {
	name := func(c meter.FieldCode) string {
		if f, ok := p.FieldByCode(c); ok {
			return f.Name
		}
		return fmt.Sprintf("field %d", c)
	}
	var out []string
	for _, item := range g.Items() {
		for _, r := range item.Spec.Days.Ranges() {
			out = append(out, fmt.Sprintf("%s %s %s: %s %s by %s", name(item.Spec.Field.Code), r.From, r.To, item.Spec.Granularity, item.Spec.Kind, item.Rule))
		}
	}
	for _, w := range withheld {
		out = append(out, fmt.Sprintf("%s %s %s: %s", name(w.Field), w.Days.From, w.Days.To, w.Reason))
	}
	return out
}

const (
	importLow       meter.FieldCode = 1
	gas             meter.FieldCode = 5
	importIntervals meter.FieldCode = 6
	gasIntervals    meter.FieldCode = 8
)

// The life of one metering point, told once and asked about below:
//
//	occupancy   2023-01-01 ─── first customer ─── 2025-03-15 ─── second customer ───▶
//	supply      2023-01-01 ─────────── alpha ─────────── 2025-07-01 ─── beta ───────▶
//	opted out                                     2025-11-10 ── 2025-11-20
//	consents    of the second customer, all given on 2026-01-05:
//	            1 beta   ENERGY_MANAGEMENT intervals PT15M from 2025-01-01 until 2027
//	            2 alpha  ENERGY_MANAGEMENT intervals PT1H  June 2025       until 2027
//	            3 alpha  ENERGY_MANAGEMENT intervals PT15M May 2025        revoked
//	            4 alpha  ENERGY_MANAGEMENT intervals PT15M April 2025      until 15 January 2026
//	            5 gamma  ENERGY_MANAGEMENT intervals PT15M 2025            until 2027; never supplied
//
// It is 20 January 2026; retention is 24 months.
func story(t testing.TB) *LegalFile {
	consent := func(id byte, g meter.GLN, res meter.Resolution, d meter.DayRange, until string) Step {
		return GrantConsent{
			ID: uuid(id), Supplier: g, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
			Granularity: res, Days: d, ValidUntil: instant(until), Evidence: "dossier",
		}
	}
	return history(t, t0,
		Register{home, meter.Electricity},
		SetOccupancy{days("2023-01-01", "")}, SetOccupancy{days("2025-03-15", "")},
		SetSupply{alpha, days("2023-01-01", "")}, SetSupply{beta, days("2025-07-01", "")},
		SetOptOut{days("2025-11-10", "2025-11-20")},
		consent(1, beta, meter.PT15M, days("2025-01-01", ""), "2027-01-01T00:00:00Z"),
		consent(2, alpha, meter.PT1H, days("2025-06-01", "2025-07-01"), "2027-01-01T00:00:00Z"),
		consent(3, alpha, meter.PT15M, days("2025-05-01", "2025-06-01"), "2027-01-01T00:00:00Z"),
		consent(4, alpha, meter.PT15M, days("2025-04-01", "2025-05-01"), "2026-01-15T00:00:00Z"),
		consent(5, gamma, meter.PT15M, days("2025-01-01", "2026-01-01"), "2027-01-01T00:00:00Z"),
		RevokeConsent{uuid(3)},
	)
}

var storyNow = instant("2026-01-20T12:00:00Z")

func TestDecide(t *testing.T) {
	t.Parallel()
	type fields = []meter.FieldCode
	for _, c := range []struct {
		name       string
		caller     meter.GLN
		purpose    meter.Purpose
		days       meter.DayRange
		fields     fields
		resolution meter.Resolution
		kind       meter.Kind
		want       []string
		reads      string // of the first field, when it matters
	}{
		// The bill: whole months of registers, to who supplied.
		{
			name: "the bill of a month", caller: alpha, purpose: meter.Billing, days: days("2025-05-01", "2025-06-01"), fields: fields{importLow},
			want:  []string{"import_low 2025-05-01 2025-06-01: P1M REGISTER by nl-billing-periodic"},
			reads: "2025-05-01 2025-06-01",
		},
		{
			name: "the bill of a quarter opens four reads", caller: alpha, purpose: meter.Billing, days: days("2025-04-01", "2025-07-01"), fields: fields{importLow},
			kind:  meter.Consumption,
			want:  []string{"import_low 2025-04-01 2025-07-01: P1M CONSUMPTION by nl-billing-periodic"},
			reads: "2025-04-01 2025-05-01 2025-06-01 2025-07-01",
		},
		{
			name: "the bill ends with the supply", caller: alpha, purpose: meter.Billing, days: days("2025-06-01", "2025-08-01"), fields: fields{importLow},
			want: []string{
				"import_low 2025-06-01 2025-07-01: P1M REGISTER by nl-billing-periodic",
				"import_low 2025-07-01 2025-08-01: NO_SUPPLY",
			},
			reads: "2025-06-01 2025-07-01",
		},
		{
			name: "and begins with it: the end read is the begin read", caller: beta, purpose: meter.Billing, days: days("2025-06-01", "2025-08-01"), fields: fields{importLow},
			want: []string{
				"import_low 2025-07-01 2025-08-01: P1M REGISTER by nl-billing-periodic",
				"import_low 2025-06-01 2025-07-01: NO_SUPPLY",
			},
			reads: "2025-07-01 2025-08-01",
		},
		{
			name: "part months are not billed", caller: alpha, purpose: meter.Billing, days: days("2025-04-10", "2025-06-10"), fields: fields{importLow},
			want: []string{
				"import_low 2025-05-01 2025-06-01: P1M REGISTER by nl-billing-periodic",
				"import_low 2025-04-10 2025-05-01: PARTIAL_PERIOD",
				"import_low 2025-06-01 2025-06-10: PARTIAL_PERIOD",
			},
		},
		{
			name: "a move does not cut the bill of one supplier", caller: alpha, purpose: meter.Billing, days: days("2025-03-01", "2025-04-01"), fields: fields{importLow},
			want: []string{"import_low 2025-03-01 2025-04-01: P1M REGISTER by nl-billing-periodic"},
		},
		{
			name: "the bill needs no days", caller: alpha, purpose: meter.Billing, days: days("2025-05-01", "2025-06-01"), fields: fields{importLow}, resolution: meter.P1D,
			want: []string{"import_low 2025-05-01 2025-06-01: NOT_GRANTED_AT_THIS_GRANULARITY"},
		},
		{
			name: "the bill needs no intervals", caller: beta, purpose: meter.Billing, days: days("2025-09-01", "2025-10-01"), fields: fields{importIntervals},
			want: []string{"import_intervals 2025-09-01 2025-10-01: NOT_COVERED"},
		},
		{
			name: "a month not over is not billed", caller: beta, purpose: meter.Billing, days: days("2026-01-01", "2026-02-01"), fields: fields{importLow},
			want: []string{
				"import_low 2026-01-01 2026-01-20: PARTIAL_PERIOD",
				"import_low 2026-01-20 2026-02-01: PERIOD_IN_FUTURE",
			},
		},
		{
			name: "nor one half past retention", caller: alpha, purpose: meter.Billing, days: days("2024-01-01", "2024-03-01"), fields: fields{importLow},
			want: []string{
				"import_low 2024-02-01 2024-03-01: P1M REGISTER by nl-billing-periodic",
				"import_low 2024-01-01 2024-01-20: PERIOD_TOO_OLD",
				"import_low 2024-01-20 2024-02-01: PARTIAL_PERIOD",
			},
		},
		{
			name: "nor one with days opted out", caller: beta, purpose: meter.Billing, days: days("2025-11-01", "2025-12-01"), fields: fields{importLow},
			want: []string{
				"import_low 2025-11-01 2025-11-10: PARTIAL_PERIOD",
				"import_low 2025-11-10 2025-11-20: OPTED_OUT",
				"import_low 2025-11-20 2025-12-01: PARTIAL_PERIOD",
			},
		},

		// Daily registers to who supplies.
		{
			name: "daily reads, with the closing one", caller: alpha, purpose: meter.EnergyManagement, days: days("2025-06-28", "2025-07-03"), fields: fields{importLow},
			want: []string{
				"import_low 2025-06-28 2025-07-01: P1D REGISTER by nl-daily",
				"import_low 2025-07-01 2025-07-03: NO_SUPPLY",
			},
			reads: "2025-06-28 2025-06-29 2025-06-30 2025-07-01",
		},
		{
			name: "the last closing read is of today", caller: beta, purpose: meter.EnergyManagement, days: days("2026-01-18", "2026-01-22"), fields: fields{importLow},
			want: []string{
				"import_low 2026-01-18 2026-01-20: P1D REGISTER by nl-daily",
				"import_low 2026-01-20 2026-01-22: PERIOD_IN_FUTURE",
			},
			reads: "2026-01-18 2026-01-19 2026-01-20",
		},
		{
			name: "by month when asked by month", caller: alpha, purpose: meter.EnergyManagement, days: days("2025-05-01", "2025-06-03"), fields: fields{importLow}, resolution: meter.P1M,
			want: []string{
				"import_low 2025-05-01 2025-06-01: P1M REGISTER by nl-daily",
				"import_low 2025-06-01 2025-06-03: PARTIAL_PERIOD",
			},
			reads: "2025-05-01 2025-06-01",
		},
		{
			name: "no hourly registers", caller: alpha, purpose: meter.EnergyManagement, days: days("2025-05-01", "2025-05-02"), fields: fields{importLow}, resolution: meter.PT1H,
			want: []string{"import_low 2025-05-01 2025-05-02: NOT_GRANTED_AT_THIS_GRANULARITY"},
		},
		{
			name: "none while opted out, but for the closing read", caller: beta, purpose: meter.EnergyManagement, days: days("2025-11-08", "2025-11-22"), fields: fields{importLow},
			want: []string{
				"import_low 2025-11-08 2025-11-10: P1D REGISTER by nl-daily",
				"import_low 2025-11-20 2025-11-22: P1D REGISTER by nl-daily",
				"import_low 2025-11-10 2025-11-20: OPTED_OUT",
			},
			reads: "2025-11-08 2025-11-09 2025-11-10 2025-11-20 2025-11-21 2025-11-22",
		},

		// Intervals on consent, to who supplies.
		{
			name: "intervals on consent", caller: beta, purpose: meter.EnergyManagement, days: days("2025-08-01", "2025-08-03"), fields: fields{importIntervals},
			want:  []string{"import_intervals 2025-08-01 2025-08-03: PT15M CONSUMPTION by nl-consent-intervals"},
			reads: "2025-08-01 2025-08-02",
		},
		{
			name: "what leaves is as coarse as asked", caller: beta, purpose: meter.EnergyManagement, days: days("2025-08-01", "2025-08-03"), fields: fields{importIntervals}, resolution: meter.P1D,
			want: []string{"import_intervals 2025-08-01 2025-08-03: P1D CONSUMPTION by nl-consent-intervals"},
		},
		{
			name: "no finer than the customer permitted", caller: alpha, purpose: meter.EnergyManagement, days: days("2025-06-01", "2025-06-02"), fields: fields{importIntervals}, resolution: meter.PT15M,
			want: []string{"import_intervals 2025-06-01 2025-06-02: NOT_GRANTED_AT_THIS_GRANULARITY"},
		},
		{
			name: "but as fine", caller: alpha, purpose: meter.EnergyManagement, days: days("2025-06-01", "2025-06-02"), fields: fields{importIntervals},
			want: []string{"import_intervals 2025-06-01 2025-06-02: PT1H CONSUMPTION by nl-consent-intervals"},
		},
		{
			name: "consent, but not the supplier any more", caller: alpha, purpose: meter.EnergyManagement, days: days("2025-06-29", "2025-07-02"), fields: fields{importIntervals},
			want: []string{
				"import_intervals 2025-06-29 2025-07-01: PT1H CONSUMPTION by nl-consent-intervals",
				"import_intervals 2025-07-01 2025-07-02: NO_SUPPLY",
			},
		},
		{
			name: "consent, but not the supplier ever", caller: gamma, purpose: meter.EnergyManagement, days: days("2025-08-01", "2025-08-02"), fields: fields{importIntervals},
			want: []string{"import_intervals 2025-08-01 2025-08-02: NO_SUPPLY"},
		},
		{
			name: "no consent, consent ended, consent revoked", caller: alpha, purpose: meter.EnergyManagement, days: days("2025-03-20", "2025-05-03"), fields: fields{importIntervals},
			want: []string{
				"import_intervals 2025-03-20 2025-04-01: NO_CONSENT",
				"import_intervals 2025-04-01 2025-05-01: CONSENT_EXPIRED",
				"import_intervals 2025-05-01 2025-05-03: CONSENT_REVOKED",
			},
		},
		{
			name: "consent is not for another purpose", caller: beta, purpose: meter.Billing, days: days("2025-08-01", "2025-08-02"), fields: fields{importIntervals},
			want: []string{"import_intervals 2025-08-01 2025-08-02: NOT_COVERED"},
		},

		// What there is no rule for.
		{
			name: "a purpose without rules", caller: beta, purpose: meter.CustomerService, days: days("2025-12-01", "2026-03-01"), fields: fields{importLow, importIntervals},
			want: []string{
				"import_low 2025-12-01 2026-03-01: PURPOSE_NOT_AVAILABLE",
				"import_intervals 2025-12-01 2026-03-01: PURPOSE_NOT_AVAILABLE",
			},
		},
		{
			name: "an unknown purpose", caller: beta, purpose: 77, days: days("2025-12-01", "2025-12-02"), fields: fields{importLow},
			want: []string{"import_low 2025-12-01 2025-12-02: PURPOSE_NOT_AVAILABLE"},
		},
		{
			name: "gas of an electricity meter, a field of no catalogue", caller: beta, purpose: meter.EnergyManagement, days: days("2025-12-01", "2025-12-02"), fields: fields{gas, 99},
			want: []string{
				"gas 2025-12-01 2025-12-02: NOT_COVERED",
				"field 99 2025-12-01 2025-12-02: NOT_COVERED",
			},
		},
		{
			name: "fields in any order, each once", caller: beta, purpose: meter.EnergyManagement, days: days("2025-12-01", "2025-12-02"), fields: fields{importIntervals, importLow, importIntervals},
			want: []string{
				"import_low 2025-12-01 2025-12-02: P1D REGISTER by nl-daily",
				"import_intervals 2025-12-01 2025-12-02: PT15M CONSUMPTION by nl-consent-intervals",
			},
		},
		{
			name: "no field", caller: beta, purpose: meter.EnergyManagement, days: days("2025-12-01", "2025-12-02"),
		},

		// Requests that the contract forbids, should one come this far.
		{
			name: "an empty period", caller: beta, purpose: meter.EnergyManagement, days: days("2025-12-02", "2025-12-02"), fields: fields{importLow},
		},
		{
			name: "a period reversed", caller: beta, purpose: meter.EnergyManagement, days: days("2025-12-02", "2025-12-01"), fields: fields{importLow},
		},
		{
			name: "more than 366 days", caller: beta, purpose: meter.EnergyManagement, days: days("2024-12-01", "2025-12-03"), fields: fields{importLow},
			want: []string{"import_low 2024-12-01 2025-12-03: NOT_COVERED"},
		},
		{
			name: "an unknown resolution", caller: beta, purpose: meter.EnergyManagement, days: days("2025-12-01", "2025-12-02"), fields: fields{importLow}, resolution: 5,
			want: []string{"import_low 2025-12-01 2025-12-02: NOT_GRANTED_AT_THIS_GRANULARITY"},
		},
		{
			name: "an unknown kind", caller: beta, purpose: meter.EnergyManagement, days: days("2025-12-01", "2025-12-02"), fields: fields{importLow}, kind: 3,
			want: []string{"import_low 2025-12-01 2025-12-02: KIND_NOT_AVAILABLE"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := dutch(t)
			r := Request{EAN: home, Purpose: c.purpose, Days: c.days, Fields: c.fields, Resolution: c.resolution, Kind: c.kind}
			g, withheld, err := Decide(caller(c.caller), r, story(t), p, storyNow)
			if err != nil {
				t.Fatal(err)
			}
			if got := render(p, g, withheld); !slices.Equal(got, c.want) {
				t.Errorf("\n got %s\nwant %s", strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
			}
			if c.reads != "" {
				var got []string
				for d := range g.Reads()[0].Days.All() {
					got = append(got, d.String())
				}
				if strings.Join(got, " ") != c.reads {
					t.Errorf("reads %s, want %s", got, c.reads)
				}
			}
		})
	}
}

// Unknown, foreign, missing, mistaken: one answer.
func TestNoRelation(t *testing.T) {
	t.Parallel()
	p, f := dutch(t), story(t)
	r := Request{EAN: home, Purpose: meter.Billing, Days: days("2025-05-01", "2025-06-01"), Fields: []meter.FieldCode{importLow}}
	neighbour := r
	neighbour.EAN = testEAN(2)
	nobody := r
	nobody.EAN = meter.EAN{}
	for name, decide := range map[string]func() (Grant, []Withheld, error){
		"a stranger":                 func() (Grant, []Withheld, error) { return Decide(caller(testGLN(9)), r, f, p, storyNow) },
		"nobody":                     func() (Grant, []Withheld, error) { return Decide(caller{}, r, f, p, storyNow) },
		"no caller":                  func() (Grant, []Withheld, error) { return Decide(nil, r, f, p, storyNow) },
		"no file":                    func() (Grant, []Withheld, error) { return Decide(caller(alpha), r, nil, p, storyNow) },
		"the file of a neighbour":    func() (Grant, []Withheld, error) { return Decide(caller(alpha), neighbour, f, p, storyNow) },
		"no metering point":          func() (Grant, []Withheld, error) { return Decide(caller(alpha), nobody, f, p, storyNow) },
		"a file and request of none": func() (Grant, []Withheld, error) { return Decide(caller(alpha), nobody, &LegalFile{}, p, storyNow) },
		"no profile":                 func() (Grant, []Withheld, error) { return Decide(caller(alpha), r, f, nil, storyNow) },
	} {
		g, withheld, err := decide()
		if !errors.Is(err, ErrNoRelation) || !g.Empty() || len(g.Reads()) != 0 || withheld != nil {
			t.Errorf("%s: %v, %v, %v", name, g, withheld, err)
		}
	}
}

// A consent of the customer who moved out gives the days of that customer, and
// none of the next; one of the customer who moved in, none of the days before.
func TestConsentKeepsToItsOccupancy(t *testing.T) {
	t.Parallel()
	p := lasting(t) // else the move ends the first consent altogether
	moved := history(t, instant("2025-02-01T10:00:00Z"),
		Register{home, meter.Electricity}, SetOccupancy{days("2023-01-01", "")}, SetSupply{alpha, days("2023-01-01", "")},
		grant(1, func(g *GrantConsent) { g.Days = days("2024-01-01", "") }), SetOccupancy{days("2025-03-15", "")})
	r := Request{EAN: home, Purpose: meter.EnergyManagement, Days: days("2025-03-13", "2025-03-17"), Fields: []meter.FieldCode{importIntervals}}
	g, withheld, err := Decide(caller(alpha), r, moved, p, storyNow)
	want := []string{
		"import_intervals 2025-03-13 2025-03-15: PT15M CONSUMPTION by nl-consent-intervals",
		"import_intervals 2025-03-15 2025-03-17: NOT_OCCUPIED",
	}
	if got := render(p, g, withheld); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v %v", got, err)
	}
	// The new customer consents too: both, each for the own days.
	both, err := Apply(moved, grant(2, func(g *GrantConsent) { g.Days, g.Granularity = days("2024-01-01", ""), meter.PT1H }), operator,
		instant("2025-04-01T10:00:00Z"), amsterdam)
	if err != nil {
		t.Fatal(err)
	}
	g, withheld, err = Decide(caller(alpha), r, both, p, storyNow)
	want[1] = "import_intervals 2025-03-15 2025-03-17: PT1H CONSUMPTION by nl-consent-intervals"
	if got := render(p, g, withheld); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v %v", got, err)
	}
}

// A month holds days of two consents only where each day may be had by itself.
// Otherwise the total, less the days that may be had, is what the others hide.
func TestMonthsAreNotMixed(t *testing.T) {
	t.Parallel()
	p := lasting(t) // else the move ends the first consent altogether
	first, second := days("2024-01-01", "2025-03-15"), days("2025-03-15", "")
	consent := func(id byte, g meter.Resolution, d meter.DayRange) Step {
		return grant(id, func(c *GrantConsent) { c.Granularity, c.Days = g, d })
	}
	march := days("2025-03-01", "2025-04-01")
	const (
		month   = "import_intervals 2025-03-01 2025-04-01: P1M CONSUMPTION by nl-consent-intervals"
		partial = "import_intervals 2025-03-01 2025-04-01: PARTIAL_PERIOD"
	)
	for _, c := range []struct {
		name    string
		move    bool // on 15 March; the first consent is of who moved out
		one     Step
		two     Step
		want    []string // at P1M
		unasked []string // when no resolution is asked for
	}{
		{
			name: "months, then quarters of the next customer", move: true, one: consent(1, meter.P1M, first), two: consent(2, meter.PT15M, second),
			want: []string{partial},
			unasked: []string{
				"import_intervals 2025-03-15 2025-04-01: PT15M CONSUMPTION by nl-consent-intervals",
				"import_intervals 2025-03-01 2025-03-15: PARTIAL_PERIOD",
			},
		},
		{
			name: "quarters, then months of the next customer", move: true, one: consent(1, meter.PT15M, first), two: consent(2, meter.P1M, second),
			want: []string{partial},
			unasked: []string{
				"import_intervals 2025-03-01 2025-03-15: PT15M CONSUMPTION by nl-consent-intervals",
				"import_intervals 2025-03-15 2025-04-01: PARTIAL_PERIOD",
			},
		},
		{
			name: "months of both customers", move: true, one: consent(1, meter.P1M, first), two: consent(2, meter.P1M, second),
			want: []string{partial}, unasked: []string{partial},
		},
		{
			name: "months of both, said for longer than they lived there", move: true, one: consent(1, meter.P1M, days("2024-01-01", "")), two: consent(2, meter.P1M, days("2024-01-01", "")),
			want: []string{partial}, unasked: []string{partial},
		},
		{
			name: "days of both customers", move: true, one: consent(1, meter.P1D, first), two: consent(2, meter.PT15M, second),
			want: []string{month},
			unasked: []string{
				"import_intervals 2025-03-15 2025-04-01: PT15M CONSUMPTION by nl-consent-intervals",
				"import_intervals 2025-03-01 2025-03-15: P1D CONSUMPTION by nl-consent-intervals",
			},
		},
		{
			name: "months, then quarters of one customer", one: consent(1, meter.P1M, first), two: consent(2, meter.PT15M, second),
			want: []string{partial},
			unasked: []string{
				"import_intervals 2025-03-15 2025-04-01: PT15M CONSUMPTION by nl-consent-intervals",
				"import_intervals 2025-03-01 2025-03-15: PARTIAL_PERIOD",
			},
		},
		{
			name: "the month, and quarters of half of it", one: consent(1, meter.P1M, days("2024-01-01", "")), two: consent(2, meter.PT15M, second),
			want: []string{month},
			unasked: []string{
				"import_intervals 2025-03-15 2025-04-01: PT15M CONSUMPTION by nl-consent-intervals",
				"import_intervals 2025-03-01 2025-03-15: PARTIAL_PERIOD",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := history(t, instant("2025-03-01T10:00:00Z"), Register{home, meter.Electricity},
				SetOccupancy{days("2023-01-01", "")}, SetSupply{alpha, days("2023-01-01", "")}, c.one)
			steps := []Step{c.two}
			if c.move {
				steps = []Step{SetOccupancy{second}, c.two}
			}
			for _, s := range steps {
				var err error
				if f, err = Apply(f, s, operator, instant("2025-03-20T10:00:00Z"), amsterdam); err != nil {
					t.Fatal(err)
				}
			}
			for resolution, want := range map[meter.Resolution][]string{meter.P1M: c.want, 0: c.unasked} {
				g, withheld, err := Decide(caller(alpha), Request{
					EAN: home, Purpose: meter.EnergyManagement, Days: march, Fields: []meter.FieldCode{importIntervals}, Resolution: resolution,
				}, f, p, storyNow)
				if got := render(p, g, withheld); err != nil || !slices.Equal(got, want) {
					t.Errorf("asked %v: %v\n got %s\nwant %s", resolution, err, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
				}
			}
		})
	}
}

// A move ends the consents of who moved out, also for the days before, from the
// day of the move on; one that is announced does not yet.
func TestMoveEndsConsents(t *testing.T) {
	t.Parallel()
	before := history(t, instant("2025-02-01T10:00:00Z"),
		Register{home, meter.Electricity}, SetOccupancy{days("2023-01-01", "")}, SetSupply{alpha, days("2023-01-01", "")},
		grant(1, func(g *GrantConsent) { g.Days = days("2024-01-01", "") }))
	moved, err := Apply(before, SetOccupancy{days("2025-03-15", "")}, operator, instant("2025-02-02T10:00:00Z"), amsterdam)
	if err != nil {
		t.Fatal(err)
	}
	r := Request{EAN: home, Purpose: meter.EnergyManagement, Days: days("2025-02-10", "2025-02-12"), Fields: []meter.FieldCode{importIntervals}}
	granted := "import_intervals 2025-02-10 2025-02-12: PT15M CONSUMPTION by nl-consent-intervals"
	for _, c := range []struct {
		p    *meter.Profile
		f    *LegalFile
		now  string
		want string
	}{
		{dutch(t), moved, "2025-03-14T22:59:59.999999Z", granted}, // 23:59:59 there
		{dutch(t), moved, "2025-03-14T23:00:00Z", "import_intervals 2025-02-10 2025-02-12: CONSENT_EXPIRED"},
		{dutch(t), before, "2025-03-14T23:00:00Z", granted},
		{lasting(t), moved, "2025-03-14T23:00:00Z", granted},
	} {
		g, withheld, err := Decide(caller(alpha), r, c.f, c.p, instant(c.now))
		if got := render(c.p, g, withheld); err != nil || !slices.Equal(got, []string{c.want}) {
			t.Errorf("at %s: %v %v", c.now, got, err)
		}
	}
}

// Whatever end a consent has, it counts no longer than the market lets one.
func TestConsentCountsNoLongerThanTheMarketLets(t *testing.T) {
	t.Parallel()
	p := dutch(t)
	f := history(t, instant("2024-05-31T22:10:00Z"), // 1 June there
		Register{home, meter.Electricity}, SetOccupancy{days("2023-01-01", "")}, SetSupply{alpha, days("2023-01-01", "")},
		grant(1, func(g *GrantConsent) { g.Days, g.ValidUntil = days("2024-01-01", ""), instant("2099-01-01T00:00:00Z") }))
	r := Request{EAN: home, Purpose: meter.EnergyManagement, Days: days("2026-12-01", "2026-12-02"), Fields: []meter.FieldCode{importIntervals}}
	for now, want := range map[string]string{
		"2027-05-31T21:59:59.999999Z": "import_intervals 2026-12-01 2026-12-02: PT15M CONSUMPTION by nl-consent-intervals",
		"2027-05-31T22:00:00Z":        "import_intervals 2026-12-01 2026-12-02: CONSENT_EXPIRED",
	} {
		g, withheld, err := Decide(caller(alpha), r, f, p, instant(now))
		if got := render(p, g, withheld); err != nil || !slices.Equal(got, []string{want}) {
			t.Errorf("at %s: %v %v", now, got, err)
		}
	}
}

// A consent for intervals gives no register reads: those of two days would
// give what was used between them. Where the supplier has the daily reads
// anyway, it may have them of intervals too.
func TestIntervalsAsRegisters(t *testing.T) {
	t.Parallel()
	withDaily := dutch(t)
	yaml := string(meter.NL())
	at := strings.Index(yaml, "- id: nl-daily")
	withoutDaily, err := meter.ParseProfile([]byte(yaml[:at] + strings.Replace(yaml[at:], "enabled: true", "enabled: false", 1)))
	if err != nil {
		t.Fatal(err)
	}
	// Two days consented, with one between them that is not.
	f := history(t, t0, Register{home, meter.Electricity}, SetOccupancy{days("2023-01-01", "")}, SetSupply{alpha, days("2023-01-01", "")},
		grant(1, func(g *GrantConsent) { g.Days = days("2025-05-01", "2025-05-02") }),
		grant(2, func(g *GrantConsent) { g.Days = days("2025-05-03", "2025-05-04") }),
		grant(3, func(g *GrantConsent) { g.Days = days("2025-06-01", "2025-07-01") }))
	registers := func(d meter.DayRange) Step {
		return grant(4, func(g *GrantConsent) {
			g.Classes, g.Granularity, g.Days = []meter.Class{meter.Registers}, meter.P1D, d
		})
	}
	withRegisters, err := Apply(f, registers(days("2025-05-03", "2025-06-21")), operator, f.SealedAt(), amsterdam)
	if err != nil {
		t.Fatal(err)
	}
	both := &testMarket{retention: 24, fields: withDaily.Fields(meter.Electricity)}
	for _, r := range withoutDaily.Rules(meter.EnergyManagement) {
		r.Classes = []meter.Class{meter.Registers, meter.Intervals}
		r.Granularity = meter.P1D
		both.rules = append(both.rules, r)
	}
	monthly := *both
	monthly.rules = append(withoutDaily.Rules(meter.EnergyManagement), meter.Rule{
		ID: "monthly", Basis: meter.SupplyPeriodic, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Registers}, Granularity: meter.P1M, Days: always(), RequiresSupply: true, Enabled: true,
	})
	may, june := days("2025-05-01", "2025-05-04"), days("2025-06-01", "2025-07-01")
	for _, c := range []struct {
		name       string
		m          market
		f          *LegalFile
		days       meter.DayRange
		kind       meter.Kind
		resolution meter.Resolution
		want       []string
	}{
		{
			name: "with daily reads", m: withDaily, f: f, days: may, kind: meter.Register,
			want: []string{
				"import_intervals 2025-05-01 2025-05-02: PT15M REGISTER by nl-consent-intervals",
				"import_intervals 2025-05-03 2025-05-04: PT15M REGISTER by nl-consent-intervals",
				"import_intervals 2025-05-02 2025-05-03: NO_CONSENT",
			},
		},
		{
			name: "without", m: withoutDaily, f: f, days: may, kind: meter.Register,
			want: []string{
				"import_intervals 2025-05-01 2025-05-02: KIND_NOT_AVAILABLE",
				"import_intervals 2025-05-02 2025-05-03: NO_CONSENT",
				"import_intervals 2025-05-03 2025-05-04: KIND_NOT_AVAILABLE",
			},
		},
		{
			name: "without, by month", m: withoutDaily, f: f, days: june, kind: meter.Register, resolution: meter.P1M,
			want: []string{"import_intervals 2025-06-01 2025-07-01: KIND_NOT_AVAILABLE"},
		},
		{
			name: "monthly reads are not enough", m: &monthly, f: f, days: june, kind: meter.Register, resolution: meter.P1M,
			want: []string{"import_intervals 2025-06-01 2025-07-01: KIND_NOT_AVAILABLE"},
		},
		{
			name: "what is withheld for another reason keeps it", m: withoutDaily, f: f, days: may, kind: meter.Register, resolution: 5,
			want: []string{"import_intervals 2025-05-01 2025-05-04: NOT_GRANTED_AT_THIS_GRANULARITY"},
		},
		{
			name: "consumption needs no register", m: withoutDaily, f: f, days: may, kind: meter.Consumption,
			want: []string{
				"import_intervals 2025-05-01 2025-05-02: PT15M CONSUMPTION by nl-consent-intervals",
				"import_intervals 2025-05-03 2025-05-04: PT15M CONSUMPTION by nl-consent-intervals",
				"import_intervals 2025-05-02 2025-05-03: NO_CONSENT",
			},
		},
		{
			name: "nor does a kind not said", m: withoutDaily, f: f, days: june,
			want: []string{"import_intervals 2025-06-01 2025-07-01: PT15M CONSUMPTION by nl-consent-intervals"},
		},
		{
			name: "a consent for registers, on its days", m: both, f: withRegisters, days: may, kind: meter.Register,
			want: []string{
				"import_intervals 2025-05-03 2025-05-04: P1D REGISTER by nl-consent-intervals",
				"import_intervals 2025-05-01 2025-05-02: KIND_NOT_AVAILABLE",
				"import_intervals 2025-05-02 2025-05-03: NO_CONSENT",
			},
		},
		{
			name: "and months that lie in them", m: both, f: withRegisters, days: june, kind: meter.Register, resolution: meter.P1M,
			want: []string{
				"import_intervals 2025-06-01 2025-06-21: PARTIAL_PERIOD",
				"import_intervals 2025-06-21 2025-07-01: KIND_NOT_AVAILABLE",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g, withheld, err := decide(caller(alpha), Request{
				EAN: home, Purpose: meter.EnergyManagement, Days: c.days, Fields: []meter.FieldCode{importIntervals}, Resolution: c.resolution, Kind: c.kind,
			}, c.f, c.m, storyNow)
			if got := render(c.m, g, withheld); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%v\n got %s\nwant %s", err, strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
			}
		})
	}
}

// A day may be given from the first instant of the next local day on, also
// where the clocks change, and consents count to the microsecond.
func TestDayIsOverAtLocalMidnight(t *testing.T) {
	t.Parallel()
	p := dutch(t)
	f := history(t, instant("2024-01-01T10:00:00Z"), Register{home, meter.Electricity},
		SetOccupancy{days("2020-01-01", "")}, SetSupply{alpha, days("2020-01-01", "")})
	for _, c := range []struct{ day, over string }{
		{"2025-12-31", "2025-12-31T23:00:00Z"},
		{"2026-02-28", "2026-02-28T23:00:00Z"},
		{"2026-03-28", "2026-03-28T23:00:00Z"}, // the day before summer time
		{"2026-03-29", "2026-03-29T22:00:00Z"}, // 23 hours
		{"2026-06-30", "2026-06-30T22:00:00Z"},
		{"2026-10-24", "2026-10-24T22:00:00Z"},
		{"2026-10-25", "2026-10-25T23:00:00Z"}, // 25 hours
	} {
		r := Request{EAN: home, Purpose: meter.EnergyManagement, Days: meter.DayRange{From: day(c.day), To: day(c.day) + 1}, Fields: []meter.FieldCode{importLow}}
		for _, now := range []struct {
			at   time.Time
			over bool
		}{{instant(c.over).Add(-time.Microsecond), false}, {instant(c.over), true}} {
			g, withheld, err := Decide(caller(alpha), r, f, p, now.at)
			if err != nil || g.Empty() == now.over || (len(withheld) == 1 && withheld[0].Reason == meter.PeriodInFuture) == now.over {
				t.Errorf("%s at %v: %v %v", c.day, now.at, withheld, err)
			}
			// Whatever zone the clock shows.
			g2, w2, _ := Decide(caller(alpha), r, f, p, now.at.In(time.FixedZone("", 14*3600)))
			if !reflect.DeepEqual(g, g2) || !reflect.DeepEqual(withheld, w2) {
				t.Errorf("%s: the clock's zone matters", c.day)
			}
		}
		// A month is over with its last day.
		if d := day(c.day); d.Month() != (d + 1).Month() {
			r.Purpose, r.Days.From = meter.Billing, d.Month().First()
			if g, _, _ := Decide(caller(alpha), r, f, p, instant(c.over).Add(-time.Microsecond)); !g.Empty() {
				t.Errorf("%s: month given before it was over", c.day)
			}
			if g, w, _ := Decide(caller(alpha), r, f, p, instant(c.over)); g.Empty() || len(w) != 0 {
				t.Errorf("%s: month over and not given: %v", c.day, w)
			}
		}
	}
}

func TestRetentionIsCountedInMonths(t *testing.T) {
	t.Parallel()
	p := dutch(t)
	f := history(t, instant("2024-01-01T10:00:00Z"), Register{home, meter.Electricity},
		SetOccupancy{days("2020-01-01", "")}, SetSupply{alpha, days("2020-01-01", "")})
	for _, c := range []struct{ now, oldest string }{
		{"2026-01-20T12:00:00Z", "2024-01-20"},
		{"2026-02-28T12:00:00Z", "2024-02-28"},
		{"2026-02-28T23:30:00Z", "2024-03-01"}, // 1 March there
		{"2028-02-29T12:00:00Z", "2026-02-28"},
	} {
		r := Request{EAN: home, Purpose: meter.EnergyManagement, Days: meter.DayRange{From: day(c.oldest) - 1, To: day(c.oldest) + 1}, Fields: []meter.FieldCode{importLow}}
		g, withheld, err := Decide(caller(alpha), r, f, p, instant(c.now))
		want := []Withheld{{importLow, meter.DayRange{From: day(c.oldest) - 1, To: day(c.oldest)}, meter.PeriodTooOld}}
		if err != nil || g.Empty() || !reflect.DeepEqual(withheld, want) {
			t.Errorf("at %s: %v %v", c.now, withheld, err)
		}
	}
}

func TestConsentIsValidToTheMicrosecond(t *testing.T) {
	t.Parallel()
	p := dutch(t)
	at, until := instant("2026-01-05T10:00:00Z"), instant("2026-01-20T10:00:00Z")
	f := history(t, at.Add(-3*time.Minute), Register{home, meter.Electricity}, SetOccupancy{days("2020-01-01", "")}, SetSupply{alpha, days("2020-01-01", "")},
		grant(1, func(g *GrantConsent) { g.ValidUntil = until }))
	revokedAt := instant("2026-01-10T10:00:00Z")
	revoked, err := Apply(f, RevokeConsent{uuid(1)}, operator, revokedAt, amsterdam)
	if err != nil {
		t.Fatal(err)
	}
	r := Request{EAN: home, Purpose: meter.EnergyManagement, Days: days("2025-05-01", "2025-05-02"), Fields: []meter.FieldCode{importIntervals}}
	for _, c := range []struct {
		file *LegalFile
		now  time.Time
		want meter.Reason // 0: granted
	}{
		{f, at.Add(-time.Microsecond), meter.NoConsent},
		{f, at, 0},
		{f, until.Add(-time.Microsecond), 0},
		{f, until, meter.ConsentExpired},
		{revoked, revokedAt, meter.ConsentRevoked},
		{revoked, revokedAt.Add(-time.Hour), meter.ConsentRevoked}, // a clock that is behind gives nothing
		{revoked, until, meter.ConsentRevoked},
	} {
		g, withheld, err := Decide(caller(alpha), r, c.file, p, c.now)
		if err != nil || g.Empty() != (c.want != 0) || c.want != 0 && (len(withheld) != 1 || withheld[0].Reason != c.want) {
			t.Errorf("version %d at %v: %v %v", c.file.Version(), c.now, withheld, err)
		}
	}
}

// testMarket is a market profile made in a test.
type testMarket struct {
	rules     []meter.Rule
	fields    []meter.Field
	retention int
	terms     *meter.ConsentTerms // nil: consents count for ever
}

func (m *testMarket) ID() meter.ProfileID { return meter.ProfileID{Country: "XX", Version: "test"} }
func (m *testMarket) ConsentTerms() meter.ConsentTerms {
	if m.terms == nil {
		return meter.ConsentTerms{LongestMonths: 1200}
	}
	return *m.terms
}

func (m *testMarket) Location() *time.Location { return amsterdam }
func (m *testMarket) RetentionMonths() int     { return m.retention }
func (m *testMarket) FieldByCode(c meter.FieldCode) (meter.Field, bool) {
	i := slices.IndexFunc(m.fields, func(f meter.Field) bool { return f.Code == c })
	if i < 0 {
		return meter.Field{}, false
	}
	return m.fields[i], true
}

func (m *testMarket) Rules(p meter.Purpose) []meter.Rule {
	var out []meter.Rule
	for _, r := range m.rules {
		if r.Purpose == p {
			out = append(out, r)
		}
	}
	return out
}

func always() meter.DayRange { return days("2012-01-01", "") }

// What rules can say beyond the Dutch ones.
func TestDecideRules(t *testing.T) {
	t.Parallel()
	p := dutch(t)
	catalogue := append(p.Fields(meter.Electricity), p.Fields(meter.Gas)...)
	both := []meter.Class{meter.Registers, meter.Intervals}
	rule := func(id string, basis meter.Basis, g meter.Resolution, change func(*meter.Rule)) meter.Rule {
		r := meter.Rule{ID: id, Basis: basis, Purpose: meter.EnergyManagement, Classes: both, Granularity: g, Days: always(), RequiresSupply: true, Enabled: true}
		if change != nil {
			change(&r)
		}
		return r
	}
	november := days("2025-11-01", "2025-12-01")
	for _, c := range []struct {
		name       string
		rules      []meter.Rule
		caller     meter.GLN
		days       meter.DayRange
		field      meter.FieldCode
		resolution meter.Resolution
		want       []string
	}{
		{
			name: "despite the opt-out", caller: beta, days: november, field: importLow,
			rules: []meter.Rule{rule("law", meter.SupplyPeriodic, meter.P1M, func(r *meter.Rule) { r.DespiteOptOut = true })},
			want:  []string{"import_low 2025-11-01 2025-12-01: P1M REGISTER by law"},
		},
		{
			name: "the first rule that grants", caller: beta, days: days("2025-08-01", "2025-08-03"), field: importIntervals,
			rules: []meter.Rule{rule("first", meter.SupplyDaily, meter.PT15M, nil), rule("second", meter.Consent, meter.PT15M, nil)},
			want:  []string{"import_intervals 2025-08-01 2025-08-03: PT15M CONSUMPTION by first"},
		},
		{
			name: "the finest when none is asked for", caller: beta, days: days("2025-08-01", "2025-08-03"), field: importIntervals,
			rules: []meter.Rule{rule("coarse", meter.SupplyDaily, meter.P1D, nil), rule("fine", meter.Consent, meter.PT15M, nil)},
			want:  []string{"import_intervals 2025-08-01 2025-08-03: PT15M CONSUMPTION by fine"},
		},
		{
			name: "the first that grants what is asked for", caller: beta, days: days("2025-08-01", "2025-08-03"), field: importIntervals, resolution: meter.P1D,
			rules: []meter.Rule{rule("coarse", meter.SupplyDaily, meter.P1D, nil), rule("fine", meter.Consent, meter.PT15M, nil)},
			want:  []string{"import_intervals 2025-08-01 2025-08-03: P1D CONSUMPTION by coarse"},
		},
		{
			name: "which need not be the first", caller: beta, days: days("2025-08-01", "2025-08-03"), field: importIntervals, resolution: meter.PT1H,
			rules: []meter.Rule{rule("coarse", meter.SupplyDaily, meter.P1D, nil), rule("fine", meter.Consent, meter.PT15M, nil)},
			want:  []string{"import_intervals 2025-08-01 2025-08-03: PT1H CONSUMPTION by fine"},
		},
		{
			name: "as fine does not matter where nothing finer is stored", caller: beta, days: days("2025-08-01", "2025-08-03"), field: importLow,
			rules: []meter.Rule{rule("first", meter.SupplyDaily, meter.P1D, nil), rule("finer", meter.SupplyPeriodic, meter.PT15M, nil)},
			want:  []string{"import_low 2025-08-01 2025-08-03: P1D REGISTER by first"},
		},
		{
			name: "granted finer than anything is stored", caller: beta, days: days("2025-08-01", "2025-08-03"), field: importLow, resolution: meter.PT1H,
			rules: []meter.Rule{rule("fine", meter.SupplyDaily, meter.PT15M, nil)},
			want:  []string{"import_low 2025-08-01 2025-08-03: FINER_THAN_STORED"},
		},
		{
			name: "a dated rule and its successor", caller: beta, days: days("2025-08-01", "2025-08-05"), field: importLow,
			rules: []meter.Rule{
				rule("old", meter.SupplyDaily, meter.P1D, func(r *meter.Rule) { r.Days = days("2012-01-01", "2025-08-02") }),
				rule("new", meter.SupplyDaily, meter.P1D, func(r *meter.Rule) { r.Days = days("2025-08-03", "") }),
			},
			want: []string{
				"import_low 2025-08-01 2025-08-02: P1D REGISTER by old",
				"import_low 2025-08-03 2025-08-05: P1D REGISTER by new",
				"import_low 2025-08-02 2025-08-03: NOT_COVERED",
			},
		},
		{
			name: "a month is one rule's", caller: beta, days: days("2025-08-01", "2025-10-01"), field: importLow,
			rules: []meter.Rule{
				rule("old", meter.SupplyDaily, meter.P1M, func(r *meter.Rule) { r.Days = days("2012-01-01", "2025-08-15") }),
				rule("new", meter.SupplyDaily, meter.P1M, func(r *meter.Rule) { r.Days = days("2025-08-15", "") }),
			},
			want: []string{
				"import_low 2025-09-01 2025-10-01: P1M REGISTER by new",
				"import_low 2025-08-01 2025-09-01: PARTIAL_PERIOD",
			},
		},
		{
			name: "consent without supply, where the market wants none", caller: gamma, days: days("2025-03-14", "2025-03-17"), field: importIntervals,
			rules: []meter.Rule{rule("mandate", meter.Consent, meter.PT15M, func(r *meter.Rule) { r.RequiresSupply = false })},
			want: []string{
				"import_intervals 2025-03-15 2025-03-17: PT15M CONSUMPTION by mandate",
				"import_intervals 2025-03-14 2025-03-15: NOT_OCCUPIED",
			},
		},
		{
			name: "and no word of the customer without either", caller: gamma, days: november, field: importLow,
			rules: []meter.Rule{rule("mandate", meter.Consent, meter.PT15M, func(r *meter.Rule) { r.RequiresSupply = false }), rule("daily", meter.SupplyDaily, meter.P1D, nil)},
			want:  []string{"import_low 2025-11-01 2025-12-01: NO_CONSENT"},
		},
		{
			name: "supply cannot be waived for a supply basis", caller: gamma, days: november, field: importLow,
			rules: []meter.Rule{rule("daily", meter.SupplyDaily, meter.P1D, func(r *meter.Rule) { r.RequiresSupply = false })},
			want:  []string{"import_low 2025-11-01 2025-12-01: NO_SUPPLY"},
		},
		{
			name: "a basis whose facts are not kept gives nothing", caller: beta, days: november, field: importLow,
			rules: []meter.Rule{rule("switch", meter.SwitchBasis, meter.P1D, nil), rule("move", meter.MoveBasis, meter.P1D, nil), rule("none", 0, meter.P1D, nil)},
			want:  []string{"import_low 2025-11-01 2025-12-01: PURPOSE_NOT_AVAILABLE"},
		},
		{
			name: "a rule switched off", caller: beta, days: november, field: importLow,
			rules: []meter.Rule{rule("off", meter.SupplyDaily, meter.P1D, func(r *meter.Rule) { r.Enabled = false })},
			want:  []string{"import_low 2025-11-01 2025-12-01: PURPOSE_NOT_AVAILABLE"},
		},
		{
			name: "the reason is that of the rule that came nearest", caller: beta, days: november, field: importLow, resolution: meter.P1D,
			rules: []meter.Rule{rule("consent", meter.Consent, meter.P1D, nil), rule("coarse", meter.SupplyPeriodic, meter.P1M, nil)},
			want: []string{
				"import_low 2025-11-01 2025-11-10: NOT_GRANTED_AT_THIS_GRANULARITY",
				"import_low 2025-11-10 2025-11-20: OPTED_OUT",
				"import_low 2025-11-20 2025-12-01: NOT_GRANTED_AT_THIS_GRANULARITY",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := &testMarket{rules: c.rules, fields: catalogue, retention: 24}
			g, withheld, err := decide(caller(c.caller), Request{
				EAN: home, Purpose: meter.EnergyManagement, Days: c.days, Fields: []meter.FieldCode{c.field}, Resolution: c.resolution,
			}, story(t), m, storyNow)
			if err != nil {
				t.Fatal(err)
			}
			if got := render(m, g, withheld); !slices.Equal(got, c.want) {
				t.Errorf("\n got %s\nwant %s", strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
			}
		})
	}
}

// What Grant hands out can be scribbled on.
func TestGrantIsImmutable(t *testing.T) {
	t.Parallel()
	g, _, err := Decide(caller(beta), Request{
		EAN: home, Purpose: meter.EnergyManagement, Days: days("2025-12-01", "2025-12-05"), Fields: []meter.FieldCode{importLow, importIntervals},
	}, story(t), dutch(t), storyNow)
	if err != nil {
		t.Fatal(err)
	}
	if g.Profile() != dutch(t).ID() {
		t.Errorf("decided by %s", g.Profile())
	}
	g.Items()[0] = GrantItem{}
	g.Reads()[0] = FieldDays{}
	if g.Items()[0].Rule != "nl-daily" || g.Reads()[0].Field != importLow || g.EAN() != home || !g.Covers(importLow, day("2025-12-05")) ||
		g.Covers(importLow, day("2025-12-06")) || g.Covers(importIntervals, day("2025-12-05")) || g.Covers(gas, day("2025-12-01")) {
		t.Error("a caller changed the grant, or it covers the wrong days")
	}
	var none Grant
	if !none.Empty() || none.Covers(importLow, day("2025-12-01")) || none.Reads() != nil || !none.EAN().IsZero() || none.Profile() != (meter.ProfileID{}) {
		t.Error("the zero Grant grants")
	}
}
