package custodian_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kluis/cryptoserver/control"
	"kluis/custodian"
)

// feedOf is a feed of n entries with signed heads.
func feedOf(t testing.TB, p *pool, n int) []custodian.Appended {
	t.Helper()
	var out []custodian.Appended
	h := control.Head{}
	for i := range n {
		b, err := control.Entry{At: time.Unix(int64(i+1), 0), Kind: control.ActivateEpoch, Epoch: uint32(i + 1)}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		h = control.Head{Sequence: uint64(i + 1), Hash: h.Hash.Next(b), At: time.Unix(int64(i+1), 0)}
		signed, err := h.Sign(p.servers[i%len(p.servers)].signer)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, custodian.Appended{Sequence: uint64(i + 1), Entry: b, Head: signed})
	}
	return out
}

func copyOf(feed []custodian.Appended) []byte {
	b := []byte(custodian.CopyMagic)
	for _, a := range feed {
		b = append(b, custodian.EncodeRecord(a)...)
	}
	return b
}

// opens says how far a custodian's status goes that starts with a copy.
func opens(t testing.TB, p *pool, path string) (uint64, *logBuffer, error) {
	t.Helper()
	log := &logBuffer{}
	c, err := custodian.New(noStore{}, p, p.keys, path, slog.New(slog.NewJSONHandler(log, nil)), time.Now)
	if err != nil {
		return 0, log, err
	}
	defer c.Close()
	c.Hurry(time.Second)
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.Sequence, log, nil
}

// noStore is a database that is away.
type noStore struct{ custodian.Store }

func (noStore) Feed(context.Context, uint64, int) ([]custodian.Appended, error) {
	return nil, custodian.ErrUnavailable
}

func TestCopyGolden(t *testing.T) {
	t.Parallel()
	const want = "0000002affffffd5d7910f8bb6f0a5ea000000126b6c7569732f636f6e74726f6c2d636f70790100000000000000070000000201020000000103"
	got := hex.EncodeToString(custodian.EncodeRecord(custodian.Appended{Sequence: 7, Entry: []byte{1, 2}, Head: []byte{3}}))
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if custodian.CopyMagic != "kluis control copy 1\n" {
		t.Error("another first line")
	}
}

// TestCopyAfterACrash: whatever a crash leaves of the last record is cut off,
// and of the others nothing is lost.
func TestCopyAfterACrash(t *testing.T) {
	t.Parallel()
	p := newPool(2)
	whole := copyOf(feedOf(t, p, 3))
	two := len(copyOf(feedOf(t, p, 3)[:2]))
	path := filepath.Join(t.TempDir(), "feed")
	try := func(name string, b []byte, want uint64) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		n, log, err := opens(t, p, path)
		if err != nil || n != want {
			t.Errorf("%s: %d entries, %v; want %d", name, n, err, want)
		}
		if torn := want == 2 && len(b) > two; torn != (log.count("not written to its end") == 1) {
			t.Errorf("%s: said %d times", name, log.count("not written to its end"))
		}
		if n, _, err := opens(t, p, path); err != nil || n != want {
			t.Errorf("%s: opened again: %d entries, %v", name, n, err)
		}
	}
	try("whole", whole, 3)
	for cut := two; cut < len(whole); cut += 7 {
		try("cut", whole[:cut], 2)
	}
	for cut := two; cut < len(whole); cut += 13 {
		b := bytes.Clone(whole)
		clear(b[cut:])
		try("grown but not written", b, 2)
	}
	middle := bytes.Clone(whole)
	clear(middle[two+40 : two+90])
	try("written in the wrong order", middle, 2)
	for cut := range len(custodian.CopyMagic) {
		try("the first line cut", whole[:cut], 0)
	}
	try("the first line not written", make([]byte, len(custodian.CopyMagic)), 0)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestCopyRefused(t *testing.T) {
	t.Parallel()
	p, stranger := newPool(1), newPool(1)
	feed := feedOf(t, p, 3)
	whole := copyOf(feed)
	one := len(copyOf(feed[:1]))
	other := feedOf(t, stranger, 3)
	resigned := custodian.Appended{Sequence: 2, Entry: feed[1].Entry, Head: feed[2].Head}
	path := filepath.Join(t.TempDir(), "feed")
	for name, b := range map[string][]byte{
		"another file":                     []byte("kluis control copy 2\n"),
		"something else":                   bytes.Repeat([]byte("x"), 100),
		"signed by another":                copyOf(other),
		"an entry left out":                copyOf([]custodian.Appended{feed[0], feed[2]}),
		"entries in another order":         copyOf([]custodian.Appended{feed[1], feed[0], feed[2]}),
		"an entry twice":                   copyOf([]custodian.Appended{feed[0], feed[0]}),
		"the head of another entry":        copyOf([]custodian.Appended{feed[0], resigned}),
		"the entry of another feed":        copyOf([]custodian.Appended{feed[0], {Sequence: 2, Entry: feed[2].Entry, Head: feed[1].Head}}),
		"a number of its own":              copyOf([]custodian.Appended{feed[0], {Sequence: 9, Entry: feed[1].Entry, Head: feed[1].Head}}),
		"a changed length in the middle":   append(append(bytes.Clone(whole[:one]), 0, 0, 0, 1), whole[one+4:]...),
		"a changed checksum in the middle": append(append(bytes.Clone(whole[:one+8]), ^whole[one+8]), whole[one+9:]...),
		"a changed body in the middle":     append(append(bytes.Clone(whole[:one+50]), ^whole[one+50]), whole[one+51:]...),
		"zeros and then something":         append(append(bytes.Clone(whole), make([]byte, 64)...), 1),
		"very many zeros":                  append(bytes.Clone(whole), make([]byte, 1<<20)...),
	} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := opens(t, p, path); !errors.Is(err, custodian.ErrCopy) {
			t.Errorf("%s: %v, want ErrCopy", name, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, b) {
			t.Errorf("%s: what was refused was changed (%v)", name, err)
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, _, err := opens(t, p, path); !errors.Is(err, custodian.ErrCopy) || !strings.Contains(err.Error(), "chmod") {
			t.Errorf("mode %o: %v, want ErrCopy", mode, err)
		}
	}
	if _, _, err := opens(t, p, t.TempDir()); !errors.Is(err, custodian.ErrCopy) {
		t.Errorf("a folder: %v", err)
	}
	if _, _, err := opens(t, p, filepath.Join(t.TempDir(), "nowhere", "feed")); !errors.Is(err, custodian.ErrCopy) {
		t.Errorf("no folder: %v", err)
	}
}

func FuzzCopyRecord(f *testing.F) {
	p := newPool(1)
	for _, a := range feedOf(f, p, 2) {
		f.Add(custodian.EncodeRecord(a))
	}
	f.Add(make([]byte, 40))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, n, err := custodian.ReadRecord(b)
		if err != nil {
			if !errors.Is(err, custodian.ErrCopy) && !errors.Is(err, custodian.ErrTorn) && !errors.Is(err, io.EOF) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if got := custodian.EncodeRecord(a); !bytes.Equal(got, b[:n]) {
			t.Fatalf("accepted %x, which re-encodes to %x", b[:n], got)
		}
	})
}
