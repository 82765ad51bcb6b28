// Command portal is the customer-service portal of Kluis: pages for the grid
// operator's employees, over the REST API (package web).
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"kluis/internal/config"
	"kluis/internal/connlimit"
	"kluis/internal/postgres"
	"kluis/internal/scrape"
	"kluis/meter"
	"kluis/web"
)

// version is set by the linker.
var version = "unknown"

const (
	startTimeout = 15 * time.Second
	drainTimeout = 15 * time.Second
)

type cli struct {
	Config  string           `required:"" type:"existingfile" placeholder:"FILE" help:"Configuration (YAML)."`
	Version kong.VersionFlag `help:"Print the version."`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "portal:", err)
		os.Exit(1)
	}
}

func run() error {
	var c cli
	kong.Parse(&c,
		kong.Name("portal"),
		kong.Description("The customer-service portal of Kluis: pages for the grid operator's employees, over the REST API."),
		kong.Vars{"version": version},
		kong.UsageOnError(),
	)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return serve(ctx, c.Config, slog.New(slog.NewJSONHandler(os.Stdout, nil)))
}

// serve serves until ctx ends.
func serve(ctx context.Context, configFile string, log *slog.Logger) (err error) {
	cfg, err := config.Load[config.Portal](configFile)
	if err != nil {
		return err
	}
	pageTLS, err := config.PageTLS(cfg.TLS)
	if err != nil {
		return err
	}
	c, err := webConfig(cfg)
	if err != nil {
		return err
	}
	dsn, err := config.DSN(cfg.DatabaseURL, cfg.DatabasePasswordFile)
	if err != nil {
		return err
	}
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	db, err := postgres.NewPortal(starting, postgres.Config{DSN: dsn})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()

	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), db.Metrics())
	c.Store, c.Registry, c.Log, c.Now = db, reg, log, time.Now
	portal, err := web.New(c)
	if err != nil {
		return err
	}
	metrics, err := net.Listen("tcp", cfg.MetricsListen)
	if err != nil {
		return err
	}
	defer scrape.Serve(metrics, reg, log)()
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return err
	}
	log.Info("ready", "address", listener.Addr().String(), "url", cfg.PublicURL, "metrics_address", metrics.Addr().String())
	err = portal.Serve(ctx, listener, pageTLS, drainTimeout)
	log.Info("stopped")
	return err
}

// webConfig reads the files that the configuration names.
func webConfig(cfg config.Portal) (web.Config, error) {
	c := web.Config{
		PublicURL: cfg.PublicURL, Gateway: cfg.API.Gateway, Issuer: cfg.API.Issuer,
		SignIn: web.SignIn{Issuer: cfg.OIDC.Issuer, ClientID: cfg.OIDC.ClientID, RoleClaim: cfg.OIDC.RoleClaim,
			NameClaim: cfg.OIDC.NameClaim, Roles: map[string]web.Role{}},
		Idle: time.Duration(cfg.Idle), Absolute: time.Duration(cfg.Absolute),
		AuditOrigin: cfg.Audit.Origin, Language: cfg.Language, Connections: connectionsOf(cfg.Limits),
	}
	for role, values := range map[web.Role][]string{web.Agent: cfg.OIDC.Roles.Agent, web.Supervisor: cfg.OIDC.Roles.Supervisor, web.Auditor: cfg.OIDC.Roles.Auditor} {
		for _, v := range values {
			c.SignIn.Roles[v] = role
		}
	}
	var err error
	if c.ClientTLS, err = config.ClientTLS(cfg.API.TLS); err != nil {
		return c, fmt.Errorf("api: %w", err)
	}
	if c.Operator, err = meter.ParseGLN(cfg.OperatorGLN); err != nil {
		return c, fmt.Errorf("operator_gln: %w", err)
	}
	if c.SignIn.Roots, err = config.Roots(cfg.OIDC.CAFile); err != nil {
		return c, fmt.Errorf("oidc.ca_file: %w", err)
	}
	if cfg.OIDC.ClientSecretFile != "" {
		secret, err := config.ReadSecret(cfg.OIDC.ClientSecretFile)
		if err != nil {
			return c, fmt.Errorf("oidc.client_secret_file: %w", err)
		}
		c.SignIn.Secret = string(secret)
	}
	if c.SessionKey, err = config.SessionKey(cfg.SessionKeyFile); err != nil {
		return c, fmt.Errorf("session_key_file: %w", err)
	}
	if c.AuditKeys, err = config.PublicKeys(cfg.Audit.KeysFile); err != nil {
		return c, fmt.Errorf("audit.keys_file: %w", err)
	}
	yaml, err := os.ReadFile(cfg.ProfileFile)
	if err != nil {
		return c, fmt.Errorf("profile_file: %w", err)
	}
	if c.Profile, err = meter.ParseProfile(yaml); err != nil {
		return c, fmt.Errorf("profile_file: %w", err)
	}
	return c, nil
}

func connectionsOf(c config.PortalLimits) connlimit.Limits {
	l := web.DefaultConnections()
	l.All = cmp.Or(c.Connections, l.All)
	l.Each = cmp.Or(c.ConnectionsEach, min(l.Each, l.All))
	l.Handshakes = cmp.Or(c.Handshakes, l.Handshakes)
	return l
}
