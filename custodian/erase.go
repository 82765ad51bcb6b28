package custodian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"kluis/cryptoserver/control"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

const (
	deleteBatch = 500 // data keys of one transaction
	eraseRounds = 5   // while imports store new ones
)

var zeroEAN meter.EAN

// Erasure says what Erase or EraseBefore has done, or how far it is.
type Erasure struct {
	Sequences []uint64 // of the feed's entries: the tombstones
	Keys      int64    // data keys named in them; those of EraseBefore are not
	Deleted   int64    // of which this deleted the rows
	Acks      []Ack    // of every server, for the last entry
	Left      int64    // were stored meanwhile, and are not erased
}

// Erase erases the data keys of a metering point, or of one of its occupancies,
// those that were replaced before included. First the feed says so, then every
// server is told and given a while to acknowledge, then the rows are deleted. A
// server that did not acknowledge does within a minute, or uses no key at all.
// What was erased stays readable from a backup to whoever has the KEK of its
// epoch, until that is destroyed.
func (c *Custodian) Erase(ctx context.Context, s KeySelection, progress func(Erasure)) (Erasure, error) {
	var st Erasure
	if s.EAN == zeroEAN {
		return st, fmt.Errorf("%w: say which metering point", ErrRefused)
	}
	if err := c.patiently(ctx, c.sync); err != nil {
		return st, err
	}
	for range eraseRounds {
		refs, err := c.selected(ctx, s)
		if err != nil {
			return st, err
		}
		if st.Left = int64(len(refs)); st.Left == 0 {
			break
		}
		if err := c.eraseRefs(ctx, s.EAN, refs, &st, progress); err != nil {
			return st, err
		}
		st.Left = 0
	}
	if len(st.Sequences) == 0 {
		// There was nothing to erase; perhaps an earlier call was cut short.
		acks, err := c.announce(ctx)
		st.Acks = acks
		return st, err
	}
	refs, err := c.selected(ctx, s)
	st.Left = int64(len(refs))
	return st, err
}

// selected lists the data keys of a selection and those of its metering point
// that were replaced, each once.
func (c *Custodian) selected(ctx context.Context, s KeySelection) ([]KeyRef, error) {
	var refs []KeyRef
	err := c.scan(ctx, s, scanPage, func(keys []envelope.KeyRecord) error {
		for _, k := range keys {
			refs = append(refs, KeyRef{k.EAN, k.ID})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = c.patiently(ctx, func(ctx context.Context) error {
		retired, err := c.store.Retired(ctx, s.EAN, 0, 100*control.MaxKeys)
		if err == nil {
			refs = append(refs, retired...)
		}
		return err
	})
	return refs, err
}

// eraseRefs erases data keys of one metering point, first those that no entry
// names yet.
func (c *Custodian) eraseRefs(ctx context.Context, ean meter.EAN, refs []KeyRef, st *Erasure, progress func(Erasure)) error {
	named := map[uint64][]KeyRef{} // by the entry that names them
	var fresh []KeyRef
	index, err := c.erasures(refs)
	if err != nil {
		return err
	}
	for _, r := range refs {
		if sequence, ok := index[r.ID]; ok {
			named[sequence] = append(named[sequence], r)
		} else {
			fresh = append(fresh, r)
		}
	}
	for part := range slices.Chunk(fresh, control.MaxKeys) {
		sequence, acks, err := c.eraseNamed(ctx, part, control.CauseRequest, ean)
		if err != nil {
			return err
		}
		named[sequence] = append(named[sequence], part...)
		st.Keys += int64(len(part))
		st.Acks = acks
		if progress != nil {
			progress(*st)
		}
	}
	for sequence, refs := range named {
		if !slices.Contains(st.Sequences, sequence) {
			st.Sequences = append(st.Sequences, sequence)
		}
		n, err := c.deleteKeys(ctx, refs, sequence)
		st.Deleted += n
		if err != nil {
			return err
		}
	}
	slices.Sort(st.Sequences)
	if st.Acks == nil {
		if st.Acks, err = c.announce(ctx); err != nil {
			return err
		}
	}
	if progress != nil {
		progress(*st)
	}
	return nil
}

// erasures says which entry of the feed erases each of some data keys by name.
func (c *Custodian) erasures(refs []KeyRef) (map[control.KeyID]uint64, error) {
	wanted := map[control.KeyID]bool{}
	for _, r := range refs {
		if c.feed().ErasedByName(r.ID) {
			wanted[r.ID] = true
		}
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	out := map[control.KeyID]uint64{}
	err := c.entries(func(sequence uint64, e control.Entry) {
		if e.Kind != control.EraseKeys {
			return
		}
		for _, id := range e.Keys {
			if _, have := out[id]; wanted[id] && !have {
				out[id] = sequence
			}
		}
	})
	return out, err
}

// entries calls f with the whole feed.
func (c *Custodian) entries(f func(sequence uint64, e control.Entry)) error {
	for from := uint64(1); ; {
		page, err := c.copy.read(from, chunkSize)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, a := range page {
			e, err := control.ParseEntry(a.Entry)
			if err != nil {
				return fmt.Errorf("%w: entry %d: %w", ErrCopy, a.Sequence, err)
			}
			f(a.Sequence, e)
		}
		from += uint64(len(page))
	}
}

// eraseNamed appends an entry that names data keys, and tells every server.
func (c *Custodian) eraseNamed(ctx context.Context, refs []KeyRef, cause control.Cause, ean meter.EAN) (uint64, []Ack, error) {
	ids := make([]control.KeyID, len(refs))
	for i, r := range refs {
		ids[i] = r.ID
	}
	slices.SortFunc(ids, func(a, b control.KeyID) int { return bytes.Compare(a[:], b[:]) })
	ids = slices.Compact(ids)
	head, err := c.append(ctx, control.Entry{Kind: control.EraseKeys, Cause: cause, EAN: ean, Keys: ids})
	if err != nil {
		return 0, nil, err
	}
	return head.Sequence, c.push(ctx, head), nil
}

// deleteKeys deletes rows that an entry erases.
func (c *Custodian) deleteKeys(ctx context.Context, refs []KeyRef, sequence uint64) (deleted int64, err error) {
	for part := range slices.Chunk(refs, deleteBatch) {
		n := 0
		err := c.patiently(ctx, func(ctx context.Context) (err error) {
			n, err = c.store.DeleteKeys(ctx, part, sequence)
			return err
		})
		if err != nil {
			return deleted, err
		}
		deleted += int64(n)
	}
	return deleted, nil
}

// EraseBefore erases all data keys of months before one. A month that has not
// begun is refused. It may be killed at any moment and run again.
func (c *Custodian) EraseBefore(ctx context.Context, month meter.Month, progress func(Erasure)) (Erasure, error) {
	var st Erasure
	now := c.now().UTC()
	if current := meter.DayFromDate(now.Year(), now.Month(), now.Day()).Month(); month <= 0 || month > current {
		return st, fmt.Errorf("%w: months before %s are not erased: it has not begun", ErrRefused, month)
	}
	if err := c.patiently(ctx, c.sync); err != nil {
		return st, err
	}
	var err error
	if month > c.feed().Before() {
		var head signed
		head, err = c.append(ctx, control.Entry{Kind: control.EraseBefore, Month: month, Cause: control.CauseRetention})
		if err == nil {
			st.Acks = c.push(ctx, head)
		}
	} else {
		st.Acks, err = c.announce(ctx)
	}
	if err != nil {
		return st, err
	}
	sequence, err := c.erasedBefore(month)
	if err != nil {
		return st, err
	}
	st.Sequences = []uint64{sequence}
	err = c.scan(ctx, KeySelection{Before: month}, deleteBatch, func(keys []envelope.KeyRecord) error {
		refs := make([]KeyRef, len(keys))
		for i, k := range keys {
			refs[i] = KeyRef{k.EAN, k.ID}
		}
		n, err := c.deleteKeys(ctx, refs, sequence)
		st.Deleted += n
		if progress != nil {
			progress(st)
		}
		return err
	})
	return st, err
}

// erasedBefore is the first entry that erases the months before one.
func (c *Custodian) erasedBefore(month meter.Month) (uint64, error) {
	found := uint64(0)
	err := c.entries(func(sequence uint64, e control.Entry) {
		if found == 0 && e.Kind == control.EraseBefore && e.Month >= month {
			found = sequence
		}
	})
	if err == nil && found == 0 {
		err = errors.New("no entry of the control feed erases these months")
	}
	return found, err
}
