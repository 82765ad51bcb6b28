package custodian

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/control"
)

// timing is how long things may take; tests change it.
type timing struct {
	call     time.Duration // one call to the database or to a cryptoserver
	work     time.Duration // one call with a batch of keys or blocks
	again    time.Duration // until what failed is tried again
	ack      time.Duration // for all servers to acknowledge what was appended
	patience time.Duration // with what is not available
	tries    int           // at appending, when others are faster
}

var defaultTiming = timing{
	call: 5 * time.Second, work: time.Minute, again: time.Second,
	ack: 10 * time.Second, patience: 2 * time.Minute, tries: 20,
}

// Custodian does the custodian's work. Safe for concurrent use.
type Custodian struct {
	store   Store
	servers Cryptoservers
	keys    *authz.SealKeys
	copy    *feedCopy
	log     *slog.Logger
	now     func() time.Time
	timing  timing
	metrics *metrics

	compared atomic.Bool // the whole feed in the database, with the copy
	ready    chan struct{}
	said     atomic.Bool // ready is closed
}

// New opens the copy of the feed, or makes it, and verifies it under the pinned
// seal keys; errors wrap ErrCopy. clock is for the times that people see.
func New(store Store, servers Cryptoservers, keys *authz.SealKeys, copyFile string, log *slog.Logger, clock func() time.Time) (*Custodian, error) {
	if len(servers.Addresses()) == 0 {
		return nil, errors.New("custodian: no cryptoservers")
	}
	c, err := openCopy(copyFile, keys, log)
	if err != nil {
		return nil, err
	}
	return &Custodian{store: store, servers: servers, keys: keys, copy: c, log: log, now: clock, timing: defaultTiming, metrics: newMetrics(), ready: make(chan struct{})}, nil
}

// Close closes the copy.
func (c *Custodian) Close() error { return c.copy.close() }

// feed is what the custodian knows of the feed: as much as its copy.
func (c *Custodian) feed() *control.Feed { return c.copy.feed }

// calling bounds one call to the database or a cryptoserver.
func calling[T any](ctx context.Context, limit time.Duration, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return f(ctx)
}

// patiently repeats what is not available until it is, or patience ends. f must
// be good to repeat also when it was done and only its answer was lost.
func (c *Custodian) patiently(ctx context.Context, f func(context.Context) error) error {
	end := time.Now().Add(c.timing.patience)
	for {
		_, err := calling(ctx, c.timing.work, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		passes := errors.Is(err, ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
		if !passes || time.Now().After(end) {
			return err
		}
		if err := pause(ctx, c.timing.again); err != nil {
			return err
		}
	}
}

// pause waits about so long.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d/2 + rand.N(d+1))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
