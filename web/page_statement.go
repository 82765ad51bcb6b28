package web

import (
	"bytes"
	"cmp"
	"html/template"
	"net/http"
	"slices"
	"time"

	"kluis/meter"
	"kluis/openapi/client"
)

// statementRoutes are those of templates/statement.html: what a customer gets on
// paper.
func (p *Portal) statementRoutes() []route {
	return []route{{"GET", "/c/{case}/statement", employees, p.statementPage, false}}
}

// statementData is what templates/statement.html shows: a form, and the paper in
// the customer's language, which need not be the employee's.
type statementData struct {
	PaperLang   string
	From, To    string // days, both included
	Occupancy   string
	Occupancies []client.DayPeriod
	Errors      map[string]string
	Path        string
	Paper       template.HTML // already rendered; "" where something is wrong
	Nobody      bool
}

// Languages are those that a statement can be in.
func (statementData) Languages() []string { return languages }

// paper is the statement itself.
type paper struct {
	Made, From, To  any // an instant, and days; From may be nil
	Connection      *client.Connection
	Identity        *client.ConnectionIdentity // nil: not of this customer
	Present         bool                       // the customer lives there now
	Living          meter.DayRange
	LivingTo        *meter.Day // last day; nil: still
	Rights          []supplierRights
	Consents        []consentRow
	ConsentsMissing *Problem
	Reference       string
	Readers         []paperReader
	Days            []logDay
	Found           int
	Unreadable      []string
	CutAt           *time.Time // what was before is not here
	LogMissing      *Problem
}

// Bases are those explained on it.
func (paper) Bases() []client.LegalBasis {
	return append(accessData{}.Bases(), client.LegalBasisCUSTOMERSERVICE)
}

// paperReader says of a party what it was given, and how often.
type paperReader struct {
	GLN, Name string
	Employee  bool
	Times     int
	Last      time.Time
	Uses      []paperUse
}

// paperUse is what readings were given for.
type paperUse struct {
	Purpose client.Purpose
	Basis   client.LegalBasis
	Class   string
}

// Bounds of a statement: more would be a book, and take too long.
const (
	statementMonths = 12
	statementCalls  = 8
	statementLines  = 1000
	statementTime   = 14 * time.Second
)

func (p *Portal) statementPage(w http.ResponseWriter, r *http.Request) error {
	v := visitOf(r)
	today := meter.DayOf(p.now(), p.profile.Location())
	q := r.URL.Query()
	d := statementData{PaperLang: v.Lang, Path: v.Case.Path("/statement")}
	if slices.Contains(languages, q.Get("lang")) {
		d.PaperLang = q.Get("lang")
	}
	if !q.Has("from") && !q.Has("to") {
		q.Set("from", today.AddMonths(-statementMonths).String())
		q.Set("to", today.String())
	}
	f, errs := parseLogFilter(q)
	f = logFilter{From: f.From, To: f.To, Occupancy: f.Occupancy, from: f.from, to: f.to, occupancy: f.occupancy}
	d.From, d.To, d.Occupancy, d.Errors = f.From, f.To, f.Occupancy, errs
	ask := p.askConnection
	if len(errs) == 0 && f.occupancy == nil { // of the customer of today, with their name
		ask = p.askConnectionAndIdentity
	}
	c, err := ask(r)
	if err != nil {
		return err
	}
	d.Occupancies = c.Occupancies
	if len(errs) > 0 {
		return p.render(w, r, http.StatusUnprocessableEntity, "statement", d)
	}
	living, ok := livingIn(c, f.occupancy, today)
	if !ok {
		d.Nobody = true
		return p.page(w, r, "statement", d)
	}
	if c.Identity.State == client.IdentityNotAsked && present(living, today) { // named by the day since when they live there
		if c, err = p.askConnectionAndIdentity(r); err != nil {
			return err
		}
	}
	sheet := p.paperOf(r, c, living, f, today)
	var b bytes.Buffer
	vw := &view{visit: &visit{Lang: d.PaperLang}, Page: "statement", Data: sheet}
	if err := p.templates[d.PaperLang].pages["statement"].ExecuteTemplate(&b, "paper", vw); err != nil {
		return err
	}
	d.Paper = template.HTML(b.String()) //nolint:gosec // a template made it
	return p.page(w, r, "statement", d)
}

// livingIn are the days of the customer whose statement it is: who lived there from
// a day on, or lives there now.
func livingIn(c *client.Connection, from *meter.Day, today meter.Day) (meter.DayRange, bool) {
	for _, o := range c.Occupancies {
		days := meter.DayRange{From: localDay(o.From), To: meter.MaxDay}
		if o.To != nil {
			days.To = localDay(*o.To)
		}
		if from != nil && days.From == *from || from == nil && days.From <= today && today < days.To {
			return days, true
		}
	}
	return meter.DayRange{}, false
}

// present says whether a customer lives there now.
func present(living meter.DayRange, today meter.Day) bool {
	return living.From <= today && today < living.To
}

// paperOf asks for what is on the paper. Whatever is of another customer is left
// out: the connection and the list of consents are those of all.
func (p *Portal) paperOf(r *http.Request, c *client.Connection, living meter.DayRange, f logFilter, today meter.Day) *paper {
	zone := p.profile.Location()
	s := &paper{Made: p.now(), Connection: c, Living: living, Present: present(living, today), Reference: c.InteractionId.String()}
	if f.from != nil {
		s.From = *f.from
	}
	s.To = today
	if f.to != nil {
		s.To = *f.to - 1
	}
	if s.Present && c.Identity.State != client.IdentityNotForRole { // an auditor's names nobody
		s.Identity = &c.Identity
	}
	if living.To != meter.MaxDay {
		last := living.To - 1
		s.LivingTo = &last
	}
	g := p.group(r)
	g.Go(func() error {
		cs := visitOf(r).Case
		res, err := p.API(r, ToView(cs)).ListConsentsWithResponse(r.Context(), cs.EAN.String(), &client.ListConsentsParams{})
		var consents []client.Consent
		if err == nil {
			var list *client.Consents
			if list, err = Given(res.JSON200, res.HTTPResponse, res.Body); err == nil {
				consents = consentsIn(list.Consents, living, zone)
			}
		}
		if err != nil {
			pr := problemOf(err)
			s.ConsentsMissing = &pr
		}
		names := namesOf(c)
		for _, x := range consents {
			s.Consents = append(s.Consents, consentRowOf(x, names))
		}
		s.Rights = rightsIn(p.askRights(r, c, consents, suppliersIn(c, living, today)), living, s.Present)
		return nil
	})
	g.Go(func() error {
		entries, err := p.askWhole(r, f, s)
		if err != nil {
			pr := problemOf(err)
			s.LogMissing = &pr
		}
		s.Readers = paperReaders(entries, p.profile)
		s.Days, s.Found = logDays(entries, p.profile), len(entries)
		if at, cut := cutLines(&s.Days, statementLines); cut {
			s.CutAt = &at
		}
		return nil
	})
	_ = g.Wait() // each part has its own problem
	return s
}

// askWhole goes through the log as far as its bounds let it.
func (p *Portal) askWhole(r *http.Request, f logFilter, s *paper) ([]client.AccessLogEntry, error) {
	began := p.now()
	var entries []client.AccessLogEntry
	for i := range statementCalls {
		log, err := p.askLogPage(r.Context(), r, f, calendarLimit)
		if err != nil && i == 0 {
			return nil, err
		}
		if err == nil {
			if i == 0 {
				s.Reference = log.InteractionId.String()
			}
			entries = append(entries, log.Entries...)
			for _, id := range log.Unreadable {
				s.Unreadable = append(s.Unreadable, id.String())
			}
			if log.Links.Next == nil {
				return entries, nil
			}
			f.Cursor = cursorOf(*log.Links.Next)
		}
		if err != nil || f.Cursor == "" || p.now().Sub(began) > statementTime {
			break
		}
	}
	at := began
	if len(entries) > 0 {
		at = entries[len(entries)-1].At
	}
	s.CutAt = &at
	return entries, nil
}

// cutLines leaves the first lines, and says up to when they go.
func cutLines(days *[]logDay, most int) (at time.Time, cut bool) {
	for i := range *days {
		d := &(*days)[i]
		if len(d.Lines) <= most {
			most -= len(d.Lines)
			if len(d.Lines) > 0 {
				at = d.Lines[len(d.Lines)-1].At
			}
			continue
		}
		d.Lines = d.Lines[:most]
		if most > 0 {
			at = d.Lines[most-1].At
			i++
		}
		*days = (*days)[:i]
		return at, true
	}
	return at, false
}

// consentsIn are the consents that one customer was asked for, or gave.
func consentsIn(list []client.Consent, living meter.DayRange, zone *time.Location) []client.Consent {
	var out []client.Consent
	for _, c := range list {
		if len(c.Steps) == 0 {
			continue
		}
		first := c.Steps[0].At
		for _, s := range c.Steps {
			if s.At.Before(first) {
				first = s.At
			}
		}
		if day := meter.DayOf(first, zone); day >= living.From && day < living.To {
			out = append(out, c)
		}
	}
	return out
}

// suppliersIn are the suppliers that have to do with a customer's days, and can be
// given something yet.
func suppliersIn(c *client.Connection, living meter.DayRange, today meter.Day) []client.SupplierName {
	var out []client.SupplierName
	for _, s := range c.Suppliers {
		if slices.ContainsFunc(c.Supply, func(x client.SupplyPeriod) bool {
			from, to := localDay(x.From), meter.MaxDay
			if x.To != nil {
				to = localDay(*x.To)
			}
			return x.Supplier == s.Gln && from < living.To && to > living.From && to > today.AddMonths(-statementMonths)
		}) {
			out = append(out, s)
		}
	}
	return out
}

// rightsIn leaves of rights what concerns a customer's own days. A right that lasts
// does so for who lives there now.
func rightsIn(rows []supplierRights, living meter.DayRange, present bool) []supplierRights {
	var out []supplierRights
	for _, row := range rows {
		row.Any = false
		cells := slices.Clone(row.Cells)
		for i := range cells {
			var own []ground
			for _, g := range cells[i].Grounds {
				if g.From >= living.To || g.To < living.From {
					continue
				}
				g.From, g.To = max(g.From, living.From), min(g.To, living.To-1)
				if !present {
					g.Until, g.Open = nil, false
				}
				own = append(own, g)
			}
			cells[i].Grounds = own
			row.Any = row.Any || len(own) > 0
		}
		row.Cells = cells
		if row.Any || row.Present && present || row.Missing != nil {
			out = append(out, row)
		}
	}
	return out
}

// paperReaders sums up who was given readings, most first.
func paperReaders(entries []client.AccessLogEntry, profile *meter.Profile) []paperReader {
	var out []paperReader
	for i := range entries {
		e := &entries[i]
		if e.Operation != client.READINGS || e.Outcome != client.GIVEN && e.Outcome != client.PARTLY {
			continue
		}
		employee := e.Caller.Employee != nil
		at := slices.IndexFunc(out, func(o paperReader) bool { return o.GLN == e.Caller.Gln && o.Employee == employee })
		if at < 0 {
			at = len(out)
			out = append(out, paperReader{GLN: e.Caller.Gln, Employee: employee})
			if e.Caller.Name != nil {
				out[at].Name = *e.Caller.Name
			}
		}
		o := &out[at]
		o.Times++
		if e.At.After(o.Last) {
			o.Last = e.At
		}
		for _, g := range givenOf(e.Granted, profile) {
			use := paperUse{Basis: g.Basis, Class: g.Class}
			if e.Purpose != nil {
				use.Purpose = *e.Purpose
			}
			if !slices.Contains(o.Uses, use) {
				o.Uses = append(o.Uses, use)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b paperReader) int { return cmp.Compare(b.Times, a.Times) })
	return out
}
