package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"kluis/meter"
	"kluis/openapi/client"
)

// glyphs are what a chart is drawn with.
type glyphs struct {
	levels []string // from nothing to the most
	bar    string
	gap    string
}

var (
	blocks = glyphs{levels: []string{"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"}, bar: "█", gap: "·"}
	ascii  = glyphs{levels: []string{"_", ".", ":", "-", "=", "+", "*", "#"}, bar: "#", gap: "?"}
)

// drawing chooses the glyphs by the locale (POSIX), plain where in doubt.
func drawing(env func(string) string) glyphs {
	if env("NO_COLOR") != "" {
		return ascii
	}
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := env(name); v != "" {
			if v := strings.ToUpper(v); strings.Contains(v, "UTF-8") || strings.Contains(v, "UTF8") {
				return blocks
			}
			return ascii
		}
	}
	return ascii
}

const chartWidth = 48

// printCharts draws a series each: intervals a row for each day, with a column
// for each hour that the day has, all else a bar for each period.
func printCharts(w io.Writer, series []client.Series, loc *time.Location, d glyphs) error {
	gaps := false
	for i := range series {
		s := &series[i]
		gaps = gaps || s.DeliveredCount < s.ExpectedCount
		precision := precisionOf(s)
		if step := map[client.Resolution]int{client.PT15M: 4, client.PT1H: 1}[s.Resolution]; step > 0 && s.ReadingKind == client.ReadingKindCONSUMPTION {
			fmt.Fprintf(w, "\n%s, %s an hour, a row a day:\n", s.Field, s.Unit)
			drawDays(w, s, step, precision, loc, d)
			continue
		}
		fmt.Fprintf(w, "\n%s, %s", s.Field, s.Unit)
		bars := barsOf(s, precision, loc)
		if s.ReadingKind == client.ReadingKindREGISTER {
			fmt.Fprint(w, ", used between two reads")
			if len(bars) == 0 {
				fmt.Fprintln(w, ": there are no two in a row; without --chart they are listed")
				continue
			}
		}
		fmt.Fprintln(w, ":")
		drawBars(w, bars, precision, d)
	}
	if gaps {
		fmt.Fprintf(w, "\n%s is a gap: a value that is not known.\n", d.gap)
	}
	return nil
}

// precisionOf is the number of decimals of the values.
func precisionOf(s *client.Series) int {
	for _, d := range s.Days {
		for _, v := range d.Values {
			if v != nil {
				_, decimals, _ := strings.Cut(*v, ".")
				return min(len(decimals), meter.MaxPrecision)
			}
		}
	}
	return 0
}

func valueOf(v *string, precision int) meter.Value {
	if v == nil {
		return meter.Null
	}
	n, err := meter.ParseValue(*v, precision)
	if err != nil {
		return meter.Null
	}
	return n
}

// drawDays draws the hours of each day beside each other, all to one scale.
func drawDays(w io.Writer, s *client.Series, perHour, precision int, loc *time.Location, d glyphs) {
	var most meter.Value
	hours := make([][]meter.Value, len(s.Days))
	for i, day := range s.Days {
		for j := 0; j < len(day.Values); j += perHour {
			sum := meter.Value(0)
			for _, v := range day.Values[j:min(j+perHour, len(day.Values))] {
				n := valueOf(v, precision)
				if n == meter.Null {
					sum = meter.Null
					break
				}
				sum += n
			}
			hours[i] = append(hours[i], sum)
			most = max(most, sum)
		}
	}
	var before meter.Day
	for i, day := range s.Days {
		at := meter.DayOf(day.Start.In(loc), loc)
		if i > 0 && at > before+1 {
			fmt.Fprintf(w, "%s  %d days are not given\n", before+1, at-before-1)
		}
		before = at
		line, total, whole := "", meter.Value(0), true
		for _, v := range hours[i] {
			if v == meter.Null {
				line, whole = line+d.gap, false
				continue
			}
			line += d.level(v, most)
			total += v
		}
		sum := string(meter.AppendValue(nil, total, precision))
		if !whole {
			sum = "at least " + sum
		}
		note := ""
		if n := len(hours[i]); n != 24 {
			note = fmt.Sprintf("  (%d hours: the clocks change)", n)
		}
		fmt.Fprintf(w, "%s  %s%s  %s%s\n", at, line, strings.Repeat(" ", max(0, 25-len(hours[i]))), sum, note)
	}
	fmt.Fprintf(w, "%s is up to %s\n", d.levels[len(d.levels)-1], meter.AppendValue(nil, most, precision))
}

func (d glyphs) level(v, most meter.Value) string {
	if v <= 0 || most <= 0 {
		return d.levels[0]
	}
	return d.levels[min(len(d.levels)-1, int(float64(v)/float64(most)*float64(len(d.levels)-1)+0.5))]
}

// bar is an amount between two moments.
type bar struct {
	label string
	value meter.Value
}

// barsOf are the amounts of a series that comes by day or month; of reads, what
// lies between two that follow each other.
func barsOf(s *client.Series, precision int, loc *time.Location) []bar {
	var out []bar
	all := moments(s, loc)
	slices.SortFunc(all, func(a, b moment) int { return a.at.Compare(b.at) })
	for i, m := range all {
		v := valueOf(m.value, precision)
		if s.ReadingKind == client.ReadingKindREGISTER {
			if i+1 == len(all) || !follows(s.Resolution, m.at, all[i+1].at, loc) {
				continue
			}
			next := valueOf(all[i+1].value, precision)
			if v == meter.Null || next == meter.Null {
				v = meter.Null
			} else {
				v = next - v
			}
		}
		out = append(out, bar{startOf(m.at, s.Resolution), v})
	}
	return out
}

// follows says whether the second moment is where the period of the first ends.
func follows(r client.Resolution, a, b time.Time, loc *time.Location) bool {
	from, to := meter.DayOf(a, loc), meter.DayOf(b, loc)
	switch r {
	case client.P1M:
		return to == from.AddMonths(1)
	case client.P1D:
		return to == from+1
	}
	return b.Sub(a) <= time.Hour
}

func drawBars(w io.Writer, bars []bar, precision int, d glyphs) {
	var most meter.Value
	for _, b := range bars {
		most = max(most, b.value)
	}
	for _, b := range bars {
		if b.value == meter.Null {
			fmt.Fprintf(w, "%s  %s\n", b.label, d.gap)
			continue
		}
		n := 0
		if most > 0 && b.value > 0 {
			n = max(1, int(float64(b.value)/float64(most)*chartWidth+0.5))
		}
		fmt.Fprintf(w, "%s  %s %s\n", b.label, strings.Repeat(d.bar, n), meter.AppendValue(nil, b.value, precision))
	}
}
