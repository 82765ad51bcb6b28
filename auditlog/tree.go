package auditlog

import (
	"context"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// frontier is the right edge of a tree: all that is needed to add leaves and to
// know the root, whatever the size.
type frontier struct {
	size     int64
	subtrees []tlog.Hash // complete ones, the largest first: one per bit set in size
}

// add adds a leaf and returns the hashes to store, in tlog's order.
func (f *frontier) add(leaf tlog.Hash, stored []tlog.Hash) []tlog.Hash {
	h := leaf
	stored = append(stored, h)
	for n := f.size; n&1 == 1; n >>= 1 {
		last := len(f.subtrees) - 1
		h = tlog.NodeHash(f.subtrees[last], h)
		f.subtrees = f.subtrees[:last]
		stored = append(stored, h)
	}
	f.subtrees = append(f.subtrees, h)
	f.size++
	return stored
}

// root is the hash of the tree; that of an empty one is SHA-256 of nothing.
func (f *frontier) root() tlog.Hash {
	if f.size == 0 {
		h, _ := tlog.TreeHash(0, nil) // reads nothing
		return h
	}
	h := f.subtrees[len(f.subtrees)-1]
	for i := len(f.subtrees) - 2; i >= 0; i-- {
		h = tlog.NodeHash(f.subtrees[i], h)
	}
	return h
}

// clone is a copy that can be thrown away.
func (f *frontier) clone() frontier {
	return frontier{f.size, append([]tlog.Hash(nil), f.subtrees...)}
}

// edge are the indexes of the stored hashes of the right edge of a tree.
func edge(size int64) []int64 {
	var indexes []int64
	for rest, first := size, int64(0); rest > 0; {
		level := bits.Len64(uint64(rest)) - 1
		indexes = append(indexes, tlog.StoredHashIndex(level, first>>level))
		first += 1 << level
		rest -= 1 << level
	}
	return indexes
}

// loadFrontier reads the right edge of a tree of a size.
func loadFrontier(ctx context.Context, r Reader, size int64) (frontier, error) {
	f := frontier{size: size}
	indexes := edge(size)
	if len(indexes) == 0 {
		return f, nil
	}
	var err error
	f.subtrees, err = r.Hashes(ctx, indexes)
	return f, err
}

// findFrontier is loadFrontier of a tree that may have been damaged: whole says
// whether all of the edge is there.
func findFrontier(ctx context.Context, r Reader, size int64) (f frontier, whole bool, _ error) {
	f.size = size
	for _, i := range edge(size) {
		h, err := r.HashRange(ctx, i, i+1)
		if err != nil || len(h) == 0 {
			return f, false, err
		}
		f.subtrees = append(f.subtrees, h[0].Hash)
	}
	return f, true, nil
}

// hashReader lets tlog read stored hashes.
func hashReader(ctx context.Context, r Reader) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) { return r.Hashes(ctx, indexes) })
}
