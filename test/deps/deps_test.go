// Package deps proves the import rules of docs/ARCHITECTURE.md and that the
// gateway contains neither cgo nor PKCS#11.
package deps

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// mayImport says, for every package of the module outside cmd, which other
// packages of the module its non-test code may import. A package that is not
// listed fails the test: decide its place first.
var mayImport = map[string][]string{
	"internal/canonical":  {},
	"internal/config":     {},
	"internal/connlimit":  {},
	"internal/devpki":     {},
	"internal/devidp":     {}, // the demo's alone (checked below)
	"internal/devpg":      {},
	"internal/scrape":     {},
	"internal/strictjson": {},
	"internal/tracing":    {"internal/config"},
	"internal/timerslack": {},

	"meter": {"internal/canonical"},
	"authz": {"internal/canonical", "meter"},

	"openapi":              {},
	"openapi/client":       {},
	"openapi/client/kluis": {"openapi/client"},
	"migrations":           {},

	"internal/authn": {"authz", "internal/config", "internal/strictjson", "meter"},
	"internal/audit": {"authz", "cryptoserver/envelope", "internal/canonical", "meter"},

	"cryptoserver/token":      {},
	"cryptoserver/cryptopb":   {},
	"cryptoserver/envelope":   {"internal/canonical", "meter"},
	"cryptoserver/journal":    {},
	"cryptoserver/checkpoint": {}, // and so is whoever checks a proof offline
	"cryptoserver/control":    {"authz", "internal/canonical", "meter"},
	"cryptoserver":            {"authz", "cryptoserver/checkpoint", "cryptoserver/control", "cryptoserver/cryptopb", "cryptoserver/envelope", "cryptoserver/journal", "cryptoserver/token", "internal/authn", "meter"},
	"cryptoserver/client":     {"authz", "cryptoserver/control", "cryptoserver/cryptopb", "cryptoserver/envelope", "meter"},
	"internal/hsm":            {"cryptoserver/token"},

	"server":             {"auditlog/oversight", "authz", "cryptoserver/envelope", "internal/audit", "internal/authn", "internal/canonical", "internal/connlimit", "internal/strictjson", "meter", "openapi"},
	"issuer":             {"authz", "internal/authn", "meter"},
	"web":                {"cryptoserver/checkpoint", "internal/connlimit", "meter", "openapi/client", "openapi/client/kluis"},
	"ingest":             {"authz", "cryptoserver/envelope", "meter"},
	"custodian":          {"authz", "cryptoserver/control", "cryptoserver/envelope", "internal/canonical", "meter"},
	"conformance":        {"authz", "meter", "openapi/client"}, // what answers requests, it must not use
	"auditlog/leaf":      {"internal/canonical"},
	"auditlog/oversight": {"internal/audit", "meter"},
	"auditlog":           {"auditlog/leaf", "auditlog/oversight", "authz", "cryptoserver/checkpoint", "cryptoserver/envelope", "internal/audit", "meter"},
	"internal/postgres":  {"auditlog/leaf", "auditlog/oversight", "authz", "cryptoserver/control", "cryptoserver/envelope", "internal/audit", "internal/tracing", "meter"},
}

// only these commands may link the HSM library.
var mayLinkHSM = []string{"cmd/cryptoserver"}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, args...)...)
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []pkg
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestImportRules(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, "kluis/")
		if strings.HasPrefix(name, "cmd/") || strings.HasPrefix(name, "test/") || strings.HasPrefix(name, "internal/testing/") {
			continue // wiring, and helpers that only tests import (checked below)
		}
		seen[name] = true
		allowed, ok := mayImport[name]
		if !ok {
			t.Errorf("%s has no import rule: add it to mayImport and to docs/ARCHITECTURE.md", name)
			continue
		}
		for _, imp := range p.Imports {
			ours, ok := strings.CutPrefix(imp, "kluis/")
			if ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s must not import %s", name, ours)
			}
		}
	}
	for name := range mayImport {
		if !seen[name] {
			t.Errorf("rule for %s, which does not exist", name)
		}
	}
}

func TestOnlyCryptoserverLinksTheHSM(t *testing.T) {
	t.Parallel()
	for _, p := range list(t, "./cmd/...") {
		name := strings.TrimPrefix(p.ImportPath, "kluis/")
		for _, dep := range p.Deps {
			if strings.HasPrefix(dep, "kluis/internal/testing/") {
				t.Errorf("%s links the test helper %s", name, dep)
			}
			if slices.Contains(mayLinkHSM, name) {
				continue
			}
			if dep == "kluis/internal/hsm" || strings.Contains(dep, "pkcs11") || strings.Contains(dep, "crypto11") {
				t.Errorf("%s links %s", name, dep)
			}
		}
	}
}

// TestOnlyTheDemoHasADevelopmentProvider: no server vouches for employees itself.
func TestOnlyTheDemoHasADevelopmentProvider(t *testing.T) {
	t.Parallel()
	for _, p := range list(t, "./...") {
		if strings.HasPrefix(p.ImportPath, "kluis/cmd/kluis") || strings.HasPrefix(p.ImportPath, "kluis/internal/testing/") {
			continue
		}
		if slices.Contains(p.Deps, "kluis/internal/devidp") {
			t.Errorf("%s links internal/devidp", p.ImportPath)
		}
	}
}

// TestThePortalsDatabase: it has no tables but its own.
func TestThePortalsDatabase(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../cmd/portal/main.go")
	if err != nil {
		t.Fatal(err)
	}
	used := regexp.MustCompile(`\bpostgres\.([A-Z]\w*)`).FindAllStringSubmatch(string(raw), -1)
	for _, m := range used {
		if m[1] != "NewPortal" && m[1] != "Config" {
			t.Errorf("cmd/portal uses postgres.%s", m[1])
		}
	}
	if len(used) == 0 {
		t.Error("cmd/portal has no database")
	}
}

// TestAuditproof: who checks a proof has little to read.
func TestAuditproof(t *testing.T) {
	t.Parallel()
	for _, p := range list(t, "./cmd/auditproof") {
		for _, dep := range p.Deps {
			ours := strings.HasPrefix(dep, "kluis/") && dep != "kluis/cryptoserver/checkpoint"
			host, _, _ := strings.Cut(dep, "/")
			if ours || strings.Contains(host, ".") && !strings.HasPrefix(dep, "golang.org/x/mod/") {
				t.Errorf("auditproof links %s", dep)
			}
		}
	}
}

// TestGatewayBinary builds the gateway as released and looks into the binary:
// a rule about imports alone would not notice a build with cgo.
func TestGatewayBinary(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"gateway", "issuer", "portal", "kluis", "auditproof"} {
		bin := filepath.Join(t.TempDir(), name)
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", bin, "./cmd/"+name)
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s does not build without cgo: %v\n%s", name, err, out)
		}
		info, err := buildinfo.ReadFile(bin)
		if err != nil {
			t.Fatal(err)
		}
		cgo := "missing"
		for _, s := range info.Settings {
			if s.Key == "CGO_ENABLED" {
				cgo = s.Value
			}
		}
		if cgo != "0" {
			t.Errorf("%s: CGO_ENABLED is %s", name, cgo)
		}
		for _, d := range info.Deps {
			if strings.Contains(d.Path, "pkcs11") || strings.Contains(d.Path, "crypto11") {
				t.Errorf("%s contains %s", name, d.Path)
			}
		}
		f, err := elf.Open(bin)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
			t.Errorf("%s is not static: links %v (%v)", name, libs, err)
		}
		syms, err := f.Symbols()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range syms {
			if strings.Contains(strings.ToLower(s.Name), "pkcs11") || strings.Contains(s.Name, "C_GetFunctionList") {
				t.Errorf("%s has the symbol %s", name, s.Name)
				break
			}
		}
	}
}
