package custodian

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"kluis/authz"
	"kluis/cryptoserver/control"
	"kluis/internal/canonical"
)

// The copy is a file that is only ever appended to: a line that says what it
// is, then one record for each entry of the feed:
//
//	length of the body (4 bytes), its complement (4 bytes),
//	the first 8 bytes of the SHA-256 of the body,
//	the body: canonical "kluis/control-copy": sequence, entry, signed head
//
// The checksum says whether a record was written to its end; whether it is
// true, the chain and the signature of its head say. Each record is on the disk
// before the next is written. So a crash can spoil the last record only, which
// is cut off: the database has it. Whatever else is wrong is refused.
const (
	copyMagic   = "kluis control copy 1\n"
	copyDomain  = "kluis/control-copy"
	copyVersion = 1

	maxEntry  = 1 << 17
	maxHead   = 1 << 10
	maxRecord = maxEntry + maxHead + 256
	frameSize = 16
)

// errTorn: the rest of the file is what a crash can leave of a record.
var errTorn = errors.New("torn")

func encodeRecord(a Appended) []byte {
	w := canonical.New(copyDomain, copyVersion)
	w.U64(a.Sequence)
	w.Bytes(a.Entry)
	w.Bytes(a.Head)
	body := w.Encoded()
	sum := sha256.Sum256(body)
	b := binary.BigEndian.AppendUint32(make([]byte, 0, frameSize+len(body)), uint32(len(body)))
	b = binary.BigEndian.AppendUint32(b, ^uint32(len(body)))
	b = append(b, sum[:8]...)
	return append(b, body...)
}

// readRecord reads the next record of a file with rest bytes left, and says how
// long it is. io.EOF: there is none; errTorn: what is left may be cut off;
// ErrCopy: it is neither.
func readRecord(r *bufio.Reader, rest int64) (Appended, int64, error) {
	var a Appended
	if rest == 0 {
		return a, 0, io.EOF
	}
	var frame [frameSize]byte
	if rest < frameSize {
		return a, 0, errTorn
	}
	if _, err := io.ReadFull(r, frame[:]); err != nil {
		return a, 0, err
	}
	n := binary.BigEndian.Uint32(frame[0:4])
	switch {
	case frame == [frameSize]byte{} && rest <= maxRecord+frameSize:
		// A file that grew before its content was written.
		left, err := io.ReadAll(r)
		if err != nil {
			return a, 0, err
		}
		if len(bytes.Trim(left, "\x00")) == 0 {
			return a, 0, errTorn
		}
		return a, 0, fmt.Errorf("%w: a record has no length", ErrCopy)
	case ^n != binary.BigEndian.Uint32(frame[4:8]) || n == 0 || n > maxRecord:
		return a, 0, fmt.Errorf("%w: a record has no length", ErrCopy)
	case rest < frameSize+int64(n):
		return a, 0, errTorn
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return a, 0, err
	}
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:8], frame[8:]) {
		if rest == frameSize+int64(n) {
			return a, 0, errTorn
		}
		return a, 0, fmt.Errorf("%w: a record has another checksum", ErrCopy)
	}
	d, _, err := canonical.Open(body, copyDomain, copyVersion)
	if err != nil {
		return a, 0, fmt.Errorf("%w: %w", ErrCopy, err)
	}
	a.Sequence = d.U64()
	a.Entry = d.Bytes(maxEntry)
	a.Head = d.Bytes(maxHead)
	if err := d.Close(); err != nil {
		return Appended{}, 0, fmt.Errorf("%w: %w", ErrCopy, err)
	}
	return a, frameSize + int64(n), nil
}

// feedCopy is the custodian's own copy of the feed. Safe for concurrent use,
// also by several processes on one file.
type feedCopy struct {
	keys *authz.SealKeys
	feed *control.Feed // as far as the copy goes
	log  *slog.Logger

	mu      sync.Mutex
	file    *os.File
	end     int64   // of the last good record
	offsets []int64 // of the records
	newest  Appended
}

// openCopy opens a copy, or makes an empty one, and verifies all of it.
func openCopy(path string, keys *authz.SealKeys, log *slog.Logger) (*feedCopy, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCopy, err)
	}
	c := &feedCopy{keys: keys, feed: control.NewFeed(), log: log, file: f}
	if err := c.begin(path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return c, nil
}

func (c *feedCopy) begin(path string) error {
	info, err := c.file.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCopy, err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%w: %s must be a file that only its owner may read and write: run  chmod 600 %s", ErrCopy, path, path)
	}
	if err := syncFolder(path); err != nil {
		return fmt.Errorf("%w: %w", ErrCopy, err)
	}
	return c.locked(c.refresh)
}

// syncFolder makes the file's name durable.
func syncFolder(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// close ends the use of the file.
func (c *feedCopy) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.file.Close()
}

// locked runs f as the only one of all processes.
func (c *feedCopy) locked(f func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	fd := int(c.file.Fd())
	for {
		err := syscall.Flock(fd, syscall.LOCK_EX)
		if err == nil {
			break
		}
		if err != syscall.EINTR {
			return fmt.Errorf("%w: lock: %w", ErrCopy, err)
		}
	}
	err := f()
	return errors.Join(err, syscall.Flock(fd, syscall.LOCK_UN))
}

// refresh reads what is new in the file, and cuts off what a crash spoiled: the
// lock says that nobody is writing it.
func (c *feedCopy) refresh() error {
	info, err := c.file.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCopy, err)
	}
	size := info.Size()
	if c.end == 0 {
		if err := c.header(size); err != nil {
			return err
		}
		size = max(size, c.end)
	}
	if size < c.end {
		return fmt.Errorf("%w: somebody cut it short while it was in use", ErrCopy)
	}
	if size == c.end {
		return nil
	}
	r := bufio.NewReader(io.NewSectionReader(c.file, c.end, size-c.end))
	for {
		a, n, err := readRecord(r, size-c.end)
		switch {
		case errors.Is(err, io.EOF) && size == c.end:
			return nil
		case errors.Is(err, errTorn):
			c.log.Warn("the last record of the copy of the control feed was not written to its end; it is read from the database again",
				"after", len(c.offsets))
			if err := c.cut(); err != nil {
				return err
			}
			return nil
		case errors.Is(err, ErrCopy):
			return fmt.Errorf("entry %d: %w", len(c.offsets)+1, err)
		case err != nil:
			return fmt.Errorf("%w: %w", ErrCopy, err)
		}
		if err := c.take(a); err != nil {
			return fmt.Errorf("%w: %w", ErrCopy, err)
		}
		c.offsets = append(c.offsets, c.end)
		c.end += n
	}
}

// header checks the first line, and writes it to a new file.
func (c *feedCopy) header(size int64) error {
	head := make([]byte, min(size, int64(len(copyMagic))))
	if _, err := c.file.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", ErrCopy, err)
	}
	torn := size < int64(len(copyMagic)) && bytes.HasPrefix([]byte(copyMagic), head) ||
		size <= int64(len(copyMagic)) && len(bytes.Trim(head, "\x00")) == 0
	if torn {
		if err := c.write([]byte(copyMagic), 0); err != nil {
			return err
		}
	} else if string(head) != copyMagic {
		return fmt.Errorf("%w: it is no copy of a control feed", ErrCopy)
	}
	c.end = int64(len(copyMagic))
	return nil
}

func (c *feedCopy) write(b []byte, at int64) error {
	if _, err := c.file.WriteAt(b, at); err != nil {
		return fmt.Errorf("%w: %w", ErrCopy, err)
	}
	if err := c.file.Sync(); err != nil {
		return fmt.Errorf("%w: %w", ErrCopy, err)
	}
	return nil
}

func (c *feedCopy) cut() error {
	if err := errors.Join(c.file.Truncate(c.end), c.file.Sync()); err != nil {
		return fmt.Errorf("%w: %w", ErrCopy, err)
	}
	return nil
}

// take follows the feed by one entry that verifies.
func (c *feedCopy) take(a Appended) error {
	if want := uint64(len(c.offsets)) + 1; a.Sequence != want {
		return fmt.Errorf("entry %d stands in the place of %d", a.Sequence, want)
	}
	head, err := control.OpenHead(a.Head, c.keys)
	if err != nil {
		return fmt.Errorf("entry %d: %w", a.Sequence, err)
	}
	if head.Sequence != a.Sequence {
		return fmt.Errorf("entry %d has the head of %d", a.Sequence, head.Sequence)
	}
	if _, err := c.feed.Advance(head, a.Sequence, [][]byte{a.Entry}); err != nil {
		return fmt.Errorf("entry %d: %w", a.Sequence, err)
	}
	c.newest = a
	return nil
}

// last returns the last entry; its sequence is 0 when there is none.
func (c *feedCopy) last() Appended {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newest
}

// extend adds entries of the database. Those that the copy has must be the
// same (ErrRolledBack); a new one must verify (ErrFeed).
func (c *feedCopy) extend(entries []Appended) error {
	return c.locked(func() error {
		if err := c.refresh(); err != nil {
			return err
		}
		for _, a := range entries {
			if known := uint64(len(c.offsets)); a.Sequence <= known {
				have, err := c.at(a.Sequence)
				if err != nil {
					return err
				}
				if !bytes.Equal(have.Entry, a.Entry) {
					return fmt.Errorf("%w: entry %d is another one there than in the copy", ErrRolledBack, a.Sequence)
				}
				continue
			}
			if err := c.take(a); err != nil {
				return fmt.Errorf("%w: %w", ErrFeed, err)
			}
			b := encodeRecord(a)
			if err := c.write(b, c.end); err != nil {
				// The feed is ahead of the file now; the next start reads it
				// from the database again.
				return errors.Join(err, c.cut())
			}
			c.offsets = append(c.offsets, c.end)
			c.end += int64(len(b))
		}
		return nil
	})
}

// at reads a record that was verified before.
func (c *feedCopy) at(sequence uint64) (Appended, error) {
	from := c.offsets[sequence-1]
	to := c.end
	if sequence < uint64(len(c.offsets)) {
		to = c.offsets[sequence]
	}
	a, _, err := readRecord(bufio.NewReader(io.NewSectionReader(c.file, from, to-from)), to-from)
	if err != nil {
		return a, fmt.Errorf("%w: entry %d changed while it was in use: %v", ErrCopy, sequence, err)
	}
	return a, nil
}

// read returns entries from first on: at least one when there is one, of at
// most about size bytes.
func (c *feedCopy) read(first uint64, size int) ([]Appended, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Appended
	for n := first; n >= 1 && n <= uint64(len(c.offsets)); n++ {
		a, err := c.at(n)
		if err != nil {
			return nil, err
		}
		if size -= len(a.Entry); size < 0 && len(out) > 0 {
			break
		}
		out = append(out, a)
	}
	return out, nil
}
