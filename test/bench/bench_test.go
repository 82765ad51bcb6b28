package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/meter"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == partArg { // the floor runs this program again
		exit(servePart(os.Args[2], os.Stdin, os.Stdout))
	}
	code := m.Run()
	os.RemoveAll(built.dir)
	os.Exit(code)
}

var built struct {
	once sync.Once
	dir  string
	err  error
}

// programs is a folder with those that are measured.
func programs(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "kluis-bench-bin-"); built.err != nil {
			return
		}
		for cgo, commands := range map[string][]string{"0": {"./cmd/gateway", "./cmd/issuer", "./cmd/portal", "./cmd/kluis"}, "1": {"./cmd/cryptoserver"}} {
			cmd := exec.Command("go", append([]string{"build", "-trimpath", "-buildvcs=false", "-o", built.dir + "/"}, commands...)...)
			cmd.Dir = "../.."
			cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
			if out, err := cmd.CombinedOutput(); err != nil {
				built.err = fmt.Errorf("go build: %w\n%s", err, out)
				return
			}
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

// TestBench keeps the benchmark working: one round, too short to say anything.
// That each part of it did what it should, it checks itself.
func TestBench(t *testing.T) {
	t.Parallel()
	dir, bin := t.TempDir(), programs(t)
	var progress, out bytes.Buffer
	file := filepath.Join(dir, "figures", "bench.json")
	o := options{root: "../..", bin: bin, rounds: 1, slice: 100 * time.Millisecond, soakBlocks: 50_000, firstForeign: 5, progress: &progress}
	if err := runAll(t.Context(), o, &out, file); err != nil {
		t.Fatalf("%v\n%s", err, progress.Bytes())
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	if r.Blocks != 4*32+2*31 || r.DataKeys != 3 || len(r.Rounds) != 1 {
		t.Errorf("%d blocks, %d keys, %d rounds", r.Blocks, r.DataKeys, len(r.Rounds))
	}
	if len(r.Probes) != 4 || r.DryRun.Operations == 0 || !strings.Contains(out.String(), "foreign later") {
		t.Errorf("probes %+v, dry run %+v", r.Probes, r.DryRun)
	}
	for _, p := range r.Probes {
		if p.Pairs == 0 || p.UnknownMS <= 0 || p.ForeignMS <= 0 || p.Later < 0 || p.Later > 1 || p.Least > p.Difference || p.Difference > p.Most {
			t.Errorf("%+v", p)
		}
	}
	if len(r.Evidence) != 7 {
		t.Errorf("evidence: %+v", r.Evidence)
	}
	for _, p := range r.Evidence {
		if x := r.Rounds[0][p.Name][1]; p.Times == 0 || x.Operations == 0 || x.MedianMS <= 0 || x.total() <= 0 || !strings.Contains(out.String(), p.Name) {
			t.Errorf("evidence, %s: %+v", p.Name, x)
		}
	}
	for _, n := range clients {
		seen, fresh := r.sumEvidence(r.Rounds[0], false, n, run.total), r.sumEvidence(r.Rounds[0], true, n, run.total)
		if seen <= r.Rounds[0][partCommit][n].total() || fresh <= seen {
			t.Errorf("evidence of a request: %g ms, new %g ms", seen, fresh)
		}
	}
	for _, name := range []string{kluisWarm, kluisCold, hsmWarm, hsmCold, sqlFloor, tlsFloor, tlsCached} {
		for _, n := range clients {
			x := r.Rounds[0][name][n]
			if x.Operations == 0 || x.MedianMS <= 0 || x.P99MS < x.MedianMS || x.total() <= 0 {
				t.Errorf("%s, %d clients: %+v", name, n, x)
			}
			if !strings.Contains(out.String(), name) {
				t.Errorf("%s is not in the table:\n%s", name, out.String())
			}
		}
	}
	for _, p := range []string{"gateway", "cryptoserver-1", "cryptoserver-2"} {
		for _, name := range []string{kluisWarm, kluisCold} {
			if r.Rounds[0][name][8].CPU[p] <= 0 {
				t.Errorf("%s: no CPU of %s", name, p)
			}
		}
		if m := r.Memory[p]; m == nil || m.PeakMB <= 0 {
			t.Errorf("no memory of %s", p)
		}
	}
	if len(r.Service) != 1 {
		t.Fatalf("%d rounds of the cryptoservers by themselves", len(r.Service))
	}
	for _, shape := range batchShapes {
		for servers := 1; servers <= 2; servers++ {
			for _, clients := range append([]int{0}, serviceClients...) {
				got := find(r.Service, shape.name, servers, clients, func(x throughput) float64 { return min(x.Blocks, x.Median, x.Server) })
				if len(got) != 1 || got[0] <= 0 {
					t.Errorf("%s, %d servers, %d clients: %v", shape.name, servers, clients, got)
				}
			}
		}
		if !strings.Contains(out.String(), shape.name) {
			t.Errorf("%s is not in the table:\n%s", shape.name, out.String())
		}
	}
	if len(r.Rewrap) != 1 || min(r.Rewrap[0].Keys, r.Rewrap[0].Loop, r.Rewrap[0].Proved, r.Rewrap[0].Server) <= 0 {
		t.Errorf("rewrapped: %+v", r.Rewrap)
	}
	if s := r.Soak; s == nil || s.Blocks < o.soakBlocks || len(s.Samples) != 11 || s.Samples[10].Blocks != s.Blocks || len(s.Samples[10].Resident) != 2 || s.Samples[10].Resident[1] <= 0 {
		t.Errorf("memory over many blocks: %+v", s)
	}
}

// TestGrowth keeps the measurement in two databases working.
func TestGrowth(t *testing.T) {
	t.Parallel()
	var progress, out bytes.Buffer
	file := filepath.Join(t.TempDir(), "growth.json")
	o := options{root: "../..", rounds: 1, growth: 400, growthRequests: 4, progress: &progress}
	if err := runAll(t.Context(), o, &out, file); err != nil {
		t.Fatalf("%v\n%s", err, progress.Bytes())
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r growthReport
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	if r.Points != [2]int{200, 400} || len(r.Cached) != 1 || len(r.Buffered) != 1 {
		t.Errorf("%+v", r)
	}
	for _, name := range growthRows() {
		for _, x := range append([]growthRound{r.Cold, r.Cached[0]}, r.Buffered...) {
			if a, b := x[name][0], x[name][1]; min(a.Median, b.Median, a.Mean, b.Mean) <= 0 || a.P99 < a.Median || b.P99 < b.Median {
				t.Errorf("%s: %+v", name, x[name])
			}
		}
		if !strings.Contains(out.String(), "\n"+name+" ") {
			t.Errorf("%s is not in the table:\n%s", name, out.String())
		}
	}
	for _, part := range growthParts() {
		most := 300.
		if part == partStored {
			most = 700 // all that is retained: a walk down each month's index
		}
		if x := r.Pages[part]; x[0] < 1 || x[1] < 1 || x[1] > most {
			t.Errorf("%s: %v pages", part, x)
		}
	}
	for _, x := range r.Tables {
		versions := map[string]int64{"legal_file": 46, "supply_period": 8, "consent": 14, "access_log": 8, "data_key": 12}[x.Name] // of four
		for i, points := range r.Points {
			if versions > 0 && x.Rows[i] != versions*int64(points)/4 || x.MB[i] <= 0 {
				t.Errorf("%d metering points: %+v", points, x)
			}
		}
	}
	o.growth = 1 << 40
	if err := runAll(t.Context(), o, &out, ""); err == nil || !strings.Contains(err.Error(), "TMPDIR") {
		t.Errorf("more than the disk has room for: %v", err)
	}
}

// TestStorage: a month that was put in order lies on fewer pages, and is whole.
func TestStorage(t *testing.T) {
	t.Parallel()
	var progress, out bytes.Buffer
	file := filepath.Join(t.TempDir(), "storage.json")
	o := options{root: "../..", rounds: 1, storage: 80, progress: &progress}
	if err := runAll(t.Context(), o, &out, file); err != nil {
		t.Fatalf("%v\n%s", err, progress.Bytes())
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r storageReport
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Tables) != 1 || r.Days != 31 {
		t.Fatalf("%+v", r)
	}
	for _, x := range r.Tables {
		if x.Points != 80 || x.TableMB[0] <= 0 || x.TableMB[1] > 1.1*x.TableMB[0] || x.IndexMB[1] > 1.1*x.IndexMB[0] {
			t.Errorf("%+v", x)
		}
		for what, c := range x.Reads {
			if c[0].Pages < 1 || what != readStatement && c[1].Pages > c[0].Pages/2 {
				t.Errorf("%s: %+v", what, c)
			}
			if !strings.Contains(out.String(), "\n"+what+" ") {
				t.Errorf("%s is not in the table:\n%s", what, out.String())
			}
		}
	}
}

// The batches are as large as their names say.
func TestBatchShapes(t *testing.T) {
	t.Parallel()
	for _, shape := range batchShapes {
		blocks, bytes := 0, 0.0
		for _, u := range shape.units {
			registers := len(u.registers)*u.days + u.closing
			blocks += registers + len(u.intervals)*u.days
			bytes += float64(22*registers) + float64(len(u.intervals)*u.days)*map[meter.Resolution]float64{meter.PT1H: 133, meter.PT15M: 493}[u.resolution]
		}
		want := 64.0
		if strings.Contains(shape.name, "250") {
			want = 250
		}
		if blocks != shape.blocks || math.Abs(bytes/float64(blocks)/want-1) > 0.04 {
			t.Errorf("%s: %d blocks of %.1f bytes", shape.name, blocks, bytes/float64(blocks))
		}
	}
}

// Of ten thousand medians of known draws the interval holds the true one in some
// 95 %.
func TestBetween(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 20, 200, 201} {
		holds := 0
		for range 10_000 {
			below := 0 // of n draws
			for range n {
				below += r.IntN(2)
			}
			if least, most := between(n); least < 0 || most >= n {
				t.Fatalf("%d: %d to %d", n, least, most)
			} else if least < below && below <= most || n == 1 {
				holds++
			}
		}
		if holds < 9_400 {
			t.Errorf("of %d values: it holds the median in %d of 10000", n, holds)
		}
	}
}

// The measuring itself: a loop of a known length.
func TestCPU(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'; echo done; cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscan(out, new(string)); err != nil {
		t.Fatal(err)
	}
	own, err := cpuOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	all, err := cpuOfTree(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	took := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if own <= 0 || all < 50*time.Millisecond || all > took+50*time.Millisecond || own > all {
		t.Errorf("a shell's CPU is %s, with its children's %s; it says itself %s", own, all, took)
	}
	if _, err := cpuOf(cmd.Process.Pid); err == nil {
		t.Error("a process that is gone has CPU time")
	}
}

func TestStatementsAreTheGateways(t *testing.T) {
	t.Parallel()
	got, err := readStatements("../..", slices.Concat(statementNames, listNames))
	if err != nil {
		t.Fatal(err)
	}
	if got, err = intoScratch(got); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(got["queryBlocks"], "FROM sealed_block") || !strings.Contains(got["queryRecord"], scratchTable) {
		t.Errorf("%v", got)
	}
	if _, err := readStatements(t.TempDir(), statementNames); err == nil {
		t.Error("statements of a tree without any")
	}
}
