package hsm

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"errors"
	"fmt"
	"os"
	"time"

	"kluis/cryptoserver/token"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Exported for the external tests, which import hsmtest and so cannot be in
// this package.
var (
	ParseProbes  = parseProbes
	ErrProbeFile = errProbeFile
	Refused      = refused
	MadeOn       = madeOn
)

const (
	ProbeSize   = probeSize
	QueueLength = queueLength
)

// Probe is one record, made of its parts.
func Probe(epoch uint32, wrapped [40]byte, iv [12]byte, ciphertext []byte) []byte {
	p := probe{epoch: epoch, wrapped: wrapped, iv: iv}
	copy(p.ciphertext[:], ciphertext)
	return p.append(nil)
}

// AppendProbes encodes what ParseProbes read.
func AppendProbes(probes []probe) (b []byte) {
	for _, p := range probes {
		b = p.append(b)
	}
	return b
}

// Attack runs every attack on the KEK of epoch 1 on a role's first token, also
// after one succeeded, and returns what each got.
func Attack(cfg Config, role Role) (map[string]error, error) {
	return AttackToken(cfg, role, cfg.Tokens[role][0])
}

// AttackToken does so on any of its tokens.
func AttackToken(cfg Config, role Role, t Token) (map[string]error, error) {
	mod, err := loadModule(cfg.Module)
	if err != nil {
		return nil, err
	}
	l, err := dial(mod, t)
	if err != nil {
		return nil, err
	}
	defer l.close()
	keks, err := findKEKs(mod.raw, l.session)
	if err != nil {
		return nil, err
	}
	probes, err := readProbes(cfg.ProbeKeyFile)
	if err != nil {
		return nil, err
	}
	got := map[string]error{}
	for i := range attacks(mod.raw, l.session, role, keks[1], probes[0]) {
		s, err := l.open() // an attack that succeeds spoils its session
		if err != nil {
			return nil, err
		}
		a := attacks(mod.raw, s, role, keks[1], probes[0])[i]
		if _, twice := got[a.name]; twice {
			return nil, fmt.Errorf("two attacks are named %q", a.name)
		}
		got[a.name] = a.run()
		if err := mod.raw.CloseSession(s); err != nil {
			return nil, err
		}
	}
	return got, nil
}

// PlantWeak puts a KEK on a new token whose template was changed by weaken,
// with MAC and signing keys as usual, and returns the configuration to serve
// from it.
func PlantWeak(cfg Config, role Role, t Token, soPINFile, probeFile string, weaken func([]*pkcs11.Attribute) []*pkcs11.Attribute) (_ Config, err error) {
	cfg.Tokens = map[Role][]Token{role: {t}}
	cfg.ProbeKeyFile = probeFile
	mod, err := loadModule(cfg.Module)
	if err != nil {
		return cfg, err
	}
	var c Ceremony
	if err := mod.bare(func() error { return c.initToken(mod, t, soPINFile) }); err != nil {
		return cfg, err
	}
	l, err := dial(mod, t)
	if err != nil {
		return cfg, err
	}
	defer l.close()
	if err := c.initSigning(l, role); err != nil {
		return cfg, err
	}
	raw, s := mod.raw, l.session
	generate := func(mech, keyType uint, uses ...uint) (pkcs11.ObjectHandle, error) {
		return raw.GenerateKey(s, mechanism(mech), append(session(keyType), usage(uses...)...))
	}
	source, err := generate(pkcs11.CKM_AES_KEY_GEN, pkcs11.CKK_AES, pkcs11.CKA_WRAP)
	if err != nil {
		return cfg, err
	}
	p, err := createProbe(l, 1, source, generate)
	if err != nil {
		return cfg, err
	}
	if err := os.WriteFile(probeFile, p.append(nil), 0o600); err != nil {
		return cfg, err
	}
	// A transport key without a template of its own, as weak keys need; not
	// private, for the security officer sees it, too.
	transport, err := raw.GenerateKey(s, mechanism(pkcs11.CKM_AES_KEY_GEN), replace(append(session(pkcs11.CKK_AES),
		usage(pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP)...), attribute(pkcs11.CKA_PRIVATE, false)))
	if err != nil {
		return cfg, err
	}
	move := func(key pkcs11.ObjectHandle, as []*pkcs11.Attribute) error {
		wrapped, err := raw.WrapKey(s, mechanism(pkcs11.CKM_AES_KEY_WRAP), transport, key)
		if err != nil {
			return err
		}
		unwrap := func() error {
			_, err := raw.UnwrapKey(s, mechanism(pkcs11.CKM_AES_KEY_WRAP), transport, wrapped, as)
			return err
		}
		for _, a := range as {
			if a.Type == pkcs11.CKA_TRUSTED {
				as = replace(as, attribute(pkcs11.CKA_PRIVATE, false))
				return l.officer(t, soPINFile, unwrap)
			}
		}
		return unwrap()
	}
	as, release := kek(role, kekLabel(1), time.Now())
	defer release()
	if err := move(source, weaken(as)); err != nil {
		return cfg, fmt.Errorf("planting the KEK: %w", err)
	}
	for _, label := range role.macs() {
		key, err := generate(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, pkcs11.CKK_GENERIC_SECRET, pkcs11.CKA_SIGN)
		if err != nil {
			return cfg, err
		}
		if err := move(key, macKey(label, time.Now())); err != nil {
			return cfg, err
		}
	}
	return cfg, nil
}

// LaxUnwrapTemplate is a CKA_UNWRAP_TEMPLATE that lacks one attribute of the
// role's.
func LaxUnwrapTemplate(role Role, without uint) (*pkcs11.Attribute, func()) {
	var as []*pkcs11.Attribute
	for _, a := range dataKey(role) {
		if a.Type != without {
			as = append(as, a)
		}
	}
	t := newTemplate(as)
	return attribute(pkcs11.CKA_UNWRAP_TEMPLATE, t.bytes()), t.free
}

// Steal tries, with the PIN of a token, to read every secret and private key
// on it and to turn it to another use; it returns what succeeded.
func Steal(cfg Config, role Role) (stolen []string, looked int, err error) {
	mod, err := loadModule(cfg.Module)
	if err != nil {
		return nil, 0, err
	}
	l, err := dial(mod, cfg.Tokens[role][0])
	if err != nil {
		return nil, 0, err
	}
	defer l.close()
	for _, class := range []uint{pkcs11.CKO_SECRET_KEY, pkcs11.CKO_PRIVATE_KEY} {
		keys, err := find(mod.raw, l.session, attribute(pkcs11.CKA_CLASS, class), attribute(pkcs11.CKA_TOKEN, true))
		if err != nil {
			return nil, 0, err
		}
		for _, k := range keys {
			looked++
			label, err := mod.raw.GetAttributeValue(l.session, k, []*pkcs11.Attribute{attribute(pkcs11.CKA_LABEL, nil)})
			if err != nil {
				return nil, 0, err
			}
			name := string(label[0].Value)
			tried := func(what string, err error) {
				if err == nil || !Refused(err) {
					stolen = append(stolen, fmt.Sprintf("%s: %s: %v", name, what, err))
				}
			}
			secret := uint(pkcs11.CKA_VALUE)
			if name == labelTransport {
				secret = pkcs11.CKA_PRIVATE_EXPONENT
			}
			_, err = mod.raw.GetAttributeValue(l.session, k, []*pkcs11.Attribute{attribute(secret, nil)})
			tried("reading", err)
			for _, gain := range []uint{pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_DECRYPT, pkcs11.CKA_ENCRYPT, pkcs11.CKA_WRAP,
				pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE, pkcs11.CKA_SIGN, pkcs11.CKA_MODIFIABLE} {
				tried(fmt.Sprintf("setting %#x", gain), trySet(mod.raw, l.session, k, attribute(gain, true)))
				tried(fmt.Sprintf("copying with %#x", gain), tryCopy(mod.raw, l.session, k, attribute(gain, true)))
			}
		}
	}
	return stolen, looked, nil
}

// StealInTransit tries to unwrap a travelling key so that it can be read,
// with the PIN of the token it is meant for.
func StealInTransit(cfg Config, role Role, wrapped []byte) error {
	mod, err := loadModule(cfg.Module)
	if err != nil {
		return err
	}
	l, err := dial(mod, cfg.Tokens[role][0])
	if err != nil {
		return err
	}
	defer l.close()
	private, err := findPair(mod.raw, l.session, pkcs11.CKO_PRIVATE_KEY, labelTransport)
	if err != nil || private == 0 {
		return errors.Join(err, errors.New("no transport key"))
	}
	_, err = mod.raw.UnwrapKey(l.session, oaep(), private, wrapped, []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		attribute(pkcs11.CKA_SENSITIVE, false), attribute(pkcs11.CKA_EXTRACTABLE, true)})
	return err
}

// StealPassing tries the same with a key on its way onto a rotate token, which
// may be wrapped again: to free it from trusted keys, and to wrap it under a
// key of one's own. It returns what each got.
func StealPassing(cfg Config, wrapped []byte, keyType uint) (freed, taken error, err error) {
	mod, err := loadModule(cfg.Module)
	if err != nil {
		return nil, nil, err
	}
	l, err := dial(mod, cfg.Tokens[RoleRotate][0])
	if err != nil {
		return nil, nil, err
	}
	defer l.close()
	raw, s := mod.raw, l.session
	private, err := findPair(raw, s, pkcs11.CKO_PRIVATE_KEY, labelTransport)
	if err != nil {
		return nil, nil, err
	}
	_, freed = raw.UnwrapKey(s, oaep(), private, wrapped, replace(passingThrough(keyType), attribute(pkcs11.CKA_WRAP_WITH_TRUSTED, false)))
	key, err := raw.UnwrapKey(s, oaep(), private, wrapped, passingThrough(keyType))
	if err != nil {
		return nil, nil, err
	}
	own, err := raw.GenerateKey(s, mechanism(pkcs11.CKM_AES_KEY_GEN), ownWrapping())
	if err != nil {
		return nil, nil, err
	}
	_, taken = raw.WrapKey(s, mechanism(pkcs11.CKM_AES_KEY_WRAP), own, key)
	return freed, taken, nil
}

// StealWithOfficer is what both PINs of a rotate token can do: the officer makes
// a public key trusted, whose private key is on the host, and the user wraps a
// data key to it.
func StealWithOfficer(cfg Config, soPINFile string, wrapped []byte) ([]byte, error) {
	mod, err := loadModule(cfg.Module)
	if err != nil {
		return nil, err
	}
	t := cfg.Tokens[RoleRotate][0]
	l, err := dial(mod, t)
	if err != nil {
		return nil, err
	}
	defer l.close()
	raw, s := mod.raw, l.session
	own, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	var public pkcs11.ObjectHandle
	if err := l.officer(t, soPINFile, func() error {
		public, err = raw.CreateObject(s, append(wrappingRSA(own.N.Bytes()), attribute(pkcs11.CKA_PRIVATE, false), attribute(pkcs11.CKA_TRUSTED, true)))
		return err
	}); err != nil {
		return nil, err
	}
	keks, err := findKEKs(raw, s)
	if err != nil {
		return nil, err
	}
	key, err := raw.UnwrapKey(s, mechanism(pkcs11.CKM_AES_KEY_WRAP), keks[1], wrapped, unwrapping(RoleRotate))
	if err != nil {
		return nil, err
	}
	out, err := raw.WrapKey(s, oaep(), public, key)
	if err != nil {
		return nil, err
	}
	return rsa.DecryptOAEP(sha1.New(), nil, own, out, nil)
}

// PlantTrusted has the officer of a rotate token leave a trusted public key.
func PlantTrusted(cfg Config, soPINFile string) error {
	mod, err := loadModule(cfg.Module)
	if err != nil {
		return err
	}
	t := cfg.Tokens[RoleRotate][0]
	l, err := dial(mod, t)
	if err != nil {
		return err
	}
	defer l.close()
	as, err := ownRSA()
	if err != nil {
		return err
	}
	as = append(replace(as, attribute(pkcs11.CKA_TOKEN, true)), attribute(pkcs11.CKA_PRIVATE, false), attribute(pkcs11.CKA_TRUSTED, true))
	return l.officer(t, soPINFile, func() error {
		_, err := mod.raw.CreateObject(l.session, as)
		return err
	})
}

// KnownKey unwraps a data key on the rotate token, apart from any HSM, and
// returns its handle: for a module that mistakes one key for another.
func KnownKey(cfg Config, epoch uint32, wrapped []byte) (handle int32, release func(), err error) {
	mod, err := loadModule(cfg.Module)
	if err != nil {
		return 0, nil, err
	}
	l, err := dial(mod, cfg.Tokens[RoleRotate][0])
	if err != nil {
		return 0, nil, err
	}
	keks, err := findKEKs(mod.raw, l.session)
	if err != nil {
		l.close()
		return 0, nil, err
	}
	h, err := mod.raw.UnwrapKey(l.session, mechanism(pkcs11.CKM_AES_KEY_WRAP), keks[epoch], wrapped, unwrapping(RoleRotate))
	return int32(h), l.close, err
}

// ReadKEK reads attributes of the KEK of epoch 1 on one of a role's tokens.
func ReadKEK(cfg Config, role Role, n int, types ...uint) ([][]byte, error) {
	mod, err := loadModule(cfg.Module)
	if err != nil {
		return nil, err
	}
	l, err := dial(mod, cfg.Tokens[role][n])
	if err != nil {
		return nil, err
	}
	defer l.close()
	keks, err := findKEKs(mod.raw, l.session)
	if err != nil {
		return nil, err
	}
	var as []*pkcs11.Attribute
	for _, t := range types {
		as = append(as, attribute(t, nil))
	}
	if as, err = mod.raw.GetAttributeValue(l.session, keks[1], as); err != nil {
		return nil, err
	}
	var values [][]byte
	for _, a := range as {
		values = append(values, a.Value)
	}
	return values, nil
}

// RawRewraps unwraps, wraps and destroys a data key n times by nothing but the
// module.
func RawRewraps(cfg Config, wrapped []byte, n int) error {
	mod, err := loadModule(cfg.Module)
	if err != nil {
		return err
	}
	l, err := dial(mod, cfg.Tokens[RoleRotate][0])
	if err != nil {
		return err
	}
	defer l.close()
	keks, err := findKEKs(mod.raw, l.session)
	if err != nil {
		return err
	}
	t := newTemplate(unwrapping(RoleRotate))
	defer t.free()
	var out [wrappedSize]byte
	for range n {
		items := []rewrapItem{{kek: cUint64(keks[1]), rv: notRun, wrapped_len: wrappedSize}}
		if mod.shim.rewrap(l.session, keks[1], items, wrapped, out[:], t); items[0].rv != 0 {
			return pkcs11.Error(items[0].rv)
		}
	}
	return nil
}

// WrapWithKEK tries, with the PIN of a token, to wrap under its KEK of epoch 1
// a key made on the token, and one unwrapped on it.
func WrapWithKEK(cfg Config, role Role) (made, unwrapped, err error) {
	mod, err := loadModule(cfg.Module)
	if err != nil {
		return nil, nil, err
	}
	l, err := dial(mod, cfg.Tokens[role][0])
	if err != nil {
		return nil, nil, err
	}
	defer l.close()
	keks, err := findKEKs(mod.raw, l.session)
	if err != nil {
		return nil, nil, err
	}
	probes, err := readProbes(cfg.ProbeKeyFile)
	if err != nil {
		return nil, nil, err
	}
	wrap := func(h pkcs11.ObjectHandle) error {
		_, err := mod.raw.WrapKey(l.session, mechanism(pkcs11.CKM_AES_KEY_WRAP), keks[1], h)
		return err
	}
	own, err := mod.raw.GenerateKey(l.session, mechanism(pkcs11.CKM_AES_KEY_GEN), minting())
	if err != nil {
		return nil, nil, err
	}
	made = wrap(own)
	if role.unwraps() {
		h, err := mod.raw.UnwrapKey(l.session, mechanism(pkcs11.CKM_AES_KEY_WRAP), keks[1], probes[0].wrapped[:], unwrapping(role))
		if err != nil {
			return nil, nil, err
		}
		unwrapped = wrap(h)
	}
	return made, unwrapped, nil
}

// EncryptWithPIN is what anybody with the seal token's PIN can do: encrypt
// under an IV of their choice.
func EncryptWithPIN(cfg Config, wrapped, iv, plaintext []byte) ([]byte, error) {
	mod, err := loadModule(cfg.Module)
	if err != nil {
		return nil, err
	}
	l, err := dial(mod, cfg.Tokens[RoleSeal][0])
	if err != nil {
		return nil, err
	}
	defer l.close()
	keks, err := findKEKs(mod.raw, l.session)
	if err != nil {
		return nil, err
	}
	key, err := mod.raw.UnwrapKey(l.session, mechanism(pkcs11.CKM_AES_KEY_WRAP), keks[1], wrapped, unwrapping(RoleSeal))
	if err != nil {
		return nil, err
	}
	params := pkcs11.NewGCMParams(iv, nil, 128)
	defer params.Free()
	if err := mod.raw.EncryptInit(l.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, key); err != nil {
		return nil, err
	}
	return mod.raw.Encrypt(l.session, plaintext)
}

// Released returns the memory of a batch that sealed plain, after its release.
func Released(plain []byte) (in, out []byte, err error) {
	b := new(batch)
	items := []token.Item{{In: plain, Out: make([]byte, 0, len(plain)+tagSize)}}
	if err := b.layout(true, []token.WrappedKey{{Wrapped: make([]byte, wrappedSize)}}, items); err != nil {
		return nil, nil, err
	}
	in, out = b.in, b.out
	copy(out, plain)
	b.release()
	return in, out, nil
}

// ImportOnly is Import without its last steps: nothing is tried, and the
// transport keys stay.
func (c Ceremony) ImportOnly(in, creator, probeFile string) error {
	mod, err := c.module()
	if err != nil {
		return err
	}
	m, read, err := openManifest(in, creator)
	if err != nil {
		return err
	}
	if err := c.each(func(r Role, t Token) error {
		l, err := dial(mod, t)
		if err != nil {
			return err
		}
		defer l.close()
		return c.importKeys(l, r, t, m, "", read)
	}); err != nil {
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
	return os.WriteFile(probeFile, AppendProbes(probes), 0o600)
}

// CachedKeys is how many data keys the open role holds at the moment.
func (h *HSM) CachedKeys(role Role) (n int) {
	done := make(chan struct{})
	j := newJob(func(a *access) error { n = a.unwrapped.lru.Len(); close(done); return nil }, func() {})
	h.groups[role].pools[0].queue <- j
	<-done
	return n
}

var _ crypto.Signer = (*signer)(nil)

// Tuned changes the times a pool goes by, and tells watch of its states.
func Tuned(c Config, connect, first, most time.Duration, watch func(State)) Config {
	c.limits = limits{connect: connect, first: first, most: most}
	c.watch = watch
	return c
}

// Latched says whether a token waits for an operator.
func Latched(h *HSM, role Role) bool {
	p := h.groups[role].pools[0]
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.machine.latched
}

// Count is what the metrics of a token say.
type Count struct {
	Stuck, Openings, FailedOpenings, Sessions, Canaries, Damaged float64
	Handles                                                      int64
}

// Counts reads those of the first token of a role.
func Counts(h *HSM, role Role) Count { return counts(h.groups[role].pools[0].metrics) }

func counts(t *tokenMetrics) Count {
	return Count{
		Stuck:          value(t.all.stuck.WithLabelValues(t.label)),
		Openings:       value(t.all.openings.WithLabelValues(t.label, "opened")),
		FailedOpenings: value(t.all.openings.WithLabelValues(t.label, "failed")),
		Sessions:       value(t.all.sessions.WithLabelValues(t.label)),
		Canaries:       value(t.all.canaries.WithLabelValues(t.label, "passed")),
		Damaged:        value(t.all.damaged.WithLabelValues(t.label)),
		Handles:        t.handles.Load(),
	}
}

// Renewals are how often the module was ended for its memory, and could not be.
func Renewals(h *HSM) (done, hindered int) {
	of := func(result string) int { return int(value(h.renewer.metrics.renewals.WithLabelValues(result))) }
	return of(renewalDone), of(renewalHindered)
}

func value(m prometheus.Metric) float64 {
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		panic(err)
	}
	return d.GetCounter().GetValue() + d.GetGauge().GetValue()
}

func (t *tokenMetrics) served(kind string) uint64 {
	var d dto.Metric
	if err := t.all.seconds.WithLabelValues(t.label, kind).(prometheus.Metric).Write(&d); err != nil {
		panic(err)
	}
	return d.GetHistogram().GetSampleCount()
}

// RawUnwraps unwraps and destroys a data key n times by nothing but the module.
func RawUnwraps(cfg Config, wrapped []byte, n int) error {
	mod, err := loadModule(cfg.Module)
	if err != nil {
		return err
	}
	l, err := dial(mod, cfg.Tokens[RoleOpen][0])
	if err != nil {
		return err
	}
	defer l.close()
	keks, err := findKEKs(mod.raw, l.session)
	if err != nil {
		return err
	}
	t := newTemplate(unwrapping(RoleOpen))
	defer t.free()
	for range n {
		items := []unwrapItem{{kek: cUint64(keks[1]), wrapped_len: wrappedSize}}
		if mod.shim.unwrap(l.session, items, wrapped, t); items[0].rv != 0 {
			return pkcs11.Error(items[0].rv)
		}
		if err := mod.shim.destroy(l.session, []uint64{uint64(items[0].key)}); err != nil {
			return err
		}
	}
	return nil
}

// Slot is where a token is, in a module that an HSM serves from.
func Slot(module, label string) (uint, error) {
	mod, err := loadModule(module)
	if err != nil {
		return 0, err
	}
	slots, err := mod.findSlots(label)
	if err != nil || len(slots) != 1 {
		return 0, fmt.Errorf("%d tokens are labelled %s: %w", len(slots), label, err)
	}
	return slots[0], nil
}

// pool finds one token's share of an HSM.
func (h *HSM) pool(label string) *pool {
	for _, g := range h.groups {
		for _, p := range g.pools {
			if p.label == label {
				return p
			}
		}
	}
	panic(label)
}

// Working is how many workers of a role are trusted.
func Working(h *HSM, role Role) (n int) {
	p := h.groups[role].pools[0]
	p.mu.Lock()
	defer p.mu.Unlock()
	for w := range p.workers {
		if !w.trial {
			n++
		}
	}
	return n
}
