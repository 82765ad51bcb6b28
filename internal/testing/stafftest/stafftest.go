// Package stafftest gives tests a grid operator whose employees sign in: with a
// development identity provider, and the record of the operator's own GLN.
package stafftest

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"kluis/authz"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/devidp"
	"kluis/meter"
)

// GLN is the grid operator's.
const GLN = "8716867000009"

// Subject is that of an access token for an employee that signs in as sub.
func Subject(sub string) string { return devidp.URL + "#" + sub }

// Office is where the employees are.
type Office struct {
	Operator   meter.GLN
	Profile    *meter.Profile
	Identities *authn.Identities
	provider   *devidp.Provider
	tb         testing.TB
}

// New makes an office whose employees' errands name the fields of a profile.
func New(tb testing.TB, p *meter.Profile) *Office {
	tb.Helper()
	o := &Office{tb: tb, Profile: p}
	var err error
	o.Operator, err = meter.ParseGLN(GLN)
	o.must(err)
	o.provider, err = devidp.New()
	o.must(err)
	o.Identities, err = authn.ConfiguredIdentities([]config.IdentityProvider{o.Configured(tb.TempDir())})
	o.must(err)
	return o
}

func (o *Office) must(err error) {
	o.tb.Helper()
	if err != nil {
		o.tb.Fatal(err)
	}
}

// Configured is the provider as a cryptoserver's configuration names it, its
// keys written to dir.
func (o *Office) Configured(dir string) config.IdentityProvider {
	o.tb.Helper()
	file := filepath.Join(dir, "devidp-jwks.json")
	o.must(os.WriteFile(file, o.provider.JWKS(), 0o600))
	return config.IdentityProvider{
		URL: devidp.URL, Audience: devidp.Audience, JWKSFile: file, RoleClaim: devidp.RoleClaim,
		Roles: config.Roles{Agent: []string{"agent"}, Supervisor: []string{"supervisor"}, Auditor: []string{"auditor"}},
	}
}

// Staff is for an authn.Issuer whose tokens may name these employees.
func (o *Office) Staff() *authn.Staff { return &authn.Staff{Operator: o.Operator, Profile: o.Profile} }

// Facts are those of the operator's record, with the portal's certificate.
func (o *Office) Facts(portal *x509.Certificate) authz.SupplierFacts {
	return authz.SupplierFacts{
		GLN: o.Operator, Name: "Grid operator", Scopes: []string{authn.ScopeStaff},
		Certificates: []authz.Certificate{{Thumbprint: authn.Thumbprint(portal), NotAfter: portal.NotAfter}},
	}
}

// IDToken is that of an employee who signed in as sub at the time.
func (o *Office) IDToken(sub string, at time.Time, roles ...authz.Role) string {
	o.tb.Helper()
	var names []string
	for _, r := range roles {
		names = append(names, r.String())
	}
	raw, err := o.provider.IDToken(sub, at, names...)
	o.must(err)
	return raw
}

// Sign signs an ID token of any claims (devidp.Provider.Sign).
func (o *Office) Sign(claims map[string]any) string {
	o.tb.Helper()
	raw, err := o.provider.Sign(claims)
	o.must(err)
	return raw
}

// Errand is the authorization_details of an errand. Without a reason it gets
// one.
func (o *Office) Errand(e authz.Errand) string {
	o.tb.Helper()
	if e.Reason == "" {
		e.Reason = "customer on the line"
	}
	b, err := authn.EncodeErrand(e, o.Profile)
	o.must(err)
	return string(b)
}
