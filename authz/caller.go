package authz

import "kluis/meter"

// Caller is an authenticated caller: a supplier, or an employee of the grid
// operator. Only internal/authn makes values that satisfy it in production,
// and OnBehalfOf, from one of those.
type Caller interface {
	// Supplier is the supplier who calls; for an employee the grid operator's
	// own GLN.
	Supplier() meter.GLN
	// Employee is nil for a supplier.
	Employee() *Employee
}

// Role is what an employee of the grid operator may do.
type Role uint8

// Never renumber.
const (
	Agent      Role = 1 // serves customers
	Supervisor Role = 2 // of agents; may do the same
	Auditor    Role = 3 // sees what is recorded, and neither reads values nor takes steps
)

var roleNames = [...]string{Agent: "agent", Supervisor: "supervisor", Auditor: "auditor"}

func (r Role) String() string { return nameOf(r, roleNames[:], "Role") }

// ParseRole reads "agent", "supervisor" or "auditor". Its error wraps
// meter.ErrUnknown and never echoes the text; so those below.
func ParseRole(s string) (Role, error) { return parseName[Role](s, roleNames[:], "role") }

// May says whether an employee of the role may have an errand of the kind.
func (r Role) May(k ErrandKind) bool {
	switch k {
	case ErrandReadings, ErrandStep, ErrandFind:
		return r.serves()
	case ErrandView, ErrandOversee:
		return r.serves() || r == Auditor
	case ErrandSupplier:
		return r == Supervisor
	}
	return false
}

// serves says whether the role acts for customers.
func (r Role) serves() bool { return r == Agent || r == Supervisor }

// ErrandKind is what an employee's token is for.
type ErrandKind uint8

// Never renumber.
const (
	ErrandReadings ErrandKind = 1 // values, for the customer on the line
	ErrandView     ErrandKind = 2 // consents, who may read what, the access log
	ErrandStep     ErrandKind = 3 // one step of one consent

	// Of no metering point: Decide, DryRun and Permit give nothing on them.
	ErrandFind     ErrandKind = 4 // the metering points at an address
	ErrandOversee  ErrandKind = 5 // suppliers, health, what the auditor's daemon counts
	ErrandSupplier ErrandKind = 6 // suspend one supplier, or resume it
)

var errandKindNames = [...]string{
	ErrandReadings: "readings", ErrandView: "view", ErrandStep: "step", ErrandFind: "find", ErrandOversee: "oversee", ErrandSupplier: "supplier",
}

// ErrandKinds are all there are.
func ErrandKinds() []ErrandKind {
	return []ErrandKind{ErrandReadings, ErrandView, ErrandStep, ErrandFind, ErrandOversee, ErrandSupplier}
}

// OfPoint says whether an errand of the kind is for one metering point.
func (k ErrandKind) OfPoint() bool {
	return k == ErrandReadings || k == ErrandView || k == ErrandStep
}

func (k ErrandKind) String() string { return nameOf(k, errandKindNames[:], "ErrandKind") }

// ParseErrandKind reads "readings", "view", "step", "find", "oversee" or
// "supplier".
func ParseErrandKind(s string) (ErrandKind, error) {
	return parseName[ErrandKind](s, errandKindNames[:], "kind of errand")
}

// ConsentAction is a step of a consent's life, as tokens and records name it.
type ConsentAction uint8

// The values are part of the access records: never renumber.
const (
	ActionRegister ConsentAction = 1 // an employee, on the customer's word: GrantConsent
	ActionGrant    ConsentAction = 2 // the customer's yes to a request: AcceptConsent
	ActionReject   ConsentAction = 3 // the customer's no: RejectConsent
	ActionRevoke   ConsentAction = 4 // RevokeConsent
	ActionRequest  ConsentAction = 5 // a supplier: RequestConsent
)

var consentActionNames = [...]string{ActionRegister: "register", ActionGrant: "grant", ActionReject: "reject", ActionRevoke: "revoke", ActionRequest: "request"}

func (a ConsentAction) String() string { return nameOf(a, consentActionNames[:], "ConsentAction") }

// ParseConsentAction reads "register", "grant", "reject", "revoke" or
// "request".
func ParseConsentAction(s string) (ConsentAction, error) {
	return parseName[ConsentAction](s, consentActionNames[:], "step of a consent")
}

// ActionOf names a step of a consent's life; 0 is any other step.
func ActionOf(s Step) ConsentAction {
	switch s.(type) {
	case GrantConsent:
		return ActionRegister
	case AcceptConsent:
		return ActionGrant
	case RejectConsent:
		return ActionReject
	case RevokeConsent:
		return ActionRevoke
	case RequestConsent:
		return ActionRequest
	}
	return 0
}

// Errand is what an employee's token is for: what the employee just asked, and
// nothing else (RFC 9396).
type Errand struct {
	Kind   ErrandKind
	EAN    meter.EAN // zero unless Kind.OfPoint
	Reason string    // 1 to 128 printable bytes

	// Of ErrandReadings.
	Days   meter.DayRange
	Fields []meter.FieldCode // ascending, at least one

	// Of ErrandStep.
	Action    ConsentAction
	ConsentID [16]byte // zero for ActionRegister
	Scope     [32]byte // ConsentScope.Digest of what the employee saw
	Evidence  string   // of ActionRegister and ActionGrant

	// Of ErrandFind.
	Postcode    meter.Postcode
	HouseNumber meter.HouseNumber

	// Of ErrandSupplier.
	Supplier meter.GLN
	Suspend  bool // else resume
}

// Employee is an employee of the grid operator, on an errand.
type Employee struct {
	Subject string // names the human at the identity provider: 1 to 128 printable bytes
	Role    Role
	Errand  Errand
}
