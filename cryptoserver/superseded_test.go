package cryptoserver_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/authz"
	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
	"kluis/internal/authn"
	"kluis/meter"
)

// restartable is a world whose server can be replaced by one that has just
// started and remembers nothing, not even the feed.
func restartable(t *testing.T) (w *world, restart func()) {
	t.Helper()
	var conf cryptoserver.Config
	w = newWorld(t, func(_ *world, c *cryptoserver.Config) { conf = *c })
	return w, func() {
		t.Helper()
		w.reg = prometheus.NewRegistry()
		conf.Registerer = w.reg
		s, err := cryptoserver.New(t.Context(), conf)
		w.must(err)
		w.address = w.serve(s)
		clear(w.clients)
		w.feed.Use(w.as("custodian"))
	}
}

func (w *world) versionOf(file []byte) control.FileMinimum {
	w.t.Helper()
	keys, err := authz.NewSealKeys(w.hsm.SealKeys...)
	w.must(err)
	f, err := keys.LegalFile(file)
	w.must(err)
	return control.FileMinimum{EAN: f.EAN(), Version: f.Version(), SealedAt: f.SealedAt()}
}

// TestReplayAfterARestart: a captured gateway kept a legal file from before a
// revocation. A server that has just started has seen no newer one, and
// believes nobody about what is current but the control feed.
func TestReplayAfterARestart(t *testing.T) {
	t.Parallel()
	w, restart := restartable(t)
	m := w.market()
	r := energy(days("2024-04-01", "2024-04-03"), importIntervals)
	replay := m.ask(m.new, r)
	kept := m.file
	m.step(authz.RevokeConsent{ID: m.consent})
	m.step(authz.SetOptOut{Days: days("2024-01-01", "2024-01-02")})
	revoked := w.versionOf(m.file)
	revoked.Version--

	restart()
	if _, err := w.as("gateway").Open(t.Context(), replay); !errors.Is(err, client.ErrUnavailable) {
		t.Fatalf("before it knows the feed: %v", err)
	}
	// What this shows is that nothing but the feed stands in the way.
	_, err := w.feed.Beat(t.Context())
	w.must(err)
	if got := w.opened(replay); got.Err != nil || len(got.Series) != 1 {
		t.Fatalf("the feed says nothing of it yet: %+v", got)
	}

	w.append(control.Entry{Kind: control.MinimumFiles, Files: []control.FileMinimum{revoked}})
	w.open.opened()
	for _, when := range []string{"at once", "after another restart"} {
		if got := w.opened(replay); !errors.Is(got.Err, client.ErrEvidence) || got.Series != nil || got.Receipt != nil {
			t.Errorf("%s: %+v", when, got)
		}
		if n := w.open.opened(); n != 0 {
			t.Errorf("%s: the token opened %d blocks", when, n)
		}
		if w.counter("kluis_cryptoserver_superseded_total", "kind", "legal_file") != 1 ||
			w.counter("kluis_cryptoserver_units_total", "outcome", "evidence_superseded") != 1 ||
			w.counter("kluis_cryptoserver_minimum_versions") != 1 {
			t.Errorf("%s: it is not counted", when)
		}
		// The version that took the right away, and the one after, are served.
		if got := w.opened(m.ask(m.new, r)); got.Err != nil || len(got.Series) != 0 {
			t.Errorf("%s: the current file: %+v", when, got)
		}
		if got := w.opened(m.ask(m.new, energy(days("2024-04-01", "2024-04-03"), importLow))); got.Err != nil || len(got.Series) != 1 {
			t.Errorf("%s: what the current file allows: %+v", when, got)
		}
		w.open.opened()
		restart()
		_, err := w.feed.Beat(t.Context())
		w.must(err)
	}

	// No other metering point is touched.
	other := w.electricity(m.old, m.new, [16]byte{9})
	if got := w.opened(other.ask(m.new, r)); got.Err != nil {
		t.Errorf("another metering point: %+v", got)
	}

	// Nor does a step on top of the old version bring the right back under a
	// higher number; one that takes away may be taken.
	registrar := w.as("registrar")
	if _, err := registrar.SealStep(t.Context(), kept, authz.EndOptOut{From: day("2024-01-01")}); err == nil {
		t.Error("a step on top of the old file")
	}
	for name, step := range map[string]authz.Step{
		"a later supply":   authz.SetSupply{Supplier: m.old.gln, Days: days("2022-01-01", "2022-02-01")},
		"another consent":  authz.GrantConsent{ID: [16]byte{7}, Supplier: m.new.gln, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals}, Granularity: meter.PT15M, Days: days("2024-01-01", "2024-02-01"), ValidUntil: baseTime.AddDate(1, 0, 0), Evidence: "x"},
		"an old occupancy": authz.SetOccupancy{Days: days("2020-01-01", "2021-01-01")},
	} {
		if _, err := registrar.SealStep(t.Context(), kept, step); !errors.Is(err, client.ErrEvidence) || !strings.Contains(err.Error(), "put back") {
			t.Errorf("%s on top of the old file: %v", name, err)
		}
	}
	again, err := registrar.SealStep(t.Context(), kept, authz.RevokeConsent{ID: m.consent})
	w.must(err)
	if got := w.versionOf(again); got.Version != revoked.Version {
		t.Errorf("the revocation taken again has %+v", got)
	}
	m.step(authz.SetOptOut{Days: days("2024-01-02", "2024-01-03")}) // on the current one
	if !strings.Contains(w.log.String(), "was the database put back?") {
		t.Error("a step on an old file is not in the log")
	}
}

// TestReplayedSupplierRecord: the same of a certificate that was withdrawn and
// of a supplier that was suspended, for readings and for tokens.
func TestReplayedSupplierRecord(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*authz.SupplierFacts){
		"certificate withdrawn": func(f *authz.SupplierFacts) { f.Certificates[0].RevokedAt = baseTime },
		"suspended":             func(f *authz.SupplierFacts) { f.Suspended = true },
		"scope withdrawn":       func(f *authz.SupplierFacts) { f.Scopes = nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, restart := restartable(t)
			m := w.market()
			replay := m.ask(m.new, energy(days("2024-04-01", "2024-04-03"), importLow))
			kept, facts := m.new.record, m.new.facts
			facts.Certificates = slices.Clone(facts.Certificates)
			change(&facts)
			w.clock.advance(time.Millisecond)
			narrowed, err := w.as("registrar").SealSupplier(t.Context(), kept, facts)
			w.must(err)
			w.append(control.Entry{Kind: control.MinimumSuppliers, Suppliers: []control.SupplierMinimum{{GLN: m.new.gln, Version: 2}}})
			restart()
			// A restarted server signs no next version before it knows the feed.
			if _, err := w.as("registrar").SealSupplier(t.Context(), kept, m.new.facts); !errors.Is(err, client.ErrUnavailable) {
				t.Errorf("sealed without the feed: %v", err)
			}
			if _, err := w.as("registrar").SealStep(t.Context(), m.file, authz.SetOptOut{Days: days("2024-01-02", "2024-01-03")}); !errors.Is(err, client.ErrUnavailable) {
				t.Errorf("a step without the feed: %v", err)
			}
			_, err = w.feed.Beat(t.Context())
			w.must(err)
			w.open.opened()
			if _, err := w.as("gateway").Open(t.Context(), replay); !errors.Is(err, client.ErrSupplierRefused) {
				t.Errorf("readings: %v", err)
			}
			if n := w.open.opened(); n != 0 {
				t.Errorf("the token opened %d blocks", n)
			}
			if _, _, err := w.as("issuer").SignToken(t.Context(), kept, m.new.leaf, []string{authn.ScopeReadings}, time.Minute); !errors.Is(err, client.ErrSupplierRefused) {
				t.Errorf("a token: %v", err)
			}
			if n := w.counter("kluis_cryptoserver_superseded_total", "kind", "supplier_record"); n != 2 {
				t.Errorf("counted %v times", n)
			}
			if _, err := w.as("registrar").SealSupplier(t.Context(), kept, m.new.facts); !errors.Is(err, client.ErrEvidence) {
				t.Errorf("a next version on top of the old record: %v", err)
			}
			w.clock.advance(time.Millisecond)
			if _, err := w.as("registrar").SealSupplier(t.Context(), kept, facts); err != nil {
				t.Errorf("withdrawn again: %v", err)
			}
			if _, err := w.as("registrar").SealSupplier(t.Context(), narrowed, facts); err != nil {
				t.Errorf("on top of the current one: %v", err)
			}
		})
	}
}

// TestMinimumsAreOnlyTheCustodians: nobody else has an entry signed.
func TestMinimumsAreOnlyTheCustodians(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	entry, err := control.Entry{At: baseTime, Kind: control.MinimumFiles, Files: []control.FileMinimum{{EAN: m.ean, Version: 99, SealedAt: baseTime}}}.Encode()
	w.must(err)
	for _, identity := range []string{"gateway", "registrar", "ingest", "issuer", "relay"} {
		head := w.feed.Head()
		if _, err := w.raw(w.clientTLS(identity)).SignControl(t.Context(), &cryptopb.SignControlRequest{Sequence: head.Sequence, Hash: head.Hash[:], Entry: entry}); reasonOf(err) != cryptopb.ReasonIdentityNotAllowed {
			t.Errorf("%s: %v", identity, err)
		}
	}
	// What says nothing new is not signed: the feed would grow for nothing.
	w.append(control.Entry{Kind: control.MinimumFiles, Files: []control.FileMinimum{{EAN: m.ean, Version: 2, SealedAt: baseTime}}})
	head := w.feed.Head()
	for version, fine := range map[uint64]bool{1: false, 2: false, 3: true} {
		entry, err := control.Entry{At: baseTime, Kind: control.MinimumFiles, Files: []control.FileMinimum{{EAN: m.ean, Version: version, SealedAt: baseTime}}}.Encode()
		w.must(err)
		if _, err := w.as("custodian").SignControl(t.Context(), head, entry); (err == nil) != fine {
			t.Errorf("version %d: %v", version, err)
		}
	}
}

// TestForkAhead: a captured gateway with a supplier's token has steps sealed that
// it does not store, ahead of the day on which a right is taken away: versions
// of higher numbers, in which the right still is. The control feed says since when
// a file must be sealed to count, so all of them go with it.
func TestForkAhead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	w.mayAsk(m.new)
	r := energy(days("2024-04-01", "2024-04-03"), importIntervals)
	fork := *m.point
	for i := range 10 {
		fork.taken(w.consentToken(m.new), m.new.record, request(m.new, byte(0x40+i)))
	}
	ahead := w.versionOf(fork.file)
	m.step(authz.RevokeConsent{ID: m.consent})
	revoked := w.versionOf(m.file)
	if revoked.Version+9 != ahead.Version {
		t.Fatalf("version %d, and %d ahead", revoked.Version, ahead.Version)
	}
	// Until the feed has it, nothing tells the two apart.
	if got := w.opened(fork.ask(m.new, r)); got.Err != nil || len(got.Series) != 1 {
		t.Fatalf("the fork does not open what the attack is after: %+v", got)
	}
	w.append(control.Entry{Kind: control.MinimumFiles, Files: []control.FileMinimum{revoked}})
	w.open.opened()
	if got := w.opened(fork.ask(m.new, r)); !errors.Is(got.Err, client.ErrEvidence) || got.Series != nil {
		t.Errorf("a version of a higher number from before the revocation: %+v", got)
	}
	if n := w.open.opened(); n != 0 {
		t.Errorf("the token opened %d blocks", n)
	}
	if _, err := fork.take(w.consentToken(m.new), m.new.record, request(m.new, 0x60)); !errors.Is(err, client.ErrEvidence) {
		t.Errorf("a step on it: %v", err)
	}
	if _, err := w.as("registrar").SealStep(t.Context(), fork.file, authz.SetSupply{Supplier: m.old.gln, Days: days("2022-01-01", "2022-02-01")}); !errors.Is(err, client.ErrEvidence) {
		t.Errorf("the registrar's step on it: %v", err)
	}
	// Nor do the true ones look old beside it.
	w.advance(2 * time.Minute)
	if got := w.opened(m.ask(m.new, energy(days("2024-04-01", "2024-04-03"), importLow))); got.Err != nil || len(got.Series) != 1 {
		t.Errorf("the true file: %+v", got)
	}
}
