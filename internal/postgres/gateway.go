package postgres

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/meter"
)

const roleGateway = "kluis_gateway"

// Gateway is the gateway's way to the database: it reads sealed facts, the
// indexes, and granted ciphertext, adds steps of consents that a cryptoserver
// sealed, appends to the access log, and reads it back for the customer.
type Gateway struct {
	store
	supplier, legalFile, candidates, consent, idempotency, blocks, blocksAsOf, keys, stored, record, accessLog, suppliers, lastStored, identities, address *sqlx.Stmt
	register, registered, usage, head                                                                                                                      *sqlx.Stmt

	many    manyStatements
	changes changeStatements
	proofs  proofStatements
}

const (
	// One descent of the primary key per run of days, read backwards: the
	// first row of each day is its highest version.
	//
	// $5 and $6 are the days that all runs lie in. A statement that is planned
	// once leaves partitions (months) out by parameters alone, before it runs,
	// and by what a run says only with work for each run and each partition:
	// each month there is costs half a microsecond with them, three without.
	// The bounds are written as the days of the runs are, DATE + $n: a month
	// that holds none of them is not opened. And no run has more days than it
	// has: the limit has the planner, which knows nothing of $5 and $6 and
	// reckons with few rows of every month there is, merge the indexes of the
	// months in their order instead of sorting what it finds.
	queryBlocks     = blocksStored + blocksNewest
	queryBlocksAsOf = blocksStored + `
			  AND s.sealed_at <= TIMESTAMPTZ 'epoch' + $7::bigint * INTERVAL '1 microsecond'` + blocksNewest
	blocksStored = `
		SELECT b.field, b.day - DATE '1970-01-01', b.version, b.resolution, uuid_send(b.key_id), b.ciphertext
		FROM unnest($2::smallint[], $3::int[], $4::int[]) AS run (field, from_day, to_day)
		CROSS JOIN LATERAL (
			SELECT DISTINCT ON (s.day) s.field, s.day, s.version, s.resolution, s.key_id, s.ciphertext
			FROM sealed_block s
			WHERE s.ean = $1 AND s.field = run.field
			  AND s.day >= DATE '1970-01-01' + run.from_day AND s.day < DATE '1970-01-01' + run.to_day
			  AND s.day >= DATE '1970-01-01' + $5::int AND s.day < DATE '1970-01-01' + $6::int`
	blocksNewest = `
			ORDER BY s.day DESC, s.version DESC LIMIT run.to_day - run.from_day
		) b`
	// What the gateway runs: the same rows by the column, each column in one
	// piece. All pieces are in the same order. The driver takes longer over a row
	// than the database, and there are two hundred in a month.
	queryBlockColumns     = columnsOf + queryBlocks + columnsEnd
	queryBlockColumnsAsOf = columnsOf + queryBlocksAsOf + columnsEnd
	columnsOf             = `
		SELECT string_agg(int2send(c.field), ''), string_agg(int4send(c.day), ''), string_agg(int4send(c.version), ''),
		       string_agg(int2send(c.resolution), ''), string_agg(c.key_id, ''),
		       string_agg(int4send(length(c.ciphertext)), ''), string_agg(c.ciphertext, '')
		FROM (`
	columnsEnd = `) c (field, day, version, resolution, key_id, ciphertext)`
	queryKeys  = `
		SELECT uuid_send(key_id), class, month, occupancy, kek_epoch, wrapped, mac
		FROM data_key WHERE ean = $1 AND key_id = ANY ($2::uuid[])`
	// The same rows, without what is in them; those whose data key is gone open
	// for nobody. Days less their rank are the same along a run.
	queryStored = `
		SELECT d.field, d.resolution, min(d.day) - DATE '1970-01-01', max(d.day) + 1 - DATE '1970-01-01',
		       (extract(epoch FROM max(d.sealed_at)) * 1000000)::bigint
		FROM (
			SELECT b.field, b.resolution, b.day, b.sealed_at,
			       b.day - row_number() OVER (PARTITION BY b.field, b.resolution ORDER BY b.day)::int AS island
			FROM unnest($2::smallint[], $3::int[], $4::int[]) AS run (field, from_day, to_day)
			CROSS JOIN LATERAL (
				SELECT DISTINCT ON (s.day) s.field, s.day, s.resolution, s.key_id, s.sealed_at
				FROM sealed_block s
				WHERE s.ean = $1 AND s.field = run.field
				  AND s.day >= DATE '1970-01-01' + run.from_day AND s.day < DATE '1970-01-01' + run.to_day
				  AND s.day >= DATE '1970-01-01' + $5::int AND s.day < DATE '1970-01-01' + $6::int
				ORDER BY s.day DESC, s.version DESC LIMIT run.to_day - run.from_day
			) b
			WHERE b.key_id IN (SELECT k.key_id FROM data_key k WHERE k.ean = $1)
		) d
		GROUP BY d.field, d.resolution, d.island
		ORDER BY d.field, 3`
	// Each branch stops at the limit by itself.
	queryCandidates = `
		SELECT c.ean, f.version, f.file FROM (
			(SELECT DISTINCT ean FROM supply_period WHERE gln = $1 AND ean > $2 ORDER BY ean LIMIT $3)
			UNION
			(SELECT DISTINCT ean FROM consent WHERE gln = $1 AND ean > $2 ORDER BY ean LIMIT $3)
			ORDER BY ean LIMIT $3
		) c
		LEFT JOIN LATERAL (SELECT version, file FROM legal_file l WHERE l.ean = c.ean ORDER BY version DESC LIMIT 1) f ON true
		ORDER BY c.ean`
	// The newest, and what it must follow on.
	queryStoredFile = `SELECT version, file FROM legal_file WHERE ean = $1 ORDER BY version DESC LIMIT 2`
	queryRecord     = `
		INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`
	queryLastStored = `
		SELECT (extract(epoch FROM stored_at) * 1000000)::bigint FROM ingest_batch ORDER BY stored_at DESC LIMIT 1`
)

// NewGateway connects as kluis_gateway.
func NewGateway(ctx context.Context, c Config) (*Gateway, error) {
	s, err := open(ctx, c, roleGateway)
	if err != nil {
		return nil, err
	}
	g := &Gateway{store: *s}
	statements := g.many.all()
	maps.Copy(statements, g.changes.all())
	maps.Copy(statements, g.proofs.all())
	maps.Copy(statements, map[**sqlx.Stmt]string{
		&g.supplier:    querySupplier,
		&g.legalFile:   queryStoredFile,
		&g.candidates:  queryCandidates,
		&g.consent:     queryConsent,
		&g.idempotency: queryIdempotency,
		&g.blocks:      queryBlockColumns,
		&g.blocksAsOf:  queryBlockColumnsAsOf,
		&g.keys:        queryKeys,
		&g.stored:      queryStored,
		&g.record:      queryRecord,
		&g.accessLog:   queryAccessLog,
		&g.suppliers:   querySuppliers,
		&g.lastStored:  queryLastStored,
		&g.identities:  queryIdentities,
		&g.address:     queryAddress,
		&g.register:    queryRegister,
		&g.registered:  queryRegistered,
		&g.usage:       queryUsage,
		&g.head:        queryHead,
	})
	if err := g.prepare(ctx, statements); err != nil {
		return nil, err
	}
	return g, nil
}

// Supplier returns the current sealed record of a supplier; nil when there is
// none.
func (g *Gateway) Supplier(ctx context.Context, gln meter.GLN) ([]byte, error) {
	return sealed(ctx, "supplier", g.supplier, gln.Int64())
}

// LegalFile returns the newest legal file of a metering point, and the one
// before.
func (g *Gateway) LegalFile(ctx context.Context, ean meter.EAN) (authz.StoredFile, error) {
	return storedFile(ctx, g.legalFile, ean)
}

func storedFile(ctx context.Context, stmt *sqlx.Stmt, ean meter.EAN) (authz.StoredFile, error) {
	const op = "legal file"
	rows, err := stmt.QueryxContext(ctx, ean.Int64())
	if err != nil {
		return authz.StoredFile{}, wrap(ctx, op, err)
	}
	defer rows.Close()
	var f authz.StoredFile
	for rows.Next() {
		var version int64
		var file []byte
		if err := rows.Scan(&version, &file); err != nil {
			return authz.StoredFile{}, wrap(ctx, op, err)
		}
		addRow(&f, version, file)
	}
	return f, wrap(ctx, op, rows.Err())
}

// addRow takes the next row, from the newest down.
func addRow(f *authz.StoredFile, version int64, file []byte) {
	switch {
	case f.Sealed == nil:
		f.Version, f.Sealed = uint64(version), file
	case uint64(version) == f.Version-1:
		f.Previous = file
	}
}

// Candidate is a metering point that an index connects with a supplier. That
// is no evidence; its legal file may be.
type Candidate struct {
	EAN       meter.EAN
	LegalFile authz.StoredFile // without the one before
}

// Candidates lists metering points that the supply periods or consents
// connect with a supplier, above after, ascending. Fewer than limit: there
// are no more.
func (g *Gateway) Candidates(ctx context.Context, gln meter.GLN, after meter.EAN, limit int) ([]Candidate, error) {
	const op = "candidates"
	var out []Candidate
	for last := after.Int64(); limit > len(out); {
		want := limit - len(out)
		rows, err := g.candidates.QueryxContext(ctx, gln.Int64(), last, want)
		if err != nil {
			return nil, wrap(ctx, op, err)
		}
		n := 0
		for rows.Next() {
			n++
			var c Candidate
			var version sql.NullInt64
			if err := rows.Scan(&last, &version, &c.LegalFile.Sealed); err != nil {
				return nil, errors.Join(wrap(ctx, op, err), wrap(ctx, op, rows.Close()))
			}
			c.LegalFile.Version = uint64(version.Int64)
			// What is no EAN was put in the index by hand, and has no file.
			if c.EAN, err = meter.EANFromInt64(last); err == nil {
				out = append(out, c)
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, wrap(ctx, op, err)
		}
		if n < want {
			break
		}
	}
	return out, nil
}

// Blocks returns the current version of each stored block that the grant
// reads, ascending by field and day, and the data key records they name. It
// is the only way to ciphertext: no Grant, no rows.
//
// Values that the database cannot rightly hold are passed on; a block with
// one does not open.
func (g *Gateway) Blocks(ctx context.Context, grant authz.Grant) ([]envelope.KeyRecord, []envelope.SealedBlock, error) {
	return g.BlocksAsOf(ctx, grant, time.Time{})
}

// BlocksAsOf does the same as of an instant: it returns of each day the newest
// version that was stored by then. Zero is now. What was sealed anew or erased
// since keeps the time at which it was stored.
func (g *Gateway) BlocksAsOf(ctx context.Context, grant authz.Grant, asOf time.Time) ([]envelope.KeyRecord, []envelope.SealedBlock, error) {
	var fields, from, to []int64
	// From the last to the first, as days are read: what comes is sorted then,
	// backwards.
	for _, r := range slices.Backward(grant.Reads()) {
		for _, run := range slices.Backward(r.Days.Ranges()) {
			fields = append(fields, int64(r.Field))
			from = append(from, int64(run.From))
			to = append(to, int64(run.To))
		}
	}
	if len(fields) == 0 {
		return nil, nil, nil
	}
	keys, blocks, err := g.together(ctx, grant.EAN(), fields, from, to, asOf)
	if err != nil || len(blocks) == 0 {
		return nil, nil, err
	}
	if !slices.IsSortedFunc(blocks, byFieldAndDay) { // no statement promises it
		slices.SortFunc(blocks, byFieldAndDay)
	}
	return keys, blocks, nil
}

func byFieldAndDay(a, b envelope.SealedBlock) int {
	if a.Field != b.Field {
		return cmp.Compare(a.Field, b.Field)
	}
	return cmp.Compare(a.Day, b.Day)
}

// readTries bounds how often blocks and keys are read again.
const readTries = 4

// together fetches blocks and their keys. These are two statements, and between
// them a data key may have been replaced, with the blocks under it: then a key
// is missing, and both are read again. A key that is missing once more was
// erased. That costs two statements where something was erased and nothing
// elsewhere; a transaction would cost three round trips each time.
func (g *Gateway) together(ctx context.Context, ean meter.EAN, fields, from, to []int64, asOf time.Time) ([]envelope.KeyRecord, []envelope.SealedBlock, error) {
	var missed []uuid.UUID
	for try := 1; ; try++ {
		blocks, ids, err := g.ciphertexts(ctx, ean, fields, from, to, asOf)
		if err != nil || len(blocks) == 0 {
			return nil, nil, err
		}
		keys, err := g.keyRecords(ctx, ean, ids)
		if err != nil {
			return nil, nil, err
		}
		// The blocks have indexes into ids; not every id need have a record.
		at := make([]int, len(ids))
		again := false
		for i, id := range ids {
			if at[i] = slices.IndexFunc(keys, func(k envelope.KeyRecord) bool { return k.ID == id }); at[i] < 0 {
				at[i] = envelope.NoKey
				again = again || !slices.Contains(missed, id)
				missed = append(missed, id)
			}
		}
		if again && try < readTries {
			continue
		}
		if again {
			return nil, nil, fmt.Errorf("postgres: data keys: %w: they are being replaced", ErrUnavailable)
		}
		for i := range blocks {
			blocks[i].Key = at[blocks[i].Key]
		}
		return keys, blocks, nil
	}
}

// ciphertexts fetches the blocks of runs of days. Key is an index into the
// ids it returns.
func (g *Gateway) ciphertexts(ctx context.Context, ean meter.EAN, fields, from, to []int64, asOf time.Time) ([]envelope.SealedBlock, []uuid.UUID, error) {
	const op = "blocks"
	st, args := g.blocks, []any{ean.Int64(), pq.Array(fields), pq.Array(from), pq.Array(to), slices.Min(from), slices.Max(to)}
	if !asOf.IsZero() {
		st, args = g.blocksAsOf, append(args, asOf.UnixMicro())
	}
	var c blockColumns
	if err := st.QueryRowxContext(ctx, args...).Scan(&c.field, &c.day, &c.version, &c.resolution, &c.keyID, &c.size, &c.ciphertext); err != nil {
		return nil, nil, wrap(ctx, op, err)
	}
	blocks, ids, ok := c.rows()
	if !ok {
		return nil, nil, fmt.Errorf("postgres: %s: columns that do not fit each other", op)
	}
	return blocks, ids, nil
}

// blockColumns are what queryBlockColumns returns: numbers, big endian.
type blockColumns struct{ field, day, version, resolution, keyID, size, ciphertext []byte }

// rows makes blocks of the columns, from the last to the first: days are read
// backwards. Key is an index into the ids.
func (c *blockColumns) rows() ([]envelope.SealedBlock, []uuid.UUID, bool) {
	n := len(c.field) / 2
	if len(c.field) != 2*n || len(c.day) != 4*n || len(c.version) != 4*n || len(c.resolution) != 2*n || len(c.keyID) != 16*n || len(c.size) != 4*n {
		return nil, nil, false
	}
	blocks := make([]envelope.SealedBlock, n)
	var ids []uuid.UUID
	rest, k := c.ciphertext, 0
	for i := n - 1; i >= 0; i-- {
		size := int(binary.BigEndian.Uint32(c.size[4*i:]))
		if size > len(rest) {
			return nil, nil, false
		}
		at := len(rest) - size
		id := uuid.UUID(c.keyID[16*i : 16*i+16])
		// The key of the block before, most often; and there is one for each
		// class and month.
		if k >= len(ids) || ids[k] != id {
			if k = slices.Index(ids, id); k < 0 {
				k = len(ids)
				ids = append(ids, id)
			}
		}
		blocks[n-1-i] = envelope.SealedBlock{
			Field:      meter.FieldCode(binary.BigEndian.Uint16(c.field[2*i:])),
			Day:        meter.Day(binary.BigEndian.Uint32(c.day[4*i:])),
			Resolution: resolutionOf(int64(int16(binary.BigEndian.Uint16(c.resolution[2*i:])))),
			Version:    binary.BigEndian.Uint32(c.version[4*i:]),
			Key:        k,
			Ciphertext: rest[at:len(rest):len(rest)],
		}
		rest = rest[:at]
	}
	return blocks, ids, len(rest) == 0
}

// StoredRun is a run of days of a field, each of which has a stored block that
// may be opened.
type StoredRun struct {
	Field      meter.FieldCode
	Days       meter.DayRange
	Resolution meter.Resolution // of the blocks
	LastStored time.Time        // when the youngest of them was stored; UTC
}

// Stored lists which of the stored days that the grants read are there,
// ascending by field and day. Not counted are blocks whose data key was
// erased. The grants are of one metering point; it fetches no ciphertext.
func (g *Gateway) Stored(ctx context.Context, grants []authz.Grant) ([]StoredRun, error) {
	const op = "stored days"
	var ean meter.EAN
	sets := make(map[meter.FieldCode][]meter.DayRange)
	for _, grant := range grants {
		if ean = cmp.Or(ean, grant.EAN()); grant.EAN() != ean {
			return nil, fmt.Errorf("postgres: %s: grants of several metering points", op)
		}
		for _, r := range grant.Reads() {
			sets[r.Field] = append(sets[r.Field], r.Days.Ranges()...)
		}
	}
	return g.storedDays(ctx, ean, sets)
}

func (g *Gateway) storedDays(ctx context.Context, ean meter.EAN, sets map[meter.FieldCode][]meter.DayRange) ([]StoredRun, error) {
	const op = "stored days"
	var fields, from, to []int64
	for field, days := range sets {
		for _, run := range meter.NewDaySet(days...).Ranges() {
			fields = append(fields, int64(field))
			from = append(from, int64(run.From))
			to = append(to, int64(run.To))
		}
	}
	if len(fields) == 0 {
		return nil, nil
	}
	rows, err := g.stored.QueryxContext(ctx, ean.Int64(), pq.Array(fields), pq.Array(from), pq.Array(to), slices.Min(from), slices.Max(to))
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	defer rows.Close()
	var out []StoredRun
	for rows.Next() {
		var field, resolution, first, end, at int64
		if err := rows.Scan(&field, &resolution, &first, &end, &at); err != nil {
			return nil, wrap(ctx, op, err)
		}
		out = append(out, StoredRun{
			Field: meter.FieldCode(field), Days: meter.DayRange{From: meter.Day(first), To: meter.Day(end)},
			Resolution: resolutionOf(resolution), LastStored: time.UnixMicro(at).UTC(),
		})
	}
	return out, wrap(ctx, op, rows.Err())
}

// keyRecords fetches data keys by their ids.
func (g *Gateway) keyRecords(ctx context.Context, ean meter.EAN, ids []uuid.UUID) ([]envelope.KeyRecord, error) {
	const op = "data keys"
	rows, err := g.keys.QueryxContext(ctx, ean.Int64(), pq.Array(ids))
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	keys, err := scanKeys(rows, ean)
	return keys, wrap(ctx, op, err)
}

// scanKeys reads (id, class, month, occupancy, epoch, wrapped, mac).
func scanKeys(rows *sqlx.Rows, ean meter.EAN) ([]envelope.KeyRecord, error) {
	defer rows.Close()
	var keys []envelope.KeyRecord
	for rows.Next() {
		var (
			class, month, occupancy, epoch int64
			id, mac                        sql.RawBytes
		)
		k := envelope.KeyRecord{EAN: ean}
		if err := rows.Scan(&id, &class, &month, &occupancy, &epoch, &k.Wrapped, &mac); err != nil {
			return nil, err
		}
		if class > 0 && class <= 0xff {
			k.Class = meter.Class(class)
		}
		k.Month, k.Occupancy, k.Epoch = meter.Month(month), meter.Day(occupancy), uint32(epoch)
		copy(k.ID[:], id)
		copy(k.MAC[:], mac)
		keys = append(keys, k)
	}
	return keys, rows.Err()
}

// resolutionOf gives 0, which no block has, for what is no resolution.
func resolutionOf(n int64) meter.Resolution {
	if n < 0 || n > 0xff {
		return 0
	}
	return meter.Resolution(n)
}

// Record appends to the access log and returns nil only once the record is
// durable. Any error means that nothing may leave: the record may be there or
// not.
func (g *Gateway) Record(ctx context.Context, r audit.Record) error {
	const op = "access record"
	args, err := recordArgs(r)
	if err != nil {
		return err
	}
	err = g.confirmed(ctx, func() error {
		_, err := g.record.ExecContext(ctx, args...)
		return err
	})
	if err = wrap(ctx, op, err); errors.Is(err, ErrConflict) {
		// Most likely our own: the connection broke after the commit, and
		// database/sql sent the statement again. To tell the two apart would
		// take another statement over a connection that is no good.
		return fmt.Errorf("postgres: %s: %w: there is one of this interaction already", op, ErrUnavailable)
	}
	return err
}

// recordArgs are the arguments of queryRecord, with a salt of their own.
func recordArgs(r audit.Record) ([]any, error) {
	b, err := r.Encode()
	if err != nil {
		return nil, fmt.Errorf("postgres: access record: %w", err)
	}
	receipt := r.Receipt
	if receipt == nil {
		receipt = []byte{} // not null
	}
	salt := make([]byte, 16)
	rand.Read(salt) // never fails
	return []any{r.EAN.Int64(), uuid.UUID(r.InteractionID).String(), r.Supplier.Int64(), int64(r.Outcome), b, receipt, salt}, nil
}

// LastStored is when ingest last stored a batch; zero when it never did.
func (g *Gateway) LastStored(ctx context.Context) (time.Time, error) {
	var at int64
	err := g.lastStored.GetContext(ctx, &at)
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, wrap(ctx, "last stored", err)
	}
	return time.UnixMicro(at).UTC(), nil
}
