package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"
)

// The names of what is measured. Each is followed by the number of clients.
const (
	kluisWarm = "kluis, keys cached"
	kluisCold = "kluis, keys unwrapped"
	hsmWarm   = "PKCS#11 loop, keys cached"
	hsmCold   = "PKCS#11 loop, keys unwrapped"
	sqlFloor  = "SQL and commit"
	tlsFloor  = "mTLS handler, token verified"
	tlsCached = "mTLS handler, token cached"
)

// run is one measurement.
type run struct {
	Operations int                `json:"operations"`
	Seconds    float64            `json:"seconds"`
	MedianMS   float64            `json:"median_ms"`
	P99MS      float64            `json:"p99_ms"`
	CPU        map[string]float64 `json:"cpu_ms"` // per operation, by process
}

// Processes that are not counted: nobody waits for the auditor.
const (
	clientCPU  = "client"
	auditorCPU = "auditor"
)

// total is the CPU of an operation but for the client's and the auditor's.
func (r run) total() float64 {
	t := 0.0
	for process, ms := range r.CPU {
		if process != clientCPU && process != auditorCPU {
			t += ms
		}
	}
	return t
}

func newRun(took []time.Duration, wall time.Duration, cpu map[string]time.Duration) run {
	slices.Sort(took)
	n := len(took)
	r := run{Operations: n, Seconds: wall.Seconds(), MedianMS: ms(took[n/2]), P99MS: ms(took[min(n-1, n*99/100)]), CPU: map[string]float64{}}
	for process, t := range cpu {
		r.CPU[process] = ms(t) / float64(n)
	}
	return r
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// round holds the runs of one round by name and number of clients.
type round map[string]map[int]run

// clients are the concurrencies that everything is measured at.
var clients = []int{1, 8}

// most is the concurrency at which memory is measured.
const most = 64

// bench is all that a measurement needs.
type bench struct {
	options
	*world
	*subject
	client  *client
	size    int // of the answer, in bytes
	hsm     []*part
	sql     *part
	tls     *part
	before  int // access records of the subject, by the demo's own suppliers
	made    int // requests to Kluis since
	proof   *evidence
	service *service
	loops   []*part // over the service's batches
	rotate  *part   // on the first rotate token
}

func measure(ctx context.Context, o options, dir string) (_ *report, err error) {
	b := &bench{options: o}
	defer func() { err = errors.Join(err, b.stop()) }()
	b.say("starting a demo")
	if b.world, err = startWorld(ctx, o.bin, dir); err != nil {
		return nil, err
	}
	profile, err := b.marketProfile()
	if err != nil {
		return nil, err
	}
	if b.subject, err = b.findSubject(ctx, profile); err != nil {
		return nil, err
	}
	if b.before, err = b.recorded(ctx, b.subject); err != nil {
		return nil, err
	}
	sup := b.ready.Suppliers[b.supplier]
	if b.client, err = newClient(b.ready.CAFile, sup.CertificateFile, sup.KeyFile, b.ready.IssuerURL, sup.ClientID); err != nil {
		return nil, err
	}
	if err := b.firstAnswer(ctx); err != nil {
		return nil, err
	}
	if b.service, err = b.newService(ctx, profile); err != nil {
		return nil, err
	}
	if o.profile > 0 {
		return nil, b.justLoad(ctx)
	}
	r := b.newReport()
	if o.onlyMemory {
		r.Soak, err = b.soak(ctx, o.soakBlocks)
		return r, err
	}
	if !o.onlyService {
		if err := b.requests(ctx, r); err != nil {
			return nil, err
		}
	}
	if !o.onlyRequests {
		if err := b.services(ctx, r); err != nil {
			return nil, err
		}
		if r.Soak, err = b.soak(ctx, o.soakBlocks); err != nil {
			return nil, err
		}
	}
	// No record, no data.
	if n, err := b.recorded(ctx, b.subject); err != nil || n != b.before+b.made {
		return nil, errors.Join(fmt.Errorf("%d requests left %d access records", b.made, n-b.before), err)
	}
	return r, nil
}

// requests measures whole requests and the floor.
func (b *bench) requests(ctx context.Context, r *report) error {
	if err := b.startFloor(ctx); err != nil {
		return err
	}
	r.Evidence = b.proof.parts
	b.say("warming up")
	if _, err := b.round(ctx, b.slice/4); err != nil {
		return err
	}
	for i := range b.rounds {
		b.say("round %d of %d", i+1, b.rounds)
		rd, err := b.round(ctx, b.slice)
		if err != nil {
			return err
		}
		r.Rounds = append(r.Rounds, rd)
	}
	if err := b.probes(ctx, r, b.slice); err != nil {
		return fmt.Errorf("probes: %w", err)
	}
	return b.memory(ctx, r)
}

// services measures the cryptoservers by themselves.
func (b *bench) services(ctx context.Context, r *report) error {
	if err := errors.Join(b.startLoops(), b.startRotateLoop()); err != nil {
		return err
	}
	for i := range b.serviceRounds() {
		b.say("cryptoservers by themselves, round %d of %d", i+1, b.serviceRounds())
		rd, err := b.serviceRound(ctx, b.slice/2)
		if err != nil {
			return err
		}
		r.Service = append(r.Service, rd)
		again, err := b.rewraps(ctx, b.slice)
		if err != nil {
			return fmt.Errorf("rewrap: %w", err)
		}
		r.Rewrap = append(r.Rewrap, again)
	}
	return nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "  "+format+"\n", args...)
}

func (b *bench) stop() error {
	var errs []error
	for _, p := range append(slices.Concat(b.hsm, b.loops), b.rotate, b.sql, b.tls) {
		if p != nil {
			errs = append(errs, p.in.Close(), p.stop())
		}
	}
	if b.proof != nil {
		errs = append(errs, b.proof.close())
	}
	if b.client != nil {
		b.client.http.CloseIdleConnections()
	}
	if b.service != nil {
		errs = append(errs, b.service.close())
	}
	if b.world != nil {
		errs = append(errs, b.world.stop())
	}
	return errors.Join(errs...)
}

// firstAnswer checks that both pools give everything that was asked for.
func (b *bench) firstAnswer(ctx context.Context) error {
	if err := b.client.authorise(ctx); err != nil {
		return err
	}
	for _, p := range []pool{b.warm, b.cold} {
		var a struct {
			Series []struct {
				Expected  int `json:"expectedCount"`
				Delivered int `json:"deliveredCount"`
			} `json:"series"`
			Withheld []any `json:"withheld"`
		}
		err := b.client.get(ctx, p.url+b.path(), func(res *http.Response) error {
			b.size = int(res.ContentLength)
			return json.NewDecoder(res.Body).Decode(&a)
		})
		if err != nil {
			return err
		}
		b.made++
		// The demo's meters have a gap now and then.
		for _, s := range a.Series {
			if s.Delivered*100 < s.Expected*95 {
				return fmt.Errorf("the answer has %d values of %d", s.Delivered, s.Expected)
			}
		}
		if len(a.Series) != len(b.fields) || len(a.Withheld) > 0 {
			return fmt.Errorf("the answer is not complete: %d series, %d withheld", len(a.Series), len(a.Withheld))
		}
	}
	return nil
}

func (b *bench) startFloor(ctx context.Context) error {
	for i := range b.warm.cryptoservers {
		setup, err := b.tokenSetup(i)
		if err != nil {
			return err
		}
		setup.add(b.keys, b.items)
		p, err := startPart("hsm", setup, b.softHSM(i))
		if err != nil {
			return err
		}
		b.hsm = append(b.hsm, p)
	}
	q, err := b.sqlSetup(ctx, b.subject, b.root, slices.Max(clients))
	if err != nil {
		return err
	}
	if b.sql, err = startPart("sql", q); err != nil {
		return err
	}
	h, err := b.tlsSetup(b.size)
	if err != nil {
		return err
	}
	if b.tls, err = startPart("tls", h); err != nil {
		return err
	}
	b.proof, err = b.newEvidence(ctx, b.service.profile, filepath.Join(b.state, "bench-journal"))
	return err
}

// round measures everything once, Kluis and the floor in turn.
func (b *bench) round(ctx context.Context, slice time.Duration) (round, error) {
	if err := b.client.authorise(ctx); err != nil {
		return nil, err
	}
	rd := round{}
	for _, n := range clients {
		for _, m := range []struct {
			name string
			f    func() (run, error)
		}{
			{kluisWarm, func() (run, error) { return b.kluis(ctx, b.warm, slice, n) }},
			{hsmWarm, func() (run, error) { return b.hsmRun(slice/2, n, false) }},
			{sqlFloor, func() (run, error) { return b.sqlRun(slice/2, n, false) }},
			{partCommit, func() (run, error) { return b.sqlRun(slice/4, n, true) }},
			{tlsFloor, func() (run, error) { return b.tlsRun(ctx, "/verify", slice/2, n) }},
			{tlsCached, func() (run, error) { return b.tlsRun(ctx, "/cached", slice/2, n) }},
			{kluisCold, func() (run, error) { return b.kluis(ctx, b.cold, slice, n) }},
			{hsmCold, func() (run, error) { return b.hsmRun(slice/2, n, true) }},
		} {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			r, err := m.f()
			if err != nil {
				return nil, fmt.Errorf("%s, %d clients: %w", m.name, n, err)
			}
			if rd[m.name] == nil {
				rd[m.name] = map[int]run{}
			}
			rd[m.name][n] = r
		}
	}
	parts, err := b.proof.measure(slice / 8)
	if err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	for name, r := range parts {
		rd[name] = map[int]run{1: r}
	}
	return rd, nil
}

// kluis measures whole requests.
func (b *bench) kluis(ctx context.Context, p pool, d time.Duration, n int) (run, error) {
	runtime.GC()
	before, err := b.usage(p)
	if err != nil {
		return run{}, err
	}
	took, wall, err := b.client.load(ctx, p.url+b.path(), b.size, d, n)
	if err != nil {
		return run{}, err
	}
	b.made += len(took)
	after, err := b.usage(p)
	return newRun(took, wall, difference(after, before)), err
}

// usage is the CPU time so far of all who serve a request, and of the client.
func (b *bench) usage(p pool) (map[string]time.Duration, error) {
	u := map[string]time.Duration{clientCPU: selfCPU()}
	var errs [4]error
	u["gateway"], errs[0] = cpuOf(p.gateway)
	for i, pid := range p.cryptoservers {
		var err error
		u[fmt.Sprintf("cryptoserver-%d", i+1)], err = cpuOf(pid)
		errs[1] = errors.Join(errs[1], err)
	}
	u["postgresql"], errs[2] = cpuOfTree(b.ready.PostgresPID)
	u[auditorCPU], errs[3] = cpuOf(b.ready.AuditorPID)
	return u, errors.Join(errs[:]...)
}

func difference(after, before map[string]time.Duration) map[string]time.Duration {
	d := map[string]time.Duration{}
	for k := range after {
		d[k] = after[k] - before[k]
	}
	return d
}

// hsmRun measures the loop: on one token for one client, on both at once for
// more, as the pool has them.
func (b *bench) hsmRun(d time.Duration, n int, cold bool) (run, error) {
	return loopRun(b.hsm[:min(n, len(b.hsm))], order{For: d, Concurrency: 1, Cold: cold})
}

// loopRun has several loops do the same, each on its token.
func loopRun(parts []*part, o order) (run, error) {
	type result struct {
		a   partAnswer
		err error
	}
	results := make(chan result, len(parts))
	for _, p := range parts {
		go func() {
			a, err := p.work(o)
			results <- result{a, err}
		}()
	}
	var took []time.Duration
	var cpu, wall time.Duration
	var errs []error
	for range parts {
		r := <-results
		errs = append(errs, r.err)
		took = append(took, r.a.Took...)
		cpu += r.a.CPU
		wall = max(wall, r.a.Wall)
	}
	if err := errors.Join(errs...); err != nil {
		return run{}, err
	}
	return newRun(took, wall, map[string]time.Duration{"loop": cpu}), nil
}

// sqlRun measures the statements of a request, or only the commit of its record.
func (b *bench) sqlRun(d time.Duration, n int, record bool) (run, error) {
	before, err := cpuOfTree(b.ready.PostgresPID)
	if err != nil {
		return run{}, err
	}
	a, err := b.sql.work(order{For: d, Concurrency: n, Record: record})
	if err != nil {
		return run{}, err
	}
	after, err := cpuOfTree(b.ready.PostgresPID)
	return newRun(a.Took, a.Wall, map[string]time.Duration{"driver": a.CPU, "postgresql": after - before}), err
}

func (b *bench) tlsRun(ctx context.Context, path string, d time.Duration, n int) (run, error) {
	runtime.GC()
	server, err := cpuOf(b.tls.pid())
	if err != nil {
		return run{}, err
	}
	before := map[string]time.Duration{"handler": server, clientCPU: selfCPU()}
	took, wall, err := b.client.load(ctx, b.tls.ready.Address+path, b.size, d, n)
	if err != nil {
		return run{}, err
	}
	server, err = cpuOf(b.tls.pid())
	after := map[string]time.Duration{"handler": server, clientCPU: selfCPU()}
	return newRun(took, wall, difference(after, before)), err
}

// memory loads Kluis with many clients and looks how large it becomes.
func (b *bench) memory(ctx context.Context, r *report) error {
	b.say("memory with %d clients", most)
	if err := b.client.authorise(ctx); err != nil {
		return err
	}
	pids := map[string]int{"gateway": b.warm.gateway}
	for i, pid := range b.warm.cryptoservers {
		pids[fmt.Sprintf("cryptoserver-%d", i+1)] = pid
	}
	for name, pid := range pids {
		m, err := memoryOf(pid)
		if err == nil {
			err = resetPeak(pid)
		}
		if err != nil {
			return err
		}
		r.Memory[name] = &memoryReport{BeforeMB: mb(m.Resident)}
	}
	var err error
	if r.Most, err = b.kluis(ctx, b.warm, b.slice, most); err != nil {
		return err
	}
	for name, pid := range pids {
		m, err := memoryOf(pid)
		if err != nil {
			return err
		}
		r.Memory[name].AfterMB, r.Memory[name].PeakMB = mb(m.Resident), mb(m.Peak)
	}
	n, err := memoryOfTree(b.ready.PostgresPID)
	r.Memory["postgresql"] = &memoryReport{AfterMB: mb(n)}
	return err
}

func mb(n int64) float64 { return float64(n) / 1e6 }

// justLoad keeps Kluis busy for a profiler.
func (b *bench) justLoad(ctx context.Context) error {
	if b.batch > 0 {
		return b.justOpen(ctx)
	}
	b.say("load for %s: gateway %d, cryptoservers %v, postgresql %d, client %d", b.profile, b.warm.gateway, b.warm.cryptoservers, b.ready.PostgresPID, os.Getpid())
	r, err := b.kluis(ctx, b.warm, b.profile, 8)
	if err == nil {
		b.say("%.0f requests/s, median %.2f ms, CPU %.3f ms", float64(r.Operations)/r.Seconds, r.MedianMS, r.total())
	}
	return err
}
