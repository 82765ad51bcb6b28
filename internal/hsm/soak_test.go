package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"

	"github.com/miekg/pkcs11"
)

var soak = flag.Duration("soak", 0, "how long TestSoak goes on, and a million calls for TestMillionCalls (make soak)")

// TestSoak works under a rain of faults, hangs among them. No plaintext is
// wrong, no sound block is lost, none comes twice, every call returns in time,
// what was sealed opens elsewhere, and nothing grows.
func TestSoak(t *testing.T) {
	length := *soak
	if length == 0 {
		length = 4 * time.Second
		t.Parallel()
	}
	const callTimeout, deadline = 400 * time.Millisecond, 3 * time.Second
	h, f := openFaulty(t, func(c *hsm.Config) {
		workers(c, 2)
		c.CacheSize, c.CacheLifetime = 8, 20*time.Millisecond
		c.CallTimeout, c.StuckLimit, c.RenewAfter = callTimeout, 1<<30, 400
		*c = hsm.Tuned(*c, 4*time.Second, 5*time.Millisecond, 50*time.Millisecond, nil)
	}, hsm.RoleOpen, hsm.RoleSeal, hsm.RoleMint, hsm.RoleRotate)
	elsewhere := hsmtest.New(t).Servers[1].Open(t)
	keys := mintKeys(t, elsewhere, 12)
	items := sealItems(t, elsewhere, keys, 60)

	// SoftHSM itself leaks with every key that comes and goes.
	const raw = 100_000
	leak := 0
	if *soak > 0 {
		before := resident(t)
		if err := hsm.RawUnwraps(hsmtest.New(t).Servers[1].Config, keys[0].Wrapped, raw); err != nil {
			t.Fatal(err)
		}
		leak = max(resident(t)-before, 0) / raw
	}
	made := func() int { return int(f.succeeded(fnUnwrapKey)) + int(f.succeeded(fnGenerateKey)) }

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var batches, served, damaged, sealed, minted, rewrapped, faults, hangs atomic.Int64
	work := func(f func(r *rand.Rand) error) {
		r := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
		wg.Go(func() {
			for ctx.Err() == nil {
				start := time.Now()
				err := f(r)
				if took := time.Since(start); took > deadline+2*time.Second {
					t.Errorf("a call took %s", took)
				}
				batches.Add(1)
				switch {
				case err == nil:
					served.Add(1)
				case errors.Is(err, token.ErrUnavailable) || errors.Is(err, token.ErrBusy):
					time.Sleep(2 * time.Millisecond)
				default:
					t.Errorf("a call failed with %v", err)
				}
			}
		})
	}
	call := func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(context.Background(), deadline)
	}
	for range 4 {
		work(func(r *rand.Rand) error { // open
			from := r.IntN(len(items) - 20)
			part := slices.Clone(items[from : from+1+r.IntN(20)])
			bad := map[int]bool{}
			for i := range part {
				part[i].Out = make([]byte, 0, 200)
				if r.IntN(50) == 0 {
					bad[i] = true
					part[i].AAD = []byte("poison")
				}
			}
			c, cancel := call()
			defer cancel()
			if err := h.Opener().Open(c, keys, part); err != nil {
				return err
			}
			for i, it := range part {
				switch {
				case bad[i] && errors.Is(it.Err, token.ErrBadData) && len(it.Out) == 0:
					damaged.Add(1)
				case bad[i]:
					t.Errorf("a poisoned block: %v, %d bytes", it.Err, len(it.Out))
				case it.Err != nil || !bytes.Equal(it.Out, plaintext(from+i)):
					t.Errorf("a sound block: %v, %x", it.Err, it.Out)
				}
			}
			return nil
		})
	}
	work(func(r *rand.Rand) error { // seal, and open elsewhere
		own := make([]token.Item, 1+r.IntN(10))
		for i := range own {
			own[i] = token.Item{Key: r.IntN(len(keys)), AAD: aad(i), In: plaintext(i), Out: make([]byte, 0, 200)}
		}
		c, cancel := call()
		defer cancel()
		if err := h.Sealer().Seal(c, keys, own); err != nil {
			return err
		}
		ivs := map[string]bool{}
		for i := range own {
			if own[i].Err != nil {
				t.Errorf("a block was not sealed: %v", own[i].Err)
				return nil
			}
			ivs[string(own[i].IV)] = true
			own[i].In, own[i].Out = own[i].Out, make([]byte, 0, 200)
		}
		if len(ivs) != len(own) {
			t.Error("an IV came twice")
		}
		if err := elsewhere.Opener().Open(context.Background(), keys, own); err != nil {
			t.Errorf("elsewhere: %v", err)
			return nil
		}
		checkOpened(t, own)
		sealed.Add(int64(len(own)))
		return nil
	})
	work(func(r *rand.Rand) error { // mint
		c, cancel := call()
		defer cancel()
		wrapped, err := h.Minter().Mint(c, 1, 1+r.IntN(4))
		for i := range wrapped {
			if bytes.Equal(wrapped[i], make([]byte, 40)) || i > 0 && bytes.Equal(wrapped[i], wrapped[i-1]) {
				t.Errorf("minted %x", wrapped)
			}
		}
		minted.Add(int64(len(wrapped)))
		return err
	})

	work(func(r *rand.Rand) error { // rewrap: under the same KEK the same bytes come out
		part := slices.Clone(keys[:1+r.IntN(len(keys))])
		bad := -1
		if r.IntN(10) == 0 {
			bad = r.IntN(len(part))
			part[bad].Wrapped = bytes.Clone(part[bad].Wrapped)
			part[bad].Wrapped[r.IntN(40)] ^= 1
		}
		c, cancel := call()
		defer cancel()
		got, err := h.Rotator().Rewrap(c, part, 1)
		for i, g := range got {
			switch {
			case i == bad && errors.Is(g.Err, token.ErrBadData) && g.Wrapped == nil:
				damaged.Add(1)
			case i == bad || g.Err != nil || !bytes.Equal(g.Wrapped, part[i].Wrapped):
				t.Errorf("rewrapped key %d, %d is poisoned: %v, %x", i, bad, g.Err, g.Wrapped)
			}
		}
		rewrapped.Add(int64(len(got)))
		return err
	})

	codes := []uint{pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_OPERATION_ACTIVE,
		pkcs11.CKR_BUFFER_TOO_SMALL, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_USER_NOT_LOGGED_IN,
		pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_KEY_HANDLE_INVALID}
	places := []int{fnUnwrapKey, fnDecryptInit, fnDecrypt, fnDecrypt, fnDestroyObject, fnGenerateRandom, fnEncryptInit, fnEncrypt,
		fnGenerateKey, fnWrapKey, fnOpenSession, fnFindObjects, fnGetAttributeValue}
	wg.Go(func() {
		r := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
		for ctx.Err() == nil {
			fn := places[r.IntN(len(places))]
			switch n := r.IntN(40); {
			case n == 0:
				hangs.Add(1)
				f.hang(fn, 1)
				time.Sleep(2 * callTimeout)
			case n < 4:
				f.inject(fn, faultDelay, int32(r.IntN(50)), int32(r.IntN(20)), 3)
			default:
				// At most two: a third could hit both tries of one item, the
				// known vectors between them being computed by another worker.
				f.inject(fn, faultReturn, int32(codes[r.IntN(len(codes))]), int32(r.IntN(30)), int32(1+r.IntN(2)))
			}
			faults.Add(1)
			time.Sleep(time.Duration(20+r.IntN(60)) * time.Millisecond)
			f.heal(fn)
		}
	})

	start, before, madeBefore := time.Now(), 0, 0
	goroutines := runtime.NumGoroutine()
	for time.Since(start) < length {
		time.Sleep(min(time.Second, length))
		if before == 0 && time.Since(start) > length/4 {
			before, madeBefore = resident(t), made()
		}
	}
	after, keysMade := resident(t), made()-madeBefore
	stop()
	wg.Wait()
	for fn := range 68 {
		f.heal(fn)
	}
	for _, health := range []token.Health{h.Opener(), h.Sealer(), h.Minter(), h.Rotator()} {
		waitHealthy(t, health)
	}
	stuck := hsm.Counts(h, hsm.RoleOpen).Stuck + hsm.Counts(h, hsm.RoleSeal).Stuck + hsm.Counts(h, hsm.RoleMint).Stuck + hsm.Counts(h, hsm.RoleRotate).Stuck
	// A call that hung leaves its session behind, keys and all.
	for end := time.Now().Add(10 * time.Second); stuck == 0 && hsm.Counts(h, hsm.RoleOpen).Handles > 8 && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("%s: %d batches, %d served, %d poisoned blocks found, %d sealed, %d minted, %d rewrapped; %d faults, %d hangs, %.0f calls given up; resident %d kB, then %d kB after %d more keys (%d bytes each in SoftHSM alone); %d goroutines, then %d",
		length, batches.Load(), served.Load(), damaged.Load(), sealed.Load(), minted.Load(), rewrapped.Load(), faults.Load(), hangs.Load(), stuck,
		before/1024, after/1024, keysMade, leak, goroutines, runtime.NumGoroutine())
	if served.Load() < 20 || damaged.Load() == 0 || sealed.Load() == 0 || minted.Load() == 0 || rewrapped.Load() == 0 || faults.Load() < 5 {
		t.Error("too little was done")
	}
	if n := hsm.Counts(h, hsm.RoleOpen).Handles; n > 8 && stuck == 0 {
		t.Errorf("%d data keys live on the token, at most 8 wanted", n)
	}
	// Alone only: other tests grow the process, too. A call that hung leaves
	// its session behind, keys and all.
	if *soak > 0 {
		if allowed := 8<<20 + int(stuck)*256<<10 + keysMade*leak*5/4; after-before > allowed {
			t.Errorf("resident memory grew by %d kB, %d kB allowed", (after-before)/1024, allowed/1024)
		}
		if n := runtime.NumGoroutine(); n > goroutines {
			t.Errorf("%d goroutines, then %d", goroutines, n)
		}
	}
}

// TestMillionCalls: a million good and a million bad decryptions, and as many
// of every other call as fit beside them, leave nothing behind.
func TestMillionCalls(t *testing.T) {
	if *soak == 0 {
		t.Skip("make soak; TestMemoryStaysFlat is the short form")
	}
	h := hsmtest.New(t).Servers[0].Open(t)
	keys := mintKeys(t, h, 2)
	good := sealItems(t, h, keys, 1000)
	bad := slices.Clone(good)
	for i := range bad {
		bad[i].In = bytes.Clone(bad[i].In)
		bad[i].In[0] ^= 1
	}
	run := func(name string, items []token.Item, want error) {
		once := func() {
			for i := range items {
				items[i].Out = items[i].Out[:0]
			}
			if err := h.Opener().Open(t.Context(), keys, items); err != nil {
				t.Fatal(err)
			}
			for i := range items {
				if !errors.Is(items[i].Err, want) {
					t.Fatalf("item %d: %v", i, items[i].Err)
				}
			}
		}
		for range 100 {
			once() // the heap settles
		}
		runtime.GC()
		before, start := resident(t), time.Now()
		for range 1000 {
			once()
		}
		took := time.Since(start)
		runtime.GC()
		grown := resident(t) - before
		t.Logf("1,000,000 %s decryptions: %s, resident memory %+d kB", name, took.Round(time.Millisecond), grown/1024)
		if grown > 4<<20 { // 4 bytes a call
			t.Errorf("%s: resident memory grew by %d bytes", name, grown)
		}
	}
	run("good", good, nil)
	run("bad", bad, token.ErrBadData)
}
