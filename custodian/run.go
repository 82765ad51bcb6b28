package custodian

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// Ready is closed once Run has brought a cryptoserver up to date for the first
// time.
func (c *Custodian) Ready() <-chan struct{} { return c.ready }

// Run is the daemon: every so often it has the head of the feed signed, and it
// tells it, with whatever entries are missing, to each server by itself, until
// ctx ends. It returns nil then. What fails is said once in the log and tried
// again; a server that is away or hangs delays no other.
func (c *Custodian) Run(ctx context.Context, every time.Duration) error {
	addresses := c.servers.Addresses()
	var wg sync.WaitGroup
	defer wg.Wait()
	followers := make([]*follower, len(addresses))
	for i, address := range addresses {
		followers[i] = &follower{address: address, news: make(chan signed, 1), trouble: trouble{log: c.log.With("address", address)}}
		wg.Go(func() { c.follow(ctx, followers[i]) })
	}
	sign, keep := &trouble{log: c.log}, &trouble{log: c.log}
	told := make(chan struct{}, 1)
	facts := &watch{c: c, told: told, trouble: trouble{log: c.log}, strays: newStrays(), alarmStray: trouble{log: c.log}, alarm: trouble{log: c.log}}
	wg.Go(func() { facts.run(ctx, every*2/5) })
	for {
		began := time.Now()
		head, err := c.beat(ctx)
		if ctx.Err() != nil {
			return nil
		}
		wait := every - time.Since(began)
		if err != nil {
			if errors.Is(err, ErrRolledBack) {
				err = errors.Join(err, errors.New("no heartbeat is signed, so the cryptoservers stop using keys within a minute"))
			}
			sign.is(err, "the control feed stands still")
			wait = min(wait, c.timing.again)
		} else {
			sign.is(nil, "the control feed goes on")
			for _, f := range followers {
				f.tell(head)
			}
			_, err := calling(ctx, c.timing.call, func(ctx context.Context) (struct{}, error) {
				return struct{}{}, c.store.Heartbeat(ctx, head.bytes)
			})
			if ctx.Err() == nil {
				keep.is(err, "the head of the control feed for relays")
			}
		}
		select {
		case <-told: // at once, and then as often as ever
		case <-time.After(max(wait, 0)):
		case <-ctx.Done():
			return nil
		}
	}
}

// beat looks at the database and has the head signed.
func (c *Custodian) beat(ctx context.Context) (signed, error) {
	if err := c.sync(ctx); err != nil {
		return signed{}, err
	}
	head, err := c.sign(ctx, c.feed().Head(), nil)
	if errors.Is(err, ErrFork) {
		// Somebody appended in between, and has told the server already.
		if err := c.sync(ctx); err != nil {
			return signed{}, err
		}
		if head, err = c.sign(ctx, c.feed().Head(), nil); errors.Is(err, ErrFork) {
			return signed{}, errors.Join(ErrRolledBack, err)
		}
	}
	return head, err
}

// follower is one server that is told the feed.
type follower struct {
	address string
	news    chan signed // the newest head
	trouble trouble
}

// tell replaces the head that was not fetched yet. One goroutine tells.
func (f *follower) tell(head signed) {
	select {
	case <-f.news:
	default:
	}
	f.news <- head
}

// follow keeps one server up to date.
func (c *Custodian) follow(ctx context.Context, f *follower) {
	var (
		head  signed
		known uint64
		first = true
		retry <-chan time.Time
	)
	for {
		select {
		case <-ctx.Done():
			return
		case head = <-f.news:
		case <-retry:
		}
		if first {
			known, first = head.Sequence, false // it says when it knows less
		}
		err := c.bring(ctx, f.address, &known, head)
		if ctx.Err() != nil {
			return
		}
		retry = nil
		if err != nil {
			f.trouble.is(err, "a cryptoserver does not follow the control feed")
			retry = time.After(c.timing.again)
			continue
		}
		f.trouble.is(nil, "a cryptoserver follows the control feed")
		if c.said.CompareAndSwap(false, true) {
			close(c.ready)
		}
	}
}

// trouble says in the log when something begins to fail, fails otherwise, and
// goes well again; not each time.
type trouble struct {
	log  *slog.Logger
	last string
	ever bool
}

func (t *trouble) is(err error, what string) {
	if err == nil {
		if t.last != "" || !t.ever {
			t.log.Info(what)
		}
		t.last, t.ever = "", true
		return
	}
	// The first error of a chain of attempts says what kind it is; the texts of
	// timeouts differ from one to the next.
	kind := kindOf(err)
	if kind != t.last {
		t.log.Error(what+", and is tried again", "error", err.Error())
	}
	t.last, t.ever = kind, true
}

func kindOf(err error) string {
	for _, k := range []error{ErrFactsBehind, ErrStrayFacts, ErrRolledBack, ErrFork, ErrFeed, ErrCopy, ErrUnavailable, context.DeadlineExceeded} {
		if errors.Is(err, k) {
			return k.Error()
		}
	}
	return err.Error()
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
