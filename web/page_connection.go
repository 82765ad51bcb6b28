package web

import (
	"cmp"
	"net/http"
	"slices"
	"time"

	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/meter"
	"kluis/openapi/client"
)

// connectionRoutes are those of templates/connection.html: a connection at a glance.
func (p *Portal) connectionRoutes() []route {
	return []route{{"GET", "/c/{case}", employees, p.connectionPage, false}}
}

// recentDays is how far back "who read" looks at a glance.
const recentDays = 30

// connectionData is what templates/connection.html shows.
type connectionData struct {
	*client.Connection
	Rights          []supplierRights
	Readers         []reader
	ReadersMore     bool // there is more than was looked at
	ReadersMissing  *Problem
	Consents        consentsData
	ConsentsMissing *Problem
	Timeline        timeline
	Fields          []fieldRow
	MayStep         bool
}

// reader is who read values, and how often.
type reader struct {
	GLN, Name string
	Employee  bool // for the customer
	Times     int
	Last      time.Time
}

// fieldRow is a field with all of its days that are stored.
type fieldRow struct {
	client.ConnectionField
	To   meter.Day // included
	Gaps int       // days missing between the first and the last
}

func (p *Portal) connectionPage(w http.ResponseWriter, r *http.Request) error {
	c := visitOf(r).Case
	api := p.API(r, ToView(c))
	today := meter.DayOf(p.now(), p.profile.Location())
	d := connectionData{MayStep: slices.Contains(servants, visitOf(r).Session.Role)}
	var consents []client.Consent
	var log *client.AccessLog
	g := p.group(r)
	g.Go(func() (err error) {
		d.Connection, err = p.askConnectionAndIdentity(r)
		return err // without it there is nothing to show
	})
	g.Go(func() error {
		res, err := api.ListConsentsWithResponse(r.Context(), c.EAN.String(), &client.ListConsentsParams{})
		if err == nil {
			var list *client.Consents
			if list, err = Given(res.JSON200, res.HTTPResponse, res.Body); err == nil {
				consents = list.Consents
				return nil
			}
		}
		pr := problemOf(err)
		d.ConsentsMissing = &pr
		return nil
	})
	g.Go(func() error {
		limit := 1000
		res, err := api.GetAccessLogWithResponse(r.Context(), c.EAN.String(), &client.GetAccessLogParams{From: apiDay(today - recentDays), Limit: &limit}, accept("application/json"))
		if err == nil {
			if log, err = Given(res.JSON200, res.HTTPResponse, res.Body); err == nil {
				return nil
			}
		}
		pr := problemOf(err)
		d.ReadersMissing = &pr
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	d.Rights = p.askRights(r, d.Connection, consents, supplying(d.Connection, today))
	d.Consents = sortConsents(consents, namesOf(d.Connection))
	if log != nil {
		d.Readers, d.ReadersMore = readersOf(log), log.Links.Next != nil
	}
	d.Timeline = timelineOf(d.Connection, consents, today, p.profile.Location())
	d.Fields = fieldsOf(d.Connection)
	return p.page(w, r, "connection", d)
}

// readersOf counts who read values, most first.
func readersOf(log *client.AccessLog) []reader {
	var out []reader
	for _, e := range log.Entries {
		if e.Operation != client.READINGS || e.Outcome != client.GIVEN && e.Outcome != client.PARTLY {
			continue
		}
		x := reader{GLN: e.Caller.Gln, Employee: e.Caller.Employee != nil}
		i := slices.IndexFunc(out, func(o reader) bool { return o.GLN == x.GLN && o.Employee == x.Employee })
		if i < 0 {
			if e.Caller.Name != nil {
				x.Name = *e.Caller.Name
			}
			out = append(out, x)
			i = len(out) - 1
		}
		out[i].Times++
		if e.At.After(out[i].Last) {
			out[i].Last = e.At
		}
	}
	slices.SortStableFunc(out, func(a, b reader) int { return cmp.Compare(b.Times, a.Times) })
	return out
}

// fieldsOf joins the runs of stored days of each field.
func fieldsOf(c *client.Connection) []fieldRow {
	var out []fieldRow
	for _, f := range c.Fields {
		i := slices.IndexFunc(out, func(o fieldRow) bool { return o.Field == f.Field && o.Resolution == f.Resolution })
		if i < 0 {
			out = append(out, fieldRow{f, localDay(f.To) - 1, 0})
			continue
		}
		out[i].Gaps += max(0, int(localDay(f.From)-out[i].To)-1)
		out[i].To = max(out[i].To, localDay(f.To)-1)
		if f.LastStoredAt.After(out[i].LastStoredAt) {
			out[i].LastStoredAt = f.LastStoredAt
		}
	}
	return out
}

// timeline is a picture of who supplied and lived here when, and which consents
// there were; the same is in its lists, for who does not see it.
type timeline struct {
	Rows  []timelineRow
	Years []tick
	Now   int // x of today
	High  int
	From  meter.Day
	To    meter.Day
}

// timelineRow is a line of bars.
type timelineRow struct {
	Kind  string // supply, occupancy, consent, optout: texts connection.timeline.KIND
	First bool   // of its kind: periods that overlap are below one another
	Y     int
	Bars  []bar
}

// bar is a period; x and width are of timelineWidth.
type bar struct {
	X, Width int
	From     meter.Day
	To       *meter.Day // included; nil: open
	Name     string     // of a supplier
	GLN      string
	State    string // of a consent
	Series   int    // colour: 1 to 5
	Label    bool   // there is room for the name
}

// Short is the supplier's name as far as there is room for it.
func (b bar) Short() string {
	name := []rune(b.Name)
	if room := (b.Width - 16) / 8; len(name) > room {
		return string(name[:max(0, room-1)]) + "…"
	}
	return b.Name
}

// TextX is where the name in a bar begins.
func (b bar) TextX() int { return b.X + 8 }

// Axis is how far down the lines of the years go.
func (t timeline) Axis() int { return t.High - 20 }

type tick struct {
	X     int
	Year  int
	Label bool // there is room for it beside today
}

const (
	timelineWidth = 1000
	timelineRowH  = 34
	timelineYears = 3
	timelineWord  = 55 // between words below the lines
)

// timelineOf draws the last years up to half a year from now; what began before is
// cut at the edge.
func timelineOf(c *client.Connection, consents []client.Consent, today meter.Day, zone *time.Location) timeline {
	names := namesOf(c)
	t := timeline{From: firstOf(c, consents, today, zone), To: today.AddMonths(6)}
	x := func(d meter.Day) int {
		d = min(max(d, t.From), t.To)
		return int(int64(d-t.From) * timelineWidth / int64(t.To-t.From))
	}
	t.Now = x(today)
	series := map[string]int{}
	add := func(row *timelineRow, from meter.Day, to *meter.Day, b bar) {
		b.From = from
		end := t.To
		if to != nil {
			end = *to
			last := *to - 1
			b.To = &last
		}
		if end <= t.From || from >= t.To || end <= from {
			return
		}
		b.X = x(from)
		b.Width = max(3, x(end)-b.X)
		b.Label = b.Width > 90
		row.Bars = append(row.Bars, b)
	}
	supply := timelineRow{Kind: "supply"}
	for _, s := range c.Supply {
		if series[s.Supplier] == 0 {
			series[s.Supplier] = len(series)%5 + 1
		}
		add(&supply, localDay(s.From), dayPtr(s.To), bar{Name: names[s.Supplier], GLN: s.Supplier, Series: series[s.Supplier]})
	}
	living := timelineRow{Kind: "occupancy"}
	for _, o := range c.Occupancies {
		add(&living, localDay(o.From), dayPtr(o.To), bar{Series: 0})
	}
	agreed := timelineRow{Kind: "consent"}
	for _, k := range consents {
		if k.ValidFrom == nil {
			continue
		}
		end := k.ValidUntil
		for _, s := range k.Steps {
			if s.Step == client.ConsentStepStepREVOKED && s.At.Before(end) {
				end = s.At
			}
		}
		last := meter.DayOf(end, zone)
		if from := meter.DayOf(*k.ValidFrom, zone); last <= from {
			last = from + 1
		}
		if series[k.Supplier] == 0 {
			series[k.Supplier] = len(series)%5 + 1
		}
		add(&agreed, meter.DayOf(*k.ValidFrom, zone), &last, bar{Name: names[k.Supplier], GLN: k.Supplier, State: string(k.State), Series: series[k.Supplier]})
	}
	out := timelineRow{Kind: "optout"}
	for _, o := range c.OptOuts {
		add(&out, localDay(o.From), dayPtr(o.To), bar{})
	}
	for _, row := range []timelineRow{supply, living, agreed, out} {
		for i, bars := range lanes(row.Bars) {
			t.Rows = append(t.Rows, timelineRow{Kind: row.Kind, First: i == 0, Y: len(t.Rows)*timelineRowH + 4, Bars: bars})
		}
	}
	t.High = len(t.Rows)*timelineRowH + 24
	first, _, _ := t.From.Date()
	last, _, _ := t.To.Date()
	for y := first + 1; y <= last; y++ {
		at := x(meter.DayFromDate(y, time.January, 1))
		t.Years = append(t.Years, tick{at, y, at < t.Now-timelineWord || at > t.Now+timelineWord})
	}
	return t
}

// firstOf is where a timeline begins: a little before the first that happened, but
// not longer ago than timelineYears, nor later than a year ago.
func firstOf(c *client.Connection, consents []client.Consent, today meter.Day, zone *time.Location) meter.Day {
	first := today.AddMonths(-12)
	for _, s := range c.Supply {
		first = min(first, localDay(s.From))
	}
	for _, o := range c.Occupancies {
		first = min(first, localDay(o.From))
	}
	for _, k := range consents {
		if k.ValidFrom != nil {
			first = min(first, meter.DayOf(*k.ValidFrom, zone))
		}
	}
	return max(first.AddMonths(-1), today.AddMonths(-12*timelineYears))
}

// lanes puts bars that overlap into lanes of their own.
func lanes(bars []bar) [][]bar {
	var out [][]bar
	for _, b := range bars {
		i := slices.IndexFunc(out, func(lane []bar) bool {
			return !slices.ContainsFunc(lane, func(o bar) bool { return b.X < o.X+o.Width && o.X < b.X+b.Width })
		})
		if i < 0 {
			out, i = append(out, nil), len(out)
		}
		out[i] = append(out[i], b)
	}
	return out
}

// dayPtr is a day of the contract, where there is one.
func dayPtr(d *openapi_types.Date) *meter.Day {
	if d == nil {
		return nil
	}
	day := localDay(*d)
	return &day
}
