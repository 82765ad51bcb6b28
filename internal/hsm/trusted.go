package hsm

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/miekg/pkcs11"
)

// errSOPIN: something that only the security officer may do.
var errSOPIN = errors.New("a rotate token is configured, and only its security officer can vouch for its KEK: name a file with the officer's PIN (--so-pin-file)")

// officer runs f with the security officer logged in instead of the user.
// Session objects with CKA_PRIVATE=false outlive the change, all others do not.
func (l *login) officer(t Token, soPINFile string, f func() error) (err error) {
	soPIN, err := readPIN(soPINFile)
	if err != nil {
		return err
	}
	pin, err := readPIN(t.PINFile)
	if err != nil {
		return err
	}
	raw := l.mod.raw
	info, err := raw.GetTokenInfo(l.slot)
	if err != nil {
		return fmt.Errorf("reading its flags: %w", err)
	}
	if info.Flags&(pkcs11.CKF_SO_PIN_LOCKED|pkcs11.CKF_SO_PIN_FINAL_TRY) != 0 {
		return fmt.Errorf("%w: the token says that the security officer's PIN is locked, or is by one more wrong try", errPIN)
	}
	if err := raw.Logout(l.session); err != nil {
		return fmt.Errorf("logging the user out: %w", err)
	}
	defer func() { err = firstError(err, l.present(pin)) }()
	if err := raw.Login(l.session, pkcs11.CKU_SO, soPIN); err != nil {
		return fmt.Errorf("logging in as security officer: %w", err)
	}
	defer func() { err = firstError(err, raw.Logout(l.session)) }()
	return f()
}

// onlyTrusted refuses a rotate token that keeps a trusted key beside its KEKs:
// whoever knows that one's value, or its private key, needs only the PIN to wrap
// every data key under it. As findKEKs, it looks again at what may be the copy
// of an attack.
func onlyTrusted(raw *pkcs11.Ctx, session pkcs11.SessionHandle, keks map[uint32]pkcs11.ObjectHandle) error {
	for pause := 5 * time.Millisecond; ; pause *= 4 {
		err := lookForTrusted(raw, session, keks)
		if !errors.Is(err, ErrWeakKEK) || pause > time.Second/2 {
			return err
		}
		time.Sleep(pause)
	}
}

func lookForTrusted(raw *pkcs11.Ctx, session pkcs11.SessionHandle, keks map[uint32]pkcs11.ObjectHandle) error {
	for _, class := range []uint{pkcs11.CKO_SECRET_KEY, pkcs11.CKO_PUBLIC_KEY} {
		found, err := find(raw, session, attribute(pkcs11.CKA_CLASS, class), attribute(pkcs11.CKA_TOKEN, true),
			attribute(pkcs11.CKA_TRUSTED, true), attribute(pkcs11.CKA_WRAP, true))
		if err != nil {
			return fmt.Errorf("looking for trusted keys: %w", err)
		}
		for _, h := range found {
			if !slices.Contains(slices.Collect(maps.Values(keks)), h) {
				return fmt.Errorf("%w: the token holds a trusted key that is none of its KEKs, and data keys can be wrapped out under it; "+
					"find out which security officer made it, and destroy it", ErrWeakKEK)
			}
		}
	}
	return nil
}

// carrier is the template of a session key that brings keys from the user's
// session to the officer's, who sees no private object and so not the
// transport key.
func carrier() []*pkcs11.Attribute {
	as := []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		attribute(pkcs11.CKA_VALUE_LEN, 32),
		attribute(pkcs11.CKA_TOKEN, false),
		attribute(pkcs11.CKA_PRIVATE, false),
		attribute(pkcs11.CKA_SENSITIVE, true),
		attribute(pkcs11.CKA_EXTRACTABLE, false),
		attribute(pkcs11.CKA_TRUSTED, true),
	}
	as = append(as, usage(pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP)...)
	as = append(as, allowed(pkcs11.CKM_AES_KEY_WRAP))
	return append(as, frozen()...)
}

// passingThrough is the template of a key between transport key and carrier.
// Whoever holds the PIN and a wrapped file while the ceremony lasts gets no
// more than this: a key that nothing but a trusted key can wrap.
func passingThrough(keyType uint) []*pkcs11.Attribute {
	as := []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attribute(pkcs11.CKA_KEY_TYPE, keyType),
		attribute(pkcs11.CKA_PRIVATE, true),
	}
	return append(as, arriving(RoleRotate)...)
}

// importTrusted brings keys onto a rotate token. CKA_TRUSTED can be given to a
// key only by the security officer and only when it comes to be; the officer
// cannot see or make private objects; and a key that is not private lies in
// clear in SoftHSM's files and is used there without a login. So the officer
// makes a carrier key, the user wraps what came under it, the officer unwraps
// the KEK as a trusted session object, and the user copies that to a private
// token object. Between these steps it is nowhere but inside the module.
func (c Ceremony) importTrusted(l *login, t Token, keys []arrival, day time.Time, soPINFile string) error {
	raw, s := l.mod.raw, l.session
	var by pkcs11.ObjectHandle
	if err := l.officer(t, soPINFile, func() (err error) {
		by, err = raw.GenerateKey(s, mechanism(pkcs11.CKM_AES_KEY_GEN), carrier())
		return err
	}); err != nil {
		return fmt.Errorf("making a carrier key: %w", err)
	}
	defer func() { _ = raw.DestroyObject(s, by) }() // or it dies with the session
	for _, k := range keys {
		// Logging in again may have given the transport key another handle.
		transport, err := findPair(raw, s, pkcs11.CKO_PRIVATE_KEY, labelTransport)
		if err != nil {
			return err
		}
		passing, err := raw.UnwrapKey(s, oaep(), transport, k.wrapped, passingThrough(k.keyType))
		if err != nil {
			return fmt.Errorf("unwrapping %s: %w", k.label, err)
		}
		carried, err := raw.WrapKey(s, mechanism(pkcs11.CKM_AES_KEY_WRAP), by, passing)
		if err := firstError(err, raw.DestroyObject(s, passing)); err != nil {
			return fmt.Errorf("wrapping %s under the carrier key: %w", k.label, err)
		}
		if k.keyType == pkcs11.CKK_AES {
			err = c.trust(l, t, by, carried, k, day, soPINFile)
		} else {
			_, err = raw.UnwrapKey(s, mechanism(pkcs11.CKM_AES_KEY_WRAP), by, carried, macKey(k.label, day))
		}
		if err != nil {
			return fmt.Errorf("importing %s: %w", k.label, err)
		}
		c.report("token %s: %s imported", l.label, k.label)
	}
	return nil
}

// trust makes a carried KEK a trusted key of the token.
func (c Ceremony) trust(l *login, t Token, by pkcs11.ObjectHandle, carried []byte, k arrival, day time.Time, soPINFile string) error {
	raw, s := l.mod.raw, l.session
	as, release := k.template(RoleRotate, day)
	defer release()
	as = replace(as, attribute(pkcs11.CKA_PRIVATE, false))
	var loose pkcs11.ObjectHandle
	if err := l.officer(t, soPINFile, func() (err error) {
		// It stays in the session, to be copied: so nothing is frozen yet.
		short := replace(as, attribute(pkcs11.CKA_TOKEN, false))
		loose, err = raw.UnwrapKey(s, mechanism(pkcs11.CKM_AES_KEY_WRAP), by, carried, short[:len(short)-len(frozen())])
		return err
	}); err != nil {
		return err
	}
	defer func() { _ = raw.DestroyObject(s, loose) }()

	home := []*pkcs11.Attribute{attribute(pkcs11.CKA_TOKEN, true), attribute(pkcs11.CKA_PRIVATE, true)}
	for _, end := range [][]*pkcs11.Attribute{
		frozen(),
		{attribute(pkcs11.CKA_MODIFIABLE, false)}, // SoftHSM lets no copy become uncopyable; a copy of this has its limits
	} {
		_, err := raw.CopyObject(s, loose, append(home[:len(home):len(home)], end...))
		if err == nil {
			return nil
		}
		if !refused(err) {
			return err
		}
	}
	if err := l.officer(t, soPINFile, func() error {
		_, err := raw.UnwrapKey(s, mechanism(pkcs11.CKM_AES_KEY_WRAP), by, carried, as)
		return err
	}); err != nil {
		return err
	}
	c.report("token %s: it keeps a trusted key only as a public object, so %s can be used there without a login", l.label, k.label)
	return nil
}
