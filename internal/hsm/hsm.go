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
	pools   map[Role]*pool
	signers map[Role]*signer
	stuck   *stuckCalls
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
	if len(cfg.Tokens) == 0 {
		return nil, errors.New("no HSM token is configured")
	}
	for role, tokens := range cfg.Tokens {
		for _, t := range tokens {
			if t.Workers < 0 || t.Workers > MaxWorkers {
				return nil, fmt.Errorf("token %s of role %s: %d workers; there may be 1 to %d", t.Label, role, t.Workers, MaxWorkers)
			}
		}
	}
	if cfg.CallTimeout < 0 || cfg.StuckLimit < 0 {
		return nil, errors.New("call timeout and stuck limit must be positive")
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
	h := &HSM{pools: map[Role]*pool{}, signers: map[Role]*signer{},
		stuck: &stuckCalls{limit: int64(cmp.Or(cfg.StuckLimit, DefaultStuckLimit)), reached: make(chan struct{})}}
	all, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("metrics of the HSM: %w", err)
	}
	defer func() {
		if err != nil {
			_ = h.Close() // err says more
		}
	}()
	for _, role := range Roles() {
		if len(cfg.Tokens[role]) == 0 {
			continue
		}
		t := cfg.Tokens[role][0]
		m, err := all.of(t.Label)
		if err != nil {
			return nil, fmt.Errorf("metrics of token %s: %w", t.Label, err)
		}
		m.watch = cfg.watch
		connect := func() (*conn, error) {
			var p []probe
			if role.hasKEK() {
				var err error
				if p, err = probes(); err != nil {
					return nil, err
				}
			}
			return connect(mod, role, t, p, cfg.CacheSize, cfg.CacheLifetime, m)
		}
		c, err := inTime(connect, cfg.limits.connect)
		if err != nil {
			return nil, err
		}
		p := newPool(t.Label, c, connect, max(t.Workers, 1), cfg.limits, h.stuck.add, cfg.Log, m)
		h.pools[role] = p
		if c.public != nil {
			h.signers[role] = &signer{pool: p, public: c.public}
		}
	}
	if err := h.agree(); err != nil {
		return nil, err
	}
	return h, nil
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

// agree checks what no probe can: that the mint token wraps under the KEK that
// the seal token unwraps with, and that all record MAC keys are the same.
func (h *HSM) agree() error {
	ctx, cancel := context.WithTimeout(context.Background(), batchTimeout)
	defer cancel()
	minter, sealer := h.Minter(), h.Sealer()
	if minter != nil && sealer != nil {
		epochs := minter.Epochs()
		epoch := epochs[len(epochs)-1]
		wrapped, err := minter.Mint(ctx, epoch, 1)
		if err != nil {
			return err
		}
		items := []token.Item{{Out: make([]byte, 0, tagSize)}}
		if err := sealer.Seal(ctx, []token.WrappedKey{{Epoch: epoch, Wrapped: wrapped[0]}}, items); err != nil {
			return err
		}
		if items[0].Err != nil {
			return fmt.Errorf("%w: the seal token does not unwrap under KEK epoch %d what the mint token wraps; %s", errKeys, epoch, startOver)
		}
	}
	return h.agreeOnMAC(ctx)
}

func (h *HSM) agreeOnMAC(ctx context.Context) error {
	type recorder interface {
		RecordMAC(ctx context.Context, messages [][]byte) ([][32]byte, error)
	}
	holders := map[Role]recorder{}
	if t := h.Minter(); t != nil {
		holders[RoleMint] = t
	}
	if t := h.Sealer(); t != nil {
		holders[RoleSeal] = t
	}
	if t := h.Rotator(); t != nil {
		holders[RoleRotate] = t
	}
	var first Role
	var want [32]byte
	for _, role := range Roles() {
		holder, ok := holders[role]
		if !ok {
			continue
		}
		got, err := holder.RecordMAC(ctx, [][]byte{[]byte(probeAAD)})
		switch {
		case err != nil:
			return err
		case first == "":
			first, want = role, got[0]
		case got[0] != want:
			return fmt.Errorf("%w: the record MAC keys of the %s and the %s token differ; %s", errKeys, first, role, startOver)
		}
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
	var wg sync.WaitGroup
	errs := make([]error, 0, len(h.pools))
	var mu sync.Mutex
	for _, p := range h.pools {
		wg.Go(func() {
			err := p.close()
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
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
	if p, ok := h.pools[RoleOpen]; ok {
		return opener{p}
	}
	return nil
}

// Sealer returns the seal role.
func (h *HSM) Sealer() token.Sealer {
	if p, ok := h.pools[RoleSeal]; ok {
		return sealer{p, h.signers[RoleSeal]}
	}
	return nil
}

// Minter returns the mint role.
func (h *HSM) Minter() token.Minter {
	if p, ok := h.pools[RoleMint]; ok {
		return minter{p}
	}
	return nil
}

// TokenSigner returns the sign role.
func (h *HSM) TokenSigner() token.TokenSigner {
	if p, ok := h.pools[RoleSign]; ok {
		return tokenSigner{p, h.signers[RoleSign]}
	}
	return nil
}

type opener struct{ *pool }

// Open implements token.Opener. An item whose key names an epoch the token
// does not hold gets ErrUnknownEpoch, the others go on.
func (o opener) Open(ctx context.Context, keys []token.WrappedKey, items []token.Item) error {
	return o.gcm(ctx, false, keys, items)
}

type sealer struct {
	*pool
	signer *signer
}

// Seal implements token.Sealer. An item whose key names an epoch the token
// does not hold gets ErrUnknownEpoch, the others go on.
func (s sealer) Seal(ctx context.Context, keys []token.WrappedKey, items []token.Item) error {
	return s.gcm(ctx, true, keys, items)
}

func (s sealer) ContentMAC(ctx context.Context, messages [][]byte) ([][32]byte, error) {
	return s.mac(ctx, labelContentMAC, messages)
}

func (s sealer) RecordMAC(ctx context.Context, messages [][]byte) ([][32]byte, error) {
	return s.mac(ctx, labelRecordMAC, messages)
}

func (s sealer) Signer() crypto.Signer { return s.signer }

type minter struct{ *pool }

func (m minter) RecordMAC(ctx context.Context, messages [][]byte) ([][32]byte, error) {
	return m.mac(ctx, labelRecordMAC, messages)
}

// maxMint bounds the keys of one call; it keeps the token for about 100 us each.
const maxMint = 4096

// Mint implements token.Minter.
func (m minter) Mint(ctx context.Context, epoch uint32, n int) ([][]byte, error) {
	if n < 0 || n > maxMint {
		return nil, fmt.Errorf("%d keys asked for, at most %d at once: %w", n, maxMint, token.ErrBadData)
	}
	buf := make([]byte, n*wrappedSize)
	if _, err := m.do(ctx, "mint", n, func(a *access) error {
		if _, ok := a.keks[epoch]; !ok {
			return token.ErrUnknownEpoch
		}
		for from := 0; from < len(buf); from += chunk * wrappedSize {
			if a.left() {
				return token.ErrUnavailable
			}
			if err := a.call(func() error {
				return a.shim.mint(a.work, a.keks[epoch], a.template, buf[from:min(from+chunk*wrappedSize, len(buf))])
			}); err != nil {
				return err
			}
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

// Random implements token.Minter; at most 64 KiB at once.
func (m minter) Random(ctx context.Context, p []byte) error {
	if len(p) > 64<<10 {
		return fmt.Errorf("%d random bytes asked for, at most 64 KiB at once: %w", len(p), token.ErrBadData)
	}
	buf := make([]byte, len(p))
	_, err := m.do(ctx, "random", len(buf), func(a *access) error { return a.random(buf) }, func() { clear(buf) })
	if err == nil {
		copy(p, buf)
		clear(buf)
	}
	return err
}

type tokenSigner struct {
	*pool
	signer *signer
}

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
