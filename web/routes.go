package web

import (
	"net/http"
	"slices"
)

// Role is what an employee may do, by the provider's word. The API decides
// again by the token, and a cryptoserver by itself.
type Role string

// The roles, as the words of the errand table in docs/STAFF.md.
const (
	Agent      Role = "agent"
	Supervisor Role = "supervisor"
	Auditor    Role = "auditor"
)

// Whom a route is for.
var (
	everyone   = []Role{} // signed in or not
	employees  = []Role{Agent, Supervisor, Auditor}
	servants   = []Role{Agent, Supervisor} // who serve customers
	supervisor = []Role{Supervisor}
	overseers  = []Role{Supervisor, Auditor}
)

// handler answers a request, or says why not: what it returns becomes a page in
// one place (problems.go).
type handler func(w http.ResponseWriter, r *http.Request) error

// route is one line of the table. A path below /c/{case} is of an open case,
// which the handler finds with visitOf(r).Case.
type route struct {
	method, path string
	roles        []Role
	handle       handler
	// quiet: asked by a page by itself, again and again. It is no click, and does
	// not keep a session alive.
	quiet bool
}

// routes is the table of all there is, and of whom it is for.
func (p *Portal) routes() []route {
	return slices.Concat(
		[]route{
			{"GET", "/healthz", everyone, p.healthz, true},
			{"GET", "/static/{name}", everyone, p.staticFile, true},
			{"GET", "/signin", everyone, p.signInPage, true},
			{"GET", "/login", everyone, p.login, true},
			{"GET", "/login/callback", everyone, p.loginCallback, true},
			{"POST", "/logout", everyone, p.logout, true},
			{"POST", "/logout/everywhere", employees, p.logoutEverywhere, false},
			{"POST", "/preferences", everyone, p.preferences, true},
			{"POST", "/session/stay", employees, p.stay, false},
		},
		p.findRoutes(),
		p.connectionRoutes(),
		p.accessRoutes(),
		p.logRoutes(),
		p.readingsRoutes(),
		p.statementRoutes(),
		p.consentsRoutes(),
		p.suppliersRoutes(),
		p.healthRoutes(),
		p.oversightRoutes(),
	)
}

// entry is a place in the navigation, shown to whom its route is for. Its word is
// the text "nav.NAME".
type entry struct{ name, path string }

// navigation is the main one, tabs that of an open case.
var (
	navigation = []entry{{"find", "/"}, {"suppliers", "/suppliers"}, {"health", "/health"}, {"oversight", "/oversight"}}
	tabs       = []entry{
		{"connection", "/c/{case}"}, {"access", "/c/{case}/access"}, {"log", "/c/{case}/log"}, {"readings", "/c/{case}/readings"},
		{"consents", "/c/{case}/consents"}, {"statement", "/c/{case}/statement"},
	}
)

// may says whether a route is there for a role.
func (p *Portal) may(role Role, path string) bool {
	return slices.ContainsFunc(p.table, func(rt route) bool {
		return rt.method == http.MethodGet && rt.path == path && slices.Contains(rt.roles, role)
	})
}
