package server

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"

	"kluis/meter"
)

// turns shares the back ends among suppliers. What fetches, decides and opens
// takes a turn first, and there are only so many at once. While others are
// about, one supplier has its share of them and no more, so that who comes next
// need not wait until a burst is done; by itself it may have more, yet never
// all. Who has to wait is served in its own order, and the suppliers that wait
// one after the other, a turn each. Nothing here costs more when more wait.
//
// A turn is not for what waits for a client: who reads slowly holds none. And
// who has one must not ask for another before it is given back.
type turns struct {
	limits TurnLimits
	now    func() time.Time

	mu      sync.Mutex
	free    int
	waiting int
	lines   map[meter.GLN]*line // of suppliers with a turn, or waiting for one
	ring    list.List           // of *line: those that wait, and may have one more
	// The suppliers that asked last and before that, and when: by these anyone
	// sees whether others are about.
	last, before sighting
}

// TurnLimits bound the work at the back ends. A turn is a fetch and an opening,
// or a batch of a stream.
type TurnLimits struct {
	Turns int // at once, of all suppliers; at least 2
	Each  int // of these for one supplier while others are about
	// Queue is how many requests of a supplier may wait, and QueueAll how many
	// of all suppliers together; but one of each supplier always may.
	Queue, QueueAll int
}

func (l TurnLimits) check() error {
	if l.Turns < 2 || l.Each < 1 || l.Each >= l.Turns || l.Queue < 1 || l.QueueAll < l.Queue {
		return errors.New("server: limits: at least 2 turns, of which a supplier has some and not all, and queues that hold something")
	}
	return nil
}

// about is for how long a supplier that asked counts as being about.
const about = 10 * time.Second

type sighting struct {
	by meter.GLN
	at time.Time
}

// line is one supplier's: what it has, and who waits for more.
type line struct {
	supplier meter.GLN
	held     int
	waiting  list.List     // of *waiter
	place    *list.Element // in the ring; nil: not there
}

// waiter is one that asked for a turn.
type waiter struct {
	line  *line
	place *list.Element // in the line; nil: it has its turn, or left
	ready chan struct{} // closed when it is its turn
}

// The refusals of a turn.
var (
	errQueueFull    = errors.New("the supplier's queue is full")
	errQueueAllFull = errors.New("the queues are full")
)

func newTurns(l TurnLimits, now func() time.Time) *turns {
	return &turns{limits: l, now: now, free: l.Turns, lines: map[meter.GLN]*line{}}
}

// ask asks for a turn. force: the queue's bounds do not hold for this one,
// because others do.
func (t *turns) ask(supplier meter.GLN, force bool) (*waiter, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if t.last.by != supplier {
		t.before = t.last
	}
	t.last = sighting{supplier, now}
	l := t.lines[supplier]
	if l == nil {
		l = &line{supplier: supplier}
	}
	w := &waiter{line: l, ready: make(chan struct{})}
	if t.free > 0 && l.waiting.Len() == 0 && t.may(l, now) {
		t.lines[supplier] = l
		t.give(w)
		return w, nil
	}
	switch {
	case force:
	case l.waiting.Len() >= t.limits.Queue:
		return nil, errQueueFull
	case l.waiting.Len() > 0 && t.waiting >= t.limits.QueueAll:
		return nil, errQueueAllFull
	}
	t.lines[supplier] = l
	w.place = l.waiting.PushBack(w)
	t.waiting++
	t.enroll(l, now)
	t.serve(now) // others may have gone quiet, and it may have more than before
	return w, nil
}

// leave gives a turn back, or stops waiting for one. It is called once.
func (t *turns) leave(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := w.line
	if w.place != nil {
		l.waiting.Remove(w.place)
		w.place = nil
		t.waiting--
	} else {
		l.held--
		t.free++
	}
	now := t.now()
	t.enroll(l, now)
	t.serve(now)
	if l.held == 0 && l.waiting.Len() == 0 {
		delete(t.lines, l.supplier)
	}
}

// serve gives away the turns that are free.
func (t *turns) serve(now time.Time) {
	for t.free > 0 && t.ring.Len() > 0 {
		l := t.ring.Front().Value.(*line)
		t.ring.Remove(l.place)
		l.place = nil
		if t.may(l, now) { // others may have come since it got into the ring
			w := l.waiting.Front().Value.(*waiter)
			l.waiting.Remove(w.place)
			w.place = nil
			t.waiting--
			t.give(w)
		}
		t.enroll(l, now)
	}
}

func (t *turns) give(w *waiter) {
	w.line.held++
	t.free--
	close(w.ready)
}

// enroll puts a line at the end of the ring if it belongs there, and takes it
// out if nobody waits in it any more. A line left out because it has its share
// comes back when it gives a turn back.
func (t *turns) enroll(l *line, now time.Time) {
	switch wants := l.waiting.Len() > 0; {
	case l.place == nil && wants && t.may(l, now):
		l.place = t.ring.PushBack(l)
	case l.place != nil && !wants:
		t.ring.Remove(l.place)
		l.place = nil
	}
}

// may says whether a supplier may have one more turn. Alone, it leaves a share
// for who comes.
func (t *turns) may(l *line, now time.Time) bool {
	other := t.last
	if other.by == l.supplier {
		other = t.before
	}
	most := t.limits.Each
	if other.by.IsZero() || now.Sub(other.at) >= about {
		most = max(most, t.limits.Turns-t.limits.Each)
	}
	return l.held < most
}

// turn waits for the supplier's turn at the back ends. It fails with a public
// problem when too many wait already, and when ctx ends before. release gives
// the turn back; calling it again does nothing.
func (s *Server) turn(ctx context.Context, supplier meter.GLN) (release func(), err error) {
	return s.wait(ctx, supplier, false)
}

// batchTurn is turn for a batch of a stream: it waits like any other, but is
// not refused for the length of a queue. Streams are bounded by themselves.
func (s *Server) batchTurn(ctx context.Context, supplier meter.GLN) (release func(), err error) {
	return s.wait(ctx, supplier, true)
}

func (s *Server) wait(ctx context.Context, supplier meter.GLN, force bool) (release func(), err error) {
	w, err := s.turns.ask(supplier, force)
	switch {
	case errors.Is(err, errQueueFull):
		return nil, fail(rateLimited, err)
	case err != nil:
		return nil, fail(overloaded, err)
	}
	select {
	case <-w.ready:
		s.limitMetrics.waited(supplier, 0)
	default:
		began := time.Now()
		defer func() { s.limitMetrics.waited(supplier, time.Since(began)) }()
		select {
		case <-w.ready:
		case <-ctx.Done():
			s.turns.leave(w) // whether or not its turn has come by now
			return nil, fail(overloaded, ctx.Err())
		}
	}
	return sync.OnceFunc(func() { s.turns.leave(w) }), nil
}
