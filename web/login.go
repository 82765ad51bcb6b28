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

// find asks the provider for its configuration, until it has answered once.
func (s *signIn) find(ctx context.Context) (*oidc.Provider, *oauth2.Config, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.provider == nil {
		p, err := oidc.NewProvider(s.context(ctx), s.Issuer)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", errSignInAway, err)
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
	Until    time.Time `json:"until"`
}

const (
	attemptCookie = "__Host-kluis-login"
	attemptLife   = 10 * time.Minute
)

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
	to := "/login"
	if next != "/" {
		to += "?" + url.Values{"next": {next}}.Encode()
	}
	return p.page(w, r, "signin", map[string]any{"Login": to, "Out": r.URL.Query().Has("out")})
}

// login answers GET /login: it sends the browser to the provider.
func (p *Portal) login(w http.ResponseWriter, r *http.Request) error {
	_, conf, err := p.signIn.find(r.Context())
	if err != nil {
		return err
	}
	random := func() string { b := secret(); return hex.EncodeToString(b[:]) }
	a := attempt{State: random(), Nonce: random(), Verifier: oauth2.GenerateVerifier(), Next: localPath(r.URL.Query().Get("next")), Until: p.now().Add(attemptLife)}
	raw, err := json.Marshal(a)
	if err != nil {
		return err
	}
	http.SetCookie(w, &http.Cookie{Name: attemptCookie, Value: hex.EncodeToString(p.sealed("login", nil, raw)), Path: "/",
		MaxAge: int(attemptLife.Seconds()), HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, conf.AuthCodeURL(a.State, oidc.Nonce(a.Nonce), oauth2.S256ChallengeOption(a.Verifier)), http.StatusSeeOther)
	return nil
}

// loginCallback answers GET /login/callback: what the provider sent the browser
// back with.
func (p *Portal) loginCallback(w http.ResponseWriter, r *http.Request) error {
	e, next, err := p.signedIn(w, r)
	outcome := "given"
	if err == nil {
		err = p.begin(w, r, e)
	}
	if err != nil {
		outcome = problemOf(err).Name
	}
	p.metrics.signIns.WithLabelValues(outcome).Inc()
	if err != nil {
		return err
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
	return nil
}

func (p *Portal) signedIn(w http.ResponseWriter, r *http.Request) (e Employee, next string, err error) {
	bad := func(why string, cause error) (Employee, string, error) {
		if cause != nil {
			why += ": " + cause.Error()
		}
		visitOf(r).cause = errors.New(why)
		return Employee{}, "", errSignInBad
	}
	a, err := p.attemptOf(r)
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
	provider, conf, err := p.signIn.find(r.Context())
	if err != nil {
		return Employee{}, "", err
	}
	ctx := p.signIn.context(r.Context())
	tokens, err := conf.Exchange(ctx, q.Get("code"), oauth2.VerifierOption(a.Verifier))
	if err != nil {
		var refused *oauth2.RetrieveError
		if errors.As(err, &refused) && refused.Response.StatusCode < 500 {
			return bad("the provider refused the code", errors.New(word(refused.ErrorCode)))
		}
		return Employee{}, "", fmt.Errorf("%w: token endpoint: %w", errSignInAway, err)
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
	role, ok := p.signIn.role(claims[p.signIn.RoleClaim])
	if !ok {
		return Employee{}, "", errNoRole
	}
	e = Employee{Subject: id.Issuer + "#" + id.Subject, Role: role, IDToken: raw, ExpiresAt: id.Expiry.UTC()}
	if e.Name = name(claims[p.signIn.NameClaim]); e.Name == "" {
		e.Name = id.Subject
	}
	return e, a.Next, nil
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
	if !p.now().Before(a.Until) {
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
