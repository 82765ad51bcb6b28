// Package devidp is the identity provider of the demo and of tests: it makes
// ID tokens (OpenID Connect Core 1.0, clause 2) for whomever it is asked to, and
// serves the demo's portal with them (Server). It is not for production: it asks nobody for a password, and its key lies on
// disk.
package devidp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// URL is its iss, unless At says another. There is nothing at this address.
	URL = "https://devidp.kluis.example"
	// Audience is the aud of its ID tokens: the portal.
	Audience = "kluis-portal"
	// RoleClaim is the claim with an employee's roles: "agent", "supervisor",
	// "auditor".
	RoleClaim = "roles"
	// Lifetime is that of its ID tokens.
	Lifetime = time.Hour
)

// Provider signs ID tokens, ES256.
type Provider struct {
	key *ecdsa.PrivateKey
	kid string
	url string // iss
}

// New makes a provider with a new key.
func New() (*Provider, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return provider(key)
}

func provider(key *ecdsa.PrivateKey) (*Provider, error) {
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return &Provider{key, "dev-" + b64(sum[:9]), URL}, nil
}

// At is the provider with another iss.
func (p *Provider) At(url string) *Provider { return &Provider{p.key, p.kid, url} }

// URL is its iss.
func (p *Provider) URL() string { return p.url }

// KeyFile and JWKSFile are where LoadOrCreate keeps the key and the public half,
// URLFile where its iss stands when it is not URL.
func KeyFile(dir string) string  { return filepath.Join(dir, "devidp.key") }
func JWKSFile(dir string) string { return filepath.Join(dir, "devidp-jwks.json") }
func URLFile(dir string) string  { return filepath.Join(dir, "devidp-url") }

// LoadOrCreate keeps a provider in dir: its key (readable by the owner only)
// and its JWK set.
func LoadOrCreate(dir string) (*Provider, error) {
	p, err := Load(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return p, err
	}
	if p, err = New(); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		return nil, err
	}
	// The key last: without it both are made anew.
	if err := os.WriteFile(JWKSFile(dir), p.JWKS(), 0o644); err != nil {
		return nil, err
	}
	return p, os.WriteFile(KeyFile(dir), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// Load reads what LoadOrCreate keeps in dir.
func Load(dir string) (*Provider, error) {
	raw, err := os.ReadFile(KeyFile(dir))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM block", KeyFile(dir))
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", KeyFile(dir), err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s: not an ECDSA P-256 key", KeyFile(dir))
	}
	p, err := provider(key)
	if err != nil {
		return nil, err
	}
	at, err := os.ReadFile(URLFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	return p.At(strings.TrimSpace(string(at))), err
}

// JWKS is the JWK set (RFC 7517) of the provider's public key.
func (p *Provider) JWKS() []byte {
	point, err := p.key.PublicKey.Bytes() // 0x04 || x || y
	if err != nil {
		panic(err) // the key is on P-256
	}
	set, err := json.MarshalIndent(map[string]any{"keys": []any{map[string]any{
		"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": p.kid, "x": b64(point[1:33]), "y": b64(point[33:]),
	}}}, "", "  ")
	if err != nil {
		panic(err) // strings only
	}
	return set
}

// IDToken says that subject signed in at the time, with the roles.
func (p *Provider) IDToken(subject string, at time.Time, roles ...string) (string, error) {
	return p.Sign(map[string]any{"sub": subject, "iat": at.Unix(), "auth_time": at.Unix(), "exp": at.Add(Lifetime).Unix(), RoleClaim: roles})
}

// Sign signs any claims; iss and aud are filled in where they are not among
// them, and a claim that is nil is left out.
func (p *Provider) Sign(claims map[string]any) (string, error) {
	all := map[string]any{"iss": p.url, "aud": Audience}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	header, err := json.Marshal(map[string]any{"typ": "JWT", "alg": "ES256", "kid": p.kid})
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(all)
	if err != nil {
		return "", err
	}
	in := b64(header) + "." + b64(payload)
	digest := sha256.Sum256([]byte(in))
	r, s, err := ecdsa.Sign(rand.Reader, p.key, digest[:])
	if err != nil {
		return "", err
	}
	var sig [64]byte // RFC 7518, clause 3.4
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return in + "." + b64(sig[:]), nil
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
