package main

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"kluis/openapi/client"
	"kluis/openapi/client/kluis"
)

// place is where a stream goes on: what --resume remembers.
type place struct {
	Query      client.ReadingsQuery `json:"query"`
	Format     string               `json:"format"`
	Output     string               `json:"output"`
	Size       int64                `json:"size"` // of the output with all points up to the checkpoint
	Checkpoint string               `json:"checkpoint"`
}

// saveEvery bounds what is fetched again after a break.
const saveEvery = time.Second

// many reads a stream. With --resume each metering point is in the output
// once, whatever breaks: what was written after the place that is remembered is
// cut off before the stream goes on from there.
func (c *readCmd) many(ctx context.Context, k *kluis.Client, s streams, q client.ReadingsQuery) error {
	at := place{Query: q, Format: c.Format, Output: c.Output}
	if c.Resume != "" {
		if err := at.load(c.Resume); err != nil {
			return err
		}
	}
	out, file := s.out, (*os.File)(nil)
	if c.Output != "" {
		var err error
		if file, err = os.OpenFile(c.Output, os.O_CREATE|os.O_RDWR, 0o600); err != nil { // personal data
			return err
		}
		defer file.Close()
		if err := at.cut(file); err != nil {
			return err
		}
		out = file
	}
	w := bufio.NewWriterSize(out, 1<<16)
	p := printer{w: w, format: c.Format, zone: c.zone}
	if at.Checkpoint == "" {
		p.begin()
	}
	save := func() error {
		if err := w.Flush(); err != nil || c.Resume == "" || at.Checkpoint == "" {
			return err
		}
		return at.save(c.Resume, file)
	}
	show := newProgress(s.err)
	saved := time.Now()
	var broken error // of the output
	result, err := k.Query(ctx, q, at.Checkpoint, func(point kluis.Point) error {
		if broken = p.point(&point); broken != nil {
			return broken
		}
		at.Checkpoint = point.Checkpoint
		if c.Resume != "" && time.Since(saved) > saveEvery {
			if broken = save(); broken != nil {
				return broken
			}
			saved = time.Now()
		}
		if point.Total != nil {
			show.bar("Metering points", int64(point.Done), int64(*point.Total))
		} else {
			show.say("%s metering points", thousands(point.Done))
		}
		return nil
	})
	show.done()
	if broken != nil {
		return broken
	}
	if err != nil {
		err = errors.Join(ofAPI(err), save())
		if c.Resume != "" && at.Checkpoint != "" {
			fmt.Fprintf(s.err, "%s metering points are in %s. The same command goes on from there.\n", thousands(p.points), c.Output)
		}
		return err
	}
	p.end(result)
	if err := w.Flush(); err != nil {
		return err
	}
	if file != nil {
		if err := file.Sync(); err != nil {
			return err
		}
	}
	if c.Resume != "" {
		if err := os.Remove(c.Resume); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	m := result.Manifest
	fmt.Fprintf(s.err, "Manifest verified: all that it counts is here, once and unaltered.\n  %s metering points: %s given, %s partly, %s withheld, %s failed; %s left out, of which nothing is granted\n  %s values\n  signed by %s, interaction %s\n",
		thousands(int(m.Points)), thousands(int(m.Given)), thousands(int(m.Partly)), thousands(int(m.Withheld)), thousands(int(m.Failed)), thousands(int(m.LeftOut)),
		complete(int(m.Delivered), int(m.Expected)), m.Server, m.InteractionID)
	if m.Failed > 0 {
		return fmt.Errorf("%s metering points could not be read: each has its problem in the output", thousands(int(m.Failed)))
	}
	return nil
}

// load takes the place from a file, if there is one, of the same request.
func (p *place) load(name string) error {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var was place
	if err := json.Unmarshal(b, &was); err != nil {
		return usage("--resume: %s was not written by this command: %w", name, err)
	}
	mine, err := json.Marshal(p.Query)
	if err != nil {
		return err
	}
	its, err := json.Marshal(was.Query)
	if err != nil {
		return err
	}
	if string(mine) != string(its) || was.Format != p.Format || was.Output != p.Output {
		return usage("--resume: %s is of another request, format or output: give the same as then, or remove it to start again", name)
	}
	*p = was
	return nil
}

// cut brings the output to the place.
func (p *place) cut(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < p.Size {
		return usage("%s is shorter than it was: remove the --resume file to start again", p.Output)
	}
	if err := f.Truncate(p.Size); err != nil && info.Mode().IsRegular() {
		return err
	}
	_, err = f.Seek(p.Size, io.SeekStart)
	if err != nil && !info.Mode().IsRegular() { // a pipe
		err = nil
	}
	return err
}

// save remembers the place once the output is on the disk.
func (p *place) save(name string, f *os.File) error {
	var err error
	if p.Size, err = f.Seek(0, io.SeekCurrent); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".new-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}

// printer writes metering points as they come.
type printer struct {
	w       *bufio.Writer
	format  string
	zone    *time.Location // of a table's times
	points  int
	reasons []client.WithheldReason // in the order in which they came
}

// pointsLine is the form of a line of the table: it must not wait for the last
// one to know how wide a column is.
const pointsLine = "%-18s  %-16s  %-11s  %-5s  %14s  %14s  %-4s  %s\n"

// csvColumns are those of the API's tables of readings.
var csvColumns = []string{
	"record", "ean", "field", "obis", "readingKind", "resolution", "unit", "legalBasis", "rule", "start", "value", "quality",
	"from", "to", "reason", "expectedCount", "deliveredCount", "sequence", "cursor", "manifest",
}

func (p *printer) begin() {
	switch p.format {
	case "table":
		fmt.Fprintf(p.w, pointsLine, "EAN", "FIELD", "KIND", "PER", "FIRST", "LAST", "UNIT", "VALUES")
	case "csv":
		fmt.Fprint(p.w, strings.Join(csvColumns, ",")+"\r\n")
	case "json":
		fmt.Fprint(p.w, `{"meteringPoints":[`)
	}
}

func (p *printer) end(r *kluis.Result) {
	switch p.format {
	case "json":
		manifest, _ := json.Marshal(r.JWS) // a text
		fmt.Fprintf(p.w, "\n],\"manifest\":%s}\n", manifest)
	case "table":
		for i, reason := range p.reasons {
			if i == 0 {
				fmt.Fprintln(p.w, "\nWhat to do about what is withheld:")
			}
			fmt.Fprintf(p.w, "  %s: %s\n", reason, advice[reason])
		}
	}
}

func (p *printer) point(point *kluis.Point) error {
	p.points++
	switch p.format {
	case "ndjson":
		_, err := p.w.Write(point.Line)
		return err
	case "csv":
		return p.table(&point.QueryPoint)
	case "json":
		b, err := json.Marshal(point.QueryPoint)
		if err != nil {
			return err
		}
		if p.points > 1 {
			p.w.WriteByte(',')
		}
		p.w.WriteByte('\n')
		_, err = p.w.Write(b)
		return err
	}
	ean := point.Ean
	if point.Problem != nil {
		fmt.Fprintf(p.w, "%-18s  %s\n", ean, (&kluis.Problem{Problem: *point.Problem}).Error())
	}
	if point.Series != nil {
		for _, s := range *point.Series {
			first, last := gap, gap
			var known []*string
			for _, d := range s.Days {
				for _, v := range d.Values {
					if v != nil {
						known = append(known, v)
					}
				}
			}
			if len(known) > 0 {
				first, last = *known[0], *known[len(known)-1]
			}
			fmt.Fprintf(p.w, pointsLine, ean, s.Field, s.ReadingKind, s.Resolution, first, last, s.Unit, complete(s.DeliveredCount, s.ExpectedCount))
		}
	}
	if point.Withheld != nil {
		for _, x := range *point.Withheld {
			fmt.Fprintf(p.w, "%-18s  %-16s  withheld from %s to %s: %s\n", ean, x.Field, x.From, x.To, x.Reason)
			if !slices.Contains(p.reasons, x.Reason) {
				p.reasons = append(p.reasons, x.Reason)
			}
		}
	}
	_, err := p.w.Write(nil) // an error of the writer stays
	return err
}

// table writes a metering point as the API's tables have it.
func (p *printer) table(point *client.QueryPoint) error {
	w := csv.NewWriter(p.w)
	w.UseCRLF = true
	row := func(record string, cells map[string]string) {
		cells["record"], cells["ean"], cells["sequence"] = record, point.Ean, strconv.Itoa(point.Sequence)
		line := make([]string, len(csvColumns))
		for i, name := range csvColumns {
			line[i] = cells[name]
		}
		_ = w.Write(line) // see Error below
	}
	if point.Problem != nil {
		row("problem", map[string]string{"reason": strings.TrimPrefix(string(point.Problem.Type), "urn:kluis:problem:")})
	}
	if point.Series != nil {
		for i := range *point.Series {
			s := &(*point.Series)[i]
			of := func(more map[string]string) map[string]string {
				more["field"], more["obis"], more["readingKind"], more["resolution"] = s.Field, s.Obis, string(s.ReadingKind), string(s.Resolution)
				more["unit"], more["legalBasis"], more["rule"] = s.Unit, string(s.LegalBasis), s.Rule
				return more
			}
			row("series", of(map[string]string{"expectedCount": strconv.Itoa(s.ExpectedCount), "deliveredCount": strconv.Itoa(s.DeliveredCount)}))
			for j := range s.Days {
				day := *s
				day.Days = s.Days[j : j+1]
				for _, m := range moments(&day, p.zone) {
					cells := of(map[string]string{"start": m.at.Format(time.RFC3339), "quality": string(m.quality)})
					if m.value != nil {
						cells["value"] = *m.value
					}
					row("value", cells)
				}
			}
		}
	}
	if point.Withheld != nil {
		for _, x := range *point.Withheld {
			row("withheld", map[string]string{"field": x.Field, "from": x.From.String(), "to": x.To.String(), "reason": string(x.Reason)})
		}
	}
	w.Flush()
	return w.Error()
}
