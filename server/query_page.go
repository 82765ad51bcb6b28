package server

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// maxPage is how many bytes of metering points a page has before it ends.
const maxPage = 4 << 20

// page answers with as many metering points as there may be in one page. It
// leaves as a stream does, batch by batch, each metering point only while what
// was decided on it stands; but a page that stops before its end is a shorter
// page: who asks for the next one is told why, if it is still so.
func (q *querying) page(w http.ResponseWriter) error {
	began, begin := time.Now(), q.place.sequence()
	ctx, cancel := context.WithDeadline(q.c.connection, began.Add(q.s.timeout))
	defer cancel()
	leave, err := q.takeRoom(ctx, 1, min(q.asked.limit, maxBatch))
	if err != nil {
		return err
	}
	defer leave()
	n := q.size(0, min(q.asked.limit, maxBatch))
	b, err := q.one(ctx, n)
	if err != nil {
		return err
	}
	out, err := q.answer(w)
	if err != nil {
		b.erase()
		return err
	}
	defer out.scrub()
	last := false
	for {
		err = q.sendWhole(q.c.connection, out, b)
		b.erase()
		if err != nil {
			break
		}
		left := q.asked.limit - (q.place.sequence() - begin)
		if last = b.last; last || left <= 0 || out.points >= maxPage || time.Since(began) > q.s.timeout/2 {
			break
		}
		n = q.size(n, min(left, maxBatch))
		if b, err = q.one(ctx, n); err != nil {
			q.s.limitMetrics.failed(q.ev, err) // who asks for the next page is told
			break
		}
	}
	if out.broken || q.c.connection.Err() != nil {
		return err
	}
	return q.endPage(out, last)
}

// one deals with the next batch by itself.
func (q *querying) one(ctx context.Context, n int) (*batch, error) {
	if err := q.mayList(); err != nil {
		return nil, err
	}
	release, err := q.s.turn(ctx, q.c.caller.Supplier())
	if err != nil {
		return nil, err
	}
	defer time.AfterFunc(sendTurn, release) // or once it is sent
	b, err := q.next(ctx, q.place.after, n)
	if err != nil {
		return nil, err
	}
	b.release = release
	return b, q.finish(ctx, b)
}

func (q *querying) endPage(out *output, last bool) error {
	if err := out.room(otherLine); err != nil {
		return err
	}
	cursor := "null"
	if !last {
		cursor = strconv.Quote(q.cursor())
	}
	out.chunk = append(out.chunk, "],"...)
	out.chunk = q.appendDone(out.chunk)
	out.chunk = append(append(append(out.chunk, `,"cursor":`...), cursor...), "}\n"...)
	if err := out.sendChunk(); err != nil {
		return err
	}
	return out.close()
}

// pageLines are the members of a ReadingsPage.
type pageLines struct {
	jsonLines
	some bool // metering points were written
}

// format: a page has no manifest.
func (*pageLines) format() string { return "" }

func (*pageLines) begin(dst []byte, q *querying) []byte {
	dst = q.appendAsked(append(dst, '{'))
	return append(dst, `,"meteringPoints":[`...)
}

func (l *pageLines) next(dst []byte) []byte {
	if l.some {
		dst = append(dst, ',')
	}
	l.some = true
	return append(dst, '{')
}

func (l *pageLines) point(dst []byte, a *answer, sequence int) []byte {
	return append(appendPoint(l.next(dst), a, sequence), '}')
}

func (l *pageLines) problem(dst []byte, a *answer, sequence int, f *failure) []byte {
	return append(appendPointProblem(l.next(dst), a, sequence, f), '}')
}

// progress is said at the end of a page.
func (*pageLines) progress(dst []byte, _ *querying) []byte { return dst }
