package conformance

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"time"

	"kluis/meter"
)

// InstallationName is the file in the state folder of a demo that says how
// suppliers reach it.
const InstallationName = "conformance.json"

// Installation is the file that says how the runner, like any supplier, reaches
// an installation. Paths in it are relative to it.
type Installation struct {
	GatewayURL string          `json:"gateway_url"`
	IssuerURL  string          `json:"issuer_url"`
	CAFile     string          `json:"ca_file"` // of the servers' certificates
	Seeded     string          `json:"seeded"`  // the day on which the pack was seeded, YYYY-MM-DD
	Settled    time.Time       `json:"settled"` // from when on the pack is as its cases want it: a consent in it must have expired
	Damaged    bool            `json:"damaged"` // whether the block that is to be damaged was
	Suppliers  map[string]Pair `json:"suppliers"`
}

// Pair is the files of a test supplier's client certificate.
type Pair struct {
	CertificateFile string `json:"certificate_file"`
	KeyFile         string `json:"key_file"`
}

// ErrInstallation is wrapped by the errors of LoadInstallation and Target.
var ErrInstallation = errors.New("conformance: the file that says how to reach the installation")

// LoadInstallation reads such a file.
func LoadInstallation(path string) (*Installation, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInstallation, err)
	}
	var i Installation
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&i); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInstallation, path, err)
	}
	absolute := func(p *string) {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(filepath.Dir(path), *p)
		}
	}
	absolute(&i.CAFile)
	for name, s := range i.Suppliers {
		absolute(&s.CertificateFile)
		absolute(&s.KeyFile)
		i.Suppliers[name] = s
	}
	return &i, nil
}

// Write writes such a file, in one step.
func (i *Installation) Write(path string) error {
	b, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(b, '\n'))
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// requestTimeout bounds a request of the runner.
const requestTimeout = 30 * time.Second

// Target opens the certificates.
func (i *Installation) Target() (Target, error) {
	t := Target{Gateway: i.GatewayURL, Issuer: i.IssuerURL, Clients: map[string]*http.Client{}, Settled: i.Settled, Damaged: i.Damaged}
	var err error
	if t.Seeded, err = meter.ParseDay(i.Seeded); err != nil {
		return Target{}, fmt.Errorf("%w: seeded: %w", ErrInstallation, err)
	}
	ca, err := os.ReadFile(i.CAFile)
	if err != nil {
		return Target{}, fmt.Errorf("%w: ca_file: %w", ErrInstallation, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return Target{}, fmt.Errorf("%w: ca_file: no certificate in %s", ErrInstallation, i.CAFile)
	}
	for name, s := range i.Suppliers {
		cert, err := tls.LoadX509KeyPair(s.CertificateFile, s.KeyFile)
		if err != nil {
			return Target{}, fmt.Errorf("%w: supplier %s: %w", ErrInstallation, name, err)
		}
		t.Clients[name] = &http.Client{
			Timeout: requestTimeout,
			Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{
				MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{cert}}},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return t, nil
}

// Close ends the connections.
func (t Target) Close() {
	for _, c := range t.Clients {
		c.CloseIdleConnections()
	}
}

// Curl are the commands that make a case's request by hand: one for a token,
// where it needs one, and one for the request.
func (i *Installation) Curl(p *Pack, c Case) string {
	s := p.Suppliers[c.Supplier]
	as := func(name string) string {
		f := i.Suppliers[name]
		return fmt.Sprintf("curl -sS --cacert %s --cert %s --key %s", i.CAFile, f.CertificateFile, f.KeyFile)
	}
	out, header := "", ""
	switch c.Request.Token {
	case Own, Foreign:
		holder := s
		if c.Request.Token == Foreign {
			holder = p.other(s)
		}
		out = fmt.Sprintf("TOKEN=$(%s -d grant_type=client_credentials -d client_id=%s %s/oauth2/token | sed 's/.*\"access_token\":\"\\([^\"]*\\)\".*/\\1/')\n",
			as(holder.Name), holder.GLN, i.IssuerURL)
		header = ` -H "Authorization: Bearer $TOKEN"`
	case Garbage:
		header = ` -H "Authorization: Bearer not-a-token"`
	}
	for _, h := range [][2]string{{"Content-Type", c.Request.ContentType}, {"Idempotency-Key", c.Request.IdempotencyKey}, {"Accept", c.Request.Accept}} {
		if h[1] != "" {
			header += fmt.Sprintf(" -H '%s: %s'", h[0], h[1])
		}
	}
	if c.Request.IfNoneMatch == Current {
		out += fmt.Sprintf("TAG=$(%s -o /dev/null -D - -H \"Authorization: Bearer $TOKEN\" '%s' | sed -n 's/^etag: *\\([^\r]*\\).*/\\1/Ip')\n",
			as(s.Name), i.GatewayURL+c.Request.Target())
		header += ` -H "If-None-Match: $TAG"`
	}
	switch c.Request.IfMatch {
	case "":
	case Current:
		out += fmt.Sprintf("TAG=$(%s -o /dev/null -D - -H \"Authorization: Bearer $TOKEN\" '%s' | sed -n 's/^etag: *\\([^\r]*\\).*/\\1/Ip')\n",
			as(s.Name), i.GatewayURL+path.Dir(c.Request.Path))
		header += ` -H "If-Match: $TAG"`
	default:
		header += fmt.Sprintf(" -H 'If-Match: %s'", c.Request.IfMatch)
	}
	out += as(s.Name) + header
	if c.Request.Method != http.MethodGet || c.Request.Body != "" {
		out += " -X " + c.Request.Method
	}
	if c.Request.Body != "" {
		out += " -d '" + c.Request.Body + "'"
	}
	return out + " '" + i.GatewayURL + c.Request.Target() + "'"
}

// other is the test supplier whose token is foreign to this one.
func (p *Pack) other(s Supplier) Supplier {
	for _, o := range p.Suppliers {
		if o.Name != s.Name {
			return o
		}
	}
	return s
}
