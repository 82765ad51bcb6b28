package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"kluis/cmd/kluis/backend"
	"kluis/ingest"
	"kluis/meter"
)

type ingestIdentitiesCmd struct {
	target
	Delimiter string `help:"Between the columns: comma, semicolon or tab. Default: comma." enum:"comma,semicolon,tab" default:"comma" placeholder:"NAME"`
	SkipBad   bool   `help:"Leave out lines that cannot be used, and list them, instead of stopping."`
	File      string `help:"The file; may be packed by gzip." arg:"" type:"existingfile"`
}

// Help says more than fits a line.
func (ingestIdentitiesCmd) Help() string {
	return `A line per customer, under a heading with the columns ean, name, street, house_number, addition, postcode, city and from: the day on which the customer moved in by the legal file. Equal content changes nothing, other content becomes a new version. Names and addresses are sealed as readings are: docs/IDENTITY.md.

Example:
  kluis ingest identities --state .demo customers.csv`
}

// peopleReport is what it did, for people and as JSON.
type peopleReport struct {
	File string `json:"file"`
	Rows int    `json:"rows"`
	ingest.PersonCounts
	Bad     []ingest.BadLine `json:"badLines"`
	Seconds float64          `json:"seconds"`
}

func (c *ingestIdentitiesCmd) Run(ctx context.Context, s streams) error {
	began := time.Now()
	conf, err := c.load()
	if err != nil {
		return err
	}
	profile, err := backend.Profile(conf)
	if err != nil {
		return err
	}
	show := newProgress(s.err)
	defer show.done()
	name := filepath.Base(c.File)
	lines, rows, bad, err := c.read(name, profile, show)
	if err != nil {
		return err
	}
	in, err := backend.OpenIngest(ctx, conf)
	if err != nil {
		return err
	}
	r := peopleReport{File: name, Rows: rows, Bad: bad}
	err = c.store(ctx, in, name, lines, &r, show)
	show.done()
	if err := errors.Join(err, in.Close()); err != nil {
		return err
	}
	slices.SortStableFunc(r.Bad, func(a, b ingest.BadLine) int { return a.Line - b.Line })
	r.Seconds = time.Since(began).Seconds()
	if r.Bad == nil {
		r.Bad = []ingest.BadLine{} // never null in JSON
	}
	if c.JSON {
		return printJSON(s.out, r)
	}
	return r.print(s)
}

func (c *ingestIdentitiesCmd) read(name string, p *meter.Profile, show *progress) (lines []ingest.PersonLine, rows int, bad []ingest.BadLine, err error) {
	f, err := os.Open(c.File)
	if err != nil {
		return nil, 0, nil, err
	}
	defer f.Close()
	delimiter := map[string]rune{"comma": ',', "semicolon": ';', "tab": '\t'}
	return ingest.ReadPeople(f, name, delimiter[c.Delimiter], p, ingest.ReadOptions{
		SkipBad: c.SkipBad, Progress: func(rows int) { show.say("reading: %s rows", thousands(rows)) },
	})
}

// store checks all lines against the legal files, and then stores them.
func (c *ingestIdentitiesCmd) store(ctx context.Context, in *backend.Ingest, name string, lines []ingest.PersonLine, r *peopleReport, show *progress) error {
	people, err := in.People()
	if err != nil {
		return err
	}
	bad, err := people.Check(ctx, lines)
	if err != nil {
		return err
	}
	if len(bad) > 0 && !c.SkipBad {
		return &ingest.LineError{File: name, BadLine: bad[0]}
	}
	r.Bad = append(r.Bad, bad...)
	refused := make(map[int]bool, len(bad))
	for _, b := range bad {
		refused[b.Line] = true
	}
	lines = slices.DeleteFunc(lines, func(l ingest.PersonLine) bool { return refused[l.Line] })
	r.PersonCounts, err = people.Store(ctx, lines, func(done int) { show.say("sealing %s of %s", thousands(done), thousands(len(lines))) })
	return err
}

func (r peopleReport) print(s streams) error {
	for i, b := range r.Bad {
		if i == 0 {
			fmt.Fprintf(s.out, "skipped %s bad lines:\n", thousands(len(r.Bad)))
		}
		fmt.Fprintf(s.out, "  line %d, column %d: %s\n", b.Line, b.Column, b.Reason)
	}
	_, err := fmt.Fprintf(s.out, "%s: read %s rows; stored %s names and addresses (%s corrections), %s unchanged, in %.1f s\n",
		r.File, thousands(r.Rows), thousands(r.Stored+r.Corrected), thousands(r.Corrected), thousands(r.Unchanged), r.Seconds)
	return err
}
