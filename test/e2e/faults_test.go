package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"kluis/internal/audit"
)

// What breaks, breaks clearly: an answer has all its data or none, says when
// to try again, and everything recovers by itself.

// broken is a world of a test's own with one home that is read all the time.
type broken struct {
	*lab
	v vendor
	h *home
}

func newBroken(t testing.TB) broken {
	t.Helper()
	l := privateWorld(t).lab(t)
	v := l.vendor(t)
	h := l.home(t, v)
	h.intact(t)
	return broken{l, v, h}
}

// try asks once, with a token from before. An answer with data must be whole.
func (b broken) try(t testing.TB) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	b.v.mu.Lock()
	token := b.v.token
	b.v.mu.Unlock()
	began := time.Now()
	a, err := b.v.trySend(ctx, http.MethodGet, b.h.path(), nil, "Bearer "+token)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("an answer took %s", took)
	}
	if err == nil && a.status == http.StatusOK {
		seenIn(t, a).want(t, b.h.corrected, nil)
	}
	return a, err
}

// recovers waits until requests succeed again.
func (b broken) recovers(t testing.TB) {
	t.Helper()
	within(t, 60*time.Second, "readings are given again", func() bool {
		a, err := b.try(t)
		return err == nil && a.status == http.StatusOK
	})
}

// unserved is an answer that says: later. It has no data.
func (b broken) unserved(t testing.TB, a answer, slugs ...string) {
	t.Helper()
	want := map[string]int{"deadline-exceeded": http.StatusGatewayTimeout}
	for _, slug := range slugs {
		status, ok := want[slug]
		if !ok {
			status = http.StatusServiceUnavailable
		}
		if a.slug() == slug {
			a.problem(t, status, slug)
			return
		}
	}
	t.Errorf("answered %d %s, want one of %q: %s", a.status, a.slug(), slugs, a.body)
}

func signal(t testing.TB, pid int, s syscall.Signal) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("no process to signal: %d", pid)
	}
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

func childrenOf(pid int) (children []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is valid
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		var id, parent int
		rest := string(b[strings.LastIndexByte(string(b), ')')+1:])
		var state string
		if _, err := fmt.Sscanf(rest, "%s %d", &state, &parent); err != nil || parent != pid {
			continue
		}
		if _, err := fmt.Sscanf(string(b), "%d", &id); err == nil {
			children = append(children, id)
		}
	}
	return children
}

// Faults that one world can have one after another.
func TestFaults(t *testing.T) {
	t.Parallel()
	b := newBroken(t)
	t.Run("access log", func(t *testing.T) { accessLogFaults(t, b) })
	t.Run("gateway drains", func(t *testing.T) { gatewayDrains(t, b) })
	t.Run("issuer", func(t *testing.T) { issuerFaults(t, b) })
}

func TestPostgresFaults(t *testing.T) {
	t.Parallel()
	b := newBroken(t)

	t.Run("hung", func(t *testing.T) {
		if err := b.reread(); err != nil {
			t.Fatal(err)
		}
		stopped := append(childrenOf(b.ready.PostgresPID), b.ready.PostgresPID)
		for _, pid := range stopped {
			signal(t, pid, syscall.SIGSTOP)
		}
		a, err := b.try(t)
		for _, pid := range stopped {
			signal(t, pid, syscall.SIGCONT)
		}
		if err != nil {
			t.Fatal(err)
		}
		b.unserved(t, a, "database-unavailable", "deadline-exceeded")
		b.recovers(t)
	})
	for name, how := range map[string]syscall.Signal{"shut down": syscall.SIGINT, "shut down at once": syscall.SIGQUIT, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			if err := b.reread(); err != nil {
				t.Fatal(err)
			}
			before := b.ready.PostgresPID
			var wg sync.WaitGroup
			var given, refused atomic.Int64
			done := make(chan struct{})
			finish := sync.OnceFunc(func() {
				close(done)
				wg.Wait()
			})
			defer finish()
			for range 4 {
				wg.Go(func() {
					for {
						select {
						case <-done:
							return
						default:
						}
						a, err := b.try(t)
						switch {
						case err != nil:
							t.Error(err)
							return
						case a.status == http.StatusOK:
							given.Add(1)
						case a.status == http.StatusTooManyRequests: // refused at once, they ask more than their quota
							time.Sleep(50 * time.Millisecond)
						default:
							refused.Add(1)
							b.unserved(t, a, "database-unavailable", "record-not-written", "deadline-exceeded")
						}
						time.Sleep(5 * time.Millisecond)
					}
				})
			}
			within(t, 20*time.Second, "some answers", func() bool { return given.Load() > 4 })
			signal(t, before, how)
			within(t, 20*time.Second, "a refusal", func() bool { return refused.Load() > 0 })
			at := given.Load()
			within(t, 60*time.Second, "readings are given again", func() bool { return given.Load() > at+8 })
			finish()
			if err := b.reread(); err != nil || b.ready.PostgresPID == before {
				t.Errorf("the ready file still has PostgreSQL's old process: %v", err)
			}
			b.recovers(t)
		})
	}
	b.h.intact(t)
}

// The log cannot be written: its right is taken from the gateway, it is made to
// fail, or to succeed unheard.
func accessLogFaults(t *testing.T, b broken) {
	count := func() int {
		return one[int](t, b.world, `SELECT count(*) FROM access_log WHERE ean = $1`, b.h.ean.Int64())
	}
	for name, f := range map[string]struct{ break_, mend string }{
		"right taken away": {`REVOKE INSERT ON access_log FROM kluis_gateway`, `GRANT INSERT ON access_log TO kluis_gateway`},
		"disk full": {`CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE disk_full; END $$;
			CREATE TRIGGER full_disk BEFORE INSERT ON access_log FOR EACH ROW EXECUTE FUNCTION full_disk()`, `DROP FUNCTION full_disk() CASCADE`},
		"disk full at the end of the transaction": {`CREATE FUNCTION late_full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE disk_full; END $$;
			CREATE CONSTRAINT TRIGGER late_full_disk AFTER INSERT ON access_log DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late_full_disk()`,
			`DROP FUNCTION late_full_disk() CASCADE`},
		"read only":  {`ALTER ROLE kluis_gateway SET default_transaction_read_only = on; ` + dropConnections, `ALTER ROLE kluis_gateway RESET default_transaction_read_only; ` + dropConnections},
		"lost table": {`ALTER TABLE access_log RENAME TO lost`, `ALTER TABLE lost RENAME TO access_log`},
		"row vanishes": {`CREATE FUNCTION vanish() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1); RETURN NEW; END $$;
			CREATE TRIGGER vanish BEFORE INSERT ON access_log FOR EACH ROW EXECUTE FUNCTION vanish()`, `DROP FUNCTION vanish() CASCADE`},
	} {
		t.Run(name, func(t *testing.T) {
			before := count()
			if _, err := b.db.Exec(f.break_); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{b.h.path(), "/v1/metering-points",
				readingsPath(labEAN(), b.h.first.String(), b.h.last.String(), "BILLING")} {
				a := b.v.fetch(t, path)
				b.unserved(t, a, "record-not-written", "deadline-exceeded")
			}
			if _, err := b.db.Exec(f.mend); err != nil {
				t.Fatal(err)
			}
			if n := count(); n != before {
				t.Errorf("%d records of answers that failed", n-before)
			}
			b.recovers(t)
		})
	}

	// Committed, and the gateway does not hear of it in time or at all: no data,
	// for it cannot know. A standby that is not there makes commits wait after
	// they are on disk.
	standby := func(name string) {
		t.Helper()
		for _, stmt := range []string{`ALTER SYSTEM SET synchronous_standby_names = '` + name + `'`, `SELECT pg_reload_conf()`} {
			if _, err := b.db.Exec(stmt); err != nil {
				t.Fatal(err)
			}
		}
		within(t, 10*time.Second, "the setting counts", func() bool {
			return one[string](t, b.world, `SELECT current_setting('synchronous_standby_names')`) == name
		})
	}
	for name, hangUp := range map[string]bool{"recorded but not confirmed": false, "recorded, and the connection lost": true} {
		t.Run(name, func(t *testing.T) {
			standby("absent")
			// Each process of the database hears of the setting by itself: until the
			// gateway's has, a request is served.
			var before int
			var a answer
			var err error
			var done chan struct{}
			within(t, time.Minute, "the commit waits", func() bool {
				if done == nil {
					before, done = count(), make(chan struct{})
					go func() { defer close(done); a, err = b.try(t) }()
				}
				if one[int](t, b.world, `SELECT count(*) FROM pg_stat_activity WHERE usename = 'kluis_gateway' AND wait_event = 'SyncRep'`) == 1 {
					return true
				}
				select {
				case <-done:
					done = nil
				default:
				}
				return false
			})
			if hangUp {
				if _, err := b.db.Exec(dropConnections); err != nil {
					t.Error(err)
				}
			}
			<-done
			standby("")
			if err != nil {
				t.Fatal(err)
			}
			b.unserved(t, a, "record-not-written", "deadline-exceeded")
			if n := count() - before; n != 1 {
				t.Errorf("%d records, want the one that was not confirmed", n)
			}
			b.recovers(t)
		})
	}
	b.h.intact(t)
}

const dropConnections = `DO $$ BEGIN PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'kluis_gateway'; END $$`

func TestCryptoserverFaults(t *testing.T) {
	t.Parallel()
	b := newBroken(t)

	// One hangs: requests succeed, or fail clearly within the deadline.
	t.Run("one hung", func(t *testing.T) {
		if err := b.reread(); err != nil {
			t.Fatal(err)
		}
		signal(t, b.ready.Cryptoservers[0].PID, syscall.SIGSTOP)
		defer signal(t, b.ready.Cryptoservers[0].PID, syscall.SIGCONT)
		given := 0
		within(t, 60*time.Second, "the other serves alone", func() bool {
			a, err := b.try(t)
			switch {
			case err != nil:
				t.Fatal(err)
			case a.status != http.StatusOK:
				b.unserved(t, a, "decryption-unavailable", "deadline-exceeded")
				given = 0
			default:
				given++
			}
			return given == 20
		})
	})
	b.recovers(t)

	// One dies under load: no request fails.
	t.Run("one killed under load", func(t *testing.T) {
		if err := b.reread(); err != nil {
			t.Fatal(err)
		}
		victim := b.ready.Cryptoservers[1]
		const clients, each = 8, 70
		var asked atomic.Int64
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for range each {
					a, err := b.try(t)
					if err != nil || a.status != http.StatusOK {
						t.Errorf("a request failed: %d %v %s", a.status, err, a.body)
						return
					}
					asked.Add(1)
				}
			})
		}
		within(t, 60*time.Second, "the load is on", func() bool { return asked.Load() > clients*each/8 || t.Failed() })
		signal(t, victim.PID, syscall.SIGKILL)
		wg.Wait()
		if n := asked.Load(); n != clients*each {
			t.Errorf("%d of %d requests", n, clients*each)
		}
		within(t, 30*time.Second, "it is started again", func() bool {
			return b.reread() == nil && b.ready.Cryptoservers[1].PID != victim.PID && b.ready.Cryptoservers[1].PID != 0
		})
		within(t, 30*time.Second, "it serves again", func() bool {
			s := seenIn(t, b.v.fetch(t, b.h.path()))
			return b.onlyRow(t, s.id).receipt.ServerID == "cryptoserver-2"
		})
	})

	// Both are gone.
	t.Run("both killed", func(t *testing.T) {
		if err := b.reread(); err != nil {
			t.Fatal(err)
		}
		for _, c := range b.ready.Cryptoservers {
			signal(t, c.PID, syscall.SIGKILL)
		}
		within(t, 20*time.Second, "a refusal", func() bool {
			a, err := b.try(t)
			if err != nil {
				t.Fatal(err)
			}
			if a.status == http.StatusOK {
				return false // it was faster than the signal
			}
			b.unserved(t, a, "decryption-unavailable", "deadline-exceeded")
			if row := b.onlyRow(t, a.InteractionId.String()); row.Outcome != audit.Failed || row.receipt != nil {
				t.Errorf("recorded as %s", row.Outcome)
			}
			return true
		})
		// What needs no key is answered.
		if got := b.v.listed(t); len(got) != 1 {
			t.Errorf("the list has %q", got)
		}
		b.recovers(t)
	})
	b.h.intact(t)
}

func issuerFaults(t *testing.T, b broken) {
	if err := b.reread(); err != nil {
		t.Fatal(err)
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {b.v.clientID}}
	// Hung: the supplier's own deadline ends the wait; readings go on.
	pid := b.ready.IssuerPID
	signal(t, pid, syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	a, err := b.v.askIssuer(ctx, form)
	cancel()
	if err == nil {
		t.Errorf("a hung issuer answered %d", a.status)
	}
	for range 5 {
		b.h.intact(t)
	}
	signal(t, pid, syscall.SIGCONT)

	// Gone, and started again.
	signal(t, pid, syscall.SIGKILL)
	within(t, 10*time.Second, "no token", func() bool {
		_, err := b.v.askIssuer(t.Context(), form)
		return err != nil
	})
	b.h.intact(t)
	within(t, 30*time.Second, "tokens again", func() bool {
		a, err := b.v.askIssuer(t.Context(), form)
		return err == nil && a.status == http.StatusOK
	})

	// Without cryptoservers it says so, and hands out nothing.
	if err := b.reread(); err != nil {
		t.Fatal(err)
	}
	for _, c := range b.ready.Cryptoservers {
		signal(t, c.PID, syscall.SIGKILL)
	}
	within(t, 20*time.Second, "the issuer answers 5xx", func() bool {
		a, err := b.v.askIssuer(t.Context(), form)
		if err != nil {
			t.Fatal(err)
		}
		if a.status >= 500 {
			if a.AccessToken != "" || a.header.Get("Retry-After") == "" {
				t.Errorf("%d, Retry-After %q", a.status, a.header.Get("Retry-After"))
			}
			return true
		}
		return false
	})
	within(t, 60*time.Second, "tokens again", func() bool {
		a, err := b.v.askIssuer(t.Context(), form)
		return err == nil && a.status == http.StatusOK
	})
}

// A gateway that is told to stop answers what it has begun.
func gatewayDrains(t *testing.T, b broken) {
	if err := b.reread(); err != nil {
		t.Fatal(err)
	}
	// Requests that are slow to record.
	if _, err := b.db.Exec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(2); RETURN NEW; END $$;
		CREATE TRIGGER slow BEFORE INSERT ON access_log FOR EACH ROW EXECUTE FUNCTION slow()`); err != nil {
		t.Fatal(err)
	}
	pid := b.ready.GatewayPID
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if a, err := b.try(t); err != nil || a.status != http.StatusOK {
				t.Errorf("a running request was cut off: %d %v %s", a.status, err, a.body)
			}
		})
	}
	// A supplier has so many turns at once, and who waits for one is under way, too.
	within(t, 20*time.Second, "they are under way", func() bool {
		var n int
		if b.db.QueryRow(`SELECT count(*) FROM pg_stat_activity WHERE usename = 'kluis_gateway' AND wait_event = 'PgSleep'`).Scan(&n) != nil || n == 0 {
			return false
		}
		m := scrape(t, b.ready.MetricsURL)
		return m.sum(`^kluis_gateway_turns_taken`)+m.sum(`^kluis_gateway_turns_waiting`) == 4
	})
	signal(t, pid, syscall.SIGTERM)
	wg.Wait()
	if _, err := b.db.Exec(`DROP FUNCTION slow() CASCADE`); err != nil {
		t.Fatal(err)
	}
	within(t, 30*time.Second, "the gateway is started again", func() bool {
		return b.reread() == nil && b.ready.GatewayPID != pid && b.ready.GatewayPID != 0
	})
	b.v.http.CloseIdleConnections()
	b.recovers(t)
	b.h.intact(t)
}

// kill -9 of the demo itself: nothing of it is left, and the next start goes
// on with the same data.
func TestDemoKilled(t *testing.T) {
	t.Parallel()
	w := privateWorld(t)
	gln, point := w.ready.Suppliers[0].ID, w.ready.MeteringPoints[0]
	path := readingsPath(point.EAN, point.Access[0].From, point.Access[0].To, point.Access[0].Purpose)
	normal := func() map[string]any {
		a := w.supplierNamed(t, gln).fetch(t, path)
		var v map[string]any
		if err := json.Unmarshal(a.body, &v); a.status != http.StatusOK || err != nil {
			t.Fatalf("%d %v", a.status, err)
		}
		delete(v, "interactionId")
		return v
	}
	before := normal()
	blocks := one[int](t, w, `SELECT count(*) FROM sealed_block`)
	log := one[int](t, w, `SELECT count(*) FROM access_log`)

	if err := w.demo.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-w.demo.exited
	if left := processesOf(w.state); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := w.stopDemo(); err != nil && !isKilled(errors.Unwrap(err)) && !strings.Contains(err.Error(), "killed") {
		t.Error(err)
	}
	if err := w.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := normal()
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Error("the readings are not those from before")
	}
	if n := one[int](t, w, `SELECT count(*) FROM sealed_block`); n != blocks {
		t.Errorf("%d blocks, %d before", n, blocks)
	}
	if n := one[int](t, w, `SELECT count(*) FROM access_log`); n != log+1 {
		t.Errorf("%d records, %d before", n, log)
	}
}
