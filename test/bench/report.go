package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is everything that was measured.
type report struct {
	Date      time.Time                `json:"date"`
	Machine   string                   `json:"machine"`
	Load      string                   `json:"load_average"` // as the rounds began
	Blocks    int                      `json:"blocks"`
	DataKeys  int                      `json:"data_keys"`
	Answer    int                      `json:"answer_bytes"`
	Slice     float64                  `json:"slice_seconds"`
	Rounds    []round                  `json:"rounds"`
	Most      run                      `json:"most_clients"`
	Memory    map[string]*memoryReport `json:"memory_mb"`
	Evidence  []evidencePart           `json:"evidence"` // the figures are in the rounds
	Probes    []probing                `json:"probes"`
	DryRun    run                      `json:"dry_run"`
	Service   [][]throughput           `json:"service"` // by round
	Rewrap    []rewrapping             `json:"rewrap"`  // by round
	Soak      *soakReport              `json:"soak"`
	processes []string
}

// memoryReport is resident memory in MB (10^6 bytes).
type memoryReport struct {
	BeforeMB float64 `json:"before"` // after all rounds
	PeakMB   float64 `json:"peak"`   // with most clients
	AfterMB  float64 `json:"after"`
}

func (b *bench) newReport() *report {
	r := &report{
		Date: time.Now().UTC(), Machine: machine(), Load: loadAverage(), Blocks: b.blocks(), DataKeys: len(b.keys),
		Answer: b.size, Slice: b.slice.Seconds(), Memory: map[string]*memoryReport{},
	}
	r.processes = []string{"gateway"}
	for i := range b.warm.cryptoservers {
		r.processes = append(r.processes, fmt.Sprintf("cryptoserver-%d", i+1))
	}
	r.processes = append(r.processes, "postgresql", clientCPU)
	return r
}

func loadAverage() string {
	load, _ := os.ReadFile("/proc/loadavg") // only to be shown
	return strings.TrimSpace(string(load))
}

func machine() string {
	name := runtime.GOARCH
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if key, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
				name = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%s, %d CPUs, %s", name, runtime.NumCPU(), runtime.Version())
}

// spread is the least, middle and greatest of the rounds.
func (r *report) spread(f func(round) float64) string {
	v := make([]float64, len(r.Rounds))
	for i, rd := range r.Rounds {
		v[i] = f(rd)
	}
	return spread(v)
}

func spread(v []float64) string {
	if len(v) == 0 {
		return ""
	}
	slices.Sort(v)
	middle := v[len(v)/2]
	if len(v) == 1 {
		return figure(middle)
	}
	return figure(middle) + " (" + figure(v[0]) + "-" + figure(v[len(v)-1]) + ")"
}

func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// floors are the parts of the floor that go with Kluis at the same state of
// the key cache.
func floors(kluis, tls string) []string {
	if kluis == kluisCold {
		return []string{hsmCold, sqlFloor, tls}
	}
	return []string{hsmWarm, sqlFloor, tls}
}

func sum(rd round, names []string, n int, f func(run) float64) float64 {
	t := 0.0
	for _, name := range names {
		t += f(rd[name][n])
	}
	return t
}

func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "%s\n%s; load average before: %s\n", r.Date.Format("2006-01-02 15:04 MST"), r.Machine, r.Load)
	if len(r.Rounds) > 0 {
		r.printRequests(w)
		r.printEvidence(w)
		r.printProbes(w)
	}
	if len(r.Service) > 0 {
		r.printService(w)
	}
	if len(r.Rewrap) > 0 {
		r.printRewrap(w)
	}
	if r.Soak != nil {
		r.printSoak(w)
	}
}

// printService shows the cryptoservers by themselves.
func (r *report) printService(w io.Writer) {
	fmt.Fprintf(w, "\nCryptoservers by themselves: blocks opened per second by the gRPC service, beside the PKCS#11 loop over the same blocks (aim: a share of %g); %d round(s) of %gs\n",
		aim, len(r.Service), r.Slice/2)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "batch\tservers\tclients\tblocks/s\tloop's\tshare\tmedian ms\t99%% ms\tserver CPU us/block\tloop's\tclient's\n")
	for _, row := range r.Service[0] {
		if row.Clients == 0 {
			continue
		}
		get := func(clients int, f func(throughput) float64) []float64 {
			return find(r.Service, row.Batch, row.Servers, clients, f)
		}
		blocks := func(x throughput) float64 { return x.Blocks }
		share := get(row.Clients, blocks)
		for i, loop := range get(0, blocks) {
			share[i] /= loop
		}
		cpu := func(x throughput) float64 { return x.Server }
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", row.Batch, row.Servers, row.Clients,
			spread(get(row.Clients, blocks)), spread(get(0, blocks)), spread(share),
			spread(get(row.Clients, func(x throughput) float64 { return x.Median })), spread(get(row.Clients, func(x throughput) float64 { return x.P99 })),
			spread(get(row.Clients, cpu)), spread(get(0, cpu)), spread(get(row.Clients, func(x throughput) float64 { return x.Client })))
	}
	t.Flush()
}

// printRewrap shows what a rotation of the KEK can reach.
func (r *report) printRewrap(w io.Writer) {
	get := func(f func(rewrapping) float64) string {
		v := make([]float64, len(r.Rewrap))
		for i, x := range r.Rewrap {
			v[i] = f(x)
		}
		return spread(v)
	}
	fmt.Fprintf(w, "\nData keys rewrapped per second: one client, one server, %d keys in a call, beside the PKCS#11 loop on the same token\n", rewrapKeys)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tkeys/s\tCPU us/key\tservice's share")
	fmt.Fprintf(t, "Rewrap (rewrapped, proved, two MACs)\t%s\t%s\t\n", get(func(x rewrapping) float64 { return x.Keys }), get(func(x rewrapping) float64 { return x.Server }))
	fmt.Fprintf(t, "loop: unwrap, wrap, destroy, and back to compare\t%s\t%s\t%s\n", get(func(x rewrapping) float64 { return x.Proved }),
		get(func(x rewrapping) float64 { return x.ProvedCPU }), get(func(x rewrapping) float64 { return x.Keys / x.Proved }))
	fmt.Fprintf(t, "loop: unwrap, wrap, destroy\t%s\t%s\t%s\n", get(func(x rewrapping) float64 { return x.Loop }),
		get(func(x rewrapping) float64 { return x.LoopCPU }), get(func(x rewrapping) float64 { return x.Keys / x.Loop }))
	t.Flush()
}

// printSoak shows whether memory is flat.
func (r *report) printSoak(w io.Writer) {
	fmt.Fprintf(w, "\nResident MB of the cryptoservers over %d blocks (%.0f s, %.0f blocks/s)\n", r.Soak.Blocks, r.Soak.Seconds, float64(r.Soak.Blocks)/r.Soak.Seconds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "blocks")
	for _, s := range r.Soak.Samples {
		fmt.Fprintf(t, "\t%d", s.Blocks)
	}
	fmt.Fprintln(t)
	for i := range r.Soak.Samples[0].Resident {
		fmt.Fprintf(t, "cryptoserver-%d", i+1)
		for _, s := range r.Soak.Samples {
			fmt.Fprintf(t, "\t%s", figure(s.Resident[i]))
		}
		fmt.Fprintln(t)
	}
	t.Flush()
}

// printRequests shows whole requests.
func (r *report) printRequests(w io.Writer) {
	fmt.Fprintf(w, "One request: %d blocks under %d data keys, an answer of %d bytes. %d round(s) of %gs; median of the rounds (least-greatest).\n",
		r.Blocks, r.DataKeys, r.Answer, len(r.Rounds), r.Slice)
	for _, n := range clients {
		fmt.Fprintf(w, "\n%d client(s)\n", n)
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "\tmedian ms\t99% ms\tper second\tCPU ms")
		for _, name := range []string{kluisWarm, kluisCold, hsmWarm, hsmCold, sqlFloor, tlsFloor, tlsCached} {
			get := func(f func(run) float64) string {
				return r.spread(func(rd round) float64 { return f(rd[name][n]) })
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", name,
				get(func(x run) float64 { return x.MedianMS }), get(func(x run) float64 { return x.P99MS }),
				get(func(x run) float64 { return float64(x.Operations) / x.Seconds }), get(run.total))
		}
		t.Flush()

		fmt.Fprintln(w, "\n  CPU ms of a request by process")
		t = tabwriter.NewWriter(w, 2, 0, 2, ' ', 0)
		fmt.Fprintf(t, "  \t%s\n", strings.Join(r.processes, "\t"))
		for _, name := range []string{kluisWarm, kluisCold} {
			fmt.Fprintf(t, "  %s", name)
			for _, p := range r.processes {
				fmt.Fprintf(t, "\t%s", r.spread(func(rd round) float64 { return rd[name][n].CPU[p] }))
			}
			fmt.Fprintln(t)
		}
		t.Flush()

		fmt.Fprintln(w, "\n  beside the sum of the floor")
		t = tabwriter.NewWriter(w, 2, 0, 2, ' ', 0)
		fmt.Fprintln(t, "  \tfloor CPU ms\tCPU ratio\tfloor latency ms\tlatency ratio")
		for _, name := range []string{kluisWarm, kluisCold} {
			for _, tls := range []string{tlsFloor, tlsCached} {
				parts := floors(name, tls)
				latency := func(x run) float64 { return x.MedianMS }
				fmt.Fprintf(t, "  %s; floor's token %s\t%s\t%s\t%s\t%s\n", name, strings.TrimPrefix(tls, "mTLS handler, token "),
					r.spread(func(rd round) float64 { return sum(rd, parts, n, run.total) }),
					r.spread(func(rd round) float64 { return rd[name][n].total() / sum(rd, parts, n, run.total) }),
					r.spread(func(rd round) float64 { return sum(rd, parts, n, latency) }),
					r.spread(func(rd round) float64 { return rd[name][n].MedianMS / sum(rd, parts, n, latency) }))
			}
		}
		t.Flush()
	}
	fmt.Fprintf(w, "\n%d clients: %s requests/s, median %s ms, 99%% %s ms, CPU %s ms\n", most,
		figure(float64(r.Most.Operations)/r.Most.Seconds), figure(r.Most.MedianMS), figure(r.Most.P99MS), figure(r.Most.total()))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "resident MB\tafter the rounds\tpeak with %d clients\tafter them\n", most)
	for _, p := range r.processes {
		switch m := r.Memory[p]; {
		case m == nil:
		case m.PeakMB == 0: // several processes
			fmt.Fprintf(t, "%s\t\t\t%s\n", p, figure(m.AfterMB))
		default:
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p, figure(m.BeforeMB), figure(m.PeakMB), figure(m.AfterMB))
		}
	}
	t.Flush()
}
