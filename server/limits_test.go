package server

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/authz"
	"kluis/meter"
)

// limitClock is a clock that stands still.
type limitClock struct{ at time.Time }

func (c *limitClock) now() time.Time       { return c.at }
func (c *limitClock) pass(d time.Duration) { c.at = c.at.Add(d) }
func newLimitClock() *limitClock           { return &limitClock{time.Unix(1_800_000_000, 0)} }
func kindOf(err error) (k *problemKind, n int) {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.kind, f.retryAfter
	}
	return nil, 0
}

func newTestLimiter(t *testing.T, c *limitClock, change func(*Limits)) *limiter {
	t.Helper()
	l := DefaultLimits()
	l.Rate = Rate{PerSecond: 2, Burst: 10}
	if change != nil {
		change(&l)
	}
	if err := l.check(); err != nil {
		t.Fatal(err)
	}
	x, err := newLimiter(l, c.now)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestQuota(t *testing.T) {
	c := newLimitClock()
	a, b := glnOf(t, 1), glnOf(t, 2)
	x := newTestLimiter(t, c, func(l *Limits) { l.Rates = map[meter.GLN]Rate{b: {PerSecond: 0.25, Burst: 1}} })
	spend := func(g meter.GLN) (http.Header, error) {
		h := http.Header{}
		return h, x.count(h, x.quota(g, true), g, nil)
	}
	for i := range 10 {
		h, err := spend(a)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := h.Get("RateLimit"), fmt.Sprintf(`"default";r=%d;t=1`, 9-i); got != want {
			t.Errorf("request %d: RateLimit %s, want %s", i+1, got, want)
		}
		if got := h.Get("RateLimit-Policy"); got != `"default";q=10;w=5` {
			t.Errorf("RateLimit-Policy %s", got)
		}
	}
	for range 3 { // a refusal costs nothing
		h, err := spend(a)
		if k, retry := kindOf(err); k != rateLimited || retry != 1 || h.Get("RateLimit") != `"default";r=0;t=1` {
			t.Errorf("%v, retry after %d, %v", err, retry, h)
		}
	}
	if _, err := spend(b); err != nil {
		t.Errorf("the quota of another is spent: %v", err)
	}
	h, err := spend(b)
	if k, retry := kindOf(err); k != rateLimited || retry != 4 || h.Get("RateLimit") != `"default";r=0;t=4` || h.Get("RateLimit-Policy") != `"default";q=1;w=4` {
		t.Errorf("its own rate: %v, retry after %d, %v", err, retry, h)
	}
	c.pass(1500 * time.Millisecond) // the end of the window is where Retry-After points, later too
	h, err = spend(b)
	if k, retry := kindOf(err); k != rateLimited || retry != 3 || h.Get("RateLimit") != `"default";r=0;t=3` {
		t.Errorf("in a while: %v, retry after %d, %v", err, retry, h)
	}
	for range 3 { // what came meanwhile
		if _, err := spend(a); err != nil {
			t.Error(err)
		}
	}
	c.pass(time.Second)
	for range 2 {
		if _, err := spend(a); err != nil {
			t.Errorf("a second later: %v", err)
		}
	}
	if _, err := spend(a); err == nil {
		t.Error("more than what came in a second")
	}
	if x.quota(glnOf(t, 3), false) != nil || len(x.quotas) != 2 {
		t.Error("a bucket for nobody")
	}
}

// One employee's requests leave the others theirs, and a step is always to be had:
// no number of pages, nor of steps by others, keeps a supervisor from stopping a
// supplier.
func TestQuotaOfEmployees(t *testing.T) {
	c := newLimitClock()
	x := newTestLimiter(t, c, func(l *Limits) { l.Rate = Rate{PerSecond: 20, Burst: 40} })
	op := glnOf(t, 1)
	ask := func(who string, k authz.ErrandKind) error {
		return x.count(http.Header{}, x.quota(op, true), op, &authz.Employee{Subject: who, Errand: authz.Errand{Kind: k}})
	}
	n := func(who string, k authz.ErrandKind) (given int) {
		for ask(who, k) == nil {
			given++
		}
		return given
	}
	if got := n("agent", authz.ErrandView); got != 20 {
		t.Errorf("an employee has %d at once, want half", got)
	}
	if got := n("agent", authz.ErrandStep); got != 4 {
		t.Errorf("%d steps at once, want a tenth", got)
	}
	if k, retry := kindOf(ask("agent", authz.ErrandView)); k != rateLimited || retry != 1 {
		t.Errorf("refused with %v, %d", k, retry)
	}
	if got := n("another", authz.ErrandReadings); got != 20 {
		t.Errorf("another has %d", got)
	}
	// Now all that employees share is used up: a step is not of it.
	if err := ask("super", authz.ErrandOversee); err == nil {
		t.Error("more than the operator's quota")
	}
	if got := n("super", authz.ErrandSupplier); got != 4 {
		t.Errorf("%d steps of who took none", got)
	}
	c.pass(time.Second)
	if got := n("agent", authz.ErrandFind); got != 5 {
		t.Errorf("%d a second, want a quarter", got)
	}
	if got := n("super", authz.ErrandOversee); got != 15 {
		t.Errorf("%d left for others", got)
	}
	// The headers are those of the bucket that is empty.
	h := http.Header{}
	if err := x.count(h, x.quota(op, true), op, &authz.Employee{Subject: "new"}); err == nil || h.Get("RateLimit-Policy") != `"default";q=40;w=2` {
		t.Errorf("%v, %v", err, h)
	}
	// As many as one likes take no more memory.
	for i := range 2 * maxEmployees {
		x.employee(op, fmt.Sprint(i))
	}
	if got := x.employees.Len(); got > maxEmployees {
		t.Errorf("%d employees are remembered", got)
	}
}

func TestStrangers(t *testing.T) {
	c := newLimitClock()
	x := newTestLimiter(t, c, nil)
	one, two := [32]byte{1}, [32]byte{2}
	for range strangerBurst {
		if err := x.heard(one); err != nil {
			t.Fatal(err)
		}
		x.refused(one)
	}
	if k, _ := kindOf(x.heard(one)); k != rateLimited {
		t.Error("a certificate whose tokens are always refused is heard on and on")
	}
	if x.heard(two) != nil || x.open(one) != nil {
		t.Error("another certificate, or what needs no token, is refused as well")
	}
	c.pass(time.Second)
	if err := x.heard(one); err != nil {
		t.Errorf("a second later: %v", err)
	}
	for range strangerBurst {
		if err := x.open(two); err != nil {
			t.Fatal(err)
		}
	}
	if k, _ := kindOf(x.open(two)); k != rateLimited {
		t.Error("what needs no token is answered on and on")
	}
	// As many certificates as one likes take no more memory.
	for i := range 3 * maxStrangers {
		x.refused([32]byte{3, byte(i), byte(i >> 8)})
	}
	if n := x.strangers.Len(); n > maxStrangers {
		t.Errorf("%d strangers are remembered", n)
	}
}

// What was looked up is known afterwards: the bucket is overdrawn by it, however
// much it is, and comes back at its rate.
func TestUnrelated(t *testing.T) {
	c := newLimitClock()
	x := newTestLimiter(t, c, func(l *Limits) { l.Unrelated = Rate{PerSecond: 10, Burst: 50} })
	a, b := glnOf(t, 1), glnOf(t, 2)
	for range 2 {
		x.unrelated(a, 24)
		if in := x.lists(a); in != 0 {
			t.Fatalf("has to wait %s with something left", in)
		}
	}
	x.unrelated(a, maxBatch)
	if in := x.lists(a).Round(time.Millisecond); in != 25500*time.Millisecond { // 254 overdrawn, and one
		t.Errorf("has to wait %s", in)
	}
	if x.lists(b) != 0 {
		t.Error("another supplier has to wait")
	}
	c.pass(25 * time.Second)
	if in := x.lists(a).Round(time.Millisecond); in != 500*time.Millisecond {
		t.Errorf("has to wait %s more", in)
	}
	c.pass(500 * time.Millisecond)
	if in := x.lists(a); in != 0 {
		t.Errorf("has to wait %s still", in)
	}
	c.pass(time.Hour)
	x.unrelated(a, 0)
	x.unrelated(a, 51)
	if x.lists(a) == 0 {
		t.Error("more than the burst came back")
	}
}

func TestStreamsOfASupplier(t *testing.T) {
	x := newTestLimiter(t, newLimitClock(), func(l *Limits) { l.Streams = 2 })
	a, b := glnOf(t, 1), glnOf(t, 2)
	first, err1 := x.stream(a)
	_, err2 := x.stream(a)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	_, err := x.stream(a)
	if k, _ := kindOf(err); k != rateLimited {
		t.Errorf("a third stream: %v", err)
	}
	if _, err := x.stream(b); err != nil {
		t.Errorf("another supplier's: %v", err)
	}
	first()
	first()
	if _, err := x.stream(a); err != nil {
		t.Errorf("after one ended: %v", err)
	}
	if _, err := x.stream(a); err == nil {
		t.Error("a stream that ended twice counts twice")
	}
}

func TestRoom(t *testing.T) {
	x := newTestLimiter(t, newLimitClock(), nil)
	a := glnOf(t, 1)
	leave, err := x.takeRoom(t.Context(), a, 100*roomEach) // as much as there is
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = x.takeRoom(short, a, 1)
	if k, _ := kindOf(err); k != rateLimited {
		t.Errorf("no room: %v", err)
	}
	var others []func()
	for i := range roomAll/roomEach - 1 {
		l, err := x.takeRoom(t.Context(), glnOf(t, 2+i), roomEach)
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, l)
	}
	// Whatever others hold, there is a body and a page for each, and no more.
	some, err := x.takeRoom(t.Context(), glnOf(t, 99), roomOwn)
	if err != nil {
		t.Errorf("a supplier that holds nothing: %v", err)
	}
	for _, g := range []meter.GLN{glnOf(t, 99), glnOf(t, 2)} {
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, err = x.takeRoom(short, g, 1)
		if k, _ := kindOf(err); k != overloaded && k != rateLimited {
			t.Errorf("no room at all: %v", err)
		}
		cancel()
	}
	_, err = x.takeRoom(t.Context(), glnOf(t, 98), roomOwn+1)
	if k, _ := kindOf(err); k != overloaded {
		t.Errorf("no room for more than its own: %v", err)
	}
	some()
	leave()
	leave()
	if _, err := x.takeRoom(t.Context(), a, roomEach); err != nil {
		t.Errorf("after the room was left: %v", err)
	}
	for _, l := range others {
		l()
	}
	if x.room != roomEach {
		t.Errorf("%d bytes are taken", x.room)
	}
}

func TestLimitsThatMakeNoSense(t *testing.T) {
	for name, change := range map[string]func(*Limits){
		"no rate":                 func(l *Limits) { l.Rate.PerSecond = 0 },
		"no burst":                func(l *Limits) { l.Rate.Burst = 0 },
		"one supplier's":          func(l *Limits) { l.Rates = map[meter.GLN]Rate{glnOf(t, 1): {PerSecond: -1, Burst: 1}} },
		"no metering points":      func(l *Limits) { l.Unrelated.Burst = 0 },
		"no streams":              func(l *Limits) { l.Streams = 0 },
		"one turn":                func(l *Limits) { l.Turns.Turns = 1 },
		"all turns for one":       func(l *Limits) { l.Turns.Each = l.Turns.Turns },
		"no turns for one":        func(l *Limits) { l.Turns.Each = 0 },
		"a queue larger than all": func(l *Limits) { l.Turns.Queue = l.Turns.QueueAll + 1 },
		"all connections for one": func(l *Limits) { l.Connections.Each = l.Connections.All + 1 },
		"no handshakes":           func(l *Limits) { l.Connections.Handshakes = 0 },
	} {
		l := DefaultLimits()
		change(&l)
		if l.check() == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if err := DefaultLimits().check(); err != nil {
		t.Error(err)
	}
}

func TestRefusalsOfLimitsAreCounted(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := newLimitMetrics(reg, newTurns(DefaultLimits().Turns, time.Now))
	if err != nil {
		t.Fatal(err)
	}
	g := glnOf(t, 7)
	for _, err := range []error{errTooFast, errQueueFull, errStreams, errOthers, fmt.Errorf("so: %w", errRoom), errors.New("another")} {
		m.failed(&event{supplier: g}, err)
	}
	m.failed(&event{}, errStranger)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "kluis_gateway_limited_total" {
			for _, x := range f.GetMetric() {
				labels := x.GetLabel()
				got[labels[0].GetValue()+" "+strings.ReplaceAll(labels[1].GetValue(), g.String(), "A")] = x.GetCounter().GetValue()
			}
		}
	}
	want := map[string]float64{"all ": 0, "unknown ": 1, "requests A": 1, "queue A": 1, "streams A": 1, "unrelated A": 1, "memory A": 1}
	if !maps.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

func TestPack(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 2000, 4096, 100_000, 3 << 20} {
		b := make([]byte, n)
		for i := range b {
			b[i] = "0123456789.,\n"[r.IntN(13)]
		}
		z := pack(bytes.Clone(b))
		if len(z)%packStep != 0 {
			t.Errorf("%d bytes are packed into %d: the length says too much", n, len(z))
		}
		zr, err := gzip.NewReader(bytes.NewReader(z))
		if err != nil {
			t.Fatal(err)
		}
		back, err := io.ReadAll(zr)
		if err != nil || !bytes.Equal(back, b) {
			t.Errorf("%d bytes do not come back: %v", n, err)
		}
	}
}

// A household that is away and one that is not differ in what gzip makes of
// them; that the lengths of their answers differ little is all that is promised.
func FuzzPack(f *testing.F) {
	f.Add([]byte(`{"readings":[0.000,0.000]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		z := pack(bytes.Clone(b))
		zr, err := gzip.NewReader(bytes.NewReader(z))
		if err != nil {
			t.Fatal(err)
		}
		back, err := io.ReadAll(zr)
		if err != nil || !bytes.Equal(back, b) || len(z)%packStep != 0 {
			t.Errorf("%q, %d bytes: %v", back, len(z), err)
		}
	})
}

func FuzzIfNoneMatch(f *testing.F) {
	for _, s := range []string{`*`, `"a"`, `W/"a", "b"`, `"a",`, `W/`, `"`, ` * `, `"a" "b"`, `w/"a"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tags, err := parseIfNoneMatch(s)
		if err != nil {
			if len(tags) > maxTags {
				t.Error("tags beside an error")
			}
			return
		}
		if len(tags) == 0 || len(tags) > maxTags {
			t.Fatalf("%q: %q", s, tags)
		}
		again, err := parseIfNoneMatch("W/" + strings.Join(tags, ", W/"))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(tags) {
			t.Errorf("%q reads back as %q: %v", tags, again, err)
		}
	})
}

func BenchmarkPack(b *testing.B) {
	answer := []byte(strings.Repeat(`{"from":"2026-03-01T00:00:00+01:00","value":"0.123"},`, 3000))
	b.SetBytes(int64(len(answer)))
	for b.Loop() {
		pack(bytes.Clone(answer))
	}
}
