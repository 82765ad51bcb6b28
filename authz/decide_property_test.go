package authz

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/meter"
)

// ---- an oracle: the rules of the documentation, day by day, by brute force

type fieldDay struct {
	field meter.FieldCode
	day   meter.Day
}

// verdict is what becomes of one field on one day: a rule and the finest
// granularity that may leave, or a reason.
type verdict struct {
	rule        string
	granularity meter.Resolution
	single      bool // the read alone
	reason      meter.Reason
}

type oracle struct {
	me    meter.GLN // unless staff
	staff bool      // an employee, for the customer of today
	r     Request
	b     *book
	m     market
	now   time.Time

	stands []string // each consent of the book
}

func newOracle(me meter.GLN, r Request, b *book, m market, now time.Time) oracle {
	o := oracle{me: me, r: r, b: b, m: m, now: now}
	for i := range b.consents {
		o.stands = append(o.stands, b.stands(&b.consents[i], m.ConsentTerms(), now))
	}
	return o
}

// rules of the purpose asked for that rest on facts there are, for who asks.
func (o oracle) rules() []meter.Rule {
	known := map[meter.Basis]meter.Occasion{
		meter.SupplyPeriodic: meter.AllDays, meter.SupplyDaily: meter.AllDays, meter.Consent: meter.AllDays,
		meter.SwitchBasis: meter.SupplyBoundary, meter.MoveBasis: meter.OccupancyBoundary,
	}
	if o.staff {
		known = map[meter.Basis]meter.Occasion{meter.CustomerServiceBasis: meter.AllDays}
	}
	return slices.DeleteFunc(o.m.Rules(o.r.Purpose), func(r meter.Rule) bool {
		on, ok := known[r.Basis]
		return !r.Enabled || !ok || on != r.On || on != meter.AllDays && r.Granularity > meter.P1D
	})
}

func gives(r meter.Rule, c meter.Class) bool {
	return slices.Contains(r.Classes, c) && (c == meter.Registers || r.On == meter.AllDays)
}

func (o oracle) supplied(d meter.Day) bool { return o.b.supplied(o.me, d) }

// sides are the days at the caller's side of what begins or ends with the
// read at the start of d.
func (o oracle) sides(on meter.Occasion, d meter.Day) (sides []meter.Day) {
	if on == meter.SupplyBoundary {
		switch before, after := o.supplied(d-1), o.supplied(d); {
		case after && !before:
			sides = append(sides, d)
		case before && !after:
			sides = append(sides, d-1)
		}
		return sides
	}
	if before, after := at(&o.b.customer, d-1), at(&o.b.customer, d); before != after {
		if after != 0 && o.supplied(d) {
			sides = append(sides, d)
		}
		if before != 0 && o.supplied(d-1) {
			sides = append(sides, d-1)
		}
	}
	return sides
}

// offer is one rule, by one consent or none, that grants a day.
type offer struct {
	index       int // of the rule
	rule        meter.Rule
	consent     [16]byte         // zero for a supplier's own
	allowed     meter.Resolution // finest, by rule and consent
	granularity meter.Resolution // of what would leave
}

func (x offer) single() bool { return x.rule.On != meter.AllDays }

// noBoundary is NOT_COVERED of who supplies.
const noBoundary meter.Reason = 200

// nearness orders the reasons by how much was there already.
var nearness = []meter.Reason{
	meter.NotCoveredByRule, meter.PeriodTooOld, meter.NoSupply, noBoundary, meter.NoConsent, meter.ConsentExpired, meter.ConsentRevoked,
	meter.NotOccupied, meter.OptedOut, meter.NotGrantedAtThisGranularity, meter.FinerThanStored,
	meter.KindNotAvailable, meter.PartialPeriod,
}

func (o oracle) today() meter.Day { return localDay(o.now) }

func finestStored(f meter.Field) meter.Resolution { return slices.Min(f.Stored) }

// offers finds what grants the field on the day, whole months aside, and the
// reasons of what does not.
func (o oracle) offers(field meter.Field, d meter.Day) (out []offer, reasons []meter.Reason) {
	supplied, occupied, opted := o.supplied(d), o.b.occupied(d), o.b.opted(d)
	for index, rule := range o.rules() {
		if !gives(rule, field.Class) || !rule.Days.Contains(d) {
			continue
		}
		if rule.On == meter.AllDays && d == o.today() { // not over
			continue
		}
		if rule.Lookback > 0 && d < o.today().AddMonths(-rule.Lookback) {
			reasons = append(reasons, meter.PeriodTooOld)
			continue
		}
		if rule.On != meter.AllDays {
			x, reason := o.single(rule, d)
			x.index = index
			if reason != 0 {
				reasons = append(reasons, reason)
			} else {
				out = append(out, x)
			}
			continue
		}
		if rule.Basis == meter.CustomerServiceBasis {
			// Of who lives there today.
			occupied = occupied && at(&o.b.customer, d) == at(&o.b.customer, o.today())
			supplied = true
		}
		supplyBasis := rule.Basis != meter.Consent
		if (supplyBasis || rule.RequiresSupply) && !supplied {
			reasons = append(reasons, meter.NoSupply)
			continue
		}
		var found []offer
		if supplyBasis {
			if !occupied {
				reasons = append(reasons, meter.NotOccupied)
				continue
			}
			found = append(found, offer{index: index, rule: rule, allowed: rule.Granularity})
		} else {
			reasons = append(reasons, meter.NoConsent)
			for i := range o.b.consents {
				c := &o.b.consents[i]
				if c.given.IsZero() || c.scope.Supplier != o.me || c.scope.Purpose != o.r.Purpose || !slices.Contains(c.scope.Classes, field.Class) || !c.scope.Days.Contains(d) {
					continue
				}
				switch stands := o.stands[i]; {
				case stands == "REVOKED":
					reasons = append(reasons, meter.ConsentRevoked)
				case stands != "ACTIVE":
					reasons = append(reasons, meter.ConsentExpired)
				case c.given.After(o.now):
				case at(&o.b.customer, d) != c.customer:
					reasons = append(reasons, meter.NotOccupied)
				default:
					found = append(found, offer{index: index, rule: rule, consent: c.id, allowed: max(rule.Granularity, c.scope.Granularity)})
				}
			}
		}
		for _, x := range found {
			switch asked := o.r.Resolution; {
			case opted && !rule.DespiteOptOut:
				reasons = append(reasons, meter.OptedOut)
			case asked != 0 && asked < x.allowed:
				reasons = append(reasons, meter.NotGrantedAtThisGranularity)
			case asked != 0 && asked < finestStored(field):
				reasons = append(reasons, meter.FinerThanStored)
			case field.Class == meter.Intervals && o.r.Kind == meter.Register && !o.dailyRegister(d):
				reasons = append(reasons, meter.KindNotAvailable)
			default:
				if x.granularity = asked; asked == 0 {
					x.granularity = max(x.allowed, finestStored(field))
				}
				out = append(out, x)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b offer) int {
		if a.granularity != b.granularity {
			return int(a.granularity) - int(b.granularity)
		}
		if a.single() != b.single() {
			return map[bool]int{true: 1, false: -1}[a.single()]
		}
		return a.index - b.index
	})
	return out, reasons
}

// single is the read at the start of d, by a rule on boundaries.
func (o oracle) single(rule meter.Rule, d meter.Day) (offer, meter.Reason) {
	x := offer{rule: rule, allowed: rule.Granularity, granularity: meter.P1D}
	sides := o.sides(rule.On, d)
	lived := slices.DeleteFunc(slices.Clone(sides), func(s meter.Day) bool { return !o.b.occupied(s) })
	open := slices.DeleteFunc(slices.Clone(lived), func(s meter.Day) bool { return !rule.DespiteOptOut && o.b.opted(s) })
	switch asked := o.r.Resolution; {
	case !o.supplied(d-1) && !o.supplied(d):
		return x, meter.NoSupply
	case len(sides) == 0:
		return x, noBoundary
	case len(lived) == 0:
		return x, meter.NotOccupied
	case len(open) == 0:
		return x, meter.OptedOut
	case asked != 0 && asked < rule.Granularity:
		return x, meter.NotGrantedAtThisGranularity
	case asked != 0 && asked < meter.P1D:
		return x, meter.FinerThanStored
	case o.r.Kind == meter.Consumption:
		return x, meter.KindNotAvailable
	case asked == meter.P1M:
		return x, meter.PartialPeriod
	}
	return x, 0
}

// dailyRegister says whether a request for that day's register reads, by day,
// would find an offer.
func (o oracle) dailyRegister(d meter.Day) bool {
	o.r.Kind, o.r.Resolution = meter.Register, meter.P1D
	offers, _ := o.offers(meter.Field{Class: meter.Registers, Stored: []meter.Resolution{meter.P1D}}, d)
	return slices.ContainsFunc(offers, func(x offer) bool { return !x.single() })
}

func (o oracle) decide() map[fieldDay]verdict {
	out := map[fieldDay]verdict{}
	for _, code := range o.r.Fields {
		field, known := o.m.FieldByCode(code)
		known = known && field.Commodity == o.b.commodity
		for d := o.r.Days.From; d < o.r.Days.To; d++ {
			out[fieldDay{code, d}] = o.verdict(field, known, d)
		}
	}
	return out
}

func (o oracle) verdict(field meter.Field, known bool, d meter.Day) verdict {
	purpose, class := false, false
	for _, rule := range o.rules() {
		purpose = true
		class = class || gives(rule, field.Class)
	}
	switch {
	case o.r.Kind > 2:
		return verdict{reason: meter.KindNotAvailable}
	case o.r.Resolution > 4:
		return verdict{reason: meter.NotGrantedAtThisGranularity}
	case o.r.Days.Len() > 366:
		return verdict{reason: meter.NotCoveredByRule}
	case !purpose:
		return verdict{reason: meter.PurposeNotAvailable}
	case !known || !class:
		return verdict{reason: meter.NotCoveredByRule}
	case d > o.today():
		return verdict{reason: meter.PeriodInFuture}
	case d < o.today().AddMonths(-o.m.RetentionMonths()):
		return verdict{reason: meter.PeriodTooOld}
	}
	offers, reasons := o.offers(field, d)
	for _, x := range offers {
		if x.granularity != meter.P1M || o.wholeMonth(field, d, x) {
			return verdict{rule: x.rule.ID, granularity: x.granularity, single: x.single()}
		}
		reasons = append(reasons, meter.PartialPeriod)
	}
	if d == o.today() {
		return verdict{reason: meter.PeriodInFuture}
	}
	nearest := meter.NotCoveredByRule
	for _, r := range reasons {
		if slices.Index(nearness, r) > slices.Index(nearness, nearest) {
			nearest = r
		}
	}
	if nearest == noBoundary {
		nearest = meter.NotCoveredByRule
	}
	return verdict{reason: nearest}
}

// wholeMonth says whether the rule gives the day's month as one: every day of
// it is asked for and granted by the rule at P1M, and none by anything finer;
// and all by the same consent, or by the supply, or else all by days.
func (o oracle) wholeMonth(field meter.Field, d meter.Day, by offer) bool {
	y, m, _ := d.Date()
	days, finer := 0, 0
	basis := map[[16]byte]int{} // days that each gives
	for day := meter.DayFromDate(y, m, 1); day < meter.DayFromDate(y, m+1, 1); day++ {
		if !o.r.Days.Contains(day) || day >= o.today() || day < o.today().AddMonths(-o.m.RetentionMonths()) {
			return false
		}
		offers, _ := o.offers(field, day)
		if len(offers) == 0 || offers[0].granularity != meter.P1M ||
			!slices.ContainsFunc(offers, func(x offer) bool { return x.index == by.index }) {
			return false
		}
		days++
		byDay := false
		for _, x := range offers {
			if x.index == by.index {
				basis[x.consent]++
				byDay = byDay || x.allowed < meter.P1M
			}
		}
		if byDay {
			finer++
		}
	}
	for _, n := range basis {
		if n == days {
			return true
		}
	}
	return finer == days
}

// reads are the blocks the verdicts need.
func (o oracle) reads(verdicts map[fieldDay]verdict) map[fieldDay]bool {
	out := map[fieldDay]bool{}
	for k, v := range verdicts {
		field, _ := o.m.FieldByCode(k.field)
		y, m, _ := k.day.Date()
		switch {
		case v.reason != 0:
		case field.Class == meter.Intervals, v.single:
			out[k] = true
		case v.granularity == meter.P1M:
			out[fieldDay{k.field, meter.DayFromDate(y, m, 1)}] = true
			out[fieldDay{k.field, meter.DayFromDate(y, m+1, 1)}] = true
		default:
			out[k] = true
			out[fieldDay{k.field, k.day + 1}] = true
		}
	}
	return out
}

// ---- random worlds

type world struct {
	facts  facts
	market *testMarket
	now    time.Time
	r      Request
}

func (w world) file(t interface{ Fatal(...any) }) *LegalFile {
	f := &LegalFile{facts: w.facts, version: 2, sealedAt: instant("2026-01-05T10:00:00Z"), previous: [32]byte{1}, step: EndOptOut{0}.Encode(), actor: operator}
	out, err := parseLegalFile(f.encode())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (w world) decide(t interface{ Fatal(...any) }, me meter.GLN) (Grant, []Withheld, error) {
	return decide(caller(me), w.r, w.file(t), w.market, w.now)
}

// dice makes random worlds. Rapid draws the seed only: its own numbers keep to
// the ends of a range, where few worlds grant anything.
type dice struct{ *rand.Rand }

func roll(t *rapid.T) dice {
	return dice{rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))}
}

// once in n times.
func (d dice) once(n int) bool { return d.IntN(n) == 0 }

// among draws from lo to hi, both included.
func (d dice) among(lo, hi int) int { return lo + d.IntN(hi-lo+1) }

func pick[T any](d dice, from ...T) T { return from[d.IntN(len(from))] }

func (d dice) day() meter.Day {
	day := day("2024-01-01") + meter.Day(d.IntN(1100))
	if d.once(2) {
		return day.Month().First()
	}
	return day
}

func (d dice) days() meter.DayRange {
	from := d.day()
	switch d.IntN(4) {
	case 0:
		return meter.DayRange{From: from, To: meter.MaxDay}
	case 1:
		return meter.DayRange{From: from, To: from + meter.Day(d.among(1, 500))}
	default:
		return meter.DayRange{From: from, To: from.AddMonths(d.among(1, 18))}
	}
}

// ranges draws n sorted, disjoint ranges at most, some of which touch.
func (d dice) ranges(n int) []meter.DayRange {
	var cuts []meter.Day
	for range 2 * d.among(0, n) {
		cuts = append(cuts, d.day())
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	var out []meter.DayRange
	for i := 0; i+1 < len(cuts); i++ {
		if d.once(3) {
			continue // a gap
		}
		out = append(out, meter.DayRange{From: cuts[i], To: cuts[i+1]})
	}
	if len(out) > 0 && d.once(2) {
		out[len(out)-1].To = meter.MaxDay
	}
	return out
}

func (d dice) classes() []meter.Class {
	return pick(d, []meter.Class{1}, []meter.Class{2}, []meter.Class{1, 2}, []meter.Class{1, 2})
}

func (d dice) world() world {
	w := world{facts: facts{ean: home, commodity: meter.Electricity}}
	// Most worlds have one customer or one supplier throughout, so that there
	// is much to grant.
	w.facts.occupancies = []Occupancy{{days("2023-01-01", "")}}
	if d.once(3) {
		w.facts.occupancies = nil
		for _, r := range d.ranges(3) {
			w.facts.occupancies = append(w.facts.occupancies, Occupancy{r})
		}
	}
	w.facts.supply = []SupplyPeriod{{alpha, days("2023-01-01", "")}}
	if d.once(2) {
		w.facts.supply = nil
		for _, r := range d.ranges(4) {
			w.facts.supply = append(w.facts.supply, SupplyPeriod{pick(d, alpha, alpha, beta), r})
		}
	}
	if len(w.facts.occupancies) > 0 {
		for i := range d.IntN(6) {
			at := instant("2025-01-01T00:00:00Z").Add(time.Duration(d.IntN(360)) * 24 * time.Hour)
			c := Consent{
				ID:          uuid(byte(i + 1)),
				Supplier:    pick(d, alpha, alpha, alpha, beta, gamma),
				Purpose:     pick(d, meter.EnergyManagement, meter.EnergyManagement, meter.Billing),
				Classes:     d.classes(),
				Granularity: pick(d, meter.PT15M, meter.PT15M, meter.PT1H, meter.P1D, meter.P1M),
				Days:        pick(d, days("2024-01-01", ""), d.days()),
				ValidFrom:   at, Answered: by(at),
				ValidUntil: at.AddDate(0, d.among(1, 48), 0),
				Occupancy:  pick(d, w.facts.occupancies...).Days.From,
				State:      ConsentActive,
				Evidence:   "dossier",
			}
			if o, ok := w.facts.occupancyAt(meter.DayOf(at, amsterdam)); ok && !d.once(8) {
				c.Occupancy = o.Days.From // else a move was corrected since
			}
			if d.once(3) {
				c.Requested, c.Answer = by(at), "call"
			}
			switch d.IntN(12) {
			case 0, 1:
				c.State, c.Revoked = ConsentRevoked, by(at)
			case 2:
				c.State, c.Requested, c.Answered, c.Answer = ConsentRequested, by(at), ConsentEvent{}, ""
			case 3:
				c.State, c.Requested, c.Answer = ConsentRejected, by(at), ""
			case 4:
				c.State, c.Requested, c.Answered, c.Revoked, c.Answer = ConsentRevoked, by(at), ConsentEvent{}, by(at), ""
			}
			w.facts.consents = append(w.facts.consents, c)
		}
	}
	if d.once(3) {
		w.facts.optOuts = meter.NewDaySet(d.ranges(2)...).Ranges()
	}

	w.market = &testMarket{retention: pick(d, 36, 24, d.among(1, 36)), terms: &meter.ConsentTerms{LongestMonths: pick(d, 120, 120, d.among(1, 24)), EndedByMove: d.once(2)}}
	w.market.fields = []meter.Field{
		{Code: 1, Name: "one", Class: meter.Registers, Commodity: meter.Electricity, Stored: []meter.Resolution{meter.P1D}},
		{Code: 2, Name: "two", Class: meter.Registers, Commodity: meter.Electricity, Stored: []meter.Resolution{meter.P1D}},
		{Code: 5, Name: "gas", Class: meter.Registers, Commodity: meter.Gas, Stored: []meter.Resolution{meter.P1D}},
		{Code: 6, Name: "six", Class: meter.Intervals, Commodity: meter.Electricity, Stored: []meter.Resolution{meter.PT15M, meter.PT1H}},
		{Code: 8, Name: "eight", Class: meter.Intervals, Commodity: meter.Electricity, Stored: []meter.Resolution{meter.PT1H}},
	}
	for i := range d.among(1, 5) {
		r := meter.Rule{
			ID:             fmt.Sprintf("rule-%d", i),
			Basis:          pick(d, meter.SupplyPeriodic, meter.SupplyPeriodic, meter.SupplyDaily, meter.SupplyDaily, meter.Consent, meter.Consent, meter.Consent, meter.Consent, meter.SwitchBasis, meter.MoveBasis, meter.CustomerServiceBasis),
			Purpose:        pick(d, meter.EnergyManagement, meter.EnergyManagement, meter.EnergyManagement, meter.Billing),
			Classes:        d.classes(),
			Granularity:    pick(d, meter.PT15M, meter.PT15M, meter.PT1H, meter.P1D, meter.P1M, meter.P1M),
			Days:           days("2012-01-01", ""),
			RequiresSupply: d.once(2),
			DespiteOptOut:  d.once(3),
			Enabled:        !d.once(8),
		}
		switch {
		case d.once(12):
			r.On = pick(d, meter.AllDays, meter.SupplyBoundary, meter.OccupancyBoundary, 9)
		case r.Basis == meter.SwitchBasis:
			r.On = meter.SupplyBoundary
		case r.Basis == meter.MoveBasis:
			r.On = meter.OccupancyBoundary
		}
		if d.once(3) {
			r.Days = d.days()
		}
		if d.once(3) {
			r.Lookback = d.among(1, 36)
		}
		w.market.rules = append(w.market.rules, r)
	}

	// Now: on local midnights and beside them, DST days and month ends included.
	today := pick(d, day("2026-03-29"), day("2026-03-30"), day("2025-10-26"), day("2025-10-27"), day("2026-01-01"), day("2026-03-01"),
		day("2025-09-01")+meter.Day(d.IntN(500)), day("2025-09-01")+meter.Day(d.IntN(500)))
	w.now = today.Start(amsterdam).Add(pick(d, -time.Microsecond, 0, time.Microsecond, 12*time.Hour))

	w.r = Request{
		EAN:        home,
		Purpose:    pick(d, meter.EnergyManagement, meter.EnergyManagement, meter.EnergyManagement, meter.EnergyManagement, meter.Billing, meter.Billing, meter.Move),
		Resolution: meter.Resolution(pick(d, 0, 0, 0, 1, 2, 3, 4, 4)),
		Kind:       meter.Kind(d.IntN(3)),
	}
	for range d.among(1, 5) {
		w.r.Fields = append(w.r.Fields, pick[meter.FieldCode](d, 1, 1, 2, 6, 6, 8, 5, 99))
	}
	switch d.IntN(40) {
	case 0:
		w.r.Resolution = 5
	case 1:
		w.r.Kind = 3
	}
	from := day("2024-12-01") + meter.Day(d.IntN(600))
	w.r.Days = meter.DayRange{From: from, To: from + meter.Day(d.among(1, 370))}
	if d.once(2) {
		from = from.Month().First()
		w.r.Days = meter.DayRange{From: from, To: from.AddMonths(d.among(1, 11))}
	}
	if d.once(5) {
		d.sideBySide(&w)
	}
	if d.once(4) {
		d.stir(&w)
	}
	return w
}

// stir makes something begin or end within the request or beside it, and asks
// for reads.
func (d dice) stir(w *world) {
	near := func() meter.Day { return w.r.Days.From + meter.Day(d.among(-1, w.r.Days.Len())) }
	at := near()
	if d.once(4) {
		at = meter.DayOf(w.now, amsterdam) + meter.Day(d.among(-1, 1))
	}
	parts := []meter.DayRange{{From: day("2023-01-01"), To: at}, {From: at + meter.Day(pick(d, 0, 0, 0, 1, 5)), To: meter.MaxDay}}
	if d.once(2) {
		w.facts.supply = []SupplyPeriod{{pick(d, alpha, alpha, beta), parts[0]}, {pick(d, alpha, beta, gamma), parts[1]}}
	}
	if d.once(2) {
		w.facts.occupancies, w.facts.consents = []Occupancy{{parts[0]}, {parts[1]}}, nil
	}
	if d.once(3) {
		out := near()
		w.facts.optOuts = []meter.DayRange{{From: out, To: out + meter.Day(d.among(1, 60))}}
	}
	w.r.Kind, w.r.Resolution = pick(d, 0, meter.Register), pick(d, 0, 0, meter.P1D)
	if d.once(2) {
		w.r.Purpose = meter.EnergyManagement
		b := pick(d, meter.SwitchBasis, meter.MoveBasis)
		w.market.rules = slices.Insert(w.market.rules, d.IntN(len(w.market.rules)+1), meter.Rule{
			ID: "single", Basis: b, Purpose: w.r.Purpose, Classes: d.classes(), Granularity: meter.P1D,
			On:   map[meter.Basis]meter.Occasion{meter.SwitchBasis: meter.SupplyBoundary, meter.MoveBasis: meter.OccupancyBoundary}[b],
			Days: always(), Lookback: pick(d, 0, 0, d.among(1, 24)), RequiresSupply: true, DespiteOptOut: d.once(2), Enabled: true,
		})
	}
}

// sideBySide adds consents of different granularity that meet on a day in the
// request, and often customers who do.
func (d dice) sideBySide(w *world) {
	at := w.r.Days.From + meter.Day(d.IntN(w.r.Days.Len()))
	halves := []meter.DayRange{{From: day("2023-01-01"), To: at}, {From: at, To: meter.MaxDay}}
	move := d.once(2)
	w.facts.occupancies = []Occupancy{{days("2023-01-01", "")}}
	if move {
		w.facts.occupancies = []Occupancy{{halves[0]}, {halves[1]}}
	}
	w.facts.supply = []SupplyPeriod{{alpha, days("2023-01-01", "")}}
	w.facts.optOuts = nil
	w.facts.consents = nil
	for i, half := range halves {
		c := Consent{
			ID: uuid(byte(i + 1)), Supplier: alpha, Purpose: w.r.Purpose, Classes: d.classes(), Granularity: pick(d, meter.PT15M, meter.P1D, meter.P1M, meter.P1M),
			Days: pick(d, half, half, days("2023-01-01", "")), ValidFrom: t0.AddDate(-2, 0, 0), Answered: by(t0.AddDate(-2, 0, 0)), ValidUntil: t0.AddDate(10, 0, 0),
			Occupancy: day("2023-01-01"), State: ConsentActive, Evidence: "dossier",
		}
		if move {
			c.Occupancy = half.From
		}
		w.facts.consents = append(w.facts.consents, c)
	}
	rule := meter.Rule{
		ID: "met", Basis: meter.Consent, Purpose: w.r.Purpose, Classes: []meter.Class{meter.Registers, meter.Intervals}, Granularity: meter.PT15M, Days: always(), Enabled: true,
	}
	w.market.rules = slices.Insert(w.market.rules, d.IntN(len(w.market.rules)+1), rule)
}

// verdicts lays a decision out by field and day, and fails when a day is in it
// twice or missing.
func verdicts(t interface {
	Fatalf(string, ...any)
}, r Request, g Grant, withheld []Withheld) map[fieldDay]verdict {
	out := map[fieldDay]verdict{}
	add := func(f meter.FieldCode, d meter.Day, v verdict) {
		k := fieldDay{f, d}
		if _, ok := out[k]; ok || !r.Days.Contains(d) || !slices.Contains(r.Fields, f) {
			t.Fatalf("%v twice, or not asked for", k)
		}
		out[k] = v
	}
	for _, item := range g.Items() {
		for d := range item.Spec.Days.All() {
			add(item.Spec.Field.Code, d, verdict{rule: item.Rule, granularity: item.Spec.Granularity, single: item.Spec.Points})
		}
	}
	for _, x := range withheld {
		for d := x.Days.From; d < x.Days.To; d++ {
			add(x.Field, d, verdict{reason: x.Reason})
		}
	}
	for _, f := range r.Fields {
		for d := r.Days.From; d < r.Days.To; d++ {
			if _, ok := out[fieldDay{f, d}]; !ok {
				t.Fatalf("field %d on %s is neither granted nor withheld", f, d)
			}
		}
	}
	return out
}

func readSet(g Grant) map[fieldDay]bool {
	out := map[fieldDay]bool{}
	for _, r := range g.Reads() {
		for d := range r.Days.All() {
			out[fieldDay{r.Field, d}] = true
		}
	}
	return out
}

// Decide agrees with the oracle to the day: in the rule, in the granularity,
// in the reason, in what may be opened.
func TestDecideAgreesWithOracle(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := roll(t).world()
		f := w.file(t)
		for _, me := range []meter.GLN{alpha, beta, gamma} {
			g, withheld, err := w.decide(t, me)
			related := slices.ContainsFunc(w.facts.supply, func(s SupplyPeriod) bool { return s.Supplier == me }) ||
				slices.ContainsFunc(w.facts.consents, func(c Consent) bool { return c.Supplier == me })
			if (err == nil) != related {
				t.Fatalf("%v, related %v", err, related)
			}
			if err != nil {
				continue
			}
			o := newOracle(me, w.r, openBook(f), w.market, w.now)
			got, want := verdicts(t, w.r, g, withheld), o.decide()
			for k, v := range want {
				if got[k] != v {
					t.Fatalf("%v on %s: got %+v, want %+v", k.field, k.day, got[k], v)
				}
			}
			reads := o.reads(want)
			if got := readSet(g); !reflect.DeepEqual(got, reads) {
				t.Fatalf("reads %v, want %v", got, reads)
			}
			for _, code := range []meter.FieldCode{0, 1, 2, 5, 6, 8, 99} {
				for d := w.r.Days.From - 40; d < w.r.Days.To+40; d++ {
					if g.Covers(code, d) != reads[fieldDay{code, d}] {
						t.Fatalf("covers %d on %s: %v", code, d, g.Covers(code, d))
					}
				}
			}
			// Items are in order, name the kind, and are as asked.
			for i, item := range g.Items() {
				if i > 0 && g.Items()[i-1].Spec.Field.Code > item.Spec.Field.Code || item.Spec.Kind == 0 || item.Spec.Resolution != w.r.Resolution ||
					item.Spec.Granularity < w.r.Resolution || item.Spec.Days.Empty() {
					t.Fatalf("item %+v", item)
				}
			}
			// The same again is the same.
			g2, withheld2, _ := w.decide(t, me)
			if !reflect.DeepEqual(g, g2) || !reflect.DeepEqual(withheld, withheld2) {
				t.Fatal("decides differently the second time")
			}
		}
	})
}

// Nobody else's facts change what I get, nor why I do not.
func TestOthersFactsDoNotMatter(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := roll(t)
		w := d.world()
		g, withheld, err := w.decide(t, alpha)
		other := w
		other.facts = w.facts.clone()
		other.facts.supply = slices.DeleteFunc(other.facts.supply, func(s SupplyPeriod) bool { return s.Supplier != alpha })
		other.facts.consents = slices.DeleteFunc(other.facts.consents, func(c Consent) bool { return c.Supplier != alpha })
		if d.once(2) {
			// gamma fills every gap that alpha leaves, and has everyone's consent.
			mine := meter.DaySet{}
			for _, s := range other.facts.supply {
				mine = mine.Union(meter.NewDaySet(s.Days))
			}
			for _, gap := range meter.NewDaySet(days("2020-01-01", "")).Subtract(mine).Ranges() {
				other.facts.supply = append(other.facts.supply, SupplyPeriod{gamma, gap})
			}
			slices.SortFunc(other.facts.supply, func(a, b SupplyPeriod) int { return int(a.Days.From) - int(b.Days.From) })
			for i, o := range other.facts.occupancies {
				other.facts.consents = append(other.facts.consents, Consent{
					ID: uuid(byte(100 + i)), Supplier: gamma, Purpose: meter.EnergyManagement, Classes: []meter.Class{1, 2}, Granularity: meter.PT15M,
					Days: days("2020-01-01", ""), ValidFrom: t0, Answered: by(t0), ValidUntil: t0.AddDate(10, 0, 0), Occupancy: o.Days.From,
					State: ConsentActive, Evidence: "dossier",
				})
			}
		}
		g2, withheld2, err2 := other.decide(t, alpha)
		if err != err2 || !reflect.DeepEqual(g, g2) || !reflect.DeepEqual(withheld, withheld2) {
			t.Fatalf("mine changed:\n%v\n%v", render(w.market, g, withheld), render(w.market, g2, withheld2))
		}
	})
}

// narrow takes something away from the facts or the rules.
func (d dice) narrow(w world) world {
	n := w
	n.facts = w.facts.clone()
	m := *w.market
	m.rules = slices.Clone(m.rules)
	n.market = &m
	shorter := func(r meter.DayRange) meter.DayRange {
		end := min(r.To, day("2027-06-01"))
		if end-r.From < 2 {
			return r
		}
		if d.once(2) {
			return meter.DayRange{From: r.From, To: end - meter.Day(d.among(1, int(end-r.From)-1))}
		}
		return meter.DayRange{From: r.From + meter.Day(d.among(1, int(end-r.From)-1)), To: r.To}
	}
	what := d.IntN(16)
	if s := n.facts.supply; len(s) > 0 && what < 2 {
		i := d.IntN(len(s))
		if s[i].Days = shorter(s[i].Days); what == 1 {
			n.facts.supply = slices.Delete(s, i, i+1)
		}
	}
	if c := n.facts.consents; len(c) > 0 && what >= 2 && what < 8 {
		i := d.IntN(len(c))
		switch what {
		case 2:
			c[i].Days = shorter(c[i].Days)
		case 3:
			c[i].Classes = c[i].Classes[:1]
		case 4:
			c[i].Granularity = min(c[i].Granularity+1, meter.P1M)
		case 5:
			if c[i].State == ConsentActive {
				c[i].State, c[i].Revoked = ConsentRevoked, c[i].Answered
			}
		case 6:
			c[i].ValidUntil = c[i].ValidFrom.Add(time.Hour)
		case 7:
			n.facts.consents = slices.Delete(c, i, i+1)
		}
	}
	if o := n.facts.occupancies; len(o) > 0 && what == 8 {
		i := d.IntN(len(o))
		if s := shorter(o[i].Days); s.From == o[i].Days.From {
			o[i].Days = s
		}
	}
	if what == 9 {
		n.facts.optOuts = meter.NewDaySet(append(n.facts.optOuts, d.days())...).Ranges()
	}
	i := d.IntN(len(m.rules))
	rule := &m.rules[i]
	switch what {
	case 10:
		rule.Days = shorter(rule.Days)
	case 11:
		rule.Granularity = min(rule.Granularity+1, meter.P1M)
	case 12:
		rule.Classes = rule.Classes[:1]
	case 13:
		rule.RequiresSupply, rule.DespiteOptOut = true, false
	case 14:
		m.rules = slices.Delete(m.rules, i, i+1)
	case 15:
		m.retention = d.among(0, m.retention)
	}
	return n
}

// bounds tells worlds apart in which other days begin or end something.
func (w world) bounds() string { return fmt.Sprint(w.facts.supply, w.facts.occupancies) }

// A narrower basis never grants more. What is granted without naming a
// resolution is granted when naming it, and of that, less.
func TestNarrowerNeverGrantsMore(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := roll(t)
		wide := d.world()
		narrower := d.narrow(wide)
		g, _, err := narrower.decide(t, alpha)
		if err != nil {
			if !g.Empty() {
				t.Fatal("granted in spite of the error")
			}
			return
		}
		for _, item := range g.Items() {
			// Of a shorter supply or occupancy another read is the last.
			if item.Spec.Points && narrower.bounds() != wide.bounds() {
				return
			}
			wide.r.Resolution = item.Spec.Granularity
			gw, _, err := wide.decide(t, alpha)
			if err != nil {
				t.Fatal(err)
			}
			var all meter.DaySet
			for _, x := range gw.Items() {
				if x.Spec.Field.Code == item.Spec.Field.Code {
					all = all.Union(x.Spec.Days)
				}
			}
			if more := item.Spec.Days.Subtract(all); !more.Empty() {
				t.Fatalf("field %d at %s: %v more", item.Spec.Field.Code, item.Spec.Granularity, more.Ranges())
			}
			if wide.r.Resolution == narrower.r.Resolution {
				for k := range readSet(g) {
					if !gw.Covers(k.field, k.day) {
						t.Fatalf("reads %v more", k)
					}
				}
			}
		}
	})
}

// Splitting a request, by days or by fields, never grants more: not a day, not
// a finer one, not a block to open.
func TestSplittingNeverGrantsMore(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := roll(t)
		w := d.world()
		whole, withheld, err := w.decide(t, alpha)
		if err != nil || w.r.Days.Len() > MaxRequestDays {
			return
		}
		want, reads := verdicts(t, w.r, whole, withheld), readSet(whole)
		var parts []Request
		if w.r.Days.Len() > 1 && d.once(2) {
			at := w.r.Days.From + meter.Day(d.among(1, w.r.Days.Len()-1))
			one, two := w.r, w.r
			one.Days.To, two.Days.From = at, at
			parts = []Request{one, two}
		} else {
			for _, f := range w.r.Fields {
				one := w.r
				one.Fields = []meter.FieldCode{f}
				parts = append(parts, one)
			}
		}
		for _, p := range parts {
			w.r = p
			g, withheld, err := w.decide(t, alpha)
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range verdicts(t, p, g, withheld) {
				if v.reason == 0 && want[k] != v {
					t.Fatalf("%v on %s: %+v, whole %+v", k.field, k.day, v, want[k])
				}
			}
			for k := range readSet(g) {
				if !reads[k] {
					t.Fatalf("opens %v more", k)
				}
			}
		}
	})
}

// A month's total gives away no part of the month that is withheld by itself:
// one consent alone, or the supply alone, gives the month, or all its days may
// be had by day.
func TestMonthsStandAlone(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := roll(t)
		w := d.world()
		if d.once(2) {
			w.market.rules = nil
			d.sideBySide(&w)
		}
		w.r.Resolution, w.r.Kind = meter.P1M, meter.Consumption
		g, _, err := w.decide(t, alpha)
		if err != nil {
			return
		}
		covers := func(w world, field meter.FieldCode, days meter.DayRange) bool {
			g, _, err := w.decide(t, alpha)
			if err != nil {
				return false
			}
			var given meter.DaySet
			for _, item := range g.Items() {
				if item.Spec.Field.Code == field {
					given = given.Union(item.Spec.Days)
				}
			}
			return meter.NewDaySet(days).Subtract(given).Empty()
		}
		for _, item := range g.Items() {
			for _, run := range item.Spec.Days.Ranges() {
				for from := run.From; from < run.To; {
					month := meter.DayRange{From: from, To: (from.Month() + 1).First()}
					from = month.To

					byDay := w
					byDay.r.Resolution = meter.P1D
					alone := covers(byDay, item.Spec.Field.Code, month)
					one := w
					one.facts = w.facts.clone()
					one.facts.consents = nil
					alone = alone || covers(one, item.Spec.Field.Code, month)
					for _, c := range w.facts.consents {
						one.facts.consents = []Consent{c}
						alone = alone || covers(one, item.Spec.Field.Code, month)
					}
					if !alone {
						t.Fatalf("field %d: %v is a mixture", item.Spec.Field.Code, month)
					}
				}
			}
		}
	})
}

// Intervals as registers are given on no day on which class registers is not
// given by day.
func TestIntervalsAsRegistersNeedRegisters(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := roll(t).world()
		w.r.Kind, w.r.Fields = meter.Register, []meter.FieldCode{6, 8}
		g, _, err := w.decide(t, alpha)
		if err != nil {
			return
		}
		w.r.Resolution, w.r.Fields = meter.P1D, []meter.FieldCode{1}
		registers, _, err := w.decide(t, alpha)
		if err != nil {
			t.Fatal(err)
		}
		var daily meter.DaySet
		for _, item := range registers.Items() {
			daily = daily.Union(item.Spec.Days)
		}
		for _, item := range g.Items() {
			if more := item.Spec.Days.Subtract(daily); !more.Empty() {
				t.Fatalf("field %d: %v more", item.Spec.Field.Code, more.Ranges())
			}
		}
	})
}

// The random worlds are worth deciding about: every reason and every
// granularity comes up.
func TestWorldsAreVaried(t *testing.T) {
	t.Parallel()
	seen := map[string]int{}
	for seed := range uint64(1000) {
		w := dice{rand.New(rand.NewPCG(seed, 1))}.world()
		g, withheld, err := w.decide(t, alpha)
		if err != nil {
			seen["NO_RELATION"]++
			continue
		}
		for k, v := range verdicts(t, w.r, g, withheld) {
			if k.field >= 6 && w.r.Kind == meter.Register && (v.reason == 0 || v.reason == meter.KindNotAvailable) {
				seen[fmt.Sprintf("intervals as registers %v", v.reason == 0)]++
			}
			if v.single {
				seen["single"]++
			}
			if v.reason != 0 {
				seen[v.reason.String()]++
			} else {
				seen[fmt.Sprintf("%s asked %v", v.granularity, w.r.Resolution != 0)]++
			}
		}
	}
	if seen["single"] == 0 {
		t.Errorf("no single reads in %v", seen)
	}
	for _, r := range append(slices.DeleteFunc(slices.Clone(nearness), func(r meter.Reason) bool { return r == noBoundary }), meter.PurposeNotAvailable, meter.PeriodInFuture, meter.PeriodTooOld, meter.KindNotAvailable) {
		if seen[r.String()] == 0 {
			t.Errorf("no %s in %v", r, seen)
		}
	}
	for res := meter.PT15M; res <= meter.P1M; res++ {
		for _, asked := range []bool{false, true} {
			if seen[fmt.Sprintf("intervals as registers %v", asked)] == 0 {
				t.Errorf("no intervals as registers, %v, in %v", asked, seen)
			}
			if seen[fmt.Sprintf("%s asked %v", res, asked)] == 0 {
				t.Errorf("no %s, asked %v, in %v", res, asked, seen)
			}
		}
	}
}
