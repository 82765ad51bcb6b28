package connlimit

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"testing"

	"kluis/internal/devpki"
)

// TestCertificateWithoutItsKey: a copy of a certificate is no key. Whoever shows it
// without, in however many handshakes, makes none of its holder's connections go.
func TestCertificateWithoutItsKey(t *testing.T) {
	t.Parallel()
	ca, err := devpki.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	server, err := ca.Issue(devpki.Leaf{CommonName: "server", Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	holder, err := ca.Issue(devpki.Leaf{CommonName: "holder"})
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stolen := tls.Certificate{Certificate: holder.Certificate, PrivateKey: key}

	var mu sync.Mutex
	told := map[string]int{}
	limiter := New(Config{Limits: Limits{All: 10, Each: 4, Handshakes: 8}, Holder: "certificate", Of: Certificate, Closed: func(why string) {
		mu.Lock()
		defer mu.Unlock()
		told[why]++
	}})
	srv := &http.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13},
	}
	srv.ErrorLog = log.New(io.Discard, "", 0)
	limiter.Bound(srv)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
	dial := func(cert tls.Certificate) *tls.Conn {
		t.Helper()
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
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
	mu.Lock()
	if len(told) != 0 {
		t.Errorf("told of %v", told)
	}
	mu.Unlock()

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
	mu.Lock()
	defer mu.Unlock()
	if told["certificate"] != 1 || len(told) != 1 {
		t.Errorf("told of %v", told)
	}
}
