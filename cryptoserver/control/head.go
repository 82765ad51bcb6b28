package control

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"kluis/authz"
	"kluis/internal/canonical"
)

// ErrHead is wrapped whenever a head does not verify or parse.
var ErrHead = errors.New("control head does not verify")

// Head says where the feed ended at a time.
type Head struct {
	Sequence uint64 // of the last entry; 0: there is none
	Hash     Hash   // chain up to it
	At       time.Time
}

const (
	headDomain  = "kluis/control-head"
	headVersion = 1
)

// Sign returns the head in its signed form ("kluis/control-head": sequence,
// hash, time, key id, ES256 signature over SHA-256 of everything before it).
func (h Head) Sign(s authz.Signer) ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	w := canonical.New(headDomain, headVersion)
	w.U64(h.Sequence)
	w.Fixed(h.Hash[:])
	w.Time(h.At)
	id := s.KeyID()
	w.Fixed(id[:])
	sig, err := authz.SignDigest(s, sha256.Sum256(w.Encoded()))
	if err != nil {
		return nil, err
	}
	w.Fixed(sig[:])
	return w.Encoded(), nil
}

func (h Head) check() error {
	if (h.Sequence == 0) != (h.Hash == Hash{}) {
		return fmt.Errorf("%w: sequence and hash do not go together", ErrHead)
	}
	if h.At.IsZero() {
		return fmt.Errorf("%w: no time", ErrHead)
	}
	return nil
}

// OpenHead verifies and parses a signed head. Every error wraps ErrHead.
func OpenHead(signed []byte, keys *authz.SealKeys) (Head, error) {
	var h Head
	r, _, err := canonical.Open(signed, headDomain, headVersion)
	if err != nil {
		return h, fmt.Errorf("%w: %w", ErrHead, err)
	}
	var id authz.KeyID
	var sig [64]byte
	h.Sequence = r.U64()
	r.Fixed(h.Hash[:])
	h.At = r.Time()
	r.Fixed(id[:])
	r.Fixed(sig[:])
	if err := r.Close(); err != nil {
		return Head{}, fmt.Errorf("%w: %w", ErrHead, err)
	}
	if err := keys.VerifyDigest(id, sha256.Sum256(signed[:len(signed)-len(sig)]), sig); err != nil {
		return Head{}, fmt.Errorf("%w: %w", ErrHead, err)
	}
	if err := h.check(); err != nil {
		return Head{}, err
	}
	return h, nil
}
