package authn

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
)

// text reads a JSON string that is not empty.
func text(v json.RawMessage) (string, bool) {
	var s *string
	if json.Unmarshal(v, &s) != nil || s == nil {
		return "", false
	}
	return *s, *s != ""
}

// seconds reads a NumericDate (RFC 7519, clause 2) as whole seconds; fractions
// and exponents, which the RFC allows and nobody needs, are refused.
func seconds(v json.RawMessage) (int64, bool) {
	n, err := strconv.ParseInt(string(v), 10, 64)
	return n, err == nil && n > 0 && n < 1<<40
}

// decodeSegment is base64url without padding (RFC 7515, clause 2), one
// encoding per value: Go's decoder skips line ends even when strict.
func decodeSegment(s string) ([]byte, bool) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return b, err == nil
}
