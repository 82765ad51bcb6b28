package hsm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"kluis/cryptoserver/token"
)

const (
	// queueLength bounds the batches waiting for one token. A longer queue
	// would only make callers miss their deadlines later.
	queueLength = 64
	// callTimeout is the deadline of callers who bring none.
	callTimeout = 10 * time.Second
	// signTimeout is the deadline of a signature; crypto.Signer has no context.
	signTimeout = 5 * time.Second
	// stuckAfter is how long one batch may run before the token counts as
	// hung and callers are turned away at once.
	stuckAfter = 10 * time.Second
	// hopelessAfter is how long a call into the module may last before only a
	// new process helps: well beyond any deadline of a caller, who being gone
	// ends a batch between two chunks.
	hopelessAfter = time.Minute
	// closeTimeout is how long Close waits for a batch that is running.
	closeTimeout = 10 * time.Second

	probeFirst = time.Second
	probeMost  = 30 * time.Second
)

var (
	errQueueFull = token.ErrBusy
	errStuck     = errors.New("a call into the module does not return")
	errClosed    = errors.New("closed")
)

// Who owns a job's buffers.
const (
	jobWaiting int32 = iota // the executor has not finished, the caller waits
	jobLeft                 // the caller went away: the executor clears up
	jobDone                 // the caller may read the results
)

type job struct {
	run   func(c *conn, left func() bool) error
	clear func() // called by the executor when the caller left
	state atomic.Int32
	done  chan error // 1
}

// executor owns one token: one goroutine, one connection, one queue.
type executor struct {
	label   string
	connect func() (*conn, error)
	log     *slog.Logger

	queue   chan *job
	closing chan struct{}
	once    sync.Once // closes closing
	ended   chan struct{}

	down    atomic.Pointer[error] // nil while the token serves
	epochs  atomic.Pointer[[]uint32]
	started atomic.Int64 // unix nanoseconds of the running job, 0 when idle

	// Of the goroutine alone.
	conn    *conn
	latched bool
	pause   time.Duration
	probing *time.Timer
}

func newExecutor(label string, c *conn, connect func() (*conn, error), log *slog.Logger) *executor {
	e := &executor{
		label: label, connect: connect, log: log,
		queue: make(chan *job, queueLength), closing: make(chan struct{}), ended: make(chan struct{}),
		probing: time.NewTimer(time.Hour),
	}
	e.probing.Stop()
	e.up(c)
	go e.loop()
	return e
}

// do runs f on the token's connection and returns what it returned, or
// ErrUnavailable by the context's deadline. f may still be running when the
// caller left, so it touches only buffers that the job owns; left tells it to
// stop early. mine says that these are the caller's again; otherwise the
// executor calls clear when f is over.
func (e *executor) do(ctx context.Context, f func(c *conn, left func() bool) error, clear func()) (mine bool, err error) {
	if err := e.serving(); err != nil {
		return true, unavailable(e.label, err)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	j := &job{run: f, clear: clear, done: make(chan error, 1)}
	select {
	case e.queue <- j:
	default:
		return true, unavailable(e.label, errQueueFull)
	}
	select {
	case err := <-j.done:
		return true, err
	case <-ctx.Done():
		if j.state.CompareAndSwap(jobWaiting, jobLeft) {
			return false, unavailable(e.label, ctx.Err())
		}
	case <-e.ended: // and this job came too late to be drained
		if j.state.CompareAndSwap(jobWaiting, jobLeft) {
			return true, unavailable(e.label, errClosed)
		}
	}
	return true, <-j.done
}

// serving says at once what makes waiting pointless.
func (e *executor) serving() error {
	if err := e.down.Load(); err != nil {
		return *err
	}
	if s := e.started.Load(); s != 0 && time.Since(time.Unix(0, s)) > stuckAfter {
		return errStuck
	}
	return nil
}

func (e *executor) loop() {
	defer close(e.ended)
	sweep := time.NewTicker(time.Second)
	defer sweep.Stop()
	defer e.probing.Stop()
	for {
		select {
		case <-e.closing:
			e.drain()
			return
		case j := <-e.queue:
			e.serve(j)
		case now := <-sweep.C:
			e.sweep(now)
		case <-e.probing.C:
			e.reopen()
		}
	}
}

func (e *executor) serve(j *job) {
	if j.state.Load() == jobLeft {
		j.clear()
		return
	}
	e.started.Store(time.Now().UnixNano())
	err := e.attempt(func(c *conn) error { return j.run(c, func() bool { return j.state.Load() == jobLeft }) })
	e.started.Store(0)
	if j.state.CompareAndSwap(jobWaiting, jobDone) {
		j.done <- err
		return
	}
	j.clear()
}

// attempt runs f, replaces lost sessions and repeats once, and takes the
// token down when it must.
func (e *executor) attempt(f func(*conn) error) error {
	if down := e.down.Load(); down != nil {
		return unavailable(e.label, *down)
	}
	err := f(e.conn)
	if classify(err) == classSession {
		e.log.Warn("HSM session lost, replacing it", "token", e.label, "error", err)
		if err = e.replace(); err == nil {
			err = f(e.conn)
		}
	}
	if classify(err) == classNone {
		return err
	}
	e.fail(err)
	return unavailable(e.label, err)
}

// replace opens the token anew and only then closes the old connection, so
// that crypto11 keeps the module initialised.
func (e *executor) replace() error {
	c, err := e.connect()
	if err != nil {
		return err
	}
	if e.conn.public != nil && !e.conn.public.Equal(c.public) {
		c.close()
		return fmt.Errorf("%w: the signing key is another one than at start", errKeys)
	}
	e.conn.close()
	e.up(c)
	return nil
}

func (e *executor) up(c *conn) {
	e.conn, e.pause = c, 0
	epochs := c.epochs
	e.epochs.Store(&epochs)
	e.down.Store(nil)
}

// fail takes the token down. The old connection stays open, unused, until a
// new one replaces it.
func (e *executor) fail(err error) {
	e.down.Store(&err)
	if classify(err) == classPIN || errors.Is(err, ErrWeakKEK) {
		// Trying again would lock the token, or change nothing.
		e.latched = true
		e.log.Error("HSM token is down until an operator acts", "token", e.label, "error", err)
		return
	}
	if e.pause == 0 {
		e.log.Error("HSM token is down", "token", e.label, "error", err)
	}
	e.pause = min(max(2*e.pause, probeFirst), probeMost)
	e.probing.Reset(e.pause/2 + rand.N(e.pause)) // half to one and a half
}

func (e *executor) reopen() {
	if e.latched || e.down.Load() == nil {
		return
	}
	if err := e.replace(); err != nil {
		e.fail(err)
		return
	}
	e.log.Info("HSM token is back", "token", e.label)
}

// sweep destroys data keys that outlived their time.
func (e *executor) sweep(now time.Time) {
	if e.down.Load() != nil {
		return
	}
	e.conn.unwrapped.expire(now)
	if err := e.conn.flush(); err != nil {
		// The session is lost; the next batch finds out and replaces it.
		e.log.Warn("destroying expired data keys", "token", e.label, "error", err)
	}
}

// close stops taking batches, lets the running one finish and logs out. A
// call that is stuck in the module is left behind with its session.
func (e *executor) close() error {
	err := errClosed
	e.down.Store(&err)
	e.once.Do(func() { close(e.closing) })
	select {
	case <-e.ended:
		return nil
	case <-time.After(closeTimeout):
		return fmt.Errorf("token %s: %w; its session stays open until the process ends", e.label, errStuck)
	}
}

func (e *executor) drain() {
	for {
		select {
		case j := <-e.queue:
			if j.state.CompareAndSwap(jobWaiting, jobDone) {
				j.done <- unavailable(e.label, errClosed)
			} else {
				j.clear()
			}
		default:
			e.conn.close()
			return
		}
	}
}

// check does one cheap real operation.
func (e *executor) check(ctx context.Context) error {
	_, err := e.do(ctx, func(c *conn, _ func() bool) error {
		if len(c.epochs) == 0 {
			return c.canary(0)
		}
		return c.canary(c.epochs[len(c.epochs)-1])
	}, func() {})
	return err
}
