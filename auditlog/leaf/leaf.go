// Package leaf fixes what the audit log is of: the leaves of its tree, and the
// two statements that the auditor itself makes.
//
// The hash of a leaf (RFC 6962) is over "kluis/audit-leaf", the kind and a
// digest of the row. Of an access record the digest is over its salt as well:
// who sees the hash cannot try out records against it, and hashes may be shown
// and kept when records are deleted.
package leaf

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"

	"golang.org/x/mod/sumdb/tlog"

	"kluis/internal/canonical"
)

// Kind says what a leaf is of.
type Kind uint8

// The values are part of the hash and of the tables: never renumber.
const (
	Access    Kind = 1 // an access record with its receipt
	Journal   Kind = 2 // an entry of a cryptoserver's journal
	LegalFile Kind = 3 // a version of a sealed legal file
	Supplier  Kind = 4 // a version of a sealed supplier record
	Control   Kind = 5 // an entry of the control feed
	End       Kind = 6 // the auditor's statement that a journal has ended
	Stored    Kind = 7 // the auditor's statement which blocks of a seal event it saw stored
)

// Kinds are all there are.
func Kinds() []Kind { return []Kind{Access, Journal, LegalFile, Supplier, Control, End, Stored} }

func (k Kind) String() string {
	names := [...]string{"", "access record", "journal entry", "legal file", "supplier record", "control entry", "end of a journal", "blocks seen stored"}
	if k < Access || int(k) >= len(names) {
		return fmt.Sprintf("Kind(%d)", uint8(k))
	}
	return names[k]
}

// Key names the row that a leaf is of.
type Key struct {
	Kind    Kind
	ID      [16]byte // interaction of an access record; boot of a journal entry or statement
	Number  int64    // EAN of an access record or legal file; GLN of a supplier
	Version int64    // of a legal file or supplier; sequence of a journal entry, statement or control entry
}

// Row is a row with its content.
type Row struct {
	Key
	Content []byte // the record, entry, sealed fact or statement
	Receipt []byte // of an access record; may be empty
	Salt    []byte // of an access record; 16 bytes
}

const (
	domainLeaf   = "kluis/audit-leaf"
	domainAccess = "kluis/access-leaf"
	version      = 1
	saltSize     = 16
)

// Hash is the hash of the row's leaf.
func (r *Row) Hash() tlog.Hash {
	return tlog.RecordHash(data(r.Kind, r.digest()))
}

func data(k Kind, digest [32]byte) []byte {
	w := canonical.New(domainLeaf, version)
	w.U8(uint8(k))
	w.Fixed(digest[:])
	return w.Encoded()
}

func (r *Row) digest() [32]byte {
	switch r.Kind {
	case Access:
		w := canonical.Append(make([]byte, 0, 64+len(r.Content)+len(r.Receipt)), domainAccess, version)
		w.Bytes(r.Salt)
		w.Bytes(r.Content)
		w.Bytes(r.Receipt)
		return sha256.Sum256(w.Encoded())
	default:
		return sha256.Sum256(r.Content)
	}
}

// ErrStatement is wrapped when bytes are not a statement of the auditor's.
var ErrStatement = errors.New("not a statement of the auditor")

const (
	domainEnd    = "kluis/audit-journal-end"
	domainStored = "kluis/audit-stored"
	maxServerID  = 64
	maxBlocks    = 1 << 16 // of a seal event
)

// JournalEnd says that a cryptoserver said that the journal of a boot has
// ended: no entry follows the last.
type JournalEnd struct {
	ServerID string // as its entries name it; empty when there are none
	BootID   [16]byte
	Last     uint64 // sequence of the last entry; 0: there is none
	Torn     bool   // a crash may have lost entries after the last
}

// Encode and ParseJournalEnd are inverses.
func (e JournalEnd) Encode() []byte {
	w := canonical.New(domainEnd, version)
	w.String(e.ServerID)
	w.Fixed(e.BootID[:])
	w.U64(e.Last)
	w.Bool(e.Torn)
	return w.Encoded()
}

// ParseJournalEnd refuses everything Encode would not have written.
func ParseJournalEnd(b []byte) (JournalEnd, error) {
	var e JournalEnd
	r, _, err := canonical.Open(b, domainEnd, version)
	if err == nil {
		e.ServerID = r.String(maxServerID)
		r.Fixed(e.BootID[:])
		e.Last = r.U64()
		e.Torn = r.Bool()
		if e.Last > math.MaxInt64 || e.Last > 0 && e.ServerID == "" {
			r.Refuse("no such end")
		}
		err = r.Close()
	}
	if err != nil {
		return JournalEnd{}, fmt.Errorf("%w: %w", ErrStatement, err)
	}
	return e, nil
}

// BlocksStored says which blocks of a seal event the auditor found stored a
// while later. What is sealed need not be stored: an import throws away what
// has not changed.
type BlocksStored struct {
	BootID   [16]byte
	Sequence uint64 // of the seal event
	Stored   []bool // one per block, in the order of the event
}

// Encode and ParseBlocksStored are inverses.
func (s BlocksStored) Encode() []byte {
	w := canonical.New(domainStored, version)
	w.Fixed(s.BootID[:])
	w.U64(s.Sequence)
	w.Count(len(s.Stored))
	var bits byte
	for i, stored := range s.Stored {
		if stored {
			bits |= 0x80 >> (i % 8)
		}
		if i%8 == 7 || i == len(s.Stored)-1 {
			w.U8(bits)
			bits = 0
		}
	}
	return w.Encoded()
}

// ParseBlocksStored refuses everything Encode would not have written.
func ParseBlocksStored(b []byte) (BlocksStored, error) {
	var s BlocksStored
	r, _, err := canonical.Open(b, domainStored, version)
	if err == nil {
		r.Fixed(s.BootID[:])
		s.Sequence = r.U64()
		n := r.U32()
		if n == 0 || n > maxBlocks || s.Sequence == 0 || s.Sequence > math.MaxInt64 {
			r.Refuse("no blocks of an event")
			n = 0
		}
		s.Stored = make([]bool, n)
		var bits byte
		for i := range s.Stored {
			if i%8 == 0 {
				bits = r.U8()
			}
			s.Stored[i] = bits&0x80 != 0
			bits <<= 1
		}
		if bits != 0 {
			r.Refuse("bits of no block")
		}
		err = r.Close()
	}
	if err != nil {
		return BlocksStored{}, fmt.Errorf("%w: %w", ErrStatement, err)
	}
	return s, nil
}

// Place is a place in the order in which rows of a kind arrive. The zero Place
// is before the first.
type Place struct {
	Arrived uint64 // transaction that stored the row
	Key     Key
}

// Found is a row that was looked at.
type Found struct {
	Row     // without content when it is logged
	Arrived uint64
	Logged  bool
}

// Horizon says which rows may still come.
type Horizon struct {
	Oldest  uint64         // rows of transactions before it are all there
	Next    uint64         // no transaction has this number yet
	Cursors map[Kind]Place // up to where everything was logged
}

// Note is a signed checkpoint as it is stored.
type Note struct {
	Size int64
	Text []byte
}

// Block names a version of a sealed block.
type Block struct {
	EAN     int64
	Field   int64
	Day     int64 // since 1970-01-01
	Version int64
}

// IndexedKey is a leaf's place in the tree, and the row it is of.
type IndexedKey struct {
	Index int64
	Key
}

// IndexedHash is a stored hash.
type IndexedHash struct {
	Index int64
	Hash  tlog.Hash
}
