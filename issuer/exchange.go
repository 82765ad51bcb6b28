package issuer

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"kluis/internal/authn"
)

// The token types of RFC 8693, clause 3.
const (
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	typeIDToken     = "urn:ietf:params:oauth:token-type:id_token"
)

// exchanges says whether employees' ID tokens are exchanged at all.
func (is *Issuer) exchanges() bool { return !is.Operator.IsZero() }

func invalidDetails(reason, description string, cause error) error {
	return &failure{status: http.StatusBadRequest, code: "invalid_authorization_details", reason: reason, description: description, cause: cause}
}

// exchange gives the portal a token for one errand of one employee, whose ID
// token it brings (RFC 8693, clause 2.1; RFC 9396, clause 6). Who that is, and
// whether the errand may be had, a cryptoserver finds out before it signs; here
// is looked at what needs no keys.
func (is *Issuer) exchange(ctx context.Context, r *http.Request, form url.Values, e *event) (*tokenResponse, error) {
	e.exchange = true
	errand, err := checkExchange(form)
	if err != nil {
		return nil, err
	}
	c, err := is.authenticate(ctx, r, form, e)
	if err != nil {
		return nil, err
	}
	if c.record.GLN() != is.Operator || !slices.Contains(c.record.Scopes(), authn.ScopeStaff) {
		return nil, &failure{status: http.StatusBadRequest, code: "unauthorized_client", reason: "not_the_portal",
			description: "Only the grid operator's own client, with the scope " + authn.ScopeStaff + " in its record, exchanges tokens of employees."}
	}
	raw, expires, err := is.Signer.SignStaffToken(ctx, c.sealed, c.leaf, form.Get("subject_token"), errand, lifetime)
	switch {
	case errors.Is(err, ErrEmployeeRefused): // RFC 8693, clause 2.2.2
		return nil, &failure{status: http.StatusBadRequest, code: codeInvalidRequest, reason: "employee_refused", description: "The subject_token: " + toTell(err), cause: err}
	case errors.Is(err, ErrErrandRefused): // RFC 9396, clause 5
		return nil, invalidDetails("errand_refused", toTell(err), err)
	case err != nil:
		return nil, signingFailed(err)
	}
	answer := is.bearer(raw, expires, []string{authn.ScopeStaff})
	answer.IssuedTokenType = typeAccessToken
	if answer.AuthorizationDetails, err = detailsOf(raw); err != nil {
		return nil, internal("token_without_errand", err)
	}
	return answer, nil
}

// checkExchange looks at the parameters of a token exchange but the client's,
// and returns the errand as it was sent.
func checkExchange(form url.Values) (errand string, err error) {
	for _, name := range []string{"actor_token", "actor_token_type"} {
		if form.Get(name) != "" {
			return "", invalidRequest("actor_token", "There is no delegation: leave actor_token and actor_token_type out.")
		}
	}
	for _, name := range []string{"resource", "audience"} {
		if form.Get(name) != "" {
			return "", &failure{status: http.StatusBadRequest, code: "invalid_target", reason: "target",
				description: "Tokens are for one service, which need not be named: leave resource and audience out."}
		}
	}
	switch form.Get("subject_token_type") {
	case typeIDToken:
	case "":
		return "", invalidRequest("no_subject_token_type", "The parameter subject_token_type is missing: it must be "+typeIDToken+".")
	default:
		return "", invalidRequest("subject_token_type", "The parameter subject_token_type must be "+typeIDToken+".")
	}
	if form.Get("subject_token") == "" {
		return "", invalidRequest("no_subject_token", "The parameter subject_token is missing: it is the employee's ID token.")
	}
	if t := form.Get("requested_token_type"); t != "" && t != typeAccessToken {
		return "", invalidRequest("requested_token_type", "Leave requested_token_type out, or let it be "+typeAccessToken+".")
	}
	if s := form.Get("scope"); s != "" && s != authn.ScopeStaff {
		return "", &failure{status: http.StatusBadRequest, code: "invalid_scope", reason: "scope_not_of_employees",
			description: "Leave scope out, or let it be " + authn.ScopeStaff + "."}
	}
	if errand = form.Get("authorization_details"); errand == "" {
		return "", invalidDetails("no_authorization_details", "The parameter authorization_details is missing: it says what the employee was asked to do.", nil)
	}
	return errand, nil
}

// toTell is what a cryptoserver said of a refusal: a text of its own, with
// nothing of the request in it.
func toTell(err error) string {
	var e interface{ Text() string }
	if errors.As(err, &e) {
		return e.Text()
	}
	return "It was not accepted."
}

// detailsOf reads the authorization_details out of a token that a cryptoserver
// has just signed.
func detailsOf(raw string) (json.RawMessage, error) {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return nil, errors.New("the cryptoserver's token is no JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, err
	}
	var claims struct {
		Details json.RawMessage `json:"authorization_details"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return nil, err
	}
	if claims.Details == nil {
		return nil, errors.New("the cryptoserver's token has no errand")
	}
	return claims.Details, nil
}
