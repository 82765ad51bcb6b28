package backend

import (
	"errors"
	"testing"
	"time"

	"kluis/authz"
	"kluis/meter"
)

// What a clock far ahead sealed is not stored; another server of the pool may
// have a better one.
func TestRegistrarStoresNothingSealedAhead(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	r := o.registrar()
	ean := nthEAN(1)
	plan := func(*authz.LegalFile) ([]authz.Step, error) {
		return []authz.Step{authz.Register{EAN: ean, Commodity: meter.Gas}, authz.SetOccupancy{Days: meter.DayRange{From: day("2024-01-01"), To: meter.MaxDay}}}, nil
	}
	r.now = func() time.Time { return time.Now().Add(-time.Hour) }
	if _, err := r.ChangeLegalFile(t.Context(), ean, plan); !errors.Is(err, authz.ErrClockAhead) || o.stores != 0 || o.seals != changeTries {
		t.Errorf("%v, %d stores, %d seals", err, o.stores, o.seals)
	}
	asked := 0
	r.now = func() time.Time {
		if asked++; asked == 1 {
			return time.Now().Add(-time.Hour)
		}
		return time.Now()
	}
	f, err := r.ChangeLegalFile(t.Context(), ean, plan)
	if err != nil || f.Version() != 2 || o.stores != 2 || o.seals != changeTries+3 {
		t.Errorf("%v, %d stores, %d seals", err, o.stores, o.seals)
	}
}
