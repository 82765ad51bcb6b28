package server

import (
	"errors"
	"strings"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/meter"
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
