package envelope

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"kluis/internal/canonical"
	"kluis/meter"
)

// Link is the place of an entry in the journal of one boot of a cryptoserver:
// receipts and seal events share one hash chain.
type Link struct {
	ServerID string // 1 to 64 bytes
	BootID   [16]byte
	Sequence uint64   // 1, 2, ... since boot
	Previous [32]byte // SHA-256 of the entry before; zero for the first
}

// SealEvent is what a cryptoserver says of what it sealed in one call
// ("kluis/seal-event").
type SealEvent struct {
	Link
	At     time.Time // UTC, microseconds
	Client string    // identity that asked, 1 to 64 bytes
	Kind   SealKind

	EAN     meter.EAN // of blocks and legal files
	GLN     meter.GLN // of supplier records
	Version uint64    // of a legal file or supplier record; sequence of a control head, 0 for that of an empty feed
	Digest  [32]byte  // of the payload of a legal file or supplier record; hash of a control head
	Blocks  []SealedDigest
}

// SealKind is what was sealed.
type SealKind uint8

// The kinds there are.
const (
	BlocksSealed   SealKind = 1
	BlocksResealed SealKind = 2 // under another data key
	LegalFile      SealKind = 3
	SupplierRecord SealKind = 4
	ControlHead    SealKind = 5
)

// SealedDigest says which block was sealed, and to what.
type SealedDigest struct {
	Field   meter.FieldCode
	Day     meter.Day
	Version uint32 // of the block
	Digest  [16]byte
}

// CiphertextDigest is the first half of SHA-256 of a block's stored form.
func CiphertextDigest(stored []byte) [16]byte {
	sum := sha256.Sum256(stored)
	return [16]byte(sum[:16])
}

const (
	sealEventDomain  = "kluis/seal-event"
	sealEventVersion = 1
	maxClient        = 64
	maxSealedBlocks  = 1 << 16
	sealedDigestSize = 2 + 4 + 4 + 16
)

// Encode and ParseSealEvent are inverses.
func (e *SealEvent) Encode() []byte {
	w := canonical.Append(make([]byte, 0, 320+sealedDigestSize*len(e.Blocks)), sealEventDomain, sealEventVersion)
	w.String(e.ServerID)
	w.Fixed(e.BootID[:])
	w.U64(e.Sequence)
	w.Fixed(e.Previous[:])
	w.Time(e.At)
	w.String(e.Client)
	w.U8(uint8(e.Kind))
	w.I64(e.EAN.Int64())
	w.I64(e.GLN.Int64())
	w.U64(e.Version)
	w.Fixed(e.Digest[:])
	w.Count(len(e.Blocks))
	for i := range e.Blocks {
		b := &e.Blocks[i]
		w.U16(uint16(b.Field))
		w.I32(int32(b.Day))
		w.U32(b.Version)
		w.Fixed(b.Digest[:])
	}
	return w.Encoded()
}

// ParseSealEvent refuses everything Encode would not have written of an event
// that has what its kind has, and nothing else; the error wraps ErrFormat.
func ParseSealEvent(b []byte) (SealEvent, error) {
	var e SealEvent
	d, _, err := canonical.Open(b, sealEventDomain, sealEventVersion)
	if err != nil {
		return SealEvent{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	e.ServerID = d.String(maxServerID)
	d.Fixed(e.BootID[:])
	e.Sequence = d.U64()
	d.Fixed(e.Previous[:])
	e.At = d.Time()
	e.Client = d.String(maxClient)
	e.Kind = SealKind(d.U8())
	ean, gln := d.I64(), d.I64()
	e.Version = d.U64()
	d.Fixed(e.Digest[:])
	if n := d.Count(maxSealedBlocks); n > 0 {
		e.Blocks = make([]SealedDigest, n)
		for i := range e.Blocks {
			s := &e.Blocks[i]
			s.Field = meter.FieldCode(d.U16())
			s.Day = meter.Day(d.I32())
			s.Version = d.U32()
			d.Fixed(s.Digest[:])
			if s.Version == 0 {
				d.Refuse("block without a version")
			}
		}
	}
	if d.Err() == nil {
		if ean != 0 {
			if e.EAN, err = meter.EANFromInt64(ean); err != nil {
				d.Refuse("not an EAN")
			}
		}
		if gln != 0 {
			if e.GLN, err = meter.GLNFromInt64(gln); err != nil {
				d.Refuse("not a GLN")
			}
		}
		if e.ServerID == "" || e.Client == "" || e.Sequence == 0 || e.At.IsZero() {
			d.Refuse("event without a server, client, sequence or time")
		}
		if !e.fits() {
			d.Refuse("event has not what its kind has")
		}
	}
	if err := d.Close(); err != nil {
		return SealEvent{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return e, nil
}

// fits says whether the event has what its kind has, and nothing else.
func (e *SealEvent) fits() bool {
	ean, gln := e.EAN != meter.EAN{}, e.GLN != meter.GLN{}
	blocks, digest := len(e.Blocks) > 0, e.Digest != [32]byte{}
	switch e.Kind {
	case BlocksSealed, BlocksResealed:
		return ean && !gln && blocks && !digest && e.Version == 0
	case LegalFile:
		return ean && !gln && !blocks && digest && e.Version > 0
	case SupplierRecord:
		return !ean && gln && !blocks && digest && e.Version > 0
	case ControlHead:
		return !ean && !gln && !blocks && digest == (e.Version > 0)
	}
	return false
}

// Entry is an entry of a journal: of the two, one is not nil.
type Entry struct {
	Receipt   *Receipt
	SealEvent *SealEvent
}

// Link is the entry's place in its chain.
func (e Entry) Link() Link {
	switch {
	case e.Receipt != nil:
		return Link{e.Receipt.ServerID, e.Receipt.BootID, e.Receipt.Sequence, e.Receipt.Previous}
	case e.SealEvent != nil:
		return e.SealEvent.Link
	}
	return Link{}
}

// ParseEntry parses an entry of a journal; the error wraps ErrFormat.
func ParseEntry(b []byte) (Entry, error) {
	if _, _, err := canonical.Open(b, receiptDomain, receiptVersion); err == nil {
		r, err := ParseReceipt(b)
		if err != nil {
			return Entry{}, err
		}
		return Entry{Receipt: &r}, nil
	}
	e, err := ParseSealEvent(b)
	if err != nil {
		return Entry{}, err
	}
	return Entry{SealEvent: &e}, nil
}

// ErrChain is wrapped when an entry does not follow on the one before.
var ErrChain = errors.New("the journal's chain is broken")

// Chain is the end of a boot's journal as far as it was read. To begin, only
// ServerID and BootID are set; both are pinned by it.
type Chain struct {
	ServerID string
	BootID   [16]byte
	Sequence uint64   // of the last entry; 0: none yet
	Hash     [32]byte // of the last entry
}

// Next takes the next entry, or refuses it with an error that wraps ErrFormat
// or ErrChain; the chain then stays where it was.
func (c *Chain) Next(b []byte) (Entry, error) {
	e, err := ParseEntry(b)
	if err != nil {
		return Entry{}, err
	}
	switch l := e.Link(); {
	case l.ServerID != c.ServerID || l.BootID != c.BootID:
		return Entry{}, fmt.Errorf("%w: an entry of another server or boot after entry %d", ErrChain, c.Sequence)
	case l.Sequence != c.Sequence+1:
		return Entry{}, fmt.Errorf("%w: entry %d after entry %d", ErrChain, l.Sequence, c.Sequence)
	case l.Previous != c.Hash:
		return Entry{}, fmt.Errorf("%w: entry %d names another entry before it than there is", ErrChain, l.Sequence)
	}
	c.Sequence, c.Hash = c.Sequence+1, sha256.Sum256(b)
	return e, nil
}
