package hsm_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"

	"github.com/miekg/pkcs11"
)

// errand is what a child process does: it starts the role and does the work,
// and dies of the fault unless there is none.
type errand struct {
	Module  string
	Direct  string // SoftHSM itself, served from instead of Module if not empty
	Probes  string
	Role    hsm.Role
	Token   hsm.Token
	Keys    []token.WrappedKey
	Items   []token.Item
	Op      string // function of the row
	Opening bool   // and its kind
	Crash   int    // function that crashes; -1: none
	Start   bool   // it crashes while the token is opened, otherwise afterwards
	Hang    int    // function that hangs while the token is opened anew; -1: none
	Renew   int    // if positive: the role opens blocks with keys unwrapped so many times, and says how much the process grew
	After   int    // Config.RenewAfter
}

const exitStuck = 75

const errandVariable = "KLUIS_TEST_ERRAND" // names the file that holds the errand

// runErrand is the child's main.
func runErrand(file string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return fail(err)
	}
	var e errand
	if err := json.Unmarshal(b, &e); err != nil {
		return fail(err)
	}
	f, err := mapFaulty(e.Module)
	if err != nil {
		return fail(err)
	}
	if e.Crash >= 0 && e.Start {
		f.inject(e.Crash, faultCrash, 0, 0, 1)
	}
	limit := 10 * time.Second
	if e.Hang >= 0 {
		limit = 2 * time.Second // to be given up, thrice
	}
	h, err := hsm.New(hsm.Tuned(hsm.Config{Module: cmp.Or(e.Direct, e.Module), ProbeKeyFile: e.Probes, Tokens: map[hsm.Role][]hsm.Token{e.Role: {e.Token}},
		CacheSize: 16, CacheLifetime: 1, RenewAfter: e.After}, limit, 10*time.Millisecond, 10*time.Millisecond, nil))
	if err != nil {
		return fail(err)
	}
	if e.Crash >= 0 && !e.Start {
		f.inject(e.Crash, faultCrash, 0, 0, 1)
	}
	if e.Hang >= 0 {
		f.hang(e.Hang, -1)
		f.fail(fnDecryptInit, pkcs11.CKR_DEVICE_REMOVED, 1)
	}
	if e.Renew > 0 {
		if err := e.grow(h); err != nil {
			return fail(err)
		}
	}
	for _, r := range append(servingRows(), openingRows()...) {
		if r.function != e.Op || r.opening != e.Opening {
			continue
		}
		for range 2 { // keys are destroyed when they are asked for again
			err := r.op(e.Keys, e.Items)(nil, h)
			if e.Hang >= 0 && errors.Is(err, token.ErrUnavailable) {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				if err := h.Stuck(ctx); !errors.Is(err, hsm.ErrStuck) {
					return fail(errors.New("nobody noticed"))
				}
				return exitStuck
			}
			if err != nil {
				return fail(err)
			}
		}
	}
	if err := h.Close(); err != nil {
		return fail(err)
	}
	return 0
}

// copyTokens copies SoftHSM's tokens. With each login SoftHSM writes to their
// files, so they are read until they are the same twice.
func copyTokens(t *testing.T, to, from string) {
	t.Helper()
	read := func() map[string][]byte {
		files := map[string][]byte{}
		if err := fs.WalkDir(os.DirFS(from), ".", func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				files[path], err = os.ReadFile(filepath.Join(from, path))
			}
			if errors.Is(err, fs.ErrNotExist) { // of a token that another test makes
				return nil
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return files
	}
	files := read()
	for tries := 0; ; tries++ {
		again := read()
		if maps.EqualFunc(files, again, bytes.Equal) {
			break
		}
		if files = again; tries == 100 {
			t.Fatal("the tokens change all the time")
		}
	}
	for path, b := range files {
		path = filepath.Join(to, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// crashes lets the module kill a process in each function, on tokens of its
// own, and then finds these tokens unharmed.
func crashes(t *testing.T, note func(faultRow, faultClass, string)) {
	keys, items := soundWork(t)
	world := hsmtest.New(t)
	dir := t.TempDir()
	copyTokens(t, filepath.Join(dir, "tokens"), filepath.Join(world.Dir, "tokens"))
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\n", dir), 0o600); err != nil {
		t.Fatal(err)
	}
	lib, _ := newFaulty(t)
	do := func(r faultRow, crash, start, hang bool) error {
		if err := os.WriteFile(lib+".ctl", make([]byte, 68*controlSize), 0o600); err != nil {
			t.Fatal(err)
		}
		e := errand{Module: lib, Probes: world.ProbeKeyFile, Role: r.role, Token: world.Servers[0].Config.Tokens[r.role][0],
			Keys: keys, Items: items, Op: r.function, Opening: r.opening, Crash: -1, Start: start, Hang: -1}
		if hang {
			e.Hang = r.fn
		}
		if crash {
			e.Crash = r.fn
		}
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "errand.json")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), errandVariable+"="+file, "SOFTHSM2_CONF="+conf)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%w: %s", err, stderr.Bytes()[:min(stderr.Len(), 300)])
		}
		return nil
	}
	initialize := openingRows()[0]
	var stuck *exec.ExitError
	if err := do(initialize, false, false, true); !errors.As(err, &stuck) || stuck.ExitCode() != exitStuck {
		t.Errorf("%s hangs: %v", initialize.function, err)
	} else {
		note(initialize, faultClass{name: "hang"}, ended)
	}
	crash := faultClass{name: "crash"}
	for _, start := range []bool{false, true} {
		rows := servingRows()
		if start {
			rows = openingRows()
		}
		for _, r := range rows {
			err := do(r, true, start, false)
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				t.Errorf("%s: the process lived on: %v", r.function, err)
				continue
			}
			// Go turns the signal into its own exit after printing it.
			if s, ok := exit.Sys().(syscall.WaitStatus); !ok || !s.Signaled() && !bytes.Contains([]byte(err.Error()), []byte("SIGABRT")) {
				t.Errorf("%s: died of %v", r.function, err)
			}
			note(r, crash, died)
		}
	}
	seen := map[hsm.Role]bool{}
	for _, r := range servingRows() {
		if seen[r.role] {
			continue
		}
		seen[r.role] = true
		if err := do(r, false, false, false); err != nil {
			t.Errorf("%s after the crashes: %v", r.function, err)
		}
	}
}
