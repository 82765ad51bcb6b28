package conformance

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"kluis/meter"
)

// of a case that is there already: the request, and what of the answer other
// forms of it hold, too.
func (t *tables) like(name string) (Case, []Answered) {
	i := slices.IndexFunc(t.all, func(c Case) bool { return c.Name == name })
	c := t.all[i]
	r := c.Want.Readings
	return c, []Answered{{EAN: r.EAN, Series: r.Series, Withheld: r.Withheld}}
}

// formats are about the other forms of an answer, and about how the same is
// asked again.
func (t *tables) formats() {
	for _, f := range []struct{ name, of, says, media string }{
		{"table-of-reads", "daily-reads", "Register reads as a table (CSV)", mediaTable},
		{"table-of-gaps", "gaps", "A table with gaps: a value that is not known is an empty cell, an estimate says so", mediaTable},
		{"table-of-what-is-withheld", "switch-old-supplier", "A table says what is withheld, and why", mediaTable},
		{"green-button-reads", "two-way-registers", "Import and export registers as Green Button", mediaFeed},
		{"green-button-spring", "spring-quarters", "Quarter-hours on the day on which the clocks go forward, as Green Button", mediaFeed},
		{"green-button-gas", "gas-billing", "Gas as Green Button; what is withheld stands in an extension", mediaFeed},
	} {
		c, points := t.like(f.of)
		r := c.Request
		r.Accept = f.media
		t.add(Case{Name: f.name, Says: f.says, Supplier: c.Supplier, Request: r, Want: Answer{Status: http.StatusOK, Points: points, Media: f.media}})
	}
	c, _ := t.like("daily-reads")
	r := c.Request
	r.Accept = "text/html"
	t.problem("format-unknown", north, r, "Readings come as JSON, CSV or Green Button", http.StatusNotAcceptable, "not-acceptable")

	r = c.Request
	r.IfNoneMatch = Current
	t.add(Case{Name: "not-modified", Says: "Who has the answer already names its ETag: nothing is sent, nor decrypted, but it is recorded", Supplier: north, Request: r,
		Want: Answer{Status: http.StatusNotModified, Headers: []string{"ETag"}}})
	c.Name, c.Says, c.Want.Headers = "headers", "What an answer says beside its body: its ETag, and what is left of the supplier's quota of requests", []string{"ETag", "RateLimit", "RateLimit-Policy"}
	t.add(c)

	as := func(name string, at time.Time) Case {
		c, _ := t.like(name)
		v, err := url.ParseQuery(c.Request.Query)
		if err != nil {
			panic(err) // it was just encoded
		}
		v.Set("asOf", at.UTC().Format(time.RFC3339))
		c.Request.Query = strings.ReplaceAll(v.Encode(), "%2C", ",")
		return c
	}
	before := as("corrected-reads", t.midnight(t.seeded-1))
	before.Name, before.Says = "as-of-before-it-came-in", "As of a moment before anything was stored: granted as of now, and not known then"
	readings := *before.Want.Readings
	readings.Series = unknown(readings.Series)
	before.Want.Readings = &readings
	t.add(before)
	later := as("corrected-reads", t.midnight(t.today+3))
	t.problem("as-of-tomorrow", north, later.Request, "Nobody knows what will be stored", http.StatusBadRequest, "invalid-parameters", "/query/asOf")

	changes := func(v url.Values) Request { return Request{Path: "/v1/changes", Query: v.Encode()} }
	now := t.midnight(t.today).UTC().Format(time.RFC3339)
	t.problem("changes-since-long-ago", north, changes(with("since", t.midnight(t.today-100).UTC().Format(time.RFC3339))), "Changes are told for 90 days", http.StatusBadRequest, "invalid-parameters", "/query/since")
	t.problem("changes-since-and-cursor", north, changes(with("since", now, "cursor", "AQwY2tXe-egT")), "From a moment on, or from a cursor", http.StatusBadRequest, "invalid-parameters", "/query/cursor", "/query/since")
	t.problem("changes-scope-missing", third, changes(with("since", now)), "Changes are of readings: the token needs readings:read", http.StatusForbidden, "insufficient-scope")
}

// unknown is a series of which nothing is known.
func unknown(series []Series) []Series {
	out := slices.Clone(series)
	for i := range out {
		out[i].DeliveredCount = 0
		out[i].Days = slices.Clone(out[i].Days)
		for j := range out[i].Days {
			out[i].Days[j].Values = make([]*string, len(out[i].Days[j].Values))
			out[i].Days[j].Quality = nil
		}
	}
	return out
}

// asked is the body of a query.
type asked struct {
	MeteringPoints []string `json:"meteringPoints,omitempty"`
	From           string   `json:"from"`
	To             string   `json:"to"`
	Purpose        string   `json:"purpose"`
	Fields         []string `json:"fields,omitempty"`
	Cursor         string   `json:"cursor,omitempty"`
}

func (a asked) request(accept string) Request {
	b, err := json.Marshal(a)
	if err != nil {
		panic(err) // texts
	}
	return Request{Method: http.MethodPost, Path: "/v1/readings/query", Body: string(b), ContentType: "application/json", Accept: accept}
}

// queries are about many metering points at once.
func (t *tables) queries() {
	month := t.monthStart(-1)
	turn := month + 9
	two, around := days(month, month+2), days(turn-2, turn+2)
	answered := func(name string) Answered {
		_, points := t.like(name)
		return points[0]
	}
	withheld := func(point, field string, d meter.DayRange, reason meter.Reason) Answered {
		return Answered{EAN: t.pack.point(point).EAN.String(), Withheld: []Withheld{run(field, d, reason)}}
	}
	lost := func(ean string) Answered { return Answered{EAN: ean, Problem: "metering-point-not-found"} }
	foreign, nobody := t.pack.point("foreign").EAN.String(), testEAN(unknownNumber).String()
	sorted := func(points ...Answered) []Answered {
		slices.SortFunc(points, func(a, b Answered) int { return strings.Compare(a.EAN, b.EAN) })
		return points
	}
	ask := func(d meter.DayRange, field string, points []Answered) asked {
		a := asked{From: d.From.String(), To: d.To.String(), Purpose: energy, Fields: []string{field}}
		for _, p := range points {
			a.MeteringPoints = append([]string{p.EAN}, a.MeteringPoints...) // in no order
		}
		return a
	}

	given := func(point, resolution string) Answered {
		p := t.pack.point(point)
		return Answered{EAN: p.EAN.String(), Series: []Series{t.of(p, consent, "import_intervals", "CONSUMPTION", resolution, two)}}
	}
	intervals := sorted(
		given("quarters", "PT15M"), given("hours-granted", "PT1H"),
		answered("no-consent"), answered("consent-revoked"), answered("consent-expired"),
		withheld("moved-in", "import_intervals", two, meter.NotOccupied), withheld("gas", "import_intervals", two, meter.NotCoveredByRule),
		lost(foreign), lost(nobody),
	)
	q := ask(two, "import_intervals", intervals)
	const says = "Nine metering points: some given, some withheld, each for its own reason, two that are none of the caller's"
	t.add(Case{Name: "query-page", Says: says + "; as a page", Supplier: north, Request: q.request("application/json"),
		Want: Answer{Status: http.StatusOK, Points: intervals, Media: "application/json"}})
	t.add(Case{Name: "query-stream", Says: says + "; as a stream, with a manifest", Supplier: north, Request: q.request(mediaStream),
		Want: Answer{Status: http.StatusOK, Points: intervals, Manifest: manifestOf(intervals, 0, 1), Media: mediaStream, Headers: []string{"RateLimit", "RateLimit-Policy"}}})
	t.add(Case{Name: "query-table", Says: says + "; as a table that streams", Supplier: north, Request: q.request(mediaTable),
		Want: Answer{Status: http.StatusOK, Points: intervals, Manifest: manifestOf(intervals, 0, 1), Media: mediaTable}})

	reads := sorted(
		answered("switch-old-supplier"), answered("move-keeps-supply"), answered("erased"),
		withheld("vacant", "import_low", around, meter.NotOccupied), withheld("gas", "import_low", around, meter.NotCoveredByRule), lost(foreign),
	)
	for _, media := range []struct{ name, media string }{{"stream", mediaStream}, {"table", mediaTable}} {
		r := ask(around, "import_low", reads).request(media.media)
		r.Break = 2
		t.add(Case{Name: "query-" + media.name + "-resumed", Says: "A connection that breaks after two metering points: the same request with the last cursor gives the others, and a manifest of all", Supplier: north,
			Request: r, Want: Answer{Status: http.StatusOK, Points: reads, Manifest: manifestOf(reads, 0, 2), Media: media.media}})
	}

	all := asked{From: two.From.String(), To: two.To.String(), Purpose: energy, Fields: []string{"import_low"}}
	own := []Answered{answered("the-others-customer")}
	t.add(Case{Name: "query-all", Says: "No metering points named: all of which something is granted; how many others there are, the manifest says", Supplier: south,
		Request: all.request(mediaStream), Want: Answer{Status: http.StatusOK, Points: own, Manifest: manifestOf(own, 3, 1), Media: mediaStream}})

	const bad, invalid = http.StatusBadRequest, "invalid-parameters"
	twice := q
	twice.MeteringPoints = append(slices.Clone(q.MeteringPoints), q.MeteringPoints[0])
	t.problem("query-a-point-twice", north, twice.request(mediaStream), "Each metering point once", bad, invalid, fmt.Sprintf("/body/meteringPoints/%d", len(q.MeteringPoints)))
	forged := q
	forged.Cursor = "AQwY2tXe-egT"
	t.problem("query-cursor-made-up", north, forged.request(mediaStream), "A cursor is the gateway's to make", bad, invalid, "/body/cursor")
	t.problem("query-format-unknown", north, q.request("application/xml"), "Many metering points come as JSON, NDJSON or CSV", http.StatusNotAcceptable, "not-acceptable")
	text := q.request(mediaStream)
	text.ContentType = "text/plain"
	t.problem("query-in-plain-text", north, text, "The question must be JSON", http.StatusUnsupportedMediaType, "unsupported-media-type")
	t.problem("query-scope-missing", third, q.request(mediaStream), "A query is for readings: the token needs readings:read", http.StatusForbidden, "insufficient-scope")
}
