package hsm_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"
)

// Functions of the function list that testdata/faulty.c can make fail.
const (
	fnInitialize        = 0
	fnFinalize          = 1
	fnGetSlotList       = 4
	fnGetTokenInfo      = 6
	fnOpenSession       = 12
	fnCloseSession      = 13
	fnLogin             = 18
	fnCreateObject      = 20
	fnCopyObject        = 21
	fnDestroyObject     = 22
	fnGetAttributeValue = 24
	fnSetAttributeValue = 25
	fnFindObjectsInit   = 26
	fnFindObjects       = 27
	fnFindObjectsFinal  = 28
	fnEncryptInit       = 29
	fnEncrypt           = 30
	fnDecryptInit       = 33
	fnDecrypt           = 34
	fnSignInit          = 42
	fnSign              = 43
	fnGenerateKey       = 58
	fnWrapKey           = 60
	fnUnwrapKey         = 61
	fnGenerateRandom    = 64

	fnOnly  = 5 // not a function: the slot that faults are confined to
	fnWatch = 3 // not a function: what used the session of a call that hung
)

// faulty is SoftHSM with faults, for one test alone.
type faulty struct{ control []byte }

// Fields of a function's control, and kinds of faults; see faulty.c.
const (
	ctlKind = iota
	ctlArg
	ctlSkip
	ctlCount
	ctlCalls
	ctlSucceeded
	controlSize = 4 * (ctlSucceeded + 1)
)

const (
	faultReturn = iota
	faultDelay
	faultHang
	faultCrash
	faultLie
)

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

// only confines all faults to one token.
func (f *faulty) only(t *testing.T, c hsm.Config, label string) {
	t.Helper()
	slot, err := hsm.Slot(c.Module, label)
	if err != nil {
		t.Fatal(err)
	}
	atomic.StoreInt32(f.word(fnOnly, ctlArg), int32(slot))
}

// remove takes the token away that faults are confined to; heal puts it back.
func (f *faulty) remove(rv uint) (putBack func()) {
	touched := []int{fnGetTokenInfo, fnOpenSession, fnLogin, fnUnwrapKey, fnDecryptInit, fnDecrypt, fnEncryptInit, fnEncrypt,
		fnGenerateKey, fnWrapKey, fnSignInit, fnSign, fnDestroyObject, fnGenerateRandom, fnFindObjectsInit, fnGetAttributeValue}
	for _, fn := range touched {
		f.fail(fn, rv, -1)
	}
	return func() {
		for _, fn := range touched {
			f.heal(fn)
		}
	}
}

// workers gives every token so many.
func workers(c *hsm.Config, n int) {
	for _, tokens := range c.Tokens {
		for i := range tokens {
			tokens[i].Workers = n
		}
	}
}

// openFaulty opens the roles of a server through a module with faults.
func openFaulty(t *testing.T, change func(*hsm.Config), roles ...hsm.Role) (*hsm.HSM, *faulty) {
	t.Helper()
	world := hsmtest.New(t)
	keepInitialised(t)
	lib, f := newFaulty(t)
	s := world.Servers[0]
	s.Config.Module = lib
	s.Config.Tokens = map[hsm.Role][]hsm.Token{}
	for _, r := range roles {
		s.Config.Tokens[r] = slices.Clone(world.Servers[0].Config.Tokens[r])
	}
	if change != nil {
		change(&s.Config)
	}
	return s.Open(t), f
}

// kept is an HSM that keeps SoftHSM itself initialised to the end: a call that
// hung comes back when its test is over already.
var kept struct {
	sync.Once
	hsm *hsm.HSM
	err error
}

func keepInitialised(t *testing.T) {
	t.Helper()
	kept.Do(func() { kept.hsm, kept.err = hsm.New(hsmtest.New(t).Servers[1].Config) })
	if kept.err != nil {
		t.Fatal(kept.err)
	}
}

// tests runs all tests, and then closes what they shared.
type tests struct{ *testing.M }

func (ts tests) Run() int {
	// Most of them wait for something to hang or come back.
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	code := ts.M.Run()
	if kept.hsm != nil {
		time.Sleep(100 * time.Millisecond) // what hung is on its way back
		if err := kept.hsm.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// newFaulty makes a module with a control file of its own.
func newFaulty(t *testing.T) (lib string, f *faulty) {
	t.Helper()
	code, err := faultyLibrary()
	if err != nil {
		t.Fatal(err)
	}
	lib = filepath.Join(t.TempDir(), "faulty.so")
	if err := errors.Join(os.WriteFile(lib+".ctl", make([]byte, 68*controlSize), 0o600), os.WriteFile(lib, code, 0o700)); err != nil {
		t.Fatal(err)
	}
	if f, err = mapFaulty(lib); err != nil {
		t.Fatal(err)
	}
	// Nothing may hang on when the test is over; and what it hung on must be
	// gone before the memory is.
	t.Cleanup(func() {
		for fn := range 68 {
			f.heal(fn)
		}
	})
	return lib, f
}

// mapFaulty stays mapped until the process ends: a call that hung may come
// back late.
func mapFaulty(lib string) (*faulty, error) {
	control, err := os.OpenFile(lib+".ctl", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	b, err := syscall.Mmap(int(control.Fd()), 0, 68*controlSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	return &faulty{b}, err
}

func (f *faulty) word(fn, i int) *int32 {
	return (*int32)(unsafe.Pointer(&f.control[fn*controlSize+4*i]))
}

// inject makes n calls of a function fail in some way, after skip that do not;
// n < 0: all.
func (f *faulty) inject(fn, kind int, arg, skip, n int32) {
	f.heal(fn)
	atomic.StoreInt32(f.word(fn, ctlKind), int32(kind))
	atomic.StoreInt32(f.word(fn, ctlArg), arg)
	atomic.StoreInt32(f.word(fn, ctlSkip), skip)
	atomic.StoreInt32(f.word(fn, ctlCount), n)
}

// fail makes the next n calls of a function return rv; n < 0: all.
func (f *faulty) fail(fn int, rv uint, n int32) { f.inject(fn, faultReturn, int32(rv), 0, n) }

// delay makes every call of a function take this long first; 0: none.
func (f *faulty) delay(fn int, milliseconds int32) { f.inject(fn, faultDelay, milliseconds, 0, -1) }

// hang makes the next n calls of a function wait for heal.
func (f *faulty) hang(fn int, n int32) { f.inject(fn, faultHang, 1, 0, n) }

// heal ends a fault and lets go what hangs.
func (f *faulty) heal(fn int) {
	atomic.StoreInt32(f.word(fn, ctlCount), 0)
	atomic.StoreInt32(f.word(fn, ctlSkip), 0)
	atomic.StoreInt32(f.word(fn, ctlArg), 0)
}

func (f *faulty) calls(fn int) int32     { return atomic.LoadInt32(f.word(fn, ctlCalls)) }
func (f *faulty) succeeded(fn int) int32 { return atomic.LoadInt32(f.word(fn, ctlSucceeded)) }

// hanging is the session of the last call that hung; 0: none did.
func (f *faulty) hanging() int32 { return atomic.LoadInt32(f.word(fnWatch, ctlArg)) }

// touched is how often the session of the last call that hung was used since.
func (f *faulty) touched() int32 { return f.calls(fnWatch) }
