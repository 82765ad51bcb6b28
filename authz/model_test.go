package authz

import (
	"errors"
	"slices"
	"time"

	"kluis/meter"
)

// A book is the reference model of a legal file: who supplied and who lived
// there, day by day, and the consents with plain times. It takes steps, and the
// oracle decides by it, without a line of what is tested.
type book struct {
	registered bool
	commodity  meter.Commodity
	supplier   [bookDays]meter.GLN // zero: nobody
	began      [bookDays]bool      // a period of supply was recorded to begin with the day
	customer   [bookDays]int       // each has a number of its own; 0: nobody
	customers  int                 // numbers given out
	out        [bookDays]bool      // opted out
	consents   []entry
}

// entry is one consent, or the request for it.
type entry struct {
	id                        [16]byte
	scope                     ConsentScope
	customer                  int       // of whom it was asked, or who gave it
	asked, given, no, revoked time.Time // zero: not
}

// The days of a book. What has no end goes on after the last as on the last.
const (
	bookFrom meter.Day = 18993 // 2022-01-01
	bookTo   meter.Day = 22646 // 2032-01-01
	bookDays           = int(bookTo - bookFrom)
)

func at[T any](days *[bookDays]T, d meter.Day) (none T) {
	if d < bookFrom {
		return none
	}
	return days[min(d, bookTo-1)-bookFrom]
}

// each calls f with the days of a range that are in a book.
func each(r meter.DayRange, f func(i int)) {
	for d := max(r.From, bookFrom); d < min(r.To, bookTo); d++ {
		f(int(d - bookFrom))
	}
}

func (b *book) supplied(g meter.GLN, d meter.Day) bool { return at(&b.supplier, d) == g }
func (b *book) occupied(d meter.Day) bool              { return at(&b.customer, d) != 0 }
func (b *book) opted(d meter.Day) bool                 { return at(&b.out, d) }

// span is the first day of a customer and the one after the last.
func (b *book) span(customer int) (from, to meter.Day) {
	for i, c := range b.customer {
		if c == customer {
			if from == 0 {
				from = bookFrom + meter.Day(i)
			}
			to = bookFrom + meter.Day(i) + 1
		}
	}
	if to == bookTo {
		to = meter.MaxDay
	}
	return from, to
}

func (b *book) find(id [16]byte) *entry {
	for i := range b.consents {
		if b.consents[i].id == id {
			return &b.consents[i]
		}
	}
	return nil
}

// relates says whether the supplier ever had to do with the metering point.
func (b *book) relates(g meter.GLN) bool {
	return !g.IsZero() && (slices.Contains(b.supplier[:], g) || slices.ContainsFunc(b.consents, func(e entry) bool { return e.scope.Supplier == g }))
}

// openBook writes facts down day by day.
func openBook(f *LegalFile) *book {
	b := &book{registered: true, commodity: f.Commodity()}
	for _, s := range f.SupplyPeriods() {
		each(s.Days, func(i int) { b.supplier[i] = s.Supplier })
		if s.Days.From >= bookFrom {
			b.began[s.Days.From-bookFrom] = true
		}
	}
	first := map[meter.Day]int{}
	for _, o := range f.Occupancies() {
		b.customers++
		first[o.Days.From] = b.customers
		each(o.Days, func(i int) { b.customer[i] = b.customers })
	}
	for _, r := range f.OptOuts() {
		each(r, func(i int) { b.out[i] = true })
	}
	for _, c := range f.Consents() {
		e := entry{
			id: c.ID, customer: first[c.Occupancy], asked: c.Requested.At, given: c.Answered.At, revoked: c.Revoked.At,
			scope: ConsentScope{c.Supplier, c.Purpose, c.Classes, c.Granularity, c.Days, c.ValidUntil, c.Evidence},
		}
		if c.State == ConsentRejected {
			e.given, e.no = e.no, e.given
		}
		b.consents = append(b.consents, e)
	}
	return b
}

func localDay(t time.Time) meter.Day {
	y, m, d := t.In(amsterdam).Date()
	return meter.DayFromDate(y, m, d)
}

// midnight is the start of a local day in Amsterdam, where clocks change at
// another hour.
func midnight(d meter.Day) time.Time {
	if d == meter.MaxDay {
		return time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	y, m, day := d.Date()
	return time.Date(y, m, day, 0, 0, 0, 0, amsterdam)
}

// stands is the word for a consent at a moment.
func (b *book) stands(e *entry, terms meter.ConsentTerms, now time.Time) string {
	from, to := b.span(e.customer)
	switch {
	case !e.revoked.IsZero():
		return "REVOKED"
	case !e.no.IsZero():
		return "REJECTED"
	case e.given.IsZero():
		lapse := midnight(localDay(e.asked) + 1 + meter.Day(terms.AnswerDays))
		if e.scope.ValidUntil.Before(lapse) {
			lapse = e.scope.ValidUntil
		}
		moved := midnight(to)
		switch by := localDay(e.asked); {
		case by < from || by >= to: // of somebody else, as it turned out
			return "ENDED_BY_MOVE"
		case now.Before(lapse) && now.Before(moved):
			return "REQUESTED"
		case moved.Before(lapse):
			return "ENDED_BY_MOVE"
		}
		return "LAPSED"
	}
	if by := localDay(e.given); by < from || by >= to {
		return "ENDED_BY_MOVE"
	}
	expiry := midnight(localDay(e.given).AddMonths(terms.LongestMonths))
	if e.scope.ValidUntil.Before(expiry) {
		expiry = e.scope.ValidUntil
	}
	moved := midnight(to)
	if !terms.EndedByMove {
		moved = midnight(meter.MaxDay)
	}
	switch {
	case now.Before(expiry) && now.Before(moved):
		return "ACTIVE"
	case moved.Before(expiry):
		return "ENDED_BY_MOVE"
	}
	return "EXPIRED"
}

// take writes a step down, as somebody who may, and reports whether the facts
// allow it; if not, the book is as before.
func (b *book) take(s Step, now time.Time) bool {
	c := *b
	c.consents = slices.Clone(b.consents)
	if !c.write(s, now) {
		return false
	}
	*b = c
	return true
}

func (b *book) write(s Step, now time.Time) bool {
	today := localDay(now)
	if _, first := s.(Register); first == b.registered {
		return false
	}
	switch s := s.(type) {
	case Register:
		b.registered, b.commodity = true, s.Commodity
	case SetSupply:
		if last := bookDays - 1; !b.supplier[last].IsZero() {
			open := last
			for !b.began[open] {
				open--
			}
			from := bookFrom + meter.Day(open)
			switch {
			case b.supplier[last] == s.Supplier && from == s.Days.From:
				if s.Days.To == meter.MaxDay {
					return false
				}
				each(meter.DayRange{From: s.Days.To, To: bookTo}, func(i int) { b.supplier[i] = meter.GLN{} })
				return true
			case b.supplier[last] == s.Supplier && s.Days.To > from:
				return false
			case s.Days.From > from:
				each(meter.DayRange{From: s.Days.From, To: bookTo}, func(i int) { b.supplier[i] = meter.GLN{} })
			}
		}
		free := true
		each(s.Days, func(i int) { free = free && b.supplier[i].IsZero() })
		if !free {
			return false
		}
		each(s.Days, func(i int) { b.supplier[i] = s.Supplier })
		b.began[s.Days.From-bookFrom] = true
	case CorrectSupply:
		changed := false
		each(s.Days, func(i int) {
			changed = changed || b.supplier[i] != s.Supplier
			b.supplier[i], b.began[i] = s.Supplier, false
		})
		for _, d := range []meter.Day{s.Days.From, s.Days.To} {
			if d < bookTo {
				who := b.supplier[d-bookFrom]
				b.began[d-bookFrom] = !who.IsZero() && who != at(&b.supplier, d-1)
			}
		}
		return changed
	case SetOccupancy:
		if open := b.customer[bookDays-1]; open != 0 {
			from, _ := b.span(open)
			switch {
			case from == s.Days.From && s.Days.To == meter.MaxDay:
				return false
			case from == s.Days.From:
				each(meter.DayRange{From: s.Days.To, To: bookTo}, func(i int) { b.customer[i] = 0 })
				return true
			case s.Days.From > from:
				each(meter.DayRange{From: s.Days.From, To: bookTo}, func(i int) { b.customer[i] = 0 })
			}
		}
		free := true
		each(s.Days, func(i int) { free = free && b.customer[i] == 0 })
		if !free {
			return false
		}
		b.customers++
		each(s.Days, func(i int) { b.customer[i] = b.customers })
	case CorrectMove:
		leaves, comes := at(&b.customer, s.Was-1), at(&b.customer, s.Was)
		if leaves == comes || s.Was == s.Is {
			return false
		}
		if s.Is > s.Was {
			// The days between were those of who comes, and become those of who leaves.
			ok := true
			each(meter.DayRange{From: s.Was, To: s.Is}, func(i int) {
				ok = ok && b.customer[i] == comes
				b.customer[i] = leaves
			})
			return ok && (comes == 0 || at(&b.customer, s.Is) == comes)
		}
		ok := s.Is >= bookFrom
		each(meter.DayRange{From: s.Is, To: s.Was}, func(i int) {
			ok = ok && b.customer[i] == leaves
			b.customer[i] = comes
		})
		return ok && (leaves == 0 || at(&b.customer, s.Is-1) == leaves)
	case SetOptOut:
		before := b.out
		each(s.Days, func(i int) { b.out[i] = true })
		return b.out != before
	case EndOptOut:
		before := b.out
		each(meter.DayRange{From: s.From, To: bookTo}, func(i int) { b.out[i] = false })
		return b.out != before
	case GrantConsent:
		e := entry{id: s.ID, scope: ConsentScope{s.Supplier, s.Purpose, s.Classes, s.Granularity, s.Days, s.ValidUntil, s.Evidence}, customer: at(&b.customer, today), given: now}
		b.consents = append(b.consents, e)
		return b.fresh(e, now) && b.meets(e)
	case RequestConsent:
		e := entry{id: s.ID, scope: ConsentScope{s.Supplier, s.Purpose, s.Classes, s.Granularity, s.Days, s.ValidUntil, s.Evidence}, customer: at(&b.customer, today), asked: now}
		b.consents = append(b.consents, e)
		return b.fresh(e, now)
	case AcceptConsent:
		e := b.open(s.ID, today)
		if e == nil || !now.Before(e.scope.ValidUntil) || !b.meets(*e) {
			return false
		}
		e.given = now
	case RejectConsent:
		e := b.open(s.ID, today)
		if e == nil {
			return false
		}
		e.no = now
	case RevokeConsent:
		e := b.find(s.ID)
		if e == nil || !e.revoked.IsZero() || !e.no.IsZero() {
			return false
		}
		e.revoked = now
	}
	return true
}

// fresh says whether the last consent, e, may be new.
func (b *book) fresh(e entry, now time.Time) bool {
	return b.find(e.id) == &b.consents[len(b.consents)-1] && e.customer != 0 && now.Before(e.scope.ValidUntil)
}

// meets says whether the consent is for any day of its customer's.
func (b *book) meets(e entry) (ok bool) {
	each(e.scope.Days, func(i int) { ok = ok || b.customer[i] == e.customer })
	return ok
}

// open finds a request that was not answered, of today's customer, who was asked.
func (b *book) open(id [16]byte, today meter.Day) *entry {
	e := b.find(id)
	if e == nil || e.asked.IsZero() || !e.given.IsZero() || !e.no.IsZero() || !e.revoked.IsZero() ||
		at(&b.customer, today) != e.customer || at(&b.customer, localDay(e.asked)) != e.customer {
		return nil
	}
	return e
}

// may says what Permit must: nil, or the kind of error.
func (b *book) may(c Caller, s Step, m market, now time.Time) error {
	terms, today := m.ConsentTerms(), localDay(now)
	over := map[string]error{
		"REJECTED": ErrConsentAnswered, "LAPSED": ErrConsentLapsed, "EXPIRED": ErrConsentEnded, "REVOKED": ErrConsentEnded, "ENDED_BY_MOVE": ErrConsentEnded,
	}
	e := c.Employee()
	if e == nil {
		g := c.Supplier()
		if !b.relates(g) {
			return ErrNoRelation
		}
		switch s := s.(type) {
		case RequestConsent:
			n := 0
			for _, k := range b.consents {
				if k.scope.Supplier == g {
					n++
				}
			}
			switch {
			case s.Supplier != g:
				return ErrNotPermitted
			case !b.possible(s.Scope(), m, now), !b.occupied(today):
				return ErrConsentNotPossible
			case n >= 64:
				return ErrTooManyConsents
			}
			return nil
		case RevokeConsent:
			k := b.find(s.ID)
			if k == nil || k.scope.Supplier != g {
				return ErrConsentUnknown
			}
			stands := b.stands(k, terms, now)
			if stands == "ACTIVE" && !slices.Contains(terms.RevokedBy, meter.SupplierParty) {
				return ErrNotPermitted
			}
			return over[stands]
		}
		return ErrNotPermitted
	}
	on := e.Errand
	if on.Kind != ErrandStep || e.Role != Agent && e.Role != Supervisor || on.EAN != home {
		return ErrNotPermitted
	}
	var id [16]byte
	var action ConsentAction
	evidence := ""
	switch s := s.(type) {
	case GrantConsent:
		action, evidence = ActionRegister, s.Evidence
	case AcceptConsent:
		id, action, evidence = s.ID, ActionGrant, s.Evidence
	case RejectConsent:
		id, action = s.ID, ActionReject
	case RevokeConsent:
		id, action = s.ID, ActionRevoke
	default:
		return ErrNotPermitted
	}
	if on.Action != action || on.ConsentID != id || on.Evidence != evidence {
		return ErrNotPermitted
	}
	if s, ok := s.(GrantConsent); ok {
		mine := entry{scope: s.Scope(), customer: at(&b.customer, today)}
		same := func(k entry) bool { return k.scope.Digest(home) == on.Scope }
		switch {
		case s.Scope().Digest(home) != on.Scope:
			return ErrNotPermitted
		case !b.possible(s.Scope(), m, now), mine.customer == 0, !b.meets(mine):
			return ErrConsentNotPossible
		case slices.ContainsFunc(b.consents, same):
			return ErrConsentAnswered
		}
		return nil
	}
	k := b.find(id)
	if k == nil {
		return ErrConsentUnknown
	}
	if k.scope.Digest(home) != on.Scope {
		return ErrNotPermitted
	}
	stands := b.stands(k, terms, now)
	if stands == "ACTIVE" && action != ActionRevoke {
		return ErrConsentAnswered
	}
	if stands == "REQUESTED" && action == ActionGrant && !b.meets(*k) {
		return ErrConsentNotPossible
	}
	return over[stands]
}

// possible says whether the market's rules could ever give anything of each
// class on such a consent.
func (b *book) possible(s ConsentScope, m market, now time.Time) bool {
	today := localDay(now)
	if !s.ValidUntil.After(now) || s.ValidUntil.After(midnight(today.AddMonths(m.ConsentTerms().LongestMonths))) {
		return false
	}
	for _, class := range s.Classes {
		found := false
		for _, rule := range m.Rules(s.Purpose) {
			finest := rule.Granularity
			if class == meter.Registers && finest <= meter.P1D {
				finest = 0 // nothing of them is finer than the day
			}
			if !rule.Enabled || rule.Basis != meter.Consent || rule.On != meter.AllDays || !slices.Contains(rule.Classes, class) || s.Granularity < finest {
				continue
			}
			each(s.Days, func(i int) {
				d := bookFrom + meter.Day(i)
				found = found || rule.Days.Contains(d) && d >= today.AddMonths(-m.RetentionMonths()) &&
					(rule.Lookback == 0 || d >= today.AddMonths(-rule.Lookback)) &&
					(!rule.RequiresSupply || b.supplied(s.Supplier, d))
			})
		}
		if !found {
			return false
		}
	}
	return true
}

// kindOf is the error, of those that callers tell apart.
func kindOf(err error) error {
	for _, kind := range []error{
		ErrNoRelation, ErrNotPermitted, ErrConsentUnknown, ErrConsentAnswered, ErrConsentLapsed, ErrConsentEnded, ErrConsentNotPossible, ErrTooManyConsents, ErrStep,
	} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return err
}
