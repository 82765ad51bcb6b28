package postgres

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"kluis/meter"
)

const (
	// No conflict target: the gateway need not be able to read the table.
	execProfile = `INSERT INTO market_profile (digest, profile) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	// Instants leave as microseconds.
	queryProfile = `SELECT profile, (extract(epoch FROM first_used_at) * 1000000)::bigint FROM market_profile WHERE digest = $1`

	queryLegalFiles = `SELECT file FROM legal_file WHERE ean = $1 AND version >= $2 ORDER BY version LIMIT $3`
)

// KeepProfile stores the bytes of the market profile that this gateway decides
// by, under their SHA-256. Those that are there already stay.
func (g *Gateway) KeepProfile(ctx context.Context, yaml []byte) error {
	const op = "market profile"
	digest := sha256.Sum256(yaml)
	err := g.confirmed(ctx, func() error {
		_, err := g.db.ExecContext(ctx, execProfile, digest[:], yaml)
		return err
	})
	return wrap(ctx, op, err)
}

// Profile returns the stored bytes of a market profile, and when it was first
// used; nil when there are none. The caller checks the digest.
func (a *Auditor) Profile(ctx context.Context, digest [32]byte) (yaml []byte, firstUsed time.Time, err error) {
	var at int64
	err = a.db.QueryRowxContext(ctx, queryProfile, digest[:]).Scan(&yaml, &at)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, time.Time{}, nil
	}
	if err != nil {
		return nil, time.Time{}, wrap(ctx, "market profile", err)
	}
	return yaml, time.UnixMicro(at).UTC(), nil
}

// LegalFiles returns sealed versions of a metering point's legal file from one
// on, ascending, those that are there, at most limit.
func (a *Auditor) LegalFiles(ctx context.Context, ean meter.EAN, from uint64, limit int) ([][]byte, error) {
	var out [][]byte
	err := a.each(ctx, "legal files", queryLegalFiles, func(r *sqlx.Rows) error {
		var b []byte
		err := r.Scan(&b)
		out = append(out, b)
		return err
	}, ean.Int64(), int64(from), limit)
	return out, err
}

// Supplier returns the current sealed record of a supplier; nil when there is
// none.
func (a *Auditor) Supplier(ctx context.Context, gln meter.GLN) ([]byte, error) {
	var b []byte
	err := a.db.GetContext(ctx, &b, querySupplier, gln.Int64())
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return b, wrap(ctx, "supplier", err)
}
