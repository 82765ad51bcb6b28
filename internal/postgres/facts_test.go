package postgres_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/migrations"
)

func everyFact(arrived uint64) postgres.FactPlace {
	return postgres.FactPlace{Arrived: arrived, Subject: -1 << 63, Version: -1 << 63}
}

// TestFacts: what is new comes in the order in which it was stored, with the
// version before it; everything by subject and version; a page at a time.
func TestFacts(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	c, owner := custodian(t, d), d.Open(t, migrations.RoleOwner)
	exec := func(query string, args ...any) {
		t.Helper()
		if _, err := owner.ExecContext(t.Context(), query, args...); err != nil {
			t.Fatal(err)
		}
	}
	for _, stmt := range []string{
		`INSERT INTO legal_file (ean, version, file, sealed_at, arrived) VALUES (7, 1, 'a1', now(), '0'), (7, 2, 'a2', now(), '0')`,
		`INSERT INTO legal_file (ean, version, file, sealed_at) VALUES (9, 1, 'b1', now())`,
		`INSERT INTO legal_file (ean, version, file, sealed_at) VALUES (7, 3, 'a3', now())`,
		`INSERT INTO legal_file (ean, version, file, sealed_at) VALUES (7, 5, 'a5', now()), (-3, 1, 'c1', now())`,
		`INSERT INTO supplier (gln, version, record, sealed_at) VALUES (5, 1, 's1', now()), (5, 2, 's2', now())`,
	} {
		exec(stmt)
	}
	pages := func(read func(after postgres.FactPlace) ([]postgres.Fact, error), after postgres.FactPlace) string {
		t.Helper()
		var out []string
		for {
			page, err := read(after)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				return strings.Join(out, " ")
			}
			for _, f := range page {
				out = append(out, fmt.Sprintf("%d.%d:%s<%s", f.Place.Subject, f.Place.Version, f.Sealed, f.Previous))
			}
			after = page[len(page)-1].Place
		}
	}
	newOf := func(kind postgres.FactKind) func(postgres.FactPlace) ([]postgres.Fact, error) {
		return func(after postgres.FactPlace) ([]postgres.Fact, error) {
			return c.NewFacts(t.Context(), kind, after, 2)
		}
	}
	allOf := func(kind postgres.FactKind) func(postgres.FactPlace) ([]postgres.Fact, error) {
		return func(after postgres.FactPlace) ([]postgres.Fact, error) {
			return c.AllFacts(t.Context(), kind, after, 2)
		}
	}
	for name, got := range map[string][2]string{
		"new files":     {pages(newOf(postgres.LegalFiles), everyFact(1)), "9.1:b1< 7.3:a3<a2 -3.1:c1< 7.5:a5<"},
		"all files":     {pages(allOf(postgres.LegalFiles), everyFact(0)), "-3.1:c1< 7.1:a1< 7.2:a2< 7.3:a3< 7.5:a5< 9.1:b1<"},
		"new suppliers": {pages(newOf(postgres.SupplierRecords), everyFact(1)), "5.1:s1< 5.2:s2<s1"},
		"all suppliers": {pages(allOf(postgres.SupplierRecords), everyFact(0)), "5.1:s1< 5.2:s2<"},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %s, want %s", name, got[0], got[1])
		}
	}
	newestOf := func(kind postgres.FactKind, subjects ...int64) string {
		t.Helper()
		facts, err := c.NewestFacts(t.Context(), kind, subjects)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, f := range facts {
			out = append(out, fmt.Sprintf("%d.%d:%s<%s", f.Place.Subject, f.Place.Version, f.Sealed, f.Previous))
		}
		return strings.Join(out, " ")
	}
	if got := newestOf(postgres.LegalFiles, 9, 8, 7); got != "9.1:b1< 8.0:< 7.5:a5<" {
		t.Error(got)
	}
	if got := newestOf(postgres.SupplierRecords, 5); got != "5.2:s2<s1" {
		t.Error(got)
	}
	if _, err := c.NewFacts(t.Context(), 3, everyFact(0), 1); err == nil {
		t.Error("a kind that there is not")
	}

	// The horizon stays before whatever is not committed yet, also by other
	// tests, whose transactions are of the same cluster.
	tx, err := owner.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), `INSERT INTO legal_file (ean, version, file, sealed_at) VALUES (11, 1, 'late', now())`); err != nil {
		t.Fatal(err)
	}
	exec(`INSERT INTO legal_file (ean, version, file, sealed_at) VALUES (12, 1, 'later', now())`)
	horizon, err := c.FactHorizon(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := pages(newOf(postgres.LegalFiles), everyFact(horizon)); !strings.HasSuffix(got, "12.1:later<") || strings.Contains(got, "11.1:") {
		t.Errorf("from the horizon on: %s", got)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := pages(newOf(postgres.LegalFiles), everyFact(horizon)); !strings.HasSuffix(got, "11.1:late< 12.1:later<") {
		t.Errorf("from the horizon on, after the commit: %s", got)
	}

	if n, err := c.FactMark(t.Context()); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, n := range []uint64{5, 1 << 40} {
		if err := c.SetFactMark(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		if got, err := c.FactMark(t.Context()); got != n || err != nil {
			t.Errorf("%d, %v; want %d", got, err, n)
		}
	}
	owner.Close()
}

// TestFactsCost: looking costs the same however many there are.
// KLUIS_FACTS=1000000 go test -run FactsCost -v ./internal/postgres
func TestFactsCost(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	c, owner := custodian(t, d), d.Open(t, migrations.RoleOwner)
	points := 5000
	if v := os.Getenv("KLUIS_FACTS"); v != "" {
		if _, err := fmt.Sscan(v, &points); err != nil {
			t.Fatal(err)
		}
	}
	owner.SetMaxOpenConns(1)
	for _, stmt := range []string{
		`INSERT INTO legal_file (ean, version, file, sealed_at) SELECT e, v, decode(repeat('ab', 500), 'hex'), now() FROM generate_series(1, %d) e, generate_series(1, 3) v`,
		`ANALYZE legal_file`, `SET enable_seqscan = off`, `SET enable_hashjoin = off`, `SET enable_mergejoin = off`,
	} {
		if strings.Contains(stmt, "%d") {
			stmt = fmt.Sprintf(stmt, points)
		}
		if _, err := owner.ExecContext(t.Context(), stmt); err != nil {
			t.Fatal(err)
		}
	}
	var horizon uint64 // as if nothing else were under way in the cluster
	err := owner.QueryRowContext(t.Context(), `SELECT max(arrived::text::bigint) + 1 FROM legal_file`).Scan(&horizon)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := owner.ExecContext(t.Context(), `INSERT INTO legal_file (ean, version, file, sealed_at) SELECT e, 4, 'x', now() FROM generate_series(1, 10) e`); err != nil {
		t.Fatal(err)
	}
	measure := func(what string, limit time.Duration, f func() error) {
		t.Helper()
		best := time.Hour
		for range 5 {
			began := time.Now()
			err = errors.Join(err, f())
			best = min(best, time.Since(began))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d files: %s in %s", 3*points+10, what, best.Round(10*time.Microsecond))
		if best > limit {
			t.Errorf("%s took %s", what, best)
		}
	}
	measure("a look with 10 new ones", time.Second, func() error {
		page, err := c.NewFacts(t.Context(), postgres.LegalFiles, everyFact(horizon), 500)
		if len(page) != 10 || string(page[9].Sealed) != "x" || len(page[9].Previous) != 500 {
			t.Errorf("%d", len(page))
		}
		return err
	})
	measure("a look with nothing new", time.Second, func() error {
		now, err := c.FactHorizon(t.Context())
		if err != nil {
			return err
		}
		_, err = c.NewFacts(t.Context(), postgres.LegalFiles, everyFact(now), 500)
		return err
	})
	measure("a page of 500 of all", time.Second, func() error {
		_, err := c.AllFacts(t.Context(), postgres.LegalFiles, everyFact(0), 500)
		return err
	})
	subjects := make([]int64, 1000)
	for i := range subjects {
		subjects[i] = int64(1 + i*points/1000)
	}
	measure("the newest of 1000", time.Second, func() error {
		_, err := c.NewestFacts(t.Context(), postgres.LegalFiles, subjects)
		return err
	})
}

// TestFactsSize: a page of facts is bounded in bytes, whatever somebody stored,
// and all of them come nevertheless, also those that come with a large one
// before them.
func TestFactsSize(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	c, owner := custodian(t, d), d.Open(t, migrations.RoleOwner)
	// Of each second one only the version before is large.
	if _, err := owner.ExecContext(t.Context(), `INSERT INTO legal_file (ean, version, file, sealed_at)
		SELECT e, v, CASE v WHEN 1 THEN decode(repeat('00', 1048576), 'hex') ELSE 'x' END, now() FROM generate_series(1, 40) e, generate_series(1, 2) v`); err != nil {
		t.Fatal(err)
	}
	const most = 16 << 20
	for name, read := range map[string]func(postgres.FactPlace) ([]postgres.Fact, error){
		"new": func(after postgres.FactPlace) ([]postgres.Fact, error) {
			return c.NewFacts(t.Context(), postgres.LegalFiles, after, 500)
		},
		"all": func(after postgres.FactPlace) ([]postgres.Fact, error) {
			return c.AllFacts(t.Context(), postgres.LegalFiles, after, 500)
		},
	} {
		found := 0
		for after := everyFact(0); ; {
			page, err := read(after)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			bytes := 0
			for _, f := range page {
				bytes += len(f.Sealed) + len(f.Previous)
			}
			if bytes > most {
				t.Errorf("%s: a page of %d facts has %d bytes", name, len(page), bytes)
			}
			found += len(page)
			after = page[len(page)-1].Place
		}
		if found != 80 {
			t.Errorf("%s: %d facts of 80", name, found)
		}
	}
	subjects := make([]int64, 60)
	for i := range subjects {
		subjects[i] = int64(i + 1)
	}
	seen := 0
	for len(subjects) > 0 {
		newest, err := c.NewestFacts(t.Context(), postgres.LegalFiles, subjects)
		if err != nil || len(newest) == 0 || len(newest) > 16+20 {
			t.Fatalf("%d, %v", len(newest), err)
		}
		for i, f := range newest {
			if f.Place.Subject != subjects[i] || (f.Place.Version == 2) != (f.Place.Subject <= 40) {
				t.Errorf("%+v", f.Place)
			}
		}
		seen, subjects = seen+len(newest), subjects[len(newest):]
	}
	if seen != 60 {
		t.Errorf("%d", seen)
	}
}
