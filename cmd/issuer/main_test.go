package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/authz"
	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/devpki"
	"kluis/internal/postgres"
	"kluis/internal/testing/feedtest"
	"kluis/internal/testing/hsmtest"
	"kluis/internal/testing/journaltest"
	"kluis/internal/testing/pgtest"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
)

type runner func() int

func (r runner) Run() int { return r() }

// binary is the issuer as it is shipped: built without cgo.
var binary string

func TestMain(m *testing.M) {
	os.Exit(hsmtest.Main(runner(func() int {
		dir, err := os.MkdirTemp("", "kluis-issuer-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		binary = filepath.Join(dir, "issuer")
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", binary, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building the issuer: %v\n%s", err, out)
			return 1
		}
		return pgtest.Run(m)
	})))
}

const (
	issuerURL = "https://127.0.0.1:8444" // what tokens say; the port it listens on is another
	audience  = "urn:kluis:gateway"
	supplier  = "8712423010208"
)

// world is the issuer's surroundings: PostgreSQL, two cryptoservers with real
// HSM tokens, certificates, and a configuration.
type world struct {
	t         *testing.T
	dir       string
	hsm       *hsmtest.HSM
	operator  *devpki.CA
	suppliers *devpki.CA
	db        *pgtest.DB
	registrar *postgres.Registrar
	sealer    *client.Client
	seals     *authz.SealKeys
	stops     []func() // of the cryptoservers
	config    config.IssuerProcess
	cert      tls.Certificate // the supplier's
	office    *stafftest.Office
	portal    tls.Certificate // the grid operator's
	verifier  *authn.Verifier
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), hsm: hsmtest.New(t), db: pgtest.New(t)}
	w.operator = must[*devpki.CA](t)(devpki.NewCA("operator"))
	w.suppliers = must[*devpki.CA](t)(devpki.NewCA("suppliers"))
	for name, ca := range map[string]*devpki.CA{"operator.crt": w.operator, "suppliers.crt": w.suppliers} {
		if err := os.WriteFile(filepath.Join(w.dir, name), ca.PEM(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.office = stafftest.New(t, must[*meter.Profile](t)(meter.ParseProfile(meter.NL())))
	w.seals = must[*authz.SealKeys](t)(authz.NewSealKeys(w.hsm.SealKeys...))
	addresses := []string{w.startCryptoserver(0), w.startCryptoserver(1)}
	w.config = config.IssuerProcess{
		Listen: "127.0.0.1:0", URL: issuerURL, TLS: w.identity("issuer-server", "suppliers.crt", "127.0.0.1"),
		DatabaseURL: w.db.URL("kluis_issuer"), SealKeysFile: w.hsm.SealKeysFile, JWKSFile: w.hsm.JWKSFile, OperatorGLN: stafftest.GLN,
		Cryptoservers: config.Cryptoservers{Addresses: addresses, TLS: w.identity("issuer", "operator.crt")},
	}
	w.sealer = must[*client.Client](t)(client.New(client.Config{
		Addresses: addresses, TLS: must[*tls.Config](t)(config.ClientTLS(w.identity("registrar", "operator.crt"))),
	}))
	t.Cleanup(func() { _ = w.sealer.Close() })
	custodian := must[*client.Client](t)(client.New(client.Config{
		Addresses: addresses, TLS: must[*tls.Config](t)(config.ClientTLS(w.identity("custodian", "operator.crt"))),
	}))
	t.Cleanup(func() { _ = custodian.Close() })
	feedtest.Start(t, custodian)
	w.registrar = must[*postgres.Registrar](t)(postgres.NewRegistrar(t.Context(), postgres.Config{DSN: w.db.URL("kluis_registrar")}))
	t.Cleanup(func() { _ = w.registrar.Close() })
	w.verifier = must[*authn.Verifier](t)(authn.Configured(t.Context(),
		[]config.Issuer{{URL: issuerURL, Audience: audience, JWKSFile: w.hsm.JWKSFile, Staff: true}}, stafftest.GLN, w.office.Profile, slog.New(slog.DiscardHandler)))
	w.cert = must[tls.Certificate](t)(w.suppliers.Issue(devpki.Leaf{CommonName: "supplier"}))
	w.portal = must[tls.Certificate](t)(w.suppliers.Issue(devpki.Leaf{CommonName: "portal"}))
	return w
}

// identity makes a certificate of the operator's CA.
func (w *world) identity(name, peersCA string, hosts ...string) config.TLS {
	w.t.Helper()
	crt, key, err := w.operator.IssueFiles(w.dir, name, devpki.Leaf{CommonName: strings.TrimSuffix(name, "-server"), Hosts: hosts})
	if err != nil {
		w.t.Fatal(err)
	}
	return config.TLS{CertificateFile: crt, KeyFile: key, CAFile: filepath.Join(w.dir, peersCA)}
}

func (w *world) startCryptoserver(i int) (address string) {
	w.t.Helper()
	h := w.hsm.Servers[i].Open(w.t)
	name := fmt.Sprintf("cryptoserver-%d", i+1)
	s := must[*cryptoserver.Server](w.t)(cryptoserver.New(w.t.Context(), cryptoserver.Config{
		ID: name, TLS: must[*tls.Config](w.t)(config.ServerTLS(w.identity(name, "operator.crt", "127.0.0.1"))),
		Allow: map[string][]string{
			"SignToken": {"issuer"}, "SignStaffToken": {"issuer"}, "Status": {"issuer"}, "SealSupplier": {"registrar"},
			"SignControl": {"custodian"}, "PutControl": {"custodian"},
		},
		Profile: w.office.Profile, SealKeys: w.hsm.SealKeys,
		Issue:  cryptoserver.Issue{Issuer: issuerURL, Audience: audience},
		Staff:  &cryptoserver.Staff{Operator: w.office.Operator, Identities: w.office.Identities},
		Tokens: cryptoserver.Tokens{Seal: h.Sealer(), Sign: h.TokenSigner()}, Journal: journaltest.New(w.t),
		Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	}))
	l := must[net.Listener](w.t)(net.Listen("tcp", "127.0.0.1:0"))
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(stop)
	w.stops = append(w.stops, stop)
	return l.Addr().String()
}

// register stores the next version of the supplier's record.
func (w *world) register(revoked bool) {
	w.t.Helper()
	g := must[meter.GLN](w.t)(meter.ParseGLN(supplier))
	c := authz.Certificate{Thumbprint: authn.Thumbprint(w.cert.Leaf), NotAfter: w.cert.Leaf.NotAfter}
	if revoked {
		c.RevokedAt = time.Now().Add(-time.Second)
	}
	w.store(authz.SupplierFacts{GLN: g, Name: "Supplier", Scopes: []string{authn.ScopeReadings}, Certificates: []authz.Certificate{c}})
}

// store seals and stores the next version of a record.
func (w *world) store(f authz.SupplierFacts) {
	w.t.Helper()
	previous := must[[]byte](w.t)(w.registrar.Supplier(w.t.Context(), f.GLN))
	sealed := must[[]byte](w.t)(w.sealer.SealSupplier(w.t.Context(), previous, f))
	record := must[*authz.Supplier](w.t)(w.seals.Supplier(sealed))
	if err := w.registrar.StoreSupplier(w.t.Context(), record, sealed); err != nil {
		w.t.Fatal(err)
	}
}

// process is a running issuer.
type process struct {
	cmd    *exec.Cmd
	addr   string
	stdout *bytes.Buffer // complete once it has ended
	ended  chan error
}

func (w *world) start() *process {
	w.t.Helper()
	file := filepath.Join(w.dir, "issuer.yaml")
	if err := config.Write(file, w.config); err != nil {
		w.t.Fatal(err)
	}
	p := &process{cmd: exec.Command(binary, "--config", file), stdout: &bytes.Buffer{}, ended: make(chan error, 1)}
	var stderr bytes.Buffer
	p.cmd.Stderr = &stderr
	out := must[io.ReadCloser](w.t)(p.cmd.StdoutPipe())
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	ready := make(chan string, 1)
	go func() {
		defer close(ready)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.stdout.WriteString(lines.Text() + "\n")
			var line struct{ Msg, Address string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "ready" {
				ready <- line.Address
			}
		}
		p.ended <- p.cmd.Wait()
	}()
	w.t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	select {
	case addr, ok := <-ready:
		if !ok {
			w.t.Fatalf("the issuer ended: %v\n%s", <-p.ended, stderr.String())
		}
		p.addr = addr
	case <-time.After(20 * time.Second):
		w.t.Fatal("the issuer is not ready after 20 s")
	}
	return p
}

// client calls the issuer as the supplier.
func (w *world) client(cert *tls.Certificate) *http.Client {
	conf := &tls.Config{RootCAs: w.operator.Pool()}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	tr := &http.Transport{TLSClientConfig: conf}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

func (w *world) token(c *http.Client, p *process) (status int, token string) {
	w.t.Helper()
	resp := must[*http.Response](w.t)(c.PostForm("https://"+p.addr+"/oauth2/token",
		url.Values{"grant_type": {"client_credentials"}, "client_id": {supplier}}))
	defer resp.Body.Close()
	var m struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, m.AccessToken
}

func TestIssuer(t *testing.T) {
	w := newWorld(t)
	p := w.start()
	c := w.client(&w.cert)

	if status, _ := w.token(c, p); status != http.StatusUnauthorized {
		t.Errorf("before registration: %d", status)
	}
	w.register(false)
	kids := map[string]bool{}
	for range 20 { // shared: both HSMs sign
		status, raw := w.token(c, p)
		if status != http.StatusOK {
			t.Fatalf("status %d", status)
		}
		tok, err := w.verifier.Verify(t.Context(), raw, authn.Thumbprint(w.cert.Leaf))
		if err != nil {
			t.Fatal(err)
		}
		if tok.Client().String() != supplier {
			t.Errorf("token of %s", tok.Client())
		}
		kids[strings.SplitN(raw, ".", 2)[0]] = true
	}
	if len(kids) != 2 {
		t.Errorf("signed by %d keys, want both servers'", len(kids))
	}
	if status, _ := w.token(w.client(nil), p); status != http.StatusUnauthorized {
		t.Errorf("without a certificate: %d", status)
	}
	if status := w.status(p, "/readyz"); status != http.StatusOK {
		t.Errorf("/readyz: %d", status)
	}

	// One cryptoserver less: nobody notices.
	w.stops[0]()
	for range 5 {
		if status, _ := w.token(c, p); status != http.StatusOK {
			t.Errorf("with one cryptoserver: %d", status)
		}
	}
	// A revocation counts from the next request.
	w.register(true)
	if status, raw := w.token(c, p); status != http.StatusUnauthorized || raw != "" {
		t.Errorf("after revocation: %d", status)
	}

	w.stops[1]()
	time.Sleep(readyCache)
	if status := w.status(p, "/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("/readyz without cryptoservers: %d", status)
	}

	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-p.ended:
		if err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("still there 10 s after SIGTERM")
	}
	log := p.stdout.String()
	if !strings.Contains(log, `"msg":"stopped"`) || strings.Contains(log, "eyJ") {
		t.Errorf("log: %s", log)
	}
}

// TestExchange: the portal's certificate, an employee's ID token and an errand,
// through the issuer as it is shipped, PostgreSQL and real HSMs.
func TestExchange(t *testing.T) {
	w := newWorld(t)
	p := w.start()
	portal := w.client(&w.portal)
	errand := authz.Errand{Kind: authz.ErrandView, EAN: must[meter.EAN](t)(meter.ParseEAN("871686870000000016")), Reason: "ticket 4711"}
	exchange := func(c *http.Client, id, details string) (int, map[string]any) {
		t.Helper()
		resp := must[*http.Response](t)(c.PostForm("https://"+p.addr+"/oauth2/token", url.Values{
			"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {stafftest.GLN},
			"subject_token": {id}, "subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"}, "authorization_details": {details},
		}))
		defer resp.Body.Close()
		var m map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, m
	}
	eva := w.office.IDToken("eva", time.Now(), authz.Auditor)
	if status, _ := exchange(portal, eva, w.office.Errand(errand)); status != http.StatusUnauthorized {
		t.Errorf("before registration: %d", status)
	}
	facts := w.office.Facts(w.portal.Leaf)
	w.store(facts)
	status, m := exchange(portal, eva, w.office.Errand(errand))
	if status != http.StatusOK {
		t.Fatalf("%d %v", status, m)
	}
	raw, _ := m["access_token"].(string)
	tok := must[*authn.Token](t)(w.verifier.Verify(t.Context(), raw, authn.Thumbprint(w.portal.Leaf)))
	record := must[*authz.Supplier](t)(w.seals.Supplier(must[[]byte](t)(w.registrar.Supplier(t.Context(), facts.GLN))))
	caller := must[authn.Caller](t)(tok.Authenticate(record, authn.ScopeStaff, time.Now()))
	if want := (authz.Employee{Subject: stafftest.Subject("eva"), Role: authz.Auditor, Errand: errand}); !reflect.DeepEqual(caller.Employee(), &want) {
		t.Errorf("%+v", caller.Employee())
	}

	w.register(false)
	readings := strings.ReplaceAll(w.office.Errand(errand), ":view", ":readings")
	for name, c := range map[string]struct {
		client      *http.Client
		id, details string
		status      int
		code, told  string
	}{
		"a supplier's certificate": {w.client(&w.cert), eva, w.office.Errand(errand), 401, "invalid_client", "certificate"},
		"another provider's":       {portal, stafftest.New(t, w.office.Profile).IDToken("eva", time.Now(), authz.Agent), w.office.Errand(errand), 400, "invalid_request", "identity provider"},
		"signed in too long ago":   {portal, w.office.IDToken("eva", time.Now().Add(-2*time.Hour), authz.Agent), w.office.Errand(errand), 400, "invalid_request", "sign in again"},
		"no role":                  {portal, w.office.IDToken("eva", time.Now()), w.office.Errand(errand), 400, "invalid_request", "role"},
		"half an errand":           {portal, eva, readings, 400, "invalid_authorization_details", "from must be"},
		"more than the role may": {portal, eva, w.office.Errand(authz.Errand{Kind: authz.ErrandReadings, EAN: errand.EAN, Days: meter.DayRange{From: 20000, To: 20001}, Fields: []meter.FieldCode{1}}),
			400, "invalid_authorization_details", "role (auditor)"},
	} {
		status, m := exchange(c.client, c.id, c.details)
		told, _ := m["error_description"].(string)
		if status != c.status || m["error"] != c.code || !strings.Contains(told, c.told) || m["access_token"] != nil {
			t.Errorf("%s: %d %v", name, status, m)
		}
	}

	// The portal's certificate revoked: from the next request on.
	facts.Certificates[0].RevokedAt = time.Now().Add(-time.Second)
	w.store(facts)
	if status, m := exchange(portal, eva, w.office.Errand(errand)); status != http.StatusUnauthorized || m["access_token"] != nil {
		t.Errorf("after revocation: %d %v", status, m)
	}
	w.stops[0]()
	w.stops[1]()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-p.ended; err != nil {
		t.Error(err)
	}
	if log := p.stdout.String(); strings.Contains(log, "eva") || strings.Contains(log, "eyJ") || strings.Contains(log, "871686870000000016") {
		t.Errorf("log: %s", log)
	}
}

const readyCache = 1100 * time.Millisecond

func TestBackEndsAway(t *testing.T) {
	w := newWorld(t)
	w.register(false)
	p := w.start()
	c := w.client(&w.cert)
	if status, _ := w.token(c, p); status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	w.stops[0]()
	w.stops[1]()
	if status, raw := w.token(c, p); status != http.StatusServiceUnavailable || raw != "" {
		t.Errorf("without cryptoservers: %d", status)
	}
}

func (w *world) status(p *process, path string) int {
	w.t.Helper()
	resp := must[*http.Response](w.t)(w.client(nil).Get("https://" + p.addr + path))
	defer resp.Body.Close()
	return resp.StatusCode
}

func TestStartRefused(t *testing.T) {
	w := newWorld(t)
	open := filepath.Join(w.dir, "open.key")
	raw := must[[]byte](t)(os.ReadFile(w.config.TLS.KeyFile))
	if err := errors.Join(os.WriteFile(open, raw, 0o644), os.Chmod(open, 0o644)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*config.IssuerProcess)
		want   string
	}{
		"key open to all":     {func(c *config.IssuerProcess) { c.TLS.KeyFile = open }, "chmod 600"},
		"no seal keys":        {func(c *config.IssuerProcess) { c.SealKeysFile = w.hsm.JWKSFile }, "seal_keys_file"},
		"no JWKS":             {func(c *config.IssuerProcess) { c.JWKSFile = w.hsm.SealKeysFile }, "JWK set"},
		"another role":        {func(c *config.IssuerProcess) { c.DatabaseURL = w.db.URL("kluis_gateway") }, "must be kluis_issuer"},
		"database not there":  {func(c *config.IssuerProcess) { c.DatabaseURL = "postgres://kluis_issuer@/x?host=" + w.dir }, "postgres: connect"},
		"operator's GLN":      {func(c *config.IssuerProcess) { c.OperatorGLN = "8716867000008" }, "operator_gln"},
		"path in the URL":     {func(c *config.IssuerProcess) { c.URL += "/x" }, "nothing after it"},
		"address not its own": {func(c *config.IssuerProcess) { c.Listen = "192.0.2.1:1" }, "192.0.2.1:1"},
	} {
		cfg := w.config
		c.change(&cfg)
		file := filepath.Join(w.dir, "bad.yaml")
		if err := config.Write(file, cfg); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		cmd := exec.CommandContext(ctx, binary, "--config", file)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		err := cmd.Run()
		cancel()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("%s: %v\n%s\nwant %q", name, err, stderr.String(), c.want)
		}
	}
}
