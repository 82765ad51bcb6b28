package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/openapi/client"
)

// caller is somebody with a client certificate and the generated client. Every
// answer of a gateway to it is checked against the contract and for secrets.
type caller struct {
	w        *world
	clientID string // GLN; "" for a stranger
	cert     tls.Certificate
	http     *http.Client
	api      *client.ClientWithResponses // sends a token of the issuer
	gateway  string                      // base URL

	mu      sync.Mutex
	token   string
	expires time.Time
}

// supplier is the demo's n-th supplier.
func (w *world) supplier(t testing.TB, n int) *caller {
	t.Helper()
	return w.supplierNamed(t, w.ready.Suppliers[n].ID)
}

// supplierNamed is the demo's supplier with this GLN.
func (w *world) supplierNamed(t testing.TB, gln string) *caller {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if c, ok := w.callers[gln]; ok {
		return c
	}
	i := slices.IndexFunc(w.ready.Suppliers, func(s readySupplier) bool { return s.ID == gln })
	if i < 0 {
		t.Fatalf("the demo has no supplier %s", gln)
	}
	s := w.ready.Suppliers[i]
	cert, err := tls.LoadX509KeyPair(s.CertificateFile, s.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	c := w.newCaller(t, s.ClientID, w.ready.GatewayURL, &cert)
	w.callers[gln] = c
	return c
}

// caller calls with a certificate; nil for none. The client id is what it
// says to the issuer.
func (w *world) caller(t testing.TB, clientID string, cert *tls.Certificate) *caller {
	t.Helper()
	c := w.newCaller(t, clientID, w.ready.GatewayURL, cert)
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

// at is the same caller at another gateway.
func (c *caller) at(t testing.TB, gatewayURL string) *caller {
	t.Helper()
	other := c.w.newCaller(t, c.clientID, gatewayURL, &c.cert)
	t.Cleanup(other.http.CloseIdleConnections)
	return other
}

func (w *world) newCaller(t testing.TB, clientID, gatewayURL string, cert *tls.Certificate) *caller {
	t.Helper()
	conf := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: w.roots}
	c := &caller{w: w, clientID: clientID, gateway: gatewayURL}
	if cert != nil {
		c.cert = *cert
		// Whatever the server says it accepts: this one is sent.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	c.http = &http.Client{
		Timeout: time.Minute,
		Transport: checked{w, &http.Transport{
			TLSClientConfig: conf, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	api, err := client.NewClientWithResponses(gatewayURL, client.WithHTTPClient(c.http),
		client.WithRequestEditorFn(func(ctx context.Context, r *http.Request) error {
			token, err := c.cachedToken(ctx)
			if err != nil {
				return err
			}
			r.Header.Set("Authorization", "Bearer "+token)
			return nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	c.api = api
	return c
}

// checked holds every answer of a gateway to the contract.
type checked struct {
	w *world
	*http.Transport
}

func (c checked) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := c.Transport.RoundTrip(r)
	if err != nil || strings.HasPrefix(r.URL.String(), c.w.ready.IssuerURL) {
		return res, err
	}
	body, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return nil, err
	}
	if err := c.w.checkAnswer(r, res, body); err != nil {
		return nil, fmt.Errorf("%s %s: %d: %w", r.Method, r.URL.Path, res.StatusCode, err)
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	return res, nil
}

// checkAnswer holds an answer to the contract; a problem must not repeat
// anything secret.
func (w *world) checkAnswer(r *http.Request, res *http.Response, body []byte) error {
	if res.StatusCode == http.StatusRequestHeaderFieldsTooLarge {
		return nil // of the HTTP layer, before the API
	}
	if err := w.contract.check(r, res, body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusCreated {
		if err := w.secrets.search(body); err != nil {
			return fmt.Errorf("the answer repeats %w", err)
		}
		return nil
	}
	if strings.HasSuffix(r.URL.Path, "/readings") {
		for _, v := range decimals.FindAllString(string(body), -1) {
			w.secrets.read(v)
		}
	}
	return nil
}

// issued is an answer of the token endpoint.
type issued struct {
	status int
	header http.Header

	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int    `json:"expires_in"`
	Scope       string `json:"scope"`
	Error       string `json:"error"`
	Description string `json:"error_description"`
}

// askIssuer posts a form to the token endpoint.
func (c *caller) askIssuer(ctx context.Context, form url.Values) (issued, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.w.ready.IssuerURL+"/oauth2/token", strings.NewReader(form.Encode()))
	if err != nil {
		return issued{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return c.doIssuer(req)
}

func (c *caller) doIssuer(req *http.Request) (issued, error) {
	res, err := c.http.Do(req)
	if err != nil {
		return issued{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return issued{}, err
	}
	a := issued{status: res.StatusCode, header: res.Header}
	if req.Method == http.MethodHead {
		return a, nil
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return a, fmt.Errorf("the issuer answered %d with %q: %w", res.StatusCode, body, err)
	}
	if a.AccessToken != "" {
		c.w.secrets.token(a.AccessToken)
	}
	return a, nil
}

// cachedToken is a token with some life left.
func (c *caller) cachedToken(ctx context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Until(c.expires) > time.Minute {
		return c.token, nil
	}
	a, err := c.askIssuer(ctx, url.Values{"grant_type": {"client_credentials"}, "client_id": {c.clientID}})
	if err != nil {
		return "", err
	}
	if a.status != http.StatusOK {
		return "", fmt.Errorf("no token: %d %s: %s", a.status, a.Error, a.Description)
	}
	c.token, c.expires = a.AccessToken, time.Now().Add(time.Duration(a.ExpiresIn)*time.Second)
	return c.token, nil
}

// accessToken is a token of the issuer for this caller.
func (c *caller) accessToken(t testing.TB) string {
	t.Helper()
	token, err := c.cachedToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// answer is what a gateway said.
type answer struct {
	status int
	header http.Header
	body   []byte
	client.Problem
}

func (a answer) slug() string { return slug(string(a.Type)) }

// get sends GET with exactly these values of Authorization.
func (c *caller) get(t testing.TB, pathAndQuery string, authorization ...string) answer {
	t.Helper()
	return c.send(t, http.MethodGet, pathAndQuery, nil, authorization...)
}

// with sends GET with a token.
func (c *caller) with(t testing.TB, token, pathAndQuery string) answer {
	t.Helper()
	c.w.secrets.token(token)
	return c.get(t, pathAndQuery, "Bearer "+token)
}

func (c *caller) send(t testing.TB, method, pathAndQuery string, body io.Reader, authorization ...string) answer {
	t.Helper()
	a, err := c.trySend(t.Context(), method, pathAndQuery, body, authorization...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (c *caller) trySend(ctx context.Context, method, pathAndQuery string, body io.Reader, authorization ...string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.gateway+pathAndQuery, body)
	if err != nil {
		return answer{}, err
	}
	for _, a := range authorization {
		req.Header.Add("Authorization", a)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	return readAnswer(res)
}

func readAnswer(res *http.Response) (answer, error) {
	a := answer{status: res.StatusCode, header: res.Header}
	var err error
	if a.body, err = io.ReadAll(res.Body); err != nil {
		return a, err
	}
	if len(a.body) > 0 && res.Header.Get("Content-Type") == "application/problem+json" {
		err = json.Unmarshal(a.body, &a.Problem)
	}
	return a, err
}

// readings asks with the generated client.
func (c *caller) readings(t testing.TB, ean string, p client.GetReadingsParams) client.Readings {
	t.Helper()
	res, err := c.api.GetReadingsWithResponse(t.Context(), ean, &p)
	if err != nil {
		t.Fatal(err)
	}
	if res.JSON200 == nil {
		t.Fatalf("%d: %s", res.StatusCode(), res.Body)
	}
	return *res.JSON200
}

// readingsPath is the path and query of a request for readings.
func readingsPath(ean, from, to, purpose string, more ...string) string {
	q := url.Values{"from": {from}, "to": {to}, "purpose": {purpose}}
	for i := 0; i+1 < len(more); i += 2 {
		q.Add(more[i], more[i+1])
	}
	return "/v1/metering-points/" + url.PathEscape(ean) + "/readings?" + q.Encode()
}
