package main

import (
	"syscall"
	"testing"
)

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
