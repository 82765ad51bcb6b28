package hsm_test

import (
	"crypto"
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"

	"github.com/miekg/pkcs11"
)

// TestReport: what every key of every role may and never may, as the token has
// it.
func TestReport(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	h := world.Servers[0].Open(t)
	kept := []string{"sensitive", "not extractable", "not modifiable", "not copyable"}
	key := func(label, kind string, epoch uint32, may, only string) token.Key {
		return token.Key{Label: label, Kind: kind, Epoch: epoch, Attributes: slices.Concat([]string{may}, kept, []string{only + " only"})}
	}
	unwraps := key("kluis/kek/1", "kek", 1, "unwrap", "AES key wrap")
	record := key("kluis/mac/record", "mac", 0, "sign", "HMAC-SHA-256")
	for role, c := range map[hsm.Role]struct {
		health token.Health
		want   []token.Key
	}{
		hsm.RoleOpen: {h.Opener(), []token.Key{unwraps}},
		hsm.RoleSeal: {h.Sealer(), []token.Key{unwraps, key("kluis/mac/content", "mac", 0, "sign", "HMAC-SHA-256"), record,
			key("kluis/mac/index", "mac", 0, "sign", "HMAC-SHA-256"),
			key("kluis/seal", "signing", 0, "sign", "ECDSA")}},
		hsm.RoleMint: {h.Minter(), []token.Key{key("kluis/kek/1", "kek", 1, "wrap", "AES key wrap"), record}},
		// SoftHSM lets no copy become uncopyable; see importTrusted.
		hsm.RoleRotate: {h.Rotator(), []token.Key{{Label: "kluis/kek/1", Kind: "kek", Epoch: 1, Attributes: []string{
			"unwrap", "wrap", "sensitive", "not extractable", "not modifiable", "copyable", "trusted", "AES key wrap only"}}, record}},
		hsm.RoleSign: {h.TokenSigner(), []token.Key{key("kluis/token", "signing", 0, "sign", "ECDSA")}},
	} {
		reports := c.health.Report()
		if len(reports) != 1 {
			t.Errorf("%s: %d tokens", role, len(reports))
			continue
		}
		r := reports[0]
		if r.Label != world.Servers[0].Config.Tokens[role][0].Label || r.State != "up" || len(r.Keys) != len(c.want) {
			t.Errorf("%s: %+v", role, r)
			continue
		}
		for i, k := range r.Keys {
			want := c.want[i]
			if k.Label != want.Label || k.Kind != want.Kind || k.Epoch != want.Epoch || !slices.Equal(k.Attributes, want.Attributes) {
				t.Errorf("%s: %+v\nwant %+v", role, k, want)
			}
			if age := time.Since(k.MadeOn); k.Kind != "signing" && (age < 0 || age > 49*time.Hour) {
				t.Errorf("%s, %s: made on %v", role, k.Label, k.MadeOn)
			}
		}
	}
}

// TestReportCounts: each operation counts for the key it was done with, and a
// connection opened anew begins no new count.
func TestReportCounts(t *testing.T) {
	t.Parallel()
	h, f := openFaulty(t, nil, hsm.RoleOpen, hsm.RoleSeal, hsm.RoleMint, hsm.RoleRotate, hsm.RoleSign)
	uses := func(health token.Health, label string) uint64 {
		t.Helper()
		for _, k := range health.Report()[0].Keys {
			if k.Label == label {
				return k.Uses
			}
		}
		t.Fatalf("no key %s", label)
		return 0
	}
	count := func(what string, health token.Health, label string, want uint64, f func()) {
		t.Helper()
		before := uses(health, label)
		f()
		if n := uses(health, label) - before; n != want {
			t.Errorf("%s: %d uses of %s, want %d", what, n, label, want)
		}
	}
	var keys []token.WrappedKey
	var items []token.Item
	count("minting", h.Minter(), "kluis/kek/1", 70, func() { keys = mintKeys(t, h, 70) })
	count("sealing", h.Sealer(), "kluis/kek/1", 70, func() { items = sealItems(t, h, keys, 140) })
	op := opens(keys, items)
	once := func() {
		if err := op(t, h); err != nil {
			t.Fatal(err)
		}
	}
	count("opening", h.Opener(), "kluis/kek/1", 70, once)
	count("opening once more", h.Opener(), "kluis/kek/1", 0, once)
	if n := h.Opener().Report()[0].Handles; n != 70 {
		t.Errorf("%d handles", n)
	}
	messages := make([][]byte, 100)
	count("content MACs", h.Sealer(), "kluis/mac/content", 100, func() {
		if _, err := h.Sealer().ContentMAC(t.Context(), messages); err != nil {
			t.Fatal(err)
		}
	})
	count("index MACs", h.Sealer(), "kluis/mac/index", 2, func() {
		if _, err := h.Sealer().IndexMAC(t.Context(), messages[:2]); err != nil {
			t.Fatal(err)
		}
	})
	count("record MACs", h.Rotator(), "kluis/mac/record", 3, func() {
		if _, err := h.Rotator().RecordMAC(t.Context(), messages[:3]); err != nil {
			t.Fatal(err)
		}
	})
	count("rewrapping", h.Rotator(), "kluis/kek/1", 140, func() { rewrap(t, h, keys, 1) }) // from it, and to it
	sign := func(s crypto.Signer) func() {
		return func() {
			digest := sha256.Sum256([]byte("x"))
			if _, err := s.Sign(nil, digest[:], crypto.SHA256); err != nil {
				t.Fatal(err)
			}
		}
	}
	count("sealing a fact", h.Sealer(), "kluis/seal", 1, sign(h.Sealer().Signer()))
	count("signing", h.TokenSigner(), "kluis/token", 1, sign(h.TokenSigner().Signer()))

	before := uses(h.Opener(), "kluis/kek/1")
	f.fail(fnDecryptInit, pkcs11.CKR_DEVICE_REMOVED, 1)
	if err := op(t, h); err == nil {
		t.Fatal("served by a token that is gone")
	}
	if r := h.Opener().Report()[0]; r.State == "up" || r.Handles != 0 || len(r.Keys) != 1 {
		t.Errorf("a token that is down: %+v", r)
	}
	waitHealthy(t, h.Opener())
	once()
	if n := uses(h.Opener(), "kluis/kek/1"); n < before+70 {
		t.Errorf("%d uses, %d before the token was opened anew", n, before)
	}
}
