package cryptoserver_test

import (
	"fmt"
	"testing"

	"kluis/authz"
	"kluis/meter"
)

// A gateway sends every row of the metering point for a switch read. The end
// read of the old supplier is the begin read of the new one, and it is the one
// block that is opened: not the one that closes the day, nor any beside it.
func TestSwitchReadIsOneBlock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	m.step(authz.SetOptOut{Days: days("2024-02-01", "2024-04-01")}) // remains in spite of it
	around := days("2024-02-25", "2024-03-06")
	for name, by := range map[string]*party{"the old supplier": m.old, "the new supplier": m.new} {
		w.open.opened()
		got := w.opened(m.all(m.ask(by, authz.Request{Purpose: meter.Switch, Days: around, Fields: []meter.FieldCode{importLow, importIntervals}})))
		want := map[meter.Day][]meter.Value{day("2024-03-01"): {register(importLow, day("2024-03-01"))}}
		if values := valuesOf(got, importLow); got.Err != nil || len(got.Series) != 1 || fmt.Sprint(values) != fmt.Sprint(want) {
			t.Fatalf("%s: %v %+v", name, got.Err, got.Series)
		}
		if s := got.Series[0]; s.Basis != meter.SwitchBasis || s.Rule != "nl-switch" || s.Kind != meter.Register || s.Expected != 1 || s.Delivered != 1 {
			t.Errorf("%s: %+v", name, s)
		}
		if n := w.open.opened(); n != 1 {
			t.Errorf("%s: the token opened %d blocks", name, n)
		}
		for _, kind := range []meter.Kind{meter.Consumption, meter.Register} {
			r := authz.Request{Purpose: meter.Switch, Days: around, Fields: []meter.FieldCode{importLow}, Kind: kind}
			if kind == meter.Register {
				r.Purpose = meter.Move // nobody moved
			}
			if got := w.opened(m.all(m.ask(by, r))); got.Err != nil || len(got.Series) != 0 || w.open.opened() != 0 {
				t.Errorf("%s, %s for %s: %+v", name, kind, r.Purpose, got.Series)
			}
		}
	}
}
