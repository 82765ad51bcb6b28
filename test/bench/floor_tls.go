package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/golang-jwt/jwt/v5"

	"kluis/internal/config"
)

// tlsSetup is a plain handler: mutual TLS 1.3, an access token bound to the
// client certificate, an answer of a given size.
type tlsSetup struct {
	TLS      config.TLS `json:"tls"`
	JWKSFile string     `json:"jwks_file"`
	Issuer   string     `json:"issuer"`
	Audience string     `json:"audience"`
	Size     int        `json:"size"`
}

type tlsPart struct {
	tlsSetup
	parser   *jwt.Parser
	keys     map[string]*ecdsa.PublicKey
	verified sync.Map // token → thumbprint of its certificate
	body     []byte
	server   *http.Server
	listener net.Listener
}

func newTLSPart(raw json.RawMessage) (worker, error) {
	p := &tlsPart{}
	if err := json.Unmarshal(raw, &p.tlsSetup); err != nil {
		return nil, err
	}
	var err error
	if p.keys, err = readJWKS(p.JWKSFile); err != nil {
		return nil, err
	}
	p.parser = jwt.NewParser(jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuer(p.Issuer), jwt.WithAudience(p.Audience),
		jwt.WithExpirationRequired())
	p.body = bytes.Repeat([]byte("0"), p.Size)
	conf, err := config.ServerTLS(p.TLS)
	if err != nil {
		return nil, err
	}
	if p.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /verify", p.handler(p.verify))
	mux.HandleFunc("GET /cached", p.handler(p.cached))
	p.server = &http.Server{Handler: mux, TLSConfig: conf}
	go func() {
		if err := p.server.ServeTLS(p.listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "floor tls:", err)
		}
	}()
	return p, nil
}

func (p *tlsPart) address() string { return "https://" + p.listener.Addr().String() }

func (p *tlsPart) work(order) (partAnswer, error) {
	return partAnswer{}, errors.New("a server is loaded from outside")
}

func (p *tlsPart) close() error { return p.server.Shutdown(context.Background()) }

func (p *tlsPart) handler(verify func(string) ([32]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		raw, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		thumbprint, err := verify(raw)
		if err != nil || thumbprint != sha256.Sum256(r.TLS.PeerCertificates[0].Raw) {
			http.Error(w, "unauthorised", http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(p.body)))
		_, _ = w.Write(p.body) // the client notices
	}
}

func (p *tlsPart) verify(raw string) ([32]byte, error) {
	var thumbprint [32]byte
	var claims struct {
		jwt.RegisteredClaims
		Confirmation struct {
			Thumbprint string `json:"x5t#S256"`
		} `json:"cnf"`
	}
	_, err := p.parser.ParseWithClaims(raw, &claims, func(t *jwt.Token) (any, error) {
		kid, _ := t.Header["kid"].(string)
		if k := p.keys[kid]; k != nil {
			return k, nil
		}
		return nil, errors.New("unknown key")
	})
	if err != nil {
		return thumbprint, err
	}
	b, err := base64.RawURLEncoding.DecodeString(claims.Confirmation.Thumbprint)
	if err == nil && len(b) != len(thumbprint) {
		err = errors.New("no thumbprint")
	}
	copy(thumbprint[:], b)
	return thumbprint, err
}

// cached verifies a token once. (That it expires meanwhile does not matter
// here.)
func (p *tlsPart) cached(raw string) ([32]byte, error) {
	if t, ok := p.verified.Load(raw); ok {
		return t.([32]byte), nil
	}
	t, err := p.verify(raw)
	if err == nil {
		p.verified.Store(raw, t)
	}
	return t, err
}

// readJWKS reads ES256 keys (RFC 7517).
func readJWKS(file string) (map[string]*ecdsa.PublicKey, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var set struct{ Keys []struct{ Kid, X, Y string } }
	if err := json.Unmarshal(raw, &set); err != nil {
		return nil, err
	}
	keys := map[string]*ecdsa.PublicKey{}
	for _, k := range set.Keys {
		x, err1 := base64.RawURLEncoding.DecodeString(k.X)
		y, err2 := base64.RawURLEncoding.DecodeString(k.Y)
		point := append(append([]byte{4}, x...), y...)
		key, err3 := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		keys[k.Kid] = key
	}
	return keys, nil
}
