package openapi

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/goccy/go-yaml"
)

// What oasdiff (scripts/check-contract.sh) does not look at, and breaks clients
// all the same: names of operations, who may call them, problems, and what the
// values of an enumeration mean.

// breaks says what in a contract breaks clients of one before.
func breaks(before, now *openapi3.T) []string {
	var found []string
	say := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	for path, item := range before.Paths.Map() {
		for method, old := range item.Operations() {
			var op *openapi3.Operation
			if p := now.Paths.Value(path); p != nil {
				op = p.GetOperation(method)
			}
			if op == nil {
				say("%s is gone", old.OperationID)
				continue
			}
			if op.OperationID != old.OperationID {
				say("%s is called %s", old.OperationID, op.OperationID)
			}
			may := callersIn(op)
			for kind, how := range callersIn(old) {
				for _, way := range how {
					if !slices.Contains(may[kind], way) && !slices.Contains(may[kind], "any") {
						say("%s is no longer for %s with %s", old.OperationID, kind, way)
					}
				}
			}
			if public := old.Security != nil; public && op.Security == nil {
				say("%s wants a token", old.OperationID)
			}
		}
	}
	table := problemsIn(now)
	for slug, old := range problemsIn(before) {
		switch p, ok := table[slug]; {
		case !ok:
			say("problem %s is gone", slug)
		case p[0] != old[0]:
			say("problem %s has status %s", slug, p[0])
		case p[1] != old[1]:
			say("problem %s means something else", slug)
		case p[2] != old[2]:
			say("problem %s is to be tried again otherwise", slug)
		}
	}
	for name, ref := range before.Components.Schemas {
		if s := now.Components.Schemas[name]; s != nil {
			meanings(name, ref.Value, s.Value, say)
		} else {
			say("schema %s is gone", name)
		}
	}
	slices.Sort(found)
	return found
}

// callersIn is the operation's table of callers: by kind, with what.
func callersIn(op *openapi3.Operation) map[string][]string {
	out := map[string][]string{}
	m, _ := op.Extensions["x-kluis-callers"].(map[string]any)
	for kind, how := range m {
		out[kind] = strings.Split(fmt.Sprint(how), " or ")
	}
	return out
}

// problemsIn is the table of problems: status, when and retry, by slug.
func problemsIn(doc *openapi3.T) map[string][3]string {
	out := map[string][3]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| ([0-9]{3}) \\| (.*) \\| (.*) \\|$").FindAllStringSubmatch(doc.Info.Description, -1) {
		out[m[1]] = [3]string{m[2], m[3], m[4]}
	}
	return out
}

// meanings compares what is said of the values of enumerations, in units and in
// schemas within.
func meanings(where string, before, now *openapi3.Schema, say func(string, ...any)) {
	for value, old := range meaningsOf(before) {
		if got, ok := meaningsOf(now)[value]; ok && got != old {
			say("%s: %s means something else", where, value)
		}
	}
	if old, unit := before.Extensions["x-unit"], now.Extensions["x-unit"]; old != nil && old != unit {
		say("%s is in %v", where, unit)
	}
	for name, ref := range before.Properties {
		if p := now.Properties[name]; p != nil && ref.Ref == "" {
			meanings(where+"."+name, ref.Value, p.Value, say)
		}
	}
}

// meaningsOf finds what a description says of each value: in a table, or in a
// sentence after "`VALUE`:".
func meaningsOf(s *openapi3.Schema) map[string]string {
	out := map[string]string{}
	text := strings.Join(strings.Fields(s.Description), " ")
	for _, v := range s.Enum {
		value, ok := v.(string)
		if !ok {
			continue
		}
		quoted := "`" + regexp.QuoteMeta(value) + "`"
		for _, pattern := range []string{`\| ` + quoted + ` \| (.*?) \|`, quoted + `(?:, ` + "`[A-Z_]+`" + `)*: (.*?[.;])(?: |$)`} {
			if m := regexp.MustCompile(pattern).FindStringSubmatch(text); m != nil {
				out[value] = m[1]
				break
			}
		}
	}
	return out
}

func parse(t *testing.T, raw []byte) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(raw)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// lastRelease is the contract that was released last, by version.
func lastRelease(t *testing.T) *openapi3.T {
	t.Helper()
	files, err := filepath.Glob("released/[0-9]*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no released contract: %v", err)
	}
	version := func(file string) (v [3]int) {
		if _, err := fmt.Sscanf(filepath.Base(file), "%d.%d.%d.yaml", &v[0], &v[1], &v[2]); err != nil {
			t.Fatalf("%s: not named after a version: %v", file, err)
		}
		return v
	}
	last := slices.MaxFunc(files, func(a, b string) int { x, y := version(a), version(b); return slices.Compare(x[:], y[:]) })
	raw, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	doc := parse(t, raw)
	if want := strings.TrimSuffix(filepath.Base(last), ".yaml"); doc.Info.Version != want {
		t.Fatalf("%s holds version %s", last, doc.Info.Version)
	}
	return doc
}

// A break that is none is written down in released/accepted.yaml, with why.
func TestNothingReleasedIsBroken(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("released/accepted.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var accepted map[string]string
	if err := yaml.Unmarshal(raw, &accepted); err != nil {
		t.Fatal(err)
	}
	for _, b := range breaks(lastRelease(t), load(t)) {
		if accepted[b] == "" {
			t.Errorf("%s (docs/VERSIONING.md)", b)
		}
		delete(accepted, b)
	}
	for b := range accepted {
		t.Errorf("accepted, and not there: %s", b)
	}
}

// Each way to break a client is found.
func TestBreaksAreFound(t *testing.T) {
	t.Parallel()
	operation := func(doc *openapi3.T, id string) *openapi3.Operation {
		for _, item := range doc.Paths.Map() {
			for _, op := range item.Operations() {
				if op.OperationID == id {
					return op
				}
			}
		}
		t.Fatalf("no operation %s", id)
		return nil
	}
	describe := func(s *openapi3.Schema, old, new string) {
		if !strings.Contains(s.Description, old) {
			t.Fatalf("%q is not described", old)
		}
		s.Description = strings.Replace(s.Description, old, new, 1)
	}
	for name, c := range map[string]struct {
		change func(*openapi3.T)
		want   string
	}{
		"nothing": {func(*openapi3.T) {}, ""},
		"a better word elsewhere": {func(d *openapi3.T) {
			d.Components.Schemas["Readings"].Value.Description = "Readings, given."
		}, ""},
		"one more value": {func(d *openapi3.T) {
			s := d.Components.Schemas["Purpose"].Value
			s.Enum = append(s.Enum, "AUDIT")
		}, ""},
		"one more caller": {func(d *openapi3.T) {
			operation(d, "listChanges").Extensions["x-kluis-callers"].(map[string]any)["auditor"] = "view"
		}, ""},
		"a renamed operation": {func(d *openapi3.T) { operation(d, "getReadings").OperationID = "readReadings" }, "getReadings is called readReadings"},
		"a removed method":    {func(d *openapi3.T) { d.Paths.Value("/v1/changes").Get = nil }, "listChanges is gone"},
		"a removed path":      {func(d *openapi3.T) { d.Paths.Delete("/v1/changes") }, "listChanges is gone"},
		"a caller less": {func(d *openapi3.T) {
			delete(operation(d, "getAccess").Extensions["x-kluis-callers"].(map[string]any), "auditor")
		}, "getAccess is no longer for auditor with view"},
		"another scope": {func(d *openapi3.T) {
			operation(d, "getAccess").Extensions["x-kluis-callers"].(map[string]any)["supplier"] = "access:read"
		}, "getAccess is no longer for supplier with readings:read"},
		"an errand less": {func(d *openapi3.T) {
			operation(d, "getConsent").Extensions["x-kluis-callers"].(map[string]any)["agent"] = "view"
		}, "getConsent is no longer for agent with step"},
		"a token wanted": {func(d *openapi3.T) { operation(d, "getManifestKeys").Security = nil }, "getManifestKeys wants a token"},
		"a problem less": {func(d *openapi3.T) {
			d.Info.Description = regexp.MustCompile("(?m)^\\| `rate-limited`.*$").ReplaceAllString(d.Info.Description, "")
		}, "problem rate-limited is gone"},
		"another status": {func(d *openapi3.T) {
			d.Info.Description = strings.Replace(d.Info.Description, "| `conflict` | 409 |", "| `conflict` | 423 |", 1)
		}, "problem conflict has status 423"},
		"another problem by the same name": {func(d *openapi3.T) {
			d.Info.Description = strings.Replace(d.Info.Description, "| The request was not answered in time. |", "| The request was withdrawn. |", 1)
		}, "problem consent-lapsed means something else"},
		"no more tries": {func(d *openapi3.T) {
			d.Info.Description = regexp.MustCompile("(?m)^(\\| `overloaded` .*) \\| [^|]* \\|$").ReplaceAllString(d.Info.Description, "$1 | no |")
		}, "problem overloaded is to be tried again otherwise"},
		"a value of another meaning, in a table": {func(d *openapi3.T) {
			describe(d.Components.Schemas["WithheldReason"].Value, "| `DAMAGED` | stored, but", "| `DAMAGED` | not stored, and")
		}, "WithheldReason: DAMAGED means something else"},
		"a value of another meaning, in a sentence": {func(d *openapi3.T) {
			describe(d.Components.Schemas["ReadingKind"].Value, "the amount of each period", "the mean power of each period")
		}, "ReadingKind: CONSUMPTION means something else"},
		"a value of another meaning, in a member": {func(d *openapi3.T) {
			describe(d.Components.Schemas["Change"].Value.Properties["kind"].Value, "have a later version", "were deleted")
		}, "Change.kind: CORRECTED means something else"},
		"another unit": {func(d *openapi3.T) {
			d.Components.Schemas["Status"].Value.Properties["profile"].Value.Properties["retentionMonths"].Value.Extensions["x-unit"] = "days"
		}, "Status.profile.retentionMonths is in days"},
		"a schema less": {func(d *openapi3.T) { delete(d.Components.Schemas, "QualityRun") }, "schema QualityRun is gone"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			doc := parse(t, contract)
			c.change(doc)
			got := strings.Join(breaks(parse(t, contract), doc), "; ")
			if got != c.want {
				t.Errorf("found %q, want %q", got, c.want)
			}
		})
	}
}
