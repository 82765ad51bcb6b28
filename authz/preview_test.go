package authz

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"kluis/meter"
)

// A preview says what taking the step does: who may, why not, and what a dry run
// of the supplier's then tells. Nothing of it can fetch a row.
func TestPreviewIsWhatTheStepDoes(t *testing.T) {
	t.Parallel()
	p, f := dutch(t), standings(t)
	r := AccessRequest{EAN: home, Days: days("2025-06-01", "2026-03-01"), Fields: []meter.FieldCode{importLow, importIntervals}}
	var steps []Step
	for _, k := range f.Consents() {
		steps = append(steps, AcceptConsent{k.ID, "call"}, RejectConsent{k.ID}, RevokeConsent{k.ID})
	}
	fresh := grant(99, func(g *GrantConsent) {
		g.Supplier, g.Days, g.ValidUntil, g.Evidence = beta, days("2025-07-01", ""), instant("2026-12-01T00:00:00Z"), "call-1"
	})
	stranger := fresh
	stranger.Supplier = gamma
	tooFine := fresh
	tooFine.Purpose = meter.Billing
	again := grant(byte(StandsActive), func(g *GrantConsent) {
		g.Supplier, g.ID, g.Days, g.Evidence = beta, uuid(98), days("2025-07-01", ""), "dossier/2"
	})
	steps = append(steps, fresh, stranger, tooFine, again)
	taken, refused, changed := 0, 0, 0
	for _, role := range []Role{Agent, Supervisor} {
		view := to(Errand{Kind: ErrandView})
		view.e.Role = role
		for _, step := range steps {
			got, err := PreviewStep(view, step, r, f, p, permitNow)
			if err != nil {
				t.Errorf("%T: %v", step, err)
				continue
			}
			by, why := Permit(toTake(step, f), step, f, p, permitNow)
			next, at := f, permitNow
			if why == nil {
				if next, why = Apply(f, step, by, permitNow, amsterdam); why != nil {
					next = f
				} else {
					at = next.SealedAt()
				}
			}
			if (got.Refused == nil) != (why == nil) || why != nil && got.Refused.Error() != why.Error() {
				t.Errorf("%T: %v, the step itself %v", step, got.Refused, why)
			}
			want := func(f *LegalFile) []string {
				a, err := DryRun(caller(got.Supplier), r, f, p, at)
				if errors.Is(err, ErrNoRelation) {
					return nil
				}
				return items(p, a)
			}
			if before := items(p, got.Before); !slices.Equal(before, want(f)) {
				t.Errorf("%T: before:\n%s", step, strings.Join(before, "\n"))
			}
			if after := items(p, got.After); !slices.Equal(after, want(next)) {
				t.Errorf("%T: after:\n%s", step, strings.Join(after, "\n"))
			} else if !slices.Equal(after, items(p, got.Before)) {
				changed++
			}
			if len(got.Before.Grants())+len(got.After.Grants()) > 0 {
				t.Errorf("%T: there are grants", step)
			}
			if why == nil {
				taken++
			} else {
				refused++
			}
		}
	}
	if taken < 6 || refused < 6 || changed < 2 {
		t.Errorf("%d steps could be taken, %d not, %d change something: the test shows nothing", taken, refused, changed)
	}
}

// items are what may be read.
func items(p market, a Access) []string {
	return slices.DeleteFunc(renderAccess(p, a), func(s string) bool { return !strings.Contains(s, " by ") })
}

// Who may not look, or not serve, gets no preview and no inventory.
func TestPreviewIsForWhoServes(t *testing.T) {
	t.Parallel()
	p, f := dutch(t), standings(t)
	r := AccessRequest{EAN: home, Days: days("2026-01-01", "2026-03-01"), Fields: []meter.FieldCode{importLow}}
	view := to(Errand{Kind: ErrandView})
	with := func(change func(*Employee)) employee {
		e := view
		change(&e.e)
		return e
	}
	step := RevokeConsent{uuid(byte(StandsActive))}
	for name, c := range map[string]Caller{
		"nobody": nil, "a supplier": caller(beta), "on behalf": OnBehalfOf(view, beta), "for no role": with(func(e *Employee) { e.Role = 0 }),
		"elsewhere": with(func(e *Employee) { e.Errand.EAN = testEAN(2) }), "nowhere": with(func(e *Employee) { e.Errand.EAN = meter.EAN{} }),
		"to read": with(func(e *Employee) { e.Errand.Kind = ErrandReadings }), "to take the step": toTake(step, f), "to find": with(func(e *Employee) { e.Errand.Kind = ErrandFind }),
		"to oversee": with(func(e *Employee) { e.Errand.Kind = ErrandOversee }), "to stop a supplier": with(func(e *Employee) { e.Errand.Kind = ErrandSupplier }), "for nothing": with(func(e *Employee) { e.Errand.Kind = 0 }),
	} {
		if got, err := PreviewStep(c, step, r, f, p, permitNow); err != ErrNoRelation || len(got.Before.Items())+len(got.After.Items()) > 0 {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := Inventorize(c, f, p, permitNow); err != ErrNoRelation || !got.EAN().IsZero() {
			t.Errorf("inventory, %s: %v", name, err)
		}
	}
	auditor := with(func(e *Employee) { e.Role = Auditor })
	if _, err := PreviewStep(auditor, step, r, f, p, permitNow); err != ErrNoRelation {
		t.Errorf("an auditor: %v", err)
	}
	other := r
	other.EAN = testEAN(2)
	for name, err := range map[string]error{
		"another metering point": second(PreviewStep(view, step, other, f, p, permitNow)), "no file": second(PreviewStep(view, step, r, nil, p, permitNow)),
		"an empty file": second(PreviewStep(view, step, AccessRequest{}, &LegalFile{}, p, permitNow)), "no profile": second(PreviewStep(view, step, r, f, nil, permitNow)),
	} {
		if err != ErrNoRelation {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := PreviewStep(view, RevokeConsent{uuid(77)}, r, f, p, permitNow); !errors.Is(err, ErrConsentUnknown) {
		t.Errorf("an unknown consent: %v", err)
	}
	for _, step := range []Step{nil, SetOptOut{days("2026-01-01", "")}, RequestConsent(grant(9))} {
		if _, err := PreviewStep(view, step, r, f, p, permitNow); !errors.Is(err, ErrNotPermitted) {
			t.Errorf("%T: %v", step, err)
		}
	}
	for _, role := range []Role{Agent, Supervisor, Auditor} {
		got, err := Inventorize(with(func(e *Employee) { e.Role = role }), f, p, permitNow)
		if err != nil || got.EAN() != home || got.Days() != Retained(p, permitNow) || len(got.Fields()) != len(p.Fields(meter.Electricity)) {
			t.Errorf("%s: %+v, %v", role, got, err)
		}
	}
}
