package control

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"kluis/meter"
)

var (
	// ErrGap: entries between what is known and what was given are missing.
	ErrGap = errors.New("control entries are missing in between")
	// ErrFork: what was given contradicts what is known. Somebody rewrote the
	// feed, or put an older one back.
	ErrFork = errors.New("the control feed contradicts the one known")
	// ErrBehind is an ErrFork: what was given is shorter than what is known.
	// Once, when two custodians work side by side, it is a lost race; if it
	// stays, an older feed was put back.
	ErrBehind = fmt.Errorf("%w: it is shorter", ErrFork)
	// ErrOrder is wrapped by the errors of Check.
	ErrOrder = errors.New("the control entry does not fit the feed")
)

// Feed is what a follower knows of the feed. Safe for concurrent use; nothing
// in it ever becomes less. Only the time of its head may: entries signed by a
// server whose clock is behind count from that clock.
type Feed struct {
	mu        sync.RWMutex
	head      Head
	active    uint32
	activated map[uint32]bool
	before    meter.Month
	destroyed map[uint32]bool
	erased    map[KeyID]struct{}
	files     fileMinimums // by EAN
	suppliers minimums     // by GLN
}

// NewFeed knows nothing yet.
func NewFeed() *Feed {
	return &Feed{activated: map[uint32]bool{}, destroyed: map[uint32]bool{}, erased: map[KeyID]struct{}{}, files: fileMinimums{}, suppliers: minimums{}}
}

// Advance follows the feed to a head that was verified. entries are canonical
// ones, the first of which has the sequence first; those known already are
// skipped. All or nothing is taken in. ErrGap: ask again with the entries after
// Head().Sequence. ErrFork: another feed than the one known; ErrBehind: it is
// shorter. An entry that cannot be read: ErrEntry. An earlier head of the
// newest entry changes nothing.
//
// erases says that keys which were usable before are erased or an epoch is
// destroyed: handles of unwrapped keys must go.
func (f *Feed) Advance(head Head, first uint64, entries [][]byte) (erases bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if head.Sequence < f.head.Sequence {
		return false, fmt.Errorf("%w: it ends with entry %d, and %d is known", ErrBehind, head.Sequence, f.head.Sequence)
	}
	hash, next := f.head.Hash, f.head.Sequence+1
	var parsed []Entry
	if head.Sequence >= next {
		if len(entries) == 0 || first == 0 || first > next || first+uint64(len(entries)) <= head.Sequence {
			return false, ErrGap
		}
		for _, b := range entries[next-first : head.Sequence-first+1] {
			e, err := ParseEntry(b)
			if err != nil {
				return false, fmt.Errorf("entry %d: %w", next+uint64(len(parsed)), err)
			}
			parsed = append(parsed, e)
			hash = hash.Next(b)
		}
	}
	if hash != head.Hash {
		return false, fmt.Errorf("%w: entry %d has another chain", ErrFork, head.Sequence)
	}
	for i := range parsed {
		erases = f.apply(&parsed[i]) || erases
	}
	if head.Sequence > f.head.Sequence || head.At.After(f.head.At) {
		f.head = head
	}
	return erases, nil
}

func (f *Feed) apply(e *Entry) (erases bool) {
	switch e.Kind {
	case ActivateEpoch:
		f.active = max(f.active, e.Epoch)
		f.activated[e.Epoch] = true
	case EraseKeys:
		for _, id := range e.Keys {
			f.erased[id] = struct{}{}
		}
		return true
	case EraseBefore:
		f.before = max(f.before, e.Month)
		return true
	case DestroyEpoch:
		f.destroyed[e.Epoch] = true
		return true
	case MinimumFiles:
		for _, m := range e.Files {
			f.files.raise(m)
		}
	case MinimumSuppliers:
		for _, m := range e.Suppliers {
			f.suppliers.raise(m.GLN.Int64(), m.Version)
		}
	}
	return false
}

// Check says whether it makes sense to append an entry to the feed as it is
// known. A follower takes in every entry that parses, or it would stand still
// for ever; so whoever appends, or signs the head for it, asks before. Only a
// feed that ends right before the entry can tell.
func (f *Feed) Check(e Entry) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	switch {
	case e.Kind == ActivateEpoch && e.Epoch <= f.active:
		return fmt.Errorf("%w: epoch %d is active, and %d is no later one", ErrOrder, f.active, e.Epoch)
	case e.Kind == ActivateEpoch && f.destroyed[e.Epoch]:
		return fmt.Errorf("%w: epoch %d is destroyed", ErrOrder, e.Epoch)
	case e.Kind == DestroyEpoch && e.Epoch >= f.active:
		return fmt.Errorf("%w: epoch %d is not older than the active one, %d", ErrOrder, e.Epoch, f.active)
	case e.Kind == EraseBefore && e.Month <= f.before:
		return fmt.Errorf("%w: the months before %s are erased already", ErrOrder, f.before)
	case e.minimum() && !f.raises(e):
		return fmt.Errorf("%w: all these versions, or later ones, are the least already", ErrOrder)
	}
	return nil
}

// Head is the newest head taken in; zero before the first.
func (f *Feed) Head() Head {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.head
}

// Fresh says whether the newest head may be relied on at a time.
func (f *Feed) Fresh(now time.Time) bool {
	at := f.Head().At
	return !at.IsZero() && now.Sub(at) <= MaxAge && at.Sub(now) <= MaxSkew
}

// Active is the epoch under which data keys are minted; 0 when none is active.
func (f *Feed) Active() uint32 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.active
}

// Activated says whether data keys were ever minted or rewrapped under an epoch.
func (f *Feed) Activated(epoch uint32) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.activated[epoch]
}

// Destroyed says whether an epoch's KEK was given up.
func (f *Feed) Destroyed(epoch uint32) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.destroyed[epoch]
}

// Erased says whether a data key of readings, by its id and the month of its
// days, is erased. Those of identities are erased by name only.
func (f *Feed) Erased(id KeyID, month meter.Month) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if month < f.before {
		return true
	}
	_, gone := f.erased[id]
	return gone
}

// ErasedByName says whether a data key is erased by its id, whatever its month.
func (f *Feed) ErasedByName(id KeyID) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	_, gone := f.erased[id]
	return gone
}

// ErasedKeys is how many data keys are erased by name.
func (f *Feed) ErasedKeys() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.erased)
}

// Before is the first month whose keys are not erased for their age; 0: none is.
func (f *Feed) Before() meter.Month {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.before
}
