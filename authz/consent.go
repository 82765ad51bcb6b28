package authz

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"strings"
	"time"

	"kluis/internal/canonical"
	"kluis/meter"
)

// ConsentState is where a consent stands, by the steps that were taken. What
// time makes of it is its Standing.
type ConsentState uint8

// The values are part of the sealed formats: never renumber.
const (
	ConsentRequested ConsentState = 1 // asked for, and not answered
	ConsentActive    ConsentState = 2 // given
	ConsentRejected  ConsentState = 3 // the customer said no
	ConsentRevoked   ConsentState = 4 // given and taken back, or a request withdrawn
)

// Consent is the customer's permission for one supplier, or the request for
// it. Times are UTC, in microseconds; days are local.
type Consent struct {
	ID          [16]byte // UUID
	Supplier    meter.GLN
	Purpose     meter.Purpose
	Classes     []meter.Class    // ascending
	Granularity meter.Resolution // finest
	Days        meter.DayRange   // days that may be read
	ValidFrom   time.Time        // when it was given: Answered.At; zero until then, and after a no
	ValidUntil  time.Time        // exclusive; whole seconds
	Occupancy   meter.Day        // From of the occupancy whose customer was asked, or gave it
	State       ConsentState
	Requested   ConsentEvent // zero when customer service registered it
	Answered    ConsentEvent // given or rejected
	Revoked     ConsentEvent // or withdrawn
	Evidence    string       // reference to the proof of the request, or of the customer's word when registered: at most 128 bytes, no personal data
	Answer      string       // reference to the proof of the customer's yes to a request; else ""
}

// ConsentEvent is one step of a consent's life. The zero value has not
// happened.
type ConsentEvent struct {
	At time.Time
	By Actor
}

// IsZero says whether it has not happened.
func (e ConsentEvent) IsZero() bool { return e.At.IsZero() }

func (e ConsentEvent) encode(w *canonical.Writer) {
	w.Bool(!e.IsZero())
	if !e.IsZero() {
		w.Time(e.At)
		e.By.encode(w)
	}
}

func readEvent(r *canonical.Reader) ConsentEvent {
	if !r.Bool() {
		return ConsentEvent{}
	}
	return ConsentEvent{At: readTime(r), By: readActor(r)}
}

// Given says whether the customer ever permitted it.
func (c *Consent) Given() bool { return !c.ValidFrom.IsZero() }

func (c *Consent) encode(w *canonical.Writer) {
	w.Fixed(c.ID[:])
	w.U64(uint64(c.Supplier.Int64()))
	w.U8(uint8(c.Purpose))
	writeClasses(w, c.Classes)
	w.U8(uint8(c.Granularity))
	writeDays(w, c.Days)
	w.Time(c.ValidUntil)
	w.I32(int32(c.Occupancy))
	w.U8(uint8(c.State))
	c.Requested.encode(w)
	c.Answered.encode(w)
	c.Revoked.encode(w)
	w.String(c.Evidence)
	w.String(c.Answer)
}

// readConsent reads what encode wrote, and refuses what no steps can have made
// of a consent. That the occupancy exists is for the file to check.
func readConsent(r *canonical.Reader, sealedAt time.Time) Consent {
	var c Consent
	r.Fixed(c.ID[:])
	c.Supplier = readGLN(r)
	c.Purpose = meter.Purpose(r.U8())
	c.Classes = readClasses(r)
	c.Granularity = meter.Resolution(r.U8())
	c.Days = readDays(r)
	c.ValidUntil = readTime(r)
	c.Occupancy = meter.Day(r.I32())
	c.State = ConsentState(r.U8())
	c.Requested = readEvent(r)
	c.Answered = readEvent(r)
	c.Revoked = readEvent(r)
	c.Evidence = readReference(r)
	c.Answer = r.String(maxEvidence)
	if r.Err() != nil {
		return c
	}
	if why := c.impossible(sealedAt); why != "" {
		r.Refuse(why)
		return c
	}
	if !c.Answered.IsZero() && c.State != ConsentRejected {
		c.ValidFrom = c.Answered.At
	}
	return c
}

// impossible says why no steps taken until a time can have made the consent,
// or "".
func (c *Consent) impossible(sealedAt time.Time) string {
	requested, answered, revoked := !c.Requested.IsZero(), !c.Answered.IsZero(), !c.Revoked.IsZero()
	var events bool
	switch c.State {
	case ConsentRequested:
		events = requested && !answered && !revoked
	case ConsentActive:
		events = answered && !revoked
	case ConsentRejected:
		events = requested && answered && !revoked
	case ConsentRevoked:
		events = (requested || answered) && revoked
	default:
		return "unknown consent state"
	}
	given := answered && c.State != ConsentRejected
	var last time.Time
	for _, e := range []ConsentEvent{c.Requested, c.Answered, c.Revoked} {
		if e.IsZero() {
			continue
		}
		if e.At.Before(last) {
			return "consent answered before it was asked for, or revoked before it was given"
		}
		last = e.At
	}
	switch {
	case c.ID == [16]byte{}:
		return "consent without an id"
	case !knownPurpose(c.Purpose):
		return "unknown purpose"
	case !knownResolution(c.Granularity):
		return "unknown granularity"
	case !events:
		return "consent state and events disagree"
	case last.After(sealedAt):
		return "consent changed after it was sealed"
	case requested && !c.Requested.At.Before(c.ValidUntil), given && !c.Answered.At.Before(c.ValidUntil):
		return "consent never valid"
	case c.ValidUntil.Nanosecond() != 0:
		return "consent valid until a fraction of a second"
	case requested && !(c.Requested.By.Kind == ByOperator || c.Requested.By.is(c.Supplier)):
		return "consent asked for by somebody else"
	case answered && c.Answered.By.Kind == BySupplier:
		return "consent answered by a supplier"
	case revoked && c.Revoked.By.Kind == BySupplier && !c.Revoked.By.is(c.Supplier):
		return "consent revoked by another supplier"
	case given && requested != (c.Answer != ""), !given && c.Answer != "":
		return "proof of an answer without one, or the other way round"
	case c.Answer != "" && !reference(c.Answer):
		return "reference to evidence empty, not printable, or with a blank at an end"
	}
	return ""
}

// domainConsent is the tag of a consent's Digest.
const (
	domainConsent  = "kluis/consent"
	versionConsent = 1
)

// Digest is the SHA-256 of everything in the consent, and of the metering
// point: it changes with every step of the consent's life (canonical,
// "kluis/consent").
func (c *Consent) Digest(ean meter.EAN) [32]byte {
	w := canonical.New(domainConsent, versionConsent)
	w.U64(uint64(ean.Int64()))
	c.encode(w)
	return sha256.Sum256(w.Encoded())
}

// ConsentScope is what a consent permits, of which the customer is told.
type ConsentScope struct {
	Supplier    meter.GLN
	Purpose     meter.Purpose
	Classes     []meter.Class // in any order
	Granularity meter.Resolution
	Days        meter.DayRange
	ValidUntil  time.Time // exclusive; cut to whole seconds
	Evidence    string
}

// Scope is what the consent permits.
func (c *Consent) Scope() ConsentScope {
	return ConsentScope{c.Supplier, c.Purpose, c.Classes, c.Granularity, c.Days, c.ValidUntil, c.Evidence}
}

// ScopeDigest is the Digest of the consent's scope.
func (c *Consent) ScopeDigest(ean meter.EAN) [32]byte { return c.Scope().Digest(ean) }

// Digest is the SHA-256 of lines of text that any client can make, so that a
// token can name what the customer was told without holding it:
//
//	kluis/consent-scope/1
//	<EAN> <supplier's GLN> <purpose> <classes> <granularity> <from> <to> <valid until> <evidence>
//
// each of the second line on a line of its own, ended by a line feed: classes
// as the market profile names them, registers first, joined by a comma; days
// as YYYY-MM-DD, "to" empty when open; valid until as RFC 3339 in UTC, whole
// seconds, with a Z.
func (s ConsentScope) Digest(ean meter.EAN) [32]byte {
	sorted := slices.Clone(s.Classes)
	slices.Sort(sorted)
	var classes []string
	for _, c := range slices.Compact(sorted) {
		classes = append(classes, c.String())
	}
	to := ""
	if s.Days.To != meter.MaxDay {
		to = s.Days.To.String()
	}
	var b bytes.Buffer
	for _, line := range []string{
		"kluis/consent-scope/1", ean.String(), s.Supplier.String(), s.Purpose.String(), strings.Join(classes, ","), s.Granularity.String(),
		s.Days.From.String(), to, s.ValidUntil.UTC().Format("2006-01-02T15:04:05Z"), s.Evidence,
	} {
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return sha256.Sum256(b.Bytes())
}

// Standing is what a consent is at a moment: its state, and what time, the
// market's terms and the customer's move made of it.
type Standing uint8

// Never renumber.
const (
	StandsRequested   Standing = 1
	StandsActive      Standing = 2
	StandsRejected    Standing = 3
	StandsRevoked     Standing = 4
	StandsExpired     Standing = 5 // given, and over by its own end or the market's longest
	StandsLapsed      Standing = 6 // asked for, and not answered in time
	StandsEndedByMove Standing = 7 // the customer who gave it, or was asked, moved
)

var standingNames = [...]string{
	StandsRequested: "REQUESTED", StandsActive: "ACTIVE", StandsRejected: "REJECTED", StandsRevoked: "REVOKED",
	StandsExpired: "EXPIRED", StandsLapsed: "LAPSED", StandsEndedByMove: "ENDED_BY_MOVE",
}

func (s Standing) String() string { return nameOf(s, standingNames[:], "Standing") }

// ParseStanding reads "REQUESTED" and the like.
func ParseStanding(s string) (Standing, error) {
	return parseName[Standing](s, standingNames[:], "standing of a consent")
}

// Standing says what a consent of the file is at a moment, by the profile: what
// Decide goes by. Of several ends the first counts. The profile is not nil.
//
// A request lapses when it is not answered within the market's time, or before
// its own end, and ends when the customer it was asked of moves. A consent ends
// by its own end or by the market's longest validity and, where the market says
// so, when the customer who gave it moves out. One that was asked for, or given,
// on a day that is none of that customer's, since a move was corrected, has ended
// by the move: it was the other customer who was asked, or who gave it.
func (f *LegalFile) Standing(c *Consent, p *meter.Profile, now time.Time) Standing {
	return f.standing(c, p.ConsentTerms(), now, p.Location())
}

func (f *facts) standing(c *Consent, terms meter.ConsentTerms, now time.Time, loc *time.Location) Standing {
	o, _ := f.occupancyAt(c.Occupancy)
	stands, over := StandsActive, StandsExpired
	end := c.ValidUntil
	until := func(d meter.Day, s Standing) {
		if d == meter.MaxDay {
			return
		}
		if t := d.Start(loc); t.Before(end) {
			end, over = t, s
		}
	}
	switch c.State {
	case ConsentRequested:
		asked := meter.DayOf(c.Requested.At, loc)
		if !o.Days.Contains(asked) {
			return StandsEndedByMove
		}
		stands, over = StandsRequested, StandsLapsed
		until(terms.AnswerUntil(asked), StandsLapsed)
		until(o.Days.To, StandsEndedByMove)
	case ConsentActive:
		began := meter.DayOf(c.ValidFrom, loc)
		if !o.Days.Contains(began) {
			return StandsEndedByMove
		}
		until(terms.LongestUntil(began), StandsExpired)
		if terms.EndedByMove {
			until(o.Days.To, StandsEndedByMove)
		}
	case ConsentRejected:
		return StandsRejected
	default:
		return StandsRevoked
	}
	if now.Before(end) {
		return stands
	}
	return over
}
