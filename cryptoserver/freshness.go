package cryptoserver

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"kluis/authz"
)

// A sealed fact verifies for ever, so an old version of it could be presented
// again: a consent from before its revocation, a certificate from before it
// was withdrawn. This server knows no database, but it remembers the newest
// version it has been shown of each, and refuses an older one.
//
// Which legal file is newer its time of sealing says: its number may be that of a
// step that was sealed and never stored.
//
// The memory is bounded and ends with the process. What was sealed here but
// not presented yet does not count: it may never have been stored.

const (
	// newestKept bounds the facts remembered, of each kind.
	newestKept = 1 << 16
	// newestGrace is how long an older version is accepted after a newer one
	// was first seen: for requests that had fetched it just before.
	newestGrace = time.Minute
)

// sealedAt orders the versions of a legal file.
func sealedAt(f *authz.LegalFile) uint64 { return uint64(f.SealedAt().UnixMicro()) }

type newest[K comparable] struct {
	began time.Time // with the monotonic clock: a step of the other one lengthens no grace

	mu   sync.Mutex
	seen *simplelru.LRU[K, version]
}

type version struct {
	number uint64
	since  time.Duration // since newest.began: a third of a time.Time, and there are newestKept
}

func newNewest[K comparable](size int) (*newest[K], error) {
	l, err := simplelru.NewLRU[K, version](size, nil)
	return &newest[K]{began: time.Now(), seen: l}, err
}

// outdated notes the version and reports whether a newer one has been known
// for longer than the grace.
func (n *newest[K]) outdated(k K, number uint64, now time.Time) bool {
	behind, since := n.note(k, number, now)
	return behind && now.Sub(since) > newestGrace
}

// behind is outdated without the grace: for steps, which nobody takes on a
// version that is not the newest.
func (n *newest[K]) behind(k K, number uint64, now time.Time) bool {
	behind, _ := n.note(k, number, now)
	return behind
}

// note says whether a newer version is known, and since when.
func (n *newest[K]) note(k K, number uint64, now time.Time) (behind bool, since time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	v, ok := n.seen.Get(k)
	if !ok || number > v.number {
		n.seen.Add(k, version{number, now.Sub(n.began)})
		return false, now
	}
	return number < v.number, n.began.Add(v.since)
}
