package hsm

import (
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// ErrWeakKEK: the token let a KEK be used, changed or copied beyond its role.
var ErrWeakKEK = errors.New("KEK is not protected by the token")

// attack is one thing that whoever holds the PIN might try on a KEK. run
// returns nil when the token let it happen, and undoes it.
type attack struct {
	name string
	run  func() error
}

// prove attacks a KEK and returns nil only if the token refused every time.
// What counts is the attempt, not what the key's attributes say.
func prove(l *login, role Role, kek pkcs11.ObjectHandle, p probe) error {
	// A session of its own: an attack that succeeds leaves it unusable.
	session, err := l.open()
	if err != nil {
		return err
	}
	defer func() { _ = l.mod.raw.CloseSession(session) }()

	for _, a := range attacks(l.mod.raw, session, role, kek, p) {
		err := a.run()
		if err == nil {
			return fmt.Errorf("%w: %s succeeded; destroy this KEK and import it again", ErrWeakKEK, a.name)
		}
		if !refused(err) {
			return fmt.Errorf("whether the token prevents this could not be told: %s: %w", a.name, err)
		}
	}
	return nil
}

// refused says whether the token answered that this may not be done. Any
// other failure proves nothing.
func refused(err error) bool {
	var rv pkcs11.Error
	if !errors.As(err, &rv) {
		return false
	}
	switch uint(rv) {
	case pkcs11.CKR_ACTION_PROHIBITED, pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_ATTRIBUTE_SENSITIVE,
		pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED,
		pkcs11.CKR_FUNCTION_REJECTED, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_KEY_NOT_WRAPPABLE,
		pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_KEY_UNEXTRACTABLE, pkcs11.CKR_MECHANISM_INVALID,
		pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT:
		return true
	}
	return false
}

func attacks(raw *pkcs11.Ctx, session pkcs11.SessionHandle, role Role, kek pkcs11.ObjectHandle, p probe) []attack {
	var list []attack
	add := func(name string, run func() error) { list = append(list, attack{name, run}) }

	// Getting a data key out, or to another use.
	unwrap := func(name string, change ...*pkcs11.Attribute) {
		as := replace(unwrapping(role), change...)
		add("unwrapping a data key "+name, func() error { return tryUnwrap(raw, session, kek, p, as) })
	}
	yes, no := func(a uint) *pkcs11.Attribute { return attribute(a, true) }, func(a uint) *pkcs11.Attribute { return attribute(a, false) }
	unwrap("readable and extractable", no(pkcs11.CKA_SENSITIVE), yes(pkcs11.CKA_EXTRACTABLE))
	unwrap("readable", no(pkcs11.CKA_SENSITIVE))
	unwrap("to stay on the token", yes(pkcs11.CKA_TOKEN))
	unwrap("modifiable", yes(pkcs11.CKA_MODIFIABLE))
	unwrap("copyable", yes(pkcs11.CKA_COPYABLE))
	if role == RoleRotate {
		unwrap("to be wrapped by any key", no(pkcs11.CKA_WRAP_WITH_TRUSTED))
		unwrap("to wrap", yes(pkcs11.CKA_WRAP))
		unwrap("to unwrap", yes(pkcs11.CKA_UNWRAP))
		unwrap("to sign", yes(pkcs11.CKA_SIGN))
		unwrap("to verify", yes(pkcs11.CKA_VERIFY))
		unwrap("to derive", yes(pkcs11.CKA_DERIVE))
	} else {
		unwrap("extractable", yes(pkcs11.CKA_EXTRACTABLE))
		unwrap("for another mechanism", allowed(pkcs11.CKM_AES_ECB))
	}
	if role != RoleOpen {
		unwrap("to decrypt", yes(pkcs11.CKA_DECRYPT))
	}
	if role != RoleSeal {
		unwrap("to encrypt", yes(pkcs11.CKA_ENCRYPT))
	}
	if role == RoleMint {
		unwrap("as it is")
	}
	add("unwrapping a data key readable with nothing else said", func() error {
		return tryUnwrap(raw, session, kek, p, []*pkcs11.Attribute{
			attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
			no(pkcs11.CKA_SENSITIVE), yes(pkcs11.CKA_EXTRACTABLE)})
	})

	if role == RoleRotate {
		list = append(list, trustAttacks(raw, session, kek, p)...)
	}

	// Turning the KEK into something else, in place or as a copy.
	gains := []struct {
		name string
		attr *pkcs11.Attribute
	}{
		{"DECRYPT", yes(pkcs11.CKA_DECRYPT)},
		{"ENCRYPT", yes(pkcs11.CKA_ENCRYPT)},
		{"MODIFIABLE", yes(pkcs11.CKA_MODIFIABLE)},
		{"EXTRACTABLE", yes(pkcs11.CKA_EXTRACTABLE)},
		{"readability", no(pkcs11.CKA_SENSITIVE)},
		{"other mechanisms", allowed(pkcs11.CKM_AES_ECB)},
	}
	if role == RoleMint {
		gains = append(gains, struct {
			name string
			attr *pkcs11.Attribute
		}{"UNWRAP", yes(pkcs11.CKA_UNWRAP)})
	} else {
		if role != RoleRotate {
			gains = append(gains, struct {
				name string
				attr *pkcs11.Attribute
			}{"WRAP", yes(pkcs11.CKA_WRAP)})
		}
		lax := func(use func(t *pkcs11.Attribute) error) error {
			t := newTemplate([]*pkcs11.Attribute{attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY)})
			defer t.free()
			return use(attribute(pkcs11.CKA_UNWRAP_TEMPLATE, t.bytes()))
		}
		add("copying the KEK with a laxer unwrap template", func() error {
			return lax(func(t *pkcs11.Attribute) error { return tryCopy(raw, session, kek, t) })
		})
		add("setting a laxer unwrap template on the KEK", func() error {
			return lax(func(t *pkcs11.Attribute) error { return raw.SetAttributeValue(session, kek, []*pkcs11.Attribute{t}) })
		})
	}
	for _, g := range gains {
		add("setting "+g.name+" on the KEK", func() error { return trySet(raw, session, kek, g.attr) })
		add("copying the KEK with "+g.name, func() error { return tryCopy(raw, session, kek, g.attr) })
	}

	// Using it as it is. What a KEK deciphers is a data key; what it enciphers,
	// or wraps, is a data key of known value.
	add("decrypting with the KEK", func() error {
		return tryCiphers(func(m []*pkcs11.Mechanism) error { return raw.DecryptInit(session, m, kek) })
	})
	add("encrypting with the KEK", func() error {
		return tryCiphers(func(m []*pkcs11.Mechanism) error { return raw.EncryptInit(session, m, kek) })
	})
	if role == RoleOpen || role == RoleSeal {
		add("using the KEK to wrap a key", func() error { return tryWrapping(raw, session, kek) })
	}
	add("wrapping the KEK out", func() error { return tryWrap(raw, session, kek) })
	add("reading the KEK", func() error {
		as, err := raw.GetAttributeValue(session, kek, []*pkcs11.Attribute{attribute(pkcs11.CKA_VALUE, nil)})
		if err == nil {
			clear(as[0].Value)
		}
		return err
	})
	return list
}

// trustAttacks are those on a rotate token, where a data key may be wrapped
// anew: getting one out under a key of one's own, or making one's own key one
// that the token trusts.
func trustAttacks(raw *pkcs11.Ctx, session pkcs11.SessionHandle, kek pkcs11.ObjectHandle, p probe) []attack {
	var list []attack
	add := func(name string, run func() error) { list = append(list, attack{name, run}) }
	trusted := attribute(pkcs11.CKA_TRUSTED, true)

	// with runs f on an unwrapped data key, the probe's.
	with := func(f func(key pkcs11.ObjectHandle) error) func() error {
		return func() error {
			key, err := raw.UnwrapKey(session, mechanism(pkcs11.CKM_AES_KEY_WRAP), kek, p.wrapped[:], unwrapping(RoleRotate))
			if err != nil {
				return fmt.Errorf("unwrapping the probe key as it should be: %w", unlike(err))
			}
			defer func() { _ = raw.DestroyObject(session, key) }()
			return f(key)
		}
	}
	// own runs f with a wrapping key of the attacker's own.
	own := func(as []*pkcs11.Attribute, f func(key pkcs11.ObjectHandle) error) error {
		key, err := raw.GenerateKey(session, mechanism(pkcs11.CKM_AES_KEY_GEN), as)
		if err != nil {
			return fmt.Errorf("making a key of one's own: %w", unlike(err))
		}
		defer func() { _ = raw.DestroyObject(session, key) }()
		return f(key)
	}
	wrap := func(m []*pkcs11.Mechanism, by, key pkcs11.ObjectHandle) error {
		wrapped, err := raw.WrapKey(session, m, by, key)
		clear(wrapped)
		return err
	}

	add("wrapping a data key under an untrusted AES key", with(func(key pkcs11.ObjectHandle) error {
		return own(ownWrapping(), func(by pkcs11.ObjectHandle) error { return wrap(mechanism(pkcs11.CKM_AES_KEY_WRAP), by, key) })
	}))
	add("wrapping a data key under an untrusted RSA key", with(func(key pkcs11.ObjectHandle) error {
		as, err := ownRSA()
		if err != nil {
			return err
		}
		by, err := raw.CreateObject(session, as)
		if err != nil {
			return fmt.Errorf("bringing a public key: %w", unlike(err))
		}
		defer func() { _ = raw.DestroyObject(session, by) }()
		return wrap(oaep(), by, key)
	}))
	add("reading a data key", with(func(key pkcs11.ObjectHandle) error {
		as, err := raw.GetAttributeValue(session, key, []*pkcs11.Attribute{attribute(pkcs11.CKA_VALUE, nil)})
		if err == nil {
			clear(as[0].Value)
		}
		return err
	}))
	add("decrypting with a data key", with(func(key pkcs11.ObjectHandle) error {
		return raw.DecryptInit(session, mechanism(pkcs11.CKM_AES_ECB), key)
	}))
	add("freeing a data key from trusted keys", with(func(key pkcs11.ObjectHandle) error {
		return raw.SetAttributeValue(session, key, []*pkcs11.Attribute{attribute(pkcs11.CKA_WRAP_WITH_TRUSTED, false)})
	}))
	add("copying a data key free from trusted keys", with(func(key pkcs11.ObjectHandle) error {
		return tryCopy(raw, session, key, attribute(pkcs11.CKA_WRAP_WITH_TRUSTED, false))
	}))

	add("unwrapping a data key as a trusted key", func() error {
		return tryUnwrap(raw, session, kek, p, append([]*pkcs11.Attribute{trusted}, unwrapping(RoleRotate)...))
	})
	add("generating a trusted key", func() error {
		key, err := raw.GenerateKey(session, mechanism(pkcs11.CKM_AES_KEY_GEN), append(ownWrapping(), trusted))
		if err == nil {
			_ = raw.DestroyObject(session, key)
		}
		return err
	})
	add("setting TRUSTED on a key", func() error {
		return own(ownWrapping(), func(key pkcs11.ObjectHandle) error {
			return raw.SetAttributeValue(session, key, []*pkcs11.Attribute{trusted})
		})
	})
	add("copying a key as a trusted one", func() error {
		return own(ownWrapping(), func(key pkcs11.ObjectHandle) error { return tryCopy(raw, session, key, trusted) })
	})
	create := func(as []*pkcs11.Attribute) error {
		key, err := raw.CreateObject(session, append(as, trusted))
		if err == nil {
			_ = raw.DestroyObject(session, key)
		}
		return err
	}
	add("bringing a trusted AES key", func() error { return create(ownAES()) })
	add("bringing a trusted RSA key", func() error {
		as, err := ownRSA()
		if err != nil {
			return err
		}
		return create(as)
	})
	return list
}

// unlike hides a return code: a step on the way to an attack that was refused
// says nothing about the attack.
func unlike(err error) error { return errors.New(err.Error()) }

// ownWrapping is the template of a wrapping key that anybody may make.
func ownWrapping() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		attribute(pkcs11.CKA_VALUE_LEN, 32), attribute(pkcs11.CKA_TOKEN, false), attribute(pkcs11.CKA_WRAP, true)}
}

// ownAES is an AES key of known value.
func ownAES() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		attribute(pkcs11.CKA_VALUE, make([]byte, 32)), attribute(pkcs11.CKA_TOKEN, false), attribute(pkcs11.CKA_WRAP, true)}
}

// ownRSA is a public key to wrap to. Whether the token does, a number that
// nobody can factor tells as well as one that somebody made.
func ownRSA() ([]*pkcs11.Attribute, error) {
	n := make([]byte, 256)
	if _, err := rand.Read(n); err != nil {
		return nil, err
	}
	n[0] |= 0x80
	n[len(n)-1] |= 1
	return wrappingRSA(n), nil
}

// replace returns the list with some attributes exchanged in their place:
// the order matters to SoftHSM.
func replace(list []*pkcs11.Attribute, change ...*pkcs11.Attribute) []*pkcs11.Attribute {
	list = append([]*pkcs11.Attribute(nil), list...)
	for i := range list {
		for _, c := range change {
			if list[i].Type == c.Type {
				list[i] = c
			}
		}
	}
	return list
}

func tryUnwrap(raw *pkcs11.Ctx, session pkcs11.SessionHandle, kek pkcs11.ObjectHandle, p probe, as []*pkcs11.Attribute) error {
	h, err := raw.UnwrapKey(session, mechanism(pkcs11.CKM_AES_KEY_WRAP), kek, p.wrapped[:], as)
	if err == nil {
		_ = raw.DestroyObject(session, h)
	}
	return err
}

func tryCopy(raw *pkcs11.Ctx, session pkcs11.SessionHandle, kek pkcs11.ObjectHandle, gain *pkcs11.Attribute) error {
	h, err := raw.CopyObject(session, kek, []*pkcs11.Attribute{attribute(pkcs11.CKA_TOKEN, false), gain})
	if err == nil {
		_ = raw.DestroyObject(session, h)
	}
	return err
}

// tryWrap makes a key that may wrap and wraps the KEK under it. A token that
// forbids to make one has refused as well.
func tryWrap(raw *pkcs11.Ctx, session pkcs11.SessionHandle, kek pkcs11.ObjectHandle) error {
	h, err := raw.GenerateKey(session, mechanism(pkcs11.CKM_AES_KEY_GEN), ownWrapping())
	if err != nil {
		return err
	}
	defer func() { _ = raw.DestroyObject(session, h) }()
	wrapped, err := raw.WrapKey(session, mechanism(pkcs11.CKM_AES_KEY_WRAP), h, kek)
	clear(wrapped)
	return err
}

// tryCiphers begins to use a KEK as a cipher in every way that would do: a token
// without one of them has not refused the others.
func tryCiphers(begin func(m []*pkcs11.Mechanism) error) error {
	iv := make([]byte, 16)
	var err error
	for _, m := range []*pkcs11.Mechanism{
		pkcs11.NewMechanism(pkcs11.CKM_AES_ECB, nil), pkcs11.NewMechanism(pkcs11.CKM_AES_CBC, iv), pkcs11.NewMechanism(pkcs11.CKM_AES_CBC_PAD, iv),
		pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_WRAP, nil), pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_WRAP_PAD, nil),
	} {
		if err = begin([]*pkcs11.Mechanism{m}); err == nil || !refused(err) {
			return err
		}
	}
	return err
}

// tryWrapping makes a key that may be wrapped and wraps it under the KEK. A
// token that forbids to make one has refused as well.
func tryWrapping(raw *pkcs11.Ctx, session pkcs11.SessionHandle, kek pkcs11.ObjectHandle) error {
	h, err := raw.GenerateKey(session, mechanism(pkcs11.CKM_AES_KEY_GEN), append(ownWrapping(), attribute(pkcs11.CKA_EXTRACTABLE, true)))
	if err != nil {
		return err
	}
	defer func() { _ = raw.DestroyObject(session, h) }()
	wrapped, err := raw.WrapKey(session, mechanism(pkcs11.CKM_AES_KEY_WRAP), kek, h)
	clear(wrapped)
	return err
}

// trySet takes the change back as far as the token allows; the KEK is refused
// either way.
func trySet(raw *pkcs11.Ctx, session pkcs11.SessionHandle, kek pkcs11.ObjectHandle, gain *pkcs11.Attribute) error {
	err := raw.SetAttributeValue(session, kek, []*pkcs11.Attribute{gain})
	if err == nil && len(gain.Value) == 1 {
		_ = raw.SetAttributeValue(session, kek, []*pkcs11.Attribute{attribute(gain.Type, gain.Value[0] == 0)})
	}
	return err
}
