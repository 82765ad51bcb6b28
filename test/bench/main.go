// Command bench measures one supplier request from end to end, and beside it,
// in the same run, what its unavoidable parts cost by themselves: the floor.
// docs/PERFORMANCE.md says what the figures mean. It asserts nothing about
// them; it fails only when something is not done that should have been.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == partArg {
		exit(servePart(os.Args[2], os.Stdin, os.Stdout))
	}
	var o options
	short := flag.Bool("short", false, "one short round, to see that it works")
	file := flag.String("json", "", "also write all figures to this `file`")
	flag.StringVar(&o.root, "root", ".", "`folder` of the source tree")
	flag.StringVar(&o.bin, "bin", "bin", "`folder` of the programs")
	flag.IntVar(&o.rounds, "rounds", 5, "`number` of rounds")
	flag.DurationVar(&o.slice, "slice", 2*time.Second, "how long Kluis is measured at a time")
	flag.BoolVar(&o.onlyService, "service", false, "measure the cryptoservers by themselves only")
	flag.BoolVar(&o.onlyRequests, "requests", false, "measure whole requests only")
	flag.Int64Var(&o.soakBlocks, "memory", 0, "instead of measuring speed, open this `number` of blocks and see what memory the cryptoservers take")
	flag.DurationVar(&o.profile, "profile", 0, "instead of measuring, load Kluis with 8 clients for this `long` and print its process ids, for a profiler")
	flag.IntVar(&o.batch, "batch", 0, "with -profile: load the cryptoservers alone, with the `n`th kind of batch")
	flag.IntVar(&o.growth, "growth", 0, "instead, measure the database's part with 10000 metering points and with this `number`, in a PostgreSQL of its own")
	flag.IntVar(&o.storage, "storage", 0, "instead, measure how this `number` of metering points lie on the disk, before and after a month is put in order")
	flag.IntVar(&o.ingest, "ingest", 0, "instead, measure the ingest of one day of this `number` of metering points, through a demo's cryptoservers")
	flag.IntVar(&o.stream, "stream", 0, "instead, measure streams of readings of 10000 metering points and of this `number`, in a demo of its own")
	flag.BoolVar(&o.fair, "fair", false, "instead, measure what a greedy supplier does to others, in a demo of its own")
	flag.Parse()
	o.progress = os.Stderr
	if o.onlyMemory = o.soakBlocks > 0; !o.onlyMemory {
		o.soakBlocks = 500_000
	}
	if *short {
		o.rounds, o.slice = 1, 500*time.Millisecond
	}
	o.growthRequests, o.firstForeign = 600, 200
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(runAll(ctx, o, os.Stdout, *file))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// options of a run.
type options struct {
	root       string // of the source tree
	bin        string // of the programs
	rounds     int
	slice      time.Duration // of one measurement of Kluis; those of the floor take half
	soakBlocks int64         // blocks over which memory is watched
	profile    time.Duration
	// firstForeign is how many metering points of others are made to be asked for
	// the first time, for each operation.
	firstForeign int
	progress     io.Writer

	batch int // to load the cryptoservers alone with; 0: whole requests

	growth         int // metering points of the large database
	growthRequests int // of each kind, in a round

	stream int // metering points of the large portfolio

	storage, ingest int // metering points

	onlyMemory, onlyService, onlyRequests, fair bool
}

// growthSmall is how many metering points the small database has.
const growthSmall = 10_000

func runAll(ctx context.Context, o options, out io.Writer, file string) (err error) {
	dir, err := os.MkdirTemp("", "kluis-bench-")
	if err != nil {
		return err
	}
	// Root's PostgreSQL runs as another user, who must be able to pass.
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var r interface{ print(io.Writer) }
	if o.fair {
		r, err = measureFair(ctx, o, dir)
	} else if o.stream > 0 {
		r, err = measureStream(ctx, o, dir)
	} else if o.storage > 0 {
		r, err = measureStorage(ctx, o, dir, o.storage)
	} else if o.ingest > 0 {
		r, err = measureIngest(ctx, o, dir, o.ingest)
	} else if o.growth > 0 {
		r, err = measureGrowth(ctx, o, dir, [2]int{min(growthSmall, (o.growth+1)/2), o.growth})
	} else {
		r, err = measure(ctx, o, dir)
	}
	if err != nil || o.profile > 0 {
		return err
	}
	r.print(out)
	if file == "" {
		return nil
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}
