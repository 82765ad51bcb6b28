package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/lib/pq"
)

// What Up makes besides the month it is: the months of two years before, which
// readings are kept for, and those of a year ahead. So long may the daily
// EnsureMonths fail before blocks land in the default partition.
const (
	monthsBefore = 25
	MonthsAhead  = 13
)

// Made says what EnsureMonths did.
type Made struct {
	Months int   // partitions made
	Moved  int64 // rows moved into them out of the default partition
}

// Months are the first and the last month that sealed_block wants at a time.
func Months(now time.Time) (first, last time.Time) {
	m := monthOf(now)
	return m.AddDate(0, -monthsBefore, 0), m.AddDate(0, MonthsAhead, 0)
}

func monthOf(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
}

// MaxMonths bounds what one call of EnsureMonths makes: each partition is one
// more relation that every statement locks.
const MaxMonths = 240

// lockWait is how long EnsureMonths holds others up at most while it waits for
// its lock, and lockTries how often it asks for it.
const (
	lockWait  = "500ms"
	lockTries = 20
)

// ErrBusy says that a lock on a table was not to be had.
var ErrBusy = errors.New("the table is in use by a long transaction (a dump, perhaps): try again")

// EnsureMonths makes the partitions of sealed_block that are missing for the
// months from first to last, both included. Blocks of theirs that landed in the
// default partition move into them. All or nothing, safe beside reads and
// ingest, which wait until it is done: that takes milliseconds unless there is
// much to move. db must be a connection of the owner.
func EnsureMonths(ctx context.Context, db *sql.DB, first, last time.Time) (made Made, err error) {
	first, last = monthOf(first), monthOf(last)
	if n := 12*(last.Year()-first.Year()) + int(last.Month()-first.Month()) + 1; n > MaxMonths {
		return made, fmt.Errorf("months of sealed_block: %d at once, at most %d", n, MaxMonths)
	}
	for try := 1; ; try++ {
		made, err = ensureMonths(ctx, db, first, last)
		var e *pq.Error
		if !errors.As(err, &e) || e.Code != "55P03" { // lock_not_available
			break
		}
		if try == lockTries {
			err = ErrBusy
			break
		}
		select {
		case <-ctx.Done():
			return made, ctx.Err()
		case <-time.After(time.Second):
		}
	}
	if err != nil {
		return Made{}, fmt.Errorf("months of sealed_block: %w", err)
	}
	return made, nil
}

func ensureMonths(ctx context.Context, db *sql.DB, first, last time.Time) (made Made, err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return made, err
	}
	defer func() { _ = tx.Rollback() }()
	exec := func(stmt string, args ...any) (int64, error) {
		r, err := tx.ExecContext(ctx, stmt, args...)
		if err != nil {
			return 0, err
		}
		return r.RowsAffected()
	}
	missing, err := missingMonths(ctx, tx, first, last)
	if err != nil || len(missing) == 0 {
		return made, err
	}
	// The lock also lets only one such call at a time get on, and one that waited
	// finds what the other made.
	if _, err := exec(`SET LOCAL lock_timeout = '` + lockWait + `'`); err != nil {
		return made, err
	}
	if _, err := exec(`LOCK TABLE ONLY sealed_block IN ACCESS EXCLUSIVE MODE`); err != nil {
		return made, err
	}
	if missing, err = missingMonths(ctx, tx, first, last); err != nil {
		return made, err
	}
	for _, m := range missing {
		name := pq.QuoteIdentifier("sealed_block_" + m.Format("2006_01"))
		from, to := m.Format(time.DateOnly), m.AddDate(0, 1, 0).Format(time.DateOnly)
		if _, err := exec(`CREATE TABLE ` + name + ` (LIKE sealed_block INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES INCLUDING COMMENTS)`); err != nil {
			return made, err
		}
		if _, err := exec(`COMMENT ON TABLE ` + name + ` IS 'Sealed blocks of one month.'`); err != nil {
			return made, err
		}
		n, err := exec(`WITH stray AS (DELETE FROM sealed_block_default WHERE day >= $1 AND day < $2 RETURNING *) INSERT INTO `+name+` SELECT * FROM stray`, from, to)
		if err != nil {
			return made, err
		}
		if _, err := exec(fmt.Sprintf(`ALTER TABLE sealed_block ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')`, name, from, to)); err != nil {
			return made, err
		}
		made.Months++
		made.Moved += n
	}
	if made.Moved > 0 {
		// What it is known by is that it has no pages.
		var left bool
		if err := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM sealed_block_default)`).Scan(&left); err != nil {
			return made, err
		}
		if !left {
			if _, err := exec(`TRUNCATE sealed_block_default`); err != nil {
				return made, err
			}
		}
	}
	return made, tx.Commit()
}

// missingMonths are those from first to last that have no partition. A
// partition is known by its bounds: its name changes when it is compacted.
func missingMonths(ctx context.Context, tx *sql.Tx, first, last time.Time) (missing []time.Time, err error) {
	var partitioned bool
	err = tx.QueryRowContext(ctx, `SELECT relkind = 'p' FROM pg_class WHERE oid = 'sealed_block'::regclass`).Scan(&partitioned)
	if err != nil {
		return nil, err
	}
	if !partitioned {
		return nil, errors.New("it has no partitions: this database was made by a version of Kluis that was never released: make it anew")
	}
	rows, err := tx.QueryContext(ctx, `
		SELECT m.month FROM generate_series($1::timestamp, $2::timestamp, INTERVAL '1 month') AS m (month)
		WHERE NOT EXISTS (
			SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
			WHERE i.inhparent = 'sealed_block'::regclass
			  AND pg_get_expr(c.relpartbound, c.oid) LIKE 'FOR VALUES FROM (''' || to_char(m.month, 'YYYY-MM-DD') || ''')%')
		ORDER BY m.month`, first.Format(time.DateOnly), last.Format(time.DateOnly))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var m time.Time
		if err := rows.Scan(&m); err != nil {
			return nil, err
		}
		missing = append(missing, monthOf(m))
	}
	return missing, rows.Err()
}
