package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/authz"
	"kluis/cryptoserver/checkpoint"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/postgres"
	"kluis/internal/tracing"
	"kluis/meter"
	"kluis/server"
)

// connect makes the server's parts. The returned function closes them.
func connect(ctx context.Context, cfg config.Gateway, log *slog.Logger, reg prometheus.Registerer) (_ server.Config, _ func() error, err error) {
	var closers []func() error
	closeAll := func() error {
		var errs []error
		for _, c := range slices.Backward(closers) {
			errs = append(errs, c())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll())
		}
	}()

	yaml, err := os.ReadFile(cfg.ProfileFile)
	if err != nil {
		return server.Config{}, nil, fmt.Errorf("profile_file: %w", err)
	}
	profile, err := meter.ParseProfile(yaml)
	if err != nil {
		return server.Config{}, nil, fmt.Errorf("profile_file %s: %w", cfg.ProfileFile, err)
	}
	traces, err := tracing.Configured(ctx, cfg.Traces, "gateway", "", version)
	if err != nil {
		return server.Config{}, nil, err
	}
	closers = append(closers, func() error { traces.Close(); return nil })
	keys, err := config.PublicKeys(cfg.SealKeysFile)
	if err != nil {
		return server.Config{}, nil, fmt.Errorf("seal_keys_file: %w", err)
	}
	sealKeys, err := authz.NewSealKeys(keys...)
	if err != nil {
		return server.Config{}, nil, fmt.Errorf("seal_keys_file: %w", err)
	}
	cursorKeys, err := config.CursorKeys(cfg.CursorKeysFile)
	if err != nil {
		return server.Config{}, nil, fmt.Errorf("cursor_keys_file: %w", err)
	}
	verifier, err := authn.Configured(ctx, cfg.Issuers, cfg.OperatorGLN, profile, log)
	if err != nil {
		return server.Config{}, nil, err
	}
	tlsConfig, err := config.ClientTLS(cfg.Cryptoservers.TLS)
	if err != nil {
		return server.Config{}, nil, fmt.Errorf("cryptoservers: %w", err)
	}
	pool, err := client.New(client.Config{
		Addresses: cfg.Cryptoservers.Addresses, TLS: tlsConfig, Timeout: time.Duration(cfg.RequestTimeout), Registerer: reg, Traces: traces.Client(),
	})
	if err != nil {
		return server.Config{}, nil, err
	}
	closers = append(closers, pool.Close)
	dsn, err := config.DSN(cfg.DatabaseURL, cfg.DatabasePasswordFile)
	if err != nil {
		return server.Config{}, nil, fmt.Errorf("database_url: %w", err)
	}
	db, err := postgres.NewGateway(ctx, postgres.Config{DSN: dsn, Traces: traces})
	if err != nil {
		return server.Config{}, nil, err
	}
	closers = append(closers, db.Close)
	if err := reg.Register(db.Metrics()); err != nil {
		return server.Config{}, nil, fmt.Errorf("metrics: %w", err)
	}
	// Nothing is decided by rules that nobody could look up later.
	if err := db.KeepProfile(ctx, yaml); err != nil {
		return server.Config{}, nil, err
	}

	limits, err := limitsOf(cfg.Limits)
	if err != nil {
		return server.Config{}, nil, err
	}

	return server.Config{
		Profile:        profile,
		SealKeys:       sealKeys,
		Tokens:         verifier,
		Facts:          facts{db},
		Rows:           rows{db},
		Opener:         opener{pool, profile.Digest()},
		Identities:     identities{db, pool, profile.Digest()},
		Sealer:         sealer{pool, profile.Digest()},
		Steps:          steps{db},
		Register:       register{db},
		Recorder:       db,
		AccessLog:      accesses{db},
		Proofs:         proofs{db, keys},
		Many:           connectMany(db, pool, profile),
		Feed:           feed{db},
		Health:         health{db, pool, profile.Digest()},
		Overseer:       overseer{db, profile.Location()},
		Version:        version,
		CursorKeys:     cursorKeys,
		PublicURL:      cfg.PublicURL,
		RequestTimeout: time.Duration(cfg.RequestTimeout),
		Limits:         limits,
		Now:            time.Now,
		Log:            log,
		Metrics:        reg,
		Tracer:         traces.Tracer(),
	}, closeAll, nil
}

// limitsOf lays what is configured over the defaults.
func limitsOf(c config.Limits) (server.Limits, error) {
	l := server.DefaultLimits()
	l.Rate.PerSecond = cmp.Or(c.RequestsPerSecond, l.Rate.PerSecond)
	l.Rate.Burst = cmp.Or(c.Burst, l.Rate.Burst)
	l.Rates = map[meter.GLN]server.Rate{}
	for s, r := range c.Suppliers {
		gln, err := meter.ParseGLN(s)
		if err != nil {
			return server.Limits{}, fmt.Errorf("limits.suppliers: %w", err)
		}
		l.Rates[gln] = server.Rate{PerSecond: r.RequestsPerSecond, Burst: r.Burst}
	}
	l.Unrelated.PerSecond = cmp.Or(c.UnrelatedPerSecond, l.Unrelated.PerSecond)
	l.Unrelated.Burst = cmp.Or(c.UnrelatedBurst, l.Unrelated.Burst)
	l.Streams = cmp.Or(c.Streams, l.Streams)
	if c.Turns > 0 {
		l.Turns.Turns, l.Turns.Each = c.Turns, max(1, c.Turns/4)
	}
	l.Turns.Each = cmp.Or(c.TurnsEach, l.Turns.Each)
	l.Turns.Queue = cmp.Or(c.Queue, l.Turns.Queue)
	l.Turns.QueueAll = cmp.Or(c.QueueAll, max(l.Turns.QueueAll, l.Turns.Queue))
	l.Connections.All = cmp.Or(c.Connections, l.Connections.All)
	l.Connections.Each = cmp.Or(c.ConnectionsEach, min(l.Connections.Each, l.Connections.All))
	l.Connections.Handshakes = cmp.Or(c.Handshakes, l.Connections.Handshakes)
	return l, nil
}

// facts gives the database's candidates the server's type.
type facts struct{ *postgres.Gateway }

func (f facts) Candidates(ctx context.Context, gln meter.GLN, after meter.EAN, limit int) ([]server.Candidate, error) {
	found, err := f.Gateway.Candidates(ctx, gln, after, limit)
	return candidates(found), err
}

func candidates(found []postgres.Candidate) []server.Candidate {
	out := make([]server.Candidate, len(found))
	for i, c := range found {
		out[i] = server.Candidate(c)
	}
	return out
}

// rows gives the database's runs of stored days the server's type.
type rows struct{ *postgres.Gateway }

func (r rows) Stored(ctx context.Context, grants []authz.Grant) ([]server.StoredRun, error) {
	found, err := r.Gateway.Stored(ctx, grants)
	out := make([]server.StoredRun, len(found))
	for i, run := range found {
		out[i] = server.StoredRun(run)
	}
	return out, err
}

func (r rows) Inventory(ctx context.Context, i authz.Inventory) ([]server.StoredRun, error) {
	found, err := r.Gateway.Inventory(ctx, i)
	out := make([]server.StoredRun, len(found))
	for i, run := range found {
		out[i] = server.StoredRun(run)
	}
	return out, err
}

func (r rows) Blocks(ctx context.Context, g authz.Grant, asOf time.Time) ([]envelope.KeyRecord, []envelope.SealedBlock, error) {
	return r.BlocksAsOf(ctx, g, asOf)
}

// accesses gives the database's rows of the access log the server's types.
type accesses struct{ *postgres.Gateway }

func (a accesses) AccessLog(ctx context.Context, ean meter.EAN, after server.LogPlace, since time.Time, limit int) ([]server.LogRow, bool, error) {
	found, more, err := a.Gateway.AccessLog(ctx, ean, postgres.LogPlace(after), since, limit)
	out := make([]server.LogRow, len(found))
	for i, r := range found {
		out[i] = server.LogRow{Place: server.LogPlace(r.Place), Record: r.Record, Receipt: r.Receipt}
	}
	return out, more, err
}

// opener asks the pool of cryptoservers.
type opener struct {
	pool    *client.Client
	profile [32]byte
}

func (o opener) Open(ctx context.Context, r server.OpenRequest) (server.Opened, error) {
	units, err := o.pool.Open(ctx, client.OpenRequest{
		AccessToken: r.Token, SupplierRecord: r.Supplier, Profile: o.profile,
		Units: []client.Unit{{
			InteractionID: r.Interaction, LegalFile: r.LegalFile, Request: r.Request, Keys: r.Keys, Blocks: r.Blocks,
		}},
	})
	if err != nil {
		return server.Opened{}, openError(err)
	}
	u := units[0] // as many as were asked for
	if u.Err != nil {
		return server.Opened{}, openError(u.Err)
	}
	return openedUnit(u), nil
}

func openedUnit(u client.Opened) server.Opened {
	opened := server.Opened{Series: u.Series, Withheld: u.Withheld, Receipt: u.Receipt}
	for _, f := range u.Faults {
		switch f.Reason {
		case client.Damaged:
			opened.Damaged++
		case client.Erased: // as it should be
		default:
			opened.Outside++
		}
	}
	return opened
}

// sealer asks the pool of cryptoservers.
type sealer struct {
	pool    *client.Client
	profile [32]byte
}

func (s sealer) TakeStep(ctx context.Context, r server.StepRequest) ([]byte, error) {
	sealed, err := s.pool.TakeStep(ctx, client.TakeStepRequest{
		AccessToken: r.Token, SupplierRecord: r.Supplier, Profile: s.profile, Previous: r.LegalFile, Step: r.Step,
	})
	if err != nil {
		return nil, openError(err)
	}
	return sealed, nil
}

func (s sealer) TakeSupplierStep(ctx context.Context, r server.SupplierStepRequest) ([]byte, error) {
	sealed, err := s.pool.TakeSupplierStep(ctx, client.TakeSupplierStepRequest{
		AccessToken: r.Token, SupplierRecord: r.Operator, Previous: r.Previous, Suspend: r.Suspend,
	})
	if err != nil {
		return nil, openError(err)
	}
	return sealed, nil
}

// register gives what the database has of suppliers the server's types.
type register struct{ db *postgres.Gateway }

func (r register) Suppliers(ctx context.Context) ([]server.StoredSupplier, error) {
	found, err := r.db.Register(ctx)
	out := make([]server.StoredSupplier, len(found))
	for i, s := range found {
		out[i] = server.StoredSupplier(s)
	}
	return out, err
}

func (r register) Supplier(ctx context.Context, gln meter.GLN) (*server.StoredSupplier, error) {
	s, err := r.db.Registered(ctx, gln)
	return (*server.StoredSupplier)(s), err
}

func (r register) Usage(ctx context.Context, glns []meter.GLN, since time.Time) (map[meter.GLN]server.Usage, error) {
	found, err := r.db.Usage(ctx, glns, since)
	out := make(map[meter.GLN]server.Usage, len(found))
	for gln, u := range found {
		out[gln] = server.Usage(u)
	}
	return out, err
}

func (r register) Store(ctx context.Context, s *authz.Supplier, sealed []byte, rec audit.Record) error {
	err := r.db.StoreSupplier(ctx, s, sealed, rec)
	if errors.Is(err, postgres.ErrConflict) {
		return fmt.Errorf("%w: %w", server.ErrConflict, err)
	}
	return err
}

// steps gives what the database has of consents the server's types.
type steps struct{ *postgres.Gateway }

func (s steps) Consent(ctx context.Context, supplier meter.GLN, id [16]byte) ([]server.Candidate, error) {
	found, err := s.Gateway.Consent(ctx, supplier, id)
	return candidates(found), err
}

func (s steps) Stored(ctx context.Context, caller meter.GLN, key [32]byte) (*server.StoredStep, error) {
	k, err := s.IdempotencyKey(ctx, caller, key)
	if k == nil || err != nil {
		return nil, err
	}
	return &server.StoredStep{Request: k.Request, Consent: k.Consent}, nil
}

func (s steps) Store(ctx context.Context, n server.NewStep) error {
	err := s.StoreStep(ctx, n.File, n.Sealed, postgres.IdempotencyKey{
		Caller: n.Caller, Key: n.Key, Request: n.Stored.Request, Consent: n.Stored.Consent,
	}, n.Record)
	if errors.Is(err, postgres.ErrConflict) {
		return fmt.Errorf("%w: %w", server.ErrConflict, err)
	}
	return err
}

// openError says what a failure means to the caller. A server that cannot
// serve this installation's data (another profile, a missing key, a fault) is
// as good as away: only the operator can help, and trying later is all a
// caller can do.
func openError(err error) error {
	for _, k := range []struct{ from, to error }{
		{client.ErrTokenRefused, server.ErrTokenRefused},
		{client.ErrSupplierRefused, server.ErrTokenRefused},
		{client.ErrEvidence, server.ErrEvidenceRefused},
		{client.ErrUnavailable, server.ErrNoCryptoserver},
		{client.ErrProfileMismatch, server.ErrNoCryptoserver},
		{client.ErrUnknownEpoch, server.ErrNoCryptoserver},
		{client.ErrInternal, server.ErrNoCryptoserver},
		{context.DeadlineExceeded, server.ErrNoCryptoserver},
	} {
		if errors.Is(err, k.from) {
			return fmt.Errorf("%w: %w", k.to, err)
		}
	}
	return err
}

// health asks the back ends.
type health struct {
	*postgres.Gateway
	pool    *client.Client
	profile [32]byte
}

func (h health) Cryptoservers(ctx context.Context) []server.Cryptoserver {
	states := h.pool.Status(ctx)
	out := make([]server.Cryptoserver, len(states))
	for i, s := range states {
		// By its place in the configuration: callers need not know addresses.
		out[i] = server.Cryptoserver{
			Name: fmt.Sprintf("cryptoserver-%d", i+1),
			Serves: s.Err == nil && s.Healthy && slices.Contains(s.Roles, "open") && s.ProfileDigest == h.profile &&
				time.Since(s.ControlAt) <= control.MaxAge,
		}
		if s.Err != nil {
			continue
		}
		d := &server.CryptoserverDetails{
			ServerID: s.ServerID, Version: s.Version, StartedAt: s.StartedAt, Receipts: s.Receipts, Roles: s.Roles, ControlAt: s.ControlAt,
		}
		for _, t := range s.Tokens {
			d.Tokens = append(d.Tokens, server.HSMToken{Role: t.Role, Label: t.Label, State: t.State})
		}
		out[i].Details = d
	}
	return out
}

// LogHead reads the note without its signatures: that is for who checks a proof.
func (h health) LogHead(ctx context.Context) (*server.LogHead, error) {
	_, note, err := h.Gateway.LogHead(ctx)
	if note == nil || err != nil {
		return nil, err
	}
	text, _, _ := strings.Cut(string(note), "\n\n")
	c, err := checkpoint.Parse(text + "\n")
	if err != nil {
		return nil, err
	}
	return &server.LogHead{Size: c.Size, SignedAt: c.At}, nil
}
