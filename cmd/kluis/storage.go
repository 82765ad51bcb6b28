package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"kluis/cmd/kluis/backend"
	"kluis/internal/postgres"
	"kluis/meter"
	"kluis/migrations"
)

type storageCmd struct {
	Status  storageStatusCmd  `cmd:"" help:"Show the months: how large they are, and which are in order."`
	Months  storageMonthsCmd  `cmd:"" help:"Make the months that will be wanted."`
	Compact storageCompactCmd `cmd:"" help:"Write closed months anew in the order of the metering points."`
}

// monthFlag is a month as 2026-01.
type monthFlag struct {
	meter.Month
	set bool
}

func (f *monthFlag) UnmarshalText(b []byte) error {
	t, err := time.Parse("2006-01", string(b))
	if err != nil || t.Year() < 1970 {
		return errors.New("must be a month, as 2026-01")
	}
	f.Month, f.set = meter.DayOf(t, time.UTC).Month(), true
	return nil
}

func (f monthFlag) time() time.Time { return f.First().Start(time.UTC) }

func withStorage(ctx context.Context, t target, use func(*postgres.Storage) error) error {
	conf, err := t.load()
	if err != nil {
		return err
	}
	s, err := backend.OpenStorage(ctx, conf)
	if err != nil {
		return err
	}
	return errors.Join(use(s), s.Close())
}

type storageStatusCmd struct{ target }

// monthView is a month as storage status prints it.
type monthView struct {
	Month       string     `json:"month"`
	Blocks      int64      `json:"blocks"` // about
	TableBytes  int64      `json:"table_bytes"`
	IndexBytes  int64      `json:"index_bytes"`
	State       string     `json:"state"` // empty, open, due, in order, interrupted
	CompactedAt *time.Time `json:"compacted_at,omitempty"`
}

// The states of a month.
const (
	monthEmpty       = "empty"
	monthOpen        = "open"
	monthDue         = "due"
	monthInOrder     = "in order"
	monthInterrupted = "interrupted"
)

type storageView struct {
	Months     []monthView `json:"months"`
	StrayBytes int64       `json:"stray_bytes"`
}

// settled is how long after its end late readings of a month still come.
const settled = 10 * 24 * time.Hour

// stateOf says what is to be done with a month. One that was put in order is due
// again when a tenth has come to it since.
func stateOf(m postgres.StoredMonth, now time.Time) string {
	switch {
	case m.Copying:
		return monthInterrupted
	case m.Empty:
		return monthEmpty
	case now.Before((m.Month + 1).First().Start(time.UTC).Add(settled)):
		return monthOpen
	case m.CompactedAt.IsZero() || m.Blocks > m.Compacted+m.Compacted/10:
		return monthDue
	default:
		return monthInOrder
	}
}

func (c *storageStatusCmd) Run(ctx context.Context, s streams) error {
	return withStorage(ctx, c.target, func(db *postgres.Storage) error {
		months, stray, err := db.Months(ctx)
		if err != nil {
			return err
		}
		v := storageView{Months: []monthView{}, StrayBytes: stray.Bytes}
		for _, m := range months {
			mv := monthView{Month: m.Month.String(), Blocks: m.Blocks, TableBytes: m.TableBytes, IndexBytes: m.IndexBytes, State: stateOf(m, time.Now())}
			if !m.CompactedAt.IsZero() {
				mv.CompactedAt = &m.CompactedAt
			}
			v.Months = append(v.Months, mv)
		}
		if c.JSON {
			return printJSON(s.out, v)
		}
		rows := [][]string{{"MONTH", "BLOCKS", "MB", "INDEX MB", "STATE", "SINCE"}}
		for _, m := range v.Months {
			since := ""
			if m.CompactedAt != nil {
				since = m.CompactedAt.Format(time.DateOnly)
			}
			rows = append(rows, []string{m.Month, thousands(int(m.Blocks)), megabytes(m.TableBytes), megabytes(m.IndexBytes), m.State, since})
		}
		if err := table(s.out, rows); err != nil {
			return err
		}
		if stray.Bytes > 0 {
			fmt.Fprintf(s.out, "%s MB are of days whose month is not there: kluis storage months --from MONTH --until MONTH makes it.\n", megabytes(stray.Bytes))
		}
		return nil
	})
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f", float64(n)/1e6) }

type storageMonthsCmd struct {
	target
	From  monthFlag `help:"First month, as 2020-01. Default: 25 months ago." placeholder:"MONTH"`
	Until monthFlag `help:"Last month. Default: 13 months ahead." placeholder:"MONTH"`
}

// Help says more than fits a line.
func (storageMonthsCmd) Help() string {
	return `Readings of a day are stored in the partition of its month, which must be there before: ingest has no right to make one. kluis migrate makes those of the last 25 months and of 13 ahead, and this command, run daily (deploy/systemd/kluis-storage.timer), those that time adds. Before importing older readings make their months with --from. Readings of days without a month are stored as well, apart, and move to it when it is made.`
}

func (c *storageMonthsCmd) Run(ctx context.Context, s streams) error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	if conf.MigrateURL == "" {
		return errors.New("the configuration has no migrate_url: add the connection of the role that owns the database")
	}
	first, last := migrations.Months(time.Now())
	if c.From.set {
		first = c.From.time()
	}
	if c.Until.set {
		last = c.Until.time()
	}
	if last.Before(first) {
		return usage("--until is before --from")
	}
	var made migrations.Made
	err = withDatabase(conf.MigrateURL, conf.PasswordFile, func(db *sql.DB) (err error) {
		made, err = migrations.EnsureMonths(ctx, db, first, last)
		return err
	})
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(s.out, map[string]int64{"months": int64(made.Months), "moved": made.Moved})
	}
	fmt.Fprintf(s.out, "Made %d months, moved %d blocks into them.\n", made.Months, made.Moved)
	return nil
}

type storageCompactCmd struct {
	target
	Months  []monthFlag `arg:"" optional:"" help:"Months, as 2026-01. Default: all that are due." placeholder:"MONTH"`
	DryRun  bool        `help:"Only say which months it would be, and how much disk each needs."`
	Abandon bool        `help:"Give up the copy of a month that was interrupted; the month stays as it is."`
	Rows    int         `help:"About how many blocks are copied at a time." default:"1000000"`
}

// Help says more than fits a line.
func (storageCompactCmd) Help() string {
	return `Readings come day by day and are read by metering point. A closed month is copied in the order of metering point, field and day, the copy is compared with it block by block, and put in its place. Reads, ingest and the life of keys go on meanwhile; they wait for less than a second at the end. It needs no keys, and as much disk as the month.

It may be interrupted: run again, it goes on where it was. What was interrupted comes first, whatever months are named, because what is erased meanwhile is not erased in its copy; a copy that differs from its month once more, or whose month was dropped, is given up. Due is a month that ended 10 days ago or more and was not put in order since, or to which a tenth was added.`
}

func (c *storageCompactCmd) Run(ctx context.Context, s streams) error {
	if c.Abandon && (len(c.Months) == 0 || c.DryRun) {
		return usage("--abandon wants the month, and goes without --dry-run")
	}
	if c.Rows < 1 {
		return usage("--rows must be 1 or more")
	}
	return withStorage(ctx, c.target, func(db *postgres.Storage) error {
		months, _, err := db.Months(ctx)
		if err != nil {
			return err
		}
		if !c.DryRun && !c.Abandon {
			if err := c.dropOrphans(ctx, s, db, months); err != nil {
				return err
			}
		}
		var first, due []postgres.StoredMonth
		for _, m := range months {
			state := stateOf(m, time.Now())
			asked := slices.ContainsFunc(c.Months, func(f monthFlag) bool { return f.Month == m.Month })
			switch {
			case state == monthInterrupted && (asked || !c.Abandon):
				first = append(first, m)
			case asked || len(c.Months) == 0 && state == monthDue:
				due = append(due, m)
			}
		}
		due = append(first, due...)
		for _, f := range c.Months {
			if !slices.ContainsFunc(due, func(m postgres.StoredMonth) bool { return m.Month == f.Month }) {
				return fmt.Errorf("%s: %w", f.Month, postgres.ErrNoMonth)
			}
		}
		done := []monthView{}
		for _, m := range due {
			switch {
			case c.DryRun:
				if !c.JSON {
					fmt.Fprintf(s.out, "%s: about %s blocks, %s MB of disk while it is copied.\n", m.Month, thousands(int(m.Blocks)), megabytes(m.TableBytes+m.IndexBytes))
				}
			case c.Abandon:
				if err := db.Abandon(ctx, m.Month); err != nil {
					return err
				}
				if !c.JSON {
					fmt.Fprintf(s.out, "%s: the copy is given up.\n", m.Month)
				}
			default:
				began := time.Now()
				err := db.Compact(ctx, m.Month, postgres.CompactOptions{Rows: c.Rows, Progress: compactProgress(s, m.Month)})
				if errors.Is(err, postgres.ErrDiffers) && m.Copying {
					// Not the first time that it is gone on with: there was time to look into it.
					if gone := db.Abandon(ctx, m.Month); gone != nil {
						return errors.Join(err, gone)
					}
					return fmt.Errorf("%s: the copy was given up: %w", m.Month, err)
				}
				if err != nil {
					return err
				}
				if !c.JSON {
					fmt.Fprintf(s.out, "%s: in order, after %s.\n", m.Month, time.Since(began).Round(time.Second/10))
				}
			}
			done = append(done, monthView{Month: m.Month.String(), Blocks: m.Blocks, TableBytes: m.TableBytes, IndexBytes: m.IndexBytes, State: stateOf(m, time.Now())})
		}
		if c.JSON {
			return printJSON(s.out, map[string]any{"months": done, "dry_run": c.DryRun})
		}
		if len(due) == 0 {
			fmt.Fprintln(s.out, "No month is due.")
		}
		return nil
	})
}

// dropOrphans gives up copies of months that are there no more.
func (c *storageCompactCmd) dropOrphans(ctx context.Context, s streams, db *postgres.Storage, months []postgres.StoredMonth) error {
	unfinished, err := db.Unfinished(ctx)
	if err != nil {
		return err
	}
	for _, u := range unfinished {
		if slices.ContainsFunc(months, func(m postgres.StoredMonth) bool { return m.Month == u }) {
			continue
		}
		if err := db.Abandon(ctx, u); err != nil {
			return err
		}
		if !c.JSON {
			fmt.Fprintf(s.out, "%s: the month is there no more, and its copy was given up.\n", u)
		}
	}
	return nil
}

// compactProgress tells a person at most every five seconds.
func compactProgress(s streams, m meter.Month) func(postgres.CompactStep) {
	var doing string
	var said time.Time
	return func(p postgres.CompactStep) {
		if p.Doing == doing && time.Since(said) < 5*time.Second {
			return
		}
		doing, said = p.Doing, time.Now()
		if p.Done == 0 {
			fmt.Fprintf(s.err, "%s: %s\n", m, p.Doing)
			return
		}
		fmt.Fprintf(s.err, "%s: %s, %s blocks of about %s\n", m, p.Doing, thousands(int(p.Done)), thousands(int(p.Of)))
	}
}
