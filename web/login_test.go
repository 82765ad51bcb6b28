package web

import (
	"encoding/json"
	"net/http"
	"net/url"
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
