package web

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/meter"
	"kluis/openapi/client"
)

func TestHealthOf(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 4, 2, 8, 0, 0, 0, time.UTC)
	up, down := client.PartStatus{Status: client.PartUp}, client.PartStatus{Status: client.PartDown}
	servers := func(states ...client.PartState) (out []client.CryptoserverStatus) {
		for _, s := range states {
			out = append(out, client.CryptoserverStatus{Status: s})
		}
		return out
	}
	ago := func(d time.Duration) *time.Time { at := now.Add(-d); return &at }
	ingest := func(at *time.Time) *client.IngestStatus { return &client.IngestStatus{LastStoredAt: at} }
	signed := func(d time.Duration) *client.CheckpointStatus { return &client.CheckpointStatus{SignedAt: *ago(d)} }
	for _, c := range []struct {
		name                          string
		o                             client.Operations
		worst                         string
		database, crypto, ingest, log string
	}{
		{"all well", client.Operations{Database: up, Cryptoservers: servers("UP", "UP"), Ingest: ingest(ago(time.Hour)), Checkpoint: signed(time.Second)}, "ok", "ok", "ok", "ok", "ok"},
		{"one cryptoserver away", client.Operations{Database: up, Cryptoservers: servers("UP", "DOWN"), Ingest: ingest(ago(time.Hour)), Checkpoint: signed(0)}, "warn", "ok", "warn", "ok", "ok"},
		{"all cryptoservers away", client.Operations{Database: up, Cryptoservers: servers("DOWN", "DOWN"), Ingest: ingest(ago(time.Hour)), Checkpoint: signed(0)}, "bad", "ok", "bad", "ok", "ok"},
		{"none configured", client.Operations{Database: up, Ingest: ingest(ago(time.Hour)), Checkpoint: signed(0)}, "bad", "ok", "bad", "ok", "ok"},
		{"database away", client.Operations{Database: down, Cryptoservers: servers("UP")}, "bad", "bad", "ok", "off", "off"},
		{"nothing came in", client.Operations{Database: up, Cryptoservers: servers("UP"), Ingest: ingest(ago(37 * time.Hour)), Checkpoint: signed(6 * time.Minute)}, "warn", "ok", "ok", "warn", "warn"},
		{"nothing stored yet", client.Operations{Database: up, Cryptoservers: servers("UP"), Ingest: ingest(nil), Checkpoint: signed(0)}, "warn", "ok", "ok", "off", "ok"},
	} {
		d := healthOf(&c.o, now)
		if d.Worst != c.worst || d.Summary != "health.all."+c.worst {
			t.Errorf("%s: %s, want %s", c.name, d.Worst, c.worst)
		}
		for i, want := range []string{c.database, c.crypto, c.ingest, c.log} {
			if got := d.Parts[i]; got.Kind != want {
				t.Errorf("%s: %s is %s, want %s", c.name, got.Name, got.Kind, want)
			}
			if _, ok := allTexts["health."+d.Parts[i].Name+"."+d.Parts[i].Kind]; !ok {
				t.Errorf("%s: no text says what it means that %s is %s", c.name, d.Parts[i].Name, d.Parts[i].Kind)
			}
		}
	}
	for state, kind := range map[string]string{"up": "ok", "suspect": "warn", "probing": "warn", "down": "bad", "unknown": "off", "": "off", "better": "off"} {
		if got := tokenOf(client.HsmToken{State: state}); got.Kind != kind {
			t.Errorf("a token that is %q is shown as %s, want %s", state, got.Kind, kind)
		}
	}
}

// TestHealthByItself: without the API, what the portal sees of each part is told.
func TestHealthByItself(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ gateway, issuer, crypto string }{
		{"warn", "warn", "bad"}, {"ok", "warn", "ok"}, {"warn", "bad", "bad"}, {"bad", "ok", "ok"}, {"bad", "bad", "off"}, {"off", "bad", "off"},
	} {
		if got := seenOf(c.gateway, c.issuer, "ok")[3]; got.Kind != c.crypto {
			t.Errorf("gateway %s, issuer %s: cryptoservers %s, want %s", c.gateway, c.issuer, got.Kind, c.crypto)
		}
	}
	for _, kind := range []string{"ok", "warn", "bad", "off"} {
		for _, s := range seenOf(kind, kind, kind) {
			if _, ok := allTexts["health.seen."+s.Name+"."+s.Kind]; !ok {
				t.Errorf("no text says what it means that %s is %s", s.Name, s.Kind)
			}
		}
	}

	ready := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/readyz":
			w.WriteHeader(http.StatusNotFound)
		case r.Header.Get("Authorization") != "":
			t.Error("asked with a token")
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer ready.Close()
	o := newOffice(t, func(c *Config) {
		c.Issuer = ready.URL
		c.ClientTLS.RootCAs = c.ClientTLS.RootCAs.Clone()
		c.ClientTLS.RootCAs.AddCert(ready.Certificate())
	})
	b := o.signIn("eva")
	for _, path := range []string{"/health", "/health/now"} {
		p := b.get(path)
		if p.StatusCode != http.StatusOK || p.problem() == "" {
			t.Errorf("%s: %s, %s", path, p.Status, p.problem())
		}
		for name, kind := range map[string]string{"database": "ok", "gateway": "bad", "issuer": "warn", "cryptoservers": "bad", "provider": "ok"} {
			if !strings.Contains(p.body, `data-seen="`+name+`" data-kind="`+kind+`"`) {
				t.Errorf("%s: %s is not shown as %s", path, name, kind)
			}
		}
	}
}

// TestATokenServesToItsEnd: while nobody gives another.
func TestATokenServesToItsEnd(t *testing.T) {
	t.Parallel()
	o := newOffice(t) // there is no issuer
	e, s, errand := o.portal.errands, &session{id: []byte("x")}, ToOversee("health")
	key := string(must(json.Marshal([]Errand{errand})))
	e.tokens["x"] = map[string]accessToken{key: {"good", o.now().Add(tokenLeast / 2)}}
	if got, err := e.token(t.Context(), s, errand, false); got != "good" {
		t.Errorf("a token that lives: %v", err)
	}
	if _, err := e.token(t.Context(), s, errand, true); err == nil {
		t.Error("a token that was refused is given again")
	}
	o.pass(tokenLeast)
	if _, err := e.token(t.Context(), s, errand, false); err == nil {
		t.Error("a token is given after its end")
	}
}

func TestSuppliersOf(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 4, 2, 8, 0, 0, 0, time.UTC)
	in := func(days int) time.Time { return now.AddDate(0, 0, days) }
	revoked := in(-1)
	operator, err := meter.ParseGLN("8712345600013")
	if err != nil {
		t.Fatal(err)
	}
	cert := func(until time.Time, revokedAt *time.Time) client.SupplierCertificate {
		return client.SupplierCertificate{Thumbprint: "0123456789abcdef", NotAfter: until, RevokedAt: revokedAt}
	}
	list := &client.Suppliers{Suppliers: []client.Supplier{
		{Gln: "8712345600020", Certificates: []client.SupplierCertificate{cert(in(300), nil)}, Today: client.SupplierToday{Requests: 3, Refused: 1}},
		{Gln: "8712345600037", Certificates: []client.SupplierCertificate{cert(in(10), nil), cert(in(-3), nil)}},
		{Gln: "8712345600044", Certificates: []client.SupplierCertificate{cert(in(300), &revoked)}},
		{Gln: "8712345600051", Suspended: true},
		{Gln: "8712345600013", Certificates: []client.SupplierCertificate{cert(in(20), nil), cert(in(200), nil)}},
	}}
	if suppliersOf(list, operator, now).Damaged {
		t.Error("records that verify are shown as damaged")
	}
	damaged := true // and no reason to ask for a certificate
	list.Suppliers = append(list.Suppliers, client.Supplier{Gln: "8712345600068", Damaged: &damaged})
	d := suppliersOf(list, operator, now)
	if !d.Damaged {
		t.Error("a record that does not verify is not told of")
	}
	for i, want := range []string{"ok", "warn", "bad", "bad", "ok"} {
		if d.Suppliers[i].Certificate != want {
			t.Errorf("%s: certificate %s, want %s", d.Suppliers[i].Gln, d.Suppliers[i].Certificate, want)
		}
	}
	if got := d.Suppliers[0].RefusedShare; got != 33 {
		t.Errorf("1 of 3 refused is shown as %d %%", got)
	}
	if e := d.Suppliers[4].Ends; e == nil || !e.Equal(in(200)) || !d.Suppliers[4].Own || d.Suppliers[0].Own {
		t.Error("the operator's own record is not shown as such, or not with the certificate that holds longest")
	}
	if len(d.Attention) != 2 || d.Attention[0].Gln != "8712345600037" || d.Attention[1].Gln != "8712345600044" {
		t.Errorf("attention is asked for %d, want the one that expires soon and the one without", len(d.Attention))
	}
}

func TestOversightOf(t *testing.T) {
	t.Parallel()
	zone, err := time.LoadLocation("Europe/Amsterdam")
	if err != nil {
		t.Fatal(err)
	}
	date := func(m time.Month, d int) openapi_types.Date {
		return openapi_types.Date{Time: time.Date(2025, m, d, 0, 0, 0, 0, time.UTC)}
	}
	o := &client.Oversight{
		From: date(10, 25), To: date(10, 28), Log: client.OversightLog{Result: client.LogFindings},
		Hours: []client.OversightHour{
			// 02:00 is there twice on 26 October 2025: both hours are in one cell.
			{At: time.Date(2025, 10, 26, 0, 0, 0, 0, time.UTC), Requests: 3, Refused: 1},
			{At: time.Date(2025, 10, 26, 1, 0, 0, 0, time.UTC), Requests: 5},
			// 23:00 UTC is the next local day.
			{At: time.Date(2025, 10, 26, 23, 0, 0, 0, time.UTC), Requests: 2},
			{At: time.Date(2025, 11, 26, 23, 0, 0, 0, time.UTC), Requests: 100},
		},
		Parties: []client.OversightParty{
			{Kind: client.PartyEmployee, Name: "https://idp.example#anna", Requests: 4, Refused: 1},
			{Kind: client.PartySupplier, Name: "8712345600020"},
		},
		Unusual: []client.OversightUnusual{
			{Kind: client.UnusualOffHours, From: time.Unix(100, 0), Party: "https://idp.example#anna", PartyKind: client.PartyEmployee},
			{Kind: client.UnusualBurst, From: time.Unix(200, 0)}, {Kind: client.UnusualBreadth}, {Kind: client.UnusualRefusals}, {Kind: client.UnusualSearches}, {Kind: client.UnusualFound},
		},
	}
	d := oversightOf(o, map[string]string{}, zone)
	if len(d.Days) != 3 || d.Days[0].Day.String() != "2025-10-27" || d.Days[2].Day.String() != "2025-10-25" {
		t.Fatalf("%d days, or in another order than the latest first", len(d.Days))
	}
	if c := d.Days[1].Hours[2]; c.Requests != 8 || c.Refused != 1 || c.Level != 4 {
		t.Errorf("the hour that is there twice: %+v", c)
	}
	if c := d.Days[0].Hours[0]; c.Requests != 2 || c.Level != 1 {
		t.Errorf("midnight: %+v", c)
	}
	if d.Requests != 10 || d.Refused != 1 || d.Most != 8 {
		t.Errorf("in all %d requests, %d refused, %d at most", d.Requests, d.Refused, d.Most)
	}
	if d.Log.Kind != "bad" || d.Parties[0].Short != "anna" || d.Parties[0].Share != 25 || d.Parties[1].Share != 0 {
		t.Errorf("log %s, parties %+v", d.Log.Kind, d.Parties)
	}
	if d.Unusual[0].Kind != client.UnusualBurst || d.Unusual[1].Who.Short != "anna" {
		t.Error("the latest is not first")
	}
	for _, u := range d.Unusual {
		for _, key := range []string{u.What, u.What + ".means"} {
			if _, ok := allTexts[key]; !ok {
				t.Errorf("there is no text %q", key)
			}
		}
	}
	for n, want := range map[int]int{0: 0, 1: 1, 25: 1, 26: 2, 50: 2, 75: 3, 76: 4, 100: 4} {
		if got := level(n, 100); got != want {
			t.Errorf("%d of 100 is level %d, want %d", n, got, want)
		}
	}
}
