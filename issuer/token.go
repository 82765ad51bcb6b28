package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"kluis/authz"
	"kluis/internal/authn"
	"kluis/meter"
)

// The grant types (RFC 6749, clause 4.4; RFC 8693, clause 2.1).
const (
	grantClientCredentials = "client_credentials"
	grantTokenExchange     = "urn:ietf:params:oauth:grant-type:token-exchange"
)

// maxBody lets an ID token in with every group of a person, and an errand.
const maxBody = 32 << 10

// otherCredentials are the parameters of client authentication methods that
// are not served; a request must use one method only (RFC 6749, clause 2.3).
var otherCredentials = []string{"client_secret", "client_assertion", "client_assertion_type"}

// parameters is RFC 6749, clause 3.2: parameters in the form body only, none
// repeated, an empty one is an omitted one, unknown ones are ignored. Their
// client is not yet authenticated.
func parameters(r *http.Request) (url.Values, error) {
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		return nil, invalidRequest("parameters_in_query", "Parameters belong into the body, not into the URL.")
	}
	if len(r.Header.Values("Authorization")) > 0 {
		return nil, invalidRequest("authorization_header", "Clients authenticate with their TLS certificate only: leave the Authorization header out.")
	}
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset, hasCharset := params["charset"]
	if err != nil || media != "application/x-www-form-urlencoded" || hasCharset && !strings.EqualFold(charset, "utf-8") || len(r.Header.Values("Content-Type")) > 1 {
		return nil, invalidRequest("content_type", "The body must be application/x-www-form-urlencoded.")
	}
	body, err := io.ReadAll(r.Body)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &failure{status: http.StatusRequestEntityTooLarge, code: codeInvalidRequest, reason: "body_too_large",
			description: fmt.Sprintf("The body must not exceed %d bytes.", maxBody)}
	case err != nil:
		return nil, invalidRequest("body_unreadable", "The body could not be read.")
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, invalidRequest("malformed_form", "The body is not a valid form.")
	}
	for _, v := range form {
		if len(v) > 1 {
			return nil, invalidRequest("repeated_parameter", "A parameter is repeated.")
		}
	}
	for _, name := range otherCredentials {
		if form.Has(name) {
			return nil, invalidRequest("other_credentials", "Clients authenticate with their TLS certificate only: leave client_secret and client_assertion out.")
		}
	}
	return form, nil
}

// token is the token endpoint.
func (is *Issuer) token(w http.ResponseWriter, r *http.Request, e *event) error {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	form, err := parameters(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	var answer *tokenResponse
	switch grant := form.Get("grant_type"); {
	case grant == grantClientCredentials:
		answer, err = is.clientCredentials(ctx, r, form, e)
	case grant == grantTokenExchange && is.exchanges():
		answer, err = is.exchange(ctx, r, form, e)
	case grant == "":
		err = invalidRequest("no_grant_type", "The parameter grant_type is missing: it must be "+strings.Join(is.grantTypes(), " or ")+".")
	default:
		err = &failure{status: http.StatusBadRequest, code: "unsupported_grant_type", reason: "grant_type",
			description: "The parameter grant_type must be " + strings.Join(is.grantTypes(), " or ") + "."}
	}
	if err != nil {
		return err
	}
	body, err := json.Marshal(answer)
	if err != nil {
		return internal("encoding", err)
	}
	noStore(w)
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(body)
	return writeFailed(err)
}

func (is *Issuer) grantTypes() []string {
	if is.exchanges() {
		return []string{grantClientCredentials, grantTokenExchange}
	}
	return []string{grantClientCredentials}
}

// clientCredentials gives a supplier a token (RFC 6749, clause 4.4.2).
func (is *Issuer) clientCredentials(ctx context.Context, r *http.Request, form url.Values, e *event) (*tokenResponse, error) {
	var scopes []string // nil: whatever the supplier may have
	if s := form.Get("scope"); s != "" {
		var ok bool
		if scopes, ok = authn.ParseScope(s); !ok {
			return nil, invalidScope("malformed_scope")
		}
	}
	if form.Get("authorization_details") != "" {
		return nil, invalidDetails("details_of_a_supplier", "Tokens of suppliers have no authorization_details: leave the parameter out.", nil)
	}
	c, err := is.authenticate(ctx, r, form, e)
	if err != nil {
		return nil, err
	}
	// The scope of employees comes with an employee only, whose record it is in.
	held := slices.DeleteFunc(c.record.Scopes(), func(s string) bool { return s == authn.ScopeStaff })
	if scopes == nil {
		scopes = held
	}
	if len(scopes) == 0 {
		return nil, invalidScope("no_scope_registered")
	}
	for _, s := range scopes {
		if !slices.Contains(held, s) {
			return nil, invalidScope("scope_not_registered")
		}
	}
	raw, expires, err := is.Signer.SignToken(ctx, c.sealed, c.leaf, scopes, lifetime)
	if err != nil {
		return nil, signingFailed(err)
	}
	return is.bearer(raw, expires, scopes), nil
}

// client is an authenticated client.
type client struct {
	leaf   [32]byte // thumbprint of its certificate
	sealed []byte
	record *authz.Supplier
}

// authenticate is tls_client_auth (RFC 8705, clause 2.1): the certificate is in
// the sealed record of the client_id.
func (is *Issuer) authenticate(ctx context.Context, r *http.Request, form url.Values, e *event) (client, error) {
	var c client
	id := form.Get("client_id")
	if id == "" {
		return c, invalidRequest("no_client_id", "The parameter client_id is missing: it is the supplier's GLN, or the grid operator's for its portal.")
	}
	var err error
	if c.leaf, err = authn.LeafThumbprint(r.TLS); err != nil {
		return c, invalidClient("no_client_certificate")
	}
	gln, err := meter.ParseGLN(id)
	if err != nil {
		return c, invalidClient("client_id_not_a_gln")
	}
	e.supplier = gln
	if c.sealed, c.record, err = is.registration(ctx, gln); err != nil {
		return c, err
	}
	// Whether the client is unknown, suspended, or known by another
	// certificate: the same statement ran, nothing was signed, and the answer
	// is the same.
	if c.record == nil {
		return c, invalidClient("unknown_client")
	}
	if err := c.record.Accepts(c.leaf, is.Now()); err != nil {
		return c, &failure{status: http.StatusUnauthorized, code: codeInvalidClient, reason: "certificate_not_accepted",
			description: clientDescription, cause: err}
	}
	return c, nil
}

// signingFailed is what the cryptoservers' answer means to a client.
func signingFailed(err error) error {
	switch {
	case errors.Is(err, ErrClientRefused): // revoked since, or the clocks differ
		return &failure{status: http.StatusUnauthorized, code: codeInvalidClient, reason: "cryptoserver_refused",
			description: clientDescription, cause: err}
	case errors.Is(err, ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return unavailable("cryptoserver_unavailable", err)
	}
	return internal("signing_failed", err)
}

func (is *Issuer) bearer(raw string, expires time.Time, scopes []string) *tokenResponse {
	return &tokenResponse{
		AccessToken: raw,
		TokenType:   "Bearer",
		ExpiresIn:   max(0, int64(expires.Sub(is.Now())/time.Second)),
		Scope:       strings.Join(scopes, " "),
	}
}

// tokenResponse is RFC 6749, clause 5.1, and what RFC 8693, clause 2.2.1, and
// RFC 9396, clause 7, add to it.
type tokenResponse struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"` // seconds
	Scope       string `json:"scope"`

	IssuedTokenType      string          `json:"issued_token_type,omitempty"`
	AuthorizationDetails json.RawMessage `json:"authorization_details,omitempty"`
}

// registration returns a supplier's record, sealed and verified; nil when
// there is none.
func (is *Issuer) registration(ctx context.Context, gln meter.GLN) ([]byte, *authz.Supplier, error) {
	sealed, err := is.Suppliers.Supplier(ctx, gln)
	if err != nil {
		return nil, nil, unavailable("database_unavailable", err)
	}
	if sealed == nil {
		return nil, nil, nil
	}
	record, err := is.SealKeys.Supplier(sealed)
	if err != nil {
		return nil, nil, internal("record_does_not_verify", err)
	}
	if record.GLN() != gln {
		return nil, nil, internal("record_of_another_supplier", errors.New("the stored record is that of another supplier"))
	}
	return sealed, record, nil
}
