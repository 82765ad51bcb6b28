package web

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"kluis/meter"
	"kluis/openapi/client"
	"kluis/openapi/client/kluis"
)

// Errand is what an access token is asked for (docs/STAFF.md): one thing, for one
// reason. The functions below make them.
type Errand struct {
	Type        string   `json:"type"`
	EAN         string   `json:"ean,omitempty"`
	From        string   `json:"from,omitempty"`
	To          string   `json:"to,omitempty"`
	Fields      []string `json:"fields,omitempty"`
	Postcode    string   `json:"postcode,omitempty"`
	HouseNumber string   `json:"house_number,omitempty"`
	GLN         string   `json:"gln,omitempty"`
	Step        string   `json:"step,omitempty"`
	ConsentID   string   `json:"consent_id,omitempty"`
	ScopeDigest string   `json:"scope_digest,omitempty"`
	Evidence    string   `json:"evidence,omitempty"`
	Reason      string   `json:"reason"`
}

const errandType = "urn:kluis:errand:"

// maxReason bounds a reason and a reference to evidence, in bytes.
const maxReason = 128

// ToView is for everything of a case that is no reading: the connection, consents,
// who may read what, the access log.
func ToView(c *Case) Errand {
	return Errand{Type: errandType + "view", EAN: c.EAN.String(), Reason: c.Reason}
}

// ToRead is for values of some fields, of days from to to (exclusive).
func ToRead(c *Case, from, to meter.Day, fields []string) Errand {
	return Errand{Type: errandType + "readings", EAN: c.EAN.String(), From: from.String(), To: to.String(), Fields: fields, Reason: c.Reason}
}

// ToStep is for a step of a consent: grant, reject or revoke. The digest is what
// the API calls scopeDigest; evidence is for grant alone.
func ToStep(c *Case, step, consent, scopeDigest, evidence string) Errand {
	return Errand{Type: errandType + "step", EAN: c.EAN.String(), Step: step, ConsentID: consent, ScopeDigest: scopeDigest, Evidence: evidence, Reason: c.Reason}
}

// ToRegister is for a consent on the customer's word.
func ToRegister(c *Case, scope [32]byte, evidence string) Errand {
	return Errand{Type: errandType + "step", EAN: c.EAN.String(), Step: "register",
		ScopeDigest: base64.RawURLEncoding.EncodeToString(scope[:]), Evidence: evidence, Reason: c.Reason}
}

// ToFind is for the connections at an address, as the API spells postcode and house number.
func ToFind(postcode, houseNumber, reason string) Errand {
	return Errand{Type: errandType + "find", Postcode: postcode, HouseNumber: houseNumber, Reason: reason}
}

// ToOversee is for suppliers, operations and oversight.
func ToOversee(reason string) Errand {
	return Errand{Type: errandType + "oversee", Reason: reason}
}

// ToSuspend is for suspending a supplier, ToResume for letting it go on.
func ToSuspend(gln, reason string) Errand {
	return Errand{Type: errandType + "supplier", GLN: gln, Step: "suspend", Reason: reason}
}

// ToResume lets a suspended supplier go on.
func ToResume(gln, reason string) Errand {
	return Errand{Type: errandType + "supplier", GLN: gln, Step: "resume", Reason: reason}
}

// API is the client for one errand of the employee who asks. Its answers are
// taken with Given:
//
//	res, err := p.API(r, ToView(c)).ListConsentsWithResponse(r.Context(), …)
//	if err != nil {
//		return err
//	}
//	consents, err := Given(res.JSON200, res.HTTPResponse, res.Body)
//
// Both errors are returned as they are: they become the page that says what to do.
func (p *Portal) API(r *http.Request, e Errand) *client.ClientWithResponses {
	return p.errands.client(visitOf(r).Session, e)
}

// Given is the answer of the API, or its problem (kluis.Problem).
func Given[T any](parsed *T, res *http.Response, body []byte) (*T, error) {
	if err := kluis.Check(res, body); err != nil {
		return nil, err
	}
	if parsed == nil {
		return nil, fmt.Errorf("the API answered %d with %s", res.StatusCode, res.Header.Get("Content-Type"))
	}
	return parsed, nil
}

// Bounds of a call.
const (
	apiTimeout = 12 * time.Second // a little more than the gateway gives itself
	maxAnswer  = 32 << 20
	maxWait    = 2 * time.Second // of a Retry-After that is waited for
)

// errands gets tokens and calls the API with them. Tokens are kept for their
// lives, by session and errand, in memory only; and so is what was found at an
// address, by session.
type errands struct {
	http     *http.Client
	gateway  string
	tokenURL string
	operator string
	metrics  *metrics
	now      func() time.Time

	mu     sync.Mutex
	tokens map[string]map[string]accessToken // by session, then by errand in JSON
	finds  map[string]*search                // the latest, by session
}

type accessToken struct {
	value   string
	expires time.Time
}

func newErrands(c Config, m *metrics) (*errands, error) {
	if c.ClientTLS == nil || len(c.ClientTLS.Certificates) == 0 || c.ClientTLS.RootCAs == nil {
		return nil, errors.New("web: a client certificate and the servers' authority are needed")
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig, t.ForceAttemptHTTP2, t.Proxy = c.ClientTLS.Clone(), true, nil
	t.MaxIdleConnsPerHost = 16
	e := &errands{
		http: &http.Client{Transport: t, Timeout: apiTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		gateway: c.Gateway, tokenURL: c.Issuer + "/oauth2/token", operator: c.Operator.String(),
		metrics: m, now: c.Now, tokens: map[string]map[string]accessToken{}, finds: map[string]*search{},
	}
	return e, nil
}

func (e *errands) close() { e.http.CloseIdleConnections() }

func (e *errands) client(s *session, errand Errand) *client.ClientWithResponses {
	c, err := client.NewClientWithResponses(e.gateway, client.WithHTTPClient(errandClient{e, s, errand}))
	if err != nil {
		panic(err) // the URL was checked
	}
	return c
}

// keep keeps the latest search of a session.
func (e *errands) keep(session []byte, s *search) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.finds[string(session)] = s
}

// found is the latest search of a session, where that is the one with the id; nil
// when it is over.
func (e *errands) found(session []byte, id string, now time.Time) *search {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.finds[string(session)]
	if s == nil || s.ID != id || !now.Before(s.Until) {
		return nil
	}
	return s
}

// forget drops the tokens of a session, and what it found.
func (e *errands) forget(session []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.tokens, string(session))
	delete(e.finds, string(session))
}

// purge drops tokens that have expired, and what can no longer be gone back to.
func (e *errands) purge() {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	for id, s := range e.finds {
		if !now.Before(s.Until) {
			delete(e.finds, id)
		}
	}
	for id, of := range e.tokens {
		for k, t := range of {
			if !now.Before(t.expires) {
				delete(of, k)
			}
		}
		if len(of) == 0 {
			delete(e.tokens, id)
		}
	}
}

// tokenLeast is how long a token must live yet to be used.
const tokenLeast = 20 * time.Second

// token is an access token for an errand: one that is there, or a new one.
func (e *errands) token(ctx context.Context, s *session, errand Errand, anew bool) (string, error) {
	if s == nil {
		return "", errSignIn
	}
	details, err := json.Marshal([]Errand{errand})
	if err != nil {
		return "", err
	}
	key := string(details)
	e.mu.Lock()
	had := e.tokens[string(s.id)][key]
	e.mu.Unlock()
	if left := had.expires.Sub(e.now()); !anew && left > tokenLeast {
		return had.value, nil
	}
	t, err := e.exchange(ctx, s.IDToken, string(details))
	e.metrics.token(err)
	if err != nil {
		// While nobody gives a new one, the one that is there does until its end.
		if !anew && had.expires.After(e.now()) && problemOf(err).Again {
			return had.value, nil
		}
		return "", err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	of := e.tokens[string(s.id)]
	if of == nil {
		of = map[string]accessToken{}
		e.tokens[string(s.id)] = of
	}
	of[key] = t
	return t.value, nil
}

// exchange asks the issuer (RFC 8693).
func (e *errands) exchange(ctx context.Context, idToken, details string) (accessToken, error) {
	form := url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {e.operator},
		"subject_token": {idToken}, "subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"},
		"authorization_details": {details},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.tokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return accessToken{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	asked := e.now()
	res, err := e.http.Do(req)
	if err != nil {
		return accessToken{}, &awayError{"the issuer", err}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return accessToken{}, &awayError{"the issuer", err}
	}
	if res.StatusCode != http.StatusOK {
		refused := &kluis.TokenError{}
		_ = json.Unmarshal(body, refused) // what is no JSON leaves the status
		refused.Status = res.StatusCode
		return accessToken{}, refused
	}
	var got struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &got); err != nil || got.AccessToken == "" || got.ExpiresIn <= 0 {
		return accessToken{}, errors.New("the issuer answers with no token that lives")
	}
	return accessToken{got.AccessToken, asked.Add(time.Duration(got.ExpiresIn) * time.Second)}, nil
}

// awayError: a server does not answer.
type awayError struct {
	who   string
	cause error
}

// Error keeps the address that was called to itself: it holds a metering point.
func (e *awayError) Error() string {
	cause := e.cause
	if u := (*url.Error)(nil); errors.As(cause, &u) {
		cause = u.Err
	}
	return e.who + " does not answer: " + cause.Error()
}

func (e *awayError) Unwrap() error { return e.cause }

// errandClient sends the requests of one errand: with its token, with a new one
// where that one is not accepted any more, and once more what the API asks to be
// repeated soon and may be.
type errandClient struct {
	e      *errands
	s      *session
	errand Errand
}

// Do implements the generated client's HttpRequestDoer.
func (c errandClient) Do(req *http.Request) (*http.Response, error) {
	began := c.e.now()
	res, err := c.do(req)
	c.e.metrics.api(res, err, c.e.now().Sub(began))
	return res, err
}

func (c errandClient) do(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	renewed, repeated := false, false
	for {
		bearer, err := c.e.token(ctx, c.s, c.errand, renewed)
		if err != nil {
			return nil, err
		}
		res, err := c.send(req, bearer)
		if err != nil {
			return nil, err
		}
		switch {
		case res.StatusCode == http.StatusUnauthorized && !renewed:
			renewed = true
		case !repeated && wait(res) > 0 && (req.Method == http.MethodGet || req.Header.Get("Idempotency-Key") != ""):
			repeated = true
			select {
			case <-time.After(wait(res)):
			case <-ctx.Done():
				res.Body.Close()
				return nil, ctx.Err()
			}
		default:
			return res, nil
		}
		res.Body.Close()
	}
}

// wait is how long the API asks to wait, when that is short.
func wait(res *http.Response) time.Duration {
	if res.StatusCode != http.StatusConflict && res.StatusCode != http.StatusServiceUnavailable && res.StatusCode != http.StatusTooManyRequests {
		return 0
	}
	d, err := time.ParseDuration(res.Header.Get("Retry-After") + "s")
	if err != nil || d > maxWait {
		return 0
	}
	return d
}

func (c errandClient) send(req *http.Request, bearer string) (*http.Response, error) {
	if req.GetBody != nil {
		var err error
		if req.Body, err = req.GetBody(); err != nil {
			return nil, err
		}
	}
	req.Header.Set("Authorization", "Bearer "+bearer)
	res, err := c.e.http.Do(req)
	if err != nil {
		return nil, &awayError{"the API", err}
	}
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(res.Body, maxAnswer), res.Body}
	return res, nil
}
