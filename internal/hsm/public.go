package hsm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// PublicKeys are the public keys of one server's tokens, as the key ceremony
// carries them about: transport keys to wrap to, and the keys that others
// verify its signatures with.
type PublicKeys struct {
	Transport map[Role][]*rsa.PublicKey // of each token of the role
	Seal      *ecdsa.PublicKey          // nil without a seal token
	Sign      *ecdsa.PublicKey          // nil without a sign token
}

const minTransportBits = 2048

// files are the keys by file name, in a fixed order.
func (p PublicKeys) files() (names []string, keys []crypto.PublicKey) {
	for _, r := range Roles() {
		for i, k := range p.Transport[r] {
			names, keys = append(names, transportName(r, i)), append(keys, k)
		}
	}
	if p.Seal != nil {
		names, keys = append(names, "seal.pem"), append(keys, p.Seal)
	}
	if p.Sign != nil {
		names, keys = append(names, "sign.pem"), append(keys, p.Sign)
	}
	return names, keys
}

func transportName(r Role, i int) string { return fmt.Sprintf("transport-%s-%d.pem", r, i+1) }

// Fingerprint is SHA-256, in hex, over all keys with their names. It is what
// people compare between servers: whoever can slip in a transport key of
// their own gets every key in clear.
func (p PublicKeys) Fingerprint() (string, error) {
	h := sha256.New()
	field := func(b []byte) {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		h.Write(b)
	}
	field([]byte("kluis/server-keys"))
	names, keys := p.files()
	for i, k := range keys {
		der, err := x509.MarshalPKIXPublicKey(k)
		if err != nil {
			return "", fmt.Errorf("%s: %w", names[i], err)
		}
		field([]byte(names[i]))
		field(der)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Write puts the keys into a folder as PEM files, and takes those of transport
// keys that are gone out of it: they would change the fingerprint.
func (p PublicKeys) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, r := range Roles() {
		for i := len(p.Transport[r]); ; i++ {
			err := os.Remove(filepath.Join(dir, transportName(r, i)))
			if errors.Is(err, fs.ErrNotExist) {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	names, keys := p.files()
	for i, k := range keys {
		b, err := EncodePEM(k)
		if err != nil {
			return fmt.Errorf("%s: %w", names[i], err)
		}
		if err := writeFile(filepath.Join(dir, names[i]), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// ReadPublicKeys reads what Write wrote; a role whose file is missing has no key.
func ReadPublicKeys(dir string) (PublicKeys, error) {
	p := PublicKeys{Transport: map[Role][]*rsa.PublicKey{}}
	for _, r := range Roles() {
		for i := 0; ; i++ {
			k, err := readPublic[*rsa.PublicKey](filepath.Join(dir, transportName(r, i)))
			if err != nil {
				return p, err
			}
			if k == nil {
				break
			}
			if k.N.BitLen() < minTransportBits || k.E != 65537 {
				return p, fmt.Errorf("%s: transport key %d of role %s has %d bits and exponent %d; at least %d bits and 65537 are needed", dir, i+1, r, k.N.BitLen(), k.E, minTransportBits)
			}
			p.Transport[r] = append(p.Transport[r], k)
		}
	}
	var err error
	if p.Seal, err = readPublic[*ecdsa.PublicKey](filepath.Join(dir, "seal.pem")); err != nil {
		return p, err
	}
	if p.Sign, err = readPublic[*ecdsa.PublicKey](filepath.Join(dir, "sign.pem")); err != nil {
		return p, err
	}
	if names, _ := p.files(); len(names) == 0 {
		return p, fmt.Errorf("%s holds no public keys; it should be the folder that cryptoserver keys init wrote", dir)
	}
	return p, nil
}

func readPublic[K crypto.PublicKey](path string) (K, error) {
	var none K
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" || len(rest) != 0 {
		return none, fmt.Errorf("%s: not one PEM PUBLIC KEY", path)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return none, fmt.Errorf("%s: %w", path, err)
	}
	k, ok := parsed.(K)
	if !ok {
		return none, fmt.Errorf("%s: a %T, not the kind of key that belongs here", path, parsed)
	}
	return k, nil
}

// EncodePEM encodes a public key as PEM "PUBLIC KEY" (RFC 7468, clause 13).
func EncodePEM(k crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// writeFile replaces a file as a whole or not at all.
func writeFile(path string, b []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	err = firstError(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
