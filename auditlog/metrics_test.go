package auditlog_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/tlog"

	"kluis/auditlog"
	"kluis/auditlog/leaf"
	"kluis/auditlog/oversight"
)

// figures are what an auditor exports: by name, and by label values if it has
// any.
func figures(t *testing.T, a *auditlog.Auditor) map[string]float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	if err := a.Register(reg); err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range must(reg.Gather())(t) {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			out[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}

// within waits for figures.
func within(t *testing.T, what string, a *auditlog.Auditor, is func(map[string]float64) bool) map[string]float64 {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		f := figures(t, a)
		if is(f) {
			return f
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, f)
		}
	}
}

// faulty logs nothing, or has journals that were cut off, while it is told to.
type faulty struct {
	auditlog.Store
	auditlog.Servers
	full, cut atomic.Bool
}

func (f *faulty) Append(ctx context.Context, first int64, keys []leaf.Key, firstHash int64, hashes []tlog.Hash, counted *oversight.Tally, logged leaf.Place) error {
	if f.full.Load() {
		return errFlaky
	}
	return f.Store.Append(ctx, first, keys, firstHash, hashes, counted, logged)
}

func (f *faulty) ReadJournal(ctx context.Context, address string, boot [16]byte, after uint64) ([]auditlog.Boot, [][]byte, error) {
	boots, entries, err := f.Servers.ReadJournal(ctx, address, boot, after)
	for i := range boots {
		if f.cut.Load() {
			boots[i].Last = 1
		}
	}
	return boots, entries, err
}

// TestMetrics: what goes wrong shows in them, and what goes well.
func TestMetrics(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.read()
	for range 3 {
		w.refuse(time.Now())
	}
	began := float64(time.Now().Unix())
	journal := func(name string) string { return "kluis_auditor_journal_" + name }
	broken, unavailable := journal("failures_total broken "+w.address), journal("failures_total unavailable "+w.address)

	f := &faulty{Store: w.store, Servers: w.servers()}
	f.full.Store(true)
	a, stop := w.auditing(f, f, w.export)
	if got := figures(t, a); len(got) != 21 {
		t.Errorf("not all of them at once: %v", got)
	}
	// Four records, three versions of a legal file, a supplier.
	got := within(t, "rows that are not logged", a, func(m map[string]float64) bool { return m["kluis_auditor_rows_behind"] >= 8 })
	if got["kluis_auditor_looked_timestamp_seconds"] != 0 || got["kluis_auditor_leaves"] != 0 || got["kluis_auditor_checkpoint_timestamp_seconds"] != 0 {
		t.Errorf("nothing was logged: %v", got)
	}
	f.full.Store(false)
	w.calm()
	size := float64(w.verify().Size)
	got = within(t, "all is logged, signed and exported", a, func(m map[string]float64) bool {
		return m["kluis_auditor_rows_behind"] == 0 && m["kluis_auditor_leaves"] >= size && m["kluis_auditor_signed_leaves"] >= size && m["kluis_auditor_exported_leaves"] >= size
	})
	for _, at := range []string{"kluis_auditor_looked_timestamp_seconds", "kluis_auditor_checkpoint_timestamp_seconds", journal("pulled_timestamp_seconds " + w.address)} {
		if got[at] < began || got[at] > float64(time.Now().Unix()+1) {
			t.Errorf("%s is %f", at, got[at])
		}
	}
	if got[broken] != 0 || got["kluis_auditor_rolled_back"] != 0 {
		t.Errorf("nothing was wrong: %v", got)
	}

	f.cut.Store(true)
	got = within(t, "a journal that was cut off", a, func(m map[string]float64) bool { return m[broken] > 0 })
	f.cut.Store(false)
	away := got[unavailable]
	w.stop()
	got = within(t, "a server that is away", a, func(m map[string]float64) bool { return m[unavailable] > away })
	pulled := got[journal("pulled_timestamp_seconds "+w.address)]
	got = within(t, "it stays away", a, func(m map[string]float64) bool { return m[unavailable] > away+2 })
	if got[journal("pulled_timestamp_seconds "+w.address)] != pulled {
		t.Error("its journal was fetched nevertheless")
	}
	stop()

	w.tamper(`DELETE FROM audit_leaf WHERE index = (SELECT max(index) FROM audit_leaf)`)
	w.refuse(time.Now())
	a, stop = w.auditing(w.store, w.servers(), w.export)
	defer stop()
	got = within(t, "a log that was cut", a, func(m map[string]float64) bool {
		return m["kluis_auditor_rolled_back"] == 1 && m["kluis_auditor_rows_behind"] > 0
	})
	if got["kluis_auditor_looked_timestamp_seconds"] != 0 {
		t.Errorf("it went on: %v", got)
	}
}
