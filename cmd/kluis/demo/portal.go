package demo

import (
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"kluis/internal/config"
	"kluis/internal/devidp"
)

// portalServer is the base name of the certificate that browsers see, identityName
// that of the development identity provider's.
const (
	portalServer = "portal-server"
	identityName = "identity"
)

func (l layout) portalConfig() string   { return l.path("portal.yaml") }
func (l layout) sessionKeyFile() string { return l.path("session-key") }

// writeSessionKey makes the key of the portal's sessions once: those who are signed
// in stay so when the demo is resumed.
func (l layout) writeSessionKey() error {
	if _, err := os.Stat(l.sessionKeyFile()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var key [32]byte
	_, _ = crand.Read(key[:]) // never fails: see crypto/rand
	return writeFile(l.sessionKeyFile(), fmt.Appendf(nil, "%x\n", key), 0o600)
}

// writeIdentity makes the development identity provider, once, and notes where it
// serves now: its address is its name in ID tokens.
func (l layout) writeIdentity(p progress) error {
	if err := os.MkdirAll(l.identityDir(), 0o755); err != nil {
		return err
	}
	if err := writeFile(devidp.URLFile(l.identityDir()), []byte(p.identityURL()+"\n"), 0o644); err != nil {
		return err
	}
	_, err := devidp.LoadOrCreate(l.identityDir())
	return err
}

func (p progress) identityURL() string { return "https://" + p.Identity }
func (p progress) portalURL() string   { return "https://" + p.Portal }

// writePortal writes the portal's configuration.
func (l layout) writePortal(p progress, dbURL func(role string) string) error {
	providers := l.identityProviders(p)
	cert, key := l.path("pki", portalServer+".crt"), l.path("pki", portalServer+".key")
	return config.Write(l.portalConfig(), config.Portal{
		Listen: p.Portal, MetricsListen: "127.0.0.1:0", PublicURL: p.portalURL(),
		TLS:         config.Identity{CertificateFile: cert, KeyFile: key},
		API:         config.PortalAPI{Gateway: "https://" + p.Gateway, Issuer: "https://" + p.Issuer, TLS: l.tls(portalName, l.operatorCAFile())},
		OperatorGLN: operatorGLN,
		OIDC: config.OIDC{Issuer: providers[0].URL, ClientID: devidp.Audience, CAFile: l.operatorCAFile(), RoleClaim: providers[0].RoleClaim,
			Roles: providers[0].Roles, NameClaim: "name"},
		DatabaseURL: dbURL("kluis_portal"), SessionKeyFile: l.sessionKeyFile(),
		Idle: config.Duration(15 * time.Minute), Absolute: config.Duration(8 * time.Hour),
		ProfileFile: l.profileFile(), Audit: config.PortalAudit{Origin: auditOrigin, KeysFile: l.sealKeysFile()}, Language: "nl",
	})
}

// startIdentity serves the development identity provider, in this process: no other
// program can.
func (d *demo) startIdentity(ctx context.Context) error {
	provider, err := devidp.Load(d.identityDir())
	if err != nil {
		return err
	}
	log, err := os.OpenFile(d.logFile(identityName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	server, err := devidp.NewServer(provider, d.progress.portalURL()+"/login/callback", devidp.Employees(), time.Now, slog.New(slog.NewJSONHandler(log, nil)))
	if err != nil {
		return errors.Join(err, log.Close())
	}
	pair, err := tls.LoadX509KeyPair(d.path("pki", identityName+".crt"), d.path("pki", identityName+".key"))
	if err != nil {
		return errors.Join(err, log.Close())
	}
	listener, err := net.Listen("tcp", d.progress.Identity)
	if err != nil {
		return errors.Join(err, log.Close())
	}
	go func() {
		defer log.Close()
		if err := server.Serve(ctx, listener, pair); err != nil {
			d.say("the development sign-in ended: %v", err)
		}
	}()
	return nil
}

// employeesIn names who can sign in, as greet shows them.
func employeesIn(list []devidp.Employee) string {
	var names []string
	for _, e := range list {
		if len(e.Roles) > 0 {
			names = append(names, fmt.Sprintf("%s (%s)", e.Name, strings.Join(e.Roles, ", ")))
		}
	}
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}
