package postgres_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lib/pq"

	"kluis/auditlog/leaf"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/migrations"
)

// TestRecordsWith: a record came with a legal file when one transaction stored
// both, at the same metering point; found along an index.
func TestRecordsWith(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	owner := d.Open(t, migrations.RoleOwner)
	exec := func(stmt string, args ...any) {
		t.Helper()
		if _, err := owner.ExecContext(t.Context(), stmt, args...); err != nil {
			t.Fatal(err)
		}
	}
	// Each statement is a transaction. Version v of metering point n, with so many
	// records of so many bytes.
	store := func(n, v, records, bytes int) {
		t.Helper()
		exec(`WITH f AS (INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, $2, 'x', now()))
			INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt)
			SELECT $1, gen_random_uuid(), 1, 1, convert_to(lpad($1 || ' ' || $2, $4), 'UTF8'), '', decode(repeat('00', 16), 'hex') FROM generate_series(1, $3)`, n, v, records, bytes)
	}
	store(1, 1, 1, 600)
	store(1, 2, 0, 600)
	store(2, 1, 3, 600)
	store(2, 2, 1, 1024)
	store(2, 3, 1, 1025)
	exec(`WITH f AS (INSERT INTO legal_file (ean, version, file, sealed_at) VALUES (1, 3, 'x', now()))
		INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt) VALUES (2, gen_random_uuid(), 1, 1, 'x', '', decode(repeat('00', 16), 'hex'))`)
	a, err := postgres.NewAuditor(t.Context(), postgres.Config{DSN: d.URL(migrations.RoleAuditor)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	keys := []leaf.Key{}
	for _, k := range [][2]int64{{1, 1}, {1, 2}, {1, 3}, {1, 4}, {2, 1}, {2, 2}, {2, 3}, {1, 1}} {
		keys = append(keys, leaf.Key{Kind: leaf.LegalFile, Number: k[0], Version: k[1]})
	}
	got, err := a.RecordsWith(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{1, 0, 0, 0, 2, 1, 0, 1} {
		if len(got[i]) != want {
			t.Errorf("%v: %d records, want %d", keys[i], len(got[i]), want)
		}
		for _, r := range got[i] {
			if r.Kind != leaf.Access || r.Number != keys[i].Number || r.ID == [16]byte{} || strings.TrimLeft(string(r.Content), " ") != fmt.Sprint(keys[i].Number, keys[i].Version) {
				t.Errorf("%v: %+v", keys[i], r)
			}
		}
	}

	// One metering point with many records, all of one size.
	exec(`INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt, arrived)
		SELECT 1 + n % 9 / 8, gen_random_uuid(), 1, 1, repeat('x', 600)::bytea, '', decode(repeat('00', 16), 'hex'), (n / 2)::text::xid8 FROM generate_series(1, 30000) n`)
	exec(`INSERT INTO legal_file (ean, version, file, sealed_at) SELECT n, 7, repeat('x', 600)::bytea, now() FROM generate_series(3, 3000) n`)
	for _, analysed := range []bool{false, true} {
		if analysed {
			exec(`ANALYZE`)
		}
		for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
			func() {
				c, err := owner.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				for _, s := range []string{`SET plan_cache_mode = ` + mode, `DEALLOCATE ALL`, `PREPARE q (bigint[], bigint[]) AS ` + postgres.QueryWith} {
					if _, err := c.ExecContext(t.Context(), s); err != nil {
						t.Fatal(err)
					}
				}
				plan := explain(t, c.QueryContext, `EXPLAIN (COSTS OFF) EXECUTE q (`+pq.QuoteLiteral("{1,1,2}")+`, `+pq.QuoteLiteral("{1,2,1}")+`)`)
				if !strings.Contains(plan, "using access_log_by_arrival") && !strings.Contains(plan, "on access_log_by_arrival") || strings.Contains(plan, "Seq Scan") {
					t.Errorf("%s, analysed %v:\n%s", mode, analysed, plan)
				}
			}()
		}
	}
}
