package demo

import (
	"testing"

	"kluis/meter"
)

// Everybody of the plan can be stored, and every address has its metering
// points: of electricity and gas together, and of two homes at one number.
func TestResidents(t *testing.T) {
	t.Parallel()
	p, err := meter.ParseProfile(meter.NL())
	if err != nil {
		t.Fatal(err)
	}
	pl, err := newPlan(20000)
	if err != nil {
		t.Fatal(err)
	}
	at := map[string][]meter.Commodity{}
	hostile, moved := false, 0
	for n, pt := range pl.points {
		who := pl.residentsOf(n)
		if len(who) != len(pt.occupied) {
			t.Errorf("metering point %d: %d residents for %d customers", n+1, len(who), len(pt.occupied))
		}
		for _, r := range who {
			if _, err := r.person(p); err != nil {
				t.Errorf("%s: %v", r.name, err)
			}
			hostile = hostile || r.name[0] == '<'
		}
		moved += len(who) - 1
		last := who[len(who)-1]
		at[last.postcode+" "+last.number] = append(at[last.postcode+" "+last.number], pt.commodity)
	}
	if !hostile || moved != 1 || len(residents) != 14 {
		t.Errorf("%v, %d moved, %d residents", hostile, moved, len(residents))
	}
	if got := at["1234AB 3"]; len(got) != 2 || got[0] == got[1] {
		t.Errorf("at a house with gas: %v", got)
	}
	if got := at["1236ZK 12"]; len(got) != 2 || got[0] != got[1] {
		t.Errorf("at a number with two homes: %v", got)
	}
}
