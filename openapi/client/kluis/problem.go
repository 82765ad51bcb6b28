package kluis

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"kluis/openapi/client"
)

// Problem is an answer of the gateway that says why there is none (RFC 9457).
type Problem struct {
	client.Problem
	RetryAfter time.Duration // zero when nothing was said
}

// Slug is a problem's kind, as in the contract's table. As an error it is what
// errors.Is finds in a Problem: errors.Is(err, kluis.MeteringPointNotFound).
type Slug string

// The kinds that programs decide by; the contract lists them all.
const (
	InvalidParameters     Slug = "invalid-parameters"
	Unauthenticated       Slug = "unauthenticated"
	InsufficientScope     Slug = "insufficient-scope"
	NotPermitted          Slug = "not-permitted"
	MeteringPointNotFound Slug = "metering-point-not-found"
	ConsentNotFound       Slug = "consent-not-found"
	SupplierNotFound      Slug = "supplier-not-found"
	ProofNotFound         Slug = "proof-not-found"
	ConsentAnswered       Slug = "consent-answered"
	ConsentLapsed         Slug = "consent-lapsed"
	ConsentEnded          Slug = "consent-ended"
	PreconditionFailed    Slug = "precondition-failed"
	ConsentNotPossible    Slug = "consent-not-possible"
	Conflict              Slug = "conflict"
	EvidenceChanged       Slug = "evidence-changed"
	RateLimited           Slug = "rate-limited"
	DeadlineExceeded      Slug = "deadline-exceeded"
)

func (s Slug) Error() string { return string(s) }

const problemPrefix = "urn:kluis:problem:"

// Slug is the problem's kind.
func (p *Problem) Slug() Slug { return Slug(strings.TrimPrefix(string(p.Type), problemPrefix)) }

// Is tells errors.Is whether the problem is of a kind.
func (p *Problem) Is(target error) bool {
	s, ok := target.(Slug)
	return ok && p.Slug() == s
}

// Temporary: the same request may succeed later.
func (p *Problem) Temporary() bool {
	switch p.Status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return p.Is(Conflict) || p.Is(EvidenceChanged)
}

// Error has everything that was said, and nothing that was sent.
func (p *Problem) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%d)", p.Slug(), p.Status)
	if p.Detail != nil {
		b.WriteString(": " + *p.Detail)
	}
	if p.Errors != nil {
		for _, e := range *p.Errors {
			fmt.Fprintf(&b, "; %s %s", e.Pointer, e.Reason)
		}
	}
	if p.InteractionId != ([16]byte{}) {
		fmt.Fprintf(&b, " [%s]", p.InteractionId)
	}
	return b.String()
}

// problemOf is the problem in an answer; what is none, of a proxy perhaps, is
// made one without a kind.
func problemOf(res *http.Response, body []byte) *Problem {
	p := &Problem{}
	mediaType, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";")
	if mediaType != "application/problem+json" || json.Unmarshal(body, &p.Problem) != nil {
		p.Problem = client.Problem{Title: http.StatusText(res.StatusCode)}
	}
	p.Status = res.StatusCode
	if s, err := strconv.ParseUint(res.Header.Get("Retry-After"), 10, 16); err == nil {
		p.RetryAfter = time.Duration(s) * time.Second
	}
	return p
}

// AsProblem is the problem in an error, or nil.
func AsProblem(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	return nil
}
