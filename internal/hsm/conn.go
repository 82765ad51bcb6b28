package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// login is an opened token: a crypto11 context, which logged in and keeps the
// module initialised, and one session of our own.
type login struct {
	mod     *module
	label   string
	context *crypto11.Context
	slot    uint
	session pkcs11.SessionHandle
}

func dial(mod *module, t Token) (*login, error) {
	pin, err := readPIN(t.PINFile)
	if err != nil {
		return nil, err
	}
	context, err := mod.context(t.Label, pin)
	if err != nil {
		return nil, fmt.Errorf("opening token %s: %w", t.Label, err)
	}
	l := &login{mod: mod, label: t.Label, context: context}
	slots, err := mod.findSlots(t.Label)
	if err == nil && len(slots) != 1 {
		err = fmt.Errorf("%w: %d tokens are labelled %s; labels must be unique", errKeys, len(slots), t.Label)
	}
	if err == nil {
		l.slot = slots[0]
		l.session, err = l.open()
	}
	if err != nil {
		mod.closeContext(context)
		return nil, err
	}
	return l, nil
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
	// A failure means that the session is gone already.
	_ = l.mod.raw.CloseSession(l.session)
	l.mod.closeContext(l.context)
}

// signer finds a signing key by its label.
func (l *login) signer(label string) (crypto.Signer, *ecdsa.PublicKey, error) {
	found, err := l.context.FindKeyPairs(nil, []byte(label))
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("looking for key %s on token %s: %w", label, l.label, err)
	case len(found) == 0:
		return nil, nil, fmt.Errorf("%w: token %s has no key %s: run cryptoserver keys init", errKeys, l.label, label)
	case len(found) > 1:
		return nil, nil, fmt.Errorf("%w: token %s has %d keys named %s", errKeys, l.label, len(found), label)
	}
	s := found[0]
	pub, ok := s.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, nil, fmt.Errorf("%w: key %s on token %s is not on P-256", errKeys, label, l.label)
	}
	return s, pub, nil
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

// conn is a token ready to serve its role. It belongs to one executor.
type conn struct {
	*login
	role      Role
	keks      map[uint32]pkcs11.ObjectHandle
	epochs    []uint32
	probes    map[uint32]probe
	macs      map[string]pkcs11.ObjectHandle
	signing   crypto.Signer
	public    *ecdsa.PublicKey
	work      pkcs11.SessionHandle // operations; login.session holds the data keys
	template  template
	unwrapped *handleCache
}

// connect opens a token for a role, finds the keys the role needs, attacks
// its KEKs and computes a known vector under each.
func connect(mod *module, role Role, t Token, probes []probe, cacheSize int, lifetime time.Duration) (_ *conn, err error) {
	l, err := dial(mod, t)
	if err != nil {
		return nil, err
	}
	c := &conn{login: l, role: role, probes: map[uint32]probe{}, macs: map[string]pkcs11.ObjectHandle{}}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.work, err = l.open(); err != nil {
		return nil, err
	}
	if c.unwrapped, err = newHandleCache(cacheSize, lifetime); err != nil {
		return nil, fmt.Errorf("key cache: %w", err)
	}
	for _, label := range role.macs() {
		if c.macs[label], err = findSecret(mod.raw, c.work, label); err != nil {
			return nil, err
		}
		if c.macs[label] == 0 {
			return nil, fmt.Errorf("%w: token %s has no key %s: run cryptoserver keys import", errKeys, l.label, label)
		}
	}
	if label := role.signing(); label != "" {
		if c.signing, c.public, err = l.signer(label); err != nil {
			return nil, err
		}
	}
	if !role.hasKEK() {
		return c, nil
	}

	for _, p := range probes {
		c.probes[p.epoch] = p
	}
	if c.keks, err = findKEKs(mod.raw, c.work); err != nil {
		return nil, err
	}
	if len(c.keks) == 0 {
		return nil, fmt.Errorf("%w: token %s has no KEK: run cryptoserver keys import", errKeys, l.label)
	}
	c.epochs = sortedEpochs(c.keks)
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
		if err := c.canary(epoch); err != nil {
			return nil, fmt.Errorf("token %s, KEK epoch %d: the probe key does not come out, so the token is broken or this is not the KEK the probe was made with: %w", l.label, epoch, err)
		}
		if err := prove(l, role, c.keks[epoch], p); err != nil {
			return nil, fmt.Errorf("token %s, KEK epoch %d: %w", l.label, epoch, err)
		}
	}
	return c, nil
}

func (c *conn) close() {
	if c.work != 0 {
		_ = c.mod.raw.CloseSession(c.work)
	}
	c.login.close() // takes the data keys along
	c.template.free()
}

// canary does one known operation from end to end with the KEK of an epoch.
func (c *conn) canary(epoch uint32) error {
	switch c.role {
	case RoleOpen, RoleSeal:
		return c.vector(epoch)
	case RoleMint:
		var wrapped [wrappedSize]byte
		return c.mod.shim.mint(c.work, c.keks[epoch], c.template, wrapped[:])
	}
	_, err := c.signing.Sign(nil, make([]byte, 32), crypto.SHA256)
	return err
}

// vector unwraps the probe key and computes its known vector. Encrypting the
// same plaintext under the same IV again tells nobody anything new.
func (c *conn) vector(epoch uint32) error {
	p, ok := c.probes[epoch]
	if !ok {
		return fmt.Errorf("%w: no probe of epoch %d", errCanary, epoch)
	}
	unwraps := []unwrapItem{{kek: cUint64(c.keks[epoch]), wrapped_len: wrappedSize}}
	if n := c.mod.shim.unwrap(c.session, unwraps, p.wrapped[:], c.template); n != 1 || unwraps[0].rv != 0 {
		return pkcs11.Error(unwraps[0].rv)
	}
	handle := []uint64{uint64(unwraps[0].key)}

	input, want := p.ciphertext[:], []byte(probePlaintext)
	if c.role == RoleSeal {
		input, want = want, input
	}
	in := slices.Concat(p.iv[:], []byte(probeAAD), input)
	out := make([]byte, len(probePlaintext)+tagSize)
	items := []gcmItem{{key: unwraps[0].key, aad: ivSize, aad_len: cUint32(len(probeAAD)),
		data: cUint32(ivSize + len(probeAAD)), data_len: cUint32(len(input)), out_len: cUint32(len(out))}}
	n := c.mod.shim.gcm(c.work, c.role == RoleSeal, items, in, out)
	if err := c.mod.shim.destroy(c.session, handle); err != nil {
		return err
	}
	if n != 1 || items[0].rv != 0 {
		return pkcs11.Error(items[0].rv)
	}
	if !bytes.Equal(out[:items[0].out_len], want) {
		return errCanary
	}
	return nil
}
