package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"

	"kluis/authz"
	"kluis/ingest"
	"kluis/internal/testing/long"
	"kluis/meter"
	"kluis/openapi/client"
)

// streamPoints is small for every run of the tests; make test-stream has the
// most that a query can list.
var streamPoints = flag.Int("stream-points", 2000, "metering points of the stream that survives everything")

// TestStreamSurvives reads a stream through a killed gateway, a killed
// cryptoserver and a PostgreSQL that is restarted, in one run: who resumes has
// every metering point exactly once, with its own values, and a manifest that
// says so.
func TestStreamSurvives(t *testing.T) {
	if *streamPoints <= 2000 {
		long.Test(t)
		t.Parallel()
	}
	p := newPortfolio(t, *streamPoints)
	began := time.Now()
	breaks := []struct {
		what string
		do   func()
	}{
		{"a killed gateway", func() { signal(t, p.ready.GatewayPID, syscall.SIGKILL) }},
		{"a killed cryptoserver", func() { signal(t, p.ready.Cryptoservers[0].PID, syscall.SIGKILL) }},
		{"PostgreSQL restarted", func() { signal(t, p.ready.PostgresPID, syscall.SIGINT) }},
		{"the other cryptoserver killed", func() { signal(t, p.ready.Cryptoservers[1].PID, syscall.SIGKILL) }},
		{"a gateway told to stop", func() { signal(t, p.ready.GatewayPID, syscall.SIGTERM) }},
	}
	next := 0
	r := p.reader(t)
	r.each = func() {
		if next < len(breaks) && r.sequence > (next+1)*len(p.eans)/(len(breaks)+1) {
			if err := p.reread(); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s after %d metering points", breaks[next].what, r.sequence)
			breaks[next].do()
			next++
		}
	}
	for tries := 0; !r.complete; tries++ {
		if tries > 200 {
			t.Fatalf("the stream does not come to its end: at %d", r.sequence)
		}
		before := r.sequence
		if err := r.part(t); err != nil {
			if r.sequence > before {
				t.Logf("at %d: %v", r.sequence, err)
			} else {
				time.Sleep(300 * time.Millisecond)
			}
		}
	}
	if next != len(breaks) {
		t.Fatalf("only %d things broke", next)
	}
	took := time.Since(began)
	t.Logf("%d metering points in %s, in %d requests", r.sequence, took.Round(time.Second), r.requests)
	r.check(t)
}

// portfolio is many metering points of one supplier, of a world whose servers
// take facts that this test sealed itself.
type portfolio struct {
	*lab
	v    vendor
	eans []meter.EAN
	day  meter.Day
	text []byte // the body of the query, without its end
}

func newPortfolio(t *testing.T, n int) *portfolio {
	t.Helper()
	w := privateWorld(t)
	key := newForger(t)
	if err := w.stopDemo(); err != nil {
		t.Fatal(err)
	}
	der := sure(x509.MarshalPKIXPublicKey(&key.key.PublicKey))
	pinned := sure(os.OpenFile(filepath.Join(w.state, "keys", "seal-keys.pem"), os.O_APPEND|os.O_WRONLY, 0))
	if err := errors.Join(pem.Encode(pinned, &pem.Block{Type: "PUBLIC KEY", Bytes: der}), pinned.Close()); err != nil {
		t.Fatal(err)
	}
	if err := w.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := w.lab(t)
	today := meter.DayOf(time.Now(), l.profile.Location())
	p := &portfolio{lab: l, v: l.vendor(t), day: (today.Month() - 1).First() + 9}
	for i := range n {
		p.eans = append(p.eans, sure(meter.ParseEAN(withCheckDigit(fmt.Sprintf("87168798%09d", i)))))
	}
	began := time.Now()
	p.facts(t, key)
	t.Logf("facts of %d metering points: %s", n, time.Since(began).Round(time.Second))
	began = time.Now()
	f, _ := l.profile.Field("import_low")
	_, err := l.in.Many(t.Context(), p.readings(f), ingest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("their readings: %s", time.Since(began).Round(time.Second))
	if _, err := w.db.ExecContext(t.Context(), `ANALYZE`); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"from":"%s","to":"%s","purpose":"ENERGY_MANAGEMENT","fields":["import_low"],"meteringPoints":[`, p.day, p.day+1)
	for i := range p.eans {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q", p.eans[len(p.eans)-1-i].String()) // in any order
	}
	b.WriteByte(']')
	p.text = b.Bytes()
	return p
}

// value is the read of a metering point on the portfolio's day, and one later.
func (p *portfolio) value(i, day int) meter.Value { return meter.Value(1_000_000 + i*7 + day*5) }

// readings are of one register, on one day and the next.
func (p *portfolio) readings(f meter.Field) iter.Seq[ingest.Point] {
	return func(yield func(ingest.Point) bool) {
		for i, ean := range p.eans {
			point := ingest.Point{EAN: ean}
			for d := range 2 {
				point.Blocks = append(point.Blocks, ingest.FieldBlock{Field: f.Code, Block: meter.Block{
					Day: p.day + meter.Day(d), Resolution: meter.P1D, Start: meter.Null, Values: []meter.Value{p.value(i, d)},
				}})
			}
			if !yield(point) {
				return
			}
		}
	}
}

// facts seals and stores the metering points' legal files.
func (p *portfolio) facts(t *testing.T, key forger) {
	t.Helper()
	always := meter.DayRange{From: p.day - 60, To: meter.MaxDay}
	const chunk = 1000
	for from := 0; from < len(p.eans); from += chunk {
		var points, files, supply [][]any
		for _, ean := range p.eans[from:min(from+chunk, len(p.eans))] {
			points = append(points, []any{ean.Int64(), int(meter.Electricity)})
			supply = append(supply, []any{ean.Int64(), p.v.gln.Int64(), always.From.String()})
			var file *authz.LegalFile
			for v, step := range []authz.Step{authz.Register{EAN: ean, Commodity: meter.Electricity}, authz.SetOccupancy{Days: always}, authz.SetSupply{Supplier: p.v.gln, Days: always}} {
				at := time.Now().Add(time.Duration(v-10) * time.Hour)
				var err error
				if file, err = authz.Apply(file, step, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, at, p.profile.Location()); err != nil {
					t.Fatal(err)
				}
				files = append(files, []any{ean.Int64(), v + 1, sure(authz.Seal(file.Payload(), key)), at, "0"})
			}
		}
		// The last column: of before there was an audit log.
		p.copyIn(t, points, "metering_point", "ean", "commodity")
		p.copyIn(t, files, "legal_file", "ean", "version", "file", "sealed_at", "arrived")
		p.copyIn(t, supply, "supply_period", "ean", "gln", "from_day")
	}
}

func (w *world) copyIn(t *testing.T, rows [][]any, table string, columns ...string) {
	t.Helper()
	tx, err := w.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	st, err := tx.PrepareContext(t.Context(), "COPY "+table+" ("+strings.Join(columns, ", ")+") FROM STDIN")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if _, err := st.ExecContext(t.Context(), r...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := st.ExecContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(st.Close(), tx.Commit()); err != nil {
		t.Fatal(err)
	}
}

// reader reads a stream as its contract tells a supplier to: it stores each
// metering point together with the cursor after it, and goes on from there.
type reader struct {
	p    *portfolio
	http *http.Client
	each func() // after each metering point that is stored

	// What is stored.
	cursor   string
	sequence int
	chain    *client.Chain
	query    string
	parts    int // of which the stored cursor is
	given    map[string]map[int64]bool
	// What the last request was told.
	complete bool
	manifest string
	requests int
	part1    int // parts with the one under way
	id       string
}

func (p *portfolio) reader(t *testing.T) *reader {
	t.Helper()
	tr := &http.Transport{
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: p.roots, Certificates: []tls.Certificate{p.v.cert}},
		ForceAttemptHTTP2: true,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &reader{p: p, http: &http.Client{Transport: tr}, given: map[string]map[int64]bool{}}
}

// part makes one request and reads until it ends or breaks.
func (r *reader) part(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stalled := time.AfterFunc(time.Minute, cancel)
	defer stalled.Stop()
	token, err := r.p.v.cachedToken(ctx)
	if err != nil {
		return err
	}
	if err := r.p.reread(); err != nil { // a gateway may have come back at another address
		return err
	}
	body := append(bytes.Clone(r.p.text), '}')
	if r.cursor != "" {
		body = append(bytes.Clone(r.p.text), fmt.Sprintf(`,"cursor":%q}`, r.cursor)...)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.p.ready.GatewayURL+"/v1/readings/query", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/x-ndjson")
	r.requests++
	res, err := r.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		a, err := readAnswer(res)
		if err != nil {
			return err
		}
		if res.StatusCode < 500 {
			t.Fatalf("%d %s", res.StatusCode, a.body)
		}
		return fmt.Errorf("%d %s", res.StatusCode, a.slug())
	}
	lines := bufio.NewReaderSize(res.Body, 1<<20)
	var point []byte // read, and not stored yet
	for first := true; ; first = false {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("broke off: %w", err)
		}
		stalled.Reset(time.Minute)
		var l client.StreamLine
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if first != (l.Type == client.Begin) {
			t.Fatalf("out of order: %s", line)
		}
		switch l.Type {
		case client.Begin:
			r.begin(t, l)
		case client.Point:
			if point != nil {
				t.Fatalf("two metering points without progress between: %s", line)
			}
			r.look(t, l)
			point = line
		case client.Progress:
			if point == nil || *l.Sequence != r.sequence+1 || *l.Done != r.sequence+1 || *l.Total != len(r.p.eans) {
				t.Fatalf("progress after %d: %s", r.sequence, line)
			}
			r.chain.Add(point)
			r.given[r.id][r.p.eans[r.sequence].Int64()] = true
			r.sequence, r.cursor, r.parts, point = r.sequence+1, *l.Cursor, r.part1, nil
			r.each()
		case client.End:
			if point != nil || *l.Sequence != r.sequence {
				t.Fatalf("the end after %d: %s", r.sequence, line)
			}
			if *l.Complete {
				r.complete, r.manifest = true, *l.Manifest
				return nil
			}
			if p := l.Problem; p.RetryAfter == nil || *l.Cursor == "" || p.Status < 500 {
				t.Fatalf("an end that nobody can go on from: %s", line)
			}
			return fmt.Errorf("ended: %s", slug(string(l.Problem.Type)))
		}
	}
}

func (r *reader) begin(t *testing.T, l client.StreamLine) {
	t.Helper()
	r.id, r.part1 = l.InteractionId.String(), r.parts+1
	r.given[r.id] = map[int64]bool{}
	if r.query == "" {
		r.query = *l.Query
		r.chain = client.NewChain([32]byte(sure(base64.RawURLEncoding.DecodeString(*l.Query))))
	}
	if *l.Query != r.query || *l.Done != r.sequence || *l.Total != len(r.p.eans) {
		t.Fatalf("another query, or from another place: %+v", l)
	}
}

// look holds a metering point to what was ingested.
func (r *reader) look(t *testing.T, l client.StreamLine) {
	t.Helper()
	ean := r.p.eans[r.sequence]
	var got []string
	if l.Series != nil && len(*l.Series) == 1 {
		for _, d := range (*l.Series)[0].Days {
			for _, v := range d.Values {
				if v != nil {
					got = append(got, *v)
				}
			}
		}
	}
	want := fmt.Sprint([]string{string(meter.AppendValue(nil, r.p.value(r.sequence, 0), 3)), string(meter.AppendValue(nil, r.p.value(r.sequence, 1), 3))})
	if *l.Sequence != r.sequence+1 || *l.Ean != ean.String() || l.Problem != nil || fmt.Sprint(got) != want {
		t.Fatalf("number %d is not %s with %s: %+v", r.sequence+1, ean, want, l)
	}
}

// check holds the manifest to what was stored, and the access log to what was
// given.
func (r *reader) check(t *testing.T) {
	t.Helper()
	n := uint32(len(r.p.eans))
	// Whatever PostgreSQL's restart left of the connections.
	r.p.db.SetMaxIdleConns(0)
	r.p.db.SetMaxIdleConns(2)
	res, err := r.http.Get(r.p.ready.GatewayURL + "/v1/manifest-keys")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var keys client.JwkSet
	if err := json.NewDecoder(res.Body).Decode(&keys); err != nil {
		t.Fatal(err)
	}
	m, err := client.VerifyManifest(r.manifest, keys)
	if err != nil {
		t.Fatal(err)
	}
	if m.Points != n || m.Given != n || m.Partly+m.Withheld+m.Failed+m.LeftOut != 0 || m.Expected != 2*uint64(n) || m.Delivered != 2*uint64(n) ||
		m.Digest != r.chain.Digest() || base64.RawURLEncoding.EncodeToString(m.Query[:]) != r.query || m.Supplier != r.p.v.gln.String() ||
		m.Format != "ndjson" || m.Parts != uint32(r.part1) || m.InteractionID != r.id {
		t.Errorf("the manifest says %+v of %d metering points in %d parts, digest %x", m, n, r.part1, r.chain.Digest())
	}
	if bad := r.manifest[:len(r.manifest)-4] + "AAAA"; strings.HasSuffix(r.manifest, "AAAA") {
		t.Error("unlikely")
	} else if _, err := client.VerifyManifest(bad, keys); err == nil {
		t.Error("a manifest with another signature verifies")
	}
	given := 0
	for id, eans := range r.given {
		list := make([]int64, 0, len(eans))
		for ean := range eans {
			list = append(list, ean)
		}
		given += len(list)
		var rows, points int
		if err := r.p.db.QueryRowContext(t.Context(), `SELECT count(*), count(DISTINCT ean) FROM access_log WHERE interaction_id = $1 AND ean = ANY ($2) AND outcome = 1`, id, pq.Array(list)).Scan(&rows, &points); err != nil {
			t.Fatal(err)
		}
		if rows != len(list) || points != len(list) {
			t.Errorf("%d records of %d metering points for %d that were given", rows, points, len(list))
		}
	}
	if given != len(r.p.eans) || r.sequence != len(r.p.eans) {
		t.Errorf("%d and %d were given of %d", given, r.sequence, n)
	}
}
