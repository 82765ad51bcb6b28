package web

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"kluis/migrations"
	"kluis/openapi/client"
)

// TestFound: what was found can be gone back to for five minutes, by its session,
// and at another portal by asking once more. Nothing of it is stored.
func TestFound(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	b, other := o.signIn("eva"), o.signIn("joris")
	id := strings.Repeat("a", 32)
	q := question{ID: id, Postcode: "1234AB", Number: "7", Reason: "ticket-4711", Until: o.now().Add(searchLife)}
	answer := &client.FoundPoints{Found: []client.FoundPoint{{Ean: ean, Commodity: "electricity", Address: client.Address{Street: "Lindelaan", HouseNumber: "7", Postcode: "1234AB", City: "Delft"}}}}
	shows := func(b *browser) bool {
		t.Helper()
		p := b.get("/found/" + id)
		if p.StatusCode == http.StatusOK {
			return strings.Contains(p.body, "Lindelaan")
		}
		if p.StatusCode != http.StatusSeeOther || p.Header.Get("Location") != "/" {
			t.Errorf("%s to %s", p.Status, p.Header.Get("Location"))
		}
		return false
	}
	o.portal.errands.keep(hashed(b.cookie()), &search{q, answer})
	for range 2 { // as often as they go back
		if !shows(b) {
			t.Error("what was found is not shown to who searched")
		}
	}
	if shows(other) {
		t.Error("what was found is shown in another session")
	}
	if p := b.get("/found/" + strings.Repeat("b", 32)); p.StatusCode != http.StatusSeeOther {
		t.Errorf("another search: %s", p.Status)
	}
	o.pass(searchLife)
	if shows(b) {
		t.Error("shown after five minutes")
	}
	o.portal.errands.purge()
	if n := len(o.portal.errands.finds); n != 0 {
		t.Errorf("%d in memory after five minutes", n)
	}

	// The question is sealed for the session, and has an end.
	seal := func(b *browser, session string, until time.Time) {
		q.Until = until
		sealed := o.portal.sealed("search", hashed(session), must(json.Marshal(q)))
		b.jar.SetCookies(must(url.Parse(o.url)), []*http.Cookie{{Name: searchCookie, Value: base64.RawURLEncoding.EncodeToString(sealed), Path: "/", Secure: true}})
	}
	seal(b, b.cookie(), o.now().Add(time.Second))
	if p := b.get("/found/" + id); p.StatusCode != http.StatusServiceUnavailable || p.problem() == "" {
		t.Errorf("asks once more: %s", p.Status) // there is no API
	}
	seal(other, b.cookie(), o.now().Add(time.Second))
	if shows(other) {
		t.Error("a question of another session")
	}
	seal(b, b.cookie(), o.now())
	if shows(b) {
		t.Error("a question after five minutes")
	}

	q.Until = o.now().Add(searchLife)
	o.portal.errands.keep(hashed(b.cookie()), &search{q, answer})
	if p := b.post("/logout", url.Values{}); p.StatusCode >= 400 {
		t.Errorf("signing out: %s", p.Status)
	}
	if n := len(o.portal.errands.finds); n != 0 {
		t.Errorf("%d in memory after signing out", n)
	}
}

// TestFindStaysAsked: what was entered is there for another try, in the page and in
// no address.
func TestFindStaysAsked(t *testing.T) {
	t.Parallel()
	o := newOffice(t) // there is no API
	b := o.signIn("eva")
	form := url.Values{"postcode": {"1234 ab"}, "house_number": {"7 bis"}, "reason": {`ticket "4711"`}}
	p := b.post("/find", form)
	if p.StatusCode != http.StatusServiceUnavailable || p.problem() != "api-away" {
		t.Errorf("%s, %s", p.Status, p.problem())
	}
	for _, want := range []string{`value="1234 ab"`, `value="7 bis"`, `value="ticket &#34;4711&#34;"`, `action="/find"`} {
		if !strings.Contains(p.body, want) {
			t.Errorf("no %s", want)
		}
	}
	for _, x := range p.Cookies() {
		t.Errorf("the browser is given %s", x.Name)
	}

	// Another portal than the one that searched.
	q := question{ID: strings.Repeat("a", 32), Postcode: "1234AB", Number: "7", Reason: "ticket-4712", Until: o.now().Add(searchLife)}
	sealed := o.portal.sealed("search", hashed(b.cookie()), must(json.Marshal(q)))
	b.jar.SetCookies(must(url.Parse(o.url)), []*http.Cookie{{Name: searchCookie, Value: base64.RawURLEncoding.EncodeToString(sealed), Path: "/", Secure: true}})
	p = b.get("/found/" + q.ID)
	if !strings.Contains(p.body, `value="1234AB"`) || !strings.Contains(p.body, `value="ticket-4712"`) || p.problem() != "api-away" {
		t.Errorf("going back: %s, %s", p.Status, p.problem())
	}

	// A case that cannot be stored: the rest of the page is shown.
	db := o.db.Open(t, migrations.RoleOwner)
	if _, err := db.Exec(`ALTER TABLE portal_case RENAME TO portal_case_away`); err != nil {
		t.Fatal(err)
	}
	p = b.post("/open", url.Values{"ean": {"8716 8720 0000 0000 10"}, "reason": {"ticket-4713"}})
	if p.StatusCode < 500 || !strings.Contains(p.body, `value="8716 8720 0000 0000 10"`) || !strings.Contains(p.body, `value="ticket-4713"`) || p.problem() == "" {
		t.Errorf("opening: %s, %s", p.Status, p.problem())
	}
	if p := b.get("/open"); p.Header.Get("Location") != "/" {
		t.Errorf("in another language: %s", p.Status)
	}
	if log := strings.ToLower(o.log.String()); strings.Contains(log, "1234ab") || strings.Contains(log, "1234 ab") || strings.Contains(log, ean) || strings.Contains(log, "ticket") {
		t.Error("what was entered is in the log")
	}
}
