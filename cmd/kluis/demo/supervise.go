package demo

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
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// process is one supervised OS process of the demo: started, awaited until it
// says that it is ready, restarted when it dies, stopped at the end.
type process struct {
	name    string
	args    []string // args[0] is the binary
	env     []string // added to ours
	logFile string

	mu      sync.Mutex
	pid     int
	stopped chan struct{} // closed when supervision has ended
	cancel  context.CancelFunc
}

// The first restart waits this long, each further one twice as long, up to
// restartMost; a process that ran for a while starts anew at restartFirst.
const (
	restartFirst = 3 * time.Second
	restartMost  = 30 * time.Second
)

// readyWithin is how long a process may take to its first readiness.
const readyWithin = 30 * time.Second

// start runs the process until it is ready or waiting ends, then supervises it
// until ctx ends or stop is called. onPID is told each new process id.
func (p *process) start(ctx, waiting context.Context, onPID func()) error {
	ctx, p.cancel = context.WithCancel(ctx)
	p.stopped = make(chan struct{})
	ready := make(chan error, 1)
	go p.supervise(ctx, ready, onPID)
	select {
	case err := <-ready:
		return err
	case <-waiting.Done():
		p.stop()
		if errors.Is(waiting.Err(), context.Canceled) {
			return context.Canceled
		}
		return fmt.Errorf("%s was not ready within %s; its log: %s", p.name, readyWithin, p.logFile)
	}
}

// stop ends the process and waits until it is gone.
func (p *process) stop() {
	if p.cancel == nil {
		return
	}
	p.cancel()
	<-p.stopped
}

// PID is the id of the running process, or 0.
func (p *process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

func (p *process) supervise(ctx context.Context, ready chan<- error, onPID func()) {
	defer close(p.stopped)
	// Pdeathsig is tied to the thread that starts the child, so that thread
	// must live as long as the supervision.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	wait := restartFirst
	var wasReady atomic.Bool
	onReady := func() {
		if wasReady.CompareAndSwap(false, true) {
			ready <- nil
		} else {
			onPID()
		}
	}
	for {
		began := time.Now()
		err := p.runOnce(ctx, onReady)
		if ctx.Err() != nil {
			if !wasReady.Load() {
				ready <- ctx.Err()
			}
			return
		}
		if !wasReady.Load() {
			ready <- fmt.Errorf("%s did not start: %w\n%s", p.name, err, tail(p.logFile))
			return
		}
		if time.Since(began) > time.Minute {
			wait = restartFirst
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, restartMost)
	}
}

// runOnce runs the process to its end.
func (p *process) runOnce(ctx context.Context, onReady func()) error {
	log, err := os.OpenFile(p.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.args[0], p.args[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.setPID(cmd.Process.Pid)
	defer p.setPID(0)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		watchReady(stdout, log, onReady)
	}()
	exited := make(chan error, 1)
	go func() {
		<-drained // Wait closes the pipe: read it to its end first
		exited <- cmd.Wait()
	}()
	select {
	case err := <-exited:
		return errors.Join(errors.New("process ended"), err)
	case <-ctx.Done():
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-exited:
	case <-time.After(10 * time.Second):
		_ = cmd.Process.Kill()
		<-exited
	}
	return ctx.Err()
}

func (p *process) setPID(pid int) {
	p.mu.Lock()
	p.pid = pid
	p.mu.Unlock()
}

// watchReady copies the process's output to its log and reports the line that
// says it is ready.
func watchReady(r io.Reader, log io.Writer, onReady func()) {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), 1<<20)
	told := false
	for s.Scan() {
		_, _ = log.Write(append(s.Bytes(), '\n'))
		if told || !bytes.Contains(s.Bytes(), []byte(`"ready"`)) {
			continue
		}
		var line struct{ Msg string }
		if json.Unmarshal(s.Bytes(), &line) == nil && line.Msg == "ready" {
			told = true
			onReady()
		}
	}
	_, _ = io.Copy(log, r)
}

// tail returns the end of a log, for an error message.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	if len(b) > 2000 {
		b = b[len(b)-2000:]
	}
	return string(b)
}
