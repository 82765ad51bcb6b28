package main

import (
	"context"
	"errors"
	"syscall"
	"testing"
)

// TestEndWhen: the process ends with an error when a module call is stuck, and
// without one when it is asked to.
func TestEndWhen(t *testing.T) {
	t.Parallel()
	stuck := errors.New("stuck")
	ctx, stopped := endWhen(t.Context(), func(context.Context) error { return stuck })
	<-ctx.Done()
	if err := stopped(); !errors.Is(err, stuck) {
		t.Errorf("stuck: %v", err)
	}
	ctx, stopped = endWhen(t.Context(), func(ctx context.Context) error { <-ctx.Done(); return nil })
	if ctx.Err() != nil {
		t.Error("ended too early")
	}
	if err := stopped(); err != nil || ctx.Err() == nil {
		t.Errorf("asked to end: %v", err)
	}
}

func TestUndumpable(t *testing.T) {
	t.Parallel()
	if err := undumpable(); err != nil {
		t.Fatal(err)
	}
	if v, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_GET_DUMPABLE, 0, 0); v != 0 || errno != 0 {
		t.Errorf("dumpable: %d, %v", v, errno)
	}
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &l); err != nil || l.Cur != 0 || l.Max != 0 {
		t.Errorf("limit: %+v, %v", l, err)
	}
}
