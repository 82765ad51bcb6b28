package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/internal/config"
	"kluis/meter"
	"kluis/openapi/client"
	"kluis/server"
)

// Every fault of a request is told at once, by pointer, and none repeats what
// was sent.
func TestParameterErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	token := w.token(w.a)
	c := w.http(w.a.cert)
	q := func(query string) string { return "/v1/metering-points/" + e.String() + "/readings?" + query }
	const ok = "from=2026-03-01&to=2026-04-01&purpose=BILLING"
	for name, tc := range map[string]struct {
		path string
		want string // pointers
	}{
		"nothing":                {q(""), "/query/from /query/purpose /query/to"},
		"empty":                  {q("from=&to=&purpose="), "/query/from /query/purpose /query/to"},
		"unknown parameter":      {q(ok + "&secret=1"), "/query"},
		"unknown, twice":         {q(ok + "&secret=1&secret=2&other=x"), "/query"},
		"repeated":               {q(ok + "&from=2026-03-02"), "/query/from"},
		"repeated, the same":     {q(ok + "&purpose=BILLING"), "/query/purpose"},
		"not well-formed":        {q(ok + "&fields=%zz"), "/query"},
		"semicolon":              {q(ok + ";kind=REGISTER"), "/query /query/purpose"},
		"reversed":               {q("from=2026-04-01&to=2026-03-01&purpose=BILLING"), "/query/to"},
		"no days":                {q("from=2026-04-01&to=2026-04-01&purpose=BILLING"), "/query/to"},
		"a century":              {q("from=1970-01-01&to=2070-01-01&purpose=BILLING"), "/query/to"},
		"no such day":            {q("from=2026-02-30&to=2026-03-01&purpose=BILLING"), "/query/from"},
		"a time":                 {q("from=2026-02-01T00:00:00Z&to=2026-03-01&purpose=BILLING"), "/query/from"},
		"unknown purpose":        {q("from=2026-02-01&to=2026-03-01&purpose=CURIOSITY"), "/query/purpose"},
		"purpose in small":       {q("from=2026-02-01&to=2026-03-01&purpose=billing"), "/query/purpose"},
		"unknown field":          {q(ok + "&fields=import_low,curiosity"), "/query/fields"},
		"field twice":            {q(ok + "&fields=import_low,import_low"), "/query/fields"},
		"no field":               {q(ok + "&fields="), "/query/fields"},
		"odd field":              {q(ok + "&fields=import_low,"), "/query/fields"},
		"fields repeated":        {q(ok + "&fields=import_low&fields=gas"), "/query/fields"},
		"fields and class":       {q(ok + "&fields=import_low&class=registers"), "/query/class"},
		"unknown class":          {q(ok + "&class=curiosity"), "/query/class"},
		"unknown resolution":     {q(ok + "&resolution=PT5M"), "/query/resolution"},
		"unknown kind":           {q(ok + "&kind=BOTH"), "/query/kind"},
		"check digit":            {"/v1/metering-points/871687140000000018/readings?" + ok, "/path/ean"},
		"short":                  {"/v1/metering-points/8716871400/readings?" + ok, "/path/ean"},
		"letters":                {"/v1/metering-points/curiosity/readings?" + ok, "/path/ean"},
		"everything":             {"/v1/metering-points/curiosity/readings?from=2026-02-30&to=x&purpose=y&fields=z&class=q&resolution=w&kind=v&secret=1&secret=2", "/path/ean /query /query/class /query/fields /query/from /query/kind /query/purpose /query/resolution /query/to"},
		"contract and sense":     {q("from=2026-04-01&to=2026-03-01&purpose=CURIOSITY"), "/query/purpose /query/to"},
		"limit":                  {"/v1/metering-points?limit=9", "/query/limit"},
		"limit, above":           {"/v1/metering-points?limit=1001", "/query/limit"},
		"limit, no number":       {"/v1/metering-points?limit=curiosity", "/query/limit"},
		"cursor":                 {"/v1/metering-points?cursor=curiosity", "/query/cursor"},
		"cursor and limit":       {"/v1/metering-points?cursor=%20&limit=0&curiosity", "/query /query/cursor /query/limit"},
		"a list takes no period": {"/v1/metering-points?from=2026-03-01", "/query"},
		"status takes nothing":   {"/v1/status?curiosity=1", "/query"},
	} {
		w.tap.taken()
		r := w.do(c, http.MethodGet, tc.path, bearer(token))
		var p client.Problem
		if r.status != 400 || r.problem(t) != "invalid-parameters" || json.Unmarshal(r.body, &p) != nil || p.Errors == nil {
			t.Errorf("%s: %d %s", name, r.status, r.body)
			continue
		}
		var got []string
		for _, e := range *p.Errors {
			got = append(got, e.Pointer)
			if e.Reason == "" || strings.Contains(e.Reason, "contract") {
				t.Errorf("%s: %s %q says nothing", name, e.Pointer, e.Reason)
			}
		}
		slices.Sort(got)
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: faults at %q, want %q", name, got, tc.want)
		}
		for _, sent := range []string{"curiosity", "secret", "2026-02-30", "871687140000000018", "PT5M", "BOTH"} {
			if strings.Contains(string(r.body), sent) {
				t.Errorf("%s: the answer repeats what was sent: %s", name, r.body)
			}
		}
		if got := w.tap.taken(); got != "supplier" {
			t.Errorf("%s: calls %q", name, got)
		}
	}
	if len(w.records()) != 0 {
		t.Error("a request that was not understood is in the access log")
	}
	for _, sent := range []string{"curiosity", "secret", e.String()} {
		if strings.Contains(w.log.String(), sent) {
			t.Errorf("%s is in the log", sent)
		}
	}
}

func TestPathsAndMethods(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	c := w.http(w.a.cert)
	token := w.token(w.a)
	for _, tc := range []struct {
		method, path string
		status       int
		problem      string
	}{
		{"GET", "/", 404, "not-found"},
		{"GET", "/v1/metering-points/", 404, "not-found"},
		{"GET", "/v1/metering-points/871687140000000019", 404, "not-found"},
		{"GET", "/v1/metering-points/871687%2F140000000019/readings", 400, "invalid-parameters"},
		{"GET", "/v1/../v1/status", 404, "not-found"},
		{"GET", "//v1/status", 404, "not-found"},
		{"GET", "/metrics", 404, "not-found"},
		{"POST", "/v1/status", 405, "method-not-allowed"},
		{"HEAD", "/v1/status", 405, ""},
		{"DELETE", "/v1/metering-points", 405, "method-not-allowed"},
		{"BREW", "/v1/status", 405, "method-not-allowed"},
		{"TRACE", "/healthz", 405, "method-not-allowed"},
	} {
		r := w.do(c, tc.method, tc.path, bearer(token))
		if r.status != tc.status || tc.method != "HEAD" && r.problem(t) != tc.problem {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, r.status, r.body)
		}
		if r.status == 405 && r.header.Get("Allow") != "GET" {
			t.Errorf("%s %s: Allow %q", tc.method, tc.path, r.header.Get("Allow"))
		}
		if r.header.Get("Cache-Control") != "no-store" || r.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s %s: headers %v", tc.method, tc.path, r.header)
		}
	}
	if strings.Contains(w.log.String(), "BREW") || strings.Contains(w.log.String(), "/v1/metering-points/8716") {
		t.Errorf("what a caller made up is in the log: %s", w.log.String())
	}
}

func TestOversized(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	token := w.token(w.a)
	c := w.http(w.a.cert)
	body := func(b io.Reader, n int64) func(*http.Request) {
		return func(r *http.Request) {
			bearer(token)(r)
			r.Body, r.ContentLength = io.NopCloser(b), n
		}
	}
	for name, change := range map[string]func(*http.Request){
		"a body":           body(strings.NewReader("{}"), 2),
		"a large body":     body(strings.NewReader(strings.Repeat("x", 1<<20)), 1<<20),
		"a chunked body":   body(strings.NewReader("{}"), -1),
		"and no token too": func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("{}")), 2 },
	} {
		for _, path := range []string{"/v1/status", "/healthz"} {
			if r := w.do(c, http.MethodGet, path, change); r.status != 413 || r.problem(t) != "content-too-large" {
				t.Errorf("%s: %d %s", name, r.status, r.body)
			}
		}
	}
	h1 := w.http(w.a.cert)
	h1.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	for version, c := range map[string]*http.Client{"HTTP/1.1": h1, "HTTP/2": c} {
		for name, change := range map[string]func(*http.Request){
			"many headers": func(r *http.Request) {
				bearer(token)(r)
				for i := range 64 {
					r.Header.Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 1<<10))
				}
			},
			"long header": func(r *http.Request) { bearer(token)(r); r.Header.Set("X-Long", strings.Repeat("x", 64<<10)) },
			"long query":  func(r *http.Request) { bearer(token)(r); r.URL.RawQuery = "q=" + strings.Repeat("x", 64<<10) },
			"long token":  bearer(strings.Repeat("x", 64<<10)),
		} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+"/v1/status", nil)
			if err != nil {
				t.Fatal(err)
			}
			change(req)
			resp, err := c.Do(req)
			if err != nil {
				// Over HTTP/2 the server tells its limit, so that this client
				// does not even send; who sends one field above it all the
				// same loses the connection (RFC 9113, 4.3).
				if version != "HTTP/2" {
					t.Errorf("%s over %s: %.200v", name, version, err)
				}
				continue
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("%s over %s: %d", name, version, resp.StatusCode)
			}
		}
	}
	if got := w.tap.taken(); got != "" {
		t.Errorf("calls %q", got)
	}
}

func TestListPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	var mine []string
	for i := range 23 {
		switch {
		case i%7 == 3:
			w.customer(i+1, w.b)
		default:
			mine = append(mine, w.customer(i+1, w.a).String())
		}
	}
	// In the indexes only: it fills no page and shows in none.
	for i := 40; i < 52; i++ {
		w.sql(`INSERT INTO supply_period (ean, gln, from_day) VALUES ($1, $2, '2020-01-01')`, w.ean(i).Int64(), w.a.gln.Int64())
	}
	both := w.customer(60, w.a, w.consent(w.a)).String()
	mine = append(mine, both)
	slices.Sort(mine)

	var got []string
	path := "/v1/metering-points?limit=10"
	pages := 0
	for path != "" {
		r := w.get(w.a, path)
		var page client.MeteringPoints
		if r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		holdsTo(t, "MeteringPoints", r.body, &page)
		if pages++; pages > 10 {
			t.Fatal("the list does not end")
		}
		for _, p := range page.MeteringPoints {
			got = append(got, p.Ean)
			want := "[SUPPLY_PERIODIC SUPPLY_DAILY]"
			if p.Ean == both {
				want = "[SUPPLY_PERIODIC SUPPLY_DAILY CONSENT]"
			}
			if fmt.Sprint(p.LegalBases) != want || p.Commodity != client.Electricity {
				t.Errorf("%+v", p)
			}
		}
		path = ""
		if page.Links.Next != nil {
			u, err := url.Parse(*page.Links.Next)
			if err != nil || u.Scheme+"://"+u.Host != "https://api.test" {
				t.Fatalf("next page at %s", *page.Links.Next)
			}
			path = u.RequestURI()
		}
	}
	if !slices.Equal(got, mine) {
		t.Errorf("listed %v\nwant %v", got, mine)
	}
	if pages != 3 {
		t.Errorf("%d pages", pages)
	}
	recs := w.records()
	if len(recs) != pages || !recs[0].EAN.IsZero() || recs[0].Outcome != audit.Given || recs[0].Supplier != w.a.gln {
		t.Errorf("%d records, %+v", len(recs), recs)
	}
	// A supplier without customers has an empty list, not null.
	if r := w.get(w.newSupplier(w.gln(3)), "/v1/metering-points"); r.status != 200 || !strings.Contains(string(r.body), `"meteringPoints":[]`) || !strings.Contains(string(r.body), `"next":null`) {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// However many metering points the indexes propose in vain, a page ends and
// says where to go on.
func TestListOfFormerCustomers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	var eans []int64
	for i := range 4500 {
		eans = append(eans, w.ean(i+1).Int64())
	}
	w.sql(`INSERT INTO supply_period (ean, gln, from_day) SELECT ean, $2, '2020-01-01' FROM unnest($1::bigint[]) AS ean`, pq.Array(eans), w.a.gln.Int64())
	last := w.customer(5000, w.a)
	var page client.MeteringPoints
	r := w.get(w.a, "/v1/metering-points?limit=1000")
	if err := json.Unmarshal(r.body, &page); err != nil || len(page.MeteringPoints) != 0 || page.Links.Next == nil {
		t.Fatalf("%d %s", r.status, r.body)
	}
	u, err := url.Parse(*page.Links.Next)
	if err != nil {
		t.Fatal(err)
	}
	r = w.get(w.a, u.RequestURI())
	if err := json.Unmarshal(r.body, &page); err != nil || len(page.MeteringPoints) != 1 || page.MeteringPoints[0].Ean != last.String() || page.Links.Next != nil {
		t.Fatalf("%d %s", r.status, r.body)
	}
}

// An issuer whose keys were never fetched: its tokens may be good, so they are
// not refused for good.
func TestIssuerUnavailable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	away := "https://" + l.Addr().String()
	l.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, authorities().stranger.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, options{issuers: []config.Issuer{{URL: away, Audience: audience, JWKSURL: away + "/jwks", CAFile: ca}}})
	parts := strings.Split(w.token(w.a), ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	parts[1] = base64.RawURLEncoding.EncodeToString(bytes.Replace(payload, []byte(issuerURL), []byte(away), 1))
	r := w.do(w.http(w.a.cert), http.MethodGet, "/v1/status", bearer(strings.Join(parts, ".")))
	if r.status != 503 || r.problem(t) != "issuer-unavailable" || r.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := w.get(w.a, "/v1/status"); r.status != 200 {
		t.Errorf("the other issuer's token: %d %s", r.status, r.body)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	var st client.Status
	r := w.get(w.a, "/v1/status")
	if r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	holdsTo(t, "Status", r.body, &st)
	if st.Status != client.StatusStatusUP || len(st.Backends) != 3 || st.Freshness.LastStoredAt != nil || st.Profile.Version != w.profile.Version() ||
		st.Freshness.LastCompleteDay.String() != (meter.DayOf(time.Now(), w.profile.Location())-1).String() {
		t.Errorf("%+v", st)
	}
	w.fill(w.customer(1, w.a))
	holdsTo(t, "Status", w.get(w.a, "/v1/status").body, &st)
	if st.Freshness.LastStoredAt == nil || time.Since(*st.Freshness.LastStoredAt) > time.Minute {
		t.Errorf("%+v", st.Freshness)
	}
	if got := w.tap.taken(); strings.Contains(got, "record") {
		t.Errorf("calls %q", got)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if r := w.do(w.http(w.a.cert), http.MethodGet, path, nil); r.status != 200 || strings.TrimSpace(string(r.body)) != `{"status":"ok"}` {
			t.Errorf("%s: %d %s", path, r.status, r.body)
		}
	}
}

// One line of log per request, with neither metering points nor tokens, and
// the metrics to match.
func TestLogAndMetrics(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e, foreign := w.customer(1, w.a, w.consent(w.a)), w.customer(2, w.b)
	w.fill(e)
	w.get(w.a, w.path(e))
	w.get(w.a, w.path(foreign))
	w.get(w.b, w.path(foreign, "purpose", "CUSTOMER_SERVICE"))
	w.get(w.a, "/nowhere/"+e.String())
	log := w.log.String()
	lines := strings.Split(strings.TrimSpace(log), "\n")
	if len(lines) != 4 {
		t.Fatalf("%d lines: %s", len(lines), log)
	}
	for i, want := range []map[string]any{
		{"route": "/v1/metering-points/{ean}/readings", "status": 200.0, "supplier": w.a.gln.String(), "problem": nil, "level": "INFO"},
		{"route": "/v1/metering-points/{ean}/readings", "status": 404.0, "supplier": w.a.gln.String(), "problem": "metering-point-not-found", "level": "WARN"},
		{"route": "/v1/metering-points/{ean}/readings", "status": 200.0, "supplier": w.b.gln.String(), "problem": nil, "level": "INFO"},
		{"route": "none", "status": 404.0, "supplier": nil, "problem": "not-found", "level": "WARN"},
	} {
		var line map[string]any
		if err := json.Unmarshal([]byte(lines[i]), &line); err != nil {
			t.Fatal(err)
		}
		for k, v := range want {
			if line[k] != v {
				t.Errorf("line %d: %s is %v, want %v", i, k, line[k], v)
			}
		}
		if line["interactionId"] == nil || line["duration"] == nil {
			t.Errorf("line %d: %s", i, lines[i])
		}
	}
	for _, secret := range []string{e.String(), foreign.String(), w.token(w.a)[:20], text(read(w.field("import_low"), w.days().From))} {
		if strings.Contains(log, secret) {
			t.Errorf("the log holds %s", secret)
		}
	}
	if got := w.metric("kluis_gateway_requests_total", "status", "200", "supplier", w.a.gln.String(), "problem", ""); got != 1 {
		t.Errorf("%v requests counted", got)
	}
	if got := w.metric("kluis_gateway_requests_total", "problem", "metering-point-not-found"); got != 1 {
		t.Errorf("%v not found", got)
	}
	if got := w.metric("kluis_gateway_request_duration_seconds"); got != 4 {
		t.Errorf("%v durations", got)
	}
	if got := w.metric("kluis_gateway_evidence_age_seconds"); got != 2 {
		t.Errorf("%v answers with an age of their evidence", got)
	}
	families, err := w.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if dump := fmt.Sprint(families); strings.Contains(dump, e.String()) {
		t.Error("a metering point is in the metrics")
	}
}

// The token a cryptoserver is shown is the caller's own, with the evidence of
// this request.
func TestOpenIsAskedWithTheCallersEvidence(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a, w.consent(w.a), authz.SetOptOut{Days: meter.DayRange{From: w.days().From + 10, To: w.days().From + 20}})
	w.fill(e)
	w.tap.opened = func(r server.OpenRequest) {
		for _, b := range r.Blocks {
			if d := b.Day - w.days().From; d > 10 && d < 20 || b.Field != w.field("import_low") {
				t.Errorf("block of field %d on %s was fetched", b.Field, b.Day)
			}
		}
		if len(r.Blocks) != 11+w.days().Len()-20+1 {
			t.Errorf("%d blocks", len(r.Blocks))
		}
	}
	a := w.answerOf(w.get(w.a, w.path(e, "fields", "import_low")))
	if len(a.Withheld) != 1 || a.Withheld[0].Reason != client.OPTEDOUT {
		t.Errorf("%+v", a.Withheld)
	}
}
