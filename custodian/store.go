package custodian

import (
	"context"
	"time"

	"kluis/cryptoserver/control"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

// Appended is one entry of the feed with the head that was signed when it was
// appended.
type Appended struct {
	Sequence uint64
	Entry    []byte // canonical
	Head     []byte // signed
}

// KeySelection says which data keys; zero fields do not narrow it.
type KeySelection struct {
	EAN          meter.EAN
	Occupancy    *meter.Day  // first day of the occupancy; 0: of none known
	Before       meter.Month // of months before this one
	NotEpoch     uint32      // wrapped under another epoch than this
	MintedBefore time.Time   // stored before this instant
}

// Place is a place in the data keys, which are in the order of EAN and id. The
// zero place is before the first. The EAN is whatever the database holds.
type Place struct {
	EAN int64
	ID  control.KeyID
}

// KeyRef names a data key.
type KeyRef struct {
	EAN meter.EAN
	ID  control.KeyID
}

// KeyCount is what one KEK epoch wraps.
type KeyCount struct {
	Keys  int64
	First meter.Month // of the days the keys cover
	Last  meter.Month
}

// ErasedCount is how many deleted data keys one KEK epoch wrapped: a backup of
// their rows opens while that epoch's KEK exists.
type ErasedCount struct {
	Erased  int64
	Retired int64 // replaced, and not erased yet
}

// Store is the database under the custodian's role. Every method is one
// transaction, but for the counts, which take several. Errors wrap ErrConflict,
// ErrGone or ErrUnavailable where one applies; after any other error than the
// first two it may have been committed or not: read again before repeating.
type Store interface {
	FactStore

	// Feed returns the entries after a sequence, ascending, at most limit.
	Feed(ctx context.Context, after uint64, limit int) ([]Appended, error)
	// Append stores an entry; ErrConflict when there is one of its sequence.
	Append(ctx context.Context, a Appended) error
	// Heartbeat replaces the newest head kept for relays.
	Heartbeat(ctx context.Context, head []byte) error
	// LastHeartbeat is that head; nil when there is none.
	LastHeartbeat(ctx context.Context) ([]byte, error)

	// Scan looks at up to limit data keys after a place and returns those that
	// are selected, ascending, with the place it came to; nil: to the end.
	Scan(ctx context.Context, s KeySelection, after Place, limit int) ([]envelope.KeyRecord, *Place, error)
	// ReplaceWrapped replaces epoch, wrapped form and MAC where the record is
	// still the old one, and says of how many.
	ReplaceWrapped(ctx context.Context, old, new []envelope.KeyRecord) (int, error)
	// DeleteKeys deletes data keys, blanks the content MACs of the blocks sealed
	// under them, and leaves a tombstone of each that names the feed's entry.
	// The tombstone of one that was replaced before names it from now on too. It
	// says how many were deleted; keys that are not there are none's business.
	DeleteKeys(ctx context.Context, keys []KeyRef, sequence uint64) (int, error)

	// BlocksUnder returns the blocks sealed under a key, all versions.
	BlocksUnder(ctx context.Context, key envelope.KeyRecord) ([]envelope.SealedBlock, error)
	// ReplaceDataKey puts new in the place of old, and the ciphertexts given in
	// the place of those sealed under old, if they are all there are (else
	// ErrConflict; ErrGone when old is not there). old is kept as retired, to be
	// erased once no reader can have it in hand.
	ReplaceDataKey(ctx context.Context, old, new envelope.KeyRecord, blocks []envelope.SealedBlock) error
	// Retired returns up to limit keys, of one metering point or of all, that
	// were replaced at least so long ago and not erased yet.
	Retired(ctx context.Context, ean meter.EAN, atLeast time.Duration, limit int) ([]KeyRef, error)

	// CountKeys counts the data keys by KEK epoch.
	CountKeys(ctx context.Context) (map[uint32]KeyCount, error)
	// CountErased counts the tombstones by KEK epoch.
	CountErased(ctx context.Context) (map[uint32]ErasedCount, error)
}
