package custodian

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"kluis/cryptoserver/control"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

// Reapplied says what Reapply has done, or how far it is.
type Reapplied struct {
	Entries  int64 // of the feed, put back into the database
	Seen     int64 // data keys looked at
	Deleted  int64 // erased ones that had come back
	Replaced int64 // of these: were replaced when the backup was older; their readings are lost unless the tables are restored to a later state
	Stale    int64 // are wrapped under another epoch than the active one: run Rewrap
	Lost     int64 // are wrapped under a destroyed epoch alone, and open nowhere
	Acks     []Ack
}

// Reapply makes a database that was put back to an older state agree with the
// feed again: entries that it lacks are put back, and what they erase is
// deleted again. Nothing erased opens meanwhile, as the cryptoservers know the
// feed. A database that agrees is not changed.
func (c *Custodian) Reapply(ctx context.Context, progress func(Reapplied)) (Reapplied, error) {
	var st Reapplied
	report := func() {
		if progress != nil {
			progress(st)
		}
	}
	if err := c.refill(ctx, &st); err != nil {
		return st, err
	}
	c.compared.Store(false) // all of it, once more
	if err := c.patiently(ctx, c.sync); err != nil {
		return st, err
	}
	report()
	// Before anything is deleted: the servers that started meanwhile.
	var err error
	if st.Acks, err = c.announce(ctx); err != nil {
		return st, err
	}
	index := map[control.KeyID]uint64{}
	replaced := map[control.KeyID]bool{}
	months := map[uint64]meter.Month{}
	err = c.entries(func(sequence uint64, e control.Entry) {
		for _, id := range e.Keys {
			if _, have := index[id]; !have {
				index[id] = sequence
				replaced[id] = e.Cause == control.CauseReplaced
			}
		}
		if e.Kind == control.EraseBefore {
			months[sequence] = e.Month
		}
	})
	if err != nil {
		return st, err
	}
	erasedBy := func(k *envelope.KeyRecord) uint64 {
		if sequence, ok := index[k.ID]; ok {
			return sequence
		}
		if k.Class == meter.Identity {
			return 0 // erased by name only
		}
		first := uint64(0)
		for sequence, month := range months {
			if k.Month < month && (first == 0 || sequence < first) {
				first = sequence
			}
		}
		return first
	}
	active := c.feed().Active()
	err = c.scan(ctx, KeySelection{}, scanPage, func(keys []envelope.KeyRecord) error {
		named := map[uint64][]KeyRef{}
		for i := range keys {
			k := &keys[i]
			st.Seen++
			switch sequence := erasedBy(k); {
			case sequence != 0:
				named[sequence] = append(named[sequence], KeyRef{k.EAN, k.ID})
				if replaced[k.ID] {
					st.Replaced++
				}
			case c.feed().Destroyed(k.Epoch):
				st.Lost++
			case k.Epoch != active:
				st.Stale++
			}
		}
		for sequence, refs := range named {
			n, err := c.deleteKeys(ctx, refs, sequence)
			st.Deleted += n
			if err != nil {
				return err
			}
		}
		report()
		return nil
	})
	if err != nil {
		return st, err
	}
	// Keys that were replaced and then erased: the tombstones may be from
	// between the two.
	return st, c.renameRetired(ctx, index)
}

// refill puts entries of the copy back into the database, in order.
func (c *Custodian) refill(ctx context.Context, st *Reapplied) error {
	last := c.copy.last().Sequence
	for after := uint64(0); after < last; {
		var page []Appended
		err := c.patiently(ctx, func(ctx context.Context) (err error) {
			page, err = c.store.Feed(ctx, after, feedPage)
			return err
		})
		if err != nil {
			return fmt.Errorf("read the control feed: %w", err)
		}
		there := map[uint64]Appended{}
		for _, a := range page {
			there[a.Sequence] = a
		}
		ours, err := c.copy.read(after+1, chunkSize)
		if err != nil {
			return err
		}
		if len(ours) == 0 {
			return nil
		}
		for _, a := range ours[:min(len(ours), feedPage)] {
			switch have, ok := there[a.Sequence]; {
			case ok && !bytes.Equal(have.Entry, a.Entry):
				return fmt.Errorf("%w: its entry %d is another one than this custodian knows and the cryptoservers follow. Find out who wrote it; "+
					"then, as the owner of the tables, delete the rows of control_entry from that sequence on, and run this again", ErrRolledBack, a.Sequence)
			case !ok:
				err := c.patiently(ctx, func(ctx context.Context) error {
					err := c.store.Append(ctx, a)
					if errors.Is(err, ErrConflict) {
						return nil // compared at the end
					}
					return err
				})
				if err != nil {
					return err
				}
				st.Entries++
			}
			after = a.Sequence
		}
	}
	return nil
}

// renameRetired has tombstones of replaced keys that the feed erases say so.
func (c *Custodian) renameRetired(ctx context.Context, index map[control.KeyID]uint64) error {
	var retired []KeyRef
	err := c.patiently(ctx, func(ctx context.Context) (err error) {
		retired, err = c.store.Retired(ctx, zeroEAN, 0, 1<<30)
		return err
	})
	if err != nil {
		return err
	}
	named := map[uint64][]KeyRef{}
	for _, r := range retired {
		if sequence, ok := index[r.ID]; ok {
			named[sequence] = append(named[sequence], r)
		}
	}
	for sequence, refs := range named {
		if _, err := c.deleteKeys(ctx, refs, sequence); err != nil {
			return err
		}
	}
	return nil
}
