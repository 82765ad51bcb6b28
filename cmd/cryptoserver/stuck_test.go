package main

import (
	"context"
	enc "encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kluis/internal/config"
	"kluis/internal/testing/feedtest"
)

// faultyModule builds SoftHSM with faults (internal/hsm/testdata/faulty.c) and
// returns how to make a function of it hang.
func (in *installation) faultyModule() (path string, hang func(fn int, calls int32)) {
	in.t.Helper()
	path = filepath.Join(in.dir, "faulty.so")
	out, err := exec.Command("cc", "-shared", "-fPIC", "-O1", `-DSOFTHSM="`+in.hsm.Module+`"`, "-o", path,
		"../../internal/hsm/testdata/faulty.c", "-ldl").CombinedOutput()
	if err != nil {
		in.t.Fatalf("%v\n%s", err, out)
	}
	const controlSize = 6 * 4 // kind, arg, skip, count, calls, succeeded
	if err := os.WriteFile(path+".ctl", make([]byte, 68*controlSize), 0o600); err != nil {
		in.t.Fatal(err)
	}
	return path, func(fn int, calls int32) {
		in.t.Helper()
		const hang = 2
		b := enc.NativeEndian.AppendUint32(nil, hang)
		for _, word := range []int32{1, 0, calls} {
			b = enc.NativeEndian.AppendUint32(b, uint32(word))
		}
		f, err := os.OpenFile(path+".ctl", os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(b, int64(fn*controlSize))
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			in.t.Fatal(err)
		}
	}
}

// TestHungModule: of two servers one hangs in its module for good. No call
// fails, and the process ends with the code that tells its supervisor to start
// it again, which then serves. Not parallel, as TestKilledUnderLoad.
func TestHungModule(t *testing.T) {
	in := newInstallation(t)
	module, hang := in.faultyModule()
	conf := in.config(1)
	conf.Module, conf.StuckLimit, conf.CallTimeout = module, 2, config.Duration(400*time.Millisecond)
	one, two := in.start(in.config(0)), in.start(conf)
	feedtest.Start(t, in.client("custodian", one.address, two.address))
	q := in.openRequest(one.address, two.address)
	gateway := in.client("gateway", one.address, two.address)

	var calls, failed, longest atomic.Int64
	var wg sync.WaitGroup
	quit := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-quit:
					return
				default:
				}
				start := time.Now()
				got, err := gateway.Open(context.Background(), q)
				calls.Add(1)
				if err != nil || got[0].Err != nil || len(got[0].Faults) != 0 || len(got[0].Series) != 1 {
					failed.Add(1)
					t.Logf("failed: %v", err)
				}
				for took := int64(time.Since(start)); ; {
					if l := longest.Load(); took <= l || longest.CompareAndSwap(l, took) {
						break
					}
				}
			}
		})
	}
	wait := func(more int64) {
		for from := calls.Load(); calls.Load() < from+more && t.Context().Err() == nil; {
			time.Sleep(time.Millisecond)
		}
	}
	wait(50)
	const decrypt = 34
	hang(decrypt, -1)
	hung := time.Now()
	select {
	case err := <-two.exited:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitStuck {
			t.Errorf("exit: %v; want code %d", err, exitStuck)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the process goes on with a module that hangs")
	}
	if took := time.Since(hung); took > 8*time.Second {
		t.Errorf("the process took %s to end: two calls of 400 ms are enough, and nothing is worth waiting for", took)
	}
	wait(50)
	hang(decrypt, 0)
	conf.Listen = two.address
	again := in.start(conf)
	wait(50)
	in.healthy(gateway)
	close(quit)
	wg.Wait()
	if failed.Load() != 0 {
		t.Errorf("%d of %d calls failed", failed.Load(), calls.Load())
	}
	t.Logf("%d calls, the longest took %s", calls.Load(), time.Duration(longest.Load()))
	_ = again.cmd.Process.Kill()
}
