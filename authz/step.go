package authz

import (
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

	stepRequestConsent = 8
	stepAcceptConsent  = 9
	stepRejectConsent  = 10
	stepCorrectSupply  = 11
	stepCorrectMove    = 12
)

// Step is one change of a legal file: one of the types below. Its canonical
// encoding ("kluis/legal-step") travels to the cryptoserver.
type Step interface {
	// Encode returns the canonical bytes. Those of a step that names unknown
	// or impossible things do not decode.
	Encode() []byte
	// check refuses what is nonsense whatever the file says.
	check() error
	// apply changes the draft.
	apply(f *facts, m moment) error
}

// moment is when a step is taken, and by whom.
type moment struct {
	at    time.Time
	loc   *time.Location
	today meter.Day // local, of at
	by    Actor
}

func (m moment) event() ConsentEvent { return ConsentEvent{At: m.at, By: m.by} }

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
	// GrantConsent records an active consent that nobody asked for here, on the
	// customer's word, valid from the step's time, by the customer who occupies
	// the metering point on the step's local day. The supplier need not supply
	// yet; Decide asks that day by day. Days may reach outside the occupancy;
	// Decide gives only those inside.
	GrantConsent struct {
		ID          [16]byte // UUID, not zero
		Supplier    meter.GLN
		Purpose     meter.Purpose
		Classes     []meter.Class // at least one; order does not matter
		Granularity meter.Resolution
		Days        meter.DayRange
		ValidUntil  time.Time // exclusive; cut to whole seconds
		Evidence    string    // reference to the proof: 1 to 128 printable bytes
	}
	// RequestConsent asks the customer who occupies the metering point on the
	// step's local day for a consent. It gives nothing until it is accepted. Days
	// need not lie in the occupancy: who asks is not told when it began.
	RequestConsent struct {
		ID          [16]byte // UUID, not zero
		Supplier    meter.GLN
		Purpose     meter.Purpose
		Classes     []meter.Class // at least one; order does not matter
		Granularity meter.Resolution
		Days        meter.DayRange
		ValidUntil  time.Time // exclusive; cut to whole seconds
		Evidence    string    // reference to the proof of the request: 1 to 128 printable bytes
	}
	// AcceptConsent is the customer's yes to a request, which counts from the
	// step's time. It was asked of the customer who occupies the metering point
	// on the step's local day.
	AcceptConsent struct {
		ID       [16]byte
		Evidence string // reference to the proof of the answer: 1 to 128 printable bytes
	}
	// RejectConsent is the same customer's no.
	RejectConsent struct{ ID [16]byte }
	// RevokeConsent ends a consent at the step's time, for good, or withdraws a
	// request.
	RevokeConsent struct{ ID [16]byte }
	// CorrectSupply says who supplied on days, whatever was recorded before: the
	// supplier on every day of Days, or nobody with the zero Supplier. All other
	// days keep whom they have. Consents stay as they are.
	CorrectSupply struct {
		Supplier meter.GLN
		Days     meter.DayRange
	}
	// CorrectMove moves one boundary: the day Was, on which one customer moved
	// out, another in, or both, becomes Is. No occupancy may vanish, or overlap
	// another, by it. Consents stay with the occupancy they belong to, and stand
	// only if they were given, or asked for, on a day of that occupancy: one given
	// by somebody who, as it turns out, was the other customer counts no more, and
	// what the one was asked the other does not answer.
	CorrectMove struct{ Was, Is meter.Day }
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
// actor is who took the step, at is the sealing time, loc the market's time
// zone (Profile.Location), in which at falls on a day. Apply never changes prev
// and depends on nothing else, so that a sealed version can be recomputed
// from the one before: what the market's rules say of a step is Permit's to
// look at.
//
// A clock may be a minute behind the one that sealed prev: the step is then
// taken and sealed right after prev. From SealedAt of the result the same
// version comes again. Further behind it is ErrClockBehind. Every error wraps
// ErrStep.
func Apply(prev *LegalFile, step Step, actor Actor, at time.Time, loc *time.Location) (*LegalFile, error) {
	at = micros(at)
	switch {
	case step == nil:
		return nil, refuse("no step")
	case loc == nil:
		return nil, refuse("no time zone")
	case !validTime(at):
		return nil, refuse("no sealing time")
	case !actor.valid():
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

	if !actor.may(step) {
		return nil, refuse("no %s takes this step", actor.Kind)
	}

	next := &LegalFile{version: 1, sealedAt: at, step: encoded, actor: actor}
	_, registers := step.(Register)
	switch {
	case prev == nil && !registers:
		return nil, refuse("the metering point is not registered; register it first")
	case prev != nil && registers:
		return nil, refuse("the metering point is registered already")
	case prev != nil:
		if at, err = sealingTime(at, prev.sealedAt); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrStep, err)
		}
		next.sealedAt = at
		next.facts = prev.facts.clone()
		next.version = prev.version + 1
		next.previous = prev.digest
	}
	if err := step.apply(&next.facts, moment{at: at, loc: loc, today: meter.DayOf(at, loc), by: actor}); err != nil {
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
		step = GrantConsent(readTerms(r))
	case stepRequestConsent:
		step = readTerms(r)
	case stepAcceptConsent:
		var a AcceptConsent
		r.Fixed(a.ID[:])
		a.Evidence = readReference(r)
		step = a
	case stepRejectConsent:
		var v RejectConsent
		r.Fixed(v.ID[:])
		step = v
	case stepRevokeConsent:
		var v RevokeConsent
		r.Fixed(v.ID[:])
		step = v
	case stepSetOptOut:
		step = SetOptOut{Days: readDays(r)}
	case stepEndOptOut:
		step = EndOptOut{From: meter.Day(r.I32())}
	case stepCorrectSupply:
		step = CorrectSupply{Supplier: readGLNOrNone(r), Days: readDays(r)}
	case stepCorrectMove:
		step = CorrectMove{Was: meter.Day(r.I32()), Is: meter.Day(r.I32())}
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

func (s Register) apply(f *facts, _ moment) error {
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

func (s SetOccupancy) apply(f *facts, _ moment) error {
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

func (s SetSupply) apply(f *facts, _ moment) error {
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

// ---- SetOptOut

// Encode returns the canonical bytes.
func (s SetOptOut) Encode() []byte {
	w := newStep(stepSetOptOut)
	writeDays(w, s.Days)
	return w.Encoded()
}

func (s SetOptOut) check() error { return checkDays(s.Days) }

func (s SetOptOut) apply(f *facts, _ moment) error {
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

func (s EndOptOut) apply(f *facts, _ moment) error {
	before := meter.NewDaySet(f.optOuts...)
	after := before.Intersect(meter.NewDaySet(meter.DayRange{From: 0, To: s.From}))
	if after.Equal(before) {
		return refuse("the customer is not opted out on %s or later; nothing to do", s.From)
	}
	f.optOuts = after.Ranges()
	return nil
}
