package main

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kluis/authz"
	"kluis/meter"
	"kluis/openapi/client"
)

// standing is a query of which the client reads the first byte, stands still
// while something happens and facts grow old, and then reads the rest.
func (w *world) standing(s *supplier, accept string, a asking, while func()) []byte {
	w.t.Helper()
	c := w.http(s.cert)
	tr := c.Transport.(*http.Transport)
	tr.DisableCompression = true
	tr.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 16 << 10, MaxReceiveBufferPerConnection: 64 << 10} // less than a metering point
	narrow := &supplier{gln: s.gln, cert: s.cert, raw: w.token(s), client: c}
	resp := w.send(narrow, accept, bytes.NewReader(must(json.Marshal(a))), nil)
	defer resp.Body.Close()
	first := make([]byte, 1)
	if _, err := io.ReadFull(resp.Body, first); err != nil || resp.StatusCode != 200 || resp.ProtoMajor != 2 {
		w.t.Fatalf("%d over %s, %v", resp.StatusCode, resp.Proto, err)
	}
	while()
	time.Sleep(1200 * time.Millisecond)
	rest, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return append(first, rest...)
}

// pointsOf are the metering points of a stream or a page, as they were sent, but
// for the interaction; why it ends before its end; and where.
func pointsOf(t *testing.T, answer []byte) (points []string, slug, cursor string) {
	t.Helper()
	add := func(raw json.RawMessage, id string) {
		points = append(points, strings.ReplaceAll(string(raw), id, "*"))
	}
	if bytes.HasPrefix(answer, []byte(`{"type"`)) {
		var id string
		for line := range bytes.Lines(answer) {
			var l client.StreamLine
			holdsTo(t, "StreamLine", line, &l)
			switch l.Type {
			case client.Begin:
				id = l.InteractionId.String()
			case client.Point:
				add(line, id)
			case client.End:
				if !*l.Complete {
					cursor = *l.Cursor
				}
				slug = slugOf(&l)
			}
		}
		return points, slug, cursor
	}
	var page client.ReadingsPage
	holdsTo(t, "ReadingsPage", answer, &page)
	var raw struct{ MeteringPoints []json.RawMessage }
	if err := json.Unmarshal(answer, &raw); err != nil {
		t.Fatal(err)
	}
	for _, p := range raw.MeteringPoints {
		add(p, page.InteractionId.String())
	}
	if page.Cursor != nil {
		slug, cursor = "evidence-changed", *page.Cursor // what a page cannot say
	}
	return points, slug, cursor
}

// Who stands still gets nothing on rights that ended meanwhile, by the clock or
// by a new version; and notices nothing of what others do.
func TestStandingStill(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	w := newWorld(t, options{now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	consent := w.consent(w.a)
	consent.ValidUntil = time.Now().Add(3 * time.Minute)
	var eans []meter.EAN
	for i := range 4 {
		eans = append(eans, w.customer(100+i, w.a, consent))
		w.fill(eans[i])
	}
	foreign, unknown := w.customer(200, w.b), w.ean(201)
	list := append(slices.Clone(eans), foreign, unknown)
	a := w.asks(asking{"meteringPoints": texts(list), "from": w.days().From.String(), "to": w.days().To.String(), "class": "intervals", "fields": nil})
	formats := []string{"application/x-ndjson", "application/json"}
	full := map[string][]string{}
	for _, accept := range formats {
		points, slug, _ := pointsOf(t, w.query(w.a, accept, a).body)
		if full[accept] = points; len(points) != len(list) || slug != "" || len(points[0]) < 40<<10 {
			t.Fatalf("%s: %d metering points, the first of %d bytes, %q", accept, len(points), len(points[0]), slug)
		}
	}

	others := [](func()){
		func() { // a consent of another's at a metering point of the caller's, and steps at others
			theirs := w.consent(w.b)
			theirs.ID = [16]byte{2}
			w.legalFile(eans[1], meter.Electricity, theirs)
			w.legalFile(foreign, meter.Electricity, theirs)
			w.legalFile(unknown, meter.Electricity, authz.SetOccupancy{Days: meter.DayRange{From: day("2020-01-01"), To: meter.MaxDay}})
		},
		func() { // and its end
			w.legalFile(eans[1], meter.Electricity, authz.RevokeConsent{ID: [16]byte{2}})
			w.legalFile(foreign, meter.Electricity, authz.RevokeConsent{ID: [16]byte{2}})
		},
	}
	for i, accept := range formats {
		points, slug, _ := pointsOf(t, w.standing(w.a, accept, a, others[i]))
		if slug != "" || !slices.Equal(points, full[accept]) {
			t.Errorf("%s: what others do ends it after %d metering points, %q", accept, len(points), slug)
		}
	}

	for name, ends := range map[string]func(i int){
		"another supplier": func(i int) {
			w.legalFile(eans[3-i], meter.Electricity, authz.SetSupply{Supplier: w.b.gln, Days: meter.DayRange{From: day("2021-01-01"), To: meter.MaxDay}},
				authz.RevokeConsent{ID: [16]byte{1}})
		},
		"the clock": func(int) { ahead.Store(int64(4 * time.Minute)) },
	} {
		t.Run(name, func(t *testing.T) {
			for i, accept := range formats {
				w.a.raw = "" // of which most of its life is left
				fresh, _, _ := pointsOf(t, w.query(w.a, accept, a).body)
				points, slug, cursor := pointsOf(t, w.standing(w.a, accept, a, func() { ends(i) }))
				if slug != "evidence-changed" || len(points) == 0 || len(points) >= 4 || !slices.Equal(points, fresh[:len(points)]) {
					t.Errorf("%s: %d metering points, %q", accept, len(points), slug)
				}
				if cursor == "" {
					t.Fatalf("%s: no cursor to go on from", accept)
				}
				rest := maps.Clone(a)
				rest["cursor"] = cursor
				more, slug, _ := pointsOf(t, w.query(w.a, accept, rest).body)
				if slug != "" || len(points)+len(more) != len(list) {
					t.Errorf("%s: goes on with %d of %d, %q", accept, len(more), len(list), slug)
				}
				ahead.Store(0)
			}
		})
	}
}
