package authn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"time"

	"kluis/meter"
)

func mustGLN(tb testing.TB, s string) meter.GLN {
	tb.Helper()
	g, err := meter.ParseGLN(s)
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

func goodClaims(tb testing.TB, w *world) TokenClaims {
	return TokenClaims{
		Issuer: ownIssuer, Audience: audience, Client: mustGLN(tb, supplier), Scopes: []string{ScopeReadings},
		Thumbprint: leaf, IssuedAt: w.now.Add(400 * time.Millisecond), Lifetime: 5 * time.Minute,
	}
}

func TestSignToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := goodClaims(t, w)
	ids := map[[32]byte]bool{}
	for range 100 { // r and s of fewer than 32 bytes come up, one in 128
		raw, err := SignToken(derSigner{PrivateKey: w.es}, w.kid, c)
		if err != nil {
			t.Fatal(err)
		}
		tok, err := w.verifier.Verify(t.Context(), raw, leaf)
		if err != nil {
			t.Fatal(err)
		}
		if tok.Client() != c.Client || tok.ExpiresAt() != noon.Add(5*time.Minute) || tok.ExpiresAt() != c.ExpiresAt() ||
			tok.Issuer() != ownIssuer || len(tok.scopes) != 1 || tok.scopes[0] != ScopeReadings {
			t.Fatalf("%+v", tok)
		}
		ids[tok.ID()] = true
	}
	if len(ids) != 100 {
		t.Errorf("%d different jti in 100 tokens", len(ids))
	}
}

// TestTokenFormat is the golden form: exactly these members, whatever their
// order.
func TestTokenFormat(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw, err := SignToken(w.es, w.kid, goodClaims(t, w))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(raw, ".")
	decode := func(s string) map[string]any {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	claims := decode(parts[1])
	if jti, _ := claims["jti"].(string); len(jti) != 22 {
		t.Errorf("jti %q is not 128 bits", jti)
	}
	claims["jti"] = "random"
	got, err := json.Marshal([]any{decode(parts[0]), claims})
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"alg":"ES256","kid":"` + w.kid + `","typ":"at+jwt"},` +
		`{"aud":"urn:kluis:gateway","client_id":"8712423010208","cnf":{"x5t#S256":"` + b64(leaf[:]) + `"},` +
		`"exp":1774785900,"iat":1774785600,"iss":"https://issuer.kluis.example","jti":"random","scope":"readings:read","sub":"8712423010208"}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if sig, err := base64.RawURLEncoding.DecodeString(parts[2]); err != nil || len(sig) != 64 {
		t.Errorf("signature of %d bytes, %v", len(sig), err)
	}
}

func TestSignTokenRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, change := range map[string]func(*TokenClaims){
		"no issuer":       func(c *TokenClaims) { c.Issuer = "" },
		"no audience":     func(c *TokenClaims) { c.Audience = "" },
		"no client":       func(c *TokenClaims) { c.Client = meter.GLN{} },
		"no certificate":  func(c *TokenClaims) { c.Thumbprint = [32]byte{} },
		"no time":         func(c *TokenClaims) { c.IssuedAt = time.Time{} },
		"no lifetime":     func(c *TokenClaims) { c.Lifetime = 0 },
		"negative":        func(c *TokenClaims) { c.Lifetime = -time.Second },
		"too long":        func(c *TokenClaims) { c.Lifetime = MaxLifetime + time.Second },
		"parts of second": func(c *TokenClaims) { c.Lifetime = time.Second + 1 },
		"scope injected":  func(c *TokenClaims) { c.Scopes = []string{"a b"} },
		"scope empty":     func(c *TokenClaims) { c.Scopes = []string{""} },
	} {
		c := goodClaims(t, w)
		change(&c)
		if raw, err := SignToken(w.es, w.kid, c); err == nil || raw != "" {
			t.Errorf("%s: %q, %v", name, raw, err)
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := func(r, s *big.Int) func([]byte) []byte {
		return func([]byte) []byte {
			b, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
			if err != nil {
				t.Error(err)
			}
			return b
		}
	}
	big257 := new(big.Int).Lsh(big.NewInt(1), 256)
	for name, signer := range map[string]crypto.Signer{
		"Ed25519":         w.ed,
		"RSA":             w.ps,
		"P-384":           p384,
		"garbage":         derSigner{w.es, func([]byte) []byte { return []byte("garbage") }},
		"nothing":         derSigner{w.es, func([]byte) []byte { return nil }},
		"trailing bytes":  derSigner{w.es, func(b []byte) []byte { return append(b, 0) }},
		"r of 257 bits":   derSigner{w.es, der(big257, big.NewInt(1))},
		"s negative":      derSigner{w.es, der(big.NewInt(1), big.NewInt(-1))},
		"zeros":           derSigner{w.es, der(new(big.Int), new(big.Int))},
		"does not verify": derSigner{w.es, der(big.NewInt(1), big.NewInt(1))},
	} {
		if raw, err := SignToken(signer, w.kid, goodClaims(t, w)); err == nil || raw != "" {
			t.Errorf("%s: %q, %v", name, raw, err)
		}
	}
	if _, err := SignToken(w.es, "", goodClaims(t, w)); err == nil {
		t.Error("signed without a kid")
	}
}

func FuzzFixedSignature(f *testing.F) {
	w := newWorld(f)
	der, err := w.es.Sign(rand.Reader, make([]byte, 32), crypto.SHA256)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add([]byte{0x30, 0x06, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01})
	f.Fuzz(func(t *testing.T, der []byte) {
		sig, err := fixedSignature(der)
		if err != nil {
			return
		}
		back, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])})
		if err != nil || string(back) != string(der) {
			t.Fatalf("%x became %x", der, back)
		}
	})
}
