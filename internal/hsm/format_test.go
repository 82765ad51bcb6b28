package hsm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kluis/internal/hsm"
)

func goldenProbe(epoch uint32) []byte {
	var wrapped [40]byte
	var iv [12]byte
	copy(wrapped[:], bytes.Repeat([]byte{0xAA}, 40))
	copy(iv[:], bytes.Repeat([]byte{0xBB}, 12))
	return hsm.Probe(epoch, wrapped, iv, bytes.Repeat([]byte{0xCC}, 63))
}

func TestProbeFile(t *testing.T) {
	t.Parallel()
	want := "4b50524201" + "00000007" + strings.Repeat("aa", 40) + strings.Repeat("bb", 12) + strings.Repeat("cc", 63)
	if got := hex.EncodeToString(goldenProbe(7)); got != want {
		t.Fatalf("probe record\n%s, want\n%s", got, want)
	}
	two := append(goldenProbe(7), goldenProbe(8)...)
	probes, err := hsm.ParseProbes(two)
	if err != nil || !bytes.Equal(hsm.AppendProbes(probes), two) {
		t.Errorf("%v; %d records", err, len(probes))
	}
	version := goldenProbe(7)
	version[4] = 2
	for name, b := range map[string][]byte{
		"empty": nil, "cut": two[:len(two)-1], "longer": append(bytes.Clone(two), 0), "epoch 0": goldenProbe(0),
		"twice": append(goldenProbe(7), goldenProbe(7)...), "descending": append(goldenProbe(8), goldenProbe(7)...),
		"another version": version,
	} {
		if _, err := hsm.ParseProbes(b); !errors.Is(err, hsm.ErrProbeFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseProbes(f *testing.F) {
	f.Add(goldenProbe(1))
	f.Add(append(goldenProbe(1), goldenProbe(2)...))
	f.Add([]byte("KPRB"))
	f.Fuzz(func(t *testing.T, b []byte) {
		probes, err := hsm.ParseProbes(b)
		if err == nil && !bytes.Equal(hsm.AppendProbes(probes), b) {
			t.Error("what was parsed encodes differently")
		}
	})
}

// goldenKey is the example key of RFC 7517, appendix A.1.
func goldenKey(t *testing.T) *ecdsa.PublicKey {
	t.Helper()
	point, err := hex.DecodeString("04" +
		"30a0424cd21c2944838a2d75c92b37e76ea20d9f00893a3b4eee8a3c0aafec3e" +
		"e04b65e92456d9888b52b379bdfbd51ee869ef1f0fc65b6659695b6cce081723")
	if err != nil {
		t.Fatal(err)
	}
	k, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestPublicKeys(t *testing.T) {
	t.Parallel()
	p := hsm.PublicKeys{Seal: goldenKey(t)}
	const want = "93c2d968857a054612510b8280c9805e201cbba408faedd9b7253cc1e292db86"
	got, err := p.Fingerprint()
	if err != nil || got != want {
		t.Errorf("fingerprint %s, %v", got, err)
	}
	// The same key in another place is another server.
	if other, _ := (hsm.PublicKeys{Sign: goldenKey(t)}).Fingerprint(); other == got {
		t.Error("seal and sign key may be exchanged")
	}
	dir := t.TempDir()
	if err := p.Write(dir); err != nil {
		t.Fatal(err)
	}
	back, err := hsm.ReadPublicKeys(dir)
	if err != nil || !back.Seal.Equal(p.Seal) || back.Sign != nil || len(back.Transport) != 0 {
		t.Errorf("%+v, %v", back, err)
	}

	// Several transport keys of a role keep their order, and one that is gone
	// leaves no file behind.
	one, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	two, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p.Transport = map[hsm.Role][]*rsa.PublicKey{hsm.RoleOpen: {&one.PublicKey}, hsm.RoleRotate: {&two.PublicKey, &one.PublicKey}}
	if err := p.Write(dir); err != nil {
		t.Fatal(err)
	}
	back, err = hsm.ReadPublicKeys(dir)
	if err != nil || len(back.Transport[hsm.RoleRotate]) != 2 || !back.Transport[hsm.RoleRotate][0].Equal(&two.PublicKey) || len(back.Transport[hsm.RoleOpen]) != 1 {
		t.Errorf("%+v, %v", back, err)
	}
	all, err := back.Fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	p.Transport[hsm.RoleRotate] = p.Transport[hsm.RoleRotate][:1]
	delete(p.Transport, hsm.RoleOpen)
	if err := p.Write(dir); err != nil {
		t.Fatal(err)
	}
	back, err = hsm.ReadPublicKeys(dir)
	if err != nil || len(back.Transport[hsm.RoleRotate]) != 1 || len(back.Transport[hsm.RoleOpen]) != 0 {
		t.Errorf("%+v, %v", back, err)
	}
	if fewer, err := back.Fingerprint(); err != nil || fewer == all {
		t.Errorf("a transport key is not in the fingerprint: %v", err)
	}
	small, err := hsm.EncodePEM(&rsa.PublicKey{N: one.N, E: 3})
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "seal.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]struct {
		file    string
		content []byte
	}{
		"two keys":         {"seal.pem", append(bytes.Clone(pem), pem...)},
		"no PEM":           {"seal.pem", []byte("x")},
		"no key":           {"seal.pem", []byte("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")},
		"EC for transport": {"transport-open-1.pem", pem},
		"exponent 3":       {"transport-open-1.pem", small},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, f.file), f.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := hsm.ReadPublicKeys(dir); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := hsm.ReadPublicKeys(t.TempDir()); err == nil {
		t.Error("an empty folder passed for a server's keys")
	}
}
