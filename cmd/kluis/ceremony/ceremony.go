// Package ceremony runs the key ceremony over all cryptoservers whose HSM
// partitions can be reached from one machine, and writes its transcript. It
// links no PKCS#11: each step is the program cryptoserver, for one server, and
// keys travel between them only wrapped to the transport key of a token.
package ceremony

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"kluis/internal/config"
)

// Server is one cryptoserver that takes part.
type Server struct {
	Name      string // its id, as in receipts
	Config    string // its configuration file
	SOPINFile string // PIN of the security officer of its tokens
	Env       []string
}

// NewServer reads a server's name from its configuration.
func NewServer(configFile, soPINFile string, env ...string) (Server, error) {
	c, err := config.Load[config.Cryptoserver](configFile)
	if err != nil {
		return Server{}, err
	}
	if strings.ContainsAny(c.ID, `/\`) || strings.HasPrefix(c.ID, ".") {
		return Server{}, fmt.Errorf("%s: the id %s cannot be the name of a folder", configFile, c.ID)
	}
	return Server{Name: c.ID, Config: configFile, SOPINFile: soPINFile, Env: env}, nil
}

// Ceremony makes the keys of an epoch on the first server's tokens and brings
// them to those of all. Run again after an interruption, it goes on.
type Ceremony struct {
	Program string // cryptoserver
	Version string // of this program, for the transcript
	Servers []Server
	Epoch   uint32
	Dir     string // its folder; one for all epochs
	Log     *Transcript
	Say     func(format string, args ...any)
	// Apart: the servers share no HSM, so that their tokens may be made at once.
	Apart bool
}

// The files of a ceremony in its folder. Those of an epoch are what the steps
// hand to each other.
func (c Ceremony) path(elem ...string) string {
	return filepath.Join(append([]string{c.Dir, fmt.Sprintf("epoch-%d", c.Epoch)}, elem...)...)
}
func (c Ceremony) public(s Server) string      { return c.path(s.Name, "public") }
func (c Ceremony) fingerprint(s Server) string { return c.path(s.Name, "fingerprint") }
func (c Ceremony) imported(s Server) string    { return c.path(s.Name, "imported") }
func (c Ceremony) wrapped() string             { return c.path("wrapped") }
func (c Ceremony) done() string                { return c.path("done") }

// SealKeysFile and JWKSFile are the public keys of all servers, for those who
// verify.
func (c Ceremony) SealKeysFile() string { return filepath.Join(c.Dir, "seal-keys.pem") }

// JWKSFile is the JWK set of the keys that sign access tokens.
func (c Ceremony) JWKSFile() string { return filepath.Join(c.Dir, "jwks.json") }

func (c Ceremony) check() error {
	if len(c.Servers) == 0 {
		return errors.New("no server takes part")
	}
	if c.Epoch == 0 {
		return errors.New("epochs start at 1")
	}
	names := map[string]bool{}
	for _, s := range c.Servers {
		if names[s.Name] {
			return fmt.Errorf("two servers have the id %s: each needs one of its own", s.Name)
		}
		names[s.Name] = true
	}
	return nil
}

// Done says whether the ceremony of this epoch is over.
func (c Ceremony) Done() (bool, error) { return exists(c.done()) }

// Run makes the keys.
func (c Ceremony) Run(ctx context.Context) error {
	if err := c.check(); err != nil {
		return err
	}
	if over, err := c.Done(); err != nil {
		return err
	} else if over {
		c.Say("the ceremony of epoch %d is over; nothing was done", c.Epoch)
		return nil
	}
	for _, s := range c.Servers {
		if err := os.MkdirAll(c.path(s.Name), 0o700); err != nil {
			return err
		}
	}
	if err := c.begin(); err != nil {
		return err
	}
	if err := c.run(ctx); err != nil {
		return errors.Join(err, c.Log.Append(Entry{Step: "end", Result: "failed: " + err.Error()}))
	}
	// Nothing opens it any more; what is not there raises no question.
	if err := os.RemoveAll(c.wrapped()); err != nil {
		return err
	}
	files, err := hashes(c.SealKeysFile(), c.JWKSFile())
	if err != nil {
		return err
	}
	if err := c.Log.Append(Entry{Step: "end", Files: files, Result: "ok"}); err != nil {
		return err
	}
	return writeFile(c.done(), nil)
}

// begin writes down who does what with which program.
func (c Ceremony) begin() error {
	facts := map[string]string{"epoch": strconv.FormatUint(uint64(c.Epoch), 10), "version": c.Version}
	if u, err := user.Current(); err == nil {
		facts["user"] = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		facts["host"] = host
	}
	program := []string{c.Program}
	for _, s := range c.Servers {
		program = append(program, s.Config)
	}
	files, err := hashes(program...)
	if err != nil {
		return err
	}
	return c.Log.Append(Entry{Step: "begin", Files: files, Facts: facts, Result: "ok"})
}

func (c Ceremony) run(ctx context.Context) error {
	created, err := exists(c.wrapped())
	if err != nil {
		return err
	}
	if !created {
		if err := c.init(ctx); err != nil {
			return err
		}
		if err := c.create(ctx); err != nil {
			return err
		}
	}
	creator, err := c.readFingerprint(c.Servers[0])
	if err != nil {
		return err
	}
	err = c.each(func(s Server) error {
		if there, err := exists(c.imported(s)); err != nil || there {
			return err
		}
		if _, err := c.step(ctx, Entry{Step: "import", Server: s.Name}, s,
			"import", "--config", s.Config, "--in", c.wrapped(), "--creator", creator, "--so-pin-file", s.SOPINFile); err != nil {
			return err
		}
		c.Say("%s: keys of epoch %d imported, the KEKs withstood the attacks, transport keys destroyed", s.Name, c.Epoch)
		return writeFile(c.imported(s), nil)
	})
	if err != nil {
		return err
	}
	for file, kind := range map[string]string{c.SealKeysFile(): "seal", c.JWKSFile(): "jwks"} {
		args := []string{"public", kind}
		for _, s := range c.Servers {
			args = append(args, "--from", c.public(s))
		}
		out, err := c.step(ctx, Entry{Step: "public"}, Server{}, args...)
		if err != nil {
			return err
		}
		if err := writeFile(file, out); err != nil {
			return err
		}
	}
	return nil
}

// each does something for all servers: one after another, or at once when they
// share nothing.
func (c Ceremony) each(do func(Server) error) error {
	if !c.Apart {
		for _, s := range c.Servers {
			if err := do(s); err != nil {
				return fmt.Errorf("%s: %w", s.Name, err)
			}
		}
		return nil
	}
	errs := make([]error, len(c.Servers))
	var wg sync.WaitGroup
	for i, s := range c.Servers {
		wg.Go(func() {
			if err := do(s); err != nil {
				errs[i] = fmt.Errorf("%s: %w", s.Name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (c Ceremony) init(ctx context.Context) error {
	return c.each(func(s Server) error {
		e := Entry{Step: "init", Server: s.Name}
		out, err := c.step(ctx, e, s, "init", "--config", s.Config, "--so-pin-file", s.SOPINFile, "--out", c.public(s))
		if err != nil {
			return err
		}
		fingerprint := strings.TrimSpace(string(out))
		if b, err := hex.DecodeString(fingerprint); err != nil || len(b) != sha256.Size {
			return errors.New("keys init printed no fingerprint")
		}
		c.Say("%s: tokens are there; fingerprint of their public keys %s", s.Name, fingerprint)
		return writeFile(c.fingerprint(s), []byte(fingerprint+"\n"))
	})
}

func (c Ceremony) create(ctx context.Context) error {
	first := c.Servers[0]
	// Left by an interrupted step; nothing uses what is in it.
	if err := os.RemoveAll(c.wrapped() + ".partial"); err != nil {
		return err
	}
	args := []string{"create", "--config", first.Config, "--epoch", strconv.FormatUint(uint64(c.Epoch), 10), "--out", c.wrapped()}
	for _, s := range c.Servers {
		fingerprint, err := c.readFingerprint(s)
		if err != nil {
			return err
		}
		args = append(args, "--to", fingerprint+"="+c.public(s))
	}
	if _, err := c.step(ctx, Entry{Step: "create", Server: first.Name}, first, args...); err != nil {
		return err
	}
	c.Say("%s: keys of epoch %d made, wrapped to the transport keys of %d servers", first.Name, c.Epoch, len(c.Servers))
	return nil
}

func (c Ceremony) readFingerprint(s Server) (string, error) {
	b, err := os.ReadFile(c.fingerprint(s))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s took no part when the keys of this epoch were made: run the next epoch with it", s.Name)
	}
	return strings.TrimSpace(string(b)), err
}

// step runs one step and writes it down, however it ends.
func (c Ceremony) step(ctx context.Context, e Entry, s Server, args ...string) ([]byte, error) {
	args = append([]string{"keys"}, args...)
	cmd := exec.CommandContext(ctx, c.Program, args...)
	cmd.Env = append(os.Environ(), s.Env...)
	// A step may be in the middle of an HSM operation: let it end by itself.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	e.Command = append([]string{filepath.Base(c.Program)}, args...)
	for line := range strings.Lines(stderr.String()) {
		e.Said = append(e.Said, strings.TrimRight(line, "\n"))
	}
	e.Result = "ok"
	if err != nil {
		e.Result = "failed: " + err.Error()
	} else if e.Step == "init" {
		e.Fingerprint = strings.TrimSpace(stdout.String())
	}
	if logErr := c.Log.Append(e); err == nil && logErr != nil {
		return nil, logErr
	}
	if err != nil {
		return nil, fmt.Errorf("cryptoserver keys %s: %w\n%s", args[1], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// hashes are the SHA-256 of files, by their paths.
func hashes(paths ...string) (map[string]string, error) {
	out := map[string]string{}
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			return nil, err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		out[p] = hex.EncodeToString(h.Sum(nil))
	}
	return out, nil
}

// writeFile replaces a file in one step.
func writeFile(path string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once renamed
	_, err = tmp.Write(b)
	if err == nil {
		err = tmp.Chmod(0o644) // nothing secret: public keys and fingerprints
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
