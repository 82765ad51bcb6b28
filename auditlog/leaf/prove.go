package leaf

import (
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// ErrAltered: a row is not what was logged, or the tree is not what was signed.
var ErrAltered = errors.New("the row is not what was logged")

// Prove makes the hashes that lead from a leaf, which is of the row, to the root
// of the tree of a size (RFC 6962, 2.1.1). What does not check here checks
// nowhere: ErrAltered. Other errors are the reader's.
func Prove(size int64, root tlog.Hash, index int64, row *Row, r tlog.HashReader) ([]tlog.Hash, error) {
	hashes, err := tlog.ProveRecord(size, index, r)
	if err != nil {
		return nil, err
	}
	if err := tlog.CheckRecord(hashes, size, root, index, row.Hash()); err != nil {
		return nil, fmt.Errorf("%w: leaf %d", ErrAltered, index)
	}
	return hashes, nil
}
