package kluis

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"kluis/openapi/client"
)

// Point is what came of one metering point of a Query.
type Point struct {
	client.QueryPoint
	// Line is the answer's line as it came, line feed included: what the
	// manifest's digest is over.
	Line []byte
	// Done is how many metering points were answered so far, Total how many
	// there are; nil when none were listed.
	Done  int
	Total *int
	// Checkpoint is where to go on after this metering point, in this process
	// or another. Whoever stores it in one transaction with the point has each
	// metering point exactly once, whatever breaks.
	Checkpoint string
}

// Result is what a Query that came to its end has to show for it.
type Result struct {
	JWS      string // the signed manifest as it came: to be kept as proof
	Manifest client.Manifest
	Requests int // how many this call needed: 1 when nothing broke
}

// ErrBroken says that a stream could not be finished although it was tried
// again for as long as the client's Patience: the last checkpoint that was
// delivered is where to go on. It wraps the cause of the last try.
var ErrBroken = errors.New("kluis: the stream broke, and did not come back")

// ErrStream says that the gateway does not keep to the contract: something is
// missing, repeated or altered. No new try is made.
var ErrStream = errors.New("kluis: the stream is not as the contract has it")

// maxLine bounds a line of a stream: a year of quarter-hours of several fields
// has a few megabytes.
const maxLine = 32 << 20

// Query asks for the readings of many metering points, and calls deliver with
// each, in ascending order of EAN. checkpoint is "" at first, later that of the
// last point which was dealt with. When the stream breaks (the connection, the
// gateway, a back end, the token's end) it goes on by itself where it broke,
// after a while that grows, or that the gateway says.
//
// Every metering point is delivered exactly once in one call, and over several
// when the caller stores point and checkpoint together. At the end the signed
// manifest is checked against all that was delivered, by all calls: without an
// error, nothing of the stream is missing, repeated or altered. Where q lists
// metering points, these came, each of them and no other. Where it lists none,
// which ones there are is the gateway's word: the manifest's counts are its own.
//
// An error of deliver ends the query and is returned; so is one that no new try
// can change.
func (k *Client) Query(ctx context.Context, q client.ReadingsQuery, checkpoint string, deliver func(Point) error) (*Result, error) {
	s := &stream{k: k, query: q, deliver: deliver, listed: listOf(q)}
	if checkpoint != "" {
		if err := s.state.parse(checkpoint); err != nil {
			return nil, err
		}
		if !s.listed.reached(&s.state) {
			return nil, errors.New("kluis: the checkpoint is of other metering points than are listed")
		}
	}
	wait := k.backoff()
	renewed := false
	for requests := 1; ; requests++ {
		before := s.state.Sequence
		result, err := s.part(ctx)
		if err == nil {
			result.Requests = requests
			return result, nil
		}
		if s.state.Sequence > before {
			wait.progress()
			renewed = false
		}
		var last final
		var after time.Duration
		switch p := AsProblem(err); {
		case errors.As(err, &last):
			return nil, last.error
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case p == nil && permanent(err):
			return nil, err
		case p == nil: // broke
		case p.Is(Unauthenticated) && !renewed:
			// A token lives shorter than a long stream: its end is no break.
			k.tokens.drop(s.authorization)
			renewed = true
			continue
		case !p.Temporary():
			return nil, p
		default:
			after = p.RetryAfter
		}
		if !wait.next(ctx, after) {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, fmt.Errorf("%w: %w", ErrBroken, err)
		}
	}
}

// final is an error that ends a query.
type final struct{ error }

func violated(format string, args ...any) error {
	return final{fmt.Errorf("%w: %s", ErrStream, fmt.Sprintf(format, args...))}
}

// stream is one query over all its parts.
type stream struct {
	k             *Client
	query         client.ReadingsQuery
	deliver       func(Point) error
	listed        *list
	state         state
	authorization string // of the last request
}

// part makes one request, and goes on until the stream ends or breaks.
func (s *stream) part(ctx context.Context) (*Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.query.Cursor = nil
	if s.state.Cursor != "" {
		s.query.Cursor = &s.state.Cursor
	}
	req, err := client.NewQueryReadingsRequest(s.k.config.Gateway, s.query)
	if err != nil {
		return nil, final{err}
	}
	req.Header.Set("Accept", "application/x-ndjson")
	stalled := time.AfterFunc(s.k.config.Stall, func() { cancel(errors.New("nothing came for too long")) })
	defer stalled.Stop()
	// As young a token as can be: the stream ends with it.
	res, err := s.k.send(req.WithContext(ctx), time.Hour)
	s.authorization = req.Header.Get("Authorization")
	if err != nil {
		return nil, broke(ctx, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		if err != nil {
			return nil, broke(ctx, err)
		}
		return nil, problemOf(res, body)
	}
	p := partial{stream: s}
	lines := bufio.NewReaderSize(alive{res.Body, stalled, s.k.config.Stall}, 64<<10)
	for {
		line, err := readLine(lines)
		if err != nil {
			return nil, broke(ctx, err)
		}
		result, err := p.take(ctx, line)
		if result != nil || err != nil {
			return result, err
		}
	}
}

// broke is an error of the connection, or why it was given up. It is never
// taken for the end of the caller's own context.
func broke(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return err
}

// alive starts the wait for the next bytes anew with each that came.
type alive struct {
	r     io.Reader
	timer *time.Timer
	stall time.Duration
}

func (a alive) Read(p []byte) (int, error) {
	a.timer.Reset(a.stall)
	return a.r.Read(p)
}

// readLine returns the next line with its line feed; what has none was cut off.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		chunk, err := r.ReadSlice('\n')
		line = append(line, chunk...)
		switch {
		case len(line) > maxLine:
			return nil, violated("a line is longer than %d bytes", maxLine)
		case err == nil:
			return line, nil
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// list is the metering points that a query lists, in the order in which they
// are to come: the number of those that came says which is next. nil is a query
// that lists none. Its errors name positions, never an EAN.
type list []string

func listOf(q client.ReadingsQuery) *list {
	if q.MeteringPoints == nil {
		return nil
	}
	l := list(slices.Clone(*q.MeteringPoints))
	slices.Sort(l)
	return &l
}

// reached reports whether the state is one on the way through the list.
func (l *list) reached(s *state) bool {
	return l == nil || s.Sequence <= len(*l) && (*l)[s.Sequence-1] == s.Ean
}

// next holds the metering point that came after n others against the list.
func (l *list) next(n int, ean string) error {
	switch {
	case l == nil:
		return nil
	case n >= len(*l):
		return violated("more metering points than the %d listed", len(*l))
	case (*l)[n] != ean:
		return violated("metering point number %d is not the one that was listed", n+1)
	}
	return nil
}

// end holds the number of all that came against the list.
func (l *list) end(n int) error {
	if l != nil && n != len(*l) {
		return violated("the stream ends after %d of %d metering points listed", n, len(*l))
	}
	return nil
}

// partial is how far the answer to one request was read.
type partial struct {
	*stream
	begun   bool
	id      client.InteractionId // of the request
	pending *client.StreamLine   // a point of which the progress is to come
	line    []byte               // its line
}

// take deals with one line; the result is that of a complete stream.
func (p *partial) take(ctx context.Context, line []byte) (*Result, error) {
	var l client.StreamLine
	if err := decode(line, &l); err != nil {
		return nil, violated("a line is not JSON: %v", err)
	}
	if (l.Type == client.Begin) == p.begun {
		return nil, violated("line %q out of order", l.Type)
	}
	if p.pending != nil && l.Type != client.Progress && l.Type != client.End {
		return nil, violated("line %q between a metering point and its progress", l.Type)
	}
	switch l.Type {
	case client.Begin:
		return nil, p.begin(l)
	case client.Point:
		if l.Ean == nil || l.Sequence == nil || *l.Sequence != p.state.Sequence+1 || *l.Ean <= p.state.Ean {
			return nil, violated("metering points after number %d are missing or repeated", p.state.Sequence)
		}
		if err := p.listed.next(p.state.Sequence, *l.Ean); err != nil {
			return nil, err
		}
		p.pending, p.line = &l, line
		return nil, nil
	case client.Progress:
		return nil, p.progress(l)
	case client.End:
		return p.end(ctx, l)
	}
	return nil, violated("a line of the unknown type %q", l.Type)
}

func (p *partial) begin(l client.StreamLine) error {
	if l.Query == nil || l.Done == nil || l.InteractionId == nil {
		return violated("the first line lacks members")
	}
	p.begun, p.id = true, *l.InteractionId
	if *l.Done != p.state.Sequence {
		return violated("the stream goes on after number %d, not %d", *l.Done, p.state.Sequence)
	}
	if p.state.Query == nil {
		return p.state.begin(*l.Query)
	}
	if base64.RawURLEncoding.EncodeToString(p.state.Query) != *l.Query {
		return violated("the stream goes on with another query")
	}
	return nil
}

// progress is what makes the metering point before it count.
func (p *partial) progress(l client.StreamLine) error {
	if l.Cursor == nil || l.Sequence == nil || l.Done == nil {
		return violated("a line of progress lacks members")
	}
	next := p.state
	next.Cursor = *l.Cursor
	if p.pending != nil {
		next.add(p.pending, p.line)
	}
	if *l.Sequence != next.Sequence {
		return violated("progress of number %d after metering point %d", *l.Sequence, next.Sequence)
	}
	if p.pending != nil {
		checkpoint, err := next.text()
		if err != nil {
			return final{err}
		}
		point := Point{
			QueryPoint: client.QueryPoint{
				Sequence: next.Sequence, Ean: *p.pending.Ean, Series: p.pending.Series, Withheld: p.pending.Withheld, Problem: p.pending.Problem,
			},
			Line: p.line, Done: *l.Done, Total: l.Total, Checkpoint: checkpoint,
		}
		if err := p.deliver(point); err != nil {
			return final{err}
		}
	}
	p.state, p.pending, p.line = next, nil, nil
	return nil
}

func (p *partial) end(ctx context.Context, l client.StreamLine) (*Result, error) {
	switch {
	case l.Complete == nil:
		return nil, violated("the last line does not say whether the stream is complete")
	case !*l.Complete && l.Problem == nil:
		return nil, violated("the stream ends without a reason")
	case !*l.Complete:
		stopped := &Problem{Problem: *l.Problem}
		if l.Problem.RetryAfter != nil {
			stopped.RetryAfter = time.Duration(*l.Problem.RetryAfter) * time.Second
		}
		return nil, stopped
	case p.pending != nil || l.Sequence == nil || *l.Sequence != p.state.Sequence || l.Manifest == nil:
		return nil, violated("the stream ends before its end")
	}
	if err := p.listed.end(p.state.Sequence); err != nil {
		return nil, err
	}
	keys := p.k.config.ManifestKeys
	if keys == nil {
		res, err := p.k.api.GetManifestKeysWithResponse(ctx)
		if err != nil {
			return nil, err
		}
		if keys, err = answer(res.JSON200, res.HTTPResponse, res.Body); err != nil {
			return nil, err
		}
	}
	m, err := client.VerifyManifest(*l.Manifest, *keys)
	if err != nil {
		return nil, final{fmt.Errorf("%w: %w", ErrStream, err)}
	}
	if err := p.state.check(m, p.k.config.ClientID, p.id); err != nil {
		return nil, err
	}
	if p.listed != nil && m.LeftOut != 0 {
		return nil, violated("the manifest has %d metering points left out, of those listed none may be", m.LeftOut)
	}
	return &Result{JWS: *l.Manifest, Manifest: m}, nil
}
