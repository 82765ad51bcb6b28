// Package custodian is the work of the operator's key custodian: the control
// feed and its heartbeat, the rotation of KEKs and of data keys, erasure, and
// the destruction of an epoch. It links no PKCS#11 and sees no key in clear: it
// moves wrapped keys and ciphertext between the database and the cryptoservers.
//
// What the database says the feed is counts only as far as the custodian's own
// copy of the feed agrees; the copy lies in a file outside of the database and
// of its backups. A database that is behind the copy was put back to an older
// state: no heartbeat is signed until what was erased is erased again (Reapply).
package custodian

import (
	"context"
	"errors"

	"kluis/cryptoserver/control"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

// ErrConflict: somebody else was first.
var ErrConflict = errors.New("changed meanwhile")

// ErrRolledBack: the database holds less of the feed than this custodian's
// copy, or another one. Run Reapply.
var ErrRolledBack = errors.New("the database is older than the control feed")

// Appended is one entry with the head that was signed when it was appended.
type Appended struct {
	Entry []byte // canonical
	Head  []byte // signed
}

// KeySelection says which data keys.
type KeySelection struct {
	EAN       meter.EAN // zero: of all metering points
	Occupancy *meter.Day
	Before    meter.Month // months before this one; 0: all
}

// Store is the database under the custodian's role. Every method is one
// transaction. After an error other than ErrConflict it may have been committed
// or not: read again before repeating.
type Store interface {
	// Feed returns the entries after a sequence, ascending, at most limit.
	Feed(ctx context.Context, after uint64, limit int) ([]Appended, error)
	// Append stores entry number sequence; ErrConflict when there is one.
	Append(ctx context.Context, sequence uint64, a Appended) error
	// Heartbeat replaces the newest head kept for relays.
	Heartbeat(ctx context.Context, head []byte) error

	// StaleKeys returns up to limit keys with another epoch than active, after a
	// key in the order of (EAN, id).
	StaleKeys(ctx context.Context, active uint32, afterEAN meter.EAN, afterID control.KeyID, limit int) ([]envelope.KeyRecord, error)
	// ReplaceWrapped replaces epoch, wrapped form and MAC where the record is
	// still the old one, and says of how many.
	ReplaceWrapped(ctx context.Context, old, new []envelope.KeyRecord) (int, error)

	// SelectKeys returns up to limit keys of a selection after a key.
	SelectKeys(ctx context.Context, s KeySelection, afterEAN meter.EAN, afterID control.KeyID, limit int) ([]envelope.KeyRecord, error)
	// DeleteKeys deletes keys, blanks the content MACs of the blocks sealed
	// under them, and leaves a tombstone of each that names the feed's entry.
	// Keys that are not there are none's business.
	DeleteKeys(ctx context.Context, ids []control.KeyID, sequence uint64) (int, error)
	// DeleteKeysBefore does so with up to limit keys of months before one.
	DeleteKeysBefore(ctx context.Context, month meter.Month, sequence uint64, limit int) (int, error)

	// BlocksUnder returns the blocks sealed under a key, all versions.
	BlocksUnder(ctx context.Context, ean meter.EAN, id control.KeyID) ([]envelope.SealedBlock, error)
	// ReplaceDataKey puts new in the place of old and the ciphertexts sealed
	// under it in the place of theirs, all in one transaction, if nothing was
	// sealed under old meanwhile (else ErrConflict); old's id is kept as
	// retired, to be erased once no reader can have it in hand.
	ReplaceDataKey(ctx context.Context, old, new envelope.KeyRecord, blocks []envelope.SealedBlock) error
	// Retired returns the ids of keys replaced but not erased in the feed yet.
	Retired(ctx context.Context, limit int) ([]control.KeyID, error)

	// CountKeys counts the data keys by epoch.
	CountKeys(ctx context.Context) (map[uint32]KeyCount, error)
}

// KeyCount is what one KEK epoch wraps.
type KeyCount struct {
	Keys  int64
	First meter.Month // of the days the keys cover
	Last  meter.Month
}
