package main

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kluis/internal/audit"
	"kluis/internal/config"
	"kluis/openapi/client"
)

// A supplier lists thousands of metering points that are none of its own: one
// request each time, and a record in the access log for each metering point.
// After as many as there may be, a page ends, a stream waits, and what is asked
// next is refused; those with its own customers are not.
func TestListsOfOthers(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	began := time.Now().Add(time.Minute) // of what is valid now, nothing is yet to be
	w := newWorld(t, options{
		now:    func() time.Time { return began.Add(time.Duration(ahead.Load())) }, // nothing comes back by itself
		limits: config.Limits{UnrelatedPerSecond: 100, UnrelatedBurst: 30},
	})
	own := texts(w.customers(w.a, 60))
	w.customer(1, w.b)
	others := []string{w.ean(1).String()} // another's; the others do not exist
	for i := range 299 {
		others = append(others, w.ean(1000+i).String())
	}
	unrelated := func() (n int) {
		for _, r := range w.records() {
			if r.Supplier == w.a.gln && r.Outcome == audit.NoRelation {
				n++
			}
		}
		return n
	}

	r := w.query(w.a, "application/json", w.asks(asking{"meteringPoints": others, "limit": 300}))
	var page client.ReadingsPage
	holdsTo(t, "ReadingsPage", r.body, &page)
	// A batch of 8, and one of 32, by which the bucket is overdrawn.
	if len(page.MeteringPoints) != 40 || page.Cursor == nil || unrelated() != 40 {
		t.Fatalf("a page of %d, recorded %d, cursor %v", len(page.MeteringPoints), unrelated(), page.Cursor)
	}
	goOn := w.asks(asking{"meteringPoints": others, "cursor": *page.Cursor})
	for accept, a := range map[string]asking{"application/json": goOn, "application/x-ndjson": w.asks(asking{"meteringPoints": others}), "text/csv": w.asks(asking{"meteringPoints": others[:1]})} {
		r := w.query(w.a, accept, a)
		if r.problem(t) != "rate-limited" || r.status != 429 || r.header.Get("Retry-After") != "1" || !strings.Contains(string(r.body), "nothing to do with") {
			t.Errorf("%s: %d %v %s", accept, r.status, r.header, r.body)
		}
		if got := r.header.Get("RateLimit-Policy"); !strings.HasPrefix(got, `"default";q=1000000;`) {
			t.Errorf("RateLimit-Policy %s", got)
		}
	}
	if n := unrelated(); n != 40 {
		t.Errorf("%d are recorded, and 40 may be", n)
	}
	// Its whole portfolio without a list, single requests, and other suppliers.
	if r := w.query(w.a, "application/json", w.asks(nil)); r.status != http.StatusOK {
		t.Errorf("all of its own: %d %s", r.status, r.body)
	}
	if r := w.with(w.a, w.path(w.ean(1000))); r.status != http.StatusNotFound {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := w.query(w.b, "application/json", w.asks(asking{"meteringPoints": others[1:3]})); r.status != http.StatusOK {
		t.Errorf("another supplier: %d %s", r.status, r.body)
	}
	if got := w.metric("kluis_gateway_limited_total", "limit", "unrelated", "supplier", w.a.gln.String()); got != 4 {
		t.Errorf("%v were cut or refused", got)
	}

	// A stream that has begun waits, and goes on by itself.
	ahead.Add(int64(time.Second))
	waited := w.metric("kluis_gateway_limited_total", "limit", "unrelated", "supplier", w.a.gln.String())
	resp := w.send(w.a, "application/x-ndjson", strings.NewReader(string(must(json.Marshal(w.asks(asking{"meteringPoints": others}))))), nil)
	defer resp.Body.Close()
	points, last := 0, client.StreamLine{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		last = client.StreamLine{}
		if err := json.Unmarshal(lines.Bytes(), &last); err != nil {
			t.Fatal(err)
		}
		if last.Type != "point" {
			continue
		}
		if points++; points == 40 { // once more the two batches
			w.eventually("the stream waits", func() bool {
				return w.metric("kluis_gateway_limited_total", "limit", "unrelated", "supplier", w.a.gln.String()) > waited
			})
			if n := unrelated(); n != 81 { // with the single request
				t.Errorf("%d are recorded, though the stream has to wait", n)
			}
			ahead.Add(int64(5 * time.Second))
		} else if points == 168 { // and one of 128
			ahead.Add(int64(5 * time.Second))
		}
	}
	if points != 300 || last.Type != "end" || !*last.Complete {
		t.Errorf("%d metering points, then %+v", points, last)
	}
	if got := w.metric("kluis_gateway_unrelated_points_total", "supplier", w.a.gln.String()); got != 340 {
		t.Errorf("%v are counted", got)
	}

	// A full run with some customers that were lost is not slowed: there is
	// enough in the bucket for those.
	ahead.Add(int64(5 * time.Second))
	before := w.metric("kluis_gateway_limited_total", "limit", "unrelated", "supplier", w.a.gln.String())
	r = w.query(w.a, "application/x-ndjson", w.asks(asking{"meteringPoints": append(own, others[:20]...)}))
	if n := strings.Count(string(r.body), `"type":"point"`); r.status != http.StatusOK || n != 80 || !strings.Contains(string(r.body), `"complete":true`) {
		t.Errorf("%d, %d metering points, %v %s", r.status, n, r.header, r.body[:min(300, len(r.body))])
	}
	if got := w.metric("kluis_gateway_limited_total", "limit", "unrelated", "supplier", w.a.gln.String()); got != before {
		t.Error("a full run had to wait")
	}
}
