package server

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"

	"kluis/openapi"
)

// lines writes what a stream says, in one of its formats. What a metering point
// is is one line of NDJSON, and several rows of CSV.
type lines interface {
	// format is the manifest's word for it; "": there is none.
	format() string
	// begin is what comes first.
	begin(dst []byte, q *querying) []byte
	// size is enough for the answer of a metering point, whatever its values.
	size(a *answer) int
	point(dst []byte, a *answer, sequence int) []byte
	// problem is a metering point that has no answer.
	problem(dst []byte, a *answer, sequence int, f *failure) []byte
	progress(dst []byte, q *querying) []byte
	// complete is the last of a stream that has everything,
	complete(dst []byte, q *querying, manifest string) []byte
	// broken of one that stops, and may go on from the cursor.
	broken(dst []byte, q *querying, cursor string, f *failure) []byte
}

func (c *call) lines() lines {
	switch c.media {
	case mediaCSV:
		return csvLines{}
	case mediaJSON:
		return &pageLines{}
	}
	return jsonLines{}
}

// jsonLines are NDJSON: the schema StreamLine of the contract.
type jsonLines struct{}

func (jsonLines) format() string { return "ndjson" }

func (jsonLines) begin(dst []byte, q *querying) []byte {
	dst = append(dst, `{"type":"begin",`...)
	dst = q.appendAsked(dst)
	dst = append(dst, `,"query":"`...)
	dst = base64.RawURLEncoding.AppendEncode(dst, q.asked.digest[:])
	dst = append(dst, `",`...)
	dst = q.appendDone(dst)
	return append(dst, "}\n"...)
}

// appendAsked writes the members that repeat what was asked.
func (q *querying) appendAsked(dst []byte) []byte {
	dst = append(dst, `"interactionId":"`...)
	dst = append(dst, q.ev.interaction.String()...)
	dst = append(dst, `","purpose":"`...)
	dst = append(dst, q.asked.purpose.String()...)
	dst = append(dst, `","from":"`...)
	dst = append(dst, q.asked.days.From.String()...)
	dst = append(dst, `","to":"`...)
	dst = append(dst, q.asked.days.To.String()...)
	dst = append(dst, `","timeZone":`...)
	dst = appendString(dst, q.s.profile.Location().String())
	dst = append(dst, `,"profileVersion":`...)
	return appendString(dst, q.s.profile.Version())
}

// appendDone writes how far the query came.
func (q *querying) appendDone(dst []byte) []byte {
	dst = append(dst, `"done":`...)
	dst = strconv.AppendInt(dst, int64(q.place.sequence()), 10)
	dst = append(dst, `,"total":`...)
	if !q.asked.listed {
		return append(dst, "null"...)
	}
	return strconv.AppendInt(dst, int64(len(q.asked.eans)), 10)
}

func (jsonLines) size(a *answer) int { return a.size() + 128 }

func (jsonLines) point(dst []byte, a *answer, sequence int) []byte {
	dst = append(dst, `{"type":"point",`...)
	dst = appendPoint(dst, a, sequence)
	return append(dst, "}\n"...)
}

// appendPoint writes the members of QueryPoint that an answer has.
func appendPoint(dst []byte, a *answer, sequence int) []byte {
	dst = appendPointHead(dst, a, sequence)
	dst = append(dst, ',')
	return a.appendContents(dst)
}

func appendPointHead(dst []byte, a *answer, sequence int) []byte {
	dst = append(dst, `"sequence":`...)
	dst = strconv.AppendInt(dst, int64(sequence), 10)
	dst = append(dst, `,"ean":"`...)
	dst = append(dst, a.query.ean.String()...)
	return append(dst, '"')
}

func (jsonLines) problem(dst []byte, a *answer, sequence int, f *failure) []byte {
	dst = append(dst, `{"type":"point",`...)
	dst = appendPointProblem(dst, a, sequence, f)
	return append(dst, "}\n"...)
}

func appendPointProblem(dst []byte, a *answer, sequence int, f *failure) []byte {
	dst = appendPointHead(dst, a, sequence)
	dst = append(dst, `,"problem":`...)
	return appendProblem(dst, f, a.interaction)
}

// appendProblem writes a problem that is part of an answer.
func appendProblem(dst []byte, f *failure, interaction openapi.InteractionId) []byte {
	p := f.problem(interaction)
	if n, err := strconv.Atoi(f.retryIn()); err == nil {
		p.RetryAfter = &n // there is no header for it
	}
	b, err := json.Marshal(p)
	if err != nil {
		panic(fmt.Sprintf("a problem must always encode: %v", err)) // strings and numbers
	}
	return append(dst, b...)
}

func (jsonLines) progress(dst []byte, q *querying) []byte {
	dst = append(dst, `{"type":"progress","sequence":`...)
	dst = strconv.AppendInt(dst, int64(q.place.sequence()), 10)
	dst = append(dst, ',')
	dst = q.appendDone(dst)
	dst = append(dst, `,"cursor":"`...)
	dst = append(dst, q.cursor()...)
	return append(dst, "\"}\n"...)
}

func (jsonLines) complete(dst []byte, q *querying, manifest string) []byte {
	dst = append(dst, `{"type":"end","complete":true,"sequence":`...)
	dst = strconv.AppendInt(dst, int64(q.place.sequence()), 10)
	dst = append(dst, ',')
	dst = q.appendDone(dst)
	dst = append(dst, `,"manifest":"`...)
	dst = append(dst, manifest...)
	return append(dst, "\"}\n"...)
}

func (jsonLines) broken(dst []byte, q *querying, cursor string, f *failure) []byte {
	dst = append(dst, `{"type":"end","complete":false,"sequence":`...)
	dst = strconv.AppendInt(dst, int64(q.place.sequence()), 10)
	dst = append(dst, ',')
	dst = q.appendDone(dst)
	dst = append(dst, `,"cursor":"`...)
	dst = append(dst, cursor...)
	dst = append(dst, `","problem":`...)
	dst = appendProblem(dst, f, q.ev.interaction)
	return append(dst, "}\n"...)
}

// csvLines are rows of the contract's Table.
type csvLines struct{}

func (csvLines) format() string { return "csv" }

func (csvLines) begin(dst []byte, q *querying) []byte {
	dst = append(dst, csvHeader...)
	r := tableRow{
		record: "begin", from: q.asked.days.From.String(), to: q.asked.days.To.String(), sequence: strconv.Itoa(q.place.sequence()),
		// The chain of digests begins with it. By itself it may begin like a
		// formula.
		manifest: "query=" + base64.RawURLEncoding.EncodeToString(q.asked.digest[:]),
	}
	return r.appendTo(dst)
}

func (csvLines) size(a *answer) int { return a.csvSize() + 256 }

func (csvLines) point(dst []byte, a *answer, sequence int) []byte { return a.appendRows(dst, sequence) }

func (csvLines) problem(dst []byte, a *answer, sequence int, f *failure) []byte {
	r := tableRow{record: "problem", ean: a.query.ean.String(), reason: f.kind.slug, sequence: strconv.Itoa(sequence)}
	return r.appendTo(dst)
}

func (csvLines) progress(dst []byte, q *querying) []byte {
	r := tableRow{record: "progress", sequence: strconv.Itoa(q.place.sequence()), cursor: q.cursor()}
	return r.appendTo(dst)
}

func (csvLines) complete(dst []byte, q *querying, manifest string) []byte {
	r := tableRow{record: "end", sequence: strconv.Itoa(q.place.sequence()), manifest: manifest}
	return r.appendTo(dst)
}

func (csvLines) broken(dst []byte, q *querying, cursor string, f *failure) []byte {
	r := tableRow{record: "end", sequence: strconv.Itoa(q.place.sequence()), cursor: cursor, reason: f.kind.slug}
	return r.appendTo(dst)
}
