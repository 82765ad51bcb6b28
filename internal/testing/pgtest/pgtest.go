// Package pgtest gives each test a real PostgreSQL database of its own, with
// the schema applied.
//
// A test binary starts one cluster (fsync off), at the first use; each New
// clones a migrated template. A package that uses it has
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
// so that the cluster is stopped and removed at the end.
package pgtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"

	"kluis/internal/devpg"
	"kluis/internal/testing/scratch"
	"kluis/migrations"
)

const (
	template = "kluis_template"
	pattern  = "kluis-pgtest-"
)

var world struct {
	running bool // Main is at work
	once    sync.Once
	cluster *devpg.Cluster
	admin   *sql.DB // the superuser's: a connection costs more than a small database
	dir     string
	err     error
	count   atomic.Int64
}

// Main runs the tests, stops and removes the cluster, and exits.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main without the exit, for a package that has more to clean up.
func Run(m interface{ Run() int }) int {
	world.running = true
	code := m.Run()
	if err := tearDown(); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		code = max(code, 1)
	}
	return code
}

func tearDown() error {
	var err error
	if world.admin != nil {
		err = world.admin.Close()
	}
	if world.cluster != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err = errors.Join(err, world.cluster.Stop(ctx))
	}
	if world.dir != "" {
		err = errors.Join(err, os.RemoveAll(world.dir))
	}
	return err
}

// Dir makes a folder that PostgreSQL can reach and whose socket paths are
// short, and removes it after the test. t.TempDir may be neither.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch.Root(), pattern)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// DB is a database of one test's own, emptied of nothing and shared with
// nobody; it is dropped after the test.
type DB struct {
	cluster *devpg.Cluster
	name    string
}

// New makes a database with the schema applied.
func New(t testing.TB) *DB {
	t.Helper()
	return create(t, template)
}

// NewEmpty makes a database without the schema; the roles are there.
func NewEmpty(t testing.TB) *DB {
	t.Helper()
	return create(t, "template0")
}

func create(t testing.TB, from string) *DB {
	t.Helper()
	if !world.running {
		t.Fatal("pgtest: the package's tests need  func TestMain(m *testing.M) { pgtest.Main(m) }")
	}
	world.once.Do(begin)
	if world.err != nil {
		t.Fatal(world.err)
	}
	d := &DB{cluster: world.cluster, name: fmt.Sprintf("test_%d", world.count.Add(1))}
	name := pq.QuoteIdentifier(d.name)
	statements := []string{"CREATE DATABASE " + name + " TEMPLATE " + from + " STRATEGY FILE_COPY OWNER " + migrations.RoleOwner}
	if from == template {
		// Privileges on a database are not cloned with it.
		statements = append(statements,
			"REVOKE ALL ON DATABASE "+name+" FROM PUBLIC",
			"GRANT CONNECT ON DATABASE "+name+" TO kluis_gateway, kluis_issuer, kluis_ingest, kluis_registrar, kluis_custodian, kluis_auditor, kluis_portal",
		)
	}
	for _, s := range statements {
		if _, err := world.admin.ExecContext(t.Context(), s); err != nil {
			t.Fatalf("pgtest: %s: %v", s, err)
		}
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if _, err := world.admin.ExecContext(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("pgtest: drop database: %v", err)
		}
	})
	return d
}

// URL is the connection string for a role (migrations.Roles, or
// devpg.Superuser).
func (d *DB) URL(role string) string { return d.cluster.URL(role, d.name) }

// Name is the database's name.
func (d *DB) Name() string { return d.name }

// Socket is the path of the cluster's Unix socket.
func (d *DB) Socket() string { return d.cluster.Socket() }

// Open is a pool for a role, closed after the test.
func (d *DB) Open(t testing.TB, role string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", d.URL(role))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// Cluster starts a cluster of the test's own, durable or not, with the roles
// and one migrated database "kluis", for tests that stop it. Starting again
// with the same configuration resumes it.
func Cluster(t testing.TB, c devpg.Config) *devpg.Cluster {
	t.Helper()
	c.Roles = migrations.Roles()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cl, err := devpg.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := cl.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := migrate(ctx, cl, "kluis"); err != nil {
		t.Fatal(err)
	}
	return cl
}

func begin() {
	sweep()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	world.dir, world.err = os.MkdirTemp(scratch.Root(), pattern)
	if world.err != nil {
		return
	}
	world.cluster, world.err = devpg.Start(ctx, devpg.Config{Dir: world.dir, NoSync: true, Roles: migrations.Roles()})
	if world.err != nil {
		return
	}
	if world.err = migrate(ctx, world.cluster, template); world.err != nil {
		return
	}
	world.admin, world.err = sql.Open("postgres", world.cluster.URL(devpg.Superuser, "postgres"))
}

func migrate(ctx context.Context, cl *devpg.Cluster, name string) error {
	admin, err := sql.Open("postgres", cl.URL(devpg.Superuser, "postgres"))
	if err != nil {
		return err
	}
	defer admin.Close()
	if err := migrations.EnsureRoles(ctx, admin); err != nil {
		return err
	}
	if err := cl.EnsureDatabase(ctx, name, migrations.RoleOwner); err != nil {
		return err
	}
	owner, err := sql.Open("postgres", cl.URL(migrations.RoleOwner, name))
	if err != nil {
		return err
	}
	defer owner.Close()
	_, err = migrations.Up(ctx, owner)
	return err
}

// sweep removes what test binaries left that were killed: old folders whose
// lock nobody holds. Their PostgreSQL died with them.
func sweep() {
	old, _ := filepath.Glob(filepath.Join(scratch.Root(), pattern+"*")) // the pattern is well-formed
	for _, dir := range old {
		st, err := os.Lstat(dir)
		if err != nil || !st.IsDir() || time.Since(st.ModTime()) < time.Hour {
			continue
		}
		f, err := os.Open(filepath.Join(dir, "lock"))
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			os.RemoveAll(dir)
		}
		f.Close()
	}
}
