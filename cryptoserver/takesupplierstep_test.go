package cryptoserver_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/authz"
	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/envelope"
	"kluis/internal/authn"
	"kluis/internal/testing/stafftest"
)

// supervisorToken is Kim's, to suspend a supplier or to resume it.
func (w *world) supervisorToken(portal, of *party, suspend bool) string {
	w.t.Helper()
	return w.staffToken(portal, "kim", authz.Supervisor, authz.Errand{Kind: authz.ErrandSupplier, Supplier: of.gln, Suspend: suspend})
}

func (w *world) switchSupplier(token string, own, previous []byte, suspend bool) ([]byte, error) {
	w.t.Helper()
	return w.as("gateway").TakeSupplierStep(w.t.Context(), client.TakeSupplierStepRequest{AccessToken: token, SupplierRecord: own, Previous: previous, Suspend: suspend})
}

// TestTakeSupplierStep: a supervisor suspends a supplier, which reads nothing and
// gets no token from then on, and resumes it.
func TestTakeSupplierStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	portal := w.portal()
	reading := m.ask(m.new, energy(days("2024-04-01", "2024-04-02"), importLow))
	reads := func() error { _, err := w.as("gateway").Open(t.Context(), reading); return err }
	getsToken := func() error {
		_, _, err := w.as("issuer").SignToken(t.Context(), m.new.record, m.new.leaf, []string{authn.ScopeReadings}, time.Minute)
		return err
	}
	before := len(w.audit())
	previous := m.new.record
	for i, suspend := range []bool{true, false, true} {
		w.clock.advance(time.Second)
		sealed, err := w.switchSupplier(w.supervisorToken(portal, m.new, suspend), portal.record, previous, suspend)
		w.must(err)
		next, err := w.sealKeysOf().Supplier(sealed)
		w.must(err)
		was, err := w.sealKeysOf().Supplier(previous)
		w.must(err)
		if next.GLN() != m.new.gln || next.Version() != uint64(i)+2 || next.Suspended() != suspend || next.Previous() != was.Digest() ||
			next.Actor() != (authz.Actor{Kind: authz.ByEmployee, Name: stafftest.Subject("kim")}) || !next.FollowsOn(was) {
			t.Fatalf("version %d by %v, suspended %v", next.Version(), next.Actor(), next.Suspended())
		}
		events := w.audit()
		e := events[len(events)-1].SealEvent
		if e == nil || e.Kind != envelope.SupplierRecord || e.Client != "gateway" || e.GLN != m.new.gln || e.Version != next.Version() || e.Digest != next.Digest() {
			t.Errorf("journal: %+v", e)
		}
		previous, m.new.record, reading.SupplierRecord = sealed, sealed, sealed
		for what, err := range map[string]error{"reads": reads(), "gets a token": getsToken()} {
			if suspend != errors.Is(err, client.ErrSupplierRefused) || !suspend && err != nil {
				t.Errorf("%s, suspended %v: %v", what, suspend, err)
			}
		}
	}
	if n := len(w.audit()) - before; n < 3 {
		t.Errorf("%d entries", n)
	}
	// As it is already: nothing is sealed.
	n := len(w.audit())
	w.clock.advance(time.Second)
	if _, err := w.switchSupplier(w.supervisorToken(portal, m.new, true), portal.record, previous, true); !errors.Is(err, client.ErrStepRefused) {
		t.Errorf("suspended already: %v", err)
	}
	if len(w.audit()) != n {
		t.Error("something was sealed")
	}
}

// TestTakeSupplierStepByWhoMayNot: a captured gateway, with tokens of suppliers
// and of employees, has no supplier suspended or resumed but the one a
// supervisor's token is for, and seals nothing besides.
func TestTakeSupplierStepByWhoMayNot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	portal, by, other := w.portal(), w.supplier("871234500001", "New Energy"), w.supplier("871234500002", "Other Energy")
	w.mayAsk(by)
	w.clock.advance(time.Second)
	suspended, err := w.switchSupplier(w.supervisorToken(portal, other, true), portal.record, other.record, true)
	w.must(err)
	good := w.supervisorToken(portal, by, true)
	staff := func(role authz.Role, e authz.Errand) string { return w.staffToken(portal, "kim", role, e) }
	ean := w.readingsErrand().EAN
	flipped := bytes.Clone(by.record)
	flipped[len(flipped)/2] ^= 1
	file := w.point(1)
	caught := w.supervisorToken(portal, other, false) // issued before what follows
	w.clock.advance(time.Second)
	resumed, err := w.switchSupplier(w.supervisorToken(portal, other, false), portal.record, suspended, false)
	w.must(err)
	again, err := w.switchSupplier(w.supervisorToken(portal, other, true), portal.record, resumed, true)
	w.must(err)
	stopped := w.supplier("871234500003", "Stopped Energy")
	stopped.facts.Suspended = true
	stopped.record, err = w.as("registrar").SealSupplier(w.t.Context(), stopped.record, stopped.facts)
	w.must(err)

	before := len(w.audit())
	for _, c := range []struct {
		name     string
		token    string
		own      []byte
		previous []byte
		suspend  bool
		want     error
	}{
		{"another supplier", good, portal.record, again, true, authz.ErrNotPermitted},
		{"the other step", good, portal.record, by.record, false, authz.ErrNotPermitted},
		{"a resumption of what is not suspended", w.supervisorToken(portal, by, false), portal.record, by.record, false, client.ErrStepRefused},
		{"what the registrar suspended", w.supervisorToken(portal, stopped, false), portal.record, stopped.record, false, authz.ErrNotPermitted},
		{"the operator's own", w.supervisorToken(portal, portal, true), portal.record, portal.record, true, authz.ErrNotPermitted},
		{"an errand to oversee", staff(authz.Supervisor, authz.Errand{Kind: authz.ErrandOversee}), portal.record, by.record, true, authz.ErrNotPermitted},
		{"an errand to view", staff(authz.Supervisor, authz.Errand{Kind: authz.ErrandView, EAN: ean}), portal.record, by.record, true, authz.ErrNotPermitted},
		{"an agent", staff(authz.Agent, authz.Errand{Kind: authz.ErrandOversee}), portal.record, by.record, true, authz.ErrNotPermitted},
		{"an auditor", staff(authz.Auditor, authz.Errand{Kind: authz.ErrandOversee}), portal.record, by.record, true, authz.ErrNotPermitted},
		{"the supplier itself", w.token(by), by.record, by.record, true, client.ErrSupplierRefused},
		{"a supplier, of another", w.consentToken(by), by.record, other.record, true, client.ErrSupplierRefused},
		{"another's record as the client's", good, by.record, by.record, true, client.ErrSupplierRefused},
		{"no token", "", portal.record, by.record, true, client.ErrTokenRefused},
		{"no record", good, nil, by.record, true, client.ErrSupplierRefused},
		{"no previous", good, portal.record, nil, true, client.ErrEvidence},
		{"a record that was altered", good, portal.record, flipped, true, client.ErrEvidence},
		{"a legal file", good, portal.record, file.file, true, client.ErrEvidence},
		{"an older version", w.supervisorToken(portal, other, true), portal.record, resumed, true, client.ErrEvidence},
		{"a token from before the suspension", caught, portal.record, again, false, authz.ErrNotPermitted},
	} {
		if sealed, err := w.switchSupplier(c.token, c.own, c.previous, c.suspend); !errors.Is(err, c.want) || sealed != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// No role but the supervisor's is given the errand, for any supplier.
	details := w.office.Errand(authz.Errand{Kind: authz.ErrandSupplier, Supplier: by.gln, Suspend: true})
	for _, role := range []authz.Role{authz.Agent, authz.Auditor} {
		if _, _, err := w.as("issuer").SignStaffToken(t.Context(), portal.record, portal.leaf, w.office.IDToken("kim", w.clock.now(), role), details, time.Minute); !errors.Is(err, client.ErrErrandRefused) {
			t.Errorf("%v: %v", role, err)
		}
	}
	if got := len(w.audit()); got != before {
		t.Errorf("%d entries in the journal", got-before)
	}
	// It was for the very step alone, and expires.
	if _, err := w.switchSupplier(good, portal.record, by.record, true); err != nil {
		t.Errorf("the right one: %v", err)
	}
	w.advance(6 * time.Minute)
	if _, err := w.switchSupplier(good, portal.record, by.record, true); !errors.Is(err, client.ErrTokenRefused) && !errors.Is(err, client.ErrSupplierRefused) {
		t.Errorf("an expired token: %v", err)
	}
	if strings.Contains(w.log.String(), stafftest.Subject("kim")) || strings.Contains(w.log.String(), good) {
		t.Error("the log names the employee, or has the token")
	}
}

// TestTakeSupplierStepAfterARestart: what counts no more by the control feed is
// no ground for a step, also at a server that saw nothing yet.
func TestTakeSupplierStepAfterARestart(t *testing.T) {
	t.Parallel()
	w, restart := restartable(t)
	portal, by := w.portal(), w.supplier("871234500001", "New Energy")
	kept := by.record
	w.clock.advance(time.Second)
	suspended, err := w.switchSupplier(w.supervisorToken(portal, by, true), portal.record, kept, true)
	w.must(err)
	w.append(control.Entry{Kind: control.MinimumSuppliers, Suppliers: []control.SupplierMinimum{{GLN: by.gln, Version: 2}}})
	again := w.supervisorToken(portal, by, true)
	resume := w.supervisorToken(portal, by, false)
	restart()
	if _, err := w.switchSupplier(again, portal.record, kept, true); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("without the feed: %v", err)
	}
	_, err = w.feed.Beat(t.Context())
	w.must(err)
	if _, err := w.switchSupplier(again, portal.record, kept, true); !errors.Is(err, client.ErrEvidence) {
		t.Errorf("on the version before the suspension: %v", err)
	}
	if _, err := w.switchSupplier(resume, portal.record, suspended, false); err != nil {
		t.Errorf("on the current one: %v", err)
	}
	// An operator's record that counts no more gives nobody a step.
	w.append(control.Entry{Kind: control.MinimumSuppliers, Suppliers: []control.SupplierMinimum{{GLN: portal.gln, Version: 2}}})
	if _, err := w.switchSupplier(resume, portal.record, suspended, false); !errors.Is(err, client.ErrSupplierRefused) {
		t.Errorf("with an operator's record that was replaced: %v", err)
	}
}

// TestTakeSupplierStepNeedsIssuers: a server that only seals must be able to
// verify tokens, if it takes such steps.
func TestTakeSupplierStepNeedsIssuers(t *testing.T) {
	t.Parallel()
	var config cryptoserver.Config
	newWorld(t, func(_ *world, c *cryptoserver.Config) { config = *c })
	config.Tokens = cryptoserver.Tokens{Seal: config.Tokens.Seal}
	config.Registerer, config.Verifier, config.Allow = prometheus.NewRegistry(), nil, map[string][]string{"TakeSupplierStep": {"gateway"}}
	if _, err := cryptoserver.New(t.Context(), config); err == nil || !strings.Contains(err.Error(), "issuers") {
		t.Errorf("%v", err)
	}
}
