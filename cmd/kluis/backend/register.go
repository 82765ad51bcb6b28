package backend

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"kluis/meter"
)

// ErrRegister is wrapped when an extract of the central connection register is
// not usable as it is.
var ErrRegister = errors.New("extract not usable")

// RowProblem is what is wrong with a row. It never repeats what the row holds.
type RowProblem struct {
	Line   int    `json:"line"`            // from 1, the heading included
	Column int    `json:"column"`          // from 1, in bytes
	Field  string `json:"field,omitempty"` // name of the column
	Reason string `json:"reason"`
}

func (p RowProblem) String() string {
	if p.Field == "" {
		return fmt.Sprintf("line %d, column %d: %s", p.Line, p.Column, p.Reason)
	}
	return fmt.Sprintf("line %d, column %d (%s): %s", p.Line, p.Column, p.Field, p.Reason)
}

// rowError is a RowProblem of the file as a whole: no row after it can be
// trusted.
type rowError struct{ RowProblem }

func (e *rowError) Error() string { return e.String() }
func (e *rowError) Unwrap() error { return ErrRegister }

// The columns of an extract.
const (
	colEAN = iota
	colCommodity
	colSupplier
	colSupplyFrom
	colSupplyTo
	colMovedIn
	colMovedOut
	columnCount
)

var columnNames = [columnCount]string{"ean", "commodity", "supplier", "supply_from", "supply_to", "moved_in", "moved_out"}

var requiredColumns = []int{colEAN, colSupplier, colSupplyFrom, colSupplyTo}

const (
	maxRegisterLine = 4096 // bytes
	// maxPointRows bounds the rows of one metering point, all that is held of
	// the file at once. A legal file has room for about as many periods.
	maxPointRows = 1024
)

// registerRow is one row: a supply period, an occupancy, or both.
type registerRow struct {
	line     int
	at       [columnCount]int // where each cell begins, in bytes from 1; 0: no such column
	ean      meter.EAN
	kind     meter.Commodity // 0: not said
	supplier meter.GLN       // zero: no supply period
	supply   meter.DayRange
	occupied meter.DayRange // zero: no occupancy
}

func (r *registerRow) problem(column int, format string, args ...any) RowProblem {
	return RowProblem{r.line, max(r.at[column], 1), columnNames[column], fmt.Sprintf(format, args...)}
}

// registerPoint is what the extract says of one metering point.
type registerPoint struct {
	ean  meter.EAN
	rows []registerRow // those that can be read
	bad  []RowProblem
	line int // of its first row
}

// registerReader reads an extract a metering point at a time.
type registerReader struct {
	in       *bufio.Reader
	line     int
	rows     int   // read so far, the heading not counted
	bytes    int64 // read so far
	comma    byte
	cols     []int // which column each cell is of
	next     *registerRow
	nextBad  []RowProblem // of the row in next
	last     meter.EAN    // of the metering point before
	stray    *RowProblem  // the row before the next metering point cannot be told whose it is
	finished bool
}

// newRegisterReader reads the heading. Errors wrap ErrRegister, or are the
// reader's.
func newRegisterReader(in io.Reader) (*registerReader, error) {
	r := &registerReader{in: bufio.NewReaderSize(in, maxRegisterLine+2)}
	start, err := r.in.Peek(3)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.Equal(start, []byte("\xef\xbb\xbf")):
		r.bytes += 3
		_, _ = r.in.Discard(3) // was just peeked at
	case bytes.HasPrefix(start, []byte("\xff\xfe")), bytes.HasPrefix(start, []byte("\xfe\xff")):
		return nil, fmt.Errorf("%w: it is UTF-16: save it as UTF-8", ErrRegister)
	}
	heading, err := r.readLine()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: it is empty: the first line must name the columns %s", ErrRegister, strings.Join(columnNames[:], ", "))
	}
	if err != nil {
		return nil, err
	}
	r.comma = ','
	if bytes.IndexByte(heading, ';') >= 0 {
		r.comma = ';'
	}
	cells, at, why := splitRow(heading, r.comma)
	if why != "" {
		return nil, &rowError{RowProblem{r.line, at[len(at)-1], "", why}}
	}
	for i, name := range cells {
		c := slices.Index(columnNames[:], name)
		switch {
		case c < 0:
			return nil, &rowError{RowProblem{r.line, at[i], "", "unknown column: there are " + strings.Join(columnNames[:], ", ")}}
		case slices.Contains(r.cols, c):
			return nil, &rowError{RowProblem{r.line, at[i], columnNames[c], "the column is there twice"}}
		}
		r.cols = append(r.cols, c)
	}
	for _, c := range requiredColumns {
		if !slices.Contains(r.cols, c) {
			return nil, &rowError{RowProblem{r.line, 1, columnNames[c], "the column is missing"}}
		}
	}
	if slices.Contains(r.cols, colMovedOut) && !slices.Contains(r.cols, colMovedIn) {
		return nil, &rowError{RowProblem{r.line, 1, columnNames[colMovedIn], "the column is missing: moved_out goes with it"}}
	}
	return r, nil
}

// readLine reads the next line that is not blank, without its end. It is valid
// until the next call.
func (r *registerReader) readLine() ([]byte, error) {
	for {
		b, err := r.in.ReadSlice('\n')
		r.bytes += int64(len(b))
		switch {
		case errors.Is(err, bufio.ErrBufferFull), err == nil && len(b) > maxRegisterLine, errors.Is(err, io.EOF) && len(b) > maxRegisterLine:
			return nil, &rowError{RowProblem{r.line + 1, 1, "", fmt.Sprintf("the line is longer than %d bytes: this is no such extract", maxRegisterLine)}}
		case errors.Is(err, io.EOF) && len(b) == 0:
			return nil, io.EOF
		case err != nil && !errors.Is(err, io.EOF):
			return nil, fmt.Errorf("reading after line %d: %w", r.line, err)
		}
		r.line++
		b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
		if len(b) > 0 {
			return b, nil
		}
	}
}

// splitRow takes a row apart: its cells, and where each begins. A cell may be in
// quotes; nothing in these columns needs any. why says what is wrong with the
// last cell returned.
func splitRow(line []byte, comma byte) (cells []string, at []int, why string) {
	for begin := 0; ; {
		end := bytes.IndexByte(line[begin:], comma)
		last := end < 0
		if last {
			end = len(line) - begin
		}
		cell := line[begin : begin+end]
		at = append(at, begin+1)
		if len(cell) >= 2 && cell[0] == '"' && cell[len(cell)-1] == '"' {
			cell = cell[1 : len(cell)-1]
		}
		cells = append(cells, string(cell))
		switch {
		case !utf8.Valid(cell):
			return cells, at, "is not UTF-8"
		case bytes.IndexByte(cell, '"') >= 0:
			return cells, at, "a quotation mark within a cell"
		case last:
			return cells, at, ""
		}
		begin += end + 1
	}
}

// advance reads the next row into r.next; nil at the end.
func (r *registerReader) advance() error {
	r.next, r.nextBad = nil, nil
	line, err := r.readLine()
	if errors.Is(err, io.EOF) {
		r.finished = true
		return nil
	}
	if err != nil {
		return err
	}
	r.rows++
	r.next, r.nextBad = r.parse(line)
	return nil
}

// parse reads a row; what cannot be read is a problem. The EAN is zero when it
// cannot be read.
func (r *registerReader) parse(line []byte) (*registerRow, []RowProblem) {
	row := &registerRow{line: r.line}
	cells, at, why := splitRow(line, r.comma)
	if len(cells) > len(r.cols) || why == "" && len(cells) < len(r.cols) {
		return row, []RowProblem{{r.line, at[len(at)-1], "", fmt.Sprintf("%d cells; the heading has %d", len(cells), len(r.cols))}}
	}
	var text [columnCount]string
	for i, cell := range cells {
		text[r.cols[i]], row.at[r.cols[i]] = cell, at[i]
	}
	var bad []RowProblem
	refuse := func(column int, reason string) { bad = append(bad, row.problem(column, "%s", reason)) }
	var err error
	if row.ean, err = meter.ParseEAN(text[colEAN]); err != nil && (why == "" || row.at[colEAN] != 0) {
		refuse(colEAN, "not an EAN-18: 18 digits, the last one the check digit")
	}
	if why != "" { // of the last cell, after which nothing was read
		refuse(r.cols[len(cells)-1], why)
		return row, bad
	}
	if t := text[colCommodity]; t != "" {
		if row.kind, err = meter.ParseCommodity(t); err != nil {
			refuse(colCommodity, "must be electricity or gas")
		}
	}
	if t := text[colSupplier]; t != "" {
		if row.supplier, err = meter.ParseGLN(t); err != nil {
			refuse(colSupplier, "not a GLN: 13 digits, the last one the check digit")
		}
	}
	days := func(from, to int, what string) (meter.DayRange, bool) {
		d := meter.DayRange{To: meter.MaxDay}
		ok := true
		for _, c := range []int{from, to} {
			t := text[c]
			if t == "" {
				continue
			}
			day, err := meter.ParseDay(t)
			switch {
			case err != nil || len(t) != len("2006-01-02"):
				refuse(c, "not a day: want YYYY-MM-DD, from 1970 on")
				ok = false
			case t == "9999-12-31":
				refuse(c, "9999-12-31 is no day: leave the cell empty when there is no end")
				ok = false
			case c == from:
				d.From = day
			default:
				d.To = day
			}
		}
		switch {
		case !ok:
			return meter.DayRange{}, false
		case text[from] == "" && text[to] == "":
			return meter.DayRange{}, true
		case text[from] == "":
			refuse(from, what+" has an end and no beginning")
			return meter.DayRange{}, false
		case d.Empty():
			refuse(to, what+" ends before it begins: this is the first day after it")
			return meter.DayRange{}, false
		}
		return d, true
	}
	supply, ok := days(colSupplyFrom, colSupplyTo, "the supply period")
	row.supply = supply
	switch {
	case !ok:
	case text[colSupplier] == "" && supply != meter.DayRange{}:
		refuse(colSupplier, "a supply period of no supplier")
	case text[colSupplier] != "" && supply == meter.DayRange{}:
		refuse(colSupplyFrom, "a supplier without the first day of its supply")
	}
	row.occupied, ok = days(colMovedIn, colMovedOut, "the occupancy")
	if ok && len(bad) == 0 && supply == (meter.DayRange{}) && row.occupied == (meter.DayRange{}) {
		refuse(colSupplier, "the row says nothing: neither a supply period nor an occupancy")
	}
	return row, bad
}

// point reads the rows of the next metering point; io.EOF at the end. Other
// errors are of the file as a whole.
//
// Metering points come in ascending order, so that one that comes twice is
// noticed without a memory of all that were there. A row whose metering point
// cannot be read may belong to the one before or to the one after it: it spoils
// both.
func (r *registerReader) point() (*registerPoint, error) {
	if r.next == nil && !r.finished {
		if err := r.advance(); err != nil {
			return nil, err
		}
	}
	p := &registerPoint{}
	for r.next != nil {
		row := r.next
		switch {
		case row.ean.IsZero():
			p.bad = append(p.bad, r.nextBad...)
			r.stray = &r.nextBad[0]
		case p.ean.IsZero():
			if row.ean.Int64() <= r.last.Int64() {
				return nil, &rowError{row.problem(colEAN, "metering points must come in ascending order, all rows of one together: sort the file by ean")}
			}
			p.ean, p.line, r.last = row.ean, row.line, row.ean
			if r.stray != nil && len(p.bad) == 0 {
				p.bad = append(p.bad, row.problem(colEAN, "the metering point may lack a row: whose line %d is cannot be read", r.stray.Line))
			}
		}
		if !row.ean.IsZero() {
			if row.ean != p.ean {
				break
			}
			r.stray = nil // whatever came before was of this one
			p.bad = append(p.bad, r.nextBad...)
			if len(r.nextBad) == 0 {
				p.rows = append(p.rows, *row)
			}
		}
		if len(p.rows)+len(p.bad) > maxPointRows {
			return nil, &rowError{row.problem(colEAN, "more than %d rows of one metering point", maxPointRows)}
		}
		if err := r.advance(); err != nil {
			return nil, err
		}
	}
	if p.ean.IsZero() && len(p.bad) == 0 {
		return nil, io.EOF
	}
	return p, nil
}
