// Package postgres keeps what Kluis stores: sealed facts, wrapped data keys,
// ciphertext and the access log. It holds nothing that could open any of it.
//
// There is one type per process, each logging in under its own role, which
// can do no more than that process needs (package migrations). A type has the
// methods of its process and no others: the gateway, for one, can fetch
// blocks only with an authz.Grant.
//
// Every method is safe for concurrent use, honours its context, and returns
// errors that wrap ErrUnavailable, ErrConflict or the context's error where
// one applies, and never hold a value of a statement or a row. The pools
// recover from a restart of PostgreSQL by themselves.
//
// Days cross the border as their number since 1970-01-01, and instants as
// microseconds, so that no time zone, of the session or of the process, can
// shift them.
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"kluis/internal/tracing"
)

// Config says how to reach the database.
type Config struct {
	// DSN is the connection string, complete with password and sslmode. Its
	// role must be the one of the process. Never logged.
	DSN string
	// MaxConns bounds the pool; 0: 16.
	MaxConns int
	// StatementTimeout is PostgreSQL's limit for one statement; 0: 5 s. A
	// server that does not answer at all is given up a second later.
	StatementTimeout time.Duration
	// Traces makes spans of the statements that belong to a traced request; nil:
	// none.
	Traces *tracing.Traces
	// ConnectTimeout bounds the making of one connection; 0: 3 s.
	ConnectTimeout time.Duration
}

// store is what all the roles have in common.
type store struct {
	db *sqlx.DB
	// unconfirmed counts commits, on any connection, that PostgreSQL
	// acknowledged without the standby it should have waited for.
	unconfirmed *atomic.Uint64
}

// notice listens for the one warning that matters: a wait for a standby that
// an operator cancels is acknowledged as a commit.
func (s *store) notice(n *pq.Error) {
	if n.Routine == "SyncRepWaitForLSN" {
		s.unconfirmed.Add(1)
	}
}

// confirmed runs a commit and does not take it for one when such a warning
// came meanwhile; one of another connection's counts as well.
func (s *store) confirmed(ctx context.Context, commit func() error) error {
	before := s.unconfirmed.Load()
	if err := commit(); err != nil {
		return err
	}
	if s.unconfirmed.Load() != before {
		return errUnconfirmed
	}
	// The context's end cuts the wait short too, before the warning is read.
	return ctx.Err()
}

// Close ends the pool.
func (s *store) Close() error {
	err := wrap(context.Background(), "close", s.db.Close())
	if errors.Is(err, ErrUnavailable) {
		return nil // a connection that is broken need not be taken leave of
	}
	return err
}

// Stats describes the pool.
func (s *store) Stats() sql.DBStats { return s.db.Stats() }

// Metrics are the pool's connections: how many there are, and how long callers
// wait for one.
func (s *store) Metrics() prometheus.Collector {
	return collectors.NewDBStatsCollector(s.db.DB, "kluis")
}

// Database reports whether the database serves.
func (s *store) Database(ctx context.Context) error {
	var one int
	return wrap(ctx, "check", s.db.GetContext(ctx, &one, `SELECT 1`))
}

// open makes the pool of a role, and checks that this is who it logs in as:
// a process that got hold of a stronger role's connection does not serve.
func open(ctx context.Context, c Config, role string) (*store, error) {
	parsed, err := pq.NewConfig(c.DSN)
	if err != nil {
		// The driver's error may quote the string, and so the password.
		return nil, errors.New("postgres: the connection string cannot be read: want postgres://role@host:port/database?sslmode=verify-full")
	}
	statement := orDefault(c.StatementTimeout, 5*time.Second)
	if parsed.ConnectTimeout == 0 {
		parsed.ConnectTimeout = orDefault(c.ConnectTimeout, 3*time.Second)
	}
	if parsed.ApplicationName == "" {
		parsed.ApplicationName = role
	}
	parsed.BinaryParameters = true // bytea goes as it is, not as hexadecimal
	if parsed.Runtime == nil {
		parsed.Runtime = map[string]string{}
	}
	setDefault(parsed.Runtime, "statement_timeout", strconv.FormatInt(statement.Milliseconds(), 10))
	setDefault(parsed.Runtime, "idle_in_transaction_session_timeout", "60000")
	setDefault(parsed.Runtime, "synchronous_commit", "on")
	if role == roleGateway || role == roleIngest {
		// Each of their statements walks an index, whatever the arguments. To
		// plan it anew for each call costs the database as much as to run it.
		setDefault(parsed.Runtime, "plan_cache_mode", "force_generic_plan")
		// A plan that was made while a month was empty would pass over all of it
		// when it is full.
		setDefault(parsed.Runtime, "enable_seqscan", "off")
	}
	if role == roleCustodian || role == roleAuditor {
		// Nor may one of their statements ever pass over a whole table, of which
		// the planner can think wrongly when statistics are old.
		for _, method := range []string{"enable_seqscan", "enable_hashjoin", "enable_mergejoin"} {
			setDefault(parsed.Runtime, method, "off")
		}
	}
	connector, err := pq.NewConnectorConfig(parsed)
	if err != nil {
		return nil, errors.New("postgres: the connection string cannot be used")
	}
	connector.Dialer(dialer{silence: statement + time.Second})

	s := &store{unconfirmed: new(atomic.Uint64)}
	db := sqlx.NewDb(c.Traces.DB(pq.ConnectorWithNoticeHandler(connector, s.notice)), "postgres")
	s.db = db
	conns := c.MaxConns
	if conns <= 0 {
		conns = 16
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	db.SetConnMaxIdleTime(5 * time.Minute)
	db.SetConnMaxLifetime(time.Hour)

	var is struct {
		Role   string `db:"role"`
		Commit string `db:"commit"`
	}
	err = db.GetContext(ctx, &is, `SELECT current_user AS role, current_setting('synchronous_commit') AS commit`)
	switch {
	case err != nil:
		err = wrap(ctx, "connect", err)
	case is.Role != role:
		err = fmt.Errorf("postgres: logged in as %s: this process must be %s", is.Role, role)
	case is.Commit != "on" && is.Commit != "remote_apply":
		err = fmt.Errorf("postgres: synchronous_commit is %s for %s: it must be on (or remote_apply), or what is acknowledged may be lost", is.Commit, role)
	}
	if err != nil {
		db.Close()
		return nil, err
	}
	return s, nil
}

// prepare prepares the process's statements, which live as long as the pool.
// database/sql prepares them again on whatever connection they run. On an
// error the pool is closed.
func (s *store) prepare(ctx context.Context, into map[**sqlx.Stmt]string) error {
	for p, query := range into {
		st, err := s.db.PreparexContext(ctx, query)
		if err != nil {
			return errors.Join(wrap(ctx, "prepare (is the schema migrated?)", err), s.Close())
		}
		*p = st
	}
	return nil
}

// sealed fetches the one sealed fact of a key; nil when there is none.
func sealed(ctx context.Context, op string, st *sqlx.Stmt, key int64) ([]byte, error) {
	var b []byte
	err := st.GetContext(ctx, &b, key)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	return b, nil
}

const (
	querySupplier = `SELECT record FROM supplier WHERE gln = $1 ORDER BY version DESC LIMIT 1`
)

func orDefault(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}

func setDefault(m map[string]string, key, value string) {
	if _, set := m[key]; !set {
		m[key] = value
	}
}
