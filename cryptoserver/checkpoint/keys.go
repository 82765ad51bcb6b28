package checkpoint

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// ParseKeys reads a file of concatenated PEM blocks "PUBLIC KEY" (PKIX, P-256):
// the pinned seal keys. Anything else in it is refused, so that no key is left
// out unnoticed.
func ParseKeys(text []byte) ([]*ecdsa.PublicKey, error) {
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
		k, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("seal keys: PEM block %d: %w", len(keys)+1, err)
		}
		ec, ok := k.(*ecdsa.PublicKey)
		if !ok || ec.Curve != elliptic.P256() {
			return nil, fmt.Errorf("seal keys: PEM block %d is not an ECDSA key on P-256", len(keys)+1)
		}
		keys = append(keys, ec)
	}
	// pem.Decode skips blocks it cannot read.
	if n := bytes.Count(text, []byte("-----BEGIN")); n != len(keys) || n == 0 {
		return nil, fmt.Errorf("seal keys: %d of %d PEM blocks can be read; at least one must be there, and each be a key", len(keys), n)
	}
	return keys, nil
}
