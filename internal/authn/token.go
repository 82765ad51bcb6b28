package authn

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"kluis/authz"
	"kluis/internal/strictjson"
	"kluis/meter"
)

// The scopes there are.
const (
	// ScopeReadings is what a supplier needs to read metering data.
	ScopeReadings = "readings:read"
	// ScopeConsents is what a supplier needs to list its consents, to ask for
	// one, and to revoke one.
	ScopeConsents = "consents:write"
	// ScopeStaff is the scope of an employee of the grid operator, the only one
	// of its token, and of nobody else.
	ScopeStaff = "customer-service"
)

const (
	tokenType     = "at+jwt"
	tokenTypeFull = "application/at+jwt"
	// skew is how far iat and nbf may lie in the future. exp has no leeway.
	skew      = 10 * time.Second
	maxScopes = 32
)

// Token is a verified access token: what an accepted issuer says. It is not
// yet a Caller, because the supplier's sealed record has the last word.
// Immutable.
type Token struct {
	issuer     string
	client     meter.GLN
	scopes     []string
	id         [32]byte
	thumbprint [32]byte
	issuedAt   time.Time
	notBefore  time.Time // zero when not said
	expires    time.Time
	employee   *authz.Employee // nil: it speaks of the client itself
}

// Client is the client_id: whose sealed record the token stands on.
func (t *Token) Client() meter.GLN { return t.client }

// Employee is who calls by the issuer's word, and on which errand; nil: the client
// itself. It is not to be changed, and permits nothing: a Caller may.
func (t *Token) Employee() *authz.Employee { return t.employee }

// Issuer is the iss claim.
func (t *Token) Issuer() string { return t.issuer }

// ID is the SHA-256 of the jti claim.
func (t *Token) ID() [32]byte { return t.id }

// Thumbprint is that of the certificate the token is bound to.
func (t *Token) Thumbprint() [32]byte { return t.thumbprint }

// ExpiresAt is the exp claim, in UTC; the token is of no use from then on.
func (t *Token) ExpiresAt() time.Time { return t.expires }

func (t *Token) checkTime(now time.Time) error {
	latest := now.Add(skew)
	switch {
	case !now.Before(t.expires):
		return invalid("expired")
	case t.issuedAt.After(latest):
		return invalid("issued_in_the_future")
	case t.notBefore.After(latest):
		return invalid("not_yet_valid")
	}
	return nil
}

// Authenticate is the last step: the supplier's sealed record (verified under
// the pinned seal keys) must be the subject's, accept the certificate the
// token is bound to, now, and hold the scope, which the token must hold too.
// So a certificate revoked, a scope withdrawn or a supplier suspended counts
// from the next request on, whatever tokens are out.
func (t *Token) Authenticate(record *authz.Supplier, scope string, now time.Time) (Caller, error) {
	if err := t.checkTime(now); err != nil {
		return Caller{}, err
	}
	if record == nil || t.client.IsZero() || record.GLN() != t.client {
		return Caller{}, invalid("record_of_another_supplier")
	}
	if err := record.Accepts(t.thumbprint, now); err != nil {
		reason := "certificate_not_accepted"
		switch {
		case errors.Is(err, authz.ErrCertificateUnknown):
			reason = "certificate_not_registered"
		case errors.Is(err, authz.ErrCertificateRevoked):
			reason = "certificate_revoked"
		case errors.Is(err, authz.ErrCertificateExpired):
			reason = "certificate_expired"
		case errors.Is(err, authz.ErrSuspended):
			reason = "supplier_suspended"
		}
		return Caller{}, &Error{kind: ErrInvalidToken, reason: reason, cause: err}
	}
	switch {
	case !slices.Contains(t.scopes, scope):
		return Caller{}, &Error{kind: ErrInsufficientScope, reason: "scope_not_in_token", scope: scope}
	case !slices.Contains(record.Scopes(), scope):
		return Caller{}, &Error{kind: ErrInsufficientScope, reason: "scope_not_in_record", scope: scope}
	}
	return Caller{
		supplier:   t.client,
		scope:      scope,
		tokenID:    t.id,
		thumbprint: t.thumbprint,
		issued:     t.issuedAt,
		expires:    t.expires,
		employee:   t.employee,
	}, nil
}

// Caller is an authenticated supplier, or employee of the grid operator, with
// one scope. Only Authenticate makes one; the zero Caller is nobody.
type Caller struct {
	supplier   meter.GLN
	scope      string
	tokenID    [32]byte
	thumbprint [32]byte
	issued     time.Time
	expires    time.Time
	employee   *authz.Employee
}

var _ authz.Caller = Caller{}

// Supplier is who calls: the supplier, or the grid operator whose employee does.
func (c Caller) Supplier() meter.GLN { return c.supplier }

// Employee is the employee who calls, and on which errand; nil for a supplier.
// It is not to be changed.
func (c Caller) Employee() *authz.Employee { return c.employee }

// Scope is the scope it was authenticated for.
func (c Caller) Scope() string { return c.scope }

// TokenID is the SHA-256 of the token's jti.
func (c Caller) TokenID() [32]byte { return c.tokenID }

// Thumbprint is that of the caller's certificate.
func (c Caller) Thumbprint() [32]byte { return c.thumbprint }

// IssuedAt is when the token was issued, in UTC and whole seconds.
func (c Caller) IssuedAt() time.Time { return c.issued }

// ExpiresAt is when the token expires, in UTC.
func (c Caller) ExpiresAt() time.Time { return c.expires }

// header is the JOSE header, checked as far as it goes without the key.
type header struct{ alg, kid string }

// keyHeaders bring or point to a key; a key comes from configuration only.
var keyHeaders = []string{"jwk", "jku", "x5u", "x5c"}

// parseHeader accepts the types given; "" stands for none.
func parseHeader(b []byte, types ...string) (header, error) {
	m, err := strictjson.Object(b)
	if err != nil {
		return header{}, invalid("malformed_header")
	}
	// Kluis understands no extension, so any crit is to be refused
	// (RFC 7515, clause 4.1.11).
	if _, has := m["crit"]; has {
		return header{}, invalid("critical_header")
	}
	for _, h := range keyHeaders {
		if _, has := m[h]; has {
			return header{}, invalid("key_in_header")
		}
	}
	v, has := m["typ"]
	if typ, ok := text(v); has != ok || !slices.Contains(types, typ) {
		return header{}, invalid("wrong_type")
	}
	var h header
	var ok bool
	if h.alg, ok = text(m["alg"]); !ok {
		return header{}, invalid("wrong_algorithm")
	}
	if h.kid, ok = text(m["kid"]); !ok {
		return header{}, invalid("no_kid")
	}
	return h, nil
}

// claims are the payload's, parsed but not yet trusted.
type claims struct {
	audience string
	token    Token
	employee *employeeClaims // nil: the token is a supplier's
}

func parseClaims(b []byte) (claims, error) {
	var c claims
	m, err := strictjson.Object(b)
	if err != nil {
		return c, invalid("malformed_claims")
	}
	t := &c.token
	var ok bool
	if t.issuer, ok = text(m["iss"]); !ok {
		return c, invalid("wrong_issuer")
	}
	if c.audience, ok = oneAudience(m["aud"]); !ok {
		return c, invalid("wrong_audience")
	}
	exp, ok := seconds(m["exp"])
	if !ok {
		return c, invalid("no_expiry")
	}
	iat, ok := seconds(m["iat"])
	if !ok {
		return c, invalid("no_time_of_issue")
	}
	t.expires, t.issuedAt = time.Unix(exp, 0).UTC(), time.Unix(iat, 0).UTC()
	if v, has := m["nbf"]; has {
		nbf, ok := seconds(v)
		if !ok {
			return c, invalid("not_yet_valid")
		}
		t.notBefore = time.Unix(nbf, 0).UTC()
	}
	jti, ok := text(m["jti"])
	if !ok {
		return c, invalid("no_jti")
	}
	t.id = sha256.Sum256([]byte(jti))
	if t.thumbprint, ok = confirmation(m["cnf"]); !ok {
		return c, invalid("not_bound_to_a_certificate")
	}
	if v, has := m["scope"]; has {
		if t.scopes, ok = scopes(v); !ok {
			return c, invalid("malformed_scope")
		}
	}
	// A token is a supplier's or an employee's, never something between.
	_, hasRoles := m["roles"]
	_, hasDetails := m["authorization_details"]
	if hasRoles || hasDetails {
		c.employee, err = t.parseEmployee(m)
	} else {
		err = t.parseSupplier(m)
	}
	return c, err
}

// parseSupplier reads who a supplier's token speaks of: its client.
func (t *Token) parseSupplier(m map[string]json.RawMessage) (err error) {
	sub, _ := text(m["sub"])
	if t.client, err = meter.ParseGLN(sub); err != nil {
		return invalid("subject_not_a_gln")
	}
	if id, _ := text(m["client_id"]); id != sub {
		return invalid("client_is_not_subject")
	}
	if slices.Contains(t.scopes, ScopeStaff) {
		return invalid("scope_of_employees")
	}
	return nil
}

// employeeClaims are those of an employee's token, its errand not yet read: the
// names in it are those of a market profile, which an issuer has.
type employeeClaims struct {
	subject string
	role    authz.Role
	errand  json.RawMessage
}

func (t *Token) parseEmployee(m map[string]json.RawMessage) (*employeeClaims, error) {
	id, _ := text(m["client_id"])
	var err error
	if t.client, err = meter.ParseGLN(id); err != nil {
		return nil, invalid("client_not_a_gln")
	}
	var e employeeClaims
	switch e.subject, _ = text(m["sub"]); {
	case e.subject == id:
		return nil, invalid("role_or_errand_of_a_supplier")
	case !namesEmployee(e.subject):
		return nil, invalid("subject_not_an_employee")
	}
	if !slices.Equal(t.scopes, []string{ScopeStaff}) {
		return nil, invalid("scope_not_of_employees")
	}
	var roles []json.RawMessage
	if json.Unmarshal(m["roles"], &roles) != nil || len(roles) != 1 {
		return nil, invalid("not_one_role")
	}
	role, _ := text(roles[0])
	if e.role, err = authz.ParseRole(role); err != nil {
		return nil, invalid("not_one_role")
	}
	e.errand = m["authorization_details"]
	return &e, nil
}

// namesEmployee says whether a subject can be an employee's: one line, and no
// GLN, which names a party of the market.
func namesEmployee(sub string) bool {
	_, err := meter.ParseGLN(sub)
	return plainText(sub) && err != nil
}

// of is who the claims name, if the issuer may name employees of the token's
// client.
func (e *employeeClaims) of(t *Token, s *Staff) (*authz.Employee, error) {
	switch {
	case s == nil:
		return nil, invalid("issuer_names_no_employees")
	case t.client != s.Operator:
		return nil, invalid("not_the_operators_employee")
	}
	errand, err := ParseErrand(e.errand, s.Profile)
	if err != nil {
		return nil, &Error{kind: ErrInvalidToken, reason: "malformed_errand", cause: err}
	}
	if !e.role.May(errand.Kind) {
		return nil, invalid("errand_not_of_the_role")
	}
	return &authz.Employee{Subject: e.subject, Role: e.role, Errand: errand}, nil
}

// oneAudience accepts a string, or an array of one: a token meant for several
// services could be brought here by any of them.
func oneAudience(v json.RawMessage) (string, bool) {
	if s, ok := text(v); ok {
		return s, true
	}
	var list []json.RawMessage
	if json.Unmarshal(v, &list) != nil || len(list) != 1 {
		return "", false
	}
	return text(list[0])
}

// confirmation reads x5t#S256 of the cnf claim (RFC 8705, clause 3.1).
func confirmation(v json.RawMessage) (thumbprint [32]byte, ok bool) {
	m, err := strictjson.Object(v)
	if err != nil {
		return thumbprint, false
	}
	s, ok := text(m["x5t#S256"])
	if !ok {
		return thumbprint, false
	}
	b, ok := decodeSegment(s)
	if !ok || len(b) != len(thumbprint) {
		return thumbprint, false
	}
	return [32]byte(b), true
}

// scopes reads a space-delimited list; "" is the empty list.
func scopes(v json.RawMessage) ([]string, bool) {
	var s *string
	if json.Unmarshal(v, &s) != nil || s == nil {
		return nil, false
	}
	if *s == "" {
		return nil, true
	}
	return ParseScope(*s)
}

// ParseScope reads a scope parameter (RFC 6749, clause 3.3): scope-tokens with
// one space between them, none repeated, at most 32.
func ParseScope(s string) ([]string, bool) {
	list := strings.Split(s, " ")
	if len(list) > maxScopes {
		return nil, false
	}
	for i, v := range list {
		if !isScope(v) || slices.Contains(list[:i], v) {
			return nil, false
		}
	}
	return list, true
}

// isScope is scope-token of RFC 6749: 1*( %x21 / %x23-5B / %x5D-7E ).
func isScope(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x21 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return s != ""
}
