package config

import (
	"os"
	"strings"
	"testing"
)

func TestCursorKeys(t *testing.T) {
	t.Parallel()
	one, two := strings.Repeat("0a", 32), strings.Repeat("Fb", 32)
	for name, content := range map[string]string{"one": one, "one line": one + "\n", "two": one + "\n" + two, "two lines": one + "\n" + two + "\n"} {
		keys, err := CursorKeys(write(t, "keys", content, 0o600))
		if err != nil || keys[0][31] != 0x0a || len(keys) > 1 && keys[1][0] != 0xfb || len(keys) != 1+strings.Count(content, two) {
			t.Errorf("%s: %d keys, %v", name, len(keys), err)
		}
	}
	var nine []string
	for _, c := range "123456789" {
		nine = append(nine, strings.Repeat(string(c), 64))
	}
	if keys, err := CursorKeys(write(t, "keys", strings.Join(nine[:8], "\n"), 0o600)); err != nil || len(keys) != 8 {
		t.Errorf("eight keys: %d, %v", len(keys), err)
	}
	for name, content := range map[string]string{
		"empty":        "",
		"a blank line": one + "\n\n" + two,
		"blank at end": one + "\n\n",
		"short":        one[1:],
		"long":         one + "0",
		"no digit":     "g" + one[1:],
		"a space":      one + " ",
		"CRLF":         one + "\r\n" + two,
		"a comment":    "# cursors\n" + one,
		"all zeros":    strings.Repeat("0", 64),
		"twice":        one + "\n" + strings.ToUpper(one),
		"nine":         strings.Join(nine, "\n"),
		"NUL":          one[:63] + "\x00",
	} {
		_, err := CursorKeys(write(t, "keys", content, 0o600))
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for line := range strings.Lines(content) {
			if line = strings.TrimSpace(line); len(line) > 8 && strings.Contains(err.Error(), line[:8]) {
				t.Errorf("%s: the error shows the key: %v", name, err)
			}
		}
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o660, 0o602} {
		if _, err := CursorKeys(write(t, "keys", one, mode)); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	if _, err := CursorKeys(t.TempDir()); err == nil {
		t.Error("a folder is no file of keys")
	}
}

func FuzzCursorKeys(f *testing.F) {
	f.Add([]byte(strings.Repeat("0a", 32) + "\n"))
	f.Add([]byte("\n"))
	path := f.TempDir() + "/keys"
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		keys, err := CursorKeys(path)
		if err != nil {
			return
		}
		if n := len(keys); n == 0 || n > maxCursorKeys || len(content) != n*65 && len(content) != n*65-1 {
			t.Errorf("%d keys of %d bytes", n, len(content))
		}
	})
}
