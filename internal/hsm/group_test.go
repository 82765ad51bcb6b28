package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"

	"github.com/miekg/pkcs11"
)

// openPair serves open from the tokens of both servers, which hold the same
// keys, through a module with faults.
func openPair(t *testing.T, change func(*hsm.Config)) (h *hsm.HSM, f *faulty, cfg hsm.Config, one, two string) {
	t.Helper()
	world := hsmtest.New(t)
	h, f = openFaulty(t, func(c *hsm.Config) {
		c.Tokens[hsm.RoleOpen] = append(c.Tokens[hsm.RoleOpen], world.Servers[1].Config.Tokens[hsm.RoleOpen]...)
		*c = hsm.Tuned(*c, 4*time.Second, 20*time.Millisecond, 100*time.Millisecond, nil)
		if change != nil {
			change(c)
		}
		cfg = *c
	}, hsm.RoleOpen)
	labels := hsm.Labels(cfg, hsm.RoleOpen)
	return h, f, cfg, labels[0], labels[1]
}

// load opens the same sound blocks from many callers until it is stopped, and
// says how often, and how long the longest call took. Nothing may fail.
func load(t *testing.T, h *hsm.HSM, callers int) (stop func() (calls int64, longest time.Duration)) {
	t.Helper()
	return loadThat(t, h, callers, func(error) bool { return false })
}

// loadThat is load where some failures are right.
func loadThat(t *testing.T, h *hsm.HSM, callers int, right func(error) bool) (stop func() (calls int64, longest time.Duration)) {
	t.Helper()
	keys, items := soundWork(t)
	var n, longest atomic.Int64
	done := make(chan struct{})
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			own := slices.Clone(items)
			for {
				select {
				case <-done:
					return
				default:
				}
				for i := range own {
					own[i].Out, own[i].Err = make([]byte, 0, 100), errors.New("not done")
				}
				start := time.Now()
				err := h.Opener().Open(context.Background(), keys, own)
				if err != nil && right(err) {
					time.Sleep(time.Millisecond)
					continue
				}
				if err != nil {
					t.Errorf("a request failed: %v", err)
					return
				}
				took := int64(time.Since(start))
				for l := longest.Load(); took > l && !longest.CompareAndSwap(l, took); l = longest.Load() {
				}
				for i, it := range own {
					if it.Err != nil || !bytes.Equal(it.Out, plaintext(i)) {
						t.Errorf("item %d: %v: a sound block was not opened, or wrongly", i, it.Err)
						return
					}
				}
				n.Add(1)
			}
		})
	}
	return func() (int64, time.Duration) {
		close(done)
		all.Wait()
		return n.Load(), time.Duration(longest.Load())
	}
}

// TestGroupSpreads: two tokens of equal speed share the work; one that slows
// down gets little, and more again when it is well.
func TestGroupSpreads(t *testing.T) {
	t.Parallel()
	h, f, cfg, one, two := openPair(t, nil)
	share := func(what string) float64 {
		a, b := hsm.Served(h, one, "open"), hsm.Served(h, two, "open")
		stop := load(t, h, 6)
		time.Sleep(time.Second)
		calls, _ := stop()
		a, b = hsm.Served(h, one, "open")-a, hsm.Served(h, two, "open")-b
		if a+b < uint64(calls) || calls < 20 {
			t.Errorf("%s: %d calls, %d and %d batches", what, calls, a, b)
		}
		return float64(b) / float64(a+b)
	}
	if s := share("equal"); s < 0.3 || s > 0.7 {
		t.Errorf("of two tokens of equal speed one got %.2f of the batches", s)
	}
	f.only(t, cfg, two)
	f.delay(fnDecrypt, 5)
	if s := share("slow"); s > 0.25 || s == 0 {
		t.Errorf("the slow one got %.2f of the batches", s)
	}
	f.heal(fnDecrypt)
	share("on its way back")
	if s := share("well again"); s < 0.3 {
		t.Errorf("the one that was slow got %.2f of the batches", s)
	}
	if n := hsm.Load(h, one) + hsm.Load(h, two); n != 0 {
		t.Errorf("nobody works, and the load is %d", n)
	}
}

// TestGroupChooses holds the lot to what it should be.
func TestGroupChooses(t *testing.T) {
	t.Parallel()
	h, f, cfg, one, two := openPair(t, nil)
	for _, c := range []struct {
		one, two time.Duration // of an operation
		least    float64       // share of the first
		most     float64
	}{
		{10 * time.Millisecond, time.Millisecond, 0.01, 0.022}, // 1/65: it must get a chance to show that it is well
		{time.Millisecond, 2 * time.Millisecond, 0.85, 0.93},   // 8/9
		{time.Millisecond, time.Millisecond, 0.45, 0.55},
	} {
		hsm.SetPace(h, one, c.one)
		hsm.SetPace(h, two, c.two)
		got := hsm.Chosen(h, hsm.RoleOpen, 10, 10_000)
		if s := float64(got[one]) / 10_000; s < c.least || s > c.most {
			t.Errorf("%v and %v: the first was chosen %v times of 10000", c.one, c.two, got[one])
		}
	}
	// A call that hangs is noticed long before it is given up.
	f.only(t, cfg, one)
	f.hang(fnDecrypt, 1)
	stop := load(t, h, 2)
	for end := time.Now().Add(10 * time.Second); f.hanging() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not hang")
		}
	}
	time.Sleep(200 * time.Millisecond)
	if got := hsm.Chosen(h, hsm.RoleOpen, 1, 1000); got[one] > 10 {
		t.Errorf("one hangs, and is chosen %d times of 1000", got[one])
	}
	f.heal(fnDecrypt)
	stop()
}

// TestGroupRemoved: under load one of two tokens is taken away and put back,
// again and again. No request fails, and it serves again.
func TestGroupRemoved(t *testing.T) {
	t.Parallel()
	h, f, cfg, one, two := openPair(t, nil)
	stop := load(t, h, 8)
	for i, rv := range []uint{pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_GENERAL_ERROR} {
		away, stays := one, two
		if i%2 == 1 {
			away, stays = two, one
		}
		f.only(t, cfg, away)
		before := hsm.Served(h, stays, "open")
		if err := hsm.Reopened(h, away, func() {
			putBack := f.remove(rv)
			time.Sleep(300 * time.Millisecond)
			if err := h.Opener().Check(t.Context()); err != nil {
				t.Errorf("one of two is away, and the role is unwell: %v", err)
			}
			if r := h.Opener().Report(); len(r) != 2 || r[0].State == r[1].State {
				t.Errorf("%#x: %+v", rv, r)
			}
			putBack()
		}); err != nil {
			t.Fatal(err)
		}
		if hsm.Served(h, stays, "open") == before {
			t.Errorf("%#x: the other token did nothing", rv)
		}
		before = hsm.Served(h, away, "open")
		for end := time.Now().Add(10 * time.Second); hsm.Served(h, away, "open") == before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%#x: the token that was put back gets no work", rv)
			}
		}
	}
	calls, longest := stop()
	t.Logf("%d requests, the longest took %s", calls, longest)
	if hsm.Failovers(h, one)+hsm.Failovers(h, two) == 0 {
		t.Error("nothing failed over: the test shows nothing")
	}
}

// TestGroupHangs: one of two tokens hangs, in its work or as it holds the
// holder session. Whoever waits for it is served by the other.
func TestGroupHangs(t *testing.T) {
	t.Parallel()
	h, f, cfg, one, two := openPair(t, func(c *hsm.Config) {
		c.CallTimeout, c.StuckLimit = patience, 100
		c.CacheLifetime = time.Nanosecond // so that each batch unwraps
	})
	stop := load(t, h, 8)
	for i, fn := range []int{fnDecrypt, fnUnwrapKey, fnDecryptInit, fnDestroyObject} {
		away := []string{one, two}[i%2]
		f.only(t, cfg, away)
		before := hsm.CountsOf(h, away).Stuck
		f.hang(fn, 1)
		for end := time.Now().Add(20 * time.Second); hsm.CountsOf(h, away).Stuck == before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("function %d: nothing was given up", fn)
			}
		}
		served := hsm.Served(h, away, "open")
		for end := time.Now().Add(20 * time.Second); hsm.Served(h, away, "open") == served; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("function %d: the token does nothing any more", fn)
			}
		}
		f.heal(fn)
		time.Sleep(patience / 2) // or who was sent on to the other would find that one hanging
	}
	calls, longest := stop()
	t.Logf("%d requests, the longest took %s", calls, longest)
	if longest > 5*patience {
		t.Errorf("a request took %s", longest)
	}
	if n := hsm.Load(h, one) + hsm.Load(h, two); n != 0 {
		t.Errorf("nobody works, and the load is %d", n)
	}
}

// TestGroupFull: a queue that is full sends the batch on, and only when all
// are is the caller told so.
func TestGroupFull(t *testing.T) {
	t.Parallel()
	h, _, _, one, two := openPair(t, nil)
	keys, items := soundWork(t)
	open := func() error {
		for i := range items {
			items[i].Out = make([]byte, 0, 100)
		}
		return h.Opener().Open(t.Context(), keys, items)
	}
	free := hsm.Occupy(h, one)
	for range 20 {
		if err := open(); err != nil {
			t.Error(err)
		}
	}
	freeToo := hsm.Occupy(h, two)
	if err := open(); !errors.Is(err, token.ErrBusy) {
		t.Errorf("both are full: %v", err)
	}
	free()
	freeToo()
	for end := time.Now().Add(10 * time.Second); open() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it stays full")
		}
	}
}

// TestGroupVisits: which answers send a batch on, and how often a token is
// asked.
func TestGroupVisits(t *testing.T) {
	t.Parallel()
	h, _, _, one, two := openPair(t, nil)
	down := fmt.Errorf("%w: down", token.ErrUnavailable)
	for name, c := range map[string]struct {
		answers []error
		visits  int
		want    error
	}{
		"served":             {[]error{nil}, 1, nil},
		"bad data":           {[]error{token.ErrBadData}, 1, token.ErrBadData},
		"unknown epoch":      {[]error{token.ErrUnknownEpoch}, 1, token.ErrUnknownEpoch},
		"down":               {[]error{down, nil}, 2, nil},
		"busy":               {[]error{token.ErrBusy, nil}, 2, nil},
		"both down":          {[]error{down, down}, 2, token.ErrUnavailable},
		"down and busy":      {[]error{down, token.ErrBusy}, 2, token.ErrBusy},
		"down, then bad":     {[]error{down, token.ErrBadData}, 2, token.ErrBadData},
		"reopening":          {[]error{hsm.ErrReopening(), nil}, 2, nil},
		"reopening for long": {[]error{hsm.ErrReopening(), hsm.ErrReopening(), hsm.ErrReopening(), hsm.ErrReopening()}, 4, token.ErrUnavailable},
	} {
		i := 0
		visited, err := hsm.Visit(t.Context(), h, hsm.RoleOpen, func(string) error { i++; return c.answers[i-1] })
		if len(visited) != c.visits || !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, %v", name, visited, err)
		}
		if c.visits == 2 && name != "reopening" && visited[0] == visited[1] {
			t.Errorf("%s: %s was asked twice", name, visited[0])
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: an error of two lines: %q", name, err)
		}
	}
	// Not beyond the caller's time.
	ctx, cancel := context.WithCancel(t.Context())
	visited, err := hsm.Visit(ctx, h, hsm.RoleOpen, func(string) error { cancel(); return down })
	if len(visited) != 1 || !errors.Is(err, token.ErrUnavailable) {
		t.Errorf("the caller left: %v, %v", visited, err)
	}
	if hsm.Failovers(h, one)+hsm.Failovers(h, two) == 0 {
		t.Error("not counted")
	}
}

// TestGroupAway: with no token left the role is unwell, and callers hear so.
func TestGroupAway(t *testing.T) {
	t.Parallel()
	h, f, _, one, two := openPair(t, nil)
	keys, items := soundWork(t)
	op := opens(keys, items)
	putBack := f.remove(pkcs11.CKR_DEVICE_REMOVED) // of both
	if err := op(t, h); !errors.Is(err, token.ErrUnavailable) || !strings.Contains(err.Error(), one) || !strings.Contains(err.Error(), two) {
		t.Errorf("both are away: %v", err)
	}
	if err := h.Opener().Check(t.Context()); !errors.Is(err, token.ErrUnavailable) {
		t.Errorf("health: %v", err)
	}
	putBack()
	waitHealthy(t, h.Opener())
	if err := op(t, h); err != nil {
		t.Error(err)
	}
}

// TestGroupReopensTogether: both connections are lost at the same moment, and
// whoever came then waits for the one that is back first.
func TestGroupReopensTogether(t *testing.T) {
	t.Parallel()
	h, f, _, one, two := openPair(t, nil)
	stop := load(t, h, 8)
	f.delay(fnFindObjectsInit, 50)
	openings := func() float64 { return hsm.CountsOf(h, one).Openings + hsm.CountsOf(h, two).Openings }
	for round := range 3 {
		served := hsm.Served(h, one, "open") + hsm.Served(h, two, "open")
		for _, label := range []string{one, two} {
			if err := hsm.Renew(h, label); err != nil {
				t.Fatal(err)
			}
		}
		for end := time.Now().Add(20 * time.Second); openings() < float64(2*(round+1)); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%v connections were opened anew", openings())
			}
		}
		for end := time.Now().Add(20 * time.Second); hsm.Served(h, one, "open")+hsm.Served(h, two, "open") < served+20; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("nothing is served any more")
			}
		}
	}
	f.delay(fnFindObjectsInit, 0)
	stop()
}

// tokensOf makes tokens of their own that hold the KEKs of the epochs named.
func tokensOf(t *testing.T, want map[hsm.Role][][]uint32) hsm.Config {
	t.Helper()
	world := hsmtest.New(t)
	dir := t.TempDir()
	cfg := world.Servers[0].Config
	cfg.ProbeKeyFile = filepath.Join(dir, "probe.bin")
	cfg.Tokens = map[hsm.Role][]hsm.Token{}
	last := uint32(0)
	for role, tokens := range want {
		for _, epochs := range tokens {
			cfg.Tokens[role] = append(cfg.Tokens[role], spare(world))
			last = max(last, slices.Max(epochs))
		}
	}
	c := hsm.Ceremony{Module: cfg.Module, Tokens: cfg.Tokens, TransportBits: 2048}
	public, err := c.Init(filepath.Join(world.Dir, "so-pin"))
	if err != nil {
		t.Fatal(err)
	}
	if err := public.Write(filepath.Join(dir, "public")); err != nil {
		t.Fatal(err)
	}
	fingerprint, err := public.Fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	for epoch := uint32(1); epoch <= last; epoch++ {
		in := filepath.Join(dir, fmt.Sprint(epoch))
		if err := c.Create(epoch, map[string]string{fingerprint: filepath.Join(dir, "public")}, in); err != nil {
			t.Fatal(err)
		}
		for role, tokens := range want {
			for i, epochs := range tokens {
				one := hsm.Ceremony{Module: cfg.Module, Tokens: map[hsm.Role][]hsm.Token{role: {cfg.Tokens[role][i]}}}
				if slices.Contains(epochs, epoch) {
					if err := one.ImportOnly(in, fingerprint, cfg.ProbeKeyFile); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	return cfg
}

// TestGroupRefuses: tokens that cannot stand in for each other do not serve
// one role.
func TestGroupRefuses(t *testing.T) {
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
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", name, err, says)
		}
	}
	of := func(role hsm.Role, tokens ...hsm.Token) map[hsm.Role][]hsm.Token {
		return map[hsm.Role][]hsm.Token{role: tokens}
	}
	server := world.Servers[0].Config
	first := func(role hsm.Role) hsm.Token { return server.Tokens[role][0] }
	second := func(role hsm.Role) hsm.Token { return world.Servers[1].Config.Tokens[role][0] }

	c := server
	c.Tokens = of(hsm.RoleOpen, first(hsm.RoleOpen), first(hsm.RoleOpen))
	refused("one token twice", "is named twice", c)
	c.Tokens = of(hsm.RoleOpen, first(hsm.RoleOpen))
	c.Tokens[hsm.RoleSeal] = []hsm.Token{first(hsm.RoleOpen)}
	refused("one token for two roles", "is named twice", c)
	for _, role := range []hsm.Role{hsm.RoleSeal, hsm.RoleSign} {
		c.Tokens = of(role, first(role), second(role))
		refused("two tokens of role "+string(role), "it may have one", c)
	}
	c.Tokens = of(hsm.RoleMint, first(hsm.RoleMint), second(hsm.RoleMint))
	refused("two mint tokens alone", "beside a seal or open token", c)
	c.Tokens[hsm.RoleOpen] = []hsm.Token{first(hsm.RoleOpen)}
	if h, err := hsm.New(c); err != nil {
		t.Errorf("two mint tokens beside an open token: %v", err)
	} else if err := h.Close(); err != nil {
		t.Error(err)
	}

	uneven := tokensOf(t, map[hsm.Role][][]uint32{hsm.RoleSeal: {{1, 2}}, hsm.RoleOpen: {{1, 2}, {1}}})
	refused("an epoch too few", "holds KEKs of epochs [1 2] and token", uneven)

	// Another KEK of the same epoch.
	other := tokensOf(t, map[hsm.Role][][]uint32{hsm.RoleSeal: {{1}}, hsm.RoleOpen: {{1}}, hsm.RoleMint: {{1}}})
	c.Tokens = of(hsm.RoleOpen, first(hsm.RoleOpen), other.Tokens[hsm.RoleOpen][0])
	refused("another KEK to open", "does not come out", c)
	c.Tokens = of(hsm.RoleMint, first(hsm.RoleMint), other.Tokens[hsm.RoleMint][0])
	c.Tokens[hsm.RoleOpen] = []hsm.Token{first(hsm.RoleOpen)}
	refused("another KEK to mint", "what mint token "+other.Tokens[hsm.RoleMint][0].Label+" wraps", c)

	// The same KEK, and another record MAC key: of two ceremonies on one token.
	mixed := other
	mixed.Tokens = of(hsm.RoleMint, other.Tokens[hsm.RoleMint][0])
	mixed.Tokens[hsm.RoleSeal] = []hsm.Token{first(hsm.RoleSeal)}
	refused("keys of two ceremonies", "", mixed)
}

// TestGroupEpochs: one of two tokens was given the next KEK and opened anew.
// What is under it is opened by that one, and the role does not claim the
// epoch before both have it.
func TestGroupEpochs(t *testing.T) {
	t.Parallel()
	full := tokensOf(t, map[hsm.Role][][]uint32{
		hsm.RoleSeal: {{1, 2}}, hsm.RoleMint: {{1, 2}, {1, 2}}, hsm.RoleOpen: {{1, 2}, {1, 2}}})
	h, err := hsm.New(full)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	one, two := full.Tokens[hsm.RoleOpen][0].Label, full.Tokens[hsm.RoleOpen][1].Label
	var keys []token.WrappedKey
	for i := range 6 {
		epoch := uint32(1 + i%2)
		wrapped, err := h.Minter().Mint(t.Context(), epoch, 1)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, token.WrappedKey{ID: [16]byte{byte(i)}, Epoch: epoch, Wrapped: wrapped[0]})
	}
	items := sealItems(t, h, keys, 30)
	op := opens(keys, items)
	if err := op(t, h); err != nil {
		t.Fatal(err)
	}
	if e := h.Opener().Epochs(); !slices.Equal(e, []uint32{1, 2}) {
		t.Errorf("epochs %v", e)
	}

	// KEK 2 is destroyed on one token.
	lacks := func(label string, epoch uint32) {
		t.Helper()
		if err := hsm.Reopened(h, label, func() {
			if err := hsm.DestroyKEK(h, label, epoch); err != nil {
				t.Fatal(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(hsm.Held(h, label), epoch) {
			t.Fatalf("%s still holds epoch %d", label, epoch)
		}
	}
	lacks(one, 2)
	if e := h.Opener().Epochs(); !slices.Equal(e, []uint32{1}) {
		t.Errorf("one of two lacks epoch 2, and the role claims %v", e)
	}
	for range 20 { // whichever the lot falls on first
		if err := op(t, h); err != nil {
			t.Fatal(err)
		}
	}
	// Each lacks what the other has.
	lacks(two, 1)
	for range 20 {
		if err := op(t, h); err != nil {
			t.Fatal(err)
		}
	}
	// Nobody knows it: that is said, and no damage.
	unknown := slices.Clone(keys)
	unknown[0].Epoch = 3
	for i := range items {
		items[i].Out = make([]byte, 0, 100)
	}
	if err := h.Opener().Open(t.Context(), unknown, items); err != nil {
		t.Fatal(err)
	}
	for i, it := range items {
		if lost := i%len(keys) == 0; lost != errors.Is(it.Err, token.ErrUnknownEpoch) || !lost && !bytes.Equal(it.Out, plaintext(i)) {
			t.Errorf("item %d: %v", i, it.Err)
		}
	}
	// Damage is not asked about twice.
	spoilt := slices.Clone(items)
	spoilt[3].In = bytes.Clone(spoilt[3].In)
	spoilt[3].In[0] ^= 1
	before := hsm.CountsOf(h, one).Damaged + hsm.CountsOf(h, two).Damaged
	for i := range spoilt {
		spoilt[i].Out = make([]byte, 0, 100)
	}
	if err := h.Opener().Open(t.Context(), keys, spoilt); err != nil || !errors.Is(spoilt[3].Err, token.ErrBadData) {
		t.Errorf("%v, %v", err, spoilt[3].Err)
	}
	if n := hsm.CountsOf(h, one).Damaged + hsm.CountsOf(h, two).Damaged - before; n != 1 {
		t.Errorf("one damaged block was counted %v times", n)
	}
	// Minting goes to who has the epoch.
	lacks(full.Tokens[hsm.RoleMint][1].Label, 2)
	for range 20 {
		if _, err := h.Minter().Mint(t.Context(), 2, 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Minter().Mint(t.Context(), 9, 1); !errors.Is(err, token.ErrUnknownEpoch) {
		t.Errorf("an epoch nobody has: %v", err)
	}
}
