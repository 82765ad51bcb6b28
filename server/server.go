// Package server is the REST API of Kluis: it authenticates a supplier or an
// employee, has authz decide, fetches and opens only what was granted, has
// steps of consents sealed and stores them, records the access, and answers.
// The contract is openapi/openapi.yaml; docs/REQUEST-CYCLE.md tells the way of
// a request.
//
// Nothing leaves before its access record is durable, and an error never
// carries data: a handler returns either an answer or an error, the public
// side of which is one of the contract's problems.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/internal/authn"
	"kluis/internal/connlimit"
	"kluis/meter"
	"kluis/openapi"
)

// Tokens verifies access tokens; *authn.Verifier is one.
type Tokens interface {
	Verify(ctx context.Context, raw string, leaf [32]byte) (*authn.Token, error)
}

// Facts fetches sealed facts as they are stored at this moment: an answer is
// never older than the call. Nothing stored is nil without an error; an error
// means that the database did not serve.
type Facts interface {
	// Supplier returns the current sealed record of a supplier.
	Supplier(ctx context.Context, gln meter.GLN) ([]byte, error)
	// LegalFile returns the current sealed legal file of a metering point, and
	// the one before.
	LegalFile(ctx context.Context, ean meter.EAN) (authz.StoredFile, error)
	// Candidates returns metering points that the indexes connect with a
	// supplier, with their current sealed legal files, without the ones before:
	// ascending, above after, at most limit. An index is no evidence: the
	// caller judges each file.
	Candidates(ctx context.Context, gln meter.GLN, after meter.EAN, limit int) ([]Candidate, error)
}

// Candidate is a metering point that may belong into a list.
type Candidate struct {
	EAN       meter.EAN
	LegalFile authz.StoredFile
}

// Rows fetches ciphertext, or looks for it. There is no way to fetch any without
// a Grant.
type Rows interface {
	// Blocks returns the current versions of exactly the granted blocks, and
	// the data key records they name. An error means that the database did
	// not serve.
	Blocks(ctx context.Context, g authz.Grant, asOf time.Time) ([]envelope.KeyRecord, []envelope.SealedBlock, error)
	// Stored says which of the stored days that grants of one metering point
	// read are there, without fetching them: ascending by field and day.
	Stored(ctx context.Context, grants []authz.Grant) ([]StoredRun, error)
	// Inventory says which days are stored, for who may know that and no more.
	Inventory(ctx context.Context, i authz.Inventory) ([]StoredRun, error)
}

// StoredRun is a run of days of a field, each of which has a stored block that
// is not erased.
type StoredRun struct {
	Field      meter.FieldCode
	Days       meter.DayRange
	Resolution meter.Resolution // of the blocks
	LastStored time.Time        // when the youngest of them was stored
}

// Opener has blocks opened by a cryptoserver, which decides again on the
// caller's own evidence.
type Opener interface {
	// Open fails with ErrNoCryptoserver when none can serve, with
	// ErrTokenRefused or ErrEvidenceRefused when a cryptoserver refuses what
	// the gateway accepted, and with authz.ErrNoRelation.
	Open(ctx context.Context, r OpenRequest) (Opened, error)
}

// The refusals of an Opener.
var (
	ErrNoCryptoserver  = errors.New("no cryptoserver serves")
	ErrTokenRefused    = errors.New("the cryptoserver refuses the caller's token or supplier record")
	ErrEvidenceRefused = errors.New("the cryptoserver refuses the legal file")
)

// OpenRequest is one metering point's blocks with all evidence for them.
type OpenRequest struct {
	Token       string // the caller's access token, as presented
	Supplier    []byte // sealed record
	LegalFile   []byte // sealed
	Interaction [16]byte
	Request     authz.Request
	Keys        []envelope.KeyRecord
	Blocks      []envelope.SealedBlock
}

// Opened is what a cryptoserver gives.
type Opened struct {
	Series   []meter.Series
	Withheld []authz.Withheld // by its own decision, and what did not open
	Outside  int              // blocks refused because the evidence does not cover them
	Damaged  int              // blocks that did not open
	Receipt  []byte           // verbatim
}

// Sealer has a step of a consent applied and signed by a cryptoserver, which
// judges it again on the caller's own evidence.
type Sealer interface {
	// TakeStep returns the next version of the legal file, sealed. It fails
	// with ErrNoCryptoserver when none can serve, with ErrTokenRefused or
	// ErrEvidenceRefused when a cryptoserver refuses what the gateway accepted,
	// and with the errors of authz.Permit.
	TakeStep(ctx context.Context, r StepRequest) ([]byte, error)
	// TakeSupplierStep returns the next version of the supplier's record,
	// sealed. It fails as TakeStep does, with authz.ErrNotPermitted, and with
	// authz.ErrStep when there is nothing to be done.
	TakeSupplierStep(ctx context.Context, r SupplierStepRequest) ([]byte, error)
}

// StepRequest is a step of a consent with all evidence for it.
type StepRequest struct {
	Token     string // the caller's access token, as presented
	Supplier  []byte // sealed record of the token's client
	LegalFile []byte // sealed, the version before
	Step      authz.Step
}

// Steps finds consents, and keeps the steps of their lives.
type Steps interface {
	// Consent returns the metering points at which the index has a consent of
	// this id for a supplier, with their current sealed legal files: one at
	// most, if nobody meddled. An index is no evidence.
	Consent(ctx context.Context, supplier meter.GLN, id [16]byte) ([]Candidate, error)
	// Stored returns what was stored under a caller's idempotency key; nil when
	// nothing was.
	Stored(ctx context.Context, caller meter.GLN, key [32]byte) (*StoredStep, error)
	// Store stores the new version of the legal file, its index of consents, the
	// idempotency key and the access record, all or none of them. It fails with
	// ErrConflict when one of them is there already, and nothing was stored;
	// after any other error it may have been stored or not.
	Store(ctx context.Context, n NewStep) error
}

// ErrConflict: somebody else stored this version, or this key, first.
var ErrConflict = errors.New("stored by another writer first")

// StoredStep is what an idempotency key stands for.
type StoredStep struct {
	Request [32]byte // SHA-256 of what was asked
	Consent [16]byte
}

// NewStep is a step to be stored.
type NewStep struct {
	File   *authz.LegalFile // the new version
	Sealed []byte           // that it was verified from
	Caller meter.GLN
	Key    [32]byte // SHA-256 of the idempotency key
	Stored StoredStep
	Record audit.Record
}

// Recorder keeps the access log.
type Recorder interface {
	// Record returns without an error only once the record is durable.
	Record(ctx context.Context, r audit.Record) error
}

// Health asks the back ends how they fare. Each call returns by its context's
// deadline.
type Health interface {
	Database(ctx context.Context) error
	// Cryptoservers lists every configured one.
	Cryptoservers(ctx context.Context) []Cryptoserver
	// LastStored is when a block of readings was last stored; zero when none
	// is.
	LastStored(ctx context.Context) (time.Time, error)
	// LogHead is the newest signed head of the audit log; nil when there is
	// none.
	LogHead(ctx context.Context) (*LogHead, error)
}

// Cryptoserver is the state of one.
type Cryptoserver struct {
	Name    string
	Serves  bool
	Details *CryptoserverDetails // nil where it does not answer
}

// Config is what a Server is made of. Everything but Tracer is required.
type Config struct {
	Profile        *meter.Profile
	SealKeys       *authz.SealKeys
	Tokens         Tokens
	Facts          Facts
	Rows           Rows
	Opener         Opener
	Identities     Identities
	Sealer         Sealer
	Steps          Steps
	Register       Register
	Recorder       Recorder
	AccessLog      AccessLog
	Proofs         LogProofs
	Many           Many
	Feed           Feed
	Health         Health
	Overseer       Overseer
	Version        string        // of the gateway
	CursorKeys     [][32]byte    // 1 to 8, the same at all gateways; the first one seals
	PublicURL      string        // https://host:port, for links
	RequestTimeout time.Duration // of a whole request
	Limits         Limits
	Now            func() time.Time
	Log            *slog.Logger
	Metrics        prometheus.Registerer
	Tracer         trace.Tracer // nil: no traces
}

// Server serves the API.
type Server struct {
	profile    *meter.Profile
	seals      *authz.SealKeys
	tokens     Tokens
	facts      Facts
	rows       Rows
	opener     Opener
	identities Identities
	sealer     Sealer
	steps      Steps
	register   Register
	recorder   Recorder
	accesses   AccessLog
	proofs     LogProofs
	many       Many
	feed       Feed
	health     Health
	overseer   Overseer
	version    string
	started    time.Time
	cursors    cursors
	tagKey     []byte
	public     *url.URL
	timeout    time.Duration
	turns      *turns
	limits     *limiter
	now        func() time.Time
	log        *slog.Logger
	metrics    *metrics

	limitMetrics *limitMetrics
	connections  *connlimit.Limiter
	deprecated   map[*route]*deprecated
	tracer       trace.Tracer
	docs         *docs
	handler      http.Handler
	// draining is closed when the server is told to stop: streams end at their
	// next metering point.
	draining chan struct{}
	drain    func()
}

// New checks the configuration and compiles the contract.
func New(c Config) (*Server, error) {
	switch {
	case c.Profile == nil, c.SealKeys == nil, c.Tokens == nil, c.Facts == nil, c.Rows == nil, c.Opener == nil, c.Identities == nil,
		c.Sealer == nil, c.Steps == nil, c.Register == nil, c.Recorder == nil, c.AccessLog == nil, c.Proofs == nil, !c.Many.whole(), c.Feed == nil, c.Health == nil, c.Overseer == nil, c.Now == nil, c.Log == nil, c.Metrics == nil:
		return nil, errors.New("server: a part is missing from the configuration")
	case c.RequestTimeout <= 0:
		return nil, errors.New("server: the request timeout must be positive")
	}
	if err := c.Limits.check(); err != nil {
		return nil, err
	}
	public, err := url.Parse(c.PublicURL)
	if err != nil || public.Scheme != "https" || public.Host == "" {
		return nil, errors.New("server: the public URL must be https://host:port")
	}
	s := &Server{
		profile: c.Profile, seals: c.SealKeys, tokens: c.Tokens, facts: c.Facts, rows: c.Rows, opener: c.Opener, identities: c.Identities,
		sealer: c.Sealer, steps: c.Steps, register: c.Register, recorder: c.Recorder, accesses: c.AccessLog, proofs: c.Proofs, many: c.Many, feed: c.Feed, health: c.Health, overseer: c.Overseer, version: c.Version, started: c.Now(), public: public, timeout: c.RequestTimeout,
		turns: newTurns(c.Limits.Turns, time.Now), now: c.Now, log: c.Log,
	}
	if s.cursors, err = newCursors(c.CursorKeys); err != nil {
		return nil, err
	}
	if s.tagKey, err = newTagKey(c.CursorKeys[0]); err != nil {
		return nil, err
	}
	s.tracer = c.Tracer
	if s.metrics, err = newMetrics(c.Metrics); err != nil {
		return nil, err
	}
	if s.limitMetrics, err = newLimitMetrics(c.Metrics, s.turns); err != nil {
		return nil, err
	}
	if s.limits, err = newLimiter(c.Limits, c.Now); err != nil {
		return nil, err
	}
	shared, err := contract()
	if err != nil {
		return nil, err
	}
	doc := *shared // the validator sets its servers
	s.connections = connlimit.New(connlimit.Config{Limits: c.Limits.Connections, Holder: closedCertificate, Of: connlimit.Certificate,
		Closed: func(why string) { s.limitMetrics.closed.WithLabelValues(why).Inc() }})
	s.deprecated = map[*route]*deprecated{}
	may := make([]*callers, len(routes))
	for i := range routes {
		if may[i], err = callersOf(&doc, &routes[i]); err != nil {
			return nil, err
		}
		if s.deprecated[&routes[i]], err = deprecatedOf(&doc, &routes[i], public.JoinPath("docs").String()); err != nil {
			return nil, err
		}
	}
	if s.docs, err = newDocs(); err != nil {
		return nil, err
	}
	s.draining = make(chan struct{})
	s.drain = sync.OnceFunc(func() { close(s.draining) })
	s.handler = s.router(may, s.validate(&doc))
	return s, nil
}

// contract is parsed once for all servers of the process, and not changed.
var contract = sync.OnceValues(openapi.Load)

// Handler serves the API. It relies on TLS with verified client certificates:
// see HTTPServer.
func (s *Server) Handler() http.Handler { return s.handler }

// route is one operation of the contract.
type route struct {
	method, path string
	token        bool  // wants an access token; of whom, the contract says
	body         bool  // has a body; no other may be sent one
	maxBody      int64 // in bytes; 0: maxBody
	// take reads a body that is too long to be kept, as it comes in, and leaves
	// in the call what was in it; nil: it is kept.
	take  func(*Server, http.ResponseWriter, *http.Request) error
	query []string // the query parameters there are
	media []string // of the answer, where Accept chooses among several
	// check finds the faults of the parameters that the contract's language
	// cannot express; nil when there are none.
	check func(*Server, *http.Request) paramErrors
	serve func(openapi.ServerInterfaceWrapper) http.HandlerFunc
}

var routes = []route{
	{
		method: http.MethodGet, path: "/v1/metering-points", token: true,
		query: []string{"cursor", "limit"}, check: checkList,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.ListMeteringPoints },
	},
	{
		method: http.MethodGet, path: "/v1/metering-points/{ean}/readings", token: true,
		query: []string{"from", "to", "purpose", "fields", "class", "resolution", "kind", "asOf"}, check: checkReadings, media: readingsMedia,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.GetReadings },
	},
	{
		method: http.MethodPost, path: "/v1/readings/query", token: true, media: queryMedia,
		body: true, maxBody: maxQueryBody, take: (*Server).takeQuery, check: checkQuery,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.QueryReadings },
	},
	{
		method: http.MethodGet, path: "/v1/changes", token: true,
		query: []string{"since", "cursor", "limit"}, check: checkChanges,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.ListChanges },
	},
	{
		method: http.MethodGet, path: "/v1/metering-points/{ean}/access", token: true,
		query: []string{"purpose", "supplier", "from", "to"}, check: checkAccess,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.GetAccess },
	},
	{
		method: http.MethodGet, path: "/v1/metering-points/{ean}/consents", token: true, check: checkEAN,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.ListConsents },
	},
	{
		method: http.MethodGet, path: "/v1/metering-points/{ean}/access-log", token: true,
		query: []string{"from", "to", "occupancy", "supplier", "lang", "cursor", "limit"}, check: checkAccessLog, media: logMedia,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.GetAccessLog },
	},
	{
		method: http.MethodGet, path: "/v1/metering-points/{ean}/access-log/{interaction}/proof", token: true,
		query: []string{"occupancy"}, check: checkProof,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.GetAccessProof },
	},
	{
		method: http.MethodPost, path: "/v1/metering-points/find", token: true, body: true, check: checkFind,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.FindMeteringPoints },
	},
	{
		method: http.MethodGet, path: "/v1/metering-points/{ean}/connection", token: true,
		query: []string{"identity"}, check: checkConnection,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.GetConnection },
	},
	{
		method: http.MethodPost, path: "/v1/consents/preview", token: true, body: true, check: checkPreview,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.PreviewConsent },
	},
	{
		method: http.MethodGet, path: "/v1/suppliers", token: true,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.ListSuppliers },
	},
	{
		method: http.MethodPost, path: "/v1/suppliers/{gln}/suspend", token: true, check: checkSupplierStep,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.SuspendSupplier },
	},
	{
		method: http.MethodPost, path: "/v1/suppliers/{gln}/resume", token: true, check: checkSupplierStep,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.ResumeSupplier },
	},
	{
		method: http.MethodGet, path: "/v1/operations", token: true,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.GetOperations },
	},
	{
		method: http.MethodGet, path: "/v1/oversight", token: true,
		query: []string{"from", "to"}, check: checkOversight,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.GetOversight },
	},
	{
		method: http.MethodPost, path: "/v1/consents", token: true, body: true, check: checkNewConsent,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.CreateConsent },
	},
	{
		method: http.MethodGet, path: "/v1/consents/{id}", token: true, check: checkID,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.GetConsent },
	},
	{
		method: http.MethodPost, path: "/v1/consents/{id}/grant", token: true, body: true, check: checkGrant,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.GrantConsent },
	},
	{
		method: http.MethodPost, path: "/v1/consents/{id}/reject", token: true, check: checkIfMatch,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.RejectConsent },
	},
	{
		method: http.MethodPost, path: "/v1/consents/{id}/revoke", token: true, check: checkIfMatch,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.RevokeConsent },
	},
	{
		method: http.MethodGet, path: "/v1/status", token: true,
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.GetStatus },
	},
	{
		method: http.MethodGet, path: "/v1/manifest-keys",
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.GetManifestKeys },
	},
	{
		method: http.MethodGet, path: "/healthz",
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.GetHealth },
	},
	{
		method: http.MethodGet, path: "/readyz",
		serve: func(w openapi.ServerInterfaceWrapper) http.HandlerFunc { return w.GetReadiness },
	},
}

func (s *Server) router(may []*callers, validate func(*route) func(http.Handler) http.Handler) http.Handler {
	strict := openapi.NewStrictHandlerWithOptions(s, nil, openapi.StrictHTTPServerOptions{
		RequestErrorHandlerFunc:  s.writeFailure,
		ResponseErrorHandlerFunc: s.writeFailure,
	})
	wrapper := openapi.ServerInterfaceWrapper{
		Handler: strict,
		ErrorHandlerFunc: func(w http.ResponseWriter, r *http.Request, err error) {
			s.writeFailure(w, r, s.refuseParams(r, err))
		},
	}
	mux := chi.NewRouter()
	mux.Use(s.observe, s.trace)
	for i := range routes {
		rt := &routes[i]
		chain := chi.Chain(s.enter(rt), s.authenticate(may[i]), s.readBody(rt), validate(rt), s.acceptable, s.conditional)
		mux.Method(rt.method, rt.path, chain.HandlerFunc(rt.serve(wrapper)))
	}
	s.docs.route(mux.With(s.anyone))
	mux.NotFound(s.anyone(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.writeFailure(w, r, fail(notFound, nil))
	})).ServeHTTP)
	mux.MethodNotAllowed(s.anyone(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", allowed(mux, r.URL.Path))
		s.writeFailure(w, r, fail(methodNotAllowed, nil))
	})).ServeHTTP)
	return mux
}

// allowed lists the methods that a path has.
func allowed(mux *chi.Mux, path string) string {
	var methods []string
	for _, m := range []string{http.MethodGet, http.MethodPost} { // those of the routes
		if mux.Match(chi.NewRouteContext(), m, path) {
			methods = append(methods, m)
		}
	}
	return strings.Join(methods, ", ")
}

// call is the state of one request on its way through the chain.
type call struct {
	route    *route
	caller   authn.Caller
	token    string
	supplier []byte     // sealed record
	body     []byte     // of an operation that has one
	media    string     // of the answer of one that has several; "": Accept allows none
	has      entityTags // of If-None-Match
	packed   bool       // the answer of one that may be compressed is
	verified *authn.Token
	asked    *manyQuery  // of queryReadings
	faults   paramErrors // of its body
	// connection is the context of the request without the deadline of enter:
	// it ends with the client.
	connection context.Context
	ends       []func()
}

// atEnd has f called when the request has ended, however.
func (c *call) atEnd(f func()) { c.ends = append(c.ends, f) }

func (c *call) end() {
	for _, f := range c.ends {
		f()
	}
}

type callKey struct{}

func (rt *route) bodyLimit() int64 { return cmp.Or(rt.maxBody, maxBody) }

func callOf(ctx context.Context) *call {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		panic("server: handler outside of its route")
	}
	return c
}

func routeOf(ctx context.Context) *route { return callOf(ctx).route }

// enter bounds the request in time, and refuses a body and a token in the
// query string before anything else looks at the request.
func (s *Server) enter(rt *route) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			eventOf(r.Context()).route = rt.path
			ctx, cancel := context.WithTimeout(r.Context(), s.timeout)
			defer cancel()
			c := &call{route: rt, connection: r.Context()}
			defer c.end()
			s.deprecated[rt].mark(w.Header(), r)
			c.choose(w.Header(), r)
			if rt.token {
				c.packed = acceptsGzip(r.Header)
				w.Header().Add("Vary", "Accept-Encoding")
			}
			r = r.WithContext(context.WithValue(ctx, callKey{}, c))
			if r.ContentLength > rt.bodyLimit() || !rt.body && r.ContentLength != 0 { // also -1, chunked
				if r.ContentLength <= maxBody {
					// A short one is let in: over HTTP/2 some clients lose the answer
					// that comes before they have sent everything.
					_, _ = io.CopyN(io.Discard, r.Body, maxBody)
				}
				s.writeFailure(w, r, fail(contentTooLarge, nil))
				return
			}
			// RFC 6750, 2.3: query strings end up in logs and histories.
			if r.URL.Query().Has("access_token") {
				s.writeFailure(w, r, failParams(paramErrors{{
					Pointer: "/query/access_token",
					Reason:  "must not be sent in the query string; send the token in the Authorization header, and get a new one",
				}}))
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// authenticate finds out who calls, or refuses: by the contract's table of
// callers; nil is an operation that wants no token. Here requests are counted,
// too: of a supplier, or of a certificate that nobody is known by yet.
func (s *Server) authenticate(may *callers) func(http.Handler) http.Handler {
	if may == nil {
		return s.anyone
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := s.identify(w.Header(), r, callOf(r.Context()), may); err != nil {
				s.writeFailure(w, r, err)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// anyone serves an operation that wants no token, as often as a certificate may
// ask. Where there are none, on the operator's private network, it does not
// count.
func (s *Server) anyone(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if leaf, err := authn.LeafThumbprint(r.TLS); err == nil {
			if err := s.limits.open(leaf); err != nil {
				s.writeFailure(w, r, err)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// identify finds out who calls; h are the headers of the answer.
func (s *Server) identify(h http.Header, r *http.Request, c *call, may *callers) (err error) {
	ctx := r.Context()
	leaf, err := authn.LeafThumbprint(r.TLS)
	if err != nil {
		return refuseCaller(err)
	}
	if err := s.limits.heard(leaf); err != nil {
		return err
	}
	defer func() {
		if f, ok := errors.AsType[*failure](err); ok && f.kind == unauthenticated {
			s.limits.refused(leaf)
		}
	}()
	raw, err := authn.Bearer(r.Header)
	if err != nil {
		return refuseCaller(err)
	}
	token, err := s.tokens.Verify(ctx, raw, leaf)
	if err != nil {
		return refuseCaller(err)
	}
	// Before the database is asked, if it said of this supplier before that it
	// is one.
	counted := s.limits.quota(token.Client(), false)
	if counted != nil {
		eventOf(ctx).supplier = token.Client()
		if err := s.limits.count(h, counted, token.Client(), token.Employee()); err != nil {
			return err
		}
	}
	sealed, err := s.facts.Supplier(ctx, token.Client())
	if err != nil {
		return fail(databaseUnavailable, fmt.Errorf("supplier record: %w", err))
	}
	var record *authz.Supplier
	if sealed != nil {
		if record, err = s.seals.Supplier(sealed); err != nil {
			s.metrics.evidence.WithLabelValues("supplier").Inc()
			return fail(evidenceInvalid, fmt.Errorf("supplier record: %w", err))
		}
	}
	caller, err := admit(token, record, may, s.now())
	if !caller.Supplier().IsZero() { // who is refused as a caller is somebody
		eventOf(ctx).supplier = caller.Supplier()
		if counted == nil {
			if err := s.limits.count(h, s.limits.quota(caller.Supplier(), true), caller.Supplier(), caller.Employee()); err != nil {
				return err
			}
		}
	}
	if err != nil {
		return err
	}
	c.caller, c.token, c.supplier, c.verified = caller, raw, sealed, token
	return nil
}

// admit makes the caller of a token, for an operation that may be called as the
// contract says. Who is somebody, but of another kind, gets not-permitted.
func admit(token *authn.Token, record *authz.Supplier, may *callers, now time.Time) (authn.Caller, error) {
	staff, err := token.Authenticate(record, authn.ScopeStaff, now)
	switch {
	case err == nil && (staff.Employee() == nil || !may.allows(staff.Employee())):
		return staff, fail(notPermitted, errors.New("no operation for this role or errand"))
	case err == nil:
		return staff, nil
	case !errors.Is(err, authn.ErrInsufficientScope):
		return authn.Caller{}, refuseCaller(err)
	}
	var refused error
	for _, scope := range may.scopes {
		caller, err := token.Authenticate(record, scope, now)
		if err == nil && caller.Employee() == nil {
			return caller, nil
		}
		if refused == nil {
			refused = refuseCaller(err)
		}
	}
	if len(may.scopes) > 0 {
		return authn.Caller{}, refused
	}
	for _, scope := range supplierScopes() {
		if caller, err := token.Authenticate(record, scope, now); err == nil {
			return caller, fail(notPermitted, errors.New("no operation for suppliers"))
		} else if refused == nil {
			refused = refuseCaller(err)
		}
	}
	return authn.Caller{}, refused
}

// refuseCaller answers an error of authn, the text of which holds nothing of
// the token.
func refuseCaller(err error) error {
	status, challenge := authn.Challenge(err)
	f := &failure{kind: internalError, challenge: challenge, cause: err}
	switch status {
	case http.StatusUnauthorized:
		f.kind = unauthenticated
	case http.StatusForbidden:
		f.kind = insufficientScope
	case http.StatusServiceUnavailable:
		f.kind = issuerUnavailable
	}
	return f
}
