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
	Cursor    string `json:"cursor"`
	Query     []byte `json:"query"` // digest, as the gateway says
	Ean       string `json:"ean"`   // the last
	Sequence  int    `json:"sequence"`
	Given     int    `json:"given"`
	Partly    int    `json:"partly"`
	Withheld  int    `json:"withheld"`
	Failed    int    `json:"failed"`
	Expected  int    `json:"expected"`
	Delivered int    `json:"delivered"`
	Digest    []byte `json:"digest"` // of client.Chain
}

// begin starts the chain of a query.
func (s *state) begin(query string) error {
	q, err := base64.RawURLEncoding.Strict().DecodeString(query)
	if err != nil || len(q) != sha256.Size {
		return violated("the query's digest is malformed")
	}
	d := client.NewChain([32]byte(q)).Digest()
	s.Query, s.Digest = q, d[:]
	return nil
}

// add counts a metering point.
func (s *state) add(l *client.StreamLine, line []byte) {
	chain := client.ResumeChain([32]byte(s.Digest))
	chain.Add(line)
	d := chain.Digest()
	s.Digest = d[:]
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
	b, err := json.Marshal(s)
	return base64.RawURLEncoding.EncodeToString(b), err
}

func (s *state) parse(checkpoint string) error {
	b, err := base64.RawURLEncoding.Strict().DecodeString(checkpoint)
	if err == nil {
		err = decode(b, s)
	}
	if err != nil || len(s.Digest) != sha256.Size || len(s.Query) != sha256.Size || s.Cursor == "" || s.Sequence < 1 {
		return errors.New("kluis: this is no checkpoint of a query")
	}
	return nil
}

// check holds a verified manifest against what was delivered.
func (s *state) check(m client.Manifest, caller string, id client.InteractionId) error {
	for _, c := range []struct {
		name      string
		got, want any
	}{
		{"supplier", m.Supplier, caller},
		{"interaction id", m.InteractionID, id.String()},
		{"format", m.Format, "ndjson"},
		{"query", m.Query, [32]byte(s.Query)},
		{"points", int(m.Points), s.Sequence},
		{"given", int(m.Given), s.Given},
		{"partly", int(m.Partly), s.Partly},
		{"withheld", int(m.Withheld), s.Withheld},
		{"failed", int(m.Failed), s.Failed},
		{"expected", int(m.Expected), s.Expected},
		{"delivered", int(m.Delivered), s.Delivered},
		{"digest", m.Digest, [32]byte(s.Digest)},
	} {
		if c.got != c.want {
			return final{fmt.Errorf("%w: the manifest has %s %v, what came has %v", ErrStream, c.name, c.got, c.want)}
		}
	}
	return nil
}
