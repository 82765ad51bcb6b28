package server

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/internal/connlimit"
	"kluis/meter"
)

// The limits a request can meet, as the metrics name them.
const (
	limitRequests = "requests" // the supplier's quota
	limitQueue    = "queue"    // of those that wait for a turn
	limitStreams  = "streams"
	limitMemory   = "memory"
	limitOthers   = "unrelated" // metering points of lists
	limitAll      = "all"       // of all suppliers together
	limitUnknown  = "unknown"
)

// closedCertificate: connections closed, of a client certificate that has as many as
// it may.
const closedCertificate = "certificate"

// limitOf names the limit behind an error; "": it is none.
func limitOf(err error) string {
	for _, l := range []struct {
		err  error
		name string
	}{
		{errTooFast, limitRequests}, {errQueueFull, limitQueue}, {errStreams, limitStreams}, {errRoom, limitMemory}, {errOthers, limitOthers},
		{errQueueAllFull, limitAll}, {errStranger, limitUnknown},
	} {
		if errors.Is(err, l.err) {
			return l.name
		}
	}
	return ""
}

// limitMetrics tell what the limits do.
type limitMetrics struct {
	limited   *prometheus.CounterVec
	waits     *prometheus.HistogramVec
	unrelated *prometheus.CounterVec
	closed    *prometheus.CounterVec
}

func newLimitMetrics(reg prometheus.Registerer, t *turns) (*limitMetrics, error) {
	m := &limitMetrics{
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_gateway_limited_total",
			Help: "Requests refused by a limit: requests, queue, streams, memory or unrelated (metering points of a list, which is cut, or waits) of the supplier (GLN), all (of all suppliers together), or unknown (a certificate without a good token).",
		}, []string{"limit", "supplier"}),
		waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "kluis_gateway_turn_wait_seconds",
			Help:    "How long requests and batches of streams waited for a turn at the back ends, by supplier (GLN).",
			Buckets: []float64{.001, .01, .1, 1, 10},
		}, []string{"supplier"}),
		unrelated: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_gateway_unrelated_points_total",
			Help: "Metering points that a supplier (GLN) listed in a query and had nothing to do with: each has a record in the access log.",
		}, []string{"supplier"}),
		closed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_gateway_connections_closed_total",
			Help: "Connections closed because there were too many: idle (the longest idle one), handshake (the one longest in its handshake), refused (a new one, nothing being idle), certificate (one of a certificate that has as many as it may).",
		}, []string{"why"}),
	}
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kluis_gateway_turns_waiting",
		Help: "Requests and batches that wait for a turn at the back ends.",
	}, func() float64 { _, waiting := t.count(); return float64(waiting) })
	taken := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kluis_gateway_turns_taken",
		Help: "Turns at the back ends that somebody has.",
	}, func() float64 { taken, _ := t.count(); return float64(taken) })
	var errs []error
	for _, c := range []prometheus.Collector{m.limited, m.waits, m.unrelated, m.closed, waiting, taken} {
		errs = append(errs, reg.Register(c))
	}
	// From the start, so that an alert on an increase sees the first one.
	m.limited.WithLabelValues(limitAll, "")
	m.limited.WithLabelValues(limitUnknown, "")
	for _, why := range []string{connlimit.Idle, connlimit.Handshake, connlimit.Refused, closedCertificate} {
		m.closed.WithLabelValues(why)
	}
	return m, errors.Join(errs...)
}

// failed counts a failure, if a limit is behind it.
func (m *limitMetrics) failed(ev *event, err error) {
	if limit := limitOf(err); limit != "" {
		supplier := ""
		if !ev.supplier.IsZero() {
			supplier = ev.supplier.String()
		}
		m.limited.WithLabelValues(limit, supplier).Inc()
	}
}

func (m *limitMetrics) waited(supplier meter.GLN, d time.Duration) {
	m.waits.WithLabelValues(supplier.String()).Observe(d.Seconds())
}

// others counts metering points that a supplier listed and had nothing to do with.
func (m *limitMetrics) others(supplier meter.GLN, n int) {
	if n > 0 {
		m.unrelated.WithLabelValues(supplier.String()).Add(float64(n))
	}
}

// count counts the turns that are taken, and who waits.
func (t *turns) count() (taken, waiting int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.limits.Turns - t.free, t.waiting
}
