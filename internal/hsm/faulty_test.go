package hsm_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"
)

// Functions of the function list that testdata/faulty.c can make fail.
const (
	fnOpenSession    = 12
	fnLogin          = 18
	fnDestroyObject  = 22
	fnEncrypt        = 30
	fnDecryptInit    = 33
	fnDecrypt        = 34
	fnSign           = 43
	fnGenerateKey    = 58
	fnUnwrapKey      = 61
	fnGenerateRandom = 64
)

// faulty is SoftHSM with faults, for one test alone.
type faulty struct{ control []byte }

const controlSize = 5 * 4 // rv, count, delay_ms, calls, succeeded; see faulty.c

var faultyLibrary = sync.OnceValues(func() ([]byte, error) {
	module, err := hsmtest.Module()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "kluis-faulty-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	lib := filepath.Join(dir, "faulty.so")
	cmd := exec.Command("cc", "-shared", "-fPIC", "-O1", `-DSOFTHSM="`+module+`"`, "-o", lib, "testdata/faulty.c", "-ldl")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, err
	}
	return os.ReadFile(lib)
})

// openFaulty opens the roles of a server through a module with faults.
func openFaulty(t *testing.T, change func(*hsm.Config), roles ...hsm.Role) (*hsm.HSM, *faulty) {
	t.Helper()
	world := hsmtest.New(t)
	// Keeps SoftHSM itself initialised as long as the faulty module is used.
	world.Servers[1].Open(t)

	code, err := faultyLibrary()
	if err != nil {
		t.Fatal(err)
	}
	lib := filepath.Join(t.TempDir(), "faulty.so")
	control, err := os.OpenFile(lib+".ctl", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	if err := control.Truncate(68 * controlSize); err != nil {
		t.Fatal(err)
	}
	f := &faulty{}
	if f.control, err = syscall.Mmap(int(control.Fd()), 0, 68*controlSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Munmap(f.control) })
	if err := os.WriteFile(lib, code, 0o700); err != nil {
		t.Fatal(err)
	}
	s := world.Servers[0]
	s.Config.Module = lib
	s.Config.Tokens = map[hsm.Role]hsm.Token{}
	for _, r := range roles {
		s.Config.Tokens[r] = world.Servers[0].Config.Tokens[r]
	}
	if change != nil {
		change(&s.Config)
	}
	return s.Open(t), f
}

func (f *faulty) word(fn, i int) *int32 {
	return (*int32)(unsafe.Pointer(&f.control[fn*controlSize+4*i]))
}

// fail makes the next n calls of a function return rv; n < 0: all.
func (f *faulty) fail(fn int, rv uint, n int32) {
	atomic.StoreInt32(f.word(fn, 0), int32(rv))
	atomic.StoreInt32(f.word(fn, 1), n)
}

func (f *faulty) heal(fn int) { atomic.StoreInt32(f.word(fn, 1), 0) }

// delay makes every call of a function take this long first.
func (f *faulty) delay(fn int, milliseconds int32) { atomic.StoreInt32(f.word(fn, 2), milliseconds) }

func (f *faulty) calls(fn int) int32     { return atomic.LoadInt32(f.word(fn, 3)) }
func (f *faulty) succeeded(fn int) int32 { return atomic.LoadInt32(f.word(fn, 4)) }
