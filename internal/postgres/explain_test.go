package postgres_test

import (
	"bytes"
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/migrations"
)

// TestProfiles: a gateway's profile is stored once, under its digest, and only
// the auditor reads it.
func TestProfiles(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g := gateway(t, d)
	a, err := postgres.NewAuditor(t.Context(), config(d, migrations.RoleAuditor))
	a = closing(t, a, err)
	one, two := []byte("country: XX\n"), []byte("country: XY\n")
	began := time.Now().Add(-time.Second)
	for _, yaml := range [][]byte{one, two, one} {
		if err := g.KeepProfile(t.Context(), yaml); err != nil {
			t.Fatal(err)
		}
	}
	first := map[string]time.Time{}
	for _, yaml := range [][]byte{one, two} {
		got, at, err := a.Profile(t.Context(), sha256.Sum256(yaml))
		if err != nil || !bytes.Equal(got, yaml) || at.Before(began) || at.After(time.Now().Add(time.Second)) || at.Location() != time.UTC {
			t.Errorf("%q at %s: %v", got, at, err)
		}
		first[string(yaml)] = at
	}
	if err := g.KeepProfile(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	if _, at, err := a.Profile(t.Context(), sha256.Sum256(one)); err != nil || !at.Equal(first[string(one)]) {
		t.Errorf("%s: %v", at, err)
	}
	if got, at, err := a.Profile(t.Context(), [32]byte{1}); err != nil || got != nil || !at.IsZero() {
		t.Errorf("%q at %s: %v", got, at, err)
	}
	// What is not a profile is refused by the database, and so are other bytes
	// under a digest.
	if err := g.KeepProfile(t.Context(), nil); err == nil {
		t.Error("an empty one")
	}
	if _, err := d.Open(t, migrations.RoleGateway).ExecContext(t.Context(), `INSERT INTO market_profile (digest, profile) VALUES (sha256('x'), 'y')`); err == nil || !strings.Contains(err.Error(), "market_profile_check") {
		t.Errorf("other bytes: %v", err)
	}
}

// TestLegalFileVersions: the auditor reads them from one on, in order.
func TestLegalFileVersions(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	r := registrar(t, d)
	a, err := postgres.NewAuditor(t.Context(), config(d, migrations.RoleAuditor))
	a = closing(t, a, err)
	var all []*authz.LegalFile
	for n := range 4 {
		steps := []authz.Step{authz.SetOccupancy{Days: days("2024-01-01", "")}, authz.SetSupply{Supplier: alpha, Days: days("2025-01-01", "")}, authz.SetOptOut{Days: days("2026-01-01", "")}}
		f := file(t, home, steps[:n]...)
		all = append(all, f)
		if err := r.StoreLegalFile(t.Context(), f, f.Payload()); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ from, limit, first, count int }{{1, 10, 0, 4}, {2, 2, 1, 2}, {4, 10, 3, 1}, {5, 10, 0, 0}} {
		got, err := a.LegalFiles(t.Context(), home, uint64(c.from), c.limit)
		if err != nil || len(got) != c.count {
			t.Fatalf("%+v: %d, %v", c, len(got), err)
		}
		for i, b := range got {
			if !bytes.Equal(b, all[c.first+i].Payload()) {
				t.Errorf("%+v: version %d is another", c, c.from+i)
			}
		}
	}
	if got, err := a.LegalFiles(t.Context(), neighbour, 1, 10); err != nil || len(got) != 0 {
		t.Errorf("%d, %v", len(got), err)
	}
	if got, err := a.Supplier(t.Context(), alpha); err != nil || got != nil {
		t.Errorf("%q, %v", got, err)
	}
}
