package ceremony

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, path string, entries ...Entry) {
	t.Helper()
	tr, err := OpenTranscript(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := tr.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	sum := tr.Sum()
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if _, got := read(t, path); got != sum {
		t.Error("another sum")
	}
}

func read(t *testing.T, path string) ([]Entry, [32]byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	entries, sum, err := Check(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return entries, sum
}

func TestTranscript(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, Entry{Step: "begin", Result: "ok"}, Entry{Step: "init", Server: "a", Said: []string{"one", "two"}, Result: "ok"})
	write(t, path, Entry{Step: "end", Result: "ok"})
	entries, _ := read(t, path)
	if len(entries) != 3 || entries[2].Number != 3 || entries[2].Step != "end" || entries[1].Said[1] != "two" || entries[0].Previous == entries[1].Previous {
		t.Errorf("%+v", entries)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// Whatever is changed, left out or put in between is noticed, by reading it and
// by going on with it.
func TestTranscriptChanged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	write(t, path, Entry{Step: "begin", Result: "ok"}, Entry{Step: "init", Server: "a", Result: "ok"}, Entry{Step: "create", Result: "ok"}, Entry{Step: "end", Result: "ok"})
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(string(good), "\n"), "\n")
	lines[len(lines)-1] += "\n"
	for name, bad := range map[string]string{
		"a word changed":    strings.Replace(string(good), `"server":"a"`, `"server":"b"`, 1),
		"a line left out":   lines[0] + lines[2] + lines[3],
		"the first one":     strings.Join(lines[1:], ""),
		"two exchanged":     lines[0] + lines[2] + lines[1] + lines[3],
		"a line twice":      lines[0] + lines[1] + lines[1] + lines[2] + lines[3],
		"a line put in":     lines[0] + "# nothing\n" + strings.Join(lines[1:], ""),
		"an empty line":     lines[0] + "\n" + strings.Join(lines[1:], ""),
		"a space":           strings.Replace(string(good), `,"step":"init"`, `, "step":"init"`, 1),
		"something behind":  string(good) + "\n",
		"garbage behind it": string(good) + "garbage\n",
	} {
		if bad == string(good) {
			t.Fatal("the case changes nothing: " + name)
		}
		if _, _, err := Check(strings.NewReader(bad)); !errors.Is(err, ErrTranscript) {
			t.Errorf("%s: %v", name, err)
		}
		file := filepath.Join(dir, "bad")
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if tr, err := OpenTranscript(file); !errors.Is(err, ErrTranscript) {
			t.Errorf("%s: gone on with: %v", name, err)
			tr.Close()
		}
	}
}

// A writer that dies in the middle of a line leaves a transcript that goes on.
func TestTranscriptTorn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	write(t, path, Entry{Step: "begin", Result: "ok"}, Entry{Step: "init", Result: "ok"})
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first := bytes.IndexByte(good, '\n') + 1
	for n := first; n < len(good); n++ {
		file := filepath.Join(dir, "torn")
		if err := os.WriteFile(file, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		write(t, file, Entry{Step: "init", Result: "ok"}, Entry{Step: "end", Result: "ok"})
		entries, _ := read(t, file)
		if len(entries) != 3 || entries[1].Step != "init" || entries[2].Number != 3 {
			t.Fatalf("cut after %d bytes: %+v", n, entries)
		}
	}
}

func TestTranscriptHasOneWriter(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	tr, err := OpenTranscript(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenTranscript(path); err == nil || !strings.Contains(err.Error(), "another ceremony") {
		t.Errorf("%v", err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, path, Entry{Step: "begin", Result: "ok"})
}

func FuzzCheck(f *testing.F) {
	path := filepath.Join(f.TempDir(), "log")
	tr, err := OpenTranscript(path)
	if err != nil {
		f.Fatal(err)
	}
	for _, step := range []string{"begin", "init", "end"} {
		if err := tr.Append(Entry{Step: step, Result: "ok"}); err != nil {
			f.Fatal(err)
		}
	}
	if err := tr.Close(); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, _, err := Check(bytes.NewReader(b))
		if err == nil && len(entries) > 0 && entries[len(entries)-1].Number != len(entries) {
			t.Errorf("%d entries end with number %d", len(entries), entries[len(entries)-1].Number)
		}
	})
}
