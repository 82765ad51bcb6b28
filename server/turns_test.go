package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/meter"
)

// glnOf makes the n-th supplier.
func glnOf(t testing.TB, n int) meter.GLN {
	t.Helper()
	s := fmt.Sprintf("8712345%05d", n)
	sum := 0
	for i, d := range s {
		weight := 1
		if i%2 == 1 {
			weight = 3
		}
		sum += weight * int(d-'0')
	}
	g, err := meter.ParseGLN(fmt.Sprintf("%s%d", s, (10-sum%10)%10))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// turnWorld drives turns one step at a time, and holds every step to what turns
// promise.
type turnWorld struct {
	t    testing.TB
	x    *turns
	now  time.Time
	glns []meter.GLN
	all  []*waiter // in the order in which they asked
	has  map[*waiter]bool
	gone map[*waiter]bool
	took []*waiter // in the order of their turns
	// overtaken[a][b]: how many turns b got since a last had one, while a waited
	// with less than its share.
	overtaken map[meter.GLN]map[meter.GLN]int
}

func newTurnWorld(t testing.TB, l TurnLimits, suppliers int) *turnWorld {
	w := &turnWorld{
		t: t, now: time.Unix(1_800_000_000, 0), has: map[*waiter]bool{}, gone: map[*waiter]bool{},
		overtaken: map[meter.GLN]map[meter.GLN]int{},
	}
	w.x = newTurns(l, func() time.Time { return w.now })
	for i := range suppliers {
		w.glns = append(w.glns, glnOf(t, i))
		w.overtaken[w.glns[i]] = map[meter.GLN]int{}
	}
	return w
}

func (w *turnWorld) held(g meter.GLN) (n int) {
	for h := range w.has {
		if h.line.supplier == g {
			n++
		}
	}
	return n
}

// queue is who waits of a supplier, first come first.
func (w *turnWorld) queue(g meter.GLN) (q []*waiter) {
	for _, a := range w.all {
		if a.line.supplier == g && !w.has[a] && !w.gone[a] {
			q = append(q, a)
		}
	}
	return q
}

func (w *turnWorld) ask(g meter.GLN) *waiter {
	w.t.Helper()
	l := w.x.limits
	waiting := 0
	for _, o := range w.glns {
		waiting += len(w.queue(o))
	}
	a, err := w.x.ask(g, false)
	switch {
	case errors.Is(err, errQueueFull):
		if len(w.queue(g)) < l.Queue {
			w.t.Fatal("refused for a queue that is not full")
		}
	case errors.Is(err, errQueueAllFull):
		if waiting < l.QueueAll {
			w.t.Fatal("refused for queues that are not full")
		}
		if len(w.queue(g)) == 0 {
			w.t.Fatal("refused for what others wait for, though nothing of its own waits")
		}
	case err != nil:
		w.t.Fatal(err)
	default:
		w.all = append(w.all, a)
		w.look()
		if len(w.queue(g)) > l.Queue {
			w.t.Fatal("the supplier's queue grew over its bound")
		}
	}
	return a
}

func (w *turnWorld) leave(a *waiter) {
	w.t.Helper()
	delete(w.has, a)
	w.gone[a] = true
	w.x.leave(a)
	w.look()
}

// look finds whose turn it is, and checks the promises.
func (w *turnWorld) look() {
	w.t.Helper()
	l := w.x.limits
	short := map[meter.GLN]bool{} // waited with less than its share, before this step
	for _, g := range w.glns {
		short[g] = len(w.queue(g)) > 0 && w.held(g) < l.Each
	}
	got := map[meter.GLN]int{}
	for _, g := range w.glns {
		queue := w.queue(g)
		for i, a := range queue {
			select {
			case <-a.ready:
			default:
				continue
			}
			if i > 0 && !w.has[queue[i-1]] {
				w.t.Fatal("a request overtook one of the same supplier")
			}
			w.has[a] = true
			w.took = append(w.took, a)
			got[g]++
		}
	}
	for _, o := range w.glns {
		if got[o] > 0 || !short[o] {
			clear(w.overtaken[o])
			continue
		}
		for g, n := range got {
			if w.overtaken[o][g] += n; w.overtaken[o][g] > 1 {
				w.t.Fatal("a supplier got turn after turn while another waited with less than its share")
			}
		}
	}
	if len(w.has) > l.Turns {
		w.t.Fatalf("%d turns are taken, there are %d", len(w.has), l.Turns)
	}
	waiting := 0
	for _, g := range w.glns {
		queue := w.queue(g)
		waiting += len(queue)
		if w.held(g) > l.Turns-l.Each && w.held(g) > l.Each {
			w.t.Fatal("one supplier has nearly all turns")
		}
		if len(queue) > 0 && w.held(g) < l.Each && len(w.has) < l.Turns {
			w.t.Fatal("somebody waits for a turn that nobody has")
		}
	}
	if waiting > l.QueueAll+len(w.glns) || waiting != w.x.waiting || w.x.free != l.Turns-len(w.has) {
		w.t.Fatalf("%d wait and %d turns are free, counted as %d and %d", waiting, l.Turns-len(w.has), w.x.waiting, w.x.free)
	}
}

// end lets everybody have their turn, and looks for what stays behind.
func (w *turnWorld) end() {
	w.t.Helper()
	for len(w.has) > 0 {
		for _, a := range w.all {
			if w.has[a] {
				w.leave(a)
				break
			}
		}
	}
	for _, g := range w.glns {
		if len(w.queue(g)) > 0 {
			w.t.Fatal("somebody waits for ever")
		}
	}
	if len(w.x.lines) > 0 || w.x.ring.Len() > 0 {
		w.t.Fatal("lines of nobody stay behind")
	}
}

// schedule runs any sequence of steps.
func (w *turnWorld) schedule(steps []byte) {
	w.t.Helper()
	for _, b := range steps {
		switch op, n := b>>6, int(b&63); op {
		case 0, 1:
			w.ask(w.glns[n%len(w.glns)])
		case 2: // the n-th that is still about is done, or goes away before
			for _, a := range w.all {
				if w.gone[a] {
					continue
				}
				if n--; n < 0 {
					w.leave(a)
					break
				}
			}
		case 3:
			w.now = w.now.Add(time.Duration(n) * time.Second / 2)
		}
		if len(w.all) > 256 { // forget those that are gone
			var still []*waiter
			for _, a := range w.all {
				if !w.gone[a] {
					still = append(still, a)
				}
			}
			w.all = still
			clear(w.gone)
			w.took = nil
		}
	}
	w.end()
}

func TestTurnsKeepTheirPromises(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		l := TurnLimits{Turns: 2 + r.IntN(6), Queue: 1 + r.IntN(8)}
		l.Each, l.QueueAll = 1+r.IntN(l.Turns-1), l.Queue+r.IntN(8)
		steps := make([]byte, 400)
		for i := range steps {
			steps[i] = byte(r.Uint32())
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) { newTurnWorld(t, l, 1+r.IntN(5)).schedule(steps) })
	}
}

func FuzzTurns(f *testing.F) {
	f.Add(uint8(4), uint8(1), uint8(3), []byte{0, 0, 0, 0, 1, 2, 128, 129, 255, 0, 128})
	f.Fuzz(func(t *testing.T, size, each, queue uint8, steps []byte) {
		l := TurnLimits{Turns: int(size%16) + 2, Queue: int(queue%16) + 1}
		l.Each, l.QueueAll = int(each)%(l.Turns-1)+1, 2*l.Queue
		if err := l.check(); err != nil {
			t.Fatal(err)
		}
		newTurnWorld(t, l, 4).schedule(steps[:min(len(steps), 2000)])
	})
}

func TestABurstDoesNotTakeAllTurns(t *testing.T) {
	w := newTurnWorld(t, TurnLimits{Turns: 8, Each: 2, Queue: 1000, QueueAll: 2000}, 2)
	greedy, other := w.glns[0], w.glns[1]
	for range 500 {
		w.ask(greedy)
	}
	if n := w.held(greedy); n != 6 {
		t.Fatalf("alone it has %d turns, want all but a share", n)
	}
	first := w.ask(other)
	if !w.has[first] {
		t.Fatal("who comes after a burst has to wait")
	}
	// From now on the burst has its share only, until the other was away long enough.
	for w.held(greedy) > 2 {
		for a := range w.has {
			if a.line.supplier == greedy {
				w.leave(a)
				break
			}
		}
	}
	w.leave(first)
	if n := w.held(greedy); n != 2 {
		t.Fatalf("with another about, it has %d turns, want its share", n)
	}
	w.now = w.now.Add(about)
	w.leave(w.queue(greedy)[0]) // a waiter that goes away changes nothing
	for a := range w.has {
		w.leave(a)
		break
	}
	if n := w.held(greedy); n != 6 {
		t.Fatalf("alone again it has %d turns", n)
	}
	w.end()
}

func TestSuppliersThatWaitTakeTurns(t *testing.T) {
	w := newTurnWorld(t, TurnLimits{Turns: 4, Each: 1, Queue: 100, QueueAll: 1000}, 8)
	for range 50 { // of the first, many; of the others, a few
		w.ask(w.glns[0])
	}
	for i := range 7 {
		for range 3 {
			w.ask(w.glns[1+i])
		}
	}
	for i := range 28 { // who has had its turn longest is done
		w.leave(w.took[i])
	}
	count := map[meter.GLN]int{}
	for _, a := range w.took[:28] {
		count[a.line.supplier]++
	}
	for _, g := range w.glns[1:] {
		if count[g] != 3 {
			t.Errorf("in 28 turns, one of 8 that wait had %d of its 3", count[g])
		}
	}
	w.end()
}

// turnServer is as much of a Server as turns need.
func turnServer(t *testing.T, l TurnLimits) *Server {
	t.Helper()
	s := &Server{turns: newTurns(l, time.Now)}
	var err error
	if s.limitMetrics, err = newLimitMetrics(prometheus.NewRegistry(), s.turns); err != nil {
		t.Fatal(err)
	}
	return s
}

// Nobody who goes away takes a turn along, whenever it goes.
func TestTurnsOfTheCancelled(t *testing.T) {
	limits := TurnLimits{Turns: 4, Each: 2, Queue: 40, QueueAll: 60}
	s := turnServer(t, limits)
	var busy, given, refused, gone atomic.Int64
	var each [3]atomic.Int64
	var wg sync.WaitGroup
	for i := range 120 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 2))
			who := i % 3
			for range 50 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.IntN(400))*time.Microsecond)
				release, err := s.turn(ctx, glnOf(t, who))
				var f *failure
				switch {
				case err == nil:
					if n := busy.Add(1); n > int64(limits.Turns) {
						t.Errorf("%d turns at once", n)
					}
					if n := each[who].Add(1); n > int64(limits.Turns) {
						t.Errorf("%d turns of one at once", n)
					}
					time.Sleep(time.Duration(r.IntN(50)) * time.Microsecond)
					each[who].Add(-1)
					busy.Add(-1)
					release()
					release() // once more does nothing
					given.Add(1)
				case errors.As(err, &f) && errors.Is(err, context.DeadlineExceeded):
					gone.Add(1)
				case errors.As(err, &f) && (f.kind == rateLimited || f.kind == overloaded):
					refused.Add(1)
				default:
					t.Errorf("unexpected: %v", err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if given.Load() == 0 || refused.Load() == 0 {
		t.Errorf("%d given, %d refused, %d gone: the test tests little", given.Load(), refused.Load(), gone.Load())
	}
	if x := s.turns; x.free != limits.Turns || x.waiting != 0 || len(x.lines) != 0 || x.ring.Len() != 0 {
		t.Errorf("left behind: %d free, %d waiting, %d lines, %d in the ring", x.free, x.waiting, len(x.lines), x.ring.Len())
	}
}

func TestFullQueues(t *testing.T) {
	s := turnServer(t, TurnLimits{Turns: 2, Each: 1, Queue: 2, QueueAll: 3})
	a, b, c := glnOf(t, 1), glnOf(t, 2), glnOf(t, 3)
	take := func(g meter.GLN) {
		t.Helper()
		if _, err := s.turns.ask(g, false); err != nil {
			t.Fatal(err)
		}
	}
	wants := func(g meter.GLN, want *problemKind) {
		t.Helper()
		_, err := s.turn(t.Context(), g)
		var f *failure
		if !errors.As(err, &f) || f.kind != want {
			t.Errorf("%v, want %s", err, want.slug)
		}
	}
	for range 3 { // a turn and the queue
		take(a)
	}
	wants(a, rateLimited)
	take(b) // a turn
	take(b)
	wants(b, overloaded)
	take(c) // nothing of it waits
	wants(c, overloaded)
	wants(a, rateLimited) // its own fault comes first
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.batchTurn(ctx, a); !errors.Is(err, context.Canceled) {
		t.Errorf("a batch of a stream was not let into the queue: %v", err)
	}
}

// Suppliers that act together fill the queue of all: another is let in all the
// same, and served after a turn of each.
func TestQueueOfAllIsNoDoor(t *testing.T) {
	l := DefaultLimits().Turns
	const greedy = 20
	w := newTurnWorld(t, l, greedy+2)
	for range l.Queue + 2 {
		for _, g := range w.glns[:greedy] {
			_, _ = w.x.ask(g, false)
		}
	}
	if _, waiting := w.x.count(); waiting < l.QueueAll {
		t.Fatalf("%d wait: the test tests nothing", waiting)
	}
	for _, g := range w.glns[greedy:] {
		a, err := w.x.ask(g, false)
		if err != nil {
			t.Fatalf("a supplier with nothing under way or waiting: %v", err)
		}
		if _, err := w.x.ask(g, false); !errors.Is(err, errQueueAllFull) {
			t.Errorf("and its second request: %v", err)
		}
		w.all = append(w.all, a)
	}
	if _, waiting := w.x.count(); waiting > l.QueueAll+greedy+2 {
		t.Errorf("%d wait", waiting)
	}
}

// The costs of a turn, whoever waits beside.
func BenchmarkTurns(b *testing.B) {
	for _, waiting := range []int{0, 100, 10_000} {
		b.Run(fmt.Sprint(waiting), func(b *testing.B) {
			x := newTurns(TurnLimits{Turns: 4, Each: 1, Queue: 20_000, QueueAll: 20_000}, time.Now)
			for i := range 10 { // all turns are taken, and others wait
				for range 1 + waiting/10 {
					_, _ = x.ask(glnOf(b, i), false)
				}
			}
			g := glnOf(b, 99)
			b.ReportAllocs()
			for b.Loop() {
				w, err := x.ask(g, true)
				if err != nil {
					b.Fatal(err)
				}
				x.leave(w)
			}
		})
	}
}
