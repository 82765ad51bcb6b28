package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/internal/config"
	"kluis/internal/devpki"
	"kluis/meter"
)

const (
	invalidToken = `Bearer realm="kluis", error="invalid_token"`
	noToken      = `Bearer realm="kluis"`
	noScope      = `Bearer realm="kluis", error="insufficient_scope", scope="readings:read"`
)

// logLine is the gateway's line of a request. The caller is told nothing of
// why a token is refused, so the log shows which guard it met.
func logLine(t testing.TB, file, interactionID string) map[string]any {
	t.Helper()
	var found map[string]any
	eventually(t, "the request's line in "+file, func() bool {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, interactionID) && json.Unmarshal([]byte(line), &found) == nil {
				return true
			}
		}
		return false
	})
	return found
}

// refused expects 401 for a reason that only the log names.
func (w *world) refused(t testing.TB, a answer, log, reason, challenge string) {
	t.Helper()
	if a.status != http.StatusUnauthorized || a.slug() != "unauthenticated" || a.header.Get("WWW-Authenticate") != challenge {
		t.Errorf("%d %s %q", a.status, a.body, a.header.Get("WWW-Authenticate"))
		return
	}
	line := logLine(t, log, a.InteractionId.String())
	if cause := fmt.Sprint(line["cause"]); !strings.Contains(cause, "("+reason+")") {
		t.Errorf("refused for another reason: %s", cause)
	}
	if rows := w.accessLog(t, a.InteractionId.String()); len(rows) != 0 {
		t.Error("an access record of somebody who is not authenticated")
	}
}

func (w *world) gatewayLog() string { return filepath.Join(w.state, "logs", "gateway.log") }

// The Authorization header is the only place, and holds one bearer token.
// Guard: authn.Bearer.
func TestAuthorizationHeader(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c := w.supplier(t, 0)
	token := c.accessToken(t)
	for name, tc := range map[string]struct {
		authorization     []string
		reason, challenge string
	}{
		"none":                {nil, "no_authorization_header", noToken},
		"empty":               {[]string{""}, "other_scheme", noToken},
		"Basic":               {[]string{"Basic YTpi"}, "other_scheme", noToken},
		"DPoP":                {[]string{"DPoP " + token}, "other_scheme", noToken},
		"scheme alone":        {[]string{"Bearer"}, "malformed_authorization_header", invalidToken},
		"no scheme":           {[]string{token}, "other_scheme", noToken},
		"two headers":         {[]string{"Bearer " + token, "Bearer " + token}, "several_authorization_headers", invalidToken},
		"two, one of nothing": {[]string{"Basic YTpi", "Bearer " + token}, "several_authorization_headers", invalidToken},
		"two in one":          {[]string{"Bearer " + token + ", Bearer " + token}, "malformed_authorization_header", invalidToken},
		"two spaces":          {[]string{"Bearer  " + token}, "malformed_authorization_header", invalidToken},
		"in quotes":           {[]string{`Bearer "` + token + `"`}, "malformed_authorization_header", invalidToken},
		"as a parameter":      {[]string{"Bearer token=" + token}, "malformed_authorization_header", invalidToken},
		"nonsense":            {[]string{"Bearer nonsense"}, "malformed", invalidToken},
		"oversized":           {[]string{"Bearer " + strings.Repeat("a", 8<<10+1)}, "oversized", invalidToken},
	} {
		t.Run(name, func(t *testing.T) {
			w.refused(t, c.get(t, "/v1/status", tc.authorization...), w.gatewayLog(), tc.reason, tc.challenge)
		})
	}
	// RFC 9110, 11.1: the scheme is case-insensitive.
	for _, scheme := range []string{"bearer", "BEARER", "bEaReR"} {
		if a := c.get(t, "/v1/status", scheme+" "+token); a.status != http.StatusOK {
			t.Errorf("%s: %d %s", scheme, a.status, a.body)
		}
	}
}

// Guard: server.enter, before anybody is authenticated.
func TestTokenInTheQueryString(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c := w.supplier(t, 0)
	token := c.accessToken(t)
	for _, authorization := range [][]string{nil, {"Bearer " + token}} {
		a := c.get(t, "/v1/metering-points?access_token="+token, authorization...)
		if a.status != http.StatusBadRequest || a.slug() != "invalid-parameters" || len(*a.Errors) != 1 || (*a.Errors)[0].Pointer != "/query/access_token" {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
}

// Guard: the comparison of cnf with the TLS certificate in Verifier.Verify.
func TestCertificateOfAWithTokenOfB(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.supplier(t, 0), w.supplier(t, 1)
	for _, path := range []string{"/v1/status", "/v1/metering-points"} {
		w.refused(t, a.with(t, b.accessToken(t), path), w.gatewayLog(), "bound_to_another_certificate", invalidToken)
		w.refused(t, b.with(t, a.accessToken(t), path), w.gatewayLog(), "bound_to_another_certificate", invalidToken)
	}
}

// Tokens that the key of Kluis' issuer did not sign. Guards: the header's parser,
// and keys that come from the configuration and have one algorithm each.
func TestForgedSignatures(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c, b := w.supplier(t, 0), w.supplier(t, 1)
	real := c.accessToken(t)
	header, payload := parts(t, real)
	seg := strings.Split(real, ".")
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwks := get(t, c, "/oauth2/jwks").body
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal(jwks, &set); err != nil || len(set.Keys) == 0 {
		t.Fatalf("%s: %v", jwks, err)
	}
	sealKeys, err := os.ReadFile(filepath.Join(w.state, "keys", "seal-keys.pem"))
	if err != nil {
		t.Fatal(err)
	}
	none := func(alg string) string {
		h, err := json.Marshal(header.with(claims{"alg": alg}))
		if err != nil {
			t.Fatal(err)
		}
		return b64(h) + "." + seg[1] + "."
	}
	ofB, _ := json.Marshal(payload.with(claims{"sub": b.clientID, "client_id": b.clientID}))
	flipped := sure(base64.RawURLEncoding.DecodeString(seg[2]))
	flipped[10] ^= 1
	// What an attacker holds of the issuer's key is public; as the secret of an
	// HMAC it would have to be the bytes of one of these.
	pub, err := x509.MarshalPKIXPublicKey(&own.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ token, reason string }{
		"alg none":                      {none("none"), "wrong_algorithm"},
		"alg None":                      {none("None"), "wrong_algorithm"},
		"alg none, signature kept":      {none("none") + seg[2], "wrong_algorithm"},
		"no signature":                  {seg[0] + "." + seg[1] + ".", "wrong_signature"},
		"two parts":                     {seg[0] + "." + seg[1], "malformed"},
		"four parts":                    {real + "." + seg[2], "malformed"},
		"a bit flipped":                 {seg[0] + "." + seg[1] + "." + b64(flipped), "wrong_signature"},
		"another subject":               {seg[0] + "." + b64(ofB) + "." + seg[2], "wrong_signature"},
		"HS256, secret the JWK":         {signed(t, "HS256", jwks, header.with(claims{"alg": "HS256"}), payload), "wrong_algorithm"},
		"HS256, secret the point":       {signed(t, "HS256", []byte(set.Keys[0]["x"]), header.with(claims{"alg": "HS256"}), payload), "wrong_algorithm"},
		"HS256, secret the PEM":         {signed(t, "HS256", sealKeys, header.with(claims{"alg": "HS256"}), payload), "wrong_algorithm"},
		"own key, the issuer's kid":     {signed(t, "ES256", own, header, payload), "wrong_signature"},
		"own key, own kid":              {signed(t, "ES256", own, header.with(claims{"kid": "mine"}), payload), "unknown_kid"},
		"own key, no kid":               {signed(t, "ES256", own, header.with(claims{"kid": nil}), payload), "no_kid"},
		"own key in the header":         {signed(t, "ES256", own, header.with(claims{"jwk": map[string]string{"kty": "EC"}}), payload), "key_in_header"},
		"own key by x5c":                {signed(t, "ES256", own, header.with(claims{"x5c": []string{b64(pub)}}), payload), "key_in_header"},
		"own key by jku":                {signed(t, "ES256", own, header.with(claims{"jku": "https://attacker.example/jwks"}), payload), "key_in_header"},
		"critical extension":            {signed(t, "ES256", own, header.with(claims{"crit": []string{"x"}, "x": 1}), payload), "critical_header"},
		"kid that is a path":            {signed(t, "ES256", own, header.with(claims{"kid": "../../etc/passwd"}), payload), "unknown_kid"},
		"own issuer":                    {signed(t, "ES256", own, header, payload.with(claims{"iss": "https://attacker.example"})), "wrong_issuer"},
		"issuer that only starts alike": {signed(t, "ES256", own, header, payload.with(claims{"iss": w.ready.IssuerURL + ".attacker.example"})), "wrong_issuer"},
	} {
		t.Run(name, func(t *testing.T) {
			w.refused(t, c.with(t, tc.token, "/v1/metering-points"), w.gatewayLog(), tc.reason, invalidToken)
		})
	}
}

// An external issuer is trusted to sign, but what its tokens say is checked
// all the same: by the gateway and, were the gateway captured, by the
// cryptoserver. Guards: the checks of claims in Verifier, and the sealed
// supplier record in Token.Authenticate, in both processes.
func TestTokensOfAnExternalIssuer(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	side := w.sidecar(t)
	a, b := w.supplier(t, 0).at(t, side.url), w.supplier(t, 1).at(t, side.url)
	point := w.point(t, func(p readyPoint) bool { return supplies(p, a.clientID) && !supplies(p, b.clientID) })
	billing := accessFor(t, point, a.clientID, "SUPPLY_PERIODIC")
	path := readingsPath(point.EAN, billing.From, billing.To, billing.Purpose)
	crypto := w.captured(t, side.cryptoserver)
	e, now := side.issuer, time.Now().Unix()

	for _, alg := range []string{"ES256", "PS256", "EdDSA"} {
		token := e.sign(t, alg, nil, e.good(a))
		if got := a.with(t, token, path); got.status != http.StatusOK || !strings.Contains(string(got.body), `"series":[{`) {
			t.Errorf("%s: %d %s", alg, got.status, got.body)
		}
		if err := crypto.open(t, token, a.clientID, point, billing); err != nil {
			t.Errorf("%s, at the cryptoserver: %v", alg, err)
		}
	}
	// The issuer of Kluis is accepted beside it.
	if got := a.with(t, w.supplier(t, 0).accessToken(t), path); got.status != http.StatusOK {
		t.Errorf("a token of Kluis' issuer: %d %s", got.status, got.body)
	}

	stranger := w.pair(t, devpki.Leaf{CommonName: "stranger"})
	for name, tc := range map[string]struct {
		header, claims claims
		reason         string
		detached       bool // the cryptoserver cannot know: it does not see the TLS connection
	}{
		"typ JWT":                    {header: claims{"typ": "JWT"}, reason: "wrong_type"},
		"no typ":                     {header: claims{"typ": nil}, reason: "wrong_type"},
		"an ID token's typ":          {header: claims{"typ": "id_token+jwt"}, reason: "wrong_type"},
		"another issuer":             {claims: claims{"iss": "https://login.example/"}, reason: "wrong_issuer"},
		"in the name of Kluis' own":  {claims: claims{"iss": w.ready.IssuerURL}, reason: "unknown_kid"},
		"no issuer":                  {claims: claims{"iss": nil}, reason: "wrong_issuer"},
		"another audience":           {claims: claims{"aud": "urn:somebody:else"}, reason: "wrong_audience"},
		"several audiences":          {claims: claims{"aud": []string{w.ready.Audience, "urn:somebody:else"}}, reason: "wrong_audience"},
		"no audience":                {claims: claims{"aud": nil}, reason: "wrong_audience"},
		"expired":                    {claims: claims{"iat": now - 200, "exp": now - 1}, reason: "expired"},
		"no expiry":                  {claims: claims{"exp": nil}, reason: "no_expiry"},
		"expiry as text":             {claims: claims{"exp": fmt.Sprint(now + 100)}, reason: "no_expiry"},
		"lives too long":             {claims: claims{"exp": now + 86400}, reason: "lives_too_long"},
		"from the future":            {claims: claims{"iat": now + 60, "exp": now + 200}, reason: "issued_in_the_future"},
		"not yet valid":              {claims: claims{"nbf": now + 120}, reason: "not_yet_valid"},
		"no time of issue":           {claims: claims{"iat": nil}, reason: "no_time_of_issue"},
		"no cnf":                     {claims: claims{"cnf": nil}, reason: "not_bound_to_a_certificate"},
		"empty cnf":                  {claims: claims{"cnf": claims{}}, reason: "not_bound_to_a_certificate"},
		"cnf by key":                 {claims: claims{"cnf": claims{"jkt": thumbprint(a.cert)}}, reason: "not_bound_to_a_certificate"},
		"cnf of another supplier":    {claims: claims{"cnf": claims{"x5t#S256": thumbprint(b.cert)}}, reason: "bound_to_another_certificate"},
		"cnf of nobody":              {claims: claims{"cnf": claims{"x5t#S256": thumbprint(stranger)}}, reason: "bound_to_another_certificate"},
		"no jti":                     {claims: claims{"jti": nil}, reason: "no_jti"},
		"another supplier's subject": {claims: claims{"sub": b.clientID, "client_id": b.clientID}, reason: "certificate_not_registered"},
		"subject of nobody":          {claims: claims{"sub": "8712999999990", "client_id": "8712999999990"}, reason: "record_of_another_supplier"},
		"subject is no GLN":          {claims: claims{"sub": "admin", "client_id": "admin"}, reason: "subject_not_a_gln"},
		"client is not the subject":  {claims: claims{"client_id": b.clientID}, reason: "client_is_not_subject"},
		"a role besides":             {claims: claims{"roles": []string{"agent"}}, reason: "role_or_errand_of_a_supplier"},
		"an errand besides":          {claims: claims{"authorization_details": []any{}}, reason: "role_or_errand_of_a_supplier"},
		"the scope of employees":     {claims: claims{"scope": "readings:read customer-service"}, reason: "scope_of_employees"},
		"an employee": {claims: claims{
			"sub": "https://login.example#eva", "client_id": w.ready.Portal.ClientID, "scope": "customer-service", "roles": []string{"agent"},
			"authorization_details": []claims{{"type": "urn:kluis:errand:view", "ean": point.EAN, "reason": "x"}},
		}, reason: "issuer_names_no_employees"},
		"scope twice":     {claims: claims{"scope": "readings:read readings:read"}, reason: "malformed_scope"},
		"scope as a list": {claims: claims{"scope": []string{"readings:read"}}, reason: "malformed_scope"},
	} {
		t.Run(name, func(t *testing.T) {
			token := e.sign(t, "PS256", tc.header, e.good(a).with(tc.claims))
			w.refused(t, a.with(t, token, path), side.log, tc.reason, invalidToken)
			if err := crypto.open(t, token, a.clientID, point, billing); !refusedByCryptoserver(err) {
				t.Errorf("the cryptoserver: %v", err)
			}
		})
	}
	// A certificate of the suppliers' CA that is nobody's: the issuer's word
	// does not register it.
	nobody := w.caller(t, a.clientID, &stranger).at(t, side.url)
	token := e.sign(t, "ES256", nil, e.good(nobody))
	w.refused(t, nobody.with(t, token, path), side.log, "certificate_not_registered", invalidToken)
	if err := crypto.open(t, token, a.clientID, point, billing); !refusedByCryptoserver(err) {
		t.Errorf("a certificate of nobody, at the cryptoserver: %v", err)
	}
	// A method that is not the key's own, though the signature is valid for it.
	for _, alg := range []string{"RS256", "PS384", "PS512"} {
		token := signed(t, alg, e.ps256, claims{"alg": alg, "typ": "at+jwt", "kid": "PS256"}, e.good(a))
		w.refused(t, a.with(t, token, path), side.log, "wrong_algorithm", invalidToken)
		if err := crypto.open(t, token, a.clientID, point, billing); !refusedByCryptoserver(err) {
			t.Errorf("%s, at the cryptoserver: %v", alg, err)
		}
	}
	// Duplicate members read differently by different parsers: none is read.
	twice := twiceSubject(t, e, e.good(a), b.clientID)
	w.refused(t, a.with(t, twice, path), side.log, "malformed_claims", invalidToken)
	if err := crypto.open(t, twice, a.clientID, point, billing); !refusedByCryptoserver(err) {
		t.Errorf("duplicate members, at the cryptoserver: %v", err)
	}

	for name, scope := range map[string]any{"none": nil, "empty": "", "another": "consents:write", "longer": "readings:read:all", "upper case": "READINGS:READ"} {
		token := e.sign(t, "ES256", nil, e.good(a).with(claims{"scope": scope}))
		got := a.with(t, token, path)
		if got.status != http.StatusForbidden || got.slug() != "insufficient-scope" || got.header.Get("WWW-Authenticate") != noScope {
			t.Errorf("scope %s: %d %s %q", name, got.status, got.body, got.header.Get("WWW-Authenticate"))
		}
		if err := crypto.open(t, token, a.clientID, point, billing); !refusedByCryptoserver(err) {
			t.Errorf("scope %s, at the cryptoserver: %v", name, err)
		}
	}
	// The gateway of the demo knows nothing of this issuer.
	w.refused(t, w.supplier(t, 0).with(t, e.sign(t, "ES256", nil, e.good(a)), path), w.gatewayLog(), "wrong_issuer", invalidToken)
}

// twiceSubject is a token, validly signed, that names two subjects.
func twiceSubject(t testing.TB, e *externalIssuer, c claims, second string) string {
	t.Helper()
	head, _ := json.Marshal(claims{"alg": "ES256", "typ": "at+jwt", "kid": "ES256"})
	body, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	body = append(body[:len(body)-1], []byte(`,"sub":"`+second+`"}`)...)
	input := b64(head) + "." + b64(body)
	sig, err := jwt.SigningMethodES256.Sign(input, e.es256)
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + b64(sig)
}

// capturedGateway is an attacker with the gateway's certificate and the
// database: it presents whatever it likes to a cryptoserver.
type capturedGateway struct {
	w    *world
	pool *client.Client
}

func (w *world) captured(t testing.TB, addresses ...string) *capturedGateway {
	t.Helper()
	pki := filepath.Join(w.state, "pki")
	conf, err := config.ClientTLS(config.TLS{CertificateFile: filepath.Join(pki, "gateway.crt"), KeyFile: filepath.Join(pki, "gateway.key"), CAFile: w.ready.CAFile})
	if err != nil {
		t.Fatal(err)
	}
	pool, err := client.New(client.Config{Addresses: addresses, TLS: conf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	})
	return &capturedGateway{w, pool}
}

// open presents a token with all the evidence there is for a supplier and a
// metering point; no block is needed for the decision.
func (g *capturedGateway) open(t testing.TB, token, gln string, p readyPoint, a readyAccess) error {
	t.Helper()
	g.w.secrets.token(token)
	var record, file []byte
	if err := g.w.db.QueryRow(`SELECT record FROM supplier WHERE gln = $1 ORDER BY version DESC LIMIT 1`, gln).Scan(&record); err != nil {
		t.Fatal(err)
	}
	if err := g.w.db.QueryRow(`SELECT file FROM legal_file WHERE ean = $1 ORDER BY version DESC LIMIT 1`, p.EAN).Scan(&file); err != nil {
		t.Fatal(err)
	}
	profile := g.w.profile(t)
	request := authz.Request{EAN: must(meter.ParseEAN(p.EAN)), Purpose: must(meter.ParsePurpose(a.Purpose)),
		Days: meter.DayRange{From: must(meter.ParseDay(a.From)), To: must(meter.ParseDay(a.To))}}
	for _, name := range a.Fields {
		f, _ := profile.Field(name)
		request.Fields = append(request.Fields, f.Code)
	}
	units, err := g.pool.Open(context.Background(), client.OpenRequest{
		AccessToken: token, SupplierRecord: record, Profile: profile.Digest(),
		Units: []client.Unit{{InteractionID: [16]byte{1}, LegalFile: file, Request: request}},
	})
	if err != nil {
		return err
	}
	return units[0].Err
}

func refusedByCryptoserver(err error) bool {
	return errors.Is(err, client.ErrTokenRefused) || errors.Is(err, client.ErrSupplierRefused)
}

// profile is the market profile that the world's processes use.
func (w *world) profile(t testing.TB) *meter.Profile {
	t.Helper()
	yaml, err := os.ReadFile(filepath.Join(w.state, "profile", "nl.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := meter.ParseProfile(yaml)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// supplies: the supplier may read something of it.
func supplies(p readyPoint, gln string) bool {
	for _, a := range p.Access {
		if a.Supplier == gln {
			return true
		}
	}
	return false
}

// accessFor is what a supplier may read on a basis.
func accessFor(t testing.TB, p readyPoint, gln, basis string) readyAccess {
	t.Helper()
	for _, a := range p.Access {
		if a.Supplier == gln && a.Basis == basis {
			return a
		}
	}
	t.Fatalf("%s gives %s nothing", basis, gln)
	return readyAccess{}
}

// newSupplier registers a supplier of the test's own, with one certificate.
func (w *world) newSupplier(t testing.TB, gln string) (*caller, string) {
	t.Helper()
	cert, file := w.certificateFile(t, devpki.Leaf{CommonName: "supplier of a test"})
	w.kluis(t, "supplier", "add", "--gln", gln, "--name", "Supplier of a test", "--certificate", file)
	return w.caller(t, gln, &cert), file
}

// certificateFile issues a client certificate and writes it, without its key.
func (w *world) certificateFile(t testing.TB, l devpki.Leaf) (tls.Certificate, string) {
	t.Helper()
	cert := w.pair(t, l)
	file := filepath.Join(t.TempDir(), "client.crt")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	return cert, file
}
