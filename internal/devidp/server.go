package devidp

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Employee is somebody who can sign in.
type Employee struct {
	Subject string   `json:"sub"`
	Name    string   `json:"name"`
	Roles   []string `json:"roles"`
}

// Employees are those of the demo.
func Employees() []Employee {
	return []Employee{
		{"eva", "Eva de Vries", []string{"agent"}},
		{"joris", "Joris Mulder", []string{"agent"}},
		{"samira", "Samira Haddad", []string{"supervisor"}},
		{"thomas", "Thomas Bakker", []string{"auditor"}},
		{"ilse", "Ilse Peters", []string{}},
	}
}

// Server is an OpenID provider (OpenID Connect Core 1.0, code flow with PKCE) in
// which whoever can reach it is whom they like to be.
type Server struct {
	provider  *Provider
	issuer    *url.URL
	redirect  string
	employees []Employee
	now       func() time.Time
	log       *slog.Logger

	mu       sync.Mutex
	codes    map[string]grant
	sessions map[string]signedIn // by cookie
}

// signedIn is who chose who they are in a browser, and when: until that is too old
// for a request, or it asks for prompt=login, the browser is sent back at once.
type signedIn struct {
	employee Employee
	at       time.Time
}

const (
	sessionCookie = "__Host-devidp"
	sessionLife   = 24 * time.Hour
)

// grant is what a code stands for, once.
type grant struct {
	employee         Employee
	signedIn         time.Time
	nonce, challenge string
	until            time.Time
}

// ErrNotLocal: it would be there for others than this machine.
var ErrNotLocal = errors.New("the development identity provider asks nobody for a password: it serves on a loopback address, for a portal on a loopback address, and nowhere else")

// NewServer serves the provider to one client, with the id Audience, which is sent
// back to redirect. Both must be on loopback addresses: ErrNotLocal.
func NewServer(p *Provider, redirect string, employees []Employee, now func() time.Time, log *slog.Logger) (*Server, error) {
	issuer, err := url.Parse(p.url)
	if err != nil {
		return nil, err
	}
	back, err := url.Parse(redirect)
	if err != nil {
		return nil, err
	}
	for _, u := range []*url.URL{issuer, back} {
		if ip := net.ParseIP(u.Hostname()); u.Scheme != "https" || ip == nil || !ip.IsLoopback() {
			return nil, ErrNotLocal
		}
	}
	return &Server{provider: p, issuer: issuer, redirect: redirect, employees: employees, now: now, log: log, codes: map[string]grant{}, sessions: map[string]signedIn{}}, nil
}

// Serve serves on l, over TLS, until ctx ends. l must be the loopback address that
// tokens name as the issuer.
func (s *Server) Serve(ctx context.Context, l net.Listener, certificate tls.Certificate) error {
	if a, ok := l.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() || l.Addr().String() != s.issuer.Host {
		return ErrNotLocal
	}
	srv := &http.Server{
		Handler: s.handler(), TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}},
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // a sign-in cut short is begun again
	defer stop()
	if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", s.configuration)
	mux.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(s.provider.JWKS())
	})
	mux.HandleFunc("GET /style.css", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/css; charset=utf-8")
		_, _ = w.Write(style)
	})
	mux.HandleFunc("GET /authorize", s.choose)
	mux.HandleFunc("POST /authorize", s.chosen)
	mux.HandleFunc("POST /token", s.token)
	protected := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		back, _, _ := strings.Cut(s.redirect, "/login")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; form-action 'self' "+back+"; frame-ancestors 'none'; base-uri 'none'")
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		protected.ServeHTTP(w, r)
	})
}

func (s *Server) configuration(w http.ResponseWriter, _ *http.Request) {
	iss := s.provider.url
	answer(w, http.StatusOK, map[string]any{
		"issuer": iss, "authorization_endpoint": iss + "/authorize", "token_endpoint": iss + "/token", "jwks_uri": iss + "/jwks",
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"}, "grant_types_supported": []string{"authorization_code"},
		"id_token_signing_alg_values_supported": []string{"ES256"}, "scopes_supported": []string{"openid", "profile"},
		"token_endpoint_auth_methods_supported": []string{"none"}, "code_challenge_methods_supported": []string{"S256"},
		"claims_supported": []string{"sub", "name", "auth_time", RoleClaim}, "prompt_values_supported": []string{"login", "none", "select_account"},
	})
}

//go:embed style.css
var style []byte

//go:embed authorize.html
var authorizeHTML string

var authorizePage = template.Must(template.New("authorize").Parse(authorizeHTML))

// carried are the parameters of a request that come along from the page.
var carried = []string{"client_id", "redirect_uri", "response_type", "scope", "state", "nonce", "code_challenge", "code_challenge_method"}

// check says what is wrong with a request for a code; nobody is sent anywhere by it.
func (s *Server) check(q url.Values) error {
	switch {
	case q.Get("client_id") != Audience:
		return errors.New("there is one client, " + Audience)
	case q.Get("redirect_uri") != s.redirect:
		return errors.New("redirect_uri is not the portal's")
	case q.Get("response_type") != "code":
		return errors.New("response_type must be code")
	case !slices.Contains(strings.Fields(q.Get("scope")), "openid"):
		return errors.New("scope must have openid")
	case q.Get("code_challenge_method") != "S256" || len(q.Get("code_challenge")) != 43:
		return errors.New("code_challenge_method must be S256, with a code_challenge")
	case q.Get("state") == "":
		return errors.New("state is missing")
	}
	return nil
}

func (s *Server) choose(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if err := s.check(q); err != nil {
		http.Error(w, "Development sign-in: "+err.Error(), http.StatusBadRequest)
		return
	}
	if who, ok := s.session(r, q); ok {
		s.giveCode(w, r, q, who)
		return
	}
	if q.Get("prompt") == "none" {
		s.sendBack(w, r, url.Values{"error": {"login_required"}, "state": {q.Get("state")}})
		return
	}
	hidden := map[string]string{}
	for _, name := range carried {
		hidden[name] = q.Get(name)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := authorizePage.Execute(w, map[string]any{"Hidden": hidden, "Employees": s.employees}); err != nil {
		s.log.Warn("development sign-in", "error", err)
	}
}

func (s *Server) chosen(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, "Development sign-in: the form cannot be read", http.StatusBadRequest)
		return
	}
	if err := s.check(r.PostForm); err != nil {
		http.Error(w, "Development sign-in: "+err.Error(), http.StatusBadRequest)
		return
	}
	i := slices.IndexFunc(s.employees, func(e Employee) bool { return e.Subject == r.PostForm.Get("employee") })
	if i < 0 {
		http.Error(w, "Development sign-in: there is nobody of that name", http.StatusBadRequest)
		return
	}
	who := signedIn{s.employees[i], s.now()}
	cookie := rand.Text()
	s.mu.Lock()
	for c, old := range s.sessions {
		if who.at.Sub(old.at) > sessionLife {
			delete(s.sessions, c)
		}
	}
	s.sessions[cookie] = who
	s.mu.Unlock()
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: cookie, Path: "/", HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode})
	s.giveCode(w, r, r.PostForm, who)
}

// session is who signed in in this browser, where that is good enough for a request
// (OpenID Connect Core 1.0, clause 3.1.2.1: prompt, max_age).
func (s *Server) session(r *http.Request, q url.Values) (signedIn, bool) {
	c, err := r.Cookie(sessionCookie)
	if err != nil {
		return signedIn{}, false
	}
	s.mu.Lock()
	who, ok := s.sessions[c.Value]
	s.mu.Unlock()
	if prompt := q.Get("prompt"); !ok || prompt != "" && prompt != "none" {
		return signedIn{}, false
	}
	most := sessionLife
	if q.Has("max_age") {
		seconds, err := strconv.ParseUint(q.Get("max_age"), 10, 31)
		if err != nil {
			return signedIn{}, false
		}
		most = min(most, time.Duration(seconds)*time.Second)
	}
	return who, s.now().Sub(who.at) <= most
}

// giveCode sends the browser back with a code, in the name of who signed in.
func (s *Server) giveCode(w http.ResponseWriter, r *http.Request, q url.Values, who signedIn) {
	code := rand.Text()
	s.mu.Lock()
	for c, g := range s.codes {
		if s.now().After(g.until) {
			delete(s.codes, c)
		}
	}
	s.codes[code] = grant{who.employee, who.at, q.Get("nonce"), q.Get("code_challenge"), s.now().Add(time.Minute)}
	s.mu.Unlock()
	s.sendBack(w, r, url.Values{"code": {code}, "state": {q.Get("state")}})
}

func (s *Server) sendBack(w http.ResponseWriter, r *http.Request, q url.Values) {
	http.Redirect(w, r, s.redirect+"?"+q.Encode(), http.StatusSeeOther)
}

func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	refuse := func(code, why string) {
		answer(w, http.StatusBadRequest, map[string]any{"error": code, "error_description": why})
	}
	if err := r.ParseForm(); err != nil {
		refuse("invalid_request", "the form cannot be read")
		return
	}
	f := r.PostForm
	switch {
	case f.Get("client_id") != Audience:
		refuse("invalid_client", "a public client says who it is in the form")
		return
	case f.Get("grant_type") != "authorization_code":
		refuse("unsupported_grant_type", "authorization_code alone")
		return
	}
	s.mu.Lock()
	g, ok := s.codes[f.Get("code")]
	delete(s.codes, f.Get("code"))
	s.mu.Unlock()
	now := s.now()
	challenge := sha256.Sum256([]byte(f.Get("code_verifier")))
	if !ok || now.After(g.until) || f.Get("redirect_uri") != s.redirect || subtle.ConstantTimeCompare([]byte(b64(challenge[:])), []byte(g.challenge)) != 1 {
		refuse("invalid_grant", "no such code, or not this client's")
		return
	}
	claims := map[string]any{"sub": g.employee.Subject, "name": g.employee.Name, RoleClaim: g.employee.Roles,
		"iat": now.Unix(), "auth_time": g.signedIn.Unix(), "exp": now.Add(Lifetime).Unix()}
	if g.nonce != "" {
		claims["nonce"] = g.nonce
	}
	id, err := s.provider.Sign(claims)
	if err != nil {
		s.log.Error("development sign-in", "error", err)
		answer(w, http.StatusInternalServerError, map[string]any{"error": "server_error"})
		return
	}
	answer(w, http.StatusOK, map[string]any{"access_token": rand.Text(), "token_type": "Bearer", "expires_in": int(Lifetime.Seconds()), "id_token": id})
}

func answer(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("devidp: %v", err)) // maps of strings
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b)
}
