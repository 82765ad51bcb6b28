package client

import (
	"cmp"
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/endpointsharding"
	"google.golang.org/grpc/balancer/pickfirst"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// leastLoaded is the name of our policy among gRPC's. Connections and health
// are those of gRPC's own policies (endpointsharding and pickfirst, as in its
// least_request_experimental); what differs is the choice among the servers
// that serve: see choose.
const leastLoaded = "kluis_least_loaded"

const (
	// linger is how long a failed call goes on counting as one in progress. A
	// server that fails at once would otherwise be the least loaded of all.
	linger = time.Second
	// smoothing is over how many calls the time they take is averaged.
	smoothing = 8
)

func init() { balancer.Register(policy{}) }

type policy struct{}

func (policy) Name() string { return leastLoaded }

func (policy) Build(cc balancer.ClientConn, opts balancer.BuildOptions) balancer.Balancer {
	p := &pool{ClientConn: cc, servers: map[string]*load{}}
	p.Balancer = endpointsharding.NewBalancer(p, opts, balancer.Get(pickfirst.Name).Build, endpointsharding.Options{})
	return p
}

// pool stands between gRPC's connection and the policy that keeps one
// connection per server.
type pool struct {
	balancer.ClientConn
	balancer.Balancer

	mu      sync.Mutex // guards what is in every load and attempts
	servers map[string]*load
}

// load is what this client knows of a server's load, for one role.
type load struct {
	calls int           // in progress, or failed not longer ago than linger
	took  time.Duration // a call that succeeded, smoothed
	known int           // calls in took, up to smoothing
}

// attempts is what a call has tried so far. It travels in the call's context.
type attempts struct{ failed []*load }

type attemptsKey struct{}

// intercept lets the attempts of a call know of each other.
func (c *Client) intercept(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	c.firstCall.Do(c.watch)
	return invoke(context.WithValue(ctx, attemptsKey{}, &attempts{}), method, req, reply, cc, opts...)
}

// UpdateClientConnState makes a server count as ready only while its health
// says that it serves the role.
func (p *pool) UpdateClientConnState(s balancer.ClientConnState) error {
	return p.Balancer.UpdateClientConnState(balancer.ClientConnState{ResolverState: pickfirst.EnableHealthListener(s.ResolverState)})
}

// UpdateState is told by the children which servers are ready.
func (p *pool) UpdateState(s balancer.State) {
	var ready []candidate
	p.mu.Lock()
	for _, child := range endpointsharding.ChildStatesFromPicker(s.Picker) {
		if child.State.ConnectivityState != connectivity.Ready {
			continue
		}
		address := child.Endpoint.Addresses[0].Addr
		if p.servers[address] == nil {
			p.servers[address] = &load{}
		}
		ready = append(ready, candidate{p.servers[address], child.State.Picker})
	}
	p.mu.Unlock()
	if len(ready) > 0 {
		s = balancer.State{ConnectivityState: connectivity.Ready, Picker: &picker{p, ready}}
	}
	p.ClientConn.UpdateState(s)
}

// picker chooses a server for each attempt of a call.
type picker struct {
	pool  *pool
	ready []candidate
}

type candidate struct {
	*load
	picker balancer.Picker
}

func (p *picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	call, ok := info.Ctx.Value(attemptsKey{}).(*attempts)
	if !ok {
		call = &attempts{}
	}
	p.pool.mu.Lock()
	c := choose(p.ready, call.failed, rand.Float64)
	c.calls++
	p.pool.mu.Unlock()
	result, err := c.picker.Pick(info)
	if err != nil {
		p.pool.release(c.load)
		return result, err
	}
	started, done := time.Now(), result.Done
	result.Done = func(info balancer.DoneInfo) {
		p.pool.done(c.load, call, info, time.Since(started))
		if done != nil {
			done(info)
		}
	}
	return result, nil
}

// choose returns, of the servers that have failed this call least often, the
// one with the fewest calls; of several, one at random, the likelier the less
// time its calls take (and as good as always one of which that is not known).
func choose(ready []candidate, failed []*load, random func() float64) candidate {
	var best candidate
	var bestFailed, bestCalls int
	var weights float64 // of those that are as good as best
	for i, c := range ready {
		n := 0
		for _, l := range failed {
			if l == c.load {
				n++
			}
		}
		switch order := cmp.Or(cmp.Compare(n, bestFailed), cmp.Compare(c.calls, bestCalls)); {
		case i > 0 && order > 0:
			continue
		case i > 0 && order < 0:
			weights = 0
		}
		weight := 1 / max(c.took, time.Microsecond).Seconds()
		weights += weight
		if random()*weights < weight {
			best, bestFailed, bestCalls = c, n, c.calls
		}
	}
	return best
}

func (p *pool) done(l *load, call *attempts, info balancer.DoneInfo, took time.Duration) {
	if !failed(info) {
		p.mu.Lock()
		defer p.mu.Unlock()
		l.calls--
		if info.Err == nil && info.BytesReceived {
			l.known = min(l.known+1, smoothing)
			l.took += (took - l.took) / time.Duration(l.known)
		}
		return
	}
	p.mu.Lock()
	call.failed = append(call.failed, l)
	p.mu.Unlock()
	time.AfterFunc(linger, func() { p.release(l) })
}

func (p *pool) release(l *load) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.calls--
}

// failed says whether an attempt ended so that another server may do better.
// That the caller gave up says nothing; neither does a refusal.
func failed(info balancer.DoneInfo) bool {
	switch status.Code(info.Err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded:
		return true
	case codes.OK: // or the connection broke while the call was sent
		return info.BytesSent && !info.BytesReceived
	}
	return false
}
