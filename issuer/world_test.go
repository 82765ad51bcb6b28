package issuer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/authz"
	"kluis/internal/authn"
	"kluis/internal/devpki"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
)

const (
	issuerURL = "https://issuer.kluis.example"
	audience  = "urn:kluis:gateway"
	glnA      = "8712423010208"
	glnB      = "8716948000003"
	glnNobody = "8711111111111"
)

// softSealer is a seal key in memory, for tests of everything around it.
type softSealer struct{ *ecdsa.PrivateKey }

func (s softSealer) KeyID() authz.KeyID { return authz.KeyIDOf(&s.PublicKey) }

func (s softSealer) SignDigest(digest [32]byte) (sig [64]byte, err error) {
	r, v, err := ecdsa.Sign(rand.Reader, s.PrivateKey, digest[:])
	if err != nil {
		return sig, err
	}
	r.FillBytes(sig[:32])
	v.FillBytes(sig[32:])
	return sig, nil
}

// registry is a database of sealed records that counts and fails on demand.
type registry struct {
	mu      sync.Mutex
	records map[string][]byte
	asked   int
	fails   error
}

func (g *registry) Supplier(_ context.Context, gln meter.GLN) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked++
	return g.records[gln.String()], g.fails
}

// softSigner signs with a key in memory, counts, and fails on demand.
type softSigner struct {
	mu     sync.Mutex
	key    *ecdsa.PrivateKey
	kid    string
	seals  *authz.SealKeys
	office *stafftest.Office
	signed int
	fails  func(ctx context.Context) error
}

func (s *softSigner) SignToken(ctx context.Context, sealed []byte, thumbprint [32]byte, scopes []string, lifetime time.Duration) (string, time.Time, error) {
	s.mu.Lock()
	s.signed++
	fails := s.fails
	s.mu.Unlock()
	if fails != nil {
		if err := fails(ctx); err != nil {
			return "", time.Time{}, err
		}
	}
	record, err := s.seals.Supplier(sealed)
	if err != nil {
		return "", time.Time{}, err
	}
	c := authn.TokenClaims{Issuer: issuerURL, Audience: audience, Client: record.GLN(), Scopes: scopes,
		Thumbprint: thumbprint, IssuedAt: time.Now(), Lifetime: lifetime}
	raw, err := authn.SignToken(s.key, s.kid, c)
	return raw, c.ExpiresAt(), err
}

// told is an error with a text for the portal, as a cryptoserver's.
type told struct {
	kind error
	text string
}

func (e told) Error() string { return e.kind.Error() + ": " + e.text }
func (e told) Unwrap() error { return e.kind }
func (e told) Text() string  { return e.text }

// SignStaffToken signs what a cryptoserver would.
func (s *softSigner) SignStaffToken(ctx context.Context, sealed []byte, thumbprint [32]byte, idToken, errand string, lifetime time.Duration) (string, time.Time, error) {
	s.mu.Lock()
	s.signed++
	fails := s.fails
	s.mu.Unlock()
	if fails != nil {
		if err := fails(ctx); err != nil {
			return "", time.Time{}, err
		}
	}
	record, err := s.seals.Supplier(sealed)
	if err != nil {
		return "", time.Time{}, err
	}
	id, err := s.office.Identities.Verify(ctx, idToken, time.Now())
	if err != nil {
		return "", time.Time{}, told{ErrEmployeeRefused, "sign in again (" + authn.Reason(err) + ")"}
	}
	parsed, err := authn.ParseErrand([]byte(errand), s.office.Profile)
	if err != nil {
		return "", time.Time{}, told{ErrErrandRefused, err.Error()}
	}
	c := authn.TokenClaims{Issuer: issuerURL, Audience: audience, Client: record.GLN(), Scopes: []string{authn.ScopeStaff},
		Thumbprint: thumbprint, IssuedAt: time.Now(), Lifetime: lifetime,
		Employee: &authn.Employee{Employee: authz.Employee{Subject: id.Subject, Role: id.Role, Errand: parsed}, Profile: s.office.Profile}}
	raw, err := authn.SignToken(s.key, s.kid, c)
	return raw, c.ExpiresAt(), err
}

// syncBuffer collects the log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// world is an issuer that serves over TLS, two suppliers, and the failures
// there can be.
type world struct {
	t           *testing.T
	sealer      softSealer
	registry    *registry
	signer      *softSigner
	ready       func(context.Context) error
	issuer      *Issuer
	verifier    *authn.Verifier
	operator    *devpki.CA
	suppliers   *devpki.CA
	a, b        tls.Certificate // registered for A and for B
	revoked     tls.Certificate // registered for A, revoked
	strangers   tls.Certificate // of the suppliers' CA, registered for nobody
	portal      tls.Certificate // registered for the grid operator itself
	office      *stafftest.Office
	addr        string
	stop        context.CancelFunc
	served      chan error
	log         *syncBuffer
	readyChecks int
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	return must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, sealer: softSealer{newKey(t)}, log: &syncBuffer{}, served: make(chan error, 1)}
	newCA := func(name string) *devpki.CA { return must[*devpki.CA](t)(devpki.NewCA(name)) }
	w.operator, w.suppliers = newCA("operator"), newCA("suppliers")
	client := func(name string) tls.Certificate {
		return must[tls.Certificate](t)(w.suppliers.Issue(devpki.Leaf{CommonName: name}))
	}
	w.a, w.b, w.revoked, w.strangers, w.portal = client("A"), client("B"), client("A, old"), client("nobody"), client("portal")
	w.office = stafftest.New(t, must[*meter.Profile](t)(meter.ParseProfile(meter.NL())))

	seals := must[*authz.SealKeys](t)(authz.NewSealKeys(&w.sealer.PublicKey))
	key := newKey(t)
	w.signer = &softSigner{key: key, kid: must[string](t)(authn.KeyID(&key.PublicKey)), seals: seals, office: w.office}
	w.registry = &registry{records: map[string][]byte{
		glnA: w.seal(authz.SupplierFacts{GLN: gln(t, glnA), Name: "A", Scopes: []string{authn.ScopeReadings}, Certificates: []authz.Certificate{
			{Thumbprint: authn.Thumbprint(w.a.Leaf), NotAfter: w.a.Leaf.NotAfter},
			{Thumbprint: authn.Thumbprint(w.revoked.Leaf), NotAfter: w.revoked.Leaf.NotAfter, RevokedAt: time.Now().Add(-time.Hour)},
		}}),
		glnB: w.seal(authz.SupplierFacts{GLN: gln(t, glnB), Name: "B", Scopes: []string{authn.ScopeReadings, "other:scope"}, Certificates: []authz.Certificate{
			{Thumbprint: authn.Thumbprint(w.b.Leaf), NotAfter: w.b.Leaf.NotAfter},
		}}),
		stafftest.GLN: w.seal(w.office.Facts(w.portal.Leaf)),
	}}

	jwks := must[[]byte](t)(authn.JWKS(&key.PublicKey))
	var err error
	w.issuer, err = New(Config{
		URL: issuerURL, JWKS: jwks, SealKeys: seals, Suppliers: w.registry, Signer: w.signer, Operator: w.office.Operator,
		Ready: func(ctx context.Context) error {
			w.readyChecks++
			if w.ready == nil {
				return nil
			}
			return w.ready(ctx)
		},
		Now: time.Now, Log: slog.New(slog.NewJSONHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.verifier = must[*authn.Verifier](t)(authn.NewVerifier(time.Now, authn.Issuer{
		URL: issuerURL, Audience: audience, Keys: must[authn.Keys](t)(authn.PinnedKeys(jwks)), MaxLifetime: authn.MaxLifetime, Staff: w.office.Staff()}))

	cert := must[tls.Certificate](t)(w.operator.Issue(devpki.Leaf{CommonName: "issuer", Hosts: []string{"127.0.0.1"}}))
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	w.addr = l.Addr().String()
	ctx, stop := context.WithCancel(t.Context())
	w.stop = stop
	go func() {
		w.served <- w.issuer.Serve(ctx, l, &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientCAs: w.suppliers.Pool(),
		}, 10*time.Second)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-w.served; err != nil {
			t.Errorf("serving ended with %v", err)
		}
	})
	return w
}

func gln(t testing.TB, s string) meter.GLN { return must[meter.GLN](t)(meter.ParseGLN(s)) }

func (w *world) seal(f authz.SupplierFacts) []byte {
	s := must[*authz.Supplier](w.t)(authz.NewSupplier(nil, f, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Now().Add(-time.Minute)))
	return must[[]byte](w.t)(authz.Seal(s.Payload(), w.sealer))
}

// client calls with the certificate, or with none.
func (w *world) client(cert *tls.Certificate) *http.Client {
	conf := &tls.Config{RootCAs: w.operator.Pool()}
	if cert != nil {
		// Sent whatever authorities the server names.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// answer is a response, read.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) json(t testing.TB) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(a.body), &m); err != nil {
		t.Fatalf("%s: %v", a.body, err)
	}
	return m
}

func (w *world) do(cert *tls.Certificate, r *http.Request) answer {
	w.t.Helper()
	resp := must[*http.Response](w.t)(w.client(cert).Do(r))
	defer resp.Body.Close()
	return answer{resp.StatusCode, resp.Header, string(must[[]byte](w.t)(io.ReadAll(resp.Body)))}
}

func (w *world) get(path string) answer {
	return w.do(nil, must[*http.Request](w.t)(http.NewRequestWithContext(w.t.Context(), http.MethodGet, "https://"+w.addr+path, nil)))
}

func form(kv ...string) url.Values {
	v := url.Values{"grant_type": {"client_credentials"}, "client_id": {glnA}}
	for i := 0; i < len(kv); i += 2 {
		v.Set(kv[i], kv[i+1])
	}
	return v
}

func (w *world) request(body string) *http.Request {
	r := must[*http.Request](w.t)(http.NewRequestWithContext(w.t.Context(), http.MethodPost, "https://"+w.addr+"/oauth2/token", strings.NewReader(body)))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

func (w *world) ask(cert *tls.Certificate, f url.Values) answer {
	w.t.Helper()
	return w.do(cert, w.request(f.Encode()))
}

// calls are those made to the back ends so far.
func (w *world) calls() (asked, signed int) {
	w.registry.mu.Lock()
	defer w.registry.mu.Unlock()
	w.signer.mu.Lock()
	defer w.signer.mu.Unlock()
	return w.registry.asked, w.signer.signed
}
