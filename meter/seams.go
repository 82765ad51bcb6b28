package meter

// This file fixes the package's seams while the parts are filled in.

import "time"

// SeriesSpec says what may be given of one field: made from a Grant.
type SeriesSpec struct {
	Field       Field
	Kind        Kind
	Resolution  Resolution // asked for; 0: the coarser of stored and Granularity
	Granularity Resolution // finest granted
	Days        DaySet     // granted days (periods; the closing register read is implied)
}

// Series is one run of values of one field at one resolution.
type Series struct {
	Field      FieldCode
	Kind       Kind
	Resolution Resolution
	Basis      Basis  // set by the caller of Assemble
	Rule       string // the profile rule applied; set by the caller of Assemble
	Expected   int    // slots of Resolution in the granted period
	Delivered  int    // the non-null ones
	Days       []SeriesDay
}

// SeriesDay holds the values of one local day (for P1M: of one month, and Day
// is its first day). For REGISTER the closing read is a further SeriesDay
// with one value whose Day is the end of the run.
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

// Assemble aggregates exactly. A missing block and a null value make every
// aggregate that needs them null. Days stored coarser than asked for come
// back as FINER_THAN_STORED.
func Assemble(spec SeriesSpec, blocks map[Day]*Block, loc *time.Location) ([]Series, []Shortfall) {
	panic("todo")
}
