// Command kluis is the operator's command: the demo, migrations, imports of
// readings, suppliers, supply periods, consents, the life of keys, and the audit
// log. It works against the demo and against production alike.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"kluis/cmd/kluis/backend"
	"kluis/conformance"
	"kluis/cryptoserver/client"
	"kluis/custodian"
	"kluis/ingest"
	"kluis/internal/postgres"
	"kluis/migrations"
)

// version is set by the linker.
var version = "unknown"

// The exit codes, as help and docs/INGEST.md say them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitRefused     = 3 // the file, days of it, or a step in the life of keys
	exitUnavailable = 4 // try again
	exitFindings    = 5 // kluis audit verify or kluis explain found something
	exitInterrupted = 130
)

const description = `Operate Kluis, the gateway to smart-meter readings.

To see it work:  kluis demo --state .demo

The other commands act on an installation: --state DIR is the folder of the demo, --config FILE the operator's configuration of any other (or KLUIS_STATE, KLUIS_CONFIG).

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused (a file, its days, a step in the life of keys), 4 a back end was not reachable: try again, 5 findings: what is recorded does not bear out.`

type cli struct {
	Demo        demoCmd        `cmd:"" help:"Set up and run everything on this machine."`
	Migrate     migrateCmd     `cmd:"" help:"Bring the database schema up to date."`
	Read        readCmd        `cmd:"" help:"Read as a supplier does, through the API: tables, charts, files."`
	Changes     changesCmd     `cmd:"" help:"What is new or corrected for a supplier, through the API."`
	Ingest      ingestCmd      `cmd:"" help:"Import readings."`
	Supplier    supplierCmd    `cmd:"" help:"Suppliers and their certificates."`
	Supply      supplyCmd      `cmd:"" help:"Metering points: who supplies them, and when."`
	Consent     consentCmd     `cmd:"" help:"Customers' consents."`
	Staff       staffCmd       `cmd:"" help:"Demo only: tokens of the grid operator's employees."`
	Explain     explainCmd     `cmd:"" help:"Make a recorded decision again: who asked what, when, and why it was given or not."`
	Keys        keysCmd        `cmd:"" help:"The life of keys: status, ceremony, rotation, erasure."`
	Storage     storageCmd     `cmd:"" help:"How readings lie on the disk: months, and the order in them."`
	Audit       auditCmd       `cmd:"" help:"The tamper-evident log of every access: keep, verify, prove."`
	Conformance conformanceCmd `cmd:"" help:"Test metering points: what suppliers must be answered, and whether they are."`
	HSM         hsmCmd         `cmd:"" name:"hsm" help:"Bring your own HSM."`

	Version kong.VersionFlag `help:"Print the version."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := run(ctx, os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

// streams are where commands read what a person types, and where they write.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// exit ends parsing early, for --help and --version.
type exit int

func run(ctx context.Context, args []string, s streams) (code int) {
	defer func() {
		if p := recover(); p != nil {
			e, ok := p.(exit)
			if !ok {
				panic(p)
			}
			code = int(e)
		}
	}()
	var c cli
	parser, err := kong.New(&c,
		kong.Name("kluis"),
		kong.Description(description),
		kong.Vars{"version": version, "mappings": strings.Join(ingest.BuiltIn(), ", ")},
		kong.Writers(s.out, s.err),
		kong.Exit(func(code int) { panic(exit(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(s),
	)
	if err != nil {
		panic(err) // the declarations above are wrong
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(s.err, "kluis: %v\n", err)
		var pe *kong.ParseError
		if errors.As(err, &pe) && pe.Context != nil {
			fmt.Fprintf(s.err, "For help: %s --help\n", strings.TrimSpace("kluis "+commandOf(pe.Context)))
		}
		return exitUsage
	}
	if err := parsed.Run(); err != nil {
		var child childError
		if errors.As(err, &child) {
			return child.code
		}
		if !errors.Is(err, errFindings) { // which are printed already
			fmt.Fprintf(s.err, "kluis: %v\n", err)
		}
		return exitCode(ctx, err)
	}
	return exitOK
}

// commandOf is the part of the command that was understood.
func commandOf(c *kong.Context) string {
	var words []string
	for _, p := range c.Path {
		if p.Command != nil {
			words = append(words, p.Command.Name)
		}
	}
	return strings.Join(words, " ")
}

// usageError is a mistake in the flags that only shows later.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func exitCode(ctx context.Context, err error) int {
	var u usageError
	var api apiError
	switch {
	case errors.As(err, &api) && ctx.Err() == nil:
		return api.code
	case errors.Is(err, errFindings), errors.Is(err, backend.ErrEvidence):
		return exitFindings
	case errors.As(err, &u):
		return exitUsage
	case ctx.Err() != nil:
		return exitInterrupted
	case errors.Is(err, backend.ErrRegister), errors.Is(err, ingest.ErrFile), errors.Is(err, ingest.ErrFewer), errors.Is(err, custodian.ErrRefused), errors.Is(err, custodian.ErrLacking), errors.Is(err, custodian.ErrFactsBehind), errors.Is(err, custodian.ErrStrayFacts), errors.Is(err, postgres.ErrDiffers), errors.Is(err, postgres.ErrNoMonth):
		return exitRefused
	case errors.Is(err, ingest.ErrMapping):
		return exitUsage
	case errors.Is(err, client.ErrUnavailable), errors.Is(err, postgres.ErrUnavailable), errors.Is(err, postgres.ErrLocked), errors.Is(err, postgres.ErrStorageBusy), errors.Is(err, migrations.ErrBusy), errors.Is(err, custodian.ErrUnavailable), errors.Is(err, conformance.ErrUnreachable), errors.Is(err, context.DeadlineExceeded):
		return exitUnavailable
	default:
		return exitFailed
	}
}
