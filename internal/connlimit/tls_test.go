package connlimit

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"sync"
	"testing"

	"kluis/internal/devpki"
)

// bound is a real server with a limiter, by certificate.
type bound struct {
	ca      *devpki.CA
	addr    string
	limiter *Limiter

	mu   sync.Mutex
	told map[string]int
}

func serveBound(t *testing.T, limits Limits) *bound {
	t.Helper()
	ca, err := devpki.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	b := &bound{ca: ca, told: map[string]int{}}
	server, err := ca.Issue(devpki.Leaf{CommonName: "server", Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	b.limiter = New(Config{Limits: limits, Holder: "certificate", Of: Certificate, Closed: func(why string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.told[why]++
	}})
	srv := &http.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	b.limiter.Bound(srv)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
	return b
}

func (b *bound) issue(t *testing.T, name string) tls.Certificate {
	t.Helper()
	cert, err := b.ca.Issue(devpki.Leaf{CommonName: name})
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (b *bound) toldOf() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.told)
}

// TestCountedByEitherProtocol: a connection is its certificate's from its first
// request on, and no longer among the handshakes.
func TestCountedByEitherProtocol(t *testing.T) {
	t.Parallel()
	for major, protos := range map[int]*http.Protocols{1: protocols(false), 2: protocols(true)} {
		b := serveBound(t, Limits{All: 10, Each: 2, Handshakes: 1})
		cert := b.issue(t, "holder")
		for range 3 {
			transport := &http.Transport{Protocols: protos, TLSClientConfig: &tls.Config{RootCAs: b.ca.Pool(), Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}}
			t.Cleanup(transport.CloseIdleConnections)
			for range 2 {
				res, err := (&http.Client{Transport: transport}).Get("https://" + b.addr)
				if err != nil {
					t.Fatal(err)
				}
				if err := res.Body.Close(); err != nil || res.ProtoMajor != major {
					t.Errorf("HTTP/%d, %v", res.ProtoMajor, err)
				}
			}
		}
		b.limiter.mu.Lock()
		if b.limiter.verified != 2 || b.limiter.fresh.Len() != 0 || len(b.limiter.holders) != 1 {
			t.Errorf("HTTP/%d: %d established, %d in handshakes, %d holders", major, b.limiter.verified, b.limiter.fresh.Len(), len(b.limiter.holders))
		}
		b.limiter.mu.Unlock()
		if told := b.toldOf(); told["certificate"] != 1 || len(told) != 1 {
			t.Errorf("HTTP/%d: told of %v", major, told)
		}
	}
}

func protocols(two bool) *http.Protocols {
	p := &http.Protocols{}
	p.SetHTTP1(!two)
	p.SetHTTP2(two)
	return p
}

// TestCertificateWithoutItsKey: a copy of a certificate is no key. Whoever shows it
// without, in however many handshakes, makes none of its holder's connections go.
func TestCertificateWithoutItsKey(t *testing.T) {
	t.Parallel()
	b := serveBound(t, Limits{All: 10, Each: 4, Handshakes: 8})
	holder := b.issue(t, "holder")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stolen := tls.Certificate{Certificate: holder.Certificate, PrivateKey: key}

	dial := func(cert tls.Certificate) *tls.Conn {
		t.Helper()
		c, err := tls.Dial("tcp", b.addr, &tls.Config{RootCAs: b.ca.Pool(), Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	ask := func(c *tls.Conn) error {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: kluis\r\n\r\n"); err != nil {
			return err
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		return res.Body.Close()
	}
	attack := func() {
		t.Helper()
		for range 20 {
			// In TLS 1.3 the client is done before the server has looked at it.
			if err := ask(dial(stolen)); err == nil {
				t.Error("served without the key")
			}
		}
	}
	var own []*tls.Conn
	for range 4 {
		own = append(own, dial(holder))
		if err := ask(own[len(own)-1]); err != nil {
			t.Fatal(err)
		}
	}
	attack()
	for _, c := range own {
		if err := ask(c); err != nil {
			t.Errorf("the holder's connection: %v", err)
		}
	}
	if told := b.toldOf(); len(told) != 0 {
		t.Errorf("told of %v", told)
	}

	// The holder's own fifth makes an idle one of its own go.
	if err := ask(dial(holder)); err != nil {
		t.Fatal(err)
	}
	closed := 0
	for _, c := range own {
		if ask(c) != nil {
			closed++
		}
	}
	if closed != 1 {
		t.Errorf("%d made way", closed)
	}
	if told := b.toldOf(); told["certificate"] != 1 || len(told) != 1 {
		t.Errorf("told of %v", told)
	}
}
