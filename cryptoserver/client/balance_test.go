package client

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"kluis/cryptoserver/cryptopb"
	"kluis/internal/devpki"
)

func TestChoose(t *testing.T) {
	t.Parallel()
	a, b, c := &load{}, &load{}, &load{}
	ready := []candidate{{load: a}, {load: b}, {load: c}}
	for name, x := range map[string]struct {
		calls  [3]int
		took   [3]time.Duration
		failed []*load
		want   [3]int // of 1000 choices
	}{
		"all alike":              {[3]int{}, [3]time.Duration{}, nil, [3]int{333, 333, 334}},
		"fewest calls":           {[3]int{2, 1, 3}, [3]time.Duration{1, time.Second, 1}, nil, [3]int{0, 1000, 0}},
		"fewest calls, twice":    {[3]int{3, 1, 1}, [3]time.Duration{}, nil, [3]int{0, 500, 500}},
		"not the one that fails": {[3]int{0, 9, 9}, [3]time.Duration{}, []*load{a}, [3]int{0, 500, 500}},
		"all failed, one twice":  {[3]int{0, 9, 8}, [3]time.Duration{}, []*load{a, b, a, c}, [3]int{0, 0, 1000}},
		"as fast as they are": {
			[3]int{}, [3]time.Duration{time.Millisecond, 3 * time.Millisecond, 3 * time.Millisecond}, nil, [3]int{600, 200, 200},
		},
		"one is new": {[3]int{}, [3]time.Duration{time.Second, 0, time.Second}, nil, [3]int{0, 1000, 0}},
		"the new one is busy": {
			[3]int{0, 1, 0}, [3]time.Duration{time.Second, 0, time.Second}, nil, [3]int{500, 0, 500},
		},
	} {
		var got [3]int
		for i := range ready {
			ready[i].calls, ready[i].took = x.calls[i], x.took[i]
		}
		// Each choice draws one number per candidate at most: an even spread of
		// numbers, another one for each draw.
		for i := range 1000 {
			draw := 0
			best := choose(ready, x.failed, func() float64 {
				draw++
				return (float64((i*[]int{1, 7, 11, 13}[draw])%1000) + 0.5) / 1000
			})
			for j := range ready {
				if best.load == ready[j].load {
					got[j]++
				}
			}
		}
		for i := range got {
			if d := got[i] - x.want[i]; d < -40 || d > 40 || x.want[i] == 0 && got[i] != 0 {
				t.Errorf("%s: %v, want about %v", name, got, x.want)
				break
			}
		}
	}
}

// stub is a server of which only how long it takes, and whether it answers at
// all, matters.
type stub struct {
	cryptopb.UnimplementedCryptoserverServer
	address string
	delay   atomic.Int64
	code    atomic.Uint32
	served  atomic.Int64 // calls that arrived
	wall    *wall
}

func (s *stub) Open(ctx context.Context, _ *cryptopb.OpenRequest) (*cryptopb.OpenResponse, error) {
	s.served.Add(1)
	select {
	case <-time.After(time.Duration(s.delay.Load())):
	case <-ctx.Done():
	}
	return &cryptopb.OpenResponse{}, status.Error(codes.Code(s.code.Load()), "injected")
}

// wall is a listener behind which a server can be silenced: as with a process
// that is stopped, connections stand and are made, and nothing is read.
type wall struct {
	net.Listener
	mu   sync.Mutex
	gate chan struct{} // closed: open
}

func (w *wall) set(silent bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if silent {
		w.gate = make(chan struct{})
	} else {
		close(w.gate)
	}
}

func (w *wall) Accept() (net.Conn, error) {
	c, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return walled{c, w}, nil
}

type walled struct {
	net.Conn
	wall *wall
}

func (c walled) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.wall.mu.Lock()
	gate := c.wall.gate
	c.wall.mu.Unlock()
	<-gate
	return n, err
}

// measuredClient counts its attempts.
type measuredClient struct {
	*Client
	reg *prometheus.Registry
}

func (c measuredClient) attempts(t *testing.T) int {
	t.Helper()
	sum := 0.0
	for name, n := range series(t, c.reg) {
		if strings.HasPrefix(name, "kluis_pool_attempts_total[") {
			sum += n
		}
	}
	return int(sum)
}

// stubs starts n servers and a client of them.
func stubs(t *testing.T, n int) (measuredClient, []*stub) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ca, err := devpki.NewCA("operator")
	must(err)
	cert, err := ca.Issue(devpki.Leaf{CommonName: "cryptoserver-1", Hosts: []string{"127.0.0.1"}})
	must(err)
	var list []*stub
	var addresses []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(err)
		s := &stub{wall: &wall{Listener: l, gate: make(chan struct{})}, address: l.Addr().String()}
		s.wall.set(false)
		g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool(),
		})))
		cryptopb.RegisterCryptoserverServer(g, s)
		h := health.NewServer()
		h.SetServingStatus("open", healthpb.HealthCheckResponse_SERVING)
		healthpb.RegisterHealthServer(g, h)
		done := make(chan error, 1)
		go func() { done <- g.Serve(s.wall) }()
		t.Cleanup(func() {
			g.Stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		list, addresses = append(list, s), append(addresses, s.address)
	}
	if cert, err = ca.Issue(devpki.Leaf{CommonName: "gateway"}); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	c, err := New(Config{Addresses: addresses, Timeout: 30 * time.Second, Registerer: reg, TLS: &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: ca.Pool(),
	}})
	must(err)
	t.Cleanup(func() { must(c.Close()) })
	for deadline := time.Now().Add(20 * time.Second); ; { // all are connected
		_, err := c.open.Open(t.Context(), &cryptopb.OpenRequest{})
		must(err)
		all := true
		for _, s := range list {
			all = all && s.served.Load() > 0
		}
		if all {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not all servers are used")
		}
	}
	return measuredClient{c, reg}, list
}

// caller makes calls from several goroutines.
type caller struct {
	calls, longest atomic.Int64 // how many ended, and the longest in nanoseconds
	failure        atomic.Pointer[error]
	end            context.CancelFunc
	wg             sync.WaitGroup
}

func callers(t *testing.T, c measuredClient, n int) *caller {
	t.Helper()
	ctx, end := context.WithCancel(context.Background())
	l := &caller{end: end}
	for range n {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				start := time.Now()
				_, err := c.open.Open(context.Background(), &cryptopb.OpenRequest{})
				took := int64(time.Since(start))
				if err != nil {
					l.failure.CompareAndSwap(nil, &err)
				}
				for old := l.longest.Load(); took > old && !l.longest.CompareAndSwap(old, took); old = l.longest.Load() {
				}
				l.calls.Add(1)
			}
		})
	}
	t.Cleanup(end)
	return l
}

// stop waits for the calls in progress; none may have failed.
func (l *caller) stop(t *testing.T) {
	t.Helper()
	l.end()
	l.wg.Wait()
	if err := l.failure.Load(); err != nil {
		t.Errorf("a call failed: %v", *err)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after 20 s: %s", what)
		}
	}
}

// TestSlowServerGetsLess, with many callers and with one, and its share again
// when it is as fast as the other.
func TestSlowServerGetsLess(t *testing.T) {
	t.Parallel()
	for name, n := range map[string]int{"one caller": 1, "16 callers": 16} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, servers := stubs(t, 2)
			slow, fast := servers[0], servers[1]
			slow.delay.Store(int64(40 * time.Millisecond))
			fast.delay.Store(int64(2 * time.Millisecond))
			load := callers(t, c, n)
			share := func(calls int64) float64 {
				s, f := slow.served.Load(), fast.served.Load()
				eventually(t, "calls", func() bool { return slow.served.Load()+fast.served.Load()-s-f >= calls })
				s, f = slow.served.Load()-s, fast.served.Load()-f
				return float64(s) / float64(s+f)
			}
			share(200) // what it takes is being learnt
			if got := share(400); got == 0 || got > 0.3 {
				t.Errorf("a server that takes 20 times as long gets %.0f %% of the calls", 100*got)
			}
			slow.delay.Store(int64(2 * time.Millisecond))
			eventually(t, "half of the calls for each", func() bool { got := share(100); return got > 0.3 && got < 0.7 })
			load.stop(t)
		})
	}
}

// TestFailingServerIsLeft: a server that refuses at once, and calls itself well,
// does not draw the calls, and no call fails for it: not when its connection
// has no other call, and not when the others have many.
func TestFailingServerIsLeft(t *testing.T) {
	t.Parallel()
	for name, code := range map[string]codes.Code{"unavailable": codes.Unavailable, "queue full": codes.ResourceExhausted} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, servers := stubs(t, 2)
			bad, good := servers[0], servers[1]
			bad.code.Store(uint32(code))
			good.delay.Store(int64(4 * time.Millisecond))
			before := bad.served.Load()
			load := callers(t, c, 16)
			start := time.Now()
			eventually(t, "calls", func() bool { return load.calls.Load() > 3000 })
			seconds := time.Since(start).Seconds()
			load.stop(t)
			// As many as the other has in progress, each second.
			if got, most := bad.served.Load()-before, int64(40*(seconds+1)); got == 0 || got > most {
				t.Errorf("the failing server was asked %d times in %.1f s for %d calls, want at most %d", got, seconds, load.calls.Load(), most)
			}
			bad.code.Store(uint32(codes.OK))
			before = bad.served.Load()
			load = callers(t, c, 16)
			eventually(t, "it is back", func() bool { return bad.served.Load()-before > 100 })
			load.stop(t)
		})
	}
}

// TestSilentServerIsLeft: a server that keeps its connections and answers
// nothing is left long before keepalive would notice, no call fails, and it is
// back when it answers again.
func TestSilentServerIsLeft(t *testing.T) {
	t.Parallel()
	c, servers := stubs(t, 2)
	for _, s := range servers {
		s.delay.Store(int64(2 * time.Millisecond))
	}
	load := callers(t, c, 16)
	more := func(n int64) {
		t.Helper()
		from := load.calls.Load()
		eventually(t, "more calls", func() bool { return load.calls.Load() >= from+n })
	}
	eventually(t, "a connection for the heartbeat", func() bool { return c.servers[0].ask(t.Context()) == nil })
	more(200)
	servers[0].wall.set(true)
	eventually(t, "calls that were on the silent server end", func() bool { return load.longest.Load() >= int64(silence) })
	more(200)
	servers[0].wall.set(false)
	before := servers[0].served.Load()
	eventually(t, "it is back", func() bool { return servers[0].served.Load()-before > 200 })
	load.stop(t)
	longest := time.Duration(load.longest.Load())
	if longest > 10*time.Second {
		t.Errorf("the longest call took %s", longest)
	}
	t.Logf("%d calls, the longest took %s", load.calls.Load(), longest)
}

// TestSlowPoolIsNotAskedTwice: while no server answers, or all are slow, no call
// is given up and repeated.
func TestSlowPoolIsNotAskedTwice(t *testing.T) {
	t.Parallel()
	for name, slow := range map[string]func([]*stub) (end func()){
		"all silent": func(list []*stub) func() {
			for _, s := range list {
				s.wall.set(true)
			}
			return func() {
				for _, s := range list {
					s.wall.set(false)
				}
			}
		},
		"all slow": func(list []*stub) func() {
			for _, s := range list {
				s.delay.Store(int64(5 * time.Second))
			}
			return func() {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, servers := stubs(t, 2)
			eventually(t, "heartbeats", func() bool {
				return c.heard.Load() != nil && c.servers[0].ask(t.Context()) == nil && c.servers[1].ask(t.Context()) == nil
			})
			before := c.attempts(t)
			end := slow(servers)
			const calls = 20
			var wg sync.WaitGroup
			for range calls {
				wg.Go(func() {
					if _, err := c.open.Open(context.Background(), &cryptopb.OpenRequest{}); err != nil {
						t.Error(err)
					}
				})
			}
			time.Sleep(5 * time.Second) // two heartbeats and more
			end()
			wg.Wait()
			if got := c.attempts(t) - before; got != calls {
				t.Errorf("%d calls were %d attempts", calls, got)
			}
		})
	}
}

// TestFailed: which ends of an attempt count against a server.
func TestFailed(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		info balancer.DoneInfo
		want bool
	}{
		"answered":               {balancer.DoneInfo{BytesSent: true, BytesReceived: true}, false},
		"never sent":             {balancer.DoneInfo{}, false},
		"broken while sending":   {balancer.DoneInfo{BytesSent: true}, true},
		"unavailable":            {balancer.DoneInfo{Err: status.Error(codes.Unavailable, "")}, true},
		"queue full":             {balancer.DoneInfo{Err: status.Error(codes.ResourceExhausted, ""), BytesReceived: true}, true},
		"no answer in time":      {balancer.DoneInfo{Err: status.Error(codes.DeadlineExceeded, "")}, true},
		"the caller gave up":     {balancer.DoneInfo{Err: status.Error(codes.Canceled, ""), BytesSent: true}, false},
		"refused":                {balancer.DoneInfo{Err: status.Error(codes.PermissionDenied, ""), BytesReceived: true}, false},
		"failed, as any may":     {balancer.DoneInfo{Err: status.Error(codes.Internal, ""), BytesReceived: true}, false},
		"a record that is wrong": {balancer.DoneInfo{Err: status.Error(codes.FailedPrecondition, ""), BytesReceived: true}, false},
	} {
		if got := failed(x.info); got != x.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
