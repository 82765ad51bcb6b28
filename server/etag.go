package server

import (
	"encoding/base64"
	"errors"
	"slices"
	"strings"
)

// entityTags are those of an If-Match header (RFC 9110, 13.1.1), weak ones
// among them left out: they never match.
type entityTags []string

func (e entityTags) match(tag string) bool { return slices.Contains(e, tag) }

// maxTags bounds a list; one is what a caller has any use for.
const maxTags = 8

const wantIfMatch = "must be the ETag of the consent as you know it, in its quotes"

var errIfMatch = errors.New("not a list of entity tags")

// parseIfMatch reads the header. "*" is refused: it would change a consent that
// the caller has not seen.
func parseIfMatch(s string) (entityTags, error) {
	var tags entityTags
	n := 0
	for {
		s = strings.TrimLeft(s, " \t")
		weak := strings.HasPrefix(s, "W/")
		s = strings.TrimPrefix(s, "W/")
		if !strings.HasPrefix(s, `"`) {
			return nil, errIfMatch
		}
		end := strings.IndexByte(s[1:], '"')
		if end < 0 || strings.ContainsFunc(s[1:1+end], func(r rune) bool { return r < 0x21 || r == 0x7f }) {
			return nil, errIfMatch
		}
		if n++; n > maxTags {
			return nil, errIfMatch
		}
		if !weak {
			tags = append(tags, s[:end+2])
		}
		s = strings.Trim(s[end+2:], " \t")
		if s == "" {
			return tags, nil
		}
		if !strings.HasPrefix(s, ",") {
			return nil, errIfMatch
		}
		s = s[1:]
	}
}

// tagBytes of a digest are enough to tell the few states of a consent apart.
const tagBytes = 12

func entityTag(digest [32]byte) string {
	return `"` + base64.RawURLEncoding.EncodeToString(digest[:tagBytes]) + `"`
}
