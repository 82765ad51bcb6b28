package cryptoserver_test

import (
	"errors"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/meter"
)

// A server whose clock is a little behind the one that sealed last takes every
// step; one that is far behind says that it is the clock, which another server's
// may not be.
func TestClockBehind(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	w.mayAsk(m.new)
	token := w.consentToken(m.new)
	facts := m.new.facts
	registrar := w.as("registrar")
	// ahead has the registrar record something at a server whose clock is ahead.
	ahead := func(d time.Duration, on string) []byte {
		w.clock.advance(d)
		defer w.clock.advance(-d)
		m.step(authz.SetOptOut{Days: meter.DayRange{From: day(on), To: day(on) + 1}})
		record, err := registrar.SealSupplier(t.Context(), m.new.record, facts)
		w.must(err)
		return record
	}
	record := ahead(30*time.Second, "2023-01-01")
	last := m.legalFile().SealedAt()
	f := m.taken(token, m.new.record, request(m.new, 0x60))
	if !f.SealedAt().After(last) || f.SealedAt().Sub(last) > time.Second {
		t.Errorf("sealed at %s, the version before at %s", f.SealedAt(), last)
	}
	m.step(authz.RevokeConsent{ID: m.consent})
	if _, err := registrar.SealSupplier(t.Context(), record, facts); err != nil {
		t.Error("supplier record:", err)
	}

	record = ahead(2*time.Minute, "2023-01-03")
	_, byToken := m.take(token, m.new.record, request(m.new, 0x61))
	_, byRegistrar := registrar.SealStep(t.Context(), m.file, authz.SetOptOut{Days: days("2024-01-01", "2024-01-02")})
	_, ofRecord := registrar.SealSupplier(t.Context(), record, facts)
	for name, err := range map[string]error{"by token": byToken, "by the registrar": byRegistrar, "supplier record": ofRecord} {
		if !errors.Is(err, client.ErrClockBehind) || !errors.Is(err, client.ErrUnavailable) || errors.Is(err, authz.ErrStep) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
