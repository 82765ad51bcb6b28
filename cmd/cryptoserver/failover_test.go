package main

import (
	"context"
	enc "encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"kluis/cryptoserver/client"
	"kluis/cryptoserver/envelope"
	"kluis/internal/config"
	"kluis/internal/testing/feedtest"
	"kluis/meter"
)

// The functions of PKCS#11, by their place in its list, that the faulty module
// is told about.
const (
	fnGetTokenInfo = 6
	fnOpenSession  = 12
	fnDecryptInit  = 33
	fnDecrypt      = 34
)

// What the faulty module does to a call (internal/hsm/testdata/faulty.c).
const (
	faultReturn = 0 // arg: the return code
	faultDelay  = 1 // arg: milliseconds
	faultHang   = 2 // arg: 0 lets go
)

// inject lets the next calls of a function meet a fault; -1: all, 0: none.
func (in *installation) inject(module string, fn int, kind, arg, calls int32) {
	in.t.Helper()
	b := enc.NativeEndian.AppendUint32(nil, uint32(kind))
	for _, word := range []int32{arg, 0, calls} {
		b = enc.NativeEndian.AppendUint32(b, uint32(word))
	}
	const controlSize = 6 * 4
	f, err := os.OpenFile(module+".ctl", os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b, int64(fn*controlSize))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		in.t.Fatal(err)
	}
}

// phase is what the load met between two events.
type phase struct {
	name     string
	began    time.Time
	took     time.Duration
	failed   int
	damaged  int             // answers that say DAMAGED of poisoned rows, and serve the others
	calls    []time.Duration // how long each took that ended in the phase
	byServer map[string]int
	byClient [16]int
}

// load is 16 clients, each with connections of its own, that ask 25 times a
// second or as often as they are answered.
type load struct {
	t       *testing.T
	good    client.OpenRequest
	bad     client.OpenRequest
	badRows []int // indexes of the poisoned blocks

	mu     sync.Mutex
	poison bool // every fourth request reads the poisoned rows
	phases []*phase
	wg     sync.WaitGroup
	quit   context.CancelFunc
}

func (in *installation) load(q client.OpenRequest, addresses ...string) *load {
	in.t.Helper()
	ctx, quit := context.WithCancel(context.Background())
	l := &load{t: in.t, good: q, bad: q, badRows: []int{2, 5}, quit: quit}
	l.bad.Units = slices.Clone(q.Units)
	unit := &l.bad.Units[0]
	unit.Blocks = slices.Clone(unit.Blocks)
	for _, i := range l.badRows {
		c := slices.Clone(unit.Blocks[i].Ciphertext)
		c[len(c)-1] ^= 1
		unit.Blocks[i].Ciphertext = c
	}
	l.begin("the clients connect")
	for i := range len(phase{}.byClient) {
		c := in.client("gateway", addresses...)
		l.wg.Go(func() {
			tick := time.NewTicker(40 * time.Millisecond)
			defer tick.Stop()
			for n := i; ctx.Err() == nil; n++ {
				l.call(c, i, n%4 == 0)
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	in.t.Cleanup(func() { quit(); l.wg.Wait() })
	return l
}

func (l *load) call(c *client.Client, i int, mayPoison bool) {
	l.mu.Lock()
	poisoned := l.poison && mayPoison
	l.mu.Unlock()
	q, bad := l.good, []int(nil)
	if poisoned {
		q, bad = l.bad, l.badRows
	}
	start := time.Now()
	got, err := c.Open(context.Background(), q)
	took := time.Since(start)
	if err == nil {
		err = check(q.Units[0], got[0], bad)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.phases[len(l.phases)-1]
	p.calls = append(p.calls, took)
	p.byClient[i]++
	if err != nil {
		p.failed++
		l.t.Logf("%s: failed after %s: %v", p.name, took, err)
		return
	}
	if poisoned {
		p.damaged++
	}
	if r, err := envelope.ParseReceipt(got[0].Receipt); err == nil {
		p.byServer[r.ServerID]++
	}
}

// check compares an answer with what openRequest sealed: every day's value but
// those of the poisoned blocks, and these said to be damaged.
func check(asked client.Unit, got client.Opened, bad []int) error {
	if got.Err != nil {
		return got.Err
	}
	if len(got.Series) != 1 || len(got.Faults) != len(bad) {
		return fmt.Errorf("%d series, faults %v", len(got.Series), got.Faults)
	}
	for i, f := range got.Faults {
		if f.Block != bad[i] || f.Reason != client.Damaged {
			return fmt.Errorf("faults %v, poisoned %v", got.Faults, bad)
		}
	}
	values := map[meter.Day]meter.Value{}
	for _, d := range got.Series[0].Days {
		if len(d.Values) == 1 {
			values[d.Day] = d.Values[0]
		}
	}
	for i, b := range asked.Blocks {
		value, ok := values[b.Day]
		ok = ok && value != meter.Null
		switch {
		case slices.Contains(bad, i):
			if ok {
				return fmt.Errorf("a value from a poisoned row: %v", got.Series[0])
			}
		case !ok || value != meter.Value(b.Day):
			return fmt.Errorf("day %d: %v", b.Day, got.Series[0])
		}
	}
	return nil
}

// begin ends a phase and begins the next: calls in progress count for it.
func (l *load) begin(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if n := len(l.phases); n > 0 {
		l.phases[n-1].took = now.Sub(l.phases[n-1].began)
	}
	l.phases = append(l.phases, &phase{name: name, began: now, byServer: map[string]int{}})
}

// until waits until a condition of the present phase holds.
func (l *load) until(what string, f func(*phase) bool) {
	l.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		l.mu.Lock()
		ok := f(l.phases[len(l.phases)-1])
		l.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// pass lets the phase go on for d at least, and until every client has had two
// answers in it: whatever the event held up has ended then.
func (l *load) pass(d time.Duration) {
	l.t.Helper()
	l.until("two answers for every client", func(p *phase) bool {
		return time.Since(p.began) >= d && slices.Min(p.byClient[:]) >= 2
	})
}

// served waits until a server has answered n more requests.
func (l *load) served(id string, n int) {
	l.t.Helper()
	l.mu.Lock()
	from := l.phases[len(l.phases)-1].byServer[id]
	l.mu.Unlock()
	l.until(id+" serves", func(p *phase) bool { return p.byServer[id] >= from+n })
}

func (l *load) stop() {
	l.quit()
	l.wg.Wait()
	l.begin("")
	l.phases = l.phases[:len(l.phases)-1]
}

func (l *load) table() string {
	var b strings.Builder
	b.WriteByte('\n')
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "event\ts\trequests\tfailed\tDAMAGED, rest served\tby server 1\tby server 2\tmedian ms\t99% ms\tlongest ms")
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond)) }
	for _, p := range l.phases {
		slices.Sort(p.calls)
		n := len(p.calls)
		fmt.Fprintf(w, "%s\t%.1f\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\n", p.name, p.took.Seconds(), n, p.failed, p.damaged,
			p.byServer["cryptoserver-1"], p.byServer["cryptoserver-2"], ms(p.calls[n/2]), ms(p.calls[n*99/100]), ms(p.calls[n-1]))
	}
	_ = w.Flush() // a strings.Builder takes all
	return b.String()
}

// TestFailOver: 16 clients ask two servers all the time, while whatever may
// happen to one of them happens. No request fails; what reads poisoned rows says
// which, and gets the others. Run it with -v for the figures.
//
// Not parallel, as TestKilledUnderLoad.
func TestFailOver(t *testing.T) {
	in := newInstallation(t)
	module, _ := in.faultyModule()
	conf := []config.Cryptoserver{in.config(0), in.config(1)}
	conf[1].Module, conf[1].StuckLimit, conf[1].CallTimeout = module, 2, config.Duration(time.Second)
	procs := []*process{in.start(conf[0]), in.start(conf[1])}
	addresses := []string{procs[0].address, procs[1].address}
	feedtest.Start(t, in.client("custodian", addresses...))
	restart := func(i int) {
		t.Helper()
		conf[i].Listen = addresses[i] // a supervisor restarts it where it was
		procs[i] = in.start(conf[i])
	}
	const (
		second     = "cryptoserver-2"
		slowServer = "server 2 is 100 times slower"
	)

	l := in.load(in.openRequest(addresses...), addresses...)
	l.served("cryptoserver-1", 50)
	l.served(second, 50)
	l.begin("nothing")
	l.pass(2 * time.Second)

	for i, p := range procs {
		l.begin(fmt.Sprintf("kill -9 of server %d", i+1))
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-p.exited
		l.pass(time.Second)
		l.begin("its restart")
		restart(i)
		l.served(conf[i].ID, 50)
	}

	l.begin("a token of server 2 removed")
	const deviceRemoved, tokenNotPresent = 0x32, 0xE0
	for _, fn := range []int{fnGetTokenInfo, fnOpenSession} {
		in.inject(module, fn, faultReturn, tokenNotPresent, -1)
	}
	for _, fn := range []int{fnDecryptInit, fnDecrypt} {
		in.inject(module, fn, faultReturn, deviceRemoved, -1)
	}
	l.pass(2 * time.Second)
	l.begin("and put back")
	for _, fn := range []int{fnGetTokenInfo, fnOpenSession, fnDecryptInit, fnDecrypt} {
		in.inject(module, fn, faultReturn, 0, 0)
	}
	l.served(second, 50)

	l.begin("the module of server 2 hangs")
	in.inject(module, fnDecrypt, faultHang, 1, -1)
	select {
	case err := <-procs[1].exited:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitStuck {
			t.Errorf("exit: %v; want code %d", err, exitStuck)
		}
	case <-time.After(time.Minute):
		t.Fatal("the process goes on with a module that hangs")
	}
	l.pass(0)
	l.begin("its restart")
	in.inject(module, fnDecrypt, faultHang, 0, 0)
	restart(1)
	l.served(second, 50)

	l.begin(slowServer)
	in.inject(module, fnDecrypt, faultDelay, 10, -1) // for each of 8 rows
	l.pass(2 * time.Second)
	in.inject(module, fnDecrypt, faultDelay, 0, 0)
	l.begin("as fast as the other again")
	l.served(second, 50)

	l.begin("server 2 stopped (SIGSTOP)")
	if err := procs[1].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l.pass(3 * time.Second)
	l.begin("and continued (SIGCONT)")
	if err := procs[1].cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	l.served(second, 50)

	l.begin("poisoned rows in a quarter")
	l.mu.Lock()
	l.poison = true
	l.mu.Unlock()
	l.pass(2 * time.Second)
	l.mu.Lock()
	l.poison = false
	l.mu.Unlock()
	l.begin("nothing")
	l.pass(time.Second)
	l.stop()

	failed, requests, damaged := 0, 0, 0
	for _, p := range l.phases {
		failed, requests, damaged = failed+p.failed, requests+len(p.calls), damaged+p.damaged
		if slow := p.byServer[second]; p.name == slowServer && slow > len(p.calls)/2 {
			t.Errorf("the slow server got %d of %d requests", slow, len(p.calls))
		}
	}
	t.Log(l.table())
	if failed != 0 {
		t.Errorf("%d of %d requests failed", failed, requests)
	}
	if damaged == 0 {
		t.Error("no request met a poisoned row")
	}
}
