package server

import (
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// trace makes each request a trace of its own, of which the share that is
// configured is kept. What the client says of its own traces is not heard: it
// could have everything traced, or tie its requests to others'.
func (s *Server) trace(next http.Handler) http.Handler {
	if s.tracer == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ev := eventOf(r.Context())
		ctx, span := s.tracer.Start(r.Context(), "request", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer))
		if !span.IsRecording() {
			next.ServeHTTP(w, r.WithContext(ctx))
			return
		}
		sw := &statusWriter{ResponseWriter: w}
		defer func() { // also when the handler panics
			method := knownMethod(r.Method)
			span.SetName(method + " " + ev.route)
			span.SetAttributes(
				attribute.String("http.request.method", method),
				attribute.String("http.route", ev.route),
				attribute.Int("http.response.status_code", sw.status),
				attribute.String("kluis.interaction_id", ev.interaction.String()),
			)
			if !ev.supplier.IsZero() {
				span.SetAttributes(attribute.String("kluis.supplier", ev.supplier.String()))
			}
			if ev.problem != "" {
				span.SetAttributes(attribute.String("kluis.problem", ev.problem))
			}
			if sw.status >= http.StatusInternalServerError {
				span.SetStatus(otelcodes.Error, ev.problem)
			}
			span.End()
		}()
		next.ServeHTTP(sw, r.WithContext(ctx))
	})
}
