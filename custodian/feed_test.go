package custodian_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/cryptoserver/control"
	"kluis/custodian"
)

func erasing(n int) control.Entry {
	return control.Entry{Kind: control.EraseKeys, Cause: control.CauseRequest, Keys: []control.KeyID{{byte(n), 1}}}
}

// TestAppendSideBySide: custodians that append at once, some on one copy, each
// get through, and all end with the same feed.
func TestAppendSideBySide(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	far := filepath.Join(t.TempDir(), "feed")
	all := []*custodian.Custodian{w.Custodian, w.another(w.copy), w.another(w.copy), w.another(far)}
	const each = 4
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() {
			for n := range each {
				if _, err := custodian.Append(c, t.Context(), erasing(i*each+n)); err != nil {
					t.Errorf("custodian %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	for i, c := range append(all, w.another(w.copy), w.another(filepath.Join(t.TempDir(), "new"))) {
		if err := custodian.Sync(c, t.Context()); err != nil {
			t.Error(err)
		}
		st, err := c.Status(t.Context())
		if err != nil || st.Database != nil || st.Sequence != uint64(len(all)*each) || st.ErasedKeys != len(all)*each {
			t.Errorf("custodian %d: %+v, %v", i, st, err)
		}
	}
	a, errA := os.ReadFile(w.copy)
	b, errB := os.ReadFile(far)
	if errA != nil || errB != nil || string(a) != string(b) {
		t.Errorf("two copies of one feed differ: %d and %d bytes", len(a), len(b))
	}
}

// TestAppendFaults: each call on the way fails once, before it was done and
// after: the entry is in the feed once in the end.
func TestAppendFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	n := 0
	for _, after := range []bool{false, true} {
		for call := 1; ; call++ {
			n++
			w.faulty.arm(call, after, custodian.ErrUnavailable, nil)
			_, err := custodian.Append(w.Custodian, t.Context(), erasing(n))
			struck := w.faulty.disarm()
			if err != nil {
				t.Fatalf("call %d fails, done %v: %v", call, after, err)
			}
			if !struck {
				break
			}
			if call > 20 {
				t.Fatal("no end")
			}
		}
	}
	if got := w.value(`SELECT count(*) || ' ' || max(sequence) FROM control_entry`); got != fmt.Sprintf("%d %d", n, n) {
		t.Errorf("%s entries, want %d", got, n)
	}
}

func TestAppendIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.activate(2)
	for name, e := range map[string]control.Entry{
		"an earlier epoch": {Kind: control.ActivateEpoch, Epoch: 1}, "the end of the active one": {Kind: control.DestroyEpoch, Epoch: 2},
	} {
		if _, err := custodian.Append(w.Custodian, t.Context(), e); !errors.Is(err, custodian.ErrRefused) {
			t.Errorf("%s: %v, want ErrRefused", name, err)
		}
	}
	if _, err := custodian.Append(w.Custodian, t.Context(), control.Entry{}); !errors.Is(err, control.ErrEntry) {
		t.Errorf("no entry: %v", err)
	}
	// A head by somebody else, or of something else, is not taken for one.
	stranger := newPool(1)
	good := w.pool.servers[0].signer
	w.pool.servers[0].signer = stranger.servers[0].signer
	if _, err := custodian.Append(w.Custodian, t.Context(), erasing(1)); !errors.Is(err, control.ErrHead) {
		t.Errorf("signed with a key that is not pinned: %v", err)
	}
	w.pool.servers[0].signer = good
	if got := w.value(`SELECT count(*) FROM control_entry`); got != "1" {
		t.Errorf("%s entries", got)
	}
}

// TestRolledBack: a database that was put back is noticed, by every custodian
// with a copy, and by the servers when copy and database both are old.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	for n := range 3 {
		head, err := custodian.Append(w.Custodian, t.Context(), erasing(n))
		w.must(err)
		_ = head
	}
	_, err := w.Activate(t.Context(), 1) // tells the servers
	w.must(err)
	w.exec(`CREATE TABLE kept AS SELECT * FROM control_entry`)
	refused := func(name, want string) {
		t.Helper()
		for i, c := range []*custodian.Custodian{w.Custodian, w.another(w.copy)} {
			err := custodian.Sync(c, t.Context())
			if !errors.Is(err, custodian.ErrRolledBack) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: custodian %d: %v, want ErrRolledBack and %q", name, i, err, want)
			}
			if _, err := custodian.Append(c, t.Context(), erasing(9)); !errors.Is(err, custodian.ErrRolledBack) {
				t.Errorf("%s: custodian %d appends: %v", name, i, err)
			}
		}
	}
	w.exec(`DELETE FROM control_entry WHERE sequence > 2`)
	refused("two entries gone", "reapply")
	w.exec(`DELETE FROM control_entry`)
	refused("all gone", "reapply")
	w.exec(`INSERT INTO control_entry SELECT * FROM kept`)
	w.exec(`UPDATE control_entry SET entry = (SELECT entry FROM kept WHERE sequence = 1), head = (SELECT head FROM kept WHERE sequence = 1) WHERE sequence = 4`)
	refused("another last entry", "another one")
	w.exec(`DELETE FROM control_entry`)
	w.exec(`INSERT INTO control_entry SELECT * FROM kept`)
	w.must(custodian.Sync(w.Custodian, t.Context()))

	// A hole, and an entry changed further back: not noticed at each beat, but
	// by the next start.
	w.exec(`DELETE FROM control_entry WHERE sequence = 2`)
	if err := custodian.Sync(w.another(w.copy), t.Context()); !errors.Is(err, custodian.ErrRolledBack) {
		t.Errorf("a hole: %v", err)
	}
	// Reapply fills all of it.
	for _, stmt := range []string{`DELETE FROM control_entry WHERE sequence = 2`, `DELETE FROM control_entry WHERE sequence > 1`, `DELETE FROM control_entry`} {
		w.exec(stmt)
		if _, err := w.Reapply(t.Context(), nil); err != nil {
			t.Errorf("%s: %v", stmt, err)
		}
		if got := w.value(`SELECT count(*) FROM control_entry e JOIN kept k USING (sequence, entry, head)`); got != "4" {
			t.Errorf("%s: %s entries came back", stmt, got)
		}
	}

	// A new copy of an old database: the servers know better.
	w.exec(`DELETE FROM control_entry WHERE sequence > 2`)
	fresh := w.another(filepath.Join(t.TempDir(), "feed"))
	if _, err := custodian.Append(fresh, t.Context(), erasing(9)); !errors.Is(err, custodian.ErrRolledBack) {
		t.Errorf("with a new copy: %v", err)
	}
	if got := w.value(`SELECT count(*) FROM control_entry`); got != "2" {
		t.Errorf("%s entries", got)
	}
	// Rows written by hand do not verify.
	w.exec(`INSERT INTO control_entry (sequence, entry, head) VALUES (3, '\x01', '\x02')`)
	if err := custodian.Sync(fresh, t.Context()); !errors.Is(err, custodian.ErrFeed) {
		t.Errorf("an entry by hand: %v", err)
	}
}

// eventually waits for something.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (w *world) run(c *custodian.Custodian) (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, 50*time.Millisecond) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					w.t.Error(err)
				}
			case <-time.After(20 * time.Second):
				w.t.Error("the daemon does not end")
			}
		})
	}
	w.t.Cleanup(stop)
	return stop
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heads
}

// grows says that a server goes on getting heads.
func grows(t testing.TB, s *server) {
	t.Helper()
	from := s.count()
	eventually(t, s.name+" gets heads", func() bool { return s.count() >= from+3 })
}

// TestRun: servers that hang, are gone, restart or know nothing delay no other
// and are brought up to date by themselves.
func TestRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4)
	hung, gone, fresh, well := w.pool.servers[0], w.pool.servers[1], w.pool.servers[2], w.pool.servers[3]
	for n := range 5 {
		_, err := custodian.Append(w.Custodian, t.Context(), erasing(n))
		w.must(err)
	}
	gone.set(func(s *server) { s.gone = true })
	stop := w.run(w.Custodian)
	select {
	case <-w.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("never ready")
	}
	for _, s := range []*server{fresh, well, hung} {
		eventually(t, s.name+" follows", func() bool { return s.known().Head().Sequence == 5 })
	}
	hung.set(func(s *server) { s.hangs = true })
	grows(t, well)
	grows(t, fresh)
	fresh.restart()
	eventually(t, "a server that restarted follows", func() bool { return fresh.known().Head().Sequence == 5 })
	gone.set(func(s *server) { s.gone = false })
	eventually(t, "a server that came back follows", func() bool { return gone.known().Head().Sequence == 5 })
	hung.set(func(s *server) { s.hangs = false })
	grows(t, hung)
	// An answer that is lost is as good as none, and what was done stays done.
	well.set(func(s *server) { s.mute = true })
	grows(t, well)
	well.set(func(s *server) { s.mute = false })

	// Another custodian appends: this daemon tells it too.
	other := w.another(w.copy)
	if _, err := custodian.Append(other, t.Context(), erasing(77)); err != nil {
		t.Fatal(err)
	}
	for _, s := range w.pool.servers {
		eventually(t, s.name+" follows the other custodian", func() bool { return s.known().Erased(control.KeyID{77, 1}, 1) })
	}
	if got := w.value(`SELECT octet_length(head) > 0 FROM control_heartbeat`); got != "true" {
		t.Errorf("the heartbeat for relays: %s", got)
	}
	stop()
	if n := w.log.count("does not follow the control feed"); n == 0 || n > 12 {
		t.Errorf("%d complaints in the log", n)
	}
}

// TestRunPutBack: no head is signed while the database is behind the copy; the
// log says so once; after Reapply all goes on.
func TestRunPutBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	for n := range 3 {
		_, err := custodian.Append(w.Custodian, t.Context(), erasing(n))
		w.must(err)
	}
	w.run(w.Custodian)
	eventually(t, "ready", func() bool { return w.pool.servers[1].known().Head().Sequence == 3 })
	w.exec(`DELETE FROM control_entry WHERE sequence = 3`)
	eventually(t, "noticed", func() bool { return w.log.count("kluis keys reapply") > 0 })
	// What was on its way has arrived.
	time.Sleep(100 * time.Millisecond)
	before := w.pool.servers[0].known().Head()
	time.Sleep(300 * time.Millisecond)
	if after := w.pool.servers[0].known().Head(); after != before {
		t.Errorf("a head was signed while the database was behind: %v, %v", before, after)
	}
	if n := w.log.count("the control feed stands still"); n != 1 {
		t.Errorf("said %d times", n)
	}
	if _, err := w.another(w.copy).Reapply(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	grows(t, w.pool.servers[0])
	grows(t, w.pool.servers[1])
	if n := w.log.count("the control feed goes on"); n != 2 {
		t.Errorf("recovery was said %d times", n)
	}
}

// TestRunDatabaseFaults: the database away and back.
func TestRunDatabaseFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.run(w.Custodian)
	s := w.pool.servers[0]
	grows(t, s)
	w.exec(`ALTER TABLE control_entry RENAME TO hidden`)
	eventually(t, "noticed", func() bool { return w.log.count("stands still") > 0 })
	w.exec(`ALTER TABLE hidden RENAME TO control_entry`)
	grows(t, s)
	tx, err := w.owner.BeginTx(t.Context(), nil)
	w.must(err)
	_, err = tx.ExecContext(t.Context(), `LOCK TABLE control_entry`)
	w.must(err)
	eventually(t, "noticed that it hangs", func() bool { return w.log.count("stands still") > 1 })
	w.must(tx.Rollback())
	grows(t, s)
}

// TestChunks: a server that knows nothing is told a long feed in parts.
func TestChunks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	e := control.Entry{Kind: control.EraseKeys, Cause: control.CauseReplaced}
	for i := range control.MaxKeys {
		e.Keys = append(e.Keys, control.KeyID{0, 0, byte(i >> 8), byte(i)})
	}
	const n = 40 // of 64 kB
	for i := range n {
		e.Keys[0][0] = 0
		for j := range e.Keys {
			e.Keys[j][1] = byte(i)
		}
		_, err := custodian.Append(w.Custodian, t.Context(), e)
		w.must(err)
	}
	_, err := w.Activate(t.Context(), 1)
	w.must(err)
	s := w.pool.servers[0]
	if got := s.known().ErasedKeys(); got != n*control.MaxKeys || s.biggest > 20 {
		t.Errorf("%d keys erased, in calls of up to %d entries", got, s.biggest)
	}
	s.restart()
	w.run(w.another(w.copy))
	eventually(t, "all of it again", func() bool { return s.known().Head().Sequence == n+1 })
}

// TestAppendMeetsFaults: servers that hang, are slow or gone, and a database
// that hangs, delay an entry and no more; who did not acknowledge is named.
func TestAppendMeetsFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4)
	w.Hurry(time.Second)
	w.activate(1)
	w.fill(1, 1, 2)
	for i, set := range []func(*server){
		func(s *server) { s.hangs = true }, func(s *server) { s.gone = true }, func(s *server) { s.slow = 20 * time.Millisecond }, func(*server) {},
	} {
		w.pool.servers[i].set(set)
	}
	began := time.Now()
	st, err := w.Erase(t.Context(), custodian.KeySelection{EAN: ean(1)}, nil)
	if err != nil || st.Deleted != 4 || len(st.Acks) != 4 {
		t.Fatalf("%+v, %v", st, err)
	}
	for i, a := range st.Acks {
		if (a.Err == nil) != (i >= 2) || a.Address != w.pool.Addresses()[i] {
			t.Errorf("%s: %v", a.Address, a.Err)
		}
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	w.pool.servers[0].set(func(s *server) { s.hangs = false })
	w.pool.servers[1].set(func(s *server) { s.gone = false })

	// Statements wait for a lock, are given up, and the entry is there once.
	tx, err := w.owner.BeginTx(t.Context(), nil)
	w.must(err)
	_, err = tx.ExecContext(t.Context(), `LOCK TABLE control_entry IN SHARE MODE`) // may be read
	w.must(err)
	time.AfterFunc(2500*time.Millisecond, func() { _ = tx.Rollback() })
	if _, err := custodian.Append(w.Custodian, t.Context(), erasing(1)); err != nil {
		t.Error(err)
	}
	if got := w.value(`SELECT count(*) || ' ' || max(sequence) FROM control_entry`); got != "3 3" {
		t.Errorf("%s entries", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := custodian.Append(w.Custodian, ctx, erasing(2)); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// TestLateCommit: a write that was given up for lost arrives later, beside the
// second try: the entry is in the feed once.
func TestLateCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	var late custodian.Appended
	w.faulty.Store = lateStore{w.store, &late}
	if _, err := custodian.Append(w.Custodian, t.Context(), erasing(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := custodian.Append(w.Custodian, t.Context(), erasing(2)); err != nil {
		t.Fatal(err)
	}
	if got := w.value(`SELECT count(*) || ' ' || count(DISTINCT entry) FROM control_entry`); got != "2 2" {
		t.Errorf("%s entries", got)
	}
}

// lateStore loses the first write, and has it arrive right before the second.
type lateStore struct {
	custodian.Store
	late *custodian.Appended
}

func (s lateStore) Append(ctx context.Context, a custodian.Appended) error {
	if s.late.Entry == nil {
		*s.late = a
		return custodian.ErrUnavailable
	}
	if s.late.Sequence > 0 {
		err := s.Store.Append(ctx, *s.late)
		s.late.Sequence = 0
		if err != nil {
			return err
		}
	}
	return s.Store.Append(ctx, a)
}
