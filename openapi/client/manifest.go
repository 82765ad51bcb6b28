package client

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
)

// ErrManifest is wrapped whenever a manifest does not verify or parse.
var ErrManifest = errors.New("manifest does not verify")

// ManifestType is the typ of a manifest (RFC 7515): no other JWS of Kluis has it.
const ManifestType = "kluis-manifest+jwt"

// Manifest is what a cryptoserver signed of a stream of readings: what came of
// its metering points, over all parts of which it was put together.
type Manifest struct {
	Server        string    // that signed
	Supplier      string    // GLN
	IssuedAt      time.Time // UTC, seconds
	InteractionID string    // of the last part
	Query         [32]byte  // digest of the request: `query` of the line begin
	Format        string    // ndjson, csv

	// How many metering points were answered: Points is the sum of Given, Partly,
	// Withheld, and Failed, which have a problem of their own. Of LeftOut, nothing
	// is granted; they are not in the stream, and none where all were listed.
	Points, Given, Partly, Withheld, Failed, LeftOut uint32

	Expected, Delivered uint64   // values
	Parts               uint32   // from 1
	Digest              [32]byte // what Chain.Digest is after the last line
}

// maxManifest bounds what is parsed, and maxValue what an expected number of
// values may be: more no number in JSON is sure to hold (RFC 8259, 6).
const (
	maxManifest = 4096
	maxValue    = 1<<53 - 1
)

// manifestHeader and manifestClaims are in the order in which they are signed.
type manifestHeader struct {
	Alg string `json:"alg"`
	Kid string `json:"kid"`
	Typ string `json:"typ"`
}

type manifestClaims struct {
	Iss       string `json:"iss"`
	Sub       string `json:"sub"`
	Iat       int64  `json:"iat"`
	Jti       string `json:"jti"`
	Query     string `json:"query"`
	Format    string `json:"format"`
	Points    uint32 `json:"points"`
	Given     uint32 `json:"given"`
	Partly    uint32 `json:"partly"`
	Withheld  uint32 `json:"withheld"`
	Failed    uint32 `json:"failed"`
	LeftOut   uint32 `json:"left_out"`
	Expected  uint64 `json:"expected"`
	Delivered uint64 `json:"delivered"`
	Parts     uint32 `json:"parts"`
	Digest    string `json:"digest"`
}

// VerifyManifest checks a manifest under the keys of GET /v1/manifest-keys, which
// should have come over a channel of their own. Whether it is the manifest of the
// stream that was read is for the caller to compare: Supplier, Query, Points and
// Digest. It accepts the one form in which Kluis writes it. Every error wraps
// ErrManifest.
func VerifyManifest(jws string, keys JwkSet) (Manifest, error) {
	if len(jws) > maxManifest || strings.ContainsAny(jws, "\r\n") { // which base64 skips
		return Manifest{}, fmt.Errorf("%w: longer than %d bytes, or of several lines", ErrManifest, maxManifest)
	}
	parts := strings.Split(jws, ".")
	if len(parts) != 3 {
		return Manifest{}, fmt.Errorf("%w: not a compact JWS", ErrManifest)
	}
	var h manifestHeader
	if err := oneForm(parts[0], &h); err != nil {
		return Manifest{}, fmt.Errorf("%w: header: %w", ErrManifest, err)
	}
	if h.Alg != "ES256" || h.Typ != ManifestType {
		return Manifest{}, fmt.Errorf("%w: not a %s by ES256", ErrManifest, ManifestType)
	}
	key, err := manifestKey(keys, h.Kid)
	if err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	sig, err := base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(sig) != 64 {
		return Manifest{}, fmt.Errorf("%w: no signature by ES256", ErrManifest)
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		return Manifest{}, fmt.Errorf("%w: the signature is not that of the key it names", ErrManifest)
	}
	var c manifestClaims
	if err := oneForm(parts[1], &c); err != nil {
		return Manifest{}, fmt.Errorf("%w: claims: %w", ErrManifest, err)
	}
	m, err := c.manifest()
	if err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	return m, nil
}

// oneForm parses JSON that is exactly as it would be written: no member twice,
// unknown, or written in another way.
func oneForm(part string, into any) error {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return errors.New("not base64url")
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return errors.New("not what a manifest has")
	}
	if again, err := json.Marshal(into); err != nil || !bytes.Equal(raw, again) {
		return errors.New("not in the form in which manifests are written")
	}
	return nil
}

// manifestKey is the key of the set whose thumbprint (RFC 7638) is kid.
func manifestKey(keys JwkSet, kid string) (*ecdsa.PublicKey, error) {
	for _, k := range keys.Keys {
		if k.Kid != kid {
			continue
		}
		if k.Kty != "EC" || k.Crv != "P-256" || k.Alg != "" && k.Alg != "ES256" || k.Use != "" && k.Use != "sig" {
			return nil, errors.New("its key is not one for ES256")
		}
		canonical, err := json.Marshal(struct {
			Crv string `json:"crv"`
			Kty string `json:"kty"`
			X   string `json:"x"`
			Y   string `json:"y"`
		}{"P-256", "EC", k.X, k.Y})
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(canonical)
		x, xErr := base64.RawURLEncoding.Strict().DecodeString(k.X)
		y, yErr := base64.RawURLEncoding.Strict().DecodeString(k.Y)
		if base64.RawURLEncoding.EncodeToString(sum[:]) != kid || xErr != nil || yErr != nil || len(x) != 32 || len(y) != 32 {
			return nil, errors.New("its key is not the one that kid names")
		}
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y)) // SEC 1, 2.3.3
		if err != nil {
			return nil, errors.New("its key is no point of P-256")
		}
		return key, nil
	}
	return nil, errors.New("none of the keys signed it: get the keys anew")
}

func (c *manifestClaims) manifest() (Manifest, error) {
	m := Manifest{
		Server: c.Iss, Supplier: c.Sub, IssuedAt: time.Unix(c.Iat, 0).UTC(), InteractionID: c.Jti, Format: c.Format,
		Points: c.Points, Given: c.Given, Partly: c.Partly, Withheld: c.Withheld, Failed: c.Failed, LeftOut: c.LeftOut,
		Expected: c.Expected, Delivered: c.Delivered, Parts: c.Parts,
	}
	var ok, too bool
	m.Query, ok = digestOf(c.Query)
	m.Digest, too = digestOf(c.Digest)
	switch {
	case !ok || !too:
		return Manifest{}, errors.New("a digest is not of 32 bytes")
	case c.Format != "ndjson" && c.Format != "csv":
		return Manifest{}, errors.New("unknown format")
	case uint64(c.Points) != uint64(c.Given)+uint64(c.Partly)+uint64(c.Withheld)+uint64(c.Failed),
		c.Delivered > c.Expected, c.Expected > maxValue, c.Parts == 0:
		return Manifest{}, errors.New("its counts contradict each other")
	}
	return m, nil
}

func digestOf(s string) (d [32]byte, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return [32]byte(append(b, make([]byte, 32)...)[:32]), err == nil && len(b) == 32 && base64.RawURLEncoding.EncodeToString(b) == s
}

// Chain is the digest over the lines of metering points, in their order: none is
// missing, there twice, or another. The zero Chain is not ready: use NewChain, or
// ResumeChain.
type Chain struct{ digest [32]byte }

// chainTag begins what the first digest is of.
const chainTag = "kluis/manifest/1\n"

// NewChain begins the chain of a request, by the digest that stands for it.
func NewChain(query [32]byte) *Chain {
	return &Chain{sha256.Sum256(append([]byte(chainTag), query[:]...))}
}

// ResumeChain goes on from the Digest of a chain that was stored.
func ResumeChain(digest [32]byte) *Chain { return &Chain{digest} }

// Add takes the line of a metering point as it came, with its line feed; of CSV,
// all its rows.
func (c *Chain) Add(line []byte) {
	var link [2 * sha256.Size]byte
	sum := sha256.Sum256(line)
	copy(link[copy(link[:], c.digest[:]):], sum[:])
	c.digest = sha256.Sum256(link[:])
}

// Digest is of all lines so far.
func (c *Chain) Digest() [32]byte { return c.digest }
