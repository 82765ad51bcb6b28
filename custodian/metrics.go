package custodian

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the daemon's. They count whether or not anybody asks for them.
type metrics struct {
	delay  prometheus.Histogram
	behind prometheus.Gauge
	stray  prometheus.Gauge
	looked prometheus.Gauge
}

func newMetrics() *metrics {
	return &metrics{
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kluis_custodian_revocation_delay_seconds",
			Help: "From the sealing of a version that takes rights away to the head of the control feed that says so. What was stored while no custodian ran counts, too.",
			// A look every 2 seconds; beyond 5 it is late.
			Buckets: []float64{0.25, 0.5, 1, 2, 3, 4, 5, 7.5, 10, 30, 60, 300, 3600},
		}),
		behind: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kluis_custodian_facts_behind",
			Help: "Legal files and supplier records found in this round, or the last if this one has found none yet, of which the database has only older versions than the control feed names: rows were deleted or put back. Anything but 0 is an alarm.",
		}),
		stray: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kluis_custodian_facts_stray",
			Help: "Metering points and suppliers with a row of legal_file or supplier that does not follow on the version before it, is not what its row says, or does not verify; at most 1000. Anything but 0 is an alarm.",
		}),
		looked: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kluis_custodian_facts_looked_timestamp_seconds",
			Help: "When the custodian last looked for legal files and supplier records that take rights away; 0: not yet.",
		}),
	}
}

// Register has the daemon's metrics exported.
func (c *Custodian) Register(reg prometheus.Registerer) error {
	for _, m := range []prometheus.Collector{c.metrics.delay, c.metrics.behind, c.metrics.stray, c.metrics.looked} {
		if err := reg.Register(m); err != nil {
			return err
		}
	}
	return nil
}

func (m *metrics) told(versions []version, now time.Time) {
	for _, v := range versions {
		m.delay.Observe(max(0, now.Sub(v.sealedAt).Seconds()))
	}
}
