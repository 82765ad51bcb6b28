package postgres

import (
	"context"

	"github.com/jmoiron/sqlx"

	"kluis/meter"
)

const roleIssuer = "kluis_issuer"

// Issuer is the issuer's way to the database: it reads supplier records.
type Issuer struct {
	store
	supplier *sqlx.Stmt
}

// NewIssuer connects as kluis_issuer.
func NewIssuer(ctx context.Context, c Config) (*Issuer, error) {
	s, err := open(ctx, c, roleIssuer)
	if err != nil {
		return nil, err
	}
	i := &Issuer{store: *s}
	if err := i.prepare(ctx, map[**sqlx.Stmt]string{&i.supplier: querySupplier}); err != nil {
		return nil, err
	}
	return i, nil
}

// Supplier returns the current sealed record of a supplier; nil when there is
// none.
func (i *Issuer) Supplier(ctx context.Context, gln meter.GLN) ([]byte, error) {
	return sealed(ctx, "supplier", i.supplier, gln.Int64())
}
