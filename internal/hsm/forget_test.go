package hsm_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"

	"github.com/miekg/pkcs11"
)

// anew checks that every key of the work is unwrapped anew: nothing that was
// unwrapped before is used.
func anew(t *testing.T, h *hsm.HSM, f *faulty, op faultOp, keys int) {
	t.Helper()
	before := f.succeeded(fnUnwrapKey)
	if err := op(t, h); err != nil {
		t.Fatal(err)
	}
	if n := int(f.succeeded(fnUnwrapKey) - before); n != keys {
		t.Errorf("%d of %d keys were unwrapped anew", n, keys)
	}
}

func forget(t *testing.T, h *hsm.HSM) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := h.Opener().Forget(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestForget destroys what no batch uses at once, and of what one uses leaves
// nothing behind.
func TestForget(t *testing.T) {
	t.Parallel()
	keys, items := soundWork(t)
	h, f := openFaulty(t, nil, hsm.RoleOpen)
	op := opens(keys, items)
	anew(t, h, f, op, len(keys))
	anew(t, h, f, op, 0)
	gone := f.succeeded(fnDestroyObject)
	forget(t, h)
	if n := f.succeeded(fnDestroyObject) - gone; n != int32(len(keys)) || hsm.Counts(h, hsm.RoleOpen).Handles != 0 {
		t.Errorf("%d of %d keys were destroyed, %d live", n, len(keys), hsm.Counts(h, hsm.RoleOpen).Handles)
	}
	anew(t, h, f, op, len(keys))
	forget(t, h)
	forget(t, h)

	// A batch that came before, and is done after it, keeps nothing.
	label := h.Opener().Report()[0].Label
	for i := range items {
		items[i].Out = make([]byte, 0, 100)
	}
	if err := hsm.OpenLate(t.Context(), h, label, 1, keys, items); err != nil {
		t.Fatal(err)
	}
	checkOpened(t, items)
	if n := hsm.Counts(h, hsm.RoleOpen).Handles; n != 0 {
		t.Errorf("a batch from before left %d keys", n)
	}
	anew(t, h, f, op, len(keys))
	// It may use what came later, and does not take it away.
	for i := range items {
		items[i].Out = make([]byte, 0, 100)
	}
	if err := hsm.OpenLate(t.Context(), h, label, 1, keys, items); err != nil {
		t.Fatal(err)
	}
	anew(t, h, f, op, 0)
}

// TestForgetUnderWay: batches are at work on every key as it is called.
func TestForgetUnderWay(t *testing.T) {
	t.Parallel()
	keys, items := soundWork(t)
	h, f := openFaulty(t, func(c *hsm.Config) { workers(c, 3) }, hsm.RoleOpen)
	op := opens(keys, items)
	anew(t, h, f, op, len(keys))
	f.delay(fnDecrypt, 60) // a batch takes 540 ms
	var busy sync.WaitGroup
	for range 6 { // three run, three wait
		busy.Go(func() {
			if err := opens(keys, slices.Clone(items))(t, h); err != nil {
				t.Error(err)
			}
		})
	}
	label := h.Opener().Report()[0].Label
	for end := time.Now().Add(10 * time.Second); hsm.Load(h, label) < int64(6*len(items)); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("they do not all come")
		}
	}
	forget(t, h)
	busy.Wait()
	if n := hsm.Counts(h, hsm.RoleOpen).Handles; n != 0 {
		t.Errorf("%d keys live on after the batches that used them", n)
	}
	f.delay(fnDecrypt, 0)
	anew(t, h, f, op, len(keys))
}

// TestForgetFullQueue: it is never turned away for want of room.
func TestForgetFullQueue(t *testing.T) {
	t.Parallel()
	keys, items := soundWork(t)
	h, f := openFaulty(t, nil, hsm.RoleOpen)
	op := opens(keys, items)
	anew(t, h, f, op, len(keys))
	label := h.Opener().Report()[0].Label
	free := hsm.Occupy(h, label)
	if err := op(t, h); !errors.Is(err, token.ErrBusy) {
		t.Fatalf("the queue is not full: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := h.Opener().Forget(ctx); !errors.Is(err, token.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it cannot be done yet: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- h.Opener().Forget(t.Context()) }()
	time.Sleep(20 * time.Millisecond)
	free()
	if err := <-done; err != nil {
		t.Error(err)
	}
	anew(t, h, f, op, len(keys))
}

// TestForgetDown: a token that is down, or is being opened, has nothing to
// forget, and says so at once; what it held is not used when it is back.
func TestForgetDown(t *testing.T) {
	t.Parallel()
	keys, items := soundWork(t)
	h, f := openFaulty(t, func(c *hsm.Config) {
		*c = hsm.Tuned(*c, 4*time.Second, 20*time.Millisecond, 50*time.Millisecond, nil)
	}, hsm.RoleOpen)
	op := opens(keys, items)
	anew(t, h, f, op, len(keys))
	putBack := f.remove(pkcs11.CKR_DEVICE_REMOVED)
	if err := op(t, h); !errors.Is(err, token.ErrUnavailable) {
		t.Fatal(err)
	}
	start := time.Now()
	forget(t, h)
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %s", took)
	}
	if n := hsm.Counts(h, hsm.RoleOpen).Handles; n != 0 {
		t.Errorf("%d keys live on a connection that is gone", n)
	}
	putBack()
	waitHealthy(t, h.Opener())
	anew(t, h, f, op, len(keys))

	// While it is being opened.
	f.delay(fnFindObjectsInit, 300)
	f.fail(fnDecryptInit, pkcs11.CKR_KEY_HANDLE_INVALID, 1)
	done := make(chan error, 1)
	go func() { done <- op(t, h) }()
	for end := time.Now().Add(10 * time.Second); h.Opener().Report()[0].State == "up" && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	forget(t, h)
	f.delay(fnFindObjectsInit, 0)
	if err := <-done; err != nil {
		t.Error(err)
	}
	anew(t, h, f, op, len(keys)) // what that batch unwrapped was before, or is of another connection
}

// TestForgetHangs: a call hangs, with the holder session or without. It waits
// until what hangs is given up, or says that it could not; once it succeeded no
// old key is used.
func TestForgetHangs(t *testing.T) {
	t.Parallel()
	keys, items := soundWork(t)
	for name, fn := range map[string]int{"at work": fnDecrypt, "as the holder": fnUnwrapKey, "destroying": fnDestroyObject} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, f := openFaulty(t, func(c *hsm.Config) {
				c.CallTimeout, c.StuckLimit = patience, 100
				*c = hsm.Tuned(*c, 4*time.Second, 20*time.Millisecond, 50*time.Millisecond, nil)
			}, hsm.RoleOpen)
			op := opens(keys, slices.Clone(items))
			anew(t, h, f, op, len(keys))
			done := make(chan error, 1)
			f.hang(fn, 1)
			switch fn {
			case fnDecrypt:
				go func() { done <- op(t, h) }()
			case fnUnwrapKey: // by a batch with keys that are not known yet
				other := slices.Clone(keys)
				for i := range other {
					other[i].Wrapped = slices.Clone(other[i].Wrapped)
					other[i].Wrapped[0] ^= 1
				}
				own := slices.Clone(items)
				go func() {
					for i := range own {
						own[i].Out = make([]byte, 0, 100)
					}
					done <- h.Opener().Open(context.Background(), other, own)
				}()
			default: // by Forget itself
				go func() { done <- h.Opener().Forget(context.Background()) }()
			}
			for end := time.Now().Add(10 * time.Second); f.hanging() == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if err := h.Opener().Forget(ctx); err == nil {
				t.Error("done, while a call hangs that may hold everything")
			}
			forget(t, h)
			if hsm.Counts(h, hsm.RoleOpen).Stuck != 1 {
				t.Error("done before the call was given up")
			}
			<-done
			waitHealthy(t, h.Opener())
			anew(t, h, f, op, len(keys))
			f.heal(fn)
			time.Sleep(50 * time.Millisecond) // the call comes back
			if n := f.touched(); n != 0 {
				t.Errorf("a session that was given up was used %d times", n)
			}
			anew(t, h, f, op, 0)
		})
	}
}

// TestForgetAll: of two tokens each forgets; where one cannot, the other does
// all the same, and that is said.
func TestForgetAll(t *testing.T) {
	t.Parallel()
	h, f, cfg, one, two := openPair(t, nil)
	keys, items := soundWork(t)
	op := opens(keys, items)
	both := func() {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); hsm.HandlesOf(h, one) == 0 || hsm.HandlesOf(h, two) == 0; {
			if err := op(t, h); err != nil {
				t.Fatal(err)
			}
			if time.Now().After(end) {
				t.Fatal("one of them gets no work")
			}
		}
	}
	both()
	forget(t, h)
	if a, b := hsm.HandlesOf(h, one), hsm.HandlesOf(h, two); a != 0 || b != 0 {
		t.Errorf("%d and %d keys live on", a, b)
	}
	both()
	f.only(t, cfg, one)
	f.hang(fnDestroyObject, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := h.Opener().Forget(ctx); !errors.Is(err, token.ErrUnavailable) {
		t.Errorf("one hangs: %v", err)
	}
	if n := hsm.HandlesOf(h, two); n != 0 {
		t.Errorf("%d keys live on on the other", n)
	}
	f.heal(fnDestroyObject)
	forget(t, h)
	if a, b := hsm.HandlesOf(h, one), hsm.HandlesOf(h, two); a != 0 || b != 0 {
		t.Errorf("%d and %d keys live on", a, b)
	}
}

// TestForgetUnderFire: it is called all the time, by several, while batches run
// on two tokens with small caches and connections and sessions are lost. No
// batch is served wrongly, and what is left at the end is forgotten, too.
func TestForgetUnderFire(t *testing.T) {
	t.Parallel()
	h, f, _, one, two := openPair(t, func(c *hsm.Config) {
		workers(c, 2)
		c.CacheSize, c.CacheLifetime = 2, 3*time.Millisecond
	})
	// A fault may meet either token as it is opened anew, and then both are down.
	stop := loadThat(t, h, 6, func(err error) bool { return errors.Is(err, token.ErrUnavailable) })
	over := time.Now().Add(2 * time.Second)
	var fire sync.WaitGroup
	for range 2 {
		fire.Go(func() {
			for time.Now().Before(over) {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				if err := h.Opener().Forget(ctx); err != nil {
					t.Errorf("forgetting: %v", err)
				}
				cancel()
				time.Sleep(3 * time.Millisecond)
			}
		})
	}
	for i := 0; time.Now().Before(over); i++ {
		switch i % 3 {
		case 0:
			f.fail(fnDecryptInit, pkcs11.CKR_SESSION_HANDLE_INVALID, 1)
		case 1:
			f.fail(fnUnwrapKey, pkcs11.CKR_SESSION_HANDLE_INVALID, 1)
		case 2:
			f.fail(fnDestroyObject, pkcs11.CKR_GENERAL_ERROR, 1)
		}
		time.Sleep(40 * time.Millisecond)
	}
	fire.Wait()
	for _, fn := range []int{fnDecryptInit, fnUnwrapKey, fnDestroyObject} {
		f.heal(fn)
	}
	stop()
	forget(t, h)
	if a, b := hsm.HandlesOf(h, one), hsm.HandlesOf(h, two); a != 0 || b != 0 {
		t.Errorf("%d and %d keys live on", a, b)
	}
}

// TestForgetClosing: there is nothing to forget once nobody is served any more,
// however long the last batches take.
func TestForgetClosing(t *testing.T) {
	t.Parallel()
	keys, items := soundWork(t)
	h, f := openFaulty(t, nil, hsm.RoleOpen)
	op := opens(keys, items)
	anew(t, h, f, op, len(keys))
	f.delay(fnDecrypt, 200)
	done := make(chan error, 2)
	go func() { done <- opens(keys, slices.Clone(items))(t, h) }()
	label := h.Opener().Report()[0].Label
	for end := time.Now().Add(10 * time.Second); hsm.Load(h, label) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the batch does not come")
		}
	}
	go func() { done <- h.Close() }()
	closing := false
	for end := time.Now().Add(10 * time.Second); !closing && time.Now().Before(end); time.Sleep(time.Millisecond) {
		closing = errors.Is(h.Opener().Check(t.Context()), token.ErrUnavailable)
	}
	start := time.Now()
	forget(t, h)
	if took := time.Since(start); took > 500*time.Millisecond {
		t.Errorf("it took %s", took)
	}
	select {
	case <-done:
		t.Error("the batch or the closing ended before: nothing was shown")
	default:
	}
	for range 2 {
		<-done
	}
}
