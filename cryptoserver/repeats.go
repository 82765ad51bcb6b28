package cryptoserver

import (
	"hash/maphash"
	"math"
	"sync"
	"time"

	"kluis/meter"
)

// Equal content has an equal content MAC, which ingest compares with the
// stored one. So whoever may seal and sees stored MACs can find out a reading
// by sealing guesses of it; a daily register read has some ten thousand likely
// values. repeats bounds the guesses: a field of a metering point on one day
// is sealed only so often in a day, by each server.

const (
	repeatWindow = 24 * time.Hour
	repeatLimit  = 32
	repeatCells  = 1 << 22
)

// repeats counts what is sealed in cells, so that its memory is fixed and
// nobody can push a count out of it. Cells are shared by chance; what chance
// puts into them (six standard deviations) is allowed on top.
type repeats struct {
	seed maphash.Seed

	mu    sync.Mutex
	cells []uint16
	total uint64
	since time.Time
}

func newRepeats() *repeats {
	return &repeats{seed: maphash.MakeSeed()}
}

// admit counts the blocks of one call, each named once, and reports whether
// all of them may be sealed.
func (r *repeats) admit(ean meter.EAN, blocks map[fieldDay]bool, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.since) >= repeatWindow || now.Before(r.since) {
		r.cells = make([]uint16, repeatCells) // where nothing is sealed, there are none
		r.total, r.since = 0, now
	}
	mean := float64(r.total) / repeatCells
	limit := uint16(min(repeatLimit+mean+6*math.Sqrt(mean), math.MaxUint16))
	ok := true
	for b := range blocks {
		at := maphash.Comparable(r.seed, struct {
			ean int64
			fieldDay
		}{ean.Int64(), b}) % repeatCells
		if r.cells[at] >= limit {
			ok = false
			continue
		}
		r.cells[at]++
		r.total++
	}
	return ok
}
