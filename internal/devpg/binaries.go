package devpg

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// MinVersion is the oldest major version of PostgreSQL that Kluis runs on.
const MinVersion = 15

// ErrNotInstalled says that no PostgreSQL was found; its text says what to do.
var ErrNotInstalled = fmt.Errorf("no PostgreSQL %d or newer found: run  apt-get install -y --no-install-recommends postgresql", MinVersion)

// Binaries are PostgreSQL's programs on this machine.
type Binaries struct {
	Dir     string
	Version string // of "postgres --version"
	major   int
}

func (b Binaries) path(name string) string { return filepath.Join(b.Dir, name) }

// FindBinaries looks in dir only, if given; else takes the newest of
// /usr/lib/postgresql/*/bin (Debian) and the PATH.
func FindBinaries(dir string) (Binaries, error) {
	var dirs []string
	if dir != "" {
		dirs = []string{dir}
	} else {
		dirs, _ = filepath.Glob("/usr/lib/postgresql/*/bin") // the pattern is well-formed
		if p, err := exec.LookPath("postgres"); err == nil {
			if p, err = filepath.EvalSymlinks(p); err == nil {
				dirs = append(dirs, filepath.Dir(p))
			}
		}
	}
	var best Binaries
	var found []error
	for _, d := range dirs {
		b, err := probe(d)
		if err != nil {
			found = append(found, err)
			continue
		}
		if b.major > best.major {
			best = b
		}
	}
	if best.major == 0 {
		return Binaries{}, fmt.Errorf("devpg: %w", errors.Join(append([]error{ErrNotInstalled}, found...)...))
	}
	return best, nil
}

func probe(dir string) (Binaries, error) {
	if _, err := exec.LookPath(filepath.Join(dir, "initdb")); err != nil {
		return Binaries{}, fmt.Errorf("%s: no initdb", dir)
	}
	out, err := exec.Command(filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return Binaries{}, fmt.Errorf("%s: postgres --version: %w", dir, err)
	}
	b := Binaries{Dir: dir, Version: strings.TrimSpace(string(out))}
	if b.major, err = major(b.Version); err != nil {
		return Binaries{}, fmt.Errorf("%s: %w", dir, err)
	}
	if b.major < MinVersion {
		return Binaries{}, fmt.Errorf("%s: %s is too old", dir, b.Version)
	}
	return b, nil
}

// major reads "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)" and
// "postgres (PostgreSQL) 19beta1".
func major(version string) (int, error) {
	_, rest, ok := strings.Cut(version, "(PostgreSQL) ")
	if ok {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		if n, err := strconv.Atoi(rest[:digits]); err == nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("cannot read the version from %q", version)
}
