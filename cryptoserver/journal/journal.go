// Package journal keeps on disk what a cryptoserver did, entry by entry, one
// chain for each boot, until the auditor has it.
//
// An entry is written before what it tells of leaves the process, so that it
// survives the process; it is synced to the disk some 100 ms later, together
// with others, so that a crash of the whole machine may lose the last ones. That
// is told apart from an orderly end, and from a process that was killed, and
// said of the boot ("torn").
//
// What an entry is the journal does not know. It numbers them and hands each the
// hash of the one before; to check the chain is for whoever reads it.
package journal

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Errors, for errors.Is.
var (
	// ErrUnavailable: entries cannot be written.
	ErrUnavailable = errors.New("the journal cannot be written")
	// ErrUnknown: there is no such boot, or it has no such entry.
	ErrUnknown = errors.New("no such boot or entry in the journal")
)

// Config is what a Journal is made of.
type Config struct {
	Dir string // made when missing; nobody else may read it, and no other process use it
	// Keep is how long a file is kept, at least, after its last entry; one that
	// the auditor does not have yet is kept for ever. 30 days when zero.
	Keep time.Duration
	Log  *slog.Logger
}

const (
	defaultKeep = 30 * 24 * time.Hour
	syncEvery   = 100 * time.Millisecond
	cleanEvery  = time.Hour
	// segmentSize is after how many bytes a boot goes on in another file: what
	// the auditor has of a boot that lasts can then be removed.
	segmentSize = 64 << 20
	// stuckAfter is how long one write may take before the journal counts as
	// unavailable.
	stuckAfter = 5 * time.Second
	// probeSize must fit on the disk before the journal is believed to be
	// writable again.
	probeSize = 64 << 10
)

// Journal is the journal of this boot, and what is left of the ones before. Safe
// for concurrent use.
type Journal struct {
	dir     string
	keep    time.Duration
	segment int64
	log     *slog.Logger
	lock    *os.File
	boot    [16]byte
	machine [16]byte

	mu       sync.Mutex // of all down to buf
	segments []*segment // in order; the last is being written
	file     *os.File   // of the last
	size     int64      // of what was written to it whole
	last     uint64     // sequence
	hash     [32]byte   // of the last entry
	buf      []byte
	closed   bool

	failed  atomic.Pointer[failure]
	writing atomic.Int64 // since when, UnixNano; 0: not
	read    atomic.Int64 // when Read was called last, or Open, UnixNano

	reading sync.Mutex // of readers and of removal; taken before mu
	cursor  cursor

	dirty   chan struct{}
	stop    chan struct{}
	stopped sync.WaitGroup
}

// failure is why nothing can be written.
type failure struct {
	err   error
	final bool // for this boot: what was written before may be lost
}

// Boot is the journal of one boot.
type Boot struct {
	ID    [16]byte
	Last  uint64 // sequence of the last entry; 0: none
	Ended bool   // no entry will follow
	Torn  bool   // a crash may have lost entries after the last
}

// Open settles what former boots left, and begins a new one.
func Open(c Config) (*Journal, error) { return open(c, segmentSize, machineBoot()) }

func open(c Config, segment int64, machine [16]byte) (_ *Journal, err error) {
	j := &Journal{
		dir: c.Dir, keep: c.Keep, segment: segment, log: c.Log, machine: machine,
		dirty: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	if j.keep == 0 {
		j.keep = defaultKeep
	}
	if j.log == nil {
		j.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("journal: %w", err)
		}
	}()
	if err := private(j.dir); err != nil {
		return nil, err
	}
	if j.lock, err = lock(filepath.Join(j.dir, "lock")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unlock(j.lock))
		}
	}()
	if _, err := rand.Read(j.boot[:]); err != nil {
		return nil, err
	}
	if err := j.settle(); err != nil {
		return nil, err
	}
	if err := j.begin(); err != nil {
		return nil, err
	}
	j.read.Store(time.Now().UnixNano())
	j.clean()
	j.stopped.Go(j.run)
	return j, nil
}

// private makes the folder, or sees that it is only ours.
func private(dir string) error {
	if dir == "" {
		return errors.New("no folder")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s may be read by others than its owner: it tells who read and sealed what (chmod 700)", dir)
	}
	return nil
}

// lock keeps a second process out; the kernel lets go when the process ends.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s is in use by another process: each cryptoserver needs a folder of its own (%w)", filepath.Dir(path), err)
	}
	return f, nil
}

// unlock lets go at once: closing alone would not, while a process that is being
// started still has a copy of the descriptor.
func unlock(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}

// machineBoot tells one run of the kernel from the next: what a process wrote is
// lost only when that ends. Zero when it is not known.
func machineBoot() (id [16]byte) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(b)), "-", ""))
	if err == nil && len(raw) == len(id) {
		copy(id[:], raw)
	}
	return id
}

// BootID is that of this boot.
func (j *Journal) BootID() [16]byte { return j.boot }

// Append adds n entries, all or none, and returns them. encode is called in
// order, with each entry's sequence and the SHA-256 of the entry before, zero for
// the first. When it returns an error nothing that the entries tell of may leave;
// it wraps ErrUnavailable.
func (j *Journal) Append(n int, encode func(i int, sequence uint64, previous [32]byte) []byte) ([][]byte, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if f := j.failed.Load(); f != nil {
		return nil, f.err
	}
	if j.closed {
		return nil, fmt.Errorf("%w: it is closed", ErrUnavailable)
	}
	if j.size >= j.segment {
		if err := j.rollOver(); err != nil {
			return nil, err
		}
	}
	out := make([][]byte, n)
	sequence, hash := j.last, j.hash
	j.buf = j.buf[:0]
	for i := range out {
		sequence++
		e := encode(i, sequence, hash)
		if len(e) == 0 || len(e) > maxEntry {
			return nil, fmt.Errorf("%w: an entry of %d bytes", ErrUnavailable, len(e))
		}
		out[i], hash = e, sha256.Sum256(e)
		j.buf = appendFrame(j.buf, e)
	}
	if err := j.write(j.buf); err != nil {
		// Nobody is told of what may be there in part.
		return nil, j.fail(errors.Join(err, j.file.Truncate(j.size)), false)
	}
	j.size += int64(len(j.buf))
	j.last, j.hash = sequence, hash
	j.segments[len(j.segments)-1].last = sequence
	if cap(j.buf) > maxEntry {
		j.buf = nil
	}
	select {
	case j.dirty <- struct{}{}:
	default:
	}
	return out, nil
}

func (j *Journal) write(b []byte) error {
	j.writing.Store(time.Now().UnixNano())
	defer j.writing.Store(0)
	_, err := j.file.WriteAt(b, j.size)
	return err
}

// fail notes why nothing can be written.
func (j *Journal) fail(err error, final bool) error {
	f := &failure{fmt.Errorf("%w: %w", ErrUnavailable, err), final}
	j.failed.Store(f)
	return f.err
}

// Err is nil while entries can be written.
func (j *Journal) Err() error {
	if f := j.failed.Load(); f != nil {
		return f.err
	}
	if since := j.writing.Load(); since != 0 && time.Since(time.Unix(0, since)) > stuckAfter {
		return fmt.Errorf("%w: a write takes longer than %s", ErrUnavailable, stuckAfter)
	}
	return nil
}

// Recover tries to write again after a failure, and returns Err. After a failed
// sync it does not: what had been written may be lost, and only a new boot says so.
func (j *Journal) Recover() error {
	f := j.failed.Load()
	if f == nil || f.final {
		return j.Err()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return f.err
	}
	probe := make([]byte, probeSize)
	err := j.file.Truncate(j.size)
	if err == nil {
		err = j.write(probe)
	}
	if err == nil {
		err = syncData(j.file)
	}
	if err = errors.Join(err, j.file.Truncate(j.size)); err != nil {
		return j.fail(err, false)
	}
	j.failed.Store(nil)
	return nil
}

// run syncs what was appended, a moment later and in groups, and removes what is
// not needed any more.
func (j *Journal) run() {
	clean := time.NewTicker(cleanEvery)
	defer clean.Stop()
	for {
		select {
		case <-j.stop:
			return
		case <-clean.C:
			j.clean()
		case <-j.dirty:
			select {
			case <-time.After(syncEvery):
			case <-j.stop:
				return
			}
			j.sync()
		}
	}
}

func (j *Journal) sync() {
	j.mu.Lock()
	f := j.file
	j.mu.Unlock()
	// Without the lock: whoever appends goes on.
	if err := syncData(f); err != nil && !errors.Is(err, os.ErrClosed) { // closed: it was synced
		j.mu.Lock()
		defer j.mu.Unlock()
		err := j.fail(fmt.Errorf("sync: %w", err), true)
		j.log.Error("what the journal holds may be lost; it is not written any more: see to the disk and restart", "error", err.Error())
	}
}

// syncData is fdatasync(2), which includes the size.
func syncData(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := c.Control(func(fd uintptr) {
		for {
			if failed = unix.Fdatasync(int(fd)); failed != unix.EINTR {
				return
			}
		}
	}); err != nil {
		return err
	}
	return failed
}

// begin makes the first segment of this boot.
func (j *Journal) begin() error {
	s, f, err := j.create(1)
	if err != nil {
		return err
	}
	j.file, j.size = f, int64(headerSize)
	j.segments = append(j.segments, s)
	return nil
}

// rollOver goes on in another segment; all of the one before is on the disk by
// then.
func (j *Journal) rollOver() error {
	if err := syncData(j.file); err != nil {
		return j.fail(fmt.Errorf("sync: %w", err), true)
	}
	s, f, err := j.create(j.last + 1)
	if err != nil {
		return j.fail(err, false)
	}
	before := j.segments[len(j.segments)-1]
	before.size, before.ended = j.size, time.Now()
	_ = j.file.Close() // it is synced
	j.file, j.size = f, int64(headerSize)
	j.segments = append(j.segments, s)
	return nil
}

// create makes a segment whose header is whole as soon as it has its name.
func (j *Journal) create(first uint64) (*segment, *os.File, error) {
	s := &segment{number: 1, boot: j.boot, first: first, last: first - 1}
	if n := len(j.segments); n > 0 {
		s.number = j.segments[n-1].number + 1
	}
	f, err := os.OpenFile(filepath.Join(j.dir, newName), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, err
	}
	_, err = f.Write(header(j.machine))
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(j.dir, s.name()))
	}
	if err == nil {
		err = syncDir(j.dir)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return s, f, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Close ends the boot in order: whoever reads it later knows that nothing is
// missing.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	j.mu.Unlock()
	close(j.stop)
	j.stopped.Wait()
	j.reading.Lock()
	defer j.reading.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	mark := uint32(markEnded) // a disk that is full has lost nothing of what was told
	if f := j.failed.Load(); f != nil && f.final {
		mark = markTorn
	}
	err := syncData(j.file)
	if err == nil {
		err = finish(j.file, j.size, mark)
	}
	return errors.Join(err, j.file.Close(), unlock(j.lock))
}

// finish writes the mark of how a boot ended, at the end of its last segment.
func finish(f *os.File, size int64, mark uint32) error {
	err := f.Truncate(size)
	if err == nil {
		_, err = f.WriteAt(frameHead(0, mark), size)
	}
	if err == nil {
		err = syncData(f)
	}
	return err
}

// Boots lists all that is left, oldest first; the last is this one.
func (j *Journal) Boots() []Boot {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []Boot
	for _, s := range j.segments {
		if n := len(out); n == 0 || out[n-1].ID != s.boot {
			out = append(out, Boot{ID: s.boot})
		}
		b := &out[len(out)-1]
		b.Last, b.Ended, b.Torn = s.last, s.boot != j.boot, s.torn
	}
	return out
}

// Use is what the journal takes and how it is read.
type Use struct {
	Bytes int64     // of all that is left
	Read  time.Time // when it was read last; of Open when it never was
}

// Use tells what the journal takes.
func (j *Journal) Use() Use {
	j.mu.Lock()
	defer j.mu.Unlock()
	u := Use{Read: time.Unix(0, j.read.Load()), Bytes: j.size}
	for _, s := range j.segments[:len(j.segments)-1] {
		u.Bytes += s.size
	}
	return u
}
