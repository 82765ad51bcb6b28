package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"kluis/meter"
)

const roleOwner = "kluis_owner"

// Storage is the operator's way to how blocks lie on the disk. It is the only
// one that logs in as the owner of the tables, and no process that serves has it.
type Storage struct{ store }

// NewStorage connects as kluis_owner. Its statements may take hours.
func NewStorage(ctx context.Context, c Config) (*Storage, error) {
	c.StatementTimeout = orDefault(c.StatementTimeout, 7*24*time.Hour)
	s, err := open(ctx, c, roleOwner)
	if err != nil {
		return nil, err
	}
	return &Storage{store: *s}, nil
}

var (
	// ErrStorageBusy: another command is at work on the storage.
	ErrStorageBusy = errors.New("another command is putting months in order")
	// ErrLocked: a long transaction keeps the table.
	ErrLocked = errors.New("a long transaction (a dump, perhaps) keeps the table: run the command again, it goes on where it was")
	// ErrDiffers: a copy is not what it was copied from. Nothing was replaced.
	ErrDiffers = errors.New("the copy is not equal to the month it was made of: nothing was replaced; look into it, then give the copy up (--abandon)")
	// ErrNoMonth: there is no partition of the month, or no copy of it under way.
	ErrNoMonth = errors.New("no such month")
)

// StoredMonth is one partition of the blocks.
type StoredMonth struct {
	Month       meter.Month
	Partition   string
	Blocks      int64 // an estimate, the planner's
	TableBytes  int64
	IndexBytes  int64
	CompactedAt time.Time // UTC; zero: never
	Compacted   int64     // blocks it had then
	Copying     bool      // it is being put in order, or that was interrupted
	Empty       bool      // it has not a page
}

// Stray is the default partition, of blocks whose month has none.
type Stray struct{ Bytes int64 }

// copySince begins the comment of a copy.
const copySince = "Copy of a month, under way since "

const (
	queryMonths = `
		SELECT c.relname, substring(pg_get_expr(c.relpartbound, c.oid) FROM $$FROM \('([0-9]{4}-[0-9]{2}-[0-9]{2})'\)$$)::date - DATE '1970-01-01',
		       greatest(c.reltuples, 0)::bigint, pg_table_size(c.oid), pg_indexes_size(c.oid),
		       (extract(epoch FROM m.compacted_at) * 1000000)::bigint, coalesce(m.blocks, 0), m.source IS NOT NULL, pg_relation_size(c.oid) = 0
		FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		LEFT JOIN storage_month m ON m.month = substring(pg_get_expr(c.relpartbound, c.oid) FROM $$FROM \('([0-9]{4}-[0-9]{2}-[0-9]{2})'\)$$)::date
		WHERE i.inhparent = 'sealed_block'::regclass AND pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT'
		ORDER BY 2`
	// What the catalogue says: whoever may look at nothing else may ask it.
	queryStray = `SELECT pg_relation_size('sealed_block_default')`
	// Whoever may look at nothing else may ask this, too: a copy says since when it
	// is being made.
	queryCopying = `
		SELECT (extract(epoch FROM min(substring(obj_description(c.oid, 'pg_class') FROM '` + copySince + `(.+)$')::timestamptz)) * 1000000)::bigint
		FROM pg_class c WHERE c.relname LIKE 'sealed_block_%' AND c.relkind = 'r' AND NOT c.relispartition`
	queryAhead = `
		SELECT coalesce(max(substring(pg_get_expr(c.relpartbound, c.oid) FROM $$TO \('([0-9]{4}-[0-9]{2}-[0-9]{2})'\)$$)::date), DATE '1970-01-01') - DATE '1970-01-01'
		FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'sealed_block'::regclass`
)

// Months lists the partitions, ascending, and what lies outside of them.
func (s *Storage) Months(ctx context.Context) ([]StoredMonth, Stray, error) {
	const op = "months"
	var stray Stray
	if err := s.db.GetContext(ctx, &stray.Bytes, queryStray); err != nil {
		return nil, stray, wrap(ctx, op, err)
	}
	rows, err := s.db.QueryxContext(ctx, queryMonths)
	if err != nil {
		return nil, stray, wrap(ctx, op, err)
	}
	defer rows.Close()
	var out []StoredMonth
	for rows.Next() {
		var m StoredMonth
		var first int64
		var at sql.NullInt64
		var copying sql.NullBool
		if err := rows.Scan(&m.Partition, &first, &m.Blocks, &m.TableBytes, &m.IndexBytes, &at, &m.Compacted, &copying, &m.Empty); err != nil {
			return nil, stray, wrap(ctx, op, err)
		}
		m.Month, m.Copying = meter.Day(first).Month(), copying.Bool
		if at.Valid {
			m.CompactedAt = time.UnixMicro(at.Int64).UTC()
		}
		out = append(out, m)
	}
	return out, stray, wrap(ctx, op, rows.Err())
}

// Room is how far the months reach that blocks can be stored in.
type Room struct {
	Until      meter.Day // the first day that has no partition
	StrayBytes int64     // of blocks whose month has none
	// Copying is when the oldest copy was begun that is not in its place yet: a
	// month is being put in order, or that was interrupted. Zero: there is none.
	Copying time.Time
}

// Room can be asked for by every process: it looks at the catalogue alone.
func (s *store) Room(ctx context.Context) (Room, error) {
	const op = "months ahead"
	var until int64
	if err := s.db.GetContext(ctx, &until, queryAhead); err != nil {
		return Room{}, wrap(ctx, op, err)
	}
	r := Room{Until: meter.Day(until)}
	if err := s.db.GetContext(ctx, &r.StrayBytes, queryStray); err != nil {
		return Room{}, wrap(ctx, op, err)
	}
	var copying sql.NullInt64
	if err := s.db.GetContext(ctx, &copying, queryCopying); err != nil {
		return Room{}, wrap(ctx, op, err)
	}
	if copying.Valid {
		r.Copying = time.UnixMicro(copying.Int64).UTC()
	}
	return r, nil
}

// Unfinished are the months that are being put in order, or were when that was
// interrupted: what has been copied of them is kept, and what is erased meanwhile
// is not erased there.
func (s *Storage) Unfinished(ctx context.Context) ([]meter.Month, error) {
	const op = "unfinished"
	var days []int64
	if err := s.db.SelectContext(ctx, &days, `SELECT month - DATE '1970-01-01' FROM storage_month WHERE source IS NOT NULL ORDER BY month`); err != nil {
		return nil, wrap(ctx, op, err)
	}
	out := make([]meter.Month, len(days))
	for i, d := range days {
		out[i] = meter.Day(d).Month()
	}
	return out, nil
}

// CompactStep says where a compaction is.
type CompactStep struct {
	Doing string // "copy", "vacuum", "compare", "swap", ...
	Done  int64  // blocks copied or compared so far, by this call
	Of    int64  // about so many
}

// CompactOptions of Compact.
type CompactOptions struct {
	// Rows is about how many blocks are copied at a time; 0: 1,000,000.
	Rows int
	// Progress, when set, is told before each step.
	Progress func(CompactStep)
}

const (
	compactRows = 1_000_000
	// changesAtOnce are copied once more by one statement; so many are left for
	// the swap, at most.
	changesAtOnce = 5000
	// swapWait is how long others are held up at most, three times over, by the
	// wait for the locks of the swap; swapTries how often it is tried.
	swapWait  = "300ms"
	swapTries = 60

	lockTries = 20 // for what only one command has
)

// compaction is one month being put in order.
type compaction struct {
	conn           *sqlx.Conn
	month          meter.Month
	from, to       string // its days, to exclusive
	source, target string
	opt            CompactOptions
	of             int64
}

func (c *compaction) say(doing string, done int64) {
	if c.opt.Progress != nil {
		c.opt.Progress(CompactStep{Doing: doing, Done: done, Of: c.of})
	}
}

// Compact writes a month anew in the order of (ean, field, day, version), so
// that what is read together lies together, and puts that in the place of what
// it was. Reads, ingest and the custodian go on meanwhile; what they change is
// noted by a trigger and copied once more. Before the swap every block of the
// copy is compared with its original.
//
// It may be interrupted anywhere, and goes on where it was when it is called
// again. Until the swap, which is one transaction, nobody sees the copy; after
// it, nobody sees the original, which is dropped.
func (s *Storage) Compact(ctx context.Context, m meter.Month, opt CompactOptions) (err error) {
	if opt.Rows <= 0 {
		opt.Rows = compactRows
	}
	return s.alone(ctx, m, func(c *compaction) error {
		c.opt = opt
		for _, step := range []struct {
			name string
			do   func(context.Context) error
		}{
			{"begin", c.begin},
			{"copy", c.copy},
			{"catch up", c.catchUp},
			{"vacuum", c.vacuum},
			{"compare", c.compare},
			{"swap", c.swap},
		} {
			c.say(step.name, 0)
			if err := step.do(ctx); err != nil {
				return wrapStorage(ctx, "compact "+m.String()+": "+step.name, err)
			}
		}
		return nil
	})
}

// Abandon gives up a compaction that was interrupted: the copy goes, the month
// stays as it is.
func (s *Storage) Abandon(ctx context.Context, m meter.Month) error {
	return s.alone(ctx, m, func(c *compaction) error {
		return wrapStorage(ctx, "abandon "+m.String(), c.abandon(ctx))
	})
}

// wrapStorage keeps our own errors; the owner's statements hold no values but
// names of tables and days.
func wrapStorage(ctx context.Context, op string, err error) error {
	for _, own := range []error{ErrDiffers, ErrLocked, ErrNoMonth, ErrStorageBusy} {
		if errors.Is(err, own) {
			return fmt.Errorf("postgres: %s: %w", op, own)
		}
	}
	return wrap(ctx, op, err)
}

// alone runs f on a connection of its own, which holds the lock that only one
// compaction at a time has.
func (s *Storage) alone(ctx context.Context, m meter.Month, f func(*compaction) error) (err error) {
	const op = "storage"
	conn, err := s.db.Connx(ctx)
	if err != nil {
		return wrap(ctx, op, err)
	}
	defer func() {
		// The connection goes with its settings and its lock.
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		conn.Close()
	}()
	// Two numbers: one would be the lock of a metering point. A connection that
	// broke keeps it for a moment.
	for try := 1; ; try++ {
		var mine bool
		if err := conn.GetContext(ctx, &mine, `SELECT pg_try_advisory_lock(hashtext('kluis storage'), 0)`); err != nil {
			return wrap(ctx, op, err)
		}
		if mine {
			break
		}
		if try == lockTries {
			return ErrStorageBusy
		}
		select {
		case <-ctx.Done():
			return wrap(ctx, op, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
	for _, set := range []string{`SET work_mem = '128MB'`, `SET maintenance_work_mem = '256MB'`, `SET jit = off`, `SET max_parallel_workers_per_gather = 0`} {
		if _, err := conn.ExecContext(ctx, set); err != nil {
			return wrap(ctx, op, err)
		}
	}
	first := m.First()
	c := &compaction{conn: conn, month: m, from: first.String(), to: (m + 1).First().String()}
	return f(c)
}

// tx runs f in a transaction. Repeatable: f sees one state of the database,
// that of its first statement after locks.
func (c *compaction) tx(ctx context.Context, level sql.IsolationLevel, f func(*sqlx.Tx) error) error {
	tx, err := c.conn.BeginTxx(ctx, &sql.TxOptions{Isolation: level})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

func (c *compaction) exec(ctx context.Context, tx *sqlx.Tx, statements ...string) error {
	for _, s := range statements {
		if _, err := tx.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// locked tries f again while it does not get its locks.
func (c *compaction) locked(ctx context.Context, f func() error) error {
	for try := 1; ; try++ {
		err := f()
		e, ok := errors.AsType[*pq.Error](err)
		if !ok || e.Code != "55P03" && e.Code != "40P01" { // lock_not_available, deadlock_detected
			return err
		}
		if try == swapTries {
			return ErrLocked
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// table is a name as statements want it.
func table(name string) string { return pq.QuoteIdentifier(name) }

// begin finds the copy that is under way, or makes an empty one and has the
// partition's changes noted from now on.
func (c *compaction) begin(ctx context.Context) error {
	var under struct {
		Source sql.NullString `db:"source"`
		Target sql.NullString `db:"target"`
	}
	err := c.conn.GetContext(ctx, &under, `SELECT source, target FROM storage_month WHERE month = $1`, c.from)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if under.Source.Valid {
		c.source, c.target = under.Source.String, under.Target.String
	} else {
		err := c.locked(ctx, func() error {
			return c.tx(ctx, sql.LevelReadCommitted, func(tx *sqlx.Tx) error { return c.create(ctx, tx) })
		})
		if err != nil {
			return err
		}
	}
	return c.conn.GetContext(ctx, &c.of, `SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = $1::text::regclass`, table(c.source))
}

func (c *compaction) create(ctx context.Context, tx *sqlx.Tx) error {
	err := tx.GetContext(ctx, &c.source, `
		SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = 'sealed_block'::regclass AND pg_get_expr(c.relpartbound, c.oid) LIKE 'FOR VALUES FROM (''' || $1 || ''')%'`, c.from)
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNoMonth
	}
	if err != nil {
		return err
	}
	c.target = nextName(c.source)
	source, target := table(c.source), table(c.target)
	if err := c.exec(ctx, tx,
		// Autovacuum gives way after a second. Nobody else waits for this lock.
		`SET LOCAL lock_timeout = '5s'`,
		`ALTER TABLE `+source+` SET (autovacuum_enabled = off)`,
		`SET LOCAL lock_timeout = '`+swapWait+`'`,
		`CREATE TABLE `+target+` (LIKE `+source+` INCLUDING ALL)`,
		// Says that the partition's bounds hold, so that the swap need not look.
		`ALTER TABLE `+target+` ADD CONSTRAINT month CHECK (day >= '`+c.from+`' AND day < '`+c.to+`')`,
		`ALTER TABLE `+target+` SET (autovacuum_enabled = off)`, // or it would hold locks
		`COMMENT ON TABLE `+target+` IS '`+copySince+time.Now().UTC().Format(time.RFC3339)+`'`,
		// Waits for those that are writing to this month; who writes later is noted.
		`CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON `+source+` FOR EACH ROW EXECUTE FUNCTION sealed_block_changed()`,
	); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `
		INSERT INTO storage_month (month, source, target) VALUES ($1, $2, $3)
		ON CONFLICT (month) DO UPDATE SET source = EXCLUDED.source, target = EXCLUDED.target, copied_to = NULL, compared_to = NULL, compared = 0`,
		c.from, c.source, c.target)
	return err
}

// nextName is that of the copy: sealed_block_2026_01, then sealed_block_2026_01_2
// and so on. No name is used twice, so that a dump that began before the swap
// does not find the table instead of finding it empty: of rows stored after it
// began it sees none.
func nextName(name string) string {
	const plain = len("sealed_block_2026_01")
	n := 1
	if len(name) > plain+1 {
		_, _ = fmt.Sscanf(name[plain:], "_%d", &n)
	}
	return fmt.Sprintf("%s_%d", name[:min(plain, len(name))], n+1)
}

// everyEAN is the end of the last part: also of what comes after it was begun,
// which is noted.
const everyEAN = int64(1<<63 - 1)

// part is the metering points that a step has next: above one, up to another.
// After the last part there is none.
func (c *compaction) part(ctx context.Context, column string) (above, until int64, more bool, err error) {
	err = c.conn.GetContext(ctx, &above, `SELECT coalesce(`+column+`, $2) FROM storage_month WHERE month = $1`, c.from, int64(-1<<63))
	if err != nil || above == everyEAN {
		return 0, 0, false, err
	}
	err = c.conn.GetContext(ctx, &until, `
		SELECT coalesce((SELECT ean FROM `+table(c.source)+` WHERE ean > $1 ORDER BY ean OFFSET $2 LIMIT 1), $3)`, above, c.opt.Rows, everyEAN)
	return above, until, true, err
}

// copy copies what is not copied yet, a part at a time.
func (c *compaction) copy(ctx context.Context) error {
	insert := `INSERT INTO ` + table(c.target) + ` SELECT * FROM ` + table(c.source) + ` WHERE ean > $1 AND ean <= $2 ORDER BY ean, field, day, version`
	for done := int64(0); ; {
		above, until, more, err := c.part(ctx, "copied_to")
		if err != nil || !more {
			return err
		}
		err = c.tx(ctx, sql.LevelReadCommitted, func(tx *sqlx.Tx) error {
			r, err := tx.ExecContext(ctx, insert, above, until)
			if err != nil {
				return err
			}
			n, err := r.RowsAffected()
			done += n
			if err != nil {
				return err
			}
			_, err = tx.ExecContext(ctx, `UPDATE storage_month SET copied_to = $2 WHERE month = $1`, c.from, until)
			return err
		})
		if err != nil {
			return err
		}
		c.say("copy", done)
	}
}

// catchUp copies once more what was changed meanwhile, until little is left.
func (c *compaction) catchUp(ctx context.Context) error {
	for {
		n := 0
		err := c.tx(ctx, sql.LevelRepeatableRead, func(tx *sqlx.Tx) (err error) {
			n, err = c.again(ctx, tx)
			return err
		})
		if err != nil {
			return err
		}
		c.say("catch up", int64(n))
		if n < changesAtOnce {
			return nil
		}
	}
}

// again copies blocks once more whose changes were noted, at most changesAtOnce
// notes, and compares these.
func (c *compaction) again(ctx context.Context, tx *sqlx.Tx) (int, error) {
	var eans, fields, days, versions []int64
	rows, err := tx.QueryxContext(ctx, `
		WITH gone AS (
			DELETE FROM storage_change WHERE ctid IN (SELECT ctid FROM storage_change WHERE day >= $1 AND day < $2 LIMIT $3)
			RETURNING ean, field, day, version
		) SELECT ean, field, day - DATE '1970-01-01', version FROM gone`, c.from, c.to, changesAtOnce)
	if err != nil {
		return 0, err
	}
	n := 0
	seen := map[[4]int64]bool{}
	for rows.Next() {
		var k [4]int64
		if err := rows.Scan(&k[0], &k[1], &k[2], &k[3]); err != nil {
			return 0, errors.Join(err, rows.Close())
		}
		n++
		if !seen[k] {
			seen[k] = true
			eans, fields, days, versions = append(eans, k[0]), append(fields, k[1]), append(days, k[2]), append(versions, k[3])
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil || n == 0 {
		return 0, err
	}
	keys := []any{pq.Array(eans), pq.Array(fields), pq.Array(days), pq.Array(versions)}
	const noted = ` unnest($1::bigint[], $2::smallint[], $3::int[], $4::int[]) AS k (ean, field, day, version) `
	const same = ` b.ean = k.ean AND b.field = k.field AND b.day = DATE '1970-01-01' + k.day AND b.version = k.version`
	if _, err := tx.ExecContext(ctx, `DELETE FROM `+table(c.target)+` b USING`+noted+`WHERE`+same, keys...); err != nil {
		return 0, err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO `+table(c.target)+` SELECT b.* FROM`+noted+`JOIN `+table(c.source)+` b ON`+same, keys...); err != nil {
		return 0, err
	}
	var bad int64
	err = tx.GetContext(ctx, &bad, `
		SELECT count(*) FROM`+noted+`
		LEFT JOIN `+table(c.source)+` s ON`+strings.ReplaceAll(same, "b.", "s.")+`
		LEFT JOIN `+table(c.target)+` t ON`+strings.ReplaceAll(same, "b.", "t.")+`
		WHERE ROW(s.*) IS DISTINCT FROM ROW(t.*)`, keys...)
	if err == nil && bad != 0 {
		err = ErrDiffers
	}
	return n, err
}

// vacuum leaves nothing to be done to the copy later on, and makes statistics.
func (c *compaction) vacuum(ctx context.Context) error {
	_, err := c.conn.ExecContext(ctx, `VACUUM (FREEZE, ANALYZE) `+table(c.target))
	return err
}

// compare compares each block with its copy, but those that are noted to be
// copied once more, which are compared then.
func (c *compaction) compare(ctx context.Context) error {
	const key = `(ean, field, day, version)`
	query := `
		SELECT count(*), count(*) FILTER (WHERE ROW(s.*) IS DISTINCT FROM ROW(t.*) AND NOT EXISTS (
			SELECT FROM storage_change c WHERE c.ean = coalesce(s.ean, t.ean) AND c.field = coalesce(s.field, t.field)
			AND c.day = coalesce(s.day, t.day) AND c.version = coalesce(s.version, t.version)))
		FROM (SELECT * FROM ` + table(c.source) + ` WHERE ean > $1 AND ean <= $2) s
		FULL JOIN (SELECT * FROM ` + table(c.target) + ` WHERE ean > $1 AND ean <= $2) t USING ` + key
	for done := int64(0); ; {
		above, until, more, err := c.part(ctx, "compared_to")
		if err != nil || !more {
			return err
		}
		err = c.tx(ctx, sql.LevelRepeatableRead, func(tx *sqlx.Tx) error {
			var n, bad int64
			if err := tx.QueryRowxContext(ctx, query, above, until).Scan(&n, &bad); err != nil {
				return err
			}
			if bad != 0 {
				return ErrDiffers
			}
			done += n
			_, err := tx.ExecContext(ctx, `UPDATE storage_month SET compared_to = $2, compared = compared + $3 WHERE month = $1`, c.from, until, n)
			return err
		})
		if err != nil {
			return err
		}
		c.say("compare", done)
	}
}

// swap puts the copy in the place of the partition, in one transaction.
func (c *compaction) swap(ctx context.Context) error {
	return c.locked(ctx, func() error {
		if err := c.catchUp(ctx); err != nil {
			return err
		}
		c.say("swap", 0)
		// The state it sees is that after the locks: of its first statement that is
		// none of these.
		return c.tx(ctx, sql.LevelRepeatableRead, func(tx *sqlx.Tx) error {
			source, target := table(c.source), table(c.target)
			if err := c.exec(ctx, tx,
				`SET LOCAL lock_timeout = '`+swapWait+`'`,
				`LOCK TABLE ONLY sealed_block IN ACCESS EXCLUSIVE MODE`,
				`LOCK TABLE sealed_block_default, `+source+` IN ACCESS EXCLUSIVE MODE`,
			); err != nil {
				return err
			}
			for {
				n, err := c.again(ctx, tx)
				if err != nil {
					return err
				}
				if n < changesAtOnce {
					break
				}
			}
			if err := c.exec(ctx, tx,
				`ALTER TABLE sealed_block DETACH PARTITION `+source,
				`DROP TABLE `+source,
				`ALTER TABLE sealed_block ATTACH PARTITION `+target+` FOR VALUES FROM ('`+c.from+`') TO ('`+c.to+`')`,
				`ALTER TABLE `+target+` DROP CONSTRAINT month`,
				`ALTER TABLE `+target+` RESET (autovacuum_enabled)`,
				`COMMENT ON TABLE `+target+` IS 'Sealed blocks of one month, in the order of the metering points.'`,
			); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, `
				UPDATE storage_month SET compacted_at = now(), blocks = compared, source = NULL, target = NULL, copied_to = NULL, compared_to = NULL, compared = 0
				WHERE month = $1`, c.from)
			return err
		})
	})
}

func (c *compaction) abandon(ctx context.Context) error {
	return c.locked(ctx, func() error {
		return c.tx(ctx, sql.LevelReadCommitted, func(tx *sqlx.Tx) error {
			err := tx.QueryRowxContext(ctx, `SELECT source, target FROM storage_month WHERE month = $1 AND source IS NOT NULL`, c.from).Scan(&c.source, &c.target)
			if errors.Is(err, sql.ErrNoRows) {
				return ErrNoMonth
			}
			if err != nil {
				return err
			}
			if err := c.exec(ctx, tx,
				`SET LOCAL lock_timeout = '`+swapWait+`'`,
				// The month may have been dropped since.
				`DROP TRIGGER IF EXISTS changed ON `+table(c.source),
				`ALTER TABLE IF EXISTS `+table(c.source)+` RESET (autovacuum_enabled)`,
				`DROP TABLE `+table(c.target),
			); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `DELETE FROM storage_change WHERE day >= $1 AND day < $2`, c.from, c.to); err != nil {
				return err
			}
			_, err = tx.ExecContext(ctx, `UPDATE storage_month SET source = NULL, target = NULL, copied_to = NULL, compared_to = NULL, compared = 0 WHERE month = $1`, c.from)
			return err
		})
	})
}
