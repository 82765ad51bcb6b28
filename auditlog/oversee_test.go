package auditlog_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"kluis/auditlog"
	"kluis/auditlog/oversight"
	"kluis/internal/audit"
	"kluis/internal/postgres"
	"kluis/meter"
)

// counted compares what was counted with the records themselves.
func (w *world) counted(want int64) {
	w.t.Helper()
	var hours, given, refused, failed, points, logged int64
	w.check(w.owner.QueryRowContext(w.t.Context(), `
		SELECT coalesce(sum(requests), 0), coalesce(sum(given), 0), coalesce(sum(refused), 0), coalesce(sum(failed), 0), coalesce(sum(points), 0),
		       (SELECT count(*) FROM access_log)
		FROM access_hour`).Scan(&hours, &given, &refused, &failed, &points, &logged))
	if hours != want || logged != want || given+refused+failed != want || points > want {
		w.t.Errorf("%d records, %d counted: %d given, %d refused, %d failed, %d with a metering point; want %d", logged, hours, given, refused, failed, points, want)
	}
}

const employee = "https://idp.test#secret-name"

// looks stores so many records of an employee who looks at homes different
// metering points, refused where said.
func (w *world) looks(at time.Time, n, homes int, o audit.Outcome) {
	w.t.Helper()
	var eans, outcomes []int64
	var ids []string
	var recs, salts [][]byte
	for i := range n {
		e := must(meter.ParseEAN(checked("871687143" + strings.Repeat("0", 5) + string([]byte{byte('0' + i%homes/100), byte('0' + i%homes/10%10), byte('0' + i%homes%10)}))))(w.t)
		r := audit.Record{InteractionID: newID(), At: at, Operation: audit.Consents, Supplier: w.gln, Employee: employee, Reason: "zaak 1", EAN: e, Outcome: o}
		eans, outcomes, ids, recs = append(eans, e.Int64()), append(outcomes, int64(o)), append(ids, text(r.InteractionID)), append(recs, must(r.Encode())(w.t))
		salt := newID()
		salts = append(salts, salt[:])
	}
	w.tamper(`INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt)
		SELECT k.ean, k.id, $6, k.outcome, k.record, '', k.salt FROM unnest($1::bigint[], $2::uuid[], $3::smallint[], $4::bytea[], $5::bytea[]) AS k (ean, id, outcome, record, salt)`,
		pq.Array(eans), pq.Array(ids), pq.Array(outcomes), pq.Array(recs), pq.Array(salts), w.gln.Int64())
}

// locked is a buffer that several goroutines may write to.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestOversight: the daemon, stopped in the middle time and again, counts each
// record once; says what is unusual by kind alone; checks what is new, and says
// so; and forgets what is old.
func TestOversight(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var log locked
	run := func() (*auditlog.Auditor, func()) {
		rules := w.rules()
		rules.Working.Days = [7]bool{} // so that every hour is off hours, whenever this runs
		a := must(auditlog.New(w.store, w.servers(), w.export, w.log, slog.New(slog.NewJSONHandler(&log, nil)), rules, fast))(t)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		stop := sync.OnceFunc(func() {
			cancel()
			w.check(<-done)
		})
		t.Cleanup(stop)
		return a, stop
	}
	size := func() int64 { return must(w.store.Size(t.Context()))(t) }
	at := time.Now()
	const rounds, each = 6, 1200
	for i := range rounds {
		before := size()
		_, stop := run()
		w.looks(at, each, 70+i, audit.NoRelation)
		for end := time.Now().Add(20 * time.Second); size() == before && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		stop() // with pages of it still to come
	}
	a, stop := run()
	w.calm()
	w.counted(rounds * each)
	var requests, off, breadth, rows int64
	w.check(w.owner.QueryRowContext(t.Context(), `SELECT sum(requests), sum(off_hours), (SELECT sum(points) FROM employee_day), (SELECT count(*) FROM employee_point) FROM access_hour WHERE employee = $1`,
		employee).Scan(&requests, &off, &breadth, &rows))
	if requests != rounds*each || off != rounds*each || breadth != 75 || rows != 75 {
		t.Errorf("%d requests, %d off hours, at %d metering points by %d rows", requests, off, breadth, rows)
	}

	// What is unusual, in numbers alone.
	reg := prometheus.NewRegistry()
	w.check(a.Register(reg))
	metrics := func() string {
		var b bytes.Buffer
		for _, f := range must(reg.Gather())(t) {
			w.check(func() error { _, err := expfmt.MetricFamilyToText(&b, f); return err }())
		}
		return b.String()
	}
	has := func(want ...string) {
		t.Helper()
		var text string
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			text = metrics()
			missing := false
			for _, x := range want {
				missing = missing || !strings.Contains(text, x+"\n")
			}
			if !missing {
				return
			}
		}
		t.Errorf("not %q:\n%s", want, text)
	}
	has(`kluis_audit_unusual{kind="BURST"} 1`, `kluis_audit_unusual{kind="BREADTH"} 1`, `kluis_audit_unusual{kind="OFF_HOURS"} 1`, `kluis_audit_unusual{kind="REFUSALS"} 1`,
		"kluis_auditor_check_findings 0", "kluis_auditor_verified_timestamp_seconds 0")
	day := meter.DayOf(at, w.profile.Location())
	o := must(w.gateway.Overview(t.Context(), w.profile.Location(), meter.DayRange{From: day, To: day + 1}))(t)
	if len(o.Parties) != 1 || o.Parties[0].Employee != employee || o.Parties[0].Points != 75 || o.Parties[0].Requests != rounds*each || o.Parties[0].Refused != rounds*each || len(o.Unusual) != 4 || len(o.Hours) != 1 {
		t.Errorf("%+v", o)
	}
	for _, u := range o.Unusual {
		if u.Employee != employee || u.GLN != w.gln || u.Usual != 0 || (u.Kind == oversight.BroadLook) != (u.Count == 75) {
			t.Errorf("%+v", u)
		}
	}
	if none := must(w.gateway.Overview(t.Context(), w.profile.Location(), meter.DayRange{From: day - 7, To: day}))(t); len(none.Parties)+len(none.Unusual)+len(none.Hours) != 0 {
		t.Errorf("of another time: %+v", none)
	}

	// The daemon has checked all that is signed, and nothing but the new: what it
	// says is what it did.
	checks := func() oversight.Checks { return must(w.store.Checks(t.Context()))(t) }
	signed := must(w.store.LastCheckpoint(t.Context()))(t).Size
	for end := time.Now().Add(20 * time.Second); checks().Size < signed && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if c := checks(); c.Size != signed || c.Next != signed || len(c.Findings) != 0 || c.Newest.IsZero() || !c.Whole.IsZero() {
		t.Errorf("%+v, %d are signed", c, signed)
	}
	w.tamper(`UPDATE access_log SET record = set_byte(record, 40, get_byte(record, 40) # 1) WHERE interaction_id = (SELECT id FROM audit_leaf WHERE kind = 1 ORDER BY index LIMIT 1)`)
	w.refuse(time.Now())
	for end := time.Now().Add(20 * time.Second); checks().Size == signed && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if c := checks(); c.Size == signed || len(c.Findings) != 0 {
		t.Errorf("%+v", c)
	}
	stop()
	r := w.finds(auditlog.RowChanged)
	w.check(w.store.AddResult(t.Context(), r.Result(true, 0, r.Signed)))
	if c := checks(); len(c.Findings) != 1 || c.Findings[0] != (oversight.Count{Code: "row-changed", Count: 1}) || c.Whole.IsZero() {
		t.Errorf("%+v", c)
	}

	// A row that is altered before the next check is found by it.
	w.refuse(time.Now())
	_, stop = auditingUnchecked(w)
	last := must(w.store.LastCheckpoint(t.Context()))(t).Size
	for end := time.Now().Add(20 * time.Second); must(w.store.LastCheckpoint(t.Context()))(t).Size == last && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	w.tamper(`DELETE FROM access_log WHERE interaction_id = (SELECT id FROM audit_leaf WHERE kind = 1 ORDER BY index DESC LIMIT 1)`)
	a, stop = run()
	reg = prometheus.NewRegistry()
	w.check(a.Register(reg))
	has("kluis_auditor_check_findings 2")
	stop()
	if c := checks(); len(c.Findings) != 2 || c.Findings[1] != (oversight.Count{Code: "row-missing", Count: 1}) {
		t.Errorf("%+v", c)
	}
	if text := log.String() + metrics(); strings.Contains(text, "secret-name") || strings.Contains(text, "871687143") || !strings.Contains(text, "row-missing: 1") {
		t.Errorf("names somebody, or does not say what it found: %s", text)
	}

	// Old counts go; what was found stays.
	w.check(w.store.Forget(t.Context(), at.Add(72*time.Hour), day+3))
	var left, results int64
	w.check(w.owner.QueryRowContext(t.Context(), `SELECT (SELECT count(*) FROM access_hour) + (SELECT count(*) FROM employee_point) + (SELECT count(*) FROM employee_day) + (SELECT count(*) FROM access_unusual),
		(SELECT count(*) FROM audit_result)`).Scan(&left, &results))
	if left != 0 || results < 2 || len(checks().Findings) != 2 {
		t.Errorf("%d rows, %d results left", left, results)
	}
}

// auditingUnchecked is a daemon that checks nothing.
func auditingUnchecked(w *world) (*auditlog.Auditor, func()) {
	return w.auditing(unchecked{w.store}, w.servers(), w.export)
}

type unchecked struct{ *postgres.Auditor }

func (unchecked) Checks(ctx context.Context) (oversight.Checks, error) {
	return oversight.Checks{}, ctx.Err()
}

func (unchecked) AddResult(context.Context, oversight.Result) error { return errFlaky }
