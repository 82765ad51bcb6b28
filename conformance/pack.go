package conformance

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"kluis/authz"
	"kluis/meter"
)

// MaxAge is how long after the day of seeding the cases hold: then the first of
// the days they are about may be past the time readings are kept.
const MaxAge = 300 // days

// ErrAge says that a pack was seeded too long ago, or later than today.
var ErrAge = errors.New("the conformance pack was seeded too long ago, or in the future: seed it afresh")

// Market is what the pack must know of an installation. A supplier learns it
// from GET /v1/status.
type Market struct {
	Location        *time.Location
	RetentionMonths int
}

// Pack is the test suppliers, the metering points and the cases of one seeding.
type Pack struct {
	Suppliers []Supplier
	Points    []Point
	Cases     []Case
}

// New makes the pack that was seeded on a day, as it is to be answered today.
// Suppliers and metering points depend on the day of seeding only.
func New(m Market, seeded, today meter.Day) (*Pack, error) {
	if today < seeded || today-seeded > MaxAge {
		return nil, ErrAge
	}
	c := newCalendar(m, seeded, today)
	p := &Pack{Suppliers: Suppliers(), Points: points(c)}
	p.Cases = cases(c, p)
	return p, nil
}

// Supplier is a test supplier.
type Supplier struct {
	Name   string // also that of its certificate's files
	GLN    meter.GLN
	Scopes []string
	Is     string // what it is there for
}

// The test suppliers, by index.
const (
	north = iota
	south
	third
)

// Suppliers are the test suppliers; they are the same everywhere.
func Suppliers() []Supplier {
	return []Supplier{
		{Name: "north", GLN: testGLN(1), Scopes: []string{"consents:write", "readings:read"}, Is: "supplies most of the metering points"},
		{Name: "south", GLN: testGLN(2), Scopes: []string{"readings:read"}, Is: "the other supplier: of switches, moves and customers who are none of north's"},
		{Name: "third", GLN: testGLN(3), Scopes: []string{"consents:write"}, Is: "may not read, and has no customers"},
	}
}

// Point is a test metering point.
type Point struct {
	Name      string
	EAN       meter.EAN
	Commodity meter.Commodity
	Shows     string // one sentence, without its full stop
	Readings  []Stored

	// Erased is the occupancy whose data keys are erased once the readings are
	// stored; empty for none.
	Erased meter.DayRange
	// Damaged is the field, and DamagedOn the day, of a block that is damaged in
	// the database once the readings are stored; "" for none. Only an operator's
	// own tests do that: see Case.Damage.
	Damaged   string
	DamagedOn meter.Day

	facts    []authz.Step
	consents []authz.GrantConsent
}

// shortConsent is how long a consent lasts that is to have expired: long enough
// for a cryptoserver that is slow, or whose clock is a little ahead.
const shortConsent = 5 * time.Second

// Steps are the steps of the legal file, taken now. A consent that is there to
// have expired does so shortly after.
func (p *Point) Steps(now time.Time) []authz.Step {
	steps := []authz.Step{authz.Register{EAN: p.EAN, Commodity: p.Commodity}}
	for _, s := range p.facts {
		if g, ok := s.(authz.GrantConsent); ok && g.ValidUntil.IsZero() {
			g.ValidUntil = now.Add(shortConsent).UTC().Truncate(time.Microsecond)
			s = g
		}
		steps = append(steps, s)
	}
	return steps
}

// Settled is when everything is as the cases want it, if the last of the steps
// were made at now.
func Settled(now time.Time) time.Time { return now.Add(shortConsent + time.Second) }

// point finds a metering point by its name. An unknown one is a slip in the
// tables.
func (p *Pack) point(name string) *Point {
	for i := range p.Points {
		if p.Points[i].Name == name {
			return &p.Points[i]
		}
	}
	panic("conformance: no metering point " + name)
}

func testGLN(n int) meter.GLN {
	g, err := meter.ParseGLN(withCheckDigit(fmt.Sprintf("9520000000%02d", n)))
	if err != nil {
		panic(err) // the check digit was just computed
	}
	return g
}

func testEAN(n int) meter.EAN {
	e, err := meter.ParseEAN(withCheckDigit(fmt.Sprintf("9520000000000%04d", n)))
	if err != nil {
		panic(err) // the check digit was just computed
	}
	return e
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

// consentID is a UUID (RFC 9562, version 8) that is the same at every try.
func consentID(ean meter.EAN, n int) (id [16]byte) {
	h := sha256.Sum256(fmt.Appendf(nil, "kluis conformance consent %s %d", ean, n))
	copy(id[:], h[:])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}
