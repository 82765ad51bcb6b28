package cryptopb

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
)

// counted counts what reaches the kernel.
type counted struct {
	net.Conn
	writes atomic.Int64
	plain  []byte // must never be seen
	seen   atomic.Bool
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	if bytes.Contains(p, c.plain) {
		c.seen.Store(true)
	}
	return c.Conn.Write(p)
}

func testTLS(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "server"}, DNSNames: []string{"server"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	server = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	return server, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "server"}
}

// connected is a connection over TCP, with what is below the client's end.
func connected(t *testing.T) (client, server net.Conn, below *counted) {
	t.Helper()
	sc, cc := testTLS(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		defer close(accepted)
		raw, err := l.Accept()
		if err != nil {
			return
		}
		if c, info, err := NewTLS(sc).ServerHandshake(raw); err == nil && info.AuthType() == "tls" {
			accepted <- c
		}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	below = &counted{Conn: raw, plain: bytes.Repeat([]byte("plain"), 10)}
	client, info, err := NewTLS(cc).Clone().ClientHandshake(t.Context(), "server", below)
	if err != nil {
		t.Fatal(err)
	}
	if info.(credentials.TLSInfo).State.Version != tls.VersionTLS13 {
		t.Fatalf("%+v", info)
	}
	server = <-accepted
	if server == nil {
		t.Fatal("the server did not shake hands")
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server, below
}

// TestWholeWrites: what is written at once reaches the kernel at once, encrypted
// and in order, whatever its length.
func TestWholeWrites(t *testing.T) {
	t.Parallel()
	client, server, below := connected(t)
	for _, n := range []int{1, 100, 16 << 10, 50_000, WriteBuffer, 300_000} {
		p := bytes.Repeat([]byte("plain"), n/5+1)[:n]
		got := make([]byte, n)
		read := make(chan error, 1)
		go func() {
			_, err := io.ReadFull(server, got)
			read <- err
		}()
		// A long connection has large records.
		before := below.writes.Load()
		if w, err := client.Write(p); err != nil || w != n {
			t.Fatal(w, err)
		}
		if after := below.writes.Load(); after != before+1 {
			t.Errorf("%d bytes took %d writes", n, after-before)
		}
		if err := <-read; err != nil || !bytes.Equal(got, p) {
			t.Fatalf("%d bytes did not arrive as they were: %v", n, err)
		}
		// And back, where nobody counts.
		go func() { _, _ = server.Write(p) }()
		if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, p) {
			t.Fatal(err)
		}
	}
	if below.seen.Load() {
		t.Error("plaintext reached the wire")
	}
	// The end is said, not cut off.
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

// TestCloseCutsWrite: a peer that reads nothing holds up nobody who closes.
func TestCloseCutsWrite(t *testing.T) {
	t.Parallel()
	client, _, below := connected(t)
	stuck := make(chan error, 1)
	go func() {
		for {
			if _, err := client.Write(make([]byte, 1<<20)); err != nil {
				stuck <- err
				return
			}
		}
	}()
	// Until no write comes through any more.
	for last := int64(-1); below.writes.Load() != last; time.Sleep(200 * time.Millisecond) {
		last = below.writes.Load()
	}
	closed := make(chan struct{})
	go func() { client.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(4 * time.Second): // TLS gives an alert five
		t.Fatal("closing waits for the write")
	}
	if err := <-stuck; err == nil {
		t.Error("the write succeeded")
	}
}

// TestHandshakeChecks: the certificates are looked at as ever.
func TestHandshakeChecks(t *testing.T) {
	t.Parallel()
	sc, _ := testTLS(t)
	_, stranger := testTLS(t)
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() { _, _, _ = NewTLS(sc).ServerHandshake(b) }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if c, _, err := NewTLS(stranger).ClientHandshake(ctx, "server", a); err == nil || c != nil {
		t.Fatal("a server that no authority knows was accepted")
	}
}
