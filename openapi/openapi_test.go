package openapi

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

func load(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// Clients are generated from these names: a change breaks them without any
// other sign.
func TestOperationIDsAreStable(t *testing.T) {
	t.Parallel()
	want := map[string]string{
		"GET /v1/metering-points":                                      "listMeteringPoints",
		"POST /v1/metering-points/find":                                "findMeteringPoints",
		"GET /v1/metering-points/{ean}/connection":                     "getConnection",
		"POST /v1/consents/preview":                                    "previewConsent",
		"GET /v1/suppliers":                                            "listSuppliers",
		"POST /v1/suppliers/{gln}/suspend":                             "suspendSupplier",
		"POST /v1/suppliers/{gln}/resume":                              "resumeSupplier",
		"GET /v1/operations":                                           "getOperations",
		"GET /v1/oversight":                                            "getOversight",
		"GET /v1/metering-points/{ean}/access-log/{interaction}/proof": "getAccessProof",
		"GET /v1/metering-points/{ean}/readings":                       "getReadings",
		"GET /v1/metering-points/{ean}/access":                         "getAccess",
		"POST /v1/readings/query":                                      "queryReadings",
		"GET /v1/changes":                                              "listChanges",
		"GET /v1/manifest-keys":                                        "getManifestKeys",
		"GET /v1/metering-points/{ean}/consents":                       "listConsents",
		"GET /v1/metering-points/{ean}/access-log":                     "getAccessLog",
		"POST /v1/consents":                                            "createConsent",
		"GET /v1/consents/{id}":                                        "getConsent",
		"POST /v1/consents/{id}/grant":                                 "grantConsent",
		"POST /v1/consents/{id}/reject":                                "rejectConsent",
		"POST /v1/consents/{id}/revoke":                                "revokeConsent",
		"GET /v1/status":                                               "getStatus",
		"GET /healthz":                                                 "getHealth",
		"GET /readyz":                                                  "getReadiness",
	}
	got := map[string]string{}
	for path, item := range load(t).Paths.Map() {
		for method, op := range item.Operations() {
			got[method+" "+path] = op.OperationID
		}
	}
	for op, id := range want {
		if got[op] != id {
			t.Errorf("%s has operationId %q, want %q", op, got[op], id)
		}
	}
	for op := range got {
		if want[op] == "" {
			t.Errorf("%s is not in the list of this test", op)
		}
	}
}

// The table of problems in the description and the enumeration of types must
// name the same slugs.
func TestProblemsAreListedOnce(t *testing.T) {
	t.Parallel()
	doc := load(t)
	var table []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(doc.Info.Description, -1) {
		table = append(table, m[1])
	}
	var enum []string
	for _, v := range doc.Components.Schemas["Problem"].Value.Properties["type"].Value.Enum {
		slug, ok := strings.CutPrefix(v.(string), "urn:kluis:problem:")
		if !ok {
			t.Errorf("problem type %q is no urn:kluis:problem", v)
		}
		enum = append(enum, slug)
	}
	if !slices.Equal(table, enum) {
		t.Errorf("described: %q\nenumerated: %q", table, enum)
	}
}

// Everything a client meets is described, with an example where a value is not
// an object or a list.
func TestEverythingIsDescribed(t *testing.T) {
	t.Parallel()
	doc := load(t)
	for name, ref := range doc.Components.Schemas {
		s := ref.Value
		if s.Description == "" {
			t.Errorf("schema %s has no description", name)
		}
		if !s.Type.Is("object") {
			if s.Example == nil {
				t.Errorf("schema %s has no example", name)
			}
			continue
		}
		describeProperties(t, name, s)
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.Summary == "" || len(op.Tags) == 0 {
				t.Errorf("%s %s has no summary or tag", method, path)
			}
			for _, p := range op.Parameters {
				if p.Value.Description == "" {
					t.Errorf("%s %s: parameter %s has no description", method, path, p.Value.Name)
				}
			}
		}
	}
}

func describeProperties(t *testing.T, name string, s *openapi3.Schema) {
	t.Helper()
	for prop, ref := range s.Properties {
		p := ref.Value
		if p.Description == "" {
			t.Errorf("%s.%s has no description", name, prop)
		}
		switch {
		case p.Type.Is("object"):
			describeProperties(t, name+"."+prop, p)
		case p.Type.Is("array"), p.Example != nil, p.Nullable:
		default:
			t.Errorf("%s.%s has no example", name, prop)
		}
	}
}

// Every operation but the probes and the public keys wants a token: an operation added without
// saying so would be open to any certificate.
func TestOnlyPublicOperationsGoWithoutToken(t *testing.T) {
	t.Parallel()
	doc := load(t)
	if len(doc.Security) != 1 || doc.Security[0]["token"] == nil {
		t.Fatalf("the contract's default security is %v, not a token", doc.Security)
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			open := op.Security != nil
			if public := path == "/healthz" || path == "/readyz" || path == "/v1/manifest-keys"; open != public {
				t.Errorf("%s %s: without token: %v", method, path, open)
			}
		}
	}
}

// A number without its unit, and a form without the standard it is of, would
// have to be guessed.
func TestUnitsAndSourcesAreSaid(t *testing.T) {
	t.Parallel()
	doc := load(t)
	says := func(s *openapi3.Schema, name string) bool {
		v, ok := s.Extensions[name].(string)
		return ok && v != ""
	}
	var walk func(where string, ref *openapi3.SchemaRef)
	walk = func(where string, ref *openapi3.SchemaRef) {
		if ref == nil || ref.Ref != "" {
			return
		}
		s := ref.Value
		if (s.Type.Is("integer") || s.Type.Is("number")) && !says(s, "x-unit") {
			t.Errorf("%s has no unit", where)
		}
		if s.Format != "" && !says(s, "x-source") {
			t.Errorf("%s has the format %s of no source", where, s.Format)
		}
		for name, p := range s.Properties {
			walk(where+"."+name, p)
		}
		walk(where+"[]", s.Items)
	}
	for name, ref := range doc.Components.Schemas {
		walk(name, ref)
	}
	for _, name := range []string{"Ean", "Gln", "Quality", "Resolution", "Problem", "Jwk", "JwkSet", "Table", "GreenButton", "Purpose", "LegalBasis"} {
		if !says(doc.Components.Schemas[name].Value, "x-source") {
			t.Errorf("%s has no source", name)
		}
	}
	for _, name := range []string{"obis", "unit"} {
		if !says(doc.Components.Schemas["Series"].Value.Properties[name].Value, "x-source") {
			t.Errorf("Series.%s has no source", name)
		}
	}
	for name, p := range doc.Components.Parameters {
		walk("parameter "+name, p.Value.Schema)
	}
	for name, h := range doc.Components.Headers {
		if h.Value.Extensions["x-source"] == nil && h.Value.Schema.Value.Extensions["x-source"] == nil {
			t.Errorf("header %s has no source", name)
		}
		walk("header "+name, h.Value.Schema)
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			for _, p := range op.Parameters {
				if p.Ref == "" {
					walk(method+" "+path+"?"+p.Value.Name, p.Value.Schema)
				}
			}
		}
	}
}
