package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kluis/cmd/kluis/backend"
	"kluis/ingest"
	"kluis/meter"
)

type ingestCmd struct {
	CSV        ingestCSVCmd        `cmd:"" name:"csv" help:"Import a CSV file by a mapping."`
	Identities ingestIdentitiesCmd `cmd:"" name:"identities" help:"Import names and addresses of customers."`
}

type ingestCSVCmd struct {
	target
	Mapping string            `help:"Mapping file, or one of: ${mappings}." required:"" placeholder:"NAME|FILE"`
	EAN     eanFlag           `help:"Metering point of the readings (of the electricity, where there is gas too)." required:"" name:"ean" placeholder:"EAN"`
	GasEAN  eanFlag           `help:"Metering point of the gas readings beside electricity; without it they are left out." name:"gas-ean" placeholder:"EAN"`
	Home    string            `help:"Which home, where the file holds several." placeholder:"ID"`
	Start   map[string]string `help:"Start read of an accumulated register, as import_low=1828.818." placeholder:"FIELD=READ"`
	SkipBad bool              `help:"Leave out lines that cannot be read, and list them, instead of stopping."`
	Replace bool              `help:"Store days although they have fewer values than are stored."`
	File    string            `help:"The file; may be packed by gzip." arg:"" type:"existingfile"`
}

// Help says more than fits a line.
func (ingestCSVCmd) Help() string {
	return `All of the file is stored, or nothing. Each day of the file replaces that day; equal content changes nothing, other content becomes a new version. A mapping says what the columns mean: docs/INGEST.md.

Example:
  kluis ingest csv --state .demo --mapping nl_dsmrreader --ean 871687200000000232 --gas-ean 871687200000000256 readings.csv.gz`
}

// report is what ingest did, for people and as JSON.
type report struct {
	File       string           `json:"file"`
	Mapping    string           `json:"mapping"`
	Rows       int              `json:"rows"`
	Fields     []ingest.Counts  `json:"fields"`
	Stored     int              `json:"stored"`    // blocks, corrections included
	Corrected  int              `json:"corrected"` // blocks
	Unchanged  int              `json:"unchanged"` // blocks
	OtherHomes int              `json:"rowsOfOtherHomes"`
	NotMapped  int              `json:"rowsNotMapped"`
	NoValue    map[string]int   `json:"cellsWithoutValue"`
	OffGrid    map[string]int   `json:"readsNotNeeded"`
	LeftOut    []string         `json:"fieldsLeftOut"`
	Bad        []ingest.BadLine `json:"badLines"`
	Seconds    float64          `json:"seconds"`
}

func (c *ingestCSVCmd) Run(ctx context.Context, s streams) error {
	began := time.Now()
	conf, err := c.load()
	if err != nil {
		return err
	}
	profile, err := backend.Profile(conf)
	if err != nil {
		return err
	}
	m, err := ingest.LoadMapping(c.Mapping, profile)
	if err != nil {
		return err
	}
	if len(c.Start) > 0 {
		if m, err = m.WithStart(c.Start); err != nil {
			return err
		}
	}
	of, err := c.meteringPoints(m)
	if err != nil {
		return err
	}
	show := newProgress(s.err)
	defer show.done()
	file, err := c.read(m, profile, show)
	if err != nil {
		return err
	}
	points, leftOut := split(file, profile, of)

	in, err := backend.OpenIngest(ctx, conf)
	if err != nil {
		return err
	}
	counts, err := in.Days(ctx, points, ingest.Options{
		Replace:  c.Replace,
		Progress: func(done, total int) { show.say("sealing %s of %s blocks", thousands(done), thousands(total)) },
	})
	show.done()
	if err := errors.Join(err, in.Close()); err != nil {
		return err
	}
	// Lists in JSON are never null.
	if leftOut == nil {
		leftOut = []string{}
	}
	if file.Bad == nil {
		file.Bad = []ingest.BadLine{}
	}
	if counts == nil {
		counts = []ingest.Counts{}
	}
	r := report{
		File: filepath.Base(c.File), Mapping: m.Name(), Rows: file.Rows, Fields: counts, OtherHomes: file.OtherHomes, NotMapped: file.NotMapped,
		NoValue: file.NoValue, OffGrid: file.OffGrid, LeftOut: leftOut, Bad: file.Bad, Seconds: time.Since(began).Seconds(),
	}
	for _, n := range counts {
		r.Stored += n.Stored + n.Corrected
		r.Corrected += n.Corrected
		r.Unchanged += n.Unchanged
	}
	if c.JSON {
		return printJSON(s.out, r)
	}
	return r.print(s)
}

// meteringPoints says which metering point takes the fields of a commodity; a
// zero EAN leaves them out.
func (c *ingestCSVCmd) meteringPoints(m *ingest.Mapping) (map[meter.Commodity]meter.EAN, error) {
	kinds := m.Commodities()
	if len(kinds) == 1 {
		if !c.GasEAN.IsZero() {
			return nil, usage("mapping %s has only %s: name its metering point with --ean, and leave --gas-ean out", m.Name(), kinds[0])
		}
		return map[meter.Commodity]meter.EAN{kinds[0]: c.EAN.EAN}, nil
	}
	if c.EAN == c.GasEAN {
		return nil, usage("--ean and --gas-ean are the same: gas has a metering point of its own")
	}
	return map[meter.Commodity]meter.EAN{meter.Electricity: c.EAN.EAN, meter.Gas: c.GasEAN.EAN}, nil
}

func (c *ingestCSVCmd) read(m *ingest.Mapping, p *meter.Profile, show *progress) (*ingest.File, error) {
	f, err := os.Open(c.File)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return m.Read(f, filepath.Base(c.File), p, ingest.ReadOptions{
		Home: c.Home, SkipBad: c.SkipBad,
		Progress: func(rows int) { show.say("reading: %s rows", thousands(rows)) },
	})
}

// split sorts the blocks by metering point.
func split(f *ingest.File, p *meter.Profile, of map[meter.Commodity]meter.EAN) (points []ingest.Point, leftOut []string) {
	at := map[meter.EAN]int{}
	for _, b := range f.Blocks {
		field, _ := p.FieldByCode(b.Field)
		ean := of[field.Commodity]
		if ean.IsZero() {
			if !slices.Contains(leftOut, field.Name) {
				leftOut = append(leftOut, field.Name)
			}
			continue
		}
		i, ok := at[ean]
		if !ok {
			i = len(points)
			at[ean] = i
			points = append(points, ingest.Point{EAN: ean})
		}
		points[i].Blocks = append(points[i].Blocks, b)
	}
	return points, leftOut
}

func (r report) print(s streams) error {
	fmt.Fprintf(s.out, "%s: read %s rows by mapping %s\n", r.File, thousands(r.Rows), r.Mapping)
	rows := [][]string{{"FIELD", "DAYS", "VALUES", "NEW", "CORRECTED", "UNCHANGED", "EMPTY"}}
	for _, f := range r.Fields {
		rows = append(rows, []string{f.Field, thousands(f.Days), thousands(f.Values), thousands(f.Stored), thousands(f.Corrected), thousands(f.Unchanged), thousands(f.Empty)})
	}
	if err := table(s.out, rows); err != nil {
		return err
	}
	skip := func(n int, format string, args ...any) {
		if n > 0 {
			fmt.Fprintf(s.out, "skipped %s %s\n", thousands(n), fmt.Sprintf(format, args...))
		}
	}
	skip(r.OtherHomes, "rows of other homes")
	skip(r.NotMapped, "rows that the mapping does not use")
	for _, field := range slices.Sorted(maps.Keys(r.NoValue)) {
		skip(r.NoValue[field], "cells without a value for %s", field)
	}
	for _, field := range slices.Sorted(maps.Keys(r.OffGrid)) {
		skip(r.OffGrid[field], "reads of %s between the instants that are stored", field)
	}
	if len(r.LeftOut) > 0 {
		fmt.Fprintf(s.out, "left out %s: no --gas-ean\n", strings.Join(r.LeftOut, ", "))
	}
	skip(len(r.Bad), "bad lines:")
	for _, b := range r.Bad {
		fmt.Fprintf(s.out, "  line %d, column %d: %s\n", b.Line, b.Column, b.Reason)
	}
	_, err := fmt.Fprintf(s.out, "stored %s blocks (%s corrections), %s unchanged, in %.1f s\n",
		thousands(r.Stored), thousands(r.Corrected), thousands(r.Unchanged), r.Seconds)
	return err
}
