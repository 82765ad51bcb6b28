package hsm

import (
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// digest identifies a wrapped key: SHA-256 of epoch and wrapped bytes.
type digest [32]byte

// cachedKey is an unwrapped data key. It is destroyed once it is out of the
// cache and no batch uses it.
type cachedKey struct {
	handle uint64
	until  time.Time
	users  int
	out    bool
}

// handleCache holds unwrapped data keys, bounded in number and time. It is
// used by whoever holds the holder session.
type handleCache struct {
	lru      *simplelru.LRU[digest, *cachedKey]
	lifetime time.Duration
	dead     []uint64
	live     int
	count    *atomic.Int64 // of all connections of the token
}

func newHandleCache(size int, lifetime time.Duration, count *atomic.Int64) (*handleCache, error) {
	c := &handleCache{lifetime: lifetime, count: count}
	lru, err := simplelru.NewLRU(size, func(_ digest, k *cachedKey) {
		k.out = true
		c.bury(k)
	})
	c.lru = lru
	return c, err
}

// get gives a key to a batch, which must release it.
func (c *handleCache) get(d digest, now time.Time) (*cachedKey, bool) {
	k, ok := c.lru.Get(d)
	if !ok {
		return nil, false
	}
	if !now.Before(k.until) {
		c.lru.Remove(d)
		return nil, false
	}
	k.users++
	return k, true
}

// put gives a new key to a batch, as get does, and keeps it for later ones
// unless it is for this batch alone.
func (c *handleCache) put(d digest, handle uint64, now time.Time, keep bool) *cachedKey {
	k := &cachedKey{handle: handle, until: now.Add(c.lifetime), users: 1, out: !keep}
	c.add(1)
	if !keep {
		return k
	}
	c.lru.Remove(d) // Add would forget the old handle without destroying it
	c.lru.Add(d, k)
	return k
}

func (c *handleCache) release(k *cachedKey) {
	k.users--
	c.bury(k)
}

func (c *handleCache) bury(k *cachedKey) {
	if k.out && k.users == 0 {
		c.dead = append(c.dead, k.handle)
	}
}

// expire drops what has lived its time though nobody asked for it.
func (c *handleCache) expire(now time.Time) {
	for _, d := range c.lru.Keys() {
		if k, ok := c.lru.Peek(d); ok && !now.Before(k.until) {
			c.lru.Remove(d)
		}
	}
}

// purge drops everything.
func (c *handleCache) purge() { c.lru.Purge() }

// flush hands every dead handle to destroy. One that could not be destroyed
// lives until its session ends.
func (c *handleCache) flush(destroy func([]uint64) error) error {
	if len(c.dead) == 0 {
		return nil
	}
	err := destroy(c.dead)
	if err == nil {
		c.add(-len(c.dead))
	}
	c.dead = c.dead[:0]
	return err
}

// forget is told that the holder session ended, and all keys with it.
func (c *handleCache) forget() { c.add(-c.live) }

func (c *handleCache) add(n int) {
	c.live += n
	c.count.Add(int64(n))
}
