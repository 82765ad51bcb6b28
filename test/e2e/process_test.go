package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// child is a process that dies with the test.
type child struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when it is gone
	err    error         // valid once exited is closed
}

// startChild starts cmd and waits for its end on one locked thread: Pdeathsig
// is tied to the thread that forked.
func startChild(cmd *exec.Cmd) (*child, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.WaitDelay = 5 * time.Second
	c := &child{cmd: cmd, exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		c.err = cmd.Wait()
		close(c.exited)
	}()
	return c, <-started
}

// stop ends the child with SIGTERM, and after d with SIGKILL, which is an
// error.
func (c *child) stop(d time.Duration) error {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.exited:
		return c.err
	case <-time.After(d):
		_ = c.cmd.Process.Kill()
		<-c.exited
		return fmt.Errorf("did not stop within %s", d)
	}
}

// startProgram runs one of the programs beside the demo, its log in the
// folder dir, until it says that it is ready; it is stopped at the end of the
// test. The line that says so is returned.
func (w *world) startProgram(t testing.TB, dir, name string, env []string, args ...string) (*child, map[string]string) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(w.bin, args[0]), args[1:]...)
	cmd.Env = append(w.env(), env...)
	cmd.Stderr = log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c, err := startChild(cmd)
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan map[string]string, 1)
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		lines := bufio.NewScanner(stdout)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			_, _ = log.Write(append(lines.Bytes(), '\n'))
			var line map[string]any
			if json.Unmarshal(lines.Bytes(), &line) == nil && line["msg"] == "ready" {
				said := map[string]string{}
				for k, v := range line {
					said[k] = fmt.Sprint(v)
				}
				select {
				case ready <- said:
				default:
				}
			}
		}
		_, _ = io.Copy(log, stdout)
	}()
	t.Cleanup(func() {
		if err := c.stop(30 * time.Second); err != nil && !isKilled(err) {
			t.Errorf("%s: %v", name, err)
		}
		<-copied
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
	select {
	case said := <-ready:
		return c, said
	case <-c.exited:
	case <-time.After(time.Minute):
	}
	b, _ := os.ReadFile(log.Name())
	t.Fatalf("%s is not ready: %v\n%s", name, c.err, b)
	return nil, nil
}

// isKilled: the test itself killed it.
func isKilled(err error) bool {
	var e *exec.ExitError
	return errors.As(err, &e) && e.Sys().(syscall.WaitStatus).Signaled()
}

// processesOf lists the processes that name the folder in their command line,
// but for this one. A process that is just ending is waited for.
func processesOf(dir string) []string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for {
		var left []string
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is valid
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil || !bytes.Contains(b, []byte(dir)) || f == fmt.Sprintf("/proc/%d/cmdline", os.Getpid()) {
				continue
			}
			left = append(left, strings.ReplaceAll(string(bytes.TrimRight(b, "\x00")), "\x00", " "))
		}
		if len(left) == 0 || ctx.Err() != nil {
			return left
		}
		time.Sleep(50 * time.Millisecond)
	}
}
