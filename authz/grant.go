package authz

import (
	"errors"
	"slices"

	"kluis/meter"
)

// MaxRequestDays is the longest period of one request.
const MaxRequestDays = 366

// Request is what the caller asks for of one metering point.
type Request struct {
	EAN        meter.EAN
	Purpose    meter.Purpose
	Days       meter.DayRange // 1 to 366 days
	Fields     []meter.FieldCode
	Resolution meter.Resolution // 0: the finest that is granted and stored
	Kind       meter.Kind       // 0: REGISTER for registers, CONSUMPTION for intervals
}

// ErrNoRelation: the metering point is unknown or none of the caller's; the
// two must be answered alike.
var ErrNoRelation = errors.New("no relation to this metering point")

// Grant is what Decide allowed. Only Decide makes one that is not empty: its
// fields cannot be set from outside, and the zero Grant covers nothing.
// Immutable.
type Grant struct {
	profile meter.ProfileID
	ean     meter.EAN
	items   []GrantItem // by field
	reads   []FieldDays // by field
	from    meter.Day   // first day asked for
	bits    []dayBits   // of the reads, from that day on
}

// GrantItem is one field on one basis. The Resolution of its Spec is the one
// asked for; its Granularity, the finest that may leave, is never finer than
// that, and its Kind is never 0. Days of one field are in one item at most.
type GrantItem struct {
	Spec  meter.SeriesSpec
	Basis meter.Basis
	Rule  string // id of the rule, in the profile that Grant.Profile names
}

// FieldDays is a field and days of it.
type FieldDays struct {
	Field meter.FieldCode
	Days  meter.DaySet
}

// Withheld is a run of days of a field that is not given, and why.
type Withheld struct {
	Field  meter.FieldCode
	Days   meter.DayRange
	Reason meter.Reason
}

// Empty says whether nothing at all was granted.
func (g Grant) Empty() bool { return len(g.items) == 0 }

// EAN names the metering point; zero for the zero Grant.
func (g Grant) EAN() meter.EAN { return g.ean }

// Profile names the market profile by whose rules was decided, also when
// nothing was granted. Access records and receipts keep its digest.
func (g Grant) Profile() meter.ProfileID { return g.profile }

// Items returns a copy, by field.
func (g Grant) Items() []GrantItem { return slices.Clone(g.items) }

// Reads lists the stored days to fetch and open, per field: for registers
// with the closing day (but single reads have none), and only month boundaries
// where only P1M is granted or asked for. Sorted by field, each field once. A copy.
func (g Grant) Reads() []FieldDays { return slices.Clone(g.reads) }

// Covers reports whether one stored block may be opened under the grant: it is
// in Reads.
func (g Grant) Covers(f meter.FieldCode, d meter.Day) bool {
	i := int(d) - int(g.from)
	if i < 0 || i >= len(dayBits{})*64 {
		return false
	}
	for j := range g.reads { // at most one for each field of the commodity
		if g.reads[j].Field == f {
			return g.bits[j].has(i)
		}
	}
	return false
}

// reads are the stored days that a part of a class's fields needs.
func reads(class meter.Class, p part) []meter.DayRange {
	runs := p.days.Ranges()
	if class != meter.Registers || single(p.rule) {
		return runs // intervals stand for themselves, and so do single reads
	}
	if p.granularity != meter.P1M {
		for i := range runs {
			runs[i].To++ // the closing read
		}
		return runs
	}
	var boundaries []meter.DayRange
	for _, run := range runs {
		for d := run.From; d <= run.To; d = (d.Month() + 1).First() {
			boundaries = append(boundaries, meter.DayRange{From: d, To: d + 1})
		}
	}
	return boundaries
}
