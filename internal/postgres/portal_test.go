package postgres_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/migrations"
)

// TestPortalSessions: a session is there until it ends, never twice, and never
// again.
func TestPortalSessions(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	p, err := postgres.NewPortal(t.Context(), postgres.Config{DSN: db.URL(migrations.RolePortal), MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	ctx := t.Context()
	hash := func(s string) []byte { h := sha256.Sum256([]byte(s)); return h[:] }
	now := time.Now().Truncate(time.Microsecond)
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	is := func(id string, at time.Time, want []byte) {
		t.Helper()
		got, err := p.Session(ctx, hash(id), at)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %q (%v), want %q", id, got, err, want)
		}
	}
	cases := func(id string) (list []string) {
		t.Helper()
		ok(p.Cases(ctx, hash(id), func(_, data []byte) { list = append(list, string(data)) }))
		return list
	}

	is("one", now, nil)
	ok(p.AddSession(ctx, hash("one"), hash("eva"), []byte("1"), now.Add(time.Minute)))
	ok(p.AddSession(ctx, hash("two"), hash("eva"), []byte("2"), now.Add(time.Minute)))
	ok(p.AddSession(ctx, hash("three"), hash("joris"), []byte("3"), now.Add(time.Minute)))
	if err := p.AddSession(ctx, hash("one"), hash("joris"), []byte("x"), now.Add(time.Hour)); !errors.Is(err, postgres.ErrConflict) {
		t.Errorf("an id that is taken: %v", err)
	}
	is("one", now.Add(time.Minute-time.Microsecond), []byte("1"))
	is("one", now.Add(time.Minute), nil)
	ok(p.TouchSession(ctx, hash("one"), []byte("1b"), now.Add(2*time.Minute)))
	is("one", now.Add(time.Minute), []byte("1b"))

	id := func(n byte) []byte { return bytes.Repeat([]byte{n}, 16) }
	ok(p.AddCase(ctx, hash("one"), id(1), []byte("a")))
	ok(p.AddCase(ctx, hash("one"), id(1), []byte("not again")))
	ok(p.AddCase(ctx, hash("two"), id(1), []byte("b")))
	ok(p.AddCase(ctx, hash("nobody"), id(1), []byte("c")))
	if got, err := p.Case(ctx, hash("one"), id(1)); err != nil || string(got) != "a" {
		t.Errorf("case: %q %v", got, err)
	}
	for _, none := range []string{"three", "nobody"} {
		if got, err := p.Case(ctx, hash(none), id(1)); err != nil || got != nil {
			t.Errorf("a case of %s: %q %v", none, got, err)
		}
	}
	for n := range 70 {
		ok(p.AddCase(ctx, hash("three"), id(byte(n+2)), []byte{byte(n)}))
	}
	if n := len(cases("three")); n != 64 {
		t.Errorf("%d cases are kept", n)
	}
	if latest := cases("three")[0]; latest != string([]byte{69}) {
		t.Errorf("the latest case is %v", []byte(latest))
	}

	ok(p.EndSession(ctx, hash("two")))
	is("two", now, nil)
	if len(cases("two")) != 0 {
		t.Error("the cases of a session outlive it")
	}
	// A request under way, from before: it brings nothing back.
	ok(p.TouchSession(ctx, hash("two"), []byte("2"), now.Add(time.Hour)))
	ok(p.AddCase(ctx, hash("two"), id(9), []byte("late")))
	is("two", now, nil)
	if len(cases("two")) != 0 {
		t.Error("a case of a session that ended")
	}
	ok(p.EndSessions(ctx, hash("eva")))
	is("one", now, nil)
	is("three", now, []byte("3"))

	ok(p.Purge(ctx, now.Add(30*time.Second)))
	is("three", now, []byte("3"))
	ok(p.Purge(ctx, now.Add(time.Minute)))
	is("three", now, nil)
	if n := len(cases("three")); n != 0 {
		t.Errorf("%d cases are left", n)
	}
}
