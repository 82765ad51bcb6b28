package web

import (
	"net/http"
	"slices"

	"kluis/meter"
	"kluis/openapi/client"
)

// accessRoutes are those of templates/access.html: who may read what, and why.
func (p *Portal) accessRoutes() []route {
	return []route{
		{"GET", "/c/{case}/access", employees, p.accessPage, false},
		{"GET", "/c/{case}/access/former", employees, p.accessFormer, false}, // a part, for htmx
	}
}

// accessData is what templates/access.html shows.
type accessData struct {
	Columns         []column
	Rows            []supplierRights
	Former          int  // suppliers that do not supply any more
	ShowFormer      bool // their rows are here too
	ConsentsMissing *Problem
}

// Bases are those explained below the matrix.
func (accessData) Bases() []client.LegalBasis {
	return []client.LegalBasis{client.LegalBasisSUPPLYPERIODIC, client.LegalBasisSUPPLYDAILY, client.LegalBasisCONSENT, client.LegalBasisSWITCH, client.LegalBasisMOVE}
}

func (p *Portal) accessPage(w http.ResponseWriter, r *http.Request) error {
	d, err := p.accessOf(r, r.URL.Query().Get("former") != "")
	if err != nil {
		return err
	}
	return p.page(w, r, "access", d)
}

// accessFormer answers GET …/access/former: the whole matrix, with those of before.
func (p *Portal) accessFormer(w http.ResponseWriter, r *http.Request) error {
	d, err := p.accessOf(r, true)
	if err != nil {
		return err
	}
	return p.part(w, r, "access", "matrix", d)
}

func (p *Portal) accessOf(r *http.Request, former bool) (*accessData, error) {
	c, err := p.askConnection(r)
	if err != nil {
		return nil, err
	}
	d := &accessData{Columns: columns, ShowFormer: former}
	var consents []client.Consent
	res, err := p.API(r, ToView(visitOf(r).Case)).ListConsentsWithResponse(r.Context(), visitOf(r).Case.EAN.String(), &client.ListConsentsParams{})
	if err == nil {
		var list *client.Consents
		if list, err = Given(res.JSON200, res.HTTPResponse, res.Body); err == nil {
			consents = list.Consents
		}
	}
	if err != nil { // the rights are right without; when a consent ends is missing
		pr := problemOf(err)
		d.ConsentsMissing = &pr
	}
	asked := supplying(c, meter.DayOf(p.now(), p.profile.Location()))
	d.Former = len(c.Suppliers) - len(asked)
	if former {
		for _, s := range c.Suppliers {
			if !slices.ContainsFunc(asked, func(x client.SupplierName) bool { return x.Gln == s.Gln }) {
				asked = append(asked, s)
			}
		}
	}
	d.Rows = p.askRights(r, c, consents, asked)
	return d, nil
}
