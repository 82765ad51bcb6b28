package authz

import (
	"crypto/sha256"
	"encoding/base64"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The worked example of docs/CONSENT.md is the third consent of life.
func TestWorkedExampleOfTheScopeDigest(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../docs/CONSENT.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```text\n(.*?)```").FindAllStringSubmatch(string(b), -1)
	if len(blocks) != 2 {
		t.Fatalf("%d blocks of text, want the lines and their digest", len(blocks))
	}
	lines, digest := blocks[0][1], strings.TrimSpace(blocks[1][1])
	c, _ := life(t).Consent(uuid(3))
	want := c.ScopeDigest(home)
	if sum := sha256.Sum256([]byte(lines)); sum != want || digest != base64.RawURLEncoding.EncodeToString(want[:]) {
		t.Errorf("the example gives %x, and says %s; want %x", sum, digest, want)
	}
	// The shell's arguments are the lines.
	command := regexp.MustCompile(`(?s)printf '%s\\n' (.*?) \|`).FindStringSubmatch(string(b))
	if command == nil {
		t.Fatal("no command")
	}
	args := strings.Fields(command[1])
	for i := range args {
		args[i] = strings.Trim(args[i], "'")
	}
	if got := strings.Join(args, "\n") + "\n"; got != lines {
		t.Errorf("the command is over\n%s", got)
	}
	// The picture has every standing, and no other.
	var states []string
	for _, m := range regexp.MustCompile(`--> ([A-Z_]+):`).FindAllStringSubmatch(string(b), -1) {
		if !slices.Contains(states, m[1]) {
			states = append(states, m[1])
		}
	}
	for s := StandsRequested; s <= StandsEndedByMove; s++ {
		i := slices.Index(states, s.String())
		if i < 0 {
			t.Errorf("the picture lacks %s", s)
			continue
		}
		states = slices.Delete(states, i, i+1)
	}
	if len(states) > 0 {
		t.Errorf("the picture has %v", states)
	}
}
