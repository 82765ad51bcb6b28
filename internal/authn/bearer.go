package authn

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"strings"
)

// MaxTokenLength bounds an access token, in bytes.
const MaxTokenLength = 8 << 10

// Bearer takes the access token out of the Authorization header (RFC 6750,
// clause 2.1), the only place it is looked for. Two such headers, another
// scheme, or anything but one b64token is refused.
func Bearer(h http.Header) (string, error) {
	values := h.Values("Authorization")
	if len(values) == 0 {
		return "", &Error{kind: ErrNoToken, reason: "no_authorization_header"}
	}
	if len(values) > 1 {
		return "", invalid("several_authorization_headers")
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", &Error{kind: ErrNoToken, reason: "other_scheme"}
	}
	if !ok || !isB64Token(token) {
		return "", invalid("malformed_authorization_header")
	}
	if len(token) > MaxTokenLength {
		return "", invalid("oversized")
	}
	return token, nil
}

// isB64Token is b64token of RFC 6750: 1*( ALPHA / DIGIT / -._~+/ ) *"=".
func isB64Token(s string) bool {
	body := strings.TrimRight(s, "=")
	for i := range len(body) {
		c := body[i]
		if !(c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("-._~+/", c) >= 0) {
			return false
		}
	}
	return body != ""
}

// Thumbprint is the SHA-256 of a certificate's DER: x5t#S256 before its
// base64url (RFC 8705, clause 3.1).
func Thumbprint(c *x509.Certificate) [32]byte { return sha256.Sum256(c.Raw) }

// LeafThumbprint is the Thumbprint of the client certificate of a connection,
// which TLS must have verified against the suppliers' CA.
func LeafThumbprint(s *tls.ConnectionState) ([32]byte, error) {
	if s == nil || !s.HandshakeComplete || len(s.VerifiedChains) == 0 || len(s.PeerCertificates) == 0 {
		return [32]byte{}, invalid("no_client_certificate")
	}
	return Thumbprint(s.PeerCertificates[0]), nil
}
