package authz

import (
	"slices"

	"kluis/meter"
)

// Narrows says whether a version of a legal file takes away anything that the
// version before might allow: then the older one must not be presented any
// more. When prev is not the very version before next (it is another metering
// point's, an earlier one, nil though next is not the first) nobody can tell,
// and the answer is true.
func Narrows(prev, next *LegalFile) bool {
	if next == nil {
		return true
	}
	if prev == nil {
		return next.version != 1
	}
	if next.ean != prev.ean || next.version != prev.version+1 || next.previous != prev.digest || next.commodity != prev.commodity {
		return true
	}
	return narrowsSupply(prev, next) || narrowsOccupancies(prev, next) || narrowsConsents(prev, next) ||
		!within(next.optOuts, prev.optOuts)
}

// within says whether the days of a are all among those of b.
func within(a, b []meter.DayRange) bool {
	return meter.NewDaySet(a...).Subtract(meter.NewDaySet(b...)).Empty()
}

// narrowsSupply: of a supplier's days none may be missing, and where its supply
// began or ended it must do so still, as there are reads of that day.
func narrowsSupply(prev, next *LegalFile) bool {
	for supplier, p := range prev.parties {
		var now []meter.DayRange
		if q := next.parties[supplier]; q != nil {
			now = q.supply
		}
		if !within(p.supply, now) {
			return true
		}
		for _, was := range p.supply {
			if !slices.ContainsFunc(now, func(is meter.DayRange) bool { return is.From == was.From }) ||
				was.To != meter.MaxDay && !slices.ContainsFunc(now, func(is meter.DayRange) bool { return is.To == was.To }) {
				return true
			}
		}
	}
	return false
}

// narrowsOccupancies: each customer's days must be the same customer's still,
// as a consent counts on its giver's days only, and there are reads of the days
// on which they begin and end.
func narrowsOccupancies(prev, next *LegalFile) bool {
	return slices.ContainsFunc(prev.occupancies, func(o Occupancy) bool { return !slices.Contains(next.occupancies, o) })
}

func narrowsConsents(prev, next *LegalFile) bool {
	for i := range prev.consents {
		was := &prev.consents[i]
		if was.State != ConsentActive {
			continue // it allows nothing
		}
		j, found := next.consent(was.ID)
		if !found {
			return true
		}
		is := &next.consents[j]
		switch {
		case is.State != ConsentActive, is.Supplier != was.Supplier, is.Purpose != was.Purpose, is.Occupancy != was.Occupancy,
			is.Granularity > was.Granularity, !within([]meter.DayRange{was.Days}, []meter.DayRange{is.Days}),
			is.ValidFrom.After(was.ValidFrom), is.ValidUntil.Before(was.ValidUntil),
			slices.ContainsFunc(was.Classes, func(c meter.Class) bool { return !slices.Contains(is.Classes, c) }):
			return true
		}
	}
	return false
}

// NarrowsSupplier says the same of two versions of a supplier record: a
// certificate withdrawn or left out, a scope taken away, a suspension. What has
// expired when next was sealed takes nothing away by being left out.
func NarrowsSupplier(prev, next *Supplier) bool {
	if next == nil {
		return true
	}
	if prev == nil {
		return next.version != 1
	}
	if next.facts.GLN != prev.facts.GLN || next.version != prev.version+1 || next.previous != prev.digest {
		return true
	}
	if prev.facts.Suspended {
		return false // it allows nothing
	}
	if next.facts.Suspended {
		return true
	}
	for _, scope := range prev.facts.Scopes {
		if !slices.Contains(next.facts.Scopes, scope) {
			return true
		}
	}
	for _, was := range prev.facts.Certificates {
		if !was.RevokedAt.IsZero() || !was.NotAfter.After(next.sealedAt) {
			continue
		}
		i, found := findCertificate(next.facts.Certificates, was.Thumbprint)
		if !found || !next.facts.Certificates[i].RevokedAt.IsZero() || next.facts.Certificates[i].NotAfter.Before(was.NotAfter) {
			return true
		}
	}
	return false
}
