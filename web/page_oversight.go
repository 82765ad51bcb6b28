package web

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"time"

	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/meter"
	"kluis/openapi/client"
)

// oversightRoutes are those of templates/oversight.html.
func (p *Portal) oversightRoutes() []route {
	return []route{{"GET", "/oversight", overseers, p.oversightPage, false}}
}

// oversightData is what templates/oversight.html shows.
type oversightData struct {
	At       time.Time
	From, To meter.Day // To is the last day, included
	Week     []period
	Log      oversightLog
	Unusual  []unusual
	Parties  []party
	Days     []oversightDay
	Most     int // requests in the busiest hour
	Requests int
	Refused  int
}

// period is a choice of days.
type period struct {
	Key      string // text
	From, To string // as in the query
	Here     bool
}

type oversightLog struct {
	client.OversightLog
	Kind string // of the alert: ok, warn, bad
}

// unusual is something to look at, in words: texts oversight.KIND and
// oversight.KIND.means.
type unusual struct {
	client.OversightUnusual
	What string
	Who  party
}

type party struct {
	client.OversightParty
	Employee bool
	Short    string // of an employee's subject: what follows the provider's address; of a supplier, its name
	Refused  int
	Share    int // of refused ones, in percent
}

// oversightDay is a row of the picture: 24 cells, one for each hour of the clock.
// The hour that is there twice when summer time ends has both in it.
type oversightDay struct {
	Day   meter.Day
	Hours []oversightCell
	Total int
}

type oversightCell struct {
	Hour     int
	Requests int
	Refused  int
	Level    int // 0 (none) to 4, for its colour
}

func (p *Portal) oversightPage(w http.ResponseWriter, r *http.Request) error {
	var params client.GetOversightParams
	days, given := p.oversightDays(r)
	if given {
		params.From, params.To = apiDay(days.From), apiDay(days.To)
	}
	var o *client.Oversight
	names := map[string]string{}
	g := p.group(r)
	g.Go(func() error {
		res, err := p.API(r, ToOversee("oversight")).GetOversightWithResponse(r.Context(), &params)
		if err == nil {
			o, err = Given(res.JSON200, res.HTTPResponse, res.Body)
		}
		return err
	})
	g.Go(func() error {
		if list, err := p.suppliers(r); err == nil { // without, numbers do
			for _, s := range list.Suppliers {
				names[string(s.Gln)] = s.Name
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	d := oversightOf(o, names, p.profile.Location())
	d.Week = periodsOf(d, meter.DayOf(p.now(), p.profile.Location()))
	return p.page(w, r, "oversight", d)
}

// oversightDays are those of the query, where they are a period.
func (p *Portal) oversightDays(r *http.Request) (meter.DayRange, bool) {
	q := r.URL.Query()
	from, err := meter.ParseDay(q.Get("from"))
	if err != nil {
		return meter.DayRange{}, false
	}
	to, err := meter.ParseDay(q.Get("to"))
	d := meter.DayRange{From: from, To: to}
	return d, err == nil && !d.Empty() && d.Len() <= maxOversight
}

// maxOversight is the longest period that the API gives.
const maxOversight = 31

// periodsOf are the choices offered: today, a week, four weeks.
func periodsOf(d oversightData, today meter.Day) []period {
	var out []period
	for _, c := range []struct {
		key  string
		days int
	}{{"oversight.today", 1}, {"oversight.week", 7}, {"oversight.weeks", 28}} {
		from := today - meter.Day(c.days) + 1
		out = append(out, period{Key: c.key, From: from.String(), To: (today + 1).String(), Here: d.From == from && d.To == today})
	}
	return out
}

func apiDay(d meter.Day) *openapi_types.Date {
	y, m, dd := d.Date()
	return &openapi_types.Date{Time: time.Date(y, m, dd, 0, 0, 0, 0, time.UTC)}
}

func localDay(d openapi_types.Date) meter.Day { return meter.DayOf(d.Time, time.UTC) }

// oversightOf makes the page of what the API says.
func oversightOf(o *client.Oversight, names map[string]string, zone *time.Location) oversightData {
	d := oversightData{At: o.At, From: localDay(o.From), To: localDay(o.To) - 1, Log: oversightLog{o.Log, "warn"}}
	switch o.Log.Result {
	case client.LogOk:
		d.Log.Kind = "ok"
	case client.LogFindings:
		d.Log.Kind = "bad"
	}
	for _, u := range o.Unusual {
		d.Unusual = append(d.Unusual, unusual{u, "oversight." + strings.ReplaceAll(strings.ToLower(string(u.Kind)), "_", "-"),
			partyOf(client.OversightParty{Kind: u.PartyKind, Name: u.Party}, names)})
	}
	slices.SortStableFunc(d.Unusual, func(a, b unusual) int { return b.From.Compare(a.From) })
	for _, x := range o.Parties {
		d.Parties = append(d.Parties, partyOf(x, names))
	}
	d.hours(o.Hours, zone)
	return d
}

func partyOf(x client.OversightParty, names map[string]string) party {
	out := party{OversightParty: x, Employee: x.Kind == client.PartyEmployee, Short: x.Name, Refused: x.Refused}
	if _, sub, ok := strings.Cut(x.Name, "#"); ok && out.Employee {
		out.Short = sub
	}
	if !out.Employee {
		out.Short = names[x.Name]
	}
	if x.Requests > 0 {
		out.Share = (100*x.Refused + x.Requests/2) / x.Requests
	}
	return out
}

// hours puts the hours into days of the market.
func (d *oversightData) hours(hours []client.OversightHour, zone *time.Location) {
	rows := map[meter.Day]*oversightDay{}
	for day := d.From; day <= d.To; day++ {
		row := &oversightDay{Day: day, Hours: make([]oversightCell, 24)}
		for h := range row.Hours {
			row.Hours[h].Hour = h
		}
		rows[day] = row
	}
	for _, h := range hours {
		row := rows[meter.DayOf(h.At, zone)]
		if row == nil {
			continue
		}
		cell := &row.Hours[h.At.In(zone).Hour()]
		cell.Requests += h.Requests
		cell.Refused += h.Refused
		row.Total += h.Requests
		d.Requests += h.Requests
		d.Refused += h.Refused
		d.Most = max(d.Most, cell.Requests)
	}
	for _, row := range rows {
		for i := range row.Hours {
			row.Hours[i].Level = level(row.Hours[i].Requests, d.Most)
		}
		d.Days = append(d.Days, *row)
	}
	slices.SortFunc(d.Days, func(a, b oversightDay) int { return cmp.Compare(b.Day, a.Day) })
}

// level is how deep a cell's colour is: a step for each quarter of the most.
func level(n, most int) int {
	if n <= 0 || most <= 0 {
		return 0
	}
	return min(4, 1+(4*n-1)/most)
}
