package cryptoserver_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/token"
)

// pool adds a second cryptoserver, on tokens of its own, to the world's and
// returns a gateway's client of both, with the way to stop the second.
func (w *world) pool() (c *client.Client, second *spyOpener, stop func()) {
	w.t.Helper()
	tokens := w.hsm.Servers[1].Open(w.t)
	second = &spyOpener{Opener: tokens.Opener()}
	server, err := cryptoserver.New(w.t.Context(), cryptoserver.Config{
		ID: "cs2", TLS: w.serverTLS("cryptoserver-2"), Allow: allow(), Profile: w.profile, SealKeys: w.hsm.SealKeys, Verifier: w.verifier,
		Tokens: cryptoserver.Tokens{Open: second}, Journal: w.newJournal(),
		Clock: w.clock.now, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), CheckEvery: 20 * time.Millisecond,
	})
	w.must(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(stop)
	both := []string{w.address, l.Addr().String()}
	custodian, err := client.New(client.Config{Addresses: both, TLS: w.clientTLS("custodian")})
	w.must(err)
	w.t.Cleanup(func() { _ = custodian.Close() })
	w.feed.Use(custodian)
	_, err = w.feed.Beat(w.t.Context())
	w.must(err)
	c, err = client.New(client.Config{Addresses: both, TLS: w.clientTLS("gateway")})
	w.must(err)
	w.t.Cleanup(func() { _ = c.Close() })
	return c, second, stop
}

// load makes calls from several goroutines until stop, and counts failures.
func load(t *testing.T, c *client.Client, q client.OpenRequest) (stop func() (calls, failures int64)) {
	t.Helper()
	var calls, failures atomic.Int64
	var wg sync.WaitGroup
	quit := make(chan struct{})
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-quit:
					return
				default:
				}
				got, err := c.Open(context.Background(), q)
				calls.Add(1)
				if err != nil || got[0].Err != nil || len(got[0].Series) == 0 {
					failures.Add(1)
					t.Logf("failed: %v", err)
				}
			}
		})
	}
	return func() (int64, int64) {
		close(quit)
		wg.Wait()
		return calls.Load(), failures.Load()
	}
}

// TestPoolSharesAndLeaves: both servers work; one whose token fails, and one
// that is shut down, are left without a failed request.
func TestPoolSharesAndLeaves(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	c, second, stopSecond := w.pool()
	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-08"), importLow))

	finish := load(t, c, q)
	eventually(t, "both servers open blocks", func() bool { return w.open.opened() > 0 && second.opened() > 0 })

	// The first server's token fails: its health sends the calls elsewhere.
	down := fmt.Errorf("%w: injected", token.ErrUnavailable)
	w.open.fail.Store(&down)
	w.open.check.Store(&down)
	eventually(t, "the first server is left", func() bool { return w.counter("kluis_cryptoserver_token_up", "role", "open") == 0 })
	second.opened()
	eventually(t, "the second works on", func() bool { return second.opened() > 0 })
	w.open.fail.Store(nil)
	w.open.check.Store(nil)
	eventually(t, "the first is back", func() bool { return w.open.opened() > 0 })

	// The second drains.
	stopSecond()
	w.open.opened()
	eventually(t, "the first works on", func() bool { return w.open.opened() > 0 })
	if calls, failures := finish(); failures != 0 {
		t.Errorf("%d of %d calls failed", failures, calls)
	}

	// Each server is asked by itself.
	st := c.Status(t.Context())
	if len(st) != 2 || st[0].Err != nil || st[0].ServerID != "cs1" || !errors.Is(st[1].Err, client.ErrUnavailable) || st[1].Address == st[0].Address {
		t.Errorf("status: %+v", st)
	}
}

// TestPoolBusy: a server whose queue is full is passed over, without being
// called unwell; when all are full the answer says so, after few tries.
func TestPoolBusy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	c, second, _ := w.pool()
	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-08"), importLow))
	full := fmt.Errorf("%w: injected", token.ErrBusy)
	w.open.fail.Store(&full)
	w.open.check.Store(&full) // its checks find no room either
	w.open.calls.Store(0)
	eventually(t, "the full server is asked", func() bool {
		for range 30 {
			if got, err := c.Open(t.Context(), q); err != nil || got[0].Err != nil || len(got[0].Series) == 0 {
				t.Fatalf("with room on the second server: %v", err)
			}
		}
		return w.open.calls.Load() > 0 // it may be connected later than the other
	})
	if second.opened() == 0 {
		t.Error("the second server was not asked")
	}
	if w.counter("kluis_cryptoserver_token_up", "role", "open") != 1 {
		t.Error("a full queue counts as a token that is down")
	}
	second.fail.Store(&full)
	w.open.calls.Store(0)
	second.calls.Store(0)
	_, err := c.Open(t.Context(), q)
	if !errors.Is(err, client.ErrBusy) || !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrRefused) {
		t.Errorf("both full: %v", err)
	}
	if n := w.open.calls.Load() + second.calls.Load(); n < 2 || n > 5 {
		t.Errorf("both full: %d calls for one", n)
	}
}

// TestPoolDown: with no server left the answer is clear and comes soon.
func TestPoolDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-02"), importLow))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	address := l.Addr().String()
	w.must(l.Close()) // nobody listens there now
	c, err := client.New(client.Config{Addresses: []string{address}, TLS: w.clientTLS("gateway")})
	w.must(err)
	defer c.Close()
	start := time.Now()
	if _, err := c.Open(t.Context(), q); !errors.Is(err, client.ErrUnavailable) || time.Since(start) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.as("gateway").Open(ctx, q); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestDrain: a call in progress at shutdown ends well.
func TestDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	c, second, stop := w.pool()
	w.opened(m.ask(m.new, energy(days("2024-04-01", "2024-04-02"), importLow)))
	down := fmt.Errorf("%w: injected", token.ErrUnavailable)
	w.open.fail.Store(&down)
	w.open.check.Store(&down)
	eventually(t, "the first server is left", func() bool { return w.counter("kluis_cryptoserver_token_up", "role", "open") == 0 })

	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-08"), importLow))
	entered, release := make(chan struct{}), make(chan struct{})
	second.hold.Store(&hold{entered, release})
	result := make(chan error, 1)
	go func() {
		_, err := c.Open(context.Background(), q)
		result <- err
	}()
	<-entered
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	select {
	case <-stopped:
		t.Fatal("the server stopped with a call in progress")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if err := <-result; err != nil {
		t.Errorf("the call in progress: %v", err)
	}
	<-stopped
}
