package backend

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"kluis/authz"
	"kluis/meter"
)

// registrarActor stands in for the registrar when steps are tried out: whose
// name it is changes nothing of what they do.
var registrarActor = authz.Actor{Kind: authz.ByOperator, Name: "registrar"}

// stretch is a supplier's days without a gap, and the rows that say so, if any.
type stretch struct {
	supplier meter.GLN
	days     meter.DayRange
	rows     []*registerRow
}

// check finds what is wrong with a metering point's rows by themselves.
func (p *registerPoint) check() {
	refuse := func(r *registerRow, column int, format string, args ...any) {
		p.bad = append(p.bad, r.problem(column, format, args...))
	}
	var kind, moved *registerRow
	bySupply, byMove := []*registerRow{}, []*registerRow{}
	for i := range p.rows {
		r := &p.rows[i]
		if r.kind != 0 {
			if kind == nil {
				kind = r
			} else if kind.kind != r.kind {
				refuse(r, colCommodity, "line %d says the other commodity", kind.line)
			}
		}
		if r.supply != (meter.DayRange{}) {
			bySupply = append(bySupply, r)
		}
		if r.occupied != (meter.DayRange{}) {
			byMove = append(byMove, r)
		}
	}
	slices.SortStableFunc(bySupply, func(a, b *registerRow) int { return cmp.Compare(a.supply.From, b.supply.From) })
	for i, r := range bySupply[min(1, len(bySupply)):] {
		switch before := bySupply[i]; {
		case before.supply.To <= r.supply.From:
		case before.supply.To == meter.MaxDay && before.supply.From < r.supply.From:
			refuse(before, colSupplyTo, "the supply period has no end, but line %d begins another one later", r.line)
		default:
			refuse(r, colSupplyFrom, "overlaps the supply period of line %d", before.line)
		}
	}
	slices.SortStableFunc(byMove, func(a, b *registerRow) int { return cmp.Compare(a.occupied.From, b.occupied.From) })
	for _, r := range byMove {
		switch {
		case moved == nil, moved.occupied == r.occupied:
		case moved.occupied.From == r.occupied.From:
			refuse(r, colMovedOut, "line %d says another end of the same occupancy", moved.line)
		case moved.occupied.To == meter.MaxDay:
			refuse(moved, colMovedOut, "the occupancy has no end, but by line %d somebody moved in later", r.line)
		case moved.occupied.To > r.occupied.From:
			refuse(r, colMovedIn, "overlaps the occupancy of line %d", moved.line)
		}
		moved = r
	}
}

// stretches are the supply periods by day, those of one supplier that touch
// joined; the rows have been checked.
func (p *registerPoint) stretches() []stretch {
	var out []stretch
	rows := []*registerRow{}
	for i := range p.rows {
		if p.rows[i].supply != (meter.DayRange{}) {
			rows = append(rows, &p.rows[i])
		}
	}
	slices.SortFunc(rows, func(a, b *registerRow) int { return cmp.Compare(a.supply.From, b.supply.From) })
	for _, r := range rows {
		if n := len(out); n > 0 && out[n-1].supplier == r.supplier && out[n-1].days.To == r.supply.From {
			out[n-1].days.To = r.supply.To
			out[n-1].rows = append(out[n-1].rows, r)
			continue
		}
		out = append(out, stretch{r.supplier, r.supply, []*registerRow{r}})
	}
	return out
}

// occupancies are the rows that begin an occupancy, by day, each once.
func (p *registerPoint) occupancies() []*registerRow {
	var out []*registerRow
	for i := range p.rows {
		if p.rows[i].occupied != (meter.DayRange{}) {
			out = append(out, &p.rows[i])
		}
	}
	slices.SortStableFunc(out, func(a, b *registerRow) int { return cmp.Compare(a.occupied.From, b.occupied.From) })
	return slices.CompactFunc(out, func(a, b *registerRow) bool { return a.occupied == b.occupied })
}

// supplied are a legal file's supply periods, joined as stretches are.
func supplied(f *authz.LegalFile) []stretch {
	var out []stretch
	for _, s := range f.SupplyPeriods() {
		if n := len(out); n > 0 && out[n-1].supplier == s.Supplier && out[n-1].days.To == s.Days.From {
			out[n-1].days.To = s.Days.To
			continue
		}
		out = append(out, stretch{supplier: s.Supplier, days: s.Days})
	}
	return out
}

// registerPlan finds the steps that make a legal file say what the extract says
// of its metering point. The steps are tried out one after another, so that
// what a row lacks is said of that row, and nothing is asked of a cryptoserver
// that it would refuse.
type registerPlan struct {
	point    *registerPoint
	correct  bool
	loc      *time.Location
	draft    *authz.LegalFile // as the steps leave it
	steps    []authz.Step
	problems []RowProblem
}

// planRegister plans for the current legal file, nil when there is none. What
// the rows say and the file does too is no step. correct lets it correct what
// the file says otherwise; else that is a problem of the row.
func planRegister(p *registerPoint, current *authz.LegalFile, correct bool, now time.Time, loc *time.Location) registerPlan {
	pl := registerPlan{point: p, correct: correct, loc: loc, draft: current}
	if current != nil && current.SealedAt().After(now) {
		now = current.SealedAt() // our clock does not matter here
	}
	first := &p.rows[0]
	if !pl.register(first, now) {
		return pl
	}
	for _, r := range p.occupancies() {
		pl.occupancy(r, now)
	}
	stretches := p.stretches()
	if len(stretches) > 0 && len(pl.draft.Occupancies()) == 0 {
		// As kluis supply set does: consents and data keys belong to one.
		pl.step(stretches[0].rows[0], colSupplyFrom, authz.SetOccupancy{Days: meter.DayRange{From: stretches[0].days.From, To: meter.MaxDay}}, now)
	}
	for _, s := range stretches {
		if pl.saysSupply(s.supplier, s.days) {
			continue
		}
		for _, r := range s.rows {
			pl.supply(r, now)
		}
	}
	if correct && len(pl.problems) == 0 && len(stretches) > 0 {
		pl.correctSupply(stretches, now)
	}
	return pl
}

// try takes a step on the draft.
func (pl *registerPlan) try(s authz.Step, now time.Time) error {
	next, err := authz.Apply(pl.draft, s, registrarActor, now, pl.loc)
	if err != nil {
		return err
	}
	pl.draft, pl.steps = next, append(pl.steps, s)
	return nil
}

// step takes a step on the draft; a refusal is a problem of the row.
func (pl *registerPlan) step(r *registerRow, column int, s authz.Step, now time.Time) {
	if err := pl.try(s, now); err != nil {
		pl.refuse(r, column, "%s", strings.TrimPrefix(err.Error(), authz.ErrStep.Error()+": "))
	}
}

func (pl *registerPlan) refuse(r *registerRow, column int, format string, args ...any) {
	pl.problems = append(pl.problems, r.problem(column, format, args...))
}

func (pl *registerPlan) register(first *registerRow, now time.Time) bool {
	said := first
	for i := range pl.point.rows {
		if r := &pl.point.rows[i]; r.kind != 0 {
			said = r
			break
		}
	}
	switch {
	case pl.draft == nil && said.kind == 0:
		pl.refuse(first, colCommodity, "the metering point is new: say electricity or gas")
	case pl.draft == nil:
		pl.step(said, colCommodity, authz.Register{EAN: pl.point.ean, Commodity: said.kind}, now)
	case said.kind != 0 && said.kind != pl.draft.Commodity():
		pl.refuse(said, colCommodity, "the metering point is registered for %s", pl.draft.Commodity())
	}
	return len(pl.problems) == 0
}

const useCorrect = "if the extract is right, import it with --correct"

// occupancy makes the draft say an occupancy of the extract.
func (pl *registerPlan) occupancy(r *registerRow, now time.Time) {
	want := r.occupied
	var conflict *meter.DayRange
	for _, o := range pl.draft.Occupancies() {
		switch {
		case o.Days == want:
			return
		case o.Days.From == want.From && o.Days.To == meter.MaxDay: // it ended
		case o.Days.To == meter.MaxDay && o.Days.From < want.From: // it ends with this one
		case !o.Days.Intersect(want).Empty() && conflict == nil:
			conflict = &o.Days
		}
	}
	if conflict == nil {
		pl.step(r, colMovedIn, authz.SetOccupancy{Days: want}, now)
		return
	}
	if !pl.correct {
		pl.refuse(r, colMovedIn, "the legal file has an occupancy %s; %s", spanOf(*conflict), useCorrect)
		return
	}
	if !pl.correctMove(*conflict, want, now) {
		pl.refuse(r, colMovedIn, "no correction leads from the occupancy %s of the legal file to this one: look at it by hand, with kluis supply correct-move", spanOf(*conflict))
	}
}

// correctMove moves the boundaries of an occupancy to those of one that it shares
// days with.
func (pl *registerPlan) correctMove(was, want meter.DayRange, now time.Time) bool {
	draft, steps := pl.draft, slices.Clip(pl.steps)
	ok := was.From == want.From || pl.try(authz.CorrectMove{Was: was.From, Is: want.From}, now) == nil
	switch {
	case !ok || was.To == want.To:
	case was.To == meter.MaxDay: // an end is set, and not moved
		ok = pl.try(authz.SetOccupancy{Days: want}, now) == nil
	case want.To == meter.MaxDay: // an end cannot be taken back
		ok = false
	default:
		ok = pl.try(authz.CorrectMove{Was: was.To, Is: want.To}, now) == nil
	}
	if ok = ok && slices.Contains(pl.draft.Occupancies(), authz.Occupancy{Days: want}); !ok {
		pl.draft, pl.steps = draft, steps
	}
	return ok
}

// bounds says which days the periods of a supplier in the draft begin and end.
func (pl *registerPlan) bounds(of meter.GLN) (begin, end []meter.Day) {
	for _, p := range pl.draft.SupplyPeriods() {
		if p.Supplier == of {
			begin, end = append(begin, p.Days.From), append(end, p.Days.To)
		}
	}
	return begin, end
}

// saysSupply says whether the draft has the supplier on the days, with a period
// that begins and one that ends there.
func (pl *registerPlan) saysSupply(supplier meter.GLN, days meter.DayRange) bool {
	begin, end := pl.bounds(supplier)
	return slices.Contains(begin, days.From) && slices.Contains(end, days.To) &&
		slices.ContainsFunc(supplied(pl.draft), func(h stretch) bool {
			return h.supplier == supplier && h.days.From <= days.From && days.To <= h.days.To
		})
}

// supply makes the draft say the supply period of a row, as far as that is no
// correction.
func (pl *registerPlan) supply(r *registerRow, now time.Time) {
	if pl.saysSupply(r.supplier, r.supply) {
		return
	}
	begin, _ := pl.bounds(r.supplier)
	var open meter.Day // from when on the last period is, if it is open
	if periods := pl.draft.SupplyPeriods(); len(periods) > 0 {
		open = periods[len(periods)-1].Days.From
	}
	var conflict *stretch
	for _, have := range supplied(pl.draft) {
		lasts := have.days.To == meter.MaxDay
		switch {
		case have.days.Intersect(r.supply).Empty():
		case have.supplier != r.supplier && lasts && open < r.supply.From: // it ends with this one
		case have.supplier == r.supplier && lasts && have.days.From <= r.supply.From && slices.Contains(begin, r.supply.From) && open < r.supply.To && r.supply.To != meter.MaxDay:
			// It ended. The last period may have begun later than the row's, but
			// without a gap: days between that are nobody's or another's are a conflict.
			pl.step(r, colSupplyTo, authz.SetSupply{Supplier: r.supplier, Days: meter.DayRange{From: open, To: r.supply.To}}, now)
			return
		case conflict == nil:
			conflict = &have
		}
	}
	switch {
	case conflict == nil:
		pl.step(r, colSupplyFrom, authz.SetSupply{Supplier: r.supplier, Days: r.supply}, now)
	case pl.correct: // at the end
	case conflict.supplier == r.supplier:
		pl.refuse(r, colSupplyFrom, "by the legal file this supplier supplies %s; %s", spanOf(conflict.days), useCorrect)
	default:
		pl.refuse(r, colSupplyFrom, "by the legal file another supplier supplies %s; %s", spanOf(conflict.days), useCorrect)
	}
}

// correctSupply corrects whatever the draft says otherwise than the extract, from
// the day on which the extract's first period begins, or on which the legal file
// has it begin: what that supplier supplied up to there is taken for the same.
func (pl *registerPlan) correctSupply(want []stretch, now time.Time) {
	have := supplied(pl.draft)
	from := want[0].days.From
	for _, h := range have {
		if h.supplier == want[0].supplier && h.days.From < from && h.days.To >= from {
			from = h.days.From
		}
	}
	bounds := []meter.Day{from, meter.MaxDay}
	for _, list := range [][]stretch{have, want} {
		for _, s := range list {
			bounds = append(bounds, max(s.days.From, from), max(s.days.To, from))
		}
	}
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	at := func(list []stretch, d meter.Day) (meter.GLN, *registerRow) {
		for _, s := range list {
			if s.days.Contains(d) && len(s.rows) > 0 {
				return s.supplier, s.rows[0]
			}
			if s.days.Contains(d) {
				return s.supplier, nil
			}
		}
		return meter.GLN{}, want[0].rows[0]
	}
	var last *authz.CorrectSupply
	var row *registerRow
	flush := func() {
		if last != nil {
			pl.step(row, colSupplyFrom, *last, now)
		}
		last = nil
	}
	for i := range bounds[:len(bounds)-1] {
		days := meter.DayRange{From: bounds[i], To: bounds[i+1]}
		right, r := at(want, days.From)
		wrong, _ := at(have, days.From)
		switch {
		case right == wrong:
			flush()
		case last != nil && last.Supplier == right:
			last.Days.To = days.To
		default:
			flush()
			last, row = &authz.CorrectSupply{Supplier: right, Days: days}, r
		}
	}
	flush()
}

func spanOf(d meter.DayRange) string {
	if d.To == meter.MaxDay {
		return "from " + d.From.String() + " on"
	}
	return "from " + d.From.String() + " to " + d.To.String()
}
