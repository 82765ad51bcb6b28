package cryptoserver_test

import (
	"crypto/ecdsa"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"
)

// twoEpochs are tokens with the KEKs of epochs 1 and 2; shared, so nothing may
// be changed on them.
var twoEpochs struct {
	sync.Mutex
	hsm *hsmtest.HSM
	err error
}

// epochs is a server whose tokens hold the KEKs of epochs 1 and 2.
func epochs(t testing.TB) *hsmtest.HSM {
	t.Helper()
	h := hsmtest.New(t)
	twoEpochs.Lock()
	defer twoEpochs.Unlock()
	if twoEpochs.hsm == nil && twoEpochs.err == nil {
		twoEpochs.err = addEpochs(h, 2)
		twoEpochs.hsm = h
	}
	if twoEpochs.err != nil {
		t.Fatal(twoEpochs.err)
	}
	own := *twoEpochs.hsm
	return &own
}

// addEpochs runs the ceremony of n epochs on new tokens, which take the place
// of the first server's.
func addEpochs(h *hsmtest.HSM, n int) error {
	s := &h.Servers[0]
	s.Config.ProbeKeyFile = filepath.Join(h.Dir, "epochs-probe.bin")
	sign := s.Config.Tokens[hsm.RoleSign]
	s.Config.Tokens = map[hsm.Role][]hsm.Token{}
	for _, r := range []hsm.Role{hsm.RoleOpen, hsm.RoleSeal, hsm.RoleMint, hsm.RoleRotate} {
		s.Config.Tokens[r] = []hsm.Token{{Label: fmt.Sprintf("epochs-%s", r), PINFile: filepath.Join(h.Dir, "pin")}}
	}
	soPIN := filepath.Join(h.Dir, "so-pin")
	c := hsm.Ceremony{Module: h.Module, Tokens: s.Config.Tokens, TransportBits: 2048}
	for i := range n {
		public, err := c.Init(soPIN)
		if err != nil {
			return err
		}
		dir := filepath.Join(h.Dir, fmt.Sprintf("epoch-%d", i+1))
		if err := public.Write(filepath.Join(dir, "public")); err != nil {
			return err
		}
		fingerprint, err := public.Fingerprint()
		if err != nil {
			return err
		}
		if err := c.Create(uint32(i+1), map[string]string{fingerprint: filepath.Join(dir, "public")}, filepath.Join(dir, "keys")); err != nil {
			return err
		}
		if err := c.Import(filepath.Join(dir, "keys"), fingerprint, s.Config.ProbeKeyFile, soPIN); err != nil {
			return err
		}
		h.SealKeys = []*ecdsa.PublicKey{public.Seal}
	}
	s.Config.Tokens[hsm.RoleSign] = sign
	return nil
}
