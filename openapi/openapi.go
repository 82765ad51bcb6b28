// Package openapi holds the contract of the API, openapi.yaml, and the server
// interface and types generated from it. The contract is the source of truth:
// requests are checked against it, and scripts/generate.sh makes the code.
package openapi

import (
	_ "embed"
	"fmt"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/goccy/go-yaml"
)

//go:embed openapi.yaml
var contract []byte

// Contract returns the contract as written: OpenAPI 3.0.3, YAML.
func Contract() []byte { return append([]byte(nil), contract...) }

// JSON returns the contract as JSON, in the same order.
func JSON() ([]byte, error) {
	b, err := yaml.YAMLToJSON(contract)
	if err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	return b, nil
}

// Load parses and checks the contract. Each call gives a value of its own, as
// middleware changes it.
func Load() (*openapi3.T, error) {
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromData(contract)
	if err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	if err := doc.Validate(loader.Context); err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	return doc, nil
}
