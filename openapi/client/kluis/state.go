package kluis

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"kluis/openapi/client"
)

// state is how far a query came: what a checkpoint holds. Besides the gateway's
// cursor it has the client's own count and digest of what was delivered, which
// the manifest is held against at the end: whoever goes on in another process
// checks all parts all the same.
type state struct {
	Cursor    string   `json:"cursor"`
	Query     string   `json:"query"` // digest, as the gateway says
	Sequence  int      `json:"sequence"`
	Ean       string   `json:"ean"` // the last
	Given     int      `json:"given"`
	Partly    int      `json:"partly"`
	Withheld  int      `json:"withheld"`
	Failed    int      `json:"failed"`
	Expected  int      `json:"expected"`
	Delivered int      `json:"delivered"`
	Digest    [32]byte `json:"-"`
	Chain     string   `json:"digest"` // Digest, in text
}

// chainTag begins what the first digest of a chain is over.
const chainTag = "kluis/manifest/1\n"

// begin starts the chain of a query.
func (s *state) begin(query string) error {
	q, err := base64.RawURLEncoding.Strict().DecodeString(query)
	if err != nil || len(q) != sha256.Size {
		return violated("the query's digest is malformed")
	}
	s.Query = query
	s.Digest = sha256.Sum256(append([]byte(chainTag), q...))
	return nil
}

// add counts a metering point.
func (s *state) add(l *client.StreamLine, line []byte) {
	h := sha256.Sum256(line)
	s.Digest = sha256.Sum256(append(s.Digest[:], h[:]...))
	s.Sequence, s.Ean = s.Sequence+1, *l.Ean
	series, withheld := 0, l.Withheld != nil && len(*l.Withheld) > 0
	if l.Series != nil {
		series = len(*l.Series)
		for _, x := range *l.Series {
			s.Expected += x.ExpectedCount
			s.Delivered += x.DeliveredCount
		}
	}
	switch {
	case l.Problem != nil:
		s.Failed++
	case series == 0:
		s.Withheld++
	case withheld:
		s.Partly++
	default:
		s.Given++
	}
}

// text is the state as a checkpoint. It is opaque: its form may change.
func (s state) text() (string, error) {
	s.Chain = base64.RawURLEncoding.EncodeToString(s.Digest[:])
	b, err := json.Marshal(s)
	return base64.RawURLEncoding.EncodeToString(b), err
}

func (s *state) parse(checkpoint string) error {
	b, err := base64.RawURLEncoding.DecodeString(checkpoint)
	if err == nil {
		err = decode(b, s)
	}
	var digest []byte
	if err == nil {
		digest, err = base64.RawURLEncoding.DecodeString(s.Chain)
	}
	if err != nil || len(digest) != sha256.Size || s.Cursor == "" || s.Query == "" || s.Sequence < 1 {
		return errors.New("kluis: this is no checkpoint of a query")
	}
	s.Digest = [32]byte(digest)
	return nil
}

// check holds a verified manifest against what was delivered.
func (s *state) check(m *Manifest, caller string, id client.InteractionId) error {
	digest := base64.RawURLEncoding.EncodeToString(s.Digest[:])
	for _, c := range []struct {
		name      string
		got, want any
	}{
		{"sub", m.Subject, caller},
		{"jti", m.ID, id.String()},
		{"format", m.Format, "ndjson"},
		{"query", m.Query, s.Query},
		{"points", m.Points, s.Sequence},
		{"given", m.Given, s.Given},
		{"partly", m.Partly, s.Partly},
		{"withheld", m.Withheld, s.Withheld},
		{"failed", m.Failed, s.Failed},
		{"expected", m.Expected, s.Expected},
		{"delivered", m.Delivered, s.Delivered},
		{"digest", m.Digest, digest},
	} {
		if c.got != c.want {
			return final{fmt.Errorf("%w: the manifest has %s %v, what came has %v", ErrStream, c.name, c.got, c.want)}
		}
	}
	return nil
}
