package hsm

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of all tokens of a process. Labels name tokens, never keys.
type metrics struct {
	operations *prometheus.CounterVec
	failures   *prometheus.CounterVec
	seconds    *prometheus.HistogramVec
	canaries   *prometheus.CounterVec
	damaged    *prometheus.CounterVec
	openings   *prometheus.CounterVec
	sessions   *prometheus.CounterVec
	stuck      *prometheus.GaugeVec
	queue      *prometheus.GaugeVec
	state      *prometheus.GaugeVec
	latched    *prometheus.GaugeVec
	limit      *prometheus.GaugeVec
	failovers  *prometheus.CounterVec
	renewals   *prometheus.CounterVec // of the module, not of a token
	reg        prometheus.Registerer
}

// newMetrics registers with reg, which may be nil.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kluis_hsm_" + name, Help: help}, append([]string{"token"}, labels...))
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kluis_hsm_" + name, Help: help}, append([]string{"token"}, labels...))
	}
	m := &metrics{
		operations: counter("operations_total", "Operations done, by kind: open and seal count blocks, mac messages, mint keys, random bytes, sign signatures, rewrap keys, check canaries, forget calls.", "kind"),
		failures:   counter("failures_total", "Batches that failed as a whole, by kind and reason: busy (queue full), down (token unavailable), left (the caller's deadline), refused (not a batch).", "kind", "reason"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kluis_hsm_batch_seconds", Help: "Time of a batch from queueing to answer, by kind.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 13),
		}, []string{"token", "kind"}),
		canaries:  counter("canaries_total", "Known vectors computed, by result: passed, failed.", "result"),
		damaged:   counter("damaged_items_total", "Items that do not open although the token is well: stored data is damaged or was tampered with."),
		openings:  counter("reopenings_total", "Connections opened anew, by result: opened, failed.", "result"),
		sessions:  counter("sessions_replaced_total", "Worker sessions replaced on a connection that stayed."),
		stuck:     gauge("stuck_workers", "Calls into the module given up since the process started, each with its session left behind."),
		queue:     gauge("queue_length", "Batches waiting now."),
		state:     gauge("token_state", "1 for the state the token is in: up, suspect, down, probing.", "state"),
		latched:   gauge("token_latched", "1 while the token is down until an operator acts: another login might lock it."),
		failovers: counter("failovers_total", "Batches that went on to another token of the role, by the token that could not serve them."),
		limit:     gauge("key_handles_limit", "Unwrapped data keys that the token's cache holds at most; batches at work may hold more for a moment."),
		renewals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kluis_hsm_renewals_total",
			Help: "Times the module was to be ended for the memory it keeps, by result: done, hindered (a token was still in use, or a call is stuck)."}, []string{"result"}),
		reg: reg,
	}
	for _, result := range []string{renewalDone, renewalHindered} {
		m.renewals.WithLabelValues(result)
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.operations, m.failures, m.seconds, m.canaries, m.damaged, m.openings, m.sessions, m.stuck, m.queue, m.state, m.latched, m.limit, m.failovers, m.renewals} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

const (
	renewalDone     = "done"
	renewalHindered = "hindered"
)

func (m *metrics) renewed(ended bool) {
	result := renewalHindered
	if ended {
		result = renewalDone
	}
	m.renewals.WithLabelValues(result).Inc()
}

// tokenMetrics are those of one token.
type tokenMetrics struct {
	all     *metrics
	label   string
	handles *atomic.Int64 // data keys that live on the token
	uses    *uses
	watch   func(State) // told of every change; nil but in tests
}

func (m *metrics) of(label string) (*tokenMetrics, error) {
	t := &tokenMetrics{all: m, label: label, handles: new(atomic.Int64), uses: newUses()}
	t.state(StateUp)
	m.stuck.WithLabelValues(label).Set(0)
	m.queue.WithLabelValues(label).Set(0)
	m.latched.WithLabelValues(label).Set(0)
	// Alarms need the zero: an increase counts from it.
	m.damaged.WithLabelValues(label)
	m.sessions.WithLabelValues(label)
	m.failovers.WithLabelValues(label)
	for _, result := range []string{"passed", "failed"} {
		m.canaries.WithLabelValues(label, result)
	}
	for _, result := range []string{"opened", "failed"} {
		m.openings.WithLabelValues(label, result)
	}
	for _, reason := range []string{"busy", "down", "left", "refused"} {
		m.failures.WithLabelValues(label, "check", reason)
	}
	if m.reg == nil {
		return t, nil
	}
	return t, m.reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kluis_hsm_key_handles", Help: "Unwrapped data keys that live on the token now.",
		ConstLabels: prometheus.Labels{"token": label},
	}, func() float64 { return float64(t.handles.Load()) }))
}

func (t *tokenMetrics) state(now State) {
	for _, s := range states() {
		v := 0.0
		if s == now {
			v = 1
		}
		t.all.state.WithLabelValues(t.label, s.String()).Set(v)
	}
	if t.watch != nil {
		t.watch(now)
	}
}

// latch says that the token stays down; only another process takes that back.
func (t *tokenMetrics) latch() { t.all.latched.WithLabelValues(t.label).Set(1) }

func (t *tokenMetrics) limit(keys int) { t.all.limit.WithLabelValues(t.label).Set(float64(keys)) }

func (t *tokenMetrics) queue(n int) { t.all.queue.WithLabelValues(t.label).Set(float64(n)) }

func (t *tokenMetrics) done(kind string, operations int, took time.Duration) {
	t.all.operations.WithLabelValues(t.label, kind).Add(float64(operations))
	t.all.seconds.WithLabelValues(t.label, kind).Observe(took.Seconds())
}

func (t *tokenMetrics) failed(kind, reason string) {
	t.all.failures.WithLabelValues(t.label, kind, reason).Inc()
}

func (t *tokenMetrics) canary(err error) {
	switch {
	case err == nil:
		t.all.canaries.WithLabelValues(t.label, "passed").Inc()
	case !errors.Is(err, errAbandoned):
		t.all.canaries.WithLabelValues(t.label, "failed").Inc()
	}
}

func (t *tokenMetrics) damaged(n int) { t.all.damaged.WithLabelValues(t.label).Add(float64(n)) }

func (t *tokenMetrics) reopened(err error) {
	result := "opened"
	if err != nil {
		result = "failed"
	}
	t.all.openings.WithLabelValues(t.label, result).Inc()
}

func (t *tokenMetrics) replaced() { t.all.sessions.WithLabelValues(t.label).Inc() }

func (t *tokenMetrics) failover() { t.all.failovers.WithLabelValues(t.label).Inc() }

func (t *tokenMetrics) stuck() { t.all.stuck.WithLabelValues(t.label).Inc() }
