package hsm

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kluis/cryptoserver/token"

	"github.com/miekg/pkcs11"
)

const (
	// queueLength bounds the batches waiting for one token. A longer queue
	// would only make callers miss their deadlines later.
	queueLength = 64
	// batchTimeout is the deadline of callers who bring none.
	batchTimeout = 10 * time.Second
	// signTimeout is the deadline of a signature; crypto.Signer has no context.
	signTimeout = 5 * time.Second
	// connectTimeout is how long opening a token may take: a login and some
	// forty attacks for each KEK.
	connectTimeout = 20 * time.Second
	// closeTimeout is how long Close waits for batches that are running.
	closeTimeout = 10 * time.Second
	// sweepEvery is how often data keys that outlived their time are destroyed.
	sweepEvery = time.Second

	pauseFirst = time.Second
	pauseMost  = 30 * time.Second
)

var (
	errStuck  = errors.New("a call into the module does not return")
	errClosed = errors.New("closed")
	// errReopening: another token of the role serves meanwhile.
	errReopening = errors.New("the connection is being opened anew")
)

// Who owns a job's buffers.
const (
	jobWaiting int32 = iota // the worker has not finished, the caller waits
	jobLeft                 // the caller went away, or was sent: the worker clears up
	jobDone                 // the caller may read the results
)

type job struct {
	run   func(a *access) error
	clear func() // called by the worker when the caller is gone
	state atomic.Int32
	gone  chan struct{} // closed with jobLeft
	done  chan error    // 1; only after the state was set

	work int64       // operations, as the load counts them
	over atomic.Bool // no load of the token any more
}

func newJob(run func(a *access) error, clear func()) *job {
	return &job{run: run, clear: clear, gone: make(chan struct{}), done: make(chan error, 1)}
}

// work is what a job counts for in the load of its token, and in its pace.
func work(kind string, operations int) int64 {
	switch kind {
	case kindForget, "check": // no measure of others
		return 0
	case "random": // of bytes
		operations /= 1024
	}
	return int64(max(operations, 1))
}

// leave takes the buffers from the caller, unless the job is done.
func (j *job) leave() bool {
	if !j.state.CompareAndSwap(jobWaiting, jobLeft) {
		return false
	}
	close(j.gone)
	return true
}

// finish answers the caller, or clears up when nobody waits.
func (j *job) finish(err error) {
	if j.state.CompareAndSwap(jobWaiting, jobDone) {
		j.done <- err
		return
	}
	j.clear()
}

// worker runs batches one after another on a session of its own.
type worker struct {
	pool *pool

	// crossing is the time at which the worker went into the module, in unix
	// nanoseconds; 0 outside of it, stuck when it was given up there. The shim
	// reads it, so it lies by itself.
	crossing *int64
	holds    atomic.Bool // the holder session; steady during a crossing
	job      atomic.Pointer[job]

	// Of the pool, under its lock.
	trial bool // not trusted yet: replaces one that is stuck

	// Of the worker alone.
	conn    *conn // that session is of; nil: none
	session pkcs11.SessionHandle
}

const stuck = -1

// cross runs f, which calls the module once.
func (w *worker) cross(f func() error) error {
	start := time.Now().UnixNano()
	atomic.StoreInt64(w.crossing, start)
	err := f()
	if !atomic.CompareAndSwapInt64(w.crossing, start, 0) {
		return errAbandoned
	}
	return err
}

// pool serves one token: one connection with its holder session, workers, one
// queue, and a keeper that watches them.
type pool struct {
	label   string
	connect func() (*conn, error)
	log     *slog.Logger
	metrics *tokenMetrics
	size    int // workers
	limits  limits
	public  *ecdsa.PublicKey      // of the signing key, which never changes; nil without
	macs    map[string][32]byte   // what conn.vectors must always be
	lost    func() (another bool) // told of each call given up; whether a worker may take its place
	made    func(objects int)     // told of session objects

	generation *atomic.Uint64 // of the group
	load       atomic.Int64   // work that waits or runs

	queue  chan *job
	ended  chan struct{} // closed when nobody will take from the queue any more
	keeper sync.WaitGroup

	mu      sync.Mutex
	machine machine
	cause   error // why it is down
	conn    *conn // nil while it is opened anew, and while down
	epochs  []uint32
	keys    []keyInfo
	others  []*pool // of the group
	pace    pace
	changed chan struct{} // closed and replaced with every change
	workers map[*worker]struct{}
	opening *opening
	pausing *time.Timer
	hung    bool // a call was given up
	closed  bool
}

// limits are the times a pool goes by.
type limits struct {
	call        time.Duration // one crossing into the module
	connect     time.Duration
	first, most time.Duration // pauses before opening anew
}

// opening is one attempt to connect.
type opening struct {
	start    time.Time
	incident uint64 // doubt it settles
	renewal  bool   // of the module: nothing was wrong
	over     bool   // given up, or done
	ended    chan struct{}
}

// end is under the lock of the pool.
func (o *opening) end() {
	o.over = true
	close(o.ended)
}

func newPool(label string, c *conn, connect func() (*conn, error), size int, l limits, generation *atomic.Uint64, lost func() bool, made func(int), log *slog.Logger, m *tokenMetrics) *pool {
	p := &pool{
		label: label, connect: connect, log: log, metrics: m, size: size, limits: l, lost: lost, made: made,
		queue: make(chan *job, queueLength), ended: make(chan struct{}),
		generation: generation, public: c.public, macs: c.vectors, conn: c, epochs: c.epochs, keys: c.keys, changed: make(chan struct{}), workers: map[*worker]struct{}{},
		pausing: time.NewTimer(time.Hour),
	}
	p.pausing.Stop()
	for range size {
		w := &worker{pool: p, crossing: new(int64)}
		p.workers[w] = struct{}{}
		go w.loop()
	}
	p.keeper.Go(p.keep)
	return p
}

// do runs f on the token and returns what it returned; ErrUnavailable by the
// context's deadline; ErrBusy at once when too many wait already. f may still
// be running when the caller left, so it touches only buffers that the job
// owns. mine says that these are the caller's again; otherwise the worker
// calls clear when f is over.
func (p *pool) do(ctx context.Context, kind string, operations int, f func(a *access) error, clear func()) (mine bool, err error) {
	start := time.Now()
	defer func() {
		switch {
		case err == nil:
			p.metrics.done(kind, operations, time.Since(start))
		case errors.Is(err, token.ErrBusy): // before ErrUnavailable, which it is, too
			p.metrics.failed(kind, "busy")
		case !errors.Is(err, token.ErrUnavailable):
			p.metrics.failed(kind, "refused")
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
			p.metrics.failed(kind, "left")
		default:
			p.metrics.failed(kind, "down")
		}
	}()
	if err := p.serving(); err != nil {
		return true, unavailable(p.label, err)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, batchTimeout)
		defer cancel()
	}
	j := newJob(f, clear)
	j.work = work(kind, operations)
	p.load.Add(j.work)
	select {
	case p.queue <- j:
	default:
		if kind != kindForget {
			p.settle(j)
			return true, fmt.Errorf("token %s: %w", p.label, token.ErrBusy)
		}
		select { // before everybody who comes later: a send that waits is the next to succeed
		case p.queue <- j:
		case <-ctx.Done():
			p.settle(j)
			return true, unavailable(p.label, ctx.Err())
		case <-p.ended:
			p.settle(j)
			return true, unavailable(p.label, errClosed)
		}
	}
	p.metrics.queue(len(p.queue))
	if err := p.serving(); err != nil {
		p.drain(err) // whoever emptied the queue may have been before us
	}
	select {
	case err := <-j.done:
		return j.state.Load() == jobDone, err
	case <-ctx.Done():
		if j.leave() {
			return false, unavailable(p.label, ctx.Err())
		}
	case <-p.ended: // and this job came too late to be drained
		if j.leave() {
			return false, unavailable(p.label, errClosed)
		}
	}
	err = <-j.done
	return j.state.Load() == jobDone, err
}

// settle takes a job out of the load.
func (p *pool) settle(j *job) {
	if !j.over.Swap(true) {
		p.load.Add(-j.work)
	}
}

// serving says at once what makes waiting pointless.
func (p *pool) serving() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.servingLocked()
}

func (p *pool) servingLocked() error {
	switch {
	case p.closed:
		return errClosed
	case !p.machine.serves():
		return p.cause
	}
	for w := range p.workers {
		if !w.trial {
			return nil
		}
	}
	return errStuck
}

// drain turns away everybody who waits.
func (p *pool) drain(err error) {
	for {
		select {
		case j := <-p.queue:
			p.settle(j)
			j.finish(unavailable(p.label, err))
		default:
			p.metrics.queue(0)
			return
		}
	}
}

// announce publishes the state; under the lock, after every change.
func (p *pool) announce() {
	p.metrics.state(p.machine.state)
	close(p.changed)
	p.changed = make(chan struct{})
}

// keep watches the workers until the pool is closed and empty.
func (p *pool) keep() {
	watch := time.NewTicker(max(p.limits.call/8, time.Millisecond))
	defer watch.Stop()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	defer p.pausing.Stop()
	for {
		select {
		case <-p.ended:
			return
		case now := <-watch.C:
			p.watch(now)
		case <-sweep.C:
			p.sweep()
		case <-p.pausing.C:
			p.probe()
		}
	}
}

// watch gives up calls that take too long.
func (p *pool) watch(now time.Time) {
	p.mu.Lock()
	var late []*worker
	for w := range p.workers {
		since := atomic.LoadInt64(w.crossing)
		if since > 0 && now.Sub(time.Unix(0, since)) > p.limits.call && atomic.CompareAndSwapInt64(w.crossing, since, stuck) {
			late = append(late, w)
		}
	}
	o := p.opening
	overdue := o != nil && now.Sub(o.start) > p.limits.connect
	p.mu.Unlock()
	for _, w := range late {
		p.abandon(w)
	}
	if overdue {
		p.abandonOpening(o)
	}
}

// abandon goes on without a worker whose call does not return. Its session,
// and the connection, which stays in use by it, are never touched again.
func (p *pool) abandon(w *worker) {
	another := p.lost()
	p.metrics.stuck()
	p.log.Error("a call into the HSM module does not return; its session is given up", "token", p.label, "after", p.limits.call)

	p.mu.Lock()
	p.hung = true
	delete(p.workers, w)
	incident := p.machine.doubt()
	if w.holds.Load() {
		close(w.conn.gone)
		p.renewLocked(w.conn)
	}
	if another && !p.closed {
		r := &worker{pool: p, crossing: new(int64), trial: true}
		p.workers[r] = struct{}{}
		go r.prove(incident)
	}
	err := p.servingLocked()
	p.announce()
	p.mu.Unlock()

	if j := w.job.Load(); j != nil {
		p.settle(j)
		p.sendAway(j)
	}
	if err != nil {
		p.drain(err)
	}
}

// sendAway answers the caller of a job that is stuck, and keeps its buffers.
func (p *pool) sendAway(j *job) {
	if j.leave() {
		j.done <- unavailable(p.label, errStuck)
	}
}

func (p *pool) abandonOpening(o *opening) {
	p.mu.Lock()
	if o.over {
		p.mu.Unlock()
		return
	}
	o.end()
	p.opening = nil
	p.hung = true
	p.lost()
	p.metrics.stuck()
	p.metrics.reopened(errStuck)
	p.failLocked(fmt.Errorf("opening the token: %w", errStuck))
	p.mu.Unlock()
	p.drain(errStuck)
}

// sweep has a worker destroy the data keys that outlived their time.
func (p *pool) sweep() {
	if p.serving() != nil {
		return
	}
	j := newJob(func(a *access) error {
		if a.unwrapped == nil {
			return nil
		}
		err := a.holding(func() error {
			a.unwrapped.expire(time.Now())
			return a.flush()
		})
		if errors.Is(err, errAbandoned) {
			return err
		}
		a.tidying = err
		return nil
	}, func() {})
	j.leave() // nobody waits for it
	select {
	case p.queue <- j:
	default: // a busy worker destroys keys after each batch
	}
}

func (w *worker) loop() {
	p := w.pool
	defer p.retire(w)
	for {
		p.mu.Lock()
		closed := p.closed
		p.mu.Unlock()
		if closed {
			return
		}
		select {
		case j := <-p.queue:
			p.metrics.queue(len(p.queue))
			w.job.Store(j)
			err := p.attempt(w, j)
			w.job.Store(nil)
			p.settle(j)
			if errors.Is(err, errAbandoned) {
				p.sendAway(j)
				j.clear() // it is over; the buffers are nobody else's
				return
			}
			j.finish(err)
		case <-p.change():
		}
	}
}

func (p *pool) change() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		done := make(chan struct{})
		close(done)
		return done
	}
	return p.changed
}

// retire ends a worker.
func (p *pool) retire(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.workers[w]; ok {
		delete(p.workers, w)
		p.announce()
	}
}

// prove is the start of a worker that replaces a stuck one: a canary first.
func (w *worker) prove(incident uint64) {
	p := w.pool
	err := p.attempt(w, newJob(func(a *access) error { return a.canary(a.newestEpoch()) }, func() {}))
	if errors.Is(err, errAbandoned) {
		return
	}
	p.mu.Lock()
	w.trial = false // a token that failed the trial is down, and is tried again before it serves
	p.machine.settle(incident)
	p.announce()
	p.mu.Unlock()
	w.loop()
}

// use gives a worker the connection, waiting while it is opened anew.
func (p *pool) use(j *job) (*conn, error) {
	for {
		p.mu.Lock()
		switch {
		case p.conn != nil:
			p.conn.users++
			c := p.conn
			p.mu.Unlock()
			return c, nil
		case p.closed:
			p.mu.Unlock()
			return nil, errClosed
		case !p.machine.serves():
			err := p.cause
			p.mu.Unlock()
			return nil, err
		}
		changed, others := p.changed, p.others
		p.mu.Unlock()
		if slices.ContainsFunc(others, (*pool).ready) {
			return nil, errReopening
		}
		select {
		case <-changed:
		case <-j.gone:
			return nil, token.ErrUnavailable
		}
	}
}

// unuse gives the connection back; the last one closes it when there is a new
// one, or none.
func (p *pool) unuse(w *worker, c *conn) error {
	p.mu.Lock()
	c.users--
	last := c.users == 0 && p.conn != c
	p.mu.Unlock()
	if !last {
		return nil
	}
	return w.cross(func() error { c.close(); return nil })
}

// attempt runs a job; where the answer of the module allows it a second time,
// on a new session or a new connection.
func (p *pool) attempt(w *worker, j *job) error {
	for second := false; ; second = true {
		c, err := p.use(j)
		if err != nil {
			return unavailable(p.label, err)
		}
		again, err := p.try(w, c, j, second)
		if errors.Is(err, errAbandoned) {
			return err // the connection stays in use, so that nobody closes it
		}
		if e := p.unuse(w, c); e != nil {
			return e
		}
		if !again {
			return err
		}
	}
}

// try runs a job once and settles what its answer says of the token.
func (p *pool) try(w *worker, c *conn, j *job, second bool) (again bool, err error) {
	a, err := w.access(c, j)
	start := time.Now()
	if err == nil {
		err = j.run(a)
	}
	if errors.Is(err, errAbandoned) {
		return false, err
	}
	class := classify(err)
	switch {
	case class == classNone:
		if err == nil {
			p.mu.Lock()
			p.machine.served()
			p.pace.took(j.work, time.Since(start))
			p.mu.Unlock()
		}
		if a.tidying != nil {
			p.untidy(c, a.tidying)
		}
		return false, err
	case second, class == classDown, class == classLatched:
		p.fail(c, err)
		return false, unavailable(p.label, err)
	}
	p.log.Warn("HSM answers with an error, trying once more", "token", p.label, "error", err)
	if class == classHolder {
		p.renew(c)
		return true, nil
	}
	defer p.doubt()()
	if e := w.drop(); e != nil {
		return false, e
	}
	p.metrics.replaced()
	if class == classData { // of no item: is it the token?
		a, e := w.access(c, j)
		if e == nil {
			e = a.canary(a.newestEpoch())
		}
		switch {
		case errors.Is(e, errAbandoned):
			return false, e
		case e != nil:
			e = fmt.Errorf("%w: %w", errCanary, e)
			p.fail(c, e)
			return false, unavailable(p.label, e)
		}
	}
	return true, nil
}

// doubt notes one; whoever settles it by fail need not call settle, and may.
func (p *pool) doubt() (settle func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	incident := p.machine.doubt()
	p.announce()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.machine.settle(incident)
		p.announce()
	}
}

// access gives the worker a session on the connection.
func (w *worker) access(c *conn, j *job) (*access, error) {
	if w.conn != c {
		// A session of another connection ends with that one.
		p := w.pool
		p.mu.Lock()
		w.conn, w.session = c, 0
		p.mu.Unlock()
	}
	if w.session == 0 {
		err := w.cross(func() (err error) {
			w.session, err = c.open()
			return err
		})
		if errors.Is(err, errAbandoned) {
			return nil, err
		}
		if err != nil {
			return nil, held(err) // nothing of this worker's was lost: the connection is in doubt
		}
		w.pool.mu.Lock()
		c.sessions[w.session] = struct{}{}
		w.pool.mu.Unlock()
	}
	return &access{conn: c, shim: c.mod.shim.watched(w.crossing), work: w.session, worker: w, job: j, metrics: w.pool.metrics}, nil
}

// drop closes the worker's session.
func (w *worker) drop() error {
	if w.conn == nil || w.session == 0 {
		return nil
	}
	s := w.session
	w.pool.mu.Lock()
	delete(w.conn.sessions, s)
	w.pool.mu.Unlock()
	w.session = 0
	return w.cross(func() error {
		_ = w.conn.mod.raw.CloseSession(s) // it may be gone already
		return nil
	})
}

// untidy is told that data keys could not be destroyed after a batch that went
// well: the holder session is in doubt, and its end destroys them.
func (p *pool) untidy(c *conn, err error) {
	p.log.Warn("data keys could not be destroyed; the connection is opened anew to be rid of them", "token", p.label, "error", err)
	p.renew(c)
}

// renew has the token opened anew while callers wait.
func (p *pool) renew(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.renewLocked(c)
	p.announce()
}

// renewLocked does nothing when the connection has been given up already.
func (p *pool) renewLocked(c *conn) {
	if p.conn != c || p.closed {
		return
	}
	p.conn = nil
	p.openLocked(opening{incident: p.machine.doubt()})
}

// fail takes the token down, unless what failed was replaced meanwhile.
func (p *pool) fail(c *conn, err error) {
	p.mu.Lock()
	if p.conn != c {
		p.mu.Unlock()
		return
	}
	p.conn = nil
	p.failLocked(err)
	p.mu.Unlock()
	p.drain(err)
}

func (p *pool) failLocked(err error) {
	if p.closed {
		return
	}
	again := p.machine.failures > 0
	latch := classify(err) == classLatched
	p.machine.fail(latch)
	p.cause = err
	switch {
	case latch:
		p.metrics.latch()
		p.log.Error("HSM token is down until an operator acts", "token", p.label, "error", err)
	case !again:
		p.log.Error("HSM token is down", "token", p.label, "error", err)
	}
	if !p.machine.latched {
		p.pausing.Reset(p.machine.pause(p.limits.first, p.limits.most, rand.Float64()))
	}
	p.announce()
}

// probe opens a token that is down.
func (p *pool) probe() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.opening != nil || !p.machine.probe() {
		return
	}
	p.openLocked(opening{})
	p.announce()
}

func (p *pool) openLocked(o opening) *opening {
	o.start, o.ended = time.Now(), make(chan struct{})
	p.opening = &o
	go p.open(&o)
	return &o
}

// open connects. It runs by itself, for it may hang.
func (p *pool) open(o *opening) {
	c, err := p.connect()
	if err == nil && p.public != nil && !p.public.Equal(c.public) {
		err = fmt.Errorf("%w: the signing key is another one than at start", errKeys)
	}
	if err == nil && !maps.Equal(p.macs, c.vectors) {
		err = fmt.Errorf("%w: a MAC key is another one than at start", errKeys)
	}
	p.mu.Lock()
	if !o.over && !p.closed && err == nil {
		if !o.renewal {
			p.metrics.reopened(nil)
		}
		if p.machine.state == StateProbing {
			p.log.Info("HSM token is back", "token", p.label)
		}
		o.end()
		p.opening = nil
		p.conn, p.epochs, p.keys, p.cause = c, c.epochs, c.keys, nil
		p.machine.opened()
		p.machine.settle(o.incident)
		p.announce()
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	if c != nil {
		c.close()
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	if o.over {
		return
	}
	o.end()
	p.opening = nil
	if p.closed {
		p.announce()
		return
	}
	p.metrics.reopened(err)
	p.failLocked(err)
	p.drain(err)
}

// close turns callers away, lets running batches finish and logs out. A call
// that is stuck in the module is left behind with its session.
func (p *pool) close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		<-p.ended
		return nil
	}
	p.closed = true
	p.announce()
	p.mu.Unlock()
	p.drain(errClosed)

	timeout := time.NewTimer(closeTimeout)
	defer timeout.Stop()
	err := p.idle(timeout.C)
	p.mu.Lock()
	c := p.conn
	p.conn = nil
	if c != nil && c.users > 0 {
		c = nil // a call on it does not return
	}
	p.mu.Unlock()
	if c != nil {
		closed := make(chan struct{})
		go func() { c.close(); close(closed) }()
		select {
		case <-closed:
		case <-timeout.C:
			err = fmt.Errorf("token %s: logging out: %w", p.label, errStuck)
		}
	}
	close(p.ended)
	p.drain(errClosed)
	p.keeper.Wait()
	return err
}

// idle waits until no worker and no opening is left but stuck ones. An opening
// after a call hung is likely to hang, too; it closes what it opened itself.
func (p *pool) idle(timeout <-chan time.Time) error {
	for {
		p.mu.Lock()
		left, changed := len(p.workers) > 0 || p.opening != nil && !p.hung, p.changed
		p.mu.Unlock()
		if !left {
			return nil
		}
		select {
		case <-changed:
		case <-timeout:
			return fmt.Errorf("token %s: %w; its session stays open until the process ends", p.label, errStuck)
		}
	}
}

// check does one cheap real operation.
func (p *pool) check(ctx context.Context) error {
	_, err := p.do(ctx, "check", 1, func(a *access) error { return a.canary(a.newestEpoch()) }, func() {})
	return err
}

// held lists the KEK epochs of the token, ascending, as of when it was last
// opened.
func (p *pool) held() []uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.epochs)
}

const kindForget = "forget"

// forget empties the cache of the connection there is. A connection that comes
// later has a cache of its own, empty, and no batch that comes later uses one
// that was given up; so of a token that is down, or being opened, there is
// nothing to forget. The keys of a connection that was given up die with it,
// when the last batch on it is over. Where a call on it never returns, that is
// with the process.
func (p *pool) forget(ctx context.Context) error {
	p.mu.Lock()
	c := p.conn
	p.mu.Unlock()
	for {
		changed := p.change()
		if c == nil || p.gaveUp(c) {
			return nil
		}
		_, err := p.do(ctx, kindForget, 1, func(a *access) error {
			if a.unwrapped == nil {
				return nil
			}
			return a.holding(func() error {
				a.unwrapped.purge()
				return a.flush()
			})
		}, func() {})
		if err == nil || p.gaveUp(c) {
			return nil
		}
		// A worker hangs, and the connection stays: its replacement may do it.
		select {
		case <-changed:
		case <-ctx.Done():
			return err
		case <-p.ended:
			return nil
		}
	}
}

// gaveUp says whether c is no longer what batches that come later are given.
func (p *pool) gaveUp(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn != c || p.closed
}

// report describes the token.
func (p *pool) report() token.Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := token.Report{Label: p.label, State: p.machine.state.String(), Handles: p.metrics.handles.Load()}
	for _, k := range p.keys {
		r.Keys = append(r.Keys, k.report())
	}
	return r
}

// setSiblings says which tokens serve the role, too.
func (p *pool) setSiblings(others []*pool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.others = others
}

// readiness is how likely a batch is to be served.
type readiness int

const (
	away    readiness = iota // turned away at once
	waiting                  // served when the connection is there again
	now
)

func (p *pool) readinessLocked() readiness {
	switch {
	case p.servingLocked() != nil:
		return away
	case p.conn == nil:
		return waiting
	}
	return now
}

func (p *pool) ready() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.readinessLocked() == now
}

// outlook is what a batch that comes now can expect of a token.
type outlook struct {
	readiness readiness
	pace      float64 // seconds for an operation
	ahead     int64   // operations that wait or run
	workers   int
	inside    float64 // seconds that the call has taken that may be over first
}

func (p *pool) outlook() outlook {
	o := outlook{ahead: p.load.Load()}
	p.mu.Lock()
	defer p.mu.Unlock()
	o.readiness, o.pace = p.readinessLocked(), p.pace.seconds()
	first := time.Duration(math.MaxInt64)
	for w := range p.workers {
		if w.trial {
			continue
		}
		o.workers++
		in := time.Duration(0)
		if since := atomic.LoadInt64(w.crossing); since > 0 {
			in = max(0, time.Since(time.Unix(0, since)))
		}
		first = min(first, in)
	}
	o.inside = first.Seconds()
	return o
}

// slowest bounds how much slower than the fastest a token at rest is believed
// to be. It may be well again, and only a batch now and then can tell.
const slowest = 4

// wait estimates in seconds when the batch would be done; best is the pace of
// the fastest token. A call that has taken long already is expected to take as
// long again: a token that hangs is avoided long before the call is given up.
func (o outlook) wait(operations int, best float64) float64 {
	if o.ahead == 0 {
		o.pace = min(o.pace, slowest*best)
	}
	return float64(o.ahead+int64(max(operations, 1)))*o.pace/float64(max(o.workers, 1)) + o.inside
}

// pace is how long a token takes for an operation, of late.
type pace struct{ spent, done float64 }

const (
	paceAtFirst = 50e-6 // seconds; before anything was measured
	paceKept    = 0.9   // of what was measured, with each further batch
)

func (p *pace) took(work int64, d time.Duration) {
	if work == 0 {
		return
	}
	p.spent = paceKept*p.spent + d.Seconds()
	p.done = paceKept*p.done + float64(work)
}

func (p *pace) seconds() float64 {
	if p.done == 0 {
		return paceAtFirst
	}
	return max(p.spent/p.done, 1e-9)
}
