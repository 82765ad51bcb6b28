package postgres

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"
)

const rolePortal = "kluis_portal"

// maxCases bounds the cases of a session that are kept: the newest.
const maxCases = 64

// Portal is the customer-service portal's way to the database: its sessions, and
// nothing else. What it keeps is sealed by the portal; ids are hashes.
type Portal struct {
	store
	find, add, touch, end, endAll, purge, stray *sqlx.Stmt
	addCase, dropCases, caseOf, cases, live     *sqlx.Stmt
}

// NewPortal connects as kluis_portal.
func NewPortal(ctx context.Context, c Config) (*Portal, error) {
	s, err := open(ctx, c, rolePortal)
	if err != nil {
		return nil, err
	}
	p := &Portal{store: *s}
	if err := p.prepare(ctx, map[**sqlx.Stmt]string{
		&p.find:   `SELECT data FROM portal_session WHERE id = $1 AND expires > to_timestamp($2::float8 / 1e6)`,
		&p.add:    `INSERT INTO portal_session (id, subject, data, expires) VALUES ($1, $2, $3, to_timestamp($4::float8 / 1e6))`,
		&p.touch:  `UPDATE portal_session SET data = $2, expires = to_timestamp($3::float8 / 1e6) WHERE id = $1`,
		&p.end:    withCases(`id = $1`),
		&p.endAll: withCases(`subject = $1`),
		&p.purge:  withCases(`expires <= to_timestamp($1::float8 / 1e6)`),
		// Opened while the session ended.
		&p.stray: `DELETE FROM portal_case c WHERE NOT EXISTS (SELECT FROM portal_session s WHERE s.id = c.session)`,
		&p.live:  `SELECT count(*) FROM portal_session WHERE expires > to_timestamp($1::float8 / 1e6)`,

		// None for a session that has ended meanwhile.
		&p.addCase: `INSERT INTO portal_case (session, id, data) SELECT id, $2, $3 FROM portal_session WHERE id = $1 ON CONFLICT DO NOTHING`,
		&p.dropCases: `DELETE FROM portal_case WHERE session = $1 AND id IN (
			SELECT id FROM portal_case WHERE session = $1 ORDER BY opened DESC, id OFFSET $2)`,
		&p.caseOf: `SELECT data FROM portal_case WHERE session = $1 AND id = $2`,
		&p.cases:  `SELECT id, data FROM portal_case WHERE session = $1 ORDER BY opened DESC, id`,
	}); err != nil {
		return nil, err
	}
	return p, nil
}

// withCases ends the sessions that a condition names, with their cases.
func withCases(which string) string {
	return `WITH ended AS (DELETE FROM portal_session WHERE ` + which + ` RETURNING id)
		DELETE FROM portal_case WHERE session IN (SELECT id FROM ended)`
}

// Session returns what is kept under an id; nil when there is no such session, or
// it has ended.
func (p *Portal) Session(ctx context.Context, id []byte, now time.Time) ([]byte, error) {
	return one(ctx, "session", p.find, id, now.UnixMicro())
}

// AddSession begins a session. An id is never taken twice: ErrConflict.
func (p *Portal) AddSession(ctx context.Context, id, subject, data []byte, expires time.Time) error {
	_, err := p.add.ExecContext(ctx, id, subject, data, expires.UnixMicro())
	return wrap(ctx, "add session", err)
}

// TouchSession lets a session go on. One that was ended meanwhile stays ended.
func (p *Portal) TouchSession(ctx context.Context, id, data []byte, expires time.Time) error {
	_, err := p.touch.ExecContext(ctx, id, data, expires.UnixMicro())
	return wrap(ctx, "touch session", err)
}

// EndSession ends a session with its cases.
func (p *Portal) EndSession(ctx context.Context, id []byte) error {
	_, err := p.end.ExecContext(ctx, id)
	return wrap(ctx, "end session", err)
}

// EndSessions ends all sessions of a subject.
func (p *Portal) EndSessions(ctx context.Context, subject []byte) error {
	_, err := p.endAll.ExecContext(ctx, subject)
	return wrap(ctx, "end sessions", err)
}

// Purge removes sessions that have ended.
func (p *Portal) Purge(ctx context.Context, now time.Time) error {
	if _, err := p.purge.ExecContext(ctx, now.UnixMicro()); err != nil {
		return wrap(ctx, "purge", err)
	}
	_, err := p.stray.ExecContext(ctx)
	return wrap(ctx, "purge cases", err)
}

// Live counts the sessions that have not ended.
func (p *Portal) Live(ctx context.Context, now time.Time) (int, error) {
	var n int
	err := p.live.GetContext(ctx, &n, now.UnixMicro())
	return n, wrap(ctx, "count sessions", err)
}

// AddCase keeps a case of a session, and lets go of the oldest when there are too
// many.
func (p *Portal) AddCase(ctx context.Context, session, id, data []byte) error {
	if _, err := p.addCase.ExecContext(ctx, session, id, data); err != nil {
		return wrap(ctx, "add case", err)
	}
	_, err := p.dropCases.ExecContext(ctx, session, maxCases)
	return wrap(ctx, "drop cases", err)
}

// Case returns a case of a session; nil when it has none such.
func (p *Portal) Case(ctx context.Context, session, id []byte) ([]byte, error) {
	return one(ctx, "case", p.caseOf, session, id)
}

// Cases calls each with the cases of a session, the latest first.
func (p *Portal) Cases(ctx context.Context, session []byte, each func(id, data []byte)) error {
	var rows []struct {
		ID   []byte `db:"id"`
		Data []byte `db:"data"`
	}
	if err := p.cases.SelectContext(ctx, &rows, session); err != nil {
		return wrap(ctx, "cases", err)
	}
	for _, r := range rows {
		each(r.ID, r.Data)
	}
	return nil
}

func one(ctx context.Context, op string, st *sqlx.Stmt, args ...any) ([]byte, error) {
	var b []byte
	err := st.GetContext(ctx, &b, args...)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return b, wrap(ctx, op, err)
}
