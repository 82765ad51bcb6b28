package hsm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"kluis/cryptoserver/token"
)

// Token names one PKCS#11 token.
type Token struct {
	Label   string
	PINFile string // holds the user PIN on its one line; mode 0600 or stricter
}

// Config says which tokens this process serves from.
type Config struct {
	Module string         // path of the PKCS#11 module
	Tokens map[Role]Token // a role without a token is not served
	// ProbeKeyFile holds the probe keys of all KEK epochs; needed by every
	// role but sign.
	ProbeKeyFile string
	// CacheSize and CacheLifetime bound the unwrapped data keys of the open
	// and of the seal token, each.
	CacheSize     int
	CacheLifetime time.Duration
	Log           *slog.Logger // nil: nothing is logged
}

// HSM serves the roles of its tokens. All methods are safe for concurrent use.
type HSM struct {
	executors map[Role]*executor
	signers   map[Role]*signer
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
	h := &HSM{executors: map[Role]*executor{}, signers: map[Role]*signer{}}
	defer func() {
		if err != nil {
			_ = h.Close() // err says more
		}
	}()
	for _, role := range Roles() {
		t, ok := cfg.Tokens[role]
		if !ok {
			continue
		}
		connect := func() (*conn, error) {
			if !role.hasKEK() {
				return connect(mod, role, t, nil, cfg.CacheSize, cfg.CacheLifetime)
			}
			p, err := probes()
			if err != nil {
				return nil, err
			}
			return connect(mod, role, t, p, cfg.CacheSize, cfg.CacheLifetime)
		}
		c, err := connect()
		if err != nil {
			return nil, err
		}
		e := newExecutor(t.Label, c, connect, cfg.Log)
		h.executors[role] = e
		if c.public != nil {
			h.signers[role] = &signer{executor: e, public: c.public}
		}
	}
	if err := h.agree(); err != nil {
		return nil, err
	}
	return h, nil
}

// agree checks what no probe can: that the mint token wraps under the KEK that
// the seal token unwraps with, and that both record MAC keys are the same.
func (h *HSM) agree() error {
	minter, sealer := h.Minter(), h.Sealer()
	if minter == nil || sealer == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	wrapped, epoch, err := minter.Mint(ctx, 1)
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
	a, err := minter.RecordMAC(ctx, [][]byte{[]byte(probeAAD)})
	if err != nil {
		return err
	}
	b, err := sealer.RecordMAC(ctx, [][]byte{[]byte(probeAAD)})
	if err != nil {
		return err
	}
	if a[0] != b[0] {
		return fmt.Errorf("%w: the record MAC keys of the mint and the seal token differ; %s", errKeys, startOver)
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
	var errs []error
	for _, e := range h.executors {
		errs = append(errs, e.close())
	}
	return errors.Join(errs...)
}

// Stuck waits for a call into the module that does not come back, and names
// the token. Nothing in this process can end such a call: the caller should
// end the process. It returns nil when ctx ends.
func (h *HSM) Stuck(ctx context.Context) error { return h.stuck(ctx, hopelessAfter) }

func (h *HSM) stuck(ctx context.Context, after time.Duration) error {
	tick := time.NewTicker(after / 20)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, e := range h.executors {
			if s := e.started.Load(); s != 0 && time.Since(time.Unix(0, s)) > after {
				return fmt.Errorf("token %s: %w", e.label, errStuck)
			}
		}
	}
}

// Opener returns the open role, or nil when it is not served. So do the others.
func (h *HSM) Opener() token.Opener {
	if e, ok := h.executors[RoleOpen]; ok {
		return opener{e}
	}
	return nil
}

// Sealer returns the seal role.
func (h *HSM) Sealer() token.Sealer {
	if e, ok := h.executors[RoleSeal]; ok {
		return sealer{e, h.signers[RoleSeal]}
	}
	return nil
}

// Minter returns the mint role.
func (h *HSM) Minter() token.Minter {
	if e, ok := h.executors[RoleMint]; ok {
		return minter{e}
	}
	return nil
}

// TokenSigner returns the sign role.
func (h *HSM) TokenSigner() token.TokenSigner {
	if e, ok := h.executors[RoleSign]; ok {
		return tokenSigner{e, h.signers[RoleSign]}
	}
	return nil
}

// Check and Epochs make every role a token.Health.
func (e *executor) Check(ctx context.Context) error { return e.check(ctx) }

// Epochs lists the KEK epochs of the token, ascending.
func (e *executor) Epochs() []uint32 { return append([]uint32(nil), *e.epochs.Load()...) }

type opener struct{ *executor }

// Open implements token.Opener. An item whose key names an epoch the token
// does not hold gets ErrUnknownEpoch, the others go on.
func (o opener) Open(ctx context.Context, keys []token.WrappedKey, items []token.Item) error {
	return o.gcm(ctx, false, keys, items)
}

type sealer struct {
	*executor
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

type minter struct{ *executor }

func (m minter) RecordMAC(ctx context.Context, messages [][]byte) ([][32]byte, error) {
	return m.mac(ctx, labelRecordMAC, messages)
}

// maxMint bounds the keys of one call; it keeps the token for about 100 us each.
const maxMint = 4096

// Mint implements token.Minter. The active KEK is the highest epoch on the token.
func (m minter) Mint(ctx context.Context, n int) ([][]byte, uint32, error) {
	if n < 0 || n > maxMint {
		return nil, 0, fmt.Errorf("%d keys asked for, at most %d at once: %w", n, maxMint, token.ErrBadData)
	}
	var epoch uint32
	buf := make([]byte, n*wrappedSize)
	if _, err := m.do(ctx, func(c *conn, left func() bool) error {
		epoch = c.epochs[len(c.epochs)-1]
		for from := 0; from < len(buf); from += chunk * wrappedSize {
			if left() {
				return token.ErrUnavailable
			}
			if err := c.mod.shim.mint(c.work, c.keks[epoch], c.template, buf[from:min(from+chunk*wrappedSize, len(buf))]); err != nil {
				return err
			}
		}
		return nil
	}, func() {}); err != nil {
		return nil, 0, err
	}
	wrapped := make([][]byte, n)
	for i := range wrapped {
		wrapped[i] = buf[i*wrappedSize : (i+1)*wrappedSize : (i+1)*wrappedSize]
	}
	return wrapped, epoch, nil
}

// Random implements token.Minter; at most 64 KiB at once.
func (m minter) Random(ctx context.Context, p []byte) error {
	if len(p) > 64<<10 {
		return fmt.Errorf("%d random bytes asked for, at most 64 KiB at once: %w", len(p), token.ErrBadData)
	}
	buf := make([]byte, len(p))
	_, err := m.do(ctx, func(c *conn, _ func() bool) error { return c.mod.shim.random(c.work, buf) }, func() { clear(buf) })
	if err == nil {
		copy(p, buf)
		clear(buf)
	}
	return err
}

type tokenSigner struct {
	*executor
	signer *signer
}

func (t tokenSigner) Signer() crypto.Signer { return t.signer }

// signer is an ES256 key on a token. Signatures are ASN.1 DER.
type signer struct {
	executor *executor
	public   *ecdsa.PublicKey
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
	var signature []byte
	if _, err := s.executor.do(ctx, func(c *conn, _ func() bool) (err error) {
		signature, err = c.signing.Sign(nil, own, crypto.SHA256)
		return err
	}, func() {}); err != nil {
		return nil, err
	}
	return signature, nil
}

// mac computes HMAC-SHA-256 of each message under a key of the token.
func (e *executor) mac(ctx context.Context, label string, messages [][]byte) ([][32]byte, error) {
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
	mine, err := e.do(ctx, func(c *conn, left func() bool) error {
		for from := 0; from < len(items); from += chunk {
			if left() {
				return token.ErrUnavailable
			}
			to := min(from+chunk, len(items))
			if err := c.mod.shim.mac(c.work, c.macs[label], items[from:to], in, out[from*macSize:to*macSize]); err != nil {
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
