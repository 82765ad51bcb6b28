package meter

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"time"
	_ "time/tzdata" // static binaries run where there is no zone database

	"github.com/goccy/go-yaml/ast"
)

// Profile is a market profile, checked and compiled. Immutable.
type Profile struct {
	country   string
	version   string
	digest    [32]byte
	location  *time.Location
	retention int // months
	consent   ConsentTerms
	fields    []Field
	identity  identityTerms
	rules     []Rule
}

// identityTerms is what the market says of names and addresses.
type identityTerms struct {
	code    FieldCode
	pattern *regexp.Regexp // of postcodes; nil: the market keeps no identities
}

// ProfileID names a market profile, for what was decided by it.
type ProfileID struct {
	Country string   // ISO 3166-1 code of the market
	Version string   // its own name for this edition
	Digest  [32]byte // SHA-256 of the YAML bytes; what records keep
}

// String is for people: "XX 2026-01 (sha256 0011223344556677)".
func (id ProfileID) String() string {
	return fmt.Sprintf("%s %s (sha256 %s)", id.Country, id.Version, hex.EncodeToString(id.Digest[:8]))
}

// ID names the profile.
func (p *Profile) ID() ProfileID { return ProfileID{p.country, p.version, p.digest} }

// Country is the ISO 3166-1 code of the market.
func (p *Profile) Country() string { return p.country }

// Version is the profile's own name for this edition, "2026-01".
func (p *Profile) Version() string { return p.version }

// Digest is the SHA-256 of the YAML bytes: two processes with the same digest
// decide by the same rules.
func (p *Profile) Digest() [32]byte { return p.digest }

// Location is the time zone of the market's local days.
func (p *Profile) Location() *time.Location { return p.location }

// RetentionMonths says how many months back days may be given.
func (p *Profile) RetentionMonths() int { return p.retention }

// ConsentTerms is what the market says of every consent.
func (p *Profile) ConsentTerms() ConsentTerms { return p.consent }

// Field looks a field up by name.
func (p *Profile) Field(name string) (Field, bool) {
	i := slices.IndexFunc(p.fields, func(f Field) bool { return f.Name == name })
	if i < 0 {
		return Field{}, false
	}
	return p.fields[i], true
}

// FieldByCode looks a field up by its stored code.
func (p *Profile) FieldByCode(c FieldCode) (Field, bool) {
	i := slices.IndexFunc(p.fields, func(f Field) bool { return f.Code == c })
	if i < 0 {
		return Field{}, false
	}
	return p.fields[i], true
}

// IdentityCode is the code under which names and addresses are sealed, as a
// field's; false where the market keeps none. It is no field of the catalogue:
// nobody can ask for it as for readings.
func (p *Profile) IdentityCode() (FieldCode, bool) {
	return p.identity.code, p.identity.pattern != nil
}

// Fields returns a commodity's fields in the order of the catalogue.
func (p *Profile) Fields(c Commodity) []Field {
	var out []Field
	for _, f := range p.fields {
		if f.Commodity == c {
			out = append(out, f)
		}
	}
	return out
}

// Rules returns a copy of the enabled rules for a purpose, preferred first.
func (p *Profile) Rules(purpose Purpose) []Rule {
	var out []Rule
	for _, r := range p.rules {
		if r.Enabled && r.Purpose == purpose {
			out = append(out, r)
		}
	}
	return out
}

var (
	countryPattern   = regexp.MustCompile(`^[A-Z]{2}$`)
	versionPattern   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	fieldNamePattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)
	ruleIDPattern    = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	unitPattern      = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]{0,15}$`)
	monthsPattern    = regexp.MustCompile(`^P([1-9][0-9]{0,3})([MY])$`)
)

// ParseProfile checks a profile strictly and compiles it. Nothing is optional
// but a rule's "to", "days" and "lookback", "consent" where no rule is on
// consent, and "identity" where no rule is on identities, which have no
// granularity; unknown and repeated keys, repeated codes, names and ids, unknown
// values, rules that contradict each other and rules that could never give
// anything are refused. All errors are reported, each a *ProfileError with its
// line and column.
func ParseProfile(yaml []byte) (*Profile, error) {
	r := &yamlReader{}
	p := &Profile{digest: sha256.Sum256(yaml)}
	root := r.document(yaml)
	if root == nil {
		return nil, errors.Join(r.errs...)
	}
	m := r.mapping(root, []string{"country", "version", "time_zone", "retention", "fields", "rules"}, []string{"consent", "identity"})
	p.country = r.pattern(m["country"], countryPattern, "two capital letters (ISO 3166-1)")
	p.version = r.pattern(m["version"], versionPattern, "letters, digits, dot, dash and underscore")
	p.location = r.location(m["time_zone"])
	p.retention = r.months(m["retention"], "retention")
	if n := m["consent"]; n != nil {
		p.consent = r.consentTerms(n)
	}
	for _, n := range r.sequence(m["fields"]) {
		r.field(p, n)
	}
	if n := m["identity"]; n != nil {
		r.identity(p, n)
	}
	for _, n := range r.sequence(m["rules"]) {
		r.rule(p, n, m["consent"] != nil)
	}
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	return p, nil
}

// maxMonths is a century: a longer time is a slip.
const maxMonths = 1200

func (r *yamlReader) location(n ast.Node) *time.Location {
	name, ok := r.text(n)
	if !ok {
		return nil
	}
	loc, err := time.LoadLocation(name)
	if err != nil || name == "" || name == "Local" {
		r.fail(n, "unknown time zone: want a name of the IANA zone database, such as UTC")
		return nil
	}
	return loc
}

// months reads a number of months or years, at most a century.
func (r *yamlReader) months(n ast.Node, what string) int {
	s, ok := r.text(n)
	if !ok {
		return 0
	}
	m := monthsPattern.FindStringSubmatch(s)
	if m == nil {
		r.fail(n, "%s: want a number of months or years, such as P24M or P2Y", what)
		return 0
	}
	months, _ := strconv.Atoi(m[1]) // the pattern leaves at most four digits
	if m[2] == "Y" {
		months *= 12
	}
	if months > maxMonths {
		r.fail(n, "%s: at most %d months", what, maxMonths)
	}
	return months
}

func (r *yamlReader) field(p *Profile, n ast.Node) {
	m := r.mapping(n, []string{"code", "name", "obis", "unit", "precision", "class", "commodity", "stored"}, nil)
	if m == nil {
		return
	}
	f := Field{
		Code:      FieldCode(r.integer(m["code"], 1, math.MaxInt16)), // a smallint in the database
		Name:      r.pattern(m["name"], fieldNamePattern, "lower-case letters, digits and underscore"),
		Unit:      r.pattern(m["unit"], unitPattern, "letters and digits, such as kWh or m3"),
		Precision: r.integer(m["precision"], 0, MaxPrecision),
		Class:     parseNode(r, m["class"], ParseClass),
		Commodity: parseNode(r, m["commodity"], ParseCommodity),
	}
	if s, ok := r.text(m["obis"]); ok {
		o, err := ParseOBIS(s)
		if err != nil {
			r.fail(m["obis"], "%v", err)
		}
		f.OBIS = o.String()
	}
	for _, s := range r.sequence(m["stored"]) {
		res := parseNode(r, s, ParseResolution)
		switch {
		case res == 0 || f.Class == 0: // already reported
		case f.Class == Registers && res != P1D:
			r.fail(s, "registers are stored at P1D only")
		case f.Class == Intervals && res.duration() == 0:
			r.fail(s, "intervals are stored at PT15M or PT1H")
		case len(f.Stored) > 0 && f.Stored[len(f.Stored)-1] >= res:
			r.fail(s, "resolutions are listed once each, finest first")
		}
		f.Stored = append(f.Stored, res)
	}
	for _, o := range p.fields {
		if f.Code != 0 && o.Code == f.Code {
			r.fail(m["code"], "code %d is taken by %s", f.Code, o.Name)
		}
		if f.Name != "" && o.Name == f.Name {
			r.fail(m["name"], "there is another field of this name")
		}
		if f.OBIS != "" && f.Class != 0 && f.Commodity != 0 && o.OBIS == f.OBIS && o.Class == f.Class && o.Commodity == f.Commodity {
			r.fail(m["obis"], "%s is the same register, in the same class", o.Name)
		}
	}
	p.fields = append(p.fields, f)
}

// maxPattern bounds the pattern of postcodes: it is matched with what callers
// send.
const maxPattern = 128

func (r *yamlReader) identity(p *Profile, n ast.Node) {
	m := r.mapping(n, []string{"code", "postcode"}, nil)
	if m == nil {
		return
	}
	p.identity.code = FieldCode(r.integer(m["code"], 1, math.MaxInt16))
	for _, o := range p.fields {
		if p.identity.code != 0 && o.Code == p.identity.code {
			r.fail(m["code"], "code %d is taken by %s", o.Code, o.Name)
		}
	}
	s, ok := r.text(m["postcode"])
	if !ok {
		return
	}
	pattern, err := regexp.Compile(`^(?:` + s + `)$`)
	if err != nil || s == "" || len(s) > maxPattern {
		r.fail(m["postcode"], "want a regular expression of postcodes, such as [0-9]{4}")
		return
	}
	p.identity.pattern = pattern
}

func (r *yamlReader) rule(p *Profile, n ast.Node, consentTerms bool) {
	m := r.mapping(n, []string{"id", "basis", "purpose", "classes", "from", "requires_supply", "despite_opt_out", "enabled"},
		[]string{"granularity", "to", "days", "lookback"})
	if m == nil {
		return
	}
	rule := Rule{
		ID:             r.pattern(m["id"], ruleIDPattern, "lower-case letters, digits and dash"),
		Basis:          parseNode(r, m["basis"], ParseBasis),
		Purpose:        parseNode(r, m["purpose"], ParsePurpose),
		Granularity:    parseNode(r, m["granularity"], ParseResolution),
		Days:           DayRange{parseNode(r, m["from"], ParseDay), MaxDay},
		RequiresSupply: r.boolean(m["requires_supply"]),
		DespiteOptOut:  r.boolean(m["despite_opt_out"]),
		Enabled:        r.boolean(m["enabled"]),
	}
	if to := m["to"]; to != nil {
		before := len(r.errs)
		rule.Days.To = parseNode(r, to, ParseDay)
		if len(r.errs) == before && rule.Days.Empty() {
			r.fail(to, `"to" is the first day the rule no longer applies: it must be later than "from"`)
		}
	}
	if back := m["lookback"]; back != nil {
		rule.Lookback = r.months(back, "lookback")
		if p.retention != 0 && rule.Lookback > p.retention {
			r.fail(back, "lookback: no further back than the retention, %d months", p.retention)
		}
	}
	var classes []ast.Node
	for _, c := range r.sequence(m["classes"]) {
		class := parseNode(r, c, parseRuleClass)
		switch {
		case class == Identity && p.identity.pattern == nil:
			r.fail(c, "nothing is said of identities: add the key \"identity\" to the profile")
		case slices.Contains(rule.Classes, class):
			r.fail(c, "class listed twice")
		case class != 0 && class != Identity && !slices.ContainsFunc(p.fields, func(f Field) bool { return f.Class == class || f.Class == 0 }):
			r.fail(c, "no field of the catalogue is of this class")
		}
		if class == Registers && rule.Granularity.duration() != 0 {
			r.fail(m["granularity"], "registers can be given at P1D or P1M only")
		}
		rule.Classes, classes = append(rule.Classes, class), append(classes, c)
	}
	if slices.Contains(rule.Classes, Identity) {
		r.identityRule(&rule, m)
	} else if m["granularity"] == nil && m["id"] != nil {
		r.fail(m["id"], "key \"granularity\" is missing")
	}
	on := m["basis"] // where a wrong selection of days is shown
	if d := m["days"]; d != nil {
		before := len(r.errs)
		rule.On, on = parseNode(r, d, ParseOccasion), d
		if len(r.errs) > before {
			on = nil
		}
	}
	if want := rule.Basis.occasion(); rule.Basis != 0 && on != nil && rule.On != want {
		r.fail(on, "the basis %s is for the days %s: give \"days: %s\"", rule.Basis, want, want)
	}
	if rule.Basis.SingleReads() {
		// One read at a time: there are none of intervals, and a month is two.
		for i, class := range rule.Classes {
			if class != Registers && class != 0 {
				r.fail(classes[i], "the basis %s gives single register reads: want registers only", rule.Basis)
			}
		}
		if rule.Granularity == P1M {
			r.fail(m["granularity"], "the basis %s gives single register reads: want P1D", rule.Basis)
		}
	}
	if rule.Basis.restsOnSupply() && !rule.RequiresSupply && m["requires_supply"] != nil {
		r.fail(m["requires_supply"], "the basis %s rests on the supply: must be true", rule.Basis)
	}
	switch {
	case rule.Basis == CustomerServiceBasis && rule.Purpose != 0 && rule.Purpose != CustomerService:
		r.fail(m["purpose"], "the basis %s is for the purpose %s", rule.Basis, CustomerService)
	case rule.Basis == CustomerServiceBasis && rule.RequiresSupply:
		r.fail(m["requires_supply"], "the basis %s is for employees of the grid operator, who supply nothing: must be false", rule.Basis)
	case rule.Enabled && rule.Basis == Consent && !consentTerms:
		r.fail(m["basis"], "there are no terms for consents: add the key \"consent\" to the profile")
	}
	for i := range p.rules {
		o := &p.rules[i]
		if rule.ID != "" && o.ID == rule.ID {
			r.fail(m["id"], "there is another rule of this id")
		}
		if reason := contradiction(&rule, o); reason != "" {
			r.fail(m["id"], "rule %s %s", o.ID, reason)
		}
	}
	p.rules = append(p.rules, rule)
}

// identityRule checks what a rule on names and addresses may say: they are for
// employees of the grid operator, as they are, of who lives there.
func (r *yamlReader) identityRule(rule *Rule, m map[string]ast.Node) {
	if len(rule.Classes) != 1 {
		r.fail(m["classes"], "class %s is given by a rule of its own: want [%s]", Identity, Identity)
	}
	for _, key := range []string{"granularity", "days", "lookback"} {
		if n := m[key]; n != nil {
			r.fail(n, "class %s has no %s: leave it out", Identity, key)
		}
	}
	if rule.Basis != 0 && rule.Basis != CustomerServiceBasis {
		r.fail(m["basis"], "class %s is given on the basis %s only", Identity, CustomerServiceBasis)
	}
	if m["despite_opt_out"] != nil && !rule.DespiteOptOut {
		r.fail(m["despite_opt_out"], "who switches remote reading off keeps name and address: must be true")
	}
}

// contradiction says why two rules may not both be in force, or "".
func contradiction(a, b *Rule) string {
	shared := func(c Class) bool { return c != 0 && slices.Contains(b.Classes, c) }
	if !a.Enabled || !b.Enabled || a.Purpose == 0 || a.Purpose != b.Purpose || a.Days.Intersect(b.Days).Empty() || !slices.ContainsFunc(a.Classes, shared) {
		return ""
	}
	switch {
	case a.Basis == 0 || b.Basis == 0:
		return ""
	case a.Basis == b.Basis:
		return "has the same basis, purpose and class on some of the same days"
	case a.Granularity != b.Granularity || !a.Basis.restsOnSupply() || !b.Basis.restsOnSupply() || a.On != b.On:
		return ""
	case a.DespiteOptOut != b.DespiteOptOut || a.Lookback != b.Lookback:
		return "gives another answer for the same facts, purpose, class and granularity on some of the same days"
	}
	return "gives the same for the same facts, purpose, class and granularity on some of the same days: only one basis can be named"
}

var retentionLine = regexp.MustCompile(`(?m)^retention:[ \t]*[^#\r\n]*?([ \t]*(#.*)?\r?)$`)

// WithRetention returns a copy of a profile with another retention. All else,
// comments included, stays as it was.
func WithRetention(yaml []byte, months int) ([]byte, error) {
	if n := len(retentionLine.FindAllIndex(yaml, 2)); n != 1 {
		return nil, fmt.Errorf("market profile: %d lines start with \"retention:\", want one", n)
	}
	out := retentionLine.ReplaceAll(yaml, fmt.Appendf(nil, "retention: P%dM${1}", months))
	if _, err := ParseProfile(out); err != nil {
		return nil, err
	}
	return out, nil
}
