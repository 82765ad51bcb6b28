package cryptoserver

import (
	"testing"
	"time"

	"kluis/meter"
)

// TestRepeatsCannotBeForgotten: sealing much else does not buy more guesses.
func TestRepeatsCannotBeForgotten(t *testing.T) {
	t.Parallel()
	ean, err := meter.ParseEAN("871685900000000004")
	if err != nil {
		t.Fatal(err)
	}
	r, now := newRepeats(), time.Unix(1718445600, 0)
	target := map[fieldDay]bool{{1, 20000}: true}
	guesses := 0
	for r.admit(ean, target, now) {
		guesses++
	}
	if guesses < repeatLimit-5 || guesses > repeatLimit {
		t.Errorf("%d guesses", guesses)
	}
	refused := 0
	for f := range 20 {
		others := map[fieldDay]bool{}
		for d := range 20000 {
			others[fieldDay{meter.FieldCode(2 + f), meter.Day(d)}] = true
		}
		if !r.admit(ean, others, now) {
			refused++
		}
	}
	// Every tenth time one of them shares the cell that is full.
	if refused > 3 {
		t.Errorf("%d of 20 calls with other blocks are refused", refused)
	}
	for r.admit(ean, target, now) {
		guesses++
	}
	if guesses > repeatLimit+5 {
		t.Errorf("%d guesses after 400,000 other blocks", guesses)
	}
}
