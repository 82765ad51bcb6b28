package connlimit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"testing"
)

// someConn is told apart from others, and knows whether it was closed.
type someConn struct {
	net.Conn
	holder string
	state  string // handshake, idle, active, closed
	closed bool
	holds  []func() // to be released
}

func (c *someConn) Close() error { c.closed = true; return nil }

// connWorld is a server's connections, as many as there may be and more.
type connWorld struct {
	t    testing.TB
	c    *Limiter
	all  []*someConn
	told map[string]int
}

func newConnWorld(t testing.TB, l Limits) *connWorld {
	w := &connWorld{t: t, told: map[string]int{}}
	w.c = New(Config{Limits: l, Holder: "certificate", Of: Certificate, Closed: func(why string) { w.told[why]++ }})
	return w
}

func (w *connWorld) accept() *someConn {
	k := &someConn{state: "handshake"}
	w.all = append(w.all, k)
	w.c.state(k, http.StateNew)
	w.check()
	return k
}

func (w *connWorld) establish(k *someConn, holder rune) bool {
	k.holder = string(holder)
	err := w.c.establish(k, k.holder)
	switch {
	case err == nil:
		k.state = "idle"
	case errors.Is(err, errTooMany): // the server closes it then
		w.c.state(k, http.StateClosed)
		k.state = "closed"
	}
	w.check()
	return err == nil
}

func (w *connWorld) to(k *someConn, s http.ConnState, state string) {
	w.c.state(k, s)
	k.state = state
	w.check()
}

// request begins or ends one. Where anybody can connect, that keeps no connection.
func (w *connWorld) request(k *someConn, begins bool) {
	s, state := http.StateIdle, "idle"
	if begins {
		s, state = http.StateActive, "active"
	}
	if w.c.config.Anybody {
		state = k.state
	}
	w.to(k, s, state)
}

// hold holds a connection once more, for one of its requests.
func (w *connWorld) hold(k *someConn) {
	k.holds = append(k.holds, w.c.Hold(context.WithValue(w.t.Context(), connKey{}, net.Conn(k))))
	if k.state == "idle" {
		k.state = "active"
	}
	w.check()
}

// release ends a hold, which may be of a connection that has gone.
func (w *connWorld) release(k *someConn) {
	k.holds[0]()
	if k.holds = k.holds[1:]; len(k.holds) == 0 && k.state == "active" {
		k.state = "idle"
	}
	w.check()
}

// check counts anew what the limits are about.
func (w *connWorld) check() {
	w.t.Helper()
	fresh, verified, idle := 0, 0, 0
	each := map[string]int{}
	closed := 0
	for _, k := range w.all {
		if k.closed {
			closed++
			if k.state == "active" {
				w.t.Fatal("a connection with a request under way was closed")
			}
			if k.state != "closed" { // the server hears of it, too
				w.c.state(k, http.StateClosed)
				k.state = "closed"
			}
		}
		switch k.state {
		case "handshake":
			fresh++
		case "idle":
			idle++
			fallthrough
		case "active":
			verified++
			each[k.holder]++
		}
	}
	l := w.c.config.Limits
	if fresh > l.Handshakes || verified > l.All || fresh != w.c.fresh.Len() || verified != w.c.verified || idle != w.c.idle.Len() || len(w.c.of) != fresh+verified {
		w.t.Fatalf("%d in handshakes, %d established, %d idle; counted as %d, %d, %d of %d", fresh, verified, idle, w.c.fresh.Len(), w.c.verified, w.c.idle.Len(), len(w.c.of))
	}
	if len(each) != len(w.c.holders) {
		w.t.Fatalf("%d holders, counted as %d", len(each), len(w.c.holders))
	}
	for holder, n := range each {
		if n > l.Each || w.c.holders[holder].n != n {
			w.t.Fatalf("%d of a holder, counted as %d", n, w.c.holders[holder].n)
		}
	}
	if told := w.told[Idle] + w.told[Handshake]; closed < told {
		w.t.Fatalf("%d closed, told of %v", closed, w.told)
	}
}

func TestLongestIdleMakesWay(t *testing.T) {
	w := newConnWorld(t, Limits{All: 3, Each: 3, Handshakes: 2})
	a, b, c := w.accept(), w.accept(), (*someConn)(nil)
	w.establish(a, 1)
	w.establish(b, 2)
	c = w.accept()
	w.establish(c, 3)
	w.to(a, http.StateActive, "active")
	w.to(a, http.StateIdle, "idle") // now b is idle for longest
	if d := w.accept(); !w.establish(d, 4) || !b.closed || a.closed || c.closed {
		t.Error("not the longest idle one made way")
	}
	for _, k := range w.all {
		if k.state == "idle" {
			w.to(k, http.StateActive, "active")
		}
	}
	if e := w.accept(); w.establish(e, 5) {
		t.Error("there are more than there may be")
	}
	if w.told[Refused] != 1 || w.told[Idle] != 1 {
		t.Errorf("told of %v", w.told)
	}
}

func TestOneHolderDoesNotTakeAll(t *testing.T) {
	w := newConnWorld(t, Limits{All: 10, Each: 2, Handshakes: 2})
	other := w.accept()
	w.establish(other, 9)
	for i := range 20 {
		if !w.establish(w.accept(), 1) {
			t.Errorf("connection %d was refused, though an idle one could make way", i)
		}
	}
	if other.closed {
		t.Error("another holder's connection was closed")
	}
	for _, k := range w.all {
		if k.state == "idle" {
			w.to(k, http.StateActive, "active")
		}
	}
	if w.establish(w.accept(), 1) {
		t.Error("it has more than its share under way")
	}
	if !w.establish(w.accept(), 2) {
		t.Error("and others are refused")
	}
}

// TestHeldStays: where anybody can connect, half of a request keeps nothing, and
// who is held stays, however many come.
func TestHeldStays(t *testing.T) {
	w := newConnWorld(t, Limits{All: 4, Each: 3, Handshakes: 2})
	w.c.config.Anybody = true
	known := w.accept()
	w.establish(known, 1)
	w.request(known, true)
	w.hold(known)
	for i := range 20 {
		k := w.accept()
		if !w.establish(k, rune(1+i%4)) {
			t.Errorf("connection %d was refused", i)
		}
		w.request(k, true)
	}
	if known.closed || w.told[Idle] != 17 || len(w.told) != 1 {
		t.Errorf("told of %v", w.told)
	}
	w.hold(known) // a second stream
	w.release(known)
	w.request(known, false)
	if n := w.c.idle.Len(); n != 3 {
		t.Errorf("%d are idle", n)
	}
	w.release(known)
	for i := range 20 {
		w.establish(w.accept(), rune(2+i%3))
	}
	if !known.closed {
		t.Error("it never makes way")
	}
}

func TestOldestHandshakeMakesWay(t *testing.T) {
	w := newConnWorld(t, Limits{All: 2, Each: 1, Handshakes: 3})
	first := w.accept()
	for range 100 {
		w.accept()
	}
	if !first.closed || w.told[Handshake] != 98 {
		t.Errorf("told of %v", w.told)
	}
	if !w.establish(w.accept(), 1) {
		t.Error("who comes then is refused")
	}
	if w.establish(first, 1) {
		t.Error("a closed one was established")
	}
}

func TestConnectionsHoweverTheyGo(t *testing.T) {
	for seed := range uint64(200) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			w := newConnWorld(t, Limits{All: 1 + r.IntN(8), Each: 1, Handshakes: 1 + r.IntN(4)})
			w.c.config.Limits.Each += r.IntN(w.c.config.Limits.All)
			w.c.config.Anybody = seed%2 == 1
			for range 300 {
				if r.IntN(3) == 0 {
					w.accept()
					continue
				}
				if len(w.all) == 0 {
					continue
				}
				k := w.all[len(w.all)-1-r.IntN(min(len(w.all), 12))]
				if w.c.config.Anybody && k.state != "handshake" && r.IntN(2) == 0 {
					if len(k.holds) == 0 || k.state != "closed" && r.IntN(3) == 0 {
						w.hold(k)
					} else {
						w.release(k)
					}
					continue
				}
				switch k.state {
				case "handshake":
					if r.IntN(5) == 0 {
						w.to(k, http.StateClosed, "closed")
					} else {
						w.establish(k, rune(r.IntN(4)))
					}
				case "idle":
					if r.IntN(4) == 0 {
						w.to(k, http.StateClosed, "closed")
					} else {
						w.request(k, r.IntN(2) == 0 || !w.c.config.Anybody)
					}
				case "active":
					if r.IntN(4) == 0 {
						w.to(k, http.StateClosed, "closed")
					} else {
						w.request(k, false)
					}
				}
			}
			for _, k := range w.all {
				for len(k.holds) > 0 {
					w.release(k)
				}
				if k.state != "closed" {
					w.to(k, http.StateClosed, "closed")
				}
			}
			if len(w.c.of)+len(w.c.holders)+w.c.fresh.Len()+w.c.idle.Len()+w.c.verified > 0 {
				t.Error("something stays behind")
			}
		})
	}
}

func TestNetwork(t *testing.T) {
	for _, same := range [][2]string{{"192.0.2.1:1", "192.0.2.1:65535"}, {"192.0.2.1:1", "[::ffff:192.0.2.1]:1"}, {"[2001:db8::1]:1", "[2001:db8::ffff:0:0:1]:2"}, {"[fe80::1%eth0]:1", "[fe80::2%eth1]:1"}} {
		if Network(same[0]) != Network(same[1]) || Network(same[0]) == "" {
			t.Errorf("%v: %q, %q", same, Network(same[0]), Network(same[1]))
		}
	}
	for _, other := range []string{"192.0.2.2:1", "[2001:db8:0:1::1]:1"} {
		if Network(other) == Network("192.0.2.1:1") || Network(other) == Network("[2001:db8::1]:1") {
			t.Errorf("%s counts with others", other)
		}
	}
}
