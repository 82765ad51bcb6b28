package postgres

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"kluis/auditlog/leaf"
	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
)

const (
	// One descent of the primary key per supplier, however many versions there are.
	queryRegister = `
		WITH RECURSIVE party AS (
			(SELECT gln FROM supplier ORDER BY gln LIMIT 1)
			UNION ALL
			SELECT n.gln FROM party p CROSS JOIN LATERAL (SELECT gln FROM supplier WHERE supplier.gln > p.gln ORDER BY gln LIMIT 1) n
		)
		SELECT p.gln, s.version, s.record FROM party p
		CROSS JOIN LATERAL (SELECT version, record FROM supplier WHERE supplier.gln = p.gln ORDER BY version DESC LIMIT 1) s
		ORDER BY p.gln`
	queryRegistered = `SELECT version, record FROM supplier WHERE gln = $1 ORDER BY version DESC LIMIT 1`
	// Of suppliers; what employees did stands under their names.
	queryUsage = `
		SELECT p.gln, coalesce(t.requests, 0), coalesce(t.given, 0), coalesce(t.refused, 0), coalesce(t.failed, 0), l.at
		FROM unnest($1::bigint[]) AS p (gln)
		LEFT JOIN LATERAL (
			SELECT sum(requests)::bigint AS requests, sum(given)::bigint AS given, sum(refused)::bigint AS refused, sum(failed)::bigint AS failed
			FROM access_hour h WHERE h.gln = p.gln AND h.employee = '' AND h.at >= $2
		) t ON true
		LEFT JOIN LATERAL (
			SELECT (extract(epoch FROM last_at) * 1000000)::bigint AS at FROM access_hour h
			WHERE h.gln = p.gln AND h.employee = '' ORDER BY h.at DESC LIMIT 1
		) l ON true`
	queryHead = `SELECT size, note FROM audit_checkpoint ORDER BY size DESC LIMIT 1`
)

// StoredSupplier is the newest row of a supplier's record. What the row says
// counts only if it agrees with what is sealed.
type StoredSupplier struct {
	GLN     meter.GLN
	Version uint64
	Sealed  []byte
}

// Register returns the newest record of every supplier, by GLN.
func (g *Gateway) Register(ctx context.Context) ([]StoredSupplier, error) {
	const op = "register"
	rows, err := g.register.QueryxContext(ctx)
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	defer rows.Close()
	var out []StoredSupplier
	for rows.Next() {
		var n, version int64
		var s StoredSupplier
		if err := rows.Scan(&n, &version, &s.Sealed); err != nil {
			return nil, wrap(ctx, op, err)
		}
		s.Version = uint64(version)
		// What is no GLN was put there by hand, and nobody can call as it.
		if s.GLN, err = meter.GLNFromInt64(n); err == nil {
			out = append(out, s)
		}
	}
	return out, wrap(ctx, op, rows.Err())
}

// Registered returns the newest record of one supplier; nil when there is none.
func (g *Gateway) Registered(ctx context.Context, gln meter.GLN) (*StoredSupplier, error) {
	s := StoredSupplier{GLN: gln}
	var version int64
	err := g.registered.QueryRowxContext(ctx, gln.Int64()).Scan(&version, &s.Sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	s.Version = uint64(version)
	return &s, wrap(ctx, "supplier", err)
}

// StoreSupplier adds a version of a supplier record, which sealed is of, and the
// access record of who had it made: both or, after an error, neither. Only after
// ErrUnavailable and a context's end it is not known which.
//
// ErrConflict: the version, or a record of the interaction, is there already.
func (g *Gateway) StoreSupplier(ctx context.Context, s *authz.Supplier, sealed []byte, r audit.Record) error {
	args, err := recordArgs(r)
	if err != nil {
		return err
	}
	return g.transact(ctx, "store supplier", func(ctx context.Context, tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, execSupplier, s.GLN().Int64(), int64(s.Version()), sealed, s.SealedAt().UnixMicro()); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, queryRecord, args...)
		return err
	})
}

// Usage is what a supplier asked for since a time, as the auditor's daemon has
// counted so far.
type Usage struct {
	Requests, Given, Refused, Failed int64
	LastAt                           time.Time // of the newest record, however old; zero: none is known
}

// Usage returns what each supplier asked for since a time.
func (g *Gateway) Usage(ctx context.Context, glns []meter.GLN, since time.Time) (map[meter.GLN]Usage, error) {
	const op = "usage"
	rows, err := g.usage.QueryxContext(ctx, pq.Array(numbers(glns)), since)
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	defer rows.Close()
	out := make(map[meter.GLN]Usage, len(glns))
	for rows.Next() {
		var n int64
		var u Usage
		var last sql.NullInt64
		if err := rows.Scan(&n, &u.Requests, &u.Given, &u.Refused, &u.Failed, &last); err != nil {
			return nil, wrap(ctx, op, err)
		}
		if last.Valid {
			u.LastAt = time.UnixMicro(last.Int64).UTC()
		}
		if gln, err := meter.GLNFromInt64(n); err == nil {
			out[gln] = u
		}
	}
	return out, wrap(ctx, op, rows.Err())
}

// LogHead returns the newest signed head of the audit log, unverified; nil when
// there is none.
func (g *Gateway) LogHead(ctx context.Context) (size int64, note []byte, _ error) {
	err := g.head.QueryRowxContext(ctx).Scan(&size, &note)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil, nil
	}
	return size, note, wrap(ctx, "head of the audit log", err)
}

// SuppliersAfter returns supplier records after a version of a supplier, ordered
// by supplier and version, at most limit.
func (a *Auditor) SuppliersAfter(ctx context.Context, gln, version int64, limit int) ([]leaf.Row, error) {
	var out []leaf.Row
	err := a.each(ctx, "supplier records", `
		SELECT gln, version, record FROM supplier WHERE (gln, version) > ($1::bigint, $2::bigint) ORDER BY gln, version LIMIT $3`,
		func(r *sqlx.Rows) error {
			row := leaf.Row{Key: leaf.Key{Kind: leaf.Supplier}}
			err := r.Scan(&row.Number, &row.Version, &row.Content)
			out = append(out, row)
			return err
		}, gln, version, limit)
	return out, err
}
