package server

import (
	"bytes"
	"encoding/csv"
	"strconv"
	"strings"
	"time"
	"unicode"

	"kluis/meter"
	"kluis/openapi"
)

// csvColumns are the header line. A request takes one line for each run of days
// it was granted, at least one; so do several that are folded. What is said of
// them as a whole stands in each of the lines, but for requests and opened, so
// that a sum over the column is right: these stand in the first. Of folded ones,
// interactionId, at and localTime are the latest's, and firstAt is the earliest's.
// Where the table goes on stands in next, in its last line.
var csvColumns = []string{
	"interactionId", "at", "localTime", "requests", "firstAt", "operation", "outcome", "gln", "name", "employee", "reason", "purpose",
	"askedFrom", "askedTo", "asOf", "opened", "field", "from", "to", "granularity", "legalBasis", "rule", "withheld", "consentId", "step", "next",
}

// Outcomes of lines that are of no request shown.
const (
	csvUnreadable = "UNREADABLE" // its record does not verify
	csvCut        = "CUT"        // the table goes on in another: from the cursor in the column next
)

// csv is the table (RFC 4180, UTF-8, days as YYYY-MM-DD and half-open).
func (v *logView) csv(now time.Time, more *rest) (*document, error) {
	loc := v.profile.Location()
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	w.UseCRLF = true
	write := func(cells map[string]string) {
		line := make([]string, len(csvColumns))
		for i, c := range csvColumns {
			line[i] = defused(cells[c])
		}
		_ = w.Write(line) // to a buffer; see Error below
	}
	_ = w.Write(csvColumns)
	for i := range v.entries {
		e := &v.entries[i]
		cells := map[string]string{
			"interactionId": e.InteractionId.String(), "at": e.At.Format(time.RFC3339Nano), "localTime": e.At.In(loc).Format("2006-01-02T15:04:05-07:00"),
			"operation": string(e.Operation), "outcome": string(e.Outcome), "gln": e.Caller.Gln, "name": text(e.Caller.Name),
			"employee": text(e.Caller.Employee), "reason": text(e.Caller.Reason), "purpose": text(e.Purpose), "step": text(e.Step),
			"opened": strconv.Itoa(e.Opened), "requests": strconv.Itoa(e.requests), "firstAt": e.first.Format(time.RFC3339Nano),
		}
		for _, r := range e.reasons {
			cells["withheld"] = strings.TrimSpace(cells["withheld"] + " " + string(r))
		}
		if e.From != nil {
			cells["askedFrom"], cells["askedTo"] = e.From.String(), e.To.String()
		}
		if e.AsOf != nil {
			cells["asOf"] = e.AsOf.Format(time.RFC3339Nano)
		}
		if e.ConsentId != nil {
			cells["consentId"] = e.ConsentId.String()
		}
		for j, g := range append(e.Granted, make([]openapi.AccessLogGranted, max(0, 1-len(e.Granted)))...) {
			if g.Field != "" {
				cells["field"], cells["from"], cells["to"] = g.Field, g.From.String(), g.To.String()
				cells["granularity"], cells["legalBasis"], cells["rule"] = string(g.Granularity), string(g.LegalBasis), g.Rule
			}
			if j > 0 {
				cells["opened"], cells["requests"] = "", ""
			}
			write(cells)
		}
	}
	for _, id := range v.unreadable {
		write(map[string]string{"interactionId": id.String(), "outcome": csvUnreadable})
	}
	d := &document{media: mediaCSV, header: map[string]string{
		"Content-Disposition": `attachment; filename="access-log-` + meter.DayOf(now, loc).String() + `.csv"`,
	}}
	if more != nil {
		write(map[string]string{"outcome": csvCut, "next": more.cursor})
		d.header["Link"] = "<" + more.link + `>; rel="next"`
	}
	w.Flush()
	d.body = b.Bytes()
	return d, w.Error()
}

func text[T ~string](s *T) string {
	if s == nil {
		return ""
	}
	return string(*s)
}

// defused keeps a spreadsheet from taking a cell for a formula, however it is
// led in: such a cell is text, which an apostrophe says. Control characters,
// and those that turn the direction of writing, are no text.
func defused(cell string) string {
	cell = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) && r != ' ' {
			return unicode.ReplacementChar
		}
		return r
	}, cell)
	// The full-width forms are taken for the others by some.
	if first := strings.TrimLeft(cell, " '\""+string(unicode.ReplacementChar)); first != "" && strings.ContainsRune("=+-@＝＋－＠|%", []rune(first)[0]) {
		return "'" + cell
	}
	return cell
}
