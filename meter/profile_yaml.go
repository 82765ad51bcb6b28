package meter

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// ProfileError is one thing wrong with a market profile, and where.
type ProfileError struct {
	Line, Column int // from 1
	Reason       string
}

func (e *ProfileError) Error() string {
	return fmt.Sprintf("market profile, line %d, column %d: %s", e.Line, e.Column, e.Reason)
}

// yamlReader takes a small, strict subset of YAML apart: one document of
// mappings, sequences and plain scalars, each key at most once and none
// unknown. Anchors, aliases, tags and merge keys are refused. It collects
// errors; after one the value returned is zero.
//
// It walks the syntax tree, because decoding into structs would lose the
// places and be lenient with scalars (1.5 as the integer 1, true as a text).
type yamlReader struct{ errs []error }

func (r *yamlReader) failAt(line, column int, format string, args ...any) {
	r.errs = append(r.errs, &ProfileError{max(line, 1), max(column, 1), fmt.Sprintf(format, args...)})
}

func (r *yamlReader) fail(n ast.Node, format string, args ...any) {
	line, column := 1, 1
	if t := n.GetToken(); t != nil && t.Position != nil {
		line, column = t.Position.Line, t.Position.Column
	}
	r.failAt(line, column, format, args...)
}

// document returns the root of the only document, or nil.
func (r *yamlReader) document(src []byte) ast.Node {
	file, err := parser.ParseBytes(src, 0)
	if err != nil {
		var at yaml.Error
		if errors.As(err, &at) && at.GetToken() != nil && at.GetToken().Position != nil {
			p := at.GetToken().Position
			r.failAt(p.Line, p.Column, "%s", at.GetMessage())
		} else {
			reason, _, _ := strings.Cut(err.Error(), "\n")
			r.failAt(1, 1, "%s", reason)
		}
		return nil
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		r.failAt(1, 1, "want one YAML document")
		return nil
	}
	return file.Docs[0].Body
}

// mapping returns the values of a mapping by key, and nil where n is none. A
// missing required key is reported at the mapping's start; a repeated one the
// parser has refused.
func (r *yamlReader) mapping(n ast.Node, required, optional []string) map[string]ast.Node {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		r.fail(n, "want a mapping with the keys %s", strings.Join(required, ", "))
		return nil
	}
	out := make(map[string]ast.Node, len(values))
	for _, v := range values {
		key, ok := v.Key.(*ast.StringNode)
		switch {
		case !ok:
			r.fail(v.Key, "want a plain key")
		case !slices.Contains(required, key.Value) && !slices.Contains(optional, key.Value):
			r.fail(v.Key, "unknown key %q: want %s", key.Value, strings.Join(append(slices.Clone(required), optional...), ", "))
		default:
			out[key.Value] = v.Value
		}
	}
	for _, k := range required {
		if out[k] == nil {
			at := ast.Node(n)
			if len(values) > 0 {
				at = values[0].Key
			}
			r.fail(at, "key %q is missing", k)
		}
	}
	return out
}

// sequence returns the elements of a sequence that has at least one. A nil
// node has been reported as missing; so below.
func (r *yamlReader) sequence(n ast.Node) []ast.Node {
	if n == nil {
		return nil
	}
	s, ok := n.(*ast.SequenceNode)
	if !ok || len(s.Values) == 0 {
		r.fail(n, "want a list with at least one element")
		return nil
	}
	return s.Values
}

func (r *yamlReader) text(n ast.Node) (string, bool) {
	if n == nil {
		return "", false
	}
	s, ok := n.(*ast.StringNode)
	if !ok {
		r.fail(n, "want a text; put it in quotes if it is one")
		return "", false
	}
	return s.Value, true
}

func (r *yamlReader) pattern(n ast.Node, p *regexp.Regexp, want string) string {
	s, ok := r.text(n)
	if ok && !p.MatchString(s) {
		r.fail(n, "want %s", want)
		return ""
	}
	return s
}

// integer reads decimal digits without a sign or leading zeros.
func (r *yamlReader) integer(n ast.Node, low, high int) int {
	if n == nil {
		return 0
	}
	if i, ok := n.(*ast.IntegerNode); ok {
		text := i.GetToken().Value
		if v, err := strconv.Atoi(text); err == nil && strconv.Itoa(v) == text && low <= v && v <= high {
			return v
		}
	}
	r.fail(n, "want a whole number from %d to %d", low, high)
	return 0
}

func (r *yamlReader) boolean(n ast.Node) bool {
	if n == nil {
		return false
	}
	b, ok := n.(*ast.BoolNode)
	if !ok {
		r.fail(n, "want true or false")
		return false
	}
	return b.Value
}

// parseNode reads a text with one of the package's Parse functions.
func parseNode[T any](r *yamlReader, n ast.Node, parse func(string) (T, error)) T {
	var zero T
	s, ok := r.text(n)
	if !ok {
		return zero
	}
	v, err := parse(s)
	if err != nil {
		r.fail(n, "%v", err)
		return zero
	}
	return v
}
