package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

// previewQuery is the body of previewConsent, understood.
type previewQuery struct {
	ean    meter.EAN
	action authz.ConsentAction
	id     [16]byte   // of a consent that there is
	terms  newConsent // of one to register
}

const (
	wantPreviewStep = "must be one of register, grant, reject, revoke"
	wantNewConsent  = "must be given to register, and for no other step"
	wantConsentID   = "must be given for each step but register, which makes the consent"
	wantSameEAN     = "must be the metering point of the request"
)

func parsePreview(b []byte) (previewQuery, paramErrors) {
	r := newBodyReader(b, "ean", "step", "consentId", "newConsent")
	var q previewQuery
	var ok bool
	q.ean, _ = member(r, "ean", true, wantEAN, meter.ParseEAN)
	if q.action, ok = member(r, "step", true, wantPreviewStep, parsePreviewStep); !ok {
		q.action = 0
	}
	q.id, _ = member(r, "consentId", false, wantID, parseConsentID)
	_, named := r.m["consentId"]
	terms, told := r.m["newConsent"]
	switch registers := q.action == authz.ActionRegister; {
	case q.action == 0:
	case registers && named, !registers && !named:
		r.errs.add("/body/consentId", wantConsentID)
	case registers != told:
		r.errs.add("/body/newConsent", wantNewConsent)
	}
	if told {
		var errs paramErrors
		q.terms, errs = parseNewConsent(terms, true)
		for _, e := range errs {
			r.errs.add("/body/newConsent"+strings.TrimPrefix(e.Pointer, "/body"), e.Reason)
		}
		if len(errs) == 0 && !q.ean.IsZero() && q.terms.ean != q.ean {
			r.errs.add("/body/newConsent/ean", wantSameEAN)
		}
	}
	if len(r.errs) > 0 {
		return previewQuery{}, r.errs
	}
	return q, nil
}

func parsePreviewStep(s string) (authz.ConsentAction, error) {
	a, err := authz.ParseConsentAction(s)
	if err != nil || a == authz.ActionRequest {
		return 0, errors.New("not an employee's step")
	}
	return a, nil
}

func parseConsentID(s string) ([16]byte, error) {
	id, err := uuid.Parse(s)
	if err != nil || len(s) != 36 || id == uuid.Nil {
		return [16]byte{}, errors.New("not a UUID")
	}
	return id, nil
}

// step is what would be done. A consent that is not there yet has an id of its
// own, an answer evidence that no record will have.
func (q *previewQuery) step() authz.Step {
	switch q.action {
	case authz.ActionRegister:
		return authz.GrantConsent{
			ID: uuid.New(), Supplier: q.terms.supplier, Purpose: q.terms.purpose, Classes: q.terms.classes, Granularity: q.terms.granularity,
			Days: q.terms.days, ValidUntil: q.terms.validUntil, Evidence: q.terms.evidence,
		}
	case authz.ActionGrant:
		return authz.AcceptConsent{ID: q.id, Evidence: "preview"}
	case authz.ActionReject:
		return authz.RejectConsent{ID: q.id}
	}
	return authz.RevokeConsent{ID: q.id}
}

// PreviewConsent answers POST /v1/consents/preview.
func (s *Server) PreviewConsent(ctx context.Context, _ openapi.PreviewConsentRequestObject) (openapi.PreviewConsentResponseObject, error) {
	c := callOf(ctx)
	q, errs := parsePreview(c.body)
	if len(errs) > 0 {
		return nil, failParams(errs)
	}
	b, err := s.preview(ctx, c, q)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// preview is two dry runs: recorded as the one on the facts as they are, and as
// that of the supplier that the consent is for.
func (s *Server) preview(ctx context.Context, c *call, q previewQuery) (*body, error) {
	now := s.now()
	request := authz.AccessRequest{EAN: q.ean, Days: authz.Retained(s.profile, now)}
	rec := s.newRecord(ctx, c.caller, now)
	rec.Operation, rec.EAN, rec.Days, rec.Profile = audit.DryRun, q.ean, request.Days, s.profile.Digest()
	if err := s.onErrand(ctx, c, rec); err != nil {
		return nil, err
	}
	release, err := s.turn(ctx, c.caller.Supplier())
	if err != nil {
		return nil, err
	}
	defer release()
	stored, err := s.facts.LegalFile(ctx, q.ean)
	if err != nil {
		return nil, fail(databaseUnavailable, fmt.Errorf("legal file: %w", err))
	}
	file, err := s.legalFile(stored, q.ean)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fail(evidenceInvalid, err))
	}
	if file == nil {
		return nil, s.refuseNoRelation(ctx, rec, authz.ErrNoRelation)
	}
	for _, f := range s.profile.Fields(file.Commodity()) {
		request.Fields = append(request.Fields, f.Code)
	}
	p, err := authz.PreviewStep(c.caller, q.step(), request, file, s.profile, now)
	switch {
	case errors.Is(err, authz.ErrNoRelation):
		return nil, s.refuseNoRelation(ctx, rec, err)
	case errors.Is(err, authz.ErrConsentUnknown):
		return nil, s.refuse(ctx, rec, audit.NoRelation, fail(consentNotFound, err))
	case err != nil:
		return nil, s.recordFailure(ctx, rec, fmt.Errorf("preview: %w", err))
	}
	out := openapi.ConsentPreview{
		InteractionId: eventOf(ctx).interaction, Supplier: p.Supplier.String(), At: p.At.UTC().Truncate(time.Second),
		From: date(request.Days.From), To: date(request.Days.To), TimeZone: s.profile.Location().String(),
		Allowed: p.Refused == nil, Before: s.renderGranted(p.Before), After: s.renderGranted(p.After),
	}
	if p.Refused != nil {
		detail := ""
		if !p.Permitted {
			detail = p.Refused.Error() // of Permit, which says what to do
		}
		if why, ok := errors.AsType[*failure](refusedStep(p.Refused, detail)); ok {
			slug, detail := why.kind.slug, cmp.Or(why.detail, why.kind.detail)
			out.Why, out.Detail = &slug, &detail
		}
	}
	rendered, err := json.Marshal(out)
	if err != nil {
		return nil, s.recordFailure(ctx, rec, fmt.Errorf("rendering a preview: %w", err))
	}
	rec = on(rec, file)
	rec.Fields, rec.Granted, rec.Outcome = request.Fields, audit.AccessItems(p.Before), audit.Given
	release()
	if err := s.record(ctx, rec); err != nil {
		return nil, err
	}
	return c.rendered(rendered), nil
}

func (b *body) VisitPreviewConsentResponse(w http.ResponseWriter) error { return b.write(w) }
