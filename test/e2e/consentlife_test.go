package e2e

import (
	"encoding/base64"
	"encoding/json"
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
)

// post sends JSON with a token, and an idempotency key of its own.
func (c *caller) post(t testing.TB, token, path string, body any, headers ...string) answer {
	t.Helper()
	c.w.secrets.token(token)
	text := ""
	if body != nil {
		text = string(sure(json.Marshal(body)))
	}
	req := sure(http.NewRequestWithContext(t.Context(), http.MethodPost, c.gateway+path, strings.NewReader(text)))
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Idempotency-Key", uuid.NewString())
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	return sure(readAnswer(res))
}

type wireConsent struct {
	ID, State, ScopeDigest string
	Steps                  []struct{ Step, By, Employee string }
}

func consentIn(t testing.TB, a answer, status int, state string) wireConsent {
	t.Helper()
	var k wireConsent
	if a.status != status {
		t.Fatalf("%d: %s", a.status, a.body)
	}
	if err := json.Unmarshal(a.body, &k); err != nil || k.State != state || a.header.Get("ETag") == "" {
		t.Fatalf("%v: %s, want %s", err, a.body, state)
	}
	return k
}

// TestConsentLife is a consent from the supplier's request to the customer's
// second thoughts, on the phone with customer service, and what is left of it.
func TestConsentLife(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	o := l.office(t)
	v := l.vendor(t)
	_, err := l.reg.ChangeSupplier(t.Context(), v.gln, func(s *authz.Supplier) (authz.SupplierFacts, error) {
		return authz.SupplierFacts{GLN: v.gln, Name: s.Name(), Scopes: []string{authn.ScopeReadings, authn.ScopeConsents}, Certificates: s.Certificates()}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	h := l.home(t, v)
	h.step(t, authz.RevokeConsent{ID: h.consent}) // the one that homes begin with
	intervals := slices.DeleteFunc(keysOf(h), func(k string) bool { return !strings.HasPrefix(k, "import_intervals") })
	withheld := runs(t, "CONSENT_REVOKED", intervals...)
	read := func() seen { t.Helper(); return seenIn(t, v.fetch(t, h.path())) }

	asked := v.post(t, v.accessToken(t), "/v1/consents", map[string]any{
		"ean": h.ean.String(), "purpose": "ENERGY_MANAGEMENT", "classes": []string{"intervals"}, "granularity": "PT15M", "from": h.first.String(),
		"validUntil": time.Now().AddDate(1, 0, 0).UTC().Format(time.RFC3339), "evidence": "contract-4711",
	})
	k := consentIn(t, asked, http.StatusCreated, "REQUESTED")
	if s := read(); !slices.Equal(s.withheld, withheld) {
		t.Errorf("asked for: withheld %q, want %q", s.withheld, withheld)
	}
	// A supplier does not answer for the customer.
	if a := v.post(t, v.accessToken(t), "/v1/consents/"+k.ID+"/grant", map[string]string{"evidence": "they said yes"}, "If-Match", asked.header.Get("ETag")); a.slug() != "not-permitted" {
		t.Errorf("the supplier grants: %d %s", a.status, a.body)
	}

	// The customer phones: the employee looks, and grants what both see.
	look := authz.Errand{Kind: authz.ErrandView, EAN: h.ean}
	view := o.errand(t, "eva", authz.Agent, look)
	shown := consentIn(t, o.with(t, view, "/v1/consents/"+k.ID), http.StatusOK, "REQUESTED")
	step := func(employee string, action authz.ConsentAction, evidence, tag string) answer {
		t.Helper()
		var scope [32]byte
		copy(scope[:], sure(base64.RawURLEncoding.DecodeString(shown.ScopeDigest)))
		token := o.errand(t, employee, authz.Agent, authz.Errand{
			Kind: authz.ErrandStep, EAN: h.ean, Action: action, ConsentID: uuid.MustParse(k.ID), Scope: scope, Evidence: evidence,
		})
		var body any
		if evidence != "" {
			body = map[string]string{"evidence": evidence}
		}
		return o.post(t, token, "/v1/consents/"+k.ID+"/"+action.String(), body, "If-Match", tag)
	}
	granted := step("eva", authz.ActionGrant, "call-2026-0815", asked.header.Get("ETag"))
	consentIn(t, granted, http.StatusOK, "ACTIVE")
	given := read()
	given.want(t, h.corrected, nil)
	if e := l.explain(t, h.ean, given.id); e.Verdict != "AGREES" || e.Outcome != "given" {
		t.Errorf("explained: %+v", e)
	}

	// Second thoughts, with another employee: the next request is refused.
	if a := step("adam", authz.ActionRevoke, "", asked.header.Get("ETag")); a.slug() != "precondition-failed" {
		t.Errorf("with an old tag: %d %s", a.status, a.body)
	}
	gone := consentIn(t, step("adam", authz.ActionRevoke, "", granted.header.Get("ETag")), http.StatusOK, "REVOKED")
	if s := read(); !slices.Equal(s.withheld, withheld) {
		t.Errorf("revoked: withheld %q, want %q", s.withheld, withheld)
	}
	var steps []string
	for _, s := range gone.Steps {
		_, employee, _ := strings.Cut(s.Employee, "#")
		steps = append(steps, fmt.Sprint(s.Step, " ", s.By, " ", employee))
	}
	if want := []string{"REQUESTED SUPPLIER ", "GRANTED CUSTOMER eva", "REVOKED CUSTOMER adam"}; !slices.Equal(steps, want) {
		t.Errorf("steps %q, want %q", steps, want)
	}

	// The employee reads for the customer, what the errand says and no more.
	low, ok := l.profile.Field("import_low")
	if !ok {
		t.Fatal("no import_low")
	}
	token := o.errand(t, "eva", authz.Agent, authz.Errand{Kind: authz.ErrandReadings, EAN: h.ean, Days: meter.DayRange{From: h.turn, To: h.last}, Fields: []meter.FieldCode{low.Code}})
	days := []string{h.ean.String(), h.turn.String(), h.last.String(), "CUSTOMER_SERVICE"}
	if s := seenIn(t, o.with(t, token, readingsPath(days[0], days[1], days[2], days[3], "fields", "import_low"))); len(s.withheld) != 0 || len(s.values) != int(h.last-h.turn)+1 {
		t.Errorf("%v, withheld %q", s.values, s.withheld)
	}
	for name, path := range map[string]string{
		"another field": readingsPath(days[0], days[1], days[2], days[3], "fields", "import_low,import_normal"),
		"a day more":    readingsPath(days[0], h.first.String(), days[2], days[3], "fields", "import_low"),
	} {
		if a := o.with(t, token, path); a.slug() != "not-permitted" {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}

	// Who read what: as the customer gets it.
	log := "/v1/metering-points/" + h.ean.String() + "/access-log"
	var told struct {
		Entries []struct {
			InteractionID, Operation, Outcome, Step string
			Caller                                  struct{ Gln, Employee string }
			Opened                                  int
		}
		Unreadable []string
	}
	if err := json.Unmarshal(o.with(t, o.errand(t, "eva", authz.Agent, look), log).body, &told); err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, e := range told.Entries {
		count[strings.TrimSpace(e.Operation+" "+e.Outcome+" "+e.Step)]++
		if e.InteractionID == given.id && (e.Opened == 0 || e.Caller.Gln != v.gln.String()) {
			t.Errorf("the read: %+v", e)
		}
	}
	for what, n := range map[string]int{"READINGS GIVEN": 2, "READINGS PARTLY": 2, "CONSENT_STEP GIVEN REQUEST": 1, "CONSENT_STEP GIVEN GRANT": 1, "CONSENT_STEP GIVEN REVOKE": 1} {
		if count[what] != n {
			t.Errorf("%s: %d times, want %d (of %v)", what, count[what], n, count)
		}
	}
	if len(told.Unreadable) != 0 {
		t.Errorf("unreadable: %v", told.Unreadable)
	}
}
