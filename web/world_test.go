package web

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/internal/devidp"
	"kluis/internal/devpki"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const ean = "871687200000000010"

// office is a portal with its database and a provider, and browsers. There is no
// API behind it: test/portal has all of Kluis.
type office struct {
	t        testing.TB
	portal   *Portal
	db       *pgtest.DB
	provider *devidp.Provider
	url      string // of the portal
	roots    *x509.CertPool
	log      *buffer
	wire     http.RoundTripper
	codes    atomic.Int64        // sent to the provider's token endpoint
	authTime atomic.Pointer[any] // instead of what the provider says

	mu    sync.Mutex
	clock time.Time
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// RoundTrip is between portal and provider: it counts codes, and changes when ID
// tokens say that the person was there.
func (o *office) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := o.wire.RoundTrip(r)
	if err != nil || r.Method != http.MethodPost {
		return res, err
	}
	o.codes.Add(1)
	at := o.authTime.Load()
	if at == nil || res.StatusCode != http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	var answer, claims map[string]any
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return nil, err
	}
	payload := must(base64.RawURLEncoding.DecodeString(strings.Split(answer["id_token"].(string), ".")[1]))
	if err := json.Unmarshal(payload, &claims); err != nil {
		return nil, err
	}
	for _, name := range []string{"iat", "exp"} { // whole, not 1.7e9
		claims[name] = int64(claims[name].(float64))
	}
	claims["auth_time"] = *at
	answer["id_token"] = must(o.provider.Sign(claims))
	res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(must(json.Marshal(answer)))), -1
	return res, nil
}

func newOffice(t testing.TB, change ...func(*Config)) *office {
	t.Helper()
	o := &office{t: t, db: pgtest.New(t), clock: time.Now(), log: &buffer{}}
	ca := must(devpki.NewCA("test"))
	o.roots = ca.Pool()
	server := must(ca.Issue(devpki.Leaf{CommonName: "portal", Hosts: []string{"127.0.0.1"}}))

	pages := must(net.Listen("tcp", "127.0.0.1:0"))
	o.url = "https://" + pages.Addr().String()
	login := must(net.Listen("tcp", "127.0.0.1:0"))
	o.provider = must(devidp.New()).At("https://" + login.Addr().String())
	log := slog.New(slog.NewJSONHandler(o.log, nil))
	idp := must(devidp.NewServer(o.provider, o.url+"/login/callback", devidp.Employees(), o.now, log))

	store := must(postgres.NewPortal(t.Context(), postgres.Config{DSN: o.db.URL(migrations.RolePortal), MaxConns: 4}))
	closed := must(net.Listen("tcp", "127.0.0.1:0"))
	nobody := "https://" + closed.Addr().String()
	closed.Close()
	config := Config{
		PublicURL: o.url, Gateway: nobody, Issuer: nobody,
		ClientTLS: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: o.roots, Certificates: []tls.Certificate{server}},
		Operator:  must(meter.ParseGLN("8716867000009")),
		SignIn: SignIn{Issuer: o.provider.URL(), ClientID: devidp.Audience, Roots: o.roots, RoleClaim: devidp.RoleClaim, NameClaim: "name",
			Roles: map[string]Role{"agent": Agent, "supervisor": Supervisor, "auditor": Auditor}},
		Store: store, SessionKey: [32]byte{1}, Idle: 15 * time.Minute, Absolute: 8 * time.Hour, Connections: DefaultConnections(),
		Profile: must(meter.ParseProfile(meter.NL())), AuditOrigin: "test", Language: "nl",
		Registry: prometheus.NewRegistry(), Log: log, Now: o.now,
	}
	for _, f := range change {
		f(&config)
	}
	o.portal = must(New(config))
	o.wire, o.portal.signIn.http.Transport = o.portal.signIn.http.Transport, o
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() {
		if err := o.portal.Serve(ctx, pages, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{server}}, time.Second); err != nil {
			t.Error(err)
		}
	})
	served.Go(func() {
		if err := idp.Serve(ctx, login, server); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		served.Wait()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

func (o *office) now() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.clock
}

// pass lets time go by, for the portal.
func (o *office) pass(d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.clock = o.clock.Add(d)
}

// browser keeps cookies and follows no redirect.
type browser struct {
	o   *office
	c   *http.Client
	jar *cookiejar.Jar
}

func (o *office) browser() *browser {
	jar := must(cookiejar.New(nil))
	tr := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: o.roots}}
	o.t.Cleanup(tr.CloseIdleConnections)
	return &browser{o, &http.Client{Jar: jar, Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, jar}
}

type page struct {
	*http.Response
	body string
}

func (b *browser) do(method, to string, form url.Values, header ...string) page {
	b.o.t.Helper()
	if strings.HasPrefix(to, "/") {
		to = b.o.url + to
	}
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req := must(http.NewRequest(method, to, body))
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := b.c.Do(req)
	if err != nil {
		b.o.t.Fatal(err)
	}
	defer res.Body.Close()
	return page{res, string(must(io.ReadAll(res.Body)))}
}

func (b *browser) get(to string, header ...string) page { return b.do("GET", to, nil, header...) }
func (b *browser) post(to string, form url.Values, header ...string) page {
	return b.do("POST", to, form, header...)
}

// atProvider chooses an employee, for the request that a login page sent the
// browser away with; change may change the request first.
func (b *browser) atProvider(away page, employee string, change func(url.Values)) (back string) {
	b.o.t.Helper()
	if away.StatusCode != http.StatusSeeOther {
		b.o.t.Fatalf("login: %s", away.Status)
	}
	u := must(url.Parse(away.Header.Get("Location")))
	form := u.Query()
	if change != nil {
		change(form)
	}
	form.Set("employee", employee)
	u.RawQuery = ""
	chosen := b.post(u.String(), form)
	if chosen.StatusCode != http.StatusSeeOther {
		b.o.t.Fatalf("provider: %s: %s", chosen.Status, chosen.body)
	}
	return chosen.Header.Get("Location")
}

// silently is where the provider sends the browser at once, because of its own
// session; "" when it asks who it is. change may change the request first.
func (b *browser) silently(away page, change func(url.Values)) (back string) {
	b.o.t.Helper()
	u := must(url.Parse(away.Header.Get("Location")))
	if !strings.HasPrefix(u.String(), b.o.provider.URL()) {
		b.o.t.Fatalf("not to the provider: %s %s", away.Status, u)
	}
	q := u.Query()
	if change != nil {
		change(q)
	}
	u.RawQuery = q.Encode()
	return b.get(u.String()).Header.Get("Location")
}

// signIn signs an employee in.
func (o *office) signIn(employee string) *browser {
	o.t.Helper()
	b := o.browser()
	b.signIn(employee, "/login")
	return b
}

func (b *browser) signIn(employee, from string) page {
	b.o.t.Helper()
	back := b.get(b.atProvider(b.get(from), employee, nil))
	if back.StatusCode != http.StatusSeeOther {
		b.o.t.Fatalf("callback: %s: %s", back.Status, back.problem())
	}
	return back
}

func (b *browser) cookie() string {
	for _, c := range b.jar.Cookies(must(url.Parse(b.o.url))) {
		if c.Name == cookieName {
			return c.Value
		}
	}
	return ""
}

func (b *browser) setCookie(value string) {
	b.jar.SetCookies(must(url.Parse(b.o.url)), []*http.Cookie{{Name: cookieName, Value: value, Path: "/", Secure: true}})
}

// openCase opens the metering point and returns the path of the case.
func (b *browser) openCase() string {
	b.o.t.Helper()
	p := b.post("/open", url.Values{"ean": {ean}, "reason": {"ticket-4711"}})
	if p.StatusCode != http.StatusSeeOther || !regexp.MustCompile(`^/c/[0-9a-f]{32}$`).MatchString(p.Header.Get("Location")) {
		b.o.t.Fatalf("open: %s %s", p.Status, p.Header.Get("Location"))
	}
	return p.Header.Get("Location")
}

// signedIn says whether the browser is.
func (b *browser) signedIn() bool {
	p := b.get("/")
	if p.StatusCode == http.StatusSeeOther {
		return false
	}
	if p.StatusCode != http.StatusOK {
		b.o.t.Fatalf("/: %s", p.Status)
	}
	return true
}

// problem is the name of the problem that a page shows.
func (p page) problem() string {
	m := regexp.MustCompile(`data-problem="([a-z-]+)"`).FindStringSubmatch(p.body)
	if m == nil {
		return ""
	}
	return m[1]
}
