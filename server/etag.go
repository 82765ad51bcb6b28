package server

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"slices"
	"strings"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
)

// entityTags are those of a header (RFC 9110, 8.8.3), in the form in which they
// are compared.
type entityTags []string

func (e entityTags) match(tag string) bool { return slices.Contains(e, tag) }

// maxTags bounds a list; one is what a caller has any use for.
const maxTags = 8

const (
	wantIfMatch     = "must be the ETag of the consent as you know it, in its quotes"
	wantIfNoneMatch = "must be the ETag of an answer you have, in its quotes"
)

var errTags = errors.New("not a list of entity tags")

// parseIfMatch reads If-Match (RFC 9110, 13.1.1): weak ones are left out, for
// they never match. "*" is refused: it would change a consent that the caller
// has not seen.
func parseIfMatch(s string) (entityTags, error) {
	var tags entityTags
	return tags, readTags(s, func(tag string, weak bool) {
		if !weak {
			tags = append(tags, tag)
		}
	})
}

// parseIfNoneMatch reads If-None-Match (RFC 9110, 13.1.2): whether a tag is weak
// does not matter. "*" is refused: who has an answer has its tag, and who has
// none would follow what is stored without ever being given anything.
func parseIfNoneMatch(s string) (entityTags, error) {
	var tags entityTags
	return tags, readTags(s, func(tag string, _ bool) { tags = append(tags, tag) })
}

// readTags calls found for each tag of a list, in its quotes, W/ taken off.
func readTags(s string, found func(tag string, weak bool)) error {
	for n := 1; ; n++ {
		s = strings.TrimLeft(s, " \t")
		weak := strings.HasPrefix(s, "W/")
		s = strings.TrimPrefix(s, "W/")
		if !strings.HasPrefix(s, `"`) {
			return errTags
		}
		end := strings.IndexByte(s[1:], '"')
		if end < 0 || strings.ContainsFunc(s[1:1+end], func(r rune) bool { return r < 0x21 || r == 0x7f }) {
			return errTags
		}
		if n > maxTags {
			return errTags
		}
		found(s[:end+2], weak)
		s = strings.Trim(s[end+2:], " \t")
		if s == "" {
			return nil
		}
		if !strings.HasPrefix(s, ",") {
			return errTags
		}
		s = s[1:]
	}
}

// tagBytes of a digest are enough to tell the few states of a consent apart,
// and nobody's guess at that of an answer.
const tagBytes = 12

func entityTag(digest [32]byte) string {
	return `"` + base64.RawURLEncoding.EncodeToString(digest[:tagBytes]) + `"`
}

// conditional reads If-None-Match of a request that gets something.
func (s *Server) conditional(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if sent := r.Header.Values("If-None-Match"); r.Method == http.MethodGet && len(sent) > 0 {
			c := callOf(r.Context())
			var err error
			if c.has, err = parseIfNoneMatch(strings.Join(sent, ",")); err != nil {
				s.writeFailure(w, r, failParams(paramErrors{{Pointer: "/header/If-None-Match", Reason: wantIfNoneMatch}}))
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// knows says whether the caller has the answer that a tag names.
func (c *call) knows(tag string) bool { return c.has.match(tag) }

// tagger digests what an answer is made of, under a key that all gateways share:
// nobody else can try what a tag stands for.
type tagger struct{ hash.Hash }

// tagInfo makes the key of tags of one for cursors (HKDF, no salt).
const tagInfo = "kluis/etag/1\n"

func newTagKey(key [32]byte) ([]byte, error) {
	k, err := hkdf.Key(sha256.New, key[:], nil, tagInfo, 32)
	if err != nil {
		return nil, fmt.Errorf("key for entity tags: %w", err)
	}
	return k, nil
}

// newTagger begins with what makes an answer somebody's: a tag is worth nothing
// to another caller, for another operation, in another media type.
func (s *Server) newTagger(operation string, c *call) tagger {
	t := tagger{hmac.New(sha256.New, s.tagKey)}
	t.text("kluis/etag/1\n" + operation)
	t.text(c.caller.Supplier().String())
	e := c.caller.Employee()
	t.number(e != nil)
	if e != nil {
		t.text(e.Subject)
		t.number(uint8(e.Role))
		t.text(fmt.Sprintf("%+v", e.Errand))
	}
	t.text(c.media)
	return t
}

// text and number write what can be told apart from what follows.
func (t tagger) text(s string) {
	t.number(uint32(len(s)))
	_, _ = t.Write([]byte(s))
}

func (t tagger) number(v any) {
	if err := binary.Write(t, binary.BigEndian, v); err != nil {
		panic(fmt.Sprintf("a tag of a %T: %v", v, err)) // of a fixed size, all of them
	}
}

func (t tagger) tag() string { return entityTag([32]byte(t.Sum(nil))) }

// readingsTag names what an answer to getReadings will be made of: the request,
// what is given and withheld, and the versions of the blocks, which nobody has
// opened yet. Nothing of a reading goes into it, nor the legal file by itself:
// it changes with what others do at the metering point.
func (s *Server) readingsTag(c *call, r authz.Request, asOf time.Time, g authz.Grant, withheld []authz.Withheld, keys []envelope.KeyRecord, blocks []envelope.SealedBlock) string {
	t := s.newTagger("getReadings", c)
	t.number(r.EAN.Int64())
	t.number([]int64{int64(r.Purpose), int64(r.Days.From), int64(r.Days.To), int64(r.Resolution), int64(r.Kind), int64(len(r.Fields))})
	for _, f := range r.Fields {
		t.number(f)
	}
	t.number(asOf.UnixMicro())
	t.number(s.profile.Digest())
	items := g.Items()
	t.number(uint32(len(items)))
	for _, it := range items {
		t.number([]int64{int64(it.Spec.Field.Code), int64(it.Spec.Resolution), int64(it.Spec.Granularity), int64(it.Spec.Kind), int64(it.Basis), int64(len(it.Spec.Days.Ranges()))})
		for _, d := range it.Spec.Days.Ranges() {
			t.number([]int64{int64(d.From), int64(d.To)})
		}
		t.text(it.Rule)
	}
	t.number(uint32(len(withheld)))
	for _, w := range withheld {
		t.number([]int64{int64(w.Field), int64(w.Days.From), int64(w.Days.To), int64(w.Reason)})
	}
	b := make([]byte, 0, 64*len(blocks))
	for _, k := range blocks {
		b = binary.BigEndian.AppendUint64(b, uint64(k.Field))
		b = binary.BigEndian.AppendUint64(b, uint64(k.Day))
		b = binary.BigEndian.AppendUint64(b, uint64(k.Resolution))
		b = binary.BigEndian.AppendUint32(b, k.Version)
		var id [16]byte // of no key: erased
		if k.Key != envelope.NoKey {
			id = keys[k.Key].ID
		}
		b = append(b, id[:]...)
	}
	_, _ = t.Write(b)
	return t.tag()
}

// tagged makes the answer of what is rendered, or says that the caller has it:
// content is what of it stays the same as long as nothing changes.
func (s *Server) tagged(ctx context.Context, operation string, rendered []byte, content any) (*body, error) {
	c := callOf(ctx)
	same, err := json.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("rendering for a tag: %w", err)
	}
	t := s.newTagger(operation, c)
	t.text(string(same))
	tag := t.tag()
	b := c.rendered(rendered)
	b.etag, b.unchanged = "W/"+tag, c.knows(tag)
	return b, nil
}
