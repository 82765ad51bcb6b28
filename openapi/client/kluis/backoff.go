package kluis

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff waits between tries of the same thing: at least as long as the
// gateway says, else longer each time, never in step with other clients, and
// not longer in all than patience.
type backoff struct {
	sleep    func(context.Context, time.Duration) error
	patience time.Duration // what is left of it
	all      time.Duration
	tries    int
}

const (
	firstWait = 200 * time.Millisecond
	maxWait   = 15 * time.Second
)

func (k *Client) backoff() *backoff {
	p := max(k.config.Patience, 0)
	return &backoff{sleep: k.sleep, patience: p, all: p}
}

// next waits, and says whether to try again.
func (b *backoff) next(ctx context.Context, atLeast time.Duration) bool {
	wait := min(firstWait<<min(b.tries, 10), maxWait)
	b.tries++
	wait = wait/2 + rand.N(wait/2)
	if atLeast > 0 {
		wait = atLeast + wait/4
	}
	if wait > b.patience {
		return false
	}
	b.patience -= wait
	return b.sleep(ctx, wait) == nil
}

// progress: something came of the last try.
func (b *backoff) progress() { b.tries, b.patience = 0, b.all }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
