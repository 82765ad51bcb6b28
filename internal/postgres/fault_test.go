package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/cryptoserver/envelope"
	"kluis/internal/devpg"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

// fault is what a proxy does to the next message from the client that holds a
// given text. The connection is gone afterwards, except for frozen.
type fault int

const (
	healthy    fault = iota
	lost             // the message does not reach the server: fails and did not persist
	unanswered       // the server acts on it, its answer is lost: fails but persisted
	frozen           // nothing passes any more, in either direction, on any connection
)

// proxy stands between a client and PostgreSQL's socket.
type proxy struct {
	t        testing.TB
	dir      string
	upstream string
	listener net.Listener
	done     sync.WaitGroup

	mu    sync.Mutex
	fault fault
	on    []byte
	hit   int
	conns []net.Conn
	stop  chan struct{}
}

func newProxy(t testing.TB, upstream string) *proxy {
	t.Helper()
	dir := pgtest.Dir(t)
	l, err := net.Listen("unix", filepath.Join(dir, filepath.Base(upstream)))
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, dir: dir, upstream: upstream, listener: l, stop: make(chan struct{})}
	p.done.Go(p.accept)
	t.Cleanup(func() {
		close(p.stop)
		l.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		p.done.Wait()
	})
	return p
}

// arm sets the fault for the next message that holds text.
func (p *proxy) arm(f fault, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.on, p.hit = f, []byte(text), 0
}

// hits counts the messages the fault struck: one, or for frozen none or more.
func (p *proxy) hits() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hit
}

func (p *proxy) strike(message []byte) fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault == healthy || !bytes.Contains(message, p.on) {
		return healthy
	}
	f := p.fault
	p.hit++
	if f != frozen {
		p.fault = healthy
	} else {
		p.on = nil // everything from now on
	}
	return f
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("unix", p.upstream)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, server)
		p.mu.Unlock()
		p.done.Go(func() { p.serve(client, server) })
	}
}

func (p *proxy) serve(client, server net.Conn) {
	defer client.Close()
	defer server.Close()
	var mute sync.Mutex // held: answers do not pass
	muted := false
	p.done.Go(func() {
		defer client.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			mute.Lock()
			if muted {
				mute.Unlock()
				return
			}
			mute.Unlock()
			if err != nil {
				return
			}
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	buf := make([]byte, 1<<20)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		switch p.strike(buf[:n]) {
		case lost:
			return
		case unanswered:
			mute.Lock()
			muted = true
			mute.Unlock()
			if _, err := server.Write(buf[:n]); err != nil {
				return
			}
			// The reader returns, and closes the client, on the answer.
			<-time.After(200 * time.Millisecond)
			return
		case frozen:
			<-p.stop
			return
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
	}
}

// through is a configuration that goes through the proxy, on one connection.
func (p *proxy) through(d *pgtest.DB, role string) postgres.Config {
	c := config(d, role)
	c.DSN = string(bytes.ReplaceAll([]byte(c.DSN), []byte(escape(filepath.Dir(d.Socket()))), []byte(escape(p.dir))))
	c.MaxConns = 1
	return c
}

func escape(path string) string {
	return string(bytes.ReplaceAll([]byte(path), []byte("/"), []byte("%2F")))
}

// TestRecordFaults: whatever becomes of the connection, success means that
// exactly one record is durable, and an error lets nothing leave.
func TestRecordFaults(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	owner := d.Open(t, migrations.RoleOwner)
	p := newProxy(t, d.Socket())
	c := p.through(d, migrations.RoleGateway)
	c.StatementTimeout = 500 * time.Millisecond
	g, err := postgres.NewGateway(t.Context(), c)
	g = closing(t, g, err)
	count := func(r [16]byte) string {
		return value(t, owner, `SELECT count(*) FROM access_log WHERE interaction_id = encode($1, 'hex')::uuid`, r[:])
	}
	if err := g.Record(t.Context(), record()); err != nil { // prepared on the connection
		t.Fatal(err)
	}

	r := record()
	p.arm(lost, "kluis/access-record")
	err = g.Record(t.Context(), r)
	if p.hits() != 1 {
		t.Fatal("the fault did not strike")
	}
	if got := count(r.InteractionID); (err == nil) != (got == "1") || err != nil && !errors.Is(err, postgres.ErrUnavailable) {
		t.Errorf("failed and did not persist: %v, %s records", err, got)
	}

	r = record()
	if err := g.Record(t.Context(), record()); err != nil {
		t.Fatalf("the pool did not recover: %v", err)
	}
	p.arm(unanswered, "kluis/access-record")
	err = g.Record(t.Context(), r)
	if p.hits() != 1 {
		t.Fatal("the fault did not strike")
	}
	if got := count(r.InteractionID); !errors.Is(err, postgres.ErrUnavailable) || got != "1" {
		t.Errorf("failed but persisted: %v, %s records; want ErrUnavailable, as whose record it is cannot be told", err, got)
	}
	if err := g.Record(t.Context(), record()); err != nil {
		t.Fatalf("the pool did not recover: %v", err)
	}

	// A frozen server, or a network that swallows everything.
	r = record()
	p.arm(frozen, "kluis/access-record")
	began := time.Now()
	err = g.Record(t.Context(), r)
	if took := time.Since(began); !errors.Is(err, postgres.ErrUnavailable) || took > 10*time.Second {
		t.Errorf("frozen: %v after %v", err, took)
	}
	if got := count(r.InteractionID); got != "0" {
		t.Errorf("frozen: %s records", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began = time.Now()
	err = g.Record(ctx, r)
	if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > 5*time.Second {
		t.Errorf("frozen, with a deadline: %v after %v", err, took)
	}
}

// TestCommitFaults: after an error at COMMIT the batch is there or not, whole,
// and repeating it from reading on ends well.
func TestCommitFaults(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	owner := d.Open(t, migrations.RoleOwner)
	p := newProxy(t, d.Socket())
	in, err := postgres.NewIngest(t.Context(), p.through(d, migrations.RoleIngest))
	in = closing(t, in, err)
	for n, c := range []struct {
		name   string
		fault  fault
		on     string
		stored int
	}{
		{"lost before the blocks", lost, "INSERT INTO sealed_block", 0},
		{"lost before the commit", lost, "COMMIT", 0},
		{"answer to the blocks lost", unanswered, "INSERT INTO sealed_block", 0},
		{"answer to the commit lost", unanswered, "COMMIT", 2},
	} {
		who := ean(n)
		if err := in.Commit(t.Context(), postgres.Batch{Keys: []envelope.KeyRecord{key(who, meter.Registers, meter.Day(20000).Month())}}); err != nil {
			t.Fatal(err)
		}
		b := postgres.Batch{Blocks: []postgres.Row{block(who, 1, 20000, 1), block(who, 1, 20001, 1)}}
		p.arm(c.fault, c.on)
		if err := in.Commit(t.Context(), b); !errors.Is(err, postgres.ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", c.name, err)
		}
		if p.hits() != 1 {
			t.Fatalf("%s: the fault did not strike", c.name)
		}
		heads, err := in.Heads(t.Context(), []meter.EAN{who}, []meter.FieldCode{1}, meter.DayRange{From: 20000, To: 20002})
		if err != nil || len(heads) != c.stored {
			t.Errorf("%s: %d blocks are stored, want %d (%v)", c.name, len(heads), c.stored, err)
		}
		if c.stored == 0 {
			if err := in.Commit(t.Context(), b); err != nil {
				t.Errorf("%s: again: %v", c.name, err)
			}
		} else if err := in.Commit(t.Context(), b); !errors.Is(err, postgres.ErrConflict) {
			t.Errorf("%s: again: %v, want ErrConflict", c.name, err)
		}
		if got := value(t, owner, `SELECT count(*) FROM sealed_block WHERE ean = $1`, who.Int64()); got != "2" {
			t.Errorf("%s: %s blocks in the end", c.name, got)
		}
	}
	if n := value(t, owner, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'`); n != "0" {
		t.Errorf("%s locks are left", n)
	}
}

// TestTimeouts: a statement that does not come back ends by the statement
// timeout as ErrUnavailable, by the context as the context's error.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	c := config(d, migrations.RoleGateway)
	c.StatementTimeout = 300 * time.Millisecond
	g, err := postgres.NewGateway(t.Context(), c)
	g = closing(t, g, err)

	tx, err := d.Open(t, migrations.RoleOwner).BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(t.Context(), `LOCK TABLE legal_file, sealed_block, access_log IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	month := grant(t, home, meter.EnergyManagement, days("2025-03-01", "2025-04-01"), 1)
	calls := map[string]func(context.Context) error{
		"legal file": func(ctx context.Context) error { _, err := g.LegalFile(ctx, home); return err },
		"blocks":     func(ctx context.Context) error { _, _, err := g.Blocks(ctx, month); return err },
		"record":     func(ctx context.Context) error { return g.Record(ctx, record()) },
	}
	for name, call := range calls {
		began := time.Now()
		if err := call(t.Context()); !errors.Is(err, postgres.ErrUnavailable) || time.Since(began) > 3*time.Second {
			t.Errorf("%s: %v after %v, want ErrUnavailable", name, err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		began = time.Now()
		if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, postgres.ErrUnavailable) || time.Since(began) > 2*time.Second {
			t.Errorf("%s: %v after %v, want the deadline", name, err, time.Since(began))
		}
		cancel()
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		if err := call(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want canceled", name, err)
		}
		cancel()
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	for name, call := range calls {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s afterwards: %v", name, err)
		}
	}
}

// TestRestart stops PostgreSQL under load, and starts it again: every call
// fails as ErrUnavailable or succeeds, what succeeded is there, and the same
// pool goes on.
func TestRestart(t *testing.T) {
	t.Parallel()
	c := devpg.Config{Dir: pgtest.Dir(t)} // durable
	cl := pgtest.Cluster(t, c)
	g, err := postgres.NewGateway(t.Context(), postgres.Config{DSN: cl.URL(migrations.RoleGateway, "kluis"), MaxConns: 4, StatementTimeout: 2 * time.Second})
	g = closing(t, g, err)
	in, err := postgres.NewIngest(t.Context(), postgres.Config{DSN: cl.URL(migrations.RoleIngest, "kluis")})
	in = closing(t, in, err)
	seed(t, in, home, days("2025-03-01", "2025-04-02"))
	month := grant(t, home, meter.EnergyManagement, days("2025-03-01", "2025-04-01"), 1, 6)

	var (
		mu      sync.Mutex
		kept    [][16]byte
		refused int
		wg      sync.WaitGroup
		stop    = make(chan struct{})
	)
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r := record()
				_, _, err := g.Blocks(t.Context(), month)
				if err == nil {
					err = g.Record(t.Context(), r)
				}
				mu.Lock()
				switch {
				case err == nil:
					kept = append(kept, r.InteractionID)
				case errors.Is(err, postgres.ErrUnavailable):
					refused++
				default:
					t.Errorf("%v, want ErrUnavailable", err)
				}
				mu.Unlock()
				if err != nil {
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}
	time.Sleep(200 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := cl.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := g.Database(t.Context()); !errors.Is(err, postgres.ErrUnavailable) {
		t.Errorf("health while it is down: %v", err)
	}
	cl = pgtest.Cluster(t, c)
	mu.Lock()
	before := len(kept)
	mu.Unlock()
	time.Sleep(300 * time.Millisecond)
	close(stop)
	wg.Wait()
	if before == 0 || refused == 0 || len(kept) == before {
		t.Errorf("%d records before, %d refused, %d after: the test did not test", before, refused, len(kept)-before)
	}
	for range 8 {
		if err := g.Record(t.Context(), record()); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
	owner, err := openURL(cl.URL(migrations.RoleOwner, "kluis"))
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	for _, id := range kept {
		if value(t, owner, `SELECT count(*) FROM access_log WHERE interaction_id = encode($1, 'hex')::uuid`, id[:]) != "1" {
			t.Fatal("a record that was acknowledged is not there")
		}
	}
}

// TestIdlePoolSurvivesRestart: connections that went stale while nobody asked
// are replaced without an error.
func TestIdlePoolSurvivesRestart(t *testing.T) {
	t.Parallel()
	c := devpg.Config{Dir: pgtest.Dir(t), NoSync: true}
	cl := pgtest.Cluster(t, c)
	g, err := postgres.NewGateway(t.Context(), postgres.Config{DSN: cl.URL(migrations.RoleGateway, "kluis"), MaxConns: 6})
	g = closing(t, g, err)
	calls := func() {
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				if err := g.Record(t.Context(), record()); err != nil {
					t.Error(err)
				}
				if _, err := g.LegalFile(t.Context(), home); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	calls()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := cl.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	pgtest.Cluster(t, c)
	calls()
}

// TestStoppedInMidRequest: PostgreSQL goes away while a statement runs.
func TestStoppedInMidRequest(t *testing.T) {
	t.Parallel()
	c := devpg.Config{Dir: pgtest.Dir(t)}
	cl := pgtest.Cluster(t, c)
	g, err := postgres.NewGateway(t.Context(), postgres.Config{DSN: cl.URL(migrations.RoleGateway, "kluis"), StatementTimeout: 20 * time.Second})
	g = closing(t, g, err)
	owner, err := openURL(cl.URL(migrations.RoleOwner, "kluis"))
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	// The statement itself waits. One that waited for a lock could get it from
	// a session that the shutdown ends first, and rightly succeed.
	for _, stmt := range []string{
		`CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$`,
		`CREATE TRIGGER dawdle BEFORE INSERT ON access_log FOR EACH ROW EXECUTE FUNCTION dawdle()`,
	} {
		if _, err := owner.ExecContext(t.Context(), stmt); err != nil {
			t.Fatal(err)
		}
	}
	failed := make(chan error, 1)
	go func() { failed <- g.Record(t.Context(), record()) }()
	time.Sleep(200 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := cl.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-failed:
		if !errors.Is(err, postgres.ErrUnavailable) {
			t.Errorf("%v, want ErrUnavailable", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the call does not come back")
	}
	if _, err := os.Stat(cl.Socket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// PostgreSQL acknowledges a commit whose wait for a standby an operator
// cancels. Who must not lose it must not take that for an acknowledgement.
func TestStandbyDoesNotConfirm(t *testing.T) {
	t.Parallel()
	cl := pgtest.Cluster(t, devpg.Config{Dir: pgtest.Dir(t)})
	g, err := postgres.NewGateway(t.Context(), postgres.Config{DSN: cl.URL(migrations.RoleGateway, "kluis")})
	g = closing(t, g, err)
	in, err := postgres.NewIngest(t.Context(), postgres.Config{DSN: cl.URL(migrations.RoleIngest, "kluis")})
	in = closing(t, in, err)
	admin := must(openURL(cl.URL(devpg.Superuser, "kluis")))
	t.Cleanup(func() { admin.Close() })
	for _, stmt := range []string{"ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()"} {
		if _, err := admin.ExecContext(t.Context(), stmt); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond) // for the sessions to read it
	for what, write := range map[string]func() error{
		"record": func() error { return g.Record(t.Context(), record()) },
		"batch": func() error {
			return in.Commit(t.Context(), postgres.Batch{Keys: []envelope.KeyRecord{key(ean(1), meter.Registers, 600)}})
		},
	} {
		done := make(chan error, 1)
		go func() { done <- write() }()
		cancelled := 0
		for waiting := true; waiting; {
			select {
			case err := <-done:
				if !errors.Is(err, postgres.ErrUnavailable) || !strings.Contains(err.Error(), "standby") || cancelled == 0 {
					t.Errorf("%s: %v, after %d cancels", what, err, cancelled)
				}
				waiting = false
			case <-time.After(20 * time.Millisecond):
				var n int
				if err := admin.QueryRowContext(t.Context(), `SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`).Scan(&n); err != nil {
					t.Fatal(err)
				}
				cancelled += n
			}
		}
	}
}
