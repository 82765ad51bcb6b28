package web

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"kluis/internal/connlimit"
	"kluis/internal/testing/long"
)

// besieged is a portal with narrow limits. Who attacks it does so from 127.0.0.2
// and 127.0.0.3, employees are at 127.0.0.1.
func besieged(t *testing.T, change ...func(*Config)) *office {
	t.Helper()
	return newOffice(t, append(change, func(c *Config) { c.Connections = connlimit.Limits{All: 20, Each: 12, Handshakes: 8} })...)
}

// dial connects from an attacker's address, without TLS.
func (o *office) dial(n int) net.Conn {
	o.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+n%2))}, Timeout: time.Minute}
	c, err := d.Dial("tcp", o.portal.host)
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		o.t.Fatal(err)
	}
	return c
}

// dialTLS says what there is to say, and fails where the portal refuses.
func (o *office) dialTLS(n int, proto, say string) (*tls.Conn, error) {
	c := tls.Client(o.dial(n), &tls.Config{RootCAs: o.roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13, NextProtos: []string{proto}})
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	_, err := io.WriteString(c, say)
	return c, err
}

func (o *office) closed(why string) int {
	var m dto.Metric
	if err := o.portal.metrics.closed.WithLabelValues(why).Write(&m); err != nil {
		panic(err)
	}
	return int(m.GetCounter().GetValue())
}

// eventually waits for what the portal counts after its client has gone on.
func (o *office) eventually(what string, ok func() bool) {
	o.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			o.t.Errorf("never: %s", what)
			return
		}
	}
}

// holdsOut: an employee who is there goes on, and a new one gets in.
func (o *office) holdsOut(there *browser) {
	o.t.Helper()
	if !there.signedIn() {
		o.t.Error("who was there is signed out")
	}
	if !o.signIn("joris").signedIn() {
		o.t.Error("nobody gets in")
	}
}

// TestConnectionsThatStay: the ones that are idle for longest make way, and so do
// those with half of a request.
func TestConnectionsThatStay(t *testing.T) {
	t.Parallel()
	o := besieged(t)
	head := "GET /signin HTTP/1.1\r\nHost: " + o.portal.host + "\r\n"
	eva := o.signIn("eva")
	for name, say := range map[string]string{
		"nothing asked": "", "half of a line": "GE", "half of a header": head + "Accept: ", "an answer": head + "\r\n",
		"half of a form": "POST /preferences HTTP/1.1\r\nHost: " + o.portal.host + "\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\nlang",
	} {
		before := o.closed(connlimit.Idle) + o.closed(closedAddress)
		for i := range 30 {
			// Who is closed to make way for the next may hear of it at once.
			if _, err := o.dialTLS(i, "http/1.1", say); err != nil && o.closed(connlimit.Refused) > 0 {
				t.Fatalf("%s: connection %d: %v", name, i, err)
			}
		}
		o.holdsOut(eva)
		o.eventually(name+": others make way", func() bool { return o.closed(connlimit.Idle)+o.closed(closedAddress)-before >= 10 })
	}
	if n := o.closed(connlimit.Refused); n != 0 {
		t.Errorf("%d were refused", n)
	}
}

// TestOneAddressHasItsShare: it closes its own, and nobody else's.
func TestOneAddressHasItsShare(t *testing.T) {
	t.Parallel()
	o := besieged(t)
	eva := o.signIn("eva")
	for range 30 {
		if _, err := o.dialTLS(0, "http/1.1", ""); err != nil {
			t.Fatal(err)
		}
	}
	o.eventually("its own make way", func() bool { return o.closed(closedAddress) == 30-12 })
	o.holdsOut(eva)
	if n := o.closed(connlimit.Idle); n != 0 {
		t.Errorf("%d of others made way", n)
	}
}

// TestHandshakesThatDoNotEnd do not keep others out.
func TestHandshakesThatDoNotEnd(t *testing.T) {
	t.Parallel()
	o := besieged(t)
	eva := o.signIn("eva")
	for i := range 100 {
		if c := o.dial(i); i%2 == 0 {
			_, _ = io.WriteString(c, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
		}
	}
	o.holdsOut(eva)
	if n := o.closed(connlimit.Handshake); n < 100-8 {
		t.Errorf("%d made way", n)
	}
}

// slow has cases wait until they may be stored.
type slow struct {
	Store
	waits, goOn chan struct{}
}

func (s *slow) AddCase(ctx context.Context, session, id, data []byte) error {
	s.waits <- struct{}{}
	<-s.goOn
	return s.Store.AddCase(ctx, session, id, data)
}

// TestWhoSignedInStays: the connection of an employee's request makes way for
// nobody.
func TestWhoSignedInStays(t *testing.T) {
	t.Parallel()
	s := &slow{waits: make(chan struct{}), goOn: make(chan struct{})}
	o := besieged(t, func(c *Config) { s.Store, c.Store = c.Store, s })
	eva := o.signIn("eva")
	opened := make(chan page)
	go func() {
		defer close(opened) // without an answer, if the connection is closed
		opened <- eva.post("/open", url.Values{"ean": {ean}, "reason": {"ticket-4711"}})
	}()
	<-s.waits
	for i := range 40 {
		_, _ = o.dialTLS(i, "http/1.1", "GE")
	}
	joris := o.signIn("joris") // many times as many as there may be have come meanwhile
	close(s.goOn)
	if p, ok := <-opened; !ok || p.StatusCode != http.StatusSeeOther {
		t.Error("a request under way was not answered")
	}
	if !joris.signedIn() {
		t.Error("nobody gets in")
	}
	o.eventually("others make way", func() bool { return o.closed(connlimit.Idle)+o.closed(closedAddress) >= 20 })
}

// counting counts what is asked of the sessions' tables.
type counting struct {
	Store
	asked atomic.Int64
}

func (c *counting) Session(ctx context.Context, id []byte, now time.Time) ([]byte, error) {
	c.asked.Add(1)
	return c.Store.Session(ctx, id, now)
}

func (c *counting) TouchSession(ctx context.Context, id, data []byte, expires time.Time) error {
	c.asked.Add(1)
	return c.Store.TouchSession(ctx, id, data, expires)
}

func (c *counting) EndSession(ctx context.Context, id []byte) error {
	c.asked.Add(1)
	return c.Store.EndSession(ctx, id)
}

func (c *counting) EndSessions(ctx context.Context, subject []byte) error {
	c.asked.Add(1)
	return c.Store.EndSessions(ctx, subject)
}

func (c *counting) Case(ctx context.Context, session, id []byte) ([]byte, error) {
	c.asked.Add(1)
	return c.Store.Case(ctx, session, id)
}

func (c *counting) Cases(ctx context.Context, session []byte, each func(id, data []byte)) error {
	c.asked.Add(1)
	return c.Store.Cases(ctx, session, each)
}

// TestCookiesThatAreMadeUp are told without asking the database, at every page, and
// so are those of a day before.
func TestCookiesThatAreMadeUp(t *testing.T) {
	t.Parallel()
	c := &counting{}
	o := newOffice(t, func(config *Config) { c.Store, config.Store = config.Store, c })
	eva := o.signIn("eva")
	c.asked.Store(0)
	if !eva.signedIn() || c.asked.Load() == 0 {
		t.Fatal("a session is found without the database: the test counts nothing")
	}
	genuine := eva.cookie()
	parts := strings.Split(genuine, ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	random := func() string {
		a, b := secret(), secret()
		return base64.RawURLEncoding.EncodeToString(append(a[:], b[:]...))
	}
	other := *o.portal
	other.config.SessionKey = [32]byte{2}
	later := strconv.FormatInt(must(strconv.ParseInt(parts[1], 10, 64))+3600, 10)
	madeUp := map[string]string{
		"as scs makes them":      random(),
		"without its MAC":        parts[0],
		"without its bytes":      parts[0] + "." + parts[1] + ".",
		"half of a MAC":          genuine[:len(genuine)-22],
		"a random one":           random() + "." + parts[1] + "." + random(),
		"another token":          random() + "." + parts[1] + "." + parts[2],
		"for longer":             parts[0] + "." + later + "." + parts[2],
		"of another key":         other.cookieOf(parts[0], o.now().Add(time.Hour)),
		"under the key for data": parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(derived(o.portal.config.SessionKey, "seal")),
		"its own, ended":         o.portal.cookieOf(parts[0], o.now().Add(-2*time.Second)),
		"dots":                   "...",
		"large":                  strings.Repeat("x", 8000),
	}
	b := o.browser()
	for name, cookie := range madeUp {
		c.asked.Store(0)
		for _, rt := range o.portal.table {
			b.do(rt.method, at(rt, "/c/0123456789abcdef0123456789abcdef"), nil, "Cookie", cookieName+"="+cookie)
		}
		if n := c.asked.Load(); n != 0 {
			t.Errorf("%s: %d queries", name, n)
		}
		if _, ok := o.portal.tokenOf(cookie); ok {
			t.Errorf("%s is taken", name)
		}
	}
	c.asked.Store(0)
	for range 100 {
		b.get("/", "Cookie", cookieName+"="+random()+"."+parts[1]+"."+random())
	}
	if n := c.asked.Load(); n != 0 {
		t.Errorf("a flood: %d queries", n)
	}
	if !eva.signedIn() {
		t.Error("it signed her out")
	}
	// One that was genuine asks nothing when its session must have ended.
	o.pass(8*time.Hour + time.Second)
	c.asked.Store(0)
	if eva.signedIn() || c.asked.Load() != 0 {
		t.Errorf("a cookie of before: %d queries", c.asked.Load())
	}
}

// TestStreamsOfOneConnection: of HTTP/2 there are as many as may be, and no more;
// headers are bounded there, too.
func TestStreamsOfOneConnection(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	open := func(n, fields int) (refused int) {
		c, err := o.dialTLS(0, "h2", http2.ClientPreface)
		if err != nil {
			t.Fatal(err)
		}
		defer c.NetConn().Close()
		f := http2.NewFramer(c, c)
		send := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		send(f.WriteSettings())
		for { // until the server knows that its own settings are known
			fr, err := f.ReadFrame()
			send(err)
			if s, ok := fr.(*http2.SettingsFrame); ok && !s.IsAck() {
				send(f.WriteSettingsAck())
				break
			}
		}
		var head bytes.Buffer
		enc := hpack.NewEncoder(&head)
		for i := range n {
			head.Reset()
			for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", o.portal.host}, {":path", "/preferences"}, {"content-type", "application/x-www-form-urlencoded"}} {
				send(enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}))
			}
			for range fields {
				send(enc.WriteField(hpack.HeaderField{Name: "x-long", Value: strings.Repeat("x", 1000), Sensitive: true}))
			}
			send(f.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: head.Bytes(), EndHeaders: true}))
		}
		send(f.WritePing(false, [8]byte{1}))
		dec := hpack.NewDecoder(4096, nil)
		for {
			fr, err := f.ReadFrame()
			if errors.Is(err, io.EOF) {
				return refused
			}
			send(err)
			switch fr := fr.(type) {
			case *http2.RSTStreamFrame:
				refused++
			case *http2.HeadersFrame:
				fields, err := dec.DecodeFull(fr.HeaderBlockFragment())
				send(err)
				if fields[0].Value == "431" {
					refused++
				}
				if n == 1 {
					return refused
				}
			case *http2.PingFrame: // after what was refused at once
				if fr.IsAck() && n > 1 {
					return refused
				}
			}
		}
	}
	if n := open(200, 0); n != 200-maxStreams {
		t.Errorf("%d of 200 streams were refused", n)
	}
	if n := open(1, 18); n != 1 {
		t.Error("a header may be as long as it likes")
	}
}

// TestSlowBrowsers: what does not come within the time there is for it is cut off.
func TestSlowBrowsers(t *testing.T) {
	long.Test(t)
	t.Parallel()
	o := newOffice(t)
	host := "Host: " + o.portal.host + "\r\n"
	for name, head := range map[string]string{
		"a header": "GET /signin HTTP/1.1\r\n" + host + "X-Slow: ",
		"a form":   "POST /preferences HTTP/1.1\r\n" + host + "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 10000\r\n\r\nlanguage=",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := o.dialTLS(0, "http/1.1", head)
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() {
				res, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err == nil {
					defer res.Body.Close()
					if res.StatusCode < http.StatusBadRequest {
						err = fmt.Errorf("answered %s", res.Status)
					}
				} else if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !strings.Contains(err.Error(), "reset") {
					err = fmt.Errorf("left waiting: %w", err)
				} else {
					err = nil
				}
				ended <- err
			}()
			tick := time.NewTicker(200 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case err := <-ended:
					if err != nil {
						t.Error(err)
					}
					return
				case <-tick.C:
					_, _ = io.WriteString(c, "x")
				}
			}
		})
	}
}
