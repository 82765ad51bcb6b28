package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"sync"
	"time"

	"kluis/meter"
)

// batchesAtOnce is how many batches of a stream are in memory: while one is
// sent, or waits at a back end, the next one is dealt with.
const batchesAtOnce = 2

var (
	errSlow     = errors.New("the client reads too slowly")
	errDraining = errors.New("the gateway is being stopped")
)

// VisitQueryReadingsResponse answers the query. An error before anything was
// sent is answered like any other.
func (q *querying) VisitQueryReadingsResponse(w http.ResponseWriter) error {
	if q.c.media == mediaJSON {
		return q.page(w)
	}
	return q.stream(w)
}

// stream sends all metering points from the place on, one after the other,
// however many there are.
func (q *querying) stream(w http.ResponseWriter) error {
	if err := q.mayList(); err != nil { // afterwards it waits
		return err
	}
	ends, err := q.s.beginStream(q.c.caller.Supplier())
	if err != nil {
		return err
	}
	defer ends()
	leave, err := q.takeRoom(q.c.connection, batchesAtOnce, maxBatch)
	if err != nil {
		return err
	}
	defer leave()
	q.s.metrics.streams.Inc()
	defer q.s.metrics.streams.Dec()

	ctx, cancel := context.WithCancel(q.c.connection)
	line := q.pipeline(ctx)
	defer func() { // nothing of the stream outlives it
		cancel()
		line.clear()
	}()
	b, err := line.next(ctx)
	if err != nil {
		q.s.metrics.ended.WithLabelValues(q.reason(err)).Inc()
		return err
	}
	out, err := q.answer(w)
	if err != nil {
		return err
	}
	defer out.scrub()
	err = q.sendAll(ctx, out, line, b)
	return q.end(out, err)
}

// answer begins the answer.
func (q *querying) answer(w http.ResponseWriter) (*output, error) {
	if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil {
		return nil, err // or who asked would seem gone when it is reached
	}
	h := w.Header()
	h.Set("Content-Type", contentTypes[q.c.media])
	if q.c.packed {
		h.Set("Content-Encoding", "gzip")
	}
	w.WriteHeader(http.StatusOK)
	out := &output{sender: newSender(w, q.c.packed), lines: q.c.lines(), chunk: make([]byte, 0, sendChunkSize)}
	out.chunk = out.lines.begin(out.chunk, q)
	return out, nil
}

// output collects the lines of a stream, and sends them a chunk at a time.
type output struct {
	*sender
	lines  lines
	chunk  []byte
	points int // bytes of metering points
}

// room makes room for n bytes, without leaving a copy of the chunk behind.
func (o *output) room(n int) error {
	if cap(o.chunk)-len(o.chunk) >= n {
		return nil
	}
	if err := o.sendChunk(); err != nil {
		return err
	}
	if cap(o.chunk) < n {
		o.chunk = make([]byte, 0, max(n, sendChunkSize))
	}
	return nil
}

func (o *output) sendChunk() error {
	err := o.send(o.chunk)
	o.chunk = o.chunk[:0]
	return err
}

// otherLine is room enough for a line that is not of a metering point.
const otherLine = 4 << 10

// sendAll sends b and the batches after it, and what completes a stream.
func (q *querying) sendAll(ctx context.Context, out *output, line *pipeline, b *batch) error {
	for {
		if err := q.sendWhole(ctx, out, b); err != nil {
			return err
		}
		line.done(b)
		if b.last {
			break
		}
		var err error
		if b, err = line.next(ctx); err != nil {
			return err
		}
	}
	manifest, err := q.manifest(ctx, out.lines, b)
	if err != nil {
		return err
	}
	if err := out.room(otherLine + len(manifest)); err != nil {
		return err
	}
	out.chunk = out.lines.complete(out.chunk, q, manifest)
	return nil
}

// sendWhole sends a batch, and keeps nothing of it back while the next one is
// dealt with.
func (q *querying) sendWhole(ctx context.Context, out *output, b *batch) error {
	if err := q.sendBatch(ctx, out, b); err != nil {
		return err
	}
	if err := out.sendChunk(); err != nil {
		return err
	}
	if err := out.flush(); err != nil {
		return err
	}
	q.s.metrics.age.Observe(time.Since(b.evidence).Seconds())
	return nil
}

// sendBatch writes the metering points of a batch, each only while what was
// decided on it stands.
func (q *querying) sendBatch(ctx context.Context, out *output, b *batch) error {
	stands, why := len(b.points), error(nil) // up to which the facts stand, and why no further
	for i, p := range b.points {
		// First, as it takes as long as the client likes: between what is looked at
		// below and the lines nothing waits.
		if err := out.room(out.lines.size(&p.answer) + 2*otherLine); err != nil {
			return err
		}
		if time.Since(b.evidence) > evidenceAge {
			// What was written before must not wait for the answer.
			if err := out.sendChunk(); err != nil {
				return err
			}
			n, err := q.fresh(ctx, b, b.points[i:])
			stands, why = i+n, err
		}
		if err := q.mayGoOn(ctx); err != nil {
			return err
		}
		if i == stands {
			return why
		}
		if err := q.sendPoint(out, p); err != nil {
			return err
		}
	}
	if b.leftOut > 0 {
		q.place.counts.leftOut += b.leftOut
		q.place.after = b.through
		if len(b.points) == 0 { // it shows that the stream goes on, and from where it may
			return q.sendProgress(out)
		}
	}
	return nil
}

// mayGoOn says whether the stream may go on to the next metering point.
func (q *querying) mayGoOn(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-q.s.draining:
		return drained()
	default:
	}
	if !q.s.now().Before(q.c.caller.ExpiresAt()) {
		return fail(unauthenticated, errors.New("the access token expired"))
	}
	return nil
}

func drained() error {
	return &failure{
		kind: overloaded, cause: errDraining, retryAfter: 1,
		detail: "This gateway is being stopped: go on from the cursor at once, at another one, or in a moment at this.",
	}
}

// sendPoint writes the lines of a metering point, and how far the stream is. There
// is room for them.
func (q *querying) sendPoint(out *output, p *queryPoint) error {
	start, sequence := len(out.chunk), q.place.sequence()+1
	if p.problem != nil {
		out.chunk = out.lines.problem(out.chunk, &p.answer, sequence, p.problem)
	} else {
		out.chunk = out.lines.point(out.chunk, &p.answer, sequence)
	}
	out.points += len(out.chunk) - start
	if out.lines.format() != "" {
		q.place.chain(out.chunk[start:])
	}
	q.count(p)
	return q.sendProgress(out)
}

func (q *querying) sendProgress(out *output) error {
	if err := out.room(otherLine); err != nil {
		return err
	}
	out.chunk = out.lines.progress(out.chunk, q)
	return nil
}

// cursor seals the place.
func (q *querying) cursor() string { return q.of.seal(q.place.encode(), q.s.now()) }

// count counts a metering point that is given, by what its line says.
func (q *querying) count(p *queryPoint) {
	c := &q.place.counts
	c.leftOut += p.leftOut
	q.place.after = p.ean
	outcome := "given"
	switch {
	case p.problem != nil:
		c.failed++
		outcome = "problem"
	case len(p.answer.series) == 0:
		c.withheld++
		outcome = "withheld"
	case len(p.answer.withheld) > 0:
		c.partly++
		outcome = "partly"
	default:
		c.given++
	}
	for i := range p.answer.series {
		c.expected += uint64(p.answer.series[i].Expected)
		c.delivered += uint64(p.answer.series[i].Delivered)
		q.ev.values += p.answer.series[i].Delivered
	}
	q.ev.points++
	q.s.metrics.points.WithLabelValues(outcome).Inc()
}

// manifest has what came of the stream signed, all parts of it.
func (q *querying) manifest(ctx context.Context, l lines, b *batch) (string, error) {
	if err := q.mayGoOn(ctx); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, q.s.timeout)
	defer cancel()
	c := &q.place.counts
	points := uint64(c.given) + uint64(c.partly) + uint64(c.withheld) + uint64(c.failed)
	if points > math.MaxUint32 {
		return "", errors.New("manifest: more metering points than there are")
	}
	jws, err := q.s.many.Manifests.SignManifest(ctx, ManifestRequest{
		Token: q.c.token, Supplier: b.supplier, Interaction: q.ev.interaction, Query: q.asked.digest, Format: l.format(), Digest: q.place.digest,
		Points: uint32(points), Given: c.given, Partly: c.partly, Withheld: c.withheld, Failed: c.failed, LeftOut: c.leftOut,
		Expected: c.expected, Delivered: c.delivered, Parts: q.place.parts,
	})
	switch {
	case errors.Is(err, ErrTokenRefused):
		return "", &failure{kind: unauthenticated, cause: err}
	case err != nil:
		return "", &failure{
			kind: decryptionUnavailable, cause: fmt.Errorf("manifest: %w", err),
			detail: "No cryptoserver can sign the manifest now: all metering points were given; go on from the cursor after a while, to get it.",
		}
	}
	return jws, nil
}

// end sends the last line, if there is anybody to send it to. err says why the
// stream stops before its end.
func (q *querying) end(out *output, err error) error {
	reason := q.reason(err)
	if err != nil && !out.broken && q.c.connection.Err() == nil {
		f := asFailure(q.c.connection, err)
		q.ev.fail(f)
		if err = out.room(otherLine); err == nil {
			out.chunk = out.lines.broken(out.chunk, q, q.cursor(), f)
		}
	}
	if err == nil {
		err = out.sendChunk()
	}
	if err == nil {
		err = out.close()
	}
	if err != nil && (out.broken || q.c.connection.Err() != nil) {
		reason = q.reason(err)
	}
	q.s.metrics.ended.WithLabelValues(reason).Inc()
	return err
}

// reason is the metrics' word for why a stream ends.
func (q *querying) reason(err error) string {
	switch {
	case err == nil:
		return "complete"
	case errors.Is(err, errSlow) || errors.Is(err, os.ErrDeadlineExceeded):
		return "slow_reader"
	case q.c.connection.Err() != nil:
		return "client_gone"
	}
	var f *failure
	if errors.As(err, &f) {
		return f.kind.slug
	}
	return "client_gone" // a write failed
}

// pipeline is the batches of a stream under way, in their order.
type pipeline struct {
	q       *querying
	jobs    chan *job
	slots   chan struct{} // taken by each batch that is in memory
	running sync.WaitGroup

	mu      sync.Mutex
	batches map[*batch]struct{} // in memory
}

// job is a batch under way.
type job struct {
	batch *batch
	err   error
	ended chan struct{} // closed when the two are final
}

// pipeline begins to deal with batch after batch, as long as ctx lasts.
func (q *querying) pipeline(ctx context.Context) *pipeline {
	l := &pipeline{q: q, jobs: make(chan *job, batchesAtOnce), slots: make(chan struct{}, batchesAtOnce), batches: map[*batch]struct{}{}}
	after := q.place.after
	l.running.Go(func() {
		defer close(l.jobs)
		for n, last := 0, false; !last; {
			select {
			case l.slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			n = q.size(n, maxBatch)
			j := &job{ended: make(chan struct{})}
			finish, err := q.begin(ctx, j, after, n)
			l.jobs <- j // there is room: each has a slot
			if err != nil {
				return
			}
			after, last = j.batch.through, j.batch.last
			l.mu.Lock()
			l.batches[j.batch] = struct{}{}
			l.mu.Unlock()
			l.running.Go(finish)
		}
	})
	return l
}

// begin does the first half of a batch, whose facts say where the next one
// begins; finish does the second, and ends the job. The turn at the back ends
// is for both.
func (q *querying) begin(ctx context.Context, j *job, after meter.EAN, n int) (finish func(), err error) {
	fail := func(err error) (func(), error) {
		j.err = err
		close(j.ended)
		return nil, err
	}
	if err := q.waitToList(ctx); err != nil {
		return fail(err)
	}
	release, err := q.s.batchTurn(ctx, q.c.caller.Supplier())
	if err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithTimeout(ctx, q.s.timeout)
	if err := q.guard(func() (err error) { j.batch, err = q.next(ctx, after, n); return err }); err != nil {
		cancel()
		release()
		return fail(err)
	}
	j.batch.release = release
	return func() {
		defer close(j.ended)
		defer func() { time.AfterFunc(sendTurn, release) }() // or once it is sent
		defer cancel()
		j.err = q.guard(func() error { return q.finish(ctx, j.batch) })
	}, nil
}

// guard turns a panic, which would end the process outside of the request's own
// goroutine, into an error. Its value may hold anything of the request.
func (q *querying) guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			q.s.log.Error("panic", "interactionId", q.ev.interaction.String(), "stack", stack())
			err = fail(internalError, nil)
		}
	}()
	return f()
}

// next is the next batch, once it is dealt with.
func (l *pipeline) next(ctx context.Context) (*batch, error) {
	var j *job
	select {
	case j = <-l.jobs:
	case <-ctx.Done():
	case <-l.q.s.draining:
		return nil, drained()
	}
	if j == nil { // the line ends early only with ctx
		return nil, ctx.Err()
	}
	select {
	case <-j.ended:
		return j.batch, j.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.q.s.draining:
		return nil, drained()
	}
}

// done forgets a batch that was sent, and makes room for another.
func (l *pipeline) done(b *batch) {
	b.erase()
	l.mu.Lock()
	delete(l.batches, b)
	l.mu.Unlock()
	<-l.slots
}

// clear waits for what is under way, once the context has ended, and forgets it,
// with what was being sent.
func (l *pipeline) clear() {
	l.running.Wait()
	for b := range l.batches { // nobody else is left
		b.erase()
	}
}
