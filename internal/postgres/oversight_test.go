package postgres_test

import (
	"cmp"
	"flag"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/auditlog/leaf"
	"kluis/auditlog/oversight"
	"kluis/internal/audit"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

// TestOversight: what is counted in one transaction with leaves adds up, an
// employee's metering point once a day; and is read back by party and hour.
func TestOversight(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	a := must(postgres.NewAuditor(t.Context(), postgres.Config{DSN: d.URL(migrations.RoleAuditor)}))
	t.Cleanup(func() { _ = a.Close() })
	g := must(postgres.NewGateway(t.Context(), postgres.Config{DSN: d.URL(migrations.RoleGateway)}))
	t.Cleanup(func() { _ = g.Close() })
	zone := profile().Location()
	rules := oversight.Rules{Zone: zone, Working: oversight.DefaultHours()}
	if err := rules.Check(); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 20, 23, 30, 0, 0, zone)
	page := func(records ...audit.Record) *oversight.Tally {
		tally := oversight.NewTally(rules)
		for i := range records {
			tally.Add(&records[i], at.Add(24*time.Hour))
		}
		return tally
	}
	read := func(n int, e meter.EAN, at time.Time, o audit.Outcome) audit.Record {
		return audit.Record{Supplier: gln(n), Operation: audit.Readings, EAN: e, At: at, Outcome: o}
	}
	look := func(e meter.EAN, at time.Time) audit.Record {
		return audit.Record{Supplier: gln(9), Employee: "jan", Operation: audit.Consents, EAN: e, At: at, Outcome: audit.Given}
	}
	search := func(id byte, at time.Time, eans ...meter.EAN) (out []audit.Record) {
		for _, e := range eans {
			out = append(out, audit.Record{InteractionID: [16]byte{id}, Supplier: gln(9), Employee: "piet", Operation: audit.Find, EAN: e, At: at, Outcome: audit.Given})
		}
		return out
	}
	size := int64(0)
	add := func(tally *oversight.Tally, index int64) error {
		key := leaf.Key{Kind: leaf.Access, ID: [16]byte{byte(index), byte(index >> 8), 1}}
		return a.Append(t.Context(), index, []leaf.Key{key}, index*2, nil, tally, leaf.Place{Key: leaf.Key{Kind: leaf.Access}})
	}
	for _, tally := range []*oversight.Tally{
		page(read(1, ean(1), at, audit.Given), read(1, ean(2), at, audit.NoRelation), read(2, ean(1), at, audit.Failed), look(ean(1), at), look(ean(1), at)),
		page(read(1, ean(1), at.Add(10*time.Minute), audit.Given), look(ean(2), at), look(ean(1), at)),
		page(append(search(1, at, ean(1), ean(2), ean(3)), append(search(2, at, meter.EAN{}), look(ean(3), at))...)...),
		page(search(3, at, ean(3), ean(4))...),
		page(look(ean(1), at.Add(time.Hour)), read(1, ean(1), at.Add(time.Hour), audit.Given)), // the next day
		nil,
	} {
		if err := add(tally, size); err != nil {
			t.Fatal(err)
		}
		// Of a row that is logged already nothing counts: it is all or nothing.
		if err := add(page(read(1, ean(3), at, audit.Given)), size); err == nil {
			t.Fatal("logged twice")
		}
		size++
	}
	day := meter.DayOf(at, zone)
	o := must(g.Overview(t.Context(), zone, meter.DayRange{From: day, To: day + 1}))
	want := oversight.Overview{
		CountedAt: at.Add(time.Hour).UTC(),
		Parties: []oversight.Sum{
			{Party: oversight.Party{GLN: gln(1)}, Requests: 3, Refused: 1, Points: 3},
			{Party: oversight.Party{GLN: gln(2)}, Requests: 1, Points: 1},
			{Party: oversight.Party{GLN: gln(9), Employee: "jan"}, Requests: 5, OffHours: 5, Points: 3},
			{Party: oversight.Party{GLN: gln(9), Employee: "piet"}, Requests: 6, OffHours: 6},
		},
		Hours: []oversight.HourSum{{At: at.Add(-30 * time.Minute).UTC(), Requests: 15, Refused: 1}},
	}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("%+v\nwant %+v", o, want)
	}
	both := must(g.Overview(t.Context(), zone, meter.DayRange{From: day, To: day + 2}))
	if len(both.Hours) != 2 || both.Parties[2].Points != 4 || both.Parties[0].Requests != 4 {
		t.Errorf("of two days: %+v", both)
	}
	// Searches are counted apart, and what they told of, each metering point once.
	var searches int64
	for _, h := range must(a.Hours(t.Context(), at.Add(-time.Hour))) {
		if h.Searches > 0 && (h.Employee != "piet" || h.Points != 0) {
			t.Errorf("%+v", h)
		}
		searches += h.Searches
	}
	breadths := must(a.Breadths(t.Context(), day))
	slices.SortFunc(breadths, func(a, b oversight.Breadth) int {
		return cmp.Or(strings.Compare(a.Employee, b.Employee), cmp.Compare(a.Day, b.Day))
	})
	if want := []oversight.Breadth{{Employee: "jan", Day: day, Points: 3}, {Employee: "jan", Day: day + 1, Points: 1}, {Employee: "piet", Day: day, Found: 4}}; searches != 3 || !slices.Equal(breadths, want) {
		t.Errorf("%d searches, %+v", searches, breadths)
	}

	// The same again has the new count, and there is one of it.
	u := oversight.Unusual{Kind: oversight.Burst, Party: oversight.Party{GLN: gln(1)}, From: at.Truncate(time.Hour).UTC(), To: at.Truncate(time.Hour).Add(time.Hour).UTC(), Count: 7, Usual: 1}
	for range 2 {
		u.Count++
		if err := a.AddUnusual(t.Context(), []oversight.Unusual{u}); err != nil {
			t.Fatal(err)
		}
	}
	if o = must(g.Overview(t.Context(), zone, meter.DayRange{From: day, To: day + 1})); !reflect.DeepEqual(o.Unusual, []oversight.Unusual{u}) {
		t.Errorf("%+v", o.Unusual)
	}
	for since, want := range map[time.Time]int64{u.To.Add(-time.Minute): 1, u.To: 0} {
		if n := must(a.CountUnusual(t.Context(), since)); n[oversight.Burst] != want {
			t.Errorf("since %s: %v", since, n)
		}
	}

	// Checks: those of what is new follow a whole one, whose findings are no more
	// once another finds nothing.
	check := func(want oversight.Checks, results ...oversight.Result) {
		t.Helper()
		for _, r := range results {
			if err := a.AddResult(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		got := must(a.Checks(t.Context()))
		if got.Newest.IsZero() || got.Whole.IsZero() != want.Whole.IsZero() || got.Whole.After(got.Newest) {
			t.Errorf("%+v", got)
		}
		want.Newest, want.Whole = got.Newest, got.Whole
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	ever := time.Unix(1, 0)
	missing, changed := oversight.Count{Code: "row-missing", Count: 2}, oversight.Count{Code: "row-changed", Count: 1}
	check(oversight.Checks{Size: 10, Next: 10}, oversight.Result{Size: 10})
	check(oversight.Checks{Size: 20, Next: 20, Findings: []oversight.Count{missing}}, oversight.Result{First: 10, Size: 20, Findings: []oversight.Count{missing}})
	check(oversight.Checks{Size: 30, Next: 30, Findings: []oversight.Count{missing}}, oversight.Result{First: 20, Size: 30})
	check(oversight.Checks{Size: 35, Next: 30, Whole: ever, Findings: []oversight.Count{changed, missing}}, oversight.Result{Whole: true, Size: 35, Findings: []oversight.Count{changed, missing}})
	check(oversight.Checks{Size: 40, Next: 40, Whole: ever, Findings: []oversight.Count{changed, {Code: "row-missing", Count: 4}}}, oversight.Result{First: 30, Size: 40, Findings: []oversight.Count{missing}})
	check(oversight.Checks{Size: 40, Next: 40, Whole: ever}, oversight.Result{Whole: true, Size: 40})
}

// TestOversightPlans: with hours of hundreds of parties for months, nothing that
// is asked often walks through all of them.
func TestOversightPlans(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	owner := d.Open(t, migrations.RoleOwner)
	c := must(owner.Conn(t.Context()))
	t.Cleanup(func() { _ = c.Close() })
	exec := func(stmt string, args ...any) {
		t.Helper()
		if _, err := c.ExecContext(t.Context(), stmt, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(`INSERT INTO access_hour (gln, employee, at, requests, given, refused, failed, points, off_hours, last_at) SELECT p, CASE WHEN p % 3 = 0 THEN '' ELSE 'e' || p END, TIMESTAMPTZ '2026-01-01' + h * INTERVAL '1 hour', 2, 1, 1, 0, 1, 0, now()
		FROM generate_series(1, 100) p, generate_series(1, 600) h`)
	exec(`INSERT INTO employee_day SELECT 'e' || p, DATE '2026-01-01' + d, 5 FROM generate_series(1, 100) p, generate_series(1, 90) d`)
	exec(`INSERT INTO access_unusual SELECT 1, p, '', TIMESTAMPTZ '2026-01-01' + h * INTERVAL '1 hour', TIMESTAMPTZ '2026-01-01' + (h + 1) * INTERVAL '1 hour', 5, 1
		FROM generate_series(1, 20) p, generate_series(1, 600) h`)
	exec(`INSERT INTO audit_result SELECT TIMESTAMPTZ '2026-01-01' + n * INTERVAL '5 minutes', n = 1, n, n + 1, CASE WHEN n = 7 THEN '[{"code":"x","count":1}]' ELSE '[]' END::jsonb FROM generate_series(1, 20000) n`)
	exec(`ANALYZE`)
	for name, q := range map[string]struct{ query, types, args, want string }{
		"counting": {postgres.ExecHours, "bigint[], text[], timestamptz[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], timestamptz[]",
			"'{1}', '{e}', '{2026-01-02}', '{1}', '{1}', '{0}', '{0}', '{1}', '{0}', '{0}', '{2026-01-02}'", "Conflict Arbiter Indexes: access_hour_pkey"},
		"looks":            {postgres.ExecLooks, "bigint[], int[], text[], boolean[]", "'{1}', '{20454}', '{e}', '{t}'", "Conflict Arbiter Indexes: employee_day_pkey"},
		"what was counted": {postgres.QueryHours, "timestamptz", "'2026-01-25'", "access_hour_by_time"},
		"of some parties":  {postgres.QueryHoursOf, "bigint[], text[], timestamptz", "'{1,2}', '{e1,e2}', '2026-01-20'", "access_hour_pkey"},
		"breadth":          {postgres.QueryBreadth, "int", "20540", "employee_day_by_day"},
		"number unusual":   {postgres.QueryUnusualCount, "timestamptz", "'2026-01-25'", "access_unusual_pkey"},
		"overview":         {postgres.QueryOverview, "timestamptz, timestamptz", "'2026-01-24', '2026-01-25'", "access_hour_by_time"},
		"breadth of days":  {postgres.QueryBreadthOf, "int, int", "20540, 20541", "employee_day_by_day"},
		"unusual":          {postgres.QueryUnusual, "timestamptz, timestamptz", "'2026-01-24', '2026-01-25'", "access_unusual_pkey"},
		"newest counted":   {postgres.QueryCounted, "", "", "Index Only Scan Backward using access_hour_by_time"},
		"newest whole":     {postgres.QueryWhole, "", "", "audit_result_whole"},
		"newest check":     {postgres.QueryNewest, "", "", "audit_result_pkey"},
		"findings":         {postgres.QueryFound, "timestamptz", "'2026-01-20'", "audit_result_found"},
	} {
		for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
			exec(`SET plan_cache_mode = ` + mode)
			exec(`DEALLOCATE ALL`)
			prepare, execute := `PREPARE q AS `+q.query, `EXECUTE q`
			if q.types != "" {
				prepare, execute = `PREPARE q (`+q.types+`) AS `+q.query, `EXECUTE q (`+q.args+`)`
			}
			exec(prepare)
			// As all of the gateway's and the auditor's connections are.
			exec(`SET enable_seqscan = off`)
			plan := explain(t, c.QueryContext, `EXPLAIN (COSTS OFF) `+execute)
			if !strings.Contains(plan, q.want) || strings.Contains(plan, "Seq Scan") {
				t.Errorf("%s (%s):\n%s", name, mode, plan)
			}
		}
	}
}

var hours = flag.Int("hours", 0, "rows of TestOversightMany, of 500 parties; 0: not run")

// TestOversightMany measures: what is asked of the counts takes no longer with
// months of them.
//
//	go test ./internal/postgres -run TestOversightMany -v -hours 1100000
func TestOversightMany(t *testing.T) {
	if *hours == 0 {
		t.Skip("say how many: -hours 1100000")
	}
	d := pgtest.New(t)
	owner := d.Open(t, migrations.RoleOwner)
	for _, s := range []string{
		fmt.Sprintf(`INSERT INTO access_hour (gln, employee, at, requests, given, refused, failed, points, off_hours, last_at) SELECT %d, 'e' || p, TIMESTAMPTZ '2026-01-01' + h * INTERVAL '1 hour', 2, 1, 1, 0, 1, 0, now() FROM generate_series(1, 500) p, generate_series(1, %d) h`, gln(9).Int64(), *hours/500),
		`INSERT INTO employee_day SELECT 'e' || p, DATE '2026-01-01' + d, 5 FROM generate_series(1, 500) p, generate_series(1, 92) d`,
		`ANALYZE`,
	} {
		if _, err := owner.ExecContext(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	a := must(postgres.NewAuditor(t.Context(), postgres.Config{DSN: d.URL(migrations.RoleAuditor)}))
	t.Cleanup(func() { _ = a.Close() })
	g := must(postgres.NewGateway(t.Context(), postgres.Config{DSN: d.URL(migrations.RoleGateway)}))
	t.Cleanup(func() { _ = g.Close() })
	zone := profile().Location()
	end := meter.DayOf(time.Date(2026, 1, 1, 0, 0, 0, 0, zone).Add(time.Duration(*hours/500)*time.Hour), zone)
	measure := func(what string, f func()) {
		f() // from the disk
		began := time.Now()
		f()
		t.Logf("%s: %s", what, time.Since(began).Round(time.Millisecond))
	}
	for _, n := range []meter.Day{1, 7, 31} {
		measure(fmt.Sprintf("overview of %d days", int(n)), func() {
			must(g.Overview(t.Context(), zone, meter.DayRange{From: end - n, To: end}))
		})
	}
	measure("hours of a day", func() { must(a.Hours(t.Context(), (end - 1).Start(zone))) })
	measure("four weeks of two parties", func() {
		must(a.HoursOf(t.Context(), []oversight.Party{{GLN: gln(9), Employee: "e7"}, {GLN: gln(9), Employee: "e9"}}, (end - 29).Start(zone)))
	})
}
