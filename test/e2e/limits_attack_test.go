package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"kluis/internal/config"
	"kluis/internal/devpki"
	"kluis/internal/testing/long"
)

// besieged is a gateway of the test's own, with narrow limits, and a supplier
// that goes on reading while others do what they like.
type besieged struct {
	*sidecar
	w *world
	c *caller
}

func besiege(t *testing.T, edit func(*config.Limits)) *besieged {
	t.Helper()
	w := sharedWorld(t)
	s := w.sidecar(t, func(g *config.Gateway, _ *sidecar) {
		g.Limits.Connections, g.Limits.ConnectionsEach, g.Limits.Handshakes = 300, 100, 100
		if edit != nil {
			edit(&g.Limits)
		}
	})
	return &besieged{s, w, w.supplier(t, 0).at(t, s.url)}
}

// memory is what of the gateway is in memory, in bytes.
func (b *besieged) memory(t *testing.T) float64 {
	t.Helper()
	return scrape(t, b.metrics).sum(`^process_resident_memory_bytes`)
}

// holds checks that the gateway answers a new caller, and that its memory grew
// by less than more.
func (b *besieged) holds(t *testing.T, before, more float64) {
	t.Helper()
	conn := b.dial(t, b.c.cert, "http/1.1")
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /v1/metering-points HTTP/1.1\r\nHost: kluis\r\nAuthorization: Bearer "+b.c.accessToken(t)+"\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("in the siege, a supplier is answered %s", res.Status)
	}
	after := b.memory(t)
	t.Logf("memory %.0f MB before, %.0f MB after", before/1e6, after/1e6)
	if !raceEnabled && after-before > more {
		t.Errorf("memory grew by %.0f MB", (after-before)/1e6)
	}
}

func (b *besieged) dial(t *testing.T, cert tls.Certificate, proto string) *tls.Conn {
	t.Helper()
	c, err := b.tryDial(cert, proto, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (b *besieged) tryDial(cert tls.Certificate, proto string, sessions tls.ClientSessionCache) (*tls.Conn, error) {
	d := &net.Dialer{Timeout: 20 * time.Second}
	c, err := tls.DialWithDialer(d, "tcp", strings.TrimPrefix(b.url, "https://"), &tls.Config{
		RootCAs: b.w.roots, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{proto}, ClientSessionCache: sessions,
	})
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(time.Minute))
}

// filesFor skips a test that needs more open files than there may be.
func filesFor(t *testing.T, n uint64) {
	t.Helper()
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		t.Fatal(err)
	}
	if r.Cur < n {
		t.Skipf("this process may have %d files open (ulimit -n), the test needs %d", r.Cur, n)
	}
}

// TestTenThousandConnections: each of them asked something, and none goes. The
// gateway keeps as many as it may, closes the longest idle, and serves.
func TestTenThousandConnections(t *testing.T) {
	long.Test(t)
	const many = 10_000
	filesFor(t, many+500)
	b := besiege(t, nil)
	certs := make([]tls.Certificate, 8)
	for i := range certs {
		certs[i] = b.w.pair(t, devpki.Leaf{CommonName: fmt.Sprintf("nobody %d", i)})
	}
	before := b.memory(t)
	var mu sync.Mutex
	var conns []net.Conn
	var answered, next atomic.Int64
	var wg sync.WaitGroup
	for i := range len(certs) {
		wg.Go(func() {
			sessions := tls.NewLRUClientSessionCache(1)
			for next.Add(1) <= many {
				c, err := b.tryDial(certs[i], "http/1.1", sessions)
				if err != nil {
					continue // closed to make way for another
				}
				mu.Lock()
				conns = append(conns, c)
				mu.Unlock()
				if _, err := io.WriteString(c, "GET /v1/status HTTP/1.1\r\nHost: kluis\r\n\r\n"); err != nil {
					continue
				}
				res, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil {
					continue
				}
				if res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusTooManyRequests {
					answered.Add(1)
				}
				_, _ = io.Copy(io.Discard, res.Body)
			}
		})
	}
	wg.Wait()
	defer func() {
		for _, c := range conns {
			_ = c.(*tls.Conn).NetConn().Close()
		}
	}()
	if answered.Load() < many*9/10 {
		t.Errorf("%d of %d were answered", answered.Load(), many)
	}
	b.holds(t, before, 100e6)
	closed := scrape(t, b.metrics).sum(`^kluis_gateway_connections_closed_total`)
	if closed < many-300-100 {
		t.Errorf("%.0f connections were closed", closed)
	}
	// One certificate has its share, and all of them together theirs.
	open := 0
	for _, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, errTimeout(err)) {
			open++
		}
	}
	if open > 300 {
		t.Errorf("%d are still open", open)
	}
}

// errTimeout is err if it is that of a deadline, else nobody's.
func errTimeout(err error) error {
	var n net.Error
	if errors.As(err, &n) && n.Timeout() {
		return err
	}
	return errors.New("another")
}

// TestHandshakesThatDoNotEnd: thousands of connections that say nothing, or half
// of a ClientHello, do not keep others out.
func TestHandshakesThatDoNotEnd(t *testing.T) {
	long.Test(t)
	const many = 3000
	filesFor(t, many+500)
	b := besiege(t, nil)
	before := b.memory(t)
	for i := range many {
		c, err := net.Dial("tcp", strings.TrimPrefix(b.url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 {
			_, _ = io.WriteString(c, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
		}
	}
	b.holds(t, before, 60e6)
	if n := scrape(t, b.metrics).sum(`^kluis_gateway_connections_closed_total{why="handshake"}`); n < many-100-100 {
		t.Errorf("%.0f handshakes were closed", n)
	}
}

// TestOneSupplierDoesNotTakeAllConnections: with requests under way on each.
func TestOneSupplierDoesNotTakeAllConnections(t *testing.T) {
	b := besiege(t, func(l *config.Limits) { l.ConnectionsEach = 20 })
	greedy := b.w.supplier(t, 1).cert
	before := b.memory(t)
	var conns []*tls.Conn
	for range 60 {
		c, err := b.tryDial(greedy, "http/1.1", nil)
		if err != nil {
			continue
		}
		defer c.Close()
		// A body that does not come: the request is under way.
		_, _ = io.WriteString(c, "POST /v1/readings/query HTTP/1.1\r\nHost: kluis\r\nContent-Type: application/json\r\nContent-Length: 100\r\nAuthorization: Bearer "+b.w.supplier(t, 1).accessToken(t)+"\r\n\r\n{")
		conns = append(conns, c)
	}
	b.holds(t, before, 60e6)
	refused := 0
	for _, c := range conns {
		// In TLS 1.3 the client is done before it is refused.
		if _, err := c.Read(make([]byte, 1)); err != nil {
			refused++
		}
	}
	if refused < 30 {
		t.Errorf("%d of 60 connections were refused or closed, of 20 that there may be", refused)
	}
}

// TestSlowBodies: a body that does not come within the time there is for it, or
// comes without end, is answered or cut off, and the connection closed.
func TestSlowBodies(t *testing.T) {
	long.Test(t)
	t.Parallel()
	w := sharedWorld(t)
	c := w.supplier(t, 0)
	auth := "Host: kluis\r\nContent-Type: application/json\r\nAuthorization: Bearer " + c.accessToken(t) + "\r\n"
	for path, name := range map[string]string{"/v1/readings/query": "a query", "/v1/consents": "a consent"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := w.rawConn(t, c)
			defer conn.Close()
			head := "POST " + path + " HTTP/1.1\r\n" + auth
			if path == "/v1/consents" {
				head += "Idempotency-Key: slow\r\n"
			}
			if _, err := io.WriteString(conn, head+"Content-Length: 1000\r\n\r\n{"); err != nil {
				t.Fatal(err)
			}
			answer := make(chan answer, 1)
			go func() {
				defer close(answer)
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
					return // closed, as a client is that has gone
				}
				if err != nil {
					t.Error(err)
					return
				}
				defer res.Body.Close()
				a, err := readAnswer(res)
				if err != nil {
					t.Error(err)
				}
				answer <- a
			}()
			for range 300 {
				select {
				case a, answered := <-answer:
					if answered && (a.slug() != "invalid-parameters" || a.Errors == nil || (*a.Errors)[0].Pointer != "/body") {
						t.Errorf("%d %s", a.status, a.body)
					}
					return
				case <-time.After(100 * time.Millisecond):
					_, _ = io.WriteString(conn, " ")
				}
			}
			t.Error("it was left waiting")
		})
	}
}

func (w *world) rawConn(t *testing.T, c *caller) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", host(t, c.gateway), &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c.cert}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestBodiesOfAGigabyte, declared or not: refused before they are read.
func TestBodiesOfAGigabyte(t *testing.T) {
	long.Test(t)
	b := besiege(t, nil)
	before := b.memory(t)
	token := b.c.accessToken(t)
	for _, target := range []string{"GET /v1/status", "POST /v1/readings/query", "POST /v1/consents", "POST /v1/consents/7c9e6679-7425-40de-944b-e07fc1f90ae7/reject", "POST /v1/nothing"} {
		for name, length := range map[string]string{"declared": "Content-Length: 1000000000\r\n", "chunked": "Transfer-Encoding: chunked\r\n"} {
			conn := b.dial(t, b.c.cert, "http/1.1")
			sent := make(chan int, 1)
			go func() {
				head := target + " HTTP/1.1\r\nHost: kluis\r\nContent-Type: application/json\r\nIdempotency-Key: large\r\nAuthorization: Bearer " + token + "\r\n" + length + "\r\n"
				n, err := io.WriteString(conn, head)
				chunk := bytes.Repeat([]byte(" "), 1<<20)
				if name == "chunked" {
					chunk = append([]byte("100000\r\n"), append(chunk, "\r\n"...)...)
				}
				for err == nil && n < 1e9 {
					var k int
					k, err = conn.Write(chunk)
					n += k
				}
				sent <- n
			}()
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatalf("%s, %s: %v", target, name, err)
			}
			a, err := readAnswer(res)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			want := "content-too-large"
			if strings.HasSuffix(target, "nothing") {
				want = "not-found"
			}
			if a.slug() != want {
				t.Errorf("%s, %s: %d %s", target, name, a.status, a.body)
			}
			_ = conn.NetConn().Close()
			if n := <-sent; n > 100e6 {
				t.Errorf("%s, %s: %d bytes went through", target, name, n)
			}
		}
	}
	b.holds(t, before, 60e6)
}

// TestDeepJSON at every operation that has a body.
func TestDeepJSON(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c := w.supplier(t, 0)
	token := c.accessToken(t)
	const id = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
	for _, path := range []string{"/v1/readings/query", "/v1/consents", "/v1/consents/" + id + "/grant"} {
		for name, body := range map[string]string{
			"lists":             strings.Repeat("[", 4000) + strings.Repeat("]", 4000),
			"objects":           strings.Repeat(`{"a":`, 1300) + "1" + strings.Repeat("}", 1300),
			"lists in a member": `{"purpose":` + strings.Repeat("[", 3900) + strings.Repeat("]", 3900) + "}",
			"no end":            strings.Repeat("[", 8000),
			"a long number":     `{"limit":` + strings.Repeat("9", 8000) + "}",
			"a long name":       `{"` + strings.Repeat("a", 8000) + `":1}`,
			"many members":      "{" + strings.Repeat(`"a":1,`, 1300) + `"a":1}`,
			"nothing":           "",
			"a text":            `"a"`,
		} {
			a := raw(t, c, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: kluis\r\nContent-Type: application/json\r\nIdempotency-Key: deep\r\nIf-Match: \"x\"\r\nAuthorization: Bearer %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", path, token, len(body), body))
			// To grant is not for suppliers, whatever they send.
			if a.slug() != "invalid-parameters" && a.slug() != "content-too-large" && !(a.slug() == "not-permitted" && strings.HasSuffix(path, "/grant")) {
				t.Errorf("%s, %s: %d %.200s", path, name, a.status, a.body)
			}
		}
		for _, media := range []string{"", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", "multipart/form-data; boundary=x", "application/json, text/plain"} {
			head := "POST " + path + " HTTP/1.1\r\nHost: kluis\r\nIdempotency-Key: media\r\nIf-Match: \"x\"\r\nAuthorization: Bearer " + token + "\r\nConnection: close\r\nContent-Length: 2\r\n"
			if media != "" {
				head += "Content-Type: " + media + "\r\n"
			}
			if a := raw(t, c, head+"\r\n{}"); a.slug() != "unsupported-media-type" && !(a.slug() == "not-permitted" && strings.HasSuffix(path, "/grant")) {
				t.Errorf("%s, %q: %d %.200s", path, media, a.status, a.body)
			}
		}
	}
	if a := raw(t, c, "POST /v1/consents HTTP/1.1\r\nHost: kluis\r\nIdempotency-Key: media\r\nContent-Encoding: gzip\r\nContent-Type: application/json\r\nAuthorization: Bearer "+token+"\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"); a.slug() != "unsupported-media-type" {
		t.Errorf("%d %s", a.status, a.body)
	}
	// Parameters, more than anybody has use for, within the header's limit.
	a := raw(t, c, "GET /v1/status?"+strings.Repeat("a=1&", 3000)+"b HTTP/1.1\r\nHost: kluis\r\nAuthorization: Bearer "+token+"\r\nConnection: close\r\n\r\n")
	if a.slug() != "invalid-parameters" || len(a.body) > 2000 {
		t.Errorf("%d, %d bytes", a.status, len(a.body))
	}
}

// TestHalfClosed: who ends its own side after a request is either answered or
// cut off, and never given an empty answer for a whole one.
func TestHalfClosed(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c := w.supplier(t, 0)
	for range 5 {
		conn := w.rawConn(t, c)
		if _, err := io.WriteString(conn, "GET /v1/metering-points HTTP/1.1\r\nHost: kluis\r\nAuthorization: Bearer "+c.accessToken(t)+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 0 && !bytes.HasSuffix(b, []byte("}\n")) {
			t.Errorf("an answer that is none: %.300s", b)
		}
		_ = conn.Close()
	}
}

// TestPipelining: answers come in the order of the requests, each whole.
func TestPipelining(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	c := w.supplier(t, 0)
	conn := w.rawConn(t, c)
	defer conn.Close()
	auth := " HTTP/1.1\r\nHost: kluis\r\nAuthorization: Bearer " + c.accessToken(t) + "\r\n\r\n"
	const n = 60
	go func() {
		for i := range n {
			path := "/v1/status"
			if i%3 == 1 {
				path = "/v1/nothing"
			}
			_, _ = io.WriteString(conn, "GET "+path+auth)
		}
	}()
	in := bufio.NewReader(conn)
	for i := range n {
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		a, err := readAnswer(res)
		if err = errors.Join(err, res.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if want := map[bool]int{true: 404, false: 200}[i%3 == 1]; a.status != want && a.status != 429 {
			t.Errorf("answer %d: %d", i, a.status)
		}
	}
}

// TestSlowReaders: who asks for much and reads nothing holds no more memory than
// its room, and nobody else up.
func TestSlowReaders(t *testing.T) {
	long.Test(t)
	b := besiege(t, nil)
	greedy := b.w.supplier(t, 1)
	point := b.w.point(t, func(p readyPoint) bool { return supplies(p, greedy.clientID) }).EAN
	token := greedy.accessToken(t)
	before := b.memory(t)
	for range 80 {
		c, err := b.tryDial(greedy.cert, "http/1.1", nil)
		if err != nil {
			continue
		}
		defer c.Close()
		if tc, ok := c.NetConn().(*net.TCPConn); ok {
			_ = tc.SetReadBuffer(4 << 10)
		}
		_, _ = io.WriteString(c, "GET "+readingsPath(point, "2025-06-01", "2026-06-01", "BILLING")+" HTTP/1.1\r\nHost: kluis\r\nAuthorization: Bearer "+token+"\r\n\r\n")
	}
	b.holds(t, before, 120e6)
}

// frames is a client of HTTP/2 that writes what it likes.
type frames struct {
	*http2.Framer
	conn *tls.Conn
	head bytes.Buffer
	enc  *hpack.Encoder
}

func (b *besieged) frames(t *testing.T, cert tls.Certificate) *frames {
	t.Helper()
	conn := b.dial(t, cert, "h2")
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := &frames{Framer: http2.NewFramer(conn, conn), conn: conn}
	f.enc = hpack.NewEncoder(&f.head)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f
}

// flood writes until the server closes, or n were written; what comes back is
// read, or not.
func (f *frames) flood(ctx context.Context, n int, read bool, write func(i int) error) (written int, ended error) {
	done := make(chan error, 1)
	if read {
		go func() {
			_, err := io.Copy(io.Discard, f.conn)
			done <- err
		}()
	}
	for i := range n {
		select {
		case err := <-done:
			return i, fmt.Errorf("closed: %w", errors.Join(err, io.EOF))
		case <-ctx.Done():
			return i, ctx.Err()
		default:
		}
		if err := write(i); err != nil {
			return i, err
		}
	}
	return n, nil
}

// TestHTTP2Floods: resets right after requests, pings, settings and empty frames
// by the hundred thousand.
func TestHTTP2Floods(t *testing.T) {
	long.Test(t)
	b := besiege(t, nil)
	cert := b.w.supplier(t, 1).cert
	token := b.w.supplier(t, 1).accessToken(t)
	before := b.memory(t)
	open := func(f *frames, i int, end bool) error {
		f.head.Reset()
		for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "kluis"}, {":path", "/v1/readings/query"}, {"content-type", "application/json"}, {"authorization", "Bearer " + token}} {
			if err := f.enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
				return err
			}
		}
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: f.head.Bytes(), EndHeaders: true, EndStream: end})
	}
	for name, tc := range map[string]struct {
		read  bool
		write func(f *frames) func(i int) error
	}{
		"rapid resets": {true, func(f *frames) func(int) error {
			return func(i int) error {
				return errors.Join(open(f, i, false), f.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel))
			}
		}},
		"pings, answers not read": {false, func(f *frames) func(int) error {
			return func(i int) error {
				var d [8]byte
				binary.BigEndian.PutUint64(d[:], uint64(i))
				return f.WritePing(false, d)
			}
		}},
		"settings, answers not read": {false, func(f *frames) func(int) error {
			return func(int) error { return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}) }
		}},
		"empty data": {true, func(f *frames) func(int) error {
			return func(i int) error {
				if i == 0 {
					return open(f, 0, false)
				}
				return f.WriteData(1, false, nil)
			}
		}},
		"headers without end": {true, func(f *frames) func(int) error {
			return func(i int) error {
				if i == 0 {
					return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
				}
				return f.WriteContinuation(1, false, []byte("\x00\x01a\x01b"))
			}
		}},
		"more streams than there may be": {true, func(f *frames) func(int) error {
			return func(i int) error { return open(f, i, false) }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := b.frames(t, cert)
			defer f.conn.NetConn().Close()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if !tc.read {
				// What is not read fills the sockets, then the server's queue.
				_ = f.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
			}
			n, err := f.flood(ctx, 200_000, tc.read, tc.write(f))
			t.Logf("%d frames, then %v", n, err)
		})
		b.holds(t, before, 100e6)
	}
}
