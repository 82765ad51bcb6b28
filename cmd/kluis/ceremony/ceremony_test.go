package ceremony

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kluis/internal/testing/hsmtest"
)

const (
	userPIN    = "user-pin-471"
	officerPIN = "officer-pin-471"
)

// site is one server's machine: its own token folder, configuration and PINs.
func site(t *testing.T, module string, n int) Server {
	t.Helper()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string]string{
		"softhsm2.conf": "directories.tokendir = " + path("tokens") + "\nobjectstore.backend = file\nlog.level = ERROR\n",
		"pin":           userPIN + "\n",
		"so-pin":        officerPIN + "\n",
		"server.yaml": fmt.Sprintf(`id: server-%[1]d
listen: 127.0.0.1:0
tls: {certificate_file: c.pem, key_file: k.pem, ca_file: ca.pem}
profile_file: nl.yaml
seal_keys_file: seal.pem
journal_dir: journal
issuers: [{url: "https://issuer.example", audience: "https://api.example", jwks_file: jwks.json}]
token: {issuer: "https://issuer.example", audience: "https://api.example"}
module: %[2]s
probe_key_file: probe.bin
tokens:
  open: [{label: s%[1]d-open, pin_file: pin}]
  mint: [{label: s%[1]d-mint, pin_file: pin}]
  rotate: [{label: s%[1]d-rotate, pin_file: pin}]
  seal: {label: s%[1]d-seal, pin_file: pin}
  sign: {label: s%[1]d-sign, pin_file: pin}
`, n, module),
	} {
		if err := os.WriteFile(path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(path("tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(path("server.yaml"), path("so-pin"), "SOFTHSM2_CONF="+path("softhsm2.conf"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// faulty is a program that runs another and, the first time it is told to do
// something, dies before it, and the second time after it.
func faulty(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	script := filepath.Join(dir, "cryptoserver")
	err := os.WriteFile(script, fmt.Appendf(nil, `#!/bin/sh
step=%[1]s/$(echo "$2 $3 $4" | tr -c 'a-z0-9\n' -)
[ -e "$step.before" ] || { : > "$step.before"; exit 9; }
%[2]s "$@" || exit
[ -e "$step.after" ] || { : > "$step.after"; exit 9; }
`, dir, program), 0o700)
	if err != nil {
		t.Fatal(err)
	}
	return script
}

// TestCeremony runs the ceremony with real tokens. It dies before and after
// each of its steps, and goes on.
func TestCeremony(t *testing.T) {
	t.Parallel()
	module, err := hsmtest.Module()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "cryptoserver")
	if out, err := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", bin, "kluis/cmd/cryptoserver").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	dir := t.TempDir()
	log := filepath.Join(dir, TranscriptName)
	program := faulty(t, bin)
	servers := []Server{site(t, module, 1), site(t, module, 2)}
	run := func(epoch uint32, program string, servers ...Server) error {
		t.Helper()
		tr, err := OpenTranscript(log)
		if err != nil {
			t.Fatal(err)
		}
		c := Ceremony{Program: program, Version: "test", Servers: servers, Epoch: epoch, Dir: dir, Log: tr, Apart: epoch == 1,
			Say: func(format string, args ...any) { t.Logf(format, args...) }}
		return errors.Join(c.Run(t.Context()), tr.Close())
	}
	of1 := Ceremony{Dir: dir, Epoch: 1}
	if err := os.MkdirAll(of1.wrapped()+".partial", 0o700); err != nil {
		t.Fatal(err)
	}
	deaths, stranger := 0, site(t, module, 3)
	for {
		err := run(1, program, servers...)
		if err == nil {
			break
		}
		if deaths++; deaths > 30 || !strings.Contains(err.Error(), "exit status 9") {
			t.Fatalf("after %d deaths: %v", deaths, err)
		}
		// Once the keys are wrapped, nobody can come along any more.
		if there, _ := exists(of1.wrapped()); there {
			if err := run(1, bin, append([]Server{stranger}, servers...)...); err == nil || !strings.Contains(err.Error(), "server-3 took no part") {
				t.Fatalf("%v", err)
			}
		}
	}
	if deaths < 8 {
		t.Errorf("it died %d times only", deaths)
	}
	if there, err := exists(of1.wrapped()); there || err != nil {
		t.Errorf("the wrapped keys are left behind: %v", err)
	}
	probes := make([][]byte, len(servers))
	for i, s := range servers {
		if probes[i], err = os.ReadFile(filepath.Join(filepath.Dir(s.Config), "probe.bin")); err != nil {
			t.Fatal(err)
		}
	}
	// The probe of one is that of the other, and each was tried on its token.
	if !bytes.Equal(probes[0], probes[1]) {
		t.Error("the servers hold keys of different runs")
	}
	pems, err := os.ReadFile(of1.SealKeysFile())
	if err != nil {
		t.Fatal(err)
	}
	first, rest := pem.Decode(pems)
	second, rest := pem.Decode(rest)
	if first == nil || second == nil || len(rest) > 0 || bytes.Equal(first.Bytes, second.Bytes) {
		t.Errorf("seal keys:\n%s", pems)
	}

	// It is over: nothing more happens. The next epoch goes the same way.
	before, _ := os.ReadFile(log)
	if err := run(1, program, servers...); err != nil {
		t.Error(err)
	}
	if after, _ := os.ReadFile(log); !bytes.Equal(before, after) {
		t.Error("a ceremony that is over was written down again")
	}
	if err := run(2, bin, servers...); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(of1.SealKeysFile()); err != nil || !bytes.Equal(again, pems) {
		t.Errorf("the second epoch changed the seal keys: %v", err)
	}

	// A server whose token has the epoch already is told so.
	if err := os.RemoveAll(filepath.Join(dir, "epoch-2")); err != nil {
		t.Fatal(err)
	}
	if err := run(2, bin, servers...); err == nil || !strings.Contains(err.Error(), "take the next epoch") {
		t.Errorf("%v", err)
	}

	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	entries, _, err := Check(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, e := range entries[:len(entries)-4] {
		if e.Result == "ok" && !slices.Contains(steps, e.Step+" "+e.Server) {
			steps = append(steps, e.Step+" "+e.Server)
		}
		if e.Step == "init" && e.Result == "ok" && len(e.Fingerprint) != 64 {
			t.Errorf("entry %d: fingerprint %q", e.Number, e.Fingerprint)
		}
	}
	for _, step := range []string{"begin ", "init server-1", "init server-2", "create server-1", "import server-1", "import server-2", "public ", "end "} {
		if !slices.Contains(steps, step) {
			t.Errorf("the transcript lacks %s: %q", step, steps)
		}
	}
	for _, secret := range []string{userPIN, officerPIN} {
		if bytes.Contains(b, []byte(secret)) {
			t.Error("the transcript has a PIN")
		}
	}
}

func TestCeremonyRefuses(t *testing.T) {
	t.Parallel()
	a, b := Server{Name: "a"}, Server{Name: "b"}
	for name, c := range map[string]struct {
		ceremony Ceremony
		want     string
	}{
		"nobody":       {Ceremony{Epoch: 1}, "no server"},
		"epoch 0":      {Ceremony{Servers: []Server{a, b}}, "epochs start at 1"},
		"one id twice": {Ceremony{Epoch: 1, Servers: []Server{a, b, a}}, "two servers have the id a"},
	} {
		c.ceremony.Dir = t.TempDir()
		if err := c.ceremony.Run(context.Background()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if left, err := os.ReadDir(c.ceremony.Dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
	module, err := hsmtest.Module()
	if err != nil {
		t.Fatal(err)
	}
	s := site(t, module, 1)
	raw, err := os.ReadFile(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Config, bytes.Replace(raw, []byte("id: server-1"), []byte("id: ../server-1"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewServer(s.Config, ""); err == nil || !strings.Contains(err.Error(), "name of a folder") {
		t.Errorf("%v", err)
	}
}

// The script is one that a shell reads, with the steps in their order.
func TestScript(t *testing.T) {
	t.Parallel()
	script := Script(2, []string{"one.yaml", "the other's.yaml"})
	if out, err := exec.Command("sh", "-n", "-c", script).CombinedOutput(); err != nil {
		t.Errorf("%v: %s\n%s", err, out, script)
	}
	at := 0
	for _, want := range []string{
		"keys init --config one.yaml", `keys init --config 'the other'\''s.yaml'`, "keys create --config one.yaml --epoch 2", `"$FINGERPRINT_2"=public-2`,
		`keys import --config 'the other'\''s.yaml'`, "keys public seal --from public-1 --from public-2", "kluis keys rotate-kek",
	} {
		i := strings.Index(script[at:], want)
		if i < 0 {
			t.Fatalf("%q is not in its place:\n%s", want, script)
		}
		at += i
	}
	if !strings.Contains(script, "vendor's tool") {
		t.Error("the vendors' cloning is not named")
	}
}
