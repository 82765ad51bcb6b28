package hsm

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kluis/cryptoserver/token"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"
)

// Token names one PKCS#11 token.
type Token struct {
	Label   string
	PINFile string // holds the user PIN on its one line; mode 0600 or stricter
	Workers int    // sessions that work side by side; 1 when zero. SoftHSM wants 1, an HSM as many as it has engines
}

// Config says which tokens this process serves from.
type Config struct {
	Module string // path of the PKCS#11 module
	// Tokens of each role; a role without one is not served.
	Tokens map[Role][]Token
	// ProbeKeyFile holds the probe keys of all KEK epochs; needed by every
	// role but sign.
	ProbeKeyFile string
	// CacheSize and CacheLifetime bound the unwrapped data keys of the open
	// and of the seal token, each.
	CacheSize     int
	CacheLifetime time.Duration
	// CallTimeout is how long one call into the module may take (up to 64
	// operations) before its worker counts as stuck; 2 s when zero. It should
	// be well under the deadlines of callers, so that they can still go to
	// another server.
	CallTimeout time.Duration
	// StuckLimit is at how many stuck calls, of all tokens and since the
	// start, Stuck says that the process should end; 3 when zero.
	StuckLimit int
	// RenewAfter is after how many session objects (data keys unwrapped, minted
	// or rewrapped) the module is ended and initialised anew, for one that
	// keeps memory of those it destroyed, as SoftHSM does; 0: never. Callers
	// wait meanwhile.
	RenewAfter int
	Log        *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: nothing is measured

	limits limits      // the defaults where zero; for tests
	watch  func(State) // likewise
}

// Defaults of Config.
const (
	DefaultCallTimeout = 2 * time.Second
	DefaultStuckLimit  = 3
	MaxWorkers         = 64
)

// HSM serves the roles of its tokens. All methods are safe for concurrent use.
type HSM struct {
	groups  map[Role]*group
	signers map[Role]*signer
	stuck   *stuckCalls
	renewer *renewer
}

// stuckCalls counts the calls given up in a process.
type stuckCalls struct {
	count   atomic.Int64
	limit   int64
	reached chan struct{}
}

// add notes one and says whether the process goes on.
func (s *stuckCalls) add() bool {
	n := s.count.Add(1)
	if n == s.limit {
		close(s.reached)
	}
	return n < s.limit
}

// New opens every token of the configuration, attacks its KEKs, computes known
// vectors with them and checks that the roles fit each other. It fails unless
// every token is fit to serve; ErrWeakKEK tells a KEK that gave way.
func New(cfg Config) (*HSM, error) {
	if cfg.CacheSize < 1 || cfg.CacheLifetime <= 0 {
		return nil, errors.New("key cache: size and lifetime must be positive")
	}
	labels := map[string]bool{}
	for role, tokens := range cfg.Tokens {
		if len(tokens) > 1 && role.signing() != "" {
			return nil, fmt.Errorf("role %s has %d tokens; it may have one, for its signing key is this server's own", role, len(tokens))
		}
		for _, t := range tokens {
			switch {
			case t.Workers < 0 || t.Workers > MaxWorkers:
				return nil, fmt.Errorf("token %s of role %s: %d workers; there may be 1 to %d", t.Label, role, t.Workers, MaxWorkers)
			case labels[t.Label]:
				return nil, fmt.Errorf("token %s is named twice; roles are kept apart by separate tokens, and a token serves a role once", t.Label)
			}
			labels[t.Label] = true
		}
	}
	if len(labels) == 0 {
		return nil, errors.New("no HSM token is configured")
	}
	if cfg.CallTimeout < 0 || cfg.StuckLimit < 0 || cfg.RenewAfter < 0 {
		return nil, errors.New("call timeout, stuck limit and renewal must be positive")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	mod, err := loadModule(cfg.Module)
	if err != nil {
		return nil, err
	}
	return start(mod, cfg, func() ([]probe, error) { return readProbes(cfg.ProbeKeyFile) })
}

func start(mod *module, cfg Config, probes func() ([]probe, error)) (_ *HSM, err error) {
	cfg.limits = limits{
		call:    cmp.Or(cfg.CallTimeout, DefaultCallTimeout),
		connect: cmp.Or(cfg.limits.connect, connectTimeout),
		first:   cmp.Or(cfg.limits.first, pauseFirst),
		most:    cmp.Or(cfg.limits.most, pauseMost),
	}
	h := &HSM{groups: map[Role]*group{}, signers: map[Role]*signer{},
		stuck: &stuckCalls{limit: int64(cmp.Or(cfg.StuckLimit, DefaultStuckLimit)), reached: make(chan struct{})}}
	all, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("metrics of the HSM: %w", err)
	}
	h.renewer = newRenewer(mod, cfg.RenewAfter, cfg.limits.call, cfg.Log, all)
	defer func() {
		if err != nil {
			_ = h.Close() // err says more
		}
	}()
	for _, role := range Roles() {
		g := &group{role: role}
		for _, t := range cfg.Tokens[role] {
			p, err := newToken(mod, cfg, g, t, probes, all, h.stuck.add, h.renewer.made)
			if err != nil {
				return nil, err
			}
			g.add(p)
			h.groups[role] = g // closed with h, whatever comes
			if p.public != nil {
				h.signers[role] = &signer{pool: p, public: p.public}
			}
		}
	}
	if err := h.agree(); err != nil {
		return nil, err
	}
	h.renewer.run(h.groups)
	return h, nil
}

// newToken opens a token of a group and begins to serve from it.
func newToken(mod *module, cfg Config, g *group, t Token, probes func() ([]probe, error), all *metrics, lost func() bool, made func(int)) (*pool, error) {
	m, err := all.of(t.Label)
	if err != nil {
		return nil, fmt.Errorf("metrics of token %s: %w", t.Label, err)
	}
	m.watch = cfg.watch
	connect := func() (*conn, error) {
		var p []probe
		if g.role.hasKEK() {
			var err error
			if p, err = probes(); err != nil {
				return nil, err
			}
		}
		return connect(mod, g.role, t, p, cfg.CacheSize, cfg.CacheLifetime, m)
	}
	c, err := inTime(connect, cfg.limits.connect)
	if err != nil {
		return nil, err
	}
	return newPool(t.Label, c, connect, max(t.Workers, 1), cfg.limits, &g.generation, lost, made, cfg.Log, m), nil
}

// inTime connects, or returns ErrStuck when that takes too long.
func inTime(connect func() (*conn, error), limit time.Duration) (*conn, error) {
	type result struct {
		conn *conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		c, err := connect()
		done <- result{c, err}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-time.After(limit):
		return nil, fmt.Errorf("a token does not open within %s: %w", limit, ErrStuck)
	}
}

// agree checks what no token can tell by itself: that the tokens of a role hold
// the KEKs of the same epochs; that every mint token wraps under the KEKs that
// the others unwrap with (those have shown that they have the KEK the probe was
// made with, which is one for all); and that there is one record MAC key.
func (h *HSM) agree() error {
	for _, role := range Roles() {
		if g := h.groups[role]; g != nil {
			first := g.pools[0]
			for _, p := range g.pools[1:] {
				if a, b := first.held(), p.held(); !slices.Equal(a, b) {
					return fmt.Errorf("%w: token %s holds KEKs of epochs %v and token %s of %v; tokens of one role must hold the same: import what is missing, or leave one of them out", errKeys, first.label, a, p.label, b)
				}
			}
		}
	}
	if mint := h.groups[RoleMint]; mint != nil {
		if err := h.unwrapsMinted(mint); err != nil {
			return err
		}
	}
	var first *pool
	for _, role := range Roles() {
		if g := h.groups[role]; g != nil && slices.Contains(role.macs(), labelRecordMAC) {
			for _, p := range g.pools {
				if first == nil {
					first = p
				}
				if p.macs[labelRecordMAC] != first.macs[labelRecordMAC] {
					return fmt.Errorf("%w: the record MAC keys of tokens %s and %s differ; %s", errKeys, first.label, p.label, startOver)
				}
			}
		}
	}
	return nil
}

// unwrapsMinted has a key minted by every mint token under every epoch and
// unwrapped by another role.
func (h *HSM) unwrapsMinted(mint *group) error {
	by := h.groups[RoleSeal]
	if by == nil {
		by = h.groups[RoleOpen]
	}
	if by == nil {
		if n := len(mint.pools); n > 1 {
			return fmt.Errorf("%w: whether %d mint tokens hold the same KEKs can be told only beside a seal or open token: configure one, or a single mint token", errKeys, n)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), batchTimeout)
	defer cancel()
	checked := false
	for _, p := range mint.pools {
		for _, epoch := range p.held() {
			if !slices.Contains(by.pools[0].held(), epoch) {
				continue
			}
			wrapped, err := p.mint(ctx, epoch, 1)
			if err != nil {
				return err
			}
			switch err := by.pools[0].unwraps(ctx, token.WrappedKey{Epoch: epoch, Wrapped: wrapped[0]}); {
			case errors.Is(err, token.ErrBadData):
				return fmt.Errorf("%w: token %s of role %s does not unwrap under KEK epoch %d what mint token %s wraps; %s", errKeys, by.pools[0].label, by.role, epoch, p.label, startOver)
			case err != nil:
				return err
			}
			checked = true
		}
	}
	if !checked {
		return fmt.Errorf("%w: the tokens of roles mint and %s have no KEK epoch in common; import what is missing", errKeys, by.role)
	}
	return nil
}

const startOver = "they come from different runs of cryptoserver keys create: initialise new tokens and import one run's keys onto all"

func readProbes(path string) ([]probe, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("probe key file: %w", err)
	}
	probes, err := parseProbes(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return probes, nil
}

// Close turns callers away, waits for running batches and logs out.
func (h *HSM) Close() error {
	h.renewer.close()
	var wg sync.WaitGroup
	var errs []error
	var mu sync.Mutex
	for _, g := range h.groups {
		for _, p := range g.pools {
			wg.Go(func() {
				err := p.close()
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ErrStuck: calls into the module do not return, and nothing in this process
// can end them.
var ErrStuck = errors.New("calls into the PKCS#11 module do not return, and only a new process helps")

// Stuck waits until so many calls into the module did not return that the
// process should drain and end, for its supervisor to start another, and
// returns ErrStuck; or nil when ctx ends.
func (h *HSM) Stuck(ctx context.Context) error {
	select {
	case <-h.stuck.reached:
		return ErrStuck
	case <-ctx.Done():
		return nil
	}
}

// Opener returns the open role, or nil when it is not served. So do the others.
func (h *HSM) Opener() token.Opener {
	if g, ok := h.groups[RoleOpen]; ok {
		return opener{g}
	}
	return nil
}

// Sealer returns the seal role.
func (h *HSM) Sealer() token.Sealer {
	if g, ok := h.groups[RoleSeal]; ok {
		return sealer{g, h.signers[RoleSeal]}
	}
	return nil
}

// Minter returns the mint role.
func (h *HSM) Minter() token.Minter {
	if g, ok := h.groups[RoleMint]; ok {
		return minter{g}
	}
	return nil
}

// Rotator returns the rotate role.
func (h *HSM) Rotator() token.Rotator {
	if g, ok := h.groups[RoleRotate]; ok {
		return rotator{g}
	}
	return nil
}

// TokenSigner returns the sign role.
func (h *HSM) TokenSigner() token.TokenSigner {
	if g, ok := h.groups[RoleSign]; ok {
		return tokenSigner{g, h.signers[RoleSign]}
	}
	return nil
}

// maxMint bounds the keys of one call; it keeps the token for about 100 us each.
const maxMint = 4096

// mint makes data keys on one token.
func (p *pool) mint(ctx context.Context, epoch uint32, n int) ([][]byte, error) {
	if n < 0 || n > maxMint {
		return nil, fmt.Errorf("%d keys asked for, at most %d at once: %w", n, maxMint, token.ErrBadData)
	}
	buf := make([]byte, n*wrappedSize)
	if _, err := p.do(ctx, "mint", n, func(a *access) error {
		if _, ok := a.keks[epoch]; !ok {
			return token.ErrUnknownEpoch
		}
		for from := 0; from < len(buf); from += chunk * wrappedSize {
			if a.left() {
				return token.ErrUnavailable
			}
			part := buf[from:min(from+chunk*wrappedSize, len(buf))]
			if err := a.call(func() error { return a.shim.mint(a.work, a.keks[epoch], a.template, part) }); err != nil {
				return err
			}
			a.made(len(part) / wrappedSize)
			a.used(a.keks[epoch], len(part)/wrappedSize)
		}
		return nil
	}, func() {}); err != nil {
		return nil, err
	}
	wrapped := make([][]byte, n)
	for i := range wrapped {
		wrapped[i] = buf[i*wrappedSize : (i+1)*wrappedSize : (i+1)*wrappedSize]
	}
	return wrapped, nil
}

func (p *pool) random(ctx context.Context, b []byte) error {
	if len(b) > 64<<10 {
		return fmt.Errorf("%d random bytes asked for, at most 64 KiB at once: %w", len(b), token.ErrBadData)
	}
	buf := make([]byte, len(b))
	_, err := p.do(ctx, "random", len(buf), func(a *access) error { return a.random(buf) }, func() { clear(buf) })
	if err == nil {
		copy(b, buf)
		clear(buf)
	}
	return err
}

func (s sealer) Signer() crypto.Signer      { return s.signer }
func (t tokenSigner) Signer() crypto.Signer { return t.signer }

// signer is an ES256 key on a token. Signatures are ASN.1 DER.
type signer struct {
	pool   *pool
	public *ecdsa.PublicKey
}

func (s *signer) Public() crypto.PublicKey { return s.public }

// Sign signs a SHA-256 digest; the token makes its own randomness. It returns
// within 5 seconds.
func (s *signer) Sign(_ io.Reader, hashed []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil || opts.HashFunc() != crypto.SHA256 || len(hashed) != crypto.SHA256.Size() {
		return nil, errors.New("the HSM key signs SHA-256 digests only")
	}
	own := append([]byte(nil), hashed...)
	ctx, cancel := context.WithTimeout(context.Background(), signTimeout)
	defer cancel()
	var raw []byte
	if _, err := s.pool.do(ctx, "sign", 1, func(a *access) (err error) {
		raw, err = a.sign(own)
		return err
	}, func() {}); err != nil {
		return nil, err
	}
	return signatureDER(raw)
}

// mac computes HMAC-SHA-256 of each message under a key of the token.
func (p *pool) mac(ctx context.Context, label string, messages [][]byte) ([][32]byte, error) {
	if len(messages) == 0 {
		return nil, nil
	}
	total := 0
	for _, m := range messages {
		if total += len(m); total > maxBatch {
			return nil, fmt.Errorf("messages are larger than %d bytes: %w", maxBatch, token.ErrBadData)
		}
	}
	in := make([]byte, 0, total)
	items := make([]macItem, len(messages))
	for i, m := range messages {
		items[i] = macItem{data: cUint32(len(in)), data_len: cUint32(len(m))}
		in = append(in, m...)
	}
	out := make([]byte, len(messages)*macSize)
	mine, err := p.do(ctx, "mac", len(messages), func(a *access) error {
		for from := 0; from < len(items); from += chunk {
			if a.left() {
				return token.ErrUnavailable
			}
			to := min(from+chunk, len(items))
			if err := a.call(func() error {
				return a.shim.sign(a.work, pkcs11.CKM_SHA256_HMAC, a.macs[label], items[from:to], in, out[from*macSize:to*macSize], macSize)
			}); err != nil {
				return err
			}
			a.used(a.macs[label], to-from)
		}
		return nil
	}, func() { clear(in) }) // content messages hold plaintext
	if mine {
		clear(in)
	}
	if err != nil {
		return nil, err
	}
	macs := make([][32]byte, len(messages))
	for i := range macs {
		macs[i] = [32]byte(out[i*macSize:])
	}
	return macs, nil
}
