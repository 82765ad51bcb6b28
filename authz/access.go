package authz

import (
	"cmp"
	"slices"
	"time"

	"kluis/meter"
)

// MaxAccessDays is the longest period of one dry run: ten years.
const MaxAccessDays = 3653

// AccessRequest asks what a caller may read of a metering point.
type AccessRequest struct {
	EAN     meter.EAN
	Purpose meter.Purpose  // 0: each there is
	Days    meter.DayRange // 1 to MaxAccessDays days
	Fields  []meter.FieldCode
}

// AccessItem is days of a field that may be read for a purpose, on one rule.
type AccessItem struct {
	Purpose     meter.Purpose
	Field       meter.FieldCode
	Kind        meter.Kind       // what a request gets that does not say one
	Granularity meter.Resolution // finest that a request for the days may ask for
	Basis       meter.Basis
	Rule        string       // id of the profile's rule
	Days        meter.DaySet // at P1M whole calendar months
}

// AccessWithheld is a run of days that may not be read for a purpose, and why.
type AccessWithheld struct {
	Purpose meter.Purpose
	Withheld
}

// Access is the outcome of a dry run. Immutable.
type Access struct {
	items    []AccessItem
	withheld []AccessWithheld
	grants   []Grant
}

// Items lists what may be read, by purpose, field, and preference of the rule.
// A day of a field is in more than one item only if it may be read as part of
// a month that is to be had only as one, and by itself on another rule. A copy.
func (a Access) Items() []AccessItem { return slices.Clone(a.items) }

// Withheld lists the rest, by purpose, field and day, each run of days as long
// as its reason holds. A copy.
func (a Access) Withheld() []AccessWithheld { return slices.Clone(a.withheld) }

// Grants are the grants that the items are taken from: they say which stored
// days may be looked for. A copy.
func (a Access) Grants() []Grant { return slices.Clone(a.grants) }

// DryRun says what Decide would grant and withhold, by asking it: there are no
// rules here. What it promises is what requests get that ask for the days of
// an item, at its granularity or, what is the same, at none; and no request
// within the period, whatever it asks for, gets a day of a field that is
// withheld here. The error is ErrNoRelation, as of Decide.
//
// A period longer than a request may have is asked about in pieces that keep
// calendar months whole.
//
// An employee needs an errand of kind view for the metering point; the answer
// is what an errand of kind readings for these days and fields would give, which
// for an auditor is nothing. What a supplier may read, an employee asks by
// OnBehalfOf.
func DryRun(c Caller, r AccessRequest, f *LegalFile, p *meter.Profile, now time.Time) (Access, error) {
	if c == nil || p == nil {
		return Access{}, ErrNoRelation
	}
	who := reader{supplier: c.Supplier()}
	if e := c.Employee(); e != nil {
		if e.Errand.Kind != ErrandView || e.Errand.EAN != r.EAN {
			return Access{}, ErrNoRelation
		}
		if _, behalf := c.(onBehalf); !behalf {
			who = reader{staff: true, serves: e.Role.serves()}
		}
	}
	return dryRun(r, func(q Request) (Grant, []Withheld, error) { return who.decide(q, f, p, now) })
}

// OnBehalfOf is a caller for DryRun alone: what a supplier may read, for an
// employee who asks. Decide and Permit refuse it, whoever asks.
func OnBehalfOf(employee Caller, supplier meter.GLN) Caller {
	return onBehalf{employee: employee, supplier: supplier}
}

type onBehalf struct {
	employee Caller
	supplier meter.GLN
}

func (b onBehalf) Supplier() meter.GLN { return b.supplier }

// Employee is never nil, so that nobody takes the caller for a supplier.
func (b onBehalf) Employee() *Employee {
	if b.employee != nil {
		if e := b.employee.Employee(); e != nil {
			return e
		}
	}
	return &Employee{}
}

func dryRun(r AccessRequest, ask func(Request) (Grant, []Withheld, error)) (Access, error) {
	var a Access
	purposes := []meter.Purpose{r.Purpose}
	if r.Purpose == 0 {
		purposes = purposes[:0]
		for p := meter.Billing; knownPurpose(p); p++ {
			purposes = append(purposes, p)
		}
	}
	for _, purpose := range purposes {
		for _, days := range requestable(r.Days) {
			q := Request{EAN: r.EAN, Purpose: purpose, Days: days, Fields: r.Fields}
			grant, withheld, err := ask(q)
			if err != nil {
				return Access{}, err
			}
			a.add(purpose, grant)
			if len(withheld) == 0 {
				continue
			}
			// With no resolution said, days that one rule gives finer break up
			// the months that another gives whole. Asked for, those are given.
			q.Resolution = meter.P1M
			months, _, err := ask(q)
			if err != nil {
				return Access{}, err
			}
			a.addMonths(purpose, months, withheld)
		}
	}
	slices.SortStableFunc(a.items, func(x, y AccessItem) int {
		return cmp.Or(cmp.Compare(x.Purpose, y.Purpose), cmp.Compare(x.Field, y.Field))
	})
	a.withheld = mergeWithheld(a.withheld)
	return a, nil
}

// requestable cuts a period into such as one request may have. One that a
// request may have is left as it is, so that the answer is that request's.
func requestable(days meter.DayRange) []meter.DayRange {
	if days.Len() <= MaxRequestDays || days.Len() > MaxAccessDays {
		return []meter.DayRange{days} // too long: for Decide to refuse
	}
	var out []meter.DayRange
	for days.Len() > 0 {
		piece := meter.DayRange{From: days.From, To: min(days.To, (days.From.Month() + 12).First())}
		out = append(out, piece)
		days.From = piece.To
	}
	return out
}

// add takes over a grant's items, each together with the same of the piece
// before.
func (a *Access) add(purpose meter.Purpose, g Grant) {
	if g.Empty() {
		return
	}
	a.grants = append(a.grants, g)
	for _, it := range g.Items() {
		a.addItem(AccessItem{
			Purpose: purpose, Field: it.Spec.Field.Code, Kind: it.Spec.Kind, Granularity: it.Spec.Granularity,
			Basis: it.Basis, Rule: it.Rule, Days: it.Spec.Days,
		})
	}
}

func (a *Access) addItem(item AccessItem) {
	i := slices.IndexFunc(a.items, func(x AccessItem) bool {
		return x.Purpose == item.Purpose && x.Field == item.Field && x.Kind == item.Kind &&
			x.Granularity == item.Granularity && x.Basis == item.Basis && x.Rule == item.Rule
	})
	if i < 0 {
		a.items = append(a.items, item)
		return
	}
	a.items[i].Days = a.items[i].Days.Union(item.Days)
}

// addMonths adds the months of a grant of months that hold days withheld
// without them, and the rest of withheld.
func (a *Access) addMonths(purpose meter.Purpose, months Grant, withheld []Withheld) {
	used := false
	given := make(map[meter.FieldCode]meter.DaySet)
	for _, it := range months.Items() {
		field := it.Spec.Field.Code
		var whole []meter.DayRange
		for _, w := range withheld {
			if w.Field != field {
				continue
			}
			for _, run := range it.Spec.Days.Intersect(meter.NewDaySet(w.Days)).Ranges() {
				whole = append(whole, meter.DayRange{From: run.From.Month().First(), To: ((run.To - 1).Month() + 1).First()})
			}
		}
		if len(whole) == 0 {
			continue
		}
		used = true
		days := meter.NewDaySet(whole...).Intersect(it.Spec.Days)
		given[field] = given[field].Union(days)
		a.addItem(AccessItem{
			Purpose: purpose, Field: field, Kind: it.Spec.Kind, Granularity: meter.P1M, Basis: it.Basis, Rule: it.Rule, Days: days,
		})
	}
	if used {
		a.grants = append(a.grants, months)
	}
	for _, w := range withheld {
		for _, run := range meter.NewDaySet(w.Days).Subtract(given[w.Field]).Ranges() {
			a.withheld = append(a.withheld, AccessWithheld{purpose, Withheld{w.Field, run, w.Reason}})
		}
	}
}

// mergeWithheld sorts, and joins what a cut between two pieces has parted.
func mergeWithheld(all []AccessWithheld) []AccessWithheld {
	slices.SortFunc(all, func(x, y AccessWithheld) int {
		return cmp.Or(cmp.Compare(x.Purpose, y.Purpose), cmp.Compare(x.Field, y.Field), cmp.Compare(x.Days.From, y.Days.From))
	})
	var out []AccessWithheld
	for _, w := range all {
		if n := len(out); n > 0 && out[n-1].Purpose == w.Purpose && out[n-1].Field == w.Field && out[n-1].Reason == w.Reason && out[n-1].Days.To == w.Days.From {
			out[n-1].Days.To = w.Days.To
			continue
		}
		out = append(out, w)
	}
	return out
}

// Retained is the period of which anything may be given now: what a dry run is
// about if it does not say. It ends with today, which is not over, but may have
// a read that is given by itself. At most MaxAccessDays.
func Retained(p *meter.Profile, now time.Time) meter.DayRange {
	end := meter.DayOf(now, p.Location()) + 1
	return meter.DayRange{From: max((end - 1).AddMonths(-p.RetentionMonths()), end-MaxAccessDays, 0), To: end}
}
