package deploy

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/envelope"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/devpki"
	"kluis/internal/postgres"
	"kluis/internal/testing/hsmtest"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
	"kluis/web"
)

func TestMain(m *testing.M) { os.Exit(hsmtest.Main(suite{m})) }

type suite struct{ m *testing.M }

func (s suite) Run() int { return pgtest.Run(s.m) }

// process is a program of ours that runs until the test ends.
type process struct{ address, metrics string }

// start runs a program and waits for the line that says where it serves.
func start(t *testing.T, args ...string) process {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready, exited := make(chan process, 1), make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var line struct {
				Msg, Address string
				Metrics      string `json:"metrics_address"`
			}
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "ready" {
				ready <- process{line.Address, "http://" + line.Metrics}
			}
		}
		exited <- cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err = <-exited:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			err = errors.Join(errors.New("it did not stop when told to"), <-exited)
		}
		if err != nil {
			t.Errorf("%s: %v\n%s", filepath.Base(args[0]), err, stderr.String())
		}
	})
	select {
	case p := <-ready:
		return p
	case err := <-exited:
		exited <- err
		t.Fatalf("%s: %v\n%s", filepath.Base(args[0]), err, stderr.String())
	case <-time.After(time.Minute):
		t.Fatalf("%s is not ready after a minute", filepath.Base(args[0]))
	}
	return process{}
}

// startPortal runs the customer-service portal, and has nobody sign in: what it
// would measure then, it tells seen.
func startPortal(t *testing.T, bin, dir string, files func(name, cn string, hosts ...string) config.TLS, profileFile, sealKeysFile, database string, seen registrations) process {
	t.Helper()
	key := filepath.Join(dir, "session-key")
	if err := os.WriteFile(key, []byte(strings.Repeat("5e", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pages, api := files("portal-server", "portal", "127.0.0.1"), files("portal", "portal")
	c := config.Portal{
		Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", PublicURL: "https://portal.test",
		TLS:         config.Identity{CertificateFile: pages.CertificateFile, KeyFile: pages.KeyFile},
		API:         config.PortalAPI{Gateway: "https://gateway.test", Issuer: "https://issuer.test", TLS: api},
		OperatorGLN: "8716867000009",
		OIDC:        config.OIDC{Issuer: "https://login.test", ClientID: "portal", RoleClaim: "roles", NameClaim: "name", Roles: config.Roles{Agent: []string{"agent"}}},
		DatabaseURL: database, SessionKeyFile: key, Idle: config.Duration(time.Minute), Absolute: config.Duration(time.Hour),
		ProfileFile: profileFile, Audit: config.PortalAudit{Origin: "kluis.test/audit", KeysFile: sealKeysFile}, Language: "nl",
	}
	file := filepath.Join(dir, "portal.yaml")
	if err := config.Write(file, c); err != nil {
		t.Fatal(err)
	}
	if _, err := web.New(web.Config{
		PublicURL: c.PublicURL, Gateway: c.API.Gateway, Issuer: c.API.Issuer, ClientTLS: must(config.ClientTLS(api))(t), SessionKey: [32]byte{1}, Connections: web.DefaultConnections(),
		Profile: must(meter.ParseProfile(meter.NL()))(t), Registry: seen, Log: slog.New(slog.DiscardHandler),
	}); err != nil {
		t.Fatal(err)
	}
	p := start(t, bin+"portal", "--config", file)
	res := must((&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}).Get("https://" + p.address + "/healthz"))(t)
	res.Body.Close()
	if res.StatusCode != http.StatusMisdirectedRequest { // the name is another
		t.Fatalf("portal: %s", res.Status)
	}
	return p
}

// metric is what an endpoint says of one name.
type metric struct {
	help   string
	labels map[string]map[string]bool // label → values seen
}

type metrics map[string]*metric

var (
	sampleLine = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? \S+$`)
	labelPair  = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"`)
)

// scrape adds what an endpoint says, in the text format.
func (m metrics) scrape(t *testing.T, url string) {
	t.Helper()
	res, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v", url, res.Status, err)
	}
	help := map[string]string{}
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, text, _ := strings.Cut(rest, " ")
			help[name] = text
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		s := sampleLine.FindStringSubmatch(line)
		if s == nil {
			t.Fatalf("%s: %q", url, line)
		}
		family := s[1]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(family, suffix); ok && help[base] != "" {
				family = base
			}
		}
		got := m.of(s[1], help[family])
		for _, l := range labelPair.FindAllStringSubmatch(s[2], -1) {
			got.label(l[1], l[2])
		}
		got.label("instance", "")
		got.label("job", "")
	}
}

func (m metrics) of(name, help string) *metric {
	if m[name] == nil {
		m[name] = &metric{help: help, labels: map[string]map[string]bool{}}
	}
	return m[name]
}

func (m *metric) label(name, value string) {
	if m.labels[name] == nil {
		m.labels[name] = map[string]bool{}
	}
	m.labels[name][value] = true
}

// registrations notes what a program would show once it has something to show:
// a counter with labels has no series before the first event.
type registrations struct {
	prometheus.Registerer
	metrics metrics
}

var descText = regexp.MustCompile(`fqName: "([^"]*)", help: "(.*)", constLabels: \{.*\}, variableLabels: \{([^}]*)\}`)

func (r registrations) Register(c prometheus.Collector) error {
	descs := make(chan *prometheus.Desc, 16)
	c.Describe(descs)
	close(descs)
	_, histogram := c.(prometheus.ObserverVec)
	for d := range descs {
		s := descText.FindStringSubmatch(d.String())
		if s == nil {
			return fmt.Errorf("cannot be read: %s", d)
		}
		names := []string{s[1]}
		if histogram {
			names = []string{s[1] + "_bucket", s[1] + "_sum", s[1] + "_count"}
		}
		for _, name := range names {
			m := r.metrics.of(name, s[2])
			for _, l := range append(strings.Split(s[3], ","), "instance", "job") {
				m.label(l, "")
			}
			if strings.HasSuffix(name, "_bucket") {
				m.label("le", "")
			}
		}
	}
	return r.Registerer.Register(c)
}

// installation runs a cryptoserver, a gateway, the custodian and the auditor, has
// them do a little of everything, and returns what they measured.
func installation(t *testing.T) metrics {
	t.Helper()
	dir, tokens, db := t.TempDir(), hsmtest.New(t), pgtest.New(t)
	bin := filepath.Join(dir, "bin") + "/"
	for cgo, packages := range map[string][]string{"0": {"./cmd/gateway", "./cmd/portal", "./cmd/kluis"}, "1": {"./cmd/cryptoserver"}} {
		cmd := exec.CommandContext(t.Context(), "go", append([]string{"build", "-trimpath", "-buildvcs=false", "-o", bin}, packages...)...)
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
	}
	ca := must(devpki.NewCA("operator"))(t)
	caFile := write(t, dir, "ca.pem", ca.PEM())
	profileFile := write(t, dir, "nl.yaml", meter.NL())
	files := func(name, cn string, hosts ...string) config.TLS {
		crt, key, err := ca.IssueFiles(dir, name, devpki.Leaf{CommonName: cn, Hosts: hosts})
		if err != nil {
			t.Fatal(err)
		}
		return config.TLS{CertificateFile: crt, KeyFile: key, CAFile: caFile}
	}
	const issuer, audience = "https://issuer.test", "urn:kluis:test"
	issuers := []config.Issuer{{URL: issuer, Audience: audience, JWKSFile: tokens.JWKSFile}}

	cs := filepath.Join(dir, "cryptoserver.yaml")
	err := config.Write(cs, config.Cryptoserver{
		ID: "cs1", Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", TLS: files("cryptoserver-1", "cryptoserver-1", "127.0.0.1"),
		Allow: map[string][]string{
			"Open": {"gateway"}, "Status": {"gateway", "custodian"}, "Mint": {"ingest", "custodian"}, "Seal": {"ingest"}, "SealStep": {"registrar"}, "TakeStep": {"gateway"}, "SignManifest": {"gateway"},
			"SealSupplier": {"registrar"}, "SignToken": {"issuer"}, "SignControl": {"custodian"}, "PutControl": {"custodian"}, "Rewrap": {"custodian"},
			"ReadJournal": {"auditor"}, "SignCheckpoint": {"auditor"},
		},
		JournalDir:  filepath.Join(dir, "journal"),
		ProfileFile: profileFile, SealKeysFile: tokens.SealKeysFile, Issuers: issuers,
		Token:  config.TokenIssue{Issuer: issuer, Audience: audience},
		Module: tokens.Module, Tokens: tokens.Servers[0].Tokens, ProbeKeyFile: tokens.ProbeKeyFile, KeyCache: tokens.Servers[0].KeyCache,
	})
	if err != nil {
		t.Fatal(err)
	}
	server := start(t, bin+"cryptoserver", "serve", "--config", cs)

	// The daemons that keep the control feed and the audit log.
	operator := filepath.Join(dir, "kluis.yaml")
	checkpoints := filepath.Join(dir, "checkpoints")
	if err := os.Mkdir(checkpoints, 0o700); err != nil {
		t.Fatal(err)
	}
	addresses := []string{server.address}
	if err := config.Write(operator, config.Operator{
		ProfileFile: profileFile, SealKeysFile: tokens.SealKeysFile,
		CustodianURL: db.URL(migrations.RoleCustodian), FeedCopyFile: filepath.Join(dir, "feed"), CustodianMetricsListen: "127.0.0.1:0",
		Custodian:  config.Cryptoservers{Addresses: addresses, TLS: files("custodian", "custodian")},
		AuditorURL: db.URL(migrations.RoleAuditor), AuditOrigin: "kluis.test/audit", AuditExportDir: checkpoints, AuditorMetricsListen: "127.0.0.1:0",
		Auditor: config.Cryptoservers{Addresses: addresses, TLS: files("auditor", "auditor")},
	}); err != nil {
		t.Fatal(err)
	}
	custodian := start(t, bin+"kluis", "keys", "feed", "--config", operator)
	if out, err := exec.CommandContext(t.Context(), bin+"kluis", "keys", "rotate-kek", "--yes", "--config", operator).CombinedOutput(); err != nil {
		t.Fatalf("rotate-kek: %v\n%s", err, out)
	}
	auditor := start(t, bin+"kluis", "audit", "run", "--config", operator)

	cursorKeys := filepath.Join(dir, "cursor-keys")
	if err := os.WriteFile(cursorKeys, []byte(strings.Repeat("c1", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	gw := filepath.Join(dir, "gateway.yaml")
	if err := config.Write(gw, config.Gateway{
		Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", PublicURL: "https://gateway.test", TLS: files("gateway", "gateway", "127.0.0.1"),
		DatabaseURL: db.URL("kluis_gateway"), ProfileFile: profileFile, SealKeysFile: tokens.SealKeysFile, CursorKeysFile: cursorKeys, Issuers: issuers,
		Cryptoservers:  config.Cryptoservers{Addresses: []string{server.address}, TLS: files("gateway-client", "gateway")},
		RequestTimeout: config.Duration(10 * time.Second),
	}); err != nil {
		t.Fatal(err)
	}
	gateway := start(t, bin+"gateway", "--config", gw)

	got := metrics{}
	seen := registrations{prometheus.NewRegistry(), got}
	as := func(identity string, reg prometheus.Registerer) *client.Client {
		cert := must(ca.Issue(devpki.Leaf{CommonName: identity}))(t)
		c := must(client.New(client.Config{Addresses: []string{server.address}, Registerer: reg, TLS: &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: ca.Pool(),
		}}))(t)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	cert := must(ca.Issue(devpki.Leaf{CommonName: "supplier"}))(t)
	token := work(t, as, seen, db, sha256.Sum256(cert.Certificate[0]), must(authz.NewSealKeys(tokens.SealKeys...))(t))

	// The gateway refuses a caller without a token, lets a supplier have its turn
	// and list a metering point of nobody, and asks the pool how it is.
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: ca.Pool()}}
	defer transport.CloseIdleConnections()
	for _, r := range []struct {
		url, token, body string
		want             int
	}{
		{"https://" + gateway.address + "/v1/status", "", "", http.StatusUnauthorized},
		{"https://" + gateway.address + "/v1/metering-points", token, "", http.StatusOK},
		{"https://" + gateway.address + "/v1/readings/query", token,
			`{"from":"2026-01-01","to":"2026-01-02","purpose":"ENERGY_MANAGEMENT","fields":["import_low"],"meteringPoints":["871687140000000019"]}`, http.StatusOK},
		{gateway.metrics + "/readyz", "", "", http.StatusOK},
	} {
		method := http.MethodGet
		if r.body != "" {
			method = http.MethodPost
		}
		req := must(http.NewRequestWithContext(t.Context(), method, r.url, strings.NewReader(r.body)))(t)
		if r.body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		if r.token != "" {
			req.Header.Set("Authorization", "Bearer "+r.token)
		}
		res := must((&http.Client{Transport: transport}).Do(req))(t)
		res.Body.Close()
		if res.StatusCode != r.want {
			t.Fatalf("%s: %s", r.url, res.Status)
		}
	}
	portal := startPortal(t, bin, dir, files, profileFile, tokens.SealKeysFile, db.URL(migrations.RolePortal), seen)
	for _, p := range []process{server, gateway, custodian, auditor, portal} {
		got.scrape(t, p.metrics)
	}
	return got
}

// work seals facts and readings, has them opened, and is refused now and then. It
// returns an access token of a supplier that is stored, bound to the certificate
// leaf.
func work(t *testing.T, as func(string, prometheus.Registerer) *client.Client, reg prometheus.Registerer, db *pgtest.DB, leaf [32]byte, seals *authz.SealKeys) string {
	t.Helper()
	ctx := t.Context()
	registrar, ingest, gateway := as("registrar", nil), as("ingest", nil), as("gateway", reg)
	ean := must(meter.ParseEAN("871687140000000019"))(t)
	gln := must(meter.ParseGLN("8712345000004"))(t)
	record := must(registrar.SealSupplier(ctx, nil, authz.SupplierFacts{GLN: gln, Name: "Energy", Scopes: []string{authn.ScopeReadings},
		Certificates: []authz.Certificate{{Thumbprint: leaf, NotAfter: time.Now().AddDate(1, 0, 0)}}}))(t)
	raw, _, err := as("issuer", nil).SignToken(ctx, record, leaf, []string{authn.ScopeReadings}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	store := must(postgres.NewRegistrar(ctx, postgres.Config{DSN: db.URL(migrations.RoleRegistrar)}))(t)
	defer store.Close()
	if err := store.StoreSupplier(ctx, must(seals.Supplier(record))(t), record); err != nil {
		t.Fatal(err)
	}
	profile := must(meter.ParseProfile(meter.NL()))(t)
	days := meter.DayRange{From: (meter.DayOf(time.Now(), profile.Location()).Month() - 2).First()}
	days.To = days.From + 1
	var file []byte
	for _, step := range []authz.Step{
		authz.Register{EAN: ean, Commodity: meter.Electricity},
		authz.SetOccupancy{Days: meter.DayRange{From: days.From - 100, To: meter.MaxDay}},
		authz.SetSupply{Supplier: gln, Days: meter.DayRange{From: days.From - 100, To: meter.MaxDay}},
	} {
		file = must(registrar.SealStep(ctx, file, step))(t)
	}
	keys := must(ingest.Mint(ctx, []envelope.KeySpec{{EAN: ean, Class: meter.Registers, Month: days.From.Month()}}))(t)
	block := envelope.PlainBlock{Field: 1, Version: 1, Block: meter.Block{Day: days.From, Resolution: meter.P1D, Start: meter.Null, Values: []meter.Value{1}}}
	sealed := must(ingest.Seal(ctx, ean, keys, []envelope.PlainBlock{block}))(t)
	unit := client.Unit{LegalFile: file, Keys: keys,
		Request: authz.Request{EAN: ean, Purpose: meter.EnergyManagement, Days: days, Fields: []meter.FieldCode{1}},
		Blocks:  []envelope.SealedBlock{{Field: 1, Day: days.From, Resolution: meter.P1D, Version: 1, Ciphertext: sealed[0].Ciphertext}}}
	q := client.OpenRequest{AccessToken: raw, SupplierRecord: record, Profile: profile.Digest(), Units: []client.Unit{unit}}
	if got := must(gateway.Open(ctx, q))(t); got[0].Err != nil || len(got[0].Faults) > 0 || len(got[0].Series) == 0 {
		t.Fatalf("%+v", got)
	}
	q.Units[0].LegalFile = []byte("forged")
	if got := must(gateway.Open(ctx, q))(t); !errors.Is(got[0].Err, client.ErrEvidence) {
		t.Fatalf("%+v", got)
	}
	if _, err := gateway.Mint(ctx, []envelope.KeySpec{{EAN: ean, Class: meter.Registers, Month: 600}}); !errors.Is(err, client.ErrRefused) {
		t.Fatal(err)
	}
	return raw
}

// must(f())(t) is f's value; an error ends the test.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func write(t *testing.T, dir, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
