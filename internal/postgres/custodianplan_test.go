package postgres_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

// TestCustodianPlans: what passes over all data keys does so along an index, a
// page at a time, and what looks for blocks finds them by metering point.
func TestCustodianPlans(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in := ingest(t, d)
	for n := range 4 {
		seed(t, in, ean(n), days("2025-01-01", "2025-04-01"))
	}
	owner := d.Open(t, migrations.RoleOwner)
	owner.SetMaxOpenConns(1)
	exec := func(stmt string, args ...any) {
		t.Helper()
		if _, err := owner.ExecContext(t.Context(), stmt, args...); err != nil {
			t.Fatal(err)
		}
	}
	points := 3000
	if os.Getenv("KLUIS_PLAN_POINTS") != "" { // to measure: KLUIS_PLAN_POINTS=40000 go test -run CustodianPlans -v
		if _, err := fmt.Sscan(os.Getenv("KLUIS_PLAN_POINTS"), &points); err != nil {
			t.Fatal(err)
		}
	}
	// By month and then by metering point, as they come in.
	exec(`INSERT INTO data_key SELECT ean, gen_random_uuid(), 1 + m % 2, m / 2, 0, 1, repeat('x', 40)::bytea, repeat('x', 32)::bytea, now()
		FROM generate_series(1200, 1223) m, generate_series(1, $1::int) ean`, points)
	exec(`ANALYZE`)
	// As the custodian's connections are.
	for _, method := range []string{"enable_seqscan", "enable_hashjoin", "enable_mergejoin"} {
		exec(`SET ` + method + ` = off`)
	}
	key := key(ean(2), meter.Registers, day("2025-02-01").Month())
	id := uuid.UUID(key.ID).String()
	from, to := int(day("2025-02-01")), int(day("2025-03-01"))
	middle := points / 2
	for name, c := range map[string]struct{ query, types, args, want string }{
		"scan": {
			postgres.QueryScan, "bigint, uuid, int, bigint, int, int, int, bigint",
			fmt.Sprintf("%d, '00000000-0000-0000-0000-000000000000', 5000, 9223372036854775807, NULL, 0, 2, 0", middle), "Index Scan using data_key_",
		},
		"scan of a metering point": {
			postgres.QueryScan, "bigint, uuid, int, bigint, int, int, int, bigint",
			fmt.Sprintf("%d, 'ffffffff-ffff-ffff-ffff-ffffffffffff', 5000, %d, 0, 0, 0, 0", middle-1, middle), "Index Scan using data_key_",
		},
		"count": {
			postgres.QueryCount, "tid, tid", "'(0,0)', '(16384,0)'", "Tid Range Scan",
		},
		"blocks under a key": {
			postgres.QueryUnder, "bigint, uuid, int, int", fmt.Sprintf("%d, '%s', %d, %d", ean(2).Int64(), id, from, to), "sealed_block_2025_02_pkey",
		},
		"delete": {
			postgres.QueryDelete, "bigint[], uuid[], bigint", fmt.Sprintf("'{%d}', '{%s}', 1", ean(2).Int64(), id), "using data_key_",
		},
		"blank": {
			postgres.ExecBlank, "bigint[], uuid[], int[], int[], int, int", fmt.Sprintf("'{%d}', '{%s}', '{%d}', '{%d}', %d, %d", ean(2).Int64(), id, from, to, from, to), "sealed_block_2025_02_pkey",
		},
		"rewrap": {
			postgres.ExecRewrapped, "bigint[], uuid[], int[], bytea[], bytea[], int[], bytea[], bytea[]",
			fmt.Sprintf(`'{%d}', '{%s}', '{1}', '{"\\x00"}', '{"\\x00"}', '{2}', '{"\\x00"}', '{"\\x00"}'`, ean(2).Int64(), id), "using data_key_",
		},
		"reseal": {
			postgres.ExecResealed, "bigint, uuid, uuid, smallint[], int[], int[], bytea[], int, int",
			fmt.Sprintf(`%d, '%s', gen_random_uuid(), '{1,2}', '{20120,20121}', '{1,1}', '{"\\x00","\\x01"}', %d, %d`, ean(2).Int64(), id, from, to), "sealed_block_2025_02_pkey",
		},
	} {
		for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
			exec(`SET plan_cache_mode = ` + mode)
			exec(`DEALLOCATE ALL`)
			exec(`PREPARE q (` + c.types + `) AS ` + c.query)
			plan := explain(t, owner.QueryContext, `EXPLAIN (COSTS OFF) EXECUTE q (`+c.args+`)`)
			if strings.Contains(plan, "Seq Scan") || !strings.Contains(plan, c.want) {
				t.Errorf("%s (%s):\n%s", name, mode, plan)
			}
			if testing.Verbose() && (name == "scan" || name == "count" || name == "blocks under a key") {
				began := time.Now()
				for range 10 {
					exec(`EXECUTE q (` + c.args + `)`)
				}
				t.Logf("%s (%s): %v\n%s", name, mode, time.Since(began)/10, explain(t, owner.QueryContext, `EXPLAIN (ANALYZE, BUFFERS) EXECUTE q (`+c.args+`)`))
			}
		}
	}
	if testing.Verbose() {
		// What an index for the selections would cost.
		exec(`CREATE INDEX tried ON data_key (month)`)
		t.Logf("%s rows: table %s, primary key %s, unique key %s, an index on the month %s", value(t, owner, `SELECT count(*) FROM data_key`),
			value(t, owner, `SELECT pg_size_pretty(pg_relation_size('data_key'))`), value(t, owner, `SELECT pg_size_pretty(pg_relation_size('data_key_pkey'))`),
			value(t, owner, `SELECT pg_size_pretty(pg_relation_size('data_key_ean_class_month_occupancy_key'))`), value(t, owner, `SELECT pg_size_pretty(pg_relation_size('tried'))`))
	}
}
