package custodian_test

import (
	"runtime"
	"testing"
	"time"
)

// TestMemory: rows that somebody stores to no other purpose do not fill the
// custodian's memory, not while they are new nor while it looks at everything.
// They compress to nothing in the database. Not parallel: the heap is everybody's.
func TestMemory(t *testing.T) {
	w := newWorld(t, 1)
	peak, stop, done := uint64(0), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		var m runtime.MemStats
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapInuse)
			}
		}
	}()
	w.exec(`INSERT INTO legal_file (ean, version, file, sealed_at) SELECT 871687000000000000, v, decode(repeat('00', 1048576), 'hex'), now() FROM generate_series(1, 80) v`)
	w.exec(`INSERT INTO legal_file (ean, version, file, sealed_at) SELECT 871687000000000000 + v, 1, decode(repeat('00', 1048576), 'hex'), now() FROM generate_series(1, 80) v`)
	if got := w.strays(); len(got) != 81 {
		t.Errorf("%d metering points with stray rows", len(got))
	}
	w.running()
	w.looked()
	if got := w.strays(); len(got) != 81 {
		t.Errorf("%d metering points with stray rows", len(got))
	}
	close(stop)
	<-done
	t.Logf("heap in use at most: %d MB, for 160 rows of 1 MB", peak>>20)
	if peak > 130<<20 {
		t.Error("the custodian's memory is the writer's to choose")
	}
}
