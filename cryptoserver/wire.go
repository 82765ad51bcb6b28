package cryptoserver

import (
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
	return c == uint32(meter.Registers) || c == uint32(meter.Intervals)
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

// seriesToWire copies: what it reads is cleared after the call, what it makes
// is sent after it.
func seriesToWire(in []meter.Series) []*cryptopb.Series {
	out := make([]*cryptopb.Series, len(in))
	slab := make([]cryptopb.Series, len(in))
	days, values := 0, 0
	for i := range in {
		days += len(in[i].Days)
		for _, d := range in[i].Days {
			values += len(d.Values)
		}
	}
	daySlab := make([]cryptopb.SeriesDay, days)
	dayPtrs := make([]*cryptopb.SeriesDay, days)
	valueSlab := make([]int64, 0, values)
	for i := range in {
		s := &in[i]
		w := &slab[i]
		w.Field, w.Kind, w.Resolution = uint32(s.Field), uint32(s.Kind), uint32(s.Resolution)
		w.Basis, w.Rule = uint32(s.Basis), s.Rule
		w.Expected, w.Delivered = uint32(s.Expected), uint32(s.Delivered)
		n := len(s.Days)
		w.Days, dayPtrs = dayPtrs[:n:n], dayPtrs[n:]
		for j := range s.Days {
			d := &daySlab[j]
			d.Day = int32(s.Days[j].Day)
			from := len(valueSlab)
			for _, v := range s.Days[j].Values {
				valueSlab = append(valueSlab, int64(v))
			}
			d.Values = valueSlab[from:len(valueSlab):len(valueSlab)]
			if q := s.Days[j].Quality; q != nil {
				d.Quality = make([]byte, len(q))
				for k := range q {
					d.Quality[k] = byte(q[k])
				}
			}
			w.Days[j] = d
		}
		daySlab = daySlab[n:]
		out[i] = w
	}
	return out
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
