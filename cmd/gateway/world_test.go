package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"

	"kluis/authz"
	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/envelope"
	"kluis/cryptoserver/journal"
	"kluis/internal/audit"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/devpg"
	"kluis/internal/devpki"
	"kluis/internal/hsm"
	"kluis/internal/postgres"
	"kluis/internal/testing/feedtest"
	"kluis/internal/testing/hsmtest"
	"kluis/internal/testing/long"
	"kluis/internal/testing/pgtest"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
	"kluis/openapi"
	"kluis/server"
)

// The tests of this command run the gateway as configured by a file, over TLS,
// against a real PostgreSQL and real cryptoservers on SoftHSM. Where a test
// wants a fault, it puts it between the server and the real part.

func TestMain(m *testing.M) {
	long.Waits() // for deadlines
	os.Exit(hsmtest.Main(suite{m}))
}

type suite struct{ m *testing.M }

func (s suite) Run() int {
	code := pgtest.Run(s.m)
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, "cryptoservers:", err)
		code = max(code, 1)
	}
	return code
}

const (
	issuerURL = "https://issuer.test"
	audience  = "urn:kluis:gateway"
)

// pki is shared: making keys costs more than a test.
type pki struct {
	operator, supplier, stranger *devpki.CA
}

var authorities = sync.OnceValue(func() pki {
	return pki{must(devpki.NewCA("operator")), must(devpki.NewCA("suppliers")), must(devpki.NewCA("strangers"))}
})

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// serviceTLS is the client side of a service of the operator.
func serviceTLS(name string) *tls.Config {
	a := authorities()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: a.operator.Pool(),
		Certificates: []tls.Certificate{must(a.operator.Issue(devpki.Leaf{CommonName: name}))},
	}
}

// pool is two cryptoservers, in all roles.
type pool struct {
	office    *stafftest.Office
	addresses []string
	hsm       *hsmtest.HSM
	stops     []func() error
	registrar *client.Client
	ingest    *client.Client
	issuer    *client.Client
	custodian *client.Client
	stopFeed  func()
	keys      *authz.SealKeys
}

// sharedPool is the one of the tests that do not stop it.
type sharedPool struct {
	once sync.Once
	pool *pool
	err  error
}

var shared sharedPool

func (s *sharedPool) get(t testing.TB) *pool {
	t.Helper()
	tokens := hsmtest.New(t)
	s.once.Do(func() { s.pool, s.err = startPool(t, tokens) })
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.pool
}

func (s *sharedPool) close() error {
	if s.pool == nil {
		return nil
	}
	return s.pool.close()
}

func startPool(t testing.TB, tokens *hsmtest.HSM) (_ *pool, err error) {
	p := &pool{hsm: tokens, office: stafftest.New(t, must(meter.ParseProfile(meter.NL())))}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	for i := range tokens.Servers {
		if err := p.start(i); err != nil {
			return nil, err
		}
	}
	for name, c := range map[string]**client.Client{"registrar": &p.registrar, "ingest": &p.ingest, "issuer": &p.issuer} {
		if *c, err = client.New(client.Config{Addresses: p.addresses, TLS: serviceTLS(name)}); err != nil {
			return nil, err
		}
	}
	custodian, err := client.New(client.Config{Addresses: p.addresses, TLS: serviceTLS("custodian")})
	if err != nil {
		return nil, err
	}
	p.custodian = custodian
	if _, p.stopFeed, err = feedtest.Run(custodian); err != nil {
		return nil, err
	}
	p.keys, err = authz.NewSealKeys(tokens.SealKeys...)
	return p, err
}

func (p *pool) start(i int) error {
	a := authorities()
	h, err := hsm.New(p.hsm.Servers[i].Config)
	if err != nil {
		return err
	}
	jwks, err := os.ReadFile(p.hsm.JWKSFile)
	if err != nil {
		return err
	}
	keys, err := authn.PinnedKeys(jwks)
	if err != nil {
		return err
	}
	verifier, err := authn.NewVerifier(time.Now, authn.Issuer{URL: issuerURL, Audience: audience, Keys: keys, MaxLifetime: 5 * time.Minute, Staff: p.office.Staff()})
	if err != nil {
		return err
	}
	name := fmt.Sprintf("cryptoserver-%d", i+1)
	cert, err := a.operator.Issue(devpki.Leaf{CommonName: name, Hosts: []string{"127.0.0.1"}})
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "kluis-journal-")
	if err != nil {
		return err
	}
	kept, err := journal.Open(journal.Config{Dir: dir})
	if err != nil {
		return err
	}
	s, err := cryptoserver.New(context.Background(), cryptoserver.Config{
		ID: name, Version: "test",
		TLS: &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.operator.Pool(),
		},
		Allow: map[string][]string{
			"Open": {"gateway"}, "SignStaffToken": {"issuer"}, "Mint": {"ingest"}, "Seal": {"ingest"}, "SealStep": {"registrar"}, "TakeStep": {"gateway"}, "SignManifest": {"gateway"}, "SignCheckpoint": {"auditor"}, "SealSupplier": {"registrar"}, "TakeSupplierStep": {"gateway"},
			"SealIdentity": {"ingest"}, "OpenIdentity": {"gateway"}, "FindIndex": {"gateway"},
			"SignToken": {"issuer"}, "SignControl": {"custodian"}, "PutControl": {"custodian"}, "Status": {"gateway", "ingest", "registrar", "issuer"},
		},
		Profile: must(meter.ParseProfile(meter.NL())), SealKeys: p.hsm.SealKeys, Verifier: verifier,
		Issue:   cryptoserver.Issue{Issuer: issuerURL, Audience: audience},
		Staff:   &cryptoserver.Staff{Operator: p.office.Operator, Identities: p.office.Identities},
		Tokens:  cryptoserver.Tokens{Open: h.Opener(), Seal: h.Sealer(), Mint: h.Minter(), Sign: h.TokenSigner()},
		Journal: kept,
		Log:     slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Drain: time.Second,
	})
	if err != nil {
		return errors.Join(err, h.Close())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, h.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	p.addresses = append(p.addresses, l.Addr().String())
	p.stops = append(p.stops, sync.OnceValue(func() error {
		cancel()
		return errors.Join(<-done, h.Close(), kept.Close(), os.RemoveAll(dir))
	}))
	return nil
}

func (p *pool) close() error {
	if p.stopFeed != nil {
		p.stopFeed()
	}
	var errs []error
	for _, c := range []*client.Client{p.registrar, p.ingest, p.issuer, p.custodian} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	for _, stop := range p.stops {
		errs = append(errs, stop())
	}
	return errors.Join(errs...)
}

// supplier is a party with a registered certificate.
type supplier struct {
	gln    meter.GLN
	cert   tls.Certificate
	record []byte // sealed
	raw    string // access token, until the record changes
	client *http.Client
}

func (s *supplier) thumbprint() [32]byte { return sha256.Sum256(s.cert.Certificate[0]) }

// worlds numbers them: the cryptoservers they share remember the newest version
// of each metering point and supplier, so no two may be of the same number.
var worlds atomic.Int64

// world is one gateway with a database of its own.
type world struct {
	t         testing.TB
	number    int64
	pool      *pool
	db        database
	registrar *postgres.Registrar
	ingest    *postgres.Ingest
	profile   *meter.Profile
	tap       *tap
	many      server.Many // the real ones
	batches   *batchTap
	log       *syncBuffer
	metrics   *prometheus.Registry
	url       string
	a, b      *supplier
	portal    *supplier   // the grid operator's
	month     meter.Month // the calendar month before this one
	own       sync.Once
	owned     *sql.DB
}

// owner is the database as its owner sees it.
func (w *world) owner() *sql.DB {
	w.own.Do(func() { w.owned = w.db.Open(w.t, "kluis_owner") })
	return w.owned
}

// database is a *pgtest.DB, or one in a cluster of the test's own.
type database interface {
	URL(role string) string
	Open(t testing.TB, role string) *sql.DB
}

// clusterDB is the database of a cluster that a test may stop.
type clusterDB struct{ *devpg.Cluster }

func (c clusterDB) URL(role string) string { return c.Cluster.URL(role, "kluis") }

func (c clusterDB) Open(t testing.TB, role string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", c.URL(role))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// options changes what newWorld makes.
type options struct {
	db      database
	pool    *pool
	issuers []config.Issuer // besides the one of the pool
	timeout time.Duration
	now     func() time.Time // the gateway's clock
	limits  config.Limits    // none: no rate that a test could meet
}

func newWorld(t testing.TB, o options) *world {
	t.Helper()
	if o.pool == nil {
		o.pool = shared.get(t)
	}
	if o.db == nil {
		o.db = pgtest.New(t)
	}
	if o.timeout == 0 {
		o.timeout = 10 * time.Second
	}
	if o.limits.RequestsPerSecond == 0 {
		o.limits.RequestsPerSecond, o.limits.Burst = 1e6, 1e6
	}
	if o.limits.UnrelatedPerSecond == 0 {
		o.limits.UnrelatedPerSecond, o.limits.UnrelatedBurst = 1e6, 1e6
	}
	w := &world{t: t, number: worlds.Add(1), pool: o.pool, db: o.db, profile: must(meter.ParseProfile(meter.NL())), log: &syncBuffer{}, metrics: prometheus.NewRegistry()}
	w.month = meter.DayOf(time.Now(), w.profile.Location()).Month() - 1
	ctx := t.Context()
	var err error
	if w.registrar, err = postgres.NewRegistrar(ctx, postgres.Config{DSN: w.db.URL("kluis_registrar")}); err != nil {
		t.Fatal(err)
	}
	w.closeAfter(w.registrar.Close)
	if w.ingest, err = postgres.NewIngest(ctx, postgres.Config{DSN: w.db.URL("kluis_ingest")}); err != nil {
		t.Fatal(err)
	}
	w.closeAfter(w.ingest.Close)
	w.a = w.newSupplier(w.gln(1))
	w.b = w.newSupplier(w.gln(2))
	w.portal = &supplier{gln: o.pool.office.Operator, cert: portal()}
	w.register(w.portal, func(f *authz.SupplierFacts) { f.Scopes = []string{authn.ScopeStaff} })
	w.serve(o)
	return w
}

func (w *world) closeAfter(f func() error) {
	w.t.Cleanup(func() {
		if err := f(); err != nil {
			w.t.Error(err)
		}
	})
}

func (w *world) write(dir, name string, b []byte) string {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// configFile is the gateway's configuration.
func (w *world) configFile(o options) string {
	t, a := w.t, authorities()
	t.Helper()
	dir := t.TempDir()
	identity := func(name string, ca *devpki.CA, l devpki.Leaf) config.TLS {
		cert, key, err := a.operator.IssueFiles(dir, name, l)
		if err != nil {
			t.Fatal(err)
		}
		return config.TLS{CertificateFile: cert, KeyFile: key, CAFile: w.write(dir, name+"-peers.pem", ca.PEM())}
	}
	cfg := config.Gateway{
		Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", PublicURL: "https://api.test",
		TLS:         identity("server", a.supplier, devpki.Leaf{CommonName: "gateway", Hosts: []string{"127.0.0.1"}}),
		DatabaseURL: w.db.URL("kluis_gateway"), ProfileFile: w.write(dir, "nl.yaml", meter.NL()),
		SealKeysFile:   w.pool.hsm.SealKeysFile,
		CursorKeysFile: w.write(dir, "cursor-keys", []byte(strings.Repeat("c1", 32)+"\n")),
		Issuers:        append([]config.Issuer{{URL: issuerURL, Audience: audience, JWKSFile: w.pool.hsm.JWKSFile, Staff: true}}, o.issuers...),
		OperatorGLN:    w.pool.office.Operator.String(),
		Cryptoservers:  config.Cryptoservers{Addresses: w.pool.addresses, TLS: identity("client", a.operator, devpki.Leaf{CommonName: "gateway"})},
		RequestTimeout: config.Duration(o.timeout),
		Limits:         o.limits,
	}
	b, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return w.write(dir, "gateway.yaml", b)
}

// serve runs the gateway's parts with a tap between them and the server.
func (w *world) serve(o options) {
	t := w.t
	t.Helper()
	cfg, err := config.Load[config.Gateway](w.configFile(o))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewJSONHandler(w.log, nil))
	parts, closeParts, err := connect(t.Context(), cfg, log, w.metrics)
	if err != nil {
		t.Fatal(err)
	}
	w.closeAfter(closeParts)
	w.many = parts.Many
	w.batches = &batchTap{real: parts.Many}
	parts.Many = server.Many{Facts: w.batches, Rows: w.batches, Opener: w.batches, Recorder: w.batches, Manifests: w.batches}
	w.tap = &tap{Facts: parts.Facts, Rows: parts.Rows, Opener: parts.Opener, Sealer: parts.Sealer, Recorder: parts.Recorder}
	parts.Facts, parts.Rows, parts.Opener, parts.Sealer, parts.Recorder = w.tap, w.tap, w.tap, w.tap, w.tap
	parts.Steps = stepsTap{parts.Steps, w.tap}
	parts.Register = registerTap{parts.Register, w.tap}
	parts.AccessLog = logTap{w.tap, parts.AccessLog}
	if o.now != nil {
		parts.Now = o.now
	}
	srv, err := server.New(parts)
	if err != nil {
		t.Fatal(err)
	}
	tlsConfig, err := config.ServerTLS(cfg.TLS)
	if err != nil {
		t.Fatal(err)
	}
	api, err := srv.HTTPServer(tlsConfig)
	if err != nil {
		t.Fatal(err)
	}
	api.Handler = withDeadlineAtHand(api.Handler)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, api, l, 5*time.Second) }()
	w.closeAfter(func() error { cancel(); return <-done })
	w.url = "https://" + l.Addr().String()
}

func (w *world) newSupplier(gln string) *supplier {
	w.t.Helper()
	s := &supplier{gln: must(meter.ParseGLN(gln))}
	s.cert = must(authorities().supplier.Issue(devpki.Leaf{CommonName: "supplier " + gln}))
	w.register(s, nil)
	return s
}

// register seals and stores the next version of a supplier's record.
func (w *world) register(s *supplier, change func(*authz.SupplierFacts)) {
	w.t.Helper()
	facts := authz.SupplierFacts{
		GLN: s.gln, Name: "Supplier", Scopes: []string{authn.ScopeReadings, authn.ScopeConsents},
		Certificates: []authz.Certificate{{Thumbprint: s.thumbprint(), NotAfter: s.cert.Leaf.NotAfter}},
	}
	if change != nil {
		change(&facts)
	}
	sealed, err := w.pool.registrar.SealSupplier(w.t.Context(), s.record, facts)
	if err != nil {
		w.t.Fatal(err)
	}
	record, err := w.pool.keys.Supplier(sealed)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.registrar.StoreSupplier(w.t.Context(), record, sealed); err != nil {
		w.t.Fatal(err)
	}
	s.record, s.raw = sealed, ""
}

// token has a cryptoserver sign an access token for the supplier.
func (w *world) token(s *supplier) string {
	w.t.Helper()
	if s.raw == "" {
		var err error
		if s.raw, _, err = w.pool.issuer.SignToken(w.t.Context(), s.record, s.thumbprint(), []string{authn.ScopeReadings, authn.ScopeConsents}, 5*time.Minute); err != nil {
			w.t.Fatal(err)
		}
	}
	return s.raw
}

// portal is the certificate of the customer service's portal.
var portal = sync.OnceValue(func() tls.Certificate {
	return must(authorities().supplier.Issue(devpki.Leaf{CommonName: "portal"}))
})

// staffToken has a cryptoserver sign an access token for an employee's errand.
func (w *world) staffToken(subject string, role authz.Role, errand authz.Errand) string {
	w.t.Helper()
	o := w.pool.office
	raw, _, err := w.pool.issuer.SignStaffToken(w.t.Context(), w.portal.record, w.portal.thumbprint(), o.IDToken(subject, time.Now(), role), o.Errand(errand), 5*time.Minute)
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

// legalFile takes steps on a metering point and stores each version.
func (w *world) legalFile(ean meter.EAN, commodity meter.Commodity, steps ...authz.Step) {
	w.t.Helper()
	ctx := w.t.Context()
	stored, err := w.registrar.LegalFile(ctx, ean)
	if err != nil {
		w.t.Fatal(err)
	}
	previous := stored.Sealed
	if previous == nil {
		steps = append([]authz.Step{authz.Register{EAN: ean, Commodity: commodity}}, steps...)
	}
	for _, step := range steps {
		sealed, err := w.pool.registrar.SealStep(ctx, previous, step)
		if err != nil {
			w.t.Fatal(err)
		}
		file, err := w.pool.keys.LegalFile(sealed)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := w.registrar.StoreLegalFile(ctx, file, sealed); err != nil {
			w.t.Fatal(err)
		}
		previous = sealed
	}
}

func day(s string) meter.Day { return must(meter.ParseDay(s)) }

// ean makes a metering point's number.
func (w *world) ean(n int) meter.EAN {
	return must(meter.ParseEAN(withCheckDigit(fmt.Sprintf("87168%03d%09d", w.number, n))))
}

func (w *world) gln(n int) string { return withCheckDigit(fmt.Sprintf("871242%03d%03d", w.number, n)) }

func withCheckDigit(digits string) string {
	sum := 0
	for i := range digits {
		d := int(digits[i] - '0')
		if (len(digits)-i)%2 == 1 {
			d *= 3
		}
		sum += d
	}
	return fmt.Sprintf("%s%d", digits, (10-sum%10)%10)
}

// customer registers an electricity metering point supplied by s for years.
func (w *world) customer(n int, s *supplier, more ...authz.Step) meter.EAN {
	w.t.Helper()
	e := w.ean(n)
	since := meter.DayRange{From: day("2020-01-01"), To: meter.MaxDay}
	w.legalFile(e, meter.Electricity, append([]authz.Step{authz.SetOccupancy{Days: since}, authz.SetSupply{Supplier: s.gln, Days: since}}, more...)...)
	return e
}

func (w *world) consent(s *supplier) authz.GrantConsent {
	return authz.GrantConsent{
		ID: [16]byte{1}, Supplier: s.gln, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals}, Granularity: meter.PT15M,
		Days: meter.DayRange{From: day("2020-01-01"), To: meter.MaxDay}, ValidUntil: time.Now().AddDate(1, 0, 0), Evidence: "form-17",
	}
}

// days is the month that the tests read.
func (w *world) days() meter.DayRange {
	return meter.DayRange{From: w.month.First(), To: (w.month + 1).First()}
}

// read is the value of a register on a day, and slot that of a quarter-hour.
func read(f meter.FieldCode, d meter.Day) meter.Value {
	return meter.Value(int(f)*1_000_000 + int(d)*10)
}
func slot(f meter.FieldCode, i int) meter.Value { return meter.Value(int(f)*1000 + i) }

// fill seals and stores a month of readings: registers with the closing read,
// and quarter-hours.
func (w *world) fill(e meter.EAN) {
	w.t.Helper()
	ctx, loc := w.t.Context(), w.profile.Location()
	var specs []envelope.KeySpec
	for _, class := range []meter.Class{meter.Registers, meter.Intervals} {
		for m := w.month; m <= w.month+1; m++ {
			specs = append(specs, envelope.KeySpec{EAN: e, Class: class, Month: m, Occupancy: day("2020-01-01")})
		}
	}
	keys, err := w.pool.ingest.Mint(ctx, specs)
	if err != nil {
		w.t.Fatal(err)
	}
	var plain []envelope.PlainBlock
	for _, f := range w.profile.Fields(meter.Electricity) {
		run := w.days()
		if f.Class == meter.Registers {
			run.To++
		}
		for d := run.From; d < run.To; d++ {
			b := meter.Block{Day: d, Resolution: meter.P1D, Start: meter.Null, Values: []meter.Value{read(f.Code, d)}}
			if f.Class == meter.Intervals {
				b.Resolution, b.Values = meter.PT15M, make([]meter.Value, meter.Slots(d, meter.PT15M, loc))
				for i := range b.Values {
					b.Values[i] = slot(f.Code, i)
				}
			}
			b.Quality = make([]meter.Quality, len(b.Values))
			at := 0
			for i, k := range keys {
				if k.Class == f.Class && k.Month == d.Month() {
					at = i
				}
			}
			plain = append(plain, envelope.PlainBlock{Field: f.Code, Version: 1, Key: at, Block: b})
		}
	}
	sealed, err := w.pool.ingest.Seal(ctx, e, keys, plain)
	if err != nil {
		w.t.Fatal(err)
	}
	batch := postgres.Batch{Keys: keys}
	for i, b := range plain {
		batch.Blocks = append(batch.Blocks, postgres.Row{
			EAN: e, Field: b.Field, Day: b.Block.Day, Version: 1, Resolution: b.Block.Resolution, KeyID: keys[b.Key].ID,
			ValueCount: len(b.Block.Values), ContentMAC: sealed[i].ContentMAC, Ciphertext: sealed[i].Ciphertext,
		})
	}
	if err := w.ingest.Commit(ctx, batch); err != nil {
		w.t.Fatal(err)
	}
}

// http is a client with the supplier's certificate.
func (w *world) http(cert ...tls.Certificate) *http.Client {
	tr := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: authorities().operator.Pool(), Certificates: cert},
		ForceAttemptHTTP2: true,
	}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// reply is an answer taken apart.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// problem is the slug of a problem document, or "".
func (r reply) problem(t testing.TB) string {
	t.Helper()
	if r.status < 400 {
		return ""
	}
	var p openapi.Problem
	holdsTo(t, "Problem", r.body, &p)
	if p.Status != r.status || r.header.Get("Content-Type") != "application/problem+json" || p.InteractionId.String() != r.header.Get("X-Interaction-Id") {
		t.Errorf("problem document %s in an answer of status %d with headers %v", r.body, r.status, r.header)
	}
	return strings.TrimPrefix(string(p.Type), "urn:kluis:problem:")
}

func (w *world) do(c *http.Client, method, path string, change func(*http.Request)) reply {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if change != nil {
		change(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, body}
}

// get is a request by a supplier.
func (w *world) get(s *supplier, path string) reply {
	w.t.Helper()
	if s.client == nil {
		s.client = w.http(s.cert)
	}
	return w.do(s.client, http.MethodGet, path, bearer(w.token(s)))
}

func bearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

// path is a reading request for the month of the tests.
func (w *world) path(e meter.EAN, query ...string) string {
	q := url.Values{"from": {w.days().From.String()}, "to": {w.days().To.String()}, "purpose": {"ENERGY_MANAGEMENT"}}
	for i := 0; i+1 < len(query); i += 2 {
		q.Set(query[i], query[i+1])
		if query[i+1] == "" {
			q.Del(query[i])
		}
	}
	return "/v1/metering-points/" + e.String() + "/readings?" + q.Encode()
}

// records reads the access log as its owner.
func (w *world) records() []audit.Record {
	w.t.Helper()
	rows, err := w.owner().QueryContext(w.t.Context(), `SELECT record, receipt FROM access_log ORDER BY recorded_at`)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	var out []audit.Record
	for rows.Next() {
		var record, receipt []byte
		if err := rows.Scan(&record, &receipt); err != nil {
			w.t.Fatal(err)
		}
		r, err := audit.Parse(record, receipt)
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, r)
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	return out
}

// tap passes calls on, counts them, and puts faults between.
type tap struct {
	server.Facts
	server.Rows
	server.Opener
	server.Sealer
	server.Recorder

	mu     sync.Mutex
	calls  []string
	looks  int       // at a supplier's record
	look   func(int) // hears of each
	record func(context.Context, audit.Record, server.Recorder) error
	rows   func(context.Context, authz.Grant, server.Rows) ([]envelope.KeyRecord, []envelope.SealedBlock, error)
	stored func(context.Context, []authz.Grant, server.Rows) ([]server.StoredRun, error)
	facts  func(context.Context) error
	opened func(server.OpenRequest)
	seal   func(context.Context, server.StepRequest, server.Sealer) ([]byte, error)
	find   func(context.Context) error
	store  func(context.Context, server.NewStep, server.Steps) error
	logged func(context.Context) error
	names  func(context.Context) error

	register func(context.Context) error
	suspend  func(context.Context, server.SupplierStepRequest, server.Sealer) ([]byte, error)
	keep     func(context.Context, func(context.Context) error) error
}

func (p *tap) note(call string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, call)
}

// taken returns the calls since the last time.
func (p *tap) taken() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := strings.Join(p.calls, " ")
	p.calls = nil
	return s
}

func (p *tap) Supplier(ctx context.Context, gln meter.GLN) ([]byte, error) {
	p.note("supplier")
	p.mu.Lock()
	p.looks++
	n, look := p.looks, p.look
	p.mu.Unlock()
	if look != nil {
		look(n)
	}
	return p.Facts.Supplier(ctx, gln)
}

func (p *tap) LegalFile(ctx context.Context, e meter.EAN) (authz.StoredFile, error) {
	p.note("legal-file")
	if p.facts != nil {
		if err := p.facts(ctx); err != nil {
			return authz.StoredFile{}, err
		}
	}
	return p.Facts.LegalFile(ctx, e)
}

func (p *tap) Candidates(ctx context.Context, gln meter.GLN, after meter.EAN, limit int) ([]server.Candidate, error) {
	p.note("candidates")
	return p.Facts.Candidates(ctx, gln, after, limit)
}

func (p *tap) Blocks(ctx context.Context, g authz.Grant, asOf time.Time) ([]envelope.KeyRecord, []envelope.SealedBlock, error) {
	p.note("blocks")
	if p.rows != nil {
		return p.rows(ctx, g, p.Rows)
	}
	return p.Rows.Blocks(ctx, g, asOf)
}

func (p *tap) Stored(ctx context.Context, grants []authz.Grant) ([]server.StoredRun, error) {
	p.note("stored")
	if p.stored != nil {
		return p.stored(ctx, grants, p.Rows)
	}
	return p.Rows.Stored(ctx, grants)
}

func (p *tap) Open(ctx context.Context, r server.OpenRequest) (server.Opened, error) {
	p.note("open")
	if p.opened != nil {
		p.opened(r)
	}
	return p.Opener.Open(ctx, r)
}

func (p *tap) TakeStep(ctx context.Context, r server.StepRequest) ([]byte, error) {
	p.note("seal")
	if p.seal != nil {
		return p.seal(ctx, r, p.Sealer)
	}
	return p.Sealer.TakeStep(ctx, r)
}

// stepsTap is the tap on server.Steps.
type stepsTap struct {
	server.Steps
	tap *tap
}

func (p stepsTap) Consent(ctx context.Context, supplier meter.GLN, id [16]byte) ([]server.Candidate, error) {
	p.tap.note("consent")
	if p.tap.find != nil {
		if err := p.tap.find(ctx); err != nil {
			return nil, err
		}
	}
	return p.Steps.Consent(ctx, supplier, id)
}

func (p stepsTap) Stored(ctx context.Context, caller meter.GLN, key [32]byte) (*server.StoredStep, error) {
	p.tap.note("key")
	return p.Steps.Stored(ctx, caller, key)
}

func (p stepsTap) Store(ctx context.Context, n server.NewStep) error {
	p.tap.note("store")
	if p.tap.store != nil {
		return p.tap.store(ctx, n, p.Steps)
	}
	return p.Steps.Store(ctx, n)
}

func (p *tap) Record(ctx context.Context, r audit.Record) error {
	p.note("record")
	if p.record != nil {
		return p.record(ctx, r, p.Recorder)
	}
	return p.Recorder.Record(ctx, r)
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
