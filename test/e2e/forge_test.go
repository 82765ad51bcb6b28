package e2e

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// claims and headers of a token; nil as a value leaves the claim out.
type claims map[string]any

// externalIssuer is an authorisation server of somebody else's, with one key
// per algorithm that is accepted.
type externalIssuer struct {
	url     string
	es256   *ecdsa.PrivateKey
	ps256   *rsa.PrivateKey
	ed25519 ed25519.PrivateKey
}

func newExternalIssuer(t testing.TB) *externalIssuer {
	t.Helper()
	e := &externalIssuer{url: "https://login.example"}
	var err error
	if e.es256, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if e.ps256, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	if _, e.ed25519, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	return e
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// jwks is the public side (RFC 7517, RFC 7518, RFC 8037).
func (e *externalIssuer) jwks() []byte {
	point, err := e.es256.PublicKey.Bytes()
	if err != nil {
		panic(err) // a key just made
	}
	set, err := json.Marshal(map[string]any{"keys": []map[string]string{
		{"kty": "EC", "crv": "P-256", "kid": "ES256", "alg": "ES256", "use": "sig", "x": b64(point[1:33]), "y": b64(point[33:])},
		{"kty": "RSA", "kid": "PS256", "alg": "PS256", "use": "sig", "n": b64(e.ps256.N.Bytes()), "e": b64(big.NewInt(int64(e.ps256.E)).Bytes())},
		{"kty": "OKP", "crv": "Ed25519", "kid": "EdDSA", "alg": "EdDSA", "use": "sig", "x": b64(e.ed25519.Public().(ed25519.PublicKey))},
	}})
	if err != nil {
		panic(err)
	}
	return set
}

// thumbprint is x5t#S256 of a certificate (RFC 8705, clause 3.1).
func thumbprint(c tls.Certificate) string {
	sum := sha256.Sum256(c.Certificate[0])
	return b64(sum[:])
}

// good are the claims of a token that is accepted, for a caller.
func (e *externalIssuer) good(c *caller) claims {
	var jti [16]byte
	_, _ = rand.Read(jti[:]) // never fails
	now := time.Now().Unix()
	return claims{
		"iss": e.url, "sub": c.clientID, "client_id": c.clientID, "aud": c.w.ready.Audience, "iat": now, "exp": now + 240,
		"jti": b64(jti[:]), "scope": "readings:read", "cnf": map[string]string{"x5t#S256": thumbprint(c.cert)},
	}
}

// with changes claims.
func (c claims) with(more claims) claims {
	out := claims{}
	for _, m := range []claims{c, more} {
		for k, v := range m {
			if v == nil {
				delete(out, k)
			} else {
				out[k] = v
			}
		}
	}
	return out
}

// sign makes a token whose signature is valid. alg is ES256, PS256 or EdDSA.
func (e *externalIssuer) sign(t testing.TB, alg string, header, c claims) string {
	t.Helper()
	key := map[string]any{"ES256": e.es256, "PS256": e.ps256, "EdDSA": e.ed25519}[alg]
	return signed(t, alg, key, claims{"alg": alg, "typ": "at+jwt", "kid": alg}.with(header), c)
}

// signed makes a token with any method and key of the library.
func signed(t testing.TB, alg string, key any, header, c claims) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.GetSigningMethod(alg), jwt.MapClaims(c))
	token.Header = map[string]any(header)
	raw, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// parts takes a token apart without verifying it.
func parts(t testing.TB, raw string) (header, payload claims) {
	t.Helper()
	token, _, err := jwt.NewParser().ParseUnverified(raw, jwt.MapClaims{})
	if err != nil {
		t.Fatal(err)
	}
	return token.Header, claims(token.Claims.(jwt.MapClaims))
}
