package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/internal/config"
	"kluis/meter"
	"kluis/openapi"
)

// headers sets some, besides the token.
func (w *world) with(s *supplier, path string, pairs ...string) reply {
	w.t.Helper()
	if s.client == nil {
		s.client = w.http(s.cert)
	}
	return w.do(s.client, http.MethodGet, path, func(r *http.Request) {
		bearer(w.token(s))(r)
		// Else the client asks for gzip, and takes it apart by itself.
		r.Header.Set("Accept-Encoding", "identity")
		for i := 0; i+1 < len(pairs); i += 2 {
			r.Header.Set(pairs[i], pairs[i+1])
		}
	})
}

// revocation is one of a consent that the tests gave.
func revocation(c authz.GrantConsent) authz.Step { return authz.RevokeConsent{ID: c.ID} }

// Nothing is opened for who has the answer, and who has another answer is given
// this one.
func TestUnchangedReadings(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	consent := w.consent(w.a)
	e := w.customer(1, w.a, consent)
	other := w.customer(2, w.b)
	w.fill(e)
	w.fill(other)
	path := w.path(e, "fields", "import_intervals")

	first := w.with(w.a, path)
	tag := first.header.Get("ETag")
	if first.status != 200 || !strings.HasPrefix(tag, `W/"`) || len(tag) != 20 {
		t.Fatalf("%d %v %s", first.status, first.header, first.body)
	}
	bare := strings.TrimPrefix(tag, "W/")
	for name, known := range map[string]string{
		"the tag": tag, "as if it were strong": bare, "among others": `"x", ` + tag + `,W/"y"`,
	} {
		w.tap.taken()
		r := w.with(w.a, path, "If-None-Match", known)
		if r.status != http.StatusNotModified || len(r.body) > 0 || r.header.Get("ETag") != tag || r.header.Get("Content-Type") != "" {
			t.Errorf("%s: %d %v %s", name, r.status, r.header, r.body)
		}
		if calls := w.tap.taken(); strings.Contains(calls, "open") {
			t.Errorf("%s: opened: %s", name, calls)
		}
		rec := w.lastRecord()
		if rec.Outcome != audit.Unchanged || len(rec.Granted) == 0 || len(rec.Receipt) > 0 || fmt.Sprintf("%x", rec.InteractionID[:]) != strings.ReplaceAll(r.header.Get("X-Interaction-Id"), "-", "") {
			t.Errorf("%s: record %+v", name, rec)
		}
	}
	for name, known := range map[string]string{"another": `W/"AAAAAAAAAAAAAAAA"`, "in part": tag[:18] + `"`, "in another case": `w` + tag[1:]} {
		r := w.with(w.a, path, "If-None-Match", known)
		if name == "in another case" {
			if r.problem(t) != "invalid-parameters" {
				t.Errorf("%s: %d %s", name, r.status, r.body)
			}
		} else if r.status != 200 || r.header.Get("ETag") != tag {
			t.Errorf("%s: %d %s", name, r.status, r.header.Get("ETag"))
		}
	}

	// The tag names this request of this caller, in this form.
	for name, other := range map[string]string{
		"another purpose": w.path(e, "fields", "import_intervals", "purpose", "BILLING"),
		"another field":   w.path(e, "fields", "import_low"),
		"one day less":    w.path(e, "fields", "import_intervals", "to", (w.days().To - 1).String()),
		"by the hour":     w.path(e, "fields", "import_intervals", "resolution", "PT1H"),
		"as of a while":   w.path(e, "fields", "import_intervals", "asOf", time.Now().Add(-time.Second).UTC().Format(time.RFC3339)),
	} {
		r := w.with(w.a, other, "If-None-Match", tag)
		if r.status != 200 || r.header.Get("ETag") == tag {
			t.Errorf("%s: %d, tag %s", name, r.status, r.header.Get("ETag"))
		}
	}
	if r := w.with(w.a, path, "If-None-Match", tag, "Accept", "text/csv"); r.status != 200 || r.header.Get("ETag") == tag {
		t.Errorf("another form: %d %v", r.status, r.header)
	}
	// To others it is nothing: neither of this metering point nor of theirs.
	for name, p := range map[string]string{"this": path, "unknown": w.path(w.ean(77), "fields", "import_intervals")} {
		for _, known := range []string{tag, bare} {
			r := w.with(w.b, p, "If-None-Match", known)
			if r.problem(t) != "metering-point-not-found" || r.header.Get("ETag") != "" {
				t.Errorf("%s, %s: another caller gets %d %v", name, known, r.status, r.header)
			}
		}
	}
	if r := w.with(w.b, w.path(other, "fields", "import_low", "purpose", "BILLING"), "If-None-Match", tag); r.status != 200 {
		t.Errorf("its own: %d %s", r.status, r.body)
	}

	// Without having an answer nobody follows what becomes of it.
	if r := w.with(w.a, path, "If-None-Match", "*"); r.problem(t) != "invalid-parameters" {
		t.Errorf("whatever it is: %d %s", r.status, r.body)
	}
	// Nor does the tag tell what others do at the metering point.
	foreign := w.consent(w.b)
	foreign.ID = [16]byte{9}
	for _, step := range []authz.Step{foreign, authz.RevokeConsent{ID: foreign.ID}} {
		w.legalFile(e, meter.Electricity, step)
		if r := w.with(w.a, path, "If-None-Match", tag); r.status != http.StatusNotModified || r.header.Get("ETag") != tag {
			t.Errorf("after %T of another: %d %v", step, r.status, r.header)
		}
	}

	// What is stored anew, and what is revoked, changes the answer.
	low, _ := w.profile.Field("import_low")
	bill := w.path(e, "fields", "import_low", "purpose", "BILLING")
	billed := w.with(w.a, bill).header.Get("ETag")
	if r := w.with(w.a, bill, "If-None-Match", billed); r.status != http.StatusNotModified {
		t.Fatalf("%d %s", r.status, r.body)
	}
	w.correct(e, low.Code, w.days().From, 4242)
	second := w.with(w.a, bill, "If-None-Match", billed)
	if second.status != 200 || second.header.Get("ETag") == billed || second.header.Get("ETag") == "" {
		t.Fatalf("after a correction: %d %v", second.status, second.header)
	}
	if r := w.with(w.a, bill, "If-None-Match", second.header.Get("ETag")); r.status != http.StatusNotModified {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := w.with(w.a, path, "If-None-Match", tag); r.status != http.StatusNotModified {
		t.Errorf("after a correction of another field: %d %v", r.status, r.header)
	}
	w.legalFile(e, meter.Electricity, revocation(consent))
	for _, known := range []string{tag, first.header.Get("ETag")} {
		r := w.with(w.a, path, "If-None-Match", known)
		if r.status != 200 || r.header.Get("ETag") != "" || !bytes.Contains(r.body, []byte(`"withheld":[{`)) {
			t.Errorf("after the revocation, %s: %d %v %s", known, r.status, r.header, r.body)
		}
	}
}

// A tag that is no promise is not given.
func TestNoTagForWhatDidNotOpen(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a, w.consent(w.a))
	w.fill(e)
	if _, err := w.owner().Exec(`UPDATE sealed_block SET ciphertext = set_byte(ciphertext, 5, get_byte(ciphertext, 5) # 1) WHERE ean = $1`, e.Int64()); err != nil {
		t.Fatal(err)
	}
	r := w.with(w.a, w.path(e, "fields", "import_intervals"))
	if r.status != 200 || r.header.Get("ETag") != "" {
		t.Errorf("%d %v", r.status, r.header)
	}
}

// Lists and the status: the same tag as long as they say the same.
func TestUnchangedLists(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	consent := w.consent(w.a)
	e := w.customer(1, w.a, consent)
	for _, path := range []string{"/v1/metering-points", "/v1/metering-points?limit=10", "/v1/metering-points/" + e.String() + "/consents", "/v1/status"} {
		a, b := w.with(w.a, path), w.with(w.a, path)
		tag := a.header.Get("ETag")
		if a.status != 200 || !strings.HasPrefix(tag, `W/"`) || b.header.Get("ETag") != tag || bytes.Equal(a.body, b.body) {
			t.Errorf("%s: %d %v, then %v", path, a.status, a.header, b.header)
		}
		if r := w.with(w.a, path, "If-None-Match", tag); r.status != http.StatusNotModified || len(r.body) > 0 {
			t.Errorf("%s: %d %s", path, r.status, r.body)
		}
		if r := w.with(w.a, path, "If-None-Match", "tag"); r.problem(t) != "invalid-parameters" {
			t.Errorf("%s: %d %s", path, r.status, r.body)
		}
		// Another's list is another, even when there is nothing in it.
		if r := w.with(w.b, path, "If-None-Match", tag); r.status == http.StatusNotModified {
			t.Errorf("%s: unchanged to another caller", path)
		}
	}
	path := "/v1/metering-points"
	before := w.with(w.a, path).header.Get("ETag")
	w.customer(2, w.a)
	if r := w.with(w.a, path, "If-None-Match", before); r.status != 200 {
		t.Errorf("with one more: %d", r.status)
	}
	path += "/" + e.String() + "/consents"
	before = w.with(w.a, path).header.Get("ETag")
	w.legalFile(e, meter.Electricity, revocation(consent))
	if r := w.with(w.a, path, "If-None-Match", before); r.status != 200 {
		t.Errorf("after the revocation: %d", r.status)
	}
}

func TestCompression(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a, w.consent(w.a))
	w.fill(e)
	path := w.path(e, "fields", "import_intervals")
	plain := w.with(w.a, path)
	if plain.header.Get("Content-Encoding") != "" || !strings.Contains(strings.Join(plain.header.Values("Vary"), ","), "Accept-Encoding") {
		t.Errorf("%v", plain.header)
	}
	id := func(r reply, b []byte) string {
		return strings.ReplaceAll(string(b), r.header.Get("X-Interaction-Id"), "ID")
	}
	for _, accepts := range []string{"gzip", "br, gzip;q=0.5", "*", "GZIP"} {
		r := w.with(w.a, path, "Accept-Encoding", accepts)
		if r.header.Get("Content-Encoding") != "gzip" || len(r.body)%1024 != 0 || len(r.body) >= len(plain.body) ||
			r.header.Get("Content-Length") != strconv.Itoa(len(r.body)) || r.header.Get("ETag") != plain.header.Get("ETag") {
			t.Errorf("%s: %v, %d bytes of %d", accepts, r.header, len(r.body), len(plain.body))
			continue
		}
		z, err := gzip.NewReader(bytes.NewReader(r.body))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(z); err != nil || id(r, b) != id(plain, plain.body) {
			t.Errorf("%s: another answer: %v\n%.300s", accepts, err, b)
		}
	}
	for _, accepts := range []string{"identity", "br", "gzip;q=0", "*;q=0", "gzip;q=2", ";"} {
		if r := w.with(w.a, path, "Accept-Encoding", accepts); r.header.Get("Content-Encoding") != "" || id(r, r.body) != id(plain, plain.body) {
			t.Errorf("%s: %v", accepts, r.header)
		}
	}
	// Not what is short, and no problem, however long.
	if r := w.with(w.a, "/v1/status", "Accept-Encoding", "gzip"); r.header.Get("Content-Encoding") != "" {
		t.Errorf("%v", r.header)
	}
	if r := w.with(w.a, path+strings.Repeat("&x=y", 1000), "Accept-Encoding", "gzip"); r.header.Get("Content-Encoding") != "" || r.problem(t) != "invalid-parameters" {
		t.Errorf("%v", r.header)
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	const theirs = "3f2b8c1e-6f0a-4e0b-9b0e-2b9f5b0a7c11"
	for sent, want := range map[string]string{
		theirs: theirs, strings.ToUpper(theirs): theirs,
		"": "", "1": "", theirs + "0": "", "{" + theirs + "}": "", "urn:uuid:" + theirs: "", strings.ReplaceAll(theirs, "-", ""): "",
		theirs[:35] + "x": "", `"` + theirs[2:] + `"`: "",
	} {
		before := len(w.log.String())
		r := w.with(w.a, "/v1/status", "X-Request-Id", sent)
		var line map[string]any
		if err := json.Unmarshal([]byte(w.log.String()[before:]), &line); err != nil {
			t.Fatal(err)
		}
		logged, _ := line["requestId"].(string)
		if r.status != 200 || r.header.Get("X-Request-Id") != want || logged != want || r.header.Get("X-Interaction-Id") == sent {
			t.Errorf("%q: echoed %q, logged %q", sent, r.header.Get("X-Request-Id"), logged)
		}
	}
	// Of two, none is theirs; and a refusal has it, too.
	r := w.do(w.a.client, http.MethodGet, "/v1/status", func(r *http.Request) {
		bearer(w.token(w.a))(r)
		r.Header["X-Request-Id"] = []string{theirs, uuid.NewString()}
	})
	if r.header.Get("X-Request-Id") != "" {
		t.Errorf("%v", r.header)
	}
	if r := w.do(w.a.client, http.MethodGet, "/v1/status", func(r *http.Request) { r.Header.Set("X-Request-Id", theirs) }); r.status != 401 || r.header.Get("X-Request-Id") != theirs {
		t.Errorf("%d %v", r.status, r.header)
	}
}

// What a browser asks before, and with, a request of a foreign page: the answers
// have nothing that lets the page go on.
func TestNoForeignPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	doc, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	c := w.http(w.a.cert)
	look := func(name string, r reply) {
		t.Helper()
		for h := range r.header {
			if strings.HasPrefix(h, "Access-Control-") || h == "Timing-Allow-Origin" {
				t.Errorf("%s: %s: %s", name, h, r.header.Get(h))
			}
		}
	}
	for path, item := range doc.Paths.Map() {
		path = strings.NewReplacer("{ean}", w.ean(1).String(), "{id}", uuid.NewString()).Replace(path)
		for method := range item.Operations() {
			r := w.do(c, http.MethodOptions, path, func(r *http.Request) {
				r.Header.Set("Origin", "https://evil.example")
				r.Header.Set("Access-Control-Request-Method", method)
				r.Header.Set("Access-Control-Request-Headers", "authorization")
				r.Header.Set("Access-Control-Request-Private-Network", "true")
			})
			if r.status != http.StatusMethodNotAllowed || r.problem(t) != "method-not-allowed" {
				t.Errorf("OPTIONS %s: %d", path, r.status)
			}
			look("preflight of "+method+" "+path, r)
			for _, origin := range []string{"https://evil.example", "null", w.url} {
				look(method+" "+path, w.do(c, method, path, func(r *http.Request) {
					r.Header.Set("Origin", origin)
					bearer(w.token(w.a))(r)
				}))
			}
		}
	}
}

// HEAD would decide, open and record as GET does, for an answer that nobody
// reads: it is no method of this API.
func TestHeadIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a, w.consent(w.a))
	before := len(w.records())
	for _, path := range []string{"/v1/metering-points", w.path(e), "/v1/status", "/healthz"} {
		r := w.do(w.http(w.a.cert), http.MethodHead, path, bearer(w.token(w.a)))
		if r.status != http.StatusMethodNotAllowed || r.header.Get("Allow") != "GET" {
			t.Errorf("%s: %d %v", path, r.status, r.header)
		}
	}
	if n := len(w.records()); n != before {
		t.Errorf("%d records", n-before)
	}
}

// A supplier's burst ends with 429, and nobody else's.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{limits: config.Limits{
		Rate:      config.Rate{RequestsPerSecond: 0.01, Burst: 20}, // none comes back while the test runs
		Suppliers: map[string]config.Rate{},
	}})
	e := w.customer(1, w.a, w.consent(w.a))
	w.fill(e)
	for i := range 20 {
		r := w.with(w.a, "/v1/metering-points")
		if want := fmt.Sprintf(`"default";r=%d;t=`, 19-i); r.status != 200 || !strings.HasPrefix(r.header.Get("RateLimit"), want) || r.header.Get("RateLimit-Policy") != `"default";q=20;w=2000` {
			t.Fatalf("request %d: %d %v", i+1, r.status, r.header)
		}
	}
	before := len(w.records())
	w.tap.taken()
	for _, path := range []string{"/v1/metering-points", w.path(e), "/v1/status", w.path(e, "from", "nonsense")} {
		r := w.with(w.a, path)
		if r.problem(t) != "rate-limited" || r.status != 429 || r.header.Get("RateLimit") != `"default";r=0;t=`+r.header.Get("Retry-After") {
			t.Errorf("%s: %d %v", path, r.status, r.header)
		}
		if n, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || n < 90 || n > 100 {
			t.Errorf("Retry-After %q", r.header.Get("Retry-After"))
		}
	}
	if calls := w.tap.taken(); calls != "" || len(w.records()) != before {
		t.Errorf("the back ends were asked: %s", calls)
	}
	if r := w.with(w.b, "/v1/metering-points"); r.status != 200 || !strings.HasPrefix(r.header.Get("RateLimit"), `"default";r=19;`) {
		t.Errorf("another supplier: %d %v", r.status, r.header)
	}
	if got := w.metric("kluis_gateway_limited_total", "limit", "requests", "supplier", w.a.gln.String()); got != 4 {
		t.Errorf("counted %v", got)
	}
	// The answer to who is not known has no quota.
	if r := w.do(w.http(w.a.cert), http.MethodGet, "/v1/status", nil); r.status != 401 || r.header.Get("RateLimit") != "" {
		t.Errorf("%d %v", r.status, r.header)
	}
}

// Tokens that are refused one after the other are not looked at for ever, and
// what that certificate's owner has of good ones is not, either.
func TestStrangersAreNotHeardForEver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	c := w.http(w.a.cert)
	seen := map[int]int{}
	var last reply
	for i := range 600 {
		last = w.do(c, http.MethodGet, "/v1/status", bearer(fmt.Sprint("nonsense", i)))
		seen[last.status]++
		if last.status == 429 {
			break
		}
	}
	if seen[401] < 200 || last.problem(t) != "rate-limited" || last.header.Get("Retry-After") == "" || last.header.Get("RateLimit") != "" {
		t.Errorf("%v, last %v", seen, last.header)
	}
	if r := w.with(w.b, "/v1/status"); r.status != 200 {
		t.Errorf("another certificate: %d %s", r.status, r.body)
	}
	seen = map[int]int{}
	for range 600 {
		last = w.do(c, http.MethodGet, "/nothing", nil)
		seen[last.status]++
		if last.status == 429 {
			break
		}
	}
	if seen[404] < 200 || last.problem(t) != "rate-limited" {
		t.Errorf("%v", seen)
	}
	if got := w.metric("kluis_gateway_limited_total", "limit", "unknown", "supplier", ""); got < 2 {
		t.Errorf("counted %v", got)
	}
}
