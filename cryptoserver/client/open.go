package client

import (
	"context"
	"math"

	"kluis/authz"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

// OpenRequest asks a cryptoserver to open what a supplier's own evidence
// allows.
type OpenRequest struct {
	AccessToken    string
	SupplierRecord []byte   // sealed, of the token's subject
	Profile        [32]byte // digest of the market profile that was decided with
	Units          []Unit
}

// Unit is one metering point.
type Unit struct {
	InteractionID [16]byte
	LegalFile     []byte // sealed, of Request.EAN
	Request       authz.Request
	Keys          []envelope.KeyRecord
	Blocks        []envelope.SealedBlock
}

// Opened is what came of a Unit. Withheld is complete: the cryptoserver's own
// decision, with what it could not open or give.
type Opened struct {
	Err      error // authz.ErrNoRelation, or ErrEvidence; then the rest is empty
	Series   []meter.Series
	Withheld []authz.Withheld
	Faults   []Fault
	Receipt  []byte // canonical (envelope.ParseReceipt)
}

// Fault is a block that was not opened.
type Fault struct {
	Block  int // index into the unit's blocks
	Reason FaultReason
}

// FaultReason says why.
type FaultReason uint8

// The reasons there are.
const (
	OutsideGrant FaultReason = 1 // the evidence does not cover it
	Damaged      FaultReason = 2 // it did not open
	Duplicate    FaultReason = 3 // the same field and day twice
	Erased       FaultReason = 4 // its data key was erased
)

// Open returns one Opened per unit, in order.
func (c *Client) Open(ctx context.Context, r OpenRequest) ([]Opened, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	in := &cryptopb.OpenRequest{
		AccessToken: r.AccessToken, SupplierRecord: r.SupplierRecord, ProfileDigest: r.Profile[:],
		Units: make([]*cryptopb.OpenUnit, len(r.Units)),
	}
	for i := range r.Units {
		in.Units[i] = unitToWire(&r.Units[i])
	}
	resp, err := c.open.Open(ctx, in)
	if err != nil {
		return nil, fromGRPC(err)
	}
	if len(resp.Units) != len(r.Units) {
		return nil, internal("the server answered for another number of metering points")
	}
	out := make([]Opened, len(resp.Units))
	for i, u := range resp.Units {
		if out[i], err = opened(u, &r.Units[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func unitToWire(u *Unit) *cryptopb.OpenUnit {
	w := &cryptopb.OpenUnit{
		LegalFile:     u.LegalFile,
		InteractionId: u.InteractionID[:],
		Purpose:       uint32(u.Request.Purpose),
		FromDay:       int32(u.Request.Days.From),
		ToDay:         int32(u.Request.Days.To),
		Resolution:    uint32(u.Request.Resolution),
		Kind:          uint32(u.Request.Kind),
		Fields:        make([]uint32, len(u.Request.Fields)),
		Keys:          make([]*cryptopb.DataKey, len(u.Keys)),
		Blocks:        make([]*cryptopb.SealedBlock, len(u.Blocks)),
	}
	for i, f := range u.Request.Fields {
		w.Fields[i] = uint32(f)
	}
	for i := range u.Keys {
		w.Keys[i] = keyToWire(&u.Keys[i])
	}
	slab := make([]cryptopb.SealedBlock, len(u.Blocks))
	for i := range u.Blocks {
		w.Blocks[i] = &slab[i]
		sealedToWire(&u.Blocks[i], &slab[i])
	}
	return w
}

func sealedToWire(b *envelope.SealedBlock, o *cryptopb.SealedBlock) {
	o.Field, o.Day, o.Resolution, o.Version = uint32(b.Field), int32(b.Day), uint32(b.Resolution), b.Version
	o.Key, o.Ciphertext = uint32(b.Key), b.Ciphertext
	if b.Key < 0 { // envelope.NoKey
		o.Key = math.MaxUint32
	}
}

func opened(u *cryptopb.OpenedUnit, asked *Unit) (Opened, error) {
	var o Opened
	switch u.GetStatus() {
	case cryptopb.UnitStatus_UNIT_STATUS_OK:
	case cryptopb.UnitStatus_UNIT_STATUS_NO_RELATION:
		o.Err = authz.ErrNoRelation
		return o, nil
	case cryptopb.UnitStatus_UNIT_STATUS_EVIDENCE_INVALID:
		o.Err = ErrEvidence
		return o, nil
	default:
		return o, internal("the server answered with an unknown status")
	}
	// The receipt goes into the access log as it is, so it must be of what was
	// asked.
	r, err := envelope.ParseReceipt(u.Receipt)
	if err != nil || r.InteractionID != asked.InteractionID || r.EAN != asked.Request.EAN {
		return o, internal("the server's receipt is not of what was asked")
	}
	o.Receipt = u.Receipt
	o.Series = seriesFromWire(u.Series)
	o.Withheld = make([]authz.Withheld, len(u.Withheld))
	for i, w := range u.Withheld {
		o.Withheld[i] = authz.Withheld{
			Field:  meter.FieldCode(w.GetField()),
			Days:   meter.DayRange{From: meter.Day(w.GetFromDay()), To: meter.Day(w.GetToDay())},
			Reason: meter.Reason(w.GetReason()),
		}
	}
	for _, f := range u.Faults {
		if uint64(f.GetBlock()) >= uint64(len(asked.Blocks)) {
			return o, internal("the server named a block that was not sent")
		}
		o.Faults = append(o.Faults, Fault{int(f.GetBlock()), FaultReason(f.GetFault())})
	}
	return o, nil
}

func seriesFromWire(in []*cryptopb.Series) []meter.Series {
	out := make([]meter.Series, len(in))
	days, values := 0, 0
	for _, s := range in {
		days += len(s.Days)
		for _, d := range s.Days {
			values += len(d.Values)
		}
	}
	daySlab := make([]meter.SeriesDay, days)
	valueSlab := make([]meter.Value, 0, values)
	for i, s := range in {
		n := len(s.Days)
		out[i] = meter.Series{
			Field: meter.FieldCode(s.Field), Kind: meter.Kind(s.Kind), Resolution: meter.Resolution(s.Resolution),
			Basis: meter.Basis(s.Basis), Rule: s.Rule, Expected: int(s.Expected), Delivered: int(s.Delivered),
			Days: daySlab[:n:n],
		}
		daySlab = daySlab[n:]
		for j, d := range s.Days {
			from := len(valueSlab)
			for _, v := range d.Values {
				valueSlab = append(valueSlab, meter.Value(v))
			}
			o := &out[i].Days[j]
			o.Day, o.Values = meter.Day(d.Day), valueSlab[from:len(valueSlab):len(valueSlab)]
			if len(d.Quality) > 0 {
				o.Quality = make([]meter.Quality, len(d.Quality))
				for k, q := range d.Quality {
					o.Quality[k] = meter.Quality(q)
				}
			}
		}
	}
	return out
}
