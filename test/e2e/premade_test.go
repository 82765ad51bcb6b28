package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
)

// Of what a demo does at its first start, the key ceremony takes longest: some
// twenty RSA keys. One world has it; others begin as if theirs had just ended.

// ceremonyLeaves is what a ceremony leaves in the state folder.
var ceremonyLeaves = []string{
	"ceremony", "keys/seal-keys.pem", "keys/jwks.json",
	"cryptoserver-1/tokens", "cryptoserver-1/pins", "cryptoserver-1/probe.key", "cryptoserver-1/softhsm2.conf",
	"cryptoserver-2/tokens", "cryptoserver-2/pins", "cryptoserver-2/probe.key", "cryptoserver-2/softhsm2.conf",
}

// keepKeys copies that of a world, on which no test has been at work, into dir.
func (w *world) keepKeys(dir string) error {
	if err := copyKeys(w.state, dir); err != nil {
		return err
	}
	run.keys.Store(&dir)
	return nil
}

// copyKeys makes a state folder of a demo that was interrupted after its
// ceremony.
func copyKeys(from, to string) error {
	// PostgreSQL does not run as root: its user must be able to pass.
	if err := os.MkdirAll(to, 0o711); err != nil {
		return err
	}
	for _, name := range ceremonyLeaves {
		err := filepath.WalkDir(filepath.Join(from, name), func(path string, e os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(from, path)
			if err != nil {
				return err
			}
			target := filepath.Join(to, rel)
			if e.IsDir() {
				return os.MkdirAll(target, 0o700)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if e.Name() == "softhsm2.conf" { // names its folder
				b = bytes.ReplaceAll(b, []byte(from), []byte(to))
			}
			if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
				return err
			}
			return os.WriteFile(target, b, 0o600)
		})
		if err != nil {
			return err
		}
	}
	b, err := os.ReadFile(filepath.Join(from, "demo.json"))
	if err != nil {
		return err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	progress := map[string]json.RawMessage{}
	for _, name := range []string{"format", "set_up", "keys"} {
		progress[name] = all[name]
	}
	if b, err = json.Marshal(progress); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, "demo.json"), b, 0o600)
}
