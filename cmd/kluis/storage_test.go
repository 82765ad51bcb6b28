package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"kluis/internal/config"
	"kluis/internal/devpg"
	"kluis/internal/postgres"
	"kluis/meter"
	"kluis/migrations"
)

// TestStorage: months are made, put in order and shown; what cannot be done is
// said and leaves everything as it was.
func TestStorage(t *testing.T) {
	w := newWorld(t)
	owner := w.db.Open(t, migrations.RoleOwner)
	now := time.Now()
	if _, err := owner.ExecContext(t.Context(), `
		INSERT INTO sealed_block (ean, field, day, version, resolution, key_id, value_count, content_mac, ciphertext)
		SELECT e, 1, d::date, 1, 3, gen_random_uuid(), 1, decode(repeat('5c', 32), 'hex'), 'x'
		FROM generate_series($1::timestamp, $2::timestamp, INTERVAL '1 day') d, generate_series(1, 50) e`,
		now.AddDate(0, -3, 0).Format("2006-01-02"), now.Format("2006-01-02")); err != nil {
		t.Fatal(err)
	}
	if _, err := owner.ExecContext(t.Context(), `INSERT INTO sealed_block (ean, field, day, version, resolution, key_id, value_count, content_mac, ciphertext)
		VALUES (1, 1, '2012-05-05', 1, 3, gen_random_uuid(), 1, decode(repeat('5c', 32), 'hex'), 'x')`); err != nil {
		t.Fatal(err)
	}
	if _, err := owner.ExecContext(t.Context(), `ANALYZE sealed_block`); err != nil {
		t.Fatal(err)
	}
	blocks := w.count("sealed_block")

	if out := w.must("storage", "status"); !strings.Contains(out, "kluis storage months --from MONTH") || !strings.Contains(out, monthDue) {
		t.Errorf("status: %s", out)
	}
	if out := w.must("storage", "months"); out != "Made 0 months, moved 0 blocks into them.\n" {
		t.Errorf("months: %s", out)
	}
	if out := w.must("storage", "months", "--from", "2012-05", "--until", "2012-06"); out != "Made 2 months, moved 1 blocks into them.\n" {
		t.Errorf("months: %s", out)
	}
	if out := w.must("storage", "status"); strings.Contains(out, "whose month is not there") {
		t.Errorf("status: %s", out)
	}
	dry := w.must("storage", "compact", "--dry-run")
	if !strings.Contains(dry, "2012-05: about") || strings.Contains(dry, now.Format("2006-01")) {
		t.Errorf("dry run: %s", dry)
	}
	out := w.must("storage", "compact")
	if n := strings.Count(out, "in order"); n != strings.Count(dry, "about") {
		t.Errorf("%s after %s", out, dry)
	}
	if out := w.must("storage", "compact"); out != "No month is due.\n" {
		t.Errorf("again: %s", out)
	}
	var v storageView
	if err := json.Unmarshal([]byte(w.must("storage", "status", "--json")), &v); err != nil {
		t.Fatal(err)
	}
	states := map[string]string{}
	for _, m := range v.Months {
		states[m.Month] = m.State
	}
	if states["2012-05"] != monthInOrder || states["2012-06"] != monthEmpty || states[now.Format("2006-01")] != monthOpen {
		t.Errorf("%+v", v)
	}
	if n := w.count("sealed_block"); n != blocks {
		t.Errorf("%d blocks, were %d", n, blocks)
	}

	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"compact 1999-13", exitUsage, "must be a month"},
		{"compact 2001-01", exitRefused, "no such month"},
		{"compact 2012-05 --abandon", exitRefused, "no such month"},
		{"compact --abandon", exitUsage, "wants the month"},
		{"compact --rows 0", exitUsage, "1 or more"},
		{"months --from 2030-01 --until 2029-01", exitUsage, "before --from"},
		{"months --from 1970-01 --until 2025-01", exitFailed, "at most 240"},
	} {
		code, out, complaint := w.kluis(append([]string{"storage"}, strings.Fields(c.args)...)...)
		if code != c.code || !strings.Contains(complaint, c.says) || out != "" {
			t.Errorf("%s: exit code %d, %s%s", c.args, code, out, complaint)
		}
	}
	interruptedMonths(t, w, owner)

	// Another than the owner cannot.
	for _, role := range []string{migrations.RoleIngest, migrations.RoleCustodian, devpg.Superuser} {
		conf, err := config.Load[config.Operator](w.config)
		if err != nil {
			t.Fatal(err)
		}
		conf.MigrateURL = w.db.URL(role)
		if err := config.Write(w.config, conf); err != nil {
			t.Fatal(err)
		}
		for _, args := range []string{"compact 2012-05", "status"} {
			if code, _, complaint := w.kluis(append([]string{"storage"}, strings.Fields(args)...)...); code != exitFailed || !strings.Contains(complaint, "logged in as "+role) {
				t.Errorf("%s as %s: exit code %d, %s", args, role, code, complaint)
			}
		}
	}

	// What the custodian's daemon says of it.
	res, err := http.Get("http://" + w.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	_, last := migrations.Months(now)
	for _, want := range []string{"\nkluis_storage_stray_bytes 0\n", "\nkluis_storage_copying_since_timestamp_seconds 0\n", fmt.Sprintf("\nkluis_storage_months_until_timestamp_seconds %g\n", float64(last.AddDate(0, 1, 0).Unix()))} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
}

// interruptedMonths: what was interrupted comes first, and nothing is left of it.
func interruptedMonths(t *testing.T, w *world, owner *sql.DB) {
	t.Helper()
	db, err := postgres.NewStorage(t.Context(), postgres.Config{DSN: w.db.URL(migrations.RoleOwner)})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	interrupt := func(month string) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		first, err := meter.ParseDay(month + "-01")
		if err != nil {
			t.Fatal(err)
		}
		err = db.Compact(ctx, first.Month(), postgres.CompactOptions{Progress: func(p postgres.CompactStep) {
			if p.Doing == "compare" {
				cancel()
			}
		}})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("%s is not interrupted: %v", month, err)
		}
	}
	exec := func(statement string) {
		t.Helper()
		if _, err := owner.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}

	interrupt("2012-05")
	if out := w.must("storage", "status"); !strings.Contains(out, monthInterrupted) {
		t.Errorf("status: %s", out)
	}
	out := w.must("storage", "compact", "2012-06") // another month
	if first, second := strings.Index(out, "2012-05: in order"), strings.Index(out, "2012-06: in order"); first < 0 || second < first {
		t.Errorf("what was interrupted does not come first: %s", out)
	}

	// A copy that differs stays for one night to be looked into.
	interrupt("2012-05")
	exec(`UPDATE sealed_block_2012_05_4 SET ciphertext = 'spoilt'`)
	if code, _, complaint := w.kluis("storage", "compact"); code != exitRefused || !strings.Contains(complaint, "2012-05: the copy was given up") {
		t.Errorf("exit code %d, %s", code, complaint)
	}
	if out := w.must("storage", "compact"); out != "No month is due.\n" {
		t.Errorf("after it was given up: %s", out)
	}

	// The month goes while its copy is there.
	interrupt("2012-06")
	exec(`DROP TABLE sealed_block_2012_06_2`)
	if out := w.must("storage", "compact"); !strings.Contains(out, "2012-06: the month is there no more") {
		t.Errorf("a copy of nothing: %s", out)
	}
	var left int
	if err := owner.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_class WHERE relname LIKE 'sealed_block_2%' AND relkind = 'r' AND NOT relispartition`).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d copies are left, %v", left, err)
	}
}
