package e2e

import (
	"encoding/hex"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"kluis/cryptoserver/client"
	"kluis/internal/config"
	"kluis/internal/testing/otlptest"
	"kluis/internal/tracing"
)

// A request is one trace, from the gateway over its statements and its call of a
// cryptoserver to the HSM, and nothing in it is anybody's data. What a client
// says of a trace of its own is not heard.
func TestTraces(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	col := otlptest.New(t, nil)
	dir := tempUnder(t, w.dir)
	crypto := w.oneMoreCryptoserver(t, dir, func(c *config.Cryptoserver) {
		c.ID, c.Traces = "cryptoserver-traced", config.Traces{Endpoint: col.Endpoint}
	})
	g := sure(config.Load[config.Gateway](filepath.Join(w.state, "gateway.yaml")))
	g.Listen, g.MetricsListen = "127.0.0.1:0", "127.0.0.1:0"
	g.Cryptoservers.Addresses = []string{crypto["address"]}
	g.Traces = config.Traces{Endpoint: col.Endpoint, Share: 1}
	file := filepath.Join(dir, "gateway.yaml")
	if err := config.Write(file, g); err != nil {
		t.Fatal(err)
	}
	_, said := w.startProgram(t, dir, "gateway", nil, "gateway", "--config", file)
	c := w.supplier(t, 0).at(t, "https://"+said["address"])
	mine := w.point(t, func(p readyPoint) bool { return supplies(p, c.clientID) && len(p.Access) > 0 })
	i := slices.IndexFunc(mine.Access, func(a readyAccess) bool { return a.Supplier == c.clientID })
	may := mine.Access[i]

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.gateway+readingsPath(mine.EAN, may.From, may.To, may.Purpose), nil)
	if err != nil {
		t.Fatal(err)
	}
	const foreign = "4bf92f3577b34da6a3ce929d0e0e4736"
	req.Header.Set("Authorization", "Bearer "+c.accessToken(t))
	req.Header.Set("Traceparent", "00-"+foreign+"-00f067aa0ba902b7-01")
	res, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	a, err := readAnswer(res)
	if err != nil || a.status != http.StatusOK {
		t.Fatalf("%d %v: %s", a.status, err, a.body)
	}
	id := a.header.Get("X-Interaction-Id")

	var whole []otlptest.Span
	col.Await(t, "the whole trace of a request", func(spans []otlptest.Span) bool {
		root := slices.IndexFunc(spans, func(s otlptest.Span) bool { return s.Attr("kluis.interaction_id") == id })
		if root < 0 {
			return false
		}
		whole = slices.DeleteFunc(slices.Clone(spans), func(s otlptest.Span) bool {
			return string(s.TraceId) != string(spans[root].TraceId)
		})
		return slices.ContainsFunc(whole, func(s otlptest.Span) bool { return s.Name == "hsm open" })
	})
	byID := map[string]otlptest.Span{}
	for _, s := range whole {
		byID[string(s.SpanId)] = s
	}
	// From the HSM up to the request.
	var way []string
	at := whole[slices.IndexFunc(whole, func(s otlptest.Span) bool { return s.Name == "hsm open" })]
	for {
		way = append(way, at.Service+": "+at.Name)
		if len(at.ParentSpanId) == 0 {
			break
		}
		var known bool
		if at, known = byID[string(at.ParentSpanId)]; !known {
			t.Fatalf("after %q the parent is missing", way)
		}
	}
	want := []string{
		"kluis-cryptoserver: hsm open",
		"kluis-cryptoserver: kluis.cryptoserver.v1.Cryptoserver/Open",
		"kluis-gateway: kluis.cryptoserver.v1.Cryptoserver/Open",
		"kluis-gateway: GET /v1/metering-points/{ean}/readings",
	}
	if !slices.Equal(way, want) {
		t.Errorf("from the HSM to the request\n%s\nwant\n%s", strings.Join(way, "\n"), strings.Join(want, "\n"))
	}
	if hex.EncodeToString(at.TraceId) == foreign {
		t.Error("the client chose the trace")
	}
	for _, statement := range []string{"postgresql SELECT", "postgresql INSERT"} {
		if !slices.ContainsFunc(whole, func(s otlptest.Span) bool {
			return s.Name == statement && string(s.ParentSpanId) == string(at.SpanId)
		}) {
			t.Errorf("the request has no span %s", statement)
		}
	}
	w.refusedOpen(t, col, crypto["address"])
	sent := col.Sent()
	if strings.Contains(sent, mine.EAN) {
		t.Error("a metering point was sent to the collector")
	}
	if err := w.secrets.search([]byte(sent)); err != nil {
		t.Errorf("sent to the collector: %v", err)
	}
}

// refusedOpen makes a call that the cryptoserver refuses, in a trace: both ends
// tell the collector that, and not why.
func (w *world) refusedOpen(t *testing.T, col *otlptest.Collector, address string) {
	t.Helper()
	traces := sure(tracing.Configured(t.Context(), config.Traces{Endpoint: col.Endpoint, Share: 1}, "gateway", "", "test"))
	pki := filepath.Join(w.state, "pki")
	conf := sure(config.ClientTLS(config.TLS{CertificateFile: filepath.Join(pki, "gateway.crt"), KeyFile: filepath.Join(pki, "gateway.key"), CAFile: w.ready.CAFile}))
	pool := sure(client.New(client.Config{Addresses: []string{address}, TLS: conf, Traces: traces.Client()}))
	defer pool.Close()
	ctx, span := traces.Tracer().Start(t.Context(), "refused", trace.WithSpanKind(trace.SpanKindServer))
	_, err := pool.Open(ctx, client.OpenRequest{
		AccessToken: "nonsense", SupplierRecord: []byte("nonsense"), Profile: w.profile(t).Digest(), Units: []client.Unit{{LegalFile: []byte("nonsense")}},
	})
	if !refusedByCryptoserver(err) {
		t.Fatalf("nonsense is answered with %v", err)
	}
	span.End()
	traces.Close()
	id := span.SpanContext().TraceID()
	ends := map[string]bool{}
	col.Await(t, "both ends of a refused call", func(spans []otlptest.Span) bool {
		for _, s := range spans {
			if string(s.TraceId) == string(id[:]) && strings.HasSuffix(s.Name, "/Open") {
				ends[s.Service] = true
				if s.Status.GetMessage() != "" {
					t.Errorf("%s says why: %s", s.Service, s.Status)
				}
			}
		}
		return len(ends) == 2
	})
}
