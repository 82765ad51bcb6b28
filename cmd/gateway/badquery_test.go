package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kluis/authz"
)

// endless is a body of so many bytes.
type endless struct {
	n    int64
	sent *atomic.Int64
}

func (e *endless) Read(b []byte) (int, error) {
	if e.n == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), e.n))
	for i := range b[:n] {
		b[i] = ' '
	}
	e.n -= int64(n)
	e.sent.Add(int64(n))
	return n, nil
}

// Everything that is wrong with a query is answered, and costs nothing at the
// back ends.
func TestBadQueries(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	good := string(encoded(w.asks(nil)))
	list := func(entries ...string) string {
		return string(encoded(w.asks(asking{"meteringPoints": entries})))
	}
	var many []string
	for i := range 100_001 {
		many = append(many, w.ean(i).String())
	}
	type header = map[string]string
	for name, c := range map[string]struct {
		body   string
		header header
		status int
		want   string
	}{
		"100001 entries":       {list(many...), nil, 400, "/body/meteringPoints"},
		"twice":                {list(e.String(), w.ean(2).String(), e.String()), nil, 400, "/body/meteringPoints/2"},
		"bad check digit":      {list(e.String(), "871687140000000010"), nil, 400, "/body/meteringPoints/1"},
		"no list":              {list(), nil, 400, "/body/meteringPoints"},
		"empty":                {"", nil, 400, "/body"},
		"deep":                 {strings.Repeat("[", 100_000), nil, 400, "/body"},
		"deep inside":          {`{"x":` + strings.Repeat(`{"x":`, 100_000), nil, 400, "/body"},
		"no JSON":              {"from=2026-01-01", nil, 400, "/body"},
		"nothing":              {"{}", nil, 400, "/body/from"},
		"too many days":        {string(encoded(w.asks(asking{"from": "2024-01-01"}))), nil, 400, "/body/to"},
		"a query parameter":    {good, header{"path": "/v1/readings/query?limit=10"}, 400, "/query"},
		"a token in the query": {good, header{"path": "/v1/readings/query?access_token=x"}, 400, "/query/access_token"},
		"other media type":     {good, header{"Content-Type": "text/json"}, 415, ""},
		"no media type":        {good, header{"Content-Type": ""}, 415, ""},
		"a form":               {good, header{"Content-Type": "application/x-www-form-urlencoded"}, 415, ""},
		"other letters":        {good, header{"Content-Type": "application/json; charset=utf-16"}, 415, ""},
		"a coding":             {good, header{"Content-Encoding": "gzip"}, 415, ""},
		"nothing acceptable":   {good, header{"Accept": "text/html"}, 406, ""},
		"ruled out":            {good, header{"Accept": "application/x-ndjson;q=0"}, 406, ""},
		"faults come first":    {"{}", header{"Accept": "text/html"}, 400, "/body/from"},
		"no token":             {good, header{"Authorization": ""}, 401, ""},
		"GET":                  {"", header{"method": "GET"}, 405, ""},
		"2.5 MB and one":       {strings.Repeat(" ", 2_500_001), nil, 413, ""},
	} {
		for _, chunked := range []bool{false, true} {
			r := w.bad(c.body, c.header, chunked)
			if r.status != c.status || r.problem(t) == "" || !strings.Contains(string(r.body), `"`+c.want) || len(r.body) > 4000 {
				t.Errorf("%s, chunked %v: %d %s", name, chunked, r.status, r.body)
			}
			if c.body == "" {
				break
			}
		}
	}
	// What is sent is whole, and too much.
	if r := w.bad(strings.Repeat(" ", 2_500_000-len(good))+good, nil, false); r.status != 200 {
		t.Errorf("2.5 MB: %d %s", r.status, r.body)
	}
	if n := w.batches.counted("opens"); n > 1 {
		t.Errorf("%d calls to cryptoservers", n)
	}
	if rec := w.records(); len(rec) > 1 {
		t.Errorf("%d records", len(rec))
	}
	// An employee asks of one customer at a time.
	staff := w.staffToken("agent-1", authz.Agent, authz.Errand{Kind: authz.ErrandView, EAN: e, Reason: "call"})
	resp := w.send(&supplier{cert: portal(), raw: staff, client: w.http(portal())}, "application/x-ndjson", strings.NewReader(good), nil)
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("an employee: %d", resp.StatusCode)
	}
}

// bad sends what a client should not.
func (w *world) bad(body string, header map[string]string, chunked bool) reply {
	w.t.Helper()
	method, path := http.MethodPost, "/v1/readings/query"
	if header["method"] != "" {
		method = header["method"]
	}
	if header["path"] != "" {
		path = header["path"]
	}
	var in io.Reader = strings.NewReader(body)
	if chunked {
		in = io.MultiReader(in)
	}
	if method == http.MethodGet {
		in = nil
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, in)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	bearer(w.token(w.a))(req)
	for k, v := range header {
		if k == "method" || k == "path" {
			continue
		}
		if req.Header.Set(k, v); v == "" {
			req.Header.Del(k)
		}
	}
	if w.a.client == nil {
		w.a.client = w.http(w.a.cert)
	}
	resp, err := w.a.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, b}
}

func encoded(a asking) []byte { return must(a.encode()) }

// A body of a gigabyte is not read, whether its length is said or not.
func TestHugeBody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	for _, h2 := range []bool{true, false} {
		for _, said := range []bool{true, false} {
			var sent atomic.Int64
			c := w.http(w.a.cert)
			c.Transport.(*http.Transport).ForceAttemptHTTP2 = h2
			if !h2 {
				c.Transport.(*http.Transport).TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/v1/readings/query", &endless{1 << 30, &sent})
			if err != nil {
				t.Fatal(err)
			}
			if said {
				req.ContentLength = 1 << 30
			}
			req.Header.Set("Content-Type", "application/json")
			bearer(w.token(w.a))(req)
			resp, err := c.Do(req)
			// Over HTTP/1.1 the connection may end while it is still being sent.
			if err == nil {
				if resp.Body.Close(); resp.StatusCode != http.StatusRequestEntityTooLarge {
					t.Errorf("answered %d", resp.StatusCode)
				}
			} else if h2 {
				t.Error(err)
			}
			if sent.Load() > 64<<20 {
				t.Errorf("%d MB were taken", sent.Load()>>20)
			}
		}
	}
}

// A client that sends the half of a body and waits is not waited for for ever,
// and holds up nobody.
func TestHalfBody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customers(w.a, 1)[0]
	ctx, cancel := context.WithCancel(t.Context())
	held, hold := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/v1/readings/query", io.MultiReader(strings.NewReader(`{"meteringPoints":["`), held))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	bearer(w.token(w.a))(req)
	done := make(chan error, 1)
	go func() {
		resp, err := w.http(w.a.cert).Do(req)
		if err == nil {
			err = fmt.Errorf("answered %d", resp.StatusCode)
			resp.Body.Close()
		}
		done <- err
	}()
	s := w.stored(w.a, w.asks(asking{"meteringPoints": []string{e.String()}}))
	if end := s.part(nil); end == nil || !*end.Complete {
		t.Errorf("ends with %+v", end)
	}
	cancel()
	hold.Close()
	if err := <-done; err == nil || strings.Contains(err.Error(), "answered 2") {
		t.Error(err)
	}
}

// A client that closes only its own side, or stays and does not read, ends the
// stream after a while; the next part has everything.
func TestQueryHalfClosed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	eans := w.customers(w.a, 60)
	raw := encoded(w.asks(asking{"meteringPoints": texts(eans)}))
	conn, err := tls.Dial("tcp", strings.TrimPrefix(w.url, "https://"), &tls.Config{
		RootCAs: authorities().operator.Pool(), Certificates: []tls.Certificate{w.a.cert}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS13,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var b bytes.Buffer
	fmt.Fprintf(&b, "POST /v1/readings/query HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAccept: application/x-ndjson\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n", w.token(w.a), len(raw))
	b.Write(raw)
	if _, err := conn.Write(b.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	got, _ := io.ReadAll(conn)
	if bytes.Contains(got, []byte(`"complete":true`)) != bytes.Contains(got, []byte(`"manifest"`)) {
		t.Errorf("half an end: %s", got)
	}
	w.eventually("the stream is over", func() bool { return w.gauge("kluis_gateway_streams") == 0 })
	s := w.stored(w.a, w.asks(asking{"meteringPoints": texts(eans)}))
	if end := s.part(nil); end == nil || !*end.Complete {
		t.Errorf("ends with %+v", end)
	}
	s.all(eans)
}
