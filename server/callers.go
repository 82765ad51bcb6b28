package server

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"kluis/authz"
	"kluis/internal/authn"
)

// callers says who may call an operation: what the contract has under
// x-kluis-callers, and the only place that says it.
type callers struct {
	// scopes are what a supplier's token and record need one of; none: the
	// operation is not for suppliers.
	scopes []string
	// errands are the kinds of errand on which an employee may call it.
	errands map[authz.Role][]authz.ErrandKind
}

// allows says whether an employee may call the operation on the errand.
func (c *callers) allows(e *authz.Employee) bool {
	return slices.Contains(c.errands[e.Role], e.Errand.Kind)
}

const (
	callersKey = "x-kluis-callers"
	anyWord    = "any"
)

// callersOf reads who may call a route's operation; nil for one without token.
func callersOf(doc *openapi3.T, rt *route) (*callers, error) {
	item := doc.Paths.Value(rt.path)
	if item == nil || item.GetOperation(rt.method) == nil {
		return nil, fmt.Errorf("server: the contract has no %s %s", rt.method, rt.path)
	}
	op := item.GetOperation(rt.method)
	value, said := op.Extensions[callersKey]
	if !rt.token {
		if said {
			return nil, fmt.Errorf("server: %s of %s, which wants no token", callersKey, op.OperationID)
		}
		return nil, nil
	}
	words, ok := value.(map[string]any)
	if !ok || len(words) == 0 {
		return nil, fmt.Errorf("server: the contract does not say who may call %s", op.OperationID)
	}
	c := &callers{errands: map[authz.Role][]authz.ErrandKind{}}
	for who, v := range words {
		word, _ := v.(string)
		if err := c.add(who, word); err != nil {
			return nil, fmt.Errorf("server: %s of %s: %s: %w", callersKey, op.OperationID, who, err)
		}
	}
	return c, nil
}

// add understands one caller's word.
func (c *callers) add(who, word string) error {
	if who == "supplier" {
		switch {
		case word == anyWord:
			c.scopes = supplierScopes()
		case slices.Contains(supplierScopes(), word):
			c.scopes = []string{word}
		default:
			return errors.New("unknown scope")
		}
		return nil
	}
	role, err := authz.ParseRole(who)
	if err != nil {
		return err
	}
	if word == anyWord {
		c.errands[role] = authz.ErrandKinds()
		return nil
	}
	for kind := range strings.SplitSeq(word, " or ") {
		k, err := authz.ParseErrandKind(kind)
		if err != nil {
			return err
		}
		c.errands[role] = append(c.errands[role], k)
	}
	return nil
}

// supplierScopes are the scopes that a supplier can have; the first is named to
// who has none.
func supplierScopes() []string { return []string{authn.ScopeReadings, authn.ScopeConsents} }
