package server

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"kluis/authz"
	"kluis/meter"
	"kluis/openapi"
)

const testConsent = `{"ean":"871687140000000019","purpose":"ENERGY_MANAGEMENT","classes":["intervals"],"granularity":"PT15M","from":"2026-01-01","validUntil":"2027-06-01T00:00:00Z","evidence":"contract-4711"}`

func TestParseNewConsent(t *testing.T) {
	t.Parallel()
	c, errs := parseNewConsent([]byte(testConsent), false)
	if len(errs) > 0 || c.ean != mustEAN(t, testEAN) || !c.supplier.IsZero() || c.purpose != meter.EnergyManagement || !slices.Equal(c.classes, []meter.Class{meter.Intervals}) ||
		c.granularity != meter.PT15M || c.days.From.String() != "2026-01-01" || c.days.To != meter.MaxDay || c.evidence != "contract-4711" ||
		!c.validUntil.Equal(time.Date(2027, 6, 1, 0, 0, 0, 0, time.UTC)) {
		t.Fatalf("%+v %v", c, errs)
	}
	// Each member on its own.
	for name, tc := range map[string]struct {
		member, value string // "" leaves it out
		want          string // pointers
	}{
		"all said":             {"to", `"2027-01-01"`, ""},
		"supplier":             {"supplier", `"8712423000018"`, ""},
		"classes in any order": {"classes", `["intervals","registers"]`, ""},
		"another zone":         {"validUntil", `"2027-06-01T02:00:00+02:00"`, ""},
		"128 bytes":            {"evidence", `"` + strings.Repeat("é", 64) + `"`, ""},

		"no ean":                {"ean", "", "/body/ean"},
		"ean a number":          {"ean", "871687140000000019", "/body/ean"},
		"check digit":           {"ean", `"871687140000000018"`, "/body/ean"},
		"no purpose":            {"purpose", "", "/body/purpose"},
		"unknown purpose":       {"purpose", `"CURIOSITY"`, "/body/purpose"},
		"purpose null":          {"purpose", "null", "/body/purpose"},
		"supplier null":         {"supplier", "null", "/body/supplier"},
		"supplier's digit":      {"supplier", `"8712423000011"`, "/body/supplier"},
		"no classes":            {"classes", "", "/body/classes"},
		"empty classes":         {"classes", "[]", "/body/classes"},
		"unknown class":         {"classes", `["intervals","curiosity"]`, "/body/classes"},
		"class twice":           {"classes", `["intervals","intervals"]`, "/body/classes"},
		"class null":            {"classes", `["intervals",null]`, "/body/classes"},
		"classes a string":      {"classes", `"intervals"`, "/body/classes"},
		"classes null":          {"classes", "null", "/body/classes"},
		"classes in a list":     {"classes", `[["intervals"]]`, "/body/classes"},
		"unknown granularity":   {"granularity", `"PT5M"`, "/body/granularity"},
		"no granularity":        {"granularity", "", "/body/granularity"},
		"no such day":           {"from", `"2026-02-30"`, "/body/from"},
		"no from":               {"from", "", "/body/from"},
		"reversed":              {"to", `"2025-12-31"`, "/body/to"},
		"no days":               {"to", `"2026-01-01"`, "/body/to"},
		"to null":               {"to", "null", "/body/to"},
		"endless":               {"validUntil", "", "/body/validUntil"},
		"a day":                 {"validUntil", `"2027-06-01"`, "/body/validUntil"},
		"no zone":               {"validUntil", `"2027-06-01T00:00:00"`, "/body/validUntil"},
		"a fraction":            {"validUntil", `"2027-06-01T00:00:00.5Z"`, "/body/validUntil"},
		"a fraction of nothing": {"validUntil", `"2027-06-01T00:00:00.000Z"`, "/body/validUntil"},
		"before 1970":           {"validUntil", `"1969-06-01T00:00:00Z"`, "/body/validUntil"},
		"an hour of one digit":  {"validUntil", `"2027-06-01T0:00:00Z"`, "/body/validUntil"},
		"no evidence":           {"evidence", "", "/body/evidence"},
		"empty evidence":        {"evidence", `""`, "/body/evidence"},
		"129 bytes":             {"evidence", `"` + strings.Repeat("é", 64) + `x"`, "/body/evidence"},
		"a line end":            {"evidence", `"a\nb"`, "/body/evidence"},
		"half a pair":           {"evidence", `"a\ud800b"`, "/body/evidence"},
		"unknown":               {"curiosity", `1`, "/body"},
		"another case":          {"Ean", `"871687140000000019"`, "/body"},
	} {
		var m map[string]json.RawMessage
		if err := json.Unmarshal([]byte(testConsent), &m); err != nil {
			t.Fatal(err)
		}
		if m[tc.member] = json.RawMessage(tc.value); tc.value == "" {
			delete(m, tc.member)
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		c, errs := parseNewConsent(b, false)
		var got []string
		for _, e := range errs {
			got = append(got, e.Pointer)
			if e.Reason == "" || strings.Contains(e.Reason, "uriosity") {
				t.Errorf("%s: %q", name, e.Reason)
			}
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: faults at %q, want %q", name, got, tc.want)
		}
		if len(errs) > 0 && len(c.classes) > 0 {
			t.Errorf("%s: refused, and read as %+v", name, c)
		}
		if tc.want == "" {
			agrees(t, "NewConsent", b)
		}
	}
	// Whole bodies.
	for name, b := range map[string]string{
		"nothing": "", "white": " ", "null": "null", "a list": "[]", "a string": `"x"`, "not closed": testConsent[:len(testConsent)-1],
		"two":                        testConsent + testConsent,
		"something after":            testConsent + "x",
		"a member twice":             testConsent[:len(testConsent)-1] + `,"evidence":"other"}`,
		"a member twice, written on": testConsent[:len(testConsent)-1] + `,"\u0065vidence":"other"}`,
		"not UTF-8":                  strings.Replace(testConsent, "contract", "contract\xff", 1),
		"a comma too many":           testConsent[:len(testConsent)-1] + `,}`,
		"a byte order mark":          "\ufeff" + testConsent,
	} {
		if _, errs := parseNewConsent([]byte(b), false); len(errs) != 1 || errs[0].Pointer != "/body" {
			t.Errorf("%s: %v", name, errs)
		}
	}
	if _, errs := parseNewConsent([]byte(`{}`), true); len(errs) != 8 {
		t.Errorf("of nothing, an employee's: %v", errs)
	}
}

// schemas are those of the contract.
var schemas = sync.OnceValue(func() openapi3.Schemas {
	doc, err := openapi.Load()
	if err != nil {
		panic(err)
	}
	return doc.Components.Schemas
})

// agrees checks that the contract, and the code generated from it, take what is
// accepted here.
func agrees(t testing.TB, schema string, b []byte) {
	t.Helper()
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	if err := schemas()[schema].Value.VisitJSON(v); err != nil {
		t.Errorf("%q is against the contract: %v", b, err)
	}
	into := any(new(openapi.NewConsent))
	if schema == "ConsentAnswer" {
		into = new(openapi.ConsentAnswer)
	}
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(into); err != nil {
		t.Errorf("%q does not bind: %v", b, err)
	}
}

func FuzzNewConsent(f *testing.F) {
	f.Add([]byte(testConsent))
	f.Add([]byte(strings.Replace(testConsent, `"from"`, `"to":"2026-05-01","supplier":"8712423000018","from"`, 1)))
	f.Add([]byte(strings.Replace(testConsent, "00Z", "00+01:00", 1)))
	f.Add([]byte(testConsent + " {}"))
	f.Add([]byte(`{"ean":[[[[]]]],"from":{"from":1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, errs := parseNewConsent(b, false)
		if len(errs) > 0 {
			told(t, b, errs)
			return
		}
		agrees(t, "NewConsent", b)
		again := map[string]any{
			"ean": c.ean.String(), "purpose": c.purpose.String(), "granularity": c.granularity.String(), "from": c.days.From.String(),
			"validUntil": c.validUntil.Format(time.RFC3339), "evidence": c.evidence,
		}
		var classes []string
		for _, class := range c.classes {
			classes = append(classes, class.String())
		}
		again["classes"] = classes
		if !c.supplier.IsZero() {
			again["supplier"] = c.supplier.String()
		}
		if c.days.To != meter.MaxDay {
			again["to"] = c.days.To.String()
		}
		plain, err := json.Marshal(again)
		if err != nil {
			t.Fatal(err)
		}
		d, errs := parseNewConsent(plain, false)
		if len(errs) > 0 || d.ean != c.ean || d.supplier != c.supplier || d.purpose != c.purpose || !slices.Equal(d.classes, c.classes) ||
			d.granularity != c.granularity || d.days != c.days || !d.validUntil.Equal(c.validUntil) || d.evidence != c.evidence {
			t.Fatalf("%q is read as %+v, and that again as %+v (%v)", b, c, d, errs)
		}
	})
}

func FuzzConsentAnswer(f *testing.F) {
	f.Add([]byte(`{"evidence":"call-2026-0815"}`))
	f.Add([]byte(`{"evidence":"call", "evidence":"other"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		evidence, errs := parseConsentAnswer(b)
		if len(errs) > 0 {
			told(t, b, errs)
			return
		}
		agrees(t, "ConsentAnswer", b)
		if evidence == "" || len(evidence) > 128 || strings.ContainsAny(evidence, "\r\n\x00") {
			t.Fatalf("%q", evidence)
		}
	})
}

// told checks that faults name members of the contract only, and hold nothing
// that was sent.
func told(t *testing.T, b []byte, errs paramErrors) {
	t.Helper()
	known := []string{"", "/ean", "/supplier", "/purpose", "/classes", "/granularity", "/from", "/to", "/validUntil", "/evidence"}
	for _, e := range errs {
		if name, ok := strings.CutPrefix(e.Pointer, "/body"); !ok || !slices.Contains(known, name) {
			t.Fatalf("%q: pointer %q", b, e.Pointer)
		}
	}
	if text, err := json.Marshal(errs); err != nil || len(b) > 16 && bytes.Contains(text, b) {
		t.Fatalf("%q is in the faults", b)
	}
}

func TestIsJSON(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]bool{
		"application/json": true, "Application/JSON": true, "application/json; charset=utf-8": true, "application/json;charset=UTF-8": true,
		"": false, "text/plain": false, "application/json; charset=latin1": false, "application/json; profile=x": false,
		"application/problem+json": false, "application/json, text/plain": false, "multipart/form-data": false, "application/x-www-form-urlencoded": false,
	} {
		if got := isJSON(http.Header{"Content-Type": {value}}); got != want {
			t.Errorf("%q: %v", value, got)
		}
	}
	if isJSON(http.Header{}) || isJSON(http.Header{"Content-Type": {"application/json", "application/json"}}) ||
		isJSON(http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}}) {
		t.Error("accepted without a type, with two, or encoded")
	}
}

func TestParseIfMatch(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		`"a"`: `"a"`, ` "a" `: `"a"`, `"a", "b"`: `"a" "b"`, `"a","b"`: `"a" "b"`, `W/"a"`: ``, `W/"a", "b"`: `"b"`, `"a,b"`: `"a,b"`, `""`: `""`,
		`*`: "!", `a`: "!", ``: "!", `"a`: "!", `"a" "b"`: "!", `"a",`: "!", `,"a"`: "!", `w/"a"`: "!", "\"a\x01\"": "!", `"a b"`: "!",
		strings.Repeat(`"a",`, 8) + `"a"`: "!",
	} {
		tags, err := parseIfMatch(s)
		got := strings.Join(tags, " ")
		if err != nil {
			got = "!"
		}
		if got != want {
			t.Errorf("%q is %q, want %q", s, got, want)
		}
	}
	if tag := entityTag([32]byte{1, 2, 3}); tag != `"AQIDAAAAAAAAAAAA"` {
		t.Error(tag)
	}
}

func FuzzIfMatch(f *testing.F) {
	f.Add(`"a", W/"b"`)
	f.Add(`*`)
	f.Fuzz(func(t *testing.T, s string) {
		tags, err := parseIfMatch(s)
		if err != nil {
			return
		}
		for _, tag := range tags {
			if len(tag) < 2 || tag[0] != '"' || tag[len(tag)-1] != '"' || strings.Count(tag, `"`) != 2 || !strings.Contains(s, tag) {
				t.Fatalf("%q gives %q", s, tag)
			}
		}
		again, err := parseIfMatch(strings.Join(tags, ", "))
		if len(tags) > 0 && (err != nil || !slices.Equal(again, tags)) {
			t.Fatalf("%q: %q, and again %q", s, tags, again)
		}
	})
}

// A tag changes with whatever a supplier sees of a consent, and with nothing
// else: out of it, the supplier could guess the rest.
func TestTagsTellSuppliersNothing(t *testing.T) {
	t.Parallel()
	ean := mustEAN(t, testEAN)
	at := time.Date(2026, 5, 1, 9, 0, 0, 123456000, time.UTC)
	consent := authz.Consent{
		ID: [16]byte{1}, Purpose: meter.Billing, Classes: []meter.Class{meter.Registers}, Granularity: meter.P1D, ValidFrom: at, ValidUntil: at.AddDate(1, 0, 0),
		Occupancy: 19000, State: authz.ConsentActive, Evidence: "contract", Answer: "call",
		Requested: authz.ConsentEvent{At: at, By: authz.Actor{Kind: authz.BySupplier, Name: "8712423000018"}},
		Answered:  authz.ConsentEvent{At: at, By: authz.Actor{Kind: authz.ByCustomer, Name: "agent-17"}},
	}
	tag := tagOf(ean, consent)
	for name, tc := range map[string]struct {
		change func(*authz.Consent)
		same   bool
	}{
		"the employee":       {func(k *authz.Consent) { k.Answered.By.Name = "agent-18" }, true},
		"the occupancy":      {func(k *authz.Consent) { k.Occupancy++ }, true},
		"the answer's proof": {func(k *authz.Consent) { k.Answer = "letter" }, true},
		"the state":          {func(k *authz.Consent) { k.State = authz.ConsentRevoked }, false},
		"in what capacity":   {func(k *authz.Consent) { k.Answered.By.Kind = authz.ByOperator }, false},
		"when":               {func(k *authz.Consent) { k.Answered.At = at.Add(time.Microsecond) }, false},
		"another event":      {func(k *authz.Consent) { k.Revoked = k.Answered }, false},
		"the id":             {func(k *authz.Consent) { k.ID[15]++ }, false},
		"the evidence":       {func(k *authz.Consent) { k.Evidence = "other" }, false},
	} {
		k := consent
		tc.change(&k)
		if (tagOf(ean, k) == tag) != tc.same {
			t.Errorf("%s: the tag stays: %v", name, !tc.same)
		}
		if consent.Answered.By.Name != "agent-17" {
			t.Fatal("the consent itself was changed")
		}
	}
}

// The same request makes the same consent, whoever it reaches; another caller's
// never does.
func TestConsentID(t *testing.T) {
	t.Parallel()
	gln := func(s string) meter.GLN {
		g, err := meter.ParseGLN(s)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	a, b := gln("8712423000018"), gln("8716867000009")
	id := consentID(a, "8e03978e-40d5-43dd-bc93-6894a57f9324")
	if openapi.ConsentId(id).String() != "dd4d5633-394b-8ea0-9b59-7d7957cc1fc5" {
		t.Error(openapi.ConsentId(id).String())
	}
	if id == consentID(b, "8e03978e-40d5-43dd-bc93-6894a57f9324") || id == consentID(a, "8e03978e-40d5-43dd-bc93-6894a57f9325") {
		t.Error("the same id for another request")
	}
}
