package ingest

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestParseMappingRefuses(t *testing.T) {
	t.Parallel()
	const ok = `description: fine
csv: {delimiter: ",", decimal: "."}
time: {columns: [T], format: RFC3339, marks: start}
every: PT1H
fields:
  - {field: import_intervals, reads: consumption, columns: [A], unit: kWh}
`
	if _, err := ParseMapping("ok", []byte(ok), testProfile(t)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ from, to, want string }{
		"unknown key":            {"description: fine", "descriptoin: fine", "[1:1] unknown field"},
		"unknown key deep":       {"unit: kWh", "unit: kWh, colour: red", "[6:"},
		"not YAML":               {"time: {", "time: {{", "test.yaml:"},
		"empty":                  {ok, "", "is empty"},
		"two documents":          {"every: PT1H\n", "every: PT1H\n---\n", "test.yaml"},
		"delimiter":              {`delimiter: ","`, `delimiter: "x"`, "line 2, column 18: csv.delimiter"},
		"decimal":                {`decimal: "."`, `decimal: ";"`, "line 2, column 32: csv.decimal"},
		"no fields":              {"fields:\n  - {field: import_intervals, reads: consumption, columns: [A], unit: kWh}\n", "fields: []\n", "fields: names no field"},
		"unknown field":          {"field: import_intervals", "field: import_interval", "line 6, column 13: fields[0].field: is not in the market's catalogue: import_low, "},
		"neither kind of read":   {"reads: consumption", "reads: both", "line 6, column 38: fields[0].reads"},
		"no column":              {"columns: [A]", "columns: []", "fields[0].columns"},
		"column twice":           {"columns: [A]", "columns: [A, A]", "fields[0].columns: names a column twice"},
		"unit of another kind":   {"unit: kWh", "unit: m3", "fields[0].unit: cannot be turned into kWh"},
		"no interval":            {"every: PT1H\n", "", "every: say how long"},
		"interval too long":      {"every: PT1H", "every: P1D", "line 4, column 8: every"},
		"not stored so":          {"field: import_intervals", "every: PT15M, field: gas_intervals", "gas_intervals cannot be stored at PT15M"},
		"start of intervals":     {"unit: kWh", `unit: kWh, start: "0"`, "only for registers accumulated"},
		"register without start": {"field: import_intervals", "field: import_low", "fields[0].start: say the register's read"},
		"start not exact":        {"field: import_intervals", `start: "0.0001", field: import_low`, "not a read in kWh"},
		"rounding":               {"unit: kWh", "unit: kWh, rounding: up", "fields[0].rounding"},
		"field twice":            {"unit: kWh}", "unit: kWh}\n  - {field: import_intervals, reads: consumption, columns: [B], unit: kWh}", "fields[1].field: is given twice"},
		"zero_where alone":       {"unit: kWh", "unit: kWh, zero_where: {A: x}", "only for consumption in rows chosen by where"},
		"empty where":            {"unit: kWh", "unit: kWh, where: {A: []}", "fields[0].where"},
		"no time column":         {"columns: [T]", "columns: []", "line 3, column 17: time.columns"},
		"no format":              {"format: RFC3339, ", "", "format is missing"},
		"format":                 {"format: RFC3339", "format: DD/MM/YY, zone: UTC", "time.format: has a part"},
		"format without day":     {"format: RFC3339", `format: "YYYY-MM HH", zone: UTC`, "lacks DD"},
		"format twice":           {"format: RFC3339", `format: "YYYY-MM-DD HH:MM", zone: UTC`, "says MM twice"},
		"no zone":                {"format: RFC3339", `format: "YYYY-MM-DD HH"`, "zone is missing"},
		"unknown zone":           {"format: RFC3339", `format: "YYYY-MM-DD HH", zone: Mars/Olympus`, "not a known time zone"},
		"zone beside offset":     {"format: RFC3339", "format: RFC3339, zone: UTC", "only for local times"},
		"two columns of epoch":   {"[T], format: RFC3339", "[T, U], format: epoch", "epoch takes one column"},
		"no marks":               {", marks: start", "", "start or the end"},
		"status without column":  {"every:", "status: {else: ESTIMATED}\nevery:", "status.column"},
		"status without rules":   {"every:", "status: {column: S}\nevery:", "has no rules"},
		"status both ways":       {"every:", "status: {column: S, rules: [{is: a, contains: b, quality: ESTIMATED}]}\nevery:", "either is or contains"},
		"quality":                {"every:", "status: {column: S, rules: [{is: a, quality: GOOD}]}\nevery:", "status.rules[0].quality"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(ok, c.from) {
				t.Fatal("the case does not apply")
			}
			_, err := ParseMapping("test.yaml", []byte(strings.Replace(ok, c.from, c.to, 1)), testProfile(t))
			if !errors.Is(err, ErrMapping) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant %q", err, c.want)
			}
		})
	}
}

func TestLoadMapping(t *testing.T) {
	t.Parallel()
	p := testProfile(t)
	path := filepath.Join(t.TempDir(), "mine.yaml")
	if err := os.WriteFile(path, []byte(wide), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := LoadMapping(path, p); err != nil || m.Name() != path || m.SeveralHomes() {
		t.Errorf("%v, %v", m, err)
	}
	if _, err := LoadMapping("nothing", p); !errors.Is(err, ErrMapping) || !strings.Contains(err.Error(), "nl_dsmrreader") {
		t.Errorf("does not say what there is: %v", err)
	}
}

// The worked example of docs/INGEST.md is tried as it stands.
func TestDocumentedExample(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(filepath.Join("..", "docs", "INGEST.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string) string {
		m := regexp.MustCompile("(?s)```" + kind + "\n(.*?)```").FindSubmatch(doc)
		if m == nil {
			t.Fatalf("no %s block in docs/INGEST.md", kind)
		}
		return string(m[1])
	}
	r := mustRead(t, mapping(t, block("yaml")), block("csv"), ReadOptions{})
	r.wantReads("import_low", map[string]string{"2026-01-15": "", "2026-01-16": "4210.985", "2026-01-17": ""})
	r.wantReads("import_normal", map[string]string{"2026-01-16": "3977.204"})
	r.wantSum("import_intervals", "2026-01-15", "2026-01-17", "0.446", 3, 48)
	r.wantSum("gas_intervals", "2026-01-15", "2026-01-17", "0.155", 2, 48)
	r.wantReads("gas", map[string]string{"2026-01-16": "1530.375"})
	if q := r.by["import_intervals"][mustDay(t, "2026-01-16")].Quality[1]; q.String() != "ESTIMATED" {
		t.Errorf("quality %s", q)
	}
	for _, name := range BuiltIn() {
		if !strings.Contains(string(doc), "`"+name+"`") {
			t.Errorf("docs/INGEST.md does not name %s", name)
		}
	}
}
