package authz

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"

	lru "github.com/hashicorp/golang-lru/v2"

	"kluis/internal/canonical"
)

// Domain tag and format version of a sealed fact.
const (
	domainSealed  = "kluis/sealed"
	versionSealed = 1
)

const signatureSize = 64

// A cache entry is at most a few times maxCachedPayload in memory; longer
// payloads are verified anew each time.
const (
	cacheEntries     = 4096
	maxCachedPayload = 16 << 10
)

// ErrSeal is wrapped whenever a sealed fact does not verify or parse.
var ErrSeal = errors.New("sealed fact does not verify")

// KeyID is the first 8 bytes of the SHA-256 of the key's PKIX encoding. It
// only selects a key; two pinned keys never share one.
type KeyID [8]byte

// KeyIDOf computes it. It is zero, which no pinned key has, for nil and for
// curves that PKIX does not name.
func KeyIDOf(k *ecdsa.PublicKey) KeyID {
	var id KeyID
	if k == nil || k.Curve == nil {
		return id
	}
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return id
	}
	sum := sha256.Sum256(der)
	copy(id[:], sum[:])
	return id
}

// Signer signs with a seal key in an HSM: ES256 over the digest, r||s (RFC
// 7518, 3.4). Either of the two values of s will do.
type Signer interface {
	KeyID() KeyID
	SignDigest(digest [32]byte) ([64]byte, error)
}

// Seal wraps a payload in a signed envelope ("kluis/sealed": key id, payload,
// signature over SHA-256 of everything before it). It signs nothing but the
// payload of a legal file or of a supplier record. The errors are the
// signer's, or wrap ErrSeal.
func Seal(payload []byte, s Signer) ([]byte, error) {
	if len(payload) > maxPayload {
		return nil, fmt.Errorf("%w: payload longer than %d bytes", ErrSeal, maxPayload)
	}
	if _, err := parseLegalFile(payload); err != nil {
		if _, err := parseSupplier(payload); err != nil {
			return nil, fmt.Errorf("%w: not the payload of a legal file or a supplier record", ErrSeal)
		}
	}
	id := s.KeyID()
	w := canonical.New(domainSealed, versionSealed)
	w.Fixed(id[:])
	w.Bytes(payload)
	sig, err := SignDigest(s, sha256.Sum256(w.Encoded()))
	if err != nil {
		return nil, err
	}
	w.Fixed(sig[:])
	return w.Encoded(), nil
}

// SignDigest signs in the one form that VerifyDigest accepts. What the digest
// is of begins with a domain tag of its own (package canonical).
func SignDigest(s Signer, digest [32]byte) ([signatureSize]byte, error) {
	sig, err := s.SignDigest(digest)
	if err != nil {
		return sig, fmt.Errorf("sign: %w", err)
	}
	if !lowS(&sig) {
		return sig, fmt.Errorf("%w: the signer returned no signature", ErrSeal)
	}
	return sig, nil
}

// halfOrder is half the order of P-256, rounded down.
var halfOrder = new(big.Int).Rsh(elliptic.P256().Params().N, 1)

// lowS brings a signature into the one form that verify accepts: of s and
// order-s, which verify alike, the smaller. It reports false for what cannot
// be a signature.
func lowS(sig *[signatureSize]byte) bool {
	order := elliptic.P256().Params().N
	r, s := new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])
	if r.Sign() == 0 || s.Sign() == 0 || r.Cmp(order) >= 0 || s.Cmp(order) >= 0 {
		return false
	}
	if s.Cmp(halfOrder) > 0 {
		s.Sub(order, s).FillBytes(sig[32:])
	}
	return true
}

// SealKeys are the pinned public keys that sealed facts must verify under.
// Safe for concurrent use; remembers what it verified (bounded), keyed by the
// digest of the sealed bytes, so that a fact that is used again is neither
// verified nor parsed again.
type SealKeys struct {
	keys       map[KeyID]*ecdsa.PublicKey
	legalFiles *lru.Cache[[32]byte, *LegalFile]
	suppliers  *lru.Cache[[32]byte, *Supplier]
}

// NewSealKeys pins one key or more, all on P-256.
func NewSealKeys(keys ...*ecdsa.PublicKey) (*SealKeys, error) {
	if len(keys) == 0 {
		return nil, errors.New("no seal key: pin at least one public key")
	}
	k := &SealKeys{keys: make(map[KeyID]*ecdsa.PublicKey, len(keys))}
	for _, key := range keys {
		if key == nil || key.Curve != elliptic.P256() {
			return nil, errors.New("a seal key is not an ECDSA key on P-256")
		}
		id := KeyIDOf(key)
		if id == (KeyID{}) {
			return nil, errors.New("a seal key is no point of P-256")
		}
		if other := k.keys[id]; other != nil && !other.Equal(key) {
			return nil, errors.New("two seal keys have the same key id")
		}
		k.keys[id] = key
	}
	var err error
	if k.legalFiles, err = lru.New[[32]byte, *LegalFile](cacheEntries); err != nil {
		return nil, err
	}
	if k.suppliers, err = lru.New[[32]byte, *Supplier](cacheEntries); err != nil {
		return nil, err
	}
	return k, nil
}

// ParseSealKeys pins the keys of a file of concatenated PEM blocks "PUBLIC
// KEY" (PKIX, P-256). Anything else in it is refused, so that no key is left
// out unnoticed.
func ParseSealKeys(text []byte) (*SealKeys, error) {
	var keys []*ecdsa.PublicKey
	rest := text
	for {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		rest = after
		if block.Type != "PUBLIC KEY" {
			return nil, errors.New("seal keys: a PEM block is not a PUBLIC KEY; the file holds public keys only")
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("seal keys: PEM block %d: %w", len(keys)+1, err)
		}
		ec, ok := key.(*ecdsa.PublicKey)
		if !ok {
			return nil, fmt.Errorf("seal keys: PEM block %d is not an ECDSA key", len(keys)+1)
		}
		keys = append(keys, ec)
	}
	// pem.Decode skips blocks it cannot read.
	if n := bytes.Count(text, []byte("-----BEGIN")); n != len(keys) {
		return nil, fmt.Errorf("seal keys: %d of %d PEM blocks cannot be read", n-len(keys), n)
	}
	return NewSealKeys(keys...)
}

// IDs lists the key ids, in no order.
func (k *SealKeys) IDs() []KeyID {
	ids := make([]KeyID, 0, len(k.keys))
	for id := range k.keys {
		ids = append(ids, id)
	}
	return ids
}

// PublicKeys lists the keys, ascending by id.
func (k *SealKeys) PublicKeys() []*ecdsa.PublicKey {
	ids := k.IDs()
	slices.SortFunc(ids, func(a, b KeyID) int { return bytes.Compare(a[:], b[:]) })
	keys := make([]*ecdsa.PublicKey, len(ids))
	for i, id := range ids {
		keys[i] = k.keys[id]
	}
	return keys
}

// LegalFile verifies and parses. The caller must still check that EAN() is
// the one it asked for (Decide does). Every error wraps ErrSeal.
func (k *SealKeys) LegalFile(sealed []byte) (*LegalFile, error) {
	return open(k, k.legalFiles, parseLegalFile, sealed)
}

// Supplier verifies and parses. The caller must still check that GLN() is the
// one it asked for. Every error wraps ErrSeal.
func (k *SealKeys) Supplier(sealed []byte) (*Supplier, error) {
	return open(k, k.suppliers, parseSupplier, sealed)
}

// open verifies and parses once per content. The digest in the cache is over
// all the sealed bytes, key id and signature included, so nothing that
// differs from what was verified in a single bit is found there. Failures are
// not remembered: they are nobody's to fill the cache with.
func open[T any](k *SealKeys, cache *lru.Cache[[32]byte, *T], parse func([]byte) (*T, error), sealed []byte) (*T, error) {
	digest := sha256.Sum256(sealed)
	if v, ok := cache.Get(digest); ok {
		return v, nil
	}
	payload, err := k.verify(sealed)
	if err != nil {
		return nil, err
	}
	v, err := parse(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSeal, err)
	}
	if len(payload) <= maxCachedPayload {
		cache.Add(digest, v)
	}
	return v, nil
}

// verify returns the signed payload, which aliases sealed.
func (k *SealKeys) verify(sealed []byte) ([]byte, error) {
	id, payload, sig, err := splitSealed(sealed)
	if err != nil {
		return nil, err
	}
	if err := k.VerifyDigest(id, sha256.Sum256(sealed[:len(sealed)-signatureSize]), sig); err != nil {
		return nil, err
	}
	return payload, nil
}

// splitSealed takes an envelope apart, and verifies nothing; payload aliases
// sealed.
func splitSealed(sealed []byte) (id KeyID, payload []byte, sig [signatureSize]byte, err error) {
	r, _, err := canonical.Open(sealed, domainSealed, versionSealed)
	if err != nil {
		return id, nil, sig, fmt.Errorf("%w: %w", ErrSeal, err)
	}
	r.Fixed(id[:])
	payload = r.Bytes(maxPayload)
	r.Fixed(sig[:])
	if err := r.Close(); err != nil {
		return id, nil, sig, fmt.Errorf("%w: %w", ErrSeal, err)
	}
	return id, payload, sig, nil
}

// PayloadDigest is the SHA-256 of the payload in a sealed envelope, WITHOUT
// VERIFYING ANY SIGNATURE: anybody can make an envelope with any digest. It
// tells one thing only, compared with Previous of the next version, which has
// been verified: whether this is the version that the next was made from. (That
// one carries the digest under its own signature.) Nothing in an envelope that
// only this function has seen may be believed. Every error wraps ErrSeal.
func PayloadDigest(sealed []byte) ([32]byte, error) {
	_, payload, _, err := splitSealed(sealed)
	if err != nil {
		return [32]byte{}, err
	}
	return sha256.Sum256(payload), nil
}

// VerifyDigest verifies a signature under the pinned key of an id. It accepts
// the lower of the two values of s only, so that without the key nobody makes a
// second signed form. Every error wraps ErrSeal.
func (k *SealKeys) VerifyDigest(id KeyID, digest [32]byte, sig [signatureSize]byte) error {
	key := k.keys[id]
	if key == nil {
		return fmt.Errorf("%w: signed with a key that is not pinned", ErrSeal)
	}
	r, s := new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])
	if s.Cmp(halfOrder) > 0 || !ecdsa.Verify(key, digest[:], r, s) {
		return fmt.Errorf("%w: wrong signature", ErrSeal)
	}
	return nil
}
