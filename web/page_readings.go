package web

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"kluis/meter"
	"kluis/openapi/client"
)

// readingsRoutes are those of templates/readings.html. Values are fetched by a POST
// only: opening them is an act, with a reason, that the customer can see.
func (p *Portal) readingsRoutes() []route {
	return []route{
		{"GET", "/c/{case}/readings", servants, p.readingsPage, false},
		{"POST", "/c/{case}/readings", servants, p.openReadings, false},
		{"POST", "/c/{case}/readings/csv", servants, p.readingsCSV, false},
		{"GET", "/c/{case}/readings/csv", servants, p.readingsAgain, false},
	}
}

// readingsForm is what to open, as it was filled in. Days are included.
type readingsForm struct {
	From, To string
	Detail   string // of details
	Reason   string
}

// detail is how fine values may be asked for: what people choose, and what that is
// to the API.
type detail struct {
	Key        string // text readings.detail.KEY
	Class      client.FieldClass
	Resolution client.Resolution // "": as fine as they are stored
	Kind       client.ReadingKind
	Most       int // days in one go
}

var details = []detail{
	{"finest", client.Intervals, "", client.ReadingKindCONSUMPTION, 366},
	{"hour", client.Intervals, client.PT1H, client.ReadingKindCONSUMPTION, 366},
	{"day", client.Registers, client.P1D, client.ReadingKindCONSUMPTION, 366},
	{"month", client.Registers, client.P1M, client.ReadingKindCONSUMPTION, 366},
	{"register", client.Registers, client.P1D, client.ReadingKindREGISTER, 366},
}

// readingsData is what templates/readings.html shows.
type readingsData struct {
	readingsForm
	Errors   map[string]string
	Problem  *Problem // beside the form, which stays as it was filled in
	Sent     bool     // the form was
	Details  []detail
	Presets  []preset
	Latest   string // last day that is over
	Earliest string
	Known    bool // what is stored is
	Stored   []storedRange
	Shown    *readingsShown // nil: nothing was opened yet

	commodity meter.Commodity
}

// preset is a period in one click.
type preset struct {
	Key, From, To, Detail string
}

// storedRange says from when to when there is something of a class.
type storedRange struct {
	Class    string
	From, To meter.Day // included
}

func (p *Portal) readingsPage(w http.ResponseWriter, r *http.Request) error {
	d, err := p.readingsOf(r)
	if err != nil && !problemOf(err).Again {
		return err
	}
	if err != nil {
		if d.Problem, err = p.within(r, err); err != nil {
			return err
		}
	}
	q := r.URL.Query()
	today := meter.DayOf(p.now(), p.profile.Location())
	d.readingsForm = readingsForm{From: (today - 7).String(), To: (today - 1).String(), Detail: "finest", Reason: visitOf(r).Case.Reason}
	for _, x := range d.Presets {
		if x.Key == q.Get("period") {
			d.From, d.To, d.Detail = x.From, x.To, x.Detail
		}
	}
	return p.showReadings(w, r, d)
}

// showReadings shows the form, and beside it what was opened or why nothing was.
func (p *Portal) showReadings(w http.ResponseWriter, r *http.Request, d *readingsData) error {
	status := http.StatusOK
	switch {
	case d.Problem != nil:
		status = d.Problem.Status
	case len(d.Errors) > 0:
		status = http.StatusUnprocessableEntity
	}
	return p.render(w, r, status, "readings", d)
}

// readingsOf is the form, with what is there to be asked for; when that cannot be
// told, the form alone, and the error.
func (p *Portal) readingsOf(r *http.Request) (*readingsData, error) {
	today := meter.DayOf(p.now(), p.profile.Location())
	d := &readingsData{
		Details: details, Errors: map[string]string{},
		Latest: (today - 1).String(), Earliest: today.AddMonths(-p.profile.RetentionMonths()).String(),
	}
	month := today.Month().First()
	for _, x := range []struct {
		key, detail string
		from, to    meter.Day
	}{
		{"yesterday", "finest", today - 1, today - 1}, {"week", "finest", today - 7, today - 1},
		{"month", "day", month.AddMonths(-1), month - 1}, {"year", "month", month.AddMonths(-12), month - 1},
	} {
		d.Presets = append(d.Presets, preset{x.key, x.from.String(), x.to.String(), x.detail})
	}
	c, err := p.askConnection(r)
	if err != nil {
		return d, err
	}
	if d.commodity, err = meter.ParseCommodity(string(c.Commodity)); err != nil {
		return d, err
	}
	d.Known, d.Stored = true, storedOf(c)
	return d, nil
}

// storedOf says by class from when to when anything is stored.
func storedOf(c *client.Connection) []storedRange {
	var out []storedRange
	for _, f := range c.Fields {
		i := slices.IndexFunc(out, func(s storedRange) bool { return s.Class == string(f.Class) })
		if i < 0 {
			out = append(out, storedRange{string(f.Class), localDay(f.From), localDay(f.To) - 1})
			continue
		}
		out[i].From, out[i].To = min(out[i].From, localDay(f.From)), max(out[i].To, localDay(f.To)-1)
	}
	return out
}

// readingsAsked is a form understood.
type readingsAsked struct {
	days   meter.DayRange
	detail detail
}

func (f readingsForm) parse(today meter.Day) (readingsAsked, map[string]string) {
	errs := map[string]string{}
	var a readingsAsked
	from, err := meter.ParseDay(f.From)
	if err != nil {
		errs["from"] = "consent-new.day.wrong"
	}
	to, err := meter.ParseDay(f.To)
	if err != nil {
		errs["to"] = "consent-new.day.wrong"
	}
	a.days = meter.DayRange{From: from, To: to + 1}
	i := slices.IndexFunc(details, func(d detail) bool { return d.Key == f.Detail })
	if i < 0 {
		errs["detail"] = "readings.detail.wrong"
	} else {
		a.detail = details[i]
	}
	if len(errs) == 0 {
		switch {
		case a.days.Empty():
			errs["to"] = "consent-new.to.wrong"
		case a.days.Len() > a.detail.Most:
			errs["to"] = "readings.long"
		case to >= today:
			errs["to"] = "readings.future"
		}
	}
	if !plainReason(f.Reason) {
		errs["reason"] = "find.reason.wrong"
	}
	return a, errs
}

// openReadings answers POST …/readings: it opens values and shows them. Nothing of
// them is kept: the page is all there is.
func (p *Portal) openReadings(w http.ResponseWriter, r *http.Request) error {
	return p.opened(w, r, "application/json", func(d *readingsData, asked readingsAsked, res *client.GetReadingsResponse) error {
		readings, err := Given(res.JSON200, res.HTTPResponse, res.Body)
		if err != nil {
			return err
		}
		if d.Shown, err = shownOf(readings, asked, p.profile, visitOf(r).Lang); err != nil {
			return err
		}
		return p.showReadings(w, r, d)
	})
}

// opened asks for the readings of the form and has show answer with them. What is
// wrong, or goes wrong, is shown beside the form, which stays as it was filled in.
func (p *Portal) opened(w http.ResponseWriter, r *http.Request, media string, show func(*readingsData, readingsAsked, *client.GetReadingsResponse) error) error {
	d, err := p.readingsOf(r)
	d.readingsForm, d.Sent = formOf(r), true
	var asked readingsAsked
	if asked, d.Errors = d.parse(meter.DayOf(p.now(), p.profile.Location())); len(d.Errors) > 0 {
		return p.showReadings(w, r, d)
	}
	var res *client.GetReadingsResponse
	if err == nil {
		res, err = p.read(r, d.commodity, d.Reason, asked, media)
	}
	if err == nil {
		err = show(d, asked, res)
	}
	if err != nil {
		if d.Problem, err = p.within(r, err); err != nil {
			return err
		}
		return p.showReadings(w, r, d)
	}
	return nil
}

func formOf(r *http.Request) readingsForm {
	return readingsForm{From: r.PostForm.Get("from"), To: r.PostForm.Get("to"), Detail: r.PostForm.Get("detail"), Reason: r.PostForm.Get("reason")}
}

// read asks for the readings, with an errand for exactly these days and fields.
func (p *Portal) read(r *http.Request, commodity meter.Commodity, reason string, a readingsAsked, media string) (*client.GetReadingsResponse, error) {
	c := *visitOf(r).Case
	c.Reason = reason
	var fields []string
	for _, f := range p.profile.Fields(commodity) {
		if f.Class.String() == string(a.detail.Class) {
			fields = append(fields, f.Name)
		}
	}
	params := &client.GetReadingsParams{From: *apiDay(a.days.From), To: *apiDay(a.days.To), Purpose: client.PurposeCUSTOMERSERVICE, Fields: &fields, Kind: &a.detail.Kind}
	if a.detail.Resolution != "" {
		params.Resolution = &a.detail.Resolution
	}
	return p.API(r, ToRead(&c, a.days.From, a.days.To, fields)).GetReadingsWithResponse(r.Context(), c.EAN.String(), params, accept(media))
}

// readingsCSV answers POST …/readings/csv: the same, for a spreadsheet. It is read,
// and recorded, anew.
func (p *Portal) readingsCSV(w http.ResponseWriter, r *http.Request) error {
	return p.opened(w, r, "text/csv", func(_ *readingsData, asked readingsAsked, res *client.GetReadingsResponse) error {
		if _, err := Given(&struct{}{}, res.HTTPResponse, res.Body); err != nil {
			return err
		}
		h := w.Header()
		h.Set("Content-Type", "text/csv; charset=utf-8")
		h.Set("Content-Disposition", fmt.Sprintf(`attachment; filename="readings-%s-%s.csv"`, asked.days.From, asked.days.To-1))
		_, err := w.Write(res.Body)
		return ignoreGone(err)
	})
}

// readingsAgain answers GET …/readings/csv, where somebody who was given no file
// changes the language.
func (p *Portal) readingsAgain(w http.ResponseWriter, r *http.Request) error {
	http.Redirect(w, r, visitOf(r).Case.Path("/readings"), http.StatusSeeOther)
	return nil
}

// readingsShown is what was opened.
type readingsShown struct {
	Charts   []chart
	Withheld []withheld
	Nothing  bool // no value at all
}

// withheld is what was not given, in words.
type withheld struct {
	Class    string
	From, To meter.Day // included
	Reason   client.WithheldReason
}

// chart is the series of one resolution: a picture, a table and totals of the same.
type chart struct {
	Resolution client.Resolution
	Unit       string
	Register   bool // meter reads: no totals
	Series     []chartSeries
	Rows       []chartRow
	Data       chartData
	Daily      bool // rows are whole days, though values are finer
}

type chartSeries struct {
	Field               string
	Total               string // formatted; "" for register reads
	Expected, Delivered int
	Missing             int
}

// chartRow is a row of the table: a day, or an interval of a short period.
type chartRow struct {
	Start     time.Time
	Day       meter.Day
	Cells     []chartCell
	Hours     int  // of the day where it is no 24, else 0
	Estimated bool // some value did not come from the meter as it is
}

type chartCell struct {
	Text    string // "" where nothing is known
	Partial bool   // some of the day is missing
}

// chartData is what the picture is drawn from: times in seconds UTC, values as whole
// numbers of the last decimal.
type chartData struct {
	Zone      string        `json:"zone"`
	Unit      string        `json:"unit"`
	Time      string        `json:"time"` // the word
	Lang      string        `json:"lang"`
	Precision int           `json:"precision"`
	Bars      bool          `json:"bars"`
	Times     []int64       `json:"-"`
	Runs      [][3]int64    `json:"runs"` // the times, as start, step and count
	Series    []chartValues `json:"series"`
	Marks     []chartMark   `json:"marks"` // days that have 23 or 25 hours
}

type chartValues struct {
	Name   string   `json:"name"`
	Values []*int64 `json:"values"`
}

type chartMark struct {
	At   int64  `json:"at"`
	Text string `json:"text"`
}

// shortPeriod is up to how many days intervals are listed each by itself.
const shortPeriod = 2

// shownOf makes charts and tables of what the API gave.
func shownOf(v *client.Readings, a readingsAsked, profile *meter.Profile, lang string) (*readingsShown, error) {
	out := &readingsShown{Nothing: true}
	var order []client.Resolution
	by := map[client.Resolution][]client.Series{}
	for _, s := range v.Series {
		if by[s.Resolution] == nil {
			order = append(order, s.Resolution)
		}
		by[s.Resolution] = append(by[s.Resolution], s)
		out.Nothing = out.Nothing && s.DeliveredCount == 0
	}
	for _, res := range order {
		c, err := chartOf(by[res], a, profile, lang)
		if err != nil {
			return nil, err
		}
		out.Charts = append(out.Charts, *c)
	}
	for _, h := range v.Withheld {
		x := withheld{Class: string(a.detail.Class), From: localDay(h.From), To: localDay(h.To) - 1, Reason: h.Reason}
		if !slices.Contains(out.Withheld, x) {
			out.Withheld = append(out.Withheld, x)
		}
	}
	return out, nil
}

// chartOf puts series of one resolution side by side, by the start of each value.
func chartOf(series []client.Series, a readingsAsked, profile *meter.Profile, lang string) (*chart, error) {
	first := series[0]
	zone := profile.Location()
	c := &chart{Resolution: first.Resolution, Unit: first.Unit, Register: first.ReadingKind == client.ReadingKindREGISTER}
	fine := first.Resolution == client.PT15M || first.Resolution == client.PT1H
	c.Daily = fine && a.days.Len() > shortPeriod
	step := map[client.Resolution]time.Duration{client.PT15M: 15 * time.Minute, client.PT1H: time.Hour}[first.Resolution]
	f, ok := profile.Field(first.Field)
	if !ok {
		return nil, fmt.Errorf("the API gave a field that the market profile lacks")
	}
	c.Data = chartData{Zone: zone.String(), Unit: first.Unit, Time: allTexts.in(lang, "readings.when"), Lang: lang, Precision: f.Precision, Bars: !c.Register, Marks: []chartMark{}}

	starts := map[int64]bool{}
	for _, s := range series {
		for _, d := range s.Days {
			for i := range d.Values {
				starts[d.Start.Unix()+int64(i)*int64(step/time.Second)] = true
			}
		}
	}
	for at := range starts {
		c.Data.Times = append(c.Data.Times, at)
	}
	slices.Sort(c.Data.Times)
	c.Data.Runs = runsOf(c.Data.Times)
	index := make(map[int64]int, len(c.Data.Times))
	for i, at := range c.Data.Times {
		index[at] = i
	}

	rows := newRows(c, a, zone, len(series))
	for n, s := range series {
		values := make([]*int64, len(c.Data.Times))
		var total int64
		for _, d := range s.Days {
			estimated := d.Quality != nil && len(*d.Quality) > 0
			for i, text := range d.Values {
				at := d.Start.Unix() + int64(i)*int64(step/time.Second)
				var value *int64
				if text != nil {
					parsed, err := meter.ParseValue(*text, f.Precision)
					if err != nil {
						return nil, fmt.Errorf("the API gave a value that is none: %w", err)
					}
					x := int64(parsed)
					value, total = &x, total+x
				}
				values[index[at]] = value
				rows.add(at, n, value, estimated)
			}
		}
		c.Data.Series = append(c.Data.Series, chartValues{s.Field, values})
		cs := chartSeries{Field: s.Field, Expected: s.ExpectedCount, Delivered: s.DeliveredCount, Missing: s.ExpectedCount - s.DeliveredCount}
		if !c.Register {
			cs.Total = decimal(lang, total, f.Precision)
		}
		c.Series = append(c.Series, cs)
	}
	c.Rows = rows.list(lang, f.Precision)
	if fine {
		for day := a.days.From; day < a.days.To; day++ {
			if h := hoursOf(day, zone); h != 24 {
				c.Data.Marks = append(c.Data.Marks, chartMark{day.Start(zone).Unix(), fmt.Sprintf("%d h", h)})
			}
		}
	}
	return c, nil
}

// runsOf tells times that are evenly apart in three numbers each: those of a year
// would weigh as much as the values.
func runsOf(times []int64) [][3]int64 {
	runs := [][3]int64{}
	for _, at := range times {
		if n := len(runs) - 1; n >= 0 {
			switch r := &runs[n]; {
			case r[2] == 1:
				r[1], r[2] = at-r[0], 2
				continue
			case at == r[0]+r[1]*r[2]:
				r[2]++
				continue
			}
		}
		runs = append(runs, [3]int64{at, 0, 1})
	}
	return runs
}

// decimal is a value as people write it.
func decimal(lang string, v int64, precision int) string {
	return number(lang, string(meter.AppendValue(nil, meter.Value(v), precision)))
}

// hoursOf is how long a local day is, in hours.
func hoursOf(d meter.Day, zone *time.Location) int {
	return int((d + 1).Start(zone).Sub(d.Start(zone)) / time.Hour)
}

// rowsBuilder gathers values into rows: by day where the table is daily, else by
// start.
type rowsBuilder struct {
	daily  bool
	zone   *time.Location
	series int
	keys   []int64
	rows   map[int64]*rowValues
}

type rowValues struct {
	sums      []int64
	known     []int
	missing   []int
	estimated bool
}

func newRows(c *chart, a readingsAsked, zone *time.Location, series int) *rowsBuilder {
	b := &rowsBuilder{daily: c.Daily, zone: zone, series: series, rows: map[int64]*rowValues{}}
	if b.daily { // also the days of which there is nothing
		for day := a.days.From; day < a.days.To; day++ {
			b.row(day.Start(zone).Unix())
		}
	}
	return b
}

func (b *rowsBuilder) row(key int64) *rowValues {
	v := b.rows[key]
	if v == nil {
		v = &rowValues{sums: make([]int64, b.series), known: make([]int, b.series), missing: make([]int, b.series)}
		b.rows[key] = v
		b.keys = append(b.keys, key)
	}
	return v
}

func (b *rowsBuilder) add(at int64, series int, value *int64, estimated bool) {
	if b.daily {
		at = meter.DayOf(time.Unix(at, 0), b.zone).Start(b.zone).Unix()
	}
	v := b.row(at)
	v.estimated = v.estimated || estimated
	if value == nil {
		v.missing[series]++
		return
	}
	v.sums[series] += *value
	v.known[series]++
}

func (b *rowsBuilder) list(lang string, precision int) []chartRow {
	slices.Sort(b.keys)
	out := make([]chartRow, 0, len(b.keys))
	for _, key := range b.keys {
		v := b.rows[key]
		at := time.Unix(key, 0)
		row := chartRow{Start: at, Day: meter.DayOf(at, b.zone), Estimated: v.estimated}
		if h := hoursOf(row.Day, b.zone); b.daily && h != 24 {
			row.Hours = h
		}
		for i := range b.series {
			cell := chartCell{Partial: v.known[i] > 0 && v.missing[i] > 0}
			if v.known[i] > 0 {
				cell.Text = decimal(lang, v.sums[i], precision)
			}
			row.Cells = append(row.Cells, cell)
		}
		out = append(out, row)
	}
	return out
}

// accept asks the API for a media type.
func accept(media string) client.RequestEditorFn {
	return func(_ context.Context, r *http.Request) error {
		r.Header.Set("Accept", media)
		return nil
	}
}
