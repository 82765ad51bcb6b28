package authz

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/meter"
)

// markets are the embedded profiles. What is tested on them is tested on each:
// nothing of one market is in the code.
func markets(t testing.TB) map[string]*meter.Profile {
	t.Helper()
	out := map[string]*meter.Profile{}
	for _, yaml := range [][]byte{meter.NL(), meter.BE()} {
		p, err := meter.ParseProfile(yaml)
		if err != nil {
			t.Fatal(err)
		}
		out[p.Country()] = p
	}
	if len(out) != 2 {
		t.Fatalf("%d markets", len(out))
	}
	return out
}

// inMarket decides for named fields, and writes the decision with the basis in
// place of the rule, whose name is the market's.
func inMarket(t *testing.T, p *meter.Profile, f *LegalFile, c Caller, r Request, now time.Time, fields ...string) ([]string, Grant) {
	t.Helper()
	r.EAN = home
	for _, name := range fields {
		field, ok := p.Field(name)
		if !ok {
			t.Fatalf("no field %s", name)
		}
		r.Fields = append(r.Fields, field.Code)
	}
	g, withheld, err := Decide(c, r, f, p, now)
	if err != nil {
		t.Fatal(err)
	}
	if g.Profile() != p.ID() {
		t.Errorf("decided by %s", g.Profile())
	}
	lines := render(p, g, withheld)
	for _, item := range g.Items() {
		if !slices.ContainsFunc(p.Rules(r.Purpose), func(x meter.Rule) bool { return x.ID == item.Rule && x.Basis == item.Basis }) {
			t.Errorf("%s is no rule on %s for %s", item.Rule, item.Basis, r.Purpose)
		}
		for i := range lines {
			lines[i] = strings.Replace(lines[i], "by "+item.Rule, "by "+item.Basis.String(), 1)
		}
	}
	slices.Sort(lines)
	return lines, g
}

// One suite for every market, on the story of decide_test.go.
func TestMarkets(t *testing.T) {
	t.Parallel()
	const low, quarters = "import_low", "import_intervals"
	for _, c := range []struct {
		name    string
		caller  meter.GLN
		staff   bool
		request Request
		field   string
		want    []string
		reads   string
	}{
		{
			name: "the end read of who supplied", caller: alpha, request: Request{Purpose: meter.Switch, Days: days("2025-06-25", "2025-07-05")}, field: low,
			want: []string{
				low + " 2025-06-25 2025-07-01: NOT_COVERED",
				low + " 2025-07-01 2025-07-02: P1D REGISTER by SWITCH",
				low + " 2025-07-02 2025-07-05: NO_SUPPLY",
			},
			reads: "2025-07-01",
		},
		{
			name: "is the begin read of who supplies", caller: beta, request: Request{Purpose: meter.Switch, Days: days("2025-06-25", "2025-07-05")}, field: low,
			want: []string{
				low + " 2025-06-25 2025-07-01: NO_SUPPLY",
				low + " 2025-07-01 2025-07-02: P1D REGISTER by SWITCH",
				low + " 2025-07-02 2025-07-05: NOT_COVERED",
			},
			reads: "2025-07-01",
		},
		{
			name: "and nobody else's", caller: gamma, request: Request{Purpose: meter.Switch, Days: days("2025-06-25", "2025-07-05")}, field: low,
			want: []string{low + " 2025-06-25 2025-07-05: NO_SUPPLY"},
		},
		{
			name: "as asked", caller: beta, request: Request{Purpose: meter.Switch, Days: days("2025-07-01", "2025-07-02"), Resolution: meter.P1D, Kind: meter.Register}, field: low,
			want:  []string{low + " 2025-07-01 2025-07-02: P1D REGISTER by SWITCH"},
			reads: "2025-07-01",
		},
		{
			name: "no consumption of the day", caller: beta, request: Request{Purpose: meter.Switch, Days: days("2025-07-01", "2025-07-02"), Kind: meter.Consumption}, field: low,
			want: []string{low + " 2025-07-01 2025-07-02: KIND_NOT_AVAILABLE"},
		},
		{
			name: "no month", caller: beta, request: Request{Purpose: meter.Switch, Days: days("2025-07-01", "2025-08-01"), Resolution: meter.P1M}, field: low,
			want: []string{low + " 2025-07-01 2025-07-02: PARTIAL_PERIOD", low + " 2025-07-02 2025-08-01: NOT_COVERED"},
		},
		{
			name: "nothing finer", caller: beta, request: Request{Purpose: meter.Switch, Days: days("2025-07-01", "2025-07-02"), Resolution: meter.PT1H}, field: low,
			want: []string{low + " 2025-07-01 2025-07-02: NOT_GRANTED_AT_THIS_GRANULARITY"},
		},
		{
			name: "no intervals", caller: beta, request: Request{Purpose: meter.Switch, Days: days("2025-07-01", "2025-07-02")}, field: quarters,
			want: []string{quarters + " 2025-07-01 2025-07-02: NOT_COVERED"},
		},
		{
			name: "the read of a move, for one who supplies both", caller: alpha, request: Request{Purpose: meter.Move, Days: days("2025-03-14", "2025-03-17")}, field: low,
			want: []string{
				low + " 2025-03-14 2025-03-15: NOT_COVERED",
				low + " 2025-03-15 2025-03-16: P1D REGISTER by MOVE",
				low + " 2025-03-16 2025-03-17: NOT_COVERED",
			},
			reads: "2025-03-15",
		},
		{
			name: "and not for one who came later", caller: beta, request: Request{Purpose: meter.Move, Days: days("2025-03-14", "2025-03-17")}, field: low,
			want: []string{low + " 2025-03-14 2025-03-17: NO_SUPPLY"},
		},
		{
			name: "a switch is no move", caller: beta, request: Request{Purpose: meter.Move, Days: days("2025-07-01", "2025-07-02")}, field: low,
			want: []string{low + " 2025-07-01 2025-07-02: NOT_COVERED"},
		},
		{
			name: "a move is no switch", caller: alpha, request: Request{Purpose: meter.Switch, Days: days("2025-03-15", "2025-03-16")}, field: low,
			want: []string{low + " 2025-03-15 2025-03-16: NOT_COVERED"},
		},
		{
			name: "an employee, for who lives there today", staff: true, request: Request{Purpose: meter.CustomerService, Days: days("2025-03-13", "2025-03-17")}, field: low,
			want: []string{
				low + " 2025-03-13 2025-03-15: NOT_OCCUPIED",
				low + " 2025-03-15 2025-03-17: P1D REGISTER by CUSTOMER_SERVICE",
			},
			reads: "2025-03-15 2025-03-16 2025-03-17",
		},
		{
			name: "quarters too", staff: true, request: Request{Purpose: meter.CustomerService, Days: days("2025-03-14", "2025-03-17"), Resolution: meter.PT15M}, field: quarters,
			want: []string{
				quarters + " 2025-03-14 2025-03-15: NOT_OCCUPIED",
				quarters + " 2025-03-15 2025-03-17: PT15M CONSUMPTION by CUSTOMER_SERVICE",
			},
			reads: "2025-03-15 2025-03-16",
		},
		{
			name: "and as registers", staff: true, request: Request{Purpose: meter.CustomerService, Days: days("2025-12-01", "2025-12-02"), Kind: meter.Register}, field: quarters,
			want: []string{quarters + " 2025-12-01 2025-12-02: PT15M REGISTER by CUSTOMER_SERVICE"},
		},
		{
			name: "whole months of that customer", staff: true, request: Request{Purpose: meter.CustomerService, Days: days("2025-03-01", "2025-05-01"), Resolution: meter.P1M}, field: low,
			want: []string{
				low + " 2025-03-01 2025-03-15: NOT_OCCUPIED",
				low + " 2025-03-15 2025-04-01: PARTIAL_PERIOD",
				low + " 2025-04-01 2025-05-01: P1M REGISTER by CUSTOMER_SERVICE",
			},
			reads: "2025-04-01 2025-05-01",
		},
		{
			name: "not what the meter was not to be read for", staff: true, request: Request{Purpose: meter.CustomerService, Days: days("2025-11-09", "2025-11-11")}, field: low,
			want: []string{
				low + " 2025-11-09 2025-11-10: P1D REGISTER by CUSTOMER_SERVICE",
				low + " 2025-11-10 2025-11-11: OPTED_OUT",
			},
		},
		{
			name: "a day must be over", staff: true, request: Request{Purpose: meter.CustomerService, Days: days("2026-01-19", "2026-01-21")}, field: low,
			want: []string{
				low + " 2026-01-19 2026-01-20: P1D REGISTER by CUSTOMER_SERVICE",
				low + " 2026-01-20 2026-01-21: PERIOD_IN_FUTURE",
			},
			reads: "2026-01-19 2026-01-20",
		},
		{
			name: "an employee rests on no supplier's basis", staff: true, request: Request{Purpose: meter.Billing, Days: days("2025-08-01", "2025-09-01")}, field: low,
			want: []string{low + " 2025-08-01 2025-09-01: PURPOSE_NOT_AVAILABLE"},
		},
		{
			name: "nor on a consent", staff: true, request: Request{Purpose: meter.EnergyManagement, Days: days("2025-08-01", "2025-09-01")}, field: quarters,
			want: []string{quarters + " 2025-08-01 2025-09-01: PURPOSE_NOT_AVAILABLE"},
		},
		{
			name: "nor on a switch", staff: true, request: Request{Purpose: meter.Switch, Days: days("2025-07-01", "2025-07-02")}, field: low,
			want: []string{low + " 2025-07-01 2025-07-02: PURPOSE_NOT_AVAILABLE"},
		},
		{
			name: "a supplier rests on no employee's", caller: beta, request: Request{Purpose: meter.CustomerService, Days: days("2025-08-01", "2025-08-02")}, field: low,
			want: []string{low + " 2025-08-01 2025-08-02: PURPOSE_NOT_AVAILABLE"},
		},
		{
			name: "the bill", caller: alpha, request: Request{Purpose: meter.Billing, Days: days("2025-05-01", "2025-08-01")}, field: low,
			want: []string{
				low + " 2025-05-01 2025-07-01: P1M REGISTER by SUPPLY_PERIODIC",
				low + " 2025-07-01 2025-08-01: NO_SUPPLY",
			},
			reads: "2025-05-01 2025-06-01 2025-07-01",
		},
		{
			name: "quarters on consent", caller: beta, request: Request{Purpose: meter.EnergyManagement, Days: days("2025-08-01", "2025-08-03")}, field: quarters,
			want:  []string{quarters + " 2025-08-01 2025-08-03: PT15M CONSUMPTION by CONSENT"},
			reads: "2025-08-01 2025-08-02",
		},
		{
			name: "but not while opted out", caller: beta, request: Request{Purpose: meter.EnergyManagement, Days: days("2025-11-09", "2025-11-11")}, field: quarters,
			want: []string{
				quarters + " 2025-11-09 2025-11-10: PT15M CONSUMPTION by CONSENT",
				quarters + " 2025-11-10 2025-11-11: OPTED_OUT",
			},
		},
	} {
		for country, p := range markets(t) {
			t.Run(country+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				var who Caller = caller(c.caller)
				if c.staff {
					field, _ := p.Field(c.field)
					who = toRead(c.request.Days, field.Code)
				}
				got, g := inMarket(t, p, story(t), who, c.request, storyNow, c.field)
				if !slices.Equal(got, c.want) {
					t.Errorf("\n got %s\nwant %s", strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
				}
				var read []string
				for _, r := range g.Reads() {
					for d := range r.Days.All() {
						read = append(read, d.String())
					}
				}
				if c.reads != "" && strings.Join(read, " ") != c.reads {
					t.Errorf("reads %v, want %s", read, c.reads)
				}
			})
		}
	}
}

// What the two markets answer differently, to the same question.
func TestMarketsDiffer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		caller  meter.GLN
		request Request
		field   string
		want    map[string][]string
	}{
		{
			name: "daily reads without consent", caller: beta, request: Request{Purpose: meter.EnergyManagement, Days: days("2025-08-01", "2025-08-02")}, field: "import_low",
			want: map[string][]string{
				"NL": {"import_low 2025-08-01 2025-08-02: P1D REGISTER by SUPPLY_DAILY"},
				"BE": {"import_low 2025-08-01 2025-08-02: NO_CONSENT"},
			},
		},
		{
			name: "a mandate of who supplies nobody", caller: gamma, request: Request{Purpose: meter.EnergyManagement, Days: days("2025-08-01", "2025-08-02")}, field: "import_intervals",
			want: map[string][]string{
				"NL": {"import_intervals 2025-08-01 2025-08-02: NO_SUPPLY"},
				"BE": {"import_intervals 2025-08-01 2025-08-02: PT15M CONSUMPTION by CONSENT"},
			},
		},
		{
			name: "past the retention of one, and the lookback of the other", caller: alpha, request: Request{Purpose: meter.Billing, Days: days("2023-12-01", "2024-01-01")}, field: "import_low",
			want: map[string][]string{
				"NL": {"import_low 2023-12-01 2024-01-01: PERIOD_TOO_OLD"},
				"BE": {"import_low 2023-12-01 2024-01-01: PERIOD_TOO_OLD"},
			},
		},
		{
			name: "a mandate within the longer retention", caller: alpha, request: Request{Purpose: meter.EnergyManagement, Days: days("2023-12-01", "2023-12-02")}, field: "import_low",
			want: map[string][]string{
				"NL": {"import_low 2023-12-01 2023-12-02: PERIOD_TOO_OLD"},
				"BE": {"import_low 2023-12-01 2023-12-02: NO_CONSENT"},
			},
		},
	} {
		for country, p := range markets(t) {
			if got, _ := inMarket(t, p, story(t), caller(c.caller), c.request, storyNow, c.field); !slices.Equal(got, c.want[country]) {
				t.Errorf("%s: %s: %v", country, c.name, got)
			}
		}
	}
}

// Where something begins or ends, each has its own side of it.
func TestBoundaries(t *testing.T) {
	t.Parallel()
	occupancy := func(from, to string) Step { return SetOccupancy{days(from, to)} }
	supply := func(g meter.GLN, from, to string) Step { return SetSupply{g, days(from, to)} }
	// The first customer leaves on 15 March, and alpha on the 20th; the second
	// comes on 1 April, and is beta's.
	vacancy := []Step{occupancy("2023-01-01", "2025-03-15"), occupancy("2025-04-01", ""), supply(alpha, "2023-01-01", "2025-03-20"), supply(beta, "2025-03-20", "")}
	march := days("2025-03-10", "2025-04-05")
	for _, c := range []struct {
		name    string
		steps   []Step
		caller  meter.GLN
		purpose meter.Purpose
		days    meter.DayRange
		want    []string // of import_low
	}{
		{
			"who moved out is the old supplier's", vacancy, alpha, meter.Move, march,
			[]string{"2025-03-10 2025-03-15: NOT_COVERED", "2025-03-15 2025-03-16: P1D REGISTER by MOVE", "2025-03-16 2025-03-21: NOT_COVERED", "2025-03-21 2025-04-05: NO_SUPPLY"},
		},
		{
			"who moved in the new one's", vacancy, beta, meter.Move, march,
			[]string{"2025-03-10 2025-03-20: NO_SUPPLY", "2025-03-20 2025-04-01: NOT_COVERED", "2025-04-01 2025-04-02: P1D REGISTER by MOVE", "2025-04-02 2025-04-05: NOT_COVERED"},
		},
		{
			"an empty house has no switch: the old side", vacancy, alpha, meter.Switch, march,
			[]string{"2025-03-10 2025-03-20: NOT_COVERED", "2025-03-20 2025-03-21: NOT_OCCUPIED", "2025-03-21 2025-04-05: NO_SUPPLY"},
		},
		{
			"an empty house has no switch: the new side", vacancy, beta, meter.Switch, march,
			[]string{"2025-03-10 2025-03-20: NO_SUPPLY", "2025-03-20 2025-03-21: NOT_OCCUPIED", "2025-03-21 2025-04-05: NOT_COVERED"},
		},
		{
			"moved and switched on one day: the old side",
			[]Step{occupancy("2023-01-01", ""), supply(alpha, "2023-01-01", ""), occupancy("2025-03-15", ""), supply(beta, "2025-03-15", "")}, alpha, meter.Move, days("2025-03-15", "2025-03-16"),
			[]string{"2025-03-15 2025-03-16: P1D REGISTER by MOVE"},
		},
		{
			"moved and switched on one day: the new side",
			[]Step{occupancy("2023-01-01", ""), supply(alpha, "2023-01-01", ""), occupancy("2025-03-15", ""), supply(beta, "2025-03-15", "")}, beta, meter.Move, days("2025-03-15", "2025-03-16"),
			[]string{"2025-03-15 2025-03-16: P1D REGISTER by MOVE"},
		},
		{
			"whom the next supplier's customer concerns not", // the same as if nobody had come
			[]Step{occupancy("2023-01-01", "2025-03-01"), occupancy("2025-03-15", ""), supply(alpha, "2023-01-01", "2025-03-15"), supply(beta, "2025-03-15", "")}, alpha, meter.Move, days("2025-03-15", "2025-03-16"),
			[]string{"2025-03-15 2025-03-16: NOT_COVERED"},
		},
		{
			"if nobody had come",
			[]Step{occupancy("2023-01-01", "2025-03-01"), supply(alpha, "2023-01-01", "2025-03-15"), supply(beta, "2025-03-15", "")}, alpha, meter.Move, days("2025-03-15", "2025-03-16"),
			[]string{"2025-03-15 2025-03-16: NOT_COVERED"},
		},
		{
			"whom the last supplier's customer concerns not",
			[]Step{occupancy("2023-01-01", "2025-03-15"), supply(alpha, "2023-01-01", "2025-03-15"), supply(beta, "2025-03-15", "")}, beta, meter.Move, days("2025-03-15", "2025-03-16"),
			[]string{"2025-03-15 2025-03-16: NOT_COVERED"},
		},
		{
			"a contract renewed is no switch",
			[]Step{occupancy("2023-01-01", ""), supply(alpha, "2023-01-01", "2025-03-15"), supply(alpha, "2025-03-15", "")}, alpha, meter.Switch, days("2025-03-14", "2025-03-17"),
			[]string{"2025-03-14 2025-03-17: NOT_COVERED"},
		},
		{
			"away for a day, and back",
			[]Step{occupancy("2023-01-01", ""), supply(alpha, "2023-01-01", "2025-03-15"), supply(beta, "2025-03-15", "2025-03-16"), supply(alpha, "2025-03-16", "")}, alpha, meter.Switch, days("2025-03-14", "2025-03-18"),
			[]string{"2025-03-14 2025-03-15: NOT_COVERED", "2025-03-15 2025-03-17: P1D REGISTER by SWITCH", "2025-03-17 2025-03-18: NOT_COVERED"},
		},
		{
			"opted out on both sides",
			[]Step{occupancy("2023-01-01", ""), supply(alpha, "2023-01-01", ""), supply(beta, "2025-03-15", ""), SetOptOut{days("2025-03-01", "2025-04-01")}}, alpha, meter.Switch, days("2025-03-14", "2025-03-17"),
			[]string{"2025-03-14 2025-03-15: NOT_COVERED", "2025-03-15 2025-03-16: P1D REGISTER by SWITCH", "2025-03-16 2025-03-17: NO_SUPPLY"},
		},
		{
			"a switch today has its read", // it is noon
			[]Step{occupancy("2023-01-01", ""), supply(alpha, "2023-01-01", ""), supply(beta, "2026-01-20", "")}, beta, meter.Switch, days("2026-01-18", "2026-01-22"),
			[]string{"2026-01-18 2026-01-20: NO_SUPPLY", "2026-01-20 2026-01-21: P1D REGISTER by SWITCH", "2026-01-21 2026-01-22: PERIOD_IN_FUTURE"},
		},
		{
			"one tomorrow has none",
			[]Step{occupancy("2023-01-01", ""), supply(alpha, "2023-01-01", ""), supply(beta, "2026-01-21", "")}, alpha, meter.Switch, days("2026-01-19", "2026-01-23"),
			[]string{"2026-01-19 2026-01-20: NOT_COVERED", "2026-01-20 2026-01-23: PERIOD_IN_FUTURE"},
		},
		{
			"one past the retention has none any more",
			[]Step{occupancy("2020-01-01", ""), supply(alpha, "2020-01-01", ""), supply(beta, "2024-01-19", "")}, beta, meter.Switch, days("2024-01-18", "2024-01-21"),
			[]string{"2024-01-18 2024-01-20: PERIOD_TOO_OLD", "2024-01-20 2024-01-21: NOT_COVERED"},
		},
		{
			"one on its last day has",
			[]Step{occupancy("2020-01-01", ""), supply(alpha, "2020-01-01", ""), supply(beta, "2024-01-20", "")}, alpha, meter.Switch, days("2024-01-19", "2024-01-22"),
			[]string{"2024-01-19 2024-01-20: PERIOD_TOO_OLD", "2024-01-20 2024-01-21: P1D REGISTER by SWITCH", "2024-01-21 2024-01-22: NO_SUPPLY"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := history(t, t0, append([]Step{Register{home, meter.Electricity}}, c.steps...)...)
			want := slices.Clone(c.want)
			for i := range want {
				want[i] = "import_low " + want[i]
			}
			got, g := inMarket(t, dutch(t), f, caller(c.caller), Request{Purpose: c.purpose, Days: c.days}, storyNow, "import_low")
			if !slices.Equal(got, want) {
				t.Errorf("\n got %s\nwant %s", strings.Join(got, "\n     "), strings.Join(want, "\n     "))
			}
			for _, item := range g.Items() {
				if !item.Spec.Points || !reflect.DeepEqual(g.Reads(), []FieldDays{{item.Spec.Field.Code, item.Spec.Days}}) {
					t.Errorf("item %+v reads %+v", item, g.Reads())
				}
			}
		})
	}
}

// Rules on boundaries beside others, and wrongly made ones.
func TestBoundaryRules(t *testing.T) {
	t.Parallel()
	catalogue := dutch(t).Fields(meter.Electricity)
	rule := func(id string, basis meter.Basis, on meter.Occasion, g meter.Resolution, change func(*meter.Rule)) meter.Rule {
		r := meter.Rule{ID: id, Basis: basis, Purpose: meter.Billing, Classes: []meter.Class{meter.Registers, meter.Intervals}, Granularity: g, On: on, Days: always(), RequiresSupply: true, Enabled: true}
		if change != nil {
			change(&r)
		}
		return r
	}
	single := rule("switch", meter.SwitchBasis, meter.SupplyBoundary, meter.P1D, nil)
	around := days("2025-06-30", "2025-07-03")
	for _, c := range []struct {
		name       string
		rules      []meter.Rule
		caller     meter.GLN
		days       meter.DayRange
		field      meter.FieldCode
		resolution meter.Resolution
		kind       meter.Kind
		want       []string
	}{
		{
			name: "a day that is given as such is not a single read", caller: beta, days: around, field: importLow,
			rules: []meter.Rule{single, rule("days", meter.SupplyDaily, meter.AllDays, meter.P1D, nil)},
			want:  []string{"import_low 2025-07-01 2025-07-03: P1D REGISTER by days", "import_low 2025-06-30 2025-07-01: NO_SUPPLY"},
		},
		{
			name: "the read at the end of days", caller: alpha, days: around, field: importLow,
			rules: []meter.Rule{single, rule("days", meter.SupplyDaily, meter.AllDays, meter.P1D, nil)},
			want:  []string{"import_low 2025-06-30 2025-07-01: P1D REGISTER by days", "import_low 2025-07-01 2025-07-02: P1D REGISTER by switch", "import_low 2025-07-02 2025-07-03: NO_SUPPLY"},
		},
		{
			name: "is not made a day of", caller: alpha, days: around, field: importLow, kind: meter.Consumption,
			rules: []meter.Rule{single, rule("days", meter.SupplyDaily, meter.AllDays, meter.P1D, nil)},
			want:  []string{"import_low 2025-06-30 2025-07-01: P1D CONSUMPTION by days", "import_low 2025-07-01 2025-07-02: KIND_NOT_AVAILABLE", "import_low 2025-07-02 2025-07-03: NO_SUPPLY"},
		},
		{
			name: "nor does it fill up a month", caller: alpha, days: days("2025-07-01", "2025-08-01"), field: importLow, resolution: meter.P1M,
			rules: []meter.Rule{single, rule("months", meter.SupplyPeriodic, meter.AllDays, meter.P1M, nil)},
			want:  []string{"import_low 2025-07-01 2025-07-02: PARTIAL_PERIOD", "import_low 2025-07-02 2025-08-01: NO_SUPPLY"},
		},
		{
			name: "it gives no intervals, whatever classes it lists", caller: beta, days: around, field: importIntervals,
			rules: []meter.Rule{single},
			want:  []string{"import_intervals 2025-06-30 2025-07-03: NOT_COVERED"},
		},
		{
			name: "nor intervals as registers", caller: beta, days: days("2025-07-01", "2025-07-02"), field: importIntervals, kind: meter.Register,
			rules: []meter.Rule{single, rule("quarters", meter.SupplyDaily, meter.AllDays, meter.PT15M, func(r *meter.Rule) { r.Classes = []meter.Class{meter.Intervals} })},
			want:  []string{"import_intervals 2025-07-01 2025-07-02: KIND_NOT_AVAILABLE"},
		},
		{
			name: "a switch on all days is no rule", caller: beta, days: around, field: importLow,
			rules: []meter.Rule{rule("x", meter.SwitchBasis, meter.AllDays, meter.P1D, nil)},
			want:  []string{"import_low 2025-06-30 2025-07-03: PURPOSE_NOT_AVAILABLE"},
		},
		{
			name: "nor at moves, by the month, or on another basis", caller: beta, days: around, field: importLow,
			rules: []meter.Rule{
				rule("a", meter.SwitchBasis, meter.OccupancyBoundary, meter.P1D, nil), rule("b", meter.MoveBasis, meter.SupplyBoundary, meter.P1D, nil),
				rule("c", meter.SwitchBasis, meter.SupplyBoundary, meter.P1M, nil), rule("d", meter.Consent, meter.SupplyBoundary, meter.P1D, nil),
				rule("e", meter.SupplyDaily, meter.SupplyBoundary, meter.P1D, nil), rule("f", meter.SwitchBasis, 7, meter.P1D, nil),
				rule("g", meter.CustomerServiceBasis, meter.AllDays, meter.P1D, nil), rule("h", meter.CustomerServiceBasis, meter.SupplyBoundary, meter.P1D, nil),
			},
			want: []string{"import_low 2025-06-30 2025-07-03: PURPOSE_NOT_AVAILABLE"},
		},
		{
			name: "dated by the day of the read", caller: alpha, days: around, field: importLow,
			rules: []meter.Rule{rule("old", meter.SwitchBasis, meter.SupplyBoundary, meter.P1D, func(r *meter.Rule) { r.Days.To = day("2025-07-01") })},
			want:  []string{"import_low 2025-06-30 2025-07-03: NOT_COVERED"},
		},
		{
			name: "further back than it reaches", caller: alpha, days: around, field: importLow,
			rules: []meter.Rule{rule("late", meter.SwitchBasis, meter.SupplyBoundary, meter.P1D, func(r *meter.Rule) { r.Lookback = 6 })},
			want:  []string{"import_low 2025-06-30 2025-07-03: PERIOD_TOO_OLD"},
		},
		{
			name: "where others reach, theirs is the reason", caller: alpha, days: around, field: importLow, resolution: meter.P1D,
			rules: []meter.Rule{rule("late", meter.SupplyDaily, meter.AllDays, meter.P1D, func(r *meter.Rule) { r.Lookback = 6 }), rule("months", meter.SupplyPeriodic, meter.AllDays, meter.P1M, nil)},
			want:  []string{"import_low 2025-06-30 2025-07-01: NOT_GRANTED_AT_THIS_GRANULARITY", "import_low 2025-07-01 2025-07-03: NO_SUPPLY"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := &testMarket{rules: c.rules, fields: catalogue, retention: 24}
			g, withheld, err := decide(caller(c.caller), Request{
				EAN: home, Purpose: meter.Billing, Days: c.days, Fields: []meter.FieldCode{c.field}, Resolution: c.resolution, Kind: c.kind,
			}, story(t), m, storyNow)
			if got := render(m, g, withheld); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%v\n got %s\nwant %s", err, strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
			}
		})
	}
	// Who is switched away from and back to every day has a read of every day of
	// a month, and still no month.
	daily := []Step{Register{home, meter.Electricity}, SetOccupancy{days("2023-01-01", "")}}
	for d := day("2025-04-30"); d < day("2025-06-03"); d += 2 {
		daily = append(daily, SetSupply{alpha, meter.DayRange{From: d, To: d + 1}})
	}
	often := history(t, t0, daily...)
	for resolution, want := range map[meter.Resolution]string{
		0:         "import_low 2025-05-01 2025-06-01: P1D REGISTER by switch",
		meter.P1M: "import_low 2025-05-01 2025-06-01: PARTIAL_PERIOD",
	} {
		m := &testMarket{rules: []meter.Rule{single}, fields: catalogue, retention: 24}
		g, withheld, err := decide(caller(alpha), Request{EAN: home, Purpose: meter.Billing, Days: days("2025-05-01", "2025-06-01"), Fields: []meter.FieldCode{importLow}, Resolution: resolution}, often, m, storyNow)
		if got := render(m, g, withheld); err != nil || !slices.Equal(got, []string{want}) || resolution == 0 && g.Covers(importLow, day("2025-06-01")) {
			t.Errorf("%v %v", got, err)
		}
	}
	// An opt-out counts by the side: the day that the read ends, or begins.
	f := history(t, t0, Register{home, meter.Electricity}, SetOccupancy{days("2023-01-01", "")}, SetSupply{alpha, days("2023-01-01", "")},
		SetSupply{beta, days("2025-07-01", "")}, SetOptOut{days("2025-06-01", "2025-07-01")})
	for who, want := range map[meter.GLN]string{alpha: "import_low 2025-07-01 2025-07-02: OPTED_OUT", beta: "import_low 2025-07-01 2025-07-02: P1D REGISTER by switch"} {
		m := &testMarket{rules: []meter.Rule{single}, fields: catalogue, retention: 24}
		g, withheld, err := decide(caller(who), Request{EAN: home, Purpose: meter.Billing, Days: days("2025-07-01", "2025-07-02"), Fields: []meter.FieldCode{importLow}}, f, m, storyNow)
		if got := render(m, g, withheld); err != nil || !slices.Equal(got, []string{want}) {
			t.Errorf("%v %v", got, err)
		}
	}
}

// A profile without terms of consents: none counts.
func TestNoTermsNoConsent(t *testing.T) {
	t.Parallel()
	m := &testMarket{retention: 24, fields: dutch(t).Fields(meter.Electricity), rules: dutch(t).Rules(meter.EnergyManagement), terms: &meter.ConsentTerms{}}
	g, withheld, err := decide(caller(beta), Request{EAN: home, Purpose: meter.EnergyManagement, Days: days("2025-08-01", "2025-08-02"), Fields: []meter.FieldCode{importIntervals}}, story(t), m, storyNow)
	if want := "import_intervals 2025-08-01 2025-08-02: CONSENT_EXPIRED"; err != nil || !slices.Equal(render(m, g, withheld), []string{want}) {
		t.Errorf("%v %v", render(m, g, withheld), err)
	}
}

// marketWorld is a random world under a real profile.
func (d dice) marketWorld(p *meter.Profile) world {
	w := d.world()
	w.r.Purpose = pick(d, meter.Billing, meter.EnergyManagement, meter.Switch, meter.Move, meter.Switch, meter.Move, meter.CustomerService)
	if w.r.Kind > 2 || w.r.Purpose > meter.EnergyManagement && d.once(2) {
		w.r.Kind, w.r.Resolution = 0, 0
	}
	for i := range w.r.Fields {
		w.r.Fields[i] = pick(d, pick(d, p.Fields(meter.Electricity)...), pick(d, p.Fields(meter.Gas)...)).Code
	}
	return w
}

// In every market Decide agrees with the oracle.
func TestMarketsAgreeWithOracle(t *testing.T) {
	t.Parallel()
	all := markets(t)
	for country, p := range all {
		t.Run(country, func(t *testing.T) {
			t.Parallel()
			singles := 0
			agrees := func(t *rapid.T) {
				w := roll(t).marketWorld(p)
				f := w.file(t)
				for _, me := range []meter.GLN{alpha, beta} {
					g, withheld, err := Decide(caller(me), w.r, f, p, w.now)
					if err != nil {
						continue
					}
					o := newOracle(me, w.r, openBook(f), p, w.now)
					got, want := verdicts(t, w.r, g, withheld), o.decide()
					for k, v := range want {
						if got[k] != v {
							t.Fatalf("%v on %s: got %+v, want %+v", k.field, k.day, got[k], v)
						}
						if v.single {
							singles++
						}
					}
					if reads := o.reads(want); !reflect.DeepEqual(readSet(g), reads) {
						t.Fatalf("reads %v, want %v", readSet(g), reads)
					}
				}
			}
			// Not every hundred worlds have one.
			for n := 0; n < 5 && singles == 0; n++ {
				rapid.Check(t, agrees)
			}
			if singles == 0 {
				t.Error("no single read in any world")
			}
		})
	}
}

// What leaves is made of the blocks in the grant and of no others: with all
// blocks there it is the same. And single reads stay single: every one of them
// is of a day that was granted, and none is subtracted.
func TestNothingLeavesBesideTheGrant(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := roll(t).world()
		w.r.Fields = []meter.FieldCode{1}
		g, _, err := w.decide(t, alpha)
		if err != nil || g.Empty() {
			return
		}
		all, granted := map[meter.Day]*meter.Block{}, map[meter.Day]*meter.Block{}
		for d := w.r.Days.From - 1; d <= w.r.Days.To+1; d++ {
			b := &meter.Block{Day: d, Resolution: meter.P1D, Start: meter.Null, Values: []meter.Value{meter.Value(d) * meter.Value(d)}}
			all[d] = b
			if g.Covers(1, d) {
				granted[d] = b
			}
		}
		for _, item := range g.Items() {
			series, short := meter.Assemble(item.Spec, all, amsterdam)
			same, short2 := meter.Assemble(item.Spec, granted, amsterdam)
			if !reflect.DeepEqual(series, same) || !reflect.DeepEqual(short, short2) {
				t.Fatalf("item %+v: %+v of all blocks, %+v of those granted", item, series, same)
			}
			if !item.Spec.Points {
				continue
			}
			if len(short) > 0 || len(series) != 1 || series[0].Kind != meter.Register || series[0].Expected != item.Spec.Days.Len() || series[0].Delivered != series[0].Expected {
				t.Fatalf("item %+v gives %+v %+v", item, series, short)
			}
			for _, s := range series[0].Days {
				if !item.Spec.Days.Contains(s.Day) || s.Values[0] != meter.Value(s.Day)*meter.Value(s.Day) {
					t.Fatalf("item %+v gives %+v", item, s)
				}
			}
		}
	})
}
