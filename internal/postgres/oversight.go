package postgres

import (
	"context"
	"encoding/json"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"kluis/auditlog/oversight"
	"kluis/meter"
)

const (
	// Each row once: parts of one statement see no others' changes.
	execHours = `
		INSERT INTO access_hour (gln, employee, at, requests, given, refused, failed, points, searches, off_hours, last_at)
		SELECT * FROM unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::timestamptz[])
		ON CONFLICT (gln, employee, at) DO UPDATE SET
			requests = access_hour.requests + EXCLUDED.requests, given = access_hour.given + EXCLUDED.given,
			refused = access_hour.refused + EXCLUDED.refused, failed = access_hour.failed + EXCLUDED.failed,
			points = access_hour.points + EXCLUDED.points, searches = access_hour.searches + EXCLUDED.searches, off_hours = access_hour.off_hours + EXCLUDED.off_hours,
			last_at = greatest(access_hour.last_at, EXCLUDED.last_at)`
	execLooks = `
		WITH looked AS (
			INSERT INTO employee_point (ean, day, employee, found)
			SELECT k.ean, DATE '1970-01-01' + k.day, k.employee, k.found FROM unnest($1::bigint[], $2::int[], $3::text[], $4::boolean[]) AS k (ean, day, employee, found)
			ON CONFLICT DO NOTHING RETURNING employee, day, found
		)
		INSERT INTO employee_day (employee, day, points, found)
		SELECT employee, day, count(*) FILTER (WHERE NOT found), count(*) FILTER (WHERE found) FROM looked GROUP BY employee, day
		ON CONFLICT (employee, day) DO UPDATE SET points = employee_day.points + EXCLUDED.points, found = employee_day.found + EXCLUDED.found`
	hourColumns = `gln, employee, at, requests, given, refused, failed, points, searches, off_hours, last_at`
	queryHours  = `SELECT ` + hourColumns + ` FROM access_hour WHERE at >= $1 ORDER BY at, gln, employee`
	// One piece of the primary key for each party.
	queryHoursOf = `
		SELECT h.* FROM unnest($1::bigint[], $2::text[]) AS p (gln, employee)
		CROSS JOIN LATERAL (
			SELECT ` + hourColumns + ` FROM access_hour h WHERE h.gln = p.gln AND h.employee = p.employee AND h.at >= $3
		) h`
	queryBreadth = `SELECT employee, day - DATE '1970-01-01', points, found FROM employee_day WHERE day >= DATE '1970-01-01' + $1::int`
	execUnusual  = `
		INSERT INTO access_unusual (kind, gln, employee, from_at, to_at, count, usual)
		SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::bigint[], $7::bigint[])
		ON CONFLICT (from_at, kind, gln, employee) DO UPDATE SET count = EXCLUDED.count, usual = EXCLUDED.usual
		WHERE (access_unusual.count, access_unusual.usual) <> (EXCLUDED.count, EXCLUDED.usual)`
	queryUnusualCount = `SELECT kind, count(*) FROM access_unusual WHERE from_at >= $1::timestamptz - INTERVAL '2 days' AND to_at > $1 GROUP BY kind`

	// By party and by hour, in one walk.
	queryOverview = `
		SELECT gln, employee, at, sum(requests)::bigint, sum(refused)::bigint, sum(points)::bigint, sum(off_hours)::bigint
		FROM access_hour WHERE at >= $1 AND at < $2
		GROUP BY GROUPING SETS ((gln, employee), (at)) ORDER BY at NULLS FIRST, gln, employee`
	queryBreadthOf = `
		SELECT employee, sum(points)::bigint FROM employee_day
		WHERE day >= DATE '1970-01-01' + $1::int AND day < DATE '1970-01-01' + $2::int GROUP BY employee`
	queryUnusual = `
		SELECT kind, gln, employee, from_at, to_at, count, usual FROM access_unusual
		WHERE from_at >= $1::timestamptz - INTERVAL '2 days' AND to_at > $1 AND from_at < $2 ORDER BY from_at DESC, kind, gln, employee LIMIT 1000`
	// Of the newest hour that anything is counted of.
	queryCounted = `
		SELECT max(last_at) FROM access_hour WHERE at = (SELECT at FROM access_hour ORDER BY at DESC LIMIT 1)`
	queryWhole  = `SELECT at, whole, first, size, findings FROM audit_result WHERE whole ORDER BY at DESC LIMIT 1`
	queryNewest = `SELECT at, whole, first, size, findings FROM audit_result WHERE NOT whole ORDER BY at DESC LIMIT 1`
	queryFound  = `SELECT at, whole, first, size, findings FROM audit_result WHERE findings <> '[]' AND NOT whole AND at > $1 ORDER BY at`
)

// count adds a tally, in the transaction that logs its records.
func count(ctx context.Context, tx *sqlx.Tx, t *oversight.Tally) error {
	if t == nil {
		return nil
	}
	if hours := t.Hours(); len(hours) > 0 {
		n := len(hours)
		glns, employees, at, last := make([]int64, n), make([]string, n), make([]time.Time, n), make([]time.Time, n)
		var numbers [7][]int64
		for i, h := range hours {
			glns[i], employees[i], at[i], last[i] = h.GLN.Int64(), h.Employee, h.At, h.LastAt
			for j, v := range []int64{h.Requests, h.Given, h.Refused, h.Failed, h.Points, h.Searches, h.OffHours} {
				numbers[j] = append(numbers[j], v)
			}
		}
		if _, err := tx.ExecContext(ctx, execHours, pq.Array(glns), pq.Array(employees), pq.Array(at), pq.Array(numbers[0]), pq.Array(numbers[1]),
			pq.Array(numbers[2]), pq.Array(numbers[3]), pq.Array(numbers[4]), pq.Array(numbers[5]), pq.Array(numbers[6]), pq.Array(last)); err != nil {
			return err
		}
	}
	looks := t.Looks()
	if len(looks) == 0 {
		return nil
	}
	var eans, days []int64
	var employees []string
	var found []bool
	for _, l := range looks {
		eans, days, employees, found = append(eans, l.EAN.Int64()), append(days, int64(l.Day)), append(employees, l.Employee), append(found, l.Found)
	}
	_, err := tx.ExecContext(ctx, execLooks, pq.Array(eans), pq.Array(days), pq.Array(employees), pq.Array(found))
	return err
}

// Hours returns all parties' hours from a time on.
func (a *Auditor) Hours(ctx context.Context, since time.Time) ([]oversight.Hour, error) {
	return a.hours(ctx, queryHours, since)
}

// HoursOf returns the hours of some parties from a time on.
func (a *Auditor) HoursOf(ctx context.Context, parties []oversight.Party, since time.Time) ([]oversight.Hour, error) {
	glns, employees := make([]int64, len(parties)), make([]string, len(parties))
	for i, p := range parties {
		glns[i], employees[i] = p.GLN.Int64(), p.Employee
	}
	return a.hours(ctx, queryHoursOf, pq.Array(glns), pq.Array(employees), since)
}

func (a *Auditor) hours(ctx context.Context, query string, args ...any) ([]oversight.Hour, error) {
	var out []oversight.Hour
	err := a.each(ctx, "hours", query, func(r *sqlx.Rows) error {
		var h oversight.Hour
		var gln int64
		if err := r.Scan(&gln, &h.Employee, &h.At, &h.Requests, &h.Given, &h.Refused, &h.Failed, &h.Points, &h.Searches, &h.OffHours, &h.LastAt); err != nil {
			return err
		}
		var err error
		h.GLN, err = meter.GLNFromInt64(gln)
		out = append(out, h)
		return err
	}, args...)
	return out, err
}

// Breadths returns at how many metering points employees looked, and how many
// searches told them of, from a day on.
func (a *Auditor) Breadths(ctx context.Context, since meter.Day) ([]oversight.Breadth, error) {
	var out []oversight.Breadth
	err := a.each(ctx, "breadths", queryBreadth, func(r *sqlx.Rows) error {
		var b oversight.Breadth
		err := r.Scan(&b.Employee, &b.Day, &b.Points, &b.Found)
		out = append(out, b)
		return err
	}, int64(since))
	return out, err
}

// AddUnusual notes what is unusual; what was noted before gets the new count.
func (a *Auditor) AddUnusual(ctx context.Context, found []oversight.Unusual) error {
	if len(found) == 0 {
		return nil
	}
	var kinds, glns, counts, usual []int64
	var employees []string
	var from, to []time.Time
	for _, u := range found {
		kinds, glns, employees = append(kinds, int64(u.Kind)), append(glns, u.GLN.Int64()), append(employees, u.Employee)
		from, to, counts, usual = append(from, u.From), append(to, u.To), append(counts, u.Count), append(usual, u.Usual)
	}
	return a.transact(ctx, "what is unusual", func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, execUnusual, pq.Array(kinds), pq.Array(glns), pq.Array(employees), pq.Array(from), pq.Array(to), pq.Array(counts), pq.Array(usual))
		return err
	})
}

// CountUnusual counts by kind what is unusual of the time since.
func (a *Auditor) CountUnusual(ctx context.Context, since time.Time) (map[oversight.Kind]int64, error) {
	out := map[oversight.Kind]int64{}
	err := a.each(ctx, "count of what is unusual", queryUnusualCount, func(r *sqlx.Rows) error {
		var k oversight.Kind
		var n int64
		err := r.Scan(&k, &n)
		out[k] = n
		return err
	}, since)
	return out, err
}

// Forget removes counts from before the beginning of a local day, and results of
// checks from before then that found nothing; the newest of each sort stay.
func (a *Auditor) Forget(ctx context.Context, before time.Time, day meter.Day) error {
	return a.transact(ctx, "forget old counts", func(ctx context.Context, tx *sqlx.Tx) error {
		for query, arg := range map[string]any{
			`DELETE FROM access_hour WHERE at < $1`:                              before,
			`DELETE FROM access_unusual WHERE from_at < $1`:                      before,
			`DELETE FROM employee_point WHERE day < DATE '1970-01-01' + $1::int`: int64(day),
			`DELETE FROM employee_day WHERE day < DATE '1970-01-01' + $1::int`:   int64(day),
			`DELETE FROM audit_result r WHERE at < $1 AND findings = '[]' AND EXISTS (
				SELECT FROM audit_result n WHERE n.at > r.at AND n.whole = r.whole)`: before,
		} {
			if _, err := tx.ExecContext(ctx, query, arg); err != nil {
				return err
			}
		}
		return nil
	})
}

// AddResult notes what a check found. When is the database's to say.
func (a *Auditor) AddResult(ctx context.Context, r oversight.Result) error {
	findings := r.Findings
	if findings == nil {
		findings = []oversight.Count{}
	}
	raw, err := json.Marshal(findings)
	if err != nil {
		return err
	}
	return a.transact(ctx, "result of a check", func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO audit_result (whole, first, size, findings) VALUES ($1, $2, $3, $4)`, r.Whole, r.First, r.Size, string(raw))
		return err
	})
}

// Checks sums up what is known of the log.
func (a *Auditor) Checks(ctx context.Context) (oversight.Checks, error) { return a.checks(ctx) }

func (s *store) checks(ctx context.Context) (c oversight.Checks, err error) {
	results := func(query string, args ...any) (out []oversight.Result) {
		if err != nil {
			return nil
		}
		rows, failed := s.db.QueryxContext(ctx, query, args...)
		if err = failed; err != nil {
			return nil
		}
		defer rows.Close()
		for err == nil && rows.Next() {
			var r oversight.Result
			var findings []byte
			if err = rows.Scan(&r.At, &r.Whole, &r.First, &r.Size, &findings); err == nil {
				err = json.Unmarshal(findings, &r.Findings)
			}
			out = append(out, r)
		}
		if err == nil {
			err = rows.Err()
		}
		return out
	}
	whole, newest := results(queryWhole), results(queryNewest)
	counts := map[string]int64{}
	for _, r := range whole {
		c.Whole, c.Newest, c.Size = r.At.UTC(), r.At.UTC(), r.Size
	}
	for _, r := range newest {
		c.Size, c.Next = max(c.Size, r.Size), r.Size
		if r.At.After(c.Newest) {
			c.Newest = r.At.UTC()
		}
	}
	for _, r := range append(whole, results(queryFound, c.Whole)...) {
		for _, f := range r.Findings {
			if _, ok := counts[f.Code]; !ok {
				c.Findings = append(c.Findings, oversight.Count{Code: f.Code})
			}
			counts[f.Code] += f.Count
		}
	}
	for i := range c.Findings {
		c.Findings[i].Count = counts[c.Findings[i].Code]
	}
	return c, wrap(ctx, "results of checks", err)
}

// Overview returns what oversight has of the local days from and to before, which
// begin at the times.
func (g *Gateway) Overview(ctx context.Context, zone *time.Location, days meter.DayRange) (oversight.Overview, error) {
	const op = "oversight"
	var o oversight.Overview
	from, to := days.From.Start(zone), days.To.Start(zone)
	each := func(query string, scan func(*sqlx.Rows) error, args ...any) error {
		rows, err := g.db.QueryxContext(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := scan(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	}
	breadth := map[string]int64{}
	err := each(queryBreadthOf, func(r *sqlx.Rows) error {
		var employee string
		var n int64
		err := r.Scan(&employee, &n)
		breadth[employee] = n
		return err
	}, int64(days.From), int64(days.To))
	if err != nil {
		return o, wrap(ctx, op, err)
	}
	err = each(queryOverview, func(r *sqlx.Rows) error {
		var gln *int64
		var employee *string
		var at *time.Time
		var s oversight.Sum
		if err := r.Scan(&gln, &employee, &at, &s.Requests, &s.Refused, &s.Points, &s.OffHours); err != nil {
			return err
		}
		if gln == nil {
			o.Hours = append(o.Hours, oversight.HourSum{At: at.UTC(), Requests: s.Requests, Refused: s.Refused})
			return nil
		}
		var err error
		s.GLN, err = meter.GLNFromInt64(*gln)
		if s.Employee = *employee; s.Employee != "" {
			s.Points = breadth[s.Employee]
		}
		o.Parties = append(o.Parties, s)
		return err
	}, from, to)
	if err != nil {
		return o, wrap(ctx, op, err)
	}
	err = each(queryUnusual, func(r *sqlx.Rows) error {
		var u oversight.Unusual
		var gln int64
		if err := r.Scan(&u.Kind, &gln, &u.Employee, &u.From, &u.To, &u.Count, &u.Usual); err != nil {
			return err
		}
		var err error
		u.GLN, err = meter.GLNFromInt64(gln)
		u.From, u.To = u.From.UTC(), u.To.UTC()
		o.Unusual = append(o.Unusual, u)
		return err
	}, from, to)
	if err != nil {
		return o, wrap(ctx, op, err)
	}
	err = each(queryCounted, func(r *sqlx.Rows) error {
		var at *time.Time
		if err := r.Scan(&at); err != nil || at == nil {
			return err
		}
		o.CountedAt = at.UTC()
		return nil
	})
	if err != nil {
		return o, wrap(ctx, op, err)
	}
	o.Checks, err = g.checks(ctx)
	return o, err
}
