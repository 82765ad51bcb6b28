package client

import (
	"context"
	"encoding/binary"
	"math"
	"slices"
	"sync"

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

var columns = sync.Pool{New: func() any { return new(cryptopb.SealedBlocks) }}

// Open returns one Opened per unit, in order.
func (c *Client) Open(ctx context.Context, r OpenRequest) ([]Opened, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	in := &cryptopb.OpenRequest{
		AccessToken: r.AccessToken, SupplierRecord: r.SupplierRecord, ProfileDigest: r.Profile[:],
		Units: make([]*cryptopb.OpenUnit, len(r.Units)), Blocks: columns.Get().(*cryptopb.SealedBlocks),
	}
	blocksToWire(in.Blocks, r.Units)
	defer func() {
		if cap(in.Blocks.Ciphertexts) <= keepColumns {
			columns.Put(in.Blocks)
		}
	}()
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
	days, err := parseDays(resp.Days)
	if err != nil {
		return nil, err
	}
	out := make([]Opened, len(resp.Units))
	for i, u := range resp.Units {
		if out[i], err = opened(u, &r.Units[i], &days); err != nil {
			return nil, err
		}
	}
	if len(days) > 0 {
		return nil, internal("the server answered with days of no series")
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
		Blocks:        uint32(len(u.Blocks)),
	}
	for i, f := range u.Request.Fields {
		w.Fields[i] = uint32(f)
	}
	for i := range u.Keys {
		w.Keys[i] = keyToWire(&u.Keys[i])
	}
	return w
}

// blocksToWire lays the blocks of all units out by the column, into columns that
// may be used again: once a call is over nothing is sent from them any more, for
// gRPC encodes a message before it sends anything, and what they hold is
// encrypted.
func blocksToWire(w *cryptopb.SealedBlocks, units []Unit) {
	n, size := 0, 0
	for i := range units {
		n += len(units[i].Blocks)
		for j := range units[i].Blocks {
			size += len(units[i].Blocks[j].Ciphertext)
		}
	}
	for _, column := range []*[]uint32{&w.Field, &w.Resolution, &w.Version, &w.Key, &w.Size} {
		*column = slices.Grow((*column)[:0], n)[:n]
	}
	w.Day = slices.Grow(w.Day[:0], n)[:n]
	w.Ciphertexts = slices.Grow(w.Ciphertexts[:0], size)
	at := 0
	for i := range units {
		for j := range units[i].Blocks {
			b := &units[i].Blocks[j]
			w.Field[at], w.Day[at], w.Resolution[at], w.Version[at] = uint32(b.Field), int32(b.Day), uint32(b.Resolution), b.Version
			w.Key[at], w.Size[at] = uint32(b.Key), uint32(len(b.Ciphertext))
			if b.Key < 0 { // envelope.NoKey
				w.Key[at] = math.MaxUint32
			}
			w.Ciphertexts = append(w.Ciphertexts, b.Ciphertext...)
			at++
		}
	}
}

// keepColumns is how large columns may be to be kept.
const keepColumns = 1 << 20

func sealedToWire(b *envelope.SealedBlock, o *cryptopb.SealedBlock) {
	o.Field, o.Day, o.Resolution, o.Version = uint32(b.Field), int32(b.Day), uint32(b.Resolution), b.Version
	o.Key, o.Ciphertext = uint32(b.Key), b.Ciphertext
	if b.Key < 0 { // envelope.NoKey
		o.Key = math.MaxUint32
	}
}

// opened takes the days of the unit's series from those of the call.
func opened(u *cryptopb.OpenedUnit, asked *Unit, days *[]meter.SeriesDay) (Opened, error) {
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
	if o.Series, err = seriesFromWire(u.Series, days); err != nil {
		return o, err
	}
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

func seriesFromWire(in []*cryptopb.Series, days *[]meter.SeriesDay) ([]meter.Series, error) {
	out := make([]meter.Series, len(in))
	for i, s := range in {
		n := s.GetDays()
		if uint64(n) > uint64(len(*days)) {
			return nil, errColumns
		}
		out[i] = meter.Series{
			Field: meter.FieldCode(s.GetField()), Kind: meter.Kind(s.GetKind()), Resolution: meter.Resolution(s.GetResolution()),
			Basis: meter.Basis(s.GetBasis()), Rule: s.GetRule(), Expected: int(s.GetExpected()), Delivered: int(s.GetDelivered()),
			Days: (*days)[:n:n],
		}
		*days = (*days)[n:]
	}
	return out, nil
}

var errColumns = internal("the server answered with days that do not fit each other")

// parseDays reads the days of all series. All values lie in one piece of
// memory, and so do all qualities.
func parseDays(in *cryptopb.SeriesDays) ([]meter.SeriesDay, error) {
	sizes := in.GetSize()
	if len(in.GetDay()) != len(sizes) {
		return nil, errColumns
	}
	total := uint64(0)
	for _, n := range sizes {
		if total += uint64(n); total > uint64(len(in.GetValues())) { // a value has a byte at least
			return nil, errColumns
		}
	}
	values, ok := parseValues(make([]meter.Value, total), in.GetValues())
	if !ok {
		return nil, errColumns
	}
	out := make([]meter.SeriesDay, len(sizes))
	for i, n := range sizes {
		out[i].Day, out[i].Values = meter.Day(in.Day[i]), values[:n:n]
		values = values[n:]
	}
	quality := make([]meter.Quality, len(in.GetQuality()))
	for i, q := range in.GetQuality() {
		quality[i] = meter.Quality(q)
	}
	for i, at := range in.GetQualified() {
		if uint64(at) >= uint64(len(out)) || i > 0 && at <= in.Qualified[i-1] || len(out[at].Values) > len(quality) {
			return nil, errColumns
		}
		n := len(out[at].Values)
		out[at].Quality, quality = quality[:n:n], quality[n:]
	}
	if len(quality) > 0 {
		return nil, errColumns
	}
	return out, nil
}

// parseValues reads as many values as there is room for, and all of b.
func parseValues(to []meter.Value, b []byte) ([]meter.Value, bool) {
	for i := range to {
		// Most have two bytes.
		if len(b) >= 2 && b[1] < 0x80 {
			if b[0] < 0x80 {
				to[i], b = unzigzag(uint64(b[0])), b[1:]
				continue
			}
			to[i], b = unzigzag(uint64(b[0]&0x7f)|uint64(b[1])<<7), b[2:]
			continue
		}
		u, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, false
		}
		to[i], b = unzigzag(u), b[n:]
	}
	return to, len(b) == 0
}

func unzigzag(u uint64) meter.Value { return meter.Value(u>>1) ^ -meter.Value(u&1) }
