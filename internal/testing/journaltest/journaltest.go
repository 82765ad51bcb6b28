// Package journaltest gives a test's cryptoserver its journal.
package journaltest

import (
	"path/filepath"
	"testing"

	"kluis/cryptoserver/journal"
)

// New begins a journal in a folder of the test's own, and ends it in order after
// whatever the test starts later.
func New(t testing.TB) *journal.Journal {
	t.Helper()
	j, err := journal.Open(journal.Config{Dir: filepath.Join(t.TempDir(), "journal")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j
}
