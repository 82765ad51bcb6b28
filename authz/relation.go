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
	if c == nil || c.Employee() != nil || f == nil || p == nil || f.parties[c.Supplier()] == nil {
		return nil
	}
	who := reader{supplier: c.Supplier()}
	l := listing{
		f: f, me: f.parties[c.Supplier()], terms: p.ConsentTerms(), now: now, loc: p.Location(), today: meter.DayOf(now, p.Location()),
	}
	l.window = meter.DayRange{From: l.today.AddMonths(-p.RetentionMonths()), To: l.today + 1}
	var bases []meter.Basis
	for _, purpose := range []meter.Purpose{meter.Billing, meter.EnergyManagement, meter.Switch, meter.Move, meter.CustomerService} {
		for _, rule := range p.Rules(purpose) {
			if decidable(&rule) && who.basis(rule.Basis) && !slices.Contains(bases, rule.Basis) && l.satisfies(&rule) {
				bases = append(bases, rule.Basis)
			}
		}
	}
	slices.Sort(bases)
	return bases
}

// listing is what one call of BasesNow works with.
type listing struct {
	f      *LegalFile
	me     *party
	terms  meter.ConsentTerms
	now    time.Time
	loc    *time.Location
	today  meter.Day
	window meter.DayRange
}

// satisfies says whether the facts hold for the rule on any day of the window.
func (l *listing) satisfies(rule *meter.Rule) bool {
	f, window := l.f, l.window
	if rule.Lookback > 0 {
		window.From = max(window.From, l.today.AddMonths(-rule.Lookback))
	}
	days := rule.Days.Intersect(window)
	if single(rule) {
		return l.boundary(rule, days)
	}
	open := meter.NewDaySet(days)
	if rule.RequiresSupply || rule.Basis != meter.Consent {
		open = open.Intersect(meter.NewDaySet(l.me.supply...))
	}
	if !rule.DespiteOptOut {
		open = open.Subtract(meter.NewDaySet(f.optOuts...))
	}
	if rule.Basis != meter.Consent {
		return !open.Intersect(meter.NewDaySet(f.occupied...)).Empty()
	}
	for _, i := range l.me.consents {
		k := &f.consents[i]
		if k.State != ConsentActive || l.now.Before(k.ValidFrom) || k.Purpose != rule.Purpose ||
			!slices.ContainsFunc(k.Classes, func(class meter.Class) bool { return slices.Contains(rule.Classes, class) }) ||
			f.ended(k, l.terms, l.now, l.today, l.loc) {
			continue
		}
		if o, ok := f.occupancyAt(k.Occupancy); ok && !open.Intersect(meter.NewDaySet(o.Days.Intersect(k.Days))).Empty() {
			return true
		}
	}
	return false
}

// boundary says whether one of the days has a read that begins or ends
// something of the caller's.
func (l *listing) boundary(rule *meter.Rule, days meter.DayRange) bool {
	ok := func(day, side meter.Day) bool {
		theSide := meter.DayRange{From: side, To: side + 1}
		return days.Contains(day) && len(overlapping(l.f.occupied, theSide)) > 0 &&
			(rule.DespiteOptOut || len(overlapping(l.f.optOuts, theSide)) == 0)
	}
	for _, s := range l.me.supply {
		if rule.On == meter.SupplyBoundary {
			if ok(s.From, s.From) || ok(s.To, s.To-1) {
				return true
			}
			continue
		}
		for _, o := range overlapping(l.f.occupied, s) {
			if s.Contains(o.From) && ok(o.From, o.From) || s.Contains(o.To-1) && ok(o.To, o.To-1) {
				return true
			}
		}
	}
	return false
}
