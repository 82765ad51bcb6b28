package demo

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestForgetReady(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ready.json")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, file, ""} { // the second time there is none
		if err := (&demo{Options: Options{ReadyFile: name}}).forgetReady(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestProgressOfAnotherUser(t *testing.T) {
	l := layout{t.TempDir()}
	if _, err := l.loadProgress(); err != nil {
		t.Fatal(err)
	}
	if err := l.save(progress{Format: stateFormat, SetUp: "2026-01-01"}); err != nil {
		t.Fatal(err)
	}
	if p, err := l.loadProgress(); err != nil || p.SetUp != "2026-01-01" {
		t.Fatalf("%+v, %v", p, err)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if err := os.Chown(l.progressFile(), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if _, err := l.loadProgress(); err == nil || !strings.Contains(err.Error(), "user id 65534") {
		t.Errorf("%v", err)
	}
}

// The folder of a version before is refused before anything in it is touched.
func TestProgressOfAnotherVersion(t *testing.T) {
	l := layout{t.TempDir()}
	if err := os.WriteFile(l.progressFile(), []byte(`{"set_up": "2026-01-01", "keys": true, "facts": true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.loadProgress(); err == nil || !strings.Contains(err.Error(), "remove the folder") || !strings.Contains(err.Error(), l.dir) {
		t.Errorf("%v", err)
	}
}

func TestForgetDatabase(t *testing.T) {
	t.Setenv("PGHOSTADDR", "192.0.2.1")
	t.Setenv("PGSERVICE", "production")
	t.Setenv("KLUIS_KEPT", "yes")
	if err := forgetDatabase(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"PGHOSTADDR": "", "PGSERVICE": "", "KLUIS_KEPT": "yes"} {
		if got := os.Getenv(name); got != want {
			t.Errorf("%s is %q", name, got)
		}
	}
}

func TestKeepOutOfGit(t *testing.T) {
	l := layout{t.TempDir()}
	for range 2 {
		if err := l.keepOutOfGit(); err != nil {
			t.Fatal(err)
		}
	}
	file := l.path(".gitignore")
	if b, err := os.ReadFile(file); err != nil || string(b) != "*\n" {
		t.Errorf("%q, %v", b, err)
	}
	if err := os.WriteFile(file, []byte("own\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := l.keepOutOfGit(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "own\n" {
		t.Errorf("%q, %v", b, err)
	}
}
