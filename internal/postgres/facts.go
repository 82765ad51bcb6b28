package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// factBytes bounds what one page of facts holds, unless it is one fact. A fact
// has a megabyte at most, and the version before it another.
const factBytes = 16 << 20

// FactKind says which sealed facts.
type FactKind uint8

// The kinds there are.
const (
	LegalFiles      FactKind = 1
	SupplierRecords FactKind = 2
)

// FactPlace is a place in the facts of a kind: in the order in which they were
// stored (NewFacts), or of subject and version alone (AllFacts).
type FactPlace struct {
	Arrived uint64 // transaction
	Subject int64  // EAN or GLN, whatever the column holds
	Version int64
}

// Fact is a stored fact, and of NewFacts and NewestFacts the version before it,
// if that is there.
type Fact struct {
	Place            FactPlace
	Sealed, Previous []byte
}

const (
	// Every transaction before it has ended, so that nothing can come to be
	// stored in one any more.
	queryFactHorizon = `SELECT pg_snapshot_xmin(pg_current_snapshot())::text`

	// Table, subject, fact. The previous version costs one look-up by key. Sizes
	// are looked at before anything is fetched: that of a value that is stored
	// apart is known without reading it.
	queryNewFacts = `
		SELECT f.arrived, f.%[2]s AS subject, f.version, f.%[3]s AS fact,
		       (SELECT p.%[3]s FROM %[1]s p WHERE p.%[2]s = f.%[2]s AND p.version = f.version - 1) AS previous
		FROM %[1]s f
		WHERE (f.arrived, f.%[2]s, f.version) > ($1::text::xid8, $2::bigint, $3::bigint)
		ORDER BY f.arrived, f.%[2]s, f.version LIMIT $4`
	queryAllFacts = `
		SELECT arrived, %[2]s AS subject, version, %[3]s AS fact, NULL::bytea AS previous
		FROM %[1]s
		WHERE (%[2]s, version) > ($2::bigint, $3::bigint) AND $1::text IS NOT NULL
		ORDER BY %[2]s, version LIMIT $4`
	queryNewestFacts = `
		SELECT f.arrived, s.subject, f.version, f.fact,
		       (SELECT p.%[3]s FROM %[1]s p WHERE p.%[2]s = s.subject AND p.version = f.version - 1) AS previous
		FROM unnest($1::bigint[]) WITH ORDINALITY AS s (subject, n)
		LEFT JOIN LATERAL (SELECT arrived, version, %[3]s AS fact FROM %[1]s n WHERE n.%[2]s = s.subject ORDER BY version DESC LIMIT 1) f ON true
		ORDER BY s.n LIMIT $2`
	// queryPage is of a query above what one page holds; %[1]s, %[2]s.
	queryPage = `
		SELECT coalesce(arrived::text, '0'), subject, coalesce(version, 0), fact, previous FROM (
			SELECT *, row_number() OVER () AS n, sum(coalesce(octet_length(fact), 0) + coalesce(octet_length(previous), 0)) OVER (ROWS UNBOUNDED PRECEDING) AS bytes
			FROM (%[1]s) page
		) sized WHERE n = 1 OR bytes <= %[2]d ORDER BY n`

	queryMark = `SELECT arrived::text FROM fact_mark`
	execMark  = `INSERT INTO fact_mark (arrived) VALUES ($1::text::xid8) ON CONFLICT (one) DO UPDATE SET arrived = EXCLUDED.arrived`
)

func (k FactKind) query(q string) (string, error) {
	switch k {
	case LegalFiles:
		return fmt.Sprintf(q, "legal_file", "ean", "file"), nil
	case SupplierRecords:
		return fmt.Sprintf(q, "supplier", "gln", "record"), nil
	}
	return "", errors.New("postgres: no kind of facts")
}

// FactHorizon is the oldest transaction that may still store something.
func (c *Custodian) FactHorizon(ctx context.Context) (uint64, error) {
	const op = "horizon of the facts"
	var s string
	if err := c.db.GetContext(ctx, &s, queryFactHorizon); err != nil {
		return 0, wrap(ctx, op, err)
	}
	return parseXID(op, s)
}

func parseXID(op, s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("postgres: %s: not a transaction", op)
	}
	return n, nil
}

// NewFacts returns up to limit facts after a place, in the order in which they
// were stored, with the versions before them. Of large ones there are fewer: no
// more than 16 MiB, or one fact. None: there are no more.
func (c *Custodian) NewFacts(ctx context.Context, kind FactKind, after FactPlace, limit int) ([]Fact, error) {
	return c.facts(ctx, "new facts", kind, queryNewFacts, after, limit)
}

// AllFacts returns up to limit facts after a place, by subject and version: of
// large ones fewer, as NewFacts does.
func (c *Custodian) AllFacts(ctx context.Context, kind FactKind, after FactPlace, limit int) ([]Fact, error) {
	return c.facts(ctx, "all facts", kind, queryAllFacts, after, limit)
}

func (c *Custodian) facts(ctx context.Context, op string, kind FactKind, query string, after FactPlace, limit int) ([]Fact, error) {
	return c.readFacts(ctx, op, kind, query, strconv.FormatUint(after.Arrived, 10), after.Subject, after.Version, limit)
}

func (c *Custodian) readFacts(ctx context.Context, op string, kind FactKind, query string, args ...any) ([]Fact, error) {
	query, err := kind.query(query)
	if err != nil {
		return nil, err
	}
	rows, err := c.db.QueryxContext(ctx, fmt.Sprintf(queryPage, query, factBytes), args...)
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	defer rows.Close()
	var out []Fact
	for rows.Next() {
		var f Fact
		var arrived string
		if err := rows.Scan(&arrived, &f.Place.Subject, &f.Place.Version, &f.Sealed, &f.Previous); err != nil {
			return nil, wrap(ctx, op, err)
		}
		if f.Place.Arrived, err = parseXID(op, arrived); err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, wrap(ctx, op, rows.Err())
}

// NewestFacts returns the newest row of each of the first subjects, in order,
// with the one before it; Sealed is nil: none. Of large facts it returns those of
// fewer subjects, as NewFacts does; of one at least, if there is one.
func (c *Custodian) NewestFacts(ctx context.Context, kind FactKind, subjects []int64) ([]Fact, error) {
	out, err := c.readFacts(ctx, "newest facts", kind, queryNewestFacts, pq.Array(subjects), len(subjects))
	if err == nil && (len(out) > len(subjects) || len(out) == 0 && len(subjects) > 0) {
		return nil, errors.New("postgres: newest facts: not one of each")
	}
	return out, err
}

// FactMark is the transaction up to which the facts were looked at; 0: never.
func (c *Custodian) FactMark(ctx context.Context) (uint64, error) {
	const op = "mark of the facts"
	var s string
	switch err := c.db.GetContext(ctx, &s, queryMark); {
	case errors.Is(err, sql.ErrNoRows):
		return 0, nil
	case err != nil:
		return 0, wrap(ctx, op, err)
	}
	return parseXID(op, s)
}

// SetFactMark stores it.
func (c *Custodian) SetFactMark(ctx context.Context, arrived uint64) error {
	return c.transact(ctx, "mark of the facts", func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, execMark, strconv.FormatUint(arrived, 10))
		return err
	})
}
