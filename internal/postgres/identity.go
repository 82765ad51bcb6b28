package postgres

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

const (
	// Both of one snapshot, so that a key that is being replaced is not missed.
	queryIdentities = `
		SELECT p.at, i.version, i.ciphertext, uuid_send(k.key_id), k.class, k.month, k.occupancy, k.kek_epoch, k.wrapped, k.mac
		FROM unnest($1::bigint[], $2::int[]) WITH ORDINALITY AS p (ean, day, at)
		CROSS JOIN LATERAL (
			SELECT s.version, s.key_id, s.ciphertext FROM sealed_identity s
			WHERE s.ean = p.ean AND s.day = DATE '1970-01-01' + p.day ORDER BY s.version DESC LIMIT 1
		) i
		LEFT JOIN data_key k ON k.ean = p.ean AND k.key_id = i.key_id`
	queryAddress = `SELECT DISTINCT ean FROM identity_index WHERE blind_index = $1 AND ean > $2 ORDER BY ean LIMIT $3`

	queryIdentityHeads = `
		SELECT p.at, coalesce(i.version, 0), i.content_mac, uuid_send(k.key_id), k.kek_epoch, k.wrapped, k.mac
		FROM unnest($1::bigint[], $2::int[], $3::int[]) WITH ORDINALITY AS p (ean, day, month, at)
		LEFT JOIN LATERAL (
			SELECT s.version, s.content_mac FROM sealed_identity s
			WHERE s.ean = p.ean AND s.day = DATE '1970-01-01' + p.day ORDER BY s.version DESC LIMIT 1
		) i ON true
		LEFT JOIN data_key k ON k.ean = p.ean AND k.class = $4 AND k.month = p.month AND k.occupancy = p.day`
	execIdentities = `
		INSERT INTO sealed_identity (ean, field, day, version, key_id, content_mac, ciphertext)
		SELECT ean, field, DATE '1970-01-01' + day, version, key_id, content_mac, ciphertext
		FROM unnest($1::bigint[], $2::smallint[], $3::int[], $4::int[], $5::uuid[], $6::bytea[], $7::bytea[])
		  AS i (ean, field, day, version, key_id, content_mac, ciphertext)`
	// What is there already is of an earlier version with the same address.
	execAddresses = `
		INSERT INTO identity_index (ean, day, blind_index)
		SELECT ean, DATE '1970-01-01' + day, blind_index FROM unnest($1::bigint[], $2::int[], $3::bytea[]) AS i (ean, day, blind_index)
		ON CONFLICT DO NOTHING`

	// Of keys that were deleted: whoever knows a candidate for a name could check
	// it by its MAC, and an address by its index.
	execBlankIdentities = `
		UPDATE sealed_identity i SET content_mac = decode(repeat('00', 32), 'hex')
		FROM unnest($1::bigint[], $2::uuid[]) AS r (ean, key_id)
		WHERE i.ean = r.ean AND i.key_id = r.key_id AND i.content_mac <> decode(repeat('00', 32), 'hex')`
	execUnindex = `
		DELETE FROM identity_index x USING unnest($1::bigint[], $2::uuid[]) AS r (ean, key_id), sealed_identity i
		WHERE i.ean = r.ean AND i.key_id = r.key_id AND x.ean = r.ean AND x.day = i.day`

	queryIdentitiesUnder = `
		SELECT field, day - DATE '1970-01-01', version, 0, ciphertext FROM sealed_identity
		WHERE ean = $1 AND key_id = $2::uuid ORDER BY field, day, version`
	execResealedIdentities = `
		UPDATE sealed_identity i SET key_id = $3::uuid, ciphertext = n.ciphertext
		FROM unnest($4::smallint[], $5::int[], $6::int[], $7::bytea[]) AS n (field, day, version, ciphertext)
		WHERE i.ean = $1 AND i.key_id = $2::uuid AND i.field = n.field AND i.day = DATE '1970-01-01' + n.day AND i.version = n.version`
	queryIdentitiesLeft = `SELECT count(*) FROM sealed_identity WHERE ean = $1 AND key_id = $2::uuid`
)

// maxIdentities bounds what is asked about at once.
const maxIdentities = 1000

// IdentityAt says whose identity: that of the customer of a metering point whose
// occupancy begins on the day.
type IdentityAt struct {
	EAN meter.EAN
	Day meter.Day
}

func identityColumns(at []IdentityAt) (eans, days []int64) {
	for _, a := range at {
		eans, days = append(eans, a.EAN.Int64()), append(days, int64(a.Day))
	}
	return eans, days
}

// Identities returns the newest version of each identity with the record of its
// data key, in the order asked for; nil for one that is not stored.
func (g *Gateway) Identities(ctx context.Context, at []IdentityAt) ([]*envelope.SealedIdentity, error) {
	const op = "identities"
	out := make([]*envelope.SealedIdentity, len(at))
	if len(at) == 0 {
		return out, nil
	}
	if len(at) > maxIdentities {
		return nil, fmt.Errorf("postgres: %s: %w", op, errTooMany)
	}
	eans, days := identityColumns(at)
	rows, err := g.identities.QueryxContext(ctx, pq.Array(eans), pq.Array(days))
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	defer rows.Close()
	for rows.Next() {
		var (
			n, version                     int64
			class, month, occupancy, epoch sql.NullInt64
			ciphertext, id, wrapped, mac   []byte
		)
		if err := rows.Scan(&n, &version, &ciphertext, &id, &class, &month, &occupancy, &epoch, &wrapped, &mac); err != nil {
			return nil, wrap(ctx, op, err)
		}
		if n < 1 || n > int64(len(at)) {
			return nil, fmt.Errorf("postgres: %s: a row of none that was asked for", op)
		}
		a := at[n-1]
		i := &envelope.SealedIdentity{Day: a.Day, Version: uint32(version), Ciphertext: ciphertext}
		if len(id) == 16 {
			i.Key = envelope.KeyRecord{
				ID: [16]byte(id), EAN: a.EAN, Month: meter.Month(month.Int64), Occupancy: meter.Day(occupancy.Int64), Epoch: uint32(epoch.Int64), Wrapped: wrapped,
			}
			if class.Int64 > 0 && class.Int64 <= 0xff {
				i.Key.Class = meter.Class(class.Int64)
			}
			copy(i.Key.MAC[:], mac)
		}
		out[n-1] = i
	}
	return out, wrap(ctx, op, rows.Err())
}

// AtAddress lists the metering points, above after, ascending, whose present or
// former address has a blind index. That is no evidence: what is opened may be.
func (g *Gateway) AtAddress(ctx context.Context, blindIndex [32]byte, after meter.EAN, limit int) ([]meter.EAN, error) {
	const op = "metering points at an address"
	rows, err := g.address.QueryxContext(ctx, blindIndex[:], after.Int64(), limit)
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	defer rows.Close()
	var out []meter.EAN
	for rows.Next() {
		var n int64
		if err := rows.Scan(&n); err != nil {
			return nil, wrap(ctx, op, err)
		}
		if ean, err := meter.EANFromInt64(n); err == nil { // else put there by hand
			out = append(out, ean)
		}
	}
	return out, wrap(ctx, op, rows.Err())
}

// IdentityHead is what can be seen of the newest version of an identity.
type IdentityHead struct {
	Version    uint32              // 0: none is stored
	ContentMAC [32]byte            // of that version
	Key        *envelope.KeyRecord // to seal the next one under; nil: there is none
}

// IdentityHeads returns the newest version of each identity, and the data key for
// the next, in the order asked for.
func (i *Ingest) IdentityHeads(ctx context.Context, at []IdentityAt) ([]IdentityHead, error) {
	const op = "identity heads"
	out := make([]IdentityHead, len(at))
	if len(at) == 0 {
		return out, nil
	}
	if len(at) > maxIdentities {
		return nil, fmt.Errorf("postgres: %s: %w", op, errTooMany)
	}
	eans, days := identityColumns(at)
	months := make([]int64, len(at))
	for n, a := range at {
		months[n] = int64(a.Day.Month())
	}
	rows, err := i.identities.QueryxContext(ctx, pq.Array(eans), pq.Array(days), pq.Array(months), int64(meter.Identity))
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	defer rows.Close()
	for rows.Next() {
		var (
			n, version              int64
			epoch                   sql.NullInt64
			content, id, wrapped, m []byte
		)
		if err := rows.Scan(&n, &version, &content, &id, &epoch, &wrapped, &m); err != nil {
			return nil, wrap(ctx, op, err)
		}
		if n < 1 || n > int64(len(at)) {
			return nil, fmt.Errorf("postgres: %s: a row of none that was asked for", op)
		}
		a, h := at[n-1], &out[n-1]
		h.Version = uint32(version)
		copy(h.ContentMAC[:], content)
		if len(id) == 16 {
			h.Key = &envelope.KeyRecord{
				ID: [16]byte(id), EAN: a.EAN, Class: meter.Identity, Month: a.Day.Month(), Occupancy: a.Day, Epoch: uint32(epoch.Int64), Wrapped: wrapped,
			}
			copy(h.Key.MAC[:], m)
		}
	}
	return out, wrap(ctx, op, rows.Err())
}

// IdentityRow is a sealed identity to be stored.
type IdentityRow struct {
	EAN        meter.EAN
	Field      meter.FieldCode
	Day        meter.Day
	Version    uint32
	KeyID      [16]byte
	ContentMAC [32]byte
	Ciphertext []byte
	BlindIndex [32]byte
}

// CommitIdentities stores identities and new data keys for them, all or nothing.
// The errors are those of Commit.
func (i *Ingest) CommitIdentities(ctx context.Context, keys []envelope.KeyRecord, rows []IdentityRow) error {
	n := len(rows)
	if n == 0 {
		return nil
	}
	ean, field, day, version := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
	key, mac, ciphertext, index := make([]string, n), make([][]byte, n), make([][]byte, n), make([][]byte, n)
	under := make([]Row, n)
	for at, r := range rows {
		ean[at], field[at], day[at], version[at] = r.EAN.Int64(), int64(r.Field), int64(r.Day), int64(r.Version)
		key[at], mac[at], ciphertext[at], index[at] = uuid.UUID(r.KeyID).String(), r.ContentMAC[:], r.Ciphertext, r.BlindIndex[:]
		under[at] = Row{EAN: r.EAN, KeyID: r.KeyID}
	}
	points := slices.Clone(ean)
	slices.Sort(points)
	points = slices.Compact(points)
	return i.transact(ctx, "store identities", func(ctx context.Context, tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, execLock, pq.Array(points)); err != nil {
			return err
		}
		if err := insertKeys(ctx, tx, keys); err != nil {
			return err
		}
		if err := keysThere(ctx, tx, under); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, execIdentities, pq.Array(ean), pq.Array(field), pq.Array(day), pq.Array(version), pq.Array(key), pq.Array(mac), pq.Array(ciphertext)); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, execAddresses, pq.Array(ean), pq.Array(day), pq.Array(index))
		return err
	})
}
