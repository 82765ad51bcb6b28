package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/testscript"

	"kluis/cryptoserver"
	"kluis/cryptoserver/envelope"
	"kluis/cryptoserver/token"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/devpki"
	"kluis/internal/testing/hsmtest"
	"kluis/internal/testing/journaltest"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

// suite runs the tests with tokens and databases at hand; it is not used when
// the binary runs as the command of a script.
type suite struct{ m *testing.M }

func (s suite) Run() int { return hsmtest.Main(withDatabases(s)) }

type withDatabases struct{ m *testing.M }

func (s withDatabases) Run() int { return pgtest.Run(s.m) }

func TestMain(m *testing.M) {
	testscript.Main(suite{m}, map[string]func(){"kluis": main})
}

// The parties of the tests.
const (
	testEAN  = "871687200000000010"
	testGas  = "871687200000000027"
	otherEAN = "871687200000000034"
	testGLN  = "8712000000011"
	otherGLN = "8712000000028"
)

// world is an installation: a database, a cryptoserver on real tokens behind
// real TLS, and the operator's configuration.
type world struct {
	metrics string // address of the daemon's
	t       *testing.T
	dir     string
	config  string
	profile *meter.Profile
	opener  token.Opener
	db      *pgtest.DB
	root    *sql.DB
	ca      *devpki.CA // of the suppliers
	stop    func()     // the cryptoserver
}

func newWorld(t *testing.T) *world {
	t.Helper()
	h := hsmtest.New(t)
	w := &world{t: t, dir: t.TempDir(), db: pgtest.New(t)}
	w.config = filepath.Join(w.dir, "kluis.yaml")
	w.root = w.db.Open(t, migrations.RoleGateway) // reads ciphertext, as the gateway would
	var err error
	if w.profile, err = meter.ParseProfile(meter.NL()); err != nil {
		t.Fatal(err)
	}
	operator, err := devpki.NewCA("operator")
	if err != nil {
		t.Fatal(err)
	}
	if w.ca, err = devpki.NewCA("suppliers"); err != nil {
		t.Fatal(err)
	}
	w.write("operator-ca.crt", operator.PEM())
	w.write("supplier-ca.crt", w.ca.PEM())
	w.write("nl.yaml", meter.NL())
	issue := func(name string, hosts ...string) config.TLS {
		crt, key, err := operator.IssueFiles(w.dir, name, devpki.Leaf{CommonName: name, Hosts: hosts})
		if err != nil {
			t.Fatal(err)
		}
		return config.TLS{CertificateFile: crt, KeyFile: key, CAFile: filepath.Join(w.dir, "operator-ca.crt")}
	}

	tokens := h.Servers[0].Open(t)
	w.opener = tokens.Opener()
	tls, err := config.ServerTLS(issue("cryptoserver-1", "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	server, err := cryptoserver.New(t.Context(), cryptoserver.Config{
		ID: "cryptoserver-1", TLS: tls, Profile: w.profile, SealKeys: h.SealKeys,
		Allow: map[string][]string{"Mint": {"ingest", "custodian"}, "Seal": {"ingest"}, "SealIdentity": {"ingest"}, "SealStep": {"registrar"}, "SealSupplier": {"registrar"},
			"SignControl": {"custodian"}, "PutControl": {"custodian"}, "Rewrap": {"custodian"}, "Reseal": {"custodian"}, "Status": {"custodian"},
			"ReadJournal": {"auditor"}, "SignCheckpoint": {"auditor"}},
		Verifier: nobody{},
		Tokens:   cryptoserver.Tokens{Open: tokens.Opener(), Seal: tokens.Sealer(), Mint: tokens.Minter(), Rotate: tokens.Rotator()},
		Journal:  journaltest.New(t),
		Log:      slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		Drain: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() {
		if err := server.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	w.stop = func() { cancel(); served.Wait() }
	t.Cleanup(w.stop)

	if err := os.Mkdir(filepath.Join(w.dir, "checkpoints"), 0o755); err != nil {
		t.Fatal(err)
	}
	addr := []string{l.Addr().String()}
	err = config.Write(w.config, config.Operator{
		MigrateURL: w.db.URL(migrations.RoleOwner), IngestURL: w.db.URL(migrations.RoleIngest), RegistrarURL: w.db.URL(migrations.RoleRegistrar),
		ProfileFile: filepath.Join(w.dir, "nl.yaml"), SealKeysFile: h.SealKeysFile, SuppliersCAFile: filepath.Join(w.dir, "supplier-ca.crt"),
		Ingest:    config.Cryptoservers{Addresses: addr, TLS: issue("ingest")},
		Registrar: config.Cryptoservers{Addresses: addr, TLS: issue("registrar")},

		CustodianURL: w.db.URL(migrations.RoleCustodian), FeedCopyFile: filepath.Join(w.dir, "feed"), CustodianMetricsListen: "127.0.0.1:0",
		Custodian: config.Cryptoservers{Addresses: addr, TLS: issue("custodian")},

		AuditorURL: w.db.URL(migrations.RoleAuditor), AuditOrigin: "kluis.test/audit", AuditExportDir: filepath.Join(w.dir, "checkpoints"), AuditorMetricsListen: "127.0.0.1:0",
		Auditor: config.Cryptoservers{Addresses: addr, TLS: issue("auditor")},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.feed()
	w.must("keys", "rotate-kek", "--yes")
	return w
}

// nobody is who may have readings of these cryptoservers.
type nobody struct{}

func (nobody) VerifyDetached(context.Context, string) (*authn.Token, error) {
	return nil, errors.New("refused")
}

// feed runs the daemon, as kluis keys feed, until the test ends.
func (w *world) feed() {
	w.t.Helper()
	r, out := io.Pipe()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	var complaint bytes.Buffer
	go func() {
		code := run(ctx, []string{"keys", "feed", "--config", w.config}, streams{strings.NewReader(""), out, &complaint})
		_ = out.Close()
		ended <- code
	}()
	ready := make(chan struct{})
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			var line struct {
				Msg     string
				Metrics string `json:"metrics_address"`
			}
			if json.Unmarshal(lines.Bytes(), &line) != nil {
				w.t.Errorf("not a JSON line: %s", lines.Bytes())
			} else if line.Msg == "ready" {
				w.metrics = line.Metrics
				close(ready)
			}
		}
	}()
	w.t.Cleanup(func() {
		stop()
		<-read
		if code := <-ended; code != exitOK {
			w.t.Errorf("kluis keys feed: exit code %d: %s", code, complaint.String())
		}
	})
	select {
	case <-ready:
	case <-read:
		w.t.Fatal("kluis keys feed ended")
	case <-time.After(30 * time.Second):
		w.t.Fatal("kluis keys feed was not ready in time")
	}
}

func (w *world) write(name string, b []byte) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// certificate makes a supplier's client certificate and returns its file and
// thumbprint.
func (w *world) certificate(name string, ca *devpki.CA, l devpki.Leaf) (string, [32]byte) {
	w.t.Helper()
	l.CommonName = name
	cert, err := ca.Issue(l)
	if err != nil {
		w.t.Fatal(err)
	}
	der := cert.Certificate[0]
	return w.write(name+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), sha256.Sum256(der)
}

// kluis runs a command against the world; out is what it printed, and what it
// complained of.
func (w *world) kluis(args ...string) (code int, out, complaint string) {
	w.t.Helper()
	return w.kluisTyping("", args...)
}

// kluisTyping is a command at which somebody types something.
func (w *world) kluisTyping(typed string, args ...string) (code int, out, complaint string) {
	w.t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(w.t.Context(), append(args, "--config", w.config), streams{strings.NewReader(typed), &stdout, &stderr})
	return code, stdout.String(), stderr.String()
}

func (w *world) must(args ...string) string {
	w.t.Helper()
	code, out, complaint := w.kluis(args...)
	if code != exitOK {
		w.t.Fatalf("kluis %v: exit code %d: %s%s", args, code, out, complaint)
	}
	return out
}

// setUp registers a supplier and the two metering points, occupied and
// supplied from 2023 on.
func (w *world) setUp() {
	w.t.Helper()
	crt, _ := w.certificate("client", w.ca, devpki.Leaf{})
	w.must("supplier", "add", "--gln", testGLN, "--name", "Polderstroom", "--certificate", crt)
	w.must("supply", "set", "--ean", testEAN, "--commodity", "electricity", "--supplier", testGLN, "--from", "2023-01-01")
	w.must("supply", "set", "--ean", testGas, "--commodity", "gas", "--supplier", testGLN, "--from", "2023-01-01")
}

// stored is a block as the database has it, opened.
type stored struct {
	version   uint32
	count     int
	occupancy meter.Day
	meter.Block
}

// open decrypts the highest versions of a metering point's field straight in
// the token: what a test may and no process can.
func (w *world) open(ean, field string) map[meter.Day]stored {
	w.t.Helper()
	e, err := meter.ParseEAN(ean)
	if err != nil {
		w.t.Fatal(err)
	}
	f, ok := w.profile.Field(field)
	if !ok {
		w.t.Fatal(field)
	}
	rows, err := w.root.QueryContext(w.t.Context(), `
		SELECT DISTINCT ON (b.day) b.day - DATE '1970-01-01', b.version, b.resolution, b.value_count, b.ciphertext, uuid_send(k.key_id), k.kek_epoch, k.wrapped, k.occupancy
		FROM sealed_block b JOIN data_key k USING (ean, key_id) WHERE b.ean = $1 AND b.field = $2 ORDER BY b.day, b.version DESC`, e.Int64(), int64(f.Code))
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	out := map[meter.Day]stored{}
	for rows.Next() {
		var s stored
		var day, occupancy int32
		var resolution int16
		var ciphertext, keyID []byte
		var key token.WrappedKey
		if err := rows.Scan(&day, &s.version, &resolution, &s.count, &ciphertext, &keyID, &key.Epoch, &key.Wrapped, &occupancy); err != nil {
			w.t.Fatal(err)
		}
		copy(key.ID[:], keyID)
		c, err := envelope.ParseCiphertext(ciphertext)
		if err != nil {
			w.t.Fatal(err)
		}
		id := envelope.BlockID{EAN: e, Field: f.Code, Day: meter.Day(day), Resolution: meter.Resolution(resolution), Version: s.version, KeyID: key.ID}
		items := []token.Item{{IV: c.IV, AAD: id.AppendAAD(nil), In: c.Body, Out: make([]byte, 0, len(c.Body))}}
		if err := w.opener.Open(w.t.Context(), []token.WrappedKey{key}, items); err != nil {
			w.t.Fatal(err)
		}
		if items[0].Err != nil {
			w.t.Fatalf("%s on %s does not open: %v", field, id.Day, items[0].Err)
		}
		if err := meter.DecodeBlock(items[0].Out, &s.Block, id.Day, id.Resolution, f.Class, w.profile.Location()); err != nil {
			w.t.Fatal(err)
		}
		s.occupancy = meter.Day(occupancy)
		out[id.Day] = s
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	return out
}

// count is a count of rows.
func (w *world) count(table string) (n int) {
	w.t.Helper()
	if err := w.root.QueryRowContext(w.t.Context(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
		w.t.Fatal(err)
	}
	return n
}
