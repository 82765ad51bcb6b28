package meter

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParsePostcode(t *testing.T) {
	t.Parallel()
	be, err := ParseProfile(BE())
	if err != nil {
		t.Fatal(err)
	}
	without, err := ParseProfile([]byte(smallProfile))
	if err != nil {
		t.Fatal(err)
	}
	for s, want := range map[string][2]bool{ // by nl, by be
		"1234AB":     {true, false},
		"9999ZZ":     {true, false},
		"1000":       {false, true},
		"0234AB":     {},
		"0100":       {},
		"1234ab":     {},
		"1234 AB":    {},
		" 1234AB":    {},
		"1234AB\n":   {},
		"1234ABC":    {},
		"1234A":      {},
		"12345":      {},
		"１234AB":     {},
		"":           {},
		"1234AB1000": {},
	} {
		for i, p := range []*Profile{nl(t), be} {
			c, err := p.ParsePostcode(s)
			if ok := err == nil; ok != want[i] || ok && c.String() != s || !ok && (!c.IsZero() || !errors.Is(err, ErrPostcode)) {
				t.Errorf("%s: %q: %q, %v", p.Country(), s, c, err)
			}
		}
		if c, err := without.ParsePostcode(s); err == nil || !c.IsZero() {
			t.Errorf("a profile without identities takes %q", s)
		}
	}
}

func TestParseHouseNumber(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"1", "7", "42", "99999"} {
		if h, err := ParseHouseNumber(s); err != nil || h.String() != s || h.IsZero() {
			t.Errorf("%q: %s, %v", s, h, err)
		}
	}
	for _, s := range []string{"", "0", "-1", "+1", "01", "1A", "100000", "1 ", " 1", "1.0", "٣", "18446744073709551617"} {
		if h, err := ParseHouseNumber(s); !errors.Is(err, ErrHouseNumber) || !h.IsZero() || h.String() != "" {
			t.Errorf("%q: %s, %v", s, h, err)
		}
	}
}

func somebody(t testing.TB) Person {
	t.Helper()
	c, err1 := ParsePostcode("1234AB")
	h, err2 := ParseHouseNumber("7")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return Person{"J. de Vries-Özdemir", Address{"Dorpsstraat", h, "2 hoog", c, "'s-Gravendorp"}}
}

func TestPersonCheck(t *testing.T) {
	t.Parallel()
	p := somebody(t)
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	p.Address.Addition = ""
	if err := p.Check(); err != nil {
		t.Errorf("without an addition: %v", err)
	}
	// <script> is a text like any other: whoever shows it escapes it.
	p.Name = `<script>alert("1")</script>`
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	const secret = "Xyzzy"
	for name, change := range map[string]func(p *Person){
		"no name":            func(p *Person) { p.Name = "" },
		"long name":          func(p *Person) { p.Name = secret + strings.Repeat("x", MaxName) },
		"line break":         func(p *Person) { p.Name = secret + "\nb" },
		"blank at the start": func(p *Person) { p.Name = " " + secret },
		"blank at the end":   func(p *Person) { p.Address.City = secret + " " },
		"turned writing":     func(p *Person) { p.Name = secret + "\u202e" },
		"zero width":         func(p *Person) { p.Address.Street = secret + "\u200b" },
		"not UTF-8":          func(p *Person) { p.Address.Street = secret + "\xff" },
		"no street":          func(p *Person) { p.Address.Street = "" },
		"no number":          func(p *Person) { p.Address.HouseNumber = HouseNumber{} },
		"long addition":      func(p *Person) { p.Address.Addition = secret + strings.Repeat("x", MaxAddition) },
		"control character":  func(p *Person) { p.Address.Addition = secret + "\x00" },
		"no postcode":        func(p *Person) { p.Address.Postcode = Postcode{} },
		"no city":            func(p *Person) { p.Address.City = "" },
		"long city":          func(p *Person) { p.Address.City = secret + strings.Repeat("x", MaxCity) },
	} {
		p := somebody(t)
		change(&p)
		if err := p.Check(); !errors.Is(err, ErrPerson) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzPerson(f *testing.F) {
	p := somebody(f)
	f.Add(p.Name, p.Address.Street, p.Address.Addition, p.Address.City, "1234AB", "7")
	f.Add("\u202e", "\x00", "\xff", " ", "1234 AB", "07")
	f.Fuzz(func(t *testing.T, name, street, addition, city, postcode, number string) {
		c, err := nl(t).ParsePostcode(postcode)
		if err == nil && (len(c.String()) != 6 || c.String() != postcode || strings.ToUpper(postcode) != postcode) {
			t.Errorf("postcode %q", postcode)
		}
		if again, err2 := ParsePostcode(c.String()); err == nil && (err2 != nil || again != c) {
			t.Errorf("%q does not parse again", postcode)
		}
		h, err := ParseHouseNumber(number)
		if err == nil && (h.String() != number || h.Int() < 1 || h.Int() > 99999) {
			t.Errorf("house number %q", number)
		}
		p := Person{name, Address{street, h, addition, c, city}}
		if p.Check() != nil {
			return
		}
		for _, s := range []string{name, street, addition, city} {
			if len(s) > MaxName || !utf8.ValidString(s) || strings.ContainsAny(s, "\x00\n\r\t\u202e\u200b") || strings.TrimSpace(s) != s {
				t.Errorf("%q passes", s)
			}
		}
		if name == "" || street == "" || city == "" || h.IsZero() || c.IsZero() {
			t.Error("something is missing")
		}
	})
}

// A class of its own, which nothing that is asked for can name.
func TestIdentityOfTheProfile(t *testing.T) {
	t.Parallel()
	p := nl(t)
	code, ok := p.IdentityCode()
	if _, field := p.FieldByCode(code); !ok || code != 9 || field {
		t.Errorf("code %d, %v", code, ok)
	}
	if c, err := ParseClass("identity"); err == nil || c != 0 {
		t.Error("readings of class identity can be asked for")
	}
	if Identity.String() != "identity" {
		t.Error(Identity)
	}

	terms := "identity:\n  code: 3\n  postcode: \"[0-9]{4}\"\nrules:\n"
	rule := []string{"id: three", "basis: CUSTOMER_SERVICE", "purpose: CUSTOMER_SERVICE", "classes: [identity]", "from: 2024-01-01",
		"requires_supply: false", "despite_opt_out: true", "enabled: true"}
	source := func(terms string, change func(rule []string) []string) string {
		lines := append([]string{}, rule...)
		return strings.NewReplacer("rules:\n", terms, "    enabled: true\nconsent:", withRule(change(lines))).Replace(smallProfile)
	}
	same := func(rule []string) []string { return rule }
	small, err := ParseProfile([]byte(source(terms, same)))
	if err != nil {
		t.Fatal(err)
	}
	if rules := small.Rules(CustomerService); len(rules) != 1 || rules[0].Granularity != 0 {
		t.Errorf("rules %v", rules)
	}
	line := func(i int, text string) func([]string) []string {
		return func(rule []string) []string { rule[i] = text; return rule }
	}
	for name, tt := range map[string]struct {
		terms  string
		change func([]string) []string
		reason string
	}{
		"no terms":        {"rules:\n", same, `add the key "identity"`},
		"code of a field": {strings.Replace(terms, "3", "2", 1), same, "code 2 is taken by int"},
		"no code":         {strings.Replace(terms, "  code: 3\n", "", 1), same, `key "code" is missing`},
		"bad pattern":     {strings.Replace(terms, "[0-9]{4}", "[0-9", 1), same, "regular expression"},
		"no pattern":      {strings.Replace(terms, "[0-9]{4}", "", 1), same, "regular expression"},
		"basis":           {terms, line(1, "basis: CONSENT"), "on the basis CUSTOMER_SERVICE only"},
		"supply":          {terms, line(1, "basis: SUPPLY_DAILY"), "on the basis CUSTOMER_SERVICE only"},
		"purpose":         {terms, line(2, "purpose: BILLING"), "is for the purpose CUSTOMER_SERVICE"},
		"other classes":   {terms, line(3, "classes: [identity, registers]"), "a rule of its own"},
		"granularity":     {terms, func(r []string) []string { return append(r, "granularity: P1D") }, "has no granularity"},
		"lookback":        {terms, func(r []string) []string { return append(r, "lookback: P1M") }, "has no lookback"},
		"days":            {terms, func(r []string) []string { return append(r, "days: ALL") }, "has no days"},
		"opt-out":         {terms, line(6, "despite_opt_out: false"), "must be true"},
		"of readings":     {terms, line(3, "classes: [registers]"), `key "granularity" is missing`},
	} {
		_, err := ParseProfile([]byte(source(tt.terms, tt.change)))
		if err == nil || !strings.Contains(err.Error(), tt.reason) {
			t.Errorf("%s: %v, want %s", name, err, tt.reason)
		}
	}
}
