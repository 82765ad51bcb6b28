package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/internal/testing/hsmtest"
	"kluis/server"
)

var errFault = errors.New("injected fault")

// No record, no data: whatever becomes of the record, an answer leaves only
// when the log says that it is there.
func TestNoRecordNoData(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a, w.consent(w.a))
	w.fill(e)
	foreign := w.customer(2, w.b)
	for name, tc := range map[string]struct {
		fault func(context.Context, audit.Record, server.Recorder) error
		kept  int
	}{
		"fails and did not persist": {func(context.Context, audit.Record, server.Recorder) error { return errFault }, 0},
		"fails but persisted": {func(ctx context.Context, r audit.Record, real server.Recorder) error {
			return errors.Join(real.Record(ctx, r), errFault)
		}, 1},
		"hangs":  {func(ctx context.Context, _ audit.Record, _ server.Recorder) error { <-ctx.Done(); return ctx.Err() }, 0},
		"panics": {func(context.Context, audit.Record, server.Recorder) error { panic("secret") }, 0},
	} {
		w.tap.record = tc.fault
		for what, path := range map[string]string{
			"given": w.path(e), "withheld": w.path(e, "purpose", "BILLING", "resolution", "P1D"), "no relation": w.path(foreign), "list": "/v1/metering-points",
		} {
			if name == "hangs" && what != "given" {
				continue // each waits for the record's timeout
			}
			before := len(w.records())
			r := w.get(w.a, path)
			problem, status := "record-not-written", 503
			if name == "panics" {
				problem, status = "internal-error", 500
			}
			if r.status != status || r.problem(t) != problem || len(r.body) > 600 || strings.Contains(string(r.body), e.String()) {
				t.Errorf("%s, %s: %d %s", name, what, r.status, r.body)
			}
			if status == 503 && r.header.Get("Retry-After") == "" {
				t.Errorf("%s, %s: no Retry-After", name, what)
			}
			if got := len(w.records()) - before; got != tc.kept {
				t.Errorf("%s, %s: %d records", name, what, got)
			}
		}
	}
	if strings.Contains(w.log.String(), "secret") {
		t.Error("the value of a panic is in the log")
	}
	// A stack as the runtime prints it shows the words of arguments.
	if log := w.log.String(); strings.Contains(log, e.String()) || strings.Contains(log, strconv.FormatInt(e.Int64(), 16)) || !strings.Contains(log, "faults_test.go:") {
		t.Errorf("the log of a panic must say where, and of no metering point: %s", log)
	}
	w.tap.record = nil
	w.answerOf(w.get(w.a, w.path(e)))
}

func TestDatabaseFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	w.tap.facts = func(context.Context) error { return errFault }
	r := w.get(w.a, w.path(e))
	if r.status != 503 || r.problem(t) != "database-unavailable" || r.header.Get("Retry-After") == "" || strings.Contains(string(r.body), "injected") {
		t.Errorf("legal file: %d %s", r.status, r.body)
	}
	w.tap.facts = nil
	w.tap.rows = func(context.Context, authz.Grant, server.Rows) ([]envelope.KeyRecord, []envelope.SealedBlock, error) {
		return nil, nil, errFault
	}
	r = w.get(w.a, w.path(e))
	if r.status != 503 || r.problem(t) != "database-unavailable" {
		t.Errorf("rows: %d %s", r.status, r.body)
	}
	recs := w.records()
	if len(recs) != 1 || recs[0].Outcome != audit.Failed || len(recs[0].Granted) == 0 || len(recs[0].Receipt) != 0 {
		t.Errorf("records %+v", recs)
	}
}

// hang is a part that does not answer: the request's deadline passes just then,
// and not while a busy machine is still on the way there.
func hang(ctx context.Context) error {
	ctx.Value(deadlineKey{}).(*deadlineContext).end(context.DeadlineExceeded)
	<-ctx.Done()
	return ctx.Err()
}

type deadlineKey struct{}

// deadlineContext is a request's context whose deadline passes when a test says so.
type deadlineContext struct {
	context.Context
	once sync.Once
	done chan struct{}
	err  error // set before done is closed
}

func (c *deadlineContext) end(err error) { c.once.Do(func() { c.err = err; close(c.done) }) }

func (c *deadlineContext) Done() <-chan struct{} { return c.done }

func (c *deadlineContext) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

func (c *deadlineContext) Value(key any) any {
	if key == (deadlineKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// withDeadlineAtHand lets hang end the requests of next.
func withDeadlineAtHand(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &deadlineContext{Context: r.Context(), done: make(chan struct{})}
		stop := context.AfterFunc(r.Context(), func() { c.end(r.Context().Err()) })
		defer stop()
		next.ServeHTTP(w, r.WithContext(c))
	})
}

// Past its deadline a request is answered, and recorded if anything was
// decided.
func TestDeadline(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{timeout: 3 * time.Second})
	e := w.customer(1, w.a)
	slow := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	w.tap.facts = slow
	if r := w.get(w.a, w.path(e)); r.status != 504 || r.problem(t) != "deadline-exceeded" || r.header.Get("Retry-After") == "" {
		t.Errorf("legal file: %d %s", r.status, r.body)
	}
	w.tap.facts = nil
	w.tap.rows = func(ctx context.Context, _ authz.Grant, _ server.Rows) ([]envelope.KeyRecord, []envelope.SealedBlock, error) {
		return nil, nil, slow(ctx)
	}
	if r := w.get(w.a, w.path(e)); r.status != 504 || r.problem(t) != "deadline-exceeded" {
		t.Errorf("rows: %d %s", r.status, r.body)
	}
	if recs := w.records(); len(recs) != 1 || recs[0].Outcome != audit.Failed {
		t.Errorf("records %+v", recs)
	}
}

// A client that goes away stops the work; what was opened by then is recorded.
func TestClientGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a, w.consent(w.a))
	w.fill(e)
	token := w.token(w.a)
	leave := func(at func(cancel context.CancelFunc)) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		at(cancel)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+w.path(e), nil)
		if err != nil {
			t.Fatal(err)
		}
		bearer(token)(req)
		if resp, err := w.http(w.a.cert).Do(req); err == nil {
			resp.Body.Close()
			t.Errorf("answered %d", resp.StatusCode)
		}
	}
	logged := func() bool {
		for range 500 {
			if strings.Contains(w.log.String(), `"status":499`) {
				return true
			}
			time.Sleep(10 * time.Millisecond)
		}
		return false
	}
	// Before anything is opened.
	leave(func(cancel context.CancelFunc) {
		w.tap.facts = func(ctx context.Context) error { cancel(); <-ctx.Done(); return nil }
	})
	if !logged() {
		t.Errorf("log: %s", w.log.String())
	}
	if got := w.tap.taken(); strings.Contains(got, "open") {
		t.Errorf("calls %q", got)
	}
	// Closed on its own side only, a client still reads: silence, and no 200.
	conn, err := tls.Dial("tcp", strings.TrimPrefix(w.url, "https://"), &tls.Config{RootCAs: authorities().operator.Pool(), Certificates: []tls.Certificate{w.a.cert}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	w.tap.facts = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	if _, err := io.WriteString(conn, "GET "+w.path(e)+" HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer "+token+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || len(got) > 0 {
		t.Errorf("answered %q, %v", got, err)
	}
	// While the record is written: it is written all the same.
	leave(func(cancel context.CancelFunc) {
		w.tap.facts = nil
		w.tap.record = func(ctx context.Context, r audit.Record, real server.Recorder) error {
			cancel()
			time.Sleep(200 * time.Millisecond)
			return real.Record(ctx, r)
		}
	})
	for range 500 {
		if recs := w.records(); len(recs) > 0 {
			if len(recs) != 1 || recs[0].Outcome != audit.Given || len(recs[0].Receipt) == 0 {
				t.Errorf("records %+v", recs)
			}
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("something was opened and nothing recorded")
}

// One of two cryptoservers may die, at any time: no request fails. With both
// away the answer says so, is recorded, and comes back by itself.
func TestCryptoserversStopped(t *testing.T) {
	t.Parallel()
	p, err := startPool(t, hsmtest.New(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	w := newWorld(t, options{pool: p, timeout: 5 * time.Second})
	e := w.customer(1, w.a)
	w.fill(e)
	token := w.token(w.a)
	c := w.http(w.a.cert)
	ask := func(path string) reply { return w.do(c, http.MethodGet, path, bearer(token)) }
	if r := ask("/readyz"); r.status != 200 {
		t.Errorf("readyz: %d", r.status)
	}
	for i := range 30 {
		if i == 10 {
			if err := p.stops[0](); err != nil {
				t.Error(err)
			}
		}
		if r := ask(w.path(e)); r.status != 200 {
			t.Fatalf("request %d: %d %s", i, r.status, r.body)
		}
	}
	if r := ask("/v1/status"); !strings.Contains(string(r.body), `"status":"DEGRADED"`) || !strings.Contains(string(r.body), `{"kind":"cryptoserver","name":"cryptoserver-1","status":"DOWN"}`) {
		t.Errorf("status: %s", r.body)
	}
	if r := ask("/readyz"); r.status != 200 {
		t.Errorf("readyz with one of two: %d", r.status)
	}
	if err := p.stops[1](); err != nil {
		t.Error(err)
	}
	before := len(w.records())
	r := ask(w.path(e))
	if r.status != 503 || r.problem(t) != "decryption-unavailable" || r.header.Get("Retry-After") == "" {
		t.Errorf("both away: %d %s", r.status, r.body)
	}
	recs := w.records()
	if last := recs[len(recs)-1]; len(recs) != before+1 || last.Outcome != audit.Failed || len(last.Granted) == 0 {
		t.Errorf("%d records, last %+v", len(recs)-before, last)
	}
	if r := ask("/readyz"); r.status != 503 || r.header.Get("Retry-After") == "" {
		t.Errorf("readyz with none: %d", r.status)
	}
	if r := ask("/v1/status"); r.status != 200 || !strings.Contains(string(r.body), `"status":"DOWN"`) {
		t.Errorf("status: %s", r.body)
	}
	// What needs no cryptoserver is served.
	if r := ask(w.path(e, "purpose", "CUSTOMER_SERVICE")); r.status != 200 {
		t.Errorf("all withheld: %d %s", r.status, r.body)
	}
}
