package hsm_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"

	"github.com/miekg/pkcs11"
)

// renewals waits until the module was ended so many times more.
func renewals(t *testing.T, h *hsm.HSM, more int) {
	t.Helper()
	before, _ := hsm.Renewals(h)
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(time.Millisecond) {
		done, hindered := hsm.Renewals(h)
		if done >= before+more {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the module was ended %d times more, and could not be %d times", done-before, hindered)
		}
	}
}

// TestRenewal: all roles are at work while the module is ended again and again.
// Nobody is turned away, and no token is ever down.
func TestRenewal(t *testing.T) {
	t.Parallel()
	keys, items := soundWork(t)
	var mu sync.Mutex
	states := map[hsm.State]int{}
	h, f := openFaulty(t, func(c *hsm.Config) {
		workers(c, 2)
		c.RenewAfter, c.CacheLifetime = 300, 5*time.Millisecond
		*c = hsm.Tuned(*c, 0, 0, 0, func(s hsm.State) {
			mu.Lock()
			defer mu.Unlock()
			states[s]++
		})
	}, hsm.Roles()...)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	work := func(name string, f func() error) {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := f(); err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
			}
		})
	}
	for range 3 {
		own := slices.Clone(items)
		work("open", func() error { return opens(keys, own)(t, h) })
	}
	work("seal", func() error { return seals(keys, nil)(t, h) })
	work("mint", func() error { _, err := h.Minter().Mint(context.Background(), 1, 3); return err })
	work("rewrap", func() error {
		got, err := h.Rotator().Rewrap(context.Background(), keys, 1)
		for i, g := range got {
			if g.Err != nil || !bytes.Equal(g.Wrapped, keys[i].Wrapped) {
				t.Errorf("rewrapped: %v, %x", g.Err, g.Wrapped)
			}
		}
		return err
	})
	work("sign", func() error {
		_, err := h.TokenSigner().Signer().Sign(nil, make([]byte, 32), crypto.SHA256)
		return err
	})
	work("forget", func() error { return h.Opener().Forget(context.Background()) })
	work("check", func() error { return h.Sealer().Check(context.Background()) })
	initialised := f.succeeded(fnInitialize)
	renewals(t, h, 10)
	stop()
	wg.Wait()
	if n := f.succeeded(fnInitialize) - initialised; n < 10 {
		t.Errorf("the module was initialised %d times", n)
	}
	if _, hindered := hsm.Renewals(h); hindered != 0 {
		t.Errorf("the module could not be ended %d times", hindered)
	}
	if n, ended := f.succeeded(fnInitialize), f.succeeded(fnFinalize); n-ended != 1 {
		t.Errorf("the module was initialised %d times and ended %d times", n, ended)
	}
	mu.Lock()
	defer mu.Unlock()
	if states[hsm.StateDown]+states[hsm.StateProbing] != 0 {
		t.Errorf("states: %v", states)
	}
	if n := hsm.Counts(h, hsm.RoleOpen).Openings; n != 0 {
		t.Errorf("%v renewals count as failures that were recovered from", n)
	}
}

// TestRenewalOfPair: with two tokens of a role, too, nobody is turned away.
func TestRenewalOfPair(t *testing.T) {
	t.Parallel()
	h, _, _, one, two := openPair(t, func(c *hsm.Config) { c.RenewAfter, c.CacheLifetime = 300, time.Nanosecond })
	stop := load(t, h, 8)
	renewals(t, h, 5)
	calls, longest := stop()
	t.Logf("%d requests, the longest took %s", calls, longest)
	if n := hsm.Load(h, one) + hsm.Load(h, two); n != 0 {
		t.Errorf("nobody works, and the load is %d", n)
	}
}

// TestRenewalFails: the token does not open after the module ended. That is
// what it is at any other time: callers are told, and it comes back by itself.
func TestRenewalFails(t *testing.T) {
	t.Parallel()
	keys, items := soundWork(t)
	for _, fn := range []int{fnInitialize, fnGetSlotList, fnOpenSession, fnFindObjects, fnUnwrapKey} {
		h, f := openFaulty(t, func(c *hsm.Config) {
			c.RenewAfter, c.CacheLifetime = 50, time.Nanosecond
			*c = hsm.Tuned(*c, 0, 5*time.Millisecond, 20*time.Millisecond, nil)
		}, hsm.RoleOpen)
		before, _ := hsm.Renewals(h)
		var err error
		for done := before; done == before && err == nil; done, _ = hsm.Renewals(h) {
			if f.calls(fnFinalize) == 0 {
				err = opens(keys, items)(t, h)
			}
			if f.calls(fnFinalize) > 0 || err != nil {
				break
			}
			if f.calls(fnUnwrapKey) > 40 { // soon
				f.fail(fn, pkcs11.CKR_DEVICE_REMOVED, -1)
			}
		}
		for end := time.Now().Add(20 * time.Second); !errors.Is(err, token.ErrUnavailable); time.Sleep(time.Millisecond) {
			if err != nil || time.Now().After(end) {
				t.Fatalf("function %d fails, and callers hear %v", fn, err)
			}
			err = opens(keys, items)(t, h)
		}
		f.heal(fn)
		waitHealthy(t, h.Opener())
		if err := opens(keys, items)(t, h); err != nil {
			t.Errorf("function %d failed, and afterwards: %v", fn, err)
		}
	}
}

// TestRenewalHindered: a call hangs in the module, in a batch or as it is closed
// or ended. The others are served on, and the module is not ended under it.
func TestRenewalHindered(t *testing.T) {
	t.Parallel()
	keys, items := soundWork(t)
	for _, fn := range []int{fnDecrypt, fnCloseSession} {
		t.Run(strconv.Itoa(fn), func(t *testing.T) {
			t.Parallel()
			items := slices.Clone(items)
			h, f := openFaulty(t, func(c *hsm.Config) {
				workers(c, 2)
				c.CallTimeout, c.StuckLimit = patience, 100
				c.RenewAfter, c.CacheLifetime = 50, time.Nanosecond
				*c = hsm.Tuned(*c, 2*patience, 5*time.Millisecond, 20*time.Millisecond, nil)
			}, hsm.RoleOpen)
			f.hang(fn, 1)
			for end := time.Now().Add(30 * time.Second); ; {
				err := opens(keys, items)(t, h)
				if _, hindered := hsm.Renewals(h); hindered > 0 && err == nil {
					break
				}
				if err != nil && !errors.Is(err, token.ErrUnavailable) || time.Now().After(end) {
					t.Fatalf("callers hear %v", err)
				}
			}
			ended := f.calls(fnFinalize)
			if n := hsm.Counts(h, hsm.RoleOpen).Stuck; n == 0 {
				t.Error("nothing counts as stuck")
			}
			// More than another renewal's worth: none is tried, and nobody waits.
			for range 40 {
				if err := opens(keys, items)(t, h); err != nil {
					t.Fatal(err)
				}
			}
			if n := f.calls(fnFinalize); n != ended {
				t.Error("the module was ended under a call that hangs")
			}
			f.heal(fn)
		})
	}
}

// TestRenewalHangs: the module does not return from being ended. Then no token
// opens again: callers are told, and Stuck that only a new process helps.
func TestRenewalHangs(t *testing.T) {
	t.Parallel()
	keys, items := soundWork(t)
	h, f := openFaulty(t, func(c *hsm.Config) {
		c.CallTimeout, c.StuckLimit = 300*time.Millisecond, 2
		c.RenewAfter, c.CacheLifetime = 50, time.Nanosecond
		*c = hsm.Tuned(*c, 500*time.Millisecond, 5*time.Millisecond, 20*time.Millisecond, nil)
	}, hsm.RoleOpen)
	f.hang(fnFinalize, 1)
	for end := time.Now().Add(30 * time.Second); ; {
		err := opens(keys, items)(t, h)
		if errors.Is(err, token.ErrUnavailable) {
			break
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("callers hear %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := h.Stuck(ctx); !errors.Is(err, hsm.ErrStuck) {
		t.Errorf("nobody noticed: %v", err)
	}
	if done, _ := hsm.Renewals(h); done != 0 {
		t.Errorf("the module was ended %d times", done)
	}
	f.heal(fnFinalize)
}

// TestRenewalClose closes in the midst of renewals.
func TestRenewalClose(t *testing.T) {
	t.Parallel()
	keys, items := soundWork(t)
	world := hsmtest.New(t)
	keepInitialised(t)
	for range 10 {
		lib, _ := newFaulty(t)
		cfg := world.Servers[0].Config
		cfg.Module, cfg.RenewAfter, cfg.CacheLifetime = lib, 20, time.Nanosecond
		h, err := hsm.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 3 {
			own := slices.Clone(items)
			wg.Go(func() {
				for {
					if err := opens(keys, own)(t, h); errors.Is(err, token.ErrUnavailable) {
						return
					} else if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		renewals(t, h, 1)
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
}

// grow opens blocks, with each key unwrapped anew, and prints by how many bytes
// the process grew, and how often the module was ended.
func (e errand) grow(h *hsm.HSM) error {
	open := func() error {
		for i := range e.Items {
			e.Items[i].Out = make([]byte, 0, len(e.Items[i].In))
		}
		return h.Opener().Open(context.Background(), e.Keys, e.Items)
	}
	used := func() (int, error) {
		debug.FreeOSMemory()
		return residentBytes()
	}
	for range 300 {
		if err := open(); err != nil {
			return err
		}
	}
	before, err := used()
	if err != nil {
		return err
	}
	for n := 0; n < e.Renew; n += len(e.Keys) {
		if err := open(); err != nil {
			return err
		}
	}
	after, err := used()
	done, _ := hsm.Renewals(h)
	fmt.Println(after-before, done)
	return err
}

// TestRenewalFreesMemory: what SoftHSM keeps of destroyed keys grows with their
// number, and does not where the module is ended now and then. In processes
// with a SoftHSM to themselves.
func TestRenewalFreesMemory(t *testing.T) {
	t.Parallel()
	keys, items := soundWork(t)
	items = items[:len(keys)]
	world := hsmtest.New(t)
	dir := t.TempDir()
	copyTokens(t, filepath.Join(dir, "tokens"), filepath.Join(world.Dir, "tokens"))
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\n", dir), 0o600); err != nil {
		t.Fatal(err)
	}
	lib, _ := newFaulty(t) // for its control file only
	const unwraps = 60_000
	grown := func(after int) (bytes, renewed int) {
		e := errand{Module: lib, Probes: world.ProbeKeyFile, Role: hsm.RoleOpen, Token: world.Servers[0].Config.Tokens[hsm.RoleOpen][0],
			Keys: keys, Items: items, Crash: -1, Hang: -1, Renew: unwraps, After: after, Direct: world.Module}
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "errand.json")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), errandVariable+"="+file, "SOFTHSM2_CONF="+conf)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(strings.TrimSpace(string(out)), &bytes, &renewed); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		return bytes, renewed
	}
	never, n := grown(0)
	if n != 0 {
		t.Errorf("%d renewals although they are off", n)
	}
	often, n := grown(5000)
	t.Logf("%d keys unwrapped: %d bytes more, and %d bytes with %d renewals", unwraps, never, often, n)
	if n < unwraps/5000/2 {
		t.Errorf("%d renewals", n)
	}
	if never < 100*unwraps {
		t.Skipf("this module keeps %d bytes of a key: nothing to see", never/unwraps)
	}
	if never-often < 100*unwraps { // the race detector's own memory grows, too
		t.Errorf("the process grew by %d bytes with renewals, %d without", often, never)
	}
}
