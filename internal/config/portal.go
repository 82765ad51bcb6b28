package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"time"
)

// Portal configures cmd/portal, the customer-service portal.
type Portal struct {
	Listen        string `yaml:"listen"`         // host:port of the pages, HTTPS
	MetricsListen string `yaml:"metrics_listen"` // host:port of Prometheus metrics and probes, plain HTTP, private network
	// PublicURL is where browsers find the portal: https://host, without a path.
	// The provider sends employees back to PublicURL + /login/callback.
	PublicURL string   `yaml:"public_url"`
	TLS       Identity `yaml:"tls"` // server certificate, as browsers see it
	// API is how the portal reaches gateway and issuer: as any client does.
	API PortalAPI `yaml:"api"`
	// OperatorGLN is the grid operator's own GLN, the client_id of its employees'
	// tokens.
	OperatorGLN string `yaml:"operator_gln"`
	OIDC        OIDC   `yaml:"oidc"`

	DatabaseURL          string `yaml:"database_url"` // role kluis_portal; without a password
	DatabasePasswordFile string `yaml:"database_password_file,omitempty"`
	// SessionKeyFile holds the key that sessions are sealed with in the database:
	// 64 hexadecimal digits, the same at all portals. Another key ends all sessions.
	SessionKeyFile string `yaml:"session_key_file"`
	// Idle is after how long without a click a session ends, Absolute after how
	// long in any case; default 15m and 8h, at most 1h and 24h.
	Idle     Duration `yaml:"idle,omitempty"`
	Absolute Duration `yaml:"absolute,omitempty"`

	Limits PortalLimits `yaml:"limits,omitempty"`

	ProfileFile string      `yaml:"profile_file"`
	Audit       PortalAudit `yaml:"audit"`
	// Language is that of the pages for a browser that asks for none of theirs: nl
	// (the default) or en.
	Language string `yaml:"language,omitempty"`
}

// Identity names the PEM files of a server that wants no client certificate.
type Identity struct {
	CertificateFile string `yaml:"certificate_file"`
	KeyFile         string `yaml:"key_file"`
}

// PortalAPI says where gateway and issuer are, and who calls.
type PortalAPI struct {
	Gateway string `yaml:"gateway"` // https://host:port
	Issuer  string `yaml:"issuer"`  // https://host:port; its token endpoint is /oauth2/token
	TLS     TLS    `yaml:"tls"`     // the portal's client certificate; CA of the servers
}

// OIDC is where employees sign in, and what the portal is there.
type OIDC struct {
	Issuer           string `yaml:"issuer"`    // exact iss
	ClientID         string `yaml:"client_id"` // the audience of its ID tokens
	ClientSecretFile string `yaml:"client_secret_file,omitempty"`
	CAFile           string `yaml:"ca_file,omitempty"`    // of the provider's certificate; default: the system's
	RoleClaim        string `yaml:"role_claim"`           // as in identity_providers of the cryptoservers
	Roles            Roles  `yaml:"roles"`                // likewise
	NameClaim        string `yaml:"name_claim,omitempty"` // what employees are greeted by; default name
}

// PortalLimits bound the connections of browsers.
type PortalLimits struct {
	// Connections is how many there may be at once, ConnectionsEach how many of
	// them from one address (of IPv6 a /64), Handshakes how many may be on their way
	// besides; default 2000, 500 and 200. Whoever is behind one NAT, or behind a
	// proxy that passes TLS on, has one address: an office, or everybody.
	Connections     int `yaml:"connections,omitempty"`
	ConnectionsEach int `yaml:"connections_each,omitempty"`
	Handshakes      int `yaml:"handshakes,omitempty"`
}

// PortalAudit is what proofs of access records are checked by.
type PortalAudit struct {
	Origin   string `yaml:"origin"`    // audit_origin of the auditor
	KeysFile string `yaml:"keys_file"` // PEM, the public seal keys, which sign checkpoints
}

const (
	maxIdle     = time.Hour
	maxAbsolute = 24 * time.Hour
)

func (c *Portal) setDefaults() {
	c.Idle, c.Absolute, c.Language = Duration(15*time.Minute), Duration(8*time.Hour), "nl"
	c.OIDC.NameClaim = "name"
}

// Validate reports everything missing or out of range, a line each.
func (c Portal) Validate() error {
	var p problems
	p.listen("listen", c.Listen)
	p.listen("metrics_listen", c.MetricsListen)
	p.origin("public_url", c.PublicURL)
	p.required("tls.certificate_file", c.TLS.CertificateFile)
	p.required("tls.key_file", c.TLS.KeyFile)
	p.origin("api.gateway", c.API.Gateway)
	p.origin("api.issuer", c.API.Issuer)
	p.tls("api.tls", c.API.TLS)
	p.gln("operator_gln", c.OperatorGLN)
	p.https("oidc.issuer", c.OIDC.Issuer)
	p.required("oidc.client_id", c.OIDC.ClientID)
	p.required("oidc.role_claim", c.OIDC.RoleClaim)
	p.required("oidc.name_claim", c.OIDC.NameClaim)
	p.roles("oidc.roles", c.OIDC.Roles)
	p.database("database_url", c.DatabaseURL)
	p.required("session_key_file", c.SessionKeyFile)
	p.duration("idle", c.Idle, maxIdle)
	p.duration("absolute", c.Absolute, maxAbsolute)
	p.check(c.Absolute >= c.Idle, "absolute", "is shorter than idle")
	for name, n := range map[string]int{"connections": c.Limits.Connections, "connections_each": c.Limits.ConnectionsEach, "handshakes": c.Limits.Handshakes} {
		p.check(n >= 0 && n <= maxLimit, "limits."+name, fmt.Sprintf("must be from 1 to %d", maxLimit))
	}
	p.check(c.Limits.Connections <= 0 || c.Limits.ConnectionsEach <= c.Limits.Connections, "limits.connections_each", "is more than connections")
	p.required("profile_file", c.ProfileFile)
	p.name("audit.origin", c.Audit.Origin)
	p.required("audit.keys_file", c.Audit.KeysFile)
	p.check(slices.Contains([]string{"nl", "en"}, c.Language), "language", "must be nl or en")
	return p.err()
}

func (p *problems) roles(key string, r Roles) {
	values := slices.Concat(r.Agent, r.Supervisor, r.Auditor)
	p.check(len(values) > 0, key, "name the values of the role claim, for one role at least")
	for j, v := range values {
		p.check(v != "", key, "a value is empty")
		p.check(!slices.Contains(values[:j], v), key, "a value is there twice: it can stand for one role only")
	}
}

// origin is an https URL without a path: what is asked there is known.
func (p *problems) origin(key, v string) {
	u, err := url.Parse(v)
	p.check(err == nil && u.Scheme == "https" && u.Host != "" && v == "https://"+u.Host, key, "must be https://host or https://host:port, without a path")
}

// PageTLS is a server for browsers: TLS 1.3 only, no client certificate.
func PageTLS(t Identity) (*tls.Config, error) {
	cert, err := loadPair(TLS{CertificateFile: t.CertificateFile, KeyFile: t.KeyFile})
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}}, nil
}

// Roots are the authorities of a CA file, or nil, the system's, without one.
func Roots(caFile string) (*x509.CertPool, error) {
	if caFile == "" {
		return nil, nil
	}
	return CertPool(caFile)
}

// SessionKey reads the key that sessions are sealed with: 64 hexadecimal digits on
// one line.
func SessionKey(path string) ([32]byte, error) {
	var k [32]byte
	line, err := ReadSecret(path)
	if err != nil {
		return k, err
	}
	defer clear(line)
	n, err := 0, error(nil)
	if len(line) == hex.EncodedLen(len(k)) {
		n, err = hex.Decode(k[:], line)
	}
	if n != len(k) || err != nil || k == [32]byte{} { // never the text itself
		return [32]byte{}, fmt.Errorf("%s holds no key: write 64 hexadecimal digits, from openssl rand -hex 32", path)
	}
	return k, nil
}
