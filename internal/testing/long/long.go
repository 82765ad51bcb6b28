// Package long keeps what takes long out of make test, which everybody waits
// for. make test-long runs it, and so does CI.
package long

import (
	"os"
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
