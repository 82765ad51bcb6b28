package postgres

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"

	"kluis/meter"
)

// logBytes bounds what one call of AccessLog returns, unless it is one row: a
// batch of records as they are takes less.
const logBytes = 4 << 20

const (
	// One walk along access_log_by_time, from a place on. Rows of one moment
	// follow each other by interaction, upwards: those up to the place are
	// passed over. Sizes are looked at before anything is fetched: that of a
	// value that is stored apart is known without reading it.
	queryAccessLog = `
		SELECT recorded_at, uuid_send(interaction_id), record, receipt, rows
		FROM (
			SELECT *, row_number() OVER w AS n, count(*) OVER () AS rows, sum(octet_length(record) + octet_length(receipt)) OVER w AS bytes
			FROM (
				SELECT recorded_at, interaction_id, record, receipt
				FROM access_log
				WHERE ean = $1 AND recorded_at <= $2 AND recorded_at >= $4
				  AND (recorded_at < $2 OR interaction_id > $3::uuid)
				ORDER BY recorded_at DESC, interaction_id
				LIMIT $5::bigint + 1
			) walk
			WINDOW w AS (ORDER BY recorded_at DESC, interaction_id ROWS UNBOUNDED PRECEDING)
		) sized
		WHERE n = 1 OR n <= $5 AND bytes <= $6
		ORDER BY recorded_at DESC, interaction_id`
	querySuppliers = `
		SELECT g.gln, s.record FROM unnest($1::bigint[]) AS g (gln)
		CROSS JOIN LATERAL (SELECT record FROM supplier WHERE supplier.gln = g.gln ORDER BY version DESC LIMIT 1) s`
)

// LogPlace is a place between the rows of a metering point in the access log:
// after the row of an interaction, recorded at a time (UTC, microseconds). With
// a zero Interaction it is before all rows of that time.
type LogPlace struct {
	At          time.Time
	Interaction [16]byte
}

// LogRow is a row of the access log as it is stored: whether record and receipt
// are what they should be is for whoever reads them to find out.
type LogRow struct {
	Place           LogPlace
	Record, Receipt []byte
}

// AccessLog returns at most limit rows of a metering point, latest first: those
// that follow a place, and were recorded at since or later; and whether there
// are more. Of large rows it returns fewer, but one at least if there is any: no
// more than 4 MiB, or one row. Its cost is that of the rows it returns, however
// long the log is.
//
// A row shows as soon as it is committed, at the time its transaction began:
// one that is being written may come to lie a moment before rows that were
// returned already.
func (g *Gateway) AccessLog(ctx context.Context, ean meter.EAN, after LogPlace, since time.Time, limit int) (_ []LogRow, more bool, _ error) {
	const op = "access log"
	rows, err := g.accessLog.QueryxContext(ctx, ean.Int64(), after.At, uuid.UUID(after.Interaction).String(), since, limit, logBytes)
	if err != nil {
		return nil, false, wrap(ctx, op, err)
	}
	defer rows.Close()
	var out []LogRow
	found := 0
	for rows.Next() {
		var r LogRow
		var id []byte
		if err := rows.Scan(&r.Place.At, &id, &r.Record, &r.Receipt, &found); err != nil {
			return nil, false, wrap(ctx, op, err)
		}
		r.Place.At = r.Place.At.UTC()
		copy(r.Place.Interaction[:], id)
		out = append(out, r)
	}
	return out, len(out) < found, wrap(ctx, op, rows.Err())
}

// Suppliers returns the current sealed records of parties; of who has none,
// none.
func (g *Gateway) Suppliers(ctx context.Context, glns []meter.GLN) (map[meter.GLN][]byte, error) {
	const op = "suppliers"
	rows, err := g.suppliers.QueryxContext(ctx, pq.Array(numbers(glns)))
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	defer rows.Close()
	out := make(map[meter.GLN][]byte, len(glns))
	for rows.Next() {
		var n int64
		var record []byte
		if err := rows.Scan(&n, &record); err != nil {
			return nil, wrap(ctx, op, err)
		}
		if gln, err := meter.GLNFromInt64(n); err == nil {
			out[gln] = record
		}
	}
	return out, wrap(ctx, op, rows.Err())
}
