package authz

import "kluis/meter"

// ---- CorrectSupply

// Encode returns the canonical bytes.
func (s CorrectSupply) Encode() []byte {
	w := newStep(stepCorrectSupply)
	w.U64(uint64(s.Supplier.Int64()))
	writeDays(w, s.Days)
	return w.Encoded()
}

func (s CorrectSupply) check() error { return checkDays(s.Days) }

func (s CorrectSupply) apply(f *facts, _ moment) error {
	var out []SupplyPeriod
	add := func(p SupplyPeriod) {
		n := len(out)
		switch {
		case p.Days.Empty(), p.Supplier.IsZero():
		case n > 0 && out[n-1].Supplier == p.Supplier && out[n-1].Days.To == p.Days.From && (p.Days.From == s.Days.From || p.Days.From == s.Days.To):
			out[n-1].Days.To = p.Days.To // joined where the correction begins or ends
		default:
			out = append(out, p)
		}
	}
	corrected := SupplyPeriod(s)
	placed := false
	for _, p := range f.supply {
		add(SupplyPeriod{p.Supplier, meter.DayRange{From: p.Days.From, To: min(p.Days.To, s.Days.From)}})
		if !placed && p.Days.To > s.Days.From {
			add(corrected)
			placed = true
		}
		add(SupplyPeriod{p.Supplier, meter.DayRange{From: max(p.Days.From, s.Days.To), To: p.Days.To}})
	}
	if !placed {
		add(corrected)
	}
	switch {
	case s.stands(f):
		return refuse("it is recorded so already; nothing to do")
	case len(out) > maxSupplyPeriods:
		return refuse("more than %d supply periods", maxSupplyPeriods)
	}
	f.supply = out
	return nil
}

// stands says whether the facts say so already.
func (s CorrectSupply) stands(f *facts) bool {
	var all, own []meter.DayRange
	for _, p := range f.supply {
		all = append(all, p.Days)
		if p.Supplier == s.Supplier {
			own = append(own, p.Days)
		}
	}
	if s.Supplier.IsZero() {
		return len(overlapping(all, s.Days)) == 0
	}
	return within([]meter.DayRange{s.Days}, own)
}

// ---- CorrectMove

// Encode returns the canonical bytes.
func (s CorrectMove) Encode() []byte {
	w := newStep(stepCorrectMove)
	w.I32(int32(s.Was))
	w.I32(int32(s.Is))
	return w.Encoded()
}

func (s CorrectMove) check() error {
	switch {
	case !validDay(s.Was) || !validDay(s.Is):
		return refuse("the days must lie between 1970-01-01 and 9999-12-31")
	case s.Was == s.Is:
		return refuse("the move is on that day already; nothing to do")
	}
	return nil
}

func (s CorrectMove) apply(f *facts, _ moment) error {
	found := false
	for i := range f.occupancies {
		o := &f.occupancies[i].Days
		if o.From == s.Was {
			o.From, found = s.Is, true
		}
		if o.To == s.Was {
			o.To, found = s.Is, true
		}
		switch {
		case o.Empty():
			return refuse("no day of an occupancy would be left; choose a day within both, or after the one before and before the one after")
		case i > 0 && f.occupancies[i-1].Days.To > o.From:
			return overlaps("an occupancy", f.occupancies[i-1].Days)
		}
	}
	if !found {
		return refuse("nobody moved in or out on %s; give the day on which one is recorded", s.Was)
	}
	for i := range f.consents {
		if f.consents[i].Occupancy == s.Was {
			f.consents[i].Occupancy = s.Is
		}
	}
	return nil
}
