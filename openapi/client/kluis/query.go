package kluis

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
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
	// JWS is the signed manifest as it came: to be kept as proof.
	JWS      string
	Manifest client.Manifest
	// Parts is how many requests this process needed.
	Parts int
}

// ErrBroken says that a stream could not be finished although it was tried
// again for as long as the client's Patience; the last checkpoint that was
// delivered is where to go on. It wraps the cause of the last try.
var ErrBroken = errors.New("kluis: the stream broke, and did not come back")

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
// error, nothing is missing, repeated or altered. An error of deliver ends the
// query and is returned; one that no new try can change is, too.
func (k *Client) Query(ctx context.Context, q client.ReadingsQuery, checkpoint string, deliver func(Point) error) (*Result, error) {
	s := &stream{k: k, query: q, deliver: deliver}
	if checkpoint != "" {
		if err := s.state.parse(checkpoint); err != nil {
			return nil, err
		}
	}
	wait, renewed := k.backoff(), false
	for {
		before := s.state.sequence()
		done, err := s.part(ctx)
		if err == nil && done {
			return s.result, nil
		}
		if s.state.sequence() > before {
			wait.progress()
			renewed = false
		}
		p := AsProblem(err)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, errFinal), permanent(err):
			return nil, errors.Unwrap(finalCause{err})
		case p.expired() && !renewed:
			// A token lives shorter than a long stream: that is no break.
			k.tokens.drop(s.authorization)
			renewed = true
			continue
		case p != nil && !p.Temporary() && !p.expired():
			return nil, p
		case p.expired():
			return nil, p
		}
		var after time.Duration
		if p != nil {
			after = p.RetryAfter
		}
		if !wait.next(ctx, after) {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, fmt.Errorf("%w: %w", ErrBroken, err)
		}
	}
}
