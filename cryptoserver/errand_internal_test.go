package cryptoserver

import (
	"testing"

	"kluis/authz"
	"kluis/meter"
)

// TestOnErrand: the check that does not rest on authz.Decide, by itself.
func TestOnErrand(t *testing.T) {
	t.Parallel()
	ean, err := meter.ParseEAN("871685900000000004")
	if err != nil {
		t.Fatal(err)
	}
	register, interval := meter.Field{Code: 1, Class: meter.Registers}, meter.Field{Code: 6, Class: meter.Intervals}
	errand := authz.Errand{Kind: authz.ErrandReadings, EAN: ean, Days: meter.DayRange{From: 100, To: 110}, Fields: []meter.FieldCode{1, 6}}
	good := authz.Request{EAN: ean, Purpose: meter.CustomerService, Days: errand.Days, Fields: []meter.FieldCode{6, 1}}
	for name, c := range map[string]struct {
		change func(e *authz.Errand, r *authz.Request)
		want   bool
	}{
		"the errand":           {func(*authz.Errand, *authz.Request) {}, true},
		"a part of it":         {func(_ *authz.Errand, r *authz.Request) { r.Days.From++; r.Days.To--; r.Fields = r.Fields[:1] }, true},
		"before":               {func(_ *authz.Errand, r *authz.Request) { r.Days.From-- }, false},
		"after":                {func(_ *authz.Errand, r *authz.Request) { r.Days.To++ }, false},
		"another field":        {func(_ *authz.Errand, r *authz.Request) { r.Fields = []meter.FieldCode{1, 2} }, false},
		"no metering point":    {func(e *authz.Errand, r *authz.Request) { e.EAN, r.EAN = meter.EAN{}, meter.EAN{} }, false},
		"another one":          {func(e *authz.Errand, _ *authz.Request) { e.EAN = meter.EAN{} }, false},
		"an errand to view":    {func(e *authz.Errand, _ *authz.Request) { e.Kind = authz.ErrandView }, false},
		"an errand to find":    {func(e *authz.Errand, _ *authz.Request) { e.Kind = authz.ErrandFind }, false},
		"an errand to oversee": {func(e *authz.Errand, _ *authz.Request) { e.Kind = authz.ErrandOversee }, false},
		"an errand to stop":    {func(e *authz.Errand, _ *authz.Request) { e.Kind = authz.ErrandSupplier }, false},
		"nowhere, to oversee": {func(e *authz.Errand, r *authz.Request) {
			e.Kind, e.EAN, r.EAN = authz.ErrandOversee, meter.EAN{}, meter.EAN{}
		}, false},
		"an errand for a step": {func(e *authz.Errand, _ *authz.Request) { e.Kind = authz.ErrandStep }, false},
	} {
		e, r := &authz.Employee{Subject: "kim", Role: authz.Agent, Errand: errand}, good
		c.change(&e.Errand, &r)
		if got := onErrand(e, &r); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	for name, c := range map[string]struct {
		kind    authz.ErrandKind
		purpose meter.Purpose
		ean     meter.EAN
		field   meter.Field
		day     meter.Day
		want    bool
	}{
		"the first day":       {authz.ErrandReadings, meter.CustomerService, ean, register, 100, true},
		"the last day":        {authz.ErrandReadings, meter.CustomerService, ean, interval, 109, true},
		"the closing read":    {authz.ErrandReadings, meter.CustomerService, ean, register, 110, true},
		"a day before":        {authz.ErrandReadings, meter.CustomerService, ean, register, 99, false},
		"a day after":         {authz.ErrandReadings, meter.CustomerService, ean, interval, 110, false},
		"two days after":      {authz.ErrandReadings, meter.CustomerService, ean, register, 111, false},
		"another field":       {authz.ErrandReadings, meter.CustomerService, ean, meter.Field{Code: 2, Class: meter.Registers}, 100, false},
		"another point":       {authz.ErrandReadings, meter.CustomerService, meter.EAN{}, register, 100, false},
		"another purpose":     {authz.ErrandReadings, meter.Billing, ean, register, 100, false},
		"an errand to view":   {authz.ErrandView, meter.CustomerService, ean, register, 100, false},
		"an errand to act on": {authz.ErrandStep, meter.CustomerService, ean, register, 100, false},
	} {
		e := &authz.Employee{Errand: errand}
		e.Errand.Kind = c.kind
		if got := mayOpen(e, c.purpose, c.ean, c.field, c.day); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
