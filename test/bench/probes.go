package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"text/tabwriter"
	"time"

	"kluis/authz"
	"kluis/meter"
)

// A supplier that probes may not tell another's metering point from one that
// does not exist, not by the time of the answer either. Here one does its
// best: it asks for both in turn, one request at a time.

// probing is what one operation gave away.
type probing struct {
	Operation string  `json:"operation"`
	First     bool    `json:"first"` // each metering point asked for once, never before
	Pairs     int     `json:"pairs"`
	UnknownMS float64 `json:"unknown_ms"` // median
	ForeignMS float64 `json:"foreign_ms"` // median
	// Later is the share of pairs in which the foreign one was answered later:
	// a half when there is nothing to see, give or take 1/sqrt(pairs).
	Later float64 `json:"foreign_later"`
	// Difference is the median by which the foreign one was answered later than
	// the unknown one asked for beside it, and what it lies between with 95 %.
	Difference float64 `json:"difference_ms"`
	Least      float64 `json:"difference_least_ms"`
	Most       float64 `json:"difference_most_ms"`
}

// probes measures readings and dry runs of metering points of others, beside
// unknown ones.
func (b *bench) probes(ctx context.Context, r *report, d time.Duration) error {
	b.say("unknown and foreign metering points")
	if err := b.client.authorise(ctx); err != nil {
		return err
	}
	foreign, err := b.foreign(ctx, 2*b.firstForeign)
	if err != nil {
		return fmt.Errorf("metering points of another supplier: %w", err)
	}
	next := 0
	unknown := func() string {
		next++
		return withCheckDigit(fmt.Sprintf("87198%012d", next))
	}
	period := fmt.Sprintf("from=%s&to=%s&purpose=%s", b.days.From, b.days.To, purpose)
	half := len(foreign) / 2
	for _, o := range []struct {
		name, path string
		fresh      []string // that nobody has asked the gateway for yet
	}{
		{"readings", "/readings?" + period, foreign[:half]},
		{"dry run", "/access", foreign[half:]},
	} {
		ask := func(ean string) (time.Duration, error) {
			began := time.Now()
			err := b.client.refused(ctx, b.warm.url+"/v1/metering-points/"+ean+o.path)
			return time.Since(began), err
		}
		// The first requests pay for a connection.
		for range 5 {
			if _, err := ask(unknown()); err != nil {
				return err
			}
		}
		first := probing{Operation: o.name, First: true}
		if err := first.measure(ask, len(o.fresh), 0, unknown, func(i int) string { return o.fresh[i] }); err != nil {
			return err
		}
		again := probing{Operation: o.name}
		if err := again.measure(ask, 20, d, unknown, func(i int) string { return o.fresh[i%len(o.fresh)] }); err != nil {
			return err
		}
		r.Probes = append(r.Probes, first, again)
	}
	if err := b.ownDryRun(ctx, r, d); err != nil {
		return fmt.Errorf("dry run: %w", err)
	}
	return nil
}

// measure asks in turn, at least so often and so long. Which goes first
// changes from pair to pair.
func (p *probing) measure(ask func(string) (time.Duration, error), least int, d time.Duration, unknown func() string, foreign func(int) string) error {
	var times [2][]time.Duration
	var more []time.Duration // that the foreign one took
	later := 0.0
	for end := time.Now().Add(d); p.Pairs < least || time.Now().Before(end); p.Pairs++ {
		eans := [2]string{unknown(), foreign(p.Pairs)}
		var took [2]time.Duration
		for i := range 2 {
			j := (i + p.Pairs) % 2
			var err error
			if took[j], err = ask(eans[j]); err != nil {
				return err
			}
			times[j] = append(times[j], took[j])
		}
		more = append(more, took[1]-took[0])
		switch {
		case took[1] > took[0]:
			later++
		case took[1] == took[0]:
			later += 0.5
		}
	}
	p.UnknownMS, p.ForeignMS = ms(median(times[0])), ms(median(times[1]))
	p.Later = later / float64(p.Pairs)
	p.Difference = ms(median(more))
	least, most := between(len(more))
	p.Least, p.Most = ms(more[least]), ms(more[most])
	return nil
}

// between is where in n sorted values the median of what they are drawn from
// lies with 95 %: how many of n fall below it is binomial.
func between(n int) (least, most int) {
	half := 1.96 * math.Sqrt(float64(n)) / 2
	return max(0, int(math.Floor(float64(n)/2-half))), min(n-1, int(math.Ceil(float64(n)/2+half)))
}

// foreign makes metering points that another supplier supplies, sealed as in
// earnest, and stores them. Nobody has asked for them.
func (b *bench) foreign(ctx context.Context, n int) ([]string, error) {
	var other meter.GLN
	for i, s := range b.ready.Suppliers {
		if i != b.supplier {
			var err error
			if other, err = meter.ParseGLN(s.ID); err != nil {
				return nil, err
			}
		}
	}
	if other == (meter.GLN{}) {
		return nil, errors.New("the demo has one supplier")
	}
	var out []string
	days := meter.DayRange{From: b.days.From - 100, To: meter.MaxDay}
	for i := range n {
		text := withCheckDigit(fmt.Sprintf("87197%012d", i))
		ean, err := meter.ParseEAN(text)
		if err != nil {
			return nil, err
		}
		var file []byte
		for version, step := range []authz.Step{
			authz.Register{EAN: ean, Commodity: meter.Electricity}, authz.SetOccupancy{Days: days}, authz.SetSupply{Supplier: other, Days: days},
		} {
			if file, err = b.service.registrar.SealStep(ctx, file, step); err != nil {
				return nil, err
			}
			if _, err := b.db.ExecContext(ctx, `INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, $2, $3, now())`, ean.Int64(), version+1, file); err != nil {
				return nil, err
			}
		}
		out = append(out, text)
	}
	return out, nil
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// refused makes a request that must be answered metering-point-not-found.
func (c *client) refused(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 2000))
	if err == nil && res.StatusCode != http.StatusNotFound {
		err = fmt.Errorf("%s instead of 404\n%s", res.Status, body)
	}
	return err
}

// ownDryRun measures the dry run of the caller's own metering point, over all
// that is retained.
func (b *bench) ownDryRun(ctx context.Context, r *report, d time.Duration) error {
	took, wall, err := repeat(d, 1, func(int) error {
		return b.client.get(ctx, b.warm.url+"/v1/metering-points/"+b.ean.String()+"/access", func(res *http.Response) error {
			_, err := io.Copy(io.Discard, res.Body)
			return err
		})
	})
	if err != nil {
		return err
	}
	b.made += len(took)
	r.DryRun = newRun(took, wall, nil)
	return nil
}

func (r *report) printProbes(w io.Writer) {
	fmt.Fprintln(w, "\nUnknown metering points beside other suppliers', asked for in turn, one request at a time")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tpairs\tunknown ms\tforeign ms\tforeign later\tmedian of the differences, us (95 %)")
	for _, p := range r.Probes {
		name := p.Operation
		if p.First {
			name += ", never asked for before"
		}
		fmt.Fprintf(t, "%s\t%d\t%.3f\t%.3f\t%.0f %%\t%+.1f (%+.1f to %+.1f)\n", name, p.Pairs, p.UnknownMS, p.ForeignMS, 100*p.Later,
			1000*p.Difference, 1000*p.Least, 1000*p.Most)
	}
	t.Flush()
	fmt.Fprintf(w, "The dry run of an own metering point, all that is retained: median %s ms, 99%% %s ms\n", figure(r.DryRun.MedianMS), figure(r.DryRun.P99MS))
}
