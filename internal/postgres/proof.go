package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"golang.org/x/mod/sumdb/tlog"

	"kluis/authz"
	"kluis/meter"
)

const (
	queryLogRow  = `SELECT recorded_at, record, receipt FROM access_log WHERE ean = $1 AND interaction_id = $2::uuid`
	queryLogLeaf = `SELECT leaf_index, salt FROM access_leaf($1, $2::uuid)`
	queryHashes  = `SELECT k.at, h.hash FROM unnest($1::bigint[]) WITH ORDINALITY AS k (index, at) JOIN audit_hash h ON h.index = k.index`
)

// proofStatements are what one record of the access log is proven with.
type proofStatements struct{ row, leaf, hashes *sqlx.Stmt }

func (p *proofStatements) all() map[**sqlx.Stmt]string {
	return map[**sqlx.Stmt]string{&p.row: queryLogRow, &p.leaf: queryLogLeaf, &p.hashes: queryHashes}
}

// LogEntry returns the row of an interaction in a metering point's access log;
// nil when there is none.
func (g *Gateway) LogEntry(ctx context.Context, ean meter.EAN, interaction [16]byte) (*LogRow, error) {
	r := LogRow{Place: LogPlace{Interaction: interaction}}
	err := g.proofs.row.QueryRowxContext(ctx, ean.Int64(), uuid.UUID(interaction).String()).Scan(&r.Place.At, &r.Record, &r.Receipt)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	} else if err != nil {
		return nil, wrap(ctx, "entry of the access log", err)
	}
	r.Place.At = r.Place.At.UTC()
	return &r, nil
}

// LogLeaf returns where the row of an interaction is in the audit log, and its
// salt; no salt when it is not there.
func (g *Gateway) LogLeaf(ctx context.Context, ean meter.EAN, interaction [16]byte) (index int64, salt []byte, _ error) {
	err := g.proofs.leaf.QueryRowxContext(ctx, ean.Int64(), uuid.UUID(interaction).String()).Scan(&index, &salt)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil, nil
	}
	return index, salt, wrap(ctx, "leaf of an access record", err)
}

// Hashes returns stored hashes of the audit log's tree, as asked, in order;
// ErrNoHash.
func (g *Gateway) Hashes(ctx context.Context, indexes []int64) ([]tlog.Hash, error) {
	const op = "hashes"
	rows, err := g.proofs.hashes.QueryxContext(ctx, pq.Array(indexes))
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	defer rows.Close()
	out, found := make([]tlog.Hash, len(indexes)), 0
	for rows.Next() {
		var at int
		var b []byte
		if err := rows.Scan(&at, &b); err != nil {
			return nil, wrap(ctx, op, err)
		}
		copy(out[at-1][:], b)
		found++
	}
	if err := rows.Err(); err != nil {
		return nil, wrap(ctx, op, err)
	}
	if found != len(indexes) {
		return nil, fmt.Errorf("postgres: %s: %w", op, ErrNoHash)
	}
	return out, nil
}

// Inventory says which days of its fields are stored and can be opened, without
// fetching any.
func (g *Gateway) Inventory(ctx context.Context, i authz.Inventory) ([]StoredRun, error) {
	sets := make(map[meter.FieldCode][]meter.DayRange)
	for _, f := range i.Fields() {
		sets[f] = []meter.DayRange{i.Days()}
	}
	return g.storedDays(ctx, i.EAN(), sets)
}
