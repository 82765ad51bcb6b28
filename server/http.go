package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// MaxHeaderBytes bounds the request line and headers. Above it the HTTP layer
// answers 431. An access token has at most 8 KiB.
const MaxHeaderBytes = 16 << 10

// maxStreams are the requests that one connection may have under way (HTTP/2).
const maxStreams = 64

// HTTPServer is an http.Server for the API. tlsConfig must require and verify
// client certificates of the suppliers' CA, over TLS 1.3: anything less is
// refused here, because every request's identity rests on it.
func (s *Server) HTTPServer(tlsConfig *tls.Config) (*http.Server, error) {
	if tlsConfig == nil || tlsConfig.ClientAuth != tls.RequireAndVerifyClientCert || tlsConfig.ClientCAs == nil || tlsConfig.MinVersion < tls.VersionTLS13 {
		return nil, errors.New("server: the TLS configuration must require TLS 1.3 and client certificates of the suppliers' CA")
	}
	h := newHTTPServer(s.handler, s.log)
	h.RegisterOnShutdown(func() { s.drain() })
	h.TLSConfig = tlsConfig.Clone()
	s.connections.Bound(h)
	h.HTTP2 = &http.HTTP2Config{
		MaxConcurrentStreams:          maxStreams,
		MaxReceiveBufferPerConnection: 256 << 10, // of bodies that wait for room, too
		MaxReceiveBufferPerStream:     256 << 10,
		SendPingTimeout:               30 * time.Second, // who does not answer is gone
		PingTimeout:                   15 * time.Second,
		WriteByteTimeout:              30 * time.Second,
	}
	// A request is cut off by its own deadline first, with an answer: that a
	// step could not be stored may have to be recorded.
	h.WriteTimeout = s.timeout + 2*recordTimeout + 5*time.Second
	return h, nil
}

// ProbeServer serves plain HTTP for the operator's private network: handler,
// which is the metrics', at /metrics, and beside it the probes, and the
// documentation for browsers without a client certificate.
func (s *Server) ProbeServer(metrics http.Handler) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /healthz", s.handler)
	mux.Handle("GET /readyz", s.handler)
	for _, path := range docsPaths {
		mux.Handle("GET "+path, s.handler)
	}
	h := newHTTPServer(mux, s.log)
	h.WriteTimeout = 30 * time.Second
	return h
}

func newHTTPServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second, // of a request with its body
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    MaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// Serve serves on l, with TLS when srv has a TLS configuration, until ctx
// ends; then it stops accepting and waits for the requests under way, at most
// drain long.
func Serve(ctx context.Context, srv *http.Server, l net.Listener, drain time.Duration) error {
	failed := make(chan error, 1)
	go func() {
		if srv.TLSConfig != nil {
			failed <- srv.ServeTLS(l, "", "")
		} else {
			failed <- srv.Serve(l)
		}
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err := srv.Shutdown(stop)
	if err != nil {
		err = errors.Join(fmt.Errorf("requests still under way after %s were cut off: %w", drain, err), srv.Close())
	}
	if served := <-failed; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
