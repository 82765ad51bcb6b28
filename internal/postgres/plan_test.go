package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"kluis/authz"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

// TestPlans: the hot statements walk an index from its beginning, whatever
// plan PostgreSQL makes of them: neither a scan of a table nor a sort of rows
// that hold ciphertext.
func TestPlans(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in := ingest(t, d)
	for n := range 6 {
		seed(t, in, ean(n), days("2025-01-01", "2025-07-01"))
	}
	owner := d.Open(t, migrations.RoleOwner)
	owner.SetMaxOpenConns(1)
	exec := func(stmt string, args ...any) {
		t.Helper()
		if _, err := owner.ExecContext(t.Context(), stmt, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(`INSERT INTO legal_file SELECT ean, v, repeat('x', 900)::bytea, now() FROM generate_series(1, 3000) ean, generate_series(1, 3) v`)
	exec(`INSERT INTO data_key SELECT ean, gen_random_uuid(), 1, m, 0, 1, repeat('x', 40)::bytea, repeat('x', 32)::bytea, now() FROM generate_series(1, 3000) ean, generate_series(600, 602) m`)
	exec(`INSERT INTO supply_period SELECT ean, 1 + ean % 60, '2025-01-01' FROM generate_series(1, 3000) ean`)
	exec(`INSERT INTO consent SELECT ean, gen_random_uuid(), 1 + ean % 60, 2, '2025-01-01', NULL, now() FROM generate_series(1, 3000) ean`)

	exec(`INSERT INTO idempotency_key SELECT 1 + n % 60, sha256(n::text::bytea), sha256('x'), gen_random_uuid(), now() FROM generate_series(1, 3000) n`)

	exec(`SET enable_seqscan = off`) // as the gateway's and ingest's connections
	for _, analysed := range []bool{false, true} {
		if analysed {
			exec(`ANALYZE`)
		}
		for name, c := range map[string]struct {
			query string
			types string
			args  string
			want  []string
			page  bool // few keys, which may be sorted; wants statistics
		}{
			"blocks": {
				postgres.QueryBlocks, "bigint, smallint[], int[], int[], int, int",
				fmt.Sprintf("%d, '{1,2,3,4,6,7}', '{20120,20120,20120,20120,20120,20120}', '{20152,20152,20152,20152,20151,20151}', 20120, 20152", ean(2).Int64()),
				[]string{"Index Scan Backward using sealed_block_2025_02_pkey"}, false,
			},
			"month boundaries": {
				postgres.QueryBlocks, "bigint, smallint[], int[], int[], int, int",
				fmt.Sprintf("%d, '{1,1,1,1,1,1}', '{20089,20120,20148,20179,20209,20240}', '{20090,20121,20149,20180,20210,20241}', 20089, 20241", ean(2).Int64()),
				[]string{"Index Scan Backward using sealed_block_2025_02_pkey"}, false,
			},
			"heads": {
				postgres.QueryHeads, "bigint[], smallint[], int, int", fmt.Sprintf("'{%d,%d}', '{1,6}', 20120, 20152", ean(2).Int64(), ean(4).Int64()),
				[]string{"Index Scan Backward using sealed_block_2025_02_pkey"}, false,
			},
			"stored days": {
				postgres.QueryStored, "bigint, smallint[], int[], int[], int, int",
				fmt.Sprintf("%d, '{1,2,3,4,6,7}', '{20120,20120,20120,20120,20120,20120}', '{20152,20152,20152,20152,20151,20151}', 20120, 20152", ean(2).Int64()),
				[]string{"Index Scan Backward using sealed_block_2025_02_pkey"}, true, // runs of days are sorted, not ciphertext
			},
			"keys": {
				postgres.QueryKeys, "bigint, uuid[]", fmt.Sprintf("%d, ARRAY[gen_random_uuid(), gen_random_uuid(), gen_random_uuid()]", ean(2).Int64()),
				[]string{"data_key_"}, true, // either index; or those of the metering point, filtered
			},
			"legal file and the one before": {
				postgres.QueryStoredFile, "bigint", "1500", []string{"Index Scan Backward using legal_file_pkey"}, false,
			},
			"consent": {
				postgres.QueryConsent, "uuid, bigint", "'00000000-0000-0000-0000-000000000001', 1",
				[]string{"consent_by_id", "Index Scan Backward using legal_file_pkey"}, true, // few rows, if any
			},
			"idempotency key": {
				postgres.QueryKeyed, "bigint, bytea", `1, '\x00'`, []string{"idempotency_key_pkey"}, true,
			},
			"candidates": {
				postgres.QueryCandidates, "bigint, bigint, int", "1, 900, 20",
				[]string{"supply_period_by_supplier", "consent_by_supplier", "Index Scan Backward using legal_file_pkey"}, true,
			},
		} {
			if c.page && !analysed {
				continue
			}
			for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
				exec(`SET plan_cache_mode = ` + mode)
				exec(`DEALLOCATE ALL`)
				exec(`PREPARE q (` + c.types + `) AS ` + c.query)
				plan := explain(t, owner.QueryContext, `EXPLAIN (COSTS OFF) EXECUTE q (`+c.args+`)`)
				bad := strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Filter:") && name != "keys" && name != "stored days"
				if !c.page {
					bad = bad || strings.Contains(plan, "->  Sort") || strings.Contains(plan, "Bitmap")
				}
				for _, w := range c.want {
					bad = bad || !strings.Contains(plan, w)
				}
				// Months that hold nothing of it are not opened, the default
				// partition never.
				opened := strings.Count(plan, "using sealed_block_2")
				bad = bad || strings.Contains(plan, "sealed_block_default") || opened > 2 && name != "month boundaries" || opened > 6
				if bad {
					t.Errorf("%s (%s, analysed %v):\n%s", name, mode, analysed, plan)
				}
			}
		}
	}
}

// TestPlansOfAnEmptyMonth: a plan is kept, and is made while a month is empty and
// the statistics say so; nobody passes over the month when it is full.
func TestPlansOfAnEmptyMonth(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	owner := d.Open(t, migrations.RoleOwner)
	if _, err := owner.ExecContext(t.Context(), `VACUUM (ANALYZE)`); err != nil {
		t.Fatal(err)
	}
	in, g := ingest(t, d), gateway(t, d)
	period := days("2025-01-10", "2025-03-20")
	use := func() {
		t.Helper()
		for n := range 3 {
			read := grant(t, ean(n), meter.EnergyManagement, period, 1, 2, 6)
			_, _, err1 := g.Blocks(t.Context(), read)
			_, err2 := g.Stored(t.Context(), []authz.Grant{read})
			_, err3 := g.BlocksOfMany(t.Context(), []authz.Grant{read}, time.Time{})
			_, err4 := in.Heads(t.Context(), []meter.EAN{ean(n)}, []meter.FieldCode{1, 6}, period)
			_, err5 := in.Keys(t.Context(), []meter.EAN{ean(n)}, period.From.Month(), period.To.Month())
			if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
				t.Fatal(err)
			}
		}
	}
	use()
	for n := range 3 {
		seed(t, in, ean(n), period)
	}
	use()
	// Each backend tells what it did when it has nothing else to do, at the latest
	// when it ends.
	if err := errors.Join(in.Close(), g.Close()); err != nil {
		t.Fatal(err)
	}
	for value(t, owner, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename IN ('kluis_gateway', 'kluis_ingest')`) != "0" {
		time.Sleep(10 * time.Millisecond)
	}
	const scans = `SELECT coalesce(string_agg(relname || ' ' || seq_tup_read, ', '), '') FROM pg_stat_user_tables WHERE (relname LIKE 'sealed_block%' OR relname = 'data_key') AND seq_tup_read > 0`
	if got := value(t, owner, scans); got != "" {
		t.Errorf("passed over: %s", got)
	}
	if got := value(t, owner, `SELECT sum(idx_scan) > 0 FROM pg_stat_user_tables WHERE relname LIKE 'sealed_block%'`); got != "true" {
		t.Errorf("nothing is counted: %s", got)
	}
}

func explain[R interface {
	Next() bool
	Scan(...any) error
	Err() error
	Close() error
}](t testing.TB, query func(context.Context, string, ...any) (R, error), stmt string) string {
	t.Helper()
	rows, err := query(t.Context(), stmt)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var b strings.Builder
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		b.WriteString(line + "\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// BenchmarkMonth is the database's part of a request: the two sealed facts,
// the blocks of a month (four registers at P1D, two interval fields) with
// their keys, and the access record.
func BenchmarkMonth(b *testing.B) {
	d := pgtest.New(b)
	g, r := gateway(b, d), registrar(b, d)
	f := supplied(b, home)
	if err := r.StoreLegalFile(b.Context(), f, f.Payload()); err != nil {
		b.Fatal(err)
	}
	in := ingest(b, d)
	for n := range 8 {
		seed(b, in, ean(n), days("2025-01-01", "2026-01-01"))
	}
	if _, err := d.Open(b, migrations.RoleOwner).ExecContext(b.Context(), "ANALYZE"); err != nil {
		b.Fatal(err)
	}
	month := grant(b, home, meter.EnergyManagement, days("2025-03-01", "2025-04-01"), 1, 2, 3, 4, 6, 7)
	for name, f := range map[string]func() error{
		"legalfile": func() error { _, err := g.LegalFile(b.Context(), home); return err },
		"blocks":    func() error { _, _, err := g.Blocks(b.Context(), month); return err },
		"record":    func() error { return g.Record(b.Context(), record()) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	// Raw statements for comparison.
	gw := d.Open(b, migrations.RoleGateway)
	st, err := gw.PrepareContext(b.Context(), `SELECT field, day - DATE '1970-01-01', version, resolution, uuid_send(key_id), ciphertext FROM sealed_block
		WHERE ean = $1 AND field = ANY($2::smallint[]) AND day >= DATE '1970-01-01' + $3::int AND day < DATE '1970-01-01' + $4::int`)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("raw", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			rows, err := st.QueryContext(b.Context(), home.Int64(), pq.Array([]int64{1, 2, 3, 4, 6, 7}), int64(day("2025-03-01")), int64(day("2025-04-01")))
			if err != nil {
				b.Fatal(err)
			}
			for rows.Next() {
				var a, bb, c, dd int64
				var k, ct []byte
				if err := rows.Scan(&a, &bb, &c, &dd, &k, &ct); err != nil {
					b.Fatal(err)
				}
			}
			rows.Close()
		}
	})
}
