package custodian

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kluis/cryptoserver/envelope"
)

const (
	scanPage    = 5000 // data keys looked at by one statement
	rewrapBatch = 500  // data keys of one call, and of one transaction
	maxPasses   = 5
)

// RewrapOptions of Rewrap.
type RewrapOptions struct {
	Rate     float64            // data keys per second, at most; 0: no limit
	Progress func(RewrapStatus) // called after each batch
}

// RewrapStatus says how far Rewrap is.
type RewrapStatus struct {
	Epoch     uint32 // the active one
	Total     int64  // data keys of other epochs at the beginning
	Rewrapped int64
	Changed   int64 // were rewrapped, replaced or erased by somebody else meanwhile
	Erased    int64 // are erased in the feed, and still to be deleted: run Reapply
	Damaged   int64 // do not unwrap, or are no record that was minted
	Left      int64 // data keys of other epochs at the end
}

// Rewrap wraps the data keys of other epochs under the active one, while
// readers, imports and erasures go on. It may be killed at any moment and run
// again: what is done is done. Records that do not unwrap are counted and left
// as they are. An error says why it did not come to its end; without one, Left
// is what is still under other epochs, which is not zero when records are
// damaged or erased.
func (c *Custodian) Rewrap(ctx context.Context, opt RewrapOptions) (RewrapStatus, error) {
	var st RewrapStatus
	if err := c.patiently(ctx, c.sync); err != nil {
		return st, err
	}
	if st.Epoch = c.feed().Active(); st.Epoch == 0 {
		return st, fmt.Errorf("%w: no epoch is active", ErrRefused)
	}
	var err error
	if st.Total, err = c.stale(ctx, st.Epoch); err != nil {
		return st, err
	}
	st.Left = st.Total
	pace := &pacer{rate: opt.Rate}
	for range maxPasses {
		if st.Left == 0 {
			return st, nil
		}
		// What is damaged is counted by the last pass alone.
		st.Damaged, st.Erased = 0, 0
		before := st.Rewrapped + st.Changed
		if err := c.rewrapPass(ctx, &st, pace, opt.Progress); err != nil {
			return st, err
		}
		if st.Left, err = c.stale(ctx, st.Epoch); err != nil {
			return st, err
		}
		// Imports may have stored some that were minted before; what is left
		// after a pass that found nothing else is damaged or erased.
		if st.Rewrapped+st.Changed == before && st.Left <= st.Damaged+st.Erased {
			break
		}
	}
	return st, nil
}

// stale counts the data keys of other epochs.
func (c *Custodian) stale(ctx context.Context, epoch uint32) (n int64, err error) {
	err = c.patiently(ctx, func(ctx context.Context) error {
		counts, err := c.store.CountKeys(ctx)
		n = 0
		for e, count := range counts {
			if e != epoch {
				n += count.Keys
			}
		}
		return err
	})
	return n, err
}

func (c *Custodian) rewrapPass(ctx context.Context, st *RewrapStatus, pace *pacer, progress func(RewrapStatus)) error {
	// A slow rate is kept within each second, too.
	batch := rewrapBatch
	if pace.rate > 0 && pace.rate < rewrapBatch {
		batch = max(1, int(pace.rate))
	}
	return c.scan(ctx, KeySelection{NotEpoch: st.Epoch}, batch, func(keys []envelope.KeyRecord) error {
		if err := pace.wait(ctx, len(keys)); err != nil {
			return err
		}
		if err := c.rewrapBatch(ctx, keys, st); err != nil {
			return err
		}
		if progress != nil {
			progress(*st)
		}
		return nil
	})
}

// scan calls f with the selected data keys, in batches.
func (c *Custodian) scan(ctx context.Context, s KeySelection, batch int, f func([]envelope.KeyRecord) error) error {
	place := &Place{}
	for place != nil {
		var keys []envelope.KeyRecord
		var next *Place
		err := c.patiently(ctx, func(ctx context.Context) (err error) {
			keys, next, err = c.store.Scan(ctx, s, *place, scanPage)
			return err
		})
		if err != nil {
			return err
		}
		for len(keys) > 0 {
			n := min(batch, len(keys))
			if err := f(keys[:n]); err != nil {
				return err
			}
			keys = keys[n:]
		}
		place = next
	}
	return nil
}

func (c *Custodian) rewrapBatch(ctx context.Context, keys []envelope.KeyRecord, st *RewrapStatus) error {
	var results []RewrapResult
	err := c.patiently(ctx, func(ctx context.Context) error {
		epoch, out, err := c.servers.Rewrap(ctx, keys)
		switch {
		case err != nil:
			return err
		case epoch > st.Epoch:
			return fmt.Errorf("%w: epoch %d was activated meanwhile: run this again", ErrConflict, epoch)
		case epoch != st.Epoch:
			return fmt.Errorf("%w: a cryptoserver does not know yet that epoch %d is active", ErrUnavailable, st.Epoch)
		case len(out) != len(keys):
			return errors.New("a cryptoserver answered with another number of keys")
		}
		results = out
		return nil
	})
	switch {
	case err == nil:
	case ctx.Err() != nil || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrConflict) || errors.Is(err, context.DeadlineExceeded):
		return err
	case len(keys) == 1:
		st.Damaged++ // nothing a server would look at
		return nil
	default:
		half := len(keys) / 2
		if err := c.rewrapBatch(ctx, keys[:half], st); err != nil {
			return err
		}
		return c.rewrapBatch(ctx, keys[half:], st)
	}
	old, new := keys[:0:0], keys[:0:0]
	for i, r := range results {
		switch {
		case r.Err == nil:
			old, new = append(old, keys[i]), append(new, r.Record)
		case errors.Is(r.Err, ErrErased):
			st.Erased++
		default:
			st.Damaged++
		}
	}
	if len(old) == 0 {
		return nil
	}
	n := 0
	err = c.patiently(ctx, func(ctx context.Context) (err error) {
		// Done again after an answer that was lost, it finds the records
		// replaced, and counts them as changed by somebody else.
		n, err = c.store.ReplaceWrapped(ctx, old, new)
		return err
	})
	st.Rewrapped += int64(n)
	st.Changed += int64(len(old) - n)
	return err
}

// pacer bounds a rate.
type pacer struct {
	rate float64 // per second; 0: no limit
	next time.Time
}

func (p *pacer) wait(ctx context.Context, n int) error {
	if p.rate <= 0 {
		return ctx.Err()
	}
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	wait := p.next.Sub(now)
	p.next = p.next.Add(time.Duration(float64(n) / p.rate * float64(time.Second)))
	return sleep(ctx, wait)
}
