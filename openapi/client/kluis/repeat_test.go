package kluis

import (
	"net/http/httptest"
	"testing"
)

// A request that might do something twice is sent once.
func TestRepeatable(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method, path, key string
		want              bool
	}{
		"a GET":                 {"GET", "/v1/suppliers", "", true},
		"a query":               {"POST", "/v1/readings/query", "", true},
		"a find":                {"POST", "/v1/metering-points/find", "", true},
		"a preview":             {"POST", "/v1/consents/preview", "", true},
		"a supplier's stop":     {"POST", "/v1/suppliers/8712345600020/suspend", "", true},
		"a supplier's resuming": {"POST", "/v1/suppliers/8712345600020/resume", "", true},
		"a step with a key":     {"POST", "/v1/consents/x/revoke", "key-1", true},
		"a step without":        {"POST", "/v1/consents/x/revoke", "", false},
		"a consent":             {"POST", "/v1/consents", "", false},
	} {
		r := httptest.NewRequest(c.method, "https://api.test"+c.path, nil)
		r.Header.Set("Idempotency-Key", c.key)
		if got := repeatable(r); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
