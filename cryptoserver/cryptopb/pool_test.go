package cryptopb

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
)

func TestPoolWipes(t *testing.T) {
	t.Parallel()
	if _, ok := mem.DefaultBufferPool().(wipingPool); !ok {
		t.Error("gRPC uses another pool")
	}
	p := newWipingPool()
	for _, n := range []int{1, 256, 257, 50_000, 1 << 20, 1<<20 + 1} {
		b := p.Get(n)
		if len(*b) != n || n <= 1<<20 && cap(*b) >= 2*max(n, 256) {
			t.Errorf("%d bytes asked for: length %d, capacity %d", n, len(*b), cap(*b))
		}
		for i := range *b {
			(*b)[i] = 0xff
		}
		view := (*b)[:n]
		p.Put(b)
		if !bytes.Equal(view, make([]byte, n)) {
			t.Errorf("%d bytes were not cleared", n)
		}
	}
}
