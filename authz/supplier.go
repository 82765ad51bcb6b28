package authz

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"kluis/internal/canonical"
	"kluis/meter"
)

// Domain tag and format version of a supplier record's payload.
const (
	domainSupplier  = "kluis/supplier"
	versionSupplier = 1
)

// Why a supplier or its certificate is not accepted.
var (
	ErrCertificateUnknown = errors.New("certificate not registered for this supplier")
	ErrCertificateRevoked = errors.New("certificate revoked")
	ErrCertificateExpired = errors.New("certificate expired")
	ErrSuspended          = errors.New("supplier suspended")
	// ErrSupplier is wrapped by every refusal of NewSupplier; the text says
	// what to do.
	ErrSupplier = errors.New("supplier record refused")
)

// Supplier is a supplier's record: who it is and with which certificates it
// may call. It comes from SealKeys.Supplier (verified), or from NewSupplier
// (a draft, to be sealed). Immutable; safe for concurrent use.
type Supplier struct {
	facts    SupplierFacts
	version  uint64
	sealedAt time.Time
	previous [32]byte
	actor    Actor
	payload  []byte
	digest   [32]byte
}

// SupplierFacts is what a new version of a supplier record says.
type SupplierFacts struct {
	GLN          meter.GLN
	Name         string   // 1 to 128 printable bytes
	Scopes       []string // OAuth 2.0 scope tokens (RFC 6749, 3.3), at most 16
	Suspended    bool
	Certificates []Certificate // at most 64
}

// Certificate is a registered client certificate. Times are UTC, in
// microseconds.
type Certificate struct {
	Thumbprint [32]byte  // SHA-256 of the DER
	NotAfter   time.Time // of the certificate
	RevokedAt  time.Time // zero unless revoked
}

// GLN is the supplier's GLN. It is never zero.
func (s *Supplier) GLN() meter.GLN { return s.facts.GLN }

// Name is the supplier's name.
func (s *Supplier) Name() string { return s.facts.Name }

// Version counts from 1.
func (s *Supplier) Version() uint64 { return s.version }

// SealedAt is when the version was made, UTC, in microseconds.
func (s *Supplier) SealedAt() time.Time { return s.sealedAt }

// Previous is the digest of the version before; zero for the first.
func (s *Supplier) Previous() [32]byte { return s.previous }

// Actor is who made the version: the registrar, or an employee who suspended or
// resumed.
func (s *Supplier) Actor() Actor { return s.actor }

// Digest is the SHA-256 of the payload.
func (s *Supplier) Digest() [32]byte { return s.digest }

// Scopes returns a copy of the scopes it may be given, sorted.
func (s *Supplier) Scopes() []string { return slices.Clone(s.facts.Scopes) }

// Suspended says whether all its calls are refused.
func (s *Supplier) Suspended() bool { return s.facts.Suspended }

// Certificates returns a copy, by thumbprint.
func (s *Supplier) Certificates() []Certificate { return slices.Clone(s.facts.Certificates) }

// Payload is the canonical encoding ("kluis/supplier"), the bytes signed.
func (s *Supplier) Payload() []byte { return bytes.Clone(s.payload) }

// Accepts says whether the leaf certificate may be used now; the error says
// why not (ErrSuspended, ErrCertificateUnknown, ErrCertificateRevoked,
// ErrCertificateExpired). A certificate with any time of revocation is
// revoked, whatever now is.
func (s *Supplier) Accepts(thumbprint [32]byte, now time.Time) error {
	if s.facts.Suspended {
		return ErrSuspended
	}
	i, found := findCertificate(s.facts.Certificates, thumbprint)
	if !found {
		return ErrCertificateUnknown
	}
	switch c := s.facts.Certificates[i]; {
	case !c.RevokedAt.IsZero():
		return ErrCertificateRevoked
	case !now.Before(c.NotAfter):
		return ErrCertificateExpired
	}
	return nil
}

func findCertificate(sorted []Certificate, thumbprint [32]byte) (int, bool) {
	return sort.Find(len(sorted), func(i int) int {
		return bytes.Compare(thumbprint[:], sorted[i].Thumbprint[:])
	})
}

func refuseSupplier(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrSupplier}, args...)...)
}

// NewSupplier makes version + 1 of prev (nil for the first), unsealed. Order
// does not matter in facts; times of revocation later than at become at.
//
// A certificate once revoked stays revoked: one that facts leave out is
// carried over until it expires, and one that facts call valid is an error.
// by is who makes the version: the registrar (ByOperator), or an employee
// (ByEmployee), who suspends or resumes and changes nothing else.
//
// A clock may be a minute behind the one that sealed prev, as for Apply; further
// behind it is ErrClockBehind. Every error wraps ErrSupplier.
func NewSupplier(prev *Supplier, facts SupplierFacts, by Actor, at time.Time) (*Supplier, error) {
	at = micros(at)
	switch {
	case !validTime(at):
		return nil, refuseSupplier("no sealing time")
	case !by.changesRecords():
		return nil, refuseSupplier("who changes the record must be named, in 1 to %d printable bytes: the registrar or an employee", maxActor)
	}
	if prev != nil {
		var err error
		if at, err = sealingTime(at, prev.sealedAt); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSupplier, err)
		}
	}
	next := &Supplier{facts: facts, version: 1, sealedAt: at, actor: by}
	next.facts.Scopes = slices.Clone(facts.Scopes)
	slices.Sort(next.facts.Scopes)
	next.facts.Scopes = slices.Compact(next.facts.Scopes)

	certs := slices.Clone(facts.Certificates)
	for i := range certs {
		certs[i].NotAfter = micros(certs[i].NotAfter)
		if certs[i].RevokedAt = micros(certs[i].RevokedAt); certs[i].RevokedAt.After(at) {
			certs[i].RevokedAt = at
		}
	}
	slices.SortFunc(certs, func(a, b Certificate) int { return bytes.Compare(a.Thumbprint[:], b.Thumbprint[:]) })

	if prev != nil {
		if prev.facts.GLN != facts.GLN {
			return nil, refuseSupplier("the previous version is of another supplier")
		}
		next.version = prev.version + 1
		next.previous = prev.digest
		for _, old := range prev.facts.Certificates {
			i, found := findCertificate(certs, old.Thumbprint)
			switch {
			case found && !certs[i].NotAfter.Equal(old.NotAfter):
				return nil, refuseSupplier("a certificate is registered already with another expiry; give the one in the certificate")
			case old.RevokedAt.IsZero():
			case found && certs[i].RevokedAt.IsZero():
				return nil, refuseSupplier("a certificate once revoked stays revoked; register a new one")
			case found:
				certs[i].RevokedAt = old.RevokedAt
			case old.NotAfter.After(at):
				certs = slices.Insert(certs, i, old)
			}
		}
	}
	next.facts.Certificates = certs

	switch {
	case facts.GLN.IsZero():
		return nil, refuseSupplier("no GLN")
	case !plainText(facts.Name, maxName):
		return nil, refuseSupplier("the name must be 1 to %d printable bytes", maxName)
	case len(next.facts.Scopes) > maxScopes:
		return nil, refuseSupplier("more than %d scopes", maxScopes)
	case slices.ContainsFunc(facts.Scopes, func(s string) bool { return !scopeToken(s) }):
		return nil, refuseSupplier("a scope is not a scope token of 1 to %d bytes (RFC 6749, 3.3)", maxScope)
	case len(certs) > maxCertificates:
		return nil, refuseSupplier("more than %d certificates; leave out expired ones", maxCertificates)
	}
	for i, c := range certs {
		switch {
		case c.Thumbprint == [32]byte{} || !validTime(c.NotAfter):
			return nil, refuseSupplier("a certificate without thumbprint or expiry")
		case i > 0 && certs[i-1].Thumbprint == c.Thumbprint:
			return nil, refuseSupplier("the same certificate twice")
		}
	}
	if by.Kind == ByEmployee && !next.switched(prev) {
		return nil, refuseSupplier("an employee suspends or resumes, and changes nothing else")
	}
	// Through the parser, so that nothing is ever sealed that would not be accepted.
	draft, err := parseSupplier(next.encode())
	if err != nil {
		return nil, fmt.Errorf("%w: the result would not be a supplier record: %w", ErrSupplier, err)
	}
	return draft, nil
}

// scopeToken is RFC 6749, 3.3: printable ASCII but space, quote, backslash.
func scopeToken(s string) bool {
	if s == "" || len(s) > maxScope {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

func (s *Supplier) encode() []byte {
	w := canonical.New(domainSupplier, versionSupplier)
	w.U64(uint64(s.facts.GLN.Int64()))
	w.U64(s.version)
	w.Time(s.sealedAt)
	w.Fixed(s.previous[:])
	s.actor.encode(w)
	w.String(s.facts.Name)
	w.Count(len(s.facts.Scopes))
	for _, scope := range s.facts.Scopes {
		w.String(scope)
	}
	w.Bool(s.facts.Suspended)
	w.Count(len(s.facts.Certificates))
	for _, c := range s.facts.Certificates {
		w.Fixed(c.Thumbprint[:])
		w.Time(c.NotAfter)
		w.Time(c.RevokedAt)
	}
	return w.Encoded()
}

// parseSupplier is the only maker of a Supplier. It accepts exactly what
// encode writes for facts that keep every invariant, and keeps no reference
// to b.
func parseSupplier(b []byte) (*Supplier, error) {
	r, _, err := canonical.Open(b, domainSupplier, versionSupplier)
	if err != nil {
		return nil, err
	}
	s := &Supplier{}
	s.facts.GLN = readGLN(r)
	if s.version = r.U64(); r.Err() == nil && (s.version == 0 || int64(s.version) < 0) {
		r.Refuse("version out of range")
	}
	s.sealedAt = readTime(r)
	r.Fixed(s.previous[:])
	if r.Err() == nil && (s.version == 1) != (s.previous == [32]byte{}) {
		r.Refuse("only version 1 has no previous version")
	}
	if s.actor = readRegistrar(r); r.Err() == nil && s.actor.Kind == ByEmployee && s.version == 1 {
		r.Refuse("no employee registers a supplier")
	}
	s.facts.Name = readText(r, maxName)
	s.facts.Scopes = make([]string, r.Count(maxScopes))
	for i := range s.facts.Scopes {
		s.facts.Scopes[i] = r.String(maxScope)
		if r.Err() == nil && (!scopeToken(s.facts.Scopes[i]) || i > 0 && s.facts.Scopes[i-1] >= s.facts.Scopes[i]) {
			r.Refuse("scopes not in order, or no scope token")
		}
	}
	s.facts.Suspended = r.Bool()
	s.facts.Certificates = make([]Certificate, r.Count(maxCertificates))
	for i := range s.facts.Certificates {
		c := &s.facts.Certificates[i]
		r.Fixed(c.Thumbprint[:])
		c.NotAfter = readTime(r)
		c.RevokedAt = readTimeOrNone(r)
		switch {
		case r.Err() != nil:
		case c.Thumbprint == [32]byte{}:
			r.Refuse("certificate without a thumbprint")
		case i > 0 && bytes.Compare(s.facts.Certificates[i-1].Thumbprint[:], c.Thumbprint[:]) >= 0:
			r.Refuse("certificates not in order, or one twice")
		case c.RevokedAt.After(s.sealedAt):
			r.Refuse("certificate revoked after it was sealed")
		}
	}
	if err := r.Close(); err != nil {
		return nil, err
	}
	s.payload = bytes.Clone(b)
	s.digest = sha256.Sum256(b)
	return s, nil
}
