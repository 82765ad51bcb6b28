package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"kluis/internal/devpki"
	"kluis/migrations"
)

// TestScripts runs the binary as a user would: help, mistakes, exit codes.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// fails CODE COMMAND...: it ends with just this exit code.
			"fails": func(ts *testscript.TestScript, _ bool, args []string) {
				var e *exec.ExitError
				if err := ts.Exec(args[1], args[2:]...); !errors.As(err, &e) || strconv.Itoa(e.ExitCode()) != args[0] {
					ts.Fatalf("%v, want exit status %s", err, args[0])
				}
				fmt.Fprint(ts.Stderr(), ts.ReadFile("stderr"))
			},
		},
	})
}

func TestSupplierCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first, firstSum := w.certificate("first", w.ca, devpki.Leaf{})
	second, secondSum := w.certificate("second", w.ca, devpki.Leaf{})
	show := func() supplierView {
		t.Helper()
		var v supplierView
		if err := json.Unmarshal([]byte(w.must("supplier", "show", "--json", "--gln", testGLN)), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	state := func(sum [32]byte) string {
		t.Helper()
		for _, c := range show().Certificates {
			switch {
			case c.Thumbprint != hex.EncodeToString(sum[:]):
			case c.RevokedAt != nil:
				return "revoked"
			default:
				return "valid"
			}
		}
		return "unknown"
	}

	if code, _, complaint := w.kluis("supplier", "show", "--gln", testGLN); code != exitFailed || !strings.Contains(complaint, "kluis supplier add") {
		t.Errorf("unknown supplier: %d: %s", code, complaint)
	}
	if code, _, complaint := w.kluis("supplier", "add", "--gln", testGLN, "--certificate", first); code != exitUsage || !strings.Contains(complaint, "--name") {
		t.Errorf("no name: %d: %s", code, complaint)
	}
	w.must("supplier", "add", "--gln", testGLN, "--name", "Polderstroom", "--certificate", first)
	if v := show(); v.Version != 1 || v.Name != "Polderstroom" || len(v.Certificates) != 1 || len(v.Scopes) != 1 || v.Scopes[0] != "readings:read" {
		t.Errorf("%+v", v)
	}
	// The same again is no new version.
	if out := w.must("supplier", "add", "--gln", testGLN, "--certificate", first); !strings.Contains(out, "version 1, nothing changed") {
		t.Errorf("again: %s", out)
	}
	// A rotation.
	w.must("supplier", "add", "--gln", testGLN, "--certificate", second)
	if state(firstSum) != "valid" || state(secondSum) != "valid" {
		t.Error("adding a certificate took the other away")
	}
	w.must("supplier", "revoke", "--gln", testGLN, "--thumbprint", hex.EncodeToString(firstSum[:]))
	if state(firstSum) != "revoked" || state(secondSum) != "valid" {
		t.Error("revoking")
	}
	if code, _, complaint := w.kluis("supplier", "add", "--gln", testGLN, "--certificate", first); code != exitFailed || !strings.Contains(complaint, "stays revoked") {
		t.Errorf("revoked certificate added: %d: %s", code, complaint)
	}
	third, thirdSum := w.certificate("third", w.ca, devpki.Leaf{})
	w.must("supplier", "add", "--gln", testGLN, "--certificate", third, "--revoke-others")
	if state(secondSum) != "revoked" || state(thirdSum) != "valid" {
		t.Error("--revoke-others")
	}
	if code, _, complaint := w.kluis("supplier", "revoke", "--gln", testGLN, "--thumbprint", strings.Repeat("ab", 32)); code != exitFailed || !strings.Contains(complaint, "not registered") {
		t.Errorf("unknown certificate: %d: %s", code, complaint)
	}
	w.must("supplier", "suspend", "--gln", testGLN)
	if !show().Suspended {
		t.Error("not suspended")
	}
	w.must("supplier", "resume", "--gln", testGLN)
	if v := show(); v.Suspended || v.Version != 6 {
		t.Errorf("%+v", v)
	}

	stranger, err := devpki.NewCA("strangers")
	if err != nil {
		t.Fatal(err)
	}
	foreign, _ := w.certificate("foreign", stranger, devpki.Leaf{})
	expired, _ := w.certificate("expired", w.ca, devpki.Leaf{NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)})
	_, key, err := w.ca.IssueFiles(w.dir, "withkey", devpki.Leaf{CommonName: "withkey"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ file, want string }{
		"foreign":   {foreign, "not a client certificate of the suppliers' CA"},
		"expired":   {expired, "expired"},
		"key":       {key, "holds a private key"},
		"authority": {w.write("ca.crt", w.ca.PEM()), "of an authority"},
		"garbage":   {w.write("garbage.crt", []byte("hello")), "not a PEM file"},
	} {
		if code, _, complaint := w.kluis("supplier", "add", "--gln", testGLN, "--certificate", c.file); code != exitFailed || !strings.Contains(complaint, c.want) {
			t.Errorf("%s: %d: %s", name, code, complaint)
		}
	}
	if show().Version != 6 {
		t.Error("a refused certificate made a version")
	}
}

func TestSupplyAndConsentCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	set := func(more ...string) (int, string) {
		t.Helper()
		code, _, complaint := w.kluis(append([]string{"supply", "set", "--ean", testEAN}, more...)...)
		return code, complaint
	}
	show := func() legalFileView {
		t.Helper()
		var v legalFileView
		if err := json.Unmarshal([]byte(w.must("supply", "show", "--json", "--ean", testEAN)), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	if code, complaint := set("--commodity", "electricity", "--supplier", testGLN, "--from", "2024-01-01"); code != exitFailed || !strings.Contains(complaint, "supplier add") {
		t.Errorf("unknown supplier: %d: %s", code, complaint)
	}
	crt, _ := w.certificate("client", w.ca, devpki.Leaf{})
	w.must("supplier", "add", "--gln", testGLN, "--name", "Polderstroom", "--certificate", crt)
	other := otherSupplier(w)

	if code, complaint := set("--supplier", testGLN, "--from", "2024-01-01"); code != exitUsage || !strings.Contains(complaint, "--commodity") {
		t.Errorf("new without commodity: %d: %s", code, complaint)
	}
	if code, complaint := set("--commodity", "electricity", "--supplier", testGLN, "--from", "2024-01-01"); code != exitOK {
		t.Fatalf("%d: %s", code, complaint)
	}
	v := show()
	if v.Version != 3 || v.Commodity != "electricity" || len(v.Supply) != 1 || v.Supply[0].From != "2024-01-01" || v.Supply[0].To != "" ||
		len(v.Occupancies) != 1 || v.Occupancies[0].From != "2024-01-01" {
		t.Errorf("%+v", v)
	}
	if n := w.count("supply_period"); n != 1 {
		t.Errorf("%d rows in the index", n)
	}
	if code, complaint := set("--commodity", "gas", "--supplier", testGLN, "--from", "2025-01-01"); code != exitUsage || !strings.Contains(complaint, "registered for electricity") {
		t.Errorf("another commodity: %d: %s", code, complaint)
	}
	// A switch ends the other's period; the old one cannot be had twice.
	if code, complaint := set("--supplier", other, "--from", "2025-01-01", "--to", "2025-07-01"); code != exitOK {
		t.Fatalf("switch: %d: %s", code, complaint)
	}
	if code, complaint := set("--supplier", testGLN, "--from", "2025-06-01"); code != exitFailed || !strings.Contains(complaint, "overlaps") {
		t.Errorf("overlap: %d: %s", code, complaint)
	}
	if v := show(); len(v.Supply) != 2 || v.Supply[0].To != "2025-01-01" || len(v.Occupancies) != 1 {
		t.Errorf("%+v", v)
	}

	grant := []string{"consent", "grant", "--json", "--ean", testEAN, "--supplier", testGLN, "--granularity", "PT15M", "--from", "2024-01-01", "--evidence", "contract-1"}
	var c consentView
	if err := json.Unmarshal([]byte(w.must(append(grant, "--valid-until", "2099-01-01", "--class", "registers,intervals")...)), &c); err != nil {
		t.Fatal(err)
	}
	if c.Purpose != "ENERGY_MANAGEMENT" || len(c.Classes) != 2 || !c.ValidUntil.Equal(time.Date(2098, 12, 31, 23, 0, 0, 0, time.UTC)) || c.RevokedAt != nil {
		t.Errorf("%+v", c)
	}
	if code, _, complaint := w.kluis(append(grant, "--valid-until", "soon")...); code != exitUsage || !strings.Contains(complaint, "--valid-until") {
		t.Errorf("valid until: %d: %s", code, complaint)
	}
	if code, _, complaint := w.kluis("consent", "grant", "--ean", otherEAN, "--supplier", testGLN, "--granularity", "PT15M", "--from", "2024-01-01",
		"--evidence", "x", "--valid-until", "2099-01-01"); code != exitFailed || !strings.Contains(complaint, "not registered") {
		t.Errorf("unknown metering point: %d: %s", code, complaint)
	}
	if out := w.must("consent", "revoke", "--ean", testEAN, "--id", c.ID); !strings.Contains(out, "Consent "+c.ID+" revoked (legal file version 6)") {
		t.Error(out)
	}
	if code, _, _ := w.kluis("consent", "revoke", "--ean", testEAN, "--id", c.ID); code != exitFailed {
		t.Errorf("revoked twice: exit code %d", code)
	}
	if v := show(); len(v.Consents) != 1 || v.Consents[0].RevokedAt == nil {
		t.Errorf("%+v", v)
	}
}

// Many writers at once: each step counts, none is lost.
func TestLegalFileWritersTakeTurns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.setUp()
	done := make(chan string)
	for range 3 {
		go func() {
			code, _, complaint := w.kluis("consent", "grant", "--ean", testEAN, "--supplier", testGLN, "--granularity", "PT1H", "--from", "2024-01-01",
				"--evidence", "x", "--valid-until", "2099-01-01")
			if code == exitOK {
				complaint = ""
			}
			done <- complaint
		}()
	}
	for range 3 {
		if complaint := <-done; complaint != "" {
			t.Error(complaint)
		}
	}
	if n := w.count("consent"); n != 3 {
		t.Errorf("%d consents", n)
	}
}

func TestMigrateCommand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if out := w.must("migrate"); !strings.Contains(out, "up to date") {
		t.Error(out)
	}
	if out := w.must("migrate", "--roles-url", w.db.URL("postgres"), "--json"); !strings.Contains(out, `"applied": 0`) {
		t.Error(out)
	}
	if code, _, complaint := w.kluis("migrate", "--roles-url", w.db.URL(migrations.RoleIngest)); code != exitFailed || !strings.Contains(complaint, "creating roles") {
		t.Errorf("%d: %s", code, complaint)
	}
}

// Facts altered or swapped in the database are not built upon.
func TestRegistrarBelievesOnlySeals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.setUp()
	other := otherSupplier(w)
	owner := w.db.Open(t, migrations.RoleOwner)
	for _, c := range []struct {
		stmt, want string
		args       []any
		cmd        []string
	}{
		{`UPDATE legal_file SET file = (SELECT file FROM legal_file o WHERE o.ean = $2 ORDER BY version DESC LIMIT 1) WHERE ean = $1`, "of another metering point",
			[]any{testEAN, testGas}, []string{"supply", "set", "--ean", testEAN, "--supplier", other, "--from", "2025-01-01"}},
		{`UPDATE supplier SET record = (SELECT record FROM supplier o WHERE o.gln = $2) WHERE gln = $1`, "of another supplier",
			[]any{testGLN, other}, []string{"supplier", "suspend", "--gln", testGLN}},
		{`UPDATE supplier SET record = set_byte(record, 70, get_byte(record, 70) # 1) WHERE gln = $1`, "does not verify",
			[]any{other}, []string{"supplier", "suspend", "--gln", other}},
		{`UPDATE legal_file SET file = set_byte(file, 70, get_byte(file, 70) # 1) WHERE ean = $1`, "does not verify",
			[]any{testGas}, []string{"supply", "show", "--ean", testGas}},
	} {
		if _, err := owner.Exec(c.stmt, c.args...); err != nil {
			t.Fatal(err)
		}
		before := w.count("legal_file") + w.count("supplier")
		code, _, complaint := w.kluis(c.cmd...)
		if code != exitFailed || !strings.Contains(complaint, c.want) {
			t.Errorf("%v: exit code %d: %s", c.cmd, code, complaint)
		}
		if w.count("legal_file")+w.count("supplier") != before {
			t.Errorf("%v: a version was stored", c.cmd)
		}
	}
}
