package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"kluis/openapi/client"
	"kluis/openapi/client/kluis"
)

type changesCmd struct {
	caller

	Since  string        `help:"From when on: a time with offset, or a day (its start, UTC). Default: a day ago; with --follow, now." placeholder:"WHEN" xor:"since" group:"What"`
	Cursor string        `help:"Where to go on: the cursor that was printed." placeholder:"CURSOR" xor:"since" group:"What"`
	Resume string        `help:"File that remembers the cursor: the same command goes on from there." type:"path" placeholder:"FILE" group:"What"`
	Follow bool          `help:"Go on asking, until interrupted." group:"How"`
	Every  time.Duration `help:"With --follow: how often. Default: 30s." default:"30s" placeholder:"TIME" group:"How"`
	Format string        `help:"table, json or ndjson (a line each). Default: table." enum:"table,json,ndjson" default:"table" placeholder:"FORMAT" group:"How"`
}

// Help says more than fits a line.
func (changesCmd) Help() string {
	return `What arrived, was corrected, or became or ceased to be readable, for one supplier, in the order in which it was stored. Each change is told at least once; the cursor is where to go on.

  kluis changes --state .demo --since 2026-03-01
  kluis changes --state .demo --follow --resume changes.state

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused, 4 not reachable or too busy: try again.`
}

func (c *changesCmd) Run(ctx context.Context, s streams) error {
	if c.Every < time.Second {
		return usage("--every must be a second at least")
	}
	if c.Resume != "" && c.Cursor != "" {
		return usage("--resume remembers a cursor of its own: give one of the two")
	}
	if c.Follow && c.Format == "json" {
		return usage("--follow does not end, and JSON does: give --format ndjson")
	}
	cursor := c.Cursor
	if c.Resume != "" {
		b, err := os.ReadFile(c.Resume)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		cursor = strings.TrimSpace(string(b))
	}
	since := time.Time{}
	if cursor == "" {
		var err error
		switch {
		case c.Since != "":
			if since, err = instant(c.Since, time.UTC); err != nil {
				return usage("--since: %w", err)
			}
		case !c.Follow:
			since = time.Now().Add(-24 * time.Hour)
		}
	}
	k, err := c.open()
	if err != nil {
		return err
	}
	defer k.Close()
	all := []client.Change{} // [] and not null
	heading := true
	deal := func(batch *client.Changes) error {
		var err error
		switch c.Format {
		case "json":
			all = append(all, batch.Changes...)
		case "ndjson":
			e := json.NewEncoder(s.out)
			for _, x := range batch.Changes {
				err = errors.Join(err, e.Encode(x))
			}
		default:
			err = printFeed(s.out, batch.Changes, heading)
			heading = heading && len(batch.Changes) == 0
		}
		cursor = batch.Cursor
		if err == nil && c.Resume != "" && c.Format != "json" {
			err = remember(c.Resume, cursor)
		}
		return err
	}
	for first := true; first || cursor != ""; first = false {
		batch, err := k.Changes(ctx, since, cursor)
		if err != nil {
			return ofAPI(err)
		}
		if err := deal(batch); err != nil {
			return err
		}
		if !batch.More {
			break
		}
	}
	if c.Follow {
		return c.follow(ctx, k, cursor, deal)
	}
	if c.Format == "json" {
		if err := printJSON(s.out, all); err != nil {
			return err
		}
		if c.Resume != "" {
			if err := remember(c.Resume, cursor); err != nil {
				return err
			}
		}
	}
	if heading && c.Format == "table" {
		fmt.Fprintln(s.out, "Nothing changed.")
	}
	if c.Resume == "" {
		fmt.Fprintf(s.err, "Go on with --cursor %s\n", cursor)
	}
	return nil
}

func (c *changesCmd) follow(ctx context.Context, k *kluis.Client, cursor string, deal func(*client.Changes) error) error {
	for batch, err := range k.Poll(ctx, cursor, c.Every) {
		if ctx.Err() != nil {
			return nil // interrupted: that is how it ends
		}
		if err != nil {
			return ofAPI(err)
		}
		if err := deal(batch); err != nil {
			return err
		}
	}
	return nil
}

// remember stores a cursor in one step.
func remember(name, cursor string) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = io.WriteString(tmp, cursor+"\n")
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}

// changesLine is the form of a line: it is printed before the next one is known.
const changesLine = "%-20s  %-9s  %-18s  %-10s  %-10s  %s\n"

func printFeed(w io.Writer, changes []client.Change, heading bool) error {
	if heading && len(changes) > 0 {
		fmt.Fprintf(w, changesLine, "AT", "KIND", "EAN", "FROM", "TO", "FIELDS OR LEGAL BASES")
	}
	for _, x := range changes {
		from, to := "", ""
		if x.From != nil && x.To != nil {
			from, to = x.From.String(), x.To.String()
		}
		var what []string
		if x.Fields != nil {
			what = append(what, *x.Fields...)
		}
		if x.LegalBases != nil {
			for _, b := range *x.LegalBases {
				what = append(what, string(b))
			}
			if len(what) == 0 {
				what = []string{"none any more"}
			}
		}
		if _, err := fmt.Fprintf(w, changesLine, x.At.UTC().Format(time.RFC3339), x.Kind, x.Ean, from, to, strings.Join(what, " ")); err != nil {
			return err
		}
	}
	return nil
}
