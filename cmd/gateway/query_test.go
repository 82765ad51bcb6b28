package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/internal/authn"
	"kluis/internal/postgres"
	"kluis/meter"
	"kluis/openapi/client"
	"kluis/server"
)

// batchTap passes the calls of batches on, counts them, and puts faults
// between. The hooks are set before a request, and told the first metering point
// of the call, or none: two batches are under way at once.
type batchTap struct {
	real server.Many

	mu    sync.Mutex
	calls map[string]int

	files    func(meter.EAN) error
	versions func(meter.EAN) error
	blocks   func(meter.EAN) error
	opens    func(r server.OpenManyRequest, real server.ManyOpener) ([]server.OpenedUnit, error)
	records  func(r []audit.Record, real func() error) error
	signs    func(meter.EAN) error
}

func (b *batchTap) count(call string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.calls == nil {
		b.calls = map[string]int{}
	}
	b.calls[call]++
	return b.calls[call]
}

func (b *batchTap) counted(call string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls[call]
}

// reset takes the hooks away, and starts counting anew.
func (b *batchTap) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = nil
	b.files, b.versions, b.blocks, b.opens, b.records, b.signs = nil, nil, nil, nil, nil, nil
}

func (b *batchTap) hook(hook func(meter.EAN) error, call string, first meter.EAN) error {
	b.count(call)
	if hook == nil {
		return nil
	}
	return hook(first)
}

func (b *batchTap) LegalFiles(ctx context.Context, eans []meter.EAN) ([]authz.StoredFile, error) {
	if err := b.hook(b.files, "files", eans[0]); err != nil {
		return nil, err
	}
	return b.real.Facts.LegalFiles(ctx, eans)
}

func (b *batchTap) CandidateFiles(ctx context.Context, gln meter.GLN, after meter.EAN, limit int) ([]server.Candidate, error) {
	if err := b.hook(b.files, "files", meter.EAN{}); err != nil {
		return nil, err
	}
	return b.real.Facts.CandidateFiles(ctx, gln, after, limit)
}

func (b *batchTap) Versions(ctx context.Context, eans []meter.EAN) ([]uint64, error) {
	if err := b.hook(b.versions, "versions", eans[0]); err != nil {
		return nil, err
	}
	return b.real.Facts.Versions(ctx, eans)
}

func (b *batchTap) BlocksOfMany(ctx context.Context, grants []authz.Grant, asOf time.Time) ([]server.PointBlocks, error) {
	if err := b.hook(b.blocks, "blocks", grants[0].EAN()); err != nil {
		return nil, err
	}
	return b.real.Rows.BlocksOfMany(ctx, grants, asOf)
}

func (b *batchTap) OpenMany(ctx context.Context, r server.OpenManyRequest) ([]server.OpenedUnit, error) {
	b.count("opens")
	if b.opens != nil {
		return b.opens(r, b.real.Opener)
	}
	return b.real.Opener.OpenMany(ctx, r)
}

func (b *batchTap) RecordMany(ctx context.Context, records []audit.Record) error {
	b.count("records")
	real := func() error { return b.real.Recorder.RecordMany(ctx, records) }
	if b.records != nil {
		return b.records(records, real)
	}
	return real()
}

func (b *batchTap) SignManifest(ctx context.Context, r server.ManifestRequest) (string, error) {
	if err := b.hook(b.signs, "signs", meter.EAN{}); err != nil {
		return "", err
	}
	return b.real.Manifests.SignManifest(ctx, r)
}

// asking is the body of a query.
type asking map[string]any

// asks is a query of one register on two days of the month of the tests.
func (w *world) asks(change asking) asking {
	a := asking{
		"from": w.month.First().String(), "to": (w.month.First() + 2).String(), "purpose": "ENERGY_MANAGEMENT", "fields": []string{"import_low"},
	}
	for k, v := range change {
		if a[k] = v; v == nil {
			delete(a, k)
		}
	}
	return a
}

func (a asking) encode() ([]byte, error) { return json.Marshal(a) }

// fillSome stores what asks asks for.
func (w *world) fillSome(eans ...meter.EAN) {
	w.t.Helper()
	ctx := w.t.Context()
	f, _ := w.profile.Field("import_low")
	var batch postgres.Batch
	for _, e := range eans {
		keys, err := w.pool.ingest.Mint(ctx, []envelope.KeySpec{{EAN: e, Class: meter.Registers, Month: w.month, Occupancy: day("2020-01-01")}})
		if err != nil {
			w.t.Fatal(err)
		}
		var plain []envelope.PlainBlock
		for d := range meter.Day(3) {
			plain = append(plain, envelope.PlainBlock{Field: f.Code, Version: 1, Block: meter.Block{
				Day: w.month.First() + d, Resolution: meter.P1D, Start: meter.Null, Quality: []meter.Quality{0}, Values: []meter.Value{someRead(e, d)},
			}})
		}
		sealed, err := w.pool.ingest.Seal(ctx, e, keys, plain)
		if err != nil {
			w.t.Fatal(err)
		}
		batch.Keys = append(batch.Keys, keys...)
		for i, b := range plain {
			batch.Blocks = append(batch.Blocks, postgres.Row{
				EAN: e, Field: b.Field, Day: b.Block.Day, Version: 1, Resolution: b.Block.Resolution, KeyID: keys[b.Key].ID,
				ValueCount: 1, ContentMAC: sealed[i].ContentMAC, Ciphertext: sealed[i].Ciphertext,
			})
		}
	}
	if err := w.ingest.Commit(ctx, batch); err != nil {
		w.t.Fatal(err)
	}
}

// someRead is like no other metering point's.
func someRead(e meter.EAN, d meter.Day) meter.Value {
	return meter.Value(e.Int64()/10%100_000*1000 + int64(d)*7 + 1)
}

// customers are n metering points of the supplier, with readings, ascending.
func (w *world) customers(s *supplier, n int, more ...authz.Step) []meter.EAN {
	w.t.Helper()
	var eans []meter.EAN
	for i := range n {
		eans = append(eans, w.customer(100+i, s, more...))
	}
	w.fillSome(eans...)
	return eans
}

func texts(eans []meter.EAN) []string {
	var out []string
	for _, e := range eans {
		out = append(out, e.String())
	}
	return out
}

// send sends a query; change may be nil.
func (w *world) send(s *supplier, accept string, body io.Reader, change func(*http.Request)) *http.Response {
	w.t.Helper()
	if s.client == nil {
		s.client = w.http(s.cert)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.url+"/v1/readings/query", body)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", accept)
	bearer(w.token(s))(req)
	c := s.client
	if change != nil {
		change(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp
}

// query sends one and reads the whole answer.
func (w *world) query(s *supplier, accept string, body any) reply {
	w.t.Helper()
	raw, ok := body.(string)
	if !ok {
		raw = string(must(json.Marshal(body)))
	}
	resp := w.send(s, accept, strings.NewReader(raw), nil)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, b}
}

// stored is what a supplier stores of a stream, over all its parts: each
// metering point together with the cursor after it.
type stored struct {
	w      *world
	s      *supplier
	asking asking
	change func(*http.Request)

	points   []client.StreamLine
	given    map[string][]string // metering points by interaction
	cursor   string
	chain    *client.Chain
	query    string
	parts    uint32 // of which the cursor is
	manifest *client.Manifest
}

func (w *world) stored(s *supplier, a asking) *stored {
	return &stored{w: w, s: s, asking: a, given: map[string][]string{}}
}

// part reads one part of the stream, and returns its last line; each may break
// it off, by saying no.
func (s *stored) part(each func(n int) bool) *client.StreamLine {
	t := s.w.t
	t.Helper()
	a := maps.Clone(s.asking)
	if s.cursor != "" {
		a["cursor"] = s.cursor
	}
	resp := s.w.send(s.s, "application/x-ndjson", bytes.NewReader(must(json.Marshal(a))), s.change)
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/x-ndjson" || resp.Header.Get("Cache-Control") != "no-store" {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, b)
	}
	body := io.Reader(resp.Body)
	if resp.Header.Get("Content-Encoding") == "gzip" {
		body = must(gzip.NewReader(body))
	}
	lines := bufio.NewReader(body)
	var id string
	var point *client.StreamLine
	var pointLine []byte
	part := s.parts + 1
	for first := true; ; first = false {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatalf("broke off after %d metering points: %v", len(s.points), err)
		}
		var l client.StreamLine
		holdsTo(t, "StreamLine", line, &l)
		if first != (l.Type == client.Begin) {
			t.Fatalf("out of order: %s", line)
		}
		switch l.Type {
		case client.Begin:
			id = l.InteractionId.String()
			if id != resp.Header.Get("X-Interaction-Id") || *l.Done != len(s.points) || s.query != "" && s.query != *l.Query {
				t.Fatalf("begins with %s after %d metering points", line, len(s.points))
			}
			if s.query == "" {
				s.query = *l.Query
				s.chain = client.NewChain([32]byte(must(base64.RawURLEncoding.DecodeString(*l.Query))))
			}
		case client.Point:
			if point != nil || *l.Sequence != len(s.points)+1 || len(s.points) > 0 && *l.Ean <= *s.points[len(s.points)-1].Ean {
				t.Fatalf("out of order: %s", line)
			}
			point, pointLine = &l, line
		case client.Progress:
			if point != nil {
				s.points, s.given[id] = append(s.points, *point), append(s.given[id], *point.Ean)
				s.chain.Add(pointLine)
			}
			if point = nil; *l.Sequence != len(s.points) || *l.Done != len(s.points) {
				t.Fatalf("after %d metering points: %s", len(s.points), line)
			}
			s.cursor, s.parts = *l.Cursor, part
			if each != nil && !each(len(s.points)) {
				return nil
			}
		case client.End:
			if _, err := lines.ReadByte(); err != io.EOF || point != nil || *l.Sequence != len(s.points) {
				t.Fatalf("after the end, %v: %s", err, line)
			}
			if !*l.Complete {
				if l.Problem.InteractionId.String() != id {
					t.Errorf("a problem of another request: %s", line)
				}
				s.cursor = *l.Cursor
				s.parts = part
				return &l
			}
			s.verify(*l.Manifest, part, id)
			return &l
		}
	}
}

// verify holds the manifest to what is stored.
func (s *stored) verify(jws string, part uint32, id string) {
	s.w.t.Helper()
	var set client.JwkSet
	keys := s.w.do(s.w.http(s.s.cert), http.MethodGet, "/v1/manifest-keys", nil)
	if err := json.Unmarshal(keys.body, &set); err != nil {
		s.w.t.Fatal(err)
	}
	m, err := client.VerifyManifest(jws, set)
	if err != nil {
		s.w.t.Fatal(err)
	}
	var want client.Manifest
	for _, p := range s.points {
		switch {
		case p.Problem != nil:
			want.Failed++
		case len(*p.Series) == 0:
			want.Withheld++
		case len(*p.Withheld) > 0:
			want.Partly++
		default:
			want.Given++
		}
		if p.Series != nil {
			for _, x := range *p.Series {
				want.Expected += uint64(x.ExpectedCount)
				want.Delivered += uint64(x.DeliveredCount)
			}
		}
	}
	if m.Points != uint32(len(s.points)) || m.Given != want.Given || m.Partly != want.Partly || m.Withheld != want.Withheld || m.Failed != want.Failed ||
		m.Expected != want.Expected || m.Delivered != want.Delivered || m.Parts != part || m.Digest != s.chain.Digest() ||
		base64.RawURLEncoding.EncodeToString(m.Query[:]) != s.query || m.Supplier != s.s.gln.String() || m.Format != "ndjson" || m.InteractionID != id {
		s.w.t.Errorf("the manifest says %+v, and was read: %+v in %d parts", m, want, part)
	}
	s.manifest = &m
}

// recorded: every metering point that was given has one record, of the
// interaction it was given in.
func (s *stored) recorded() {
	t := s.w.t
	t.Helper()
	n := map[string]int{}
	for _, r := range s.w.records() {
		if r.Operation == audit.Readings {
			n[fmt.Sprintf("%x %s", r.InteractionID, r.EAN)]++
		}
	}
	for id, eans := range s.given {
		for _, e := range eans {
			if got := n[strings.ReplaceAll(id, "-", "")+" "+e]; got != 1 {
				t.Errorf("%d records of a metering point that was given once", got)
			}
		}
	}
}

// all: the stream came to its end with all of these.
func (s *stored) all(eans []meter.EAN) {
	s.w.t.Helper()
	var got []string
	for _, p := range s.points {
		got = append(got, *p.Ean)
	}
	if s.manifest == nil || !slices.Equal(got, texts(eans)) {
		s.w.t.Errorf("given %q, want %q; manifest %v", got, texts(eans), s.manifest)
	}
	s.recorded()
}

// values are those of the only series.
func values(p client.StreamLine) []string {
	var out []string
	if p.Series == nil || len(*p.Series) != 1 {
		return nil
	}
	for _, d := range (*p.Series)[0].Days {
		for _, v := range d.Values {
			if v == nil {
				out = append(out, "null")
				continue
			}
			out = append(out, *v)
		}
	}
	return out
}

// reads is what a metering point of customers has.
func reads(e meter.EAN) []string {
	var out []string
	for d := range meter.Day(3) {
		out = append(out, string(meter.AppendValue(nil, someRead(e, d), 3)))
	}
	return out
}

func slugOf(l *client.StreamLine) string {
	if l == nil || l.Problem == nil {
		return ""
	}
	return strings.TrimPrefix(string(l.Problem.Type), "urn:kluis:problem:")
}

// Foreign, unknown, damaged and own metering points, in any order, with a
// problem or a reason each: over both protocols, with gzip and without.
func TestQueryMixed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	eans := w.customers(w.a, 12)
	foreign, gone, unknown, left := w.customer(1, w.b), w.ean(50), w.ean(51), w.ean(52)
	w.legalFile(left, meter.Electricity, authz.SetOccupancy{Days: meter.DayRange{From: day("2020-01-01"), To: meter.MaxDay}},
		authz.SetSupply{Supplier: w.a.gln, Days: meter.DayRange{From: day("2020-01-01"), To: day("2021-01-01")}})
	w.legalFile(gone, meter.Electricity, authz.SetOccupancy{Days: meter.DayRange{From: day("2020-01-01"), To: meter.MaxDay}},
		authz.SetSupply{Supplier: w.a.gln, Days: meter.DayRange{From: day("2020-01-01"), To: meter.MaxDay}})
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := w.owner().ExecContext(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(`UPDATE legal_file SET file = set_byte(file, 40, get_byte(file, 40) # 1) WHERE ean = $1 AND version = 3`, gone.Int64())
	damaged := eans[3]
	exec(`UPDATE sealed_block SET ciphertext = set_byte(ciphertext, 5, get_byte(ciphertext, 5) # 1) WHERE ean = $1 AND day = $2`, damaged.Int64(), (w.month.First() + 1).String())

	list := append([]meter.EAN{unknown, gone, left, foreign}, eans...)
	sorted := slices.SortedFunc(slices.Values(list), func(a, b meter.EAN) int { return strings.Compare(a.String(), b.String()) })
	for name, change := range map[string]func(*http.Request){
		"plain": func(r *http.Request) { r.Header.Set("Accept-Encoding", "identity") },
		"gzip":  func(r *http.Request) { r.Header.Set("Accept-Encoding", "br, gzip;q=0.5") },
	} {
		for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
			t.Run(name+" "+protocol, func(t *testing.T) {
				s := w.stored(w.a, w.asks(asking{"meteringPoints": texts(list)}))
				s.s = &supplier{gln: w.a.gln, cert: w.a.cert, raw: w.token(w.a), client: w.http(w.a.cert)}
				if protocol == "HTTP/1.1" {
					s.s.client.Transport.(*http.Transport).ForceAttemptHTTP2 = false
				}
				s.change = change
				if end := s.part(nil); end == nil || !*end.Complete {
					t.Fatalf("ends with %+v", end)
				}
				s.all(sorted)
				for _, p := range s.points {
					switch e := must(meter.ParseEAN(*p.Ean)); e {
					case unknown, foreign:
						if slugOf(&p) != "metering-point-not-found" {
							t.Errorf("a foreign or unknown metering point: %+v", p)
						}
					case gone:
						if slugOf(&p) != "evidence-invalid" {
							t.Errorf("damaged facts: %+v", p)
						}
					case left:
						if p.Problem != nil || len(*p.Series) != 0 || len(*p.Withheld) != 1 || (*p.Withheld)[0].Reason != client.NOSUPPLY {
							t.Errorf("a former customer: %+v", p)
						}
					case damaged:
						if got := values(p); got[0] != reads(e)[0] || got[1] != "null" {
							t.Errorf("a damaged row: %q", got)
						}
					default:
						if got := values(p); !slices.Equal(got, reads(e)) {
							t.Errorf("values %q, want %q", got, reads(e))
						}
					}
				}
				var foreigner, stranger client.StreamLine
				for _, p := range s.points {
					if *p.Ean == foreign.String() {
						foreigner = p
					}
					if *p.Ean == unknown.String() {
						stranger = p
					}
				}
				foreigner.Ean, foreigner.Sequence = stranger.Ean, stranger.Sequence
				if x, y := must(json.Marshal(foreigner)), must(json.Marshal(stranger)); !bytes.Equal(x, y) {
					t.Errorf("foreign and unknown are told apart: %s %s", x, y)
				}
			})
		}
	}
	if log := w.log.String(); strings.Contains(log, eans[0].String()) || !strings.Contains(log, `"points":16`) {
		t.Errorf("the log: %s", log)
	}
}

// Without a list: all of which something is granted, and how many were left out.
func TestQueryAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	eans := w.customers(w.a, 11)
	w.customer(1, w.b)
	for _, n := range []int{20, 60, 200} {
		w.legalFile(w.ean(n), meter.Electricity, authz.SetOccupancy{Days: meter.DayRange{From: day("2020-01-01"), To: meter.MaxDay}},
			authz.SetSupply{Supplier: w.a.gln, Days: meter.DayRange{From: day("2020-01-01"), To: day("2021-01-01")}})
	}
	s := w.stored(w.a, w.asks(nil))
	if end := s.part(func(n int) bool { return n < 10 }); end != nil {
		t.Fatal(end)
	}
	if end := s.part(nil); end == nil || !*end.Complete || end.Total != nil {
		t.Fatalf("ends with %+v", end)
	}
	s.all(eans)
	if s.manifest.LeftOut != 3 {
		t.Errorf("%d were left out, want 3", s.manifest.LeftOut)
	}
	// Somebody with nothing gets a manifest of nothing.
	c := w.newSupplier(w.gln(3))
	none := w.stored(c, w.asks(nil))
	if end := none.part(nil); end == nil || !*end.Complete || none.manifest.Points != 0 {
		t.Errorf("%+v", end)
	}
}

// Pages have the same as the stream, at most limit in each.
func TestQueryPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	eans := w.customers(w.a, 25)
	for name, a := range map[string]asking{"all": {}, "listed": {"meteringPoints": texts(eans)}} {
		var got []string
		cursor := ""
		for n := 0; ; n++ {
			a := w.asks(a)
			a["limit"] = 10 + n // may differ
			if cursor != "" {
				a["cursor"] = cursor
			}
			r := w.query(w.a, "application/json", a)
			if r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			var page client.ReadingsPage
			holdsTo(t, "ReadingsPage", r.body, &page)
			if len(page.MeteringPoints) > 10+n || (page.Total == nil) != (name == "all") {
				t.Errorf("%s: %d in a page of %d", name, len(page.MeteringPoints), 10+n)
			}
			for _, p := range page.MeteringPoints {
				got = append(got, p.Ean)
				if p.Sequence != len(got) || len(*p.Series) != 1 {
					t.Errorf("%s: number %d is %+v", name, len(got), p)
				}
			}
			if page.Done != len(got) {
				t.Errorf("%s: done %d of %d", name, page.Done, len(got))
			}
			if page.Cursor == nil {
				break
			}
			cursor = *page.Cursor
		}
		if !slices.Equal(got, texts(eans)) {
			t.Errorf("%s: %q, want %q", name, got, texts(eans))
		}
	}
}

// What breaks ends the stream with a line that says so, and whoever goes on has
// everything once.
func TestQueryBreaks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	eans := w.customers(w.a, 20)
	second := func(err error) func(meter.EAN) error {
		return func(first meter.EAN) error {
			if first == eans[8] {
				return err
			}
			return nil
		}
	}
	for name, tc := range map[string]struct {
		fault func(b *batchTap)
		slug  string
		retry bool
	}{
		"facts":     {func(b *batchTap) { b.files = second(errFault) }, "database-unavailable", true},
		"blocks":    {func(b *batchTap) { b.blocks = second(errFault) }, "database-unavailable", true},
		"manifests": {func(b *batchTap) { b.signs = func(meter.EAN) error { return server.ErrNoCryptoserver } }, "decryption-unavailable", true},
		"token refused": {func(b *batchTap) {
			b.opens = func(r server.OpenManyRequest, real server.ManyOpener) ([]server.OpenedUnit, error) {
				if r.Units[0].Request.EAN == eans[8] {
					return nil, server.ErrTokenRefused
				}
				return real.OpenMany(t.Context(), r)
			}
		}, "unauthenticated", false},
		"record fails": {func(b *batchTap) {
			b.records = func(r []audit.Record, real func() error) error {
				if r[0].EAN == eans[8] {
					return errFault
				}
				return real()
			}
		}, "record-not-written", true},
		"record fails but persisted": {func(b *batchTap) {
			b.records = func(r []audit.Record, real func() error) error {
				if r[0].EAN == eans[8] {
					return fmt.Errorf("%w, %w", real(), errFault)
				}
				return real()
			}
		}, "record-not-written", true},
		"a panic": {func(b *batchTap) {
			b.records = func(r []audit.Record, real func() error) error {
				if r[0].EAN == eans[8] {
					panic("secret")
				}
				return real()
			}
		}, "internal-error", false},
	} {
		t.Run(name, func(t *testing.T) {
			w.batches.reset()
			tc.fault(w.batches)
			s := w.stored(w.a, w.asks(asking{"meteringPoints": texts(eans)}))
			end := s.part(nil)
			if end == nil || *end.Complete || slugOf(end) != tc.slug || (end.Problem.RetryAfter != nil) != tc.retry {
				t.Fatalf("ends with %+v %+v", end, end.Problem)
			}
			if n := len(s.points); n == 0 || n == len(eans) && name != "manifests" {
				t.Errorf("it ended after %d", n)
			}
			w.batches.reset()
			if end := s.part(nil); end == nil || !*end.Complete {
				t.Fatalf("ends with %+v", end)
			}
			s.all(eans)
		})
	}
	if strings.Contains(w.log.String(), "secret") {
		t.Error("the value of a panic is in the log")
	}
	// Before anything was sent, an error is answered like any other.
	w.batches.reset()
	w.batches.files = func(meter.EAN) error { return errFault }
	if r := w.query(w.a, "application/x-ndjson", w.asks(nil)); r.status != 503 || r.problem(t) != "database-unavailable" || r.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := w.query(w.a, "application/json", w.asks(nil)); r.status != 503 || r.problem(t) != "database-unavailable" {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// One metering point with which no call succeeds does not end the stream.
func TestQueryPoisoned(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	eans := w.customers(w.a, 20)
	bad := []meter.EAN{eans[2], eans[9], eans[10], eans[19]}
	w.batches.opens = func(r server.OpenManyRequest, real server.ManyOpener) ([]server.OpenedUnit, error) {
		for _, u := range r.Units {
			if slices.Contains(bad, u.Request.EAN) {
				if u.Request.EAN == bad[3] {
					return nil, errFault // nothing that the gateway knows
				}
				return nil, server.ErrNoCryptoserver
			}
		}
		return real.OpenMany(t.Context(), r)
	}
	s := w.stored(w.a, w.asks(asking{"meteringPoints": texts(eans)}))
	if end := s.part(nil); end == nil || !*end.Complete {
		t.Fatalf("ends with %+v", end)
	}
	s.all(eans)
	for i, p := range s.points {
		want := ""
		if slices.Contains(bad, eans[i]) {
			want = "decryption-unavailable"
		}
		if eans[i] == bad[3] {
			want = "internal-error"
		}
		if slugOf(&p) != want || (want == "") != slices.Equal(values(p), reads(eans[i])) {
			t.Errorf("number %d: %q, want %q", i+1, slugOf(&p), want)
		}
	}
	for _, r := range w.records() {
		if slices.Contains(bad, r.EAN) != (r.Outcome == audit.Failed) {
			t.Errorf("recorded as %s", r.Outcome)
		}
	}
}

// A revocation counts for what did not leave yet: inside of a batch whose facts
// grew old, and between batches.
func TestQueryRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	eans := w.customers(w.a, 12)
	ends := func(i int) {
		w.legalFile(eans[i], meter.Electricity, authz.SetSupply{Supplier: w.b.gln, Days: meter.DayRange{From: day("2021-01-01"), To: meter.MaxDay}})
	}
	// While the first batch is recorded, the fifth metering point is lost, and
	// time passes: as when who reads is slow.
	w.batches.records = func(r []audit.Record, real func() error) error {
		err := real()
		if r[0].EAN == eans[0] {
			ends(4)
			time.Sleep(1200 * time.Millisecond)
		}
		return err
	}
	s := w.stored(w.a, w.asks(asking{"meteringPoints": texts(eans)}))
	end := s.part(nil)
	if end == nil || slugOf(end) != "evidence-changed" || len(s.points) != 4 || end.Problem.RetryAfter == nil {
		t.Fatalf("after %d metering points: %+v", len(s.points), end)
	}
	// The next batch begins only when the eleventh is lost, too.
	w.batches.reset()
	lost := make(chan struct{})
	w.batches.files = func(first meter.EAN) error {
		if first == eans[8] {
			<-lost
		}
		return nil
	}
	w.batches.records = func(r []audit.Record, real func() error) error {
		err := real()
		if r[0].EAN == eans[0] {
			ends(10)
			close(lost)
		}
		return err
	}
	if s.asking["meteringPoints"] = texts(eans); len(s.points) != 4 {
		t.Fatal(len(s.points))
	}
	// Eight at a time: 5 to 12 would be one batch. A second stream from the
	// start has two.
	again := w.stored(w.a, s.asking)
	if end := again.part(nil); end == nil || !*end.Complete {
		t.Fatalf("ends with %+v", end)
	}
	again.all(eans)
	w.batches.reset()
	if end := s.part(nil); end == nil || !*end.Complete {
		t.Fatalf("ends with %+v", end)
	}
	s.all(eans)
	for _, s := range []*stored{s, again} {
		for i, p := range s.points {
			if withheld := len(*p.Series) == 0; withheld != (i == 4 || i == 10) {
				t.Errorf("number %d is withheld: %v", i+1, withheld)
			}
		}
	}
}

// A supplier that is suspended gets nothing more, whether its facts are looked
// at for the next batch or for what waits to leave.
func TestQuerySuspended(t *testing.T) {
	t.Parallel()
	for name, wait := range map[string]time.Duration{"between batches": 0, "inside of one": 1200 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{})
			eans := w.customers(w.a, 12)
			done := make(chan struct{})
			w.tapSupplier(func(n int) { // the third: the caller, the first batch, the second
				if n == 3 {
					<-done
				}
			})
			w.batches.records = func(r []audit.Record, real func() error) error {
				err := real()
				if r[0].EAN == eans[0] {
					token := w.token(w.a)
					w.register(w.a, func(f *authz.SupplierFacts) { f.Suspended = true })
					w.a.raw = token
					close(done)
					time.Sleep(wait)
				}
				return err
			}
			s := w.stored(w.a, w.asks(asking{"meteringPoints": texts(eans)}))
			end := s.part(nil)
			want := 8
			if wait > 0 {
				want = 0
			}
			if end == nil || slugOf(end) != "unauthenticated" || len(s.points) != want {
				t.Fatalf("after %d metering points: %s", len(s.points), slugOf(end))
			}
			w.batches.reset()
			w.tapSupplier(nil)
			resp := w.send(w.a, "application/x-ndjson", bytes.NewReader(must(json.Marshal(w.asks(asking{"meteringPoints": texts(eans), "cursor": s.cursor})))), nil)
			resp.Body.Close()
			if resp.StatusCode != 401 {
				t.Errorf("suspended, and answered %d", resp.StatusCode)
			}
		})
	}
}

// A stream lives no longer than its token.
func TestQueryTokenExpires(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var ahead time.Duration
	w := newWorld(t, options{now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(ahead)
	}})
	eans := w.customers(w.a, 12)
	set := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		ahead = d
	}
	w.batches.records = func(r []audit.Record, real func() error) error {
		err := real()
		if r[0].EAN == eans[8] {
			set(4*time.Minute + 30*time.Second)
		}
		return err
	}
	// A gateway whose clock is behind this one's by more takes its cursors for
	// forged.
	raw, _, err := w.pool.issuer.SignToken(t.Context(), w.a.record, w.a.thumbprint(), []string{authn.ScopeReadings}, 4*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	w.a.raw = raw
	s := w.stored(w.a, w.asks(asking{"meteringPoints": texts(eans)}))
	end := s.part(nil)
	if end == nil || slugOf(end) != "unauthenticated" || end.Problem.RetryAfter != nil || len(s.points) == len(eans) {
		t.Fatalf("after %d metering points: %+v", len(s.points), end)
	}
	w.batches.reset()
	set(0)
	if end := s.part(nil); end == nil || !*end.Complete {
		t.Fatalf("ends with %+v", end)
	}
	s.all(eans)
}

// Who leaves is not worked for any longer.
func TestQueryClientLeaves(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	eans := w.customers(w.a, 120)
	var leave sync.Once
	var left = make(chan struct{})
	n := 0
	w.batches.files = func(meter.EAN) error {
		if n++; n == 4 {
			<-left
			time.Sleep(200 * time.Millisecond) // until the gateway has seen it
		}
		return nil
	}
	s := w.stored(w.a, w.asks(asking{"meteringPoints": texts(eans)}))
	if end := s.part(func(n int) bool { return n < 3 }); end != nil {
		t.Fatal(end)
	}
	leave.Do(func() { close(left) })
	w.eventually("the stream is over", func() bool { return w.gauge("kluis_gateway_streams") == 0 })
	if n := w.batches.counted("records"); n > 4 {
		t.Errorf("%d batches for somebody who left after the first", n)
	}
	w.batches.reset()
	if end := s.part(nil); end == nil || !*end.Complete {
		t.Fatalf("ends with %+v", end)
	}
	s.all(eans)
}

// A gateway that is told to stop ends its streams at the next metering point,
// and another one goes on.
func TestQueryDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	eans := w.customers(w.a, 60)
	p := w.process()
	s := w.stored(w.a, w.asks(asking{"meteringPoints": texts(eans)}))
	here := w.url
	w.url = p.url
	// The readings of the third batch are held back until the process drains.
	tx, err := w.owner().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), `SELECT 1 FROM legal_file WHERE ean = $1 FOR UPDATE`, eans[50].Int64()); err != nil {
		t.Fatal(err)
	}
	stopped := false
	end := s.part(func(n int) bool {
		if n == 5 {
			p.stop()
			stopped = true
			time.Sleep(300 * time.Millisecond)
		}
		return true
	})
	if end == nil || !stopped || slugOf(end) != "overloaded" && !*end.Complete {
		t.Fatalf("after %d metering points: %+v", len(s.points), end)
	}
	if err := <-p.done; err != nil {
		t.Errorf("the process: %v", err)
	}
	w.url = here
	if !*end.Complete {
		s.change = nil
		if end := s.part(nil); end == nil || !*end.Complete {
			t.Fatalf("ends with %+v", end)
		}
	}
	s.all(eans)
}

// Cursors of others, of other requests, and made up.
func TestQueryCursors(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var ahead time.Duration
	w := newWorld(t, options{now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(ahead)
	}})
	eans := w.customers(w.a, 12)
	w.customer(1, w.b)
	s := w.stored(w.a, w.asks(nil))
	s.part(func(n int) bool { return n < 5 })
	list := w.get(w.a, "/v1/metering-points?limit=10")
	var l client.MeteringPoints
	holdsTo(t, "MeteringPoints", list.body, &l)
	_, listCursor, _ := strings.Cut(*l.Links.Next, "cursor=")
	listCursor, _, _ = strings.Cut(listCursor, "&")

	type sent struct {
		who    *supplier
		accept string
		a      asking
	}
	same := asking{"cursor": s.cursor}
	for name, c := range map[string]sent{
		"another caller's":    {w.b, "application/x-ndjson", same},
		"another format":      {w.a, "text/csv", same},
		"a page from it":      {w.a, "application/json", same},
		"another period":      {w.a, "application/x-ndjson", asking{"cursor": s.cursor, "to": (w.month.First() + 3).String()}},
		"another purpose":     {w.a, "application/x-ndjson", asking{"cursor": s.cursor, "purpose": "BILLING"}},
		"other fields":        {w.a, "application/x-ndjson", asking{"cursor": s.cursor, "fields": []string{"import_normal"}}},
		"no fields":           {w.a, "application/x-ndjson", asking{"cursor": s.cursor, "fields": nil}},
		"a list":              {w.a, "application/x-ndjson", asking{"cursor": s.cursor, "meteringPoints": texts(eans)}},
		"a resolution":        {w.a, "application/x-ndjson", asking{"cursor": s.cursor, "resolution": "P1D"}},
		"a kind":              {w.a, "application/x-ndjson", asking{"cursor": s.cursor, "kind": "REGISTER"}},
		"a moment":            {w.a, "application/x-ndjson", asking{"cursor": s.cursor, "asOf": time.Now().UTC().Add(-time.Hour).Format(time.RFC3339)}},
		"of a list":           {w.a, "application/x-ndjson", asking{"cursor": listCursor}},
		"one letter less":     {w.a, "application/x-ndjson", asking{"cursor": s.cursor[:len(s.cursor)-1]}},
		"made up":             {w.a, "application/x-ndjson", asking{"cursor": "AQwY2tXe-egT"}},
		"empty":               {w.a, "application/x-ndjson", asking{"cursor": ""}},
		"too long":            {w.a, "application/x-ndjson", asking{"cursor": strings.Repeat("A", 1025)}},
		"a number":            {w.a, "application/x-ndjson", asking{"cursor": 5}},
		"of a stream, a list": {w.a, "list", same},
	} {
		var r reply
		if c.accept == "list" {
			r = w.get(c.who, "/v1/metering-points?cursor="+s.cursor)
		} else {
			r = w.query(c.who, c.accept, w.asks(c.a))
		}
		if r.status != 400 || r.problem(t) != "invalid-parameters" || !strings.Contains(string(r.body), "/cursor") || len(s.cursor) > 20 && strings.Contains(string(r.body), s.cursor[5:]) {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	// It is good for a week.
	mu.Lock()
	ahead = 8 * 24 * time.Hour
	mu.Unlock()
	w.batches.reset()
	r := w.query(w.a, "application/x-ndjson", w.asks(same))
	if r.status != 401 { // the token is older still
		t.Errorf("%d %s", r.status, r.body)
	}
	mu.Lock()
	ahead = 0
	mu.Unlock()
	if end := s.part(nil); end == nil || !*end.Complete {
		t.Fatalf("ends with %+v", end)
	}
	s.all(eans)
}

// The table has the same as the lines.
func TestQueryTable(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	eans := w.customers(w.a, 9)
	r := w.query(w.a, "text/csv", w.asks(asking{"meteringPoints": append(texts(eans), w.ean(1).String())}))
	if r.status != 200 || !strings.HasPrefix(r.header.Get("Content-Type"), "text/csv") {
		t.Fatalf("%d %v", r.status, r.header)
	}
	rows := strings.Split(strings.TrimSuffix(string(r.body), "\r\n"), "\r\n")
	column := map[string]int{}
	for i, name := range strings.Split(rows[0], ",") {
		column[name] = i
	}
	cell := func(row, name string) string { return strings.Split(row, ",")[column[name]] }
	query, ok := strings.CutPrefix(cell(rows[1], "manifest"), "query=")
	if !ok || cell(rows[1], "record") != "begin" {
		t.Fatalf("begins with %s", rows[1])
	}
	chain := client.NewChain([32]byte(must(base64.RawURLEncoding.DecodeString(query))))
	var point []string
	var kinds []string
	n := 0
	for _, row := range rows[2:] {
		kind := cell(row, "record")
		kinds = append(kinds, kind)
		switch kind {
		case "series", "value", "withheld", "problem":
			point = append(point, row+"\r\n")
		case "progress":
			n++
			if cell(row, "sequence") != fmt.Sprint(n) || cell(row, "cursor") == "" {
				t.Errorf("progress %s", row)
			}
			chain.Add([]byte(strings.Join(point, "")))
			point = nil
		case "end":
			var set client.JwkSet
			if err := json.Unmarshal(w.do(w.http(w.a.cert), http.MethodGet, "/v1/manifest-keys", nil).body, &set); err != nil {
				t.Fatal(err)
			}
			m, err := client.VerifyManifest(cell(row, "manifest"), set)
			if err != nil || m.Format != "csv" || m.Points != 10 || m.Failed != 1 || m.Given != 9 || m.Digest != chain.Digest() {
				t.Errorf("%+v, %v", m, err)
			}
		default:
			t.Errorf("a row %s", row)
		}
	}
	if n != 10 || kinds[len(kinds)-1] != "end" || kinds[0] != "problem" {
		t.Errorf("%d metering points; %q", n, kinds)
	}
	if !strings.Contains(string(r.body), reads(eans[4])[1]) {
		t.Error("a value is missing")
	}
}

// tapSupplier hears of every look at a supplier's record, from now on.
func (w *world) tapSupplier(f func(n int)) {
	w.tap.mu.Lock()
	defer w.tap.mu.Unlock()
	w.tap.looks, w.tap.look = 0, f
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("never: %s", what)
}

// gauge is the value of a metric without labels.
func (w *world) gauge(name string) float64 {
	w.t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	w.t.Fatalf("no metric %s", name)
	return 0
}

// A page is as true as a stream: what does not stand any more when it is sent is
// not in it, and a fault after its first batch ends it early.
func TestQueryPageCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	eans := w.customers(w.a, 20)
	ask := func(cursor string) client.ReadingsPage {
		t.Helper()
		a := w.asks(asking{"meteringPoints": texts(eans), "limit": 20})
		if cursor != "" {
			a["cursor"] = cursor
		}
		r := w.query(w.a, "application/json", a)
		if r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		var page client.ReadingsPage
		holdsTo(t, "ReadingsPage", r.body, &page)
		return page
	}
	lose := func(i int) {
		w.legalFile(eans[i], meter.Electricity, authz.SetSupply{Supplier: w.b.gln, Days: meter.DayRange{From: day("2021-01-01"), To: meter.MaxDay}})
	}
	for _, lost := range []int{4, 0} {
		w.batches.records = func(r []audit.Record, real func() error) error {
			err := real()
			if r[0].EAN == eans[0] {
				lose(lost)
				time.Sleep(1200 * time.Millisecond)
			}
			return err
		}
		first := ask("")
		if len(first.MeteringPoints) != lost || first.Cursor == nil || first.Done != lost {
			t.Fatalf("%d metering points, where number %d was lost", len(first.MeteringPoints), lost+1)
		}
		w.batches.reset()
		rest := ask(*first.Cursor)
		if len(rest.MeteringPoints) != 20-lost || rest.Cursor != nil || rest.MeteringPoints[0].Ean != eans[lost].String() || len(*rest.MeteringPoints[0].Series) != 0 {
			t.Errorf("%d metering points in the rest", len(rest.MeteringPoints))
		}
	}
	w.batches.blocks = func(first meter.EAN) error {
		if slices.Index(eans, first) >= 8 {
			return errFault
		}
		return nil
	}
	page := ask("")
	if len(page.MeteringPoints) != 8 || page.Cursor == nil {
		t.Errorf("%d metering points before the fault", len(page.MeteringPoints))
	}
	if r := w.query(w.a, "application/json", w.asks(asking{"meteringPoints": texts(eans), "limit": 20, "cursor": *page.Cursor})); r.status != 503 || r.problem(t) != "database-unavailable" {
		t.Errorf("%d %s", r.status, r.body)
	}
	if m := w.counter("kluis_gateway_query_points_total"); m["given"] == 0 || m["withheld"] == 0 {
		t.Errorf("counted %v", m)
	}
}

// Streams are counted by how they end.
func TestQueryMetrics(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	eans := w.customers(w.a, 9)
	list := append(texts(eans), w.ean(1).String())
	w.stored(w.a, w.asks(asking{"meteringPoints": list})).part(nil)
	w.batches.signs = func(meter.EAN) error { return server.ErrNoCryptoserver }
	w.stored(w.a, w.asks(asking{"meteringPoints": list})).part(nil)
	if got := w.counter("kluis_gateway_streams_ended_total"); got["complete"] != 1 || got["decryption-unavailable"] != 1 {
		t.Errorf("ended %v", got)
	}
	if got := w.counter("kluis_gateway_query_points_total"); got["given"] != 18 || got["problem"] != 2 {
		t.Errorf("points %v", got)
	}
	if w.gauge("kluis_gateway_streams") != 0 {
		t.Error("a stream is still under way")
	}
	if log := w.log.String(); !strings.Contains(log, `"points":10,"values":27`) || strings.Contains(log, eans[0].String()) {
		t.Errorf("the log: %s", log)
	}
}

// counter is a metric with one label, by its value.
func (w *world) counter(name string) map[string]float64 {
	w.t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				out[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	return out
}
