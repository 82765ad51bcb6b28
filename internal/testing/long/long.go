// Package long keeps what takes long out of make test, which everybody waits
// for (make test-long runs it, and so does CI), and lets the rest wait together.
package long

import (
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"
)

// Test skips a test that is long, unless long ones are wanted.
func Test(t testing.TB) {
	t.Helper()
	if !Wanted() {
		t.Skip("takes long: make test-long runs it")
	}
}

// Wanted says whether long tests are wanted: one that repeats the same at random
// then does so for longer.
func Wanted() bool { return os.Getenv("KLUIS_TEST_LONG") != "" }

// Waits is for the TestMain of tests that wait more than they compute: twice as many
// run at once as there are processors, unless the command line says how many.
func Waits() {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		_ = flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
	}
}
