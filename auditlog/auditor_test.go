package auditlog_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"

	"kluis/auditlog"
	"kluis/auditlog/leaf"
	"kluis/auditlog/oversight"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/migrations"
)

var errFlaky = errors.New("flaky")

// flaky fails every other call or so: before anything is done, or after, so
// that the answer is lost. A few calls hang until their time is up.
type flaky struct {
	auditlog.Store
	auditlog.Servers
	calm  atomic.Bool
	fails atomic.Int64
}

func (f *flaky) do(ctx context.Context, call func() error) error {
	if f.calm.Load() {
		return call()
	}
	switch n := rand.N(100); {
	case n < 25:
		f.fails.Add(1)
		return errFlaky
	case n < 45:
		f.fails.Add(1)
		_ = call()
		return errFlaky
	case n < 47:
		f.fails.Add(1)
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
		return context.DeadlineExceeded
	}
	return call()
}

func (f *flaky) Size(ctx context.Context) (n int64, err error) {
	err = f.do(ctx, func() (err error) { n, err = f.Store.Size(ctx); return err })
	return n, err
}

func (f *flaky) Horizon(ctx context.Context) (h leaf.Horizon, err error) {
	err = f.do(ctx, func() (err error) { h, err = f.Store.Horizon(ctx); return err })
	return h, err
}

func (f *flaky) Discover(ctx context.Context, k leaf.Kind, p leaf.Place, limit int) (out []leaf.Found, err error) {
	err = f.do(ctx, func() (err error) { out, err = f.Store.Discover(ctx, k, p, limit); return err })
	return out, err
}

func (f *flaky) Append(ctx context.Context, first int64, keys []leaf.Key, firstHash int64, hashes []tlog.Hash, counted *oversight.Tally, logged leaf.Place) error {
	return f.do(ctx, func() error { return f.Store.Append(ctx, first, keys, firstHash, hashes, counted, logged) })
}

func (f *flaky) HoursOf(ctx context.Context, parties []oversight.Party, since time.Time) (h []oversight.Hour, err error) {
	err = f.do(ctx, func() (err error) { h, err = f.Store.HoursOf(ctx, parties, since); return err })
	return h, err
}

func (f *flaky) AddUnusual(ctx context.Context, found []oversight.Unusual) error {
	return f.do(ctx, func() error { return f.Store.AddUnusual(ctx, found) })
}

func (f *flaky) AddResult(ctx context.Context, r oversight.Result) error {
	return f.do(ctx, func() error { return f.Store.AddResult(ctx, r) })
}

func (f *flaky) AddCheckpoint(ctx context.Context, n leaf.Note) error {
	return f.do(ctx, func() error { return f.Store.AddCheckpoint(ctx, n) })
}

func (f *flaky) LastCheckpoint(ctx context.Context) (n leaf.Note, err error) {
	err = f.do(ctx, func() (err error) { n, err = f.Store.LastCheckpoint(ctx); return err })
	return n, err
}

func (f *flaky) AddEntries(ctx context.Context, boot [16]byte, sequences []uint64, entries [][]byte) error {
	return f.do(ctx, func() error { return f.Store.AddEntries(ctx, boot, sequences, entries) })
}

func (f *flaky) AddStatements(ctx context.Context, rows []leaf.Row, settled *leaf.Place) error {
	return f.do(ctx, func() error { return f.Store.AddStatements(ctx, rows, settled) })
}

func (f *flaky) ReadJournal(ctx context.Context, address string, boot [16]byte, after uint64) (boots []auditlog.Boot, entries [][]byte, err error) {
	err = f.do(ctx, func() (err error) { boots, entries, err = f.Servers.ReadJournal(ctx, address, boot, after); return err })
	return boots, entries, err
}

func (f *flaky) SignCheckpoint(ctx context.Context, origin string, size uint64, root [32]byte) (note string, err error) {
	err = f.do(ctx, func() (err error) { note, err = f.Servers.SignCheckpoint(ctx, origin, size, root); return err })
	return note, err
}

// TestFaults: whatever fails, whenever, and with two daemons at once and a
// cryptoserver that starts again, in the end everything is logged once, signed
// and exported, and nothing is found.
func TestFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := &flaky{Store: w.store, Servers: w.servers()}
	_, stop := w.auditing(f, f, w.export)
	_, stopOther := w.auditing(f, f, w.export)
	for range 10 {
		w.read()
		w.refuse(time.Now())
	}
	w.stop()
	w.startServer()
	for range 5 {
		w.read()
	}
	for end := time.Now().Add(10 * time.Second); f.fails.Load() < 200 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if f.fails.Load() < 50 {
		t.Errorf("only %d calls failed", f.fails.Load())
	}
	f.calm.Store(true)
	w.calm()
	stop()
	stopOther()
	r := w.finds()
	if r.Records != 25 || r.Counts[auditlog.StillOpen] != 1 {
		t.Errorf("%+v", r)
	}
	w.counted(25)
}

// TestLateCommit: a transaction that stores its record early, and commits after
// others that began later were logged, is not missed.
func TestLateCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, stop := w.auditing(w.store, w.servers(), w.export)
	defer stop()
	<-a.Ready()
	gateway := w.db.Open(t, migrations.RoleGateway)
	late := must(gateway.BeginTx(t.Context(), nil))(t)
	defer late.Rollback()
	id := w.refuse(time.Now()) // its row is taken for the late one's too
	var record []byte
	w.check(w.owner.QueryRowContext(t.Context(), `SELECT record FROM access_log WHERE interaction_id = $1::uuid`, text(id)).Scan(&record))
	lateID := newID()
	copy(record[4+len("kluis/access-record")+1:], lateID[:])
	must(late.ExecContext(t.Context(), `INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt) VALUES ($1, $2, $3, 4, $4, '', $5)`,
		w.ean.Int64(), uuid.UUID(lateID).String(), w.gln.Int64(), record, make([]byte, 16)))(t)
	var others []leaf.Key
	for range 30 {
		others = append(others, leaf.Key{Kind: leaf.Access, ID: w.refuse(time.Now()), Number: w.ean.Int64()})
	}
	logged := func(keys ...leaf.Key) bool {
		for _, i := range must(w.store.Indexes(t.Context(), keys))(t) {
			if i < 0 {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(20 * time.Second); !logged(others...); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("records wait for a transaction that goes on")
		}
	}
	w.check(late.Commit())
	for end := time.Now().Add(20 * time.Second); !logged(leaf.Key{Kind: leaf.Access, ID: lateID, Number: w.ean.Int64()}); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the record that was committed late is missed")
		}
	}
	w.calm()
}

// TestConcurrentWriters: of many transactions, some rolled back, each record
// that is committed is logged once.
func TestConcurrentWriters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, stop := w.auditing(w.store, w.servers(), w.export)
	defer stop()
	<-a.Ready()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				tx, err := w.owner.Begin()
				if err == nil {
					_, err = tx.Exec(`SELECT pg_current_xact_id()`) // and so the oldest for a while
				}
				if err != nil {
					t.Error(err)
					return
				}
				w.refuse(time.Now())
				time.Sleep(rand.N(3 * time.Millisecond))
				_ = tx.Rollback()
			}
		})
	}
	wg.Wait()
	w.calm()
	if r := w.finds(); r.Records != 400 {
		t.Errorf("%d records", r.Records)
	}
}

// TestRestoredElsewhere: after a restore into another cluster transactions are
// numbered lower than the cursors say, and nothing is missed.
func TestRestoredElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.read()
	w.catchUp()
	w.tamper(`UPDATE audit_cursor SET position = set_byte(position, 1, 1)`)
	w.tamper(`UPDATE access_log SET arrived = '99999999999'`)
	w.refuse(time.Now())
	w.read()
	w.catchUp()
	w.finds()
}

// TestRolledBack: an older state of the database is restored.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.refuse(time.Now())
	w.catchUp()
	restore := w.snapshot()
	keep := t.TempDir()
	w.read()
	w.catchUp()
	w.check(os.CopyFS(keep+"/copy", os.DirFS(w.dir)))
	restore() // and the folder too, which is put right again
	w.check(os.RemoveAll(w.dir))
	w.check(os.CopyFS(w.dir, os.DirFS(keep+"/copy")))
	size := must(w.store.Size(t.Context()))(t)
	w.refuse(time.Now())
	_, stop := w.auditing(w.store, w.servers(), w.export)
	time.Sleep(300 * time.Millisecond)
	stop()
	if n := must(w.store.Size(t.Context()))(t); n != size {
		t.Errorf("%d leaves were added to a log that lacks what was signed", n-size)
	}
	if r := w.verify(); r.Counts[auditlog.LogCut] == 0 {
		t.Errorf("%+v", r)
	}
}

// TestExportUnwritable: the folder is not there for a while.
func TestExportUnwritable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.catchUp()
	away := w.dir + "-away"
	_, stop := w.auditing(w.store, w.servers(), w.export)
	defer stop()
	w.check(os.Rename(w.dir, away))
	before := must(w.store.Size(t.Context()))(t)
	w.refuse(time.Now())
	for end := time.Now().Add(20 * time.Second); must(w.store.LastCheckpoint(t.Context()))(t).Size <= before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing is logged and signed without the folder")
		}
	}
	w.check(os.Rename(away, w.dir))
	w.calm()
}

// TestLostInACrash: a record whose receipt was in the tail that a crash took.
func TestLostInACrash(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.read()
	w.catchUp()
	restore := w.snapshot()
	defer restore()
	var boot string
	var sequence int64
	w.check(w.owner.QueryRowContext(t.Context(), `DELETE FROM journal_entry WHERE position(decode(replace($1, '-', ''), 'hex') IN entry) > 0 RETURNING boot_id, sequence`,
		text(id)).Scan(&boot, &sequence))
	for _, torn := range []bool{false, true} {
		end := leaf.JournalEnd{ServerID: "cs1", BootID: uuid.MustParse(boot), Last: uint64(sequence - 1), Torn: torn}
		w.exec(`DELETE FROM audit_statement WHERE kind = 6`)
		w.exec(`INSERT INTO audit_statement (kind, boot_id, sequence, statement) VALUES (6, $1, $2, $3)`, boot, sequence-1, end.Encode())
		r := w.verify()
		if n := r.Counts[auditlog.OpenedUnstored]; n != 0 {
			t.Errorf("torn %v: %d opened on a file that is not stored: %v", torn, n, r.Findings)
		}
		if lost := r.Counts[auditlog.LostInCrash] == 1 && r.Counts[auditlog.JournalTorn] == 1; lost != torn {
			t.Errorf("torn %v: %+v", torn, r.Findings)
		}
		if missing := r.Counts[auditlog.NotJournaled] == 1; missing == torn {
			t.Errorf("torn %v: %+v", torn, r.Findings)
		}
	}
	// The crash does not hide on what it was opened: the record has the receipt.
	w.tamper(`DELETE FROM legal_file WHERE version = 3`)
	if r := w.verify(); r.Counts[auditlog.OpenedUnstored] != 1 {
		t.Errorf("%+v", r.Findings)
	}
}

// TestAuditorMayNot: what the role must not be able to do is with the
// migrations; here, that it is no other.
func TestAuditorMayNot(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	if _, err := postgres.NewAuditor(t.Context(), postgres.Config{DSN: d.URL(migrations.RoleGateway)}); err == nil {
		t.Error("another role was taken for the auditor's")
	}
}
