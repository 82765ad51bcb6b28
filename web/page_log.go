package web

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"kluis/meter"
	"kluis/openapi/client"
	"kluis/openapi/client/kluis"
)

// logRoutes are those of templates/log.html: who read what, and its proofs.
func (p *Portal) logRoutes() []route {
	return []route{
		{"GET", "/c/{case}/log", employees, p.logPage, false},
		{"GET", "/c/{case}/log/list", employees, p.logList, false}, // a part, for htmx
		{"GET", "/c/{case}/log/{interaction}/proof", employees, p.proofPage, false},
		{"GET", "/c/{case}/log/{interaction}/proof/file", employees, p.proofDownload, false},
	}
}

// logData is what templates/log.html shows.
type logData struct {
	Filter          logFilter
	Errors          map[string]string // texts, by field
	Calendar        calendar
	CalendarMissing *Problem
	List            logPart
	ListMissing     *Problem
	Nobody          bool // nobody lives there: there is no customer whose log it is
	Parties         []asker
	Path            string
}

// Prove is the address of the proof of a request.
func (d logData) Prove(id string) string {
	return d.Path + "/" + id + "/proof" + d.Filter.proofQuery(d.List.said[id])
}

// Purposes and Classes are those that can be chosen.
func (logData) Purposes() []client.Purpose {
	return []client.Purpose{client.PurposeBILLING, client.PurposeENERGYMANAGEMENT, client.PurposeSWITCH, client.PurposeMOVE, client.PurposeCUSTOMERSERVICE}
}

// Classes are those of readings.
func (logData) Classes() []string { return []string{"registers", "intervals"} }

// logFilter is what is looked for, as it stands in the address: nothing of it says
// whose log it is.
type logFilter struct {
	From, To                 string // days, both included; "": open
	Supplier, Purpose, Class string
	All                      bool   // requests without readings too
	Occupancy                string // first day of another customer's than of who lives there now
	Cursor                   string // of the API: where to go on

	from, to  *meter.Day // to is excluded
	occupancy *meter.Day
}

var cursorForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

// parseLogFilter reads an address, or says by field what is wrong (texts).
func parseLogFilter(q url.Values) (logFilter, map[string]string) {
	f := logFilter{
		From: q.Get("from"), To: q.Get("to"), Supplier: q.Get("supplier"), Purpose: q.Get("purpose"), Class: q.Get("class"),
		All: q.Get("show") == "all", Occupancy: q.Get("occupancy"), Cursor: q.Get("cursor"),
	}
	errs := map[string]string{}
	day := func(field, s string) *meter.Day {
		if s == "" {
			return nil
		}
		d, err := meter.ParseDay(s)
		if err != nil {
			errs[field] = "log.day.wrong"
			return nil
		}
		return &d
	}
	f.from, f.to, f.occupancy = day("from", f.From), day("to", f.To), day("occupancy", f.Occupancy)
	if f.to != nil {
		if f.from != nil && *f.to < *f.from {
			errs["to"] = "log.to.wrong"
		}
		*f.to++
	}
	if f.Supplier != "" {
		if gln, err := meter.ParseGLN(f.Supplier); err != nil || gln.String() != f.Supplier {
			errs["supplier"] = "log.supplier.wrong"
		}
	}
	if f.Purpose != "" && !slices.Contains(logData{}.Purposes(), client.Purpose(f.Purpose)) {
		errs["purpose"] = "log.choice.wrong"
	}
	if f.Class != "" && !slices.Contains(logData{}.Classes(), f.Class) {
		errs["class"] = "log.choice.wrong"
	}
	if f.Cursor != "" && !cursorForm.MatchString(f.Cursor) {
		errs["cursor"] = "log.choice.wrong"
	}
	return f, errs
}

// query is the filter as it stands in an address.
func (f logFilter) query() url.Values {
	q := url.Values{}
	for k, v := range map[string]string{"from": f.From, "to": f.To, "supplier": f.Supplier, "purpose": f.Purpose, "class": f.Class, "occupancy": f.Occupancy, "cursor": f.Cursor} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if f.All {
		q.Set("show", "all")
	}
	return q
}

// Query is what follows the path; "" for no filter.
func (f logFilter) Query() string {
	if q := f.query().Encode(); q != "" {
		return "?" + q
	}
	return ""
}

// On is the filter for one day, from its beginning.
func (f logFilter) On(d meter.Day) logFilter {
	f.From, f.To, f.Cursor = d.String(), d.String(), ""
	return f
}

// After is the filter from where a page ended.
func (f logFilter) After(cursor string) logFilter { f.Cursor = cursor; return f }

// Plain is the filter of the same customer without anything chosen.
func (f logFilter) Plain() logFilter { return logFilter{Occupancy: f.Occupancy, All: f.All} }

// Day is the day that was chosen, where it is one.
func (f logFilter) Day() string {
	if f.From == f.To {
		return f.From
	}
	return ""
}

func (f logFilter) params(limit int) *client.GetAccessLogParams {
	q := &client.GetAccessLogParams{Limit: &limit}
	if f.from != nil {
		q.From = apiDay(*f.from)
	}
	if f.to != nil {
		q.To = apiDay(*f.to)
	}
	if f.occupancy != nil {
		q.Occupancy = apiDay(*f.occupancy)
	}
	if f.Supplier != "" {
		q.Supplier = &f.Supplier
	}
	if f.Cursor != "" {
		q.Cursor = &f.Cursor
	}
	return q
}

// matches says whether an entry is looked for; the API knows nothing of purposes
// and classes here.
func (f logFilter) matches(e *client.AccessLogEntry, profile *meter.Profile) bool {
	if !f.All && e.Operation != client.READINGS {
		return false
	}
	if f.Purpose != "" && (e.Purpose == nil || string(*e.Purpose) != f.Purpose) {
		return false
	}
	of := func(field string) bool {
		x, ok := profile.Field(field)
		return ok && x.Class.String() == f.Class
	}
	return f.Class == "" ||
		slices.ContainsFunc(e.Granted, func(g client.AccessLogGranted) bool { return of(g.Field) }) ||
		slices.ContainsFunc(e.Withheld, func(w client.Withheld) bool { return of(w.Field) })
}

// Bounds of what is asked for a page: each call is in the customer's log.
const (
	listLimit     = 500
	listCalls     = 4
	listEnough    = 50
	calendarLimit = 1000
	calendarCalls = 6
)

func (p *Portal) logPage(w http.ResponseWriter, r *http.Request) error {
	d := logData{Path: visitOf(r).Case.Path("/log")}
	d.Filter, d.Errors = parseLogFilter(r.URL.Query())
	g := p.group(r)
	g.Go(func() (err error) {
		d.Calendar, err = p.askCalendar(r, d.Filter.occupancy)
		if noOccupancy(err) {
			d.Nobody = true
			return nil
		}
		if err != nil {
			pr := problemOf(err)
			d.CalendarMissing = &pr
		}
		return nil
	})
	if len(d.Errors) == 0 {
		g.Go(func() (err error) {
			d.List, err = p.askLog(r, d.Filter)
			if err != nil && !noOccupancy(err) {
				pr := problemOf(err)
				d.ListMissing = &pr
				if d.ListMissing.Name == errSignInAgain.name {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	d.List.Path = d.Path
	d.Calendar.mark(d.Filter.Day())
	d.Parties = partiesWith(d.Calendar.Parties, d.Filter.Supplier)
	status := http.StatusOK
	if len(d.Errors) > 0 {
		status = http.StatusUnprocessableEntity
	}
	return p.render(w, r, status, "log", d)
}

// logList answers GET …/log/list: the list alone, or what follows it.
func (p *Portal) logList(w http.ResponseWriter, r *http.Request) error {
	f, errs := parseLogFilter(r.URL.Query())
	if len(errs) > 0 {
		return errForm
	}
	list, err := p.askLog(r, f)
	if err != nil {
		return err
	}
	list.Path = visitOf(r).Case.Path("/log")
	return p.part(w, r, "log", "list", logData{Filter: f, List: list, Path: list.Path})
}

// noOccupancy says whether the API refused because nobody lives there.
func noOccupancy(err error) bool {
	pr := kluis.AsProblem(err)
	if pr == nil || pr.Errors == nil {
		return false
	}
	return slices.ContainsFunc(*pr.Errors, func(e client.ParameterError) bool { return e.Pointer == "/query/occupancy" })
}

// logPart is a piece of the log, as it is listed.
type logPart struct {
	Days       []logDay
	Found      int // requests
	Unreadable []string
	Next       string    // cursor; "": that is all
	Back       time.Time // of the earliest request looked at
	Path       string
	said       map[string]string // digest of what is shown, by request
}

// logDay are the lines of one local day, latest first.
type logDay struct {
	Day   meter.Day
	Lines []logLine
}

// askLog asks for pages until there is enough to show, or enough was asked.
func (p *Portal) askLog(r *http.Request, f logFilter) (logPart, error) {
	var part logPart
	var found []client.AccessLogEntry
	cursor := f.Cursor
	for range listCalls {
		log, err := p.askLogPage(r.Context(), r, f.After(cursor), listLimit)
		if err != nil {
			if len(found) == 0 {
				return part, err
			}
			break // what is there is shown, and leads on
		}
		for _, id := range log.Unreadable {
			part.Unreadable = append(part.Unreadable, id.String())
		}
		for i := range log.Entries {
			part.Back = log.Entries[i].At
			if f.matches(&log.Entries[i], p.profile) {
				found = append(found, log.Entries[i])
			}
		}
		cursor = ""
		if log.Links.Next != nil {
			cursor = cursorOf(*log.Links.Next)
		}
		part.Next = cursor
		if cursor == "" || len(found) >= listEnough {
			break
		}
	}
	part.Found = len(found)
	part.Days = logDays(found, p.profile)
	part.said = make(map[string]string, len(found))
	for i := range found {
		l := logLineOf(&found[i], p.profile)
		part.said[l.ID] = p.said(l)
	}
	return part, nil
}

func (p *Portal) askLogPage(ctx context.Context, r *http.Request, f logFilter, limit int) (*client.AccessLog, error) {
	c := visitOf(r).Case
	res, err := p.API(r, ToView(c)).GetAccessLogWithResponse(ctx, c.EAN.String(), f.params(limit), accept("application/json"))
	if err != nil {
		return nil, err
	}
	return Given(res.JSON200, res.HTTPResponse, res.Body)
}

// cursorOf is the cursor in a link to the next page; the link itself names the
// metering point and goes no further.
func cursorOf(link string) string {
	u, err := url.Parse(link)
	if err != nil {
		return ""
	}
	if c := u.Query().Get("cursor"); cursorForm.MatchString(c) {
		return c
	}
	return ""
}

// logLine is a request as a line of the list; or several of one party that asked
// for the same on one day and were given no readings.
type logLine struct {
	ID       string
	At       time.Time
	Day      meter.Day
	Clock    string // local time, with the zone where it came twice that day
	First    string // of the earliest, where there are several
	Others   []logRef
	GLN      string
	Name     string
	Employee string // as the provider calls them; "" for a supplier
	Reason   string

	What      string // text: what was asked for
	Readings  bool
	Purpose   client.Purpose
	From, To  *meter.Day // asked for; To is included
	AsOf      *time.Time
	Given     []givenDays
	Told      bool // Given may be read; nothing was opened
	Unchanged bool // Given had been given before
	Withheld  []withheldDays

	Outcome string // text
	Kind    string // of its badge
	Opened  int
	Person  bool // name and address, or the address, were decrypted
	Consent string

	given bool
	fold  foldKey
}

// Times is how many requests the line is of.
func (l logLine) Times() int { return 1 + len(l.Others) }

// logRef is a request of a line of several.
type logRef struct{ ID, Clock string }

type foldKey struct {
	day                            meter.Day
	gln, employee, reason, consent string
	operation, outcome, step       string
	purpose                        client.Purpose
}

// givenDays are days of one class of fields on one basis.
type givenDays struct {
	Class       string
	Granularity client.Resolution
	Basis       client.LegalBasis
	From, To    meter.Day // To is included
}

// withheldDays are days not given, for one reason.
type withheldDays struct {
	Reason   client.WithheldReason
	From, To meter.Day // To is included
}

// logDays makes lines of entries, which come latest first.
func logDays(entries []client.AccessLogEntry, profile *meter.Profile) []logDay {
	var days []logDay
	folds := map[foldKey][2]int{} // where the line of a key is
	for i := range entries {
		l := logLineOf(&entries[i], profile)
		if len(days) == 0 || days[len(days)-1].Day != l.Day {
			days = append(days, logDay{Day: l.Day})
		}
		at := len(days) - 1
		if at, ok := folds[l.fold]; ok && !l.given {
			into := &days[at[0]].Lines[at[1]]
			into.Others = append(into.Others, logRef{l.ID, l.Clock})
			into.First = l.Clock
			into.From, into.To = earlier(into.From, l.From), later(into.To, l.To)
			continue
		}
		if !l.given {
			folds[l.fold] = [2]int{at, len(days[at].Lines)}
		}
		days[at].Lines = append(days[at].Lines, l)
	}
	return days
}

func earlier(a, b *meter.Day) *meter.Day {
	if a == nil || b != nil && *b < *a {
		return b
	}
	return a
}

func later(a, b *meter.Day) *meter.Day {
	if a == nil || b != nil && *b > *a {
		return b
	}
	return a
}

// outcomeKinds are the badges of what came of it.
var outcomeKinds = map[client.AccessLogEntryOutcome]string{
	client.GIVEN: "ok", client.PARTLY: "warn", client.WITHHELD: "off", client.REFUSED: "off", client.FAILED: "bad", client.UNCHANGED: "info",
}

func logLineOf(e *client.AccessLogEntry, profile *meter.Profile) logLine {
	zone := profile.Location()
	l := logLine{
		ID: e.InteractionId.String(), At: e.At, Day: meter.DayOf(e.At, zone), Clock: clockOf(e.At, zone), GLN: e.Caller.Gln,
		Readings: e.Operation == client.READINGS, AsOf: e.AsOf, Kind: outcomeKinds[e.Outcome],
		Told: e.Operation == client.DRYRUN, Unchanged: e.Outcome == client.UNCHANGED,
	}
	if e.Caller.Name != nil {
		l.Name = *e.Caller.Name
	}
	if e.Caller.Employee != nil {
		_, l.Employee, _ = cutLast(*e.Caller.Employee, "#")
	}
	if e.Caller.Reason != nil {
		l.Reason = *e.Caller.Reason
	}
	if e.Purpose != nil {
		l.Purpose = *e.Purpose
	}
	if e.From != nil {
		from := localDay(*e.From)
		l.From = &from
	}
	if e.To != nil {
		to := localDay(*e.To) - 1
		l.To = &to
	}
	if e.ConsentId != nil {
		l.Consent = e.ConsentId.String()
	}
	done := e.Outcome == client.GIVEN || e.Outcome == client.PARTLY || e.Outcome == client.UNCHANGED
	step := ""
	switch {
	case e.Step != nil:
		step = string(*e.Step)
		l.What = "log.done." + step
		if !done {
			l.What = "log.tried." + step
		}
	case done || l.Readings || l.Told:
		l.What = "log.done." + string(e.Operation)
	default:
		l.What = "log.tried." + string(e.Operation)
	}
	l.Outcome = "log.other." + string(e.Outcome)
	if l.Readings {
		l.Outcome = "log.outcome." + string(e.Outcome)
		l.Opened = e.Opened
	} else {
		l.Person = e.Opened > 0
	}
	l.given = l.Readings && (e.Outcome == client.GIVEN || e.Outcome == client.PARTLY || e.Opened > 0)
	l.Given, l.Withheld = givenOf(e.Granted, profile), withheldOf(e.Withheld)
	l.fold = foldKey{l.Day, l.GLN, l.Employee, l.Reason, l.Consent, string(e.Operation), string(e.Outcome), step, l.Purpose}
	return l
}

// givenOf joins fields, directions, tariffs and runs: of each class, basis and
// granularity the days from the first to the last.
func givenOf(granted []client.AccessLogGranted, profile *meter.Profile) []givenDays {
	var out []givenDays
	for _, g := range granted {
		x := givenDays{Granularity: g.Granularity, Basis: g.LegalBasis, From: localDay(g.From), To: localDay(g.To) - 1}
		if f, ok := profile.Field(g.Field); ok {
			x.Class = f.Class.String()
		}
		i := slices.IndexFunc(out, func(o givenDays) bool {
			return o.Class == x.Class && o.Granularity == x.Granularity && o.Basis == x.Basis
		})
		if i < 0 {
			out = append(out, x)
			continue
		}
		out[i].From, out[i].To = min(out[i].From, x.From), max(out[i].To, x.To)
	}
	return out
}

func withheldOf(withheld []client.Withheld) []withheldDays {
	var out []withheldDays
	for _, h := range withheld {
		x := withheldDays{h.Reason, localDay(h.From), localDay(h.To) - 1}
		i := slices.IndexFunc(out, func(o withheldDays) bool { return o.Reason == x.Reason })
		if i < 0 {
			out = append(out, x)
			continue
		}
		out[i].From, out[i].To = min(out[i].From, x.From), max(out[i].To, x.To)
	}
	return out
}

// cutLast cuts at the last sep; without one, all is after it.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

// clockOf is the local time; in the hour that comes twice, with the zone's name.
func clockOf(t time.Time, zone *time.Location) string {
	t = t.In(zone)
	for _, d := range []time.Duration{-time.Hour, time.Hour} {
		if o := t.Add(d); o.Hour() == t.Hour() && o.Day() == t.Day() {
			return t.Format("15:04 MST")
		}
	}
	return t.Format("15:04")
}

// asker is somebody whose requests can be chosen.
type asker struct{ GLN, Name string }

// partiesWith are the parties, and the one chosen where it is not among them.
func partiesWith(list []asker, chosen string) []asker {
	list = slices.Clone(list)
	if chosen != "" && !slices.ContainsFunc(list, func(o asker) bool { return o.GLN == chosen }) {
		list = append(list, asker{GLN: chosen})
	}
	slices.SortFunc(list, func(a, b asker) int {
		return cmp.Or(cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)), cmp.Compare(a.GLN, b.GLN))
	})
	return list
}

// calendar is how often readings were given on each day of the last twelve months,
// this one included.
type calendar struct {
	Months  []calendarMonth
	Total   int
	Reaches *meter.Day // not counted before this day: there are too many
	Parties []asker
}

type calendarMonth struct {
	Month meter.Day // its first day
	Weeks [][7]calendarDay
	Total int
}

// calendarDay is a cell; one without Day is of another month.
type calendarDay struct {
	Day   meter.Day
	In    bool // of this month
	State string
	Times int
	Level int // 0 to 4
	Here  bool
}

// The states of a day besides that it was counted ("").
const (
	dayFuture  = "future"
	dayBefore  = "before"  // the customer did not live there
	dayUnknown = "unknown" // not counted
)

// Number is the day of the month.
func (d calendarDay) Number() int { _, _, n := d.Day.Date(); return n }

// levels are the fewest times of each level; fixed, so that one customer's colours
// mean what another's do.
var levels = [...]int{1, 2, 5, 20}

func levelOf(times int) int {
	level := 0
	for i, from := range levels {
		if times >= from {
			level = i + 1
		}
	}
	return level
}

// Levels are those of the legend.
func (calendar) Levels() []string { return []string{"0", "1", "2–4", "5–19", "20+"} }

const calendarMonths = 12

// calendarFrom is the first day of a calendar of today.
func calendarFrom(today meter.Day) meter.Day {
	return today.Month().First().AddMonths(1 - calendarMonths)
}

// calendarOf lays out counts. living are the customer's days; reaches is the first
// day that was counted wholly, where not all were.
func calendarOf(counts map[meter.Day]int, today meter.Day, living meter.DayRange, reaches *meter.Day) calendar {
	c := calendar{Reaches: reaches}
	first := calendarFrom(today)
	for m := range calendarMonths {
		month := calendarMonth{Month: first.AddMonths(m)}
		end := month.Month.AddMonths(1)
		for monday := month.Month - meter.Day((int(month.Month.Start(time.UTC).Weekday())+6)%7); monday < end; monday += 7 {
			var week [7]calendarDay
			for i := range week {
				d := calendarDay{Day: monday + meter.Day(i)}
				d.In = d.Day >= month.Month && d.Day < end
				switch {
				case !d.In:
				case d.Day > today:
					d.State = dayFuture
				case d.Day < living.From || d.Day >= living.To:
					d.State = dayBefore
				case reaches != nil && d.Day < *reaches:
					d.State = dayUnknown
				}
				// A request of any day can concern the customer's days.
				if n := counts[d.Day]; d.In && n > 0 && d.State != dayUnknown {
					d.State, d.Times, d.Level = "", n, levelOf(n)
					month.Total += n
				}
				week[i] = d
			}
			month.Weeks = append(month.Weeks, week)
		}
		c.Total += month.Total
		c.Months = append(c.Months, month)
	}
	return c
}

// mark marks the day that is chosen.
func (c *calendar) mark(day string) {
	for m := range c.Months {
		for w := range c.Months[m].Weeks {
			for d := range c.Months[m].Weeks[w] {
				x := &c.Months[m].Weeks[w][d]
				x.Here = x.In && x.Day.String() == day
			}
		}
	}
}

// askCalendar counts. What cannot be had of it is not counted, and said.
func (p *Portal) askCalendar(r *http.Request, occupancy *meter.Day) (calendar, error) {
	zone := p.profile.Location()
	today := meter.DayOf(p.now(), zone)
	from := calendarFrom(today)
	f := logFilter{from: &from, occupancy: occupancy}
	counts := map[meter.Day]int{}
	living := meter.DayRange{From: from, To: today + 1}
	var parties []asker
	none := today + 1 // not even today
	reaches := &none
	for i := range calendarCalls {
		log, err := p.askLogPage(r.Context(), r, f, calendarLimit)
		if err != nil {
			if i == 0 {
				return calendar{}, err
			}
			break
		}
		living.From = localDay(log.Occupancy.From)
		if log.Occupancy.To != nil {
			living.To = localDay(*log.Occupancy.To)
		} else {
			living.To = meter.MaxDay
		}
		for _, e := range log.Entries {
			day := meter.DayOf(e.At, zone)
			after := day + 1 // the day itself may go on in the next page
			reaches = &after
			if e.Operation == client.READINGS && (e.Outcome == client.GIVEN || e.Outcome == client.PARTLY) {
				counts[day]++
			}
			x := asker{GLN: e.Caller.Gln}
			if e.Caller.Name != nil {
				x.Name = *e.Caller.Name
			}
			if !slices.Contains(parties, x) {
				parties = append(parties, x)
			}
		}
		if log.Links.Next == nil {
			reaches = nil
			break
		}
		if f.Cursor = cursorOf(*log.Links.Next); f.Cursor == "" {
			break
		}
	}
	c := calendarOf(counts, today, living, reaches)
	c.Parties = parties
	return c, nil
}
