//go:build portal

// Package portal drives the customer-service portal against a running demo: by
// itself, with what a thief of its certificate has, and in a browser
// (test/browser/portal). It needs Node.js, npm and Chromium (scripts/setup.sh
// --clients), and the programs in bin/ (make build): make test-portal.
package portal

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

var world struct {
	root, dir, state, readyFile string
	ready                       struct {
		GatewayURL string `json:"gateway_url"`
		IssuerURL  string `json:"issuer_url"`
		CAFile     string `json:"ca_file"`
		Portal     struct {
			ClientID         string `json:"client_id"`
			CertificateFile  string `json:"certificate_file"`
			KeyFile          string `json:"key_file"`
			IdentityProvider string `json:"identity_provider"`
			URL              string `json:"url"`
		} `json:"portal"`
		MeteringPoints []struct {
			EAN string `json:"ean"`
		} `json:"metering_points"`
	}
}

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "portal:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	w := &world
	if w.root, err = filepath.Abs("../.."); err != nil {
		return 1, err
	}
	if w.dir, err = os.MkdirTemp("", "kluis-portal-"); err != nil {
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

// TestInABrowser runs every file of test/browser/portal; screenshots are left in
// bin/screenshots.
func TestInABrowser(t *testing.T) {
	dir := filepath.Join(world.root, "test/browser")
	node := func(env []string, name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, append(os.Environ(), env...), os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	node(nil, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--silent")
	node([]string{"KLUIS_READY=" + world.readyFile, "KLUIS_SCREENSHOTS=" + filepath.Join(world.root, "bin/screenshots")}, "npm", "run", "--silent", "portal")
}
