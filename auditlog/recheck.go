package auditlog

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"kluis/auditlog/leaf"
	"kluis/auditlog/oversight"
)

// checking compares what is new in the log with what was signed, now and then.
func (a *Auditor) checking(ctx context.Context) {
	t := &trouble{log: a.slog, what: "checks of the log"}
	for ctx.Err() == nil {
		next, err := a.check(ctx)
		t.is(ctx, err)
		pause := a.timing.Check
		if next == 0 {
			pause = min(pause, a.timing.Judge) // a log that was never checked
		}
		sleep(ctx, pause)
	}
}

// maxChecked is how many leaves one check looks at, but for what one checkpoint
// added.
const maxChecked = 100_000

// check looks once at the leaves since the last check, and notes what it found. It
// returns the leaf that the next one goes on from.
func (a *Auditor) check(ctx context.Context) (next int64, _ error) {
	for ctx.Err() == nil {
		var known oversight.Checks
		err := a.call(ctx, func(ctx context.Context) (err error) {
			known, err = a.store.Checks(ctx)
			return err
		})
		if err != nil {
			return next, err
		}
		next = known.Next
		a.tellChecks(known)
		to, err := a.reach(ctx, known.Next)
		if err != nil || to.Size <= known.Next {
			return next, err
		}
		r, err := a.recheck(ctx, known.Next, to)
		if err != nil {
			return next, err
		}
		result := r.Result(false, known.Next, to.Size)
		if len(result.Findings) > 0 {
			var codes []string
			for _, f := range result.Findings {
				codes = append(codes, fmt.Sprintf("%s: %d", f.Code, f.Count))
			}
			a.slog.Error("the log has findings: run kluis audit verify", "findings", strings.Join(codes, ", "), "first", known.Next, "size", to.Size)
		}
		if err := a.call(ctx, func(ctx context.Context) error { return a.store.AddResult(ctx, result) }); err != nil {
			return next, err
		}
	}
	return next, nil
}

// reach is the checkpoint up to which the next check goes; zero: there is none.
func (a *Auditor) reach(ctx context.Context, from int64) (to leaf.Note, err error) {
	for {
		var notes []leaf.Note
		err := a.call(ctx, func(ctx context.Context) (err error) {
			notes, err = a.store.Checkpoints(ctx, max(from, to.Size), pageRows)
			return err
		})
		if err != nil {
			return to, err
		}
		for _, n := range notes {
			if to.Size > 0 && n.Size > from+maxChecked {
				return to, nil
			}
			to = n
		}
		if len(notes) < pageRows {
			return to, nil
		}
	}
}

// recheck compares the leaves from one checkpoint to the next with their rows, and
// the tree with both. It is a part of what Verify does: rows of older leaves,
// journals, blocks and what was opened it does not look at.
func (a *Auditor) recheck(ctx context.Context, from int64, to leaf.Note) (*Report, error) {
	rep := &Report{Origin: a.log.Origin, Size: to.Size, Counts: map[What]int64{}, Findings: []Finding{}}
	signed := func(tree *frontier, n leaf.Note) {
		c, err := a.log.open(n.Text)
		if err != nil || int64(c.Size) != n.Size {
			rep.add(Finding{What: BadCheckpoint, Leaf: new(n.Size - 1), Detail: "in the database"})
		} else if tree.root() != tlog.Hash(c.Root) {
			rep.add(Finding{What: LogForked, Leaf: new(n.Size - 1), At: c.At})
		}
	}
	var tree frontier
	whole := true
	err := a.call(ctx, func(ctx context.Context) (err error) {
		if tree, whole, err = findFrontier(ctx, a.store, from); err != nil || !whole || from == 0 {
			return err
		}
		before, err := a.store.Checkpoints(ctx, from-1, 1)
		if err != nil {
			return err
		}
		if len(before) == 0 || before[0].Size != from {
			rep.add(Finding{What: BadCheckpoint, Leaf: new(from - 1), Detail: "the one up to which the log was checked before is gone"})
			return nil
		}
		signed(&tree, before[0])
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !whole {
		rep.add(Finding{What: LeafMissing, Leaf: new(from - 1), Detail: "a hash of the tree up to here"})
		return rep, nil
	}
	for tree.size < to.Size {
		err := a.call(ctx, func(ctx context.Context) error {
			p, err := readPage(ctx, a.store, tree.size, min(tree.size+pageLeaves, to.Size))
			if err != nil {
				return err
			}
			return p.compare(&tree, rep.add, func(int64, *leaf.Row) error { return nil })
		})
		if err != nil {
			return nil, err
		}
	}
	signed(&tree, to)
	return rep, nil
}

// Result is what the report found, in short.
func (r *Report) Result(whole bool, first, size int64) oversight.Result {
	out := oversight.Result{Whole: whole, First: first, Size: size}
	for w, n := range r.Counts {
		if !w.IsNotice() {
			out.Findings = append(out.Findings, oversight.Count{Code: string(w), Count: n})
		}
	}
	slices.SortFunc(out.Findings, func(x, y oversight.Count) int { return strings.Compare(x.Code, y.Code) })
	return out
}

func (a *Auditor) tellChecks(c oversight.Checks) {
	m := a.metrics
	m.checked.Set(float64(c.Size))
	m.findings.Set(0)
	for _, f := range c.Findings {
		m.findings.Add(float64(f.Count))
	}
	if !c.Newest.IsZero() {
		m.checkedAt.Set(unix(c.Newest))
	}
	if !c.Whole.IsZero() {
		m.wholeAt.Set(unix(c.Whole))
	}
}
