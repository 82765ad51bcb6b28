package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kluis/cryptoserver/client"
	"kluis/cryptoserver/envelope"
	"kluis/internal/testing/feedtest"
)

// audited reads a boot's journal to its end, checks the chain and returns the
// digests of its entries.
func audited(t *testing.T, c *client.Client, address string, server string, boot [16]byte) (map[[32]byte]bool, client.JournalBoot) {
	t.Helper()
	chain := envelope.Chain{ServerID: server, BootID: boot}
	seen := map[[32]byte]bool{}
	for {
		got, err := c.ReadJournal(t.Context(), address, boot, chain.Sequence)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range got.Entries {
			if _, err := chain.Next(b); err != nil {
				t.Fatal(err)
			}
			seen[sha256.Sum256(b)] = true
		}
		if len(got.Entries) > 0 {
			continue
		}
		for _, b := range got.Boots {
			if b.BootID == boot {
				if b.Last != chain.Sequence {
					t.Errorf("read to %d of %d", chain.Sequence, b.Last)
				}
				return seen, b
			}
		}
		t.Fatal("the boot is not on the list")
	}
}

// TestJournalSurvivesKill: a process that is killed under load has recorded every
// opening whose answer arrived, and is told from one whose machine stopped.
//
// Not parallel, as TestKilledUnderLoad.
func TestJournalSurvivesKill(t *testing.T) {
	in := newInstallation(t)
	conf := in.config(0)
	p := in.start(conf)
	conf.Listen = p.address
	feedtest.Start(t, in.client("custodian", p.address))
	q := in.openRequest(p.address)
	gateway, auditor := in.client("gateway", p.address), in.client("auditor", p.address)
	in.healthy(gateway)
	status := func() client.ServerStatus {
		t.Helper()
		st := gateway.Status(t.Context())[0]
		if st.Err != nil {
			t.Fatal(st.Err)
		}
		return st
	}
	for range 2 {
		boot := status().BootID
		var mu sync.Mutex
		var receipts [][32]byte
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					got, err := gateway.Open(ctx, q)
					if err != nil || got[0].Err != nil {
						continue
					}
					mu.Lock()
					receipts = append(receipts, sha256.Sum256(got[0].Receipt))
					mu.Unlock()
				}
			})
		}
		for enough := false; !enough; time.Sleep(time.Millisecond) {
			mu.Lock()
			enough = len(receipts) > 50
			mu.Unlock()
		}
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-p.exited
		cancel()
		wg.Wait()
		p = in.start(conf)
		in.healthy(gateway)
		seen, b := audited(t, auditor, p.address, conf.ID, boot)
		for i, r := range receipts {
			if !seen[r] {
				t.Errorf("receipt %d of %d is not in the journal", i, len(receipts))
			}
		}
		if !b.Ended || b.Torn {
			t.Errorf("%+v", b)
		}
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := gateway.Open(t.Context(), q)
		if err == nil {
			break
		}
		if time.Now().After(end) { // until it has the control feed
			t.Fatal(err)
		}
	}
	boot := status().BootID
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-p.exited; err != nil {
		t.Fatal(err)
	}
	p = in.start(conf)
	in.healthy(gateway)
	if _, b := audited(t, auditor, p.address, conf.ID, boot); !b.Ended || b.Torn {
		t.Errorf("after an orderly end: %+v", b)
	}
}

// TestJournalDiskFull: a disk that takes no more. Nothing is opened, and when
// there is room again the server goes on by itself.
func TestJournalDiskFull(t *testing.T) {
	in := newInstallation(t)
	conf := in.config(0)
	p := in.start(conf)
	feedtest.Start(t, in.client("custodian", p.address))
	q := in.openRequest(p.address)
	gateway, auditor := in.client("gateway", p.address), in.client("auditor", p.address)
	in.healthy(gateway)
	opened := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		got, err := gateway.Open(ctx, q)
		if err == nil {
			err = got[0].Err
		}
		return err
	}
	if err := opened(); err != nil {
		t.Fatal(err)
	}
	boot := gateway.Status(t.Context())[0].BootID
	before, b := audited(t, auditor, p.address, conf.ID, boot)

	files, err := filepath.Glob(filepath.Join(conf.JournalDir, "*.journal"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	st, err := os.Stat(files[0])
	if err != nil {
		t.Fatal(err)
	}
	// The kernel takes half an entry from this process and no more, as a disk
	// that is full does.
	var was unix.Rlimit
	pid := p.cmd.Process.Pid
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, nil, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(st.Size()) + 100, Max: was.Max}, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := opened(); !errors.Is(err, client.ErrUnavailable) {
			t.Errorf("with no room: %v", err)
		}
	}
	during, _ := audited(t, auditor, p.address, conf.ID, boot)
	if len(during) != len(before) {
		t.Errorf("%d entries, %d before", len(during), len(before))
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, &was, nil); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := opened()
		if err == nil {
			break
		}
		if time.Now().After(end) || !errors.Is(err, client.ErrUnavailable) && !strings.Contains(err.Error(), "deadline") {
			t.Fatalf("with room again: %v", err)
		}
	}
	after, a := audited(t, auditor, p.address, conf.ID, boot)
	if len(after) <= len(before) || a.Last <= b.Last || a.Torn {
		t.Errorf("%+v, %+v before", a, b)
	}
}
