package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/internal/devpki"
	"kluis/meter"
)

// What the operator says counts from the next request on.

func TestSupplierCommands(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	dir := t.TempDir()
	gln := labGLN()
	pair := func(name string) (string, *caller) {
		certFile, keyFile, err := l.supplierCA.IssueFiles(dir, name, devpki.Leaf{CommonName: name})
		if err != nil {
			t.Fatal(err)
		}
		cert := sure(tls.LoadX509KeyPair(certFile, keyFile))
		return certFile, l.caller(t, gln, &cert)
	}
	firstFile, first := pair("first")
	secondFile, second := pair("second")
	_, stranger := pair("stranger")

	l.kluis(t, "supplier", "add", "--gln", gln, "--name", "Rotterdam Stroom", "--certificate", firstFile)
	v := vendor{caller: first, gln: sure(meter.ParseGLN(gln)), certFile: firstFile}
	h := l.home(t, v)
	ok := func(c *caller) {
		t.Helper()
		seenIn(t, c.fetch(t, h.path())).want(t, h.corrected, nil)
	}
	// refused: no new token, and an old one is good for nothing.
	refused := func(c *caller, token string) {
		t.Helper()
		a, err := c.askIssuer(t.Context(), url.Values{"grant_type": {"client_credentials"}, "client_id": {gln}})
		if err != nil || a.status != http.StatusUnauthorized || a.Error != "invalid_client" {
			t.Errorf("the issuer answered %d %s: %v", a.status, a.Error, err)
		}
		c.with(t, token, h.path()).problem(t, http.StatusUnauthorized, "unauthenticated")
	}
	ok(first)
	refused(second, first.accessToken(t))

	// Rotation: both work, then the old one is revoked.
	l.kluis(t, "supplier", "add", "--gln", gln, "--certificate", secondFile)
	ok(first)
	ok(second)
	refused(stranger, first.accessToken(t))
	oldToken := first.accessToken(t)
	l.kluis(t, "supplier", "revoke", "--gln", gln, "--certificate", firstFile)
	refused(first, oldToken)
	second.with(t, oldToken, h.path()).problem(t, http.StatusUnauthorized, "unauthenticated")
	ok(second)
	if complaint := l.kluisFails(t, 1, "supplier", "add", "--gln", gln, "--certificate", firstFile); !strings.Contains(complaint, "once revoked stays revoked") {
		t.Error(complaint)
	}

	l.kluis(t, "supplier", "suspend", "--gln", gln)
	refused(second, second.accessToken(t))
	l.kluis(t, "supplier", "resume", "--gln", gln)
	ok(second)

	thirdFile, third := pair("third")
	l.kluis(t, "supplier", "add", "--gln", gln, "--certificate", thirdFile, "--revoke-others")
	refused(second, second.accessToken(t))
	ok(third)

	// What is said twice changes nothing.
	var shown struct {
		Version int
		Changed bool
	}
	if err := json.Unmarshal([]byte(l.kluis(t, "supplier", "resume", "--json", "--gln", gln)), &shown); err != nil || shown.Changed || shown.Version != 6 {
		t.Errorf("%+v %v", shown, err)
	}
	foreign := sure(devpki.NewCA("another"))
	foreignFile, keyFile, err := foreign.IssueFiles(dir, "foreign", devpki.Leaf{CommonName: "foreign"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		code int
		args []string
		want string
	}{
		"certificate of another CA": {1, []string{"add", "--gln", gln, "--certificate", foreignFile}, "authority"},
		"private key":               {1, []string{"add", "--gln", gln, "--certificate", keyFile}, "private key"},
		"unknown supplier":          {1, []string{"suspend", "--gln", labGLN()}, "not registered"},
		"new without a name":        {2, []string{"add", "--gln", labGLN(), "--certificate", firstFile}, "--name"},
		"not a GLN":                 {2, []string{"show", "--gln", gln[:12] + "x"}, "--gln"},
		"not registered here":       {1, []string{"revoke", "--gln", gln, "--certificate", foreignFile}, "not registered"},
	} {
		if complaint := l.kluisFails(t, c.code, append([]string{"supplier"}, c.args...)...); !strings.Contains(complaint, c.want) {
			t.Errorf("%s: %s", name, complaint)
		}
	}
}

func TestSupplyAndConsentCommands(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	old, next := l.vendor(t), l.vendor(t)
	h := l.home(t, old)
	ean := h.ean.String()
	of := func(v vendor, from, to meter.Day, more ...string) seen {
		t.Helper()
		return seenIn(t, v.fetch(t, readingsPath(ean, from.String(), to.String(), energy, append([]string{"fields", strings.Join(homeFields, ",")}, more...)...)))
	}
	intervals := func(reason string, from, to meter.Day) string {
		return fmt.Sprint("import_intervals ", from, " ", to, " ", reason)
	}
	isRegister := func(k string) bool { return !strings.HasPrefix(k, "import_intervals") }
	within := func(from, to meter.Day, closing bool) map[string]string {
		return only(h.corrected, func(k string) bool {
			day := sure(meter.ParseDay(k[len(k)-10:]))
			return day >= from && (day < to || closing && day == to && isRegister(k))
		})
	}

	// The new supplier has nothing to do with it yet.
	next.fetch(t, h.path()).problem(t, http.StatusNotFound, "metering-point-not-found")
	if got := next.listed(t); len(got) != 0 {
		t.Errorf("listed %q", got)
	}
	l.kluis(t, "supply", "set", "--ean", ean, "--supplier", next.clientID, "--from", h.turn.String())

	// The old one keeps its days and the end read, which is the new one's
	// first.
	all := func(reason string, from, to meter.Day) (out []string) {
		for _, f := range homeFields {
			out = append(out, fmt.Sprint(f, " ", from, " ", to, " ", reason))
		}
		slices.Sort(out)
		return out
	}
	s := of(old, h.first, h.last)
	s.want(t, within(h.first, h.turn, true), all("NO_SUPPLY", h.turn, h.last))
	end := dayKey("import_low", h.turn)
	s = of(next, h.turn, h.last)
	s.want(t, only(within(h.turn, h.last, true), isRegister), []string{intervals("NO_CONSENT", h.turn, h.last)})
	if s.values[end] != h.corrected[end] {
		t.Errorf("start read %q, want %q", s.values[end], h.corrected[end])
	}
	of(next, h.first, h.turn).want(t, map[string]string{}, all("NO_SUPPLY", h.first, h.turn))
	if got := next.listed(t); !slices.Equal(got, []string{ean}) {
		t.Errorf("listed %q", got)
	}

	// Consent, and its end.
	var consent struct{ ID string }
	out := l.kluis(t, "consent", "grant", "--json", "--ean", ean, "--supplier", next.clientID, "--granularity", "PT1H", "--from", h.first.String(),
		"--valid-until", time.Now().AddDate(1, 0, 0).Format(time.DateOnly), "--evidence", "contract-1")
	if err := json.Unmarshal([]byte(out), &consent); err != nil {
		t.Fatal(err)
	}
	s = of(next, h.turn, h.last)
	if len(s.withheld) != 0 {
		t.Errorf("withheld %q", s.withheld)
	}
	key := dayKey("import_intervals", h.turn)
	if got, want := s.values[key], hourly(t, h.corrected[key]); got != want {
		t.Errorf("hours %q, want %q", got, want)
	}
	l.kluis(t, "consent", "revoke", "--ean", ean, "--id", consent.ID)
	of(next, h.turn, h.last).want(t, only(within(h.turn, h.last, true), isRegister), []string{intervals("CONSENT_REVOKED", h.turn, h.last)})

	// The old supplier's consent was for its own days.
	l.kluis(t, "consent", "revoke", "--ean", ean, "--id", uuidText(h.consent))
	of(old, h.first, h.turn).want(t, only(within(h.first, h.turn, true), isRegister), []string{intervals("CONSENT_REVOKED", h.first, h.turn)})

	for name, c := range map[string]struct {
		code int
		args []string
		want string
	}{
		"unknown consent":        {1, []string{"consent", "revoke", "--ean", ean, "--id", "11111111-2222-4333-8444-555555555555"}, "consent"},
		"revoked twice":          {1, []string{"consent", "revoke", "--ean", ean, "--id", consent.ID}, "revoked"},
		"overlapping supply":     {1, []string{"supply", "set", "--ean", ean, "--supplier", old.clientID, "--from", (h.turn - 2).String(), "--to", (h.turn + 2).String()}, "overlap"},
		"unregistered supplier":  {1, []string{"supply", "set", "--ean", ean, "--supplier", labGLN(), "--from", h.last.String()}, "not registered"},
		"unknown metering point": {2, []string{"supply", "set", "--ean", labEAN(), "--supplier", old.clientID, "--from", "2024-01-01"}, "--commodity"},
		"other commodity":        {2, []string{"supply", "set", "--ean", ean, "--commodity", "gas", "--supplier", old.clientID, "--from", "2024-01-01"}, "electricity"},
		"backwards":              {2, []string{"supply", "set", "--ean", ean, "--supplier", old.clientID, "--from", "2024-01-02", "--to", "2024-01-01"}, "--to"},
	} {
		if complaint := l.kluisFails(t, c.code, c.args...); !strings.Contains(complaint, c.want) || strings.Contains(complaint, ean) {
			t.Errorf("%s: %s", name, complaint)
		}
	}
	// None of it left anything behind.
	file := sure(sure(sealKeysOf(l)).LegalFile(one[[]byte](t, l.world, `SELECT file FROM legal_file WHERE ean = $1 ORDER BY version DESC LIMIT 1`, h.ean.Int64())))
	if got := file.Version(); got != 8 || len(file.SupplyPeriods()) != 2 || len(file.Consents()) != 2 {
		t.Errorf("version %d, %d supply periods, %d consents", got, len(file.SupplyPeriods()), len(file.Consents()))
	}
}

func hourly(t testing.TB, values string) string {
	t.Helper()
	var out []string
	var sum int64
	for i, v := range strings.Fields(values) {
		if sum += thousandths(t, v); i%4 == 3 {
			out = append(out, fmt.Sprintf("%d.%03d", sum/1000, sum%1000))
			sum = 0
		}
	}
	return strings.Join(out, " ")
}

func uuidText(id [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
