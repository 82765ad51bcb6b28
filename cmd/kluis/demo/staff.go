package demo

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"kluis/authz"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/devidp"
	"kluis/meter"
)

// operatorGLN is the demo's grid operator.
const operatorGLN = "8712000000097"

// portalName is the base name of the portal's certificate and key.
const portalName = "portal"

// identityDir holds the development identity provider.
func (l layout) identityDir() string { return l.path("identity") }

func (l layout) portalPair() (cert, key string) {
	return l.path("pki", portalName+".crt"), l.path("pki", portalName+".key")
}

// identityProviders is where the demo's employees sign in.
func (l layout) identityProviders(p progress) []config.IdentityProvider {
	return []config.IdentityProvider{{
		URL: p.identityURL(), Audience: devidp.Audience, JWKSFile: devidp.JWKSFile(l.identityDir()), RoleClaim: devidp.RoleClaim,
		Roles: config.Roles{Agent: []string{"agent"}, Supervisor: []string{"supervisor"}, Auditor: []string{"auditor"}},
	}}
}

// operatorFacts are those of the grid operator's own record: the portal's
// certificate, and the scope of its employees.
func (l layout) operatorFacts() (authz.SupplierFacts, error) {
	gln, err := meter.ParseGLN(operatorGLN)
	if err != nil {
		return authz.SupplierFacts{}, err
	}
	certFile, _ := l.portalPair()
	cert, err := readCertificate(certFile)
	if err != nil {
		return authz.SupplierFacts{}, err
	}
	return authz.SupplierFacts{GLN: gln, Name: "Netbeheer Voorbeeld (demo)", Scopes: []string{authn.ScopeStaff},
		Certificates: []authz.Certificate{{Thumbprint: sha256.Sum256(cert.Raw), NotAfter: cert.NotAfter.UTC()}}}, nil
}

// readyPortal is what the customer-service portal needs: a client of issuer
// and gateway with a certificate, and where employees sign in.
type readyPortal struct {
	ClientID         string `json:"client_id"` // the grid operator's GLN
	CertificateFile  string `json:"certificate_file"`
	KeyFile          string `json:"key_file"`
	IdentityProvider string `json:"identity_provider"` // iss of ID tokens
	IdentityAudience string `json:"identity_audience"` // aud of ID tokens
	IdentityDir      string `json:"identity_dir"`      // of the development provider's key

	URL       string            `json:"url"` // of its pages
	Employees []devidp.Employee `json:"employees"`
	PID       int               `json:"pid"`
}

func (l layout) readyPortal(p progress) readyPortal {
	cert, key := l.portalPair()
	return readyPortal{ClientID: operatorGLN, CertificateFile: cert, KeyFile: key,
		IdentityProvider: p.identityURL(), IdentityAudience: devidp.Audience, IdentityDir: l.identityDir(),
		URL: p.portalURL(), Employees: devidp.Employees()}
}

// ErrNoDemo: the folder holds no demo, or none with employees.
var ErrNoDemo = errors.New("employees' tokens are made here for the demo only, with its development identity provider: give the state folder of a demo with --state; elsewhere the portal gets them")

// Portal acts as the customer-service portal of the demo in a state folder.
type Portal struct {
	Profile  *meter.Profile
	provider *devidp.Provider
	api      *apiClient
}

// OpenPortal finds what the portal needs in a demo's state folder; ErrNoDemo
// where there is no demo.
func OpenPortal(state string) (*Portal, error) {
	l := layout{state}
	if _, err := os.Stat(l.progressFile()); err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNoDemo, err)
	}
	provider, err := devidp.Load(l.identityDir())
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNoDemo, err)
	}
	issuer, err := config.Load[config.IssuerProcess](l.issuerConfig())
	if err != nil {
		return nil, err
	}
	yaml, err := os.ReadFile(l.profileFile())
	if err != nil {
		return nil, err
	}
	p := &Portal{provider: provider}
	if p.Profile, err = meter.ParseProfile(yaml); err != nil {
		return nil, fmt.Errorf("%s: %w", l.profileFile(), err)
	}
	cert, key := l.portalPair()
	p.api, err = newAPIClient(&readyFile{IssuerURL: issuer.URL, CAFile: l.operatorCAFile()},
		readySupplier{ClientID: operatorGLN, CertificateFile: cert, KeyFile: key})
	return p, err
}

// Employee says who signed in at the development provider.
type Employee struct {
	Name string // sub
	Role authz.Role
}

// Token lets the employee sign in and exchanges the ID token for an access token
// for the errand, as the portal does. The answer is the issuer's (RFC 8693,
// clause 2.2.1).
func (p *Portal) Token(ctx context.Context, e Employee, errand authz.Errand) (answer json.RawMessage, err error) {
	details, err := authn.EncodeErrand(errand, p.Profile)
	if err != nil {
		return nil, err
	}
	id, err := p.provider.IDToken(e.Name, time.Now(), e.Role.String())
	if err != nil {
		return nil, err
	}
	form := url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {p.api.supplier.ClientID},
		"subject_token": {id}, "subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"},
		"authorization_details": {string(details)},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.api.ready.IssuerURL+"/oauth2/token", strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := p.api.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("the demo must be running: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		var told struct {
			Error       string `json:"error"`
			Description string `json:"error_description"`
		}
		if err := json.Unmarshal(body, &told); err != nil {
			return nil, fmt.Errorf("the issuer answered %s", res.Status)
		}
		return nil, fmt.Errorf("the issuer answered %s: %s: %s", res.Status, told.Error, told.Description)
	}
	return body, nil
}
