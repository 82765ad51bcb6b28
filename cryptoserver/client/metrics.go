package client

import (
	"context"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// metrics are the pool as its client sees it: a server that answers slowly, or
// not at all, cannot say so itself.
type metrics struct {
	calls     *prometheus.CounterVec
	attempts  *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
	failovers *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_pool_calls_total", Help: "Calls to the pool of cryptoservers by method and the gRPC code they ended with, whatever was tried.",
		}, []string{"method", "code"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_pool_attempts_total", Help: "Attempts by server (its address as connected; empty: no server was reached), method and gRPC code.",
		}, []string{"server", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kluis_pool_attempt_seconds", Help: "Duration of attempts by server and method.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"server", "method"}),
		failovers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_pool_failovers_total", Help: "Attempts that failed on a server after which the call went to another, by the server that was left.",
		}, []string{"server", "method"}),
	}
	for _, c := range []prometheus.Collector{m.calls, m.attempts, m.seconds, m.failovers} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	// Alarms need the zero: an increase counts from it.
	m.calls.WithLabelValues("Open", codes.Unavailable.String())
	return m, nil
}

// measured lets connections report to reg; nil: to nobody.
func measured(reg prometheus.Registerer) ([]grpc.DialOption, error) {
	if reg == nil {
		return nil, nil
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(m.unary), grpc.WithStatsHandler(m)}, nil
}

// call is one call; its attempts follow each other.
type call struct {
	mu   sync.Mutex
	left string // the server that the last attempt failed on
}

// attempt is one try of a call. The stages of it that are counted follow each
// other, on different goroutines perhaps: the call's lock guards it.
type attempt struct {
	call   *call
	method string
	server string
}

type (
	callKey    struct{}
	attemptKey struct{}
)

func methodOf(full string) string { return full[strings.LastIndexByte(full, '/')+1:] }

// unary counts calls. What does not pass here is not counted at all: health is
// watched over the same connections.
func (m *metrics) unary(ctx context.Context, full string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(context.WithValue(ctx, callKey{}, &call{}), full, req, reply, cc, opts...)
	m.calls.WithLabelValues(methodOf(full), status.Code(err).String()).Inc()
	return err
}

// TagRPC begins an attempt.
func (m *metrics) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return ctx
	}
	return context.WithValue(ctx, attemptKey{}, &attempt{call: c, method: methodOf(info.FullMethodName)})
}

// HandleRPC counts the stages of an attempt.
func (m *metrics) HandleRPC(ctx context.Context, s stats.RPCStats) {
	a, ok := ctx.Value(attemptKey{}).(*attempt)
	if !ok {
		return
	}
	a.call.mu.Lock()
	defer a.call.mu.Unlock()
	switch s := s.(type) {
	case *stats.OutHeader:
		if s.RemoteAddr != nil {
			a.server = s.RemoteAddr.String()
		}
		if left := a.call.left; left != "" && left != a.server {
			m.failovers.WithLabelValues(left, a.method).Inc()
		}
		a.call.left = ""
	case *stats.End:
		m.attempts.WithLabelValues(a.server, a.method, status.Code(s.Error).String()).Inc()
		if a.server != "" {
			m.seconds.WithLabelValues(a.server, a.method).Observe(s.EndTime.Sub(s.BeginTime).Seconds())
		}
		if s.Error != nil {
			a.call.left = a.server
		}
	}
}

// TagConn leaves connections alone.
func (m *metrics) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn counts nothing.
func (m *metrics) HandleConn(context.Context, stats.ConnStats) {}
