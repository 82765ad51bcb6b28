package authz

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"kluis/meter"
)

// The consents of standings, one in each.
var oneOfEach = []Standing{StandsRequested, StandsActive, StandsRejected, StandsRevoked, StandsExpired, StandsLapsed, StandsEndedByMove}

var permitNow = instant("2026-03-01T10:00:00Z")

// standings is a file of beta's consents: of each standing one, whose id is the
// standing's number. alpha supplied before, and has one of its own: 8. Of the
// market it needs that requests lapse within 40 days, and that moves end.
func standings(t testing.TB) *LegalFile {
	t.Helper()
	var f *LegalFile
	take := func(when string, s Step, by Actor) {
		var err error
		if f, err = Apply(f, s, by, instant(when), amsterdam); err != nil {
			t.Fatalf("%T: %v", s, err)
		}
	}
	given := func(id Standing, change ...func(*GrantConsent)) GrantConsent {
		return grant(byte(id), append([]func(*GrantConsent){func(g *GrantConsent) {
			g.Supplier, g.Days, g.Evidence = beta, days("2025-07-01", ""), fmt.Sprint("dossier/", id)
		}}, change...)...)
	}
	take("2026-01-05T10:00:00Z", Register{home, meter.Electricity}, operator)
	take("2026-01-05T10:00:00Z", SetOccupancy{days("2020-01-01", "")}, operator)
	take("2026-01-05T10:00:00Z", SetSupply{alpha, days("2020-01-01", "")}, operator)
	take("2026-01-05T10:00:00Z", SetSupply{beta, days("2025-07-01", "")}, operator)
	take("2026-01-05T10:01:00Z", given(StandsEndedByMove), operator)
	take("2026-01-10T10:00:00Z", SetOccupancy{days("2026-01-10", "")}, operator)
	take("2026-01-12T10:00:00Z", request(byte(StandsLapsed)), bySupplier(beta))
	take("2026-01-12T10:01:00Z", given(StandsExpired, func(g *GrantConsent) { g.ValidUntil = instant("2026-02-01T00:00:00Z") }), operator)
	take("2026-02-20T10:00:00Z", request(byte(StandsRequested)), bySupplier(beta))
	take("2026-02-20T10:01:00Z", given(StandsActive), byEmployee)
	take("2026-02-20T10:02:00Z", request(byte(StandsRejected)), bySupplier(beta))
	take("2026-02-20T10:03:00Z", RejectConsent{uuid(byte(StandsRejected))}, byEmployee)
	take("2026-02-20T10:04:00Z", given(StandsRevoked), byEmployee)
	take("2026-02-20T10:05:00Z", RevokeConsent{uuid(byte(StandsRevoked))}, bySupplier(beta))
	take("2026-02-20T10:06:00Z", given(8, func(g *GrantConsent) { g.Supplier = alpha }), byEmployee)
	return f
}

func TestStandingOfEach(t *testing.T) {
	t.Parallel()
	for country, p := range markets(t) {
		f := standings(t)
		for _, want := range oneOfEach {
			c, ok := f.Consent(uuid(byte(want)))
			if got := f.Standing(&c, p, permitNow); !ok || got != want {
				t.Errorf("%s: %s, want %s", country, got, want)
			}
			if again, err := ParseStanding(want.String()); err != nil || again != want {
				t.Errorf("%s: %v", want, err)
			}
		}
	}
}

// Every caller, every step, every standing.
func TestPermit(t *testing.T) {
	t.Parallel()
	f := standings(t)
	letters := map[error]string{
		nil: ".", ErrNoRelation: "R", ErrNotPermitted: "P", ErrConsentUnknown: "U", ErrConsentAnswered: "A", ErrConsentLapsed: "L", ErrConsentEnded: "E",
	}
	agent := func(s Step) Caller { return toTake(s, f) }
	as := func(r Role) func(Step) Caller {
		return func(s Step) Caller {
			c := toTake(s, f)
			c.e.Role = r
			return c
		}
	}
	errand := func(k ErrandKind) func(Step) Caller {
		return func(s Step) Caller {
			c := toTake(s, f)
			c.e.Errand.Kind, c.e.Errand.Days, c.e.Errand.Fields = k, days("2026-01-01", "2026-02-01"), []meter.FieldCode{1}
			return c
		}
	}
	supplier := func(g meter.GLN) func(Step) Caller { return func(Step) Caller { return caller(g) } }
	callers := []struct {
		name string
		call func(Step) Caller
		// By step, the standings in the order of oneOfEach; "" is never.
		accept, reject, revoke string
	}{
		{"agent", agent, ".AAEELE", ".AAEELE", "..AEELE"},
		{"supervisor", as(Supervisor), ".AAEELE", ".AAEELE", "..AEELE"},
		{"auditor", as(Auditor), "", "", ""},
		{"no role", as(0), "", "", ""},
		{"unknown role", as(4), "", "", ""},
		{"sent to read", errand(ErrandReadings), "", "", ""},
		{"sent to look", errand(ErrandView), "", "", ""},
		{"sent for nothing", errand(0), "", "", ""},
		{"its supplier", supplier(beta), "", "", "..AEELE"},
		{"another supplier", supplier(alpha), "", "", "UUUUUUU"},
		{"a stranger", supplier(gamma), "RRRRRRR", "RRRRRRR", "RRRRRRR"},
		{"nobody", supplier(meter.GLN{}), "RRRRRRR", "RRRRRRR", "RRRRRRR"},
		{"on behalf of the supplier", func(s Step) Caller { return OnBehalfOf(toTake(s, f), beta) }, "", "", ""},
	}
	// A stranger learns of no step whether there is one.
	other := func(accept string) string {
		if strings.HasPrefix(accept, "R") {
			return accept
		}
		return ""
	}
	for country, p := range markets(t) {
		for _, c := range callers {
			t.Run(country+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				for name, row := range map[string]struct {
					step func(id [16]byte) Step
					want string
				}{
					"accept":   {func(id [16]byte) Step { return AcceptConsent{id, "call/1"} }, c.accept},
					"reject":   {func(id [16]byte) Step { return RejectConsent{id} }, c.reject},
					"revoke":   {func(id [16]byte) Step { return RevokeConsent{id} }, c.revoke},
					"supply":   {func([16]byte) Step { return SetSupply{alpha, days("2026-02-01", "")} }, other(c.accept)},
					"move":     {func([16]byte) Step { return SetOccupancy{days("2026-02-01", "")} }, other(c.accept)},
					"correct":  {func([16]byte) Step { return CorrectSupply{alpha, days("2026-02-01", "")} }, other(c.accept)},
					"corrects": {func([16]byte) Step { return CorrectMove{day("2026-01-10"), day("2026-01-11")} }, other(c.accept)},
					"opt out":  {func([16]byte) Step { return SetOptOut{days("2026-02-01", "")} }, other(c.accept)},
					"opt in":   {func([16]byte) Step { return EndOptOut{day("2026-02-01")} }, other(c.accept)},
					"register": {func([16]byte) Step { return Register{home, meter.Electricity} }, other(c.accept)},
				} {
					want := row.want
					if want == "" {
						want = "PPPPPPP"
					}
					got := ""
					for _, s := range oneOfEach {
						step := row.step(uuid(byte(s)))
						by, err := Permit(c.call(step), step, f, p, permitNow)
						letter, ok := letters[kindOf(err)]
						if !ok {
							t.Fatalf("%s: %v", name, err)
						}
						got += letter
						speaks(t, err)
						if err == nil {
							if _, err := Apply(f, step, by, permitNow, amsterdam); err != nil {
								t.Errorf("%s of %s is permitted, and then: %v", name, s, err)
							}
						}
					}
					if got != want {
						t.Errorf("%s: %s, want %s", name, got, want)
					}
				}
			})
		}
	}
}

// speaks fails when an error names anybody, or says nothing.
func speaks(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, word := range []string{home.String(), alpha.String(), beta.String(), "dossier", "contract", "employee", "call/"} {
		if strings.Contains(err.Error(), word) {
			t.Errorf("%q names a party", err)
		}
	}
	for _, kind := range []error{ErrConsentUnknown, ErrConsentAnswered, ErrConsentLapsed, ErrConsentEnded, ErrConsentNotPossible, ErrTooManyConsents} {
		if errors.Is(err, kind) && (!errors.Is(err, ErrStep) || len(err.Error()) < len(kind.Error())+10) {
			t.Errorf("%q is no refusal of a step, or says not why", err)
		}
	}
}

// A token that is for something else by a hair gives nothing.
func TestPermitHoldsToTheErrand(t *testing.T) {
	t.Parallel()
	p, f := dutch(t), standings(t)
	requested, active := uuid(byte(StandsRequested)), uuid(byte(StandsActive))
	accept, reject, revoke := AcceptConsent{requested, "call/1"}, RejectConsent{requested}, RevokeConsent{active}
	register := grant(20, func(g *GrantConsent) { g.Supplier, g.Evidence = beta, "call/2" })
	for _, step := range []Step{accept, reject, revoke, register} {
		if by, err := Permit(toTake(step, f), step, f, p, permitNow); err != nil || by != byEmployee {
			t.Fatalf("%T: %v, by %v", step, err, by)
		}
	}
	for _, c := range []struct {
		name   string
		step   Step
		change func(*Employee)
		want   error
	}{
		{"another metering point", accept, func(e *Employee) { e.Errand.EAN = testEAN(2) }, ErrNotPermitted},
		{"no metering point", accept, func(e *Employee) { e.Errand.EAN = meter.EAN{} }, ErrNotPermitted},
		{"to reject", accept, func(e *Employee) { e.Errand.Action = ActionReject }, ErrNotPermitted},
		{"to revoke", reject, func(e *Employee) { e.Errand.Action = ActionRevoke }, ErrNotPermitted},
		{"to grant, and rejects", reject, func(e *Employee) { e.Errand.Action = ActionGrant }, ErrNotPermitted},
		{"no action", revoke, func(e *Employee) { e.Errand.Action = 0 }, ErrNotPermitted},
		{"another consent", accept, func(e *Employee) { e.Errand.ConsentID = active }, ErrNotPermitted},
		{"another consent to revoke", revoke, func(e *Employee) { e.Errand.ConsentID = uuid(8) }, ErrNotPermitted},
		{"no consent", revoke, func(e *Employee) { e.Errand.ConsentID = [16]byte{} }, ErrNotPermitted},
		{"a consent to register", register, func(e *Employee) { e.Errand.ConsentID = register.ID }, ErrNotPermitted},
		{"another scope", accept, func(e *Employee) { e.Errand.Scope[31] ^= 1 }, ErrNotPermitted},
		{"another scope to reject", reject, func(e *Employee) { e.Errand.Scope[0] ^= 1 }, ErrNotPermitted},
		{"another scope to revoke", revoke, func(e *Employee) { e.Errand.Scope = [32]byte{} }, ErrNotPermitted},
		{"another scope to register", register, func(e *Employee) { e.Errand.Scope[7] ^= 1 }, ErrNotPermitted},
		{"other evidence", accept, func(e *Employee) { e.Errand.Evidence = "call/9" }, ErrNotPermitted},
		{"no evidence", accept, func(e *Employee) { e.Errand.Evidence = "" }, ErrNotPermitted},
		{"other evidence to register", register, func(e *Employee) { e.Errand.Evidence = "call/9" }, ErrNotPermitted},
		{"nobody", accept, func(e *Employee) { e.Subject = "" }, ErrNotPermitted},
		{"somebody of two lines", accept, func(e *Employee) { e.Subject = "a\nb" }, ErrNotPermitted},
		{"an employee of nothing", accept, func(e *Employee) { *e = Employee{} }, ErrNotPermitted},
		{"a supplier's action", request(21), func(e *Employee) { e.Errand.Action = ActionRequest }, ErrNotPermitted},
	} {
		call := toTake(c.step, f)
		c.change(&call.e)
		if _, err := Permit(call, c.step, f, p, permitNow); kindOf(err) != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// Another scope, whatever of it.
	for name, change := range map[string]func(*GrantConsent){
		"supplier": func(g *GrantConsent) { g.Supplier = alpha }, "purpose": func(g *GrantConsent) { g.Purpose = meter.Billing },
		"classes": func(g *GrantConsent) { g.Classes = []meter.Class{1, 2} }, "granularity": func(g *GrantConsent) { g.Granularity++ },
		"from": func(g *GrantConsent) { g.Days.From-- }, "to": func(g *GrantConsent) { g.Days.To = day("2030-01-01") },
		"until": func(g *GrantConsent) { g.ValidUntil = g.ValidUntil.Add(-time.Second) }, "evidence": func(g *GrantConsent) { g.Evidence = "call/3" },
	} {
		other := register
		change(&other)
		if _, err := Permit(toTake(register, f), other, f, p, permitNow); kindOf(err) != ErrNotPermitted {
			t.Errorf("another %s: %v", name, err)
		}
	}
	// The same but in words: classes in another order, a fraction of a second.
	same := register
	same.Classes, same.ValidUntil = []meter.Class{meter.Intervals, meter.Intervals}, same.ValidUntil.Add(time.Second-time.Microsecond)
	if _, err := Permit(toTake(register, f), same, f, p, permitNow); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		f    *LegalFile
		p    *meter.Profile
		c    Caller
		step Step
		want error
	}{
		"no file":             {nil, p, toTake(accept, f), accept, ErrNoRelation},
		"a file of none":      {&LegalFile{}, p, toTake(accept, f), accept, ErrNoRelation},
		"no profile":          {f, nil, toTake(accept, f), accept, ErrNoRelation},
		"no caller":           {f, p, nil, accept, ErrNoRelation},
		"no step":             {f, p, toTake(accept, f), nil, ErrStep},
		"no id":               {f, p, toTake(AcceptConsent{}, f), AcceptConsent{}, ErrStep},
		"a consent there not": {f, p, toTake(RejectConsent{uuid(99)}, f), RejectConsent{uuid(99)}, ErrConsentUnknown},
		"a step by address":   {f, p, toTake(reject, f), &reject, ErrNotPermitted},
	} {
		if _, err := Permit(c.c, c.step, c.f, c.p, permitNow); kindOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The customer's word counts once, also when what came of it has ended.
	next, err := Apply(f, register, byEmployee, permitNow, amsterdam)
	wantErr(t, err, nil)
	twice := register
	twice.ID = uuid(22)
	for _, f := range []*LegalFile{next, must(Apply(next, RevokeConsent{register.ID}, byEmployee, permitNow, amsterdam))(t)} {
		if _, err := Permit(toTake(twice, f), twice, f, p, permitNow); kindOf(err) != ErrConsentAnswered {
			t.Errorf("registered twice: %v", err)
		}
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// What a supplier may ask for, and an employee register.
func TestPermitKeepsToWhatAConsentCanBe(t *testing.T) {
	t.Parallel()
	nl, be := markets(t)["NL"], markets(t)["BE"]
	longest := func(p *meter.Profile) time.Time {
		return meter.DayOf(permitNow, amsterdam).AddMonths(p.ConsentTerms().LongestMonths).Start(amsterdam)
	}
	for _, c := range []struct {
		name   string
		p      *meter.Profile
		change func(*RequestConsent)
		want   error
	}{
		{"what the rule gives", nl, func(*RequestConsent) {}, nil},
		{"as fine as the rule", nl, func(r *RequestConsent) { r.Granularity = meter.PT15M }, nil},
		{"coarser", nl, func(r *RequestConsent) { r.Granularity = meter.P1M }, nil},
		{"a class that no rule gives on consent", nl, func(r *RequestConsent) { r.Classes = []meter.Class{meter.Registers} }, ErrConsentNotPossible},
		{"one such class beside another", nl, func(r *RequestConsent) { r.Classes = []meter.Class{meter.Registers, meter.Intervals} }, ErrConsentNotPossible},
		{"both classes where both are given", be, func(r *RequestConsent) {
			r.Classes, r.Granularity = []meter.Class{meter.Registers, meter.Intervals}, meter.PT15M
		}, nil},
		{"a purpose that no rule gives on consent", nl, func(r *RequestConsent) { r.Purpose = meter.Billing }, ErrConsentNotPossible},
		{"customer service", nl, func(r *RequestConsent) { r.Purpose = meter.CustomerService }, ErrConsentNotPossible},
		{"to the end of the market's longest", nl, func(r *RequestConsent) { r.ValidUntil = longest(nl) }, nil},
		{"a second longer", nl, func(r *RequestConsent) { r.ValidUntil = longest(nl).Add(time.Second) }, ErrConsentNotPossible},
		{"shorter in another market", be, func(r *RequestConsent) { r.ValidUntil = longest(nl) }, ErrConsentNotPossible},
		{"over already", nl, func(r *RequestConsent) { r.ValidUntil = permitNow }, ErrConsentNotPossible},
		{"over in less than a second", nl, func(r *RequestConsent) { r.ValidUntil = permitNow.Add(time.Second - 1) }, ErrConsentNotPossible},
		{"over in a second", nl, func(r *RequestConsent) { r.ValidUntil = permitNow.Add(time.Second) }, nil},
		{"the last day before its supply", nl, func(r *RequestConsent) { r.Days = days("2025-06-01", "2025-07-01") }, ErrConsentNotPossible},
		{"the first day of its supply", nl, func(r *RequestConsent) { r.Days = days("2025-06-01", "2025-07-02") }, nil},
		{"days without supply where none is needed", be, func(r *RequestConsent) { r.Days = days("2025-06-01", "2025-07-01") }, nil},
		{"days to come", nl, func(r *RequestConsent) { r.Days = days("2027-01-01", "2027-02-01") }, nil},
		{"days too old", nl, func(r *RequestConsent) { r.Days = days("2023-01-01", "2024-03-01") }, ErrConsentNotPossible},
		{"days too old in one market", be, func(r *RequestConsent) { r.Days = days("2023-01-01", "2024-03-01") }, nil},
		{"days before the rule", be, func(r *RequestConsent) { r.Days = days("2019-06-01", "2019-07-01") }, ErrConsentNotPossible},
		{"for another", nl, func(r *RequestConsent) { r.Supplier = alpha }, ErrNotPermitted},
		{"without evidence", nl, func(r *RequestConsent) { r.Evidence = "" }, ErrStep},
		{"without an id", nl, func(r *RequestConsent) { r.ID = [16]byte{} }, ErrStep},
		{"days reversed", nl, func(r *RequestConsent) { r.Days = days("2026-01-02", "2026-01-01") }, ErrStep},
		{"a class unknown", nl, func(r *RequestConsent) { r.Classes = []meter.Class{3} }, ErrStep},
	} {
		f := standings(t)
		r := request(20, func(r *RequestConsent) { r.Evidence = "contract/20" }, c.change)
		by, err := Permit(caller(beta), r, f, c.p, permitNow)
		speaks(t, err)
		if kindOf(err) != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
		if err == nil {
			if _, err := Apply(f, r, by, permitNow, amsterdam); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		// An employee registers the same, to any supplier, but of the customer's days only.
		g := GrantConsent(r)
		want := c.want
		if o, _ := f.OccupancyAt(meter.DayOf(permitNow, amsterdam)); want == nil && g.Days.Intersect(o.Days).Empty() {
			want = ErrConsentNotPossible
		}
		if g.Supplier == beta {
			if _, err := Permit(toTake(g, f), g, f, c.p, permitNow); kindOf(err) != want {
				t.Errorf("%s, registered: %v, want %v", c.name, err, want)
			}
		}
	}
}

// A former supplier learns by asking whether somebody lives there, and no more:
// not when the customer moved in.
func TestRequestsDoNotProbe(t *testing.T) {
	t.Parallel()
	p, f := dutch(t), standings(t)
	before := request(20, func(r *RequestConsent) {
		r.Supplier, r.Days, r.Evidence = alpha, days("2025-06-01", "2025-06-02"), "contract/20" // the customer before
	})
	by, err := Permit(caller(alpha), before, f, p, permitNow)
	wantErr(t, err, nil)
	next := must(Apply(f, before, by, permitNow, amsterdam))(t)
	// And gains nothing: it can only be rejected.
	accept := AcceptConsent{uuid(20), "call/1"}
	if _, err := Permit(toTake(accept, next), accept, next, p, permitNow); kindOf(err) != ErrConsentNotPossible {
		t.Error(err)
	}
	if _, err := Apply(next, accept, byEmployee, permitNow, amsterdam); kindOf(err) != ErrConsentNotPossible {
		t.Error(err)
	}
	if _, err := Permit(toTake(RejectConsent{uuid(20)}, next), RejectConsent{uuid(20)}, next, p, permitNow); err != nil {
		t.Error(err)
	}
	empty := must(Apply(f, SetOccupancy{days("2026-01-10", "2026-02-25")}, operator, permitNow, amsterdam))(t)
	if _, err := Permit(caller(beta), request(20), empty, p, permitNow); kindOf(err) != ErrConsentNotPossible {
		t.Error(err)
	}
}

// One may ask up to a bound, whatever became of what was asked.
func TestRequestsAreBounded(t *testing.T) {
	t.Parallel()
	p, f := dutch(t), standings(t)
	at := permitNow
	for i := len(oneOfEach); i < MaxConsents; i++ {
		r := request(byte(20+i), func(r *RequestConsent) { r.Evidence = fmt.Sprint("contract/", i) })
		by, err := Permit(caller(beta), r, f, p, at)
		wantErr(t, err, nil)
		f = must(Apply(f, r, by, at, amsterdam))(t)
		if i%2 == 0 {
			f = must(Apply(f, RevokeConsent{r.ID}, by, at, amsterdam))(t)
		}
	}
	if _, err := Permit(caller(beta), request(200), f, p, at); kindOf(err) != ErrTooManyConsents {
		t.Error(err)
	}
	// That is its own bound: another may ask, and the customer answer.
	if _, err := Permit(caller(alpha), request(200, func(r *RequestConsent) { r.Supplier, r.Days = alpha, days("2025-06-01", "") }), f, p, at); err != nil {
		t.Error(err)
	}
	accept := AcceptConsent{uuid(byte(StandsRequested)), "call/1"}
	if _, err := Permit(toTake(accept, f), accept, f, p, at); err != nil {
		t.Error(err)
	}
}

// Who may revoke is the market's word; the customer always, and a request may
// be withdrawn by who made it.
func TestWhoMayRevoke(t *testing.T) {
	t.Parallel()
	p, err := meter.ParseProfile([]byte(strings.Replace(string(meter.NL()), "revoked_by: [CUSTOMER, SUPPLIER]", "revoked_by: [CUSTOMER]", 1)))
	if err != nil || p.ConsentTerms().MayRevoke(meter.SupplierParty) {
		t.Fatal(err)
	}
	f := standings(t)
	active, requested := RevokeConsent{uuid(byte(StandsActive))}, RevokeConsent{uuid(byte(StandsRequested))}
	if _, err := Permit(caller(beta), active, f, p, permitNow); kindOf(err) != ErrNotPermitted {
		t.Error(err)
	}
	for _, c := range []struct {
		caller Caller
		step   Step
	}{{caller(beta), requested}, {toTake(active, f), active}, {toTake(requested, f), requested}} {
		if _, err := Permit(c.caller, c.step, f, p, permitNow); err != nil {
			t.Error(err)
		}
	}
}

// A request counts the market's days, to the microsecond, and waits for no
// other customer.
func TestRequestLapses(t *testing.T) {
	t.Parallel()
	p := dutch(t)
	asked := instant("2026-01-20T22:59:59Z") // 23:59:59 on 20 January
	base := history(t, asked.Add(-time.Hour), Register{home, meter.Electricity}, SetOccupancy{days("2020-01-01", "")}, SetSupply{beta, days("2020-01-01", "")})
	f := must(Apply(base, request(1), bySupplier(beta), asked, amsterdam))(t)
	short := must(Apply(base, request(1, func(r *RequestConsent) { r.ValidUntil = instant("2026-02-01T00:00:00Z") }), bySupplier(beta), asked, amsterdam))(t)
	moved := must(Apply(f, SetOccupancy{days("2026-02-10", "")}, operator, asked, amsterdam))(t)
	accept := AcceptConsent{uuid(1), "call/1"}
	for _, c := range []struct {
		name string
		f    *LegalFile
		now  string
		want error
		is   Standing
	}{
		{"at once", f, "2026-01-20T22:59:59Z", nil, StandsRequested},
		{"on the thirtieth day after", f, "2026-02-19T22:59:59.999999Z", nil, StandsRequested},
		{"and then no more", f, "2026-02-19T23:00:00Z", ErrConsentLapsed, StandsLapsed},
		{"before its own end", short, "2026-01-31T23:59:59.999999Z", nil, StandsRequested},
		{"and not after", short, "2026-02-01T00:00:00Z", ErrConsentLapsed, StandsLapsed},
		{"by who was asked", moved, "2026-02-09T22:59:59.999999Z", nil, StandsRequested},
		{"and nobody else", moved, "2026-02-09T23:00:00Z", ErrConsentEnded, StandsEndedByMove},
		{"also when it would have lapsed since", moved, "2026-03-09T23:00:00Z", ErrConsentEnded, StandsEndedByMove},
	} {
		now := instant(c.now)
		k, _ := c.f.Consent(uuid(1))
		if got := c.f.Standing(&k, p, now); got != c.is {
			t.Errorf("%s: %s", c.name, got)
		}
		for _, step := range []Step{accept, RejectConsent{uuid(1)}} {
			if _, err := Permit(toTake(step, c.f), step, c.f, p, now); kindOf(err) != c.want {
				t.Errorf("%s: %T: %v", c.name, step, err)
			}
		}
	}
}
