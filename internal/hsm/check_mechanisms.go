package hsm

import (
	"bytes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"maps"
	"math/big"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/miekg/pkcs11"
)

func (c *checker) tryLogin() (finding, error) {
	var n int
	if err := c.in("C_DestroyObject", func() (err error) { n, err = sweep(c.raw, c.s); return err }); err != nil {
		return finding{}, err
	}
	f := finding{found: "the PIN was presented once and accepted"}
	if n > 0 {
		f.found += fmt.Sprintf("; %d objects of an interrupted check were destroyed", n)
	}
	return f, nil
}

func (c *checker) tryVersion() (finding, error) {
	f := finding{found: version(c.info.CryptokiVersion)}
	if v := int(c.info.CryptokiVersion.Major)<<8 + int(c.info.CryptokiVersion.Minor); v < 2<<8+20 {
		f.result = CheckFail
	} else if v < 2<<8+40 {
		f.result, f.means = CheckLimited, "Older than what Kluis is made for; what the other requirements say counts."
	}
	return f, nil
}

func (c *checker) tryFlags() (finding, error) {
	f := finding{found: "login required, may be written to"}
	if c.flags&pkcs11.CKF_WRITE_PROTECTED != 0 {
		return finding{result: CheckFail, found: "write-protected"}, nil
	}
	if c.flags&pkcs11.CKF_LOGIN_REQUIRED == 0 {
		return finding{result: CheckFail, found: "no login is required: whoever reaches the token uses its keys"}, nil
	}
	return f, nil
}

func (c *checker) tryCounters() (finding, error) {
	var after pkcs11.TokenInfo
	if err := c.in("C_GetTokenInfo", func() (err error) { after, err = c.raw.GetTokenInfo(c.slot); return err }); err != nil {
		return finding{}, err
	}
	var shown []string
	for _, flag := range []struct {
		bit  uint
		text string
	}{
		{pkcs11.CKF_USER_PIN_COUNT_LOW, "a wrong user PIN was presented since the last login"},
		{pkcs11.CKF_SO_PIN_COUNT_LOW, "a wrong SO PIN was presented"},
		{pkcs11.CKF_SO_PIN_FINAL_TRY, "one try of the SO PIN is left"},
		{pkcs11.CKF_SO_PIN_LOCKED, "the SO PIN is locked"},
	} {
		switch {
		case after.Flags&flag.bit != 0:
			shown = append(shown, flag.text)
		case c.flags&flag.bit != 0:
			shown = append(shown, flag.text+" (cleared by this login)")
		}
	}
	if len(shown) > 0 {
		return finding{result: CheckLimited, found: "the flags show counters: " + strings.Join(shown, ", ")}, nil
	}
	return finding{found: "the flags show no wrong PIN; whether the token counts at all is not known without trying one"}, nil
}

func (c *checker) tryRandom() (finding, error) {
	var both [2][64 << 10]byte
	for i := range both {
		if err := c.in("C_GenerateRandom", func() error { return c.shim.random(c.s, both[i][:]) }); err != nil {
			return finding{}, err
		}
	}
	ones, seen := 0, map[[ivSize]byte]bool{}
	for i := range both {
		for _, b := range both[i] {
			ones += bits.OnesCount8(b)
		}
		for iv := both[i][:]; len(iv) >= ivSize; iv = iv[ivSize:] {
			if seen[[ivSize]byte(iv)] {
				return finding{result: CheckFail, found: "12 bytes came twice in 128 KiB"}, nil
			}
			seen[[ivSize]byte(iv)] = true
		}
	}
	// 2^20 bits: a share beyond 1 % off a half is twenty standard deviations off.
	if share := float64(ones) / (8 * 2 * 64 << 10); share < 0.49 || share > 0.51 {
		return finding{result: CheckFail, found: fmt.Sprintf("%.1f %% of the bits are set", 100*share)}, nil
	}
	return finding{found: "no sign of weakness (a crude test, which a bad generator may pass)"}, nil
}

func (c *checker) tryKeyGen() (finding, error) {
	_, err := c.generate(pkcs11.CKM_AES_KEY_GEN, minting())
	return finding{found: "AES-256, as a session key"}, err
}

func (c *checker) generate(mech uint, as []*pkcs11.Attribute) (h pkcs11.ObjectHandle, err error) {
	err = c.in("C_GenerateKey", func() (err error) {
		h, err = c.raw.GenerateKey(c.s, mechanism(mech), as)
		return named("C_GenerateKey", err)
	})
	return h, err
}

func named(call string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", call, err)
}

// transportPair is the RSA key of a token as the ceremony makes it.
type transportPair struct {
	private, public pkcs11.ObjectHandle
	rsa             *rsa.PublicKey
	nested          bool // it has the unwrap template
}

// makeTransport makes a transport key as keys init does; without its unwrap
// template where the token does not take one.
func (c *checker) makeTransport(label string, r Role) (*transportPair, error) {
	id := []byte(label)
	try := func(nest bool) (*transportPair, error) {
		p := &transportPair{nested: nest}
		as := arriving(r)
		if c.limits.weaken != nil {
			as = c.limits.weaken(as)
		}
		nested := newTemplate(as)
		defer nested.free()
		public := append(publicKey(label, id), attribute(pkcs11.CKA_MODULUS_BITS, c.limits.bits),
			attribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}), attribute(pkcs11.CKA_WRAP, true),
			attribute(pkcs11.CKA_ENCRYPT, false), attribute(pkcs11.CKA_VERIFY, false))
		private := append(privateKey(label, id), attribute(pkcs11.CKA_UNWRAP, true), attribute(pkcs11.CKA_DECRYPT, false), attribute(pkcs11.CKA_SIGN, false))
		if nest {
			private = append(private, attribute(pkcs11.CKA_UNWRAP_TEMPLATE, nested.bytes()))
		}
		private = append(private, allowed(pkcs11.CKM_RSA_PKCS_OAEP))
		err := c.inLong("C_GenerateKeyPair", func() (err error) {
			p.public, p.private, err = c.raw.GenerateKeyPair(c.session, mechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN),
				append(public, frozen()...), append(private, frozen()...))
			return named("C_GenerateKeyPair", err)
		})
		return p, err
	}
	p, err := try(true)
	if err != nil && !errors.Is(err, errAbandoned) {
		var second error
		if p, second = try(false); second == nil {
			err = nil
		}
	}
	if err != nil {
		return nil, err
	}
	var as []*pkcs11.Attribute
	if err := c.in("C_GetAttributeValue", func() (err error) {
		as, err = c.raw.GetAttributeValue(c.session, p.public, []*pkcs11.Attribute{attribute(pkcs11.CKA_MODULUS, nil), attribute(pkcs11.CKA_PUBLIC_EXPONENT, nil)})
		return named("C_GetAttributeValue of the public key", err)
	}); err != nil {
		return nil, err
	}
	p.rsa = &rsa.PublicKey{N: new(big.Int).SetBytes(as[0].Value), E: int(new(big.Int).SetBytes(as[1].Value).Int64())}
	if p.rsa.N.BitLen() != c.limits.bits || p.rsa.E != 65537 {
		return nil, fmt.Errorf("the public key has %d bits and exponent %d", p.rsa.N.BitLen(), p.rsa.E)
	}
	return p, nil
}

func (c *checker) tryTransport() (finding, error) {
	p, err := c.makeTransport(checkTransport, RoleOpen)
	if err != nil {
		return finding{}, err
	}
	c.pair = p
	if !p.nested {
		return finding{result: CheckFail, found: "a pair can be made, but not with an unwrap template"}, nil
	}
	return finding{found: fmt.Sprintf("RSA-%d with an unwrap template", c.limits.bits)}, nil
}

func (c *checker) transport() (*transportPair, error) {
	if c.pair == nil {
		return nil, notTried("there is no transport key")
	}
	return c.pair, nil
}

// oaepWith is the mechanism for one hash.
func oaepWith(hash, mgf uint) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_OAEP, pkcs11.NewOAEPParams(hash, mgf, pkcs11.CKZ_DATA_SPECIFIED, nil))}
}

// wrapsToHost has the token wrap a key of its own to an RSA key of ours, and
// compares.
func (c *checker) wrapsToHost(m []*pkcs11.Mechanism, h hash.Hash) error {
	host, err := c.hostRSA()
	if err != nil {
		return err
	}
	key, err := c.generate(pkcs11.CKM_AES_KEY_GEN, append(append(session(pkcs11.CKK_AES), usage(pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT)...), frozen()...))
	if err != nil {
		return err
	}
	var public pkcs11.ObjectHandle
	if err := c.in("C_CreateObject", func() (err error) {
		public, err = c.raw.CreateObject(c.s, wrappingRSA(host.N.Bytes()))
		return named("C_CreateObject of a public key", err)
	}); err != nil {
		return err
	}
	var wrapped []byte
	if err := c.in("C_WrapKey", func() (err error) {
		wrapped, err = c.raw.WrapKey(c.s, m, public, key)
		return named("C_WrapKey with RSA-OAEP", err)
	}); err != nil {
		return err
	}
	value, err := rsa.DecryptOAEP(h, nil, (*rsa.PrivateKey)(host), wrapped, nil)
	if err != nil || len(value) != 32 {
		return fmt.Errorf("what the token wrapped does not unwrap: %w", err)
	}
	return c.same(key, value)
}

// same says whether a key of the token is the one we think.
func (c *checker) same(key pkcs11.ObjectHandle, value []byte) error {
	iv, text := make([]byte, ivSize), []byte("the same key gives the same text")
	out, _, err := c.gcm(c.s, false, key, iv, nil, newGCM(value).Seal(nil, iv, text, nil), tagSize)
	var rv pkcs11.Error
	switch {
	case errors.As(err, &rv) && uint(rv) == pkcs11.CKR_MECHANISM_INVALID:
		return nil // said elsewhere
	case errors.As(err, &rv) && classifyRV(uint(rv)) == classData, err == nil && !bytes.Equal(out, text):
		return errors.New("the token's key is another than the one that was wrapped")
	}
	return err
}

type hostRSA rsa.PrivateKey

func (c *checker) hostRSA() (*hostRSA, error) {
	if c.host == nil {
		k, err := rsa.GenerateKey(rand.Reader, min(2048, c.limits.bits))
		if err != nil {
			return nil, err
		}
		c.host = (*hostRSA)(k)
	}
	return c.host, nil
}

func (c *checker) tryOAEP1() (finding, error) {
	pair, err := c.transport()
	if err != nil {
		return finding{}, err
	}
	value := randomBytes(32)
	key, err := c.unwrapOAEP(pair, value, knownTemplate(pkcs11.CKK_AES, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT))
	if err != nil {
		return finding{}, err
	}
	if err := c.same(key, value); err != nil {
		return finding{}, err
	}
	if err := c.wrapsToHost(oaep(), sha1.New()); err != nil {
		return finding{}, err
	}
	return finding{found: "wraps and unwraps as Go does"}, nil
}

func (c *checker) tryOAEP256() (finding, error) {
	err := c.wrapsToHost(oaepWith(pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256), sha256.New())
	if errors.Is(err, errAbandoned) {
		return finding{}, err
	}
	c.quirk("oaep-sha1-only", err != nil)
	if err != nil {
		return finding{result: CheckLimited, found: ckr(err)}, nil
	}
	return finding{found: "wraps as Go does"}, nil
}

// knownTemplate is that of a session key whose value we know.
func knownTemplate(keyType uint, uses ...uint) []*pkcs11.Attribute {
	as := []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attribute(pkcs11.CKA_KEY_TYPE, keyType),
		attribute(pkcs11.CKA_TOKEN, false), attribute(pkcs11.CKA_PRIVATE, false),
		attribute(pkcs11.CKA_SENSITIVE, true), attribute(pkcs11.CKA_EXTRACTABLE, false)}
	return append(append(as, usage(uses...)...), frozen()...)
}

// unwrapOAEP brings a value onto the token, to the holder session.
func (c *checker) unwrapOAEP(pair *transportPair, value []byte, as []*pkcs11.Attribute) (h pkcs11.ObjectHandle, err error) {
	wrapped, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, pair.rsa, value, nil)
	if err != nil {
		return 0, err
	}
	err = c.in("C_UnwrapKey", func() (err error) {
		h, err = c.raw.UnwrapKey(c.session, oaep(), pair.private, wrapped, as)
		return named("C_UnwrapKey with RSA-OAEP", err)
	})
	return h, err
}

// plant brings a value onto the token: as the ceremony does, or else in clear,
// for there is no secret in it.
func (c *checker) plant(value []byte, as []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if pair, err := c.transport(); err == nil {
		h, err := c.unwrapOAEP(pair, value, as)
		if err == nil || errors.Is(err, errAbandoned) {
			return h, err
		}
	}
	var h pkcs11.ObjectHandle
	err := c.in("C_CreateObject", func() (err error) {
		h, err = c.raw.CreateObject(c.session, append([]*pkcs11.Attribute{attribute(pkcs11.CKA_VALUE, value)}, as...))
		return err
	})
	if err != nil && !errors.Is(err, errAbandoned) && c.ctx.Err() == nil {
		return 0, notTried("no key of known value can be brought onto the token: by RSA-OAEP as above, by C_CreateObject: " + ckr(err))
	}
	return h, err
}

// knownKey is an AES-256 session key whose value we know.
type knownKey struct {
	handle pkcs11.ObjectHandle
	value  []byte
}

func (c *checker) knownKey() (*knownKey, error) {
	if c.known == nil {
		value := randomBytes(32)
		h, err := c.plant(value, knownTemplate(pkcs11.CKK_AES, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT))
		if err != nil {
			return nil, err
		}
		c.known = &knownKey{h, value}
	}
	return c.known, nil
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func (c *checker) tryHMAC() (finding, error) {
	value := randomBytes(32)
	key, err := c.plant(value, macKey(checkMAC, time.Now()))
	if err != nil {
		return finding{}, err
	}
	for _, n := range []int{0, 1, 64, 100000} {
		message := bytes.Repeat([]byte{7}, n)
		got := make([]byte, macSize)
		if err := c.in("C_Sign", func() error {
			return named("C_Sign", c.shim.sign(c.s, pkcs11.CKM_SHA256_HMAC, key, []macItem{{data_len: cUint32(n)}}, message, got, macSize))
		}); err != nil {
			return finding{}, err
		}
		want := hmac.New(sha256.New, value)
		want.Write(message)
		if !hmac.Equal(got, want.Sum(nil)) {
			return finding{result: CheckFail, found: fmt.Sprintf("the MAC of %d bytes is another than Go's", n)}, nil
		}
	}
	stolen, err := c.steal(key)
	return stolenFinding(stolen, nil, "as Go's, up to 100,000 bytes; the key does not come out"), err
}

// attempt is one thing that must be refused.
type attempt struct {
	name string
	run  func(s pkcs11.SessionHandle) error // nil: it was let happen, and undone
}

// attempts runs each on a session of its own and returns what was let happen.
func (c *checker) attempts(list []attempt) (happened []string, err error) {
	for _, a := range list {
		var got error
		if err := c.in("an attempt at "+a.name, func() error {
			s, err := c.login.open()
			if err != nil {
				return err
			}
			got = a.run(s)
			return c.raw.CloseSession(s)
		}); err != nil {
			return happened, err
		}
		switch {
		case got == nil:
			happened = append(happened, a.name)
		case !refused(got):
			return happened, fmt.Errorf("whether the token prevents %s could not be told: %w", a.name, got)
		}
	}
	return happened, nil
}

func stolenFinding(happened []string, roles []Role, well string) finding {
	if len(happened) > 0 {
		return finding{result: CheckFail, found: "the token let happen: " + strings.Join(happened, "; "), roles: roles}
	}
	return finding{found: well}
}

// steal tries to get at a key at home on the token.
func (c *checker) steal(key pkcs11.ObjectHandle) ([]string, error) {
	return c.attempts([]attempt{
		{"reading it", func(s pkcs11.SessionHandle) error { return tryRead(c.raw, s, key) }},
		{"making it extractable", func(s pkcs11.SessionHandle) error {
			return trySet(c.raw, s, key, attribute(pkcs11.CKA_EXTRACTABLE, true))
		}},
		{"making it modifiable", func(s pkcs11.SessionHandle) error {
			return trySet(c.raw, s, key, attribute(pkcs11.CKA_MODIFIABLE, true))
		}},
		{"copying it", func(s pkcs11.SessionHandle) error {
			return tryCopy(c.raw, s, key, attribute(pkcs11.CKA_EXTRACTABLE, true))
		}},
		{"wrapping it", func(s pkcs11.SessionHandle) error { return tryWrap(c.raw, s, key) }},
	})
}

func tryRead(raw *pkcs11.Ctx, s pkcs11.SessionHandle, key pkcs11.ObjectHandle) error {
	as, err := raw.GetAttributeValue(s, key, []*pkcs11.Attribute{attribute(pkcs11.CKA_VALUE, nil)})
	if err == nil {
		clear(as[0].Value)
	}
	return err
}

func (c *checker) tryECDSA() (finding, error) {
	id := []byte(checkSign)
	public := append(publicKey(checkSign, id), attribute(pkcs11.CKA_EC_PARAMS, p256Params), attribute(pkcs11.CKA_VERIFY, true))
	private := append(privateKey(checkSign, id), attribute(pkcs11.CKA_SIGN, true), attribute(pkcs11.CKA_DECRYPT, false),
		attribute(pkcs11.CKA_UNWRAP, false), attribute(pkcs11.CKA_DERIVE, false), allowed(pkcs11.CKM_ECDSA))
	if err := c.in("C_GenerateKeyPair", func() error {
		_, _, err := c.raw.GenerateKeyPair(c.session, mechanism(pkcs11.CKM_EC_KEY_PAIR_GEN), append(public, frozen()...), append(private, frozen()...))
		return named("C_GenerateKeyPair", err)
	}); err != nil {
		return finding{}, err
	}
	var key pkcs11.ObjectHandle
	var pub *ecdsa.PublicKey
	if err := c.in("C_GetAttributeValue", func() (err error) { key, pub, err = c.login.signer(checkSign); return err }); err != nil {
		return finding{}, err
	}
	for i := range 20 {
		digest := sha256.Sum256([]byte{byte(i)})
		var der []byte
		if err := c.in("C_Sign", func() (err error) { der, err = c.login.sign(key, digest[:]); return named("C_Sign", err) }); err != nil {
			return finding{}, err
		}
		if !ecdsa.VerifyASN1(pub, digest[:], der) {
			return finding{result: CheckFail, found: "a signature does not verify"}, nil
		}
	}
	c.signing = key
	stolen, err := c.steal(key)
	return stolenFinding(stolen, nil, "signatures verify; the private key does not come out"), err
}

func (c *checker) tryKeyWrap() (finding, error) {
	value := randomBytes(32)
	kek, err := c.plant(value, knownTemplate(pkcs11.CKK_AES, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP))
	if err != nil {
		return finding{}, err
	}
	key, err := c.generate(pkcs11.CKM_AES_KEY_GEN, append(append(session(pkcs11.CKK_AES), usage(pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT)...), frozen()...))
	if err != nil {
		return finding{}, err
	}
	var wrapped []byte
	if err := c.in("C_WrapKey", func() (err error) {
		wrapped, err = c.raw.WrapKey(c.s, mechanism(pkcs11.CKM_AES_KEY_WRAP), kek, key)
		return named("C_WrapKey", err)
	}); err != nil {
		return finding{}, err
	}
	if len(wrapped) != wrappedSize {
		return finding{result: CheckFail, found: fmt.Sprintf("a wrapped AES-256 key has %d bytes, not %d", len(wrapped), wrappedSize)}, nil
	}
	plain, err := rfc3394Unwrap(value, wrapped)
	if err != nil {
		return finding{result: CheckFail, found: "what the token wraps is not RFC 3394"}, nil
	}
	if err := c.same(key, plain); err != nil {
		return finding{}, err
	}
	var again pkcs11.ObjectHandle
	if err := c.in("C_UnwrapKey", func() (err error) {
		again, err = c.raw.UnwrapKey(c.s, mechanism(pkcs11.CKM_AES_KEY_WRAP), kek, wrapped, unwrapping(RoleOpen))
		return named("C_UnwrapKey", err)
	}); err != nil {
		return finding{}, err
	}
	return finding{found: "as RFC 3394 has it, 40 bytes"}, c.same(again, plain)
}

func (c *checker) tryKeyWrapPad() (finding, error) {
	value := randomBytes(32)
	kek, err := c.plant(value, knownTemplate(pkcs11.CKK_AES, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP))
	if err != nil {
		return finding{}, err
	}
	key, err := c.generate(pkcs11.CKM_AES_KEY_GEN, minting())
	if err != nil {
		return finding{}, err
	}
	err = c.in("C_WrapKey", func() error {
		_, err := c.raw.WrapKey(c.s, mechanism(pkcs11.CKM_AES_KEY_WRAP_PAD), kek, key)
		return err
	})
	if err != nil && !errors.Is(err, errAbandoned) {
		return finding{result: CheckLimited, found: ckr(err)}, nil
	}
	return finding{found: "there"}, err
}

// gcm does one operation as the data path does. used is the IV after it.
func (c *checker) gcm(s pkcs11.SessionHandle, encrypt bool, key pkcs11.ObjectHandle, iv, aad, data []byte, room int) (out, used []byte, err error) {
	in := slices.Concat(iv, aad, data)
	out = make([]byte, len(data)+room)
	items := []gcmItem{{key: cUint64(key), rv: notRun, aad: ivSize, aad_len: cUint32(len(aad)), data: cUint32(ivSize + len(aad)),
		data_len: cUint32(len(data)), out_len: cUint32(len(out))}}
	call := "C_Decrypt"
	if encrypt {
		call = "C_Encrypt"
	}
	err = c.in(call+" with CKM_AES_GCM", func() error {
		if c.shim.gcm(s, encrypt, items, in, out); items[0].rv != 0 {
			return named(call+" with CKM_AES_GCM", pkcs11.Error(items[0].rv))
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return out[:items[0].out_len], in[:ivSize], nil
}

var gcmSizes = []int{0, 1, 64, 4096}

func (c *checker) tryGCMDecrypt() (finding, error) {
	key, err := c.knownKey()
	if err != nil {
		return finding{}, err
	}
	for _, n := range gcmSizes {
		iv, aad, text := randomBytes(ivSize), randomBytes(40), randomBytes(n)
		out, _, err := c.gcm(c.s, false, key.handle, iv, aad, newGCM(key.value).Seal(nil, iv, text, aad), tagSize)
		if err != nil {
			return finding{}, err
		}
		if !bytes.Equal(out, text) {
			return finding{result: CheckFail, found: fmt.Sprintf("%d bytes come out otherwise than they went in, or as %d", n, len(out))}, nil
		}
	}
	return finding{found: "opens what Go sealed: 12-byte IV, 16-byte tag, AAD"}, nil
}

func (c *checker) tryGCMEncrypt() (finding, error) {
	key, err := c.knownKey()
	if err != nil {
		return finding{}, err
	}
	for _, n := range gcmSizes {
		aad, text := randomBytes(40), randomBytes(n)
		out, iv, err := c.encrypt(key.handle, randomBytes(ivSize), aad, text)
		if err != nil {
			return finding{}, err
		}
		if !bytes.Equal(out, newGCM(key.value).Seal(nil, iv, text, aad)) {
			return finding{result: CheckFail, found: fmt.Sprintf("%d bytes become %d, which are not Go's under the IV in pIv", n, len(out)),
				do: "See who makes the IV."}, nil
		}
	}
	return finding{found: "as Go's: 12-byte IV, 16-byte tag, AAD"}, nil
}

// encrypt seals as the data path does; used is the IV it was under.
func (c *checker) encrypt(key pkcs11.ObjectHandle, iv, aad, text []byte) (out, used []byte, err error) {
	return c.gcm(c.s, true, key, iv, aad, text, tagSize+16) // and room for an IV put behind the tag
}

func (c *checker) tryIV() (finding, error) {
	key, err := c.knownKey()
	if err != nil {
		return finding{}, err
	}
	iv, text := randomBytes(ivSize), randomBytes(64)
	out, used, err := c.encrypt(key.handle, iv, nil, text)
	if errors.Is(err, errAbandoned) {
		return finding{}, err
	}
	if err != nil {
		if _, _, second := c.encrypt(key.handle, make([]byte, ivSize), nil, text); second == nil {
			return finding{result: CheckFail, found: "the token makes it: it takes a buffer of zeros only; otherwise " + ckr(err), means: ownIV}, nil
		}
		return finding{}, err
	}
	host := bytes.Equal(used, iv)
	c.quirk("host-iv", host)
	c.ownIV = !host
	switch {
	case !bytes.Equal(out, newGCM(key.value).Seal(nil, used, text, nil)):
		return finding{result: CheckFail, found: fmt.Sprintf("the token uses an IV that it does not tell in the 12 bytes of pIv (%d bytes become %d)", len(text), len(out)),
			means: "Kluis would store an IV under which nothing opens."}, nil
	case !host:
		return finding{result: CheckFail, found: "the token makes it, 12 bytes, and writes it into pIv", means: ownIV}, nil
	}
	long, err := c.longIV(key.handle)
	if errors.Is(err, errAbandoned) {
		return finding{}, err
	}
	found := "the host: the token takes the 12 bytes given"
	if long {
		found += ", also 16"
	}
	return finding{result: CheckLimited, found: found,
		means: "Kluis seals with IVs from the token's random numbers and never lets a caller choose. But whoever holds the seal token's PIN can read: " +
			"encrypting zeros under a ciphertext's IV gives its key stream.",
		do: "Guard the PIN of the seal token as that of the open token."}, nil
}

// ownIV is what becomes of a token that would be the better one.
const ownIV = "Safer, but not served yet: the known vectors by which Kluis tells a broken token from damaged data need the host's IV."

// longIV says whether the token takes an IV of 16 bytes.
func (c *checker) longIV(key pkcs11.ObjectHandle) (bool, error) {
	err := c.in("C_Encrypt", func() error {
		p := pkcs11.NewGCMParams(make([]byte, 16), nil, tagSize*8)
		defer p.Free()
		if err := c.raw.EncryptInit(c.s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, p)}, key); err != nil {
			return err
		}
		_, err := c.raw.Encrypt(c.s, make([]byte, 16))
		return err
	})
	return err == nil, err
}

func (c *checker) tryLengths() (finding, error) {
	key, err := c.knownKey()
	if err != nil {
		return finding{}, err
	}
	iv, text := randomBytes(ivSize), randomBytes(64)
	sealed := newGCM(key.value).Seal(nil, iv, text, nil)
	out, _, err := c.gcm(c.s, false, key.handle, iv, nil, sealed, 0)
	if err != nil {
		return finding{}, err
	}
	if len(out) != len(text) {
		return finding{result: CheckFail, found: fmt.Sprintf("64 bytes of plaintext are said to be %d", len(out))}, nil
	}
	// Last, for it may leave the session in the middle of an operation.
	_, _, err = c.gcm(c.s, false, key.handle, iv, nil, sealed, -tagSize)
	if errors.Is(err, errAbandoned) {
		return finding{}, err
	}
	c.quirk("room-for-tag", err != nil)
	if err != nil {
		return finding{found: "needs room for the tag, too, which Kluis gives; otherwise " + ckr(err)}, nil
	}
	return finding{found: "needs the plaintext's room only"}, nil
}

func (c *checker) tryBadData() (finding, error) {
	key, err := c.knownKey()
	if err != nil {
		return finding{}, err
	}
	iv, aad, text := randomBytes(ivSize), randomBytes(20), randomBytes(64)
	sealed := newGCM(key.value).Seal(nil, iv, text, aad)
	flip := func(b []byte, i int) []byte { b = bytes.Clone(b); b[i] ^= 1; return b }
	answers := map[string][]string{}
	var happened, down []string
	unclear := false
	for _, x := range []struct {
		name            string
		iv, aad, sealed []byte
	}{
		{"tag", iv, aad, flip(sealed, len(sealed)-1)}, {"AAD", iv, flip(aad, 0), sealed},
		{"IV", flip(iv, 0), aad, sealed}, {"ciphertext", iv, aad, flip(sealed, 0)},
	} {
		_, _, err := c.gcm(c.s, false, key.handle, x.iv, x.aad, x.sealed, tagSize)
		var rv pkcs11.Error
		switch {
		case err == nil:
			happened = append(happened, x.name)
			continue
		case !errors.As(err, &rv):
			return finding{}, err
		case classifyRV(uint(rv)) != classData:
			down = append(down, x.name)
		}
		unclear = unclear || uint(rv) == pkcs11.CKR_GENERAL_ERROR || uint(rv) == pkcs11.CKR_FUNCTION_FAILED
		name := rvName(uint(rv))
		answers[name] = append(answers[name], x.name)
	}
	c.quirk("general-error", unclear)
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(answers)) {
		parts = append(parts, name+" for a wrong "+strings.Join(answers[name], ", "))
	}
	found := strings.Join(parts, "; ")
	switch {
	case len(happened) > 0:
		return finding{result: CheckFail, found: "opens with a wrong " + strings.Join(happened, ", "), means: "It does not authenticate."}, nil
	case len(down) > 0:
		return finding{result: CheckFail, found: found}, nil
	}
	// The session must be good for the next.
	if out, _, err := c.gcm(c.s, false, key.handle, iv, aad, sealed, tagSize); err != nil || !bytes.Equal(out, text) {
		return finding{result: CheckFail, found: "after it, the session does not decrypt sound data"}, err
	}
	return finding{found: found}, nil
}

func newGCM(key []byte) cipher.AEAD {
	g, err := cipher.NewGCM(newAES(key))
	if err != nil {
		panic(err) // AES has blocks of 16 bytes
	}
	return g
}
