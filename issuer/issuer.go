// Package issuer is Kluis' authorisation server: OAuth 2.0 client credentials
// (RFC 6749, clause 4.4) for suppliers that authenticate with their TLS client
// certificate (RFC 8705, tls_client_auth), answered with an access token bound
// to that certificate, which a cryptoserver signs in the HSM.
//
// A client is a supplier: its client_id is its GLN, and its registration is
// its sealed record, verified here and again by the cryptoserver. The issuer
// holds no keys and keeps no state.
//
// The grid operator's own client, its customer-service portal, exchanges an
// employee's ID token for a token of one errand (RFC 8693, RFC 9396), which
// names the employee and is bound to the portal's certificate.
//
//	POST /oauth2/token                            the token endpoint
//	GET  /oauth2/jwks                             public keys (RFC 7517)
//	GET  /.well-known/oauth-authorization-server  metadata (RFC 8414)
//	GET  /healthz, /readyz                        probes
//
// Only the token endpoint needs a client certificate.
package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"kluis/authz"
	"kluis/internal/authn"
	"kluis/meter"
)

// Suppliers fetches sealed supplier records as they are stored at this moment.
// Nothing stored is nil without an error; an error means that the database did
// not serve.
type Suppliers interface {
	Supplier(ctx context.Context, gln meter.GLN) ([]byte, error)
}

// TokenSigner has a cryptoserver sign an access token for the supplier of a
// sealed record, bound to a certificate. It returns the token and when it
// expires. Its errors wrap ErrClientRefused when the cryptoserver does not
// accept supplier, certificate or scope, and ErrUnavailable when none could
// serve now.
//
// SignStaffToken does so for an errand of the employee whom an ID token names.
// ErrEmployeeRefused and ErrErrandRefused come with a method Text() string,
// which says what the portal is to be told.
type TokenSigner interface {
	SignToken(ctx context.Context, record []byte, thumbprint [32]byte, scopes []string, lifetime time.Duration) (string, time.Time, error)
	SignStaffToken(ctx context.Context, record []byte, thumbprint [32]byte, idToken, errand string, lifetime time.Duration) (string, time.Time, error)
}

// The errors of a TokenSigner that are answered in their own way.
var (
	ErrClientRefused   = errors.New("the cryptoserver refuses the supplier, certificate or scope")
	ErrEmployeeRefused = errors.New("the cryptoserver refuses the employee's ID token")
	ErrErrandRefused   = errors.New("the cryptoserver refuses the errand")
	ErrUnavailable     = errors.New("no cryptoserver serves")
)

const (
	// lifetime of every token.
	lifetime = authn.MaxLifetime
	// requestTimeout bounds the back ends of one request.
	requestTimeout = 8 * time.Second
	readyTimeout   = 2 * time.Second
	readyEvery     = time.Second
)

// Config is what an Issuer is made of. Everything is required but Operator.
type Config struct {
	URL       string // issuer identifier: https://host[:port], without a path
	JWKS      []byte // public keys of the cryptoservers' sign role
	SealKeys  *authz.SealKeys
	Suppliers Suppliers
	Signer    TokenSigner
	Operator  meter.GLN // the grid operator's own client; zero: no tokens are exchanged
	// Ready says whether both back ends serve; it returns by its context's
	// deadline. It is asked at most once a second.
	Ready func(ctx context.Context) error
	Now   func() time.Time
	Log   *slog.Logger
}

// Issuer serves the endpoints. Safe for concurrent use.
type Issuer struct {
	Config
	metadata []byte
	handler  http.Handler

	readyMu sync.Mutex
	readyAt time.Time
	readyIs error
}

// New checks the configuration: the JWK set must hold usable public keys only.
func New(c Config) (*Issuer, error) {
	if c.SealKeys == nil || c.Suppliers == nil || c.Signer == nil || c.Ready == nil || c.Now == nil || c.Log == nil {
		return nil, errors.New("issuer: a part is missing")
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || c.URL != "https://"+u.Host {
		return nil, errors.New("issuer: the URL must be https://host[:port] and nothing after it")
	}
	if _, err := authn.PinnedKeys(c.JWKS); err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	is := &Issuer{Config: c}
	scopes := []string{authn.ScopeReadings, authn.ScopeConsents}
	var details []string
	if is.exchanges() {
		scopes, details = append(scopes, authn.ScopeStaff), authn.ErrandTypes()
	}
	if is.metadata, err = json.MarshalIndent(metadata{
		Issuer:           c.URL,
		TokenEndpoint:    c.URL + "/oauth2/token",
		JWKSURI:          c.URL + "/oauth2/jwks",
		ScopesSupported:  scopes,
		ResponseTypes:    []string{},
		GrantTypes:       is.grantTypes(),
		DetailsTypes:     details,
		AuthMethods:      []string{"tls_client_auth"},
		CertificateBound: true,
	}, "", "  "); err != nil {
		return nil, err
	}
	is.handler = is.routes()
	return is, nil
}

// metadata is RFC 8414, clause 2, RFC 8705, clause 3.3, and RFC 9396, clause 10. No response type is
// supported, but the member is required.
type metadata struct {
	Issuer           string   `json:"issuer"`
	TokenEndpoint    string   `json:"token_endpoint"`
	JWKSURI          string   `json:"jwks_uri"`
	ScopesSupported  []string `json:"scopes_supported"`
	ResponseTypes    []string `json:"response_types_supported"`
	GrantTypes       []string `json:"grant_types_supported"`
	DetailsTypes     []string `json:"authorization_details_types_supported,omitempty"`
	AuthMethods      []string `json:"token_endpoint_auth_methods_supported"`
	CertificateBound bool     `json:"tls_client_certificate_bound_access_tokens"`
}

func (is *Issuer) jwks(w http.ResponseWriter, _ *http.Request, _ *event) error {
	return static(w, "application/jwk-set+json", is.JWKS)
}

func (is *Issuer) discovery(w http.ResponseWriter, _ *http.Request, _ *event) error {
	return static(w, "application/json", is.metadata)
}

// static serves what changes with a restart at most.
func static(w http.ResponseWriter, contentType string, body []byte) error {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "public, max-age=300")
	_, err := w.Write(body)
	return writeFailed(err)
}

func (is *Issuer) healthz(w http.ResponseWriter, _ *http.Request, _ *event) error {
	return probe(w)
}

func (is *Issuer) readyz(w http.ResponseWriter, r *http.Request, _ *event) error {
	if err := is.ready(r.Context()); err != nil {
		return unavailable("not_ready", err)
	}
	return probe(w)
}

func probe(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, err := w.Write([]byte("ok\n"))
	return writeFailed(err)
}

// ready asks the back ends at most once a second: anyone may call /readyz.
func (is *Issuer) ready(ctx context.Context) error {
	is.readyMu.Lock()
	defer is.readyMu.Unlock()
	if now := is.Now(); is.readyAt.IsZero() || now.Sub(is.readyAt).Abs() >= readyEvery {
		// One caller that goes away must not make it look down to all.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyTimeout)
		defer cancel()
		is.readyIs, is.readyAt = is.Ready(ctx), now
	}
	return is.readyIs
}
