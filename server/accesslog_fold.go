package server

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"kluis/meter"
	"kluis/openapi"
)

// Anybody with a token can ask about a metering point as often as they like, and
// each request is in its customer's log. So that nobody can bury a read under
// requests that come to nothing, a statement and a table show each read that
// gave something by itself, and fold all else: what one party asked for on one
// day, with the same outcome, is one line with its number. Those lines have a
// bound of their own.
//
// What leads to different lines are words of the contract, the consent of a
// step that was taken, and who of the operator asked for which reason: nothing
// that a supplier can make up at will.

// logEntry is an entry, or several folded into one, of which it is the latest.
type logEntry struct {
	openapi.AccessLogEntry
	supplier meter.GLN
	requests int       // how many
	first    time.Time // when the earliest was made; At is the latest
	// reasons are why days were withheld from any of them, each once. Withheld
	// is of all of them alike, or empty.
	reasons []openapi.WithheldReason
}

// foldKey is what requests on one line have in common.
type foldKey struct {
	day              meter.Day
	supplier         meter.GLN
	employee, reason string
	operation        openapi.AccessLogEntryOperation
	step             openapi.AccessLogEntryStep
	purpose          openapi.Purpose
	outcome          openapi.AccessLogEntryOutcome
	opened           bool
	consent          uuid.UUID // of a step taken: who repeats it has the same answer
}

// maxFoldedWithheld is how many runs of withheld days a folded line holds;
// where there are more it has the reasons only.
const maxFoldedWithheld = 16

// gave says whether readings were given.
func (e *logEntry) gave() bool {
	return e.Operation == openapi.READINGS && e.Outcome != openapi.FAILED && e.Outcome != openapi.UNCHANGED && len(e.Granted) > 0
}

func (e *logEntry) key(loc *time.Location) foldKey {
	k := foldKey{
		day: meter.DayOf(e.At, loc), supplier: e.supplier, employee: text(e.Caller.Employee), reason: text(e.Caller.Reason),
		operation: e.Operation, outcome: e.Outcome, opened: e.Opened > 0,
	}
	if e.Purpose != nil {
		k.purpose = *e.Purpose
	}
	if e.Step != nil {
		k.step = *e.Step
		if e.ConsentId != nil && e.Outcome == openapi.GIVEN {
			k.consent = *e.ConsentId
		}
	}
	return k
}

// add puts a request into the answer, and returns how many runs of days that
// takes; false: there is no room for its line.
func (v *logView) add(e logEntry) (int, bool) {
	if v.bounds.folded == 0 || e.gave() {
		if !v.room(true) {
			return 0, false
		}
		v.own++
		v.entries = append(v.entries, e)
		return len(e.Granted) + len(e.Withheld), true
	}
	if len(e.Withheld) > maxFoldedWithheld {
		e.Withheld = nil
	}
	k := e.key(v.profile.Location())
	at, ok := v.folds[k]
	if !ok {
		if !v.room(false) {
			return 0, false
		}
		if v.folds == nil {
			v.folds = make(map[foldKey]int)
		}
		v.folds[k] = len(v.entries)
		v.entries = append(v.entries, e)
		return len(e.Granted), true
	}
	before := len(v.entries[at].Granted)
	v.entries[at].fold(&e)
	return len(v.entries[at].Granted) - before, true
}

// fold takes in another request of the same kind.
func (e *logEntry) fold(o *logEntry) {
	e.requests += o.requests
	e.Opened += o.Opened
	if o.first.Before(e.first) {
		e.first = o.first
	}
	if o.At.After(e.At) {
		e.At, e.InteractionId = o.At, o.InteractionId
	}
	if e.From != nil && o.From != nil {
		if o.From.Before(e.From.Time) {
			e.From = o.From
		}
		if o.To.After(e.To.Time) {
			e.To = o.To
		}
	}
	if e.ConsentId != nil && (o.ConsentId == nil || *o.ConsentId != *e.ConsentId) {
		e.ConsentId = nil
	}
	if e.AsOf != nil && (o.AsOf == nil || !o.AsOf.Equal(*e.AsOf)) {
		e.AsOf = nil
	}
	if !slices.Equal(e.Withheld, o.Withheld) {
		e.Withheld = nil
	}
	for _, r := range o.reasons {
		if !slices.Contains(e.reasons, r) {
			e.reasons = append(e.reasons, r)
		}
	}
	if !tells(e.Granted, o.Granted) {
		e.Granted = joined(e.Granted, o.Granted)
	}
}

// reasonsOf are the reasons why, each once.
func reasonsOf(withheld []openapi.Withheld) []openapi.WithheldReason {
	var out []openapi.WithheldReason
	for i := range withheld {
		if r := withheld[i].Reason; !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}

// grantOf is what runs of days are granted as.
type grantOf struct {
	field       openapi.FieldName
	granularity openapi.Resolution
	basis       openapi.LegalBasis
	rule        string
}

func asGranted(g *openapi.AccessLogGranted) grantOf {
	return grantOf{g.Field, g.Granularity, g.LegalBasis, g.Rule}
}

// tells says whether every run of b lies within one of a.
func tells(a, b []openapi.AccessLogGranted) bool {
	return !slices.ContainsFunc(b, func(g openapi.AccessLogGranted) bool {
		return !slices.ContainsFunc(a, func(h openapi.AccessLogGranted) bool {
			return asGranted(&h) == asGranted(&g) && !g.From.Before(h.From.Time) && !g.To.After(h.To.Time)
		})
	})
}

// joined is all that a and b tell, in as few runs as there can be.
func joined(a, b []openapi.AccessLogGranted) []openapi.AccessLogGranted {
	var order []grantOf
	days := make(map[grantOf][]meter.DayRange)
	for _, g := range slices.Concat(a, b) {
		k := asGranted(&g)
		if days[k] == nil {
			order = append(order, k)
		}
		days[k] = append(days[k], meter.DayRange{From: meter.DayFromDate(g.From.Date()), To: meter.DayFromDate(g.To.Date())})
	}
	var out []openapi.AccessLogGranted
	for _, k := range order {
		for _, run := range meter.NewDaySet(days[k]...).Ranges() {
			out = append(out, openapi.AccessLogGranted{
				Field: k.field, From: date(run.From), To: date(run.To), Granularity: k.granularity, LegalBasis: k.basis, Rule: k.rule,
			})
		}
	}
	return out
}
