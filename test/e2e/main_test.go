// Package e2e tests all of Kluis from outside, as it is run: the programs are
// built, `kluis demo` starts every one of them as a process of its own, and the
// tests are suppliers, operators and attackers.
//
// world is a running demo. sharedWorld is the one that tests share; they leave
// alone what others read: a test that needs another supplier, certificate or
// metering point adds its own. privateWorld is a demo of the test's own, for
// tests that break things; it costs seconds. sidecar starts one more gateway
// and cryptoserver on the shared data, with a configuration of the test's own
// and counters in between.
//
// Every answer of a gateway is checked against openapi.yaml on its way to the
// test (see caller), and at the end of every world its logs are searched for
// what must not be there, and the machine for what must not be left.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kluis/internal/testing/long"
	"kluis/internal/testing/scratch"
)

// suite is what a run of the tests shares.
type suite struct {
	dir string // of everything but the programs; removed at the end

	build    sync.Once
	programs string // their folder
	buildErr error

	share sync.Once
	world *world
	err   error

	keys    atomic.Pointer[string] // the folder that keepKeys filled
	private chan struct{}          // a place for each private world there may be
}

var run = suite{private: make(chan struct{}, 3)}

func TestMain(m *testing.M) {
	long.Waits() // for processes, for restarts and for graces of a minute
	code, err := run.tests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func (s *suite) tests(m *testing.M) (code int, err error) {
	if s.dir, err = os.MkdirTemp(scratch.Root(), "kluis-e2e-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(s.dir)
	// Not in memory, from where no program may be run on some machines.
	if s.programs, err = os.MkdirTemp("", "kluis-e2e-bin-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(s.programs)
	// PostgreSQL does not run as root: its user must be able to pass.
	if err := os.Chmod(s.dir, 0o711); err != nil {
		return 1, err
	}
	code = m.Run()
	if s.world != nil {
		if err := s.world.stop(); err != nil {
			return code, err
		}
	}
	if left := append(processesOf(s.dir), processesOf(s.programs)...); len(left) > 0 {
		return code, fmt.Errorf("processes are left behind: %v", left)
	}
	return code, nil
}

// bin builds the programs once and returns their folder.
func (s *suite) bin(ctx context.Context) (string, error) {
	s.build.Do(func() {
		for _, b := range []struct {
			cgo  string
			cmds []string
		}{
			{"0", []string{"./cmd/gateway", "./cmd/issuer", "./cmd/portal", "./cmd/kluis"}},
			{"1", []string{"./cmd/cryptoserver"}},
		} {
			args := []string{"build", "-buildvcs=false", "-o", s.programs + "/"}
			if raceEnabled { // as the tests are, so that little is compiled again
				args, b.cgo = append(args, "-race"), "1"
			} else {
				args = append(args, "-trimpath")
			}
			cmd := exec.CommandContext(ctx, "go", append(args, b.cmds...)...)
			cmd.Dir = "../.."
			cmd.Env = append(os.Environ(), "CGO_ENABLED="+b.cgo)
			if out, err := cmd.CombinedOutput(); err != nil {
				s.buildErr = fmt.Errorf("go build: %w\n%s", err, out)
				return
			}
		}
	})
	return s.programs, s.buildErr
}

// sharedWorld is the demo that tests share.
func sharedWorld(t testing.TB) *world {
	t.Helper()
	run.share.Do(func() {
		if run.world, run.err = startWorld(context.Background(), filepath.Join(run.dir, "shared")); run.err == nil {
			run.err = run.world.keepKeys(filepath.Join(run.dir, "keys"))
		}
	})
	if run.err != nil {
		t.Fatal(run.err)
	}
	return run.world
}

// privateWorld is a demo of the test's own, stopped and searched at its end. Its
// keys are copies of those of the shared one, if that is there.
func privateWorld(t testing.TB) *world {
	t.Helper()
	run.private <- struct{}{}
	t.Cleanup(func() { <-run.private })
	dir, err := os.MkdirTemp(run.dir, "private-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if keys := run.keys.Load(); keys != nil {
		if err := copyKeys(*keys, filepath.Join(dir, "state")); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	w, err := startWorld(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.stop(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return w
}
