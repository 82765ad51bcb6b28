package conformance

import (
	"fmt"
	"time"

	"kluis/meter"
)

// Answer is what must be answered. Of a readings request that is given
// something or nothing, all of it is compared; of a problem, its kind and the
// faulty parameters.
type Answer struct {
	Status   int       `json:"status"`
	Problem  string    `json:"problem,omitempty"`  // slug
	Pointers []string  `json:"pointers,omitempty"` // of invalid-parameters
	Readings *Readings `json:"readings,omitempty"`
	Access   *Access   `json:"access,omitempty"`
	List     []Listed  `json:"list,omitempty"`
	Consents []Consent `json:"consents,omitempty"`

	// Points are those of a query, or the one of a table or a feed.
	Points   []Answered `json:"points,omitempty"`
	Manifest *Manifest  `json:"manifest,omitempty"` // of a stream
	Media    string     `json:"media,omitempty"`    // type, where the request names one
	Headers  []string   `json:"headers,omitempty"`  // that must be there, whatever they say
}

// Answered is what is said of one of several metering points.
type Answered struct {
	EAN      string     `json:"ean"`
	Series   []Series   `json:"series,omitempty"`
	Withheld []Withheld `json:"withheld,omitempty"`
	Problem  string     `json:"problem,omitempty"` // slug
}

// Manifest is what a cryptoserver signed of a stream, as far as it does not
// depend on the moment.
type Manifest struct {
	Points    int `json:"points"`
	Given     int `json:"given"`
	Partly    int `json:"partly"`
	Withheld  int `json:"withheld"`
	Failed    int `json:"failed"`
	LeftOut   int `json:"left_out"`
	Expected  int `json:"expected"`
	Delivered int `json:"delivered"`
	Parts     int `json:"parts"`
}

// manifestOf is the manifest of a stream of these metering points.
func manifestOf(points []Answered, leftOut, parts int) *Manifest {
	m := &Manifest{Points: len(points), LeftOut: leftOut, Parts: parts}
	for _, p := range points {
		switch {
		case p.Problem != "":
			m.Failed++
		case len(p.Withheld) == 0:
			m.Given++
		case len(p.Series) == 0:
			m.Withheld++
		default:
			m.Partly++
		}
		for _, s := range p.Series {
			m.Expected += s.ExpectedCount
			m.Delivered += s.DeliveredCount
		}
	}
	return m
}

// Readings is the schema of that name in openapi.yaml, but for what is of the
// moment: interactionId, profileVersion.
type Readings struct {
	EAN      string     `json:"ean"`
	Purpose  string     `json:"purpose"`
	From     string     `json:"from"`
	To       string     `json:"to"`
	TimeZone string     `json:"timeZone"`
	Series   []Series   `json:"series"`
	Withheld []Withheld `json:"withheld"`
}

// Series is the schema of that name.
type Series struct {
	Field          string `json:"field"`
	OBIS           string `json:"obis"`
	ReadingKind    string `json:"readingKind"`
	Resolution     string `json:"resolution"`
	Unit           string `json:"unit"`
	LegalBasis     string `json:"legalBasis"`
	Rule           string `json:"rule"`
	ExpectedCount  int    `json:"expectedCount"`
	DeliveredCount int    `json:"deliveredCount"`
	Days           []Day  `json:"days"`
}

// Day is the schema DayValues.
type Day struct {
	Start   string    `json:"start"`
	Values  []*string `json:"values"`
	Quality []Quality `json:"quality,omitempty"`
}

// Quality is the schema QualityRun.
type Quality struct {
	Index   int    `json:"index"`
	Count   int    `json:"count"`
	Quality string `json:"quality"`
}

// Withheld is the schema of that name.
type Withheld struct {
	Field  string `json:"field"`
	From   string `json:"from"`
	To     string `json:"to"`
	Reason string `json:"reason"`
}

// Access is the schema of that name, but for what is of the moment.
type Access struct {
	EAN      string           `json:"ean"`
	From     string           `json:"from"`
	To       string           `json:"to"`
	TimeZone string           `json:"timeZone"`
	Granted  []AccessGranted  `json:"granted"`
	Withheld []AccessWithheld `json:"withheld"`
	Stored   []AccessStored   `json:"stored"`
}

// AccessGranted is the schema of that name.
type AccessGranted struct {
	Purpose     string `json:"purpose"`
	Field       string `json:"field"`
	From        string `json:"from"`
	To          string `json:"to"`
	LegalBasis  string `json:"legalBasis"`
	Rule        string `json:"rule"`
	Granularity string `json:"granularity"`
	ReadingKind string `json:"readingKind"`
}

// AccessWithheld is the schema of that name.
type AccessWithheld struct {
	Purpose string `json:"purpose"`
	Withheld
}

// AccessStored is the schema of that name, but for when it was stored.
type AccessStored struct {
	Field      string `json:"field"`
	From       string `json:"from"`
	To         string `json:"to"`
	Resolution string `json:"resolution"`
}

// Listed is the schema MeteringPoint.
type Listed struct {
	EAN        string   `json:"ean"`
	Commodity  string   `json:"commodity"`
	LegalBases []string `json:"legalBases"`
}

// Consent is the schema of that name, but for times and digest.
type Consent struct {
	ID          string        `json:"id"`
	EAN         string        `json:"ean"`
	Supplier    string        `json:"supplier"`
	Purpose     string        `json:"purpose"`
	Classes     []string      `json:"classes"`
	Granularity string        `json:"granularity"`
	From        string        `json:"from"`
	To          *string       `json:"to"`
	Evidence    string        `json:"evidence"`
	State       string        `json:"state"`
	Steps       []ConsentStep `json:"steps"`
}

// ConsentStep is the schema of that name, but for the time.
type ConsentStep struct {
	Step     string `json:"step"`
	By       string `json:"by"`
	Employee string `json:"employee,omitempty"` // which no supplier is told
}

// A ground is a legal basis and the rule of the Dutch profile that is it.
type ground struct{ basis, rule string }

var (
	periodic = ground{"SUPPLY_PERIODIC", "nl-billing-periodic"}
	daily    = ground{"SUPPLY_DAILY", "nl-daily"}
	consent  = ground{"CONSENT", "nl-consent-intervals"}
	atSwitch = ground{"SWITCH", "nl-switch"}
	atMove   = ground{"MOVE", "nl-move"}
)

// What follows works out a series from the readings stored, in the plainest way:
// it walks over every slot, and adds up.

// expectation is a series to be worked out.
type expectation struct {
	calendar
	point      *Point
	ground     ground
	field      string
	kind       string // REGISTER, CONSUMPTION
	resolution string // PT15M, PT1H, P1D, P1M
}

// known is a value, or the lack of one.
type known struct {
	value     int64
	null      bool
	estimated bool
}

func (k known) plus(o known) known {
	return known{k.value + o.value, k.null || o.null, k.estimated || o.estimated}
}

func (k known) minus(o known) known {
	o.value = -o.value
	return k.plus(o)
}

// stored finds the readings of the day, or nil.
func (e expectation) stored(d meter.Day) *Stored {
	for i := range e.point.Readings {
		if s := &e.point.Readings[i]; s.Field == e.field && s.has(d) && (s.Field != e.point.Damaged || d != e.point.DamagedOn) && !e.point.Erased.Contains(d) {
			return s
		}
	}
	return nil
}

// read is the register read at the start of a day.
func (e expectation) read(d meter.Day) known {
	if e.stored(d) == nil {
		return known{null: true}
	}
	return known{value: fieldNamed(e.field).read(d)}
}

// slot is an interval as it was stored.
type slot struct {
	begins time.Duration // after midnight
	known
}

// slotsOf are the intervals of a day; none when nothing is stored.
func (e expectation) slotsOf(d meter.Day) []slot {
	s := e.stored(d)
	if s == nil {
		return nil
	}
	var out []slot
	for i := range e.slots(d, length(s.Resolution)) {
		v := known{value: fieldNamed(e.field).interval(d, i), null: holds(s.Gaps, d, i), estimated: holds(s.Estimated, d, i)}
		out = append(out, slot{time.Duration(i) * length(s.Resolution), v})
	}
	return out
}

// sum is what was consumed in part of a day, of which these are the intervals.
func sum(all []slot, from, to time.Duration) known {
	total := known{null: all == nil}
	for _, s := range all {
		if from <= s.begins && s.begins < to {
			total = total.plus(s.known)
		}
	}
	return total
}

const wholeDay = 48 * time.Hour // longer than any

// values are those of the period that begins with a day: of the day, or at P1M
// of the month.
func (e expectation) values(d meter.Day) []known {
	register := fieldNamed(e.field).register
	next := d + 1
	if e.resolution == "P1M" {
		next = nextMonth(d)
	}
	switch {
	case register && e.kind == "REGISTER":
		return []known{e.read(d)}
	case register:
		return []known{e.read(next).minus(e.read(d))}
	}
	var beside known // the register at the start of the day
	if s := e.stored(d); s == nil || s.NoStart {
		beside.null = true
	} else {
		beside.value = fieldNamed(e.field).readOfIntervals(d)
	}
	if e.resolution == "P1D" || e.resolution == "P1M" {
		if e.kind == "REGISTER" {
			return []known{beside}
		}
		var total known
		for day := d; day < next; day++ {
			total = total.plus(sum(e.slotsOf(day), 0, wholeDay))
		}
		return []known{total}
	}
	step := 15 * time.Minute
	if e.resolution == "PT1H" {
		step = time.Hour
	}
	all := e.slotsOf(d)
	var out []known
	for i := range e.slots(d, step) {
		from := time.Duration(i) * step
		v := sum(all, from, from+step)
		if e.kind == "REGISTER" {
			v = beside
			if i > 0 {
				v = v.plus(sum(all, 0, from))
			}
		}
		out = append(out, v)
	}
	return out
}

// series is the series of runs of days. Registers have a closing read after
// each run, but for single reads.
func (e expectation) series(runs ...meter.DayRange) Series {
	f := fieldNamed(e.field)
	s := Series{Field: f.name, OBIS: f.obis, Unit: f.unit, ReadingKind: e.kind, Resolution: e.resolution, LegalBasis: e.ground.basis, Rule: e.ground.rule}
	add := func(d meter.Day, values []known) {
		day := Day{Start: e.midnight(d).Format(time.RFC3339)}
		for i, v := range values {
			s.ExpectedCount++
			if v.null {
				day.Values = append(day.Values, nil)
				continue
			}
			s.DeliveredCount++
			text := fmt.Sprintf("%d.%03d", v.value/1000, v.value%1000)
			day.Values = append(day.Values, &text)
			if v.estimated {
				day.estimated(i)
			}
		}
		s.Days = append(s.Days, day)
	}
	for _, r := range runs {
		for d := r.From; d < r.To; {
			add(d, e.values(d))
			if d++; e.resolution == "P1M" {
				d = nextMonth(d - 1)
			}
		}
		if f.register && e.kind == "REGISTER" && e.ground != atSwitch && e.ground != atMove {
			add(r.To, []known{e.read(r.To)})
		}
	}
	return s
}

// estimated adds one value to the runs of estimates.
func (d *Day) estimated(i int) {
	if n := len(d.Quality); n > 0 && d.Quality[n-1].Index+d.Quality[n-1].Count == i {
		d.Quality[n-1].Count++
		return
	}
	d.Quality = append(d.Quality, Quality{i, 1, "ESTIMATED"})
}
