package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	cryptoclient "kluis/cryptoserver/client"
)

// throughput is one way to open blocks, measured.
type throughput struct {
	Batch   string  `json:"batch"`
	Servers int     `json:"servers"`
	Clients int     `json:"clients"` // 0: the PKCS#11 loop, one on the token of each server
	Blocks  float64 `json:"blocks_per_second"`
	Median  float64 `json:"median_ms"` // of a batch
	P99     float64 `json:"p99_ms"`
	Server  float64 `json:"server_cpu_us"` // per block; of the loop: its own
	Client  float64 `json:"client_cpu_us"` // per block
}

// serviceClients are the concurrencies that the service is measured at.
var serviceClients = []int{1, 2, 8}

// aim is the share of the loop's throughput that the service should reach.
const aim = 0.8

// startLoops starts the loop of every batch on every token.
func (b *bench) startLoops() error {
	for i := range b.warm.cryptoservers {
		setup, err := b.tokenSetup(i)
		if err != nil {
			return err
		}
		for j := range b.service.batches {
			setup.add(b.service.batches[j].keys, b.service.batches[j].items)
		}
		p, err := startPart("hsm", setup, b.softHSM(i))
		if err != nil {
			return err
		}
		b.loops = append(b.loops, p)
	}
	return nil
}

// serviceRound measures every batch once with every number of servers and
// clients, each beside the loop.
func (b *bench) serviceRound(ctx context.Context, slice time.Duration) ([]throughput, error) {
	var out []throughput
	for i := range b.service.batches {
		for servers := 1; servers <= len(b.loops); servers++ {
			t, err := b.loop(i, servers, slice/2)
			if err != nil {
				return nil, fmt.Errorf("PKCS#11 loop: %w", err)
			}
			out = append(out, t)
			for _, n := range serviceClients {
				if err := b.service.authorise(ctx); err != nil {
					return nil, err
				}
				t, err := b.opened(ctx, &b.service.batches[i], servers, n, slice)
				if err != nil {
					return nil, fmt.Errorf("%s, %d clients: %w", b.service.batches[i].name, n, err)
				}
				out = append(out, t)
			}
		}
	}
	return out, nil
}

// loop runs the loop over a batch on the tokens of the first servers.
func (b *bench) loop(i, servers int, d time.Duration) (throughput, error) {
	r, err := loopRun(b.loops[:servers], order{For: d, Batch: i})
	if err != nil {
		return throughput{}, err
	}
	return newThroughput(&b.service.batches[i], servers, 0, r, r.CPU["loop"]), nil
}

func newThroughput(b *batch, servers, clients int, r run, serverMS float64) throughput {
	n := float64(b.blocks)
	return throughput{Batch: b.name, Servers: servers, Clients: clients, Blocks: float64(r.Operations) * n / r.Seconds,
		Median: r.MedianMS, P99: r.P99MS, Server: serverMS * 1000 / n, Client: r.CPU[clientCPU] * 1000 / n}
}

// opened measures the service.
func (b *bench) opened(ctx context.Context, batch *batch, servers, n int, d time.Duration) (_ throughput, err error) {
	cs, disconnect, err := b.service.connect(servers, n)
	if err != nil {
		return throughput{}, err
	}
	defer func() { err = errors.Join(err, disconnect()) }()
	for _, c := range cs { // connects, and unwraps the keys on every server
		for range 2 * servers {
			if err := batch.call(ctx, c); err != nil {
				return throughput{}, err
			}
		}
	}
	runtime.GC()
	before, err := b.serviceUsage(servers)
	if err != nil {
		return throughput{}, err
	}
	took, wall, err := repeat(d, n, func(i int) error { return batch.call(ctx, cs[i]) })
	if err != nil {
		return throughput{}, err
	}
	after, err := b.serviceUsage(servers)
	if err != nil {
		return throughput{}, err
	}
	r := newRun(took, wall, difference(after, before))
	return newThroughput(batch, servers, n, r, r.total()), nil
}

func (b *bench) serviceUsage(servers int) (map[string]time.Duration, error) {
	u := map[string]time.Duration{clientCPU: selfCPU()}
	for i, pid := range b.warm.cryptoservers[:servers] {
		var err error
		if u[fmt.Sprintf("cryptoserver-%d", i+1)], err = cpuOf(pid); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// justOpen keeps the cryptoservers busy for a profiler: first one, then all.
func (b *bench) justOpen(ctx context.Context) error {
	if b.batch > len(b.service.batches) {
		return fmt.Errorf("there are %d kinds of batches", len(b.service.batches))
	}
	if err := b.service.authorise(ctx); err != nil {
		return err
	}
	batch := &b.service.batches[b.batch-1]
	for servers := 1; servers <= len(b.warm.cryptoservers); servers++ {
		b.say("%s for %s: cryptoservers %v, client %d", batch.name, b.profile, b.warm.cryptoservers[:servers], os.Getpid())
		t, err := b.opened(ctx, batch, servers, 8, b.profile)
		if err != nil {
			return err
		}
		b.say("%.0f blocks/s, median %.2f ms, CPU of a block: servers %.2f us, client %.2f us", t.Blocks, t.Median, t.Server, t.Client)
	}
	return nil
}

// rewrapping is the Rewrap call of one server, from one client.
type rewrapping struct {
	Keys   float64 `json:"keys_per_second"`
	Median float64 `json:"median_ms"` // of a call
	Server float64 `json:"server_cpu_us"`
	// The PKCS#11 loop on the same token: unwrap, wrap, destroy; and the same
	// proved, as the server does it: taken back, and compared.
	Loop      float64 `json:"loop_keys_per_second"`
	LoopCPU   float64 `json:"loop_cpu_us"`
	Proved    float64 `json:"proved_keys_per_second"`
	ProvedCPU float64 `json:"proved_cpu_us"`
}

// startRotateLoop starts the loop on the first server's rotate token.
func (b *bench) startRotateLoop() error {
	setup, err := b.rotateSetup()
	if err != nil {
		return err
	}
	setup.add(b.service.rewrap, nil)
	b.rotate, err = startPart("hsm", setup, b.softHSM(0))
	return err
}

// rewraps measures the first server; the active epoch is the keys' own, which
// costs what another would.
func (b *bench) rewraps(ctx context.Context, d time.Duration) (rewrapping, error) {
	var out rewrapping
	n := float64(len(b.service.rewrap))
	for _, l := range []struct {
		proved    bool
		keys, cpu *float64
	}{{false, &out.Loop, &out.LoopCPU}, {true, &out.Proved, &out.ProvedCPU}} {
		r, err := loopRun([]*part{b.rotate}, order{For: d / 2, Rewrap: true, Proved: l.proved})
		if err != nil {
			return out, fmt.Errorf("PKCS#11 loop: %w", err)
		}
		*l.keys, *l.cpu = n*float64(r.Operations)/r.Seconds, r.CPU["loop"]*1000/n
	}
	call := func(int) error {
		_, got, err := b.service.custodian.Rewrap(ctx, b.service.rewrap)
		for i := range got {
			err = errors.Join(err, got[i].Err)
		}
		return err
	}
	if err := call(0); err != nil { // connects
		return out, err
	}
	runtime.GC()
	before, err := b.serviceUsage(1)
	if err != nil {
		return out, err
	}
	took, wall, err := repeat(d, 1, call)
	if err != nil {
		return out, err
	}
	after, err := b.serviceUsage(1)
	r := newRun(took, wall, difference(after, before))
	out.Keys, out.Median, out.Server = n*float64(r.Operations)/r.Seconds, r.MedianMS, r.total()*1000/n
	return out, err
}

// soakReport is resident memory over very many blocks.
type soakReport struct {
	Blocks  int64        `json:"blocks"`
	Seconds float64      `json:"seconds"`
	Samples []soakSample `json:"samples"`
}

type soakSample struct {
	Blocks   int64     `json:"blocks"`      // opened so far
	Resident []float64 `json:"resident_mb"` // of each cryptoserver
}

// soak opens blocks with all batches in turn, from 8 clients, and looks ten
// times how large the cryptoservers are.
func (b *bench) soak(ctx context.Context, blocks int64) (_ *soakReport, err error) {
	const clients, samples = 8, 10
	b.say("memory over %d blocks", blocks)
	cs, disconnect, err := b.service.connect(len(b.warm.cryptoservers), clients)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, disconnect()) }()
	r := &soakReport{}
	began := time.Now()
	for i := range int64(samples + 1) {
		if i > 0 {
			n, err := b.openMany(ctx, cs, blocks*i/samples-r.Blocks)
			r.Blocks += n
			if err != nil {
				return nil, err
			}
		}
		s := soakSample{Blocks: r.Blocks}
		for _, pid := range b.warm.cryptoservers {
			m, err := memoryOf(pid)
			if err != nil {
				return nil, err
			}
			s.Resident = append(s.Resident, mb(m.Resident))
		}
		r.Samples = append(r.Samples, s)
		if i > 0 {
			b.say("%d blocks: %.1f MB", s.Blocks, s.Resident)
		}
	}
	r.Seconds = time.Since(began).Seconds()
	return r, nil
}

// openMany opens at least so many blocks.
func (b *bench) openMany(ctx context.Context, cs []*cryptoclient.Client, blocks int64) (int64, error) {
	one := int64(0) // all batches once
	for i := range b.service.batches {
		one += int64(b.service.batches[i].blocks)
	}
	turns := (blocks + one*int64(len(cs)) - 1) / (one * int64(len(cs)))
	for done := int64(0); done < turns; {
		// Between the calls, or the tokens would change under them.
		if err := b.service.authorise(ctx); err != nil {
			return 0, err
		}
		n := min(turns-done, 100)
		errs := make(chan error, len(cs))
		for _, c := range cs {
			go func() { errs <- b.turns(ctx, c, n) }()
		}
		var failed []error
		for range cs {
			failed = append(failed, <-errs)
		}
		if err := errors.Join(failed...); err != nil {
			return 0, err
		}
		done += n
	}
	return turns * one * int64(len(cs)), nil
}

func (b *bench) turns(ctx context.Context, c *cryptoclient.Client, n int64) error {
	for range n {
		for i := range b.service.batches {
			if err := b.service.batches[i].call(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// find are the measurements of one row of the report, of all rounds.
func find(rounds [][]throughput, batch string, servers, clients int, f func(throughput) float64) []float64 {
	var v []float64
	for _, round := range rounds {
		at := slices.IndexFunc(round, func(t throughput) bool { return t.Batch == batch && t.Servers == servers && t.Clients == clients })
		if at >= 0 {
			v = append(v, f(round[at]))
		}
	}
	return v
}

// serviceRounds: fewer than those of whole requests, since each has more to
// measure.
func (b *bench) serviceRounds() int { return min(b.rounds, 3) }
