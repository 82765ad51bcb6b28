package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/control"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"
)

// site is one server's machine: its own token folder, configuration and PINs.
type site struct {
	bin, dir, conf string
}

func (s site) path(name string) string { return filepath.Join(s.dir, name) }

// run runs the real command as its own process.
func (s site) run(args ...string) (stdout, stderr string, err error) {
	cmd := exec.Command(s.bin, args...)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+s.conf)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return strings.TrimSpace(out.String()), errOut.String(), err
}

func (s site) must(t *testing.T, args ...string) string {
	t.Helper()
	out, errOut, err := s.run(args...)
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, errOut)
	}
	return out
}

// mustNot runs what must fail, with a message that names the way out.
func (s site) mustNot(t *testing.T, says string, args ...string) {
	t.Helper()
	out, errOut, err := s.run(args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(errOut, says) {
		t.Fatalf("%v: %v, want a failure that says %q\n%s%s", args, err, says, out, errOut)
	}
}

func newSite(t *testing.T, bin, module string, n int) site {
	t.Helper()
	s := site{bin: bin, dir: t.TempDir()}
	s.conf = s.path("softhsm2.conf")
	files := map[string]string{
		"softhsm2.conf": "directories.tokendir = " + s.path("tokens") + "\nobjectstore.backend = file\nlog.level = ERROR\n",
		"pin":           "user-pin-1\n",
		"so-pin":        "officer-pin-1\n",
		"server.yaml": fmt.Sprintf(`id: server%[1]d
listen: 127.0.0.1:0
tls: {certificate_file: c.pem, key_file: k.pem, ca_file: ca.pem}
profile_file: nl.yaml
seal_keys_file: seal.pem
issuers: [{url: "https://issuer.example", audience: "https://api.example", jwks_file: jwks.json}]
token: {issuer: "https://issuer.example", audience: "https://api.example"}
module: %[2]s
probe_key_file: probe.bin
journal_dir: journal
tokens:
  open: [{label: s%[1]d-open, pin_file: pin}]
  seal: {label: s%[1]d-seal, pin_file: pin}
  mint: [{label: s%[1]d-mint, pin_file: pin}]
  rotate: [{label: s%[1]d-rotate, pin_file: pin}, {label: s%[1]d-rotate-2, pin_file: pin}]
  sign: {label: s%[1]d-sign, pin_file: pin}
`, n, module),
	}
	for name, content := range files {
		if err := os.WriteFile(s.path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(s.path("tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestCeremony runs the whole key ceremony for two servers, each in its own
// process over its own token folder, with every step repeated or interrupted.
func TestCeremony(t *testing.T) {
	t.Parallel()
	module, err := hsmtest.Module()
	if err != nil {
		t.Fatal(err)
	}
	bin := build(t)
	a, b := newSite(t, bin, module, 1), newSite(t, bin, module, 2)
	config := func(s site) string { return "--config=" + s.path("server.yaml") }

	// Step 1, twice: the second time changes nothing.
	var fingerprints []string
	for _, s := range []site{a, b} {
		args := []string{"keys", "init", config(s), "--so-pin-file=" + s.path("so-pin"), "--out=" + s.path("public")}
		first := s.must(t, args...)
		if again := s.must(t, args...); again != first || len(first) != 64 {
			t.Fatalf("fingerprint %q, then %q", first, again)
		}
		fingerprints = append(fingerprints, first)
	}
	to := func(i int, s site) string { return "--to=" + fingerprints[i] + "=" + s.path("public") }
	out := a.path("keys")
	create := []string{"keys", "create", config(a), "--epoch=1", to(0, a), to(1, b), "--out=" + out}

	// Step 2: never to keys whose fingerprint nobody vouched for, never
	// without this server, never over something else.
	a.mustNot(t, "not among the receivers", "keys", "create", config(a), "--epoch=1", to(1, b), "--out="+out)
	a.mustNot(t, "have the fingerprint", "keys", "create", config(a), "--epoch=1", to(0, a),
		"--to="+strings.Repeat("0", 64)+"="+b.path("public"), "--out="+out)
	if err := os.Mkdir(out+".partial", 0o700); err != nil {
		t.Fatal(err)
	}
	a.mustNot(t, "interrupted keys create", create...)
	if err := os.Remove(out + ".partial"); err != nil {
		t.Fatal(err)
	}
	a.must(t, create...)
	a.mustNot(t, "exists already", create...)

	// Step 3: only from the creator that is named, only unchanged.
	imp := func(s site) []string {
		return []string{"keys", "import", config(s), "--in=" + out, "--creator=" + fingerprints[0], "--so-pin-file=" + s.path("so-pin")}
	}
	b.mustNot(t, "security officer can vouch", imp(b)[:5]...)
	b.mustNot(t, "come from the server", "keys", "import", config(b), "--in="+out, "--creator="+fingerprints[1], "--so-pin-file="+b.path("so-pin"))
	manifest := filepath.Join(out, "manifest.json")
	tamper(t, manifest, func() { b.mustNot(t, "signature of the manifest is wrong", imp(b)...) })
	var m struct{ Files map[string]string }
	raw, err := os.ReadFile(manifest)
	if err != nil || json.Unmarshal(raw, &m) != nil {
		t.Fatal(err)
	}
	if len(m.Files) != 2*(2+2*2+4+1)+1 { // mint, two rotate, seal, open; the probe
		t.Errorf("%d files: %v", len(m.Files), m.Files)
	}
	for name := range m.Files {
		if strings.HasPrefix(name, "mint-") && strings.HasSuffix(name, "-kek.bin") {
			tamper(t, filepath.Join(out, name), func() {
				// Fails on one of both servers, after other tokens were done.
				_, e1, err1 := a.run(imp(a)...)
				_, e2, err2 := b.run(imp(b)...)
				if (err1 == nil) == (err2 == nil) || !strings.Contains(e1+e2, "was changed since it was made") {
					t.Errorf("with %s changed: %v, %v", name, err1, err2)
				}
			})
			break
		}
	}
	for _, s := range []site{a, b} {
		s.must(t, imp(s)...) // resumes
		s.must(t, imp(s)...) // and is idempotent
	}
	one, err1 := os.ReadFile(a.path("probe.bin"))
	two, err2 := os.ReadFile(b.path("probe.bin"))
	if err1 != nil || err2 != nil || !bytes.Equal(one, two) {
		t.Errorf("probe files: %v, %v", err1, err2)
	}
	a.mustNot(t, "holds a KEK of epoch 1 already", "keys", "create", config(a), "--epoch=1",
		"--to="+reinit(t, a)+"="+a.path("public"), "--out="+a.path("keys2"))

	// Public keys, from the tokens and from the folders.
	sealA := a.must(t, "keys", "public", "seal", config(a))
	sealB := b.must(t, "keys", "public", "seal", config(b))
	both := a.must(t, "keys", "public", "seal", "--from="+a.path("public"), "--from="+b.path("public"))
	if both != sealA+"\n"+sealB || sealA == sealB {
		t.Error("the seal keys of tokens and of folders differ")
	}
	var set struct {
		Keys []struct{ Kid, Kty, Crv, Alg, Use, X, Y string }
	}
	if err := json.Unmarshal([]byte(a.must(t, "keys", "public", "jwks", "--from="+a.path("public"), "--from="+b.path("public"))), &set); err != nil {
		t.Fatal(err)
	}
	if len(set.Keys) != 2 || set.Keys[0].Kid == set.Keys[1].Kid || len(set.Keys[0].Kid) != 43 || set.Keys[0].Alg != "ES256" {
		t.Errorf("JWKS: %+v", set)
	}

	// A token that came later does not get the KEKs of before. The import of the
	// next epoch says so before it brings that to any token: with some that have
	// it and one that lacks another the server would not start.
	alone, err := os.ReadFile(a.path("server.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	more := strings.Replace(string(alone), "s1-open,", "s1-open, pin_file: pin}, {label: s1-open-2,", 1)
	if err := os.WriteFile(a.path("server.yaml"), []byte(more), 0o600); err != nil {
		t.Fatal(err)
	}
	later := reinit(t, a)
	a.must(t, "keys", "create", config(a), "--epoch=2", "--to="+later+"="+a.path("public"), "--out="+a.path("keys-later"))
	a.mustNot(t, "nothing was imported", "keys", "import", config(a), "--in="+a.path("keys-later"), "--creator="+later, "--so-pin-file="+a.path("so-pin"))
	if err := os.WriteFile(a.path("server.yaml"), alone, 0o600); err != nil {
		t.Fatal(err)
	}

	// A second epoch goes the same way and keeps the first.
	fingerprints[0], fingerprints[1] = reinit(t, a), reinit(t, b)
	out = a.path("keys2")
	a.must(t, "keys", "create", config(a), "--epoch=2", to(0, a), to(1, b), "--out="+out)
	b.mustNot(t, "logging in as security officer", append(imp(b)[:5], "--so-pin-file="+b.path("pin"))...)
	for _, s := range []site{a, b} {
		s.must(t, imp(s)...)
	}
	if info, err := os.Stat(a.path("probe.bin")); err != nil || info.Size() != 2*int64(len(one)) {
		t.Errorf("probe file after the second epoch: %v, %v", info, err)
	}
	if _, err := os.Stat(out + ".partial"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a partial folder is left")
	}

	// The first one is destroyed: never by mistake, never the newest, and as
	// often as one likes.
	signer, stranger := newHeadSigner(t), newHeadSigner(t)
	if err := os.WriteFile(a.path("seal.pem"), signer.pem, 0o600); err != nil {
		t.Fatal(err)
	}
	writeProof(t, a.path("proof-1"), signer, control.DestroyEpoch, 1)
	writeProof(t, a.path("proof-2"), signer, control.DestroyEpoch, 2)
	writeProof(t, a.path("proof-7"), signer, control.DestroyEpoch, 7)
	writeProof(t, a.path("strange"), stranger, control.DestroyEpoch, 1)
	writeProof(t, a.path("activates"), signer, control.ActivateEpoch, 1)
	with := func(proof string, epoch, yes int) []string {
		return []string{"keys", "destroy", config(a), fmt.Sprint("--epoch=", epoch), fmt.Sprint("--yes-destroy-epoch=", yes), "--proof=" + a.path(proof)}
	}
	destroy := func(_ site, epoch, yes int) []string { return with(fmt.Sprint("proof-", epoch), epoch, yes) }
	// The second is on the tokens, which looks as if the first were old; only
	// the feed can tell.
	a.mustNot(t, "missing flags: --proof=FILE", with("", 1, 1)[:5]...)
	a.mustNot(t, "nothing was destroyed", with("proof-2", 1, 1)...)
	a.mustNot(t, "nothing was destroyed", with("activates", 1, 1)...)
	a.mustNot(t, "does not verify", with("strange", 1, 1)...)
	a.mustNot(t, "not a proof", with("pin", 1, 1)...)
	a.mustNot(t, "say the same epoch twice", destroy(a, 1, 2)...)
	a.mustNot(t, "missing flags", destroy(a, 1, 1)[:4]...)
	a.mustNot(t, "none newer than 2", destroy(a, 2, 2)...)
	a.mustNot(t, "none newer than 7", destroy(a, 7, 7)...)
	two, err = os.ReadFile(a.path("probe.bin"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, said, err := a.run(destroy(a, 1, 1)...)
		if err != nil || !strings.Contains(said, "no token of this server holds a KEK of epoch 1") {
			t.Errorf("%v: %s", err, said)
		}
		if left, err := os.ReadFile(a.path("probe.bin")); err != nil || !bytes.Equal(left, two[len(one):]) {
			t.Errorf("the probe file has %d bytes: %v", len(left), err)
		}
	}
	a.mustNot(t, "none newer than 2", destroy(a, 2, 2)...)
	if said := a.must(t, "keys", "public", "seal", config(a)); said != sealA {
		t.Error("a signing key changed")
	}
}

// headSigner signs heads of a control feed with a key made for the test.
type headSigner struct {
	key *ecdsa.PrivateKey
	id  authz.KeyID
	pem []byte
}

func newHeadSigner(t *testing.T) headSigner {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hsm.EncodePEM(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return headSigner{k, authz.KeyIDOf(&k.PublicKey), b}
}

func (s headSigner) KeyID() authz.KeyID { return s.id }

func (s headSigner) SignDigest(digest [32]byte) (sig [64]byte, err error) {
	r, v, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err == nil {
		r.FillBytes(sig[:32])
		v.FillBytes(sig[32:])
	}
	return sig, err
}

// writeProof writes the proof of an entry, the eighth of a feed.
func writeProof(t *testing.T, path string, s headSigner, kind control.Kind, epoch uint32) {
	t.Helper()
	entry, err := control.Entry{At: time.Now(), Kind: kind, Epoch: epoch}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	before := control.Hash{7}
	head, err := control.Head{Sequence: 8, Hash: before.Next(entry), At: time.Now()}.Sign(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, control.EncodeProof(before, entry, head), 0o600); err != nil {
		t.Fatal(err)
	}
}

func reinit(t *testing.T, s site) string {
	t.Helper()
	return s.must(t, "keys", "init", "--config="+s.path("server.yaml"), "--so-pin-file="+s.path("so-pin"), "--out="+s.path("public"))
}

// tamper changes one byte of a file while f runs.
func tamper(t *testing.T, path string, f func()) {
	t.Helper()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(good)
	bad[len(bad)/2] ^= 1
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	f()
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
}
