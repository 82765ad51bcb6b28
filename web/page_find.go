package web

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
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
		{"GET", "/found/{search}", servants, p.foundPage, false},
	}
}

// findData is what templates/find.html shows.
type findData struct {
	Cases     []*Case
	ByAddress bool // there is a form for that

	EAN, Reason                          string            // as typed
	Postcode, HouseNumber, AddressReason string            // as typed, in the other form
	Errors                               map[string]string // text of the error, by field

	Found *client.FoundPoints // nil: nobody asked
	Asked string              // the address that was asked for
}

func (p *Portal) findPage(w http.ResponseWriter, r *http.Request) error {
	return p.showFind(w, r, http.StatusOK, findData{})
}

func (p *Portal) showFind(w http.ResponseWriter, r *http.Request, status int, d findData) (err error) {
	d.ByAddress = slices.Contains(servants, visitOf(r).Session.Role)
	if d.Cases, err = p.cases(r.Context(), visitOf(r).Session.id); err != nil {
		return err
	}
	return p.render(w, r, status, "find", d)
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
		return err
	}
	http.Redirect(w, r, c.Path(""), http.StatusSeeOther)
	return nil
}

// findByAddress answers POST /find: what is at an address. What was found is kept in
// the session and shown by a GET, so that who goes back to it asks nobody again;
// nothing of it is in an address.
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
	res, err := p.API(r, ToFind(postcode.String(), number.String(), d.AddressReason)).FindMeteringPointsWithResponse(r.Context(),
		client.FindMeteringPointsJSONRequestBody{Postcode: postcode.String(), HouseNumber: number.String()})
	if err != nil {
		return err
	}
	found, err := Given(res.JSON200, res.HTTPResponse, res.Body)
	if err != nil {
		return err
	}
	id := secret()
	s := search{ID: hex.EncodeToString(id[:]), Asked: postcode.String() + " " + number.String(), Reason: d.AddressReason, Found: found}
	if err := p.keepSearch(r, s); err != nil {
		return err
	}
	http.Redirect(w, r, "/found/"+s.ID, http.StatusSeeOther)
	return nil
}

// findAgain answers GET /find, where somebody who was refused tries again.
func (p *Portal) findAgain(w http.ResponseWriter, r *http.Request) error {
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

// foundPage answers GET /found/{search}: what the latest search found.
func (p *Portal) foundPage(w http.ResponseWriter, r *http.Request) error {
	s, err := p.latestSearch(r)
	if err != nil {
		return err
	}
	if s == nil || s.ID != chi.URLParam(r, "search") {
		return p.findAgain(w, r)
	}
	return p.showFind(w, r, http.StatusOK, findData{Found: s.Found, Asked: s.Asked, AddressReason: s.Reason})
}

// search is what was found at an address, for which reason. It is personal data, and
// sealed in the session like all that is there.
type search struct {
	ID     string              `json:"id"`
	Asked  string              `json:"asked"`
	Reason string              `json:"reason"`
	Found  *client.FoundPoints `json:"found"`
}

// searchKey is where the latest search stands in a session's values.
const searchKey = "search"

func (p *Portal) keepSearch(r *http.Request, s search) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	ctx, err := p.sessionContext(r)
	if err != nil {
		return err
	}
	p.sessions.Put(ctx, searchKey, raw)
	_, _, err = p.sessions.Commit(ctx)
	return err
}

// latestSearch is nil where there was none.
func (p *Portal) latestSearch(r *http.Request) (*search, error) {
	ctx, err := p.sessionContext(r)
	if err != nil {
		return nil, err
	}
	raw := p.sessions.GetBytes(ctx, searchKey)
	if raw == nil {
		return nil, nil
	}
	s := &search{}
	return s, json.Unmarshal(raw, s)
}

// sessionContext holds the values of a request's session.
func (p *Portal) sessionContext(r *http.Request) (context.Context, error) {
	c, err := r.Cookie(cookieName)
	if err != nil {
		return nil, errSignIn
	}
	return p.sessions.Load(r.Context(), c.Value)
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
