package authz

import (
	"cmp"
	"math/bits"
	"slices"
	"sort"
	"time"

	"kluis/meter"
)

// A stage is how near a rule of the profile comes to giving a day of a field.
// Where several rules, or several consents, could give a day and none does,
// the reason is that of the one that came nearest: what the caller lacks
// last. The order puts the caller's own relation (supply, consent) before
// facts about the customer (occupancy, opt-out), so that who has no relation
// on a day learns nothing of the customer on it.
type stage uint8

const (
	stageNoRule stage = iota // no rule applies on the day
	stageTooOld              // a rule does, but reaches less far back
	stageNoSupply
	stageNoBoundary // supplied, but nothing begins or ends
	stageNoConsent
	stageConsentExpired
	stageConsentRevoked
	stageNotOccupied
	stageOptedOut
	stageTooFine         // granted, but only coarser than asked for
	stageFinerThanStored // granted, but nothing is stored that fine
	stageNoRegister      // granted, but not with a register beside it
	stagePartial         // granted, but not for the whole month
)

var stageReasons = [...]meter.Reason{
	stageNoRule:          meter.NotCoveredByRule,
	stageTooOld:          meter.PeriodTooOld,
	stageNoSupply:        meter.NoSupply,
	stageNoBoundary:      meter.NotCoveredByRule,
	stageNoConsent:       meter.NoConsent,
	stageConsentExpired:  meter.ConsentExpired,
	stageConsentRevoked:  meter.ConsentRevoked,
	stageNotOccupied:     meter.NotOccupied,
	stageOptedOut:        meter.OptedOut,
	stageTooFine:         meter.NotGrantedAtThisGranularity,
	stageFinerThanStored: meter.FinerThanStored,
	stageNoRegister:      meter.KindNotAvailable,
	stagePartial:         meter.PartialPeriod,
}

// Decide is the one decision, run by the gateway before it fetches and by the
// cryptoserver before it opens. Every requested field and day is either in
// the grant or withheld with exactly one reason. The only error is
// ErrNoRelation: the file is missing, is of another metering point than the
// request, or has nothing to do with the caller, now or ever. A request that
// breaks the contract (period, resolution, kind) is withheld whole.
//
// A day of a field is granted when a rule of the profile for the purpose
// covers the field's class and the day, and
//
//   - the day is over in the market's time zone (at now) and not past the
//     retention, nor past how far the rule looks back;
//   - the caller supplied on it: always, unless the basis is a consent and the
//     rule does not require supply;
//   - for a consent: one of the caller's, for the purpose and the class, active
//     and valid at now, covers the day, and the customer who gave it occupied
//     the metering point. It is valid no longer than the market lets one be, and
//     where a move ends it, only until the customer moved out;
//   - for other bases: some customer occupied it;
//   - the customer had not opted out, unless the rule applies all the same;
//   - the resolution asked for is not finer than rule and consent allow;
//   - at P1M, asked for or all that is allowed: the whole calendar month is
//     asked for and granted by the one rule; of a consent that allows P1M only,
//     the month lies in its days and in the customer's occupancy. So a month is
//     what one basis gives as a month, or a sum of days that may be had anyway,
//     and the days of one consent never fill up a month for another;
//   - of intervals as REGISTER: some rule for the purpose gives class registers
//     on the day at P1D or finer. Registers on both sides of days that are
//     withheld would give what was used on them.
//
// The bases SWITCH and MOVE give single register reads. The read at the start of
// a day is given, by itself, when
//
//   - SWITCH: a supply of the caller begins on the day, or ended with the day
//     before. Periods of the caller that touch are one: a contract renewed is no
//     switch;
//   - MOVE: a customer moved in on the day, and the caller supplies on it; or
//     one moved out with the day before, and the caller supplied on that one;
//   - on that side (the day, or the day before) some customer occupied the
//     metering point, and had not opted out, unless the rule applies all the
//     same. The other side, its supplier and its customer do not count;
//   - the day is today at the latest (it has begun, so the read is of days
//     that are over), and in reach of rule and retention;
//   - REGISTER is asked for, or no kind, and P1D, or no resolution. Such a
//     read has no closing read, opens nothing else, is never subtracted from
//     another, never fills up a month, and counts for no intervals as REGISTER.
//     Where a rule gives the day as such, that one is named.
//
// CUSTOMER_SERVICE gives days of the customer who lives there today to an
// employee who serves customers, within the errand of the token (kind readings:
// metering point, days, fields; else ErrNoRelation); and nothing to a supplier.
// No other basis gives an employee anything.
//
// A supplier's own months are not cut where one customer moved out and the next
// moved in: it supplied both, and the read on the day of the move is on the
// bills of both.
//
// Where several rules grant a day the first in the profile gives it. If no
// resolution is asked for, what grants it finest does.
//
// The reason of what is withheld is, in this order: PURPOSE_NOT_AVAILABLE (no
// rule for the purpose), NOT_COVERED (no rule for the class; no such field at
// this metering point), PERIOD_IN_FUTURE, PERIOD_TOO_OLD, and else what the
// rule that came nearest lacked: see stage. A day that is supplied and no
// boundary is NOT_COVERED by a rule on boundaries.
//
// The Grant, also an empty one, says by which profile it was decided.
func Decide(c Caller, r Request, f *LegalFile, p *meter.Profile, now time.Time) (Grant, []Withheld, error) {
	if p == nil {
		return Grant{}, nil, ErrNoRelation
	}
	return decide(c, r, f, p, now)
}

// market is what a decision needs of the market profile.
type market interface {
	ID() meter.ProfileID
	Location() *time.Location
	RetentionMonths() int
	ConsentTerms() meter.ConsentTerms
	FieldByCode(meter.FieldCode) (meter.Field, bool)
	Rules(meter.Purpose) []meter.Rule // a copy
}

func decide(c Caller, r Request, f *LegalFile, p market, now time.Time) (Grant, []Withheld, error) {
	if _, behalf := c.(onBehalf); c == nil || behalf {
		return Grant{}, nil, ErrNoRelation
	}
	who := reader{supplier: c.Supplier()}
	if e := c.Employee(); e != nil {
		if !e.mayRead(&r) {
			return Grant{}, nil, ErrNoRelation
		}
		who = reader{staff: true, serves: true}
	}
	return who.decide(r, f, p, now)
}

// reader is for whom is decided: a supplier, or the staff of the grid operator,
// which serves customers or does not.
type reader struct {
	supplier meter.GLN // unless staff
	staff    bool
	serves   bool
}

// basis says whether the reader may rest on the basis at all.
func (w reader) basis(b meter.Basis) bool {
	if b == meter.CustomerServiceBasis {
		return w.serves
	}
	return !w.staff
}

// mayRead says whether the request is within what the employee was sent for.
func (e *Employee) mayRead(r *Request) bool {
	on := &e.Errand
	return e.Role.serves() && on.Kind == ErrandReadings && on.EAN == r.EAN &&
		on.Days.From <= r.Days.From && r.Days.To <= on.Days.To &&
		!slices.ContainsFunc(r.Fields, func(f meter.FieldCode) bool { return !slices.Contains(on.Fields, f) })
}

func (w reader) decide(r Request, f *LegalFile, p market, now time.Time) (Grant, []Withheld, error) {
	if f == nil || r.EAN.IsZero() || f.ean != r.EAN {
		return Grant{}, nil, ErrNoRelation
	}
	me := &party{}
	if !w.staff {
		if me = f.parties[w.supplier]; me == nil {
			return Grant{}, nil, ErrNoRelation
		}
	}
	fields := slices.Clone(r.Fields)
	slices.Sort(fields)
	fields = slices.Compact(fields)

	d := decision{r: &r, f: f, me: me, now: now, loc: p.Location(), terms: p.ConsentTerms()}
	d.today = meter.DayOf(now, d.loc)
	d.window = meter.DayRange{From: d.today.AddMonths(-p.RetentionMonths()), To: d.today}
	d.rules = slices.DeleteFunc(p.Rules(r.Purpose), func(rule meter.Rule) bool { return !decidable(&rule) || !w.basis(rule.Basis) })

	grant := Grant{profile: p.ID(), ean: r.EAN, from: r.Days.From}
	var withheld []Withheld
	for _, code := range fields {
		field, known := p.FieldByCode(code)
		reason, refused := d.refusal(field, known && field.Commodity == f.commodity)
		if refused {
			if !r.Days.Empty() {
				withheld = append(withheld, Withheld{Field: code, Days: r.Days, Reason: reason})
			}
			continue
		}
		o := d.outcome(field)
		for _, part := range o.parts {
			grant.items = append(grant.items, d.item(field, part))
		}
		for _, run := range o.withheld {
			withheld = append(withheld, Withheld{Field: code, Days: run.days, Reason: run.reason})
		}
		if len(o.parts) > 0 {
			grant.reads = append(grant.reads, FieldDays{Field: code, Days: o.reads})
			grant.bits = append(grant.bits, o.bits)
		}
	}
	return grant, withheld, nil
}

// decidable says whether Decide knows what facts the rule's basis rests on. A
// rule on any other basis gives nothing, and so does one on the right basis
// for other days.
func decidable(rule *meter.Rule) bool {
	if !rule.Enabled || !knownResolution(rule.Granularity) {
		return false
	}
	switch rule.Basis {
	case meter.SupplyPeriodic, meter.SupplyDaily, meter.Consent, meter.CustomerServiceBasis:
		return rule.On == meter.AllDays
	case meter.SwitchBasis:
		return rule.On == meter.SupplyBoundary && rule.Granularity <= meter.P1D
	case meter.MoveBasis:
		return rule.On == meter.OccupancyBoundary && rule.Granularity <= meter.P1D
	}
	return false
}

// covers says whether the rule gives anything of a class. Of intervals there
// are no single reads; of identities there is nothing here (DecideIdentity).
func covers(rule *meter.Rule, class meter.Class) bool {
	return knownClass(class) && slices.Contains(rule.Classes, class) && (class == meter.Registers || rule.On == meter.AllDays)
}

// decision is what one call of Decide works with.
type decision struct {
	r        *Request
	f        *LegalFile
	me       *party
	now      time.Time
	loc      *time.Location
	terms    meter.ConsentTerms
	today    meter.Day
	window   meter.DayRange // days over and not past retention
	rules    []meter.Rule
	outcomes []outcome // one for fields that are treated alike
}

// outcome is the decision for the fields of one class that may be stored
// equally fine.
type outcome struct {
	class    meter.Class
	finest   meter.Resolution
	parts    []part
	withheld []run
	reads    meter.DaySet // stored days that the parts need
	bits     dayBits      // the same
}

// part is days granted on one rule, at one finest granularity.
type part struct {
	rule        *meter.Rule
	granularity meter.Resolution
	days        meter.DaySet
}

type run struct {
	days   meter.DayRange
	reason meter.Reason
}

// refusal is the reason for which a field is withheld whole.
func (d *decision) refusal(field meter.Field, metered bool) (meter.Reason, bool) {
	days := d.r.Days
	switch {
	case d.r.Kind != 0 && !knownKind(d.r.Kind):
		return meter.KindNotAvailable, true
	case d.r.Resolution != 0 && !knownResolution(d.r.Resolution):
		return meter.NotGrantedAtThisGranularity, true
	case !validDay(days.From) || !validDay(days.To) || days.Empty() || days.Len() > MaxRequestDays:
		return meter.NotCoveredByRule, true
	case len(d.rules) == 0:
		return meter.PurposeNotAvailable, true
	case !metered || !slices.ContainsFunc(d.rules, func(r meter.Rule) bool { return covers(&r, field.Class) }):
		return meter.NotCoveredByRule, true
	}
	return 0, false
}

func (d *decision) item(field meter.Field, p part) GrantItem {
	kind := d.r.Kind
	if kind == 0 {
		kind = meter.Consumption
		if field.Class == meter.Registers {
			kind = meter.Register
		}
	}
	return GrantItem{
		Spec: meter.SeriesSpec{
			Field:       field,
			Kind:        kind,
			Resolution:  d.r.Resolution,
			Granularity: p.granularity,
			Days:        p.days,
			Points:      single(p.rule),
		},
		Basis: p.rule.Basis,
		Rule:  p.rule.ID,
	}
}

func (d *decision) outcome(field meter.Field) *outcome {
	var finest meter.Resolution
	for _, r := range field.Stored {
		if finest == 0 || r < finest {
			finest = r
		}
	}
	for i := range d.outcomes {
		if o := &d.outcomes[i]; o.class == field.Class && o.finest == finest {
			return o
		}
	}
	e := evaluation{decision: d, asked: d.r.Resolution, finest: finest}
	if field.Class == meter.Intervals && d.r.Kind == meter.Register {
		e.kind = d.dailyRegisters()
	} else {
		e.kind.set(0, d.r.Days.Len())
	}
	e.applyRules(field.Class)
	o := outcome{class: field.Class, finest: finest}
	o.parts, o.withheld = e.result()
	var open []meter.DayRange
	for _, p := range o.parts {
		open = append(open, reads(field.Class, p)...)
	}
	for _, r := range open {
		o.bits.set(int(r.From-d.r.Days.From), int(r.To-d.r.Days.From))
	}
	o.reads = meter.NewDaySet(open...)
	d.outcomes = append(d.outcomes, o)
	return &d.outcomes[len(d.outcomes)-1]
}

// dailyRegisters are the days on which class registers may be had by day,
// whatever resolution is asked for.
func (d *decision) dailyRegisters() dayBits {
	e := evaluation{decision: d, asked: meter.P1D, finest: meter.P1D}
	e.kind.set(0, d.r.Days.Len())
	e.applyRules(meter.Registers)
	var days dayBits
	for i := range e.candidates {
		if c := &e.candidates[i]; !single(c.rule) {
			days.add(&c.days)
		}
	}
	return days
}

// single says whether what the rule gives are reads one by one.
func single(rule *meter.Rule) bool { return rule.On != meter.AllDays }

// evaluation works out one outcome, day by day. Day i is r.Days.From + i.
type evaluation struct {
	*decision
	asked      meter.Resolution // 0: not said
	finest     meter.Resolution // in which the fields may be stored
	kind       dayBits          // on which the kind asked for may be given
	stages     [MaxRequestDays]stage
	candidates []candidate
}

// candidate is what one rule grants at one finest granularity. What it grants
// at P1M still has to make up whole months.
type candidate struct {
	rule        *meter.Rule
	granularity meter.Resolution
	days        dayBits
}

func (c *candidate) order() int {
	if single(c.rule) {
		return 1
	}
	return 0
}

// permission is what one basis, a supplier's own or one consent, allows.
type permission struct {
	rule        *meter.Rule
	granularity meter.Resolution // finest
	own         meter.DayRange   // on which it may hold at all; months are cut from these
}

func (e *evaluation) applyRules(class meter.Class) {
	for i := range e.rules {
		if rule := &e.rules[i]; covers(rule, class) {
			e.apply(rule, class)
		}
	}
}

// apply finds how near the rule comes on each day.
func (e *evaluation) apply(rule *meter.Rule, class meter.Class) {
	window := e.window
	if single(rule) {
		window.To++ // today has begun
	}
	days := rule.Days.Intersect(e.r.Days).Intersect(window)
	if rule.Lookback > 0 {
		from := max(days.From, e.today.AddMonths(-rule.Lookback))
		e.reach(meter.DayRange{From: days.From, To: min(from, days.To)}, stageTooOld)
		days.From = from
	}
	if days.Empty() {
		return
	}
	if single(rule) {
		e.applyBoundaries(rule, days)
		return
	}
	if rule.Basis == meter.CustomerServiceBasis {
		// Of the customer on the line, who lives there today.
		e.reach(days, stageNotOccupied)
		if o, ok := e.f.occupancyAt(e.today); ok {
			e.give(o.Days.Intersect(days), permission{rule, rule.Granularity, rule.Days.Intersect(o.Days)})
		}
		return
	}
	if rule.Basis == meter.Consent && !rule.RequiresSupply {
		e.applyConsents(rule, class, days)
		return
	}
	e.reach(days, stageNoSupply)
	for _, supplied := range overlapping(e.me.supply, days) {
		supplied = supplied.Intersect(days)
		if rule.Basis == meter.Consent {
			e.applyConsents(rule, class, supplied)
			continue
		}
		e.reach(supplied, stageNotOccupied)
		for _, occupied := range overlapping(e.f.occupied, supplied) {
			e.give(occupied.Intersect(supplied), permission{rule, rule.Granularity, rule.Days})
		}
	}
}

// applyBoundaries gives the reads at which something of the caller's begins or
// ends.
func (e *evaluation) applyBoundaries(rule *meter.Rule, days meter.DayRange) {
	e.reach(days, stageNoSupply)
	// Also a supply that ended with the day before the first.
	for _, supplied := range overlapping(e.me.supply, meter.DayRange{From: days.From - 1, To: days.To}) {
		near := supplied
		if near.To != meter.MaxDay {
			near.To++ // the day of the end read
		}
		e.reach(near.Intersect(days), stageNoBoundary)
		if rule.On == meter.SupplyBoundary {
			e.boundary(rule, days, supplied.From, supplied.From)
			e.boundary(rule, days, supplied.To, supplied.To-1)
			continue
		}
		for _, occupied := range overlapping(e.f.occupied, supplied.Intersect(meter.DayRange{From: days.From - 1, To: days.To})) {
			if supplied.Contains(occupied.From) {
				e.boundary(rule, days, occupied.From, occupied.From)
			}
			if supplied.Contains(occupied.To - 1) {
				e.boundary(rule, days, occupied.To, occupied.To-1)
			}
		}
	}
}

// boundary gives the read of a day, if what lies on the caller's side of it
// allows. A period without an end has no end read: it never is within days.
func (e *evaluation) boundary(rule *meter.Rule, days meter.DayRange, day, side meter.Day) {
	if !days.Contains(day) {
		return
	}
	read := meter.DayRange{From: day, To: day + 1}
	e.reach(read, stageNotOccupied)
	theSide := meter.DayRange{From: side, To: side + 1}
	switch {
	case len(overlapping(e.f.occupied, theSide)) == 0:
	case !rule.DespiteOptOut && len(overlapping(e.f.optOuts, theSide)) > 0:
		e.reach(read, stageOptedOut)
	default:
		e.giveRun(read, permission{rule, rule.Granularity, rule.Days})
	}
}

func (e *evaluation) applyConsents(rule *meter.Rule, class meter.Class, days meter.DayRange) {
	e.reach(days, stageNoConsent)
	for _, i := range e.me.consents {
		c := &e.f.consents[i]
		covered := c.Days.Intersect(days)
		if covered.Empty() || !c.Given() || c.Purpose != rule.Purpose || !slices.Contains(c.Classes, class) {
			continue
		}
		switch {
		case c.State == ConsentRevoked:
			e.reach(covered, stageConsentRevoked)
		case e.ended(c):
			e.reach(covered, stageConsentExpired)
		case c.State == ConsentActive && !e.now.Before(c.ValidFrom):
			e.reach(covered, stageNotOccupied)
			if o, ok := e.f.occupancyAt(c.Occupancy); ok {
				e.give(covered.Intersect(o.Days), permission{rule, max(rule.Granularity, c.Granularity), c.Days.Intersect(o.Days)})
			}
		}
	}
}

// ended says whether the consent is over, by its own end or by the market's.
func (e *evaluation) ended(c *Consent) bool {
	return e.f.ended(c, e.terms, e.now, e.today, e.loc)
}

func (f *facts) ended(c *Consent, terms meter.ConsentTerms, now time.Time, today meter.Day, loc *time.Location) bool {
	began := meter.DayOf(c.ValidFrom, loc)
	if !now.Before(c.ValidUntil) || today >= terms.LongestUntil(began) {
		return true
	}
	o, ok := f.occupancyAt(c.Occupancy)
	return !ok || !o.Days.Contains(began) || terms.EndedByMove && today >= o.Days.To
}

// give passes on days whose facts are there, but for those opted out.
func (e *evaluation) give(days meter.DayRange, by permission) {
	if !by.rule.DespiteOptOut {
		for _, out := range overlapping(e.f.optOuts, days) {
			e.giveRun(meter.DayRange{From: days.From, To: out.From}, by)
			e.reach(out.Intersect(days), stageOptedOut)
			days.From = min(out.To, days.To)
		}
	}
	e.giveRun(days, by)
}

// giveRun makes the days a candidate's, if they may be given as fine as asked.
func (e *evaluation) giveRun(days meter.DayRange, by permission) {
	switch {
	case days.Empty():
		return
	case e.asked != 0 && e.asked < by.granularity:
		e.reach(days, stageTooFine)
		return
	case e.asked != 0 && e.asked < e.finest:
		e.reach(days, stageFinerThanStored)
		return
	}
	e.reach(days, stageNoRegister)
	if single(by.rule) {
		if e.r.Kind == meter.Consumption {
			return
		}
		if e.asked == meter.P1M {
			e.reach(days, stagePartial)
			return
		}
	}
	// What is asked for bounds what leaves; else what is granted, or stored.
	granularity := e.asked
	if granularity == 0 {
		granularity = max(by.granularity, e.finest)
	}
	i := slices.IndexFunc(e.candidates, func(c candidate) bool { return c.rule == by.rule && c.granularity == granularity })
	if i < 0 {
		i = len(e.candidates)
		e.candidates = append(e.candidates, candidate{rule: by.rule, granularity: granularity})
	}
	// Part of a month that only counts whole must not fill up a month with
	// days of another consent.
	counted := days
	if by.granularity == meter.P1M {
		counted = by.own.WholeMonths()
	}
	for d := days.From; d < days.To; d++ {
		day := int(d - e.r.Days.From)
		if !e.kind.has(day) {
			continue
		}
		e.reach(meter.DayRange{From: d, To: d + 1}, stagePartial)
		if counted.Contains(d) {
			e.candidates[i].days.set(day, day+1)
		}
	}
}

// reach notes that the days came at least as far as the stage.
func (e *evaluation) reach(days meter.DayRange, s stage) {
	for d := days.From; d < days.To; d++ {
		i := d - e.r.Days.From
		e.stages[i] = max(e.stages[i], s)
	}
}

// result gives each day to one candidate, or a reason.
func (e *evaluation) result() ([]part, []run) {
	// Finest first (they differ only where no resolution was asked for); of
	// equals days before single reads, which are less; then the first rule in
	// the profile.
	slices.SortStableFunc(e.candidates, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.granularity, b.granularity), cmp.Compare(a.order(), b.order()))
	})
	var given dayBits
	var parts []part
	for i := range e.candidates {
		c := &e.candidates[i]
		c.days.remove(&given)
		if c.granularity == meter.P1M {
			c.days.keepWholeMonths(e.r.Days)
		}
		if c.days == (dayBits{}) {
			continue
		}
		given.add(&c.days)
		parts = append(parts, part{rule: c.rule, granularity: c.granularity, days: c.days.daySet(e.r.Days)})
	}
	var withheld []run
	for d := e.r.Days.From; d < e.r.Days.To; d++ {
		i := int(d - e.r.Days.From)
		if given.has(i) {
			continue
		}
		reason := stageReasons[e.stages[i]]
		switch {
		case d >= e.window.To:
			reason = meter.PeriodInFuture
		case d < e.window.From:
			reason = meter.PeriodTooOld
		}
		if n := len(withheld); n > 0 && withheld[n-1].days.To == d && withheld[n-1].reason == reason {
			withheld[n-1].days.To++
		} else {
			withheld = append(withheld, run{meter.DayRange{From: d, To: d + 1}, reason})
		}
	}
	return parts, withheld
}

// overlapping cuts sorted, disjoint ranges to those that share a day with days.
func overlapping(sorted []meter.DayRange, days meter.DayRange) []meter.DayRange {
	if days.Empty() {
		return nil
	}
	i := sort.Search(len(sorted), func(i int) bool { return sorted[i].To > days.From })
	j := i
	for j < len(sorted) && sorted[j].From < days.To {
		j++
	}
	return sorted[i:j]
}

// dayBits is a set of days of one request: bit i is the day r.Days.From + i.
// There is room for the closing read.
type dayBits [(MaxRequestDays + 1 + 63) / 64]uint64

func (b *dayBits) has(i int) bool { return b[i/64]>>(i%64)&1 != 0 }

// set adds the days from i to before j.
func (b *dayBits) set(i, j int) {
	for ; i < j; i++ {
		b[i/64] |= 1 << (i % 64)
	}
}

func (b *dayBits) add(o *dayBits) {
	for i := range b {
		b[i] |= o[i]
	}
}

func (b *dayBits) remove(o *dayBits) {
	for i := range b {
		b[i] &^= o[i]
	}
}

// next finds the first day from i on that is in the set, or is not.
func (b *dayBits) next(i int, in bool) int {
	for i < len(b)*64 {
		w := b[i/64]
		if !in {
			w = ^w
		}
		if w >>= i % 64; w != 0 {
			return i + bits.TrailingZeros64(w)
		}
		i = (i/64 + 1) * 64
	}
	return i
}

// keepWholeMonths drops the days of calendar months that are not wholly in
// the set.
func (b *dayBits) keepWholeMonths(asked meter.DayRange) {
	var whole dayBits
	n := asked.Len()
	for i := b.next(0, true); i < n; i = b.next(i, true) {
		j := b.next(i, false) // a run of days, [i, j)
		month := (asked.From + meter.Day(i)).Month()
		from, to := int(month.First()-asked.From), int((month+1).First()-asked.From)
		if from == i && to <= j {
			whole.set(from, to)
		}
		// To the next month, or the next run where this one ends in the month.
		i = min(to, n)
	}
	*b = whole
}

// daySet turns the bits into a set of days.
func (b *dayBits) daySet(asked meter.DayRange) meter.DaySet {
	var runs []meter.DayRange
	for i := b.next(0, true); i < asked.Len(); {
		j := b.next(i, false)
		runs = append(runs, meter.DayRange{From: asked.From + meter.Day(i), To: asked.From + meter.Day(j)})
		i = b.next(j, true)
	}
	return meter.NewDaySet(runs...)
}
