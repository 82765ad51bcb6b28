package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"
	middleware "github.com/oapi-codegen/nethttp-middleware"

	"kluis/meter"
	"kluis/openapi"
)

// pointers is what the log says of refused parameters: which, never what.
type pointers []openapi.ParameterError

func (p pointers) Error() string {
	var b bytes.Buffer
	for i, e := range p {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(e.Pointer)
	}
	return b.String()
}

// validate holds requests to the contract, and to what the contract's language
// cannot say of a query string. doc is taken over.
func (s *Server) validate(doc *openapi3.T) func(*route) func(http.Handler) http.Handler {
	contract := middleware.OapiRequestValidatorWithOptions(doc, &middleware.Options{
		DoNotValidateServers: true,
		Options: openapi3filter.Options{
			MultiError: true,
			// A default is not what was sent: whether a parameter was may count.
			SkipSettingDefaults: true,
			ExcludeRequestBody:  true,                                  // read before, and judged more strictly: see readBody
			AuthenticationFunc:  openapi3filter.NoopAuthenticationFunc, // done before: see authenticate
		},
		ErrorHandlerWithOpts: func(_ context.Context, err error, w http.ResponseWriter, r *http.Request, opts middleware.ErrorHandlerOpts) {
			if opts.MatchedRoute == nil { // an escaped slash: a path to the router, none to the contract
				err = fail(notFound, nil)
			}
			s.writeFailure(w, r, s.refuseParams(r, err))
		},
	})
	return func(rt *route) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return contract(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if errs := checkQueryString(r, rt.query); len(errs) > 0 {
					s.writeFailure(w, r, s.refuseParams(r, failParams(errs)))
					return
				}
				// Before the generated code, which is easily pleased, reads it.
				if rt.check != nil {
					if errs := rt.check(s, r); len(errs) > 0 {
						s.writeFailure(w, r, failParams(errs))
						return
					}
				}
				next.ServeHTTP(w, r)
			}))
		}
	}
}

// refuseParams turns an error about parameters, from the validator or the
// generated binding, into the list of everything that is wrong with them. It
// leaves other problems alone.
func (s *Server) refuseParams(r *http.Request, err error) error {
	var f *failure
	if errors.As(err, &f) && f.kind != invalidParameters {
		return err
	}
	var errs paramErrors
	if !contractErrors(err, &errs) {
		return fail(internalError, fmt.Errorf("request validation failed with a %T", err)) // its text may hold what was sent
	}
	rt := routeOf(r.Context())
	for _, e := range checkQueryString(r, rt.query) {
		errs.add(e.Pointer, e.Reason)
	}
	if rt.check != nil {
		for _, e := range rt.check(s, r) {
			errs.add(e.Pointer, e.Reason)
		}
	}
	return failParams(errs)
}

// contractErrors collects the faulty parameters from err; false when err is
// about something else. It takes err apart by its type: what an error of the
// validator wraps is again lists of errors, about values.
func contractErrors(err error, errs *paramErrors) bool {
	switch e := err.(type) {
	case openapi3.MultiError:
		for _, e := range e {
			if !contractErrors(e, errs) {
				return false
			}
		}
		return len(e) > 0
	case *openapi3filter.RequestError:
		if e.Parameter == nil {
			return false
		}
		reason := wanted(e.Parameter)
		if errors.Is(e.Err, openapi3filter.ErrInvalidRequired) {
			reason = "is required"
		}
		errs.add("/"+e.Parameter.In+"/"+e.Parameter.Name, reason)
		return true
	case *failure:
		for _, p := range e.params {
			errs.add(p.Pointer, p.Reason)
		}
		return true
	// What the validator lets pass and the binding does not.
	case *openapi.InvalidParamFormatError:
		want := wantDay
		if e.ParamName == "asOf" || e.ParamName == "since" {
			want = wantAsOf
		}
		errs.add("/query/"+e.ParamName, want)
		return true
	case *openapi.TooManyValuesForParamError: // of headers; elsewhere repetition is found before
		errs.add("/header/"+e.ParamName, "must be sent once")
		return true
	}
	return false
}

// wanted says what a parameter must be, from the contract alone: messages of
// the validator may hold the value sent.
func wanted(p *openapi3.Parameter) string {
	sc := p.Schema.Value
	switch {
	case len(sc.Enum) > 0:
		var words []string
		for _, v := range sc.Enum {
			words = append(words, fmt.Sprint(v))
		}
		return "must be one of " + strings.Join(words, ", ")
	case sc.Format == "date":
		return wantDay
	case sc.Format == "date-time":
		return wantAsOf
	case sc.Type.Is("integer") && sc.Min != nil && sc.Max != nil:
		return fmt.Sprintf("must be an integer from %.0f to %.0f", *sc.Min, *sc.Max)
	case sc.Type.Is("boolean"):
		return wantBool
	case sc.Type.Is("array"):
		return "must be different names, separated by commas"
	case p.Name == "ean":
		return wantEAN
	case p.Name == "cursor":
		return wantCursor
	case p.Name == "supplier", p.Name == "gln":
		return wantGLN
	case p.Name == "id", p.Name == "interaction":
		return wantID
	case p.Name == "Idempotency-Key":
		return "must be 1 to 128 printable ASCII characters, without spaces"
	case p.Name == "If-Match":
		return wantIfMatch
	case p.Name == "If-None-Match":
		return wantIfNoneMatch
	}
	return "does not follow the contract"
}

const (
	wantEAN  = "must be an EAN-18: 18 digits, the last a valid GS1 check digit"
	wantBool = "must be true or false"
	wantID   = "must be a UUID: 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12, not all of them 0"
)

// checkQueryString refuses what the contract does not know: unknown and
// repeated parameters, which the validator passes over, and a query string
// that does not parse.
func checkQueryString(r *http.Request, known []string) paramErrors {
	var errs paramErrors
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		errs.add("/query", "must be a well-formed query string")
	}
	for name, values := range q {
		switch {
		case !slices.Contains(known, name):
			// The name is the caller's text: it is not repeated either.
			reason := "must hold no unknown parameters; this operation has none"
			if len(known) > 0 {
				reason = "must hold no unknown parameters; known are " + strings.Join(known, ", ")
			}
			errs.add("/query", reason)
		case len(values) > 1:
			errs.add("/query/"+name, "must be given once")
		}
	}
	slices.SortFunc(errs, func(a, b openapi.ParameterError) int { return strings.Compare(a.Pointer, b.Pointer) })
	return errs
}

// checkReadings finds the faults of a getReadings request that the contract
// cannot say.
func checkReadings(s *Server, r *http.Request) paramErrors {
	_, errs := sentReadingsParams(chi.URLParam(r, "ean"), r.URL.Query()).parse(s.profile, s.now())
	return errs
}

// checkEAN does the same where there is nothing but a metering point,
func checkEAN(_ *Server, r *http.Request) paramErrors {
	var errs paramErrors
	if _, err := meter.ParseEAN(chi.URLParam(r, "ean")); err != nil {
		errs.add("/path/ean", wantEAN)
	}
	return errs
}

// checkID where there is nothing but a consent,
func checkID(_ *Server, r *http.Request) paramErrors {
	var errs paramErrors
	if id, err := uuid.Parse(chi.URLParam(r, "id")); err != nil || id == uuid.Nil {
		errs.add("/path/id", wantID)
	}
	return errs
}

// checkProof where there is an entry of the access log,
func checkProof(s *Server, r *http.Request) paramErrors {
	errs := checkEAN(s, r)
	if id, err := uuid.Parse(chi.URLParam(r, "interaction")); err != nil || id == uuid.Nil {
		errs.add("/path/interaction", wantID)
	}
	if day := r.URL.Query().Get("occupancy"); day != "" {
		if _, err := meter.ParseDay(day); err != nil {
			errs.add("/query/occupancy", wantDay)
		}
	}
	return errs
}

// checkPreview for previewConsent,
func checkPreview(_ *Server, r *http.Request) paramErrors {
	_, errs := parsePreview(callOf(r.Context()).body)
	return errs
}

// checkNewConsent for createConsent,
func checkNewConsent(_ *Server, r *http.Request) paramErrors {
	c := callOf(r.Context())
	_, errs := parseNewConsent(c.body, c.caller.Employee() != nil)
	return errs
}

// checkGrant for grantConsent,
func checkGrant(s *Server, r *http.Request) paramErrors {
	_, errs := parseConsentAnswer(callOf(r.Context()).body)
	return append(errs, checkIfMatch(s, r)...)
}

// checkIfMatch for the other steps of a consent,
func checkIfMatch(s *Server, r *http.Request) paramErrors {
	errs := checkID(s, r)
	if tag := r.Header.Get("If-Match"); tag != "" {
		if _, err := parseIfMatch(tag); err != nil {
			errs.add("/header/If-Match", wantIfMatch)
		}
	}
	return errs
}

// checkList does the same for listMeteringPoints.
func checkList(s *Server, r *http.Request) paramErrors {
	var errs paramErrors
	if c := r.URL.Query().Get("cursor"); c != "" {
		if _, err := s.listCursor(callOf(r.Context()).caller.Supplier(), c); err != nil {
			errs.add("/query/cursor", cursorFault(err))
		}
	}
	return errs
}
