// Package auditlog is the tamper-evident log: a Merkle tree (RFC 6962) whose
// leaves are the access records, the journals of the cryptoservers, and the
// sealed facts, in the order in which they were found.
//
// The Auditor is a daemon that fetches the journals from each cryptoserver, adds
// leaves, and has the head of the tree signed in an HSM. These checkpoints are
// exported as files that are written once: who holds a copy of one can tell
// whether anything up to it was deleted, changed, inserted or reordered.
//
// As it adds leaves it counts who asks for how much, and says what is unusual
// (package oversight); and it checks what is new against what was signed.
//
// Verify checks all of it against one another, and Prove makes a proof that one
// access record is in the log, which cmd/auditproof checks offline.
package auditlog

import (
	"context"
	"errors"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"kluis/auditlog/leaf"
	"kluis/auditlog/oversight"
	"kluis/meter"
)

// Store is the database. All methods may be repeated.
type Store interface {
	Reader
	// Horizon says which rows may still come, and up to where all are logged.
	Horizon(ctx context.Context) (leaf.Horizon, error)
	// Behind counts rows of a kind after a place that are not logged, of at most
	// limit that it looks at.
	Behind(ctx context.Context, kind leaf.Kind, after leaf.Place, limit int) (int64, error)
	// Append adds leaves and the hashes that go with them, counts the records among
	// them (nil: there are none), and notes up to where all rows of a kind are
	// logged; all or nothing. An error: somebody else appended meanwhile, or nothing
	// is known of it.
	Append(ctx context.Context, first int64, keys []leaf.Key, firstHash int64, hashes []tlog.Hash, counted *oversight.Tally, logged leaf.Place) error
	AddCheckpoint(ctx context.Context, n leaf.Note) error
	// LastEntry is the last entry stored of a journal; 0: there is none.
	LastEntry(ctx context.Context, boot [16]byte) (sequence uint64, entry []byte, err error)
	AddEntries(ctx context.Context, boot [16]byte, sequences []uint64, entries [][]byte) error
	// Settled returns entries stored longer ago than age, after the place last
	// given to AddStatements, in the order of arrival.
	Settled(ctx context.Context, age time.Duration, limit int) ([]leaf.Found, error)
	AddStatements(ctx context.Context, rows []leaf.Row, settled *leaf.Place) error

	// Hours and HoursOf return what was counted of all parties, or of some, from a
	// time on; Breadths of employees from a local day on.
	Hours(ctx context.Context, since time.Time) ([]oversight.Hour, error)
	HoursOf(ctx context.Context, parties []oversight.Party, since time.Time) ([]oversight.Hour, error)
	Breadths(ctx context.Context, since meter.Day) ([]oversight.Breadth, error)
	// AddUnusual notes what is unusual, once for each party, kind and time.
	AddUnusual(ctx context.Context, found []oversight.Unusual) error
	CountUnusual(ctx context.Context, since time.Time) (map[oversight.Kind]int64, error)
	// Forget removes counts from before the beginning of a local day.
	Forget(ctx context.Context, before time.Time, day meter.Day) error
	// Checks sums up what AddResult noted.
	Checks(ctx context.Context) (oversight.Checks, error)
	AddResult(ctx context.Context, r oversight.Result) error
}

// Reader is what Verify and Prove need of the database.
type Reader interface {
	// Size is the number of leaves.
	Size(ctx context.Context) (int64, error)
	// Hashes returns stored hashes as asked; an error when one is missing.
	Hashes(ctx context.Context, indexes []int64) ([]tlog.Hash, error)
	// HashRange and Leaves return those that are there, ascending.
	HashRange(ctx context.Context, from, to int64) ([]leaf.IndexedHash, error)
	Leaves(ctx context.Context, from, to int64) ([]leaf.IndexedKey, error)
	// Indexes returns where the rows are logged, in order; -1: nowhere.
	Indexes(ctx context.Context, keys []leaf.Key) ([]int64, error)
	// Interaction returns the leaves of an interaction's access records.
	Interaction(ctx context.Context, id [16]byte, limit int) ([]leaf.IndexedKey, error)
	// Rows returns rows in the order of the keys; nil for one that is not there.
	Rows(ctx context.Context, keys []leaf.Key) ([]*leaf.Row, error)
	// Discover looks at rows of a kind after a place, in the order of arrival.
	Discover(ctx context.Context, kind leaf.Kind, after leaf.Place, limit int) ([]leaf.Found, error)
	// Journal returns entries after one, ordered by boot and sequence.
	Journal(ctx context.Context, boot [16]byte, sequence uint64, limit int) ([]leaf.Row, error)
	// Ends returns the statements that the journal of a boot has ended.
	Ends(ctx context.Context, boot [16]byte) ([][]byte, error)
	// Digests returns those of the blocks' ciphertexts; nil for one that is gone.
	Digests(ctx context.Context, blocks []leaf.Block) ([]*[16]byte, error)
	// FilesAfter returns legal files after a version of a metering point, ordered
	// by metering point and version.
	FilesAfter(ctx context.Context, ean, version int64, limit int) ([]leaf.Row, error)
	// RecordsWith returns of each legal file the access records of its metering
	// point that were stored in one transaction with it: at most two, of those no
	// larger than the record of a step can be, without receipts.
	RecordsWith(ctx context.Context, files []leaf.Key) ([][]leaf.Row, error)
	// SuppliersAfter returns supplier records after a version of a supplier,
	// ordered by supplier and version.
	SuppliersAfter(ctx context.Context, gln, version int64, limit int) ([]leaf.Row, error)
	// RecordsWithSupplier returns of each supplier record the access records that
	// name no metering point and were stored in one transaction with it, as
	// RecordsWith does.
	RecordsWithSupplier(ctx context.Context, records []leaf.Key) ([][]leaf.Row, error)
	// FactDigests returns the digests of the legal files, supplier records and
	// heads of the control feed that are stored; nil for one that is not there.
	FactDigests(ctx context.Context, keys []leaf.Key) ([]*[32]byte, error)
	// Checkpoints returns those of more leaves than after, ascending.
	Checkpoints(ctx context.Context, after int64, limit int) ([]leaf.Note, error)
	// LastCheckpoint is the one of the largest tree; zero when there is none.
	LastCheckpoint(ctx context.Context) (leaf.Note, error)
}

// Boot is the journal a cryptoserver has of one of its boots.
type Boot struct {
	BootID [16]byte
	Last   uint64 // sequence of the last entry
	Ended  bool   // no entry will follow
	Torn   bool   // a crash may have lost entries after the last
}

// Servers are the cryptoservers.
type Servers interface {
	Addresses() []string
	// ReadJournal reads what one server has after a sequence; a zero boot id
	// lists its boots. To ask for what follows on an entry says that all up to it
	// is stored.
	ReadJournal(ctx context.Context, address string, boot [16]byte, after uint64) (boots []Boot, entries [][]byte, err error)
	// SignCheckpoint has a head of the tree signed (package checkpoint).
	SignCheckpoint(ctx context.Context, origin string, size uint64, root [32]byte) (note string, err error)
}

var (
	// ErrRolledBack: the log in the database is not the one that was signed. An
	// older state was restored, or somebody altered it. Nothing is logged and
	// nothing signed until somebody has looked.
	ErrRolledBack = errors.New("the log in the database does not contain what was signed before")
	// ErrExport: the folder of exported checkpoints cannot be used, or holds
	// another checkpoint.
	ErrExport = errors.New("exported checkpoints")
	// ErrNotLogged: there is no such record in the log.
	ErrNotLogged = errors.New("not in the log")
)
