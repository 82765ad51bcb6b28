// Package hsmtest gives tests two servers' worth of SoftHSM tokens, made by
// the real key ceremony.
//
// SoftHSM finds its tokens by an environment variable, so one process has one
// token directory. It is made once, shared by all tests of the package and
// removed at the end; a package that uses it needs
//
//	func TestMain(m *testing.M) { os.Exit(hsmtest.Main(m)) }
package hsmtest

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/hsm"
	"kluis/internal/testing/scratch"
)

// Server is one cryptoserver's share.
type Server struct {
	Tokens    config.Tokens // five roles, a token each
	KeyCache  config.KeyCache
	Config    hsm.Config // the same for hsm.New
	Public    hsm.PublicKeys
	JWKSFile  string // of this server's access-token key alone
	publicDir string
}

// HSM is what a test gets. The tokens are shared between tests: add nothing to
// them and change nothing on them.
type HSM struct {
	Module       string
	ProbeKeyFile string
	Servers      [2]Server
	SealKeys     []*ecdsa.PublicKey // of both servers
	SealKeysFile string             // PEM, both
	SignKeys     []*ecdsa.PublicKey
	JWKSFile     string // both
	Dir          string
}

// PIN and SOPIN are those of every token.
const (
	PIN   = "1234-user"
	SOPIN = "1234-officer"
)

var world struct {
	sync.Mutex
	cleanedUp bool   // Main removes dir
	dir       string // "" before the first New
	hsm       *HSM
	err       error
}

// Main runs a package's tests (a *testing.M, or what runs one) and removes the
// tokens afterwards.
func Main(m interface{ Run() int }) int {
	world.Lock()
	world.cleanedUp = true
	world.Unlock()
	code := m.Run()
	world.Lock()
	defer world.Unlock()
	if world.dir != "" {
		if err := os.RemoveAll(world.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// New returns the two servers' tokens, made at the first call.
func New(t testing.TB) *HSM {
	t.Helper()
	world.Lock()
	defer world.Unlock()
	if !world.cleanedUp {
		t.Fatal("hsmtest.New needs: func TestMain(m *testing.M) { os.Exit(hsmtest.Main(m)) }")
	}
	if world.hsm == nil && world.err == nil {
		if world.dir, world.err = os.MkdirTemp(scratch.Root(), "kluis-hsmtest-"); world.err == nil {
			world.hsm, world.err = build(world.dir)
		}
	}
	if world.err != nil {
		t.Fatal(world.err)
	}
	h := *world.hsm
	return &h
}

// Open starts the HSM of a server and closes it with the test.
func (s Server) Open(t testing.TB) *hsm.HSM {
	t.Helper()
	h, err := hsm.New(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// Module finds the SoftHSM module of this machine.
func Module() (string, error) {
	for _, p := range []string{
		"/usr/lib/softhsm/libsofthsm2.so",
		"/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
		"/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
		"/usr/lib64/pkcs11/libsofthsm2.so",
	} {
		if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
			return p, err
		}
	}
	return "", errors.New("SoftHSM is not installed: apt-get install softhsm2")
}

func build(dir string) (*HSM, error) {
	module, err := Module()
	if err != nil {
		return nil, err
	}
	h := &HSM{Module: module, Dir: dir, ProbeKeyFile: filepath.Join(dir, "probe.bin"),
		SealKeysFile: filepath.Join(dir, "seal.pem"), JWKSFile: filepath.Join(dir, "jwks.json")}
	conf := filepath.Join(dir, "softhsm2.conf")
	tokens := filepath.Join(dir, "tokens")
	if err := errors.Join(
		os.Mkdir(tokens, 0o700),
		os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", tokens), 0o600),
		os.WriteFile(filepath.Join(dir, "pin"), []byte(PIN+"\n"), 0o600),
		os.WriteFile(filepath.Join(dir, "so-pin"), []byte(SOPIN+"\n"), 0o600),
		os.Setenv("SOFTHSM2_CONF", conf),
	); err != nil {
		return nil, err
	}

	var pem []byte
	to := map[string]string{}
	var ceremonies [2]hsm.Ceremony
	var fingerprints [2]string
	for i := range h.Servers {
		s := &h.Servers[i]
		label := func(r hsm.Role) config.Token {
			return config.Token{Label: fmt.Sprintf("server%d-%s", i+1, r), PINFile: filepath.Join(dir, "pin")}
		}
		s.Tokens = config.Tokens{Open: []config.Token{label(hsm.RoleOpen)}, Mint: []config.Token{label(hsm.RoleMint)}, Rotate: []config.Token{label(hsm.RoleRotate)},
			Seal: new(label(hsm.RoleSeal)), Sign: new(label(hsm.RoleSign))}
		s.KeyCache = config.KeyCache{Size: 1024, Lifetime: config.Duration(time.Minute)}
		s.Config = hsm.Config{Module: module, ProbeKeyFile: h.ProbeKeyFile, CacheSize: 1024, CacheLifetime: time.Minute,
			Log: slog.New(slog.DiscardHandler),
			Tokens: map[hsm.Role][]hsm.Token{
				hsm.RoleOpen: {hsm.Token(s.Tokens.Open[0])}, hsm.RoleSeal: {hsm.Token(*s.Tokens.Seal)},
				hsm.RoleMint: {hsm.Token(s.Tokens.Mint[0])}, hsm.RoleRotate: {hsm.Token(s.Tokens.Rotate[0])}, hsm.RoleSign: {hsm.Token(*s.Tokens.Sign)},
			}}
		// 2048 bits: the shortest the ceremony accepts, to save test time.
		ceremonies[i] = hsm.Ceremony{Module: module, Tokens: s.Config.Tokens, TransportBits: 2048}
		if s.Public, err = ceremonies[i].Init(filepath.Join(dir, "so-pin")); err != nil {
			return nil, err
		}
		s.publicDir = filepath.Join(dir, fmt.Sprintf("public%d", i+1))
		if err := s.Public.Write(s.publicDir); err != nil {
			return nil, err
		}
		if fingerprints[i], err = s.Public.Fingerprint(); err != nil {
			return nil, err
		}
		to[fingerprints[i]] = s.publicDir
		h.SealKeys, h.SignKeys = append(h.SealKeys, s.Public.Seal), append(h.SignKeys, s.Public.Sign)
		b, err := hsm.EncodePEM(s.Public.Seal)
		if err != nil {
			return nil, err
		}
		pem = append(pem, b...)
		s.JWKSFile = filepath.Join(dir, fmt.Sprintf("jwks%d.json", i+1))
		if err := writeJWKS(s.JWKSFile, s.Public.Sign); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(os.WriteFile(h.SealKeysFile, pem, 0o600), writeJWKS(h.JWKSFile, h.SignKeys...)); err != nil {
		return nil, err
	}
	keys := filepath.Join(dir, "keys")
	if err := ceremonies[0].Create(1, to, keys); err != nil {
		return nil, err
	}
	for i := range ceremonies {
		if err := ceremonies[i].Import(keys, fingerprints[0], h.ProbeKeyFile, filepath.Join(dir, "so-pin")); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func writeJWKS(path string, keys ...*ecdsa.PublicKey) error {
	b, err := authn.JWKS(keys...)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}
