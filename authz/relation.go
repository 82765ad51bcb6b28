package authz

import (
	"slices"
	"time"

	"kluis/meter"
)

// BasesNow lists, for a list of metering points, the legal bases on which the
// caller has something to ask for now: those of the rules of the profile, for
// whatever purpose, that its facts satisfy on some day that is retained. The
// day that is under way counts, so that a supplier sees a customer from the
// first day on. In the order of meter.Basis; empty also when the caller has
// nothing to do with the metering point.
//
// It never stands in for Decide: it looks at no resolution and no fields, so
// Decide may still withhold everything. But what Decide would grant now rests
// on one of these bases.
func BasesNow(c Caller, f *LegalFile, p *meter.Profile, now time.Time) []meter.Basis {
	if c == nil || f == nil || p == nil || f.parties[c.Supplier()] == nil {
		return nil
	}
	today := meter.DayOf(now, p.Location())
	window := meter.DayRange{From: today.AddMonths(-p.RetentionMonths()), To: today + 1}
	var bases []meter.Basis
	for _, purpose := range []meter.Purpose{meter.Billing, meter.EnergyManagement, meter.Switch, meter.Move, meter.CustomerService} {
		for _, rule := range p.Rules(purpose) {
			if decidable(rule) && !slices.Contains(bases, rule.Basis) && f.satisfies(c.Supplier(), &rule, window, now) {
				bases = append(bases, rule.Basis)
			}
		}
	}
	slices.Sort(bases)
	return bases
}

// satisfies says whether the facts hold for the rule on any day of the window.
func (f *LegalFile) satisfies(g meter.GLN, rule *meter.Rule, window meter.DayRange, now time.Time) bool {
	me := f.parties[g]
	days := meter.NewDaySet(rule.Days.Intersect(window))
	if rule.RequiresSupply || rule.Basis != meter.Consent {
		days = days.Intersect(meter.NewDaySet(me.supply...))
	}
	if !rule.DespiteOptOut {
		days = days.Subtract(meter.NewDaySet(f.optOuts...))
	}
	if rule.Basis != meter.Consent {
		return !days.Intersect(meter.NewDaySet(f.occupied...)).Empty()
	}
	for _, i := range me.consents {
		k := &f.consents[i]
		if k.State != ConsentActive || now.Before(k.ValidFrom) || !now.Before(k.ValidUntil) || k.Purpose != rule.Purpose ||
			!slices.ContainsFunc(k.Classes, func(class meter.Class) bool { return slices.Contains(rule.Classes, class) }) {
			continue
		}
		if o, ok := f.occupancyAt(k.Occupancy); ok && !days.Intersect(meter.NewDaySet(o.Days.Intersect(k.Days))).Empty() {
			return true
		}
	}
	return false
}
