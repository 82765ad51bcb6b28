package authz

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"sort"
	"time"

	"kluis/internal/canonical"
	"kluis/meter"
)

// Domain tag and format version of a legal file's payload.
const (
	domainLegalFile  = "kluis/legal-file"
	versionLegalFile = 1
)

// Occupancy is one customer's time at the metering point, in local days. To
// is meter.MaxDay while it lasts. It carries no name: From identifies it.
type Occupancy struct{ Days meter.DayRange }

// SupplyPeriod is a supplier's registered time at the metering point, in
// local days. To is meter.MaxDay while it lasts.
type SupplyPeriod struct {
	Supplier meter.GLN
	Days     meter.DayRange
}

// facts is what a step changes.
type facts struct {
	ean         meter.EAN
	commodity   meter.Commodity
	occupancies []Occupancy      // by From, disjoint
	supply      []SupplyPeriod   // by From, disjoint
	consents    []Consent        // by ID
	optOuts     []meter.DayRange // by From, disjoint, non-adjacent
}

func (f *facts) clone() facts {
	c := *f
	c.occupancies = slices.Clone(f.occupancies)
	c.supply = slices.Clone(f.supply)
	c.consents = slices.Clone(f.consents)
	c.optOuts = slices.Clone(f.optOuts)
	return c
}

// LegalFile holds all facts that decide who may read one metering point, at
// one version. A *LegalFile comes from SealKeys.LegalFile (verified), or from
// Apply (a draft, to be sealed). Immutable; safe for concurrent use.
type LegalFile struct {
	facts
	version  uint64
	sealedAt time.Time
	previous [32]byte
	step     []byte
	actor    Actor

	payload []byte
	digest  [32]byte

	// What Decide looks things up in, made once.
	parties  map[meter.GLN]*party
	occupied []meter.DayRange // of the occupancies, by From
}

// party is what the file says of one supplier.
type party struct {
	supply   []meter.DayRange // by From, disjoint and non-adjacent
	consents []int            // indexes, ascending
}

// EAN names the metering point. It is never zero.
func (f *LegalFile) EAN() meter.EAN { return f.ean }

// Version counts from 1.
func (f *LegalFile) Version() uint64 { return f.version }

// SealedAt is when the version was made, UTC, in microseconds. It never lies
// before that of the version before.
func (f *LegalFile) SealedAt() time.Time { return f.sealedAt }

// Commodity says what the metering point meters.
func (f *LegalFile) Commodity() meter.Commodity { return f.commodity }

// Digest is the SHA-256 of the payload.
func (f *LegalFile) Digest() [32]byte { return f.digest }

// Previous is the Digest of the version before; zero for version 1.
func (f *LegalFile) Previous() [32]byte { return f.previous }

// Actor is who took the step that made this version.
func (f *LegalFile) Actor() Actor { return f.actor }

// Step is the step that made this version.
func (f *LegalFile) Step() Step {
	s, err := DecodeStep(f.step)
	if err != nil {
		panic("authz: a legal file holds a step that does not decode") // parseLegalFile checked it
	}
	return s
}

// Occupancies returns a copy, by From; they are disjoint.
func (f *LegalFile) Occupancies() []Occupancy { return slices.Clone(f.occupancies) }

// SupplyPeriods returns a copy, by From; they are disjoint.
func (f *LegalFile) SupplyPeriods() []SupplyPeriod { return slices.Clone(f.supply) }

// Consents returns a copy, by ID.
func (f *LegalFile) Consents() []Consent {
	out := slices.Clone(f.consents)
	for i := range out {
		out[i].Classes = slices.Clone(out[i].Classes)
	}
	return out
}

// Consent finds a consent by its id. A copy.
func (f *LegalFile) Consent(id [16]byte) (Consent, bool) {
	c := f.find(id)
	if c == nil {
		return Consent{}, false
	}
	out := *c
	out.Classes = slices.Clone(out.Classes)
	return out, true
}

// OptOuts returns a copy of the days without remote reading: sorted, disjoint
// and non-adjacent ranges.
func (f *LegalFile) OptOuts() []meter.DayRange { return slices.Clone(f.optOuts) }

// OccupancyAt finds the occupancy that holds the day.
func (f *LegalFile) OccupancyAt(d meter.Day) (Occupancy, bool) { return f.facts.occupancyAt(d) }

func (f *facts) occupancyAt(d meter.Day) (Occupancy, bool) {
	i := sort.Search(len(f.occupancies), func(i int) bool { return f.occupancies[i].Days.To > d })
	if i < len(f.occupancies) && f.occupancies[i].Days.Contains(d) {
		return f.occupancies[i], true
	}
	return Occupancy{}, false
}

// Relates says whether the supplier ever had a supply period or a consent, or
// asked for one.
func (f *LegalFile) Relates(g meter.GLN) bool { return f.parties[g] != nil }

// Payload is the canonical encoding ("kluis/legal-file"), the bytes signed.
func (f *LegalFile) Payload() []byte { return bytes.Clone(f.payload) }

func (f *LegalFile) encode() []byte {
	w := canonical.New(domainLegalFile, versionLegalFile)
	w.U64(uint64(f.ean.Int64()))
	w.U8(uint8(f.commodity))
	w.U64(f.version)
	w.Time(f.sealedAt)
	w.Fixed(f.previous[:])
	w.Bytes(f.step)
	f.actor.encode(w)
	w.Count(len(f.occupancies))
	for _, o := range f.occupancies {
		writeDays(w, o.Days)
	}
	w.Count(len(f.supply))
	for _, s := range f.supply {
		w.U64(uint64(s.Supplier.Int64()))
		writeDays(w, s.Days)
	}
	w.Count(len(f.consents))
	for i := range f.consents {
		f.consents[i].encode(w)
	}
	w.Count(len(f.optOuts))
	for _, d := range f.optOuts {
		writeDays(w, d)
	}
	return w.Encoded()
}

// parseLegalFile is the only maker of a LegalFile. It accepts exactly what
// encode writes for facts that keep every invariant, and keeps no reference
// to b. Its errors name no facts.
func parseLegalFile(b []byte) (*LegalFile, error) {
	r, _, err := canonical.Open(b, domainLegalFile, versionLegalFile)
	if err != nil {
		return nil, err
	}
	f := &LegalFile{}
	f.ean = readEAN(r)
	if f.commodity = meter.Commodity(r.U8()); r.Err() == nil && !knownCommodity(f.commodity) {
		r.Refuse("unknown commodity")
	}
	if f.version = r.U64(); r.Err() == nil && (f.version == 0 || int64(f.version) < 0) {
		r.Refuse("version out of range")
	}
	f.sealedAt = readTime(r)
	r.Fixed(f.previous[:])
	f.step = bytes.Clone(r.Bytes(maxStep))
	f.actor = readActor(r)
	if r.Err() == nil {
		f.checkHistory(r)
	}
	f.readOccupancies(r)
	f.readSupply(r)
	f.readConsents(r)
	f.readOptOuts(r)
	if err := r.Close(); err != nil {
		return nil, err
	}
	f.payload = bytes.Clone(b)
	f.digest = sha256.Sum256(b)
	f.index()
	return f, nil
}

// checkHistory refuses a step that cannot have made this version.
func (f *LegalFile) checkHistory(r *canonical.Reader) {
	step, err := DecodeStep(f.step)
	if err != nil {
		r.Refuse("step does not decode")
		return
	}
	reg, first := step.(Register)
	switch {
	case first != (f.version == 1), first != (f.previous == [32]byte{}):
		r.Refuse("only version 1 is a registration and has no previous version")
	case first && (reg.EAN != f.ean || reg.Commodity != f.commodity):
		r.Refuse("registered as another metering point")
	case !f.actor.may(step):
		r.Refuse("step taken by somebody who may not")
	}
}

func (f *LegalFile) readOccupancies(r *canonical.Reader) {
	f.occupancies = make([]Occupancy, r.Count(maxOccupancies))
	for i := range f.occupancies {
		f.occupancies[i] = Occupancy{Days: readDays(r)}
		if r.Err() != nil {
			return
		}
		if i > 0 && f.occupancies[i].Days.From < f.occupancies[i-1].Days.To {
			r.Refuse("occupancies not in order or overlapping")
			return
		}
	}
}

func (f *LegalFile) readSupply(r *canonical.Reader) {
	f.supply = make([]SupplyPeriod, r.Count(maxSupplyPeriods))
	for i := range f.supply {
		f.supply[i] = SupplyPeriod{Supplier: readGLN(r), Days: readDays(r)}
		if r.Err() != nil {
			return
		}
		if i > 0 && f.supply[i].Days.From < f.supply[i-1].Days.To {
			r.Refuse("supply periods not in order or overlapping")
			return
		}
	}
}

func (f *LegalFile) readConsents(r *canonical.Reader) {
	f.consents = make([]Consent, r.Count(maxConsents))
	for i := range f.consents {
		f.consents[i] = readConsent(r, f.sealedAt)
		if r.Err() != nil {
			return
		}
		c := &f.consents[i]
		o, ok := f.occupancyAt(c.Occupancy)
		switch {
		case i > 0 && bytes.Compare(f.consents[i-1].ID[:], c.ID[:]) >= 0:
			r.Refuse("consents not in order, or an id twice")
			return
		case !ok || o.Days.From != c.Occupancy:
			r.Refuse("consent of an occupancy that does not exist")
			return
		}
	}
}

func (f *LegalFile) readOptOuts(r *canonical.Reader) {
	f.optOuts = make([]meter.DayRange, r.Count(maxOptOuts))
	for i := range f.optOuts {
		f.optOuts[i] = readDays(r)
		if r.Err() != nil {
			return
		}
		if i > 0 && f.optOuts[i].From <= f.optOuts[i-1].To {
			r.Refuse("opt-outs not in order, overlapping or adjacent")
			return
		}
	}
}

// index sorts the facts by supplier, so that a decision sees nobody else's.
func (f *LegalFile) index() {
	f.parties = make(map[meter.GLN]*party)
	get := func(g meter.GLN) *party {
		p := f.parties[g]
		if p == nil {
			p = &party{}
			f.parties[g] = p
		}
		return p
	}
	for _, o := range f.occupancies {
		f.occupied = append(f.occupied, o.Days)
	}
	for _, s := range f.supply {
		p := get(s.Supplier)
		// Periods that touch are one: between them nobody switched.
		if n := len(p.supply); n > 0 && p.supply[n-1].To == s.Days.From {
			p.supply[n-1].To = s.Days.To
			continue
		}
		p.supply = append(p.supply, s.Days)
	}
	for i := range f.consents {
		p := get(f.consents[i].Supplier)
		p.consents = append(p.consents, i)
	}
}
