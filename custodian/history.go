package custodian

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"kluis/authz"
	"kluis/meter"
)

// ErrStrayFacts: the database has sealed facts that nobody may build on.
var ErrStrayFacts = errors.New("the database has legal files or supplier records that do not follow on the version before, are not what their row says, or do not verify")

// Stray is the first row of a subject that is not as it should be. Nothing from
// it on is believed; of suppliers, which the registrar alone stores, the row is
// passed over.
type Stray struct {
	Kind    FactKind
	Subject int64 // EAN or GLN, as the row has it
	Version int64 // as the row has it
	Why     string

	arrived uint64
}

// Why a row is stray.
const (
	strayUnverified = "it does not verify"
	strayOther      = "it is of another metering point or supplier"
	strayNumber     = "it is another version than its row says"
	strayGap        = "the version before it is missing, or is stray"
	strayFork       = "it was not made from the version before it"
)

// history judges the versions of one subject, in order.
//
// A version of a legal file counts if it was made from the one before, and so
// on down to the first, or to the one that the feed names: that was judged when
// it was new, and what somebody deletes below it later changes nothing. A
// version that is genuine and was made from another one than the one stored is
// a fork: somebody had it sealed, kept it, and stored it over what was decided
// meanwhile. It says nothing of what was taken away, so it is neither a minimum
// nor the base of one.
type history struct {
	c       *Custodian
	kind    FactKind
	subject int64
	anchor  uint64 // the first version of a legal file that counts, by the feed

	last      Fact // the newest that is as it should be
	newest    version
	narrowing version // the newest of those that takes something away
	stray     *Stray
}

func (c *Custodian) newHistory(kind FactKind, subject int64) *history {
	h := &history{c: c, kind: kind, subject: subject}
	if kind == LegalFiles {
		h.anchor = c.minimum(kind, subject)
	}
	return h
}

// anchored says whether v is the very version that the feed names: of its
// number, and not sealed later.
func (h *history) anchored(v version) bool {
	earlier := v
	earlier.sealedAt = v.sealedAt.Add(-time.Microsecond)
	return h.anchor > 0 && v.number == h.anchor && h.c.counts(h.kind, h.subject, v) && !h.c.counts(h.kind, h.subject, earlier)
}

// counts says whether a version counts by the feed.
func (c *Custodian) counts(kind FactKind, subject int64, v version) bool {
	if ean, err := meter.EANFromInt64(subject); err == nil && kind == LegalFiles {
		return c.feed().CountsFile(ean, v.number, v.sealedAt)
	}
	return v.number >= c.minimum(kind, subject)
}

// next takes the next row, and says whether a further one could change
// anything.
func (h *history) next(f Fact) (more bool) {
	var previous []byte
	if h.last.Place.Version == f.Place.Version-1 {
		previous = h.last.Sealed
	}
	v, why := h.c.judge(h.kind, f, previous)
	if (why == strayGap || why == strayFork) && h.anchored(v) {
		why, h.stray = "", nil // the feed says so already, and v narrows nothing more
	}
	if why == "" && (h.stray == nil || h.kind == SupplierRecords) {
		h.last, h.newest = f, v
		if v.narrows {
			h.narrowing = v
		}
		return true
	}
	if h.stray == nil {
		h.stray = &Stray{h.kind, h.subject, f.Place.Version, why, f.Place.Arrived}
	}
	return h.kind == SupplierRecords || uint64(f.Place.Version) < h.anchor
}

// history reads and judges all versions of a subject.
func (c *Custodian) history(ctx context.Context, kind FactKind, subject int64) (*history, error) {
	h := c.newHistory(kind, subject)
	after := FactPlace{Subject: subject}
	for {
		page, err := calling(ctx, c.timing.call, func(ctx context.Context) ([]Fact, error) { return c.store.AllFacts(ctx, kind, after, historyPage) })
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", kind, err)
		}
		for _, f := range page {
			if f.Place.Subject != subject || !h.next(f) {
				return h, nil
			}
		}
		if len(page) == 0 {
			return h, nil
		}
		after = page[len(page)-1].Place
	}
}

// judge verifies a fact under the pinned seal keys and compares it with its
// row and the version before: what the columns say counts for nothing but that.
// Of a stray legal file that verified the version is told, too.
func (c *Custodian) judge(kind FactKind, f Fact, previous []byte) (v version, why string) {
	if kind == SupplierRecords {
		r, err := c.keys.Supplier(f.Sealed)
		switch {
		case err != nil:
			return version{}, strayUnverified
		case r.GLN().Int64() != f.Place.Subject:
			return version{}, strayOther
		case int64(r.Version()) != f.Place.Version:
			return version{}, strayNumber
		}
		// One that does not verify is as good as none: then nobody can tell
		// what was taken away, and NarrowsSupplier says so.
		prev, _ := c.keys.Supplier(previous)
		return version{f.Place.Subject, r.Version(), r.SealedAt(), authz.NarrowsSupplier(prev, r)}, ""
	}
	file, err := c.keys.LegalFile(f.Sealed)
	switch {
	case err != nil:
		return version{}, strayUnverified
	case file.EAN().Int64() != f.Place.Subject:
		return version{}, strayOther
	case int64(file.Version()) != f.Place.Version:
		return version{}, strayNumber
	}
	v = version{f.Place.Subject, file.Version(), file.SealedAt(), false}
	var prev *authz.LegalFile
	if file.Version() > 1 {
		if prev, err = c.keys.LegalFile(previous); err != nil {
			return v, strayGap
		}
		if prev.EAN() != file.EAN() || prev.Version() != file.Version()-1 || prev.Digest() != file.Previous() {
			return v, strayFork
		}
	}
	v.narrows = authz.Narrows(prev, file)
	return v, ""
}

// Of so many subjects with stray rows it is kept which they are; of so many it
// is looked in one go whether they are mended.
const (
	maxStrays   = 1000
	strayPage   = 100
	notOverflow = ^uint64(0)
)

type straySubject struct {
	kind    FactKind
	subject int64
}

// strays are the subjects with stray rows, until somebody has mended them.
// Safe for concurrent use.
type strays struct {
	mu       sync.Mutex
	known    map[straySubject]uint64 // arrival of the first stray row
	overflow uint64                  // arrival of the earliest that was not kept; notOverflow: all were
	turn     []straySubject          // still to be looked at again
}

func newStrays() *strays { return &strays{known: map[straySubject]uint64{}, overflow: notOverflow} }

func (s *strays) add(found []Stray) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range found {
		k := straySubject{f.Kind, f.Subject}
		if _, ok := s.known[k]; !ok && len(s.known) >= maxStrays {
			s.overflow = min(s.overflow, f.arrived)
			continue
		}
		s.known[k] = f.arrived
	}
}

func (s *strays) mended(k straySubject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, k)
}

func (s *strays) count() (n int, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.known), s.overflow != notOverflow
}

// page is what to look at next.
func (s *strays) page() []straySubject {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.turn) == 0 {
		for k := range s.known {
			s.turn = append(s.turn, k)
		}
	}
	n := min(len(s.turn), strayPage)
	page := s.turn[:n:n]
	s.turn = s.turn[n:]
	return page
}

// earliest is the arrival of the earliest there is, or mark, whichever is
// before: whoever starts to look there finds all of them again.
func (s *strays) earliest(mark uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	mark = min(mark, s.overflow)
	for _, arrived := range s.known {
		mark = min(mark, arrived)
	}
	return mark
}

// again says from where to look again for those that there was no room for;
// mark when there were none, or there still is none.
func (s *strays) again(mark uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.overflow == notOverflow || len(s.known) > maxStrays/2 {
		return mark
	}
	mark, s.overflow = min(mark, s.overflow), notOverflow
	return mark
}

// mend looks again at subjects with stray rows: whether they are mended, and
// whether something counts now that did not.
func (w *watch) mend(ctx context.Context) error {
	found := map[FactKind]narrowed{LegalFiles: {}, SupplierRecords: {}}
	for _, k := range w.strays.page() {
		h, err := w.c.history(ctx, k.kind, k.subject)
		if err != nil {
			return err
		}
		if h.stray == nil {
			w.strays.mended(k)
		}
		found[k.kind].add(h.narrowing)
	}
	for _, kind := range factKinds {
		if err := w.tell(ctx, kind, found[kind]); err != nil {
			return err
		}
	}
	n, more := w.strays.count()
	w.c.metrics.stray.Set(float64(n))
	var err error
	if n > 0 {
		orMore := ""
		if more {
			orMore = " or more"
		}
		err = fmt.Errorf("%w: of %d%s metering points and suppliers. Nobody is served by them; find out who wrote them, and remove them: kluis keys facts", ErrStrayFacts, n, orMore)
	}
	w.alarmStray.is(err, "legal files and supplier records are what their rows say, and follow on one another")
	return nil
}

// strayFacts lists what is stray of what was stored since the mark, which is
// never beyond the first stray row that is not mended; without a mark, of
// everything.
func (c *Custodian) strayFacts(ctx context.Context) (out []Stray, err error) {
	horizon, err := calling(ctx, c.timing.call, c.store.FactHorizon)
	if err != nil {
		return nil, err
	}
	mark, err := calling(ctx, c.timing.call, c.store.FactMark)
	if err != nil {
		return nil, err
	}
	collect := func(_ narrowed, stray []Stray) error {
		out = append(out, stray...)
		return nil
	}
	for _, kind := range factKinds {
		if mark == 0 || mark > horizon {
			err = c.allFacts(ctx, kind, collect)
		} else {
			err = c.newFacts(ctx, kind, mark, collect)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
