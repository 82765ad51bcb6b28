package authn

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

var errJSON = errors.New("malformed JSON")

// maxDepth bounds the nesting of a token's JSON.
const maxDepth = 8

// object takes one JSON object apart. Unlike encoding/json it refuses
// duplicate members at every depth (RFC 8725, clause 2.4, wants one reading)
// and invalid UTF-8, and it tells "exp" from "EXP".
func object(b []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(b) {
		return nil, errJSON
	}
	return members(b, maxDepth)
}

func members(b []byte, depth int) (map[string]json.RawMessage, error) {
	if depth == 0 {
		return nil, errJSON
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errJSON
	}
	m := map[string]json.RawMessage{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, errJSON
		}
		name, ok := t.(string)
		if !ok {
			return nil, errJSON
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, errJSON
		}
		if _, twice := m[name]; twice {
			return nil, errors.New("duplicate member")
		}
		if err := unique(v, depth-1); err != nil {
			return nil, err
		}
		m[name] = v
	}
	return m, end(dec, '}')
}

// unique looks for duplicate members inside a value.
func unique(v json.RawMessage, depth int) error {
	if len(v) == 0 {
		return errJSON
	}
	switch v[0] {
	case '{':
		_, err := members(v, depth)
		return err
	case '[':
		if depth == 0 {
			return errJSON
		}
		dec := json.NewDecoder(bytes.NewReader(v))
		if _, err := dec.Token(); err != nil {
			return errJSON
		}
		for dec.More() {
			var e json.RawMessage
			if err := dec.Decode(&e); err != nil {
				return errJSON
			}
			if err := unique(e, depth-1); err != nil {
				return err
			}
		}
		return end(dec, ']')
	}
	return nil
}

func end(dec *json.Decoder, close json.Delim) error {
	if t, err := dec.Token(); err != nil || t != close {
		return errJSON
	}
	if _, err := dec.Token(); err != io.EOF {
		return errJSON
	}
	return nil
}

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
