package web

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kluis/migrations"
)

// TestCookie: what a browser is told to do with it.
func TestCookie(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	b := o.browser()
	away := b.get("/login")
	back := b.get(b.atProvider(away, "eva", nil))
	for _, p := range []page{away, back} {
		for _, c := range p.Cookies() {
			if !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" || !strings.HasPrefix(c.Name, "__Host-") {
				t.Errorf("cookie %s: %s", c.Name, c.Raw)
			}
			if c.Name == cookieName && (c.MaxAge != 0 || !c.Expires.IsZero() || len(c.Value) < 32) {
				t.Errorf("the session's cookie outlives the browser, or is short: %s", c.Raw)
			}
		}
	}
	if len(back.Cookies()) != 2 || b.cookie() == "" {
		t.Fatalf("%d cookies", len(back.Cookies()))
	}
}

// TestFixation: an id that somebody else chose, or knew, is not the id of who signs in.
func TestFixation(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	attacker := o.signIn("joris")
	known := attacker.cookie()
	for _, planted := range []string{"chosen-by-the-attacker-0123456789abcdef", known} {
		victim := o.browser()
		victim.setCookie(planted)
		victim.signIn("samira", "/login")
		if victim.cookie() == planted || victim.cookie() == "" {
			t.Fatal("the id is the one that was planted")
		}
		attacker.setCookie(planted)
		if attacker.signedIn() {
			t.Error("the planted id is signed in")
		}
	}
	// Nor does a stranger's visit make a session at all.
	stranger := o.browser()
	stranger.get("/")
	stranger.get("/signin")
	if stranger.cookie() != "" {
		t.Error("a session for who has not signed in")
	}
}

func TestSessionEnds(t *testing.T) {
	t.Parallel()
	t.Run("without a click", func(t *testing.T) {
		o := newOffice(t)
		b := o.signIn("eva")
		for range 3 {
			o.pass(14 * time.Minute)
			if !b.signedIn() { // a click each
				t.Fatal("ended too early")
			}
		}
		o.pass(14 * time.Minute)
		b.get("/signin") // no click
		o.pass(2 * time.Minute)
		if b.signedIn() {
			t.Error("goes on after 16 minutes without a click")
		}
	})
	t.Run("at the latest", func(t *testing.T) {
		o := newOffice(t)
		b := o.signIn("eva")
		there := func() bool {
			data, err := o.portal.store.Session(t.Context(), hashed(b.cookie()), o.now())
			if err != nil {
				t.Fatal(err)
			}
			return data != nil
		}
		for range 47 {
			o.pass(10 * time.Minute)
			b.post("/session/stay", url.Values{})
		}
		if !there() {
			t.Error("ended before its time, with clicks all along")
		}
		o.pass(10*time.Minute + time.Second)
		if there() {
			t.Error("goes on for more than its time")
		}
	})
	t.Run("signing out", func(t *testing.T) {
		o := newOffice(t)
		b, other := o.signIn("eva"), o.signIn("eva")
		cookie, path := b.cookie(), b.openCase()+"/consents"
		if p := b.post("/logout", url.Values{}); p.Header.Get("Location") != "/signin?out" {
			t.Fatalf("logout: %s", p.Status)
		}
		if b.cookie() != "" {
			t.Error("the cookie stays")
		}
		b.setCookie(cookie)
		if b.signedIn() || b.get(path).StatusCode == http.StatusOK {
			t.Error("the cookie still works")
		}
		if !other.signedIn() {
			t.Error("the other browser is signed out")
		}
	})
	t.Run("signing out everywhere", func(t *testing.T) {
		o := newOffice(t)
		b, other, colleague := o.signIn("eva"), o.signIn("eva"), o.signIn("joris")
		b.post("/logout/everywhere", url.Values{})
		if b.signedIn() || other.signedIn() || !colleague.signedIn() {
			t.Error("the sessions of the employee go on, or a colleague's ended")
		}
	})
	t.Run("what ended is removed", func(t *testing.T) {
		o := newOffice(t)
		b := o.signIn("eva")
		b.openCase()
		o.pass(9 * time.Hour)
		if err := o.portal.store.Purge(t.Context(), o.now()); err != nil {
			t.Fatal(err)
		}
		db := o.db.Open(t, migrations.RoleOwner)
		var n int
		if err := db.QueryRow(`SELECT (SELECT count(*) FROM portal_session) + (SELECT count(*) FROM portal_case)`).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d rows are left (%v)", n, err)
		}
	})
}

// TestTheIDTokenEnds: whoever goes to another page signs in again first, and comes
// back to the case they had open; nobody else does.
func TestTheIDTokenEnds(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	b := o.signIn("eva")
	path := b.openCase() + "/consents"
	for range 5 {
		o.pass(11*time.Minute + 40*time.Second)
		b.post("/session/stay", url.Values{})
	} // 58 minutes and 20 seconds: the ID token lives an hour
	p := b.get(path)
	if p.StatusCode != http.StatusSeeOther || p.Header.Get("Location") != "/login?"+(url.Values{"next": {path}}).Encode() {
		t.Fatalf("near its end: %s %s", p.Status, p.Header.Get("Location"))
	}
	if p := b.get(path, "HX-Request", "true"); p.StatusCode == http.StatusUnauthorized || p.Header.Get("HX-Redirect") != "" {
		t.Errorf("a part of a page, with the token still good: %s", p.Status)
	}
	old := b.cookie()
	if back := b.signIn("eva", p.Header.Get("Location")); back.Header.Get("Location") != path {
		t.Errorf("back at %s", back.Header.Get("Location"))
	}
	if b.cookie() == old {
		t.Error("the session's id is the same")
	}
	if p := b.get(path); p.problem() == "no-case" {
		t.Error("the case is gone")
	}
	// Another employee in the same browser has none of it.
	b.signIn("joris", "/login")
	if p := b.get(path); p.StatusCode != http.StatusNotFound {
		t.Errorf("a colleague's case: %s", p.Status)
	}
	for range 5 {
		o.pass(13 * time.Minute)
		b.post("/session/stay", url.Values{})
	}
	if p := b.get("/", "HX-Request", "true"); p.StatusCode != http.StatusUnauthorized || !strings.HasPrefix(p.Header.Get("HX-Redirect"), "/login") {
		t.Errorf("a part after the end: %s %q", p.Status, p.Header.Get("HX-Redirect"))
	}
}

// TestAtRest: whoever has the database learns nothing and can move nothing.
func TestAtRest(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	eva, samira := o.signIn("eva"), o.signIn("samira")
	path := eva.openCase() + "/consents"
	samira.openCase()
	db := o.db.Open(t, migrations.RoleOwner)
	var all string
	if err := db.QueryRow(`SELECT string_agg(encode(id || subject || data, 'escape'), '') || (SELECT string_agg(encode(session || id || data, 'escape'), '') FROM portal_case) FROM portal_session`).Scan(&all); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{ean, "ticket-4711", "eva", "Eva", "supervisor", "eyJ", eva.cookie()} {
		if strings.Contains(all, secret) {
			t.Errorf("%q is there to be read", secret)
		}
	}
	// A supervisor's session in the place of an agent's, a case in another session.
	if _, err := db.Exec(`UPDATE portal_session SET data = (SELECT data FROM portal_session WHERE id = $1) WHERE id = $2`, hashed(samira.cookie()), hashed(eva.cookie())); err != nil {
		t.Fatal(err)
	}
	if eva.signedIn() {
		t.Error("signed in with the session of another")
	}
	if _, err := db.Exec(`UPDATE portal_case SET session = $1 WHERE session = $2`, hashed(samira.cookie()), hashed(eva.cookie())); err != nil {
		t.Fatal(err)
	}
	if p := samira.get(path); p.StatusCode != http.StatusInternalServerError || strings.Contains(p.body, "ticket-4711") {
		t.Errorf("a case moved to another session: %s", p.Status)
	}
}

// TestRenewal: a provider that has a session of its own renews one here, until the
// end that it has, and begins none.
func TestRenewal(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	b := o.signIn("eva")
	began := o.now()
	path := b.openCase()
	for b.signedIn() {
		if o.now().Sub(began) >= 8*time.Hour {
			t.Fatalf("signed in for %v", o.now().Sub(began))
		}
		for range 3 {
			o.pass(10 * time.Minute)
			b.post("/session/stay", url.Values{})
		}
		away := b.get("/login")
		if back := b.silently(away, nil); back == "" {
			break
		} else if p := b.get(back); p.StatusCode != http.StatusSeeOther || p.Header.Get("Location") != "/" {
			t.Fatalf("renewing after %v: %s %s", o.now().Sub(began), p.Status, p.problem())
		}
		if p := b.get(path + "/consents"); p.problem() == "no-case" {
			t.Fatal("the case is gone")
		}
	}
	if took := o.now().Sub(began); took < 8*time.Hour-30*time.Minute {
		t.Errorf("ended after %v", took)
	}
	o.pass(time.Minute)
	if b.signedIn() {
		t.Error("goes on after its end")
	}
	// Nor does who is asked in the midst of it begin its time again.
	b = o.signIn("eva")
	end := o.now().Add(8 * time.Hour)
	o.pass(10 * time.Minute)
	b.signIn("eva", "/login")
	token, ok := o.portal.tokenOf(b.cookie())
	if !ok {
		t.Fatal("not a cookie of the portal's")
	}
	ctx := must(o.portal.sessions.Load(t.Context(), token))
	if got := o.portal.sessions.Deadline(ctx); !got.Equal(end.UTC()) {
		t.Errorf("ends %v, not %v", got, end.UTC())
	}
}

// TestWhoSitsDown: where a session ended, the provider's own one lets nobody in,
// whatever they send on or leave out, and the person does get in.
func TestWhoSitsDown(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	strip := func(q url.Values) { q.Del("prompt"); q.Del("max_age") }
	for name, end := range map[string]func(b *browser){
		"signed out":            func(b *browser) { b.post("/logout", url.Values{}) },
		"signed out everywhere": func(b *browser) { b.post("/logout/everywhere", url.Values{}) },
		"idle":                  func(*browser) { o.pass(15 * time.Minute) },
		"the browser was closed": func(b *browser) {
			b.setCookie("")
			o.pass(2 * time.Minute)
		},
		"another's cookie": func(b *browser) {
			b.setCookie("chosen-by-the-attacker-0123456789abcdef")
			o.pass(2 * time.Minute)
		},
	} {
		b := o.signIn("samira")
		o.pass(2 * time.Minute)
		alive := b.get("/login")
		if q := must(url.Parse(alive.Header.Get("Location"))).Query(); q.Get("prompt") != "" || q.Get("max_age") != "28800" {
			t.Errorf("%s: a session that is alive: prompt=%q max_age=%q", name, q.Get("prompt"), q.Get("max_age"))
		}
		if name == "idle" { // an attempt from before lives ten minutes
			end(b)
			alive = b.get("/login")
		} else {
			end(b)
		}
		// From before: back to the provider, and asked there.
		if back := b.silently(alive, strip); back == "" {
			t.Errorf("%s: the provider has no session: the test attacks nothing", name)
		} else if p := b.get(back); b.signedIn() || name != "idle" && (p.StatusCode != http.StatusSeeOther || p.Header.Get("Location") != "/login") {
			t.Errorf("%s: with a login from before: %s %s %s", name, p.Status, p.problem(), p.Header.Get("Location"))
		}
		away := b.get("/login")
		if q := must(url.Parse(away.Header.Get("Location"))).Query(); q.Get("prompt") != "login" || q.Get("max_age") != "28800" {
			t.Errorf("%s: prompt=%q max_age=%q", name, q.Get("prompt"), q.Get("max_age"))
		}
		if back := b.silently(away, nil); back != "" {
			t.Errorf("%s: nobody is asked", name)
		}
		if p := b.get(b.silently(away, strip)); p.problem() != "sign-in-failed" || b.signedIn() {
			t.Errorf("%s: without prompt in the request: %s %s", name, p.Status, p.problem())
		}
		b.signIn("samira", "/login")
		if !b.signedIn() {
			t.Errorf("%s: nor does the person get in", name)
		}
	}

	// At a browser whose provider's session is another employee's.
	b := o.signIn("joris")
	o.pass(2 * time.Minute)
	eva := o.signIn("eva")
	b.setCookie(eva.cookie())
	if p := b.get(b.silently(b.get("/login"), nil)); p.StatusCode != http.StatusSeeOther || p.Header.Get("Location") != "/login" || b.signedIn() || eva.signedIn() {
		t.Errorf("another employee: %s %s", p.Status, p.Header.Get("Location"))
	}
}

// leaver signs out everywhere just before a session is stored.
type leaver struct {
	Store
	leave atomic.Bool
}

func (l *leaver) AddSession(ctx context.Context, id, subject, data []byte, expires time.Time) error {
	if l.leave.Load() {
		if err := l.EndSessions(ctx, subject); err != nil {
			return err
		}
	}
	return l.Store.AddSession(ctx, id, subject, data, expires)
}

// TestRenewalAndSigningOut at once: signing out everywhere wins.
func TestRenewalAndSigningOut(t *testing.T) {
	t.Parallel()
	l := &leaver{}
	o := newOffice(t, func(c *Config) { l.Store, c.Store = c.Store, l })
	b := o.signIn("eva")
	back := b.silently(b.get("/login"), nil)
	l.leave.Store(true)
	if p := b.get(back); p.Header.Get("Location") != "/login" || b.signedIn() {
		t.Errorf("renewed after signing out everywhere: %s %s", p.Status, p.Header.Get("Location"))
	}
	var n int
	if err := o.db.Open(t, migrations.RoleOwner).QueryRow(`SELECT count(*) FROM portal_session`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d sessions are left (%v)", n, err)
	}
}

// TestEndsAreSealed: who writes the database lets no session go on.
func TestEndsAreSealed(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	db := o.db.Open(t, migrations.RolePortal)
	forever := func() {
		if _, err := db.Exec(`UPDATE portal_session SET expires = now() + interval '10 years'`); err != nil {
			t.Fatal(err)
		}
	}
	b := o.signIn("eva")
	forever()
	o.pass(15*time.Minute - time.Second)
	if !b.signedIn() {
		t.Fatal("ended too early")
	}
	forever()
	o.pass(15 * time.Minute)
	if b.signedIn() {
		t.Error("goes on without a click")
	}

	b = o.signIn("eva")
	for range 48 {
		o.pass(10 * time.Minute)
		forever()
		b.post("/session/stay", url.Values{})
	}
	if data, ok, err := (vault{o.portal}).FindCtx(t.Context(), base64.RawURLEncoding.EncodeToString(hashed(b.cookie()))); err != nil || ok || data != nil {
		t.Errorf("goes on after its end (%v)", err)
	}

	// One that was signed out, put back: for what was left of it without a click
	// (docs/PORTAL.md), and no longer.
	b = o.signIn("eva")
	cookie := b.cookie()
	var id, subject, data []byte
	if err := db.QueryRow(`SELECT id, subject, data FROM portal_session WHERE id = $1`, hashed(cookie)).Scan(&id, &subject, &data); err != nil {
		t.Fatal(err)
	}
	b.post("/logout/everywhere", url.Values{})
	if _, err := db.Exec(`INSERT INTO portal_session (id, subject, data, expires) VALUES ($1, $2, $3, now() + interval '10 years')`, id, subject, data); err != nil {
		t.Fatal(err)
	}
	b.setCookie(cookie)
	o.pass(15 * time.Minute)
	if b.signedIn() {
		t.Error("a row put back lets a session go on")
	}
}
