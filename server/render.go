package server

import (
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/meter"
)

// answer is what getReadings says: the schema Readings of the contract.
type answer struct {
	interaction uuid.UUID
	query       query
	profile     *meter.Profile
	series      []meter.Series
	withheld    []authz.Withheld
	tag         string // "": none
	unchanged   bool   // the caller has it, as the tag says; then there is no more here
}

// appendTo writes the answer as JSON. It is written by hand because the
// generated types hold each value as a pointer to a string: the benchmark
// beside the tests has the price. The tests hold it to the generated types
// and to the contract.
func (a *answer) appendTo(dst []byte) []byte {
	loc := a.profile.Location()
	dst = append(dst, `{"interactionId":"`...)
	dst = append(dst, a.interaction.String()...)
	dst = append(dst, `","ean":"`...)
	dst = append(dst, a.query.ean.String()...)
	dst = append(dst, `","purpose":"`...)
	dst = append(dst, a.query.purpose.String()...)
	dst = append(dst, `","from":"`...)
	dst = append(dst, a.query.days.From.String()...)
	dst = append(dst, `","to":"`...)
	dst = append(dst, a.query.days.To.String()...)
	if !a.query.asOf.IsZero() {
		dst = append(dst, `","asOf":"`...)
		dst = a.query.asOf.AppendFormat(dst, time.RFC3339Nano)
	}
	dst = append(dst, `","timeZone":`...)
	dst = appendString(dst, loc.String())
	dst = append(dst, `,"profileVersion":`...)
	dst = appendString(dst, a.profile.Version())
	dst = append(dst, ',')
	dst = a.appendContents(dst)
	return append(dst, `,"links":{"next":null}}`+"\n"...)
}

// appendContents writes what is given and what is withheld.
func (a *answer) appendContents(dst []byte) []byte {
	calendar := meter.NewCalendar(a.profile.Location())
	dst = append(dst, `"series":[`...)
	for i := range a.series {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = a.appendSeries(dst, &a.series[i], &calendar)
	}
	dst = append(dst, `],"withheld":[`...)
	for i, w := range a.withheld {
		if i > 0 {
			dst = append(dst, ',')
		}
		f, _ := a.profile.FieldByCode(w.Field)
		dst = append(dst, `{"field":`...)
		dst = appendString(dst, f.Name)
		dst = append(dst, `,"from":"`...)
		dst = append(dst, w.Days.From.String()...)
		dst = append(dst, `","to":"`...)
		dst = append(dst, w.Days.To.String()...)
		dst = append(dst, `","reason":"`...)
		dst = append(dst, w.Reason.String()...)
		dst = append(dst, `"}`...)
	}
	return append(dst, ']')
}

func (a *answer) appendSeries(dst []byte, s *meter.Series, c *meter.Calendar) []byte {
	f, _ := a.profile.FieldByCode(s.Field)
	dst = append(dst, `{"field":`...)
	dst = appendString(dst, f.Name)
	dst = append(dst, `,"obis":`...)
	dst = appendString(dst, f.OBIS)
	dst = append(dst, `,"readingKind":"`...)
	dst = append(dst, s.Kind.String()...)
	dst = append(dst, `","resolution":"`...)
	dst = append(dst, s.Resolution.String()...)
	dst = append(dst, `","unit":`...)
	dst = appendString(dst, f.Unit)
	dst = append(dst, `,"legalBasis":"`...)
	dst = append(dst, s.Basis.String()...)
	dst = append(dst, `","rule":`...)
	dst = appendString(dst, s.Rule)
	dst = append(dst, `,"expectedCount":`...)
	dst = strconv.AppendInt(dst, int64(s.Expected), 10)
	dst = append(dst, `,"deliveredCount":`...)
	dst = strconv.AppendInt(dst, int64(s.Delivered), 10)
	dst = append(dst, `,"days":[`...)
	for i := range s.Days {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendDay(dst, &s.Days[i], f.Precision, c)
	}
	return append(dst, "]}"...)
}

func appendDay(dst []byte, d *meter.SeriesDay, precision int, c *meter.Calendar) []byte {
	dst = append(dst, `{"start":"`...)
	dst = c.Start(d.Day).AppendFormat(dst, time.RFC3339)
	dst = append(dst, `","values":[`...)
	for _, v := range d.Values {
		if v == meter.Null {
			dst = append(dst, "null,"...)
			continue
		}
		dst = append(dst, '"')
		dst = meter.AppendValue(dst, v, precision)
		dst = append(dst, '"', ',')
	}
	if len(d.Values) > 0 {
		dst = dst[:len(dst)-1] // the last comma
	}
	dst = append(dst, ']')
	open := false
	for i := 0; i < len(d.Quality); {
		q := exceptional(d, i)
		n := 1
		for i+n < len(d.Quality) && exceptional(d, i+n) == q {
			n++
		}
		if q != meter.AsProvided {
			if !open {
				dst = append(dst, `,"quality":[`...)
				open = true
			} else {
				dst = append(dst, ',')
			}
			dst = append(dst, `{"index":`...)
			dst = strconv.AppendInt(dst, int64(i), 10)
			dst = append(dst, `,"count":`...)
			dst = strconv.AppendInt(dst, int64(n), 10)
			dst = append(dst, `,"quality":"`...)
			dst = append(dst, q.String()...)
			dst = append(dst, `"}`...)
		}
		i += n
	}
	if open {
		dst = append(dst, ']')
	}
	return append(dst, '}')
}

// exceptional is the quality to list for a value: a null that is not
// available says so by being null.
func exceptional(d *meter.SeriesDay, i int) meter.Quality {
	if d.Quality[i] == meter.NotAvailable && d.Values[i] == meter.Null {
		return meter.AsProvided
	}
	return d.Quality[i]
}

// appendString writes a JSON string (RFC 8259, 7).
func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r < 0x20:
			dst = append(dst, `\u00`...)
			dst = append(dst, hex[r>>4], hex[r&15])
		default: // a byte that is not UTF-8 has become U+FFFD
			dst = utf8.AppendRune(dst, r)
		}
	}
	return append(dst, '"')
}

// size is enough for the answer, so that it is written into one buffer, which
// is erased once it is sent: one outgrown would be left behind. Only values of
// more than 13 characters could outgrow it.
func (a *answer) size() int {
	n := 512 + 160*len(a.withheld)
	for i := range a.series {
		n += 512
		for j := range a.series[i].Days {
			d := &a.series[i].Days[j]
			n += 64 + 16*len(d.Values)
			for k := range d.Quality {
				if k == 0 || d.Quality[k] != d.Quality[k-1] {
					n += 64
				}
			}
		}
	}
	return n
}

// erase zeroes the readings that the answer holds. What the layers below have
// copied is theirs: this shortens how long plaintext lies about, no more.
func (a *answer) erase() {
	for i := range a.series {
		for _, d := range a.series[i].Days {
			clear(d.Values)
			clear(d.Quality)
		}
	}
}
