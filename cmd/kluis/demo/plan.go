package demo

import (
	"fmt"
	"time"

	"kluis/meter"
)

// supplier is one of the demo's two suppliers.
type supplier struct {
	gln  meter.GLN
	name string
	file string // base name of its certificate and key
}

// point is one metering point of the demo, with the facts of its legal file.
type point struct {
	ean       meter.EAN
	commodity meter.Commodity
	stored    meter.Resolution // of electricity intervals
	home      household
	readings  bool // false: reserved for imports

	occupied []meter.DayRange
	supply   []supplySpan
	consents []consentSpan
	optedOut []meter.DayRange
}

type supplySpan struct {
	supplier int // index into the plan's suppliers
	days     meter.DayRange
}

type consentSpan struct {
	supplier    int
	granularity meter.Resolution
	days        meter.DayRange
	revoked     bool
}

// plan is all that the demo shows: a pure function of the day it was set up.
type plan struct {
	first     meter.Day // first day with readings
	suppliers []supplier
	points    []point
}

// newPlan lays out a year that ends where the day of set-up begins, so that
// both changes of the clocks lie inside.
func newPlan(setUp meter.Day) (*plan, error) {
	pl := &plan{first: setUp - 365}
	for i, name := range []string{"Polderstroom", "Waddenlicht Energie"} {
		gln, err := meter.ParseGLN(withCheckDigit(fmt.Sprintf("87120000000%d", 1+i)))
		if err != nil {
			return nil, err
		}
		pl.suppliers = append(pl.suppliers, supplier{gln: gln, name: name, file: fmt.Sprintf("supplier-%d", 1+i)})
	}
	open := meter.DayRange{From: pl.first, To: meter.MaxDay}
	middle := (pl.first + 182).Month().First()
	n := 0
	add := func(p point) {
		n++
		ean, err := meter.ParseEAN(withCheckDigit(fmt.Sprintf("87168720000000%03d", n)))
		if err != nil {
			panic(err) // the check digit was just computed
		}
		p.ean = ean
		seed := uint64(n) * 0x9e3779b97f4a7c15
		p.home.seed = seed
		if p.stored == 0 {
			p.stored = meter.PT15M
		}
		pl.points = append(pl.points, p)
	}
	home := func(i int, solar float64) household {
		return household{base: 90 + 25*float64(i%5), peak: 500 + 130*float64(i%4), solar: solar}
	}
	only := func(s int) []supplySpan { return []supplySpan{{s, open}} }
	switched := func(at meter.Day) []supplySpan {
		return []supplySpan{{0, meter.DayRange{From: pl.first, To: at}}, {1, meter.DayRange{From: at, To: meter.MaxDay}}}
	}
	always := []meter.DayRange{open}

	// Electricity: eight homes of one supplier for the whole year.
	for i := range 8 {
		p := point{commodity: meter.Electricity, readings: true, occupied: always, supply: only(i % 2), home: home(i, 0)}
		if i%3 == 0 {
			p.home.solar = 3200 + 400*float64(i)
		}
		switch {
		case i < 4: // consent for quarter-hours
			p.consents = []consentSpan{{supplier: i % 2, granularity: meter.PT15M, days: open}}
		case i == 4: // consent for hours only
			p.consents = []consentSpan{{supplier: 0, granularity: meter.PT1H, days: open}}
		case i == 5: // consent given, then revoked
			p.consents = []consentSpan{{supplier: 1, granularity: meter.PT15M, days: open, revoked: true}}
		case i == 6: // a meter that reports hours, not quarters
			p.stored = meter.PT1H
			p.consents = []consentSpan{{supplier: 0, granularity: meter.PT15M, days: open}}
		}
		add(p)
	}
	// Four switched supplier in the middle of the year, the last in mid-month.
	for i := range 4 {
		at := middle
		if i == 3 {
			at += 14
		}
		p := point{commodity: meter.Electricity, readings: true, occupied: always, supply: switched(at), home: home(i+3, 0)}
		if i == 1 {
			p.home.solar = 4100
		}
		if i < 2 { // the new supplier asked for consent
			p.consents = []consentSpan{{supplier: 1, granularity: meter.PT15M, days: meter.DayRange{From: at, To: meter.MaxDay}}}
		}
		add(p)
	}
	// A move, with another supplier for the new customer.
	moved := middle + 40
	add(point{commodity: meter.Electricity, readings: true, home: home(2, 2800),
		occupied: []meter.DayRange{{From: pl.first, To: moved}, {From: moved, To: meter.MaxDay}}, supply: switched(moved)})
	// A customer who opted out of remote reading for the last months.
	add(point{commodity: meter.Electricity, readings: true, occupied: always, supply: only(0), home: home(7, 0),
		consents: []consentSpan{{supplier: 0, granularity: meter.PT15M, days: open}},
		optedOut: []meter.DayRange{{From: middle + 61, To: meter.MaxDay}}})

	// Gas beside some of them.
	for i := range 8 {
		p := point{commodity: meter.Gas, readings: true, occupied: always, supply: only(i % 2),
			home: household{gasDay: 4 + 1.3*float64(i)}}
		if i%2 == 0 {
			p.consents = []consentSpan{{supplier: 0, granularity: meter.PT1H, days: open}}
		}
		if i == 7 {
			p.supply = switched(middle)
		}
		add(p)
	}

	// Reserved for imports of real homes: no readings, supply and consent for
	// 2023 and 2024.
	past := meter.DayRange{From: meter.DayFromDate(2023, time.January, 1), To: meter.DayFromDate(2025, time.January, 1)}
	for _, c := range []meter.Commodity{meter.Electricity, meter.Electricity, meter.Gas, meter.Gas} {
		finest := meter.PT15M
		if c == meter.Gas {
			finest = meter.PT1H
		}
		add(point{commodity: c, occupied: []meter.DayRange{{From: past.From, To: meter.MaxDay}},
			supply:   []supplySpan{{0, past}},
			consents: []consentSpan{{supplier: 0, granularity: finest, days: past}}})
	}
	return pl, nil
}

// withCheckDigit appends the GS1 check digit (General Specifications, 7.9).
func withCheckDigit(digits string) string {
	sum := 0
	for i := range len(digits) {
		d := int(digits[len(digits)-1-i] - '0')
		if i%2 == 0 {
			d *= 3
		}
		sum += d
	}
	return fmt.Sprintf("%s%d", digits, (10-sum%10)%10)
}
