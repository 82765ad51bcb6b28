package postgres

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"golang.org/x/mod/sumdb/tlog"

	"kluis/auditlog/leaf"
	"kluis/auditlog/oversight"
)

const roleAuditor = "kluis_auditor"

// Auditor is the auditor's way to the database: it reads what it logs, and
// appends to the audit log.
type Auditor struct{ store }

// source says how the rows of a kind are found.
type source struct {
	// found is a page in the order of arrival: place ($1 transaction, $2
	// number, $3 version, $4 id), $5 how many. Columns: number, version, id,
	// arrived, logged, content, receipt, salt, the last three null when logged.
	// Each page is a piece of an index, so that no statement is long.
	found string
	// behind counts those of a page that are not logged.
	behind string
	// rows are those of the numbers $1, versions $2 and ids $3.
	rows string
}

const isLogged = `EXISTS (SELECT FROM audit_leaf l WHERE l.kind = %d AND l.id = %s AND l.number = %s AND l.version = %s)`

const noID = `'00000000-0000-0000-0000-000000000000'::uuid`

// sourceOf makes the statements of a table: its columns for id, number and
// version, or a constant where it has none, those with the content, and the
// order of its index by arrival.
func sourceOf(kind leaf.Kind, table, id, number, version, content, receipt, salt, where string, order ...string) source {
	at := map[string]string{id: "$4::uuid", number: "$2::bigint", version: "$3::bigint"}
	columns, place := "t.arrived", "$1::text::xid8"
	for _, c := range order {
		columns += ", " + c
		place += ", " + at[c]
	}
	inner := fmt.Sprintf(`
		SELECT %s AS number, %s AS version, %s AS id, t.arrived, %s AS content, %s AS receipt, %s AS salt
		FROM %s t WHERE (%s) > (%s)%s
		-- every parameter has a type, used or not
		AND ($2::bigint, $3::bigint, $4::uuid) IS NOT NULL
		ORDER BY %s LIMIT $5`, number, version, id, content, receipt, salt, table, columns, place, where, columns)
	logged := fmt.Sprintf(isLogged, kind, "p.id", "p.number", "p.version")
	behind := `SELECT count(*) FROM (` + inner + `) p WHERE NOT ` + logged
	return source{
		found: `
		SELECT number, version, uuid_send(id), arrived::text, logged,
		       CASE WHEN NOT logged THEN content END, CASE WHEN NOT logged THEN receipt END, CASE WHEN NOT logged THEN salt END
		FROM (SELECT p.*, ` + logged + ` AS logged FROM (` + inner + `) p) q
		ORDER BY arrived, number, id, version`,
		behind: behind,
		rows: fmt.Sprintf(`
		SELECT k.at, %s, %s, %s FROM unnest($1::bigint[], $2::bigint[], $3::uuid[]) WITH ORDINALITY AS k (number, version, id, at)
		JOIN %s t ON %s = k.id AND %s = k.number AND %s = k.version%s`, content, receipt, salt, table, id, number, version, where),
	}
}

var sources = map[leaf.Kind]source{
	leaf.Access: sourceOf(leaf.Access, "access_log", "t.interaction_id", "t.ean", "0::bigint", "t.record", "t.receipt", "t.salt", "", "t.ean", "t.interaction_id"),
	leaf.Journal: sourceOf(leaf.Journal, "journal_entry", "t.boot_id", "0::bigint", "t.sequence", "t.entry", "NULL::bytea", "NULL::bytea", "",
		"t.boot_id", "t.sequence"),
	leaf.LegalFile: sourceOf(leaf.LegalFile, "legal_file", noID, "t.ean", "t.version", "t.file", "NULL::bytea", "NULL::bytea", "", "t.ean", "t.version"),
	leaf.Supplier:  sourceOf(leaf.Supplier, "supplier", noID, "t.gln", "t.version", "t.record", "NULL::bytea", "NULL::bytea", "", "t.gln", "t.version"),
	leaf.Control:   sourceOf(leaf.Control, "control_entry", noID, "0::bigint", "t.sequence", "t.entry", "NULL::bytea", "NULL::bytea", "", "t.sequence"),
	leaf.End: sourceOf(leaf.End, "audit_statement", "t.boot_id", "0::bigint", "t.sequence", "t.statement", "NULL::bytea", "NULL::bytea", " AND t.kind = 6",
		"t.boot_id", "t.sequence"),
	leaf.Stored: sourceOf(leaf.Stored, "audit_statement", "t.boot_id", "0::bigint", "t.sequence", "t.statement", "NULL::bytea", "NULL::bytea", " AND t.kind = 7",
		"t.boot_id", "t.sequence"),
}

const (
	queryHorizon = `SELECT pg_snapshot_xmin(pg_current_snapshot())::text, pg_snapshot_xmax(pg_current_snapshot())::text`
	queryLeaves  = `SELECT index, kind, uuid_send(id), number, version FROM audit_leaf WHERE index >= $1 AND index < $2 ORDER BY index`
	queryLogged  = `
		SELECT k.at, l.index FROM unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::uuid[]) WITH ORDINALITY AS k (kind, number, version, id, at)
		JOIN audit_leaf l ON l.kind = k.kind AND l.number = k.number AND l.version = k.version AND l.id = k.id`
	execLeaves = `
		INSERT INTO audit_leaf (index, kind, number, version, id)
		SELECT $1 + k.at - 1, k.kind, k.number, k.version, k.id
		FROM unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::uuid[]) WITH ORDINALITY AS k (kind, number, version, id, at)`
	execHashes = `INSERT INTO audit_hash (index, hash) SELECT $1 + k.at - 1, k.hash FROM unnest($2::bytea[]) WITH ORDINALITY AS k (hash, at)`
	execCursor = `INSERT INTO audit_cursor (kind, position) VALUES ($1, $2) ON CONFLICT (kind) DO UPDATE SET position = EXCLUDED.position`

	execJournal = `
		INSERT INTO journal_entry (boot_id, sequence, entry) SELECT $1::uuid, k.sequence, k.entry
		FROM unnest($2::bigint[], $3::bytea[]) AS k (sequence, entry) ON CONFLICT DO NOTHING`
	execStatement = `
		INSERT INTO audit_statement (kind, boot_id, sequence, statement) SELECT k.kind, k.boot_id, k.sequence, k.statement
		FROM unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::bytea[]) AS k (kind, boot_id, sequence, statement) ON CONFLICT DO NOTHING`
	// Only entries that nothing can come before any more, and that are old
	// enough.
	querySettled = `
		SELECT uuid_send(boot_id), sequence, arrived::text, entry FROM journal_entry
		WHERE (arrived, boot_id, sequence) > ($1::text::xid8, $2::uuid, $3::bigint) AND arrived < pg_snapshot_xmin(pg_current_snapshot())
		  AND stored_at <= now() - $4::bigint * INTERVAL '1 microsecond'
		ORDER BY arrived, boot_id, sequence LIMIT $5`
	queryDigests = `
		SELECT k.at, substring(sha256(b.ciphertext) FROM 1 FOR 16)
		FROM unnest($1::bigint[], $2::smallint[], $3::int[], $4::int[]) WITH ORDINALITY AS k (ean, field, day, version, at)
		JOIN sealed_block b ON b.ean = k.ean AND b.field = k.field AND b.day = DATE '1970-01-01' + k.day AND b.version = k.version
		WHERE b.day >= DATE '1970-01-01' + $5::int AND b.day <= DATE '1970-01-01' + $6::int
		UNION ALL
		SELECT k.at, substring(sha256(i.ciphertext) FROM 1 FOR 16)
		FROM unnest($1::bigint[], $2::smallint[], $3::int[], $4::int[]) WITH ORDINALITY AS k (ean, field, day, version, at)
		JOIN sealed_identity i ON i.ean = k.ean AND i.field = k.field AND i.day = DATE '1970-01-01' + k.day AND i.version = k.version`
	// Along access_log_by_arrival: nobody but the owner says when a row arrived.
	// The record of a step takes some 600 bytes at most.
	queryRecordsWith = `
		SELECT k.at, uuid_send(a.interaction_id), a.record
		FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS k (number, version, at)
		JOIN legal_file f ON f.ean = k.number AND f.version = k.version
		CROSS JOIN LATERAL (
			SELECT l.interaction_id, l.record FROM access_log l
			WHERE l.arrived = f.arrived AND l.ean = f.ean AND octet_length(l.record) <= 1024 LIMIT 2
		) a`
	// The same of supplier records; a record of such a step names no metering point.
	queryRecordsWithSupplier = `
		SELECT k.at, uuid_send(a.interaction_id), a.record
		FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS k (number, version, at)
		JOIN supplier s ON s.gln = k.number AND s.version = k.version
		CROSS JOIN LATERAL (
			SELECT l.interaction_id, l.record FROM access_log l
			WHERE l.arrived = s.arrived AND l.ean = 0 AND octet_length(l.record) <= 1024 LIMIT 2
		) a`
)

// factDigests give what a fact's digest is over: of the sealed ones the payload,
// between a head of 29 bytes ("kluis/sealed": domain, version, key id, length)
// and a signature of 64; of the control feed the hash in the signed head ("kluis/control-head":
// domain, version, sequence, hash). Nothing is verified here, and of a row that
// is neither nothing comes that a digest can be equal to.
var factDigests = map[leaf.Kind]string{
	leaf.LegalFile: fmt.Sprintf(factDigest, payloadDigest("file"), "legal_file", "t.ean = k.number AND t.version = k.version"),
	leaf.Supplier:  fmt.Sprintf(factDigest, payloadDigest("record"), "supplier", "t.gln = k.number AND t.version = k.version"),
	leaf.Control:   fmt.Sprintf(factDigest, "substring(t.head FROM 32 FOR 32)", "control_entry", "t.sequence = k.version"),
}

const factDigest = `SELECT k.at, %s FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS k (number, version, at) JOIN %s t ON %s`

func payloadDigest(column string) string {
	return "sha256(substring(t." + column + " FROM 30 FOR greatest(octet_length(t." + column + ") - 93, 0)))"
}

// NewAuditor connects as kluis_auditor.
func NewAuditor(ctx context.Context, c Config) (*Auditor, error) {
	s, err := open(ctx, c, roleAuditor)
	if err != nil {
		return nil, err
	}
	return &Auditor{*s}, nil
}

// each runs a query and gives its rows to scan.
func (a *Auditor) each(ctx context.Context, op, query string, scan func(*sqlx.Rows) error, args ...any) error {
	rows, err := a.db.QueryxContext(ctx, query, args...)
	if err != nil {
		return wrap(ctx, op, err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return wrap(ctx, op, err)
		}
	}
	return wrap(ctx, op, rows.Err())
}

// Horizon says which rows may still come, and up to where all are logged.
func (a *Auditor) Horizon(ctx context.Context) (leaf.Horizon, error) {
	const op = "horizon"
	h := leaf.Horizon{Cursors: map[leaf.Kind]leaf.Place{}}
	// First, so that no row comes between it and the pages read after it.
	err := a.each(ctx, op, queryHorizon, func(r *sqlx.Rows) error {
		var oldest, next string
		err := r.Scan(&oldest, &next)
		if err == nil {
			h.Oldest, err = strconv.ParseUint(oldest, 10, 64)
		}
		if err == nil {
			h.Next, err = strconv.ParseUint(next, 10, 64)
		}
		return err
	})
	if err != nil {
		return h, err
	}
	return h, a.each(ctx, op, `SELECT kind, position FROM audit_cursor`, func(r *sqlx.Rows) error {
		var kind int64
		var b []byte
		if err := r.Scan(&kind, &b); err != nil {
			return err
		}
		if kind < 0 || kind > 0xff || len(b) != placeSize {
			return nil // another version's: looked at again from the start
		}
		k := leaf.Kind(kind)
		p := leaf.Place{Arrived: binary.BigEndian.Uint64(b), Key: leaf.Key{Kind: k, ID: [16]byte(b[8:24])}}
		p.Key.Number, p.Key.Version = int64(binary.BigEndian.Uint64(b[24:])), int64(binary.BigEndian.Uint64(b[32:]))
		h.Cursors[k] = p
		return nil
	})
}

const placeSize = 40

func position(p leaf.Place) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, placeSize), p.Arrived)
	b = append(b, p.Key.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(p.Key.Number))
	return binary.BigEndian.AppendUint64(b, uint64(p.Key.Version))
}

// Discover looks at up to limit rows of a kind after a place, in the order in
// which they arrive.
func (a *Auditor) Discover(ctx context.Context, kind leaf.Kind, after leaf.Place, limit int) ([]leaf.Found, error) {
	s, ok := sources[kind]
	if !ok {
		return nil, fmt.Errorf("postgres: discover: unknown %v", kind)
	}
	var out []leaf.Found
	err := a.each(ctx, "discover "+kind.String(), s.found, func(r *sqlx.Rows) error {
		f := leaf.Found{Row: leaf.Row{Key: leaf.Key{Kind: kind}}}
		var id []byte
		var arrived string
		if err := r.Scan(&f.Number, &f.Version, &id, &arrived, &f.Logged, &f.Content, &f.Receipt, &f.Salt); err != nil {
			return err
		}
		copy(f.ID[:], id)
		var err error
		f.Arrived, err = strconv.ParseUint(arrived, 10, 64)
		out = append(out, f)
		return err
	}, strconv.FormatUint(after.Arrived, 10), after.Key.Number, after.Key.Version, uuid.UUID(after.Key.ID).String(), limit)
	return out, err
}

// Behind counts rows of a kind after a place that are not logged, of at most
// limit that it looks at.
func (a *Auditor) Behind(ctx context.Context, kind leaf.Kind, after leaf.Place, limit int) (int64, error) {
	s, ok := sources[kind]
	if !ok {
		return 0, fmt.Errorf("postgres: behind: unknown %v", kind)
	}
	var n int64
	err := a.db.GetContext(ctx, &n, s.behind, strconv.FormatUint(after.Arrived, 10), after.Key.Number, after.Key.Version, uuid.UUID(after.Key.ID).String(), limit)
	return n, wrap(ctx, "rows of "+kind.String()+" that are not logged", err)
}

// Size is the number of leaves.
func (a *Auditor) Size(ctx context.Context) (int64, error) {
	var n int64
	err := a.db.GetContext(ctx, &n, `SELECT coalesce(max(index), -1) + 1 FROM audit_leaf`)
	return n, wrap(ctx, "size of the log", err)
}

// ErrNoHash: a hash of the tree is not there.
var ErrNoHash = errors.New("a hash of the tree is missing")

// Hashes returns stored hashes, as asked, in order; ErrNoHash.
func (a *Auditor) Hashes(ctx context.Context, indexes []int64) ([]tlog.Hash, error) {
	const op = "hashes"
	out := make([]tlog.Hash, len(indexes))
	found := 0
	err := a.each(ctx, op, `SELECT k.at, h.hash FROM unnest($1::bigint[]) WITH ORDINALITY AS k (index, at) JOIN audit_hash h ON h.index = k.index`,
		func(r *sqlx.Rows) error {
			var at int
			var b sql.RawBytes
			if err := r.Scan(&at, &b); err != nil {
				return err
			}
			copy(out[at-1][:], b)
			found++
			return nil
		}, pq.Array(indexes))
	if err == nil && found != len(indexes) {
		err = fmt.Errorf("postgres: %s: %w", op, ErrNoHash)
	}
	return out, err
}

// HashRange returns the stored hashes from one index to before another,
// ascending, those that are there.
func (a *Auditor) HashRange(ctx context.Context, from, to int64) ([]leaf.IndexedHash, error) {
	out := make([]leaf.IndexedHash, 0, min(max(to-from, 0), 4096))
	err := a.each(ctx, "hashes", `SELECT index, hash FROM audit_hash WHERE index >= $1 AND index < $2 ORDER BY index`, func(r *sqlx.Rows) error {
		var h leaf.IndexedHash
		var b sql.RawBytes
		if err := r.Scan(&h.Index, &b); err != nil {
			return err
		}
		copy(h.Hash[:], b)
		out = append(out, h)
		return nil
	}, from, to)
	return out, err
}

// Leaves returns the leaves from one index to before another, ascending, those
// that are there.
func (a *Auditor) Leaves(ctx context.Context, from, to int64) ([]leaf.IndexedKey, error) {
	out := make([]leaf.IndexedKey, 0, min(max(to-from, 0), 4096))
	err := a.each(ctx, "leaves", queryLeaves, func(r *sqlx.Rows) error {
		var k leaf.IndexedKey
		var kind int64
		var id sql.RawBytes
		if err := r.Scan(&k.Index, &kind, &id, &k.Number, &k.Version); err != nil {
			return err
		}
		k.Kind = leaf.Kind(kind)
		copy(k.ID[:], id)
		out = append(out, k)
		return nil
	}, from, to)
	return out, err
}

// keyArrays are the keys as arrays of a statement.
func keyArrays(keys []leaf.Key) (kinds, numbers, versions []int64, ids []string) {
	for _, k := range keys {
		kinds, numbers, versions = append(kinds, int64(k.Kind)), append(numbers, k.Number), append(versions, k.Version)
		ids = append(ids, uuid.UUID(k.ID).String())
	}
	return kinds, numbers, versions, ids
}

// Indexes returns the index of each row's leaf; -1: it has none.
func (a *Auditor) Indexes(ctx context.Context, keys []leaf.Key) ([]int64, error) {
	out := make([]int64, len(keys))
	for i := range out {
		out[i] = -1
	}
	kinds, numbers, versions, ids := keyArrays(keys)
	err := a.each(ctx, "leaves of rows", queryLogged, func(r *sqlx.Rows) error {
		var at, index int64
		err := r.Scan(&at, &index)
		if err == nil {
			out[at-1] = index
		}
		return err
	}, pq.Array(kinds), pq.Array(numbers), pq.Array(versions), pq.Array(ids))
	return out, err
}

// Interaction returns the leaves of an interaction's access records, ascending,
// at most limit.
func (a *Auditor) Interaction(ctx context.Context, id [16]byte, limit int) ([]leaf.IndexedKey, error) {
	var out []leaf.IndexedKey
	err := a.each(ctx, "leaves of an interaction", `SELECT index, number FROM audit_leaf WHERE id = $1::uuid AND kind = $2 ORDER BY number LIMIT $3`,
		func(r *sqlx.Rows) error {
			k := leaf.IndexedKey{Key: leaf.Key{Kind: leaf.Access, ID: id}}
			err := r.Scan(&k.Index, &k.Number)
			out = append(out, k)
			return err
		}, uuid.UUID(id).String(), int64(leaf.Access), limit)
	return out, err
}

// Rows returns the rows of the keys, in their order; nil for one that is not
// there.
func (a *Auditor) Rows(ctx context.Context, keys []leaf.Key) ([]*leaf.Row, error) {
	out := make([]*leaf.Row, len(keys))
	for kind, s := range sources {
		var at []int
		var mine []leaf.Key
		for i, k := range keys {
			if k.Kind == kind {
				at, mine = append(at, i), append(mine, k)
			}
		}
		if len(mine) == 0 {
			continue
		}
		_, numbers, versions, ids := keyArrays(mine)
		err := a.each(ctx, "rows of "+kind.String(), s.rows, func(r *sqlx.Rows) error {
			var n int
			var row leaf.Row
			if err := r.Scan(&n, &row.Content, &row.Receipt, &row.Salt); err != nil {
				return err
			}
			row.Key = mine[n-1]
			out[at[n-1]] = &row
			return nil
		}, pq.Array(numbers), pq.Array(versions), pq.Array(ids))
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Append adds leaves from the index first on, with the hashes from firstHash
// on, counts the records among the rows (nil: there are none), and notes up to
// where all rows of a kind are logged; all or nothing. ErrConflict: there is a
// leaf of that index, or of one of the rows.
func (a *Auditor) Append(ctx context.Context, first int64, keys []leaf.Key, firstHash int64, hashes []tlog.Hash, counted *oversight.Tally, logged leaf.Place) error {
	kinds, numbers, versions, ids := keyArrays(keys)
	raw := make([][]byte, len(hashes))
	for i := range hashes {
		raw[i] = hashes[i][:]
	}
	return a.transact(ctx, "append to the log", func(ctx context.Context, tx *sqlx.Tx) error {
		if len(keys) > 0 {
			if _, err := tx.ExecContext(ctx, execLeaves, first, pq.Array(kinds), pq.Array(numbers), pq.Array(versions), pq.Array(ids)); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, execHashes, firstHash, pq.Array(raw)); err != nil {
				return err
			}
			if err := count(ctx, tx, counted); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, execCursor, int64(logged.Key.Kind), position(logged))
		return err
	})
}

// Checkpoints returns signed checkpoints of more than so many leaves,
// ascending, at most limit.
func (a *Auditor) Checkpoints(ctx context.Context, after int64, limit int) ([]leaf.Note, error) {
	return a.notes(ctx, `SELECT size, note FROM audit_checkpoint WHERE size > $1 ORDER BY size LIMIT $2`, after, limit)
}

// LastCheckpoint is the one of the largest tree; zero when there is none.
func (a *Auditor) LastCheckpoint(ctx context.Context) (leaf.Note, error) {
	out, err := a.notes(ctx, `SELECT size, note FROM audit_checkpoint ORDER BY size DESC LIMIT 1`)
	if err != nil || len(out) == 0 {
		return leaf.Note{}, err
	}
	return out[0], nil
}

func (a *Auditor) notes(ctx context.Context, query string, args ...any) ([]leaf.Note, error) {
	var out []leaf.Note
	err := a.each(ctx, "checkpoints", query, func(r *sqlx.Rows) error {
		var n leaf.Note
		err := r.Scan(&n.Size, &n.Text)
		out = append(out, n)
		return err
	}, args...)
	return out, err
}

// AddCheckpoint stores a signed checkpoint. ErrConflict: there is one of this
// size.
func (a *Auditor) AddCheckpoint(ctx context.Context, n leaf.Note) error {
	return a.transact(ctx, "checkpoint", func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO audit_checkpoint (size, note) VALUES ($1, $2)`, n.Size, n.Text)
		return err
	})
}

// LastEntry is the last entry of a journal; zero and nil when there is none.
func (a *Auditor) LastEntry(ctx context.Context, boot [16]byte) (sequence uint64, entry []byte, err error) {
	err = a.each(ctx, "journal", `SELECT sequence, entry FROM journal_entry WHERE boot_id = $1::uuid ORDER BY sequence DESC LIMIT 1`,
		func(r *sqlx.Rows) error { return r.Scan(&sequence, &entry) }, uuid.UUID(boot).String())
	return sequence, entry, err
}

// AddEntries stores entries of a journal; those that are there already stay as
// they are.
func (a *Auditor) AddEntries(ctx context.Context, boot [16]byte, sequences []uint64, entries [][]byte) error {
	numbers := make([]int64, len(sequences))
	for i, s := range sequences {
		numbers[i] = int64(s)
	}
	return a.transact(ctx, "journal", func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, execJournal, uuid.UUID(boot).String(), pq.Array(numbers), pq.Array(entries))
		return err
	})
}

// Journal returns entries after one, ordered by boot and sequence, at most
// limit.
func (a *Auditor) Journal(ctx context.Context, boot [16]byte, sequence uint64, limit int) ([]leaf.Row, error) {
	var out []leaf.Row
	err := a.each(ctx, "journal", `
		SELECT uuid_send(boot_id), sequence, entry FROM journal_entry WHERE (boot_id, sequence) > ($1::uuid, $2::bigint)
		ORDER BY boot_id, sequence LIMIT $3`,
		func(r *sqlx.Rows) error {
			row := leaf.Row{Key: leaf.Key{Kind: leaf.Journal}}
			var id sql.RawBytes
			if err := r.Scan(&id, &row.Version, &row.Content); err != nil {
				return err
			}
			copy(row.ID[:], id)
			out = append(out, row)
			return nil
		}, uuid.UUID(boot).String(), int64(sequence), limit)
	return out, err
}

// Ends returns the statements that a journal has ended.
func (a *Auditor) Ends(ctx context.Context, boot [16]byte) ([][]byte, error) {
	var out [][]byte
	err := a.each(ctx, "ends of journals", `SELECT statement FROM audit_statement WHERE boot_id = $1::uuid AND kind = $2 ORDER BY sequence`,
		func(r *sqlx.Rows) error {
			var b []byte
			err := r.Scan(&b)
			out = append(out, b)
			return err
		}, uuid.UUID(boot).String(), int64(leaf.End))
	return out, err
}

// AddStatements stores statements, and how far the auditor has looked at seal
// events when settled says so; those that are there already stay as they are.
func (a *Auditor) AddStatements(ctx context.Context, rows []leaf.Row, settled *leaf.Place) error {
	var kinds, sequences []int64
	var boots []string
	var statements [][]byte
	for _, r := range rows {
		kinds, sequences = append(kinds, int64(r.Kind)), append(sequences, r.Version)
		boots, statements = append(boots, uuid.UUID(r.ID).String()), append(statements, r.Content)
	}
	return a.transact(ctx, "statements", func(ctx context.Context, tx *sqlx.Tx) error {
		if len(rows) > 0 {
			if _, err := tx.ExecContext(ctx, execStatement, pq.Array(kinds), pq.Array(boots), pq.Array(sequences), pq.Array(statements)); err != nil {
				return err
			}
		}
		if settled == nil {
			return nil
		}
		_, err := tx.ExecContext(ctx, execCursor, settledCursor, position(*settled))
		return err
	})
}

// settledCursor is the kind of the cursor over seal events.
const settledCursor = 64

// Settled returns journal entries stored longer ago than age, after those of
// the last AddStatements, in the order of arrival, at most limit.
func (a *Auditor) Settled(ctx context.Context, age time.Duration, limit int) ([]leaf.Found, error) {
	h, err := a.Horizon(ctx)
	if err != nil {
		return nil, err
	}
	after := h.Cursors[settledCursor]
	if after.Arrived > h.Next {
		after = leaf.Place{} // restored into another cluster
	}
	var out []leaf.Found
	err = a.each(ctx, "seal events", querySettled, func(r *sqlx.Rows) error {
		f := leaf.Found{Row: leaf.Row{Key: leaf.Key{Kind: leaf.Journal}}}
		var id []byte
		var arrived string
		if err := r.Scan(&id, &f.Version, &arrived, &f.Content); err != nil {
			return err
		}
		copy(f.ID[:], id)
		var err error
		f.Arrived, err = strconv.ParseUint(arrived, 10, 64)
		out = append(out, f)
		return err
	}, strconv.FormatUint(after.Arrived, 10), uuid.UUID(after.Key.ID).String(), after.Key.Version, age.Microseconds(), limit)
	return out, err
}

// FilesAfter returns legal files after a version of a metering point, ordered
// by metering point and version, at most limit.
func (a *Auditor) FilesAfter(ctx context.Context, ean, version int64, limit int) ([]leaf.Row, error) {
	var out []leaf.Row
	err := a.each(ctx, "legal files", `
		SELECT ean, version, file FROM legal_file WHERE (ean, version) > ($1::bigint, $2::bigint) ORDER BY ean, version LIMIT $3`,
		func(r *sqlx.Rows) error {
			row := leaf.Row{Key: leaf.Key{Kind: leaf.LegalFile}}
			err := r.Scan(&row.Number, &row.Version, &row.Content)
			out = append(out, row)
			return err
		}, ean, version, limit)
	return out, err
}

// RecordsWith returns of each legal file the access records of its metering
// point that were stored in one transaction with it: at most two, of those no
// larger than the record of a step can be, without receipts.
func (a *Auditor) RecordsWith(ctx context.Context, files []leaf.Key) ([][]leaf.Row, error) {
	return a.recordsWith(ctx, queryRecordsWith, files, func(k leaf.Key) int64 { return k.Number })
}

// RecordsWithSupplier returns the same of supplier records: those that name no
// metering point.
func (a *Auditor) RecordsWithSupplier(ctx context.Context, records []leaf.Key) ([][]leaf.Row, error) {
	return a.recordsWith(ctx, queryRecordsWithSupplier, records, func(leaf.Key) int64 { return 0 })
}

func (a *Auditor) recordsWith(ctx context.Context, query string, facts []leaf.Key, number func(leaf.Key) int64) ([][]leaf.Row, error) {
	out := make([][]leaf.Row, len(facts))
	_, numbers, versions, _ := keyArrays(facts)
	err := a.each(ctx, "records of steps", query, func(r *sqlx.Rows) error {
		var n int
		var id sql.RawBytes
		var row leaf.Row
		if err := r.Scan(&n, &id, &row.Content); err != nil {
			return err
		}
		row.Key = leaf.Key{Kind: leaf.Access, Number: number(facts[n-1])}
		copy(row.ID[:], id)
		out[n-1] = append(out[n-1], row)
		return nil
	}, pq.Array(numbers), pq.Array(versions))
	return out, err
}

// FactDigests returns the digests of the legal files, supplier records and heads
// of the control feed that are stored, as their rows say; nil for one that is
// not there.
func (a *Auditor) FactDigests(ctx context.Context, keys []leaf.Key) ([]*[32]byte, error) {
	out := make([]*[32]byte, len(keys))
	for kind, query := range factDigests {
		var at, numbers, versions []int64
		for i, k := range keys {
			if k.Kind == kind {
				at, numbers, versions = append(at, int64(i)), append(numbers, k.Number), append(versions, k.Version)
			}
		}
		if len(at) == 0 {
			continue
		}
		err := a.each(ctx, "digests of "+kind.String(), query, func(r *sqlx.Rows) error {
			var n int
			var b sql.RawBytes
			if err := r.Scan(&n, &b); err != nil {
				return err
			}
			out[at[n-1]] = new([32]byte)
			copy(out[at[n-1]][:], b)
			return nil
		}, pq.Array(numbers), pq.Array(versions))
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Digests returns the first half of SHA-256 of the ciphertext of each block, or
// identity, which has a field of its own; nil for
// one that is not there.
func (a *Auditor) Digests(ctx context.Context, blocks []leaf.Block) ([]*[16]byte, error) {
	out := make([]*[16]byte, len(blocks))
	for from := 0; from < len(blocks); from += blocksPerStatement {
		part := blocks[from:min(from+blocksPerStatement, len(blocks))]
		n := len(part)
		eans, fields, days, versions := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
		for i, b := range part {
			eans[i], fields[i], days[i], versions[i] = b.EAN, b.Field, b.Day, b.Version
		}
		err := a.each(ctx, "digests of blocks", queryDigests, func(r *sqlx.Rows) error {
			var at int
			var b sql.RawBytes
			if err := r.Scan(&at, &b); err != nil {
				return err
			}
			out[from+at-1] = (*[16]byte)(slices.Clone(b))
			return nil
		}, pq.Array(eans), pq.Array(fields), pq.Array(days), pq.Array(versions), slices.Min(days), slices.Max(days))
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
