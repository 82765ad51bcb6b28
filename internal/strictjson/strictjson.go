// Package strictjson takes JSON objects apart where two readings of one text
// must not be: of tokens and of requests.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"
)

// ErrMalformed is every error of this package. It holds nothing of the text.
var ErrMalformed = errors.New("malformed JSON")

// maxDepth bounds the nesting.
const maxDepth = 8

// Object takes one JSON object apart. Unlike encoding/json it refuses duplicate
// members at every depth (RFC 8725, clause 2.4, wants one reading), invalid
// UTF-8 and anything after the object, and it tells "exp" from "EXP".
func Object(b []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(b) {
		return nil, ErrMalformed
	}
	return members(b, maxDepth)
}

func members(b []byte, depth int) (map[string]json.RawMessage, error) {
	if depth == 0 {
		return nil, ErrMalformed
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, ErrMalformed
	}
	m := map[string]json.RawMessage{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, ErrMalformed
		}
		name, ok := t.(string)
		if !ok {
			return nil, ErrMalformed
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, ErrMalformed
		}
		if _, twice := m[name]; twice {
			return nil, ErrMalformed
		}
		if err := unique(v, depth-1); err != nil {
			return nil, err
		}
		m[name] = v
	}
	if err := end(dec, '}'); err != nil {
		return nil, err
	}
	return m, nil
}

// unique looks for duplicate members inside a value.
func unique(v json.RawMessage, depth int) error {
	if len(v) == 0 {
		return ErrMalformed
	}
	switch v[0] {
	case '{':
		_, err := members(v, depth)
		return err
	case '[':
		if depth == 0 {
			return ErrMalformed
		}
		dec := json.NewDecoder(bytes.NewReader(v))
		if _, err := dec.Token(); err != nil {
			return ErrMalformed
		}
		for dec.More() {
			var e json.RawMessage
			if err := dec.Decode(&e); err != nil {
				return ErrMalformed
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
		return ErrMalformed
	}
	if _, err := dec.Token(); err != io.EOF {
		return ErrMalformed
	}
	return nil
}
