package server

import (
	"context"
	"errors"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"

	"kluis/openapi"
)

// An error of the validator that nobody foresaw is a fault of the gateway, and
// its text, which may hold what was sent, goes nowhere.
func TestUnforeseenValidationError(t *testing.T) {
	t.Parallel()
	s := &Server{profile: dutch(t)}
	r := httptest.NewRequest("GET", "/v1/status", nil)
	r = r.WithContext(context.WithValue(r.Context(), callKey{}, &call{route: &routes[slices.IndexFunc(routes, func(rt route) bool { return rt.path == "/v1/status" })]}))
	param := &openapi3.Parameter{Name: "limit", In: "query", Schema: openapi3.NewIntegerSchema().WithMin(1).WithMax(9).NewRef()}
	for name, err := range map[string]error{
		"plain":      errors.New("secret"),
		"in a list":  openapi3.MultiError{&openapi3filter.RequestError{Parameter: param}, errors.New("secret")},
		"the body's": &openapi3filter.RequestError{RequestBody: &openapi3.RequestBody{}, Err: errors.New("secret")},
		"empty list": openapi3.MultiError{},
	} {
		f := asFailure(t.Context(), s.refuseParams(r, err))
		if f.kind != internalError || strings.Contains(f.Error(), "secret") || len(f.params) > 0 {
			t.Errorf("%s: %v", name, f)
		}
	}
	f := asFailure(t.Context(), s.refuseParams(r, &openapi3filter.RequestError{Parameter: param, Err: errors.New("secret")}))
	if want := (openapi.ParameterError{Pointer: "/query/limit", Reason: "must be an integer from 1 to 9"}); f.kind != invalidParameters || len(f.params) != 1 || f.params[0] != want {
		t.Errorf("%+v", f)
	}
}
