package hsm

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/pkcs11"
)

// Ceremony makes keys and brings them to one server's tokens. Its three steps
// run on each server by itself; between servers only files travel, and none
// of them holds a key in clear:
//
//  1. Init on every server: tokens, transport keys, signing keys. Its folder of
//     public keys goes to the server of step 2, its fingerprint by another way.
//  2. Create on one server: KEK and MAC keys, wrapped to every transport key.
//  3. Import on every server; it ends by destroying the transport keys.
//
// Each step can be run again after an interruption.
//
// MAC keys are made once and cannot be cloned later, so spare servers must
// take part in the first ceremony.
type Ceremony struct {
	Module string
	Tokens map[Role][]Token
	// TransportBits is the modulus length of the transport keys; 0 means 3072.
	TransportBits int
	// Report is told each step done, in plain words without secrets.
	Report func(step string)
}

func (c Ceremony) report(format string, args ...any) {
	if c.Report != nil {
		c.Report(fmt.Sprintf(format, args...))
	}
}

// each calls f for the configured roles in their order.
func (c Ceremony) each(f func(Role, Token) error) error {
	for _, r := range Roles() {
		for _, t := range c.Tokens[r] {
			if err := f(r, t); err != nil {
				return fmt.Errorf("role %s, token %s: %w", r, t.Label, err)
			}
		}
	}
	return nil
}

func (c Ceremony) module() (*module, error) {
	labels := map[string]bool{}
	for _, tokens := range c.Tokens {
		for _, t := range tokens {
			switch {
			case t.Label == "" || len(t.Label) > 32:
				return nil, fmt.Errorf("token label %q must have 1 to 32 characters", t.Label)
			case labels[t.Label]:
				return nil, fmt.Errorf("token %s is named twice; roles are kept apart by separate tokens", t.Label)
			}
			labels[t.Label] = true
		}
	}
	if len(labels) == 0 {
		return nil, errors.New("no HSM token is configured")
	}
	return loadModule(c.Module)
}

// Init initialises the tokens that do not exist yet, makes missing transport
// and signing keys and returns all public keys.
func (c Ceremony) Init(soPINFile string) (PublicKeys, error) {
	mod, err := c.module()
	if err != nil {
		return PublicKeys{}, err
	}
	if err := mod.bare(func() error {
		return c.each(func(_ Role, t Token) error { return c.initToken(mod, t, soPINFile) })
	}); err != nil {
		return PublicKeys{}, err
	}
	if err := c.each(func(r Role, t Token) error {
		l, err := dial(mod, t)
		if err != nil {
			return err
		}
		defer l.close()
		if err := c.initSigning(l, r); err != nil || !r.hasKEK() {
			return err
		}
		return c.initTransport(l, r)
	}); err != nil {
		return PublicKeys{}, err
	}
	return c.Public()
}

func (c Ceremony) initToken(mod *module, t Token, soPINFile string) error {
	mod.initialising.Lock() // or two would take the same free slot
	defer mod.initialising.Unlock()
	slots, err := mod.findSlots(t.Label)
	if err != nil {
		return err
	}
	if len(slots) > 1 {
		return fmt.Errorf("%d tokens have this label; labels must be unique", len(slots))
	}
	if len(slots) == 1 {
		info, err := mod.raw.GetTokenInfo(slots[0])
		if err != nil {
			return err
		}
		if info.Flags&pkcs11.CKF_USER_PIN_INITIALIZED != 0 {
			return nil
		}
	}
	soPIN, err := readPIN(soPINFile)
	if err != nil {
		return err
	}
	pin, err := readPIN(t.PINFile)
	if err != nil {
		return err
	}
	if len(slots) == 0 {
		free, err := mod.freeSlot()
		if err != nil {
			return err
		}
		if err := mod.raw.InitToken(free, soPIN, t.Label); err != nil {
			return fmt.Errorf("initialising the token in slot %d: %w", free, err)
		}
		// The slot may have got another number by it.
		if slots, err = mod.findSlots(t.Label); err != nil {
			return err
		}
		if len(slots) != 1 {
			return fmt.Errorf("after initialising, %d tokens have this label", len(slots))
		}
	}
	session, err := mod.raw.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return fmt.Errorf("opening a session: %w", err)
	}
	defer func() { _ = mod.raw.CloseSession(session) }()
	if err := mod.raw.Login(session, pkcs11.CKU_SO, soPIN); err != nil {
		return fmt.Errorf("logging in as security officer: %w", err)
	}
	defer func() { _ = mod.raw.Logout(session) }()
	if err := mod.raw.InitPIN(session, pin); err != nil {
		return fmt.Errorf("setting the user PIN: %w", err)
	}
	c.report("token %s initialised", t.Label)
	return nil
}

// freeSlot finds a slot whose token is not initialised.
func (m *module) freeSlot() (uint, error) {
	slots, err := m.slots()
	if err != nil {
		return 0, fmt.Errorf("listing slots: %w", err)
	}
	for _, s := range slots {
		info, err := m.raw.GetTokenInfo(s)
		if err != nil {
			return 0, fmt.Errorf("reading token of slot %d: %w", s, err)
		}
		if info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			return s, nil
		}
	}
	return 0, errors.New("the HSM has no uninitialised token left: make a slot or partition with the vendor's tool first")
}

// P-256 as CKA_EC_PARAMS: the DER of OID 1.2.840.10045.3.1.7.
var p256Params = []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}

// initSigning makes the role's signing key, which stays on this token alone.
// The order of attributes matters (see frozen), which is why not crypto11
// makes it: it keeps attributes in a map.
func (c Ceremony) initSigning(l *login, r Role) error {
	label := r.signing()
	if label == "" {
		return nil
	}
	raw, s := l.mod.raw, l.session
	have, err := findPair(raw, s, pkcs11.CKO_PRIVATE_KEY, label)
	if err != nil || have != 0 {
		return err
	}
	id := keyID(label, time.Now())
	public := append(publicKey(label, id), attribute(pkcs11.CKA_EC_PARAMS, p256Params), attribute(pkcs11.CKA_VERIFY, true))
	private := append(privateKey(label, id), attribute(pkcs11.CKA_SIGN, true), attribute(pkcs11.CKA_DECRYPT, false),
		attribute(pkcs11.CKA_UNWRAP, false), attribute(pkcs11.CKA_DERIVE, false), allowed(pkcs11.CKM_ECDSA))
	if _, _, err := raw.GenerateKeyPair(s, mechanism(pkcs11.CKM_EC_KEY_PAIR_GEN), append(public, frozen()...), append(private, frozen()...)); err != nil {
		return fmt.Errorf("generating key %s: %w", label, err)
	}
	c.report("token %s: key %s generated", l.label, label)
	return nil
}

// initTransport makes the key that others wrap keys for this token to.
func (c Ceremony) initTransport(l *login, r Role) error {
	raw, s := l.mod.raw, l.session
	have, err := findPair(raw, s, pkcs11.CKO_PRIVATE_KEY, labelTransport)
	if err != nil || have != 0 {
		return err
	}
	bits := c.TransportBits
	if bits == 0 {
		bits = 3072
	}
	// What is unwrapped by it may never be readable, even by whoever holds
	// the PIN and a wrapped file while the ceremony lasts.
	nested := newTemplate(arriving(r))
	defer nested.free()
	id := []byte(labelTransport)
	public := append(publicKey(labelTransport, id), attribute(pkcs11.CKA_MODULUS_BITS, bits),
		attribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}), attribute(pkcs11.CKA_WRAP, true),
		attribute(pkcs11.CKA_ENCRYPT, false), attribute(pkcs11.CKA_VERIFY, false))
	private := append(privateKey(labelTransport, id), attribute(pkcs11.CKA_UNWRAP, true), attribute(pkcs11.CKA_DECRYPT, false),
		attribute(pkcs11.CKA_SIGN, false), attribute(pkcs11.CKA_UNWRAP_TEMPLATE, nested.bytes()), allowed(pkcs11.CKM_RSA_PKCS_OAEP))
	if _, _, err := raw.GenerateKeyPair(s, mechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN), append(public, frozen()...), append(private, frozen()...)); err != nil {
		return fmt.Errorf("generating the transport key: %w", err)
	}
	c.report("token %s: transport key generated", l.label)
	return nil
}

// arriving is what a transport key enforces on the keys it unwraps. Those of a
// rotate token have one more way to go; see importTrusted.
func arriving(r Role) []*pkcs11.Attribute {
	as := []*pkcs11.Attribute{attribute(pkcs11.CKA_SENSITIVE, true)}
	if r == RoleRotate {
		as = append(append(as, attribute(pkcs11.CKA_TOKEN, false)), passing()...)
	} else {
		as = append(as, attribute(pkcs11.CKA_EXTRACTABLE, false))
	}
	return append(as, frozen()...)
}

func publicKey(label string, id []byte) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{attribute(pkcs11.CKA_TOKEN, true), attribute(pkcs11.CKA_PRIVATE, false),
		attribute(pkcs11.CKA_LABEL, label), attribute(pkcs11.CKA_ID, id)}
}

func privateKey(label string, id []byte) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{attribute(pkcs11.CKA_TOKEN, true), attribute(pkcs11.CKA_PRIVATE, true),
		attribute(pkcs11.CKA_LABEL, label), attribute(pkcs11.CKA_ID, id),
		attribute(pkcs11.CKA_SENSITIVE, true), attribute(pkcs11.CKA_EXTRACTABLE, false)}
}

// findPair finds the one public or private key of this label; 0 when there is none.
func findPair(raw *pkcs11.Ctx, s pkcs11.SessionHandle, class uint, label string) (pkcs11.ObjectHandle, error) {
	found, err := find(raw, s, attribute(pkcs11.CKA_CLASS, class), attribute(pkcs11.CKA_TOKEN, true), attribute(pkcs11.CKA_LABEL, label))
	switch {
	case err != nil:
		return 0, fmt.Errorf("looking for key %s: %w", label, err)
	case len(found) == 0:
		return 0, nil
	case len(found) > 1:
		return 0, fmt.Errorf("%w: %d keys are named %s", errKeys, len(found), label)
	}
	return found[0], nil
}

// transportKey reads the public transport key of a token; nil when there is none.
func transportKey(l *login) (*rsa.PublicKey, error) {
	h, err := findPair(l.mod.raw, l.session, pkcs11.CKO_PUBLIC_KEY, labelTransport)
	if err != nil || h == 0 {
		return nil, err
	}
	as, err := l.mod.raw.GetAttributeValue(l.session, h, []*pkcs11.Attribute{
		attribute(pkcs11.CKA_MODULUS, nil), attribute(pkcs11.CKA_PUBLIC_EXPONENT, nil)})
	if err != nil {
		return nil, fmt.Errorf("reading the public transport key: %w", err)
	}
	e := new(big.Int).SetBytes(as[1].Value)
	if !e.IsInt64() || e.Int64() != 65537 {
		return nil, fmt.Errorf("%w: the transport key's exponent is not 65537", errKeys)
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(as[0].Value), E: 65537}, nil
}

// Public reads the public keys off the tokens.
func (c Ceremony) Public() (PublicKeys, error) {
	p := PublicKeys{Transport: map[Role][]*rsa.PublicKey{}}
	mod, err := c.module()
	if err != nil {
		return p, err
	}
	err = c.each(func(r Role, t Token) error {
		l, err := dial(mod, t)
		if err != nil {
			return err
		}
		defer l.close()
		if r.hasKEK() {
			k, err := transportKey(l)
			if err != nil {
				return err
			}
			if k != nil {
				p.Transport[r] = append(p.Transport[r], k)
			}
		}
		switch r {
		case RoleSeal:
			_, p.Seal, err = l.signer(r.signing())
		case RoleSign:
			_, p.Sign, err = l.signer(r.signing())
		}
		return err
	})
	return p, err
}

// manifest lists what Create made; manifest.sig is the creator's seal key's
// signature over it, because OAEP by itself would let anybody hand out keys.
type manifest struct {
	Format string            `json:"format"`
	Epoch  uint32            `json:"epoch"`
	Made   string            `json:"made"`  // day, UTC: what the keys are dated
	Files  map[string]string `json:"files"` // name → SHA-256, hex
}

const (
	manifestFormat = "kluis/keys/2"
	manifestName   = "manifest.json"
	signatureName  = "manifest.sig"
	creatorName    = "creator"
	probeName      = "probe.bin"
)

// has says whether any token gets a key of this name.
func (m manifest) has(file string) bool {
	for name := range m.Files {
		if strings.HasSuffix(name, "-"+file+".bin") {
			return true
		}
	}
	return false
}

func (m manifest) day() (time.Time, error) { return time.Parse(time.DateOnly, m.Made) }

func manifestDigest(b []byte) []byte {
	sum := sha256.Sum256(append([]byte("kluis/key-manifest\x00"), b...))
	return sum[:]
}

// wrappedName names the file of one key for one transport key.
func wrappedName(r Role, transport *rsa.PublicKey, key string) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(transport)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return fmt.Sprintf("%s-%s-%s.bin", r, hex.EncodeToString(sum[:8]), key), nil
}

// fileKeys are the keys that travel to a role, by their name in files.
func fileKeys(r Role, epoch uint32) map[string]string {
	keys := map[string]string{"kek": kekLabel(epoch)}
	for _, label := range r.macs() {
		keys["mac-"+filepath.Base(label)] = label
	}
	return keys
}

// oaep is RSA-OAEP with SHA-1 and MGF1-SHA-1, the only one SoftHSM has. Its
// security does not rest on SHA-1 being free of collisions.
func oaep() []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_OAEP,
		pkcs11.NewOAEPParams(pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1, pkcs11.CKZ_DATA_SPECIFIED, nil))}
}

// Create makes the KEK of an epoch, the MAC keys where this server has none
// yet, and the probe key, on this server's seal token, and wraps them to the
// transport keys of every server. to maps fingerprints, as Init on each
// server printed them, to the folders Init wrote; this server is one of them.
// The folder out appears complete or not at all.
func (c Ceremony) Create(epoch uint32, to map[string]string, out string) (err error) {
	if epoch == 0 {
		return errors.New("epochs start at 1")
	}
	mod, err := c.module()
	if err != nil {
		return err
	}
	if len(c.Tokens[RoleSeal]) == 0 {
		return errors.New("keys are created on a server with a seal token; this one has none")
	}
	t := c.Tokens[RoleSeal][0]
	own, err := c.Public()
	if err != nil {
		return err
	}
	ownFingerprint, err := own.Fingerprint()
	if err != nil {
		return err
	}
	if _, ok := to[ownFingerprint]; !ok {
		return fmt.Errorf("this server's own keys (fingerprint %s) are not among the receivers; run keys init here and name its folder too", ownFingerprint)
	}
	recipients := make([]PublicKeys, 0, len(to))
	for fingerprint, dir := range to {
		p, err := ReadPublicKeys(dir)
		if err != nil {
			return err
		}
		got, err := p.Fingerprint()
		if err != nil {
			return err
		}
		if got != fingerprint {
			return fmt.Errorf("the keys in %s have the fingerprint %s, not %s: compare with what keys init printed on that server; if they differ, somebody changed the files", dir, got, fingerprint)
		}
		recipients = append(recipients, p)
	}
	if _, err := os.Lstat(out); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s exists already: if it is of this ceremony, go on with keys import on every server; otherwise name another folder", out)
	}
	partial := out + ".partial"
	if err := os.Mkdir(partial, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s was left by an interrupted keys create; nothing uses what is in it: delete it and run again", partial)
		}
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(partial)
		}
	}()

	l, err := dial(mod, t)
	if err != nil {
		return err
	}
	defer l.close() // every key made here is a session key and dies now
	have, err := findSecret(mod.raw, l.session, kekLabel(epoch))
	if err != nil {
		return err
	}
	if have != 0 {
		return fmt.Errorf("token %s holds a KEK of epoch %d already; a second one would divide the servers, so take the next epoch", t.Label, epoch)
	}
	m := manifest{Format: manifestFormat, Epoch: epoch, Made: time.Now().UTC().Format(time.DateOnly), Files: map[string]string{}}
	add := func(name string, b []byte) error {
		sum := sha256.Sum256(b)
		m.Files[name] = hex.EncodeToString(sum[:])
		return writeFile(filepath.Join(partial, name), b, 0o600)
	}
	if err := c.createKeys(l, epoch, recipients, add); err != nil {
		return err
	}
	if err := own.Write(filepath.Join(partial, creatorName)); err != nil {
		return err
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	key, _, err := l.signer(RoleSeal.signing())
	if err != nil {
		return err
	}
	signature, err := l.sign(key, manifestDigest(b))
	if err != nil {
		return fmt.Errorf("signing the manifest: %w", err)
	}
	if err := firstError(writeFile(filepath.Join(partial, manifestName), b, 0o600),
		writeFile(filepath.Join(partial, signatureName), signature, 0o600)); err != nil {
		return err
	}
	if err := os.Rename(partial, out); err != nil {
		return err
	}
	c.report("keys of epoch %d created for %d servers; creator's fingerprint %s", epoch, len(to), ownFingerprint)
	return nil
}

// session begins the template of a key that lives for this session only and
// may leave it wrapped.
func session(keyType uint) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attribute(pkcs11.CKA_KEY_TYPE, keyType),
		attribute(pkcs11.CKA_VALUE_LEN, 32),
		attribute(pkcs11.CKA_TOKEN, false),
		attribute(pkcs11.CKA_PRIVATE, true),
		attribute(pkcs11.CKA_SENSITIVE, true),
		attribute(pkcs11.CKA_EXTRACTABLE, true),
	}
}

func (c Ceremony) createKeys(l *login, epoch uint32, recipients []PublicKeys, add func(string, []byte) error) error {
	raw, s := l.mod.raw, l.session
	generate := func(mech, keyType uint, uses ...uint) (pkcs11.ObjectHandle, error) {
		as := append(append(session(keyType), usage(uses...)...), frozen()...)
		h, err := raw.GenerateKey(s, mechanism(mech), as)
		if err != nil {
			return 0, fmt.Errorf("generating a session key: %w", err)
		}
		return h, nil
	}
	kek, err := generate(pkcs11.CKM_AES_KEY_GEN, pkcs11.CKK_AES, pkcs11.CKA_WRAP)
	if err != nil {
		return err
	}
	keys := map[string]pkcs11.ObjectHandle{kekLabel(epoch): kek}
	for _, label := range []string{labelContentMAC, labelRecordMAC, labelIndexMAC} {
		have, err := findSecret(raw, s, label)
		if err != nil {
			return err
		}
		if have != 0 {
			continue // a later epoch: MAC keys stay
		}
		if keys[label], err = generate(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, pkcs11.CKK_GENERIC_SECRET, pkcs11.CKA_SIGN); err != nil {
			return err
		}
	}
	p, err := createProbe(l, epoch, kek, generate)
	if err != nil {
		return err
	}
	if err := add(probeName, p.append(nil)); err != nil {
		return err
	}
	for _, to := range recipients {
		for _, r := range Roles() {
			for _, transport := range to.Transport[r] {
				if err := wrapTo(l, r, transport, epoch, keys, add); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// wrapTo wraps the keys of a role to one of its tokens.
func wrapTo(l *login, r Role, transport *rsa.PublicKey, epoch uint32, keys map[string]pkcs11.ObjectHandle, add func(string, []byte) error) error {
	raw, s := l.mod.raw, l.session
	public, err := raw.CreateObject(s, wrappingRSA(transport.N.Bytes()))
	if err != nil {
		return fmt.Errorf("loading a public transport key: %w", err)
	}
	for file, label := range fileKeys(r, epoch) {
		key, ok := keys[label]
		if !ok {
			continue
		}
		wrapped, err := raw.WrapKey(s, oaep(), public, key)
		if err != nil {
			return fmt.Errorf("wrapping %s: %w", label, err)
		}
		name, err := wrappedName(r, transport, file)
		if err != nil {
			return err
		}
		if err := add(name, wrapped); err != nil {
			return err
		}
	}
	return nil
}

// wrappingRSA is a public key to wrap to, exponent 65537.
func wrappingRSA(modulus []byte) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		attribute(pkcs11.CKA_TOKEN, false), attribute(pkcs11.CKA_WRAP, true),
		attribute(pkcs11.CKA_MODULUS, modulus), attribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1})}
}

// createProbe makes a throw-away data key, wraps it and computes its vector.
func createProbe(l *login, epoch uint32, kek pkcs11.ObjectHandle,
	generate func(uint, uint, ...uint) (pkcs11.ObjectHandle, error)) (probe, error) {
	p := probe{epoch: epoch}
	raw, s := l.mod.raw, l.session
	key, err := generate(pkcs11.CKM_AES_KEY_GEN, pkcs11.CKK_AES, pkcs11.CKA_ENCRYPT)
	if err != nil {
		return p, err
	}
	wrapped, err := raw.WrapKey(s, mechanism(pkcs11.CKM_AES_KEY_WRAP), kek, key)
	if err != nil || len(wrapped) != wrappedSize {
		return p, fmt.Errorf("wrapping the probe key (%d bytes): %w", len(wrapped), err)
	}
	copy(p.wrapped[:], wrapped)
	if err := l.mod.shim.random(s, p.iv[:]); err != nil {
		return p, fmt.Errorf("drawing the probe's IV: %w", err)
	}
	in := slices.Concat(p.iv[:], []byte(probeAAD), []byte(probePlaintext))
	items := []gcmItem{{key: cUint64(key), aad: ivSize, aad_len: cUint32(len(probeAAD)),
		data: cUint32(ivSize + len(probeAAD)), data_len: cUint32(len(probePlaintext)), out_len: cUint32(len(p.ciphertext))}}
	if n := l.mod.shim.gcm(s, true, items, in, p.ciphertext[:]); n != 1 || items[0].rv != 0 {
		return p, fmt.Errorf("encrypting the probe: %w", pkcs11.Error(items[0].rv))
	}
	return p, nil
}

// Import brings the keys that Create made onto this server's tokens, attacks
// each KEK as at start-up, records the probe key in probeFile and, when all of
// it succeeded, destroys the transport keys: from then on the wrapped files
// open nowhere. creator is the fingerprint of the server that created them;
// soPINFile is needed by rotate tokens only.
func (c Ceremony) Import(in, creator, probeFile, soPINFile string) error {
	if len(c.Tokens[RoleRotate]) > 0 && soPINFile == "" {
		return errSOPIN
	}
	mod, err := c.module()
	if err != nil {
		return err
	}
	m, read, err := openManifest(in, creator)
	if err != nil {
		return err
	}
	b, err := read(probeName)
	if err != nil {
		return err
	}
	probes, err := mergeProbes(probeFile, b, m.Epoch)
	if err != nil {
		return err
	}
	if err := c.sameEpochs(mod, probes, m.Epoch); err != nil {
		return err
	}
	if err := c.withKEKs(mod, func(r Role, t Token, l *login) error {
		return c.importKeys(l, r, t, m, soPINFile, read)
	}); err != nil {
		return err
	}
	// Known good before it replaces anything.
	tokens := map[Role][]Token{}
	for r, t := range c.Tokens {
		if r.hasKEK() {
			tokens[r] = t
		}
	}
	h, err := start(mod, Config{Tokens: tokens, CacheSize: 1, CacheLifetime: time.Second, Log: slog.New(slog.DiscardHandler)},
		func() ([]probe, error) { return probes, nil })
	if err != nil {
		return err
	}
	if err := h.Close(); err != nil {
		return err
	}
	c.report("every KEK withstood the attacks")
	if err := writeProbes(probeFile, probes); err != nil {
		return err
	}
	return c.withKEKs(mod, func(_ Role, _ Token, l *login) error { return c.destroyTransport(l) })
}

// withKEKs calls f, logged in, with each token of the roles that have KEKs.
func (c Ceremony) withKEKs(mod *module, f func(r Role, t Token, l *login) error) error {
	return c.each(func(r Role, t Token) error {
		if !r.hasKEK() {
			return nil
		}
		l, err := dial(mod, t)
		if err != nil {
			return err
		}
		defer l.close()
		return f(r, t, l)
	})
}

// sameEpochs looks, before an epoch is imported, that the tokens of a role hold
// the same earlier ones of which there are probes. With one that came later the
// server would not start, and by then the new KEK would be on every token.
func (c Ceremony) sameEpochs(mod *module, probes []probe, epoch uint32) error {
	type held struct {
		label  string
		epochs []uint32
	}
	first := map[Role]held{}
	return c.kekTokens(mod, func(r Role, t Token, _ *login, keks map[uint32]pkcs11.ObjectHandle) error {
		h := held{t.Label, slices.DeleteFunc(sortedEpochs(keks), func(e uint32) bool {
			return e == epoch || !slices.ContainsFunc(probes, func(p probe) bool { return p.epoch == e })
		})}
		if f, ok := first[r]; !ok {
			first[r] = h
		} else if !slices.Equal(f.epochs, h.epochs) {
			return fmt.Errorf("it holds the KEKs of epochs %d and token %s those of %d, so nothing was imported: no ceremony brings a KEK to a token that came later; "+
				"leave the token out until the epochs that it lacks are destroyed, or clone them by the HSM vendor's tools", h.epochs, f.label, f.epochs)
		}
		return nil
	})
}

// openManifest checks who made the folder and that no file was changed.
func openManifest(in, creator string) (manifest, func(name string) ([]byte, error), error) {
	var m manifest
	keys, err := ReadPublicKeys(filepath.Join(in, creatorName))
	if err != nil {
		return m, nil, err
	}
	fingerprint, err := keys.Fingerprint()
	if err != nil {
		return m, nil, err
	}
	if fingerprint != creator {
		return m, nil, fmt.Errorf("the keys in %s come from the server with fingerprint %s, not %s", in, fingerprint, creator)
	}
	b, err := os.ReadFile(filepath.Join(in, manifestName))
	if err != nil {
		return m, nil, err
	}
	signature, err := os.ReadFile(filepath.Join(in, signatureName))
	if err != nil {
		return m, nil, err
	}
	if keys.Seal == nil || !ecdsa.VerifyASN1(keys.Seal, manifestDigest(b), signature) {
		return m, nil, fmt.Errorf("%s: the signature of the manifest is wrong: it was not made by the creator, or changed since", in)
	}
	err = json.Unmarshal(b, &m)
	if err == nil {
		_, err = m.day()
	}
	if err != nil || m.Format != manifestFormat || m.Epoch == 0 {
		return m, nil, fmt.Errorf("%s: not a manifest of this version", filepath.Join(in, manifestName))
	}
	return m, func(name string) ([]byte, error) {
		want, ok := m.Files[name]
		if !ok {
			return nil, fmt.Errorf("%s holds no %s: were this server's present transport keys given to keys create?", in, name)
		}
		b, err := os.ReadFile(filepath.Join(in, name))
		if err != nil {
			return nil, err
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != want {
			return nil, fmt.Errorf("%s was changed since it was made", name)
		}
		return b, nil
	}, nil
}

// arrival is a key on its way onto a token.
type arrival struct {
	label   string
	keyType uint
	wrapped []byte // to the token's transport key
}

// importKeys brings what the token lacks onto it.
func (c Ceremony) importKeys(l *login, r Role, t Token, m manifest, soPINFile string, read func(string) ([]byte, error)) error {
	raw, s := l.mod.raw, l.session
	var missing []arrival
	var private pkcs11.ObjectHandle
	for file, label := range fileKeys(r, m.Epoch) {
		have, err := findSecret(raw, s, label)
		if err != nil {
			return err
		}
		if have != 0 {
			c.report("token %s: %s is there already", l.label, label)
			continue
		}
		if private, err = findPair(raw, s, pkcs11.CKO_PRIVATE_KEY, labelTransport); err != nil {
			return err
		}
		public, err := transportKey(l)
		if err != nil {
			return err
		}
		if private == 0 || public == nil {
			return fmt.Errorf("key %s is missing and there is no transport key to import it with: run keys init here, then keys create of a new epoch", label)
		}
		name, err := wrappedName(r, public, file)
		if err != nil {
			return err
		}
		k := arrival{label: label, keyType: pkcs11.CKK_GENERIC_SECRET}
		if file == "kek" {
			k.keyType = pkcs11.CKK_AES
		} else if !m.has(file) {
			return fmt.Errorf("key %s is missing, and it travels only with the first epoch: tokens that were not there then cannot get it by a ceremony", label)
		}
		if k.wrapped, err = read(name); err != nil {
			return err
		}
		if len(k.wrapped) != public.Size() {
			return fmt.Errorf("%s has %d bytes, not %d", name, len(k.wrapped), public.Size())
		}
		missing = append(missing, k)
	}
	if len(missing) == 0 {
		return nil
	}
	day, err := m.day()
	if err != nil {
		return err
	}
	if r == RoleRotate {
		return c.importTrusted(l, t, missing, day, soPINFile)
	}
	for _, k := range missing {
		as, release := k.template(r, day)
		_, err = raw.UnwrapKey(s, oaep(), private, k.wrapped, as)
		release()
		if err != nil {
			return fmt.Errorf("unwrapping %s: %w", k.label, err)
		}
		c.report("token %s: %s imported", l.label, k.label)
	}
	return nil
}

// template is the key's own on a token of the role.
func (k arrival) template(r Role, day time.Time) ([]*pkcs11.Attribute, func()) {
	if k.keyType == pkcs11.CKK_AES {
		return kek(r, k.label, day)
	}
	return macKey(k.label, day), func() {}
}

// mergeProbes gives the probe file's records with that of an epoch added.
func mergeProbes(path string, record []byte, epoch uint32) ([]probe, error) {
	added, err := parseProbes(record)
	if err != nil {
		return nil, err
	}
	if len(added) != 1 || added[0].epoch != epoch {
		return nil, fmt.Errorf("%w: not the one record of epoch %d", errProbeFile, epoch)
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var probes []probe
	if len(old) > 0 {
		if probes, err = parseProbes(old); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	probes = slices.DeleteFunc(probes, func(p probe) bool { return p.epoch == epoch })
	probes = append(probes, added[0])
	slices.SortFunc(probes, func(a, b probe) int { return int(int64(a.epoch) - int64(b.epoch)) })
	return probes, nil
}

func (c Ceremony) destroyTransport(l *login) error {
	for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY} {
		h, err := findPair(l.mod.raw, l.session, class, labelTransport)
		if err != nil {
			return err
		}
		if h == 0 {
			continue
		}
		if err := l.mod.raw.DestroyObject(l.session, h); err != nil {
			return fmt.Errorf("destroying the transport key: %w", err)
		}
		if class == pkcs11.CKO_PRIVATE_KEY {
			c.report("token %s: transport key destroyed", l.label)
		}
	}
	return nil
}
