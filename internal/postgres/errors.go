package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"github.com/lib/pq"
)

var (
	// ErrUnavailable: the database does not serve now. To be tried again.
	// After a write nothing is known: it may have been stored or not.
	ErrUnavailable = errors.New("database unavailable")
	// ErrConflict: another writer stored this version first, and nothing of
	// ours is stored. To be tried again from reading on.
	ErrConflict = errors.New("stored by another writer first")
	// ErrGone: the data key is not there any more, and nothing is stored.
	ErrGone = errors.New("the data key is not there any more")
)

// errUnconfirmed: committed here, but on no standby.
var errUnconfirmed = errors.New("no standby confirmed the commit")

// wrap says what err means for a caller. Errors of the driver and of
// PostgreSQL do not get through: they can hold values of statements and rows.
func wrap(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	// The server's "canceling statement due to user request", and whatever
	// else comes of ending a call, is the context's doing.
	if ctx.Err() != nil {
		return fmt.Errorf("postgres: %s: %w", op, context.Cause(ctx))
	}
	for _, own := range []error{ErrConflict, ErrGone} {
		if errors.Is(err, own) {
			return fmt.Errorf("postgres: %s: %w", op, own)
		}
	}
	if e, ok := errors.AsType[*pq.Error](err); ok {
		switch code := string(e.Code); {
		case code == uniqueViolation:
			return fmt.Errorf("postgres: %s: %w", op, ErrConflict)
		case unavailable(code):
			return fmt.Errorf("postgres: %s: %w (SQLSTATE %s)", op, ErrUnavailable, code)
		case isClass(code, "42", "28", "3D"):
			// Privileges, missing tables, logins: the text names no values.
			return fmt.Errorf("postgres: %s: %s (SQLSTATE %s)", op, e.Message, code)
		default:
			return fmt.Errorf("postgres: %s: refused (SQLSTATE %s, constraint %q of table %q)", op, code, e.Constraint, e.Table)
		}
	}
	if n, ok := errors.AsType[net.Error](err); ok {
		return fmt.Errorf("postgres: %s: %w: %w", op, ErrUnavailable, n) // names an address, no more
	}
	if errors.Is(err, errUnconfirmed) {
		return fmt.Errorf("postgres: %s: %w: %w", op, ErrUnavailable, err)
	}
	for _, lost := range []error{
		driver.ErrBadConn, sql.ErrConnDone, io.EOF, io.ErrUnexpectedEOF, context.DeadlineExceeded,
	} {
		if errors.Is(err, lost) {
			return fmt.Errorf("postgres: %s: %w: connection lost", op, ErrUnavailable)
		}
	}
	return fmt.Errorf("postgres: %s: unexpected error of type %T", op, err)
}

const uniqueViolation = "23505"

// unavailable lists the SQLSTATEs that pass.
func unavailable(code string) bool {
	switch code {
	case "57014", // query_canceled: statement_timeout, as the context has not ended
		"25006", // read_only_sql_transaction: a standby, before the switch-over is through
		"55P03": // lock_not_available
		return true
	}
	return isClass(code,
		"08", // connection exception
		"40", // transaction rollback: given up after retries
		"53", // insufficient resources: connections, memory, disk
		"57", // operator intervention: shutting down, starting up
		"58") // system error: I/O
}

func isClass(code string, classes ...string) bool {
	return len(code) == 5 && slices.Contains(classes, code[:2])
}

// repeatable reports a transaction that PostgreSQL rolled back for another's
// sake: serialization failure or deadlock.
func repeatable(err error) bool {
	e, ok := errors.AsType[*pq.Error](err)
	return ok && (e.Code == "40001" || e.Code == "40P01")
}
