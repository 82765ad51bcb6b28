package cryptoserver_test

import (
	"crypto/sha256"
	"slices"
	"testing"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

func energy(r meter.DayRange, fields ...meter.FieldCode) authz.Request {
	return authz.Request{Purpose: meter.EnergyManagement, Days: r, Fields: fields}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	w.open.opened()

	// March, with the day on which the clocks go forward.
	march := days("2024-03-01", "2024-04-01")
	got := w.opened(m.ask(m.new, energy(march, importLow, importNormal, importIntervals)))
	if got.Err != nil || len(got.Faults) != 0 || len(got.Withheld) != 0 || len(got.Series) != 3 {
		t.Fatalf("got %+v", got)
	}
	for _, f := range []meter.FieldCode{importLow, importNormal} {
		values := valuesOf(got, f)
		if len(values) != 32 {
			t.Fatalf("field %d: %d days, want 31 and the closing read", f, len(values))
		}
		for d, v := range values {
			if !slices.Equal(v, []meter.Value{register(f, d)}) {
				t.Fatalf("field %d on %s: %v", f, d, v)
			}
		}
	}
	s := seriesOf(got, importIntervals)
	if s.Expected != 31*96-4 || s.Delivered != s.Expected || s.Resolution != meter.PT15M || s.Basis != meter.Consent || s.Rule != "nl-consent-intervals" {
		t.Errorf("intervals: %+v", s)
	}
	for d, v := range valuesOf(got, importIntervals) {
		want := 96
		if d == day("2024-03-31") {
			want = 92
		}
		if len(v) != want {
			t.Fatalf("%s: %d values", d, len(v))
		}
		for i := range v {
			if v[i] != interval(importIntervals, d, i) {
				t.Fatalf("%s, %d: %d", d, i, v[i])
			}
		}
	}
	if n := w.open.opened(); n != 32+32+31 {
		t.Errorf("the token opened %d blocks", n)
	}

	r, err := envelope.ParseReceipt(got.Receipt)
	w.must(err)
	keys, err := authz.NewSealKeys(w.hsm.SealKeys...)
	w.must(err)
	file, err := keys.LegalFile(m.file)
	w.must(err)
	if r.ServerID != "cs1" || r.Sequence == 0 || r.Supplier != m.new.gln || r.EAN != m.ean ||
		r.Purpose != meter.EnergyManagement || r.LegalFile != file.Digest() || r.FileVersion != file.Version() ||
		r.Profile != w.profile.Digest() || r.Opened != 95 || r.Refused != 0 || r.Damaged != 0 || !r.At.Equal(w.clock.now()) {
		t.Errorf("receipt: %+v", r)
	}
	var opened []envelope.Opened
	for _, row := range m.ask(m.new, energy(march, importLow, importNormal, importIntervals)).Units[0].Blocks {
		o := envelope.Opened{ID: envelope.BlockID{EAN: m.ean, Field: row.Field, Day: row.Day, Resolution: row.Resolution, Version: 1, KeyID: m.keys[row.Key].ID}}
		o.Basis, o.Given = meter.SupplyDaily, meter.P1D
		if row.Field == importIntervals {
			o.Basis, o.Given = meter.Consent, meter.PT15M
		}
		opened = append(opened, o)
	}
	if r.Content != envelope.ContentDigest(opened) {
		t.Error("the receipt is not of the blocks that were opened")
	}

	// The next receipt continues the chain.
	again := w.opened(m.ask(m.new, energy(days("2024-04-01", "2024-04-02"), importLow)))
	next, err := envelope.ParseReceipt(again.Receipt)
	w.must(err)
	if next.Sequence != r.Sequence+1 || next.Previous != sha256.Sum256(got.Receipt) || next.BootID != r.BootID {
		t.Errorf("second receipt: %+v", next)
	}
}

// TestOpenAggregates: what leaves is no finer than granted or asked for.
func TestOpenAggregates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	april := days("2024-04-01", "2024-05-01")

	hourly := energy(april, importIntervals)
	hourly.Resolution = meter.PT1H
	got := w.opened(m.ask(m.new, hourly))
	if s := seriesOf(got, importIntervals); s == nil || len(got.Series) != 1 || s.Resolution != meter.PT1H || s.Expected != 30*24 || s.Delivered != 30*24 {
		t.Fatalf("hourly: %+v", got.Series)
	}
	for d, v := range valuesOf(got, importIntervals) {
		for h := range v {
			want := meter.Value(0)
			for i := range 4 {
				want += interval(importIntervals, d, 4*h+i)
			}
			if v[h] != want {
				t.Fatalf("%s %d h: %d, want %d", d, h, v[h], want)
			}
		}
	}

	// Billing rests on the month: the cryptoserver refuses the days between.
	billing := authz.Request{Purpose: meter.Billing, Days: april, Fields: []meter.FieldCode{importLow}}
	w.open.opened()
	got = w.opened(m.all(m.ask(m.new, billing)))
	values := valuesOf(got, importLow)
	if len(values) != 2 || values[day("2024-04-01")][0] != register(importLow, day("2024-04-01")) ||
		values[day("2024-05-01")][0] != register(importLow, day("2024-05-01")) {
		t.Errorf("billing: %v", values)
	}
	if n := w.open.opened(); n != 2 {
		t.Errorf("the token opened %d blocks for two reads", n)
	}
	if len(got.Faults) != len(m.rows)-2 {
		t.Errorf("%d faults for %d blocks outside the grant", len(got.Faults), len(m.rows)-2)
	}
	billing.Kind = meter.Consumption
	got = w.opened(m.ask(m.new, billing))
	want := register(importLow, day("2024-05-01")) - register(importLow, day("2024-04-01"))
	if v := valuesOf(got, importLow); len(v) != 1 || v[day("2024-04-01")][0] != want {
		t.Errorf("consumption of April: %v, want %d", v, want)
	}
}

// TestOpenWithheld: the decision is the server's, by its own clock and file.
func TestOpenWithheld(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	for _, c := range []struct {
		name   string
		by     *party
		r      authz.Request
		change func()
		want   authz.Withheld
	}{
		{"the new supplier asks for days before the switch", m.new, energy(days("2024-02-10", "2024-02-20"), importLow), nil,
			authz.Withheld{Field: importLow, Days: days("2024-02-10", "2024-02-20"), Reason: meter.NoSupply}},
		{"the old supplier asks for days after it", m.old, energy(days("2024-03-10", "2024-03-20"), importLow), nil,
			authz.Withheld{Field: importLow, Days: days("2024-03-10", "2024-03-20"), Reason: meter.NoSupply}},
		{"the old supplier has no consent", m.old, energy(days("2024-02-10", "2024-02-20"), importIntervals), nil,
			authz.Withheld{Field: importIntervals, Days: days("2024-02-10", "2024-02-20"), Reason: meter.NoConsent}},
		{"today is not over", m.new, energy(days("2024-06-15", "2024-06-16"), importLow), nil,
			authz.Withheld{Field: importLow, Days: days("2024-06-15", "2024-06-16"), Reason: meter.PeriodInFuture}},
		{"finer than a monthly basis", m.new, authz.Request{Purpose: meter.Billing, Days: days("2024-04-01", "2024-05-01"), Fields: []meter.FieldCode{importLow}, Resolution: meter.P1D}, nil,
			authz.Withheld{Field: importLow, Days: days("2024-04-01", "2024-05-01"), Reason: meter.NotGrantedAtThisGranularity}},
		{"no rule for the purpose", m.new, authz.Request{Purpose: meter.CustomerService, Days: days("2024-04-01", "2024-05-01"), Fields: []meter.FieldCode{importLow}}, nil,
			authz.Withheld{Field: importLow, Days: days("2024-04-01", "2024-05-01"), Reason: meter.PurposeNotAvailable}},
		{"consent revoked", m.new, energy(days("2024-04-01", "2024-05-01"), importIntervals), func() { m.step(authz.RevokeConsent{ID: m.consent}) },
			authz.Withheld{Field: importIntervals, Days: days("2024-04-01", "2024-05-01"), Reason: meter.ConsentRevoked}},
		{"opted out", m.new, energy(days("2024-05-01", "2024-05-03"), importLow), func() { m.step(authz.SetOptOut{Days: days("2024-05-01", "2024-05-03")}) },
			authz.Withheld{Field: importLow, Days: days("2024-05-01", "2024-05-03"), Reason: meter.OptedOut}},
	} {
		if c.change != nil {
			c.change()
		}
		w.open.opened()
		got := w.opened(m.all(m.ask(c.by, c.r)))
		if got.Err != nil || len(got.Series) != 0 || !slices.Equal(got.Withheld, []authz.Withheld{c.want}) {
			t.Errorf("%s: %v, series %v, withheld %v", c.name, got.Err, got.Series, got.Withheld)
		}
		if n := w.open.opened(); n != 0 {
			t.Errorf("%s: the token opened %d blocks", c.name, n)
		}
		if len(got.Faults) != len(m.rows) {
			t.Errorf("%s: %d of %d blocks refused", c.name, len(got.Faults), len(m.rows))
		}
		if r, err := envelope.ParseReceipt(got.Receipt); err != nil || r.Opened != 0 || r.Refused != uint32(len(m.rows)) {
			t.Errorf("%s: receipt %+v, %v", c.name, r, err)
		}
	}
}
