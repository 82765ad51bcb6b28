package e2e

import (
	"testing"

	"kluis/openapi/client"
)

func TestStatus(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	res, err := w.supplier(t, 0).api.GetStatusWithResponse(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := res.JSON200
	if s == nil || s.Status != client.StatusStatusUP || len(s.Backends) != 3 {
		t.Errorf("%d: %s", res.StatusCode(), res.Body)
	}
}
