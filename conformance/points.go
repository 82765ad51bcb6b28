package conformance

import (
	"fmt"
	"time"

	"kluis/authz"
	"kluis/meter"
)

// The helpers below make the table of metering points read as what it says.

func occupied(d meter.DayRange) authz.Step { return authz.SetOccupancy{Days: d} }

func optedOut(d meter.DayRange) authz.Step { return authz.SetOptOut{Days: d} }

func supplied(by int, d meter.DayRange) authz.Step {
	return authz.SetSupply{Supplier: Suppliers()[by].GLN, Days: d}
}

// consent is a consent to read intervals, of whoever occupies the
// metering point when the step is taken.
func (p *Point) consent(c calendar, to int, finest meter.Resolution) authz.GrantConsent {
	n := len(p.consents) + 1
	g := authz.GrantConsent{
		ID: consentID(p.EAN, n), Supplier: Suppliers()[to].GLN, Purpose: meter.EnergyManagement,
		Classes: []meter.Class{meter.Intervals}, Granularity: finest, Days: since(c.long()),
		ValidUntil: c.midnight(c.seeded + 1000).UTC(), Evidence: fmt.Sprintf("conformance-%d", n),
	}
	p.consents = append(p.consents, g)
	return g
}

// registers are reads of fields at the start of the days of runs, the last
// included: the closing read.
func registers(runs []meter.DayRange, names ...string) []Stored {
	closed := make([]meter.DayRange, len(runs))
	for i, r := range runs {
		closed[i] = days(r.From, r.To+1)
	}
	var out []Stored
	for _, n := range names {
		out = append(out, Stored{Field: n, Days: closed, Resolution: meter.P1D})
	}
	return out
}

func intervals(r meter.Resolution, name string, runs ...meter.DayRange) []Stored {
	return []Stored{{Field: name, Days: runs, Resolution: r}}
}

// numbers of gas meters begin here
const gasNumbers = 200

// points is the table of metering points. Facts and readings are about days
// around the changes of the clocks, and in the months before that of seeding.
func points(c calendar) []Point {
	var (
		long   = c.long()
		before = c.monthStart(-2)
		month  = c.monthStart(-1) // the last whole month
		end    = c.monthStart(0)
		turn   = month + 9 // of a switch, of a move
		spring = c.spring()
		autumn = c.autumn()
		around = []meter.DayRange{days(spring-1, spring+2), days(autumn-1, autumn+2)}
		low    = []string{"import_low", "import_normal"}
		all    []Point
	)
	add := func(number int, commodity meter.Commodity, name, shows string, set func(p *Point)) {
		p := Point{Name: name, EAN: testEAN(number), Commodity: commodity, Shows: shows}
		set(&p)
		all = append(all, p)
	}
	power := func(number int, name, shows string, set func(p *Point)) {
		add(number, meter.Electricity, name, shows, set)
	}
	ofNorth := []authz.Step{occupied(since(long)), supplied(north, since(long))}
	facts := func(p *Point, more ...authz.Step) { p.facts = append(append([]authz.Step{}, ofNorth...), more...) }
	readings := func(p *Point, parts ...[]Stored) {
		for _, s := range parts {
			p.Readings = append(p.Readings, s...)
		}
	}

	power(101, "plain", "A one-way meter of a customer without consent: register reads of three months", func(p *Point) {
		facts(p)
		readings(p, registers([]meter.DayRange{days(c.monthStart(-3), end)}, low...))
	})
	power(102, "quarters", "Consent to quarter-hours: a month of them, and the days on which the clocks change", func(p *Point) {
		facts(p, p.consent(c, north, meter.PT15M))
		readings(p, intervals(meter.PT15M, "import_intervals", append([]meter.DayRange{days(month, end)}, around...)...),
			registers(append([]meter.DayRange{days(month, month+3)}, around...), low...))
	})
	power(103, "hours-granted", "Consent to hours of a meter that stores quarter-hours", func(p *Point) {
		facts(p, p.consent(c, north, meter.PT1H))
		readings(p, intervals(meter.PT15M, "import_intervals", days(month, month+3)))
	})
	power(104, "hours-stored", "Consent to quarter-hours of a meter that stored quarter-hours for two days, then hours", func(p *Point) {
		facts(p, p.consent(c, north, meter.PT15M))
		first := intervals(meter.PT15M, "import_intervals", days(month, month+2))
		then := intervals(meter.PT1H, "import_intervals", days(month+2, month+4))
		readings(p, first, then)
	})
	power(105, "gaps", "An hour without readings, an estimated half-hour, a day that never came in, a register read that is missing", func(p *Point) {
		facts(p, p.consent(c, north, meter.PT15M))
		quarters := intervals(meter.PT15M, "import_intervals", days(month, month+4))
		quarters[0].Gaps = []Slots{{month + 1, 8, 12}}
		quarters[0].Estimated = []Slots{{month + 1, 40, 42}}
		quarters[0].Absent = []meter.Day{month + 2}
		reads := registers([]meter.DayRange{days(month, end)}, "import_low")
		reads[0].Absent = []meter.Day{month + 3}
		readings(p, quarters, reads)
	})
	power(106, "switch", "A switch from north to south on the tenth of the last whole month", func(p *Point) {
		facts(p, supplied(south, since(turn)))
		readings(p, registers([]meter.DayRange{days(before, end)}, low...))
	})
	power(107, "move", "A move on that day; the consent is of the customer who left", func(p *Point) {
		facts(p, p.consent(c, north, meter.PT15M), occupied(since(turn)))
		readings(p, registers([]meter.DayRange{days(month, end)}, low...), intervals(meter.PT15M, "import_intervals", days(turn-2, turn+2)))
	})
	power(108, "moved-in", "The same move; the consent is of the customer who came", func(p *Point) {
		facts(p, occupied(since(turn)), p.consent(c, north, meter.PT15M))
		readings(p, intervals(meter.PT15M, "import_intervals", days(turn-2, turn+2)))
	})
	power(109, "moved-and-switched", "A move with which the supplier changes, from north to south", func(p *Point) {
		facts(p, occupied(since(turn)), supplied(south, since(turn)))
		readings(p, registers([]meter.DayRange{days(turn-3, turn+3)}, low...))
	})
	power(110, "vacant", "Nobody lived there for a week of the last whole month, the 6th to the 12th", func(p *Point) {
		p.facts = []authz.Step{occupied(days(long, month+5)), occupied(since(month + 12)), supplied(north, since(long))}
		readings(p, registers([]meter.DayRange{days(month, end)}, low...))
	})
	power(111, "opted-out", "The customer had remote reading switched off on the 6th; on the 10th south took over from north", func(p *Point) {
		facts(p, p.consent(c, north, meter.PT15M), optedOut(since(month+5)), supplied(south, since(turn)))
		readings(p, registers([]meter.DayRange{days(month, turn+3)}, low...), intervals(meter.PT15M, "import_intervals", days(month, turn+3)))
	})
	power(112, "consent-revoked", "The consent to quarter-hours was revoked", func(p *Point) {
		g := p.consent(c, north, meter.PT15M)
		facts(p, g, authz.RevokeConsent{ID: g.ID})
		readings(p, intervals(meter.PT15M, "import_intervals", days(month, month+2)))
	})
	power(113, "consent-expired", "The consent to quarter-hours was for a time that is over", func(p *Point) {
		g := p.consent(c, north, meter.PT15M)
		g.ValidUntil = time.Time{} // shortly: see Steps
		facts(p, g)
		readings(p, intervals(meter.PT15M, "import_intervals", days(month, month+2)))
	})
	power(114, "two-way", "A meter with solar panels behind it: import and export, registers and quarter-hours", func(p *Point) {
		facts(p, p.consent(c, north, meter.PT15M))
		readings(p, registers([]meter.DayRange{days(month, month+3)}, "import_low", "import_normal", "export_low", "export_normal"),
			intervals(meter.PT15M, "import_intervals", days(month, month+3)), intervals(meter.PT15M, "export_intervals", days(month, month+3)))
	})
	power(115, "silent", "Supplied and occupied, and nothing ever came in", func(p *Point) { facts(p) })
	power(116, "no-register", "Quarter-hours that came in without the register beside them", func(p *Point) {
		facts(p, p.consent(c, north, meter.PT15M))
		quarters := intervals(meter.PT15M, "import_intervals", days(month, month+2))
		quarters[0].NoStart = true
		readings(p, quarters)
	})
	power(117, "corrected", "The second day was stored wrong, and corrected", func(p *Point) {
		facts(p, p.consent(c, north, meter.PT15M))
		reads := registers([]meter.DayRange{days(month, month+3)}, "import_low")
		reads[0].Corrected = []meter.Day{month + 1}
		quarters := intervals(meter.PT15M, "import_intervals", days(month, month+3))
		quarters[0].Corrected = []meter.Day{month + 1}
		readings(p, reads, quarters)
	})
	power(118, "erased", "A move on the tenth; everything of the customer who left was erased", func(p *Point) {
		facts(p, occupied(since(turn)))
		readings(p, registers([]meter.DayRange{days(turn-3, turn+3)}, "import_low"))
		p.Erased = days(long, turn)
	})
	power(119, "damaged", "The read of the third day does not open", func(p *Point) {
		facts(p)
		readings(p, registers([]meter.DayRange{days(month, month+5)}, "import_low"))
		p.Damaged, p.DamagedOn = "import_low", month+2
	})
	power(120, "foreign", "A customer of south, with whom north never had anything to do", func(p *Point) {
		p.facts = []authz.Step{occupied(since(long)), supplied(south, since(long))}
		readings(p, registers([]meter.DayRange{days(month, month+3)}, low...))
	})
	add(gasNumbers+1, meter.Gas, "gas", "A gas meter: registers of two months, and hours with the customer's consent", func(p *Point) {
		facts(p, p.consent(c, north, meter.PT15M))
		readings(p, registers([]meter.DayRange{days(before, end)}, "gas"),
			intervals(meter.PT1H, "gas_intervals", append([]meter.DayRange{days(month, month+3)}, around...)...))
	})
	return all
}
