// Command issuer is the authorisation server of Kluis: it gives suppliers
// access tokens bound to their client certificate (package issuer).
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/internal/config"
	"kluis/internal/postgres"
	"kluis/issuer"
	"kluis/meter"
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
		fmt.Fprintln(os.Stderr, "issuer:", err)
		os.Exit(1)
	}
}

func run() error {
	var c cli
	kong.Parse(&c,
		kong.Name("issuer"),
		kong.Description("The authorisation server of Kluis: certificate-bound access tokens for suppliers."),
		kong.Vars{"version": version},
		kong.UsageOnError(),
	)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return serve(ctx, c.Config, slog.New(slog.NewJSONHandler(os.Stdout, nil)))
}

// serve serves until ctx ends.
func serve(ctx context.Context, configFile string, log *slog.Logger) (err error) {
	cfg, err := config.Load[config.IssuerProcess](configFile)
	if err != nil {
		return err
	}
	tls, err := config.ServerTLS(cfg.TLS)
	if err != nil {
		return err
	}
	publicSealKeys, err := config.PublicKeys(cfg.SealKeysFile)
	if err != nil {
		return fmt.Errorf("seal_keys_file: %w", err)
	}
	sealKeys, err := authz.NewSealKeys(publicSealKeys...)
	if err != nil {
		return fmt.Errorf("seal_keys_file: %w", err)
	}
	jwks, err := os.ReadFile(cfg.JWKSFile)
	if err != nil {
		return fmt.Errorf("jwks_file: %w", err)
	}

	poolTLS, err := config.ClientTLS(cfg.Cryptoservers.TLS)
	if err != nil {
		return fmt.Errorf("cryptoservers: %w", err)
	}
	pool, err := client.New(client.Config{Addresses: cfg.Cryptoservers.Addresses, TLS: poolTLS})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()

	dsn, err := config.DSN(cfg.DatabaseURL, cfg.DatabasePasswordFile)
	if err != nil {
		return err
	}
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	db, err := postgres.NewIssuer(starting, postgres.Config{DSN: dsn})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()

	var operator meter.GLN
	if cfg.OperatorGLN != "" {
		if operator, err = meter.ParseGLN(cfg.OperatorGLN); err != nil {
			return fmt.Errorf("operator_gln: %w", err)
		}
	}
	is, err := issuer.New(issuer.Config{
		URL:       cfg.URL,
		JWKS:      jwks,
		SealKeys:  sealKeys,
		Suppliers: db,
		Signer:    signer{pool},
		Operator:  operator,
		Ready:     func(ctx context.Context) error { return errors.Join(db.Database(ctx), signs(ctx, pool)) },
		Now:       time.Now,
		Log:       log,
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return err
	}
	log.Info("ready", "address", listener.Addr().String(), "url", cfg.URL)
	err = is.Serve(ctx, listener, tls, drainTimeout)
	log.Info("stopped")
	return err
}

// signer speaks the issuer's errors.
type signer struct{ pool *client.Client }

func (s signer) SignToken(ctx context.Context, record []byte, thumbprint [32]byte, scopes []string, lifetime time.Duration) (string, time.Time, error) {
	raw, expires, err := s.pool.SignToken(ctx, record, thumbprint, scopes, lifetime)
	return raw, expires, translate(err)
}

func (s signer) SignStaffToken(ctx context.Context, record []byte, thumbprint [32]byte, idToken, errand string, lifetime time.Duration) (string, time.Time, error) {
	raw, expires, err := s.pool.SignStaffToken(ctx, record, thumbprint, idToken, errand, lifetime)
	return raw, expires, translate(err)
}

func translate(err error) error {
	for theirs, ours := range map[error]error{
		client.ErrSupplierRefused: issuer.ErrClientRefused,
		client.ErrEmployeeRefused: issuer.ErrEmployeeRefused,
		client.ErrErrandRefused:   issuer.ErrErrandRefused,
		client.ErrUnavailable:     issuer.ErrUnavailable,
	} {
		if errors.Is(err, theirs) {
			return fmt.Errorf("%w: %w", ours, err)
		}
	}
	return err
}

// signs is nil when a cryptoserver serves the sign role.
func signs(ctx context.Context, pool *client.Client) error {
	var errs []error
	for _, s := range pool.Status(ctx) {
		switch {
		case s.Err != nil:
			errs = append(errs, fmt.Errorf("cryptoserver %s: %w", s.Address, s.Err))
		case s.Healthy && slices.Contains(s.Roles, "sign"):
			return nil
		default:
			errs = append(errs, fmt.Errorf("cryptoserver %s does not serve the sign role", s.Address))
		}
	}
	return errors.Join(errs...)
}
