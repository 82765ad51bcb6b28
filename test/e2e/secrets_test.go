package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// secrets are the texts that no log may hold, by what they are. A test that
// uses one of its own adds it.
type secrets struct {
	mu    sync.Mutex
	texts map[string]string
	reads map[string]bool // register reads, as decimals
}

func newSecrets() *secrets {
	return &secrets{texts: map[string]string{}, reads: map[string]bool{}}
}

func (s *secrets) add(what, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.texts[text] = what
}

// token adds an access token and, as a log may cut it, its two telling parts.
func (s *secrets) token(raw string) {
	s.add("a token", raw)
	for _, part := range strings.Split(raw, ".")[1:] {
		if len(part) > 20 {
			s.add("part of a token", part)
		}
	}
}

// read adds a value of an answer. Short ones are too common to look for.
func (s *secrets) read(value string) {
	if len(value) < len("1000.000") {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads[value] = true
}

// ofState adds the metering points, PINs and private keys of a demo.
func (s *secrets) ofState(state string, r readyFile) error {
	for _, p := range r.MeteringPoints {
		s.add("an EAN", p.EAN)
	}
	return filepath.WalkDir(state, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				return nil // PostgreSQL's files come and go
			}
			return err
		}
		if d.IsDir() && d.Name() == "postgres" {
			return fs.SkipDir
		}
		isPIN := filepath.Base(filepath.Dir(path)) == "pins"
		isKey := strings.HasSuffix(path, ".key") && slices.Contains([]string{"pki", "identity"}, filepath.Base(filepath.Dir(path)))
		if d.IsDir() || !isPIN && !isKey {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if isPIN {
			s.add("a PIN", strings.TrimSpace(string(b)))
		} else {
			s.add("a private key", strings.Split(string(b), "\n")[1])
		}
		return nil
	})
}

var decimals = regexp.MustCompile(`[0-9]+\.[0-9]+`)

// search finds secrets in a text, never repeating them.
func (s *secrets) search(text []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for secret, i := range s.found(text) {
		errs = append(errs, fmt.Errorf("%s, in line %d", s.texts[secret], 1+bytes.Count(text[:i], []byte("\n"))))
	}
	for _, at := range decimals.FindAllIndex(text, -1) {
		if s.reads[string(text[at[0]:at[1]])] {
			errs = append(errs, fmt.Errorf("a reading, in line %d", 1+bytes.Count(text[:at[0]], []byte("\n"))))
		}
	}
	return errors.Join(errs...)
}

// found says where the texts stand first. Logs are long and there are many texts:
// one walk looks for the beginnings of all.
func (s *secrets) found(text []byte) map[string]int {
	const prefix = 8
	at := map[string]int{}
	beginnings := map[[prefix]byte][]string{}
	var begins [1 << 16]bool // with these two bytes
	for secret := range s.texts {
		if len(secret) < prefix {
			if i := bytes.Index(text, []byte(secret)); i >= 0 {
				at[secret] = i
			}
			continue
		}
		begins[int(secret[0])<<8|int(secret[1])] = true
		key := [prefix]byte([]byte(secret))
		beginnings[key] = append(beginnings[key], secret)
	}
	for i := 0; i+prefix <= len(text); i++ {
		if !begins[int(text[i])<<8|int(text[i+1])] {
			continue
		}
		for _, secret := range beginnings[[prefix]byte(text[i:])] {
			if _, before := at[secret]; !before && bytes.HasPrefix(text[i:], []byte(secret)) {
				at[secret] = i
			}
		}
	}
	return at
}

func (s *secrets) searchFile(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := s.search(b); err != nil {
		return fmt.Errorf("%s holds what no log may hold: %w", path, err)
	}
	return nil
}

// The search that every world ends with must be able to find something.
func TestLogSearchFindsSecrets(t *testing.T) {
	t.Parallel()
	s := newSecrets()
	s.add("an EAN", "871687200000000010")
	s.add("a PIN", "00112233445566")
	s.token("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiI4NzEyMDAwMDAwMDExIn0.c2lnbmF0dXJlc2lnbmF0dXJl")
	s.read("1204.318")
	for text, found := range map[string]bool{
		`{"msg":"request","duration":1204318,"at":"06:12:04.318"}`:     false,
		`x 871687200000000010 y`:                                       true,
		`pin=00112233445566`:                                           true,
		`bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiI4NzEyMDAwMDAwMDExIn0.`: true,
		`… c2lnbmF0dXJlc2lnbmF0dXJl`:                                   true,
		`"1204.318"`:                                                   true,
		"a\n1204.318":                                                  true,
	} {
		if err := s.search([]byte(text)); (err != nil) != found {
			t.Errorf("%q: %v", text, err)
		}
	}
}
