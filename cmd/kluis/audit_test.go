package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/auditlog"
	"kluis/internal/audit"
	"kluis/internal/postgres"
	"kluis/meter"
	"kluis/migrations"
)

// audit runs kluis audit run until the stop it returns is called.
func (w *world) audit() (metrics string, stop func()) {
	w.t.Helper()
	r, out := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	var complaint bytes.Buffer
	go func() {
		code := run(ctx, []string{"audit", "run", "--config", w.config}, streams{strings.NewReader(""), out, &complaint})
		_ = out.Close()
		ended <- code
	}()
	ready, read := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			var line struct {
				Msg     string
				Metrics string `json:"metrics_address"`
			}
			if json.Unmarshal(lines.Bytes(), &line) != nil {
				w.t.Errorf("not a JSON line: %s", lines.Bytes())
			} else if line.Msg == "ready" {
				metrics = line.Metrics
				close(ready)
			}
		}
	}()
	stop = func() {
		cancel()
		<-read
		if code := <-ended; code != exitOK {
			w.t.Errorf("kluis audit run: exit code %d: %s", code, complaint.String())
		}
	}
	select {
	case <-ready:
	case <-time.After(30 * time.Second):
		stop()
		w.t.Fatal("kluis audit run was not ready in time")
	}
	return metrics, stop
}

// TestAudit keeps the log with the real daemon, verifies it, proves a record,
// and alters one.
func TestAudit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.setUp()
	gateway, err := postgres.NewGateway(t.Context(), postgres.Config{DSN: w.db.URL(migrations.RoleGateway)})
	if err != nil {
		t.Fatal(err)
	}
	defer gateway.Close()
	ean, err := meter.ParseEAN(testEAN)
	if err != nil {
		t.Fatal(err)
	}
	gln, err := meter.ParseGLN(testGLN)
	if err != nil {
		t.Fatal(err)
	}
	id := uuid.New()
	day := meter.DayOf(time.Now(), w.profile.Location())
	if err := gateway.Record(t.Context(), audit.Record{InteractionID: id, At: time.Now(), Operation: audit.Readings, Supplier: gln, EAN: ean, Purpose: meter.Billing,
		Days: meter.DayRange{From: day - 1, To: day}, Outcome: audit.NoRelation}); err != nil {
		t.Fatal(err)
	}

	metrics, stop := w.audit()
	began := time.Now()
	var report auditlog.Report
	for {
		code, out, complaint := w.kluis("audit", "verify", "--json", "--grace", "1s")
		report = auditlog.Report{}
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Fatalf("exit code %d: %v: %s%s", code, err, out, complaint)
		}
		if code == exitOK && report.Records == 1 && report.Exported > 0 && report.Signed == report.Size {
			break
		}
		if time.Since(began) > 60*time.Second {
			t.Fatalf("not logged, signed and exported: exit code %d: %s%s", code, out, complaint)
		}
		time.Sleep(200 * time.Millisecond)
	}
	text := scraped(t, metrics)
	for _, want := range []string{"kluis_auditor_rolled_back 0", "kluis_auditor_rows_behind 0", "kluis_auditor_checkpoint_timestamp_seconds 1.", "process_start_time_seconds"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s:\n%s", want, text)
		}
	}
	stop()
	if out := w.must("audit", "verify"); !strings.Contains(out, "VERDICT: nothing was altered.") || !strings.Contains(out, "1 access records") {
		t.Error(out)
	}
	// What it found, and of how much, is noted for oversight.
	owner := w.db.Open(t, migrations.RoleOwner)
	noted := func() (whole bool, size int64, findings string) {
		t.Helper()
		if err := owner.QueryRowContext(t.Context(), `SELECT whole, size, findings FROM audit_result ORDER BY at DESC LIMIT 1`).Scan(&whole, &size, &findings); err != nil {
			t.Fatal(err)
		}
		return whole, size, findings
	}
	if whole, size, findings := noted(); !whole || size != report.Signed || findings != "[]" {
		t.Errorf("%v, %d leaves, %s", whole, size, findings)
	}
	if out := w.must("audit", "verify", "--export", t.TempDir()); !strings.Contains(out, "as far as the database alone can tell") {
		t.Error(out)
	}
	var proofs []auditlog.Proof
	if err := json.Unmarshal([]byte(w.must("audit", "prove", "--interaction", id.String())), &proofs); err != nil || len(proofs) != 1 {
		t.Fatalf("%v, %v", proofs, err)
	}
	held := filepath.Join(w.dir, "checkpoints", "latest")
	if out := w.must("audit", "prove", "--interaction", id.String(), "--ean", testEAN, "--checkpoint", held); !strings.Contains(out, auditlog.ProofFormat) {
		t.Error(out)
	}
	for _, args := range [][]string{{"--interaction", uuid.NewString()}, {"--interaction", id.String(), "--ean", otherEAN}} {
		if code, _, complaint := w.kluis(append([]string{"audit", "prove"}, args...)...); code != exitFailed || !strings.Contains(complaint, "not in the log") {
			t.Errorf("%v: %d: %s", args, code, complaint)
		}
	}

	if _, err := owner.ExecContext(t.Context(), `DELETE FROM access_log`); err != nil {
		t.Fatal(err)
	}
	code, out, complaint := w.kluis("audit", "verify")
	if code != exitFindings || !strings.Contains(out, "FINDING  row-missing: 1") || !strings.Contains(out, id.String()) || !strings.Contains(out, "VERDICT: FINDINGS") || complaint != "" {
		t.Errorf("exit code %d: %s%s", code, out, complaint)
	}
	if _, _, findings := noted(); findings != `[{"code": "row-missing", "count": 1}]` {
		t.Error(findings)
	}
	if code, _, _ := w.kluis("audit", "prove", "--interaction", id.String()); code != exitFailed {
		t.Errorf("a proof of a record that is gone: %d", code)
	}
}

// TestAuditConfigured: what is missing is said.
func TestAuditConfigured(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	whole, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	for missing, args := range map[string][]string{
		"audit_export_dir": {"audit", "run"}, "auditor_url": {"audit", "verify"}, "audit_origin": {"audit", "verify"},
	} {
		var kept []string
		for line := range strings.Lines(string(whole)) {
			if !strings.HasPrefix(line, missing+":") && !(missing == "audit_origin" && strings.HasPrefix(line, "auditor_url:")) {
				kept = append(kept, line)
			}
		}
		path := w.write(missing+".yaml", []byte(strings.Join(kept, "")))
		var out, complaint bytes.Buffer
		if code := run(t.Context(), append(args, "--config", path), streams{strings.NewReader(""), &out, &complaint}); code != exitFailed || !strings.Contains(complaint.String(), missing) {
			t.Errorf("without %s: %d: %s", missing, code, complaint.String())
		}
	}
}
