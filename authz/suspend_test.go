package authz

import (
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"kluis/internal/canonical"
	"kluis/meter"
)

var supervisor = Actor{ByEmployee, "https://idp.example#7"}

func TestSuspend(t *testing.T) {
	t.Parallel()
	first := supplier(t, nil, t0)
	suspended, err := Suspend(first, true, supervisor, t0.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if !suspended.Suspended() || suspended.Version() != 2 || suspended.Previous() != first.Digest() || suspended.Actor() != supervisor || first.Suspended() || first.Previous() != [32]byte{} {
		t.Errorf("%+v", suspended)
	}
	wantErr(t, suspended.Accepts(thumbprint(2), t0.Add(time.Hour)), ErrSuspended)
	resumed, err := Suspend(suspended, false, operator, t0.Add(2*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := resumed.Accepts(thumbprint(2), t0.Add(2*time.Hour)); err != nil {
		t.Error(err)
	}
	// A revoked certificate stays so, and all else as it was.
	wantErr(t, resumed.Accepts(thumbprint(1), t0), ErrCertificateRevoked)
	if !reflect.DeepEqual(resumed.facts, first.facts) {
		t.Errorf("%+v", resumed.facts)
	}
	if !NarrowsSupplier(first, suspended) || NarrowsSupplier(suspended, resumed) {
		t.Error("a suspension takes rights away, and its end does not")
	}
	wantErr(t, second(Suspend(first, false, supervisor, t0)), ErrUnchanged)
	wantErr(t, second(Suspend(suspended, true, supervisor, t0.Add(time.Hour))), ErrUnchanged)
	for name, err := range map[string]error{
		"unchanged":    second(Suspend(first, false, supervisor, t0)),
		"no supplier":  second(Suspend(nil, true, supervisor, t0)),
		"nobody":       second(Suspend(first, true, Actor{}, t0)),
		"a supplier":   second(Suspend(first, true, bySupplier(beta), t0)),
		"the customer": second(Suspend(first, true, byEmployee, t0)),
		"no name":      second(Suspend(first, true, Actor{Kind: ByEmployee}, t0)),
		"clock behind": second(Suspend(first, true, supervisor, t0.Add(-maxSkew-time.Second))),
	} {
		wantErr(t, err, ErrSupplier)
		if errors.Is(err, canonical.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Who made a version is in its payload: nobody else can be said to have.
func TestSuspendGolden(t *testing.T) {
	t.Parallel()
	s, err := Suspend(supplier(t, nil, t0), true, supervisor, t0.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(s.Payload()[75:101]); got != "04"+"00000015"+hex.EncodeToString([]byte(supervisor.Name)) {
		t.Errorf("actor %s", got)
	}
	other := *s
	other.actor.Name = "https://idp.example#8"
	if p, err := parseSupplier(other.encode()); err != nil || p.digest == s.digest {
		t.Errorf("%v", err)
	}
	for name, a := range map[string]Actor{"nobody": {}, "a supplier": bySupplier(beta), "the customer": byEmployee, "no name": {Kind: ByEmployee}, "of no kind": {5, "x"}} {
		other.actor = a
		if _, err := parseSupplier(other.encode()); !errors.Is(err, canonical.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other = *supplier(t, nil, t0)
	other.actor = supervisor
	if _, err := parseSupplier(other.encode()); !errors.Is(err, canonical.ErrMalformed) {
		t.Errorf("registered by an employee: %v", err)
	}
}

// An employee's version differs from the one before in that it is suspended, or
// not, and in nothing else, whatever facts are given.
func TestEmployeesOnlySuspend(t *testing.T) {
	t.Parallel()
	first := supplier(t, nil, t0)
	for name, change := range map[string]func(*SupplierFacts){
		"nothing": func(*SupplierFacts) {},
		"name":    func(f *SupplierFacts) { f.Suspended, f.Name = true, "Another" },
		"scope":   func(f *SupplierFacts) { f.Suspended, f.Scopes = true, append(f.Scopes, "consents:write") },
		"certificate": func(f *SupplierFacts) {
			f.Suspended, f.Certificates = true, append(f.Certificates, manyCertificates(9)[8])
		},
		"one left out":  func(f *SupplierFacts) { f.Suspended, f.Certificates = true, f.Certificates[1:] },
		"one withdrawn": func(f *SupplierFacts) { f.Suspended, f.Certificates[0].RevokedAt = true, t0 },
	} {
		if _, err := NewSupplier(first, supplierFacts(change), supervisor, t0); !errors.Is(err, ErrSupplier) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := NewSupplier(first, supplierFacts(change), operator, t0); err != nil {
			t.Errorf("%s, by the registrar: %v", name, err)
		}
	}
	if _, err := NewSupplier(nil, supplierFacts(), supervisor, t0); !errors.Is(err, ErrSupplier) {
		t.Errorf("registered: %v", err)
	}
}

// Whatever a record's history, each version follows on the one before it, and on
// no other.
func TestFollowsOn(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(7, 11))
	versions := []*Supplier{nil}
	for i := range 200 {
		prev := versions[len(versions)-1]
		at := t0.Add(time.Duration(i) * time.Minute)
		var next *Supplier
		var err error
		if prev != nil && random.IntN(2) == 0 {
			next, err = Suspend(prev, !prev.Suspended(), supervisor, at)
		} else {
			facts := supplierFacts(func(f *SupplierFacts) {
				f.Suspended, f.Certificates = random.IntN(2) == 0, manyCertificates(1+random.IntN(60))
			})
			for i := range facts.Certificates { // what was revoked stays so, by its own date
				if random.IntN(9) == 0 {
					facts.Certificates[i].RevokedAt = at
				}
				if prev == nil {
					continue
				}
				if j, found := findCertificate(prev.facts.Certificates, facts.Certificates[i].Thumbprint); found && !prev.facts.Certificates[j].RevokedAt.IsZero() {
					facts.Certificates[i].RevokedAt = at
				}
			}
			next, err = NewSupplier(prev, facts, operator, at)
		}
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, next)
	}
	for i := 1; i < len(versions); i++ {
		if !versions[i].FollowsOn(versions[i-1]) {
			t.Fatalf("version %d does not follow on the one before", i)
		}
		for range 5 {
			if j := random.IntN(len(versions)); j != i-1 && versions[i].FollowsOn(versions[j]) {
				t.Fatalf("version %d follows on version %d", i, j)
			}
		}
	}
	// A version that an employee is said to have made, and that changes more.
	forged := *versions[2]
	forged.actor, forged.facts.Suspended, forged.facts.Name = supervisor, !versions[1].Suspended(), "Another"
	s, err := parseSupplier(forged.encode())
	if err != nil {
		t.Fatal(err)
	}
	if s.FollowsOn(versions[1]) {
		t.Error("an employee changed the name")
	}
}

func TestPermitSuspend(t *testing.T) {
	t.Parallel()
	s := supplier(t, nil, t0)
	own := supplier(t, nil, t0, func(f *SupplierFacts) { f.GLN = employee{}.Supplier() })
	suspend := Employee{Subject: "employee-7", Role: Supervisor, Errand: Errand{Kind: ErrandSupplier, Supplier: alpha, Suspend: true, Reason: "ticket-1"}}
	with := func(change func(*Employee)) *Employee {
		e := suspend
		change(&e)
		return &e
	}
	who := func(e *Employee) Caller { return employee{*e} }
	if got, err := PermitSuspend(who(&suspend), s, true, t0); err != nil || got != (Actor{ByEmployee, "employee-7"}) {
		t.Fatalf("%v, %v", got, err)
	}
	resume := with(func(e *Employee) { e.Errand.Suspend = false })
	if _, err := PermitSuspend(who(resume), s, false, t0); err != nil {
		t.Error(err)
	}
	byEmployee, err := Suspend(s, true, supervisor, t0)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := PermitSuspend(who(resume), byEmployee, false, t0); err != nil || got != (Actor{ByEmployee, "employee-7"}) {
		t.Errorf("resumed what an employee suspended: %v, %v", got, err)
	}
	byRegistrar, err := Suspend(s, true, operator, t0)
	if err != nil {
		t.Fatal(err)
	}
	changed := supplier(t, byEmployee, t0, func(f *SupplierFacts) { f.Suspended, f.Name = true, "Another" })
	// The record may have been sealed in the second in which the token was issued.
	late := supplier(t, s, t0.Add(900*time.Millisecond))
	if _, err := PermitSuspend(who(&suspend), late, true, t0); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		who    Caller
		s      *Supplier
		want   bool
		issued time.Time
	}{
		"nobody":            {nil, s, true, t0},
		"no record":         {who(&suspend), nil, true, t0},
		"a supplier":        {caller(alpha), s, true, t0},
		"the operator":      {caller(employee{}.Supplier()), s, true, t0},
		"an agent":          {who(with(func(e *Employee) { e.Role = Agent })), s, true, t0},
		"an auditor":        {who(with(func(e *Employee) { e.Role = Auditor })), s, true, t0},
		"no role":           {who(with(func(e *Employee) { e.Role = 0 })), s, true, t0},
		"no name":           {who(with(func(e *Employee) { e.Subject = "" })), s, true, t0},
		"no errand":         {who(with(func(e *Employee) { e.Errand = Errand{} })), s, true, t0},
		"another kind":      {who(with(func(e *Employee) { e.Errand.Kind = ErrandOversee })), s, true, t0},
		"another supplier":  {who(with(func(e *Employee) { e.Errand.Supplier = beta })), s, true, t0},
		"no supplier":       {who(with(func(e *Employee) { e.Errand.Supplier = meter.GLN{} })), s, true, t0},
		"the other step":    {who(&suspend), s, false, t0},
		"the step back":     {who(resume), s, true, t0},
		"the operator's":    {who(with(func(e *Employee) { e.Errand.Supplier = employee{}.Supplier() })), own, true, t0},
		"on behalf":         {OnBehalfOf(who(&suspend), alpha), s, true, t0},
		"the registrar's":   {who(resume), byRegistrar, false, t0},
		"changed since":     {who(resume), changed, false, t0},
		"an older token":    {who(&suspend), supplier(t, s, t0.Add(time.Second)), true, t0},
		"a token of no age": {who(&suspend), s, true, time.Time{}},
	} {
		if got, err := PermitSuspend(c.who, c.s, c.want, c.issued); !errors.Is(err, ErrNotPermitted) || !got.IsZero() {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// An employee is nobody in a legal file but for the customer.
func TestEmployeesTakeNoSteps(t *testing.T) {
	t.Parallel()
	f := standings(t)
	for _, s := range []Step{SetOccupancy{days("2027-01-01", "")}, RevokeConsent{uuid(byte(StandsActive))}, RejectConsent{uuid(byte(StandsRequested))}, grant(99)} {
		if _, err := Apply(f, s, supervisor, permitNow, amsterdam); !errors.Is(err, ErrStep) {
			t.Errorf("%T: %v", s, err)
		}
	}
	f2 := *f
	f2.actor = supervisor
	if _, err := parseLegalFile(f2.encode()); !errors.Is(err, canonical.ErrMalformed) {
		t.Errorf("a legal file by an employee: %v", err)
	}
	for i := range f.consents {
		f3 := *f
		f3.facts = f.facts.clone()
		c := &f3.facts.consents[i]
		for _, e := range []*ConsentEvent{&c.Requested, &c.Answered, &c.Revoked} {
			if !e.IsZero() {
				e.By = supervisor
			}
		}
		if _, err := parseLegalFile(f3.encode()); !errors.Is(err, canonical.ErrMalformed) {
			t.Errorf("consent %d by an employee: %v", i, err)
		}
	}
}
