package authn

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"

	"kluis/internal/strictjson"
)

// Keys are an issuer's public keys, by kid.
type Keys interface {
	// key returns the key of exactly this kid: errUnknownKey when the issuer
	// has none, ErrUnavailable when its keys are not known yet.
	key(ctx context.Context, kid string) (key, error)
}

var errUnknownKey = errors.New("unknown kid")

// key is a public key with the one algorithm it verifies.
type key struct {
	method jwt.SigningMethod
	public crypto.PublicKey
}

// What an RSA key may be used with: the first where its JWK does not say.
var (
	// accessRSA is for access tokens.
	accessRSA = []jwt.SigningMethod{jwt.SigningMethodPS256}
	// identityRSA is for ID tokens, whose default is RS256 (OpenID Connect Core,
	// clause 2).
	identityRSA = []jwt.SigningMethod{jwt.SigningMethodRS256, jwt.SigningMethodPS256}
)

// newKey accepts public signature keys for ES256, EdDSA, and what an RSA key
// may be used with.
func newKey(j jwkset.JWK, forRSA []jwt.SigningMethod) (key, error) {
	m := j.Marshal()
	if m.USE != "" && m.USE != jwkset.UseSig {
		return key{}, fmt.Errorf("use is %q, not sig", m.USE)
	}
	var k key
	switch pub := j.Key().(type) {
	case *ecdsa.PublicKey:
		if pub.Curve != elliptic.P256() {
			return key{}, errors.New("an EC key that is not on P-256")
		}
		k = key{jwt.SigningMethodES256, pub}
	case *rsa.PublicKey:
		if pub.N.BitLen() < 2048 || pub.N.BitLen() > 8192 || pub.E < 3 || pub.E&1 == 0 {
			return key{}, errors.New("an RSA key whose modulus is not of 2048 to 8192 bits, or with a bad exponent")
		}
		k = key{forRSA[0], pub}
		for _, method := range forRSA {
			if m.ALG.String() == method.Alg() {
				k.method = method
			}
		}
	case ed25519.PublicKey:
		k = key{jwt.SigningMethodEdDSA, pub}
	default: // a private or symmetric key must not lie in a JWKS at all
		return key{}, fmt.Errorf("not a public key for ES256, %s or EdDSA (kty %q)", forRSA[0].Alg(), m.KTY)
	}
	if m.ALG != "" && m.ALG.String() != k.method.Alg() {
		return key{}, fmt.Errorf("alg is %q; a key of this type is used with %s only", m.ALG, k.method.Alg())
	}
	return k, nil
}

type pinnedKeys map[string]key

func (p pinnedKeys) key(_ context.Context, kid string) (key, error) {
	k, ok := p[kid]
	if !ok {
		return key{}, errUnknownKey
	}
	return k, nil
}

// PinnedKeys parses a JWK set (RFC 7517) of an issuer of access tokens. Every
// key must be usable and have a kid of its own.
func PinnedKeys(jwks []byte) (Keys, error) { return pinned(jwks, accessRSA) }

// PinnedIdentityKeys does so for an identity provider. RSA keys are used with
// RS256, or with PS256 if the key says so.
func PinnedIdentityKeys(jwks []byte) (Keys, error) { return pinned(jwks, identityRSA) }

func pinned(jwks []byte, forRSA []jwt.SigningMethod) (Keys, error) {
	if _, err := strictjson.Object(jwks); err != nil {
		return nil, fmt.Errorf("JWK set: %w", err)
	}
	var set jwkset.JWKSMarshal
	if err := json.Unmarshal(jwks, &set); err != nil {
		return nil, fmt.Errorf("JWK set: %w", strictjson.ErrMalformed)
	}
	if len(set.Keys) == 0 {
		return nil, errors.New("JWK set: it holds no keys")
	}
	p := pinnedKeys{}
	for i, m := range set.Keys {
		// Private: so that private material is seen, and refused.
		j, err := jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{Private: true}, jwkset.JWKValidateOptions{})
		if err != nil {
			return nil, fmt.Errorf("JWK set: key %d cannot be read", i) // its text could quote the key
		}
		k, err := newKey(j, forRSA)
		if err != nil {
			return nil, fmt.Errorf("JWK set: key %d: %w", i, err)
		}
		if _, twice := p[m.KID]; twice || m.KID == "" {
			return nil, fmt.Errorf("JWK set: key %d needs a kid of its own", i)
		}
		p[m.KID] = k
	}
	return p, nil
}

const (
	fetchTimeout = 5 * time.Second
	fetchEvery   = 10 * time.Minute
	// An unknown kid causes a fetch, for key rotation, at most this often.
	fetchUnknownEvery = 15 * time.Second
	fetchUnknownWait  = 3 * time.Second
	maxJWKS           = 256 << 10
)

type fetchedKeys struct{ storage jwkset.Storage }

// FetchedKeys gets an issuer's keys from its JWKS URL, over TLS verified
// against roots only, now, every 10 minutes until ctx ends, and when a token
// names an unknown kid (at most every 15 s). The last set fetched stays in
// use while the URL fails; a failure now is not an error, it is logged.
func FetchedKeys(ctx context.Context, jwksURL string, roots *x509.CertPool, log *slog.Logger) (Keys, error) {
	transport := &http.Transport{
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:   fetchTimeout,
		ResponseHeaderTimeout: fetchTimeout,
		IdleConnTimeout:       time.Minute,
		ForceAttemptHTTP2:     true,
	}
	context.AfterFunc(ctx, transport.CloseIdleConnections)
	client := &http.Client{
		Timeout:   fetchTimeout,
		Transport: limited{transport},
		// Pinned means pinned: keys come from the configured URL.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	kf, err := keyfunc.NewDefaultOverrideCtx(ctx, []string{jwksURL}, keyfunc.Override{
		Client:            client,
		HTTPTimeout:       fetchTimeout,
		RefreshInterval:   fetchEvery,
		RateLimitWaitMax:  fetchUnknownWait,
		RefreshUnknownKID: rate.NewLimiter(rate.Every(fetchUnknownEvery), 1),
		RefreshErrorHandlerFunc: func(u string) func(context.Context, error) {
			return func(ctx context.Context, err error) {
				log.WarnContext(ctx, "fetching an issuer's keys failed", "url", u, "error", err)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("JWKS URL: %w", err)
	}
	return fetchedKeys{kf.Storage()}, nil
}

func (f fetchedKeys) key(ctx context.Context, kid string) (key, error) {
	j, err := f.storage.KeyRead(ctx, kid)
	if err != nil {
		if all, listErr := f.storage.KeyReadAll(ctx); listErr != nil || len(all) == 0 {
			return key{}, ErrUnavailable
		}
		return key{}, errUnknownKey
	}
	// The set may hold keys for other uses: judged when asked for.
	k, err := newKey(j, accessRSA)
	if err != nil {
		return key{}, errUnknownKey
	}
	return k, nil
}

// limited bounds what a JWKS URL may answer.
type limited struct{ http.RoundTripper }

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxJWKS), resp.Body}
	}
	return resp, err
}

// jwk is an EC public key; the order of the members that RFC 7638 digests.
type jwk struct {
	Crv string `json:"crv"`
	Kty string `json:"kty"`
	X   string `json:"x"`
	Y   string `json:"y"`
}

func newJWK(k *ecdsa.PublicKey) (jwk, error) {
	if k == nil || k.Curve != elliptic.P256() {
		return jwk{}, errors.New("not an ECDSA P-256 key")
	}
	p, err := k.Bytes() // 0x04 || x || y
	if err != nil {
		return jwk{}, err
	}
	enc := base64.RawURLEncoding.EncodeToString
	return jwk{"P-256", "EC", enc(p[1:33]), enc(p[33:65])}, nil
}

func (j jwk) thumbprint() (string, error) {
	b, err := json.Marshal(j)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// KeyID is the kid Kluis gives an access-token key: its JWK thumbprint
// (RFC 7638, SHA-256, base64url).
func KeyID(k *ecdsa.PublicKey) (string, error) {
	j, err := newJWK(k)
	if err != nil {
		return "", err
	}
	return j.thumbprint()
}

// JWKS is the JWK set (RFC 7517) of ES256 public keys, each under its KeyID.
func JWKS(keys ...*ecdsa.PublicKey) ([]byte, error) {
	type entry struct {
		jwk
		Alg string `json:"alg"`
		Use string `json:"use"`
		Kid string `json:"kid"`
	}
	set := struct {
		Keys []entry `json:"keys"`
	}{Keys: []entry{}}
	for _, k := range keys {
		j, err := newJWK(k)
		if err != nil {
			return nil, err
		}
		kid, err := j.thumbprint()
		if err != nil {
			return nil, err
		}
		set.Keys = append(set.Keys, entry{j, "ES256", "sig", kid})
	}
	return json.MarshalIndent(set, "", "  ")
}
