package ingest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"kluis/meter"
)

// ErrFile is wrapped by every error of Read: the file is not usable as it is.
var ErrFile = errors.New("file not usable")

// BadLine is a line that could not be read. It never repeats what the line
// holds.
type BadLine struct {
	Line   int    `json:"line"`   // from 1, the heading included
	Column int    `json:"column"` // from 1, in bytes
	Reason string `json:"reason"`
}

// LineError is a BadLine of a file.
type LineError struct {
	File string
	BadLine
}

func (e *LineError) Error() string {
	return fmt.Sprintf("%s: line %d, column %d: %s", e.File, e.Line, e.Column, e.Reason)
}

func (e *LineError) Unwrap() error { return ErrFile }

// ReadOptions of Mapping.Read.
type ReadOptions struct {
	// Home chooses one of the homes of a file that holds several.
	Home string
	// SkipBad leaves out lines that cannot be read and lists them in
	// File.Bad, instead of stopping at the first.
	SkipBad bool
	// Progress, when set, is told now and then how many rows are read.
	Progress func(rows int)
}

// File is what a file holds, by the mapping.
type File struct {
	Rows       int            // lines below the heading
	OtherHomes int            // rows of another home than the one asked for
	NotMapped  int            // rows that no field of the mapping chooses
	NoValue    map[string]int // per field: cells without a value
	OffGrid    map[string]int // per field: reads between the instants that are stored
	Bad        []BadLine      // only with SkipBad
	Blocks     []FieldBlock   // by field as in the mapping, then by day
}

// maxText bounds a file, unpacked: a packed one could otherwise fill the
// memory. 60,000 rows are some 5 MB.
const maxText = 1 << 30

// maxCells bounds what is kept of a file, to some 1 GB: 70 years of
// quarter-hours in eight fields.
const maxCells = 20_000_000

// maxBad is how many bad lines --skip-bad puts up with: beyond that, it is the
// mapping that is wrong.
const maxBad = 10_000

const progressEvery = 4096

// Read takes a file apart: CSV in UTF-8, packed by gzip or not. name is for
// messages. Everything is checked before anything is returned. Errors wrap
// ErrFile; those about a line are LineErrors.
func (m *Mapping) Read(r io.Reader, name string, p *meter.Profile, opt ReadOptions) (*File, error) {
	if m.SeveralHomes() && opt.Home == "" {
		return nil, fmt.Errorf("%w: %s holds several homes: choose one of column %q with --home", ErrFile, name, m.y.Select)
	}
	if !m.SeveralHomes() && opt.Home != "" {
		return nil, fmt.Errorf("%w: mapping %s has no column to choose a home by: leave --home out", ErrFile, m.name)
	}
	text, err := unpack(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrFile, name, err)
	}
	rd := &reader{
		m: m, opt: opt, name: name,
		csv:   csv.NewReader(text),
		out:   &File{NoValue: map[string]int{}, OffGrid: map[string]int{}},
		twice: map[occurrence]*seen{},
		days:  calendar{loc: p.Location()},
	}
	rd.csv.Comma = rune(m.y.CSV.Delimiter[0])
	rd.csv.LazyQuotes = m.y.CSV.LazyQuotes
	rd.csv.ReuseRecord = true
	rd.clock = clock{epoch: m.y.Time.Format == "epoch", rfc3339: m.y.Time.Format == "RFC3339", layout: m.layout, loc: m.location}
	if err := rd.run(); err != nil {
		return nil, err
	}
	return rd.out, nil
}

// unpack takes off gzip and a byte-order mark.
func unpack(r io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(r, 1<<16)
	if magic, err := b.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, err
		}
		b = bufio.NewReaderSize(&bounded{r: z, left: maxText}, 1<<16)
	} else {
		b = bufio.NewReaderSize(&bounded{r: b, left: maxText}, 1<<16)
	}
	start, err := b.Peek(3)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.Equal(start, []byte("\xef\xbb\xbf")):
		_, err = b.Discard(3)
		return b, err
	case bytes.HasPrefix(start, []byte("\xff\xfe")), bytes.HasPrefix(start, []byte("\xfe\xff")):
		return nil, errors.New("is UTF-16: save it as UTF-8")
	}
	return b, nil
}

// bounded is a LimitReader that says so instead of ending quietly.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("is larger than %d MB unpacked: split it", maxText>>20)
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	return n, err
}

// reader reads one file.
type reader struct {
	m     *Mapping
	opt   ReadOptions
	name  string
	csv   *csv.Reader
	out   *File
	clock clock
	cols  columns
	cells [][]cell // per field of the mapping
	days  calendar
	key   []byte // scratch
	twice map[occurrence]*seen
}

// columns are indexes into a record.
type columns struct {
	time    []int
	choose  int // -1: none
	filters []int
	fields  []fieldColumns
}

type fieldColumns struct {
	values []int
	status int // -1: none
	where  []int
	zero   []int
}

// cell is what one row says of one field.
type cell struct {
	at      int64 // seconds since 1970: start of the interval, or instant of the read
	value   exact
	line    int32
	column  int32
	series  int32 // which combination of the texts the field is chosen by
	quality meter.Quality
	kind    cellKind
}

type cellKind uint8

const (
	cellValue cellKind = iota
	cellNone           // the row is there, its value is not
	cellZero           // another tariff's row: nothing of this field
)

// occurrence is a local time that the clocks show twice, in the rows with the
// same texts in all filter columns.
type occurrence struct {
	texts string
	first int64
}

type seen struct {
	times  int
	line   int
	column int
}

// badLine is an error about the line under way.
type badLine struct {
	line, column int
	reason       string
}

func (b *badLine) Error() string { return b.reason }

func (r *reader) run() error {
	if err := r.heading(); err != nil {
		return err
	}
	r.cells = make([][]cell, len(r.m.fields))
	staged, kept := make([]stagedCell, 0, len(r.m.fields)), 0
	for {
		record, err := r.csv.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		r.out.Rows++
		if r.opt.Progress != nil && r.out.Rows%progressEvery == 0 {
			r.opt.Progress(r.out.Rows)
		}
		if err == nil {
			staged, err = r.row(record, staged[:0])
		}
		if err != nil {
			if err := r.bad(err); err != nil {
				return err
			}
			continue
		}
		if kept += len(staged); kept > maxCells {
			return fmt.Errorf("%w: %s holds more than %d values: split it", ErrFile, r.name, maxCells)
		}
		for _, s := range staged {
			r.cells[s.field] = append(r.cells[s.field], s.cell)
		}
	}
	if r.opt.Progress != nil {
		r.opt.Progress(r.out.Rows)
	}
	if r.out.Rows == 0 {
		return fmt.Errorf("%w: %s has no rows", ErrFile, r.name)
	}
	if r.out.Rows == r.out.OtherHomes {
		return fmt.Errorf("%w: %s has no row of the home asked for with --home", ErrFile, r.name)
	}
	if err := r.checkTwice(); err != nil {
		return err
	}
	for i := range r.m.fields {
		if err := r.build(i); err != nil {
			return err
		}
	}
	slices.SortStableFunc(r.out.Bad, func(a, b BadLine) int { return a.Line - b.Line })
	return nil
}

// bad lists a line that cannot be read, or ends with it.
func (r *reader) bad(err error) error {
	var line BadLine
	var b *badLine
	var pe *csv.ParseError
	switch {
	case errors.As(err, &b):
		line = BadLine{b.line, b.column, b.reason}
	case errors.As(err, &pe):
		line = BadLine{pe.Line, pe.Column, "not well-formed CSV: " + pe.Err.Error()}
		if errors.Is(pe.Err, csv.ErrFieldCount) {
			line.Column = 1
			line.Reason = "has another number of columns than the heading"
		}
		if pe.StartLine != pe.Line {
			return fmt.Errorf("%w: %s: line %d: a quoted text runs on over the end of the line", ErrFile, r.name, pe.StartLine)
		}
	default: // reading itself failed: a damaged archive, a disk
		return fmt.Errorf("%w: %s, after %d rows: %w", ErrFile, r.name, r.out.Rows-1, err)
	}
	if !r.opt.SkipBad {
		return &LineError{r.name, line}
	}
	if len(r.out.Bad) >= maxBad {
		return fmt.Errorf("%w: %s has more than %d lines that cannot be read: is %s the right mapping?", ErrFile, r.name, maxBad, r.m.name)
	}
	r.out.Bad = append(r.out.Bad, line)
	return nil
}

// heading finds the mapping's columns.
func (r *reader) heading() error {
	names := r.m.y.CSV.Header
	if names == nil {
		record, err := r.csv.Read()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %s is empty", ErrFile, r.name)
		}
		if err != nil {
			r.opt.SkipBad = false // without a heading nothing can be read
			return r.bad(err)
		}
		names = slices.Clone(record)
	} else {
		r.csv.FieldsPerRecord = len(names)
	}
	var missing []string
	find := func(name string) int {
		i := slices.Index(names, name)
		if i < 0 || slices.Contains(names[i+1:], name) {
			missing = append(missing, fmt.Sprintf("%q", name))
		}
		return i
	}
	findAll := func(list []condition) []int {
		var out []int
		for _, c := range list {
			out = append(out, find(c.column))
		}
		return out
	}
	c := columns{choose: -1}
	for _, n := range r.m.y.Time.Columns {
		c.time = append(c.time, find(n))
	}
	if r.m.SeveralHomes() {
		c.choose = find(r.m.y.Select)
	}
	for _, n := range r.m.filters {
		c.filters = append(c.filters, find(n))
	}
	for _, f := range r.m.fields {
		fc := fieldColumns{status: -1, where: findAll(f.where), zero: findAll(f.zeroWhere)}
		for _, n := range f.columns {
			fc.values = append(fc.values, find(n))
		}
		if f.status != nil {
			fc.status = find(f.status.column)
		}
		c.fields = append(c.fields, fc)
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return &LineError{r.name, BadLine{1, 1, fmt.Sprintf("the heading must have each of these columns once: %s; is %s the right mapping, with the right delimiter?",
			strings.Join(slices.Compact(missing), ", "), r.m.name)}}
	}
	r.cols = c
	return nil
}

type stagedCell struct {
	field int
	cell
}

// row takes one record apart. Nothing of it counts when any part is bad.
func (r *reader) row(record []string, staged []stagedCell) ([]stagedCell, error) {
	at := func(i int, format string, args ...any) error {
		line, column := r.csv.FieldPos(i)
		return &badLine{line, column, fmt.Sprintf(format, args...)}
	}
	for i, s := range record {
		if strings.IndexByte(s, '\n') >= 0 {
			line, _ := r.csv.FieldPos(i)
			return nil, fmt.Errorf("line %d: a quoted text runs on over the end of the line", line)
		}
		if !utf8.ValidString(s) {
			return nil, at(i, "is not UTF-8")
		}
	}
	if c := r.cols.choose; c >= 0 && record[c] != r.opt.Home {
		r.out.OtherHomes++
		return staged, nil
	}
	var when int64
	read := false
	for i := range r.m.fields {
		f, fc := &r.m.fields[i], &r.cols.fields[i]
		kind := cellValue
		series, ok := choose(record, f.where, fc.where)
		if !ok {
			if series, ok = choose(record, f.zeroWhere, fc.zero); !ok || len(f.zeroWhere) == 0 {
				continue
			}
			kind = cellZero
		}
		if !read {
			var err error
			if when, err = r.when(record, at); err != nil {
				return nil, err
			}
			read = true
		}
		line, column := r.csv.FieldPos(fc.values[0])
		c := cell{at: when, line: int32(line), column: int32(column), series: series, kind: kind}
		if kind == cellValue {
			if err := r.value(record, f, fc, &c, at); err != nil {
				return nil, err
			}
		}
		if !f.cumulative && r.m.y.Time.Marks == "end" {
			c.at -= seconds(f.every)
		}
		ok, err := r.onGrid(f, &c)
		if err != nil {
			return nil, at(r.cols.time[0], "%v", err)
		}
		switch {
		case !ok && c.kind == cellValue:
			r.out.OffGrid[f.field.Name]++
		case ok:
			if c.kind == cellNone {
				r.out.NoValue[f.field.Name]++
			}
			staged = append(staged, stagedCell{i, c})
		}
	}
	if !read {
		r.out.NotMapped++
	}
	return staged, nil
}

// value reads the value of a field and what its status says of it.
func (r *reader) value(record []string, f *source, fc *fieldColumns, c *cell, at func(int, string, ...any) error) error {
	for _, i := range fc.values {
		if s := record[i]; s == "" || slices.Contains(r.m.y.CSV.NoValue, s) {
			c.kind = cellNone
		}
	}
	if f.status != nil {
		o, ok := f.status.meaning(record[fc.status])
		if !ok {
			return at(fc.status, "a status that the mapping does not name: add a rule for it")
		}
		c.quality = o.quality
		if o.none {
			c.kind = cellNone
		}
	}
	for _, i := range fc.values {
		if record[i] == "" || slices.Contains(r.m.y.CSV.NoValue, record[i]) {
			continue
		}
		v, err := parseExact([]byte(record[i]), r.m.y.CSV.Decimal[0], f.shift)
		if err == nil {
			c.value, err = c.value.plus(v)
		}
		if err != nil {
			return at(i, "%v", err)
		}
		if !f.carry && !v.fits(f.field.Precision) {
			return at(i, "has more than the %d decimals of %s in %s: say rounding: carry in the mapping to carry the rest along",
				f.field.Precision, f.field.Name, f.field.Unit)
		}
	}
	return nil
}

// when reads the time of a row. A local time that the clocks show twice is the
// earlier instant where rows of the same kind have it first, the later where
// they have it again.
func (r *reader) when(record []string, at func(int, string, ...any) error) (int64, error) {
	text := record[r.cols.time[0]]
	if len(r.cols.time) == 2 {
		text += " " + record[r.cols.time[1]]
	}
	t, err := r.clock.read(text)
	if err != nil {
		return 0, at(r.cols.time[0], "%v", err)
	}
	if !t.ambiguous {
		return t.first, nil
	}
	r.key = r.key[:0]
	for _, i := range r.cols.filters {
		r.key = binary.AppendUvarint(r.key, uint64(len(record[i])))
		r.key = append(r.key, record[i]...)
	}
	key := occurrence{string(r.key), t.first}
	s := r.twice[key]
	if s == nil {
		s = &seen{}
		s.line, s.column = r.csv.FieldPos(r.cols.time[0])
		r.twice[key] = s
	}
	s.times++
	switch s.times {
	case 1:
		return t.first, nil
	case 2:
		return t.second, nil
	default:
		return 0, at(r.cols.time[0], "the third time that this local time is given; the clocks show it twice")
	}
}

// checkTwice refuses what came once although the clocks showed it twice:
// which of the two it was cannot be known.
func (r *reader) checkTwice() error {
	for _, s := range r.twice {
		if s.times > 1 {
			continue
		}
		err := r.bad(&badLine{s.line, s.column, "the clocks show this local time twice on that day, but the file has it once: which one is meant cannot be known"})
		if err != nil {
			return err
		}
		for i := range r.cells {
			r.cells[i] = slices.DeleteFunc(r.cells[i], func(c cell) bool { return int(c.line) == s.line })
		}
	}
	return nil
}

// choose says whether a row meets the conditions, and numbers the
// combinations of texts that do.
func choose(record []string, where []condition, columns []int) (int32, bool) {
	n := 0
	for i, c := range where {
		j := slices.Index(c.texts, record[columns[i]])
		if j < 0 {
			return 0, false
		}
		n = n*len(c.texts) + j
	}
	return int32(n), true
}

func seconds(r meter.Resolution) int64 {
	if r == meter.PT15M {
		return 900
	}
	return 3600
}

// onGrid says whether a cell lies on an instant of its field. Between those,
// cumulative reads are not needed and empty cells mean nothing; consumption
// there belongs to no interval.
func (r *reader) onGrid(f *source, c *cell) (bool, error) {
	_, start, _ := r.days.of(c.at)
	if (c.at-start)%seconds(f.every) == 0 {
		return true, nil
	}
	if f.cumulative || c.kind != cellValue {
		return false, nil
	}
	return false, fmt.Errorf("is not the bound of a %s interval of the local day", f.every)
}
