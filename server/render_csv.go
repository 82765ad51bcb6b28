package server

import (
	"strconv"
	"strings"
	"time"

	"kluis/meter"
)

// csvHeader is the first line of every table of readings: the columns of the
// contract's Table. A getReadings table and a stream have the same.
const csvHeader = "record,ean,field,obis,readingKind,resolution,unit,legalBasis,rule,start,value,quality," +
	"from,to,reason,expectedCount,deliveredCount,sequence,cursor,manifest\r\n"

// tableRow is a row that holds no values: `withheld`, `problem`, and those
// that are about a stream.
type tableRow struct {
	record, ean, field, from, to, reason string
	expected, delivered, sequence        string
	cursor, manifest                     string
}

func (r *tableRow) appendTo(dst []byte) []byte {
	for i, cell := range [...]string{
		r.record, r.ean, r.field, "", "", "", "", "", "", "", "", "",
		r.from, r.to, r.reason, r.expected, r.delivered, r.sequence, r.cursor, r.manifest,
	} {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendCell(dst, cell)
	}
	return append(dst, "\r\n"...)
}

// size is enough for the row.
func (r *tableRow) size() int {
	n := 32
	for _, cell := range [...]string{r.record, r.ean, r.field, r.from, r.to, r.reason, r.expected, r.delivered, r.sequence, r.cursor, r.manifest} {
		n += 2*len(cell) + 3
	}
	return n
}

// appendCell writes a cell (RFC 4180). A spreadsheet must take none for a
// formula: one that begins like it, and is no number, is led in by an
// apostrophe. No name, code or number of the API does; what else a table
// holds (cursors, a manifest) is made not to, or it could not be sent back.
func appendCell(dst []byte, s string) []byte {
	quoted := strings.ContainsAny(s, "\",\r\n")
	if quoted {
		dst = append(dst, '"')
	}
	if s != "" && strings.IndexByte("=+-@\t\r\n", s[0]) >= 0 && !plainNumber(s) {
		dst = append(dst, '\'')
	}
	if !quoted {
		return append(dst, s...)
	}
	for i := range len(s) {
		if s[i] == '"' {
			dst = append(dst, '"')
		}
		dst = append(dst, s[i])
	}
	return append(dst, '"')
}

// plainNumber is what values look like: the contract's pattern.
func plainNumber(s string) bool {
	whole, decimals, point := strings.Cut(strings.TrimPrefix(s, "-"), ".")
	return digits(whole) && (!point || digits(decimals))
}

func digits(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
}

// appendCSV writes the answer's rows of a table, without the header: of each
// series one with its counts, followed by its values, and then what is
// withheld. Like appendTo it is written by hand into one buffer, of csvSize.
func (a *answer) appendCSV(dst []byte) []byte { return a.appendRows(dst, 0) }

// appendRows does so for the metering point of this number in a stream; 0 is
// none.
func (a *answer) appendRows(dst []byte, sequence int) []byte {
	loc := a.profile.Location()
	ean, number := a.query.ean.String(), ""
	if sequence > 0 {
		number = strconv.Itoa(sequence)
	}
	for i := range a.series {
		s := &a.series[i]
		f, _ := a.profile.FieldByCode(s.Field)
		dst = append(dst, "series,"...)
		from := len(dst)
		for _, cell := range [...]string{ean, f.Name, f.OBIS, s.Kind.String(), s.Resolution.String(), f.Unit, s.Basis.String(), s.Rule} {
			dst = append(appendCell(dst, cell), ',')
		}
		of := dst[from:len(dst):len(dst)] // the same in each of its rows
		dst = append(dst, ",,,,,,"...)
		dst = strconv.AppendInt(dst, int64(s.Expected), 10)
		dst = append(dst, ',')
		dst = strconv.AppendInt(dst, int64(s.Delivered), 10)
		dst = append(dst, ',')
		dst = append(dst, number...)
		dst = append(dst, ",,\r\n"...)
		step := stepOf(s.Resolution)
		for j := range s.Days {
			d := &s.Days[j]
			start := d.Day.Start(loc)
			for k, v := range d.Values {
				dst = append(dst, "value,"...)
				dst = append(dst, of...)
				dst = start.Add(time.Duration(k)*step).AppendFormat(dst, time.RFC3339)
				dst = append(dst, ',')
				if v != meter.Null {
					dst = meter.AppendValue(dst, v, f.Precision)
				}
				dst = append(dst, ',')
				if d.Quality != nil {
					if q := exceptional(d, k); q != meter.AsProvided {
						dst = append(dst, q.String()...)
					}
				}
				dst = append(dst, ",,,,,,"...)
				dst = append(dst, number...)
				dst = append(dst, ",,\r\n"...)
			}
		}
	}
	for _, w := range a.withheld {
		f, _ := a.profile.FieldByCode(w.Field)
		r := tableRow{
			record: "withheld", ean: ean, field: f.Name, from: w.Days.From.String(), to: w.Days.To.String(),
			reason: w.Reason.String(), sequence: number,
		}
		dst = r.appendTo(dst)
	}
	return dst
}

// stepOf is what lies between the values of a day; a day that has but one
// needs none.
func stepOf(r meter.Resolution) time.Duration {
	switch r {
	case meter.PT15M:
		return 15 * time.Minute
	case meter.PT1H:
		return time.Hour
	}
	return 0
}

// csvSize is enough for the rows, whatever the values: see size.
func (a *answer) csvSize() int {
	const (
		aroundValue  = len("value,2026-03-29T00:00:00+01:00,-9223372036854775808.,NOT_AVAILABLE,,,,,,2147483647,,\r\n") + 1
		aroundCounts = len("series,,,,,,,2147483647,2147483647,2147483647,,\r\n")
		ofWithheld   = 256 // the longest field name is 63
	)
	n := ofWithheld * len(a.withheld)
	for i := range a.series {
		s := &a.series[i]
		f, _ := a.profile.FieldByCode(s.Field)
		// Field, OBIS code, unit and rule are of a market profile, in which
		// they hold nothing that is quoted.
		of := len("871687140000000019,,,CONSUMPTION,PT15M,,CUSTOMER_SERVICE,,") + len(f.Name) + len(f.OBIS) + len(f.Unit) + len(s.Rule) + 8
		n += aroundCounts + of
		for j := range s.Days {
			n += len(s.Days[j].Values) * (aroundValue + of)
		}
	}
	return n
}
