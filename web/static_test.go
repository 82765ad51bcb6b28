package web

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVendored: what others wrote is as they published it, all of it, with its
// licence.
func TestVendored(t *testing.T) {
	t.Parallel()
	const dir = "static/vendor"
	raw, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		sum, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if !ok {
			t.Fatalf("cannot be read: %q", line)
		}
		sums[name] = sum
	}
	readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() == "SHA256SUMS" || f.Name() == "README.md" {
			continue
		}
		body, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(body)
		if sums[f.Name()] != hex.EncodeToString(sum[:]) {
			t.Errorf("%s is not the file of SHA256SUMS", f.Name())
		}
		delete(sums, f.Name())
		if !strings.Contains(string(readme), "`"+f.Name()+"`") {
			t.Errorf("README.md does not say where %s is from", f.Name())
		}
		base, _, _ := strings.Cut(f.Name(), ".")
		if _, err := os.Stat(filepath.Join(dir, base+".LICENSE")); err != nil {
			t.Errorf("%s has no licence beside it", f.Name())
		}
	}
	for name := range sums {
		t.Errorf("%s is missing", name)
	}
}

// TestNothingInline: the policy of the pages would stop it, unseen.
func TestNothingInline(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("templates/*.html")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{" style=", "<style", " onclick=", " onload=", " onsubmit=", " onchange=", "hx-on", "hx-vals=\"js:", "javascript:", "<script>"} {
			if strings.Contains(string(raw), bad) {
				t.Errorf("%s has %q", file, bad)
			}
		}
	}
}

// TestStylesBringNoPictures: the policy would stop them.
func TestStylesBringNoPictures(t *testing.T) {
	t.Parallel()
	s, err := newStatic()
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range s.files {
		if strings.HasSuffix(name, ".css") && (strings.Contains(string(a.body), "url(") || strings.Contains(string(a.body), "@import")) {
			t.Errorf("%s has a picture, or an address", name)
		}
	}
}
