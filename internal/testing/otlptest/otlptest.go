// Package otlptest is an OpenTelemetry collector for tests: it takes spans in by
// OTLP over gRPC, as any collector does, and keeps them.
package otlptest

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protojson"
)

// Collector has what was sent to it.
type Collector struct {
	Endpoint string // host:port

	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []Span
	sent  string
	came  chan struct{}
}

// Span is one span, and whose it is.
type Span struct {
	*tracepb.Span
	Service string
}

// Attr is a string attribute of the span; "" when it has none.
func (s Span) Attr(key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

// New starts a collector; conf nil: in the clear.
func New(t testing.TB, conf *tls.Config) *Collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var options []grpc.ServerOption
	if conf != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(conf)))
	}
	g := grpc.NewServer(options...)
	c := &Collector{Endpoint: l.Addr().String(), came: make(chan struct{}, 1)}
	collector.RegisterTraceServiceServer(g, c)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c
}

// Export takes spans in.
func (c *Collector) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.ResourceSpans {
		service := ""
		for _, a := range rs.Resource.GetAttributes() {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				c.spans = append(c.spans, Span{s, service})
			}
		}
	}
	c.sent += protojson.Format(r)
	select {
	case c.came <- struct{}{}:
	default:
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// Sent is all that came in, as text, to be searched for what may not be in it.
func (c *Collector) Sent() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent
}

// Spans are those that came in so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}

// Await waits until the spans that came in satisfy what is wanted.
func (c *Collector) Await(t testing.TB, what string, want func([]Span) bool) []Span {
	t.Helper()
	late := time.After(time.Minute)
	for {
		if spans := c.Spans(); want(spans) {
			return spans
		}
		select {
		case <-c.came:
		case <-late:
			for _, s := range c.Spans() {
				t.Logf("%s: %s", s.Service, s.Name)
			}
			t.Fatalf("the collector did not get %s", what)
		}
	}
}
