package journal

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childEnv makes the test binary a process that appends until it is killed.
const childEnv = "KLUIS_JOURNAL_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	os.Exit(m.Run())
}

func child(dir string) {
	j, err := open(Config{Dir: dir}, 64<<10, thisMachine)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		if _, err := j.Append(1+i%3, entry); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(j.last)
	}
}

var (
	thisMachine  = [16]byte{1}
	otherMachine = [16]byte{2}
)

// entry is one that names its place, of a length that varies.
func entry(_ int, sequence uint64, previous [32]byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, sequence)
	b = append(b, previous[:]...)
	return append(b, bytes.Repeat([]byte{byte(sequence)}, int(sequence*37%400))...)
}

// chained sees that entries follow on after, and returns the sequence of the last.
func chained(t testing.TB, entries [][]byte, after uint64, hash *[32]byte) uint64 {
	t.Helper()
	for _, e := range entries {
		after++
		if want := entry(0, after, *hash); !bytes.Equal(e, want) {
			t.Fatalf("entry %d is another than was written", after)
		}
		*hash = sha256.Sum256(e)
	}
	return after
}

func temp(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

type config struct {
	Config
	segment int64
	machine [16]byte
}

func in(dir string) config {
	return config{Config{Dir: dir}, segmentSize, thisMachine}
}

func (c config) open(t testing.TB) *Journal {
	t.Helper()
	j, err := open(c.Config, c.segment, c.machine)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j
}

func (j *Journal) add(t testing.TB, n int) {
	t.Helper()
	if _, err := j.Append(n, entry); err != nil {
		t.Fatal(err)
	}
}

func (j *Journal) close(t testing.TB) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// all reads a boot to its end, as the auditor does.
func (j *Journal) all(t testing.TB, boot [16]byte, limit int) uint64 {
	t.Helper()
	var hash [32]byte
	var after uint64
	for {
		entries, err := j.Read(boot, after, limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			return after
		}
		after = chained(t, entries, after, &hash)
	}
}

// crash leaves the folder as a process does that is killed now.
func (j *Journal) crash(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(temp(t), "crashed")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range files(t, j.dir) {
		b, err := os.ReadFile(filepath.Join(j.dir, f))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, f), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func files(t testing.TB, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Name() != "lock" {
			names = append(names, e.Name())
		}
	}
	return names
}

// TestBoots: what was appended is read in order, in this boot and after it, in
// pieces of any size.
func TestBoots(t *testing.T) {
	t.Parallel()
	c := in(filepath.Join(temp(t), "made", "when", "missing"))
	c.segment = 4 << 10
	one := c.open(t)
	for i := range 100 {
		one.add(t, 1+i%3)
	}
	const n = 34 + 2*33 + 3*33
	for _, limit := range []int{1, 500, 1 << 20} {
		if got := one.all(t, one.BootID(), limit); got != n {
			t.Errorf("read %d entries", got)
		}
	}
	if b := one.Boots(); !slices.Equal(b, []Boot{{ID: one.BootID(), Last: n}}) {
		t.Errorf("%+v", b)
	}
	// A reader that begins anew, anywhere.
	entries, err := one.Read(one.BootID(), 50, 1)
	if err != nil || len(entries) != 1 || binary.BigEndian.Uint64(entries[0]) != 51 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	for name, try := range map[string]struct {
		boot  [16]byte
		after uint64
	}{"unknown boot": {[16]byte{9}, 0}, "beyond the last": {one.BootID(), n + 1}} {
		if _, err := one.Read(try.boot, try.after, 1); !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: %v", name, err)
		}
	}
	one.close(t)
	if _, err := one.Append(1, entry); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after the end: %v", err)
	}

	c.machine = otherMachine // which an orderly end does not mind
	two := c.open(t)
	two.add(t, 1)
	if two.BootID() == one.BootID() {
		t.Error("two boots with one id")
	}
	if b := two.Boots(); !slices.Equal(b, []Boot{{ID: one.BootID(), Last: n, Ended: true}, {ID: two.BootID(), Last: 1}}) {
		t.Errorf("%+v", b)
	}
	if got := two.all(t, one.BootID(), 700); got != n {
		t.Errorf("read %d entries of the boot before", got)
	}
	if got := two.all(t, two.BootID(), 700); got != 1 {
		t.Errorf("read %d entries", got)
	}
}

// TestTornTail cuts a journal at every byte of its last entries, and spoils it.
// What is whole is read; whether something may be missing depends on whether the
// machine went on.
func TestTornTail(t *testing.T) {
	t.Parallel()
	j := in(temp(t)).open(t)
	j.add(t, 3)
	three := j.size
	j.add(t, 1)
	four := j.size
	whole := j.crash(t)
	name := files(t, whole)[0]
	content, err := os.ReadFile(filepath.Join(whole, name))
	if err != nil || int64(len(content)) != four {
		t.Fatal(err, len(content))
	}
	try := func(what string, b []byte, machine [16]byte, want Boot) {
		t.Helper()
		c := in(temp(t))
		c.machine = machine
		if err := os.WriteFile(filepath.Join(c.Dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		want.ID, want.Ended = j.BootID(), true
		for range 2 { // what is found is found again, even when the machine stopped since
			after := c.open(t)
			if got := after.Boots()[0]; got != want {
				t.Errorf("%s: %+v, want %+v", what, got, want)
			}
			if got := after.all(t, j.BootID(), 1); got != want.Last {
				t.Errorf("%s: read %d entries", what, got)
			}
			after.close(t)
			if c.machine == thisMachine {
				c.machine = [16]byte{3}
			}
		}
	}
	for cut := three; cut <= four; cut++ {
		last := uint64(3)
		if cut == four {
			last = 4
		}
		try(fmt.Sprintf("killed at byte %d", cut), content[:cut], thisMachine, Boot{Last: last})
		try(fmt.Sprintf("crashed at byte %d", cut), content[:cut], otherMachine, Boot{Last: last, Torn: true})
	}
	unknown := append(header([16]byte{}), content[headerSize:]...)
	try("a kernel that does not say", unknown, [16]byte{}, Boot{Last: 4, Torn: true})
	zeros := append(slices.Clone(content[:three]), make([]byte, four-three)...)
	try("the last never reached the disk", zeros, thisMachine, Boot{Last: 3, Torn: true})
	spoilt := slices.Clone(content)
	spoilt[three+20] ^= 1
	try("the last is spoilt", spoilt, thisMachine, Boot{Last: 3, Torn: true})
	spoilt = slices.Clone(content)
	spoilt[headerSize+frameSize+3] ^= 1
	try("the first is spoilt", spoilt, thisMachine, Boot{Torn: true})
	try("something after the mark", append(append(slices.Clone(content), frameHead(0, markEnded)...), 0), thisMachine, Boot{Last: 4, Torn: true})
	try("no beginning", content[:5], thisMachine, Boot{Torn: true})
	try("empty", nil, thisMachine, Boot{Torn: true})
}

// TestKilled: a process that is killed while it appends has written all that it
// told of.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := temp(t)
	for i := range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		told := uint64(0)
		lines := bufio.NewScanner(out)
		var once sync.Once
		for lines.Scan() {
			if told, err = strconv.ParseUint(lines.Text(), 10, 64); err != nil {
				t.Fatal(err)
			}
			once.Do(func() {
				time.AfterFunc(time.Duration(10+7*i)*time.Millisecond, func() { _ = cmd.Process.Kill() })
			})
		}
		_ = cmd.Wait() // it was killed
		j := in(dir).open(t)
		boots := j.Boots()
		b := boots[len(boots)-2]
		if told == 0 || b.Last < told || b.Torn || !b.Ended {
			t.Errorf("told of %d entries, %+v", told, b)
		}
		if got := j.all(t, b.ID, 1<<20); got != b.Last {
			t.Errorf("read %d of %d entries", got, b.Last)
		}
		j.close(t)
	}
}

// TestNoRoom: a disk that takes half a write. Nobody is told of the entry, nothing
// is written until there is room, and then it goes on where it was.
func TestNoRoom(t *testing.T) { // not parallel: the limit is the process's
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	j := in(temp(t)).open(t)
	j.add(t, 5)
	size := j.size
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(size) + 20, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	_, err := j.Append(1, entry)
	stays := j.Recover()
	_, again := j.Append(1, entry)
	said := j.Err()
	st, statErr := j.file.Stat()
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"append": err, "recover": stays, "append again": again, "health": said} {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if statErr != nil || st.Size() != size {
		t.Errorf("%d bytes, %d before, %v", st.Size(), size, statErr)
	}
	if got := j.all(t, j.BootID(), 1<<20); got != 5 {
		t.Errorf("%d entries can be read", got)
	}
	// There is room: but nothing is written before that is known.
	if _, err := j.Append(1, entry); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	if err := j.Recover(); err != nil {
		t.Fatal(err)
	}
	j.add(t, 2)
	if got := j.all(t, j.BootID(), 1<<20); got != 7 || j.Err() != nil {
		t.Errorf("%d entries, %v", got, j.Err())
	}
}

// TestFailedSync: what the kernel could not write it may have forgotten, so the
// boot is over, and is called torn.
func TestFailedSync(t *testing.T) {
	t.Parallel()
	c := in(temp(t))
	j := c.open(t)
	j.add(t, 3)
	// fdatasync of a pipe fails, as that of a broken disk does.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	j.mu.Lock()
	real := j.file
	j.file = w
	j.mu.Unlock()
	j.sync()
	j.mu.Lock()
	j.file = real
	j.mu.Unlock()
	if _, err := j.Append(1, entry); !errors.Is(err, ErrUnavailable) || !errors.Is(j.Recover(), ErrUnavailable) || !errors.Is(j.Err(), ErrUnavailable) {
		t.Errorf("%v, %v", err, j.Err())
	}
	j.close(t)
	if b := c.open(t).Boots()[0]; b.Last != 3 || !b.Torn {
		t.Errorf("%+v", b)
	}
}

// TestKept: nothing is removed that the reader does not have, however old; then
// it goes once it is old enough, in this boot as well.
func TestKept(t *testing.T) {
	t.Parallel()
	c := in(temp(t))
	c.segment, c.Keep = 2<<10, time.Hour
	one := c.open(t)
	for range 50 {
		one.add(t, 1)
	}
	one.close(t)
	old := func() {
		t.Helper()
		past := time.Now().Add(-2 * time.Hour)
		for _, f := range files(t, c.Dir) {
			if err := os.Chtimes(filepath.Join(c.Dir, f), past, past); err != nil {
				t.Fatal(err)
			}
		}
	}
	old()
	two := c.open(t)
	if got := two.all(t, one.BootID(), 1<<20); got != 50 {
		t.Fatalf("read %d", got)
	}
	for range 50 {
		two.add(t, 1)
	}
	two.close(t)
	// Taken, and young: kept. A restart does not forget what was taken.
	for _, f := range files(t, c.Dir) {
		if err := os.Chtimes(filepath.Join(c.Dir, f), time.Now(), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	three := c.open(t)
	if b := three.Boots(); len(b) != 3 {
		t.Errorf("%+v", b)
	}
	if _, err := three.Read(two.BootID(), 20, 1); err != nil { // the reader has 20
		t.Fatal(err)
	}
	three.close(t)
	old()
	four := c.open(t)
	b := four.Boots()
	if len(b) != 2 || b[0].ID != two.BootID() || b[0].Last != 50 {
		t.Errorf("%+v", b)
	}
	entries, err := four.Read(two.BootID(), 0, 1)
	if err != nil || len(entries) == 0 {
		t.Fatal(err)
	}
	if first := binary.BigEndian.Uint64(entries[0]); first < 2 || first > 21 {
		t.Errorf("the first left is entry %d", first)
	}
	// Of the boot that goes on, too.
	for range 50 {
		four.add(t, 1)
	}
	if got := four.all(t, four.BootID(), 1<<20); got != 50 {
		t.Fatal(got)
	}
	n, bytes := len(files(t, c.Dir)), four.Use().Bytes
	four.mu.Lock()
	for _, s := range four.segments {
		s.ended = time.Now().Add(-2 * time.Hour)
	}
	four.mu.Unlock()
	four.clean()
	if left := len(files(t, c.Dir)); left >= n || four.Use().Bytes >= bytes {
		t.Errorf("%d of %d files left, %d of %d bytes", left, n, four.Use().Bytes, bytes)
	}
	four.add(t, 1)
	if entries, err := four.Read(four.BootID(), 50, 1); err != nil || len(entries) != 1 {
		t.Errorf("%d, %v", len(entries), err)
	}
}

// TestPrivate: what tells who read what is for its owner only, and for one
// process.
func TestPrivate(t *testing.T) {
	t.Parallel()
	c := in(filepath.Join(temp(t), "journal"))
	j := c.open(t)
	j.add(t, 1)
	for path, want := range map[string]fs.FileMode{c.Dir: 0o700, filepath.Join(c.Dir, files(t, c.Dir)[0]): 0o600, filepath.Join(c.Dir, "lock"): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
	refused := func(what, say string, c config) {
		t.Helper()
		if j, err := open(c.Config, c.segment, c.machine); err == nil || !strings.Contains(err.Error(), say) {
			if j != nil {
				j.close(t)
			}
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("a second process", "in use", c)
	j.close(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(c.Dir, 0o750))
	refused("a folder for all", "chmod 700", c)
	must(os.Chmod(c.Dir, 0o700))
	file := filepath.Join(c.Dir, files(t, c.Dir)[0])
	must(os.Chmod(file, 0o640))
	refused("a file for all", "chmod 600", c)
	must(os.Chmod(file, 0o600))
	must(os.WriteFile(filepath.Join(c.Dir, "x.journal"), nil, 0o600))
	refused("a file of something else", "not a file of a journal", c)
	must(os.Remove(filepath.Join(c.Dir, "x.journal")))
	refused("no folder", "no folder", in(""))
	must(os.WriteFile(filepath.Join(c.Dir, newName), []byte("half"), 0o600)) // killed while a file was begun
	if b := c.open(t).Boots(); len(b) != 2 || b[0].Last != 1 || b[0].Torn {
		t.Errorf("%+v", b)
	}
	if exists := slices.Contains(files(t, c.Dir), newName); exists {
		t.Error("what was half begun is still there")
	}
}

// TestMissingFile: a file that somebody removes is a gap that the chain shows, and
// hides nothing else.
func TestMissingFile(t *testing.T) {
	t.Parallel()
	c := in(temp(t))
	c.segment = 2 << 10
	c.Log = slog.New(slog.DiscardHandler)
	j := c.open(t)
	for range 60 {
		j.add(t, 1)
	}
	list := files(t, c.Dir)
	if len(list) < 4 {
		t.Fatalf("%d files", len(list))
	}
	if err := os.Remove(filepath.Join(c.Dir, list[1])); err != nil {
		t.Fatal(err)
	}
	entries, err := j.Read(j.BootID(), 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var gaps int
	for i := 1; i < len(entries); i++ {
		if binary.BigEndian.Uint64(entries[i]) != binary.BigEndian.Uint64(entries[i-1])+1 {
			gaps++
		}
		if sum := sha256.Sum256(entries[i-1]); (binary.BigEndian.Uint64(entries[i]) != binary.BigEndian.Uint64(entries[i-1])+1) == bytes.Equal(entries[i][8:40], sum[:]) {
			t.Errorf("the chain does not tell what is missing after entry %d", i)
		}
	}
	if last := binary.BigEndian.Uint64(entries[len(entries)-1]); gaps != 1 || last != 60 {
		t.Errorf("%d gaps, the last is %d", gaps, last)
	}
}

// TestConcurrent: many append while one reads; every entry is read once, in order.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	c := in(temp(t))
	c.segment = 16 << 10
	j := c.open(t)
	const writers, each = 8, 100
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if _, err := j.Append(2, entry); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var hash [32]byte
	var after uint64
	for after < 2*writers*each {
		entries, err := j.Read(j.BootID(), after, 2000)
		if err != nil {
			t.Fatal(err)
		}
		after = chained(t, entries, after, &hash)
		runtime.Gosched()
	}
	wg.Wait()
}

// TestRefused: an entry that cannot be one changes nothing.
func TestRefused(t *testing.T) {
	t.Parallel()
	j := in(temp(t)).open(t)
	for _, size := range []int{0, maxEntry + 1} {
		if _, err := j.Append(2, func(i int, sequence uint64, previous [32]byte) []byte {
			if i == 0 {
				return entry(i, sequence, previous)
			}
			return make([]byte, size)
		}); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	j.add(t, 3)
	if got := j.all(t, j.BootID(), 1); got != 3 {
		t.Errorf("%d entries", got)
	}
	if u := j.Use(); u.Bytes != j.size || time.Since(u.Read) > time.Minute {
		t.Errorf("%+v", u)
	}
}

// TestBounded: the memory does not grow with what is appended.
func TestBounded(t *testing.T) { // not parallel: it measures the heap
	j := in(temp(t)).open(t)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for range 1000 {
		j.add(t, 100)
	}
	before := heap()
	for range 1000 {
		j.add(t, 100)
	}
	if got := j.all(t, j.BootID(), 1<<20); got != 200_000 {
		t.Fatal(got)
	}
	if after := heap(); after > before+1<<20 {
		t.Errorf("%d bytes more for a hundred thousand entries", after-before)
	}
}

// FuzzFrames: whatever is found on disk is read without panic, and what is read
// is what was there.
func FuzzFrames(f *testing.F) {
	var whole []byte
	for i := uint64(1); i < 4; i++ {
		whole = appendFrame(whole, entry(0, i, [32]byte{}))
	}
	f.Add(whole)
	f.Add(append(slices.Clone(whole), frameHead(0, markEnded)...))
	f.Add(append(slices.Clone(whole), frameHead(1<<31, 0)...))
	f.Add(append(slices.Clone(whole), frameHead(0, 0)...))
	f.Add(whole[:len(whole)-3])
	f.Fuzz(func(t *testing.T, b []byte) {
		r := readFrames(bytes.NewReader(b), 0, int64(len(b)))
		var again []byte
		for {
			e, mark, err := r.next()
			if mark != 0 {
				again = append(again, frameHead(0, mark)...)
				if !bytes.Equal(again, b) {
					t.Fatalf("%x is read as %x", b, again)
				}
				return
			}
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, errCut) && !errors.Is(err, errBad) || errors.Is(err, io.EOF) != (len(again) == len(b)) {
					t.Fatal(err)
				}
				break
			}
			if again = appendFrame(again, e); int64(len(again)) != r.at {
				t.Fatalf("at %d after %d bytes", r.at, len(again))
			}
		}
		if !bytes.HasPrefix(b, again) {
			t.Fatalf("%x is read as %x", b, again)
		}
	})
}

// BenchmarkAppend is what an entry of the length of a receipt costs.
func BenchmarkAppend(b *testing.B) {
	j := in(temp(b)).open(b)
	e := make([]byte, 300)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := j.Append(1, func(int, uint64, [32]byte) []byte { return e }); err != nil {
			b.Fatal(err)
		}
	}
}
