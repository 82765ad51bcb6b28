package devidp

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kluis/internal/devpki"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var quiet = slog.New(slog.NewJSONHandler(io.Discard, nil))

// TestOnlyOnLoopback: it refuses to be there for other machines, and to send
// anybody to them.
func TestOnlyOnLoopback(t *testing.T) {
	t.Parallel()
	p := must(New())
	for iss, redirect := range map[string]string{
		URL:                        back,
		"https://192.0.2.1:443":    back,
		"https://localhost:443":    back, // a name, which others may answer for
		"http://127.0.0.1:1":       back,
		"https://0.0.0.0:1":        back,
		"https://127.0.0.1:1":      "https://portal.example/login/callback",
		"https://[::1]:1":          "http://127.0.0.1:1/login/callback",
		"https://127.0.0.1.evil:1": back,
	} {
		if _, err := NewServer(p.At(iss), redirect, Employees(), time.Now, quiet); !errors.Is(err, ErrNotLocal) {
			t.Errorf("%s, %s: %v", iss, redirect, err)
		}
	}
	everywhere := must(net.Listen("tcp", "0.0.0.0:0"))
	defer everywhere.Close()
	_, port, err := net.SplitHostPort(everywhere.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := must(NewServer(p.At("https://127.0.0.1:"+port), back, Employees(), time.Now, quiet))
	if err := s.Serve(t.Context(), everywhere, tls.Certificate{}); !errors.Is(err, ErrNotLocal) {
		t.Errorf("on all addresses: %v", err)
	}
	other := must(net.Listen("tcp", "127.0.0.1:0"))
	defer other.Close()
	if err := s.Serve(t.Context(), other, tls.Certificate{}); !errors.Is(err, ErrNotLocal) {
		t.Errorf("under another address than its tokens name: %v", err)
	}
}

const (
	back     = "https://127.0.0.1:1/login/callback"
	verifier = "a-verifier-of-the-portal-that-is-long-enough-0"
)

// serve serves a provider, and returns its address and a browser without cookies.
func serve(t *testing.T, now func() time.Time) (base string, c *http.Client) {
	t.Helper()
	ca := must(devpki.NewCA("test"))
	certificate := must(ca.Issue(devpki.Leaf{CommonName: "idp", Hosts: []string{"127.0.0.1"}}))
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	base = "https://" + l.Addr().String()
	s := must(NewServer(must(New()).At(base), back, Employees(), now, quiet))
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() {
		if err := s.Serve(ctx, l, certificate); err != nil {
			t.Error(err)
		}
	})
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS13}}
	t.Cleanup(func() { tr.CloseIdleConnections(); cancel(); served.Wait() })
	return base, &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// request is one for a code, as the portal makes it.
func request(change ...string) url.Values {
	sum := sha256.Sum256([]byte(verifier))
	v := url.Values{"client_id": {Audience}, "redirect_uri": {back}, "response_type": {"code"}, "scope": {"openid profile"}, "state": {"s"}, "nonce": {"n"},
		"code_challenge": {b64(sum[:])}, "code_challenge_method": {"S256"}}
	for i := 0; i < len(change); i += 2 {
		v.Set(change[i], change[i+1])
	}
	return v
}

// TestCodes: a code is for the client's redirect and verifier, once; a request
// without PKCE gets none.
func TestCodes(t *testing.T) {
	t.Parallel()
	base, c := serve(t, time.Now)
	for name, v := range map[string]url.Values{
		"another client":      request("client_id", "other"),
		"another address":     request("redirect_uri", "https://127.0.0.1:2/login/callback"),
		"an implicit flow":    request("response_type", "id_token"),
		"no PKCE":             request("code_challenge", ""),
		"a plain challenge":   request("code_challenge_method", "plain"),
		"no state":            request("state", ""),
		"not OpenID Connect":  request("scope", "profile"),
		"nobody of that name": request("employee", "nobody"),
	} {
		if name != "nobody of that name" {
			res := must(c.Get(base + "/authorize?" + v.Encode()))
			res.Body.Close()
			if res.StatusCode != http.StatusBadRequest {
				t.Errorf("%s: %s", name, res.Status)
			}
			v.Set("employee", "eva")
		}
		res := must(c.PostForm(base+"/authorize", v))
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest || res.Header.Get("Location") != "" {
			t.Errorf("%s, chosen: %s", name, res.Status)
		}
	}
	page := must(c.Get(base + "/authorize?" + request("state", `"><script>`).Encode()))
	text := string(must(io.ReadAll(page.Body)))
	page.Body.Close()
	if !strings.Contains(text, "asks nobody for a password") || !strings.Contains(text, "not for production") || strings.Contains(text, "<script>") {
		t.Errorf("the page: %s", text)
	}
	code := func() string {
		res := must(c.PostForm(base+"/authorize", request("employee", "eva")))
		res.Body.Close()
		u := must(url.Parse(res.Header.Get("Location")))
		if !strings.HasPrefix(u.String(), back+"?") || u.Query().Get("state") != "s" {
			t.Fatalf("%s to %s", res.Status, u)
		}
		return u.Query().Get("code")
	}
	exchange := func(code string, change ...string) (int, map[string]any) {
		v := url.Values{"grant_type": {"authorization_code"}, "client_id": {Audience}, "redirect_uri": {back}, "code": {code}, "code_verifier": {verifier}}
		for i := 0; i < len(change); i += 2 {
			v.Set(change[i], change[i+1])
		}
		res := must(c.PostForm(base+"/token", v))
		defer res.Body.Close()
		var got map[string]any
		if err := json.NewDecoder(res.Body).Decode(&got); err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, got
	}
	once := code()
	if status, got := exchange(once); status != http.StatusOK || got["id_token"] == nil {
		t.Fatalf("%d %v", status, got)
	}
	for name, try := range map[string]func() (int, map[string]any){
		"twice":                 func() (int, map[string]any) { return exchange(once) },
		"another's verifier":    func() (int, map[string]any) { return exchange(code(), "code_verifier", "other") },
		"another address":       func() (int, map[string]any) { return exchange(code(), "redirect_uri", "https://127.0.0.1:2/") },
		"another client":        func() (int, map[string]any) { return exchange(code(), "client_id", "other") },
		"another kind of grant": func() (int, map[string]any) { return exchange(code(), "grant_type", "password") },
		"no code":               func() (int, map[string]any) { return exchange("") },
	} {
		if status, got := try(); status != http.StatusBadRequest || got["id_token"] != nil {
			t.Errorf("%s: %d %v", name, status, got)
		}
	}
}

// TestSessions: who chose is not asked again, unless the request says so or that is
// too long ago; auth_time is when they chose, and not when the code was given.
func TestSessions(t *testing.T) {
	t.Parallel()
	var clock atomic.Int64
	began := time.Now().Truncate(time.Second)
	base, c := serve(t, func() time.Time { return began.Add(time.Duration(clock.Load())) })
	c.Jar = must(cookiejar.New(nil))
	// ask returns what the browser is sent back with, nil for the page that asks.
	ask := func(change ...string) url.Values {
		res := must(c.Get(base + "/authorize?" + request(change...).Encode()))
		res.Body.Close()
		if res.StatusCode == http.StatusOK {
			return nil
		}
		return must(url.Parse(res.Header.Get("Location"))).Query()
	}
	if q := ask(); q != nil {
		t.Fatalf("nobody chose, and is sent back with %v", q)
	}
	if q := ask("prompt", "none"); q.Get("error") != "login_required" || q.Get("state") != "s" || q.Has("code") {
		t.Errorf("nobody chose, prompt=none: %v", q)
	}
	res := must(c.PostForm(base+"/authorize", request("employee", "eva", "prompt", "login")))
	res.Body.Close()
	clock.Store(int64(time.Hour))
	for name, change := range map[string][]string{
		"prompt=login": {"prompt", "login"}, "another prompt": {"prompt", "select_account"}, "max_age in the past": {"max_age", "3599"}, "max_age=0": {"max_age", "0"},
		"not a max_age": {"max_age", "-1"},
	} {
		if q := ask(change...); q != nil {
			t.Errorf("%s: sent back with %v", name, q)
		}
	}
	for name, change := range map[string][]string{"anything": {}, "prompt=none": {"prompt", "none"}, "max_age": {"max_age", "3600"}} {
		q := ask(change...)
		if q.Get("code") == "" || q.Get("state") != "s" {
			t.Fatalf("%s: %v", name, q)
		}
		res := must(c.PostForm(base+"/token", url.Values{"grant_type": {"authorization_code"}, "client_id": {Audience}, "redirect_uri": {back},
			"code": {q.Get("code")}, "code_verifier": {verifier}}))
		var got struct {
			ID string `json:"id_token"`
		}
		if err := json.NewDecoder(res.Body).Decode(&got); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		var claims struct {
			Sub      string
			AuthTime int64 `json:"auth_time"`
			IAT      int64
		}
		if err := json.Unmarshal(must(base64.RawURLEncoding.DecodeString(strings.Split(got.ID, ".")[1])), &claims); err != nil {
			t.Fatal(err)
		}
		if claims.Sub != "eva" || claims.AuthTime != began.Unix() || claims.IAT != began.Add(time.Hour).Unix() {
			t.Errorf("%s: %+v", name, claims)
		}
	}
	clock.Store(int64(sessionLife + time.Second))
	if q := ask(); q != nil {
		t.Errorf("after a day: %v", q)
	}
	if res := must((&http.Client{Transport: c.Transport}).Get(base + "/authorize?" + request().Encode())); res.StatusCode != http.StatusOK {
		t.Errorf("another browser: %s", res.Status)
	} else {
		res.Body.Close()
	}
}
