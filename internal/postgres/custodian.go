package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

const roleCustodian = "kluis_custodian"

// Custodian is the key custodian's way to the database: it adds to the control
// feed, and changes data keys, and blocks as far as their key goes.
type Custodian struct {
	store
	feed, scan, blocks, identities *sqlx.Stmt
}

const (
	queryFeed = `SELECT sequence, entry, head FROM control_entry WHERE sequence > $1 ORDER BY sequence LIMIT $2`
	execEntry = `INSERT INTO control_entry (sequence, entry, head) VALUES ($1, $2, $3)`
	execBeat  = `INSERT INTO control_heartbeat (head) VALUES ($1) ON CONFLICT (one) DO UPDATE SET head = EXCLUDED.head`

	// A page of the primary key, whatever is selected of it, so that each
	// statement is short however few rows match; the last row of the page says
	// where the next begins. An index for the selections would be some hundred
	// megabytes to keep for something that passes over everything anyway.
	queryScan = `
		SELECT ean, uuid_send(key_id), class, month, occupancy, kek_epoch, wrapped, mac, selected, last AND looked = $3
		FROM (
			SELECT p.*, count(*) OVER () AS looked, lead(p.ean) OVER (ORDER BY p.ean, p.key_id) IS NULL AS last
			FROM (
				SELECT k.ean, k.key_id, k.class, k.month, k.occupancy, k.kek_epoch, k.wrapped, k.mac,
				       ($5::int IS NULL OR k.occupancy = $5) AND ($6::int = 0 OR k.month < $6 AND k.class <> 3) AND ($7::int = 0 OR k.kek_epoch <> $7)
				       AND ($8::bigint = 0 OR k.created_at < TIMESTAMPTZ 'epoch' + $8 * INTERVAL '1 microsecond') AS selected
				FROM data_key k
				WHERE (k.ean, k.key_id) > ($1, $2::uuid) AND k.ean <= $4
				ORDER BY k.ean, k.key_id LIMIT $3
			) p
		) q
		WHERE selected OR last
		ORDER BY ean, key_id`
	// In the order of the blocks on the disk, so many at a time.
	queryCount = `
		SELECT kek_epoch, count(*), min(month), max(month) FROM data_key WHERE ctid >= $1::tid AND ctid < $2::tid GROUP BY kek_epoch`
	queryCountErased = `
		SELECT kek_epoch, count(*), count(sequence), 0 FROM key_tombstone WHERE ctid >= $1::tid AND ctid < $2::tid GROUP BY kek_epoch`
	querySize = `SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::bigint`

	// Two at once may wait for each other; PostgreSQL ends one, which runs again.
	execRewrapped = `
		UPDATE data_key k SET kek_epoch = n.epoch, wrapped = n.wrapped, mac = n.mac
		FROM unnest($1::bigint[], $2::uuid[], $3::int[], $4::bytea[], $5::bytea[], $6::int[], $7::bytea[], $8::bytea[])
		  AS n (ean, key_id, old_epoch, old_wrapped, old_mac, epoch, wrapped, mac)
		WHERE k.ean = n.ean AND k.key_id = n.key_id AND k.kek_epoch = n.old_epoch AND k.wrapped = n.old_wrapped AND k.mac = n.old_mac`

	queryDelete = `
		WITH gone AS (
			DELETE FROM data_key k USING unnest($1::bigint[], $2::uuid[]) AS r (ean, key_id)
			WHERE k.ean = r.ean AND k.key_id = r.key_id
			RETURNING k.ean, k.key_id, k.kek_epoch, k.month
		), kept AS (
			INSERT INTO key_tombstone (ean, key_id, kek_epoch, sequence) SELECT ean, key_id, kek_epoch, $3 FROM gone
			ON CONFLICT (ean, key_id) DO UPDATE SET sequence = EXCLUDED.sequence
		)
		SELECT ean, uuid_send(key_id), month FROM gone`
	execNamed = `
		UPDATE key_tombstone t SET sequence = $3
		FROM unnest($1::bigint[], $2::uuid[]) AS r (ean, key_id)
		WHERE t.ean = r.ean AND t.key_id = r.key_id AND t.sequence IS NULL`
	// Whoever knows a candidate for what a block holds could not check it
	// without the HSM either, but with it.
	execBlank = `
		UPDATE sealed_block b SET content_mac = decode(repeat('00', 32), 'hex')
		FROM unnest($1::bigint[], $2::uuid[], $3::int[], $4::int[]) AS r (ean, key_id, from_day, to_day)
		WHERE b.ean = r.ean AND b.key_id = r.key_id
		  AND b.day >= DATE '1970-01-01' + r.from_day AND b.day < DATE '1970-01-01' + r.to_day
		  AND b.day >= DATE '1970-01-01' + $5::int AND b.day < DATE '1970-01-01' + $6::int -- of all of them, for the partitions
		  AND b.content_mac <> decode(repeat('00', 32), 'hex')`

	queryUnder = `
		SELECT field, day - DATE '1970-01-01', version, resolution, ciphertext FROM sealed_block
		WHERE ean = $1 AND key_id = $2::uuid AND day >= DATE '1970-01-01' + $3::int AND day < DATE '1970-01-01' + $4::int
		ORDER BY field, day, version`
	queryOneGone = `DELETE FROM data_key WHERE ean = $1 AND key_id = $2::uuid RETURNING kek_epoch`
	execRetired  = `
		INSERT INTO key_tombstone (ean, key_id, kek_epoch) VALUES ($1, $2::uuid, $3) ON CONFLICT (ean, key_id) DO NOTHING`
	execResealed = `
		UPDATE sealed_block b SET key_id = $3::uuid, ciphertext = n.ciphertext
		FROM unnest($4::smallint[], $5::int[], $6::int[], $7::bytea[]) AS n (field, day, version, ciphertext)
		WHERE b.ean = $1 AND b.key_id = $2::uuid AND b.field = n.field AND b.day = DATE '1970-01-01' + n.day AND b.version = n.version
		  AND b.day >= DATE '1970-01-01' + $8::int AND b.day < DATE '1970-01-01' + $9::int`
	queryLeft = `
		SELECT count(*) FROM sealed_block
		WHERE ean = $1 AND key_id = $2::uuid AND day >= DATE '1970-01-01' + $3::int AND day < DATE '1970-01-01' + $4::int`
	queryRetired = `
		SELECT ean, uuid_send(key_id) FROM key_tombstone
		WHERE sequence IS NULL AND deleted_at <= clock_timestamp() - $2 * INTERVAL '1 microsecond' AND ($1::bigint = 0 OR ean = $1)
		ORDER BY deleted_at LIMIT $3`

	countPage = 16384 // blocks of one statement; 128 MB, about a million data keys
)

// NewCustodian connects as kluis_custodian.
func NewCustodian(ctx context.Context, c Config) (*Custodian, error) {
	s, err := open(ctx, c, roleCustodian)
	if err != nil {
		return nil, err
	}
	k := &Custodian{store: *s}
	err = k.prepare(ctx, map[**sqlx.Stmt]string{&k.feed: queryFeed, &k.scan: queryScan, &k.blocks: queryUnder, &k.identities: queryIdentitiesUnder})
	if err != nil {
		return nil, err
	}
	return k, nil
}

// ControlEntry is one entry of the control feed with the head that was signed
// when it was appended.
type ControlEntry struct {
	Sequence    uint64
	Entry, Head []byte
}

// Feed returns the entries after a sequence, ascending, at most limit.
func (c *Custodian) Feed(ctx context.Context, after uint64, limit int) ([]ControlEntry, error) {
	const op = "control feed"
	if after > 1<<62 {
		return nil, nil
	}
	rows, err := c.feed.QueryxContext(ctx, int64(after), limit)
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	defer rows.Close()
	var out []ControlEntry
	for rows.Next() {
		var e ControlEntry
		if err := rows.Scan(&e.Sequence, &e.Entry, &e.Head); err != nil {
			return nil, wrap(ctx, op, err)
		}
		out = append(out, e)
	}
	return out, wrap(ctx, op, rows.Err())
}

// Append stores an entry of the feed. ErrConflict: there is one of its sequence.
func (c *Custodian) Append(ctx context.Context, e ControlEntry) error {
	return c.transact(ctx, "append to the control feed", func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, execEntry, int64(e.Sequence), e.Entry, e.Head)
		return err
	})
}

// Heartbeat replaces the newest head kept.
func (c *Custodian) Heartbeat(ctx context.Context, head []byte) error {
	return c.transact(ctx, "control heartbeat", func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, execBeat, head)
		return err
	})
}

// LastHeartbeat is the newest head kept; nil when there is none.
func (c *Custodian) LastHeartbeat(ctx context.Context) ([]byte, error) {
	var b []byte
	err := c.db.GetContext(ctx, &b, `SELECT head FROM control_heartbeat`)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return b, wrap(ctx, "control heartbeat", err)
}

// KeySelection says which data keys; zero fields do not narrow it.
type KeySelection struct {
	EAN          meter.EAN
	Occupancy    *meter.Day
	Before       meter.Month // of readings of months before this one
	NotEpoch     uint32
	MintedBefore time.Time // stored before
}

// Place is a place in the data keys, in the order of EAN and id. Its EAN is
// whatever the column holds.
type Place struct {
	EAN int64
	ID  [16]byte
}

// KeyRef names a data key.
type KeyRef struct {
	EAN meter.EAN
	ID  [16]byte
}

var highestID = [16]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Scan looks at up to limit data keys after a place and returns those that are
// selected, ascending, with the place it came to; nil: to the end. A row with
// an EAN that is none comes with the zero EAN.
func (c *Custodian) Scan(ctx context.Context, s KeySelection, after Place, limit int) ([]envelope.KeyRecord, *Place, error) {
	const op = "scan data keys"
	end, minted := int64(1<<63-1), int64(0)
	var occupancy sql.NullInt64
	if after == (Place{}) {
		after.EAN = -1 << 63
	}
	if s.EAN != (meter.EAN{}) {
		end = s.EAN.Int64()
		if after.EAN < end {
			after = Place{EAN: end - 1, ID: highestID}
		}
	}
	if s.Occupancy != nil {
		occupancy = sql.NullInt64{Int64: int64(*s.Occupancy), Valid: true}
	}
	if !s.MintedBefore.IsZero() {
		minted = s.MintedBefore.UnixMicro()
	}
	rows, err := c.scan.QueryxContext(ctx, after.EAN, uuid.UUID(after.ID).String(), limit, end,
		occupancy, int64(s.Before), int64(s.NotEpoch), minted)
	if err != nil {
		return nil, nil, wrap(ctx, op, err)
	}
	defer rows.Close()
	var keys []envelope.KeyRecord
	var place *Place
	for rows.Next() {
		var (
			k                                   envelope.KeyRecord
			ean, class, month, occupancy, epoch int64
			id, mac                             sql.RawBytes
			selected, last                      bool
		)
		if err := rows.Scan(&ean, &id, &class, &month, &occupancy, &epoch, &k.Wrapped, &mac, &selected, &last); err != nil {
			return nil, nil, wrap(ctx, op, err)
		}
		k.EAN, _ = meter.EANFromInt64(ean)
		if class > 0 && class <= 0xff {
			k.Class = meter.Class(class)
		}
		k.Month, k.Occupancy, k.Epoch = meter.Month(month), meter.Day(occupancy), uint32(epoch)
		copy(k.ID[:], id)
		copy(k.MAC[:], mac)
		if selected {
			keys = append(keys, k)
		}
		if last {
			place = &Place{EAN: ean, ID: k.ID}
		}
	}
	if err := rows.Err(); err != nil {
		return nil, nil, wrap(ctx, op, err)
	}
	return keys, place, nil
}

// ReplaceWrapped replaces epoch, wrapped form and MAC where the record is still
// the old one, and says of how many.
func (c *Custodian) ReplaceWrapped(ctx context.Context, old, new []envelope.KeyRecord) (int, error) {
	const op = "replace wrapped keys"
	if len(old) != len(new) {
		return 0, fmt.Errorf("postgres: %s: %d old and %d new", op, len(old), len(new))
	}
	n := len(old)
	if n == 0 {
		return 0, nil
	}
	ean, id := make([]int64, n), make([]string, n)
	wasEpoch, epoch := make([]int64, n), make([]int64, n)
	wasWrapped, wrapped, wasMAC, mac := make([][]byte, n), make([][]byte, n), make([][]byte, n), make([][]byte, n)
	for i := range old {
		if old[i].ID != new[i].ID || old[i].EAN != new[i].EAN {
			return 0, fmt.Errorf("postgres: %s: not the same keys", op)
		}
		ean[i], id[i] = old[i].EAN.Int64(), uuid.UUID(old[i].ID).String()
		wasEpoch[i], wasWrapped[i], wasMAC[i] = int64(old[i].Epoch), old[i].Wrapped, old[i].MAC[:]
		epoch[i], wrapped[i], mac[i] = int64(new[i].Epoch), new[i].Wrapped, new[i].MAC[:]
	}
	var replaced int64
	err := c.transact(ctx, op, func(ctx context.Context, tx *sqlx.Tx) error {
		res, err := tx.ExecContext(ctx, execRewrapped, pq.Array(ean), pq.Array(id), pq.Array(wasEpoch), pq.Array(wasWrapped), pq.Array(wasMAC),
			pq.Array(epoch), pq.Array(wrapped), pq.Array(mac))
		if err != nil {
			return err
		}
		replaced, err = res.RowsAffected()
		return err
	})
	return int(replaced), err
}

// DeleteKeys deletes data keys, blanks the content MACs of what is sealed under
// them, removes the blind index of those identities, and leaves a tombstone of each that names the feed's entry; one
// of a key that was replaced before names it from now on too. It says how many
// were deleted. While it works nothing is stored of their metering points.
func (c *Custodian) DeleteKeys(ctx context.Context, keys []KeyRef, sequence uint64) (int, error) {
	if len(keys) == 0 {
		return 0, nil
	}
	ean, id := make([]int64, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		ean[i], id[i] = k.EAN.Int64(), uuid.UUID(k.ID).String()
	}
	points := slices.Clone(ean)
	slices.Sort(points)
	points = slices.Compact(points)
	deleted := 0
	err := c.transact(ctx, "delete data keys", func(ctx context.Context, tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, execLock, pq.Array(points)); err != nil {
			return err
		}
		rows, err := tx.QueryxContext(ctx, queryDelete, pq.Array(ean), pq.Array(id), int64(sequence))
		if err != nil {
			return err
		}
		var gone keyDays
		if err := gone.read(rows); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, execNamed, pq.Array(ean), pq.Array(id), int64(sequence)); err != nil {
			return err
		}
		if deleted = len(gone.ean); deleted == 0 {
			return nil
		}
		for _, statement := range []string{execBlankIdentities, execUnindex} {
			if _, err := tx.ExecContext(ctx, statement, pq.Array(gone.ean), pq.Array(gone.id)); err != nil {
				return err
			}
		}
		_, err = tx.ExecContext(ctx, execBlank, pq.Array(gone.ean), pq.Array(gone.id), pq.Array(gone.from), pq.Array(gone.to),
			slices.Min(gone.from), slices.Max(gone.to))
		return err
	})
	if err != nil {
		return 0, err
	}
	return deleted, nil
}

// keyDays are keys with the days they cover.
type keyDays struct {
	ean, from, to []int64
	id            []string
}

func (k *keyDays) read(rows *sqlx.Rows) error {
	defer rows.Close()
	for rows.Next() {
		var ean, month int64
		var b sql.RawBytes
		if err := rows.Scan(&ean, &b, &month); err != nil {
			return err
		}
		var id uuid.UUID
		copy(id[:], b)
		from, to := daysOf(meter.Month(month))
		k.ean, k.id, k.from, k.to = append(k.ean, ean), append(k.id, id.String()), append(k.from, from), append(k.to, to)
	}
	return rows.Err()
}

func daysOf(m meter.Month) (from, to int64) { return int64(m.First()), int64((m + 1).First()) }

// BlocksUnder returns the blocks, or identities, sealed under a key, all versions.
func (c *Custodian) BlocksUnder(ctx context.Context, key envelope.KeyRecord) ([]envelope.SealedBlock, error) {
	const op = "blocks under a key"
	st, args := c.blocks, []any{key.EAN.Int64(), uuid.UUID(key.ID).String()}
	if key.Class == meter.Identity {
		st = c.identities
	} else {
		from, to := daysOf(key.Month)
		args = append(args, from, to)
	}
	rows, err := st.QueryxContext(ctx, args...)
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	defer rows.Close()
	var out []envelope.SealedBlock
	for rows.Next() {
		var b envelope.SealedBlock
		var field, day, version, resolution int64
		if err := rows.Scan(&field, &day, &version, &resolution, &b.Ciphertext); err != nil {
			return nil, wrap(ctx, op, err)
		}
		b.Field, b.Day, b.Version, b.Resolution = meter.FieldCode(field), meter.Day(day), uint32(version), resolutionOf(resolution)
		out = append(out, b)
	}
	return out, wrap(ctx, op, rows.Err())
}

// ReplaceDataKey puts new in the place of old, and the ciphertexts of blocks in
// the place of those sealed under old. ErrConflict: these are not all there
// are; ErrGone: old is not there any more. While it works nothing is stored of
// the metering point, and what was sealed under old before and is stored after
// is refused (Ingest.Commit).
func (c *Custodian) ReplaceDataKey(ctx context.Context, old, new envelope.KeyRecord, blocks []envelope.SealedBlock) error {
	const op = "replace a data key"
	if old.EAN != new.EAN || old.Class != new.Class || old.Month != new.Month || old.Occupancy != new.Occupancy || old.ID == new.ID {
		return fmt.Errorf("postgres: %s: the new key is not for the same blocks", op)
	}
	ean, was, is := old.EAN.Int64(), uuid.UUID(old.ID).String(), uuid.UUID(new.ID).String()
	from, to := daysOf(old.Month)
	n := len(blocks)
	field, day, version, ciphertext := make([]int64, n), make([]int64, n), make([]int64, n), make([][]byte, n)
	for i, b := range blocks {
		field[i], day[i], version[i], ciphertext[i] = int64(b.Field), int64(b.Day), int64(b.Version), b.Ciphertext
	}
	return c.transact(ctx, op, func(ctx context.Context, tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, execLock, pq.Array([]int64{ean})); err != nil {
			return err
		}
		var epoch int64
		switch err := tx.GetContext(ctx, &epoch, queryOneGone, ean, was); {
		case errors.Is(err, sql.ErrNoRows):
			return ErrGone
		case err != nil:
			return err
		}
		if _, err := tx.ExecContext(ctx, execRetired, ean, was, epoch); err != nil {
			return err
		}
		if err := insertKeys(ctx, tx, []envelope.KeyRecord{new}); err != nil {
			return err
		}
		statement, left := execResealed, queryLeft
		bounds := []any{from, to}
		if old.Class == meter.Identity {
			statement, left, bounds = execResealedIdentities, queryIdentitiesLeft, nil
		}
		res, err := tx.ExecContext(ctx, statement, append([]any{ean, was, is, pq.Array(field), pq.Array(day), pq.Array(version), pq.Array(ciphertext)}, bounds...)...)
		if err != nil {
			return err
		}
		changed, err := res.RowsAffected()
		if err != nil {
			return err
		}
		var remain int64
		if err := tx.GetContext(ctx, &remain, left, append([]any{ean, was}, bounds...)...); err != nil {
			return err
		}
		if changed != int64(n) || remain != 0 {
			return ErrConflict
		}
		return nil
	})
}

// Retired returns up to limit keys, of one metering point or (zero) of all,
// that were replaced at least so long ago, by the database's clock, and are not
// erased yet.
func (c *Custodian) Retired(ctx context.Context, ean meter.EAN, atLeast time.Duration, limit int) ([]KeyRef, error) {
	const op = "retired data keys"
	of := int64(0)
	if ean != (meter.EAN{}) {
		of = ean.Int64()
	}
	rows, err := c.db.QueryxContext(ctx, queryRetired, of, atLeast.Microseconds(), limit)
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	defer rows.Close()
	var out []KeyRef
	for rows.Next() {
		var k KeyRef
		var ean int64
		var id sql.RawBytes
		if err := rows.Scan(&ean, &id); err != nil {
			return nil, wrap(ctx, op, err)
		}
		copy(k.ID[:], id)
		if k.EAN, err = meter.EANFromInt64(ean); err != nil {
			continue // put there by hand
		}
		out = append(out, k)
	}
	return out, wrap(ctx, op, rows.Err())
}

// KeyCount is what one KEK epoch wraps.
type KeyCount struct {
	Keys        int64
	First, Last meter.Month
}

// CountKeys counts the data keys by KEK epoch, a part of the table at a time:
// what changes meanwhile is counted as it was or as it is.
func (c *Custodian) CountKeys(ctx context.Context) (map[uint32]KeyCount, error) {
	out := map[uint32]KeyCount{}
	err := c.count(ctx, "data_key", queryCount, func(epoch uint32, n, first, last int64) {
		k, seen := out[epoch]
		if !seen || meter.Month(first) < k.First {
			k.First = meter.Month(first)
		}
		if !seen || meter.Month(last) > k.Last {
			k.Last = meter.Month(last)
		}
		k.Keys += n
		out[epoch] = k
	})
	return out, err
}

// ErasedCount is how many deleted data keys one KEK epoch wrapped.
type ErasedCount struct{ Erased, Retired int64 }

// CountErased counts the tombstones by KEK epoch, in the same way.
func (c *Custodian) CountErased(ctx context.Context) (map[uint32]ErasedCount, error) {
	out := map[uint32]ErasedCount{}
	err := c.count(ctx, "key_tombstone", queryCountErased, func(epoch uint32, n, erased, _ int64) {
		k := out[epoch]
		k.Erased += erased
		k.Retired += n - erased
		out[epoch] = k
	})
	return out, err
}

// count runs a statement for each part of a table, that it may be long and no
// statement is.
func (c *Custodian) count(ctx context.Context, table, query string, add func(epoch uint32, a, b, c int64)) error {
	op := "count " + table
	for from, size := int64(0), int64(0); ; from += countPage {
		if from >= size {
			if err := c.db.GetContext(ctx, &size, querySize, table); err != nil {
				return wrap(ctx, op, err)
			}
			if from >= size {
				return nil
			}
		}
		rows, err := c.db.QueryxContext(ctx, query, fmt.Sprintf("(%d,0)", from), fmt.Sprintf("(%d,0)", from+countPage))
		if err != nil {
			return wrap(ctx, op, err)
		}
		for rows.Next() {
			var epoch, x, y, z int64
			if err := rows.Scan(&epoch, &x, &y, &z); err != nil {
				return errors.Join(wrap(ctx, op, err), wrap(ctx, op, rows.Close()))
			}
			add(uint32(epoch), x, y, z)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return wrap(ctx, op, err)
		}
	}
}
