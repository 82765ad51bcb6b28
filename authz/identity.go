package authz

import (
	"errors"
	"slices"
	"time"

	"kluis/meter"
)

// ErrNoIdentity says that there is nobody today whose name and address could be
// told.
var ErrNoIdentity = errors.New("nobody lives at the metering point today")

// IdentityGrant says whose name and address may be told, and how much of them.
// Only DecideIdentity makes one that allows anything.
type IdentityGrant struct {
	profile meter.ProfileID
	ean     meter.EAN
	day     meter.Day
	rule    string

	// Of an errand to find, on which the name is not told: the address that it is
	// for.
	postcode meter.Postcode
	number   meter.HouseNumber
}

// EAN is the metering point.
func (g IdentityGrant) EAN() meter.EAN { return g.ean }

// Day is the first of the occupancy of the customer it is about.
func (g IdentityGrant) Day() meter.Day { return g.day }

// Rule is that of the profile it rests on.
func (g IdentityGrant) Rule() string { return g.rule }

// Profile is that by which it was decided.
func (g IdentityGrant) Profile() meter.ProfileID { return g.profile }

// Named says whether the name may be told beside the address.
func (g IdentityGrant) Named() bool { return !g.ean.IsZero() && g.postcode.IsZero() }

// Tell returns what may be told of a person; false: nothing, because the
// address is another than the errand's.
func (g IdentityGrant) Tell(p meter.Person) (meter.Person, bool) {
	switch {
	case g.ean.IsZero():
		return meter.Person{}, false
	case g.Named():
		return p, true
	case p.Address.Postcode == g.postcode && p.Address.HouseNumber == g.number:
		return meter.Person{Address: p.Address}, true
	}
	return meter.Person{}, false
}

// DecideIdentity decides, as Decide does of readings, whether the caller may be
// told name and address of who lives at the metering point of a legal file. It
// is for employees who serve customers, and nobody else, when
//
//   - a rule of the profile gives the class identity today;
//   - the token's errand is for that metering point (readings, view, step); or to
//     find an address: then without the name, and only if the address that is
//     opened is the errand's (IdentityGrant.Tell);
//   - it is of the customer who lives there today. Who lived there before is
//     nobody's business.
//
// The error is ErrNotPermitted, or ErrNoIdentity.
func DecideIdentity(c Caller, f *LegalFile, p *meter.Profile, now time.Time) (IdentityGrant, error) {
	if p == nil {
		return IdentityGrant{}, ErrNotPermitted
	}
	return decideIdentity(c, f, p, now)
}

func decideIdentity(c Caller, f *LegalFile, p market, now time.Time) (IdentityGrant, error) {
	e, rule := identityRule(c, p, now)
	if rule == nil || f == nil {
		return IdentityGrant{}, ErrNotPermitted
	}
	g := IdentityGrant{profile: p.ID(), ean: f.ean, rule: rule.ID}
	switch on := &e.Errand; {
	case on.Kind.OfPoint() && on.EAN == f.ean:
	case on.Kind == ErrandFind && !on.Postcode.IsZero() && !on.HouseNumber.IsZero():
		g.postcode, g.number = on.Postcode, on.HouseNumber
	default:
		return IdentityGrant{}, ErrNotPermitted
	}
	o, ok := f.occupancyAt(meter.DayOf(now, p.Location()))
	if !ok {
		return IdentityGrant{}, ErrNoIdentity
	}
	g.day = o.Days.From
	return g, nil
}

// MayFind returns the address whose metering points the caller may look for: that
// of the errand of an employee who serves customers, where the profile gives the
// class identity. The error is ErrNotPermitted.
func MayFind(c Caller, p *meter.Profile, now time.Time) (meter.Postcode, meter.HouseNumber, error) {
	if p != nil {
		if e, rule := identityRule(c, p, now); rule != nil && e.Errand.Kind == ErrandFind && !e.Errand.Postcode.IsZero() && !e.Errand.HouseNumber.IsZero() {
			return e.Errand.Postcode, e.Errand.HouseNumber, nil
		}
	}
	return meter.Postcode{}, meter.HouseNumber{}, ErrNotPermitted
}

// identityRule returns the employee, and the rule by which identities are given
// to those who serve customers; nil: they are not, or not to this caller.
func identityRule(c Caller, p market, now time.Time) (*Employee, *meter.Rule) {
	if _, behalf := c.(onBehalf); c == nil || behalf {
		return nil, nil
	}
	e := c.Employee()
	if e == nil || !e.Role.serves() {
		return nil, nil
	}
	today := meter.DayOf(now, p.Location())
	for _, rule := range p.Rules(meter.CustomerService) {
		if rule.Enabled && rule.Basis == meter.CustomerServiceBasis && rule.Days.Contains(today) && slices.Contains(rule.Classes, meter.Identity) {
			return e, &rule
		}
	}
	return nil, nil
}
