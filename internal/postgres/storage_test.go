package postgres_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kluis/cryptoserver/envelope"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

func storage(t testing.TB, d *pgtest.DB) *postgres.Storage {
	s, err := postgres.NewStorage(t.Context(), config(d, migrations.RoleOwner))
	return closing(t, s, err)
}

// everyBlock is a digest of all columns of all blocks, as every process finds
// them.
const everyBlock = `SELECT count(*) || ' ' || md5(string_agg(x::text, ' ' ORDER BY x::text)) FROM (SELECT * FROM sealed_block) x`

// pages counts the pages that the blocks of each metering point lie on, together.
func pages(t *testing.T, db *sql.DB, partition string) int {
	n := 0
	if _, err := fmt.Sscan(value(t, db, `SELECT sum(n) FROM (SELECT count(DISTINCT (ctid::text::point)[0]) AS n FROM `+partition+` GROUP BY ean) a`), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func month(s string) meter.Month { return day(s).Month() }

// partitionOf is the partition a day's blocks lie in.
func partitionOf(t *testing.T, db *sql.DB, d string) string {
	return value(t, db, `SELECT string_agg(DISTINCT tableoid::regclass::text, ' ') FROM sealed_block WHERE day = $1`, d)
}

// byDay stores blocks as they come: day after day, of all metering points.
func byDay(t *testing.T, in *postgres.Ingest, points int, period meter.DayRange) {
	t.Helper()
	var keys postgres.Batch
	for n := range points {
		for m := period.From.Month(); m <= (period.To - 1).Month(); m++ {
			keys.Keys = append(keys.Keys, key(ean(n), meter.Registers, m), key(ean(n), meter.Intervals, m))
		}
	}
	if err := in.Commit(t.Context(), keys); err != nil {
		t.Fatal(err)
	}
	for d := period.From; d < period.To; d++ {
		var b postgres.Batch
		for n := range points {
			for _, f := range []meter.FieldCode{1, 2, 6} {
				b.Blocks = append(b.Blocks, block(ean((n*7+int(d))%points), f, d, 1))
			}
		}
		if err := in.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
}

// leftovers are what a compaction must not leave behind.
func leftovers(t *testing.T, db *sql.DB) string {
	return value(t, db, `SELECT concat_ws(' ',
		(SELECT string_agg(tgname, ' ') FROM pg_trigger WHERE tgname = 'changed'),
		(SELECT string_agg(relname, ' ') FROM pg_class WHERE relname LIKE 'sealed_block_2%' AND relkind = 'r' AND NOT relispartition),
		(SELECT string_agg(relname, ' ') FROM pg_class WHERE relname LIKE 'sealed_block_2%' AND reloptions IS NOT NULL),
		(SELECT string_agg(conname, ' ') FROM pg_constraint WHERE conname = 'month'),
		(SELECT string_agg(source, ' ') FROM storage_month WHERE source IS NOT NULL),
		(SELECT nullif(count(*), 0) FROM storage_change))`)
}

func TestCompact(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in, g, s := ingest(t, d), gateway(t, d), storage(t, d)
	byDay(t, in, 30, days("2025-01-20", "2025-03-10"))
	owner := d.Open(t, migrations.RoleOwner)
	before := value(t, owner, everyBlock)
	period := days("2025-02-01", "2025-03-01")
	read := grant(t, ean(7), meter.EnergyManagement, period, 1, 2, 6)
	_, blocks, err := g.Blocks(t.Context(), read)
	if err != nil || len(blocks) != 2*29+28 {
		t.Fatalf("%d blocks, %v", len(blocks), err)
	}
	if got := partitionOf(t, owner, "2025-02-10"); got != "sealed_block_2025_02" {
		t.Fatalf("in %s", got)
	}
	apart := pages(t, owner, "sealed_block_2025_02")
	for i, want := range []string{"sealed_block_2025_02_2", "sealed_block_2025_02_3"} {
		var steps []string
		err := s.Compact(t.Context(), month("2025-02-01"), postgres.CompactOptions{Rows: 300, Progress: func(p postgres.CompactStep) {
			steps = append(steps, p.Doing)
		}})
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(strings.Join(steps, " "), "copy"); n < 5 {
			t.Errorf("copied in %d parts: %v", n, steps)
		}
		if got := partitionOf(t, owner, "2025-02-10"); got != want {
			t.Errorf("in %s, want %s", got, want)
		}
		// Where a row did not fit, a smaller one of the next may.
		if got := pages(t, owner, want); got > apart/3 {
			t.Errorf("on %d pages, were on %d", got, apart)
		}
		if got := value(t, owner, everyBlock); got != before {
			t.Errorf("blocks were %s, are %s", before, got)
		}
		if got := leftovers(t, owner); got != "" {
			t.Errorf("left behind: %s", got)
		}
		if _, again, err := g.Blocks(t.Context(), read); err != nil || fmt.Sprint(again) != fmt.Sprint(blocks) {
			t.Errorf("read %d blocks, %v", len(again), err)
		}
		// Nobody has a way to the partition but through the table.
		if got := value(t, owner, `SELECT string_agg(DISTINCT relname, ' ') FROM pg_class WHERE relispartition AND (relacl IS NOT NULL OR relowner <> $1::regrole)`, migrations.RoleOwner); got != "" {
			t.Errorf("somebody may do something with %s", got)
		}
		months, stray, err := s.Months(t.Context())
		if err != nil || stray.Bytes != 0 {
			t.Fatal(stray, err)
		}
		for _, m := range months {
			if m.Month == period.From.Month() && (m.Partition != want || m.Blocks != 30*3*28 || m.Compacted != 30*3*28 || m.CompactedAt.IsZero() || m.Copying || m.TableBytes == 0 || m.IndexBytes == 0) {
				t.Errorf("%d: %+v", i, m)
			}
			if m.Month != period.From.Month() && (!m.CompactedAt.IsZero() || m.Compacted != 0) {
				t.Errorf("%+v", m)
			}
		}
	}
	// Its statements are as before.
	if err := in.Commit(t.Context(), postgres.Batch{Blocks: []postgres.Row{block(ean(7), 1, day("2025-02-03"), 1)}}); !errors.Is(err, postgres.ErrConflict) {
		t.Errorf("the same version twice: %v", err)
	}
	if err := s.Compact(t.Context(), month("2001-01-01"), postgres.CompactOptions{}); !errors.Is(err, postgres.ErrNoMonth) {
		t.Errorf("a month that is none: %v", err)
	}
	// An empty month.
	if err := s.Compact(t.Context(), month("2025-06-01"), postgres.CompactOptions{}); err != nil || leftovers(t, owner) != "" {
		t.Errorf("an empty one: %v, %s", err, leftovers(t, owner))
	}
}

// TestCompactInterrupted ends it at every step, by its context and by its
// connection in turn, changes blocks, and goes on.
func TestCompactInterrupted(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in, c, s := ingest(t, d), custodian(t, d), storage(t, d)
	const points = 12
	byDay(t, in, points, days("2025-02-01", "2025-03-01"))
	owner := d.Open(t, migrations.RoleOwner)
	m := month("2025-02-01")
	version := uint32(1)
	change := func(n int) {
		t.Helper()
		version++
		rows := []postgres.Row{block(ean(n%points), 1, day("2025-02-05"), version), block(ean(points-1-n%points), 2, day("2025-02-28"), version)}
		if err := in.Commit(t.Context(), postgres.Batch{Blocks: rows}); err != nil {
			t.Fatal(err)
		}
		// A new metering point, after all that are copied.
		late := ean(1000 + n)
		if err := in.Commit(t.Context(), postgres.Batch{Keys: []envelope.KeyRecord{key(late, meter.Registers, m)}, Blocks: []postgres.Row{block(late, 1, day("2025-02-01"), 1)}}); err != nil {
			t.Fatal(err)
		}
		// The custodian replaces a key and its blocks, and erases another.
		old := key(ean(n%points), meter.Intervals, m)
		if blocks, err := c.BlocksUnder(t.Context(), old); err != nil {
			t.Fatal(err)
		} else if len(blocks) > 0 && n%3 == 1 {
			fresh := old
			fresh.ID = [16]byte{0xee, byte(n)}
			if err := c.ReplaceDataKey(t.Context(), old, fresh, resealed(blocks, "new ")); err != nil && !errors.Is(err, postgres.ErrGone) {
				t.Fatal(err)
			}
		}
		if n%5 == 0 {
			if _, err := c.DeleteKeys(t.Context(), []postgres.KeyRef{{EAN: late, ID: key(late, meter.Registers, m).ID}}, uint64(n+1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	finished := 0
	for n := 0; finished < 2; n++ {
		if n > 60 {
			t.Fatal("it never ends")
		}
		ctx, cancel := context.WithCancel(t.Context())
		at := 0
		err := s.Compact(ctx, m, postgres.CompactOptions{Rows: 200, Progress: func(p postgres.CompactStep) {
			change(n*31 + at)
			if at++; at <= n%25 {
				return
			}
			if n%2 == 0 {
				cancel()
				return
			}
			_ = value(t, owner, `SELECT bool_and(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'kluis_owner' AND pid <> pg_backend_pid()
				AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = hashtext('kluis storage')::bigint::oid)`)
		}})
		cancel()
		before := value(t, owner, everyBlock)
		if want := value(t, owner, `SELECT count(*) FROM sealed_block WHERE day >= '2025-02-01' AND day < '2025-03-01' AND tableoid <> 'sealed_block_default'::regclass`); !strings.HasPrefix(before, want+" ") {
			t.Fatalf("%s blocks of %s", want, before)
		}
		if err == nil {
			finished++
			if got := leftovers(t, owner); got != "" {
				t.Errorf("left behind: %s", got)
			}
		}
	}
	// What was changed is all there: of every change two rows and one.
	if got, want := value(t, owner, `SELECT count(*) FROM sealed_block WHERE version > 1`), fmt.Sprint(2*(version-1)); got != want {
		t.Errorf("%s corrections, want %s", got, want)
	}
	if got := value(t, owner, `SELECT count(*) FROM sealed_block b WHERE content_mac = decode(repeat('00', 32), 'hex') AND EXISTS (SELECT FROM data_key k WHERE k.ean = b.ean AND k.key_id = b.key_id)
		OR content_mac <> decode(repeat('00', 32), 'hex') AND EXISTS (SELECT FROM key_tombstone t WHERE t.ean = b.ean AND t.key_id = b.key_id)`); got != "0" {
		t.Errorf("%s blocks are not as the custodian left them", got)
	}
	if got := value(t, owner, `SELECT count(*) FROM sealed_block`); got != fmt.Sprint(points*3*28+3*(version-1)) {
		t.Errorf("%s blocks", got)
	}
}

// TestCompactKeepsNothingErased: what is erased or encrypted anew while a copy
// lies about is in that copy until the next run, and nowhere after it.
func TestCompactKeepsNothingErased(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in, c, s := ingest(t, d), custodian(t, d), storage(t, d)
	owner := d.Open(t, migrations.RoleOwner)
	byDay(t, in, 6, days("2025-02-01", "2025-05-01"))
	// tables are those that may hold blocks of a month: its partition, and copies.
	inTables := func(month, where string) string {
		t.Helper()
		var n []string
		for _, name := range strings.Fields(value(t, owner, `SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relname LIKE $1 AND relkind = 'r'`, "sealed_block_"+month+"%")) {
			n = append(n, value(t, owner, `SELECT count(*) FROM `+name+` WHERE `+where))
		}
		return strings.Join(n, " ")
	}
	copying := func() time.Time {
		t.Helper()
		room, err := c.Room(t.Context()) // as the custodian's daemon sees it
		if err != nil {
			t.Fatal(err)
		}
		return room.Copying
	}
	if at := copying(); !at.IsZero() {
		t.Errorf("a copy since %s", at)
	}
	finish := func(m meter.Month) error { return s.Compact(t.Context(), m, postgres.CompactOptions{}) }
	dropped := func(m meter.Month) error {
		if _, err := owner.ExecContext(t.Context(), `DROP TABLE sealed_block_2025_04`); err != nil {
			return err
		}
		return s.Abandon(t.Context(), m)
	}
	for _, test := range []struct {
		month string
		end   func(meter.Month) error
		left  string // of the erased blocks' rows, blanked
	}{
		{"2025_02", finish, "56"}, {"2025_03", func(m meter.Month) error { return s.Abandon(t.Context(), m) }, "62"}, {"2025_04", dropped, ""},
	} {
		m := month(strings.ReplaceAll(test.month, "_", "-") + "-01")
		ctx, cancel := context.WithCancel(t.Context())
		before := time.Now().Truncate(time.Second)
		err := s.Compact(ctx, m, postgres.CompactOptions{Progress: func(p postgres.CompactStep) {
			if p.Doing == "compare" {
				cancel()
			}
		}})
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if at := copying(); at.Before(before) || at.After(time.Now()) {
			t.Errorf("%s: a copy since %s, was interrupted after %s", test.month, at, before)
		}
		if got, err := s.Unfinished(t.Context()); err != nil || len(got) != 1 || got[0] != m {
			t.Errorf("unfinished: %v, %v", got, err)
		}
		gone, old := key(ean(1), meter.Registers, m), key(ean(2), meter.Intervals, m)
		if _, err := c.DeleteKeys(t.Context(), []postgres.KeyRef{{EAN: gone.EAN, ID: gone.ID}}, uint64(m)); err != nil {
			t.Fatal(err)
		}
		blocks, err := c.BlocksUnder(t.Context(), old)
		if err != nil {
			t.Fatal(err)
		}
		fresh := old
		fresh.ID = [16]byte{0xee, byte(m)}
		if err := c.ReplaceDataKey(t.Context(), old, fresh, resealed(blocks, "new ")); err != nil {
			t.Fatal(err)
		}
		const blank = `content_mac = decode(repeat('00', 32), 'hex')`
		erased := fmt.Sprintf(`ean = %d AND key_id = '%x'`, gone.EAN.Int64(), gone.ID)
		replaced := fmt.Sprintf(`ean = %d AND key_id = '%x'`, old.EAN.Int64(), old.ID)
		if a, b := inTables(test.month, erased+" AND NOT "+blank), inTables(test.month, replaced); strings.HasSuffix(a, " 0") || strings.HasSuffix(b, " 0") || !strings.HasPrefix(a, "0 ") || !strings.HasPrefix(b, "0 ") {
			t.Fatalf("%s: in month and copy %q and %q: the test tests nothing", test.month, a, b)
		}
		if err := test.end(m); err != nil {
			t.Fatal(err)
		}
		for what, where := range map[string]string{"erased": erased + " AND NOT " + blank, "encrypted anew": replaced} {
			if got := inTables(test.month, where); strings.Trim(got, "0") != "" {
				t.Errorf("%s: %s blocks that were %s are left", test.month, got, what)
			}
		}
		if got := inTables(test.month, erased+" AND "+blank); got != test.left {
			t.Errorf("%s: %s are blanked, want %s", test.month, got, test.left)
		}
		if got, err := s.Unfinished(t.Context()); err != nil || len(got) != 0 || leftovers(t, owner) != "" {
			t.Errorf("%s: left behind: %v, %s, %v", test.month, got, leftovers(t, owner), err)
		}
		if at := copying(); !at.IsZero() {
			t.Errorf("%s: still a copy since %s", test.month, at)
		}
	}
}

// TestCompactBesideOthers: readers and writers go on, see each block once, and
// lose none.
func TestCompactBesideOthers(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in, g, s := ingest(t, d), gateway(t, d), storage(t, d)
	const points = 20
	byDay(t, in, points, days("2025-02-01", "2025-03-01"))
	owner := d.Open(t, migrations.RoleOwner)
	period := days("2025-02-01", "2025-03-01")
	var stored [points]atomic.Int64 // highest version of a block that is acknowledged
	var wg sync.WaitGroup
	stop := make(chan struct{})
	running := func() bool {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	for w := range 2 {
		wg.Go(func() {
			for v := uint32(2); running(); v++ {
				for n := w; n < points && running(); n += 2 {
					if err := in.Commit(context.Background(), postgres.Batch{Blocks: []postgres.Row{block(ean(n), 1, day("2025-02-14"), v)}}); err != nil {
						t.Errorf("correction: %v", err)
						return
					}
					stored[n].Store(int64(v))
				}
			}
		})
	}
	reads := atomic.Int64{}
	for w := range 2 {
		wg.Go(func() {
			for n := w; running(); n = (n + 1) % points {
				least := max(1, stored[n].Load())
				_, blocks, err := g.Blocks(context.Background(), grant(t, ean(n), meter.EnergyManagement, period, 1, 2, 6))
				if err != nil || len(blocks) != 3*28 {
					t.Errorf("%d blocks, %v", len(blocks), err)
					return
				}
				if got := int64(blocks[13].Version); got < least {
					t.Errorf("version %d after %d was acknowledged", got, least)
				}
				reads.Add(1)
			}
		})
	}
	for range 3 {
		if err := s.Compact(t.Context(), period.From.Month(), postgres.CompactOptions{Rows: 150}); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
	want := int64(points * 3 * 28)
	for n := range stored {
		if v := stored[n].Load(); v > 0 {
			want += v - 1
		}
	}
	if got := value(t, owner, `SELECT count(*) FROM sealed_block`); got != fmt.Sprint(want) {
		t.Errorf("%s blocks, want %d", got, want)
	}
	if reads.Load() == 0 {
		t.Error("nothing was read")
	}
	if got := leftovers(t, owner); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

func TestCompactRefuses(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in, s := ingest(t, d), storage(t, d)
	byDay(t, in, 5, days("2025-02-01", "2025-03-01"))
	owner := d.Open(t, migrations.RoleOwner)
	m := month("2025-02-01")
	before := value(t, owner, everyBlock)

	for _, role := range migrations.Roles()[1:] {
		s, err := postgres.NewStorage(t.Context(), config(d, role))
		if err == nil {
			s.Close()
		}
		// A role may have no way into this database at all.
		if err == nil || !strings.Contains(err.Error(), "logged in as "+role) && !strings.Contains(err.Error(), "permission denied for database") {
			t.Errorf("%s: %v", role, err)
		}
	}
	if err := s.Abandon(t.Context(), m); !errors.Is(err, postgres.ErrNoMonth) {
		t.Errorf("no copy is given up: %v", err)
	}
	// Two at once.
	err := s.Compact(t.Context(), m, postgres.CompactOptions{Progress: func(p postgres.CompactStep) {
		if p.Doing == "compare" && p.Done == 0 {
			if err := s.Compact(t.Context(), month("2025-03-01"), postgres.CompactOptions{}); !errors.Is(err, postgres.ErrStorageBusy) {
				t.Errorf("two at once: %v", err)
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	// A copy that somebody changed, lost a row of, or added one to.
	for name, spoil := range map[string]string{
		"changed": `UPDATE sealed_block_2025_02_%d SET ciphertext = 'x' WHERE (ean, field, day, version) = (SELECT ean, field, day, version FROM sealed_block_2025_02_%[1]d LIMIT 1)`,
		"lost":    `DELETE FROM sealed_block_2025_02_%d WHERE (ean, field, day, version) = (SELECT ean, field, day, version FROM sealed_block_2025_02_%[1]d ORDER BY ean DESC LIMIT 1)`,
		"added":   `INSERT INTO sealed_block_2025_02_%d SELECT ean + 1000000, field, day, version, resolution, key_id, value_count, content_mac, ciphertext, sealed_at FROM sealed_block_2025_02_%[1]d LIMIT 1`,
		"time":    `UPDATE sealed_block_2025_02_%d SET sealed_at = now() WHERE ean = (SELECT max(ean) FROM sealed_block_2025_02_%[1]d) AND day = '2025-02-28'`,
	} {
		err := s.Compact(t.Context(), m, postgres.CompactOptions{Rows: 100, Progress: func(p postgres.CompactStep) {
			if p.Doing == "compare" && p.Done == 0 {
				if _, err := owner.ExecContext(t.Context(), fmt.Sprintf(spoil, 3)); err != nil {
					t.Error(err)
				}
			}
		}})
		if !errors.Is(err, postgres.ErrDiffers) {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.Compact(t.Context(), m, postgres.CompactOptions{Rows: 100}); !errors.Is(err, postgres.ErrDiffers) {
			t.Errorf("%s, once more: %v", name, err)
		}
		if got := value(t, owner, everyBlock); got != before {
			t.Errorf("%s: was %s, is %s", name, before, got)
		}
		if err := s.Abandon(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if got := leftovers(t, owner); got != "" {
			t.Errorf("%s: left behind: %s", name, got)
		}
	}
	if got := partitionOf(t, owner, "2025-02-10"); got != "sealed_block_2025_02_2" {
		t.Errorf("in %s", got)
	}
}

// TestCompactWaits: a long transaction that reads the table holds up the swap,
// not the others for longer than a moment; nothing is lost when it gives up.
func TestCompactWaits(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in, g, s := ingest(t, d), gateway(t, d), storage(t, d)
	byDay(t, in, 5, days("2025-02-01", "2025-03-01"))
	owner := d.Open(t, migrations.RoleOwner)
	before := value(t, owner, everyBlock)
	dump, err := owner.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := dump.QueryRowContext(t.Context(), `SELECT count(*) FROM sealed_block`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	m := month("2025-02-01")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	swaps := 0
	err = s.Compact(ctx, m, postgres.CompactOptions{Progress: func(p postgres.CompactStep) {
		if p.Doing != "swap" {
			return
		}
		if swaps++; swaps == 4 {
			if _, blocks, err := g.Blocks(ctx, grant(t, ean(1), meter.EnergyManagement, days("2025-02-01", "2025-03-01"), 1)); err != nil || len(blocks) != 28 {
				t.Errorf("read meanwhile: %d, %v", len(blocks), err)
			}
			// The dump still finds what it found.
			var again int
			if err := dump.QueryRowContext(ctx, `SELECT count(*) FROM sealed_block`).Scan(&again); err != nil || again != n {
				t.Errorf("%d blocks, then %d: %v", n, again, err)
			}
			if err := dump.Commit(); err != nil {
				t.Error(err)
			}
		}
	}})
	if err != nil || swaps < 4 || value(t, owner, everyBlock) != before {
		t.Errorf("%d tries, %v", swaps, err)
	}
}

// TestStray: blocks of a month that has no partition are stored and found, and
// move to their month when it is made.
func TestStray(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in, g, s := ingest(t, d), gateway(t, d), storage(t, d)
	owner := d.Open(t, migrations.RoleOwner)
	room, err := g.Room(t.Context())
	_, last := migrations.Months(time.Now())
	if until := last.AddDate(0, 1, 0).Format(time.DateOnly); err != nil || room.StrayBytes != 0 || room.Until.String() != until {
		t.Fatalf("%+v, %v; want %s", room, err, until)
	}
	far := []meter.Day{day("2009-05-31"), day("2009-06-01"), day("2050-01-01")}
	for i, when := range far {
		b := postgres.Batch{
			Keys:   []envelope.KeyRecord{key(ean(i), meter.Registers, when.Month())},
			Blocks: []postgres.Row{block(ean(i), 1, when, 1), block(ean(i), 1, when, 2)},
		}
		if err := in.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		heads, err := in.Heads(t.Context(), []meter.EAN{ean(i)}, []meter.FieldCode{1}, meter.DayRange{From: when - 40, To: when + 40})
		if err != nil || len(heads) != 1 || heads[0].Version != 2 {
			t.Errorf("%s: %v, %v", when, heads, err)
		}
	}
	before := value(t, owner, everyBlock)
	if room, err := g.Room(t.Context()); err != nil || room.StrayBytes == 0 {
		t.Errorf("%+v, %v", room, err)
	}
	if _, stray, err := s.Months(t.Context()); err != nil || stray.Bytes == 0 {
		t.Errorf("%+v, %v", stray, err)
	}
	for _, c := range []struct {
		from, to      string
		months, moved int
		left          bool
	}{
		{"2009-06-15", "2009-07-01", 2, 2, true}, {"2009-06-01", "2009-06-01", 0, 0, true},
		{"2009-04-01", "2009-07-31", 2, 2, true}, {"2050-01-31", "2050-01-01", 1, 2, false},
	} {
		made, err := migrations.EnsureMonths(t.Context(), owner, must(time.Parse(time.DateOnly, c.from)), must(time.Parse(time.DateOnly, c.to)))
		if err != nil || made.Months != c.months || made.Moved != int64(c.moved) {
			t.Errorf("%s to %s: %+v, %v", c.from, c.to, made, err)
		}
		if got := value(t, owner, everyBlock); got != before {
			t.Errorf("%s: was %s, is %s", c.from, before, got)
		}
		if room, err := g.Room(t.Context()); err != nil || room.StrayBytes > 0 != c.left {
			t.Errorf("%s: %+v, %v", c.from, room, err)
		}
	}
	if got := partitionOf(t, owner, "2050-01-01"); got != "sealed_block_2050_01" {
		t.Errorf("in %s", got)
	}
	// A month that was compacted is there.
	if err := s.Compact(t.Context(), month("2009-06-01"), postgres.CompactOptions{}); err != nil {
		t.Fatal(err)
	}
	if made, err := migrations.EnsureMonths(t.Context(), owner, far[1].Start(time.UTC), far[1].Start(time.UTC)); err != nil || made.Months != 0 {
		t.Errorf("%+v, %v", made, err)
	}
}
