package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"kluis/meter"
)

// keysStatus is what `kluis keys status --json` says.
type keysStatus struct {
	Feed struct {
		Sequence    uint64 `json:"sequence"`
		ActiveEpoch uint32 `json:"active_epoch"`
		RolledBack  bool   `json:"rolled_back"`
		Database    string `json:"database"`
		ErasedKeys  int    `json:"erased_keys"`
	} `json:"feed"`
	Servers []struct {
		ID              string `json:"id"`
		Error           string `json:"error"`
		Healthy         bool   `json:"healthy"`
		ControlSequence uint64 `json:"control_sequence"`
		ActiveEpoch     uint32 `json:"active_epoch"`
		Tokens          []struct {
			Role  string `json:"role"`
			State string `json:"state"`
			Keys  []struct {
				Label      string   `json:"label"`
				Epoch      uint32   `json:"epoch"`
				AgeDays    int      `json:"age_days"`
				Attributes []string `json:"attributes"`
			} `json:"keys"`
		} `json:"tokens"`
	} `json:"servers"`
	DataKeys []struct {
		Epoch  uint32   `json:"epoch"`
		HeldBy []string `json:"held_by"`
	} `json:"data_keys"`
}

func (w *world) keysStatus(t testing.TB) keysStatus {
	t.Helper()
	var st keysStatus
	if err := json.Unmarshal([]byte(w.kluis(t, "keys", "status", "--json")), &st); err != nil {
		t.Fatal(err)
	}
	return st
}

// holders are the servers that hold an epoch's KEK.
func (st keysStatus) holders(epoch uint32) []string {
	for _, e := range st.DataKeys {
		if e.Epoch == epoch {
			return e.HeldBy
		}
	}
	return nil
}

// everything is what the demo's suppliers see of some metering points.
func (w *world) everything(t testing.TB) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, p := range w.ready.MeteringPoints[:8] {
		a := p.Access[0]
		path := readingsPath(p.EAN, a.From, a.To, a.Purpose)
		var v map[string]any
		if answer := w.supplierNamed(t, a.Supplier).fetch(t, path); answer.status != http.StatusOK {
			t.Fatalf("%d: %s", answer.status, answer.body)
		} else if err := json.Unmarshal(answer.body, &v); err != nil {
			t.Fatal(err)
		}
		delete(v, "interactionId")
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		all[path] = string(b)
	}
	return all
}

func unchanged(t testing.TB, before, after map[string]string) {
	t.Helper()
	for path, v := range before {
		if after[path] != v {
			t.Errorf("another answer than before: %s", path)
		}
	}
}

// reading reads the home all the time, from two clients, until stop: every
// answer must be whole. It returns how many there were.
func (b broken) reading(t testing.TB) (stop func() int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var n atomic.Int64
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				token, err := b.v.cachedToken(ctx)
				if err == nil {
					var a answer
					if a, err = b.v.trySend(ctx, http.MethodGet, b.h.path(), nil, "Bearer "+token); err == nil {
						if a.status != http.StatusOK {
							t.Errorf("%s: a reader was answered %d %s", time.Now().Format(time.StampMilli), a.status, a.slug())
						} else if s := seenIn(t, a); len(s.withheld) > 0 {
							t.Errorf("a reader was withheld %q", s.withheld)
						} else {
							s.want(t, b.h.corrected, nil)
							n.Add(1)
						}
					}
				}
				if err != nil && ctx.Err() == nil {
					t.Errorf("a reader failed: %v", err)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	return sync.OnceValue(func() int64 {
		cancel()
		wg.Wait()
		return n.Load()
	})
}

// cryptoserver runs the program for the demo's n-th server, as at its console.
func (w *world) cryptoserver(t testing.TB, n int, args ...string) string {
	t.Helper()
	dir := filepath.Join(w.state, fmt.Sprintf("cryptoserver-%d", n+1))
	cmd := exec.CommandContext(t.Context(), filepath.Join(w.bin, "cryptoserver"), append(args, "--config", filepath.Join(dir, "cryptoserver.yaml"))...)
	cmd.Env = append(w.env(), "SOFTHSM2_CONF="+filepath.Join(dir, "softhsm2.conf"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cryptoserver %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// restart has the demo start some of its cryptoservers anew and waits until
// they serve and ok.
func (w *world) restart(t testing.TB, ok func(keysStatus) bool, servers ...int) {
	t.Helper()
	before, err := w.readReady()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range servers {
		signal(t, before.Cryptoservers[n].PID, syscall.SIGTERM)
	}
	for _, n := range servers {
		within(t, 60*time.Second, "the cryptoserver is started again", func() bool {
			r, err := w.readReady()
			return err == nil && r.Cryptoservers[n].PID != before.Cryptoservers[n].PID && r.Cryptoservers[n].PID != 0
		})
		within(t, 60*time.Second, "it serves", func() bool {
			st := w.keysStatus(t)
			s := st.Servers[n]
			return s.Error == "" && s.Healthy && s.ControlSequence == st.Feed.Sequence
		})
	}
	within(t, 60*time.Second, "the status says so", func() bool { return ok(w.keysStatus(t)) })
}

// A second epoch on the running demo: the ceremony, a rolling restart, a
// rotation that is killed and run again, the end of the first epoch. Whoever
// reads notices nothing.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	b := newBroken(t)
	before := b.everything(t)
	first := b.keysStatus(t)
	if first.Feed.ActiveEpoch != 1 || len(first.Servers) != 2 || len(first.holders(1)) != 2 || first.Feed.Database != "" {
		t.Fatalf("%+v", first)
	}
	for _, s := range first.Servers {
		roles := map[string]bool{}
		for _, token := range s.Tokens {
			roles[token.Role] = true
			for _, k := range token.Keys {
				if token.State != "up" || k.AgeDays < 0 || k.AgeDays > 1 || len(k.Attributes) == 0 {
					t.Errorf("%s, role %s: %+v", s.ID, token.Role, k)
				}
			}
		}
		if len(roles) != 5 {
			t.Errorf("%s has tokens for %v", s.ID, roles)
		}
	}
	stopReading := b.reading(t)
	defer stopReading()

	// The custodian dies, and is started again: nobody notices.
	signal(t, b.ready.CustodianPID, syscall.SIGKILL)

	// Not while a server lacks the KEK.
	if complaint := b.kluisFails(t, 3, "keys", "rotate-kek", "--epoch", "2", "--yes"); !strings.Contains(complaint, "no KEK of it") {
		t.Error(complaint)
	}
	b.kluis(t, "keys", "ceremony", "--state", b.state, "--epoch", "2", "--yes")
	if out := b.kluis(t, "keys", "transcript", filepath.Join(b.state, "ceremony", "transcript.jsonl")); strings.Count(out, "import") != 4 || !strings.Contains(out, "SHA-256") {
		t.Error(out)
	}
	b.restart(t, func(st keysStatus) bool { return slices.Contains(st.holders(2), "cryptoserver-1") }, 0)
	if complaint := b.kluisFails(t, 3, "keys", "rotate-kek", "--epoch", "2", "--yes"); !strings.Contains(complaint, "cryptoserver-2") {
		t.Error(complaint)
	}
	b.restart(t, func(st keysStatus) bool { return len(st.holders(2)) == 2 }, 1)

	// Killed in the middle, and run again.
	old := b.keep(t, "ean", b.h.ean.Int64(), "data_key")
	total := one[int](t, b.world, `SELECT count(*) FROM data_key`)
	cmd := exec.Command(filepath.Join(b.bin, "kluis"), "keys", "rotate-kek", "--yes", "--rate", "20")
	cmd.Env = append(b.env(), "KLUIS_STATE="+b.state)
	rotation, err := startChild(cmd)
	if err != nil {
		t.Fatal(err)
	}
	within(t, 60*time.Second, "some data keys are rewrapped", func() bool {
		return one[int](t, b.world, `SELECT count(*) FROM data_key WHERE kek_epoch = 2`) > 0
	})
	signal(t, cmd.Process.Pid, syscall.SIGKILL)
	<-rotation.exited
	if n := one[int](t, b.world, `SELECT count(*) FROM data_key WHERE kek_epoch = 2`); n == total {
		t.Errorf("all %d data keys were rewrapped before it was killed", n)
	}
	unchanged(t, before, b.everything(t))
	if complaint := b.kluisFails(t, 3, "keys", "destroy-kek", "--epoch", "1", "--no-import-is-under-way", "--yes"); !strings.Contains(complaint, "data keys are wrapped under epoch 1") {
		t.Error(complaint)
	}
	if out := b.kluis(t, "keys", "rotate-kek", "--yes"); !strings.Contains(out, "Epoch 2 is active.") || !strings.Contains(out, ", 0 left") {
		t.Error(out)
	}
	if n := one[int](t, b.world, `SELECT count(*) FROM data_key WHERE kek_epoch <> 2`); n != 0 {
		t.Errorf("%d data keys of other epochs", n)
	}
	if out := b.kluis(t, "keys", "rotate-kek", "--yes"); !strings.Contains(out, "0 data keys rewrapped, 0 left") {
		t.Error(out)
	}
	unchanged(t, before, b.everything(t))

	// The end of the first epoch. Not the one that is active, and not at once.
	if complaint := b.kluisFails(t, 3, "keys", "destroy-kek", "--epoch", "2", "--no-import-is-under-way", "--yes"); !strings.Contains(complaint, "was not given up") {
		t.Error(complaint)
	}
	if complaint := b.kluisFails(t, 3, "keys", "destroy-kek", "--epoch", "1", "--yes"); !strings.Contains(complaint, "import") {
		t.Error(complaint)
	}
	out := b.kluis(t, "keys", "destroy-kek", "--epoch", "1", "--no-import-is-under-way", "--yes")
	if !strings.Contains(out, "is given up") || strings.Count(out, "cryptoserver keys destroy") != 2 {
		t.Error(out)
	}
	unchanged(t, before, b.everything(t))
	if n := stopReading(); n < 50 {
		t.Errorf("only %d readings meanwhile", n)
	}

	// What a backup has of it no longer opens.
	recent := b.keep(t, "ean", b.h.ean.Int64(), "data_key")
	old()
	if n := one[int](t, b.world, `SELECT count(*) FROM data_key WHERE ean = $1 AND kek_epoch = 1`, b.h.ean.Int64()); n == 0 {
		t.Error("no row of epoch 1 was put back")
	}
	b.h.erased(t)
	recent()
	b.h.intact(t)

	// The KEKs themselves go at each server's console, with the proof.
	_, proof, ok := strings.Cut(out, "for the servers' consoles: ")
	if !ok {
		t.Fatal(out)
	}
	proof, _, _ = strings.Cut(proof, "\n")
	for i := range b.ready.Cryptoservers {
		b.cryptoserver(t, i, "keys", "destroy", "--epoch", "1", "--yes-destroy-epoch", "1", "--proof", proof)
	}
	b.restart(t, func(st keysStatus) bool { return len(st.holders(1)) == 0 && len(st.holders(2)) == 2 }, 0, 1)
	b.recovers(t)
	b.h.intact(t)
	unchanged(t, before, b.everything(t))
}

// erased wants everything of a home withheld for that reason.
func (h *home) erased(t testing.TB) {
	t.Helper()
	all := make([]string, 0, len(h.corrected))
	for k := range h.corrected {
		all = append(all, k)
	}
	s := seenIn(t, h.of.fetch(t, h.path()))
	for k, v := range s.values { // in the resolution that was asked for: nobody knows another
		if strings.Trim(v, "nul ") != "" {
			t.Errorf("%s: %s", k, v)
		}
	}
	if want := runs(t, "ERASED", all...); len(s.values) != len(all) || !slices.Equal(s.withheld, want) {
		t.Errorf("%d days, withheld %q, want %d and %q", len(s.values), s.withheld, len(all), want)
	}
}

// backup copies the tables that erasure changes, as pg_dump would see them at
// one moment, and returns how to put them all back.
func (w *world) backup(t testing.TB) (restore func()) {
	t.Helper()
	tables := []string{"data_key", "sealed_block", "key_tombstone", "control_entry", "control_heartbeat"}
	var copies, restores strings.Builder
	for _, table := range tables {
		fmt.Fprintf(&copies, "CREATE TABLE backup.%[1]s AS TABLE public.%[1]s;", table)
		fmt.Fprintf(&restores, "DELETE FROM public.%[1]s; INSERT INTO public.%[1]s SELECT * FROM backup.%[1]s;", table)
	}
	if _, err := w.db.ExecContext(t.Context(), "BEGIN ISOLATION LEVEL REPEATABLE READ; CREATE SCHEMA backup; "+copies.String()+" COMMIT"); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if _, err := w.db.ExecContext(t.Context(), "BEGIN; SET LOCAL session_replication_role = replica; "+restores.String()+" COMMIT"); err != nil {
			t.Fatal(err)
		}
	}
}

// What is erased stays erased, also when the database is put back to a state
// from before.
func TestErasure(t *testing.T) {
	t.Parallel()
	l := privateWorld(t).lab(t)
	v := l.vendor(t)
	h, n := l.home(t, v), l.home(t, v)
	ids := func(h *home) string {
		return one[string](t, l.world, `SELECT coalesce(string_agg(key_id::text, ' ' ORDER BY key_id), '') FROM data_key WHERE ean = $1`, h.ean.Int64())
	}

	// New data keys for the other home.
	had := ids(n)
	out := l.kluis(t, "keys", "rotate-data-keys", "--ean", n.ean.String(), "--grace", "2s")
	if !strings.Contains(out, "4 data keys replaced") || !strings.Contains(out, "4 replaced data keys erased") {
		t.Error(out)
	}
	for id := range strings.FieldsSeq(ids(n)) {
		if strings.Contains(had, id) {
			t.Errorf("data key %s was not replaced", id)
		}
	}
	n.intact(t)
	h.intact(t)
	restore := l.backup(t)

	// Nobody typed the number of the metering point.
	if complaint := l.kluisFails(t, 2, "keys", "erase", "--ean", h.ean.String()); !strings.Contains(complaint, "nothing was done") {
		t.Error(complaint)
	}
	h.intact(t)
	out = l.kluis(t, "keys", "erase", "--ean", h.ean.String(), "--yes")
	for _, want := range []string{"4 data keys named and 4 deleted", "Acknowledged by " + l.ready.Cryptoservers[0].Address + ", " + l.ready.Cryptoservers[1].Address,
		"logically erased until epoch 1 is destroyed"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %s", want, out)
		}
	}
	h.erased(t)
	n.intact(t)
	if got := ids(h); got != "" {
		t.Errorf("data keys are left: %s", got)
	}
	if left := one[int](t, l.world, `SELECT count(*) FROM sealed_block WHERE ean = $1 AND content_mac <> decode(repeat('00', 32), 'hex')`, h.ean.Int64()); left != 0 {
		t.Errorf("%d content MACs are left, by which readings can be guessed", left)
	}
	if out := l.kluis(t, "keys", "erase", "--ean", h.ean.String(), "--yes"); !strings.Contains(out, "nothing to erase") {
		t.Error(out)
	}

	// The database as it was before. The servers know better.
	restore()
	if ids(h) == "" {
		t.Fatal("nothing was restored")
	}
	h.erased(t)
	n.intact(t)
	within(t, 30*time.Second, "the custodian says what to do", func() bool {
		b, err := os.ReadFile(filepath.Join(l.state, "logs", "custodian.log"))
		return err == nil && bytes.Contains(b, []byte("kluis keys reapply"))
	})
	if st := l.keysStatus(t); !st.Feed.RolledBack {
		t.Errorf("%+v", st.Feed)
	}
	// Servers that start now hear of no feed and serve nothing.
	if err := l.reread(); err != nil {
		t.Fatal(err)
	}
	was := l.ready.Cryptoservers
	for _, c := range was {
		signal(t, c.PID, syscall.SIGKILL)
	}
	within(t, 60*time.Second, "they are started again", func() bool {
		return l.reread() == nil && !slices.ContainsFunc(l.ready.Cryptoservers, func(c struct {
			Address string `json:"address"`
			PID     int    `json:"pid"`
		}) bool {
			return c.PID == 0 || c.PID == was[0].PID || c.PID == was[1].PID
		})
	})
	for _, h := range []*home{h, n} {
		a := v.fetch(t, h.path())
		broken{lab: l}.unserved(t, a, "decryption-unavailable", "deadline-exceeded")
	}
	reapply := func() {
		t.Helper()
		if out := l.kluis(t, "keys", "reapply"); !strings.Contains(out, "1 entries of the control feed put back") || !strings.Contains(out, "4 were erased") {
			t.Error(out)
		}
	}
	reapply()
	within(t, 60*time.Second, "readings are given again", func() bool { return v.fetch(t, n.path()).status == http.StatusOK })
	h.erased(t)
	n.intact(t)
	if got := ids(h); got != "" {
		t.Errorf("data keys are left: %s", got)
	}

	// The same before the demo is started: it waits for it.
	restore()
	if err := l.stopDemo(); err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() { started <- l.start(context.Background()) }()
	within(t, 60*time.Second, "the demo says what to do", func() bool {
		b, err := os.ReadFile(filepath.Join(l.dir, "demo.log"))
		return err == nil && bytes.Contains(b, []byte("kluis keys reapply --state"))
	})
	reapply()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	v.caller = l.caller(t, v.clientID, &v.cert)
	h.of, n.of = v, v
	h.erased(t)
	n.intact(t)

	// All past the retention of the market profile, of which there is nothing.
	before := meter.DayOf(time.Now(), l.profile.Location()).AddMonths(-l.profile.RetentionMonths()).Month()
	if out := l.kluis(t, "keys", "erase", "--past-retention", "--yes"); !strings.Contains(out, "Erased: 0 data keys deleted") {
		t.Error(out)
	}
	if out := l.kluis(t, "keys", "status"); !strings.Contains(out, "all of months before "+before.String()) {
		t.Error(out)
	}
	n.intact(t)
}
