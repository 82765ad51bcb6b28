package ingest

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/parser"

	"kluis/meter"
)

//go:embed mappings/*.yaml
var builtIn embed.FS

// ErrMapping is wrapped by every error of ParseMapping and LoadMapping.
var ErrMapping = errors.New("mapping not usable")

// Mapping says what the columns of a foreign CSV layout mean. docs/INGEST.md
// describes the language. Immutable, safe for concurrent use.
type Mapping struct {
	name     string
	y        mappingYAML
	filters  []string // columns that any field filters by
	location *time.Location
	layout   []token
	fields   []source
}

// source is one field of a mapping, resolved.
type source struct {
	field      meter.Field
	columns    []string
	cumulative bool
	every      meter.Resolution
	shift      int // power of ten from the column's unit to the field's
	start      exact
	carry      bool
	where      []condition
	zeroWhere  []condition
	need       int // rows that must be there for one read (cumulative, long layouts)
	status     *status
}

type condition struct {
	column string
	texts  []string
}

type status struct {
	column string
	rules  []statusRule
	other  *outcome // nil: a status that no rule names is refused
}

type statusRule struct {
	whole   bool // the status is text, or else it holds it
	text    string
	outcome outcome
}

// outcome is what a status means for the value beside it.
type outcome struct {
	quality meter.Quality
	none    bool // there is no value
}

type mappingYAML struct {
	Description string      `yaml:"description"`
	CSV         csvYAML     `yaml:"csv"`
	Time        timeYAML    `yaml:"time"`
	Select      string      `yaml:"select"`
	Every       string      `yaml:"every"`
	Status      *statusYAML `yaml:"status"`
	Fields      []fieldYAML `yaml:"fields"`
}

type csvYAML struct {
	Delimiter  string   `yaml:"delimiter"`
	Decimal    string   `yaml:"decimal"`
	LazyQuotes bool     `yaml:"lazy_quotes"`
	Header     []string `yaml:"header"`
	NoValue    []string `yaml:"no_value"`
}

type timeYAML struct {
	Columns []string `yaml:"columns"`
	Format  string   `yaml:"format"`
	Zone    string   `yaml:"zone"`
	Marks   string   `yaml:"marks"`
}

type statusYAML struct {
	Column string     `yaml:"column"`
	Rules  []ruleYAML `yaml:"rules"`
	Else   string     `yaml:"else"`
}

type ruleYAML struct {
	Is       *string `yaml:"is"`
	Contains string  `yaml:"contains"`
	Quality  string  `yaml:"quality"`
}

type fieldYAML struct {
	Field     string           `yaml:"field"`
	Reads     string           `yaml:"reads"`
	Columns   []string         `yaml:"columns"`
	Unit      string           `yaml:"unit"`
	Every     string           `yaml:"every"`
	Start     string           `yaml:"start"`
	Rounding  string           `yaml:"rounding"`
	Where     map[string]texts `yaml:"where"`
	ZeroWhere map[string]texts `yaml:"zero_where"`
	Status    *statusYAML      `yaml:"status"`
}

// texts is one text or a list of them.
type texts []string

// UnmarshalYAML accepts a scalar for a list of one.
func (t *texts) UnmarshalYAML(unmarshal func(any) error) error {
	var one string
	if unmarshal(&one) == nil {
		*t = texts{one}
		return nil
	}
	return unmarshal((*[]string)(t))
}

// noValueQuality is what a status rule says instead of a quality when there
// is no value.
const noValueQuality = "NO_VALUE"

// maxMapping bounds a mapping file.
const maxMapping = 256 << 10

// BuiltIn lists the names of the mappings that come with Kluis.
func BuiltIn() []string {
	entries, err := builtIn.ReadDir("mappings")
	if err != nil {
		return nil // embedded: it is there
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}

// LoadMapping reads a mapping that comes with Kluis, by its name, or one of
// the user's, by its path.
func LoadMapping(nameOrPath string, p *meter.Profile) (*Mapping, error) {
	if slices.Contains(BuiltIn(), nameOrPath) {
		raw, err := builtIn.ReadFile(path.Join("mappings", nameOrPath+".yaml"))
		if err != nil {
			return nil, err
		}
		return ParseMapping(nameOrPath, raw, p)
	}
	f, err := os.Open(nameOrPath)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; name a file, or a mapping that comes with Kluis: %s", ErrMapping, err, strings.Join(BuiltIn(), ", "))
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxMapping+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMapping, err)
	}
	return ParseMapping(nameOrPath, raw, p)
}

// ParseMapping checks a mapping against the market's catalogue. Errors name
// the mapping, line and column.
func ParseMapping(name string, raw []byte, p *meter.Profile) (*Mapping, error) {
	if len(raw) > maxMapping {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrMapping, name, maxMapping)
	}
	m := &Mapping{name: name}
	dec := yaml.NewDecoder(strings.NewReader(string(raw)), yaml.Strict())
	switch err := dec.Decode(&m.y); {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%w: %s is empty", ErrMapping, name)
	case err != nil:
		return nil, fmt.Errorf("%w: %s: %s", ErrMapping, name, yaml.FormatError(err, false, true))
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %s holds more than one YAML document", ErrMapping, name)
	}
	if err := m.check(p); err != nil {
		var at *atPath
		if errors.As(err, &at) {
			line, column := position(raw, at.path)
			return nil, fmt.Errorf("%w: %s: line %d, column %d: %s: %s", ErrMapping, name, line, column, strings.TrimPrefix(at.path, "$."), at.reason)
		}
		return nil, fmt.Errorf("%w: %s: %w", ErrMapping, name, err)
	}
	return m, nil
}

// atPath is a complaint about one place of the YAML.
type atPath struct{ path, reason string }

func (e *atPath) Error() string { return e.path + ": " + e.reason }

func fail(path, format string, args ...any) error {
	return &atPath{"$." + path, fmt.Sprintf(format, args...)}
}

// position finds a YAML path, or the nearest place above it.
func position(raw []byte, at string) (line, column int) {
	file, err := parser.ParseBytes(raw, 0)
	if err != nil {
		return 1, 1
	}
	for at != "$" && at != "" {
		if p, err := yaml.PathString(at); err == nil {
			if n, err := p.FilterFile(file); err == nil && n != nil && n.GetToken() != nil {
				return n.GetToken().Position.Line, n.GetToken().Position.Column
			}
		}
		at = at[:max(strings.LastIndexAny(at, ".["), 0)]
	}
	return 1, 1
}

func (m *Mapping) check(p *meter.Profile) error {
	y := &m.y
	if y.CSV.Delimiter == "" {
		y.CSV.Delimiter = ","
	}
	if !slices.Contains([]string{",", ";", "\t", "|"}, y.CSV.Delimiter) {
		return fail("csv.delimiter", `must be ",", ";", "|" or a tab ("\t")`)
	}
	if y.CSV.Decimal == "" {
		y.CSV.Decimal = "."
	}
	if y.CSV.Decimal != "." && y.CSV.Decimal != "," {
		return fail("csv.decimal", `must be "." or ","`)
	}
	if dup := duplicate(y.CSV.Header); dup >= 0 {
		return fail(fmt.Sprintf("csv.header[%d]", dup), "names a column twice")
	}
	if len(y.Fields) == 0 {
		return fail("fields", "names no field")
	}
	if len(y.Fields) > 64 {
		return fail("fields", "names more than 64 fields")
	}
	common, err := m.checkStatus(y.Status, "status")
	if err != nil {
		return err
	}
	consumption := false
	seen := map[string]bool{}
	for i := range y.Fields {
		at := fmt.Sprintf("fields[%d]", i)
		s, err := m.checkField(&y.Fields[i], at, p, common)
		if err != nil {
			return err
		}
		if seen[s.field.Name] {
			return fail(at+".field", "is given twice")
		}
		seen[s.field.Name] = true
		consumption = consumption || !s.cumulative
		m.fields = append(m.fields, s)
		for _, c := range slices.Concat(s.where, s.zeroWhere) {
			if !slices.Contains(m.filters, c.column) {
				m.filters = append(m.filters, c.column)
			}
		}
	}
	return m.checkTime(consumption)
}

func (m *Mapping) checkTime(consumption bool) error {
	t := &m.y.Time
	if n := len(t.Columns); n < 1 || n > 2 {
		return fail("time.columns", "name one column, or two (date and time) that are read with a space between")
	}
	switch t.Format {
	case "":
		return fail("time", "format is missing: RFC3339, epoch, or a form such as DD/MM/YYYY HH:mm:ss")
	case "RFC3339", "epoch":
		if len(t.Columns) != 1 {
			return fail("time.columns", "%s takes one column", t.Format)
		}
		if t.Zone != "" {
			return fail("time.zone", "is only for local times; %s says its own", t.Format)
		}
	default:
		layout, err := parseLayout(t.Format)
		if err != nil {
			return fail("time.format", "%v", err)
		}
		m.layout = layout
		if t.Zone == "" || t.Zone == "Local" {
			return fail("time", "zone is missing: name the zone of the local times, as Europe/Amsterdam")
		}
		if m.location, err = time.LoadLocation(t.Zone); err != nil {
			return fail("time.zone", "is not a known time zone")
		}
	}
	switch {
	case consumption && t.Marks != "start" && t.Marks != "end":
		return fail("time.marks", "say whether the time is the start or the end of the interval")
	case !consumption && t.Marks != "":
		return fail("time.marks", "is only for consumption; a cumulative read has one instant")
	}
	return nil
}

func (m *Mapping) checkField(y *fieldYAML, at string, p *meter.Profile, common *status) (source, error) {
	s := source{columns: y.Columns, status: common, need: 1}
	var ok bool
	if s.field, ok = p.Field(y.Field); !ok {
		var names []string
		for _, f := range slices.Concat(p.Fields(meter.Electricity), p.Fields(meter.Gas)) {
			names = append(names, f.Name)
		}
		return s, fail(at+".field", "is not in the market's catalogue: %s", strings.Join(names, ", "))
	}
	switch y.Reads {
	case "consumption":
	case "cumulative":
		s.cumulative = true
	default:
		return s, fail(at+".reads", "must be consumption or cumulative")
	}
	if len(y.Columns) == 0 || len(y.Columns) > 16 {
		return s, fail(at+".columns", "name the column of the value, or those to be added up")
	}
	if duplicate(y.Columns) >= 0 {
		return s, fail(at+".columns", "names a column twice")
	}
	every, where := y.Every, at+".every"
	if every == "" {
		every, where = m.y.Every, "every"
	}
	var err error
	if s.every, err = meter.ParseResolution(every); err != nil || s.every > meter.PT1H {
		return s, fail(where, "say how long an interval is: PT15M or PT1H")
	}
	if s.field.Class == meter.Intervals && !slices.Contains(s.field.Stored, s.every) {
		return s, fail(where, "%s cannot be stored at %s", s.field.Name, s.every)
	}
	if s.shift, ok = units[s.field.Unit][y.Unit]; !ok {
		return s, fail(at+".unit", "cannot be turned into %s", s.field.Unit)
	}
	accumulates := s.field.Class == meter.Registers && !s.cumulative
	switch {
	case accumulates && y.Start == "":
		return s, fail(at+".start", "say the register's read at the file's first interval, in %s: midnight reads are accumulated from it", s.field.Unit)
	case !accumulates && y.Start != "":
		return s, fail(at+".start", "is only for registers accumulated from consumption")
	case accumulates:
		if s.start, err = parseExact([]byte(y.Start), '.', 0); err != nil || !s.start.fits(s.field.Precision) {
			return s, fail(at+".start", "is not a read in %s with at most %d decimals", s.field.Unit, s.field.Precision)
		}
	}
	switch y.Rounding {
	case "", "refuse":
	case "carry":
		s.carry = true
	default:
		return s, fail(at+".rounding", "must be refuse or carry")
	}
	if s.where, err = conditions(y.Where, at+".where"); err != nil {
		return s, err
	}
	if s.zeroWhere, err = conditions(y.ZeroWhere, at+".zero_where"); err != nil {
		return s, err
	}
	if len(s.zeroWhere) > 0 && (s.cumulative || len(s.where) == 0) {
		return s, fail(at+".zero_where", "is only for consumption in rows chosen by where")
	}
	if s.cumulative {
		for _, c := range s.where {
			s.need *= len(c.texts)
		}
	}
	if y.Status != nil {
		if s.status, err = m.checkStatus(y.Status, at+".status"); err != nil {
			return s, err
		}
	}
	return s, nil
}

func conditions(y map[string]texts, at string) ([]condition, error) {
	var out []condition
	for column, t := range y {
		if column == "" || len(t) == 0 || duplicate(t) >= 0 {
			return nil, fail(at, "each column needs a text or a list of different texts")
		}
		out = append(out, condition{column, t})
	}
	slices.SortFunc(out, func(a, b condition) int { return strings.Compare(a.column, b.column) })
	return out, nil
}

func (m *Mapping) checkStatus(y *statusYAML, at string) (*status, error) {
	if y == nil {
		return nil, nil
	}
	if y.Column == "" {
		return nil, fail(at+".column", "name the column of the status")
	}
	s := &status{column: y.Column}
	for i, r := range y.Rules {
		at := fmt.Sprintf("%s.rules[%d]", at, i)
		if (r.Is == nil) == (r.Contains == "") {
			return nil, fail(at, "say either is or contains")
		}
		o, err := parseOutcome(r.Quality, at+".quality")
		if err != nil {
			return nil, err
		}
		rule := statusRule{text: r.Contains, outcome: o}
		if r.Is != nil {
			rule.whole, rule.text = true, *r.Is
		}
		s.rules = append(s.rules, rule)
	}
	if y.Else != "" {
		o, err := parseOutcome(y.Else, at+".else")
		if err != nil {
			return nil, err
		}
		s.other = &o
	}
	if len(s.rules) == 0 && s.other == nil {
		return nil, fail(at, "has no rules")
	}
	return s, nil
}

func parseOutcome(s, at string) (outcome, error) {
	if s == noValueQuality {
		return outcome{none: true}, nil
	}
	q, err := meter.ParseQuality(s)
	if err != nil || q == meter.NotAvailable {
		return outcome{}, fail(at, "must be a quality (AS_PROVIDED, ADJUSTED, ESTIMATED, INCOMPLETE, CALCULATED, TEMPORARY) or %s", noValueQuality)
	}
	return outcome{quality: q}, nil
}

// meaning of a status text; not ok when no rule names it.
func (s *status) meaning(text string) (outcome, bool) {
	for _, r := range s.rules {
		if r.whole && text == r.text || !r.whole && strings.Contains(text, r.text) {
			return r.outcome, true
		}
	}
	if s.other != nil {
		return *s.other, true
	}
	return outcome{}, false
}

// Name is the mapping's name or path.
func (m *Mapping) Name() string { return m.name }

// Description is the mapping's own word on what it is for.
func (m *Mapping) Description() string { return m.y.Description }

// Commodities lists what the mapping yields fields of.
func (m *Mapping) Commodities() []meter.Commodity {
	var out []meter.Commodity
	for _, s := range m.fields {
		if !slices.Contains(out, s.field.Commodity) {
			out = append(out, s.field.Commodity)
		}
	}
	slices.Sort(out)
	return out
}

// SeveralHomes says whether files of this layout hold several homes, of which
// one must be chosen.
func (m *Mapping) SeveralHomes() bool { return m.y.Select != "" }

// WithStart returns the mapping with other start reads ("import_low":
// "1828.818", in the field's unit, decimal point).
func (m *Mapping) WithStart(starts map[string]string) (*Mapping, error) {
	c := *m
	c.fields = slices.Clone(m.fields)
	for name, read := range starts {
		i := slices.IndexFunc(c.fields, func(s source) bool { return s.field.Name == name })
		if i < 0 || c.fields[i].cumulative || c.fields[i].field.Class != meter.Registers {
			return nil, fmt.Errorf("%w: start of %q: %s does not accumulate such a register", ErrMapping, name, m.name)
		}
		v, err := parseExact([]byte(read), '.', 0)
		if err != nil || !v.fits(c.fields[i].field.Precision) {
			return nil, fmt.Errorf("%w: start of %s: not a read in %s with at most %d decimals", ErrMapping, name, c.fields[i].field.Unit, c.fields[i].field.Precision)
		}
		c.fields[i].start = v
	}
	return &c, nil
}

// duplicate is the index of the first text seen before, or -1.
func duplicate(list []string) int {
	for i, s := range list {
		if slices.Contains(list[:i], s) {
			return i
		}
	}
	return -1
}
