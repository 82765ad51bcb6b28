package hsm

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/miekg/pkcs11"
)

// Destroy destroys the KEK of an epoch on every token of this server and takes
// its record out of probeFile. That nothing in use is wrapped under it the
// caller must know: no token tells which epoch is active. What was wrapped under it opens nowhere once
// every server, and every backup of a token, is without it. It refuses unless
// each token holds a newer KEK; what is gone already it passes over, so that
// it can be run again after an interruption. soPINFile is needed only by a
// token on which the user may not destroy the KEK.
func (c Ceremony) Destroy(epoch uint32, probeFile, soPINFile string) error {
	if epoch == 0 {
		return errors.New("epochs start at 1")
	}
	mod, err := c.module()
	if err != nil {
		return err
	}
	// Nothing is destroyed unless everything may be.
	if err := c.kekTokens(mod, func(_ Role, _ Token, _ *login, keks map[uint32]pkcs11.ObjectHandle) error {
		held := sortedEpochs(keks)
		if len(held) == 0 || held[len(held)-1] <= epoch {
			return fmt.Errorf("it holds the KEKs of epochs %d and none newer than %d, so nothing was destroyed: bring a newer one to every token, rotate to it, and then destroy this one", held, epoch)
		}
		return nil
	}); err != nil {
		return err
	}
	b, err := os.ReadFile(probeFile)
	if err != nil {
		return fmt.Errorf("probe key file: %w", err)
	}
	probes, err := parseProbes(b)
	if err != nil {
		return fmt.Errorf("%s: %w", probeFile, err)
	}

	if err := c.kekTokens(mod, func(_ Role, t Token, l *login, keks map[uint32]pkcs11.ObjectHandle) error {
		h, ok := keks[epoch]
		if !ok {
			c.report("token %s: holds no KEK of epoch %d (any more)", l.label, epoch)
			return nil
		}
		if err := l.destroyKEK(t, epoch, h, soPINFile); err != nil {
			return fmt.Errorf("destroying the KEK of epoch %d: %w; run this command again once that is mended", epoch, err)
		}
		c.report("token %s: KEK of epoch %d destroyed; left are those of %d", l.label, epoch,
			slices.DeleteFunc(sortedEpochs(keks), func(e uint32) bool { return e == epoch }))
		return nil
	}); err != nil {
		return err
	}
	// Last, for a token that still holds the KEK does not start without it.
	kept := slices.DeleteFunc(slices.Clone(probes), func(p probe) bool { return p.epoch == epoch })
	if len(kept) < len(probes) {
		if err := writeProbes(probeFile, kept); err != nil {
			return err
		}
		c.report("%s: probe key of epoch %d removed", probeFile, epoch)
	}
	c.report("no token of this server holds a KEK of epoch %d; other servers and backups of tokens may", epoch)
	return nil
}

// kekTokens calls f with each token that has KEKs, and the KEKs it holds.
func (c Ceremony) kekTokens(mod *module, f func(r Role, t Token, l *login, keks map[uint32]pkcs11.ObjectHandle) error) error {
	return c.withKEKs(mod, func(r Role, t Token, l *login) error {
		keks, err := findKEKs(mod.raw, l.session)
		if err != nil {
			return err
		}
		return f(r, t, l, keks)
	})
}

// destroyKEK destroys a KEK and looks that it is gone.
func (l *login) destroyKEK(t Token, epoch uint32, h pkcs11.ObjectHandle, soPINFile string) error {
	raw, s := l.mod.raw, l.session
	err := raw.DestroyObject(s, h)
	if err != nil && officerOnly(err) {
		if soPINFile == "" {
			return fmt.Errorf("the token lets only its security officer do that: name a file with the officer's PIN (--so-pin-file): %w", err)
		}
		err = l.officer(t, soPINFile, func() error {
			h, err := findSecret(raw, s, kekLabel(epoch))
			if err != nil {
				return err
			}
			if h == 0 {
				return errors.New("the security officer does not see the key")
			}
			return raw.DestroyObject(s, h)
		})
	}
	if err != nil {
		return err
	}
	left, err := findSecret(raw, s, kekLabel(epoch))
	if err == nil && left != 0 {
		err = errors.New("the token says that it is done, and still holds the key")
	}
	return err
}

// officerOnly says whether an answer may mean that another user could.
func officerOnly(err error) bool {
	var rv pkcs11.Error
	return refused(err) || errors.As(err, &rv) && (uint(rv) == pkcs11.CKR_USER_NOT_LOGGED_IN || uint(rv) == pkcs11.CKR_SESSION_READ_ONLY)
}

// writeProbes replaces the probe file.
func writeProbes(path string, probes []probe) error {
	var file []byte
	for _, p := range probes {
		file = p.append(file)
	}
	return writeFile(path, file, 0o644)
}
