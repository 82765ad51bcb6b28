package web

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"kluis/meter"
	"kluis/openapi/client"
	"kluis/openapi/client/kluis"
)

// proofData is what templates/proof.html shows.
type proofData struct {
	Interaction string
	Path        string // of the page of this proof
	Query       string
	Log         string   // the way back
	Proven      *proven  // nil: see the others
	Says        *logLine // the record itself, where it was checked whole
	Differs     bool     // from the line that the proof was asked for
	Problem     *Problem // there is none, or none yet
	Failed      bool     // what is there does not check

	answer *client.AccessProof
}

// proofPage answers GET …/log/{interaction}/proof: as a page, and for htmx as a part
// of the row.
func (p *Portal) proofPage(w http.ResponseWriter, r *http.Request) error {
	d, err := p.askProof(r)
	if err != nil {
		return err
	}
	return p.showProof(w, r, d)
}

func (p *Portal) showProof(w http.ResponseWriter, r *http.Request, d *proofData) error {
	if r.Header.Get("HX-Request") != "" {
		return p.part(w, r, "proof", "proof", d)
	}
	return p.page(w, r, "proof", d)
}

// askProof asks for the proof of an entry, and checks it.
func (p *Portal) askProof(r *http.Request) (*proofData, error) {
	c := visitOf(r).Case
	id, err := uuid.Parse(chi.URLParam(r, "interaction"))
	if err != nil {
		return nil, errNoPage
	}
	f := logFilter{Occupancy: r.URL.Query().Get("occupancy")}
	line := r.URL.Query().Get("line")
	d := &proofData{Interaction: id.String(), Path: c.Path("/log/" + id.String() + "/proof"), Query: f.proofQuery(line), Log: c.Path("/log") + f.Query()}
	params := &client.GetAccessProofParams{}
	if f.Occupancy != "" {
		day, err := meter.ParseDay(f.Occupancy)
		if err != nil {
			return nil, errNoPage
		}
		params.Occupancy = apiDay(day)
	}
	res, err := p.API(r, ToView(c)).GetAccessProofWithResponse(r.Context(), c.EAN.String(), id, params)
	if err == nil {
		d.answer, err = Given(res.JSON200, res.HTTPResponse, res.Body)
	}
	if kluis.AsProblem(err) != nil { // as a rule: there is none yet
		pr := problemOf(err)
		d.Problem = &pr
		return d, nil
	}
	if err != nil {
		d.Problem, err = p.within(r, err)
		return d, err
	}
	found, err := checkProof(d.answer, id, c.EAN, p.config.AuditOrigin, p.config.AuditKeys, p.profile)
	if err != nil {
		p.log.Error("a proof of an access record does not check", "interactionId", d.Interaction, "error", err)
		d.Failed = true
		return d, nil
	}
	d.Proven = &found
	if found.Record == nil {
		return d, nil
	}
	l := logLineOf(found.Record, p.profile)
	d.Says, d.Differs = &l, line != "" && !hmac.Equal([]byte(line), []byte(p.said(l)))
	if d.Differs {
		p.log.Error("an entry of the access log is not what its record says", "interactionId", d.Interaction)
	}
	return d, nil
}

// said is a digest of what a line of the log says, but the party's name. It goes with
// the question for the proof, which so covers what was shown. It is keyed: a line can
// be guessed.
func (p *Portal) said(l logLine) string {
	l.Name, l.At = "", l.At.UTC()
	if l.AsOf != nil {
		at := l.AsOf.UTC()
		l.AsOf = &at
	}
	l.Given, l.Withheld = slices.Clone(l.Given), slices.Clone(l.Withheld)
	slices.SortFunc(l.Given, func(a, b givenDays) int {
		return cmp.Or(cmp.Compare(a.Class, b.Class), cmp.Compare(a.Granularity, b.Granularity), cmp.Compare(a.Basis, b.Basis))
	})
	slices.SortFunc(l.Withheld, func(a, b withheldDays) int { return cmp.Compare(a.Reason, b.Reason) })
	raw, err := json.Marshal(l)
	if err != nil {
		panic(err) // numbers, texts and times
	}
	m := hmac.New(sha256.New, derived(p.config.SessionKey, "line"))
	m.Write(raw)
	return hex.EncodeToString(m.Sum(nil)[:16])
}

// proofQuery is of the page of a proof: whose log it is, and what its line said.
func (f logFilter) proofQuery(line string) string {
	q := logFilter{Occupancy: f.Occupancy}.query()
	if line != "" {
		q.Set("line", line)
	}
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

// proofDownload answers GET …/log/{interaction}/proof/file: the proof for
// cmd/auditproof, where it checks and is whole; else the page that says why not.
func (p *Portal) proofDownload(w http.ResponseWriter, r *http.Request) error {
	d, err := p.askProof(r)
	if err != nil {
		return err
	}
	if d.Proven == nil || !d.Proven.Whole {
		return p.showProof(w, r, d)
	}
	raw, err := json.MarshalIndent(fileOf(d.answer), "", "  ")
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Disposition", `attachment; filename="proof-`+d.Interaction+`.json"`)
	_, err = w.Write(append(raw, '\n'))
	return err
}
