//go:build clients

// Package clients drives what suppliers' developers meet against a running
// demo: the pages of docs/clients command by command, the TypeScript client,
// and /docs in a browser. It needs Node.js, npm, Chromium and Perl's
// OpenAPI::Client (scripts/setup.sh --ci), and the programs in bin/ (make
// build): make test-clients.
package clients

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

var world struct {
	root, dir, state, readyFile string
	ready                       struct {
		GatewayURL string `json:"gateway_url"`
		MetricsURL string `json:"metrics_url"`
		CAFile     string `json:"ca_file"`
		Suppliers  []struct {
			CertificateFile string `json:"certificate_file"`
			KeyFile         string `json:"key_file"`
		} `json:"suppliers"`
	}
}

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	w := &world
	if w.root, err = filepath.Abs("../.."); err != nil {
		return 1, err
	}
	if w.dir, err = os.MkdirTemp("", "kluis-clients-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(w.dir)
	// PostgreSQL does not run as root: its user must be able to pass.
	if err := os.Chmod(w.dir, 0o711); err != nil {
		return 1, err
	}
	w.state, w.readyFile = filepath.Join(w.dir, "demo"), filepath.Join(w.dir, "ready.json")
	demo := exec.Command(filepath.Join(w.root, "bin/kluis"), "demo", "--state", w.state, "--ready-file", w.readyFile)
	demo.Stderr = os.Stderr
	demo.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := demo.Start(); err != nil {
		return 1, fmt.Errorf("make build comes before: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- demo.Wait() }()
	for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if raw, err := os.ReadFile(w.readyFile); err == nil {
			if err := json.Unmarshal(raw, &w.ready); err != nil {
				return 1, err
			}
			break
		}
		if len(ended) > 0 || time.Since(start) > 3*time.Minute {
			_ = demo.Process.Signal(syscall.SIGTERM)
			return 1, fmt.Errorf("the demo is not ready: %v", <-ended)
		}
	}
	code = m.Run()
	if err := demo.Process.Signal(syscall.SIGTERM); err != nil {
		return code, err
	}
	return code, <-ended
}

// command runs a program and returns what it printed.
func command(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// checkout is what a developer has: the files of the repository, the programs
// built, and a demo that runs.
func checkout(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "kluis")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, world.root, nil, "bash", "-euo", "pipefail", "-c",
		`git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -T - -cf - | tar -xf - -C "$0"`, dir)
	for name, target := range map[string]string{"bin": filepath.Join(world.root, "bin"), ".demo": world.state} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Every command of the pages is run, in order, as it stands there.
func TestPages(t *testing.T) {
	for page, want := range map[string][]string{
		"curl.md":       {`"meteringPoints":\[`, `"legalBasis":"SUPPLY_PERIODIC"`, `(?m)^record,ean,`, `"complete":true`, `nothing lost, nothing twice`, `"changes":\[`},
		"go.md":         {`(?m)^import_low \d{4}-\d\d-\d\d \d+\.\d{3} kWh$`, `(?m)^complete: \d+ metering points, signed by `},
		"typescript.md": {`(?m)^import_low \S+ \d+\.\d{3} kWh$`, `(?m)^complete: \d+ metering points, signed by `, `(?m)^complete: \d+ metering points, digest `},
		"perl.md":       {`(?m)^import_low \S+ \d+\.\d{3} kWh$`, `refused by the contract: 400`},
	} {
		t.Run(page, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(world.root, "docs/clients", page))
			if err != nil {
				t.Fatal(err)
			}
			var script strings.Builder
			for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
				script.WriteString(block[1])
			}
			start := time.Now()
			out := command(t, checkout(t), nil, "bash", "-euo", "pipefail", "-c", script.String())
			t.Logf("%s took %s", page, time.Since(start).Round(time.Second))
			for _, pattern := range want {
				if !regexp.MustCompile(pattern).MatchString(out) {
					t.Errorf("nothing printed is %s:\n%s", pattern, out)
				}
			}
		})
	}
}

func TestTypeScript(t *testing.T) {
	dir := filepath.Join(world.root, "clients/typescript")
	command(t, dir, nil, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	command(t, dir, nil, "npm", "run", "build")
	t.Log(command(t, dir, []string{"KLUIS_READY=" + world.readyFile}, "npm", "test"))
}

func TestDocsInABrowser(t *testing.T) {
	dir := filepath.Join(world.root, "test/browser")
	command(t, dir, nil, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	t.Log(command(t, dir, []string{"KLUIS_DOCS=" + strings.TrimSuffix(world.ready.MetricsURL, "/metrics")}, "npm", "test"))
}

// Suppliers read the contract where the API is: with a certificate, without a
// token, which everything else wants.
func TestDocsWithoutToken(t *testing.T) {
	ca, err := os.ReadFile(world.ready.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	pair, err := tls.LoadX509KeyPair(world.ready.Suppliers[0].CertificateFile, world.ready.Suppliers[0].KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	get := func(path string, certificates ...tls.Certificate) (int, error) {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certificates}}
		defer transport.CloseIdleConnections()
		res, err := (&http.Client{Transport: transport}).Get(world.ready.GatewayURL + path)
		if err != nil {
			return 0, err
		}
		return res.StatusCode, res.Body.Close()
	}
	for path, want := range map[string]int{"/docs": 200, "/openapi.yaml": 200, "/openapi.json": 200, "/v1/status": 401, "/v1/metering-points": 401} {
		if got, err := get(path, pair); err != nil || got != want {
			t.Errorf("%s without a token: %d, %v; want %d", path, got, err, want)
		}
	}
	if _, err := get("/docs"); err == nil {
		t.Error("/docs of the API without a client certificate")
	}
}
