package authz

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"kluis/meter"
)

// ErrUnchanged: the supplier is suspended already, or is not.
var ErrUnchanged = errors.New("the supplier is so already")

// Suspend makes the next version of a supplier record, unsealed: suspended or,
// if suspended is false, resumed, and nothing else changed. One that is so
// already is ErrUnchanged. Every error wraps ErrSupplier.
func Suspend(prev *Supplier, suspended bool, by Actor, at time.Time) (*Supplier, error) {
	if prev == nil {
		return nil, refuseSupplier("there is no such supplier")
	}
	if prev.facts.Suspended == suspended {
		return nil, fmt.Errorf("%w: %w", ErrSupplier, ErrUnchanged)
	}
	facts := prev.facts
	facts.Suspended = suspended
	return NewSupplier(prev, facts, by, at)
}

// PermitSuspend says whether the caller may suspend or resume the supplier of a
// record, and who then does: what Suspend is to be told. issued is when the
// caller's token was issued.
//
// An employee who supervises may, on an errand for that very supplier and step:
// of any supplier but the grid operator itself, whose own record lets employees
// work at all. What the registrar suspended, or changed while it was suspended,
// the registrar alone resumes. The record must not be later than the token: what
// somebody else did meanwhile, this employee did not know, and a token that was
// caught undoes nothing. (A token says whole seconds.)
//
// The error is ErrNotPermitted; its text says what to do.
func PermitSuspend(c Caller, s *Supplier, suspended bool, issued time.Time) (Actor, error) {
	if c == nil || s == nil {
		return Actor{}, ErrNotPermitted
	}
	if _, behalf := c.(onBehalf); behalf {
		return Actor{}, ErrNotPermitted
	}
	e := c.Employee()
	switch {
	case e == nil || e.Role != Supervisor || !plainText(e.Subject, maxActor):
		return Actor{}, because(ErrNotPermitted, "only a supervisor suspends or resumes a supplier")
	case !e.Errand.OfSupplier(s.facts.GLN, suspended):
		return Actor{}, because(ErrNotPermitted, "the token is for another supplier or step, or for none")
	case s.facts.GLN == c.Supplier():
		return Actor{}, because(ErrNotPermitted, "the grid operator's own record is changed by the registrar only")
	case !suspended && s.facts.Suspended && s.actor.Kind != ByEmployee:
		return Actor{}, because(ErrNotPermitted, "the registrar suspended this supplier, or changed its record since: the registrar alone resumes it")
	case s.sealedAt.Truncate(time.Second).After(issued):
		return Actor{}, because(ErrNotPermitted, "the record was changed after the token was issued: look at it, and get a new token")
	}
	return Actor{ByEmployee, e.Subject}, nil
}

// OfSupplier says whether the errand is to suspend, or to resume, this supplier.
func (e *Errand) OfSupplier(g meter.GLN, suspended bool) bool {
	return e.Kind == ErrandSupplier && !g.IsZero() && e.Supplier == g && e.Suspend == suspended
}

// switched says whether s differs from the version before in nothing but that
// one of them is suspended.
func (s *Supplier) switched(prev *Supplier) bool {
	return prev != nil && s.facts.Suspended != prev.facts.Suspended && s.facts.Name == prev.facts.Name &&
		slices.Equal(s.facts.Scopes, prev.facts.Scopes) && slices.Equal(s.facts.Certificates, prev.facts.Certificates)
}

// FollowsOn says whether NewSupplier makes the version of the one before (nil:
// it is the first).
func (s *Supplier) FollowsOn(prev *Supplier) bool {
	again, err := NewSupplier(prev, s.facts, s.actor, s.sealedAt)
	return err == nil && bytes.Equal(again.payload, s.payload)
}
