package server

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"kluis/meter"
)

// maxPage is how many bytes of metering points a page has before it ends.
const maxPage = 4 << 20

// page is one page of a query in the making.
type page struct {
	batches []*batch
	// of each metering point, in order:
	texts  [][]byte
	places []place // after it
	bytes  int
	begin  place // of the page
	after  place // of the page, where the next one goes on
	last   bool  // nothing comes after it
}

// page answers with as many metering points as there may be in one page.
func (q *querying) page(w http.ResponseWriter) error {
	ctx, cancel := context.WithTimeout(q.c.connection, q.s.timeout)
	defer cancel()
	leave, err := q.s.limits.takeRoom(ctx, q.c.caller.Supplier(), 2*maxPage) // the last batch may go beyond it
	if err != nil {
		return err
	}
	defer leave()
	p := &page{begin: q.place, after: q.place}
	defer p.erase()
	half := time.Now().Add(q.s.timeout / 2)
	for n := 0; !p.last && len(p.texts) < q.asked.limit && p.bytes < maxPage; {
		n = q.size(n, min(q.asked.limit-len(p.texts), maxBatch))
		b, err := q.one(ctx, q.place.after, n)
		if err != nil {
			if len(p.texts) == 0 {
				return err
			}
			break // who asks for the next page is told
		}
		q.add(p, b)
		if time.Now().After(half) {
			break
		}
	}
	if err := q.cut(ctx, p); err != nil {
		return err
	}
	return q.writePage(w, p)
}

// one deals with a batch by itself.
func (q *querying) one(ctx context.Context, after meter.EAN, n int) (*batch, error) {
	release, err := q.s.turn(ctx, q.c.caller.Supplier())
	if err != nil {
		return nil, err
	}
	defer release()
	b, err := q.next(ctx, after, n)
	if err != nil {
		return nil, err
	}
	return b, q.finish(ctx, b)
}

// add puts a batch on the page.
func (q *querying) add(p *page, b *batch) {
	p.batches, p.last = append(p.batches, b), b.last
	for _, point := range b.points {
		sequence := q.place.sequence() + 1
		text := make([]byte, 0, jsonLines{}.size(&point.answer))
		text = append(text, '{')
		if point.problem != nil {
			text = appendPointProblem(text, &point.answer, sequence, point.problem)
		} else {
			text = appendPoint(text, &point.answer, sequence)
		}
		text = append(text, '}')
		q.count(point)
		p.texts, p.places, p.bytes = append(p.texts, text), append(p.places, q.place), p.bytes+len(text)
	}
	if b.leftOut > 0 {
		q.place.counts.leftOut += b.leftOut
		q.place.after = b.through
	}
	p.after = q.place
	b.erase()
}

// cut takes from the page what does not stand any more: facts may have changed
// since the first batch.
func (q *querying) cut(ctx context.Context, p *page) error {
	n := 0
	for _, b := range p.batches {
		stands, err := q.fresh(ctx, b, b.points)
		if n += stands; err == nil {
			continue
		}
		var f *failure
		switch {
		case n > 0:
			p.after = p.places[n-1]
		case errors.As(err, &f) && f.kind == evidenceChanged:
			p.after = p.begin // an empty page: the next one decides anew
		default:
			return err
		}
		p.last = false
		for _, text := range p.texts[n:] {
			clear(text)
		}
		p.texts = p.texts[:n]
		return nil
	}
	return nil
}

func (p *page) erase() {
	for _, b := range p.batches {
		b.erase()
	}
}

func (q *querying) writePage(w http.ResponseWriter, p *page) error {
	q.place = p.after
	h := w.Header()
	h.Set("Content-Type", mediaJSON)
	if q.c.packed {
		h.Set("Content-Encoding", "gzip")
	}
	w.WriteHeader(http.StatusOK)
	out := newSender(w, q.c.packed)
	defer out.scrub()
	head := q.appendAsked([]byte("{"))
	head = append(head, `,"meteringPoints":[`...)
	if err := out.send(head); err != nil {
		return err
	}
	for i, text := range p.texts {
		if i > 0 {
			if err := out.send([]byte{','}); err != nil {
				return err
			}
		}
		if err := out.send(text); err != nil {
			return err
		}
	}
	tail := q.appendDone([]byte("],"))
	tail = append(tail, `,"cursor":`...)
	if p.last {
		tail = append(tail, "null"...)
	} else {
		tail = strconv.AppendQuote(tail, q.cursor())
	}
	if err := out.send(append(tail, "}\n"...)); err != nil {
		return err
	}
	return out.close()
}
