package custodian_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/authz"
	"kluis/cryptoserver/control"
	"kluis/custodian"
	"kluis/internal/postgres"
	"kluis/meter"
	"kluis/migrations"
)

var amsterdam = must(time.LoadLocation("Europe/Amsterdam"))

func gln(n int) meter.GLN {
	return must(meter.ParseGLN(withCheckDigit(fmt.Sprintf("87123456%04d", n))))
}

// registrar stores sealed facts as the registrar does.
type registrar struct {
	w  *world
	db *postgres.Registrar
}

func (w *world) registrar() registrar {
	w.t.Helper()
	db, err := postgres.NewRegistrar(w.t.Context(), postgres.Config{DSN: w.db.URL(migrations.RoleRegistrar)})
	w.must(err)
	w.t.Cleanup(func() { db.Close() })
	return registrar{w, db}
}

// file makes the next version of a legal file and seals it.
func (r registrar) file(prev *authz.LegalFile, step authz.Step) (*authz.LegalFile, []byte) {
	r.w.t.Helper()
	f, err := authz.Apply(prev, step, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Now(), amsterdam)
	r.w.must(err)
	return f, must(authz.Seal(f.Payload(), r.w.pool.servers[0].signer))
}

// steps stores versions, one for each step.
func (r registrar) steps(prev *authz.LegalFile, steps ...authz.Step) *authz.LegalFile {
	r.w.t.Helper()
	for _, s := range steps {
		var sealed []byte
		prev, sealed = r.file(prev, s)
		r.w.must(r.db.StoreLegalFile(context.Background(), prev, sealed))
	}
	return prev
}

func (r registrar) supplier(prev *authz.Supplier, change func(*authz.SupplierFacts)) *authz.Supplier {
	r.w.t.Helper()
	facts := authz.SupplierFacts{GLN: gln(1), Name: "Some Energy", Scopes: []string{"readings:read"}, Certificates: []authz.Certificate{{Thumbprint: [32]byte{1}, NotAfter: time.Now().AddDate(1, 0, 0)}}}
	if prev != nil {
		facts.Certificates = prev.Certificates()
	}
	if change != nil {
		change(&facts)
	}
	s, err := authz.NewSupplier(prev, facts, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Now())
	r.w.must(err)
	r.w.must(r.db.StoreSupplier(context.Background(), s, must(authz.Seal(s.Payload(), r.w.pool.servers[0].signer))))
	return s
}

func open(from meter.Day) meter.DayRange { return meter.DayRange{From: from, To: meter.MaxDay} }

var firstDay = must(meter.ParseDay("2024-01-01"))

// home is a metering point with a consent: version 4.
func (r registrar) home(n int) *authz.LegalFile {
	return r.steps(nil,
		authz.Register{EAN: ean(n), Commodity: meter.Electricity},
		authz.SetOccupancy{Days: open(firstDay)},
		authz.SetSupply{Supplier: gln(1), Days: open(firstDay)},
		authz.GrantConsent{ID: [16]byte{1}, Supplier: gln(1), Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals}, Granularity: meter.PT15M,
			Days: open(firstDay), ValidUntil: time.Now().AddDate(1, 0, 0), Evidence: "letter"})
}

// runUntil runs one until ctx ends.
func runUntil(ctx context.Context, c *custodian.Custodian, done chan<- error) {
	go func() { done <- c.Run(ctx, 50*time.Millisecond) }()
}

// running runs the custodian with a short heartbeat.
func (w *world) running() {
	w.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	c := w.Custodian
	go func() { done <- c.Run(ctx, 100*time.Millisecond) }()
	w.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
}

func (w *world) within(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("never: %s", what)
		}
	}
}

// metric reads a gauge, or how many values a histogram has.
func (w *world) metric(name string) float64 {
	w.t.Helper()
	reg := prometheus.NewRegistry()
	w.must(w.Register(reg))
	for _, f := range must(reg.Gather()) {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	w.t.Fatalf("no metric %s", name)
	return 0
}

// everywhere says whether every server knows a minimum.
func (w *world) everywhere(e meter.EAN, version uint64) bool {
	for _, s := range w.pool.servers {
		if s.known().FileMinimum(e) != version {
			return false
		}
	}
	return true
}

// looked waits until the custodian has looked at all that is committed.
func (w *world) looked() {
	w.t.Helper()
	w.markers++
	marker := w.registrar().steps(nil, authz.Register{EAN: ean(99_000 + w.markers), Commodity: meter.Gas}, authz.SetOccupancy{Days: open(firstDay)}, authz.SetOccupancy{Days: open(firstDay + 9)})
	w.within("it looks", func() bool { return w.everywhere(marker.EAN(), 3) })
}

// TestNarrowingReachesTheServers: what takes rights away is in the feed at
// every server at once; what gives some is not.
func TestNarrowingReachesTheServers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	r := w.registrar()
	w.running()
	f := r.home(1)
	s := r.supplier(nil, nil)
	w.looked()
	if n := w.pool.servers[0].known().FileMinimum(ean(1)); n != 0 {
		t.Errorf("giving rights made version %d the first", n)
	}
	for _, step := range []authz.Step{
		authz.RevokeConsent{ID: [16]byte{1}},
		authz.SetOptOut{Days: open(firstDay + 100)},
		authz.SetSupply{Supplier: gln(2), Days: open(firstDay + 200)},
		authz.SetOccupancy{Days: open(firstDay + 300)},
	} {
		began := time.Now()
		f = r.steps(f, step)
		w.within(fmt.Sprintf("%T", step), func() bool { return w.everywhere(ean(1), f.Version()) })
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%T took %s", step, took)
		}
	}
	f = r.steps(f, authz.EndOptOut{From: firstDay + 150}, authz.EndOptOut{From: firstDay + 120})
	s = r.supplier(s, func(f *authz.SupplierFacts) { f.Name = "Other Energy" })
	w.looked()
	if n := w.pool.servers[0].known().FileMinimum(ean(1)); n != 8 {
		t.Errorf("version %d is the first", n)
	}
	if n := w.pool.servers[0].known().SupplierMinimum(gln(1)); n != 0 {
		t.Errorf("a new name made version %d the first", n)
	}
	s = r.supplier(s, func(f *authz.SupplierFacts) { f.Certificates[0].RevokedAt = time.Now() })
	w.within("a certificate withdrawn", func() bool { return w.pool.servers[1].known().SupplierMinimum(gln(1)) == 3 })
	r.supplier(s, func(f *authz.SupplierFacts) { f.Suspended = true })
	w.within("a suspension", func() bool { return w.pool.servers[0].known().SupplierMinimum(gln(1)) == 4 })
	// Restarted servers hear it all again.
	for _, s := range w.pool.servers {
		s.restart()
	}
	w.within("after a restart", func() bool { return w.everywhere(ean(1), 8) })
	if w.log.count("delay_seconds") == 0 {
		t.Error("the delay is not in the log")
	}
	if n := w.metric("kluis_custodian_revocation_delay_seconds"); n < 6 {
		t.Errorf("%v delays measured", n)
	}
	if at := w.metric("kluis_custodian_facts_looked_timestamp_seconds"); time.Since(time.Unix(int64(at), 0)) > 10*time.Second {
		t.Errorf("last looked at %v", at)
	}
	if w.log.count(ean(1).String()) > 0 || w.log.count(fmt.Sprint(ean(1).Int64())) > 0 || w.log.count(gln(1).String()) > 0 {
		t.Error("the log names a metering point or a supplier")
	}
}

// TestLateCommit: a version that is committed long after later transactions is
// not missed.
func TestFactOfALateCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	r := w.registrar()
	f := r.home(1)
	w.running()
	w.looked()
	next, sealed := r.file(f, authz.RevokeConsent{ID: [16]byte{1}})
	tx, err := w.owner.BeginTx(t.Context(), nil)
	w.must(err)
	defer tx.Rollback()
	_, err = tx.ExecContext(t.Context(), `INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, $2, $3, now())`, next.EAN().Int64(), next.Version(), sealed)
	w.must(err)
	for range 3 {
		w.looked() // with later transactions, and the mark goes on
	}
	if w.everywhere(ean(1), 5) {
		t.Fatal("seen before it was committed")
	}
	w.must(tx.Commit())
	w.within("the late one", func() bool { return w.everywhere(ean(1), 5) })
}

// TestFirstLook: what is there when the custodian looks for the first time
// counts too, and what came while none ran; it looks at all of it once only.
func TestFirstLook(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	r := w.registrar()
	var files []*authz.LegalFile
	for n := range 3 {
		files = append(files, r.steps(r.home(n), authz.RevokeConsent{ID: [16]byte{1}}, authz.SetOptOut{Days: meter.DayRange{From: firstDay, To: firstDay + 1}}, authz.EndOptOut{From: firstDay}))
	}
	r.home(7)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	runUntil(ctx, w.Custodian, done)
	w.within("all from before", func() bool {
		return w.everywhere(ean(0), 6) && w.everywhere(ean(1), 6) && w.everywhere(ean(2), 6)
	})
	w.within("the mark", func() bool { return w.value(`SELECT count(*) FROM fact_mark`) == "1" })
	stop()
	w.must(<-done)
	if n := w.pool.servers[0].known().FileMinimum(ean(7)); n != 0 {
		t.Errorf("nothing was taken away, and version %d is the first", n)
	}
	entries := w.value(`SELECT count(*) FROM control_entry`)
	if entries != "1" {
		t.Errorf("%s entries for one look", entries)
	}
	r.steps(files[0], authz.SetOptOut{Days: meter.DayRange{From: firstDay, To: firstDay + 1}})
	w.Custodian = w.another(w.copy)
	ctx, stop = context.WithCancel(t.Context())
	runUntil(ctx, w.Custodian, done)
	w.within("what came meanwhile", func() bool { return w.everywhere(ean(0), 8) })
	stop()
	w.must(<-done)
	if n := w.log.count("were looked at\""); n != 1 {
		t.Errorf("everything was looked at %d times", n)
	}
	// A database whose transactions count from an earlier one: a dump that was
	// loaded into another cluster.
	w.exec(`UPDATE fact_mark SET arrived = '9000000000'`)
	w.Custodian = w.another(filepath.Join(t.TempDir(), "elsewhere"))
	w.running()
	w.within("a look at everything", func() bool { return w.log.count("were looked at\"") == 2 })
}

// TestPutBackByASuperuser: rows deleted or put back are noticed, and do not
// make the minimum less.
func TestPutBackByASuperuser(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	r := w.registrar()
	r.steps(r.home(1), authz.RevokeConsent{ID: [16]byte{1}})
	r.supplier(r.supplier(nil, nil), func(f *authz.SupplierFacts) { f.Suspended = true })
	w.running()
	w.within("the revocation", func() bool { return w.everywhere(ean(1), 5) })
	w.within("the suspension", func() bool { return w.pool.servers[0].known().SupplierMinimum(gln(1)) == 2 })
	if found, err := w.CheckFacts(t.Context()); err != nil || found.Compared != 2 || found.Err() != nil {
		t.Errorf("%+v, %v", found, err)
	}
	const alarm = "has older versions of sealed facts"
	if w.log.count(alarm) != 0 {
		t.Error("an alarm for nothing")
	}
	w.exec(`CREATE TABLE kept AS SELECT * FROM legal_file WHERE version = 5`)
	w.exec(`DELETE FROM legal_file WHERE ean = $1 AND version = 5`, ean(1).Int64())
	w.within("the alarm", func() bool { return w.log.count(alarm) == 1 && w.metric("kluis_custodian_facts_behind") == 1 })
	w.exec(`DELETE FROM supplier`)
	found, err := w.CheckFacts(t.Context())
	w.must(err)
	if behind := found.Behind; len(found.Stray) != 0 || !errors.Is(found.Err(), custodian.ErrFactsBehind) || len(behind) != 2 || behind[0] != (custodian.Behind{Kind: custodian.LegalFiles, Subject: ean(1).Int64(), Minimum: 5, Newest: 4}) ||
		behind[1] != (custodian.Behind{Kind: custodian.SupplierRecords, Subject: gln(1).Int64(), Minimum: 2}) {
		t.Errorf("%+v", found)
	}
	w.exec(`DELETE FROM fact_mark`)
	for _, s := range w.pool.servers {
		s.restart()
	}
	w.within("the servers know it still", func() bool { return w.everywhere(ean(1), 5) })
	if w.log.count(alarm) != 1 {
		t.Error("the alarm is repeated")
	}
	w.exec(`INSERT INTO legal_file SELECT * FROM kept`)
	if found, err := w.CheckFacts(t.Context()); err != nil || len(found.Behind) != 1 {
		t.Errorf("after the row is put back: %+v, %v", found, err)
	}
}

// TestManyAtOnce: more than an entry holds takes several, and two custodians
// side by side say it once.
func TestManyAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("seals some 4,200 legal files")
	}
	t.Parallel()
	w := newWorld(t, 1)
	r := w.registrar()
	const points = control.MaxMinimums + 100
	tx, err := w.owner.BeginTx(t.Context(), nil)
	w.must(err)
	stmt, err := tx.PrepareContext(t.Context(), `INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, $2, $3, now())`)
	w.must(err)
	for n := range points {
		var f *authz.LegalFile
		for _, step := range []authz.Step{
			authz.Register{EAN: ean(n), Commodity: meter.Gas}, authz.SetSupply{Supplier: gln(1), Days: open(firstDay)}, authz.SetSupply{Supplier: gln(2), Days: open(firstDay + 9)},
		} {
			var sealed []byte
			f, sealed = r.file(f, step)
			_, err := stmt.ExecContext(t.Context(), f.EAN().Int64(), int64(f.Version()), sealed)
			w.must(err)
		}
	}
	w.must(tx.Commit())
	began := time.Now()
	w.running()
	w.Custodian = w.another(filepath.Join(t.TempDir(), "far"))
	w.running()
	feed := w.pool.servers[0]
	w.within("all of them", func() bool { n, _ := feed.known().Minimums(); return n == points })
	t.Logf("%d metering points with three versions: %s", points, time.Since(began).Round(time.Millisecond))
	var n sql.NullString
	w.must(w.owner.QueryRowContext(t.Context(), `SELECT count(*) FROM control_entry`).Scan(&n))
	if n.String != "2" && n.String != "3" && n.String != "4" {
		t.Errorf("%s entries", n.String)
	}
}
