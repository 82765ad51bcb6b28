// Package tracing sends spans to an OpenTelemetry collector (OTLP over gRPC),
// when one is configured: a request, its statements, its calls of
// cryptoservers, and what those have the HSM do. A span holds names, times and
// numbers; never a metering point, a token, a reading, an argument of a
// statement or the text of an error.
//
// Tracing never gets into the way of what it watches: spans are sent in the
// background from a bounded queue, and lost when the collector is away.
package tracing

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/XSAM/otelsql"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"

	"kluis/internal/config"
)

const (
	scope = "kluis"
	// sendTimeout bounds one batch of spans on its way to the collector.
	sendTimeout = 5 * time.Second
	// waiting is how many spans may wait to be sent; what comes on top is lost.
	waiting = 4096
)

// Traces is where a process's spans go. Nil traces nothing and costs nothing.
type Traces struct{ provider *sdktrace.TracerProvider }

// Configured sends spans as a process's configuration says; instance tells its
// like apart, and may be empty. It connects to nothing yet, and a collector that
// is away is no error.
func Configured(ctx context.Context, c config.Traces, service, instance, version string) (*Traces, error) {
	if c.Endpoint == "" {
		return nil, nil
	}
	transport := otlptracegrpc.WithInsecure() // to a loopback address: config has seen to it
	if c.TLS != nil {
		conf, err := config.ClientTLS(*c.TLS)
		if err != nil {
			return nil, fmt.Errorf("traces: %w", err)
		}
		transport = otlptracegrpc.WithTLSCredentials(credentials.NewTLS(conf))
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(c.Endpoint), otlptracegrpc.WithTimeout(sendTimeout), transport)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	about := []attribute.KeyValue{attribute.String("service.name", scope+"-"+service), attribute.String("service.version", version)}
	if instance != "" {
		about = append(about, attribute.String("service.instance.id", instance))
	}
	return &Traces{sdktrace.NewTracerProvider(
		sdktrace.WithResource(resource.NewSchemaless(about...)),
		sdktrace.WithSampler(sdktrace.ParentBased(beginning{sdktrace.TraceIDRatioBased(c.Share)})),
		sdktrace.WithBatcher(wordless{exporter}, sdktrace.WithMaxQueueSize(waiting), sdktrace.WithExportTimeout(sendTimeout)),
	)}, nil
}

// wordless leaves the texts of errors out, which may hold anything: whoever makes
// a span (package otelgrpc, at both ends of a call) may put them there.
type wordless struct{ sdktrace.SpanExporter }

func (w wordless) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	out := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, s := range spans {
		out[i] = wordlessSpan{s}
	}
	return w.SpanExporter.ExportSpans(ctx, out)
}

type wordlessSpan struct{ sdktrace.ReadOnlySpan }

// Status is without its description.
func (s wordlessSpan) Status() sdktrace.Status {
	return sdktrace.Status{Code: s.ReadOnlySpan.Status().Code}
}

// Events are without what exceptions say.
func (s wordlessSpan) Events() []sdktrace.Event {
	events := slices.Clone(s.ReadOnlySpan.Events())
	for i := range events {
		events[i].Attributes = slices.DeleteFunc(slices.Clone(events[i].Attributes), func(a attribute.KeyValue) bool {
			return a.Key == "exception.message" || a.Key == "exception.stacktrace"
		})
	}
	return events
}

// beginning begins traces with requests only, not with what a process does by
// itself: heartbeats, say.
type beginning struct{ sdktrace.Sampler }

func (b beginning) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	if p.Kind != trace.SpanKindServer {
		return sdktrace.SamplingResult{Decision: sdktrace.Drop}
	}
	return b.Sampler.ShouldSample(p)
}

// Close sends what waits, for at most a few seconds. That it could not be sent
// is no error: spans may be lost.
func (t *Traces) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), sendTimeout)
	defer cancel()
	_ = t.provider.Shutdown(ctx)
}

// Tracer begins traces; nil when there are none.
func (t *Traces) Tracer() trace.Tracer {
	if t == nil {
		return nil
	}
	return t.provider.Tracer(scope)
}

// DB opens a pool the statements of which are spans: named by their first word,
// with their text, which is constant, and without their arguments.
func (t *Traces) DB(c driver.Connector) *sql.DB {
	if t == nil {
		return sql.OpenDB(c)
	}
	return otelsql.OpenDB(c,
		otelsql.WithTracerProvider(t.provider),
		otelsql.WithAttributes(attribute.String("db.system.name", "postgresql")),
		otelsql.WithSpanNameFormatter(func(_ context.Context, _ otelsql.Method, query string) string {
			verb, _, _ := strings.Cut(strings.TrimSpace(query), " ")
			return strings.TrimSpace("postgresql " + verb)
		}),
		otelsql.WithSpanOptions(otelsql.SpanOptions{
			OmitConnResetSession: true, OmitConnPrepare: true, OmitConnectorConnect: true, OmitRows: true, DisableErrSkip: true,
			// A statement's error may quote what it was given.
			RecordError: func(error) bool { return false },
			SpanFilter: func(ctx context.Context, _ otelsql.Method, _ string, _ []driver.NamedValue) bool {
				return trace.SpanContextFromContext(ctx).IsValid() // what belongs to no request is no trace
			},
		}),
	)
}

// Client makes spans of gRPC calls, and hands the trace on; nil when there are
// none.
func (t *Traces) Client() stats.Handler {
	if t == nil {
		return nil
	}
	return otelgrpc.NewClientHandler(t.grpc()...)
}

// Server makes spans of gRPC calls that belong to a trace; nil when there are
// none.
func (t *Traces) Server() stats.Handler {
	if t == nil {
		return nil
	}
	return otelgrpc.NewServerHandler(t.grpc()...)
}

func (t *Traces) grpc() []otelgrpc.Option {
	return []otelgrpc.Option{otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithPropagators(propagation.TraceContext{})}
}

// Span begins a part of the trace in ctx; without one, nothing. The function
// returned ends it.
func Span(ctx context.Context, name string, attrs ...attribute.KeyValue) (context.Context, func(error)) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, func(error) {}
	}
	ctx, span := parent.TracerProvider().Tracer(scope).Start(ctx, name, trace.WithAttributes(attrs...))
	return ctx, func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, "") // its text may hold anything
		}
		span.End()
	}
}
