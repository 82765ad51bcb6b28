package authn

import (
	"encoding/json"
	"errors"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"kluis/authz"
	"kluis/meter"
)

const ean = "871686870000000016"

var profile = sync.OnceValue(func() *meter.Profile {
	p, err := meter.ParseProfile(meter.NL())
	if err != nil {
		panic(err)
	}
	return p
})

// The golden errands, as they stand in tokens.
const (
	readingsJSON = `[{"type":"urn:kluis:errand:readings","ean":"` + ean + `","from":"2026-02-01","to":"2026-03-01","fields":["import_low","import_intervals"],"reason":"ticket 4711"}]`
	viewJSON     = `[{"type":"urn:kluis:errand:view","ean":"` + ean + `","reason":"ticket 4711"}]`
	registerJSON = `[{"type":"urn:kluis:errand:step","ean":"` + ean + `","step":"register","scope_digest":"AQIDAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","evidence":"call of 3 March","reason":"ticket 4711"}]`
	grantJSON    = `[{"type":"urn:kluis:errand:step","ean":"` + ean + `","step":"grant","consent_id":"01020300-0000-0000-0000-000000000000","scope_digest":"AQIDAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","evidence":"call of 3 March","reason":"ticket 4711"}]`
	rejectJSON   = `[{"type":"urn:kluis:errand:step","ean":"` + ean + `","step":"reject","consent_id":"01020300-0000-0000-0000-000000000000","scope_digest":"AQIDAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","reason":"ticket 4711"}]`
	findJSON     = `[{"type":"urn:kluis:errand:find","postcode":"1234AB","house_number":"7","reason":"ticket 4711"}]`
	overseeJSON  = `[{"type":"urn:kluis:errand:oversee","reason":"ticket 4711"}]`
	suspendJSON  = `[{"type":"urn:kluis:errand:supplier","gln":"8712345600020","step":"suspend","reason":"ticket 4711"}]`
	resumeJSON   = `[{"type":"urn:kluis:errand:supplier","gln":"8712345600020","step":"resume","reason":"ticket 4711"}]`
	revokeJSON   = `[{"type":"urn:kluis:errand:step","ean":"` + ean + `","step":"revoke","consent_id":"01020300-0000-0000-0000-000000000000","scope_digest":"AQIDAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","reason":"ticket 4711"}]`
)

func mustEAN(tb testing.TB, s string) meter.EAN {
	tb.Helper()
	e, err := meter.ParseEAN(s)
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

func TestErrandVectors(t *testing.T) {
	t.Parallel()
	base := authz.Errand{EAN: mustEAN(t, ean), Reason: "ticket 4711"}
	with := func(change func(*authz.Errand)) authz.Errand {
		e := base
		change(&e)
		return e
	}
	step := func(a authz.ConsentAction) authz.Errand {
		return with(func(e *authz.Errand) {
			e.Kind, e.Action, e.Scope = authz.ErrandStep, a, [32]byte{1, 2, 3}
			if a != authz.ActionRegister {
				e.ConsentID = [16]byte{1, 2, 3}
			}
			if a == authz.ActionRegister || a == authz.ActionGrant {
				e.Evidence = "call of 3 March"
			}
		})
	}
	from, _ := meter.ParseDay("2026-02-01")
	postcode, _ := profile().ParsePostcode("1234AB")
	number, _ := meter.ParseHouseNumber("7")
	gln, _ := meter.ParseGLN("8712345600020")
	for text, want := range map[string]authz.Errand{
		readingsJSON: with(func(e *authz.Errand) {
			e.Kind, e.Days, e.Fields = authz.ErrandReadings, meter.DayRange{From: from, To: from + 28}, []meter.FieldCode{1, 6}
		}),
		viewJSON:     with(func(e *authz.Errand) { e.Kind = authz.ErrandView }),
		registerJSON: step(authz.ActionRegister),
		grantJSON:    step(authz.ActionGrant),
		rejectJSON:   step(authz.ActionReject),
		revokeJSON:   step(authz.ActionRevoke),
		findJSON:     {Kind: authz.ErrandFind, Reason: "ticket 4711", Postcode: postcode, HouseNumber: number},
		overseeJSON:  {Kind: authz.ErrandOversee, Reason: "ticket 4711"},
		suspendJSON:  {Kind: authz.ErrandSupplier, Reason: "ticket 4711", Supplier: gln, Suspend: true},
		resumeJSON:   {Kind: authz.ErrandSupplier, Reason: "ticket 4711", Supplier: gln},
	} {
		got, err := ParseErrand([]byte(text), profile())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s read as %+v (%v), want %+v", text, got, err, want)
		}
		b, err := EncodeErrand(want, profile())
		if err != nil || string(b) != text {
			t.Errorf("%+v written as\n%s (%v), want\n%s", want, b, err, text)
		}
	}
	// The order of fields and members does not matter, nor does space.
	got, err := ParseErrand([]byte(` [ {"reason":"r","fields":["import_intervals" , "import_low"],"to":"2026-03-01","from":"2026-02-01","ean":"`+ean+`","type":"urn:kluis:errand:readings"} ] `), profile())
	if err != nil || !reflect.DeepEqual(got.Fields, []meter.FieldCode{1, 6}) {
		t.Errorf("%+v, %v", got, err)
	}
}

// Each case changes one thing of an errand that is accepted.
func TestParseErrandRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, old, new, want string }{
		"nothing":                  {viewJSON, viewJSON, ``, "array of exactly one"},
		"null":                     {viewJSON, viewJSON, `null`, "array of exactly one"},
		"no array":                 {viewJSON, viewJSON, strings.Trim(viewJSON, "[]"), "array of exactly one"},
		"no errand":                {viewJSON, viewJSON, `[]`, "array of exactly one"},
		"two errands":              {viewJSON, `}]`, `},` + strings.Trim(viewJSON, "[") + ``, "array of exactly one"},
		"two errands, one null":    {viewJSON, `}]`, `},null]`, "array of exactly one"},
		"an array in it":           {viewJSON, viewJSON, `[` + viewJSON + `]`, "array of exactly one"},
		"text after":               {viewJSON, `}]`, `}]x`, "array of exactly one"},
		"a member twice":           {viewJSON, `"reason"`, `"reason":"r","reason"`, "array of exactly one"},
		"a member twice, escaped":  {viewJSON, `"reason"`, `"\u0072eason":"r","reason"`, "array of exactly one"},
		"invalid UTF-8":            {viewJSON, `ticket`, "\xff", "array of exactly one"},
		"too long":                 {viewJSON, `ticket`, strings.Repeat("x", MaxErrand), "must not exceed"},
		"type missing":             {viewJSON, `"type":"urn:kluis:errand:view",`, ``, "type must be"},
		"type unknown":             {viewJSON, `errand:view`, `errand:all`, "type must be"},
		"type of another case":     {viewJSON, `errand:view`, `errand:View`, "type must be"},
		"type empty":               {viewJSON, `urn:kluis:errand:view`, ``, "type must be"},
		"type in an array":         {viewJSON, `"urn:kluis:errand:view"`, `["urn:kluis:errand:view"]`, "type must be"},
		"ean missing":              {viewJSON, `"ean":"` + ean + `",`, ``, "ean must be"},
		"ean a number":             {viewJSON, `"` + ean + `"`, ean, "ean must be"},
		"ean with a bad digit":     {viewJSON, ean, "871686870000000017", "ean must be"},
		"two eans":                 {viewJSON, `"` + ean + `"`, `["` + ean + `","` + ean + `"]`, "ean must be"},
		"reason missing":           {viewJSON, `,"reason":"ticket 4711"`, ``, "reason must be"},
		"reason empty":             {viewJSON, `ticket 4711`, ``, "reason must be"},
		"reason of blanks":         {viewJSON, `ticket 4711`, `   `, "reason must be"},
		"reason after a blank":     {viewJSON, `ticket 4711`, ` ticket 4711`, "reason must be"},
		"reason before a blank":    {viewJSON, `ticket 4711`, `ticket 4711 `, "reason must be"},
		"reason of two lines":      {viewJSON, `ticket 4711`, `ticket\n4711`, "reason must be"},
		"reason too long":          {viewJSON, `ticket 4711`, strings.Repeat("x", 129), "reason must be"},
		"reason a number":          {viewJSON, `"ticket 4711"`, `4711`, "reason must be"},
		"unknown member":           {viewJSON, `"reason"`, `"locations":["x"],"reason"`, "does not have"},
		"member of another case":   {viewJSON, `"reason"`, `"Reason":"x","reason"`, "does not have"},
		"days of a view":           {viewJSON, `"reason"`, `"from":"2026-02-01","to":"2026-03-01","reason"`, "does not have"},
		"from missing":             {readingsJSON, `"from":"2026-02-01",`, ``, "from must be"},
		"from with a time":         {readingsJSON, `2026-02-01`, `2026-02-01T00:00:00Z`, "from must be"},
		"to null":                  {readingsJSON, `"2026-03-01"`, `null`, "to must be"},
		"reversed":                 {readingsJSON, `"from":"2026-02-01"`, `"from":"2026-03-02"`, "from to to"},
		"no day":                   {readingsJSON, `"from":"2026-02-01"`, `"from":"2026-03-01"`, "from to to"},
		"more than a year":         {readingsJSON, `"from":"2026-02-01"`, `"from":"2025-02-01"`, "from to to"},
		"fields missing":           {readingsJSON, `"fields":["import_low","import_intervals"],`, ``, "fields must be"},
		"no fields":                {readingsJSON, `"import_low","import_intervals"`, ``, "fields must be"},
		"fields a string":          {readingsJSON, `["import_low","import_intervals"]`, `"import_low"`, "fields must be"},
		"field unknown":            {readingsJSON, `"import_low"`, `"import_lower"`, "does not have"},
		"field a code":             {readingsJSON, `"import_low"`, `1`, "does not have"},
		"field twice":              {readingsJSON, `"import_intervals"`, `"import_low"`, "one twice"},
		"a step's member":          {readingsJSON, `"reason"`, `"step":"grant","reason"`, "does not have"},
		"step missing":             {grantJSON, `"step":"grant",`, ``, "step must be"},
		"step of a supplier":       {grantJSON, `"step":"grant"`, `"step":"request"`, "step must be"},
		"step of a registrar":      {grantJSON, `"step":"grant"`, `"step":"set_supply"`, "step must be"},
		"consent missing":          {grantJSON, `"consent_id":"01020300-0000-0000-0000-000000000000",`, ``, "consent_id must be"},
		"consent of zeros":         {grantJSON, `01020300-`, `00000000-`, "consent_id must be"},
		"consent in capitals":      {revokeJSON, `01020300-0000-0000-0000-000000000000`, `0102030A-0000-0000-0000-000000000000`, "consent_id must be"},
		"consent in braces":        {revokeJSON, `01020300-0000-0000-0000-000000000000`, `{01020300-0000-0000-0000-000000000000}`, "consent_id must be"},
		"consent to register":      {registerJSON, `"scope_digest"`, `"consent_id":"01020300-0000-0000-0000-000000000000","scope_digest"`, "does not have"},
		"scope missing":            {rejectJSON, `"scope_digest":"AQIDAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",`, ``, "scope_digest must be"},
		"scope short":              {rejectJSON, `"AQIDAAAA`, `"AAAA`, "scope_digest must be"},
		"scope padded":             {rejectJSON, `AAA",`, `AAA=",`, "scope_digest must be"},
		"scope with spare bits":    {rejectJSON, `AAA",`, `AAB",`, "scope_digest must be"},
		"scope in hex":             {rejectJSON, `AQIDAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA`, strings.Repeat("00", 32), "scope_digest must be"},
		"granted without evidence": {grantJSON, `"evidence":"call of 3 March",`, ``, "evidence must be"},
		"evidence of a rejection":  {rejectJSON, `"reason"`, `"evidence":"x","reason"`, "does not have"},
		"a find somewhere":         {findJSON, `"reason"`, `"ean":"` + ean + `","reason"`, "does not have"},
		"a find of a supplier":     {findJSON, `"reason"`, `"gln":"8712345600020","reason"`, "does not have"},
		"a find with an addition":  {findJSON, `"reason"`, `"addition":"A","reason"`, "does not have"},
		"postcode missing":         {findJSON, `"postcode":"1234AB",`, ``, "postcode must be"},
		"postcode of small ones":   {findJSON, `1234AB`, `1234ab`, "postcode must be"},
		"postcode with a blank":    {findJSON, `1234AB`, `1234 AB`, "postcode must be"},
		"postcode of letters":      {findJSON, `1234AB`, `AB1234`, "postcode must be"},
		"a part of a postcode":     {findJSON, `1234AB`, `1234`, "postcode must be"},
		"postcode as a pattern":    {findJSON, `1234AB`, `1234%`, "postcode must be"},
		"house number missing":     {findJSON, `"house_number":"7",`, ``, "house_number must be"},
		"house number, no string":  {findJSON, `"7"`, `7`, "house_number must be"},
		"house number of zeros":    {findJSON, `"7"`, `"07"`, "house_number must be"},
		"house number none":        {findJSON, `"7"`, `"0"`, "house_number must be"},
		"house number too great":   {findJSON, `"7"`, `"100000"`, "house_number must be"},
		"house number and letter":  {findJSON, `"7"`, `"7A"`, "house_number must be"},
		"house numbers":            {findJSON, `"7"`, `["7","8"]`, "house_number must be"},
		"a find without reason":    {findJSON, `,"reason":"ticket 4711"`, ``, "reason must be"},
		"to oversee somewhere":     {overseeJSON, `"reason"`, `"ean":"` + ean + `","reason"`, "does not have"},
		"to oversee one supplier":  {overseeJSON, `"reason"`, `"gln":"8712345600020","reason"`, "does not have"},
		"a supplier somewhere":     {suspendJSON, `"reason"`, `"ean":"` + ean + `","reason"`, "does not have"},
		"supplier missing":         {suspendJSON, `"gln":"8712345600020",`, ``, "gln must be"},
		"supplier with a bad one":  {suspendJSON, `8712345600020`, `8712345600021`, "gln must be"},
		"two suppliers":            {suspendJSON, `"8712345600020"`, `["8712345600020"]`, "gln must be"},
		"step of a supplier gone":  {suspendJSON, `"step":"suspend",`, ``, "step must be"},
		"step of a consent":        {suspendJSON, `"step":"suspend"`, `"step":"revoke"`, "step must be"},
		"step of another case":     {resumeJSON, `"step":"resume"`, `"step":"Resume"`, "step must be"},
		"a view of an address":     {viewJSON, `"reason"`, `"postcode":"1234AB","house_number":"7","reason"`, "does not have"},
		"a view of a supplier":     {viewJSON, `"reason"`, `"gln":"8712345600020","reason"`, "does not have"},
		"evidence of a revocation": {revokeJSON, `"reason"`, `"evidence":"x","reason"`, "does not have"},
	} {
		if strings.Count(c.text, c.old) != 1 {
			t.Errorf("%s: the case changes nothing", name)
		}
		got, err := ParseErrand([]byte(strings.Replace(c.text, c.old, c.new, 1)), profile())
		if !errors.Is(err, ErrErrand) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
			continue
		}
		if !reflect.DeepEqual(got, authz.Errand{}) {
			t.Errorf("%s: an errand came with the error", name)
		}
		// It goes into an error_description (RFC 6749, clause 5.2).
		if !regexp.MustCompile(`^[\x20\x21\x23-\x5b\x5d-\x7e]+$`).MatchString(err.Error()) || strings.Contains(err.Error(), ean) {
			t.Errorf("%s: not to be told: %v", name, err)
		}
	}
}

func TestEncodeErrandRefuses(t *testing.T) {
	t.Parallel()
	good, err := ParseErrand([]byte(readingsJSON), profile())
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*authz.Errand){
		"of no kind":      func(e *authz.Errand) { e.Kind = 0 },
		"unknown kind":    func(e *authz.Errand) { e.Kind = 9 },
		"nowhere":         func(e *authz.Errand) { e.EAN = meter.EAN{} },
		"without reason":  func(e *authz.Errand) { e.Reason = "" },
		"unknown field":   func(e *authz.Errand) { e.Fields = []meter.FieldCode{60000} },
		"without fields":  func(e *authz.Errand) { e.Fields = nil },
		"without days":    func(e *authz.Errand) { e.Days = meter.DayRange{} },
		"nowhere to find": func(e *authz.Errand) { e.Kind = authz.ErrandFind },
		"of no supplier":  func(e *authz.Errand) { e.Kind = authz.ErrandSupplier },
		"step of nothing": func(e *authz.Errand) { e.Kind = authz.ErrandStep },
		"a supplier's": func(e *authz.Errand) {
			e.Kind, e.Action, e.ConsentID = authz.ErrandStep, authz.ActionRequest, [16]byte{1}
		},
	} {
		e := good
		change(&e)
		if b, err := EncodeErrand(e, profile()); !errors.Is(err, ErrErrand) || b != nil {
			t.Errorf("%s: %s, %v", name, b, err)
		}
	}
}

// What is written is read back, whatever it is.
func TestErrandRoundTrip(t *testing.T) {
	t.Parallel()
	fields := append(profile().Fields(meter.Electricity), profile().Fields(meter.Gas)...)
	point := mustEAN(t, ean)
	rapid.Check(t, func(t *rapid.T) {
		line := rapid.StringMatching(`[!-~é]([ -~é]{0,60}[!-~é])?`)
		e := authz.Errand{Reason: line.Draw(t, "reason"), Kind: rapid.SampledFrom(authz.ErrandKinds()).Draw(t, "kind")}
		if e.Kind.OfPoint() {
			e.EAN = point
		}
		switch e.Kind {
		case authz.ErrandReadings:
			e.Days.From = meter.Day(rapid.IntRange(0, 30000).Draw(t, "from"))
			e.Days.To = e.Days.From + meter.Day(rapid.IntRange(1, authz.MaxRequestDays).Draw(t, "days"))
			for _, f := range fields {
				if rapid.Bool().Draw(t, f.Name) || len(e.Fields) == 0 {
					e.Fields = append(e.Fields, f.Code)
				}
			}
			slices.Sort(e.Fields)
		case authz.ErrandStep:
			e.Action = authz.ConsentAction(rapid.IntRange(1, 4).Draw(t, "action"))
			e.Scope = [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "scope"))
			if e.Action != authz.ActionRegister {
				e.ConsentID = [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Filter(func(b []byte) bool { return uuid.UUID(b) != uuid.Nil }).Draw(t, "consent"))
			}
			if e.Action == authz.ActionRegister || e.Action == authz.ActionGrant {
				e.Evidence = line.Draw(t, "evidence")
			}
		case authz.ErrandFind:
			e.Postcode, _ = profile().ParsePostcode(rapid.StringMatching(`[1-9][0-9]{3}[A-Z]{2}`).Draw(t, "postcode"))
			e.HouseNumber, _ = meter.HouseNumberFromInt(rapid.Int64Range(1, 99999).Draw(t, "house number"))
		case authz.ErrandSupplier:
			e.Supplier, _ = meter.ParseGLN("8712345600020")
			e.Suspend = rapid.Bool().Draw(t, "suspend")
		}
		b, err := EncodeErrand(e, profile())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseErrand(b, profile()); err != nil || !reflect.DeepEqual(got, e) {
			t.Fatalf("%+v became %s, read as %+v (%v)", e, b, got, err)
		}
	})
}

// FuzzErrand: whatever is read is written as something that reads the same, and
// encoding/json reads the same members.
func FuzzErrand(f *testing.F) {
	for _, s := range []string{readingsJSON, viewJSON, registerJSON, grantJSON, rejectJSON, revokeJSON, findJSON, overseeJSON, suspendJSON, resumeJSON, `[]`, `[null]`, `[{"type":1}]`, `[{"a":[[{"b":1,"b":2}]]}]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseErrand(b, profile())
		if err != nil {
			if !errors.Is(err, ErrErrand) {
				t.Fatal(err)
			}
			return
		}
		again, err := EncodeErrand(e, profile())
		if err != nil {
			t.Fatalf("%q cannot be written: %v", b, err)
		}
		var loose, same []map[string]any
		if json.Unmarshal(b, &loose) != nil || json.Unmarshal(again, &same) != nil || len(loose) != 1 || len(loose[0]) != len(same[0]) {
			t.Fatalf("%q became %s", b, again)
		}
		for k, v := range same[0] {
			if k != "fields" && loose[0][k] != v {
				t.Fatalf("%q became %s", b, again)
			}
		}
		if twice, err := ParseErrand(again, profile()); err != nil || !reflect.DeepEqual(twice, e) {
			t.Fatalf("%s read as %+v (%v), not %+v", again, twice, err, e)
		}
	})
}
