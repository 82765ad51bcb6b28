package authn

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kluis/internal/config"
	"kluis/internal/devpki"
)

// The key and thumbprint of RFC 9449, figures 2 and 13.
func TestKeyIDVector(t *testing.T) {
	t.Parallel()
	point := []byte{4}
	for _, c := range []string{"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs", "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA"} {
		b, err := base64.RawURLEncoding.DecodeString(c)
		if err != nil {
			t.Fatal(err)
		}
		point = append(point, b...)
	}
	k, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		t.Fatal(err)
	}
	kid, err := KeyID(k)
	if err != nil || kid != "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" {
		t.Fatalf("%s, %v", kid, err)
	}
	got, err := JWKS(k)
	if err != nil {
		t.Fatal(err)
	}
	want := `{
  "keys": [
    {
      "crv": "P-256",
      "kty": "EC",
      "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
      "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
      "alg": "ES256",
      "use": "sig",
      "kid": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
    }
  ]
}`
	if string(got) != want {
		t.Errorf("got %s", got)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []*ecdsa.PublicKey{nil, &p384.PublicKey} {
		if _, err := JWKS(bad); err == nil {
			t.Error("a key that is not P-256 was accepted")
		}
	}
}

func TestPinnedKeysRefuses(t *testing.T) {
	t.Parallel()
	k := keysOnce()
	ec, err := newJWK(&k.es.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d, err := k.es.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	point384, err := p384.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	good := map[string]any{"kty": "EC", "crv": "P-256", "x": ec.X, "y": ec.Y, "kid": "a"}
	with := func(kv ...any) map[string]any {
		m := map[string]any{}
		for n, v := range good {
			m[n] = v
		}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i].(string)] = kv[i+1]
		}
		return m
	}
	for name, list := range map[string][]any{
		"none":             {},
		"no kid":           {with("kid", "")},
		"kid twice":        {good, good},
		"for encryption":   {with("use", "enc")},
		"another alg":      {with("alg", "ES384")},
		"symmetric":        {map[string]any{"kty": "oct", "k": b64(leaf[:]), "kid": "a", "alg": "HS256"}},
		"private":          {with("d", b64(d))},
		"private Ed25519":  {map[string]any{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": b64(k.ed.Public().(ed25519.PublicKey)), "d": b64(k.ed.Seed())}},
		"P-384":            {map[string]any{"kty": "EC", "crv": "P-384", "kid": "a", "x": b64(point384[1:49]), "y": b64(point384[49:])}},
		"not on the curve": {with("y", ec.X)},
		"coordinate short": {with("x", "AAAA")},
		"X25519":           {map[string]any{"kty": "OKP", "crv": "X25519", "kid": "a", "x": b64(leaf[:])}},
		"RSA of 1024 bits": {map[string]any{"kty": "RSA", "kid": "a", "n": b64(small.N.Bytes()), "e": "AQAB"}},
		"RSA exponent 1":   {map[string]any{"kty": "RSA", "kid": "a", "n": b64(k.ps.N.Bytes()), "e": "AQ"}},
		"RSA for RS256":    {map[string]any{"kty": "RSA", "kid": "a", "alg": "RS256", "n": b64(k.ps.N.Bytes()), "e": "AQAB"}},
		"good and bad":     {good, with("kid", "b", "use", "enc")},
	} {
		raw, err := json.Marshal(map[string]any{"keys": list})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := PinnedKeys(raw); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, raw := range []string{"", "[]", "null", "{}", `{"keys":{}}`, `{"keys":[]}x`, `{"keys":[],"keys":[]}`} {
		if _, err := PinnedKeys([]byte(raw)); err == nil {
			t.Errorf("%q: accepted", raw)
		}
	}
	raw, err := json.Marshal(map[string]any{"keys": []any{good}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := PinnedKeys(raw); err != nil {
		t.Errorf("the key to start from: %v", err)
	}
}

// jwksServer serves whatever set holds over TLS.
type jwksServer struct {
	*httptest.Server
	set     atomic.Value // []byte
	status  atomic.Int32
	fetched atomic.Int32
	caFile  string
}

func newJWKSServer(t *testing.T, set []byte) *jwksServer {
	t.Helper()
	ca, err := devpki.NewCA("external")
	if err != nil {
		t.Fatal(err)
	}
	crt, err := ca.Issue(devpki.Leaf{CommonName: "login", Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	s := &jwksServer{caFile: filepath.Join(t.TempDir(), "ca.crt")}
	s.set.Store(set)
	s.status.Store(http.StatusOK)
	if err := os.WriteFile(s.caFile, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fetched.Add(1)
		if r.URL.Path != "/jwks" {
			w.Write(s.set.Load().([]byte))
			return
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(int(s.status.Load()))
		w.Write(s.set.Load().([]byte))
	}))
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{crt}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *jwksServer) verifier(t *testing.T, caFile string) *Verifier {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	v, err := Configured(ctx, []config.Issuer{{URL: extIssuer, Audience: audience, JWKSURL: s.URL + "/jwks", CAFile: caFile}}, "", nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	v.now = func() time.Time { return noon }
	return v
}

func externalToken(t *testing.T, w *world, kid, jti string) string {
	t.Helper()
	s := w.newSpec()
	w.external(s, kid)
	s.claims["jti"] = jti
	return s.sign(t)
}

func TestFetchedKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rsaOnly := fmt.Appendf(nil, `{"keys":[{"kty":"RSA","kid":"rsa-1","n":"%s","e":"AQAB"},{"kty":"OKP","crv":"Ed25519","use":"enc","kid":"ed-1","x":"%s"}]}`,
		b64(w.ps.N.Bytes()), b64(w.ed.Public().(ed25519.PublicKey)))
	edOnly := fmt.Appendf(nil, `{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"ed-1","x":"%s"}]}`, b64(w.ed.Public().(ed25519.PublicKey)))
	s := newJWKSServer(t, rsaOnly)
	v := s.verifier(t, s.caFile)

	if _, err := v.Verify(t.Context(), externalToken(t, w, "rsa-1", "1"), leaf); err != nil {
		t.Fatal(err)
	}
	_, err := v.Verify(t.Context(), externalToken(t, w, "ed-1", "1"), leaf)
	refused(t, err, ErrInvalidToken, "unknown_kid") // a key for encryption

	s.set.Store(edOnly) // the issuer rotates
	before := s.fetched.Load()
	_, err = v.Verify(t.Context(), externalToken(t, w, "new", "1"), leaf)
	refused(t, err, ErrInvalidToken, "unknown_kid")
	if s.fetched.Load() != before+1 {
		t.Error("an unknown kid did not cause a fetch")
	}
	if _, err := v.Verify(t.Context(), externalToken(t, w, "ed-1", "2"), leaf); err != nil {
		t.Errorf("a key that came with rotation: %v", err)
	}
	start := time.Now()
	for i := range 20 { // nobody can make the gateway fetch at will, or wait
		_, err = v.Verify(t.Context(), externalToken(t, w, "rsa-1", fmt.Sprint(i)), leaf)
		refused(t, err, ErrInvalidToken, "unknown_kid")
	}
	if n := s.fetched.Load() - before; n != 1 {
		t.Errorf("fetched %d times for unknown kids", n)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("20 unknown kids took %s", d)
	}
	s.Close()
	if _, err := v.Verify(t.Context(), externalToken(t, w, "ed-1", "3"), leaf); err != nil {
		t.Errorf("with the issuer away: %v", err)
	}
}

func TestFetchedKeysUnavailable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	set := w.externalJWKS(t)
	raw := externalToken(t, w, "ed-1", "1")
	stranger := newJWKSServer(t, set)
	for name, prepare := range map[string]func(*jwksServer) (caFile string){
		"away":          func(s *jwksServer) string { s.Close(); return s.caFile },
		"of another CA": func(s *jwksServer) string { return stranger.caFile },
		"failing":       func(s *jwksServer) string { s.status.Store(500); return s.caFile },
		"redirecting":   func(s *jwksServer) string { s.status.Store(302); return s.caFile },
		"no JSON":       func(s *jwksServer) string { s.set.Store([]byte("<html>")); return s.caFile },
		"no keys":       func(s *jwksServer) string { s.set.Store([]byte(`{"keys":[]}`)); return s.caFile },
		"longer than sane": func(s *jwksServer) string {
			s.set.Store([]byte(strings.Repeat(" ", maxJWKS) + string(set)))
			return s.caFile
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newJWKSServer(t, set)
			v := s.verifier(t, prepare(s))
			_, err := v.Verify(t.Context(), raw, leaf)
			refused(t, err, ErrUnavailable, "keys_unavailable")
			if status, _ := Challenge(err); status != http.StatusServiceUnavailable {
				t.Errorf("status %d", status)
			}
		})
	}
}

func TestConfigured(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	file := func(content []byte) string {
		path := filepath.Join(t.TempDir(), "jwks.json")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	log := slog.New(slog.DiscardHandler)
	ok := config.Issuer{URL: extIssuer, Audience: audience, JWKSFile: file(w.externalJWKS(t))}
	v, err := Configured(t.Context(), []config.Issuer{ok}, "", nil, log)
	if err != nil {
		t.Fatal(err)
	}
	v.now = func() time.Time { return noon }
	if _, err := v.Verify(t.Context(), externalToken(t, w, "rsa-1", "1"), leaf); err != nil {
		t.Error(err)
	}
	s := w.newSpec()
	w.external(s, "rsa-1")
	s.claims["exp"] = noon.Unix() + 301
	_, err = v.Verify(t.Context(), s.sign(t), leaf)
	refused(t, err, ErrInvalidToken, "lives_too_long")

	missing, bad, noCA := ok, ok, ok
	missing.JWKSFile = filepath.Join(t.TempDir(), "none")
	bad.JWKSFile = file([]byte("{}"))
	noCA.JWKSFile, noCA.JWKSURL, noCA.CAFile = "", "https://127.0.0.1:1/jwks", bad.JWKSFile
	for _, c := range []config.Issuer{missing, bad, noCA} {
		if _, err := Configured(t.Context(), []config.Issuer{c}, "", nil, log); err == nil || !strings.Contains(err.Error(), extIssuer) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := Configured(t.Context(), nil, "", nil, log); err == nil {
		t.Error("no issuers were accepted")
	}
	_, err = pinnedKeys{}.key(t.Context(), "")
	if !errors.Is(err, errUnknownKey) {
		t.Error(err)
	}
}

// The example key of RFC 7517, appendix A.1, as a set of one; its kid is the
// thumbprint of RFC 7638.
func TestJWKSVector(t *testing.T) {
	t.Parallel()
	point, err := hex.DecodeString("04" +
		"30a0424cd21c2944838a2d75c92b37e76ea20d9f00893a3b4eee8a3c0aafec3e" +
		"e04b65e92456d9888b52b379bdfbd51ee869ef1f0fc65b6659695b6cce081723")
	if err != nil {
		t.Fatal(err)
	}
	k, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"keys":[{"crv":"P-256","kty":"EC","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",` +
		`"y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","alg":"ES256","use":"sig",` +
		`"kid":"cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s"}]}`
	got, err := JWKS(k)
	if err != nil {
		t.Fatal(err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, got); err != nil || compact.String() != want {
		t.Errorf("%v\n%s", err, got)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := JWKS(&p384.PublicKey); err == nil {
		t.Error("a P-384 key passed for ES256")
	}
}
