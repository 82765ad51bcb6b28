package authz_test

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/authz"
	"kluis/meter"
)

type party struct{ gln meter.GLN }

func (p party) Supplier() meter.GLN       { return p.gln }
func (p party) Employee() *authz.Employee { return nil }

func relationParty(t interface{ Fatal(...any) }, n int64) party {
	// GLNs with their check digits.
	g, err := meter.ParseGLN([]string{"8712423010208", "8714252005219", "8716867111163"}[n])
	if err != nil {
		t.Fatal(err)
	}
	return party{g}
}

func relationFile(t interface{ Fatal(...any) }, at time.Time, steps ...authz.Step) *authz.LegalFile {
	ean, err := meter.ParseEAN("871687140000000019")
	if err != nil {
		t.Fatal(err)
	}
	f, err := authz.Apply(nil, authz.Register{EAN: ean, Commodity: meter.Electricity}, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, at, time.UTC)
	for _, s := range steps {
		if err == nil {
			f, err = authz.Apply(f, s, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, at, time.UTC)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func relationDay(t interface{ Fatal(...any) }, s string) meter.Day {
	d, err := meter.ParseDay(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func dutch(t interface{ Fatal(...any) }) *meter.Profile {
	p, err := meter.ParseProfile(meter.NL())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestBasesNow(t *testing.T) {
	t.Parallel()
	profile := dutch(t)
	me, other := relationParty(t, 0), relationParty(t, 1)
	day := func(s string) meter.Day { return relationDay(t, s) }
	open := func(from string) meter.DayRange { return meter.DayRange{From: day(from), To: meter.MaxDay} }
	days := func(from, to string) meter.DayRange { return meter.DayRange{From: day(from), To: day(to)} }
	now := time.Date(2026, 6, 15, 12, 0, 0, 0, time.UTC)
	granted := now.AddDate(0, -1, 0)
	id := [16]byte{1}
	consent := func(until time.Time, r meter.DayRange, purpose meter.Purpose, class meter.Class) authz.GrantConsent {
		return authz.GrantConsent{ID: id, Supplier: me.gln, Purpose: purpose, Classes: []meter.Class{class},
			Granularity: meter.PT15M, Days: r, ValidUntil: until, Evidence: "form-1"}
	}
	home := authz.SetOccupancy{Days: open("2020-01-01")}
	mine := authz.SetSupply{Supplier: me.gln, Days: open("2020-01-01")}
	supply := []meter.Basis{meter.SupplyPeriodic, meter.SupplyDaily}
	switched := append(supply[:2:2], meter.SwitchBasis)
	for name, tc := range map[string]struct {
		steps []authz.Step
		want  []meter.Basis
	}{
		"stranger":                       {[]authz.Step{home, authz.SetSupply{Supplier: other.gln, Days: open("2020-01-01")}}, nil},
		"supplier":                       {[]authz.Step{home, mine}, supply},
		"supplier from today":            {[]authz.Step{home, authz.SetSupply{Supplier: me.gln, Days: open("2026-06-15")}}, switched},
		"supplier from tomorrow":         {[]authz.Step{home, authz.SetSupply{Supplier: me.gln, Days: open("2026-06-16")}}, nil},
		"supplier until last year":       {[]authz.Step{home, authz.SetSupply{Supplier: me.gln, Days: days("2024-08-01", "2025-08-01")}}, switched},
		"supplier until past retention":  {[]authz.Step{home, authz.SetSupply{Supplier: me.gln, Days: days("2020-01-01", "2024-06-14")}}, nil},
		"end read on the last day kept":  {[]authz.Step{home, authz.SetSupply{Supplier: me.gln, Days: days("2020-01-01", "2024-06-15")}}, []meter.Basis{meter.SwitchBasis}},
		"end read of an empty house":     {[]authz.Step{authz.SetSupply{Supplier: me.gln, Days: days("2020-01-01", "2025-06-15")}}, nil},
		"supplier until today":           {[]authz.Step{home, authz.SetSupply{Supplier: me.gln, Days: days("2020-01-01", "2026-06-15")}}, switched},
		"contract renewed":               {[]authz.Step{home, authz.SetSupply{Supplier: me.gln, Days: days("2020-01-01", "2026-01-01")}, authz.SetSupply{Supplier: me.gln, Days: open("2026-01-01")}}, supply},
		"customer moved in":              {[]authz.Step{authz.SetOccupancy{Days: open("2025-02-01")}, mine}, append(supply[:2:2], meter.MoveBasis)},
		"customer moves in tomorrow":     {[]authz.Step{authz.SetOccupancy{Days: open("2026-06-16")}, mine}, nil},
		"customer moved out after us":    {[]authz.Step{authz.SetOccupancy{Days: days("2020-01-01", "2026-02-01")}, authz.SetSupply{Supplier: me.gln, Days: days("2021-01-01", "2025-06-01")}}, switched},
		"customer moved in before us":    {[]authz.Step{authz.SetOccupancy{Days: open("2025-02-01")}, authz.SetSupply{Supplier: me.gln, Days: open("2025-06-01")}}, switched},
		"customer of another moved out":  {[]authz.Step{authz.SetOccupancy{Days: days("2020-01-01", "2026-02-01")}, authz.SetSupply{Supplier: me.gln, Days: open("2026-02-01")}}, nil},
		"last day of retention":          {[]authz.Step{home, authz.SetSupply{Supplier: me.gln, Days: days("2020-01-01", "2024-06-16")}}, switched},
		"nobody lives there":             {[]authz.Step{mine}, nil},
		"opted out throughout":           {[]authz.Step{home, mine, authz.SetOptOut{Days: open("2020-01-01")}}, nil},
		"opted out today":                {[]authz.Step{home, mine, authz.SetOptOut{Days: open("2026-06-15")}}, supply},
		"consent":                        {[]authz.Step{home, mine, consent(now.AddDate(1, 0, 0), open("2026-01-01"), meter.EnergyManagement, meter.Intervals)}, append(supply[:2:2], meter.Consent)},
		"consent without supply":         {[]authz.Step{home, consent(now.AddDate(1, 0, 0), open("2026-01-01"), meter.EnergyManagement, meter.Intervals)}, nil},
		"consent expired":                {[]authz.Step{home, mine, consent(now, open("2026-01-01"), meter.EnergyManagement, meter.Intervals)}, supply},
		"consent revoked":                {[]authz.Step{home, mine, consent(now.AddDate(1, 0, 0), open("2026-01-01"), meter.EnergyManagement, meter.Intervals), authz.RevokeConsent{ID: id}}, supply},
		"consent for another purpose":    {[]authz.Step{home, mine, consent(now.AddDate(1, 0, 0), open("2026-01-01"), meter.Billing, meter.Intervals)}, supply},
		"consent for another class":      {[]authz.Step{home, mine, consent(now.AddDate(1, 0, 0), open("2026-01-01"), meter.EnergyManagement, meter.Registers)}, supply},
		"consent for days to come":       {[]authz.Step{home, mine, consent(now.AddDate(1, 0, 0), open("2026-06-16"), meter.EnergyManagement, meter.Intervals)}, supply},
		"consent of the customer before": {[]authz.Step{home, mine, consent(now.AddDate(1, 0, 0), open("2026-06-10"), meter.EnergyManagement, meter.Intervals), authz.SetOccupancy{Days: open("2026-06-10")}}, append(supply[:2:2], meter.MoveBasis)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := relationFile(t, granted, tc.steps...)
			if got := authz.BasesNow(me, f, profile, now); !slices.Equal(got, tc.want) {
				t.Errorf("bases %v, want %v", got, tc.want)
			}
		})
	}
	if got := authz.BasesNow(me, nil, profile, now); got != nil {
		t.Errorf("without a legal file: %v", got)
	}
}

// A rule that reaches less far back than is kept lists nothing from further back.
func TestBasesNowKeepToTheLookback(t *testing.T) {
	t.Parallel()
	p, err := meter.ParseProfile(meter.BE())
	if err != nil {
		t.Fatal(err)
	}
	me := relationParty(t, 0)
	now := time.Date(2026, 6, 15, 12, 0, 0, 0, time.UTC)
	for until, want := range map[string][]meter.Basis{
		"2024-06-14": nil,
		"2024-06-15": {meter.SwitchBasis},
		"2024-06-16": {meter.SupplyPeriodic, meter.SwitchBasis},
	} {
		f := relationFile(t, now, authz.SetOccupancy{Days: meter.DayRange{From: relationDay(t, "2020-01-01"), To: meter.MaxDay}},
			authz.SetSupply{Supplier: me.gln, Days: meter.DayRange{From: relationDay(t, "2020-01-01"), To: relationDay(t, until)}})
		if got := authz.BasesNow(me, f, p, now); !slices.Equal(got, want) {
			t.Errorf("supplied until %s: %v, want %v", until, got, want)
		}
	}
}

// Whatever Decide grants now, a list must show: the metering point is listed
// with the basis.
func TestWhatDecideGrantsIsListed(t *testing.T) {
	t.Parallel()
	profile := dutch(t)
	base := relationDay(t, "2024-01-01")
	rapid.Check(t, func(t *rapid.T) {
		days := func(label string) meter.DayRange {
			from := base + meter.Day(rapid.IntRange(0, 1000).Draw(t, label+" from"))
			r := meter.DayRange{From: from, To: from + meter.Day(rapid.IntRange(1, 400).Draw(t, label+" length"))}
			if rapid.Bool().Draw(t, label+" open") {
				r.To = meter.MaxDay
			}
			return r
		}
		me := relationParty(t, 0)
		at := time.Date(2024, 1, 1, 12, 0, 0, 0, time.UTC).AddDate(0, 0, rapid.IntRange(0, 1000).Draw(t, "at"))
		now := at.AddDate(0, 0, rapid.IntRange(0, 500).Draw(t, "now"))
		steps := []authz.Step{authz.SetOccupancy{Days: days("occupancy")}, authz.SetSupply{Supplier: me.gln, Days: days("supply")}}
		f := relationFile(t, at, steps...)
		step := func(s authz.Step) { // one that the facts do not allow changes nothing
			if next, err := authz.Apply(f, s, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, at, time.UTC); err == nil {
				f = next
			}
		}
		step(authz.GrantConsent{ID: [16]byte{1}, Supplier: me.gln, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
			Granularity: meter.PT1H, Days: days("consent"), ValidUntil: at.AddDate(0, 0, rapid.IntRange(1, 500).Draw(t, "valid")), Evidence: "x"})
		if rapid.Bool().Draw(t, "move") {
			step(authz.SetOccupancy{Days: days("second occupancy")})
			step(authz.SetSupply{Supplier: me.gln, Days: days("second supply")})
		}
		if rapid.Bool().Draw(t, "opt out") {
			step(authz.SetOptOut{Days: days("opt-out")})
		}
		listed := authz.BasesNow(me, f, profile, now)
		var fields []meter.FieldCode
		for _, field := range profile.Fields(meter.Electricity) {
			fields = append(fields, field.Code)
		}
		today := meter.DayOf(now, profile.Location())
		for _, purpose := range []meter.Purpose{meter.Billing, meter.EnergyManagement, meter.Switch, meter.Move, meter.CustomerService} {
			for back := meter.Day(366); back <= 3*366; back += 366 {
				grant, _, err := authz.Decide(me, authz.Request{EAN: f.EAN(), Purpose: purpose, Fields: fields,
					Days: meter.DayRange{From: today - back + 1, To: today - back + 367}}, f, profile, now)
				if err != nil {
					t.Fatal(err)
				}
				for _, item := range grant.Items() {
					if !slices.Contains(listed, item.Basis) {
						t.Fatalf("granted on %v, listed %v", item.Basis, listed)
					}
				}
			}
		}
	})
}
