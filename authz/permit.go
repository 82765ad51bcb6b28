package authz

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"kluis/meter"
)

// MaxConsents is how many consents a supplier may have asked for at one
// metering point, whatever became of them.
const MaxConsents = 64

// ErrNotPermitted: this caller may not take this step.
var ErrNotPermitted = errors.New("this step is not for this caller")

// Why a step of a consent's life cannot be taken. Each is an ErrStep too.
var (
	ErrConsentUnknown     error = stepError("no consent with this id at this metering point")
	ErrConsentAnswered    error = stepError("the consent is answered already")
	ErrConsentLapsed      error = stepError("the request has lapsed")
	ErrConsentEnded       error = stepError("the consent has ended")
	ErrConsentNotPossible error = stepError("no such consent can be given")
	ErrTooManyConsents    error = stepError("too many consents")
)

// stepError is an ErrStep of its own kind.
type stepError string

func (e stepError) Error() string        { return string(e) }
func (e stepError) Is(target error) bool { return target == ErrStep }

func because(kind error, format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{kind}, args...)...)
}

// Permit says whether the caller may take the step on the file now, and who
// then takes it: what Apply is to be told. It looks at the market's terms and
// the time, which Apply does not know; that the step is possible at all, Apply
// says.
//
// A supplier that has to do with the metering point (else ErrNoRelation) may
//
//   - RequestConsent for itself, when consent rules of the profile give every
//     class for the purpose, no coarser than asked, on some of the days, of which
//     the supplier supplies one, now or in time to come, where the rule requires
//     supply; valid from now no longer than the market lets one be
//     (ErrConsentNotPossible). MaxConsents at most (ErrTooManyConsents). It
//     learns nothing of the customer but whether there is one;
//   - RevokeConsent of its own consents, if the profile says so, and of its own
//     requests. Anybody else's does not exist (ErrConsentUnknown).
//
// An employee who serves customers may take exactly the step of the errand,
// down to the scope and the evidence:
//
//   - AcceptConsent and RejectConsent of a request that stands. By the customer
//     it was asked of: the occupancy must hold today;
//   - GrantConsent of what a consent can be, as above, to any supplier, for some
//     day of the customer's. The same word of the customer counts once: what is
//     in the file with the same scope and evidence is not registered again;
//   - RevokeConsent of what stands.
//
// An auditor may take none, and nobody takes any other step by token.
//
// What has ended, and how, is the consent's Standing: ErrConsentAnswered,
// ErrConsentLapsed, ErrConsentEnded. Other errors are ErrNotPermitted, or wrap
// ErrStep; each says what to do and names no parties.
func Permit(c Caller, step Step, f *LegalFile, p *meter.Profile, now time.Time) (Actor, error) {
	if p == nil {
		return Actor{}, ErrNoRelation
	}
	return permit(c, step, f, p, now)
}

func permit(c Caller, step Step, f *LegalFile, p market, now time.Time) (Actor, error) {
	if c == nil || f == nil || f.ean.IsZero() {
		return Actor{}, ErrNoRelation
	}
	if _, behalf := c.(onBehalf); behalf {
		return Actor{}, ErrNotPermitted
	}
	if step == nil {
		return Actor{}, refuse("no step")
	}
	t := taking{f: f, p: p, now: micros(now), terms: p.ConsentTerms(), loc: p.Location()}
	t.today = meter.DayOf(t.now, t.loc)
	if e := c.Employee(); e != nil {
		if err := t.byEmployee(e, step); err != nil {
			return Actor{}, err
		}
		return Actor{ByCustomer, e.Subject}, nil
	}
	if err := t.bySupplier(c.Supplier(), step); err != nil {
		return Actor{}, err
	}
	return Actor{BySupplier, c.Supplier().String()}, nil
}

// taking is what one call of Permit works with.
type taking struct {
	f     *LegalFile
	p     market
	now   time.Time
	terms meter.ConsentTerms
	loc   *time.Location
	today meter.Day
}

func (t *taking) bySupplier(g meter.GLN, step Step) error {
	me := t.f.parties[g]
	if me == nil {
		return ErrNoRelation
	}
	switch s := step.(type) {
	case RequestConsent:
		if s.Supplier != g {
			return because(ErrNotPermitted, "a supplier asks for itself only")
		}
		if err := s.check(); err != nil {
			return err
		}
		if err := t.possible(s.Scope()); err != nil {
			return err
		}
		if _, ok := t.f.occupancyAt(t.today); !ok {
			return because(ErrConsentNotPossible, "there is no customer to ask today")
		}
		if len(me.consents) >= MaxConsents {
			return because(ErrTooManyConsents, "%d were asked for at this metering point already; none can be added", MaxConsents)
		}
		return nil
	case RevokeConsent:
		c := t.f.find(s.ID)
		if c == nil || c.Supplier != g {
			return because(ErrConsentUnknown, "check both")
		}
		switch standing := t.f.standing(c, t.terms, t.now, t.loc); standing {
		case StandsRequested:
			return nil
		case StandsActive:
			if !t.terms.MayRevoke(meter.SupplierParty) {
				return because(ErrNotPermitted, "in this market the supplier does not revoke a consent; the customer does")
			}
			return nil
		default:
			return over(standing)
		}
	}
	return ErrNotPermitted
}

func (t *taking) byEmployee(e *Employee, step Step) error {
	on := &e.Errand
	if !plainText(e.Subject, maxActor) || !e.Role.serves() || on.Kind != ErrandStep || on.EAN != t.f.ean ||
		on.Action == ActionRequest || ActionOf(step) == 0 || ActionOf(step) != on.Action {
		return because(ErrNotPermitted, "the token is for another errand, or for none")
	}
	if err := step.check(); err != nil {
		return err
	}
	switch s := step.(type) {
	case GrantConsent:
		return t.register(on, s)
	case AcceptConsent:
		k, err := t.consentOf(on, s.ID, s.Evidence)
		if err != nil {
			return err
		}
		if err := t.answerable(k); err != nil {
			return err
		}
		if o, ok := t.f.occupancyAt(k.Occupancy); !ok || k.Days.Intersect(o.Days).Empty() {
			return because(ErrConsentNotPossible, "it covers no day of this customer's; the customer can only reject it")
		}
		return nil
	case RejectConsent:
		k, err := t.consentOf(on, s.ID, "")
		if err != nil {
			return err
		}
		return t.answerable(k)
	case RevokeConsent:
		k, err := t.consentOf(on, s.ID, "")
		if err != nil {
			return err
		}
		if standing := t.f.standing(k, t.terms, t.now, t.loc); standing != StandsRequested && standing != StandsActive {
			return over(standing)
		}
		return nil
	}
	return ErrNotPermitted
}

func (t *taking) register(on *Errand, s GrantConsent) error {
	scope := s.Scope()
	digest := scope.Digest(t.f.ean)
	if on.ConsentID != [16]byte{} || on.Scope != digest || on.Evidence != s.Evidence {
		return because(ErrNotPermitted, "the token is for another consent, or other evidence, than this")
	}
	if err := t.possible(scope); err != nil {
		return err
	}
	o, ok := t.f.occupancyAt(t.today)
	if !ok || scope.Days.Intersect(o.Days).Empty() {
		return because(ErrConsentNotPossible, "it covers no day of a customer who is here today; choose other days")
	}
	if slices.ContainsFunc(t.f.consents, func(k Consent) bool { return k.ScopeDigest(t.f.ean) == digest }) {
		return because(ErrConsentAnswered, "a consent of the same scope and evidence is recorded; a new one needs evidence of its own")
	}
	return nil
}

// consentOf finds the consent that both the errand and the step name, if it is
// what the customer was told.
func (t *taking) consentOf(on *Errand, id [16]byte, evidence string) (*Consent, error) {
	if on.ConsentID != id || on.Evidence != evidence {
		return nil, because(ErrNotPermitted, "the token is for another consent, or other evidence, than this")
	}
	k := t.f.find(id)
	switch {
	case k == nil:
		return nil, because(ErrConsentUnknown, "check both")
	case k.ScopeDigest(t.f.ean) != on.Scope:
		return nil, because(ErrNotPermitted, "the consent has another scope than the token says; show it to the customer again")
	}
	return k, nil
}

// answerable says why a request can be answered no more.
func (t *taking) answerable(k *Consent) error {
	switch standing := t.f.standing(k, t.terms, t.now, t.loc); standing {
	case StandsRequested:
		return nil
	case StandsActive:
		return because(ErrConsentAnswered, "it is given, and can be revoked")
	default:
		return over(standing)
	}
}

// over is why nothing can be done any more.
func over(s Standing) error {
	switch s {
	case StandsRejected:
		return because(ErrConsentAnswered, "the customer rejected it; a new one must be asked for")
	case StandsLapsed:
		return because(ErrConsentLapsed, "it was not answered in time; a new one must be asked for")
	case StandsExpired:
		return because(ErrConsentEnded, "it has expired; a new one must be asked for")
	case StandsEndedByMove:
		return because(ErrConsentEnded, "the customer has moved; who lives there now must be asked anew")
	}
	return because(ErrConsentEnded, "it is revoked; a new one must be asked for")
}

// possible says why the market's rules could never give anything on such a
// consent.
func (t *taking) possible(s ConsentScope) error {
	switch {
	case !t.now.Before(s.ValidUntil.Truncate(time.Second)):
		return because(ErrConsentNotPossible, "its end has passed; choose a later one")
	case s.ValidUntil.After(t.terms.LongestUntil(t.today).Start(t.loc)):
		return because(ErrConsentNotPossible, "it would be valid longer than %d months; choose an earlier end", t.terms.LongestMonths)
	}
	rules := slices.DeleteFunc(t.p.Rules(s.Purpose), func(r meter.Rule) bool { return r.Basis != meter.Consent || !decidable(&r) })
	if len(rules) == 0 {
		return because(ErrConsentNotPossible, "nothing is given on consent for this purpose; choose another")
	}
	for _, class := range s.Classes {
		why := "nothing of class %s is given on consent for this purpose; leave it out"
		given := false
		for i := range rules {
			rule := &rules[i]
			if !covers(rule, class) {
				continue
			}
			// Of registers there is nothing finer than the day.
			if granularity := s.Granularity; rule.Granularity > granularity && (class != meter.Registers || rule.Granularity > meter.P1D) {
				why = "class %s is not given that fine; choose a coarser granularity"
				continue
			}
			back := t.p.RetentionMonths()
			if rule.Lookback > 0 {
				back = min(back, rule.Lookback)
			}
			days := rule.Days.Intersect(s.Days).Intersect(meter.DayRange{From: t.today.AddMonths(-back), To: meter.MaxDay})
			if days.Empty() {
				why = "class %s is not given on any of these days; choose others"
				continue
			}
			if rule.RequiresSupply && len(overlapping(t.supplyOf(s.Supplier), days)) == 0 {
				why = "class %s is given to the supplier only, and on none of these days it is; choose others"
				continue
			}
			given = true
			break
		}
		if !given {
			return because(ErrConsentNotPossible, why, class)
		}
	}
	return nil
}

func (t *taking) supplyOf(g meter.GLN) []meter.DayRange {
	if p := t.f.parties[g]; p != nil {
		return p.supply
	}
	return nil
}
