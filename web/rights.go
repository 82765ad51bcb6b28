package web

import (
	"cmp"
	"net/http"
	"slices"
	"time"

	"kluis/meter"
	"kluis/openapi/client"
)

// column is what may be read: a class of fields, so fine.
type column struct {
	Class       string
	Granularity client.Resolution
}

// columns are those of the matrix, coarsest first in each class.
var columns = []column{
	{"registers", client.P1M}, {"registers", client.P1D},
	{"intervals", client.P1D}, {"intervals", client.PT1H}, {"intervals", client.PT15M},
}

// fineness orders granularities, the finest first.
var fineness = []client.Resolution{client.PT15M, client.PT1H, client.P1D, client.P1M}

func fine(r client.Resolution) int { return slices.Index(fineness, r) }

// supplierRights is a row of the matrix: what one supplier may read, found by the
// dry run that the supplier itself can make.
type supplierRights struct {
	GLN, Name string
	Suspended bool
	Present   bool // supplies now
	Cells     []rightCell
	Any       bool
	Missing   *Problem // instead of the cells: it could not be found out
}

// rightCell says whether a column may be read, and on what.
type rightCell struct {
	column
	Grounds []ground          // none: it may not be read
	Via     client.Resolution // they are of a finer column of this class, which says it all; else ""
	Denied  client.WithheldReason
}

// Lasting are the grounds that are not of single days, Single those that are.
func (c rightCell) Lasting() []ground {
	return slices.DeleteFunc(slices.Clone(c.Grounds), func(g ground) bool { return g.Days })
}

// Single are the grounds of single days: a switch or a move.
func (c rightCell) Single() []ground {
	return slices.DeleteFunc(slices.Clone(c.Grounds), func(g ground) bool { return !g.Days })
}

// ground is one legal basis of a cell.
type ground struct {
	Basis    client.LegalBasis
	Purpose  client.Purpose
	From, To meter.Day  // days that may be read now; To is included
	Days     bool       // only those days: a switch or a move
	Until    *time.Time // when the right ends, where that is known
	Open     bool       // it lasts as long as the supplier supplies
}

// rightsOf makes the row of a supplier out of its dry run.
func rightsOf(a *client.Access, s client.SupplierName, c *client.Connection, consents []client.Consent, profile *meter.Profile, now time.Time) supplierRights {
	row := newRights(s, c, meter.DayOf(now, profile.Location()))
	for _, col := range columns {
		cell := cellOf(a, col, profile)
		for i := range cell.Grounds {
			cell.Grounds[i].end(s.Gln, col, c, consents, profile.Location())
		}
		slices.SortStableFunc(cell.Grounds, func(x, y ground) int { return cmp.Compare(basisOrder[x.Basis], basisOrder[y.Basis]) })
		if len(cell.Grounds) == 0 {
			cell.Denied = denialOf(a, col, profile)
		}
		row.Any = row.Any || len(cell.Grounds) > 0
		row.Cells = append(row.Cells, cell)
	}
	return row
}

// cellOf finds what a column rests on: what is granted exactly so fine, and if
// nothing lasting is, what is granted finer, which gives the coarser too.
func cellOf(a *client.Access, col column, profile *meter.Profile) rightCell {
	of := func(granularity client.Resolution) (cell rightCell) {
		cell.column = col
		for _, g := range a.Granted {
			f, ok := profile.Field(g.Field)
			days := g.LegalBasis == client.LegalBasisSWITCH || g.LegalBasis == client.LegalBasisMOVE
			if !ok || f.Class.String() != col.Class || g.Granularity != granularity || days && granularity != col.Granularity {
				continue // the read of one day is no month
			}
			cell.add(ground{Basis: g.LegalBasis, Purpose: g.Purpose, From: localDay(g.From), To: localDay(g.To) - 1, Days: days})
		}
		return cell
	}
	own := of(col.Granularity)
	if len(own.Lasting()) > 0 {
		return own
	}
	for i := fine(col.Granularity) - 1; i >= 0; i-- {
		if finer := of(fineness[i]); len(finer.Lasting()) > 0 {
			finer.Via = fineness[i]
			finer.Grounds = append(finer.Grounds, own.Grounds...)
			return finer
		}
	}
	return own
}

// Finest are the cells that say it all: those that rest on something of their own
// that lasts.
func (s supplierRights) Finest() []rightCell {
	return slices.DeleteFunc(slices.Clone(s.Cells), func(c rightCell) bool { return c.Via != "" || len(c.Lasting()) == 0 })
}

// SingleDays are the days whose reading may be had for a switch or a move.
func (s supplierRights) SingleDays() []ground {
	var out []ground
	for _, c := range s.Cells {
		out = append(out, c.Single()...)
	}
	return out
}

func newRights(s client.SupplierName, c *client.Connection, today meter.Day) supplierRights {
	row := supplierRights{GLN: s.Gln, Suspended: s.Suspended}
	if s.Name != nil {
		row.Name = *s.Name
	}
	row.Present = slices.ContainsFunc(c.Supply, func(x client.SupplyPeriod) bool {
		return x.Supplier == s.Gln && localDay(x.From) <= today && (x.To == nil || localDay(*x.To) > today)
	})
	return row
}

// basisOrder is in which order bases are told: what the supply gives first.
var basisOrder = map[client.LegalBasis]int{
	client.LegalBasisSUPPLYPERIODIC: 1, client.LegalBasisSUPPLYDAILY: 2, client.LegalBasisCONSENT: 3, client.LegalBasisSWITCH: 4, client.LegalBasisMOVE: 5,
}

// add joins the fields and runs of days of one basis: tariffs and directions are
// granted alike, and a customer cares for none. Two single days are no period.
func (c *rightCell) add(g ground) {
	for i := range c.Grounds {
		if x := &c.Grounds[i]; x.Basis == g.Basis && x.Purpose == g.Purpose && (!g.Days || x.From == g.From) {
			x.From, x.To = min(x.From, g.From), max(x.To, g.To)
			return
		}
	}
	c.Grounds = append(c.Grounds, g)
}

// end finds when the right ends by what it rests on.
func (g *ground) end(supplier string, col column, c *client.Connection, consents []client.Consent, zone *time.Location) {
	if g.Days {
		return
	}
	if g.Basis == client.LegalBasisCONSENT {
		for _, x := range consents {
			if x.Supplier != supplier || x.State != client.ConsentStateACTIVE || !slices.Contains(x.Classes, client.FieldClass(col.Class)) || fine(x.Granularity) > fine(col.Granularity) {
				continue
			}
			if g.Until == nil || x.ValidUntil.After(*g.Until) {
				until := x.ValidUntil
				g.Until = &until
			}
		}
		return
	}
	for _, x := range c.Supply {
		switch {
		case x.Supplier != supplier:
		case x.To == nil:
			g.Open, g.Until = true, nil
			return
		default:
			if end := localDay(*x.To).Start(zone); g.Until == nil || end.After(*g.Until) {
				g.Until = &end
			}
		}
	}
}

// denialOf is why a column is not given: the reason that says most.
func denialOf(a *client.Access, col column, profile *meter.Profile) client.WithheldReason {
	seen := map[client.WithheldReason]bool{}
	for _, w := range a.Withheld {
		if f, ok := profile.Field(w.Field); ok && f.Class.String() == col.Class {
			seen[w.Reason] = true
		}
	}
	for _, r := range []client.WithheldReason{client.OPTEDOUT, client.CONSENTREVOKED, client.CONSENTEXPIRED, client.NOCONSENT, client.NOTGRANTEDATTHISGRANULARITY, client.NOSUPPLY} {
		if seen[r] {
			return r
		}
	}
	return client.NOTCOVERED
}

// askRights finds the rights of suppliers at the same time, a few at once; one that
// cannot be found out does not keep the others away.
func (p *Portal) askRights(r *http.Request, c *client.Connection, consents []client.Consent, suppliers []client.SupplierName) []supplierRights {
	rows := make([]supplierRights, len(suppliers))
	cs := visitOf(r).Case
	g := p.group(r)
	g.SetLimit(4)
	for i, s := range suppliers {
		g.Go(func() error {
			res, err := p.API(r, ToView(cs)).GetAccessWithResponse(r.Context(), cs.EAN.String(), &client.GetAccessParams{Supplier: &s.Gln})
			if err == nil {
				var a *client.Access
				if a, err = Given(res.JSON200, res.HTTPResponse, res.Body); err == nil {
					rows[i] = rightsOf(a, s, c, consents, p.profile, p.now())
					return nil
				}
			}
			pr := problemOf(err)
			rows[i] = newRights(s, c, meter.DayOf(p.now(), p.profile.Location()))
			rows[i].Missing = &pr
			return nil
		})
	}
	_ = g.Wait() // each row has its own problem
	return rows
}
