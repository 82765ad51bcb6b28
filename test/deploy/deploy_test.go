// Package deploy proves that what is under deploy/ fits the programs: every
// metric and label that the dashboards and the alert rules name is one that a
// real cryptoserver, gateway, custodian or auditor has.
package deploy

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"google.golang.org/grpc/codes"

	"kluis/cryptoserver/cryptopb"
)

const (
	dashboardFiles = "../../deploy/grafana/*.json"
	alertsFile     = "../../deploy/prometheus/kluis-alerts.yaml"
	prometheusFile = "../../deploy/prometheus/prometheus.yaml"
)

// dashboard is what of Grafana's model is looked at.
type dashboard struct {
	Title         string
	UID           string
	SchemaVersion int
	Panels        []panel
	Templating    struct{ List []variable }
}

type panel struct {
	ID          int
	Type, Title string
	Datasource  json.RawMessage
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct{ RefID, Expr, LegendFormat string }
	Panels      []panel
}

type variable struct {
	Name, Type string
	Query      json.RawMessage
}

type alert struct {
	Alert       string
	Expr        string
	For         string
	Labels      map[string]string
	Annotations map[string]string
}

func readDashboards(t *testing.T) []dashboard {
	t.Helper()
	files := must(filepath.Glob(dashboardFiles))(t)
	if len(files) < 2 {
		t.Fatalf("dashboards: %v", files)
	}
	var all []dashboard
	for _, file := range files {
		var d dashboard
		b := must(os.ReadFile(file))(t)
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		// Whoever imports it chooses the data source.
		for _, m := range regexp.MustCompile(`"uid": ?"([^"]*)"`).FindAllStringSubmatch(string(b), -1) {
			if m[1] != "${datasource}" && m[1] != d.UID {
				t.Errorf("%s: the data source %q is hard-coded", file, m[1])
			}
		}
		all = append(all, d)
	}
	return all
}

func readAlerts(t *testing.T) []alert {
	t.Helper()
	var f struct {
		Groups []struct {
			Name  string
			Rules []alert
		}
	}
	if err := yaml.UnmarshalWithOptions(must(os.ReadFile(alertsFile))(t), &f, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	var all []alert
	for _, g := range f.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

func TestDashboardsAreSound(t *testing.T) {
	t.Parallel()
	uids := map[string]bool{}
	for _, d := range readDashboards(t) {
		if uids[d.UID] {
			t.Errorf("%s: uid of another", d.Title)
		}
		uids[d.UID] = true
		checkDashboard(t, d)
	}
}

func checkDashboard(t *testing.T, d dashboard) {
	t.Helper()
	if d.Title == "" || d.UID == "" || d.SchemaVersion < 38 {
		t.Errorf("title %q, uid %q, schema %d", d.Title, d.UID, d.SchemaVersion)
	}
	if v := d.Templating.List; len(v) == 0 || v[0].Name != "datasource" || v[0].Type != "datasource" || string(v[0].Query) != `"prometheus"` {
		t.Errorf("the first variable is not the data source: %+v", v)
	}
	ids := map[int]bool{}
	for i, p := range d.Panels {
		if p.ID == 0 || ids[p.ID] {
			t.Errorf("%s: id %d is not its own", p.Title, p.ID)
		}
		ids[p.ID] = true
		if len(p.Panels) > 0 {
			t.Errorf("%s: panels within panels are not looked at here", p.Title)
		}
		if (p.Type == "row") != (len(p.Targets) == 0) || p.Type != "row" && len(p.Datasource) == 0 || p.Title == "" {
			t.Errorf("panel %d %q: %d targets, data source %s", p.ID, p.Title, len(p.Targets), p.Datasource)
		}
		g := p.GridPos
		if g.W <= 0 || g.H <= 0 || g.X+g.W > 24 {
			t.Errorf("%s: lies outside", p.Title)
		}
		for _, o := range d.Panels[:i] {
			if h := o.GridPos; g.X < h.X+h.W && h.X < g.X+g.W && g.Y < h.Y+h.H && h.Y < g.Y+g.H {
				t.Errorf("%s lies on %s", p.Title, o.Title)
			}
		}
	}
}

func TestAlertsAreSound(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	alerts := readAlerts(t)
	for _, a := range alerts {
		if !strings.HasPrefix(a.Alert, "Kluis") || seen[a.Alert] {
			t.Errorf("%q: name", a.Alert)
		}
		seen[a.Alert] = true
		if s := a.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q", a.Alert, s)
		}
		if a.Annotations["summary"] == "" || !strings.Contains(a.Annotations["description"], "Do: ") {
			t.Errorf("%s: does not say what to do", a.Alert)
		}
	}
	if len(alerts) < 20 {
		t.Errorf("%d rules", len(alerts))
	}
}

// TestScrapeConfiguration: it names the rules, and the jobs are those of rules
// and dashboards.
func TestScrapeConfiguration(t *testing.T) {
	t.Parallel()
	var c struct {
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []struct {
			JobName string `yaml:"job_name"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal(must(os.ReadFile(prometheusFile))(t), &c); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(c.RuleFiles, filepath.Base(alertsFile)) {
		t.Errorf("rule files %v", c.RuleFiles)
	}
	var jobs []string
	for _, s := range c.ScrapeConfigs {
		jobs = append(jobs, s.JobName)
	}
	for where, expr := range expressions(t) {
		for _, m := range parse(expr).matchers {
			if m.label == "job" && m.op == "=" && !slices.Contains(jobs, m.value) {
				t.Errorf("%s: no job %s in %v", where, m.value, jobs)
			}
			if m.label == "job" && m.op == "=~" && !slices.ContainsFunc(jobs, regexp.MustCompile("^(?:"+m.value+")$").MatchString) {
				t.Errorf("%s: no job %s in %v", where, m.value, jobs)
			}
		}
	}
}

// expressions are all of them, by where they stand.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, d := range readDashboards(t) {
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				all[fmt.Sprintf("%s: panel %q, %s", d.Title, p.Title, q.RefID)] = q.Expr
			}
		}
		for _, v := range d.Templating.List {
			var q struct{ Query string }
			if v.Type != "query" {
				continue
			}
			if err := json.Unmarshal(v.Query, &q); err != nil {
				t.Fatal(err)
			}
			all[d.Title+": variable "+v.Name] = q.Query
		}
	}
	for _, a := range readAlerts(t) {
		all["alert "+a.Alert] = a.Expr
	}
	return all
}

// query is what is named in an expression.
type query struct {
	metrics  []string
	matchers []matcher
	labels   []string // of by and on
}

type matcher struct{ metric, label, op, value string }

var (
	text        = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	selector    = regexp.MustCompile(`([a-zA-Z_:][a-zA-Z0-9_:]*)?\{((?:[^}"]|"(?:[^"\\]|\\.)*")*)\}`)
	match       = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"`)
	grouping    = regexp.MustCompile(`\b(?:by|without|on|ignoring)\s*\(([^)]*)\)`)
	name        = regexp.MustCompile(`\$?[a-zA-Z_:][a-zA-Z0-9_:]*`)
	duration    = regexp.MustCompile(`\[[^\]]*\]`)
	labelValues = regexp.MustCompile(`^label_values\((.*), *([a-z_]+)\)$`)
)

// parse reads as much of PromQL as is used here.
func parse(expr string) query {
	var q query
	if m := labelValues.FindStringSubmatch(expr); m != nil {
		q.labels = append(q.labels, m[2])
		expr = m[1]
	}
	for _, s := range selector.FindAllStringSubmatch(expr, -1) {
		for _, m := range match.FindAllStringSubmatch(s[2], -1) {
			q.matchers = append(q.matchers, matcher{s[1], m[1], m[2], m[3]})
		}
	}
	rest := selector.ReplaceAllString(duration.ReplaceAllString(expr, " "), "$1 ")
	for _, g := range grouping.FindAllStringSubmatch(rest, -1) {
		q.labels = append(q.labels, strings.FieldsFunc(g[1], func(r rune) bool { return r == ',' || r == ' ' })...)
	}
	rest = text.ReplaceAllString(grouping.ReplaceAllString(rest, " "), " ")
	for _, at := range name.FindAllStringIndex(rest, -1) {
		n := rest[at[0]:at[1]]
		after := strings.TrimLeft(rest[at[1]:], " ")
		before := at[0] > 0 && rest[at[0]-1] >= '0' && rest[at[0]-1] <= '9' // 200e6
		if before || strings.HasPrefix(after, "(") || slices.Contains([]string{"and", "or", "unless", "sum", "max", "min", "count"}, n) {
			continue
		}
		q.metrics = append(q.metrics, n)
	}
	return q
}

func TestParse(t *testing.T) {
	t.Parallel()
	q := parse(`histogram_quantile(0.9, sum by (server, le) (rate(a_bucket{method="Open", x!~"y|}"}[5m]))) > 3e2 * scalar(b) and on (job) time() - c{d="e"} > 8`)
	if !slices.Equal(q.metrics, []string{"a_bucket", "b", "c"}) || !slices.Equal(q.labels, []string{"server", "le", "job"}) ||
		len(q.matchers) != 3 || q.matchers[0] != (matcher{"a_bucket", "method", "=", "Open"}) || q.matchers[2] != (matcher{"c", "d", "=", "e"}) {
		t.Errorf("%+v", q)
	}
}

// prometheusOwn are those that Prometheus makes itself.
var prometheusOwn = map[string][]string{
	"up":     {"job", "instance"},
	"ALERTS": {"alertname", "alertstate", "instance", "job", "severity"},
}

// TestEveryMetricExists runs the programs.
func TestEveryMetricExists(t *testing.T) {
	have := installation(t)
	used := map[string]bool{}
	labelsOf := func(metric string) (map[string]bool, bool) {
		if own, ok := prometheusOwn[metric]; ok {
			m := map[string]bool{}
			for _, l := range own {
				m[l] = true
			}
			return m, true
		}
		got, ok := have[metric]
		if !ok {
			return nil, false
		}
		m := map[string]bool{}
		for l := range got.labels {
			m[l] = true
		}
		return m, true
	}
	known := knownValues()
	for where, expr := range expressions(t) {
		q := parse(expr)
		if len(q.metrics) == 0 {
			t.Errorf("%s: no metric in %s", where, expr)
		}
		union := map[string]bool{}
		for _, m := range q.metrics {
			used[m] = true
			labels, ok := labelsOf(m)
			if !ok {
				t.Errorf("%s: there is no metric %s", where, m)
			}
			for l := range labels {
				union[l] = true
			}
		}
		for _, l := range q.labels {
			if !union[l] {
				t.Errorf("%s: no label %s in %s", where, l, expr)
			}
		}
		for _, m := range q.matchers {
			labels, _ := labelsOf(m.metric)
			if !labels[m.label] {
				t.Errorf("%s: %s has no label %s", where, m.metric, m.label)
			}
			for _, v := range values(m) {
				if got := have[m.metric]; got != nil && !got.labels[m.label][v] && !regexp.MustCompile(`\b`+v+`\b`).MatchString(got.help) && !known[m.label][v] {
					t.Errorf("%s: %s of %s is never %q", where, m.label, m.metric, v)
				}
			}
		}
	}
	// Placeholders are labels that the query leaves.
	for _, d := range readDashboards(t) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				checkPlaceholders(t, p.Title, target.Expr, target.LegendFormat, `\{\{([a-z]+)\}\}`, labelsOf)
			}
		}
	}
	for _, a := range readAlerts(t) {
		for _, text := range a.Annotations {
			checkPlaceholders(t, a.Alert, a.Expr, text, `\$labels\.([a-z]+)`, labelsOf)
		}
	}
	// What is measured is shown.
	found := map[string]bool{}
	for m := range have {
		m = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(m, "_bucket"), "_sum"), "_count")
		for _, prefix := range []string{"kluis_gateway_", "kluis_hsm_", "kluis_cryptoserver_", "kluis_pool_", "kluis_custodian_", "kluis_auditor_", "kluis_audit_", "kluis_portal_"} {
			if strings.HasPrefix(m, prefix) && !used[m] && !used[m+"_bucket"] {
				t.Errorf("%s is measured and nowhere shown", m)
			}
			found[prefix] = found[prefix] || strings.HasPrefix(m, prefix)
		}
	}
	for prefix, ok := range found {
		if !ok {
			t.Errorf("nothing is measured as %s*", prefix)
		}
	}
}

// checkPlaceholders: after an aggregation the labels of its by are left,
// otherwise those of the metric.
func checkPlaceholders(t *testing.T, where, expr, format, pattern string, labelsOf func(string) (map[string]bool, bool)) {
	t.Helper()
	q := parse(expr)
	left := map[string]bool{}
	for _, l := range q.labels {
		left[l] = true
	}
	if len(q.labels) == 0 || strings.Contains(expr, " on (") {
		for _, m := range q.metrics {
			labels, _ := labelsOf(m)
			for l := range labels {
				left[l] = true
			}
		}
	}
	for _, p := range regexp.MustCompile(pattern).FindAllStringSubmatch(format, -1) {
		if !left[p[1]] {
			t.Errorf("%s: %s leaves no label %s", where, expr, p[1])
		}
	}
}

// values are those that a matcher names in full.
func values(m matcher) []string {
	var list []string
	for _, v := range strings.Split(m.value, "|") {
		if v != "" && regexp.MustCompile(`^[A-Za-z0-9_]+$`).MatchString(v) && (m.op == "=" || m.op == "!=" || m.op == "=~" || m.op == "!~") {
			list = append(list, v)
		}
	}
	return list
}

// knownValues are those that a label may have though nothing went wrong yet.
func knownValues() map[string]map[string]bool {
	k := map[string]map[string]bool{"code": {}, "method": {}, "reason": {}}
	for c := codes.OK; c <= codes.Unauthenticated; c++ {
		k["code"][c.String()] = true
	}
	for _, m := range cryptopb.Cryptoserver_ServiceDesc.Methods {
		k["method"][m.MethodName] = true
	}
	for _, r := range []cryptopb.Reason{
		cryptopb.ReasonInternal, cryptopb.ReasonSealRate, cryptopb.ReasonSealedTooOften, cryptopb.ReasonKeyErased,
		cryptopb.ReasonControlFork, cryptopb.ReasonControlStale, cryptopb.ReasonIdentityNotAllowed, cryptopb.ReasonTokenSpent,
	} {
		k["reason"][string(r)] = true
	}
	return k
}
