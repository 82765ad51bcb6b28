package authn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	ownIssuer = "https://issuer.kluis.example"
	extIssuer = "https://login.example.com/realm"
	audience  = "urn:kluis:gateway"
	supplier  = "8712423010208"
	other     = "8716948000003"
	operator  = "8716867000009"
)

var (
	leaf      = sha256.Sum256([]byte("the client certificate"))
	otherLeaf = sha256.Sum256([]byte("another client certificate"))
	noon      = time.Date(2026, 3, 29, 12, 0, 0, 0, time.UTC)
	b64       = base64.RawURLEncoding.EncodeToString
)

// testKeys are made once: RSA keys take long.
type testKeys struct {
	es, es2 *ecdsa.PrivateKey
	ed      ed25519.PrivateKey
	ps      *rsa.PrivateKey
}

var keysOnce = sync.OnceValue(func() testKeys {
	ec := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		return k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	ps, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return testKeys{ec(), ec(), ed, ps}
})

// world is an own issuer with two keys and an external one with an RSA and an
// Ed25519 key, a verifier that accepts both, and a clock.
type world struct {
	testKeys
	kid, kid2 string
	verifier  *Verifier
	now       time.Time
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{testKeys: keysOnce(), now: noon}
	own, err := JWKS(&w.es.PublicKey, &w.es2.PublicKey)
	if err != nil {
		tb.Fatal(err)
	}
	ownKeys, err := PinnedKeys(own)
	if err != nil {
		tb.Fatal(err)
	}
	extKeys, err := PinnedKeys(w.externalJWKS(tb))
	if err != nil {
		tb.Fatal(err)
	}
	if w.kid, err = KeyID(&w.es.PublicKey); err != nil {
		tb.Fatal(err)
	}
	if w.kid2, err = KeyID(&w.es2.PublicKey); err != nil {
		tb.Fatal(err)
	}
	w.verifier, err = NewVerifier(func() time.Time { return w.now },
		Issuer{ownIssuer, audience, ownKeys, 5 * time.Minute, &Staff{mustGLN(tb, operator), profile()}},
		Issuer{extIssuer, audience, extKeys, 15 * time.Minute, nil})
	if err != nil {
		tb.Fatal(err)
	}
	return w
}

// externalJWKS is written by hand, as another product would.
func (w *world) externalJWKS(tb testing.TB) []byte {
	tb.Helper()
	set, err := json.Marshal(map[string]any{"keys": []any{
		map[string]any{"kty": "RSA", "kid": "rsa-1", "use": "sig", "alg": "PS256", "n": b64(w.ps.N.Bytes()), "e": "AQAB"},
		map[string]any{"kty": "OKP", "crv": "Ed25519", "kid": "ed-1", "x": b64(w.ed.Public().(ed25519.PublicKey))},
	}})
	if err != nil {
		tb.Fatal(err)
	}
	return set
}

// spec is a token to be. Whatever is valid of it is filled in by newSpec.
type spec struct {
	header, claims       map[string]any
	rawHeader, rawClaims string // in place of the maps
	method               jwt.SigningMethod
	key                  any
	after                func(raw string) string
}

func (w *world) newSpec() *spec {
	return &spec{
		header: map[string]any{"typ": "at+jwt", "alg": "ES256", "kid": w.kid},
		claims: map[string]any{
			"iss": ownIssuer, "aud": audience, "sub": supplier, "client_id": supplier,
			"iat": w.now.Unix(), "exp": w.now.Unix() + 300, "jti": "id-1", "scope": ScopeReadings,
			"cnf": map[string]any{"x5t#S256": b64(leaf[:])},
		},
		method: jwt.SigningMethodES256,
		key:    w.es,
	}
}

// external makes it a token of the external issuer.
func (w *world) external(s *spec, kid string) {
	s.claims["iss"] = extIssuer
	s.header["kid"] = kid
	switch kid {
	case "rsa-1":
		s.header["alg"], s.method, s.key = "PS256", jwt.SigningMethodPS256, w.ps
	case "ed-1":
		s.header["alg"], s.method, s.key = "EdDSA", jwt.SigningMethodEdDSA, w.ed
	}
}

func (s *spec) sign(tb testing.TB) string {
	tb.Helper()
	part := func(raw string, m map[string]any) string {
		if raw == "" {
			b, err := json.Marshal(m)
			if err != nil {
				tb.Fatal(err)
			}
			raw = string(b)
		}
		return b64([]byte(raw))
	}
	in := part(s.rawHeader, s.header) + "." + part(s.rawClaims, s.claims)
	sig, err := s.method.Sign(in, s.key)
	if err != nil {
		tb.Fatal(err)
	}
	raw := in + "." + b64(sig)
	if s.after != nil {
		raw = s.after(raw)
	}
	return raw
}

func refused(tb testing.TB, err error, kind error, reason string) {
	tb.Helper()
	if !errors.Is(err, kind) || Reason(err) != reason {
		tb.Errorf("got %v (reason %q), want %v (reason %q)", err, Reason(err), kind, reason)
	}
}

// derSigner signs as an HSM does, in DER; bend changes what it returns.
type derSigner struct {
	*ecdsa.PrivateKey
	bend func([]byte) []byte
}

func (d derSigner) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	der, err := d.PrivateKey.Sign(r, digest, o)
	if err == nil && d.bend != nil {
		der = d.bend(der)
	}
	return der, err
}
