package web

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/internal/connlimit"
	"kluis/openapi/client/kluis"
)

// metrics say how the portal fares; nothing in them is anybody's.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	calls    *prometheus.HistogramVec
	tokens   *prometheus.CounterVec
	signIns  *prometheus.CounterVec
	closed   *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	buckets := []float64{.005, .01, .025, .05, .1, .2, .4, .8, 1.6, 3.2, 6.4, 12.8}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kluis_portal_requests_total", Help: "Requests, by route and status."}, []string{"route", "status"}),
		seconds:  prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "kluis_portal_request_seconds", Help: "How long pages took, calls included.", Buckets: buckets}, []string{"route"}),
		calls:    prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "kluis_portal_api_seconds", Help: "How long calls of the API took, tokens included, by outcome.", Buckets: buckets}, []string{"outcome"}),
		tokens:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kluis_portal_tokens_total", Help: "Access tokens asked of the issuer, by outcome."}, []string{"outcome"}),
		signIns:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kluis_portal_sign_ins_total", Help: "Employees who came back from the identity provider, by outcome."}, []string{"outcome"}),
		closed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kluis_portal_connections_closed_total",
			Help: "Connections closed because there were too many: idle (the longest idle one), handshake (the one longest in its handshake), refused (a new one, when employees use all), address (one of an address that has as many as it may)."}, []string{"why"}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.seconds, m.calls, m.tokens, m.signIns, m.closed} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	// From the start, so that an alert on an increase sees the first one.
	for _, why := range []string{connlimit.Idle, connlimit.Handshake, connlimit.Refused, closedAddress} {
		m.closed.WithLabelValues(why)
	}
	return m, nil
}

// closedAddress: connections closed, of an address that has as many as it may.
const closedAddress = "address"

func (m *metrics) request(route string, status int, took time.Duration) {
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(route).Observe(took.Seconds())
}

func (m *metrics) api(res *http.Response, err error, took time.Duration) {
	outcome := "none"
	if err == nil {
		outcome = strconv.Itoa(res.StatusCode/100) + "xx"
	}
	m.calls.WithLabelValues(outcome).Observe(took.Seconds())
}

func (m *metrics) token(err error) {
	var refused *kluis.TokenError
	switch {
	case err == nil:
		m.tokens.WithLabelValues("given").Inc()
	case errors.As(err, &refused) && refused.Status < 500:
		m.tokens.WithLabelValues("refused").Inc()
	default:
		m.tokens.WithLabelValues("failed").Inc()
	}
}
