package server

import (
	"context"
	"log/slog"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"kluis/meter"
)

// event is what one request leaves in the log and the metrics. It never holds
// a metering point, a token or a reading: the access log has the whole story,
// under the same interaction id.
type event struct {
	interaction uuid.UUID
	request     uuid.UUID // the client's own id; nil: none
	route       string    // pattern of the route, or "none"
	supplier    meter.GLN
	problem     string
	cause       error
	gone        bool
	evidence    time.Time // when the facts that decided were read
	points      int       // metering points given of many, and
	values      int       // known values
}

type eventKey struct{}

// eventOf is the event of the request that runs under ctx.
func eventOf(ctx context.Context) *event {
	ev, ok := ctx.Value(eventKey{}).(*event)
	if !ok {
		panic("server: handler outside of the observe middleware")
	}
	return ev
}

func (e *event) fail(f *failure) {
	e.problem, e.cause = f.kind.slug, f.cause
	if len(f.params) > 0 && e.cause == nil {
		e.cause = pointers(f.params)
	}
}

func (e *event) clientGone(cause error) { e.gone, e.cause = true, cause }

// statusWriter remembers the status sent.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController through.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// observe is the outermost middleware: it gives the request its interaction
// id and the headers every answer has, turns a panic into internal-error, and
// writes one line of log.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		id, err := uuid.NewV7()
		if err != nil { // the system has no randomness left
			http.Error(w, "internal error", http.StatusInternalServerError)
			s.log.Error("no interaction id", "error", err)
			return
		}
		ev := &event{interaction: id, route: "none"}
		sw := &statusWriter{ResponseWriter: w}
		r = r.WithContext(context.WithValue(r.Context(), eventKey{}, ev))

		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Interaction-Id", id.String())
		if theirs, ok := requestID(r.Header); ok {
			ev.request = theirs
			h.Set("X-Request-Id", theirs.String())
		}

		defer func() {
			if p := recover(); p != nil {
				// The value may hold anything of the request: only where it
				// happened is logged.
				s.log.Error("panic", "interactionId", id.String(), "stack", stack())
				if sw.status == 0 {
					s.writeFailure(sw, r, fail(internalError, nil))
				}
				ev.problem = internalError.slug
			}
			gone := ev.gone && sw.status == 0
			if gone {
				sw.status = statusClientGone
			}
			s.finish(r, ev, sw.status, time.Since(start))
			if gone {
				// Who closed only its own side still reads: it must not take
				// an empty 200 for an answer.
				panic(http.ErrAbortHandler)
			}
		}()
		next.ServeHTTP(sw, r)
	})
}

// stack says where a panic happened, called from the function that recovers
// it: functions and lines only. A stack as the runtime prints it shows the
// words of arguments, a metering point among them.
func stack() string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)]) // from runtime.gopanic on
	var b strings.Builder
	for {
		f, more := frames.Next()
		b.WriteString(f.Function + " " + f.File + ":" + strconv.Itoa(f.Line) + "\n")
		if !more {
			return b.String()
		}
	}
}

func (s *Server) finish(r *http.Request, ev *event, status int, took time.Duration) {
	s.metrics.request(ev, status, took)
	level := slog.LevelInfo
	switch {
	case status >= http.StatusInternalServerError:
		level = slog.LevelError
	case ev.problem != "":
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{
		slog.String("interactionId", ev.interaction.String()),
		slog.String("method", knownMethod(r.Method)),
		slog.String("route", ev.route),
		slog.Int("status", status),
		slog.Duration("duration", took),
	}
	if ev.request != uuid.Nil {
		attrs = append(attrs, slog.String("requestId", ev.request.String()))
	}
	if !ev.supplier.IsZero() {
		attrs = append(attrs, slog.String("supplier", ev.supplier.String()))
	}
	if ev.points > 0 {
		attrs = append(attrs, slog.Int("points", ev.points), slog.Int("values", ev.values))
	}
	if ev.problem != "" {
		attrs = append(attrs, slog.String("problem", ev.problem))
	}
	if ev.cause != nil {
		attrs = append(attrs, slog.String("cause", ev.cause.Error()))
	}
	s.log.LogAttrs(context.WithoutCancel(r.Context()), level, "request", attrs...)
}

// knownMethod keeps callers from choosing what the log and metrics hold.
func knownMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}
