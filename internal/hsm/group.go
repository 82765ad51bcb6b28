package hsm

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kluis/cryptoserver/token"
)

// group serves a role from its tokens, on which the same keys live. A batch
// goes to one of them, by how much they have to do and how fast they are; when
// that one cannot serve, to the next, within the caller's time. A token writes
// to buffers of its own, and they are copied to the caller once, when one
// served the whole batch: no block is lost or comes twice.
//
// What a token says of the data is never asked of another: damage is damage.
// Only an epoch that one does not have yet, or any more, another may have.
type group struct {
	role  Role
	pools []*pool // one at least

	// generation counts the calls of Forget. A batch that came before the last
	// of them leaves no data key in a cache.
	generation atomic.Uint64
}

// add takes in one more token; before anybody uses the group.
func (g *group) add(p *pool) {
	g.pools = append(g.pools, p)
	for _, p := range g.pools {
		p.setSiblings(slices.DeleteFunc(slices.Clone(g.pools), func(o *pool) bool { return o == p }))
	}
}

// candidate is a token that a batch may still go to.
type candidate struct {
	*pool
	turned bool // away, because it was being opened anew
}

// run does work on one of some tokens. It returns what work returned, unless
// that is ErrUnavailable and there is another token to try.
func (g *group) run(ctx context.Context, pools []*pool, operations int, work func(ctx context.Context, p *pool) error) error {
	if len(pools) == 1 {
		return work(ctx, pools[0])
	}
	if _, ok := ctx.Deadline(); !ok { // for all tokens together
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, batchTimeout)
		defer cancel()
	}
	left := make([]*candidate, len(pools))
	for i, p := range pools {
		left[i] = &candidate{pool: p}
	}
	var failed error
	for {
		c := choose(left, operations)
		err := work(ctx, c.pool)
		if !errors.Is(err, token.ErrUnavailable) {
			return err
		}
		failed = also(failed, err)
		if c.turned || !errors.Is(err, errReopening) {
			left = slices.DeleteFunc(left, func(o *candidate) bool { return o == c })
		}
		c.turned = true // it may be back when the others have failed
		if len(left) == 0 || ctx.Err() != nil {
			return failed
		}
		c.metrics.failover()
	}
}

// also joins errors on one line.
func also(err, next error) error {
	if err == nil {
		return next
	}
	return fmt.Errorf("%w; %w", err, next)
}

// choose takes a token that would have the batch done soon. It draws by lot, so
// that callers at the same moment do not all choose the same: one that is
// expected to take twice as long is chosen an eighth as often. Tokens that are
// being opened anew come after those that serve, and those that are down come
// last.
func choose(left []*candidate, operations int) *candidate {
	outlooks := make([]outlook, len(left))
	best, pace := away, math.Inf(1)
	for i, c := range left {
		outlooks[i] = c.outlook()
		best = max(best, outlooks[i].readiness)
	}
	for _, o := range outlooks {
		if o.readiness == best {
			pace = min(pace, o.pace)
		}
	}
	chosen, sum := left[0], 0.0
	for i, o := range outlooks {
		if o.readiness != best {
			continue
		}
		wait := o.wait(operations, pace)
		w := 1 / (wait * wait * wait)
		if sum += w; rand.Float64()*sum < w {
			chosen = left[i]
		}
	}
	return chosen
}

// Check implements token.Health: the role is well when one of its tokens is.
// Every token is asked, so that each comes to know of a failure by itself.
func (g *group) Check(ctx context.Context) error {
	if len(g.pools) == 1 {
		return g.pools[0].check(ctx)
	}
	end, ok := ctx.Deadline()
	if !ok {
		end = time.Now().Add(batchTimeout)
	}
	// The answer of one is not waited for because of another.
	all, cancel := context.WithDeadline(context.WithoutCancel(ctx), end)
	results := make(chan error, len(g.pools))
	var asked sync.WaitGroup
	for _, p := range g.pools {
		asked.Go(func() { results <- p.check(all) })
	}
	go func() { asked.Wait(); cancel() }()
	var failed error
	for range g.pools {
		select {
		case err := <-results:
			if err == nil {
				return nil
			}
			failed = also(failed, err)
		case <-ctx.Done():
			return also(failed, unavailable(string(g.role), ctx.Err()))
		}
	}
	return failed
}

// Epochs implements token.Health.
func (g *group) Epochs() []uint32 {
	epochs := g.pools[0].held()
	for _, p := range g.pools[1:] {
		other := p.held()
		epochs = slices.DeleteFunc(epochs, func(e uint32) bool { return !slices.Contains(other, e) })
	}
	return epochs
}

// Report implements token.Health.
func (g *group) Report() []token.Report {
	reports := make([]token.Report, len(g.pools))
	for i, p := range g.pools {
		reports[i] = p.report()
	}
	return reports
}

// Forget implements token.Forgetter. Where it fails for one token, it is done
// for the others all the same.
func (g *group) Forget(ctx context.Context) error {
	// From here on no batch that is under way leaves a key behind; what was
	// left before is taken out of each cache.
	g.generation.Add(1)
	errs := make([]error, len(g.pools))
	var all sync.WaitGroup
	for i, p := range g.pools {
		all.Go(func() { errs[i] = p.forget(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// holding are the tokens that have a KEK, or all when none has: then one of
// them says so.
func (g *group) holding(epoch uint32) []*pool {
	var pools []*pool
	for _, p := range g.pools {
		if slices.Contains(p.held(), epoch) {
			pools = append(pools, p)
		}
	}
	if len(pools) == 0 {
		return g.pools
	}
	return pools
}

// gcm does a whole Open or Seal.
func (g *group) gcm(ctx context.Context, encrypt bool, keys []token.WrappedKey, items []token.Item) error {
	generation := g.generation.Load()
	var by *pool
	if err := g.run(ctx, g.pools, len(items), func(ctx context.Context, p *pool) error {
		by = p
		return p.gcm(ctx, generation, encrypt, keys, items)
	}); err != nil || len(g.pools) == 1 {
		return err
	}
	unknown := map[uint32][]int{}
	for i := range items {
		if errors.Is(items[i].Err, token.ErrUnknownEpoch) {
			epoch := keys[items[i].Key].Epoch
			unknown[epoch] = append(unknown[epoch], i)
		}
	}
	for epoch, of := range unknown {
		pools := slices.DeleteFunc(slices.Clone(g.holding(epoch)), func(p *pool) bool {
			return p == by || !slices.Contains(p.held(), epoch)
		})
		if len(pools) == 0 {
			continue
		}
		again := make([]token.Item, len(of))
		for j, i := range of {
			again[j] = items[i]
		}
		if err := g.run(ctx, pools, len(again), func(ctx context.Context, p *pool) error {
			return p.gcm(ctx, generation, encrypt, keys, again)
		}); err != nil {
			continue // their error says as much: another server may know the epoch
		}
		for j, i := range of {
			items[i] = again[j]
		}
	}
	return nil
}

func (g *group) mac(ctx context.Context, label string, messages [][]byte) (macs [][32]byte, err error) {
	err = g.run(ctx, g.pools, len(messages), func(ctx context.Context, p *pool) error {
		macs, err = p.mac(ctx, label, messages)
		return err
	})
	return macs, err
}

type opener struct{ *group }

// Open implements token.Opener. An item whose key names an epoch that no token
// holds gets ErrUnknownEpoch, the others go on.
func (o opener) Open(ctx context.Context, keys []token.WrappedKey, items []token.Item) error {
	return o.gcm(ctx, false, keys, items)
}

type sealer struct {
	*group
	signer *signer
}

// Seal implements token.Sealer. An item whose key names an epoch that no token
// holds gets ErrUnknownEpoch, the others go on.
func (s sealer) Seal(ctx context.Context, keys []token.WrappedKey, items []token.Item) error {
	return s.gcm(ctx, true, keys, items)
}

func (s sealer) ContentMAC(ctx context.Context, messages [][]byte) ([][32]byte, error) {
	return s.mac(ctx, labelContentMAC, messages)
}

func (s sealer) RecordMAC(ctx context.Context, messages [][]byte) ([][32]byte, error) {
	return s.mac(ctx, labelRecordMAC, messages)
}

func (s sealer) IndexMAC(ctx context.Context, messages [][]byte) ([][32]byte, error) {
	return s.mac(ctx, labelIndexMAC, messages)
}

type minter struct{ *group }

// Mint implements token.Minter.
func (m minter) Mint(ctx context.Context, epoch uint32, n int) (wrapped [][]byte, err error) {
	err = m.run(ctx, m.holding(epoch), n, func(ctx context.Context, p *pool) error {
		wrapped, err = p.mint(ctx, epoch, n)
		return err
	})
	return wrapped, err
}

func (m minter) RecordMAC(ctx context.Context, messages [][]byte) ([][32]byte, error) {
	return m.mac(ctx, labelRecordMAC, messages)
}

// Random implements token.Minter; at most 64 KiB at once.
func (m minter) Random(ctx context.Context, b []byte) error {
	return m.run(ctx, m.pools, 1, func(ctx context.Context, p *pool) error { return p.random(ctx, b) })
}

type rotator struct{ *group }

// Rewrap implements token.Rotator.
func (r rotator) Rewrap(ctx context.Context, keys []token.WrappedKey, to uint32) (out []token.Rewrapped, err error) {
	err = r.run(ctx, r.holding(to), len(keys), func(ctx context.Context, p *pool) error {
		out, err = p.rewrap(ctx, keys, to)
		return err
	})
	return out, err
}

func (r rotator) RecordMAC(ctx context.Context, messages [][]byte) ([][32]byte, error) {
	return r.mac(ctx, labelRecordMAC, messages)
}

type tokenSigner struct {
	*group
	signer *signer
}
