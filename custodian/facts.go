package custodian

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"kluis/cryptoserver/control"
	"kluis/meter"
)

// FactKind says which sealed facts.
type FactKind uint8

// The kinds there are.
const (
	LegalFiles      FactKind = 1
	SupplierRecords FactKind = 2
)

var factKinds = []FactKind{LegalFiles, SupplierRecords}

func (k FactKind) String() string {
	if k == SupplierRecords {
		return "supplier records"
	}
	return "legal files"
}

// FactPlace is a place in the facts of a kind: in the order in which they were
// stored (NewFacts), or of subject and version alone (AllFacts).
type FactPlace struct {
	Arrived uint64 // the transaction that stored it
	Subject int64  // EAN or GLN, whatever the column holds
	Version int64
}

// Fact is a stored fact, as the database has it, and of NewFacts and
// NewestFacts the version before it, if that is there.
type Fact struct {
	Place            FactPlace
	Sealed, Previous []byte
}

// FactStore is what the database tells of sealed facts. Errors are as those of
// Store. What is returned at once is bounded in bytes, too: of large facts there
// are fewer than asked for, but one at least if there is any.
type FactStore interface {
	// FactHorizon is the oldest transaction that may still store something.
	FactHorizon(ctx context.Context) (uint64, error)
	// NewFacts returns up to limit facts after a place, in the order of the
	// transactions that stored them, with the versions before them.
	NewFacts(ctx context.Context, kind FactKind, after FactPlace, limit int) ([]Fact, error)
	// AllFacts returns up to limit facts after a place, by subject and version.
	AllFacts(ctx context.Context, kind FactKind, after FactPlace, limit int) ([]Fact, error)
	// NewestFacts returns the newest row of each of the first subjects, in order,
	// with the version before it; Sealed is nil: none.
	NewestFacts(ctx context.Context, kind FactKind, subjects []int64) ([]Fact, error)
	// FactMark is the transaction before which all facts were looked at; 0: never.
	FactMark(ctx context.Context) (uint64, error)
	// SetFactMark stores it.
	SetFactMark(ctx context.Context, arrived uint64) error
}

const (
	factPage    = 500
	sweepPage   = 1000
	historyPage = 32
	// The database stores how far the facts were looked at no more often.
	markEvery = time.Minute
)

// version is one version of a fact that verified.
type version struct {
	subject  int64
	number   uint64
	sealedAt time.Time
	narrows  bool // takes something away from the version before
}

// minimum is what the feed says of a subject.
func (c *Custodian) minimum(kind FactKind, subject int64) uint64 {
	if kind == LegalFiles {
		if ean, err := meter.EANFromInt64(subject); err == nil {
			return c.feed().FileMinimum(ean)
		}
		return 0
	}
	if gln, err := meter.GLNFromInt64(subject); err == nil {
		return c.feed().SupplierMinimum(gln)
	}
	return 0
}

// narrowed collects, of each subject, the newest version that takes something
// away.
type narrowed map[int64]version

func (n narrowed) add(v version) {
	if v.narrows && v.number > n[v.subject].number {
		n[v.subject] = v
	}
}

// noFact is before all facts of a transaction.
func noFact(arrived uint64) FactPlace {
	return FactPlace{Arrived: arrived, Subject: math.MinInt64, Version: math.MinInt64}
}

// newFacts looks at what was stored in a transaction or later ones. What takes
// something away, or is not as it should be, is judged with all the versions
// before it.
func (c *Custodian) newFacts(ctx context.Context, kind FactKind, since uint64, each func(narrowed, []Stray) error) error {
	return c.pages(ctx, kind, noFact(since), c.store.NewFacts, func(page []Fact) error {
		found, stray, seen := narrowed{}, []Stray(nil), map[int64]bool{}
		for _, f := range page {
			subject := f.Place.Subject
			if seen[subject] || f.Place.Version > 0 && c.minimum(kind, subject) >= uint64(f.Place.Version) {
				continue // seen before
			}
			if v, why := c.judge(kind, f, f.Previous); why == "" && !v.narrows {
				continue
			}
			seen[subject] = true
			h, err := c.history(ctx, kind, subject)
			if err != nil {
				return err
			}
			found.add(h.narrowing)
			if h.stray != nil {
				stray = append(stray, *h.stray)
			}
		}
		return each(found, stray)
	})
}

// allFacts looks at everything there is.
func (c *Custodian) allFacts(ctx context.Context, kind FactKind, each func(narrowed, []Stray) error) error {
	var h *history
	found, stray := narrowed{}, []Stray(nil)
	end := func() {
		if h == nil {
			return
		}
		found.add(h.narrowing)
		if h.stray != nil {
			stray = append(stray, *h.stray)
		}
	}
	err := c.pages(ctx, kind, noFact(0), c.store.AllFacts, func(page []Fact) error {
		for _, f := range page {
			if h == nil || h.subject != f.Place.Subject {
				end()
				h = c.newHistory(kind, f.Place.Subject)
			}
			h.next(f)
		}
		if len(found) < control.MaxMinimums && len(stray) < factPage {
			return nil
		}
		defer func() { found, stray = narrowed{}, nil }()
		return each(found, stray)
	})
	if err != nil {
		return err
	}
	end()
	return each(found, stray)
}

func (c *Custodian) pages(ctx context.Context, kind FactKind, after FactPlace,
	read func(context.Context, FactKind, FactPlace, int) ([]Fact, error), each func([]Fact) error) error {
	for {
		page, err := calling(ctx, c.timing.call, func(ctx context.Context) ([]Fact, error) { return read(ctx, kind, after, factPage) })
		if err != nil {
			return fmt.Errorf("read %s: %w", kind, err)
		}
		if len(page) == 0 {
			return nil
		}
		if err := each(page); err != nil {
			return err
		}
		after = page[len(page)-1].Place
	}
}

// tell appends what was found to the feed, but for what it says already.
func (c *Custodian) tell(ctx context.Context, kind FactKind, found narrowed) (told []version, err error) {
	for {
		fresh := make([]version, 0, len(found))
		for _, v := range found {
			if c.minimum(kind, v.subject) < v.number {
				fresh = append(fresh, v)
			}
		}
		if len(fresh) == 0 {
			return told, nil
		}
		sortVersions(fresh)
		fresh = fresh[:min(len(fresh), control.MaxMinimums)]
		e, err := entryOf(kind, fresh)
		if err != nil {
			return told, err
		}
		switch _, err := c.append(ctx, e); {
		case errors.Is(err, ErrRefused): // another custodian said all of it meanwhile
		case err != nil:
			return told, err
		default:
			told = append(told, fresh...)
		}
	}
}

func entryOf(kind FactKind, versions []version) (control.Entry, error) {
	e := control.Entry{Kind: control.MinimumFiles}
	if kind == SupplierRecords {
		e.Kind = control.MinimumSuppliers
	}
	for _, v := range versions {
		if kind == LegalFiles {
			ean, err := meter.EANFromInt64(v.subject)
			if err != nil {
				return e, err
			}
			e.Files = append(e.Files, control.FileMinimum{EAN: ean, Version: v.number, SealedAt: v.sealedAt})
			continue
		}
		gln, err := meter.GLNFromInt64(v.subject)
		if err != nil {
			return e, err
		}
		e.Suppliers = append(e.Suppliers, control.SupplierMinimum{GLN: gln, Version: v.number})
	}
	return e, nil
}
