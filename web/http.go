package web

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
)

// pageTimeout bounds a whole page with the calls it makes.
const pageTimeout = 25 * time.Second

// visit is what is known of a request: handlers and templates get it by visitOf.
type visit struct {
	route   route
	Lang    string   // nl or en
	Theme   string   // light, dark, or auto
	Session *session // nil: nobody signed in
	Case    *Case    // nil: the route is of no case

	status  int
	failed  string // name of the problem shown
	cause   error
	terms   int // explained so far on the page
	started time.Time
}

type visitKey struct{}

// visitOf is the visit that a request is.
func visitOf(r *http.Request) *visit {
	v, ok := r.Context().Value(visitKey{}).(*visit)
	if !ok {
		panic("web: a handler outside of the table")
	}
	return v
}

// policy lets a page load from this server alone, and nothing inline.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// protect sets the headers that every answer has.
func protect(h http.Header) {
	h.Set("Content-Security-Policy", policy)
	h.Set("Cache-Control", "no-store")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Strict-Transport-Security", "max-age=31536000")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
}

// enter is what every request goes through, whatever it asks for.
func (p *Portal) enter(rt route) http.Handler {
	csrf := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := &visit{route: rt, started: p.now()}
		ctx, cancel := context.WithTimeout(context.WithValue(r.Context(), visitKey{}, v), pageTimeout)
		defer cancel()
		r = r.WithContext(ctx)
		w = &statusWriter{w, v}
		protect(w.Header())
		v.Lang, v.Theme = p.language(r), theme(r)
		defer func() {
			if recovered := recover(); recovered != nil {
				// The value may hold anything of the request: only where it
				// happened is logged.
				p.log.Error("panic", "route", rt.path, "stack", stack())
				if v.status == 0 {
					p.fail(w, r, errors.New("panic"))
				}
			}
			p.finish(r, v)
		}()
		if err := csrf.Check(r); err != nil {
			p.fail(w, r, errForeign)
			return
		}
		if err := p.admit(w, r, v); err != nil {
			p.fail(w, r, err)
			return
		}
		if v.Session != nil { // others make way for who signed in
			defer p.sockets.Hold(ctx)()
		}
		if err := rt.handle(w, r); err != nil {
			p.fail(w, r, err)
		}
	})
}

// admit finds the session and the case, and says whether the route is for who asks.
func (p *Portal) admit(w http.ResponseWriter, r *http.Request, v *visit) (err error) {
	rt := v.route
	if r.Host != p.host {
		return errHost
	}
	if rt.path == "/static/{name}" || rt.path == "/healthz" {
		return nil
	}
	if r.Method == http.MethodPost {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		if err := r.ParseForm(); err != nil {
			return errForm
		}
	}
	v.Session, err = p.findSession(r, !rt.quiet)
	if len(rt.roles) == 0 {
		if err != nil {
			v.cause = err // who is not known yet gets the page for that
		}
		return nil
	}
	if err != nil {
		return err
	}
	switch left := p.idTokenLeft(v); {
	case v.Session == nil:
		return errSignIn
	case left <= 0, left < idTokenLeast && r.Method == http.MethodGet && r.Header.Get("HX-Request") == "":
		return errSignInAgain
	}
	if !slices.Contains(rt.roles, v.Session.Role) {
		return errNoRights
	}
	if !p.mayTurn(rt, v.Session) {
		w.Header().Set("Retry-After", "5")
		return errTooFast
	}
	if strings.HasPrefix(rt.path, "/c/{case}") {
		v.Case, err = p.findCase(r.Context(), v.Session, chi.URLParam(r, "case"))
	}
	return err
}

// idTokenLeast: with less of the ID token left, whoever goes to another page signs
// in again, rather than in the middle of what they do there.
const idTokenLeast = 2 * time.Minute

func (p *Portal) idTokenLeft(v *visit) time.Duration {
	if v.Session == nil {
		return 0
	}
	return v.Session.ExpiresAt.Sub(p.now())
}

// language is what was chosen, else what the browser prefers of what there is.
func (p *Portal) language(r *http.Request) string {
	if c, err := r.Cookie(languageCookie); err == nil && slices.Contains(languages, c.Value) {
		return c.Value
	}
	for part := range strings.SplitSeq(r.Header.Get("Accept-Language"), ",") {
		tag, _, _ := strings.Cut(strings.TrimSpace(part), ";")
		tag, _, _ = strings.Cut(strings.ToLower(tag), "-")
		if slices.Contains(languages, tag) {
			return tag
		}
	}
	return p.config.Language
}

const (
	languageCookie = "__Host-kluis-language"
	themeCookie    = "__Host-kluis-theme"
)

var themes = []string{"auto", "light", "dark"}

func theme(r *http.Request) string {
	if c, err := r.Cookie(themeCookie); err == nil && slices.Contains(themes, c.Value) {
		return c.Value
	}
	return "auto"
}

// preferences answers POST /preferences: language or theme, then back.
func (p *Portal) preferences(w http.ResponseWriter, r *http.Request) error {
	for _, c := range []struct {
		name, value string
		of          []string
	}{{languageCookie, r.PostForm.Get("language"), languages}, {themeCookie, r.PostForm.Get("theme"), themes}} {
		if slices.Contains(c.of, c.value) {
			http.SetCookie(w, &http.Cookie{Name: c.name, Value: c.value, Path: "/", MaxAge: 365 * 24 * 3600, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
		}
	}
	http.Redirect(w, r, localPath(r.PostForm.Get("back")), http.StatusSeeOther)
	return nil
}

// localPath is a path of this server that was sent back and forth, or "/".
func localPath(s string) string {
	if !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//") || len(s) > 256 {
		return "/"
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '/' && r != '-' {
			return "/"
		}
	}
	return s
}

func (p *Portal) healthz(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := w.Write([]byte("ok\n"))
	return ignoreGone(err)
}

// ignoreGone: whoever went away needs no answer.
func ignoreGone(error) error { return nil }

// stay answers POST /session/stay: the click itself is what lets a session go on.
func (p *Portal) stay(w http.ResponseWriter, _ *http.Request) error {
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// statusWriter remembers the status sent.
type statusWriter struct {
	http.ResponseWriter
	v *visit
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	if w.v.status == 0 {
		w.v.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *statusWriter) Write(b []byte) (int, error) {
	if w.v.status == 0 {
		w.v.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController through.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// finish writes the one line of log that a request leaves: no address but the
// route's pattern, nothing of a customer, of an employee a digest.
func (p *Portal) finish(r *http.Request, v *visit) {
	took := p.now().Sub(v.started)
	if v.status == 0 {
		v.status = http.StatusOK
	}
	p.metrics.request(v.route.path, v.status, took)
	if v.route.quiet && v.status < http.StatusBadRequest && v.cause == nil {
		return
	}
	level := slog.LevelInfo
	switch {
	case v.status >= http.StatusInternalServerError:
		level = slog.LevelError
	case v.cause != nil:
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{
		slog.String("method", knownMethod(r.Method)), slog.String("route", v.route.path), slog.Int("status", v.status), slog.Duration("duration", took),
	}
	if v.Session != nil {
		attrs = append(attrs, slog.String("employee", p.employeeDigest(v.Session.Subject)), slog.String("role", string(v.Session.Role)))
	}
	if v.failed != "" {
		attrs = append(attrs, slog.String("problem", v.failed))
	}
	if v.cause != nil {
		attrs = append(attrs, slog.String("cause", logged(v.cause)))
	}
	p.log.LogAttrs(context.WithoutCancel(r.Context()), level, "request", attrs...)
}

// knownMethod keeps callers from choosing what the log holds.
func knownMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}

// stack says where a panic happened: functions and lines, no arguments.
func stack() string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	var b strings.Builder
	for {
		f, more := frames.Next()
		b.WriteString(f.Function + " " + f.File + ":" + strconv.Itoa(f.Line) + "\n")
		if !more {
			return b.String()
		}
	}
}
