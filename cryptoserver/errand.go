package cryptoserver

import (
	"slices"

	"kluis/authz"
	"kluis/meter"
)

// An employee's token is for one errand. authz.Decide keeps to it; so that not
// everything hangs on one line of code, it is looked at here once more, by what
// the token says alone: first what is asked, then each block.

// onErrand says whether an employee was sent for what is asked.
func onErrand(e *authz.Employee, r *authz.Request) bool {
	on := &e.Errand
	if on.Kind != authz.ErrandReadings || on.EAN.IsZero() || on.EAN != r.EAN ||
		r.Days.From < on.Days.From || r.Days.To > on.Days.To {
		return false
	}
	for _, f := range r.Fields {
		if !slices.Contains(on.Fields, f) {
			return false
		}
	}
	return true
}

// onIdentityErrand says whether an employee was sent to where somebody's name
// and address are asked of, or to find an address.
func onIdentityErrand(e *authz.Employee, ean meter.EAN) bool {
	on := &e.Errand
	switch on.Kind {
	case authz.ErrandReadings, authz.ErrandView, authz.ErrandStep:
		return !on.EAN.IsZero() && on.EAN == ean
	case authz.ErrandFind:
		return on.EAN.IsZero() && !on.Postcode.IsZero() && !on.HouseNumber.IsZero()
	}
	return false
}

// mayOpen says the same of a block. The closing read of a register is that of
// the day after.
func mayOpen(e *authz.Employee, purpose meter.Purpose, ean meter.EAN, f meter.Field, d meter.Day) bool {
	on := &e.Errand
	last := on.Days.To
	if f.Class != meter.Registers {
		last--
	}
	return on.Kind == authz.ErrandReadings && purpose == meter.CustomerService && on.EAN == ean &&
		slices.Contains(on.Fields, f.Code) && on.Days.From <= d && d <= last
}
