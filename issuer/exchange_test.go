package issuer

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/internal/authn"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
)

// exchangeForm is a token exchange of the portal.
func exchangeForm(idToken, errand string) url.Values {
	return url.Values{
		"grant_type": {grantTokenExchange}, "client_id": {stafftest.GLN}, "subject_token": {idToken},
		"subject_token_type": {typeIDToken}, "authorization_details": {errand},
	}
}

func with(f url.Values, kv ...string) url.Values {
	for i := 0; i < len(kv); i += 2 {
		f.Set(kv[i], kv[i+1])
	}
	return f
}

func viewErrand(t testing.TB) authz.Errand {
	return authz.Errand{Kind: authz.ErrandView, EAN: must[meter.EAN](t)(meter.ParseEAN("871686870000000016")), Reason: "ticket 4711"}
}

func TestExchange(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.office.IDToken("eva", time.Now(), authz.Agent)
	errand := w.office.Errand(viewErrand(t))
	for name, f := range map[string]url.Values{
		"as it is":                 exchangeForm(id, errand),
		"scope said":               with(exchangeForm(id, errand), "scope", authn.ScopeStaff),
		"scope empty":              with(exchangeForm(id, errand), "scope", ""),
		"type said":                with(exchangeForm(id, errand), "requested_token_type", typeAccessToken),
		"unknown parameters":       with(exchangeForm(id, errand), "foo", "x"),
		"members in another order": exchangeForm(id, ` [{"reason":"ticket 4711", "ean":"871686870000000016", "type":"urn:kluis:errand:view"}]`),
	} {
		got := w.ask(&w.portal, f)
		if got.status != http.StatusOK || got.header.Get("Cache-Control") != "no-store" || got.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %v", name, got)
			continue
		}
		m := got.json(t)
		raw, _ := m["access_token"].(string)
		tok := must[*authn.Token](t)(w.verifier.Verify(t.Context(), raw, authn.Thumbprint(w.portal.Leaf)))
		record := must[*authz.Supplier](t)(w.signer.seals.Supplier(w.registry.records[stafftest.GLN]))
		caller := must[authn.Caller](t)(tok.Authenticate(record, authn.ScopeStaff, time.Now()))
		if want := (authz.Employee{Subject: stafftest.Subject("eva"), Role: authz.Agent, Errand: viewErrand(t)}); !reflect.DeepEqual(caller.Employee(), &want) {
			t.Errorf("%s: %+v", name, caller.Employee())
		}
		in, _ := m["expires_in"].(float64)
		if m["token_type"] != "Bearer" || m["issued_token_type"] != typeAccessToken || m["scope"] != authn.ScopeStaff || in > 300 || in < 290 || len(m) != 6 {
			t.Errorf("%s: %v", name, m)
		}
		// What is granted, as it stands in the token (RFC 9396, clause 7).
		if want := `"authorization_details":[{"type":"urn:kluis:errand:view","ean":"871686870000000016","reason":"ticket 4711"}]`; !strings.Contains(got.body, want) {
			t.Errorf("%s: %s", name, got.body)
		}
	}
	w.stop()
	if log := w.log.String(); strings.Contains(log, "eva") || strings.Contains(log, "871686870000000016") || strings.Contains(log, "eyJ") || !strings.Contains(log, `"exchange":true`) {
		t.Errorf("log: %s", log)
	}
}

// TestExchangeRefused: each case changes one thing of an exchange that is
// answered.
func TestExchangeRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := time.Now()
	good := w.office.IDToken("eva", now, authz.Agent)
	errand := w.office.Errand(viewErrand(t))
	old := w.office.Sign(map[string]any{"sub": "eva", "iat": now.Unix() - 7200, "exp": now.Unix() - 3600, "roles": []string{"agent"}})
	// A supplier's record that has the scope of employees.
	w.registry.records[glnB] = w.seal(authz.SupplierFacts{GLN: gln(t, glnB), Name: "B", Scopes: []string{authn.ScopeReadings, authn.ScopeStaff},
		Certificates: []authz.Certificate{{Thumbprint: authn.Thumbprint(w.b.Leaf), NotAfter: w.b.Leaf.NotAfter}}})
	change := func(kv ...string) url.Values { return with(exchangeForm(good, errand), kv...) }
	for name, c := range map[string]struct {
		cert   *tls.Certificate
		form   url.Values
		status int
		code   string
		told   string // part of the description
		signed int
	}{
		"nothing changed":                {&w.portal, change(), 200, "", "", 1},
		"a supplier":                     {&w.a, change("client_id", glnA), 400, "unauthorized_client", "grid operator's own client", 0},
		"a supplier with the scope":      {&w.b, change("client_id", glnB), 400, "unauthorized_client", "grid operator's own client", 0},
		"a supplier as the portal":       {&w.a, change(), 401, "invalid_client", "", 0},
		"no certificate":                 {nil, change(), 401, "invalid_client", "", 0},
		"no client":                      {&w.portal, change("client_id", ""), 400, "invalid_request", "client_id", 0},
		"no subject token":               {&w.portal, change("subject_token", ""), 400, "invalid_request", "subject_token", 0},
		"no subject token type":          {&w.portal, change("subject_token_type", ""), 400, "invalid_request", "subject_token_type", 0},
		"an access token as the subject": {&w.portal, change("subject_token_type", typeAccessToken), 400, "invalid_request", "subject_token_type", 0},
		"a JWT as the subject":           {&w.portal, change("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"), 400, "invalid_request", "subject_token_type", 0},
		"a refresh token wanted":         {&w.portal, change("requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), 400, "invalid_request", "requested_token_type", 0},
		"an ID token wanted":             {&w.portal, change("requested_token_type", typeIDToken), 400, "invalid_request", "requested_token_type", 0},
		"an actor":                       {&w.portal, change("actor_token", good, "actor_token_type", typeIDToken), 400, "invalid_request", "actor_token", 0},
		"another service":                {&w.portal, change("audience", "mail"), 400, "invalid_target", "audience", 0},
		"another resource":               {&w.portal, change("resource", "https://mail.example"), 400, "invalid_target", "resource", 0},
		"the scope of suppliers":         {&w.portal, change("scope", authn.ScopeReadings), 400, "invalid_scope", authn.ScopeStaff, 0},
		"both scopes":                    {&w.portal, change("scope", authn.ScopeStaff+" "+authn.ScopeReadings), 400, "invalid_scope", authn.ScopeStaff, 0},
		"no errand":                      {&w.portal, change("authorization_details", ""), 400, "invalid_authorization_details", "missing", 0},
		"an unknown errand":              {&w.portal, change("authorization_details", strings.ReplaceAll(errand, ":view", ":all")), 400, "invalid_authorization_details", "type must be", 1},
		"two errands":                    {&w.portal, change("authorization_details", errand[:len(errand)-1]+","+errand[1:]), 400, "invalid_authorization_details", "exactly one", 1},
		"an ID token of yesterday":       {&w.portal, change("subject_token", old), 400, "invalid_request", "sign in again", 1},
		"no ID token at all":             {&w.portal, change("subject_token", "x"), 400, "invalid_request", "subject_token", 1},
		"the scope without an employee":  {&w.portal, form("client_id", stafftest.GLN), 400, "invalid_scope", "", 0},
		"that scope asked for":           {&w.portal, form("client_id", stafftest.GLN, "scope", authn.ScopeStaff), 400, "invalid_scope", "", 0},
		"too much":                       {&w.portal, change("subject_token", strings.Repeat("x", maxBody)), 413, "invalid_request", "", 0},
	} {
		_, before := w.calls()
		got := w.ask(c.cert, c.form)
		_, after := w.calls()
		m := got.json(t)
		told, _ := m["error_description"].(string)
		if got.status != c.status || c.code != "" && (m["error"] != c.code || told == "") || !strings.Contains(told, c.told) || after-before != c.signed {
			t.Errorf("%s: %d %s, %d signatures, want %d %s, %d", name, got.status, got.body, after-before, c.status, c.code, c.signed)
		}
		if c.code != "" && (m["access_token"] != nil || got.header.Get("Cache-Control") != "no-store") {
			t.Errorf("%s: %v", name, got)
		}
	}
	// The operator's record without the scope.
	facts := w.office.Facts(w.portal.Leaf)
	facts.Scopes = []string{authn.ScopeReadings}
	full := w.registry.records[stafftest.GLN]
	w.registry.records[stafftest.GLN] = w.seal(facts)
	_, before := w.calls()
	got := w.ask(&w.portal, change())
	if _, after := w.calls(); got.status != 400 || got.json(t)["error"] != "unauthorized_client" || after != before {
		t.Errorf("the operator's record without the scope: %v", got)
	}
	w.registry.records[stafftest.GLN] = full

	// What the cryptoserver refuses after all, and when none is there.
	for _, c := range []struct {
		fails  error
		status int
		code   string
	}{
		{fmt.Errorf("%w: for a test", ErrClientRefused), 401, "invalid_client"},
		{fmt.Errorf("%w: for a test", ErrEmployeeRefused), 400, "invalid_request"},
		{fmt.Errorf("%w: for a test", ErrUnavailable), 503, "temporarily_unavailable"},
		{fmt.Errorf("for a test"), 500, "server_error"},
	} {
		w.signer.fails = func(context.Context) error { return c.fails }
		got := w.ask(&w.portal, change())
		if m := got.json(t); got.status != c.status || m["error"] != c.code || strings.Contains(got.body, "for a test") {
			t.Errorf("%v: %d %s", c.fails, got.status, got.body)
		}
	}
	w.stop()
	if log := w.log.String(); strings.Contains(log, "eva") || strings.Contains(log, "871686870000000016") || strings.Contains(log, "eyJ") {
		t.Errorf("log: %s", log)
	}
}

// TestNoExchange: without the operator's GLN there is no such grant.
func TestNoExchange(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.issuer.Config
	c.Operator = meter.GLN{}
	is := must[*Issuer](t)(New(c))
	rec := httptest.NewRecorder()
	is.handler.ServeHTTP(rec, w.request(exchangeForm(w.office.IDToken("eva", time.Now(), authz.Agent), w.office.Errand(viewErrand(t))).Encode()))
	if body := rec.Body.String(); rec.Code != 400 || !strings.Contains(body, `"unsupported_grant_type"`) || strings.Contains(string(is.metadata)+body, "exchange") || strings.Contains(string(is.metadata), "errand") {
		t.Errorf("%d %s\n%s", rec.Code, body, is.metadata)
	}
}
