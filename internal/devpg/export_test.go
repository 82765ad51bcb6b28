package devpg

import (
	"syscall"
	"testing"
)

// ServerAttributes starts a process as the user PostgreSQL runs as.
func ServerAttributes(t *testing.T) *syscall.SysProcAttr {
	t.Helper()
	a, err := serverUser()
	if err != nil {
		t.Fatal(err)
	}
	return a.attributes()
}

// Major reads a version line.
func Major(version string) (int, error) { return major(version) }
