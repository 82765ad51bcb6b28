package server

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"kluis/openapi"
)

// goingAway is the contract, changed.
func goingAway(t *testing.T, change func(op *openapi3.Operation)) (*deprecated, error) {
	t.Helper()
	doc, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	rt := &routes[1]
	change(doc.Paths.Value(rt.path).GetOperation(rt.method))
	return deprecatedOf(doc, rt, "https://kluis.example/docs")
}

func dates(since, sunset string) map[string]any {
	x := map[string]any{}
	if since != "" {
		x[sinceKey] = since
	}
	if sunset != "" {
		x[sunsetKey] = sunset
	}
	return x
}

func TestDeprecation(t *testing.T) {
	t.Parallel()
	whole := func(since, sunset string) func(op *openapi3.Operation) {
		return func(op *openapi3.Operation) { op.Deprecated, op.Extensions = true, dates(since, sunset) }
	}
	part := func(name, since, sunset string) func(op *openapi3.Operation) {
		return func(op *openapi3.Operation) {
			for _, p := range op.Parameters {
				if p.Value.Name == name {
					changed := *p.Value
					changed.Deprecated, changed.Extensions = true, dates(since, sunset)
					p.Value = &changed
				}
			}
		}
	}
	both := func(op *openapi3.Operation) {
		whole("2027-06-01", "2029-01-01")(op)
		part("class", "2027-01-01", "2028-07-01")(op)
	}
	const link = `<https://kluis.example/docs>; rel="deprecation"; type="text/html"`
	for name, tc := range map[string]struct {
		change                    func(*openapi3.Operation)
		query, header             string
		deprecation, sunset, link string
	}{
		"nothing":                     {change: func(*openapi3.Operation) {}},
		"an operation":                {whole("2027-01-01", "2028-01-01"), "", "", "@1798761600", "Sat, 01 Jan 2028 00:00:00 GMT", link},
		"an operation, no end yet":    {whole("2027-01-01", ""), "", "", "@1798761600", "", link},
		"a parameter, used":           {part("class", "2027-01-01", "2028-01-01"), "class=registers", "", "@1798761600", "Sat, 01 Jan 2028 00:00:00 GMT", link},
		"a parameter, used, empty":    {part("class", "2027-01-01", ""), "class=", "", "@1798761600", "", link},
		"a parameter, not used":       {part("class", "2027-01-01", "2028-01-01"), "fields=import_low", "", "", "", ""},
		"a header, used":              {part("If-None-Match", "2027-01-01", ""), "", "If-None-Match", "@1798761600", "", link},
		"a header, not used":          {part("If-None-Match", "2027-01-01", ""), "If-None-Match=x", "", "", "", ""},
		"both: the first of either":   {both, "class=registers", "", "@1798761600", "Sat, 01 Jul 2028 00:00:00 GMT", link},
		"both, of which one is used":  {both, "", "", "@1811808000", "Mon, 01 Jan 2029 00:00:00 GMT", link},
		"a query that does not parse": {part("class", "2027-01-01", ""), "%zz", "", "", "", ""},
	} {
		d, err := goingAway(t, tc.change)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		h := http.Header{}
		r := httptest.NewRequest(http.MethodGet, "/x?"+tc.query, nil)
		if tc.header != "" {
			r.Header.Set(tc.header, "x")
		}
		d.mark(h, r)
		if h.Get("Deprecation") != tc.deprecation || h.Get("Sunset") != tc.sunset || h.Get("Link") != tc.link {
			t.Errorf("%s: %v", name, h)
		}
	}
	// A contract that says half of it starts no server.
	for name, change := range map[string]func(*openapi3.Operation){
		"no date":              whole("", ""),
		"an end only":          whole("", "2028-01-01"),
		"no day":               whole("soon", ""),
		"an end that is none":  whole("2027-01-01", "never"),
		"less than a year":     whole("2027-01-01", "2027-12-31"),
		"a date, and it stays": func(op *openapi3.Operation) { op.Extensions = dates("2027-01-01", "") },
		"a parameter's":        part("class", "2027-01-01", "2027-02-01"),
	} {
		if _, err := goingAway(t, change); err == nil || !strings.Contains(err.Error(), "getReadings") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whoever is told to try later is told when.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for _, k := range problems {
		later := k.status == http.StatusTooManyRequests || k.status == http.StatusServiceUnavailable || k.status == http.StatusGatewayTimeout
		if later && (&failure{kind: k}).retryIn() == "" {
			t.Errorf("%s does not say when to try again", k.slug)
		}
	}
	if got := (&failure{kind: rateLimited, retryAfter: 17}).retryIn(); got != "17" {
		t.Errorf("%s", got)
	}
	if got := (&failure{kind: notFound}).retryIn(); got != "" {
		t.Errorf("%s", got)
	}
}
