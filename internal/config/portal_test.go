package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func goodPortal() Portal {
	c := Portal{
		Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", PublicURL: "https://portal.example",
		TLS:         Identity{CertificateFile: "a.crt", KeyFile: "a.key"},
		API:         PortalAPI{Gateway: "https://api.example:443", Issuer: "https://issuer.example", TLS: TLS{CertificateFile: "b.crt", KeyFile: "b.key", CAFile: "ca.crt"}},
		OperatorGLN: "8716867000009",
		OIDC:        OIDC{Issuer: "https://login.example/realms/staff", ClientID: "portal", RoleClaim: "groups", Roles: Roles{Agent: []string{"a"}, Auditor: []string{"u"}}},
		DatabaseURL: "postgres://kluis_portal@db.example/kluis", SessionKeyFile: "key", ProfileFile: "nl.yaml", Audit: PortalAudit{Origin: "kluis.example/audit", KeysFile: "seal.pem"},
	}
	c.setDefaults()
	return c
}

func TestPortal(t *testing.T) {
	t.Parallel()
	if err := goodPortal().Validate(); err != nil {
		t.Fatal(err)
	}
	for key, change := range map[string]func(*Portal){
		"listen":                  func(c *Portal) { c.Listen = "x" },
		"metrics_listen":          func(c *Portal) { c.MetricsListen = "" },
		"public_url":              func(c *Portal) { c.PublicURL = "https://portal.example/portal" },
		"tls.key_file":            func(c *Portal) { c.TLS.KeyFile = "" },
		"api.gateway":             func(c *Portal) { c.API.Gateway = "http://api.example" },
		"api.issuer":              func(c *Portal) { c.API.Issuer = "https://issuer.example/" },
		"api.tls.ca_file":         func(c *Portal) { c.API.TLS.CAFile = "" },
		"operator_gln":            func(c *Portal) { c.OperatorGLN = "871686700000" },
		"oidc.issuer":             func(c *Portal) { c.OIDC.Issuer = "http://login.example" },
		"oidc.client_id":          func(c *Portal) { c.OIDC.ClientID = "" },
		"oidc.role_claim":         func(c *Portal) { c.OIDC.RoleClaim = "" },
		"oidc.roles":              func(c *Portal) { c.OIDC.Roles.Supervisor = []string{"a"} },
		"database_url":            func(c *Portal) { c.DatabaseURL = "postgres://kluis_portal:secret@db.example/kluis" },
		"session_key_file":        func(c *Portal) { c.SessionKeyFile = "" },
		"idle":                    func(c *Portal) { c.Idle = Duration(2 * time.Hour) },
		"absolute":                func(c *Portal) { c.Absolute = Duration(time.Minute) },
		"profile_file":            func(c *Portal) { c.ProfileFile = "" },
		"audit.origin":            func(c *Portal) { c.Audit.Origin = "" },
		"audit.keys_file":         func(c *Portal) { c.Audit.KeysFile = "" },
		"limits.connections":      func(c *Portal) { c.Limits.Connections = -1 },
		"limits.connections_each": func(c *Portal) { c.Limits.Connections, c.Limits.ConnectionsEach = 10, 11 },
		"limits.handshakes":       func(c *Portal) { c.Limits.Handshakes = 1e9 },
		"language":                func(c *Portal) { c.Language = "fr" },
		"tls.certificate_file":    func(c *Portal) { c.TLS.CertificateFile = "" },
		"oidc.name_claim":         func(c *Portal) { c.OIDC.NameClaim = "" },
		"api.tls.key_file":        func(c *Portal) { c.API.TLS.KeyFile = "" },
		"public_url ":             func(c *Portal) { c.PublicURL = "https://user@portal.example" },
		"api.gateway ":            func(c *Portal) { c.API.Gateway = "https://api.example?x" },
	} {
		c := goodPortal()
		change(&c)
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), "  "+strings.TrimSpace(key)+": ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestSessionKey(t *testing.T) {
	t.Parallel()
	write := func(text string, mode os.FileMode) string {
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	good := strings.Repeat("5e", 32)
	k, err := SessionKey(write(good+"\n", 0o600))
	if err != nil || k[0] != 0x5e || k[31] != 0x5e {
		t.Fatalf("%x %v", k, err)
	}
	for name, file := range map[string]string{
		"others can read it": write(good+"\n", 0o640), "short": write(good[2:]+"\n", 0o600), "long": write(good+"5e\n", 0o600),
		"no digits": write(strings.Repeat("zz", 32)+"\n", 0o600), "zeros": write(strings.Repeat("00", 32)+"\n", 0o600),
		"two lines": write(good+"\n"+good+"\n", 0o600), "empty": write("", 0o600), "none": filepath.Join(t.TempDir(), "none"),
	} {
		if _, err := SessionKey(file); err == nil || strings.Contains(err.Error(), "5e5e") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
