package server

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/go-chi/chi/v5"

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

// There are two spellings of yes and no, of the many that validator and binding
// take.
func TestCheckConnection(t *testing.T) {
	t.Parallel()
	s := &Server{profile: dutch(t)}
	for query, good := range map[string]bool{
		"": true, "identity=true": true, "identity=false": true, "identity": false, "identity=": false, "identity=1": false, "identity=0": false, "identity=t": false,
		"identity=F": false, "identity=TRUE": false, "identity=False": false, "identity=%20true": false, "identity=no": false,
	} {
		errs := checkConnection(s, withEAN(httptest.NewRequest("GET", "/?"+query, nil), testEAN))
		if (len(errs) == 0) != good || !good && (len(errs) != 1 || errs[0] != openapi.ParameterError{Pointer: "/query/identity", Reason: wantBool}) {
			t.Errorf("%q: %+v", query, errs)
		}
	}
	errs := checkConnection(s, withEAN(httptest.NewRequest("GET", "/?identity=maybe", nil), "123"))
	if len(errs) != 2 || errs[0].Pointer != "/path/ean" {
		t.Errorf("%+v", errs)
	}
	if got := wanted(&openapi3.Parameter{Name: "identity", In: "query", Schema: openapi3.NewBoolSchema().NewRef()}); got != wantBool {
		t.Errorf("the contract's own: %q", got)
	}
}

// withEAN is a request whose path the router has read.
func withEAN(r *http.Request, ean string) *http.Request {
	rc := chi.NewRouteContext()
	rc.URLParams.Add("ean", ean)
	return r.WithContext(context.WithValue(r.Context(), chi.RouteCtxKey, rc))
}
