package e2e

import (
	"crypto/tls"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"kluis/internal/config"
	"kluis/internal/devpki"
)

// fetchAgain is beyond the time after which a gateway asks again for a key that
// it does not know (15 s), also on a busy machine.
const fetchAgain = 90 * time.Second

// An external issuer's keys, where the gateway fetches them: what it fetched
// stays in use while the address fails, a key that is not in the set is not
// accepted, and before the first success the answer is "try again", not "no".
func TestExternalIssuerByURL(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ca := newCA(t)
	cert := issuedBy(t, ca, devpki.Leaf{CommonName: "login.example", Hosts: []string{"127.0.0.1"}})
	caFile := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	var keys atomic.Pointer[[]byte] // nil: the issuer is away
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		set := keys.Load()
		if set == nil {
			http.Error(rw, "away", http.StatusServiceUnavailable)
			return
		}
		_, _ = rw.Write(*set)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.StartTLS()
	defer server.Close()

	side := w.sidecar(t, func(g *config.Gateway, s *sidecar) {
		accepted := &g.Issuers[len(g.Issuers)-1]
		accepted.JWKSFile, accepted.JWKSURL, accepted.CAFile = "", server.URL+"/jwks", caFile
	})
	c := w.supplier(t, 0).at(t, side.url)
	token := side.issuer.sign(t, "EdDSA", nil, side.issuer.good(c))
	a := c.with(t, token, "/v1/status")
	if a.status != http.StatusServiceUnavailable || a.slug() != "issuer-unavailable" || a.header.Get("Retry-After") == "" {
		t.Errorf("before the keys are known: %d %s", a.status, a.body)
	}
	// Kluis' own issuer is none the worse for it.
	if a := c.with(t, w.supplier(t, 0).accessToken(t), "/v1/status"); a.status != http.StatusOK {
		t.Errorf("a token of Kluis' own: %d %s", a.status, a.body)
	}

	set := side.issuer.jwks()
	keys.Store(&set)
	eventuallyWithin(t, fetchAgain, "the keys are fetched", func() bool { return c.with(t, token, "/v1/status").status == http.StatusOK })
	keys.Store(nil)
	if a := c.with(t, side.issuer.sign(t, "PS256", nil, side.issuer.good(c)), "/v1/status"); a.status != http.StatusOK {
		t.Errorf("while the issuer is away: %d %s", a.status, a.body)
	}
	stranger := newExternalIssuer(t)
	w.refused(t, c.with(t, stranger.sign(t, "ES256", nil, stranger.good(c)), "/v1/status"), side.log, "wrong_signature", invalidToken)
	w.refused(t, c.with(t, stranger.sign(t, "ES256", claims{"kid": "another"}, stranger.good(c)), "/v1/status"), side.log, "unknown_kid", invalidToken)
}
