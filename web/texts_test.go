package web

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"kluis/openapi"
)

// keysOf are the keys that a file of texts writes down, repeated ones too.
func keysOf(t *testing.T, file string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	ast.Inspect(f, func(n ast.Node) bool {
		if kv, ok := n.(*ast.KeyValueExpr); ok {
			if lit, ok := kv.Key.(*ast.BasicLit); ok {
				s, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				keys = append(keys, s)
			}
		}
		return true
	})
	return keys
}

func TestTextsAreThereOnce(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("texts_*.go")
	if err != nil {
		t.Fatal(err)
	}
	in := map[string]string{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, k := range keysOf(t, file) {
			if in[k] != "" {
				t.Errorf("text %q is in %s and in %s", k, in[k], file)
			}
			in[k] = file
		}
	}
	if len(in) != len(allTexts) {
		t.Errorf("%d texts are written, %d are known: is every list in allTexts?", len(in), len(allTexts))
	}
	verbs := regexp.MustCompile(`%[a-z]`)
	for k, x := range allTexts {
		if strings.TrimSpace(x.nl) == "" || strings.TrimSpace(x.en) == "" {
			t.Errorf("text %q is empty in a language", k)
		}
		if a, b := strings.Join(verbs.FindAllString(x.nl, -1), ""), strings.Join(verbs.FindAllString(x.en, -1), ""); a != b {
			t.Errorf("text %q has room for %q in Dutch and %q in English", k, a, b)
		}
	}
}

// TestTextsAndTheirUses: every text that is asked for is there, and every one
// that is there is asked for.
func TestTextsAndTheirUses(t *testing.T) {
	t.Parallel()
	asked, families := map[string]string{}, map[string]bool{"term.": true, "problem.": true}
	see := func(file, key string) {
		if asked[key] == "" {
			asked[key] = file
		}
	}
	inTemplate := regexp.MustCompile(`\bt "([a-z0-9.-]+)"`)
	plurals := regexp.MustCompile(`\btn "([a-z0-9.-]+)"`)
	family := regexp.MustCompile(`\b(?:print|printf) "([a-z][a-z0-9.-]*\.)(?:%[a-z])?"`)
	terms := regexp.MustCompile(`\.Term "([^"]+)"`)
	pages, err := filepath.Glob("templates/*.html")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range pages {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range inTemplate.FindAllStringSubmatch(string(raw), -1) {
			see(file, m[1])
		}
		for _, m := range plurals.FindAllStringSubmatch(string(raw), -1) {
			see(file, m[1]+".one")
			see(file, m[1]+".other")
		}
		for _, m := range family.FindAllStringSubmatch(string(raw), -1) {
			families[m[1]] = true
		}
		for _, m := range terms.FindAllStringSubmatch(string(raw), -1) {
			see(file, "term."+m[1])
		}
		if name := strings.TrimSuffix(filepath.Base(file), ".html"); name != "layout" && name != "partials" && name != "problem" {
			see(file, name+".title")
		}
	}
	code, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	calls := regexp.MustCompile(`\b(?:text\([^"]*|in\([^"]*|format\([^"]*)"([a-z][a-z0-9-]*(?:\.[a-z0-9-]+)+)"`)
	literal := regexp.MustCompile(`"([a-z][a-z0-9-]*(?:\.[a-z0-9-]+)+)"`)
	built := regexp.MustCompile(`"([a-z][a-z0-9.-]*\.)" ?\+`)
	for _, file := range code {
		if strings.HasPrefix(file, "texts_") || strings.HasSuffix(file, "_test.go") {
			continue
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range calls.FindAllStringSubmatch(string(raw), -1) {
			see(file, m[1])
		}
		for _, m := range literal.FindAllStringSubmatch(string(raw), -1) {
			if _, ok := allTexts[m[1]]; ok {
				see(file, m[1])
			}
		}
		for _, m := range built.FindAllStringSubmatch(string(raw), -1) {
			families[m[1]] = true
		}
	}
	for k, file := range asked {
		if _, ok := allTexts[k]; !ok {
			t.Errorf("%s asks for the text %q, which is not there", file, k)
		}
	}
	for k := range allTexts {
		used := asked[k] != ""
		for f := range families {
			used = used || strings.HasPrefix(k, f)
		}
		if !used {
			t.Errorf("nobody asks for the text %q", k)
		}
	}
}

// TestEveryProblemHasWords: what the API may refuse with, and what the portal does.
func TestEveryProblemHasWords(t *testing.T) {
	t.Parallel()
	slugs := regexp.MustCompile(`urn:kluis:problem:([a-z-]+)`).FindAllStringSubmatch(string(openapi.Contract()), -1)
	if len(slugs) < 20 {
		t.Fatalf("the contract names %d problems", len(slugs))
	}
	names := []string{}
	for _, m := range slugs {
		names = append(names, m[1])
	}
	for _, f := range []*failure{errSignIn, errSignInAgain, errNoRights, errForeign, errHost, errNoCase, errNoPage, errNoMethod, errForm, errSignInAway, errSignInBad, errNoRole, errSignInBusy, errTooFast} {
		names = append(names, f.name)
	}
	for _, n := range append(names, "deadline-exceeded", "api-away", "issuer-away", "no-token", "errand-refused", "internal-error") {
		for _, k := range []string{"problem." + n, "problem." + n + ".do"} {
			if _, ok := allTexts[k]; !ok {
				t.Errorf("there is no text %q", k)
			}
		}
	}
}
