package authz

import (
	"fmt"

	"kluis/internal/canonical"
	"kluis/meter"
)

// ActorKind says in what capacity somebody takes a step.
type ActorKind uint8

// The values are part of the sealed formats: never renumber.
const (
	ByOperator ActorKind = 1 // the registrar, by its certificate
	BySupplier ActorKind = 2 // a supplier, by its token
	ByCustomer ActorKind = 3 // the customer, through an employee of the grid operator
	ByEmployee ActorKind = 4 // an employee of the grid operator, for the operator, by a token
)

var actorKindNames = [...]string{ByOperator: "operator", BySupplier: "supplier", ByCustomer: "customer", ByEmployee: "employee"}

func (k ActorKind) String() string { return nameOf(k, actorKindNames[:], "ActorKind") }

// Actor is who took a step.
type Actor struct {
	Kind ActorKind
	Name string // the certificate's name; the supplier's GLN; the employee's subject: 1 to 128 printable bytes
}

// String is for people: "supplier 8712345600010".
func (a Actor) String() string { return a.Kind.String() + " " + a.Name }

// IsZero says whether it names nobody.
func (a Actor) IsZero() bool { return a == Actor{} }

func (a Actor) valid() bool {
	if !plainText(a.Name, maxActor) {
		return false
	}
	switch a.Kind {
	case ByOperator, ByCustomer, ByEmployee:
		return true
	case BySupplier:
		_, err := meter.ParseGLN(a.Name)
		return err == nil
	}
	return false
}

// may says whether anybody of the kind may take the step at all, whatever a
// market's rules are: a supplier asks and takes back, the customer decides,
// all else is the operator's registrar's.
func (a Actor) may(s Step) bool {
	if a.Kind == ByEmployee {
		return false
	}
	switch s := s.(type) {
	case RequestConsent:
		return a.Kind == ByOperator || a.is(s.Supplier)
	case RevokeConsent:
		return true
	case AcceptConsent, RejectConsent, GrantConsent:
		return a.Kind != BySupplier
	}
	return a.Kind == ByOperator
}

// is says whether the actor is this supplier.
func (a Actor) is(g meter.GLN) bool { return a.Kind == BySupplier && a.Name == g.String() }

func (a Actor) encode(w *canonical.Writer) {
	w.U8(uint8(a.Kind))
	w.String(a.Name)
}

// changesRecords says whether anybody of the kind may make a version of a
// supplier record: the registrar, and an employee who suspends or resumes.
func (a Actor) changesRecords() bool {
	return a.valid() && (a.Kind == ByOperator || a.Kind == ByEmployee)
}

// readActor reads an actor of a legal file, which must be there.
func readActor(r *canonical.Reader) Actor {
	a := Actor{Kind: ActorKind(r.U8()), Name: r.String(maxActor)}
	if r.Err() == nil && (!a.valid() || a.Kind == ByEmployee) {
		r.Refuse("nobody who takes steps")
	}
	return a
}

// readRegistrar reads who made a version of a supplier record.
func readRegistrar(r *canonical.Reader) Actor {
	a := Actor{Kind: ActorKind(r.U8()), Name: r.String(maxActor)}
	if r.Err() == nil && !a.changesRecords() {
		r.Refuse("nobody who changes supplier records")
	}
	return a
}

func nameOf[T ~uint8](v T, names []string, typ string) string {
	if int(v) < len(names) && names[v] != "" {
		return names[v]
	}
	return fmt.Sprintf("%s(%d)", typ, uint8(v))
}

func parseName[T ~uint8](s string, names []string, what string) (T, error) {
	for i, n := range names {
		if n != "" && n == s {
			return T(i), nil
		}
	}
	return 0, fmt.Errorf("%w %s", meter.ErrUnknown, what)
}
