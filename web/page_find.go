package web

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"

	"kluis/meter"
	"kluis/openapi/client"
)

// findRoutes are those of templates/find.html: where every call begins.
func (p *Portal) findRoutes() []route {
	return []route{
		{"GET", "/", employees, p.findPage, false},
		{"POST", "/open", employees, p.openPage, false},
		{"POST", "/find", servants, p.findByAddress, false},
		{"GET", "/find", servants, p.findAgain, false},
		{"GET", "/open", employees, p.findAgain, false},
		{"GET", "/found/{search}", servants, p.foundPage, false},
	}
}

// findData is what templates/find.html shows.
type findData struct {
	Cases        []*Case
	CasesMissing *Problem
	ByAddress    bool // there is a form for that

	EAN, Reason                          string            // as typed
	Postcode, HouseNumber, AddressReason string            // as typed, in the other form
	Errors                               map[string]string // text of the error, by field
	Problem                              *Problem          // beside the forms, which stay as they were filled in

	Found *client.FoundPoints // nil: nobody asked
	Asked string              // the address that was asked for
}

func (p *Portal) findPage(w http.ResponseWriter, r *http.Request) error {
	return p.showFind(w, r, http.StatusOK, findData{})
}

func (p *Portal) showFind(w http.ResponseWriter, r *http.Request, status int, d findData) (err error) {
	d.ByAddress = slices.Contains(servants, visitOf(r).Session.Role)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), casesTimeout) // what went wrong may be that it took too long
	defer cancel()
	if d.Cases, err = p.cases(ctx, visitOf(r).Session.id); err != nil {
		d.Cases = nil
		if d.CasesMissing, err = p.within(r, err); err != nil {
			return err
		}
	}
	return p.render(w, r, status, "find", d)
}

const casesTimeout = 5 * time.Second

// notFound shows why nothing was opened or found, and the forms as they were filled
// in.
func (p *Portal) notFound(w http.ResponseWriter, r *http.Request, d findData, err error) error {
	if d.Problem, err = p.within(r, err); err != nil {
		return err
	}
	return p.showFind(w, r, d.Problem.Status, d)
}

// openPage answers POST /open: it opens a case, or says what is wrong.
func (p *Portal) openPage(w http.ResponseWriter, r *http.Request) error {
	d := findData{EAN: r.PostForm.Get("ean"), Reason: strings.TrimSpace(r.PostForm.Get("reason")), Errors: map[string]string{}}
	ean, err := meter.ParseEAN(digits(d.EAN))
	if err != nil {
		d.Errors["ean"] = "find.ean.wrong"
	}
	if !plainReason(d.Reason) {
		d.Errors["reason"] = "find.reason.wrong"
	}
	if len(d.Errors) > 0 {
		return p.showFind(w, r, http.StatusUnprocessableEntity, d)
	}
	c, err := p.openCase(r, ean, d.Reason)
	if err != nil {
		return p.notFound(w, r, d, err)
	}
	http.Redirect(w, r, c.Path(""), http.StatusSeeOther)
	return nil
}

// findByAddress answers POST /find: what is at an address. What was found is shown by
// a GET, so that who goes back to it resends no form; nothing of it is in an address.
func (p *Portal) findByAddress(w http.ResponseWriter, r *http.Request) error {
	d := findData{Postcode: strings.TrimSpace(r.PostForm.Get("postcode")), HouseNumber: strings.TrimSpace(r.PostForm.Get("house_number")),
		AddressReason: strings.TrimSpace(r.PostForm.Get("reason")), Errors: map[string]string{}}
	postcode, err := p.profile.ParsePostcode(strings.ToUpper(digits(d.Postcode)))
	if err != nil {
		d.Errors["postcode"] = "find.postcode.wrong"
	}
	number, err := meter.ParseHouseNumber(leading(d.HouseNumber))
	if err != nil {
		d.Errors["house_number"] = "find.number.wrong"
	}
	if !plainReason(d.AddressReason) {
		d.Errors["address_reason"] = "find.reason.wrong"
	}
	if len(d.Errors) > 0 {
		return p.showFind(w, r, http.StatusUnprocessableEntity, d)
	}
	id := secret()
	q := question{ID: hex.EncodeToString(id[:]), Postcode: postcode.String(), Number: number.String(), Reason: d.AddressReason, Until: p.now().Add(searchLife)}
	if _, err := p.search(r, q); err != nil {
		return p.notFound(w, r, d, err)
	}
	if err := p.giveQuestion(w, r, q); err != nil {
		return err
	}
	http.Redirect(w, r, "/found/"+q.ID, http.StatusSeeOther)
	return nil
}

// findAgain answers GET /find and GET /open, where somebody who was refused tries
// again or changes the language.
func (p *Portal) findAgain(w http.ResponseWriter, r *http.Request) error {
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

// foundPage answers GET /found/{search}: what the latest search found. Another portal
// than the one that searched asks once more.
func (p *Portal) foundPage(w http.ResponseWriter, r *http.Request) error {
	id, now := chi.URLParam(r, "search"), p.now()
	s := p.errands.found(visitOf(r).Session.id, id, now)
	if s == nil {
		q := p.questionOf(r)
		if q == nil || q.ID != id || !now.Before(q.Until) {
			return p.findAgain(w, r)
		}
		var err error
		if s, err = p.search(r, *q); err != nil {
			return p.notFound(w, r, findData{Postcode: q.Postcode, HouseNumber: q.Number, AddressReason: q.Reason}, err)
		}
	}
	return p.showFind(w, r, http.StatusOK, findData{Found: s.answer, Asked: s.Postcode + " " + s.Number, AddressReason: s.Reason})
}

// searchLife is how long what was found can be gone back to: as long as the token
// that it was asked with.
const searchLife = 5 * time.Minute

// question is what was searched for. The browser has it, sealed, for its session.
type question struct {
	ID       string    `json:"id"`
	Postcode string    `json:"postcode"`
	Number   string    `json:"number"`
	Reason   string    `json:"reason"`
	Until    time.Time `json:"until"`
}

// search is a question with its answer, in memory only, like tokens.
type search struct {
	question
	answer *client.FoundPoints
}

// search asks the API, and keeps the answer for who goes back to it.
func (p *Portal) search(r *http.Request, q question) (*search, error) {
	res, err := p.API(r, ToFind(q.Postcode, q.Number, q.Reason)).FindMeteringPointsWithResponse(r.Context(),
		client.FindMeteringPointsJSONRequestBody{Postcode: q.Postcode, HouseNumber: q.Number})
	if err != nil {
		return nil, err
	}
	s := &search{question: q}
	if s.answer, err = Given(res.JSON200, res.HTTPResponse, res.Body); err != nil {
		return nil, err
	}
	p.errands.keep(visitOf(r).Session.id, s)
	return s, nil
}

const searchCookie = "__Host-kluis-search"

func (p *Portal) giveQuestion(w http.ResponseWriter, r *http.Request, q question) error {
	raw, err := json.Marshal(q)
	if err != nil {
		return err
	}
	sealed := p.sealed("search", visitOf(r).Session.id, raw)
	http.SetCookie(w, &http.Cookie{Name: searchCookie, Value: base64.RawURLEncoding.EncodeToString(sealed), Path: "/",
		MaxAge: int(searchLife / time.Second), Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	return nil
}

// questionOf is the latest question of the session; nil for none, and for what was
// sealed for another session.
func (p *Portal) questionOf(r *http.Request) *question {
	c, err := r.Cookie(searchCookie)
	if err != nil {
		return nil
	}
	sealed, err := base64.RawURLEncoding.DecodeString(c.Value)
	if err != nil {
		return nil
	}
	raw, err := p.open("search", visitOf(r).Session.id, sealed)
	if err != nil {
		return nil
	}
	q := &question{}
	if err := json.Unmarshal(raw, q); err != nil {
		return nil
	}
	return q
}

// leading are the digits that a house number begins with: what follows is its
// addition, which is not searched for.
func leading(s string) string {
	return s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
}

// digits leaves out what people set between groups of digits.
func digits(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || r == '.' || r == '-' {
			return -1
		}
		return r
	}, s)
}

// plainReason says whether the issuer would take it: one line of printable
// characters, 128 bytes at most.
func plainReason(s string) bool {
	if s == "" || len(s) > maxReason || !utf8.ValidString(s) || strings.TrimSpace(s) != s {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
