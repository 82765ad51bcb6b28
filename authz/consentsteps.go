package authz

import (
	"bytes"
	"slices"
	"sort"
	"time"

	"kluis/internal/canonical"
	"kluis/meter"
)

func (f *facts) consent(id [16]byte) (int, bool) {
	return sort.Find(len(f.consents), func(i int) int { return bytes.Compare(id[:], f.consents[i].ID[:]) })
}

// find returns the consent itself, or nil.
func (f *facts) find(id [16]byte) *Consent {
	if i, found := f.consent(id); found {
		return &f.consents[i]
	}
	return nil
}

// named finds the consent that a step names.
func (f *facts) named(id [16]byte) (*Consent, error) {
	c := f.find(id)
	if c == nil {
		return nil, because(ErrConsentUnknown, "check both")
	}
	return c, nil
}

// The terms of a request and of a consent given are alike, and read and written
// as those of a request.

func (s RequestConsent) encodeAs(number uint8) []byte {
	classes := slices.Clone(s.Classes)
	slices.Sort(classes)
	w := newStep(number)
	w.Fixed(s.ID[:])
	w.U64(uint64(s.Supplier.Int64()))
	w.U8(uint8(s.Purpose))
	writeClasses(w, slices.Compact(classes))
	w.U8(uint8(s.Granularity))
	writeDays(w, s.Days)
	w.Time(wholeSeconds(s.ValidUntil))
	w.String(s.Evidence)
	return w.Encoded()
}

func readTerms(r *canonical.Reader) RequestConsent {
	var s RequestConsent
	r.Fixed(s.ID[:])
	s.Supplier = readGLN(r)
	s.Purpose = meter.Purpose(r.U8())
	s.Classes = readClasses(r)
	s.Granularity = meter.Resolution(r.U8())
	s.Days = readDays(r)
	if s.ValidUntil = readTime(r); r.Err() == nil && s.ValidUntil.Nanosecond() != 0 {
		r.Refuse("valid until a fraction of a second")
	}
	s.Evidence = readReference(r)
	return s
}

// wholeSeconds cuts an instant, so that a text can hold it.
func wholeSeconds(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return time.Unix(t.Unix(), 0).UTC()
}

func (s RequestConsent) check() error {
	switch {
	case s.ID == [16]byte{}:
		return refuse("the consent has no id; give it a UUID")
	case s.Supplier.IsZero():
		return refuse("no supplier")
	case !knownPurpose(s.Purpose):
		return refuse("unknown purpose")
	case len(s.Classes) == 0:
		return refuse("the consent names no class; name at least one")
	case slices.ContainsFunc(s.Classes, func(c meter.Class) bool { return !knownClass(c) }):
		return refuse("unknown class")
	case !knownResolution(s.Granularity):
		return refuse("unknown granularity")
	case !validTime(wholeSeconds(s.ValidUntil)):
		return refuse("the consent must end: give a time until which it is valid, before the year 10000")
	case !reference(s.Evidence):
		return refuse("the consent needs a reference to its evidence, in 1 to %d printable bytes without a blank at either end", maxEvidence)
	}
	return checkDays(s.Days)
}

// add puts a consent into the file, and returns it.
func (s RequestConsent) add(f *facts, m moment) (*Consent, error) {
	i, found := f.consent(s.ID)
	o, occupied := f.occupancyAt(m.today)
	switch {
	case found:
		return nil, refuse("a consent with this id exists; give a new one a new id")
	case !occupied:
		return nil, because(ErrConsentNotPossible, "no customer occupies the metering point on %s; set the occupancy first", m.today)
	case !m.at.Before(s.ValidUntil):
		return nil, because(ErrConsentNotPossible, "the consent would have ended before it began; choose a later end")
	case len(f.consents) >= maxConsents:
		return nil, because(ErrTooManyConsents, "more than %d consents", maxConsents)
	}
	f.consents = slices.Insert(f.consents, i, Consent{
		ID:          s.ID,
		Supplier:    s.Supplier,
		Purpose:     s.Purpose,
		Classes:     s.Classes,
		Granularity: s.Granularity,
		Days:        s.Days,
		ValidUntil:  s.ValidUntil,
		Occupancy:   o.Days.From,
		Evidence:    s.Evidence,
	})
	return &f.consents[i], nil
}

// ---- GrantConsent

// Scope is what the consent permits.
func (s GrantConsent) Scope() ConsentScope { return RequestConsent(s).Scope() }

// Encode returns the canonical bytes.
func (s GrantConsent) Encode() []byte { return RequestConsent(s).encodeAs(stepGrantConsent) }

func (s GrantConsent) check() error { return RequestConsent(s).check() }

func (s GrantConsent) apply(f *facts, m moment) error {
	c, err := RequestConsent(s).add(f, m)
	if err != nil {
		return err
	}
	if o, _ := f.occupancyAt(m.today); s.Days.Intersect(o.Days).Empty() {
		return because(ErrConsentNotPossible, "the consent covers no day of the occupancy that began on %s; choose days in it", o.Days.From)
	}
	c.State, c.Answered, c.ValidFrom = ConsentActive, m.event(), m.at
	return nil
}

// ---- RequestConsent

// Scope is what the consent would permit.
func (s RequestConsent) Scope() ConsentScope {
	return ConsentScope{s.Supplier, s.Purpose, s.Classes, s.Granularity, s.Days, s.ValidUntil, s.Evidence}
}

// Encode returns the canonical bytes.
func (s RequestConsent) Encode() []byte { return s.encodeAs(stepRequestConsent) }

func (s RequestConsent) apply(f *facts, m moment) error {
	c, err := s.add(f, m)
	if err != nil {
		return err
	}
	c.State, c.Requested = ConsentRequested, m.event()
	return nil
}

// ---- AcceptConsent

// Encode returns the canonical bytes.
func (s AcceptConsent) Encode() []byte {
	w := newStep(stepAcceptConsent)
	w.Fixed(s.ID[:])
	w.String(s.Evidence)
	return w.Encoded()
}

func (s AcceptConsent) check() error {
	if !reference(s.Evidence) {
		return refuse("the answer needs a reference to its evidence, in 1 to %d printable bytes without a blank at either end", maxEvidence)
	}
	return checkID(s.ID)
}

func (s AcceptConsent) apply(f *facts, m moment) error {
	c, o, err := f.answered(s.ID, m)
	switch {
	case err != nil:
		return err
	case !m.at.Before(c.ValidUntil):
		return because(ErrConsentLapsed, "it would have ended before it began; a new one must be asked for")
	case c.Days.Intersect(o.Days).Empty():
		return because(ErrConsentNotPossible, "it covers no day of this customer's; the customer can only reject it")
	}
	c.State, c.Answered, c.ValidFrom, c.Answer = ConsentActive, m.event(), m.at, s.Evidence
	return nil
}

// answered finds a request that the customer of today may answer, and the
// customer. On the day of the request it was that customer who was there: a move
// may have been corrected since.
func (f *facts) answered(id [16]byte, m moment) (*Consent, Occupancy, error) {
	c, err := f.named(id)
	if err != nil {
		return nil, Occupancy{}, err
	}
	o, _ := f.occupancyAt(c.Occupancy)
	switch {
	case c.State == ConsentRevoked:
		return nil, o, over(StandsRevoked)
	case c.State != ConsentRequested:
		return nil, o, because(ErrConsentAnswered, "since %s; nothing to do", c.Answered.At.Format(time.RFC3339))
	case !o.Days.Contains(m.today), !o.Days.Contains(meter.DayOf(c.Requested.At, m.loc)):
		return nil, o, over(StandsEndedByMove)
	}
	return c, o, nil
}

// ---- RejectConsent

// Encode returns the canonical bytes.
func (s RejectConsent) Encode() []byte {
	w := newStep(stepRejectConsent)
	w.Fixed(s.ID[:])
	return w.Encoded()
}

func (s RejectConsent) check() error { return checkID(s.ID) }

func (s RejectConsent) apply(f *facts, m moment) error {
	c, _, err := f.answered(s.ID, m)
	if err != nil {
		return err
	}
	c.State, c.Answered = ConsentRejected, m.event()
	return nil
}

// ---- RevokeConsent

// Encode returns the canonical bytes.
func (s RevokeConsent) Encode() []byte {
	w := newStep(stepRevokeConsent)
	w.Fixed(s.ID[:])
	return w.Encoded()
}

func checkID(id [16]byte) error {
	if id == [16]byte{} {
		return refuse("no consent named; give its id")
	}
	return nil
}

func (s RevokeConsent) check() error { return checkID(s.ID) }

func (s RevokeConsent) apply(f *facts, m moment) error {
	c, err := f.named(s.ID)
	switch {
	case err != nil:
		return err
	case m.by.Kind == BySupplier && !m.by.is(c.Supplier):
		return because(ErrConsentUnknown, "check both")
	case c.State == ConsentRevoked:
		return because(ErrConsentEnded, "it is revoked already, since %s; nothing to do", c.Revoked.At.Format(time.RFC3339))
	case c.State == ConsentRejected:
		return over(StandsRejected)
	}
	c.State, c.Revoked = ConsentRevoked, m.event()
	return nil
}
