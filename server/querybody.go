package server

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"time"

	"kluis/authz"
	"kluis/internal/canonical"
	"kluis/meter"
)

// The bounds of queryReadings, as the contract says them.
const (
	maxQueryBody   = 2_500_000 // bytes
	maxQueryPoints = 100_000
	minQueryLimit  = 10
	maxQueryLimit  = 1000
	maxQueryFields = 32
)

// maxPointFaults bounds how many faulty metering points are told one by one.
const maxPointFaults = 20

// manyQuery is the body of queryReadings, understood.
type manyQuery struct {
	query                    // without a metering point
	listed bool              // whether metering points were
	eans   []meter.EAN       // ascending, each once
	limit  int               // of a page
	cursor string            // "": from the start
	digest [sha256.Size]byte // of all but limit and cursor, and of the caller
}

const (
	wantQueryBody   = "must be one JSON object, without repeated members, and nothing after it"
	wantQueryPoints = "must be a list of 1 to 100000 metering points, each an EAN-18 as text, each once"
	wantOnce        = "must be there once only: it is in the list before"
	wantFields      = "must be a list of 1 to 32 different names of the market profile's fields"
	wantLimit       = "must be an integer from 10 to 1000"
	wantText        = "must be text"
)

// queryMembers are those there may be, in the contract's order.
var queryMembers = []string{"meteringPoints", "from", "to", "purpose", "fields", "class", "resolution", "kind", "asOf", "limit", "cursor"}

// parseManyQuery reads the body as it comes in, a token at a time: of a list it
// keeps 16 bytes a metering point, whatever else is sent. The error is one of
// reading. No fault repeats what was sent.
func parseManyQuery(in io.Reader, profile *meter.Profile, now time.Time) (manyQuery, paramErrors, error) {
	source := &noting{r: in}
	p := queryParser{dec: json.NewDecoder(source), profile: profile, now: now}
	p.dec.UseNumber()
	p.q.limit = defaultLimit
	if err := p.object(); err != nil {
		p.errs = paramErrors{{Pointer: "/body", Reason: wantQueryBody}}
	}
	if source.err != nil {
		return manyQuery{}, nil, source.err
	}
	p.together()
	if len(p.errs) > 0 {
		return manyQuery{}, p.errs, nil
	}
	return p.q, nil, nil
}

// noting remembers an error of reading: what the decoder makes of it is not
// told from a fault of what was read.
type noting struct {
	r   io.Reader
	err error
}

func (n *noting) Read(b []byte) (int, error) {
	i, err := n.r.Read(b)
	if err != nil && err != io.EOF {
		n.err = err
	}
	return i, err
}

type queryParser struct {
	dec     *json.Decoder
	profile *meter.Profile
	now     time.Time
	q       manyQuery
	errs    paramErrors
	seen    []string
	days    [2]bool // from and to are there and right
}

var errQueryBody = errors.New("not an object as it must be")

// object reads the whole body; an error is one of its form.
func (p *queryParser) object() error {
	if t, err := p.dec.Token(); err != nil || t != json.Delim('{') {
		return errQueryBody
	}
	for p.dec.More() {
		t, err := p.dec.Token()
		name, ok := t.(string)
		if err != nil || !ok || slices.Contains(p.seen, name) {
			return errQueryBody
		}
		if !slices.Contains(queryMembers, name) {
			p.errs.add("/body", "must hold no unknown members; known are meteringPoints, from, to, purpose, fields, class, resolution, kind, asOf, limit, cursor")
			name = "" // it may be as long as the body
		} else {
			p.seen = append(p.seen, name)
		}
		if err := p.member(name); err != nil {
			return err
		}
	}
	if _, err := p.dec.Token(); err != nil {
		return errQueryBody
	}
	if _, err := p.dec.Token(); err != io.EOF {
		return errQueryBody
	}
	return nil
}

func (p *queryParser) member(name string) error {
	t, err := p.dec.Token()
	if err != nil {
		return errQueryBody
	}
	switch name {
	case "":
		return p.skip(t)
	case "meteringPoints":
		return p.list(t)
	case "fields":
		return p.fields(t)
	case "limit":
		n, _ := t.(json.Number)
		i, err := strconv.Atoi(n.String())
		if p.q.limit = i; err != nil || i < minQueryLimit || i > maxQueryLimit {
			p.errs.add("/body/limit", wantLimit)
		}
		return p.skip(t)
	}
	text, ok := t.(string)
	if !ok {
		p.errs.add("/body/"+name, wantText)
		return p.skip(t)
	}
	p.text(name, text)
	return nil
}

// text takes a member that is text.
func (p *queryParser) text(name, text string) {
	var err error
	want := ""
	switch name {
	case "from":
		p.q.days.From, err = meter.ParseDay(text)
		want, p.days[0] = wantDay, err == nil
	case "to":
		p.q.days.To, err = meter.ParseDay(text)
		want, p.days[1] = wantDay, err == nil
	case "purpose":
		p.q.purpose, err = meter.ParsePurpose(text)
		want = wantPurpose
	case "class":
		p.q.class, err = meter.ParseClass(text)
		want = "must be one of registers, intervals"
	case "resolution":
		p.q.resolution, err = meter.ParseResolution(text)
		want = wantResolution
	case "kind":
		p.q.kind, err = meter.ParseKind(text)
		want = "must be one of REGISTER, CONSUMPTION"
	case "asOf":
		p.q.asOf, err = parseAsOf(text, p.now)
		want = wantAsOf
	case "cursor":
		if p.q.cursor = text; text == "" || len(text) > maxCursor {
			err, want = errCursor, wantCursor
		}
	}
	if err != nil {
		p.errs.add("/body/"+name, want)
	}
}

// together judges the members by each other.
func (p *queryParser) together() {
	if len(p.errs) == 1 && p.errs[0].Pointer == "/body" && p.errs[0].Reason == wantQueryBody {
		return
	}
	for _, name := range []string{"from", "to", "purpose"} {
		if !slices.Contains(p.seen, name) {
			p.errs.add("/body/"+name, "is required")
		}
	}
	if p.days[0] && p.days[1] {
		switch {
		case p.q.days.Empty():
			p.errs.add("/body/to", "must be later than from")
		case p.q.days.Len() > authz.MaxRequestDays:
			p.errs.add("/body/to", "must be at most 366 days after from")
		}
	}
	if slices.Contains(p.seen, "class") && slices.Contains(p.seen, "fields") {
		p.errs.add("/body/class", "must not be given together with fields")
	}
}

// entry is a metering point and where in the list it is.
type entry struct {
	ean meter.EAN
	at  int32
}

// list reads the metering points.
func (p *queryParser) list(t json.Token) error {
	const pointer = "/body/meteringPoints"
	if t != json.Delim('[') {
		p.errs.add(pointer, wantQueryPoints)
		return p.skip(t)
	}
	var entries []entry
	var bad []entry // faulty ones; the metering point is zero, or there before
	n := 0
	for ; p.dec.More(); n++ {
		t, err := p.dec.Token()
		if err != nil {
			return errQueryBody
		}
		text, ok := t.(string)
		if !ok {
			if err := p.skip(t); err != nil {
				return err
			}
		}
		switch ean, err := meter.ParseEAN(text); {
		case n >= maxQueryPoints: // counted on, to be told how many there are
		case err != nil:
			bad = append(bad, entry{at: int32(n)})
		default:
			entries = append(entries, entry{ean, int32(n)})
		}
	}
	if _, err := p.dec.Token(); err != nil { // ]
		return errQueryBody
	}
	if n == 0 || n > maxQueryPoints {
		p.errs.add(pointer, wantQueryPoints)
		return nil
	}
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.ean.Int64(), b.ean.Int64()), cmp.Compare(a.at, b.at))
	})
	p.q.listed, p.q.eans = true, make([]meter.EAN, 0, len(entries))
	for i, l := range entries {
		if i > 0 && l.ean == entries[i-1].ean {
			bad = append(bad, l)
			continue
		}
		p.q.eans = append(p.q.eans, l.ean)
	}
	slices.SortFunc(bad, func(a, b entry) int { return cmp.Compare(a.at, b.at) })
	for i, b := range bad {
		if i == maxPointFaults {
			p.errs.add(pointer, fmt.Sprintf("has %d more such entries", len(bad)-i))
			break
		}
		reason := wantEAN
		if !b.ean.IsZero() {
			reason = wantOnce
		}
		p.errs.add(pointer+"/"+strconv.Itoa(int(b.at)), reason)
	}
	return nil
}

// fields reads the names of fields.
func (p *queryParser) fields(t json.Token) error {
	const pointer = "/body/fields"
	if t != json.Delim('[') {
		p.errs.add(pointer, wantFields)
		return p.skip(t)
	}
	for p.dec.More() {
		t, err := p.dec.Token()
		if err != nil {
			return errQueryBody
		}
		name, isText := t.(string)
		f, known := p.profile.Field(name)
		if !isText || !known || slices.Contains(p.q.query.fields, f.Code) || len(p.q.query.fields) == maxQueryFields {
			p.errs.add(pointer, wantFields)
			if err := p.skip(t); err != nil {
				return err
			}
			continue
		}
		p.q.query.fields = append(p.q.query.fields, f.Code)
	}
	if len(p.q.query.fields) == 0 {
		p.errs.add(pointer, wantFields)
	}
	_, err := p.dec.Token() // ]
	return err
}

// maxQueryDepth bounds the nesting of what is passed over.
const maxQueryDepth = 8

// skip passes over the rest of a value that begins with t, which is a fault by
// itself.
func (p *queryParser) skip(t json.Token) error {
	for depth := 0; ; {
		switch t {
		case json.Delim('['), json.Delim('{'):
			if depth++; depth > maxQueryDepth {
				return errQueryBody
			}
		case json.Delim(']'), json.Delim('}'):
			depth--
		}
		if depth == 0 {
			return nil
		}
		var err error
		if t, err = p.dec.Token(); err != nil {
			return errQueryBody
		}
	}
}

// digestFor is what stands for the request in cursors and manifests: SHA-256 of
// everything that decides what is asked for, in canonical form.
func (q *manyQuery) digestFor(caller meter.GLN) [sha256.Size]byte {
	fields := slices.Clone(q.query.fields)
	slices.Sort(fields)
	w := canonical.New("kluis/query", 1)
	w.I64(caller.Int64())
	w.U8(uint8(q.purpose))
	w.I32(int32(q.days.From))
	w.I32(int32(q.days.To))
	w.Count(len(fields))
	for _, f := range fields {
		w.U16(uint16(f))
	}
	w.U8(uint8(q.class))
	w.U8(uint8(q.resolution))
	w.U8(uint8(q.kind))
	w.Time(q.asOf)
	w.Bool(q.listed)
	w.Count(len(q.eans))
	h := sha256.New()
	h.Write(w.Encoded())
	var some [512]byte // of the metering points, without a copy of them all
	buf := some[:0]
	for _, ean := range q.eans {
		if buf = binary.BigEndian.AppendUint64(buf, uint64(ean.Int64())); len(buf) == len(some) {
			h.Write(buf)
			buf = some[:0]
		}
	}
	h.Write(buf)
	return [sha256.Size]byte(h.Sum(nil))
}

const wantAsOf = "must be a time that has been, such as 2026-03-15T12:00:00Z or 2026-03-02T05:10:00.123456Z (RFC 3339), from 1970 on"

// moment is RFC 3339 to the nanosecond; package time takes more than that.
var moment = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$`)

// parseAsOf reads the instant as of which readings are asked for. Programs write
// nanoseconds; what is stored has microseconds, so that the rest of a
// microsecond makes no difference.
func parseAsOf(s string, now time.Time) (time.Time, error) {
	if len(s) > 40 || !moment.MatchString(s) {
		return time.Time{}, errors.New("not a time")
	}
	t, err := time.Parse(time.RFC3339, s)
	if t = t.UTC(); err != nil || t.Unix() <= 0 || t.After(now) {
		return time.Time{}, errors.New("not a time that has been")
	}
	return t.Truncate(time.Microsecond), nil
}
