package hsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kluis/cryptoserver/token"

	"github.com/miekg/pkcs11"
)

// keyInfo describes a key as it was found when the token was opened.
type keyInfo struct {
	label, kind string
	epoch       uint32
	made        time.Time
	attributes  []string
	uses        *atomic.Uint64
}

func (k keyInfo) report() token.Key {
	return token.Key{Label: k.label, Kind: k.kind, Epoch: k.epoch, MadeOn: k.made,
		Attributes: slices.Clone(k.attributes), Uses: k.uses.Load()}
}

// uses counts operations by key label, over all connections of a token.
type uses struct {
	mu sync.Mutex
	by map[string]*atomic.Uint64
}

func newUses() *uses { return &uses{by: map[string]*atomic.Uint64{}} }

func (u *uses) of(label string) *atomic.Uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	n, ok := u.by[label]
	if !ok {
		n = new(atomic.Uint64)
		u.by[label] = n
	}
	return n
}

// describe reads what the token says of the keys that were found.
func (c *conn) describe(session pkcs11.SessionHandle, u *uses) error {
	add := func(key pkcs11.ObjectHandle, k keyInfo) error {
		r := attributeReader{c.mod.raw, session, key}
		var err error
		if k.attributes, err = r.attributes(); err == nil {
			k.made, err = r.made()
		}
		if err != nil {
			return fmt.Errorf("reading the attributes of key %s on token %s: %w", k.label, c.label, err)
		}
		k.uses = u.of(k.label)
		c.uses[key] = k.uses
		c.keys = append(c.keys, k)
		return nil
	}
	for _, epoch := range c.epochs {
		if err := add(c.keks[epoch], keyInfo{label: kekLabel(epoch), kind: "kek", epoch: epoch}); err != nil {
			return err
		}
	}
	for _, label := range c.role.macs() {
		if err := add(c.macs[label], keyInfo{label: label, kind: "mac"}); err != nil {
			return err
		}
	}
	if label := c.role.signing(); label != "" {
		return add(c.signing, keyInfo{label: label, kind: "signing"})
	}
	return nil
}

// attributeReader reads attributes of one key, one by one: a token that does
// not know one would answer for none.
type attributeReader struct {
	raw     *pkcs11.Ctx
	session pkcs11.SessionHandle
	key     pkcs11.ObjectHandle
}

// value is nil when the token does not tell.
func (r attributeReader) value(t uint) ([]byte, error) {
	as, err := r.raw.GetAttributeValue(r.session, r.key, []*pkcs11.Attribute{attribute(t, nil)})
	var rv pkcs11.Error
	switch {
	case errors.As(err, &rv) && (rv == pkcs11.CKR_ATTRIBUTE_TYPE_INVALID || rv == pkcs11.CKR_ATTRIBUTE_SENSITIVE):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return as[0].Value, nil
}

// attributes says what the key may, and what it never may.
func (r attributeReader) attributes() ([]string, error) {
	said := []string{}
	for _, a := range []struct {
		attribute uint
		yes, no   string
	}{
		{pkcs11.CKA_UNWRAP, "unwrap", ""},
		{pkcs11.CKA_WRAP, "wrap", ""},
		{pkcs11.CKA_SIGN, "sign", ""},
		{pkcs11.CKA_ENCRYPT, "encrypt", ""},
		{pkcs11.CKA_DECRYPT, "decrypt", ""},
		{pkcs11.CKA_VERIFY, "verify", ""},
		{pkcs11.CKA_DERIVE, "derive", ""},
		{pkcs11.CKA_SENSITIVE, "sensitive", "readable"},
		{pkcs11.CKA_EXTRACTABLE, "extractable", "not extractable"},
		{pkcs11.CKA_MODIFIABLE, "modifiable", "not modifiable"},
		{pkcs11.CKA_COPYABLE, "copyable", "not copyable"},
		{pkcs11.CKA_TRUSTED, "trusted", ""},
		{pkcs11.CKA_PRIVATE, "", "usable without login"},
	} {
		v, err := r.value(a.attribute)
		if err != nil {
			return nil, err
		}
		word := a.no
		if len(v) == 1 && v[0] != 0 {
			word = a.yes
		}
		if len(v) == 1 && word != "" {
			said = append(said, word)
		}
	}
	v, err := r.value(pkcs11.CKA_ALLOWED_MECHANISMS)
	if err != nil {
		return nil, err
	}
	if len(v) == 8 {
		if name, ok := mechanismNames[uint(binary.NativeEndian.Uint64(v))]; ok {
			said = append(said, name+" only")
		}
	}
	return said, nil
}

var mechanismNames = map[uint]string{
	pkcs11.CKM_AES_KEY_WRAP: "AES key wrap",
	pkcs11.CKM_SHA256_HMAC:  "HMAC-SHA-256",
	pkcs11.CKM_ECDSA:        "ECDSA",
}

// made is the day in the key's CKA_ID; the zero time when there is none.
func (r attributeReader) made() (time.Time, error) {
	id, err := r.value(pkcs11.CKA_ID)
	return madeOn(id), err
}
