package cryptoserver

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"kluis/authz"
)

// sealSigner makes an ES256 signature of fixed length (RFC 7518, 3.4) with a
// key in the HSM.
type sealSigner struct {
	key crypto.Signer
	pub *ecdsa.PublicKey
	id  authz.KeyID
}

func newSealSigner(key crypto.Signer, pinned []*ecdsa.PublicKey) (*sealSigner, error) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("the seal key is not an ECDSA P-256 key")
	}
	for _, p := range pinned {
		if p.Equal(pub) {
			return &sealSigner{key: key, pub: pub, id: authz.KeyIDOf(pub)}, nil
		}
	}
	return nil, errors.New("the seal token's public key is not among the pinned seal keys: nobody would accept what it seals")
}

func (s *sealSigner) KeyID() authz.KeyID { return s.id }

// checkpointKey is what signs the head of the audit log's tree.
func (s *sealSigner) checkpointKey() (*ecdsa.PublicKey, func([32]byte) ([64]byte, error)) {
	return s.pub, func(digest [32]byte) ([64]byte, error) { return authz.SignDigest(s, digest) }
}

func (s *sealSigner) SignDigest(digest [32]byte) ([64]byte, error) {
	var out [64]byte
	der, err := s.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return out, err
	}
	var sig struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &sig); err != nil || len(rest) != 0 {
		return out, errors.New("the HSM returned a signature in another form")
	}
	n := elliptic.P256().Params().N
	for _, v := range []*big.Int{sig.R, sig.S} {
		if v.Sign() <= 0 || v.Cmp(n) >= 0 {
			return out, fmt.Errorf("the HSM returned an impossible signature")
		}
	}
	sig.R.FillBytes(out[:32])
	sig.S.FillBytes(out[32:])
	return out, nil
}
