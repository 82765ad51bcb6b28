package hsm_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"

	"github.com/miekg/pkcs11"
)

func checkOpened(t *testing.T, items []token.Item, bad ...int) {
	t.Helper()
	for i, it := range items {
		if slices.Contains(bad, i) {
			if !errors.Is(it.Err, token.ErrBadData) || len(it.Out) != 0 {
				t.Errorf("item %d: %v, %d bytes; want ErrBadData and nothing", i, it.Err, len(it.Out))
			}
			continue
		}
		if it.Err != nil || !bytes.Equal(it.Out, plaintext(i)) {
			t.Errorf("item %d: %v, %x", i, it.Err, it.Out)
		}
	}
}

// TestPoisonedItem: one bad row among ten is that row's loss, and nobody else's.
func TestPoisonedItem(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	h := world.Servers[0].Open(t)
	keys := mintKeys(t, h, 3)
	good := sealItems(t, h, keys, 10)
	for name, spoil := range map[string]func(keys []token.WrappedKey, items []token.Item) (bad []int){
		"tag":                 func(_ []token.WrappedKey, it []token.Item) []int { it[3].In[len(it[3].In)-1] ^= 1; return []int{3} },
		"ciphertext":          func(_ []token.WrappedKey, it []token.Item) []int { it[3].In[0] ^= 1; return []int{3} },
		"AAD":                 func(_ []token.WrappedKey, it []token.Item) []int { it[3].AAD[0] ^= 1; return []int{3} },
		"AAD missing":         func(_ []token.WrappedKey, it []token.Item) []int { it[3].AAD = nil; return []int{3} },
		"IV":                  func(_ []token.WrappedKey, it []token.Item) []int { it[3].IV[0] ^= 1; return []int{3} },
		"IV short":            func(_ []token.WrappedKey, it []token.Item) []int { it[3].IV = it[3].IV[:11]; return []int{3} },
		"IV long":             func(_ []token.WrappedKey, it []token.Item) []int { it[3].IV = append(it[3].IV, 0); return []int{3} },
		"IV missing":          func(_ []token.WrappedKey, it []token.Item) []int { it[3].IV = nil; return []int{3} },
		"only a tag":          func(_ []token.WrappedKey, it []token.Item) []int { it[3].In = it[3].In[:16]; return []int{3} },
		"shorter than a tag":  func(_ []token.WrappedKey, it []token.Item) []int { it[3].In = it[3].In[:15]; return []int{3} },
		"empty":               func(_ []token.WrappedKey, it []token.Item) []int { it[3].In = nil; return []int{3} },
		"another key":         func(_ []token.WrappedKey, it []token.Item) []int { it[3].Key = 1; return []int{3} },
		"wrapped key damaged": func(k []token.WrappedKey, _ []token.Item) []int { k[1].Wrapped[5] ^= 1; return []int{1, 4, 7} },
		"wrapped key short": func(k []token.WrappedKey, _ []token.Item) []int {
			k[1].Wrapped = k[1].Wrapped[:32]
			return []int{1, 4, 7}
		},
		"wrapped key long": func(k []token.WrappedKey, _ []token.Item) []int {
			k[1].Wrapped = append(k[1].Wrapped, 0)
			return []int{1, 4, 7}
		},
		"wrapped key empty": func(k []token.WrappedKey, _ []token.Item) []int { k[1].Wrapped = nil; return []int{1, 4, 7} },
		"wrapped keys swapped": func(k []token.WrappedKey, _ []token.Item) []int {
			k[1], k[2] = k[2], k[1]
			return []int{1, 2, 4, 5, 7, 8}
		},
		"everything": func(_ []token.WrappedKey, it []token.Item) []int {
			for i := range it {
				it[i].AAD = []byte("x")
			}
			return []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := slices.Clone(keys)
			for i := range k {
				k[i].Wrapped = bytes.Clone(k[i].Wrapped)
			}
			items := slices.Clone(good)
			for i := range items {
				it := &items[i]
				it.IV, it.AAD, it.In, it.Out = bytes.Clone(it.IV), bytes.Clone(it.AAD), bytes.Clone(it.In), make([]byte, 0, len(it.In))
			}
			bad := spoil(k, items)
			if err := h.Opener().Open(t.Context(), k, items); err != nil {
				t.Fatal(err)
			}
			checkOpened(t, items, bad...)
			if err := h.Opener().Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}

	t.Run("unknown epoch", func(t *testing.T) {
		k, items := slices.Clone(keys), slices.Clone(good)
		k[0].Epoch = 7
		for i := range items {
			items[i].Out = make([]byte, 0, 100)
		}
		if err := h.Opener().Open(t.Context(), k, items); err != nil {
			t.Fatal(err)
		}
		for i, it := range items {
			if want := i%3 == 0; want != errors.Is(it.Err, token.ErrUnknownEpoch) || !want && it.Err != nil {
				t.Errorf("item %d: %v", i, it.Err)
			}
		}
	})
	for name, it := range map[string]token.Item{
		"key -1":  {Key: -1, IV: make([]byte, 12), In: make([]byte, 20), Out: make([]byte, 20)},
		"key 3":   {Key: 3, IV: make([]byte, 12), In: make([]byte, 20), Out: make([]byte, 20)},
		"no room": {Key: 0, IV: make([]byte, 12), In: make([]byte, 20), Out: make([]byte, 3)},
	} {
		if err := h.Opener().Open(t.Context(), keys, []token.Item{it}); !errors.Is(err, token.ErrBadData) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := h.Opener().Open(t.Context(), nil, nil); err != nil {
		t.Error(err)
	}
}

// TestCanary: the same answer means bad data on a sound token, and a broken
// token when the known vector fails, too.
func TestCanary(t *testing.T) {
	t.Parallel()
	h, f := openFaulty(t, nil, hsm.RoleOpen, hsm.RoleSeal, hsm.RoleMint)
	keys := mintKeys(t, h, 1)
	items := sealItems(t, h, keys, 10)

	for _, rv := range []uint{pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_ENCRYPTED_DATA_INVALID, 0x42} { // 0x42: CKR_AEAD_DECRYPT_FAILED
		f.fail(fnDecrypt, rv, 1)
		if err := h.Opener().Open(t.Context(), keys, items); err != nil {
			t.Fatalf("%#x: %v", rv, err)
		}
		checkOpened(t, items) // the canary said that the token is well, and the second try that the item is
	}

	f.fail(fnDecrypt, pkcs11.CKR_GENERAL_ERROR, -1)
	if err := h.Opener().Open(t.Context(), keys, items); !errors.Is(err, token.ErrUnavailable) || errors.Is(err, token.ErrBadData) {
		t.Fatalf("broken token: %v", err)
	}
	if err := h.Opener().Check(t.Context()); !errors.Is(err, token.ErrUnavailable) {
		t.Errorf("health of a broken token: %v", err)
	}
	if err := h.Sealer().Check(t.Context()); err != nil {
		t.Errorf("health of the token beside it: %v", err)
	}
	f.heal(fnDecrypt)
	waitHealthy(t, h.Opener())
	if err := h.Opener().Open(t.Context(), keys, items); err != nil {
		t.Fatal(err)
	}
	checkOpened(t, items)

	f.fail(fnUnwrapKey, pkcs11.CKR_FUNCTION_FAILED, -1)
	if err := h.Opener().Open(t.Context(), mintKeys(t, h, 1), items); !errors.Is(err, token.ErrUnavailable) {
		t.Fatalf("token that no longer unwraps: %v", err)
	}
	f.heal(fnUnwrapKey)
	waitHealthy(t, h.Opener())

	f.fail(fnEncrypt, pkcs11.CKR_FUNCTION_FAILED, -1)
	out := []token.Item{{In: []byte("x"), Out: make([]byte, 17)}}
	if err := h.Sealer().Seal(t.Context(), keys, out); !errors.Is(err, token.ErrUnavailable) {
		t.Fatalf("token that no longer encrypts: %v", err)
	}
	f.heal(fnEncrypt)
	waitHealthy(t, h.Sealer())
}

func waitHealthy(t *testing.T, h token.Health) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if h.Check(t.Context()) == nil {
			return
		}
	}
	t.Fatal("the token does not come back")
}

// TestSessionLost: a lost session costs nothing, a lost token comes back.
func TestSessionLost(t *testing.T) {
	t.Parallel()
	h, f := openFaulty(t, nil, hsm.RoleOpen, hsm.RoleSeal, hsm.RoleMint)
	keys := mintKeys(t, h, 2)
	items := sealItems(t, h, keys, 10)
	for _, rv := range []uint{pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_KEY_HANDLE_INVALID} {
		f.fail(fnDecryptInit, rv, 1)
		if err := h.Opener().Open(t.Context(), keys, items); err != nil {
			t.Fatalf("%#x: %v", rv, err)
		}
		checkOpened(t, items)
	}
	for _, rv := range []uint{pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_HOST_MEMORY} {
		f.fail(fnDecryptInit, rv, 1)
		err := h.Opener().Open(t.Context(), keys, items)
		if !errors.Is(err, token.ErrUnavailable) {
			t.Fatalf("%#x: %v", rv, err)
		}
		if start := time.Now(); !errors.Is(h.Opener().Open(t.Context(), keys, items), token.ErrUnavailable) || time.Since(start) > time.Second {
			t.Errorf("%#x: while down the answer took %v", rv, time.Since(start))
		}
		waitHealthy(t, h.Opener())
		if err := h.Opener().Open(t.Context(), keys, items); err != nil {
			t.Fatal(err)
		}
		checkOpened(t, items)
	}
	// A real loss: the session and every data key on it are gone.
	f.fail(fnUnwrapKey, pkcs11.CKR_SESSION_HANDLE_INVALID, -1)
	if err := h.Opener().Open(t.Context(), mintKeys(t, h, 2), items); !errors.Is(err, token.ErrUnavailable) {
		t.Fatalf("session lost again and again: %v", err)
	}
}

// TestPINRefused: a PIN that was refused is never tried again.
func TestPINRefused(t *testing.T) {
	t.Parallel()
	h, f := openFaulty(t, nil, hsm.RoleOpen)
	f.fail(fnLogin, pkcs11.CKR_PIN_INCORRECT, -1)
	// The token goes and comes back without its login.
	f.fail(fnOpenSession, pkcs11.CKR_DEVICE_ERROR, 1)
	f.fail(fnUnwrapKey, pkcs11.CKR_SESSION_CLOSED, 1)
	items := []token.Item{{IV: make([]byte, 12), In: make([]byte, 16)}}
	before := f.calls(fnLogin)
	err := h.Opener().Open(t.Context(), []token.WrappedKey{{Epoch: 1, Wrapped: make([]byte, 40)}}, items)
	if !errors.Is(err, token.ErrUnavailable) {
		t.Fatal(err)
	}
	time.Sleep(4 * time.Second) // several pauses of the prober
	if n := f.calls(fnLogin) - before; n != 1 {
		t.Errorf("%d logins after the PIN was refused", n)
	}
	if err := h.Opener().Check(t.Context()); !errors.Is(err, token.ErrUnavailable) {
		t.Error(err)
	}
}

// TestDeadline: the module hangs; callers do not.
func TestDeadline(t *testing.T) {
	t.Parallel()
	h, f := openFaulty(t, nil, hsm.RoleOpen, hsm.RoleSeal, hsm.RoleMint, hsm.RoleSign)
	keys := mintKeys(t, h, 1)
	items := sealItems(t, h, keys, 3)
	f.delay(fnDecrypt, 400)

	canary := bytes.Repeat([]byte{0xEE}, 200)
	for i := range items {
		items[i].Out = slices.Clone(canary)[:0]
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	err := h.Opener().Open(ctx, keys, items)
	if took := time.Since(start); took > 300*time.Millisecond || !errors.Is(err, token.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("after %v: %v", took, err)
	}
	// Queued behind the one that hangs.
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start = time.Now()
	err = h.Opener().Open(ctx, keys, items)
	if took := time.Since(start); took > 300*time.Millisecond || !errors.Is(err, token.ErrUnavailable) {
		t.Fatalf("queued, after %v: %v", took, err)
	}
	// The queue is bounded: who finds it full hears so at once.
	var wg sync.WaitGroup
	var full int
	var mu sync.Mutex
	for range 3 * hsm.QueueLength {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			start := time.Now()
			own := slices.Clone(items)
			for i := range own {
				own[i].Out = make([]byte, 0, 200)
			}
			err := h.Opener().Open(ctx, keys, own)
			busy := errors.Is(err, token.ErrBusy)
			if !errors.Is(err, token.ErrUnavailable) {
				t.Errorf("behind a hanging call: %v", err)
			}
			if busy && time.Since(start) > 100*time.Millisecond {
				t.Errorf("a full queue said so after %s", time.Since(start))
			}
			if busy {
				mu.Lock()
				full++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if full < hsm.QueueLength {
		t.Errorf("only %d callers found the queue full", full)
	}
	// The other tokens serve on.
	if err := h.Sealer().Check(t.Context()); err != nil {
		t.Error(err)
	}
	f.delay(fnDecrypt, 0)
	waitHealthy(t, h.Opener())
	for i := range items {
		if !bytes.Equal(items[i].Out[:200], canary) {
			t.Fatalf("item %d was written to after the call returned", i)
		}
	}
	if err := h.Opener().Open(t.Context(), keys, items); err != nil {
		t.Fatal(err)
	}
	checkOpened(t, items)

	// crypto.Signer has no context; the call's own time ends it.
	f.hang(fnSign, 1)
	digest := sha256.Sum256(nil)
	start = time.Now()
	if _, err := h.TokenSigner().Signer().Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, token.ErrUnavailable) || time.Since(start) > 4*time.Second {
		t.Errorf("hanging signature, after %v: %v", time.Since(start), err)
	}
	waitHealthy(t, h.TokenSigner())
}

func TestMintAndMACFaults(t *testing.T) {
	t.Parallel()
	h, f := openFaulty(t, nil, hsm.RoleMint)
	f.fail(fnGenerateKey, pkcs11.CKR_DEVICE_ERROR, 1)
	if _, err := h.Minter().Mint(t.Context(), 1, 1); !errors.Is(err, token.ErrUnavailable) {
		t.Error(err)
	}
	waitHealthy(t, h.Minter())
	f.fail(fnWrapKey, pkcs11.CKR_GENERAL_ERROR, 1)
	made, gone := f.succeeded(fnGenerateKey), f.succeeded(fnDestroyObject)
	if _, err := h.Minter().Mint(t.Context(), 1, 3); err != nil {
		t.Error(err) // a canary, and once more
	}
	f.fail(fnWrapKey, pkcs11.CKR_GENERAL_ERROR, -1)
	if _, err := h.Minter().Mint(t.Context(), 1, 3); !errors.Is(err, token.ErrUnavailable) {
		t.Error(err)
	}
	f.heal(fnWrapKey)
	if made, gone = f.succeeded(fnGenerateKey)-made, f.succeeded(fnDestroyObject)-gone; made != gone {
		t.Errorf("%d keys generated, %d destroyed", made, gone)
	}
	waitHealthy(t, h.Minter())
	f.fail(fnSign, pkcs11.CKR_SESSION_HANDLE_INVALID, 1)
	if _, err := h.Minter().RecordMAC(t.Context(), [][]byte{nil}); err != nil {
		t.Error(err)
	}
	f.fail(fnGenerateRandom, pkcs11.CKR_RANDOM_NO_RNG, 1)
	if err := h.Minter().Random(t.Context(), make([]byte, 5)); !errors.Is(err, token.ErrUnavailable) {
		t.Error(err)
	}
	waitHealthy(t, h.Minter())
	for _, n := range []int{-1, 4097} {
		if _, err := h.Minter().Mint(t.Context(), 1, n); err == nil {
			t.Errorf("minted %d keys", n)
		}
	}
	if err := h.Minter().Random(t.Context(), make([]byte, 1<<20)); err == nil {
		t.Error("drew a megabyte")
	}
}

// TestCacheUnderLoad: far more keys than handles, and handles that expire
// while they are in use; every batch still opens, and no handle is left over.
func TestCacheUnderLoad(t *testing.T) {
	t.Parallel()
	const size = 5
	h, f := openFaulty(t, func(c *hsm.Config) { c.CacheSize, c.CacheLifetime = size, 300*time.Microsecond },
		hsm.RoleOpen, hsm.RoleSeal, hsm.RoleMint)
	keys := mintKeys(t, h, 40)
	keys = append(keys, keys[3], keys[3]) // the same key under more than one index
	items := sealItems(t, h, keys, 200)
	made, gone := f.succeeded(fnUnwrapKey), f.succeeded(fnDestroyObject)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			own := slices.Clone(items)
			for round := range 15 {
				for i := range own {
					own[i].Out = make([]byte, 0, len(own[i].In))
				}
				from := (g*31 + round*17) % 150
				part := own[from : from+50]
				if err := h.Opener().Open(t.Context(), keys, part); err != nil {
					t.Errorf("goroutine %d, round %d: %v", g, round, err)
					return
				}
				for i, it := range part {
					if it.Err != nil || !bytes.Equal(it.Out, plaintext(from+i)) {
						t.Errorf("goroutine %d, round %d, item %d: %v", g, round, from+i, it.Err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if n := h.CachedKeys(hsm.RoleOpen); n > size {
		t.Errorf("%d cached handles, at most %d wanted", n, size)
	}
	if made := f.succeeded(fnUnwrapKey) - made; made < 1000 {
		t.Errorf("only %d unwraps: the cache was never full", made)
	}
	// Nobody asks any more; the sweep destroys what is left of both roles.
	for end := time.Now().Add(5 * time.Second); h.CachedKeys(hsm.RoleOpen)+h.CachedKeys(hsm.RoleSeal) > 0 && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
	}
	if made, gone := f.succeeded(fnUnwrapKey)-made, f.succeeded(fnDestroyObject)-gone; gone < made || gone > made+size {
		t.Errorf("%d keys unwrapped, %d destroyed", made, gone)
	}
}

func TestCacheIsUsed(t *testing.T) {
	t.Parallel()
	h, f := openFaulty(t, nil, hsm.RoleOpen, hsm.RoleSeal, hsm.RoleMint)
	keys := mintKeys(t, h, 2)
	items := sealItems(t, h, keys, 10)
	before := f.calls(fnUnwrapKey)
	for range 5 {
		if err := h.Opener().Open(t.Context(), keys, items); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.calls(fnUnwrapKey) - before; n != 2 {
		t.Errorf("%d unwraps for 2 keys", n)
	}
}

func TestSigners(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	h := world.Servers[0].Open(t)
	digest := sha256.Sum256([]byte("message"))
	for name, s := range map[string]crypto.Signer{"seal": h.Sealer().Signer(), "token": h.TokenSigner().Signer()} {
		want := world.Servers[0].Public.Seal
		if name == "token" {
			want = world.Servers[0].Public.Sign
		}
		signature, err := s.Sign(nil, digest[:], crypto.SHA256)
		if err != nil || !want.Equal(s.Public()) || !ecdsa.VerifyASN1(want, digest[:], signature) {
			t.Errorf("%s: %v", name, err)
		}
		for _, opts := range []crypto.SignerOpts{nil, crypto.SHA384, crypto.Hash(0)} {
			if _, err := s.Sign(nil, digest[:], opts); err == nil {
				t.Errorf("%s: signed with %v", name, opts)
			}
		}
		if _, err := s.Sign(nil, digest[:31], crypto.SHA256); err == nil {
			t.Errorf("%s: signed 31 bytes", name)
		}
	}
}

// TestClosed: after Close every call says unavailable, at once, and a batch
// in flight gets its answer.
func TestClosed(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	world.Servers[1].Open(t)
	h, err := hsm.New(world.Servers[0].Config)
	if err != nil {
		t.Fatal(err)
	}
	keys := mintKeys(t, h, 1)
	items := sealItems(t, h, keys, 10)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			own := slices.Clone(items)
			for i := range own {
				own[i].Out = make([]byte, 0, 100)
			}
			for {
				if err := h.Opener().Open(t.Context(), keys, own); err != nil {
					if !errors.Is(err, token.ErrUnavailable) {
						t.Error(err)
					}
					return
				}
				for i := range own {
					if own[i].Err != nil || !bytes.Equal(own[i].Out, plaintext(i)) {
						t.Error(own[i].Err)
					}
				}
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if err := h.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := h.Minter().Mint(t.Context(), 1, 1); !errors.Is(err, token.ErrUnavailable) {
		t.Error(err)
	}
}

func TestIVsNeverRepeat(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	h := world.Servers[0].Open(t)
	keys := mintKeys(t, h, 1)
	const batch, batches = 1000, 100
	seen := make(map[[12]byte]bool, batch*batches)
	items := make([]token.Item, batch)
	for range batches {
		for i := range items {
			items[i] = token.Item{In: []byte{1}, Out: make([]byte, 0, 17), IV: items[i].IV}
		}
		if err := h.Sealer().Seal(t.Context(), keys, items); err != nil {
			t.Fatal(err)
		}
		for _, it := range items {
			iv := [12]byte(it.IV)
			if it.Err != nil || seen[iv] {
				t.Fatalf("%v; IV %x again", it.Err, iv)
			}
			seen[iv] = true
		}
	}
	// A caller cannot choose one.
	chosen := make([]byte, 12)
	items = []token.Item{{In: []byte{1}, Out: make([]byte, 0, 17), IV: chosen}}
	if err := h.Sealer().Seal(t.Context(), keys, items); err != nil || bytes.Equal(items[0].IV, make([]byte, 12)) {
		t.Errorf("%v; the caller chose the IV", err)
	}
}

// TestMemoryStaysFlat: no call, good or bad, leaves anything behind.
func TestMemoryStaysFlat(t *testing.T) {
	if testing.Short() {
		t.Skip("200,000 calls")
	}
	// Not parallel: it measures the process.
	world := hsmtest.New(t)
	h := world.Servers[0].Open(t)
	keys := mintKeys(t, h, 2)
	items := sealItems(t, h, keys, 100)
	for i := range items {
		if i%2 == 1 {
			items[i].In[0] ^= 1
		}
	}
	run := func(calls int) {
		for range calls / len(items) {
			for i := range items {
				items[i].Out = items[i].Out[:0]
			}
			if err := h.Opener().Open(t.Context(), keys, items); err != nil {
				t.Fatal(err)
			}
			if _, err := h.Sealer().ContentMAC(t.Context(), [][]byte{items[0].In}); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The heap settles in steps; a leak shows in every window. One of 32
	// bytes a call would be 1.6 MB in each.
	run(20_000)
	least := math.MaxInt
	for range 4 {
		before := resident(t)
		run(50_000)
		least = min(least, resident(t)-before)
	}
	if least > 1<<20 {
		t.Errorf("resident memory grew by %d bytes or more in each 50,000 calls", least)
	}
}

func resident(t *testing.T) int {
	t.Helper()
	n, err := residentBytes()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func residentBytes() (int, error) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	var size, rss int
	_, err = fmt.Sscan(string(b), &size, &rss)
	return rss * os.Getpagesize(), err
}
