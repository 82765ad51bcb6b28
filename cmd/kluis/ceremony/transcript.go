package ceremony

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// TranscriptName is what a transcript is called in the folder of its ceremony.
const TranscriptName = "transcript.jsonl"

// ErrTranscript says that a transcript is not what its entries say it was.
var ErrTranscript = errors.New("the transcript was changed")

// Entry is one line of a transcript.
type Entry struct {
	Number   int       `json:"number"`
	At       time.Time `json:"at"`       // UTC
	Previous string    `json:"previous"` // SHA-256 of all bytes before this line, hex
	Step     string    `json:"step"`     // begin, init, create, import, public, end
	Server   string    `json:"server,omitempty"`
	Command  []string  `json:"command,omitempty"`
	// Said is what the command reported: without secrets.
	Said        []string          `json:"said,omitempty"`
	Fingerprint string            `json:"fingerprint,omitempty"` // of the server's public keys
	Files       map[string]string `json:"files,omitempty"`       // written or used: SHA-256, hex
	Result      string            `json:"result"`                // ok, or why not
	Facts       map[string]string `json:"facts,omitempty"`
}

// Transcript is the append-only account of a ceremony. Safe for concurrent use.
type Transcript struct {
	mu     sync.Mutex
	f      *os.File
	sum    hash.Hash // of all bytes written
	number int
	torn   bool // the last line was cut off when its writer died
	now    func() time.Time
}

// OpenTranscript goes on with a transcript, after checking it, or begins one.
// Nobody else can write to it until Close.
func OpenTranscript(path string) (*Transcript, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	t := &Transcript{f: f, now: time.Now}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: another ceremony is writing it", path), f.Close())
	}
	t.sum = sha256.New()
	if err := check(f, t.sum, func(e Entry) { t.number = e.Number }, &t.torn); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w: keep it as it is, find out what happened, and name another file", path, err), f.Close())
	}
	return t, nil
}

// Check reads a transcript to its end and returns its entries and the SHA-256
// of all of it, which is what to write down beside the signatures.
func Check(r io.Reader) (entries []Entry, sum [32]byte, err error) {
	h := sha256.New()
	var torn bool
	err = check(r, h, func(e Entry) { entries = append(entries, e) }, &torn)
	h.Sum(sum[:0])
	return entries, sum, err
}

const maxLine = 1 << 20

func check(r io.Reader, h hash.Hash, each func(Entry), torn *bool) error {
	in := bufio.NewReaderSize(r, maxLine)
	for number := 1; ; {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			*torn = len(line) > 0
			h.Write(line)
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: after entry %d: %w", ErrTranscript, number-1, err)
		}
		var e Entry
		switch err := json.Unmarshal(line, &e); {
		case err != nil:
			// What a writer left that died; the entry after it vouches for it.
			if next, err := in.Peek(1); err != nil || next[0] != '{' {
				return fmt.Errorf("%w: after entry %d there is something else", ErrTranscript, number-1)
			}
		case e.Number != number || e.Previous != hex.EncodeToString(h.Sum(nil)):
			return fmt.Errorf("%w: entry %d does not follow what is before it", ErrTranscript, number)
		default:
			each(e)
			number++
		}
		h.Write(line)
	}
}

// Append adds an entry; it is on disk when Append returns.
func (t *Transcript) Append(e Entry) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.torn {
		if err := t.write([]byte("#\n")); err != nil { // no entry, whatever came before
			return err
		}
		t.torn = false
	}
	e.Number, e.At, e.Previous = t.number+1, t.now().UTC(), hex.EncodeToString(t.sum.Sum(nil))
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if err := t.write(append(b, '\n')); err != nil {
		return err
	}
	t.number++
	return nil
}

func (t *Transcript) write(b []byte) error {
	n, err := t.f.Write(b)
	t.sum.Write(b[:n])
	if err != nil {
		t.torn = n > 0
		return fmt.Errorf("transcript: %w", err)
	}
	if err := t.f.Sync(); err != nil {
		return fmt.Errorf("transcript: %w", err)
	}
	return nil
}

// Sum is the SHA-256 of all of it so far.
func (t *Transcript) Sum() (sum [32]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sum.Sum(sum[:0])
	return sum
}

// Close ends the writing.
func (t *Transcript) Close() error { return t.f.Close() }
