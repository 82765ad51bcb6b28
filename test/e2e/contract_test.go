package e2e

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"mime"
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
	media, _, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if err != nil && len(body) > 0 {
		return fmt.Errorf("the media type: %w", err)
	}
	if !strings.HasSuffix(media, "json") || media == "application/x-ndjson" {
		return c.other(req, res, media, body)
	}
	return c.json(req, res, body)
}

// other judges what is no JSON: tables, feeds, streams, and nothing at all.
func (c contract) other(req *http.Request, res *http.Response, media string, body []byte) error {
	if res.Header.Get("X-Interaction-Id") == "" {
		return errors.New("an answer without X-Interaction-Id")
	}
	switch {
	case res.StatusCode == http.StatusNotModified:
		if len(body) > 0 {
			return errors.New("304 with a body")
		}
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("%d as %q: a problem is JSON", res.StatusCode, media)
	case media == "application/x-ndjson":
		for line := range bytes.Lines(body) {
			var v any
			if err := json.Unmarshal(line, &v); err != nil {
				return fmt.Errorf("a line is not JSON: %w", err)
			}
			if err := c.doc.Components.Schemas["StreamLine"].Value.VisitJSON(v); err != nil {
				return fmt.Errorf("not a line of the contract: %w", err)
			}
		}
	case media == "text/csv":
		rows, err := csv.NewReader(bytes.NewReader(body)).ReadAll() // of one length each
		if err != nil {
			return err
		}
		columns, _, _ := strings.Cut(c.doc.Components.Schemas["Table"].Value.Example.(string), "\n")
		if strings.Join(rows[0], ",") != columns {
			return fmt.Errorf("a table with the columns %v", rows[0])
		}
	case media == "application/atom+xml":
		var feed struct {
			XMLName xml.Name `xml:"http://www.w3.org/2005/Atom feed"`
		}
		if err := xml.Unmarshal(body, &feed); err != nil {
			return err
		}
	default:
		return fmt.Errorf("an answer as %q", media)
	}
	return c.valid(req, res, body, true)
}

func (c contract) json(req *http.Request, res *http.Response, body []byte) error {
	var named struct{ InteractionID string }
	if err := json.Unmarshal(body, &named); err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	id := res.Header.Get("X-Interaction-Id")
	probe := req.URL.Path == "/healthz" || req.URL.Path == "/readyz" || req.URL.Path == "/v1/manifest-keys"
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
	return c.valid(req, res, body, false)
}

// valid holds an answer to its operation; a body that is no JSON is not looked
// at.
func (c contract) valid(req *http.Request, res *http.Response, body []byte, headOnly bool) error {
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
		Options:                &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true, ExcludeResponseBody: headOnly},
	})
	if err != nil {
		return fmt.Errorf("the answer breaks the contract: %w", err)
	}
	return nil
}

// slug is a problem's type without its prefix.
func slug(problemType string) string { return strings.TrimPrefix(problemType, "urn:kluis:problem:") }
