package web

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/meter"
	"kluis/openapi/client"
)

// listener stands where gateway and issuer do, and notes how connections are asked
// for. Of all else it answers that there is nothing.
type listener struct {
	mu    sync.Mutex
	asked []string // the query of each getConnection
}

const resident = "Xantippe Overdam"

func (l *listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.URL.Path == "/oauth2/token":
		_, _ = io.WriteString(w, `{"access_token": "a", "token_type": "Bearer", "expires_in": 300}`)
	case strings.HasSuffix(r.URL.Path, "/connection"):
		l.mu.Lock()
		l.asked = append(l.asked, r.URL.RawQuery)
		l.mu.Unlock()
		since := func(s string) *openapi_types.Date { return apiDay(must(meter.ParseDay(s))) }
		c := client.Connection{Ean: ean, Commodity: "electricity", Occupancies: []client.DayPeriod{
			{From: *since("2020-01-01"), To: since("2024-05-01")}, {From: *since("2024-05-01"), To: since("2999-01-01")}}}
		c.Identity.State = client.IdentityNotAsked
		if r.URL.Query().Get("identity") != "false" {
			name := resident
			c.Identity = client.ConnectionIdentity{State: client.IdentityGiven, Name: &name, Address: &client.Address{Street: "Dorpsstraat", HouseNumber: "17"}}
		}
		_ = json.NewEncoder(w).Encode(c)
	default:
		_, _ = io.WriteString(w, `{}`)
	}
}

// taken is how connections were asked for since the last time.
func (l *listener) taken() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	asked := l.asked
	l.asked = nil
	return asked
}

// TestNamesAreAskedForWhereTheyAreShown: each asking decrypts a name and address,
// and the customer sees that somebody did.
func TestNamesAreAskedForWhereTheyAreShown(t *testing.T) {
	t.Parallel()
	api := &listener{}
	o := newOffice(t, func(c *Config) {
		s := httptest.NewUnstartedServer(api)
		s.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: c.ClientTLS.Certificates}
		s.StartTLS()
		t.Cleanup(s.Close)
		c.Gateway, c.Issuer = s.URL, s.URL
	})
	eva := o.signIn("eva")
	path := eva.openCase()
	api.taken()

	// All pages of a case, those of tomorrow too.
	shows := map[string]bool{"GET /c/{case}": true, "GET /c/{case}/statement": true}
	filled := url.Values{"tag": {"t"}, "key": {"k"}, "digest": {"d"}}
	asking := map[string]bool{}
	for _, rt := range o.portal.table {
		if !strings.HasPrefix(rt.path, "/c/{case}") {
			continue
		}
		of := rt.method + " " + rt.path
		var form url.Values
		if rt.method == http.MethodPost {
			form = filled
		}
		to := strings.NewReplacer("{step}", "grant", "{id}", uuid.NewString(), "{interaction}", uuid.NewString()).Replace(at(rt, path))
		if p := eva.do(rt.method, to, form); strings.Contains(p.body, resident) != shows[of] {
			t.Errorf("%s: %s, the name is shown: %t", of, p.Status, !shows[of])
		}
		for _, q := range api.taken() {
			asking[of] = true
			if want := fmt.Sprintf("identity=%t", shows[of]); q != want {
				t.Errorf("%s asks with %q, want %q", of, q, want)
			}
		}
	}
	for _, of := range []string{
		"GET /c/{case}", "GET /c/{case}/statement", "GET /c/{case}/access", "GET /c/{case}/access/former", "GET /c/{case}/readings", "GET /c/{case}/consents",
		"GET /c/{case}/consents/new", "POST /c/{case}/consents/new", "GET /c/{case}/consents/{id}/{step}", "POST /c/{case}/consents/{id}/{step}",
	} {
		if !asking[of] {
			t.Errorf("%s asks for no connection any more: this test is to be changed", of)
		}
	}

	// The statement is of one customer.
	for query, want := range map[string][]string{
		"":                                {"identity=true"},
		"?occupancy=":                     {"identity=true"},
		"?occupancy=2020-01-01":           {"identity=false"},
		"?occupancy=2024-05-01":           {"identity=false", "identity=true"}, // who is about to move, and lives there
		"?occupancy=2021-01-01":           {"identity=false"},                  // nobody's first day
		"?from=2026-03-02&to=2026-03-01":  {"identity=false"},                  // no statement is made
		"?occupancy=2020-01-01&from=oops": {"identity=false"},
	} {
		p := eva.get(path + "/statement" + query)
		if got := api.taken(); !slices.Equal(got, want) || strings.Contains(p.body, resident) != slices.Contains(want, "identity=true") {
			t.Errorf("statement%s: %s, asked with %q, want %q", query, p.Status, got, want)
		}
	}
}
