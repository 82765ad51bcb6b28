package meter

import "slices"

// SeriesSpec says what may be given of one field: made from a Grant.
type SeriesSpec struct {
	Field       Field
	Kind        Kind
	Resolution  Resolution // asked for; 0: the coarser of stored and Granularity
	Granularity Resolution // finest granted
	Days        DaySet     // granted days, with an end (periods; the closing register read is implied)
	Points      bool       // each day stands for the register read at its start alone: nothing is implied
}

// Series holds the values of one field at one resolution: the days in order,
// with holes where days were not granted or could not be given.
type Series struct {
	Field      FieldCode
	Kind       Kind
	Resolution Resolution
	Basis      Basis  // set by the caller of Assemble
	Rule       string // the profile rule applied; set by the caller of Assemble
	Expected   int    // values there should be: the slots of Resolution in Days
	Delivered  int    // the non-null ones
	Days       []SeriesDay
}

// SeriesDay holds the values of one local day (for P1M: of one month, and Day
// is its first day). For REGISTER of a register field every run of days ends
// with a further SeriesDay: the closing read, whose Day is the end of the run;
// but on a basis of single reads every SeriesDay stands alone.
type SeriesDay struct {
	Day     Day
	Values  []Value
	Quality []Quality // nil when all are AsProvided, else as long as Values
}

// Shortfall is a run of days that was granted but cannot be given.
type Shortfall struct {
	Days   DayRange
	Reason Reason
}

// seriesBuilder fills a Series whose values lie in one piece of memory.
type seriesBuilder struct {
	Series
	free []Value
}

func newSeriesBuilder(spec *SeriesSpec, r Resolution, days, values int) *seriesBuilder {
	return &seriesBuilder{
		Series: Series{Field: spec.Field.Code, Kind: spec.Kind, Resolution: r, Days: make([]SeriesDay, 0, days)},
		free:   make([]Value, values),
	}
}

// begin starts a day of n values, all of which are then to be set.
func (b *seriesBuilder) begin(d Day, n int) {
	b.Days = append(b.Days, SeriesDay{Day: d, Values: b.free[:n:n]})
	b.free = b.free[n:]
	b.Expected += n
}

// set sets a value of the day begun last.
func (b *seriesBuilder) set(i int, r reading) {
	d := &b.Days[len(b.Days)-1]
	d.Values[i] = r.value
	if r.value != Null {
		b.Delivered++
	}
	if r.quality != AsProvided {
		if d.Quality == nil {
			d.Quality = make([]Quality, len(d.Values))
		}
		d.Quality[i] = r.quality
	}
}

// copy sets all values of the day begun last to those of a block.
func (b *seriesBuilder) copy(from *Block) {
	d := &b.Days[len(b.Days)-1]
	copy(d.Values, from.Values)
	for _, v := range d.Values {
		if v != Null {
			b.Delivered++
		}
	}
	for _, q := range from.Quality {
		if q != AsProvided {
			d.Quality = slices.Clone(from.Quality)
			return
		}
	}
}

// reading is a value with its quality.
type reading struct {
	value   Value
	quality Quality
}

// missing is the reading of a block that is not there.
var missing = reading{value: Null}

// total adds values up exactly. Any null part makes it null.
type total struct {
	sum           Value
	isNull        bool
	quality       Quality // worst of the parts that are known
	qualityOfNull Quality // worst of the parts that are not
}

func (t *total) add(r reading) {
	if r.value == Null {
		t.isNull = true
		t.qualityOfNull = worst(t.qualityOfNull, r.quality)
		return
	}
	t.sum += r.value
	t.quality = worst(t.quality, r.quality)
}

// reading returns the sum. A null has the quality of its null parts, so that a
// gap is not called an estimate.
func (t *total) reading() reading {
	if t.isNull {
		return reading{Null, t.qualityOfNull}
	}
	return reading{t.sum, t.quality}
}
