//go:build portal

package portal

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"kluis/internal/devidp"
)

// thief is somebody with the portal's certificate and key, and nothing else.
func thief(t *testing.T) *http.Client {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(world.ready.Portal.CertificateFile, world.ready.Portal.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(world.ready.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no CA")
	}
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{pair}}}}
}

func exchange(t *testing.T, c *http.Client, form url.Values) (int, map[string]any) {
	t.Helper()
	res, err := c.PostForm(world.ready.IssuerURL+"/oauth2/token", form)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var v map[string]any
	if err := json.NewDecoder(res.Body).Decode(&v); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, v
}

// TestTheCertificateAloneGivesNothing: without a living employee session there is
// no token, and without a token no answer.
func TestTheCertificateAloneGivesNothing(t *testing.T) {
	c := thief(t)
	ean := world.ready.MeteringPoints[0].EAN
	forOne := func(kind, more string) string {
		return `[{"type":"urn:kluis:errand:` + kind + `","ean":"` + ean + `"` + more + `,"reason":"theft"}]`
	}
	readings := forOne("readings", `,"from":"2026-10-01","to":"2026-10-02","fields":["import_low"]`)
	form := func(id, details string) url.Values {
		return url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {world.ready.Portal.ClientID},
			"subject_token": {id}, "subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"}, "authorization_details": {details}}
	}
	forger, err := devidp.New() // a key of the thief's own
	if err != nil {
		t.Fatal(err)
	}
	forged, err := forger.At(world.ready.Portal.IdentityProvider).IDToken("eva", time.Now(), "supervisor")
	if err != nil {
		t.Fatal(err)
	}
	genuine, err := devidp.Load(filepath.Join(world.state, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	sign := func(at time.Time, more map[string]any) string {
		claims := map[string]any{"sub": "eva", "iat": at.Unix(), "auth_time": at.Unix(), "exp": at.Add(devidp.Lifetime).Unix(), devidp.RoleClaim: "agent"}
		for k, v := range more {
			claims[k] = v
		}
		id, err := genuine.Sign(claims)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	now := time.Now()
	// Were it not for the ID token, all of it would be right.
	if status, v := exchange(t, c, form(sign(now, nil), readings)); status != http.StatusOK || v["access_token"] == nil {
		t.Fatalf("with an employee: %d %v", status, v["error"])
	}
	for name, f := range map[string]url.Values{
		"no ID token":                       form("", readings),
		"a forged one":                      form(forged, readings),
		"one of a session of before":        form(sign(now.Add(-2*time.Hour), nil), readings),
		"one for another service":           form(sign(now, map[string]any{"aud": "mail"}), readings),
		"an access token of the provider's": form(sign(now, map[string]any{"scope": "openid"}), readings),
		"client credentials, with the scope": {"grant_type": {"client_credentials"}, "client_id": {world.ready.Portal.ClientID},
			"scope": {"customer-service"}},
	} {
		if status, v := exchange(t, c, f); status == http.StatusOK || v["access_token"] != nil {
			t.Errorf("%s: a token", name)
		}
	}
	res, err := c.Get(world.ready.GatewayURL + "/v1/metering-points/" + ean + "/readings?from=2026-10-01&to=2026-10-02&purpose=BILLING")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a token: %d", res.StatusCode)
	}
	// Nor does an agent's session give what is a supervisor's: the portal is not asked.
	status, v := exchange(t, c, form(sign(now, nil), `[{"type":"urn:kluis:errand:supplier","gln":"8712000000011","step":"suspend","reason":"theft"}]`))
	if status == http.StatusOK || v["error"] != "invalid_authorization_details" {
		t.Errorf("an agent's token to suspend a supplier: %d %v", status, v["error"])
	}
}

// TestNothingOfCustomersIsLogged runs after the browser: go test runs tests in the
// order of their files, and this one looks at all that was logged.
func TestNothingOfCustomersIsLogged(t *testing.T) {
	logs, err := filepath.Glob(filepath.Join(world.state, "logs", "*.log"))
	if err != nil || len(logs) < 5 {
		t.Fatalf("%d logs (%v)", len(logs), err)
	}
	digits := regexp.MustCompile(`8716872\d{11}`)
	for _, file := range logs {
		name := filepath.Base(file)
		if name != "portal.log" && name != "identity.log" && name != "gateway.log" && name != "issuer.log" {
			continue
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if at := digits.FindIndex(raw); at != nil {
			t.Errorf("%s has a metering point: %s", name, raw[max(0, at[0]-200):at[0]])
		}
		for _, secret := range []string{"eyJ", "ticket-4711", "Eva de Vries", "Bearer "} {
			if at := bytes.Index(raw, []byte(secret)); at >= 0 {
				t.Errorf("%s has %q", name, secret)
			}
		}
	}
}
