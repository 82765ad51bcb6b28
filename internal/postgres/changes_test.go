package postgres_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

func rowsOf(of meter.EAN, version uint32, period meter.DayRange, fields ...meter.FieldCode) (out []postgres.Row) {
	for d := period.From; d < period.To; d++ {
		for _, f := range fields {
			out = append(out, postgres.Row{EAN: of, Field: f, Day: d, Version: version})
		}
	}
	return out
}

// TestChangedGolden fixes what is stored of a batch.
func TestChangedGolden(t *testing.T) {
	t.Parallel()
	rows := slices.Concat(
		rowsOf(home, 1, days("2026-03-01", "2026-04-01"), 2, 1, 3),
		rowsOf(home, 3, days("2026-03-30", "2026-04-02"), 6),
		rowsOf(home, 1, days("2026-04-01", "2026-04-02"), 1),
	)
	rand.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	changed := postgres.ChangedOf(rows)
	want := []postgres.Changed{
		{Fields: []meter.FieldCode{1, 2, 3}, Days: days("2026-03-01", "2026-04-01")},
		{Corrected: true, Fields: []meter.FieldCode{6}, Days: days("2026-03-30", "2026-04-02")},
		{Fields: []meter.FieldCode{1}, Days: days("2026-04-01", "2026-04-02")},
	}
	if !reflect.DeepEqual(changed, want) {
		t.Errorf("%+v", changed)
	}
	const golden = "01" + "00005021" + "001f" + "03" + "0001" + "0002" + "0003" +
		"02" + "0000503e" + "0003" + "01" + "0006" +
		"01" + "00005040" + "0001" + "01" + "0001"
	b := postgres.EncodeChanged(changed)
	if got := hex.EncodeToString(b); got != golden {
		t.Errorf("got  %s\nwant %s", got, golden)
	}
	if back, err := postgres.ParseChanged(b); err != nil || !reflect.DeepEqual(back, want) {
		t.Errorf("%+v, %v", back, err)
	}
	for n := range b {
		if n == 14 || n == 24 || n == 0 {
			continue // the end of a run
		}
		if _, err := postgres.ParseChanged(b[:n]); err == nil {
			t.Errorf("%d bytes of it are taken", n)
		}
	}
	if got := postgres.EncodeChanged(nil); got == nil || len(got) != 0 {
		t.Errorf("nothing is %x", got)
	}
}

// FuzzParseChanged: whatever is taken is written the same.
func FuzzParseChanged(f *testing.F) {
	f.Add(postgres.EncodeChanged(postgres.ChangedOf(rowsOf(home, 2, days("2026-03-01", "2026-03-05"), 1, 6))))
	f.Add([]byte{1, 0, 0, 0, 0, 0, 1, 0})
	f.Add([]byte{3})
	f.Fuzz(func(t *testing.T, b []byte) {
		changed, err := postgres.ParseChanged(b)
		if err != nil {
			return
		}
		if again := postgres.EncodeChanged(changed); !bytes.Equal(again, b) {
			t.Errorf("%x becomes %x", b, again)
		}
	})
}

// arrivals reads the feed of readings to its end.
func arrivals(t testing.TB, g *postgres.Gateway, of meter.GLN, after postgres.FeedPlace, horizon uint64, limit int) (out []postgres.ArrivedReadings, asked int) {
	t.Helper()
	for {
		rows, next, done, err := g.ArrivedReadings(t.Context(), of, after, horizon, limit)
		if err != nil {
			t.Fatal(err)
		}
		if asked++; len(rows) > limit {
			t.Errorf("%d rows, at most %d were asked for", len(rows), limit)
		}
		if out = append(out, rows...); done {
			if next != (postgres.FeedPlace{Arrived: horizon}) {
				t.Errorf("done, and it goes on at %+v", next)
			}
			return out, asked
		}
		if next == after {
			t.Fatal("no progress")
		}
		after = next
	}
}

// settledHorizon waits until what is stored now is before the oldest
// transaction: other databases of the cluster have some too.
func settledHorizon(t testing.TB, g *postgres.Gateway) uint64 {
	t.Helper()
	_, want, err := g.FeedHorizon(t.Context())
	for deadline := time.Now().Add(30 * time.Second); err == nil; time.Sleep(5 * time.Millisecond) {
		var oldest uint64
		if oldest, _, err = g.FeedHorizon(t.Context()); oldest >= want {
			return oldest
		}
		if time.Now().After(deadline) {
			t.Fatal("a transaction does not end")
		}
	}
	t.Fatal(err)
	return 0
}

// TestArrivedReadings: what ingest stored is found in the order of arrival, of
// the supplier's metering points, and none of it twice.
func TestArrivedReadings(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g, in, r := gateway(t, d), ingest(t, d), registrar(t, d)
	f := supplied(t, home)
	if err := r.StoreLegalFile(t.Context(), f, f.Payload()); err != nil {
		t.Fatal(err)
	}
	first := settledHorizon(t, g)
	seed(t, in, home, days("2025-01-01", "2025-01-03"))
	seed(t, in, neighbour, days("2025-01-01", "2025-01-03"))
	horizon := settledHorizon(t, g)
	got, _ := arrivals(t, g, alpha, postgres.FeedPlace{Arrived: first}, horizon, 100)
	if len(got) != 1 || got[0].EAN != home || len(got[0].Changed) == 0 || got[0].Changed[0].Corrected || got[0].Changed[0].Days.From != day("2025-01-01") ||
		got[0].Place.Arrived < first || got[0].Place.Arrived >= horizon {
		t.Fatalf("%+v", got)
	}
	// When it was stored is when its blocks were: as of a moment before, they are
	// not there.
	block := value(t, d.Open(t, migrations.RoleOwner), `SELECT count(DISTINCT b.sealed_at)::text || ' ' || bool_and(b.sealed_at = i.stored_at) FROM sealed_block b JOIN ingest_batch i USING (ean) WHERE ean = $1`, home.Int64())
	if block != "1 true" {
		t.Errorf("blocks and batch: %s", block)
	}
	month := grant(t, home, meter.EnergyManagement, days("2025-01-01", "2025-01-02"), 1)
	for at, want := range map[time.Time]int{{}: 2, got[0].At: 2, got[0].At.Add(-time.Microsecond): 0} {
		if _, blocks, err := g.BlocksAsOf(t.Context(), month, at); err != nil || len(blocks) != want {
			t.Errorf("as of %v: %d blocks, %v", at, len(blocks), err)
		}
	}
	if other, _ := arrivals(t, g, beta, postgres.FeedPlace{Arrived: first}, horizon, 100); len(other) != 0 {
		t.Errorf("to a stranger: %+v", other)
	}
	if none, _ := arrivals(t, g, alpha, postgres.FeedPlace{Arrived: first}, first, 100); len(none) != 0 {
		t.Errorf("beyond the horizon: %+v", none)
	}
}

// TestAsOf: the versions of a moment, also after they were sealed anew under
// another key, by either way to them; and what was erased is erased then, too.
func TestAsOf(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g, in, c := gateway(t, d), ingest(t, d), custodian(t, d)
	first := settledHorizon(t, g)
	period := days("2025-01-10", "2025-01-13")
	k := key(home, meter.Intervals, period.From.Month())
	batch := postgres.Batch{Keys: []envelope.KeyRecord{k}}
	for day := period.From; day < period.To; day++ {
		batch.Blocks = append(batch.Blocks, block(home, 6, day, 1))
	}
	for _, b := range []postgres.Batch{batch, {Blocks: []postgres.Row{block(home, 6, period.From+1, 2)}}} {
		if err := in.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Open(t, migrations.RoleOwner).ExecContext(t.Context(), `INSERT INTO supply_period (ean, gln, from_day) VALUES ($1, $2, '2025-01-01')`, home.Int64(), alpha.Int64()); err != nil {
		t.Fatal(err)
	}
	stored, _ := arrivals(t, g, alpha, postgres.FeedPlace{Arrived: first}, settledHorizon(t, g), 10)
	if len(stored) != 2 || stored[0].Changed[0].Corrected || !stored[1].Changed[0].Corrected || !stored[1].At.After(stored[0].At) {
		t.Fatalf("%+v", stored)
	}
	read := grant(t, home, meter.EnergyManagement, period, 6)
	check := func(what string, id [16]byte) {
		t.Helper()
		for at, want := range map[time.Time]string{
			{}: "[1 2 1]", stored[1].At: "[1 2 1]", stored[1].At.Add(-time.Microsecond): "[1 1 1]", stored[0].At: "[1 1 1]", stored[0].At.Add(-time.Microsecond): "[]",
		} {
			keys, blocks, err := g.BlocksAsOf(t.Context(), read, at)
			if err != nil {
				t.Fatal(err)
			}
			many, err := g.BlocksOfMany(t.Context(), []authz.Grant{read}, at)
			if err != nil || !reflect.DeepEqual(many[0].Blocks, blocks) && len(blocks)+len(many[0].Blocks) > 0 {
				t.Errorf("%s, %v: of many %d blocks, of one %d, %v", what, at, len(many[0].Blocks), len(blocks), err)
			}
			versions := []uint32{}
			for _, b := range blocks {
				versions = append(versions, b.Version)
				if id == [16]byte{} && b.Key != envelope.NoKey || id != [16]byte{} && (b.Key == envelope.NoKey || keys[b.Key].ID != id) {
					t.Errorf("%s, %v: key %d", what, at, b.Key)
				}
			}
			if fmt.Sprint(versions) != want {
				t.Errorf("%s, as of %v: versions %v, want %s", what, at, versions, want)
			}
		}
	}
	check("as stored", k.ID)
	fresh := k
	fresh.ID[15] ^= 0xff
	blocks, err := c.BlocksUnder(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ReplaceDataKey(t.Context(), k, fresh, resealed(blocks, "new ")); err != nil {
		t.Fatal(err)
	}
	check("sealed anew", fresh.ID)
	if _, err := d.Open(t, migrations.RoleOwner).ExecContext(t.Context(), `DELETE FROM data_key WHERE ean = $1`, home.Int64()); err != nil {
		t.Fatal(err)
	}
	check("erased", [16]byte{})
}

// TestFeedOfFewAmongMany: a supplier with one customer among many gets on by
// steps of bounded work; rows of others fill none of its answers, nor do those
// that ingest did not write.
func TestFeedOfFewAmongMany(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g := gateway(t, d)
	owner := d.Open(t, migrations.RoleOwner)
	exec := func(stmt string, args ...any) {
		t.Helper()
		if _, err := owner.ExecContext(t.Context(), stmt, args...); err != nil {
			t.Fatal(err)
		}
	}
	first := settledHorizon(t, g)
	const others = 2*postgres.MaxBatchesLooked + 5000
	one := postgres.EncodeChanged(postgres.ChangedOf(rowsOf(home, 1, days("2026-03-01", "2026-03-02"), 1)))
	exec(`INSERT INTO supply_period (ean, gln, from_day) VALUES ($1, $2, '2025-01-01')`, home.Int64(), alpha.Int64())
	exec(`INSERT INTO ingest_batch (ean, batch_id, keys, blocks, changed) SELECT n, gen_random_uuid(), 0, 1, $2 FROM generate_series(1, $1) n`, others, one)
	exec(`INSERT INTO ingest_batch (ean, batch_id, keys, blocks, changed) VALUES ($1, gen_random_uuid(), 0, 1, $2)`, home.Int64(), one)
	exec(`INSERT INTO ingest_batch (ean, batch_id, keys, blocks, changed) VALUES ($1, gen_random_uuid(), 0, 1, '\x01'), ($1, gen_random_uuid(), 1, 0, '')`, home.Int64())
	horizon := settledHorizon(t, g)
	got, asked := arrivals(t, g, alpha, postgres.FeedPlace{Arrived: first}, horizon, 10)
	if len(got) != 1 || got[0].EAN != home || asked != 3 {
		t.Errorf("%d rows in %d steps", len(got), asked)
	}
	// Many of its own come as many as are asked for.
	exec(`INSERT INTO supply_period (ean, gln, from_day) SELECT n, $2, '2025-01-01' FROM generate_series(1, $1) n`, others, beta.Int64())
	rows, next, done, err := g.ArrivedReadings(t.Context(), beta, postgres.FeedPlace{Arrived: first}, horizon, 10)
	// What is no EAN has no legal file, and is passed over.
	if err != nil || done || next.Arrived == 0 || len(rows) > 10 {
		t.Errorf("%d rows, %v, %+v, %v", len(rows), done, next, err)
	}
}

// TestArrivedFiles: versions are found by who is named in them, or in those
// before.
func TestArrivedFiles(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g, r := gateway(t, d), registrar(t, d)
	first := settledHorizon(t, g)
	f := file(t, home, authz.SetOccupancy{Days: days("2024-01-01", "")})
	store := func(step authz.Step) {
		t.Helper()
		if step != nil {
			f = must(authz.Apply(f, step, operator, f.SealedAt().Add(time.Microsecond), profile().Location()))
		}
		if err := r.StoreLegalFile(t.Context(), f, f.Payload()); err != nil {
			t.Fatal(err)
		}
	}
	store(nil)
	store(authz.SetSupply{Supplier: alpha, Days: days("2025-01-01", "")})
	store(authz.SetOptOut{Days: days("2026-01-01", "")})
	store(authz.CorrectSupply{Supplier: beta, Days: days("2025-01-01", "")})
	store(authz.EndOptOut{From: day("2026-11-21")})
	horizon := settledHorizon(t, g)
	versions := func(of meter.GLN, limit int) (out []uint64) {
		after := postgres.FeedPlace{Arrived: first}
		for {
			rows, next, done, err := g.ArrivedFiles(t.Context(), of, after, horizon, limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range rows {
				if v.EAN != home || v.Sealed == nil || (v.Previous == nil) != (v.Version == 2) {
					t.Errorf("%d: %v %v", v.Version, v.EAN, v.Previous == nil)
				}
				out = append(out, v.Version)
			}
			if after = next; done {
				return out
			}
		}
	}
	// f's first version stored is 2; alpha comes with 3, and goes with 5.
	for _, limit := range []int{1, 2, 100} {
		if got := fmt.Sprint(versions(alpha, limit)); got != "[3 4 5]" {
			t.Errorf("alpha: %s", got)
		}
		if got := fmt.Sprint(versions(beta, limit)); got != "[5 6]" {
			t.Errorf("beta: %s", got)
		}
		if got := versions(gln(3), limit); len(got) != 0 {
			t.Errorf("a stranger: %v", got)
		}
	}
	if got := column(t, d, `SELECT gln || ' ' || day FROM basis_day WHERE ean = $1 ORDER BY gln, day`, home.Int64()); !slices.Equal(got, []string{
		beta.String() + " 2025-01-01", beta.String() + " 2026-01-01", beta.String() + " 2026-11-21",
	}) {
		t.Errorf("days of bases: %q", got)
	}
	for _, c := range []struct {
		of    meter.GLN
		days  []string
		after meter.EAN
		want  int
	}{
		{beta, []string{"2025-01-01", "2026-01-01"}, meter.EAN{}, 1}, {beta, []string{"2025-01-02"}, meter.EAN{}, 0},
		{alpha, []string{"2025-01-01"}, meter.EAN{}, 0}, {beta, []string{"2025-01-01"}, home, 0},
	} {
		var of []meter.Day
		for _, s := range c.days {
			of = append(of, day(s))
		}
		if got, err := g.BasisDays(t.Context(), c.of, of, c.after, 10); err != nil || len(got) != c.want {
			t.Errorf("%v: %v, %v", c, got, err)
		}
	}
}

func column(t testing.TB, d *pgtest.DB, query string, args ...any) (out []string) {
	t.Helper()
	rows, err := d.Open(t, migrations.RoleOwner).QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestExpiredConsents: in the order in which they expire, those of the supplier
// that were active.
func TestExpiredConsents(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g := gateway(t, d)
	owner := d.Open(t, migrations.RoleOwner)
	at := time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC) // the hour that comes twice
	add := func(of meter.EAN, who meter.GLN, state int, until time.Time) uuid.UUID {
		id := uuid.New()
		if _, err := owner.ExecContext(t.Context(), `INSERT INTO consent (ean, consent_id, gln, state, from_day, valid_until) VALUES ($1, $2, $3, $4, '2025-01-01', $5)`,
			of.Int64(), id.String(), who.Int64(), state, until); err != nil {
			t.Fatal(err)
		}
		return id
	}
	want := []uuid.UUID{add(neighbour, alpha, 2, at), add(home, alpha, 2, at.Add(time.Hour)), add(home, alpha, 2, at.Add(time.Hour+time.Microsecond))}
	add(home, alpha, 4, at)
	add(home, beta, 2, at)
	add(home, alpha, 2, at.Add(48*time.Hour))
	for _, limit := range []int{1, 2, 10} {
		var got []uuid.UUID
		after := postgres.Expired{At: at.Add(-time.Hour)}
		for {
			list, err := g.ExpiredConsents(t.Context(), alpha, after, at.Add(24*time.Hour), limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				got, after = append(got, e.ID), e
			}
			if len(list) < limit {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
}

// TestMarks: what is committed after a moment is by the transaction that
// FeedSince says, or a later one; and a transaction that does not end shows.
func TestMarks(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g := gateway(t, d)
	owner := d.Open(t, migrations.RoleOwner)
	mark := func() time.Time {
		t.Helper()
		if _, err := owner.ExecContext(t.Context(), `DELETE FROM change_mark`); err != nil {
			t.Fatal(err)
		}
		if err := g.MarkChanges(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := g.MarkChanges(t.Context()); err != nil { // the minute has one
			t.Fatal(err)
		}
		if n := value(t, owner, `SELECT count(*)::text FROM change_mark`); n != "1" {
			t.Errorf("%s marks", n)
		}
		var micros int64
		if err := owner.QueryRowContext(t.Context(), `SELECT (extract(epoch FROM at) * 1000000)::bigint FROM change_mark`).Scan(&micros); err != nil {
			t.Fatal(err)
		}
		return time.UnixMicro(micros)
	}
	late, err := owner.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = late.Rollback() }()
	var xid uint64
	if err := late.QueryRowContext(t.Context(), `SELECT pg_current_xact_id()::text::bigint`).Scan(&xid); err != nil {
		t.Fatal(err)
	}
	at := mark()
	if since, err := g.FeedSince(t.Context(), at); err != nil || since > xid {
		t.Errorf("since %d, but %d is under way: %v", since, xid, err)
	}
	if since, err := g.FeedSince(t.Context(), at.Add(-time.Microsecond)); err != nil || since != 1 {
		t.Errorf("before any mark: %d, %v", since, err)
	}
	oldest, next, err := g.FeedHorizon(t.Context())
	if err != nil || oldest > xid || next <= xid {
		t.Errorf("%d, %d: %d is under way, %v", oldest, next, xid, err)
	}
	// No mark has all its transactions ended: the lag is since the first one.
	if _, err := owner.ExecContext(t.Context(), `UPDATE change_mark SET at = at - INTERVAL '1 hour'`); err != nil {
		t.Fatal(err)
	}
	if lag, err := g.ChangesLag(t.Context()); err != nil || lag < time.Hour {
		t.Errorf("behind by %v, %v", lag, err)
	}
	if err := late.Rollback(); err != nil {
		t.Fatal(err)
	}
	mark()
	settledHorizon(t, g)
	if lag, err := g.ChangesLag(t.Context()); err != nil || lag >= time.Hour {
		t.Errorf("behind by %v, %v", lag, err)
	}
}

// TestFeedPlans: what is looked at for an answer of the feed is bounded by the
// statement, whatever there is of other suppliers' or of the supplier's own: a
// walk along one index in its order, and no sort, hash or scan of a table.
func TestFeedPlans(t *testing.T) {
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
	exec(`INSERT INTO ingest_batch (ean, batch_id, keys, blocks, changed) SELECT n, gen_random_uuid(), 0, 4, '\x0100000001000104' FROM generate_series(1, 30000) n`)
	exec(`INSERT INTO supply_period SELECT n, 1 + n % 60, '2025-01-01' FROM generate_series(1, 30000) n`)
	exec(`INSERT INTO consent SELECT n, gen_random_uuid(), 1 + n % 60, 2, '2025-01-01', NULL, now() FROM generate_series(1, 30000) n`)
	exec(`INSERT INTO legal_file (ean, version, file, sealed_at) SELECT n, v, repeat('x', 300)::bytea, now() FROM generate_series(1, 5000) n, generate_series(1, 2) v`)
	exec(`INSERT INTO basis_day SELECT n, 1 + n % 60, '2025-01-01' FROM generate_series(1, 30000) n`)
	exec(`INSERT INTO change_mark (at, oldest, next) SELECT now() - n * INTERVAL '1 minute', '1', '1' FROM generate_series(1, 5000) n`)
	for _, analysed := range []bool{false, true} {
		if analysed {
			exec(`ANALYZE`)
		}
		for name, c := range map[string]struct {
			query, types, args string
			want               []string
			sorted             bool // a few rows, each page of which is
		}{
			"readings": {
				postgres.QueryArrivedReadings, "bigint, text, bigint, uuid, text, int, int", "1, '0', 0, '00000000-0000-0000-0000-000000000000', '999999999', 20000, 100",
				[]string{"using ingest_batch_by_arrival", "using supply_period_by_supplier", "using consent_by_"}, false,
			},
			"where readings end": {
				postgres.QueryReadingsEnd, "text, bigint, uuid, text, int", "'0', 0, '00000000-0000-0000-0000-000000000000', '999999999', 19999",
				[]string{"using ingest_batch_by_arrival"}, false,
			},
			"files": {
				postgres.QueryArrivedFiles, "bytea, text, bigint, bigint, text, int, int", `'\x01', '0', 0, 0, '999999999', 2000, 25`,
				[]string{"using legal_file_by_arrival", "using legal_file_pkey"}, false,
			},
			"where files end": {
				postgres.QueryFilesEnd, "text, bigint, bigint, text, int", "'0', 0, 0, '999999999', 1999", []string{"using legal_file_by_arrival"}, false,
			},
			"days of bases": {
				postgres.QueryBasisDays, "bigint, int[], bigint, int", "1, '{20089,20090}', 0, 100", []string{"using basis_day_by_day"}, true,
			},
			"expired": {
				postgres.QueryExpired, "bigint, bigint, bigint, uuid, bigint, int", "1, 0, 0, '00000000-0000-0000-0000-000000000000', 1900000000000000, 100",
				[]string{"using consent_by_expiry"}, false,
			},
			"mark": {postgres.QueryMarkAt, "bigint", "1900000000000000", []string{"using change_mark_pkey"}, false},
			"lag":  {postgres.QueryMarkLag, "", "", []string{"using change_mark_pkey"}, false},
		} {
			for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
				if mode == "force_custom_plan" && !analysed {
					continue // which the gateway does not use
				}
				exec(`SET plan_cache_mode = ` + mode)
				exec(`DEALLOCATE ALL`)
				prepare, execute := `PREPARE q (`+c.types+`) AS `, `EXPLAIN (COSTS OFF) EXECUTE q (`+c.args+`)`
				if c.types == "" {
					prepare, execute = `PREPARE q AS `, `EXPLAIN (COSTS OFF) EXECUTE q`
				}
				exec(prepare + c.query)
				plan := explain(t, owner.QueryContext, execute)
				bad := strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Bitmap") || strings.Contains(plan, "Hash Join") || strings.Contains(plan, "Merge Join") ||
					strings.Contains(plan, "hashed SubPlan")
				if !c.sorted {
					bad = bad || strings.Contains(plan, "Sort") || strings.Contains(plan, "Hash")
				}
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

// TestFeedFaults: without a database the feed says so, and what was cut short
// is no end.
func TestFeedFaults(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g := gateway(t, d)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for name, f := range map[string]func() error{
		"horizon": func() error { _, _, err := g.FeedHorizon(gone); return err },
		"since":   func() error { _, err := g.FeedSince(gone, now); return err },
		"readings": func() error {
			_, _, done, err := g.ArrivedReadings(gone, alpha, postgres.FeedPlace{}, 9, 10)
			return orDone(done, err)
		},
		"files": func() error {
			_, _, done, err := g.ArrivedFiles(gone, alpha, postgres.FeedPlace{}, 9, 10)
			return orDone(done, err)
		},
		"days":    func() error { _, err := g.BasisDays(gone, alpha, []meter.Day{1}, meter.EAN{}, 10); return err },
		"expired": func() error { _, err := g.ExpiredConsents(gone, alpha, postgres.Expired{At: now}, now, 10); return err },
		"mark":    func() error { return g.MarkChanges(gone) },
		"lag":     func() error { _, err := g.ChangesLag(gone); return err },
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func orDone(done bool, err error) error {
	if done {
		return nil
	}
	return err
}

// BenchmarkFeed is one look for what arrived: of a supplier with one customer,
// and of one with all of them, beside few and many rows of others; with the
// pages that the database looks at.
func BenchmarkFeed(b *testing.B) {
	d := pgtest.New(b)
	g := gateway(b, d)
	owner := d.Open(b, migrations.RoleOwner)
	owner.SetMaxOpenConns(1)
	exec := func(stmt string, args ...any) {
		b.Helper()
		if _, err := owner.ExecContext(b.Context(), stmt, args...); err != nil {
			b.Fatal(err)
		}
	}
	one := postgres.EncodeChanged(postgres.ChangedOf(rowsOf(home, 1, days("2026-03-01", "2026-03-02"), 1, 2, 3, 4)))
	exec(`INSERT INTO supply_period (ean, gln, from_day) VALUES ($1, $2, '2025-01-01')`, home.Int64(), alpha.Int64())
	exec(`INSERT INTO supply_period (ean, gln, from_day) SELECT 871600000000000000 + n * 10, $1, '2025-01-01' FROM generate_series(1, 100000) n`, beta.Int64())
	stored := 0
	for _, days := range []int{1, 10} {
		for ; stored < days; stored++ {
			exec(`INSERT INTO ingest_batch (ean, batch_id, keys, blocks, changed) SELECT 871600000000000000 + n * 10, gen_random_uuid(), 0, 4, $1 FROM generate_series(1, 100000) n`, one)
		}
		exec(`ANALYZE`)
		horizon := settledHorizon(b, g)
		for name, who := range map[string]meter.GLN{"one": alpha, "all": beta} {
			b.Run(fmt.Sprintf("customers=%s/rows=%d", name, 100_000*days), func(b *testing.B) {
				for b.Loop() {
					if _, _, _, err := g.ArrivedReadings(b.Context(), who, postgres.FeedPlace{Arrived: 1}, horizon, 100); err != nil {
						b.Fatal(err)
					}
				}
				exec(`SET plan_cache_mode = force_generic_plan`)
				exec(`DEALLOCATE ALL`)
				exec(`PREPARE q (bigint, text, bigint, uuid, text, int, int) AS ` + postgres.QueryArrivedReadings)
				plan := explain(b, owner.QueryContext, fmt.Sprintf(`EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, COSTS OFF) EXECUTE q (%d, '1', 0, '00000000-0000-0000-0000-000000000000', '%d', %d, 100)`,
					who.Int64(), horizon, postgres.MaxBatchesLooked))
				var hit, read float64
				for _, line := range strings.Split(plan, "\n") {
					if line = strings.TrimSpace(line); strings.HasPrefix(line, "Buffers: shared") { // the first is of the whole
						fmt.Sscanf(line, "Buffers: shared hit=%f read=%f", &hit, &read)
						break
					}
				}
				b.ReportMetric(hit+read, "pages/op")
			})
		}
	}
}
