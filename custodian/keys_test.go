package custodian_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/cryptoserver/control"
	"kluis/cryptoserver/envelope"
	"kluis/custodian"
	"kluis/internal/postgres"
	"kluis/meter"
)

func of(points ...int) func(meter.EAN, meter.Month) bool {
	return func(e meter.EAN, _ meter.Month) bool {
		for _, n := range points {
			if e == ean(n) {
				return true
			}
		}
		return false
	}
}

func before(m meter.Month) func(meter.EAN, meter.Month) bool {
	return func(_ meter.EAN, of meter.Month) bool { return of < m }
}

const shortGrace = 30 * time.Millisecond

func TestActivate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	cs2, cs3 := w.pool.servers[1], w.pool.servers[2]
	for name, c := range map[string]struct {
		set  func(*server)
		want []string
	}{
		"one is gone":           {func(s *server) { s.gone = true }, []string{"cs2:1 does not answer"}},
		"one lacks the epoch":   {func(s *server) { s.lacks[1] = true }, []string{"cs2 (cs2:1) has no KEK of it on token cs2-open of role open", "role seal", "role mint", "role rotate"}},
		"it is the only opener": {func(s *server) { s.roles = []string{"open"} }, []string{"has the role rotate"}},
	} {
		reset := func() {
			for _, s := range w.pool.servers {
				s.set(func(s *server) {
					s.gone, s.lacks, s.roles = false, map[uint32]bool{}, []string{"open", "seal", "mint", "rotate"}
				})
			}
		}
		reset()
		if strings.Contains(name, "only") {
			for _, s := range []*server{w.pool.servers[0], cs3} {
				s.set(func(s *server) { s.roles = []string{"seal", "mint"} })
			}
		}
		cs2.set(c.set)
		_, err := w.Activate(t.Context(), 1)
		if !errors.Is(err, custodian.ErrLacking) {
			t.Errorf("%s: %v, want ErrLacking", name, err)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
		reset()
	}
	if got := w.value(`SELECT count(*) FROM control_entry`); got != "0" {
		t.Fatalf("%s entries", got)
	}
	cs2.set(func(s *server) {
		s.gone, s.lacks, s.roles = false, map[uint32]bool{2: true}, []string{"open", "seal", "mint", "rotate"}
	})
	w.activate(1)
	w.activate(1) // again changes nothing
	if _, err := w.Activate(t.Context(), 2); !errors.Is(err, custodian.ErrLacking) {
		t.Errorf("epoch 2: %v", err)
	}
	w.activate(3)
	for _, epoch := range []uint32{0, 1, 2} {
		if _, err := w.Activate(t.Context(), epoch); !errors.Is(err, custodian.ErrRefused) && !errors.Is(err, control.ErrEntry) {
			t.Errorf("back to epoch %d: %v", epoch, err)
		}
	}
	if got := w.value(`SELECT count(*) FROM control_entry`); got != "2" {
		t.Errorf("%s entries", got)
	}
	for _, s := range w.pool.servers {
		if s.known().Active() != 3 {
			t.Errorf("%s was not told", s.name)
		}
	}
}

// scenarios are what the custodian does, each from a state to another.
func scenarios(w *world) map[string]struct {
	prepare func()
	do      func(ctx context.Context) error
	done    func()
} {
	type scenario = struct {
		prepare func()
		do      func(ctx context.Context) error
		done    func()
	}
	// start is a time before which whatever prepare stores was minted.
	start := time.Now().Add(time.Hour)
	return map[string]scenario{
		"activate": {
			func() { w.activate(1) },
			func(ctx context.Context) error { _, err := w.Activate(ctx, 2); return err },
			func() {
				if got := w.value(`SELECT count(*) >= 2 FROM control_entry`); got != "true" {
					w.t.Error("no entry")
				}
				for _, s := range w.pool.servers {
					if s.known().Active() != 2 {
						w.t.Errorf("%s: epoch %d is active", s.name, s.known().Active())
					}
				}
			},
		},
		"rewrap": {
			func() { w.activate(1); w.fill(1, 1, 2); w.activate(2); w.fill(2, 3) },
			func(ctx context.Context) error {
				st, err := w.Rewrap(ctx, custodian.RewrapOptions{})
				if err == nil && (st.Left != 0 || st.Damaged != 0) {
					w.t.Errorf("%+v", st)
				}
				return err
			},
			func() {
				w.check(nothing)
				if got := w.epochs(); !maps.Equal(got, map[uint32]int{2: 12}) {
					w.t.Errorf("epochs %v", got)
				}
			},
		},
		"rotate": {
			func() { w.activate(1); w.fill(1, 1, 2); w.activate(2) },
			func(ctx context.Context) error {
				st, err := w.RotateDataKeys(ctx, custodian.KeySelection{EAN: ean(1), MintedBefore: start}, custodian.RotateOptions{Grace: shortGrace})
				if st.Damaged != 0 {
					w.t.Errorf("%+v", st)
				}
				return err
			},
			func() {
				w.check(nothing)
				if got := w.epochs(); !maps.Equal(got, map[uint32]int{1: 4, 2: 4}) {
					w.t.Errorf("epochs %v", got)
				}
				if got := w.value(`SELECT count(*) >= 4 AND count(*) = count(sequence) FROM key_tombstone`); got != "true" {
					w.t.Error("tombstones without an entry")
				}
				for _, s := range w.pool.servers {
					if s.known().ErasedKeys() < 4 {
						w.t.Errorf("%s: %d keys erased", s.name, s.known().ErasedKeys())
					}
				}
			},
		},
		"erase": {
			func() { w.activate(1); w.fill(1, 1, 2) },
			func(ctx context.Context) error {
				st, err := w.Erase(ctx, custodian.KeySelection{EAN: ean(1)}, nil)
				if err == nil && (st.Left != 0 || len(st.Acks) != len(w.pool.servers)) {
					w.t.Errorf("%+v", st)
				}
				return err
			},
			func() {
				w.check(of(1))
				for _, s := range w.pool.servers {
					if s.known().ErasedKeys() != 4 {
						w.t.Errorf("%s: %d keys erased", s.name, s.known().ErasedKeys())
					}
				}
			},
		},
		"erase before": {
			func() { w.activate(1); w.fill(1, 1, 2) },
			func(ctx context.Context) error { _, err := w.EraseBefore(ctx, testMonths[1], nil); return err },
			func() {
				w.check(before(testMonths[1]))
				for _, s := range w.pool.servers {
					if s.known().Before() != testMonths[1] {
						w.t.Errorf("%s: before %s", s.name, s.known().Before())
					}
				}
			},
		},
		"destroy": {
			func() { w.activate(1); w.activate(2); w.fill(2, 1) },
			func(ctx context.Context) error { _, err := w.DestroyEpoch(ctx, 1, true); return err },
			func() {
				w.check(nothing)
				for _, s := range w.pool.servers {
					if !s.known().Destroyed(1) || s.known().Destroyed(2) {
						w.t.Errorf("%s was not told", s.name)
					}
				}
			},
		},
		"reapply": {
			func() {
				w.activate(1)
				w.fill(1, 1, 2)
				w.backup()
				_, err := w.EraseBefore(w.t.Context(), testMonths[1], nil)
				w.must(err)
				_, err = w.Erase(w.t.Context(), custodian.KeySelection{EAN: ean(1)}, nil)
				w.must(err)
				w.activate(2)
				w.restore()
			},
			func(ctx context.Context) error { _, err := w.Reapply(ctx, nil); return err },
			func() {
				w.check(func(e meter.EAN, m meter.Month) bool { return e == ean(1) || m < testMonths[1] })
				w.must(custodian.Sync(w.Custodian, w.t.Context()))
			},
		},
	}
}

var backupTables = []string{"data_key", "sealed_block", "ingest_batch", "control_entry", "control_heartbeat", "key_tombstone"}

// backup and restore are those of the whole database, but for what no role but
// the owner could tell from a dump.
func (w *world) backup() {
	w.t.Helper()
	w.exec(`DROP SCHEMA IF EXISTS backup CASCADE`)
	w.exec(`CREATE SCHEMA backup`)
	for _, table := range backupTables {
		w.exec(`CREATE TABLE backup.` + table + ` AS SELECT * FROM public.` + table)
	}
}

func (w *world) restore() {
	w.t.Helper()
	for _, table := range backupTables {
		w.empty(table)
		w.exec(`INSERT INTO public.` + table + ` SELECT * FROM backup.` + table)
	}
}

// TestKilledAnywhere ends each operation at each of its calls, before the call
// was done and after, by an error and by the end of its context, and runs it
// again, as a new process would: the state in the end is as if it had never
// been interrupted, and nothing is lost in between.
func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"activate", "rewrap", "rotate", "erase", "erase before", "destroy", "reapply"} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 2)
			for _, how := range []struct {
				name  string
				after bool
				kill  bool
			}{{"fails", false, false}, {"fails, and was done", true, false}, {"killed before", false, true}, {"killed after", true, true}} {
				for call := 1; ; call++ {
					w.reset()
					s := scenarios(w)[name]
					s.prepare()
					ctx, cancel := context.WithCancel(t.Context())
					err := errors.New("an error of no known kind")
					var hit func()
					if how.kill {
						err, hit = context.Canceled, cancel
					}
					w.faulty.arm(call, how.after, err, hit)
					err = s.do(ctx)
					cancel()
					struck := w.faulty.disarm()
					if !struck {
						if err != nil {
							t.Fatalf("undisturbed: %v", err)
						}
						s.done()
						break
					}
					// Another process goes on, with the same copy.
					w.Close()
					w.Custodian = w.another(w.copy)
					if err := s.do(t.Context()); err != nil {
						t.Fatalf("call %d %s; again: %v", call, how.name, err)
					}
					s.done()
					if t.Failed() {
						t.Fatalf("call %d %s", call, how.name)
					}
					if call > 200 {
						t.Fatal("no end")
					}
				}
			}
		})
	}
}

// TestWhileServersFail: what goes on for long gets over servers and a database
// that are away for a while.
func TestWhileServersFail(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.activate(1)
	w.fill(1, 1, 2, 3)
	w.activate(2)
	for _, s := range w.pool.servers {
		s.set(func(s *server) { s.gone = true })
	}
	time.AfterFunc(300*time.Millisecond, func() {
		w.pool.servers[1].set(func(s *server) { s.gone = false })
	})
	st, err := w.Rewrap(t.Context(), custodian.RewrapOptions{})
	if err != nil || st.Left != 0 || st.Rewrapped != 12 || st.Total != 12 {
		t.Errorf("%+v, %v", st, err)
	}
	w.check(nothing)
	w.pool.servers[1].set(func(s *server) { s.gone = true })
	w.Hurry(500 * time.Millisecond)
	if _, err := w.RotateDataKeys(t.Context(), custodian.KeySelection{}, custodian.RotateOptions{Grace: shortGrace}); !errors.Is(err, custodian.ErrUnavailable) {
		t.Errorf("with no server for long: %v", err)
	}
	w.check(nothing)
}

// TestDamagedKeys: records that do not unwrap stop nobody else's.
func TestDamagedKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.activate(1)
	w.fill(1, 1, 2, 3)
	w.activate(2)
	w.exec(`UPDATE data_key SET wrapped = decode(repeat('00', 40), 'hex') WHERE ean = $1 AND class = 1 AND month = $2`, ean(2).Int64(), int(testMonths[0]))
	w.exec(`UPDATE data_key SET wrapped = '\x00' WHERE ean = $1 AND class = 1 AND month = $2`, ean(2).Int64(), int(testMonths[1]))
	w.exec(`UPDATE data_key SET class = 7 WHERE ean = $1 AND class = 2 AND month = $2`, ean(2).Int64(), int(testMonths[1]))
	w.exec(`INSERT INTO data_key (ean, key_id, class, month, occupancy, kek_epoch, wrapped, mac) VALUES (5, gen_random_uuid(), 1, 1, 0, 1, '\x00', decode(repeat('00', 32), 'hex'))`)
	var calls int
	st, err := w.Rewrap(t.Context(), custodian.RewrapOptions{Progress: func(custodian.RewrapStatus) { calls++ }})
	if err != nil || st.Rewrapped != 9 || st.Damaged != 4 || st.Left != 4 || calls == 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := w.DestroyEpoch(t.Context(), 1, true); !errors.Is(err, custodian.ErrRefused) || !strings.Contains(err.Error(), "4 data keys") {
		t.Errorf("the old epoch is destroyed: %v", err)
	}
	// One that was sealed too often today stops nothing else.
	w.pool.often = func(k envelope.KeyRecord) bool { return k.EAN == ean(3) && k.Month == testMonths[0] }
	often, err := w.RotateDataKeys(t.Context(), custodian.KeySelection{EAN: ean(3)}, custodian.RotateOptions{Grace: shortGrace})
	if err != nil || often.TooOften != 2 || often.Rotated != 2 || often.Erased != 2 {
		t.Errorf("%+v, %v", often, err)
	}
	w.pool.often = nil
	// A damaged block keeps its key.
	w.exec(`UPDATE sealed_block SET ciphertext = overlay(ciphertext placing '\x00'::bytea from 40) WHERE ean = $1 AND field = 1`, ean(1).Int64())
	rst, err := w.RotateDataKeys(t.Context(), custodian.KeySelection{EAN: ean(1)}, custodian.RotateOptions{Grace: shortGrace})
	if err != nil || rst.Damaged != 2 || rst.Rotated != 2 || rst.Erased != 2 {
		t.Errorf("%+v, %v", rst, err)
	}
}

// TestRewrapBesideOthers: keys that somebody erases or replaces meanwhile, and
// keys that an import stores under the old epoch.
func TestRewrapBesideOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.activate(1)
	w.fill(1, 1, 2, 3, 4)
	w.activate(2)
	once := sync.OnceFunc(func() {
		w.fill(1, 5) // minted before
		other := w.another(w.copy)
		if _, err := other.Erase(t.Context(), custodian.KeySelection{EAN: ean(4)}, nil); err != nil {
			t.Error(err)
		}
	})
	st, err := w.Rewrap(t.Context(), custodian.RewrapOptions{Progress: func(custodian.RewrapStatus) { once() }})
	if err != nil || st.Left != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if got := w.epochs(); !maps.Equal(got, map[uint32]int{2: 16}) {
		t.Errorf("epochs %v", got)
	}
	w.check(of(4))
}

func TestRewrapRate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.activate(1)
	w.fill(1, 1, 2, 3)
	w.activate(2)
	began := time.Now()
	st, err := w.Rewrap(t.Context(), custodian.RewrapOptions{Rate: 20})
	// 12 keys; the last batch of 4 begins after 8 at the latest.
	if took := time.Since(began); err != nil || st.Rewrapped != 12 || took < 350*time.Millisecond {
		t.Errorf("%+v, %v after %v", st, err, took)
	}

	// No second sees more than the rate: the batches are no larger.
	w.activate(3)
	ctx, cancel := context.WithCancel(t.Context())
	st, err = w.Rewrap(ctx, custodian.RewrapOptions{Rate: 2, Progress: func(custodian.RewrapStatus) { cancel() }})
	if !errors.Is(err, context.Canceled) || st.Rewrapped != 2 {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestRotateBesideImports: an import that sealed under the old key, and stores
// after it was replaced, is told so; readers always see a block and its key.
func TestRotateBesideImports(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.activate(1)
	w.fill(1, 1)
	var old *envelope.KeyRecord
	for _, k := range w.keyRows() {
		if k.Class == meter.Registers && k.Month == testMonths[0] {
			old = &k
		}
	}
	row := w.block(old, testMonths[0].First()+20, 1)
	late := w.block(old, testMonths[0].First()+21, 1)
	// The first is stored while the key's blocks are sealed again.
	once := sync.OnceFunc(func() {
		if err := w.ingest.Commit(context.Background(), postgres.Batch{Blocks: []postgres.Row{row}}); err != nil {
			t.Error(err)
		}
	})
	w.faulty.read = func(k envelope.KeyRecord) {
		if k.ID == old.ID {
			once()
		}
	}
	st, err := w.RotateDataKeys(t.Context(), custodian.KeySelection{EAN: ean(1)}, custodian.RotateOptions{Grace: shortGrace})
	if err != nil || st.Rotated != 4 || st.Blocks != 13 || st.Erased != 4 {
		t.Errorf("%+v, %v", st, err)
	}
	err = w.ingest.Commit(t.Context(), postgres.Batch{Blocks: []postgres.Row{late}})
	if !errors.Is(err, postgres.ErrConflict) {
		t.Errorf("stored under a key that was replaced: %v", err)
	}
	delete(w.plain, blockKey{late.EAN.Int64(), late.Field, late.Day, 1})
	w.check(nothing)
}

// TestErase: what was replaced before goes too; one server that is away is
// named; another occupancy stays.
func TestErase(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.activate(1)
	w.fill(1, 1, 2)
	if _, err := w.Erase(t.Context(), custodian.KeySelection{}, nil); !errors.Is(err, custodian.ErrRefused) {
		t.Errorf("everything is erased: %v", err)
	}
	none := meter.Day(1)
	st, err := w.Erase(t.Context(), custodian.KeySelection{EAN: ean(1), Occupancy: &none}, nil)
	if err != nil || st.Keys != 0 || len(st.Sequences) != 0 {
		t.Errorf("an occupancy that is not there: %+v, %v", st, err)
	}
	w.check(nothing)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // interrupted in the grace
		eventually(t, "replaced", func() bool {
			n, err := w.store.Retired(context.Background(), meter.EAN{}, 0, 10)
			return err == nil && len(n) == 4
		})
		cancel()
	}()
	if _, err := w.RotateDataKeys(ctx, custodian.KeySelection{EAN: ean(1)}, custodian.RotateOptions{Grace: time.Hour}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	w.pool.servers[1].set(func(s *server) { s.gone = true })
	w.Hurry(500 * time.Millisecond)
	occupancy := meter.Day(19000)
	st, err = w.Erase(t.Context(), custodian.KeySelection{EAN: ean(1), Occupancy: &occupancy}, nil)
	if err != nil || st.Keys != 8 || st.Deleted != 4 || len(st.Acks) != 2 || st.Acks[0].Err != nil || st.Acks[1].Err == nil {
		t.Errorf("%+v, %v", st, err)
	}
	w.pool.servers[1].set(func(s *server) { s.gone = false })
	w.Hurry(callTime)
	// Again: nothing to erase, and everybody is told.
	st, err = w.Erase(t.Context(), custodian.KeySelection{EAN: ean(1)}, nil)
	if err != nil || st.Keys != 0 || len(st.Acks) != 2 || st.Acks[1].Err != nil || w.pool.servers[1].known().ErasedKeys() != 8 {
		t.Errorf("%+v, %v", st, err)
	}
	w.check(of(1))
	if got := w.value(`SELECT count(*) FROM key_tombstone WHERE sequence IS NULL`); got != "0" {
		t.Errorf("%s keys are still only replaced", got)
	}
}

func TestEraseBeforeRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.activate(1)
	now := time.Now().UTC()
	next := meter.DayFromDate(now.Year(), now.Month(), 1).Month() + 1
	for _, m := range []meter.Month{0, -1, next, next + 1000} {
		if _, err := w.EraseBefore(t.Context(), m, nil); !errors.Is(err, custodian.ErrRefused) {
			t.Errorf("before %s: %v", m, err)
		}
	}
	if _, err := w.EraseBefore(t.Context(), testMonths[1], nil); err != nil {
		t.Error(err)
	}
	st, err := w.EraseBefore(t.Context(), testMonths[0], nil)
	if err != nil || len(st.Sequences) != 1 || st.Sequences[0] != 2 {
		t.Errorf("fewer months: %+v, %v", st, err)
	}
	if got := w.value(`SELECT count(*) FROM control_entry`); got != "2" {
		t.Errorf("%s entries", got)
	}
}

func TestDestroyEpoch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.activate(1)
	w.fill(1, 1)
	w.activate(2)
	for name, c := range map[string]struct {
		epoch uint32
		sure  bool
		want  string
	}{
		"the active one":      {2, true, "not older"},
		"a later one":         {3, true, "not older"},
		"one in use":          {1, true, "4 data keys"},
		"one just given up":   {1, false, "import"},
		"one that never was":  {0, true, ""},
		"while it is in use ": {1, true, "rotate-kek"},
	} {
		_, err := w.DestroyEpoch(t.Context(), c.epoch, c.sure)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	st, err := w.Rewrap(t.Context(), custodian.RewrapOptions{})
	if err != nil || st.Left != 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	status := func() map[uint32]custodian.EpochStatus {
		st, err := w.Status(t.Context())
		if err != nil || st.Database != nil {
			t.Fatal(err, st.Database)
		}
		out := map[uint32]custodian.EpochStatus{}
		for _, e := range st.Epochs {
			out[e.Epoch] = e
		}
		return out
	}
	if _, err := w.Erase(t.Context(), custodian.KeySelection{EAN: ean(1)}, nil); err != nil {
		t.Fatal(err)
	}
	// Erased under epoch 2, and before the rotation in a backup under epoch 1.
	if e := status()[2]; e.Deleted.Erased != 4 || !e.OnlyLogically() || fmt.Sprint(e.Open) != "[1 2]" || !e.Active {
		t.Errorf("%+v", e)
	}
	if _, err := w.DestroyEpoch(t.Context(), 1, true); err != nil {
		t.Fatal(err)
	}
	if _, err := w.DestroyEpoch(t.Context(), 1, false); err != nil {
		t.Errorf("again: %v", err)
	}
	// What shows it to whoever has the pinned seal keys only.
	proof, err := w.DestructionProof(1)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := control.OpenProof(proof, w.pool.keys); err != nil || e.Kind != control.DestroyEpoch || e.Epoch != 1 {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := w.DestructionProof(2); !errors.Is(err, custodian.ErrRefused) {
		t.Errorf("a proof for the active epoch: %v", err)
	}
	// Given up, but the objects are still on the tokens.
	if e := status()[1]; !e.Destroyed || len(e.Holders) != 1 || len(e.Open) != 1 {
		t.Errorf("%+v", e)
	}
	w.pool.servers[0].set(func(s *server) { s.lacks[1] = true })
	if e := status()[1]; len(e.Holders) != 0 || len(e.Open) != 0 {
		t.Errorf("%+v", e)
	}
	w.activate(3)
	if st, err := w.Rewrap(t.Context(), custodian.RewrapOptions{}); err != nil || st.Left != 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	if _, err := w.DestroyEpoch(t.Context(), 2, true); err != nil {
		t.Fatal(err)
	}
	w.pool.servers[0].set(func(s *server) { s.lacks[2] = true })
	if e := status()[2]; e.OnlyLogically() {
		t.Errorf("all KEKs it ever had are gone: %+v", e)
	}
	// A server that cannot be asked may have them on its tokens.
	for name, away := range map[string]func(*server){
		"gone": func(s *server) { s.gone = true }, "silent": func(s *server) { s.gone, s.silent = false, true },
	} {
		w.pool.servers[0].set(away)
		if e := status()[2]; !e.OnlyLogically() || fmt.Sprint(e.Open) != "[1 2]" {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

// TestRestoreOlderBackup is the drill: after erasures, a rotation of the KEK and
// one of data keys, the database of before comes back.
func TestRestoreOlderBackup(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.activate(1)
	w.fill(1, 1, 2, 3)
	w.backup()
	plain := maps.Clone(w.plain)
	if _, err := w.Erase(t.Context(), custodian.KeySelection{EAN: ean(1)}, nil); err != nil {
		t.Fatal(err)
	}
	w.activate(2)
	if _, err := w.Rewrap(t.Context(), custodian.RewrapOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.RotateDataKeys(t.Context(), custodian.KeySelection{EAN: ean(3)}, custodian.RotateOptions{Grace: shortGrace}); err != nil {
		t.Fatal(err)
	}
	w.check(of(1))
	w.restore()
	w.plain = plain
	// The servers start anew too: all they know comes from the copy.
	for _, s := range w.pool.servers {
		s.restart()
	}
	if _, err := w.Rewrap(t.Context(), custodian.RewrapOptions{}); !errors.Is(err, custodian.ErrRolledBack) {
		t.Errorf("work goes on in an older database: %v", err)
	}
	st, err := w.Reapply(t.Context(), nil)
	if err != nil || st.Entries < 3 || st.Seen != 12 || st.Deleted != 8 || st.Replaced != 4 || st.Stale != 4 || st.Lost != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	// What was sealed again since the backup is lost with the key before it.
	w.check(of(1, 3))
	if again, err := w.Reapply(t.Context(), nil); err != nil || again.Entries+again.Deleted != 0 || again.Seen != 4 {
		t.Errorf("again: %+v, %v", again, err)
	}
	if st, err := w.Rewrap(t.Context(), custodian.RewrapOptions{}); err != nil || st.Rewrapped != 4 || st.Left != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	w.check(of(1, 3))
	if _, err := w.DestroyEpoch(t.Context(), 1, true); err != nil {
		t.Fatal(err)
	}
	w.restore()
	st, err = w.Reapply(t.Context(), nil)
	if err != nil || st.Lost != 4 || st.Stale != 0 {
		t.Errorf("after the epoch's end: %+v, %v", st, err)
	}
}
