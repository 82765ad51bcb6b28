package authn

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"kluis/authz"
	"kluis/internal/config"
)

const (
	idpURL      = "https://login.example.com/staff"
	idpAudience = "kluis-portal"
)

// identityWorld is a provider with an RSA, an EC and an Ed25519 key, and what
// verifies its ID tokens.
func identityWorld(tb testing.TB) (*world, *Identities) {
	tb.Helper()
	w := newWorld(tb)
	own, err := newJWK(&w.es.PublicKey)
	if err != nil {
		tb.Fatal(err)
	}
	set, err := json.Marshal(map[string]any{"keys": []any{
		map[string]any{"kty": "RSA", "kid": "rsa", "use": "sig", "n": b64(w.ps.N.Bytes()), "e": "AQAB"},
		map[string]any{"kty": "RSA", "kid": "rsa-pss", "alg": "PS256", "n": b64(w.ps.N.Bytes()), "e": "AQAB"},
		map[string]any{"kty": own.Kty, "crv": own.Crv, "kid": "ec", "x": own.X, "y": own.Y},
		map[string]any{"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": b64(w.ed.Public().(ed25519.PublicKey))},
	}})
	if err != nil {
		tb.Fatal(err)
	}
	keys, err := PinnedIdentityKeys(set)
	if err != nil {
		tb.Fatal(err)
	}
	v, err := NewIdentities(IdentityProvider{
		URL: idpURL, Audience: idpAudience, Keys: keys, RoleClaim: "groups", MaxAge: 12 * time.Hour,
		Roles: map[string]authz.Role{"kcc": authz.Agent, "kcc-lead": authz.Supervisor, "kcc-night": authz.Supervisor, "privacy": authz.Auditor},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return w, v
}

func (w *world) idSpec() *spec {
	return &spec{
		header: map[string]any{"typ": "JWT", "alg": "RS256", "kid": "rsa"},
		claims: map[string]any{
			"iss": idpURL, "aud": idpAudience, "sub": "248289761001", "iat": w.now.Unix(), "exp": w.now.Unix() + 3600,
			"nonce": "n-0S6_WzA2Mj", "groups": []string{"everybody", "kcc"},
		},
		method: jwt.SigningMethodRS256,
		key:    w.ps,
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*world, *spec)
		role   authz.Role
	}{
		"RS256, as most providers": {func(*world, *spec) {}, authz.Agent},
		"PS256, where the key says so": {func(_ *world, s *spec) {
			s.header["alg"], s.header["kid"], s.method = "PS256", "rsa-pss", jwt.SigningMethodPS256
		}, authz.Agent},
		"ES256": {func(w *world, s *spec) {
			s.header["alg"], s.header["kid"], s.method, s.key = "ES256", "ec", jwt.SigningMethodES256, w.es
		}, authz.Agent},
		"EdDSA": {func(w *world, s *spec) {
			s.header["alg"], s.header["kid"], s.method, s.key = "EdDSA", "ed", jwt.SigningMethodEdDSA, w.ed
		}, authz.Agent},
		"no typ":                        {func(_ *world, s *spec) { delete(s.header, "typ") }, authz.Agent},
		"audience in an array":          {func(_ *world, s *spec) { s.claims["aud"] = []string{idpAudience} }, authz.Agent},
		"authorized party":              {func(_ *world, s *spec) { s.claims["azp"] = idpAudience }, authz.Agent},
		"role as a string":              {func(_ *world, s *spec) { s.claims["groups"] = "privacy" }, authz.Auditor},
		"the highest of all":            {func(_ *world, s *spec) { s.claims["groups"] = []string{"kcc", "privacy", "kcc-night"} }, authz.Supervisor},
		"agent and auditor":             {func(_ *world, s *spec) { s.claims["groups"] = []string{"privacy", "kcc"} }, authz.Agent},
		"its last second":               {func(w *world, s *spec) { s.claims["exp"] = w.now.Unix() + 1 }, authz.Agent},
		"signed in twelve hours ago":    {func(w *world, s *spec) { s.claims["auth_time"] = w.now.Unix() - 12*3600 }, authz.Agent},
		"issued long ago, no auth_time": {func(w *world, s *spec) { s.claims["iat"] = w.now.Unix() - 12*3600 }, authz.Agent},
		"a clock that is ahead": {func(w *world, s *spec) {
			s.claims["iat"], s.claims["auth_time"], s.claims["nbf"] = w.now.Unix()+10, w.now.Unix()+10, w.now.Unix()+10
		}, authz.Agent},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, v := identityWorld(t)
			s := w.idSpec()
			c.change(w, s)
			got, err := v.Verify(t.Context(), s.sign(t), noon)
			exp := s.claims["exp"].(int64)
			if want := (Identity{idpURL + "#248289761001", c.role, time.Unix(exp, 0).UTC()}); err != nil || got != want {
				t.Errorf("%+v, %v, want %+v", got, err, want)
			}
		})
	}
}

// TestIdentityRefused attacks: each case changes one thing of an ID token that
// is accepted, and signs it properly where it does not say otherwise.
func TestIdentityRefused(t *testing.T) {
	t.Parallel()
	type change = func(*world, *spec)
	set := func(k string, v any) change { return func(_ *world, s *spec) { s.claims[k] = v } }
	without := func(k string) change { return func(_ *world, s *spec) { delete(s.claims, k) } }
	head := func(k string, v any) change { return func(_ *world, s *spec) { s.header[k] = v } }
	sec := func(k string, offset int64) change {
		return func(w *world, s *spec) { s.claims[k] = w.now.Unix() + offset }
	}
	for name, c := range map[string]struct {
		change change
		reason string
	}{
		// Algorithm, key, type.
		"alg none": {func(_ *world, s *spec) {
			s.header["alg"], s.method, s.key = "none", jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType
		}, "wrong_algorithm"},
		"HS256 with the public key": {func(w *world, s *spec) {
			s.header["alg"], s.method, s.key = "HS256", jwt.SigningMethodHS256, w.ps.N.Bytes()
		}, "wrong_algorithm"},
		"PS256 with a key for RS256": {func(_ *world, s *spec) { s.header["alg"], s.method = "PS256", jwt.SigningMethodPS256 }, "wrong_algorithm"},
		"RS256 with a key for PS256": {head("kid", "rsa-pss"), "wrong_algorithm"},
		"RS512":                      {func(_ *world, s *spec) { s.header["alg"], s.method = "RS512", jwt.SigningMethodRS512 }, "wrong_algorithm"},
		"signed by another": {func(w *world, s *spec) {
			s.header["alg"], s.header["kid"], s.method, s.key = "ES256", "ec", jwt.SigningMethodES256, w.es2
		}, "wrong_signature"},
		"no kid":                    {func(_ *world, s *spec) { delete(s.header, "kid") }, "no_kid"},
		"unknown kid":               {head("kid", "other"), "unknown_kid"},
		"key in the header":         {head("jku", "https://evil.example/jwks"), "key_in_header"},
		"certificate in the header": {head("x5c", []string{"MII"}), "key_in_header"},
		"critical header":           {head("crit", []string{"exp"}), "critical_header"},
		"an access token's type":    {head("typ", "at+jwt"), "wrong_type"},
		"a logout token's type":     {head("typ", "logout+jwt"), "wrong_type"},
		"typ null":                  {head("typ", nil), "wrong_type"},
		// Issuer, audience.
		"another issuer":              {set("iss", "https://login.example.com/other"), "wrong_issuer"},
		"the issuer of access tokens": {set("iss", ownIssuer), "wrong_issuer"},
		"issuer with a slash":         {set("iss", idpURL+"/"), "wrong_issuer"},
		"no issuer":                   {without("iss"), "wrong_issuer"},
		"another audience":            {set("aud", audience), "wrong_audience"},
		"two audiences":               {set("aud", []string{idpAudience, "mail"}), "wrong_audience"},
		"no audience":                 {without("aud"), "wrong_audience"},
		"another party":               {set("azp", "mail"), "wrong_authorized_party"},
		"party null":                  {set("azp", nil), "wrong_authorized_party"},
		// Other tokens of the provider, for the portal.
		"an access token by its scope":      {set("scope", "openid profile"), "no_id_token"},
		"an access token for the portal":    {set("scp", "user_impersonation"), "no_id_token"},
		"an access token by its client":     {set("client_id", idpAudience), "no_id_token"},
		"a bound access token":              {set("cnf", map[string]any{"x5t#S256": "AAAA"}), "no_id_token"},
		"an access token by what it is for": {set("authorization_details", []any{}), "no_id_token"},
		"a token of delegation":             {set("act", map[string]any{"sub": "x"}), "no_id_token"},
		"a token that may be delegated":     {set("may_act", map[string]any{"sub": "x"}), "no_id_token"},
		"scope null":                        {set("scope", nil), "no_id_token"},
		"a logout token":                    {set("events", map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}), "no_id_token"},
		"typ Bearer":                        {set("typ", "Bearer"), "no_id_token"},
		"typ Refresh":                       {set("typ", "Refresh"), "no_id_token"},
		"typ a number":                      {set("typ", 1), "no_id_token"},
		"token_use access":                  {set("token_use", "access"), "no_id_token"},
		// Times.
		"expired":                 {sec("exp", 0), "expired"},
		"no expiry":               {without("exp"), "no_expiry"},
		"expiry a string":         {set("exp", "1774785900"), "no_expiry"},
		"no time of issue":        {without("iat"), "no_time_of_issue"},
		"from the future":         {sec("iat", 11), "issued_in_the_future"},
		"not yet valid":           {sec("nbf", 11), "not_yet_valid"},
		"nbf a string":            {set("nbf", "x"), "not_yet_valid"},
		"signed in too long ago":  {sec("auth_time", -12*3600-1), "signed_in_too_long_ago"},
		"issued too long ago":     {sec("iat", -12*3600-1), "signed_in_too_long_ago"},
		"signed in in the future": {sec("auth_time", 11), "signed_in_in_the_future"},
		"auth_time a string":      {set("auth_time", "now"), "signed_in_in_the_future"},
		"auth_time null":          {set("auth_time", nil), "signed_in_in_the_future"},
		// Who.
		"nobody":                 {without("sub"), "subject_missing_or_too_long"},
		"empty subject":          {set("sub", ""), "subject_missing_or_too_long"},
		"subject a number":       {set("sub", 248289761001), "subject_missing_or_too_long"},
		"long subject":           {set("sub", strings.Repeat("x", 128)), "subject_missing_or_too_long"},
		"subject of two lines":   {set("sub", "a\nb"), "subject_missing_or_too_long"},
		"no role":                {without("groups"), "no_role"},
		"no role among groups":   {set("groups", []string{"everybody"}), "no_role"},
		"a role of another case": {set("groups", []string{"KCC"}), "no_role"},
		"the role's own name":    {set("groups", []string{"agent"}), "no_role"},
		"role in another claim":  {func(_ *world, s *spec) { delete(s.claims, "groups"); s.claims["roles"] = []string{"kcc"} }, "no_role"},
		"groups with a number":   {set("groups", []any{"kcc", 1}), "malformed_roles"},
		"groups in an object":    {set("groups", map[string]any{"kcc": true}), "malformed_roles"},
		"groups null":            {set("groups", nil), "no_role"},
		// Shape.
		"sub twice": {func(_ *world, s *spec) {
			b, _ := json.Marshal(s.claims)
			s.rawClaims = strings.TrimSuffix(string(b), "}") + `,"sub":"248289761002"}`
		}, "malformed_claims"},
		"no JWS":    {func(_ *world, s *spec) { s.after = func(string) string { return "x" } }, "malformed"},
		"encrypted": {func(_ *world, s *spec) { s.after = func(raw string) string { return raw + ".e30.e30" } }, "malformed"},
		"oversized": {set("x", strings.Repeat("x", MaxIDToken)), "oversized"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, v := identityWorld(t)
			s := w.idSpec()
			if _, err := v.Verify(t.Context(), s.sign(t), noon); err != nil {
				t.Fatalf("the token to start from: %v", err)
			}
			c.change(w, s)
			id, err := v.Verify(t.Context(), s.sign(t), noon)
			refused(t, err, ErrIdentity, c.reason)
			if id != (Identity{}) {
				t.Errorf("somebody came with the error: %+v", id)
			}
			if errors.Is(err, ErrInvalidToken) || strings.Contains(err.Error(), "248289761001") {
				t.Error(err)
			}
		})
	}
}

// An access token for an RSA key is PS256 as before, whatever ID tokens are.
func TestRSAOfAccessTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	set, err := json.Marshal(map[string]any{"keys": []any{map[string]any{"kty": "RSA", "kid": "rsa", "alg": "RS256", "n": b64(w.ps.N.Bytes()), "e": "AQAB"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := PinnedKeys(set); err == nil || !strings.Contains(err.Error(), "PS256") {
		t.Errorf("a key for RS256 pinned for access tokens: %v", err)
	}
	if _, err := PinnedIdentityKeys(set); err != nil {
		t.Error(err)
	}
	for name, set := range map[string]string{
		"symmetric":      `{"keys":[{"kty":"oct","kid":"1","k":"AAAA"}]}`,
		"for encryption": strings.Replace(string(set), `"alg":"RS256"`, `"use":"enc"`, 1),
		"RS384":          strings.Replace(string(set), "RS256", "RS384", 1),
	} {
		if _, err := PinnedIdentityKeys([]byte(set)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestConfiguredIdentities(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	file := func(b []byte) string {
		path := filepath.Join(t.TempDir(), "jwks.json")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := config.IdentityProvider{URL: idpURL, Audience: idpAudience, JWKSFile: file(w.externalJWKS(t)), RoleClaim: "groups",
		Roles: config.Roles{Agent: []string{"kcc"}, Supervisor: []string{"kcc-lead"}, Auditor: []string{"privacy"}}}
	v, err := ConfiguredIdentities([]config.IdentityProvider{good})
	if err != nil {
		t.Fatal(err)
	}
	for value, role := range map[string]authz.Role{"kcc": authz.Agent, "kcc-lead": authz.Supervisor, "privacy": authz.Auditor} {
		s := w.idSpec()
		s.header["kid"], s.header["alg"], s.method, s.key = "ed-1", "EdDSA", jwt.SigningMethodEdDSA, w.ed
		s.claims["groups"] = value
		if id, err := v.Verify(t.Context(), s.sign(t), noon); err != nil || id.Role != role {
			t.Errorf("%s: %+v, %v", value, id, err)
		}
		// The default of twelve hours.
		s.claims["auth_time"] = noon.Unix() - 12*3600 - 1
		_, err := v.Verify(t.Context(), s.sign(t), noon)
		refused(t, err, ErrIdentity, "signed_in_too_long_ago")
	}
	noFile, noKeys := good, good
	noFile.JWKSFile = filepath.Join(t.TempDir(), "none")
	noKeys.JWKSFile = file([]byte("{}"))
	for name, list := range map[string][]config.IdentityProvider{"none": nil, "no file": {noFile}, "no keys": {noKeys}, "twice": {good, good}} {
		if _, err := ConfiguredIdentities(list); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	p := v.providers[idpURL]
	for name, change := range map[string]func(*IdentityProvider){
		"no URL":      func(p *IdentityProvider) { p.URL = "" },
		"no audience": func(p *IdentityProvider) { p.Audience = "" },
		"no keys":     func(p *IdentityProvider) { p.Keys = nil },
		"no claim":    func(p *IdentityProvider) { p.RoleClaim = "" },
		"no roles":    func(p *IdentityProvider) { p.Roles = nil },
		"no age":      func(p *IdentityProvider) { p.MaxAge = 0 },
	} {
		bad := p
		change(&bad)
		if _, err := NewIdentities(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzIdentity puts arbitrary JSON under a good signature: what is accepted
// says what encoding/json reads too.
func FuzzIdentity(f *testing.F) {
	w, v := identityWorld(f)
	b, err := json.Marshal(w.idSpec().claims)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"iss":"` + idpURL + `","aud":["` + idpAudience + `"],"sub":"x","iat":1774785600,"exp":1774785900,"groups":["privacy",null]}`))
	f.Add([]byte(`{"iss":1}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		s := w.idSpec()
		s.rawClaims = string(payload)
		if s.rawClaims == "" {
			return
		}
		s.header["kid"], s.header["alg"], s.method, s.key = "ed", "EdDSA", jwt.SigningMethodEdDSA, w.ed // the fastest
		id, err := v.Verify(context.Background(), s.sign(t), noon)
		if err != nil {
			if !errors.Is(err, ErrIdentity) || id != (Identity{}) {
				t.Fatal(id, err)
			}
			return
		}
		var m map[string]any
		if json.Unmarshal(payload, &m) != nil || m["iss"] != idpURL ||
			id.Subject != idpURL+"#"+m["sub"].(string) || id.ExpiresAt.Unix() != int64(m["exp"].(float64)) || id.Role < authz.Agent || id.Role > authz.Auditor {
			t.Fatalf("%q read as %+v", payload, id)
		}
	})
}

func BenchmarkIdentity(b *testing.B) {
	w, v := identityWorld(b)
	raw := w.idSpec().sign(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(b.Context(), raw, noon); err != nil {
			b.Fatal(err)
		}
	}
}
