package authn

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"kluis/internal/config"
	"kluis/meter"
)

// cacheSize bounds the verified tokens remembered (some 500 bytes each).
const cacheSize = 4096

// Issuer is an issuer whose tokens are accepted.
type Issuer struct {
	URL         string // exact iss
	Audience    string // exact aud
	Keys        Keys
	MaxLifetime time.Duration // of exp - iat
	Staff       *Staff        // nil: its tokens name suppliers only
}

// Staff says whose employees an issuer's tokens may name, and by which profile
// the fields of their errands are named.
type Staff struct {
	Operator meter.GLN // the grid operator's own
	Profile  *meter.Profile
}

// Verifier verifies access tokens of the accepted issuers. Safe for concurrent
// use. A verified token is remembered until it expires, so that each is
// verified once; a key that its issuer withdraws therefore counts until then.
type Verifier struct {
	issuers map[string]Issuer
	cache   *lru.Cache[[32]byte, *Token]
	now     func() time.Time
}

// NewVerifier accepts tokens of these issuers and no others. now is the clock,
// usually time.Now.
func NewVerifier(now func() time.Time, issuers ...Issuer) (*Verifier, error) {
	v := &Verifier{issuers: map[string]Issuer{}, now: now}
	for _, is := range issuers {
		if is.URL == "" || is.Audience == "" || is.Keys == nil || is.MaxLifetime <= 0 {
			return nil, errors.New("an accepted issuer needs a URL, an audience, keys and a longest lifetime")
		}
		if is.Staff != nil && (is.Staff.Operator.IsZero() || is.Staff.Profile == nil) {
			return nil, errors.New("an issuer whose tokens name employees needs the grid operator's GLN and the market profile")
		}
		if _, twice := v.issuers[is.URL]; twice {
			return nil, fmt.Errorf("issuer %s is configured twice", is.URL)
		}
		v.issuers[is.URL] = is
	}
	if len(v.issuers) == 0 {
		return nil, errors.New("no accepted issuer")
	}
	var err error
	v.cache, err = lru.New[[32]byte, *Token](cacheSize)
	return v, err
}

// Configured is NewVerifier for a configuration's issuers. Keys of a jwks_url
// are fetched until ctx ends. operatorGLN may be empty where no issuer's tokens
// name employees.
func Configured(ctx context.Context, issuers []config.Issuer, operatorGLN string, p *meter.Profile, log *slog.Logger) (*Verifier, error) {
	var list []Issuer
	for _, c := range issuers {
		keys, err := configuredKeys(ctx, c, log)
		if err != nil {
			return nil, fmt.Errorf("issuer %s: %w", c.URL, err)
		}
		is := Issuer{URL: c.URL, Audience: c.Audience, Keys: keys, MaxLifetime: c.Lifetime()}
		if c.Staff {
			operator, err := meter.ParseGLN(operatorGLN)
			if err != nil {
				return nil, fmt.Errorf("operator_gln: %w", err)
			}
			is.Staff = &Staff{operator, p}
		}
		list = append(list, is)
	}
	return NewVerifier(time.Now, list...)
}

func configuredKeys(ctx context.Context, c config.Issuer, log *slog.Logger) (Keys, error) {
	if c.JWKSURL == "" {
		raw, err := os.ReadFile(c.JWKSFile)
		if err != nil {
			return nil, err
		}
		return PinnedKeys(raw)
	}
	roots, err := config.CertPool(c.CAFile)
	if err != nil {
		return nil, err
	}
	return FetchedKeys(ctx, c.JWKSURL, roots, log)
}

// Verify verifies a token presented over a connection whose client certificate
// has the thumbprint leaf: the token must be bound to it (RFC 8705, clause 3).
func (v *Verifier) Verify(ctx context.Context, raw string, leaf [32]byte) (*Token, error) {
	t, err := v.VerifyDetached(ctx, raw)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(t.thumbprint[:], leaf[:]) != 1 {
		return nil, invalid("bound_to_another_certificate")
	}
	return t, nil
}

// VerifyDetached verifies a token handed on by another process. Its binding is
// well formed but compared with nothing here: Authenticate checks it against
// the supplier's record.
func (v *Verifier) VerifyDetached(ctx context.Context, raw string) (*Token, error) {
	if len(raw) > MaxTokenLength {
		return nil, invalid("oversized")
	}
	digest := sha256.Sum256([]byte(raw))
	now := v.now()
	if t, ok := v.cache.Get(digest); ok {
		if err := t.checkTime(now); err != nil {
			v.cache.Remove(digest)
			return nil, err
		}
		return t, nil
	}
	t, err := v.verify(ctx, raw, now)
	if err != nil {
		return nil, err
	}
	v.cache.Add(digest, t)
	return t, nil
}

func (v *Verifier) verify(ctx context.Context, raw string, now time.Time) (*Token, error) {
	j, ok := parseJWS(raw)
	if !ok {
		return nil, invalid("malformed")
	}
	h, err := parseHeader(j.header, tokenType, tokenTypeFull)
	if err != nil {
		return nil, err
	}
	c, err := parseClaims(j.payload)
	if err != nil {
		return nil, err
	}
	is, ok := v.issuers[c.token.issuer]
	if !ok {
		return nil, invalid("wrong_issuer")
	}
	k, err := is.Keys.key(ctx, h.kid)
	switch {
	case errors.Is(err, ErrUnavailable):
		return nil, &Error{kind: ErrUnavailable, reason: "keys_unavailable"}
	case err != nil:
		return nil, invalid("unknown_kid")
	}
	if h.alg != k.method.Alg() {
		return nil, invalid("wrong_algorithm")
	}
	if k.method.Verify(j.signed, j.signature, k.public) != nil {
		return nil, invalid("wrong_signature")
	}

	// From here on the issuer has said it.
	if c.audience != is.Audience {
		return nil, invalid("wrong_audience")
	}
	if life := c.token.expires.Sub(c.token.issuedAt); life <= 0 || life > is.MaxLifetime {
		return nil, invalid("lives_too_long")
	}
	t := c.token
	if err := t.checkTime(now); err != nil {
		return nil, err
	}
	if c.employee != nil {
		if t.employee, err = c.employee.of(&t, is.Staff); err != nil {
			return nil, err
		}
	}
	return &t, nil
}

// jws is a JWS in compact form (RFC 7515, clause 3.1), taken apart.
type jws struct {
	header, payload, signature []byte
	signed                     string // what the signature is of
}

func parseJWS(raw string) (jws, bool) {
	head, rest, ok1 := strings.Cut(raw, ".")
	payload, signature, ok2 := strings.Cut(rest, ".")
	if !ok1 || !ok2 {
		return jws{}, false
	}
	var j jws
	var ok3 bool
	j.header, ok1 = decodeSegment(head)
	j.payload, ok2 = decodeSegment(payload)
	j.signature, ok3 = decodeSegment(signature) // a third dot is no base64url
	j.signed = raw[:len(head)+1+len(payload)]
	return j, ok1 && ok2 && ok3
}
