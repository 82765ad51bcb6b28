package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"kluis/cryptoserver/cryptopb"
	"kluis/internal/devpki"
)

// refuser answers Open with a code, and says that it is well.
type refuser struct {
	cryptopb.UnimplementedCryptoserverServer
	code codes.Code
}

func (r refuser) Open(context.Context, *cryptopb.OpenRequest) (*cryptopb.OpenResponse, error) {
	return &cryptopb.OpenResponse{}, status.Error(r.code, "injected")
}

func serveStub(t *testing.T, ca *devpki.CA, code codes.Code) string {
	t.Helper()
	cert, err := ca.Issue(devpki.Leaf{CommonName: "cryptoserver-1", Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool(),
	})))
	cryptopb.RegisterCryptoserverServer(g, refuser{code: code})
	h := health.NewServer()
	h.SetServingStatus("open", healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(g, h)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// series are all counters of reg, and the number of observations of its
// histograms, by name and labels.
func series(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			out[fmt.Sprint(f.GetName(), labels)] = m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return out
}

// TestMetrics: the server that fails is named by every attempt and by every
// call that left it, and the watching of health counts nowhere.
func TestMetrics(t *testing.T) {
	t.Parallel()
	ca, err := devpki.NewCA("operator")
	if err != nil {
		t.Fatal(err)
	}
	good, bad := serveStub(t, ca, codes.OK), serveStub(t, ca, codes.Unavailable)
	cert, err := ca.Issue(devpki.Leaf{CommonName: "gateway"})
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: ca.Pool()}
	dial := func(reg prometheus.Registerer, addresses ...string) *Client {
		c, err := New(Config{Addresses: addresses, TLS: conf, Registerer: reg})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}

	reg := prometheus.NewRegistry()
	c := dial(reg, good, bad)
	const calls = 40
	for range calls {
		if _, err := c.open.Open(t.Context(), &cryptopb.OpenRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	got := series(t, reg)
	left := got[fmt.Sprintf("kluis_pool_failovers_total[Open %s]", bad)]
	if left == 0 || left > got[fmt.Sprintf("kluis_pool_attempts_total[Unavailable Open %s]", bad)] {
		t.Errorf("%v times the failing server was left: %v", left, got)
	}
	for name, want := range map[string]float64{
		"kluis_pool_calls_total[OK Open]":                                   calls,
		"kluis_pool_calls_total[Unavailable Open]":                          0,
		fmt.Sprintf("kluis_pool_attempts_total[OK Open %s]", good):          calls,
		fmt.Sprintf("kluis_pool_attempt_seconds[Open %s]", good):            calls,
		fmt.Sprintf("kluis_pool_failovers_total[Open %s]", good):            0,
		fmt.Sprintf("kluis_pool_attempts_total[Unavailable Open %s]", good): 0,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, not %v", name, got[name], want)
		}
	}
	for name := range got {
		if !strings.Contains(name, "Open") {
			t.Errorf("also counted: %s", name)
		}
	}

	// All fail: no server is left for another when there is only one.
	reg = prometheus.NewRegistry()
	c = dial(reg, bad)
	if _, err := c.open.Open(t.Context(), &cryptopb.OpenRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("%v", err)
	}
	got = series(t, reg)
	if got["kluis_pool_calls_total[Unavailable Open]"] != 1 || got[fmt.Sprintf("kluis_pool_attempts_total[Unavailable Open %s]", bad)] < 2 ||
		got[fmt.Sprintf("kluis_pool_failovers_total[Open %s]", bad)] != 0 {
		t.Errorf("%v", got)
	}

	// Metrics of one name are of one pool.
	if _, err := New(Config{Addresses: []string{good}, TLS: conf, Registerer: reg}); err == nil {
		t.Error("two pools report to one registry")
	}
}
