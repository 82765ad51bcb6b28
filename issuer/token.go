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

const (
	grantType = "client_credentials"
	maxBody   = 8 << 10
)

// otherCredentials are the parameters of client authentication methods that
// are not served; a request must use one method only (RFC 6749, clause 2.3).
var otherCredentials = []string{"client_secret", "client_assertion", "client_assertion_type"}

// tokenRequest is a well-formed request, its client not yet authenticated.
type tokenRequest struct {
	clientID string
	scopes   []string // nil: whatever the supplier may have
}

// parseTokenRequest is RFC 6749, clauses 3.2 and 4.4.2: parameters in the form
// body only, none repeated, an empty one is an omitted one, unknown ones are
// ignored.
func parseTokenRequest(r *http.Request) (tokenRequest, error) {
	var none tokenRequest
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		return none, invalidRequest("parameters_in_query", "Parameters belong into the body, not into the URL.")
	}
	if len(r.Header.Values("Authorization")) > 0 {
		return none, invalidRequest("authorization_header", "Clients authenticate with their TLS certificate only: leave the Authorization header out.")
	}
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset, hasCharset := params["charset"]
	if err != nil || media != "application/x-www-form-urlencoded" || hasCharset && !strings.EqualFold(charset, "utf-8") || len(r.Header.Values("Content-Type")) > 1 {
		return none, invalidRequest("content_type", "The body must be application/x-www-form-urlencoded.")
	}
	body, err := io.ReadAll(r.Body)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return none, &failure{status: http.StatusRequestEntityTooLarge, code: codeInvalidRequest, reason: "body_too_large",
			description: fmt.Sprintf("The body must not exceed %d bytes.", maxBody)}
	case err != nil:
		return none, invalidRequest("body_unreadable", "The body could not be read.")
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return none, invalidRequest("malformed_form", "The body is not a valid form.")
	}
	for _, v := range form {
		if len(v) > 1 {
			return none, invalidRequest("repeated_parameter", "A parameter is repeated.")
		}
	}
	for _, name := range otherCredentials {
		if form.Has(name) {
			return none, invalidRequest("other_credentials", "Clients authenticate with their TLS certificate only: leave client_secret and client_assertion out.")
		}
	}
	switch form.Get("grant_type") {
	case grantType:
	case "":
		return none, invalidRequest("no_grant_type", "The parameter grant_type is missing: it must be client_credentials.")
	default:
		return none, &failure{status: http.StatusBadRequest, code: "unsupported_grant_type", reason: "grant_type",
			description: "The only grant type is client_credentials."}
	}
	req := tokenRequest{clientID: form.Get("client_id")}
	if req.clientID == "" {
		return none, invalidRequest("no_client_id", "The parameter client_id is missing: it is the supplier's GLN.")
	}
	if s := form.Get("scope"); s != "" {
		var ok bool
		if req.scopes, ok = authn.ParseScope(s); !ok {
			return none, invalidScope("malformed_scope")
		}
	}
	return req, nil
}

// token is the token endpoint.
func (is *Issuer) token(w http.ResponseWriter, r *http.Request, e *event) error {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	req, err := parseTokenRequest(r)
	if err != nil {
		return err
	}
	leaf, err := authn.LeafThumbprint(r.TLS)
	if err != nil {
		return invalidClient("no_client_certificate")
	}
	gln, err := meter.ParseGLN(req.clientID)
	if err != nil {
		return invalidClient("client_id_not_a_gln")
	}
	e.supplier = gln

	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	sealed, record, err := is.registration(ctx, gln)
	if err != nil {
		return err
	}
	now := is.Now()
	// Whether the client is unknown, suspended, or known by another
	// certificate: the same statement ran, nothing was signed, and the answer
	// is the same.
	if record == nil {
		return invalidClient("unknown_client")
	}
	if err := record.Accepts(leaf, now); err != nil {
		return &failure{status: http.StatusUnauthorized, code: codeInvalidClient, reason: "certificate_not_accepted",
			description: clientDescription, cause: err}
	}
	scopes := req.scopes
	if scopes == nil {
		scopes = record.Scopes()
	}
	if len(scopes) == 0 {
		return invalidScope("no_scope_registered")
	}
	for _, s := range scopes {
		if !slices.Contains(record.Scopes(), s) {
			return invalidScope("scope_not_registered")
		}
	}

	raw, expires, err := is.Signer.SignToken(ctx, sealed, leaf, scopes, lifetime)
	switch {
	case errors.Is(err, ErrClientRefused): // revoked since, or the clocks differ
		return &failure{status: http.StatusUnauthorized, code: codeInvalidClient, reason: "cryptoserver_refused",
			description: clientDescription, cause: err}
	case errors.Is(err, ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return unavailable("cryptoserver_unavailable", err)
	case err != nil:
		return internal("signing_failed", err)
	}
	body, err := json.Marshal(tokenResponse{
		AccessToken: raw,
		TokenType:   "Bearer",
		ExpiresIn:   max(0, int64(expires.Sub(now)/time.Second)),
		Scope:       strings.Join(scopes, " "),
	})
	if err != nil {
		return internal("encoding", err)
	}
	noStore(w)
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(body)
	return writeFailed(err)
}

// tokenResponse is RFC 6749, clause 5.1.
type tokenResponse struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"` // seconds
	Scope       string `json:"scope"`
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
