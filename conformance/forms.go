package conformance

import (
	"bytes"
	"encoding/csv"
	"encoding/xml"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"kluis/meter"
)

// answeredPoint is a metering point of a query as JSON.
type answeredPoint struct {
	EAN      string
	Series   []Series
	Withheld []Withheld
	Problem  *struct{ Type string }
}

func (p *answeredPoint) answered() Answered {
	a := Answered{EAN: p.EAN, Series: p.Series, Withheld: p.Withheld}
	if p.Problem != nil {
		a.Problem = strings.TrimPrefix(p.Problem.Type, "urn:kluis:problem:")
	}
	return a
}

// parseTable reads a table (RFC 4180) of metering points. Rows about a stream
// are passed over.
func parseTable(body []byte) ([]Answered, error) {
	lines, err := csv.NewReader(bytes.NewReader(body)).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("no table: %w", err)
	}
	if len(lines) == 0 {
		return nil, errors.New("a table without its columns")
	}
	column := map[string]int{}
	for i, name := range lines[0] {
		column[name] = i
	}
	var out []Answered
	for _, line := range lines[1:] {
		of := func(name string) string {
			if i, ok := column[name]; ok {
				return line[i]
			}
			return ""
		}
		ean := of("ean")
		if ean != "" && (len(out) == 0 || out[len(out)-1].EAN != ean) {
			out = append(out, Answered{EAN: ean})
		}
		switch of("record") {
		case "series":
			p := &out[len(out)-1]
			s := Series{Field: of("field"), OBIS: of("obis"), ReadingKind: of("readingKind"), Resolution: of("resolution"), Unit: of("unit"), LegalBasis: of("legalBasis"), Rule: of("rule")}
			var wrong [2]error
			s.ExpectedCount, wrong[0] = strconv.Atoi(of("expectedCount"))
			s.DeliveredCount, wrong[1] = strconv.Atoi(of("deliveredCount"))
			if err := errors.Join(wrong[:]...); err != nil {
				return nil, err
			}
			p.Series = append(p.Series, s)
		case "value":
			p := &out[len(out)-1]
			if len(p.Series) == 0 {
				return nil, errors.New("a value without its series")
			}
			var value *string
			if v := of("value"); v != "" {
				value = &v
			}
			if err := p.Series[len(p.Series)-1].put(of("start"), value, of("quality")); err != nil {
				return nil, err
			}
		case "withheld":
			p := &out[len(out)-1]
			p.Withheld = append(p.Withheld, Withheld{of("field"), of("from"), of("to"), of("reason")})
		case "problem":
			out[len(out)-1].Problem = of("reason")
		case "begin", "progress", "end":
		default:
			return nil, fmt.Errorf("a row %q", of("record"))
		}
	}
	return out, nil
}

// put adds a value to the day that it is of, by the date of its start.
func (s *Series) put(start string, value *string, quality string) error {
	if _, err := time.Parse(time.RFC3339, start); err != nil {
		return err
	}
	if n := len(s.Days); n == 0 || s.Days[n-1].Start[:len(time.DateOnly)] != start[:len(time.DateOnly)] {
		s.Days = append(s.Days, Day{Start: start})
	}
	d := &s.Days[len(s.Days)-1]
	if n := len(d.Quality); quality != "" && n > 0 && d.Quality[n-1].Quality == quality && d.Quality[n-1].Index+d.Quality[n-1].Count == len(d.Values) {
		d.Quality[n-1].Count++
	} else if quality != "" {
		d.Quality = append(d.Quality, Quality{Index: len(d.Values), Count: 1, Quality: quality})
	}
	d.Values = append(d.Values, value)
	return nil
}

// parseFeed reads Green Button. The values are put together again by the
// catalogue's unit and the days of the zone of the feed; that needs a feed
// without gaps.
func parseFeed(body []byte) ([]Answered, error) {
	type link struct {
		Rel  string `xml:"rel,attr"`
		Href string `xml:"href,attr"`
	}
	var feed struct {
		XMLName xml.Name `xml:"http://www.w3.org/2005/Atom feed"`
		Entries []struct {
			Links   []link `xml:"link"`
			Title   string `xml:"title"`
			Content struct {
				Point *struct {
					Withheld []struct {
						Field  string `xml:"field,attr"`
						From   string `xml:"from,attr"`
						To     string `xml:"to,attr"`
						Reason string `xml:"reason,attr"`
					} `xml:"extension>withheld"`
				} `xml:"http://naesb.org/espi UsagePoint"`
				Zone    *struct{} `xml:"http://naesb.org/espi LocalTimeParameters"`
				Reading *struct {
					Series struct {
						Field     string `xml:"field,attr"`
						OBIS      string `xml:"obis,attr"`
						Kind      string `xml:"readingKind,attr"`
						Res       string `xml:"resolution,attr"`
						Unit      string `xml:"unit,attr"`
						Basis     string `xml:"legalBasis,attr"`
						Rule      string `xml:"rule,attr"`
						Expected  int    `xml:"expectedCount,attr"`
						Delivered int    `xml:"deliveredCount,attr"`
					} `xml:"extension>series"`
				} `xml:"http://naesb.org/espi MeterReading"`
				Type *struct {
					Power int `xml:"powerOfTenMultiplier"`
					Unit  int `xml:"uom"`
				} `xml:"http://naesb.org/espi ReadingType"`
				Block *struct {
					Readings []struct {
						Start int64 `xml:"timePeriod>start"`
						Value int64 `xml:"value"`
					} `xml:"IntervalReading"`
				} `xml:"http://naesb.org/espi IntervalBlock"`
			} `xml:"content"`
		} `xml:"entry"`
	}
	if err := xml.Unmarshal(body, &feed); err != nil {
		return nil, fmt.Errorf("no feed: %w", err)
	}
	var out Answered
	loc := time.UTC
	at := map[string]int{}        // series by the link of their MeterReading
	needs := map[int][]string{}   // and what they are related to
	precision := map[string]int{} // decimals, by the link of a ReadingType
	for _, e := range feed.Entries {
		self := ""
		var related []string
		for _, l := range e.Links {
			switch l.Rel {
			case "self":
				self = l.Href
			case "related":
				related = append(related, l.Href)
			}
		}
		switch c := e.Content; {
		case c.Point != nil:
			out.EAN = e.Title
			for _, w := range c.Point.Withheld {
				out.Withheld = append(out.Withheld, Withheld{w.Field, w.From, w.To, w.Reason})
			}
		case c.Zone != nil:
			var err error
			if loc, err = time.LoadLocation(e.Title); err != nil {
				return nil, err
			}
		case c.Reading != nil:
			s := c.Reading.Series
			at[self], needs[len(out.Series)] = len(out.Series), related
			out.Series = append(out.Series, Series{Field: s.Field, OBIS: s.OBIS, ReadingKind: s.Kind, Resolution: s.Res, Unit: s.Unit, LegalBasis: s.Basis, Rule: s.Rule,
				ExpectedCount: s.Expected, DeliveredCount: s.Delivered})
		case c.Type != nil:
			// kWh are thousands of Wh (72); m3 (42) are m3.
			precision[self] = map[int]int{72: 3, 42: 0}[c.Type.Unit] - c.Type.Power
		}
	}
	for _, e := range feed.Entries {
		if e.Content.Block == nil {
			continue
		}
		i, decimals := -1, -1
		for _, l := range e.Links {
			if n, ok := at[strings.TrimSuffix(l.Href, "/IntervalBlock")]; ok && l.Rel == "up" {
				i = n
			}
		}
		for _, href := range needs[i] {
			if n, ok := precision[href]; ok {
				decimals = n
			}
		}
		if i < 0 || decimals < 0 {
			return nil, errors.New("an IntervalBlock without MeterReading or ReadingType")
		}
		for _, r := range e.Content.Block.Readings {
			v := string(meter.AppendValue(nil, meter.Value(r.Value), decimals))
			if err := out.Series[i].put(time.Unix(r.Start, 0).In(loc).Format(time.RFC3339), &v, ""); err != nil {
				return nil, err
			}
		}
	}
	return []Answered{out}, nil
}
