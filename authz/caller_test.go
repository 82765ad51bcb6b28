package authz

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"kluis/meter"
)

// An errand is for a metering point, days and fields; beside it there is
// nothing, not even a word.
func TestAnErrandToRead(t *testing.T) {
	t.Parallel()
	p, f := dutch(t), story(t)
	r := Request{EAN: home, Purpose: meter.CustomerService, Days: days("2025-12-01", "2025-12-08"), Fields: []meter.FieldCode{importLow, importIntervals}}
	sent := func(change func(*Employee)) employee {
		e := toRead(r.Days, importLow, importIntervals)
		change(&e.e)
		return e
	}
	for name, c := range map[string]Caller{
		"as asked":            sent(func(*Employee) {}),
		"a supervisor":        sent(func(e *Employee) { e.Role = Supervisor }),
		"for more days":       sent(func(e *Employee) { e.Errand.Days = days("2025-01-01", "2026-01-01") }),
		"for one field more":  sent(func(e *Employee) { e.Errand.Fields = []meter.FieldCode{importLow, gas, importIntervals} }),
		"of another operator": operatorOf{sent(func(*Employee) {}), alpha},
	} {
		g, withheld, err := Decide(c, r, f, p, storyNow)
		if err != nil || len(withheld) > 0 || len(g.Items()) != 2 || g.Items()[0].Basis != meter.CustomerServiceBasis || g.Items()[0].Rule != "nl-customer-service-registers" || g.Items()[1].Rule != "nl-customer-service-intervals" {
			t.Errorf("%s: %v, %v", name, render(p, g, withheld), err)
		}
	}
	neighbour := history(t, t0, Register{testEAN(2), meter.Electricity}, SetOccupancy{days("2023-01-01", "")})
	for name, c := range map[string]struct {
		c Caller
		f *LegalFile
		r func(*Request)
	}{
		"no file":                         {c: sent(func(*Employee) {})},
		"a neighbour's file":              {c: sent(func(*Employee) {}), f: neighbour},
		"a neighbour":                     {c: sent(func(*Employee) {}), f: neighbour, r: func(r *Request) { r.EAN = testEAN(2) }},
		"sent to a neighbour":             {c: sent(func(e *Employee) { e.Errand.EAN = testEAN(2) }), f: f},
		"sent nowhere":                    {c: sent(func(e *Employee) { e.Errand.EAN = meter.EAN{} }), f: f},
		"a day before":                    {c: sent(func(e *Employee) { e.Errand.Days.From++ }), f: f},
		"a day after":                     {c: sent(func(e *Employee) { e.Errand.Days.To-- }), f: f},
		"days of none":                    {c: sent(func(e *Employee) { e.Errand.Days = meter.DayRange{} }), f: f},
		"a field more":                    {c: sent(func(e *Employee) { e.Errand.Fields = []meter.FieldCode{importLow} }), f: f},
		"no field":                        {c: sent(func(e *Employee) { e.Errand.Fields = nil }), f: f},
		"to look":                         {c: sent(func(e *Employee) { e.Errand.Kind = ErrandView }), f: f},
		"to take a step":                  {c: sent(func(e *Employee) { e.Errand.Kind = ErrandStep }), f: f},
		"for nothing":                     {c: sent(func(e *Employee) { e.Errand.Kind = 0 }), f: f},
		"an auditor":                      {c: sent(func(e *Employee) { e.Role = Auditor }), f: f},
		"no role":                         {c: sent(func(e *Employee) { e.Role = 0 }), f: f},
		"nothing said":                    {c: sent(func(e *Employee) { *e = Employee{} }), f: f},
		"who goes on behalf of supplier":  {c: OnBehalfOf(sent(func(e *Employee) { e.Errand.Kind = ErrandView }), beta), f: f},
		"who reads on behalf of supplier": {c: OnBehalfOf(sent(func(*Employee) {}), beta), f: f, r: func(r *Request) { r.Purpose = meter.EnergyManagement }},
		"on behalf by nobody":             {c: OnBehalfOf(nil, beta), f: f},
		"on behalf by a supplier":         {c: OnBehalfOf(caller(beta), beta), f: f, r: func(r *Request) { r.Purpose = meter.EnergyManagement }},
	} {
		r := r
		if c.r != nil {
			c.r(&r)
		}
		g, withheld, err := Decide(c.c, r, c.f, p, storyNow)
		if err != ErrNoRelation || !g.Empty() || withheld != nil {
			t.Errorf("%s: %v, %v", name, render(p, g, withheld), err)
		}
		if got := BasesNow(c.c, c.f, p, storyNow); got != nil {
			t.Errorf("%s: listed on %v", name, got)
		}
	}
	// Nobody lives there: nothing of whom ever did.
	left := must(Apply(f, SetOccupancy{days("2025-03-15", "2026-01-20")}, operator, storyNow, amsterdam))(t)
	g, withheld, err := Decide(sent(func(*Employee) {}), r, left, p, storyNow)
	if err != nil || !g.Empty() || len(withheld) != 2 || withheld[0].Reason != meter.NotOccupied || withheld[1].Reason != meter.NotOccupied {
		t.Errorf("after the customer left: %v, %v", render(p, g, withheld), err)
	}
}

// operatorOf is an employee of a grid operator that is also a supplier: that
// gives no more.
type operatorOf struct {
	employee
	gln meter.GLN
}

func (o operatorOf) Supplier() meter.GLN { return o.gln }

// What an employee may be told of who may read what.
func TestDryRunOfEmployees(t *testing.T) {
	t.Parallel()
	p, f := dutch(t), story(t)
	r := AccessRequest{EAN: home, Days: days("2025-03-01", "2025-04-01"), Fields: []meter.FieldCode{importLow, importIntervals}}
	view := to(Errand{Kind: ErrandView})
	auditor := view
	auditor.e.Role = Auditor
	nothing := func(purposes ...meter.Purpose) (lines []string) {
		for _, p := range purposes {
			lines = append(lines, p.String()+" import_low 2025-03-01 2025-04-01: PURPOSE_NOT_AVAILABLE", p.String()+" import_intervals 2025-03-01 2025-04-01: PURPOSE_NOT_AVAILABLE")
		}
		return lines
	}
	// Its own rights are what an errand to read would give.
	a, err := DryRun(view, r, f, p, storyNow)
	want := append([]string{
		"CUSTOMER_SERVICE import_low 2025-03-15 2025-04-01: P1D REGISTER by nl-customer-service-registers",
		"CUSTOMER_SERVICE import_intervals 2025-03-15 2025-04-01: PT15M CONSUMPTION by nl-customer-service-intervals",
	}, append(nothing(meter.Billing, meter.EnergyManagement, meter.Switch, meter.Move),
		"CUSTOMER_SERVICE import_low 2025-03-01 2025-03-15: NOT_OCCUPIED", "CUSTOMER_SERVICE import_intervals 2025-03-01 2025-03-15: NOT_OCCUPIED")...)
	if got := renderAccess(p, a); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v\n%s", err, strings.Join(got, "\n"))
	}
	for _, item := range a.Items() {
		g, withheld, err := Decide(toRead(r.Days, r.Fields...), Request{EAN: home, Purpose: item.Purpose, Days: item.Days.Ranges()[0], Fields: []meter.FieldCode{item.Field}}, f, p, storyNow)
		if err != nil || len(withheld) > 0 || len(g.Items()) != 1 || g.Items()[0].Rule != item.Rule {
			t.Errorf("promised %+v: %v %v", item, withheld, err)
		}
	}
	// An auditor's are none.
	a, err = DryRun(auditor, r, f, p, storyNow)
	want = nothing(meter.Billing, meter.EnergyManagement, meter.Switch, meter.Move, meter.CustomerService)
	if got := renderAccess(p, a); err != nil || !slices.Equal(got, want) || len(a.Grants()) > 0 {
		t.Errorf("%v\n%s", err, strings.Join(got, "\n"))
	}
	// A supplier's are word for word what the supplier is told.
	for _, g := range []meter.GLN{alpha, beta, gamma, testGLN(9), {}} {
		own, ownErr := DryRun(caller(g), r, f, p, storyNow)
		for _, e := range []Caller{view, auditor} {
			a, err := DryRun(OnBehalfOf(e, g), r, f, p, storyNow)
			if !errors.Is(err, ownErr) || !slices.Equal(renderAccess(p, a), renderAccess(p, own)) {
				t.Errorf("on behalf of %s: %v\n%s", g, err, strings.Join(renderAccess(p, a), "\n"))
			}
		}
	}
	elsewhere := view
	elsewhere.e.Errand.EAN = testEAN(2)
	for name, c := range map[string]Caller{
		"sent elsewhere": elsewhere, "sent to read": toRead(r.Days, r.Fields...), "sent for a step": toTake(RevokeConsent{uuid(1)}, f), "sent for nothing": to(Errand{}), "nothing said": employee{},
	} {
		for _, c := range []Caller{c, OnBehalfOf(c, beta)} {
			if _, err := DryRun(c, r, f, p, storyNow); err != ErrNoRelation {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for name, c := range map[string]Caller{"nobody": OnBehalfOf(nil, beta), "a supplier": OnBehalfOf(caller(beta), beta), "another on behalf": OnBehalfOf(OnBehalfOf(caller(beta), beta), beta)} {
		if _, err := DryRun(c, r, f, p, storyNow); err != ErrNoRelation {
			t.Errorf("on behalf, by %s: %v", name, err)
		}
	}
}

// Who may have which errand.
func TestErrandsOfRoles(t *testing.T) {
	t.Parallel()
	table := map[ErrandKind][]Role{
		ErrandReadings: {Agent, Supervisor},
		ErrandView:     {Agent, Supervisor, Auditor},
		ErrandStep:     {Agent, Supervisor},
		ErrandFind:     {Agent, Supervisor},
		ErrandOversee:  {Agent, Supervisor, Auditor},
		ErrandSupplier: {Supervisor},
	}
	if len(ErrandKinds()) != len(table) {
		t.Errorf("%d kinds of errand", len(ErrandKinds()))
	}
	for k := range ErrandKind(10) {
		for r := range Role(6) {
			if want := slices.Contains(table[k], r); r.May(k) != want {
				t.Errorf("%s to %s: %v", r, k, !want)
			}
		}
	}
}

// An errand of no metering point opens nothing, tells nothing and takes no step,
// at no metering point, also not at none, and whatever else it is made to say.
func TestErrandsOfNoPoint(t *testing.T) {
	t.Parallel()
	p, f := dutch(t), story(t)
	fields := []meter.FieldCode{importLow, importIntervals}
	in := days("2025-12-01", "2025-12-08")
	step := RevokeConsent{uuid(1)}
	for _, kind := range []ErrandKind{ErrandFind, ErrandOversee, ErrandSupplier, 0, 7, 255} {
		if kind.OfPoint() {
			t.Errorf("%s is of a metering point", kind)
		}
		for _, role := range []Role{Agent, Supervisor, Auditor} {
			for _, ean := range []meter.EAN{home, {}} {
				c := toTake(step, f)
				e := &c.e
				e.Role, e.Errand.Kind, e.Errand.EAN, e.Errand.Days, e.Errand.Fields = role, kind, ean, in, fields
				e.Errand.Supplier, e.Errand.Suspend = beta, true
				for _, asked := range []meter.EAN{home, {}} {
					for _, file := range []*LegalFile{f, {}, nil} {
						if g, withheld, err := Decide(c, Request{EAN: asked, Purpose: meter.CustomerService, Days: in, Fields: fields}, file, p, storyNow); err != ErrNoRelation || !g.Empty() || withheld != nil {
							t.Errorf("%s to %s: Decide: %v %v", role, kind, withheld, err)
						}
						for _, who := range []Caller{c, OnBehalfOf(c, beta)} {
							if a, err := DryRun(who, AccessRequest{EAN: asked, Days: in, Fields: fields}, file, p, storyNow); err != ErrNoRelation || len(a.Items()) > 0 || len(a.Grants()) > 0 {
								t.Errorf("%s to %s: DryRun: %v", role, kind, err)
							}
						}
						if by, err := Permit(c, step, file, p, storyNow); !errors.Is(err, ErrNotPermitted) && err != ErrNoRelation || !by.IsZero() {
							t.Errorf("%s to %s: Permit: %v", role, kind, err)
						}
					}
				}
				if BasesNow(c, f, p, storyNow) != nil {
					t.Errorf("%s to %s: listed", role, kind)
				}
			}
		}
	}
}

func TestNamesOfEnumerations(t *testing.T) {
	t.Parallel()
	for r := Agent; r <= Auditor; r++ {
		if got, err := ParseRole(r.String()); err != nil || got != r {
			t.Errorf("%s: %v", r, err)
		}
	}
	for _, k := range ErrandKinds() {
		if got, err := ParseErrandKind(k.String()); err != nil || got != k {
			t.Errorf("%s: %v", k, err)
		}
	}
	for a := ActionRegister; a <= ActionRequest; a++ {
		if got, err := ParseConsentAction(a.String()); err != nil || got != a {
			t.Errorf("%s: %v", a, err)
		}
	}
	for s := StandsRequested; s <= StandsEndedByMove; s++ {
		if got, err := ParseStanding(s.String()); err != nil || got != s {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, err := range []error{second(ParseRole("")), second(ParseRole("Agent")), second(ParseErrandKind("x")), second(ParseConsentAction("accept")), second(ParseStanding("active"))} {
		if !errors.Is(err, meter.ErrUnknown) {
			t.Error(err)
		}
	}
	for got, want := range map[string]string{
		Role(0).String(): "Role(0)", Role(9).String(): "Role(9)", ByCustomer.String(): "customer", Actor{BySupplier, "8712345600010"}.String(): "supplier 8712345600010",
		ErrandStep.String(): "step", ActionGrant.String(): "grant", StandsEndedByMove.String(): "ENDED_BY_MOVE",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
