package meter

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func nl(t testing.TB) *Profile {
	t.Helper()
	p, err := ParseProfile(NL())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNL(t *testing.T) {
	t.Parallel()
	p := nl(t)
	if p.Country() != "NL" || p.Version() == "" || p.Location().String() != "Europe/Amsterdam" || p.RetentionMonths() != 24 {
		t.Errorf("%s %s %s %d", p.Country(), p.Version(), p.Location(), p.RetentionMonths())
	}
	if p.Digest() != sha256.Sum256(NL()) {
		t.Error("digest is not the SHA-256 of the bytes")
	}

	daily, hourly, quarterly := []Resolution{P1D}, []Resolution{PT1H}, []Resolution{PT15M, PT1H}
	want := []Field{
		{1, "import_low", "1-0:1.8.1", "kWh", 3, Registers, Electricity, daily},
		{2, "import_normal", "1-0:1.8.2", "kWh", 3, Registers, Electricity, daily},
		{3, "export_low", "1-0:2.8.1", "kWh", 3, Registers, Electricity, daily},
		{4, "export_normal", "1-0:2.8.2", "kWh", 3, Registers, Electricity, daily},
		{5, "gas", "0-n:24.2.1", "m3", 3, Registers, Gas, daily},
		{6, "import_intervals", "1-0:1.8.0", "kWh", 3, Intervals, Electricity, quarterly},
		{7, "export_intervals", "1-0:2.8.0", "kWh", 3, Intervals, Electricity, quarterly},
		{8, "gas_intervals", "0-n:24.2.1", "m3", 3, Intervals, Gas, hourly},
	}
	var names [3][]string
	for _, w := range want {
		byCode, ok1 := p.FieldByCode(w.Code)
		byName, ok2 := p.Field(w.Name)
		if got := fmt.Sprint(byCode); !ok1 || !ok2 || got != fmt.Sprint(w) || got != fmt.Sprint(byName) {
			t.Errorf("field %d is %v, want %v", w.Code, byCode, w)
		}
		names[w.Commodity] = append(names[w.Commodity], w.Name)
	}
	for _, c := range []Commodity{Electricity, Gas} {
		var got []string
		for _, f := range p.Fields(c) {
			got = append(got, f.Name)
		}
		if !slices.Equal(got, names[c]) {
			t.Errorf("fields of %s: %v, want %v", c, got, names[c])
		}
	}
	if _, ok := p.FieldByCode(9); ok {
		t.Error("there is a ninth field")
	}
	if _, ok := p.Field("identity"); ok {
		t.Error("there is a field that the catalogue does not have")
	}

	for purpose, want := range map[Purpose]string{
		Billing:          "[{nl-billing-periodic SUPPLY_PERIODIC BILLING [registers] P1M ALL {2012-01-01 5881580-07-11} 0 true false true}]",
		EnergyManagement: "[{nl-daily SUPPLY_DAILY ENERGY_MANAGEMENT [registers] P1D ALL {2020-10-01 5881580-07-11} 0 true false true} {nl-consent-intervals CONSENT ENERGY_MANAGEMENT [intervals] PT15M ALL {2012-01-01 5881580-07-11} 0 true false true}]",
		Switch:           "[{nl-switch SWITCH SWITCH [registers] P1D SUPPLY_BOUNDARY {2012-01-01 5881580-07-11} 0 true true true}]",
		Move:             "[{nl-move MOVE MOVE [registers] P1D OCCUPANCY_BOUNDARY {2012-01-01 5881580-07-11} 0 true true true}]",
		CustomerService: "[{nl-customer-service-registers CUSTOMER_SERVICE CUSTOMER_SERVICE [registers] P1D ALL {2012-01-01 5881580-07-11} 0 false false true} " +
			"{nl-customer-service-intervals CUSTOMER_SERVICE CUSTOMER_SERVICE [intervals] PT15M ALL {2012-01-01 5881580-07-11} 0 false false true} " +
			"{nl-customer-service-identity CUSTOMER_SERVICE CUSTOMER_SERVICE [identity] Resolution(0) ALL {2012-01-01 5881580-07-11} 0 false true true}]",
		0: "[]",
	} {
		if got := fmt.Sprint(p.Rules(purpose)); got != want {
			t.Errorf("rules for %s:\n%s, want\n%s", purpose, got, want)
		}
	}
	if got := fmt.Sprint(p.ConsentTerms()); got != "{30 36 [CUSTOMER SUPPLIER] true}" {
		t.Errorf("consent terms %s", got)
	}
}

// A second market, in which codes, channels, resolutions, times and rules are
// others.
func TestBE(t *testing.T) {
	t.Parallel()
	p, err := ParseProfile(BE())
	if err != nil {
		t.Fatal(err)
	}
	if p.Country() != "BE" || p.Location().String() != "Europe/Brussels" || p.RetentionMonths() != 36 {
		t.Errorf("%s %s %d", p.Country(), p.Location(), p.RetentionMonths())
	}
	var got []string
	for _, c := range []Commodity{Electricity, Gas} {
		for _, f := range p.Fields(c) {
			got = append(got, strings.TrimSpace(fmt.Sprintln(f.Code, f.Name, f.OBIS, f.Unit, f.Class, f.Stored)))
		}
	}
	want := []string{
		"101 import_normal 1-0:1.8.1 kWh registers [P1D]",
		"102 import_low 1-0:1.8.2 kWh registers [P1D]",
		"103 export_normal 1-0:2.8.1 kWh registers [P1D]",
		"104 export_low 1-0:2.8.2 kWh registers [P1D]",
		"111 import_intervals 1-0:1.8.0 kWh intervals [PT15M]",
		"112 export_intervals 1-0:2.8.0 kWh intervals [PT15M]",
		"105 gas 0-n:24.2.3 m3 registers [P1D]",
		"115 gas_intervals 0-n:24.2.3 m3 intervals [PT1H]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("fields\n%s", strings.Join(got, "\n"))
	}
	for purpose, want := range map[Purpose]string{
		Billing: "[{be-billing-monthly SUPPLY_PERIODIC BILLING [registers] P1M ALL {2019-07-01 5881580-07-11} 24 true false true}]",
		EnergyManagement: "[{be-mandate-registers CONSENT ENERGY_MANAGEMENT [registers] P1D ALL {2019-07-01 5881580-07-11} 0 false false true} " +
			"{be-mandate-intervals CONSENT ENERGY_MANAGEMENT [intervals] PT15M ALL {2019-07-01 5881580-07-11} 0 false false true}]",
		Switch: "[{be-switch SWITCH SWITCH [registers] P1D SUPPLY_BOUNDARY {2019-07-01 5881580-07-11} 24 true true true}]",
		Move:   "[{be-move MOVE MOVE [registers] P1D OCCUPANCY_BOUNDARY {2019-07-01 5881580-07-11} 24 true true true}]",
		CustomerService: "[{be-customer-service-registers CUSTOMER_SERVICE CUSTOMER_SERVICE [registers] P1D ALL {2019-07-01 5881580-07-11} 0 false false true} " +
			"{be-customer-service-intervals CUSTOMER_SERVICE CUSTOMER_SERVICE [intervals] PT15M ALL {2019-07-01 5881580-07-11} 0 false false true} " +
			"{be-customer-service-identity CUSTOMER_SERVICE CUSTOMER_SERVICE [identity] Resolution(0) ALL {2019-07-01 5881580-07-11} 0 false true true}]",
	} {
		if got := fmt.Sprint(p.Rules(purpose)); got != want {
			t.Errorf("rules for %s:\n%s, want\n%s", purpose, got, want)
		}
	}
	terms := p.ConsentTerms()
	if fmt.Sprint(terms) != "{14 24 [CUSTOMER SUPPLIER OPERATOR] true}" || !terms.MayRevoke(OperatorParty) || nl(t).ConsentTerms().MayRevoke(OperatorParty) {
		t.Errorf("consent terms %v", terms)
	}
}

func TestProfileID(t *testing.T) {
	t.Parallel()
	p := nl(t)
	id := p.ID()
	if id != (ProfileID{p.Country(), p.Version(), p.Digest()}) || id.String() != fmt.Sprintf("NL 2026-11 (sha256 %x)", id.Digest[:8]) {
		t.Errorf("%s", id)
	}
}

// A consent of the last day of a month is bounded by the last day there is.
func TestLongestUntil(t *testing.T) {
	t.Parallel()
	parse := func(s string) Day {
		d, err := ParseDay(s)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, c := range []struct {
		began  string
		months int
		want   string
	}{{"2026-01-31", 1, "2026-02-28"}, {"2024-02-29", 12, "2025-02-28"}, {"2026-05-05", 36, "2029-05-05"}, {"2026-05-05", 0, "2026-05-05"}} {
		if got := (ConsentTerms{LongestMonths: c.months}).LongestUntil(parse(c.began)); got != parse(c.want) {
			t.Errorf("%d months from %s: %s", c.months, c.began, got)
		}
	}
}

func TestProfileIsImmutable(t *testing.T) {
	t.Parallel()
	p := nl(t)
	p.Fields(Gas)[0].Name = "changed"
	p.Rules(Billing)[0].Granularity = PT15M
	NL()[0] = 'x'
	if _, ok := p.Field("gas"); !ok || p.Rules(Billing)[0].Granularity != P1M || NL()[0] == 'x' {
		t.Error("a caller changed the profile")
	}
}

func TestDisabledRuleGivesNothing(t *testing.T) {
	t.Parallel()
	i := bytes.Index(NL(), []byte("id: nl-daily"))
	src := slices.Concat(NL()[:i], bytes.Replace(NL()[i:], []byte("enabled: true"), []byte("enabled: false"), 1))
	p, err := ParseProfile(src)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range p.Rules(EnergyManagement) {
		if r.Basis == SupplyDaily {
			t.Error("the rule is still in force")
		}
	}
	if len(p.Rules(EnergyManagement)) != 1 || p.Digest() == nl(t).Digest() {
		t.Error("the other rule is gone, or the digest is unchanged")
	}
}

const smallProfile = `country: XX
version: "1"
time_zone: UTC
retention: P2Y
fields:
  - code: 1
    name: reg
    obis: "1-0:1.8.1"
    unit: kWh
    precision: 3
    class: registers
    commodity: electricity
    stored: [P1D]
  - code: 2
    name: int
    obis: "1-0:1.8.0"
    unit: kWh
    precision: 0
    class: intervals
    commodity: electricity
    stored: [PT15M, PT1H]
rules:
  - id: one
    basis: CONSENT
    purpose: BILLING
    classes: [registers, intervals]
    granularity: P1D
    from: 2024-01-01
    to: 2024-07-01
    requires_supply: false
    despite_opt_out: true
    enabled: true
  - id: two
    basis: CONSENT
    purpose: BILLING
    classes: [intervals]
    granularity: PT1H
    from: 2024-07-01
    requires_supply: true
    despite_opt_out: false
    enabled: true
consent:
  answer_within: P30D
  longest_validity: P1Y
  revoked_by: [SUPPLIER, CUSTOMER]
  ended_by_move: true
`

// withRule adds rules after the other two, from line 42 on.
func withRule(rules ...[]string) string {
	out := "    enabled: true\n"
	for _, lines := range rules {
		out += "  - " + strings.Join(lines, "\n    ") + "\n"
	}
	return out + "consent:"
}

func TestParseProfile(t *testing.T) {
	t.Parallel()
	p, err := ParseProfile([]byte(smallProfile))
	if err != nil {
		t.Fatal(err)
	}
	if p.RetentionMonths() != 24 {
		t.Errorf("P2Y is %d months", p.RetentionMonths())
	}
	want := "[{one CONSENT BILLING [registers intervals] P1D ALL {2024-01-01 2024-07-01} 0 false true true} " +
		"{two CONSENT BILLING [intervals] PT1H ALL {2024-07-01 5881580-07-11} 0 true false true}]"
	if got := fmt.Sprint(p.Rules(Billing)); got != want {
		t.Errorf("rules:\n%s, want\n%s", got, want)
	}
}

// A successor can be prepared beside the rule it will replace.
func TestDisabledRuleMayOverlap(t *testing.T) {
	t.Parallel()
	src := strings.Replace(smallProfile, "from: 2024-07-01\n    requires_supply: true\n    despite_opt_out: false\n    enabled: true",
		"from: 2024-01-01\n    requires_supply: true\n    despite_opt_out: false\n    enabled: false", 1)
	p, err := ParseProfile([]byte(src))
	if err != nil || src == smallProfile {
		t.Fatal(err)
	}
	if rules := p.Rules(Billing); len(rules) != 1 || rules[0].ID != "one" {
		t.Errorf("rules %v", rules)
	}
}

func TestParseProfileRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		old, new string // one replacement in smallProfile
		at       string // line:column
		reason   string
	}{
		"unknown key":                {"retention: P2Y", "retention: P2Y\nretentoin: P3Y", "5:1", `unknown key "retentoin"`},
		"unknown key of a field":     {"    unit: kWh\n    precision: 3", "    unit: kWh\n    colour: red\n    precision: 3", "10:5", `unknown key "colour"`},
		"unknown key of a rule":      {"    enabled: true\n  - id: two", "    enable: true\n    enabled: true\n  - id: two", "32:5", `unknown key "enable"`},
		"repeated key":               {"retention: P2Y", "retention: P2Y\nretention: P3Y", "5:1", "retention"},
		"missing key":                {"country: XX\n", "", "1:1", `key "country" is missing`},
		"missing key of a rule":      {"    requires_supply: false\n", "", "23:5", `key "requires_supply" is missing`},
		"missing key of a field":     {"    precision: 0\n", "", "14:5", `key "precision" is missing`},
		"empty value":                {"country: XX", "country:", "1:9", "want a text"},
		"country":                    {"country: XX", "country: nl", "1:10", "two capital letters"},
		"version as a number":        {`version: "1"`, "version: 1", "2:10", "quotes"},
		"unknown time zone":          {"UTC", "Europe/Atlantis", "3:12", "unknown time zone"},
		"the machine's time zone":    {"UTC", "Local", "3:12", "unknown time zone"},
		"time zone outside":          {"UTC", "../../etc/localtime", "3:12", "unknown time zone"},
		"retention in days":          {"P2Y", "P730D", "4:12", "retention"},
		"retention of nothing":       {"P2Y", "P0M", "4:12", "retention"},
		"retention without end":      {"P2Y", "P999Y", "4:12", "at most 1200 months"},
		"fields empty":               {"rules:", "rules: []\nrulez:", "22:8", "at least one"},
		"repeated code":              {"code: 2", "code: 1", "14:11", "code 1 is taken by reg"},
		"repeated name":              {"name: int", "name: reg", "15:11", "another field of this name"},
		"code zero":                  {"code: 1", "code: 0", "6:11", "1 to 32767"},
		"code too large":             {"code: 1", "code: 32768", "6:11", "1 to 32767"},
		"code not whole":             {"code: 1", "code: 1.0", "6:11", "1 to 32767"},
		"code octal":                 {"code: 1", "code: 01", "6:11", "1 to 32767"},
		"code as a text":             {"code: 1", `code: "1"`, "6:11", "1 to 32767"},
		"name":                       {"name: reg", "name: Reg", "7:11", "lower-case"},
		"OBIS":                       {"1-0:1.8.1", "1-0:1.8", "8:11", "not an OBIS code"},
		"OBIS leading zero":          {"1-0:1.8.1", "1-0:01.8.1", "8:11", "not an OBIS code"},
		"OBIS out of range":          {"1-0:1.8.1", "1-0:1.8.256", "8:11", "not an OBIS code"},
		"unit":                       {"unit: kWh\n    precision: 3", "unit: k Wh\n    precision: 3", "9:11", "letters and digits"},
		"precision":                  {"precision: 3", "precision: 10", "10:16", "0 to 9"},
		"precision negative":         {"precision: 3", "precision: -1", "10:16", "0 to 9"},
		"class":                      {"class: registers", "class: register", "11:12", "unknown class"},
		"commodity":                  {"commodity: electricity", "commodity: heat", "12:16", "unknown commodity"},
		"registers by the hour":      {"stored: [P1D]", "stored: [PT1H]", "13:14", "P1D only"},
		"intervals by the day":       {"stored: [PT15M, PT1H]", "stored: [PT15M, P1D]", "21:21", "PT15M or PT1H"},
		"stored twice":               {"stored: [PT15M, PT1H]", "stored: [PT1H, PT1H]", "21:20", "once each"},
		"stored nothing":             {"stored: [P1D]", "stored: []", "13:13", "at least one"},
		"stored no list":             {"stored: [P1D]", "stored: P1D", "13:13", "at least one"},
		"same register twice":        {`obis: "1-0:1.8.0"` + "\n    unit: kWh\n    precision: 0\n    class: intervals\n    commodity: electricity\n    stored: [PT15M, PT1H]", `obis: "1-0:1.8.1"` + "\n    unit: kWh\n    precision: 0\n    class: registers\n    commodity: electricity\n    stored: [P1D]", "16:11", "same register"},
		"basis":                      {"basis: CONSENT", "basis: WISH", "24:12", "unknown legal basis"},
		"purpose":                    {"purpose: BILLING", "purpose: MARKETING", "25:14", "unknown purpose"},
		"class of a rule":            {"classes: [registers, intervals]", "classes: [registers, weather]", "26:26", "unknown class"},
		"class twice":                {"classes: [registers, intervals]", "classes: [registers, registers]", "26:26", "twice"},
		"registers by the quarter":   {"granularity: P1D", "granularity: PT15M", "27:18", "P1D or P1M only"},
		"granularity":                {"granularity: P1D", "granularity: P1W", "27:18", "unknown resolution"},
		"a day that does not exist":  {"from: 2024-01-01", "from: 2024-02-30", "28:11", "not a day"},
		"from after to":              {"from: 2024-01-01", "from: 2024-07-02", "29:9", "later than"},
		"from is to":                 {"from: 2024-01-01", "from: 2024-07-01", "29:9", "later than"},
		"a text for a boolean":       {"enabled: true\n  - id", "enabled: \"yes\"\n  - id", "32:14", "true or false"},
		"supply basis for anyone":    {"basis: CONSENT", "basis: SUPPLY_DAILY", "30:22", "must be true"},
		"two rules of one id":        {"id: two", "id: one", "33:9", "another rule of this id"},
		"rules that overlap":         {"to: 2024-07-01", "to: 2024-07-02", "33:9", "same basis, purpose and class"},
		"selection of days":          {"from: 2024-01-01", "from: 2024-01-01\n    days: SUNDAYS", "29:11", "unknown selection of days"},
		"boundary of a consent":      {"from: 2024-01-01", "from: 2024-01-01\n    days: SUPPLY_BOUNDARY", "29:11", `give "days: ALL"`},
		"switch on all days":         {"    enabled: true\nconsent:", withRule([]string{"id: x", "basis: SWITCH", "purpose: SWITCH", "classes: [registers]", "granularity: P1D", "from: 2024-01-01", "requires_supply: true", "despite_opt_out: true", "enabled: true"}), "43:12", `give "days: SUPPLY_BOUNDARY"`},
		"switch at a move":           {"    enabled: true\nconsent:", withRule([]string{"id: x", "basis: SWITCH", "purpose: SWITCH", "classes: [registers]", "granularity: P1D", "days: OCCUPANCY_BOUNDARY", "from: 2024-01-01", "requires_supply: true", "despite_opt_out: true", "enabled: true"}), "47:11", `give "days: SUPPLY_BOUNDARY"`},
		"move of intervals":          {"    enabled: true\nconsent:", withRule([]string{"id: x", "basis: MOVE", "purpose: MOVE", "classes: [registers, intervals]", "granularity: P1D", "days: OCCUPANCY_BOUNDARY", "from: 2024-01-01", "requires_supply: true", "despite_opt_out: true", "enabled: true"}), "45:26", "want registers only"},
		"move by the month":          {"    enabled: true\nconsent:", withRule([]string{"id: x", "basis: MOVE", "purpose: MOVE", "classes: [registers]", "granularity: P1M", "days: OCCUPANCY_BOUNDARY", "from: 2024-01-01", "requires_supply: true", "despite_opt_out: true", "enabled: true"}), "46:18", "want P1D"},
		"move of anyone":             {"    enabled: true\nconsent:", withRule([]string{"id: x", "basis: MOVE", "purpose: MOVE", "classes: [registers]", "granularity: P1D", "days: OCCUPANCY_BOUNDARY", "from: 2024-01-01", "requires_supply: false", "despite_opt_out: true", "enabled: true"}), "49:22", "must be true"},
		"customer service for bills": {"basis: CONSENT", "basis: CUSTOMER_SERVICE", "25:14", "is for the purpose CUSTOMER_SERVICE"},
		"customer service supplies":  {"    enabled: true\nconsent:", withRule([]string{"id: x", "basis: CUSTOMER_SERVICE", "purpose: CUSTOMER_SERVICE", "classes: [registers]", "granularity: P1D", "from: 2024-01-01", "requires_supply: true", "despite_opt_out: true", "enabled: true"}), "48:22", "must be false"},
		"lookback in days":           {"from: 2024-01-01", "from: 2024-01-01\n    lookback: P7D", "29:15", "lookback"},
		"lookback past retention":    {"from: 2024-01-01", "from: 2024-01-01\n    lookback: P25M", "29:15", "no further back than the retention, 24 months"},
		"class without a field":      {"class: intervals\n    commodity: electricity\n    stored: [PT15M, PT1H]", "class: registers\n    commodity: electricity\n    stored: [P1D]", "26:26", "no field of the catalogue"},
		"same facts, other answer":   {"    enabled: true\nconsent:", withRule([]string{"id: a", "basis: SUPPLY_DAILY", "purpose: BILLING", "classes: [registers]", "granularity: P1D", "from: 2024-01-01", "requires_supply: true", "despite_opt_out: true", "enabled: true"}, []string{"id: b", "basis: SUPPLY_PERIODIC", "purpose: BILLING", "classes: [registers]", "granularity: P1D", "from: 2024-01-01", "requires_supply: true", "despite_opt_out: false", "enabled: true"}), "51:9", "rule a gives another answer"},
		"same facts, same answer":    {"    enabled: true\nconsent:", withRule([]string{"id: a", "basis: SUPPLY_DAILY", "purpose: BILLING", "classes: [registers]", "granularity: P1D", "from: 2024-01-01", "requires_supply: true", "despite_opt_out: true", "enabled: true"}, []string{"id: b", "basis: SUPPLY_PERIODIC", "purpose: BILLING", "classes: [registers]", "granularity: P1D", "from: 2024-01-01", "requires_supply: true", "despite_opt_out: true", "enabled: true"}), "51:9", "only one basis can be named"},
		"no terms for consents":      {"consent:\n  answer_within: P30D\n  longest_validity: P1Y\n  revoked_by: [SUPPLIER, CUSTOMER]\n  ended_by_move: true\n", "", "24:12", `add the key "consent"`},
		"unknown consent term":       {"  ended_by_move: true", "  ended_by_move: true\n  ended_by_death: true", "47:3", `unknown key "ended_by_death"`},
		"consent term missing":       {"  ended_by_move: true\n", "", "43:3", `key "ended_by_move" is missing`},
		"consent terms no mapping":   {"consent:\n  answer_within: P30D\n  longest_validity: P1Y\n  revoked_by: [SUPPLIER, CUSTOMER]\n  ended_by_move: true\n", "consent: yes", "42:10", "want a mapping"},
		"answer in months":           {"P30D", "P1M", "43:18", "want a number of days"},
		"answer too long":            {"P30D", "P367D", "43:18", "at most 366 days"},
		"validity in days":           {"P1Y", "P365D", "44:21", "longest_validity"},
		"validity without end":       {"P1Y", "P101Y", "44:21", "at most 1200 months"},
		"revoked by a stranger":      {"[SUPPLIER, CUSTOMER]", "[CUSTOMER, NEIGHBOUR]", "45:26", "unknown party"},
		"revoked by nobody":          {"[SUPPLIER, CUSTOMER]", "[]", "45:15", "at least one"},
		"revoked by the other only":  {"[SUPPLIER, CUSTOMER]", "[SUPPLIER]", "45:15", "CUSTOMER must be listed"},
		"revoked by one twice":       {"[SUPPLIER, CUSTOMER]", "[CUSTOMER, CUSTOMER]", "45:26", "listed twice"},
		"rule that is no mapping":    {"  - id: two", "  - never\n  - id: two", "33:5", "want a mapping"},
		"anchor":                     {"country: XX", "country: &c XX", "1:10", "want a text"},
		"tag":                        {"country: XX", "country: !!str XX", "1:10", "want a text"},
		"merge key":                  {"country: XX", "country: XX\n<<: {retention: P1M}", "2:1", "want a plain key"},
		"two documents":              {"rules:", "---\nrules:", "1:1", "one YAML document"},
		"tab":                        {"  - id: two", "\t- id: two", "33:1", "cannot start"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(smallProfile, tt.old) {
				t.Fatal("nothing to replace")
			}
			p, err := ParseProfile([]byte(strings.Replace(smallProfile, tt.old, tt.new, 1)))
			if p != nil || err == nil {
				t.Fatal("accepted")
			}
			var pe *ProfileError
			if !errors.As(err, &pe) {
				t.Fatalf("%T: %v", err, err)
			}
			found := false
			for _, e := range strings.Split(err.Error(), "\n") {
				place, ok := strings.CutPrefix(e, "market profile, line ")
				if !ok {
					t.Errorf("no place: %s", e)
				}
				place, reason, _ := strings.Cut(place, ": ")
				found = found || strings.Replace(place, ", column ", ":", 1) == tt.at && strings.Contains(reason, tt.reason)
			}
			if !found {
				t.Errorf("want %s %q:\n%v", tt.at, tt.reason, err)
			}
		})
	}
	for _, src := range []string{"", "\n", "# nothing\n", "null", "[]", "42", "a: [", "\x00", "- a\n- b\n"} {
		_, err := ParseProfile([]byte(src))
		var pe *ProfileError
		if !errors.As(err, &pe) || pe.Line < 1 || pe.Column < 1 || pe.Reason == "" {
			t.Errorf("%q: %v", src, err)
		}
	}
}

func TestParseProfileReportsAll(t *testing.T) {
	t.Parallel()
	src := strings.NewReplacer("country: XX", "country: xx", "code: 2", "code: 1", "basis: CONSENT", "basis: WISH").Replace(smallProfile)
	_, err := ParseProfile([]byte(src))
	if n := len(strings.Split(fmt.Sprint(err), "\n")); n != 4 {
		t.Errorf("%d errors, want 4:\n%v", n, err)
	}
}

func TestWithRetention(t *testing.T) {
	t.Parallel()
	out, err := WithRetention(NL(), 60)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParseProfile(out)
	if err != nil {
		t.Fatal(err)
	}
	if p.RetentionMonths() != 60 || p.Digest() == nl(t).Digest() {
		t.Errorf("retention %d", p.RetentionMonths())
	}
	if want := bytes.Replace(NL(), []byte("retention: P24M"), []byte("retention: P60M"), 1); !bytes.Equal(out, want) {
		t.Error("more than the retention changed")
	}
	commented, err := WithRetention([]byte(strings.Replace(smallProfile, "P2Y", `"P2Y"  # two years`, 1)), 7)
	if err != nil || !bytes.Contains(commented, []byte("retention: P7M  # two years\n")) {
		t.Errorf("%v\n%s", err, commented)
	}
	if crlf, err := WithRetention([]byte(strings.ReplaceAll(smallProfile, "\n", "\r\n")), 7); err != nil || !bytes.Contains(crlf, []byte("P7M\r\nfields")) {
		t.Errorf("%v\n%q", err, crlf)
	}
	for name, tt := range map[string]struct {
		src    string
		months int
	}{
		"zero":     {smallProfile, 0},
		"negative": {smallProfile, -1},
		"too long": {smallProfile, 1201},
		"invalid":  {strings.Replace(smallProfile, "UTC", "Nowhere", 1), 12},
		"no line":  {strings.Replace(smallProfile, "retention:", `"retention":`, 1), 12},
		"twice":    {smallProfile + "retention: P1M\n", 12},
	} {
		if out, err := WithRetention([]byte(tt.src), tt.months); err == nil || out != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestOBIS(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]OBIS{
		"1-0:1.8.1":           {A: 1, C: 1, D: 8, E: 1},
		"0-n:24.2.1":          {C: 24, D: 2, E: 1, AnyChannel: true},
		"0-1:24.2.1":          {B: 1, C: 24, D: 2, E: 1},
		"255-255:255.255.255": {A: 255, B: 255, C: 255, D: 255, E: 255},
	} {
		if got, err := ParseOBIS(s); err != nil || got != want || got.String() != s {
			t.Errorf("ParseOBIS(%q) = %v, %v", s, got, err)
		}
	}
}

func FuzzParseOBIS(f *testing.F) {
	for _, s := range []string{"1-0:1.8.1", "0-n:24.2.1", "1-0:1.8.1*255", "1.8.1", "n-n:n.n.n", "1-0:1.8.+1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if o, err := ParseOBIS(s); err == nil && o.String() != s {
			t.Fatalf("%q comes back as %q", s, o)
		}
	})
}

func FuzzParseProfile(f *testing.F) {
	f.Add(NL())
	f.Add(BE())
	f.Add([]byte(smallProfile))
	f.Add([]byte("a: &b [*b]"))
	f.Fuzz(func(t *testing.T, src []byte) {
		p, err := ParseProfile(src)
		if (p == nil) == (err == nil) {
			t.Fatalf("%v, %v", p, err)
		}
		if p != nil && (p.Location() == nil || p.RetentionMonths() < 1 || p.Country() == "" || len(p.fields) == 0) {
			t.Fatalf("accepted without its parts: %+v", p)
		}
		if p == nil {
			return
		}
		for _, r := range p.rules {
			single := r.Basis.SingleReads()
			if single != (r.On != AllDays) || single && (!r.RequiresSupply || r.Granularity != P1D || !slices.Equal(r.Classes, []Class{Registers})) ||
				r.Days.Empty() || r.Lookback < 0 || r.Lookback > p.retention || len(r.Classes) == 0 {
				t.Fatalf("accepted a rule that can give nothing, or too much: %+v", r)
			}
			if r.Basis == CustomerServiceBasis && (r.Purpose != CustomerService || r.RequiresSupply) {
				t.Fatalf("accepted %+v", r)
			}
			if terms := p.consent; r.Enabled && r.Basis == Consent && (terms.LongestMonths < 1 || terms.AnswerDays < 1 || !terms.MayRevoke(CustomerParty)) {
				t.Fatalf("accepted %+v with the terms %+v", r, terms)
			}
		}
	})
}

// Times are counted in local days; the day of a request does not count.
func TestConsentTermsCountDays(t *testing.T) {
	t.Parallel()
	terms := ConsentTerms{AnswerDays: 30, LongestMonths: 3}
	asked, _ := ParseDay("2026-01-31")
	if got := terms.AnswerUntil(asked).String(); got != "2026-03-03" {
		t.Errorf("a request of 31 January lapses on %s", got)
	}
	if got := terms.LongestUntil(asked).String(); got != "2026-04-30" {
		t.Errorf("a consent of 31 January counts until %s", got)
	}
}
