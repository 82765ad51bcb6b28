package authz

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/meter"
)

func consentOf(id byte) GrantConsent {
	return GrantConsent{ID: uuid(id), Supplier: alpha, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Registers, meter.Intervals},
		Granularity: meter.PT15M, Days: days("2024-01-01", ""), ValidUntil: instant("2030-01-01T00:00:00Z"), Evidence: "letter"}
}

// TestNarrows: every step, by whether it takes something away.
func TestNarrows(t *testing.T) {
	t.Parallel()
	t0 := instant("2026-06-01T10:00:00Z")
	base := []Step{Register{EAN: home, Commodity: meter.Electricity}, SetOccupancy{Days: days("2023-01-01", "")}, SetSupply{Supplier: alpha, Days: days("2023-01-01", "")}, consentOf(1)}
	closed := []Step{Register{EAN: home, Commodity: meter.Electricity}, SetOccupancy{Days: days("2023-01-01", "2024-01-01")}, SetSupply{Supplier: alpha, Days: days("2023-01-01", "2024-01-01")}, SetOptOut{Days: days("2023-02-01", "2023-03-01")}}
	asked := append(base[:4:4], request(2))
	two := append(base[:4:4], SetOccupancy{days("2023-06-01", "")})
	for name, c := range map[string]struct {
		from []Step
		step Step
		want bool
	}{
		"registered":                 {nil, Register{EAN: home, Commodity: meter.Gas}, false},
		"an occupancy more":          {closed, SetOccupancy{Days: days("2024-01-01", "")}, false},
		"an occupancy before":        {closed, SetOccupancy{Days: days("2020-01-01", "2021-01-01")}, false},
		"a move":                     {base, SetOccupancy{Days: days("2026-05-01", "")}, true},
		"a move out":                 {base, SetOccupancy{Days: days("2023-01-01", "2026-06-01")}, true},
		"a supplier more":            {closed, SetSupply{Supplier: beta, Days: days("2024-01-01", "")}, false},
		"a switch":                   {base, SetSupply{Supplier: beta, Days: days("2026-05-01", "")}, true},
		"the end of a supply":        {base, SetSupply{Supplier: alpha, Days: days("2023-01-01", "2026-05-01")}, true},
		"a consent more":             {base, consentOf(2), false},
		"a revocation":               {base, RevokeConsent{ID: uuid(1)}, true},
		"a request":                  {base, request(2), false},
		"a request accepted":         {asked, AcceptConsent{uuid(2), "call/1"}, false},
		"a request rejected":         {asked, RejectConsent{uuid(2)}, false},
		"a request withdrawn":        {asked, RevokeConsent{uuid(2)}, false},
		"a switch that was not":      {base, CorrectSupply{beta, days("2024-01-01", "2024-02-01")}, true},
		"a supply more, corrected":   {closed, CorrectSupply{beta, days("2024-02-01", "2024-03-01")}, false},
		"a supply that goes on":      {closed, CorrectSupply{alpha, days("2024-01-01", "2024-03-01")}, true}, // no end read any more
		"a supply that began before": {closed, CorrectSupply{alpha, days("2022-12-01", "2023-01-01")}, true},
		"a supply gone":              {base, CorrectSupply{meter.GLN{}, days("2023-01-01", "2023-02-01")}, true},
		"nobody more":                {two, CorrectSupply{meter.GLN{}, days("2023-06-01", "")}, true},
		"a move earlier":             {two, CorrectMove{day("2023-06-01"), day("2023-05-01")}, true},
		"a move later":               {two, CorrectMove{day("2023-06-01"), day("2023-07-01")}, true},
		"a move in earlier":          {base, CorrectMove{day("2023-01-01"), day("2022-01-01")}, true},
		"a move out later":           {closed, CorrectMove{day("2024-01-01"), day("2024-02-01")}, true},
		"an opt-out":                 {base, SetOptOut{Days: days("2026-01-01", "")}, true},
		"an opt-out longer":          {closed, SetOptOut{Days: days("2023-02-15", "2023-03-02")}, true},
		"an opt-out taken back":      {closed, EndOptOut{From: day("2023-02-10")}, false},
		"an opt-out gone altogether": {closed, EndOptOut{From: day("2023-01-10")}, false},
	} {
		var prev *LegalFile
		if c.from != nil {
			prev = history(t, t0, c.from...)
		}
		next, err := Apply(prev, c.step, operator, t0.Add(time.Hour), amsterdam)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := Narrows(prev, next); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
		// Whoever does not have the version before cannot tell.
		if !Narrows(history(t, t0, Register{EAN: testEAN(2), Commodity: meter.Electricity}), next) {
			t.Errorf("%s: compared with another metering point's", name)
		}
		if prev != nil && (!Narrows(nil, next) || !Narrows(next, next) || !Narrows(next, prev) || !Narrows(prev, nil)) {
			t.Errorf("%s: compared with what is not the version before", name)
		}
		other := history(t, t0.Add(time.Second), c.from...)
		if prev != nil && !Narrows(other, next) {
			t.Errorf("%s: compared with another version of that number", name)
		}
	}
}

// TestNarrowsEveryTermOfAConsent: whatever is less in a consent is noticed,
// also where no step of today changes it.
func TestNarrowsEveryTermOfAConsent(t *testing.T) {
	t.Parallel()
	t0 := instant("2026-06-01T10:00:00Z")
	prev := history(t, t0, Register{EAN: home, Commodity: meter.Electricity}, SetOccupancy{Days: days("2023-01-01", "")}, SetSupply{Supplier: alpha, Days: days("2023-01-01", "")}, consentOf(1))
	for name, c := range map[string]struct {
		change func(*Consent)
		want   bool
	}{
		"nothing":           {func(*Consent) {}, false},
		"supplier":          {func(c *Consent) { c.Supplier = beta }, true},
		"purpose":           {func(c *Consent) { c.Purpose = meter.Billing }, true},
		"classes":           {func(c *Consent) { c.Classes = c.Classes[:1] }, true},
		"granularity":       {func(c *Consent) { c.Granularity = meter.P1D }, true},
		"days from":         {func(c *Consent) { c.Days.From++ }, true},
		"days to":           {func(c *Consent) { c.Days.To-- }, true},
		"valid until":       {func(c *Consent) { c.ValidUntil = c.ValidUntil.Add(-time.Second) }, true},
		"valid from":        {func(c *Consent) { c.ValidFrom = c.ValidFrom.Add(time.Second) }, true},
		"another occupancy": {func(c *Consent) { c.Occupancy++ }, true},
		"no longer active":  {func(c *Consent) { c.State = ConsentRevoked }, true},
		"an unknown state":  {func(c *Consent) { c.State = 99 }, true},
		"more days":         {func(c *Consent) { c.Days.From-- }, false},
		"longer":            {func(c *Consent) { c.ValidUntil = c.ValidUntil.Add(time.Hour) }, false},
		"other evidence":    {func(c *Consent) { c.Evidence = "x" }, false},
		"id":                {func(c *Consent) { c.ID = uuid(9) }, true},
	} {
		next := &LegalFile{facts: prev.facts.clone(), version: prev.version + 1, previous: prev.digest}
		c.change(&next.consents[0])
		next.index()
		if got := Narrows(prev, next); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	gone := &LegalFile{facts: prev.facts.clone(), version: prev.version + 1, previous: prev.digest}
	gone.consents = nil
	gone.index()
	if !Narrows(prev, gone) {
		t.Error("a consent that is gone")
	}
}

func TestNarrowsSupplier(t *testing.T) {
	t.Parallel()
	t0 := instant("2026-06-01T10:00:00Z")
	later := t0.AddDate(1, 0, 0)
	facts := func() SupplierFacts {
		return SupplierFacts{GLN: alpha, Name: "Alpha", Scopes: []string{"a", "b"}, Certificates: []Certificate{
			{Thumbprint: [32]byte{1}, NotAfter: later}, {Thumbprint: [32]byte{2}, NotAfter: t0.Add(time.Minute)},
		}}
	}
	prev, err := NewSupplier(nil, facts(), operator, t0)
	wantErr(t, err, nil)
	if NarrowsSupplier(nil, prev) {
		t.Error("the first version")
	}
	for name, c := range map[string]struct {
		change func(*SupplierFacts)
		want   bool
	}{
		"nothing":      {func(*SupplierFacts) {}, false},
		"another name": {func(f *SupplierFacts) { f.Name = "Beta" }, false},
		"a certificate more": {func(f *SupplierFacts) {
			f.Certificates = append(f.Certificates, Certificate{Thumbprint: [32]byte{3}, NotAfter: later})
		}, false},
		"a scope more":           {func(f *SupplierFacts) { f.Scopes = append(f.Scopes, "c") }, false},
		"an expired one out":     {func(f *SupplierFacts) { f.Certificates = f.Certificates[:1] }, false},
		"a certificate left out": {func(f *SupplierFacts) { f.Certificates = f.Certificates[1:] }, true},
		"withdrawn":              {func(f *SupplierFacts) { f.Certificates[0].RevokedAt = t0 }, true},
		"suspended":              {func(f *SupplierFacts) { f.Suspended = true }, true},
		"a scope less":           {func(f *SupplierFacts) { f.Scopes = f.Scopes[:1] }, true},
	} {
		f := facts()
		c.change(&f)
		next, err := NewSupplier(prev, f, operator, t0.Add(time.Hour))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := NarrowsSupplier(prev, next); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
		if !NarrowsSupplier(nil, next) || !NarrowsSupplier(next, next) || !NarrowsSupplier(prev, nil) {
			t.Errorf("%s: compared with what is not the version before", name)
		}
		if next.Suspended() {
			f.Suspended = false
			again, err := NewSupplier(next, f, operator, t0.Add(2*time.Hour))
			if err != nil || NarrowsSupplier(next, again) {
				t.Errorf("the end of a suspension: %v", err)
			}
		}
	}
}

// TestWhatDoesNotNarrowGivesNoLess: in random worlds, a step after which a
// decision opens a block less is one that narrows. Whole months are left out:
// a day that is granted by itself, by a right more, ends the sum of its month.
func TestWhatDoesNotNarrowGivesNoLess(t *testing.T) {
	t.Parallel()
	compared := 0
	rapid.Check(t, func(t *rapid.T) {
		d := roll(t)
		w := d.world()
		for i := range w.market.rules {
			w.market.rules[i].Granularity = min(w.market.rules[i].Granularity, meter.P1D)
		}
		for i := range w.facts.consents {
			w.facts.consents[i].Granularity = min(w.facts.consents[i].Granularity, meter.P1D)
		}
		w.r.Resolution = min(w.r.Resolution, meter.P1D)
		prev := w.file(t)
		var steps []Step
		for range 4 {
			c := consentOf(byte(d.among(1, 9)))
			c.Days, c.Granularity = d.days(), pick(d, meter.PT15M, meter.P1D)
			steps = append(steps, SetOccupancy{d.days()}, SetSupply{pick(d, alpha, beta), d.days()}, c, RevokeConsent{uuid(byte(d.among(1, 6)))},
				SetOptOut{d.days()}, EndOptOut{d.day()},
				RequestConsent(c), AcceptConsent{uuid(byte(d.among(1, 9))), "call"}, RejectConsent{uuid(byte(d.among(1, 9)))},
				CorrectSupply{pick(d, alpha, beta, meter.GLN{}), d.days()}, CorrectSupply{alpha, d.days()}, CorrectMove{d.day(), d.day()})
			for _, o := range prev.occupancies {
				steps = append(steps, CorrectMove{o.Days.From, o.Days.From + meter.Day(d.among(-40, 40))}, CorrectMove{o.Days.To, o.Days.To + meter.Day(d.among(-40, 40))})
			}
			for _, p := range prev.supply {
				steps = append(steps, CorrectSupply{p.Supplier, meter.DayRange{From: p.Days.To, To: p.Days.To + meter.Day(d.among(1, 40))}},
					CorrectSupply{p.Supplier, meter.DayRange{From: p.Days.From - meter.Day(d.among(1, 40)), To: p.Days.From}})
			}
		}
		for _, step := range steps {
			next, err := Apply(prev, step, operator, prev.sealedAt.Add(time.Minute), amsterdam)
			if err != nil || Narrows(prev, next) {
				continue
			}
			for _, me := range []meter.GLN{alpha, beta, gamma} {
				before, _, err := decide(caller(me), w.r, prev, w.market, w.now)
				if err != nil {
					continue
				}
				after, _, err := decide(caller(me), w.r, next, w.market, w.now)
				if err != nil {
					t.Fatalf("%T: %v", step, err)
				}
				for _, read := range before.Reads() {
					for _, r := range read.Days.Ranges() {
						for day := r.From; day < r.To; day++ {
							compared++
							if !after.Covers(read.Field, day) {
								t.Fatalf("%T %+v does not narrow, and field %d of %s is not given any more", step, step, read.Field, day)
							}
						}
					}
				}
			}
		}
	})
	if compared == 0 {
		t.Error("nothing was granted")
	}
}
