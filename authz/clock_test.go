package authz

import (
	"errors"
	"testing"
	"time"

	"kluis/meter"
)

// A step on a version that a server a little ahead sealed is taken, right after
// it; further behind the clock is what is wrong, not the step. What was sealed
// can always be recomputed from its own time.
func TestClocksApart(t *testing.T) {
	t.Parallel()
	f := history(t, t0, Register{home, meter.Electricity})
	record := supplier(t, nil, t0)
	step := SetOptOut{days("2025-01-01", "")}
	for _, c := range []struct {
		at, sealed time.Duration
		behind     bool
	}{
		{at: 0, sealed: 0},
		{at: time.Second, sealed: time.Second},
		{at: -time.Microsecond, sealed: time.Microsecond},
		{at: -maxSkew, sealed: time.Microsecond},
		{at: -maxSkew - time.Microsecond, behind: true},
		{at: -365 * 24 * time.Hour, behind: true},
	} {
		next, err := Apply(f, step, operator, t0.Add(c.at), amsterdam)
		s, serr := NewSupplier(record, supplierFacts(), operator, t0.Add(c.at))
		if c.behind {
			if !errors.Is(err, ErrClockBehind) || !errors.Is(err, ErrStep) || !errors.Is(serr, ErrClockBehind) || !errors.Is(serr, ErrSupplier) {
				t.Errorf("%s: %v, %v", c.at, err, serr)
			}
			continue
		}
		if err != nil || serr != nil {
			t.Errorf("%s: %v, %v", c.at, err, serr)
			continue
		}
		if got := next.SealedAt().Sub(t0); got != c.sealed || s.SealedAt() != next.SealedAt() {
			t.Errorf("%s: sealed %s after the version before, the record %s", c.at, got, s.SealedAt().Sub(t0))
		}
		again, err := Apply(f, step, operator, next.SealedAt(), amsterdam)
		if err != nil || again.Digest() != next.Digest() {
			t.Errorf("%s: not recomputable from its time: %v", c.at, err)
		}
	}
}

// Of steps taken on one another while a clock is behind each is sealed after
// the one before, so that it can be told which is newer.
func TestClockBehindKeepsTheOrder(t *testing.T) {
	t.Parallel()
	f := history(t, t0, Register{home, meter.Electricity})
	for i := range 5 {
		day := meter.Day(20000 + 2*i)
		next, err := Apply(f, SetOptOut{meter.DayRange{From: day, To: day + 1}}, operator, t0.Add(-time.Second), amsterdam)
		if err != nil {
			t.Fatal(err)
		}
		if !next.SealedAt().After(f.SealedAt()) {
			t.Fatalf("version %d was sealed at %s, the one before at %s", next.Version(), next.SealedAt(), f.SealedAt())
		}
		f = next
	}
}

func TestCheckSealedAt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ahead time.Duration
		ok    bool
	}{{-time.Hour, true}, {0, true}, {maxSkew, true}, {maxSkew + time.Microsecond, false}, {time.Hour, false}} {
		if err := CheckSealedAt(t0.Add(c.ahead), t0); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrClockAhead) {
			t.Errorf("%s ahead: %v", c.ahead, err)
		}
	}
}
