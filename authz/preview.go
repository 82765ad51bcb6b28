package authz

import (
	"time"

	"kluis/meter"
)

// Preview is what a step of a consent would change for the supplier that the
// consent is for. Neither outcome holds grants: by a file that is not sealed
// nobody may look for a row.
type Preview struct {
	Supplier  meter.GLN
	Purpose   meter.Purpose
	ConsentID [16]byte
	At        time.Time // both are as of it
	Before    Access    // empty where the supplier has nothing to do with the metering point
	After     Access    // as Before where the step is refused
	// Refused is why the step could not be taken, as Permit or Apply say; nil: it
	// could. Permitted: it is Apply that does.
	Refused   error
	Permitted bool
}

// PreviewStep makes a dry run for the supplier of a consent, on the file, and on
// a draft with the step applied, for an employee who serves customers and looks
// at the metering point. The step is judged as if the errand were for it, with
// the scope as it is in the file and any evidence. The draft stays here.
//
// The errors are ErrNoRelation, ErrConsentUnknown, ErrNotPermitted and
// ErrClockBehind.
func PreviewStep(c Caller, step Step, r AccessRequest, f *LegalFile, p *meter.Profile, now time.Time) (Preview, error) {
	if c == nil || p == nil || f == nil || f.ean.IsZero() || f.ean != r.EAN {
		return Preview{}, ErrNoRelation
	}
	e := c.Employee()
	if _, behalf := c.(onBehalf); behalf || e == nil || !e.Role.serves() || e.Errand.Kind != ErrandView || e.Errand.EAN != f.ean {
		return Preview{}, ErrNoRelation
	}
	on := Errand{Kind: ErrandStep, EAN: f.ean, Reason: e.Errand.Reason, Action: ActionOf(step)}
	var scope ConsentScope
	switch s := step.(type) {
	case GrantConsent:
		scope, on.Evidence = s.Scope(), s.Evidence
	case AcceptConsent:
		on.ConsentID, on.Evidence = s.ID, s.Evidence
	case RejectConsent:
		on.ConsentID = s.ID
	case RevokeConsent:
		on.ConsentID = s.ID
	default:
		return Preview{}, ErrNotPermitted
	}
	if on.Action != ActionRegister {
		k := f.find(on.ConsentID)
		if k == nil {
			return Preview{}, because(ErrConsentUnknown, "check both")
		}
		scope = k.Scope()
	}
	on.Scope = scope.Digest(f.ean)
	out := Preview{Supplier: scope.Supplier, Purpose: scope.Purpose, ConsentID: on.ConsentID}
	// The clock that sealed the file may be a little ahead of this one.
	at, err := sealingTime(micros(now), f.sealedAt)
	if err != nil {
		return Preview{}, err
	}
	out.At = at
	var draft *LegalFile
	by, refused := permit(sent{c.Supplier(), &Employee{Subject: e.Subject, Role: e.Role, Errand: on}}, step, f, p, at)
	if refused == nil {
		out.Permitted = true
		draft, refused = Apply(f, step, by, at, p.Location())
	}
	out.Refused = refused
	if out.Before, err = tellable(scope.Supplier, r, f, p, at); err != nil {
		return Preview{}, err
	}
	if out.After = out.Before; draft != nil {
		out.At = draft.sealedAt
		if out.After, err = tellable(scope.Supplier, r, draft, p, draft.sealedAt); err != nil {
			return Preview{}, err
		}
	}
	return out, nil
}

// sent is a caller for permit alone, within PreviewStep.
type sent struct {
	operator meter.GLN
	e        *Employee
}

func (s sent) Supplier() meter.GLN { return s.operator }
func (s sent) Employee() *Employee { return s.e }

// tellable is a dry run for a supplier without its grants.
func tellable(g meter.GLN, r AccessRequest, f *LegalFile, p market, now time.Time) (Access, error) {
	who := reader{supplier: g}
	if f.parties[g] == nil {
		return Access{}, nil
	}
	a, err := dryRun(r, func(q Request) (Grant, []Withheld, error) { return who.decide(q, f, p, now) })
	a.grants = nil
	return a, err
}

// Inventory lets whoever looks at a metering point ask which days of which
// fields are stored there, and nothing of them: no row is fetched by it, and
// nothing opened. Only Inventorize makes one that is not empty. Immutable.
type Inventory struct {
	ean    meter.EAN
	days   meter.DayRange
	fields []meter.FieldCode
}

// EAN names the metering point; zero for the zero Inventory.
func (i Inventory) EAN() meter.EAN { return i.ean }

// Days are those that are retained.
func (i Inventory) Days() meter.DayRange { return i.days }

// Fields are those of the metering point's commodity. A copy.
func (i Inventory) Fields() []meter.FieldCode { return append([]meter.FieldCode(nil), i.fields...) }

// Inventorize is for employees of any role on an errand to look at the metering
// point; else ErrNoRelation.
func Inventorize(c Caller, f *LegalFile, p *meter.Profile, now time.Time) (Inventory, error) {
	if c == nil || f == nil || p == nil || f.ean.IsZero() {
		return Inventory{}, ErrNoRelation
	}
	e := c.Employee()
	if _, behalf := c.(onBehalf); behalf || e == nil || !e.Role.May(ErrandView) || e.Errand.Kind != ErrandView || e.Errand.EAN != f.ean {
		return Inventory{}, ErrNoRelation
	}
	out := Inventory{ean: f.ean, days: Retained(p, now)}
	for _, field := range p.Fields(f.commodity) {
		out.fields = append(out.fields, field.Code)
	}
	return out, nil
}
