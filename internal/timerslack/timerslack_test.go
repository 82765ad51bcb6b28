package timerslack_test

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"kluis/internal/timerslack"
)

// asked makes the test program a program that relaxes its timers.
const asked = "TIMERSLACK_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(asked) == "" {
		os.Exit(m.Run())
	}
	first := os.Getpid()
	if err := timerslack.Relax(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	// Threads that are there already, and new ones.
	var wg sync.WaitGroup
	seen := make(chan time.Duration, 16)
	for range cap(seen) {
		wg.Go(func() {
			runtime.LockOSThread() // and it ends with the goroutine
			seen <- slack()
			time.Sleep(10 * time.Millisecond)
		})
	}
	wg.Wait()
	for range cap(seen) {
		fmt.Println(<-seen)
	}
	fmt.Println("pid", first, "args", strings.Join(os.Args[1:], " "), "env", os.Getenv("KLUIS_TIMER_SLACK"), os.Getenv(asked))
}

func slack() time.Duration {
	ns, _, _ := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_GET_TIMERSLACK, 0, 0)
	return time.Duration(ns)
}

func TestRelax(t *testing.T) {
	if s := slack(); s == 0 || s >= timerslack.Slack {
		t.Skip("this kernel, or this scheduling class, knows no slack, or has it set")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "a", "b c")
	cmd.Env = append(os.Environ(), asked+"=yes")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 17 {
		t.Fatalf("%s", out)
	}
	for _, l := range lines[:16] {
		if l != timerslack.Slack.String() {
			t.Errorf("a thread has a slack of %s", l)
		}
	}
	// The process, its arguments and its environment are what they were.
	if want := fmt.Sprintf("pid %d args a b c env  yes", cmd.Process.Pid); lines[16] != want {
		t.Errorf("%q, want %q", lines[16], want)
	}
	// The threads of this process are as they were.
	if slack() >= timerslack.Slack {
		t.Error("the parent is slack, too")
	}
}
