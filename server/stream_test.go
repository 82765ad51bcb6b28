package server

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"kluis/cryptoserver/envelope"
	"kluis/meter"
	"kluis/openapi/client"
)

func testPlace(t testing.TB) place {
	return place{
		after: mustEAN(t, "871687140000000019"), counts: counts{given: 1, partly: 2, withheld: 3, failed: 4, leftOut: 5, expected: 6, delivered: 7},
		parts: 8, digest: testCursorKey(9),
	}
}

// goldenPlace is what is sealed in cursors that clients hold for days.
const goldenPlace = "0c18dad5def9e813" + "00000001" + "00000002" + "00000003" + "00000004" + "00000005" + "0000000000000006" + "0000000000000007" + "00000008" +
	"0909090909090909090909090909090909090909090909090909090909090909"

func TestPlace(t *testing.T) {
	t.Parallel()
	p := testPlace(t)
	if got := hex.EncodeToString(p.encode()); got != goldenPlace {
		t.Errorf("encoded %s, want %s", got, goldenPlace)
	}
	if p.sequence() != 10 {
		t.Errorf("sequence %d", p.sequence())
	}
	if got, err := parsePlace(p.encode()); err != nil || got != p {
		t.Errorf("%+v, %v", got, err)
	}
	begin := newPlace([32]byte{1})
	if got, err := parsePlace(begin.encode()); err != nil || got != begin || !got.after.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "short": p.encode()[1:], "long": append(p.encode(), 0),
		"no metering point": append([]byte{0, 0, 0, 0, 0, 0, 0, 1}, p.encode()[8:]...),
		"no part":           bytes.Replace(p.encode(), []byte{0, 0, 0, 8}, make([]byte, 4), 1),
	} {
		if got, err := parsePlace(bad); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzPlace(f *testing.F) {
	p := testPlace(f)
	f.Add(p.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePlace(b)
		if err == nil && !bytes.Equal(p.encode(), b) {
			t.Errorf("%x is read as %+v", b, p)
		}
	})
}

// The chain is the one that clients compute.
func TestPlaceChain(t *testing.T) {
	t.Parallel()
	query := sha256.Sum256([]byte("a query"))
	p, c := newPlace(query), client.NewChain(query)
	for _, line := range []string{"one\n", "", "two\r\nthree\r\n"} {
		p.chain([]byte(line))
		c.Add([]byte(line))
		if p.digest != c.Digest() {
			t.Fatalf("after %q: %x, a client has %x", line, p.digest, c.Digest())
		}
	}
}

// streamed serves one answer written by f, over both protocols.
func streamed(t *testing.T, f func(http.ResponseWriter), read func(*http.Response)) {
	t.Helper()
	for _, h2 := range []bool{false, true} {
		done := make(chan struct{})
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			defer close(done)
			f(w)
		}))
		srv.EnableHTTP2 = h2
		srv.StartTLS()
		res, err := srv.Client().Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		if (res.ProtoMajor == 2) != h2 {
			t.Fatalf("answered over %s", res.Proto)
		}
		read(res)
		res.Body.Close()
		<-done
		srv.Close()
	}
}

// What is sent arrives, is cleared, and is not kept back.
func TestSender(t *testing.T) {
	t.Parallel()
	const text = "871687140000000019 has read 12345.678\n"
	for _, packed := range []bool{false, true} {
		arrived := make(chan struct{})
		streamed(t, func(w http.ResponseWriter) {
			if packed {
				w.Header().Set("Content-Encoding", "gzip")
			}
			s := newSender(w, packed)
			b := []byte(text)
			if err := s.send(b); err != nil || bytes.Contains(b, []byte("8")) {
				t.Errorf("%v, left %q", err, b)
			}
			if err := s.flush(); err != nil {
				t.Error(err)
			}
			<-arrived // before anything else is sent
			long := bytes.Repeat([]byte(text), 10_000)
			if err := s.send(long); err != nil || bytes.Contains(long, []byte("8")) {
				t.Errorf("%v, or not cleared", err)
			}
			if err := s.close(); err != nil {
				t.Error(err)
			}
			if s.scrub(); bytes.ContainsFunc(s.packed[:cap(s.packed)], func(r rune) bool { return r != 0 }) {
				t.Error("what was packed is kept")
			}
		}, func(res *http.Response) {
			if res.Uncompressed != packed {
				t.Errorf("uncompressed: %v", res.Uncompressed)
			}
			r := bufio.NewReader(res.Body)
			if line, err := r.ReadString('\n'); err != nil || line != text {
				t.Errorf("%q, %v", line, err)
			}
			arrived <- struct{}{}
			rest, err := io.ReadAll(r)
			if err != nil || string(rest) != strings.Repeat(text, 10_000) {
				t.Errorf("%d bytes, %v", len(rest), err)
			}
		})
	}
}

// The length of what is packed tells little of it.
func TestSenderPads(t *testing.T) {
	t.Parallel()
	random := make([]byte, 5000)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	for name, b := range map[string][]byte{"zeros": make([]byte, 5000), "one": {1}, "random": random} {
		rec := httptest.NewRecorder()
		s := newSender(deadlines{rec}, true)
		for range 3 {
			before := rec.Body.Len()
			if err := s.send(bytes.Clone(b)); err != nil {
				t.Fatal(err)
			}
			if n := rec.Body.Len() - before; n%packStep >= len(emptyBlock) {
				t.Errorf("%s: %d bytes", name, n)
			}
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(rec.Body)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, bytes.Repeat(b, 3)) {
			t.Errorf("%s: unpacked %d bytes, %v", name, len(got), err)
		}
	}
}

// deadlines lets a recorder be written to.
type deadlines struct{ *httptest.ResponseRecorder }

func (deadlines) SetWriteDeadline(time.Time) error { return nil }
func (deadlines) FlushError() error                { return nil }

// Who does not read is cut off, and holds nothing any longer.
func TestSenderStalled(t *testing.T) {
	t.Parallel()
	for _, packed := range []bool{false, true} {
		stopped := make(chan error, 1)
		streamed(t, func(w http.ResponseWriter) {
			s := newSender(w, packed)
			s.left, s.most = 300*time.Millisecond, 300*time.Millisecond
			b := make([]byte, sendPiece)
			for i := range b {
				b[i] = byte(rand.Uint32())
			}
			for {
				if err := s.send(bytes.Clone(b)); err != nil {
					if again := s.send([]byte("more")); again == nil || s.flush() == nil {
						t.Error("it was written to after it broke")
					}
					s.scrub()
					stopped <- err
					return
				}
			}
		}, func(*http.Response) {
			if err := <-stopped; err == nil {
				t.Error("no error")
			}
		})
	}
}

// A reader that reads, if too slowly, has as long as it may stand still.
func TestSenderSlow(t *testing.T) {
	t.Parallel()
	s := newSender(&slowWriter{perByte: time.Second / (slowest / 2)}, false)
	s.left, s.most = 200*time.Millisecond, 200*time.Millisecond
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		err = s.send(make([]byte, 1<<10))
	}
	if !errors.Is(err, errSlow) && !errors.Is(err, os.ErrDeadlineExceeded) || n < 2 {
		t.Errorf("%v after %d writes", err, n)
	}
	// One that reads faster than it must is never cut off.
	s = newSender(&slowWriter{perByte: time.Second / (slowest * 4)}, false)
	s.left, s.most = 200*time.Millisecond, 200*time.Millisecond
	for range 20 {
		if err := s.send(make([]byte, 1<<10)); err != nil {
			t.Fatal(err)
		}
	}
}

// slowWriter takes its time, and heeds its deadline.
type slowWriter struct {
	deadlines
	perByte time.Duration
	until   time.Time
}

func (w *slowWriter) Header() http.Header { return http.Header{} }
func (w *slowWriter) WriteHeader(int)     {}
func (w *slowWriter) SetWriteDeadline(t time.Time) error {
	w.until = t
	return nil
}

func (w *slowWriter) Write(b []byte) (int, error) {
	time.Sleep(time.Duration(len(b)) * w.perByte)
	if time.Now().After(w.until) {
		return 0, os.ErrDeadlineExceeded
	}
	return len(b), nil
}

func TestAcceptsGzip(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]bool{
		"": false, "gzip": true, "GZIP": true, "x-gzip": true, "identity": false, "*": true, "br, gzip;q=0.1": true, "gzip;q=0": false, "*;q=0": false,
		"gzip;q=0, *": false, "*;q=0, gzip": true, "gzip;q=x": false, "deflate, br": false, ",,": false, "gzip; q=1.0": true,
	} {
		if got := acceptsGzip(http.Header{"Accept-Encoding": {header}}); got != want {
			t.Errorf("%q: %v", header, got)
		}
	}
	if acceptsGzip(http.Header{}) || !acceptsGzip(http.Header{"Accept-Encoding": {"br", "gzip"}}) {
		t.Error("without a header, or with two")
	}
}

// Batches grow, and stay within what one call may have.
func TestBatchSizes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		days, intervals int
		want            []int
	}{
		"a read":               {2, 0, []int{8, 32, 128, 256, 256}},
		"a month of registers": {4 * 32, 0, []int{8, 32, 128, 140, 140}},
		"quarter-hours":        {2 * 32, 2 * 32, []int{8, 32, 50, 50, 50}},
		"a year of everything": {15 * 367, 4 * 367, []int{2, 2, 2, 2, 2}},
		"more than there is":   {40_000, 40_000, []int{1, 1, 1, 1, 1}},
	} {
		q := &querying{days: c.days, intervals: c.intervals}
		n := 0
		for i, want := range c.want {
			if n = q.size(n, maxBatch); n != want {
				t.Errorf("%s: batch %d has %d, want %d", name, i+1, n, want)
			}
			if n > manyPoints || n > 1 && n*c.days > manyBlocks {
				t.Errorf("%s: too many at once", name)
			}
		}
	}
}

func TestTogether(t *testing.T) {
	t.Parallel()
	unit := func(file, keys, blocks, ciphertext int) OpenUnit {
		u := OpenUnit{LegalFile: make([]byte, file)}
		u.Keys = make([]envelope.KeyRecord, keys)
		for range blocks {
			u.Blocks = append(u.Blocks, envelope.SealedBlock{Ciphertext: make([]byte, ciphertext)})
		}
		return u
	}
	small, large, keyed := unit(1000, 2, 8, 100), unit(1000, 2, 8, 1<<20), unit(10, 2000, 1, 10)
	for name, c := range map[string]struct {
		units []OpenUnit
		want  int
	}{
		"none": {nil, 0}, "one": {[]OpenUnit{small}, 1}, "two": {[]OpenUnit{small, small}, 2},
		"one too large": {[]OpenUnit{unit(1, 1, 20, 1<<20), small}, 1}, "the second too large": {[]OpenUnit{large, large, small}, 1},
		"keys": {[]OpenUnit{keyed, keyed, keyed}, 1},
	} {
		if got := together(c.units); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// Every format says the same of the same place.
func TestLines(t *testing.T) {
	t.Parallel()
	f := &failure{kind: databaseUnavailable}
	a := &answer{query: query{ean: mustEAN(t, "871687140000000019")}, profile: dutch(t)}
	line := jsonLines{}.problem(nil, a, 3, f)
	if got := string(line); !strings.HasPrefix(got, `{"type":"point","sequence":3,"ean":"871687140000000019","problem":{`) || !strings.Contains(got, `"retryAfter":2`) || !strings.HasSuffix(got, "}}\n") {
		t.Errorf("%s", got)
	}
	row := string(csvLines{}.problem(nil, a, 3, f))
	if row != "problem,871687140000000019,,,,,,,,,,,,,database-unavailable,,,3,,\r\n" {
		t.Errorf("%s", row)
	}
}

// The room that is taken for a query is enough for the batches and the line that
// are there at once, in every format.
func TestQueryMemory(t *testing.T) {
	t.Parallel()
	profile := dutch(t)
	s := &Server{profile: profile}
	day := mustDay(t, "2026-01-01")
	for name, body := range map[string]string{
		"a read":             inBody("to", `"2026-03-02"`, "fields", `["import_low"]`),
		"a month of reads":   inBody("class", `"registers"`),
		"a day of intervals": inBody("to", `"2026-03-02"`, "class", `"intervals"`),
		"a month of them":    inBody("class", `"intervals"`),
		"a year of all":      inBody("from", `"2025-03-01"`, "to", `"2026-03-01"`),
	} {
		asked, faults, err := parseManyQuery(strings.NewReader(body), profile, queryNow)
		if err != nil || len(faults) > 0 {
			t.Fatal(name, faults, err)
		}
		for _, media := range []string{mediaJSON, mediaNDJSON, mediaCSV} {
			q := &querying{s: s, c: &call{media: media}, asked: &asked}
			q.cost()
			request := asked.request(meter.Electricity, profile)
			a := answer{query: asked.query, profile: profile}
			values := 0
			for _, code := range request.Fields {
				f, _ := profile.FieldByCode(code)
				series := meter.Series{Field: code, Kind: meter.Consumption, Resolution: meter.P1D, Basis: meter.SupplyPeriodic, Rule: "supplier-own-period"}
				n, days := 1, request.Days.Len()+1 // a closing read
				if f.Class == meter.Intervals {
					n, days = 96, days-1
				}
				for i := range days {
					d := meter.SeriesDay{Day: day + meter.Day(i), Values: make([]meter.Value, n), Quality: make([]meter.Quality, n)}
					d.Quality[0] = meter.Estimated
					values += n*int(unsafe.Sizeof(meter.Value(0))+unsafe.Sizeof(meter.Quality(0))) + int(unsafe.Sizeof(d))
					series.Days = append(series.Days, d)
				}
				a.series = append(a.series, series)
			}
			points := q.size(maxBatch, maxBatch)
			line := q.c.lines().size(&a)
			for batches := 1; batches <= batchesAtOnce; batches++ {
				if got, want := q.memory(batches, maxBatch), int64(batches*points*values+line); got < want || got > 4*want+4<<20 || got > roomEach {
					t.Errorf("%s, %s: room of %d for %d batches of %d, which take %d and the line %d", name, media, got, batches, points, values*points, line)
				}
			}
		}
	}
}
