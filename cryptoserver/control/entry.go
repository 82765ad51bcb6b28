package control

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"kluis/internal/canonical"
	"kluis/meter"
)

// ErrEntry is wrapped by every error of ParseEntry: not an entry of this
// version. A server that cannot read an entry must not go past it.
var ErrEntry = errors.New("not a control entry")

// KeyID is the random id of a data key.
type KeyID = [16]byte

// Kind says what an entry does.
type Kind uint8

// The kinds there are. Their numbers are part of the format.
const (
	// ActivateEpoch: data keys are minted and rewrapped under Epoch from now on.
	ActivateEpoch Kind = 1
	// EraseKeys: the data keys Keys are erased.
	EraseKeys Kind = 2
	// EraseBefore: all data keys of months before Month are erased.
	EraseBefore Kind = 3
	// DestroyEpoch: the KEK of Epoch is given up, and with it every data key
	// that only it wraps.
	DestroyEpoch Kind = 4
	// MinimumFiles: of each metering point named, no legal file below its
	// version counts any more.
	MinimumFiles Kind = 5
	// MinimumSuppliers: of each supplier named, no supplier record below its
	// version counts any more. The record of that version says what became of
	// its certificates, and whether it is suspended.
	MinimumSuppliers Kind = 6
)

// Cause says why keys were erased.
type Cause uint8

// The causes there are. Their numbers are part of the format.
const (
	CauseRequest   Cause = 1 // of a metering point or an occupancy, by the operator's order
	CauseRetention Cause = 2
	CauseReplaced  Cause = 3 // what was sealed under it is sealed under another data key now
)

// MaxKeys bounds the keys of one entry; an erasure of more takes several.
const MaxKeys = 4096

// MaxEpoch is as high as the tables go. An activation beyond it could not be
// taken back, and no data key could be stored any more.
const MaxEpoch = 1<<31 - 1

// Entry is one entry of the feed. Fields that its kind does not name are zero.
type Entry struct {
	At        time.Time // UTC, microseconds; the custodian's clock, for people
	Kind      Kind
	Epoch     uint32            // ActivateEpoch, DestroyEpoch; from 1
	Month     meter.Month       // EraseBefore; the first month that stays
	Cause     Cause             // EraseKeys, EraseBefore
	EAN       meter.EAN         // EraseKeys; zero when the keys are of several metering points
	Keys      []KeyID           // EraseKeys; 1 to MaxKeys, ascending, each once
	Files     []FileMinimum     // MinimumFiles; 1 to MaxMinimums, by EAN, each once
	Suppliers []SupplierMinimum // MinimumSuppliers; 1 to MaxMinimums, by GLN, each once
}

const (
	entryDomain = "kluis/control-entry"
	// entryKeys is the version of the kinds that tell what becomes of keys,
	// entryMinimums that of the minimums. A server that does not know the
	// second stays before such an entry.
	entryKeys     = 1
	entryMinimums = 2
)

// Encode returns the canonical form ("kluis/control-entry"). The errors wrap
// ErrEntry: what ParseEntry would not accept is not encoded.
func (e Entry) Encode() ([]byte, error) {
	if e.minimum() {
		return e.encodeMinimums()
	}
	w := canonical.New(entryDomain, entryKeys)
	w.Time(e.At)
	w.U8(uint8(e.Kind))
	w.U32(e.Epoch)
	w.I32(int32(e.Month))
	w.U8(uint8(e.Cause))
	w.I64(e.EAN.Int64())
	w.Count(len(e.Keys))
	for i := range e.Keys {
		w.Fixed(e.Keys[i][:])
	}
	if len(e.Files) > 0 || len(e.Suppliers) > 0 {
		return nil, fmt.Errorf("%w: a field that its kind does not have", ErrEntry)
	}
	b := w.Encoded()
	if _, err := ParseEntry(b); err != nil {
		return nil, err
	}
	return b, nil
}

// ParseEntry accepts exactly what Encode makes.
func ParseEntry(b []byte) (Entry, error) {
	var e Entry
	r, version, err := canonical.Open(b, entryDomain, entryKeys, entryMinimums)
	if err != nil {
		return e, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	if version == entryMinimums {
		return parseMinimums(r)
	}
	e.At = r.Time()
	e.Kind = Kind(r.U8())
	e.Epoch = r.U32()
	e.Month = meter.Month(r.I32())
	e.Cause = Cause(r.U8())
	ean := r.I64()
	n := r.Count(MaxKeys)
	if r.Err() == nil && n > 0 {
		e.Keys = make([]KeyID, n)
		for i := range e.Keys {
			r.Fixed(e.Keys[i][:])
		}
	}
	if err := r.Close(); err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	if ean != 0 {
		if e.EAN, err = meter.EANFromInt64(ean); err != nil {
			return Entry{}, fmt.Errorf("%w: no metering point", ErrEntry)
		}
	}
	if err := e.check(); err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	return e, nil
}

func (e Entry) check() error {
	if e.At.IsZero() {
		return errors.New("no time")
	}
	var zero Entry
	zero.At, zero.Kind = e.At, e.Kind
	switch e.Kind {
	case ActivateEpoch, DestroyEpoch:
		if e.Epoch == 0 || e.Epoch > MaxEpoch {
			return fmt.Errorf("epochs are 1 to %d", MaxEpoch)
		}
		zero.Epoch = e.Epoch
	case EraseKeys:
		if len(e.Keys) == 0 {
			return errors.New("no key is named")
		}
		for i := 1; i < len(e.Keys); i++ {
			if string(e.Keys[i-1][:]) >= string(e.Keys[i][:]) {
				return errors.New("the keys are not ascending")
			}
		}
		if e.Cause != CauseRequest && e.Cause != CauseRetention && e.Cause != CauseReplaced {
			return errors.New("no cause")
		}
		zero.Keys, zero.EAN, zero.Cause = e.Keys, e.EAN, e.Cause
	case EraseBefore:
		if e.Month <= 0 {
			return errors.New("no month")
		}
		if e.Cause != CauseRetention {
			return errors.New("no cause")
		}
		zero.Month, zero.Cause = e.Month, e.Cause
	default:
		return errors.New("unknown kind")
	}
	if e.Epoch != zero.Epoch || e.Month != zero.Month || e.Cause != zero.Cause || e.EAN != zero.EAN || len(e.Keys) != len(zero.Keys) {
		return errors.New("a field that its kind does not have")
	}
	return nil
}

// Hash is the chain up to an entry; zero before the first.
type Hash [32]byte

const chainDomain = "kluis/control-chain\x00"

// Next is the hash after one more entry, in its canonical form.
func (h Hash) Next(entry []byte) Hash {
	d := sha256.New()
	d.Write([]byte(chainDomain))
	d.Write(h[:])
	d.Write(entry)
	var next Hash
	d.Sum(next[:0])
	return next
}
