package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/cryptoserver/envelope"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

func custodian(t testing.TB, d *pgtest.DB) *postgres.Custodian {
	c, err := postgres.NewCustodian(t.Context(), config(d, migrations.RoleCustodian))
	return closing(t, c, err)
}

// scanAll collects the selected keys, in pages.
func scanAll(t testing.TB, c *postgres.Custodian, s postgres.KeySelection, page int) []envelope.KeyRecord {
	t.Helper()
	var out []envelope.KeyRecord
	after := postgres.Place{}
	for range 10000 {
		keys, next, err := c.Scan(t.Context(), s, after, page)
		if err != nil {
			t.Fatal(err)
		}
		if len(keys) > page {
			t.Fatalf("%d keys on a page of %d", len(keys), page)
		}
		out = append(out, keys...)
		if next == nil {
			return out
		}
		after = *next
	}
	t.Fatal("no end")
	return nil
}

func TestControlFeed(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	c := custodian(t, d)
	if feed, err := c.Feed(t.Context(), 0, 10); len(feed) != 0 || err != nil {
		t.Errorf("%v, %v", feed, err)
	}
	if b, err := c.LastHeartbeat(t.Context()); b != nil || err != nil {
		t.Errorf("%x, %v", b, err)
	}
	var want []postgres.ControlEntry
	for n := range uint64(5) {
		e := postgres.ControlEntry{Sequence: n + 1, Entry: []byte{1, byte(n)}, Head: []byte{2, byte(n)}}
		if err := c.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		want = append(want, e)
	}
	if err := c.Append(t.Context(), want[2]); !errors.Is(err, postgres.ErrConflict) {
		t.Errorf("the same again: %v, want ErrConflict", err)
	}
	for after, limit := range map[uint64]int{0: 10, 2: 2, 4: 10} {
		feed, err := c.Feed(t.Context(), after, limit)
		if w := want[after:min(len(want), int(after)+limit)]; err != nil || !reflect.DeepEqual(feed, w) {
			t.Errorf("after %d: %v, %v", after, feed, err)
		}
	}
	if feed, err := c.Feed(t.Context(), 1<<64-1, 10); len(feed) != 0 || err != nil {
		t.Errorf("beyond everything: %v, %v", feed, err)
	}
	for _, head := range []string{"one", "two"} {
		if err := c.Heartbeat(t.Context(), []byte(head)); err != nil {
			t.Fatal(err)
		}
		if b, err := c.LastHeartbeat(t.Context()); string(b) != head || err != nil {
			t.Errorf("%s, %v", b, err)
		}
	}
	if got := value(t, d.Open(t, migrations.RoleOwner), `SELECT count(*) FROM control_heartbeat`); got != "1" {
		t.Errorf("%s heartbeats", got)
	}
}

func TestScan(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	c, in := custodian(t, d), ingest(t, d)
	var all []envelope.KeyRecord
	for n := range 5 {
		var b postgres.Batch
		for m := range meter.Month(3) {
			k := key(ean(n), meter.Registers, 660+m)
			k.Epoch, k.Occupancy = uint32(1+(n+int(m))%3), meter.Day(100*(n%2))
			b.Keys = append(b.Keys, k)
		}
		if err := in.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		all = append(all, b.Keys...)
	}
	owner := d.Open(t, migrations.RoleOwner)
	if _, err := owner.ExecContext(t.Context(), `UPDATE data_key SET created_at = '2020-01-01' WHERE month = 661`); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, func(a, b envelope.KeyRecord) int {
		if a.EAN != b.EAN {
			return int(a.EAN.Int64() - b.EAN.Int64())
		}
		return bytes.Compare(a.ID[:], b.ID[:])
	})
	first := meter.Day(0)
	for name, c2 := range map[string]struct {
		s    postgres.KeySelection
		want func(k *envelope.KeyRecord) bool
	}{
		"all":              {postgres.KeySelection{}, func(*envelope.KeyRecord) bool { return true }},
		"a metering point": {postgres.KeySelection{EAN: ean(3)}, func(k *envelope.KeyRecord) bool { return k.EAN == ean(3) }},
		"one without keys": {postgres.KeySelection{EAN: ean(9)}, func(*envelope.KeyRecord) bool { return false }},
		"an occupancy":     {postgres.KeySelection{EAN: ean(2), Occupancy: &first}, func(k *envelope.KeyRecord) bool { return k.EAN == ean(2) && k.Occupancy == 0 }},
		"no occupancy":     {postgres.KeySelection{EAN: ean(3), Occupancy: &first}, func(*envelope.KeyRecord) bool { return false }},
		"months":           {postgres.KeySelection{Before: 662}, func(k *envelope.KeyRecord) bool { return k.Month < 662 }},
		"epochs":           {postgres.KeySelection{NotEpoch: 2}, func(k *envelope.KeyRecord) bool { return k.Epoch != 2 }},
		"old ones":         {postgres.KeySelection{MintedBefore: now.AddDate(-1, 0, 0)}, func(k *envelope.KeyRecord) bool { return k.Month == 661 }},
		"all of it":        {postgres.KeySelection{EAN: ean(1), Before: 662, NotEpoch: 2}, func(k *envelope.KeyRecord) bool { return k.EAN == ean(1) && k.Month < 662 && k.Epoch != 2 }},
	} {
		var want []envelope.KeyRecord
		for _, k := range all {
			if c2.want(&k) {
				want = append(want, k)
			}
		}
		for _, page := range []int{1, 2, 3, 5, 15, 16, 100} {
			if got := scanAll(t, c, c2.s, page); !reflect.DeepEqual(got, want) {
				t.Errorf("%s in pages of %d: %d keys, want %d", name, page, len(got), len(want))
			}
		}
	}
	counts, err := c.CountKeys(t.Context())
	if err != nil || len(counts) != 3 || counts[1].Keys+counts[2].Keys+counts[3].Keys != 15 || counts[2] != (postgres.KeyCount{Keys: 5, First: 660, Last: 662}) {
		t.Errorf("%v, %v", counts, err)
	}
	// What was put there by hand neither stops it nor gets lost.
	if _, err := owner.ExecContext(t.Context(), `INSERT INTO data_key (ean, key_id, class, month, occupancy, kek_epoch, wrapped, mac)
		SELECT n, gen_random_uuid(), 300, -7, 0, 2147483647, '\x00', decode(repeat('00', 32), 'hex') FROM unnest(ARRAY[-9223372036854775808, -1, 0, 7, 9223372036854775807]) n`); err != nil {
		t.Fatal(err)
	}
	for _, page := range []int{1, 4, 100} {
		got := scanAll(t, c, postgres.KeySelection{}, page)
		if odd := slices.DeleteFunc(slices.Clone(got), func(k envelope.KeyRecord) bool { return k.EAN != meter.EAN{} }); len(got) != 20 || len(odd) != 5 {
			t.Errorf("in pages of %d: %d keys, %d of them odd", page, len(got), len(odd))
		}
	}
}

func TestReplaceWrapped(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	c, in := custodian(t, d), ingest(t, d)
	seed(t, in, home, days("2025-01-01", "2025-03-01"))
	old := scanAll(t, c, postgres.KeySelection{}, 100)
	fresh := slices.Clone(old)
	for i := range fresh {
		fresh[i].Epoch, fresh[i].Wrapped, fresh[i].MAC = 2, bytes.Repeat([]byte{9}, 40), [32]byte{9, byte(i)}
	}
	for name, change := range map[string]func(*envelope.KeyRecord){
		"another wrapped form": func(k *envelope.KeyRecord) { k.Wrapped = bytes.Repeat([]byte{1}, 40) },
		"another MAC":          func(k *envelope.KeyRecord) { k.MAC[0]++ },
		"another epoch":        func(k *envelope.KeyRecord) { k.Epoch++ },
	} {
		was := slices.Clone(old)
		change(&was[1])
		n, err := c.ReplaceWrapped(t.Context(), was[1:2], fresh[1:2])
		if n != 0 || err != nil {
			t.Errorf("%s: %d replaced, %v", name, n, err)
		}
	}
	swapped := slices.Clone(fresh)
	swapped[0], swapped[1] = swapped[1], swapped[0]
	if _, err := c.ReplaceWrapped(t.Context(), old, swapped); err == nil {
		t.Error("one key was replaced by another")
	}
	if _, err := c.ReplaceWrapped(t.Context(), old, fresh[1:]); err == nil {
		t.Error("not as many as there were")
	}
	if n, err := c.ReplaceWrapped(t.Context(), old[:2], fresh[:2]); n != 2 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if n, err := c.ReplaceWrapped(t.Context(), old, fresh); n != len(old)-2 || err != nil {
		t.Errorf("again: %d, %v", n, err)
	}
	if got := scanAll(t, c, postgres.KeySelection{}, 100); !reflect.DeepEqual(got, fresh) {
		t.Errorf("%v", got)
	}
	if n, err := c.ReplaceWrapped(t.Context(), nil, nil); n != 0 || err != nil {
		t.Errorf("nothing: %d, %v", n, err)
	}
}

const zeros = `decode(repeat('00', 32), 'hex')`

func TestDeleteKeys(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	c, in := custodian(t, d), ingest(t, d)
	period := days("2025-01-30", "2025-02-03")
	seed(t, in, home, period)
	seed(t, in, neighbour, period)
	owner := d.Open(t, migrations.RoleOwner)
	jan := key(home, meter.Registers, period.From.Month())
	feb := key(home, meter.Intervals, period.From.Month()+1)
	unknown := postgres.KeyRef{EAN: home, ID: [16]byte{1}}
	elsewhere := postgres.KeyRef{EAN: ean(3), ID: jan.ID}
	if n, err := c.DeleteKeys(t.Context(), []postgres.KeyRef{{EAN: home, ID: jan.ID}, {EAN: home, ID: feb.ID}, unknown, elsewhere, {EAN: home, ID: jan.ID}}, 7); n != 2 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if got := value(t, owner, `SELECT string_agg(ean || ' ' || key_id || ' ' || kek_epoch || ' ' || sequence, '; ' ORDER BY key_id) FROM key_tombstone`); got !=
		fmt.Sprintf("%d %s 1 7; %d %s 1 7", home.Int64(), uuid.UUID(jan.ID), home.Int64(), uuid.UUID(feb.ID)) {
		t.Errorf("tombstones: %s", got)
	}
	blank := value(t, owner, `SELECT string_agg(DISTINCT ean || ' ' || key_id, '; ') FROM sealed_block WHERE content_mac = `+zeros)
	if !strings.Contains(blank, uuid.UUID(jan.ID).String()) || !strings.Contains(blank, uuid.UUID(feb.ID).String()) || strings.Count(blank, ";") != 1 {
		t.Errorf("blank: %s", blank)
	}
	if got := value(t, owner, `SELECT count(*) FROM sealed_block WHERE content_mac <> `+zeros+` AND key_id IN ($1, $2)`, uuid.UUID(jan.ID), uuid.UUID(feb.ID)); got != "0" {
		t.Errorf("%s content MACs are left", got)
	}
	if got := value(t, owner, `SELECT count(*) FROM data_key`); got != "6" {
		t.Errorf("%s keys are left", got)
	}
	if n, err := c.DeleteKeys(t.Context(), []postgres.KeyRef{{EAN: home, ID: jan.ID}}, 9); n != 0 || err != nil {
		t.Errorf("again: %d, %v", n, err)
	}
	if n, err := c.DeleteKeys(t.Context(), nil, 9); n != 0 || err != nil {
		t.Errorf("nothing: %d, %v", n, err)
	}
	// It came back with a restore: one tombstone, of the newest deletion.
	if err := in.Commit(t.Context(), postgres.Batch{Keys: []envelope.KeyRecord{jan}}); err != nil {
		t.Fatal(err)
	}
	if n, err := c.DeleteKeys(t.Context(), []postgres.KeyRef{{EAN: home, ID: jan.ID}}, 9); n != 1 || err != nil {
		t.Errorf("restored: %d, %v", n, err)
	}
	counts, err := c.CountErased(t.Context())
	if err != nil || len(counts) != 1 || counts[1] != (postgres.ErasedCount{Erased: 2}) {
		t.Errorf("%v, %v", counts, err)
	}

	// What was sealed under a key that is erased meanwhile is not stored.
	b := postgres.Batch{Blocks: []postgres.Row{block(home, 1, period.From, 9)}}
	if err := in.Commit(t.Context(), b); !errors.Is(err, postgres.ErrConflict) {
		t.Errorf("stored under an erased key: %v, want ErrConflict", err)
	}
	// Nor while the erasure is under way: the writer waits, and then is told.
	tx, err := owner.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(t.Context(), `SELECT pg_advisory_xact_lock($1)`, neighbour.Int64()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- in.Commit(context.Background(), postgres.Batch{Blocks: []postgres.Row{block(neighbour, 1, period.From, 9)}})
	}()
	for value(t, owner, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted`) != "1" {
		time.Sleep(time.Millisecond)
	}
	if _, err := tx.ExecContext(t.Context(), `DELETE FROM data_key WHERE ean = $1`, neighbour.Int64()); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, postgres.ErrConflict) {
		t.Errorf("stored while the key was erased: %v, want ErrConflict", err)
	}
}

// resealed is what a cryptoserver would make of blocks.
func resealed(blocks []envelope.SealedBlock, with string) []envelope.SealedBlock {
	out := slices.Clone(blocks)
	for i := range out {
		out[i].Ciphertext = append([]byte(with), out[i].Ciphertext...)
	}
	return out
}

func TestReplaceDataKey(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	c, in, g := custodian(t, d), ingest(t, d), gateway(t, d)
	period := days("2025-01-01", "2025-03-01")
	seed(t, in, home, period)
	owner := d.Open(t, migrations.RoleOwner)
	m := period.From.Month()
	old := key(home, meter.Intervals, m)
	fresh := old
	fresh.ID, fresh.Epoch, fresh.MAC = [16]byte{0xee}, 2, [32]byte{0xee}
	blocks, err := c.BlocksUnder(t.Context(), old)
	if err != nil || len(blocks) < 62 {
		t.Fatalf("%d blocks, %v", len(blocks), err)
	}
	if got := value(t, owner, `SELECT count(*) FROM sealed_block WHERE key_id = $1`, uuid.UUID(old.ID)); got != fmt.Sprint(len(blocks)) {
		t.Fatalf("%d blocks of %s", len(blocks), got)
	}
	const all = `SELECT md5(string_agg(x::text, ' ' ORDER BY x::text)) FROM (SELECT * FROM sealed_block) x`
	state := func() string {
		return value(t, owner, all) + value(t, owner, `SELECT md5(string_agg(x::text, ' ' ORDER BY x::text)) FROM (SELECT * FROM data_key) x`) +
			value(t, owner, `SELECT count(*) FROM key_tombstone`)
	}
	before := state()
	extra := append(slices.Clone(blocks), envelope.SealedBlock{Field: 6, Day: period.From, Version: 99, Ciphertext: []byte("x")})
	for name, some := range map[string][]envelope.SealedBlock{"one missing": blocks[1:], "none": nil, "one too many": extra, "one twice": append(slices.Clone(blocks[1:]), blocks[1])} {
		if err := c.ReplaceDataKey(t.Context(), old, fresh, resealed(some, "new ")); !errors.Is(err, postgres.ErrConflict) {
			t.Errorf("%s: %v, want ErrConflict", name, err)
		}
	}
	for name, change := range map[string]func(*envelope.KeyRecord){
		"of another month": func(k *envelope.KeyRecord) { k.Month++ }, "of another class": func(k *envelope.KeyRecord) { k.Class = 1 },
		"of another": func(k *envelope.KeyRecord) { k.EAN = neighbour }, "of another occupancy": func(k *envelope.KeyRecord) { k.Occupancy++ },
		"the same": func(k *envelope.KeyRecord) { k.ID = old.ID },
	} {
		k := fresh
		change(&k)
		if err := c.ReplaceDataKey(t.Context(), old, k, resealed(blocks, "new ")); err == nil {
			t.Errorf("a key %s was put in its place", name)
		}
	}
	gone := old
	gone.ID[0]++
	if err := c.ReplaceDataKey(t.Context(), gone, fresh, nil); !errors.Is(err, postgres.ErrGone) {
		t.Errorf("a key that is not there: %v, want ErrGone", err)
	}
	if state() != before {
		t.Error("what was refused changed something")
	}

	if err := c.ReplaceDataKey(t.Context(), old, fresh, resealed(blocks, "new ")); err != nil {
		t.Fatal(err)
	}
	if err := c.ReplaceDataKey(t.Context(), old, fresh, resealed(blocks, "new ")); !errors.Is(err, postgres.ErrGone) {
		t.Errorf("again: %v, want ErrGone", err)
	}
	if left, err := c.BlocksUnder(t.Context(), old); len(left) != 0 || err != nil {
		t.Errorf("%d blocks are left, %v", len(left), err)
	}
	now, err := c.BlocksUnder(t.Context(), fresh)
	if err != nil || !reflect.DeepEqual(now, resealed(blocks, "new ")) {
		t.Errorf("%d blocks under the new key, %v", len(now), err)
	}
	if got := scanAll(t, c, postgres.KeySelection{EAN: home}, 100); !slices.ContainsFunc(got, func(k envelope.KeyRecord) bool { return reflect.DeepEqual(k, fresh) }) || len(got) != 4 {
		t.Errorf("keys %v", got)
	}
	keys, read, err := g.Blocks(t.Context(), grant(t, home, meter.EnergyManagement, days("2025-01-05", "2025-01-06"), 6))
	if err != nil || len(read) != 1 || keys[read[0].Key].ID != fresh.ID || !bytes.HasPrefix(read[0].Ciphertext, []byte("new ")) {
		t.Errorf("the gateway reads %v, %v", read, err)
	}
	// Ingest cannot store under the old key any more.
	if err := in.Commit(t.Context(), postgres.Batch{Blocks: []postgres.Row{block(home, 6, period.From, 9)}}); !errors.Is(err, postgres.ErrConflict) {
		t.Errorf("stored under the old key: %v, want ErrConflict", err)
	}
	for atLeast, want := range map[time.Duration]int{0: 1, time.Hour: 0} {
		for _, of := range []meter.EAN{{}, home} {
			refs, err := c.Retired(t.Context(), of, atLeast, 10)
			if err != nil || len(refs) != want || want == 1 && refs[0] != (postgres.KeyRef{EAN: home, ID: old.ID}) {
				t.Errorf("retired for %v: %v, %v", atLeast, refs, err)
			}
		}
	}
	if refs, err := c.Retired(t.Context(), neighbour, 0, 10); len(refs) != 0 || err != nil {
		t.Errorf("%v, %v", refs, err)
	}
	if counts, err := c.CountErased(t.Context()); err != nil || counts[1] != (postgres.ErasedCount{Retired: 1}) {
		t.Errorf("%v, %v", counts, err)
	}
	if n, err := c.DeleteKeys(t.Context(), []postgres.KeyRef{{EAN: home, ID: old.ID}}, 5); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if counts, err := c.CountErased(t.Context()); err != nil || counts[1] != (postgres.ErasedCount{Erased: 1}) {
		t.Errorf("%v, %v", counts, err)
	}
	if got := value(t, owner, `SELECT count(*) FROM sealed_block WHERE content_mac = `+zeros); got != "0" {
		t.Errorf("%s content MACs were blanked though their blocks live on", got)
	}
}

// TestReadersBesideReplacement: while data keys are replaced, a reader never
// sees a block without its key, nor one under another key than its own.
func TestReadersBesideReplacement(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	c, in, g := custodian(t, d), ingest(t, d), gateway(t, d)
	period := days("2025-01-01", "2025-02-01")
	seed(t, in, home, period)
	month := grant(t, home, meter.EnergyManagement, period, 6, 7)
	var stop atomic.Bool
	var reads atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				keys, blocks, err := g.Blocks(t.Context(), month)
				if errors.Is(err, postgres.ErrUnavailable) {
					continue // too many one after another
				}
				if err != nil || len(blocks) != 62 {
					t.Errorf("%d blocks, %v", len(blocks), err)
					return
				}
				for _, b := range blocks {
					if b.Key == envelope.NoKey {
						t.Error("a block without its key")
						return
					}
					id := keys[b.Key].ID
					if under := id[15]; under != 0 && !bytes.HasPrefix(b.Ciphertext, []byte{under}) {
						t.Errorf("a block under key %d says %d", under, b.Ciphertext[0])
						return
					}
				}
				reads.Add(1)
			}
		})
	}
	old := key(home, meter.Intervals, period.From.Month())
	for n := byte(1); n < 60; n++ {
		time.Sleep(5 * time.Millisecond)
		fresh := old
		fresh.ID[15] = n
		blocks, err := c.BlocksUnder(t.Context(), old)
		if err != nil {
			t.Fatal(err)
		}
		for i := range blocks {
			blocks[i].Ciphertext = append([]byte{n}, blocks[i].Ciphertext[1:]...)
		}
		if err := c.ReplaceDataKey(t.Context(), old, fresh, blocks); err != nil {
			t.Fatal(err)
		}
		old = fresh
	}
	stop.Store(true)
	wg.Wait()
	if reads.Load() == 0 {
		t.Error("nobody read")
	}
}

// TestErasedWhileRead: a key that is gone for good is looked for once more, and
// then its blocks are passed on without one.
func TestErasedWhileRead(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	c, in, g := custodian(t, d), ingest(t, d), gateway(t, d)
	period := days("2025-01-01", "2025-02-01")
	seed(t, in, home, period)
	if _, err := c.DeleteKeys(t.Context(), []postgres.KeyRef{{EAN: home, ID: key(home, meter.Intervals, period.From.Month()).ID}}, 1); err != nil {
		t.Fatal(err)
	}
	_, blocks, err := g.Blocks(t.Context(), grant(t, home, meter.EnergyManagement, period, 1, 6))
	if err != nil || len(blocks) == 0 {
		t.Fatal(len(blocks), err)
	}
	for _, b := range blocks {
		if (b.Key == envelope.NoKey) != (b.Field == 6) {
			t.Errorf("field %d has key %d", b.Field, b.Key)
		}
	}
}

// TestCustodianFaults: after an error at COMMIT a change was made or not, whole.
func TestCustodianFaults(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in := ingest(t, d)
	owner := d.Open(t, migrations.RoleOwner)
	p := newProxy(t, d.Socket())
	c, err := postgres.NewCustodian(t.Context(), p.through(d, migrations.RoleCustodian))
	c = closing(t, c, err)
	period := days("2025-01-01", "2025-01-03")
	for n, f := range []struct {
		name  string
		fault fault
		done  bool
	}{{"lost before the commit", lost, false}, {"answer to the commit lost", unanswered, true}} {
		who := ean(20 + n)
		seed(t, in, who, period)
		old := key(who, meter.Registers, period.From.Month())
		fresh := old
		fresh.ID[15], fresh.Epoch = 9, 2
		rewrapped := old
		rewrapped.Epoch = 2
		blocks, err := c.BlocksUnder(t.Context(), old)
		if err != nil {
			t.Fatal(err)
		}
		entry := postgres.ControlEntry{Sequence: uint64(n + 1), Entry: []byte{1}, Head: []byte{1}}
		other := key(who, meter.Intervals, period.From.Month())
		for _, o := range []struct {
			name  string
			do    func() error
			count string
		}{
			{"append", func() error { return c.Append(t.Context(), entry) }, fmt.Sprintf(`SELECT count(*) FROM control_entry WHERE sequence = %d AND $1::bigint <> 0`, n+1)},
			{"rewrap", func() error {
				_, err := c.ReplaceWrapped(t.Context(), []envelope.KeyRecord{old}, []envelope.KeyRecord{rewrapped})
				return err
			}, `SELECT count(*) FROM data_key WHERE ean = $1 AND kek_epoch = 2`},
			{"replace", func() error { return c.ReplaceDataKey(t.Context(), old, fresh, blocks) }, `SELECT count(*) FROM data_key WHERE ean = $1 AND key_id::text LIKE '%09'`},
			{"delete", func() error {
				_, err := c.DeleteKeys(t.Context(), []postgres.KeyRef{{EAN: who, ID: other.ID}}, 1)
				return err
			}, `SELECT count(*) FROM key_tombstone WHERE ean = $1 AND sequence = 1`},
		} {
			p.arm(f.fault, "COMMIT")
			err := o.do()
			if p.hits() != 1 {
				t.Fatalf("%s, %s: the fault did not strike", o.name, f.name)
			}
			if got := value(t, owner, o.count, who.Int64()); !errors.Is(err, postgres.ErrUnavailable) || (got == "1") != f.done {
				t.Errorf("%s, %s: %v, and %s done", o.name, f.name, err, got)
			}
		}
	}
}
