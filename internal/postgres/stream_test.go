package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/internal/devpg"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

// TestManyFilesAreThoseOfOne: whatever is stored, many are answered as each by
// itself.
func TestManyFilesAreThoseOfOne(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g := gateway(t, d)
	owner := d.Open(t, migrations.RoleOwner)
	insert := func(of meter.EAN, versions ...int) {
		for _, v := range versions {
			if _, err := owner.ExecContext(t.Context(), `INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, $2, $3, now())`,
				of.Int64(), v, fmt.Appendf(nil, "%s/%d", of, v)); err != nil {
				t.Fatal(err)
			}
		}
	}
	insert(ean(1), 1)
	insert(ean(2), 1, 2, 3)
	insert(ean(3), 1, 3) // one is missing
	insert(ean(4), 2)
	eans := []meter.EAN{ean(4), ean(9), ean(1), ean(3), ean(2), ean(8)} // 8 and 9 have none
	files, err := g.LegalFiles(t.Context(), eans)
	if err != nil || len(files) != len(eans) {
		t.Fatal(len(files), err)
	}
	versions, err := g.Versions(t.Context(), eans)
	if err != nil || len(versions) != len(eans) {
		t.Fatal(versions, err)
	}
	for i, e := range eans {
		one, err := g.LegalFile(t.Context(), e)
		if err != nil || !reflect.DeepEqual(files[i], one) {
			t.Errorf("%s: %+v among many, %+v alone, %v", e, files[i], one, err)
		}
		if versions[i] != one.Version {
			t.Errorf("%s: version %d among many, %d alone", e, versions[i], one.Version)
		}
	}
	if files[4].Version != 3 || string(files[4].Previous) != ean(2).String()+"/2" || files[1].Sealed != nil || files[3].Previous != nil {
		t.Errorf("%+v", files)
	}
	for name, f := range map[string]func([]meter.EAN) (int, error){
		"files":    func(e []meter.EAN) (int, error) { out, err := g.LegalFiles(t.Context(), e); return len(out), err },
		"versions": func(e []meter.EAN) (int, error) { out, err := g.Versions(t.Context(), e); return len(out), err },
	} {
		if n, err := f(nil); n != 0 || err != nil {
			t.Errorf("%s of none: %d, %v", name, n, err)
		}
		if _, err := f(make([]meter.EAN, postgres.MaxManyPoints+1)); err == nil {
			t.Errorf("%s of more than may be at once", name)
		}
	}
}

// TestCandidateFiles: they are the candidates, with the versions before.
func TestCandidateFiles(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g, r := gateway(t, d), registrar(t, d)
	for n := range 12 {
		f := supplied(t, ean(n))
		if err := r.StoreLegalFile(t.Context(), f, fmt.Appendf(nil, "%s/1", f.EAN())); err != nil {
			t.Fatal(err)
		}
	}
	owner := d.Open(t, migrations.RoleOwner)
	for _, stmt := range []string{
		`INSERT INTO legal_file (ean, version, file, sealed_at) SELECT ean, version + 1, file || '+', now() FROM legal_file WHERE ean % 4 <> 0`,
		fmt.Sprintf(`INSERT INTO supply_period (ean, gln, from_day) SELECT n, %d, '2020-01-01' FROM unnest('{1,2,3,%d}'::bigint[]) n`, alpha.Int64(), ean(99).Int64()),
	} {
		if _, err := owner.ExecContext(t.Context(), stmt); err != nil {
			t.Fatal(err)
		}
	}
	for _, limit := range []int{1, 2, 5, 13, 14, 1000} {
		var after meter.EAN
		for seen := 0; ; {
			want, err := g.Candidates(t.Context(), alpha, after, limit)
			if err != nil {
				t.Fatal(err)
			}
			got, err := g.CandidateFiles(t.Context(), alpha, after, limit)
			if err != nil || len(got) != len(want) {
				t.Fatalf("limit %d: %d of %d, %v", limit, len(got), len(want), err)
			}
			for i := range got {
				whole, err := g.LegalFile(t.Context(), got[i].EAN)
				if err != nil || got[i].EAN != want[i].EAN || !reflect.DeepEqual(got[i].LegalFile, whole) {
					t.Errorf("limit %d: %+v, want %s with %+v, %v", limit, got[i], want[i].EAN, whole, err)
				}
				after = got[i].EAN
			}
			if seen += len(got); len(got) < limit {
				if seen != 13 {
					t.Errorf("limit %d: %d in all, want 13", limit, seen)
				}
				break
			}
		}
	}
	if _, err := g.CandidateFiles(t.Context(), alpha, meter.EAN{}, postgres.MaxManyPoints+1); err == nil {
		t.Error("more than may be at once")
	}
}

// TestBlocksOfManyAreThoseOfOne: exactly the blocks of the grants, each metering
// point's with its own keys, however different what they read is.
func TestBlocksOfManyAreThoseOfOne(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g, in := gateway(t, d), ingest(t, d)
	for n := range 8 {
		seed(t, in, ean(n), days("2025-01-01", "2025-05-01"))
	}
	owner := d.Open(t, migrations.RoleOwner)
	if _, err := owner.ExecContext(t.Context(), `DELETE FROM data_key WHERE ean = $1 AND class = 2`, ean(5).Int64()); err != nil {
		t.Fatal(err)
	}
	bill := days("2025-02-01", "2025-03-01")
	grants := []authz.Grant{
		grant(t, ean(7), meter.Billing, bill, 1, 2, 3, 4),
		grant(t, ean(0), meter.Billing, bill, 1, 2, 3, 4), // the same reads
		{}, // nothing granted
		grant(t, ean(3), meter.EnergyManagement, days("2025-03-30", "2025-04-02"), 1, 6),
		grant(t, ean(20), meter.Billing, bill, 1, 2), // nothing stored
		grant(t, ean(5), meter.EnergyManagement, bill, 6, 7),
		grant(t, ean(1), meter.Billing, bill, 1, 2, 3, 4),
	}
	check := func(grants []authz.Grant) {
		t.Helper()
		got, err := g.BlocksOfMany(t.Context(), grants, time.Time{})
		if err != nil || len(got) != len(grants) {
			t.Fatal(len(got), err)
		}
		for i, grant := range grants {
			keys, blocks, err := g.Blocks(t.Context(), grant)
			if err != nil {
				t.Fatal(err)
			}
			if len(blocks) != len(got[i].Blocks) || len(keys) != len(got[i].Keys) {
				t.Fatalf("%s: %d blocks and %d keys among many, %d and %d alone", grant.EAN(), len(got[i].Blocks), len(got[i].Keys), len(blocks), len(keys))
			}
			for j, b := range blocks {
				m := got[i].Blocks[j]
				if (m.Key == envelope.NoKey) != (b.Key == envelope.NoKey) || m.Key >= 0 && !reflect.DeepEqual(got[i].Keys[m.Key], keys[b.Key]) {
					t.Errorf("%s: field %d day %s has key %d among many, %d alone", grant.EAN(), b.Field, b.Day, m.Key, b.Key)
				}
				m.Key = b.Key
				if !reflect.DeepEqual(m, b) {
					t.Errorf("%s: %+v among many, %+v alone", grant.EAN(), m, b)
				}
			}
		}
	}
	check(grants)
	slices.Reverse(grants)
	check(grants)
	check(grants[:1])
	check(nil)
	check([]authz.Grant{{}, {}})

	all := make([]authz.Grant, 0, 8)
	for range 20 {
		all = all[:0]
		for _, n := range rand.Perm(8) {
			from := day("2025-01-01") + meter.Day(rand.IntN(100))
			all = append(all, grant(t, ean(n), meter.EnergyManagement, meter.DayRange{From: from, To: from + 1 + meter.Day(rand.IntN(20))}, 1, 6))
		}
		check(all)
	}

	if _, err := g.BlocksOfMany(t.Context(), []authz.Grant{grants[0], grants[1], grants[0]}, time.Time{}); err == nil {
		t.Error("one metering point twice")
	}
	year := days("2025-01-01", "2026-01-01")
	var many []authz.Grant
	for n := range postgres.MaxManyBlocks/365/2 + 1 {
		many = append(many, grant(t, ean(n), meter.EnergyManagement, year, 6, 7))
	}
	if _, err := g.BlocksOfMany(t.Context(), many, time.Time{}); err == nil {
		t.Error("more stored days than may be at once")
	}
	if _, err := g.BlocksOfMany(t.Context(), make([]authz.Grant, postgres.MaxManyPoints+1), time.Time{}); err == nil {
		t.Error("more metering points than may be at once")
	}
}

// TestBlocksOfManyAsOf: of each day the newest version that was stored by then.
func TestBlocksOfManyAsOf(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g, in := gateway(t, d), ingest(t, d)
	period := days("2025-01-01", "2025-01-10")
	seed(t, in, home, period)
	seed(t, in, neighbour, period)
	// Version v was stored v minutes after the first instant.
	first := time.Date(2025, 6, 1, 12, 0, 0, 123456000, time.UTC)
	owner := d.Open(t, migrations.RoleOwner)
	if _, err := owner.ExecContext(t.Context(), `UPDATE sealed_block SET sealed_at = $1::timestamptz + version * INTERVAL '1 minute'`, first); err != nil {
		t.Fatal(err)
	}
	grants := []authz.Grant{grant(t, home, meter.EnergyManagement, period, 6), grant(t, neighbour, meter.EnergyManagement, period, 6, 7)}
	zone := time.FixedZone("elsewhere", -7*3600)
	for minutes, most := range map[time.Duration]uint32{0: 0, 1: 1, 2: 2, 3: 3, 99: 3} {
		for _, off := range []time.Duration{0, -time.Microsecond} {
			at := first.Add(minutes*time.Minute + off).In(zone)
			newest := most
			if off < 0 && most > 0 && minutes < 99 {
				newest--
			}
			got, err := g.BlocksOfMany(t.Context(), grants, at)
			if err != nil {
				t.Fatal(err)
			}
			for i, fields := range []int{1, 2} {
				want := 0
				if newest > 0 {
					want = period.Len() * fields
				}
				if len(got[i].Blocks) != want {
					t.Errorf("as of %v: %d blocks, want %d", at, len(got[i].Blocks), want)
				}
				for _, b := range got[i].Blocks {
					if v := min(newest, uint32(1+b.Day%3)); b.Version != v {
						t.Errorf("as of %v: day %s has version %d, want %d", at, b.Day, b.Version, v)
					}
				}
			}
		}
	}
}

// TestManyReadersBesideReplacement is TestReadersBesideReplacement for many.
func TestManyReadersBesideReplacement(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	c, in, g := custodian(t, d), ingest(t, d), gateway(t, d)
	period := days("2025-01-01", "2025-02-01")
	var grants []authz.Grant
	for n := range 6 {
		seed(t, in, ean(n), period)
		grants = append(grants, grant(t, ean(n), meter.EnergyManagement, period, 6))
	}
	// One was erased: that must not be taken for a replacement.
	if _, err := c.DeleteKeys(t.Context(), []postgres.KeyRef{{EAN: ean(0), ID: key(ean(0), meter.Intervals, period.From.Month()).ID}}, 1); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var reads atomic.Int64
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				points, err := g.BlocksOfMany(t.Context(), grants, time.Time{})
				if errors.Is(err, postgres.ErrUnavailable) {
					continue // too many one after another
				}
				if err != nil {
					t.Error(err)
					return
				}
				for i, p := range points {
					for _, b := range p.Blocks {
						if (b.Key == envelope.NoKey) != (i == 0) {
							t.Errorf("metering point %d has a block with key %d", i, b.Key)
							return
						}
						if i == 0 {
							continue
						}
						if under := p.Keys[b.Key].ID[15]; under != 0 && b.Ciphertext[0] != under {
							t.Errorf("a block under key %d says %d", under, b.Ciphertext[0])
							return
						}
					}
					if len(p.Blocks) != 31 {
						t.Errorf("%d blocks", len(p.Blocks))
						return
					}
				}
				reads.Add(1)
			}
		})
	}
	old := map[int]envelope.KeyRecord{}
	for n := byte(1); n < 40; n++ {
		time.Sleep(3 * time.Millisecond)
		who := 1 + int(n)%5
		if _, known := old[who]; !known {
			old[who] = key(ean(who), meter.Intervals, period.From.Month())
		}
		fresh := old[who]
		fresh.ID[15] = n
		blocks, err := c.BlocksUnder(t.Context(), old[who])
		if err != nil {
			t.Fatal(err)
		}
		for i := range blocks {
			blocks[i].Ciphertext = append([]byte{n}, blocks[i].Ciphertext[1:]...)
		}
		if err := c.ReplaceDataKey(t.Context(), old[who], fresh, blocks); err != nil {
			t.Fatal(err)
		}
		old[who] = fresh
	}
	stop.Store(true)
	wg.Wait()
	if reads.Load() == 0 {
		t.Error("nobody read")
	}
}

// interaction is n records of one.
func interaction(n int) []audit.Record {
	first := record()
	out := make([]audit.Record, n)
	for i := range out {
		out[i] = first
		out[i].EAN = ean(i)
		out[i].Receipt = []byte(strings.Repeat("receipt", i%50))
		if i%3 == 1 {
			out[i].Outcome, out[i].Receipt = audit.Withheld, nil
		}
		if len(out[i].Receipt) == 0 {
			out[i].Receipt = nil
		}
	}
	return out
}

func TestRecordMany(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g := gateway(t, d)
	owner := d.Open(t, migrations.RoleOwner)
	records := interaction(50)
	if err := errors.Join(g.RecordMany(t.Context(), records), g.RecordMany(t.Context(), nil)); err != nil {
		t.Fatal(err)
	}
	salts := map[string]bool{}
	for _, r := range records {
		var b, receipt, salt []byte
		var glnColumn, outcome int64
		err := owner.QueryRowContext(t.Context(), `SELECT record, receipt, salt, gln, outcome FROM access_log WHERE ean = $1 AND interaction_id = $2`,
			r.EAN.Int64(), fmt.Sprintf("%x", r.InteractionID)).Scan(&b, &receipt, &salt, &glnColumn, &outcome)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := audit.Parse(b, receipt); err != nil || !reflect.DeepEqual(back, r) || glnColumn != alpha.Int64() || outcome != int64(r.Outcome) {
			t.Errorf("stored %+v (%d, %d), want %+v, %v", back, glnColumn, outcome, r, err)
		}
		salts[string(salt)] = true
	}
	if len(salts) != len(records) {
		t.Errorf("%d different salts of %d", len(salts), len(records))
	}

	// All or none: the last one is there already, or is no record, or of another.
	count := func() string { return value(t, owner, `SELECT count(*) FROM access_log`) }
	again := interaction(3)
	again[0].InteractionID, again[1].InteractionID, again[2].InteractionID = records[0].InteractionID, records[0].InteractionID, records[0].InteractionID
	again[0].EAN, again[1].EAN, again[2].EAN = ean(100), ean(101), ean(49)
	if err := g.RecordMany(t.Context(), again); !errors.Is(err, postgres.ErrUnavailable) {
		t.Errorf("one that is there: %v", err)
	}
	odd := interaction(3)
	odd[2].Operation = 0
	if err := g.RecordMany(t.Context(), odd); !errors.Is(err, audit.ErrRecord) {
		t.Errorf("one that is no record: %v", err)
	}
	for name, change := range map[string]func(*audit.Record){
		"of another interaction": func(r *audit.Record) { r.InteractionID[0]++ },
		"of another caller":      func(r *audit.Record) { r.Supplier = beta },
	} {
		mixed := interaction(3)
		change(&mixed[2])
		if err := g.RecordMany(t.Context(), mixed); err == nil {
			t.Errorf("one %s was taken", name)
		}
	}
	if err := g.RecordMany(t.Context(), interaction(postgres.MaxManyPoints+1)); err == nil {
		t.Error("more than may be at once")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.RecordMany(ctx, interaction(2)); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	if got := count(); got != "50" {
		t.Errorf("%s records", got)
	}
	if err := g.RecordMany(t.Context(), interaction(postgres.MaxManyPoints)); err != nil {
		t.Errorf("as many as may be: %v", err)
	}
	if got := count(); got != "1050" {
		t.Errorf("%s records", got)
	}
}

// TestRecordManyFaults: whatever becomes of the connection, success means that
// all are durable, each once, and after an error none is, or all are.
func TestRecordManyFaults(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	owner := d.Open(t, migrations.RoleOwner)
	p := newProxy(t, d.Socket())
	c := p.through(d, migrations.RoleGateway)
	c.StatementTimeout = 500 * time.Millisecond
	g, err := postgres.NewGateway(t.Context(), c)
	g = closing(t, g, err)
	count := func(r []audit.Record) string {
		return value(t, owner, `SELECT count(*) FROM access_log WHERE interaction_id = encode($1, 'hex')::uuid`, r[0].InteractionID[:])
	}
	if err := g.RecordMany(t.Context(), interaction(20)); err != nil { // prepared on the connection
		t.Fatal(err)
	}
	for name, f := range map[string]fault{"lost": lost, "unanswered": unanswered} {
		r := interaction(20)
		p.arm(f, "kluis/access-record")
		err := g.RecordMany(t.Context(), r)
		if p.hits() != 1 {
			t.Fatal("the fault did not strike")
		}
		got := count(r)
		if err == nil && got != "20" || err != nil && !errors.Is(err, postgres.ErrUnavailable) || got != "0" && got != "20" {
			t.Errorf("%s: %v, %s records", name, err, got)
		}
		if f == unanswered && (err == nil || got != "20") {
			t.Errorf("stored, and not confirmed: %v, %s records", err, got)
		}
		if err := g.RecordMany(t.Context(), interaction(20)); err != nil {
			t.Fatalf("the pool did not recover: %v", err)
		}
	}
	r := interaction(20)
	p.arm(frozen, "kluis/access-record")
	if err := g.RecordMany(t.Context(), r); !errors.Is(err, postgres.ErrUnavailable) || count(r) != "0" {
		t.Errorf("frozen: %v, %s records", err, count(r))
	}
}

// A commit that no standby confirms is none, of many records, too.
func TestStandbyDoesNotConfirmMany(t *testing.T) {
	t.Parallel()
	cl := pgtest.Cluster(t, devpg.Config{Dir: pgtest.Dir(t)})
	g, err := postgres.NewGateway(t.Context(), postgres.Config{DSN: cl.URL(migrations.RoleGateway, "kluis")})
	g = closing(t, g, err)
	admin := must(openURL(cl.URL(devpg.Superuser, "kluis")))
	t.Cleanup(func() { admin.Close() })
	for _, stmt := range []string{"ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()"} {
		if _, err := admin.ExecContext(t.Context(), stmt); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond) // for the sessions to read it
	done := make(chan error, 1)
	go func() { done <- g.RecordMany(t.Context(), interaction(3)) }()
	for cancelled := 0; ; {
		select {
		case err := <-done:
			if !errors.Is(err, postgres.ErrUnavailable) || !strings.Contains(err.Error(), "standby") || cancelled == 0 {
				t.Errorf("%v, after %d cancels", err, cancelled)
			}
			return
		case <-time.After(20 * time.Millisecond):
			var n int
			if err := admin.QueryRowContext(t.Context(), `SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			cancelled += n
		}
	}
}

// TestManyPlans: each descends an index for each metering point, and opens no
// month that holds nothing of what is asked, whatever plan PostgreSQL makes.
func TestManyPlans(t *testing.T) {
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
	exec(`SET enable_sort = off`) // as the gateway's connections

	three := fmt.Sprintf("'{%d,%d,%d}'", ean(1).Int64(), ean(2).Int64(), ean(3).Int64())
	february := three + ", '{1,1,1}', '{4,4,4}', '{1,1,2,2}', '{20120,20148,20120,20148}', '{20121,20149,20121,20149}', 20120, 20149"
	for _, analysed := range []bool{false, true} {
		if analysed {
			exec(`ANALYZE`)
		}
		for name, c := range map[string]struct {
			query, types, args string
			want               []string
		}{
			"files":    {postgres.QueryStoredFiles, "bigint[]", three, []string{"Index Scan Backward using legal_file_pkey"}},
			"versions": {postgres.QueryVersions, "bigint[]", three, []string{"Backward using legal_file_pkey"}},
			"candidates": {
				postgres.QueryCandidateFiles, "bigint, bigint, int", "1, 900, 20",
				[]string{"supply_period_by_supplier", "consent_by_supplier", "Index Scan Backward using legal_file_pkey"},
			},
			"blocks": {
				postgres.QueryManyBlocks, "bigint[], int[], int[], smallint[], int[], int[], int, int", february,
				[]string{"Index Scan Backward using sealed_block_2025_02_pkey", "Index Scan Backward using sealed_block_2025_03_pkey"},
			},
			"blocks as of": {
				postgres.QueryManyAsOf, "bigint[], int[], int[], smallint[], int[], int[], int, int, timestamptz", february + ", now()",
				[]string{"Index Scan Backward using sealed_block_2025_02_pkey"},
			},
			"keys": {
				postgres.QueryManyKeys, "bigint[], uuid[]", three + ", ARRAY[gen_random_uuid(), gen_random_uuid(), gen_random_uuid()]",
				[]string{"Index Scan using data_key_pkey"},
			},
		} {
			if name == "candidates" && !analysed {
				continue
			}
			for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
				exec(`SET plan_cache_mode = ` + mode)
				exec(`DEALLOCATE ALL`)
				exec(`PREPARE q (` + c.types + `) AS ` + c.query)
				plan := explain(t, owner.QueryContext, `EXPLAIN (COSTS OFF) EXECUTE q (`+c.args+`)`)
				bad := strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Hash Join") || strings.Contains(plan, "Bitmap") ||
					strings.Contains(plan, "Filter:") && name != "blocks as of" ||
					strings.Contains(plan, "->  Sort") && name != "candidates" ||
					strings.Contains(plan, "sealed_block_default") || strings.Count(plan, "using sealed_block_2") > 2
				for _, w := range c.want {
					bad = bad || !strings.Contains(plan, w)
				}
				if bad {
					t.Errorf("%s (%s, analysed %v):\n%s", name, mode, analysed, plan)
				}
			}
		}
	}
}

// BenchmarkMany is the database's part of a batch of a stream: the monthly
// statements of 200 metering points.
func BenchmarkMany(b *testing.B) {
	const points = 200
	d := pgtest.New(b)
	g, r, in := gateway(b, d), registrar(b, d), ingest(b, d)
	var eans []meter.EAN
	var grants []authz.Grant
	for n := range points {
		f := supplied(b, ean(n))
		if err := r.StoreLegalFile(b.Context(), f, f.Payload()); err != nil {
			b.Fatal(err)
		}
		seed(b, in, ean(n), days("2025-01-25", "2025-04-05"))
		eans = append(eans, ean(n))
		grants = append(grants, grant(b, ean(n), meter.Billing, days("2025-03-01", "2025-04-01"), 1, 2, 3, 4))
	}
	owner := d.Open(b, migrations.RoleOwner)
	if _, err := owner.ExecContext(b.Context(), "ANALYZE"); err != nil {
		b.Fatal(err)
	}
	bench(b, "files", func() error { _, err := g.LegalFiles(b.Context(), eans); return err })
	bench(b, "versions", func() error { _, err := g.Versions(b.Context(), eans); return err })
	bench(b, "blocks", func() error { _, err := g.BlocksOfMany(b.Context(), grants, time.Time{}); return err })
	bench(b, "records", func() error { return g.RecordMany(b.Context(), interaction(points)) })
}

func bench(b *testing.B, name string, f func() error) {
	b.Run(name, func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := f(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
