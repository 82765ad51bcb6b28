// Package cryptoserver is the only service with keys. It never takes the
// gateway's word: Open verifies the supplier's own token, supplier record and
// legal file, takes the decision again with its own clock, rebuilds what every
// ciphertext must be bound to from what it has authorised, and lets out
// nothing finer than was granted, with a receipt.
//
// A server plays the roles whose tokens it is given (open, seal, mint, rotate, sign)
// and answers each method only to the client identities on that method's
// allow-list. It knows no database.
package cryptoserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"

	"kluis/authz"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/token"
	"kluis/internal/authn"
	"kluis/meter"
)

// TokenVerifier verifies a supplier's access token where there is no TLS
// connection with the supplier (*authn.Verifier). Implementers are safe for
// concurrent use.
type TokenVerifier interface {
	VerifyDetached(ctx context.Context, raw string) (*authn.Token, error)
}

// Tokens are the HSM tokens by role; a role whose token is nil is not played.
type Tokens struct {
	Open   token.Opener
	Seal   token.Sealer
	Mint   token.Minter
	Rotate token.Rotator
	Sign   token.TokenSigner
}

// Config is what a Server is made of.
type Config struct {
	ID       string // in receipts, 1 to 64 bytes
	Version  string // of the software, for Status
	TLS      *tls.Config
	Allow    map[string][]string // method name → client identities
	Profile  *meter.Profile
	SealKeys []*ecdsa.PublicKey // pinned; the seal token's own among them
	Verifier TokenVerifier      // needed for role open, and for TakeStep, TakeSupplierStep, SignManifest and FindIndex
	Issue    Issue              // needed for role sign
	Staff    *Staff             // of role sign; nil: no tokens of employees are signed
	Tokens   Tokens
	// Journal is needed for the roles open and seal. It is closed by whom it
	// belongs to, once Serve has ended.
	Journal Journal

	// SealRate is how many blocks a second each client identity may have
	// sealed; 20,000 when zero.
	SealRate int
	// PointsPerToken is how many different metering points are opened on one
	// access token at most; 100,000 when zero.
	PointsPerToken int

	Clock      func() time.Time // time.Now when nil
	Log        *slog.Logger
	Registerer prometheus.Registerer
	Traces     stats.Handler // is told of each call; nil: nobody is

	CheckEvery time.Duration // of the tokens; 2 s when zero
	MaxCall    time.Duration // a call without an earlier deadline ends here; 30 s when zero
	Drain      time.Duration // calls in progress at shutdown get this long; 10 s when zero
}

// Issue is what the sign role puts into access tokens.
type Issue struct {
	Issuer   string
	Audience string
	KeyID    string // kid; the key's thumbprint (RFC 7638) when empty
}

// Bounds of one call. A year of all fields of one metering point is some
// 2,600 blocks and one megabyte.
const (
	maxMessage = 16 << 20
	maxUnits   = 1000
	maxBlocks  = 20000
	maxKeys    = 4000
	maxMint    = 4000
	maxFields  = 64
	maxDays    = 366
	// maxFieldDays bounds the days asked for, over all fields: a day costs
	// memory whether or not its block is sent.
	maxFieldDays = 20000
	// maxValues is more than a block has on any day.
	maxValues    = 128
	checkTimeout = 5 * time.Second
)

// Server serves one cryptoserver. Make it with New.
type Server struct {
	cryptopb.UnimplementedCryptoserverServer

	id       string
	version  string
	tls      *tls.Config
	allow    allowList
	profile  *meter.Profile
	digest   [32]byte
	sealKeys *authz.SealKeys
	verifier TokenVerifier
	issue    Issue
	staff    *Staff
	tokens   Tokens
	sealer   *sealSigner

	traces      stats.Handler
	now         func() time.Time
	log         *slog.Logger
	metrics     *metrics
	health      *monitor
	recorder    *recorder
	files       *newest[meter.EAN]
	suppliers   *newest[meter.GLN]
	sealed      *repeats
	resealed    *repeats // by itself: what one service uses up must not stop the other
	rates       sealRates
	points      *points
	control     *follower
	boot        [16]byte
	checkpoints checkpoints
	started     time.Time
	checkEvery  time.Duration
	maxCall     time.Duration
	drain       time.Duration
	work        sync.Pool // *openWork
}

// New checks the configuration and every token; it refuses whatever would not
// serve or would seal what nobody accepts.
func New(ctx context.Context, c Config) (*Server, error) {
	if c.ID == "" || len(c.ID) > 64 {
		return nil, errors.New("cryptoserver: id must have 1 to 64 bytes")
	}
	if c.TLS == nil || c.TLS.ClientAuth != tls.RequireAndVerifyClientCert || c.TLS.ClientCAs == nil ||
		c.TLS.MinVersion < tls.VersionTLS13 || c.TLS.InsecureSkipVerify {
		return nil, errors.New("cryptoserver: TLS must be 1.3 and require client certificates of a named authority")
	}
	if c.Profile == nil || c.Log == nil || c.Registerer == nil {
		return nil, errors.New("cryptoserver: profile, log and registerer are needed")
	}
	s := &Server{
		id: c.ID, version: c.Version, tls: c.TLS, profile: c.Profile, digest: c.Profile.Digest(),
		verifier: c.Verifier, issue: c.Issue, staff: c.Staff, tokens: c.Tokens,
		traces: c.Traces, now: c.Clock, log: c.Log, checkEvery: c.CheckEvery, maxCall: c.MaxCall, drain: c.Drain,
		sealed: newRepeats(), resealed: newRepeats(), points: newPoints(c.PointsPerToken),
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.checkEvery == 0 {
		s.checkEvery = 2 * time.Second
	}
	if s.maxCall == 0 {
		s.maxCall = 30 * time.Second
	}
	if s.drain == 0 {
		s.drain = 10 * time.Second
	}
	s.work.New = func() any { return &openWork{zone: meter.NewCalendar(s.profile.Location())} }
	var err error
	if s.allow, err = newAllowList(c.Allow); err != nil {
		return nil, fmt.Errorf("cryptoserver: %w", err)
	}
	s.rates = newSealRates(c.SealRate, c.Allow)
	if s.sealKeys, err = authz.NewSealKeys(c.SealKeys...); err != nil {
		return nil, fmt.Errorf("cryptoserver: seal keys: %w", err)
	}
	feed := control.NewFeed()
	if s.metrics, err = newMetrics(c.Registerer, feed, c.Journal, s.points, s.now); err != nil {
		return nil, fmt.Errorf("cryptoserver: metrics: %w", err)
	}
	if s.files, err = newNewest[meter.EAN](newestKept); err != nil {
		return nil, fmt.Errorf("cryptoserver: %w", err)
	}
	if s.suppliers, err = newNewest[meter.GLN](newestKept); err != nil {
		return nil, fmt.Errorf("cryptoserver: %w", err)
	}
	if c.Journal != nil {
		s.boot = c.Journal.BootID()
	} else if c.Tokens.Open != nil || c.Tokens.Seal != nil {
		return nil, errors.New("cryptoserver: the roles open and seal need a journal: name journal_dir")
	} else if _, err := rand.Read(s.boot[:]); err != nil {
		return nil, fmt.Errorf("cryptoserver: boot id: %w", err)
	}
	held := map[Role]token.Health{}
	if c.Tokens.Open != nil {
		held[RoleOpen] = c.Tokens.Open
		if c.Verifier == nil {
			return nil, errors.New("cryptoserver: role open needs accepted issuers of access tokens")
		}
	}
	if c.Tokens.Seal != nil {
		held[RoleSeal] = c.Tokens.Seal
		if s.sealer, err = newSealSigner(c.Tokens.Seal.Signer(), c.SealKeys); err != nil {
			return nil, fmt.Errorf("cryptoserver: %w", err)
		}
	}
	if c.Tokens.Mint != nil {
		held[RoleMint] = c.Tokens.Mint
	}
	if c.Tokens.Rotate != nil {
		held[RoleRotate] = c.Tokens.Rotate
	}
	if c.Staff != nil && (c.Staff.Operator.IsZero() || c.Staff.Identities == nil) {
		return nil, errors.New("cryptoserver: tokens of employees need the grid operator's GLN and an identity provider")
	}
	if c.Tokens.Sign != nil {
		held[RoleSign] = c.Tokens.Sign
		if c.Issue.Issuer == "" || c.Issue.Audience == "" {
			return nil, errors.New("cryptoserver: role sign needs the issuer and audience of the tokens it signs")
		}
		if s.issue.KeyID == "" {
			pub, ok := c.Tokens.Sign.Signer().Public().(*ecdsa.PublicKey)
			if !ok {
				return nil, errors.New("cryptoserver: the access-token key is not an ECDSA key")
			}
			if s.issue.KeyID, err = authn.KeyID(pub); err != nil {
				return nil, fmt.Errorf("cryptoserver: access-token key: %w", err)
			}
		}
	}
	if c.Tokens.Seal != nil && len(c.Allow["TakeStep"])+len(c.Allow["TakeSupplierStep"])+len(c.Allow["SignManifest"])+len(c.Allow["FindIndex"]) > 0 && c.Verifier == nil {
		return nil, errors.New("cryptoserver: role seal takes steps, signs manifests and finds addresses by access token, so it needs accepted issuers of them")
	}
	if len(held) == 0 {
		return nil, errors.New("cryptoserver: no role: name at least one token")
	}
	s.control = &follower{Feed: feed}
	if c.Tokens.Open != nil {
		s.control.holders = append(s.control.holders, c.Tokens.Open)
	}
	if c.Tokens.Seal != nil {
		s.control.holders = append(s.control.holders, c.Tokens.Seal)
	}
	s.health = newMonitor(held, func() bool { return feed.Fresh(s.now()) }, c.Journal, checkTimeout, s.log, s.metrics)
	s.recorder = &recorder{serverID: c.ID, journal: c.Journal, failed: s.health.recorded}
	if err := s.health.start(ctx); err != nil {
		return nil, fmt.Errorf("cryptoserver: %w", err)
	}
	s.started = s.now()
	return s, nil
}

// Serve serves on l until ctx ends, then drains: health says NOT_SERVING,
// calls in progress may finish within the drain time, the rest is cut.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	options := []grpc.ServerOption{
		grpc.Creds(cryptopb.NewTLS(s.tls)),
		grpc.WriteBufferSize(cryptopb.WriteBuffer),
		grpc.UnaryInterceptor(s.unary),
		grpc.InTapHandle(s.admit),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(256),
		// A usual call fits, so that its sender need not wait for leave to go
		// on; fixed, so that nobody measures the network to find a better one.
		grpc.StaticStreamWindowSize(1 << 20),
		grpc.StaticConnWindowSize(4 << 20),
		grpc.MaxHeaderListSize(16 << 10),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			// A connection outlives its certificates by no more than this.
			MaxConnectionAge:      time.Hour,
			MaxConnectionAgeGrace: time.Minute,
			Time:                  20 * time.Second,
			Timeout:               5 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
	if s.traces != nil {
		options = append(options, grpc.StatsHandler(s.traces))
	}
	g := grpc.NewServer(options...)
	cryptopb.RegisterCryptoserverServer(g, s)
	healthpb.RegisterHealthServer(g, s.health.server)

	var checks sync.WaitGroup
	cctx, stopChecks := context.WithCancel(ctx)
	checks.Go(func() { s.health.run(cctx, s.checkEvery) })
	defer checks.Wait()
	defer stopChecks()

	failed := make(chan error, 1)
	go func() { failed <- g.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("cryptoserver: %w", err)
	case <-ctx.Done():
	}
	stopChecks()
	s.health.server.Shutdown()
	done := make(chan struct{})
	go func() { g.GracefulStop(); close(done) }()
	timer := time.NewTimer(s.drain)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		s.log.Warn("drain time is over, cutting the calls left")
		g.Stop()
		<-done
	}
	return nil
}
