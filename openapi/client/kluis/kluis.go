// Package kluis is a client of Kluis for suppliers. The package it wraps,
// openapi/client, is generated from the contract and does exactly one request
// per call; this one adds what every supplier would otherwise write by itself:
// a token that is always fresh, problems as typed errors, tries that are
// repeated when and only when the contract says that it helps, pages without
// seams, and above all Query: readings of any number of metering points, each
// delivered exactly once, across whatever breaks, with the manifest checked at
// the end.
//
//	c, err := kluis.Open(kluis.Config{
//		Gateway: "https://…", Issuer: "https://…", ClientID: "8712000000011",
//		CAFile: "operator-ca.crt", CertificateFile: "supplier.crt", KeyFile: "supplier.key",
//	})
//	…
//	r, err := c.Readings(ctx, "871687200000000010", &client.GetReadingsParams{
//		From: kluis.Date(2026, 9, 1), To: kluis.Date(2026, 11, 1), Purpose: client.PurposeBILLING,
//	})
package kluis

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/openapi/client"
)

// Config says where Kluis is and who calls it.
type Config struct {
	Gateway  string // https://host:port of the API
	Issuer   string // https://host:port of the token issuer; its token endpoint is /oauth2/token
	ClientID string // the supplier's GLN
	Scope    string // of the tokens; "" for all that the client may have

	CAFile          string // PEM: the authority of the grid operator's servers
	CertificateFile string // PEM: the client certificate, as registered
	KeyFile         string // PEM: its private key
	// TLS replaces the three files; for keys in a token or an agent.
	TLS *tls.Config

	// ManifestKeys are the keys that manifests are accepted from, obtained
	// beforehand. Without them they are asked of the gateway when they are
	// needed: that finds loss and damage, but not a gateway that was taken over.
	ManifestKeys *client.JwkSet

	// Patience is how long in a row a request, or a stream without a new
	// metering point, is tried again. Zero is two minutes, negative is never.
	Patience time.Duration
	// Stall is how long a stream may be silent before it counts as broken.
	// Zero is one minute.
	Stall time.Duration
}

const (
	defaultPatience = 2 * time.Minute
	defaultStall    = time.Minute
	// maxBody bounds an answer that is not a stream.
	maxBody = 64 << 20
)

// Client calls Kluis as one supplier. It may be used by any number of
// goroutines.
type Client struct {
	config Config
	http   *http.Client
	tokens *tokens
	api    *client.ClientWithResponses
	sleep  func(context.Context, time.Duration) error
}

// Open reads the certificates. It makes no request yet.
func Open(c Config) (*Client, error) {
	for _, u := range []struct{ name, value string }{{"Gateway", c.Gateway}, {"Issuer", c.Issuer}} {
		if p, err := url.Parse(u.value); err != nil || p.Scheme != "https" || p.Host == "" {
			return nil, fmt.Errorf("kluis: %s must be https://host:port", u.name)
		}
	}
	if c.ClientID == "" {
		return nil, errors.New("kluis: ClientID is missing: the supplier's GLN")
	}
	conf, err := c.tls()
	if err != nil {
		return nil, fmt.Errorf("kluis: %w", err)
	}
	if c.Patience == 0 {
		c.Patience = defaultPatience
	}
	if c.Stall <= 0 {
		c.Stall = defaultStall
	}
	c.Gateway, c.Issuer = strings.TrimSuffix(c.Gateway, "/"), strings.TrimSuffix(c.Issuer, "/")
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = conf
	transport.ForceAttemptHTTP2 = true
	transport.Proxy = nil // a client certificate is for the gateway alone
	k := &Client{config: c, sleep: sleep}
	k.http = &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	k.tokens = &tokens{http: k.http, url: c.Issuer + "/oauth2/token", client: c.ClientID, scope: c.Scope, now: time.Now}
	k.api, err = client.NewClientWithResponses(c.Gateway, client.WithHTTPClient(patient{k}))
	return k, err
}

func (c Config) tls() (*tls.Config, error) {
	if c.TLS != nil {
		return c.TLS.Clone(), nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", c.CAFile)
	}
	pair, err := tls.LoadX509KeyPair(c.CertificateFile, c.KeyFile)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{pair}}, nil
}

// Close lets go of idle connections.
func (k *Client) Close() { k.http.CloseIdleConnections() }

// API is the generated client, for everything that has no method here. Its
// requests carry a token, and are tried again like those of the methods; Check
// makes an error of an answer.
func (k *Client) API() *client.ClientWithResponses { return k.api }

// Date is a local day of the market.
func Date(year int, month time.Month, day int) openapi_types.Date {
	return openapi_types.Date{Time: time.Date(year, month, day, 0, 0, 0, 0, time.UTC)}
}

// ParseDate reads YYYY-MM-DD.
func ParseDate(s string) (openapi_types.Date, error) {
	t, err := time.Parse(time.DateOnly, s)
	return openapi_types.Date{Time: t}, err
}

// Readings asks for the readings of one metering point.
func (k *Client) Readings(ctx context.Context, ean string, p *client.GetReadingsParams) (*client.Readings, error) {
	res, err := k.api.GetReadingsWithResponse(ctx, ean, p)
	if err != nil {
		return nil, err
	}
	return answer(res.JSON200, res.HTTPResponse, res.Body)
}

// Access asks what may be read of one metering point, and why not the rest.
// Nothing is decrypted.
func (k *Client) Access(ctx context.Context, ean string, p *client.GetAccessParams) (*client.Access, error) {
	res, err := k.api.GetAccessWithResponse(ctx, ean, p)
	if err != nil {
		return nil, err
	}
	return answer(res.JSON200, res.HTTPResponse, res.Body)
}

// Status asks how the service fares.
func (k *Client) Status(ctx context.Context) (*client.Status, error) {
	res, err := k.api.GetStatusWithResponse(ctx, nil)
	if err != nil {
		return nil, err
	}
	return answer(res.JSON200, res.HTTPResponse, res.Body)
}

// Check makes an error of an answer that is none of success: a *Problem where
// the gateway gave one.
func Check(res *http.Response, body []byte) error {
	if res.StatusCode >= 200 && res.StatusCode < 300 {
		return nil
	}
	return problemOf(res, body)
}

// answer is a parsed answer, or the problem that came in its place.
func answer[T any](parsed *T, res *http.Response, body []byte) (*T, error) {
	if err := Check(res, body); err != nil {
		return nil, err
	}
	if parsed == nil {
		return nil, fmt.Errorf("kluis: %s answered %s with %s", res.Request.URL.Path, res.Status, res.Header.Get("Content-Type"))
	}
	return parsed, nil
}

// patient sends requests of the generated client: with a token, and again when
// the contract says that it helps.
type patient struct{ k *Client }

func (p patient) Do(req *http.Request) (*http.Response, error) {
	wait := p.k.backoff()
	for renewed := false; ; {
		res, err := p.k.send(req, 0)
		if err != nil {
			if !repeatable(req) || permanent(err) || !wait.next(req.Context(), 0) {
				return nil, err
			}
			continue
		}
		if res.StatusCode < 400 {
			return res, nil
		}
		body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
		res.Body.Close()
		if err != nil {
			if !repeatable(req) || !wait.next(req.Context(), 0) {
				return nil, err
			}
			continue
		}
		res.Body = io.NopCloser(bytes.NewReader(body))
		problem := problemOf(res, body)
		if problem.Is(Unauthenticated) && !renewed {
			p.k.tokens.drop(req.Header.Get("Authorization"))
			renewed = true
			continue
		}
		if !repeatable(req) || !problem.Temporary() || !wait.next(req.Context(), problem.RetryAfter) {
			return res, nil
		}
	}
}

// repeatable: sent twice, the request changes nothing more than once.
func repeatable(r *http.Request) bool {
	return r.Method == http.MethodGet || r.Header.Get("Idempotency-Key") != "" ||
		slices.ContainsFunc(harmless, func(suffix string) bool { return strings.HasSuffix(r.URL.Path, suffix) })
}

// harmless are the ends of paths that may be posted to twice: those change
// nothing, or nothing more the second time.
var harmless = []string{"/v1/readings/query", "/v1/metering-points/find", "/v1/consents/preview", "/suspend", "/resume"}

// send sends a request once, with a token that lives for at least so long.
func (k *Client) send(req *http.Request, life time.Duration) (*http.Response, error) {
	token, err := k.tokens.get(req.Context(), life)
	if err != nil {
		return nil, err
	}
	if req.GetBody != nil {
		if req.Body, err = req.GetBody(); err != nil {
			return nil, err
		}
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return k.http.Do(req)
}

// decode reads JSON that must be all there is.
func decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}
