package authz

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/internal/testing/long"
	"kluis/meter"
)

// employee calls for the grid operator.
type employee struct{ e Employee }

func (e employee) Supplier() meter.GLN { return testGLN(900) }
func (e employee) Employee() *Employee { return &e.e }

// to is an employee on an errand.
func to(errand Errand) employee {
	errand.EAN, errand.Reason = home, "the customer rang"
	return employee{Employee{Subject: "employee-7", Role: Agent, Errand: errand}}
}

// toRead is sent for readings.
func toRead(days meter.DayRange, fields ...meter.FieldCode) employee {
	return to(Errand{Kind: ErrandReadings, Days: days, Fields: fields})
}

// toTake is sent to take a step, as the file has it.
func toTake(s Step, f *LegalFile) employee {
	on := Errand{Kind: ErrandStep, Action: ActionOf(s)}
	switch s := s.(type) {
	case GrantConsent:
		on.Scope, on.Evidence = s.Scope().Digest(home), s.Evidence
	case AcceptConsent:
		on.ConsentID, on.Evidence = s.ID, s.Evidence
	case RejectConsent:
		on.ConsentID = s.ID
	case RevokeConsent:
		on.ConsentID = s.ID
	}
	if c, ok := f.Consent(on.ConsentID); ok {
		on.Scope = c.ScopeDigest(home)
	}
	return to(on)
}

// tale is one history: the file as Apply and Permit make it, and the book.
type tale struct {
	dice
	market market
	now    time.Time
	file   *LegalFile
	book   *book
	ids    int
	seen   map[string]int
}

func newStory(d dice, seen map[string]int) *tale {
	// Few days and few parties, so that things meet.
	s := &tale{dice: d, now: day("2025-06-01").Start(amsterdam).Add(time.Duration(d.IntN(48)) * time.Hour).UTC(), book: &book{}, seen: seen}
	w := d.world()
	for i := range w.market.rules {
		if r := &w.market.rules[i]; r.Basis == meter.CustomerServiceBasis {
			r.Purpose, r.RequiresSupply = meter.CustomerService, false
		}
	}
	if d.once(2) {
		w.market.rules = append(w.market.rules, meter.Rule{
			ID: "phone", Basis: meter.CustomerServiceBasis, Purpose: meter.CustomerService, Classes: d.classes(), Granularity: pick(d, meter.PT15M, meter.P1D, meter.P1M),
			Days: pick(d, always(), d.days()), DespiteOptOut: d.once(2), Enabled: true,
		})
	}
	w.market.rules = append(w.market.rules, meter.Rule{
		ID: "asked", Basis: meter.Consent, Purpose: meter.EnergyManagement, Classes: pick(d, []meter.Class{1, 2}, []meter.Class{1, 2}, d.classes()), Granularity: pick(d, meter.PT15M, meter.PT15M, meter.P1D),
		Days: always(), RequiresSupply: !d.once(3), DespiteOptOut: d.once(2), Enabled: true,
	})
	w.market.terms = &meter.ConsentTerms{
		AnswerDays: d.among(1, 60), LongestMonths: d.among(1, 24), EndedByMove: !d.once(3),
		RevokedBy: pick(d, []meter.ConsentParty{meter.CustomerParty}, []meter.ConsentParty{meter.CustomerParty, meter.SupplierParty}),
	}
	s.market = w.market
	return s
}

func (s *tale) today() meter.Day { return meter.DayOf(s.now, amsterdam) }

// near is a day around today, often one on which something is recorded to
// change.
func (s *tale) near() meter.Day {
	if s.once(3) {
		var days []meter.Day
		for _, o := range s.file.Occupancies() {
			days = append(days, o.Days.From, o.Days.To)
		}
		for _, p := range s.file.SupplyPeriods() {
			days = append(days, p.Days.From, p.Days.To)
		}
		days = slices.DeleteFunc(days, func(d meter.Day) bool { return d == meter.MaxDay })
		if len(days) > 0 {
			return pick(s.dice, days...) + meter.Day(s.among(-1, 1))
		}
	}
	d := s.today() + meter.Day(s.among(-120, 40))
	if s.once(2) {
		return d.Month().First()
	}
	return d
}

func (s *tale) days() meter.DayRange {
	from := s.near()
	switch s.IntN(4) {
	case 0:
		return meter.DayRange{From: from, To: meter.MaxDay}
	case 1:
		return meter.DayRange{From: from, To: from.AddMonths(s.among(1, 6))}
	}
	return meter.DayRange{From: from, To: from + meter.Day(s.among(1, 90))}
}

// terms are those of a new consent; the id is mostly new.
func (s *tale) terms(g meter.GLN) RequestConsent {
	s.ids++
	r := RequestConsent{
		ID: uuid(byte(s.ids)), Supplier: g, Purpose: pick(s.dice, meter.EnergyManagement, meter.EnergyManagement, meter.EnergyManagement, meter.EnergyManagement, meter.EnergyManagement, meter.Billing),
		Classes: s.classes(), Granularity: pick(s.dice, meter.PT15M, meter.PT1H, meter.P1D, meter.P1D, meter.P1M), Days: pick(s.dice, s.days(), meter.DayRange{From: s.today() - 100, To: meter.MaxDay}),
		ValidUntil: s.now.Add(time.Duration(s.among(1, 200*24)) * time.Hour).Truncate(time.Second), Evidence: fmt.Sprint("dossier/", s.ids),
	}
	switch s.IntN(16) {
	case 0:
		r.ID = s.someID()
	case 1:
		r.ValidUntil = s.now.Add(time.Duration(s.among(-1, 1)) * time.Second)
	case 2: // to the end of what the market lets one be, and beyond
		r.ValidUntil = s.today().AddMonths(s.market.ConsentTerms().LongestMonths).Start(amsterdam).Add(time.Duration(s.among(-1, 1)) * time.Second)
	case 3:
		r.Days = meter.DayRange{From: s.today().AddMonths(-40), To: s.today().AddMonths(-s.among(30, 39))}
	}
	r.ValidUntil = r.ValidUntil.Truncate(time.Second).UTC()
	return r
}

// someID names a consent of the file, or none.
func (s *tale) someID() [16]byte {
	if n := len(s.file.consents); n > 0 && !s.once(8) {
		return s.file.consents[max(s.IntN(n), s.IntN(n))].ID // rather a late one
	}
	return uuid(byte(s.ids + 1))
}

// operate takes a step of the registrar's.
func (s *tale) operate(t *rapid.T) {
	var step Step
	switch s.IntN(18) {
	case 0:
		step = SetOccupancy{s.days()}
	case 1, 2, 3:
		step = SetSupply{pick(s.dice, alpha, alpha, beta), s.days()}
	case 4, 5, 6:
		step = CorrectSupply{pick(s.dice, alpha, beta, meter.GLN{}), s.days()}
	case 7, 8, 9:
		step = CorrectMove{s.near(), s.near()}
		if o := s.file.Occupancies(); len(o) > 0 && !s.once(4) {
			x := pick(s.dice, o...).Days
			step = CorrectMove{pick(s.dice, x.From, x.From, x.To), s.near()}
		}
	case 10:
		step = SetOptOut{s.days()}
	case 11:
		step = EndOptOut{s.near()}
	case 12:
		step = pick[Step](s.dice, AcceptConsent{s.someID(), "letter"}, RejectConsent{s.someID()}, RevokeConsent{s.someID()}, s.terms(alpha))
	case 13, 14: // the registrar is not held to the market's terms
		g := GrantConsent(s.terms(pick(s.dice, alpha, alpha, beta)))
		g.ValidUntil = s.now.AddDate(s.among(1, 4), 0, 0).Truncate(time.Second)
		step = g
	case 15, 16: // a move that is near
		from := s.today() + meter.Day(s.among(-3, 30))
		step = SetOccupancy{meter.DayRange{From: from, To: meter.MaxDay}}
	default:
		step = Register{home, meter.Gas}
	}
	s.apply(t, step, operator)
}

// apply lets Apply and the book take a step, and compares.
func (s *tale) apply(t *rapid.T, step Step, by Actor) {
	next, err := Apply(s.file, step, by, s.now, amsterdam)
	allowed := checks(step) && s.book.take(step, s.now)
	if (err == nil) != allowed {
		t.Fatalf("%T %+v: %v, by the book %v", step, step, err, allowed)
	}
	if err != nil {
		if !errors.Is(err, ErrStep) || next != nil {
			t.Fatalf("%T %+v: %v", step, step, err)
		}
		s.seen[fmt.Sprintf("%T refused", step)]++
		return
	}
	s.seen[fmt.Sprintf("%T", step)]++
	if next.Actor() != by || next.Version() != s.file.Version()+1 || next.Previous() != s.file.Digest() {
		t.Fatalf("%T: not the next version, by %v", step, next.Actor())
	}
	s.file = next
	s.compare(t, step)
}

// checks: a day that is MaxDay is no day to correct.
func checks(s Step) bool { return s.check() == nil }

// compare looks at every day and every consent of the file and of the book.
func (s *tale) compare(t *rapid.T, step Step) {
	as := openBook(s.file)
	if as.supplier != s.book.supplier || as.out != s.book.out {
		t.Fatalf("after %T %+v other suppliers or opt-outs than in the book", step, step)
	}
	numbers := map[int]int{}
	for i, c := range as.customer {
		if was, ok := numbers[c]; ok && was != s.book.customer[i] {
			t.Fatalf("after %T %+v another customer on %s than in the book", step, step, bookFrom+meter.Day(i))
		}
		numbers[c] = s.book.customer[i]
	}
	if numbers[0] != 0 || len(as.consents) != len(s.book.consents) {
		t.Fatalf("after %T %+v other days empty, or other consents, than in the book", step, step)
	}
	for _, e := range as.consents {
		e.customer = numbers[e.customer]
		if k := s.book.find(e.id); k == nil || !reflect.DeepEqual(e, *k) {
			t.Fatalf("after %T %+v\n%+v, in the book\n%+v", step, step, e, k)
		}
	}
}

// try lets a caller take a step by token: Permit, and then Apply.
func (s *tale) try(t *rapid.T, c Caller, step Step) {
	by, err := permit(c, step, s.file, s.market, s.now)
	want := s.book.may(c, step, s.market, s.now)
	if kindOf(err) != want || err != nil && !by.IsZero() {
		t.Fatalf("%T %+v by %+v: %v, by the book %v", step, step, c, err, want)
	}
	s.seen[fmt.Sprintf("%T by token: %v", step, want)]++
	if err != nil {
		return
	}
	if e := c.Employee(); e == nil && by != bySupplier(c.Supplier()) || e != nil && by != (Actor{ByCustomer, e.Subject}) {
		t.Fatalf("taken by %v", by)
	}
	version := s.file.Version()
	s.apply(t, step, by)
	if s.file.Version() == version {
		// The one thing that Permit leaves to Apply.
		if s.book.find(idOf(step)) == nil {
			t.Fatalf("%T %+v is permitted, and not possible", step, step)
		}
	}
}

func idOf(s Step) [16]byte {
	switch s := s.(type) {
	case GrantConsent:
		return s.ID
	case RequestConsent:
		return s.ID
	}
	return [16]byte{}
}

// ask is a supplier's step by token.
func (s *tale) ask(t *rapid.T) {
	me := pick(s.dice, alpha, alpha, alpha, beta, gamma)
	r := s.terms(me)
	if s.once(12) {
		r.Supplier = pick(s.dice, alpha, beta)
	}
	s.try(t, caller(me), pick[Step](s.dice, r, r, r, r, RevokeConsent{s.someID()}, RevokeConsent{s.someID()}, AcceptConsent{s.someID(), "x"}, GrantConsent(r), SetOptOut{s.days()}))
}

// answer is an employee's step by token.
func (s *tale) answer(t *rapid.T) {
	if len(s.file.consents) == 0 && !s.once(8) {
		s.ask(t)
		return
	}
	id := s.someID()
	step := pick[Step](s.dice, AcceptConsent{id, "call"}, AcceptConsent{id, "call"}, AcceptConsent{id, "call"}, RejectConsent{id}, RevokeConsent{id}, GrantConsent(s.terms(pick(s.dice, alpha, beta, gamma))))
	if k, ok := s.file.Consent(id); ok && s.once(8) { // the same word of the customer again
		s.ids++
		step = GrantConsent{uuid(byte(s.ids)), k.Supplier, k.Purpose, k.Classes, k.Granularity, k.Days, k.ValidUntil, k.Evidence}
	}
	c := toTake(step, s.file)
	if s.once(6) { // what the token does not say
		switch on := &c.e.Errand; s.IntN(9) {
		case 0:
			on.Scope[s.IntN(32)] ^= 1
		case 1:
			on.ConsentID = s.someID()
		case 2:
			on.Evidence += "x"
		case 3:
			on.Action = ConsentAction(s.among(0, 6))
		case 4:
			on.Kind = ErrandKind(s.among(0, 4))
		case 5:
			c.e.Role = Role(s.among(0, 4))
		case 6:
			on.EAN = testEAN(2)
		case 7:
			step = pick[Step](s.dice, SetOptOut{s.days()}, CorrectMove{s.near(), s.near()}, RequestConsent(s.terms(alpha)), RevokeConsent{id}, RejectConsent{id})
		case 8:
			if a, ok := step.(AcceptConsent); ok {
				a.Evidence = "letter"
				step = a
			}
		}
	}
	s.try(t, c, step)
}

// read asks for values, and for the standing of consents.
func (s *tale) read(t *rapid.T) {
	r := Request{
		EAN: home, Purpose: pick(s.dice, meter.EnergyManagement, meter.EnergyManagement, meter.EnergyManagement, meter.EnergyManagement, meter.EnergyManagement, meter.Billing, meter.CustomerService),
		Resolution: meter.Resolution(pick(s.dice, 0, 0, 0, 1, 2, 3, 4)), Kind: meter.Kind(s.IntN(3)),
		Fields: pick(s.dice, []meter.FieldCode{1}, []meter.FieldCode{6}, []meter.FieldCode{1, 5, 6, 8}, []meter.FieldCode{1, 99}),
	}
	from := s.near()
	r.Days = meter.DayRange{From: from, To: from + meter.Day(s.among(1, 40))}
	if s.once(3) {
		r.Days = meter.DayRange{From: from.Month().First(), To: (from.Month() + 2).First()}
	}
	me := pick(s.dice, alpha, alpha, beta, gamma)
	if n := len(s.file.consents); n > 0 && s.once(2) { // what a consent might give
		c := s.file.consents[s.IntN(n)]
		o, _ := s.file.OccupancyAt(c.Occupancy)
		if days := c.Days.Intersect(o.Days).Intersect(meter.DayRange{From: s.today() - 400, To: s.today() + 1}); !days.Empty() {
			from := days.From + meter.Day(s.IntN(days.Len()))
			r.Days = meter.DayRange{From: from, To: min(days.To, from+meter.Day(s.among(1, 40))) + meter.Day(pick(s.dice, 0, 0, 1))}
			me, r.Purpose, r.Fields = c.Supplier, c.Purpose, []meter.FieldCode{1, 6}
			r.Resolution, r.Kind = pick(s.dice, r.Resolution, 0, meter.P1D), pick(s.dice, r.Kind, 0)
		}
	}
	for i := range s.file.consents {
		c := &s.file.consents[i]
		got, want := s.file.standing(c, s.market.ConsentTerms(), s.now, amsterdam).String(), s.book.stands(s.book.find(c.ID), s.market.ConsentTerms(), s.now)
		if got != want {
			t.Fatalf("consent %d stands %s, by the book %s", c.ID[15], got, want)
		}
		s.seen[got]++
	}
	var c Caller
	o := newOracle(me, r, s.book, s.market, s.now)
	related := s.book.relates(me)
	if s.once(4) {
		if s.once(2) {
			r.Purpose = meter.CustomerService
		}
		e := toRead(r.Days, 1, 5, 6, 8, 99)
		related = true
		if s.once(6) { // outside the errand
			related = false
			switch on := &e.e.Errand; s.IntN(6) {
			case 0:
				on.Days.From++
			case 1:
				on.Days.To--
			case 2:
				on.Fields = []meter.FieldCode{2}
			case 3:
				on.EAN = testEAN(2)
			case 4:
				on.Kind = pick(s.dice, 0, ErrandView, ErrandStep)
			case 5:
				e.e.Role = pick(s.dice, 0, Auditor, 4)
			}
		}
		c = e
		o = newOracle(meter.GLN{}, r, s.book, s.market, s.now)
		o.staff = true
	} else {
		c = caller(me)
	}
	g, withheld, err := decide(c, r, s.file, s.market, s.now)
	if (err == nil) != related || err != nil && (err != ErrNoRelation || !g.Empty() || withheld != nil) {
		t.Fatalf("%v, related %v", err, related)
	}
	if err != nil {
		s.seen["no relation"]++
		return
	}
	got, want := verdicts(t, r, g, withheld), o.decide()
	if !maps.Equal(got, want) {
		for k, v := range want {
			if got[k] != v {
				t.Fatalf("%+v for %+v: field %d on %s: got %+v, want %+v", r, c, k.field, k.day, got[k], v)
			}
		}
	}
	reads := o.reads(want)
	if got := readSet(g); !maps.Equal(got, reads) {
		t.Fatalf("%+v: reads %v, want %v", r, got, reads)
	}
	for _, v := range want {
		if v.reason == 0 {
			s.seen[fmt.Sprintf("given, staff %v", o.staff)]++
			if o.m.(*testMarket).basisOf(v.rule) == meter.Consent {
				s.seen["given on consent"]++
			}
		} else {
			s.seen[v.reason.String()]++
		}
	}
}

func (m *testMarket) basisOf(rule string) meter.Basis {
	i := slices.IndexFunc(m.rules, func(r meter.Rule) bool { return r.ID == rule })
	return m.rules[i].Basis
}

// pass lets time pass, often to the very instant at which something ends.
func (s *tale) pass() {
	next := s.now.Add(pick(s.dice, time.Minute, time.Hour, time.Duration(s.among(1, 20))*24*time.Hour))
	if s.once(2) {
		terms := s.market.ConsentTerms()
		var ends []time.Time
		for _, c := range s.file.Consents() {
			ends = append(ends, c.ValidUntil)
			if !c.Requested.IsZero() {
				ends = append(ends, terms.AnswerUntil(meter.DayOf(c.Requested.At, amsterdam)).Start(amsterdam))
			}
			if c.Given() {
				ends = append(ends, terms.LongestUntil(meter.DayOf(c.ValidFrom, amsterdam)).Start(amsterdam))
			}
		}
		for _, o := range s.file.Occupancies() {
			ends = append(ends, o.Days.From.Start(amsterdam), o.Days.To.Start(amsterdam))
		}
		ends = slices.DeleteFunc(ends, func(t time.Time) bool {
			return t.Before(s.now.Add(time.Second)) || t.After(s.now.AddDate(0, 6, 0))
		})
		if len(ends) > 0 {
			next = pick(s.dice, ends...).Add(pick(s.dice, -time.Microsecond, 0))
		}
	}
	if next.Before(day("2027-06-01").Start(amsterdam)) {
		s.now = next.UTC()
	}
}

// Hundreds of histories, and thousands in make test-long, of supply, moves, corrections, requests, answers,
// consents, revocations, opt-outs, time and reads: at every moment each field
// of each day is given or withheld as the book says, and each step is possible,
// and permitted, as the book says.
func TestHistoriesAgreeWithTheBook(t *testing.T) {
	t.Parallel()
	seen := map[string]int{}
	tales := uint64(5) // of each draw
	if long.Wanted() {
		tales = 20
	}
	rapid.Check(t, func(t *rapid.T) {
		seed, length := rapid.Uint64().Draw(t, "seed"), rapid.IntRange(20, 80).Draw(t, "length")
		for i := range tales {
			s := newStory(dice{rand.New(rand.NewPCG(seed, i))}, seen)
			var err error
			if s.file, err = Apply(nil, Register{home, meter.Electricity}, operator, s.now, amsterdam); err != nil || !s.book.take(Register{home, meter.Electricity}, s.now) {
				t.Fatal(err)
			}
			if !s.once(5) {
				s.apply(t, SetOccupancy{meter.DayRange{From: s.today() - meter.Day(s.among(10, 300)), To: meter.MaxDay}}, operator)
				s.apply(t, SetSupply{alpha, meter.DayRange{From: s.today() - meter.Day(s.among(10, 300)), To: meter.MaxDay}}, operator)
			}
			for range length {
				switch s.IntN(13) {
				case 0:
					s.operate(t)
				case 2, 3:
					s.ask(t)
				case 4, 5:
					s.answer(t)
				case 6:
					s.pass()
					s.read(t)
				default:
					s.read(t)
				}
			}
		}
	})
	for _, want := range []string{
		"authz.AcceptConsent by token: <nil>", "authz.RejectConsent by token: <nil>", "authz.RevokeConsent by token: <nil>", "authz.GrantConsent by token: <nil>",
		"authz.RequestConsent by token: <nil>", "authz.CorrectMove", "authz.CorrectSupply",
		"REQUESTED", "ACTIVE", "REJECTED", "REVOKED", "EXPIRED", "LAPSED", "ENDED_BY_MOVE",
		"given, staff true", "given, staff false", "given on consent", "no relation",
	} {
		if seen[want] == 0 {
			t.Errorf("%s never came up", want)
		}
	}
	if testing.Verbose() {
		for _, k := range slices.Sorted(maps.Keys(seen)) {
			t.Logf("%7d %s", seen[k], k)
		}
	}
}
