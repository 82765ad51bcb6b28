// Package meter knows what is measured: metering points, registers, fields,
// days, blocks of values and the market profile that names them. It knows
// nothing of HTTP, SQL or keys, and imports nothing else of Kluis but the
// canonical encoding.
//
// A field is one thing that can be granted ("import_low"). A block is one
// field of one metering point for one local day: the unit that is encrypted.
// Values are exact decimals, held as integers scaled by the field's precision;
// a gap is Null, never zero.
package meter

import (
	"errors"
	"math"
)

// Resolution is the length of the periods that values stand for. A greater
// Resolution is a coarser one. Zero means "not said".
type Resolution uint8

// The values are part of the sealed formats: never renumber.
const (
	PT15M Resolution = 1
	PT1H  Resolution = 2
	P1D   Resolution = 3
	P1M   Resolution = 4
)

// Kind says whether values are register reads (cumulative, at an instant) or
// consumption (over a period).
type Kind uint8

// The values are part of the wire and sealed formats: never renumber.
const (
	Register    Kind = 1
	Consumption Kind = 2
)

// Class groups what the law treats alike. A data key covers one class. The
// fields of the catalogue are of the classes Registers and Intervals; Identity
// is name and address, of which there is one a metering point and customer.
type Class uint8

// The values are part of the sealed formats: never renumber.
const (
	Registers Class = 1
	Intervals Class = 2
	Identity  Class = 3
)

// Commodity is what a metering point meters.
type Commodity uint8

// The values are part of the sealed formats: never renumber.
const (
	Electricity Commodity = 1
	Gas         Commodity = 2
)

// Value is an exact decimal: an integer scaled by 10^precision of its field.
type Value int64

// Null is a value that is not known: a gap.
const Null Value = math.MinInt64

// Quality is a CIM quality code (IEC 61968-9, as used in ESMP). Values that
// came as the meter provided them have quality AsProvided and are not listed.
type Quality uint8

// The values are part of the sealed formats: never renumber.
const (
	AsProvided   Quality = 0 // A04
	Adjusted     Quality = 1 // A01
	NotAvailable Quality = 2 // A02
	Estimated    Quality = 3 // A03
	Incomplete   Quality = 5 // A05
	Calculated   Quality = 6 // A06
	Temporary    Quality = 7 // A07
)

// FieldCode is the stable number of a field in a market's catalogue; sealed
// formats and the database use it. Never reused.
type FieldCode uint16

// Purpose is what the caller says it wants the values for.
type Purpose uint8

// The values are part of the sealed formats: never renumber.
const (
	Billing          Purpose = 1 // BILLING
	EnergyManagement Purpose = 2 // ENERGY_MANAGEMENT
	Switch           Purpose = 3 // SWITCH
	Move             Purpose = 4 // MOVE
	CustomerService  Purpose = 5 // CUSTOMER_SERVICE
)

// Basis is the legal basis a value is given on.
type Basis uint8

// The values are part of the sealed formats: never renumber.
const (
	SupplyPeriodic Basis = 1 // SUPPLY_PERIODIC
	SupplyDaily    Basis = 2 // SUPPLY_DAILY
	SwitchBasis    Basis = 3 // SWITCH: the reads at which a supply begins and ends
	MoveBasis      Basis = 4 // MOVE: the reads at which an occupancy begins and ends
	Consent        Basis = 5 // CONSENT

	// CustomerServiceBasis is for employees of the grid operator only: it rests
	// on who the employee is and what the customer on the line asked.
	CustomerServiceBasis Basis = 6 // CUSTOMER_SERVICE
)

// SingleReads says whether the basis gives register reads one by one: the read
// of a day without the one that closes the day, and no consumption.
func (b Basis) SingleReads() bool { return b == SwitchBasis || b == MoveBasis }

// restsOnSupply says whether the caller's own supply is the fact.
func (b Basis) restsOnSupply() bool {
	return b == SupplyPeriodic || b == SupplyDaily || b.SingleReads()
}

// occasion is the one that a rule on the basis must have.
func (b Basis) occasion() Occasion {
	switch b {
	case SwitchBasis:
		return SupplyBoundary
	case MoveBasis:
		return OccupancyBoundary
	}
	return AllDays
}

// Occasion says which of the days in question a rule gives.
type Occasion uint8

// What is at a boundary is the register read of the day on which a period
// begins, or of the one after its last.
const (
	AllDays           Occasion = 0 // ALL
	SupplyBoundary    Occasion = 1 // SUPPLY_BOUNDARY: where a supply of the caller begins or ends
	OccupancyBoundary Occasion = 2 // OCCUPANCY_BOUNDARY: where a customer whom the caller supplies moves in or out
)

// ErrUnknown is wrapped by the Parse functions of the enumerations.
var ErrUnknown = errors.New("unknown")
