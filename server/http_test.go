package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"
)

// The identity of every caller rests on the TLS configuration: one that asks
// for less is refused before anything is served.
func TestHTTPServerWantsMutualTLS(t *testing.T) {
	t.Parallel()
	s := &Server{timeout: time.Second, log: slog.New(slog.DiscardHandler)}
	good := func() *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool()}
	}
	if _, err := s.HTTPServer(good()); err != nil {
		t.Fatal(err)
	}
	for name, weaken := range map[string]func(*tls.Config){
		"TLS 1.2":                func(c *tls.Config) { c.MinVersion = tls.VersionTLS12 },
		"no version":             func(c *tls.Config) { c.MinVersion = 0 },
		"certificate optional":   func(c *tls.Config) { c.ClientAuth = tls.VerifyClientCertIfGiven },
		"certificate not proven": func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert },
		"the system's CAs":       func(c *tls.Config) { c.ClientCAs = nil },
	} {
		c := good()
		weaken(c)
		if _, err := s.HTTPServer(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := s.HTTPServer(nil); err == nil {
		t.Error("without TLS: accepted")
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	log := slog.New(slog.DiscardHandler)

	// A request that does not end within the time to drain is cut off, and
	// Serve says so.
	entered, release := make(chan struct{}), make(chan struct{})
	srv := newHTTPServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(entered); <-release }), log)
	ctx, cancel := context.WithCancel(t.Context())
	l := listen()
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, srv, l, 50*time.Millisecond) }()
	cut := make(chan error, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		cut <- err
	}()
	<-entered
	cancel()
	if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("drained: %v", err)
	}
	if err := <-cut; err == nil {
		t.Error("the request was not cut off")
	}
	close(release)

	// A listener that breaks ends Serve with an error.
	l = listen()
	l.Close()
	if err := Serve(t.Context(), newHTTPServer(http.NotFoundHandler(), log), l, time.Second); err == nil {
		t.Error("served on a closed listener")
	}
}
