package ingest

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"kluis/meter"
)

// calendar finds the local day of an instant and remembers the last.
type calendar struct {
	loc        *time.Location
	day        meter.Day
	start, end int64
}

// of returns the local day that holds the instant, and its bounds, in seconds
// since 1970.
func (c *calendar) of(at int64) (meter.Day, int64, int64) {
	if at < c.start || at >= c.end {
		c.day = meter.DayOf(time.Unix(at, 0), c.loc)
		c.start, c.end = c.day.Start(c.loc).Unix(), (c.day + 1).Start(c.loc).Unix()
	}
	return c.day, c.start, c.end
}

// point is what a file says of one field at one instant.
type point struct {
	at           int64 // start of the interval, or instant of the read
	value        exact
	quality      meter.Quality
	known        bool
	line, column int
}

// build makes the blocks of one field.
func (r *reader) build(i int) error {
	f := &r.m.fields[i]
	points, err := r.points(f, r.cells[i])
	r.cells[i] = nil
	if err != nil || len(points) == 0 {
		return err
	}
	b := &builder{f: f, days: &r.days, blocks: map[meter.Day]*meter.Block{}}
	switch {
	case f.cumulative && f.field.Class == meter.Registers:
		b.take(points)
	case f.cumulative:
		err = b.subtract(points)
	case f.field.Class == meter.Registers:
		err = b.accumulate(points)
	default:
		err = b.fill(points)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %s: %w", ErrFile, r.name, f.field.Name, err)
	}
	for _, block := range b.blocks {
		r.out.Blocks = append(r.out.Blocks, FieldBlock{Field: f.field.Code, Block: *block})
	}
	made := r.out.Blocks[len(r.out.Blocks)-len(b.blocks):]
	slices.SortFunc(made, func(a, b FieldBlock) int { return cmp.Compare(a.Block.Day, b.Block.Day) })
	return nil
}

// points brings the cells of one field in order and adds up those of one
// instant.
func (r *reader) points(f *source, cells []cell) ([]point, error) {
	slices.SortStableFunc(cells, func(a, b cell) int { return cmp.Compare(a.at, b.at) })
	var out []point
	for from := 0; from < len(cells); {
		to := from + 1
		for to < len(cells) && cells[to].at == cells[from].at {
			to++
		}
		p, err := r.join(f, cells[from:to])
		if err != nil {
			return nil, err
		}
		out = append(out, p)
		from = to
	}
	if !f.cumulative {
		return out, nil
	}
	last := exact(0)
	for i := range out {
		p := &out[i]
		if !p.known {
			continue
		}
		if p.value < last {
			p.known = false
			err := r.bad(&badLine{p.line, p.column, "the register is lower than before: where a meter was replaced or reset, split the file"})
			if err != nil {
				return nil, err
			}
			continue
		}
		last = p.value
	}
	return out, nil
}

// join adds up the cells of one instant. Rows of the same kind may not say it
// twice; a part that is missing makes the sum unknown.
func (r *reader) join(f *source, cells []cell) (point, error) {
	p := point{at: cells[0].at, known: true, line: int(cells[0].line), column: int(cells[0].column)}
	type kind struct {
		series int32
		zero   bool
	}
	first := make(map[kind]int, 1)
	for _, c := range cells {
		k := kind{c.series, c.kind == cellZero}
		if line, ok := first[k]; ok {
			err := r.bad(&badLine{int(c.line), int(c.column), fmt.Sprintf("says %s for the same time as line %d", f.field.Name, line)})
			if err != nil {
				return p, err
			}
			continue
		}
		first[k] = int(c.line)
		if c.kind == cellNone {
			p.known = false
			continue
		}
		sum, err := p.value.plus(c.value)
		if err != nil {
			return p, fmt.Errorf("%w: %s: line %d: %s %w", ErrFile, r.name, c.line, f.field.Name, err)
		}
		p.value = sum
		p.quality = worse(p.quality, c.quality)
	}
	if f.cumulative && len(first) < f.need {
		p.known = false
	}
	return p, nil
}

// severity orders qualities from best to worst.
var severity = map[meter.Quality]int{
	meter.AsProvided: 0, meter.Adjusted: 1, meter.Calculated: 2, meter.Temporary: 3, meter.Estimated: 4, meter.Incomplete: 5,
}

func worse(a, b meter.Quality) meter.Quality {
	if severity[b] > severity[a] {
		return b
	}
	return a
}

// builder makes the blocks of one field. A block exists for every day that
// the file says something of, be it that there is no value.
type builder struct {
	f      *source
	days   *calendar
	blocks map[meter.Day]*meter.Block
}

// on returns the block of a day, full of gaps when it is new.
func (b *builder) on(d meter.Day) *meter.Block {
	if blk := b.blocks[d]; blk != nil {
		return blk
	}
	blk := &meter.Block{Day: d, Resolution: b.f.every, Start: meter.Null}
	if b.f.field.Class == meter.Registers {
		blk.Resolution = meter.P1D
	}
	n := meter.Slots(d, blk.Resolution, b.days.loc)
	blk.Values, blk.Quality = make([]meter.Value, n), make([]meter.Quality, n)
	for i := range blk.Values {
		blk.Values[i] = meter.Null
	}
	b.blocks[d] = blk
	return blk
}

// interval sets the value of the interval that starts at an instant; p is
// where it comes from.
func (b *builder) interval(at int64, v meter.Value, q meter.Quality, p point) error {
	if v > meter.MaxInterval {
		return fmt.Errorf("line %d: more in one interval than can be stored: is the unit right?", p.line)
	}
	d, start, _ := b.days.of(at)
	blk, slot := b.on(d), (at-start)/seconds(b.f.every)
	blk.Values[slot], blk.Quality[slot] = v, q
	return nil
}

// read sets the register at the start of a day.
func (b *builder) read(d meter.Day, v meter.Value, q meter.Quality) {
	blk := b.on(d)
	blk.Values[0], blk.Quality[0] = v, q
}

// take takes the cumulative reads at midnight for registers. A day within the
// file whose midnight read is missing has a gap.
func (b *builder) take(points []point) {
	first := points[0].at
	for _, p := range points {
		d, start, _ := b.days.of(p.at)
		if start >= first {
			b.on(d)
		}
		if p.at == start && p.known {
			b.read(d, p.value.round(b.f.field.Precision), p.quality)
		}
	}
}

// subtract makes consumption of cumulative reads: an interval counts only when
// both its end reads are there. The register at midnight goes along. Reads are
// rounded before they are subtracted, so that totals stay exact to half a
// unit.
func (b *builder) subtract(points []point) error {
	precision := b.f.field.Precision
	for i, p := range points {
		d, start, _ := b.days.of(p.at)
		if p.at > start {
			b.on(d) // a read at midnight alone says nothing of the day's intervals
		}
		if i == 0 {
			continue
		}
		if o := points[i-1]; o.known && p.known && p.at-o.at == seconds(b.f.every) {
			err := b.interval(o.at, p.value.round(precision)-o.value.round(precision), worse(o.quality, p.quality), p)
			if err != nil {
				return err
			}
		}
	}
	for _, p := range points {
		d, start, _ := b.days.of(p.at)
		if blk := b.blocks[d]; blk != nil && p.at == start && p.known {
			blk.Start = p.value.round(precision)
		}
	}
	return nil
}

// fill takes consumption as it is. Each value is the difference of the rounded
// totals after and before it, so that what rounding cuts off is carried into
// the next interval and totals stay exact to half a unit.
func (b *builder) fill(points []point) error {
	total, precision := exact(0), b.f.field.Precision
	for _, p := range points {
		d, _, _ := b.days.of(p.at)
		b.on(d)
		if !p.known {
			continue
		}
		sum, err := total.plus(p.value)
		if err != nil {
			return fmt.Errorf("the total %w", err)
		}
		if err := b.interval(p.at, sum.round(precision)-total.round(precision), p.quality, p); err != nil {
			return err
		}
		total = sum
	}
	return nil
}

// accumulate makes midnight reads of consumption: the stated start read, which
// is that of the file's first known interval, plus what is known up to the
// midnight. They are calculated, not read.
//
// A midnight with no known interval on either side lies inside a gap: there is
// no read. Where the gap ends or begins at midnight there is one: it is as
// good as every later one, all of which lack what the gap hides.
func (b *builder) accumulate(points []point) error {
	step, precision := seconds(b.f.every), b.f.field.Precision
	first := points[0].at
	total, end := b.f.start, int64(-1) // end: of the last known interval
	for _, p := range points {
		d, start, stop := b.days.of(p.at)
		if start >= first {
			b.on(d)
		}
		if !p.known {
			continue
		}
		if p.at == start {
			b.read(d, total.round(precision), meter.Calculated)
		}
		sum, err := total.plus(p.value)
		if err != nil {
			return fmt.Errorf("the register %w", err)
		}
		total, end = sum, p.at+step
		if end == stop {
			b.read(d+1, total.round(precision), meter.Calculated)
		}
	}
	return nil
}
