package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/uuid"

	"kluis/authz"
	"kluis/meter"
)

// kinds are the forms that values have, most particular first: an example is of
// the same form as what is really answered.
var kinds = []struct {
	name string
	is   *regexp.Regexp
}{
	{"calendar day", regexp.MustCompile(`^\d{4}-\d\d-\d\d$`)},
	{"instant in UTC", regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$`)},
	{"instant with an offset", regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d$`)},
	{"UUID", regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)},
	{"EAN-18", regexp.MustCompile(`^\d{18}$`)},
	{"GLN", regexp.MustCompile(`^\d{13}$`)},
	{"decimal of three places", regexp.MustCompile(`^-?\d+\.\d{3}$`)},
	{"OBIS code", regexp.MustCompile(`^\d-\d+:\d+\.\d+\.\d+$`)},
	{"duration", regexp.MustCompile(`^P(T\d+[MH]|\d+[DM])$`)},
	{"version of a profile", regexp.MustCompile(`^\d{4}-\d\d$`)},
	{"number in a header", regexp.MustCompile(`^\d+$`)},
	{"compact JWS", regexp.MustCompile(`^[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$`)},
	{"type of a problem", regexp.MustCompile(`^urn:kluis:problem:[a-z-]+$`)},
	{"pointer", regexp.MustCompile(`^/(path|query|header|body)/`)},
	{"URL", regexp.MustCompile(`^https://`)},
	{"path", regexp.MustCompile(`^/v1/`)},
	{"zone", regexp.MustCompile(`^[A-Z][a-z]+/[A-Z][A-Za-z_]+$`)},
	{"weak tag", regexp.MustCompile(`^W/"[A-Za-z0-9_-]+"$`)},
	{"strong tag", regexp.MustCompile(`^"[A-Za-z0-9_-]+"$`)},
	{"digest", regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`)},
	{"word in capitals", regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)},
	{"structured header", regexp.MustCompile(`^"[a-z]+"(;[a-z]+=\d+)+$`)},
	{"other text", regexp.MustCompile(`(?s).*`)},
}

func kindOf(v any) string {
	s, ok := v.(string)
	if !ok {
		return fmt.Sprintf("%T", v)
	}
	for _, k := range kinds {
		if k.is.MatchString(s) {
			return k.name
		}
	}
	return ""
}

// observed collects which forms values really have, by their place in the
// contract: a component, and members within.
type observed map[string]map[string]bool

func (o observed) add(where string, v any) {
	if o[where] == nil {
		o[where] = map[string]bool{}
	}
	o[where][kindOf(v)] = true
}

func placeOf(where string, ref *openapi3.SchemaRef) string {
	if ref.Ref != "" {
		return ref.Ref[strings.LastIndex(ref.Ref, "/")+1:]
	}
	return where
}

func (o observed) walk(where string, ref *openapi3.SchemaRef, v any) {
	where = placeOf(where, ref)
	o.add(where, v)
	if v != nil {
		for _, part := range ref.Value.AllOf { // what may be null, and else is another
			o.walk(where, part, v)
		}
	}
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			if p := ref.Value.Properties[name]; p != nil {
				o.walk(where+"."+name, p, member)
			}
		}
	case []any:
		for _, item := range v {
			if ref.Value.Items != nil {
				o.walk(where+"[]", ref.Value.Items, item)
			}
		}
	}
}

// examplesIn goes through all examples of a schema and of what it holds.
func examplesIn(where string, ref *openapi3.SchemaRef, each func(where string, ref *openapi3.SchemaRef, example any)) {
	if ref == nil || ref.Ref != "" {
		return
	}
	if ref.Value.Example != nil {
		each(where, ref, ref.Value.Example)
	}
	for name, p := range ref.Value.Properties {
		examplesIn(where+"."+name, p, each)
	}
	examplesIn(where+"[]", ref.Value.Items, each)
}

// notSeen are places whose values the requests of this test cannot bring about,
// and why. What is not here must have been answered.
var notSeen = map[string]string{
	"Problem.retryAfter": "nothing is away",
	"header RetryAfter":  "nothing is away",
	"QualityRun.index":   "the demo's values came as the meters provided them",
	"QualityRun.count":   "likewise",
	"Quality":            "likewise",

	"Address.addition":            "nobody at the address of the test has one",
	"IngestStatus.meteringPoints": "it is not counted",
}

// sometimesSeen are places whose values come of what other tests of the demo do
// meanwhile, and of how long it runs.
var sometimesSeen = regexp.MustCompile(`^(OversightUnusual\..*|OversightLog\.(checkedAt|verifiedAt)|SupplierCertificate\.revokedAt|Supplier\.damaged|OversightFinding\.(code|count))$`)

// The contract's examples are what the running server answers: of the same
// form at each place, the headers too, and the problems word by word. What it
// takes of requests for examples is accepted.
func TestExamplesAreTrue(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	doc := w.contract.doc
	c := w.supplier(t, 0)
	office := w.office(t)
	from, to := lastMonth()
	period := url.Values{"from": {from.Format(time.DateOnly)}, "to": {to.Format(time.DateOnly)}, "purpose": {"BILLING"}}
	id := w.ready.Suppliers[0].ID
	p := w.point(t, func(p readyPoint) bool {
		return slices.ContainsFunc(p.Access, func(a readyAccess) bool { return a.Supplier == id && a.Basis == "CONSENT" })
	})
	ean := p.EAN
	view := office.errand(t, "eva", authz.Agent, authz.Errand{Kind: authz.ErrandView, EAN: sure(meter.ParseEAN(ean))})

	seen := observed{}
	send := func(by *caller, token, method, path string, body any, header ...string) (*http.Response, []byte) {
		t.Helper()
		var text io.Reader
		if body != nil {
			text = bytes.NewReader(sure(json.Marshal(body)))
		}
		req := sure(http.NewRequestWithContext(t.Context(), method, by.gateway+path, text))
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		if body != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		do := by.http
		if by == office.caller { // checked knows nothing of statements
			do = &http.Client{Transport: by.http.Transport.(checked).Transport}
		}
		res, err := do.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		defer res.Body.Close()
		return res, sure(io.ReadAll(res.Body))
	}
	responseOf := func(method, path string, status int) *openapi3.Response {
		t.Helper()
		r := doc.Paths.Value(path).GetOperation(method).Responses.Status(status)
		if r == nil {
			t.Fatalf("%s %s has no answer %d", method, path, status)
		}
		return r.Value
	}
	var entry, gln string // in paths
	// observe makes a request, which must be answered with a status, and keeps
	// the forms of all that is answered.
	observe := func(by *caller, token, method, path, query string, body any, status int, header ...string) (http.Header, map[string]any) {
		t.Helper()
		concrete := strings.NewReplacer("{ean}", ean, "{interaction}", entry, "{gln}", gln).Replace(path)
		res, raw := send(by, token, method, concrete+query, body, header...)
		if res.StatusCode != status {
			t.Errorf("%s %s%s: %d %s", method, concrete, query, res.StatusCode, raw)
			return res.Header, map[string]any{"id": ""}
		}
		response := responseOf(method, path, status)
		for name, ref := range response.Headers {
			v := res.Header.Get(name)
			if v == "" {
				continue
			}
			place := "header " + path + " " + name
			if ref.Ref != "" {
				place = "header " + ref.Ref[strings.LastIndex(ref.Ref, "/")+1:]
			}
			seen.add(place, v)
		}
		mediaType, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";")
		content := response.Content[mediaType]
		if content == nil {
			t.Fatalf("%s %s answers %s, which the contract does not have", method, path, mediaType)
		}
		switch mediaType {
		case "application/x-ndjson":
			for line := range bytes.Lines(raw) {
				var v any
				if err := json.Unmarshal(line, &v); err != nil {
					t.Fatal(err)
				}
				seen.walk("", content.Schema, v)
			}
			return res.Header, nil
		case "text/csv", "application/atom+xml", "text/html":
			first, _, _ := strings.Cut(string(raw), "\n")
			seen.add(placeOf("", content.Schema), string(raw))
			if example, ok := content.Schema.Value.Example.(string); ok && mediaType == "text/csv" {
				if want, _, _ := strings.Cut(example, "\n"); strings.TrimSpace(first) != strings.TrimSpace(want) {
					t.Errorf("%s %s: the table begins %q, the example %q", method, path, first, want)
				}
			} else if mediaType == "application/atom+xml" && !bytes.Contains(raw, []byte(strings.TrimSuffix(example, "…</feed>"))) {
				t.Errorf("%s %s: the feed has no %q", method, path, example)
			}
			return res.Header, nil
		}
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatal(err)
		}
		seen.walk("", content.Schema, v)
		m, _ := v.(map[string]any)
		return res.Header, m
	}

	token := c.accessToken(t)
	supplier := func(method, path, query string, body any, status int, header ...string) (http.Header, map[string]any) {
		t.Helper()
		return observe(c, token, method, path, query, body, status, header...)
	}
	query := map[string]any{"from": period.Get("from"), "to": period.Get("to"), "purpose": "BILLING"}
	energy := url.Values{"from": period["from"], "to": period["to"], "purpose": {"ENERGY_MANAGEMENT"}, "asOf": {time.Now().UTC().Format(time.RFC3339)}}

	supplier("GET", "/v1/metering-points", "?limit=10", nil, 200)
	supplier("GET", "/v1/metering-points/{ean}/readings", "?"+period.Encode(), nil, 200)
	supplier("GET", "/v1/metering-points/{ean}/readings", "?"+energy.Encode(), nil, 200)
	supplier("GET", "/v1/metering-points/{ean}/readings", "?"+period.Encode(), nil, 200, "Accept", "text/csv")
	supplier("GET", "/v1/metering-points/{ean}/readings", "?"+period.Encode(), nil, 200, "Accept", "application/atom+xml")
	supplier("GET", "/v1/metering-points/{ean}/access", "", nil, 200)
	var all []string
	for _, p := range w.ready.MeteringPoints {
		all = append(all, p.EAN)
	}
	query["limit"], query["meteringPoints"] = 10, all
	supplier("POST", "/v1/readings/query", "", query, 200)
	delete(query, "limit")
	delete(query, "meteringPoints")
	supplier("POST", "/v1/readings/query", "", query, 200, "Accept", "application/x-ndjson")
	query["meteringPoints"] = []string{ean, "871687140000000019"}
	supplier("POST", "/v1/readings/query", "", query, 200, "Accept", "application/x-ndjson")
	supplier("POST", "/v1/readings/query", "", query, 200, "Accept", "text/csv")
	supplier("GET", "/v1/changes", "?since="+url.QueryEscape(time.Now().Add(-2*time.Hour).UTC().Format(time.RFC3339)), nil, 200)
	supplier("GET", "/v1/status", "", nil, 200)
	observe(c, "", "GET", "/v1/manifest-keys", "", nil, 200)
	observe(c, "", "GET", "/healthz", "", nil, 200)
	observe(c, "", "GET", "/readyz", "", nil, 200)
	year := time.Now().UTC().Year()
	asked := map[string]any{
		"ean": ean, "purpose": "ENERGY_MANAGEMENT", "classes": []string{"intervals"}, "granularity": "PT1H", "from": fmt.Sprintf("%d-01-01", year), "to": fmt.Sprintf("%d-01-01", year+1),
		"validUntil": fmt.Sprintf("%d-01-01T00:00:00Z", year+1), "evidence": "contract-4711",
	}
	header, made := supplier("POST", "/v1/consents", "", asked, 201, "Idempotency-Key", "examples-"+fmt.Sprint(time.Now().UnixNano()))
	consent := made["id"].(string)
	supplier("GET", "/v1/metering-points/{ean}/consents", "", nil, 200)
	step := office.errand(t, "eva", authz.Agent, authz.Errand{
		Kind: authz.ErrandStep, EAN: sure(meter.ParseEAN(ean)), Action: authz.ActionGrant, ConsentID: uuid.MustParse(consent),
		Scope: [32]byte(sure(base64.RawURLEncoding.DecodeString(made["scopeDigest"].(string)))), Evidence: "call-2026-0815",
	})
	granted, raw := send(office.caller, step, "POST", "/v1/consents/"+consent+"/grant", map[string]any{"evidence": "call-2026-0815"}, "Idempotency-Key", consent, "If-Match", header.Get("ETag"))
	if granted.StatusCode != 200 {
		t.Fatalf("granted: %d %s", granted.StatusCode, raw)
	}
	if res, _ := send(c, token, "POST", "/v1/consents/"+consent+"/revoke", nil, "Idempotency-Key", consent, "If-Match", granted.Header.Get("ETag")); res.StatusCode != 200 {
		t.Errorf("revoked: %d", res.StatusCode)
	}
	observe(office.caller, view, "GET", "/v1/metering-points/{ean}/consents", "", nil, 200)
	for _, accept := range []string{"text/html", "text/csv"} {
		observe(office.caller, view, "GET", "/v1/metering-points/{ean}/access-log", "", nil, 200, "Accept", accept)
	}
	observe(office.caller, view, "GET", "/v1/metering-points/{ean}/access-log", "?limit=1000", nil, 200)
	observe(office.caller, view, "GET", "/v1/metering-points/{ean}/access-log", "?limit=10", nil, 200)

	// What the portal asks.
	_, seenPoint := observe(office.caller, view, "GET", "/v1/metering-points/{ean}/connection", "", nil, 200)
	address, _ := seenPoint["identity"].(map[string]any)["address"].(map[string]any)
	if address == nil {
		t.Fatalf("nobody is known at the metering point: %v", seenPoint["identity"])
	}
	find := office.errand(t, "eva", authz.Agent, authz.Errand{Kind: authz.ErrandFind,
		Postcode: sure(meter.ParsePostcode(address["postcode"].(string))), HouseNumber: sure(meter.ParseHouseNumber(address["houseNumber"].(string)))})
	observe(office.caller, find, "POST", "/v1/metering-points/find", "", map[string]any{"postcode": address["postcode"], "houseNumber": address["houseNumber"]}, 200)
	observe(office.caller, view, "POST", "/v1/consents/preview", "", map[string]any{"ean": ean, "step": "revoke", "consentId": consent}, 200)
	newTerms := maps.Clone(asked)
	newTerms["supplier"] = w.ready.Suppliers[0].ClientID
	observe(office.caller, view, "POST", "/v1/consents/preview", "", map[string]any{"ean": ean, "step": "register", "newConsent": newTerms}, 200)
	_, log := observe(office.caller, view, "GET", "/v1/metering-points/{ean}/access-log", "?limit=1000", nil, 200)
	for _, v := range log["entries"].([]any) {
		if e := v.(map[string]any); e["operation"] == "READINGS" && e["opened"].(float64) > 0 && e["outcome"] == "GIVEN" {
			entry = e["interactionId"].(string)
			break
		}
	}
	eventually(t, "the entry is in the audit log", func() bool {
		res, _ := send(office.caller, view, "GET", "/v1/metering-points/"+ean+"/access-log/"+entry+"/proof", nil)
		return res.StatusCode == 200
	})
	observe(office.caller, view, "GET", "/v1/metering-points/{ean}/access-log/{interaction}/proof", "", nil, 200)
	gln = w.ready.Suppliers[0].ClientID
	look := office.errand(t, "eva", authz.Supervisor, authz.Errand{Kind: authz.ErrandOversee})
	observe(office.caller, look, "GET", "/v1/suppliers", "", nil, 200)
	observe(office.caller, look, "GET", "/v1/operations", "", nil, 200)
	observe(office.caller, look, "GET", "/v1/oversight", "", nil, 200)
	resume := office.errand(t, "eva", authz.Supervisor, authz.Errand{Kind: authz.ErrandSupplier, Supplier: sure(meter.ParseGLN(gln))})
	observe(office.caller, resume, "POST", "/v1/suppliers/{gln}/resume", "", nil, 200, "If-Match", `"1"`) // it is not suspended

	// Problems that are shown as examples come word by word.
	exact := func(name, query string, path string) {
		t.Helper()
		want := doc.Components.Responses[name].Value.Content["application/problem+json"].Example.(map[string]any)
		res, raw := send(c, token, "GET", path+query, nil)
		var got, schema any
		if err := json.Unmarshal(raw, &got); err != nil {
			t.Fatal(err)
		}
		schema = got
		seen.walk("", doc.Components.Responses[name].Value.Content["application/problem+json"].Schema, schema)
		problem := got.(map[string]any)
		if kindOf(problem["interactionId"]) != kindOf(want["interactionId"]) || res.StatusCode != int(problem["status"].(float64)) {
			t.Errorf("%s: %s", name, raw)
		}
		delete(problem, "interactionId")
		expected := maps.Clone(want)
		delete(expected, "interactionId")
		if g, e := string(sure(json.Marshal(problem))), string(sure(json.Marshal(expected))); g != e {
			t.Errorf("%s: answered\n%s\nthe example is\n%s", name, g, e)
		}
	}
	exact("BadRequest", "?from=2026-04-01&to=2026-03-01&purpose=NONE", "/v1/metering-points/"+ean+"/readings")
	exact("NotFound", "?"+period.Encode(), "/v1/metering-points/871687140000000019/readings")
	unauthorized, _ := send(c, "", "GET", "/v1/status", nil)
	seen.add("header WwwAuthenticate", unauthorized.Header.Get("WWW-Authenticate"))

	// Every example of an answer is of a form that was answered at its place.
	requests := map[string]bool{"ReadingsQuery": true, "NewConsent": true, "ConsentAnswer": true, "AddressQuery": true, "ConsentPreviewQuery": true}
	compared := 0
	for name, ref := range doc.Components.Schemas {
		if requests[name] {
			continue
		}
		examplesIn(name, ref, func(where string, ref *openapi3.SchemaRef, example any) {
			if ref.Value.Type.Is("array") {
				return // its items are looked at
			}
			forms := seen[where]
			if sometimesSeen.MatchString(where) && len(forms) == 0 {
				return
			}
			if why := notSeen[where]; len(forms) == 0 && why == "" {
				t.Errorf("%s: nothing was answered that its example could be compared with", where)
			} else if len(forms) > 0 && why != "" {
				t.Errorf("%s: was answered, although %s", where, why)
			}
			if len(forms) == 0 {
				return
			}
			compared++
			// JSON null where the contract allows it is a form of its own; an
			// enumeration may be exemplified by another of its values.
			if !forms[kindOf(normal(example))] {
				t.Errorf("%s: the example %v is a %s, answered was a %s", where, example, kindOf(normal(example)), strings.Join(slices.Sorted(maps.Keys(forms)), ", "))
			}
		})
	}
	for name, h := range doc.Components.Headers {
		where := "header " + name
		if h.Value.Example == nil {
			continue
		}
		if len(seen[where]) == 0 {
			if _, ok := notSeen[where]; !ok {
				t.Errorf("%s was never answered", where)
			}
			continue
		}
		compared++
		if !seen[where][kindOf(fmt.Sprint(h.Value.Example))] {
			t.Errorf("%s: the example %v is a %s, answered was a %v", where, h.Value.Example, kindOf(fmt.Sprint(h.Value.Example)), slices.Sorted(maps.Keys(seen[where])))
		}
	}
	if compared < 100 {
		t.Errorf("only %d examples were compared", compared)
	}
	// Examples of metering points and parties have a true check digit.
	check := func(v any) {
		if s, ok := v.(string); ok && kindOf(s) == "EAN-18" {
			if _, err := meter.ParseEAN(s); err != nil {
				t.Errorf("%s: %v", s, err)
			}
		} else if ok && kindOf(s) == "GLN" {
			if _, err := meter.ParseGLN(s); err != nil {
				t.Errorf("%s: %v", s, err)
			}
		}
	}
	for name, ref := range doc.Components.Schemas {
		examplesIn(name, ref, func(_ string, _ *openapi3.SchemaRef, example any) { check(example) })
	}

	// Every example of a request is accepted: whatever comes of it, no parameter
	// is refused.
	accepted := func(method, path string, body any, header ...string) {
		t.Helper()
		res, raw := send(c, token, method, path, body, header...)
		switch res.StatusCode {
		case 400, 406, 415:
			t.Errorf("%s %s is made of examples, and refused: %s", method, path, raw)
		}
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if path == "/healthz" || path == "/readyz" {
				continue
			}
			required, concrete, headers := url.Values{}, path, []string{}
			var optional []*openapi3.Parameter
			for _, ref := range op.Parameters {
				p := ref.Value
				example := p.Example
				if example == nil {
					example = p.Schema.Value.Example
				}
				if example == nil && p.Schema.Value.Enum != nil {
					example = p.Schema.Value.Enum[0]
				}
				if example == nil {
					t.Errorf("%s: parameter %s has no example", op.OperationID, p.Name)
					continue
				}
				text := asText(example)
				switch {
				case p.In == "path":
					concrete = strings.ReplaceAll(concrete, "{"+p.Name+"}", text)
				case p.In == "header":
					headers = append(headers, p.Name, text)
				case p.Required:
					required.Set(p.Name, text)
				case p.Name != "cursor": // opaque, and of one caller
					optional = append(optional, p)
				}
			}
			var body any
			if op.RequestBody != nil {
				body = exampleOf(op.RequestBody.Value.Content["application/json"].Schema)
			}
			call := func(q url.Values) { t.Helper(); accepted(method, concrete+"?"+q.Encode(), body, headers...) }
			call(required)
			for _, p := range optional {
				q := maps.Clone(required)
				example := p.Example
				if example == nil {
					example = p.Schema.Value.Example
				}
				if example == nil {
					example = p.Schema.Value.Enum[0]
				}
				if p.Name == "since" { // at most 90 days ago
					example = time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
				}
				q.Set(p.Name, asText(example))
				if other := map[string]string{"from": "to", "to": "from"}[p.Name]; other != "" && !q.Has(other) {
					q.Set(other, map[string]string{"from": "2026-03-01", "to": "2026-04-01"}[other])
				}
				call(q)
			}
		}
	}
}

// normal is a value as JSON reads it.
func normal(v any) (out any) {
	if json.Unmarshal(sure(json.Marshal(v)), &out) != nil {
		return v
	}
	return out
}

func asText(v any) string {
	if list, ok := v.([]any); ok {
		parts := make([]string, len(list))
		for i, p := range list {
			parts[i] = fmt.Sprint(p)
		}
		return strings.Join(parts, ",")
	}
	return fmt.Sprint(v)
}

// exampleOf puts a request together from the examples of its members.
func exampleOf(ref *openapi3.SchemaRef) any {
	s := ref.Value
	if s.Example != nil {
		return normal(s.Example)
	}
	switch {
	case s.Type.Is("array"):
		return []any{exampleOf(s.Items)}
	case s.Type.Is("object"):
		out := map[string]any{}
		for name, p := range s.Properties {
			// A cursor is opaque and of one caller; class and fields exclude each other.
			if name != "cursor" && name != "class" {
				out[name] = exampleOf(p)
			}
		}
		return out
	}
	return nil
}
