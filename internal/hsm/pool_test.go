package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// TestStuckWorker: of two workers one hangs. The other serves on all the time,
// the caller of the one hears so, and the pair is complete again afterwards.
func TestStuckWorker(t *testing.T) {
	t.Parallel()
	keys, items := soundWork(t)
	h, f := openFaulty(t, func(c *hsm.Config) {
		workers(c, 2)
		c.CallTimeout, c.StuckLimit = patience, 3
	}, hsm.RoleOpen)
	op := opens(keys, items)
	if err := op(t, h); err != nil { // the keys are cached now
		t.Fatal(err)
	}
	both := func() {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); hsm.Working(h, hsm.RoleOpen) != 2; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the worker that hangs is not replaced")
			}
		}
	}
	for round := range 2 {
		both()
		f.hang(fnDecrypt, 1)
		hung := make(chan error, 1)
		own := slices.Clone(items)
		go func() {
			for i := range own {
				own[i].Out = make([]byte, 0, 200)
			}
			hung <- h.Opener().Open(context.Background(), keys, own)
		}()
		for f.calls(fnDecrypt) == 0 || *f.word(fnDecrypt, ctlCount) != 0 {
			time.Sleep(time.Millisecond)
		}
		n := 0
		for waiting := true; waiting; n++ {
			if err := op(t, h); err != nil {
				t.Fatalf("round %d: the other worker: %v", round, err)
			}
			select {
			case err := <-hung:
				if !errors.Is(err, token.ErrUnavailable) {
					t.Errorf("round %d: the caller of the call that hangs: %v", round, err)
				}
				waiting = false
			default:
			}
		}
		if n < 10 {
			t.Errorf("round %d: only %d batches served meanwhile", round, n)
		}
		f.heal(fnDecrypt)
	}
	over, end := context.WithCancel(t.Context())
	end()
	if err := h.Stuck(over); err != nil {
		t.Errorf("after 2 of 3: %v", err)
	}
	// Two at a time again.
	both()
	f.delay(fnDecryptInit, 60)
	batch := func() {
		if err := opens(keys, slices.Clone(items[:3]))(t, h); err != nil {
			t.Error(err)
		}
	}
	start := time.Now()
	for range 6 {
		batch()
	}
	alone := time.Since(start)
	start = time.Now()
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(batch)
	}
	wg.Wait()
	if took := time.Since(start); took > alone*8/10 {
		t.Errorf("6 batches of 3 calls of 60 ms took %s, one after another %s: there is only one worker", took, alone)
	}
	f.delay(fnDecryptInit, 0)
	if n := f.touched(); n != 0 {
		t.Errorf("a session that was given up was used %d times", n)
	}
	// The third is one too many.
	f.hang(fnDecrypt, 1)
	if err := op(t, h); !errors.Is(err, token.ErrUnavailable) {
		t.Error(err)
	}
	over, end = context.WithTimeout(t.Context(), 5*time.Second)
	defer end()
	if err := h.Stuck(over); !errors.Is(err, hsm.ErrStuck) {
		t.Errorf("after 3 of 3: %v", err)
	}
}

// TestWorkersShareKeys: many workers with a small cache of short life; no key
// is destroyed under a batch, and none is left.
func TestWorkersShareKeys(t *testing.T) {
	t.Parallel()
	const size = 4
	h, f := openFaulty(t, func(c *hsm.Config) {
		workers(c, 4)
		c.CacheSize, c.CacheLifetime = size, 2*time.Millisecond
	}, hsm.RoleOpen, hsm.RoleSeal, hsm.RoleMint)
	keys := mintKeys(t, h, 12)
	items := sealItems(t, h, keys, 60)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for round := range 25 {
				from := (g*7 + round*5) % 40
				part := slices.Clone(items[from : from+20])
				for i := range part {
					part[i].Out = make([]byte, 0, 200)
				}
				if err := h.Opener().Open(t.Context(), keys, part); err != nil {
					t.Errorf("%d.%d: %v", g, round, err)
					return
				}
				for i, it := range part {
					if it.Err != nil || !bytes.Equal(it.Out, plaintext(from+i)) {
						t.Errorf("%d.%d: item %d: %v", g, round, from+i, it.Err)
					}
				}
			}
		})
	}
	wg.Wait()
	end := time.Now().Add(5 * time.Second)
	for hsm.Counts(h, hsm.RoleOpen).Handles > 0 && time.Now().Before(end) {
		time.Sleep(20 * time.Millisecond)
	}
	c := hsm.Counts(h, hsm.RoleOpen)
	if c.Handles != 0 || c.Openings != 0 || c.Sessions != 0 || c.Damaged != 0 {
		t.Errorf("%+v", c)
	}
	if f.succeeded(fnUnwrapKey) < 100 {
		t.Errorf("only %d unwraps: the keys were never scarce", f.succeeded(fnUnwrapKey))
	}
}

// TestLyingModule: a handle or a length that cannot be is an error, never data.
func TestLyingModule(t *testing.T) {
	t.Parallel()
	keys, items := soundWork(t)
	h, f := openFaulty(t, func(c *hsm.Config) { c.CacheLifetime = time.Nanosecond }, hsm.RoleOpen)
	for _, c := range []struct {
		name string
		fn   int
		arg  int32
	}{{"handle 0", fnUnwrapKey, 0}, {"length beyond the room", fnDecrypt, 1 << 20}, {"length too short", fnDecrypt, 1}} {
		f.inject(c.fn, faultLie, c.arg, 0, 1)
		if err := opens(keys, slices.Clone(items))(t, h); err != nil {
			t.Errorf("%s once: %v", c.name, err)
		}
		f.inject(c.fn, faultLie, c.arg, 0, -1)
		own := slices.Clone(items)
		for i := range own {
			own[i].Out = make([]byte, 0, 200)
		}
		if err := h.Opener().Open(t.Context(), keys, own); !errors.Is(err, token.ErrUnavailable) {
			t.Errorf("%s always: %v", c.name, err)
		}
		f.heal(c.fn)
		waitHealthy(t, h.Opener())
	}
}

// TestMetrics: what is measured, by the names that alarms and dashboards use.
func TestMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	keys, items := soundWork(t)
	h, f := openFaulty(t, func(c *hsm.Config) { c.Registerer = reg }, hsm.RoleOpen)
	op := opens(keys, slices.Clone(items))
	if err := op(t, h); err != nil {
		t.Fatal(err)
	}
	f.fail(fnDecryptInit, pkcs11.CKR_SESSION_HANDLE_INVALID, 1)
	if err := op(t, h); err != nil {
		t.Fatal(err)
	}
	f.fail(fnDecryptInit, pkcs11.CKR_DEVICE_REMOVED, 1)
	if err := op(t, h); err == nil {
		t.Fatal("served by a removed device")
	}
	waitHealthy(t, h.Opener())
	bad := slices.Clone(items)
	for i := range bad {
		bad[i].Out = make([]byte, 0, 200)
	}
	bad[3].AAD, bad[5].IV = []byte("x"), nil
	if err := h.Opener().Open(t.Context(), keys, bad); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, fam := range families {
		for _, m := range fam.Metric {
			var labels []string
			for _, l := range m.Label {
				if l.GetName() != "token" {
					labels = append(labels, l.GetValue())
				} else if l.GetValue() != "server1-open" {
					t.Errorf("%s of token %s", fam.GetName(), l.GetValue())
				}
			}
			v := m.GetCounter().GetValue() + m.GetGauge().GetValue()
			if fam.GetType() == dto.MetricType_HISTOGRAM {
				v = float64(m.GetHistogram().GetSampleCount())
			}
			got[strings.Join(append([]string{fam.GetName()}, labels...), " ")] = v
		}
	}
	for name, want := range map[string]float64{
		"kluis_hsm_operations_total open":    float64(3 * len(items)),
		"kluis_hsm_failures_total open down": 1,
		"kluis_hsm_batch_seconds open":       3,
		"kluis_hsm_queue_length":             0,
		"kluis_hsm_stuck_workers":            0,
		"kluis_hsm_key_handles":              float64(len(keys)),
		"kluis_hsm_token_state up":           1,
		"kluis_hsm_token_state suspect":      0,
		"kluis_hsm_token_state down":         0,
		"kluis_hsm_token_state probing":      0,
		"kluis_hsm_damaged_items_total":      1, // the IV was not even a try
		"kluis_hsm_reopenings_total opened":  1,
		"kluis_hsm_sessions_replaced_total":  1,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (%v), want %v", name, v, ok, want)
		}
	}
	if got["kluis_hsm_canaries_total passed"] < 2 {
		t.Errorf("canaries: %v", got["kluis_hsm_canaries_total passed"])
	}
	// A second HSM may not count under the same names.
	conf := hsmtest.New(t).Servers[1].Config
	conf.Registerer = reg
	if h, err := hsm.New(conf); err == nil {
		_ = h.Close()
		t.Error("two HSMs on one registry")
	}
}

// TestConfigRefused: numbers that make no sense.
func TestConfigRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*hsm.Config){
		"negative workers": func(c *hsm.Config) { c.Tokens = map[hsm.Role][]hsm.Token{hsm.RoleOpen: {{Workers: -1}}} },
		"too many workers": func(c *hsm.Config) { c.Tokens = map[hsm.Role][]hsm.Token{hsm.RoleOpen: {{Workers: 65}}} },
		"call timeout":     func(c *hsm.Config) { c.CallTimeout = -1 },
		"stuck limit":      func(c *hsm.Config) { c.StuckLimit = -1 },
	} {
		c := hsmtest.New(t).Servers[0].Config
		change(&c)
		if h, err := hsm.New(c); err == nil {
			_ = h.Close()
			t.Errorf("%s: started", name)
		}
	}
}

// TestHungStart: a module that hangs while its token is opened for the first
// time keeps nobody waiting.
func TestHungStart(t *testing.T) {
	t.Parallel()
	keepInitialised(t)
	lib, f := newFaulty(t)
	c := hsmtest.New(t).Servers[0].Config
	c.Module = lib
	c.Tokens = map[hsm.Role][]hsm.Token{hsm.RoleOpen: c.Tokens[hsm.RoleOpen]}
	f.hang(fnLogin, 1)
	h, err := hsm.New(hsm.Tuned(c, 500*time.Millisecond, 0, 0, nil))
	if !errors.Is(err, hsm.ErrStuck) {
		t.Errorf("%v", err)
	}
	if err == nil {
		_ = h.Close()
	}
}
