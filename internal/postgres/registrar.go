package postgres

import (
	"context"
	"database/sql"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"kluis/authz"
	"kluis/meter"
)

const roleRegistrar = "kluis_registrar"

// Registrar is the registrar's way to the database: it reads sealed facts and
// adds versions of them. It cannot see blocks, keys or the access log.
type Registrar struct {
	store
	supplier, legalFile *sqlx.Stmt
}

// Instants come as microseconds; the product is exact up to the year 2255.
const (
	execSupplier = `
		INSERT INTO supplier (gln, version, record, sealed_at)
		VALUES ($1, $2, $3, TIMESTAMPTZ 'epoch' + $4::bigint * INTERVAL '1 microsecond')`
	execLegalFile = `
		INSERT INTO legal_file (ean, version, file, sealed_at)
		VALUES ($1, $2, $3, TIMESTAMPTZ 'epoch' + $4::bigint * INTERVAL '1 microsecond')`
	execMeteringPoint = `INSERT INTO metering_point (ean, commodity) VALUES ($1, $2) ON CONFLICT (ean) DO NOTHING`
	execNoSupply      = `DELETE FROM supply_period WHERE ean = $1`
	execSupply        = `
		INSERT INTO supply_period (ean, gln, from_day, to_day)
		SELECT $1, gln, DATE '1970-01-01' + from_day, DATE '1970-01-01' + to_day
		FROM unnest($2::bigint[], $3::int[], $4::int[]) AS p (gln, from_day, to_day)`
	execNoConsent = `DELETE FROM consent WHERE ean = $1`
	execConsent   = `
		INSERT INTO consent (ean, consent_id, gln, state, from_day, to_day, valid_until)
		SELECT $1, id, gln, state, DATE '1970-01-01' + from_day, DATE '1970-01-01' + to_day,
		       TIMESTAMPTZ 'epoch' + valid_until * INTERVAL '1 microsecond'
		FROM unnest($2::uuid[], $3::bigint[], $4::smallint[], $5::int[], $6::int[], $7::bigint[])
		  AS c (id, gln, state, from_day, to_day, valid_until)`
)

// NewRegistrar connects as kluis_registrar.
func NewRegistrar(ctx context.Context, c Config) (*Registrar, error) {
	s, err := open(ctx, c, roleRegistrar)
	if err != nil {
		return nil, err
	}
	r := &Registrar{store: *s}
	err = r.prepare(ctx, map[**sqlx.Stmt]string{&r.supplier: querySupplier, &r.legalFile: queryStoredFile})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Supplier returns the current sealed record of a supplier; nil when there is
// none.
func (r *Registrar) Supplier(ctx context.Context, gln meter.GLN) ([]byte, error) {
	return sealed(ctx, "supplier", r.supplier, gln.Int64())
}

// LegalFile returns the newest legal file of a metering point, and the one
// before.
func (r *Registrar) LegalFile(ctx context.Context, ean meter.EAN) (authz.StoredFile, error) {
	return storedFile(ctx, r.legalFile, ean)
}

// StoreSupplier adds a version of a supplier record; sealed is what s was
// verified from. ErrConflict: the version is there already.
func (r *Registrar) StoreSupplier(ctx context.Context, s *authz.Supplier, sealed []byte) error {
	return r.transact(ctx, "store supplier", func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, execSupplier, s.GLN().Int64(), int64(s.Version()), sealed, s.SealedAt().UnixMicro())
		return err
	})
}

// StoreLegalFile adds a version of a legal file, and makes the indexes say
// what it says; sealed is what f was verified from. ErrConflict: the version
// is there already.
func (r *Registrar) StoreLegalFile(ctx context.Context, f *authz.LegalFile, sealed []byte) error {
	ean := f.EAN().Int64()
	return r.transact(ctx, "store legal file", func(ctx context.Context, tx *sqlx.Tx) error {
		// First, so that a second writer of the version stops here.
		if _, err := tx.ExecContext(ctx, execLegalFile, ean, int64(f.Version()), sealed, f.SealedAt().UnixMicro()); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, execMeteringPoint, ean, int64(f.Commodity())); err != nil {
			return err
		}
		if err := indexSupply(ctx, tx, ean, f.SupplyPeriods()); err != nil {
			return err
		}
		if err := indexConsents(ctx, tx, ean, f.Consents()); err != nil {
			return err
		}
		return indexBasisDays(ctx, tx, f)
	})
}

func indexSupply(ctx context.Context, tx *sqlx.Tx, ean int64, periods []authz.SupplyPeriod) error {
	if _, err := tx.ExecContext(ctx, execNoSupply, ean); err != nil || len(periods) == 0 {
		return err
	}
	var gln, from []int64
	var to []sql.NullInt64
	for _, p := range periods {
		gln = append(gln, p.Supplier.Int64())
		from = append(from, int64(p.Days.From))
		to = append(to, end(p.Days))
	}
	_, err := tx.ExecContext(ctx, execSupply, ean, pq.Array(gln), pq.Array(from), pq.Array(to))
	return err
}

func indexConsents(ctx context.Context, tx *sqlx.Tx, ean int64, consents []authz.Consent) error {
	if _, err := tx.ExecContext(ctx, execNoConsent, ean); err != nil || len(consents) == 0 {
		return err
	}
	var id []string
	var gln, state, from, until []int64
	var to []sql.NullInt64
	for _, c := range consents {
		id = append(id, uuid.UUID(c.ID).String())
		gln = append(gln, c.Supplier.Int64())
		state = append(state, int64(c.State))
		from = append(from, int64(c.Days.From))
		to = append(to, end(c.Days))
		until = append(until, c.ValidUntil.UnixMicro())
	}
	_, err := tx.ExecContext(ctx, execConsent, ean, pq.Array(id), pq.Array(gln), pq.Array(state),
		pq.Array(from), pq.Array(to), pq.Array(until))
	return err
}

// end is null where there is no end.
func end(r meter.DayRange) sql.NullInt64 {
	return sql.NullInt64{Int64: int64(r.To), Valid: r.To != meter.MaxDay}
}
