package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/cryptopb"
	"kluis/internal/authn"
	"kluis/internal/devidp"
	"kluis/meter"
)

// office is the demo's portal and those who work with it.
type office struct {
	*caller
	provider *devidp.Provider
	profile  *meter.Profile
}

func (w *world) office(t testing.TB) office {
	t.Helper()
	cert := sure(tls.LoadX509KeyPair(w.ready.Portal.CertificateFile, w.ready.Portal.KeyFile))
	return office{w.caller(t, w.ready.Portal.ClientID, &cert), sure(devidp.Load(w.ready.Portal.IdentityDir)),
		sure(meter.ParseProfile(sure(os.ReadFile(filepath.Join(w.state, "profile", "nl.yaml")))))}
}

// details is an errand as the portal writes it.
func (o office) details(e authz.Errand) string {
	if e.Reason == "" {
		e.Reason = "ticket 4711"
	}
	return string(sure(authn.EncodeErrand(e, o.profile)))
}

func (o office) exchange(ctx context.Context, idToken, details string) (issued, error) {
	return o.askIssuer(ctx, url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {o.clientID}, "subject_token": {idToken},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"}, "authorization_details": {details},
	})
}

// errand is the token of an employee, who signs in for it, for one errand.
func (o office) errand(t testing.TB, sub string, role authz.Role, e authz.Errand) string {
	t.Helper()
	a, err := o.exchange(t.Context(), sure(o.provider.IDToken(sub, time.Now(), role.String())), o.details(e))
	if err != nil || a.status != 200 {
		t.Fatalf("%v: %+v", err, a)
	}
	return a.AccessToken
}

func TestStaffToken(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	o := w.office(t)
	ean := sure(meter.ParseEAN(w.ready.MeteringPoints[0].EAN))
	view := authz.Errand{Kind: authz.ErrandView, EAN: ean}
	raw := o.errand(t, "eva", authz.Auditor, view)
	_, payload := parts(t, raw)
	for k, want := range map[string]any{
		"iss": w.ready.IssuerURL, "aud": w.ready.Audience, "sub": w.ready.Portal.IdentityProvider + "#eva", "client_id": o.clientID, "scope": "customer-service",
	} {
		if payload[k] != want {
			t.Errorf("%s is %v, want %v", k, payload[k], want)
		}
	}
	if life := payload["exp"].(float64) - payload["iat"].(float64); life <= 0 || life > 300 {
		t.Errorf("lives %v s", life)
	}

	access := "/v1/metering-points/" + ean.String() + "/access"
	if a := o.with(t, raw, access); a.status != 200 {
		t.Errorf("the errand itself: %d %s", a.status, a.body)
	}
	if a := o.with(t, raw, "/v1/status"); a.status != 200 {
		t.Errorf("status: %d %s", a.status, a.body)
	}
	other := w.ready.MeteringPoints[1].EAN
	for name, path := range map[string]string{
		"another home":         "/v1/metering-points/" + other + "/access",
		"another home's log":   "/v1/metering-points/" + other + "/access-log",
		"its readings":         "/v1/metering-points/" + ean.String() + "/readings?from=2026-01-01&to=2026-02-01&purpose=CUSTOMER_SERVICE",
		"its bill":             "/v1/metering-points/" + ean.String() + "/readings?from=2026-01-01&to=2026-02-01&purpose=BILLING",
		"a list of everything": "/v1/metering-points",
	} {
		if a := o.with(t, raw, path); a.status != 403 && a.status != 404 {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	// Bound to the portal's certificate, as a supplier's is to its own.
	supplier := w.supplier(t, 0)
	w.refused(t, supplier.with(t, raw, access), w.gatewayLog(), "bound_to_another_certificate", invalidToken)
	w.refused(t, o.with(t, supplier.accessToken(t), access), w.gatewayLog(), "bound_to_another_certificate", invalidToken)

	// The same by the operator's command.
	printed := strings.TrimSpace(w.kluis(t, "staff", "token", "--ean", ean.String(), "--view", "--reason", "ticket 4711", "--as", "eva"))
	if a := o.with(t, printed, access); a.status != 200 {
		t.Errorf("kluis staff token: %d %s", a.status, a.body)
	}
}

// What the portal's token exchange refuses, of the demo as it runs.
func TestStaffTokenRefused(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	o := w.office(t)
	ean := sure(meter.ParseEAN(w.ready.MeteringPoints[0].EAN))
	view := o.details(authz.Errand{Kind: authz.ErrandView, EAN: ean})
	readings := o.details(authz.Errand{Kind: authz.ErrandReadings, EAN: ean, Days: meter.DayRange{From: 20000, To: 20001}, Fields: []meter.FieldCode{1}})
	now := time.Now()
	agent := sure(o.provider.IDToken("eva", now, "agent"))
	impostor := sure(devidp.New())
	for name, c := range map[string]struct {
		id, details, code string
	}{
		"another provider's key": {sure(impostor.IDToken("eva", now, "agent")), view, "invalid_request"},
		"for another service":    {sure(o.provider.Sign(map[string]any{"aud": "mail", "sub": "eva", "iat": now.Unix(), "exp": now.Unix() + 60, "roles": "agent"})), view, "invalid_request"},
		"signed in long ago":     {sure(o.provider.IDToken("eva", now.Add(-13*time.Hour), "agent")), view, "invalid_request"},
		"no role":                {sure(o.provider.IDToken("eva", now, "visitor")), view, "invalid_request"},
		"an access token":        {o.errand(t, "eva", authz.Agent, authz.Errand{Kind: authz.ErrandView, EAN: ean}), view, "invalid_request"},
		"an auditor reads":       {sure(o.provider.IDToken("eva", now, "auditor")), readings, "invalid_authorization_details"},
		"two errands":            {agent, view[:len(view)-1] + "," + view[1:], "invalid_authorization_details"},
		"any home":               {agent, strings.Replace(view, `"ean":"`+ean.String()+`",`, "", 1), "invalid_authorization_details"},
		"no reason":              {agent, strings.Replace(view, "ticket 4711", "", 1), "invalid_authorization_details"},
	} {
		w.secrets.token(c.id)
		a, err := o.exchange(t.Context(), c.id, c.details)
		if err != nil || a.status != 400 || a.Error != c.code || a.AccessToken != "" || a.Description == "" {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	// A supplier is no portal, with an ID token neither.
	s := w.supplier(t, 0)
	a, err := s.askIssuer(t.Context(), url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {s.clientID}, "subject_token": {agent},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"}, "authorization_details": {view},
	})
	if err != nil || a.status != 400 || a.Error != "unauthorized_client" || a.AccessToken != "" {
		t.Errorf("a supplier: %+v, %v", a, err)
	}
}

// A captured issuer names nobody who has not signed in.
func TestCapturedIssuerNamesNobody(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	o := l.office(t)
	pool := l.poolAs(t, "issuer")
	operator := sure(meter.ParseGLN(o.clientID))
	record := one[[]byte](t, l.world, `SELECT record FROM supplier WHERE gln = $1 ORDER BY version DESC LIMIT 1`, operator.Int64())
	leaf := sha256.Sum256(o.cert.Certificate[0])
	view := o.details(authz.Errand{Kind: authz.ErrandView, EAN: sure(meter.ParseEAN(l.ready.MeteringPoints[0].EAN))})
	genuine := sure(o.provider.IDToken("eva", time.Now(), "agent"))
	raw, _, err := pool.SignStaffToken(t.Context(), record, leaf, genuine, view, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	l.secrets.token(raw)
	l.secrets.token(genuine)
	// A supplier whose record somebody gave the scope of employees.
	v := l.vendor(t)
	sealed := func() []byte {
		_, err := l.reg.ChangeSupplier(t.Context(), v.gln, func(s *authz.Supplier) (authz.SupplierFacts, error) {
			return authz.SupplierFacts{GLN: v.gln, Name: s.Name(), Scopes: append(s.Scopes(), authn.ScopeStaff), Certificates: s.Certificates()}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return one[[]byte](t, l.world, `SELECT record FROM supplier WHERE gln = $1 ORDER BY version DESC LIMIT 1`, v.gln.Int64())
	}()
	mine := sha256.Sum256(v.cert.Certificate[0])
	unsigned := genuine[:strings.LastIndexByte(genuine, '.')+1]
	for name, c := range map[string]struct {
		record []byte
		leaf   [32]byte
		id     string
		want   cryptopb.Reason
	}{
		"no ID token":                     {record, leaf, "", cryptopb.ReasonEmployee},
		"an ID token without a signature": {record, leaf, unsigned, cryptopb.ReasonEmployee},
		"an ID token of its own":          {record, leaf, sure(sure(devidp.New()).IDToken("eva", time.Now(), "supervisor")), cryptopb.ReasonEmployee},
		"for a supplier's certificate":    {record, mine, genuine, cryptopb.ReasonSupplierInvalid},
		"for a supplier with the scope":   {sealed, mine, genuine, cryptopb.ReasonSupplierInvalid},
	} {
		raw, _, err := pool.SignStaffToken(t.Context(), c.record, c.leaf, c.id, view, time.Minute)
		var e *client.Error
		if raw != "" || !errors.As(err, &e) || e.Reason != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if raw, _, err := pool.SignToken(t.Context(), sealed, mine, []string{authn.ScopeStaff}, time.Minute); raw != "" || !errors.Is(err, client.ErrSupplierRefused) {
		t.Errorf("the scope without an employee: %v", err)
	}
}
