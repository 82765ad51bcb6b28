package tracing_test

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"kluis/internal/config"
	"kluis/internal/devpki"
	"kluis/internal/testing/otlptest"
	"kluis/internal/tracing"
)

func start(t *testing.T, c config.Traces) *tracing.Traces {
	t.Helper()
	traces, err := tracing.Configured(t.Context(), c, "gateway", "", "test")
	if err != nil {
		t.Fatal(err)
	}
	return traces
}

func TestNotConfigured(t *testing.T) {
	t.Parallel()
	traces := start(t, config.Traces{})
	if traces != nil || traces.Tracer() != nil || traces.Client() != nil || traces.Server() != nil {
		t.Error("something is traced")
	}
	db := traces.DB(connector{})
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "DO", 1); !errors.Is(err, errQuoting) {
		t.Errorf("a statement: %v", err)
	}
	ctx, end := tracing.Span(t.Context(), "part")
	if trace.SpanContextFromContext(ctx).IsValid() {
		t.Error("a span of no trace")
	}
	end(nil)
	traces.Close()
}

// A statement's arguments, and an error that quotes them, stay out of the spans.
func TestSpansHoldNoValues(t *testing.T) {
	t.Parallel()
	col := otlptest.New(t, nil)
	traces := start(t, config.Traces{Endpoint: col.Endpoint, Share: 1})
	ctx, span := traces.Tracer().Start(t.Context(), "request", trace.WithSpanKind(trace.SpanKindServer))
	db := traces.DB(connector{})
	defer db.Close()
	if _, err := db.ExecContext(ctx, "INSERT INTO x VALUES ($1)", argument); !errors.Is(err, errQuoting) {
		t.Errorf("a statement: %v", err)
	}
	_, end := tracing.Span(ctx, "part")
	end(errQuoting)
	span.RecordError(errQuoting, trace.WithStackTrace(true))
	span.SetStatus(codes.Error, errQuoting.Error())
	span.End()
	traces.Close()
	names := []string{}
	for _, s := range col.Spans() {
		names = append(names, s.Name)
		if string(s.TraceId) == "" || s.Name != "request" && len(s.ParentSpanId) == 0 {
			t.Errorf("%s does not belong to the request", s.Name)
		}
	}
	slices.Sort(names)
	if got := strings.Join(names, ", "); got != "part, postgresql INSERT, request" {
		t.Errorf("spans: %s", got)
	}
	if strings.Contains(col.Sent(), argument) || !strings.Contains(col.Sent(), "exception.type") {
		t.Errorf("the argument was sent, or not that there was an error:\n%s", col.Sent())
	}
}

// What a server says of a call that it refuses stays out of the spans at both
// ends; that it refused, and by which code, does not.
func TestRefusedCalls(t *testing.T) {
	t.Parallel()
	col := otlptest.New(t, nil)
	traces := start(t, config.Traces{Endpoint: col.Endpoint, Share: 1})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.StatsHandler(traces.Server()), grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		return status.Error(grpccodes.PermissionDenied, errQuoting.Error())
	}))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStatsHandler(traces.Client()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := traces.Tracer().Start(t.Context(), "request", trace.WithSpanKind(trace.SpanKindServer))
	if err := conn.Invoke(ctx, "/kluis/Open", &emptypb.Empty{}, &emptypb.Empty{}); !strings.Contains(fmt.Sprint(err), argument) {
		t.Errorf("refused with %v", err)
	}
	span.End()
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	server.GracefulStop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	traces.Close()
	calls := 0
	for _, s := range col.Spans() {
		if s.Name == "kluis/Open" {
			if calls++; s.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR && s.Kind == tracepb.Span_SPAN_KIND_CLIENT || s.Status.GetMessage() != "" {
				t.Errorf("%s: %v", s.Kind, s.Status)
			}
		}
	}
	if sent := col.Sent(); calls != 2 || strings.Contains(sent, argument) || !strings.Contains(sent, "PERMISSION_DENIED") {
		t.Errorf("%d calls, sent:\n%s", calls, sent)
	}
}

// What belongs to no request begins no trace, nor does a request that is not in
// the share.
func TestWhatIsNotTraced(t *testing.T) {
	t.Parallel()
	col := otlptest.New(t, nil)
	traces := start(t, config.Traces{Endpoint: col.Endpoint, Share: 1})
	_, span := traces.Tracer().Start(t.Context(), "heartbeat", trace.WithSpanKind(trace.SpanKindClient))
	span.End()
	db := traces.DB(connector{})
	defer db.Close()
	_, _ = db.ExecContext(t.Context(), "INSERT")
	traces.Close()
	none := start(t, config.Traces{Endpoint: col.Endpoint}) // a cryptoserver's
	ctx, span := none.Tracer().Start(t.Context(), "request", trace.WithSpanKind(trace.SpanKindServer))
	_, end := tracing.Span(ctx, "part")
	end(nil)
	span.End()
	none.Close()
	if got := col.Spans(); len(got) > 0 {
		t.Errorf("%d spans, the first %s", len(got), got[0].Name)
	}
}

func TestOverTLS(t *testing.T) {
	t.Parallel()
	ca, stranger := newCA(t), newCA(t)
	dir := t.TempDir()
	serve := func(by *devpki.CA) *otlptest.Collector {
		cert, err := by.Issue(devpki.Leaf{CommonName: "collector", Hosts: []string{"127.0.0.1"}})
		if err != nil {
			t.Fatal(err)
		}
		return otlptest.New(t, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool()})
	}
	cert, key, err := ca.IssueFiles(dir, "gateway", devpki.Leaf{CommonName: "gateway"})
	if err != nil {
		t.Fatal(err)
	}
	peers := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(peers, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	identity := &config.TLS{CertificateFile: cert, KeyFile: key, CAFile: peers}
	for name, tc := range map[string]struct {
		by   *devpki.CA
		want int
	}{"of the operator's CA": {ca, 1}, "of another": {stranger, 0}} {
		col := serve(tc.by)
		traces := start(t, config.Traces{Endpoint: col.Endpoint, TLS: identity, Share: 1})
		_, span := traces.Tracer().Start(t.Context(), "request", trace.WithSpanKind(trace.SpanKindServer))
		span.End()
		traces.Close()
		if got := len(col.Spans()); got != tc.want {
			t.Errorf("a collector %s: %d spans, want %d", name, got, tc.want)
		}
	}
	identity.KeyFile = filepath.Join(dir, "none")
	if _, err := tracing.Configured(t.Context(), config.Traces{Endpoint: "127.0.0.1:1", TLS: identity, Share: 1}, "gateway", "", "test"); err == nil {
		t.Error("a key that is not there is no error")
	}
}

func newCA(t *testing.T) *devpki.CA {
	t.Helper()
	ca, err := devpki.NewCA("operator")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

const argument = "871687140000000016"

// errQuoting is what PostgreSQL answers to a value of another type.
var errQuoting = errors.New(`invalid input syntax: "` + argument + `"`)

// connector is a database that refuses every statement, quoting its argument.
type connector struct{}

func (connector) Connect(context.Context) (driver.Conn, error) { return conn{}, nil }
func (connector) Driver() driver.Driver                        { return nil }

type conn struct{}

func (conn) Prepare(string) (driver.Stmt, error) { return nil, errQuoting }
func (conn) Close() error                        { return nil }
func (conn) Begin() (driver.Tx, error)           { return nil, errQuoting }
func (conn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return nil, errQuoting
}
