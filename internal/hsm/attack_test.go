package hsm_test

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"

	"github.com/miekg/pkcs11"
)

// TestKEKWithstandsAttacks: whoever holds a PIN gets nothing but the role, on
// every token of every role and server. The three attacks that matter most,
// the readable unwrap, the change and the copy, are among what is tried.
func TestKEKWithstandsAttacks(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	configs := []hsm.Config{epochs(t)}
	for _, s := range world.Servers {
		configs = append(configs, s.Config)
	}
	for i, cfg := range configs {
		for _, role := range []hsm.Role{hsm.RoleOpen, hsm.RoleSeal, hsm.RoleMint, hsm.RoleRotate} {
			if len(cfg.Tokens[role]) == 0 {
				t.Errorf("server %d has no token of role %s", i, role)
			}
			for _, tk := range cfg.Tokens[role] {
				got, err := hsm.AttackToken(cfg, role, tk)
				if err != nil {
					t.Fatal(err)
				}
				if len(got) < 20 {
					t.Errorf("only %d attacks were tried", len(got))
				}
				for _, name := range []string{"unwrapping a data key readable and extractable", "setting DECRYPT on the KEK", "setting MODIFIABLE on the KEK",
					"copying the KEK with DECRYPT", "copying the KEK with MODIFIABLE"} {
					if _, tried := got[name]; !tried {
						t.Errorf("token %s: %s was not tried", tk.Label, name)
					}
				}
				for name, err := range got {
					if err == nil || !hsm.Refused(err) {
						t.Errorf("token %s: %s: %v", tk.Label, name, err)
					}
				}
			}
		}
	}
}

// TestKeysCannotBeStolen looks at every key that stays on a token.
func TestKeysCannotBeStolen(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	want := map[hsm.Role]int{hsm.RoleOpen: 1, hsm.RoleSeal: 5, hsm.RoleMint: 2, hsm.RoleRotate: 2, hsm.RoleSign: 1} // transport keys are gone
	for _, role := range hsm.Roles() {
		stolen, looked, err := hsm.Steal(world.Servers[1].Config, role)
		if err != nil {
			t.Fatal(err)
		}
		if looked != want[role] || len(stolen) > 0 {
			t.Errorf("%s: %d keys, want %d; %s", role, looked, want[role], strings.Join(stolen, "; "))
		}
	}
}

var spares atomic.Int32

// spare is a token of this test alone.
func spare(world *hsmtest.HSM) hsm.Token {
	return hsm.Token{Label: fmt.Sprintf("spare-%d", spares.Add(1)), PINFile: filepath.Join(world.Dir, "pin")}
}

func set(typ uint, value bool) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
	return func(as []*pkcs11.Attribute) []*pkcs11.Attribute {
		var out []*pkcs11.Attribute
		for _, a := range as {
			if a.Type == typ {
				a = pkcs11.NewAttribute(typ, value)
			}
			out = append(out, a)
		}
		return out
	}
}

func without(typ uint) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
	return func(as []*pkcs11.Attribute) []*pkcs11.Attribute {
		var out []*pkcs11.Attribute
		for _, a := range as {
			if a.Type != typ {
				out = append(out, a)
			}
		}
		return out
	}
}

// only allows some mechanisms.
func only(mechanisms ...uint64) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
	var value []byte
	for _, m := range mechanisms {
		value = binary.NativeEndian.AppendUint64(value, m)
	}
	return func(as []*pkcs11.Attribute) []*pkcs11.Attribute {
		var out []*pkcs11.Attribute
		for _, a := range as {
			if a.Type == pkcs11.CKA_ALLOWED_MECHANISMS {
				a = pkcs11.NewAttribute(a.Type, value)
			}
			out = append(out, a)
		}
		return out
	}
}

// lax takes one attribute out of the KEK's unwrap template.
func lax(t *testing.T, role hsm.Role, attribute uint) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
	nested, free := hsm.LaxUnwrapTemplate(role, attribute)
	t.Cleanup(free)
	return func(as []*pkcs11.Attribute) []*pkcs11.Attribute {
		var out []*pkcs11.Attribute
		for _, a := range as {
			if a.Type == nested.Type {
				a = nested
			}
			out = append(out, a)
		}
		return out
	}
}

type weakness struct {
	name   string
	role   hsm.Role
	weaken func(t *testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute
	attack string // one that must have succeeded
}

// weakRotators are the weaknesses of a KEK that wraps and unwraps.
func weakRotators() []weakness {
	nothing := func(as []*pkcs11.Attribute) []*pkcs11.Attribute { return as }
	list := []weakness{
		{"sound", hsm.RoleRotate, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute { return nothing }, ""},
		{"no template", hsm.RoleRotate, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return without(pkcs11.CKA_UNWRAP_TEMPLATE)
		}, "unwrapping a data key readable with nothing else said"},
		{"modifiable", hsm.RoleRotate, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return set(pkcs11.CKA_MODIFIABLE, true)
		}, "setting DECRYPT on the KEK"},
		{"may be wrapped", hsm.RoleRotate, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return set(pkcs11.CKA_EXTRACTABLE, true)
		}, "wrapping the KEK out"},
		{"other mechanisms", hsm.RoleRotate, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return func(as []*pkcs11.Attribute) []*pkcs11.Attribute {
				return without(pkcs11.CKA_ALLOWED_MECHANISMS)(set(pkcs11.CKA_DECRYPT, true)(as))
			}
		}, "decrypting with the KEK"},
	}
	for attribute, attack := range map[uint]string{
		pkcs11.CKA_SENSITIVE: "readable", pkcs11.CKA_TOKEN: "to stay on the token", pkcs11.CKA_WRAP_WITH_TRUSTED: "to be wrapped by any key",
		pkcs11.CKA_ENCRYPT: "to encrypt", pkcs11.CKA_DECRYPT: "to decrypt", pkcs11.CKA_WRAP: "to wrap", pkcs11.CKA_UNWRAP: "to unwrap",
		pkcs11.CKA_SIGN: "to sign", pkcs11.CKA_VERIFY: "to verify", pkcs11.CKA_DERIVE: "to derive",
		pkcs11.CKA_MODIFIABLE: "modifiable", pkcs11.CKA_COPYABLE: "copyable",
	} {
		list = append(list, weakness{"template lacks " + attack, hsm.RoleRotate, func(t *testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return lax(t, hsm.RoleRotate, attribute)
		}, "unwrapping a data key " + attack})
	}
	return list
}

// TestStartRefusesWeakKEK builds one weakness at a time.
func TestStartRefusesWeakKEK(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	both := func(fs ...func([]*pkcs11.Attribute) []*pkcs11.Attribute) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
		return func(as []*pkcs11.Attribute) []*pkcs11.Attribute {
			for _, f := range fs {
				as = f(as)
			}
			return as
		}
	}
	modifiable := set(pkcs11.CKA_MODIFIABLE, true)
	for _, c := range append(weakRotators(), []weakness{
		{"sound", hsm.RoleOpen, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute { return both() }, ""},
		{"sound", hsm.RoleSeal, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute { return both() }, ""},
		{"sound", hsm.RoleMint, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute { return both() }, ""},
		{"no template", hsm.RoleOpen, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return without(pkcs11.CKA_UNWRAP_TEMPLATE)
		}, "unwrapping a data key readable and extractable"},
		{"sensitive", hsm.RoleOpen, func(t *testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return lax(t, hsm.RoleOpen, pkcs11.CKA_SENSITIVE)
		}, "unwrapping a data key readable"},
		{"extractable", hsm.RoleSeal, func(t *testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return lax(t, hsm.RoleSeal, pkcs11.CKA_EXTRACTABLE)
		}, "unwrapping a data key extractable"},
		{"token", hsm.RoleOpen, func(t *testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return lax(t, hsm.RoleOpen, pkcs11.CKA_TOKEN)
		}, "unwrapping a data key to stay on the token"},
		{"encrypt", hsm.RoleOpen, func(t *testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return lax(t, hsm.RoleOpen, pkcs11.CKA_ENCRYPT)
		}, "unwrapping a data key to encrypt"},
		{"decrypt", hsm.RoleSeal, func(t *testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return lax(t, hsm.RoleSeal, pkcs11.CKA_DECRYPT)
		}, "unwrapping a data key to decrypt"},
		{"mechanism", hsm.RoleSeal, func(t *testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return lax(t, hsm.RoleSeal, pkcs11.CKA_ALLOWED_MECHANISMS)
		}, "unwrapping a data key for another mechanism"},
		{"key modifiable", hsm.RoleOpen, func(t *testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return lax(t, hsm.RoleOpen, pkcs11.CKA_MODIFIABLE)
		}, "unwrapping a data key modifiable"},
		{"modifiable", hsm.RoleOpen, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute { return modifiable }, "setting DECRYPT on the KEK"},
		{"copyable", hsm.RoleOpen, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return both(set(pkcs11.CKA_COPYABLE, true), modifiable)
		}, "copying the KEK with DECRYPT"},
		{"modifiable", hsm.RoleSeal, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute { return modifiable }, "setting DECRYPT on the KEK"},
		{"modifiable", hsm.RoleMint, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute { return modifiable }, "setting UNWRAP on the KEK"},
		{"may unwrap", hsm.RoleMint, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return set(pkcs11.CKA_UNWRAP, true)
		}, "unwrapping a data key as it is"},
		{"may decrypt", hsm.RoleOpen, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return both(set(pkcs11.CKA_DECRYPT, true), without(pkcs11.CKA_ALLOWED_MECHANISMS))
		}, "decrypting with the KEK"},
		{"may decrypt by one mechanism", hsm.RoleOpen, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return both(set(pkcs11.CKA_DECRYPT, true), only(pkcs11.CKM_AES_CBC, pkcs11.CKM_AES_KEY_WRAP))
		}, "decrypting with the KEK"},
		{"may encrypt", hsm.RoleSeal, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return both(set(pkcs11.CKA_ENCRYPT, true), without(pkcs11.CKA_ALLOWED_MECHANISMS))
		}, "encrypting with the KEK"},
		{"may wrap", hsm.RoleOpen, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return set(pkcs11.CKA_WRAP, true)
		}, "using the KEK to wrap a key"},
		{"may wrap", hsm.RoleSeal, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return set(pkcs11.CKA_WRAP, true)
		}, "using the KEK to wrap a key"},
		{"readable", hsm.RoleSeal, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return both(set(pkcs11.CKA_SENSITIVE, false), set(pkcs11.CKA_EXTRACTABLE, true))
		}, "reading the KEK"},
		{"may be wrapped", hsm.RoleOpen, func(*testing.T) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
			return set(pkcs11.CKA_EXTRACTABLE, true)
		}, "wrapping the KEK out"},
	}...) {
		t.Run(fmt.Sprintf("%s/%s", c.role, c.name), func(t *testing.T) {
			cfg, err := hsm.PlantWeak(world.Servers[0].Config, c.role, spare(world),
				filepath.Join(world.Dir, "so-pin"), filepath.Join(t.TempDir(), "probe.bin"), c.weaken(t))
			if err != nil {
				t.Fatal(err)
			}
			h, err := hsm.New(cfg)
			if c.attack == "" {
				if err != nil {
					t.Fatalf("a sound KEK was refused: %v", err)
				}
				if err := h.Close(); err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil {
				_ = h.Close()
				t.Fatal("the process would serve")
			}
			if !errors.Is(err, hsm.ErrWeakKEK) {
				t.Errorf("refused for another reason: %v", err)
			}
			got, err := hsm.Attack(cfg, c.role)
			if err != nil {
				t.Fatal(err)
			}
			if err, tried := got[c.attack]; err != nil || !tried {
				t.Errorf("the test built no such weakness: %s: %v", c.attack, err)
			}
		})
	}
}

// TestKEKMustBeTrusted: without the security officer's word a KEK can wrap
// nothing, so the process does not serve from it.
func TestKEKMustBeTrusted(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	cfg, err := hsm.PlantWeak(world.Servers[0].Config, hsm.RoleRotate, spare(world), filepath.Join(world.Dir, "so-pin"),
		filepath.Join(t.TempDir(), "probe.bin"), without(pkcs11.CKA_TRUSTED))
	if err != nil {
		t.Fatal(err)
	}
	h, err := hsm.New(cfg)
	if err == nil {
		_ = h.Close()
		t.Fatal("it would serve")
	}
	if !strings.Contains(err.Error(), "KEY_NOT_WRAPPABLE") {
		t.Error(err)
	}
}

// TestStartRefusesStrangeTrustedKey: one that an officer left on a rotate token.
func TestStartRefusesStrangeTrustedKey(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	cfg, err := makeEpochs(world, t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Tokens = map[hsm.Role][]hsm.Token{hsm.RoleRotate: cfg.Tokens[hsm.RoleRotate]}
	if err := hsm.PlantTrusted(cfg, filepath.Join(world.Dir, "so-pin")); err != nil {
		t.Fatal(err)
	}
	h, err := hsm.New(cfg)
	if err == nil {
		_ = h.Close()
		t.Fatal("it would serve")
	}
	if !errors.Is(err, hsm.ErrWeakKEK) {
		t.Error(err)
	}
}

// TestStartRefusesLaxToken: the KEK is sound, but the token does not keep the
// rules that rewrapping rests on. The module under test says yes where
// SoftHSM refuses.
func TestStartRefusesLaxToken(t *testing.T) {
	t.Parallel()
	var cfg hsm.Config
	_, f := openFaulty(t, func(c *hsm.Config) { cfg = *c }, hsm.RoleRotate)
	for _, c := range []struct {
		fn     int
		refuse uint
		attack string
	}{
		{fnWrapKey, pkcs11.CKR_KEY_NOT_WRAPPABLE, "wrapping a data key under an untrusted AES key"},
		{fnGenerateKey, pkcs11.CKR_ATTRIBUTE_READ_ONLY, "generating a trusted key"},
		{fnSetAttributeValue, pkcs11.CKR_ACTION_PROHIBITED, "freeing a data key from trusted keys"},
		{fnSetAttributeValue, pkcs11.CKR_ATTRIBUTE_READ_ONLY, "setting TRUSTED on a key"},
		{fnCopyObject, pkcs11.CKR_ACTION_PROHIBITED, "copying a data key free from trusted keys"},
		{fnCopyObject, pkcs11.CKR_ATTRIBUTE_READ_ONLY, "copying a key as a trusted one"},
		{fnCreateObject, pkcs11.CKR_ATTRIBUTE_READ_ONLY, "bringing a trusted AES key"},
		{fnDecryptInit, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, "decrypting with a data key"},
	} {
		f.inject(c.fn, faultLie, int32(c.refuse), 0, -1)
		h, err := hsm.New(cfg)
		f.heal(c.fn)
		if err == nil {
			_ = h.Close()
			t.Errorf("%s: it would serve", c.attack)
			continue
		}
		if !errors.Is(err, hsm.ErrWeakKEK) || !strings.Contains(err.Error(), c.attack+" succeeded") {
			t.Errorf("%s: %v", c.attack, err)
		}
	}
	h, err := hsm.New(cfg)
	if err != nil {
		t.Fatalf("healed: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

// TestOpenerCannotMintOrWrap: the PIN of an open token makes no data key that
// anybody would read, and wraps none.
func TestOpenerCannotMintOrWrap(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	for _, s := range world.Servers {
		for _, role := range []hsm.Role{hsm.RoleOpen, hsm.RoleSeal} {
			made, unwrapped, err := hsm.WrapWithKEK(s.Config, role)
			if err != nil {
				t.Fatal(err)
			}
			if made == nil || !hsm.Refused(made) {
				t.Errorf("%s: wrapping a key made here: %v", role, made)
			}
			if unwrapped == nil || !hsm.Refused(unwrapped) {
				t.Errorf("%s: wrapping an unwrapped data key: %v", role, unwrapped)
			}
		}
		// The control: where it may be done, the same attempt succeeds.
		made, _, err := hsm.WrapWithKEK(s.Config, hsm.RoleMint)
		if err != nil || made != nil {
			t.Errorf("the mint token: %v, %v", made, err)
		}
		opener := s.Open(t)
		if o := opener.Opener(); o != nil {
			if _, ok := o.(token.Minter); ok {
				t.Error("an opener mints")
			}
			if _, ok := o.(token.Rotator); ok {
				t.Error("an opener rewraps")
			}
		}
	}
}

// TestFailureIsNoRefusal: an attack that fails for another reason than that
// the token forbids it proves nothing, so the process does not serve.
func TestFailureIsNoRefusal(t *testing.T) {
	t.Parallel()
	var cfg hsm.Config
	_, f := openFaulty(t, func(c *hsm.Config) { cfg = *c }, hsm.RoleOpen)
	for _, rv := range []uint{pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_SESSION_HANDLE_INVALID} {
		f.fail(fnGenerateKey, rv, -1) // of the key to wrap the KEK with
		h, err := hsm.New(cfg)
		if err == nil {
			_ = h.Close()
			t.Fatalf("%#x: the process would serve", rv)
		}
		if errors.Is(err, hsm.ErrWeakKEK) || !strings.Contains(err.Error(), "could not be told") {
			t.Errorf("%#x: %v", rv, err)
		}
	}
}

// TestStartRefuses names what else keeps the process from serving.
func TestStartRefuses(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(p, []byte(content), mode), os.Chmod(p, mode)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	probe, err := os.ReadFile(world.ProbeKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	otherIV := append([]byte(nil), probe...)
	otherIV[9+40] ^= 1
	otherKey := append([]byte(nil), probe...)
	otherKey[9] ^= 1
	otherEpoch := append([]byte(nil), probe...)
	otherEpoch[8] = 9

	pinFile := func(p string) func(*hsm.Config) {
		return func(c *hsm.Config) {
			c.Tokens[hsm.RoleOpen] = []hsm.Token{{Label: c.Tokens[hsm.RoleOpen][0].Label, PINFile: p}}
		}
	}
	probeFile := func(b []byte, name string) func(*hsm.Config) {
		return func(c *hsm.Config) { c.ProbeKeyFile = write(name, string(b), 0o600) }
	}
	for name, c := range map[string]struct {
		change func(*hsm.Config)
		says   string
	}{
		"no module":           {func(c *hsm.Config) { c.Module = filepath.Join(dir, "none.so") }, "cannot be loaded"},
		"module is no module": {func(c *hsm.Config) { c.Module = "/lib/x86_64-linux-gnu/libc.so.6" }, "cannot be loaded"},
		"no token": {func(c *hsm.Config) {
			c.Tokens[hsm.RoleOpen] = []hsm.Token{{Label: "none", PINFile: c.Tokens[hsm.RoleOpen][0].PINFile}}
		}, "could not find PKCS#11 token"},
		"no tokens":             {func(c *hsm.Config) { c.Tokens = nil }, "no HSM token"},
		"PIN missing":           {pinFile(filepath.Join(dir, "none")), "no such file"},
		"PIN open to all":       {pinFile(write("open", hsmtest.PIN, 0o644)), "chmod 600"},
		"PIN empty":             {pinFile(write("empty", "\n", 0o600)), "one line"},
		"PIN of two lines":      {pinFile(write("two", "a\nb\n", 0o600)), "one line"},
		"probe missing":         {func(c *hsm.Config) { c.ProbeKeyFile = filepath.Join(dir, "none") }, "probe key file"},
		"probe not ours":        {probeFile([]byte("hello"), "p1"), "not a probe key file"},
		"probe with another IV": {probeFile(otherIV, "p2"), "does not come out"},
		"probe key damaged":     {probeFile(otherKey, "p3"), "does not come out"},
		"probe of other epoch":  {probeFile(otherEpoch, "p4"), "no record for epoch 1"},
		"token of another role": {func(c *hsm.Config) { c.Tokens[hsm.RoleOpen] = world.Servers[0].Config.Tokens[hsm.RoleSeal] }, "does not come out"},
		"token without keys":    {func(c *hsm.Config) { c.Tokens[hsm.RoleSeal] = world.Servers[0].Config.Tokens[hsm.RoleSign] }, "no key kluis/mac"},
		"token without signing key": {func(c *hsm.Config) {
			c.Tokens = map[hsm.Role][]hsm.Token{hsm.RoleSign: c.Tokens[hsm.RoleOpen]}
		}, "no key kluis/token"},
		"cache without bound": {func(c *hsm.Config) { c.CacheSize = 0 }, "must be positive"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := world.Servers[0].Config
			cfg.Tokens = map[hsm.Role][]hsm.Token{hsm.RoleOpen: cfg.Tokens[hsm.RoleOpen]}
			c.change(&cfg)
			h, err := hsm.New(cfg)
			if err == nil {
				_ = h.Close()
				t.Fatal("it would serve")
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
			if strings.Contains(err.Error(), hsmtest.PIN) {
				t.Error("the error holds the PIN")
			}
		})
	}
}

// TestKeyInTransitCannotBeRead holds a PIN and a wrapped file while the
// ceremony lasts.
func TestKeyInTransitCannotBeRead(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	cfg := world.Servers[0].Config
	cfg.Tokens = map[hsm.Role][]hsm.Token{hsm.RoleSeal: {spare(world)}, hsm.RoleRotate: {spare(world)}}
	soPIN := filepath.Join(world.Dir, "so-pin")
	c := hsm.Ceremony{Module: cfg.Module, Tokens: cfg.Tokens, TransportBits: 2048}
	public, err := c.Init(soPIN)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := public.Write(filepath.Join(dir, "public")); err != nil {
		t.Fatal(err)
	}
	fingerprint, err := public.Fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(dir, "keys")
	if err := c.Create(1, map[string]string{fingerprint: filepath.Join(dir, "public")}, keys); err != nil {
		t.Fatal(err)
	}
	read := func(role hsm.Role, want int) map[string][]byte {
		names, err := filepath.Glob(filepath.Join(keys, string(role)+"-*.bin"))
		if err != nil || len(names) != want {
			t.Fatal(names, err)
		}
		files := map[string][]byte{}
		for _, name := range names {
			if files[filepath.Base(name)], err = os.ReadFile(name); err != nil {
				t.Fatal(err)
			}
		}
		return files
	}
	files := map[hsm.Role]map[string][]byte{hsm.RoleSeal: read(hsm.RoleSeal, 4), hsm.RoleRotate: read(hsm.RoleRotate, 2)}
	for role, files := range files {
		for name, b := range files {
			if err := hsm.StealInTransit(cfg, role, b); !hsm.Refused(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for name, b := range files[hsm.RoleRotate] {
		keyType := uint(pkcs11.CKK_GENERIC_SECRET)
		if strings.HasSuffix(name, "-kek.bin") {
			keyType = pkcs11.CKK_AES
		}
		freed, taken, err := hsm.StealPassing(cfg, b, keyType)
		if err != nil || !hsm.Refused(freed) || !hsm.Refused(taken) {
			t.Errorf("%s: freeing it: %v; taking it: %v; %v", name, freed, taken, err)
		}
	}
	if err := c.Import(keys, fingerprint, filepath.Join(dir, "probe.bin"), soPIN); err != nil {
		t.Fatal(err)
	}
	for role, files := range files {
		for name, b := range files {
			if err := hsm.StealInTransit(cfg, role, b); err == nil || !strings.Contains(err.Error(), "no transport key") {
				t.Errorf("%s after the import: %v", name, err)
			}
		}
	}
}

// TestStartRefusesTwoKEKs: which of two KEKs of one epoch is right nobody can
// tell.
func TestStartRefusesTwoKEKs(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	tk, probes := spare(world), filepath.Join(t.TempDir(), "probe.bin")
	for range 2 {
		cfg, err := hsm.PlantWeak(world.Servers[0].Config, hsm.RoleOpen, tk, filepath.Join(world.Dir, "so-pin"), probes,
			func(as []*pkcs11.Attribute) []*pkcs11.Attribute { return as })
		if err != nil {
			t.Fatal(err)
		}
		h, err := hsm.New(cfg)
		if err == nil {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
			continue // with the first
		}
		if strings.Contains(err.Error(), "two KEKs of one epoch, 1") {
			return
		}
		t.Error(err)
	}
	t.Error("it would serve")
}

// TestStartRefusesMixedKeys: tokens whose keys are of different ceremonies.
func TestStartRefusesMixedKeys(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	cfg, err := hsm.PlantWeak(world.Servers[0].Config, hsm.RoleMint, spare(world), filepath.Join(world.Dir, "so-pin"),
		filepath.Join(t.TempDir(), "probe.bin"), func(as []*pkcs11.Attribute) []*pkcs11.Attribute { return as })
	if err != nil {
		t.Fatal(err)
	}
	cfg.ProbeKeyFile = world.ProbeKeyFile
	cfg.Tokens[hsm.RoleSeal] = world.Servers[0].Config.Tokens[hsm.RoleSeal]
	h, err := hsm.New(cfg)
	if err == nil {
		_ = h.Close()
		t.Fatal("it would serve")
	}
	if !strings.Contains(err.Error(), "does not unwrap under KEK epoch 1 what mint token") {
		t.Error(err)
	}
}

// TestStartRefusesMixedMACKeys: the KEKs are the same on both tokens, but each
// got its MAC keys from another run of the ceremony.
func TestStartRefusesMixedMACKeys(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	cfg := world.Servers[0].Config
	cfg.ProbeKeyFile = filepath.Join(t.TempDir(), "probe.bin")
	cfg.Tokens = map[hsm.Role][]hsm.Token{hsm.RoleSeal: {spare(world)}, hsm.RoleMint: {spare(world)}}
	c := hsm.Ceremony{Module: cfg.Module, Tokens: cfg.Tokens, TransportBits: 2048}
	public, err := c.Init(filepath.Join(world.Dir, "so-pin"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := public.Write(filepath.Join(dir, "public")); err != nil {
		t.Fatal(err)
	}
	fingerprint, err := public.Fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	for epoch, out := range map[uint32]string{1: first, 2: second} {
		if err := c.Create(epoch, map[string]string{fingerprint: filepath.Join(dir, "public")}, out); err != nil {
			t.Fatal(err)
		}
	}
	for role, order := range map[hsm.Role][]string{hsm.RoleSeal: {first, second}, hsm.RoleMint: {second, first}} {
		one := hsm.Ceremony{Module: cfg.Module, Tokens: map[hsm.Role][]hsm.Token{role: cfg.Tokens[role]}}
		for _, in := range order {
			if err := one.ImportOnly(in, fingerprint, cfg.ProbeKeyFile); err != nil {
				t.Fatal(err)
			}
		}
	}
	h, err := hsm.New(cfg)
	if err == nil {
		_ = h.Close()
		t.Fatal("it would serve")
	}
	if !strings.Contains(err.Error(), "the record MAC keys of tokens") {
		t.Error(err)
	}
}

// TestSealPINReadsByKeyStream holds down the limit that the package comment
// names, so that nobody claims more: where the host chooses the IV, the PIN
// of the seal token reads. The API of the role gives no way to it.
func TestSealPINReadsByKeyStream(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	h := world.Servers[0].Open(t)
	keys := mintKeys(t, h, 1)
	const secret = "0001234.567"
	items := []token.Item{{In: []byte(secret), Out: make([]byte, 0, 64)}}
	if err := h.Sealer().Seal(t.Context(), keys, items); err != nil {
		t.Fatal(err)
	}
	stream, err := hsm.EncryptWithPIN(world.Servers[0].Config, keys[0].Wrapped, items[0].IV, make([]byte, len(secret)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range secret {
		stream[i] ^= items[0].Out[i]
	}
	if string(stream[:len(secret)]) != secret {
		t.Error("the module chose the IV itself: the package comment and the threat model may promise more")
	}
}

// TestOfficerOfRotateTokenReads holds down the limit that docs/KEYS.md names:
// security officer and user of a rotate token together get a data key out.
func TestOfficerOfRotateTokenReads(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	cfg, err := makeEpochs(world, t.TempDir(), 1) // its own: the change of logins would disturb others
	if err != nil {
		t.Fatal(err)
	}
	h := serve(t, cfg, hsm.RoleMint, hsm.RoleSeal)
	keys := mintKeys(t, h, 1)
	items := sealItems(t, h, keys, 1)
	key, err := hsm.StealWithOfficer(cfg, filepath.Join(world.Dir, "so-pin"), keys[0].Wrapped)
	if err != nil {
		t.Fatalf("the documents may promise more: %v", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := gcm.Open(nil, items[0].IV, items[0].In, items[0].AAD); err != nil || string(got) != string(plaintext(0)) {
		t.Errorf("what came out is not the data key: %v", err)
	}
}
