package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"

	"github.com/miekg/pkcs11"
)

// twoEpochs is a server of its own with KEKs of epochs 1 and 2; shared, so
// nothing may be changed on its tokens.
var twoEpochs struct {
	sync.Mutex
	cfg hsm.Config
	err error
}

func epochs(t testing.TB) hsm.Config {
	t.Helper()
	world := hsmtest.New(t)
	twoEpochs.Lock()
	defer twoEpochs.Unlock()
	if twoEpochs.cfg.Module == "" && twoEpochs.err == nil {
		twoEpochs.cfg, twoEpochs.err = makeEpochs(world, filepath.Join(world.Dir, "epochs"), 2)
	}
	if twoEpochs.err != nil {
		t.Fatal(twoEpochs.err)
	}
	cfg := twoEpochs.cfg
	cfg.Tokens = map[hsm.Role][]hsm.Token{}
	for r, tokens := range twoEpochs.cfg.Tokens {
		cfg.Tokens[r] = slices.Clone(tokens)
	}
	return cfg
}

// makeEpochs runs the ceremony of n epochs on new tokens.
func makeEpochs(world *hsmtest.HSM, dir string, n int) (hsm.Config, error) {
	cfg := world.Servers[0].Config
	cfg.ProbeKeyFile = filepath.Join(dir, "probe.bin")
	cfg.Tokens = map[hsm.Role][]hsm.Token{}
	for _, r := range []hsm.Role{hsm.RoleOpen, hsm.RoleSeal, hsm.RoleMint, hsm.RoleRotate} {
		cfg.Tokens[r] = []hsm.Token{spare(world)}
	}
	for epoch := range n {
		if err := addEpoch(world, cfg, filepath.Join(dir, fmt.Sprint(epoch+1)), uint32(epoch+1)); err != nil {
			return cfg, err
		}
	}
	return cfg, nil
}

func addEpoch(world *hsmtest.HSM, cfg hsm.Config, dir string, epoch uint32) error {
	c := hsm.Ceremony{Module: cfg.Module, Tokens: cfg.Tokens, TransportBits: 2048}
	soPIN := filepath.Join(world.Dir, "so-pin")
	public, err := c.Init(soPIN)
	if err != nil {
		return err
	}
	if err := public.Write(filepath.Join(dir, "public")); err != nil {
		return err
	}
	fingerprint, err := public.Fingerprint()
	if err != nil {
		return err
	}
	if err := c.Create(epoch, map[string]string{fingerprint: filepath.Join(dir, "public")}, filepath.Join(dir, "keys")); err != nil {
		return err
	}
	return c.Import(filepath.Join(dir, "keys"), fingerprint, cfg.ProbeKeyFile, soPIN)
}

// serve opens some roles of a configuration.
func serve(t testing.TB, cfg hsm.Config, roles ...hsm.Role) *hsm.HSM {
	t.Helper()
	if len(roles) > 0 {
		all := cfg.Tokens
		cfg.Tokens = map[hsm.Role][]hsm.Token{}
		for _, r := range roles {
			cfg.Tokens[r] = all[r]
		}
	}
	h, err := hsm.New(cfg)
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

// rewrap rewraps and looks at every result.
func rewrap(t testing.TB, h *hsm.HSM, keys []token.WrappedKey, to uint32) []token.WrappedKey {
	t.Helper()
	got, err := h.Rotator().Rewrap(t.Context(), keys, to)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(keys) {
		t.Fatalf("%d keys for %d", len(got), len(keys))
	}
	out := make([]token.WrappedKey, len(keys))
	for i, g := range got {
		if g.Err != nil {
			t.Fatalf("key %d: %v", i, g.Err)
		}
		out[i] = token.WrappedKey{ID: keys[i].ID, Epoch: to, Wrapped: g.Wrapped}
	}
	return out
}

// TestRewrap: the same keys under another KEK open the same blocks, and the
// way back gives the same bytes.
func TestRewrap(t *testing.T) {
	t.Parallel()
	h := serve(t, epochs(t))
	if got := h.Rotator().Epochs(); !slices.Equal(got, []uint32{1, 2}) {
		t.Fatalf("epochs %d", got)
	}
	keys := mintKeys(t, h, 150) // more than one crossing
	items := sealItems(t, h, keys, 300)
	moved := rewrap(t, h, keys, 2)
	for i := range moved {
		if bytes.Equal(moved[i].Wrapped, keys[i].Wrapped) {
			t.Fatalf("key %d is where it was", i)
		}
	}
	for _, k := range [][]token.WrappedKey{keys, moved} {
		own := slices.Clone(items)
		for i := range own {
			own[i].Out = make([]byte, 0, len(own[i].In))
		}
		if err := h.Opener().Open(t.Context(), k, own); err != nil {
			t.Fatal(err)
		}
		checkOpened(t, own)
	}
	for i, k := range rewrap(t, h, moved, 1) {
		if !bytes.Equal(k.Wrapped, keys[i].Wrapped) {
			t.Fatalf("key %d came back as another", i)
		}
	}
	mixed := []token.WrappedKey{keys[0], moved[1], keys[2]}
	for i, k := range rewrap(t, h, mixed, 2) {
		if !bytes.Equal(k.Wrapped, moved[i].Wrapped) {
			t.Errorf("key %d of a mixed batch came out as another", i)
		}
	}
	a, err := h.Rotator().RecordMAC(t.Context(), [][]byte{[]byte("record")})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := h.Minter().RecordMAC(t.Context(), [][]byte{[]byte("record")}); err != nil || a[0] != b[0] {
		t.Errorf("record MACs differ: %v", err)
	}
	if err := h.Rotator().Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestRewrapBadInput: what is wrong with one key is said of that key.
func TestRewrapBadInput(t *testing.T) {
	t.Parallel()
	h := serve(t, epochs(t), hsm.RoleMint, hsm.RoleRotate)
	keys := mintKeys(t, h, 100)
	want := rewrap(t, h, keys, 2)
	bad := map[int]error{}
	damage := func(i int, err error, change func(k *token.WrappedKey)) {
		keys[i].Wrapped = slices.Clone(keys[i].Wrapped)
		change(&keys[i])
		bad[i] = err
	}
	damage(0, token.ErrBadData, func(k *token.WrappedKey) { k.Wrapped[0] ^= 1 })
	damage(7, token.ErrBadData, func(k *token.WrappedKey) { k.Wrapped = nil })
	damage(8, token.ErrBadData, func(k *token.WrappedKey) { k.Wrapped = k.Wrapped[:39] })
	damage(9, token.ErrBadData, func(k *token.WrappedKey) { k.Wrapped = append(k.Wrapped, 0) })
	damage(10, token.ErrBadData, func(k *token.WrappedKey) { k.Wrapped = make([]byte, 1<<20) })
	damage(50, token.ErrBadData, func(k *token.WrappedKey) { k.Epoch = 2 }) // of the other KEK
	damage(51, token.ErrUnknownEpoch, func(k *token.WrappedKey) { k.Epoch = 3 })
	damage(52, token.ErrUnknownEpoch, func(k *token.WrappedKey) { k.Epoch = 0 })
	damage(99, token.ErrBadData, func(k *token.WrappedKey) { k.Wrapped[39] ^= 0x80 })
	before := hsm.Counts(h, hsm.RoleRotate)
	got, err := h.Rotator().Rewrap(t.Context(), keys, 2)
	if err != nil {
		t.Fatal(err)
	}
	for i, g := range got {
		switch {
		case bad[i] != nil:
			if !errors.Is(g.Err, bad[i]) || g.Wrapped != nil {
				t.Errorf("key %d: %v, %d bytes; want %v", i, g.Err, len(g.Wrapped), bad[i])
			}
		case g.Err != nil || !bytes.Equal(g.Wrapped, want[i].Wrapped):
			t.Errorf("key %d: %v: a sound key was not rewrapped", i, g.Err)
		}
	}
	after := hsm.Counts(h, hsm.RoleRotate)
	if n := after.Damaged - before.Damaged; n != 7 {
		t.Errorf("%v keys counted as damaged", n)
	}
	if after.Openings != before.Openings || after.Sessions != before.Sessions || after.FailedOpenings != before.FailedOpenings {
		t.Error("bad data cost a session or the token")
	}
	if _, err := h.Rotator().Rewrap(t.Context(), keys, 3); !errors.Is(err, token.ErrUnknownEpoch) || errors.Is(err, token.ErrUnavailable) {
		t.Errorf("to an epoch the token lacks: %v", err)
	}
	if _, err := h.Rotator().Rewrap(t.Context(), make([]token.WrappedKey, 4097), 2); !errors.Is(err, token.ErrBadData) {
		t.Errorf("too many keys: %v", err)
	}
	if got, err := h.Rotator().Rewrap(t.Context(), nil, 2); err != nil || len(got) != 0 {
		t.Errorf("no keys: %v", err)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Rotator().Rewrap(done, keys, 2); !errors.Is(err, token.ErrUnavailable) {
		t.Errorf("a caller that left: %v", err)
	}
}

// TestRewrapIsProved: a token that mistakes one key for another, or wraps
// wrongly and says that it is well, never gives out a key for another: the row
// it would replace is the only one there is.
func TestRewrapIsProved(t *testing.T) {
	t.Parallel()
	cfg := epochs(t)
	sound := serve(t, cfg, hsm.RoleMint, hsm.RoleRotate)
	keys := mintKeys(t, sound, 3)
	want := rewrap(t, sound, keys, 2)
	keepInitialised(t)
	lib, f := newFaulty(t)
	faulted := cfg
	faulted.Module = lib
	faulted = hsm.Tuned(faulted, 4*time.Second, 10*time.Millisecond, 20*time.Millisecond, nil)
	h := serve(t, faulted, hsm.RoleRotate)
	once := func() ([]token.Rewrapped, error) { return h.Rotator().Rewrap(t.Context(), keys, 2) }
	settle := func() {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			got, err := once()
			if err == nil {
				for i, g := range got {
					if g.Err != nil || !bytes.Equal(g.Wrapped, want[i].Wrapped) {
						t.Errorf("key %d: %v", i, g.Err)
					}
				}
				return
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	settle()
	for skip := range int32(3) {
		other, release, err := hsm.KnownKey(cfg, 1, keys[2].Wrapped)
		if err != nil {
			t.Fatal(err)
		}
		before := hsm.Counts(h, hsm.RoleRotate)
		f.inject(fnUnwrapKey, faultLie, other, skip, 1)
		if got, err := once(); !errors.Is(err, token.ErrUnavailable) || !strings.Contains(err.Error(), "another key") {
			t.Errorf("another key's handle at unwrap %d: %v, %v", skip, got, err)
		}
		f.heal(fnUnwrapKey)
		settle()
		release()
		if n := hsm.Counts(h, hsm.RoleRotate).Openings - before.Openings; n != 1 {
			t.Errorf("the token was opened anew %v times", n)
		}
	}
	// No key stays behind where wrapping fails.
	left := func() int32 { return f.succeeded(fnUnwrapKey) - f.succeeded(fnDestroyObject) }
	before := left()
	for skip := range int32(6) {
		f.inject(fnWrapKey, faultReturn, int32(pkcs11.CKR_GENERAL_ERROR), skip, 1)
		settle()
	}
	if n := left() - before; n != 0 {
		t.Errorf("%d keys stayed on the token", n)
	}
	// Wrapped bytes that nothing unwraps. Once is survived, always is not.
	for skip := range int32(4) {
		f.inject(fnWrapKey, faultLie, 0, skip, 1)
		settle()
	}
	f.inject(fnWrapKey, faultLie, 0, 0, -1)
	if got, err := once(); !errors.Is(err, token.ErrUnavailable) {
		t.Errorf("a token that wraps wrongly: %v, %v", got, err)
	}
	f.heal(fnWrapKey)
	settle()
}

// TestRewrapLeavesNothing measures what is left of rewraps on the token and in
// memory: nothing but what SoftHSM leaks with every key.
func TestRewrapLeavesNothing(t *testing.T) {
	if *soak == 0 {
		t.Skip("make soak")
	}
	cfg := hsmtest.New(t).Servers[0].Config
	h := serve(t, cfg, hsm.RoleMint, hsm.RoleRotate)
	keys := mintKeys(t, h, 100)
	bad := slices.Clone(keys)
	for i := range bad {
		bad[i].Wrapped = bytes.Clone(bad[i].Wrapped)
		bad[i].Wrapped[0] ^= 1
	}
	const n = 100_000
	measure := func(f func()) (grown int, took time.Duration) {
		runtime.GC()
		before, start := resident(t), time.Now()
		f()
		took = time.Since(start)
		runtime.GC()
		return resident(t) - before, took
	}
	raw := func() {
		if err := hsm.RawRewraps(cfg, keys[0].Wrapped, n); err != nil {
			t.Fatal(err)
		}
	}
	run := func(keys []token.WrappedKey, want error) func() {
		return func() {
			for range n / len(keys) {
				got, err := h.Rotator().Rewrap(t.Context(), keys, 1)
				if err != nil {
					t.Fatal(err)
				}
				for i := range got {
					if !errors.Is(got[i].Err, want) {
						t.Fatal(got[i].Err)
					}
				}
			}
		}
	}
	raw() // the heap settles
	bare, bareTook := measure(raw)
	good, goodTook := measure(run(keys, nil))
	poor, poorTook := measure(run(bad, token.ErrBadData))
	t.Logf("%d rewraps, each proved: bare loop %s, %+d kB; through the pool %s, %+d kB; of damaged keys %s, %+d kB",
		n, bareTook.Round(time.Millisecond), bare/1024, goodTook.Round(time.Millisecond), good/1024, poorTook.Round(time.Millisecond), poor/1024)
	if allowed := bare*5/4 + 4<<20; good > allowed || poor > allowed {
		t.Errorf("resident memory grew by %d and %d kB, %d allowed", good/1024, poor/1024, allowed/1024)
	}
}

// TestDestroyKEK destroys an epoch on every token, also half-way and where the
// user may not.
func TestDestroyKEK(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	dir := t.TempDir()
	cfg, err := makeEpochs(world, dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	lib, f := newFaulty(t)
	keepInitialised(t)
	var said []string
	c := hsm.Ceremony{Module: lib, Tokens: cfg.Tokens, Report: func(s string) { said = append(said, s) }}
	soPIN := filepath.Join(world.Dir, "so-pin")
	if err := c.Destroy(1, cfg.ProbeKeyFile, ""); err == nil || !strings.Contains(err.Error(), "nothing was destroyed") {
		t.Fatalf("the only KEK: %v", err)
	}
	h := serve(t, cfg)
	keys := mintKeys(t, h, 2)
	if err := addEpoch(world, cfg, filepath.Join(dir, "2"), 2); err != nil {
		t.Fatal(err)
	}
	probes, err := os.ReadFile(cfg.ProbeKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, epoch := range []uint32{0, 2, 3} {
		if err := c.Destroy(epoch, cfg.ProbeKeyFile, ""); err == nil {
			t.Fatalf("epoch %d was destroyed", epoch)
		}
	}

	// It stops at the third token, the mint token: the second of the user's
	// attempts is answered with what may mean that only the officer can.
	f.inject(fnDestroyObject, faultReturn, int32(pkcs11.CKR_DEVICE_ERROR), 2, 1)
	if err := c.Destroy(1, cfg.ProbeKeyFile, ""); err == nil || !strings.Contains(err.Error(), "run this command again") {
		t.Fatalf("a device error: %v", err)
	}
	if b, err := os.ReadFile(cfg.ProbeKeyFile); err != nil || !bytes.Equal(b, probes) {
		t.Fatalf("the probe file changed before the keys were gone: %v", err)
	}
	halfway, err := hsm.New(cfg) // what stopped half-way still starts
	if err != nil {
		t.Fatal(err)
	}
	if err := halfway.Close(); err != nil {
		t.Error(err)
	}
	f.inject(fnDestroyObject, faultReturn, int32(pkcs11.CKR_ACTION_PROHIBITED), 0, 1)
	if err := c.Destroy(1, cfg.ProbeKeyFile, ""); err == nil || !strings.Contains(err.Error(), "--so-pin-file") {
		t.Fatalf("only the officer may, and nobody gave a PIN: %v", err)
	}
	f.inject(fnDestroyObject, faultReturn, int32(pkcs11.CKR_ACTION_PROHIBITED), 0, 1)
	if err := c.Destroy(1, cfg.ProbeKeyFile, soPIN); err == nil || !strings.Contains(err.Error(), "does not see the key") {
		t.Fatalf("the officer does not see private keys: %v", err)
	}
	for range 2 {
		said = nil
		if err := c.Destroy(1, cfg.ProbeKeyFile, ""); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(strings.Join(said, "\n"), "no token of this server holds a KEK of epoch 1") {
			t.Errorf("it says %q", said)
		}
	}
	if b, err := os.ReadFile(cfg.ProbeKeyFile); err != nil || !bytes.Equal(b, probes[hsm.ProbeSize:]) {
		t.Errorf("the probe file has %d bytes: %v", len(b), err)
	}
	// A server that ran all the while finds out at the next use, and serves on.
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := h.Minter().Mint(t.Context(), 1, 1)
		if errors.Is(err, token.ErrUnknownEpoch) {
			break
		}
		if err == nil || time.Now().After(end) {
			t.Fatalf("minting under a KEK that was destroyed: %v", err)
		}
	}
	if _, err := h.Minter().Mint(t.Context(), 2, 1); err != nil {
		t.Errorf("minting under the KEK that is left: %v", err)
	}
	// A token that was not there in the first epoch cannot have the MAC key.
	late := cfg
	late.Tokens = map[hsm.Role][]hsm.Token{hsm.RoleSeal: cfg.Tokens[hsm.RoleSeal], hsm.RoleRotate: {spare(world)}}
	if err := addEpoch(world, late, filepath.Join(dir, "3"), 3); err == nil || !strings.Contains(err.Error(), "travels only with the first epoch") {
		t.Errorf("a late token: %v", err)
	}
	after := serve(t, cfg, hsm.RoleOpen, hsm.RoleMint, hsm.RoleRotate)
	for role, health := range map[hsm.Role]token.Health{hsm.RoleOpen: after.Opener(), hsm.RoleMint: after.Minter(), hsm.RoleRotate: after.Rotator()} {
		if got := health.Epochs(); !slices.Equal(got, []uint32{2}) {
			t.Errorf("%s holds %d", role, got)
		}
	}
	got, err := after.Rotator().Rewrap(t.Context(), keys, 2)
	if err != nil || !errors.Is(got[0].Err, token.ErrUnknownEpoch) {
		t.Errorf("a key of the destroyed epoch: %v, %v", got, err)
	}
}

// TestKEKOnAnotherModule: where a trusted key cannot be copied it stays a
// public object; the ceremony says so, and all attacks still fail.
func TestKEKOnAnotherModule(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	keepInitialised(t)
	lib, f := newFaulty(t)
	cfg := world.Servers[0].Config
	cfg.Tokens = map[hsm.Role][]hsm.Token{hsm.RoleSeal: {spare(world)}, hsm.RoleRotate: {spare(world), spare(world)}}
	dir := t.TempDir()
	cfg.ProbeKeyFile = filepath.Join(dir, "probe.bin")
	soPIN := filepath.Join(world.Dir, "so-pin")
	var said []string
	c := hsm.Ceremony{Module: cfg.Module, Tokens: cfg.Tokens, TransportBits: 2048, Report: func(s string) { said = append(said, s) }}
	public, err := c.Init(soPIN)
	if err != nil {
		t.Fatal(err)
	}
	fingerprint, err := public.Fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	if err := public.Write(filepath.Join(dir, "public")); err != nil {
		t.Fatal(err)
	}
	if err := c.Create(1, map[string]string{fingerprint: filepath.Join(dir, "public")}, filepath.Join(dir, "keys")); err != nil {
		t.Fatal(err)
	}
	c.Module = lib
	f.fail(fnCopyObject, pkcs11.CKR_FUNCTION_NOT_SUPPORTED, -1)
	if err := c.Import(filepath.Join(dir, "keys"), fingerprint, cfg.ProbeKeyFile, soPIN); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(strings.Join(said, "\n"), "only as a public object"); n != 2 {
		t.Errorf("%d tokens are said to keep it public: %q", n, said)
	}
	f.heal(fnCopyObject)
	for _, r := range []hsm.Role{hsm.RoleSeal, hsm.RoleRotate} {
		for n := range cfg.Tokens[r] {
			as, err := hsm.ReadKEK(cfg, r, n, pkcs11.CKA_PRIVATE)
			if err != nil {
				t.Fatal(err)
			}
			if private := as[0][0] == 1; private != (r == hsm.RoleSeal) {
				t.Errorf("%s: private %v", r, private)
			}
		}
	}
	for _, tk := range cfg.Tokens[hsm.RoleRotate] {
		got, err := hsm.AttackToken(cfg, hsm.RoleRotate, tk)
		if err != nil {
			t.Fatal(err)
		}
		for name, err := range got {
			if !hsm.Refused(err) {
				t.Errorf("token %s: %s: %v", tk.Label, name, err)
			}
		}
	}
	serve(t, cfg)
}

// TestKeysAreDated: every key that stays says when it was made.
func TestKeysAreDated(t *testing.T) {
	t.Parallel()
	cfg := hsmtest.New(t).Servers[0].Config
	for _, role := range []hsm.Role{hsm.RoleOpen, hsm.RoleSeal, hsm.RoleMint, hsm.RoleRotate} {
		as, err := hsm.ReadKEK(cfg, role, 0, pkcs11.CKA_ID, pkcs11.CKA_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		day := hsm.MadeOn(as[0])
		if age := time.Since(day); age < 0 || age > 49*time.Hour {
			t.Errorf("%s: the KEK is dated %q", role, as[0])
		}
		if as[1][0] != 1 {
			t.Errorf("%s: the KEK can be used without a login", role)
		}
	}
	for _, id := range []string{"", "kluis/kek/1", "kluis/kek/1 2026-13-01", "x 2026-11-23 y"} {
		if day := hsm.MadeOn([]byte(id)); !day.IsZero() {
			t.Errorf("%q is of %s", id, day)
		}
	}
}
