package hsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/pkcs11"
)

// Role is what a token is for.
type Role string

// The roles.
const (
	RoleOpen   Role = "open"   // unwraps data keys to decrypt
	RoleSeal   Role = "seal"   // unwraps data keys to encrypt; MACs; the seal key
	RoleMint   Role = "mint"   // makes and wraps data keys; record MAC
	RoleRotate Role = "rotate" // moves data keys from one KEK to another; record MAC
	RoleSign   Role = "sign"   // the access-token key
)

// Roles lists all roles in their fixed order.
func Roles() []Role { return []Role{RoleOpen, RoleSeal, RoleMint, RoleRotate, RoleSign} }

func (r Role) hasKEK() bool { return r != RoleSign }

// unwraps says whether the role's KEK enforces a template on what it unwraps.
func (r Role) unwraps() bool { return r.hasKEK() && r != RoleMint }

// macs are the labels of the MAC keys the role holds.
func (r Role) macs() []string {
	switch r {
	case RoleSeal:
		return []string{labelContentMAC, labelRecordMAC, labelIndexMAC}
	case RoleMint, RoleRotate:
		return []string{labelRecordMAC}
	}
	return nil
}

// signing is the label of the role's signing key, or "".
func (r Role) signing() string {
	switch r {
	case RoleSeal:
		return "kluis/seal"
	case RoleSign:
		return "kluis/token"
	}
	return ""
}

// Labels of the objects on a token.
const (
	labelKEK        = "kluis/kek/" // and the epoch in decimal
	labelContentMAC = "kluis/mac/content"
	labelRecordMAC  = "kluis/mac/record"
	labelIndexMAC   = "kluis/mac/index"
	labelTransport  = "kluis/transport"
)

func kekLabel(epoch uint32) string { return labelKEK + strconv.FormatUint(uint64(epoch), 10) }

func parseKEKLabel(label string) (uint32, bool) {
	s, ok := strings.CutPrefix(label, labelKEK)
	if !ok {
		return 0, false
	}
	epoch, err := strconv.ParseUint(s, 10, 32)
	if err != nil || epoch == 0 || s[0] == '0' || s[0] == '+' {
		return 0, false
	}
	return uint32(epoch), true
}

func attribute(t uint, v any) *pkcs11.Attribute { return pkcs11.NewAttribute(t, v) }

func mechanism(m uint) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, nil)}
}

// allowed is CKA_ALLOWED_MECHANISMS with one mechanism.
func allowed(m uint) *pkcs11.Attribute {
	return attribute(pkcs11.CKA_ALLOWED_MECHANISMS, binary.NativeEndian.AppendUint64(nil, uint64(m)))
}

// frozen ends every template of a key that must stay as it is. SoftHSM
// applies attributes in order and refuses all after MODIFIABLE=false, so it
// is the last.
func frozen() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{attribute(pkcs11.CKA_COPYABLE, false), attribute(pkcs11.CKA_MODIFIABLE, false)}
}

// usage sets the named uses of a secret key and denies all others.
func usage(uses ...uint) []*pkcs11.Attribute {
	all := []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP,
		pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY, pkcs11.CKA_DERIVE}
	var as []*pkcs11.Attribute
	for _, u := range all {
		on := false
		for _, x := range uses {
			on = on || x == u
		}
		as = append(as, attribute(u, on))
	}
	return as
}

// dataKey is the template under which a role unwraps data keys: enforced by
// the KEK's CKA_UNWRAP_TEMPLATE and presented at each unwrap.
func dataKey(r Role) []*pkcs11.Attribute {
	as := []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		attribute(pkcs11.CKA_TOKEN, false),
		attribute(pkcs11.CKA_SENSITIVE, true),
	}
	switch r {
	case RoleRotate: // nothing but to be wrapped, by a key the security officer vouches for
		as = append(as, passing()...)
	case RoleSeal:
		as = append(as, attribute(pkcs11.CKA_EXTRACTABLE, false))
		as = append(as, usage(pkcs11.CKA_ENCRYPT)...)
		as = append(as, allowed(pkcs11.CKM_AES_GCM))
	default:
		as = append(as, attribute(pkcs11.CKA_EXTRACTABLE, false))
		as = append(as, usage(pkcs11.CKA_DECRYPT)...)
		as = append(as, allowed(pkcs11.CKM_AES_GCM))
	}
	return append(as, frozen()...)
}

// passing is what a key may do that only passes through a token: be wrapped
// by a trusted key.
func passing() []*pkcs11.Attribute {
	return append([]*pkcs11.Attribute{attribute(pkcs11.CKA_EXTRACTABLE, true), attribute(pkcs11.CKA_WRAP_WITH_TRUSTED, true)}, usage()...)
}

// unwrapping is dataKey as the caller presents it.
func unwrapping(r Role) []*pkcs11.Attribute {
	return append([]*pkcs11.Attribute{attribute(pkcs11.CKA_PRIVATE, false)}, dataKey(r)...)
}

// minting is the template of a data key for the moment between its making
// and its wrapping. It can do nothing but be wrapped.
func minting() []*pkcs11.Attribute {
	as := []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		attribute(pkcs11.CKA_VALUE_LEN, 32),
		attribute(pkcs11.CKA_TOKEN, false),
		attribute(pkcs11.CKA_PRIVATE, false),
		attribute(pkcs11.CKA_SENSITIVE, true),
		attribute(pkcs11.CKA_EXTRACTABLE, true),
	}
	as = append(as, usage()...)
	return append(as, frozen()...)
}

// secret begins the template of a secret key at home on a token.
func secret(label string, keyType uint, day time.Time) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attribute(pkcs11.CKA_KEY_TYPE, keyType),
		attribute(pkcs11.CKA_TOKEN, true),
		attribute(pkcs11.CKA_PRIVATE, true),
		attribute(pkcs11.CKA_LABEL, label),
		attribute(pkcs11.CKA_ID, keyID(label, day)),
		attribute(pkcs11.CKA_SENSITIVE, true),
		attribute(pkcs11.CKA_EXTRACTABLE, false),
	}
}

// keyID is the CKA_ID of a key: its label and the day it was made, UTC. Tokens
// enforce CKA_START_DATE or not as they like, and SoftHSM cannot read that of
// a private key back.
func keyID(label string, day time.Time) []byte {
	return []byte(label + " " + day.UTC().Format(time.DateOnly))
}

// madeOn reads the day out of a CKA_ID; the zero time when it is not of keyID.
func madeOn(id []byte) time.Time {
	_, day, _ := strings.Cut(string(id), " ")
	t, err := time.Parse(time.DateOnly, day)
	if err != nil {
		return time.Time{}
	}
	return t
}

// kek is the template of a KEK at home on a token of this role. release frees
// the nested template once the key exists.
func kek(r Role, label string, day time.Time) (as []*pkcs11.Attribute, release func()) {
	as = secret(label, pkcs11.CKK_AES, day)
	release = func() {}
	switch r {
	case RoleMint:
		as = append(as, usage(pkcs11.CKA_WRAP)...)
	case RoleRotate:
		as = append(as, usage(pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP)...)
		as = append(as, attribute(pkcs11.CKA_TRUSTED, true)) // only the security officer can say so
	default:
		as = append(as, usage(pkcs11.CKA_UNWRAP)...)
	}
	if r.unwraps() {
		nested := newTemplate(dataKey(r))
		release = nested.free
		as = append(as, attribute(pkcs11.CKA_UNWRAP_TEMPLATE, nested.bytes()))
	}
	as = append(as, allowed(pkcs11.CKM_AES_KEY_WRAP))
	return append(as, frozen()...), release
}

// macKey is the template of a MAC key at home on a token.
func macKey(label string, day time.Time) []*pkcs11.Attribute {
	as := append(secret(label, pkcs11.CKK_GENERIC_SECRET, day), usage(pkcs11.CKA_SIGN)...)
	as = append(as, allowed(pkcs11.CKM_SHA256_HMAC))
	return append(as, frozen()...)
}

// find lists the objects that match, on a session without an active search.
func find(raw *pkcs11.Ctx, session pkcs11.SessionHandle, as ...*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	if err := raw.FindObjectsInit(session, as); err != nil {
		return nil, err
	}
	var all []pkcs11.ObjectHandle
	for {
		found, _, err := raw.FindObjects(session, 64)
		if err != nil || len(found) == 0 {
			return all, firstError(err, raw.FindObjectsFinal(session))
		}
		all = append(all, found...)
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// findSecret finds the one secret token key of this label; 0 when there is none.
func findSecret(raw *pkcs11.Ctx, session pkcs11.SessionHandle, label string) (pkcs11.ObjectHandle, error) {
	found, err := find(raw, session, attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attribute(pkcs11.CKA_TOKEN, true), attribute(pkcs11.CKA_LABEL, label))
	switch {
	case err != nil:
		return 0, fmt.Errorf("looking for key %s: %w", label, err)
	case len(found) == 0:
		return 0, nil
	case len(found) > 1:
		return 0, fmt.Errorf("%w: %d keys are named %s; which is right cannot be told, so initialise the token anew and import again", errKeys, len(found), label)
	}
	return found[0], nil
}

// findKEKs finds the KEKs of all epochs. While another connection of this
// process attacks the token, SoftHSM shows the copy of a KEK that it is about
// to refuse, for a moment; so what is there twice is looked at again.
func findKEKs(raw *pkcs11.Ctx, session pkcs11.SessionHandle) (map[uint32]pkcs11.ObjectHandle, error) {
	for pause := 5 * time.Millisecond; ; pause *= 4 {
		keks, err := lookForKEKs(raw, session)
		if !errors.Is(err, errTwice) || pause > time.Second/2 {
			return keks, err
		}
		time.Sleep(pause)
	}
}

var errTwice = fmt.Errorf("%w: two KEKs of one epoch", errKeys)

func lookForKEKs(raw *pkcs11.Ctx, session pkcs11.SessionHandle) (map[uint32]pkcs11.ObjectHandle, error) {
	found, err := find(raw, session, attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attribute(pkcs11.CKA_TOKEN, true), attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES))
	if err != nil {
		return nil, fmt.Errorf("looking for KEKs: %w", err)
	}
	keks := map[uint32]pkcs11.ObjectHandle{}
	for _, h := range found {
		as, err := raw.GetAttributeValue(session, h, []*pkcs11.Attribute{attribute(pkcs11.CKA_LABEL, nil)})
		var rv pkcs11.Error
		if errors.As(err, &rv) && uint(rv) == pkcs11.CKR_OBJECT_HANDLE_INVALID {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("reading a key's label: %w", err)
		}
		epoch, ok := parseKEKLabel(string(as[0].Value))
		if !ok {
			continue
		}
		if _, twice := keks[epoch]; twice {
			return nil, fmt.Errorf("%w, %d; which is right cannot be told, so initialise the token anew and import again", errTwice, epoch)
		}
		keks[epoch] = h
	}
	return keks, nil
}

func sortedEpochs(keks map[uint32]pkcs11.ObjectHandle) []uint32 {
	epochs := make([]uint32, 0, len(keks))
	for e := range keks {
		epochs = append(epochs, e)
	}
	sort.Slice(epochs, func(i, j int) bool { return epochs[i] < epochs[j] })
	return epochs
}
