package web

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/devidp"
	"kluis/meter"

	"os"
	"path/filepath"
)

// TestLoginAttacks: a code is good for the browser that asked, for what it asked,
// once, and soon.
func TestLoginAttacks(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	refused := func(name string, b *browser, back string) {
		t.Helper()
		p := b.get(back)
		if p.StatusCode != http.StatusForbidden || p.problem() != "sign-in-failed" || b.cookie() != "" {
			t.Errorf("%s: %s %s", name, p.Status, p.problem())
		}
	}
	begin := func(change func(url.Values)) (*browser, string) {
		b := o.browser()
		return b, b.atProvider(b.get("/login"), "eva", change)
	}
	set := func(name, value string) func(url.Values) { return func(v url.Values) { v.Set(name, value) } }

	b, back := begin(nil)
	refused("another browser, which began nothing", o.browser(), back)
	other := o.browser()
	other.get("/login")
	refused("another browser, which began a login of its own", other, back)
	if p := b.get(back); p.StatusCode != http.StatusSeeOther {
		t.Fatalf("the browser itself: %s", p.Status)
	}

	b, back = begin(nil)
	b.signIn("eva", "/login")
	b.post("/logout", url.Values{})
	refused("a code that is left of an earlier attempt", b, back)

	b, back = begin(set("nonce", "another"))
	refused("another nonce", b, back)
	b, back = begin(set("nonce", ""))
	refused("no nonce", b, back)
	b, back = begin(set("code_challenge", strings.Repeat("A", 43)))
	refused("a code of another's challenge", b, back)
	b, back = begin(set("state", "another"))
	refused("another state", b, back)

	b, back = begin(nil)
	refused("no code", b, "/login/callback?state="+must(url.Parse(back)).Query().Get("state"))
	b, back = begin(nil)
	refused("an error of the provider's", b, "/login/callback?error=access_denied&state="+must(url.Parse(back)).Query().Get("state"))
	b, back = begin(nil)
	o.pass(attemptLife + time.Second)
	refused("too late", b, back)

	// Twice: the code was spent, and so was the attempt.
	b, back = begin(nil)
	if p := b.get(back); p.StatusCode != http.StatusSeeOther {
		t.Fatalf("once: %s", p.Status)
	}
	cookie := b.cookie()
	if p := b.get(back); p.StatusCode != http.StatusForbidden || b.cookie() != cookie {
		t.Errorf("twice: %s", p.Status)
	}
}

// TestAttemptsAreSpent: the provider hears of a code once for each login that was
// begun, however often the browser comes back with it, and not of too many.
func TestAttemptsAreSpent(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	// replay comes back with the cookies of before, which a browser may keep.
	replay := func(b *browser, to string, times int) (last page) {
		saved := b.jar.Cookies(must(url.Parse(o.url)))
		for range times {
			var cookies []string
			for _, c := range saved {
				cookies = append(cookies, c.Name+"="+c.Value)
			}
			stranger := o.browser()
			last = stranger.get(to, "Cookie", strings.Join(cookies, "; "))
			if stranger.cookie() != "" {
				t.Error("signed in")
			}
		}
		return last
	}
	state := func(away page) string { return must(url.Parse(away.Header.Get("Location"))).Query().Get("state") }

	b := o.browser()
	if p := replay(b, "/login/callback?code=made-up&state="+state(b.get("/login")), 20); p.problem() != "sign-in-failed" {
		t.Errorf("again: %s %s", p.Status, p.problem())
	}
	if n := o.codes.Load(); n != 1 {
		t.Errorf("%d codes were sent for one login", n)
	}
	// With a code that is good, too: the first one to come has spent it.
	b = o.browser()
	away := b.get("/login")
	replay(b, "/login/callback?code=made-up&state="+state(away), 1)
	if p := b.get(b.atProvider(away, "eva", nil)); p.problem() != "sign-in-failed" {
		t.Errorf("a login that was spent: %s %s", p.Status, p.problem())
	}

	before := o.codes.Load()
	var p page
	for range 2 * codesBurst {
		p = b.get("/login/callback?code=made-up&state=" + state(b.get("/login")))
	}
	if p.StatusCode != http.StatusTooManyRequests || p.problem() != "idp-busy" {
		t.Errorf("after %d logins: %s %s", 2*codesBurst, p.Status, p.problem())
	}
	if n := o.codes.Load() - before; n >= codesBurst {
		t.Errorf("%d codes were sent at once", n)
	}
	o.pass(time.Minute)
	b.signIn("eva", "/login")

	// What is remembered ends with the attempts.
	o.pass(attemptLife)
	o.portal.codes.purge(o.now())
	o.portal.codes.mu.Lock()
	defer o.portal.codes.mu.Unlock()
	if n := len(o.portal.codes.spent); n != 0 {
		t.Errorf("%d states are remembered", n)
	}
}

// TestCodesAtOnce: a provider that is slow holds a few requests and no more.
func TestCodesAtOnce(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	for range codesAtOnce {
		if err := o.portal.codes.enter(); err != nil {
			t.Fatal(err)
		}
	}
	b := o.browser()
	back := b.atProvider(b.get("/login"), "eva", nil)
	if p := b.get(back); p.StatusCode != http.StatusTooManyRequests || p.problem() != "idp-busy" || o.codes.Load() != 0 {
		t.Errorf("%s %s", p.Status, p.problem())
	}
	o.portal.codes.leave()
	for range 2 * codesAtOnce { // each lets the next one in
		b.signIn("eva", "/login")
		o.pass(time.Minute)
	}
}

// TestAuthTime: an ID token that does not say when the person was there, or says
// what cannot be, signs nobody in.
func TestAuthTime(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	now := o.now().Unix()
	for name, c := range map[string]struct {
		says any
		good bool
	}{
		"now": {now, true}, "nearly a minute ago": {now - 58, true}, "in a minute": {now + 60, true},
		"none": {nil, false}, "a string": {"now", false}, "digits in a string": {strconv.FormatInt(now, 10), false}, "zero": {0, false}, "an array": {[]int64{now}, false},
		"before the login was begun": {now - 62, false}, "eight hours ago": {now - 8*3600 - 62, false}, "in the future": {now + 72, false}, "too large": {1e300, false},
	} {
		o.authTime.Store(&c.says)
		b := o.browser()
		p := b.get(b.atProvider(b.get("/login"), "eva", nil))
		if c.good != (p.StatusCode == http.StatusSeeOther && p.Header.Get("Location") == "/" && b.signedIn()) || !c.good && p.problem() != "sign-in-failed" {
			t.Errorf("%s: %s %s", name, p.Status, p.problem())
		}
		// A renewal may be of long ago, and no longer than max_age.
		o.authTime.Store(nil)
		o.pass(10 * time.Second)
		b = o.signIn("eva")
		o.authTime.Store(&c.says)
		p = b.get(b.silently(b.get("/login"), nil))
		if good := c.good || name == "before the login was begun"; good != (p.StatusCode == http.StatusSeeOther) {
			t.Errorf("renewal, %s: %s %s", name, p.Status, p.problem())
		}
		o.pass(-10 * time.Second)
	}
}

// TestSignedInTooLongAgo: for the cryptoservers, which may allow less than the
// portal. The person is asked; the provider's own session would go round in circles.
func TestSignedInTooLongAgo(t *testing.T) {
	t.Parallel()
	o := newOffice(t, func(c *Config) {
		issuer := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error": "invalid_request", "error_description": "the subject token is not accepted: signed_in_too_long_ago"}`)
		}))
		issuer.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: c.ClientTLS.Certificates}
		issuer.StartTLS()
		t.Cleanup(issuer.Close)
		c.Issuer = issuer.URL
	})
	b := o.signIn("samira")
	o.pass(2 * time.Minute)
	p := b.get("/suppliers")
	if p.Header.Get("Location") != "/login?in-person=yes&next=%2Fsuppliers" {
		t.Fatalf("%s %s", p.Status, p.Header.Get("Location"))
	}
	away := b.get(p.Header.Get("Location"))
	if back := b.silently(away, nil); back != "" {
		t.Error("nobody is asked")
	}
	if p := b.get(b.silently(away, func(q url.Values) { q.Del("prompt") })); p.problem() != "sign-in-failed" {
		t.Errorf("without prompt in the request: %s %s", p.Status, p.problem())
	}
	if back := b.signIn("samira", p.Header.Get("Location")); back.Header.Get("Location") != "/suppliers" {
		t.Errorf("back at %s", back.Header.Get("Location"))
	}
}

func TestNoRole(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	b := o.browser()
	p := b.get(b.atProvider(b.get("/login"), "ilse", nil))
	if p.StatusCode != http.StatusForbidden || p.problem() != "no-role" || b.cookie() != "" {
		t.Errorf("%s %s", p.Status, p.problem())
	}
}

// TestTheRoleIsReadAsTheCryptoserversReadIt: who is told "supervisor" here is one
// there.
func TestTheRoleIsReadAsTheCryptoserversReadIt(t *testing.T) {
	t.Parallel()
	provider := must(devidp.New())
	file := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(file, provider.JWKS(), 0o600); err != nil {
		t.Fatal(err)
	}
	roles := config.Roles{Agent: []string{"a", "a2"}, Supervisor: []string{"s"}, Auditor: []string{"u"}}
	identities := must(authn.ConfiguredIdentities([]config.IdentityProvider{{URL: devidp.URL, Audience: devidp.Audience, JWKSFile: file, RoleClaim: "groups", Roles: roles}}))
	ours := SignIn{Roles: map[string]Role{"a": Agent, "a2": Agent, "s": Supervisor, "u": Auditor}}
	now := time.Now()
	for _, claim := range []any{"a", "s", "u", "x", "", nil, 1, true, []string{}, []string{"x"}, []string{"x", "a2"}, []string{"a", "s"}, []string{"u", "a"}, []string{"u", "s", "a"},
		[]any{"a", 1}, []any{"a", nil}, map[string]any{"a": true}, []any{[]string{"s"}}, "A", " a", "a s"} {
		raw := must(provider.Sign(map[string]any{"sub": "eva", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "groups": claim}))
		id, err := identities.Verify(t.Context(), raw, now)
		var theirs Role
		if err == nil {
			theirs = map[authz.Role]Role{authz.Agent: Agent, authz.Supervisor: Supervisor, authz.Auditor: Auditor}[id.Role]
		}
		b := must(json.Marshal(claim))
		if claim == nil {
			b = nil // left out
		}
		if role, _ := ours.role(b); role != theirs {
			t.Errorf("%s: %q here, %q there", b, role, theirs)
		}
	}
}

// TestErrandsAreReadAsTheyAreMeant: what the cryptoservers read of what is sent.
func TestErrandsAreReadAsTheyAreMeant(t *testing.T) {
	t.Parallel()
	p := must(meter.ParseProfile(meter.NL()))
	c := &Case{EAN: must(meter.ParseEAN(ean)), Reason: "ticket-4711 «é»"}
	id := "0b8e5a52-4a4e-4a6b-9c55-8d4ad5a7a3f1"
	digest := strings.Repeat("A", 43)
	day := must(meter.ParseDay("2026-01-01"))
	for kind, e := range map[authz.ErrandKind][]Errand{
		authz.ErrandView:     {ToView(c)},
		authz.ErrandReadings: {ToRead(c, day, day+31, []string{"import_low", "import_normal"})},
		authz.ErrandStep: {ToStep(c, "grant", id, digest, "call-1"), ToStep(c, "reject", id, digest, ""), ToStep(c, "revoke", id, digest, ""),
			ToRegister(c, [32]byte{1}, "call-1")},
		authz.ErrandFind:     {ToFind("1234AB", "5", "ticket")},
		authz.ErrandOversee:  {ToOversee("look")},
		authz.ErrandSupplier: {ToSuspend("8712000000011", "theft"), ToResume("8712000000011", "over")},
	} {
		for _, errand := range e {
			raw := must(json.Marshal([]Errand{errand}))
			read, err := authn.ParseErrand(raw, p)
			if err != nil || read.Kind != kind || read.Reason != errand.Reason {
				t.Errorf("%s: %v, %v", raw, read.Kind, err)
				continue
			}
			if named := read.EAN == c.EAN; named != (errand.EAN != "") {
				t.Errorf("%s: metering point %v", raw, read.EAN)
			}
		}
	}
}
