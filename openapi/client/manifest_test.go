package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

// The golden vectors were made with another implementation (Python: hashlib and
// cryptography).
const (
	goldenX   = "o1q0iifZOud7cRU08TwrnY8mtxOhPEGCSueHJ1HT4aY"
	goldenY   = "1sFvna44OqAFC2mPW8_qIgZee4noJuc1D9vNHbNUr6U"
	goldenKid = "XOJmYFQLv7YU9V1OsUryllXxQRXLapBrqeYe0DNKYx0"
	golden    = "eyJhbGciOiJFUzI1NiIsImtpZCI6IlhPSm1ZRlFMdjdZVTlWMU9zVXJ5bGxYeFFSWExhcEJycWVZZTBETktZeDAiLCJ0eXAiOiJrbHVpcy1tYW5pZmVzdCtqd3QifQ.eyJpc3MiOiJjcnlwdG9zZXJ2ZXItMSIsInN1YiI6Ijg3MTIwMDAwMDAwMTEiLCJpYXQiOjE3OTU0NDYwMDAsImp0aSI6IjAxOTdkMGEyLTdiMWMtN2MzYS05ZDU1LTJmMGU2YTRiOGMxMSIsInF1ZXJ5IjoiQUFFQ0F3UUZCZ2NJQ1FvTERBME9EeEFSRWhNVUZSWVhHQmthR3h3ZEhoOCIsImZvcm1hdCI6Im5kanNvbiIsInBvaW50cyI6MTAsImdpdmVuIjo0LCJwYXJ0bHkiOjMsIndpdGhoZWxkIjoyLCJmYWlsZWQiOjEsImxlZnRfb3V0Ijo3LCJleHBlY3RlZCI6MTI0MCwiZGVsaXZlcmVkIjoxMjM5LCJwYXJ0cyI6MiwiZGlnZXN0IjoiX183OV9QdjYtZmozOXZYMDhfTHg4T191N2V6cjZ1bm81LWJsNU9QaTRlQSJ9.n56bwK-7y578M-iwXmMU0CrNk3xZy3aOI2NFyWs2FII9nyD_aDe9PHehjHuMMWV8Q5iNtJX1RPiymshcLTJA-Q"
)

func goldenKeys() JwkSet {
	return JwkSet{Keys: []Jwk{
		otherKey(),
		{Kty: "EC", Crv: "P-256", X: goldenX, Y: goldenY, Kid: goldenKid, Use: "sig", Alg: "ES256"},
	}}
}

func goldenManifest() Manifest {
	m := Manifest{
		Server: "cryptoserver-1", Supplier: "8712000000011", IssuedAt: time.Date(2026, 11, 23, 15, 0, 0, 0, time.UTC),
		InteractionID: "0197d0a2-7b1c-7c3a-9d55-2f0e6a4b8c11", Format: "ndjson",
		Points: 10, Given: 4, Partly: 3, Withheld: 2, Failed: 1, LeftOut: 7, Expected: 1240, Delivered: 1239, Parts: 2,
	}
	for i := range 32 {
		m.Query[i], m.Digest[i] = byte(i), byte(0xff-i)
	}
	return m
}

// otherKey is one that signed none of the manifests.
func otherKey() Jwk {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return jwkOf(&k.PublicKey)
}

func jwkOf(k *ecdsa.PublicKey) Jwk {
	b, err := k.Bytes()
	if err != nil {
		panic(err)
	}
	x, y := base64.RawURLEncoding.EncodeToString(b[1:33]), base64.RawURLEncoding.EncodeToString(b[33:])
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}`, x, y))
	return Jwk{Kty: "EC", Crv: "P-256", X: x, Y: y, Kid: base64.RawURLEncoding.EncodeToString(sum[:]), Use: "sig", Alg: "ES256"}
}

func TestVerifyManifest(t *testing.T) {
	t.Parallel()
	m, err := VerifyManifest(golden, goldenKeys())
	if err != nil || m != goldenManifest() {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestVerifyManifestRefuses: a single bit, another key, and whatever an attacker
// may write who has a key of a set, or none.
func TestVerifyManifestRefuses(t *testing.T) {
	t.Parallel()
	for i := range golden {
		b := []byte(golden)
		b[i] ^= 1
		if _, err := VerifyManifest(string(b), goldenKeys()); !errors.Is(err, ErrManifest) {
			t.Fatalf("with another byte %d: %v", i, err)
		}
	}
	parts := strings.Split(golden, ".")
	for name, jws := range map[string]string{
		"nothing": "", "two parts": parts[0] + "." + parts[1], "four parts": golden + ".x", "no signature": parts[0] + "." + parts[1] + ".",
		"padded": golden + "=", "a line feed": golden + "\n", "one within": golden[:20] + "\n" + golden[20:], "too long": golden + strings.Repeat("A", 5000),
	} {
		if _, err := VerifyManifest(jws, goldenKeys()); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own := jwkOf(&key.PublicKey)
	sign := func(header, claims string) string {
		input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
		digest := sha256.Sum256([]byte(input))
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		var sig [64]byte
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
		return input + "." + base64.RawURLEncoding.EncodeToString(sig[:])
	}
	decoded, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	claims := string(decoded)
	header := fmt.Sprintf(`{"alg":"ES256","kid":"%s","typ":"%s"}`, own.Kid, ManifestType)
	if _, err := VerifyManifest(sign(header, claims), JwkSet{Keys: []Jwk{own}}); err != nil {
		t.Fatalf("the rest says nothing: %v", err)
	}
	for name, c := range map[string]struct{ old, new string }{
		"no algorithm":      {`"ES256"`, `"none"`},
		"by a MAC":          {`"ES256"`, `"HS256"`},
		"an access token":   {ManifestType, "at+jwt"},
		"another JWT":       {ManifestType, "JWT"},
		"no key id":         {own.Kid, ""},
		"another key's id":  {own.Kid, goldenKid},
		"a critical header": {`"typ"`, `"crit":["x"],"typ"`},
		"a key of its own":  {`"typ"`, `"jwk":{},"typ"`},
		"a second algorithm": {`"typ"`,
			`"alg":"none","typ"`},
		"a space":           {`,`, `, `},
		"an algorithm null": {`"ES256"`, `null`},
	} {
		if _, err := VerifyManifest(sign(strings.Replace(header, c.old, c.new, 1), claims), JwkSet{Keys: []Jwk{own}}); !errors.Is(err, ErrManifest) {
			t.Errorf("header: %s: %v", name, err)
		}
	}
	for name, c := range map[string]struct{ old, new string }{
		"more than given":         {`"points":10`, `"points":11`},
		"less than given":         {`"points":10`, `"points":9`},
		"more than expected":      {`"delivered":1239`, `"delivered":1241`},
		"no part":                 {`"parts":2`, `"parts":0`},
		"a negative number":       {`"failed":1`, `"failed":-1`},
		"a fraction":              {`"failed":1`, `"failed":1.0`},
		"a larger number":         {`"left_out":7`, `"left_out":4294967296`},
		"too many":                {`"expected":1240`, `"expected":9007199254740992`},
		"another format":          {`"ndjson"`, `"xml"`},
		"another claim":           {`"parts"`, `"exp":1,"parts"`},
		"a claim twice":           {`"parts":2`, `"parts":1,"parts":2`},
		"a claim in capitals":     {`"sub"`, `"SUB"`},
		"a missing claim":         {`"sub":"8712000000011",`, ``},
		"a short digest":          {`"digest":"`, `"digest":"AA`},
		"a digest in another way": {`"}`, `="}`},
		"no object":               {claims, `[]`},
		"nothing":                 {claims, ``},
		"something after":         {claims, claims + `{}`},
	} {
		changed := strings.Replace(claims, c.old, c.new, 1)
		if _, err := VerifyManifest(sign(header, changed), JwkSet{Keys: []Jwk{own}}); changed == claims || !errors.Is(err, ErrManifest) {
			t.Errorf("claims: %s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*Jwk){
		"of another curve":       func(k *Jwk) { k.Crv = "P-384" },
		"of another type":        func(k *Jwk) { k.Kty = "RSA" },
		"for encryption":         func(k *Jwk) { k.Use = "enc" },
		"for another algorithm":  func(k *Jwk) { k.Alg = "ES384" },
		"whose id is another's":  func(k *Jwk) { other := otherKey(); k.X, k.Y = other.X, other.Y },
		"that is not on a curve": func(k *Jwk) { *k = offCurve(); *k = rename(*k) },
		"without coordinates":    func(k *Jwk) { k.X, k.Y = "", ""; *k = rename(*k) },
	} {
		k := own
		change(&k)
		jws := sign(strings.Replace(header, own.Kid, k.Kid, 1), claims)
		if _, err := VerifyManifest(jws, JwkSet{Keys: []Jwk{k}}); !errors.Is(err, ErrManifest) {
			t.Errorf("a key %s: %v", name, err)
		}
	}
	if _, err := VerifyManifest(golden, JwkSet{}); !errors.Is(err, ErrManifest) {
		t.Errorf("without keys: %v", err)
	}
	// S and order - S verify alike under ECDSA; what is said is the same.
	sig, _ := base64.RawURLEncoding.DecodeString(parts[2])
	s := new(big.Int).SetBytes(sig[32:])
	new(big.Int).Sub(elliptic.P256().Params().N, s).FillBytes(sig[32:])
	if m, err := VerifyManifest(parts[0]+"."+parts[1]+"."+base64.RawURLEncoding.EncodeToString(sig), goldenKeys()); err == nil && m != goldenManifest() {
		t.Errorf("%+v", m)
	}
}

func offCurve() Jwk {
	b := make([]byte, 32)
	b[31] = 1
	return Jwk{Kty: "EC", Crv: "P-256", X: base64.RawURLEncoding.EncodeToString(b), Y: base64.RawURLEncoding.EncodeToString(b), Use: "sig", Alg: "ES256"}
}

// rename gives a key the thumbprint of what it says.
func rename(k Jwk) Jwk {
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}`, k.X, k.Y))
	k.Kid = base64.RawURLEncoding.EncodeToString(sum[:])
	return k
}

// TestChain: the golden vector, and that no two orders, cuts or sets of lines
// have one digest.
func TestChain(t *testing.T) {
	t.Parallel()
	query := [32]byte{1, 2, 3}
	c := NewChain(query)
	lines := []string{`{"type":"point","sequence":1}` + "\n", `{"type":"point","sequence":2}` + "\n", ""}
	for i, want := range []string{
		"69be78e9a31d628ce0610b3eaa250ce93d2d4baff732e70f5ce3572375b62252",
		"fb266aeb45d30f87879425eb51c83d91470236510c962db1c5500a1de70725b9",
		"8376e732b22be0d55d37d90cb0b05cef4666925c9e5e1cb28a9b9ab1d6682fc2",
		"9866f3e46cfb07b369ce73312c448ccb9b5d8b56c561a633f4da282862035b29",
	} {
		if got := c.Digest(); hex.EncodeToString(got[:]) != want {
			t.Errorf("after %d lines %x, want %s", i, got, want)
		}
		if i < len(lines) {
			c.Add([]byte(lines[i]))
		}
	}
	seen := map[[32]byte][]string{}
	for _, lines := range [][]string{
		{}, {""}, {"", ""}, {"a"}, {"b"}, {"a", "b"}, {"b", "a"}, {"ab"}, {"a", "a"}, {"a", "b", "b"}, {"a\n"}, {"a", "\n"},
	} {
		for _, q := range [][32]byte{query, {}} {
			c := NewChain(q)
			for _, l := range lines {
				c.Add([]byte(l))
			}
			if other, twice := seen[c.Digest()]; twice {
				t.Errorf("%q and %q have one digest", lines, other)
			}
			seen[c.Digest()] = lines
		}
	}
	// Gone on with from what was stored.
	a, b := NewChain(query), NewChain(query)
	for i, l := range lines {
		a.Add([]byte(l))
		if i == 1 {
			b = ResumeChain(b.Digest())
		}
		b.Add([]byte(l))
	}
	if a.Digest() != b.Digest() {
		t.Error("a chain that was resumed has another digest")
	}
}

// FuzzVerifyManifest: nothing makes it panic, what verifies is what was signed,
// and it says so in one form only.
func FuzzVerifyManifest(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	own := jwkOf(&key.PublicKey)
	parts := strings.Split(golden, ".")
	header, _ := base64.RawURLEncoding.DecodeString(parts[0])
	claims, _ := base64.RawURLEncoding.DecodeString(parts[1])
	f.Add(string(header), string(claims), golden)
	f.Add(fmt.Sprintf(`{"alg":"ES256","kid":"%s","typ":"%s"}`, "KID", ManifestType), string(claims), "")
	f.Fuzz(func(t *testing.T, header, claims, raw string) {
		if m, err := VerifyManifest(raw, goldenKeys()); err == nil && m != goldenManifest() {
			t.Errorf("%q verifies as %+v", raw, m)
		} else if err != nil && !errors.Is(err, ErrManifest) {
			t.Errorf("%v", err)
		}
		header = strings.ReplaceAll(header, "KID", own.Kid) // of a key made for this run
		input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
		digest := sha256.Sum256([]byte(input))
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		var sig [64]byte
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
		m, err := VerifyManifest(input+"."+base64.RawURLEncoding.EncodeToString(sig[:]), JwkSet{Keys: []Jwk{own}})
		if err != nil {
			return
		}
		again, err := json.Marshal(manifestClaims{
			Iss: m.Server, Sub: m.Supplier, Iat: m.IssuedAt.Unix(), Jti: m.InteractionID,
			Query: base64.RawURLEncoding.EncodeToString(m.Query[:]), Format: m.Format, Points: m.Points, Given: m.Given, Partly: m.Partly,
			Withheld: m.Withheld, Failed: m.Failed, LeftOut: m.LeftOut, Expected: m.Expected, Delivered: m.Delivered, Parts: m.Parts,
			Digest: base64.RawURLEncoding.EncodeToString(m.Digest[:]),
		})
		if err != nil || string(again) != claims {
			t.Errorf("%q was accepted, which is written %q", claims, again)
		}
	})
}
