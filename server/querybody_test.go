package server

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"kluis/internal/strictjson"
	"kluis/meter"
)

var queryNow = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// listedEAN is one of many.
func listedEAN(n int) string {
	digits := fmt.Sprintf("87168714%09d", n)
	sum := 0
	for i, c := range digits {
		w := 3
		if i%2 == 1 {
			w = 1
		}
		sum += int(c-'0') * w
	}
	return fmt.Sprintf("%s%d", digits, (10-sum%10)%10)
}

// inBody is a body with these members instead of, or besides, the plainest.
func inBody(members ...string) string {
	all := map[string]string{"from": `"2026-03-01"`, "to": `"2026-04-01"`, "purpose": `"BILLING"`}
	order := []string{"from", "to", "purpose"}
	for i := 0; i < len(members); i += 2 {
		if _, there := all[members[i]]; !there {
			order = append(order, members[i])
		}
		all[members[i]] = members[i+1]
	}
	var b strings.Builder
	for _, name := range order {
		if all[name] != "" {
			if b.Len() > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, "%q:%s", name, all[name])
		}
	}
	return "{" + b.String() + "}"
}

func TestParseManyQuery(t *testing.T) {
	t.Parallel()
	body := inBody("meteringPoints", fmt.Sprintf("[%q, %q ,%q]", listedEAN(3), listedEAN(1), listedEAN(2)), "fields", `["import_normal","import_low"]`,
		"resolution", `"P1D"`, "kind", `"REGISTER"`, "asOf", `"2026-03-15T12:00:00.5+01:00"`, "limit", "17", "cursor", `"AAAA"`)
	for name, in := range map[string]io.Reader{
		"at once": strings.NewReader(body), "byte by byte": iotest.OneByteReader(strings.NewReader(body)), "with blanks": strings.NewReader(" \n" + strings.ReplaceAll(body, ",", " ,\t") + "\r\n "),
	} {
		q, faults, err := parseManyQuery(in, dutch(t), queryNow)
		if err != nil || len(faults) > 0 {
			t.Fatalf("%s: %v %v", name, faults, err)
		}
		var eans []string
		for _, e := range q.eans {
			eans = append(eans, e.String())
		}
		if !q.listed || !slices.Equal(eans, []string{listedEAN(1), listedEAN(2), listedEAN(3)}) || q.days.Len() != 31 || q.purpose != meter.Billing ||
			len(q.query.fields) != 2 || q.resolution != meter.P1D || q.kind != meter.Register || q.limit != 17 || q.cursor != "AAAA" ||
			!q.asOf.Equal(time.Date(2026, 3, 15, 11, 0, 0, 500_000_000, time.UTC)) {
			t.Errorf("%s: %+v", name, q)
		}
	}
	q, faults, err := parseManyQuery(strings.NewReader(inBody("class", `"registers"`)), dutch(t), queryNow)
	if err != nil || len(faults) > 0 || q.listed || q.eans != nil || q.limit != defaultLimit || q.class != meter.Registers {
		t.Errorf("%+v %v %v", q, faults, err)
	}
	many := make([]string, maxQueryPoints)
	for i := range many {
		many[i] = listedEAN(len(many) - i)
	}
	list := string(mustJSON(t, many))
	if q, faults, err = parseManyQuery(strings.NewReader(inBody("meteringPoints", list)), dutch(t), queryNow); err != nil || len(faults) > 0 || len(q.eans) != maxQueryPoints {
		t.Errorf("%d metering points, %v %v", len(q.eans), faults, err)
	}
	if len(list) > maxQueryBody-1000 {
		t.Errorf("as many as may be listed take %d bytes", len(list))
	}
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseManyQueryFaults(t *testing.T) {
	t.Parallel()
	one := `"` + listedEAN(1) + `"`
	more := make([]string, maxQueryPoints+1)
	for i := range more {
		more[i] = listedEAN(i)
	}
	secret := "S3CRET"
	var bad []string
	for i := range 30 {
		bad = append(bad, fmt.Sprintf(`"%s%d"`, secret, i))
	}
	for name, c := range map[string]struct{ body, want string }{
		"empty":                 {``, "/body"},
		"null":                  {`null`, "/body"},
		"a list":                {`[]`, "/body"},
		"text":                  {`"x"`, "/body"},
		"cut off":               {inBody()[:20], "/body"},
		"cut off in the list":   {`{"meteringPoints":[` + one, "/body"},
		"something after":       {inBody() + `{}`, "/body"},
		"twice":                 {`{"from":"2026-03-01","from":"2026-03-01"}`, "/body"},
		"twice, escaped":        {`{"from":"2026-03-01","\u0066rom":"2026-03-01"}`, "/body"},
		"comma too many":        {`{"from":"2026-03-01",}`, "/body"},
		"no comma":              {`{"from":"2026-03-01" "to":"2026-04-01"}`, "/body"},
		"comma in the list":     {inBody("meteringPoints", `[`+one+`,]`), "/body"},
		"no UTF-8":              {inBody("\xff", "1"), "/body"},
		"deep":                  {inBody("x", strings.Repeat("[", 10_000)), "/body"},
		"deep, and closed":      {inBody("x", strings.Repeat(`{"a":`, 5000)+"1"+strings.Repeat("}", 5000)), "/body"},
		"deep in the list":      {inBody("meteringPoints", strings.Repeat("[", 100_000)), "/body"},
		"nothing":               {`{}`, "/body/from /body/to /body/purpose"},
		"unknown":               {inBody(secret, `{"a":[1,{"b":null}]}`), "/body"},
		"unknown, twice":        {inBody(secret, "1", secret+"2", "true"), "/body"},
		"case":                  {inBody("From", `"2026-03-01"`), "/body"},
		"wrong types":           {inBody("from", "1", "to", "null", "purpose", "[]", "fields", `"import_low"`, "class", "{}", "limit", `"10"`, "meteringPoints", "{}", "cursor", "true", "kind", "1.5", "asOf", "0", "resolution", `{"a":["b"]}`), "/body/from /body/to /body/purpose /body/fields /body/class /body/limit /body/meteringPoints /body/cursor /body/kind /body/asOf /body/resolution /body/class"},
		"wrong words":           {inBody("from", `"2026-02-30"`, "purpose", `"`+secret+`"`, "class", `"x"`, "kind", `"x"`, "resolution", `"P1Y"`, "asOf", `"now"`), "/body/from /body/purpose /body/class /body/kind /body/resolution /body/asOf"},
		"reversed":              {inBody("to", `"2026-03-01"`), "/body/to"},
		"too long":              {inBody("to", `"2027-03-03"`), "/body/to"},
		"fields and class":      {inBody("fields", `["import_low"]`, "class", `"registers"`), "/body/class"},
		"no fields":             {inBody("fields", `[]`), "/body/fields"},
		"unknown field":         {inBody("fields", `["import_low","`+secret+`"]`), "/body/fields"},
		"field twice":           {inBody("fields", `["import_low","import_low"]`), "/body/fields"},
		"fields nested":         {inBody("fields", `[["import_low"]]`), "/body/fields"},
		"limit too low":         {inBody("limit", "9"), "/body/limit"},
		"limit too high":        {inBody("limit", "1001"), "/body/limit"},
		"limit broken":          {inBody("limit", "1e2"), "/body/limit"},
		"limit with a point":    {inBody("limit", "100.0"), "/body/limit"},
		"limit beyond":          {inBody("limit", "99999999999999999999"), "/body/limit"},
		"limit null":            {inBody("limit", "null"), "/body/limit"},
		"asOf to come":          {inBody("asOf", `"2027-01-01T00:00:00Z"`), "/body/asOf"},
		"asOf of less":          {inBody("asOf", `"2026-01-01T00:00:00.0000000001Z"`), "/body/asOf"},
		"empty list":            {inBody("meteringPoints", `[]`), "/body/meteringPoints"},
		"too many":              {inBody("meteringPoints", string(mustJSON(t, more))), "/body/meteringPoints"},
		"too many of anything":  {inBody("meteringPoints", "["+strings.Repeat("0,", 1_200_000)+"0]"), "/body/meteringPoints"},
		"a bad one":             {inBody("meteringPoints", `[`+one+`,"871687140000000010",`+one[:18]+`0"]`), "/body/meteringPoints/1 /body/meteringPoints/2"},
		"twice in the list":     {inBody("meteringPoints", `[`+one+`,"`+listedEAN(2)+`",`+one+`]`), "/body/meteringPoints/2"},
		"other things in it":    {inBody("meteringPoints", `[`+one+`,1,null,{"a":"`+listedEAN(3)+`"},["x"]]`), "/body/meteringPoints/1 /body/meteringPoints/2 /body/meteringPoints/3 /body/meteringPoints/4"},
		"no cursor":             {inBody("cursor", `""`), "/body/cursor"},
		"cursor too long":       {inBody("cursor", `"`+strings.Repeat("A", maxCursor+1)+`"`), "/body/cursor"},
		"many faulty, not told": {inBody("meteringPoints", "["+strings.Join(bad, ",")+"]"), ""},
	} {
		q, faults, err := parseManyQuery(strings.NewReader(c.body), dutch(t), queryNow)
		if err != nil || len(faults) == 0 || len(q.eans) > 0 {
			t.Errorf("%s: %v, %v", name, faults, err)
			continue
		}
		var got []string
		for _, f := range faults {
			got = append(got, f.Pointer)
			if strings.Contains(f.Pointer+f.Reason, secret) {
				t.Errorf("%s: a fault repeats what was sent: %v", name, f)
			}
		}
		if c.want == "" {
			if len(faults) != maxPointFaults+1 || faults[maxPointFaults].Pointer != "/body/meteringPoints" || faults[maxPointFaults].Reason != "has 10 more such entries" || faults[19].Pointer != "/body/meteringPoints/19" {
				t.Errorf("%s: %v", name, faults)
			}
			continue
		}
		want := strings.Fields(c.want)
		slices.Sort(want)
		want = slices.Compact(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	broken := errors.New("the connection broke")
	if _, faults, err := parseManyQuery(io.MultiReader(strings.NewReader(inBody()[:30]), iotest.ErrReader(broken)), dutch(t), queryNow); !errors.Is(err, broken) || faults != nil {
		t.Errorf("%v, %v", faults, err)
	}
}

// goldenQuery stands in cursors and manifests that clients hold.
const goldenQuery = "919c07471e3725e07a095756f1f5393989a1cbb6d39b70a6c7c6555d921aff2f"

func TestQueryDigest(t *testing.T) {
	t.Parallel()
	digest := func(caller string, members ...string) string {
		q, faults, err := parseManyQuery(strings.NewReader(inBody(members...)), dutch(t), queryNow)
		if err != nil || len(faults) > 0 {
			t.Fatal(faults, err)
		}
		d := q.digestFor(mustGLN(t, caller))
		return hex.EncodeToString(d[:])
	}
	two := fmt.Sprintf("[%q,%q]", listedEAN(2), listedEAN(1))
	base := digest(cursorCaller, "meteringPoints", two, "fields", `["import_low","import_normal"]`)
	if base != goldenQuery {
		t.Errorf("digest %s, want %s", base, goldenQuery)
	}
	// What is not of the question does not count.
	for name, same := range map[string]string{
		"limit and cursor": digest(cursorCaller, "meteringPoints", two, "fields", `["import_low","import_normal"]`, "limit", "10", "cursor", `"x"`),
		"order":            digest(cursorCaller, "meteringPoints", fmt.Sprintf("[%q,%q]", listedEAN(1), listedEAN(2)), "fields", `["import_normal","import_low"]`),
	} {
		if same != base {
			t.Errorf("%s: another digest", name)
		}
	}
	seen := map[string]string{base: "the base"}
	for name, other := range map[string]string{
		"caller":     digest(cursorAnother, "meteringPoints", two, "fields", `["import_low","import_normal"]`),
		"one more":   digest(cursorCaller, "meteringPoints", fmt.Sprintf("[%q,%q,%q]", listedEAN(2), listedEAN(1), listedEAN(3)), "fields", `["import_low","import_normal"]`),
		"no list":    digest(cursorCaller, "fields", `["import_low","import_normal"]`),
		"no fields":  digest(cursorCaller, "meteringPoints", two),
		"a field":    digest(cursorCaller, "meteringPoints", two, "fields", `["import_low"]`),
		"class":      digest(cursorCaller, "meteringPoints", two, "class", `"registers"`),
		"from":       digest(cursorCaller, "meteringPoints", two, "fields", `["import_low","import_normal"]`, "from", `"2026-03-02"`),
		"to":         digest(cursorCaller, "meteringPoints", two, "fields", `["import_low","import_normal"]`, "to", `"2026-04-02"`),
		"purpose":    digest(cursorCaller, "meteringPoints", two, "fields", `["import_low","import_normal"]`, "purpose", `"SWITCH"`),
		"resolution": digest(cursorCaller, "meteringPoints", two, "fields", `["import_low","import_normal"]`, "resolution", `"P1D"`),
		"kind":       digest(cursorCaller, "meteringPoints", two, "fields", `["import_low","import_normal"]`, "kind", `"REGISTER"`),
		"asOf":       digest(cursorCaller, "meteringPoints", two, "fields", `["import_low","import_normal"]`, "asOf", `"2026-03-15T12:00:00Z"`),
	} {
		if before, twice := seen[other]; twice {
			t.Errorf("%s: the same digest as %s", name, before)
		}
		seen[other] = name
	}
}

// Whatever is understood is what encoding/json and strictjson read, too.
func FuzzManyQuery(f *testing.F) {
	f.Add([]byte(inBody("meteringPoints", fmt.Sprintf("[%q,%q]", listedEAN(2), listedEAN(1)), "fields", `["import_low"]`, "limit", "10", "cursor", `"AAAA"`, "asOf", `"2026-03-15T12:00:00Z"`)))
	f.Add([]byte(inBody("class", `"registers"`, "resolution", `"P1M"`, "kind", `"CONSUMPTION"`)))
	f.Add([]byte(`{"from":1}`))
	f.Add([]byte(`{"x":[[[[[[[[[[`))
	profile := dutch(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		q, faults, err := parseManyQuery(bytes.NewReader(body), profile, queryNow)
		if err != nil {
			t.Fatal(err) // nothing broke
		}
		for _, fault := range faults {
			if !strings.HasPrefix(fault.Pointer, "/body") || fault.Reason == "" {
				t.Errorf("fault %+v", fault)
			}
		}
		if len(faults) > 0 {
			return
		}
		if _, err := strictjson.Object(body); err != nil {
			t.Fatalf("understood what is no strict JSON: %q", body)
		}
		var plain struct {
			MeteringPoints                                           []string
			From, To, Purpose, Class, Resolution, Kind, AsOf, Cursor string
			Fields                                                   []string
			Limit                                                    *int
		}
		if err := json.Unmarshal(body, &plain); err != nil {
			t.Fatalf("understood what encoding/json does not: %v", err)
		}
		if q.days.From.String() != plain.From || q.days.To.String() != plain.To || q.purpose.String() != plain.Purpose || q.cursor != plain.Cursor ||
			len(q.eans) != len(plain.MeteringPoints) || q.listed != (plain.MeteringPoints != nil) || len(q.query.fields) != len(plain.Fields) || plain.Limit != nil && *plain.Limit != q.limit {
			t.Errorf("%q is %+v", body, q)
		}
		for i, e := range q.eans {
			if !slices.Contains(plain.MeteringPoints, e.String()) || i > 0 && e.Int64() <= q.eans[i-1].Int64() {
				t.Errorf("%q is %+v", body, q)
			}
		}
	})
}
