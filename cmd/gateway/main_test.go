package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"kluis/internal/devpg"
	"kluis/internal/testing/pgtest"
	"kluis/openapi/client"
)

// process is realMain, run in this process.
type process struct {
	log          *syncBuffer
	url, metrics string
	stop         context.CancelFunc
	done         chan error
}

func (w *world) process() *process {
	w.t.Helper()
	p := &process{log: &syncBuffer{}, done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	w.t.Cleanup(cancel)
	file := w.configFile(options{timeout: 10 * time.Second})
	go func() { p.done <- realMain(ctx, file, slog.New(slog.NewJSONHandler(p.log, nil))) }()
	for range 1000 {
		line, _, _ := strings.Cut(p.log.String(), "\n")
		var ready struct{ Msg, Address, Metrics_address string }
		if json.Unmarshal([]byte(line), &ready) == nil && ready.Msg == "ready" {
			p.url, p.metrics = "https://"+ready.Address, "http://"+ready.Metrics_address
			return p
		}
		select {
		case err := <-p.done:
			w.t.Fatalf("ended before it was ready: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	w.t.Fatalf("not ready: %s", p.log.String())
	return nil
}

// The whole process, asked through the generated client, and stopped in the
// middle of a request, which it still answers.
func TestProcess(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a, w.consent(w.a))
	w.fill(e)
	p := w.process()

	api, err := client.NewClientWithResponses(p.url, client.WithHTTPClient(w.http(w.a.cert)),
		client.WithRequestEditorFn(func(_ context.Context, r *http.Request) error { bearer(w.token(w.a))(r); return nil }))
	if err != nil {
		t.Fatal(err)
	}
	params := &client.GetReadingsParams{Purpose: client.PurposeENERGYMANAGEMENT, Fields: &[]string{"import_low", "import_intervals"}}
	if err := params.From.UnmarshalText([]byte(w.days().From.String())); err != nil {
		t.Fatal(err)
	}
	if err := params.To.UnmarshalText([]byte(w.days().To.String())); err != nil {
		t.Fatal(err)
	}
	r, err := api.GetReadingsWithResponse(t.Context(), e.String(), params)
	if err != nil || r.JSON200 == nil || len(r.JSON200.Series) != 2 || len(r.JSON200.Withheld) != 0 {
		t.Fatalf("%v %s", err, r.Body)
	}
	list, err := api.ListMeteringPointsWithResponse(t.Context(), nil)
	if err != nil || list.JSON200 == nil || len(list.JSON200.MeteringPoints) != 1 {
		t.Fatalf("%v %s", err, list.Body)
	}
	missing, err := api.GetReadingsWithResponse(t.Context(), w.ean(99).String(), params)
	if err != nil || missing.ApplicationproblemJSON404 == nil || missing.ApplicationproblemJSON404.Type != client.UrnKluisProblemMeteringPointNotFound {
		t.Fatalf("%v %s", err, missing.Body)
	}
	status, err := api.GetStatusWithResponse(t.Context(), nil)
	if err != nil || status.JSON200 == nil || status.JSON200.Status != client.StatusStatusUP {
		t.Fatalf("%v %s", err, status.Body)
	}

	plain := func(path string) (int, string) {
		resp, err := http.Get(p.metrics + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if code, body := plain("/metrics"); code != 200 || !strings.Contains(body, `kluis_gateway_requests_total{problem="",route="/v1/metering-points/{ean}/readings",status="200",supplier="`+w.gln(1)+`"} 1`) {
		t.Errorf("metrics: %d %s", code, body)
	}
	for path, want := range map[string]int{"/readyz": 200, "/healthz": 200, "/v1/status": 404, "/v1/metering-points": 404} {
		if code, body := plain(path); code != want {
			t.Errorf("%s on the metrics listener: %d %s", path, code, body)
		}
	}

	// A request that waits in the database while the process is told to stop.
	tx, err := w.owner().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), `LOCK TABLE legal_file IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		r, err := api.GetReadingsWithResponse(context.Background(), e.String(), params)
		if err == nil && r.JSON200 == nil {
			t.Errorf("%d %s", r.StatusCode(), r.Body)
		}
		answered <- err
	}()
	w.waitForLock()
	p.stop()
	select {
	case err := <-p.done:
		t.Errorf("ended with a request under way: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Errorf("the request under way: %v", err)
	}
	if err := <-p.done; err != nil {
		t.Errorf("end: %v", err)
	}
	if _, err := w.http(w.a.cert).Get(p.url + "/healthz"); err == nil {
		t.Error("it still listens")
	}
}

// waitForLock waits until somebody waits for a lock.
func (w *world) waitForLock() {
	w.t.Helper()
	db := w.owner()
	for range 1000 {
		var n int
		if err := db.QueryRowContext(w.t.Context(), `SELECT count(*) FROM pg_locks WHERE NOT granted`).Scan(&n); err != nil {
			w.t.Fatal(err)
		}
		if n > 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatal("nobody waits")
}

// PostgreSQL stopped in the middle of a request, and started again: an error
// that says to retry, and then service, without a restart.
func TestPostgresStops(t *testing.T) {
	t.Parallel()
	conf := devpg.Config{Dir: pgtest.Dir(t), NoSync: true}
	cluster := pgtest.Cluster(t, conf)
	w := newWorld(t, options{db: clusterDB{cluster}, timeout: 5 * time.Second})
	e := w.customer(1, w.a)
	w.fill(e)
	ask := func() reply { return w.get(w.a, w.path(e)) }
	if r := ask(); r.status != 200 {
		t.Fatalf("before: %d %s", r.status, r.body)
	}
	locker := w.owner()
	tx, err := locker.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	// Granted and about to fetch the rows.
	if _, err := tx.ExecContext(t.Context(), `LOCK TABLE sealed_block IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	replies := make(chan reply, 1)
	go func() { replies <- ask() }()
	w.waitForLock()
	stop, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := cluster.Stop(stop); err != nil {
		t.Fatal(err)
	}
	if r := <-replies; r.status != 503 || r.problem(t) != "database-unavailable" || r.header.Get("Retry-After") == "" {
		t.Errorf("stopped in mid-request: %d %s", r.status, r.body)
	}
	if r := ask(); r.status != 503 || r.problem(t) != "database-unavailable" {
		t.Errorf("stopped: %d %s", r.status, r.body)
	}
	if r := w.do(w.a.client, http.MethodGet, "/readyz", nil); r.status != 503 {
		t.Errorf("readyz: %d", r.status)
	}
	if r := w.do(w.a.client, http.MethodGet, "/healthz", nil); r.status != 200 {
		t.Errorf("healthz: %d", r.status)
	}
	pgtest.Cluster(t, conf)
	deadline := time.Now().Add(10 * time.Second)
	for {
		r := ask()
		if r.status == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("started again: %d %s", r.status, r.body)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// A configuration that cannot work ends the process at once, with the reason.
func TestRefusesToStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	good, err := os.ReadFile(w.configFile(options{timeout: 10 * time.Second}))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		old, new string
		want     string
	}{
		"another key":       {"listen:", "lissten:", "lissten"},
		"no database":       {"database_url: " + w.db.URL("kluis_gateway"), "database_url: postgres://kluis_gateway@/kluis?host=/nonexistent", "postgres"},
		"the wrong role":    {"database_url: " + w.db.URL("kluis_gateway"), "database_url: " + w.db.URL("kluis_registrar"), "kluis_gateway"},
		"not public":        {"public_url: https://api.test", "public_url: http://api.test", "public_url"},
		"no such profile":   {"/nl.yaml", "/xx.yaml", "profile_file"},
		"a taken address":   {"listen: 127.0.0.1:0", "listen: " + strings.TrimPrefix(w.url, "https://"), "listen"},
		"seal keys of JSON": {w.pool.hsm.SealKeysFile, w.pool.hsm.JWKSFile, "seal_keys_file"},
	} {
		if !bytes.Contains(good, []byte(tc.old)) {
			t.Fatalf("%s: no %q in\n%s", name, tc.old, good)
		}
		bad := w.write(t.TempDir(), "gateway.yaml", bytes.Replace(good, []byte(tc.old), []byte(tc.new), 1))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		var log syncBuffer
		err := realMain(ctx, bad, slog.New(slog.NewJSONHandler(&log, nil)))
		if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(log.String(), `"ready"`) {
			t.Errorf("%s: was ready", name)
		}
		cancel()
	}
}
