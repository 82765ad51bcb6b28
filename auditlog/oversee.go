package auditlog

import (
	"context"
	"sync"
	"time"

	"kluis/auditlog/leaf"
	"kluis/auditlog/oversight"
	"kluis/internal/audit"
	"kluis/meter"
)

const (
	// lookBack is how far back is judged when the auditor starts: it may have been
	// away, or not have judged what it counted last.
	lookBack = 8 * 24 * time.Hour
	// forgetEvery is how often old counts are removed.
	forgetEvery = time.Hour
	// recent is what the metrics count.
	recent = 24 * time.Hour
)

// tally counts the records of a page; nil for other rows.
func (a *Auditor) tally(kind leaf.Kind) *oversight.Tally {
	if kind != leaf.Access {
		return nil
	}
	return oversight.NewTally(a.rules)
}

// count adds a row. One that is no record is for Verify to find.
func count(t *oversight.Tally, row *leaf.Row) {
	if t == nil {
		return
	}
	if r, err := audit.Parse(row.Content, row.Receipt); err == nil && r.InteractionID == row.ID && r.EAN.Int64() == row.Number {
		t.Add(&r, time.Now())
	}
}

// unjudged is since when hours were counted that were not judged.
type unjudged struct {
	mu    sync.Mutex
	since time.Time // zero: none
}

func (u *unjudged) add(t *oversight.Tally) {
	if t == nil {
		return
	}
	for _, h := range t.Hours() {
		u.put(h.At)
	}
}

func (u *unjudged) put(at time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !at.IsZero() && (u.since.IsZero() || at.Before(u.since)) {
		u.since = at
	}
}

func (u *unjudged) take() time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	at := u.since
	u.since = time.Time{}
	return at
}

// oversee says what is unusual in what was counted, and removes old counts.
func (a *Auditor) oversee(ctx context.Context) {
	t := &trouble{log: a.slog, what: "oversight"}
	a.unjudged.put(time.Now().Add(-lookBack))
	var forgot time.Time
	for ctx.Err() == nil {
		since := a.unjudged.take()
		err := a.judge(ctx, since)
		if err != nil {
			a.unjudged.put(since)
		}
		if err == nil && time.Since(forgot) > forgetEvery {
			oldest := a.rules.Oldest(time.Now())
			err = a.call(ctx, func(ctx context.Context) error {
				return a.store.Forget(ctx, oldest, meter.DayOf(oldest, a.rules.Zone))
			})
			if err == nil {
				forgot = time.Now()
			}
		}
		t.is(ctx, err)
		sleep(ctx, a.timing.Judge)
	}
}

// judge looks for what is unusual from a time on, unless it is zero, and says how
// much there is. The past is fetched of those parties only of which anything can
// be unusual.
func (a *Auditor) judge(ctx context.Context, since time.Time) error {
	if !since.IsZero() {
		day, past := oversight.Day(a.rules.Zone, since)
		err := a.call(ctx, func(ctx context.Context) error {
			hours, err := a.store.Hours(ctx, day)
			if err != nil {
				return err
			}
			days, err := a.store.Breadths(ctx, meter.DayOf(past, a.rules.Zone))
			if err != nil {
				return err
			}
			parties := oversight.Candidates(a.rules.Zone, hours, days, since)
			if len(parties) == 0 {
				return nil
			}
			if hours, err = a.store.HoursOf(ctx, parties, past); err != nil {
				return err
			}
			return a.store.AddUnusual(ctx, oversight.Detect(a.rules.Zone, hours, days, since))
		})
		if err != nil {
			return err
		}
	}
	return a.call(ctx, func(ctx context.Context) error {
		n, err := a.store.CountUnusual(ctx, time.Now().Add(-recent))
		if err != nil {
			return err
		}
		for _, k := range oversight.Kinds() {
			a.metrics.unusual.WithLabelValues(k.String()).Set(float64(n[k]))
		}
		a.metrics.judged.Set(unix(time.Now()))
		return nil
	})
}
