package postgres

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

const roleIngest = "kluis_ingest"

// Ingest is ingest's way to the database: it sees of stored blocks all but
// their ciphertext, and adds keys and blocks.
type Ingest struct {
	store
	files, heads, keys, identities *sqlx.Stmt
}

const (
	// Of many metering points at once, each a descent; $3 and $4 leave months out
	// as in queryBlocks.
	queryHeads = `
		SELECT p.at, b.field, b.day - DATE '1970-01-01', b.version, b.resolution, b.value_count, uuid_send(b.key_id), b.content_mac
		FROM unnest($1::bigint[]) WITH ORDINALITY AS p (ean, at)
		CROSS JOIN unnest($2::smallint[]) AS f (field)
		CROSS JOIN LATERAL (
			SELECT DISTINCT ON (s.day) s.field, s.day, s.version, s.resolution, s.value_count, s.key_id, s.content_mac
			FROM sealed_block s
			WHERE s.ean = p.ean AND s.field = f.field
			  AND s.day >= DATE '1970-01-01' + $3::int AND s.day < DATE '1970-01-01' + $4::int
			ORDER BY s.day DESC, s.version DESC LIMIT $4::int - $3::int
		) b`
	// LIMIT keeps it a descent for each metering point; nobody has so many.
	queryMonthKeys = `
		SELECT p.at, uuid_send(k.key_id), k.class, k.month, k.occupancy, k.kek_epoch, k.wrapped, k.mac
		FROM unnest($1::bigint[]) WITH ORDINALITY AS p (ean, at)
		CROSS JOIN LATERAL (SELECT * FROM data_key d WHERE d.ean = p.ean AND d.month BETWEEN $2 AND $3 LIMIT 1000000) k`

	// One writer of a metering point at a time; in ascending order, so that
	// two never wait for each other.
	execLock = `SELECT pg_advisory_xact_lock(ean) FROM unnest($1::bigint[]) AS ean`
	execKeys = `
		INSERT INTO data_key (ean, key_id, class, month, occupancy, kek_epoch, wrapped, mac)
		SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::smallint[], $4::int[], $5::int[], $6::int[], $7::bytea[], $8::bytea[])`
	execBlocks = `
		INSERT INTO sealed_block (ean, field, day, version, resolution, key_id, value_count, content_mac, ciphertext)
		SELECT ean, field, DATE '1970-01-01' + day, version, resolution, key_id, value_count, content_mac, ciphertext
		FROM unnest($1::bigint[], $2::smallint[], $3::int[], $4::int[], $5::smallint[], $6::uuid[], $7::smallint[], $8::bytea[], $9::bytea[])
		  AS b (ean, field, day, version, resolution, key_id, value_count, content_mac, ciphertext)`
	// Under the lock: a data key that was replaced or erased since it was read
	// stays so.
	queryKeysGone = `
		SELECT EXISTS (
			SELECT FROM unnest($1::bigint[], $2::uuid[]) AS b (ean, key_id)
			WHERE NOT EXISTS (SELECT FROM data_key k WHERE k.ean = b.ean AND k.key_id = b.key_id))`
	execBatch = `
		INSERT INTO ingest_batch (ean, batch_id, keys, blocks, changed)
		SELECT ean, $2::uuid, keys, blocks, changed FROM unnest($1::bigint[], $3::int[], $4::int[], $5::bytea[]) AS b (ean, keys, blocks, changed)`

	// blocksPerStatement bounds a statement to a few megabytes.
	blocksPerStatement = 2000
)

// NewIngest connects as kluis_ingest.
func NewIngest(ctx context.Context, c Config) (*Ingest, error) {
	s, err := open(ctx, c, roleIngest)
	if err != nil {
		return nil, err
	}
	i := &Ingest{store: *s}
	err = i.prepare(ctx, map[**sqlx.Stmt]string{
		&i.files:      queryStoredFiles,
		&i.heads:      queryHeads,
		&i.keys:       queryMonthKeys,
		&i.identities: queryIdentityHeads,
	})
	if err != nil {
		return nil, err
	}
	return i, nil
}

// each runs a statement about metering points and has f look at each row it
// scanned, with the place in eans that it is of.
func (i *Ingest) each(ctx context.Context, op string, st *sqlx.Stmt, eans []meter.EAN, into []any, f func(at int), args ...any) error {
	if len(eans) == 0 {
		return nil
	}
	rows, err := st.QueryxContext(ctx, append([]any{pq.Array(numbers(eans))}, args...)...)
	if err != nil {
		return wrap(ctx, op, err)
	}
	defer rows.Close()
	var at int64
	into = append([]any{&at}, into...)
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return wrap(ctx, op, err)
		}
		if at < 1 || at > int64(len(eans)) {
			return fmt.Errorf("postgres: %s: a row of none of the metering points", op)
		}
		f(int(at) - 1)
	}
	return wrap(ctx, op, rows.Err())
}

// LegalFiles returns the newest legal file of each metering point, and the one
// before, in the order asked for; of one that has none, an empty one.
func (i *Ingest) LegalFiles(ctx context.Context, eans []meter.EAN) ([]authz.StoredFile, error) {
	out := make([]authz.StoredFile, len(eans))
	var version int64
	var file sql.RawBytes
	err := i.each(ctx, "legal files", i.files, eans, []any{&version, &file}, func(at int) {
		addNewer(&out[at], version, slices.Clone(file))
	})
	return out, err
}

// Head is what can be seen of the highest version of a block.
type Head struct {
	EAN        meter.EAN
	Field      meter.FieldCode
	Day        meter.Day
	Version    uint32
	Resolution meter.Resolution
	ValueCount int
	KeyID      [16]byte
	ContentMAC [32]byte
}

// Heads returns the highest version of each block stored of the metering points,
// fields and days, in no order.
func (i *Ingest) Heads(ctx context.Context, eans []meter.EAN, fields []meter.FieldCode, days meter.DayRange) ([]Head, error) {
	codes := make([]int64, len(fields))
	for n, f := range fields {
		codes[n] = int64(f)
	}
	slices.Sort(codes)
	codes = slices.Compact(codes)
	var out []Head
	var (
		field, day, version, resolution, values int64
		keyID, mac                              sql.RawBytes
	)
	err := i.each(ctx, "heads", i.heads, eans, []any{&field, &day, &version, &resolution, &values, &keyID, &mac}, func(at int) {
		h := Head{
			EAN: eans[at], Field: meter.FieldCode(field), Day: meter.Day(day), Version: uint32(version),
			Resolution: resolutionOf(resolution), ValueCount: int(values),
		}
		copy(h.KeyID[:], keyID)
		copy(h.ContentMAC[:], mac)
		out = append(out, h)
	}, pq.Array(codes), int64(days.From), int64(days.To))
	return out, err
}

// Keys returns the data keys of the metering points, of the months from first to
// last, both included, of all classes and occupancies.
func (i *Ingest) Keys(ctx context.Context, eans []meter.EAN, first, last meter.Month) ([]envelope.KeyRecord, error) {
	var out []envelope.KeyRecord
	var (
		class, month, occupancy, epoch int64
		id, wrapped, mac               sql.RawBytes
	)
	err := i.each(ctx, "data keys", i.keys, eans, []any{&id, &class, &month, &occupancy, &epoch, &wrapped, &mac}, func(at int) {
		k := envelope.KeyRecord{
			EAN: eans[at], Month: meter.Month(month), Occupancy: meter.Day(occupancy), Epoch: uint32(epoch), Wrapped: slices.Clone(wrapped),
		}
		if class > 0 && class <= 0xff {
			k.Class = meter.Class(class)
		}
		copy(k.ID[:], id)
		copy(k.MAC[:], mac)
		out = append(out, k)
	}, int64(first), int64(last))
	return out, err
}

// Batch is what is stored at once.
type Batch struct {
	Keys   []envelope.KeyRecord
	Blocks []Row
}

// Row is a sealed block to be stored.
type Row struct {
	EAN        meter.EAN
	Field      meter.FieldCode
	Day        meter.Day
	Version    uint32
	Resolution meter.Resolution
	KeyID      [16]byte
	ValueCount int
	ContentMAC [32]byte
	Ciphertext []byte
}

// Commit stores a batch, all or nothing. ErrConflict: a data key of the same
// class, month and occupancy, or a block of the same field, day and version,
// is there already, or the data key of a block is not there any more: it was
// replaced or erased since it was read. ErrUnavailable: it may be stored or not; read again what
// is there before repeating.
func (i *Ingest) Commit(ctx context.Context, b Batch) error {
	type count struct{ keys, blocks int64 }
	counts := map[int64]count{}
	for _, k := range b.Keys {
		c := counts[k.EAN.Int64()]
		c.keys++
		counts[k.EAN.Int64()] = c
	}
	for _, r := range b.Blocks {
		c := counts[r.EAN.Int64()]
		c.blocks++
		counts[r.EAN.Int64()] = c
	}
	if len(counts) == 0 {
		return nil
	}
	var eans, keys, blocks []int64
	for ean := range counts {
		eans = append(eans, ean)
	}
	slices.Sort(eans)
	for _, ean := range eans {
		keys = append(keys, counts[ean].keys)
		blocks = append(blocks, counts[ean].blocks)
	}
	changed, err := changedColumn(eans, b.Blocks)
	if err != nil {
		return err
	}
	id := uuid.New()

	return i.transact(ctx, "store batch", func(ctx context.Context, tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, execLock, pq.Array(eans)); err != nil {
			return err
		}
		if err := insertKeys(ctx, tx, b.Keys); err != nil {
			return err
		}
		if err := keysThere(ctx, tx, b.Blocks); err != nil {
			return err
		}
		for part := range slices.Chunk(b.Blocks, blocksPerStatement) {
			if err := insertBlocks(ctx, tx, part); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, execBatch, pq.Array(eans), id.String(), pq.Array(keys), pq.Array(blocks), pq.Array(changed))
		return err
	})
}

func insertKeys(ctx context.Context, tx *sqlx.Tx, keys []envelope.KeyRecord) error {
	if len(keys) == 0 {
		return nil
	}
	n := len(keys)
	ean, class, month, occupancy, epoch := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
	id, wrapped, mac := make([]string, n), make([][]byte, n), make([][]byte, n)
	for i, k := range keys {
		ean[i], class[i], month[i], occupancy[i], epoch[i] = k.EAN.Int64(), int64(k.Class), int64(k.Month), int64(k.Occupancy), int64(k.Epoch)
		id[i], wrapped[i], mac[i] = uuid.UUID(k.ID).String(), k.Wrapped, k.MAC[:]
	}
	_, err := tx.ExecContext(ctx, execKeys, pq.Array(ean), pq.Array(id), pq.Array(class), pq.Array(month),
		pq.Array(occupancy), pq.Array(epoch), pq.Array(wrapped), pq.Array(mac))
	return err
}

// keysThere refuses blocks under data keys that are not there.
func keysThere(ctx context.Context, tx *sqlx.Tx, rows []Row) error {
	type ref struct {
		ean int64
		id  uuid.UUID
	}
	seen := map[ref]bool{}
	var eans []int64
	var ids []string
	for _, r := range rows {
		k := ref{r.EAN.Int64(), r.KeyID}
		if !seen[k] {
			seen[k] = true
			eans, ids = append(eans, k.ean), append(ids, k.id.String())
		}
	}
	var gone bool
	if err := tx.GetContext(ctx, &gone, queryKeysGone, pq.Array(eans), pq.Array(ids)); err != nil {
		return err
	}
	if gone {
		return ErrConflict
	}
	return nil
}

func insertBlocks(ctx context.Context, tx *sqlx.Tx, rows []Row) error {
	n := len(rows)
	ean, field, day, version := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
	resolution, values := make([]int64, n), make([]int64, n)
	key, mac, ciphertext := make([]string, n), make([][]byte, n), make([][]byte, n)
	for i, r := range rows {
		ean[i], field[i], day[i], version[i] = r.EAN.Int64(), int64(r.Field), int64(r.Day), int64(r.Version)
		resolution[i], values[i] = int64(r.Resolution), int64(r.ValueCount)
		key[i], mac[i], ciphertext[i] = uuid.UUID(r.KeyID).String(), r.ContentMAC[:], r.Ciphertext
	}
	_, err := tx.ExecContext(ctx, execBlocks, pq.Array(ean), pq.Array(field), pq.Array(day), pq.Array(version),
		pq.Array(resolution), pq.Array(key), pq.Array(values), pq.Array(mac), pq.Array(ciphertext))
	return err
}
