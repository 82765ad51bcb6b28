package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

func mapKeys[K comparable, V any](m map[K]V) iter.Seq[K] { return maps.Keys(m) }

// Malformed requests by an authenticated supplier: every fault is named by its
// pointer, nothing is looked up and nothing recorded. Guards: the contract's
// validator, and what it cannot say: checkQueryString and readingsParams.parse.
func TestMalformedParameters(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c := w.supplier(t, 0)
	point := w.point(t, func(p readyPoint) bool { return supplies(p, c.clientID) }).EAN
	token := c.accessToken(t)
	wrong := point[:17] + string('0'+(point[17]-'0'+1)%10)
	w.secrets.add("an EAN", wrong)
	base := "/v1/metering-points/" + point + "/readings"
	good := "from=2026-01-01&to=2026-02-01&purpose=BILLING"
	read := func(query string) string { return base + "?" + query }
	of := func(ean string) string { return "/v1/metering-points/" + ean + "/readings?" + good }
	for name, tc := range map[string]struct {
		path     string
		pointers string // of the faults, in their order
	}{
		"bad check digit":              {of(wrong), "/path/ean"},
		"EAN of 17 digits":             {of(point[:17]), "/path/ean"},
		"EAN of 19 digits":             {of(point + "0"), "/path/ean"},
		"EAN of 10,000 digits":         {of(strings.Repeat("8", 10000)), "/path/ean"},
		"EAN with a letter":            {of(point[:17] + "X"), "/path/ean"},
		"EAN of zeros":                 {of("000000000000000000"), "/path/ean"},
		"negative EAN":                 {of("-" + point[1:]), "/path/ean"},
		"EAN with a space":             {of("%20" + point), "/path/ean"},
		"EAN with a line end":          {of(point + "%0A"), "/path/ean"},
		"EAN with NUL":                 {of(point + "%00"), "/path/ean"},
		"EAN with NUL inside":          {of(point[:9] + "%00" + point[9:]), "/path/ean"},
		"EAN in full-width digits":     {of(url.PathEscape(strings.Map(func(r rune) rune { return r - '0' + '０' }, point))), "/path/ean"},
		"EAN in Arabic-Indic digits":   {of(url.PathEscape(strings.Map(func(r rune) rune { return r - '0' + '٠' }, point))), "/path/ean"},
		"EAN in overlong UTF-8":        {of("%C0%B8" + point[1:]), "/path/ean"},
		"EAN with SQL":                 {of(point + "%27%20OR%201=1--"), "/path/ean"},
		"EAN escaped twice":            {of("%2538" + point[1:]), "/path/ean"},
		"two EANs":                     {of(point + "," + point), "/path/ean"},
		"reversed":                     {read("from=2026-02-01&to=2026-01-01&purpose=BILLING"), "/query/to"},
		"empty period":                 {read("from=2026-02-01&to=2026-02-01&purpose=BILLING"), "/query/to"},
		"100 years":                    {read("from=2026-01-01&to=2126-01-01&purpose=BILLING"), "/query/to"},
		"before 1970":                  {read("from=1926-01-01&to=1926-02-01&purpose=BILLING"), "/query/from /query/to"},
		"367 days":                     {read("from=2025-01-01&to=2026-01-03&purpose=BILLING"), "/query/to"},
		"no period":                    {read("purpose=BILLING"), "/query/from /query/to"},
		"nothing":                      {base, "/query/from /query/purpose /query/to"},
		"2026-02-30":                   {read("from=2026-02-30&to=2026-03-31&purpose=BILLING"), "/query/from"},
		"2026-13-01":                   {read("from=2026-01-01&to=2026-13-01&purpose=BILLING"), "/query/to"},
		"29 February of a common year": {read("from=2026-02-29&to=2026-03-31&purpose=BILLING"), "/query/from"},
		"a time":                       {read("from=2026-01-01T00:00:00Z&to=2026-02-01&purpose=BILLING"), "/query/from"},
		"a week":                       {read("from=2026-W01&to=2026-02-01&purpose=BILLING"), "/query/from"},
		"year 0":                       {read("from=0000-01-01&to=0000-02-01&purpose=BILLING"), "/query/from /query/to"},
		"year 10000":                   {read("from=10000-01-01&to=10000-02-01&purpose=BILLING"), "/query/from /query/to"},
		"date with NUL":                {read("from=2026-01-01%00&to=2026-02-01&purpose=BILLING"), "/query/from"},
		"full-width date":              {read("from=" + url.QueryEscape("２０２６-０１-０１") + "&to=2026-02-01&purpose=BILLING"), "/query/from"},
		"date with SQL":                {read("from=2026-01-01%27%3BDROP%20TABLE%20access_log--&to=2026-02-01&purpose=BILLING"), "/query/from"},
		"unknown purpose":              {read("from=2026-01-01&to=2026-02-01&purpose=CURIOSITY"), "/query/purpose"},
		"purpose in lower case":        {read("from=2026-01-01&to=2026-02-01&purpose=billing"), "/query/purpose"},
		"no purpose":                   {read("from=2026-01-01&to=2026-02-01"), "/query/purpose"},
		"empty purpose":                {read("from=2026-01-01&to=2026-02-01&purpose="), "/query/purpose"},
		"unknown field":                {read(good + "&fields=import_low,identity"), "/query/fields"},
		"field twice":                  {read(good + "&fields=import_low,import_low"), "/query/fields"},
		"empty field":                  {read(good + "&fields=import_low,,import_normal"), "/query/fields"},
		"no fields":                    {read(good + "&fields="), "/query/fields"},
		"33 fields":                    {read(good + "&fields=" + manyFields(33)), "/query/fields"},
		"field in upper case":          {read(good + "&fields=IMPORT_LOW"), "/query/fields"},
		"unknown class":                {read(good + "&class=identity"), "/query/class"},
		"class and fields":             {read(good + "&class=registers&fields=import_low"), "/query/class"},
		"unknown resolution":           {read(good + "&resolution=PT1M"), "/query/resolution"},
		"unknown kind":                 {read(good + "&kind=POWER"), "/query/kind"},
		"repeated from":                {read(good + "&from=2026-01-01"), "/query/from"},
		"repeated purpose":             {read(good + "&purpose=ENERGY_MANAGEMENT"), "/query/purpose"},
		"repeated fields":              {read(good + "&fields=import_low&fields=import_normal"), "/query/fields"},
		"unknown parameter":            {read(good + "&ean=" + point), "/query"},
		"from in upper case":           {read("FROM=2026-01-01&to=2026-02-01&purpose=BILLING"), "/query /query/from"},
		"array brackets":               {read(good + "&fields[]=import_low"), "/query"},
		"semicolons":                   {read("from=2026-01-01;to=2026-02-01;purpose=BILLING"), "/query /query/from /query/purpose /query/to"},
		"broken escape":                {read(good + "&kind=%zz"), "/query"},
		"everything at once":           {"/v1/metering-points/x/readings?from=a&to=b&purpose=c&class=d&resolution=e&kind=f&g=h", "/path/ean /query /query/class /query/from /query/kind /query/purpose /query/resolution /query/to"},
		"cursor of nobody":             {"/v1/metering-points?cursor=AAAA", "/query/cursor"},
		"cursor with NUL":              {"/v1/metering-points?cursor=AQ%00", "/query/cursor"},
		"long cursor":                  {"/v1/metering-points?cursor=" + strings.Repeat("A", 4096), "/query/cursor"},
		"limit 9":                      {"/v1/metering-points?limit=9", "/query/limit"},
		"limit 1001":                   {"/v1/metering-points?limit=1001", "/query/limit"},
		"limit of many digits":         {"/v1/metering-points?limit=" + strings.Repeat("9", 40), "/query/limit"},
		"limit is no number":           {"/v1/metering-points?limit=ten", "/query/limit"},
		"negative limit":               {"/v1/metering-points?limit=-1", "/query/limit"},
		"list by EAN":                  {"/v1/metering-points?ean=" + point, "/query"},
		"status with a parameter":      {"/v1/status?verbose=1", "/query"},
		"probe with a parameter":       {"/healthz?verbose=1", "/query"},
	} {
		t.Run(name, func(t *testing.T) {
			a := c.with(t, token, tc.path)
			if a.status != http.StatusBadRequest || a.slug() != "invalid-parameters" || a.Errors == nil {
				t.Fatalf("%d %s", a.status, a.body)
			}
			var got []string
			for _, e := range *a.Errors {
				got = append(got, e.Pointer)
			}
			slices.Sort(got)
			if s := strings.Join(got, " "); s != tc.pointers {
				t.Errorf("pointers %s, want %s", s, tc.pointers)
			}
			if rows := w.accessLog(t, a.InteractionId.String()); len(rows) != 0 {
				t.Error("recorded, though nothing was asked")
			}
		})
	}
}

func manyFields(n int) string {
	names := make([]string, n)
	for i := range names {
		names[i] = "field_" + strings.Repeat("x", i)
	}
	return strings.Join(names, ",")
}

// Paths that are none, told to anybody with a certificate.
func TestPathTricks(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c := w.supplier(t, 0)
	point := w.point(t, func(p readyPoint) bool { return supplies(p, c.clientID) }).EAN
	token := c.accessToken(t)
	query := "?from=2026-01-01&to=2026-02-01&purpose=BILLING"
	for name, tc := range map[string]struct {
		path   string
		status int
		slug   string
	}{
		"root":                      {"/", 404, "not-found"},
		"metrics on the API's port": {"/metrics", 404, "not-found"},
		"pprof":                     {"/debug/pprof/", 404, "not-found"},
		"another version":           {"/v2/metering-points", 404, "not-found"},
		"upper case":                {"/V1/metering-points", 404, "not-found"},
		"double slash":              {"//v1/metering-points", 404, "not-found"},
		"double slash inside":       {"/v1//metering-points", 404, "not-found"},
		"slash at the end":          {"/v1/metering-points/", 404, "not-found"},
		"slash after readings":      {"/v1/metering-points/" + point + "/readings/" + query, 404, "not-found"},
		"no EAN":                    {"/v1/metering-points//readings" + query, 404, "not-found"},
		"dot segments":              {"/v1/metering-points/" + point + "/../" + point + "/readings" + query, 404, "not-found"},
		"parent of the API":         {"/v1/../healthz", 404, "not-found"},
		"escaped dot segments":      {"/v1/metering-points/%2e%2e/status", 404, "not-found"},
		"escaped slash":             {"/v1/metering-points/" + point + "%2Freadings" + query, 404, "not-found"},
		"escaped slash for the EAN": {"/v1/metering-points/x%2Fy/readings" + query, 400, "invalid-parameters"},
		"backslash":                 {"/v1/metering-points\\" + point + "/readings" + query, 404, "not-found"},
		"NUL in the path":           {"/v1/metering-points%00", 404, "not-found"},
		"semicolon":                 {"/v1/metering-points;x=y", 404, "not-found"},

		"no such resource": {"/v1/metering-points/" + point, 404, "not-found"},
		"overlong path":    {"/v1/" + strings.Repeat("a/", 4000), 404, "not-found"},
	} {
		t.Run(name, func(t *testing.T) {
			a := raw(t, c, "GET "+tc.path+" HTTP/1.1\r\nHost: kluis\r\nAuthorization: Bearer "+token+"\r\nConnection: close\r\n\r\n")
			if a.status != tc.status || a.slug() != tc.slug {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
}

// raw writes a request as it is over HTTP/1.1 and reads the answer, which is
// held to the contract's form of a problem.
func raw(t testing.TB, c *caller, request string) answer {
	t.Helper()
	conn, err := tls.Dial("tcp", host(t, c.gateway), &tls.Config{RootCAs: c.w.roots, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c.cert}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// The server may answer and close before it has read all.
	go func() { _, _ = io.WriteString(conn, request) }()
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	a, err := readAnswer(res)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		if err := c.w.secrets.search(a.body); err != nil {
			t.Errorf("the answer repeats %v", err)
		}
	}
	return a
}

func TestMethods(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c := w.supplier(t, 0)
	token := c.accessToken(t)
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "PROPFIND", "GETT"} {
		a := raw(t, c, method+" /v1/metering-points HTTP/1.1\r\nHost: kluis\r\nAuthorization: Bearer "+token+"\r\nConnection: close\r\n\r\n")
		if a.status != http.StatusMethodNotAllowed || a.header.Get("Allow") != "GET" || method != "HEAD" && a.slug() != "method-not-allowed" {
			t.Errorf("%s: %d %q %s", method, a.status, a.header.Get("Allow"), a.body)
		}
	}
	// A method in a header does not count.
	a := raw(t, c, "GET /v1/status HTTP/1.1\r\nHost: kluis\r\nX-HTTP-Method-Override: DELETE\r\nAuthorization: Bearer "+token+"\r\nConnection: close\r\n\r\n")
	if a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// What HTTP itself refuses never reaches the API, nor ends the gateway. Guards:
// net/http's parser, MaxHeaderBytes, and the refusal of bodies in server.enter.
func TestOddHTTP(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c := w.supplier(t, 0)
	auth := "Authorization: Bearer " + c.accessToken(t) + "\r\nConnection: close\r\n"
	for name, tc := range map[string]struct {
		request string
		status  int
		slug    string
	}{
		"HTTP/1.0":                    {"GET /v1/status HTTP/1.0\r\n" + auth + "\r\n", 200, ""},
		"HTTP/1.0 without a token":    {"GET /v1/status HTTP/1.0\r\n\r\n", 401, "unauthenticated"},
		"HTTP/0.9":                    {"GET /v1/status\r\n\r\n", 400, ""},
		"HTTP/3.0":                    {"GET /v1/status HTTP/3.0\r\nHost: kluis\r\n" + auth + "\r\n", 505, ""},
		"no Host":                     {"GET /v1/status HTTP/1.1\r\n" + auth + "\r\n", 400, ""},
		"two Hosts":                   {"GET /v1/status HTTP/1.1\r\nHost: a\r\nHost: b\r\n" + auth + "\r\n", 400, ""},
		"another Host":                {"GET /v1/status HTTP/1.1\r\nHost: attacker.example\r\n" + auth + "\r\n", 200, ""},
		"absolute form":               {"GET https://attacker.example/v1/status HTTP/1.1\r\nHost: kluis\r\n" + auth + "\r\n", 200, ""},
		"space in a header name":      {"GET /v1/status HTTP/1.1\r\nHost: kluis\r\nX Y: z\r\n" + auth + "\r\n", 400, ""},
		"NUL in a header":             {"GET /v1/status HTTP/1.1\r\nHost: kluis\r\nX: a\x00b\r\n" + auth + "\r\n", 400, ""},
		"control in the path":         {"GET /v1/sta\x01tus HTTP/1.1\r\nHost: kluis\r\n" + auth + "\r\n", 400, ""},
		"two lengths":                 {"GET /v1/status HTTP/1.1\r\nHost: kluis\r\nContent-Length: 1\r\nContent-Length: 2\r\n" + auth + "\r\n", 400, ""},
		"length and chunks":           {"GET /v1/status HTTP/1.1\r\nHost: kluis\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n" + auth + "\r\n0\r\n\r\n", 413, "content-too-large"},
		"negative length":             {"GET /v1/status HTTP/1.1\r\nHost: kluis\r\nContent-Length: -1\r\n" + auth + "\r\n", 400, ""},
		"a body":                      {"GET /v1/status HTTP/1.1\r\nHost: kluis\r\nContent-Length: 2\r\n" + auth + "\r\n{}", 413, "content-too-large"},
		"a body without a token":      {"GET /v1/status HTTP/1.1\r\nHost: kluis\r\nContent-Length: 2\r\n\r\n{}", 413, "content-too-large"},
		"a body said to be huge":      {"GET /v1/status HTTP/1.1\r\nHost: kluis\r\nContent-Length: 999999999999\r\n" + auth + "\r\n{}", 413, "content-too-large"},
		"a chunked body":              {"GET /v1/status HTTP/1.1\r\nHost: kluis\r\nTransfer-Encoding: chunked\r\n" + auth + "\r\n2\r\n{}\r\n0\r\n\r\n", 413, "content-too-large"},
		"an unknown transfer coding":  {"GET /v1/status HTTP/1.1\r\nHost: kluis\r\nTransfer-Encoding: gzip, chunked\r\n" + auth + "\r\n", 501, ""},
		"a header above the limit":    {"GET /v1/status HTTP/1.1\r\nHost: kluis\r\nX: " + strings.Repeat("a", 64<<10) + "\r\n" + auth + "\r\n", 431, ""},
		"many headers":                {"GET /v1/status HTTP/1.1\r\nHost: kluis\r\n" + strings.Repeat("X-A: b\r\n", 10000) + auth + "\r\n", 431, ""},
		"a request line above it":     {"GET /v1/status?" + strings.Repeat("a", 64<<10) + " HTTP/1.1\r\nHost: kluis\r\n" + auth + "\r\n", 431, ""},
		"a bare expectation":          {"GET /v1/status HTTP/1.1\r\nHost: kluis\r\nExpect: something\r\n" + auth + "\r\n", 417, ""},
		"a proxy's say on the caller": {"GET /v1/status HTTP/1.1\r\nHost: kluis\r\nX-Forwarded-Client-Cert: Hash=0\r\nX-SSL-Client-Verify: SUCCESS\r\nConnection: close\r\n\r\n", 401, "unauthenticated"},
	} {
		t.Run(name, func(t *testing.T) {
			a := raw(t, c, tc.request)
			if a.status != tc.status || tc.slug != "" && a.slug() != tc.slug {
				t.Errorf("%d %.300s", a.status, a.body)
			}
		})
	}
}

// The same over HTTP/2: the limit is announced, and a field above it ends the
// request.
func TestOversizedHeaderHTTP2(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c := w.supplier(t, 0)
	cert := c.cert
	own := w.caller(t, c.clientID, &cert) // its connection may end
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	a, err := own.trySend(ctx, http.MethodGet, "/v1/status", nil, "Bearer "+c.accessToken(t), strings.Repeat("a", 1<<20))
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		t.Error("it was left waiting")
	case err == nil && a.status != http.StatusRequestHeaderFieldsTooLarge:
		t.Errorf("%d %s", a.status, a.body)
	}
	if got := own.with(t, c.accessToken(t), "/v1/status"); got.status != http.StatusOK {
		t.Errorf("afterwards: %d %s", got.status, got.body)
	}
}
