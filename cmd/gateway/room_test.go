package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A stream has room for its two batches and a line as long as it runs, and gives
// it back; who has no more waits for itself, and is told.
func TestStreamsTakeRoom(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{timeout: 5 * time.Second})
	consent := w.consent(w.a)
	e := w.customer(100, w.a, consent)
	w.fill(e)
	other := w.customer(101, w.a, consent)
	// Rows of a year of everything: two of these streams leave no room for a third.
	year := w.asks(asking{"meteringPoints": []string{e.String(), other.String()}, "from": (w.days().To - 365).String(), "to": w.days().To.String(), "fields": nil})
	small := w.asks(asking{"meteringPoints": []string{e.String()}})
	ask := func(a asking) reply { return w.query(w.a, "text/csv", a) }
	w.standing(w.a, "text/csv", year, func() {
		w.standing(w.a, "text/csv", year, func() {
			if r := ask(year); r.status != 429 || r.problem(t) != "rate-limited" {
				t.Errorf("a third one: %d", r.status)
			}
			if r := ask(small); r.status != 200 {
				t.Errorf("a small one beside them: %d", r.status)
			}
		})
	})
	if got := w.metric("kluis_gateway_limited_total", "limit", "memory", "supplier", w.a.gln.String()); got != 1 {
		t.Errorf("refused for memory: %v", got)
	}
	for range 3 { // each gave back what it took
		if r := ask(year); r.status != 200 || !strings.Contains(string(r.body), "\r\nend,") {
			t.Errorf("after it: %d", r.status)
		}
	}
}

// Bodies that come in together leave room for their answers: each gives back
// what it took as soon as it is understood.
func TestQueriesTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(100, w.a)
	body := string(must(json.Marshal(w.asks(asking{
		"meteringPoints": []string{e.String()}, "from": (w.days().To - 365).String(), "to": w.days().To.String(), "fields": nil,
	}))))
	const together = 30 // of 2.5 MB, as long as nobody knows how long they are
	w.a.client = w.http(w.a.cert)
	statuses := make(chan int, together)
	var writers []*io.PipeWriter
	for range together {
		r, writer := io.Pipe()
		writers = append(writers, writer)
		req := must(http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/v1/readings/query", r))
		req.Header.Set("Content-Type", "application/json")
		bearer(w.token(w.a))(req)
		go func() {
			resp, err := w.a.client.Do(req)
			if err != nil {
				statuses <- 0
				return
			}
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, resp.Body)
			statuses <- resp.StatusCode
		}()
	}
	begun := make(chan struct{})
	for _, writer := range writers {
		go func() {
			_, _ = io.WriteString(writer, body[:40])
			<-begun
			_, _ = io.WriteString(writer, body[40:])
			_ = writer.Close()
		}()
	}
	time.Sleep(300 * time.Millisecond) // until they have come that far
	close(begun)
	for range together {
		if status := <-statuses; status != 200 {
			t.Errorf("answered %d", status)
		}
	}
}
