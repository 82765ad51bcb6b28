// Command cryptoserver is the only process with keys. `serve` answers the
// services of the operator over gRPC; `keys` is the key ceremony.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"

	"kluis/internal/hsm"
	"kluis/internal/timerslack"
)

// version is set by the linker.
var version = "unknown"

type cli struct {
	Serve   serveCmd         `cmd:"" help:"Serve the roles whose tokens the configuration names, until SIGTERM."`
	Keys    keysCmd          `cmd:"" help:"The key ceremony: make the keys and bring them to the tokens."`
	HSM     hsmCmd           `cmd:"" name:"hsm" help:"Bring your own HSM."`
	Version kong.VersionFlag `help:"Print the version."`
}

// gcPercent lets the heap grow to half as much again as what is in use, instead
// of to twice that. What is in use is some tens of megabytes that stay (what it
// remembers of facts, tokens and seals), so that garbage is seldom collected all
// the same (docs/PERFORMANCE.md).
const gcPercent = 50

const (
	exitUsage = 2
	// exitStuck tells the supervisor that nothing is wrong with the configuration
	// and a new process will do (EX_TEMPFAIL of sysexits.h).
	exitStuck = 75
)

// exitError ends the program with a code of its own.
type exitError struct {
	error
	code int
}

func (e exitError) Unwrap() error { return e.error }

func main() {
	err := run()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "cryptoserver:", err)
	var e exitError
	switch {
	case errors.As(err, &e):
		os.Exit(e.code)
	case errors.Is(err, hsm.ErrStuck):
		os.Exit(exitStuck)
	}
	os.Exit(1)
}

// exitAs ends the program for kong, whose own code for wrong usage is 80.
func exitAs(code int) {
	if code != 0 {
		code = exitUsage
	}
	os.Exit(code)
}

// undumpable keeps readings and PINs in memory from reaching a disk or
// another process: no core file, nor a core piped to a program, which the
// limit does not stop; no tracing by processes of the same user.
func undumpable() error {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return err
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func run() error {
	if err := undumpable(); err != nil {
		return fmt.Errorf("core dumps cannot be switched off: %w", err)
	}
	var c cli
	k := kong.Parse(&c,
		kong.Name("cryptoserver"),
		kong.Description("The decryption service of Kluis."),
		kong.Vars{"version": version},
		kong.UsageOnError(),
		kong.Exit(exitAs),
	)
	if k.Command() == "serve" {
		if err := timerslack.Relax(); err != nil {
			fmt.Fprintln(os.Stderr, "cryptoserver: it will take more CPU:", err)
		}
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(gcPercent)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	k.BindTo(ctx, (*context.Context)(nil))
	return k.Run()
}
