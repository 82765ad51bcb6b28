package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/internal/audit"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

// A metering point's rows come latest first, page by page, each once, also
// those of one moment; nobody else's do.
func TestAccessLog(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g := gateway(t, d)
	owner := d.Open(t, migrations.RoleOwner)
	start := time.Date(2026, 5, 2, 9, 30, 0, 123456000, time.UTC)
	var want []string
	for i := range 10 {
		r := record()
		r.InteractionID = [16]byte{byte(i + 1)}
		if i == 4 { // nothing was opened
			r.Outcome, r.FileVersion, r.Receipt = audit.NoRelation, 0, nil
		}
		if err := g.Record(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		// Four moments, several rows in each.
		at := start.Add(time.Duration(i/3) * time.Microsecond)
		if _, err := owner.ExecContext(t.Context(), `UPDATE access_log SET recorded_at = $1 WHERE interaction_id = $2`, at, uuid.UUID(r.InteractionID).String()); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprintf("%d %d %x", at.UnixMicro(), i+1, r.Receipt))
	}
	other := record()
	other.EAN = neighbour
	if err := g.Record(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(want)
	for _, run := range [][2]int{{0, 1}, {1, 4}, {4, 7}, {7, 10}} {
		slices.Reverse(want[run[0]:run[1]]) // within a moment upwards
	}

	forever := postgres.LogPlace{At: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
	all := func(after postgres.LogPlace, since time.Time, limit int) []string {
		t.Helper()
		var out []string
		for {
			rows, more, err := g.AccessLog(t.Context(), home, after, since, limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range rows {
				after = r.Place
				rec, err := audit.Parse(r.Record, r.Receipt)
				if err != nil || rec.InteractionID != r.Place.Interaction || rec.EAN != home || r.Place.At.Location() != time.UTC {
					t.Errorf("%+v, %v", rec, err)
				}
				out = append(out, fmt.Sprintf("%d %d %x", r.Place.At.UnixMicro(), r.Place.Interaction[0], r.Receipt))
			}
			if len(rows) > limit || more && len(rows) == 0 {
				t.Fatalf("%d rows of %d, more: %v", len(rows), limit, more)
			}
			if !more {
				return out
			}
		}
	}
	for _, limit := range []int{1, 2, 3, 7, 100} {
		if got := all(forever, time.Unix(0, 0), limit); !slices.Equal(got, want) {
			t.Errorf("by %d:\n%s\nwant\n%s", limit, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	if got := all(forever, start.Add(2*time.Microsecond), 4); !slices.Equal(got, want[:4]) {
		t.Errorf("since: %q", got)
	}
	if got := all(postgres.LogPlace{At: start}, time.Unix(0, 0), 4); !slices.Equal(got, want[7:]) {
		t.Errorf("from the first moment: %q", got)
	}
	if got := all(postgres.LogPlace{At: start.Add(-time.Microsecond)}, time.Unix(0, 0), 4); len(got) != 0 {
		t.Errorf("before the first: %q", got)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := g.AccessLog(ctx, home, forever, time.Unix(0, 0), 1); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := g.Suppliers(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// The current records of several parties come in one statement.
func TestSuppliersOfAPage(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g := gateway(t, d)
	owner := d.Open(t, migrations.RoleOwner)
	if _, err := owner.ExecContext(t.Context(), `INSERT INTO supplier (gln, version, record, sealed_at)
		SELECT $1::bigint, v, convert_to('alpha ' || v, 'UTF8'), now() FROM generate_series(1, 11) v UNION ALL SELECT $2::bigint, 1, 'beta', now()`, alpha.Int64(), beta.Int64()); err != nil {
		t.Fatal(err)
	}
	got, err := g.Suppliers(t.Context(), []meter.GLN{beta, alpha})
	if err != nil || len(got) != 2 || string(got[alpha]) != "alpha 11" || string(got[beta]) != "beta" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := g.Suppliers(t.Context(), nil); err != nil || len(got) != 0 {
		t.Errorf("%q, %v", got, err)
	}
}

// TestAccessLogPlan: a page of the access log walks its index from the place
// on, whatever plan PostgreSQL makes of it, and reads no more rows than it
// gives: neither other metering points' nor this one's own from before.
func TestAccessLogPlan(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	owner := d.Open(t, migrations.RoleOwner)
	owner.SetMaxOpenConns(1)
	exec := func(stmt string, args ...any) {
		t.Helper()
		if _, err := owner.ExecContext(t.Context(), stmt, args...); err != nil {
			t.Fatal(err)
		}
	}
	const insert = `INSERT INTO access_log (ean, recorded_at, interaction_id, gln, outcome, record, receipt, salt)
		SELECT %s, '2026-01-01'::timestamptz + n * interval '1 second', gen_random_uuid(), 1, 1, repeat('x', 600)::bytea, '', repeat('s', 16)::bytea FROM generate_series(1, %d) n`
	exec(fmt.Sprintf(insert, "1000 + n % 500", 5000))
	exec(fmt.Sprintf(insert, "42", 3000))
	exec(`INSERT INTO supplier (gln, version, record, sealed_at) SELECT g, v, 'x', now() FROM generate_series(1, 500) g, generate_series(1, 3) v`)
	for _, analysed := range []bool{false, true} {
		if analysed {
			exec(`ANALYZE`)
		}
		for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
			exec(`SET plan_cache_mode = ` + mode)
			exec(`DEALLOCATE ALL`)
			exec(`PREPARE q (bigint, timestamptz, uuid, timestamptz, int, bigint) AS ` + postgres.QueryAccessLog)
			plan := explain(t, owner.QueryContext, `EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS)
				EXECUTE q (42, '2026-01-01 00:25:00Z', '00000000-0000-0000-0000-000000000000', '1970-01-01', 100, 1000000)`)
			if !strings.Contains(plan, "Index Scan using access_log_by_time on access_log (actual rows=101 ") || strings.Contains(plan, "Sort") ||
				strings.Count(plan, "Rows Removed") != strings.Count(plan, "Rows Removed by Filter: 1\n") {
				t.Errorf("access log (%s, analysed %v):\n%s", mode, analysed, plan)
			}
			if !analysed {
				continue
			}
			exec(`PREPARE s (bigint[]) AS ` + postgres.QuerySuppliers)
			plan = explain(t, owner.QueryContext, `EXPLAIN (COSTS OFF) EXECUTE s ('{1,2,3}')`)
			if !strings.Contains(plan, "Index Scan Backward using supplier_pkey") || strings.Contains(plan, "Seq Scan") {
				t.Errorf("suppliers (%s):\n%s", mode, plan)
			}
		}
	}
}

// TestAccessLogSize: as large as records may be, no page is larger than 4 MiB
// and a row; none is left out.
func TestAccessLogSize(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g := gateway(t, d)
	if _, err := d.Open(t, migrations.RoleGateway).ExecContext(t.Context(), `INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt)
		SELECT $1, gen_random_uuid(), 1, 1, decode(repeat('00', 262144), 'hex'), decode(repeat('00', 4096), 'hex'), decode(repeat('00', 16), 'hex') FROM generate_series(1, 100)`, home.Int64()); err != nil {
		t.Fatal(err)
	}
	after, seen, pages := postgres.LogPlace{At: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}, 0, 0
	for more := true; more; pages++ {
		rows, further, err := g.AccessLog(t.Context(), home, after, time.Unix(0, 0), 500)
		if err != nil || len(rows) == 0 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		bytes := 0
		for _, r := range rows {
			bytes += len(r.Record) + len(r.Receipt)
		}
		if bytes > 4<<20 {
			t.Errorf("%d rows of %d bytes", len(rows), bytes)
		}
		seen, after, more = seen+len(rows), rows[len(rows)-1].Place, further
	}
	if seen != 100 || pages != 7 {
		t.Errorf("%d rows in %d pages", seen, pages)
	}
}
