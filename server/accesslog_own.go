package server

import (
	"cmp"
	"slices"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

// A request can be for days of several customers, and its caller have to do with
// one of them only. What each is told of it follows from the days, the supply
// and the consents of their own time: the outcome, the reasons, and the number
// of what was opened, too. A supplier or adviser of another customer's looks
// like a stranger.

// granted is what was given, or told to be readable, of the customer's days, and
// how many day values that can have taken at most, reads at the end of a period
// counted as well.
func (v *logView) granted(rec *audit.Record) (out []openapi.AccessLogGranted, opened int, err error) {
	days := make(map[meter.FieldCode]meter.DaySet)
	for _, g := range rec.Granted {
		f, known := v.profile.FieldByCode(g.Field)
		granularity, basis := openapi.Resolution(g.Granularity.String()), openapi.LegalBasis(g.Basis.String())
		if !known || !granularity.Valid() || !basis.Valid() {
			return nil, 0, errUnreadable
		}
		mine := g.Days.Intersect(meter.NewDaySet(v.occupancy.Days))
		days[g.Field] = days[g.Field].Union(mine)
		for _, run := range mine.Ranges() {
			out = append(out, openapi.AccessLogGranted{
				Field: f.Name, From: date(run.From), To: date(run.To), Granularity: granularity, LegalBasis: basis, Rule: g.Rule,
			})
		}
	}
	for _, d := range days {
		opened += d.Len() + len(d.Ranges())
	}
	return out, opened, nil
}

// withheld is what was not given of the customer's days, and why, by field and
// day. Runs that a reason of another customer's divided are one.
func (v *logView) withheld(rec *audit.Record) (out []openapi.Withheld, err error) {
	var mine []authz.Withheld
	for _, h := range rec.Withheld {
		f, known := v.profile.FieldByCode(h.Field)
		if !known || !openapi.WithheldReason(h.Reason.String()).Valid() {
			return nil, errUnreadable
		}
		if h.Days = h.Days.Intersect(v.occupancy.Days); !h.Days.Empty() {
			mine = append(mine, v.ownReasons(rec, f.Class, h)...)
		}
	}
	slices.SortStableFunc(mine, func(a, b authz.Withheld) int {
		return cmp.Or(cmp.Compare(a.Field, b.Field), cmp.Compare(a.Days.From, b.Days.From))
	})
	for i, h := range mine {
		f, _ := v.profile.FieldByCode(h.Field)
		if n := len(out); i > 0 && mine[i-1].Field == h.Field && mine[i-1].Reason == h.Reason && mine[i-1].Days.To == h.Days.From {
			out[n-1].To = date(h.Days.To)
			continue
		}
		out = append(out, openapi.Withheld{Field: f.Name, From: date(h.Days.From), To: date(h.Days.To), Reason: openapi.WithheldReason(h.Reason.String())})
	}
	return out, nil
}

// ownReasons are the reasons that this customer's consents account for. Of a
// consent that another customer gave Decide says on these days that it is over,
// or not of who lives there; to this customer there was none.
func (v *logView) ownReasons(rec *audit.Record, class meter.Class, h authz.Withheld) []authz.Withheld {
	byConsent := func(r meter.Rule) bool { return r.Basis == meter.Consent }
	switch {
	case rec.Employee != "" || !slices.ContainsFunc(v.profile.Rules(rec.Purpose), byConsent):
		return []authz.Withheld{h}
	case h.Reason != meter.ConsentExpired && h.Reason != meter.ConsentRevoked && h.Reason != meter.NotOccupied:
		return []authz.Withheld{h}
	}
	var revoked, expired meter.DaySet
	for _, c := range v.file.Consents() {
		switch {
		case !v.theirs(&c) || c.Supplier != rec.Supplier || c.Purpose != rec.Purpose || !slices.Contains(c.Classes, class),
			!c.Given() || c.ValidFrom.After(rec.At):
		case !c.Revoked.IsZero() && !c.Revoked.At.After(rec.At):
			revoked = revoked.Union(meter.NewDaySet(c.Days))
		case slices.Contains([]authz.Standing{authz.StandsExpired, authz.StandsEndedByMove}, v.file.Standing(&c, v.profile, rec.At)):
			expired = expired.Union(meter.NewDaySet(c.Days))
		}
	}
	if h.Reason == meter.ConsentExpired {
		revoked = meter.DaySet{}
	}
	var out []authz.Withheld
	left := meter.NewDaySet(h.Days)
	for _, k := range []struct {
		reason meter.Reason
		days   meter.DaySet
	}{{meter.ConsentRevoked, revoked}, {meter.ConsentExpired, expired}, {meter.NoConsent, left}} {
		for _, run := range left.Intersect(k.days).Ranges() {
			out = append(out, authz.Withheld{Field: h.Field, Days: run, Reason: k.reason})
		}
		left = left.Subtract(k.days)
	}
	return out
}

// outcome is what came of a request, of the customer's days: of which something
// was granted, something withheld, or neither.
func (v *logView) outcome(rec *audit.Record, granted, withheld bool) audit.Outcome {
	switch rec.Operation {
	case audit.Readings, audit.DryRun:
		undecided := rec.Outcome == audit.NoRelation || rec.FileVersion == 0
		switch {
		case granted && (rec.Outcome == audit.Failed || rec.Outcome == audit.Unchanged):
			return rec.Outcome
		case granted && withheld:
			return audit.Partly
		case granted:
			return audit.Given
		case !v.relates(rec):
			return audit.NoRelation // as a stranger's
		case undecided, rec.Outcome == audit.Failed && !withheld:
			return rec.Outcome
		case rec.Operation == audit.DryRun:
			return audit.NoRelation // nothing was told to be readable
		}
		return audit.Withheld
	case audit.Consents, audit.ConsentStep:
		// One of a consent is shown to its own customer, and to the other not at
		// all; what named none, or found none, says whether there is a relation.
		if _, ok := v.file.Consent(rec.ConsentID); !ok && !v.relates(rec) {
			return audit.NoRelation
		}
	}
	return rec.Outcome
}

// relates says whether a caller had to do with this customer when it asked: by
// supply on a day that had come, or by a consent. An employee has to do with
// every customer.
//
// The file says since when a supplier supplies, and not since when that is
// registered.
func (v *logView) relates(rec *audit.Record) bool {
	if rec.Employee != "" {
		return true
	}
	made := meter.DayOf(rec.At, v.profile.Location())
	for _, p := range v.file.SupplyPeriods() {
		if mine := p.Days.Intersect(v.occupancy.Days); p.Supplier == rec.Supplier && !mine.Empty() && mine.From <= made {
			return true
		}
	}
	return slices.ContainsFunc(v.file.Consents(), func(c authz.Consent) bool {
		return c.Supplier == rec.Supplier && v.theirs(&c) && !began(&c).After(rec.At)
	})
}

// theirs says whether a consent is this customer's: who lived there on the day it
// was asked for, or registered. As moves are corrected, that can be another than
// it is kept under.
func (v *logView) theirs(c *authz.Consent) bool {
	if o, ok := v.file.OccupancyAt(meter.DayOf(began(c), v.profile.Location())); ok {
		return o.Days.From == v.occupancy.Days.From
	}
	return c.Occupancy == v.occupancy.Days.From
}

// tookStep says whether a consent, as the sealed file has it, has seen the step
// that a record says was taken, by the one that the record names. A step under
// an idempotency key that was used before has; so it is true of each repeat.
func tookStep(c *authz.Consent, rec *audit.Record) bool {
	var e authz.ConsentEvent
	switch requested := !c.Requested.IsZero(); {
	case rec.Action == authz.ActionRequest:
		e = c.Requested
	case rec.Action == authz.ActionRegister && !requested,
		rec.Action == authz.ActionGrant && requested && c.Given(),
		rec.Action == authz.ActionReject && c.State == authz.ConsentRejected:
		e = c.Answered
	case rec.Action == authz.ActionRevoke:
		e = c.Revoked
	}
	by := authz.Actor{Kind: authz.BySupplier, Name: rec.Supplier.String()}
	if rec.Employee != "" {
		by = authz.Actor{Kind: authz.ByCustomer, Name: rec.Employee}
	}
	return !e.IsZero() && e.By == by && !rec.At.Before(e.At.Add(-logSkew)) && rec.Purpose == c.Purpose
}
