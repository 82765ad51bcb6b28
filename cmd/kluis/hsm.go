package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"time"
)

type hsmCmd struct {
	Check hsmCheckCmd `cmd:"" passthrough:"" help:"Test a PKCS#11 module and token against what Kluis needs, and print a report."`
}

// hsmCheckCmd hands everything on: this program links no PKCS#11.
type hsmCheckCmd struct {
	Args []string `arg:"" optional:"" help:"Those of cryptoserver hsm check; --help lists them."`
}

// Run ends as the other program does.
func (c *hsmCheckCmd) Run(ctx context.Context, s streams) error {
	path, err := program("", "cryptoserver")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, append([]string{"hsm", "check"}, c.Args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.in, s.out, s.err
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	err = cmd.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.Exited() {
		return childError{ended.ExitCode()}
	}
	return err
}

// childError is the exit code of a program that said itself what was wrong.
type childError struct{ code int }

func (childError) Error() string { return "" }
