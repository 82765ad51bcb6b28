package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"kluis/internal/devpki"
)

func newCA(t testing.TB) *devpki.CA {
	t.Helper()
	ca, err := devpki.NewCA("somebody else's")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issuedBy(t testing.TB, ca *devpki.CA, l devpki.Leaf) tls.Certificate {
	t.Helper()
	c, err := ca.Issue(l)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// alertOf is the TLS alert that an error reports, in words; else the error.
func alertOf(err error) string {
	if err == nil {
		return "no error"
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return strings.TrimPrefix(op.Err.Error(), "tls: ")
	}
	return err.Error()
}

// Where no HTTP is possible a TLS alert is the answer, also for the probes,
// and at gateway and (where a certificate is given) issuer alike. Guard:
// config.ServerTLS.
func TestTLSAlerts(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	real := w.supplier(t, 0).cert
	// Somebody else's certificate, without its key.
	stolen := tls.Certificate{Certificate: real.Certificate, PrivateKey: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}
	hour := time.Hour
	for name, tc := range map[string]struct {
		cert  *tls.Certificate
		max   uint16
		alert string
	}{
		"no client certificate":                         {alert: "certificate required"},
		"certificate of another CA":                     {cert: ptr(issuedBy(t, newCA(t), devpki.Leaf{CommonName: "Polderstroom"})), alert: "unknown certificate authority"},
		"service certificate of the operator CA":        {cert: ptr(issuedBy(t, w.operatorCA, devpki.Leaf{CommonName: "gateway"})), alert: "unknown certificate authority"},
		"self-signed":                                   {cert: ptr(selfSigned(t)), alert: "unknown certificate authority"},
		"expired":                                       {cert: ptr(w.pair(t, devpki.Leaf{CommonName: "x", NotBefore: time.Now().Add(-2 * hour), NotAfter: time.Now().Add(-hour)})), alert: "expired certificate"},
		"not yet valid":                                 {cert: ptr(w.pair(t, devpki.Leaf{CommonName: "x", NotBefore: time.Now().Add(hour)})), alert: "expired certificate"},
		"for servers only":                              {cert: ptr(serverOnly(t, w)), alert: "bad certificate"},
		"issued by a client certificate":                {cert: ptr(underLeaf(t, real)), alert: "unknown certificate authority"},
		"a registered certificate, without its key":     {cert: &stolen, alert: "error decrypting message"},
		"TLS 1.2 with a registered certificate":         {cert: &real, max: tls.VersionTLS12, alert: "protocol version not supported"},
		"TLS 1.0 and 1.1 with a registered certificate": {cert: &real, max: tls.VersionTLS11, alert: "protocol version not supported"},
	} {
		for target, addr := range map[string]string{"gateway": w.ready.GatewayURL, "issuer": w.ready.IssuerURL} {
			t.Run(target+"/"+name, func(t *testing.T) {
				t.Parallel()
				if target == "issuer" && tc.cert == nil {
					t.Skip("the issuer's keys and metadata are public; its token endpoint is tested with the issuer")
				}
				if got := handshake(t, w, addr, tc.cert, tc.max); got != tc.alert {
					t.Errorf("%q, want the alert %q", got, tc.alert)
				}
			})
		}
	}
	for _, addr := range []string{w.ready.GatewayURL, w.ready.IssuerURL} {
		if got := handshake(t, w, addr, &real, 0); got != "answered" {
			t.Errorf("with the right certificate: %s", got)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// handshake asks for a probe and returns the alert, or that it was answered.
func handshake(t testing.TB, w *world, addr string, cert *tls.Certificate, max uint16) string {
	t.Helper()
	conf := &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS10, MaxVersion: max}
	if cert != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", host(t, addr), conf)
	if err != nil {
		return alertOf(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: kluis\r\nConnection: close\r\n\r\n"); err != nil {
		return alertOf(err)
	}
	// With TLS 1.3 the server's refusal comes after the client is done.
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return alertOf(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return res.Status
	}
	return "answered"
}

func host(t testing.TB, addr string) string {
	t.Helper()
	u, err := url.Parse(addr)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

func selfSigned(t testing.TB) tls.Certificate {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: serial(t), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// underLeaf is a certificate that a supplier issued itself, with its own as
// the authority's.
func underLeaf(t testing.TB, leaf tls.Certificate) tls.Certificate {
	t.Helper()
	parent := must(x509.ParseCertificate(leaf.Certificate[0]))
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: serial(t), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, leaf.PrivateKey))
	return tls.Certificate{Certificate: [][]byte{der, leaf.Certificate[0]}, PrivateKey: key}
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// serverOnly is a certificate of the suppliers' CA that is not for clients.
func serverOnly(t testing.TB, w *world) tls.Certificate {
	t.Helper()
	ca, err := tls.LoadX509KeyPair(filepath.Join(w.state, "pki", "supplier-ca.crt"), filepath.Join(w.state, "pki", "supplier-ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: serial(t), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, ca.Leaf, &key.PublicKey, ca.PrivateKey))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Plain HTTP to the TLS port gets a hint and nothing else.
func TestPlainHTTP(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	for _, addr := range []string{w.ready.GatewayURL, w.ready.IssuerURL} {
		res, err := http.Get("http://" + host(t, addr) + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err = errors.Join(err, res.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusBadRequest || string(body) != "Client sent an HTTP request to an HTTPS server.\n" {
			t.Errorf("%d %q", res.StatusCode, body)
		}
	}
}

// A connection that never finishes its handshake, or its header, is closed
// within seconds. Guards: ReadHeaderTimeout and, behind it, ReadTimeout.
func TestSlowloris(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	cert := w.supplier(t, 0).cert
	for _, addr := range []string{w.ready.GatewayURL, w.ready.IssuerURL} {
		for name, connect := range map[string]func(t *testing.T) net.Conn{
			"handshake": func(t *testing.T) net.Conn {
				c, err := net.Dial("tcp", host(t, addr))
				if err != nil {
					t.Fatal(err)
				}
				return c
			},
			"header": func(t *testing.T) net.Conn {
				c, err := tls.Dial("tcp", host(t, addr), &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})
				if err != nil {
					t.Fatal(err)
				}
				return c
			},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				c := connect(t)
				defer c.Close()
				// At once as much as is well-formed: a line that ends without a colon
				// would be answered with 400.
				begin := "GET /healthz HTTP/1.1\r\nHost: kluis\r\nX-Slow: "
				if name == "handshake" {
					begin = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" // the start of a ClientHello
				}
				if _, err := io.WriteString(c, begin); err != nil {
					t.Fatal(err)
				}
				closed := make(chan error, 1)
				go func() {
					b, err := io.ReadAll(c)
					if err == nil && len(b) > 0 {
						err = errors.New("it was answered")
					}
					closed <- err
				}()
				start := time.Now()
				for {
					select {
					case err := <-closed:
						// A clean end, or a reset because we wrote on.
						if err != nil && !errors.Is(err, syscall.ECONNRESET) {
							t.Error(err)
						}
						t.Logf("closed after %s", time.Since(start).Round(time.Millisecond))
						return
					case <-time.After(100 * time.Millisecond):
						if time.Since(start) > 25*time.Second {
							t.Fatal("the connection is still open")
						}
						_, _ = io.WriteString(c, "a")
					}
				}
			})
		}
	}
}
