package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/envelope"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/devpki"
	"kluis/internal/testing/feedtest"
	"kluis/internal/testing/hsmtest"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
)

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "kluis-cryptoserver-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary.dir = dir
	return hsmtest.Main(m)
}

// process is one `cryptoserver serve`, as a supervisor runs it.
type process struct {
	cmd     *exec.Cmd
	address string
	metrics string
	exited  chan error
}

// binary is built once for all tests that run it.
var binary struct {
	sync.Once
	dir, path string
	err       error
}

func build(t *testing.T) string {
	t.Helper()
	binary.Do(func() {
		binary.path = filepath.Join(binary.dir, "cryptoserver")
		if out, err := exec.Command("go", "build", "-o", binary.path, ".").CombinedOutput(); err != nil {
			binary.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return binary.path
}

// installation holds what several servers and their clients share.
type installation struct {
	t   *testing.T
	dir string
	bin string
	ca  *devpki.CA
	hsm *hsmtest.HSM
}

func newInstallation(t *testing.T) *installation {
	t.Helper()
	ca, err := devpki.NewCA("operator")
	if err != nil {
		t.Fatal(err)
	}
	in := &installation{t: t, dir: t.TempDir(), bin: build(t), ca: ca, hsm: hsmtest.New(t)}
	in.write("operator-ca.crt", ca.PEM())
	in.write("nl.yaml", meter.NL())
	return in
}

func (in *installation) write(name string, b []byte) string {
	in.t.Helper()
	path := filepath.Join(in.dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		in.t.Fatal(err)
	}
	return path
}

func (in *installation) config(i int) config.Cryptoserver {
	in.t.Helper()
	name := fmt.Sprintf("cryptoserver-%d", i+1)
	crt, key, err := in.ca.IssueFiles(in.dir, name, devpki.Leaf{CommonName: name, Hosts: []string{"127.0.0.1"}})
	if err != nil {
		in.t.Fatal(err)
	}
	return config.Cryptoserver{
		ID: name, Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0",
		TLS: config.TLS{CertificateFile: crt, KeyFile: key, CAFile: filepath.Join(in.dir, "operator-ca.crt")},
		Allow: map[string][]string{
			"Open": {"gateway"}, "Status": {"gateway"}, "Mint": {"ingest"}, "Seal": {"ingest"}, "SealIdentity": {"ingest"}, "OpenIdentity": {"gateway"}, "FindIndex": {"gateway"},
			"SealStep": {"registrar"}, "TakeStep": {"gateway"}, "SignManifest": {"gateway"}, "SealSupplier": {"registrar"}, "TakeSupplierStep": {"gateway"}, "SignToken": {"issuer"},
			"SignControl": {"custodian"}, "PutControl": {"custodian"}, "ReadJournal": {"auditor"}, "SignCheckpoint": {"auditor"},
		},
		JournalDir:   filepath.Join(in.dir, name+"-journal"),
		ProfileFile:  filepath.Join(in.dir, "nl.yaml"),
		SealKeysFile: in.hsm.SealKeysFile,
		Issuers:      []config.Issuer{{URL: "https://issuer.test", Audience: "urn:kluis:test", JWKSFile: in.hsm.JWKSFile}},
		Token:        config.TokenIssue{Issuer: "https://issuer.test", Audience: "urn:kluis:test"},
		Module:       in.hsm.Module,
		Tokens:       in.hsm.Servers[i].Tokens,
		ProbeKeyFile: in.hsm.ProbeKeyFile,
		KeyCache:     in.hsm.Servers[i].KeyCache,
	}
}

// start runs the process and waits for its line of readiness.
func (in *installation) start(c config.Cryptoserver) *process {
	in.t.Helper()
	file := filepath.Join(in.dir, c.ID+".yaml")
	if err := config.Write(file, c); err != nil {
		in.t.Fatal(err)
	}
	p := &process{cmd: exec.Command(in.bin, "serve", "--config", file), exited: make(chan error, 1)}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		in.t.Fatal(err)
	}
	var stderr strings.Builder
	p.cmd.Stderr = &stderr
	if err := p.cmd.Start(); err != nil {
		in.t.Fatal(err)
	}
	in.t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	ready := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var line struct {
				Msg, ID, Address string
				Metrics          string `json:"metrics_address"`
			}
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "ready" {
				p.address, p.metrics = line.Address, line.Metrics
				close(ready)
			}
		}
		p.exited <- p.cmd.Wait()
	}()
	select {
	case <-ready:
	case err := <-p.exited:
		in.t.Fatalf("cryptoserver: %v\n%s", err, stderr.String())
	case <-time.After(30 * time.Second):
		in.t.Fatal("cryptoserver is not ready after 30 s")
	}
	return p
}

func (in *installation) client(identity string, addresses ...string) *client.Client {
	in.t.Helper()
	cert, err := in.ca.Issue(devpki.Leaf{CommonName: identity})
	if err != nil {
		in.t.Fatal(err)
	}
	c, err := client.New(client.Config{Addresses: addresses, TLS: &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: in.ca.Pool(),
	}})
	if err != nil {
		in.t.Fatal(err)
	}
	in.t.Cleanup(func() { _ = c.Close() })
	return c
}

// healthy waits until every server of a client says it is well; a connection
// that was lost is made again after a pause.
func (in *installation) healthy(c *client.Client) {
	in.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		all := c.Status(in.t.Context())
		if !slices.ContainsFunc(all, func(s client.ServerStatus) bool { return s.Err != nil || !s.Healthy }) {
			return
		}
		if time.Now().After(end) {
			in.t.Fatalf("%+v", all)
		}
	}
}

// TestKilledUnderLoad: of two servers one is killed outright, again and again;
// no call fails. The other is then stopped in order.
//
// Not parallel: SoftHSM writes to a token at every login, which a process that
// starts over the same folder at that moment does not survive.
func TestKilledUnderLoad(t *testing.T) {
	in := newInstallation(t)
	one, two := in.start(in.config(0)), in.start(in.config(1))
	feedtest.Start(t, in.client("custodian", one.address, two.address))
	q := in.openRequest(one.address, two.address)
	gateway := in.client("gateway", one.address, two.address)

	in.healthy(gateway)
	var calls, failed atomic.Int64
	var wg sync.WaitGroup
	quit := make(chan struct{})
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-quit:
					return
				default:
				}
				got, err := gateway.Open(context.Background(), q)
				calls.Add(1)
				if err != nil || got[0].Err != nil || len(got[0].Faults) != 0 || len(got[0].Series) != 1 {
					failed.Add(1)
					t.Logf("failed: %v", err)
				}
			}
		})
	}
	wait := func(more int64) {
		for from := calls.Load(); calls.Load() < from+more; time.Sleep(time.Millisecond) {
			if t.Context().Err() != nil {
				return
			}
		}
	}
	wait(100)
	second := in.config(1)
	for range 3 {
		if err := two.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-two.exited
		wait(100)
		second.Listen = two.address // a supervisor restarts it where it was
		two = in.start(second)
		wait(100)
	}
	if err := two.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-two.exited; err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	wait(100)
	close(quit)
	wg.Wait()
	if failed.Load() != 0 {
		t.Errorf("%d of %d calls failed", failed.Load(), calls.Load())
	}

	resp, err := http.Get("http://" + one.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"kluis_cryptoserver_calls_total{", "kluis_cryptoserver_blocks_total{outcome=\"opened\"}", "kluis_cryptoserver_token_up{role=\"open\"} 1"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
}

// TestTwoOpenTokens: the tokens of a role share its work, and the status has
// each. Not parallel, as above.
func TestTwoOpenTokens(t *testing.T) {
	in := newInstallation(t)
	c := in.config(0)
	c.Tokens.Open = []config.Token{in.hsm.Servers[0].Tokens.Open[0], in.hsm.Servers[1].Tokens.Open[0]}
	p := in.start(c)
	feedtest.Start(t, in.client("custodian", p.address))
	q := in.openRequest(p.address)
	gateway := in.client("gateway", p.address)
	in.healthy(gateway)

	// Handles are data keys that a token has unwrapped, to decrypt with.
	handles := map[string]uint64{}
	for end := time.Now().Add(10 * time.Second); ; {
		got, err := gateway.Open(t.Context(), q)
		if err != nil || got[0].Err != nil || len(got[0].Faults) != 0 || len(got[0].Series) != 1 {
			t.Fatalf("%+v, %v", got, err)
		}
		var tokens []string
		for _, s := range gateway.Status(t.Context())[0].Tokens {
			if s.Role == "open" {
				handles[s.Label] = s.Handles
				tokens = append(tokens, s.Label+" "+s.State)
			}
		}
		if want := []string{c.Tokens.Open[0].Label + " up", c.Tokens.Open[1].Label + " up"}; !slices.Equal(tokens, want) {
			t.Fatalf("the status has %q, want %q", tokens, want)
		}
		if handles[c.Tokens.Open[0].Label] > 0 && handles[c.Tokens.Open[1].Label] > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("one token does all the work: %v", handles)
		}
	}
}

// openRequest makes a supplier, a metering point and a week of register reads,
// through the servers themselves.
func (in *installation) openRequest(addresses ...string) client.OpenRequest {
	t := in.t
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	profile, err := meter.ParseProfile(meter.NL())
	must(err)
	ean, err := meter.ParseEAN("871685900000000004")
	must(err)
	gln, err := meter.ParseGLN("8712345000004")
	must(err)
	leaf := [32]byte{1}
	registrar, ingest := in.client("registrar", addresses...), in.client("ingest", addresses...)
	record, err := registrar.SealSupplier(ctx, nil, authz.SupplierFacts{
		GLN: gln, Name: "Some Energy", Scopes: []string{authn.ScopeReadings},
		Certificates: []authz.Certificate{{Thumbprint: leaf, NotAfter: time.Now().AddDate(1, 0, 0)}},
	})
	must(err)
	today := meter.DayOf(time.Now(), profile.Location())
	from := today - 10
	var file []byte
	for _, step := range []authz.Step{
		authz.Register{EAN: ean, Commodity: meter.Electricity},
		authz.SetOccupancy{Days: meter.DayRange{From: from - 100, To: meter.MaxDay}},
		authz.SetSupply{Supplier: gln, Days: meter.DayRange{From: from - 100, To: meter.MaxDay}},
	} {
		file, err = registrar.SealStep(ctx, file, step)
		must(err)
	}
	var blocks []envelope.PlainBlock
	var specs []envelope.KeySpec
	keyOf := map[meter.Month]int{}
	for d := from; d <= from+7; d++ {
		if _, ok := keyOf[d.Month()]; !ok {
			keyOf[d.Month()] = len(specs)
			specs = append(specs, envelope.KeySpec{EAN: ean, Class: meter.Registers, Month: d.Month()})
		}
		blocks = append(blocks, envelope.PlainBlock{Field: 1, Version: 1, Key: keyOf[d.Month()], Block: meter.Block{
			Day: d, Resolution: meter.P1D, Start: meter.Null, Values: []meter.Value{meter.Value(d)},
		}})
	}
	keys, err := ingest.Mint(ctx, specs)
	must(err)
	sealed, err := ingest.Seal(ctx, ean, keys, blocks)
	must(err)
	raw, _, err := in.client("issuer", addresses...).SignToken(ctx, record, leaf, []string{authn.ScopeReadings}, 5*time.Minute)
	must(err)
	unit := client.Unit{
		InteractionID: [16]byte{1}, LegalFile: file, Keys: keys,
		Request: authz.Request{EAN: ean, Purpose: meter.EnergyManagement, Days: meter.DayRange{From: from, To: from + 7}, Fields: []meter.FieldCode{1}},
	}
	for i, b := range blocks {
		unit.Blocks = append(unit.Blocks, envelope.SealedBlock{
			Field: b.Field, Day: b.Block.Day, Resolution: meter.P1D, Version: 1, Key: b.Key, Ciphertext: sealed[i].Ciphertext,
		})
	}
	return client.OpenRequest{AccessToken: raw, SupplierRecord: record, Profile: profile.Digest(), Units: []client.Unit{unit}}
}

// TestServeRefuses: what cannot serve safely does not start, and says why.
// Not parallel, as above.
func TestServeRefuses(t *testing.T) {
	in := newInstallation(t)
	for name, c := range map[string]struct {
		change func(*config.Cryptoserver)
		says   string
	}{
		"no such token": {func(c *config.Cryptoserver) {
			c.Tokens.Open = []config.Token{{Label: "nowhere", PINFile: c.Tokens.Open[0].PINFile}}
		}, "nowhere"},
		"another server's seal key only": {func(c *config.Cryptoserver) {
			b, err := os.ReadFile(in.hsm.SealKeysFile)
			if err != nil {
				t.Fatal(err)
			}
			second := strings.SplitAfter(string(b), "-----END PUBLIC KEY-----\n")[1]
			c.SealKeysFile = in.write("one-seal-key.pem", []byte(second))
		}, "pinned seal keys"},
		"a journal for all to read": {func(c *config.Cryptoserver) {
			c.JournalDir = filepath.Join(in.dir, "open-to-all")
			if err := os.Mkdir(c.JournalDir, 0o755); err != nil {
				t.Fatal(err)
			}
		}, "chmod 700"},
		"identity provider without keys": {func(c *config.Cryptoserver) {
			c.OperatorGLN = stafftest.GLN
			provider := stafftest.New(t, nil).Configured(t.TempDir())
			provider.JWKSFile = in.write("no-keys.json", []byte(`{"keys":[]}`))
			c.IdentityProviders = []config.IdentityProvider{provider}
		}, "it holds no keys"},
		"employees of nobody": {func(c *config.Cryptoserver) {
			c.OperatorGLN = "8716867000008" // the check digit
			c.IdentityProviders = []config.IdentityProvider{stafftest.New(t, nil).Configured(t.TempDir())}
		}, "operator_gln"},
		"tokens for employees of nobody": {func(c *config.Cryptoserver) { c.OperatorGLN, c.Issuers[0].Staff = "8716867000008", true }, "operator_gln"},
		"no probe key":                   {func(c *config.Cryptoserver) { c.ProbeKeyFile = in.write("empty.bin", nil) }, "probe"},
		"bad profile":                    {func(c *config.Cryptoserver) { c.ProfileFile = in.write("bad.yaml", []byte("country: NL\nfoo: 1\n")) }, "foo"},
	} {
		cfg := in.config(0)
		cfg.ID = "refused"
		c.change(&cfg)
		file := filepath.Join(in.dir, strings.ReplaceAll(name, " ", "-")+".yaml")
		if err := config.Write(file, cfg); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		out, err := exec.CommandContext(ctx, in.bin, "serve", "--config", file).CombinedOutput()
		cancel()
		if err == nil || !strings.Contains(string(out), c.says) || strings.Contains(string(out), `"ready"`) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
