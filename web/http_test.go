package web

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// at is a path of a route.
func at(rt route, c string) string {
	return strings.NewReplacer("{case}", strings.TrimPrefix(c, "/c/"), "{name}", "portal.js").Replace(rt.path)
}

// TestHeaders: every answer has them, whoever asks, whatever comes of it.
func TestHeaders(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	eva, stranger := o.signIn("eva"), o.browser()
	path := eva.openCase()
	want := map[string]string{
		"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
		"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
		"Strict-Transport-Security": "max-age=31536000", "Cache-Control": "no-store",
	}
	check := func(name string, p page) {
		t.Helper()
		for h, v := range want {
			if got := p.Header.Values(h); len(got) != 1 || got[0] != v {
				t.Errorf("%s (%s): %s is %q", name, p.Status, h, got)
			}
		}
	}
	for _, rt := range o.portal.table {
		if strings.HasPrefix(rt.path, "/logout") {
			continue // at the end
		}
		check("stranger "+rt.method+" "+rt.path, stranger.do(rt.method, at(rt, path), nil))
		check("eva "+rt.method+" "+rt.path, eva.do(rt.method, at(rt, path), nil))
	}
	check("no page", eva.get("/no-such-page"))
	check("no method", eva.do("DELETE", "/", nil))
	check("foreign", eva.post("/open", url.Values{}, "Sec-Fetch-Site", "cross-site"))
	check("too large", eva.post("/open", url.Values{"reason": {strings.Repeat("x", maxForm)}}))
	check("logout everywhere", eva.post("/logout/everywhere", url.Values{}))
	check("logout", eva.post("/logout", url.Values{}))

	// Static files alone are kept.
	name, err := o.portal.static.url("portal.css")
	if err != nil {
		t.Fatal(err)
	}
	want["Cache-Control"] = "public, max-age=31536000, immutable"
	check("static", stranger.get(name))
	if p := stranger.get(name, "Accept-Encoding", "gzip"); p.Header.Get("Content-Encoding") != "gzip" || len(p.body) > 8000 {
		t.Errorf("static: %s, %d bytes", p.Header.Get("Content-Encoding"), len(p.body))
	}
	for _, word := range []string{"unsafe", "http:", "data:", "*", "nonce"} {
		if strings.Contains(policy, word) {
			t.Errorf("the policy has %s", word)
		}
	}
}

// TestForeignPosts: what another site has a browser send does nothing.
func TestForeignPosts(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	eva := o.signIn("eva")
	path := eva.openCase()
	for _, rt := range o.portal.table {
		if rt.method != http.MethodPost {
			continue
		}
		for name, header := range map[string][]string{
			"another site":           {"Sec-Fetch-Site", "cross-site"},
			"another port":           {"Sec-Fetch-Site", "same-site"},
			"an old browser":         {"Origin", "https://evil.example"},
			"a page without origin":  {"Origin", "null"},
			"the provider's address": {"Origin", o.provider.URL()},
		} {
			if p := eva.post(at(rt, path), url.Values{"ean": {ean}, "reason": {"x"}}, header...); p.StatusCode != http.StatusForbidden || p.problem() != "foreign" {
				t.Errorf("%s: POST %s: %s %s", name, rt.path, p.Status, p.problem())
			}
		}
	}
	if !eva.signedIn() {
		t.Error("another site signed her out")
	}
	if n := strings.Count(eva.get("/").body, `<tr><th scope="row">`); n != 1 {
		t.Errorf("%d cases are open", n)
	}
}

// TestRoles: each route for those that its line names, and for nobody else; and
// before it does anything.
func TestRoles(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	for employee, role := range map[string]Role{"eva": Agent, "samira": Supervisor, "thomas": Auditor} {
		b := o.signIn(employee)
		path := b.openCase()
		home := b.get("/").body
		for _, rt := range o.portal.table {
			if len(rt.roles) == 0 || slices.Contains(rt.roles, role) {
				continue
			}
			if p := b.do(rt.method, at(rt, path), nil); p.StatusCode != http.StatusForbidden || p.problem() != "no-rights" {
				t.Errorf("%s %s for %s: %s %s", rt.method, rt.path, role, p.Status, p.problem())
			}
			if rt.method == http.MethodGet && strings.Contains(home, `href="`+rt.path+`"`) {
				t.Errorf("%s is shown the way to %s", role, rt.path)
			}
		}
	}
	stranger := o.browser()
	for _, rt := range o.portal.table {
		if len(rt.roles) == 0 {
			continue
		}
		if p := stranger.do(rt.method, at(rt, "/c/0123456789abcdef0123456789abcdef"), nil); p.StatusCode != http.StatusSeeOther || !strings.HasPrefix(p.Header.Get("Location"), "/signin") {
			t.Errorf("%s %s for nobody: %s", rt.method, rt.path, p.Status)
		}
	}
	if supervisor := o.signIn("samira"); supervisor.get("/suppliers").problem() == "no-rights" {
		t.Error("a supervisor is refused the suppliers")
	}
}

// TestCasesAreOfOneSession: an address leads nowhere for anybody else.
func TestCasesAreOfOneSession(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	eva, again, samira := o.signIn("eva"), o.signIn("eva"), o.signIn("samira")
	of := eva.openCase()
	path := of + "/consents"
	if p := eva.get(path); p.problem() == "no-case" {
		t.Fatal("it is not open")
	}
	for name, b := range map[string]*browser{"another session": again, "another employee": samira} {
		if p := b.get(path); p.StatusCode != http.StatusNotFound || strings.Contains(p.body, ean[:4]+" "+ean[4:8]) {
			t.Errorf("%s: %s", name, p.Status)
		}
	}
	for _, bad := range []string{"/c/" + ean + "/consents", "/c/" + strings.ToUpper(of[3:]) + "/consents", of + "0/consents", "/c/%00/consents", "/c/..%2f/consents"} {
		if p := eva.get(bad); p.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", bad, p.Status)
		}
	}
}

// TestTooFast: a session has no more pages than a person turns; its way out is
// there all the same, and other sessions have theirs.
func TestTooFast(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	eva, samira := o.signIn("eva"), o.signIn("samira")
	for n := range pagesBurst {
		if p := eva.get("/"); p.StatusCode != http.StatusOK {
			t.Fatalf("page %d: %s", n, p.Status)
		}
	}
	p := eva.get("/")
	if p.StatusCode != http.StatusTooManyRequests || p.problem() != "too-fast" || p.Header.Get("Retry-After") != "5" || !strings.Contains(p.body, `href="/"`) {
		t.Errorf("page %d: %s %s", pagesBurst+1, p.Status, p.problem())
	}
	if p := eva.get("/health/now", "HX-Request", "true"); p.StatusCode != http.StatusTooManyRequests || strings.Contains(p.body, "<html") {
		t.Errorf("a part that a page asks for by itself: %s", p.Status)
	}
	if p := eva.post("/open", url.Values{"ean": {ean}, "reason": {"x"}}); p.StatusCode != http.StatusTooManyRequests {
		t.Errorf("a form: %s", p.Status)
	}
	if p := samira.get("/"); p.StatusCode != http.StatusOK {
		t.Errorf("a colleague: %s", p.Status)
	}
	o.pass(5 * time.Second)
	if p := eva.get("/"); p.StatusCode != http.StatusOK {
		t.Errorf("after what Retry-After says: %s", p.Status)
	}
	for range pagesBurst {
		eva.get("/")
	}
	if p := eva.post("/session/stay", url.Values{}); p.StatusCode != http.StatusNoContent {
		t.Errorf("staying: %s", p.Status)
	}
	if p := eva.post("/logout/everywhere", url.Values{}); p.Header.Get("Location") != "/signin?out" || eva.signedIn() {
		t.Errorf("signing out: %s", p.Status)
	}
	// Nobody is remembered for long.
	o.pass(time.Minute)
	o.portal.pages.purge(o.now())
	if n := len(o.portal.pages.of); n != 0 {
		t.Errorf("%d sessions are remembered", n)
	}
}

// TestBuckets: there are no more than are bounded, and who has room keeps it.
func TestBuckets(t *testing.T) {
	t.Parallel()
	b, now := newBuckets(1, 2), time.Now()
	for n := range maxBuckets {
		if !b.take(strconv.Itoa(n), now) {
			t.Fatalf("key %d has no room", n)
		}
	}
	if b.take("one more", now) || len(b.of) != maxBuckets {
		t.Error("there is room for any number of keys")
	}
	if !b.take("0", now) || b.take("0", now) {
		t.Error("a key that is known has not its own room")
	}
	if !b.take("one more", now.Add(time.Second)) || len(b.of) != 2 {
		t.Errorf("those that are full again stay: %d", len(b.of))
	}
}

// TestHost: under another name there is nothing, for who rebinds a name to us.
func TestHost(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	b := o.browser()
	req := must(http.NewRequest(http.MethodGet, o.url+"/signin", nil))
	req.Host = "portal.evil.example"
	res, err := b.c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("%s", res.Status)
	}
}

// TestLog: a line for each request, and nothing in it that is anybody's.
func TestLog(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	eva := o.signIn("eva")
	path := eva.openCase()
	eva.get(path)
	eva.post("/open", url.Values{"ean": {ean}, "reason": {""}})
	eva.get("/c/" + ean)
	log := o.log.String()
	if strings.Count(log, `"msg":"request"`) < 4 || !strings.Contains(log, `"route":"/open"`) {
		t.Fatalf("the log:\n%s", log)
	}
	for _, secret := range []string{ean, "8716 8720", "ticket-4711", "Eva", "eva", path, eva.cookie(), "eyJ", "code=", "state="} {
		if strings.Contains(log, secret) {
			t.Errorf("%q is in the log:\n%s", secret, log)
		}
	}
}

// TestPreferences: back to where one was, and to no other site.
func TestPreferences(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	b := o.browser()
	for back, want := range map[string]string{
		"/signin": "/signin", "/c/00/log": "/c/00/log", "": "/", "//evil.example": "/", "https://evil.example": "/", "/\\evil.example": "/", "/\t/evil.example": "/", "/?x": "/", "/%2fevil": "/",
	} {
		if p := b.post("/preferences", url.Values{"language": {"en"}, "back": {back}}); p.Header.Get("Location") != want {
			t.Errorf("back %q: %q", back, p.Header.Get("Location"))
		}
		if p := b.get("/login?" + (url.Values{"next": {back}}).Encode()); p.StatusCode != http.StatusSeeOther {
			t.Fatalf("login: %s", p.Status)
		}
	}
	if p := b.get("/signin"); !strings.Contains(p.body, `<html lang="en"`) {
		t.Error("the language is not kept")
	}
	if p := o.browser().get("/signin", "Accept-Language", "fr, en-GB;q=0.8"); !strings.Contains(p.body, `<html lang="en"`) {
		t.Error("what the browser prefers is not heard")
	}
	if p := o.browser().get("/signin"); !strings.Contains(p.body, `<html lang="nl"`) {
		t.Error("the language of the configuration is another")
	}
	b.post("/preferences", url.Values{"theme": {`dark"><script>`}, "language": {"xx"}})
	if p := b.get("/signin"); strings.Contains(p.body, "data-theme") || !strings.Contains(p.body, `<html lang="en"`) {
		t.Error("a theme or a language that there is not was taken")
	}
}
