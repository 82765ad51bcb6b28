package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"kluis/internal/config"
	"kluis/migrations"
)

// TestProfileIsKept: a gateway that starts stores the bytes of its profile; one
// that cannot does not serve.
func TestProfileIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	cfg, err := config.Load[config.Gateway](w.configFile(options{timeout: 10 * time.Second}))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(cfg.ProfileFile)
	if err != nil {
		t.Fatal(err)
	}
	owner := w.db.Open(t, migrations.RoleOwner)
	for range 2 {
		p := w.process()
		p.stop()
		if err := <-p.done; err != nil {
			t.Fatal(err)
		}
	}
	var kept []byte
	digest := sha256.Sum256(want)
	if err := owner.QueryRowContext(t.Context(), `SELECT profile FROM market_profile WHERE digest = $1`, digest[:]).Scan(&kept); err != nil || !bytes.Equal(kept, want) {
		t.Errorf("%d bytes, want %d: %v", len(kept), len(want), err)
	}

	if _, err := owner.ExecContext(t.Context(), `REVOKE INSERT (digest, profile) ON market_profile FROM kluis_gateway`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var log syncBuffer
	err = realMain(ctx, w.configFile(options{timeout: 10 * time.Second}), slog.New(slog.NewJSONHandler(&log, nil)))
	if err == nil || !strings.Contains(err.Error(), "market_profile") || strings.Contains(log.String(), `"ready"`) {
		t.Errorf("%v: %s", err, log.String())
	}
}
