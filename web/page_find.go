package web

import (
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"

	"kluis/meter"
)

// findRoutes are those of templates/find.html: where every call begins.
func (p *Portal) findRoutes() []route {
	return []route{
		{"GET", "/", employees, p.findPage, false},
		{"POST", "/open", employees, p.openPage, false},
	}
}

// findData is what templates/find.html shows.
type findData struct {
	Cases  []*Case
	EAN    string            // as typed
	Reason string            // as typed
	Errors map[string]string // text of the error, by field
}

func (p *Portal) findPage(w http.ResponseWriter, r *http.Request) error {
	return p.showFind(w, r, http.StatusOK, findData{})
}

func (p *Portal) showFind(w http.ResponseWriter, r *http.Request, status int, d findData) (err error) {
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
