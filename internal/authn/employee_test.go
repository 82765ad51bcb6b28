package authn

import (
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/meter"
)

const employeeSubject = "https://login.example.com#248289761001"

// employee makes it a token of an employee who looks at a metering point.
func (s *spec) employee() *spec {
	s.claims["sub"], s.claims["client_id"], s.claims["scope"] = employeeSubject, operator, ScopeStaff
	s.claims["roles"] = []string{"agent"}
	s.claims["authorization_details"] = json.RawMessage(viewJSON)
	return s
}

func officeRecord(t *testing.T, gln string, scopes ...string) *authz.Supplier {
	t.Helper()
	r, err := authz.NewSupplier(nil, authz.SupplierFacts{
		GLN: mustGLN(t, gln), Name: "Grid operator", Scopes: scopes,
		Certificates: []authz.Certificate{{Thumbprint: leaf, NotAfter: noon.AddDate(1, 0, 0)}},
	}, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, noon.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEmployee(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(map[string]any)
		role   authz.Role
		errand string
	}{
		"an agent who looks":     {func(m map[string]any) {}, authz.Agent, viewJSON},
		"a supervisor who reads": {func(m map[string]any) { m["roles"] = []string{"supervisor"} }, authz.Supervisor, readingsJSON},
		"an agent for a yes":     {func(m map[string]any) {}, authz.Agent, grantJSON},
		"an auditor who looks":   {func(m map[string]any) { m["roles"] = []string{"auditor"} }, authz.Auditor, viewJSON},
		"an agent for a no":      {func(m map[string]any) {}, authz.Agent, rejectJSON},
		"an agent who finds":     {func(m map[string]any) {}, authz.Agent, findJSON},
		"an agent who oversees":  {func(m map[string]any) {}, authz.Agent, overseeJSON},
		"an auditor, the same":   {func(m map[string]any) { m["roles"] = []string{"auditor"} }, authz.Auditor, overseeJSON},
		"a supervisor's stop":    {func(m map[string]any) { m["roles"] = []string{"supervisor"} }, authz.Supervisor, suspendJSON},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			s := w.newSpec().employee()
			s.claims["authorization_details"] = json.RawMessage(c.errand)
			c.change(s.claims)
			errand, err := ParseErrand([]byte(c.errand), profile())
			if err != nil {
				t.Fatal(err)
			}
			raw := s.sign(t)
			for range 2 { // first, and from the cache
				tok, err := w.verifier.Verify(t.Context(), raw, leaf)
				if err != nil {
					t.Fatal(err)
				}
				caller, err := tok.Authenticate(officeRecord(t, operator, ScopeStaff), ScopeStaff, noon)
				if err != nil {
					t.Fatal(err)
				}
				if want := (authz.Employee{Subject: employeeSubject, Role: c.role, Errand: errand}); !reflect.DeepEqual(caller.Employee(), &want) ||
					caller.Supplier() != mustGLN(t, operator) || tok.Client() != caller.Supplier() {
					t.Errorf("%+v of %s, want %+v", caller.Employee(), caller.Supplier(), want)
				}
				// It is no supplier's, whatever is in the record.
				for _, scope := range []string{ScopeReadings, ScopeConsents} {
					_, err = tok.Authenticate(officeRecord(t, operator, ScopeStaff, ScopeReadings, ScopeConsents), scope, noon)
					refused(t, err, ErrInsufficientScope, "scope_not_in_token")
				}
				_, err = tok.Authenticate(officeRecord(t, operator, ScopeReadings), ScopeStaff, noon)
				refused(t, err, ErrInsufficientScope, "scope_not_in_record")
				_, err = tok.Authenticate(officeRecord(t, supplier, ScopeStaff), ScopeStaff, noon)
				refused(t, err, ErrInvalidToken, "record_of_another_supplier")
			}
		})
	}
	// A supplier's token is no employee's.
	w := newWorld(t)
	tok, err := w.verifier.Verify(t.Context(), w.newSpec().sign(t), leaf)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tok.Authenticate(officeRecord(t, supplier, ScopeReadings, ScopeStaff), ScopeStaff, noon)
	refused(t, err, ErrInsufficientScope, "scope_not_in_token")
	caller, err := tok.Authenticate(officeRecord(t, supplier, ScopeReadings), ScopeReadings, noon)
	if err != nil || caller.Employee() != nil {
		t.Errorf("%+v, %v", caller, err)
	}
}

// TestEmployeeRefused attacks: each case changes one thing of an employee's
// token, or of a supplier's, that is accepted, and signs it properly. There is
// nothing between the two.
func TestEmployeeRefused(t *testing.T) {
	t.Parallel()
	type change = func(*world, *spec)
	set := func(k string, v any) change { return func(_ *world, s *spec) { s.claims[k] = v } }
	without := func(k string) change { return func(_ *world, s *spec) { delete(s.claims, k) } }
	details := func(json_ string) change { return set("authorization_details", json.RawMessage(json_)) }
	for name, c := range map[string]struct {
		supplier bool
		change   change
		reason   string
	}{
		// A supplier's, with something of an employee's.
		"a supplier's with an errand":            {true, details(viewJSON), "role_or_errand_of_a_supplier"},
		"a supplier's with no errands":           {true, details(`[]`), "role_or_errand_of_a_supplier"},
		"a supplier's with errands of nothing":   {true, set("authorization_details", nil), "role_or_errand_of_a_supplier"},
		"a supplier's with a role":               {true, set("roles", []string{"agent"}), "role_or_errand_of_a_supplier"},
		"a supplier's with no roles":             {true, set("roles", []string{}), "role_or_errand_of_a_supplier"},
		"a supplier's with the scope":            {true, set("scope", ScopeStaff), "scope_of_employees"},
		"a supplier's with the scope, too":       {true, set("scope", ScopeReadings+" "+ScopeStaff), "scope_of_employees"},
		"a supplier's of another subject":        {true, set("sub", employeeSubject), "subject_not_a_gln"},
		"a supplier's for the operator":          {true, set("client_id", operator), "client_is_not_subject"},
		"a supplier's with everything but scope": {true, func(_ *world, s *spec) { s.employee(); s.claims["scope"] = ScopeReadings }, "scope_not_of_employees"},
		// The client.
		"of a supplier":                   {false, set("client_id", supplier), "not_the_operators_employee"},
		"of a supplier by another issuer": {false, func(w *world, s *spec) { w.external(s, "ed-1"); s.claims["client_id"] = supplier }, "issuer_names_no_employees"},
		"by another issuer":               {false, func(w *world, s *spec) { w.external(s, "ed-1") }, "issuer_names_no_employees"},
		"no client":                       {false, without("client_id"), "client_not_a_gln"},
		"client not a GLN":                {false, set("client_id", "portal"), "client_not_a_gln"},
		// The subject.
		"the operator itself":         {false, set("sub", operator), "role_or_errand_of_a_supplier"},
		"a supplier for the operator": {false, set("sub", supplier), "subject_not_an_employee"},
		"nobody":                      {false, without("sub"), "subject_not_an_employee"},
		"empty subject":               {false, set("sub", ""), "subject_not_an_employee"},
		"subject a number":            {false, set("sub", 7), "subject_not_an_employee"},
		"subject of two lines":        {false, set("sub", "eva\nadmin"), "subject_not_an_employee"},
		"subject too long":            {false, set("sub", strings.Repeat("x", 129)), "subject_not_an_employee"},
		// The scope.
		"no scope":           {false, without("scope"), "scope_not_of_employees"},
		"two scopes":         {false, set("scope", ScopeStaff+" "+ScopeReadings), "scope_not_of_employees"},
		"a supplier's scope": {false, set("scope", ScopeConsents), "scope_not_of_employees"},
		// Roles.
		"no roles":             {false, without("roles"), "not_one_role"},
		"roles empty":          {false, set("roles", []string{}), "not_one_role"},
		"two roles":            {false, set("roles", []string{"agent", "supervisor"}), "not_one_role"},
		"the same role twice":  {false, set("roles", []string{"agent", "agent"}), "not_one_role"},
		"role a string":        {false, set("roles", "agent"), "not_one_role"},
		"role a number":        {false, set("roles", []int{1}), "not_one_role"},
		"role unknown":         {false, set("roles", []string{"director"}), "not_one_role"},
		"role of another case": {false, set("roles", []string{"Agent"}), "not_one_role"},
		"role null":            {false, set("roles", nil), "not_one_role"},
		"role in an object":    {false, set("roles", map[string]any{"0": "agent"}), "not_one_role"},
		// The errand.
		"no errand":                  {false, without("authorization_details"), "malformed_errand"},
		"errand null":                {false, set("authorization_details", nil), "malformed_errand"},
		"errand a string":            {false, set("authorization_details", viewJSON), "malformed_errand"},
		"errand without an array":    {false, details(strings.Trim(viewJSON, "[]")), "malformed_errand"},
		"no errands":                 {false, details(`[]`), "malformed_errand"},
		"two errands":                {false, details(viewJSON[:len(viewJSON)-1] + "," + viewJSON[1:]), "malformed_errand"},
		"an errand and something":    {false, details(viewJSON[:len(viewJSON)-1] + `,"x"]`), "malformed_errand"},
		"errand of another type":     {false, details(strings.Replace(viewJSON, ":view", ":all", 1)), "malformed_errand"},
		"errand with another member": {false, details(strings.Replace(viewJSON, `"reason"`, `"eans":[],"reason"`, 1)), "malformed_errand"},
		"field of no profile":        {false, details(strings.Replace(readingsJSON, "import_low", "identity", 1)), "malformed_errand"},
		"errand with a member twice": {false, func(_ *world, s *spec) {
			delete(s.claims, "authorization_details")
			b, _ := json.Marshal(s.claims)
			s.rawClaims = strings.TrimSuffix(string(b), "}") + `,"authorization_details":` + strings.Replace(viewJSON, `"reason"`, `"reason":"a","reason"`, 1) + `}`
		}, "malformed_claims"},
		"an auditor reads": {false, func(_ *world, s *spec) {
			s.claims["roles"], s.claims["authorization_details"] = []string{"auditor"}, json.RawMessage(readingsJSON)
		}, "errand_not_of_the_role"},
		"an auditor takes a step": {false, func(_ *world, s *spec) {
			s.claims["roles"], s.claims["authorization_details"] = []string{"auditor"}, json.RawMessage(rejectJSON)
		}, "errand_not_of_the_role"},
		"an auditor finds": {false, func(_ *world, s *spec) {
			s.claims["roles"], s.claims["authorization_details"] = []string{"auditor"}, json.RawMessage(findJSON)
		}, "errand_not_of_the_role"},
		"an auditor suspends": {false, func(_ *world, s *spec) {
			s.claims["roles"], s.claims["authorization_details"] = []string{"auditor"}, json.RawMessage(suspendJSON)
		}, "errand_not_of_the_role"},
		"an agent suspends": {false, details(suspendJSON), "errand_not_of_the_role"},
		"an agent resumes":  {false, details(resumeJSON), "errand_not_of_the_role"},
		// As with suppliers.
		"bound to another certificate": {false, set("cnf", map[string]string{"x5t#S256": b64(otherLeaf[:])}), "bound_to_another_certificate"},
		"for another audience":         {false, set("aud", "kluis-portal"), "wrong_audience"},
		"an ID token":                  {false, func(_ *world, s *spec) { s.header["typ"] = "JWT" }, "wrong_type"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			s := w.newSpec()
			if !c.supplier {
				s.employee()
			}
			if _, err := w.verifier.Verify(t.Context(), s.sign(t), leaf); err != nil {
				t.Fatalf("the token to start from: %v", err)
			}
			c.change(w, s)
			raw := s.sign(t)
			for range 2 {
				_, err := w.verifier.Verify(t.Context(), raw, leaf)
				refused(t, err, ErrInvalidToken, c.reason)
				if strings.Contains(err.Error(), ean) || strings.Contains(err.Error(), employeeSubject) {
					t.Errorf("not for logs: %v", err)
				}
			}
		})
	}
}

// The golden token: signed once, with a key that is gone. What it says must
// stay readable as long as tokens of its kind are.
func TestEmployeeVector(t *testing.T) {
	t.Parallel()
	const (
		jwks = `{"keys":[{"alg":"ES256","crv":"P-256","kid":"G809iSq11hgJn-crx5mhpRvq1doX3_lFSwzYzFMkWtE","kty":"EC","use":"sig","x":"_lYw-lzkHdENDiencJJ3g6Yia0zAZu-I0_pRrnVMSYM","y":"wqwoG6qUBpUoyrPE_aU-A_8XmZFLH4HB6nxkMgeb92c"}]}`
		raw  = `eyJhbGciOiJFUzI1NiIsImtpZCI6Ikc4MDlpU3ExMWhnSm4tY3J4NW1ocFJ2cTFkb1gzX2xGU3d6WXpGTWtXdEUiLCJ0eXAiOiJhdCtqd3QifQ.eyJhdWQiOiJ1cm46a2x1aXM6Z2F0ZXdheSIsImF1dGhvcml6YXRpb25fZGV0YWlscyI6W3sidHlwZSI6InVybjprbHVpczplcnJhbmQ6c3RlcCIsImVhbiI6Ijg3MTY4Njg3MDAwMDAwMDAxNiIsInN0ZXAiOiJncmFudCIsImNvbnNlbnRfaWQiOiIwMTAyMDMwMC0wMDAwLTAwMDAtMDAwMC0wMDAwMDAwMDAwMDAiLCJzY29wZV9kaWdlc3QiOiJBUUlEQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBIiwiZXZpZGVuY2UiOiJjYWxsIG9mIDMgTWFyY2giLCJyZWFzb24iOiJ0aWNrZXQgNDcxMSJ9XSwiY2xpZW50X2lkIjoiODcxNjg2NzAwMDAwOSIsImNuZiI6eyJ4NXQjUzI1NiI6IlQtUmVsNG1GUHlaRGRCS2E1Vmh0Slk1VC1sSERmTmF5YUtZbXZxWXhjYlUifSwiZXhwIjoxNzc0Nzg1OTAwLCJpYXQiOjE3NzQ3ODU2MDAsImlzcyI6Imh0dHBzOi8vaXNzdWVyLmtsdWlzLmV4YW1wbGUiLCJqdGkiOiJoMm1yX0M2QW4wNkpKbklrakQ0TkV3Iiwicm9sZXMiOlsic3VwZXJ2aXNvciJdLCJzY29wZSI6ImN1c3RvbWVyLXNlcnZpY2UiLCJzdWIiOiJodHRwczovL2xvZ2luLmV4YW1wbGUuY29tIzI0ODI4OTc2MTAwMSJ9.gej-h5QZ2N7-Sma5CwJpLg1RoJacpo9tiGaEphGr1XNkaJO7qg_jJoO73I4x5hMaPzEwYvu3TbyDLNOgx0Yyzw`
	)
	keys, err := PinnedKeys([]byte(jwks))
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(func() time.Time { return noon }, Issuer{ownIssuer, audience, keys, MaxLifetime, &Staff{mustGLN(t, operator), profile()}})
	if err != nil {
		t.Fatal(err)
	}
	tok, err := v.Verify(t.Context(), raw, leaf)
	if err != nil {
		t.Fatal(err)
	}
	errand, err := ParseErrand([]byte(grantJSON), profile())
	if err != nil {
		t.Fatal(err)
	}
	if want := (authz.Employee{Subject: employeeSubject, Role: authz.Supervisor, Errand: errand}); !reflect.DeepEqual(tok.employee, &want) {
		t.Errorf("%+v, want %+v", tok.employee, want)
	}
}

func employeeClaimsOf(tb testing.TB, w *world, errand string) TokenClaims {
	tb.Helper()
	e, err := ParseErrand([]byte(errand), profile())
	if err != nil {
		tb.Fatal(err)
	}
	c := goodClaims(tb, w)
	c.Client, c.Scopes = mustGLN(tb, operator), []string{ScopeStaff}
	c.Employee = &Employee{authz.Employee{Subject: employeeSubject, Role: authz.Agent, Errand: e}, profile()}
	return c
}

// TestEmployeeTokenFormat is the golden form: exactly these members.
func TestEmployeeTokenFormat(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, errand := range []string{readingsJSON, viewJSON, registerJSON, grantJSON, rejectJSON, revokeJSON, findJSON, overseeJSON} {
		raw, err := SignToken(w.es, w.kid, employeeClaimsOf(t, w, errand))
		if err != nil {
			t.Fatal(err)
		}
		b, err := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[1])
		if err != nil {
			t.Fatal(err)
		}
		var claims struct {
			JTI string `json:"jti"`
		}
		if err := json.Unmarshal(b, &claims); err != nil {
			t.Fatal(err)
		}
		want := `{"aud":"urn:kluis:gateway","authorization_details":` + errand + `,"client_id":"` + operator + `","cnf":{"x5t#S256":"` + b64(leaf[:]) + `"},` +
			`"exp":1774785900,"iat":1774785600,"iss":"https://issuer.kluis.example","jti":"random","roles":["agent"],"scope":"customer-service","sub":"` + employeeSubject + `"}`
		if got := strings.Replace(string(b), claims.JTI, "random", 1); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if _, err := w.verifier.Verify(t.Context(), raw, leaf); err != nil {
			t.Errorf("%s: %v", errand, err)
		}
	}
}

func TestSignEmployeeRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, change := range map[string]func(*TokenClaims){
		"a scope more":             func(c *TokenClaims) { c.Scopes = append(c.Scopes, ScopeReadings) },
		"another scope":            func(c *TokenClaims) { c.Scopes = []string{ScopeReadings} },
		"no scope":                 func(c *TokenClaims) { c.Scopes = nil },
		"a supplier":               func(c *TokenClaims) { c.Employee.Subject = supplier },
		"nobody":                   func(c *TokenClaims) { c.Employee.Subject = "" },
		"the operator itself":      func(c *TokenClaims) { c.Employee.Subject = operator },
		"a long name":              func(c *TokenClaims) { c.Employee.Subject = strings.Repeat("x", 129) },
		"no role":                  func(c *TokenClaims) { c.Employee.Role = 0 },
		"unknown role":             func(c *TokenClaims) { c.Employee.Role = 9 },
		"an auditor reads":         func(c *TokenClaims) { c.Employee.Role = authz.Auditor },
		"no profile":               func(c *TokenClaims) { c.Employee.Profile = nil },
		"no errand":                func(c *TokenClaims) { c.Employee.Errand = authz.Errand{} },
		"no reason":                func(c *TokenClaims) { c.Employee.Errand.Reason = "" },
		"no fields":                func(c *TokenClaims) { c.Employee.Errand.Fields = nil },
		"no days":                  func(c *TokenClaims) { c.Employee.Errand.Days = meter.DayRange{} },
		"scope without employee":   func(c *TokenClaims) { c.Employee = nil },
		"scopes, without employee": func(c *TokenClaims) { c.Employee, c.Scopes = nil, []string{ScopeReadings, ScopeStaff} },
	} {
		c := employeeClaimsOf(t, w, readingsJSON)
		change(&c)
		if raw, err := SignToken(w.es, w.kid, c); err == nil || raw != "" {
			t.Errorf("%s: %q, %v", name, raw, err)
		}
	}
}

func TestNewVerifierNeedsAnOperator(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	good := w.verifier.issuers[ownIssuer]
	for name, s := range map[string]*Staff{"no operator": {meter.GLN{}, profile()}, "no profile": {mustGLN(t, operator), nil}} {
		is := good
		is.Staff = s
		if _, err := NewVerifier(time.Now, is); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestNothingBetween tries every combination of what tells the two kinds of
// token apart, each signed properly: there are suppliers' and employees', and
// all else is refused.
func TestNothingBetween(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	absent := "absent"
	suppliers, employees := 0, 0
	for _, sub := range []string{supplier, operator, employeeSubject} {
		for _, client := range []string{supplier, operator} {
			for _, scope := range []string{absent, ScopeReadings, ScopeStaff, ScopeReadings + " " + ScopeStaff} {
				for _, roles := range []string{absent, `[]`, `["agent"]`, `["agent","auditor"]`} {
					for _, errand := range []string{absent, `[]`, viewJSON, viewJSON[:len(viewJSON)-1] + "," + viewJSON[1:]} {
						s := w.newSpec()
						s.claims["sub"], s.claims["client_id"], s.claims["scope"] = sub, client, scope
						s.claims["roles"], s.claims["authorization_details"] = json.RawMessage(roles), json.RawMessage(errand)
						for k, v := range map[string]string{"scope": scope, "roles": roles, "authorization_details": errand} {
							if v == absent {
								delete(s.claims, k)
							}
						}
						isSupplier := sub == client && !strings.Contains(scope, ScopeStaff) && roles == absent && errand == absent
						isEmployee := sub == employeeSubject && client == operator && scope == ScopeStaff && roles == `["agent"]` && errand == viewJSON
						tok, err := w.verifier.Verify(t.Context(), s.sign(t), leaf)
						switch {
						case (err == nil) != (isSupplier || isEmployee):
							t.Errorf("sub %s, client %s, scope %s, roles %s, errand %s: %v", sub, client, scope, roles, errand, err)
						case isSupplier && tok.employee == nil && tok.Client().String() == sub:
							suppliers++
						case isEmployee && tok.employee != nil && tok.Client().String() == operator:
							employees++
						case err == nil:
							t.Errorf("sub %s, client %s: read as %+v", sub, client, tok)
						}
					}
				}
			}
		}
	}
	if suppliers != 4 || employees != 1 {
		t.Errorf("%d suppliers' and %d employees' tokens, want 4 and 1", suppliers, employees)
	}
}
