package authz

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"kluis/internal/canonical"
	"kluis/meter"
)

// Domain tag and format version of a step.
const (
	domainStep  = "kluis/legal-step"
	versionStep = 1
)

// Numbers of the steps in the encoding. Never renumber.
const (
	stepRegister      = 1
	stepSetOccupancy  = 2
	stepSetSupply     = 3
	stepGrantConsent  = 4
	stepRevokeConsent = 5
	stepSetOptOut     = 6
	stepEndOptOut     = 7
)

// Step is one change of a legal file: one of the types below. Its canonical
// encoding ("kluis/legal-step") travels to the cryptoserver.
type Step interface {
	// Encode returns the canonical bytes. Those of a step that names unknown
	// or impossible things do not decode.
	Encode() []byte
	// check refuses what is nonsense whatever the file says.
	check() error
	// apply changes the draft. today is the local day of at.
	apply(f *facts, at time.Time, today meter.Day) error
}

// The steps there are. All days are local.
type (
	// Register starts a legal file: version 1, no facts.
	Register struct {
		EAN       meter.EAN
		Commodity meter.Commodity
	}
	// SetOccupancy adds an occupancy, ending an open one at its start. With
	// the start of an open one, it sets that one's end. An overlap with any
	// other occupancy is refused.
	SetOccupancy struct{ Days meter.DayRange }
	// SetSupply registers a supplier for days, ending an open period of
	// another at its start. With supplier and start of an open period, it sets
	// that period's end. An overlap with any other period is refused.
	SetSupply struct {
		Supplier meter.GLN
		Days     meter.DayRange
	}
	// GrantConsent records an active consent, valid from the step's time, by
	// the customer who occupies the metering point on the step's local day.
	// The supplier need not supply yet; Decide asks that day by day. Days may
	// reach outside the occupancy; Decide gives only those inside.
	GrantConsent struct {
		ID          [16]byte // UUID, not zero
		Supplier    meter.GLN
		Purpose     meter.Purpose
		Classes     []meter.Class // at least one; order does not matter
		Granularity meter.Resolution
		Days        meter.DayRange
		ValidUntil  time.Time // exclusive
		Evidence    string    // reference to the proof: 1 to 128 printable bytes
	}
	// RevokeConsent ends a consent at the step's time, for good.
	RevokeConsent struct{ ID [16]byte }
	// SetOptOut opts the customer out of remote reading for days, in addition
	// to those opted out before.
	SetOptOut struct{ Days meter.DayRange }
	// EndOptOut opts in again from a day on.
	EndOptOut struct{ From meter.Day }
)

// ErrStep is wrapped by every refusal of a step; the text says what to do. It
// names days and reasons, never parties, metering points or evidence.
var ErrStep = errors.New("step refused")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrStep}, args...)...)
}

// Apply yields version + 1 of prev (nil for Register), as an unsealed draft.
// actor names who took the step (the operator's certificate name, at most 128
// printable bytes), at is the sealing time, loc the market's time zone
// (Profile.Location), in which at falls on a day. Apply never changes prev
// and depends on nothing else, so that a sealed version can be recomputed
// from the one before. Every error wraps ErrStep.
func Apply(prev *LegalFile, step Step, actor string, at time.Time, loc *time.Location) (*LegalFile, error) {
	at = micros(at)
	switch {
	case step == nil:
		return nil, refuse("no step")
	case loc == nil:
		return nil, refuse("no time zone")
	case !validTime(at):
		return nil, refuse("no sealing time")
	case !plainText(actor, maxActor):
		return nil, refuse("who takes the step must be named, in 1 to %d printable bytes", maxActor)
	}
	if err := step.check(); err != nil {
		return nil, err
	}
	// What is applied is what travels and is kept: the decoded bytes.
	encoded := step.Encode()
	step, err := DecodeStep(encoded)
	if err != nil {
		return nil, err
	}

	next := &LegalFile{version: 1, sealedAt: at, step: encoded, actor: actor}
	_, registers := step.(Register)
	switch {
	case prev == nil && !registers:
		return nil, refuse("the metering point is not registered; register it first")
	case prev != nil && registers:
		return nil, refuse("the metering point is registered already")
	case prev != nil && at.Before(prev.sealedAt):
		return nil, refuse("the clock is behind the time of the last version; check the clocks and try again")
	case prev != nil:
		next.facts = prev.facts.clone()
		next.version = prev.version + 1
		next.previous = prev.digest
	}
	if err := step.apply(&next.facts, at, meter.DayOf(at, loc)); err != nil {
		return nil, err
	}
	// Through the parser, so that nothing is ever sealed that would not be accepted.
	draft, err := parseLegalFile(next.encode())
	if err != nil {
		return nil, fmt.Errorf("%w: the result would not be a legal file: %w", ErrStep, err)
	}
	return draft, nil
}

// DecodeStep is the inverse of Encode; refuses everything else. Every error
// wraps ErrStep.
func DecodeStep(b []byte) (Step, error) {
	step, err := decodeStep(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStep, err)
	}
	if err := step.check(); err != nil {
		return nil, err
	}
	return step, nil
}

func decodeStep(b []byte) (Step, error) {
	if len(b) > maxStep {
		return nil, fmt.Errorf("%w: longer than %d bytes", canonical.ErrMalformed, maxStep)
	}
	r, _, err := canonical.Open(b, domainStep, versionStep)
	if err != nil {
		return nil, err
	}
	var step Step
	switch r.U8() {
	case stepRegister:
		step = Register{EAN: readEAN(r), Commodity: meter.Commodity(r.U8())}
	case stepSetOccupancy:
		step = SetOccupancy{Days: readDays(r)}
	case stepSetSupply:
		step = SetSupply{Supplier: readGLN(r), Days: readDays(r)}
	case stepGrantConsent:
		var g GrantConsent
		r.Fixed(g.ID[:])
		g.Supplier = readGLN(r)
		g.Purpose = meter.Purpose(r.U8())
		g.Classes = readClasses(r)
		g.Granularity = meter.Resolution(r.U8())
		g.Days = readDays(r)
		g.ValidUntil = readTime(r)
		g.Evidence = readText(r, maxEvidence)
		step = g
	case stepRevokeConsent:
		var v RevokeConsent
		r.Fixed(v.ID[:])
		step = v
	case stepSetOptOut:
		step = SetOptOut{Days: readDays(r)}
	case stepEndOptOut:
		step = EndOptOut{From: meter.Day(r.I32())}
	default:
		r.Refuse("unknown step")
	}
	return step, r.Close()
}

func newStep(number uint8) *canonical.Writer {
	w := canonical.New(domainStep, versionStep)
	w.U8(number)
	return w
}

func checkDays(d meter.DayRange) error {
	if !validDays(d) {
		return refuse("the days must start in 1970 or later, end after they start, and end by 9999-12-31 or stay open")
	}
	return nil
}

// ---- Register

// Encode returns the canonical bytes.
func (s Register) Encode() []byte {
	w := newStep(stepRegister)
	w.U64(uint64(s.EAN.Int64()))
	w.U8(uint8(s.Commodity))
	return w.Encoded()
}

func (s Register) check() error {
	switch {
	case s.EAN.IsZero():
		return refuse("no EAN")
	case !knownCommodity(s.Commodity):
		return refuse("unknown commodity: want electricity or gas")
	}
	return nil
}

func (s Register) apply(f *facts, _ time.Time, _ meter.Day) error {
	f.ean, f.commodity = s.EAN, s.Commodity
	return nil
}

// ---- SetOccupancy

// Encode returns the canonical bytes.
func (s SetOccupancy) Encode() []byte {
	w := newStep(stepSetOccupancy)
	writeDays(w, s.Days)
	return w.Encoded()
}

func (s SetOccupancy) check() error { return checkDays(s.Days) }

func (s SetOccupancy) apply(f *facts, _ time.Time, _ meter.Day) error {
	if n := len(f.occupancies); n > 0 {
		open := &f.occupancies[n-1].Days
		if open.To == meter.MaxDay && s.Days.From == open.From {
			if s.Days.To == meter.MaxDay {
				return refuse("the occupancy that starts on this day is registered already")
			}
			open.To = s.Days.To
			return nil
		}
		if open.To == meter.MaxDay && s.Days.From > open.From {
			open.To = s.Days.From
		}
	}
	if len(f.occupancies) >= maxOccupancies {
		return refuse("more than %d occupancies", maxOccupancies)
	}
	i := sort.Search(len(f.occupancies), func(i int) bool { return f.occupancies[i].Days.To > s.Days.From })
	if i < len(f.occupancies) && f.occupancies[i].Days.From < s.Days.To {
		return overlaps("an occupancy", f.occupancies[i].Days)
	}
	f.occupancies = slices.Insert(f.occupancies, i, Occupancy(s))
	return nil
}

func overlaps(what string, d meter.DayRange) error {
	if d.To == meter.MaxDay {
		return refuse("overlaps %s from %s; start after that day, or end before it", what, d.From)
	}
	return refuse("overlaps %s from %s to %s; choose days outside it", what, d.From, d.To)
}

// ---- SetSupply

// Encode returns the canonical bytes.
func (s SetSupply) Encode() []byte {
	w := newStep(stepSetSupply)
	w.U64(uint64(s.Supplier.Int64()))
	writeDays(w, s.Days)
	return w.Encoded()
}

func (s SetSupply) check() error {
	if s.Supplier.IsZero() {
		return refuse("no supplier")
	}
	return checkDays(s.Days)
}

func (s SetSupply) apply(f *facts, _ time.Time, _ meter.Day) error {
	if n := len(f.supply); n > 0 && f.supply[n-1].Days.To == meter.MaxDay {
		open := &f.supply[n-1]
		switch {
		case open.Supplier == s.Supplier && open.Days.From == s.Days.From && s.Days.To != meter.MaxDay:
			open.Days.To = s.Days.To
			return nil
		case open.Supplier == s.Supplier && s.Days.To > open.Days.From:
			return refuse("this supplier has supplied since %s; to end that period, give its first day and its end", open.Days.From)
		case s.Days.From > open.Days.From:
			open.Days.To = s.Days.From
		}
	}
	if len(f.supply) >= maxSupplyPeriods {
		return refuse("more than %d supply periods", maxSupplyPeriods)
	}
	i := sort.Search(len(f.supply), func(i int) bool { return f.supply[i].Days.To > s.Days.From })
	if i < len(f.supply) && f.supply[i].Days.From < s.Days.To {
		return overlaps("a supply period", f.supply[i].Days)
	}
	f.supply = slices.Insert(f.supply, i, SupplyPeriod(s))
	return nil
}

// ---- GrantConsent

// Encode returns the canonical bytes.
func (s GrantConsent) Encode() []byte {
	classes := slices.Clone(s.Classes)
	slices.Sort(classes)
	w := newStep(stepGrantConsent)
	w.Fixed(s.ID[:])
	w.U64(uint64(s.Supplier.Int64()))
	w.U8(uint8(s.Purpose))
	writeClasses(w, slices.Compact(classes))
	w.U8(uint8(s.Granularity))
	writeDays(w, s.Days)
	w.Time(s.ValidUntil)
	w.String(s.Evidence)
	return w.Encoded()
}

func (s GrantConsent) check() error {
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
	case !validTime(s.ValidUntil):
		return refuse("the consent must end: give a time until which it is valid, before the year 10000")
	case !plainText(s.Evidence, maxEvidence):
		return refuse("the consent needs a reference to its evidence, in 1 to %d printable bytes", maxEvidence)
	}
	return checkDays(s.Days)
}

func (s GrantConsent) apply(f *facts, at time.Time, today meter.Day) error {
	i, found := f.consent(s.ID)
	o, occupied := f.occupancyAt(today)
	switch {
	case found:
		return refuse("a consent with this id exists; give a new one a new id")
	case !occupied:
		return refuse("no customer occupies the metering point on %s; set the occupancy first", today)
	case s.Days.Intersect(o.Days).Empty():
		return refuse("the consent covers no day of the occupancy that began on %s; choose days in it", o.Days.From)
	case !at.Before(s.ValidUntil):
		return refuse("the consent would have ended before it began; choose a later end")
	case len(f.consents) >= maxConsents:
		return refuse("more than %d consents", maxConsents)
	}
	f.consents = slices.Insert(f.consents, i, Consent{
		ID:          s.ID,
		Supplier:    s.Supplier,
		Purpose:     s.Purpose,
		Classes:     s.Classes,
		Granularity: s.Granularity,
		Days:        s.Days,
		ValidFrom:   at,
		ValidUntil:  s.ValidUntil,
		Occupancy:   o.Days.From,
		State:       ConsentActive,
		GrantedAt:   at,
		Evidence:    s.Evidence,
	})
	return nil
}

func (f *facts) consent(id [16]byte) (int, bool) {
	return sort.Find(len(f.consents), func(i int) int { return bytes.Compare(id[:], f.consents[i].ID[:]) })
}

// ---- RevokeConsent

// Encode returns the canonical bytes.
func (s RevokeConsent) Encode() []byte {
	w := newStep(stepRevokeConsent)
	w.Fixed(s.ID[:])
	return w.Encoded()
}

func (s RevokeConsent) check() error {
	if s.ID == [16]byte{} {
		return refuse("no consent named; give its id")
	}
	return nil
}

func (s RevokeConsent) apply(f *facts, at time.Time, _ meter.Day) error {
	i, found := f.consent(s.ID)
	if !found {
		return refuse("no consent with this id at this metering point; check both")
	}
	c := &f.consents[i]
	if c.State == ConsentRevoked {
		return refuse("the consent is revoked already, since %s; nothing to do", c.RevokedAt.Format(time.RFC3339))
	}
	c.State, c.RevokedAt = ConsentRevoked, at
	return nil
}

// ---- SetOptOut

// Encode returns the canonical bytes.
func (s SetOptOut) Encode() []byte {
	w := newStep(stepSetOptOut)
	writeDays(w, s.Days)
	return w.Encoded()
}

func (s SetOptOut) check() error { return checkDays(s.Days) }

func (s SetOptOut) apply(f *facts, _ time.Time, _ meter.Day) error {
	before := meter.NewDaySet(f.optOuts...)
	after := before.Union(meter.NewDaySet(s.Days))
	if after.Equal(before) {
		return refuse("the customer is opted out on all these days already; nothing to do")
	}
	f.optOuts = after.Ranges()
	if len(f.optOuts) > maxOptOuts {
		return refuse("more than %d opt-outs", maxOptOuts)
	}
	return nil
}

// ---- EndOptOut

// Encode returns the canonical bytes.
func (s EndOptOut) Encode() []byte {
	w := newStep(stepEndOptOut)
	w.I32(int32(s.From))
	return w.Encoded()
}

func (s EndOptOut) check() error {
	if !validDay(s.From) {
		return refuse("the day must lie between 1970-01-01 and 9999-12-31")
	}
	return nil
}

func (s EndOptOut) apply(f *facts, _ time.Time, _ meter.Day) error {
	before := meter.NewDaySet(f.optOuts...)
	after := before.Intersect(meter.NewDaySet(meter.DayRange{From: 0, To: s.From}))
	if after.Equal(before) {
		return refuse("the customer is not opted out on %s or later; nothing to do", s.From)
	}
	f.optOuts = after.Ranges()
	return nil
}
