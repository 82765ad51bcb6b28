// Command auditproof checks, offline and without anything of the operator's but
// the public seal keys, that an access record is in the audit log of Kluis: that
// the leaf of the record belongs to the tree whose head a seal key signed.
//
// It shares no code with the log but the form of checkpoints: what it relies on
// can be read in a quarter of an hour.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

// The exit codes, as help says them.
const (
	exitProven = 0
	exitNot    = 1
	exitUsage  = 2
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

const maxFile = 16 << 20

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("auditproof", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, `usage: auditproof --keys seal-keys.pem --origin NAME [--checkpoint FILE] proof.json

Checks a proof that "kluis audit prove" made; - reads it from standard input.
Get the keys and the name of the log from the operator once, not with the proof.

Exit codes: 0 every record in it is in the log, 1 not proven, 2 wrong usage.

`)
		flags.PrintDefaults()
	}
	keysFile := flags.String("keys", "", "`file` with the public seal keys (PEM)")
	origin := flags.String("origin", "", "`name` of the log")
	held := flags.String("checkpoint", "", "`file` with a checkpoint that you hold: the proof must be of it")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitProven
		}
		return exitUsage
	}
	if *keysFile == "" || *origin == "" || flags.NArg() != 1 {
		flags.Usage()
		return exitUsage
	}
	keys, err := read(*keysFile, nil)
	if err != nil {
		fmt.Fprintf(stderr, "auditproof: %v\n", err)
		return exitUsage
	}
	var note []byte
	if *held != "" {
		if note, err = read(*held, nil); err != nil {
			fmt.Fprintf(stderr, "auditproof: %v\n", err)
			return exitUsage
		}
	}
	file, err := read(flags.Arg(0), stdin)
	if err != nil {
		fmt.Fprintf(stderr, "auditproof: %v\n", err)
		return exitUsage
	}
	proven, err := check(file, keys, *origin, note)
	if err != nil {
		fmt.Fprintf(stderr, "NOT PROVEN: %v\n", err)
		return exitNot
	}
	for _, p := range proven {
		fmt.Fprintf(stdout, "PROVEN: leaf %d of the %d signed on %s\n", p.index, p.size, p.signedAt.Format("2006-01-02 15:04:05 MST"))
		fmt.Fprint(stdout, p.says)
	}
	return exitProven
}

func read(name string, stdin io.Reader) ([]byte, error) {
	r := stdin
	if name != "-" || stdin == nil {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s is longer than %d bytes", name, maxFile)
	}
	return b, err
}
