package cryptoserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"kluis/cryptoserver/token"
)

// Role is a part a cryptoserver may play, with tokens of its own. Its name is
// also the service name under which the gRPC health service reports it, so that
// a client leaves a server for one role and stays for another; the empty name
// stands for all roles the server holds.
//
// What needs a recent control feed beside the token is reported so: a server
// that does not know what was erased is left, and so is one that cannot record
// what it does. "sealkey" is the token of role
// seal alone, for the methods that only need its signing key.
type Role string

// The roles there are.
const (
	RoleOpen   Role = "open"
	RoleSeal   Role = "seal"
	RoleMint   Role = "mint"
	RoleRotate Role = "rotate"
	RoleSign   Role = "sign"
)

var allRoles = []Role{RoleOpen, RoleSeal, RoleMint, RoleRotate, RoleSign}

const (
	serviceAll     = ""
	serviceSealKey = "sealkey"
)

// needsFeed says of which roles the methods need a recent control feed.
func (r Role) needsFeed() bool { return r != RoleSign }

// isRecorded says of which roles the methods write to the journal.
func (r Role) isRecorded() bool { return r == RoleOpen || r == RoleSeal }

// monitor asks each token how it fares and tells the gRPC health service. A
// token is down at once when it says so or a call found it so, and after two
// checks in a row that failed otherwise (a check may wait behind a batch until
// its time is over); it is up again after one good check. A full queue says
// nothing about the token.
type monitor struct {
	server  *health.Server
	tokens  map[Role]token.Health
	asking  map[Role]chan struct{} // full while a token describes itself
	fresh   func() bool            // the control feed
	journal Journal                // nil: none is needed
	timeout time.Duration
	log     *slog.Logger
	metrics *metrics

	mu       sync.Mutex
	failures map[Role]int
	up       map[Role]bool
	current  bool // the feed was fresh when last looked at
	writable bool // the journal was when last looked at
}

func newMonitor(tokens map[Role]token.Health, fresh func() bool, journal Journal, timeout time.Duration, log *slog.Logger, m *metrics) *monitor {
	mon := &monitor{
		server: health.NewServer(), tokens: tokens, fresh: fresh, journal: journal, writable: true, timeout: timeout, log: log, metrics: m,
		failures: map[Role]int{}, up: map[Role]bool{}, asking: map[Role]chan struct{}{},
	}
	for r := range tokens {
		mon.asking[r] = make(chan struct{}, 1)
	}
	for _, r := range allRoles {
		mon.server.SetServingStatus(string(r), healthpb.HealthCheckResponse_NOT_SERVING)
	}
	mon.server.SetServingStatus(serviceAll, healthpb.HealthCheckResponse_NOT_SERVING)
	mon.server.SetServingStatus(serviceSealKey, healthpb.HealthCheckResponse_NOT_SERVING)
	return mon
}

func (m *monitor) holds(r Role) bool { return m.tokens[r] != nil }

// start checks every token once; a server does not start with one that fails.
func (m *monitor) start(ctx context.Context) error {
	for r, t := range m.tokens {
		ctx, cancel := context.WithTimeout(ctx, m.timeout)
		err := t.Check(ctx)
		cancel()
		if err != nil {
			return fmt.Errorf("token of role %s: %w", r, err)
		}
		m.set(r, true, nil)
	}
	return nil
}

// run checks until ctx ends.
func (m *monitor) run(ctx context.Context, every time.Duration) {
	var wg sync.WaitGroup
	for r, t := range m.tokens {
		wg.Go(func() { repeat(ctx, every, func() { m.check(ctx, r, t) }) })
	}
	wg.Go(func() { repeat(ctx, every, m.lookAtFeed) })
	if m.journal != nil {
		wg.Go(func() { repeat(ctx, every, m.lookAtJournal) })
	}
	wg.Wait()
}

func repeat(ctx context.Context, every time.Duration, f func()) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f()
		}
	}
}

// lookAtFeed is told when the feed was brought up to date, and repeated because
// it grows old by itself.
func (m *monitor) lookAtFeed() {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.current
	if m.current = m.fresh(); m.current == was {
		return
	}
	if m.current {
		m.log.Info("control feed is recent")
	} else {
		m.log.Error("control feed is stale: nothing is opened, sealed, minted or rewrapped until the custodian sends a recent head")
	}
	m.publish()
}

// lookAtJournal tries to write again where that failed.
func (m *monitor) lookAtJournal() {
	err := m.journal.Err()
	if err != nil {
		err = m.journal.Recover()
	}
	m.recorded(err)
}

// recorded is told whether what is done can be recorded.
func (m *monitor) recorded(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if was := m.writable; was == (err == nil) {
		return
	}
	m.writable = err == nil
	if m.writable {
		m.log.Info("the journal is written again")
	} else {
		m.log.Error("the journal cannot be written: nothing is opened or sealed", "error", err.Error())
	}
	m.publish()
}

// publish tells the health service; m.mu is held.
func (m *monitor) publish() {
	all := true
	for r := range m.tokens {
		ok := m.serves(r)
		all = all && ok
		m.server.SetServingStatus(string(r), serving(ok))
	}
	m.server.SetServingStatus(serviceSealKey, serving(m.up[RoleSeal] && m.writable))
	m.server.SetServingStatus(serviceAll, serving(all))
}

func (m *monitor) serves(r Role) bool {
	return m.up[r] && (m.current || !r.needsFeed()) && (m.writable || !r.isRecorded())
}

func (m *monitor) check(ctx context.Context, r Role, t token.Health) {
	cctx, cancel := context.WithTimeout(ctx, m.timeout)
	err := t.Check(cctx)
	cancel()
	switch {
	case ctx.Err() != nil: // we are stopping
	case err == nil:
		m.set(r, true, nil)
	case errors.Is(err, token.ErrBusy):
	case errors.Is(err, token.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded):
		m.set(r, false, err)
	default:
		m.mu.Lock()
		m.failures[r]++
		n := m.failures[r]
		m.mu.Unlock()
		if n >= 2 {
			m.set(r, false, err)
		}
	}
}

// down is told by a call that found the token unavailable.
func (m *monitor) down(r Role, err error) { m.set(r, false, err) }

func (m *monitor) set(r Role, up bool, cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if up {
		m.failures[r] = 0
	}
	if was, known := m.up[r]; known && was == up {
		return
	}
	m.up[r] = up
	m.publish()
	if up {
		m.metrics.tokenUp.WithLabelValues(string(r)).Set(1)
		m.log.Info("token up", "role", string(r))
	} else {
		m.metrics.tokenUp.WithLabelValues(string(r)).Set(0)
		m.log.Error("token down", "role", string(r), "error", cause.Error())
	}
}

// healthy says whether all tokens pass their checks.
func (m *monitor) healthy() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for r := range m.tokens {
		if !m.up[r] {
			return false
		}
	}
	return true
}

func serving(up bool) healthpb.HealthCheckResponse_ServingStatus {
	if up {
		return healthpb.HealthCheckResponse_SERVING
	}
	return healthpb.HealthCheckResponse_NOT_SERVING
}
