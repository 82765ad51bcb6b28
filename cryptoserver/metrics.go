package cryptoserver

import (
	"github.com/prometheus/client_golang/prometheus"

	"kluis/cryptoserver/cryptopb"
)

type metrics struct {
	calls    *prometheus.CounterVec
	refusals *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	blocks   *prometheus.CounterVec
	units    *prometheus.CounterVec
	tokenUp  *prometheus.GaugeVec
}

// noHead is the age of a control feed of which no head is known: a day, since
// infinity cannot be drawn.
const noHead = 24 * time.Hour

func newMetrics(reg prometheus.Registerer, feed *control.Feed, now func() time.Time) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_cryptoserver_calls_total", Help: "Calls by method and gRPC code.",
		}, []string{"method", "code"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_cryptoserver_refusals_total", Help: "Calls refused or failed, by method and reason, as the client is told it.",
		}, []string{"method", "reason"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kluis_cryptoserver_call_seconds", Help: "Duration of calls by method.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"method"}),
		blocks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_cryptoserver_blocks_total",
			Help: "Blocks by outcome: opened, outside_grant (asked for beyond the evidence, not opened), duplicate (not opened), damaged, erased (not opened), unknown_epoch (those of the damaged whose data key names a KEK epoch that was never active), sealed, resealed.",
		}, []string{"outcome"}),
		units: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_cryptoserver_units_total",
			Help: "Metering points asked for by outcome: ok, no_relation, evidence_invalid, evidence_outdated.",
		}, []string{"outcome"}),
		tokenUp: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kluis_cryptoserver_token_up", Help: "1 while the HSM token of a role passes its check.",
		}, []string{"role"}),
	}
	for _, c := range []prometheus.Collector{m.calls, m.refusals, m.seconds, m.blocks, m.units, m.tokenUp} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	// Alarms need the zero: an increase counts from it.
	m.refusals.WithLabelValues("Open", string(cryptopb.ReasonTokenBusy))
	m.refusals.WithLabelValues("Seal", string(cryptopb.ReasonSealRate))
	m.refusals.WithLabelValues("PutControl", string(cryptopb.ReasonControlFork))
	for _, outcome := range []string{"opened", "outside_grant", "duplicate", "damaged", "sealed"} {
		m.blocks.WithLabelValues(outcome)
	}
	return m, nil
}
