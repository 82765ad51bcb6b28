package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/meter"
	"kluis/openapi/client"
	"kluis/openapi/client/kluis"
)

type readCmd struct {
	caller

	EAN     []eanFlag `help:"Metering point (EAN-18); repeat, or separate by commas. None: all that may be read." name:"ean" placeholder:"EAN" group:"What"`
	EANFile string    `help:"File with a metering point a line; - is standard input." name:"ean-file" placeholder:"FILE" group:"What"`
	List    bool      `help:"List the metering points there is a legal basis for now; no readings." group:"What"`

	From       dayFlag         `help:"First day. Default: the first of last month." placeholder:"DAY" group:"What"`
	To         dayFlag         `help:"First day after. Default: the end of the month of --from, or today." placeholder:"DAY" group:"What"`
	Purpose    purposeFlag     `help:"What for: BILLING, ENERGY_MANAGEMENT, SWITCH or MOVE. Default: BILLING." default:"BILLING" placeholder:"PURPOSE" group:"What"`
	Fields     []string        `help:"Fields, as the market profile names them." placeholder:"FIELD" xor:"fields" group:"What"`
	Class      *classFlag      `help:"All fields of a class: registers or intervals." placeholder:"CLASS" xor:"fields" group:"What"`
	Resolution *resolutionFlag `help:"PT15M, PT1H, P1D or P1M. Default: the finest there is." placeholder:"PERIOD" group:"What"`
	Kind       *kindFlag       `help:"REGISTER (what the meter shows) or CONSUMPTION. Default: as it is stored." placeholder:"KIND" group:"What"`
	AsOf       string          `help:"As it was stored at this moment: a day (its start) or a time with offset." name:"as-of" placeholder:"WHEN" group:"What"`

	Format string `help:"table, csv, json, xml (Green Button; one metering point) or ndjson (a line each). Default: table." enum:"table,csv,json,xml,ndjson" default:"table" placeholder:"FORMAT" group:"How"`
	Chart  bool   `help:"Draw it. Plain ASCII where the terminal is not UTF-8, or NO_COLOR is set." group:"How"`
	Output string `help:"File to write to, instead of standard output." short:"o" type:"path" placeholder:"FILE" group:"How"`
	Resume string `help:"File that remembers how far it came: the same command goes on from there. Needs --output, and --format csv or ndjson." type:"path" placeholder:"FILE" group:"How"`

	zone *time.Location // of the market's days, once it is known
}

// Help says more than fits a line.
func (readCmd) Help() string {
	return `Reads through the API, as the supplier's own systems do: over mutual TLS, by its rights, and recorded.

  kluis read --state .demo --ean 871687200000000010
  kluis read --state .demo --ean 871687200000000010 --purpose ENERGY_MANAGEMENT --from 2026-03-28 --to 2026-03-31 --chart
  kluis read --state .demo --list
  kluis read --state .demo --format ndjson -o october.ndjson --resume october.state     all metering points
  kluis read --gateway https://... --issuer https://... --gln 8712... --ca ca.crt --cert me.crt --key me.key --ean 8716...

Several metering points come as one stream. When it breaks, it is taken up again; at its end the signed manifest is verified: all that it counts is there, once and unaltered. What is not given is listed with its reason, and what to do about it.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused, 4 not reachable or too busy: try again, 5 the answer does not bear out its manifest.`
}

type kindFlag struct{ meter.Kind }

func (f *kindFlag) UnmarshalText(b []byte) (err error) {
	if f.Kind, err = meter.ParseKind(strings.ToUpper(string(b))); err != nil {
		err = errors.New("must be REGISTER or CONSUMPTION")
	}
	return err
}

func (c *readCmd) Run(ctx context.Context, s streams) error {
	eans, err := c.eans(s.in)
	if err != nil {
		return err
	}
	switch single := len(eans) == 1; {
	case c.Resume != "" && (c.Output == "" || c.Format != "csv" && c.Format != "ndjson"):
		return usage("--resume needs --output FILE, and --format csv or ndjson: what was written is cut back to where it goes on")
	case c.Chart && c.Format != "table":
		return usage("--chart is for people, --format %s for programs: give one of the two", c.Format)
	case c.List && (c.Chart || c.Resume != "" || c.Format == "xml"):
		return usage("--list prints a list: table, csv, json or ndjson")
	case c.Format == "xml" && !single:
		return usage("--format xml is for one metering point: give one --ean")
	case c.Chart && !single:
		return usage("--chart is for one metering point: give one --ean")
	}
	k, err := c.open()
	if err != nil {
		return err
	}
	defer k.Close()
	if c.List {
		return c.list(ctx, k, s)
	}
	q, err := c.query(ctx, k, eans)
	if err != nil {
		return err
	}
	if len(eans) == 1 && c.Resume == "" && c.Format != "ndjson" {
		return c.one(ctx, k, s, q)
	}
	return c.many(ctx, k, s, q)
}

// eans are those of the flags, ascending, each once; none is all.
func (c *readCmd) eans(in io.Reader) ([]string, error) {
	var out []string
	for _, e := range c.EAN {
		out = append(out, e.String())
	}
	if c.EANFile == "" {
		slices.Sort(out)
		return slices.Compact(out), nil
	}
	if c.EANFile != "-" {
		f, err := os.Open(c.EANFile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		e, err := meter.ParseEAN(text)
		if err != nil {
			return nil, usage("--ean-file, line %d: %w", n, err)
		}
		out = append(out, e.String())
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, usage("--ean-file: no metering point in it; for all that may be read, leave it away")
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// query is what is asked. Days not said are of the market's calendar, which
// the API knows.
func (c *readCmd) query(ctx context.Context, k *kluis.Client, eans []string) (client.ReadingsQuery, error) {
	q := client.ReadingsQuery{Purpose: client.Purpose(c.Purpose.String())}
	if len(eans) > 0 {
		q.MeteringPoints = &eans
	}
	if len(c.Fields) > 0 {
		q.Fields = &c.Fields
	}
	if c.Class != nil {
		q.Class = ptr(client.FieldClass(c.Class.String()))
	}
	if c.Resolution != nil {
		q.Resolution = ptr(client.Resolution(c.Resolution.String()))
	}
	if c.Kind != nil {
		q.Kind = ptr(client.ReadingKind(c.Kind.String()))
	}
	from, to := c.From.Day, c.To.Day
	if !c.From.set || !c.To.set || c.AsOf != "" || c.Format == "csv" {
		status, err := k.Status(ctx)
		if err != nil {
			return q, ofAPI(err)
		}
		loc, err := time.LoadLocation(status.Profile.TimeZone)
		if err != nil {
			return q, err
		}
		c.zone = loc
		today := meter.DayOf(status.At, loc)
		switch {
		case c.To.set && !c.From.set:
			from = (c.To.Day - 1).Month().First()
		case !c.From.set:
			from, to = (today.Month() - 1).First(), today.Month().First()
		case !c.To.set:
			to = min((from.Month() + 1).First(), today)
		}
		if c.AsOf != "" {
			at, err := instant(c.AsOf, loc)
			if err != nil {
				return q, usage("--as-of: %w", err)
			}
			q.AsOf = &at
		}
	}
	if to <= from {
		return q, usage("--to must be later than --from; it is the first day that is not read")
	}
	q.From, q.To = dateOf(from), dateOf(to)
	return q, nil
}

func ptr[T any](v T) *T { return &v }

func dateOf(d meter.Day) openapi_types.Date {
	y, m, day := d.Date()
	return kluis.Date(y, m, day)
}

// one reads one metering point, in the format that is wanted, as it is
// answered.
func (c *readCmd) one(ctx context.Context, k *kluis.Client, s streams, q client.ReadingsQuery) error {
	ean := (*q.MeteringPoints)[0]
	p := &client.GetReadingsParams{From: q.From, To: q.To, Purpose: q.Purpose, Fields: q.Fields, Class: q.Class, Resolution: q.Resolution, Kind: q.Kind, AsOf: q.AsOf}
	out, done, err := c.writer(s.out)
	if err != nil {
		return err
	}
	if c.Format == "table" {
		r, err := k.Readings(ctx, ean, p)
		if err != nil {
			return errors.Join(ofAPI(err), done())
		}
		err = printReadings(out, r, c.Chart, drawing(os.Getenv))
		return errors.Join(err, done())
	}
	accept := map[string]string{"csv": "text/csv", "json": "application/json", "xml": "application/atom+xml"}[c.Format]
	res, err := k.API().GetReadings(ctx, ean, p, func(_ context.Context, r *http.Request) error {
		r.Header.Set("Accept", accept)
		return nil
	})
	if err != nil {
		return errors.Join(ofAPI(err), done())
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		return errors.Join(ofAPI(kluis.Check(res, body)), err, done())
	}
	_, err = io.Copy(out, res.Body)
	return errors.Join(err, done())
}

// writer is where the answer goes; done says whether it went there.
func (c *readCmd) writer(out io.Writer) (io.Writer, func() error, error) {
	if c.Output == "" {
		return out, func() error { return nil }, nil
	}
	f, err := os.OpenFile(c.Output, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) // personal data
	if err != nil {
		return nil, nil, err
	}
	return f, f.Close, nil
}

func (c *readCmd) list(ctx context.Context, k *kluis.Client, s streams) error {
	out, done, err := c.writer(s.out)
	if err != nil {
		return err
	}
	points := []client.MeteringPoint{} // [] and not null
	for m, err := range k.MeteringPoints(ctx) {
		if err != nil {
			return errors.Join(ofAPI(err), done())
		}
		points = append(points, m)
	}
	if c.Format == "json" {
		return errors.Join(printJSON(out, points), done())
	}
	return errors.Join(printPoints(out, points, c.Format), done())
}
