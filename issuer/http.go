package issuer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"time"

	"kluis/meter"
)

// failure is an error with its public side (RFC 6749, clause 5.2). reason and
// cause are for the log only.
type failure struct {
	status      int
	code        string
	description string
	reason      string
	cause       error
}

const (
	codeInvalidRequest = "invalid_request"
	codeInvalidClient  = "invalid_client"
	clientDescription  = "Client authentication failed. Call with the client certificate that is registered for this client_id."
)

func (f *failure) Error() string {
	if f.cause == nil {
		return f.reason
	}
	return f.reason + ": " + f.cause.Error()
}

func (f *failure) Unwrap() error { return f.cause }

func invalidRequest(reason, description string) error {
	return &failure{status: http.StatusBadRequest, code: codeInvalidRequest, reason: reason, description: description}
}

func invalidClient(reason string) error {
	return &failure{status: http.StatusUnauthorized, code: codeInvalidClient, reason: reason, description: clientDescription}
}

func invalidScope(reason string) error {
	return &failure{status: http.StatusBadRequest, code: "invalid_scope", reason: reason,
		description: "The scope is malformed or not registered for this client."}
}

func unavailable(reason string, cause error) error {
	return &failure{status: http.StatusServiceUnavailable, code: "temporarily_unavailable", reason: reason, cause: cause,
		description: "A back end is away. Nothing was issued; try again."}
}

func internal(reason string, cause error) error {
	return &failure{status: http.StatusInternalServerError, code: "server_error", reason: reason, cause: cause,
		description: "The request failed on the server's side; its operator has been told."}
}

// errWrite marks an answer that did not reach the caller: nothing more can be
// said to it.
var errWrite = errors.New("the answer could not be written")

func writeFailed(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errWrite, err)
}

func noStore(w http.ResponseWriter) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache") // RFC 6749, clause 5.1
}

// writeFailure answers an error.
func writeFailure(w http.ResponseWriter, f *failure) error {
	body, err := json.Marshal(struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}{f.code, f.description})
	if err != nil {
		return err
	}
	noStore(w)
	w.Header().Set("Content-Type", "application/json")
	if f.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "2")
	}
	w.WriteHeader(f.status)
	_, err = w.Write(body)
	return writeFailed(err)
}

// event is what the one log line of a request says.
type event struct {
	route    string
	supplier meter.GLN // claimed by the caller; zero until parsed
	exchange bool      // a token exchange
}

type handler func(http.ResponseWriter, *http.Request, *event) error

func (is *Issuer) routes() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range []struct {
		method, path string
		handler      handler
	}{
		{http.MethodPost, "/oauth2/token", is.token},
		{http.MethodGet, "/oauth2/jwks", is.jwks},
		{http.MethodGet, "/.well-known/oauth-authorization-server", is.discovery},
		{http.MethodGet, "/healthz", is.healthz},
		{http.MethodGet, "/readyz", is.readyz},
	} {
		mux.Handle(rt.method+" "+rt.path, is.handle(rt.path, rt.handler))
		mux.Handle(rt.path, is.handle(rt.path, methodNotAllowed(rt.method)))
	}
	mux.Handle("/", is.handle("other", notFound))
	return mux
}

func methodNotAllowed(allow string) handler {
	if allow == http.MethodGet {
		allow = "GET, HEAD"
	}
	return func(w http.ResponseWriter, _ *http.Request, _ *event) error {
		w.Header().Set("Allow", allow)
		return &failure{status: http.StatusMethodNotAllowed, code: codeInvalidRequest, reason: "method_not_allowed",
			description: "This address takes " + allow + " only."}
	}
}

func notFound(http.ResponseWriter, *http.Request, *event) error {
	return &failure{status: http.StatusNotFound, code: codeInvalidRequest, reason: "not_found", description: "There is nothing here."}
}

// handle runs a handler, answers its error, and writes the one log line: never
// the URL as sent, a header or a parameter, which may hold a secret.
func (is *Issuer) handle(route string, h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		e := &event{route: route}
		sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		err := recovered(sw, r, e, h)
		var f *failure
		if err != nil && !errors.As(err, &f) && !errors.Is(err, errWrite) {
			err = internal("internal", err)
			errors.As(err, &f)
		}
		if f != nil && !sw.written {
			if werr := writeFailure(sw, f); werr != nil {
				err = errors.Join(err, werr)
			}
		}
		is.log(r.Context(), e, sw.status, time.Since(start), f, err)
	})
}

// recovered turns a panic into an error, which says where it happened. The
// value may hold anything of the request, and is not kept.
func recovered(w http.ResponseWriter, r *http.Request, e *event, h handler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = internal("panic", errors.New(stack()))
		}
	}()
	return h(w, r, e)
}

// stack lists functions and lines from the panic on, called from the function
// that recovers it. A stack as the runtime prints it shows arguments too.
func stack() string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	var b strings.Builder
	for {
		f, more := frames.Next()
		fmt.Fprintf(&b, "%s %s:%d\n", f.Function, f.File, f.Line)
		if !more {
			return b.String()
		}
	}
}

func (is *Issuer) log(ctx context.Context, e *event, status int, d time.Duration, f *failure, err error) {
	level := slog.LevelInfo
	attrs := []slog.Attr{slog.String("route", e.route), slog.Int("status", status), slog.Duration("duration", d)}
	if !e.supplier.IsZero() {
		attrs = append(attrs, slog.String("client_id", e.supplier.String()))
	}
	if e.exchange {
		attrs = append(attrs, slog.Bool("exchange", true))
	}
	if f != nil {
		attrs = append(attrs, slog.String("error", f.code), slog.String("reason", f.reason))
	}
	if status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	if f == nil && err != nil || f != nil && f.cause != nil {
		attrs = append(attrs, slog.String("cause", err.Error()))
	}
	is.Log.LogAttrs(ctx, level, "request", attrs...)
}

// statusWriter remembers what was answered.
type statusWriter struct {
	http.ResponseWriter
	status  int
	written bool
}

func (w *statusWriter) WriteHeader(status int) {
	w.status, w.written = status, true
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	w.written = true
	return w.ResponseWriter.Write(b)
}

// Unwrap serves http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Serve serves on l until ctx ends, then stops accepting and waits for the
// requests under way, at most drain long. tlsConfig must demand TLS 1.3 and
// name the suppliers' CA; client certificates are verified where given, because
// keys and metadata are public.
func (is *Issuer) Serve(ctx context.Context, l net.Listener, tlsConfig *tls.Config, drain time.Duration) error {
	if tlsConfig == nil || tlsConfig.ClientCAs == nil || tlsConfig.MinVersion < tls.VersionTLS13 {
		return errors.Join(errors.New("issuer: the TLS configuration must require TLS 1.3 and name the suppliers' CA"), l.Close())
	}
	tlsConfig = tlsConfig.Clone()
	tlsConfig.ClientAuth = tls.VerifyClientCertIfGiven
	srv := &http.Server{
		Handler:           is.handler,
		TLSConfig:         tlsConfig,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      requestTimeout + 10*time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(is.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.ServeTLS(l, "", "") }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err := srv.Shutdown(stop)
	if err != nil {
		err = errors.Join(fmt.Errorf("requests still under way after %s were cut off: %w", drain, err), srv.Close())
	}
	if served := <-failed; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
