package client

import (
	"context"
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kluis/authz"
	"kluis/cryptoserver/cryptopb"
)

// The kinds of failure, for errors.Is.
var (
	// ErrUnavailable: no server of the pool could serve the call now. Nothing
	// was done, or what was done is lost and harmless; it may be tried later.
	ErrUnavailable = errors.New("no cryptoserver available")
	// ErrBusy: every server that was asked has a full queue. It is
	// ErrUnavailable as well: nothing was done, and later there may be room.
	ErrBusy = errors.New("cryptoservers busy")
	// ErrInternal: a server failed in a way it did not foresee.
	ErrInternal = errors.New("cryptoserver failed")
	// ErrRefused: a server said no, and will say so again. The kinds below are
	// all ErrRefused as well, but where they say otherwise.
	ErrRefused = errors.New("cryptoserver refused")

	// ErrTokenRefused: the access token does not verify, or not any more.
	ErrTokenRefused = errors.New("access token refused")
	// ErrTokenSpent: as many metering points were opened on the access token as it
	// is good for. It is ErrTokenRefused as well: a new one will do.
	ErrTokenSpent = errors.New("access token used up")
	// ErrSupplierRefused: the supplier record, the certificate or the scope is
	// not accepted.
	ErrSupplierRefused = errors.New("supplier refused")
	// ErrEmployeeRefused: the employee's ID token is not accepted, or gives no
	// role; Text says what to do.
	ErrEmployeeRefused = errors.New("employee refused")
	// ErrErrandRefused: the authorization details are not accepted, or not for
	// the employee's role; Text says what to do.
	ErrErrandRefused = errors.New("errand refused")
	// ErrEvidence: a sealed fact does not verify.
	ErrEvidence = errors.New("sealed fact refused")
	// ErrProfileMismatch: server and client hold different market profiles.
	ErrProfileMismatch = errors.New("another market profile")
	// ErrUnknownEpoch: every server that was asked lacks a KEK that a data key
	// needs. It is ErrUnavailable as well.
	ErrUnknownEpoch = errors.New("unknown KEK epoch")
	// ErrControlStale: no server that was asked has a recent head of the control
	// feed. It is ErrUnavailable as well.
	ErrControlStale = errors.New("control feed stale")
	// ErrControlFork: the control feed contradicts the one the server knows.
	ErrControlFork = errors.New("control feed forked")
	// ErrCheckpointFork: the server signed a larger tree of the audit log since it
	// started, or another of the same size.
	ErrCheckpointFork = errors.New("audit log forked")
	// ErrNotRecorded: no server that was asked can write its journal. It is
	// ErrUnavailable as well.
	ErrNotRecorded = errors.New("journal cannot be written")
	// ErrClockBehind: on every server that was asked the clock is behind the time
	// at which the version before was sealed. It is ErrUnavailable as well.
	ErrClockBehind = errors.New("cryptoserver's clock behind")
	// ErrErased: the data key was erased.
	ErrErased = errors.New("data key erased")
	// ErrDamaged: this key or block is not what was made.
	ErrDamaged = errors.New("damaged")
	// ErrSealRate: this client seals faster than the servers let it, and did so
	// for longer than the call waited. It is ErrUnavailable as well.
	ErrSealRate = errors.New("sealing too fast")
	// ErrKeyRecord: a data key record is not what was minted.
	ErrKeyRecord = errors.New("data key record refused")
	// ErrStepRefused: the facts do not allow the step; the text says why. It is
	// authz.ErrStep as well.
	ErrStepRefused = errors.New("step refused")
)

// Error is a refusal or failure of a server. Its text holds no personal data.
type Error struct {
	Reason     cryptopb.Reason // "" when the server gave none
	RetryAfter time.Duration   // of ErrSealRate: when there is room again
	text       string
	kinds      []error
}

// Text is what the server said.
func (e *Error) Text() string { return e.text }

func (e *Error) Error() string { return e.kinds[0].Error() + ": " + e.text }

// Unwrap makes the kinds known to errors.Is.
func (e *Error) Unwrap() []error { return e.kinds }

func internal(text string) error { return &Error{text: text, kinds: []error{ErrInternal}} }

var kindOf = map[cryptopb.Reason]error{
	cryptopb.ReasonTokenInvalid:     ErrTokenRefused,
	cryptopb.ReasonTokenSpent:       ErrTokenSpent,
	cryptopb.ReasonSupplierInvalid:  ErrSupplierRefused,
	cryptopb.ReasonScope:            ErrSupplierRefused,
	cryptopb.ReasonEmployee:         ErrEmployeeRefused,
	cryptopb.ReasonErrand:           ErrErrandRefused,
	cryptopb.ReasonEvidenceInvalid:  ErrEvidence,
	cryptopb.ReasonProfileMismatch:  ErrProfileMismatch,
	cryptopb.ReasonUnknownEpoch:     ErrUnknownEpoch,
	cryptopb.ReasonKeyRecordInvalid: ErrKeyRecord,
	cryptopb.ReasonStepRefused:      ErrStepRefused,
	cryptopb.ReasonKeyErased:        ErrErased,
	cryptopb.ReasonControlStale:     ErrControlStale,
	cryptopb.ReasonControlFork:      ErrControlFork,
	cryptopb.ReasonCheckpointFork:   ErrCheckpointFork,
	cryptopb.ReasonNotRecorded:      ErrNotRecorded,
	cryptopb.ReasonClockBehind:      ErrClockBehind,

	// Of TakeStep, as authz said it.
	cryptopb.ReasonNoRelation:         authz.ErrNoRelation,
	cryptopb.ReasonNotPermitted:       authz.ErrNotPermitted,
	cryptopb.ReasonConsentUnknown:     authz.ErrConsentUnknown,
	cryptopb.ReasonConsentAnswered:    authz.ErrConsentAnswered,
	cryptopb.ReasonConsentLapsed:      authz.ErrConsentLapsed,
	cryptopb.ReasonConsentEnded:       authz.ErrConsentEnded,
	cryptopb.ReasonConsentNotPossible: authz.ErrConsentNotPossible,
	cryptopb.ReasonTooManyConsents:    authz.ErrTooManyConsents,
}

func fromGRPC(err error) error {
	if err == nil {
		return nil
	}
	st := status.Convert(err)
	e := &Error{text: st.Message()}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.Domain == cryptopb.ReasonDomain {
				e.Reason = cryptopb.Reason(d.Reason)
			}
		case *errdetails.RetryInfo:
			e.RetryAfter = d.GetRetryDelay().AsDuration()
		}
	}
	switch st.Code() {
	case codes.DeadlineExceeded:
		e.kinds = []error{context.DeadlineExceeded}
	case codes.Canceled:
		e.kinds = []error{context.Canceled}
	case codes.Unavailable:
		if kind, ok := kindOf[e.Reason]; ok {
			e.kinds = append(e.kinds, kind)
		}
		e.kinds = append(e.kinds, ErrUnavailable)
	case codes.ResourceExhausted: // without our reason: a message over gRPC's limit
		switch e.Reason {
		case cryptopb.ReasonTokenBusy:
			e.kinds = []error{ErrBusy, ErrUnavailable}
		case cryptopb.ReasonSealRate:
			e.kinds = []error{ErrSealRate, ErrUnavailable}
		default:
			e.kinds = []error{ErrRefused}
		}
	case codes.Internal, codes.Unknown:
		e.kinds = []error{ErrInternal}
	default:
		if kind, ok := kindOf[e.Reason]; ok {
			e.kinds = append(e.kinds, kind)
		}
		switch e.Reason {
		case cryptopb.ReasonTokenSpent:
			e.kinds = append(e.kinds, ErrTokenRefused)
		case cryptopb.ReasonStepRefused:
			e.kinds = append(e.kinds, authz.ErrStep)
		}
		e.kinds = append(e.kinds, ErrRefused)
	}
	return e
}
