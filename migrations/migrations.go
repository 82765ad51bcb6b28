// Package migrations holds the database schema as numbered SQL files, embedded,
// and applies them.
//
// The order for a new installation: EnsureRoles as a role that may create
// roles, then a database owned by RoleOwner, then Up as RoleOwner. All of it
// may be repeated, and by several replicas at once.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"time"

	"github.com/lib/pq"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// The roles of the database: the owner of the tables, under which nothing
// serves, and one for each kind of process.
const (
	RoleOwner     = "kluis_owner"
	RoleGateway   = "kluis_gateway"
	RoleIssuer    = "kluis_issuer"
	RoleIngest    = "kluis_ingest"
	RoleRegistrar = "kluis_registrar"
	RoleCustodian = "kluis_custodian"
	RoleAuditor   = "kluis_auditor"
	RolePortal    = "kluis_portal"
)

// Roles lists all of them, the owner first.
func Roles() []string {
	return []string{RoleOwner, RoleGateway, RoleIssuer, RoleIngest, RoleRegistrar, RoleCustodian, RoleAuditor, RolePortal}
}

// ErrRole says that a role exists with powers it must not have.
var ErrRole = errors.New("role has powers that it must not have")

//go:embed *.sql
var files embed.FS

// EnsureRoles creates the roles that are missing: they may log in, have no
// password, belong to no other role and have no further powers. A role that
// exists with more than that is refused with ErrRole; its password and
// connection limit are the operator's. db is a connection of a role that may
// create roles (CREATEROLE).
func EnsureRoles(ctx context.Context, db *sql.DB) error {
	for _, name := range Roles() {
		// Two replicas at once: one of the two errors, depending on how far the
		// other has come.
		stmt := "DO $do$ BEGIN" +
			" CREATE ROLE " + pq.QuoteIdentifier(name) + " LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;" +
			" EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;" +
			" END $do$"
		if _, err := db.ExecContext(ctx, stmt); err != nil {
			return fmt.Errorf("create role %s: %w", name, err)
		}
		var login, powers, member bool
		err := db.QueryRowContext(ctx, `
			SELECT rolcanlogin,
			       rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls,
			       EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid)
			FROM pg_roles r WHERE rolname = $1`, name).Scan(&login, &powers, &member)
		switch {
		case err != nil:
			return fmt.Errorf("look at role %s: %w", name, err)
		case powers:
			return fmt.Errorf("%w: %s: run  ALTER ROLE %s NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS", ErrRole, name, name)
		case member:
			return fmt.Errorf("%w: %s is a member of another role: REVOKE that", ErrRole, name)
		case !login:
			return fmt.Errorf("role %s may not log in: run  ALTER ROLE %s LOGIN", name, name)
		}
	}
	return nil
}

// Up applies the migrations that are missing, makes the months that sealed_block
// wants now (EnsureMonths), and returns how many migrations those were.
// Replicas that start at once wait for one another; one of them applies. db
// must be a connection of the role that owns the database, so that whatever
// is created is the owner's.
func Up(ctx context.Context, db *sql.DB) (applied int, err error) {
	var user, owner string
	err = db.QueryRowContext(ctx,
		`SELECT current_user, pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()`).Scan(&user, &owner)
	if err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}
	if user != owner {
		return 0, fmt.Errorf("migrate: log in as %s, which owns the database, not as %s", owner, user)
	}
	// Tried every second for five minutes.
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300), lock.WithUnlockTimeout(1, 30))
	if err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}
	// p.Close would close db, which is the caller's.
	done, err := p.Up(ctx)
	if err != nil {
		return len(done), fmt.Errorf("migrate: %w", err)
	}
	first, last := Months(time.Now())
	if _, err := EnsureMonths(ctx, db, first, last); err != nil {
		return len(done), err
	}
	return len(done), nil
}
