package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

// asked is a step in the life of a consent that a caller wants to take.
type asked struct {
	ean     meter.EAN // of a consent to be made; zero: where the consent is
	id      [16]byte
	purpose meter.Purpose // of a consent to be made
	step    authz.Step
	tags    entityTags // that the consent's must be one of; not of one to be made
	key     [32]byte   // SHA-256 of the idempotency key
	by      string     // the employee's subject; "" for a supplier
}

func (a *asked) makes() bool { return !a.ean.IsZero() }

// digest is the SHA-256 of what was asked: the same for a request sent again. By
// another employee it is another: the answer to it would be recorded as if that
// one had taken the step.
func (a *asked) digest() [32]byte {
	ean := ""
	if a.makes() {
		ean = a.ean.String()
	}
	return sha256.Sum256([]byte("kluis/consent-request/1\n" + ean + "\n" + hex.EncodeToString(a.step.Encode()) + "\n" + a.by + "\n"))
}

// consentID is that of the consent a caller makes under a key, so that the same
// request makes the same one: a UUID of version 8 (RFC 9562, 5.8).
func consentID(caller meter.GLN, key string) [16]byte {
	sum := sha256.Sum256([]byte("kluis/consent-id/1\n" + caller.String() + "\n" + key + "\n"))
	id := [16]byte(sum[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

// CreateConsent answers POST /v1/consents.
func (s *Server) CreateConsent(ctx context.Context, r openapi.CreateConsentRequestObject) (openapi.CreateConsentResponseObject, error) {
	c := callOf(ctx)
	employee := c.caller.Employee() != nil
	n, errs := parseNewConsent(c.body, employee)
	if len(errs) > 0 {
		return nil, failParams(errs)
	}
	if n.supplier.IsZero() {
		n.supplier = c.caller.Supplier()
	}
	id := consentID(c.caller.Supplier(), r.Params.IdempotencyKey)
	request := authz.RequestConsent{
		ID: id, Supplier: n.supplier, Purpose: n.purpose, Classes: n.classes, Granularity: n.granularity, Days: n.days,
		ValidUntil: n.validUntil, Evidence: n.evidence,
	}
	a := asked{ean: n.ean, id: id, purpose: n.purpose, step: request, key: sha256.Sum256([]byte(r.Params.IdempotencyKey))}
	if employee {
		a.step = authz.GrantConsent(request)
	}
	answer, err := s.takeStep(ctx, c, a)
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// GrantConsent answers POST /v1/consents/{id}/grant.
func (s *Server) GrantConsent(ctx context.Context, r openapi.GrantConsentRequestObject) (openapi.GrantConsentResponseObject, error) {
	evidence, errs := parseConsentAnswer(callOf(ctx).body)
	answer, err := s.changeConsent(ctx, authz.AcceptConsent{ID: r.Id, Evidence: evidence}, r.Id, r.Params.IdempotencyKey, r.Params.IfMatch, errs)
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// RejectConsent answers POST /v1/consents/{id}/reject.
func (s *Server) RejectConsent(ctx context.Context, r openapi.RejectConsentRequestObject) (openapi.RejectConsentResponseObject, error) {
	answer, err := s.changeConsent(ctx, authz.RejectConsent{ID: r.Id}, r.Id, r.Params.IdempotencyKey, r.Params.IfMatch, nil)
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// RevokeConsent answers POST /v1/consents/{id}/revoke.
func (s *Server) RevokeConsent(ctx context.Context, r openapi.RevokeConsentRequestObject) (openapi.RevokeConsentResponseObject, error) {
	answer, err := s.changeConsent(ctx, authz.RevokeConsent{ID: r.Id}, r.Id, r.Params.IdempotencyKey, r.Params.IfMatch, nil)
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// changeConsent takes a step of a consent that there is. errs are faults found
// before.
func (s *Server) changeConsent(ctx context.Context, step authz.Step, id [16]byte, key string, ifMatch *string, errs paramErrors) (*consentAnswer, error) {
	a := asked{id: id, step: step, key: sha256.Sum256([]byte(key))}
	if ifMatch != nil {
		var err error
		if a.tags, err = parseIfMatch(*ifMatch); err != nil {
			errs.add("/header/If-Match", wantIfMatch)
		}
	}
	switch {
	case len(errs) > 0:
		return nil, failParams(errs)
	case ifMatch == nil:
		return nil, fail(preconditionRequired, nil)
	}
	return s.takeStep(ctx, callOf(ctx), a)
}

// stepTries bounds how often a step starts over because others changed the
// facts meanwhile.
const stepTries = 4

// errStartOver: the facts have changed since they were read, and nothing was
// stored.
var errStartOver = errors.New("the facts changed meanwhile")

// takeStep takes a step from the legal file to the committed new version, with
// its record in the same transaction. Whatever is refused has a record of its
// own.
func (s *Server) takeStep(ctx context.Context, c *call, a asked) (*consentAnswer, error) {
	rec := s.newRecord(ctx, c.caller, s.now())
	rec.Operation, rec.Action, rec.Profile = audit.ConsentStep, authz.ActionOf(a.step), s.profile.Digest()
	if rec.EAN = a.ean; !a.makes() {
		rec.ConsentID = a.id
	}
	if e := c.caller.Employee(); e != nil {
		if a.by = e.Subject; !a.isErrand(&e.Errand) {
			if a.makes() {
				return nil, s.refuse(ctx, rec, audit.Refused, fail(notPermitted, errors.New("not the step that the employee's token was issued for")))
			}
			return nil, s.refuseErrand(ctx, rec)
		}
	}
	var err error
	for range stepTries {
		rec.EAN, rec.Purpose = a.ean, a.purpose
		var answer *consentAnswer
		if answer, err = s.tryStep(ctx, c, a, &rec); !errors.Is(err, errStartOver) {
			return answer, err
		}
	}
	if errors.Is(err, ErrEvidenceRefused) { // of what is stored, time and again
		s.metrics.evidence.WithLabelValues("legal_file").Inc()
		return nil, s.recordFailure(ctx, rec, fail(evidenceInvalid, err))
	}
	return nil, s.refuse(ctx, rec, audit.Refused, fail(conflict, err))
}

// isErrand says whether the errand names this very step. Its scope and evidence
// are Permit's to compare.
func (a *asked) isErrand(e *authz.Errand) bool {
	if e.Action != authz.ActionOf(a.step) {
		return false
	}
	if a.makes() {
		return e.EAN == a.ean && e.ConsentID == [16]byte{}
	}
	return e.ConsentID == a.id
}

// tryStep takes the step on the facts as they are now, and notes in the record
// at which metering point. errStartOver: nothing was stored, nor recorded.
func (s *Server) tryStep(ctx context.Context, c *call, a asked, rec *audit.Record) (*consentAnswer, error) {
	// Two statements, whatever they find: the key first, so that a change that
	// is stored in between is not missed in the file.
	stored, err := s.steps.Stored(ctx, c.caller.Supplier(), a.key)
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("idempotency key: %w", err))
	}
	var h held
	if a.makes() {
		newest, err := s.facts.LegalFile(ctx, a.ean)
		if err != nil {
			return nil, fail(databaseUnavailable, fmt.Errorf("legal file: %w", err))
		}
		h.sealed = newest.Sealed
		if h.file, err = s.legalFile(newest, a.ean); err != nil {
			return nil, s.recordFailure(ctx, *rec, fail(evidenceInvalid, err))
		}
	} else {
		if h, err = s.heldConsent(ctx, c, a.id); err != nil {
			return nil, s.refuseHeld(ctx, *rec, err)
		}
		rec.EAN, rec.Purpose = h.file.EAN(), h.consent.Purpose
	}
	now := s.now()
	rec.At = now.UTC().Truncate(time.Microsecond)
	if stored != nil {
		return s.repeat(ctx, c, a, *rec, h.file, stored, now)
	}
	actor, refusal := s.judge(c, a, h, now)
	switch {
	case errors.Is(refusal, authz.ErrNoRelation): // of a consent to be made
		return nil, s.refuseNoRelation(ctx, *rec, refusal)
	case refusal != nil:
		// The same request, sent at the same time, may have been stored between
		// the two statements. Then this one is no other step, but that one.
		if stored, err = s.steps.Stored(ctx, c.caller.Supplier(), a.key); err != nil {
			return nil, fail(databaseUnavailable, fmt.Errorf("idempotency key: %w", err))
		}
		if stored != nil {
			return nil, errStartOver
		}
		return nil, s.refuse(ctx, on(*rec, h.file), audit.Refused, refusal)
	}
	sealed, err := s.seal(ctx, c, h.sealed, a.step)
	switch {
	case errors.Is(err, errStartOver):
		return nil, err
	case errors.Is(err, authz.ErrStep), errors.Is(err, authz.ErrNotPermitted), errors.Is(err, authz.ErrNoRelation):
		return nil, s.refuse(ctx, on(*rec, h.file), audit.Refused, refusedStep(err, "")) // by its clock, which is another
	case err != nil:
		return nil, s.recordFailure(ctx, *rec, err)
	}
	next, err := s.verifyStep(sealed, h.file, a.step, actor)
	if err != nil {
		return nil, s.recordFailure(ctx, *rec, err)
	}
	answer, err := s.consentAnswer(c.caller, next, a.id, next.SealedAt())
	if err != nil {
		return nil, s.recordFailure(ctx, *rec, err)
	}
	taken := on(*rec, next)
	taken.ConsentID, taken.Outcome = a.id, audit.Given
	err = s.store(ctx, NewStep{
		File: next, Sealed: sealed, Caller: c.caller.Supplier(), Key: a.key, Stored: StoredStep{Request: a.digest(), Consent: a.id}, Record: taken,
	})
	switch {
	case errors.Is(err, ErrConflict):
		return nil, fmt.Errorf("%w: %w", errStartOver, err)
	case err != nil:
		// It is stored, or not; if it is, so is its record, and this one is one
		// too many, which the log does not take.
		return nil, s.recordFailure(ctx, *rec, fail(databaseUnavailable, fmt.Errorf("step: %w", err)))
	}
	return answer, nil
}

// judge says who takes the step on the file, or why it cannot be taken.
func (s *Server) judge(c *call, a asked, h held, now time.Time) (authz.Actor, error) {
	if !a.makes() && !a.tags.match(tagOf(h.file.EAN(), h.consent)) {
		return authz.Actor{}, fail(preconditionFailed, nil)
	}
	actor, err := authz.Permit(c.caller, a.step, h.file, s.profile, now)
	if err != nil {
		return authz.Actor{}, refusedStep(err, err.Error())
	}
	// What cannot be is found out here, without the HSM. The clock that sealed
	// the version before may be a little ahead of this one.
	if now.Before(h.file.SealedAt()) {
		now = h.file.SealedAt()
	}
	if _, err := authz.Apply(h.file, a.step, actor, now, s.profile.Location()); err != nil {
		return authz.Actor{}, refusedStep(err, "")
	}
	return actor, nil
}

// repeat answers a request whose key was used before: with the consent as it is
// now, if it is the same request.
func (s *Server) repeat(ctx context.Context, c *call, a asked, rec audit.Record, file *authz.LegalFile, stored *StoredStep, now time.Time) (*consentAnswer, error) {
	if stored.Request != a.digest() || stored.Consent != a.id {
		return nil, s.refuse(ctx, rec, audit.Refused, fail(idempotencyKeyReused, nil))
	}
	if file == nil {
		return nil, s.recordFailure(ctx, rec, fail(evidenceInvalid, errors.New("the legal file of a step that was stored is gone")))
	}
	answer, err := s.consentAnswer(c.caller, file, a.id, now)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, err)
	}
	taken := on(rec, file)
	taken.ConsentID, taken.Outcome = a.id, audit.Given
	// The record says that its caller took the step. Another employee, whose key
	// it is as well, did not.
	if k, _ := file.Consent(a.id); !tookStep(&k, &taken) {
		return nil, s.refuse(ctx, rec, audit.Refused, fail(idempotencyKeyReused, nil))
	}
	if err := s.record(ctx, taken); err != nil {
		return nil, err
	}
	return answer, nil
}

// seal has a cryptoserver apply and sign the step. A caller that goes away does
// not stop it half-way: what was sealed is to be stored. The deadline holds.
func (s *Server) seal(ctx context.Context, c *call, previous []byte, step authz.Step) ([]byte, error) {
	asked, cancel := untilDeadline(ctx)
	defer cancel()
	sealed, err := s.sealer.TakeStep(asked, StepRequest{Token: c.token, Supplier: c.supplier, LegalFile: previous, Step: step})
	switch {
	case err == nil:
		return sealed, nil
	case errors.Is(err, ErrTokenRefused):
		return nil, &failure{kind: unauthenticated, challenge: `Bearer realm="kluis", error="invalid_token"`, cause: err}
	case errors.Is(err, ErrEvidenceRefused):
		// Most likely there is a later version, stored since this one was read.
		return nil, fmt.Errorf("%w: %w", errStartOver, err)
	case errors.Is(err, ErrNoCryptoserver):
		return nil, fail(sealingUnavailable, err)
	}
	return nil, fmt.Errorf("take step: %w", err)
}

// verifyStep verifies what a cryptoserver sealed: the very file that this step,
// by this actor, makes of the one before, and nothing else. What a clock that is
// ahead sealed is not stored: on another server the step may be taken again.
func (s *Server) verifyStep(sealed []byte, previous *authz.LegalFile, step authz.Step, actor authz.Actor) (*authz.LegalFile, error) {
	next, err := s.seals.LegalFile(sealed)
	if err != nil {
		s.metrics.evidence.WithLabelValues("legal_file").Inc()
		return nil, fail(evidenceInvalid, fmt.Errorf("sealed step: %w", err))
	}
	want, err := authz.Apply(previous, step, actor, next.SealedAt(), s.profile.Location())
	if err != nil || want.Digest() != next.Digest() {
		return nil, fail(evidenceInvalid, errors.New("sealed step: another step was sealed than was asked for"))
	}
	if err := authz.CheckSealedAt(next.SealedAt(), s.now()); err != nil {
		return nil, fail(sealingUnavailable, fmt.Errorf("sealed step, not stored: %w", err))
	}
	return next, nil
}

// store commits a step, whatever becomes of the client and the deadline.
func (s *Server) store(ctx context.Context, n NewStep) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	return s.steps.Store(ctx, n)
}

// refusedStep is the answer to why authz does not let a step be taken. detail is
// a text of Permit's, which says what to do and nothing of others; "": there is
// none for the caller.
func refusedStep(why error, detail string) error {
	f := &failure{kind: consentNotPossible, cause: why} // whatever else the facts do not let be
	for _, k := range []struct {
		is   error
		kind *problemKind
	}{
		{authz.ErrNoRelation, meteringPointNotFound},
		{authz.ErrNotPermitted, notPermitted},
		{authz.ErrConsentUnknown, consentNotFound},
		{authz.ErrConsentAnswered, consentAnswered},
		{authz.ErrConsentLapsed, consentLapsed},
		{authz.ErrConsentEnded, consentEnded},
		{authz.ErrTooManyConsents, tooManyConsents},
	} {
		if errors.Is(why, k.is) {
			f.kind = k.kind
			break
		}
	}
	if detail != "" && f.kind.status != http.StatusNotFound {
		f.detail = strings.ToUpper(detail[:1]) + detail[1:] + "."
	}
	return f
}

// on is the record of what was decided on a legal file.
func on(rec audit.Record, file *authz.LegalFile) audit.Record {
	rec.LegalFile, rec.FileVersion = file.Digest(), file.Version()
	return rec
}
