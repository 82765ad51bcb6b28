package cryptopb

import (
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"
)

// gRPC's codec takes its buffers from a pool of the process that can be set
// while packages are initialised only. Its own pool has nothing between 32 KB
// and 1 MB and zeroes a whole megabyte for a call of 50 KB, which costs more
// than decoding it; and it keeps what was in a buffer until the next use.
func init() { experimental.SetDefaultBufferPool(newWipingPool()) }

// wipingPool has a tier for every power of two up to 1 MB, and clears a buffer
// when it comes back: calls carry readings.
type wipingPool struct{ tiers mem.BufferPool }

func newWipingPool() wipingPool {
	var sizes []int
	for n := 256; n <= 1<<20; n *= 2 {
		sizes = append(sizes, n)
	}
	return wipingPool{mem.NewTieredBufferPool(sizes...)}
}

func (p wipingPool) Get(length int) *[]byte { return p.tiers.Get(length) }

func (p wipingPool) Put(b *[]byte) {
	clear((*b)[:cap(*b)])
	p.tiers.Put(b)
}
