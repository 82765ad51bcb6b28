package server

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"kluis/authz"
	"kluis/meter"
	"kluis/openapi"
)

const (
	atomNS = "http://www.w3.org/2005/Atom"
	espiNS = "http://naesb.org/espi"
)

// node is an element of a document.
type node struct {
	name  xml.Name
	attrs map[string]string
	text  string
	of    []*node
}

func (n *node) all(local string) []*node {
	var out []*node
	for _, c := range n.of {
		if c.name.Local == local {
			out = append(out, c)
		}
	}
	return out
}

func (n *node) one(local string) *node {
	if all := n.all(local); len(all) == 1 {
		return all[0]
	}
	return &node{}
}

func parseXML(doc []byte) (*node, error) {
	dec := xml.NewDecoder(bytes.NewReader(doc))
	root := &node{}
	stack := []*node{root}
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		top := stack[len(stack)-1]
		switch token := token.(type) {
		case xml.StartElement:
			n := &node{name: token.Name, attrs: map[string]string{}}
			for _, a := range token.Attr {
				if a.Name.Local != "xmlns" {
					n.attrs[a.Name.Local] = a.Value
				}
			}
			top.of = append(top.of, n)
			stack = append(stack, n)
		case xml.EndElement:
			if len(top.of) == 0 {
				top.text = strings.TrimSpace(top.text)
			} else if strings.TrimSpace(top.text) != "" {
				return nil, fmt.Errorf("text among the elements of %s", top.name.Local)
			}
			stack = stack[:len(stack)-1]
		case xml.CharData:
			top.text += string(token)
		case xml.ProcInst:
		default:
			return nil, fmt.Errorf("a %T", token)
		}
	}
	if len(root.of) != 1 {
		return nil, fmt.Errorf("%d roots", len(root.of))
	}
	return root.of[0], nil
}

// The rules by which a feed is judged: what Atom and ESPI ask of the entries
// that Kluis writes, put down in our own words. They are stricter than the
// schema: what Kluis never writes is not in them. TestFeedBySchema holds the
// same feeds to the schema itself, where there is a copy of it.
type espiChild struct {
	name     string
	required bool
	many     bool
	value    func(string) bool
	of       []espiChild // of an element that has others
}

func numberIn(low, high int64) func(string) bool {
	return func(s string) bool {
		n, err := strconv.ParseInt(s, 10, 64)
		return err == nil && low <= n && n <= high && strconv.FormatInt(n, 10) == s
	}
}

func oneOf(numbers ...int64) func(string) bool {
	return func(s string) bool {
		n, err := strconv.ParseInt(s, 10, 64)
		return err == nil && slices.Contains(numbers, n)
	}
}

var (
	hex32    = regexp.MustCompile(`^[0-9A-F]{8}$`).MatchString
	anyTime  = numberIn(-1<<62, 1<<62)
	interval = []espiChild{{name: "duration", required: true, value: numberIn(0, 1<<32-1)}, {name: "start", required: true, value: anyTime}}

	espiResources = map[string][]espiChild{
		"UsagePoint": {{name: "ServiceCategory", of: []espiChild{{name: "kind", required: true, value: oneOf(0, 1)}}}},
		"LocalTimeParameters": {
			{name: "dstEndRule", required: true, value: hex32}, {name: "dstOffset", required: true, value: anyTime},
			{name: "dstStartRule", required: true, value: hex32}, {name: "tzOffset", required: true, value: anyTime},
		},
		"MeterReading": {},
		"ReadingType": {
			{name: "accumulationBehaviour", required: true, value: oneOf(1, 4)}, {name: "commodity", required: true, value: oneOf(1, 7)},
			{name: "dataQualifier", required: true, value: oneOf(12)}, {name: "flowDirection", required: true, value: oneOf(1, 19)},
			{name: "intervalLength", value: oneOf(900, 3600)}, {name: "kind", required: true, value: oneOf(12, 58)},
			{name: "powerOfTenMultiplier", required: true, value: oneOf(-9, -6, -3, -2, -1, 0, 1, 2, 3, 6)},
			{name: "timeAttribute", required: true, value: oneOf(0, 11, 13)}, {name: "tou", value: numberIn(1, 255)},
			{name: "uom", required: true, value: oneOf(42, 72)},
		},
		"IntervalBlock": {
			{name: "interval", required: true, of: interval},
			{name: "IntervalReading", required: true, many: true, of: []espiChild{
				{name: "ReadingQuality", of: []espiChild{{name: "quality", required: true, value: oneOf(7, 8, 10, 11, 14)}}},
				{name: "timePeriod", required: true, of: interval},
				{name: "value", required: true, value: numberIn(-maxESPI, maxESPI)},
			}},
		},
	}
)

// follows judges the children of an element: each known, in the order of the
// schema, as often as it may be.
func follows(n *node, rules []espiChild) error {
	i := 0
	seen := map[string]int{}
	for _, c := range n.of {
		for i < len(rules) && rules[i].name != c.name.Local {
			i++
		}
		if i == len(rules) {
			return fmt.Errorf("%s is no child of %s, or not here", c.name.Local, n.name.Local)
		}
		rule := &rules[i]
		seen[rule.name]++
		switch {
		case c.name.Space != espiNS || len(c.attrs) > 0:
			return fmt.Errorf("%s of %s is of another namespace or has attributes", c.name.Local, n.name.Local)
		case seen[rule.name] > 1 && !rule.many:
			return fmt.Errorf("%s of %s twice", rule.name, n.name.Local)
		case rule.value != nil && (len(c.of) > 0 || !rule.value(c.text)):
			return fmt.Errorf("%s of %s: %q", rule.name, n.name.Local, c.text)
		case rule.value == nil:
			if err := follows(c, rule.of); err != nil {
				return err
			}
		}
	}
	for _, rule := range rules {
		if rule.required && seen[rule.name] == 0 {
			return fmt.Errorf("%s has no %s", n.name.Local, rule.name)
		}
	}
	return nil
}

// feedOf judges a feed and returns its resources by their links to themselves.
func feedOf(doc []byte) (entries []*node, err error) {
	root, err := parseXML(doc)
	if err != nil {
		return nil, err
	}
	if root.name != (xml.Name{Space: atomNS, Local: "feed"}) {
		return nil, fmt.Errorf("a %v", root.name)
	}
	atom := func(n *node, names ...string) error {
		for _, c := range n.of {
			if c.name.Space != atomNS || !slices.Contains(names, c.name.Local) {
				return fmt.Errorf("%v in %s", c.name, n.name.Local)
			}
		}
		for _, name := range []string{"id", "title", "updated"} {
			if len(n.all(name)) != 1 {
				return fmt.Errorf("%d %s in %s", len(n.all(name)), name, n.name.Local)
			}
		}
		id, found := strings.CutPrefix(n.one("id").text, "urn:uuid:")
		if _, err := uuid.Parse(id); err != nil || !found {
			return fmt.Errorf("the id %s", id)
		}
		_, err := time.Parse(time.RFC3339, n.one("updated").text)
		return err
	}
	if err := atom(root, "id", "title", "updated", "link", "author", "entry"); err != nil {
		return nil, err
	}
	self, parents, related := map[string]string{}, []string{}, map[string]bool{}
	ids := map[string]bool{}
	for _, e := range root.all("entry") {
		if err := atom(e, "id", "link", "title", "content", "published", "updated"); err != nil {
			return nil, err
		}
		if len(e.one("content").of) != 1 {
			return nil, errors.New("an entry holds several resources")
		}
		if id := e.one("id").text; ids[id] {
			return nil, fmt.Errorf("the id %s twice", id)
		} else {
			ids[id] = true
		}
		r := e.one("content").of[0]
		rules, known := espiResources[r.name.Local]
		if !known || r.name.Space != espiNS {
			return nil, fmt.Errorf("a %v", r.name)
		}
		rest := *r
		rest.of = nil
		for i, c := range r.of {
			if c.name.Local != "extension" {
				rest.of = append(rest.of, c)
				continue
			}
			if len(rest.of) > 0 {
				return nil, fmt.Errorf("extension %d is not before the rest", i)
			}
			if len(c.of) != 1 || c.of[0].name.Space != espiExtension {
				return nil, fmt.Errorf("extension %d is not ours", i)
			}
		}
		if err := follows(&rest, rules); err != nil {
			return nil, err
		}
		for _, l := range e.all("link") {
			if l.attrs["href"] == "" || !strings.HasPrefix(l.attrs["type"], "espi-") || len(l.attrs) != 3 {
				return nil, fmt.Errorf("a link %v", l.attrs)
			}
			switch l.attrs["rel"] {
			case "self":
				self[l.attrs["href"]] = r.name.Local
			case "up":
				parents = append(parents, l.attrs["href"])
			case "related":
				related[l.attrs["href"]] = true
			default:
				return nil, fmt.Errorf("a link %v", l.attrs)
			}
		}
		entries = append(entries, e)
	}
	// What is tied to something is tied to something that is there.
	for href := range related {
		if self[href] == "" && !slices.Contains(parents, href) && !strings.HasSuffix(href, "/MeterReading") && !strings.HasSuffix(href, "/IntervalBlock") {
			return nil, fmt.Errorf("%s is related, and not there", href)
		}
	}
	for _, href := range parents {
		if strings.Contains(strings.TrimPrefix(href, espiResource+"/UsagePoint"), "/") && strings.HasPrefix(href, espiResource+"/UsagePoint/") && !related[href] {
			return nil, fmt.Errorf("%s hangs from nothing", href)
		}
	}
	return entries, nil
}

func content(e *node) *node { return e.one("content").of[0] }

func feedGoldens(t testing.TB) map[string]*answer {
	gas := *goldenAnswer(t)
	c := codes(t, gas.profile, "gas", "gas_intervals")
	gas.series = []meter.Series{
		{Field: c[0], Kind: meter.Register, Resolution: meter.P1M, Basis: meter.SupplyPeriodic, Rule: "nl-billing-periodic", Expected: 2, Delivered: 2,
			Days: []meter.SeriesDay{{Day: mustDay(t, "2026-02-01"), Values: []meter.Value{1234567}}, {Day: mustDay(t, "2026-03-01"), Values: []meter.Value{1300001}, Quality: []meter.Quality{meter.Temporary}}}},
		{Field: c[1], Kind: meter.Consumption, Resolution: meter.P1D, Basis: meter.Consent, Rule: "nl-consent-intervals", Expected: 2, Delivered: 1,
			Days: []meter.SeriesDay{{Day: mustDay(t, "2026-03-28"), Values: []meter.Value{meter.Null}}, {Day: mustDay(t, "2026-03-29"), Values: []meter.Value{4321}}}},
		// The same on another consent.
		{Field: c[1], Kind: meter.Consumption, Resolution: meter.P1D, Basis: meter.Consent, Rule: "nl-consent-intervals", Expected: 1, Delivered: 0,
			Days: []meter.SeriesDay{{Day: mustDay(t, "2026-03-30"), Values: []meter.Value{meter.Null}}}},
	}
	gas.withheld = nil
	return map[string]*answer{
		"readings": goldenAnswer(t), "gas": &gas,
		"nothing": {
			interaction: gas.interaction, profile: gas.profile,
			query: query{ean: mustEAN(t, testEAN), purpose: meter.Billing, days: meter.DayRange{From: 1, To: 2}},
		},
	}
}

func TestFeedGolden(t *testing.T) {
	t.Parallel()
	for name, a := range feedGoldens(t) {
		got := a.appendESPI(nil)
		path := filepath.Join("testdata", name+".golden.xml")
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: rendered\n%s\nwant\n%s", name, got, want)
		}
		if _, err := feedOf(got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFeedBySchema holds the golden feeds to the published schemas, which are
// not ours to hand on: KLUIS_ESPI_SCHEMA names a file that imports atom.xsd
// and espi.xsd. xmllint is of libxml2.
func TestFeedBySchema(t *testing.T) {
	t.Parallel()
	schema := os.Getenv("KLUIS_ESPI_SCHEMA")
	if schema == "" {
		t.Skip("KLUIS_ESPI_SCHEMA is not set")
	}
	for name := range feedGoldens(t) {
		out, err := exec.Command("xmllint", "--noout", "--nonet", "--schema", schema, filepath.Join("testdata", name+".golden.xml")).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// fromFeed makes of a feed what the JSON of the same answer has, but for what
// is left out.
func fromFeed(entries []*node, profile *meter.Profile) (series []openapi.Series, withheld []openapi.Withheld, err error) {
	loc := profile.Location()
	types := map[string]*node{}
	for _, e := range entries {
		if r := content(e); r.name.Local == "ReadingType" {
			types[linkOf(e, "self")] = r
		}
	}
	for _, e := range entries {
		switch r := content(e); r.name.Local {
		case "UsagePoint":
			for _, x := range r.all("extension") {
				at := x.of[0].attrs
				w := openapi.Withheld{Field: at["field"], Reason: openapi.WithheldReason(at["reason"])}
				if w.From.Time, err = time.Parse(time.DateOnly, at["from"]); err != nil {
					return nil, nil, err
				}
				if w.To.Time, err = time.Parse(time.DateOnly, at["to"]); err != nil {
					return nil, nil, err
				}
				withheld = append(withheld, w)
			}
		case "MeterReading":
			at := r.one("extension").one("series").attrs
			expected, err1 := strconv.Atoi(at["expectedCount"])
			delivered, err2 := strconv.Atoi(at["deliveredCount"])
			if err := errors.Join(err1, err2); err != nil {
				return nil, nil, err
			}
			series = append(series, openapi.Series{
				Field: at["field"], Obis: at["obis"], ReadingKind: openapi.ReadingKind(at["readingKind"]), Resolution: openapi.Resolution(at["resolution"]),
				Unit: at["unit"], LegalBasis: openapi.LegalBasis(at["legalBasis"]), Rule: at["rule"], ExpectedCount: expected, DeliveredCount: delivered,
			})
			s := &series[len(series)-1]
			var kind *node
			for _, l := range e.all("link") {
				if t := types[l.attrs["href"]]; t != nil && l.attrs["rel"] == "related" {
					kind = t
				}
			}
			if kind == nil {
				return nil, nil, errors.New("a MeterReading without its ReadingType")
			}
			// A value as ESPI says it, in Wh or m3, is one as the catalogue
			// has it.
			f, _ := profile.Field(s.Field)
			power, err := strconv.Atoi(kind.one("powerOfTenMultiplier").text)
			if err != nil || power+f.Precision != map[string]int{"72": 3, "42": 0}[kind.one("uom").text] {
				return nil, nil, fmt.Errorf("10^%d of unit %s", power, kind.one("uom").text)
			}
			if (kind.one("accumulationBehaviour").text == "1") != (s.ReadingKind == openapi.ReadingKindREGISTER) ||
				(kind.one("flowDirection").text == "19") != strings.HasPrefix(s.Field, "export") ||
				(kind.one("commodity").text == "7") != strings.HasPrefix(s.Field, "gas") {
				return nil, nil, fmt.Errorf("a ReadingType of another series than %s", s.Field)
			}
			for _, b := range entries {
				if content(b).name.Local != "IntervalBlock" || linkOf(b, "up") != linkOf(e, "self")+"/IntervalBlock" {
					continue
				}
				for _, v := range content(b).all("IntervalReading") {
					start, _ := strconv.ParseInt(v.one("timePeriod").one("start").text, 10, 64)
					duration, _ := strconv.ParseInt(v.one("timePeriod").one("duration").text, 10, 64)
					n, _ := strconv.ParseInt(v.one("value").text, 10, 64)
					value := string(meter.AppendValue(nil, meter.Value(n), f.Precision))
					at := time.Unix(start, 0).In(loc)
					day := meter.DayOf(at, loc)
					until := start
					if s.ReadingKind == openapi.ReadingKindCONSUMPTION {
						until = map[openapi.Resolution]int64{
							openapi.PT15M: start + 900, openapi.PT1H: start + 3600,
							openapi.P1D: (day + 1).Start(loc).Unix(), openapi.P1M: day.AddMonths(1).Start(loc).Unix(),
						}[s.Resolution]
					}
					if until-start != duration {
						return nil, nil, fmt.Errorf("%d seconds from %s", duration, at)
					}
					// One value a "day": which day is said by its start.
					s.Days = append(s.Days, openapi.DayValues{Start: at, Values: []*string{&value}})
					if q := v.one("ReadingQuality").one("quality").text; q != "" {
						s.Days[len(s.Days)-1].Quality = &[]openapi.QualityRun{{Quality: openapi.Quality(q)}}
					}
				}
			}
		}
	}
	return series, withheld, nil
}

func linkOf(e *node, rel string) string {
	for _, l := range e.all("link") {
		if l.attrs["rel"] == rel {
			return l.attrs["href"]
		}
	}
	return ""
}

// known is what a feed can say of an answer: its values one by one, but for
// those that are not known, or that ESPI has no room for.
func known(r *openapi.Readings, loc *time.Location) (series []openapi.Series) {
	words := map[openapi.Quality]string{
		openapi.ADJUSTED: "7", openapi.NOTAVAILABLE: "10", openapi.ESTIMATED: "8", openapi.INCOMPLETE: "10",
		openapi.CALCULATED: "11", openapi.TEMPORARY: "14",
	}
	for _, s := range r.Series {
		out := s
		out.Days = nil
		step := map[openapi.Resolution]time.Duration{openapi.PT15M: 15 * time.Minute, openapi.PT1H: time.Hour}[s.Resolution]
		for _, d := range s.Days {
			for i, v := range d.Values {
				if v == nil {
					continue
				}
				if n, _ := meter.ParseValue(*v, 3); n > maxESPI || n < -maxESPI {
					continue
				}
				one := openapi.DayValues{Start: d.Start.Add(time.Duration(i) * step).In(loc), Values: []*string{v}}
				if d.Quality != nil {
					for _, q := range *d.Quality {
						if q.Index <= i && i < q.Index+q.Count {
							one.Quality = &[]openapi.QualityRun{{Quality: openapi.Quality(words[q.Quality])}}
						}
					}
				}
				out.Days = append(out.Days, one)
			}
		}
		series = append(series, out)
	}
	return series
}

// A feed and the JSON of an answer hold the same, whatever it is, every feed
// is valid, and none outgrows its buffer.
func TestFeedSaysWhatTheJSONSays(t *testing.T) {
	t.Parallel()
	golden := goldenAnswer(t)
	rapid.Check(t, func(t *rapid.T) {
		a := *golden
		drawAnswer(t, &a)
		for i := range a.series { // a series at its resolution: the calendar's kinds are drawn freely
			if stepOf(a.series[i].Resolution) > 0 {
				a.series[i].Kind = meter.Consumption
			}
		}
		var want openapi.Readings
		if err := json.Unmarshal(a.appendTo(nil), &want); err != nil {
			t.Fatal(err)
		}
		size := a.espiSize()
		doc := a.appendESPI(make([]byte, 0, size))
		if cap(doc) != size {
			t.Fatalf("the buffer of %d bytes grew for %d: plaintext is left behind in the one outgrown", size, len(doc))
		}
		entries, err := feedOf(doc)
		if err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		series, withheld, err := fromFeed(entries, a.profile)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := json.Marshal(openapi.Readings{Series: series, Withheld: withheld})
		if want.Withheld = want.Withheld[:len(want.Withheld):len(want.Withheld)]; len(want.Withheld) == 0 {
			want.Withheld = nil
		}
		wanted, _ := json.Marshal(openapi.Readings{Series: known(&want, a.profile.Location()), Withheld: want.Withheld})
		if !bytes.Equal(got, wanted) {
			t.Fatalf("the feed\n%s\nsays\n%s\nthe JSON\n%s", doc, got, wanted)
		}
	})
}

// The identifiers are the same in every feed, and no two things have one.
func TestFeedIdentifiers(t *testing.T) {
	t.Parallel()
	ids := func(a *answer) map[string]string {
		out := map[string]string{}
		entries, err := feedOf(a.appendESPI(nil))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			out[e.one("id").text] = content(e).name.Local
		}
		return out
	}
	a := goldenAnswer(t)
	first := ids(a)
	again := *a
	again.interaction = uuid.MustParse("019acf2e-8a51-7b0c-9d4e-0f6a1c2b3d4f")
	again.series = a.series[:1] // less of it
	for id, kind := range ids(&again) {
		if first[id] != kind {
			t.Errorf("the %s of another feed is %s", kind, id)
		}
	}
	other := *a
	other.query.ean = mustEAN(t, "871687140000000026")
	for id, kind := range ids(&other) {
		if shared := kind == "ReadingType" || kind == "LocalTimeParameters"; (first[id] != "") != shared {
			t.Errorf("the %s %s of another metering point", kind, id)
		}
	}
}

func TestDSTRules(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		zone, begin, end string
		saving, offset   int64
	}{
		{"Europe/Amsterdam", "3E0E2000", "AE0E3000", 3600, 3600},   // the last Sundays of March, at 2, and of October, at 3
		{"Europe/London", "3E0E1000", "AE0E2000", 3600, 0},         // at 1 and at 2
		{"America/New_York", "360E2000", "B40E2000", 3600, -18000}, // the second of March and the first of November: as in the Green Button samples
		{"Australia/Sydney", "A40E2000", "440E3000", 3600, 36000},  // the other way round
		{"Asia/Kolkata", "FFFFFFFF", "FFFFFFFF", 0, 19800},
		{"UTC", "FFFFFFFF", "FFFFFFFF", 0, 0},
	} {
		loc, err := time.LoadLocation(tt.zone)
		if err != nil {
			t.Fatal(err)
		}
		begin, end, saving, offset := dstRules(time.Date(2026, 3, 28, 0, 0, 0, 0, loc))
		if begin != tt.begin || end != tt.end || saving != tt.saving || offset != tt.offset {
			t.Errorf("%s: %s to %s, %d seconds more than %d", tt.zone, begin, end, saving, offset)
		}
	}
}

// Whatever a text is, it reads back as text, and the document has no more in
// it.
func FuzzAppendXML(f *testing.F) {
	for _, s := range []string{"", "kWh", `"/><x y="`, "</title><entry>", "<!--", "]]>", "&amp;", "&#0;", "\x00\x1f", "\ufffe\uffff", "\xff\xfe", "a\r\n\tb", "<?xml?>", "😀"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		doc := appendXML([]byte(`<a b="`), s)
		doc = appendXML(append(doc, `">`...), s)
		root, err := parseXML(append(doc, "</a>"...))
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		want := strings.Map(func(r rune) rune {
			if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r == 0xFFFE || r == 0xFFFF {
				return '\uFFFD'
			}
			return r
		}, strings.Join(strings.Split(string([]rune(s)), ""), ""))
		if root.attrs["b"] != want || root.text != strings.TrimSpace(want) || len(root.of) != 0 || len(root.attrs) != 1 {
			t.Fatalf("%q reads back as %q and %q", want, root.attrs["b"], root.text)
		}
	})
}

// A market profile cannot write markup: its patterns are the first wall, the
// escaping is the second.
func TestFeedHoldsNoMarkupOfOthers(t *testing.T) {
	t.Parallel()
	a := goldenAnswer(t)
	a.series[0].Rule = `x"/></extension></MeterReading></content></entry><entry>`
	a.withheld = append(a.withheld, authz.Withheld{Field: a.series[0].Field, Days: a.query.days, Reason: meter.Damaged})
	entries, err := feedOf(a.appendESPI(nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if r := content(e); r.name.Local == "MeterReading" {
			if got := r.one("extension").one("series").attrs["rule"]; got != a.series[0].Rule {
				t.Errorf("the rule is %q", got)
			}
			return
		}
	}
	t.Error("no MeterReading")
}

func BenchmarkFeed(b *testing.B) {
	a := benchmarkAnswer(b)
	b.ReportAllocs()
	for b.Loop() {
		b.SetBytes(int64(len(a.appendESPI(make([]byte, 0, a.espiSize())))))
	}
}
