package control

import (
	"errors"
	"fmt"

	"kluis/authz"
	"kluis/internal/canonical"
)

// ErrProof is wrapped by every error of OpenProof but that of its head.
var ErrProof = errors.New("not a proof of a control entry")

const (
	proofDomain  = "kluis/control-proof"
	proofVersion = 1

	maxProofEntry = 1 << 17
	maxProofHead  = 1 << 10
)

// EncodeProof shows that an entry is in the feed to whoever has the pinned seal
// keys and nothing else of the feed ("kluis/control-proof"): the chain before
// the entry, the entry, and the signed head of the feed that ended with it.
func EncodeProof(before Hash, entry, signedHead []byte) []byte {
	w := canonical.New(proofDomain, proofVersion)
	w.Fixed(before[:])
	w.Bytes(entry)
	w.Bytes(signedHead)
	return w.Encoded()
}

// OpenProof verifies a proof and returns the entry. That it fits the feed the
// proof does not show: whoever signed the head has looked, see Feed.Check. The
// errors wrap ErrProof, ErrHead or ErrEntry.
func OpenProof(b []byte, keys *authz.SealKeys) (Entry, error) {
	r, _, err := canonical.Open(b, proofDomain, proofVersion)
	if err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrProof, err)
	}
	var before Hash
	r.Fixed(before[:])
	entry := r.Bytes(maxProofEntry)
	signed := r.Bytes(maxProofHead)
	if err := r.Close(); err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrProof, err)
	}
	head, err := OpenHead(signed, keys)
	if err != nil {
		return Entry{}, err
	}
	if head.Sequence == 0 || before.Next(entry) != head.Hash {
		return Entry{}, fmt.Errorf("%w: its head is not that of its entry", ErrProof)
	}
	return ParseEntry(entry)
}
