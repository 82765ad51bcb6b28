package journal

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A segment is a header (magic, id of the kernel's run) and frames: length of the
// entry, CRC-32C of it, both big endian, and the entry. A frame of length 0 ends
// the boot; its second word says how. The checksum is against disks, not against
// people.
const (
	magic      = "KLUISJ\x01\n"
	headerSize = len(magic) + 16
	frameSize  = 8
	maxEntry   = 1 << 20

	markEnded = 0x656e6421 // in order, or its process was killed: nothing is lost
	markTorn  = 0x746f726e // its machine stopped: the end may be lost

	ending      = ".journal" // the auditor may not have all of it yet
	endingTaken = ".taken"   // the auditor said it has
	newName     = "segment.new"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func header(machine [16]byte) []byte { return append([]byte(magic), machine[:]...) }

func frameHead(length int, second uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(make([]byte, 0, frameSize), uint32(length)), second)
}

func appendFrame(dst, entry []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(entry)))
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(entry, castagnoli))
	return append(dst, entry...)
}

// segment is a file of a boot.
type segment struct {
	number uint64 // counts all segments in the folder
	boot   [16]byte
	first  uint64 // sequence of its first entry, whether or not it has one
	last   uint64 // first - 1: it has none
	taken  bool
	torn   bool
	size   int64     // unless it is being written
	ended  time.Time // of its last entry, unless it is being written
}

func (s *segment) name() string {
	end := ending
	if s.taken {
		end = endingTaken
	}
	return fmt.Sprintf("%016x-%x-%016x%s", s.number, s.boot, s.first, end)
}

func parseName(name string) (*segment, error) {
	bad := fmt.Errorf("%s is not a file of a journal", name)
	s := &segment{}
	base, plain := strings.CutSuffix(name, ending)
	if !plain {
		base, s.taken = strings.CutSuffix(name, endingTaken)
	}
	parts := strings.Split(base, "-")
	if plain == s.taken || len(parts) != 3 {
		return nil, bad
	}
	var err [3]error
	var boot []byte
	s.number, err[0] = strconv.ParseUint(parts[0], 16, 64)
	boot, err[1] = hex.DecodeString(parts[1])
	s.first, err[2] = strconv.ParseUint(parts[2], 16, 64)
	if errors.Join(err[:]...) != nil || len(boot) != len(s.boot) || s.first == 0 || s.number == 0 {
		return nil, bad
	}
	copy(s.boot[:], boot)
	if s.last = s.first - 1; s.name() != name {
		return nil, bad
	}
	return s, nil
}

// frames reads the frames of a segment one after the other.
type frames struct {
	r    *bufio.Reader
	at   int64 // of the frame that next returns
	left int64 // of the file from there
}

var (
	errCut = errors.New("the file ends within a frame")
	errBad = errors.New("not a frame")
)

// next returns an entry, or the mark that ends the boot; io.EOF at the end of the
// file, errCut when it ends within a frame, errBad for what is none.
func (f *frames) next() (entry []byte, mark uint32, err error) {
	switch {
	case f.left == 0:
		return nil, 0, io.EOF
	case f.left < frameSize:
		return nil, 0, errCut
	}
	var head [frameSize]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return nil, 0, err
	}
	n, second := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
	switch {
	case n == 0 && f.left == frameSize && (second == markEnded || second == markTorn):
		return nil, second, nil
	case n == 0 || n > maxEntry:
		return nil, 0, errBad
	case f.left < frameSize+int64(n):
		return nil, 0, errCut
	}
	entry = make([]byte, n)
	if _, err := io.ReadFull(f.r, entry); err != nil {
		return nil, 0, err
	}
	if crc32.Checksum(entry, castagnoli) != second {
		return nil, 0, errBad
	}
	f.at += frameSize + int64(n)
	f.left -= frameSize + int64(n)
	return entry, 0, nil
}

// readFrames begins at an offset; size is where the file counts as ended.
func readFrames(file io.ReaderAt, from, size int64) *frames {
	return &frames{r: bufio.NewReaderSize(io.NewSectionReader(file, from, size-from), 64<<10), at: from, left: size - from}
}

// settle reads what former boots left, and marks how the last of them ended.
func (j *Journal) settle() error {
	list, err := os.ReadDir(j.dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		switch name := e.Name(); {
		case name == newName:
			if err := os.Remove(filepath.Join(j.dir, name)); err != nil {
				return err
			}
		case strings.HasSuffix(name, ending), strings.HasSuffix(name, endingTaken):
			s, err := parseName(name)
			if err != nil {
				return err
			}
			st, err := os.Stat(filepath.Join(j.dir, name))
			if err != nil {
				return err
			}
			if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
				return fmt.Errorf("%s may be read by others than its owner (chmod 600)", filepath.Join(j.dir, name))
			}
			s.size, s.ended = st.Size(), st.ModTime()
			j.segments = append(j.segments, s)
		}
	}
	slices.SortFunc(j.segments, func(a, b *segment) int {
		return strings.Compare(a.name(), b.name())
	})
	for i, s := range j.segments {
		if i+1 < len(j.segments) && j.segments[i+1].boot == s.boot {
			s.last = max(s.last, j.segments[i+1].first-1)
			continue
		}
		if err := j.end(s); err != nil {
			return fmt.Errorf("%s: %w", s.name(), err)
		}
	}
	return nil
}

// end finds the last entry of a former boot. Of one without a mark, whose process
// was killed, it writes the mark, so that it is known when the machine stops later.
func (j *Journal) end(s *segment) error {
	f, err := os.OpenFile(filepath.Join(j.dir, s.name()), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // what matters is synced
	var head [headerSize]byte
	if _, err := f.ReadAt(head[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if string(head[:len(magic)]) != magic {
		s.torn = true
		j.log.Error("a journal has lost its beginning", "file", s.name())
		return nil
	}
	frames := readFrames(f, int64(headerSize), s.size)
	var mark uint32
	for err == nil && mark == 0 {
		var entry []byte
		if entry, mark, err = frames.next(); entry != nil {
			s.last++
		}
	}
	switch {
	case mark != 0:
		s.torn = mark == markTorn
		return nil
	case errors.Is(err, errBad):
		s.torn = true
		j.log.Error("a journal is damaged: what follows the last good entry cannot be read", "file", s.name(), "entries", s.last-s.first+1, "bytes", frames.left)
		return nil
	case !errors.Is(err, io.EOF) && !errors.Is(err, errCut):
		return err
	}
	// An entry that is there in part was never told to anybody.
	mark = markEnded
	if j.machine == [16]byte{} || [16]byte(head[len(magic):]) != j.machine {
		mark, s.torn = markTorn, true
		j.log.Warn("the machine stopped while a journal was written: its last entries may be lost", "file", s.name())
	}
	if err := finish(f, frames.at, mark); err != nil {
		return err
	}
	s.size = frames.at + frameSize
	return nil
}
