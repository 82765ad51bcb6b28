package server

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/meter"
	"kluis/openapi"
)

//go:embed templates/statement.html templates/statement.css
var templates embed.FS

// The page is one file: its style is in it, and its policy lets a browser load
// nothing, run nothing and use no other style.
var (
	statementCSS      = string(mustRead("templates/statement.css"))
	statementTemplate = template.Must(template.New("statement").Parse(string(mustRead("templates/statement.html"))))
	statementPolicy   = "default-src 'none'; style-src 'sha256-" + styleHash(statementCSS) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

func mustRead(name string) []byte {
	b, err := templates.ReadFile(name)
	if err != nil {
		panic(err) // it is embedded
	}
	return b
}

func styleHash(css string) string {
	sum := sha256.Sum256([]byte(css))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// statement is what the page shows.
type statement struct {
	W   *statementWords
	CSS template.CSS

	EAN, Commodity          string
	Operator, OperatorGLN   string
	Occupancy, Requests     string
	Filter                  string
	Made, Zone, Interaction string
	Counts                  []statementCount
	Parties                 []statementParty
	Entries                 []statementEntry
	Unreadable              []string
	Cut, Place              string
	Bases, Purposes, Others [][2]string
}

type statementCount struct {
	N    int
	What string
}

// statementParty is all that one party asked for.
type statementParty struct {
	Name, GLN             string
	Requests, Given       int
	Data, Bases, Purposes []string
	Latest                string

	codes map[string][]string // what is in the lists, by the contract's words
}

type statementEntry struct {
	At               string // RFC 3339
	Day, Time        string
	Times            string // when several are folded
	Name, GLN        string
	Employee, Reason string
	Asked, Purpose   string
	AskedDays        string
	Consent          string
	Result           string
	Lead             string
	Granted          []string
	Withheld         []string
	Opened           string
	Reference        string
}

// html is the statement to print.
func (v *logView) html(operator string, gln meter.GLN, interaction uuid.UUID, now time.Time, more *rest) (*document, error) {
	w, loc := words[v.query.sent.lang], v.profile.Location()
	st := &statement{
		W: w, CSS: template.CSS(statementCSS), EAN: v.file.EAN().String(), Commodity: w.Electricity,
		Operator: operator, OperatorGLN: gln.String(),
		Requests: w.requests(v.query.days), Made: w.moment(now, loc),
		Zone: fmt.Sprintf(w.Zone, loc), Interaction: interaction.String(),
	}
	if v.file.Commodity() == meter.Gas {
		st.Commodity = w.Gas
	}
	if d := v.occupancy.Days; d.To == meter.MaxDay {
		st.Occupancy = fmt.Sprintf(w.Since, w.day(d.From))
	} else {
		st.Occupancy = w.span(d.From, d.To-1)
	}
	for i := range v.entries {
		st.Entries = append(st.Entries, w.entry(&v.entries[i], loc))
	}
	if v.query.sent.cursor != "" {
		st.Requests = fmt.Sprintf(w.Continued, st.Requests, w.moment(v.query.after.At, loc))
	}
	requests := st.summarise(v.entries, loc)
	if !v.query.supplier.IsZero() {
		st.Filter = v.query.supplier.String()
		if len(st.Parties) > 0 && st.Parties[0].Name != "" {
			st.Filter = st.Parties[0].Name + ", " + st.Filter
		}
	}
	for _, id := range v.unreadable {
		st.Unreadable = append(st.Unreadable, id.String())
	}
	d := &document{media: mediaHTML, header: map[string]string{
		"Content-Security-Policy": statementPolicy, "Referrer-Policy": "no-referrer", "Content-Language": w.Lang,
	}}
	if more != nil {
		st.Cut, st.Place = fmt.Sprintf(w.Cut, requests, w.moment(more.at, loc)), more.cursor
		d.header["Link"] = "<" + more.link + `>; rel="next"`
	}
	var b bytes.Buffer
	if err := statementTemplate.Execute(&b, st); err != nil {
		return nil, err
	}
	d.body = b.Bytes()
	return d, nil
}

// day is a day as people write it.
func (w *statementWords) day(d meter.Day) string {
	y, m, dd := d.Date()
	return fmt.Sprintf("%d %s %d", dd, w.months[m-1], y)
}

func (w *statementWords) moment(at time.Time, loc *time.Location) string {
	return w.day(meter.DayOf(at, loc)) + ", " + at.In(loc).Format("15:04")
}

func (w *statementWords) run(from, to openapi_types.Date) string {
	first, last := meter.DayFromDate(from.Date()), meter.DayFromDate(to.Date())-1
	if first == last {
		return w.day(first)
	}
	return w.span(first, last)
}

// span is from one day to another, and says their year once if they share it.
func (w *statementWords) span(first, last meter.Day) string {
	y, m, d := first.Date()
	if ly, _, _ := last.Date(); ly == y {
		return fmt.Sprintf(w.Range, fmt.Sprintf("%d %s", d, w.months[m-1]), w.day(last))
	}
	return fmt.Sprintf(w.Range, w.day(first), w.day(last))
}

// requests says on which days those shown were made.
func (w *statementWords) requests(d meter.DayRange) string {
	switch {
	case d.From == 0 && d.To == meter.MaxDay:
		return w.AllRequests
	case d.To == meter.MaxDay:
		return fmt.Sprintf(w.RequestsSince, w.day(d.From))
	case d.From == 0:
		return fmt.Sprintf(w.RequestsUntil, w.day(d.To-1))
	}
	return fmt.Sprintf(w.RequestsBetween, w.day(d.From), w.day(d.To-1))
}

// field is a field's name in words; a profile of another market may have one
// that has none yet.
func (w *statementWords) field(name string) string {
	if s, ok := w.fields[name]; ok {
		return s
	}
	return strings.ReplaceAll(name, "_", " ")
}

func (w *statementWords) entry(e *logEntry, loc *time.Location) statementEntry {
	at := e.At.In(loc)
	out := statementEntry{
		At: at.Format(time.RFC3339), Day: w.day(meter.DayOf(at, loc)), Time: at.Format("15:04"),
		Name: text(e.Caller.Name), GLN: e.Caller.Gln, Asked: w.operations[e.Operation], Result: w.outcomes[e.Outcome], Reference: e.InteractionId.String(),
	}
	if e.Caller.Employee != nil {
		out.Employee, out.Reason = fmt.Sprintf(w.Employee, short(*e.Caller.Employee)), fmt.Sprintf(w.Reason, text(e.Caller.Reason))
	}
	if e.Operation != openapi.READINGS {
		out.Result = w.otherOutcomes[e.Outcome]
	}
	if e.Step != nil {
		out.Asked = w.steps[*e.Step][0]
	}
	if tried, ok := w.tried[e.Operation]; ok && e.Outcome != openapi.GIVEN && e.Outcome != openapi.PARTLY {
		out.Asked, out.Result = tried, fmt.Sprintf(w.NotDone, strings.ToLower(out.Result))
		if e.Step != nil {
			out.Asked = w.steps[*e.Step][1]
		}
	}
	if e.Purpose != nil {
		out.Purpose = w.purposes[*e.Purpose][0]
	}
	if e.From != nil {
		out.AskedDays = fmt.Sprintf(w.AskedDays, w.run(*e.From, *e.To))
	}
	if e.requests > 1 {
		out.Times = fmt.Sprintf(w.Folded, e.requests)
		if first := e.first.In(loc).Format("15:04"); e.At.Sub(e.first) >= time.Minute || first != out.Time {
			out.Time = first + "–" + out.Time
		}
		if e.From != nil {
			out.AskedDays = fmt.Sprintf(w.FoldedDays, w.run(*e.From, *e.To))
		}
	}
	if e.AsOf != nil {
		known := e.AsOf.In(loc)
		out.AskedDays += fmt.Sprintf(w.AsKnown, w.day(meter.DayOf(known, loc)), known.Format("15:04"))
	}
	if e.ConsentId != nil {
		out.Consent = fmt.Sprintf(w.Consent, e.ConsentId)
	}
	if e.Operation == openapi.DRYRUN && len(e.Granted) > 0 {
		out.Lead = w.Told
	}
	var granted, withheld sameDays
	for _, g := range e.Granted {
		granted.add(w.run(g.From, g.To), fmt.Sprintf("%s. %s: %s (%s).", w.granularities[g.Granularity], w.Basis, w.bases[g.LegalBasis][0], fmt.Sprintf(w.Rule, g.Rule)), w.field(g.Field))
	}
	for _, l := range granted {
		out.Granted = append(out.Granted, fmt.Sprintf("%s: %s, %s", strings.Join(l.fields, "; "), l.days, l.what))
	}
	// Where nothing was given, and all for one reason, the days are those asked for.
	if len(e.Withheld) > 0 && (e.Outcome != openapi.WITHHELD || len(e.reasons) > 1) {
		for _, h := range e.Withheld {
			withheld.add(w.run(h.From, h.To), w.reasons[h.Reason], w.field(h.Field))
		}
		for _, l := range withheld {
			out.Withheld = append(out.Withheld, fmt.Sprintf("%s: %s: %s.", strings.Join(l.fields, "; "), l.days, l.what))
		}
	} else {
		for _, r := range e.reasons {
			out.Withheld = append(out.Withheld, w.reasons[r]+".")
		}
	}
	if e.Opened > 0 {
		if out.Opened = w.identity[e.Operation]; out.Opened == "" {
			out.Opened = fmt.Sprintf(w.Opened, e.Opened)
		}
	}
	return out
}

// sameDays are runs of days; those that differ in the field only are one line.
type sameDays []struct {
	days, what string
	fields     []string
}

func (s *sameDays) add(days, what, field string) {
	for i := range *s {
		if l := &(*s)[i]; l.days == days && l.what == what {
			if !slices.Contains(l.fields, field) {
				l.fields = append(l.fields, field)
			}
			return
		}
	}
	*s = append(*s, struct {
		days, what string
		fields     []string
	}{days, what, []string{field}})
}

// short leaves out of an employee's subject which identity provider it is of.
func short(subject string) string {
	if _, s, ok := strings.Cut(subject, "#"); ok && s != "" {
		return s
	}
	return subject
}

// summarise counts, party by party, explains the words that are used, and
// returns how many requests there are.
func (st *statement) summarise(entries []logEntry, loc *time.Location) int {
	w := st.W
	var total, given, refused, failed, other int
	index := map[string]int{}
	used := map[string]bool{}
	for i := range entries {
		e := &entries[i]
		at, ok := index[e.Caller.Gln]
		if !ok {
			at = len(st.Parties)
			index[e.Caller.Gln] = at
			st.Parties = append(st.Parties, statementParty{
				Name: text(e.Caller.Name), GLN: e.Caller.Gln, Latest: w.day(meter.DayOf(e.At, loc)), codes: map[string][]string{},
			})
		}
		p := &st.Parties[at]
		p.Requests += e.requests
		total += e.requests
		add := func(list, word string) {
			used[list+word] = true
			if !slices.Contains(p.codes[list], word) {
				p.codes[list] = append(p.codes[list], word)
			}
		}
		if e.Purpose != nil {
			used["purpose"+string(*e.Purpose)] = true
		}
		gave := e.gave()
		switch {
		case gave:
			given += e.requests
			p.Given += e.requests
		case e.Outcome == openapi.FAILED:
			failed += e.requests
		case e.Outcome == openapi.UNCHANGED:
			other += e.requests
		case e.Operation == openapi.READINGS || e.Outcome == openapi.REFUSED || e.Outcome == openapi.WITHHELD:
			refused += e.requests // also when what was given was of days of another's
		default:
			other += e.requests
		}
		for _, g := range e.Granted {
			used["basis"+string(g.LegalBasis)] = true
			if gave {
				add("data", w.field(g.Field))
				add("data"+w.field(g.Field), w.granularities[g.Granularity])
				add("basis", string(g.LegalBasis))
			}
		}
		if gave && e.Purpose != nil {
			add("purpose", string(*e.Purpose))
		}
	}
	for i := range st.Parties {
		p := &st.Parties[i]
		slices.Sort(p.codes["data"])
		for _, f := range p.codes["data"] {
			p.Data = append(p.Data, f+": "+strings.Join(p.codes["data"+f], ", "))
		}
		for _, b := range p.codes["basis"] {
			p.Bases = append(p.Bases, w.bases[openapi.LegalBasis(b)][0])
		}
		for _, b := range p.codes["purpose"] {
			p.Purposes = append(p.Purposes, w.purposes[openapi.Purpose(b)][0])
		}
	}
	all := w.Total
	if total == 1 {
		all = w.TotalOne
	}
	for _, c := range []statementCount{{total, all}, {given, w.Given}, {refused, w.NotGiven}, {failed, w.Failed}, {other, w.Other}} {
		if c.N > 0 || c.What == all || c.What == w.Given {
			st.Counts = append(st.Counts, c)
		}
	}
	for b := range meter.CustomerServiceBasis + 1 {
		if word := openapi.LegalBasis(b.String()); used["basis"+string(word)] {
			st.Bases = append(st.Bases, w.bases[word])
		}
	}
	for p := range meter.CustomerService + 1 {
		if word := openapi.Purpose(p.String()); used["purpose"+string(word)] {
			st.Purposes = append(st.Purposes, w.purposes[word])
		}
	}
	st.Others = w.terms
	return total
}
