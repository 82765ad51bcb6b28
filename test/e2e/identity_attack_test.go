package e2e

import (
	"net/http"
	"net/url"
	"testing"

	"kluis/internal/devpki"
)

// A supplier's record counts from the next request, whatever tokens are out.
// Each of these suppliers is the test's own. Guard: Supplier.Accepts, asked by
// issuer, gateway and cryptoserver.

func TestCertificateRegisteredToNobody(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a := w.supplier(t, 0)
	cert := w.pair(t, devpki.Leaf{CommonName: a.clientID}) // a name proves nothing
	c := w.caller(t, a.clientID, &cert)
	got, err := c.askIssuer(t.Context(), url.Values{"grant_type": {"client_credentials"}, "client_id": {a.clientID}})
	if err != nil || got.status != http.StatusUnauthorized || got.Error != "invalid_client" {
		t.Errorf("the issuer: %+v %v", got, err)
	}
	w.refused(t, c.with(t, a.accessToken(t), "/v1/metering-points"), w.gatewayLog(), "bound_to_another_certificate", invalidToken)
}

func TestRevokedCertificate(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	const gln = "8712000000103"
	old, file := w.newSupplier(t, gln)
	cert, newFile := w.certificateFile(t, devpki.Leaf{CommonName: "the next one"})
	w.kluis(t, "supplier", "add", "--gln", gln, "--certificate", newFile)
	next := w.caller(t, gln, &cert)
	oldToken, newToken := old.accessToken(t), next.accessToken(t)
	for _, c := range []struct {
		*caller
		token string
	}{{old, oldToken}, {next, newToken}} {
		if a := c.with(t, c.token, "/v1/metering-points"); a.status != http.StatusOK {
			t.Fatalf("before: %d %s", a.status, a.body)
		}
	}
	w.kluis(t, "supplier", "revoke", "--gln", gln, "--certificate", file)

	w.refused(t, old.with(t, oldToken, "/v1/metering-points"), w.gatewayLog(), "certificate_revoked", invalidToken)
	if got, err := old.askIssuer(t.Context(), url.Values{"grant_type": {"client_credentials"}, "client_id": {gln}}); err != nil || got.status != http.StatusUnauthorized {
		t.Errorf("the issuer: %+v %v", got, err)
	}
	// The revoked certificate with a token of the good one, and the other way
	// about.
	w.refused(t, old.with(t, newToken, "/v1/metering-points"), w.gatewayLog(), "bound_to_another_certificate", invalidToken)
	w.refused(t, next.with(t, oldToken, "/v1/metering-points"), w.gatewayLog(), "bound_to_another_certificate", invalidToken)
	if a := next.with(t, newToken, "/v1/metering-points"); a.status != http.StatusOK {
		t.Errorf("the good certificate: %d %s", a.status, a.body)
	}
	if out, err := w.tryKluis(t.Context(), "supplier", "add", "--gln", gln, "--certificate", file); err == nil {
		t.Errorf("a revoked certificate was registered again: %s", out)
	}
}

func TestSuspendedSupplier(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	const gln = "8712000000110"
	c, _ := w.newSupplier(t, gln)
	token := c.accessToken(t)
	if a := c.with(t, token, "/v1/metering-points"); a.status != http.StatusOK {
		t.Fatalf("before: %d %s", a.status, a.body)
	}
	w.kluis(t, "supplier", "suspend", "--gln", gln)
	w.refused(t, c.with(t, token, "/v1/metering-points"), w.gatewayLog(), "supplier_suspended", invalidToken)
	if got, err := c.askIssuer(t.Context(), url.Values{"grant_type": {"client_credentials"}, "client_id": {gln}}); err != nil || got.status != http.StatusUnauthorized || got.Error != "invalid_client" {
		t.Errorf("the issuer: %+v %v", got, err)
	}
	w.kluis(t, "supplier", "resume", "--gln", gln)
	if a := c.with(t, token, "/v1/metering-points"); a.status != http.StatusOK {
		t.Errorf("after it was resumed: %d %s", a.status, a.body)
	}
}

// A scope that was withdrawn from the record is gone from tokens that are out.
func TestScopeWithdrawn(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	const gln = "8712000000127"
	c, _ := w.newSupplier(t, gln)
	token := c.accessToken(t)
	w.kluis(t, "supplier", "add", "--gln", gln, "--scope", "consents:write")
	a := c.with(t, token, "/v1/metering-points")
	if a.status != http.StatusForbidden || a.slug() != "insufficient-scope" || a.header.Get("WWW-Authenticate") != noScope {
		t.Errorf("%d %s", a.status, a.body)
	}
	// What it may have now is another scope, which does not read.
	fresh := w.caller(t, gln, &c.cert)
	a = fresh.with(t, fresh.accessToken(t), "/v1/metering-points")
	if a.status != http.StatusForbidden || a.slug() != "insufficient-scope" {
		t.Errorf("%d %s", a.status, a.body)
	}
}
