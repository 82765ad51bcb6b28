package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"kluis/cryptoserver"
	"kluis/cryptoserver/journal"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/hsm"
	"kluis/internal/scrape"
	"kluis/internal/tracing"
	"kluis/meter"
)

type serveCmd struct {
	Config string `required:"" type:"existingfile" placeholder:"FILE" help:"Configuration (YAML)."`
}

// Run serves until ctx ends.
func (cmd *serveCmd) Run(ctx context.Context) (err error) {
	log := slog.New(slog.NewJSONHandler(os.Stdout, nil))
	cfg, err := config.Load[config.Cryptoserver](cmd.Config)
	if err != nil {
		return err
	}
	yaml, err := os.ReadFile(cfg.ProfileFile)
	if err != nil {
		return fmt.Errorf("profile_file: %w", err)
	}
	profile, err := meter.ParseProfile(yaml)
	if err != nil {
		return fmt.Errorf("profile_file %s: %w", cfg.ProfileFile, err)
	}
	sealKeys, err := config.PublicKeys(cfg.SealKeysFile)
	if err != nil {
		return fmt.Errorf("seal_keys_file: %w", err)
	}
	tls, err := config.ServerTLS(cfg.TLS)
	if err != nil {
		return err
	}
	// A nil *authn.Verifier in the interface would not look missing.
	var verifier cryptoserver.TokenVerifier
	if len(cfg.Issuers) > 0 {
		if verifier, err = authn.Configured(ctx, cfg.Issuers, cfg.OperatorGLN, profile, log); err != nil {
			return err
		}
	}
	var staff *cryptoserver.Staff
	if len(cfg.IdentityProviders) > 0 {
		staff = new(cryptoserver.Staff)
		if staff.Operator, err = meter.ParseGLN(cfg.OperatorGLN); err != nil {
			return fmt.Errorf("operator_gln: %w", err)
		}
		if staff.Identities, err = authn.ConfiguredIdentities(cfg.IdentityProviders); err != nil {
			return err
		}
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	traces, err := tracing.Configured(ctx, cfg.Traces, "cryptoserver", cfg.ID, version)
	if err != nil {
		return err
	}
	defer traces.Close()
	tokens, err := openTokens(cfg, log, reg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tokens.Close()) }()
	ctx, stopped := endWhen(ctx, tokens.Stuck)
	defer func() { err = errors.Join(err, stopped()) }()
	// A nil *journal.Journal in the interface would not look missing.
	var kept cryptoserver.Journal
	if cfg.JournalDir != "" {
		j, openErr := journal.Open(journal.Config{Dir: cfg.JournalDir, Keep: time.Duration(cfg.JournalDays) * 24 * time.Hour, Log: log})
		if openErr != nil {
			return openErr
		}
		defer func() { err = errors.Join(err, j.Close()) }()
		kept = j
	}
	holders := cryptoserver.Tokens{Open: tokens.Opener(), Seal: tokens.Sealer(), Mint: tokens.Minter(), Rotate: tokens.Rotator(), Sign: tokens.TokenSigner()}
	if calls := traces.Server(); calls != nil {
		if holders.Open != nil {
			holders.Open = tracedOpener{holders.Open}
		}
		if holders.Seal != nil {
			holders.Seal = tracedSealer{holders.Seal}
		}
	}
	server, err := cryptoserver.New(ctx, cryptoserver.Config{
		ID: cfg.ID, Version: version, TLS: tls, Allow: cfg.Allow,
		Profile: profile, SealKeys: sealKeys, Verifier: verifier,
		Issue:    cryptoserver.Issue{Issuer: cfg.Token.Issuer, Audience: cfg.Token.Audience, KeyID: cfg.Token.KeyID},
		Staff:    staff,
		Tokens:   holders,
		Journal:  kept,
		SealRate: cfg.SealRate, PointsPerToken: cfg.PointsPerToken, Log: log, Registerer: reg, Traces: traces.Server(),
	})
	if err != nil {
		return err
	}

	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return err
	}
	defer listener.Close() // Serve has closed it by then, unless it never ran
	ready := []any{"id", cfg.ID, "address", listener.Addr().String()}
	if cfg.MetricsListen != "" {
		metrics, err := net.Listen("tcp", cfg.MetricsListen)
		if err != nil {
			return fmt.Errorf("metrics_listen: %w", err)
		}
		ready = append(ready, "metrics_address", metrics.Addr().String())
		stop := scrape.Serve(metrics, reg, log)
		defer stop()
	}
	log.Info("ready", ready...)
	return server.Serve(ctx, listener)
}

// openTokens logs in to the token of every configured role; the KEKs have
// withstood every attack when it returns.
func openTokens(cfg config.Cryptoserver, log *slog.Logger, reg prometheus.Registerer) (*hsm.HSM, error) {
	return hsm.New(hsm.Config{
		Module: cfg.Module, Tokens: tokensByRole(cfg.Tokens), ProbeKeyFile: cfg.ProbeKeyFile,
		CacheSize: cfg.KeyCache.Size, CacheLifetime: time.Duration(cfg.KeyCache.Lifetime),
		CallTimeout: time.Duration(cfg.CallTimeout), StuckLimit: cfg.StuckLimit, RenewAfter: cfg.RenewAfter,
		Log: log, Registerer: reg,
	})
}

// endWhen ends the context when wait returns an error, which stopped returns
// after it has ended wait. Whoever supervises the process starts it anew.
func endWhen(ctx context.Context, wait func(context.Context) error) (_ context.Context, stopped func() error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		err := wait(ctx)
		cancel()
		done <- err
	}()
	return ctx, func() error {
		cancel()
		return <-done
	}
}
