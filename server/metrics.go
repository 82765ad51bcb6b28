package server

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the gateway's own. No label holds anything of a metering point;
// supplier is set only for callers that are authenticated, so that nobody else
// can make up values.
type metrics struct {
	requests  *prometheus.CounterVec
	durations *prometheus.HistogramVec
	faults    *prometheus.CounterVec
	evidence  *prometheus.CounterVec
	age       prometheus.Histogram

	changesLag prometheus.Gauge
	points     *prometheus.CounterVec
	streams    prometheus.Gauge
	ended      *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_gateway_requests_total",
			Help: "Requests answered, by route pattern, HTTP status (499: the client went away), problem slug and supplier (GLN).",
		}, []string{"route", "status", "problem", "supplier"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "kluis_gateway_request_duration_seconds",
			Help:    "Time from a request's headers to the end of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"route"}),
		faults: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_gateway_block_faults_total",
			Help: "Blocks a cryptoserver did not open: outside_grant (the gateway asked for more than the evidence covers) or damaged. Either wants an operator.",
		}, []string{"fault"}),
		evidence: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_gateway_evidence_invalid_total",
			Help: "Sealed facts in the database that do not verify, by kind: supplier, legal_file or access_record (as often as somebody looks). Wants an operator.",
		}, []string{"kind"}),
		age: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "kluis_gateway_evidence_age_seconds",
			Help:    "How old the legal file behind an answer with readings was when the answer left: the delay within which a revocation counts.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		points: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_gateway_query_points_total",
			Help: "Metering points answered in queries of many, by outcome: given, partly, withheld or problem.",
		}, []string{"outcome"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kluis_gateway_streams",
			Help: "Streams of readings under way.",
		}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_gateway_streams_ended_total",
			Help: "Streams of readings that ended, by reason: complete, client_gone, slow_reader, or the slug of a problem.",
		}, []string{"reason"}),
	}
	m.changesLag = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "kluis_gateway_changes_lag_seconds",
		Help: "How long ago all transactions had begun that have ended by now: what was stored since may not be told in the feed of changes yet. Up to a good minute as a rule; more when a transaction is stuck.",
	})
	var errs []error
	for _, c := range []prometheus.Collector{m.requests, m.durations, m.faults, m.evidence, m.age, m.changesLag, m.points, m.streams, m.ended} {
		errs = append(errs, reg.Register(c))
	}
	// From the start, so that an alert on an increase sees the first one.
	m.faults.WithLabelValues(faultOutside)
	m.faults.WithLabelValues(faultDamaged)
	for _, outcome := range []string{"given", "partly", "withheld", "problem"} {
		m.points.WithLabelValues(outcome)
	}
	m.ended.WithLabelValues("complete")
	m.evidence.WithLabelValues("supplier")
	m.evidence.WithLabelValues("legal_file")
	m.evidence.WithLabelValues("access_record")
	return m, errors.Join(errs...)
}

const (
	faultOutside = "outside_grant"
	faultDamaged = "damaged"
)

func (m *metrics) request(ev *event, status int, took time.Duration) {
	supplier := ""
	if !ev.supplier.IsZero() {
		supplier = ev.supplier.String()
	}
	m.requests.WithLabelValues(ev.route, strconv.Itoa(status), ev.problem, supplier).Inc()
	m.durations.WithLabelValues(ev.route).Observe(took.Seconds())
}
