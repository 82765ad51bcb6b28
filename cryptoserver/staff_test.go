package cryptoserver_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/cryptopb"
	"kluis/internal/authn"
	"kluis/internal/devpki"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
)

// portal is the grid operator's own party: its certificate is the portal's.
func (w *world) portal() *party {
	w.t.Helper()
	cert, err := w.ca.Issue(devpki.Leaf{CommonName: "portal"})
	w.must(err)
	p := &party{gln: w.office.Operator, cert: cert.Leaf, leaf: authn.Thumbprint(cert.Leaf), facts: w.office.Facts(cert.Leaf)}
	p.record, err = w.as("registrar").SealSupplier(w.t.Context(), nil, p.facts)
	w.must(err)
	return p
}

// staffToken is an employee's token for an errand, bound to the portal's
// certificate. Its subject is stafftest.Subject(sub).
func (w *world) staffToken(portal *party, sub string, role authz.Role, e authz.Errand) string {
	w.t.Helper()
	raw, _, err := w.as("issuer").SignStaffToken(w.t.Context(), portal.record, portal.leaf,
		w.office.IDToken(sub, w.clock.now(), role), w.office.Errand(e), 5*time.Minute)
	w.must(err)
	return raw
}

const importantPoint = "871686870000000016"

func (w *world) readingsErrand() authz.Errand {
	w.t.Helper()
	ean, err := meter.ParseEAN(importantPoint)
	w.must(err)
	return authz.Errand{Kind: authz.ErrandReadings, EAN: ean, Reason: "ticket 4711", Days: days("2024-02-01", "2024-03-01"),
		Fields: []meter.FieldCode{importLow, importIntervals}}
}

func TestSignStaffToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	portal := w.portal()
	record, err := w.sealKeysOf().Supplier(portal.record)
	w.must(err)
	readings := w.readingsErrand()
	step := authz.Errand{Kind: authz.ErrandStep, EAN: readings.EAN, Reason: "the customer called", Action: authz.ActionGrant,
		ConsentID: [16]byte{1}, Scope: [32]byte{2}, Evidence: "call 12"}
	find := authz.Errand{Kind: authz.ErrandFind, Reason: "customer on the line"}
	find.Postcode, err = w.profile.ParsePostcode("1234AB")
	w.must(err)
	find.HouseNumber, err = meter.HouseNumberFromInt(7)
	w.must(err)
	suspend := authz.Errand{Kind: authz.ErrandSupplier, Reason: "incident 9", Supplier: w.supplier("871234500010", "Other Energy").gln, Suspend: true}
	oversee := authz.Errand{Kind: authz.ErrandOversee, Reason: "incident 9"}
	for _, c := range []struct {
		roles  []authz.Role
		errand authz.Errand
		role   authz.Role
	}{
		{[]authz.Role{authz.Agent}, readings, authz.Agent},
		{[]authz.Role{authz.Supervisor}, step, authz.Supervisor},
		{[]authz.Role{authz.Auditor}, authz.Errand{Kind: authz.ErrandView, EAN: readings.EAN, Reason: "complaint"}, authz.Auditor},
		{[]authz.Role{authz.Agent}, find, authz.Agent},
		{[]authz.Role{authz.Auditor}, oversee, authz.Auditor},
		{[]authz.Role{authz.Supervisor}, suspend, authz.Supervisor},
		// Of several the one that may do most.
		{[]authz.Role{authz.Auditor, authz.Agent}, readings, authz.Agent},
		{[]authz.Role{authz.Agent, authz.Auditor, authz.Supervisor}, step, authz.Supervisor},
	} {
		raw, expires, err := w.as("issuer").SignStaffToken(t.Context(), portal.record, portal.leaf,
			w.office.IDToken("eva", w.clock.now(), c.roles...), w.office.Errand(c.errand), 2*time.Minute)
		w.must(err)
		token, err := w.verifier.Verify(t.Context(), raw, portal.leaf)
		w.must(err)
		if token.Client() != w.office.Operator || !token.ExpiresAt().Equal(expires) || !expires.Equal(w.clock.now().Truncate(time.Second).Add(2*time.Minute)) {
			t.Errorf("%+v, %s", token, expires)
		}
		caller, err := token.Authenticate(record, authn.ScopeStaff, w.clock.now())
		w.must(err)
		want := authz.Employee{Subject: stafftest.Subject("eva"), Role: c.role, Errand: c.errand}
		if caller.Supplier() != w.office.Operator || !reflect.DeepEqual(caller.Employee(), &want) {
			t.Errorf("caller %+v, want %+v", caller.Employee(), want)
		}
		if _, err := w.verifier.Verify(t.Context(), raw, [32]byte{1}); err == nil {
			t.Error("the token is good with another's certificate")
		}
		if _, err := token.Authenticate(record, authn.ScopeReadings, w.clock.now()); !errors.Is(err, authn.ErrInsufficientScope) {
			t.Errorf("an employee's token as a supplier's: %v", err)
		}
	}

	// What rests on an ID token ends with it.
	late := w.office.Sign(map[string]any{"sub": "eva", "iat": w.clock.now().Unix(), "exp": w.clock.now().Unix() + 40, "roles": []string{"agent"}})
	_, expires, err := w.as("issuer").SignStaffToken(t.Context(), portal.record, portal.leaf, late, w.office.Errand(readings), 5*time.Minute)
	w.must(err)
	if left := expires.Sub(w.clock.now()); left > 40*time.Second || left < 38*time.Second {
		t.Errorf("the token outlives the ID token: %s", left)
	}
}

func (w *world) sealKeysOf() *authz.SealKeys {
	w.t.Helper()
	keys, err := authz.NewSealKeys(w.hsm.SealKeys...)
	w.must(err)
	return keys
}

// TestSignStaffTokenRefuses attacks as a captured issuer would, which has the
// portal's record and thumbprint and can send anything. Every case changes one
// thing of a call that is answered.
func TestSignStaffTokenRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	portal := w.portal()
	supplier := w.supplier("871234500009", "Some Energy")
	api := w.raw(w.clientTLS("issuer"))
	now := w.clock.now()
	update := func(change func(*authz.SupplierFacts)) []byte {
		facts := portal.facts
		facts.Certificates = slices.Clone(facts.Certificates)
		change(&facts)
		next, err := w.as("registrar").SealSupplier(t.Context(), portal.record, facts)
		w.must(err)
		return next
	}
	// A supplier to whose record somebody added the scope of employees.
	facts := supplier.facts
	facts.Scopes = []string{authn.ScopeReadings, authn.ScopeStaff}
	pretender, err := w.as("registrar").SealSupplier(t.Context(), supplier.record, facts)
	w.must(err)
	forger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	record, err := w.sealKeysOf().Supplier(portal.record)
	w.must(err)
	forged, err := authz.Seal(record.Payload(), softSigner{forger, authz.KeyIDOf(w.hsm.SealKeys[0])})
	w.must(err)
	impostor := stafftest.New(t, w.profile)
	claims := func(change func(map[string]any)) string {
		m := map[string]any{"sub": "eva", "iat": now.Unix(), "exp": now.Unix() + 3600, "roles": []string{"agent"}}
		change(m)
		return w.office.Sign(m)
	}
	set := func(k string, v any) string { return claims(func(m map[string]any) { m[k] = v }) }
	readings := w.office.Errand(w.readingsErrand())
	type request = cryptopb.SignStaffTokenRequest
	for _, c := range []struct {
		name   string
		change func(*request)
		want   cryptopb.Reason
	}{
		{"nothing changed", func(r *request) {}, ""},
		{"a supplier with the scope", func(r *request) { r.SupplierRecord, r.Thumbprint = pretender, supplier.leaf[:] }, cryptopb.ReasonSupplierInvalid},
		{"a supplier's certificate", func(r *request) { r.Thumbprint = supplier.leaf[:] }, cryptopb.ReasonSupplierInvalid},
		{"no record", func(r *request) { r.SupplierRecord = nil }, cryptopb.ReasonSupplierInvalid},
		{"a forged record", func(r *request) { r.SupplierRecord = forged }, cryptopb.ReasonSupplierInvalid},
		{"a short thumbprint", func(r *request) { r.Thumbprint = portal.leaf[:31] }, cryptopb.ReasonMalformed},
		{"no lifetime", func(r *request) { r.LifetimeSeconds = 0 }, cryptopb.ReasonMalformed},
		{"a long lifetime", func(r *request) { r.LifetimeSeconds = 301 }, cryptopb.ReasonMalformed},
		{"no ID token", func(r *request) { r.IdToken = "" }, cryptopb.ReasonEmployee},
		{"another provider's", func(r *request) { r.IdToken = impostor.IDToken("eva", now, authz.Agent) }, cryptopb.ReasonEmployee},
		{"an access token", func(r *request) { r.IdToken = w.token(supplier) }, cryptopb.ReasonEmployee},
		{"an employee's access token", func(r *request) { r.IdToken = w.staffToken(portal, "eva", authz.Agent, w.readingsErrand()) }, cryptopb.ReasonEmployee},
		{"for another service", func(r *request) { r.IdToken = set("aud", "mail") }, cryptopb.ReasonEmployee},
		{"for two services", func(r *request) { r.IdToken = set("aud", []string{"mail", "kluis-portal"}) }, cryptopb.ReasonEmployee},
		{"by another service", func(r *request) { r.IdToken = set("azp", "mail") }, cryptopb.ReasonEmployee},
		{"of another issuer", func(r *request) { r.IdToken = set("iss", "https://login.example.com") }, cryptopb.ReasonEmployee},
		{"expired", func(r *request) { r.IdToken = set("exp", now.Unix()-1) }, cryptopb.ReasonEmployee},
		{"from the future", func(r *request) { r.IdToken = set("iat", now.Unix()+11) }, cryptopb.ReasonEmployee},
		{"signed in yesterday", func(r *request) { r.IdToken = set("auth_time", now.Unix()-86400) }, cryptopb.ReasonEmployee},
		{"nobody", func(r *request) { r.IdToken = set("sub", nil) }, cryptopb.ReasonEmployee},
		{"somebody with a long name", func(r *request) { r.IdToken = set("sub", strings.Repeat("x", 128)) }, cryptopb.ReasonEmployee},
		{"no role", func(r *request) { r.IdToken = set("roles", []string{}) }, cryptopb.ReasonEmployee},
		{"a role nobody configured", func(r *request) { r.IdToken = set("roles", []string{"admin", "Agent"}) }, cryptopb.ReasonEmployee},
		{"no errand", func(r *request) { r.AuthorizationDetails = "" }, cryptopb.ReasonErrand},
		{"two errands", func(r *request) { r.AuthorizationDetails = readings[:len(readings)-1] + "," + readings[1:] }, cryptopb.ReasonErrand},
		{"a field nobody has", func(r *request) { r.AuthorizationDetails = strings.ReplaceAll(readings, "import_low", "secrets") }, cryptopb.ReasonErrand},
		{"an auditor reads", func(r *request) { r.IdToken = set("roles", []string{"auditor"}) }, cryptopb.ReasonErrand},
		{"an auditor finds", func(r *request) {
			r.IdToken, r.AuthorizationDetails = set("roles", []string{"auditor"}), `[{"type":"urn:kluis:errand:find","postcode":"1234AB","house_number":"7","reason":"x"}]`
		}, cryptopb.ReasonErrand},
		{"an agent suspends a supplier", func(r *request) {
			r.AuthorizationDetails = `[{"type":"urn:kluis:errand:supplier","gln":"` + portal.gln.String() + `","step":"suspend","reason":"x"}]`
		}, cryptopb.ReasonErrand},
		{"an errand to find that names a metering point", func(r *request) {
			r.AuthorizationDetails = `[{"type":"urn:kluis:errand:find","ean":"` + importantPoint + `","postcode":"1234AB","house_number":"7","reason":"x"}]`
		}, cryptopb.ReasonErrand},
		{"certificate revoked", func(r *request) {
			r.SupplierRecord = update(func(f *authz.SupplierFacts) { f.Certificates[0].RevokedAt = baseTime })
		}, cryptopb.ReasonSupplierInvalid},
		{"scope withdrawn", func(r *request) {
			r.SupplierRecord = update(func(f *authz.SupplierFacts) { f.Scopes = []string{authn.ScopeReadings} })
		}, cryptopb.ReasonScope},
	} {
		r := &request{SupplierRecord: portal.record, Thumbprint: portal.leaf[:], IdToken: claims(func(map[string]any) {}), AuthorizationDetails: readings, LifetimeSeconds: 60}
		c.change(r)
		got, err := api.SignStaffToken(t.Context(), r)
		if c.want == "" && err != nil || c.want != "" && reasonOf(err) != c.want || err != nil && got.GetAccessToken() != "" {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		// The text goes to the portal, and into no log with anybody's name.
		if text := fmt.Sprint(err); strings.Contains(text, "eva") || strings.Contains(text, importantPoint) {
			t.Errorf("%s: %s", c.name, text)
		}
	}
	// An old version of the record does not bring back what is gone, but for the
	// minute that requests under way have.
	w.advance(61 * time.Second)
	if _, _, err := w.as("issuer").SignStaffToken(t.Context(), portal.record, portal.leaf, claims(func(map[string]any) {}), readings, time.Minute); !errors.Is(err, client.ErrSupplierRefused) {
		t.Errorf("an outdated record: %v", err)
	}
	if log := w.log.String(); strings.Contains(log, "eva") || strings.Contains(log, importantPoint) {
		t.Errorf("log: %s", log)
	}
	// Nor is the scope of employees to be had without an employee.
	if _, _, err := w.as("issuer").SignToken(t.Context(), pretender, supplier.leaf, []string{authn.ScopeStaff}, time.Minute); !errors.Is(err, client.ErrSupplierRefused) {
		t.Errorf("the scope of employees for a supplier: %v", err)
	}
}

// TestNoStaff: a server without identity providers signs no employee's token.
func TestNoStaff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *world, c *cryptoserver.Config) { c.Staff = nil })
	portal := w.portal()
	_, _, err := w.as("issuer").SignStaffToken(t.Context(), portal.record, portal.leaf, w.office.IDToken("eva", w.clock.now(), authz.Agent), w.office.Errand(w.readingsErrand()), time.Minute)
	var e *client.Error
	if !errors.As(err, &e) || e.Reason != cryptopb.ReasonRoleNotServed || !strings.Contains(e.Text(), "identity_providers") {
		t.Error(err)
	}
}
