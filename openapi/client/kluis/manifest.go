package kluis

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"math/big"
	"strings"

	"kluis/openapi/client"
)

// Manifest is what the grid operator signs about a stream.
type Manifest struct {
	Issuer    string `json:"iss"` // the cryptoserver
	Subject   string `json:"sub"` // the supplier's GLN
	IssuedAt  int64  `json:"iat"` // Unix seconds
	ID        string `json:"jti"` // interactionId of the last part
	Query     string `json:"query"`
	Format    string `json:"format"`
	Points    int    `json:"points"`
	Given     int    `json:"given"`
	Partly    int    `json:"partly"`
	Withheld  int    `json:"withheld"`
	Failed    int    `json:"failed"`
	LeftOut   int    `json:"left_out"`
	Expected  int    `json:"expected"`
	Delivered int    `json:"delivered"`
	Parts     int    `json:"parts"`
	Digest    string `json:"digest"`
}

// VerifyManifest checks a manifest's signature by one of the keys, and its type.
func VerifyManifest(jws string, keys *client.JwkSet) (*Manifest, error) {
	parts := strings.Split(jws, ".")
	if len(parts) != 3 {
		return nil, errors.New("no compact JWS")
	}
	var raw [3][]byte
	for i, p := range parts {
		b, err := base64.RawURLEncoding.Strict().DecodeString(p)
		if err != nil {
			return nil, errors.New("no compact JWS")
		}
		raw[i] = b
	}
	var head struct{ Alg, Typ, Kid string }
	if err := decode(raw[0], &head); err != nil || head.Alg != "ES256" || head.Typ != "kluis-manifest+jwt" || len(raw[2]) != 64 {
		return nil, errors.New("not an ES256 signature of a manifest")
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	for _, k := range keys.Keys {
		if k.Kid != head.Kid {
			continue
		}
		x, errX := base64.RawURLEncoding.DecodeString(k.X)
		y, errY := base64.RawURLEncoding.DecodeString(k.Y)
		if errX != nil || errY != nil || len(x) != 32 || len(y) != 32 {
			return nil, errors.New("the key is malformed")
		}
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
		if err != nil {
			return nil, errors.New("the key is malformed")
		}
		if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(raw[2][:32]), new(big.Int).SetBytes(raw[2][32:])) {
			return nil, errors.New("the signature is not that of its key")
		}
		m := &Manifest{}
		if err := decode(raw[1], m); err != nil {
			return nil, errors.New("the claims are malformed")
		}
		return m, nil
	}
	return nil, errors.New("signed by a key that is not known")
}
