package meter

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Names of countries, their languages, cities and companies, and the ids and
// time zones of the profiles, as they would turn up in code.
var marketName = regexp.MustCompile(`(?i)netherlands|nederland|holland|dutch|amsterdam|belgi|flemish|flanders|vlaand|wallon|brussel|fluvius|german|deutsch|berlin|french|france|paris` +
	`|(^|[^a-z])(nl|be)[-_.][a-z]`)

// What a market is lies in its profile. No code that measures, decides, opens,
// serves or stores names a country, but for the one file that embeds the
// profiles, and its callers.
func TestNoCountryInCode(t *testing.T) {
	t.Parallel()
	files, names := 0, 0
	harmless := map[string]bool{} // names come again and again
	for _, dir := range []string{".", "../authz", "../cryptoserver", "../server", "../issuer", "../custodian", "../internal", "../cmd/gateway", "../cmd/cryptoserver", "../cmd/issuer"} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "internal/testing") {
				return err
			}
			src, err := parser.ParseFile(token.NewFileSet(), path, nil, 0) // comments do nothing
			if err != nil {
				return err
			}
			files++
			ast.Inspect(src, func(n ast.Node) bool {
				text := ""
				switch n := n.(type) {
				case *ast.Ident:
					if text = n.Name; text == "NL" || text == "BE" {
						text = "nl-profile"
					}
				case *ast.BasicLit:
					if text = n.Value; n.Kind == token.STRING {
						text, _ = strconv.Unquote(n.Value)
					}
					if text == "NL" || text == "BE" {
						text = "nl-profile"
					}
				}
				if harmless[text] {
					return true
				}
				if !marketName.MatchString(text) {
					harmless[text] = true
					return true
				}
				if names++; path != "embedded.go" {
					t.Errorf("%s names a market: %q", path, text)
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 50 || names < 2 {
		t.Errorf("%d files looked at, %d names found: the test finds nothing", files, names)
	}
	for _, s := range []string{"Dutch", "nl-daily", "the_nl_profile", "be.yaml", "Europe/Amsterdam", "fluvius"} {
		if !marketName.MatchString(s) {
			t.Errorf("%q goes unseen", s)
		}
	}
	for _, s := range []string{"tunnel-1", "maybe-not", "to be. Or", "label_x", "be", "null"} {
		if marketName.MatchString(s) {
			t.Errorf("%q is taken for a market", s)
		}
	}
}
