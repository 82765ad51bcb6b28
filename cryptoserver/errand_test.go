package cryptoserver_test

import (
	"errors"
	"slices"
	"testing"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/envelope"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
)

// TestErrand: an employee's token opens what it says, whatever the gateway that
// hands it on asks for and sends.
func TestErrand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m, portal := w.market(), w.portal()
	n := w.electricity(m.old, m.new, [16]byte{2})
	n.store(w.registerBlock(importLow, day("2024-04-02")), w.registerBlock(importLow, day("2024-04-03")))

	errand := authz.Errand{
		Kind: authz.ErrandReadings, EAN: m.ean, Days: days("2024-04-02", "2024-04-05"), Fields: []meter.FieldCode{importLow, importIntervals},
	}
	asks := func(d meter.DayRange, fields ...meter.FieldCode) authz.Request {
		return authz.Request{Purpose: meter.CustomerService, Days: d, Fields: fields}
	}
	honest := asks(errand.Days, errand.Fields...)
	// call is that of a captured gateway, which sends every row it can find.
	call := func(token string, record []byte, p *point, r authz.Request) client.OpenRequest {
		q := p.all(p.ask(m.new, r))
		q.AccessToken, q.SupplierRecord = token, record
		return q
	}
	token := w.staffToken(portal, "kim", authz.Agent, errand)

	for name, tok := range map[string]string{"kim": token, "lee": w.staffToken(portal, "lee", authz.Supervisor, errand)} {
		w.open.opened()
		got := w.opened(call(tok, portal.record, m.point, honest))
		if got.Err != nil || len(got.Series) != 2 || len(got.Withheld) != 0 {
			t.Fatalf("%s: the errand itself: %+v", name, got)
		}
		for d := day("2024-04-02"); d <= day("2024-04-05"); d++ {
			if v := valuesOf(got, importLow)[d]; !slices.Equal(v, []meter.Value{register(importLow, d)}) {
				t.Errorf("%s: register on %s: %v", name, d, v)
			}
			if v := valuesOf(got, importIntervals)[d]; (len(v) == 96) != (d < day("2024-04-05")) {
				t.Errorf("%s: intervals on %s: %v", name, d, v)
			}
		}
		// The register of four days (with the closing read) and the intervals of
		// three; the rest is counted as asked for in vain.
		if opened := w.open.opened(); opened != 7 || len(got.Faults) != len(m.rows)-7 {
			t.Errorf("%s: the token opened %d blocks, %d were refused", name, opened, len(got.Faults))
		}
		r, err := envelope.ParseReceipt(got.Receipt)
		if err != nil || r.Supplier != portal.gln || r.Purpose != meter.CustomerService || r.Employee != envelope.EmployeeDigest(r.TokenID, stafftest.Subject(name), "customer on the line") || r.Opened != 7 || int(r.Refused) != len(m.rows)-7 {
			t.Errorf("%s: receipt %+v, %v", name, r, err)
		}
	}

	step := authz.Errand{Kind: authz.ErrandStep, EAN: m.ean, Action: authz.ActionRevoke, ConsentID: m.consent, Scope: [32]byte{1}}
	view := authz.Errand{Kind: authz.ErrandView, EAN: m.ean}
	find := authz.Errand{Kind: authz.ErrandFind}
	postcode, err := w.profile.ParsePostcode("1234AB")
	w.must(err)
	number, err := meter.HouseNumberFromInt(7)
	w.must(err)
	find.Postcode, find.HouseNumber = postcode, number
	stop := authz.Errand{Kind: authz.ErrandSupplier, Supplier: m.new.gln, Suspend: true}
	other := func(p meter.Purpose) authz.Request { r := honest; r.Purpose = p; return r }
	for _, c := range []struct {
		name   string
		token  string
		record []byte
		on     *point
		ask    authz.Request
		want   error // nil: an answer with nothing in it
	}{
		{"another metering point", token, portal.record, n, honest, authz.ErrNoRelation},
		{"a day before", token, portal.record, m.point, asks(days("2024-04-01", "2024-04-05"), importLow), authz.ErrNoRelation},
		{"a day after", token, portal.record, m.point, asks(days("2024-04-02", "2024-04-06"), importLow), authz.ErrNoRelation},
		{"other days", token, portal.record, m.point, asks(days("2024-05-02", "2024-05-05"), importLow), authz.ErrNoRelation},
		{"another field", token, portal.record, m.point, asks(errand.Days, importNormal), authz.ErrNoRelation},
		{"a field more", token, portal.record, m.point, asks(errand.Days, importLow, importNormal, importIntervals), authz.ErrNoRelation},
		{"for the bill", token, portal.record, m.point, other(meter.Billing), nil},
		{"for energy management", token, portal.record, m.point, other(meter.EnergyManagement), nil},
		{"for a switch", token, portal.record, m.point, other(meter.Switch), nil},
		{"an errand to view", w.staffToken(portal, "kim", authz.Agent, view), portal.record, m.point, honest, authz.ErrNoRelation},
		{"an auditor's errand", w.staffToken(portal, "kim", authz.Auditor, view), portal.record, m.point, honest, authz.ErrNoRelation},
		{"an errand to take a step", w.staffToken(portal, "kim", authz.Agent, step), portal.record, m.point, honest, authz.ErrNoRelation},
		{"an errand to find", w.staffToken(portal, "kim", authz.Agent, find), portal.record, m.point, honest, authz.ErrNoRelation},
		{"an errand to oversee", w.staffToken(portal, "kim", authz.Auditor, authz.Errand{Kind: authz.ErrandOversee}), portal.record, m.point, honest, authz.ErrNoRelation},
		{"an errand to stop its supplier", w.staffToken(portal, "kim", authz.Supervisor, stop), portal.record, m.point, honest, authz.ErrNoRelation},
		{"a supplier, as if for the customer", w.token(m.new), m.new.record, m.point, honest, nil},
		{"on a supplier's record", token, m.new.record, m.point, honest, client.ErrSupplierRefused},
		{"a supplier's token on the operator's record", w.token(m.new), portal.record, m.point, honest, client.ErrSupplierRefused},
	} {
		w.open.opened()
		units, err := w.as("gateway").Open(t.Context(), call(c.token, c.record, c.on, c.ask))
		if err == nil {
			err = units[0].Err
			if len(units[0].Series) != 0 || err != nil && units[0].Receipt != nil {
				t.Errorf("%s: %+v", c.name, units[0])
			}
		}
		if c.want == nil && err != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if opened := w.open.opened(); opened != 0 {
			t.Errorf("%s: the token opened %d blocks", c.name, opened)
		}
	}

	// Beside what it may: the other metering point of the same call stays shut.
	q := call(token, portal.record, m.point, honest)
	q.Units = append(q.Units, call(token, portal.record, n, asks(errand.Days, importLow)).Units...)
	w.open.opened()
	units, err := w.as("gateway").Open(t.Context(), q)
	w.must(err)
	if units[0].Err != nil || !errors.Is(units[1].Err, authz.ErrNoRelation) || w.open.opened() != 7 {
		t.Errorf("two metering points: %v, %v", units[0].Err, units[1].Err)
	}

	// Of the customer who lives there today, and of nobody before.
	m.step(authz.SetOccupancy{Days: meter.DayRange{From: day("2024-04-04"), To: meter.MaxDay}})
	w.open.opened()
	got := w.opened(call(token, portal.record, m.point, honest))
	if got.Err != nil || len(valuesOf(got, importIntervals)) != 1 || valuesOf(got, importLow)[day("2024-04-03")] != nil {
		t.Errorf("after a move: %+v", got)
	}
	if n := w.open.opened(); n != 3 { // register of the 4th and 5th, intervals of the 4th
		t.Errorf("after a move: the token opened %d blocks", n)
	}

	// Nor for longer than the token lives.
	w.advance(5 * 60e9)
	if _, err := w.as("gateway").Open(t.Context(), call(token, portal.record, m.point, honest)); !errors.Is(err, client.ErrTokenRefused) {
		t.Errorf("an expired token: %v", err)
	}
}
