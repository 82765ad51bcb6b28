// Command cryptoserver is the only process with keys. `serve` answers the
// services of the operator over gRPC; `keys` is the key ceremony.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"kluis/internal/hsm"
)

// version is set by the linker.
var version = "unknown"

type cli struct {
	Serve   serveCmd         `cmd:"" help:"Serve the roles whose tokens the configuration names, until SIGTERM."`
	Keys    keysCmd          `cmd:"" help:"The key ceremony: make the keys and bring them to the tokens."`
	Version kong.VersionFlag `help:"Print the version."`
}

// exitStuck tells the supervisor that nothing is wrong with the configuration
// and a new process will do (EX_TEMPFAIL of sysexits.h).
const exitStuck = 75

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "cryptoserver:", err)
		if errors.Is(err, hsm.ErrStuck) {
			os.Exit(exitStuck)
		}
		os.Exit(1)
	}
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
	)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	k.BindTo(ctx, (*context.Context)(nil))
	return k.Run()
}
