package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/internal/config"
)

// sidecar is one more gateway with a cryptoserver of its own, on a world's
// data and keys. Both also accept the tokens of an external issuer whose keys
// the test holds; what the gateway says to PostgreSQL and how often it calls
// the cryptoserver can be counted. It is the test's alone.
type sidecar struct {
	url           string // of the gateway
	metrics       string
	cryptoserver  string // host:port
	cryptoMetrics string
	issuer        *externalIssuer
	sql           *statements
	log           string // file of the gateway's log
}

// oneMoreCryptoserver starts a cryptoserver with the keys of the first, on
// tokens of its own: SoftHSM writes to its folder at a start, and a process
// that starts on the same folder at that moment may not find its tokens. The
// demo's key custodian does not know it: it has one of its own.
func (w *world) oneMoreCryptoserver(t testing.TB, dir string, edit func(*config.Cryptoserver)) map[string]string {
	t.Helper()
	home := filepath.Join(w.state, "cryptoserver-1")
	c, err := config.Load[config.Cryptoserver](filepath.Join(home, "cryptoserver.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	c.Listen, c.MetricsListen, c.JournalDir = "127.0.0.1:0", "127.0.0.1:0", filepath.Join(dir, "journal")
	edit(&c)
	file := filepath.Join(dir, "cryptoserver.yaml")
	if err := config.Write(file, c); err != nil {
		t.Fatal(err)
	}
	tokens, conf := filepath.Join(dir, "tokens"), filepath.Join(dir, "softhsm2.conf")
	if err := os.CopyFS(tokens, os.DirFS(filepath.Join(home, "tokens"))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, said := w.startProgram(t, dir, "cryptoserver", []string{"SOFTHSM2_CONF=" + conf}, "cryptoserver", "serve", "--config", file)
	custodian := sure(config.Load[config.Operator](filepath.Join(w.state, "kluis.yaml")))
	custodian.Custodian.Addresses = []string{said["address"]}
	custodian.FeedCopyFile = filepath.Join(dir, "feed")
	if err := config.Write(filepath.Join(dir, "custodian.yaml"), custodian); err != nil {
		t.Fatal(err)
	}
	w.startProgram(t, dir, "custodian", nil, "kluis", "keys", "feed", "--config", filepath.Join(dir, "custodian.yaml"))
	return said
}

// sidecar starts it; edit may change the gateway's configuration.
func (w *world) sidecar(t testing.TB, edit ...func(*config.Gateway, *sidecar)) *sidecar {
	t.Helper()
	dir, err := os.MkdirTemp(w.dir, "sidecar-")
	if err != nil {
		t.Fatal(err)
	}
	s := &sidecar{issuer: newExternalIssuer(t), log: filepath.Join(dir, "gateway.log")}
	jwks := filepath.Join(dir, "jwks.json")
	if err := os.WriteFile(jwks, s.issuer.jwks(), 0o600); err != nil {
		t.Fatal(err)
	}
	accepted := config.Issuer{URL: s.issuer.url, Audience: w.ready.Audience, JWKSFile: jwks}

	said := w.oneMoreCryptoserver(t, dir, func(c *config.Cryptoserver) {
		c.ID = "cryptoserver-sidecar"
		c.Issuers = append(c.Issuers, accepted)
	})
	s.cryptoserver, s.cryptoMetrics = said["address"], "http://"+said["metrics_address"]+"/metrics"

	gateway, err := config.Load[config.Gateway](filepath.Join(w.state, "gateway.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.sql = countStatements(t, gateway.DatabaseURL)
	gateway.DatabaseURL = s.sql.url
	gateway.Listen, gateway.MetricsListen = "127.0.0.1:0", "127.0.0.1:0"
	gateway.Cryptoservers.Addresses = []string{s.cryptoserver}
	gateway.Issuers = append(gateway.Issuers, accepted)
	for _, e := range edit {
		e(&gateway, s)
	}
	file := filepath.Join(dir, "gateway.yaml")
	if err := config.Write(file, gateway); err != nil {
		t.Fatal(err)
	}
	_, said = w.startProgram(t, dir, "gateway", nil, "gateway", "--config", file)
	s.url, s.metrics = "https://"+said["address"], "http://"+said["metrics_address"]+"/metrics"
	return s
}

// statements stands between a client and PostgreSQL and notes what is
// executed, in order.
type statements struct {
	url  string
	t    testing.TB
	real string // socket of PostgreSQL

	mu       sync.Mutex
	executed []string
}

// countStatements listens on a socket of its own in front of the database of
// databaseURL.
func countStatements(t testing.TB, databaseURL string) *statements {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	dir, err := os.MkdirTemp("", "kluis-e2e-sql-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	const name = ".s.PGSQL.5432"
	s := &statements{t: t, real: filepath.Join(q.Get("host"), name)}
	q.Set("host", dir)
	u.RawQuery = q.Encode()
	s.url = u.String()
	l, err := net.Listen("unix", filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { s.relay(c) })
		}
	})
	t.Cleanup(func() {
		err := errors.Join(l.Close(), os.RemoveAll(dir))
		wg.Wait()
		if err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *statements) relay(c net.Conn) {
	defer c.Close()
	server, err := net.Dial("unix", s.real)
	if err != nil {
		return
	}
	defer server.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(c, server)
		_ = c.Close() // ends the loop below
	}()
	_ = s.forward(server, c)
	_ = server.Close()
	<-done
}

// forward passes on the client's messages (PostgreSQL's protocol, version 3):
// Parse names a statement, Bind picks one, Execute runs what was bound, Query
// is all of it at once.
func (s *statements) forward(server io.Writer, c io.Reader) error {
	named := map[string]string{}
	bound := ""
	for first := true; ; first = false {
		head := make([]byte, 5)
		if first {
			head = head[:4] // the start-up message has no type
		}
		if _, err := io.ReadFull(c, head); err != nil {
			return err
		}
		body := make([]byte, binary.BigEndian.Uint32(head[len(head)-4:])-4)
		if _, err := io.ReadFull(c, body); err != nil {
			return err
		}
		if !first {
			text := func(b []byte) (string, []byte) {
				i := bytes.IndexByte(b, 0)
				return string(b[:i]), b[i+1:]
			}
			switch head[0] {
			case 'P':
				name, rest := text(body)
				named[name], _ = text(rest)
			case 'B':
				_, rest := text(body) // the portal
				name, _ := text(rest)
				bound = named[name]
			case 'E':
				s.note(bound)
			case 'Q':
				q, _ := text(body)
				s.note(q)
			}
		}
		if _, err := server.Write(append(head, body...)); err != nil {
			return err
		}
	}
}

func (s *statements) note(q string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.executed = append(s.executed, strings.Join(strings.Fields(q), " "))
}

// taken returns what was executed since it was last called.
func (s *statements) taken() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := slices.Clone(s.executed)
	s.executed = nil
	return e
}

// eventually waits for something that another process does in its own time.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	eventuallyWithin(t, 10*time.Second, what, ok)
}

func eventuallyWithin(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", d, what)
		}
	}
}
