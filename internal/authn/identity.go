package authn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"kluis/authz"
	"kluis/internal/config"
	"kluis/internal/strictjson"
)

// MaxIDToken bounds an ID token, in bytes: some hold every group of a person.
const MaxIDToken = 16 << 10

// idTokenType is the typ of an ID token that has one. An access token of the
// same provider says at+jwt.
const idTokenType = "JWT"

// ErrIdentity is every failure of an ID token; see Reason.
var ErrIdentity = errors.New("ID token not accepted")

func badIdentity(reason string) error { return &Error{kind: ErrIdentity, reason: reason} }

// IdentityProvider is where employees sign in (an OpenID Provider).
type IdentityProvider struct {
	URL       string // exact iss
	Audience  string // exact aud
	Keys      Keys   // of PinnedIdentityKeys
	RoleClaim string
	Roles     map[string]authz.Role // by values of the claim
	MaxAge    time.Duration         // since the employee signed in
}

// Identity is an employee, as an ID token says.
type Identity struct {
	// Subject names the human for ever: iss, "#", and sub, which is never given
	// to another person there (OpenID Connect Core, clause 2).
	Subject string
	Role    authz.Role
	// ExpiresAt is when the ID token does, in UTC. What rests on it ends then.
	ExpiresAt time.Time
}

// Identities verifies employees' ID tokens. Safe for concurrent use.
type Identities struct{ providers map[string]IdentityProvider }

// NewIdentities accepts ID tokens of these providers and no others.
func NewIdentities(providers ...IdentityProvider) (*Identities, error) {
	v := &Identities{map[string]IdentityProvider{}}
	for _, p := range providers {
		if p.URL == "" || p.Audience == "" || p.Keys == nil || p.RoleClaim == "" || len(p.Roles) == 0 || p.MaxAge <= 0 {
			return nil, errors.New("an identity provider needs a URL, an audience, keys, a role claim, roles and a greatest age")
		}
		if _, twice := v.providers[p.URL]; twice {
			return nil, fmt.Errorf("identity provider %s is configured twice", p.URL)
		}
		v.providers[p.URL] = p
	}
	if len(v.providers) == 0 {
		return nil, errors.New("no identity provider")
	}
	return v, nil
}

// ConfiguredIdentities is NewIdentities for a configuration's providers.
func ConfiguredIdentities(list []config.IdentityProvider) (*Identities, error) {
	var providers []IdentityProvider
	for _, c := range list {
		raw, err := os.ReadFile(c.JWKSFile)
		if err != nil {
			return nil, fmt.Errorf("identity provider %s: %w", c.URL, err)
		}
		keys, err := PinnedIdentityKeys(raw)
		if err != nil {
			return nil, fmt.Errorf("identity provider %s: %s: %w", c.URL, c.JWKSFile, err)
		}
		p := IdentityProvider{URL: c.URL, Audience: c.Audience, Keys: keys, RoleClaim: c.RoleClaim, Roles: map[string]authz.Role{}, MaxAge: c.Age()}
		for role, values := range map[authz.Role][]string{authz.Agent: c.Roles.Agent, authz.Supervisor: c.Roles.Supervisor, authz.Auditor: c.Roles.Auditor} {
			for _, v := range values {
				p.Roles[v] = role
			}
		}
		providers = append(providers, p)
	}
	return NewIdentities(providers...)
}

// Verify verifies an ID token (OpenID Connect Core 1.0, clause 3.1.3.7): a
// pinned key of the provider, which alone says the algorithm; issuer; an
// audience that is the portal and nobody else; times; that it is no other kind of
// token of the provider's. The nonce is between the
// portal and the provider. Every error is ErrIdentity.
func (v *Identities) Verify(ctx context.Context, raw string, now time.Time) (Identity, error) {
	id, err := v.verify(ctx, raw, now)
	if e := (*Error)(nil); errors.As(err, &e) {
		err = badIdentity(e.reason)
	}
	return id, err
}

func (v *Identities) verify(ctx context.Context, raw string, now time.Time) (Identity, error) {
	var none Identity
	if len(raw) > MaxIDToken {
		return none, badIdentity("oversized")
	}
	j, ok := parseJWS(raw)
	if !ok {
		return none, badIdentity("malformed")
	}
	h, err := parseHeader(j.header, idTokenType, "")
	if err != nil {
		return none, err
	}
	m, err := strictjson.Object(j.payload)
	if err != nil {
		return none, badIdentity("malformed_claims")
	}
	iss, _ := text(m["iss"])
	p, ok := v.providers[iss]
	if !ok {
		return none, badIdentity("wrong_issuer")
	}
	k, err := p.Keys.key(ctx, h.kid)
	if err != nil {
		return none, badIdentity("unknown_kid")
	}
	if h.alg != k.method.Alg() {
		return none, badIdentity("wrong_algorithm")
	}
	if k.method.Verify(j.signed, j.signature, k.public) != nil {
		return none, badIdentity("wrong_signature")
	}

	// From here on the provider has said it.
	if !isIDToken(m) {
		return none, badIdentity("no_id_token")
	}
	if aud, _ := oneAudience(m["aud"]); aud != p.Audience {
		return none, badIdentity("wrong_audience")
	}
	if azp, has := m["azp"]; has {
		if s, _ := text(azp); s != p.Audience {
			return none, badIdentity("wrong_authorized_party")
		}
	}
	id := Identity{}
	if id.ExpiresAt, err = p.times(m, now); err != nil {
		return none, err
	}
	sub, _ := text(m["sub"])
	if id.Subject = iss + "#" + sub; sub == "" || !plainText(id.Subject) {
		return none, badIdentity("subject_missing_or_too_long")
	}
	if id.Role, err = p.role(m[p.RoleClaim]); err != nil {
		return none, err
	}
	return id, nil
}

// foreignClaims are in no ID token, but in what else a provider signs with the
// same keys, some for the same audience: access tokens (RFC 9068, RFC 8693, and
// as providers make them), logout tokens (OpenID Connect Back-Channel Logout,
// clause 2.4). Those travel to where an ID token never goes.
var foreignClaims = []string{"scope", "scp", "client_id", "events", "cnf", "act", "may_act", "authorization_details"}

// isIDToken says whether the provider calls it an ID token, where it says what it
// is, and it holds nothing that is another token's.
func isIDToken(m map[string]json.RawMessage) bool {
	for _, name := range foreignClaims {
		if _, has := m[name]; has {
			return false
		}
	}
	// Keycloak says typ ID, Bearer, Refresh, Logout; Cognito token_use id, access.
	for name, want := range map[string]string{"typ": "ID", "token_use": "id"} {
		if v, has := m[name]; has {
			if s, _ := text(v); s != want {
				return false
			}
		}
	}
	return true
}

// times is when the token expires, if it is good now and the employee signed in
// not too long ago: auth_time, or iat where the provider does not say.
func (p *IdentityProvider) times(m map[string]json.RawMessage, now time.Time) (expires time.Time, err error) {
	exp, ok := seconds(m["exp"])
	if !ok {
		return expires, badIdentity("no_expiry")
	}
	if expires = time.Unix(exp, 0).UTC(); !now.Before(expires) {
		return expires, badIdentity("expired")
	}
	latest := now.Add(skew)
	iat, ok := seconds(m["iat"])
	if !ok {
		return expires, badIdentity("no_time_of_issue")
	}
	if time.Unix(iat, 0).After(latest) {
		return expires, badIdentity("issued_in_the_future")
	}
	if v, has := m["nbf"]; has {
		if nbf, ok := seconds(v); !ok || time.Unix(nbf, 0).After(latest) {
			return expires, badIdentity("not_yet_valid")
		}
	}
	signedIn := iat
	if v, has := m["auth_time"]; has {
		if signedIn, ok = seconds(v); !ok || time.Unix(signedIn, 0).After(latest) {
			return expires, badIdentity("signed_in_in_the_future")
		}
	}
	if now.Sub(time.Unix(signedIn, 0)) > p.MaxAge {
		return expires, badIdentity("signed_in_too_long_ago")
	}
	return expires, nil
}

// byPower lists the roles, the one that may do most first.
var byPower = []authz.Role{authz.Supervisor, authz.Agent, authz.Auditor}

// role reads a string or an array of strings. Of several roles the one that may
// do most counts: an errand says nothing of a role, and who is supervisor and
// auditor at once is not to be less than either.
func (p *IdentityProvider) role(v json.RawMessage) (authz.Role, error) {
	var values []string
	if s, ok := text(v); ok {
		values = []string{s}
	} else if v != nil && json.Unmarshal(v, &values) != nil {
		return 0, badIdentity("malformed_roles")
	}
	for _, r := range byPower {
		if slices.ContainsFunc(values, func(s string) bool { return p.Roles[s] == r }) {
			return r, nil
		}
	}
	return 0, badIdentity("no_role")
}
