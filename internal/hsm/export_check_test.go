package hsm

import (
	"fmt"
	"strings"
	"time"

	"github.com/miekg/pkcs11"
)

// RFC3394Unwrap is for the standard's vector.
var RFC3394Unwrap = rfc3394Unwrap

// CheckTuning makes a check quick, impatient or the token weak.
type CheckTuning struct {
	Call, Clear  time.Duration
	Bits, Rounds int
	Weaken       func([]*pkcs11.Attribute) []*pkcs11.Attribute
}

// Tune gives the options these limits.
func (o CheckOptions) Tune(t CheckTuning) CheckOptions {
	o.limits = checkLimits{call: t.Call, clear: t.Clear, measure: 20 * time.Millisecond, bits: t.Bits, rounds: t.Rounds, weaken: t.Weaken}
	return o
}

// RequirementTable is the table of docs/HSM.md.
func RequirementTable() string {
	var b strings.Builder
	b.WriteString("| requirement | for | why | how it is tried |\n|---|---|---|---|\n")
	for _, r := range requirements {
		roles := roleList(r.roles)
		switch {
		case len(r.roles) == 0:
			roles = "to know"
		case len(r.roles) == len(checkRoles):
			roles = "all"
		}
		fmt.Fprintf(&b, "| `%s` %s | %s | %s | %s |\n", r.id, r.title, roles, r.why, r.how)
	}
	return b.String()
}

// AttackKinds are the requirements that the start-up attacks on a role's KEK
// are of, and how many of each.
func AttackKinds(r Role) map[string]int {
	kinds := map[string]int{}
	for _, a := range attacks(nil, 0, r, 0, probe{}) {
		kinds[attackKind(a.name)]++
	}
	return kinds
}

// InitToken initialises a token, also if there is one of its label.
func InitToken(module string, t Token, soPINFile string) error {
	mod, err := loadModule(module)
	if err != nil {
		return err
	}
	return mod.bare(func() error {
		mod.initialising.Lock()
		defer mod.initialising.Unlock()
		slot, err := mod.freeSlot()
		if err != nil {
			return err
		}
		soPIN, err := readPIN(soPINFile)
		if err != nil {
			return err
		}
		pin, err := readPIN(t.PINFile)
		if err != nil {
			return err
		}
		before, err := mod.findSlots(t.Label)
		if err != nil {
			return err
		}
		if err := mod.raw.InitToken(slot, soPIN, t.Label); err != nil {
			return err
		}
		if len(before) > 0 {
			return nil
		}
		slots, err := mod.findSlots(t.Label)
		if err != nil {
			return err
		}
		s, err := mod.raw.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return err
		}
		defer func() { _ = mod.raw.CloseSession(s) }()
		if err := mod.raw.Login(s, pkcs11.CKU_SO, soPIN); err != nil {
			return err
		}
		return firstError(mod.raw.InitPIN(s, pin), mod.raw.Logout(s))
	})
}

// TokenLabels are the labels of all objects at home on a token. PlantObject
// adds one.
func TokenLabels(module string, t Token) (labels []string, err error) {
	err = onToken(module, t, func(l *login) error {
		found, err := find(l.mod.raw, l.session, attribute(pkcs11.CKA_TOKEN, true))
		for _, h := range found {
			as, err := l.mod.raw.GetAttributeValue(l.session, h, []*pkcs11.Attribute{attribute(pkcs11.CKA_LABEL, nil)})
			if err != nil {
				return err
			}
			labels = append(labels, string(as[0].Value))
		}
		return err
	})
	return labels, err
}

// PlantObject puts an AES key on a token.
func PlantObject(module string, t Token, label string) error {
	return onToken(module, t, func(l *login) error {
		as := append(secret(label, pkcs11.CKK_AES, time.Now()), attribute(pkcs11.CKA_VALUE_LEN, 32))
		_, err := l.mod.raw.GenerateKey(l.session, mechanism(pkcs11.CKM_AES_KEY_GEN), append(as, frozen()...))
		return err
	})
}

func onToken(module string, t Token, f func(*login) error) error {
	mod, err := loadModule(module)
	if err != nil {
		return err
	}
	l, err := dial(mod, t)
	if err != nil {
		return err
	}
	defer l.close()
	return f(l)
}
