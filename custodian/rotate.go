package custodian

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"kluis/cryptoserver/control"
	"kluis/cryptoserver/envelope"
)

// DefaultGrace is how long a data key that was replaced is kept from being
// erased: longer than the longest request_timeout a gateway may have, so that
// nobody has rows in hand that were sealed under it.
const DefaultGrace = 6 * time.Minute

const (
	resealBatch   = 200 // blocks of one call
	rotateWorkers = 4
	rotateTries   = 5
)

// RotateOptions of RotateDataKeys.
type RotateOptions struct {
	Grace    time.Duration // 0: DefaultGrace; must exceed the request_timeout of every gateway
	Progress func(RotateStatus)
}

// RotateStatus says how far RotateDataKeys is.
type RotateStatus struct {
	MintedBefore time.Time // say it again to go on where it was interrupted
	Rotated      int64
	Blocks       int64 // sealed again
	Damaged      int64 // data keys left as they are: the record or a block does not open
	TooOften     int64 // data keys left as they are: a block was sealed too often today
	Gone         int64 // were erased or replaced by somebody else meanwhile
	Waiting      int   // replaced, and waiting for the grace to end
	Erased       int64 // replaced ones now erased
	Sequences    []uint64
	Acks         []Ack // of the last erasure
}

// RotateDataKeys gives metering points new data keys: each is minted, all
// blocks are sealed again under it, and both take the old one's place at once.
// After the grace the old keys are erased in the feed; backups from before do
// not open from then on. It may be killed at any moment and run again, with the
// same MintedBefore so that what is done is not done again; zero means now.
func (c *Custodian) RotateDataKeys(ctx context.Context, s KeySelection, opt RotateOptions) (RotateStatus, error) {
	var st RotateStatus
	if err := c.patiently(ctx, c.sync); err != nil {
		return st, err
	}
	if c.feed().Active() == 0 {
		return st, fmt.Errorf("%w: no epoch is active", ErrRefused)
	}
	if s.MintedBefore.IsZero() {
		s.MintedBefore = c.now()
	}
	st.MintedBefore = s.MintedBefore.UTC()
	report := func() {
		if opt.Progress != nil {
			opt.Progress(st)
		}
	}
	var mu sync.Mutex // of st
	err := c.scan(ctx, s, 4*rotateWorkers, func(keys []envelope.KeyRecord) error {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(rotateWorkers)
		for _, k := range keys {
			group.Go(func() error {
				n, err := c.rotateKey(ctx, k)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					st.Rotated++
					st.Blocks += int64(n)
				case errors.Is(err, ErrDamaged):
					st.Damaged++
				case errors.Is(err, ErrTooOften):
					st.TooOften++
				case errors.Is(err, ErrGone) || errors.Is(err, ErrErased):
					st.Gone++
				default:
					return err
				}
				return nil
			})
		}
		err := group.Wait()
		report()
		return err
	})
	if err != nil {
		return st, err
	}
	grace := opt.Grace
	if grace <= 0 {
		grace = DefaultGrace
	}
	return st, c.eraseRetired(ctx, grace, &st, report)
}

// rotateKey replaces one data key and returns how many blocks were sealed again.
// ErrGone, ErrErased: there is nothing to replace any more; ErrDamaged,
// ErrTooOften: it is left as it is.
func (c *Custodian) rotateKey(ctx context.Context, old envelope.KeyRecord) (int, error) {
	var blocks []envelope.SealedBlock
	stored := false // perhaps: an answer was lost
	conflicts := 0
	err := c.patiently(ctx, func(ctx context.Context) error {
		for {
			err := c.replaceKey(ctx, old, &blocks)
			switch {
			case errors.Is(err, ErrConflict):
				// An import sealed under it in between: with what there is now.
				if conflicts++; conflicts < rotateTries {
					continue
				}
				return fmt.Errorf("blocks are stored under a data key faster than they are sealed again: %w", err)
			case errors.Is(err, ErrGone) && stored:
				return nil
			case errors.Is(err, ErrUnavailable) || errors.Is(err, context.DeadlineExceeded):
				stored = true
			}
			return err
		}
	})
	return len(blocks), err
}

func (c *Custodian) replaceKey(ctx context.Context, old envelope.KeyRecord, resealed *[]envelope.SealedBlock) error {
	blocks, err := c.store.BlocksUnder(ctx, old)
	if err != nil {
		return err
	}
	minted, err := c.servers.Mint(ctx, []envelope.KeySpec{{EAN: old.EAN, Class: old.Class, Month: old.Month, Occupancy: old.Occupancy}})
	if err != nil {
		return fmt.Errorf("mint a data key: %w", err)
	}
	if len(minted) != 1 {
		return errors.New("a cryptoserver answered with another number of keys")
	}
	for part := range slices.Chunk(blocks, resealBatch) {
		out, err := c.servers.Reseal(ctx, old, minted[0], part)
		if err != nil {
			return fmt.Errorf("seal blocks under another data key: %w", err)
		}
		if len(out) != len(part) {
			return errors.New("a cryptoserver answered with another number of blocks")
		}
		for i, r := range out {
			if r.Err != nil {
				return r.Err
			}
			part[i].Ciphertext = r.Ciphertext
		}
	}
	if err := c.store.ReplaceDataKey(ctx, old, minted[0], blocks); err != nil {
		return err
	}
	*resealed = blocks
	return nil
}

// eraseRetired erases the data keys that were replaced, once their grace ends.
func (c *Custodian) eraseRetired(ctx context.Context, grace time.Duration, st *RotateStatus, report func()) error {
	for {
		var refs []KeyRef
		young := 0
		err := c.patiently(ctx, func(ctx context.Context) (err error) {
			if refs, err = c.store.Retired(ctx, zeroEAN, grace, control.MaxKeys); err != nil || len(refs) > 0 {
				return err
			}
			rest, err := c.store.Retired(ctx, zeroEAN, 0, control.MaxKeys)
			young = len(rest)
			return err
		})
		if err != nil {
			return err
		}
		st.Waiting = young
		if len(refs) == 0 && young == 0 {
			report()
			return nil
		}
		if len(refs) == 0 {
			report()
			if err := sleep(ctx, min(max(grace/50, 10*time.Millisecond), 10*time.Second)); err != nil {
				return err
			}
			continue
		}
		sequence, acks, err := c.eraseNamed(ctx, refs, control.CauseReplaced, zeroEAN)
		if err != nil {
			return err
		}
		st.Sequences, st.Acks = append(st.Sequences, sequence), acks
		if _, err := c.deleteKeys(ctx, refs, sequence); err != nil {
			return err
		}
		st.Erased += int64(len(refs))
		report()
	}
}
