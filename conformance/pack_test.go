package conformance

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/meter"
	"kluis/openapi"
)

func profile(t testing.TB) *meter.Profile {
	t.Helper()
	p, err := meter.ParseProfile(meter.NL())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func marketOf(p *meter.Profile) Market { return Market{p.Location(), p.RetentionMonths()} }

// seededOn is the pack of a day, as it is to be answered after some days.
func seededOn(t testing.TB, p *meter.Profile, seeded, today meter.Day) *Pack {
	t.Helper()
	pack, err := New(marketOf(p), seeded, today)
	if err != nil {
		t.Fatal(err)
	}
	return pack
}

func day(t testing.TB, s string) meter.Day {
	t.Helper()
	d, err := meter.ParseDay(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// asSupplier is a caller: production makes those of verified tokens only.
type asSupplier meter.GLN

func (s asSupplier) Supplier() meter.GLN       { return meter.GLN(s) }
func (s asSupplier) Employee() *authz.Employee { return nil }

// legalFile takes the steps of a metering point as a cryptoserver does.
func legalFile(t testing.TB, p *Point, prof *meter.Profile, at time.Time) *authz.LegalFile {
	t.Helper()
	var f *authz.LegalFile
	var err error
	for i, s := range p.Steps(at) {
		if f, err = authz.Apply(f, s, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, at, prof.Location()); err != nil {
			t.Fatalf("%s: step %d: %v", p.Name, i+1, err)
		}
	}
	return f
}

// blocks are the readings of a metering point as they end up stored.
func blocks(t testing.TB, p *Point, prof *meter.Profile) map[string]map[meter.Day]*meter.Block {
	t.Helper()
	out := map[string]map[meter.Day]*meter.Block{}
	first, second := p.Blocks(marketOf(prof))
	for _, b := range append(first, second...) {
		f, ok := prof.Field(b.Field)
		if !ok || f.Commodity != p.Commodity {
			t.Fatalf("%s has readings of %s", p.Name, b.Field)
		}
		if _, err := meter.AppendBlock(nil, &b.Block, f.Class, prof.Location()); err != nil {
			t.Fatalf("%s: %s on %s: %v", p.Name, b.Field, b.Day, err)
		}
		if out[b.Field] == nil {
			out[b.Field] = map[meter.Day]*meter.Block{}
		}
		if p.Erased.Contains(b.Day) || b.Field == p.Damaged && b.Day == p.DamagedOn {
			continue
		}
		out[b.Field][b.Day] = &b.Block
	}
	return out
}

// world is a pack as it is stored.
type world struct {
	pack    *Pack
	profile *meter.Profile
	files   map[string]*authz.LegalFile                      // by EAN
	blocks  map[string]map[string]map[meter.Day]*meter.Block // by EAN and field
}

func newWorld(t testing.TB, pack *Pack, prof *meter.Profile, at time.Time) *world {
	t.Helper()
	w := &world{pack, prof, map[string]*authz.LegalFile{}, map[string]map[string]map[meter.Day]*meter.Block{}}
	for i := range pack.Points {
		p := &pack.Points[i]
		w.files[p.EAN.String()], w.blocks[p.EAN.String()] = legalFile(t, p, prof, at), blocks(t, p, prof)
	}
	return w
}

// answered is what the parts that answer requests make of a case, put together
// here: the decision, then the assembly. What the gateway and the cryptoserver
// add of their own (damaged and erased days, problems) the end-to-end test has.
func (w *world) answered(t testing.TB, c Case, now time.Time) (Answer, bool) {
	t.Helper()
	pack, prof := w.pack, w.profile
	rest, ok := strings.CutPrefix(c.Request.Path, "/v1/metering-points/")
	if !ok || c.Want.Readings == nil {
		return Answer{}, false
	}
	ean, _, _ := strings.Cut(rest, "/")
	var point *Point
	for i := range pack.Points {
		if pack.Points[i].EAN.String() == ean {
			point = &pack.Points[i]
		}
	}
	q, err := url.ParseQuery(c.Request.Query)
	if err != nil {
		t.Fatal(err)
	}
	r := authz.Request{EAN: point.EAN, Days: meter.DayRange{From: day(t, q.Get("from")), To: day(t, q.Get("to"))}}
	if r.Purpose, err = meter.ParsePurpose(q.Get("purpose")); err != nil {
		t.Fatal(err)
	}
	if s := q.Get("resolution"); s != "" {
		if r.Resolution, err = meter.ParseResolution(s); err != nil {
			t.Fatal(err)
		}
	}
	if s := q.Get("kind"); s != "" {
		if r.Kind, err = meter.ParseKind(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range prof.Fields(point.Commodity) {
		if q.Get("fields") == "" && (q.Get("class") == "" || q.Get("class") == f.Class.String()) {
			r.Fields = append(r.Fields, f.Code)
		}
	}
	if s := q.Get("fields"); s != "" {
		for name := range strings.SplitSeq(s, ",") {
			f, ok := prof.Field(name)
			if !ok {
				t.Fatal(name)
			}
			r.Fields = append(r.Fields, f.Code)
		}
	}
	grant, withheld, err := authz.Decide(asSupplier(pack.Suppliers[c.Supplier].GLN), r, w.files[ean], prof, now)
	if err != nil {
		t.Fatalf("%s: %v", c.Name, err)
	}
	name := func(code meter.FieldCode) string { f, _ := prof.FieldByCode(code); return f.Name }
	got := &Readings{EAN: ean, Purpose: q.Get("purpose"), From: q.Get("from"), To: q.Get("to"), TimeZone: prof.Location().String()}
	stored := w.blocks[ean]
	if q.Get("asOf") != "" {
		stored = nil // before anything came in
	}
	for _, it := range grant.Items() {
		series, short := meter.Assemble(it.Spec, stored[it.Spec.Field.Name], prof.Location())
		for _, s := range short {
			withheld = append(withheld, authz.Withheld{Field: it.Spec.Field.Code, Days: s.Days, Reason: s.Reason})
		}
		for _, s := range series {
			out := Series{Field: name(s.Field), OBIS: it.Spec.Field.OBIS, Unit: it.Spec.Field.Unit, ReadingKind: s.Kind.String(), Resolution: s.Resolution.String(),
				LegalBasis: it.Basis.String(), Rule: it.Rule, ExpectedCount: s.Expected, DeliveredCount: s.Delivered}
			for _, d := range s.Days {
				day := Day{Start: d.Day.Start(prof.Location()).Format(time.RFC3339)}
				for i, v := range d.Values {
					if v == meter.Null {
						day.Values = append(day.Values, nil)
						continue
					}
					text := string(meter.AppendValue(nil, v, it.Spec.Field.Precision))
					day.Values = append(day.Values, &text)
					if d.Quality != nil && d.Quality[i] == meter.Estimated {
						day.estimated(i)
					}
				}
				out.Days = append(out.Days, day)
			}
			got.Series = append(got.Series, out)
		}
	}
	for _, w := range withheld {
		got.Withheld = append(got.Withheld, Withheld{name(w.Field), w.Days.From.String(), w.Days.To.String(), w.Reason.String()})
	}
	// The gateway's part.
	if point.Erased.From != 0 {
		got.Withheld = append(got.Withheld, c.Want.Readings.Withheld...)
	}
	if c.Damage {
		got.Withheld = append(got.Withheld, c.Want.Readings.Withheld...)
	}
	return Answer{Status: http.StatusOK, Readings: got, Headers: c.Want.Headers}, true
}

// singly are the cases, a query as a request for each of its metering points.
func singly(t *testing.T, p *Pack) []Case {
	t.Helper()
	out := slices.Clone(p.Cases)
	for _, c := range p.Cases {
		if c.Request.Path != "/v1/readings/query" || c.Want.Status != http.StatusOK {
			continue
		}
		var a asked
		if err := json.Unmarshal([]byte(c.Request.Body), &a); err != nil {
			t.Fatal(err)
		}
		for _, x := range c.Want.Points {
			if x.Problem != "" {
				continue
			}
			v := with("from", a.From, "to", a.To, "purpose", a.Purpose, "fields", strings.Join(a.Fields, ","))
			out = append(out, Case{Name: c.Name + " of " + x.EAN, Supplier: c.Supplier, Request: Request{Method: http.MethodGet, Path: pathOf(x.EAN, "readings"), Query: v.Encode(), Token: Own},
				Want: Answer{Status: http.StatusOK, Readings: &Readings{EAN: x.EAN, Purpose: a.Purpose, From: a.From, To: a.To, TimeZone: "Europe/Amsterdam", Series: x.Series, Withheld: x.Withheld}}})
		}
	}
	return out
}

// telling days are those around which slips are made: the ends of months, and the
// changes of the clocks.
func telling(d meter.Day) bool {
	_, m, dd := d.Date()
	return dd == 1 || dd == 2 || dd == 31 || (m == time.March || m == time.October) && dd >= 26 || m == time.February && dd >= 28
}

// The cases agree with what answers requests on whatever day the pack is
// seeded, and for as long as it holds: two ways to the same values.
func TestEveryDay(t *testing.T) {
	t.Parallel()
	prof := profile(t)
	step := meter.Day(29)
	if raceEnabled {
		step = 211
	}
	for seeded := day(t, "2027-10-01"); seeded <= day(t, "2028-12-31"); seeded++ {
		if seeded%step != 0 && (raceEnabled || !telling(seeded)) {
			continue
		}
		for _, later := range []meter.Day{0, MaxAge}[seeded%2:][:1] {
			at := prof.Location()
			y, m, d := (seeded).Date()
			seededAt := time.Date(y, m, d, 14, 30, 0, 0, at)
			now := seededAt.AddDate(0, 0, int(later)).Add(time.Minute)
			pack := seededOn(t, prof, seeded, seeded+later)
			w := newWorld(t, pack, prof, seededAt)
			for _, c := range singly(t, pack) {
				got, ok := w.answered(t, c, now)
				if !ok {
					continue
				}
				if diff := differences(got, c.Want); len(diff) > 0 {
					t.Fatalf("seeded on %s, %d days later: %s:\n%s", seeded, later, c.Name, strings.Join(diff[:min(12, len(diff))], "\n"))
				}
			}
		}
	}
}

func TestAge(t *testing.T) {
	t.Parallel()
	m := marketOf(profile(t))
	for age, ok := range map[meter.Day]bool{-1: false, 0: true, MaxAge: true, MaxAge + 1: false} {
		if _, err := New(m, 20_000, 20_000+age); (err == nil) != ok || err != nil && !errors.Is(err, ErrAge) {
			t.Errorf("%d days after it was seeded: %v", age, err)
		}
	}
}

// The numbers are of the range that GS1 keeps for demonstrations (prefix 952,
// General Specifications, 1.4.2), and each is one's own.
func TestNumbers(t *testing.T) {
	t.Parallel()
	pack := seededOn(t, profile(t), day(t, "2026-11-23"), day(t, "2026-11-23"))
	seen := map[string]bool{}
	add := func(number string) {
		if !strings.HasPrefix(number, "952") || seen[number] {
			t.Errorf("%s is no test's own number", number)
		}
		seen[number] = true
	}
	for _, s := range pack.Suppliers {
		add(s.GLN.String())
	}
	for _, p := range pack.Points {
		add(p.EAN.String())
	}
	add(testEAN(unknownNumber).String())
	if !seen["952000000000001016"] || !seen["9520000000011"] {
		t.Errorf("the numbers changed: %v", seen)
	}
	names := map[string]bool{}
	for _, c := range pack.Cases {
		if names[c.Name] || c.Name == "" || c.Says == "" || strings.HasSuffix(c.Says, ".") {
			t.Errorf("the case %q is nameless, or says nothing, or is there twice", c.Name)
		}
		names[c.Name] = true
	}
	used := map[string]bool{}
	for _, c := range pack.Cases {
		for _, p := range pack.Points {
			if strings.Contains(c.Request.Path, p.EAN.String()) {
				used[p.Name] = true
			}
		}
	}
	for _, p := range pack.Points {
		if !used[p.Name] {
			t.Errorf("no case is about the metering point %s", p.Name)
		}
	}
}

// Every reason is to be seen in a case. Who adds one to package meter adds a
// case, or says here why no supplier can be shown it.
func TestEveryReason(t *testing.T) {
	t.Parallel()
	pack := seededOn(t, profile(t), day(t, "2026-11-23"), day(t, "2026-11-23"))
	notShown := map[meter.Reason]string{}
	shown := pack.Reasons()
	known := 0
	for r := meter.Reason(1); r != 0; r++ {
		if strings.HasPrefix(r.String(), "Reason(") {
			continue // no such reason
		}
		known++
		why, exempt := notShown[r]
		switch has := slices.Contains(shown, r.String()); {
		case has && exempt:
			t.Errorf("%s is shown, although %s", r, why)
		case !has && !exempt:
			t.Errorf("%s is in no case", r)
		}
	}
	if known < 16 {
		t.Errorf("only %d reasons found", known)
	}
}

// Every problem of the contract that a supplier can bring about is in a case.
func TestEveryProblem(t *testing.T) {
	t.Parallel()
	pack := seededOn(t, profile(t), day(t, "2026-11-23"), day(t, "2026-11-23"))
	const (
		fault   = "a fault of the installation, which a supplier cannot bring about"
		changes = "it needs a change to come about, and the cases change nothing, so that they can be run again and again"
		staff   = "of what is for the grid operator's employees"
		load    = "a matter of how much is asked at once, which a test installation must not be put to by everybody"
	)
	notShown := map[string]string{
		"consent-answered": staff, "rate-limited": load, "overloaded": load, "evidence-changed": changes, "consent-lapsed": "a request lapses after a month",
		"too-many-consents": changes, "conflict": changes, "idempotency-key-reused": changes, "sealing-unavailable": fault,
		"internal-error": fault, "evidence-invalid": fault, "issuer-unavailable": fault, "database-unavailable": fault,
		"decryption-unavailable": fault, "record-not-written": fault, "deadline-exceeded": fault,
		"supplier-not-found": staff, "proof-not-found": staff,
	}
	doc, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	shown := pack.Problems()
	slugs := doc.Components.Schemas["Problem"].Value.Properties["type"].Value.Enum
	for _, v := range slugs {
		slug := strings.TrimPrefix(v.(string), "urn:kluis:problem:")
		why, exempt := notShown[slug]
		switch has := slices.Contains(shown, slug); {
		case has && exempt:
			t.Errorf("%s is shown, although it is %s", slug, why)
		case !has && !exempt:
			t.Errorf("%s is in no case", slug)
		}
	}
	if len(slugs) < 14 {
		t.Errorf("only %d problems found", len(slugs))
	}
}

// The cases are of the contract: what they send is allowed, but where a problem
// is wanted, and what they want is what the contract lets be answered.
func TestCasesFollowTheContract(t *testing.T) {
	t.Parallel()
	pack := seededOn(t, profile(t), day(t, "2026-11-23"), day(t, "2026-11-23"))
	for _, c := range pack.Cases {
		r := c.Want.Readings
		if r == nil {
			continue
		}
		// Every field and day asked for is given or withheld, some both: what
		// is lost is null, with its reason.
		asked := int(day(t, r.To) - day(t, r.From))
		given := map[string]int{}
		for _, s := range r.Series {
			for i, d := range s.Days {
				closing := s.ReadingKind == "REGISTER" && fieldNamed(s.Field).register && s.LegalBasis != "SWITCH" && s.LegalBasis != "MOVE" &&
					(i+1 == len(s.Days) || s.Resolution == "P1D" && s.Days[i+1].Start[:10] != (day(t, d.Start[:10])+1).String())
				switch {
				case closing:
				case s.Resolution == "P1M":
					given[s.Field] += int(nextMonth(day(t, d.Start[:10])) - day(t, d.Start[:10]))
				default:
					given[s.Field]++
				}
			}
		}
		for _, w := range r.Withheld {
			if w.Reason != "DAMAGED" && w.Reason != "ERASED" {
				given[w.Field] += int(day(t, w.To) - day(t, w.From))
			}
		}
		for field, n := range given {
			if n != asked {
				t.Errorf("%s: of %s %d days of %d are in the answer wanted", c.Name, field, n, asked)
			}
		}
	}
}

// The changes of the clocks are found where they were.
func TestClocks(t *testing.T) {
	t.Parallel()
	m := marketOf(profile(t))
	for on, want := range map[string][2]string{
		"2026-11-23": {"2026-03-29", "2026-10-25"},
		"2026-10-27": {"2026-03-29", "2026-10-25"},
		"2026-10-26": {"2026-03-29", "2025-10-26"}, // the day after it is not over
		"2026-03-31": {"2026-03-29", "2025-10-26"},
		"2026-03-30": {"2025-03-30", "2025-10-26"},
	} {
		c := newCalendar(m, day(t, on), day(t, on))
		if c.spring() != day(t, want[0]) || c.autumn() != day(t, want[1]) {
			t.Errorf("on %s: %s and %s, want %v", on, c.spring(), c.autumn(), want)
		}
	}
}

// Values as a person would read them off the page of docs/CONFORMANCE.md.
func TestValues(t *testing.T) {
	t.Parallel()
	pack := seededOn(t, profile(t), day(t, "2026-11-23"), day(t, "2026-11-23"))
	series := func(name string, i int) Series {
		for _, c := range pack.Cases {
			if c.Name == name {
				return c.Want.Readings.Series[i]
			}
		}
		t.Fatal(name)
		return Series{}
	}
	text := func(v *string) string {
		if v == nil {
			return "null"
		}
		return *v
	}
	spring := series("spring-quarters", 0)
	if d := spring.Days[1]; d.Start != "2026-03-29T00:00:00+01:00" || len(d.Values) != 92 || text(d.Values[8]) != "6032.908" {
		t.Errorf("%s, %d values, %s", d.Start, len(d.Values), text(d.Values[8]))
	}
	if d := spring.Days[2]; d.Start != "2026-03-30T00:00:00+02:00" || len(d.Values) != 96 {
		t.Errorf("%s, %d values", d.Start, len(d.Values))
	}
	autumn := series("autumn-quarters", 0)
	if d := autumn.Days[1]; d.Start != "2026-10-25T00:00:00+02:00" || len(d.Values) != 100 || text(d.Values[99]) != "6102.599" {
		t.Errorf("%s, %d values, %s", d.Start, len(d.Values), text(d.Values[99]))
	}
	// 1 October 2026 is day 2465 since 1 January 2020.
	if v := text(series("daily-reads", 0).Days[0].Values[0]); v != "26255.367" {
		t.Errorf("import_low at the start of 1 October is %s", v)
	}
	if v := text(series("daily-consumption", 0).Days[1].Values[0]); v != "11.002" {
		t.Errorf("import_low of 2 October is %s", v)
	}
	// 31 days of 11.0xx: 31 times 11 and 1 to 31 thousandths.
	if v := text(series("daily-as-a-month", 0).Days[0].Values[0]); v != "341.496" {
		t.Errorf("import_low of October is %s", v)
	}
	// Four quarter-hours, the estimated ones among them.
	hours := series("gaps-in-hours", 0)
	if d := hours.Days[1]; text(d.Values[2]) != "null" || text(d.Values[10]) != "24400.966" || len(d.Quality) != 1 || d.Quality[0] != (Quality{10, 1, "ESTIMATED"}) {
		t.Errorf("%s %s %v", text(d.Values[2]), text(d.Values[10]), d.Quality)
	}
	if hours.ExpectedCount != 96 || hours.DeliveredCount != 96-24-1 {
		t.Errorf("%d of %d", hours.DeliveredCount, hours.ExpectedCount)
	}
}
