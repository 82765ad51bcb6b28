package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
	"kluis/openapi/client"
)

func (w *world) oversightOf(r reply) client.Oversight {
	w.t.Helper()
	var o client.Oversight
	if err := json.Unmarshal(r.body, &o); err != nil || r.status != 200 {
		w.t.Fatalf("%d %s: %v", r.status, r.body, err)
	}
	return o
}

// TestOversight: supervisors and auditors see who asked for how much, what is
// unusual, and what was checked when; no metering point; and that they looked is
// recorded.
func TestOversight(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	zone := w.profile.Location()
	day := meter.DayOf(time.Now(), zone)
	noon := day.Start(zone).Add(12 * time.Hour).Truncate(time.Hour).UTC()
	employee := stafftest.Subject("agent-" + w.a.gln.String())
	errand := authz.Errand{Kind: authz.ErrandOversee, Reason: "weekly look"}
	token := w.staffToken("super-1", authz.Supervisor, errand)
	hour := func(g meter.GLN, who string, at time.Time, requests, refused, points, off int64) {
		w.sql(`INSERT INTO access_hour (gln, employee, at, requests, given, refused, failed, points, off_hours, last_at) VALUES ($1, $2, $3, $4, $5, $6, 0, $7, $8, $3)`,
			g.Int64(), who, at, requests, requests-refused, refused, points, off)
	}
	hour(w.a.gln, "", noon, 70_000_000, 5, 65, 0)
	hour(w.a.gln, "", noon.Add(-8*24*time.Hour), 1, 0, 1, 0)
	hour(w.portal.gln, employee, noon, 90_000_000, 0, 80, 12)
	hour(w.portal.gln, employee, noon.Add(-24*time.Hour), 10, 0, 10, 0)
	for _, d := range []meter.Day{day, day - 1, day - 7} {
		w.sql(`INSERT INTO employee_day (employee, day, points) VALUES ($1, DATE '1970-01-01' + $2::int, $3)`, employee, int64(d), int64(d-day)+30)
	}
	w.sql(`INSERT INTO access_unusual (kind, gln, employee, from_at, to_at, count, usual) VALUES (2, $1, $2, $3, $4, 80, 12)`, w.portal.gln.Int64(), employee, day.Start(zone), (day + 1).Start(zone))
	w.tap.taken()

	r := w.asStaff(token, "/v1/oversight")
	o := w.oversightOf(r)
	if r.header.Get("Cache-Control") != "no-store" || o.From.String() != (day-6).String() || o.To.String() != (day+1).String() || o.TimeZone != "Europe/Amsterdam" ||
		o.CountedAt == nil || o.CountedAt.Before(noon) || time.Since(o.At) > time.Minute {
		t.Errorf("%s", r.body)
	}
	var parties []client.OversightParty
	for _, p := range o.Parties {
		if p.Name == w.a.gln.String() || p.Name == employee {
			parties = append(parties, p)
		}
	}
	if want := []client.OversightParty{
		{Kind: client.PartyEmployee, Name: employee, Requests: 90_000_010, MeteringPoints: 59, OffHours: 12},
		{Kind: client.PartySupplier, Name: w.a.gln.String(), Requests: 70_000_000, Refused: 5, MeteringPoints: 65},
	}; !slices.Equal(parties, want) {
		t.Errorf("%+v", parties)
	}
	if i := slices.IndexFunc(o.Unusual, func(u client.OversightUnusual) bool { return u.Party == employee }); i < 0 || o.Unusual[i] != (client.OversightUnusual{
		Kind: client.UnusualBreadth, Party: employee, PartyKind: client.PartyEmployee, From: day.Start(zone).UTC(), To: (day + 1).Start(zone).UTC(), Count: 80, Usual: 12,
	}) {
		t.Errorf("%+v", o.Unusual)
	}
	if i := slices.IndexFunc(o.Hours, func(h client.OversightHour) bool { return h.At.Equal(noon) }); i < 0 || o.Hours[i].Requests < 160_000_000 || o.Hours[i].Refused < 5 {
		t.Errorf("%+v", o.Hours)
	}
	if got := w.lastRecord(); got.Operation != audit.Oversee || got.Outcome != audit.Given || got.Employee != stafftest.Subject("super-1") || got.Reason != "weekly look" || !got.EAN.IsZero() {
		t.Errorf("%+v", got)
	}
	if calls := w.tap.taken(); !strings.HasSuffix(calls, "record") {
		t.Errorf("calls %q", calls)
	}

	// Other days; an auditor sees the same.
	other := w.oversightOf(w.asStaff(w.staffToken("dpo", authz.Auditor, errand), "/v1/oversight?from="+(day-8).String()+"&to="+(day-7).String()))
	if i := slices.IndexFunc(other.Parties, func(p client.OversightParty) bool { return p.Name == w.a.gln.String() }); i < 0 || other.Parties[i].Requests != 1 {
		t.Errorf("%+v", other.Parties)
	}
	for _, bad := range []string{"from=2026-03-01", "to=2026-03-01", "from=2026-03-02&to=2026-03-02", "from=2026-03-02&to=2026-03-01", "from=2026-03-01&to=2026-04-02", "from=x&to=2026-03-01", "days=7"} {
		if r := w.asStaff(token, "/v1/oversight?"+bad); r.status != 400 {
			t.Errorf("%s: %d %s", bad, r.status, r.body)
		}
	}
	before := len(w.records())
	for name, token := range map[string]string{
		"an agent":         w.staffToken("agent-17", authz.Agent, errand),
		"another errand":   w.staffToken("super-1", authz.Supervisor, authz.Errand{Kind: authz.ErrandView, EAN: w.ean(1), Reason: "x"}),
		"a supplier":       "",
		"auditor's errand": w.staffToken("dpo", authz.Auditor, authz.Errand{Kind: authz.ErrandView, EAN: w.ean(1), Reason: "x"}),
	} {
		r := w.asStaff(token, "/v1/oversight")
		if token == "" {
			r = w.get(w.a, "/v1/oversight")
		}
		if r.status != 403 || strings.Contains(string(r.body), employee) {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	if n := len(w.records()); n != before {
		t.Errorf("%d records of what was refused at the door", n-before)
	}
	if text := w.log.String(); strings.Contains(text, employee) || strings.Contains(text, "super-1") {
		t.Error("the log names an employee")
	}

	// What was checked, and no more.
	if o.Log.Result != client.LogNever || o.Log.CheckedAt != nil || o.Log.VerifiedAt != nil || o.Log.CheckedSize != 0 || len(o.Log.Findings) != 0 {
		t.Errorf("%+v", o.Log)
	}
	w.sql(`INSERT INTO audit_result (whole, first, size, findings) VALUES (false, 0, 12, '[]')`)
	if l := w.oversightOf(w.asStaff(token, "/v1/oversight")).Log; l.Result != client.LogOk || l.CheckedAt == nil || l.VerifiedAt != nil || l.CheckedSize != 12 {
		t.Errorf("%+v", l)
	}
	w.sql(`INSERT INTO audit_result (whole, first, size, findings) VALUES (true, 0, 14, '[{"code": "row-changed", "count": 3}]')`)
	if l := w.oversightOf(w.asStaff(token, "/v1/oversight")).Log; l.Result != client.LogFindings || l.VerifiedAt == nil || l.CheckedSize != 14 ||
		!slices.Equal(l.Findings, []client.OversightFinding{{Code: "row-changed", Count: 3}}) {
		t.Errorf("%+v", l)
	}
}
