package web

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"kluis/meter"
	"kluis/openapi/client"
)

// consentsRoutes are those of templates/consents.html, consent-step.html and
// consent-new.html.
func (p *Portal) consentsRoutes() []route {
	return []route{
		{"GET", "/c/{case}/consents", employees, p.consentsPage, false},
		{"GET", "/c/{case}/consents/new", servants, p.newConsentPage, false},
		{"POST", "/c/{case}/consents/new", servants, p.newConsent, false},
		{"GET", "/c/{case}/consents/{id}/{step}", servants, p.consentStepPage, false},
		{"POST", "/c/{case}/consents/{id}/{step}", servants, p.consentStep, false},
	}
}

// consentsData is what templates/consents.html shows.
type consentsData struct {
	Open, Active, Ended []consentRow
	Changed             *consentRow // by a step just taken
	Before              *consentRow // by somebody else, before the step that was to be taken
	MayStep             bool
	NamesMissing        bool // the connection could not be asked: suppliers have numbers only
}

// consentRow is a consent with the names that go with it.
type consentRow struct {
	client.Consent
	SupplierName string
	Kind         string     // of the badge of its state
	LastDay      *meter.Day // that may be read, included; nil: open
	AnswerBy     *time.Time
}

func (p *Portal) consentsPage(w http.ResponseWriter, r *http.Request) error {
	list, names, err := p.consentsOf(r)
	if err != nil {
		return err
	}
	d := sortConsents(list.Consents, names)
	d.MayStep = slices.Contains(servants, visitOf(r).Session.Role)
	d.NamesMissing = names == nil
	find := func(query string) *consentRow {
		id, err := uuid.Parse(r.URL.Query().Get(query))
		for _, c := range list.Consents {
			if err == nil && c.Id == id {
				row := consentRowOf(c, names)
				return &row
			}
		}
		return nil
	}
	d.Changed, d.Before = find("changed"), find("before")
	return p.page(w, r, "consents", d)
}

// consentsOf asks for the consents and, at the same time, for the suppliers' names;
// these can be done without, and are nil then.
func (p *Portal) consentsOf(r *http.Request) (list *client.Consents, names map[string]string, err error) {
	c := visitOf(r).Case
	api := p.API(r, ToView(c))
	g := p.group(r)
	g.Go(func() error {
		res, err := api.ListConsentsWithResponse(r.Context(), c.EAN.String(), &client.ListConsentsParams{})
		if err != nil {
			return err
		}
		list, err = Given(res.JSON200, res.HTTPResponse, res.Body)
		return err
	})
	g.Go(func() error {
		if suppliers, err := p.askConnection(r); err == nil {
			names = namesOf(suppliers)
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	return list, names, nil
}

// askConnection asks for the connection of a case, without who lives there: a name
// and address are decrypted, and that is in the customer's log, where a page shows
// them.
func (p *Portal) askConnection(r *http.Request) (*client.Connection, error) {
	return p.getConnection(r, false)
}

// askConnectionAndIdentity asks for the name and address too.
func (p *Portal) askConnectionAndIdentity(r *http.Request) (*client.Connection, error) {
	return p.getConnection(r, true)
}

func (p *Portal) getConnection(r *http.Request, identity bool) (*client.Connection, error) {
	c := visitOf(r).Case
	res, err := p.API(r, ToView(c)).GetConnectionWithResponse(r.Context(), c.EAN.String(), &client.GetConnectionParams{Identity: &identity})
	if err != nil {
		return nil, err
	}
	return Given(res.JSON200, res.HTTPResponse, res.Body)
}

func namesOf(c *client.Connection) map[string]string {
	names := map[string]string{}
	for _, s := range c.Suppliers {
		if s.Name != nil {
			names[s.Gln] = *s.Name
		}
	}
	return names
}

// sortConsents parts them by what can be done: those that wait for an answer,
// those in force, and those of the past.
func sortConsents(list []client.Consent, names map[string]string) consentsData {
	var d consentsData
	for _, c := range list {
		row := consentRowOf(c, names)
		switch c.State {
		case client.ConsentStateREQUESTED:
			d.Open = append(d.Open, row)
		case client.ConsentStateACTIVE:
			d.Active = append(d.Active, row)
		default:
			d.Ended = append(d.Ended, row)
		}
	}
	return d
}

func consentRowOf(c client.Consent, names map[string]string) consentRow {
	row := consentRow{Consent: c, SupplierName: names[c.Supplier], Kind: "off", AnswerBy: c.AnswerBy}
	switch c.State {
	case client.ConsentStateREQUESTED:
		row.Kind = "warn"
	case client.ConsentStateACTIVE:
		row.Kind = "ok"
	}
	if c.To != nil {
		last := localDay(*c.To) - 1
		row.LastDay = &last
	}
	return row
}

// consentStepData is what templates/consent-step.html shows.
type consentStepData struct {
	consentRow
	Step    string // grant, reject or revoke
	Filled  string // evidence, as it was filled in
	Wrong   bool   // that
	Tag     string // of the consent as it is shown
	Key     string // makes sending the form twice harmless
	Preview *changes
	Missing *Problem // instead of the preview
}

// consentStepPage answers GET …/{id}/{step}: the consent in plain words, and what
// the step will change.
func (p *Portal) consentStepPage(w http.ResponseWriter, r *http.Request) error {
	d, err := p.consentStepOf(r)
	if err != nil {
		return err
	}
	return p.page(w, r, "consent-step", d)
}

func (p *Portal) consentStepOf(r *http.Request) (*consentStepData, error) {
	step, id, err := stepOf(r)
	if err != nil {
		return nil, err
	}
	c := visitOf(r).Case
	d := &consentStepData{Step: step, Key: newKey()}
	var names map[string]string
	g := p.group(r)
	g.Go(func() error {
		res, err := p.API(r, ToView(c)).GetConsentWithResponse(r.Context(), id)
		if err != nil {
			return err
		}
		consent, err := Given(res.JSON200, res.HTTPResponse, res.Body)
		if err != nil {
			return err
		}
		d.Consent, d.Tag = *consent, res.HTTPResponse.Header.Get("ETag")
		return nil
	})
	g.Go(func() error {
		if suppliers, err := p.askConnection(r); err == nil {
			names = namesOf(suppliers)
		}
		return nil
	})
	g.Go(func() error {
		d.Preview, d.Missing = p.preview(r, client.ConsentPreviewQuery{Ean: c.EAN.String(), Step: client.ConsentPreviewQueryStep(step), ConsentId: &id})
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	d.consentRow = consentRowOf(d.Consent, names)
	return d, nil
}

// preview asks what a step would change; where that cannot be had, the step can be
// taken all the same, and the page says so.
func (p *Portal) preview(r *http.Request, q client.ConsentPreviewQuery) (*changes, *Problem) {
	res, err := p.API(r, ToView(visitOf(r).Case)).PreviewConsentWithResponse(r.Context(), q)
	if err == nil {
		var preview *client.ConsentPreview
		if preview, err = Given(res.JSON200, res.HTTPResponse, res.Body); err == nil {
			return changesOf(preview, p.profile), nil
		}
	}
	pr := problemOf(err)
	return nil, &pr
}

func stepOf(r *http.Request) (step string, id uuid.UUID, err error) {
	step = chi.URLParam(r, "step")
	if step != "grant" && step != "reject" && step != "revoke" {
		return "", uuid.Nil, errNoPage
	}
	if id, err = uuid.Parse(chi.URLParam(r, "id")); err != nil {
		return "", uuid.Nil, errNoPage
	}
	return step, id, nil
}

// consentStep answers POST …/{id}/{step}. Tag and digest are those of what was
// shown: if anything of it changed since, nothing is done.
func (p *Portal) consentStep(w http.ResponseWriter, r *http.Request) error {
	step, id, err := stepOf(r)
	if err != nil {
		return err
	}
	tag, key, digest := r.PostForm.Get("tag"), r.PostForm.Get("key"), r.PostForm.Get("digest")
	evidence := strings.TrimSpace(r.PostForm.Get("evidence"))
	if tag == "" || key == "" || digest == "" {
		return errForm
	}
	if step != "grant" {
		evidence = ""
	} else if !plainReason(evidence) {
		d, err := p.consentStepOf(r)
		if err != nil {
			return err
		}
		d.Filled, d.Wrong = evidence, true
		return p.render(w, r, http.StatusUnprocessableEntity, "consent-step", d)
	}
	c := visitOf(r).Case
	api := p.API(r, ToStep(c, step, id.String(), digest, evidence))
	switch step {
	case "grant":
		res, err := api.GrantConsentWithResponse(r.Context(), id, &client.GrantConsentParams{IdempotencyKey: key, IfMatch: &tag}, client.ConsentAnswer{Evidence: evidence})
		if err != nil {
			return err
		}
		_, err = Given(res.JSON200, res.HTTPResponse, res.Body)
		return p.afterStep(w, r, id, err)
	case "reject":
		res, err := api.RejectConsentWithResponse(r.Context(), id, &client.RejectConsentParams{IdempotencyKey: key, IfMatch: &tag})
		if err != nil {
			return err
		}
		_, err = Given(res.JSON200, res.HTTPResponse, res.Body)
		return p.afterStep(w, r, id, err)
	default:
		res, err := api.RevokeConsentWithResponse(r.Context(), id, &client.RevokeConsentParams{IdempotencyKey: key, IfMatch: &tag})
		if err != nil {
			return err
		}
		_, err = Given(res.JSON200, res.HTTPResponse, res.Body)
		return p.afterStep(w, r, id, err)
	}
}

// afterStep goes to where the effect is to be seen, or says why there is none.
func (p *Portal) afterStep(w http.ResponseWriter, r *http.Request, id uuid.UUID, err error) error {
	what := "changed"
	if err != nil {
		switch problemOf(err).Name {
		case "precondition-failed", "consent-answered", "consent-lapsed", "consent-ended":
			what = "before" // somebody was quicker: what it is now says it best
		default:
			return err
		}
	}
	http.Redirect(w, r, visitOf(r).Case.Path("/consents?"+what+"="+id.String()), http.StatusSeeOther)
	return nil
}

// newKey is an idempotency key.
func newKey() string {
	s := secret()
	return hex.EncodeToString(s[:])
}

// newConsentData is what templates/consent-new.html shows: the form, or what it
// will change.
type newConsentData struct {
	consentForm
	Suppliers []client.SupplierName // that may be chosen: they supply
	Errors    map[string]string     // texts, by field
	Earliest  string                // first day that can be read
	Latest    string                // last day on which a consent can end
	Confirm   bool                  // shown is what was filled in, to be confirmed
	Key       string
	New       client.NewConsent
	LastDay   *meter.Day
	UntilDay  meter.Day // last day on which it holds
	Name      string    // of the supplier
	Preview   *changes
	Missing   *Problem
}

// consentForm is the form as it was filled in.
type consentForm struct {
	Supplier, Granularity, From, To, Until, Evidence string
	Classes                                          []string
}

// Granularities are those that can be chosen, finest first.
func (newConsentData) Granularities() []string { return []string{"PT15M", "PT1H", "P1D", "P1M"} }

// Has says whether a class is chosen.
func (f consentForm) Has(class string) bool { return slices.Contains(f.Classes, class) }

func (p *Portal) newConsentPage(w http.ResponseWriter, r *http.Request) error {
	today := meter.DayOf(p.now(), p.profile.Location())
	d, err := p.newConsentOf(r)
	if err != nil {
		return err
	}
	d.consentForm = consentForm{Classes: []string{"intervals"}, Granularity: "PT15M", From: today.String(), Until: (today.AddMonths(12) - 1).String()}
	if len(d.Suppliers) == 1 {
		d.Supplier = d.Suppliers[0].Gln
	}
	return p.page(w, r, "consent-new", d)
}

func (p *Portal) newConsentOf(r *http.Request) (*newConsentData, error) {
	suppliers, err := p.askConnection(r)
	if err != nil {
		return nil, err
	}
	today := meter.DayOf(p.now(), p.profile.Location())
	return &newConsentData{
		Suppliers: supplying(suppliers, today), Key: newKey(), Errors: map[string]string{},
		Earliest: today.AddMonths(-p.profile.RetentionMonths()).String(), Latest: (p.profile.ConsentTerms().LongestUntil(today) - 1).String(),
	}, nil
}

// supplying are the suppliers of today and of days to come: others may be given
// nothing on a consent.
func supplying(c *client.Connection, today meter.Day) []client.SupplierName {
	var out []client.SupplierName
	for _, s := range c.Suppliers {
		if slices.ContainsFunc(c.Supply, func(x client.SupplyPeriod) bool {
			return x.Supplier == s.Gln && (x.To == nil || localDay(*x.To) > today)
		}) {
			out = append(out, s)
		}
	}
	return out
}

// newConsent answers POST …/consents/new: first what it will change, then, when
// that was confirmed, it is done.
func (p *Portal) newConsent(w http.ResponseWriter, r *http.Request) error {
	f := consentForm{
		Supplier: r.PostForm.Get("supplier"), Granularity: r.PostForm.Get("granularity"), Classes: r.PostForm["classes"],
		From: r.PostForm.Get("from"), To: r.PostForm.Get("to"), Until: r.PostForm.Get("until"), Evidence: strings.TrimSpace(r.PostForm.Get("evidence")),
	}
	c := visitOf(r).Case
	n, errs := f.parse(c.EAN, p.profile)
	if len(errs) == 0 && r.PostForm.Get("confirmed") != "" {
		key := r.PostForm.Get("key")
		if key == "" {
			return errForm
		}
		res, err := p.API(r, ToRegister(c, scopeDigest(n), n.Evidence)).CreateConsentWithResponse(r.Context(), &client.CreateConsentParams{IdempotencyKey: key}, n)
		if err != nil {
			return err
		}
		made, err := Given(res.JSON201, res.HTTPResponse, res.Body)
		if err != nil {
			return err
		}
		return p.afterStep(w, r, made.Id, nil)
	}
	d, err := p.newConsentOf(r)
	if err != nil {
		return err
	}
	d.consentForm, d.Errors = f, errs
	if len(errs) > 0 {
		return p.render(w, r, http.StatusUnprocessableEntity, "consent-new", d)
	}
	d.Confirm, d.New = true, n
	d.UntilDay = meter.DayOf(n.ValidUntil, p.profile.Location()) - 1
	if n.To != nil {
		last := localDay(*n.To) - 1
		d.LastDay = &last
	}
	for _, s := range d.Suppliers {
		if s.Gln == f.Supplier && s.Name != nil {
			d.Name = *s.Name
		}
	}
	d.Preview, d.Missing = p.preview(r, client.ConsentPreviewQuery{Ean: c.EAN.String(), Step: client.PreviewRegister, NewConsent: &n})
	if d.Preview != nil && !d.Preview.Allowed {
		d.Confirm = false
		return p.render(w, r, http.StatusUnprocessableEntity, "consent-new", d)
	}
	return p.page(w, r, "consent-new", d)
}

// parse makes a consent of the form, or says by field what is wrong (texts). Days
// that people fill in are included: "up to and with".
func (f consentForm) parse(ean meter.EAN, profile *meter.Profile) (client.NewConsent, map[string]string) {
	errs := map[string]string{}
	n := client.NewConsent{Ean: ean.String(), Purpose: client.PurposeENERGYMANAGEMENT, Granularity: client.Resolution(f.Granularity), Evidence: f.Evidence}
	if gln, err := meter.ParseGLN(f.Supplier); err != nil {
		errs["supplier"] = "consent-new.supplier.wrong"
	} else {
		s := gln.String()
		n.Supplier = &s
	}
	for _, class := range []client.FieldClass{client.Registers, client.Intervals} { // in this order in the digest
		if f.Has(string(class)) {
			n.Classes = append(n.Classes, class)
		}
	}
	if len(n.Classes) == 0 || len(n.Classes) != len(f.Classes) {
		errs["classes"] = "consent-new.classes.wrong"
	}
	if !n.Granularity.Valid() {
		errs["granularity"] = "consent-new.granularity.wrong"
	}
	from, err := meter.ParseDay(f.From)
	if err != nil {
		errs["from"] = "consent-new.day.wrong"
	}
	n.From = *apiDay(from)
	if f.To != "" {
		to, err := meter.ParseDay(f.To)
		switch {
		case err != nil:
			errs["to"] = "consent-new.day.wrong"
		case to < from:
			errs["to"] = "consent-new.to.wrong"
		}
		n.To = apiDay(to + 1)
	}
	until, err := meter.ParseDay(f.Until)
	if err != nil {
		errs["until"] = "consent-new.day.wrong"
	}
	n.ValidUntil = (until + 1).Start(profile.Location()).UTC()
	if !plainReason(f.Evidence) {
		errs["evidence"] = "consent-new.evidence.wrong"
	}
	return n, errs
}

// scopeDigest is the digest of a consent's scope, as docs/CONSENT.md says.
func scopeDigest(n client.NewConsent) [32]byte {
	var classes []string
	for _, c := range n.Classes {
		classes = append(classes, string(c))
	}
	to := ""
	if n.To != nil {
		to = n.To.String()
	}
	return sha256.Sum256([]byte(strings.Join([]string{
		"kluis/consent-scope/1", n.Ean, *n.Supplier, string(n.Purpose), strings.Join(classes, ","), string(n.Granularity),
		n.From.String(), to, n.ValidUntil.UTC().Format(time.RFC3339), n.Evidence, "",
	}, "\n")))
}

// changes is what a step does to what a supplier may read.
type changes struct {
	Allowed bool
	Why     *Problem // it is not allowed
	Lines   []change
	None    bool // the step changes nothing that may be read
}

// change is a line: something that may be read, and whether it stays so.
type change struct {
	Class       string
	Granularity client.Resolution
	Basis       client.LegalBasis
	Purpose     client.Purpose
	From        meter.Day
	To          meter.Day // included
	State       string    // same, new or gone
}

// changesOf compares before and after, field by field, and tells it by class: a
// customer cares for neither tariff nor direction here.
func changesOf(v *client.ConsentPreview, profile *meter.Profile) *changes {
	lines := func(list []client.AccessGranted) map[change]bool {
		out := map[change]bool{}
		for _, g := range list {
			class := ""
			if f, ok := profile.Field(g.Field); ok {
				class = f.Class.String()
			}
			out[change{Class: class, Granularity: g.Granularity, Basis: g.LegalBasis, Purpose: g.Purpose, From: localDay(g.From), To: localDay(g.To) - 1}] = true
		}
		return out
	}
	before, after := lines(v.Before), lines(v.After)
	d := &changes{Allowed: v.Allowed, None: true}
	add := func(c change, state string) {
		c.State = state
		d.Lines = append(d.Lines, c)
		d.None = d.None && state == "same"
	}
	for c := range after {
		if before[c] {
			add(c, "same")
		} else {
			add(c, "new")
		}
	}
	for c := range before {
		if !after[c] {
			add(c, "gone")
		}
	}
	order := map[string]int{"gone": 0, "new": 1, "same": 2}
	slices.SortFunc(d.Lines, func(a, b change) int {
		return cmp.Or(cmp.Compare(order[a.State], order[b.State]), cmp.Compare(a.Purpose, b.Purpose), cmp.Compare(b.Class, a.Class), cmp.Compare(a.From, b.From), cmp.Compare(a.Basis, b.Basis))
	})
	if !v.Allowed {
		d.Why = &Problem{Status: http.StatusConflict, Name: "not-permitted"}
		if v.Why != nil {
			d.Why.Name = *v.Why
		}
		if _, known := allTexts["problem."+d.Why.Name]; !known {
			d.Why.Name = "not-permitted"
		}
	}
	return d
}
