package custodian

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// watch follows legal files and supplier records as they are stored, and says
// in the feed which versions count no more: those before one that takes rights
// away. It is what bounds the replay of an older version, which verifies for
// ever, to the seconds until it has looked.
//
// New rows are found by the transaction that stored them. Each look goes from
// the oldest transaction on that was under way at the look before; so however
// late a row is committed, it is seen, and what is seen twice does no harm.
//
// Without a mark of how far somebody looked, or with one from another cluster,
// everything there is is looked at once, beside what is new.
type watch struct {
	c       *Custodian
	told    chan<- struct{} // there is something new in the feed
	trouble trouble

	strays     *strays
	alarmStray trouble

	mu     sync.Mutex
	walked bool // everything from before the mark was looked at

	mark   uint64
	begun  bool
	kept   uint64 // mark in the database
	keptAt time.Time

	// The sweep compares what the feed says with what the database has.
	left   map[FactKind][]int64
	behind map[FactKind]int // found so far in this sweep
	alarm  trouble
}

// run looks every so often, until ctx ends.
func (w *watch) run(ctx context.Context, every time.Duration) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		err := w.look(ctx, &wg)
		if err == nil {
			err = w.sweep(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		w.trouble.is(err, "legal files and supplier records are followed")
		if sleep(ctx, every) != nil {
			return
		}
	}
}

// look says in the feed what was taken away since the last look.
func (w *watch) look(ctx context.Context, wg *sync.WaitGroup) error {
	c := w.c
	// Before anything is read: what is stored in a transaction before it is
	// visible to what is read from now on.
	horizon, err := calling(ctx, c.timing.call, c.store.FactHorizon)
	if err != nil {
		return fmt.Errorf("look for what was stored: %w", err)
	}
	if !w.begun {
		if w.mark, err = calling(ctx, c.timing.call, c.store.FactMark); err != nil {
			return fmt.Errorf("look for what was stored: %w", err)
		}
		w.begun, w.walked, w.kept = true, w.mark != 0, w.mark
		if w.mark == 0 {
			w.mark = horizon
			w.walk(ctx, wg)
		}
	}
	if w.mark > horizon {
		c.log.Warn("the database's transactions count from an earlier one than at the last look: all legal files and supplier records are looked at again")
		w.mark = horizon
		w.walk(ctx, wg)
	}
	w.mark = w.strays.again(w.mark)
	for _, kind := range factKinds {
		err := c.newFacts(ctx, kind, w.mark, func(found narrowed, stray []Stray) error {
			w.strays.add(stray)
			return w.tell(ctx, kind, found)
		})
		if err != nil {
			return err
		}
	}
	w.mark = horizon
	if err := w.mend(ctx); err != nil {
		return err
	}
	c.metrics.looked.Set(float64(c.now().Unix()))
	w.mu.Lock()
	walked := w.walked
	w.mu.Unlock()
	keep := w.strays.earliest(w.mark)
	if !walked || keep == w.kept || time.Since(w.keptAt) < markEvery {
		return nil
	}
	if _, err := calling(ctx, c.timing.call, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, c.store.SetFactMark(ctx, keep)
	}); err != nil {
		return fmt.Errorf("keep how far was looked: %w", err)
	}
	w.kept, w.keptAt = keep, time.Now()
	return nil
}

func (w *watch) tell(ctx context.Context, kind FactKind, found narrowed) error {
	told, err := w.c.tell(ctx, kind, found)
	if len(told) == 0 {
		return err
	}
	w.c.metrics.told(told, w.c.now())
	select {
	case w.told <- struct{}{}:
	default:
	}
	oldest := slices.MinFunc(told, func(a, b version) int { return a.sealedAt.Compare(b.sealedAt) })
	w.c.log.Info("rights were taken away: earlier versions count no more", "of", kind.String(), "subjects", len(told),
		"delay_seconds", w.c.now().Sub(oldest.sealedAt).Seconds())
	return err
}

// walk looks at everything there is, beside what is new.
func (w *watch) walk(ctx context.Context, wg *sync.WaitGroup) {
	w.mu.Lock()
	w.walked = false
	w.mu.Unlock()
	wg.Go(func() {
		trouble := trouble{log: w.c.log}
		for {
			began := time.Now()
			var err error
			for _, kind := range factKinds {
				if err == nil {
					err = w.c.allFacts(ctx, kind, func(found narrowed, stray []Stray) error {
						w.strays.add(stray)
						told, err := w.c.tell(ctx, kind, found)
						if len(told) > 0 {
							w.c.log.Info("earlier versions count no more", "of", kind.String(), "subjects", len(told))
						}
						return err
					})
				}
			}
			if ctx.Err() != nil {
				return
			}
			trouble.is(err, "all legal files and supplier records are looked at once")
			if err == nil {
				w.c.log.Info("all legal files and supplier records were looked at", "took", time.Since(began).String())
				w.mu.Lock()
				w.walked = true
				w.mu.Unlock()
				return
			}
			if sleep(ctx, w.c.timing.again) != nil {
				return
			}
		}
	})
}

// ErrFactsBehind: the database has only older versions of sealed facts than the
// feed says there were.
var ErrFactsBehind = errors.New("the database has older versions of sealed facts than the control feed says there were")

// sweep compares one page of the feed's minimums with the database, and raises
// the alarm at the end of a round, or as soon as something is missing.
func (w *watch) sweep(ctx context.Context) error {
	if len(w.left[LegalFiles])+len(w.left[SupplierRecords]) == 0 {
		w.left, w.behind = w.c.minimums(), map[FactKind]int{}
	}
	for _, kind := range factKinds {
		page := w.left[kind]
		page = page[:min(len(page), sweepPage)]
		behind, stray, err := w.c.behind(ctx, kind, page)
		if err != nil {
			return err
		}
		w.strays.add(stray)
		w.left[kind] = w.left[kind][len(page):]
		w.behind[kind] += len(behind)
	}
	files, suppliers := w.behind[LegalFiles], w.behind[SupplierRecords]
	switch {
	case files+suppliers > 0:
		w.c.metrics.behind.Set(float64(files + suppliers))
		w.alarm.is(fmt.Errorf("%w: of %d metering points and %d suppliers, or more. Somebody deleted rows or put an older database back; no cryptoserver accepts what is there: kluis keys facts",
			ErrFactsBehind, files, suppliers), alarmText)
	case len(w.left[LegalFiles])+len(w.left[SupplierRecords]) == 0:
		w.c.metrics.behind.Set(0)
		w.alarm.is(nil, alarmText)
	}
	return nil
}

const alarmText = "the database has every version that the control feed names"

// minimums lists the subjects of which the feed says something.
func (c *Custodian) minimums() map[FactKind][]int64 {
	out := map[FactKind][]int64{}
	for _, m := range c.feed().FileMinimums() {
		out[LegalFiles] = append(out[LegalFiles], m.EAN.Int64())
	}
	for _, m := range c.feed().SupplierMinimums() {
		out[SupplierRecords] = append(out[SupplierRecords], m.GLN.Int64())
	}
	return out
}

// Behind is a subject of which the database has only older versions than the
// feed says there were.
type Behind struct {
	Kind    FactKind
	Subject int64  // EAN or GLN
	Minimum uint64 // by the feed
	Newest  uint64 // that is as it should be, in the database; 0: none
}

// behind compares what the feed says of subjects with what the database has of
// them: verified, as a row may say any number.
func (c *Custodian) behind(ctx context.Context, kind FactKind, subjects []int64) (out []Behind, stray []Stray, err error) {
	for len(subjects) > 0 {
		n, more, further, err := c.someBehind(ctx, kind, subjects)
		if err != nil {
			return nil, nil, err
		}
		subjects, out, stray = subjects[n:], append(out, more...), append(stray, further...)
	}
	return out, stray, nil
}

// someBehind does so with the first n of them: as many as there is room for.
func (c *Custodian) someBehind(ctx context.Context, kind FactKind, subjects []int64) (n int, out []Behind, stray []Stray, err error) {
	newest, err := calling(ctx, c.timing.call, func(ctx context.Context) ([]Fact, error) { return c.store.NewestFacts(ctx, kind, subjects) })
	if err != nil {
		return 0, nil, nil, fmt.Errorf("compare %s with the control feed: %w", kind, err)
	}
	for i, subject := range subjects[:len(newest)] {
		var v version
		if newest[i].Sealed != nil {
			var why string
			if v, why = c.judge(kind, newest[i], newest[i].Previous); why != "" {
				h, err := c.history(ctx, kind, subject)
				if err != nil {
					return 0, nil, nil, err
				}
				v = h.newest
				if h.stray != nil {
					stray = append(stray, *h.stray)
				}
			}
		}
		if !c.counts(kind, subject, v) {
			out = append(out, Behind{kind, subject, c.minimum(kind, subject), v.number})
		}
	}
	return len(newest), out, stray, nil
}

// FactsCheck is what CheckFacts found.
type FactsCheck struct {
	Compared int // subjects of which the feed says something
	Behind   []Behind
	Stray    []Stray
}

// Err says what is wrong, if anything is: ErrFactsBehind, ErrStrayFacts or
// both.
func (f FactsCheck) Err() error {
	var behind, stray error
	if len(f.Behind) > 0 {
		behind = ErrFactsBehind
	}
	if len(f.Stray) > 0 {
		stray = ErrStrayFacts
	}
	return errors.Join(behind, stray)
}

// CheckFacts compares all that the feed says with the database, and lists the
// stray rows there.
func (c *Custodian) CheckFacts(ctx context.Context) (f FactsCheck, err error) {
	if err := c.patiently(ctx, c.sync); err != nil {
		return FactsCheck{}, err
	}
	if f.Stray, err = c.strayFacts(ctx); err != nil {
		return FactsCheck{}, err
	}
	for kind, subjects := range c.minimums() {
		f.Compared += len(subjects)
		for page := range slices.Chunk(subjects, sweepPage) {
			behind, stray, err := c.behind(ctx, kind, page)
			if err != nil {
				return FactsCheck{}, err
			}
			f.Behind, f.Stray = append(f.Behind, behind...), append(f.Stray, stray...)
		}
	}
	slices.SortFunc(f.Behind, func(a, b Behind) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Subject, b.Subject))
	})
	slices.SortFunc(f.Stray, func(a, b Stray) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Version, b.Version))
	})
	f.Stray = slices.CompactFunc(f.Stray, func(a, b Stray) bool { return a.Kind == b.Kind && a.Subject == b.Subject })
	return f, nil
}

func sortVersions(v []version) {
	slices.SortFunc(v, func(a, b version) int { return cmp.Compare(a.subject, b.subject) })
}
