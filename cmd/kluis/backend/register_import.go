package backend

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"kluis/authz"
	"kluis/meter"
)

// registerWorkers is how many metering points are worked on at once. They share
// the database connections of the registrar, of which there are as many.
const registerWorkers = 4

// registerGrace is how long a metering point that is under way may still take
// when the import is interrupted.
const registerGrace = 10 * time.Second

// maxListed bounds the problems that a report lists; it counts all.
const maxListed = 1000

// RegisterOptions of ImportRegister.
type RegisterOptions struct {
	DryRun  bool // changes nothing
	SkipBad bool // leaves out metering points with a row that cannot be taken
	Correct bool // corrects what the legal file says otherwise
	// Progress, when set, is told now and then how far the import is, and how
	// many bytes of the extract were read.
	Progress func(r RegisterReport, bytes int64)
}

// RegisterReport says what an import did, or would have done.
type RegisterReport struct {
	Rows           int          `json:"rows"`
	MeteringPoints int          `json:"meteringPoints"` // dealt with
	New            int          `json:"new"`
	Changed        int          `json:"changed"` // of those known before
	Unchanged      int          `json:"unchanged"`
	LeftOut        int          `json:"leftOut"` // for a row that cannot be taken
	Steps          int          `json:"steps"`
	Corrections    int          `json:"corrections"` // of the steps
	BadRows        int          `json:"badRows"`     // problems
	Bad            []RowProblem `json:"bad"`         // the first of them
}

// RowsError is that rows of a metering point cannot be taken, and so nothing of
// it was.
type RowsError struct{ Problems []RowProblem }

func (e *RowsError) Error() string {
	more := ""
	if n := len(e.Problems) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more of this metering point)", n)
	}
	return e.Problems[0].String() + more
}

// Unwrap makes it an ErrRegister.
func (e *RowsError) Unwrap() error { return ErrRegister }

// ImportRegister takes over the supply periods and occupancies of an extract of
// the central connection register. It holds one metering point at a time per
// worker, whatever the size of the extract.
//
// All steps of a metering point are sealed before the first is stored; one of
// whose rows any cannot be taken is left as it is. Without SkipBad the import
// then ends with a RowsError; metering points before it are done. What the
// legal files say already is no step, so that an import that was interrupted is
// simply run again.
func (r *Registrar) ImportRegister(ctx context.Context, in io.Reader, opt RegisterOptions) (RegisterReport, error) {
	im := &registerImport{registrar: r, opt: opt, suppliers: map[meter.GLN]bool{}}
	im.report.Bad = []RowProblem{} // a list in JSON is never null
	rows, err := newRegisterReader(in)
	if err != nil {
		return im.report, err
	}
	// Reading ends with the first error, or with ctx. What is under way then has
	// a moment to be finished.
	reading, stop := context.WithCancel(ctx)
	defer stop()
	working, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	over := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(registerGrace, abort)
		context.AfterFunc(working, func() { timer.Stop() })
	})
	defer over()

	points := make(chan *registerPoint)
	var workers sync.WaitGroup
	for range registerWorkers {
		workers.Go(func() {
			for p := range points {
				im.done(p, im.point(working, p), stop)
			}
		})
	}
	err = im.feed(reading, rows, points)
	close(points)
	workers.Wait()
	slices.SortFunc(im.report.Bad, func(a, b RowProblem) int { return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column)) })
	switch {
	case im.first != nil:
		err = im.first
	case err == nil:
		err = ctx.Err()
	}
	return im.report, err
}

type registerImport struct {
	registrar *Registrar
	opt       RegisterOptions

	mu        sync.Mutex
	report    RegisterReport
	first     error // of the workers
	suppliers map[meter.GLN]bool
}

// feed hands the metering points to the workers.
func (im *registerImport) feed(ctx context.Context, rows *registerReader, points chan<- *registerPoint) error {
	for {
		p, err := rows.point()
		if errors.Is(err, io.EOF) {
			if rows.rows == 0 {
				return fmt.Errorf("%w: it has no rows", ErrRegister)
			}
			return nil
		}
		if err != nil {
			return err
		}
		im.mu.Lock()
		im.report.Rows = rows.rows
		if rows.next != nil {
			im.report.Rows-- // that of the next metering point
		}
		if im.opt.Progress != nil {
			im.opt.Progress(im.report, rows.bytes)
		}
		im.mu.Unlock()
		select {
		case points <- p:
		case <-ctx.Done():
			return nil // the error is a worker's, or ctx's
		}
	}
}

// point takes over one metering point.
func (im *registerImport) point(ctx context.Context, p *registerPoint) outcome {
	if p.check(); len(p.bad) > 0 {
		return outcome{err: &RowsError{p.bad}}
	}
	if err := im.known(ctx, p); err != nil {
		return outcome{err: err}
	}
	var o outcome
	plan := func(current *authz.LegalFile) ([]authz.Step, error) {
		pl := planRegister(p, current, im.opt.Correct, time.Now(), im.registrar.Profile.Location())
		o = outcome{isNew: current == nil, steps: pl.steps}
		if len(pl.problems) > 0 {
			return nil, &RowsError{pl.problems}
		}
		return pl.steps, nil
	}
	if !im.opt.DryRun {
		_, err := im.registrar.ChangeLegalFile(ctx, p.ean, plan)
		o.err = im.at(p, err)
		return o
	}
	current, err := im.registrar.currentLegalFile(ctx, p.ean)
	if err == nil {
		_, err = plan(current)
	}
	o.err = im.at(p, err)
	return o
}

// at says of an error that is not about rows where it came up.
func (im *registerImport) at(p *registerPoint, err error) error {
	if err == nil || errors.Is(err, ErrRegister) {
		return err
	}
	return fmt.Errorf("metering point of line %d: %w", p.line, err)
}

// outcome is what came of a metering point.
type outcome struct {
	isNew bool
	steps []authz.Step
	err   error
}

// done counts, and stops the import on an error that is not to be passed over.
func (im *registerImport) done(p *registerPoint, o outcome, stop func()) {
	im.mu.Lock()
	defer im.mu.Unlock()
	var rows *RowsError
	if errors.As(o.err, &rows) {
		im.report.LeftOut++
		im.report.BadRows += len(rows.Problems)
		if room := maxListed - len(im.report.Bad); room > 0 {
			im.report.Bad = append(im.report.Bad, rows.Problems[:min(room, len(rows.Problems))]...)
		}
	}
	switch {
	case rows != nil && im.opt.SkipBad:
		im.report.MeteringPoints++
	case o.err != nil:
		if im.first == nil {
			im.first = o.err
		}
		stop()
	default:
		im.report.MeteringPoints++
		im.report.Steps += len(o.steps)
		for _, s := range o.steps {
			switch s.(type) {
			case authz.CorrectSupply, authz.CorrectMove:
				im.report.Corrections++
			}
		}
		switch {
		case len(o.steps) == 0:
			im.report.Unchanged++
		case o.isNew:
			im.report.New++
		default:
			im.report.Changed++
		}
	}
}

// known refuses rows of suppliers that are not registered: most likely a slip
// of the pen.
func (im *registerImport) known(ctx context.Context, p *registerPoint) error {
	var bad []RowProblem
	for i := range p.rows {
		row := &p.rows[i]
		if row.supplier.IsZero() {
			continue
		}
		im.mu.Lock()
		known, asked := im.suppliers[row.supplier]
		im.mu.Unlock()
		if !asked {
			_, err := im.registrar.Supplier(ctx, row.supplier)
			if err != nil && !errors.Is(err, ErrUnknownSupplier) {
				return im.at(p, err)
			}
			known = err == nil
			im.mu.Lock()
			if len(im.suppliers) < maxSuppliers {
				im.suppliers[row.supplier] = known
			}
			im.mu.Unlock()
		}
		if !known {
			bad = append(bad, row.problem(colSupplier, "the supplier is not registered: register it first with kluis supplier add"))
		}
	}
	if len(bad) > 0 {
		return &RowsError{bad}
	}
	return nil
}

// maxSuppliers bounds what is remembered of suppliers; a market has some
// hundreds.
const maxSuppliers = 10_000

// currentLegalFile returns the verified newest version; nil when there is none.
func (r *Registrar) currentLegalFile(ctx context.Context, ean meter.EAN) (*authz.LegalFile, error) {
	f, _, err := r.legalFile(ctx, ean)
	return f, err
}
