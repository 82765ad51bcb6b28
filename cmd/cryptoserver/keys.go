package main

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"os"

	"kluis/authz"
	"kluis/cryptoserver/control"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/internal/hsm"
)

// keysCmd is the key ceremony. What another command reads goes to stdout, the
// account of what was done to stderr.
type keysCmd struct {
	Init    keysInitCmd    `cmd:"" help:"Step 1, on every server: initialise the tokens, make transport and signing keys. Prints the fingerprint of the public keys."`
	Create  keysCreateCmd  `cmd:"" help:"Step 2, on one server: make KEK and MAC keys, wrapped to every server's transport keys."`
	Import  keysImportCmd  `cmd:"" help:"Step 3, on every server: bring the keys onto the tokens, attack the KEKs, destroy the transport keys."`
	Public  keysPublicCmd  `cmd:"" help:"Print the public keys that others verify this server's signatures with."`
	Destroy keysDestroyCmd `cmd:"" help:"Destroy the KEK of an old epoch on this server's tokens, for good. Only with the proof that kluis keys destroy-kek wrote."`
}

type keysConfig struct {
	Config string `required:"" type:"existingfile" placeholder:"FILE" help:"Configuration of this cryptoserver (YAML)."`
}

func (c keysConfig) load() (config.Cryptoserver, hsm.Ceremony, error) {
	cfg, err := config.Load[config.Cryptoserver](c.Config)
	if err != nil {
		return cfg, hsm.Ceremony{}, err
	}
	return cfg, hsm.Ceremony{Module: cfg.Module, Tokens: tokensByRole(cfg.Tokens),
		Report: func(step string) { fmt.Fprintln(os.Stderr, step) }}, nil
}

func tokensByRole(t config.Tokens) map[hsm.Role][]hsm.Token {
	byRole := map[hsm.Role][]hsm.Token{}
	add := func(role hsm.Role, tokens ...config.Token) {
		for _, t := range tokens {
			byRole[role] = append(byRole[role], hsm.Token(t))
		}
	}
	add(hsm.RoleOpen, t.Open...)
	add(hsm.RoleMint, t.Mint...)
	add(hsm.RoleRotate, t.Rotate...)
	if t.Seal != nil {
		add(hsm.RoleSeal, *t.Seal)
	}
	if t.Sign != nil {
		add(hsm.RoleSign, *t.Sign)
	}
	return byRole
}

type keysInitCmd struct {
	keysConfig
	SOPINFile string `name:"so-pin-file" required:"" type:"existingfile" placeholder:"FILE" help:"File with the security officer's PIN for tokens that are new."`
	Out       string `required:"" type:"path" placeholder:"DIR" help:"Folder for the public keys; take it to the server that creates the keys."`
}

// Run prints the fingerprint of the public keys.
func (c *keysInitCmd) Run() error {
	_, ceremony, err := c.load()
	if err != nil {
		return err
	}
	public, err := ceremony.Init(c.SOPINFile)
	if err != nil {
		return err
	}
	if err := public.Write(c.Out); err != nil {
		return err
	}
	fingerprint, err := public.Fingerprint()
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "public keys written to %s; their fingerprint, to be carried by another way than the folder:\n", c.Out)
	_, err = fmt.Println(fingerprint)
	return err
}

type keysCreateCmd struct {
	keysConfig
	Epoch uint32            `required:"" placeholder:"N" help:"Epoch of the KEK: 1 the first time."`
	To    map[string]string `required:"" placeholder:"FINGERPRINT=DIR" mapsep:"none" help:"A server's fingerprint, as its keys init printed it, and the folder of its public keys; once per server, this one included."`
	Out   string            `required:"" type:"path" placeholder:"DIR" help:"New folder for the wrapped keys; take it to every server."`
}

func (c *keysCreateCmd) Run() error {
	_, ceremony, err := c.load()
	if err != nil {
		return err
	}
	return ceremony.Create(c.Epoch, c.To, c.Out)
}

type keysImportCmd struct {
	keysConfig
	In        string `required:"" type:"existingdir" placeholder:"DIR" help:"Folder that keys create made."`
	Creator   string `required:"" placeholder:"FINGERPRINT" help:"Fingerprint of the server that created the keys."`
	SOPINFile string `name:"so-pin-file" type:"existingfile" placeholder:"FILE" help:"File with the security officer's PIN, who alone can make the KEK of a rotate token a trusted key; needed where one is configured."`
}

func (c *keysImportCmd) Run() error {
	cfg, ceremony, err := c.load()
	if err != nil {
		return err
	}
	if cfg.ProbeKeyFile == "" {
		return errors.New("probe_key_file is missing in the configuration: the start-up attacks need it")
	}
	return ceremony.Import(c.In, c.Creator, cfg.ProbeKeyFile, c.SOPINFile)
}

type keysDestroyCmd struct {
	keysConfig
	Epoch     uint32 `required:"" placeholder:"N" help:"Epoch of the KEK."`
	Yes       uint32 `name:"yes-destroy-epoch" required:"" placeholder:"N" help:"The same epoch again: what is wrapped under its KEK will never be read again."`
	Proof     string `required:"" type:"existingfile" placeholder:"FILE" help:"Proof that the control feed gives the epoch up, as kluis keys destroy-kek wrote it."`
	SOPINFile string `name:"so-pin-file" type:"existingfile" placeholder:"FILE" help:"File with the security officer's PIN; only for tokens on which the user may not destroy the KEK, which then say so."`
}

// Run destroys nothing unless a pinned seal key vouches that the control feed
// gave the epoch up: on the tokens an epoch that is in use looks as one that is
// not, as soon as the next one was imported.
func (c *keysDestroyCmd) Run() error {
	if c.Yes != c.Epoch {
		return fmt.Errorf("--epoch is %d and --yes-destroy-epoch %d: nothing was destroyed; say the same epoch twice", c.Epoch, c.Yes)
	}
	cfg, ceremony, err := c.load()
	if err != nil {
		return err
	}
	if cfg.ProbeKeyFile == "" {
		return errors.New("probe_key_file is missing in the configuration: the record of the KEK's probe key is in it")
	}
	if err := c.givenUp(cfg.SealKeysFile); err != nil {
		return fmt.Errorf("%s: nothing was destroyed: %w", c.Proof, err)
	}
	return ceremony.Destroy(c.Epoch, cfg.ProbeKeyFile, c.SOPINFile)
}

// givenUp verifies the proof.
func (c *keysDestroyCmd) givenUp(sealKeysFile string) error {
	pinned, err := config.PublicKeys(sealKeysFile)
	if err != nil {
		return fmt.Errorf("seal_keys_file: %w", err)
	}
	keys, err := authz.NewSealKeys(pinned...)
	if err != nil {
		return fmt.Errorf("seal_keys_file: %w", err)
	}
	b, err := os.ReadFile(c.Proof)
	if err != nil {
		return err
	}
	entry, err := control.OpenProof(b, keys)
	if err != nil {
		return fmt.Errorf("%w; take the file that kluis keys destroy-kek --epoch %d wrote", err, c.Epoch)
	}
	if entry.Kind != control.DestroyEpoch || entry.Epoch != c.Epoch {
		return fmt.Errorf("it does not prove that epoch %[1]d was given up; take the file that kluis keys destroy-kek --epoch %[1]d wrote", c.Epoch)
	}
	return nil
}

type keysPublicCmd struct {
	Seal publicSealCmd `cmd:"" help:"PEM of the keys that seal legal files and supplier records."`
	JWKS publicJWKSCmd `cmd:"" name:"jwks" help:"JWK set of the keys that sign access tokens."`
}

// publicFrom says whose keys: those of folders, or of the tokens at hand.
type publicFrom struct {
	Config string   `xor:"from" required:"" type:"existingfile" placeholder:"FILE" help:"Configuration of this cryptoserver: the keys on its tokens."`
	From   []string `xor:"from" required:"" type:"existingdir" placeholder:"DIR" help:"Folder that keys init wrote; may be repeated: the keys of several servers."`
}

func (p publicFrom) keys() ([]hsm.PublicKeys, error) {
	if p.Config != "" {
		_, ceremony, err := keysConfig{Config: p.Config}.load()
		if err != nil {
			return nil, err
		}
		k, err := ceremony.Public()
		return []hsm.PublicKeys{k}, err
	}
	var all []hsm.PublicKeys
	for _, dir := range p.From {
		k, err := hsm.ReadPublicKeys(dir)
		if err != nil {
			return nil, err
		}
		all = append(all, k)
	}
	return all, nil
}

// choose collects one key of each server that has it.
func (p publicFrom) choose(which func(hsm.PublicKeys) *ecdsa.PublicKey) ([]*ecdsa.PublicKey, error) {
	servers, err := p.keys()
	if err != nil {
		return nil, err
	}
	var keys []*ecdsa.PublicKey
	for _, s := range servers {
		if k := which(s); k != nil {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("none of these servers has such a key")
	}
	return keys, nil
}

type publicSealCmd struct{ publicFrom }

func (c *publicSealCmd) Run() error {
	keys, err := c.choose(func(k hsm.PublicKeys) *ecdsa.PublicKey { return k.Seal })
	if err != nil {
		return err
	}
	var all []byte
	for _, k := range keys {
		b, err := hsm.EncodePEM(k)
		if err != nil {
			return err
		}
		all = append(all, b...)
	}
	return printAll(all)
}

type publicJWKSCmd struct{ publicFrom }

func (c *publicJWKSCmd) Run() error {
	keys, err := c.choose(func(k hsm.PublicKeys) *ecdsa.PublicKey { return k.Sign })
	if err != nil {
		return err
	}
	b, err := authn.JWKS(keys...)
	if err != nil {
		return err
	}
	return printAll(b)
}

func printAll(b []byte) error {
	_, err := os.Stdout.Write(b)
	return err
}
