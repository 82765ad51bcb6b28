package hsm

import (
	"context"
	"fmt"
	"slices"
	"time"

	"kluis/cryptoserver/token"
)

// Served is how many batches of a kind one token did.
func Served(h *HSM, label, kind string) uint64 {
	return h.pool(label).metrics.served(kind)
}

// Failovers is how many batches left one token.
func Failovers(h *HSM, label string) float64 {
	m := h.pool(label).metrics
	return value(m.all.failovers.WithLabelValues(m.label))
}

// Visit does work by turns on the tokens of a role, as a group does, and says
// which of them were visited.
func Visit(ctx context.Context, h *HSM, role Role, work func(label string) error) (visited []string, err error) {
	g := h.groups[role]
	err = g.run(ctx, g.pools, 1, func(_ context.Context, p *pool) error {
		visited = append(visited, p.label)
		return work(p.label)
	})
	return visited, err
}

// ErrReopening is what a token answers that another stands in for.
func ErrReopening() error { return unavailable("x", errReopening) }

// OpenLate is an Open that came before the last n calls of Forget.
func OpenLate(ctx context.Context, h *HSM, label string, n uint64, keys []token.WrappedKey, items []token.Item) error {
	p := h.pool(label)
	return p.gcm(ctx, p.generation.Load()-n, false, keys, items)
}

// Chosen draws which of some tokens gets a batch, n times.
func Chosen(h *HSM, role Role, operations, n int) map[string]int {
	g := h.groups[role]
	var left []*candidate
	for _, p := range g.pools {
		left = append(left, &candidate{pool: p})
	}
	chosen := map[string]int{}
	for range n {
		chosen[choose(left, operations).label]++
	}
	return chosen
}

// SetPace makes a token believe that it was this fast of late.
func SetPace(h *HSM, label string, operation time.Duration) {
	p := h.pool(label)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pace = pace{spent: 1e6 * operation.Seconds(), done: 1e6}
}

// Load is the work a token believes to have.
func Load(h *HSM, label string) int64 { return h.pool(label).load.Load() }

// Occupy takes all of a token's queue but the place of who works, until the
// returned function is called.
func Occupy(h *HSM, label string) (free func()) {
	p := h.pool(label)
	done := make(chan struct{})
	started := make(chan struct{}, p.size)
	wait := func(*access) error { started <- struct{}{}; <-done; return nil }
	for range p.size {
		p.queue <- newJob(wait, func() {})
	}
	for range p.size {
		<-started
	}
	for range queueLength {
		p.queue <- newJob(func(*access) error { return nil }, func() {})
	}
	return func() { close(done) }
}

// Labels are those of a role's tokens.
func Labels(c Config, role Role) (labels []string) {
	for _, t := range c.Tokens[role] {
		labels = append(labels, t.Label)
	}
	return labels
}

// Reopened waits until a token has been opened anew after f.
func Reopened(h *HSM, label string, f func()) error {
	p := h.pool(label)
	p.mu.Lock()
	before := p.conn
	p.mu.Unlock()
	f()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		p.mu.Lock()
		there := p.conn != nil && p.conn != before && p.machine.state == StateUp
		p.mu.Unlock()
		if there {
			return nil
		}
	}
	return fmt.Errorf("token %s is not opened anew", label)
}

// Held lists the epochs of one token.
func Held(h *HSM, label string) []uint32 { return slices.Clone(h.pool(label).held()) }

// HandlesOf is how many unwrapped data keys live on a token.
func HandlesOf(h *HSM, label string) int64 { return h.pool(label).metrics.handles.Load() }

// CountsOf reads the metrics of a token.
func CountsOf(h *HSM, label string) Count { return counts(h.pool(label).metrics) }

// DestroyKEK destroys a KEK under an HSM that serves from it, as an operator
// does, and has the connection lost.
func DestroyKEK(h *HSM, label string, epoch uint32) error {
	p := h.pool(label)
	_, err := p.do(context.Background(), "check", 1, func(a *access) error {
		if err := a.mod.raw.DestroyObject(a.work, a.keks[epoch]); err != nil {
			return err
		}
		p.renew(a.conn)
		return nil
	}, func() {})
	return err
}

// Renew has the connection of a token opened anew.
func Renew(h *HSM, label string) error {
	p := h.pool(label)
	_, err := p.do(context.Background(), "check", 1, func(a *access) error { p.renew(a.conn); return nil }, func() {})
	return err
}
