package conformance

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// tag is the ETag of every consent of a perfect installation.
const tag = `"seen"`

// perfect answers every case as wanted: an installation for trying the runner
// on, which knows nothing but the pack.
type perfect struct {
	t        *testing.T
	pack     *Pack
	spoil    func(c Case, status int, body map[string]any) (int, map[string]any)
	requests int
}

func (s *perfect) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	supplier := strings.Trim(r.Header.Get("X-Test-Supplier"), " ")
	reply := func(status int, body any) {
		w.WriteHeader(status)
		if err := json.NewEncoder(w).Encode(body); err != nil {
			s.t.Error(err)
		}
	}
	switch r.URL.Path {
	case "/oauth2/token":
		reply(http.StatusOK, map[string]any{"access_token": "token-of-" + supplier, "expires_in": 300})
		return
	case "/v1/status":
		reply(http.StatusOK, map[string]any{"at": "2026-11-23T12:00:00Z", "profile": map[string]any{"country": "NL", "timeZone": "Europe/Amsterdam", "retentionMonths": 24}})
		return
	}
	s.requests++
	sent, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Error(err)
	}
	tokens := map[string]Token{"": None, "Bearer not-a-token": Garbage, "Bearer token-of-" + supplier: Own}
	used, ok := tokens[r.Header.Get("Authorization")]
	if !ok {
		used = Foreign
	}
	i := slices.IndexFunc(s.pack.Cases, func(c Case) bool {
		return c.Request.Target() == r.URL.RequestURI() && c.Request.Method == r.Method && c.Request.Token == used &&
			s.pack.Suppliers[c.Supplier].Name == supplier && c.Request.Body == string(sent) && c.Request.Accept == r.Header.Get("Accept") &&
			strings.Replace(c.Request.IfNoneMatch, Current, tag, 1) == r.Header.Get("If-None-Match") &&
			strings.Replace(c.Request.IfMatch, Current, tag, 1) == r.Header.Get("If-Match") &&
			c.Request.IdempotencyKey == r.Header.Get("Idempotency-Key") && c.Request.ContentType == r.Header.Get("Content-Type")
	})
	if i < 0 && r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/v1/consents/") {
		w.Header().Set("ETag", tag)
		reply(http.StatusOK, map[string]any{})
		return
	}
	if i < 0 {
		s.t.Errorf("no case asks %s %s", r.Method, r.URL)
		reply(http.StatusTeapot, map[string]any{})
		return
	}
	c := s.pack.Cases[i]
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("ETag", tag)
	w.Header().Set("RateLimit", "x")
	w.Header().Set("RateLimit-Policy", "x")
	if c.Want.Status == http.StatusNotModified {
		w.Header().Set("X-Interaction-Id", "x")
		w.WriteHeader(c.Want.Status)
		return
	}
	body := map[string]any{}
	var from any
	switch want := c.Want; {
	case want.Problem != "":
		faults := []map[string]string{}
		for _, p := range want.Pointers {
			faults = append(faults, map[string]string{"pointer": p})
		}
		from = map[string]any{"type": "urn:kluis:problem:" + want.Problem, "errors": faults}
	case want.Readings != nil:
		from = want.Readings
	case want.Access != nil:
		from = want.Access
	case want.Consents != nil:
		from = map[string]any{"consents": want.Consents}
	case want.Points != nil:
		var page []any
		for _, p := range want.Points {
			point := map[string]any{"ean": p.EAN, "series": p.Series, "withheld": p.Withheld}
			if p.Problem != "" {
				point = map[string]any{"ean": p.EAN, "problem": map[string]any{"type": "urn:kluis:problem:" + p.Problem}}
			}
			page = append(page, point)
		}
		from = map[string]any{"meteringPoints": page, "done": len(page), "cursor": nil}
	default:
		from = map[string]any{"meteringPoints": want.List}
	}
	raw, err := json.Marshal(from)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &body); err != nil {
		s.t.Fatal(err)
	}
	status := c.Want.Status
	if s.spoil != nil {
		status, body = s.spoil(c, status, body)
	}
	body["interactionId"] = fmt.Sprintf("00000000-0000-4000-8000-%012d", s.requests)
	reply(status, body)
}

// as is a transport that says who it is: certificates are for the end-to-end
// test.
type as string

func (a as) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Test-Supplier", string(a))
	return http.DefaultTransport.RoundTrip(r)
}

// try runs cases against an installation that is perfect but for spoil.
func try(t *testing.T, damaged bool, only string, spoil func(c Case, status int, body map[string]any) (int, map[string]any)) []Result {
	t.Helper()
	seeded := day(t, "2026-11-23")
	s := &perfect{t: t, pack: seededOn(t, profile(t), seeded, seeded), spoil: spoil}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	target := Target{Gateway: srv.URL, Issuer: srv.URL, Clients: map[string]*http.Client{}, Seeded: seeded, Damaged: damaged}
	for _, who := range s.pack.Suppliers {
		target.Clients[who.Name] = &http.Client{Transport: as(who.Name), Timeout: 10 * time.Second}
	}
	pack, err := Ask(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	// Tables, feeds and streams have tests of their own: see forms_test.go.
	cases := slices.DeleteFunc(slices.Clone(pack.Cases), func(c Case) bool {
		return slices.Contains([]string{mediaTable, mediaFeed, mediaStream}, c.Want.Media)
	})
	if only != "" {
		cases = slices.DeleteFunc(slices.Clone(cases), func(c Case) bool { return c.Name != only })
	}
	var results []Result
	if err := Run(t.Context(), pack, cases, target, func(r Result) { results = append(results, r) }); err != nil {
		t.Fatal(err)
	}
	if len(results) != len(cases) {
		t.Fatalf("%d results of %d cases", len(results), len(cases))
	}
	return results
}

func TestRunnerPasses(t *testing.T) {
	t.Parallel()
	for _, damaged := range []bool{false, true} {
		for _, r := range try(t, damaged, "", nil) {
			want := Pass
			if strings.HasPrefix(r.Case, "damaged") && !damaged {
				want = Skipped
			}
			if r.Outcome != want || len(r.Differences) > 0 || (want == Pass) != (r.Interaction != "") {
				t.Errorf("%+v", r)
			}
		}
	}
}

// Whatever an answer has too much, too little or otherwise fails the case.
func TestRunnerFails(t *testing.T) {
	t.Parallel()
	list := func(v any, path ...string) []any {
		for _, p := range path {
			v = v.(map[string]any)[p]
		}
		return v.([]any)
	}
	first := func(v []any) map[string]any { return v[0].(map[string]any) }
	series := func(b map[string]any) map[string]any { return first(list(b, "series")) }
	for name, tc := range map[string]struct {
		of    string
		spoil func(b map[string]any)
		want  string
	}{
		"another value": {"daily-reads", func(b map[string]any) { first(list(series(b), "days"))["values"] = []any{"26255.368"} },
			`import_low (nl-daily, P1D) on 2026-10-01 value 0: is "26255.368", want "26255.367"`},
		"a value where there is a gap": {"a-missing-read", func(b map[string]any) { list(series(b), "days")[3].(map[string]any)["values"] = []any{"1.000"} },
			`value 0: is "1.000", want null`},
		"a gap where there is a value": {"daily-reads", func(b map[string]any) { first(list(series(b), "days"))["values"] = []any{nil} }, "is null, want"},
		"a value more": {"daily-reads", func(b map[string]any) {
			d := first(list(series(b), "days"))
			d["values"] = append(list(d, "values"), "1.000")
		}, "value 1: is \"1.000\", and nothing was wanted"},
		"a day more": {"daily-reads", func(b map[string]any) {
			series(b)["days"] = append(list(series(b), "days"), map[string]any{"start": "2026-10-05T00:00:00+02:00", "values": []any{"1.000"}})
		}, "on 2026-10-05 value 0: is \"1.000\", and nothing was wanted"},
		"a day less":   {"daily-reads", func(b map[string]any) { series(b)["days"] = list(series(b), "days")[1:] }, "on 2026-10-01 value 0: missing"},
		"a day twice":  {"daily-reads", func(b map[string]any) { d := list(series(b), "days"); series(b)["days"] = append(d, d[0]) }, "again"},
		"days swapped": {"daily-reads", func(b map[string]any) { d := list(series(b), "days"); d[0], d[1] = d[1], d[0] }, "another order"},
		"a field more": {"no-consent", func(b map[string]any) {
			b["series"] = []any{map[string]any{"field": "import_low", "rule": "nl-daily", "resolution": "P1D", "days": []any{}}}
		}, "import_low (nl-daily, P1D) readingKind: is , and nothing was wanted"},
		"a field less":   {"daily-reads", func(b map[string]any) { b["series"] = list(b, "series")[:1] }, "import_normal (nl-daily, P1D) readingKind: missing"},
		"fields swapped": {"daily-reads", func(b map[string]any) { s := list(b, "series"); s[0], s[1] = s[1], s[0] }, "another order"},
		"another offset": {"autumn-quarters", func(b map[string]any) {
			list(series(b), "days")[1].(map[string]any)["start"] = "2026-10-25T00:00:00+01:00"
		}, "start: is 00:00:00+01:00, want 00:00:00+02:00"},
		"another basis":        {"daily-reads", func(b map[string]any) { series(b)["legalBasis"] = "CONSENT" }, "legalBasis: is CONSENT, want SUPPLY_DAILY"},
		"another rule":         {"daily-reads", func(b map[string]any) { series(b)["rule"] = "nl-x" }, "import_low (nl-daily, P1D) legalBasis: missing"},
		"another unit":         {"gas-daily", func(b map[string]any) { series(b)["unit"] = "kWh" }, "unit: is kWh, want m3"},
		"another OBIS code":    {"gas-daily", func(b map[string]any) { series(b)["obis"] = "0-0:0.0.0" }, "obis"},
		"another kind":         {"daily-reads", func(b map[string]any) { series(b)["readingKind"] = "CONSUMPTION" }, "readingKind"},
		"a count":              {"daily-reads", func(b map[string]any) { series(b)["deliveredCount"] = 3 }, "deliveredCount: is 3, want 4"},
		"an estimate not told": {"gaps", func(b map[string]any) { delete(list(series(b), "days")[1].(map[string]any), "quality") }, "quality of 2 from 40: missing"},
		"another reason":       {"no-consent", func(b map[string]any) { first(list(b, "withheld"))["reason"] = "OPTED_OUT" }, "is OPTED_OUT, want NO_CONSENT"},
		"a reason more":        {"daily-reads", func(b map[string]any) { b["withheld"] = []any{map[string]any{"field": "gas", "reason": "NO_SUPPLY"}} }, "is NO_SUPPLY, and nothing was wanted"},
		"a reason less":        {"no-consent", func(b map[string]any) { b["withheld"] = []any{} }, "missing, want NO_CONSENT"},
		"days withheld":        {"no-consent", func(b map[string]any) { first(list(b, "withheld"))["to"] = "2026-10-09" }, "missing, want NO_CONSENT"},
		"another purpose":      {"daily-reads", func(b map[string]any) { b["purpose"] = "BILLING" }, "purpose"},
		"another period":       {"daily-reads", func(b map[string]any) { b["to"] = "2026-10-09" }, "period"},
		"another zone":         {"daily-reads", func(b map[string]any) { b["timeZone"] = "UTC" }, "timeZone"},
		"another problem":      {"path-unknown", func(b map[string]any) { b["type"] = "urn:kluis:problem:internal-error" }, "is internal-error, want not-found"},
		"a fault not told":     {"several-faults", func(b map[string]any) { b["errors"] = list(b, "errors")[1:] }, "missing"},
		"a listing more": {"list", func(b map[string]any) {
			b["meteringPoints"] = append(list(b, "meteringPoints"), map[string]any{"ean": "9"})
		}, "listed 9: is"},
		"another state": {"consents-active", func(b map[string]any) { first(list(b, "consents"))["state"] = "REVOKED" }, "state: is REVOKED, want ACTIVE"},
		"a step more": {"consents-active", func(b map[string]any) {
			c := first(list(b, "consents"))
			c["steps"] = append(list(c, "steps"), map[string]any{"step": "REVOKED", "by": "CUSTOMER"})
		}, "step 2: is REVOKED by CUSTOMER, and nothing was wanted"},
		"an employee named":     {"consents-active", func(b map[string]any) { first(list(first(list(b, "consents")), "steps"))["employee"] = "agent-17" }, "agent-17"},
		"a consent more":        {"consents-active", func(b map[string]any) { b["consents"] = append(list(b, "consents"), map[string]any{"id": "x"}) }, "consent x state"},
		"a consent less":        {"consents-active", func(b map[string]any) { b["consents"] = []any{} }, "missing, want ACTIVE"},
		"a page more":           {"list", func(b map[string]any) { b["links"] = map[string]any{"next": "https://x"} }, "further page"},
		"a dry run's grant":     {"access-switch", func(b map[string]any) { first(list(b, "granted"))["granularity"] = "PT15M" }, "PT15M"},
		"a dry run's stored":    {"access-switch", func(b map[string]any) { b["stored"] = []any{} }, "stored of import_low"},
		"a dry run's withheld":  {"access-switch", func(b map[string]any) { b["withheld"] = list(b, "withheld")[1:] }, "withheld for"},
		"readings not withheld": {"no-consent", func(b map[string]any) { delete(b, "series") }, "missing"},
		"a point less":          {"query-page", func(b map[string]any) { b["meteringPoints"] = list(b, "meteringPoints")[1:] }, "is number: missing"},
		"points swapped":        {"query-page", func(b map[string]any) { p := list(b, "meteringPoints"); p[0], p[1] = p[1], p[0] }, "is number: is 2, want 1"},
		"a point's reason": {"query-page", func(b map[string]any) {
			for _, p := range list(b, "meteringPoints") {
				if w, ok := p.(map[string]any)["withheld"].([]any); ok && len(w) > 0 {
					first(w)["reason"] = "OPTED_OUT"
				}
			}
		}, "is OPTED_OUT, want"},
		"a page more of a query": {"query-page", func(b map[string]any) { b["cursor"] = "x" }, "further page"},
		"no JSON as wanted":      {"daily-reads", func(b map[string]any) { b["series"] = "none" }, "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := try(t, false, tc.of, func(_ Case, status int, b map[string]any) (int, map[string]any) {
				tc.spoil(b)
				return status, b
			})
			if r[0].Outcome != Fail || !strings.Contains(strings.Join(r[0].Differences, "\n"), tc.want) {
				t.Errorf("%s, want %q among\n%s", r[0].Outcome, tc.want, strings.Join(r[0].Differences, "\n"))
			}
		})
	}
	t.Run("another status", func(t *testing.T) {
		t.Parallel()
		r := try(t, false, "no-token", func(_ Case, _ int, b map[string]any) (int, map[string]any) { return http.StatusForbidden, b })
		if r[0].Outcome != Fail || r[0].Differences[0] != "status: is 403, want 401" {
			t.Errorf("%+v", r[0])
		}
	})
	t.Run("told apart", func(t *testing.T) {
		t.Parallel()
		for _, r := range try(t, false, "", func(c Case, status int, b map[string]any) (int, map[string]any) {
			if c.Name == "metering-point-of-others" {
				b["title"] = "Not yours"
			}
			return status, b
		}) {
			if (r.Outcome == Fail) != (r.Case == "metering-point-of-others") {
				t.Errorf("%+v", r)
			}
		}
	})
}

// Where cases cannot be run, it is said why.
func TestRunnerCannot(t *testing.T) {
	t.Parallel()
	seeded := day(t, "2026-11-23")
	pack := seededOn(t, profile(t), seeded, seeded)
	answers := map[string]string{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a, ok := answers[r.URL.Path]; ok {
			_, _ = w.Write([]byte(a))
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"error":"invalid_client"}`))
	}))
	defer srv.Close()
	target := Target{Gateway: srv.URL, Issuer: srv.URL, Clients: map[string]*http.Client{"north": srv.Client()}, Seeded: seeded}
	want := func(err error, text string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %q", err, text)
		}
	}
	ask := func() error { _, err := Ask(t.Context(), target); return err }
	want(ask(), "no access token for the test supplier north: the issuer answers 401 invalid_client")
	want(Run(t.Context(), pack, pack.Cases[:1], target, nil), "case billing-months: no access token")
	answers["/oauth2/token"] = `{"access_token":"x","expires_in":300}`
	want(ask(), "/v1/status answers 401")
	answers["/v1/status"] = `{"at":"2026-11-23T12:00:00Z","profile":{"country":"BE"}}`
	want(ask(), "the installation is of BE")
	answers["/v1/status"] = `{"at":"2026-11-23T12:00:00Z","profile":{"country":"NL","timeZone":"Europe/Nowhere","retentionMonths":24}}`
	want(ask(), "how it fares")
	answers["/v1/status"] = `{"at":"2028-11-23T12:00:00Z","profile":{"country":"NL","timeZone":"Europe/Amsterdam","retentionMonths":24}}`
	want(ask(), "seed it afresh")
	delete(target.Clients, "north")
	want(ask(), "no certificate of the test supplier north")
	target.Clients["north"] = srv.Client()
	srv.Close()
	want(ask(), "connection refused")
	if err := ask(); !errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
}
