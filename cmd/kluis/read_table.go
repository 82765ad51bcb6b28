package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"kluis/openapi/client"
)

// printReadings shows the readings of one metering point to people: how
// complete they are, the values, and what is withheld and what to do about it.
func printReadings(w io.Writer, r *client.Readings, chart bool, d glyphs) error {
	loc, err := time.LoadLocation(r.TimeZone)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%s, %s, %s to %s (%s)\n", r.Ean, r.Purpose, r.From, r.To, r.TimeZone)
	if err := printSeries(w, r.Series); err != nil {
		return err
	}
	if chart {
		err = printCharts(w, r.Series, loc, d)
	} else {
		err = printValues(w, r.Series, loc)
	}
	if err == nil {
		err = printWithheld(w, r.Withheld)
	}
	fmt.Fprintf(w, "\nInteraction %s\n", r.InteractionId)
	return err
}

func printSeries(w io.Writer, series []client.Series) error {
	if len(series) == 0 {
		fmt.Fprintln(w, "\nNothing is given.")
		return nil
	}
	fmt.Fprintln(w)
	rows := [][]string{{"FIELD", "KIND", "PER", "UNIT", "VALUES", "BASIS", "RULE"}}
	for _, s := range series {
		rows = append(rows, []string{s.Field, string(s.ReadingKind), string(s.Resolution), s.Unit, complete(s.DeliveredCount, s.ExpectedCount), string(s.LegalBasis), s.Rule})
	}
	return table(w, rows)
}

// complete says how many values there are of those there should be.
func complete(delivered, expected int) string {
	if delivered < expected {
		return fmt.Sprintf("%s of %s (%s missing)", thousands(delivered), thousands(expected), thousands(expected-delivered))
	}
	return fmt.Sprintf("%s of %s", thousands(delivered), thousands(expected))
}

// marks stand behind a value that did not come as the meter provided it.
var marks = map[client.Quality]string{
	client.ADJUSTED: "a", client.CALCULATED: "c", client.ESTIMATED: "e", client.INCOMPLETE: "i", client.TEMPORARY: "t", client.NOTAVAILABLE: "n",
}

// gap stands where a value is not known.
const gap = "-"

// moment is a value with its time.
type moment struct {
	at      time.Time
	value   *string
	quality client.Quality
}

func moments(s *client.Series, loc *time.Location) []moment {
	step := map[client.Resolution]time.Duration{client.PT15M: 15 * time.Minute, client.PT1H: time.Hour}[s.Resolution]
	var out []moment
	for _, d := range s.Days {
		first := len(out)
		for i, v := range d.Values {
			out = append(out, moment{at: d.Start.Add(time.Duration(i) * step).In(loc), value: v})
		}
		if d.Quality != nil {
			for _, q := range *d.Quality {
				for i := q.Index; i < q.Index+q.Count && i < len(d.Values); i++ {
					out[first+i].quality = q.Quality
				}
			}
		}
	}
	return out
}

// printValues shows series of the same kind and resolution beside each other,
// a row for each moment.
func printValues(w io.Writer, series []client.Series, loc *time.Location) error {
	type group struct {
		kind       client.ReadingKind
		resolution client.Resolution
	}
	var groups []group
	columns := map[group][]string{}
	cells := map[group]map[time.Time]map[string]string{}
	marked := map[client.Quality]bool{}
	for i := range series {
		s := &series[i]
		g := group{s.ReadingKind, s.Resolution}
		if cells[g] == nil {
			groups = append(groups, g)
			cells[g] = map[time.Time]map[string]string{}
		}
		// The same field on another basis has days of its own.
		name := s.Field + " (" + s.Unit + ")"
		if !slices.Contains(columns[g], name) {
			columns[g] = append(columns[g], name)
		}
		for _, m := range moments(s, loc) {
			if cells[g][m.at] == nil {
				cells[g][m.at] = map[string]string{}
			}
			cell := gap
			if m.value != nil {
				cell = *m.value + " " + marks[m.quality]
				marked[m.quality] = true
			}
			cells[g][m.at][name] = strings.TrimSpace(cell)
		}
	}
	for _, g := range groups {
		heading := []string{"START"}
		rows := [][]string{append(heading, columns[g]...)}
		var at []time.Time
		for t := range cells[g] {
			at = append(at, t)
		}
		slices.SortFunc(at, time.Time.Compare)
		for _, t := range at {
			row := []string{startOf(t, g.resolution)}
			for _, name := range columns[g] {
				row = append(row, cells[g][t][name])
			}
			rows = append(rows, row)
		}
		fmt.Fprintln(w)
		if err := table(w, rows); err != nil {
			return err
		}
	}
	var legend []string
	for q, mark := range marks {
		if marked[q] {
			legend = append(legend, mark+" "+strings.ToLower(string(q)))
		}
	}
	if slices.Sort(legend); len(legend) > 0 {
		fmt.Fprintf(w, "\nHow a value came about, where not from the meter: %s.\n", strings.Join(legend, ", "))
	}
	return nil
}

// startOf is a moment as people write it; with the offset where the clocks
// change within a day.
func startOf(t time.Time, r client.Resolution) string {
	switch r {
	case client.P1D:
		return t.Format(time.DateOnly)
	case client.P1M:
		return t.Format(time.DateOnly)
	}
	return t.Format("2006-01-02 15:04 -07:00")
}

// advice says what one does about a reason.
var advice = map[client.WithheldReason]string{
	client.PURPOSENOTAVAILABLE:         "the market has no rule for this purpose: ask for another",
	client.NOTCOVERED:                  "no rule covers these fields for this purpose: try --purpose ENERGY_MANAGEMENT, or registers",
	client.NOSUPPLY:                    "you do not supply on these days: ask for those you do, or for --purpose SWITCH",
	client.NOTOCCUPIED:                 "outside the customer's occupancy: ask for the days of it",
	client.NOCONSENT:                   "needs the customer's consent: request it (POST /v1/consents)",
	client.CONSENTREVOKED:              "the customer took the consent back: request a new one if you must",
	client.CONSENTEXPIRED:              "the consent ran out: request a new one",
	client.OPTEDOUT:                    "the customer opted out of remote reading: ask for a read otherwise",
	client.NOTGRANTEDATTHISGRANULARITY: "granted coarser: try a coarser --resolution, or leave it away",
	client.PARTIALPERIOD:               "not the whole month is yours: try --resolution P1D",
	client.PERIODINFUTURE:              "not over yet: ask again later",
	client.PERIODTOOOLD:                "past the time readings are kept: gone for good",
	client.FINERTHANSTORED:             "stored coarser: try a coarser --resolution, or leave it away",
	client.KINDNOTAVAILABLE:            "no values of this kind: leave --kind away",
	client.DAMAGED:                     "stored, but does not open: the grid operator is told; ask with the interaction below",
	client.ERASED:                      "erased for good",
}

func printWithheld(w io.Writer, withheld []client.Withheld) error {
	if len(withheld) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nWithheld:")
	rows := [][]string{{"FIELD", "FROM", "TO", "REASON", "WHAT TO DO"}}
	for _, x := range withheld {
		rows = append(rows, []string{x.Field, x.From.String(), x.To.String(), string(x.Reason), advice[x.Reason]})
	}
	return table(w, rows)
}

// printPoints shows a list of metering points.
func printPoints(w io.Writer, points []client.MeteringPoint, format string) error {
	rows := [][]string{{"EAN", "COMMODITY", "LEGAL BASES"}}
	switch format {
	case "ndjson":
		e := json.NewEncoder(w)
		for _, p := range points {
			if err := e.Encode(p); err != nil {
				return err
			}
		}
		return nil
	case "csv":
		rows[0] = []string{"ean", "commodity", "legalBases"}
	}
	for _, p := range points {
		var bases []string
		for _, b := range p.LegalBases {
			bases = append(bases, string(b))
		}
		rows = append(rows, []string{p.Ean, string(p.Commodity), strings.Join(bases, " ")})
	}
	if format == "csv" {
		c := csv.NewWriter(w)
		c.UseCRLF = true
		return c.WriteAll(rows)
	}
	if len(points) == 0 {
		fmt.Fprintln(w, "There is none that you have a legal basis for now.")
		return nil
	}
	return table(w, rows)
}
