package hsm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// login is an opened token: a crypto11 context, which keeps the module
// initialised, and one session of our own, which logged in.
type login struct {
	mod     *module
	label   string
	context *crypto11.Context
	slot    uint
	session pkcs11.SessionHandle
}

func dial(mod *module, t Token) (_ *login, err error) {
	pin, err := readPIN(t.PINFile)
	if err != nil {
		return nil, err
	}
	context, err := mod.context(t.Label)
	if err != nil {
		return nil, fmt.Errorf("opening token %s: %w", t.Label, err)
	}
	l := &login{mod: mod, label: t.Label, context: context}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	slots, err := mod.findSlots(t.Label)
	if err != nil {
		return nil, err
	}
	if len(slots) != 1 {
		return nil, fmt.Errorf("%w: %d tokens are labelled %s; labels must be unique", errKeys, len(slots), t.Label)
	}
	l.slot = slots[0]
	if l.session, err = l.open(); err != nil {
		return nil, err
	}
	if err := l.present(pin); err != nil {
		return nil, fmt.Errorf("logging in to token %s: %w", t.Label, err)
	}
	return l, nil
}

// present shows the PIN to the token, once. Unless the answer says that the
// token did not look at it, a failure is errPIN: trying again might lock the
// token.
func (l *login) present(pin string) error {
	info, err := l.mod.raw.GetTokenInfo(l.slot)
	if err != nil {
		return fmt.Errorf("reading its flags: %w", err)
	}
	if err := presentable(info.Flags); err != nil {
		return err
	}
	err = l.mod.raw.Login(l.session, pkcs11.CKU_USER, pin)
	var rv pkcs11.Error
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &rv):
		return fmt.Errorf("%w: %w", errPIN, err)
	}
	switch uint(rv) {
	case pkcs11.CKR_USER_ALREADY_LOGGED_IN: // a connection before this one is not closed yet
		return nil
	case pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT,
		pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_SESSION_HANDLE_INVALID,
		pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_OPERATION_ACTIVE,
		pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_BUFFER_TOO_SMALL:
		return err
	}
	return fmt.Errorf("%w: %w", errPIN, err)
}

// presentable says by a token's flags whether its user PIN may be tried.
func presentable(flags uint) error {
	if flags&pkcs11.CKF_USER_PIN_LOCKED != 0 {
		return fmt.Errorf("%w: the token says that its user PIN is locked", errPIN)
	}
	if flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0 {
		return fmt.Errorf("%w: the token says that one more wrong PIN locks it; log in by hand once, then start again", errPIN)
	}
	return nil
}

// open opens one more session. It can write, or the start-up attacks on token
// objects would fail for the wrong reason.
func (l *login) open() (pkcs11.SessionHandle, error) {
	s, err := l.mod.raw.OpenSession(l.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return 0, fmt.Errorf("opening a session on token %s: %w", l.label, err)
	}
	return s, nil
}

func (l *login) close() {
	if l.session != 0 {
		// A failure means that the session is gone already.
		_ = l.mod.raw.CloseSession(l.session)
	}
	l.mod.closeContext(l.context)
}

// signer finds a signing key by its label.
func (l *login) signer(label string) (pkcs11.ObjectHandle, *ecdsa.PublicKey, error) {
	found, err := l.context.FindKeyPairs(nil, []byte(label))
	switch {
	case err != nil:
		return 0, nil, fmt.Errorf("looking for key %s on token %s: %w", label, l.label, err)
	case len(found) == 0:
		return 0, nil, fmt.Errorf("%w: token %s has no key %s: run cryptoserver keys init", errKeys, l.label, label)
	case len(found) > 1:
		return 0, nil, fmt.Errorf("%w: token %s has %d keys named %s", errKeys, l.label, len(found), label)
	}
	pub, ok := found[0].Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return 0, nil, fmt.Errorf("%w: key %s on token %s is not on P-256", errKeys, label, l.label)
	}
	private, err := findPair(l.mod.raw, l.session, pkcs11.CKO_PRIVATE_KEY, label)
	if err != nil {
		return 0, nil, err
	}
	return private, pub, nil
}

// sign makes an ECDSA P-256 signature of a digest on the login's own session, as
// ASN.1 DER.
func (l *login) sign(key pkcs11.ObjectHandle, digest []byte) ([]byte, error) {
	raw := make([]byte, signatureSize)
	if err := l.mod.shim.sign(l.session, pkcs11.CKM_ECDSA, key, []macItem{{data_len: cUint32(len(digest))}}, digest, raw, signatureSize); err != nil {
		return nil, err
	}
	return signatureDER(raw)
}

// signatureDER encodes r and s, as the token gives them, for crypto.Signer.
func signatureDER(raw []byte) ([]byte, error) {
	r, s := new(big.Int).SetBytes(raw[:signatureSize/2]), new(big.Int).SetBytes(raw[signatureSize/2:])
	return asn1.Marshal(struct{ R, S *big.Int }{r, s})
}

// readPIN reads the PIN of a file that only its owner may access.
func readPIN(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("reading a PIN: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("reading a PIN: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("PIN file %s can be accessed by others than its owner (mode %#o): chmod 600 it", path, info.Mode().Perm())
	}
	buf := make([]byte, 258)
	defer clear(buf)
	n, err := f.Read(buf)
	if err != nil {
		return "", fmt.Errorf("reading PIN file %s: %w", path, err)
	}
	pin := strings.TrimRight(string(buf[:n]), "\r\n")
	if pin == "" || len(pin) > 255 || strings.ContainsAny(pin, "\r\n\x00") {
		return "", fmt.Errorf("PIN file %s must hold one line of 1 to 255 characters", path)
	}
	return pin, nil
}

// conn is a token ready to serve its role: the keys, and the holder session
// (login.session), which makes the data keys and which they die with. Workers
// bring sessions of their own, so the holder is used by one at a time.
type conn struct {
	*login
	role     Role
	keks     map[uint32]pkcs11.ObjectHandle
	epochs   []uint32
	probes   map[uint32]probe
	macs     map[string]pkcs11.ObjectHandle
	signing  pkcs11.ObjectHandle
	public   *ecdsa.PublicKey
	template template
	vectors  map[string][32]byte // a known message under each MAC key
	keys     []keyInfo
	uses     map[pkcs11.ObjectHandle]*atomic.Uint64

	holder    chan struct{} // 1: the right to use the holder session and the cache
	gone      chan struct{} // closed when a call on the holder session does not return
	closed    chan struct{}
	unwrapped *handleCache

	// Of the pool, under its lock.
	users    int
	sessions map[pkcs11.SessionHandle]struct{} // of workers, open
}

// connect opens a token for a role, finds the keys the role needs, attacks
// its KEKs and computes a known vector under each.
func connect(mod *module, role Role, t Token, probes []probe, cacheSize int, lifetime time.Duration, m *tokenMetrics) (_ *conn, err error) {
	l, err := dial(mod, t)
	if err != nil {
		return nil, err
	}
	c := &conn{login: l, role: role, probes: map[uint32]probe{}, macs: map[string]pkcs11.ObjectHandle{},
		vectors: map[string][32]byte{}, uses: map[pkcs11.ObjectHandle]*atomic.Uint64{},
		holder: make(chan struct{}, 1), gone: make(chan struct{}), closed: make(chan struct{}), sessions: map[pkcs11.SessionHandle]struct{}{}}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	a := &access{conn: c, shim: mod.shim, metrics: m}
	if a.work, err = l.open(); err != nil {
		return nil, err
	}
	defer func() { _ = mod.raw.CloseSession(a.work) }()
	if c.unwrapped, err = newHandleCache(cacheSize, lifetime, m.handles); err != nil {
		return nil, fmt.Errorf("key cache: %w", err)
	}
	if role == RoleOpen || role == RoleSeal {
		m.limit(cacheSize)
	}
	for _, label := range role.macs() {
		if c.macs[label], err = findSecret(mod.raw, a.work, label); err != nil {
			return nil, err
		}
		if c.macs[label] == 0 {
			return nil, fmt.Errorf("%w: token %s has no key %s: run cryptoserver keys import", errKeys, l.label, label)
		}
		if c.vectors[label], err = a.macVector(label); err != nil {
			return nil, fmt.Errorf("token %s, key %s: %w", l.label, label, err)
		}
	}
	if label := role.signing(); label != "" {
		if c.signing, c.public, err = l.signer(label); err != nil {
			return nil, err
		}
	}
	if !role.hasKEK() {
		if err := c.describe(a.work, m.uses); err != nil {
			return nil, err
		}
		return c, nil
	}

	for _, p := range probes {
		c.probes[p.epoch] = p
	}
	if c.keks, err = findKEKs(mod.raw, a.work); err != nil {
		return nil, err
	}
	if len(c.keks) == 0 {
		return nil, fmt.Errorf("%w: token %s has no KEK: run cryptoserver keys import", errKeys, l.label)
	}
	c.epochs = sortedEpochs(c.keks)
	if role == RoleRotate {
		if err := onlyTrusted(mod.raw, a.work, c.keks); err != nil {
			return nil, fmt.Errorf("token %s: %w", l.label, err)
		}
	}
	if role == RoleMint {
		c.template = newTemplate(minting())
	} else {
		c.template = newTemplate(unwrapping(role))
	}
	for _, epoch := range c.epochs {
		p, ok := c.probes[epoch]
		if !ok {
			return nil, fmt.Errorf("%w: the probe key file has no record for epoch %d, which token %s holds: run cryptoserver keys import again", errKeys, epoch, l.label)
		}
		if err := a.canary(epoch); err != nil {
			return nil, fmt.Errorf("token %s, KEK epoch %d: the probe key does not come out, so the token is broken or this is not the KEK the probe was made with: %w", l.label, epoch, err)
		}
		if err := prove(l, role, c.keks[epoch], p); err != nil {
			return nil, fmt.Errorf("token %s, KEK epoch %d: %w", l.label, epoch, err)
		}
	}
	if err := c.describe(a.work, m.uses); err != nil {
		return nil, err
	}
	return c, nil
}

// close ends every session. Nobody else may use the connection any more, and
// no call of it may be stuck.
func (c *conn) close() {
	for s := range c.sessions {
		_ = c.mod.raw.CloseSession(s)
	}
	c.login.close() // takes the data keys along
	c.template.free()
	if c.unwrapped != nil {
		c.unwrapped.forget()
	}
	close(c.closed)
}

// access is a connection as one job may use it, with the worker's session.
// Every crossing into the module goes through call.
type access struct {
	*conn
	shim    shim
	work    pkcs11.SessionHandle // operations
	worker  *worker              // nil while connecting
	job     *job                 // nil while connecting
	metrics *tokenMetrics
	tidying error // what destroying data keys after a good batch failed with
}

// call crosses into the module. When it returns errAbandoned the crossing took
// too long and others have taken over: nothing may be touched any more.
func (a *access) call(f func() error) error {
	if a.worker == nil {
		return f()
	}
	return a.worker.cross(f)
}

// left says whether nobody waits for the job any more.
func (a *access) left() bool { return a.job != nil && a.job.state.Load() == jobLeft }

// holding runs f with the holder session and the key cache to itself. What f
// does in the module it does by call.
func (a *access) holding(f func() error) error {
	select {
	case a.holder <- struct{}{}:
	case <-a.gone:
		return errHolder
	}
	if a.worker != nil {
		a.worker.holds.Store(true)
	}
	err := f()
	if errors.Is(err, errAbandoned) {
		return err
	}
	if a.worker != nil {
		a.worker.holds.Store(false)
	}
	<-a.holder
	return err
}

// held marks what the module said of the holder session.
func held(err error) error {
	if err == nil || errors.Is(err, errAbandoned) {
		return err
	}
	return &holderError{err}
}

// canary does one known operation from end to end with the KEK of an epoch; a
// role without KEK signs.
func (a *access) canary(epoch uint32) (err error) {
	defer func() { a.metrics.canary(err) }()
	switch a.role {
	case RoleOpen, RoleSeal:
		return a.vector(epoch)
	case RoleMint:
		var wrapped [wrappedSize]byte
		err := a.call(func() error { return a.shim.mint(a.work, a.keks[epoch], a.template, wrapped[:]) })
		a.made(1)
		if err == nil {
			a.used(a.keks[epoch], 1)
		}
		return err
	case RoleRotate:
		return a.roundTrip(epoch)
	}
	_, err = a.sign(make([]byte, 32))
	return err
}

// newestEpoch is 0 for a role without KEK.
func (c *conn) newestEpoch() uint32 {
	if len(c.epochs) == 0 {
		return 0
	}
	return c.epochs[len(c.epochs)-1]
}

// vector unwraps the probe key and computes its known vector. Encrypting the
// same plaintext under the same IV again tells nobody anything new.
func (a *access) vector(epoch uint32) error {
	p, ok := a.probes[epoch]
	if !ok {
		return fmt.Errorf("%w: no probe of epoch %d", errCanary, epoch)
	}
	unwraps := []unwrapItem{{kek: cUint64(a.keks[epoch]), rv: notRun, wrapped_len: wrappedSize}}
	input, want := p.ciphertext[:], []byte(probePlaintext)
	if a.role == RoleSeal {
		input, want = want, input
	}
	in := slices.Concat(p.iv[:], []byte(probeAAD), input)
	out := make([]byte, len(probePlaintext)+tagSize)
	items := []gcmItem{{rv: notRun, aad: ivSize, aad_len: cUint32(len(probeAAD)),
		data: cUint32(ivSize + len(probeAAD)), data_len: cUint32(len(input)), out_len: cUint32(len(out))}}
	return a.holding(func() error {
		if err := a.call(func() error {
			if a.shim.unwrap(a.session, unwraps, p.wrapped[:], a.template); unwraps[0].rv != 0 {
				return held(pkcs11.Error(unwraps[0].rv))
			}
			return nil
		}); err != nil {
			return err
		}
		a.used(a.keks[epoch], 1)
		a.made(1)
		items[0].key = unwraps[0].key
		err := a.call(func() error {
			if a.shim.gcm(a.work, a.role == RoleSeal, items, in, out); items[0].rv != 0 {
				return pkcs11.Error(items[0].rv)
			}
			return nil
		})
		if errors.Is(err, errAbandoned) {
			return err
		}
		destroyed := a.call(func() error { return held(a.shim.destroy(a.session, []uint64{uint64(unwraps[0].key)})) })
		switch {
		case err != nil:
			return err
		case destroyed != nil:
			return destroyed
		case !bytes.Equal(out[:items[0].out_len], want):
			return errCanary
		}
		return nil
	})
}

// macVector computes what tells one MAC key from another.
func (a *access) macVector(label string) (v [32]byte, err error) {
	items := []macItem{{data_len: cUint32(len(probeAAD))}}
	err = a.call(func() error {
		return a.shim.sign(a.work, pkcs11.CKM_SHA256_HMAC, a.macs[label], items, []byte(probeAAD), v[:], macSize)
	})
	return v, err
}

// made counts session objects, which the module may keep something of.
func (a *access) made(objects int) {
	if a.worker != nil {
		a.worker.pool.made(objects)
	}
}

// used counts operations with a key of the token.
func (c *conn) used(key pkcs11.ObjectHandle, n int) {
	if u := c.uses[key]; u != nil {
		u.Add(uint64(n))
	}
}

// sign makes an ECDSA P-256 signature, r and s of 32 bytes each.
func (a *access) sign(digest []byte) ([]byte, error) {
	signature := make([]byte, signatureSize)
	items := []macItem{{data_len: cUint32(len(digest))}}
	err := a.call(func() error {
		return a.shim.sign(a.work, pkcs11.CKM_ECDSA, a.signing, items, digest, signature, signatureSize)
	})
	if err == nil {
		a.used(a.signing, 1)
	}
	return signature, err
}
