package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"kluis/openapi"
)

// contract holds answers to openapi.yaml.
type contract struct {
	doc    *openapi3.T
	router routers.Router
}

func loadContract() (contract, error) {
	doc, err := openapi.Load()
	if err != nil {
		return contract{}, err
	}
	router, err := gorillamux.NewRouter(doc)
	return contract{doc, router}, err
}

// check says what in an answer is not as the contract has it.
func (c contract) check(req *http.Request, res *http.Response, body []byte) error {
	if res.Header.Get("Cache-Control") != "no-store" {
		return errors.New("the answer may be stored by caches")
	}
	var named struct{ InteractionID string }
	if err := json.Unmarshal(body, &named); err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	id := res.Header.Get("X-Interaction-Id")
	probe := req.URL.Path == "/healthz" || req.URL.Path == "/readyz"
	// A resource that has an entity tag says nothing of the request it came by.
	resource := res.Header.Get("ETag") != "" && named.InteractionID == ""
	if id == "" || id != named.InteractionID && !resource && !(probe && res.StatusCode != http.StatusBadRequest) {
		return fmt.Errorf("X-Interaction-Id is %q, the body has %q", id, named.InteractionID)
	}
	if res.StatusCode >= 400 && !probe {
		if got := res.Header.Get("Content-Type"); got != "application/problem+json" {
			return fmt.Errorf("a problem has the media type %q", got)
		}
		var v any
		if err := json.Unmarshal(body, &v); err != nil {
			return err
		}
		if err := c.doc.Components.Schemas["Problem"].Value.VisitJSON(v); err != nil {
			return fmt.Errorf("not a problem of the contract: %w", err)
		}
		if v.(map[string]any)["status"] != float64(res.StatusCode) {
			return errors.New("the problem's status is not the answer's")
		}
	}
	// Whatever was sent, its path decides which operation answered.
	plain := *req
	plain.URL = req.URL.JoinPath()
	route, params, err := c.router.FindRoute(&plain)
	if err != nil {
		if res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusMethodNotAllowed {
			return nil
		}
		return fmt.Errorf("%d for no operation of the contract: %w", res.StatusCode, err)
	}
	err = openapi3filter.ValidateResponse(req.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: &plain, Route: route, PathParams: params},
		Status:                 res.StatusCode,
		Header:                 res.Header,
		Body:                   io.NopCloser(bytes.NewReader(body)),
		Options:                &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	})
	if err != nil {
		return fmt.Errorf("the answer breaks the contract: %w", err)
	}
	return nil
}

// slug is a problem's type without its prefix.
func slug(problemType string) string { return strings.TrimPrefix(problemType, "urn:kluis:problem:") }
