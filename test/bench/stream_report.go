package main

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"text/tabwriter"
	"time"
)

// streamReport is all that was measured of streams.
type streamReport struct {
	Date      time.Time        `json:"date"`
	Machine   string           `json:"machine"`
	Load      string           `json:"load_average"`
	Databases []streamDatabase `json:"databases"`
	Floor     []streamFloor    `json:"floor"` // in the last database
}

type streamDatabase struct {
	Points      int           `json:"metering_points"`
	FillSeconds float64       `json:"filling_seconds"`
	Tables      []streamTable `json:"tables"`
	Statement   []streamRun   `json:"monthly_statement"`
	Detail      []streamRun   `json:"quarter_hours,omitempty"`
}

type streamTable struct {
	Name    string  `json:"name"`
	Rows    int64   `json:"rows"`
	MB      float64 `json:"mb"`
	IndexMB float64 `json:"index_mb"`
}

func (s *stream) newReport() *streamReport {
	return &streamReport{Date: time.Now().UTC(), Machine: machine(), Load: loadAverage()}
}

func (r *streamReport) last() *streamDatabase { return &r.Databases[len(r.Databases)-1] }

// middle is the run of the middle rate.
func middle(runs []streamRun) *streamRun {
	sorted := slices.Clone(runs)
	slices.SortFunc(sorted, func(a, b streamRun) int { return int(math.Copysign(1, a.rate()-b.rate())) })
	return &sorted[len(sorted)/2]
}

// whole is how long a portfolio of streamWhole takes, when each tenfold makes a
// metering point cost as much more as it did from the small database to the
// large one.
func (r *streamReport) whole() (growth float64, took time.Duration) {
	large := middle(r.last().Statement)
	growth = 1
	if len(r.Databases) > 1 {
		small := r.Databases[0]
		tenfolds := math.Log10(float64(r.last().Points) / float64(small.Points))
		growth = math.Pow(middle(small.Statement).rate()/large.rate(), 1/tenfolds)
	}
	more := math.Pow(max(1, growth), math.Log10(streamWhole/float64(r.last().Points)))
	return growth, time.Duration(streamWhole / large.rate() * more * float64(time.Second))
}

func (r *streamReport) print(out io.Writer) {
	fmt.Fprintf(out, "%s, %s\nload average before: %s\n\n", r.Machine, r.Date.Format(time.RFC3339), r.Load)
	for _, d := range r.Databases {
		fmt.Fprintf(out, "%d metering points, %d months of reads, %d quarter-hourly; filled in %.0f s\n", d.Points, streamMonth, (d.Points+streamDetail-1)/streamDetail, d.FillSeconds)
		t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "table\trows\tMB\tindexes MB\t")
		for _, b := range d.Tables {
			fmt.Fprintf(t, "%s\t%d\t%.0f\t%.0f\t\n", b.Name, b.Rows, b.MB, b.IndexMB)
		}
		t.Flush()
		fmt.Fprintln(out)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "stream\tmetering points\ta second\tfirst after s\tparts\tbytes each\tMB, all of Kluis\tby quarter\twith programs\tPostgreSQL MB\tload\t")
	row := func(name string, runs []streamRun) {
		for _, x := range runs {
			fmt.Fprintf(t, "%s\t%d\t%.0f\t%.2f\t%d\t%d\t%.0f\t%.0f\t%.0f\t%.0f\t%s\t\n", name, x.Points, x.rate(), x.First, x.Parts, int(x.Bytes)/x.Points,
				x.OwnMB, x.QuarterMB, x.PeakMB, x.PostgresMB, x.Load)
		}
	}
	for _, d := range r.Databases {
		row("monthly statement", d.Statement)
		row("quarter-hours", d.Detail)
	}
	t.Flush()

	fmt.Fprintln(out, "\nCPU of a metering point, microseconds (client and auditor are not in the sum)")
	columns := []streamRun{}
	names := []string{}
	for _, d := range r.Databases {
		columns, names = append(columns, *middle(d.Statement)), append(names, fmt.Sprintf("statement, %d", d.Points))
	}
	columns, names = append(columns, *middle(r.last().Detail)), append(names, fmt.Sprintf("quarter-hours, %d", r.last().Points))
	t = tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(name string, f func(int) string) {
		fmt.Fprintf(t, "%s\t", name)
		for i := range columns {
			fmt.Fprintf(t, "%s\t", f(i))
		}
		fmt.Fprintln(t)
	}
	line("", func(i int) string { return names[i] })
	for _, process := range slices.Sorted(maps.Keys(columns[0].CPU)) {
		line(process, func(i int) string { return figure(columns[i].CPU[process]) })
	}
	line("sum", func(i int) string { return figure(columns[i].total()) })
	floor := func(f func(streamFloor) float64) func(int) string {
		return func(i int) string {
			if i < len(columns)-2 {
				return ""
			}
			return figure(f(r.Floor[i-len(columns)+2]))
		}
	}
	line("floor: SQL, client", floor(func(f streamFloor) float64 { return f.SQL }))
	line("floor: SQL, PostgreSQL", floor(func(f streamFloor) float64 { return f.Postgres }))
	line("floor: PKCS#11, keys unwrapped", floor(func(f streamFloor) float64 { return f.PKCS11 }))
	line("floor: TLS", floor(func(f streamFloor) float64 { return f.TLS }))
	line("floor: sum", floor(streamFloor.total))
	line("times the floor", func(i int) string {
		if i < len(columns)-2 {
			return ""
		}
		return fmt.Sprintf("%.2f", columns[i].total()/r.Floor[i-len(columns)+2].total())
	})
	t.Flush()

	fmt.Fprintln(out, "\nresident memory, MB at most, in the last monthly statement:")
	last := r.last().Statement[len(r.last().Statement)-1]
	for _, name := range slices.Sorted(maps.Keys(last.ByName)) {
		fmt.Fprintf(out, "  %s %.0f\n", name, last.ByName[name])
	}
	for _, f := range r.Floor {
		fmt.Fprintf(out, "of a data key that was unwrapped and destroyed the PKCS#11 module keeps %.0f bytes (%s)\n", f.Kept, f.Query)
	}
	growth, took := r.whole()
	fmt.Fprintf(out, "\na metering point costs %.2f times as much in ten times as many; %d metering points would take %s\n", growth, streamWhole, took.Round(time.Second))
}
