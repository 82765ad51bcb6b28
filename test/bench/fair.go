package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// fairConnections are the greedy supplier's, and fairPace the time between two
// requests of each of the others.
const (
	fairConnections = 64
	fairPace        = 50 * time.Millisecond
)

// fairReport says what a greedy supplier does to the others.
type fairReport struct {
	CPUs    int           `json:"cpus"`
	Rounds  int           `json:"rounds"`
	Slice   time.Duration `json:"slice_ns"` // of each measurement of a round
	Load    string        `json:"load"`     // average before and after
	Others  []fairOther   `json:"others"`
	Greedy  fairGreedy    `json:"greedy"`
	Refused int64         `json:"greedy_refused"` // 429 and 503
	// CPU is that of each process while all are together, in CPUs.
	CPU map[string]float64 `json:"cpu"`
}

type fairOther struct {
	Name   string   `json:"name"`
	Asks   string   `json:"asks"`
	Alone  fairTook `json:"alone"`
	Others fairTook `json:"others"` // the three without the greedy one
	Beside fairTook `json:"beside"` // and with it
}

// fairTook are milliseconds, from when a request was due.
type fairTook struct {
	Requests int     `json:"requests"`
	Median   float64 `json:"median_ms"`
	P99      float64 `json:"p99_ms"`
	Most     float64 `json:"most_ms"`
}

type fairGreedy struct {
	Alone    float64 `json:"alone_per_second"` // years of quarter-hours
	Together float64 `json:"together_per_second"`
	Streams  int64   `json:"stream_points"` // while together
}

func tookOf(all []time.Duration) fairTook {
	if len(all) == 0 {
		return fairTook{}
	}
	slices.Sort(all)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fairTook{len(all), ms(all[len(all)/2]), ms(all[(len(all)-1)*99/100]), ms(all[len(all)-1])}
}

// fairCaller is a supplier with what it asks.
type fairCaller struct {
	*client
	name, asks, url string
}

// measureFair runs four suppliers on a demo, in rounds: each of three alone, at
// an even pace, and all of them while the fourth asks for years of quarter-hours
// on 64 connections, and reads a stream of its whole portfolio over and over.
// What is alone and what is together take turns, so that others on the machine
// slow down both.
func measureFair(ctx context.Context, o options, dir string) (_ *fairReport, err error) {
	w := &world{bin: o.bin, state: filepath.Join(dir, "state")}
	defer func() { err = errors.Join(err, w.stop()) }()
	if err := w.startDemo(ctx, dir); err != nil {
		return nil, err
	}
	greedy, others, err := w.fairCallers()
	if err != nil {
		return nil, err
	}
	r := &fairReport{CPUs: runtime.NumCPU(), Rounds: o.rounds, Slice: o.slice, Load: loadAverage(), CPU: map[string]float64{}}
	for _, c := range others {
		if err := c.ask(ctx, o.slice/2, nil); err != nil { // warm
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	alone, without, with := make([][]time.Duration, len(others)), make([][]time.Duration, len(others)), make([][]time.Duration, len(others))
	together := func(took [][]time.Duration) error {
		var wg sync.WaitGroup
		errs := make([]error, len(others))
		for i, c := range others {
			wg.Go(func() {
				// Not all at the same instants: they know nothing of each other.
				time.Sleep(o.slice/10 + time.Duration(i)*fairPace/time.Duration(len(others)))
				errs[i] = c.ask(ctx, o.slice, &took[i])
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	var gotAlone, got devoured
	for range o.rounds {
		for i, c := range others {
			if err := c.ask(ctx, o.slice, &alone[i]); err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
		}
		if err := together(without); err != nil {
			return nil, err
		}
		if err := greedy.devour(ctx, w.ready.GatewayURL, o.slice/2, &gotAlone); err != nil {
			return nil, err
		}
		before, err := w.fairCPU()
		if err != nil {
			return nil, err
		}
		done := make(chan error, 1)
		go func() { done <- together(with) }()
		err = greedy.devour(ctx, w.ready.GatewayURL, o.slice+o.slice/5, &got)
		err = errors.Join(err, <-done)
		after, cpuErr := w.fairCPU()
		if err := errors.Join(err, cpuErr); err != nil {
			return nil, err
		}
		for name, t := range after {
			r.CPU[name] += (t - before[name]).Seconds() / (o.slice + o.slice/5).Seconds() / float64(o.rounds)
		}
	}
	rounds := float64(o.rounds)
	for i, c := range others {
		r.Others = append(r.Others, fairOther{Name: c.name, Asks: c.asks, Alone: tookOf(alone[i]), Others: tookOf(without[i]), Beside: tookOf(with[i])})
	}
	r.Greedy.Alone = float64(gotAlone.answers.Load()) / (o.slice / 2).Seconds() / rounds
	r.Greedy.Together = float64(got.answers.Load()) / (o.slice + o.slice/5).Seconds() / rounds
	r.Greedy.Streams, r.Refused = got.points.Load(), got.refused.Load()
	r.Load += ", " + loadAverage()
	return r, nil
}

// fairCPU is the CPU time of each process so far.
func (w *world) fairCPU() (map[string]time.Duration, error) {
	u := map[string]time.Duration{}
	var errs [3]error
	u["gateway"], errs[0] = cpuOf(w.ready.GatewayPID)
	u["this client"], errs[1] = cpuOf(os.Getpid())
	u["postgresql"], errs[2] = cpuOfTree(w.ready.PostgresPID)
	for _, c := range w.ready.Cryptoservers {
		t, err := cpuOf(c.PID)
		if err != nil {
			return nil, err
		}
		u["cryptoservers"] += t
	}
	return u, errors.Join(errs[:]...)
}

// fairCallers are the demo's suppliers and two of those of its test metering
// points.
func (w *world) fairCallers() (greedy *fairCaller, others []*fairCaller, err error) {
	year := func(supplier string) (string, error) {
		for _, p := range w.ready.MeteringPoints {
			for _, a := range p.Access {
				if a.Supplier == supplier && a.Resolution == "PT15M" && a.Purpose == "ENERGY_MANAGEMENT" {
					q := url.Values{"from": {a.From}, "to": {a.To}, "purpose": {a.Purpose}, "fields": {strings.Join(a.Fields, ",")}}
					return w.ready.GatewayURL + "/v1/metering-points/" + p.EAN + "/readings?" + q.Encode(), nil
				}
			}
		}
		return "", fmt.Errorf("the demo has no quarter-hours for %s", supplier)
	}
	bill := func(supplier string) (string, error) {
		for _, p := range w.ready.MeteringPoints {
			for _, a := range p.Access {
				if a.Supplier == supplier && a.Resolution == "P1M" {
					q := url.Values{"from": {a.From}, "to": {a.To}, "purpose": {a.Purpose}, "fields": {strings.Join(a.Fields, ",")}, "resolution": {"P1M"}}
					return w.ready.GatewayURL + "/v1/metering-points/" + p.EAN + "/readings?" + q.Encode(), nil
				}
			}
		}
		return "", fmt.Errorf("the demo has no months for %s", supplier)
	}
	add := func(name, asks, id, cert, key, url string, err error) (*fairCaller, error) {
		if err != nil {
			return nil, err
		}
		c, err := newClient(w.ready.CAFile, cert, key, w.ready.IssuerURL, id)
		return &fairCaller{c, name, asks, url}, err
	}
	s := w.ready.Suppliers
	of, err := year(s[0].ID)
	if greedy, err = add("greedy", "years of quarter-hours", s[0].ClientID, s[0].CertificateFile, s[0].KeyFile, of, err); err != nil {
		return nil, nil, err
	}
	of, err = bill(s[1].ID)
	c, err := add("second", "a year of months", s[1].ClientID, s[1].CertificateFile, s[1].KeyFile, of, err)
	if err != nil {
		return nil, nil, err
	}
	others = append(others, c)
	for _, t := range []struct{ name, id string }{{"north", "9520000000011"}, {"south", "9520000000028"}} {
		pair := filepath.Join(w.state, "pki", "conformance-"+t.name)
		c, err := add(t.name, "its list of metering points", t.id, pair+".crt", pair+".key", w.ready.GatewayURL+"/v1/metering-points", nil)
		if err != nil {
			return nil, nil, err
		}
		others = append(others, c)
	}
	return greedy, others, nil
}

// ask makes a request at each tick; took is from the tick to the whole answer.
func (c *fairCaller) ask(ctx context.Context, d time.Duration, took *[]time.Duration) error {
	if err := c.authorise(ctx); err != nil {
		return err
	}
	began := time.Now()
	for due := began; due.Sub(began) < d; due = due.Add(fairPace) {
		time.Sleep(time.Until(due))
		if err := c.get(ctx, c.url, func(res *http.Response) error { _, err := io.Copy(io.Discard, res.Body); return err }); err != nil {
			return err
		}
		if took != nil {
			*took = append(*took, time.Since(due))
		}
	}
	return nil
}

// devoured is what a greedy supplier got.
type devoured struct{ answers, refused, points atomic.Int64 }

// devour asks as fast as it is answered, whatever the answer is.
func (c *fairCaller) devour(ctx context.Context, gateway string, d time.Duration, got *devoured) error {
	if err := c.authorise(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	query, err := url.Parse(c.url)
	if err != nil {
		return err
	}
	q := query.Query()
	body, err := json.Marshal(map[string]any{"from": q.Get("from"), "to": q.Get("to"), "purpose": q.Get("purpose"), "fields": strings.Split(q.Get("fields"), ",")})
	if err != nil {
		return err
	}
	one := func(method, url, body string, read func(*http.Response) error) error {
		req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
		if err != nil {
			return err
		}
		if body == "" {
			req.Body = nil
		} else {
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Accept", "application/x-ndjson")
		}
		req.Header.Set("Authorization", "Bearer "+c.token)
		res, err := c.http.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		switch res.StatusCode {
		case http.StatusOK:
			return read(res)
		case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			got.refused.Add(1)
			return nil
		}
		b, _ := io.ReadAll(io.LimitReader(res.Body, 2000))
		return fmt.Errorf("%s\n%s", res.Status, b)
	}
	var wg sync.WaitGroup
	errs := make([]error, fairConnections+1)
	for i := range fairConnections + 1 {
		wg.Go(func() {
			for ctx.Err() == nil && errs[i] == nil {
				if i == fairConnections {
					errs[i] = one(http.MethodPost, gateway+"/v1/readings/query", string(body), func(res *http.Response) error {
						b, err := io.ReadAll(res.Body)
						got.points.Add(int64(strings.Count(string(b), `"type":"point"`)))
						return err
					})
					continue
				}
				errs[i] = one(http.MethodGet, c.url, "", func(res *http.Response) error {
					_, err := io.Copy(io.Discard, res.Body)
					if err == nil {
						got.answers.Add(1)
					}
					return err
				})
			}
			if ctx.Err() != nil {
				errs[i] = nil // the end of the time
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (r *fairReport) print(w io.Writer) {
	fmt.Fprintf(w, "Four suppliers on %d CPUs, each of three asking every %s, in %d rounds of %s; alone, and beside one with %d connections and a stream (load before and after: %s)\n",
		r.CPUs, fairPace, r.Rounds, r.Slice, fairConnections, r.Load)
	fmt.Fprintf(w, "%-10s%-30s%-20s%-20s%-30s%8s\n%40s%-20s%-20s%-30s\n", "supplier", "asks for", "alone", "the three", "and the greedy one", "times", "",
		"median 99% ms", "median 99% ms", "median 99% most ms")
	for _, o := range r.Others {
		fmt.Fprintf(w, "%-10s%-30s%-20s%-20s%-30s%8.2f\n", o.Name, o.Asks, fmt.Sprintf("%.1f %.1f", o.Alone.Median, o.Alone.P99), fmt.Sprintf("%.1f %.1f", o.Others.Median, o.Others.P99),
			fmt.Sprintf("%.1f %.1f %.1f", o.Beside.Median, o.Beside.P99, o.Beside.Most), o.Beside.P99/o.Alone.P99)
	}
	fmt.Fprintf(w, "the greedy one: %.1f years of quarter-hours a second alone, %.1f beside the others, %d refused, %d metering points streamed\n", r.Greedy.Alone, r.Greedy.Together, r.Refused, r.Greedy.Streams)
	fmt.Fprint(w, "CPUs taken while together:")
	for _, name := range slices.Sorted(maps.Keys(r.CPU)) {
		fmt.Fprintf(w, " %s %.2f", name, r.CPU[name])
	}
	fmt.Fprintln(w)
}
