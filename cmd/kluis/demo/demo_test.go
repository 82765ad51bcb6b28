package demo

import (
	"os"
	"testing"
)

func TestForgetDatabase(t *testing.T) {
	t.Setenv("PGHOSTADDR", "192.0.2.1")
	t.Setenv("PGSERVICE", "production")
	t.Setenv("KLUIS_KEPT", "yes")
	if err := forgetDatabase(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"PGHOSTADDR": "", "PGSERVICE": "", "KLUIS_KEPT": "yes"} {
		if got := os.Getenv(name); got != want {
			t.Errorf("%s is %q", name, got)
		}
	}
}
