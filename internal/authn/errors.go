package authn

import (
	"errors"
	"net/http"
)

// The kinds of failure, for errors.Is. Reason says more, for logs only.
var (
	// ErrNoToken: the request carries no credentials at all.
	ErrNoToken = errors.New("no access token")
	// ErrInvalidToken: whatever is wrong with a token, its binding or the
	// supplier's record.
	ErrInvalidToken = errors.New("access token not accepted")
	// ErrInsufficientScope: authenticated, but without the scope.
	ErrInsufficientScope = errors.New("insufficient scope")
	// ErrUnavailable: the issuer's keys could not be fetched yet; retry.
	ErrUnavailable = errors.New("issuer's keys not available")
)

// Error is every error of Bearer, Verify, VerifyDetached and Authenticate.
// Its text holds nothing of the token and may be logged.
type Error struct {
	kind   error
	reason string
	scope  string
	cause  error
}

func (e *Error) Error() string {
	s := e.kind.Error() + " (" + e.reason + ")"
	if e.cause != nil {
		s += ": " + e.cause.Error()
	}
	return s
}

// Unwrap makes the kind and the cause known to errors.Is.
func (e *Error) Unwrap() []error {
	if e.cause == nil {
		return []error{e.kind}
	}
	return []error{e.kind, e.cause}
}

func invalid(reason string) *Error { return &Error{kind: ErrInvalidToken, reason: reason} }

// Reason is the short, fixed word of an error of this package ("expired",
// "unknown_kid"), for logs and metrics; "" for other errors.
func Reason(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.reason
	}
	return ""
}

// Challenge is what a caller is told: the status and the WWW-Authenticate
// header (RFC 6750, clause 3; empty for 503 and 500). All refusals of a token
// look alike. An error of another package is a 500.
func Challenge(err error) (status int, wwwAuthenticate string) {
	var e *Error
	if !errors.As(err, &e) {
		return http.StatusInternalServerError, ""
	}
	switch e.kind {
	case ErrUnavailable:
		return http.StatusServiceUnavailable, ""
	case ErrInsufficientScope:
		return http.StatusForbidden, `Bearer realm="kluis", error="insufficient_scope", scope="` + e.scope + `"`
	case ErrNoToken:
		return http.StatusUnauthorized, `Bearer realm="kluis"`
	default:
		return http.StatusUnauthorized, `Bearer realm="kluis", error="invalid_token"`
	}
}
