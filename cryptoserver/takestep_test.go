package cryptoserver_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"kluis/authz"
	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/internal/authn"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
)

// mayAsk gives a supplier the scope of consents beside that of readings.
func (w *world) mayAsk(p *party) {
	w.t.Helper()
	w.clock.advance(time.Millisecond)
	p.facts.Scopes = []string{authn.ScopeReadings, authn.ScopeConsents}
	next, err := w.as("registrar").SealSupplier(w.t.Context(), p.record, p.facts)
	w.must(err)
	p.record = next
}

func (w *world) consentToken(p *party) string {
	w.t.Helper()
	raw, _, err := w.as("issuer").SignToken(w.t.Context(), p.record, p.leaf, []string{authn.ScopeConsents}, 5*time.Minute)
	w.must(err)
	return raw
}

// request is a request for quarter-hours of a metering point that w.electricity
// made.
func request(by *party, id byte) authz.RequestConsent {
	return authz.RequestConsent{
		ID: [16]byte{id}, Supplier: by.gln, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
		Granularity: meter.PT15M, Days: days("2024-03-01", "2025-01-01"), ValidUntil: baseTime.AddDate(0, 6, 0), Evidence: fmt.Sprintf("mandate-%d", id),
	}
}

// errand is that of a step that answers or revokes a request.
func errand(ean meter.EAN, action authz.ConsentAction, r authz.RequestConsent) authz.Errand {
	e := authz.Errand{Kind: authz.ErrandStep, EAN: ean, Action: action, ConsentID: r.ID, Scope: r.Scope().Digest(ean)}
	if action == authz.ActionGrant {
		e.Evidence = "call-1"
	}
	return e
}

// take has a step taken by token on the metering point's file as it is.
func (p *point) take(token string, record []byte, s authz.Step) ([]byte, error) {
	p.w.t.Helper()
	return p.w.as("gateway").TakeStep(p.w.t.Context(), client.TakeStepRequest{
		AccessToken: token, SupplierRecord: record, Profile: p.w.profile.Digest(), Previous: p.file, Step: s,
	})
}

// taken has it taken and stored.
func (p *point) taken(token string, record []byte, s authz.Step) *authz.LegalFile {
	p.w.t.Helper()
	next, err := p.take(token, record, s)
	p.w.must(err)
	p.file = next
	p.w.clock.advance(time.Millisecond)
	return p.legalFile()
}

func (p *point) legalFile() *authz.LegalFile {
	p.w.t.Helper()
	keys, err := authz.NewSealKeys(p.w.hsm.SealKeys...)
	p.w.must(err)
	f, err := keys.LegalFile(p.file)
	p.w.must(err)
	return f
}

// TestTakeStep: the life of a consent, each step by the token of who takes it.
func TestTakeStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by, portal := w.supplier("871234500001", "New Energy"), w.portal()
	w.mayAsk(by)
	p := w.point(meter.Electricity)
	p.step(authz.SetOccupancy{Days: meter.DayRange{From: day("2023-01-01"), To: meter.MaxDay}})
	p.step(authz.SetSupply{Supplier: by.gln, Days: meter.DayRange{From: day("2024-03-01"), To: meter.MaxDay}})
	p.store(w.intervalBlock(importIntervals, day("2024-04-01"), meter.PT15M))
	before := len(w.audit())
	version := p.legalFile().Version()

	agent := authz.Actor{Kind: authz.ByCustomer, Name: stafftest.Subject("kim")}
	supplier := authz.Actor{Kind: authz.BySupplier, Name: by.gln.String()}
	asked, refused, withdrawn := request(by, 1), request(by, 2), request(by, 3)
	registered := authz.GrantConsent(request(by, 4))
	register := authz.Errand{Kind: authz.ErrandStep, EAN: p.ean, Action: authz.ActionRegister, Scope: registered.Scope().Digest(p.ean), Evidence: registered.Evidence}
	intervals := func() bool {
		got := w.opened(p.all(p.ask(by, energy(days("2024-04-01", "2024-04-02"), importIntervals))))
		return got.Err == nil && len(got.Series) == 1 && got.Series[0].Delivered == 96
	}
	for i, c := range []struct {
		name  string
		token string
		by    *party
		step  authz.Step
		actor authz.Actor
		state map[byte]authz.ConsentState
		open  bool
	}{
		{"asked for", w.consentToken(by), by, asked, supplier, map[byte]authz.ConsentState{1: authz.ConsentRequested}, false},
		{"given", w.staffToken(portal, "kim", authz.Agent, errand(p.ean, authz.ActionGrant, asked)), portal,
			authz.AcceptConsent{ID: asked.ID, Evidence: "call-1"}, agent, map[byte]authz.ConsentState{1: authz.ConsentActive}, true},
		{"taken back by the customer", w.staffToken(portal, "kim", authz.Supervisor, errand(p.ean, authz.ActionRevoke, asked)), portal,
			authz.RevokeConsent{ID: asked.ID}, agent, map[byte]authz.ConsentState{1: authz.ConsentRevoked}, false},
		{"another asked for", w.consentToken(by), by, refused, supplier, map[byte]authz.ConsentState{2: authz.ConsentRequested}, false},
		{"rejected", w.staffToken(portal, "kim", authz.Agent, errand(p.ean, authz.ActionReject, refused)), portal,
			authz.RejectConsent{ID: refused.ID}, agent, map[byte]authz.ConsentState{2: authz.ConsentRejected}, false},
		{"a third asked for", w.consentToken(by), by, withdrawn, supplier, map[byte]authz.ConsentState{3: authz.ConsentRequested}, false},
		{"withdrawn", w.consentToken(by), by, authz.RevokeConsent{ID: withdrawn.ID}, supplier, map[byte]authz.ConsentState{3: authz.ConsentRevoked}, false},
		{"registered on the customer's word", w.staffToken(portal, "kim", authz.Agent, register), portal, registered, agent,
			map[byte]authz.ConsentState{4: authz.ConsentActive}, true},
		{"given up by the supplier", w.consentToken(by), by, authz.RevokeConsent{ID: registered.ID}, supplier,
			map[byte]authz.ConsentState{4: authz.ConsentRevoked}, false},
	} {
		f := p.taken(c.token, c.by.record, c.step)
		if f.Version() != version+uint64(i)+1 || f.Actor() != c.actor || !bytes.Equal(f.Step().Encode(), c.step.Encode()) {
			t.Errorf("%s: version %d by %v", c.name, f.Version(), f.Actor())
		}
		for _, k := range f.Consents() {
			if want, ok := c.state[k.ID[0]]; ok && k.State != want {
				t.Errorf("%s: the consent is %d, want %d", c.name, k.State, want)
			}
		}
		if got := intervals(); got != c.open {
			t.Errorf("%s: intervals opened: %v", c.name, got)
		}
	}
	// Each is in the journal, as what the gateway had sealed.
	var events []envelope.SealEvent
	for _, e := range w.audit()[before:] {
		if e.SealEvent != nil && e.SealEvent.Kind == envelope.LegalFile {
			events = append(events, *e.SealEvent)
		}
	}
	if len(events) != 9 || events[8].Client != "gateway" || events[8].EAN != p.ean || events[8].Version != version+9 || events[8].Digest != p.legalFile().Digest() {
		t.Errorf("%d seal events, the last %+v", len(events), events[len(events)-1])
	}
}

// TestTakeStepByWhoMayNot: a captured gateway, with tokens of suppliers and of
// employees, has no step taken but the very one they are for; and seals nothing
// besides.
func TestTakeStepByWhoMayNot(t *testing.T) {
	t.Parallel()
	var sign cryptoserver.Tokens
	w := newWorld(t, func(_ *world, c *cryptoserver.Config) { sign = c.Tokens })
	m := w.market()
	portal, stranger := w.portal(), w.supplier("871234500002", "Stranger")
	w.mayAsk(m.new)
	w.mayAsk(m.old)
	w.mayAsk(stranger)
	r, other := request(m.new, 0x21), request(m.new, 0x22)
	w.taken(m, r)
	w.taken(m, other)
	neighbour := w.electricity(m.old, m.new, [16]byte{2})
	neighbour.taken(w.consentToken(m.new), m.new.record, r)

	yes := authz.AcceptConsent{ID: r.ID, Evidence: "call-1"}
	granting := errand(m.ean, authz.ActionGrant, r)
	staff := func(e authz.Errand) string { return w.staffToken(portal, "kim", authz.Agent, e) }
	grant, supplier := staff(granting), w.consentToken(m.new)
	readings := authz.Errand{Kind: authz.ErrandReadings, EAN: m.ean, Days: days("2024-04-01", "2024-04-02"), Fields: []meter.FieldCode{importLow}}
	view := authz.Errand{Kind: authz.ErrandView, EAN: m.ean}
	registered := authz.GrantConsent(request(m.new, 0x23))
	registering := authz.Errand{Kind: authz.ErrandStep, EAN: m.ean, Action: authz.ActionRegister, Scope: registered.Scope().Digest(m.ean), Evidence: registered.Evidence}
	longer, finer, theirs := registered, registered, registered
	longer.ValidUntil, finer.Days, theirs.Supplier = baseTime.AddDate(2, 0, 0), days("2023-03-01", "2026-01-01"), m.old.gln
	sawOther := granting
	sawOther.Scope = other.Scope().Digest(m.ean)
	elsewhere := granting
	elsewhere.EAN = neighbour.ean
	revoking := authz.Errand{Kind: authz.ErrandStep, EAN: m.ean, Action: authz.ActionRevoke, ConsentID: r.ID, Scope: r.Scope().Digest(m.ean)}
	coarse := request(m.new, 0x24)
	coarse.Purpose = meter.Billing
	long := request(m.new, 0x25)
	long.ValidUntil = baseTime.AddDate(10, 0, 0)

	// Tokens that no issuer of ours signs, signed by a key of theirs: the scope of
	// employees given to a supplier, and employees of another than the operator.
	posing := *m.new
	posing.facts.Scopes = []string{authn.ScopeConsents, authn.ScopeStaff}
	w.clock.advance(time.Millisecond)
	var err error
	posing.record, err = w.as("registrar").SealSupplier(t.Context(), m.new.record, posing.facts)
	w.must(err)
	forge := func(change func(claims map[string]any)) string {
		details, err := authn.EncodeErrand(func() authz.Errand { e := granting; e.Reason = "x"; return e }(), w.profile)
		w.must(err)
		claims := map[string]any{
			"iss": issuerURL, "aud": audience, "sub": "kim", "client_id": m.new.gln.String(), "scope": authn.ScopeStaff, "jti": "1",
			"iat": w.clock.now().Unix(), "exp": w.clock.now().Add(time.Minute).Unix(), "roles": []string{"agent"},
			"authorization_details": json.RawMessage(details),
			"cnf":                   map[string]string{"x5t#S256": base64.RawURLEncoding.EncodeToString(m.new.leaf[:])},
		}
		change(claims)
		return signed(w, sign, claims)
	}
	good := forge(func(c map[string]any) {
		c["client_id"] = portal.gln.String()
		c["cnf"] = map[string]string{"x5t#S256": base64.RawURLEncoding.EncodeToString(portal.leaf[:])}
	})
	if _, err := m.take(good, portal.record, yes); err != nil { // else the forged ones below fail for their form
		t.Fatal(err)
	}

	flipped := bytes.Clone(m.file)
	flipped[len(flipped)/2] ^= 1
	on := func(file []byte) *point { p := *m.point; p.file = file; return &p }
	readingsOnly, _, err := w.as("issuer").SignToken(t.Context(), m.new.record, m.new.leaf, []string{authn.ScopeReadings}, time.Minute)
	w.must(err)

	before := len(w.audit())
	for _, c := range []struct {
		name   string
		token  string
		record []byte
		on     *point
		step   authz.Step
		want   error
	}{
		// An employee's errand is one step of one consent, as it was seen.
		{"another answer", grant, portal.record, m.point, authz.RejectConsent{ID: r.ID}, authz.ErrNotPermitted},
		{"another step", grant, portal.record, m.point, authz.RevokeConsent{ID: r.ID}, authz.ErrNotPermitted},
		{"another consent", grant, portal.record, m.point, authz.AcceptConsent{ID: other.ID, Evidence: "call-1"}, authz.ErrNotPermitted},
		{"a consent that is given", grant, portal.record, m.point, authz.RevokeConsent{ID: m.consent}, authz.ErrNotPermitted},
		{"other evidence", grant, portal.record, m.point, authz.AcceptConsent{ID: r.ID, Evidence: "call-2"}, authz.ErrNotPermitted},
		{"another scope than was seen", staff(sawOther), portal.record, m.point, yes, authz.ErrNotPermitted},
		{"another metering point", grant, portal.record, neighbour, yes, authz.ErrNotPermitted},
		{"another metering point's errand", staff(elsewhere), portal.record, m.point, yes, authz.ErrNotPermitted},
		{"a new consent", grant, portal.record, m.point, registered, authz.ErrNotPermitted},
		{"registered for longer", staff(registering), portal.record, m.point, longer, authz.ErrNotPermitted},
		{"registered for more days", staff(registering), portal.record, m.point, finer, authz.ErrNotPermitted},
		{"registered for another supplier", staff(registering), portal.record, m.point, theirs, authz.ErrNotPermitted},
		{"a request", staff(registering), portal.record, m.point, request(m.new, 0x30), authz.ErrNotPermitted},
		{"an errand to revoke", staff(revoking), portal.record, m.point, yes, authz.ErrNotPermitted},
		{"an errand to read", staff(readings), portal.record, m.point, yes, authz.ErrNotPermitted},
		{"an errand to view", staff(view), portal.record, m.point, yes, authz.ErrNotPermitted},
		{"an auditor", w.staffToken(portal, "lee", authz.Auditor, view), portal.record, m.point, yes, authz.ErrNotPermitted},
		{"supply, by an employee", grant, portal.record, m.point, authz.SetSupply{Supplier: m.old.gln, Days: days("2022-01-01", "2022-02-01")}, authz.ErrNotPermitted},
		{"a move, by an employee", grant, portal.record, m.point, authz.SetOccupancy{Days: days("2022-01-01", "2022-02-01")}, authz.ErrNotPermitted},
		{"an opt-out, by an employee", grant, portal.record, m.point, authz.SetOptOut{Days: days("2024-01-01", "2024-01-02")}, authz.ErrNotPermitted},

		// A supplier asks, and gives up what is its own.
		{"granting itself its request", supplier, m.new.record, m.point, yes, authz.ErrNotPermitted},
		{"giving itself a consent", supplier, m.new.record, m.point, registered, authz.ErrNotPermitted},
		{"rejecting", supplier, m.new.record, m.point, authz.RejectConsent{ID: r.ID}, authz.ErrNotPermitted},
		{"asking for another", supplier, m.new.record, m.point, request(m.old, 0x31), authz.ErrNotPermitted},
		{"another supplier's consent", w.consentToken(m.old), m.old.record, m.point, authz.RevokeConsent{ID: m.consent}, authz.ErrConsentUnknown},
		{"another supplier's request", w.consentToken(m.old), m.old.record, m.point, authz.RevokeConsent{ID: r.ID}, authz.ErrConsentUnknown},
		{"a consent that is not", supplier, m.new.record, m.point, authz.RevokeConsent{ID: [16]byte{0x77}}, authz.ErrConsentUnknown},
		{"another supplier's customer", w.consentToken(stranger), stranger.record, m.point, request(stranger, 0x32), authz.ErrNoRelation},
		{"another supplier's customer's consent", w.consentToken(stranger), stranger.record, m.point, authz.RevokeConsent{ID: m.consent}, authz.ErrNoRelation},
		{"a purpose that needs none", supplier, m.new.record, m.point, coarse, authz.ErrConsentNotPossible},
		{"for ten years", supplier, m.new.record, m.point, long, authz.ErrConsentNotPossible},
		{"an id that is taken", supplier, m.new.record, m.point, request(m.new, 0x21), authz.ErrStep},
		{"supply, by a supplier", supplier, m.new.record, m.point, authz.SetSupply{Supplier: m.new.gln, Days: days("2022-01-01", "2022-02-01")}, authz.ErrNotPermitted},
		{"the end of an opt-out, by a supplier", supplier, m.new.record, m.point, authz.EndOptOut{From: day("2024-01-01")}, authz.ErrNotPermitted},
		{"registering, by a supplier", supplier, m.new.record, on(nil), authz.Register{EAN: m.ean, Commodity: meter.Gas}, client.ErrEvidence},

		// Whose token it is.
		{"no token", "", m.new.record, m.point, request(m.new, 0x33), client.ErrTokenRefused},
		{"a token to read", readingsOnly, m.new.record, m.point, request(m.new, 0x33), client.ErrSupplierRefused},
		{"a supplier's token on the operator's record", supplier, portal.record, m.point, yes, client.ErrSupplierRefused},
		{"an employee's token on a supplier's record", grant, m.new.record, m.point, yes, client.ErrSupplierRefused},
		{"an employee's token on a supplier's record with the scope", grant, posing.record, m.point, yes, client.ErrSupplierRefused},
		{"an employee of a supplier", forge(func(map[string]any) {}), posing.record, m.point, yes, client.ErrTokenRefused},
		{"an employee of a supplier, on the operator's record", forge(func(map[string]any) {}), portal.record, m.point, yes, client.ErrTokenRefused},
		{"a supplier in the scope of employees", forge(func(c map[string]any) {
			c["sub"] = m.new.gln.String()
			delete(c, "roles")
			delete(c, "authorization_details")
		}), posing.record, m.point, yes, client.ErrTokenRefused},
		{"an expired token", forge(func(c map[string]any) {
			c["client_id"] = portal.gln.String()
			c["iat"], c["exp"] = w.clock.now().Add(-2*time.Minute).Unix(), w.clock.now().Unix()
		}), portal.record, m.point, yes, client.ErrTokenRefused},
		{"a token of tomorrow", forge(func(c map[string]any) {
			c["client_id"] = portal.gln.String()
			c["iat"], c["exp"] = w.clock.now().Add(time.Hour).Unix(), w.clock.now().Add(time.Hour+time.Minute).Unix()
		}), portal.record, m.point, yes, client.ErrTokenRefused},

		// On what.
		{"an altered file", grant, portal.record, on(flipped), yes, client.ErrEvidence},
		{"no file", grant, portal.record, on(nil), yes, client.ErrEvidence},
		{"a record as a file", grant, portal.record, on(portal.record), yes, client.ErrEvidence},
		{"a file as a record", grant, m.file, m.point, yes, client.ErrSupplierRefused},
	} {
		got, err := c.on.take(c.token, c.record, c.step)
		if !errors.Is(err, c.want) || !errors.Is(err, client.ErrRefused) || got != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && (strings.Contains(err.Error(), m.new.gln.String()) || strings.Contains(err.Error(), m.old.gln.String()) || strings.Contains(err.Error(), m.ean.String())) {
			t.Errorf("%s: the text names somebody: %v", c.name, err)
		}
	}
	// What is foreign and what is not there are told alike.
	_, foreign := m.take(w.consentToken(m.old), m.old.record, authz.RevokeConsent{ID: m.consent})
	_, unknown := m.take(w.consentToken(m.old), m.old.record, authz.RevokeConsent{ID: [16]byte{0x78}})
	if foreign == nil || unknown == nil || foreign.Error() != unknown.Error() {
		t.Errorf("another's consent: %v; none: %v", foreign, unknown)
	}
	// The profile that the gateway decided by, and a step that is none.
	q := client.TakeStepRequest{AccessToken: grant, SupplierRecord: portal.record, Profile: w.profile.Digest(), Previous: m.file, Step: yes}
	q.Profile[0] ^= 1
	if _, err := w.as("gateway").TakeStep(t.Context(), q); !errors.Is(err, client.ErrProfileMismatch) {
		t.Errorf("another profile: %v", err)
	}
	digest := w.profile.Digest()
	_, err = w.raw(w.clientTLS("gateway")).TakeStep(t.Context(), &cryptopb.TakeStepRequest{
		AccessToken: grant, SupplierRecord: portal.record, ProfileDigest: digest[:], Previous: m.file, Step: append(yes.Encode(), 0),
	})
	if reasonOf(err) != cryptopb.ReasonMalformed {
		t.Errorf("a step with something behind it: %v", err)
	}
	if n := len(w.audit()); n != before {
		t.Errorf("%d entries in the journal more: something was sealed", n-before)
	}
	// After all that the errand can be done, once.
	m.taken(grant, portal.record, yes)
	if _, err := m.take(grant, portal.record, yes); !errors.Is(err, authz.ErrConsentAnswered) {
		t.Errorf("answered twice: %v", err)
	}
}

// taken is a request by the market's new supplier.
func (w *world) taken(m *market, r authz.RequestConsent) {
	w.t.Helper()
	m.point.taken(w.consentToken(m.new), m.new.record, r)
}

// signed is a token of any claims under the server's own access-token key.
func signed(w *world, tokens cryptoserver.Tokens, claims map[string]any) string {
	w.t.Helper()
	key := tokens.Sign.Signer()
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok {
		w.t.Fatal("the key is no ECDSA key")
	}
	kid, err := authn.KeyID(pub)
	w.must(err)
	payload, err := json.Marshal(claims)
	w.must(err)
	return jwt(fmt.Sprintf(`{"typ":"at+jwt","alg":"ES256","kid":%q}`, kid), string(payload), func(input string) []byte {
		digest := sha256.Sum256([]byte(input))
		der, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
		w.must(err)
		var s struct{ R, S *big.Int }
		_, err = asn1.Unmarshal(der, &s)
		w.must(err)
		return slices.Concat(s.R.FillBytes(make([]byte, 32)), s.S.FillBytes(make([]byte, 32)))
	})
}

// TestTakeStepRollback: no step is taken on a file that counts no more, whether
// this server was shown a later one or the control feed says so; not even one that
// takes rights away. The same of the record the token stands on.
func TestTakeStepRollback(t *testing.T) {
	t.Parallel()
	w, restart := restartable(t)
	m, portal := w.market(), w.portal()
	w.mayAsk(m.new)
	r := request(m.new, 0x21)
	w.taken(m, r)
	old := *m.point
	yes := authz.AcceptConsent{ID: r.ID, Evidence: "call-1"}
	grant := func() string { return w.staffToken(portal, "kim", authz.Agent, errand(m.ean, authz.ActionGrant, r)) }
	revoke := func() string { return w.staffToken(portal, "kim", authz.Agent, errand(m.ean, authz.ActionRevoke, r)) }
	m.step(authz.SetOptOut{Days: days("2024-01-01", "2024-01-02")})

	// Neither was shown here yet.
	if _, err := old.take(grant(), portal.record, yes); err != nil {
		t.Fatalf("nothing says that there is a later file: %v", err)
	}
	w.opened(m.ask(m.new, energy(days("2024-04-01", "2024-04-02"), importLow)))
	before := len(w.audit())
	for name, err := range map[string]error{
		"a yes":        second(old.take(grant(), portal.record, yes)),
		"a revocation": second(old.take(revoke(), portal.record, authz.RevokeConsent{ID: r.ID})),
		"a request":    second(old.take(w.consentToken(m.new), m.new.record, request(m.new, 0x22))),
	} {
		if !errors.Is(err, client.ErrEvidence) {
			t.Errorf("%s on the file before the last: %v", name, err)
		}
	}
	if n := len(w.audit()); n != before {
		t.Error("something was sealed")
	}

	// A server that has just started knows nothing, and takes no step at all; then
	// it knows what the feed says.
	restart()
	if _, err := m.take(grant(), portal.record, yes); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("before it knows the feed: %v", err)
	}
	w.append(control.Entry{Kind: control.MinimumFiles, Files: []control.FileMinimum{w.versionOf(m.file)}})
	for name, err := range map[string]error{
		"a yes":        second(old.take(grant(), portal.record, yes)),
		"a revocation": second(old.take(revoke(), portal.record, authz.RevokeConsent{ID: r.ID})),
	} {
		if !errors.Is(err, client.ErrEvidence) {
			t.Errorf("%s on a file below the minimum: %v", name, err)
		}
	}
	if w.counter("kluis_cryptoserver_superseded_total", "kind", "legal_file") != 2 {
		t.Error("it is not counted")
	}

	// The portal's certificate, withdrawn: with the record that says so, and with
	// the one from before.
	facts := portal.facts
	facts.Certificates = slices.Clone(facts.Certificates)
	facts.Certificates[0].RevokedAt = w.clock.now()
	w.clock.advance(time.Millisecond)
	late := grant()
	next, err := w.as("registrar").SealSupplier(t.Context(), portal.record, facts)
	w.must(err)
	if _, err := m.take(late, next, yes); !errors.Is(err, client.ErrSupplierRefused) {
		t.Errorf("the portal's certificate is revoked: %v", err)
	}
	restart()
	w.append(control.Entry{Kind: control.MinimumSuppliers, Suppliers: []control.SupplierMinimum{{GLN: portal.gln, Version: 2}}})
	if _, err := m.take(late, portal.record, yes); !errors.Is(err, client.ErrSupplierRefused) {
		t.Errorf("the record from before the certificate was revoked: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestTakeStepFailsOver: servers that cannot take steps are not asked, and one that
// dies is left.
func TestTakeStepFailsOver(t *testing.T) {
	t.Parallel()
	var conf cryptoserver.Config
	w := newWorld(t, func(_ *world, c *cryptoserver.Config) { conf = *c })
	m := w.market()
	w.mayAsk(m.new)
	more := func(name string, tokens cryptoserver.Tokens) (string, func()) {
		c := conf
		c.ID, c.Tokens, c.TLS, c.Journal, c.Registerer = name, tokens, w.serverTLS("cryptoserver-"+name), w.newJournal(), prometheus.NewRegistry()
		s, err := cryptoserver.New(t.Context(), c)
		w.must(err)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		w.must(err)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx, l) }()
		stop := sync.OnceFunc(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(stop)
		return l.Addr().String(), stop
	}
	opens, _ := more("opens", cryptoserver.Tokens{Open: conf.Tokens.Open})
	second, kill := more("second", conf.Tokens)
	gateway, err := client.New(client.Config{Addresses: []string{opens, second, w.address}, TLS: w.clientTLS("gateway")})
	w.must(err)
	defer gateway.Close()
	custodian, err := client.New(client.Config{Addresses: []string{opens, second, w.address}, TLS: w.clientTLS("custodian")})
	w.must(err)
	defer custodian.Close()
	w.feed.Use(custodian)
	_, err = w.feed.Beat(t.Context())
	w.must(err)

	for i := range 20 {
		if i == 10 {
			kill()
		}
		next, err := gateway.TakeStep(t.Context(), client.TakeStepRequest{
			AccessToken: w.consentToken(m.new), SupplierRecord: m.new.record, Profile: w.profile.Digest(), Previous: m.file, Step: request(m.new, byte(0x40+i)),
		})
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		m.file = next
		w.clock.advance(time.Millisecond)
	}
}

// TestTakeStepSaysWhy: what authz says of a step arrives as what it is, with its
// text, and is no failure of the server's.
func TestTakeStepSaysWhy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m, portal := w.market(), w.portal()
	w.mayAsk(m.new)
	r, late := request(m.new, 0x21), request(m.new, 0x22)
	answer := func(action authz.ConsentAction, r authz.RequestConsent) string {
		return w.staffToken(portal, "kim", authz.Agent, errand(m.ean, action, r))
	}
	w.taken(m, r)
	w.taken(m, late)
	m.taken(answer(authz.ActionReject, r), portal.record, authz.RejectConsent{ID: r.ID})
	m.taken(w.consentToken(m.new), m.new.record, authz.RevokeConsent{ID: m.consent})
	w.advance(31 * 24 * time.Hour)
	for i := len(m.legalFile().Consents()); i < authz.MaxConsents; i++ {
		w.taken(m, request(m.new, byte(0x40+i)))
	}
	for _, c := range []struct {
		name, token string
		record      []byte
		step        authz.Step
		want        error
		text        string
	}{
		{"rejected before", answer(authz.ActionGrant, r), portal.record, authz.AcceptConsent{ID: r.ID, Evidence: "call-1"}, authz.ErrConsentAnswered, "asked for"},
		{"not answered in time", answer(authz.ActionGrant, late), portal.record, authz.AcceptConsent{ID: late.ID, Evidence: "call-1"}, authz.ErrConsentLapsed, "in time"},
		{"revoked before", w.consentToken(m.new), m.new.record, authz.RevokeConsent{ID: m.consent}, authz.ErrConsentEnded, "asked for"},
		{"too many", w.consentToken(m.new), m.new.record, request(m.new, 0x23), authz.ErrTooManyConsents, "64"},
	} {
		_, err := m.take(c.token, c.record, c.step)
		if !errors.Is(err, c.want) || !errors.Is(err, authz.ErrStep) || !errors.Is(err, client.ErrRefused) || errors.Is(err, client.ErrUnavailable) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var e *client.Error
		if !errors.As(err, &e) || !strings.Contains(e.Text(), c.text) || strings.Contains(e.Text(), c.want.Error()) || strings.Count(err.Error(), c.want.Error()) != 1 {
			t.Errorf("%s: the text is %q", c.name, err)
		}
	}
}

// TestPointsPerToken: with one supplier's token a captured gateway opens so many
// metering points and no more.
func TestPointsPerToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *world, c *cryptoserver.Config) { c.PointsPerToken = 2 })
	old, by := w.supplier("871234500000", "Old Energy"), w.supplier("871234500001", "New Energy")
	var points []*point
	for i := range 4 {
		p := w.electricity(old, by, [16]byte{byte(i + 1)})
		p.store(w.registerBlock(importLow, day("2024-04-01")), w.registerBlock(importLow, day("2024-04-02")))
		points = append(points, p)
	}
	r := energy(days("2024-04-01", "2024-04-02"), importLow)
	tok := w.token(by)
	open := func(tok string, of ...*point) ([]client.Opened, error) {
		q := of[0].ask(by, r)
		for _, p := range of[1:] {
			q.Units = append(q.Units, p.ask(by, r).Units...)
		}
		q.AccessToken = tok
		return w.as("gateway").Open(t.Context(), q)
	}
	w.open.opened()
	for _, c := range []struct {
		name string
		of   []*point
		ok   bool
	}{
		{"one", points[:1], true},
		{"the same again", points[:1], true},
		{"two more at once", points[1:3], false},
		{"one of them", points[1:2], true},
		{"a third", points[2:3], false},
		{"a third beside the first two", points[:3], false},
		{"the first two", points[:2], true},
	} {
		_, err := open(tok, c.of...)
		opened := w.open.opened()
		if c.ok {
			if err != nil || opened != 2*len(c.of) {
				t.Errorf("%s: %d blocks opened, %v", c.name, opened, err)
			}
			continue
		}
		if !errors.Is(err, client.ErrTokenSpent) || !errors.Is(err, client.ErrTokenRefused) || !errors.Is(err, client.ErrRefused) || opened != 0 {
			t.Errorf("%s: %d blocks opened, %v", c.name, opened, err)
		}
	}
	if n := w.counter("kluis_cryptoserver_refusals_total", "method", "Open", "reason", "TOKEN_SPENT"); n != 3 {
		t.Errorf("%v refusals are counted", n)
	}
	if f := w.counter("kluis_cryptoserver_token_points_filled"); f <= 0 || f > 0.01 {
		t.Errorf("filled %v", f)
	}
	// What opens nothing does not count, and another token does as well.
	q := points[3].ask(by, r)
	q.AccessToken, q.Units[0].Blocks = tok, nil
	if got := w.opened(q); got.Err != nil {
		t.Errorf("nothing to open: %v", got.Err)
	}
	known := points[0].ask(by, r)
	known.AccessToken, known.Units = tok, append(known.Units, q.Units...)
	if got, err := w.as("gateway").Open(t.Context(), known); err != nil || len(got) != 2 {
		t.Errorf("nothing to open, beside one that is known: %v", err)
	}
	if _, err := open(w.token(by), points[2:]...); err != nil {
		t.Errorf("another token: %v", err)
	}
}
