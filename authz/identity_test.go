package authz

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/meter"
)

func address(t testing.TB, postcode, number string) (meter.Postcode, meter.HouseNumber) {
	t.Helper()
	c, err1 := meter.ParsePostcode(postcode)
	h, err2 := meter.ParseHouseNumber(number)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return c, h
}

func toFind(t testing.TB, postcode, number string) employee {
	t.Helper()
	e := to(Errand{Kind: ErrandFind})
	e.e.Errand.EAN = meter.EAN{}
	e.e.Errand.Postcode, e.e.Errand.HouseNumber = address(t, postcode, number)
	return e
}

func TestDecideIdentity(t *testing.T) {
	t.Parallel()
	p, f := dutch(t), story(t)
	c, h := address(t, "1234AB", "17")
	person := meter.Person{Name: "J. Jansen", Address: meter.Address{Street: "Dorpsstraat", HouseNumber: h, Postcode: c, City: "Ons Dorp"}}
	nameless := meter.Person{Address: person.Address}

	sent := func(kind ErrandKind, role Role) employee {
		e := to(Errand{Kind: kind})
		e.e.Role = role
		return e
	}
	for name, tt := range map[string]struct {
		c    Caller
		want meter.Person
		none bool // granted, and the address is another
	}{
		"to look":               {c: sent(ErrandView, Agent), want: person},
		"to look, a supervisor": {c: sent(ErrandView, Supervisor), want: person},
		"to read":               {c: sent(ErrandReadings, Agent), want: person},
		"to take a step":        {c: sent(ErrandStep, Supervisor), want: person},
		"to find":               {c: toFind(t, "1234AB", "17"), want: nameless},
		"to find next door":     {c: toFind(t, "1234AB", "19"), none: true},
		"to find elsewhere":     {c: toFind(t, "1234AC", "17"), none: true},
	} {
		g, err := DecideIdentity(tt.c, f, p, storyNow)
		if err != nil || g.EAN() != home || g.Day() != day("2025-03-15") || g.Rule() != "nl-customer-service-identity" || g.Profile() != p.ID() ||
			g.Named() != (tt.want.Name != "") {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
		if got, ok := g.Tell(person); got != tt.want || ok == tt.none {
			t.Errorf("%s: told %+v, %v", name, got, ok)
		}
	}

	// Everything that is nobody's business.
	neighbour := history(t, t0, Register{testEAN(2), meter.Electricity}, SetOccupancy{days("2023-01-01", "")})
	off := string(meter.NL())
	at := strings.Index(off, "nl-customer-service-identity")
	off = off[:at] + strings.Replace(off[at:], "enabled: true", "enabled: false", 1)
	switchedOff, err := meter.ParseProfile([]byte(off))
	if err != nil {
		t.Fatal(err)
	}
	later := off[:at] + strings.Replace(strings.Replace(off[at:], "enabled: false", "enabled: true", 1), "from: 2012-01-01", "from: 2026-01-21", 1)
	notYet, err := meter.ParseProfile([]byte(later))
	if err != nil {
		t.Fatal(err)
	}
	whole := toFind(t, "1234AB", "17")
	half, otherHalf := whole, whole
	half.e.Errand.HouseNumber, otherHalf.e.Errand.Postcode = meter.HouseNumber{}, meter.Postcode{}
	pretends := whole // an errand with an EAN besides is none to find
	pretends.e.Errand.Kind = ErrandOversee
	pretends.e.Errand.EAN = home
	for name, tt := range map[string]struct {
		c Caller
		f *LegalFile
		p *meter.Profile
	}{
		"nobody":                  {nil, f, p},
		"a supplier":              {caller(beta), f, p},
		"its supplier before":     {caller(alpha), f, p},
		"who holds a consent":     {caller(gamma), f, p},
		"an auditor":              {sent(ErrandView, Auditor), f, p},
		"an auditor who finds":    {func() Caller { e := toFind(t, "1234AB", "17"); e.e.Role = Auditor; return e }(), f, p},
		"no role":                 {sent(ErrandView, 0), f, p},
		"on behalf of a supplier": {OnBehalfOf(sent(ErrandView, Agent), beta), f, p},
		"on behalf by a supplier": {OnBehalfOf(caller(beta), beta), f, p},
		"to oversee":              {sent(ErrandOversee, Supervisor), f, p},
		"to suspend":              {sent(ErrandSupplier, Supervisor), f, p},
		"to oversee an address":   {pretends, f, p},
		"for nothing":             {sent(0, Agent), f, p},
		"of a neighbour":          {sent(ErrandView, Agent), neighbour, p},
		"no file":                 {sent(ErrandView, Agent), nil, p},
		"no profile":              {sent(ErrandView, Agent), f, nil},
		"no house number":         {half, f, p},
		"no postcode":             {otherHalf, f, p},
		"switched off":            {sent(ErrandView, Agent), f, switchedOff},
		"switched off, to find":   {whole, f, switchedOff},
		"not in force":            {sent(ErrandView, Agent), f, notYet},
	} {
		g, err := DecideIdentity(tt.c, tt.f, tt.p, storyNow)
		if err != ErrNotPermitted || g != (IdentityGrant{}) {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
		if got, ok := g.Tell(person); ok || got != (meter.Person{}) {
			t.Errorf("%s: told %+v", name, got)
		}
	}

	// Whoever left is not told of, and who comes is from the day on.
	left := must(Apply(f, SetOccupancy{days("2025-03-15", "2026-01-20")}, operator, storyNow, amsterdam))(t)
	if g, err := DecideIdentity(sent(ErrandView, Agent), left, p, storyNow); err != ErrNoIdentity || g != (IdentityGrant{}) {
		t.Errorf("after the customer left: %+v, %v", g, err)
	}
	next := must(Apply(left, SetOccupancy{days("2026-01-20", "")}, operator, storyNow, amsterdam))(t)
	for at, want := range map[string]meter.Day{"2026-01-19T22:59:59Z": day("2025-03-15"), "2026-01-19T23:00:00Z": day("2026-01-20")} {
		if g, err := DecideIdentity(sent(ErrandView, Agent), next, p, instant(at)); err != nil || g.Day() != want {
			t.Errorf("at %s: %s, %v", at, g.Day(), err)
		}
	}

	if c2, h2, err := MayFind(whole, p, storyNow); err != nil || c2 != c || h2 != h {
		t.Errorf("to find: %v", err)
	}
	auditor := whole
	auditor.e.Role = Auditor
	for name, tt := range map[string]struct {
		c Caller
		p *meter.Profile
	}{
		"a supplier": {caller(beta), p}, "nobody": {nil, p}, "an auditor": {auditor, p}, "to look": {sent(ErrandView, Agent), p}, "no house number": {half, p},
		"no postcode": {otherHalf, p}, "on behalf": {OnBehalfOf(whole, beta), p}, "no profile": {whole, nil}, "switched off": {whole, switchedOff}, "to oversee": {pretends, p},
	} {
		if c, h, err := MayFind(tt.c, tt.p, storyNow); err != ErrNotPermitted || !c.IsZero() || !h.IsZero() {
			t.Errorf("finds: %s: %v", name, err)
		}
	}
}

// Decide and the dry run never give class identity, to nobody, not even by a
// profile that has it as a field with a rule on every basis; and nobody can be
// asked to consent to it.
func TestDecideNeverGivesIdentities(t *testing.T) {
	t.Parallel()
	f := story(t)
	m := &testMarket{retention: 24, fields: []meter.Field{
		{Code: 9, Name: "identity", Class: meter.Identity, Commodity: meter.Electricity, Stored: []meter.Resolution{meter.P1D}},
		{Code: 10, Name: "lie", Class: meter.Registers, Commodity: meter.Electricity, Stored: []meter.Resolution{meter.P1D}},
	}}
	purposes := []meter.Purpose{meter.Billing, meter.EnergyManagement, meter.Switch, meter.Move, meter.CustomerService}
	for basis := meter.SupplyPeriodic; basis <= meter.CustomerServiceBasis; basis++ {
		for _, purpose := range purposes {
			m.rules = append(m.rules, meter.Rule{ID: "all", Basis: basis, Purpose: purpose, Classes: []meter.Class{meter.Identity}, Granularity: meter.P1D,
				Days: always(), DespiteOptOut: true, Enabled: true})
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		in := days("2025-11-01", "2025-12-01")
		var c Caller = caller(rapid.SampledFrom([]meter.GLN{alpha, beta, gamma, testGLN(4)}).Draw(r, "supplier"))
		if rapid.Bool().Draw(r, "employee") {
			e := to(Errand{Kind: rapid.SampledFrom(ErrandKinds()).Draw(r, "kind"), Days: in, Fields: []meter.FieldCode{9, 10}})
			e.e.Role = rapid.SampledFrom([]Role{Agent, Supervisor, Auditor}).Draw(r, "role")
			c = e
		}
		asked := Request{EAN: home, Purpose: rapid.SampledFrom(purposes).Draw(r, "purpose"), Days: in, Fields: []meter.FieldCode{9, 10},
			Resolution: rapid.SampledFrom([]meter.Resolution{0, meter.P1D, meter.P1M}).Draw(r, "resolution"),
			Kind:       rapid.SampledFrom([]meter.Kind{0, meter.Register, meter.Consumption}).Draw(r, "kind of values")}
		g, _, err := decide(c, asked, f, m, storyNow)
		if !g.Empty() || len(g.Reads()) > 0 || err != nil && err != ErrNoRelation {
			r.Fatalf("%v, %v", g.Items(), err)
		}
		if got, err := decideIdentity(c, f, m, storyNow.Add(time.Hour)); c.Employee() == nil && (err != ErrNotPermitted || got != (IdentityGrant{})) {
			r.Fatalf("a supplier is told: %v", err)
		}
	})

	consent := GrantConsent{ID: uuid(9), Supplier: beta, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Identity},
		Granularity: meter.PT1H, Days: days("2025-12-01", ""), ValidUntil: instant("2027-01-01T00:00:00Z"), Evidence: "dossier-9"}
	if _, err := Apply(f, consent, operator, storyNow, amsterdam); !errors.Is(err, ErrStep) {
		t.Errorf("a consent to identities: %v", err)
	}
	if slices.Contains(BasesNow(caller(beta), f, dutch(t), storyNow), meter.CustomerServiceBasis) {
		t.Error("a supplier is listed on customer service")
	}
}
