package hsm

import (
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// digest identifies a wrapped key: SHA-256 of epoch and wrapped bytes.
type digest [32]byte

type cachedKey struct {
	handle uint64
	until  time.Time
}

// handleCache holds unwrapped data keys, bounded in number and time. It
// belongs to one executor and is not safe for concurrent use. A key that
// falls out is destroyed only by flush, between batches, so a batch may use
// every handle it was given.
type handleCache struct {
	lru      *simplelru.LRU[digest, cachedKey]
	lifetime time.Duration
	dead     []uint64
}

func newHandleCache(size int, lifetime time.Duration) (*handleCache, error) {
	c := &handleCache{lifetime: lifetime}
	lru, err := simplelru.NewLRU(size, func(_ digest, k cachedKey) { c.dead = append(c.dead, k.handle) })
	c.lru = lru
	return c, err
}

func (c *handleCache) get(d digest, now time.Time) (uint64, bool) {
	k, ok := c.lru.Get(d)
	if !ok {
		return 0, false
	}
	if !now.Before(k.until) {
		c.lru.Remove(d)
		return 0, false
	}
	return k.handle, true
}

func (c *handleCache) put(d digest, handle uint64, now time.Time) {
	c.lru.Remove(d) // Add would forget the old handle without destroying it
	c.lru.Add(d, cachedKey{handle: handle, until: now.Add(c.lifetime)})
}

// expire drops what has lived its time though nobody asked for it.
func (c *handleCache) expire(now time.Time) {
	for _, d := range c.lru.Keys() {
		if k, ok := c.lru.Peek(d); ok && !now.Before(k.until) {
			c.lru.Remove(d)
		}
	}
}

// flush hands every dead handle to destroy.
func (c *handleCache) flush(destroy func([]uint64) error) error {
	if len(c.dead) == 0 {
		return nil
	}
	err := destroy(c.dead)
	c.dead = c.dead[:0]
	return err
}
