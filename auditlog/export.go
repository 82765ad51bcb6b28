package auditlog

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"kluis/auditlog/leaf"
	"kluis/cryptoserver/checkpoint"
)

// Log says which log is meant, and whose signatures count.
type Log struct {
	Origin string // its name, part of every checkpoint
	Keys   []*ecdsa.PublicKey
}

// open verifies a checkpoint.
func (l Log) open(note []byte) (checkpoint.Checkpoint, error) {
	return checkpoint.Open(string(note), l.Origin, l.Keys...)
}

// Export is a folder of exported checkpoints: a folder per day (UTC) of signing
// with a file per checkpoint, named by its size, that is written once and never
// again, and a file "latest", a copy of the newest.
type Export struct {
	dir string
	log Log
}

const (
	latestName = "latest"
	sizeDigits = 20
)

// OpenExport opens a folder, which must be there: were it made when missing, a
// disk that is not mounted would go unnoticed.
func OpenExport(dir string, log Log) (*Export, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrExport, err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%w: %s is not a folder", ErrExport, dir)
	}
	return &Export{dir, log}, nil
}

// Latest is the newest checkpoint exported; of size 0 when there is none.
func (e *Export) Latest() (checkpoint.Checkpoint, error) {
	b, err := os.ReadFile(filepath.Join(e.dir, latestName))
	if errors.Is(err, fs.ErrNotExist) {
		return checkpoint.Checkpoint{}, nil
	}
	if err != nil {
		return checkpoint.Checkpoint{}, fmt.Errorf("%w: %w", ErrExport, err)
	}
	c, err := e.log.open(b)
	if err != nil {
		return c, fmt.Errorf("%w: %s: %w", ErrExport, filepath.Join(e.dir, latestName), err)
	}
	return c, nil
}

// Write exports a checkpoint. One of the same size and root that is there stays;
// another one is an error.
func (e *Export) Write(note []byte) error {
	c, err := e.log.open(note)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrExport, err)
	}
	day := filepath.Join(e.dir, c.At.Format(time.DateOnly))
	if err := os.Mkdir(day, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %w", ErrExport, err)
	}
	name := filepath.Join(day, fmt.Sprintf("%0*d", sizeDigits, c.Size))
	if err := writeOnce(name, note); errors.Is(err, fs.ErrExist) {
		b, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrExport, err)
		}
		if was, err := e.log.open(b); err != nil || was.Size != c.Size || was.Root != c.Root {
			return fmt.Errorf("%w: %s is another checkpoint than this one of the same size", ErrExport, name)
		}
	} else if err != nil {
		return fmt.Errorf("%w: %w", ErrExport, err)
	}
	if err := replace(filepath.Join(e.dir, latestName), note); err != nil {
		return fmt.Errorf("%w: %w", ErrExport, err)
	}
	return nil
}

// writeOnce makes a file with all of its content, or none; fs.ErrExist when
// there is one.
func writeOnce(name string, b []byte) error {
	tmp, err := temporary(name, b)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	if err := os.Link(tmp, name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func replace(name string, b []byte) error {
	tmp, err := temporary(name, b)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(filepath.Dir(name))
}

// temporary writes a file beside name, durably, for everybody to read.
func temporary(name string, b []byte) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Chmod(0o444), f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// exported walks the files of a folder in the order of day and size; it holds
// the names of one day at a time.
type exported struct {
	e     *Export
	days  []string
	names []string
	last  bool // "latest" was given
}

func (e *Export) walk() (*exported, error) {
	all, err := os.ReadDir(e.dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrExport, err)
	}
	w := &exported{e: e}
	for _, d := range all {
		if _, err := time.Parse(time.DateOnly, d.Name()); err == nil && d.IsDir() {
			w.days = append(w.days, d.Name())
		}
	}
	slices.Sort(w.days)
	return w, nil
}

// next returns the next file; an empty name at the end. The size is that of its
// name, 0 for "latest".
func (w *exported) next() (name string, n leaf.Note, err error) {
	for len(w.names) == 0 && len(w.days) > 0 {
		day := w.days[0]
		w.days = w.days[1:]
		all, err := os.ReadDir(filepath.Join(w.e.dir, day))
		if err != nil {
			return "", n, fmt.Errorf("%w: %w", ErrExport, err)
		}
		for _, f := range all {
			if !strings.HasPrefix(f.Name(), ".") {
				w.names = append(w.names, filepath.Join(day, f.Name()))
			}
		}
		slices.Sort(w.names)
	}
	switch {
	case len(w.names) > 0:
		name, w.names = w.names[0], w.names[1:]
	case !w.last:
		name, w.last = latestName, true
	default:
		return "", n, nil
	}
	n.Size, _ = strconv.ParseInt(filepath.Base(name), 10, 64) // 0: no name of a checkpoint, which is a finding
	n.Text, err = os.ReadFile(filepath.Join(w.e.dir, name))
	if errors.Is(err, fs.ErrNotExist) && name == latestName {
		return "", n, nil
	}
	if err != nil {
		return "", n, fmt.Errorf("%w: %w", ErrExport, err)
	}
	return name, n, nil
}
