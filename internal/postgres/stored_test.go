package postgres_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

// Stored tells of the granted days that are there and can be opened, and of
// nothing else.
func TestStored(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in, g := ingest(t, d), gateway(t, d)
	seed(t, in, home, days("2026-01-01", "2026-05-02"))
	seed(t, in, neighbour, days("2026-01-01", "2026-05-02"))
	owner := d.Open(t, migrations.RoleOwner)
	exec := func(stmt string, args ...any) {
		t.Helper()
		if _, err := owner.ExecContext(t.Context(), stmt, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(`UPDATE sealed_block SET sealed_at = '2026-05-02T03:00:00Z'`)
	const home1 = ` WHERE ean = $1 AND field = 1 AND day = $2`
	exec(`DELETE FROM sealed_block`+home1, home.Int64(), "2026-02-10")
	exec(`UPDATE sealed_block SET sealed_at = '2026-06-01T04:05:06Z'`+home1, home.Int64(), "2026-02-20")
	exec(`UPDATE sealed_block SET resolution = 2 WHERE ean = $1 AND field = 6 AND day = '2026-02-03'`, home.Int64())
	// Erased: the keys of a month's intervals are gone, the rows stay.
	exec(`DELETE FROM data_key WHERE ean = $1 AND class = 2 AND month = $2`, home.Int64(), int64(day("2026-03-01").Month()))

	look := func(grants ...authz.Grant) string {
		t.Helper()
		runs, err := g.Stored(t.Context(), grants)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, r := range runs {
			out = append(out, fmt.Sprintf("%d %s %s %s %s", r.Field, r.Days.From, r.Days.To, r.Resolution, r.LastStored.Format(time.RFC3339)))
		}
		return strings.Join(out, "\n")
	}
	const early, late = "2026-05-02T03:00:00Z", "2026-06-01T04:05:06Z"
	february := grant(t, home, meter.EnergyManagement, days("2026-02-01", "2026-03-01"), 1, 6)
	march := grant(t, home, meter.EnergyManagement, days("2026-03-01", "2026-04-01"), 6)
	bill := grant(t, home, meter.Billing, days("2026-02-01", "2026-05-01"), 1)
	for name, c := range map[string]struct {
		grants []authz.Grant
		want   []string
	}{
		"a month": {[]authz.Grant{february}, []string{
			"1 2026-02-01 2026-02-10 P1D " + early,
			"1 2026-02-11 2026-03-02 P1D " + late, // with the closing read
			"6 2026-02-01 2026-02-03 PT15M " + early,
			"6 2026-02-03 2026-02-04 PT1H " + early,
			"6 2026-02-04 2026-03-01 PT15M " + early,
		}},
		"erased": {[]authz.Grant{march}, nil},
		"months": {[]authz.Grant{bill}, []string{
			"1 2026-02-01 2026-02-02 P1D " + early, "1 2026-03-01 2026-03-02 P1D " + early,
			"1 2026-04-01 2026-04-02 P1D " + early, "1 2026-05-01 2026-05-02 P1D " + early,
		}},
		"several grants, each day once": {[]authz.Grant{bill, march, february, february}, []string{
			"1 2026-02-01 2026-02-10 P1D " + early, "1 2026-02-11 2026-03-02 P1D " + late,
			"1 2026-04-01 2026-04-02 P1D " + early, "1 2026-05-01 2026-05-02 P1D " + early,
			"6 2026-02-01 2026-02-03 PT15M " + early, "6 2026-02-03 2026-02-04 PT1H " + early, "6 2026-02-04 2026-03-01 PT15M " + early,
		}},
		"before anything is stored": {[]authz.Grant{grant(t, home, meter.EnergyManagement, days("2025-11-01", "2025-12-01"), 1, 6)}, nil},
		"no grant":                  {nil, nil},
		"empty grants":              {[]authz.Grant{{}, {}}, nil},
	} {
		if got := look(c.grants...); got != strings.Join(c.want, "\n") {
			t.Errorf("%s:\n%s", name, got)
		}
	}
	if runs, err := g.Stored(t.Context(), []authz.Grant{february, grant(t, neighbour, meter.Billing, days("2026-02-01", "2026-03-01"), 1)}); err == nil {
		t.Errorf("grants of two metering points: %+v", runs)
	}
}

// The days of five years of a metering point cost about as much to look up as
// a year of readings to fetch.
func BenchmarkStored(b *testing.B) {
	d := pgtest.New(b)
	in, g := ingest(b, d), gateway(b, d)
	// Retention is 24 months in the profile: five years of days are granted
	// by as many decisions, each at its time.
	var grants []authz.Grant
	since := days("2020-01-01", "")
	var f *authz.LegalFile
	for i, step := range []authz.Step{
		authz.Register{EAN: home, Commodity: meter.Electricity}, authz.SetOccupancy{Days: since}, authz.SetSupply{Supplier: alpha, Days: since},
		authz.GrantConsent{
			ID: [16]byte{1}, Supplier: alpha, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals}, Granularity: meter.PT15M,
			Days: since, ValidUntil: now.AddDate(1, 0, 0), Evidence: "letter",
		},
	} {
		var err error
		if f, err = authz.Apply(f, step, operator, time.Date(2022, 1, 1, 0, i, 0, 0, time.UTC), profile().Location()); err != nil {
			b.Fatal(err)
		}
	}
	for year := 2022; year <= 2026; year++ {
		period := days(fmt.Sprintf("%d-01-01", year), fmt.Sprintf("%d-01-01", year+1))
		if year == 2026 {
			period.To = day("2026-11-19")
		}
		seed(b, in, home, period)
		seed(b, in, neighbour, period)
		at := time.Date(year+1, 6, 1, 0, 0, 0, 0, time.UTC)
		if year == 2026 {
			at = now
		}
		gr, _, err := authz.Decide(caller(alpha), authz.Request{EAN: home, Purpose: meter.EnergyManagement, Days: period, Fields: []meter.FieldCode{1, 2, 3, 4, 6, 7}}, f, profile(), at)
		if err != nil {
			b.Fatal(err)
		}
		if len(gr.Items()) != 6 {
			b.Fatal(year, gr.Items())
		}
		grants = append(grants, gr)
	}
	if _, err := d.Open(b, migrations.RoleOwner).ExecContext(b.Context(), `ANALYZE sealed_block, data_key`); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		grants []authz.Grant
	}{{"5 years", grants}, {"2 years", grants[3:]}, {"a year", grants[4:]}} {
		b.Run(c.name, func(b *testing.B) {
			n := 0
			for b.Loop() {
				runs, err := g.Stored(b.Context(), c.grants)
				if err != nil {
					b.Fatal(err)
				}
				n = 0
				for _, r := range runs {
					n += r.Days.Len()
				}
			}
			b.ReportMetric(float64(n), "days")
		})
	}
	b.Run("a year of blocks", func(b *testing.B) {
		for b.Loop() {
			if _, blocks, err := g.Blocks(b.Context(), grants[4]); err != nil || len(blocks) == 0 {
				b.Fatal(err)
			}
		}
	})
}
