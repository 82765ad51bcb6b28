package postgres

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/jmoiron/sqlx"
)

const attempts = 4

// transact runs f in a transaction: committed when f returns nil, rolled back
// when it returns an error or panics. f runs again when PostgreSQL rolled it
// back for the sake of another transaction, so it must not touch anything
// else.
func (s *store) transact(ctx context.Context, op string, f func(ctx context.Context, tx *sqlx.Tx) error) error {
	for n := 1; ; n++ {
		err := s.once(ctx, f)
		if err == nil {
			return nil
		}
		if n == attempts || !repeatable(err) {
			return wrap(ctx, op, err)
		}
		select {
		case <-ctx.Done():
			return wrap(ctx, op, ctx.Err())
		case <-time.After(time.Duration(n)*10*time.Millisecond + rand.N(20*time.Millisecond)):
		}
	}
}

func (s *store) once(ctx context.Context, f func(ctx context.Context, tx *sqlx.Tx) error) error {
	tx, err := s.db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	// After a commit it does nothing; its error is of no use to anybody: the
	// connection goes, and with it the transaction.
	defer func() { _ = tx.Rollback() }()
	if err := f(ctx, tx); err != nil {
		return err
	}
	return s.confirmed(ctx, tx.Commit)
}
