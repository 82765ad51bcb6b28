package devidp

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
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
	const back = "https://127.0.0.1:1/login/callback"
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

// TestCodes: a code is for the client's redirect and verifier, once; a request
// without PKCE gets none.
func TestCodes(t *testing.T) {
	t.Parallel()
	ca := must(devpki.NewCA("test"))
	certificate := must(ca.Issue(devpki.Leaf{CommonName: "idp", Hosts: []string{"127.0.0.1"}}))
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	base := "https://" + l.Addr().String()
	const back = "https://127.0.0.1:1/login/callback"
	s := must(NewServer(must(New()).At(base), back, Employees(), time.Now, quiet))
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() {
		if err := s.Serve(ctx, l, certificate); err != nil {
			t.Error(err)
		}
	})
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS13}}
	t.Cleanup(func() { tr.CloseIdleConnections(); cancel(); served.Wait() })
	c := &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

	const verifier = "a-verifier-of-the-portal-that-is-long-enough-0"
	sum := sha256.Sum256([]byte(verifier))
	request := func(change ...string) url.Values {
		v := url.Values{"client_id": {Audience}, "redirect_uri": {back}, "response_type": {"code"}, "scope": {"openid profile"}, "state": {"s"}, "nonce": {"n"},
			"code_challenge": {b64(sum[:])}, "code_challenge_method": {"S256"}}
		for i := 0; i < len(change); i += 2 {
			v.Set(change[i], change[i+1])
		}
		return v
	}
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
