package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// process is a program that dies with us.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when it is gone
	err    error         // valid once exited is closed
}

// launch starts cmd and waits for its end on one locked thread: Pdeathsig is
// tied to the thread that forked.
func launch(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.err = cmd.Wait()
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends it with SIGTERM, and with SIGKILL if that does not help.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		return nil
	case <-time.After(45 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
		return fmt.Errorf("%s did not stop when told to", filepath.Base(p.cmd.Path))
	}
}

// The parts of the floor are processes of their own, so that their CPU is
// theirs alone: this program again, as `bench part NAME`, told what to do by
// JSON on standard input, a value each.
const partArg = "part"

// A part answers its set-up with an address, if it has one, and then each
// order with a run.
type (
	readyAnswer struct {
		Address string `json:"address,omitempty"`
	}
	order struct {
		For         time.Duration `json:"for"`
		Concurrency int           `json:"concurrency"`
		Cold        bool          `json:"cold"`
		Record      bool          `json:"record"` // of the statements: only the commit
		Batch       int           `json:"batch"`  // of the PKCS#11 loop
		Rewrap      bool          `json:"rewrap"` // its keys, instead of opening its blocks
		Proved      bool          `json:"proved"` // and back, to compare
	}
	partAnswer struct {
		Took []time.Duration `json:"took"` // by each operation
		Wall time.Duration   `json:"wall"`
		CPU  time.Duration   `json:"cpu"`
	}
)

// part is the other end of one.
type part struct {
	*process
	in    io.WriteCloser
	out   *json.Decoder
	ready readyAnswer
}

func startPart(name string, setup any, env ...string) (_ *part, err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe, partArg, name)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	p := &part{}
	if p.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = json.NewDecoder(stdout)
	if p.process, err = launch(cmd); err != nil {
		return nil, err
	}
	if err := p.ask(setup, &p.ready); err != nil {
		return nil, errors.Join(fmt.Errorf("floor %s: %w", name, err), p.stop())
	}
	return p, nil
}

func (p *part) ask(q, a any) error {
	if err := json.NewEncoder(p.in).Encode(q); err != nil {
		return err
	}
	return p.out.Decode(a)
}

// work has the part work by itself.
func (p *part) work(o order) (partAnswer, error) {
	var a partAnswer
	err := p.ask(o, &a)
	if err == nil && len(a.Took) == 0 {
		err = errors.New("it did nothing")
	}
	return a, err
}

// servePart is what a part does, until its input ends.
func servePart(name string, in io.Reader, out io.Writer) error {
	setups := map[string]func(json.RawMessage) (worker, error){"hsm": newHSMPart, "sql": newSQLPart, "streamsql": newStreamSQLPart, "tls": newTLSPart}
	setup, ok := setups[name]
	if !ok {
		return fmt.Errorf("no part %q", name)
	}
	dec, enc := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	var raw json.RawMessage
	if err := dec.Decode(&raw); err != nil {
		return err
	}
	w, err := setup(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := enc.Encode(readyAnswer{w.address()}); err != nil {
		return err
	}
	for {
		var o order
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return w.close()
		} else if err != nil {
			return err
		}
		a, err := w.work(o)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
}

type worker interface {
	address() string // where it serves, if it is a server
	work(order) (partAnswer, error)
	close() error
}
