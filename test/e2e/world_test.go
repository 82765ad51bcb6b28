package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	_ "github.com/lib/pq" // the tests' own view of the database

	"kluis/internal/config"
	"kluis/internal/devpki"
)

// readyFile is what `kluis demo --ready-file` writes.
type readyFile struct {
	GatewayURL     string          `json:"gateway_url"`
	IssuerURL      string          `json:"issuer_url"`
	MetricsURL     string          `json:"metrics_url"`
	CAFile         string          `json:"ca_file"`
	Audience       string          `json:"audience"`
	Suppliers      []readySupplier `json:"suppliers"`
	Portal         readyPortal     `json:"portal"`
	MeteringPoints []readyPoint    `json:"metering_points"`
	DatabaseURL    string          `json:"database_url"`
	Cryptoservers  []struct {
		Address string `json:"address"`
		PID     int    `json:"pid"`
	} `json:"cryptoservers"`
	GatewayPID   int    `json:"gateway_pid"`
	IssuerPID    int    `json:"issuer_pid"`
	CustodianPID int    `json:"custodian_pid"`
	AuditorPID   int    `json:"auditor_pid"`
	PostgresPID  int    `json:"postgres_pid"`
	State        string `json:"state"`
}

type readySupplier struct {
	ID              string `json:"id"`
	Name            string `json:"name"`
	ClientID        string `json:"client_id"`
	CertificateFile string `json:"certificate_file"`
	KeyFile         string `json:"key_file"`
}

// readyPortal is the customer-service portal, a client with a certificate.
type readyPortal struct {
	ClientID         string `json:"client_id"`
	CertificateFile  string `json:"certificate_file"`
	KeyFile          string `json:"key_file"`
	IdentityProvider string `json:"identity_provider"`
	IdentityAudience string `json:"identity_audience"`
	IdentityDir      string `json:"identity_dir"`

	URL       string            `json:"url"`
	Employees []json.RawMessage `json:"employees"`
	PID       int               `json:"pid"`
}

type readyPoint struct {
	EAN       string `json:"ean"`
	Commodity string `json:"commodity"`
	Address   struct {
		Postcode    string `json:"postcode"`
		HouseNumber string `json:"houseNumber"`
		Addition    string `json:"addition"`
	} `json:"address"`
	Access []readyAccess `json:"access"`
}

type readyAccess struct {
	Supplier   string   `json:"supplier"`
	Purpose    string   `json:"purpose"`
	Fields     []string `json:"fields"`
	From       string   `json:"from"`
	To         string   `json:"to"`
	Resolution string   `json:"resolution"`
	Basis      string   `json:"basis"`
}

// world is a running demo and everything about it that an attacker with the
// run of the machine would have: its database, its authorities' keys.
type world struct {
	ready readyFile
	dir   string // holds state, the ready file and what the demo prints
	state string
	bin   string

	roots      *x509.CertPool // of the servers' certificates
	operatorCA *devpki.CA
	supplierCA *devpki.CA
	db         *sql.DB // as superuser

	contract contract
	secrets  *secrets
	demo     *child
	printed  *os.File // the demo's progress

	mu      sync.Mutex
	callers map[string]*caller // by client id
}

// startWorld runs `kluis demo` in dir/state until it is ready.
func startWorld(ctx context.Context, dir string) (_ *world, err error) {
	bin, err := run.bin(ctx)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	w := &world{dir: dir, state: filepath.Join(dir, "state"), bin: bin, secrets: newSecrets(), callers: map[string]*caller{}}
	if w.contract, err = loadContract(); err != nil {
		return nil, err
	}
	return w, w.start(ctx)
}

func (w *world) readyFile() string { return filepath.Join(w.dir, "ready.json") }

// start runs the demo on the world's state, also again after stopDemo.
func (w *world) start(ctx context.Context) (err error) {
	if err := os.Remove(w.readyFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if w.printed, err = os.OpenFile(filepath.Join(w.dir, "demo.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(w.bin, "kluis"), "demo", "--state", w.state, "--ready-file", w.readyFile())
	cmd.Stderr = w.printed
	cmd.Env = w.env()
	if w.demo, err = startChild(cmd); err != nil {
		return errors.Join(err, w.printed.Close())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stopDemo())
		}
	}()
	if err := w.awaitReady(ctx); err != nil {
		progress, _ := os.ReadFile(w.printed.Name())
		return fmt.Errorf("kluis demo: %w\n%s", err, progress)
	}
	if w.roots, err = config.CertPool(w.ready.CAFile); err != nil {
		return err
	}
	pki := filepath.Join(w.state, "pki")
	if w.operatorCA, err = devpki.LoadOrCreateCA(pki, "operator-ca", ""); err != nil {
		return err
	}
	if w.supplierCA, err = devpki.LoadOrCreateCA(pki, "supplier-ca", ""); err != nil {
		return err
	}
	if w.db, err = sql.Open("postgres", w.ready.DatabaseURL); err != nil {
		return err
	}
	w.db.SetMaxOpenConns(4)
	return w.secrets.ofState(w.state, w.ready)
}

// awaitReady waits for the ready file and reads it.
func (w *world) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		if err := w.reread(); err == nil {
			return nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		select {
		case <-w.demo.exited:
			return fmt.Errorf("it ended: %w", w.demo.err)
		case <-ctx.Done():
			return fmt.Errorf("it was not ready in time: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// reread reads the ready file again: process ids change when the demo
// restarts a process that died.
func (w *world) reread() error {
	r, err := w.readReady()
	if err == nil {
		w.ready = r
	}
	return err
}

// readReady reads the ready file as it is now; for tests that have others at
// work with the world meanwhile.
func (w *world) readReady() (readyFile, error) {
	var r readyFile
	b, err := os.ReadFile(w.readyFile())
	if err != nil {
		return r, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, fmt.Errorf("ready file: %w", err)
	}
	return r, nil
}

// env is the environment of every program: a data race in any of them is
// written to a file, which stop looks for. None sleeps for a second before it
// exits, as they do otherwise.
func (w *world) env() []string {
	return append(os.Environ(), "GORACE=halt_on_error=0 atexit_sleep_ms=0 log_path="+filepath.Join(w.dir, "race"))
}

// stopDemo ends the demo as Ctrl-C does.
func (w *world) stopDemo() error {
	var errs []error
	if w.db != nil {
		errs = append(errs, w.db.Close())
		w.db = nil
	}
	if w.demo != nil {
		if err := w.demo.stop(45 * time.Second); err != nil {
			errs = append(errs, fmt.Errorf("kluis demo: %w", err))
		}
		errs = append(errs, w.printed.Close())
		w.demo = nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.callers {
		c.http.CloseIdleConnections()
	}
	clear(w.callers)
	return errors.Join(errs...)
}

// stop ends the world and looks at what it leaves.
func (w *world) stop() error {
	errs := []error{w.stopDemo()}
	if left := processesOf(w.state); len(left) > 0 {
		errs = append(errs, fmt.Errorf("the demo leaves processes behind: %v", left))
	}
	races, err := filepath.Glob(filepath.Join(w.dir, "race.*"))
	errs = append(errs, err)
	for _, f := range races {
		report, err := os.ReadFile(f)
		errs = append(errs, err, fmt.Errorf("data race:\n%s", report))
	}
	logs, err := w.logFiles()
	errs = append(errs, err)
	if len(logs) < 5 {
		errs = append(errs, fmt.Errorf("only %d log files to search", len(logs)))
	}
	for _, f := range logs {
		errs = append(errs, w.secrets.searchFile(f))
	}
	return errors.Join(errs...)
}

// logFiles are all that any process wrote for operators.
func (w *world) logFiles() ([]string, error) {
	var files []string
	for _, pattern := range []string{"demo.log", "*/*.log", "*/logs/*", "state/postgres/*.log"} {
		m, err := filepath.Glob(filepath.Join(w.dir, pattern))
		if err != nil {
			return nil, err
		}
		files = append(files, m...)
	}
	return files, nil
}

// kluis runs the operator's command against this world and returns what it
// prints; a failure ends the test.
func (w *world) kluis(t testing.TB, args ...string) string {
	t.Helper()
	out, err := w.tryKluis(t.Context(), args...)
	if err != nil {
		t.Fatalf("kluis %v: %v", args, err)
	}
	return out
}

func (w *world) tryKluis(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(w.bin, "kluis"), args...)
	cmd.Env = append(w.env(), "KLUIS_STATE="+w.state)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w\n%s", err, stderr.Bytes())
	}
	return stdout.String(), nil
}

// pair issues a client certificate of the suppliers' CA.
func (w *world) pair(t testing.TB, l devpki.Leaf) tls.Certificate {
	t.Helper()
	c, err := w.supplierCA.Issue(l)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// point is the n-th metering point of a commodity that satisfies want.
func (w *world) point(t testing.TB, want func(readyPoint) bool) readyPoint {
	t.Helper()
	for _, p := range w.ready.MeteringPoints {
		if want(p) {
			return p
		}
	}
	t.Fatal("the demo has no such metering point")
	return readyPoint{}
}
