package cryptoserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"kluis/authz"
	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/cryptoserver/journal"
	"kluis/cryptoserver/token"
	"kluis/internal/authn"
	"kluis/internal/devpki"
	"kluis/internal/testing/feedtest"
	"kluis/internal/testing/hsmtest"
	"kluis/internal/testing/journaltest"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
)

func TestMain(m *testing.M) { os.Exit(hsmtest.Main(m)) }

const (
	issuerURL = "https://issuer.test"
	audience  = "urn:kluis:test"
)

// allow is the allow-list of a whole installation.
func allow() map[string][]string {
	return map[string][]string{
		"Open": {"gateway"}, "Mint": {"ingest"}, "Seal": {"ingest"}, "SealIdentity": {"ingest"}, "OpenIdentity": {"gateway"}, "FindIndex": {"gateway"},
		"SealStep": {"registrar"}, "TakeStep": {"gateway"}, "SignManifest": {"gateway"}, "SealSupplier": {"registrar"}, "TakeSupplierStep": {"gateway"},
		"SignToken": {"issuer"}, "SignStaffToken": {"issuer"}, "SignControl": {"custodian"}, "PutControl": {"custodian", "relay"},
		"Rewrap": {"custodian"}, "Reseal": {"custodian"}, "Status": {"gateway", "registrar", "custodian"},
		"ReadJournal": {"auditor"}, "SignCheckpoint": {"auditor"},
	}
}

// world is one cryptoserver on real tokens behind real TLS, with the clients
// of an installation and the facts of a small market.
type world struct {
	t        testing.TB
	hsm      *hsmtest.HSM
	ca       *devpki.CA
	profile  *meter.Profile
	clock    *clock
	reg      *prometheus.Registry
	log      *syncBuffer
	open     *spyOpener
	seal     *spySealer
	rotate   *spyRotator
	journal  *spyJournal
	verifier *authn.Verifier
	office   *stafftest.Office // of the grid operator's employees
	address  string
	feed     *feedtest.Feed
	noFeed   bool // set by an option: the test brings it itself
	clients  map[string]*client.Client

	nextEAN uint64
}

// clock is the server's: set to noon of a summer day in Amsterdam, and moved
// by tests.
type clock struct{ offset atomic.Int64 }

var baseTime = time.Date(2024, 6, 15, 10, 0, 0, 0, time.UTC)

func (c *clock) now() time.Time          { return baseTime.Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

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

// spyOpener is the real token, watched: it notes what it was asked to unwrap
// and open, and where the plaintext went. A test may make it fail.
type spyOpener struct {
	token.Opener
	mu     sync.Mutex
	keys   [][]byte
	items  int
	outs   [][]byte
	fail   atomic.Pointer[error]
	check  atomic.Pointer[error]
	wait   atomic.Bool // until the call's deadline
	hold   atomic.Pointer[hold]
	spoil  atomic.Bool // report the first item as failed, though it opened
	panics atomic.Bool
	calls  atomic.Int64
	keep   atomic.Pointer[error] // what forgetting fails with
	forgot atomic.Int64
}

func (s *spyOpener) Forget(ctx context.Context) error {
	if err := s.keep.Load(); err != nil {
		return *err
	}
	s.forgot.Add(1)
	return s.Opener.Forget(ctx)
}

// hold stops one call until it is released.
type hold struct{ entered, release chan struct{} }

func (s *spyOpener) Open(ctx context.Context, keys []token.WrappedKey, items []token.Item) error {
	s.calls.Add(1)
	if s.panics.Load() {
		panic("secret value")
	}
	if s.wait.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	if h := s.hold.Swap(nil); h != nil {
		close(h.entered)
		<-h.release
	}
	if err := s.fail.Load(); err != nil {
		return *err
	}
	err := s.Opener.Open(ctx, keys, items)
	if s.spoil.Load() {
		items[0].Err = token.ErrBadData
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		s.keys = append(s.keys, bytes.Clone(k.Wrapped))
	}
	s.items += len(items)
	for i := range items {
		s.outs = append(s.outs, items[i].Out)
	}
	return err
}

func (s *spyOpener) Check(ctx context.Context) error {
	if err := s.check.Load(); err != nil {
		return *err
	}
	return s.Opener.Check(ctx)
}

// opened is how many blocks the token was asked to open since the last call.
func (s *spyOpener) opened() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.items
	s.items, s.keys, s.outs = 0, nil, nil
	return n
}

// spySealer is the real token, watched.
type spySealer struct {
	token.Sealer
	sealed atomic.Int64
	mu     sync.Mutex
	plain  [][]byte // buffers that held plaintext during a call
	also   []uint32 // epochs that it claims to have, as another server's would
}

func (s *spySealer) Epochs() []uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(s.Sealer.Epochs(), s.also...)
}

func (s *spySealer) claim(epoch uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.also = append(s.also, epoch)
}

func (s *spySealer) Seal(ctx context.Context, keys []token.WrappedKey, items []token.Item) error {
	s.sealed.Add(int64(len(items)))
	s.mu.Lock()
	for i := range items {
		s.plain = append(s.plain, items[i].In)
	}
	s.mu.Unlock()
	return s.Sealer.Seal(ctx, keys, items)
}

func (s *spySealer) ContentMAC(ctx context.Context, messages [][]byte) ([][32]byte, error) {
	s.mu.Lock()
	s.plain = append(s.plain, messages...)
	s.mu.Unlock()
	return s.Sealer.ContentMAC(ctx, messages)
}

// spyRotator is the real token, watched.
type spyRotator struct {
	token.Rotator
	keys atomic.Int64
}

func (s *spyRotator) Rewrap(ctx context.Context, keys []token.WrappedKey, to uint32) ([]token.Rewrapped, error) {
	s.keys.Add(int64(len(keys)))
	return s.Rotator.Rewrap(ctx, keys, to)
}

// spyJournal is the real journal; a test may make it fail, as a full disk does.
type spyJournal struct {
	*journal.Journal
	full   atomic.Bool
	broken atomic.Bool // for good
}

var errNoSpace = fmt.Errorf("%w: no space left on device", journal.ErrUnavailable)

func (s *spyJournal) Append(n int, encode func(int, uint64, [32]byte) []byte) ([][]byte, error) {
	if s.full.Load() {
		s.broken.Store(true)
		return nil, errNoSpace
	}
	return s.Journal.Append(n, encode)
}

func (s *spyJournal) Err() error {
	if s.broken.Load() {
		return errNoSpace
	}
	return s.Journal.Err()
}

func (s *spyJournal) Recover() error {
	if s.full.Load() {
		return errNoSpace
	}
	s.broken.Store(false)
	return s.Journal.Recover()
}

func (w *world) newJournal() *journal.Journal { return journaltest.New(w.t) }

type option func(*world, *cryptoserver.Config)

func newWorld(t testing.TB, opts ...option) *world {
	t.Helper()
	return worldOn(t, hsmtest.New(t), opts...)
}

func worldOn(t testing.TB, h *hsmtest.HSM, opts ...option) *world {
	t.Helper()
	w := &world{t: t, hsm: h, clock: &clock{}, reg: prometheus.NewRegistry(), log: &syncBuffer{}, clients: map[string]*client.Client{}, nextEAN: 1}
	var err error
	w.profile, err = meter.ParseProfile(meter.NL())
	w.must(err)
	w.office = stafftest.New(t, w.profile)
	w.ca, err = devpki.NewCA("operator")
	w.must(err)
	tokens := h.Servers[0].Open(t)
	w.open = &spyOpener{Opener: tokens.Opener()}
	w.seal = &spySealer{Sealer: tokens.Sealer()}
	w.rotate = &spyRotator{Rotator: tokens.Rotator()}
	w.journal = &spyJournal{Journal: w.newJournal()}
	jwks, err := os.ReadFile(h.JWKSFile)
	w.must(err)
	keys, err := authn.PinnedKeys(jwks)
	w.must(err)
	w.verifier, err = authn.NewVerifier(w.clock.now, authn.Issuer{URL: issuerURL, Audience: audience, Keys: keys, MaxLifetime: 5 * time.Minute, Staff: w.office.Staff()})
	w.must(err)
	c := cryptoserver.Config{
		ID: "cs1", Version: "test", TLS: w.serverTLS("cryptoserver-1"), Allow: allow(),
		Profile: w.profile, SealKeys: h.SealKeys, Verifier: w.verifier,
		Issue:   cryptoserver.Issue{Issuer: issuerURL, Audience: audience},
		Staff:   &cryptoserver.Staff{Operator: w.office.Operator, Identities: w.office.Identities},
		Tokens:  cryptoserver.Tokens{Open: w.open, Seal: w.seal, Mint: tokens.Minter(), Rotate: w.rotate, Sign: tokens.TokenSigner()},
		Journal: w.journal,
		Clock:   w.clock.now, Log: slog.New(slog.NewJSONHandler(w.log, nil)), Registerer: w.reg,
		CheckEvery: 20 * time.Millisecond,
	}
	for _, o := range opts {
		o(w, &c)
	}
	server, err := cryptoserver.New(t.Context(), c)
	w.must(err)
	w.address = w.serve(server)
	w.feed = feedtest.New(w.as("custodian"))
	if !w.noFeed {
		w.append(control.Entry{Kind: control.ActivateEpoch, Epoch: 1})
	}
	return w
}

// append adds an entry to the control feed.
func (w *world) append(e control.Entry) {
	w.t.Helper()
	e.At = w.clock.now()
	_, err := w.feed.Append(w.t.Context(), e)
	w.must(err)
}

// advance moves the clock, and keeps the control feed recent.
func (w *world) advance(d time.Duration) {
	w.t.Helper()
	w.clock.advance(d)
	_, err := w.feed.Beat(w.t.Context())
	w.must(err)
}

func (w *world) serve(s *cryptoserver.Server) string {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	w.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	return l.Addr().String()
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) serverTLS(name string) *tls.Config {
	w.t.Helper()
	cert, err := w.ca.Issue(devpki.Leaf{CommonName: name, Hosts: []string{"127.0.0.1"}})
	w.must(err)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.ca.Pool(),
	}
}

func (w *world) clientTLS(identity string) *tls.Config {
	w.t.Helper()
	cert, err := w.ca.Issue(devpki.Leaf{CommonName: identity})
	w.must(err)
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: w.ca.Pool()}
}

// as is the client with an identity.
func (w *world) as(identity string) *client.Client {
	w.t.Helper()
	if c := w.clients[identity]; c != nil {
		return c
	}
	c, err := client.New(client.Config{Addresses: []string{w.address}, TLS: w.clientTLS(identity)})
	w.must(err)
	w.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.t.Error(err)
		}
	})
	w.clients[identity] = c
	return c
}

// raw is a bare gRPC client, for what the typed one would not send.
func (w *world) raw(conf *tls.Config) cryptopb.CryptoserverClient {
	w.t.Helper()
	conn, err := grpc.NewClient(w.address, grpc.WithTransportCredentials(credentials.NewTLS(conf)))
	w.must(err)
	w.t.Cleanup(func() { _ = conn.Close() })
	return cryptopb.NewCryptoserverClient(conn)
}

// party is a supplier with a registered certificate.
type party struct {
	gln    meter.GLN
	leaf   [32]byte
	facts  authz.SupplierFacts
	record []byte
	cert   *x509.Certificate
}

func (w *world) supplier(digits string, name string) *party {
	w.t.Helper()
	gln, err := meter.ParseGLN(withCheckDigit(digits))
	w.must(err)
	cert, err := w.ca.Issue(devpki.Leaf{CommonName: name})
	w.must(err)
	p := &party{gln: gln, cert: cert.Leaf, leaf: authn.Thumbprint(cert.Leaf)}
	p.facts = authz.SupplierFacts{
		GLN: gln, Name: name, Scopes: []string{authn.ScopeReadings},
		Certificates: []authz.Certificate{{Thumbprint: p.leaf, NotAfter: cert.Leaf.NotAfter}},
	}
	p.record, err = w.as("registrar").SealSupplier(w.t.Context(), nil, p.facts)
	w.must(err)
	return p
}

func (w *world) token(p *party) string {
	w.t.Helper()
	raw, _, err := w.as("issuer").SignToken(w.t.Context(), p.record, p.leaf, []string{authn.ScopeReadings}, 5*time.Minute)
	w.must(err)
	return raw
}

func withCheckDigit(digits string) string {
	sum := 0
	for i := range len(digits) {
		d := int(digits[len(digits)-1-i] - '0')
		if i%2 == 0 {
			d *= 3
		}
		sum += d
	}
	return digits + string(rune('0'+(10-sum%10)%10))
}

// point is a metering point: its legal file and its rows as a database would
// hold them.
type point struct {
	w    *world
	ean  meter.EAN
	file []byte
	keys []envelope.KeyRecord
	rows []envelope.SealedBlock
}

func (w *world) point(c meter.Commodity) *point {
	w.t.Helper()
	w.nextEAN++
	ean, err := meter.ParseEAN(withCheckDigit(fmt.Sprintf("87168%012d", w.nextEAN)))
	w.must(err)
	p := &point{w: w, ean: ean}
	p.step(authz.Register{EAN: ean, Commodity: c})
	return p
}

func (p *point) step(s authz.Step) {
	p.w.t.Helper()
	p.w.clock.advance(time.Millisecond)
	next, err := p.w.as("registrar").SealStep(p.w.t.Context(), p.file, s)
	p.w.must(err)
	p.file = next
}

// store mints keys as needed and seals blocks of version 1.
func (p *point) store(blocks ...envelope.PlainBlock) []envelope.SealedContent {
	p.w.t.Helper()
	var specs []envelope.KeySpec
	for _, b := range blocks {
		f, _ := p.w.profile.FieldByCode(b.Field)
		spec := envelope.KeySpec{EAN: p.ean, Class: f.Class, Month: b.Block.Day.Month()}
		if p.key(spec) < 0 && !slices.Contains(specs, spec) {
			specs = append(specs, spec)
		}
	}
	if len(specs) > 0 {
		recs, err := p.w.as("ingest").Mint(p.w.t.Context(), specs)
		p.w.must(err)
		p.keys = append(p.keys, recs...)
	}
	for i := range blocks {
		f, _ := p.w.profile.FieldByCode(blocks[i].Field)
		blocks[i].Key = p.key(envelope.KeySpec{EAN: p.ean, Class: f.Class, Month: blocks[i].Block.Day.Month()})
	}
	sealed, err := p.w.as("ingest").Seal(p.w.t.Context(), p.ean, p.keys, blocks)
	p.w.must(err)
	for i, b := range blocks {
		p.rows = append(p.rows, envelope.SealedBlock{
			Field: b.Field, Day: b.Block.Day, Resolution: b.Block.Resolution, Version: b.Version, Key: b.Key, Ciphertext: sealed[i].Ciphertext,
		})
	}
	return sealed
}

func (p *point) key(s envelope.KeySpec) int {
	return slices.IndexFunc(p.keys, func(k envelope.KeyRecord) bool { return k.Class == s.Class && k.Month == s.Month })
}

// register is a made-up but exact read.
func register(f meter.FieldCode, d meter.Day) meter.Value {
	return meter.Value(int64(f)*1e9 + int64(d)*1234 + int64(d%3))
}

func interval(f meter.FieldCode, d meter.Day, i int) meter.Value {
	return meter.Value(int(f)*100 + int(d)%10 + i%7)
}

func (w *world) registerBlock(f meter.FieldCode, d meter.Day) envelope.PlainBlock {
	return envelope.PlainBlock{Field: f, Version: 1, Block: meter.Block{
		Day: d, Resolution: meter.P1D, Start: meter.Null, Values: []meter.Value{register(f, d)},
	}}
}

func (w *world) intervalBlock(f meter.FieldCode, d meter.Day, r meter.Resolution) envelope.PlainBlock {
	b := meter.Block{Day: d, Resolution: r, Start: meter.Null}
	for i := range meter.Slots(d, r, w.profile.Location()) {
		b.Values = append(b.Values, interval(f, d, i))
	}
	return envelope.PlainBlock{Field: f, Version: 1, Block: b}
}

func day(s string) meter.Day {
	d, err := meter.ParseDay(s)
	if err != nil {
		panic(err)
	}
	return d
}

func days(from, to string) meter.DayRange { return meter.DayRange{From: day(from), To: day(to)} }

// market is the usual scene: an electricity metering point with a supplier
// switch on 1 March 2024, consent for quarter-hours to the new supplier, and
// readings of every day from 1 February to 14 June.
type market struct {
	*point
	old, new *party
	consent  [16]byte
}

const (
	importLow       = meter.FieldCode(1)
	importNormal    = meter.FieldCode(2)
	importIntervals = meter.FieldCode(6)
)

func (w *world) market() *market {
	w.t.Helper()
	m := &market{old: w.supplier("871234500000", "Old Energy"), new: w.supplier("871234500001", "New Energy"), consent: [16]byte{1}}
	m.point = w.electricity(m.old, m.new, m.consent)
	var blocks []envelope.PlainBlock
	for d := day("2024-02-01"); d <= day("2024-06-15"); d++ {
		blocks = append(blocks, w.registerBlock(importLow, d), w.registerBlock(importNormal, d))
		if d < day("2024-06-15") {
			blocks = append(blocks, w.intervalBlock(importIntervals, d, meter.PT15M))
		}
	}
	m.store(blocks...)
	return m
}

func (w *world) electricity(old, new *party, consent [16]byte) *point {
	w.t.Helper()
	p := w.point(meter.Electricity)
	p.step(authz.SetOccupancy{Days: meter.DayRange{From: day("2023-01-01"), To: meter.MaxDay}})
	p.step(authz.SetSupply{Supplier: old.gln, Days: meter.DayRange{From: day("2023-01-01"), To: meter.MaxDay}})
	p.step(authz.SetSupply{Supplier: new.gln, Days: meter.DayRange{From: day("2024-03-01"), To: meter.MaxDay}})
	p.step(authz.GrantConsent{
		ID: consent, Supplier: new.gln, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
		Granularity: meter.PT15M, Days: meter.DayRange{From: day("2024-01-01"), To: meter.MaxDay},
		ValidUntil: baseTime.AddDate(1, 0, 0), Evidence: "contract-1",
	})
	return p
}

// ask builds the call of an honest gateway: it sends the rows that the
// decision lets it fetch.
func (p *point) ask(by *party, r authz.Request) client.OpenRequest {
	p.w.t.Helper()
	r.EAN = p.ean
	q := client.OpenRequest{AccessToken: p.w.token(by), SupplierRecord: by.record, Profile: p.w.profile.Digest()}
	u := client.Unit{LegalFile: p.file, Request: r, Keys: slices.Clone(p.keys)}
	binary.BigEndian.PutUint64(u.InteractionID[:], uint64(p.ean.Int64()))
	keys, err := authz.NewSealKeys(p.w.hsm.SealKeys...)
	p.w.must(err)
	file, err := keys.LegalFile(p.file)
	p.w.must(err)
	grant, _, err := authz.Decide(callerOf(by.gln), r, file, p.w.profile, p.w.clock.now())
	if err == nil {
		for _, row := range p.rows {
			if grant.Covers(row.Field, row.Day) {
				row.Ciphertext = bytes.Clone(row.Ciphertext)
				u.Blocks = append(u.Blocks, row)
			}
		}
	}
	q.Units = []client.Unit{u}
	return q
}

// all sends every row of the metering point, whatever the decision says.
func (p *point) all(q client.OpenRequest) client.OpenRequest {
	q.Units[0].Blocks = nil
	for _, row := range p.rows {
		row.Ciphertext = bytes.Clone(row.Ciphertext)
		q.Units[0].Blocks = append(q.Units[0].Blocks, row)
	}
	return q
}

type callerOf meter.GLN

func (c callerOf) Supplier() meter.GLN       { return meter.GLN(c) }
func (c callerOf) Employee() *authz.Employee { return nil }

// opened sends the call of one unit as the gateway.
func (w *world) opened(q client.OpenRequest) client.Opened {
	w.t.Helper()
	got, err := w.as("gateway").Open(w.t.Context(), q)
	w.must(err)
	if len(got) != 1 {
		w.t.Fatalf("%d units", len(got))
	}
	return got[0]
}

func seriesOf(o client.Opened, f meter.FieldCode) *meter.Series {
	for i := range o.Series {
		if o.Series[i].Field == f {
			return &o.Series[i]
		}
	}
	return nil
}

func valuesOf(o client.Opened, f meter.FieldCode) map[meter.Day][]meter.Value {
	out := map[meter.Day][]meter.Value{}
	for _, s := range o.Series {
		if s.Field == f {
			for _, d := range s.Days {
				out[d.Day] = d.Values
			}
		}
	}
	return out
}

// counter reads a Prometheus counter.
func (w *world) counter(name string, labels ...string) float64 {
	w.t.Helper()
	families, err := w.reg.Gather()
	w.must(err)
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	metric:
		for _, m := range f.GetMetric() {
			for i := 0; i < len(labels); i += 2 {
				if !slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == labels[i] && l.GetValue() == labels[i+1] }) {
					continue metric
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}
