package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/internal/authn"
	"kluis/meter"
	"kluis/openapi"
)

// Every operation as every caller: each gets in, or is refused, exactly as the
// contract's table says, which stands here once more.
func TestEveryOperationAsEveryCaller(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	w.fill(e)
	k, _ := w.request(w.a, e, nil)
	consent := "/v1/consents/" + k.Id.String()
	f := w.form(e, form{"supplier": w.a.gln.String(), "evidence": "call-1"})
	register := authz.Errand{Kind: authz.ErrandStep, EAN: e, Action: authz.ActionRegister, Scope: f.scope(e, w.a.gln), Evidence: "call-1"}
	stale := []string{"If-Match", `"stale"`}
	other := w.b.gln
	all := "readings view step find oversee supplier"

	type operation struct {
		id, method, path string
		body             any
		headers          []string
		step             authz.Errand // of the callers on an errand for a step
		supplier         string       // scope; "any", or "-"
		serving, auditor string       // kinds of errand of agents and supervisors, and of auditors
		supervisor       string       // kinds of supervisors alone
		in               []int        // how it is answered to who gets in; 412: it would have been done
	}
	operations := []operation{
		{id: "listMeteringPoints", path: "/v1/metering-points", supplier: "readings:read", in: []int{200}},
		{id: "getReadings", path: w.path(e, "purpose", "CUSTOMER_SERVICE"), supplier: "readings:read", serving: "readings", in: []int{200}},
		{id: "queryReadings", method: "POST", path: "/v1/readings/query", body: form{"from": w.days().From.String(), "to": w.days().To.String(), "purpose": "BILLING"}, supplier: "readings:read", in: []int{200}},
		{id: "getAccess", path: accessPath(e), supplier: "readings:read", serving: "view", auditor: "view", in: []int{200}},
		{id: "listConsents", path: "/v1/metering-points/" + e.String() + "/consents", supplier: "consents:write", serving: "view", auditor: "view", in: []int{200}},
		{id: "createConsent", method: "POST", path: "/v1/consents", body: f, step: register, supplier: "consents:write", serving: "step", in: []int{201, 409}}, // 409: the same is in the file
		{id: "getConsent", path: consent, step: errandFor(k, authz.ActionReject, ""), supplier: "consents:write", serving: "view step", auditor: "view", in: []int{200}},
		{id: "grantConsent", method: "POST", path: consent + "/grant", body: form{"evidence": "x"}, headers: stale, step: errandFor(k, authz.ActionGrant, "x"), supplier: "-", serving: "step", in: []int{412}},
		{id: "rejectConsent", method: "POST", path: consent + "/reject", headers: stale, step: errandFor(k, authz.ActionReject, ""), supplier: "-", serving: "step", in: []int{412}},
		{id: "revokeConsent", method: "POST", path: consent + "/revoke", headers: stale, step: errandFor(k, authz.ActionRevoke, ""), supplier: "consents:write", serving: "step", in: []int{412}},
		{id: "getAccessLog", path: "/v1/metering-points/" + e.String() + "/access-log", supplier: "-", serving: "view", auditor: "view", in: []int{200}},
		{id: "getAccessProof", path: proofPath(e, uuid.NewString()), supplier: "-", serving: "view", auditor: "view", in: []int{404}},
		{id: "findMeteringPoints", method: "POST", path: "/v1/metering-points/find", body: form{"postcode": "1234AB", "houseNumber": "7"}, supplier: "-", serving: "find", in: []int{200}},
		{id: "getConnection", path: connectionPath(e), supplier: "-", serving: "view", auditor: "view", in: []int{200}},
		{id: "previewConsent", method: "POST", path: "/v1/consents/preview", body: form{"ean": e.String(), "step": "reject", "consentId": k.Id.String()}, supplier: "-", serving: "view", in: []int{200}},
		{id: "listSuppliers", path: "/v1/suppliers", supplier: "-", supervisor: "oversee", auditor: "oversee", in: []int{200}},
		{id: "suspendSupplier", method: "POST", path: "/v1/suppliers/" + other.String() + "/suspend", headers: stale, supplier: "-", supervisor: "supplier", in: []int{412}},
		{id: "resumeSupplier", method: "POST", path: "/v1/suppliers/" + other.String() + "/resume", headers: stale, supplier: "-", supervisor: "supplier", in: []int{200}}, // it is not suspended
		{id: "getOperations", path: "/v1/operations", supplier: "-", serving: "oversee", auditor: "oversee", in: []int{200}},
		{id: "getOversight", path: "/v1/oversight", supplier: "-", supervisor: "oversee", auditor: "oversee", in: []int{200}},
		{id: "listChanges", path: "/v1/changes", supplier: "readings:read", in: []int{200}},
		{id: "getStatus", path: "/v1/status", supplier: "any", serving: all, supervisor: all, auditor: all, in: []int{200}},
		{id: "getManifestKeys", path: "/v1/manifest-keys", supplier: "no token", in: []int{200}},
		{id: "getHealth", path: "/healthz", supplier: "no token", in: []int{200}},
		{id: "getReadiness", path: "/readyz", supplier: "no token", in: []int{200}},
	}
	doc := must(openapi.Load())
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			if !slices.ContainsFunc(operations, func(o operation) bool { return o.id == op.OperationID }) {
				t.Errorf("%s is not in the table of this test", op.OperationID)
			}
		}
	}

	scoped := map[string]string{}
	for _, scope := range []string{authn.ScopeReadings, authn.ScopeConsents} {
		raw, _, err := w.pool.issuer.SignToken(t.Context(), w.a.record, w.a.thumbprint(), []string{scope}, 5*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		scoped[scope] = raw
	}
	reading := authz.Errand{Kind: authz.ErrandReadings, EAN: e, Days: w.days(), Fields: []meter.FieldCode{w.field("import_low")}}
	for _, o := range operations {
		if o.method == "" {
			o.method = http.MethodGet
		}
		if o.step.EAN.IsZero() {
			o.step = errandFor(k, authz.ActionReject, "")
		}
		// ask makes the request and says who was let in, or why not.
		ask := func(who *supplier, token string) string {
			if who.client == nil {
				who.client = w.http(who.cert)
			}
			w.tap.taken()
			before := len(w.records())
			r := w.do(who.client, o.method, o.path, func(r *http.Request) {
				if o.method == http.MethodPost {
					w.posting(token, o.body, o.headers...)(r)
				}
				if r.Header.Del("Authorization"); token != "" {
					bearer(token)(r)
				}
			})
			if slices.Contains(o.in, r.status) || o.supplier == "no token" {
				return "in"
			}
			if calls := w.tap.taken(); calls != "" && calls != "supplier" || len(w.records()) != before {
				t.Errorf("%s: refused, but it calls %q and leaves %d records", o.id, calls, len(w.records())-before)
			}
			if r.status == 401 || r.status == 403 {
				return r.problem(t)
			}
			return fmt.Sprintf("%d %s", r.status, r.body)
		}
		expect := func(caller, got, want string) {
			if o.supplier == "no token" {
				want = "in"
			}
			if got != want {
				t.Errorf("%s as %s: %s, want %s", o.id, caller, got, want)
			}
		}
		expect("nobody", ask(w.a, ""), "unauthenticated")
		for scope, token := range scoped {
			want := "insufficient-scope"
			switch o.supplier {
			case scope, "any":
				want = "in"
			case "-":
				want = "not-permitted"
			}
			expect("a supplier with "+scope, ask(w.a, token), want)
		}
		for _, role := range []authz.Role{authz.Agent, authz.Supervisor, authz.Auditor} {
			may := strings.Fields(o.serving)
			switch role {
			case authz.Supervisor:
				may = append(may, strings.Fields(o.supervisor)...)
			case authz.Auditor:
				may = strings.Fields(o.auditor)
			}
			for kind, errand := range map[string]authz.Errand{
				"readings": reading, "view": {Kind: authz.ErrandView, EAN: e}, "step": o.step, "find": errandToFind("1234AB", "7"),
				"oversee": {Kind: authz.ErrandOversee}, "supplier": {Kind: authz.ErrandSupplier, Supplier: other, Suspend: o.id == "suspendSupplier"},
			} {
				if !role.May(errand.Kind) {
					continue // no cryptoserver signs such a token
				}
				want := "not-permitted"
				if slices.Contains(may, kind) {
					want = "in"
				}
				expect(fmt.Sprintf("%s to %s", role, kind), ask(w.portal, w.staffToken("someone", role, errand)), want)
			}
		}
	}
	w.stands(e, 5, "1,1")
}

// A supplier does not become an employee by a scope, nor an employee by a
// supplier's certificate.
func TestEmployeesTokensAreTheirs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	staff := w.view(e, authz.Agent)
	if r := w.do(w.http(w.a.cert), http.MethodGet, "/v1/metering-points/"+e.String()+"/consents", bearer(staff)); r.status != 401 {
		t.Errorf("the portal's token with a supplier's certificate: %d %s", r.status, r.body)
	}
	if r := w.do(w.http(w.portal.cert), http.MethodGet, "/v1/metering-points/"+e.String()+"/consents", bearer(w.token(w.a))); r.status != 401 {
		t.Errorf("a supplier's token with the portal's certificate: %d %s", r.status, r.body)
	}
	w.register(w.a, func(f *authz.SupplierFacts) { f.Scopes = append(f.Scopes, authn.ScopeStaff) })
	if raw, _, err := w.pool.issuer.SignToken(t.Context(), w.a.record, w.a.thumbprint(), []string{authn.ScopeStaff}, time.Minute); err == nil {
		r := w.do(w.http(w.a.cert), http.MethodGet, "/v1/metering-points/"+e.String()+"/consents", bearer(raw))
		if r.status == 200 {
			t.Errorf("a supplier with the employees' scope: %s", r.body)
		}
	}
}
