package postgres_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"

	"kluis/auditlog/leaf"
	"kluis/authz"
	"kluis/internal/audit"
	"kluis/internal/canonical"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

var supervisor = authz.Actor{Kind: authz.ByEmployee, Name: "https://idp.example#kim"}

// unsignedRecord is a supplier record as it is stored, but for the signature.
func unsignedRecord(s *authz.Supplier) []byte {
	w := canonical.New("kluis/sealed", 1)
	w.Fixed(make([]byte, 8))
	w.Bytes(s.Payload())
	w.Fixed(make([]byte, 64))
	return w.Encoded()
}

func registered(g meter.GLN) *authz.Supplier {
	return must(authz.NewSupplier(nil, authz.SupplierFacts{GLN: g, Name: "Alpha", Scopes: []string{"readings:read"}},
		authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, now))
}

// The gateway's role stores the next version of a supplier's record, if an
// employee made it, and nothing else.
func TestGatewayStoresSuspensionsOnly(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	owner, role := d.Open(t, migrations.RoleOwner), d.Open(t, migrations.RoleGateway)
	first := registered(alpha)
	other := registered(beta)
	for _, s := range []*authz.Supplier{first, other} {
		if err := registrar(t, d).StoreSupplier(t.Context(), s, unsignedRecord(s)); err != nil {
			t.Fatal(err)
		}
	}
	insert := func(g meter.GLN, version int64, record []byte) error {
		_, err := role.ExecContext(t.Context(), `INSERT INTO supplier (gln, version, record, sealed_at) VALUES ($1, $2, $3, now())`, g.Int64(), version, record)
		return err
	}
	suspended := must(authz.Suspend(first, true, supervisor, now.Add(time.Second)))
	resumed := must(authz.Suspend(suspended, false, supervisor, now.Add(2*time.Second)))
	byRegistrar := must(authz.Suspend(first, true, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, now.Add(time.Second)))
	late := must(authz.Suspend(first, true, supervisor, now.Add(time.Minute)))
	onOther := must(authz.Suspend(other, true, supervisor, now.Add(time.Second)))
	short := unsignedRecord(suspended)[:29+75]
	for name, c := range map[string]struct {
		gln     meter.GLN
		version int64
		record  []byte
	}{
		"the registrar's":         {alpha, 2, unsignedRecord(byRegistrar)},
		"another number":          {alpha, 3, unsignedRecord(suspended)},
		"the last number":         {alpha, 1<<63 - 1, unsignedRecord(suspended)},
		"another supplier":        {beta, 2, unsignedRecord(suspended)},
		"one without a record":    {must(meter.ParseGLN("8712345600037")), 2, unsignedRecord(suspended)},
		"one that is not next":    {alpha, 3, unsignedRecord(resumed)},
		"the first again, as two": {alpha, 2, unsignedRecord(first)},
		"cut off":                 {alpha, 2, short},
		"nothing":                 {alpha, 2, []byte{0}},
		"a first version":         {must(meter.ParseGLN("8712345600037")), 1, unsignedRecord(first)},
	} {
		var refused *pq.Error
		if err := insert(c.gln, c.version, c.record); !errors.As(err, &refused) || refused.Code != "23514" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := insert(alpha, 2, unsignedRecord(suspended)); err != nil {
		t.Fatal(err)
	}
	// Kept back, and stored on top of what came in between.
	var refused *pq.Error
	if err := insert(alpha, 3, unsignedRecord(late)); !errors.As(err, &refused) || refused.Code != "23514" {
		t.Errorf("one kept back: %v", err)
	}
	if err := insert(alpha, 3, unsignedRecord(resumed)); err != nil {
		t.Error(err)
	}
	if err := insert(beta, 2, unsignedRecord(onOther)); err != nil {
		t.Error(err)
	}
	if got := value(t, owner, `SELECT string_agg(gln % 100 || ' ' || version, ',' ORDER BY gln, version) FROM supplier`); strings.Count(got, ",") != 4 {
		t.Errorf("stored %s", got)
	}
}

// A step comes with its record, or not at all.
func TestStoreSupplier(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	owner, g := d.Open(t, migrations.RoleOwner), gateway(t, d)
	first := registered(alpha)
	if r, err := g.Registered(t.Context(), alpha); r != nil || err != nil {
		t.Errorf("before: %+v, %v", r, err)
	}
	if list, err := g.Register(t.Context()); len(list) != 0 || err != nil {
		t.Errorf("before: %+v, %v", list, err)
	}
	if err := registrar(t, d).StoreSupplier(t.Context(), first, unsignedRecord(first)); err != nil {
		t.Fatal(err)
	}
	suspended := must(authz.Suspend(first, true, supervisor, now.Add(time.Second)))
	taken := recordOf(suspended)
	if err := g.StoreSupplier(t.Context(), suspended, unsignedRecord(suspended), taken); err != nil {
		t.Fatal(err)
	}
	const both = `SELECT (SELECT count(*) FROM supplier) || ' ' || (SELECT count(*) FROM access_log)`
	again := must(authz.Suspend(suspended, false, supervisor, now.Add(2*time.Second)))
	for name, err := range map[string]error{
		"the version": g.StoreSupplier(t.Context(), suspended, unsignedRecord(suspended), recordOf(suspended)),
		"the record":  g.StoreSupplier(t.Context(), again, unsignedRecord(again), taken),
	} {
		if !errors.Is(err, postgres.ErrConflict) {
			t.Errorf("%s: %v, want ErrConflict", name, err)
		}
	}
	broken := recordOf(again)
	broken.Employee = ""
	if err := g.StoreSupplier(t.Context(), again, unsignedRecord(again), broken); err == nil {
		t.Error("a record that is none")
	}
	if got := value(t, owner, both); got != "2 1" {
		t.Errorf("stored %s", got)
	}
	if r, err := g.Registered(t.Context(), alpha); err != nil || r.GLN != alpha || r.Version != 2 || string(r.Sealed) != string(unsignedRecord(suspended)) {
		t.Errorf("%+v, %v", r, err)
	}

	// The auditor finds the record that came with the version.
	a, err := postgres.NewAuditor(t.Context(), config(d, migrations.RoleAuditor))
	a = closing(t, a, err)
	rows, err := a.SuppliersAfter(t.Context(), 0, 0, 10)
	if err != nil || len(rows) != 2 || rows[1].Key != (leaf.Key{Kind: leaf.Supplier, Number: alpha.Int64(), Version: 2}) || string(rows[1].Content) != string(unsignedRecord(suspended)) {
		t.Errorf("%+v, %v", rows, err)
	}
	if rows, err := a.SuppliersAfter(t.Context(), alpha.Int64(), 1, 10); len(rows) != 1 || err != nil {
		t.Errorf("%+v, %v", rows, err)
	}
	with, err := a.RecordsWithSupplier(t.Context(), []leaf.Key{rows[0].Key, rows[1].Key, {Kind: leaf.Supplier, Number: beta.Int64(), Version: 1}})
	if err != nil || len(with) != 3 || len(with[0]) != 0 || len(with[1]) != 1 || len(with[2]) != 0 || with[1][0].ID != taken.InteractionID || with[1][0].Number != 0 {
		t.Errorf("%+v, %v", with, err)
	}
}

// The register lists the newest version of each, along the index.
func TestRegister(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	owner, g := d.Open(t, migrations.RoleOwner), gateway(t, d)
	exec := func(stmt string, args ...any) {
		t.Helper()
		if _, err := owner.ExecContext(t.Context(), stmt, args...); err != nil {
			t.Fatal(err)
		}
	}
	store := func(g meter.GLN, versions int) {
		t.Helper()
		exec(`INSERT INTO supplier (gln, version, record, sealed_at) SELECT $1, v, convert_to('version ' || v, 'UTF8'), now() FROM generate_series(1, $2) v`, g.Int64(), versions)
	}
	store(beta, 40)
	store(alpha, 1)
	exec(`INSERT INTO supplier (gln, version, record, sealed_at) VALUES (1, 1, 'x', now())`) // no GLN
	list, err := g.Register(t.Context())
	if err != nil || len(list) != 2 || list[0].GLN != alpha || list[0].Version != 1 || list[1].GLN != beta || list[1].Version != 40 || string(list[1].Sealed) != "version 40" {
		t.Errorf("%+v, %v", list, err)
	}

	midnight := now.Truncate(time.Hour).Add(-5 * time.Hour)
	hour := func(gln meter.GLN, employee string, at time.Time, given, refused, failed int) {
		t.Helper()
		exec(`INSERT INTO access_hour (gln, employee, at, requests, given, refused, failed, points, off_hours, last_at) VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 0, $8)`,
			gln.Int64(), employee, at, given+refused+failed, given, refused, failed, at.Add(90*time.Second))
	}
	hour(alpha, "", midnight.Add(-time.Hour), 100, 0, 0) // yesterday
	hour(alpha, "", midnight, 5, 2, 1)
	hour(alpha, "", midnight.Add(2*time.Hour), 1, 1, 0)
	hour(alpha, "kim", midnight.Add(3*time.Hour), 9, 9, 9)
	hour(beta, "", midnight.Add(-30*time.Hour), 7, 0, 0)
	third := must(meter.ParseGLN("8712345600037"))
	got, err := g.Usage(t.Context(), []meter.GLN{alpha, beta, third}, midnight)
	if err != nil || len(got) != 3 ||
		got[alpha] != (postgres.Usage{Requests: 10, Given: 6, Refused: 3, Failed: 1, LastAt: midnight.Add(2*time.Hour + 90*time.Second).UTC()}) ||
		got[beta] != (postgres.Usage{LastAt: midnight.Add(-30*time.Hour + 90*time.Second).UTC()}) || got[third] != (postgres.Usage{}) {
		t.Errorf("%+v, %v", got, err)
	}

	if size, note, err := g.LogHead(t.Context()); size != 0 || note != nil || err != nil {
		t.Errorf("%d %q %v", size, note, err)
	}
	exec(`INSERT INTO audit_checkpoint (size, note) VALUES (7, 'seven'), (12, 'twelve')`)
	if size, note, err := g.LogHead(t.Context()); size != 12 || string(note) != "twelve" || err != nil {
		t.Errorf("%d %q %v", size, note, err)
	}

	// Ten thousand versions of one, and a year of hours: none is walked.
	exec(`INSERT INTO supplier (gln, version, record, sealed_at) SELECT 2 + n % 40, n, repeat('x', 600)::bytea, now() FROM generate_series(1, 10000) n`)
	exec(`INSERT INTO access_hour (gln, employee, at, requests, given, refused, failed, points, off_hours, last_at)
		SELECT 2 + n % 3, '', '2020-01-01Z'::timestamptz + n * INTERVAL '1 hour', 1, 1, 0, 0, 0, 0, now() FROM generate_series(1, 9000) n`)
	exec(`ANALYZE`)
	for name, c := range map[string]struct{ query, types, args string }{
		"register": {postgres.QueryRegister, "", ""},
		"usage":    {postgres.QueryUsage, "bigint[], timestamptz", "'{2,3,4}', '2021-01-05Z'"},
		"with":     {postgres.QueryWithSupplier, "bigint[], bigint[]", "'{2,3}', '{40,1}'"},
	} {
		func() {
			conn, err := owner.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			prepare, execute := "PREPARE q AS ", "EXECUTE q"
			if c.types != "" {
				prepare, execute = fmt.Sprintf("PREPARE q (%s) AS ", c.types), fmt.Sprintf("EXECUTE q (%s)", c.args)
			}
			for _, s := range []string{`SET enable_seqscan = off`, `SET plan_cache_mode = force_generic_plan`, `DEALLOCATE ALL`, prepare + c.query} {
				if _, err := conn.ExecContext(t.Context(), s); err != nil {
					t.Fatal(name, err)
				}
			}
			if plan := explain(t, conn.QueryContext, "EXPLAIN (COSTS OFF) "+execute); strings.Contains(plan, "Seq Scan on") || strings.Contains(plan, "Sort Key: supplier") {
				t.Errorf("%s:\n%s", name, plan)
			}
		}()
	}
}

// recordOf is the access record of the step that made a version.
func recordOf(s *authz.Supplier) audit.Record {
	return audit.Record{
		InteractionID: uuid.New(), At: now, Operation: audit.SupplierStep, Supplier: beta, Employee: s.Actor().Name, Reason: "ticket 1",
		Target: s.GLN(), Suspend: s.Suspended(), TargetVersion: s.Version(), TargetDigest: s.Digest(), Outcome: audit.Given,
	}
}
