package hsm_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"
)

// TestStartRefusesToken: the token is there, and is not the one.
func TestStartRefusesToken(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	refused := func(name, says string, c hsm.Config) {
		t.Helper()
		h, err := hsm.New(c)
		if err == nil {
			_ = h.Close()
			t.Errorf("%s: it would serve", name)
			return
		}
		if !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), hsmtest.PIN) {
			t.Errorf("%s: %v, want %q", name, err, says)
		}
	}
	own := func(tokens ...hsm.Token) hsm.Config {
		c := world.Servers[0].Config
		c.Tokens = map[hsm.Role][]hsm.Token{hsm.RoleOpen: tokens}
		return c
	}

	// The label is on two tokens: which is meant cannot be told.
	twins := spare(world)
	for range 2 {
		if err := hsm.InitToken(world.Module, twins, filepath.Join(world.Dir, "so-pin")); err != nil {
			t.Fatal(err)
		}
	}
	refused("two tokens of one label", "2 tokens are labelled "+twins.Label, own(twins))

	// A wrong PIN is shown once, and never again by this process.
	stranger := spare(world)
	if err := hsm.InitToken(world.Module, stranger, filepath.Join(world.Dir, "so-pin")); err != nil {
		t.Fatal(err)
	}
	stranger.PINFile = filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(stranger.PINFile, []byte("4321-wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("wrong PIN", "CKR_PIN_INCORRECT", own(stranger))
	if _, err := hsm.New(own(stranger)); err == nil || strings.Contains(err.Error(), "4321") {
		t.Errorf("the error tells the PIN: %v", err)
	}

	// The KEK says another epoch than it is of.
	swapped := epochs(t)
	b, err := os.ReadFile(swapped.ProbeKeyFile)
	if err != nil || len(b) != 2*hsm.ProbeSize {
		t.Fatalf("%d bytes of probes, %v", len(b), err)
	}
	one, two := string(b[:hsm.ProbeSize]), string(b[hsm.ProbeSize:])
	const head = 9 // magic and epoch
	mixed := one[:head] + two[head:] + two[:head] + one[head:]
	swapped.ProbeKeyFile = filepath.Join(t.TempDir(), "probe.bin")
	if err := os.WriteFile(swapped.ProbeKeyFile, []byte(mixed), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, role := range []hsm.Role{hsm.RoleOpen, hsm.RoleSeal, hsm.RoleRotate} {
		c := swapped
		c.Tokens = map[hsm.Role][]hsm.Token{role: swapped.Tokens[role]}
		refused("KEKs of other epochs, role "+string(role), "does not come out", c)
	}
}

// TestBatchOverCap: what is larger than may be is refused as a whole, and
// nothing of it is done.
func TestBatchOverCap(t *testing.T) {
	t.Parallel()
	h := hsmtest.New(t).Servers[0].Open(t)
	keys := mintKeys(t, h, 1)
	large := make([]byte, 64<<20)
	for name, f := range map[string]func() error{
		"open": func() error {
			return h.Opener().Open(t.Context(), keys, []token.Item{{IV: make([]byte, 12), In: large, Out: make([]byte, 0, len(large))}})
		},
		"seal": func() error {
			return h.Sealer().Seal(t.Context(), keys, []token.Item{{In: large, Out: make([]byte, 0, len(large)+16)}})
		},
		"AAD": func() error {
			return h.Sealer().Seal(t.Context(), keys, []token.Item{{AAD: large, Out: make([]byte, 0, 16)}})
		},
		"keys": func() error {
			return h.Opener().Open(t.Context(), make([]token.WrappedKey, 16385), make([]token.Item, 1))
		},
		"content MAC": func() error { _, err := h.Sealer().ContentMAC(t.Context(), [][]byte{large, {1}}); return err },
		"record MAC":  func() error { _, err := h.Minter().RecordMAC(t.Context(), [][]byte{large, {1}}); return err },
		"mint":        func() error { _, err := h.Minter().Mint(t.Context(), 1, 4097); return err },
		"mint none":   func() error { _, err := h.Minter().Mint(t.Context(), 1, -1); return err },
		"random":      func() error { return h.Minter().Random(t.Context(), make([]byte, 64<<10+1)) },
		"rewrap": func() error {
			_, err := h.Rotator().Rewrap(t.Context(), make([]token.WrappedKey, 4097), 1)
			return err
		},
	} {
		if err := f(); !errors.Is(err, token.ErrBadData) || errors.Is(err, token.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, health := range []token.Health{h.Opener(), h.Sealer(), h.Minter(), h.Rotator()} {
		if err := health.Check(t.Context()); err != nil {
			t.Errorf("the token is held against it: %v", err)
		}
	}
}
