package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/meter"
	"kluis/openapi"
)

// walk is a page that is a walk: its shell is run, block by block, in one
// shell's surroundings, and what the page says is printed must be.
type walk struct {
	prelude string // definitions
	steps   []step
}

type step struct {
	line    int
	command string
	want    []string // in this order
	code    string
}

func readWalk(t *testing.T, path string) walk {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var w walk
	block := ""
	for n, line := range strings.Split(string(b), "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			block = strings.TrimPrefix(line, "```")
		case block == "sh":
			w.prelude += line + "\n"
		case block != "console":
		case strings.HasPrefix(line, "$ "):
			w.steps = append(w.steps, step{line: n + 1, command: line[2:], code: "0"})
		case strings.HasPrefix(line, "exit code "):
			w.steps[len(w.steps)-1].code = strings.TrimPrefix(line, "exit code ")
		case line != "" && line != "...":
			s := &w.steps[len(w.steps)-1]
			s.want = append(s.want, line)
		}
	}
	return w
}

// Days and white space are of the moment.
var (
	aDate   = regexp.MustCompile(`\b\d{4}-\d\d-\d\d\b`)
	spacing = regexp.MustCompile(`\s+`)
	// quarters say of which day they are.
	aValue = regexp.MustCompile(`\b6\d{3}\.\d{3}\b`)
)

func plain(s string) string {
	return strings.TrimSpace(spacing.ReplaceAllString(aValue.ReplaceAllString(aDate.ReplaceAllString(s, "DAY"), "VALUE"), " "))
}

// TestSandbox makes the walk of docs/SANDBOX.md. It is made by itself: it uses
// up a supplier's quota.
func TestSandbox(t *testing.T) {
	w := sharedWorld(t)
	page := filepath.Join("..", "..", "docs", "SANDBOX.md")
	// It waits until the pack is as its cases want it.
	w.kluis(t, "conformance", "run", "--case", "spring-quarters", "--ready-file", w.readyFile())
	walk := readWalk(t, page)
	if len(walk.steps) < 30 || !strings.Contains(walk.prelude, "energy()") {
		t.Fatalf("%d steps", len(walk.steps))
	}
	const mark = "-- step "
	script := walk.prelude
	for i, s := range walk.steps {
		script += fmt.Sprintf("echo '%s%d'\n{ %s; } 2>&1; echo \"%s$?\"\n", mark, i, s.command, mark+"code ")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.Env = append(w.env(), "KLUIS_STATE="+w.state, "PATH="+w.bin+":"+os.Getenv("PATH"), "LC_ALL=C", "TZ=Europe/Amsterdam")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	printed := strings.Split(string(out), mark)[1:] // what a step prints, its code, what the next prints
	if len(printed) != 2*len(walk.steps) {
		t.Fatalf("%d of %d steps\n%s", len(printed)/2, len(walk.steps), out)
	}
	for i, s := range walk.steps {
		_, got, _ := strings.Cut(printed[2*i], "\n")
		code := strings.TrimSpace(strings.TrimPrefix(printed[2*i+1], "code "))
		if code != s.code {
			t.Errorf("%s:%d: exit code %s, want %s\n%s", page, s.line, code, s.code, got)
		}
		var lines []string
		for line := range strings.Lines(got) {
			lines = append(lines, plain(line))
		}
		for _, want := range s.want {
			at := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, plain(want)) })
			if at < 0 {
				t.Errorf("%s:%d: %s\nis not printed, or not here, in\n%s", page, s.line, plain(want), got)
				break
			}
			lines = lines[at+1:]
		}
	}
}

// Every reason and every problem there is is on the page, in a step or among
// those not to be had.
func TestSandboxIsWhole(t *testing.T) {
	t.Parallel()
	page := filepath.Join("..", "..", "docs", "SANDBOX.md")
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	said := ""
	for _, s := range readWalk(t, page).steps {
		said += strings.Join(s.want, "\n") + "\n"
	}
	_, never, ok := strings.Cut(string(b), "## Not to be had on demand")
	if !ok {
		t.Fatal("the page does not say what is not to be had")
	}
	doc, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range doc.Components.Schemas["Problem"].Value.Properties["type"].Value.Enum {
		slug := strings.TrimPrefix(v.(string), "urn:kluis:problem:")
		shown := strings.Contains(said, v.(string)+`"`) || strings.Contains(said, "kluis: "+slug+" (") ||
			slug == "rate-limited" && strings.Contains(said, "429\n")
		if listed := strings.Contains(never, "`"+slug+"`"); shown == listed {
			t.Errorf("%s: shown %t, not to be had %t", slug, shown, listed)
		}
	}
	for r := meter.Reason(1); !strings.HasPrefix(r.String(), "Reason("); r++ {
		if !strings.Contains(said, r.String()+"  ") && !strings.Contains(said, ": "+r.String()) && r != meter.Damaged {
			t.Errorf("%s is in no step", r)
		}
	}
}
