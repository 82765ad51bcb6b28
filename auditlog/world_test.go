package auditlog_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"database/sql"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"kluis/auditlog"
	"kluis/auditlog/oversight"
	"kluis/authz"
	"kluis/cmd/kluis/backend"
	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/envelope"
	"kluis/cryptoserver/journal"
	"kluis/internal/audit"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/devpki"
	"kluis/internal/postgres"
	"kluis/internal/testing/feedtest"
	"kluis/internal/testing/hsmtest"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

type withDatabases struct{ m *testing.M }

func (s withDatabases) Run() int { return pgtest.Run(s.m) }

func TestMain(m *testing.M) { os.Exit(hsmtest.Main(withDatabases{m})) }

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

const (
	origin   = "kluis.test/audit"
	issuer   = "https://issuer.test"
	audience = "urn:kluis:test"
)

var fast = auditlog.Timing{
	Look: 5 * time.Millisecond, Pull: 5 * time.Millisecond, Sign: 10 * time.Millisecond, Settle: time.Microsecond, Call: 10 * time.Second,
	Judge: 10 * time.Millisecond, Check: 10 * time.Millisecond,
}

// world is a cryptoserver on real tokens with its journal, a database, and a
// home that a supplier reads.
type world struct {
	t       *testing.T
	hsm     *hsmtest.HSM
	ca      *devpki.CA
	profile *meter.Profile
	journal string // folder
	stop    func() // the cryptoserver
	address string

	db      *pgtest.DB
	owner   *sql.DB
	store   *postgres.Auditor
	gateway *postgres.Gateway
	log     auditlog.Log
	dir     string // export
	export  *auditlog.Export

	ean    meter.EAN
	gln    meter.GLN
	days   meter.DayRange
	record []byte // of the supplier
	token  string
	file   []byte
	keys   []envelope.KeyRecord
	blocks []envelope.SealedBlock
	extra  []*ecdsa.PublicKey // seal keys pinned beside those of the HSM
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, hsm: hsmtest.New(t), journal: filepath.Join(t.TempDir(), "journal"), db: pgtest.New(t), dir: t.TempDir(), address: "127.0.0.1:0"}
	w.profile = must(meter.ParseProfile(meter.NL()))(t)
	w.ca = must(devpki.NewCA("operator"))(t)
	w.startServer()
	feedtest.Start(t, w.as("custodian"))

	w.owner = w.db.Open(t, migrations.RoleOwner)
	w.store = must(postgres.NewAuditor(t.Context(), postgres.Config{DSN: w.db.URL(migrations.RoleAuditor)}))(t)
	w.gateway = must(postgres.NewGateway(t.Context(), postgres.Config{DSN: w.db.URL(migrations.RoleGateway)}))(t)
	t.Cleanup(func() { w.check(errors.Join(w.store.Close(), w.gateway.Close())) })
	w.log = auditlog.Log{Origin: origin, Keys: must(config.PublicKeys(w.hsm.SealKeysFile))(t)}
	w.export = must(auditlog.OpenExport(w.dir, w.log))(t)

	w.ean, w.gln = must(meter.ParseEAN("871687140000000019"))(t), must(meter.ParseGLN("8712345000004"))(t)
	w.days.From = (meter.DayOf(time.Now(), w.profile.Location()).Month() - 2).First()
	w.days.To = w.days.From + 1
	certificate := [32]byte{1}
	registrar := w.as("registrar")
	w.record = must(registrar.SealSupplier(t.Context(), nil, authz.SupplierFacts{GLN: w.gln, Name: "Energy", Scopes: []string{authn.ScopeReadings},
		Certificates: []authz.Certificate{{Thumbprint: certificate, NotAfter: time.Now().AddDate(1, 0, 0)}}}))(t)
	w.exec(`INSERT INTO supplier (gln, version, record, sealed_at) VALUES ($1, 1, $2, now())`, w.gln.Int64(), w.record)
	var err error
	w.token, _, err = w.as("issuer").SignToken(t.Context(), w.record, certificate, []string{authn.ScopeReadings}, 5*time.Minute)
	w.check(err)
	for version, step := range []authz.Step{
		authz.Register{EAN: w.ean, Commodity: meter.Electricity},
		authz.SetOccupancy{Days: meter.DayRange{From: w.days.From - 100, To: meter.MaxDay}},
		authz.SetSupply{Supplier: w.gln, Days: meter.DayRange{From: w.days.From - 100, To: meter.MaxDay}},
	} {
		w.file = must(registrar.SealStep(t.Context(), w.file, step))(t)
		w.exec(`INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, $2, $3, now())`, w.ean.Int64(), version+1, w.file)
	}
	w.keys = must(w.as("ingest").Mint(t.Context(), []envelope.KeySpec{{EAN: w.ean, Class: meter.Registers, Month: w.days.From.Month()}}))(t)
	w.blocks = []envelope.SealedBlock{w.seal(1, 1, true)}
	return w
}

// startServer starts the cryptoserver, or a next boot of it.
func (w *world) startServer() {
	w.t.Helper()
	t := w.t
	tokens := w.hsm.Servers[0].Open(t)
	keys := must(authn.PinnedKeys(must(os.ReadFile(w.hsm.JWKSFile))(t)))(t)
	verifier := must(authn.NewVerifier(time.Now, authn.Issuer{URL: issuer, Audience: audience, Keys: keys, MaxLifetime: 5 * time.Minute}))(t)
	j := must(journal.Open(journal.Config{Dir: w.journal}))(t)
	cert := must(w.ca.Issue(devpki.Leaf{CommonName: "cryptoserver-1", Hosts: []string{"127.0.0.1"}}))(t)
	s := must(cryptoserver.New(t.Context(), cryptoserver.Config{
		ID: "cs1", TLS: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.ca.Pool()},
		Allow: map[string][]string{"Open": {"gateway"}, "Mint": {"ingest"}, "Seal": {"ingest"}, "SealIdentity": {"ingest"}, "SealStep": {"registrar"}, "SealSupplier": {"registrar"},
			"SignToken": {"issuer"}, "SignControl": {"custodian"}, "PutControl": {"custodian"}, "Reseal": {"custodian"},
			"ReadJournal": {"auditor"}, "SignCheckpoint": {"auditor"}},
		Profile: w.profile, SealKeys: w.hsm.SealKeys, Verifier: verifier, Issue: cryptoserver.Issue{Issuer: issuer, Audience: audience},
		Tokens:  cryptoserver.Tokens{Open: tokens.Opener(), Seal: tokens.Sealer(), Mint: tokens.Minter(), Rotate: tokens.Rotator(), Sign: tokens.TokenSigner()},
		Journal: j, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Drain: 10 * time.Millisecond,
	}))(t)
	var l net.Listener
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var err error
		if l, err = net.Listen("tcp", w.address); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	w.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		w.check(errors.Join(<-done, j.Close()))
	})
	t.Cleanup(w.stop)
}

func (w *world) as(identity string) *client.Client {
	w.t.Helper()
	cert := must(w.ca.Issue(devpki.Leaf{CommonName: identity}))(w.t)
	c := must(client.New(client.Config{Addresses: []string{w.address}, TLS: &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: w.ca.Pool(),
	}}))(w.t)
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// exec is a statement of somebody who owns the database.
func (w *world) exec(query string, args ...any) int64 {
	w.t.Helper()
	n, err := must(w.owner.ExecContext(w.t.Context(), query, args...))(w.t).RowsAffected()
	w.check(err)
	return n
}

// tamper is exec of something that must hit.
func (w *world) tamper(query string, args ...any) {
	w.t.Helper()
	if w.exec(query, args...) == 0 {
		w.t.Fatalf("nothing was altered by: %s", query)
	}
}

// seal seals a version of the day's block, and stores it or not.
func (w *world) seal(version uint32, value meter.Value, store bool) envelope.SealedBlock {
	w.t.Helper()
	b := envelope.PlainBlock{Field: 1, Version: version, Block: meter.Block{Day: w.days.From, Resolution: meter.P1D, Start: meter.Null, Values: []meter.Value{value}}}
	sealed := must(w.as("ingest").Seal(w.t.Context(), w.ean, w.keys, []envelope.PlainBlock{b}))(w.t)
	out := envelope.SealedBlock{Field: 1, Day: w.days.From, Resolution: meter.P1D, Version: version, Ciphertext: sealed[0].Ciphertext}
	if store {
		w.exec(`INSERT INTO sealed_block (ean, field, day, version, resolution, key_id, value_count, content_mac, ciphertext)
			VALUES ($1, 1, DATE '1970-01-01' + $2::int, $3, $4, $5, 1, $6, $7)`,
			w.ean.Int64(), int64(w.days.From), int64(version), int64(meter.P1D), uuid.UUID(w.keys[0].ID).String(), sealed[0].ContentMAC[:], out.Ciphertext)
	}
	return out
}

// open has the readings opened for an interaction, and returns the receipt.
func (w *world) open(interaction [16]byte) []byte {
	w.t.Helper()
	request := client.OpenRequest{AccessToken: w.token, SupplierRecord: w.record, Profile: w.profile.Digest(),
		Units: []client.Unit{{InteractionID: interaction, LegalFile: w.file, Keys: w.keys, Blocks: w.blocks,
			Request: authz.Request{EAN: w.ean, Purpose: meter.EnergyManagement, Days: w.days, Fields: []meter.FieldCode{1}}}}}
	gateway := w.as("gateway")
	got, err := gateway.Open(w.t.Context(), request)
	for end := time.Now().Add(20 * time.Second); errors.Is(err, client.ErrUnavailable) && time.Now().Before(end); { // one that started again waits for the feed
		time.Sleep(50 * time.Millisecond)
		got, err = gateway.Open(w.t.Context(), request)
	}
	w.check(err)
	if got[0].Err != nil || len(got[0].Faults) > 0 || len(got[0].Receipt) == 0 {
		w.t.Fatalf("%+v", got)
	}
	return got[0].Receipt
}

func (w *world) recordOf(interaction [16]byte, rawReceipt []byte) audit.Record {
	w.t.Helper()
	rc := must(envelope.ParseReceipt(rawReceipt))(w.t)
	return audit.Record{InteractionID: interaction, At: time.Now(), Operation: audit.Readings, Supplier: w.gln, TokenID: rc.TokenID, EAN: w.ean, Purpose: rc.Purpose,
		Days: w.days, Fields: []meter.FieldCode{1}, Outcome: audit.Given, LegalFile: rc.LegalFile, FileVersion: rc.FileVersion, Profile: rc.Profile,
		Granted: []audit.Granted{{Field: 1, Days: meter.NewDaySet(w.days), Kind: meter.Register, Granularity: meter.P1D, Basis: meter.SupplyDaily, Rule: "x"}},
		Receipt: rawReceipt}
}

// read is a supplier's request as the gateway serves it.
func (w *world) read() [16]byte {
	w.t.Helper()
	id := newID()
	w.check(w.gateway.Record(w.t.Context(), w.recordOf(id, w.open(id))))
	return id
}

// refuse is one of which nothing comes.
func (w *world) refuse(at time.Time) [16]byte {
	w.t.Helper()
	id := newID()
	w.check(w.gateway.Record(w.t.Context(), audit.Record{InteractionID: id, At: at, Operation: audit.Readings, Supplier: w.gln, EAN: w.ean, Purpose: meter.Billing,
		Days: w.days, Outcome: audit.NoRelation}))
	return id
}

func newID() (id [16]byte) {
	rand.Read(id[:])
	return id
}

func (w *world) servers() auditlog.Servers { return backend.AuditServers{Pool: w.as("auditor")} }

func (w *world) rules() oversight.Rules {
	return oversight.Rules{Zone: w.profile.Location(), Working: oversight.DefaultHours()}
}

// auditing runs the daemon until the function it returns is called.
func (w *world) auditing(store auditlog.Store, servers auditlog.Servers, export *auditlog.Export) (*auditlog.Auditor, func()) {
	a := must(auditlog.New(store, servers, export, w.log, slog.New(slog.NewTextHandler(w.t.Output(), nil)), w.rules(), fast))(w.t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(stop)
	return a, stop
}

// catchUp runs the daemon until everything is logged, signed and exported, and
// nothing is wrong.
func (w *world) catchUp() {
	w.t.Helper()
	_, stop := w.auditing(w.store, w.servers(), w.export)
	defer stop()
	w.calm()
}

// calm waits until a daemon has everything logged, signed and exported, and
// nothing is wrong.
func (w *world) calm() {
	w.t.Helper()
	var r *auditlog.Report
	times := 0 // a statement made while Verify was under way is in the next
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		pulled := w.pulled() // before all else, so that the rest is of all of it
		r = w.verify()
		exported := must(w.export.Latest())(w.t)
		if pulled && r.Clean() && r.Size > 0 && r.Counts[auditlog.Unsigned] == 0 && r.Counts[auditlog.NotYetSettled] == 0 && int64(exported.Size) == r.Size {
			if times++; times == 2 {
				return
			}
			continue
		}
		times = 0
	}
	w.t.Fatalf("the log does not come to rest: %+v", r)
}

// pulled says whether all of the journals is in the database.
func (w *world) pulled() bool {
	s := w.servers()
	boots, _, err := s.ReadJournal(w.t.Context(), w.address, [16]byte{}, 0)
	w.check(err)
	for _, b := range boots {
		last, _, err := w.store.LastEntry(w.t.Context(), b.BootID)
		w.check(err)
		ends, err := w.store.Ends(w.t.Context(), b.BootID)
		w.check(err)
		if last < b.Last || b.Ended && len(ends) == 0 {
			return false
		}
	}
	return true
}

func (w *world) verify() *auditlog.Report {
	w.t.Helper()
	return must(auditlog.Verify(w.t.Context(), w.store, auditlog.Options{Log: w.log, Seals: must(authz.NewSealKeys(append(slices.Clone(w.hsm.SealKeys), w.extra...)...))(w.t), Zone: w.profile.Location(), Export: w.export}))(w.t)
}

// finds verifies and compares the kinds of findings, notices left out.
func (w *world) finds(want ...auditlog.What) *auditlog.Report {
	w.t.Helper()
	r := w.verify()
	for what := range r.Counts {
		found := what.IsNotice()
		for _, x := range want {
			found = found || x == what
		}
		if !found {
			w.t.Errorf("found %s as well: %v", what, r.Findings)
		}
	}
	for _, what := range want {
		if r.Counts[what] == 0 {
			w.t.Errorf("did not find %s: %v", what, r.Findings)
		}
	}
	if r.Clean() != (len(want) == 0) {
		w.t.Errorf("clean: %v", r.Clean())
	}
	return r
}
