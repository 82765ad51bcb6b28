package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"kluis/internal/devpki"
)

// get reads an address of the issuer.
func get(t testing.TB, c *caller, path string) answer {
	t.Helper()
	res, err := c.http.Get(c.w.ready.IssuerURL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{status: res.StatusCode, header: res.Header, body: body}
}

func TestIssuerMetadataNeedsNoCertificate(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	nobody := w.caller(t, "", nil)
	a := get(t, nobody, "/.well-known/oauth-authorization-server")
	var meta map[string]any
	if err := json.Unmarshal(a.body, &meta); err != nil || a.status != http.StatusOK {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	for k, want := range map[string]any{
		"issuer": w.ready.IssuerURL, "token_endpoint": w.ready.IssuerURL + "/oauth2/token", "jwks_uri": w.ready.IssuerURL + "/oauth2/jwks",
		"tls_client_certificate_bound_access_tokens": true,
	} {
		if meta[k] != want {
			t.Errorf("%s is %v, want %v", k, meta[k], want)
		}
	}
	a = get(t, nobody, "/oauth2/jwks")
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal(a.body, &set); err != nil || a.status != http.StatusOK || len(set.Keys) != 2 {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	for _, k := range set.Keys {
		if k["alg"] != "ES256" || k["use"] != "sig" || k["d"] != "" || k["kid"] == "" {
			t.Errorf("key %v", k)
		}
	}
}

// What a token says, and that it lives at most five minutes.
func TestIssuedToken(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c := w.supplier(t, 0)
	a, err := c.askIssuer(t.Context(), url.Values{"grant_type": {"client_credentials"}, "client_id": {c.clientID}, "scope": {"readings:read"}})
	if err != nil {
		t.Fatal(err)
	}
	if a.status != 200 || a.TokenType != "Bearer" || a.Scope != "readings:read" || a.header.Get("Cache-Control") != "no-store" || a.ExpiresIn <= 0 || a.ExpiresIn > 300 {
		t.Errorf("%+v", a)
	}
	header, payload := parts(t, a.AccessToken)
	if header["typ"] != "at+jwt" || header["alg"] != "ES256" {
		t.Errorf("header %v", header)
	}
	for k, want := range map[string]any{"iss": w.ready.IssuerURL, "aud": w.ready.Audience, "sub": c.clientID, "client_id": c.clientID, "scope": "readings:read"} {
		if payload[k] != want {
			t.Errorf("%s is %v, want %v", k, payload[k], want)
		}
	}
	if life := payload["exp"].(float64) - payload["iat"].(float64); life <= 0 || life > 300 {
		t.Errorf("lives %v s", life)
	}
	if got := payload["cnf"].(map[string]any)["x5t#S256"]; got != thumbprint(c.cert) {
		t.Errorf("bound to %v", got)
	}
}

// Guards: parameters, the sealed record in Issuer.authenticate and, were that
// gone, the cryptoserver's own look at it in SignToken.
func TestIssuerRefuses(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c, b, nobody := w.supplier(t, 0), w.supplier(t, 1), w.caller(t, "", nil)
	stranger := w.pair(t, devpki.Leaf{CommonName: "stranger"})
	unregistered := w.caller(t, "8712999999990", &stranger)
	form := func(kv ...string) string {
		v := url.Values{}
		for i := 0; i+1 < len(kv); i += 2 {
			v.Add(kv[i], kv[i+1])
		}
		return v.Encode()
	}
	good := form("grant_type", "client_credentials", "client_id", c.clientID)
	const formType = "application/x-www-form-urlencoded"
	for name, tc := range map[string]struct {
		who          *caller
		method, path string
		contentType  string
		body         string
		auth         string
		status       int
		code         string
	}{
		"no certificate":             {who: nobody, body: good, status: 401, code: "invalid_client"},
		"certificate of another":     {who: b, body: good, status: 401, code: "invalid_client"},
		"certificate of nobody":      {who: unregistered, body: good, status: 401, code: "invalid_client"},
		"unknown client":             {who: unregistered, body: form("grant_type", "client_credentials", "client_id", "8712999999990"), status: 401, code: "invalid_client"},
		"known, as unknown client":   {who: c, body: form("grant_type", "client_credentials", "client_id", "8712999999990"), status: 401, code: "invalid_client"},
		"client id is no GLN":        {who: c, body: form("grant_type", "client_credentials", "client_id", "admin"), status: 401, code: "invalid_client"},
		"client id with SQL":         {who: c, body: form("grant_type", "client_credentials", "client_id", "8712000000011' OR 1=1--"), status: 401, code: "invalid_client"},
		"no client id":               {who: c, body: form("grant_type", "client_credentials"), status: 400, code: "invalid_request"},
		"no grant type":              {who: c, body: form("client_id", c.clientID), status: 400, code: "invalid_request"},
		"unknown grant":              {who: c, body: form("grant_type", "password", "client_id", c.clientID), status: 400, code: "unsupported_grant_type"},
		"token exchange of nothing":  {who: c, body: form("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "client_id", c.clientID), status: 400, code: "invalid_request"},
		"repeated grant type":        {who: c, body: good + "&grant_type=client_credentials", status: 400, code: "invalid_request"},
		"repeated client id":         {who: c, body: good + "&client_id=" + b.clientID, status: 400, code: "invalid_request"},
		"scope that is not its own":  {who: c, body: good + "&scope=customer-service", status: 400, code: "invalid_scope"},
		"one scope too many":         {who: c, body: good + "&scope=readings:read+customer-service", status: 400, code: "invalid_scope"},
		"malformed scope":            {who: c, body: good + "&scope=readings:read++x", status: 400, code: "invalid_scope"},
		"parameters in the query":    {who: c, path: "/oauth2/token?" + good, status: 400, code: "invalid_request"},
		"both":                       {who: c, path: "/oauth2/token?scope=x", body: good, status: 400, code: "invalid_request"},
		"a secret besides":           {who: c, body: good + "&client_secret=x", status: 400, code: "invalid_request"},
		"an assertion besides":       {who: c, body: good + "&client_assertion=x", status: 400, code: "invalid_request"},
		"an Authorization header":    {who: c, body: good, auth: "Basic YTpi", status: 400, code: "invalid_request"},
		"JSON":                       {who: c, contentType: "application/json", body: `{"grant_type":"client_credentials"}`, status: 400, code: "invalid_request"},
		"malformed escapes":          {who: c, body: good + "&scope=%zz", status: 400, code: "invalid_request"},
		"huge body":                  {who: c, body: good + "&x=" + strings.Repeat("a", 1<<20), status: 413, code: "invalid_request"},
		"GET":                        {who: c, method: http.MethodGet, status: 405, code: "invalid_request"},
		"GET with parameters":        {who: c, method: http.MethodGet, path: "/oauth2/token?" + good, status: 405, code: "invalid_request"},
		"PUT":                        {who: c, method: http.MethodPut, body: good, status: 405, code: "invalid_request"},
		"another path":               {who: c, path: "/oauth2/introspect", body: good, status: 404, code: "invalid_request"},
		"parent folder":              {who: c, path: "/oauth2/%2e%2e/oauth2/tokens", body: good, status: 404, code: "invalid_request"},
		"POST to the keys":           {who: c, path: "/oauth2/jwks", body: good, status: 405, code: "invalid_request"},
		"metadata of another method": {who: c, method: http.MethodDelete, path: "/.well-known/oauth-authorization-server", status: 405, code: "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.method == "" {
				tc.method = http.MethodPost
			}
			if tc.path == "" {
				tc.path = "/oauth2/token"
			}
			if tc.contentType == "" {
				tc.contentType = formType
			}
			req, err := http.NewRequestWithContext(t.Context(), tc.method, w.ready.IssuerURL+tc.path, bytes.NewReader([]byte(tc.body)))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", tc.contentType)
			if tc.auth != "" {
				req.Header.Set("Authorization", tc.auth)
			}
			a, err := tc.who.doIssuer(req)
			if err != nil {
				t.Fatal(err)
			}
			if a.status != tc.status || a.Error != tc.code || a.AccessToken != "" || a.Description == "" || a.header.Get("Cache-Control") != "no-store" {
				t.Errorf("%d %q %q, want %d %q", a.status, a.Error, a.Description, tc.status, tc.code)
			}
		})
	}
	// Unknown, and known by another certificate: the same answer.
	one, err := b.askIssuer(t.Context(), url.Values{"grant_type": {"client_credentials"}, "client_id": {c.clientID}})
	if err != nil {
		t.Fatal(err)
	}
	two, err := b.askIssuer(t.Context(), url.Values{"grant_type": {"client_credentials"}, "client_id": {"8712999999990"}})
	if err != nil {
		t.Fatal(err)
	}
	if one.Description != two.Description || one.Error != two.Error || one.status != two.status {
		t.Errorf("the issuer tells an unknown client from a known one: %+v %+v", one, two)
	}
}
