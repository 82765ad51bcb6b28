// Package web is the customer-service portal: pages for the grid operator's
// employees. It is one more client of the REST API, with a TLS client
// certificate of its own and, for each errand, an access token that names the
// employee; there is no way around the API, and nothing that the portal may see
// and the employee may not.
//
// A page is a file page_NAME.go, a template templates/NAME.html and its words in
// texts_NAME.go: README.md says how. No address of a page names a metering point:
// an employee opens a case, and addresses name the case (cases.go).
package web

import (
	"context"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"kluis/internal/connlimit"
	"kluis/meter"
)

// Config is what a portal needs; everything but Secret, Roots and Ready is needed.
type Config struct {
	PublicURL string // https://host, as browsers know it

	Gateway, Issuer string      // https://host:port
	ClientTLS       *tls.Config // the portal's certificate, and whom it trusts
	Operator        meter.GLN   // client_id of employees' tokens

	SignIn SignIn

	Store          Store
	SessionKey     [32]byte
	Idle, Absolute time.Duration
	Connections    connlimit.Limits // each: of one address (IPv6: /64)

	Profile     *meter.Profile
	AuditOrigin string
	AuditKeys   []*ecdsa.PublicKey

	Language string // nl or en
	Registry prometheus.Registerer
	Log      *slog.Logger
	Now      func() time.Time
}

// Portal serves the pages. Its methods that take a request are handlers.
type Portal struct {
	config    Config
	host      string // of PublicURL
	profile   *meter.Profile
	store     Store
	seal      cipher.AEAD
	sessions  *scs.SessionManager
	errands   *errands
	signIn    *signIn
	codes     *codes
	pages     *buckets // by session
	sockets   *connlimit.Limiter
	static    *static
	templates map[string]*templates // by language
	table     []route
	handler   http.Handler
	metrics   *metrics
	log       *slog.Logger
	now       func() time.Time
}

// New makes a portal. It asks nobody yet.
func New(c Config) (*Portal, error) {
	u, err := url.Parse(c.PublicURL)
	if err != nil || u.Scheme != "https" || u.Host == "" || c.PublicURL != "https://"+u.Host {
		return nil, errors.New("web: the public URL must be https://host, without a path")
	}
	if c.SessionKey == [32]byte{} {
		return nil, errors.New("web: the session key is all zeros")
	}
	if err := c.Connections.Check(); err != nil {
		return nil, fmt.Errorf("web: %w", err)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	p := &Portal{config: c, host: u.Host, profile: c.Profile, store: c.Store, log: c.Log, now: c.Now}
	if p.seal, err = newSeal(c.SessionKey); err != nil {
		return nil, err
	}
	if p.metrics, err = newMetrics(c.Registry); err != nil {
		return nil, err
	}
	p.sockets = connlimit.New(connlimit.Config{Limits: c.Connections, Holder: closedAddress, Of: connlimit.Address, Anybody: true,
		Closed: func(why string) { p.metrics.closed.WithLabelValues(why).Inc() }})
	p.sessions = p.newSessions()
	if p.errands, err = newErrands(c, p.metrics); err != nil {
		return nil, err
	}
	p.signIn, p.codes, p.pages = newSignIn(c), newCodes(), newBuckets(pagesPerSecond, pagesBurst)
	if p.static, err = newStatic(); err != nil {
		return nil, err
	}
	p.table = p.routes()
	if err := p.parseTemplates(); err != nil {
		return nil, err
	}
	p.handler = p.newHandler()
	return p, nil
}

// Handler serves the pages.
func (p *Portal) Handler() http.Handler { return p.handler }

func (p *Portal) newHandler() http.Handler {
	mux := chi.NewRouter()
	for _, rt := range p.table {
		mux.Method(rt.method, rt.path, p.enter(rt))
	}
	none := route{path: "none", roles: everyone, handle: func(http.ResponseWriter, *http.Request) error { return errNoPage }}
	mux.NotFound(p.enter(none).ServeHTTP)
	none.handle = func(http.ResponseWriter, *http.Request) error { return errNoMethod }
	mux.MethodNotAllowed(p.enter(none).ServeHTTP)
	return mux
}

// Limits of the HTTP server. A browser sends little: small forms.
const (
	maxHeader = 16 << 10
	maxForm   = 16 << 10
	// maxStreams are the requests that one connection may have under way (HTTP/2).
	maxStreams = 64
)

// Serve serves on l until ctx ends, then waits for what is under way, at most
// drain long.
func (p *Portal) Serve(ctx context.Context, l net.Listener, tlsConfig *tls.Config, drain time.Duration) error {
	srv := &http.Server{
		Handler: p.handler, TLSConfig: tlsConfig.Clone(),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: pageTimeout + 15*time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerConnection: 256 << 10,
			MaxReceiveBufferPerStream:     64 << 10,
			SendPingTimeout:               30 * time.Second, // who does not answer is gone
			PingTimeout:                   15 * time.Second,
			WriteByteTimeout:              30 * time.Second,
		},
	}
	p.sockets.Bound(srv)
	purging, cancel := context.WithCancel(ctx)
	defer cancel()
	go p.purge(purging)
	failed := make(chan error, 1)
	go func() { failed <- srv.ServeTLS(l, "", "") }()
	select {
	case err := <-failed:
		return fmt.Errorf("web: %w", err)
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	p.errands.close()
	return srv.Shutdown(ending)
}

// purge removes sessions that have ended, now and then.
func (p *Portal) purge(ctx context.Context) {
	tick := time.NewTicker(5 * time.Minute)
	defer tick.Stop()
	for {
		if err := p.store.Purge(ctx, p.now()); err != nil && ctx.Err() == nil {
			p.log.Warn("sessions that ended are still stored", "error", err)
		}
		p.errands.purge()
		p.codes.purge(p.now())
		p.pages.purge(p.now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
