package hsm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/pkcs11"
)

// sweep destroys every token object of a check, also of an earlier one.
func sweep(raw *pkcs11.Ctx, s pkcs11.SessionHandle) (n int, err error) {
	info, err := raw.GetSessionInfo(s)
	if err != nil {
		return 0, named("C_GetSessionInfo", err)
	}
	if info.State != pkcs11.CKS_RW_USER_FUNCTIONS { // or private objects would only be invisible
		return 0, errors.New("the user is not logged in any more")
	}
	labels := []string{checkTransport, checkTransportRotate, checkSign, checkMAC}
	for _, r := range checkRoles {
		labels = append(labels, checkKEK+string(r))
	}
	var errs []error
	for _, label := range labels {
		found, err := find(raw, s, attribute(pkcs11.CKA_TOKEN, true), attribute(pkcs11.CKA_LABEL, label))
		if err != nil {
			return n, fmt.Errorf("looking for %s: %w", label, err)
		}
		for _, h := range found {
			if err := raw.DestroyObject(s, h); err != nil {
				errs = append(errs, fmt.Errorf("destroying %s: %w", label, err))
				continue
			}
			n++
		}
	}
	return n, firstError(errs...)
}

// makeSource makes a KEK that may leave the token, as keys create does, and a
// probe key under it.
func (c *checker) makeSource() (kek pkcs11.ObjectHandle, p probe, err error) {
	generate := func(mech, keyType uint, uses ...uint) (h pkcs11.ObjectHandle, err error) {
		as := append(append(session(keyType), usage(uses...)...), frozen()...)
		h, err = c.raw.GenerateKey(c.session, mechanism(mech), as)
		return h, named("C_GenerateKey", err)
	}
	err = c.in("making a KEK and a probe key (C_GenerateKey, C_WrapKey, C_Encrypt)", func() (err error) {
		if kek, err = generate(pkcs11.CKM_AES_KEY_GEN, pkcs11.CKK_AES, pkcs11.CKA_WRAP); err != nil {
			return err
		}
		if p, err = createProbe(c.login, 1, kek, generate); err == nil {
			c.vector = !c.ownIV
			return nil
		}
		// Without AES-GCM there is no vector, but still a key to unwrap.
		key, second := generate(pkcs11.CKM_AES_KEY_GEN, pkcs11.CKK_AES)
		if second != nil {
			return err
		}
		wrapped, second := c.raw.WrapKey(c.session, mechanism(pkcs11.CKM_AES_KEY_WRAP), kek, key)
		if second != nil || copy(p.wrapped[:], wrapped) != wrappedSize {
			return err
		}
		return nil
	})
	return kek, p, err
}

const errNoVector = notTried("there is no known vector: AES-GCM does not work, or not under the host's IV")

// wrappedSource is the KEK of all roles, as a ceremony's file holds it.
func (c *checker) wrappedSource(pair *transportPair, kek pkcs11.ObjectHandle) (wrapped []byte, err error) {
	err = c.in("C_WrapKey with RSA-OAEP", func() error {
		public, err := c.raw.CreateObject(c.session, wrappingRSA(pair.rsa.N.Bytes()))
		if err != nil {
			return named("C_CreateObject of a public key", err)
		}
		wrapped, err = c.raw.WrapKey(c.session, oaep(), public, kek)
		return named("C_WrapKey with RSA-OAEP", err)
	})
	return wrapped, err
}

func (c *checker) tryKEK(r Role) (finding, error) {
	pair, err := c.transport()
	if err != nil {
		return finding{}, err
	}
	if c.source == nil {
		kek, p, err := c.makeSource()
		if err != nil {
			return finding{}, err
		}
		wrapped, err := c.wrappedSource(pair, kek)
		if err != nil {
			return finding{}, err
		}
		c.source, c.probe = wrapped, p
	}
	as, release := kek(r, checkKEK+string(r), time.Now())
	defer release()
	if c.limits.weaken != nil {
		as = c.limits.weaken(as)
	}
	unwrap := func(as []*pkcs11.Attribute) (h pkcs11.ObjectHandle, err error) {
		err = c.in("C_UnwrapKey with RSA-OAEP", func() (err error) {
			h, err = c.raw.UnwrapKey(c.session, oaep(), pair.private, c.source, as)
			return named("C_UnwrapKey with RSA-OAEP", err)
		})
		return h, err
	}
	h, err := unwrap(as)
	if err == nil {
		c.keks[r] = h
		if r == RoleMint {
			_, err = c.mints()
		}
		return finding{found: "imported with all its attributes"}, err
	}
	if errors.Is(err, errAbandoned) {
		return finding{}, err
	}
	// Which attribute is it? Tried without each, as session objects.
	var culprits []string
	for _, a := range []struct {
		name  string
		types []uint
	}{
		{"CKA_UNWRAP_TEMPLATE", []uint{pkcs11.CKA_UNWRAP_TEMPLATE}},
		{"CKA_ALLOWED_MECHANISMS", []uint{pkcs11.CKA_ALLOWED_MECHANISMS}},
		{"CKA_COPYABLE", []uint{pkcs11.CKA_COPYABLE}},
		{"CKA_MODIFIABLE", []uint{pkcs11.CKA_MODIFIABLE}},
		{"CKA_COPYABLE and CKA_MODIFIABLE", []uint{pkcs11.CKA_COPYABLE, pkcs11.CKA_MODIFIABLE}},
	} {
		less := slices.DeleteFunc(replace(as, attribute(pkcs11.CKA_TOKEN, false)), func(x *pkcs11.Attribute) bool { return slices.Contains(a.types, x.Type) })
		if _, err := unwrap(less); errors.Is(err, errAbandoned) {
			return finding{}, err
		} else if err == nil {
			culprits = append(culprits, a.name)
		}
	}
	found := ckr(err)
	if len(culprits) > 0 {
		found += "; it works without " + strings.Join(culprits, ", or without ")
	}
	return finding{result: CheckFail, found: found}, nil
}

// attackResult is what one attack on one role's KEK came to.
type attackResult struct {
	role Role
	name string
	err  error
}

// attackKind says which requirement an attack is of.
func attackKind(name string) string {
	switch {
	case strings.HasPrefix(name, "unwrapping "):
		return "unwrap-template"
	case strings.HasPrefix(name, "setting "):
		return "modifiable"
	case strings.HasPrefix(name, "copying "):
		return "copyable"
	case strings.HasPrefix(name, "reading "), strings.HasPrefix(name, "wrapping "):
		return "sensitive"
	}
	return "allowed-mechanisms"
}

// attackAll runs the start-up attacks on a role's KEK, each on a session of its
// own, for one that succeeds spoils it.
func (c *checker) attackAll(r Role, p probe) ([]attackResult, error) {
	kek := c.keks[r]
	var results []attackResult
	for i := range attacks(c.raw, 0, r, kek, p) {
		var result attackResult
		if err := c.in("an attack on the KEK", func() error {
			s, err := c.login.open()
			if err != nil {
				return err
			}
			a := attacks(c.raw, s, r, kek, p)[i]
			result = attackResult{r, a.name, a.run()}
			return c.raw.CloseSession(s)
		}); err != nil {
			return nil, err
		}
		results = append(results, result)
	}
	return results, nil
}

func (c *checker) tryAttacks(id string) (finding, error) {
	if c.attacks == nil {
		c.attacks = map[string][]attackResult{}
		for _, r := range servedKEK {
			if c.keks[r] == 0 {
				continue
			}
			results, err := c.attackAll(r, c.probe)
			if err != nil {
				return finding{}, err
			}
			for _, a := range results {
				kind := attackKind(a.name)
				c.attacks[kind] = append(c.attacks[kind], a)
			}
		}
	}
	if len(c.attacks[id]) == 0 {
		return finding{}, notTried("there is no KEK to attack")
	}
	return judge(c.attacks[id])
}

// judge is the finding of some attacks.
func judge(results []attackResult) (finding, error) {
	var wrong []string
	var roles []Role
	for _, a := range results {
		switch {
		case a.err == nil:
			wrong = append(wrong, fmt.Sprintf("%s (%s) succeeded", a.name, a.role))
		case !refused(a.err):
			wrong = append(wrong, fmt.Sprintf("%s (%s) could not be judged: %s", a.name, a.role, ckr(a.err)))
		default:
			continue
		}
		if !slices.Contains(roles, a.role) {
			roles = append(roles, a.role)
		}
	}
	if len(wrong) > 0 {
		return finding{result: CheckFail, found: strings.Join(wrong, "; "), roles: roles}, nil
	}
	return finding{found: fmt.Sprintf("%d attacks refused", len(results))}, nil
}

func (c *checker) tryTransportTemplate() (finding, error) {
	pair, err := c.transport()
	if err != nil {
		return finding{}, err
	}
	if !pair.nested {
		return finding{}, notTried("the transport key has no unwrap template")
	}
	if c.source == nil {
		return finding{}, notTried("there is no wrapped KEK")
	}
	lax := func(changes ...*pkcs11.Attribute) func(pkcs11.SessionHandle) error {
		as := replace(append(append(session(pkcs11.CKK_AES), usage()...), frozen()...), changes...)
		as = slices.DeleteFunc(as, func(a *pkcs11.Attribute) bool { return a.Type == pkcs11.CKA_VALUE_LEN })
		return func(s pkcs11.SessionHandle) error {
			h, err := c.raw.UnwrapKey(s, oaep(), pair.private, c.source, as)
			if err == nil {
				_ = c.raw.DestroyObject(s, h)
			}
			return err
		}
	}
	happened, err := c.attempts([]attempt{
		{"unwrapping the KEK extractable", lax()},
		{"unwrapping the KEK readable", lax(attribute(pkcs11.CKA_SENSITIVE, false), attribute(pkcs11.CKA_EXTRACTABLE, false))},
		{"unwrapping the KEK copyable", lax(attribute(pkcs11.CKA_EXTRACTABLE, false), attribute(pkcs11.CKA_COPYABLE, true))},
	})
	return stolenFinding(happened, nil, "refused"), err
}

// dataKeys unwraps n data keys on a session.
func (c *checker) dataKeys(s pkcs11.SessionHandle, r Role, n int) (keys []uint64, err error) {
	kek, ok := c.keks[r]
	if !ok {
		return nil, notTried("there is no KEK of the role " + string(r))
	}
	t := newTemplate(unwrapping(r))
	defer t.free() // not before the call is back
	items := make([]unwrapItem, n)
	for i := range items {
		items[i] = unwrapItem{kek: cUint64(kek), rv: notRun, wrapped_len: wrappedSize}
	}
	wrapped := c.probe.wrapped
	err = c.in("C_UnwrapKey", func() error {
		c.shim.unwrap(s, items, wrapped[:], t)
		for i := range items {
			if items[i].rv != 0 {
				return named("C_UnwrapKey", pkcs11.Error(items[i].rv))
			}
			keys = append(keys, uint64(items[i].key))
		}
		return nil
	})
	return keys, err
}

func (c *checker) dataKey(s pkcs11.SessionHandle, r Role) (pkcs11.ObjectHandle, error) {
	keys, err := c.dataKeys(s, r, 1)
	if err != nil {
		return 0, err
	}
	return pkcs11.ObjectHandle(keys[0]), nil
}

// mints makes and wraps a data key.
func (c *checker) mints() (wrapped [wrappedSize]byte, err error) {
	t := newTemplate(minting())
	defer t.free()
	err = c.in("C_GenerateKey or C_WrapKey", func() error {
		return named("C_GenerateKey or C_WrapKey", c.shim.mint(c.s, c.keks[RoleMint], t, wrapped[:]))
	})
	return wrapped, err
}

// opens decrypts the probe's vector.
func (c *checker) opens(s pkcs11.SessionHandle, key pkcs11.ObjectHandle) error {
	if !c.vector {
		return errNoVector
	}
	out, _, err := c.gcm(s, false, key, c.probe.iv[:], []byte(probeAAD), c.probe.ciphertext[:], tagSize)
	if err == nil && string(out) != probePlaintext {
		return errors.New("a known ciphertext comes out otherwise")
	}
	return err
}

func (c *checker) tryCallerTemplate() (finding, error) {
	kek := c.keks[RoleOpen]
	if kek == 0 {
		return finding{}, notTried("there is no KEK of the open role")
	}
	unwrap := func(as []*pkcs11.Attribute) (h pkcs11.ObjectHandle, err error) {
		err = c.in("C_UnwrapKey", func() (err error) {
			h, err = c.raw.UnwrapKey(c.s, mechanism(pkcs11.CKM_AES_KEY_WRAP), kek, c.probe.wrapped[:], as)
			return named("C_UnwrapKey", err)
		})
		return h, err
	}
	h, err := unwrap(unwrapping(RoleOpen))
	if err != nil {
		return finding{}, err
	}
	if err := c.opens(c.s, h); err != nil {
		return finding{}, err
	}
	_, err = unwrap(append([]*pkcs11.Attribute{attribute(pkcs11.CKA_VALUE_LEN, 32)}, unwrapping(RoleOpen)...))
	if errors.Is(err, errAbandoned) {
		return finding{}, err
	}
	c.quirk("refuses-value-len", err != nil)
	least, err := unwrap([]*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES), attribute(pkcs11.CKA_TOKEN, false)})
	if errors.Is(err, errAbandoned) {
		return finding{}, err
	}
	c.quirk("repeats-template", err != nil)
	if err != nil {
		return finding{found: "accepted whole; what is left out is answered " + ckr(err)}, nil
	}
	happened, err := c.keyAttempts(RoleOpen, least)
	return stolenFinding(happened, []Role{RoleOpen, RoleSeal}, "accepted whole; what is left out is filled in from the KEK's"), err
}

func (c *checker) tryOrder() (finding, error) {
	kek := c.keks[RoleOpen]
	if kek == 0 {
		return finding{}, notTried("there is no KEK of the open role")
	}
	unwrap := func(as []*pkcs11.Attribute) error {
		return c.in("C_UnwrapKey", func() error {
			_, err := c.raw.UnwrapKey(c.s, mechanism(pkcs11.CKM_AES_KEY_WRAP), kek, c.probe.wrapped[:], as)
			return named("C_UnwrapKey", err)
		})
	}
	last := unwrapping(RoleOpen)
	if err := unwrap(last); err != nil {
		return finding{}, err
	}
	err := unwrap(slices.Concat(frozen(), last[:len(last)-len(frozen())]))
	if errors.Is(err, errAbandoned) {
		return finding{}, err
	}
	c.quirk("attribute-order", err != nil)
	if err != nil {
		return finding{found: "it matters: with CKA_MODIFIABLE=false first, " + ckr(err)}, nil
	}
	return finding{found: "does not matter"}, nil
}

// keyAttempts tries to get more from a data key than its role may.
func (c *checker) keyAttempts(r Role, key pkcs11.ObjectHandle) ([]string, error) {
	other := func(s pkcs11.SessionHandle) error {
		p := pkcs11.NewGCMParams(make([]byte, ivSize), nil, tagSize*8)
		defer p.Free()
		m := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, p)}
		if r == RoleSeal {
			return c.raw.DecryptInit(s, m, key)
		}
		return c.raw.EncryptInit(s, m, key)
	}
	use := uint(pkcs11.CKA_ENCRYPT)
	if r == RoleSeal {
		use = pkcs11.CKA_DECRYPT
	}
	return c.attempts([]attempt{
		{"reading a data key", func(s pkcs11.SessionHandle) error { return tryRead(c.raw, s, key) }},
		{"wrapping a data key", func(s pkcs11.SessionHandle) error { return tryWrap(c.raw, s, key) }},
		{"making a data key extractable", func(s pkcs11.SessionHandle) error {
			return trySet(c.raw, s, key, attribute(pkcs11.CKA_EXTRACTABLE, true))
		}},
		{"making a data key readable", func(s pkcs11.SessionHandle) error {
			return trySet(c.raw, s, key, attribute(pkcs11.CKA_SENSITIVE, false))
		}},
		{"giving a data key the other direction", func(s pkcs11.SessionHandle) error { return trySet(c.raw, s, key, attribute(use, true)) }},
		{"copying a data key extractable", func(s pkcs11.SessionHandle) error {
			return tryCopy(c.raw, s, key, attribute(pkcs11.CKA_EXTRACTABLE, true))
		}},
		{"copying a data key for the other direction", func(s pkcs11.SessionHandle) error { return tryCopy(c.raw, s, key, attribute(use, true)) }},
		{"using a data key in the other direction", other},
		{"using a data key with ECB", func(s pkcs11.SessionHandle) error {
			if r == RoleSeal {
				return c.raw.EncryptInit(s, mechanism(pkcs11.CKM_AES_ECB), key)
			}
			return c.raw.DecryptInit(s, mechanism(pkcs11.CKM_AES_ECB), key)
		}},
	})
}

func (c *checker) tryDataKey() (finding, error) {
	var happened []string
	var roles []Role
	tried := 0
	for _, r := range []Role{RoleOpen, RoleSeal} {
		key, err := c.dataKey(c.s, r)
		var n notTried
		if errors.As(err, &n) {
			continue
		}
		if err != nil {
			return finding{}, err
		}
		tried++
		got, err := c.keyAttempts(r, key)
		if err != nil {
			return finding{}, err
		}
		for _, name := range got {
			happened = append(happened, fmt.Sprintf("%s (%s)", name, r))
			if !slices.Contains(roles, r) {
				roles = append(roles, r)
			}
		}
	}
	if tried == 0 {
		return finding{}, notTried("there is no KEK to unwrap a data key with")
	}
	return stolenFinding(happened, roles, "all attempts refused"), nil
}

func (c *checker) tryBadWrapped() (finding, error) {
	kek := c.keks[RoleOpen]
	if kek == 0 {
		return finding{}, notTried("there is no KEK of the open role")
	}
	bad := c.probe.wrapped
	bad[len(bad)-1] ^= 1
	t := newTemplate(unwrapping(RoleOpen))
	defer t.free()
	items := []unwrapItem{{kek: cUint64(kek), rv: notRun, wrapped_len: wrappedSize}}
	if err := c.in("C_UnwrapKey", func() error { c.shim.unwrap(c.s, items, bad[:], t); return nil }); err != nil {
		return finding{}, err
	}
	rv := uint(items[0].rv)
	f := finding{found: rvName(rv)}
	switch {
	case rv == 0:
		return finding{result: CheckFail, found: "a damaged key unwraps", means: "It does not authenticate."}, nil
	case classifyRV(rv) != classData:
		f.result = CheckFail
		return f, nil
	}
	if rv == pkcs11.CKR_GENERAL_ERROR || rv == pkcs11.CKR_FUNCTION_FAILED {
		c.quirk("general-error", true)
	}
	return f, nil
}

func (c *checker) tryWholePath() (finding, error) {
	for _, r := range []Role{RoleSeal, RoleOpen} {
		if c.keks[r] == 0 {
			return finding{}, notTried("there is no KEK of the role " + string(r))
		}
	}
	if !c.vector {
		return finding{}, errNoVector
	}
	wrapped, found := c.probe.wrapped, "what went in comes out (of a key that was not minted)"
	if c.keks[RoleMint] != 0 {
		var err error
		if wrapped, err = c.mints(); err != nil {
			return finding{}, err
		}
		found = "what went in comes out"
	}
	keys := map[Role]pkcs11.ObjectHandle{}
	for _, r := range []Role{RoleSeal, RoleOpen} {
		t := newTemplate(unwrapping(r))
		defer t.free()
		items := []unwrapItem{{kek: cUint64(c.keks[r]), rv: notRun, wrapped_len: wrappedSize}}
		if err := c.in("C_UnwrapKey", func() error {
			if c.shim.unwrap(c.s, items, wrapped[:], t); items[0].rv != 0 {
				return named("C_UnwrapKey", pkcs11.Error(items[0].rv))
			}
			return nil
		}); err != nil {
			return finding{}, err
		}
		keys[r] = pkcs11.ObjectHandle(items[0].key)
	}
	text, aad := []byte("from mint to seal to open"), []byte(checkPrefix)
	sealed, iv, err := c.encrypt(keys[RoleSeal], randomBytes(ivSize), aad, text)
	if err != nil {
		return finding{}, err
	}
	out, _, err := c.gcm(c.s, false, keys[RoleOpen], iv, aad, sealed, tagSize)
	if err == nil && !bytes.Equal(out, text) {
		return finding{result: CheckFail, found: "something else comes out than went in"}, nil
	}
	return finding{found: found}, err
}

// tryTrusted goes the way of a rotate token's KEK: by OAEP to the user, under
// a carrier key to the officer, from there as a trusted key to the token.
func (c *checker) tryTrusted() (finding, error) {
	if c.SOPINFile == "" {
		return finding{result: CheckLeftOut, found: "needs --so-pin-file"}, nil
	}
	l, s := c.login, c.session
	var by pkcs11.ObjectHandle
	if err := c.in("C_Login of the security officer", func() error {
		return l.officer(c.Token, c.SOPINFile, func() (err error) {
			by, err = c.raw.GenerateKey(s, mechanism(pkcs11.CKM_AES_KEY_GEN), carrier())
			return named("C_GenerateKey with CKA_TRUSTED by the security officer", err)
		})
	}); err != nil {
		var rv pkcs11.Error
		if errors.As(err, &rv) && uint(rv) == pkcs11.CKR_PIN_INCORRECT {
			return finding{result: CheckFail, found: fmt.Sprintf("the PIN of %s was presented once and not accepted, and is not tried again", c.SOPINFile), do: "Put the right PIN into the file."}, nil
		}
		return finding{}, err
	}
	pair, err := c.makeTransport(checkTransportRotate, RoleRotate)
	if err != nil {
		return finding{}, err
	}
	source, p, err := c.makeSource()
	if err != nil {
		return finding{}, err
	}
	wrapped, err := c.wrappedSource(pair, source)
	if err != nil {
		return finding{}, err
	}
	var public bool
	label := checkKEK + string(RoleRotate)
	if err := c.in("importing a trusted KEK (C_UnwrapKey, C_WrapKey, C_Login, C_CopyObject)", func() error {
		passing, err := c.raw.UnwrapKey(s, oaep(), pair.private, wrapped, passingThrough(pkcs11.CKK_AES))
		if err != nil {
			return named("C_UnwrapKey with CKA_WRAP_WITH_TRUSTED", err)
		}
		carried, err := c.raw.WrapKey(s, mechanism(pkcs11.CKM_AES_KEY_WRAP), by, passing)
		if err != nil {
			return named("C_WrapKey under a trusted key", err)
		}
		ceremony := Ceremony{Report: func(string) { public = true }} // trust reports nothing else
		if err := ceremony.trust(l, c.Token, by, carried, arrival{label: label, keyType: pkcs11.CKK_AES}, time.Now(), c.SOPINFile); err != nil {
			return named("making the KEK a trusted key", err)
		}
		c.keks[RoleRotate], err = findSecret(c.raw, s, label)
		return err
	}); err != nil {
		return finding{}, err
	}
	t := newTemplate(unwrapping(RoleRotate))
	defer t.free()
	items := []rewrapItem{{kek: cUint64(c.keks[RoleRotate]), rv: notRun, wrapped_len: wrappedSize}}
	var out [wrappedSize]byte
	if err := c.in("C_UnwrapKey or C_WrapKey", func() error {
		switch c.shim.rewrap(c.s, c.keks[RoleRotate], items, p.wrapped[:], out[:], t); {
		case items[0].rv == mismatch, items[0].rv == 0 && out != p.wrapped:
			return errors.New("a data key under the same KEK comes out otherwise")
		case items[0].rv != 0:
			return named("moving a data key to a trusted KEK", pkcs11.Error(items[0].rv))
		}
		return nil
	}); err != nil {
		return finding{}, err
	}
	results, err := c.attackAll(RoleRotate, p)
	if err != nil {
		return finding{}, err
	}
	f, err := judge(results)
	if public && f.result == "" {
		f.result = CheckLimited
		f.means = "The token keeps a trusted key only as a public object: the rotate KEK can be used there without a login."
		f.do = "Keep others away from this token by other means (network, client certificates of the HSM)."
	}
	return f, err
}

func (c *checker) tryNothingLeft() (finding, error) {
	if err := c.in("C_DestroyObject", func() error {
		if _, err := sweep(c.raw, c.session); err != nil {
			return err
		}
		n, err := sweep(c.raw, c.session)
		if n > 0 {
			return fmt.Errorf("%d objects labelled %s were still there after they had been destroyed", n, checkPrefix)
		}
		return err
	}); err != nil {
		return finding{}, err
	}
	return finding{found: "all that the check made is destroyed"}, nil
}
