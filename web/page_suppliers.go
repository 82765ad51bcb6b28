package web

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"kluis/meter"
	"kluis/openapi/client"
)

// suppliersRoutes are those of templates/suppliers.html and supplier-step.html.
func (p *Portal) suppliersRoutes() []route {
	return []route{
		{"GET", "/suppliers", overseers, p.suppliersPage, false},
		{"GET", "/suppliers/{gln}/{step}", supervisor, p.supplierStepPage, false},
		{"POST", "/suppliers/{gln}/{step}", supervisor, p.supplierStep, false},
	}
}

// expiresSoon is how long before a certificate's end it is time for another.
const expiresSoon = 30 * 24 * time.Hour

// suppliersData is what templates/suppliers.html shows.
type suppliersData struct {
	At        time.Time
	Suppliers []supplierRow
	Damaged   bool          // the record of one of them does not verify
	Attention []supplierRow // certificates that end soon, or none that is left
	Changed   *supplierRow  // whom a step was just taken for
	MayStep   bool
}

type supplierRow struct {
	client.Supplier
	Own          bool // the grid operator's own record
	Certificates []certificateRow
	Certificate  string // kind of the best certificate: ok, warn (soon), bad (none left)
	Ends         *time.Time
	RefusedShare int // of today's requests, in percent, rounded
}

type certificateRow struct {
	Short    string // beginning of the thumbprint
	Kind     string // ok, warn, bad, off
	State    string // key of a text
	NotAfter time.Time
}

func (p *Portal) suppliersPage(w http.ResponseWriter, r *http.Request) error {
	list, err := p.suppliers(r)
	if err != nil {
		return err
	}
	d := suppliersOf(list, p.config.Operator, p.now())
	d.MayStep = visitOf(r).Session.Role == Supervisor
	changed := r.URL.Query().Get("changed")
	for i := range d.Suppliers {
		if string(d.Suppliers[i].Gln) == changed {
			d.Changed = &d.Suppliers[i]
		}
	}
	return p.page(w, r, "suppliers", d)
}

func (p *Portal) suppliers(r *http.Request) (*client.Suppliers, error) {
	res, err := p.API(r, ToOversee("suppliers")).ListSuppliersWithResponse(r.Context())
	if err != nil {
		return nil, err
	}
	return Given(res.JSON200, res.HTTPResponse, res.Body)
}

// suppliersOf makes the rows of the list.
func suppliersOf(list *client.Suppliers, operator meter.GLN, now time.Time) suppliersData {
	d := suppliersData{At: list.At}
	for _, s := range list.Suppliers {
		row := supplierRowOf(s, operator, now)
		d.Suppliers = append(d.Suppliers, row)
		damaged := s.Damaged != nil && *s.Damaged
		d.Damaged = d.Damaged || damaged
		if !s.Suspended && !damaged && row.Certificate != "ok" {
			d.Attention = append(d.Attention, row)
		}
	}
	return d
}

func supplierRowOf(s client.Supplier, operator meter.GLN, now time.Time) supplierRow {
	row := supplierRow{Supplier: s, Own: string(s.Gln) == operator.String(), Certificate: "bad"}
	for _, c := range s.Certificates {
		cert := certificateRow{Short: short(c.Thumbprint), NotAfter: c.NotAfter}
		switch {
		case c.RevokedAt != nil:
			cert.Kind, cert.State = "off", "suppliers.cert.revoked"
		case !now.Before(c.NotAfter):
			cert.Kind, cert.State = "off", "suppliers.cert.expired"
		case c.NotAfter.Sub(now) < expiresSoon:
			cert.Kind, cert.State = "warn", "suppliers.cert.soon"
		default:
			cert.Kind, cert.State = "ok", "suppliers.cert.ok"
		}
		row.Certificates = append(row.Certificates, cert)
		if cert.Kind == "off" {
			continue
		}
		if row.Ends == nil || c.NotAfter.After(*row.Ends) {
			row.Ends, row.Certificate = &cert.NotAfter, cert.Kind
		}
	}
	if n := s.Today.Requests; n > 0 {
		row.RefusedShare = (100*s.Today.Refused + n/2) / n
	}
	return row
}

// More says that there is more to tell of certificates than when the best one ends.
func (s supplierRow) More() bool { return len(s.Certificates) > 1 }

// short is enough of a thumbprint to tell certificates apart.
func short(thumbprint string) string {
	if len(thumbprint) > 12 {
		return thumbprint[:12]
	}
	return thumbprint
}

// supplierStepData is what templates/supplier-step.html shows.
type supplierStepData struct {
	supplierRow
	Step   string // suspend or resume
	Reason string
	Wrong  bool // the reason
}

// supplierStepPage answers GET /suppliers/{gln}/{step}: what it will change, before
// it is done.
func (p *Portal) supplierStepPage(w http.ResponseWriter, r *http.Request) error {
	d, err := p.supplierStepOf(r)
	if err != nil {
		return err
	}
	return p.page(w, r, "supplier-step", d)
}

func (p *Portal) supplierStepOf(r *http.Request) (*supplierStepData, error) {
	step, gln := chi.URLParam(r, "step"), chi.URLParam(r, "gln")
	if step != "suspend" && step != "resume" {
		return nil, errNoPage
	}
	list, err := p.suppliers(r)
	if err != nil {
		return nil, err
	}
	for _, s := range list.Suppliers {
		if string(s.Gln) == gln {
			return &supplierStepData{supplierRow: supplierRowOf(s, p.config.Operator, p.now()), Step: step}, nil
		}
	}
	return nil, errNoPage
}

// supplierStep answers POST /suppliers/{gln}/{step}. The version is the one that
// the page showed: when the record changed since, nothing is done.
func (p *Portal) supplierStep(w http.ResponseWriter, r *http.Request) error {
	reason := strings.TrimSpace(r.PostForm.Get("reason"))
	version, err := strconv.ParseUint(r.PostForm.Get("version"), 10, 32)
	if err != nil {
		return errForm
	}
	if !plainReason(reason) {
		d, err := p.supplierStepOf(r)
		if err != nil {
			return err
		}
		d.Reason, d.Wrong = reason, true
		return p.render(w, r, http.StatusUnprocessableEntity, "supplier-step", d)
	}
	gln, err := meter.ParseGLN(chi.URLParam(r, "gln"))
	if err != nil {
		return errNoPage
	}
	tag := fmt.Sprintf("%q", strconv.FormatUint(version, 10))
	switch chi.URLParam(r, "step") {
	case "suspend":
		res, err := p.API(r, ToSuspend(gln.String(), reason)).SuspendSupplierWithResponse(r.Context(), gln.String(), &client.SuspendSupplierParams{IfMatch: &tag})
		if err != nil {
			return err
		}
		if _, err := Given(res.JSON200, res.HTTPResponse, res.Body); err != nil {
			return err
		}
	case "resume":
		res, err := p.API(r, ToResume(gln.String(), reason)).ResumeSupplierWithResponse(r.Context(), gln.String(), &client.ResumeSupplierParams{IfMatch: &tag})
		if err != nil {
			return err
		}
		if _, err := Given(res.JSON200, res.HTTPResponse, res.Body); err != nil {
			return err
		}
	default:
		return errNoPage
	}
	http.Redirect(w, r, "/suppliers?"+url.Values{"changed": {gln.String()}}.Encode(), http.StatusSeeOther)
	return nil
}
