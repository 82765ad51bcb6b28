package hsm

import (
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// renewer has the module give back what it keeps of session objects that were
// destroyed. SoftHSM keeps some 250 bytes of each until C_Finalize. So after so
// many were made, every token of the process is closed, with the last of them
// the module ends, and all are opened anew, with the attacks and known vectors
// of every opening. Callers wait meanwhile; none is turned away for it.
//
// Tokens rest one after another, those that open blocks last: their callers
// wait for nobody's batch but their own token's.
type renewer struct {
	after    int64 // session objects; 0: never
	left     atomic.Int64
	due      chan struct{} // 1
	mod      *module
	pools    []*pool       // in the order in which they rest
	patience time.Duration // for all batches that are under way
	log      *slog.Logger
	metrics  *metrics
	stop     chan struct{}
	stopped  sync.Once
	running  sync.WaitGroup
}

func newRenewer(mod *module, after int, patience time.Duration, log *slog.Logger, m *metrics) *renewer {
	r := &renewer{after: int64(after), due: make(chan struct{}, 1), mod: mod, patience: patience, log: log, metrics: m, stop: make(chan struct{})}
	r.reset()
	return r
}

// reset draws when it is time again: servers that do the same should not all
// rest at the same moment.
func (r *renewer) reset() { r.left.Store(r.after - r.after/10 + rand.Int64N(r.after/5+1)) }

// made counts session objects.
func (r *renewer) made(n int) {
	if r.after == 0 || r.left.Add(-int64(n)) > 0 {
		return
	}
	select {
	case r.due <- struct{}{}:
	default:
	}
}

// run serves all tokens of a process; before they are used.
func (r *renewer) run(groups map[Role]*group) {
	for _, role := range []Role{RoleRotate, RoleMint, RoleSeal, RoleSign, RoleOpen} {
		if g := groups[role]; g != nil {
			r.pools = append(r.pools, g.pools...)
		}
	}
	r.running.Go(func() {
		for {
			select {
			case <-r.stop:
				return
			case <-r.due:
				if r.left.Load() <= 0 {
					r.renew()
					r.reset()
				}
			}
		}
	})
}

// close ends the renewer; no token rests then.
func (r *renewer) close() {
	r.stopped.Do(func() { close(r.stop) })
	r.running.Wait()
}

func (r *renewer) renew() {
	if slices.ContainsFunc(r.pools, (*pool).hasHung) {
		// The module does not end while a call is stuck in it.
		r.metrics.renewed(false)
		return
	}
	start := time.Now()
	patience := time.NewTimer(r.patience)
	defer patience.Stop()
	var resting []*rest
	for _, p := range r.pools {
		rest, ok := p.rest()
		if !ok {
			continue // down, without a connection
		}
		resting = append(resting, rest)
		if !rest.awaitClosed(patience.C, r.stop) {
			break
		}
	}
	ended := r.mod.ended()
	if ended {
		trim()
	}
	slices.Reverse(resting)
	var openings []*opening
	for _, rest := range resting {
		openings = append(openings, rest.wake())
	}
	for _, o := range openings {
		select {
		case <-o.ended:
		case <-r.stop:
		}
	}
	r.metrics.renewed(ended)
	if !ended {
		r.log.Warn("the HSM module could not be ended to give back its memory: a token was still in use, or being opened; it is tried again", "seconds", time.Since(start).Seconds())
		return
	}
	r.log.Info("the HSM module was ended and initialised anew, for the memory it kept of destroyed keys", "seconds", time.Since(start).Seconds())
}

// rest is a token without a connection, until it is woken.
type rest struct {
	pool     *pool
	conn     *conn // the one given up
	idle     bool  // nobody used it
	incident uint64
}

// rest gives the connection up; the last batch on it closes it, and callers
// wait for a new one.
func (p *pool) rest() (*rest, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil || p.closed {
		return nil, false
	}
	r := &rest{pool: p, conn: p.conn, idle: p.conn.users == 0, incident: p.machine.doubt()}
	p.conn = nil
	p.announce()
	if r.idle {
		go r.conn.close() // by itself, for it may hang
	}
	return r, true
}

// awaitClosed says whether the connection was closed in time.
func (r *rest) awaitClosed(patience <-chan time.Time, stop <-chan struct{}) bool {
	select {
	case <-r.conn.closed:
		return true
	case <-stop:
		return false
	case <-patience:
	}
	if r.idle { // else the worker that closes it is watched
		p := r.pool
		p.mu.Lock()
		p.hung = true
		p.mu.Unlock()
		p.lost()
		p.metrics.stuck()
		p.log.Error("closing the connection to the HSM does not return", "token", p.label, "after", p.limits.call)
	}
	return false
}

// wake opens the token anew; the pool is not closed before the renewer is.
func (r *rest) wake() *opening {
	p := r.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.announce()
	return p.openLocked(opening{incident: r.incident, renewal: true})
}

// hasHung says whether a call into the module was given up.
func (p *pool) hasHung() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hung
}
