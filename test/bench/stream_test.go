package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	api "kluis/openapi/client"
)

// TestStream keeps the benchmark of streams working, with a portfolio too small to
// say anything. That every metering point came once, and that the manifest says
// so, it checks itself.
func TestStream(t *testing.T) {
	t.Parallel()
	var progress, out bytes.Buffer
	file := filepath.Join(t.TempDir(), "stream.json")
	o := options{root: "../..", bin: programs(t), stream: 300, progress: &progress}
	if err := runAll(t.Context(), o, &out, file); err != nil {
		t.Fatalf("%v\n%s", err, progress.Bytes())
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r streamReport
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Databases) != 1 || r.Databases[0].Points != 300 || len(r.Floor) != 2 {
		t.Fatalf("%s", raw)
	}
	d := r.last()
	for _, b := range d.Tables {
		want := map[string]int64{"data_key": 300 * (streamMonth + 1), "sealed_block": 300 * (4 * (streamMonth + 1) * streamAround), "supply_period": 300, "consent": 15}[b.Name]
		if b.Rows < want || b.MB <= 0 {
			t.Errorf("%+v, want %d rows", b, want)
		}
	}
	for _, x := range append(d.Statement, d.Detail...) {
		if x.Seconds <= 0 || x.Bytes < int64(x.Points)*100 || x.Parts != 1 || x.OwnMB <= 0 || x.PeakMB < x.OwnMB || x.PostgresMB <= 0 || x.total() <= 0 || x.ByName["gateway"] <= 0 {
			t.Errorf("%+v", x)
		}
	}
	for _, f := range r.Floor {
		if min(f.SQL, f.Postgres, f.PKCS11, f.TLS) <= 0 {
			t.Errorf("%+v", f)
		}
	}
	for _, want := range []string{"monthly statement", "quarter-hours", "times the floor", "sealed_block", "2700000 metering points would take"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the report:\n%s", want, out.String())
		}
	}
}

// TestReader: what is not exactly once and in order is not taken for it.
func TestReader(t *testing.T) {
	t.Parallel()
	eans := make([]string, 3)
	for n := range eans {
		ean, err := streamEAN(n)
		if err != nil {
			t.Fatal(err)
		}
		if eans[n] = ean.String(); n != 2 {
			continue
		}
		if got, ok := streamNumber(eans[n]); !ok || got != n {
			t.Errorf("%s is number %d", eans[n], got)
		}
	}
	begin := `{"type":"begin","query":"` + strings.Repeat("A", 43) + `","done":0,"total":null}` + "\n"
	end := `{"type":"end","complete":true,"manifest":"x"}` + "\n"
	point := func(sequence, n int) string {
		return fmt.Sprintf(`{"type":"point","sequence":%d,"ean":"%s","series":[],"withheld":[]}`+"\n"+`{"type":"progress","sequence":%d,"cursor":"c%d"}`+"\n", sequence, eans[n], sequence, sequence)
	}
	for name, c := range map[string]struct {
		stream string
		good   bool
	}{
		"all":                 {begin + point(1, 0) + point(2, 1) + point(3, 2) + end, true},
		"one twice":           {begin + point(1, 0) + point(2, 0) + end, false},
		"one left out":        {begin + point(1, 0) + point(3, 2) + end, false},
		"another's":           {begin + strings.Replace(point(1, 0), "87198", "87199", 1) + end, false},
		"cut off":             {begin + point(1, 0), false},
		"a line cut off":      {begin + point(1, 0)[:50], false},
		"of another query":    {begin + point(1, 0) + strings.Replace(begin, "AAA", "BAA", 1) + end, false},
		"with a problem":      {begin + strings.Replace(point(1, 0), `"series":[]`, `"problem":{}`, 1) + end, false},
		"ended by a problem":  {begin + `{"type":"end","complete":false,"cursor":"c","problem":{"type":"urn:kluis:problem:evidence-changed"}}` + "\n", false},
		"with an unknown one": {begin + `{"type":"other"}` + "\n" + end, false},
	} {
		r := &reader{want: map[int]bool{0: true, 1: true, 2: true}}
		last, err := r.part(strings.NewReader(c.stream), time.Now())
		if (last && err == nil) != c.good {
			t.Errorf("%s: %v, %v", name, last, err)
		}
		if !c.good {
			continue
		}
		chain := api.NewChain([32]byte{})
		for i := range 3 {
			line, _, _ := strings.Cut(point(i+1, i), "\n")
			chain.Add([]byte(line + "\n"))
		}
		if len(r.want) != 0 || r.chain.Digest() != chain.Digest() || string(r.cursor) != "c3" || r.manifest != "x" {
			t.Errorf("%s: %+v", name, r)
		}
	}
	// Resumed with a new token, where it ended.
	r := &reader{want: map[int]bool{0: true, 1: true, 2: true}}
	last, err := r.part(strings.NewReader(begin+point(1, 0)+`{"type":"end","complete":false,"cursor":"c9","problem":{"type":"urn:kluis:problem:unauthenticated"}}`+"\n"), time.Now())
	if last || err != nil || string(r.cursor) != "c9" || r.sequence != 1 {
		t.Errorf("%v, %v, %+v", last, err, r)
	}
	if last, err = r.part(strings.NewReader(begin+point(2, 1)+point(3, 2)+end), time.Now()); !last || err != nil {
		t.Errorf("%v, %v", last, err)
	}
}

// TestWhole: the estimate is no better than what was measured.
func TestWhole(t *testing.T) {
	t.Parallel()
	db := func(points int, seconds float64) streamDatabase {
		return streamDatabase{Points: points, Statement: []streamRun{{Points: points, Seconds: seconds}}}
	}
	r := &streamReport{Databases: []streamDatabase{db(10_000, 10), db(100_000, 200)}}
	growth, took := r.whole()
	if growth < 1.99 || growth > 2.01 || took.Hours() < 1.5*2.69 || took.Hours() > 1.5*2.70 {
		t.Errorf("%v, %v", growth, took)
	}
	r = &streamReport{Databases: []streamDatabase{db(10_000, 20), db(100_000, 100)}} // faster, by chance
	if growth, took := r.whole(); growth > 1 || took.Minutes() != 45 {
		t.Errorf("%v, %v", growth, took)
	}
}
