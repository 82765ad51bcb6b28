package server

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"kluis/openapi"
)

// The table that people read and the words that the gateway goes by say the
// same.
func TestCallersAreTheContracts(t *testing.T) {
	t.Parallel()
	doc, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{} // operation -> supplier | agent | supervisor | auditor
	_, table, _ := strings.Cut(doc.Info.Description, "| operation | supplier | agent | supervisor | auditor |")
	table, _, _ = strings.Cut(table, "\n\n")
	name := regexp.MustCompile("`([A-Za-z]+)`")
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if len(cells) != 5 {
			continue
		}
		var words []string
		for _, c := range cells[1:] {
			c, _, _ = strings.Cut(c, "(")
			c = strings.TrimPrefix(strings.TrimSpace(c), "errand ")
			words = append(words, strings.ReplaceAll(c, "`", ""))
		}
		for _, op := range name.FindAllStringSubmatch(cells[0], -1) {
			said[op[1]] = strings.Join(words, " | ")
		}
	}
	got := map[string]string{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			var words []string
			callers, ok := op.Extensions[callersKey].(map[string]any)
			for _, who := range []string{"supplier", "agent", "supervisor", "auditor"} {
				word := "-"
				if v, there := callers[who]; there {
					word = fmt.Sprint(v)
				}
				if !ok && op.Security != nil {
					word = "no token"
				}
				words = append(words, word)
			}
			got[op.OperationID] = strings.Join(words, " | ")
			for who := range callers {
				if !slices.Contains([]string{"supplier", "agent", "supervisor", "auditor"}, who) {
					t.Errorf("%s %s: caller %q", method, path, who)
				}
			}
		}
	}
	if !maps.Equal(said, got) {
		t.Errorf("the table says\n%v\nthe operations\n%v", said, got)
	}
}

// What the contract does not say clearly keeps the gateway from starting.
func TestCallersMustBeClear(t *testing.T) {
	t.Parallel()
	rt := &route{method: "GET", path: "/x", token: true}
	doc := func(value any) *openapi3.T {
		op := openapi3.NewOperation()
		op.OperationID = "x"
		if value != nil {
			op.Extensions = map[string]any{callersKey: value}
		}
		d := &openapi3.T{Paths: openapi3.NewPaths()}
		d.Paths.Set("/x", &openapi3.PathItem{Get: op})
		return d
	}
	for name, value := range map[string]any{
		"nothing": nil, "nobody": map[string]any{}, "a word": "supplier", "an unknown role": map[string]any{"admin": "view"},
		"an unknown scope": map[string]any{"supplier": "admin"}, "the employees' scope": map[string]any{"supplier": "customer-service"},
		"no word": map[string]any{"agent": ""}, "an unknown errand": map[string]any{"agent": "view or all"}, "a list": map[string]any{"agent": []any{"view"}},
	} {
		if c, err := callersOf(doc(value), rt); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if _, err := callersOf(doc(nil), &route{method: "POST", path: "/x", token: true}); err == nil {
		t.Error("an operation that is not in the contract")
	}
	if _, err := callersOf(doc(map[string]any{"agent": "view"}), &route{method: "GET", path: "/x"}); err == nil {
		t.Error("callers of an operation without token")
	}
	c, err := callersOf(doc(map[string]any{"supplier": "any", "agent": "view or step", "auditor": "any"}), rt)
	if err != nil || len(c.scopes) != 2 || len(c.errands) != 2 || len(c.errands[1]) != 2 || len(c.errands[3]) != 6 {
		t.Errorf("%+v, %v", c, err)
	}
}
