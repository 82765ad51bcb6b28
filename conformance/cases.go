package conformance

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/meter"
)

// Case is one request, and all of what must be answered.
type Case struct {
	Name     string
	Says     string // what is to be learned from it, one sentence without its full stop
	Supplier int    // index of Pack.Suppliers
	Request  Request
	Want     Answer

	// Alike names the cases that must be answered with the same bytes, but for
	// interactionId: what one must not be told from the other.
	Alike string
	// Damage says that the case needs the block that Point.Damaged names to be
	// damaged. Where nobody did that, the case is left out.
	Damage bool
}

// Request is an HTTP request.
type Request struct {
	Method string `json:"method"`
	Path   string `json:"path"`  // of the gateway
	Query  string `json:"query"` // encoded; "" for none
	Body   string `json:"body,omitempty"`
	Token  Token  `json:"token"`

	// Headers of requests that would change something.
	ContentType    string `json:"contentType,omitempty"`
	IdempotencyKey string `json:"idempotencyKey,omitempty"`
	IfMatch        string `json:"ifMatch,omitempty"` // Current: the ETag of the consent, got before

	// Headers of requests for readings.
	Accept      string `json:"accept,omitempty"`
	IfNoneMatch string `json:"ifNoneMatch,omitempty"` // Current: the ETag of the same request, made before

	// Break is after how many metering points the connection is broken, and the
	// stream gone on with from the last cursor; 0: never.
	Break int `json:"break,omitempty"`
}

// Current is the ETag that there is now.
const Current = "current"

// The media types.
const (
	mediaTable  = "text/csv"
	mediaFeed   = "application/atom+xml"
	mediaStream = "application/x-ndjson"
)

// Token says with which access token a request is made.
type Token string

// The tokens.
const (
	Own     Token = "own"     // the supplier's, bound to its certificate
	None    Token = "none"    // no Authorization header
	Garbage Token = "garbage" // something else in the header
	Foreign Token = "foreign" // another test supplier's, with the own certificate
)

// Target is path and query.
func (r Request) Target() string {
	if r.Query == "" {
		return r.Path
	}
	return r.Path + "?" + r.Query
}

// question is a request for readings or for a dry run, with what the answer
// repeats of it.
type question struct {
	point   *Point
	days    meter.DayRange
	purpose string
	more    url.Values
}

func (q question) query() string {
	v := url.Values{"from": {q.days.From.String()}, "to": {q.days.To.String()}, "purpose": {q.purpose}}
	for name, values := range q.more {
		v[name] = values
	}
	return strings.ReplaceAll(v.Encode(), "%2C", ",")
}

// with adds parameters: with("fields", "gas").
func with(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return v
}

func pathOf(ean, what string) string {
	return "/v1/metering-points/" + url.PathEscape(ean) + "/" + what
}

// run is days withheld for a reason.
func run(field string, d meter.DayRange, reason meter.Reason) Withheld {
	return Withheld{field, d.From.String(), d.To.String(), reason.String()}
}

const (
	billing = "BILLING"
	energy  = "ENERGY_MANAGEMENT"
)

// numbers of metering points that nobody has
const unknownNumber = 9999

// tables builds the cases.
type tables struct {
	calendar
	pack *Pack
	all  []Case
}

func (t *tables) add(c Case) {
	if c.Request.Method == "" {
		c.Request.Method = http.MethodGet
	}
	if c.Request.Token == "" {
		c.Request.Token = Own
	}
	t.all = append(t.all, c)
}

// readings adds a case about readings that are given or withheld.
func (t *tables) readings(name string, supplier int, q question, says string, series []Series, withheld ...Withheld) *Case {
	t.add(Case{
		Name: name, Says: says, Supplier: supplier, Request: Request{Path: pathOf(q.point.EAN.String(), "readings"), Query: q.query()},
		Want: Answer{Status: http.StatusOK, Readings: &Readings{
			EAN: q.point.EAN.String(), Purpose: q.purpose, From: q.days.From.String(), To: q.days.To.String(), TimeZone: t.Location.String(),
			Series: series, Withheld: withheld,
		}},
	})
	return &t.all[len(t.all)-1]
}

// access adds a case about a dry run.
func (t *tables) access(name string, supplier int, q question, says string, granted []AccessGranted, withheld []Withheld, stored []AccessStored) {
	a := &Access{EAN: q.point.EAN.String(), From: q.days.From.String(), To: q.days.To.String(), TimeZone: t.Location.String(), Granted: granted, Stored: stored}
	for i := range a.Granted {
		a.Granted[i].Purpose = q.purpose
	}
	for _, w := range withheld {
		a.Withheld = append(a.Withheld, AccessWithheld{q.purpose, w})
	}
	t.add(Case{
		Name: name, Says: says, Supplier: supplier, Request: Request{Path: pathOf(q.point.EAN.String(), "access"), Query: q.query()},
		Want: Answer{Status: http.StatusOK, Access: a},
	})
}

// problem adds a case that is not answered.
func (t *tables) problem(name string, supplier int, r Request, says string, status int, slug string, pointers ...string) *Case {
	t.add(Case{Name: name, Says: says, Supplier: supplier, Request: r, Want: Answer{Status: status, Problem: slug, Pointers: pointers}})
	return &t.all[len(t.all)-1]
}

// of is a series of a metering point's field to be worked out.
func (t *tables) of(p *Point, g ground, field, kind, resolution string, runs ...meter.DayRange) Series {
	return expectation{t.calendar, p, g, field, kind, resolution}.series(runs...)
}

// each makes one series or run for each of several fields.
func each[T any](make func(field string) T, fields ...string) []T {
	out := []T{}
	for _, f := range fields {
		out = append(out, make(f))
	}
	return out
}

// cases is the table of requests and answers.
func cases(c calendar, p *Pack) []Case {
	t := &tables{calendar: c, pack: p}
	t.billing()
	t.daily()
	t.clocks()
	t.granularity()
	t.gaps()
	t.switches()
	t.moves()
	t.customers()
	t.meters()
	t.timeLimits()
	t.lost()
	t.dryRuns()
	t.consents()
	t.problems()
	t.formats()
	t.queries()
	return t.all
}

func (t *tables) billing() {
	plain := t.pack.point("plain")
	before, month, end := t.monthStart(-2), t.monthStart(-1), t.monthStart(0)
	low := with("fields", "import_low,import_normal")
	q := question{plain, days(before, end), billing, low}

	t.readings("billing-months", north, q, "Reads at month boundaries, the closing read included, for the periodic statement",
		each(func(f string) Series { return t.of(plain, periodic, f, "REGISTER", "P1M", q.days) }, "import_low", "import_normal"))

	q.more = with("fields", "import_low", "kind", "CONSUMPTION")
	t.readings("billing-consumption", north, q, "The consumption of each month: the difference of two reads",
		[]Series{t.of(plain, periodic, "import_low", "CONSUMPTION", "P1M", q.days)})

	q.more = with("fields", "import_low", "resolution", "P1D")
	t.readings("billing-days", north, q, "Days are finer than a statement may have", []Series{},
		run("import_low", q.days, meter.NotGrantedAtThisGranularity))

	q = question{plain, days(month-3, end), billing, with("fields", "import_low")}
	t.readings("billing-part-of-a-month", north, q, "Part of a month is not given; the whole month beside it is",
		[]Series{t.of(plain, periodic, "import_low", "REGISTER", "P1M", days(month, end))},
		run("import_low", days(month-3, month), meter.PartialPeriod))

	q = question{plain, days(month, end), billing, with("class", "intervals")}
	t.readings("billing-intervals", north, q, "No rule gives intervals for statements", []Series{},
		each(func(f string) Withheld { return run(f, q.days, meter.NotCoveredByRule) }, "import_intervals", "export_intervals")...)
}

func (t *tables) daily() {
	plain := t.pack.point("plain")
	month, end := t.monthStart(-1), t.monthStart(0)
	three := days(month, month+3)

	q := question{plain, three, energy, with("fields", "import_low,import_normal")}
	t.readings("daily-reads", north, q, "A read for the start of each day and, last, the closing read",
		each(func(f string) Series { return t.of(plain, daily, f, "REGISTER", "P1D", three) }, "import_low", "import_normal"))

	q.more = with("fields", "import_low", "kind", "CONSUMPTION")
	t.readings("daily-consumption", north, q, "The consumption of each day",
		[]Series{t.of(plain, daily, "import_low", "CONSUMPTION", "P1D", three)})

	q = question{plain, days(month, end), energy, with("fields", "import_low", "resolution", "P1M", "kind", "CONSUMPTION")}
	t.readings("daily-as-a-month", north, q, "Coarser than granted is computed, exactly",
		[]Series{t.of(plain, daily, "import_low", "CONSUMPTION", "P1M", q.days)})

	q = question{plain, days(month, month+1), energy, nil}
	t.readings("everything-of-a-day", north, q, "No fields named: all of electricity. A one-way meter has no export; intervals need consent",
		each(func(f string) Series { return t.of(plain, daily, f, "REGISTER", "P1D", q.days) }, "import_low", "import_normal", "export_low", "export_normal"),
		each(func(f string) Withheld { return run(f, q.days, meter.NoConsent) }, "import_intervals", "export_intervals")...)

	q = question{plain, three, energy, with("fields", "gas,import_low")}
	t.readings("gas-of-an-electricity-meter", north, q, "A field that the metering point cannot have",
		[]Series{t.of(plain, daily, "import_low", "REGISTER", "P1D", three)}, run("gas", three, meter.NotCoveredByRule))

	q = question{plain, three, "CUSTOMER_SERVICE", with("fields", "import_low")}
	t.readings("a-purpose-of-others", north, q, "A purpose for which the market gives suppliers nothing", []Series{},
		run("import_low", three, meter.PurposeNotAvailable))
}

func (t *tables) clocks() {
	quarters, gas := t.pack.point("quarters"), t.pack.point("gas")
	spring, autumn := t.spring(), t.autumn()
	for _, d := range []struct {
		name, says string
		day        meter.Day
		q, h       int
	}{{"spring", "the clocks go forward", spring, 92, 23}, {"autumn", "the clocks go back", autumn, 100, 25}} {
		around := days(d.day-1, d.day+2)
		q := question{quarters, around, energy, with("fields", "import_intervals")}
		t.readings(d.name+"-quarters", north, q, fmt.Sprintf("The day on which %s has %d quarter-hours, between two days of 96; the offset changes after it", d.says, d.q),
			[]Series{t.of(quarters, consent, "import_intervals", "CONSUMPTION", "PT15M", around)})

		q.more = with("fields", "import_intervals", "resolution", "PT1H")
		t.readings(d.name+"-hours", north, q, fmt.Sprintf("The days around it in hours: %d on the day itself", d.h),
			[]Series{t.of(quarters, consent, "import_intervals", "CONSUMPTION", "PT1H", around)})

		q.more = with("fields", "import_intervals", "resolution", "P1D")
		t.readings(d.name+"-days", north, q, fmt.Sprintf("Such a day as one value: the sum of its %d quarter-hours", d.q),
			[]Series{t.of(quarters, consent, "import_intervals", "CONSUMPTION", "P1D", around)})

		q.more = with("fields", "import_low")
		t.readings(d.name+"-reads", north, q, fmt.Sprintf("Register reads around the day on which %s: at local midnight, with the offset of then", d.says),
			[]Series{t.of(quarters, daily, "import_low", "REGISTER", "P1D", around)})

		q = question{gas, around, energy, with("fields", "gas_intervals")}
		t.readings(d.name+"-gas", north, q, fmt.Sprintf("Gas on the day on which %s: %d hours", d.says, d.h),
			[]Series{t.of(gas, consent, "gas_intervals", "CONSUMPTION", "PT1H", around)})
	}
}

func (t *tables) granularity() {
	month, end := t.monthStart(-1), t.monthStart(0)
	quarters, hours, stored := t.pack.point("quarters"), t.pack.point("hours-granted"), t.pack.point("hours-stored")
	three := days(month, month+3)
	named := with("fields", "import_intervals")
	at := func(r string) url.Values { return with("fields", "import_intervals", "resolution", r) }
	interval := func(p *Point, r string, d meter.DayRange) Series {
		return t.of(p, consent, "import_intervals", "CONSUMPTION", r, d)
	}

	t.readings("month-of-quarters", north, question{quarters, days(month, end), energy, named}, "A month of quarter-hours, with the customer's consent",
		[]Series{interval(quarters, "PT15M", days(month, end))})
	t.readings("month-as-one-value", north, question{quarters, days(month, end), energy, at("P1M")}, "A month of quarter-hours as one value",
		[]Series{interval(quarters, "P1M", days(month, end))})

	t.readings("hours-granted", north, question{hours, three, energy, named}, "No resolution said: hours, which is what the consent is for",
		[]Series{interval(hours, "PT1H", three)})
	t.readings("quarters-not-granted", north, question{hours, three, energy, at("PT15M")}, "Quarter-hours are finer than the consent",
		[]Series{}, run("import_intervals", three, meter.NotGrantedAtThisGranularity))

	four := days(month, month+4)
	t.readings("as-stored", north, question{stored, four, energy, named}, "No resolution said: each day as it is stored, so two series",
		[]Series{interval(stored, "PT15M", days(month, month+2)), interval(stored, "PT1H", days(month+2, month+4))})
	t.readings("finer-than-stored", north, question{stored, four, energy, at("PT15M")}, "Quarter-hours of days that are stored in hours",
		[]Series{interval(stored, "PT15M", days(month, month+2))}, run("import_intervals", days(month+2, month+4), meter.FinerThanStored))
	t.readings("all-in-hours", north, question{stored, four, energy, at("PT1H")}, "Hours of all days, quarter-hours added up",
		[]Series{interval(stored, "PT1H", four)})
}

func (t *tables) gaps() {
	month, end := t.monthStart(-1), t.monthStart(0)
	gaps := t.pack.point("gaps")
	four := days(month, month+4)
	named := with("fields", "import_intervals")
	at := func(r string) url.Values { return with("fields", "import_intervals", "resolution", r) }

	t.readings("gaps", north, question{gaps, four, energy, named}, "What was not measured is null, also a whole day; an estimate says so; deliveredCount counts the rest",
		[]Series{t.of(gaps, consent, "import_intervals", "CONSUMPTION", "PT15M", four)})
	t.readings("gaps-in-hours", north, question{gaps, four, energy, at("PT1H")}, "An hour of which a part is not known is null; one with an estimate is an estimate",
		[]Series{t.of(gaps, consent, "import_intervals", "CONSUMPTION", "PT1H", four)})
	t.readings("gaps-in-days", north, question{gaps, four, energy, at("P1D")}, "A day of which a part is not known is null",
		[]Series{t.of(gaps, consent, "import_intervals", "CONSUMPTION", "P1D", four)})
	t.readings("gaps-as-registers", north, question{gaps, days(month, month+2), energy, with("fields", "import_intervals", "kind", "REGISTER")},
		"The register at the start of each quarter-hour is not known after a gap in the day",
		[]Series{t.of(gaps, consent, "import_intervals", "REGISTER", "PT15M", days(month, month+2))})

	five := days(month, month+5)
	t.readings("a-missing-read", north, question{gaps, five, energy, with("fields", "import_low")}, "The read that is missing is null",
		[]Series{t.of(gaps, daily, "import_low", "REGISTER", "P1D", five)})
	t.readings("around-a-missing-read", north, question{gaps, five, energy, with("fields", "import_low", "kind", "CONSUMPTION")}, "Around a missing read, two days have no consumption",
		[]Series{t.of(gaps, daily, "import_low", "CONSUMPTION", "P1D", five)})
	t.readings("the-month-over-a-missing-read", north, question{gaps, days(month, end), billing, with("fields", "import_low", "kind", "CONSUMPTION")}, "The month has its consumption, whatever is missing within",
		[]Series{t.of(gaps, periodic, "import_low", "CONSUMPTION", "P1M", days(month, end))})

	silent := t.pack.point("silent")
	t.readings("nothing-stored", north, question{silent, days(month, month+2), energy, with("fields", "import_low")}, "Granted, and nothing is there: nulls, and no reason",
		[]Series{t.of(silent, daily, "import_low", "REGISTER", "P1D", days(month, month+2))})
}

func (t *tables) switches() {
	p := t.pack.point("switch")
	month, end := t.monthStart(-1), t.monthStart(0)
	turn := month + 9
	around := days(turn-2, turn+2)
	low := with("fields", "import_low")
	reads := func(g ground, d meter.DayRange) []Series {
		return []Series{t.of(p, g, "import_low", "REGISTER", "P1D", d)}
	}

	t.readings("switch-old-supplier", north, question{p, around, energy, low}, "The old supplier's days end with the closing read on the day of the switch",
		reads(daily, days(turn-2, turn)), run("import_low", days(turn, turn+2), meter.NoSupply))
	t.readings("switch-new-supplier", south, question{p, around, energy, low}, "The new supplier's begin with the same read",
		reads(daily, days(turn, turn+2)), run("import_low", days(turn-2, turn), meter.NoSupply))

	one := days(turn-1, turn+2)
	q := question{p, one, "SWITCH", with("fields", "import_low,import_normal")}
	says := "The read at the switch, by itself, and nothing of the days around it, to the "
	var withheld []Withheld
	for _, f := range []string{"import_low", "import_normal"} {
		withheld = append(withheld, run(f, days(turn-1, turn), meter.NotCoveredByRule), run(f, days(turn+1, turn+2), meter.NoSupply))
	}
	switched := each(func(f string) Series { return t.of(p, atSwitch, f, "REGISTER", "P1D", days(turn, turn+1)) }, "import_low", "import_normal")
	t.readings("switch-read-old-supplier", north, q, says+"old supplier", switched, withheld...)
	withheld = nil
	for _, f := range []string{"import_low", "import_normal"} {
		withheld = append(withheld, run(f, days(turn-1, turn), meter.NoSupply), run(f, days(turn+1, turn+2), meter.NotCoveredByRule))
	}
	t.readings("switch-read-new-supplier", south, q, says+"new one", switched, withheld...)

	q = question{p, days(turn, turn+1), "SWITCH", with("fields", "import_low", "kind", "CONSUMPTION")}
	t.readings("switch-no-consumption", south, q, "A single read has no consumption", []Series{}, run("import_low", q.days, meter.KindNotAvailable))

	q = question{p, days(month, end), billing, low}
	t.readings("switch-billing-old-supplier", north, q, "A month in which the supply ends is not to be had as one", []Series{},
		run("import_low", days(month, turn), meter.PartialPeriod), run("import_low", days(turn, end), meter.NoSupply))
	t.readings("switch-billing-new-supplier", south, q, "A month in which the supply begins is not to be had as one", []Series{},
		run("import_low", days(month, turn), meter.NoSupply), run("import_low", days(turn, end), meter.PartialPeriod))
}

func (t *tables) moves() {
	month := t.monthStart(-1)
	turn := month + 9
	around := days(turn-2, turn+2)
	move, came, both := t.pack.point("move"), t.pack.point("moved-in"), t.pack.point("moved-and-switched")
	quarters := with("fields", "import_intervals")
	low := with("fields", "import_low")

	t.readings("move-ends-consent", north, question{move, around, energy, quarters}, "The consent of a customer who moved out counts no more, for no day", []Series{},
		run("import_intervals", around, meter.ConsentExpired))
	t.readings("move-keeps-supply", north, question{move, around, energy, low}, "Register reads rest on the supply, which went on",
		[]Series{t.of(move, daily, "import_low", "REGISTER", "P1D", around)})
	t.readings("move-read", north, question{move, days(turn-1, turn+2), "MOVE", low}, "The read at the move, by itself",
		[]Series{t.of(move, atMove, "import_low", "REGISTER", "P1D", days(turn, turn+1))},
		run("import_low", days(turn-1, turn), meter.NotCoveredByRule), run("import_low", days(turn+1, turn+2), meter.NotCoveredByRule))

	t.readings("moved-in", north, question{came, around, energy, quarters}, "The consent of the customer who came gives nothing of the time before",
		[]Series{t.of(came, consent, "import_intervals", "CONSUMPTION", "PT15M", days(turn, turn+2))},
		run("import_intervals", days(turn-2, turn), meter.NotOccupied))

	q := question{both, days(turn, turn+1), "MOVE", low}
	read := []Series{t.of(both, atMove, "import_low", "REGISTER", "P1D", q.days)}
	t.readings("move-read-of-who-left", north, q, "The read at the move, to the supplier of who left", read)
	t.readings("move-read-of-who-came", south, q, "The read at the move, to the supplier of who came", read)
	t.readings("moved-and-switched", south, question{both, around, energy, low}, "The new customer's supplier is given nothing of the time before",
		[]Series{t.of(both, daily, "import_low", "REGISTER", "P1D", days(turn, turn+2))}, run("import_low", days(turn-2, turn), meter.NoSupply))
}

func (t *tables) customers() {
	month, end := t.monthStart(-1), t.monthStart(0)
	turn := month + 9
	low := with("fields", "import_low")
	quarters := with("fields", "import_intervals")
	two := days(month, month+2)

	vacant := t.pack.point("vacant")
	t.readings("vacant", north, question{vacant, days(month+3, month+14), energy, low}, "Days on which nobody lived there are withheld; a run on each side, with a closing read each",
		[]Series{t.of(vacant, daily, "import_low", "REGISTER", "P1D", days(month+3, month+5), days(month+12, month+14))},
		run("import_low", days(month+5, month+12), meter.NotOccupied))
	t.readings("vacant-billing", north, question{vacant, days(month, end), billing, low}, "A month in which nobody lived there for a time is not to be had as one", []Series{},
		run("import_low", days(month, month+5), meter.PartialPeriod), run("import_low", days(month+5, month+12), meter.NotOccupied),
		run("import_low", days(month+12, end), meter.PartialPeriod))

	out := t.pack.point("opted-out")
	off := month + 5
	t.readings("opted-out-reads", north, question{out, days(off-2, off+2), energy, low}, "No register reads from the day on which remote reading was switched off",
		[]Series{t.of(out, daily, "import_low", "REGISTER", "P1D", days(off-2, off))}, run("import_low", days(off, off+2), meter.OptedOut))
	t.readings("opted-out-intervals", north, question{out, days(off-2, off+2), energy, quarters}, "No intervals from the day on which remote reading was switched off, for all the consent",
		[]Series{t.of(out, consent, "import_intervals", "CONSUMPTION", "PT15M", days(off-2, off))}, run("import_intervals", days(off, off+2), meter.OptedOut))
	q := question{out, days(turn, turn+1), "SWITCH", low}
	read := []Series{t.of(out, atSwitch, "import_low", "REGISTER", "P1D", q.days)}
	t.readings("opted-out-switch-old-supplier", north, q, "The read at a switch is given all the same, to the old supplier", read)
	t.readings("opted-out-switch-new-supplier", south, q, "The read at a switch is given all the same, to the new supplier", read)
	t.readings("opted-out-not-told", south, question{out, days(turn, turn+2), energy, quarters}, "Who lacks consent is not told that the customer opted out", []Series{},
		run("import_intervals", days(turn, turn+2), meter.NoConsent))

	for _, c := range []struct {
		name, says string
		reason     meter.Reason
	}{
		{"consent-revoked", "A consent that was revoked gives nothing, of no day", meter.ConsentRevoked},
		{"consent-expired", "A consent of which the time is over gives nothing either", meter.ConsentExpired},
	} {
		p := t.pack.point(c.name)
		t.readings(c.name, north, question{p, two, energy, quarters}, c.says, []Series{}, run("import_intervals", two, c.reason))
	}
	plain := t.pack.point("plain")
	t.readings("no-consent", north, question{plain, two, energy, quarters}, "Intervals need the customer's consent", []Series{},
		run("import_intervals", two, meter.NoConsent))

	foreign := t.pack.point("foreign")
	t.readings("the-others-customer", south, question{foreign, two, energy, low}, "What the customer's own supplier is given; north is not even told that it exists: see metering-point-of-others",
		[]Series{t.of(foreign, daily, "import_low", "REGISTER", "P1D", two)})
}

func (t *tables) meters() {
	before, month, end := t.monthStart(-2), t.monthStart(-1), t.monthStart(0)
	two := days(month, month+2)

	solar := t.pack.point("two-way")
	t.readings("two-way-registers", north, question{solar, two, energy, with("class", "registers")}, "Import and export in two tariffs: four registers, by class",
		each(func(f string) Series { return t.of(solar, daily, f, "REGISTER", "P1D", two) }, "import_low", "import_normal", "export_low", "export_normal"))
	t.readings("two-way-intervals", north, question{solar, two, energy, with("class", "intervals")}, "Import and export by quarter-hour",
		each(func(f string) Series { return t.of(solar, consent, f, "CONSUMPTION", "PT15M", two) }, "import_intervals", "export_intervals"))

	gas := t.pack.point("gas")
	t.readings("gas-billing", north, question{gas, days(before, end), billing, nil}, "Gas for the statement: one register, in cubic metres",
		[]Series{t.of(gas, periodic, "gas", "REGISTER", "P1M", days(before, end))},
		run("gas_intervals", days(before, end), meter.NotCoveredByRule))
	t.readings("gas-daily", north, question{gas, two, energy, nil}, "Gas by day, and by hour with consent",
		[]Series{t.of(gas, daily, "gas", "REGISTER", "P1D", two), t.of(gas, consent, "gas_intervals", "CONSUMPTION", "PT1H", two)})
	t.readings("gas-quarters", north, question{gas, two, energy, with("fields", "gas_intervals", "resolution", "PT15M")}, "Gas is stored by the hour at the finest", []Series{},
		run("gas_intervals", two, meter.FinerThanStored))
	t.readings("electricity-of-a-gas-meter", north, question{gas, two, energy, with("fields", "import_low")}, "A gas meter has no electricity registers", []Series{},
		run("import_low", two, meter.NotCoveredByRule))

	quarters, bare := t.pack.point("quarters"), t.pack.point("no-register")
	registers := with("fields", "import_intervals", "kind", "REGISTER")
	t.readings("intervals-as-registers", north, question{quarters, two, energy, registers}, "The register at the start of each quarter-hour; no closing read",
		[]Series{t.of(quarters, consent, "import_intervals", "REGISTER", "PT15M", two)})
	t.readings("no-register-beside-intervals", north, question{bare, two, energy, registers}, "Registers of intervals need a register that was stored beside them", []Series{},
		run("import_intervals", two, meter.KindNotAvailable))
	t.readings("intervals-without-a-register", north, question{bare, two, energy, with("fields", "import_intervals")}, "Quarter-hours without a register are given as consumption",
		[]Series{t.of(bare, consent, "import_intervals", "CONSUMPTION", "PT15M", two)})

	corrected := t.pack.point("corrected")
	three := days(month, month+3)
	t.readings("corrected-reads", north, question{corrected, three, energy, with("fields", "import_low")}, "The correction of a read counts, and only it",
		[]Series{t.of(corrected, daily, "import_low", "REGISTER", "P1D", three)})
	t.readings("corrected-quarters", north, question{corrected, three, energy, with("fields", "import_intervals")}, "The correction of quarter-hours counts, and only it",
		[]Series{t.of(corrected, consent, "import_intervals", "CONSUMPTION", "PT15M", three)})
}

// timeLimits keep a day away from the limit, so that a case that is run at
// midnight holds.
func (t *tables) timeLimits() {
	plain := t.pack.point("plain")
	low := with("fields", "import_low")
	soon := days(t.today+1, t.today+3)
	t.readings("tomorrow", north, question{plain, soon, energy, low}, "A day is given when it is over", []Series{}, run("import_low", soon, meter.PeriodInFuture))
	limit := t.retained(t.today)
	old := days(limit-3, limit-1)
	t.readings("too-old", north, question{plain, old, energy, low}, "Readings are kept for the months that /v1/status says", []Series{}, run("import_low", old, meter.PeriodTooOld))
	kept := days(limit+2, limit+4)
	t.readings("just-kept", north, question{plain, kept, energy, low}, "A day within that time is granted; here nothing came in on it",
		[]Series{t.of(plain, daily, "import_low", "REGISTER", "P1D", kept)})
}

func (t *tables) lost() {
	month := t.monthStart(-1)
	turn := month + 9
	low := with("fields", "import_low")

	erased := t.pack.point("erased")
	around := days(turn-2, turn+2)
	t.readings("erased", north, question{erased, around, energy, low}, "The supply covers the days, but nobody can open them any more: null, with the reason; the new customer's are there",
		[]Series{t.of(erased, daily, "import_low", "REGISTER", "P1D", around)}, run("import_low", days(turn-2, turn), meter.Erased))

	damaged := t.pack.point("damaged")
	five := days(month, month+5)
	t.readings("damaged", north, question{damaged, five, energy, low}, "A read that does not open is null, and said",
		[]Series{t.of(damaged, daily, "import_low", "REGISTER", "P1D", five)}, run("import_low", days(damaged.DamagedOn, damaged.DamagedOn+1), meter.Damaged)).Damage = true
	t.readings("damaged-consumption", north, question{damaged, five, energy, with("fields", "import_low", "kind", "CONSUMPTION")}, "What would be computed from a read that does not open is null",
		[]Series{t.of(damaged, daily, "import_low", "CONSUMPTION", "P1D", five)}, run("import_low", days(damaged.DamagedOn, damaged.DamagedOn+1), meter.Damaged)).Damage = true
}

func (t *tables) dryRuns() {
	month := t.monthStart(-1)
	turn := month + 9
	around := days(turn-2, turn+2)
	registers := []string{"import_low", "import_normal", "export_low", "export_normal"}
	quarterly := []string{"import_intervals", "export_intervals"}

	p := t.pack.point("switch")
	var withheld []Withheld
	for _, f := range registers {
		withheld = append(withheld, run(f, days(turn, turn+2), meter.NoSupply))
	}
	for _, f := range quarterly {
		withheld = append(withheld, run(f, days(turn-2, turn), meter.NoConsent), run(f, days(turn, turn+2), meter.NoSupply))
	}
	granted := func(g ground, d meter.DayRange, granularity, kind string, fields ...string) []AccessGranted {
		return each(func(f string) AccessGranted {
			return AccessGranted{Field: f, From: d.From.String(), To: d.To.String(), LegalBasis: g.basis, Rule: g.rule, Granularity: granularity, ReadingKind: kind}
		}, fields...)
	}
	stored := func(d meter.DayRange, resolution string, fields ...string) []AccessStored {
		return each(func(f string) AccessStored { return AccessStored{f, d.From.String(), d.To.String(), resolution} }, fields...)
	}
	t.access("access-switch", north, question{p, around, energy, nil}, "A dry run says the same beforehand, and which of the days are stored, the closing read among them",
		granted(daily, days(turn-2, turn), "P1D", "REGISTER", registers...), withheld, stored(days(turn-2, turn+1), "P1D", "import_low", "import_normal"))

	q := t.pack.point("quarters")
	two := days(month, month+2)
	t.access("access-consent", north, question{q, two, energy, nil}, "With consent to quarter-hours nothing is withheld",
		append(granted(daily, two, "P1D", "REGISTER", registers...), granted(consent, two, "PT15M", "CONSUMPTION", quarterly...)...), nil,
		append(stored(days(month, month+3), "P1D", "import_low", "import_normal"), stored(two, "PT15M", "import_intervals")...))

	revoked := t.pack.point("consent-revoked")
	t.access("access-consent-revoked", north, question{revoked, two, energy, nil}, "A revocation shows in the dry run; nothing is said of days that may not be read",
		granted(daily, two, "P1D", "REGISTER", registers...),
		each(func(f string) Withheld { return run(f, two, meter.ConsentRevoked) }, quarterly...), nil)

	t.add(Case{Name: "list", Says: "The metering points of south, each with the bases there are now; no other", Supplier: south,
		Request: Request{Path: "/v1/metering-points"}, Want: Answer{Status: http.StatusOK, List: []Listed{
			{t.pack.point("switch").EAN.String(), "electricity", []string{"SUPPLY_PERIODIC", "SUPPLY_DAILY", "SWITCH"}},
			{t.pack.point("moved-and-switched").EAN.String(), "electricity", []string{"SUPPLY_PERIODIC", "SUPPLY_DAILY", "SWITCH", "MOVE"}},
			{t.pack.point("opted-out").EAN.String(), "electricity", []string{"SWITCH"}},
			{t.pack.point("foreign").EAN.String(), "electricity", []string{"SUPPLY_PERIODIC", "SUPPLY_DAILY"}},
		}}})
}

func (t *tables) problems() {
	month := t.monthStart(-1)
	plain, foreign := t.pack.point("plain"), t.pack.point("foreign")
	two := days(month, month+2)
	asked := question{plain, two, energy, with("fields", "import_low")}
	good := Request{Path: pathOf(plain.EAN.String(), "readings"), Query: asked.query()}
	edit := func(change func(v url.Values)) Request {
		v, err := url.ParseQuery(good.Query)
		if err != nil {
			panic(err) // it was just encoded
		}
		change(v)
		return Request{Path: good.Path, Query: strings.ReplaceAll(v.Encode(), "%2C", ",")}
	}
	set := func(pairs ...string) Request {
		return edit(func(v url.Values) {
			for i := 0; i+1 < len(pairs); i += 2 {
				v.Set(pairs[i], pairs[i+1])
			}
		})
	}
	const bad, invalid = http.StatusBadRequest, "invalid-parameters"
	t.problem("period-reversed", north, set("from", two.To.String(), "to", two.From.String()), "A period ends after it begins", bad, invalid, "/query/to")
	t.problem("period-too-long", north, set("from", (month-367).String(), "to", month.String()), "At most 366 days", bad, invalid, "/query/to")
	t.problem("a-day-that-is-none", north, set("from", "2026-02-30"), "Days must exist", bad, invalid, "/query/from")
	t.problem("purpose-missing", north, edit(func(v url.Values) { v.Del("purpose") }), "Every request says what it is for", bad, invalid, "/query/purpose")
	t.problem("field-unknown", north, set("fields", "import_low,heat"), "Fields are those of the market's catalogue", bad, invalid, "/query/fields")
	t.problem("fields-and-class", north, set("class", "registers"), "Fields, or a class, or neither", bad, invalid, "/query/class")
	t.problem("parameter-unknown", north, set("limit", "1"), "A parameter that is not known is no parameter to be ignored", bad, invalid, "/query")
	t.problem("parameter-repeated", north, edit(func(v url.Values) { v.Add("purpose", billing) }), "A parameter that is given twice is refused", bad, invalid, "/query/purpose")
	t.problem("several-faults", north, set("from", two.To.String(), "to", two.From.String(), "purpose", "CURIOSITY", "resolution", "PT5M"), "All faults at once",
		bad, invalid, "/query/purpose", "/query/resolution", "/query/to")
	wrong := []byte(plain.EAN.String())
	wrong[len(wrong)-1] = '0' + (wrong[len(wrong)-1]-'0'+1)%10
	t.problem("check-digit", north, Request{Path: pathOf(string(wrong), "readings"), Query: good.Query}, "An EAN with a wrong check digit is a slip, and nobody's", bad, invalid, "/path/ean")

	const gone, unknown = http.StatusNotFound, "metering-point-not-found"
	for _, c := range []struct {
		name, says, ean string
	}{
		{"metering-point-unknown", "No such metering point", testEAN(unknownNumber).String()},
		{"metering-point-of-others", "A metering point with which the caller never had anything to do: the same answer as to an unknown one, to the byte", foreign.EAN.String()},
	} {
		t.problem(c.name, north, Request{Path: pathOf(c.ean, "readings"), Query: good.Query}, c.says, gone, unknown).Alike = "readings of an unknown metering point"
		t.problem(c.name+"-access", north, Request{Path: pathOf(c.ean, "access"), Query: question{nil, two, energy, nil}.query()}, c.says+"; of a dry run", gone, unknown).Alike = "dry run of an unknown metering point"
	}

	token := func(k Token) Request { r := good; r.Token = k; return r }
	const anonymous, unauthenticated = http.StatusUnauthorized, "unauthenticated"
	t.problem("no-token", north, token(None), "Every request needs an access token", anonymous, unauthenticated)
	t.problem("no-token-at-all", north, token(Garbage), "Something else in its place is the same as none", anonymous, unauthenticated)
	t.problem("token-of-others", north, token(Foreign), "A token is bound to the certificate it was issued for", anonymous, unauthenticated)
	t.problem("scope-missing", third, good, "The token lacks the scope readings:read", http.StatusForbidden, "insufficient-scope")

	t.problem("path-unknown", north, Request{Path: "/v1/meters"}, "No such path", http.StatusNotFound, "not-found")
	method := good
	method.Method = http.MethodDelete
	t.problem("method-unknown", north, method, "Readings are read, and nothing else", http.StatusMethodNotAllowed, "method-not-allowed")
	body := good
	body.Body = "{}"
	t.problem("with-a-body", north, body, "Requests for readings have no body", http.StatusRequestEntityTooLarge, "content-too-large")
}

// consents are about what is said of consents, and about requests to change one
// that are refused: none of them changes anything.
func (t *tables) consents() {
	path := func(id [16]byte) string { return "/v1/consents/" + uuid.UUID(id).String() }
	first := func(p *Point) authz.GrantConsent { return p.consents[0] }
	registered := ConsentStep{Step: "REGISTERED", By: "OPERATOR"}
	for _, c := range []struct {
		point, state, says string
		steps              []ConsentStep
	}{
		{"quarters", "ACTIVE", "The consents at a metering point, with what was done with each", []ConsentStep{registered}},
		{"consent-revoked", "REVOKED", "A consent that was revoked, in the list of consents", []ConsentStep{registered, {Step: "REVOKED", By: "OPERATOR"}}},
		{"consent-expired", "EXPIRED", "A consent of which the time is over, in the list", []ConsentStep{registered}},
		{"move", "ENDED_BY_MOVE", "A consent of a customer who moved out, in the list", []ConsentStep{registered}},
	} {
		p := t.pack.point(c.point)
		g := first(p)
		t.add(Case{Name: "consents-" + strings.ToLower(strings.ReplaceAll(c.state, "_", "-")), Says: c.says, Supplier: north,
			Request: Request{Path: pathOf(p.EAN.String(), "consents")},
			Want: Answer{Status: http.StatusOK, Consents: []Consent{{
				ID: uuid.UUID(g.ID).String(), EAN: p.EAN.String(), Supplier: t.pack.Suppliers[north].GLN.String(), Purpose: energy,
				Classes: []string{"intervals"}, Granularity: "PT15M", From: t.long().String(), Evidence: g.Evidence, State: c.state, Steps: c.steps,
			}}}})
	}

	quarters, revoked := t.pack.point("quarters"), t.pack.point("consent-revoked")
	const unknown, alike = "consent-not-found", "consent that is not found"
	t.problem("consent-unknown", third, Request{Path: path(consentID(quarters.EAN, unknownNumber))}, "No such consent", http.StatusNotFound, unknown).Alike = alike
	t.problem("consent-of-others", third, Request{Path: path(first(quarters).ID)}, "A consent that another supplier holds: the same answer as to an unknown one, to the byte", http.StatusNotFound, unknown).Alike = alike

	change := func(name, path, body string) Request {
		return Request{Method: http.MethodPost, Path: path, Body: body, ContentType: "application/json", IdempotencyKey: "conformance-" + name}
	}
	yes := change("consent-answered-by-a-supplier", path(first(quarters).ID)+"/grant", `{"evidence":"none"}`)
	yes.IfMatch = Current
	t.problem("consent-answered-by-a-supplier", north, yes, "The customer's answer comes from the grid operator's customer service", http.StatusForbidden, "not-permitted")
	t.problem("access-log-of-a-supplier", north, Request{Path: pathOf(quarters.EAN.String(), "access-log")}, "Who read what is for the customer to see", http.StatusForbidden, "not-permitted")

	back := change("consent-revoked-unseen", path(first(revoked).ID)+"/revoke", "")
	back.ContentType = ""
	t.problem("consent-revoked-unseen", north, back, "Whoever changes a consent says which state of it was seen", http.StatusPreconditionRequired, "precondition-required")
	back.IdempotencyKey, back.IfMatch = "conformance-consent-changed-meanwhile", `"conformance"`
	t.problem("consent-changed-meanwhile", north, back, "A change is refused if another state of the consent was seen", http.StatusPreconditionFailed, "precondition-failed")
	back.IdempotencyKey, back.IfMatch = "conformance-consent-revoked-twice", Current
	t.problem("consent-revoked-twice", north, back, "A consent is revoked once", http.StatusConflict, "consent-ended")
	back.IdempotencyKey = ""
	t.problem("key-missing", north, back, "Whoever changes a consent names the request, so that it can be sent again", http.StatusBadRequest, "invalid-parameters", "/header/Idempotency-Key")

	asks := func(name, purpose string) Request {
		return change(name, "/v1/consents", fmt.Sprintf(`{"ean":"%s","purpose":"%s","classes":["intervals"],"granularity":"PT15M","from":"%s","validUntil":"%s","evidence":"conformance"}`,
			quarters.EAN, purpose, t.monthStart(0), t.midnight(t.today+30).UTC().Format(time.RFC3339)))
	}
	t.problem("consent-not-possible", north, asks("consent-not-possible", billing), "A consent for what no rule gives on consent", http.StatusUnprocessableEntity, "consent-not-possible")
	text := asks("consent-in-plain-text", energy)
	text.ContentType = "text/plain"
	t.problem("consent-in-plain-text", north, text, "A body must be JSON", http.StatusUnsupportedMediaType, "unsupported-media-type")
}

// Reasons lists the reasons that the cases want to see, each once.
func (p *Pack) Reasons() []string {
	var out []string
	for _, c := range p.Cases {
		if c.Want.Readings == nil {
			continue
		}
		for _, w := range c.Want.Readings.Withheld {
			out = append(out, w.Reason)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Problems lists the slugs that the cases want to see, each once.
func (p *Pack) Problems() []string {
	var out []string
	for _, c := range p.Cases {
		if c.Want.Problem != "" {
			out = append(out, c.Want.Problem)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
