package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"kluis/cmd/kluis/backend"
)

type supplyImportCmd struct {
	target
	DryRun  bool   `help:"Say what would be done, and change nothing."`
	SkipBad bool   `help:"Leave out metering points with a row that cannot be taken, and list the rows, instead of stopping."`
	Correct bool   `help:"Correct what a legal file says otherwise; then the rows of a metering point must be its whole history."`
	File    string `help:"The extract (CSV); - is standard input." arg:"" placeholder:"FILE"`
}

// Help says more than fits a line.
func (supplyImportCmd) Help() string {
	return `Takes over supply periods and occupancies from a CSV extract of the central connection register. The first line names the columns, in any order, separated by comma or semicolon:

ean,commodity,supplier,supply_from,supply_to,moved_in,moved_out

Days are local, YYYY-MM-DD; supply_to and moved_out are the first day after, empty when there is no end. Metering points come in ascending order of EAN. commodity (electricity, gas) is needed for new ones.

Rows that the legal file says already are no step: importing twice changes nothing, and an import that was interrupted is simply run again. Of a metering point either all rows are taken or none. What a legal file says otherwise is refused, unless --correct. All of it: docs/REGISTER.md.

Example:
  kluis supply import --state .demo --dry-run extract.csv

Exit codes: 0 done, 3 a row or the file cannot be taken, 4 a back end was not reachable: run it again.`
}

// importView is the report, for people and as JSON.
type importView struct {
	File    string `json:"file"`
	DryRun  bool   `json:"dryRun"`
	Stopped bool   `json:"stopped"` // before the end of the file
	backend.RegisterReport
	Seconds float64 `json:"seconds"`
}

func (c *supplyImportCmd) Run(ctx context.Context, s streams) error {
	in, size, name := s.in, int64(0), "standard input"
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return usage("%w", err)
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			size = info.Size()
		}
		in, name = f, filepath.Base(c.File)
	}
	return withRegistrar(ctx, c.target, func(r *backend.Registrar) error {
		return c.run(ctx, s, r, in, size, name)
	})
}

func (c *supplyImportCmd) run(ctx context.Context, s streams, r *backend.Registrar, in io.Reader, size int64, name string) error {
	began := time.Now()
	show := newProgress(s.err)
	report, err := r.ImportRegister(ctx, in, backend.RegisterOptions{
		DryRun: c.DryRun, SkipBad: c.SkipBad, Correct: c.Correct,
		Progress: func(r backend.RegisterReport, bytes int64) {
			part := ""
			if size > 0 {
				part = fmt.Sprintf(" (%d %%)", 100*bytes/size)
			}
			show.say("%s rows%s, %s metering points, %s steps", thousands(r.Rows), part, thousands(r.MeteringPoints), thousands(r.Steps))
		},
	})
	show.done()
	v := importView{File: name, DryRun: c.DryRun, Stopped: err != nil, RegisterReport: report, Seconds: time.Since(began).Seconds()}
	if c.JSON {
		return errors.Join(printJSON(s.out, v), c.failed(v, err))
	}
	// The error says why it stopped, also the row; not what was done before.
	if err == nil || v.New+v.Changed > 0 {
		v.print(s.out)
	}
	if err == nil || c.SkipBad || v.BadRows > 1 {
		v.printBad(s.out)
	}
	return c.failed(v, err)
}

// failed says what became of the rest, and what to do.
func (c *supplyImportCmd) failed(v importView, err error) error {
	if err == nil {
		return nil
	}
	done, next := "nothing was changed", "run it again"
	if v.New+v.Changed > 0 && !c.DryRun {
		done, next = "the metering points counted above are done", "run it again: what is done stays as it is"
	}
	if errors.Is(err, backend.ErrRegister) {
		next = "correct the file and " + next
	}
	return fmt.Errorf("%s: %w\n%s; %s", v.File, err, done, next)
}

func (v *importView) print(w io.Writer) {
	would := ""
	if v.DryRun {
		would = " would be"
	}
	fmt.Fprintf(w, "%s: %s rows, %s metering points in %.1f s\n", v.File, thousands(v.Rows), thousands(v.MeteringPoints), v.Seconds)
	fmt.Fprintf(w, "  new%s        %s\n  changed%s    %s\n  unchanged%s  %s\n", would, thousands(v.New), would, thousands(v.Changed), would, thousands(v.Unchanged))
	fmt.Fprintf(w, "  steps%s      %s", would, thousands(v.Steps))
	if v.Corrections > 0 {
		fmt.Fprintf(w, ", %s of them corrections", thousands(v.Corrections))
	}
	fmt.Fprintln(w)
}

func (v *importView) printBad(w io.Writer) {
	if v.LeftOut == 0 {
		return
	}
	fmt.Fprintf(w, "left out %s metering points; rows that cannot be taken:\n", thousands(v.LeftOut))
	for _, p := range v.Bad {
		fmt.Fprintf(w, "  %s\n", p)
	}
	if more := v.BadRows - len(v.Bad); more > 0 {
		fmt.Fprintf(w, "  and %s more\n", thousands(more))
	}
}
