package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// cursor is where the last Read ended: whoever reads on begins there.
type cursor struct {
	number uint64
	after  uint64
	at     int64
}

// Read returns entries of a boot, in order, from the one after the sequence
// after, until they have limit bytes or some more; none: there are no more now.
// It is taken to say that the reader has all entries up to after for good. Entries
// that were removed since, or that the disk has lost, are passed over, which their
// chain shows.
func (j *Journal) Read(boot [16]byte, after uint64, limit int) ([][]byte, error) {
	j.reading.Lock()
	defer j.reading.Unlock()
	j.read.Store(time.Now().UnixNano())

	j.mu.Lock()
	closed := j.closed
	var list []segment // as they are now
	for i, s := range j.segments {
		if s.boot != boot {
			continue
		}
		list = append(list, *s)
		if i == len(j.segments)-1 {
			list[len(list)-1].size = j.size
		}
	}
	j.mu.Unlock()
	switch {
	case closed:
		return nil, fmt.Errorf("%w: it is closed", ErrUnavailable)
	case len(list) == 0 || after > list[len(list)-1].last:
		return nil, ErrUnknown
	}
	if err := j.take(list, after); err != nil {
		return nil, err
	}
	var out [][]byte
	for i := range list {
		s := &list[i]
		if s.last <= after {
			continue
		}
		var err error
		if out, err = j.readSegment(s, after, out, limit); err != nil {
			j.log.Error("a journal is damaged: what follows in this file cannot be read", "file", s.name(), "error", err.Error())
			if i == len(list)-1 && len(out) == 0 {
				return nil, err
			}
		}
		if total(out) >= limit {
			break
		}
	}
	return out, nil
}

func total(entries [][]byte) int {
	n := 0
	for _, e := range entries {
		n += len(e)
	}
	return n
}

func (j *Journal) readSegment(s *segment, after uint64, out [][]byte, limit int) ([][]byte, error) {
	f, err := os.Open(filepath.Join(j.dir, s.name()))
	if err != nil {
		return out, err
	}
	defer f.Close()
	from, sequence := int64(headerSize), s.first-1
	if c := j.cursor; c.number == s.number && c.after <= after {
		from, sequence = c.at, c.after
	}
	frames := readFrames(f, from, s.size)
	n := total(out)
	for n < limit {
		entry, mark, err := frames.next()
		switch {
		case mark != 0 || errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return out, fmt.Errorf("after entry %d: %w", sequence, err)
		}
		sequence++
		if sequence > after {
			out = append(out, entry)
			n += len(entry)
		}
		if sequence >= after {
			j.cursor = cursor{s.number, sequence, frames.at}
		}
	}
	return out, nil
}

// take notes which segments the reader has, in their names, so that it is known
// after a restart, too.
func (j *Journal) take(list []segment, after uint64) error {
	for i := range list {
		s := &list[i]
		if s.taken || s.last > after {
			continue
		}
		before := s.name()
		var err error
		j.mu.Lock()
		// The one that is being written has another entry soon.
		if k := slices.IndexFunc(j.segments[:len(j.segments)-1], func(o *segment) bool { return o.number == s.number }); k >= 0 {
			s.taken = true
			if err = os.Rename(filepath.Join(j.dir, before), filepath.Join(j.dir, s.name())); err == nil {
				j.segments[k].taken = true
			}
		}
		j.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// clean removes the segments that the reader has and that are old enough.
func (j *Journal) clean() {
	j.reading.Lock()
	defer j.reading.Unlock()
	j.mu.Lock()
	old := slices.Clone(j.segments[:len(j.segments)-1])
	j.mu.Unlock()
	for _, s := range old {
		// Of a boot in which nothing happened there is nothing to have.
		empty := s.last < s.first && !s.torn && s.boot != j.boot
		if !empty && (!s.taken || time.Since(s.ended) < j.keep) {
			continue
		}
		if err := os.Remove(filepath.Join(j.dir, s.name())); err != nil {
			j.log.Warn("a file of the journal cannot be removed", "error", err.Error())
			continue
		}
		j.mu.Lock()
		j.segments = slices.DeleteFunc(j.segments, func(o *segment) bool { return o == s })
		j.mu.Unlock()
	}
}
