package web

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

// SignIn says where employees sign in, and what the portal is there.
type SignIn struct {
	Issuer, ClientID string
	Secret           string         // "" for a public client: PKCE alone
	Roots            *x509.CertPool // of the provider's certificate; nil: the system's
	RoleClaim        string
	Roles            map[string]Role // by values of the claim
	NameClaim        string
}

// signIn is the provider, found when it is needed first: the portal starts without
// it.
type signIn struct {
	SignIn
	redirect string
	http     *http.Client

	mu       sync.Mutex
	provider *oidc.Provider
	style    oauth2.AuthStyle
	failed   error // of the last try
	tried    time.Time
}

const providerTimeout = 8 * time.Second

func newSignIn(c Config) *signIn {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.SignIn.Roots}
	return &signIn{SignIn: c.SignIn, redirect: c.PublicURL + "/login/callback", http: &http.Client{Transport: t, Timeout: providerTimeout}}
}

func (s *signIn) context(ctx context.Context) context.Context {
	return oidc.ClientContext(ctx, s.http)
}

// findAgain is for how long a provider that did not answer is left alone: whoever
// waited meanwhile is told at once, and does not ask in turn.
const findAgain = time.Second

// find asks the provider for its configuration, until it has answered once.
func (s *signIn) find(ctx context.Context) (*oidc.Provider, *oauth2.Config, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.provider == nil {
		if s.failed != nil && time.Since(s.tried) < findAgain {
			return nil, nil, s.failed
		}
		p, err := oidc.NewProvider(s.context(ctx), s.Issuer)
		if err != nil {
			err = fmt.Errorf("%w: %w", errSignInAway, err)
			if ctx.Err() == nil { // not because this one went away
				s.failed, s.tried = err, time.Now()
			}
			return nil, nil, err
		}
		var says struct {
			Methods []string `json:"token_endpoint_auth_methods_supported"`
		}
		if err := p.Claims(&says); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", errSignInAway, err)
		}
		// What is not said is client_secret_basic (OpenID Connect Discovery 1.0,
		// clause 3). Trying both would spend the code.
		s.style = oauth2.AuthStyleInParams
		if s.Secret != "" && (len(says.Methods) == 0 || slices.Contains(says.Methods, "client_secret_basic")) {
			s.style = oauth2.AuthStyleInHeader
		}
		s.provider = p
	}
	endpoint := s.provider.Endpoint()
	endpoint.AuthStyle = s.style
	return s.provider, &oauth2.Config{ClientID: s.ClientID, ClientSecret: s.Secret, Endpoint: endpoint, RedirectURL: s.redirect,
		Scopes: []string{oidc.ScopeOpenID, "profile"}}, nil
}

// attempt is a login under way: it is kept in the browser that began it, sealed,
// so that a code belongs to that browser and to that request of the portal's.
type attempt struct {
	State    string    `json:"state"`
	Nonce    string    `json:"nonce"`
	Verifier string    `json:"verifier"` // RFC 7636
	Next     string    `json:"next"`
	Begun    time.Time `json:"begun"`
	// InPerson: the provider was told to ask who it is (prompt=login).
	InPerson bool `json:"in_person"`
}

const (
	attemptCookie = "__Host-kluis-login"
	attemptLife   = 10 * time.Minute
	// clockSkew is by how much the provider's clock may be another.
	clockSkew = time.Minute
)

// inPersonParam has /login ask the person, though their session is alive.
const inPersonParam = "in-person"

// signInPage answers GET /signin: who is not signed in sees this, and what it is for.
func (p *Portal) signInPage(w http.ResponseWriter, r *http.Request) error {
	next := localPath(r.URL.Query().Get("next"))
	if visitOf(r).Session != nil && p.idTokenLeft(visitOf(r)) > 0 {
		http.Redirect(w, r, next, http.StatusSeeOther)
		return nil
	}
	if visitOf(r).cause != nil { // the sessions cannot be read now
		return visitOf(r).cause
	}
	return p.page(w, r, "signin", map[string]any{"Login": loginPath(next), "Out": r.URL.Query().Has("out")})
}

// login answers GET /login: it sends the browser to the provider. A session that is
// alive may be renewed without asking the person; whoever has none, be it the first
// one of the day or one that ended, by whatever way, is asked.
func (p *Portal) login(w http.ResponseWriter, r *http.Request) error {
	_, conf, err := p.signIn.find(r.Context())
	if err != nil {
		return err
	}
	random := func() string { b := secret(); return hex.EncodeToString(b[:]) }
	a := attempt{State: random(), Nonce: random(), Verifier: oauth2.GenerateVerifier(), Next: localPath(r.URL.Query().Get("next")),
		Begun: p.now().UTC(), InPerson: visitOf(r).Session == nil || r.URL.Query().Has(inPersonParam)}
	raw, err := json.Marshal(a)
	if err != nil {
		return err
	}
	http.SetCookie(w, &http.Cookie{Name: attemptCookie, Value: hex.EncodeToString(p.sealed("login", nil, raw)), Path: "/",
		MaxAge: int(attemptLife.Seconds()), HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode})
	options := []oauth2.AuthCodeOption{oidc.Nonce(a.Nonce), oauth2.S256ChallengeOption(a.Verifier),
		oauth2.SetAuthURLParam("max_age", strconv.Itoa(int(p.config.Absolute.Seconds())))}
	if a.InPerson {
		options = append(options, oauth2.SetAuthURLParam("prompt", "login"))
	}
	http.Redirect(w, r, conf.AuthCodeURL(a.State, options...), http.StatusSeeOther)
	return nil
}

// loginCallback answers GET /login/callback: what the provider sent the browser
// back with.
func (p *Portal) loginCallback(w http.ResponseWriter, r *http.Request) error {
	e, a, err := p.signedIn(w, r)
	if err == nil {
		err = p.signedInAs(w, r, e, a)
	}
	outcome := "given"
	if err != nil {
		outcome = problemOf(err).Name
	}
	p.metrics.signIns.WithLabelValues(outcome).Inc()
	if errors.Is(err, errSignInAgain) {
		dropCookie(w)
		http.Redirect(w, r, loginPath(a.Next), http.StatusSeeOther)
		return nil
	}
	if err != nil {
		return err
	}
	http.Redirect(w, r, a.Next, http.StatusSeeOther)
	return nil
}

// signedInAs begins the session of who signed in. A provider that has a session of
// its own asked nobody: that is enough to renew a session here, while it lives and
// for the same employee, and for nothing else. What the portal asked of the
// provider went by the browser, so who sits there can have taken it out: auth_time
// says what was done.
func (p *Portal) signedInAs(w http.ResponseWriter, r *http.Request, e Employee, a attempt) error {
	old, err := p.findSession(r, false)
	if err != nil {
		return err
	}
	if inPerson := !e.signedInAt.Before(a.Begun.Add(-clockSkew)); !inPerson && (a.InPerson || !old.of(e)) {
		if a.InPerson {
			visitOf(r).cause = errors.New("the provider did not ask who it is, which prompt=login says, or auth_time is wrong")
			return errSignInBad
		}
		if old != nil { // another employee's, at whose browser this one is signed in
			if err := p.end(r.Context(), old); err != nil {
				return err
			}
		}
		return errSignInAgain
	}
	return p.begin(w, r, e, old)
}

func (p *Portal) signedIn(w http.ResponseWriter, r *http.Request) (e Employee, a attempt, err error) {
	bad := func(why string, cause error) (Employee, attempt, error) {
		if cause != nil {
			why += ": " + cause.Error()
		}
		visitOf(r).cause = errors.New(why)
		return Employee{}, a, errSignInBad
	}
	a, err = p.attemptOf(r)
	http.SetCookie(w, &http.Cookie{Name: attemptCookie, Path: "/", MaxAge: -1, HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode})
	if err != nil {
		return bad("no login was begun in this browser", nil)
	}
	q := r.URL.Query()
	if subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(a.State)) != 1 {
		return bad("the state is another", nil)
	}
	if code := q.Get("error"); code != "" {
		return bad("the provider refused", errors.New(word(code)))
	}
	if err := p.codes.enter(); err != nil {
		return Employee{}, a, err
	}
	defer p.codes.leave()
	switch err := p.codes.spend(r, a, p.now()); {
	case errors.Is(err, errSpent):
		return bad("this login was ended before", nil)
	case err != nil:
		return Employee{}, a, err
	}
	provider, conf, err := p.signIn.find(r.Context())
	if err != nil {
		return Employee{}, a, err
	}
	ctx := p.signIn.context(r.Context())
	tokens, err := conf.Exchange(ctx, q.Get("code"), oauth2.VerifierOption(a.Verifier))
	if err != nil {
		var refused *oauth2.RetrieveError
		if errors.As(err, &refused) && refused.Response.StatusCode < 500 {
			return bad("the provider refused the code", errors.New(word(refused.ErrorCode)))
		}
		return Employee{}, a, fmt.Errorf("%w: token endpoint: %w", errSignInAway, err)
	}
	raw, ok := tokens.Extra("id_token").(string)
	if !ok {
		return bad("the provider gave no ID token", nil)
	}
	id, err := provider.Verifier(&oidc.Config{ClientID: p.signIn.ClientID, Now: p.now}).Verify(ctx, raw)
	if err != nil {
		return bad("the ID token is not accepted", err)
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(a.Nonce)) != 1 {
		return bad("the nonce is another", nil)
	}
	var claims map[string]json.RawMessage
	if err := id.Claims(&claims); err != nil {
		return bad("the ID token's claims", err)
	}
	// A request with max_age is answered with auth_time (OpenID Connect Core 1.0,
	// clause 2).
	at, ok := instant(claims["auth_time"])
	switch now := p.now(); {
	case !ok:
		return bad("the ID token has no auth_time", nil)
	case at.After(now.Add(clockSkew)):
		return bad("auth_time is in the future", nil)
	case now.Sub(at) > p.config.Absolute+clockSkew:
		return bad("auth_time is longer ago than max_age", nil)
	}
	role, ok := p.signIn.role(claims[p.signIn.RoleClaim])
	if !ok {
		return Employee{}, a, errNoRole
	}
	e = Employee{Subject: id.Issuer + "#" + id.Subject, Role: role, IDToken: raw, ExpiresAt: id.Expiry.UTC(), signedInAt: at}
	if e.Name = name(claims[p.signIn.NameClaim]); e.Name == "" {
		e.Name = id.Subject
	}
	return e, a, nil
}

// instant reads a NumericDate (RFC 7519, clause 2), whole seconds.
func instant(claim json.RawMessage) (time.Time, bool) {
	n, err := strconv.ParseInt(string(claim), 10, 64)
	return time.Unix(n, 0), err == nil && n > 0
}

// loginPath is the way to the provider, and then to next.
func loginPath(next string) string {
	if next == "/" {
		return "/login"
	}
	return "/login?" + url.Values{"next": {next}}.Encode()
}

func (p *Portal) attemptOf(r *http.Request) (attempt, error) {
	var a attempt
	c, err := r.Cookie(attemptCookie)
	if err != nil {
		return a, err
	}
	sealed, err := hex.DecodeString(c.Value)
	if err != nil {
		return a, err
	}
	raw, err := p.open("login", nil, sealed)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(raw, &a); err != nil {
		return a, err
	}
	if !p.now().Before(a.Begun.Add(attemptLife)) {
		return a, errors.New("too late")
	}
	return a, nil
}

// byPower are the roles, the one that may do most first: who has several acts in
// that one. As the cryptoservers read the claim (package authn).
var byPower = []Role{Supervisor, Agent, Auditor}

func (s *SignIn) role(claim json.RawMessage) (Role, bool) {
	var values []string
	var single string
	if json.Unmarshal(claim, &single) == nil {
		values = []string{single}
	} else if json.Unmarshal(claim, &values) != nil {
		return "", false
	}
	for _, r := range byPower {
		for _, v := range values {
			if s.Roles[v] == r {
				return r, true
			}
		}
	}
	return "", false
}

// name is what an employee is greeted by: one line of at most 64 letters.
func name(claim json.RawMessage) string {
	var s string
	if json.Unmarshal(claim, &s) != nil {
		return ""
	}
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s))
	if rs := []rune(s); len(rs) > 64 {
		s = string(rs[:64]) + "…"
	}
	return s
}

// word is an error code of the provider's, as it may stand in a log.
func word(s string) string {
	if len(s) > 64 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return "unknown error"
	}
	return s
}

// logout answers POST /logout.
func (p *Portal) logout(w http.ResponseWriter, r *http.Request) error {
	if s := visitOf(r).Session; s != nil {
		if err := p.end(r.Context(), s); err != nil {
			return err
		}
	}
	dropCookie(w)
	http.Redirect(w, r, "/signin?out", http.StatusSeeOther)
	return nil
}

// logoutEverywhere answers POST /logout/everywhere: every session of the employee
// ends, here and on other machines.
func (p *Portal) logoutEverywhere(w http.ResponseWriter, r *http.Request) error {
	s := visitOf(r).Session
	if err := p.store.EndSessions(r.Context(), p.subject(s.Subject)); err != nil {
		return err
	}
	p.errands.forget(s.id)
	dropCookie(w)
	http.Redirect(w, r, "/signin?out", http.StatusSeeOther)
	return nil
}
