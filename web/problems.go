package web

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/google/uuid"

	"kluis/openapi/client/kluis"
)

// failure is an error of the portal's own that has a page.
type failure struct {
	status int
	name   string // the texts problem.NAME and problem.NAME.do
}

func (f *failure) Error() string { return f.name }

// The failures that do not come of the API.
var (
	errSignIn      = &failure{http.StatusUnauthorized, "sign-in"}        // becomes the way to the sign-in page
	errSignInAgain = &failure{http.StatusUnauthorized, "sign-in-again"}  // likewise, straight to the provider
	errNoRights    = &failure{http.StatusForbidden, "no-rights"}         // the role is another
	errForeign     = &failure{http.StatusForbidden, "foreign"}           // sent by another site
	errHost        = &failure{http.StatusMisdirectedRequest, "host"}     // another name than ours
	errNoCase      = &failure{http.StatusNotFound, "no-case"}            // not of this session
	errNoPage      = &failure{http.StatusNotFound, "no-page"}            //
	errNoMethod    = &failure{http.StatusMethodNotAllowed, "no-method"}  //
	errForm        = &failure{http.StatusBadRequest, "form"}             // it cannot be read
	errSignInAway  = &failure{http.StatusServiceUnavailable, "idp-away"} // the provider does not answer
	errSignInBad   = &failure{http.StatusForbidden, "sign-in-failed"}    // what came of the provider is not accepted
	errNoRole      = &failure{http.StatusForbidden, "no-role"}           // the provider gives no role
	errSignInBusy  = &failure{http.StatusTooManyRequests, "idp-busy"}    // too many come back from the provider
	errTooFast     = &failure{http.StatusTooManyRequests, "too-fast"}    // more pages of one session than a person turns
)

// errSpent: an attempt was used before; it becomes errSignInBad.
var errSpent = errors.New("web: the attempt is spent")

// Problem is what a page says when it has nothing else to say, or of a part that
// is missing (partial "problem").
type Problem struct {
	Status      int
	Name        string // texts problem.NAME: what happened; problem.NAME.do: what to do
	Interaction string // of the API, for a support call
	Again       bool   // trying again can help
}

// problemOf says what an error is for who looks at the page.
func problemOf(err error) Problem {
	var f *failure
	var refused *kluis.TokenError
	var away *awayError
	switch api := kluis.AsProblem(err); {
	case errors.As(err, &f):
		return Problem{Status: f.status, Name: f.name, Again: f.status >= 500 || f == errTooFast}
	case api != nil:
		return apiProblem(api)
	case errors.As(err, &refused):
		return tokenProblem(refused)
	case errors.Is(err, context.DeadlineExceeded):
		return Problem{Status: http.StatusGatewayTimeout, Name: "deadline-exceeded", Again: true}
	case errors.As(err, &away):
		return Problem{Status: http.StatusServiceUnavailable, Name: "api-away", Again: true}
	}
	return Problem{Status: http.StatusInternalServerError, Name: "internal-error", Again: true}
}

func apiProblem(api *kluis.Problem) Problem {
	pr := Problem{Status: api.Status, Name: string(api.Slug()), Again: api.Temporary()}
	if api.InteractionId != uuid.Nil {
		pr.Interaction = api.InteractionId.String()
	}
	if _, known := allTexts["problem."+pr.Name]; !known {
		pr.Name = "internal-error"
	}
	switch {
	case pr.Status == http.StatusUnauthorized: // the browser is not who was refused
		pr.Status = http.StatusBadGateway
	case pr.Status < 400:
		pr.Status = http.StatusBadGateway
	}
	return pr
}

// tokenProblem says why the issuer gave no token (docs/STAFF.md, refusals).
func tokenProblem(e *kluis.TokenError) Problem {
	switch {
	case e.Code == "invalid_request" && (strings.Contains(e.Description, "expired") || tooLongAgo(e)):
		return Problem{Status: http.StatusUnauthorized, Name: "sign-in-again"}
	case e.Code == "invalid_authorization_details":
		return Problem{Status: http.StatusForbidden, Name: "errand-refused"}
	case e.Status >= 500 || e.Status == http.StatusTooManyRequests:
		return Problem{Status: http.StatusServiceUnavailable, Name: "issuer-away", Again: true}
	}
	return Problem{Status: http.StatusBadGateway, Name: "no-token"}
}

// tooLongAgo says whether a cryptoserver found that the person was asked too long
// ago (docs/STAFF.md, max_age).
func tooLongAgo(err error) bool {
	var refused *kluis.TokenError
	return errors.As(err, &refused) && strings.Contains(refused.Description, "signed_in_too_long_ago")
}

// fail answers with the page of an error.
func (p *Portal) fail(w http.ResponseWriter, r *http.Request, err error) {
	v := visitOf(r)
	pr := problemOf(err)
	v.failed = pr.Name
	var own *failure
	if !errors.As(err, &own) {
		v.cause = err
	}
	if v.status != 0 {
		return // the answer is under way
	}
	switch {
	case pr.Name == errSignIn.name:
		p.toSignIn(w, r, "/signin", url.Values{})
		return
	case pr.Name == errSignInAgain.name && tooLongAgo(err):
		// The provider's own session is as old: renewing by it would be refused
		// again, without end.
		p.toSignIn(w, r, "/login", url.Values{inPersonParam: {"yes"}})
		return
	case pr.Name == errSignInAgain.name:
		p.toSignIn(w, r, "/login", url.Values{})
		return
	}
	name := "problem"
	if r.Header.Get("HX-Request") != "" {
		name = "problem/part"
	}
	if err := p.render(w, r, pr.Status, name, pr); err != nil {
		v.cause = errors.Join(v.cause, err)
		if v.status == 0 {
			http.Error(w, http.StatusText(pr.Status), pr.Status)
		}
	}
}

// within is the problem of an error for a page that shows it itself, beside what was
// filled in; or the error, where nothing helps but signing in.
func (p *Portal) within(r *http.Request, err error) (*Problem, error) {
	pr := problemOf(err)
	if pr.Name == errSignIn.name || pr.Name == errSignInAgain.name {
		return nil, err
	}
	v := visitOf(r)
	v.failed, v.cause = pr.Name, errors.Join(v.cause, err)
	return &pr, nil
}

// toSignIn sends who must sign in there, and from there back to where they were.
func (p *Portal) toSignIn(w http.ResponseWriter, r *http.Request, to string, q url.Values) {
	back := "/"
	if r.Method == http.MethodGet && r.Header.Get("HX-Request") == "" {
		back = localPath(r.URL.Path)
	} else if v := visitOf(r); v.Case != nil {
		back = v.Case.Path("")
	}
	if back != "/" {
		q.Set("next", back)
	}
	if len(q) > 0 {
		to += "?" + q.Encode()
	}
	if r.Header.Get("HX-Request") != "" {
		w.Header().Set("HX-Redirect", to)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}

// longNumber may be a metering point.
var longNumber = regexp.MustCompile(`[0-9]{9,}`)

// logged is an error as it may stand in a log: what the API and the database said,
// and no numbers that could be somebody's.
func logged(err error) string { return longNumber.ReplaceAllString(err.Error(), "#") }
