package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/internal/connlimit"
	"kluis/meter"
)

// Limits bound what callers can make the gateway do.
type Limits struct {
	Rate  Rate               // requests of each supplier, and of all employees
	Rates map[meter.GLN]Rate // instead, for some
	// Unrelated are the metering points that a supplier lists in queries and has
	// nothing to do with: each costs the access log a record, and a list is one
	// request.
	Unrelated Rate
	// Streams is how many streams of one supplier may be under way.
	Streams     int
	Turns       TurnLimits
	Connections connlimit.Limits
}

// Rate bounds what is counted: a bucket of Burst, filled PerSecond.
type Rate struct {
	PerSecond float64
	Burst     int
}

func (r Rate) check() error {
	if !(r.PerSecond > 0 && r.PerSecond <= 1e6) || r.Burst < 1 || r.Burst > 1e6 {
		return errors.New("server: limits: a rate and its burst are more than nothing and at most a million")
	}
	return nil
}

// DefaultLimits are for the CPUs there are.
func DefaultLimits() Limits {
	turns := max(4, 2*runtime.GOMAXPROCS(0))
	return Limits{
		Rate:        Rate{PerSecond: 100, Burst: 200},
		Unrelated:   Rate{PerSecond: 100, Burst: 1000},
		Streams:     4,
		Turns:       TurnLimits{Turns: turns, Each: turns / 4, Queue: 64, QueueAll: 512},
		Connections: connlimit.Limits{All: 2000, Each: 200, Handshakes: 256},
	}
}

func (l Limits) check() error {
	errs := []error{l.Rate.check(), l.Unrelated.check(), l.Turns.check(), l.Connections.Check()}
	for _, r := range l.Rates {
		errs = append(errs, r.check())
	}
	if l.Streams < 1 {
		errs = append(errs, errors.New("server: limits: a supplier may have a stream"))
	}
	return errors.Join(errs...)
}

const (
	// What a certificate may do without being anybody: have tokens refused, and
	// ask what needs none. Who holds one was given it by the suppliers' CA.
	strangerPerSecond, strangerBurst = 20, 200
	// maxStrangers are remembered; there are fewer suppliers than that.
	maxStrangers = 1024

	// Of the grid operator's quota an employee may use a quarter, and half of it at
	// once (one page of the portal is up to a dozen requests), so that nobody's
	// pages keep others from theirs. Steps of consents and suppliers are no part of
	// it: each employee has a tenth for them, whatever others do.
	employeeShare, employeeBurst, stepShare = 4, 2, 10
	// maxEmployees are remembered.
	maxEmployees = 4096

	// Bytes of one supplier's answers, streams and bodies that may lie in memory at
	// once, and of all together. The longest answer to getReadings fits, beside
	// four streams of quarter-hours.
	roomEach = 64 << 20
	roomAll  = 512 << 20
	// roomOwn of them a supplier has whatever others hold: a body and a page, or a
	// stream. It is bounded by the number of suppliers.
	roomOwn = 16 << 20
)

// limiter counts what suppliers ask for. Only who is registered and
// authenticated has a quota, so that memory is bounded by the register.
type limiter struct {
	limits    Limits
	now       func() time.Time
	strangers *lru.Cache[[32]byte, *stranger]
	employees *lru.Cache[employeeKey, *employee]

	mu     sync.Mutex
	quotas map[meter.GLN]*quota
	room   int64 // bytes taken of roomAll
}

// bucket is one of requests.
type bucket struct {
	*rate.Limiter
	policy string // the value of RateLimit-Policy
}

func newBucket(perSecond float64, burst int) bucket {
	return bucket{rate.NewLimiter(rate.Limit(perSecond), burst), fmt.Sprintf(`"default";q=%d;w=%d`, burst, seconds(float64(burst)/perSecond))}
}

// quota is one supplier's, or that of the grid operator's employees.
type quota struct {
	bucket
	room      *semaphore.Weighted
	unrelated *rate.Limiter // metering points

	// Under the limiter's mutex:
	streams int   // under way
	taken   int64 // bytes of the room
}

// employee is what one of the grid operator's may ask for.
type employee struct{ requests, steps bucket }

type employeeKey struct {
	operator meter.GLN
	subject  string
}

// stranger is a certificate, with what it may try.
type stranger struct{ failed, open *rate.Limiter }

func newLimiter(l Limits, now func() time.Time) (*limiter, error) {
	strangers, err := lru.New[[32]byte, *stranger](maxStrangers)
	if err != nil {
		return nil, err
	}
	employees, err := lru.New[employeeKey, *employee](maxEmployees)
	return &limiter{limits: l, now: now, strangers: strangers, employees: employees, quotas: map[meter.GLN]*quota{}}, err
}

// quota is that of a supplier; made if there is none and make says so, for a
// registered and authenticated one only.
func (l *limiter) quota(g meter.GLN, make bool) *quota {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.quotas[g]
	if q == nil && make {
		r := l.rate(g)
		q = &quota{
			bucket:    newBucket(r.PerSecond, r.Burst),
			room:      semaphore.NewWeighted(roomEach),
			unrelated: rate.NewLimiter(rate.Limit(l.limits.Unrelated.PerSecond), l.limits.Unrelated.Burst),
		}
		l.quotas[g] = q
	}
	return q
}

// seconds rounds up to whole ones, one at least.
func seconds(s float64) int { return max(1, int(math.Ceil(s))) }

// employee is that of a subject, who was authenticated by the issuer.
func (l *limiter) employee(operator meter.GLN, subject string) *employee {
	key := employeeKey{operator, subject}
	if e, ok := l.employees.Get(key); ok {
		return e
	}
	r := l.rate(operator)
	e := &employee{
		requests: newBucket(r.PerSecond/employeeShare, max(1, r.Burst/employeeBurst)),
		steps:    newBucket(r.PerSecond/stepShare, max(1, r.Burst/stepShare)),
	}
	if there, ok, _ := l.employees.PeekOrAdd(key, e); ok {
		return there
	}
	return e
}

// count counts a request of a supplier, or of an employee: one that takes a step
// by the employee's bucket of steps alone, any other by the employee's own and by
// the operator's.
func (l *limiter) count(h http.Header, q *quota, g meter.GLN, e *authz.Employee) error {
	if e == nil {
		return l.spend(h, &q.bucket)
	}
	own := l.employee(g, e.Subject)
	if e.Errand.Kind == authz.ErrandStep || e.Errand.Kind == authz.ErrandSupplier {
		return l.spend(h, &own.steps)
	}
	if err := l.spend(h, &own.requests); err != nil {
		return err
	}
	all := http.Header{}
	err := l.spend(all, &q.bucket)
	if err != nil { // then it is this one that must fill
		maps.Copy(h, all)
	}
	return err
}

// spend counts a request and tells the caller, in the headers of
// draft-ietf-httpapi-ratelimit-headers, what it has left; more than it may have
// is refused.
func (l *limiter) spend(h http.Header, q *bucket) error {
	now := l.now()
	ok := q.AllowN(now, 1)
	left := max(0, q.TokensAt(now))
	per := float64(q.Limit())
	h.Set("RateLimit-Policy", q.policy)
	whole := math.Floor(left)
	next := seconds((whole + 1 - left) / per) // until there is one more
	h.Set("RateLimit", fmt.Sprintf(`"default";r=%.0f;t=%d`, whole, next))
	if !ok {
		return &failure{kind: rateLimited, retryAfter: next, cause: errTooFast}
	}
	return nil
}

var (
	errTooFast  = errors.New("requests come faster than the quota fills")
	errStranger = errors.New("too many requests without a good token")
	errStreams  = errors.New("as many streams as there may be")
	errRoom     = errors.New("answers and bodies take all the room there is")
	errOthers   = errors.New("too many metering points that the supplier has nothing to do with")
)

func (l *limiter) stranger(leaf [32]byte) *stranger {
	if s, ok := l.strangers.Get(leaf); ok {
		return s
	}
	s := &stranger{rate.NewLimiter(strangerPerSecond, strangerBurst), rate.NewLimiter(strangerPerSecond, strangerBurst)}
	if there, ok, _ := l.strangers.PeekOrAdd(leaf, s); ok {
		return there
	}
	return s
}

// heard says whether a certificate may have one more token looked at: too many
// were refused of late.
func (l *limiter) heard(leaf [32]byte) error {
	s, ok := l.strangers.Get(leaf)
	if !ok {
		return nil
	}
	if left := s.failed.TokensAt(l.now()); left < 1 {
		return &failure{kind: rateLimited, retryAfter: seconds((1 - left) / strangerPerSecond), cause: errStranger}
	}
	return nil
}

// refused counts a token that was refused.
func (l *limiter) refused(leaf [32]byte) { l.stranger(leaf).failed.AllowN(l.now(), 1) }

// open counts a request that needs no token.
func (l *limiter) open(leaf [32]byte) error {
	if s := l.stranger(leaf); !s.open.AllowN(l.now(), 1) {
		return &failure{kind: rateLimited, retryAfter: 1, cause: errStranger}
	}
	return nil
}

// stream counts a stream that begins; end counts it off, once.
func (l *limiter) stream(g meter.GLN) (end func(), err error) {
	q := l.quota(g, true)
	l.mu.Lock()
	defer l.mu.Unlock()
	if q.streams >= l.limits.Streams {
		return nil, fail(rateLimited, errStreams)
	}
	q.streams++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		q.streams--
		l.mu.Unlock()
	}), nil
}

// unrelated counts metering points of a list that the supplier turned out to have
// nothing to do with. The bucket may be overdrawn by them, by a batch or two of
// each query that is under way; then nothing more is looked up until it is filled.
func (l *limiter) unrelated(g meter.GLN, n int) {
	b := l.quota(g, true).unrelated
	for now := l.now(); n > 0; n -= b.Burst() {
		b.ReserveN(now, min(n, b.Burst())) // no more at a time
	}
}

// lists says whether a supplier may have more metering points of a list looked
// up, or in how long.
func (l *limiter) lists(g meter.GLN) (in time.Duration) {
	b := l.quota(g, true).unrelated
	if left := b.TokensAt(l.now()); left < 1 {
		return time.Duration((1 - left) / float64(b.Limit()) * float64(time.Second))
	}
	return 0
}

// mayList refuses a query whose supplier listed too many metering points that it
// has nothing to do with, until it may list more.
func (q *querying) mayList() error {
	if !q.asked.listed {
		return nil
	}
	in := q.s.limits.lists(q.c.caller.Supplier())
	if in == 0 {
		return nil
	}
	return &failure{
		kind: rateLimited, cause: errOthers, retryAfter: seconds(in.Seconds()),
		detail: "The list has more metering points that the supplier has nothing to do with than may be looked up in this time: leave them out, or go on after the time in Retry-After.",
	}
}

// waitToList waits until the query may have more of its list looked up.
func (q *querying) waitToList(ctx context.Context) error {
	for n := 0; ; n++ {
		err := q.mayList()
		if err == nil {
			return nil
		}
		if n == 0 {
			q.s.limitMetrics.failed(q.ev, err)
		}
		select {
		case <-time.After(q.s.limits.lists(q.c.caller.Supplier())):
		case <-ctx.Done():
			return ctx.Err()
		case <-q.s.draining:
			return drained()
		}
	}
}

// countUnrelated counts those of a batch that the supplier has nothing to do with.
func (q *querying) countUnrelated(b *batch) {
	n := 0
	for _, p := range b.points {
		if p.record.Outcome == audit.NoRelation {
			n++
		}
	}
	q.s.limits.unrelated(q.c.caller.Supplier(), n)
	q.s.limitMetrics.others(q.c.caller.Supplier(), n)
}

// takeRoom waits until the supplier's answers and bodies leave room for n
// bytes: who reads slowly makes only itself wait. The room of all is not waited
// for, and a supplier has some of its own however much others hold. leave gives
// it back, once.
func (l *limiter) takeRoom(ctx context.Context, g meter.GLN, n int64) (leave func(), err error) {
	q := l.quota(g, true)
	n = min(n, roomEach)
	if err := q.room.Acquire(ctx, n); err != nil {
		return nil, fail(rateLimited, errors.Join(errRoom, err))
	}
	l.mu.Lock()
	full := l.room+n > roomAll && q.taken+n > roomOwn
	if !full {
		l.room += n
		q.taken += n
	}
	l.mu.Unlock()
	if full {
		q.room.Release(n)
		return nil, fail(overloaded, errRoom)
	}
	return sync.OnceFunc(func() {
		l.mu.Lock()
		l.room -= n
		q.taken -= n
		l.mu.Unlock()
		q.room.Release(n)
	}), nil
}

// beginStream counts a stream of a supplier, or refuses it when as many are
// under way as there may be. end is called when it ends; again, it does nothing.
func (s *Server) beginStream(g meter.GLN) (end func(), err error) { return s.limits.stream(g) }

// retryIn is what Retry-After says of a failure: its own word, or its kind's.
func (f *failure) retryIn() string {
	if f.retryAfter > 0 {
		return strconv.Itoa(f.retryAfter)
	}
	if f.kind.retryAfter > 0 {
		return strconv.Itoa(f.kind.retryAfter)
	}
	return ""
}
