package server

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/internal/authn"
	"kluis/meter"
	"kluis/openapi"
)

// ListConsents answers GET /v1/metering-points/{ean}/consents.
func (s *Server) ListConsents(ctx context.Context, r openapi.ListConsentsRequestObject) (openapi.ListConsentsResponseObject, error) {
	ean, err := meter.ParseEAN(r.Ean)
	if err != nil {
		return nil, failParams(paramErrors{{Pointer: "/path/ean", Reason: wantEAN}})
	}
	a, err := s.consents(ctx, callOf(ctx), ean)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// consents lists those at a metering point that the caller may see. Up to the
// refusal of an unknown or foreign metering point the steps are those of
// readings.
func (s *Server) consents(ctx context.Context, c *call, ean meter.EAN) (*body, error) {
	now := s.now()
	rec := s.newRecord(ctx, c.caller, now)
	rec.Operation, rec.EAN, rec.Profile = audit.Consents, ean, s.profile.Digest()
	if err := s.onErrand(ctx, c, rec); err != nil {
		return nil, err
	}
	release, err := s.turn(ctx, c.caller.Supplier())
	if err != nil {
		return nil, err
	}
	defer release()
	stored, err := s.facts.LegalFile(ctx, ean)
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("legal file: %w", err))
	}
	file, err := s.legalFile(stored, ean)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fail(evidenceInvalid, err))
	}
	if file == nil || c.caller.Employee() == nil && !file.Relates(c.caller.Supplier()) {
		return nil, s.refuseNoRelation(ctx, rec, authz.ErrNoRelation)
	}
	var mine []authz.Consent
	for _, k := range file.Consents() {
		if sees(c.caller, &k) {
			mine = append(mine, k)
		}
	}
	slices.SortFunc(mine, func(x, y authz.Consent) int {
		return cmp.Or(began(&y).Compare(began(&x)), bytes.Compare(x.ID[:], y.ID[:]))
	})
	out := openapi.Consents{InteractionId: eventOf(ctx).interaction, Ean: ean.String(), Consents: []openapi.Consent{}} // [] and not null
	for i := range mine {
		out.Consents = append(out.Consents, s.renderConsent(c.caller, file, &mine[i], now))
	}
	rendered, err := json.Marshal(out)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fmt.Errorf("rendering consents: %w", err))
	}
	rec = on(rec, file)
	rec.Outcome = audit.Given
	release()
	if err := s.record(ctx, rec); err != nil {
		return nil, err
	}
	out.InteractionId = uuid.Nil
	return s.tagged(ctx, "listConsents", rendered, out)
}

func (b *body) VisitListConsentsResponse(w http.ResponseWriter) error { return b.write(w) }

// GetConsent answers GET /v1/consents/{id}.
func (s *Server) GetConsent(ctx context.Context, r openapi.GetConsentRequestObject) (openapi.GetConsentResponseObject, error) {
	c, now := callOf(ctx), s.now()
	rec := s.newRecord(ctx, c.caller, now)
	rec.Operation, rec.ConsentID, rec.Profile = audit.Consents, r.Id, s.profile.Digest()
	if e := c.caller.Employee(); e != nil && e.Errand.Kind == authz.ErrandStep && e.Errand.ConsentID != r.Id {
		return nil, s.refuseErrand(ctx, rec)
	}
	h, err := s.heldConsent(ctx, c, r.Id)
	if err != nil {
		return nil, s.refuseHeld(ctx, rec, err)
	}
	rec = on(rec, h.file)
	rec.EAN, rec.Outcome = h.file.EAN(), audit.Given
	a, err := s.consentAnswer(c.caller, h.file, r.Id, now)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, err)
	}
	if err := s.record(ctx, rec); err != nil {
		return nil, err
	}
	return a, nil
}

// held is a consent found by its id, in the current legal file that holds it.
type held struct {
	sealed  []byte
	file    *authz.LegalFile
	consent authz.Consent
}

// errNoConsent: there is none that is the caller's, or where the errand is.
var errNoConsent = errors.New("no such consent, or none of the caller's")

// heldConsent finds a consent of the caller's by its id: of a supplier one that
// it holds or asked for, of an employee one at the errand's metering point. One
// statement, whether there is one or not.
func (s *Server) heldConsent(ctx context.Context, c *call, id [16]byte) (held, error) {
	candidates, err := s.whereConsent(ctx, c, id)
	if err != nil {
		return held{}, fail(databaseUnavailable, fmt.Errorf("consent: %w", err))
	}
	why := errNoConsent
	for _, k := range candidates {
		file, err := s.legalFile(k.LegalFile, k.EAN)
		if err != nil {
			why = fail(evidenceInvalid, err) // unless another one has it
			continue
		}
		if file == nil {
			continue
		}
		if consent, ok := file.Consent(id); ok && sees(c.caller, &consent) {
			return held{k.LegalFile.Sealed, file, consent}, nil
		}
	}
	return held{}, why
}

// whereConsent is where to look for a consent. The index serves those who know
// its id and no more: an employee's errand says the metering point, and no row
// left out of an index keeps a customer from revoking.
func (s *Server) whereConsent(ctx context.Context, c *call, id [16]byte) ([]Candidate, error) {
	e := c.caller.Employee()
	if e == nil {
		return s.steps.Consent(ctx, c.caller.Supplier(), id)
	}
	f, err := s.facts.LegalFile(ctx, e.Errand.EAN)
	return []Candidate{{e.Errand.EAN, f}}, err
}

// refuseHeld records and answers why heldConsent found nothing. Unless it was
// evidence, the record does not say whether the consent exists.
func (s *Server) refuseHeld(ctx context.Context, rec audit.Record, why error) error {
	switch f := (*failure)(nil); {
	case errors.Is(why, errNoConsent):
		return s.refuse(ctx, rec, audit.NoRelation, fail(consentNotFound, why))
	case errors.As(why, &f) && f.kind == databaseUnavailable:
		return why // nothing was decided
	}
	return s.recordFailure(ctx, rec, why)
}

// onErrand refuses, and records, what an employee asks of another metering
// point than the token was issued for. An employee is no stranger: there is
// nothing to hide in the answer.
func (s *Server) onErrand(ctx context.Context, c *call, rec audit.Record) error {
	if e := c.caller.Employee(); e != nil && e.Errand.EAN != rec.EAN {
		return s.refuseErrand(ctx, rec)
	}
	return nil
}

func (s *Server) refuseErrand(ctx context.Context, rec audit.Record) error {
	return s.refuse(ctx, rec, audit.NoRelation, fail(notPermitted, errors.New("not what the employee's token was issued for")))
}

// refuse records and answers a refusal.
func (s *Server) refuse(ctx context.Context, rec audit.Record, o audit.Outcome, cause error) error {
	rec.Outcome = o
	if err := s.record(ctx, rec); err != nil {
		return err
	}
	return cause
}

// sees says whether a consent is the caller's to see.
func sees(c authn.Caller, k *authz.Consent) bool {
	return c.Employee() != nil || k.Supplier == c.Supplier()
}

// tagOf is the entity tag of a consent, the same for every caller. A supplier
// knows all of a consent but which employee took a step, on what evidence, and
// since when the customer has been there; so none of that is in the tag, from
// which it could be guessed. It changes with every step all the same.
func tagOf(ean meter.EAN, k authz.Consent) string {
	k.Occupancy, k.Answer = 0, ""
	for _, e := range []*authz.ConsentEvent{&k.Requested, &k.Answered, &k.Revoked} {
		if e.By.Kind != authz.BySupplier {
			e.By.Name = ""
		}
	}
	return entityTag(k.Digest(ean))
}

// began is when a consent was asked for, or registered.
func began(k *authz.Consent) time.Time {
	if !k.Requested.IsZero() {
		return k.Requested.At
	}
	return k.Answered.At
}

// consentAnswer is a consent, with the headers that name it.
type consentAnswer struct {
	body
	id  uuid.UUID
	tag string
}

// consentAnswer renders one consent of a file.
func (s *Server) consentAnswer(c authn.Caller, file *authz.LegalFile, id [16]byte, now time.Time) (*consentAnswer, error) {
	k, ok := file.Consent(id)
	if !ok {
		return nil, fail(evidenceInvalid, errors.New("the legal file lacks a consent that was stored in it"))
	}
	rendered, err := json.Marshal(s.renderConsent(c, file, &k, now))
	if err != nil {
		return nil, fmt.Errorf("rendering a consent: %w", err)
	}
	return &consentAnswer{body{bytes: append(rendered, '\n')}, id, tagOf(file.EAN(), k)}, nil
}

func (a *consentAnswer) respond(w http.ResponseWriter, status int) error {
	w.Header().Set("ETag", a.tag)
	return a.writeStatus(w, status)
}

func (a *consentAnswer) VisitGetConsentResponse(w http.ResponseWriter) error {
	return a.respond(w, http.StatusOK)
}

func (a *consentAnswer) VisitCreateConsentResponse(w http.ResponseWriter) error {
	w.Header().Set("Location", "/v1/consents/"+a.id.String())
	return a.respond(w, http.StatusCreated)
}

func (a *consentAnswer) VisitGrantConsentResponse(w http.ResponseWriter) error {
	return a.respond(w, http.StatusOK)
}

func (a *consentAnswer) VisitRejectConsentResponse(w http.ResponseWriter) error {
	return a.respond(w, http.StatusOK)
}

func (a *consentAnswer) VisitRevokeConsentResponse(w http.ResponseWriter) error {
	return a.respond(w, http.StatusOK)
}

// renderConsent says what a consent is now, to its caller: suppliers do not
// learn which employee took a step.
func (s *Server) renderConsent(c authn.Caller, file *authz.LegalFile, k *authz.Consent, now time.Time) openapi.Consent {
	scope := k.ScopeDigest(file.EAN())
	out := openapi.Consent{
		Id: k.ID, Ean: file.EAN().String(), Supplier: k.Supplier.String(), Purpose: openapi.Purpose(k.Purpose.String()),
		Granularity: openapi.Resolution(k.Granularity.String()), From: date(k.Days.From), Evidence: k.Evidence,
		State:       openapi.ConsentState(file.Standing(k, s.profile, now).String()),
		ScopeDigest: base64.RawURLEncoding.EncodeToString(scope[:]),
		Steps:       []openapi.ConsentStep{},
	}
	for _, class := range k.Classes {
		out.Classes = append(out.Classes, openapi.FieldClass(class.String()))
	}
	if k.Days.To != meter.MaxDay {
		to := date(k.Days.To)
		out.To = &to
	}
	terms, loc := s.profile.ConsentTerms(), s.profile.Location()
	out.ValidUntil = k.ValidUntil
	if k.Given() {
		from := k.ValidFrom.Truncate(time.Second)
		out.ValidFrom = &from
		if longest := terms.LongestUntil(meter.DayOf(k.ValidFrom, loc)).Start(loc).UTC(); longest.Before(out.ValidUntil) {
			out.ValidUntil = longest
		}
	}
	if out.State == openapi.ConsentStateREQUESTED {
		by := terms.AnswerUntil(meter.DayOf(k.Requested.At, loc)).Start(loc).UTC()
		if k.ValidUntil.Before(by) {
			by = k.ValidUntil
		}
		out.AnswerBy = &by
	}
	answered := openapi.ConsentStepStepGRANTED
	switch {
	case k.State == authz.ConsentRejected:
		answered = openapi.ConsentStepStepREJECTED
	case k.Requested.IsZero():
		answered = openapi.ConsentStepStepREGISTERED
	}
	for _, e := range []struct {
		event authz.ConsentEvent
		step  openapi.ConsentStepStep
	}{{k.Requested, openapi.ConsentStepStepREQUESTED}, {k.Answered, answered}, {k.Revoked, openapi.ConsentStepStepREVOKED}} {
		if e.event.IsZero() {
			continue
		}
		step := openapi.ConsentStep{Step: e.step, At: e.event.At.Truncate(time.Second), By: actorOf(e.event.By.Kind)}
		if name := e.event.By.Name; c.Employee() != nil && e.event.By.Kind != authz.BySupplier {
			step.Employee = &name
		}
		out.Steps = append(out.Steps, step)
	}
	return out
}

func actorOf(k authz.ActorKind) openapi.ConsentStepBy {
	switch k {
	case authz.BySupplier:
		return openapi.SUPPLIER
	case authz.ByCustomer:
		return openapi.CUSTOMER
	}
	return openapi.OPERATOR
}
