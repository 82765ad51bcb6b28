package web

import (
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"kluis/internal/connlimit"
)

// Bounds of what a browser makes the portal ask of others.
const (
	// A page of a session asks the API up to ten things or so, of the quota that
	// all employees share: a person turns fewer pages than this, a script more.
	pagesPerSecond, pagesBurst = 3, 40

	// Codes that are taken to the provider: of one address, which may be a whole
	// office's, and of all.
	codesPerSecond, codesBurst       = 2, 30
	allCodesPerSecond, allCodesBurst = 5, 60
	codesAtOnce                      = 8

	// maxBuckets bounds those that are remembered: of sessions, or addresses.
	maxBuckets = 10_000
)

// DefaultConnections are enough for some hundred browsers behind one address, and
// some hundred more.
func DefaultConnections() connlimit.Limits {
	return connlimit.Limits{All: 2000, Each: 500, Handshakes: 200}
}

// buckets are token buckets by key, by the portal's clock.
type buckets struct {
	perSecond rate.Limit
	burst     int

	mu sync.Mutex
	of map[string]*rate.Limiter
}

func newBuckets(perSecond rate.Limit, burst int) *buckets {
	return &buckets{perSecond: perSecond, burst: burst, of: map[string]*rate.Limiter{}}
}

// take says whether there is room. When there are too many keys, and none of them
// is idle, there is none for another.
func (b *buckets) take(key string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.of[key]
	if l == nil {
		if len(b.of) >= maxBuckets {
			b.drop(now)
		}
		if len(b.of) >= maxBuckets {
			return false
		}
		l = rate.NewLimiter(b.perSecond, b.burst)
		b.of[key] = l
	}
	return l.AllowN(now, 1)
}

// purge drops those that are full again: they say what none says.
func (b *buckets) purge(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(now)
}

func (b *buckets) drop(now time.Time) {
	for key, l := range b.of {
		if l.TokensAt(now) >= float64(b.burst) {
			delete(b.of, key)
		}
	}
}

// free are routes that no limit keeps anybody from: the way out, and what asks
// nothing of the API.
func (rt route) free() bool {
	return strings.HasPrefix(rt.path, "/logout") || rt.path == "/session/stay"
}

// mayTurn says whether a session may have a further page.
func (p *Portal) mayTurn(rt route, s *session) bool {
	return rt.free() || p.pages.take(string(s.id), p.now())
}

// codes guards the way to the provider's token endpoint, where the portal speaks
// in its own name, and anybody can have it do so.
type codes struct {
	byAddress, all *buckets
	underWay       chan struct{}

	mu    sync.Mutex
	spent map[string]time.Time // states, until when an attempt would have been good
}

func newCodes() *codes {
	return &codes{byAddress: newBuckets(codesPerSecond, codesBurst), all: newBuckets(allCodesPerSecond, allCodesBurst),
		underWay: make(chan struct{}, codesAtOnce), spent: map[string]time.Time{}}
}

// spend takes an attempt, once. What is remembered is bounded by the rate: at most
// attemptLife of it.
func (c *codes) spend(r *http.Request, a attempt, now time.Time) error {
	c.mu.Lock()
	_, spent := c.spent[a.State]
	c.mu.Unlock()
	if spent {
		return errSpent
	}
	if !c.byAddress.take(connlimit.Network(r.RemoteAddr), now) || !c.all.take("", now) {
		return errSignInBusy
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, spent := c.spent[a.State]; spent { // meanwhile
		return errSpent
	}
	c.spent[a.State] = a.Begun.Add(attemptLife)
	return nil
}

// enter waits for nobody: a provider that is slow has no queue made for it. leave
// follows, unless it fails.
func (c *codes) enter() error {
	select {
	case c.underWay <- struct{}{}:
		return nil
	default:
		return errSignInBusy
	}
}

func (c *codes) leave() { <-c.underWay }

// purge forgets the states of attempts that are too old by themselves.
func (c *codes) purge(now time.Time) {
	c.byAddress.purge(now)
	c.mu.Lock()
	defer c.mu.Unlock()
	for state, until := range c.spent {
		if !now.Before(until) {
			delete(c.spent, state)
		}
	}
}
