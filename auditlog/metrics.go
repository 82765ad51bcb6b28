package auditlog

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/auditlog/leaf"
	"kluis/auditlog/oversight"
	"kluis/cryptoserver/envelope"
)

// metrics are the daemon's. They count whether or not anybody asks for them.
type metrics struct {
	leaves     prometheus.Gauge
	signed     prometheus.Gauge
	exported   prometheus.Gauge
	checkpoint prometheus.Gauge
	looked     prometheus.Gauge
	behind     prometheus.Gauge
	rolledBack prometheus.Gauge
	pulled     *prometheus.GaugeVec
	pulls      *prometheus.CounterVec
	unusual    *prometheus.GaugeVec
	judged     prometheus.Gauge
	checked    prometheus.Gauge
	checkedAt  prometheus.Gauge
	wholeAt    prometheus.Gauge
	findings   prometheus.Gauge
}

// Why the journal of a server could not be fetched: it contradicts what was
// fetched before or is none, or whatever else, most likely that it is away.
const (
	pullBroken      = "broken"
	pullUnavailable = "unavailable"
)

func newMetrics(addresses []string) *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "kluis_auditor_" + name, Help: help})
	}
	m := &metrics{
		leaves:     gauge("leaves", "Leaves in the log."),
		signed:     gauge("signed_leaves", "Leaves in the tree of the newest checkpoint; the difference is signed within seconds."),
		exported:   gauge("exported_leaves", "Leaves in the tree of the newest exported checkpoint."),
		checkpoint: gauge("checkpoint_timestamp_seconds", "When the newest checkpoint was signed, by the cryptoserver's clock; 0: none yet. None is made while nothing comes."),
		looked:     gauge("looked_timestamp_seconds", "When the auditor last had looked through the database and logged all there was; 0: not yet."),
		behind:     gauge("rows_behind", "Rows seen in the database that were not in the log when they were last counted, of each kind at most 100000; counted while it catches up or fails, 0 once all are logged."),
		rolledBack: gauge("rolled_back", "1 while the log in the database is not the one that was signed: nothing is logged or signed. Anything but 0 is an alarm."),
		pulled: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kluis_auditor_journal_pulled_timestamp_seconds", Help: "When all there was of a cryptoserver's journals was fetched last, by its address; 0: not since the auditor started.",
		}, []string{"server"}),
		pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_auditor_journal_failures_total", Help: "Vain attempts to fetch the journals of a cryptoserver, by its address and reason: unavailable, or broken (it is none, or contradicts what was fetched before: an alarm).",
		}, []string{"server", "reason"}),
	}
	m.unusual = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "kluis_audit_unusual", Help: "What is unusual in the hours and days of the last 24 hours, by kind; who it is, the oversight page tells those who may know.",
	}, []string{"kind"})
	for _, k := range oversight.Kinds() {
		m.unusual.WithLabelValues(k.String())
	}
	m.judged = gauge("judged_timestamp_seconds", "When the auditor last had looked for what is unusual; 0: not yet.")
	m.checked = gauge("checked_leaves", "Leaves that checks have compared with their rows and with the signed tree, from the first on.")
	m.checkedAt = gauge("checked_timestamp_seconds", "When a check of the log last ended, of what is new or of all; 0: never.")
	m.wholeAt = gauge("verified_timestamp_seconds", "When kluis audit verify last had checked all against all; 0: never.")
	m.findings = gauge("check_findings", "Findings of the newest kluis audit verify and of the checks since. Anything but 0 is an alarm.")
	// A server that was never reached shows, and an increase counts from zero.
	for _, a := range addresses {
		m.pulled.WithLabelValues(a)
		m.pulls.WithLabelValues(a, pullBroken)
		m.pulls.WithLabelValues(a, pullUnavailable)
	}
	return m
}

// Register has the daemon's metrics exported.
func (a *Auditor) Register(reg prometheus.Registerer) error {
	m := a.metrics
	for _, c := range []prometheus.Collector{m.leaves, m.signed, m.exported, m.checkpoint, m.looked, m.behind, m.rolledBack, m.pulled, m.pulls,
		m.unusual, m.judged, m.checked, m.checkedAt, m.wholeAt, m.findings} {
		if err := reg.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// tellPulled notes how a pull ended.
func (m *metrics) tellPulled(ctx context.Context, address string, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		m.pulled.WithLabelValues(address).Set(unix(time.Now()))
	case errors.Is(err, envelope.ErrChain), errors.Is(err, envelope.ErrFormat):
		m.pulls.WithLabelValues(address, pullBroken).Inc()
	default:
		m.pulls.WithLabelValues(address, pullUnavailable).Inc()
	}
}

// tell notes how the appender stands after a look.
func (a *Auditor) tell(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	m := a.metrics
	if a.loaded {
		m.leaves.Set(float64(a.tree.size))
	}
	if err == nil {
		m.looked.Set(unix(time.Now()))
		m.behind.Set(0)
		m.rolledBack.Set(0)
		return
	}
	if errors.Is(err, ErrRolledBack) {
		m.rolledBack.Set(1)
	}
	a.countBehind(ctx)
}

// tellSigned notes what is signed and exported.
func (a *Auditor) tellSigned() {
	a.metrics.signed.Set(float64(a.signed.Size))
	a.metrics.exported.Set(float64(a.exported))
	if a.signed.Size > 0 {
		a.metrics.checkpoint.Set(unix(a.signed.At))
	}
}

const (
	countEvery = 10 * time.Second
	countLimit = 100_000 // rows of each kind
)

// countBehind counts what is not logged, now and then: it costs a look-up for
// each such row. Without an answer the last count stands; that the log is old
// then shows by the time of the last look.
func (a *Auditor) countBehind(ctx context.Context) {
	if time.Since(a.counted) < countEvery {
		return
	}
	var n int64
	err := a.call(ctx, func(ctx context.Context) error {
		h, err := a.store.Horizon(ctx)
		if err != nil {
			return err
		}
		for _, kind := range leaf.Kinds() {
			some, err := a.store.Behind(ctx, kind, from(kind, h), countLimit)
			if err != nil {
				return err
			}
			n += some
		}
		return nil
	})
	a.counted = time.Now()
	if err == nil {
		a.metrics.behind.Set(float64(n))
	}
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
