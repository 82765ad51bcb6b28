package authn

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"kluis/authz"
	"kluis/meter"
)

// MaxLifetime is the longest life of a token of Kluis' own.
const MaxLifetime = 5 * time.Minute

// TokenClaims is what an access token of Kluis' own says. SignToken adds the
// jti: 128 random bits.
type TokenClaims struct {
	Issuer     string    // iss
	Audience   string    // aud
	Client     meter.GLN // client_id, and sub of a supplier's token
	Scopes     []string  // RFC 6749, clause 3.3
	Employee   *Employee // nil for a supplier's token
	Thumbprint [32]byte  // of the client certificate: cnf x5t#S256
	IssuedAt   time.Time
	Lifetime   time.Duration // whole seconds, at most MaxLifetime
}

// Employee is whom an employee's token names. It has the scope ScopeStaff, and
// that only.
type Employee struct {
	authz.Employee
	Profile *meter.Profile // names the fields of the errand
}

// ExpiresAt is the exp that SignToken writes, in UTC.
func (c TokenClaims) ExpiresAt() time.Time {
	return c.IssuedAt.UTC().Truncate(time.Second).Add(c.Lifetime)
}

func (c TokenClaims) check() error {
	switch {
	case c.Issuer == "" || c.Audience == "":
		return errors.New("issuer and audience must be configured")
	case c.Client.IsZero():
		return errors.New("no client")
	case c.Thumbprint == [32]byte{}:
		return errors.New("no certificate to bind to")
	case c.IssuedAt.IsZero():
		return errors.New("no time of issue")
	case c.Lifetime <= 0 || c.Lifetime > MaxLifetime || c.Lifetime%time.Second != 0:
		return fmt.Errorf("the lifetime must be whole seconds, at most %s", MaxLifetime)
	}
	for _, s := range c.Scopes {
		if !isScope(s) {
			return errors.New("a scope is not a scope-token of RFC 6749")
		}
	}
	if e := c.Employee; e == nil {
		if slices.Contains(c.Scopes, ScopeStaff) {
			return errors.New("the scope of employees is for tokens that name one")
		}
	} else if !slices.Equal(c.Scopes, []string{ScopeStaff}) || !namesEmployee(e.Subject) || e.Profile == nil || !e.Role.May(e.Errand.Kind) {
		return errors.New("an employee's token has a subject of 1 to 128 printable bytes that is no GLN, the scope of employees only, and an errand that the role may have")
	}
	return nil
}

// SignToken makes an access token (RFC 9068, RFC 8705), signed ES256 by an
// ECDSA P-256 signer, which may be an HSM. What the signer returns is verified
// under its public key before it leaves.
func SignToken(signer crypto.Signer, kid string, c TokenClaims) (string, error) {
	if err := c.check(); err != nil {
		return "", fmt.Errorf("access token: %w", err)
	}
	if kid == "" {
		return "", errors.New("access token: no key id")
	}
	var jti [16]byte
	rand.Read(jti[:]) // never fails
	enc := base64.RawURLEncoding.EncodeToString
	claims := jwt.MapClaims{
		"iss":       c.Issuer,
		"sub":       c.Client.String(),
		"aud":       c.Audience,
		"iat":       c.IssuedAt.Unix(),
		"exp":       c.ExpiresAt().Unix(),
		"jti":       enc(jti[:]),
		"client_id": c.Client.String(),
		"scope":     strings.Join(c.Scopes, " "),
		"cnf":       map[string]string{"x5t#S256": enc(c.Thumbprint[:])},
	}
	if e := c.Employee; e != nil {
		errand, err := EncodeErrand(e.Errand, e.Profile)
		if err != nil {
			return "", fmt.Errorf("access token: %w", err)
		}
		claims["sub"] = e.Subject
		claims["roles"] = []string{e.Role.String()}
		claims["authorization_details"] = json.RawMessage(errand)
	}
	t := jwt.NewWithClaims(hsmES256{jwt.SigningMethodES256}, claims)
	t.Header["typ"] = tokenType
	t.Header["kid"] = kid
	raw, err := t.SignedString(signer)
	if err != nil {
		return "", fmt.Errorf("access token: %w", err)
	}
	return raw, nil
}

// hsmES256 is ES256 by a crypto.Signer in place of a private key in memory.
type hsmES256 struct{ *jwt.SigningMethodECDSA }

func (m hsmES256) Sign(signingString string, k any) ([]byte, error) {
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, jwt.ErrInvalidKeyType
	}
	pub, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, jwt.ErrInvalidKeyType
	}
	h := crypto.SHA256.New()
	h.Write([]byte(signingString))
	der, err := signer.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	sig, err := fixedSignature(der)
	if err != nil {
		return nil, err
	}
	if err := m.Verify(signingString, sig, pub); err != nil {
		return nil, errors.New("the signer's signature does not verify under its public key")
	}
	return sig, nil
}

var errNotP256Signature = errors.New("the signer's signature is not one of ECDSA P-256")

// fixedSignature turns ASN.1 DER into r || s of 32 bytes each (RFC 7518,
// clause 3.4).
func fixedSignature(der []byte) ([]byte, error) {
	var v struct{ R, S *big.Int }
	_, err := asn1.Unmarshal(der, &v)
	if err != nil || v.R.Sign() <= 0 || v.S.Sign() <= 0 || v.R.BitLen() > 256 || v.S.BitLen() > 256 {
		return nil, errNotP256Signature
	}
	// Unmarshal overlooks what follows in and after the sequence.
	if again, err := asn1.Marshal(v); err != nil || !bytes.Equal(again, der) {
		return nil, errNotP256Signature
	}
	sig := make([]byte, 64)
	v.R.FillBytes(sig[:32])
	v.S.FillBytes(sig[32:])
	return sig, nil
}
