package issuer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"

	"kluis/authz"
	"kluis/internal/authn"
	"kluis/internal/devpki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestToken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		cert  func(*world) tls.Certificate
		form  url.Values
		scope string
	}{
		"no scope asked":     {func(w *world) tls.Certificate { return w.a }, form(), authn.ScopeReadings},
		"scope asked":        {func(w *world) tls.Certificate { return w.a }, form("scope", authn.ScopeReadings), authn.ScopeReadings},
		"scope empty":        {func(w *world) tls.Certificate { return w.a }, form("scope", ""), authn.ScopeReadings},
		"all scopes":         {func(w *world) tls.Certificate { return w.b }, form("client_id", glnB), "other:scope " + authn.ScopeReadings},
		"one of two":         {func(w *world) tls.Certificate { return w.b }, form("client_id", glnB, "scope", authn.ScopeReadings), authn.ScopeReadings},
		"unknown parameters": {func(w *world) tls.Certificate { return w.a }, form("resource", "x", "foo", ""), authn.ScopeReadings},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cert := c.cert(w)
			got := w.ask(&cert, c.form)
			if got.status != http.StatusOK {
				t.Fatalf("%d %s", got.status, got.body)
			}
			for h, want := range map[string]string{
				"Content-Type": "application/json", "Cache-Control": "no-store", "Pragma": "no-cache", "X-Content-Type-Options": "nosniff",
			} {
				if v := got.header.Get(h); v != want {
					t.Errorf("%s: %q, want %q", h, v, want)
				}
			}
			m := got.json(t)
			raw, _ := m["access_token"].(string)
			tok, err := w.verifier.Verify(t.Context(), raw, authn.Thumbprint(cert.Leaf))
			if err != nil {
				t.Fatal(err)
			}
			if tok.Client().String() != c.form.Get("client_id") {
				t.Errorf("token of %s", tok.Client())
			}
			in, _ := m["expires_in"].(float64)
			if left := time.Until(tok.ExpiresAt()).Seconds(); in > 300 || in < 290 || in > left+2 {
				t.Errorf("expires_in %v, in truth %v s", in, left)
			}
			if m["token_type"] != "Bearer" || m["scope"] != c.scope || len(m) != 4 {
				t.Errorf("%v", m)
			}
			w.stop() // the log is complete
			if log := w.log.String(); strings.Contains(log, raw) || strings.Contains(log, raw[:20]) {
				t.Error("the token is in the log")
			} else if !strings.Contains(log, `"client_id":"`+c.form.Get("client_id")+`"`) || strings.Count(log, `"msg":"request"`) != 1 ||
				strings.Contains(log, `"cause"`) || !strings.Contains(log, `"status":200`) {
				t.Errorf("log: %s", log)
			}
		})
	}
}

// TestClientRefusedAlike: whatever is wrong with a client, the answer is the
// same to the byte, nothing is signed, and where a supplier is named the same
// statement runs once.
func TestClientRefusedAlike(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	suspended := w.seal(authz.SupplierFacts{GLN: gln(t, glnNobody), Name: "Suspended", Suspended: true, Scopes: []string{authn.ScopeReadings},
		Certificates: []authz.Certificate{{Thumbprint: authn.Thumbprint(w.strangers.Leaf), NotAfter: w.strangers.Leaf.NotAfter}}})
	var first *answer
	for _, c := range []struct {
		name   string
		cert   *tls.Certificate
		form   url.Values
		before func()
		asked  int
	}{
		{"unknown supplier", &w.a, form("client_id", glnNobody), nil, 1},
		{"certificate of another supplier", &w.b, form(), nil, 1},
		{"certificate registered for nobody", &w.strangers, form(), nil, 1},
		{"certificate revoked", &w.revoked, form(), nil, 1},
		{"supplier suspended", &w.strangers, form("client_id", glnNobody), func() { w.registry.records[glnNobody] = suspended }, 1},
		{"supplier unknown, scope too", &w.a, form("client_id", "8700000000001", "scope", "nonsense"), nil, 1},
		{"no certificate", nil, form(), nil, 0},
		{"client_id not a GLN", &w.a, form("client_id", "A"), nil, 0},
		{"client_id with a bad check digit", &w.a, form("client_id", "8712423010209"), nil, 0},
		{"client_id injection", &w.a, form("client_id", glnA+"' OR '1'='1"), nil, 0},
		{"client_id with a space", &w.a, form("client_id", glnA+" "), nil, 0},
	} {
		if c.before != nil {
			c.before()
		}
		asked, signed := w.calls()
		got := w.ask(c.cert, c.form)
		askedNow, signedNow := w.calls()
		if askedNow-asked != c.asked || signedNow != signed {
			t.Errorf("%s: %d statements and %d signatures, want %d and 0", c.name, askedNow-asked, signedNow-signed, c.asked)
		}
		got.header.Del("Date")
		if first == nil {
			first = &got
			if m := got.json(t); got.status != http.StatusUnauthorized || m["error"] != "invalid_client" || got.header.Get("Cache-Control") != "no-store" {
				t.Fatalf("%d %s", got.status, got.body)
			}
			continue
		}
		if got.status != first.status || got.body != first.body || fmt.Sprint(got.header) != fmt.Sprint(first.header) {
			t.Errorf("%s: %v\nwant %v", c.name, got, *first)
		}
	}
	// A refusal by the cryptoserver, which came after, looks alike too.
	w.signer.fails = func(context.Context) error { return fmt.Errorf("%w: for a test", ErrClientRefused) }
	got := w.ask(&w.a, form())
	got.header.Del("Date")
	if got.body != first.body || got.status != first.status {
		t.Errorf("refused by the cryptoserver: %v", got)
	}
}

func TestNoWayIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := must[*devpki.CA](t)(devpki.NewCA("suppliers")) // the same name
	foreign := must[tls.Certificate](t)(other.Issue(devpki.Leaf{CommonName: "A"}))
	expired := must[tls.Certificate](t)(w.suppliers.Issue(devpki.Leaf{CommonName: "A", NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}))
	for name, c := range map[string]struct {
		cert tls.Certificate
		max  uint16
	}{
		"certificate of another CA":       {foreign, 0},
		"certificate expired":             {expired, 0},
		"the service's own CA":            {must[tls.Certificate](t)(w.operator.Issue(devpki.Leaf{CommonName: "gateway"})), 0},
		"TLS 1.2 with a good certificate": {w.a, tls.VersionTLS12},
	} {
		conf := w.client(&c.cert).Transport.(*http.Transport).TLSClientConfig
		conf.MaxVersion = c.max
		conn, err := tls.Dial("tcp", w.addr, conf)
		if err == nil { // in TLS 1.3 the client hears of its refusal with its first read
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "remote error: tls:") {
			t.Errorf("%s: not refused by a TLS alert: %v", name, err)
		}
	}
	if asked, signed := w.calls(); asked+signed != 0 {
		t.Errorf("%d statements, %d signatures", asked, signed)
	}
}

func TestRequestRefused(t *testing.T) {
	t.Parallel()
	good := form().Encode()
	body := func(s string) func(*http.Request) { // with its length
		return func(r *http.Request) {
			n, err := http.NewRequest(http.MethodPost, r.URL.String(), strings.NewReader(s))
			if err != nil {
				panic(err)
			}
			r.Body, r.ContentLength, r.GetBody = n.Body, n.ContentLength, n.GetBody
		}
	}
	for name, c := range map[string]struct {
		change func(*http.Request)
		status int
		code   string
	}{
		"grant_type missing":         {body("client_id=" + glnA), 400, "invalid_request"},
		"grant_type empty":           {body("grant_type=&client_id=" + glnA), 400, "invalid_request"},
		"grant_type another":         {body(form("grant_type", "password").Encode()), 400, "unsupported_grant_type"},
		"grant_type of another case": {body(form("grant_type", "Client_Credentials").Encode()), 400, "unsupported_grant_type"},
		"grant_type twice":           {body(good + "&grant_type=client_credentials"), 400, "invalid_request"},
		"client_id missing":          {body("grant_type=client_credentials"), 400, "invalid_request"},
		"client_id twice":            {body(good + "&client_id=" + glnB), 400, "invalid_request"},
		"client_id twice, one empty": {body(good + "&client_id="), 400, "invalid_request"},
		"unknown parameter twice":    {body(good + "&x=1&x=2"), 400, "invalid_request"},
		"scope twice":                {body(good + "&scope=a&scope=b"), 400, "invalid_request"},
		"scope not registered":       {body(form("scope", "consents:write").Encode()), 400, "invalid_scope"},
		"scope partly registered":    {body(form("scope", authn.ScopeReadings+" admin").Encode()), 400, "invalid_scope"},
		"scope of employees":         {body(form("scope", authn.ScopeStaff).Encode()), 400, "invalid_scope"},
		"errand of a supplier":       {body(form("authorization_details", "[]").Encode()), 400, "invalid_authorization_details"},
		"scope malformed":            {body(form("scope", "a  b").Encode()), 400, "invalid_scope"},
		"scope repeated":             {body(form("scope", authn.ScopeReadings+" "+authn.ScopeReadings).Encode()), 400, "invalid_scope"},
		"scope with a quote":         {body(form("scope", `"`).Encode()), 400, "invalid_scope"},
		"malformed escape":           {body(good + "&x=%zz"), 400, "invalid_request"},
		"semicolons":                 {body(strings.ReplaceAll(good, "&", ";")), 400, "invalid_request"},
		"empty body":                 {body(""), 400, "invalid_request"},
		"oversized body":             {body(good + "&x=" + strings.Repeat("x", maxBody)), 413, "invalid_request"},
		"parameters in the query":    {func(r *http.Request) { r.URL.RawQuery = good }, 400, "invalid_request"},
		"an empty query":             {func(r *http.Request) { r.URL.ForceQuery = true }, 400, "invalid_request"},
		"JSON":                       {func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }, 400, "invalid_request"},
		"multipart":                  {func(r *http.Request) { r.Header.Set("Content-Type", "multipart/form-data; boundary=x") }, 400, "invalid_request"},
		"no content type":            {func(r *http.Request) { r.Header.Del("Content-Type") }, 400, "invalid_request"},
		"two content types":          {func(r *http.Request) { r.Header.Add("Content-Type", "application/x-www-form-urlencoded") }, 400, "invalid_request"},
		"another charset": {func(r *http.Request) {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-16")
		}, 400, "invalid_request"},
		"client secret":         {body(form("client_secret", "s").Encode()), 400, "invalid_request"},
		"client assertion":      {body(form("client_assertion", "s").Encode()), 400, "invalid_request"},
		"client assertion type": {body(form("client_assertion_type", "").Encode()), 400, "invalid_request"},
		"basic authentication":  {func(r *http.Request) { r.SetBasicAuth(glnA, "x") }, 400, "invalid_request"},
		"GET":                   {func(r *http.Request) { r.Method = http.MethodGet }, 405, "invalid_request"},
		"PUT":                   {func(r *http.Request) { r.Method = http.MethodPut }, 405, "invalid_request"},
		"another path":          {func(r *http.Request) { r.URL.Path = "/oauth2/token/" }, 404, "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if got := w.do(&w.a, w.request(good)); got.status != http.StatusOK {
				t.Fatalf("the request to start from: %d %s", got.status, got.body)
			}
			r := w.request(good)
			c.change(r)
			got := w.do(&w.a, r)
			if m := got.json(t); got.status != c.status || m["error"] != c.code || m["error_description"] == "" {
				t.Errorf("%d %s, want %d %s", got.status, got.body, c.status, c.code)
			}
			if got.header.Get("Cache-Control") != "no-store" {
				t.Error("may be cached")
			}
			if c.status == 405 && got.header.Get("Allow") != "POST" {
				t.Errorf("Allow: %q", got.header.Get("Allow"))
			}
			if _, signed := w.calls(); signed != 1 {
				t.Errorf("%d signatures, want that of the good request", signed)
			}
		})
	}
}

// TestDatabaseForged: what the database holds counts only under a seal key.
func TestDatabaseForged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	forger := softSealer{newKey(t)}
	own := must[*authz.Supplier](t)(authz.NewSupplier(nil, authz.SupplierFacts{GLN: gln(t, glnA), Name: "A", Scopes: []string{authn.ScopeReadings},
		Certificates: []authz.Certificate{{Thumbprint: authn.Thumbprint(w.strangers.Leaf), NotAfter: w.strangers.Leaf.NotAfter}}}, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Now()))
	good := w.registry.records[glnA]
	flipped := append([]byte{}, good...)
	flipped[len(flipped)/2] ^= 1
	for name, c := range map[string]struct {
		record []byte
		cert   tls.Certificate
	}{
		"sealed by another key": {must[[]byte](t)(authz.Seal(own.Payload(), forger)), w.strangers},
		"unsealed":              {own.Payload(), w.strangers},
		"a bit flipped":         {flipped, w.a},
		"cut":                   {good[:len(good)-1], w.a},
		"empty":                 {[]byte{}, w.a},
		"of another supplier":   {w.registry.records[glnB], w.b},
	} {
		w.registry.records[glnA] = c.record
		_, signed := w.calls()
		got := w.ask(&c.cert, form())
		if m := got.json(t); got.status != http.StatusInternalServerError || m["error"] != "server_error" {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		if _, now := w.calls(); now != signed {
			t.Errorf("%s: signed", name)
		}
	}
}

func TestBackEndsFail(t *testing.T) {
	t.Parallel()
	secret := errors.New("SELECT secret")
	for name, c := range map[string]struct {
		change func(*world)
		status int
		code   string
	}{
		"database away": {func(w *world) { w.registry.fails = secret }, 503, "temporarily_unavailable"},
		"cryptoservers away": {func(w *world) {
			w.signer.fails = func(context.Context) error { return fmt.Errorf("%w: %w", ErrUnavailable, secret) }
		}, 503, "temporarily_unavailable"},
		"cryptoservers too slow":   {func(w *world) { w.signer.fails = func(context.Context) error { return context.DeadlineExceeded } }, 503, "temporarily_unavailable"},
		"cryptoserver fails":       {func(w *world) { w.signer.fails = func(context.Context) error { return secret } }, 500, "server_error"},
		"cryptoserver call panics": {func(w *world) { w.signer.fails = func(context.Context) error { panic(secret) } }, 500, "server_error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			c.change(w)
			got := w.ask(&w.a, form())
			if m := got.json(t); got.status != c.status || m["error"] != c.code || m["access_token"] != nil {
				t.Errorf("%d %s", got.status, got.body)
			}
			if (got.header.Get("Retry-After") != "") != (c.status == 503) {
				t.Errorf("Retry-After: %q", got.header.Get("Retry-After"))
			}
			if strings.Contains(got.body, "secret") {
				t.Error("the cause is in the answer")
			}
			w.signer.mu.Lock()
			w.registry.fails, w.signer.fails = nil, nil
			w.signer.mu.Unlock()
			if got := w.ask(&w.a, form()); got.status != http.StatusOK {
				t.Errorf("after recovery: %d %s", got.status, got.body)
			}
			log := w.log.String()
			for _, part := range []string{`"level":"ERROR"`, `"error":"` + c.code + `"`, `"reason":"`, `"cause":"`} {
				if !strings.Contains(log, part) {
					t.Errorf("%s is not in the log", part)
				}
			}
			if strings.Contains(name, "panics") && (strings.Contains(log, "secret") || !strings.Contains(log, "issuer_test.go:")) {
				t.Errorf("the log of a panic must say where, and not the value: %s", log)
			}
		})
	}
}

func TestLogHoldsNothingSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const secret = "s3cr3t"
	r := w.request(form("client_secret", secret, "client_id", secret, "scope", secret).Encode())
	r.URL.RawQuery = "access_token=" + secret
	r.Header.Set("Authorization", "Bearer "+secret)
	r.Header.Set("User-Agent", secret)
	w.do(&w.a, r)
	w.do(&w.a, w.request(form("client_id", secret).Encode()))
	w.do(&w.a, w.request(form("scope", secret).Encode()))
	w.get("/" + secret)
	if log := w.log.String(); strings.Contains(log, secret) || strings.Count(log, `"msg":"request"`) != 4 {
		t.Errorf("log: %s", log)
	}
}

func TestPublicEndpoints(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	got := w.get("/.well-known/oauth-authorization-server")
	want := `{
  "issuer": "https://issuer.kluis.example",
  "token_endpoint": "https://issuer.kluis.example/oauth2/token",
  "jwks_uri": "https://issuer.kluis.example/oauth2/jwks",
  "scopes_supported": [
    "readings:read",
    "consents:write",
    "customer-service"
  ],
  "response_types_supported": [],
  "grant_types_supported": [
    "client_credentials",
    "urn:ietf:params:oauth:grant-type:token-exchange"
  ],
  "authorization_details_types_supported": [
    "urn:kluis:errand:readings",
    "urn:kluis:errand:view",
    "urn:kluis:errand:step",
    "urn:kluis:errand:find",
    "urn:kluis:errand:oversee",
    "urn:kluis:errand:supplier"
  ],
  "token_endpoint_auth_methods_supported": [
    "tls_client_auth"
  ],
  "tls_client_certificate_bound_access_tokens": true
}`
	if got.status != http.StatusOK || got.body != want || got.header.Get("Content-Type") != "application/json" {
		t.Errorf("metadata: %v", got)
	}
	got = w.get("/oauth2/jwks")
	if _, err := authn.PinnedKeys([]byte(got.body)); err != nil || got.header.Get("Content-Type") != "application/jwk-set+json" ||
		!strings.Contains(got.body, w.signer.kid) || strings.Contains(got.body, `"d"`) {
		t.Errorf("jwks: %v, %v", got, err)
	}
	for path, status := range map[string]int{"/healthz": 200, "/readyz": 200, "/": 404, "/oauth2": 404, "/oauth2/jwks/x": 404} {
		if got := w.get(path); got.status != status {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	r := must[*http.Request](t)(http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+w.addr+"/oauth2/jwks", nil))
	if got := w.do(nil, r); got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST to the keys: %v", got)
	}
}

func TestReady(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := time.Now()
	w.issuer.Now = func() time.Time { return now }
	w.ready = func(ctx context.Context) error {
		if _, has := ctx.Deadline(); !has {
			t.Error("asked without a deadline")
		}
		return errors.New("secret")
	}
	for range 5 {
		if err := w.issuer.ready(t.Context()); err == nil {
			t.Error("ready without back ends")
		}
	}
	if w.readyChecks != 1 {
		t.Errorf("the back ends were asked %d times in a moment", w.readyChecks)
	}
	if got := w.get("/readyz"); got.status != http.StatusServiceUnavailable || strings.Contains(got.body, "secret") {
		t.Errorf("%v", got)
	}
	if got := w.get("/healthz"); got.status != http.StatusOK {
		t.Errorf("alive: %v", got)
	}
	now, w.ready = now.Add(readyEvery), nil
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.issuer.ready(gone); err != nil { // one caller's going away is not the back ends'
		t.Error(err)
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	entered, release := make(chan struct{}), make(chan struct{})
	w.signer.fails = func(context.Context) error { close(entered); <-release; return nil }
	done := make(chan answer, 1)
	go func() { done <- w.ask(&w.a, form()) }()
	<-entered
	w.stop()
	for { // until nobody new is let in
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			break
		}
		c.Close()
		time.Sleep(time.Millisecond)
	}
	close(release)
	if got := <-done; got.status != http.StatusOK {
		t.Errorf("the request under way: %d %s", got.status, got.body)
	}
}

func TestDrainHasAnEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	entered, release := make(chan struct{}), make(chan struct{})
	w.signer.fails = func(context.Context) error { close(entered); <-release; return nil }
	cert := must[tls.Certificate](t)(w.operator.Issue(devpki.Leaf{CommonName: "issuer", Hosts: []string{"127.0.0.1"}}))
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- w.issuer.Serve(ctx, l, &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientCAs: w.suppliers.Pool(),
		}, 20*time.Millisecond)
	}()
	w.addr = l.Addr().String()
	cut := make(chan error, 1)
	cl, r := w.client(&w.a), w.request(form().Encode())
	go func() {
		resp, err := cl.Do(r)
		if err == nil {
			resp.Body.Close()
		}
		cut <- err
	}()
	<-entered
	cancel()
	if err := <-served; err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("serving ended with %v", err)
	}
	if err := <-cut; err == nil {
		t.Error("the request was answered")
	}
	close(release)
}

func TestNewAndServeRefuse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, change := range map[string]func(*Config){
		"no URL":        func(c *Config) { c.URL = "" },
		"plain HTTP":    func(c *Config) { c.URL = "http://issuer.kluis.example" },
		"a path":        func(c *Config) { c.URL = issuerURL + "/realm" },
		"a slash":       func(c *Config) { c.URL = issuerURL + "/" },
		"a query":       func(c *Config) { c.URL = issuerURL + "?x" },
		"a user":        func(c *Config) { c.URL = "https://user@issuer.kluis.example" },
		"no keys":       func(c *Config) { c.JWKS = []byte(`{"keys":[]}`) },
		"a private key": func(c *Config) { c.JWKS = []byte(strings.Replace(string(c.JWKS), `"kty"`, `"d": "AAAA", "kty"`, 1)) },
		"no seal keys":  func(c *Config) { c.SealKeys = nil },
		"no suppliers":  func(c *Config) { c.Suppliers = nil },
		"no signer":     func(c *Config) { c.Signer = nil },
		"no readiness":  func(c *Config) { c.Ready = nil },
		"no clock":      func(c *Config) { c.Now = nil },
		"no log":        func(c *Config) { c.Log = nil },
	} {
		c := w.issuer.Config
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, conf := range map[string]*tls.Config{
		"no TLS": nil, "no CA": {MinVersion: tls.VersionTLS13}, "TLS 1.2": {MinVersion: tls.VersionTLS12, ClientCAs: w.suppliers.Pool()},
	} {
		l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
		if err := w.issuer.Serve(t.Context(), l, conf, time.Second); err == nil {
			t.Errorf("%s: served", name)
		}
		if _, err := l.Accept(); err == nil {
			t.Errorf("%s: the listener was left open", name)
		}
	}
}

// TestBodyCutOff: what arrived before the connection broke is not taken for
// the whole.
func TestBodyCutOff(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest(http.MethodPost, "/oauth2/token", io.MultiReader(strings.NewReader(form().Encode()), iotest.ErrReader(io.ErrUnexpectedEOF)))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	form, err := parameters(r)
	var f *failure
	if !errors.As(err, &f) || f.reason != "body_unreadable" || form != nil {
		t.Errorf("%+v, %v", form, err)
	}
}

func FuzzTokenRequest(f *testing.F) {
	for _, s := range []string{
		form().Encode(), form("scope", "a b").Encode(), exchangeForm("x", "[{}]").Encode(), exchangeForm("x", "").Encode(), "grant_type=client_credentials&client_id=%00", "&&=&", "a=b;c=d", "%zz",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest(http.MethodPost, "/oauth2/token", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		form, err := parameters(r)
		var fail *failure
		if err != nil {
			if !errors.As(err, &fail) || fail.status < 400 || fail.status > 499 || form != nil {
				t.Fatalf("%+v, %v", form, err)
			}
			return
		}
		v, err := url.ParseQuery(body)
		if err != nil || v.Encode() != form.Encode() {
			t.Fatalf("%q read as %+v", body, form)
		}
		for name, values := range form {
			if len(values) != 1 || slices.Contains(otherCredentials, name) {
				t.Fatalf("%q read as %+v", body, form)
			}
		}
		errand, err := checkExchange(form)
		if err != nil {
			if !errors.As(err, &fail) || fail.status != 400 || errand != "" {
				t.Fatalf("%q, %v", errand, err)
			}
			return
		}
		if errand == "" || errand != v.Get("authorization_details") || v.Get("subject_token") == "" || v.Get("subject_token_type") != typeIDToken || v.Get("actor_token")+v.Get("audience")+v.Get("resource") != "" {
			t.Fatalf("%q read as an exchange for %q", body, errand)
		}
	})
}
