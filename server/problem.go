package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"kluis/openapi"
)

// problemKind is one entry of the contract's list of problems (RFC 9457).
type problemKind struct {
	slug       string
	status     int
	title      string
	detail     string // what to do about it; never anything of the request
	retryAfter int    // seconds; 0: retrying as it is does not help
}

const problemPrefix = "urn:kluis:problem:"

// The contract's list, in its order.
var (
	invalidParameters = &problemKind{slug: "invalid-parameters", status: http.StatusBadRequest,
		title:  "Invalid parameters",
		detail: "The request does not follow the contract; every fault is listed in errors."}
	unauthenticated = &problemKind{slug: "unauthenticated", status: http.StatusUnauthorized,
		title:  "Not authenticated",
		detail: "Send an unexpired access token of this API's issuer in the Authorization header, bound to the client certificate in use, which must be registered with the grid operator."}
	insufficientScope = &problemKind{slug: "insufficient-scope", status: http.StatusForbidden,
		title:  "Scope missing",
		detail: "Ask the issuer for a token with the scope that the operation needs: the header WWW-Authenticate names it."}
	notPermitted = &problemKind{slug: "not-permitted", status: http.StatusForbidden,
		title:  "Not permitted",
		detail: "This is not for this kind of caller, or not what the employee's token was issued for: see the contract's table of callers, and get a token for it."}
	notFound = &problemKind{slug: "not-found", status: http.StatusNotFound,
		title:  "No such path",
		detail: "See the API's contract for the paths there are."}
	consentNotFound = &problemKind{slug: "consent-not-found", status: http.StatusNotFound,
		title:  "Consent not found",
		detail: "There is no such consent, or it is none of yours."}
	meteringPointNotFound = &problemKind{slug: "metering-point-not-found", status: http.StatusNotFound,
		title:  "Metering point not found",
		detail: "The metering point is unknown, or none of yours."}
	supplierNotFound = &problemKind{slug: "supplier-not-found", status: http.StatusNotFound,
		title:  "Supplier not found",
		detail: "There is no supplier of this GLN: get the list of suppliers."}
	proofNotFound = &problemKind{slug: "proof-not-found", status: http.StatusNotFound,
		title:  "Proof not found",
		detail: "There is no such entry in this customer's access log, or it is too young to be in the audit log: if the log shows it, try again in a minute."}
	methodNotAllowed = &problemKind{slug: "method-not-allowed", status: http.StatusMethodNotAllowed,
		title:  "Method not allowed",
		detail: "The header Allow lists the methods of this path."}
	notAcceptable = &problemKind{slug: "not-acceptable", status: http.StatusNotAcceptable,
		title:  "Not acceptable",
		detail: "Accept must allow one of the media types that the contract names for the answer."}
	consentAnswered = &problemKind{slug: "consent-answered", status: http.StatusConflict,
		title:  "Consent already answered",
		detail: "The consent was granted or rejected before, and is not answered twice: get it to see how."}
	consentLapsed = &problemKind{slug: "consent-lapsed", status: http.StatusConflict,
		title:  "Request lapsed",
		detail: "The request was not answered in time, or the customer it was asked of has moved out: a new one is needed."}
	consentEnded = &problemKind{slug: "consent-ended", status: http.StatusConflict,
		title:  "Consent ended",
		detail: "The consent was revoked, has expired, or ended with a move: get it to see which."}
	tooManyConsents = &problemKind{slug: "too-many-consents", status: http.StatusConflict,
		title:  "Too many consents",
		detail: "The supplier has as many consents at this metering point as there may be."}
	conflict = &problemKind{slug: "conflict", status: http.StatusConflict,
		title:  "Conflict",
		detail: "Others changed the facts of this metering point at the same moment, and nothing was stored: try again with the same Idempotency-Key.", retryAfter: 1}
	evidenceChanged = &problemKind{slug: "evidence-changed", status: http.StatusConflict,
		title:  "Evidence changed",
		detail: "Facts that decide on this metering point changed while its readings were on their way: go on from the cursor, and it is decided anew.", retryAfter: 1}
	preconditionFailed = &problemKind{slug: "precondition-failed", status: http.StatusPreconditionFailed,
		title:  "Precondition failed",
		detail: "The consent, or the supplier's record, is not what If-Match says any more: get it anew, and decide again."}
	contentTooLarge = &problemKind{slug: "content-too-large", status: http.StatusRequestEntityTooLarge,
		title:  "Content too large",
		detail: "Send a shorter body, or none: the contract says which operations take one."}
	unsupportedMediaType = &problemKind{slug: "unsupported-media-type", status: http.StatusUnsupportedMediaType,
		title:  "Unsupported media type",
		detail: "Send the body as application/json, in UTF-8 and without a content coding."}
	consentNotPossible = &problemKind{slug: "consent-not-possible", status: http.StatusUnprocessableEntity,
		title:  "Consent not possible",
		detail: "No rule of the market lets this consent be: ask for a purpose, classes, granularity, days and a validity that a consent can give, on days that the supplier supplies."}
	idempotencyKeyReused = &problemKind{slug: "idempotency-key-reused", status: http.StatusUnprocessableEntity,
		title:  "Idempotency key reused",
		detail: "The Idempotency-Key was used for another request: choose a new one for this."}
	preconditionRequired = &problemKind{slug: "precondition-required", status: http.StatusPreconditionRequired,
		title:  "Precondition required",
		detail: "Send If-Match with the ETag of the consent, or of the supplier's record, as you know it."}
	rateLimited = &problemKind{slug: "rate-limited", status: http.StatusTooManyRequests,
		title:  "Too many requests",
		detail: "More than the supplier's share: try again after the time in Retry-After, with fewer requests at once; the header RateLimit-Policy has the quota.", retryAfter: 1}
	internalError = &problemKind{slug: "internal-error", status: http.StatusInternalServerError,
		title:  "Internal error",
		detail: "A fault of the gateway: contact the grid operator with the interactionId."}
	evidenceInvalid = &problemKind{slug: "evidence-invalid", status: http.StatusInternalServerError,
		title:  "Evidence invalid",
		detail: "Stored facts that decide on this request do not verify, so nothing is read: contact the grid operator with the interactionId."}
	issuerUnavailable = &problemKind{slug: "issuer-unavailable", status: http.StatusServiceUnavailable,
		title:  "Issuer unavailable",
		detail: "The keys of the token's issuer are not known yet: try again after the time in Retry-After.", retryAfter: 5}
	databaseUnavailable = &problemKind{slug: "database-unavailable", status: http.StatusServiceUnavailable,
		title:  "Database unavailable",
		detail: "Try again after the time in Retry-After.", retryAfter: 2}
	decryptionUnavailable = &problemKind{slug: "decryption-unavailable", status: http.StatusServiceUnavailable,
		title:  "Decryption unavailable",
		detail: "No cryptoserver can open the readings now: try again after the time in Retry-After.", retryAfter: 2}
	sealingUnavailable = &problemKind{slug: "sealing-unavailable", status: http.StatusServiceUnavailable,
		title:  "Sealing unavailable",
		detail: "No cryptoserver can seal the step now, and nothing was stored: try again with the same Idempotency-Key after the time in Retry-After.", retryAfter: 2}
	recordNotWritten = &problemKind{slug: "record-not-written", status: http.StatusServiceUnavailable,
		title:  "Access record not written",
		detail: "The access could not be recorded, so nothing is given: try again after the time in Retry-After.", retryAfter: 2}
	overloaded = &problemKind{slug: "overloaded", status: http.StatusServiceUnavailable,
		title:  "Overloaded",
		detail: "The gateway has more to do than it can: try again after the time in Retry-After.", retryAfter: 2}
	deadlineExceeded = &problemKind{slug: "deadline-exceeded", status: http.StatusGatewayTimeout,
		title:  "Deadline exceeded",
		detail: "The request took too long: try again after the time in Retry-After, or ask for a shorter period.", retryAfter: 2}
)

// problems is the list as a list.
var problems = []*problemKind{
	invalidParameters, unauthenticated, insufficientScope, notPermitted, notFound, consentNotFound, meteringPointNotFound,
	supplierNotFound, proofNotFound, methodNotAllowed, notAcceptable, consentAnswered, consentLapsed, consentEnded, tooManyConsents, conflict, evidenceChanged, preconditionFailed,
	contentTooLarge, unsupportedMediaType, consentNotPossible, idempotencyKeyReused, preconditionRequired, rateLimited,
	internalError, evidenceInvalid, issuerUnavailable, databaseUnavailable, decryptionUnavailable, sealingUnavailable,
	recordNotWritten, overloaded, deadlineExceeded,
}

// failure is an error that knows its public problem. The cause is logged and
// never sent.
type failure struct {
	kind      *problemKind
	detail    string // instead of the kind's, where more can be said; nothing of the request
	params    []openapi.ParameterError
	challenge string // WWW-Authenticate
	cause     error

	retryAfter int // seconds, instead of the kind's
}

func (f *failure) Error() string {
	if f.cause == nil {
		return f.kind.slug
	}
	return f.kind.slug + ": " + f.cause.Error()
}

func (f *failure) Unwrap() error { return f.cause }

// fail makes an error that is answered with kind. cause, which may be nil, is
// for the log: it must not hold personal data.
func fail(kind *problemKind, cause error) error { return &failure{kind: kind, cause: cause} }

// failParams refuses a request for its parameters.
func failParams(params []openapi.ParameterError) error {
	return &failure{kind: invalidParameters, params: params}
}

// asFailure gives every error its problem: its own, or the one that the state
// of the request explains, or internal-error.
func asFailure(ctx context.Context, err error) *failure {
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{kind: internalError, cause: err}
	}
	// Past the deadline every back end fails, each in its own way.
	if f.kind.status >= http.StatusInternalServerError && pastDeadline(ctx) {
		return &failure{kind: deadlineExceeded, cause: err}
	}
	return f
}

// pastDeadline asks the clock, too: a back end goes by a timer of its own for the
// same deadline, which may fire before the one of ctx.
func pastDeadline(ctx context.Context) bool {
	if err := ctx.Err(); err != nil {
		return errors.Is(err, context.DeadlineExceeded)
	}
	d, ok := ctx.Deadline()
	return ok && !time.Now().Before(d)
}

// problem is the failure as its caller sees it.
func (f *failure) problem(interaction openapi.InteractionId) openapi.Problem {
	detail := f.kind.detail
	if f.detail != "" {
		detail = f.detail
	}
	p := openapi.Problem{
		Type:          openapi.ProblemType(problemPrefix + f.kind.slug),
		Title:         f.kind.title,
		Status:        f.kind.status,
		Detail:        &detail,
		InteractionId: interaction,
	}
	if len(f.params) > 0 {
		p.Errors = &f.params
	}
	return p
}

// statusClientGone is logged, never sent: nobody is there to read it.
const statusClientGone = 499

// writeFailure answers with the problem of err and notes it for the log line.
func (s *Server) writeFailure(w http.ResponseWriter, r *http.Request, err error) {
	ev := eventOf(r.Context())
	if sw, ok := w.(*statusWriter); ok && sw.status != 0 {
		ev.cause = err // the answer broke off: there is no other to give
		return
	}
	if errors.Is(r.Context().Err(), context.Canceled) {
		ev.clientGone(err)
		return
	}
	f := asFailure(r.Context(), err)
	ev.fail(f)
	s.limitMetrics.failed(ev, f.cause)
	p := f.problem(ev.interaction)
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(p); err != nil {
		panic(fmt.Sprintf("a problem must always encode: %v", err)) // strings and numbers
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	if in := f.retryIn(); in != "" {
		h.Set("Retry-After", in)
	}
	if f.challenge != "" {
		h.Set("WWW-Authenticate", f.challenge)
	}
	if f.kind == contentTooLarge {
		h.Set("Connection", "close") // the rest of the body is not read
	}
	w.WriteHeader(f.kind.status)
	_, _ = w.Write(body.Bytes())
}
