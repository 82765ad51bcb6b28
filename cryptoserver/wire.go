package cryptoserver

import (
	"bytes"
	"encoding/binary"
	"slices"

	"kluis/authz"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

// Parsing of what arrives: nothing goes further that is not of its type.

const maxMonth = meter.Month(12 * 200) // 2169: beyond it, a mistake

func parseEAN(n uint64) (meter.EAN, error) {
	if n > 1<<62 {
		return meter.EAN{}, meter.ErrEAN
	}
	return meter.EANFromInt64(int64(n))
}

// parseKey checks the form of a key record, not its MAC.
func parseKey(k *cryptopb.DataKey) (envelope.KeyRecord, bool) {
	var r envelope.KeyRecord
	if k == nil || len(k.Id) != len(r.ID) || len(k.Mac) != len(r.MAC) || len(k.Wrapped) != envelope.WrappedKeySize {
		return r, false
	}
	ean, err := parseEAN(k.Ean)
	if err != nil {
		return r, false
	}
	if !validClass(k.Class) || k.Month < 0 || meter.Month(k.Month) > maxMonth || k.KekEpoch == 0 {
		return r, false
	}
	r.EAN, r.Class, r.Month = ean, meter.Class(k.Class), meter.Month(k.Month)
	r.Occupancy, r.Epoch, r.Wrapped = meter.Day(k.Occupancy), k.KekEpoch, k.Wrapped
	copy(r.ID[:], k.Id)
	copy(r.MAC[:], k.Mac)
	return r, true
}

func validClass(c uint32) bool {
	return c == uint32(meter.Registers) || c == uint32(meter.Intervals) || c == uint32(meter.Identity)
}

func keyToWire(k *envelope.KeyRecord) *cryptopb.DataKey {
	return &cryptopb.DataKey{
		Id: k.ID[:], Ean: uint64(k.EAN.Int64()), Class: uint32(k.Class), Month: int32(k.Month),
		Occupancy: int32(k.Occupancy), KekEpoch: k.Epoch, Wrapped: k.Wrapped, Mac: k.MAC[:],
	}
}

// storedAs reports whether blocks of the field may have the resolution.
func storedAs(f meter.Field, r uint32) bool {
	for _, s := range f.Stored {
		if uint32(s) == r {
			return true
		}
	}
	return false
}

// parseRequest reads what is asked of one metering point, whose EAN comes from
// its legal file.
func parseRequest(u *cryptopb.OpenUnit, p *meter.Profile) (authz.Request, error) {
	r := authz.Request{
		Purpose:    meter.Purpose(u.Purpose),
		Days:       meter.DayRange{From: meter.Day(u.FromDay), To: meter.Day(u.ToDay)},
		Resolution: meter.Resolution(u.Resolution),
		Kind:       meter.Kind(u.Kind),
	}
	if u.Purpose < uint32(meter.Billing) || u.Purpose > uint32(meter.CustomerService) {
		return r, malformed("unknown purpose")
	}
	if u.Resolution > uint32(meter.P1M) || u.Kind > uint32(meter.Consumption) {
		return r, malformed("unknown resolution or kind")
	}
	if u.FromDay < 0 || u.ToDay <= u.FromDay || int64(u.ToDay)-int64(u.FromDay) > maxDays {
		return r, malformed("period must have 1 to %d days", maxDays)
	}
	if len(u.Fields) == 0 || len(u.Fields) > maxFields {
		return r, malformed("1 to %d fields", maxFields)
	}
	r.Fields = make([]meter.FieldCode, len(u.Fields))
	for i, code := range u.Fields {
		if code > 1<<16-1 {
			return r, malformed("unknown field")
		}
		if _, ok := p.FieldByCode(meter.FieldCode(code)); !ok {
			return r, malformed("unknown field")
		}
		for _, before := range r.Fields[:i] {
			if uint32(before) == code {
				return r, malformed("a field is repeated")
			}
		}
		r.Fields[i] = meter.FieldCode(code)
	}
	return r, nil
}

// blockColumns are the blocks of a call, of which the columns fit each other.
type blockColumns struct {
	in    *cryptopb.SealedBlocks
	start []int // of the ciphertexts, and the end of the last
}

// parseBlocks checks that there is a value of each column for every block, and
// that every block is of a unit. start is memory to be used again.
func parseBlocks(req *cryptopb.OpenRequest, start []int) (blockColumns, error) {
	in := req.Blocks
	if in == nil {
		in = &cryptopb.SealedBlocks{}
	}
	c := blockColumns{in: in}
	n := len(in.Field)
	if n > maxBlocks {
		return c, malformed("at most %d blocks in a call", maxBlocks)
	}
	if len(in.Day) != n || len(in.Resolution) != n || len(in.Version) != n || len(in.Key) != n || len(in.Size) != n {
		return c, malformed("columns of blocks that are not of one length")
	}
	units := 0
	for _, u := range req.Units {
		if units += int(min(u.GetBlocks(), maxBlocks+1)); units > n { // neither sum overflows
			break
		}
	}
	if units != n {
		return c, malformed("another number of blocks than the metering points have")
	}
	c.start = append(slices.Grow(start[:0], n+1), 0)
	at := 0
	for _, size := range in.Size {
		if uint64(size) > uint64(len(in.Ciphertexts)-at) {
			return c, malformed("ciphertexts that are shorter than their sizes")
		}
		at += int(size)
		c.start = append(c.start, at)
	}
	if at != len(in.Ciphertexts) {
		return c, malformed("ciphertexts that are longer than their sizes")
	}
	return c, nil
}

func (c *blockColumns) len() int { return len(c.in.Field) }

func (c *blockColumns) ciphertext(i int) []byte {
	return c.in.Ciphertexts[c.start[i]:c.start[i+1]:c.start[i+1]]
}

// seriesColumns collects the days of all series of a call. The values wait in
// memory that is used again, and so is cleared.
type seriesColumns struct {
	out    cryptopb.SeriesDays
	values []byte
}

// add copies: what it reads is cleared after the call, what it makes is sent
// after it.
func (c *seriesColumns) add(in []meter.Series) []*cryptopb.Series {
	out := make([]*cryptopb.Series, len(in))
	slab := make([]cryptopb.Series, len(in))
	for i := range in {
		s, w := &in[i], &slab[i]
		w.Field, w.Kind, w.Resolution = uint32(s.Field), uint32(s.Kind), uint32(s.Resolution)
		w.Basis, w.Rule = uint32(s.Basis), s.Rule
		w.Expected, w.Delivered, w.Days = uint32(s.Expected), uint32(s.Delivered), uint32(len(s.Days))
		out[i] = w
		for j := range s.Days {
			d := &s.Days[j]
			if d.Quality != nil {
				c.out.Qualified = append(c.out.Qualified, uint32(len(c.out.Day)))
				for _, q := range d.Quality {
					c.out.Quality = append(c.out.Quality, byte(q))
				}
			}
			c.out.Day = append(c.out.Day, int32(d.Day))
			c.out.Size = append(c.out.Size, uint32(len(d.Values)))
			c.room(len(d.Values) * binary.MaxVarintLen64)
			b := c.values
			for _, v := range d.Values {
				b = binary.AppendVarint(b, int64(v)) // the zig-zag of sint64
			}
			c.values = b
		}
	}
	return out
}

// room grows the values; what is outgrown is cleared.
func (c *seriesColumns) room(n int) {
	if cap(c.values)-len(c.values) >= n {
		return
	}
	old := c.values
	c.values = append(make([]byte, 0, max(2*cap(old), len(old)+n, 32<<10)), old...)
	clear(old)
}

// take returns the message, and readies the columns for the next call.
func (c *seriesColumns) take() *cryptopb.SeriesDays {
	m := &cryptopb.SeriesDays{
		Day: c.out.Day, Size: c.out.Size, Qualified: c.out.Qualified, Quality: c.out.Quality,
		Values: bytes.Clone(c.values),
	}
	c.reset()
	return m
}

func (c *seriesColumns) reset() {
	clear(c.values)
	c.values = c.values[:0]
	c.out.Day, c.out.Size, c.out.Qualified, c.out.Quality = nil, nil, nil, nil
}

func withheldToWire(in []authz.Withheld) []*cryptopb.Withheld {
	out := make([]*cryptopb.Withheld, len(in))
	slab := make([]cryptopb.Withheld, len(in))
	for i, w := range in {
		o := &slab[i]
		o.Field, o.FromDay, o.ToDay, o.Reason = uint32(w.Field), int32(w.Days.From), int32(w.Days.To), uint32(w.Reason)
		out[i] = o
	}
	return out
}
