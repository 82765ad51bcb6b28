package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"
)

// TestHSMCheck runs the command: its exit codes, its two reports, and that a
// check that was killed leaves nothing that the next does not clear away.
func TestHSMCheck(t *testing.T) {
	t.Parallel()
	module, err := hsmtest.Module()
	if err != nil {
		t.Fatal(err)
	}
	bin := build(t)
	s := newSite(t, bin, module, 1)
	s.must(t, "keys", "init", "--config="+s.path("server.yaml"), "--so-pin-file="+s.path("so-pin"), "--out="+s.path("public"))
	objects := func() string {
		t.Helper()
		names, err := filepath.Glob(s.path("tokens/*/*.object"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(names, " ")
	}
	before := objects()
	good := []string{"hsm", "check", "--module=" + module, "--label=s1-sign", "--pin-file=" + s.path("pin"), "--quick"}

	// Killed in the middle.
	cmd := exec.Command(bin, good...)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+s.conf)
	progress, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(progress); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "mint, seal, open") {
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || objects() == before {
		t.Fatalf("%v; a check that is killed leaves its objects, or this test says nothing", err)
	}
	out, errOut, err := s.run(good...)
	if err != nil || !strings.Contains(strings.Join(strings.Fields(out), " "), "objects of an interrupted check were destroyed") || !strings.Contains(out, "\nFIT: ") {
		t.Fatalf("%v\n%s%s", err, out, errOut)
	}
	if got := objects(); got != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, got)
	}

	var r hsm.CheckReport
	out, errOut, err = s.run(append(good, "--json")...)
	if err != nil || errOut != "" || json.Unmarshal([]byte(out), &r) != nil || r.Format != hsm.CheckFormat || !r.Fit {
		t.Errorf("JSON: %v\n%s%s", err, out, errOut)
	}

	code := func(want int, says string, args ...string) {
		t.Helper()
		out, errOut, err := s.run(args...)
		var e *exec.ExitError
		if !errors.As(err, &e) || e.ExitCode() != want || !strings.Contains(out+errOut, says) {
			t.Errorf("%v: %v, want code %d and %q\n%s%s", args, err, want, says, out, errOut)
		}
	}
	if err := os.WriteFile(s.path("wrong"), []byte("wrong-pin\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code(1, "UNFIT for some roles", append(good, "--so-pin-file="+s.path("wrong"))...)
	code(2, "missing flags", "hsm", "check", "--label=x")
	code(2, "no token labelled nobody; it shows s1-mint, s1-open, ", "hsm", "check", "--module="+module, "--label=nobody", "--pin-file="+s.path("pin"))
	code(2, "presented once and not accepted", "hsm", "check", "--module="+module, "--label=s1-sign", "--pin-file="+s.path("wrong"))
	if got := objects(); got != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, got)
	}
}
