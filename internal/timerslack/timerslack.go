// Package timerslack lets the kernel be a millisecond late with the timers of
// this process.
//
// While anything runs, the monitor thread of Go's runtime sleeps for 20
// microseconds at a time. On a server that handles a request within a few
// milliseconds these are most of its context switches, and a sixth to a quarter
// of its CPU (docs/PERFORMANCE.md). It need not be that punctual, and neither
// need deadlines of seconds. What waits for the network is woken as before.
package timerslack

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
)

// Slack is how late a timer may be.
const Slack = time.Millisecond

// again tells the program that it was executed a second time.
const again = "KLUIS_TIMER_SLACK"

// main begins on the thread that the process began with, and stays on it until
// Relax is done: executed from another one, the program would lose the signal
// that it asked for when its parent dies (prctl(2), PR_SET_PDEATHSIG).
func init() { runtime.LockOSThread() }

// Relax gives all threads the slack. A thread has that of the one that started
// it, and the runtime has started some before main: so the program sets its own
// and executes itself once more, with the same process id. It must be the first
// that main does. Where it was started with the slack (TimerSlackNSec of
// systemd), or the kernel knows no slack, it does nothing.
//
// An error means that the program goes on as it was.
func Relax() error {
	defer runtime.UnlockOSThread()
	if _, second := os.LookupEnv(again); second {
		return os.Unsetenv(again)
	}
	now, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_GET_TIMERSLACK, 0, 0)
	if errno != 0 || time.Duration(now) >= Slack {
		return nil
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_TIMERSLACK, uintptr(Slack), 0); errno != 0 {
		return nil
	}
	err = syscall.Exec(program, os.Args, append(os.Environ(), again+"=1"))
	return fmt.Errorf("timer slack: %w", err)
}
