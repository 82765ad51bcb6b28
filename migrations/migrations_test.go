package migrations_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lib/pq"

	"kluis/internal/devpg"
	"kluis/internal/testing/pgtest"
	"kluis/migrations"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func column(t *testing.T, db *sql.DB, query string, args ...any) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEveryTableAndColumnHasAComment(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).Open(t, migrations.RoleOwner)
	const tables = `SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v', 'm')`
	if got := column(t, db, tables); len(got) < 9 {
		t.Fatalf("only the tables %v", got)
	}
	for _, name := range column(t, db, tables+` AND coalesce(obj_description(c.oid, 'pg_class'), '') = ''`) {
		t.Errorf("table %s has no comment", name)
	}
	for _, name := range column(t, db, `SELECT a.attrelid::regclass || '.' || a.attname
		FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v', 'm') AND a.attnum > 0 AND NOT a.attisdropped AND NOT c.relispartition
		  AND coalesce(col_description(a.attrelid, a.attnum), '') = ''`) {
		t.Errorf("column %s has no comment", name)
	}
}

// The EAN leads every unique key of the tables about metering points, so that
// they can be partitioned and distributed by it.
func TestTheMeteringPointLeadsEveryUniqueKey(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).Open(t, migrations.RoleOwner)
	got := column(t, db, `SELECT i.indexrelid::regclass::text FROM pg_index i
		JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'ean'
		WHERE n.nspname = 'public' AND i.indisunique AND i.indkey[0] <> a.attnum`)
	if len(got) != 0 {
		t.Errorf("not led by ean: %v", got)
	}
	if got := column(t, db, `SELECT conname FROM pg_constraint WHERE contype = 'f'`); len(got) != 0 {
		t.Errorf("foreign keys: %v", got)
	}
}

// TestPrivileges compares everything any role but the owner may do with the
// whole of what it should.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	want := []string{
		"kluis_auditor DELETE access_hour",
		"kluis_auditor DELETE access_unusual",
		"kluis_auditor DELETE audit_result",
		"kluis_auditor DELETE employee_day",
		"kluis_auditor DELETE employee_point",
		"kluis_auditor INSERT access_hour",
		"kluis_auditor INSERT access_unusual",
		"kluis_auditor INSERT audit_checkpoint (note, size)",
		"kluis_auditor INSERT audit_cursor",
		"kluis_auditor INSERT audit_hash",
		"kluis_auditor INSERT audit_leaf (id, index, kind, number, version)",
		"kluis_auditor INSERT audit_result (findings, first, size, whole)",
		"kluis_auditor INSERT audit_statement (boot_id, kind, sequence, statement)",
		"kluis_auditor INSERT employee_day",
		"kluis_auditor INSERT employee_point",
		"kluis_auditor INSERT journal_entry (boot_id, entry, sequence)",
		"kluis_auditor SELECT access_hour",
		"kluis_auditor SELECT access_log",
		"kluis_auditor SELECT access_unusual",
		"kluis_auditor SELECT audit_checkpoint",
		"kluis_auditor SELECT audit_cursor",
		"kluis_auditor SELECT audit_hash",
		"kluis_auditor SELECT audit_leaf",
		"kluis_auditor SELECT audit_result",
		"kluis_auditor SELECT audit_statement",
		"kluis_auditor SELECT control_entry",
		"kluis_auditor SELECT employee_day",
		"kluis_auditor SELECT employee_point",
		"kluis_auditor SELECT journal_entry",
		"kluis_auditor SELECT legal_file",
		"kluis_auditor SELECT market_profile",
		"kluis_auditor SELECT sealed_block (ciphertext, day, ean, field, version)",
		"kluis_auditor SELECT sealed_identity (ciphertext, day, ean, field, version)",
		"kluis_auditor SELECT supplier",
		"kluis_auditor UPDATE access_hour (failed, given, last_at, off_hours, points, refused, requests, searches)",
		"kluis_auditor UPDATE access_unusual (count, usual)",
		"kluis_auditor UPDATE audit_cursor (position)",
		"kluis_auditor UPDATE employee_day (found, points)",
		"kluis_custodian DELETE data_key",
		"kluis_custodian DELETE identity_index",
		"kluis_custodian INSERT control_entry (entry, head, sequence)",
		"kluis_custodian INSERT control_heartbeat (head)",
		"kluis_custodian INSERT data_key (class, ean, kek_epoch, key_id, mac, month, occupancy, wrapped)",
		"kluis_custodian INSERT fact_mark (arrived)",
		"kluis_custodian INSERT key_tombstone (ean, kek_epoch, key_id, sequence)",
		"kluis_custodian SELECT control_entry",
		"kluis_custodian SELECT control_heartbeat",
		"kluis_custodian SELECT data_key",
		"kluis_custodian SELECT fact_mark",
		"kluis_custodian SELECT identity_index (day, ean)",
		"kluis_custodian SELECT key_tombstone",
		"kluis_custodian SELECT legal_file",
		"kluis_custodian SELECT sealed_block",
		"kluis_custodian SELECT sealed_identity",
		"kluis_custodian SELECT supplier",
		"kluis_custodian UPDATE control_heartbeat (head)",
		"kluis_custodian UPDATE data_key (kek_epoch, mac, wrapped)",
		"kluis_custodian UPDATE fact_mark (arrived)",
		"kluis_custodian UPDATE key_tombstone (sequence)",
		"kluis_custodian UPDATE sealed_block (ciphertext, content_mac, key_id)",
		"kluis_custodian UPDATE sealed_identity (ciphertext, content_mac, key_id)",
		"kluis_gateway DELETE basis_day",
		"kluis_gateway DELETE consent",
		"kluis_gateway INSERT access_log (ean, gln, interaction_id, outcome, receipt, record, salt)",
		"kluis_gateway INSERT basis_day",
		"kluis_gateway INSERT change_mark (one)",
		"kluis_gateway INSERT consent",
		"kluis_gateway INSERT idempotency_key (consent_id, gln, key_digest, request)",
		"kluis_gateway INSERT legal_file (ean, file, sealed_at, version)",
		"kluis_gateway INSERT supplier (gln, record, sealed_at, version)",
		"kluis_gateway SELECT audit_checkpoint",
		"kluis_gateway SELECT audit_hash",
		"kluis_gateway SELECT access_log (ean, gln, interaction_id, outcome, receipt, record, recorded_at)",
		"kluis_gateway INSERT market_profile (digest, profile)",
		"kluis_gateway SELECT access_hour",
		"kluis_gateway SELECT access_unusual",
		"kluis_gateway SELECT audit_result",
		"kluis_gateway SELECT basis_day",
		"kluis_gateway SELECT change_mark",
		"kluis_gateway SELECT consent",
		"kluis_gateway SELECT data_key",
		"kluis_gateway SELECT employee_day",
		"kluis_gateway SELECT idempotency_key",
		"kluis_gateway SELECT identity_index",
		"kluis_gateway SELECT ingest_batch (arrived, batch_id, changed, ean, stored_at)",
		"kluis_gateway SELECT legal_file",
		"kluis_gateway SELECT sealed_block",
		"kluis_gateway SELECT sealed_identity (ciphertext, day, ean, field, key_id, version)",
		"kluis_gateway SELECT supplier",
		"kluis_gateway SELECT supply_period",
		"kluis_ingest INSERT data_key (class, ean, kek_epoch, key_id, mac, month, occupancy, wrapped)",
		"kluis_ingest INSERT identity_index (blind_index, day, ean)",
		"kluis_ingest INSERT sealed_identity (ciphertext, content_mac, day, ean, field, key_id, version)",
		"kluis_ingest SELECT sealed_identity (content_mac, day, ean, field, key_id, version)",
		"kluis_ingest INSERT ingest_batch (batch_id, blocks, changed, ean, keys)",
		"kluis_ingest INSERT sealed_block (ciphertext, content_mac, day, ean, field, key_id, resolution, value_count, version)",
		"kluis_ingest SELECT data_key",
		"kluis_ingest SELECT legal_file",
		"kluis_ingest SELECT metering_point",
		"kluis_ingest SELECT sealed_block (content_mac, day, ean, field, key_id, resolution, sealed_at, value_count, version)",
		"kluis_issuer SELECT supplier",
		"kluis_portal DELETE portal_case",
		"kluis_portal DELETE portal_session",
		"kluis_portal INSERT portal_case",
		"kluis_portal INSERT portal_session",
		"kluis_portal SELECT portal_case",
		"kluis_portal SELECT portal_session",
		"kluis_portal UPDATE portal_session (data, expires)",
		"kluis_registrar DELETE basis_day",
		"kluis_registrar DELETE consent",
		"kluis_registrar DELETE supply_period",
		"kluis_registrar INSERT basis_day",
		"kluis_registrar INSERT consent",
		"kluis_registrar INSERT legal_file (ean, file, sealed_at, version)",
		"kluis_registrar INSERT metering_point (commodity, ean)",
		"kluis_registrar INSERT supplier (gln, record, sealed_at, version)",
		"kluis_registrar INSERT supply_period",
		"kluis_registrar SELECT basis_day",
		"kluis_registrar SELECT consent",
		"kluis_registrar SELECT legal_file",
		"kluis_registrar SELECT metering_point",
		"kluis_registrar SELECT supplier",
		"kluis_registrar SELECT supply_period",
	}
	db := pgtest.New(t).Open(t, migrations.RoleOwner)
	got := column(t, db, `
		SELECT grantee::regrole || ' ' || privilege_type || ' ' || relation FROM (
			SELECT a.grantee, a.privilege_type, c.oid::regclass::text AS relation
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) a
			WHERE n.nspname = 'public' AND a.grantee <> c.relowner
			UNION ALL
			SELECT a.grantee, a.privilege_type,
			       c.oid::regclass || ' (' || string_agg(t.attname, ', ' ORDER BY t.attname) || ')'
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) a
			WHERE n.nspname = 'public' AND a.grantee <> c.relowner
			GROUP BY c.oid, a.grantee, a.privilege_type
		) x`)
	slices.Sort(got)
	for _, g := range got {
		if !slices.Contains(want, g) {
			t.Errorf("has too much: %s", g)
		}
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("lacks: %s", w)
		}
	}
	for _, q := range []string{
		`SELECT nspname || ': ' || a.privilege_type FROM pg_namespace, aclexplode(nspacl) a WHERE nspname = 'public' AND a.grantee = 0`,
		`SELECT datname || ': ' || a.privilege_type FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) a
			WHERE datname = current_database() AND a.grantee = 0`,
		`SELECT 'function ' || proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace, aclexplode(coalesce(proacl, acldefault('f', proowner))) a
			WHERE nspname = 'public' AND a.grantee = 0`,
	} {
		if got := column(t, db, q); len(got) != 0 {
			t.Errorf("PUBLIC may: %v", got)
		}
	}
}

// TestRolesAttack tries, as each role, what it must not be able to do.
func TestRolesAttack(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	const (
		block  = `INSERT INTO sealed_block (ean, field, day, version, resolution, key_id, value_count, content_mac, ciphertext) VALUES (1, 1, '2026-01-01', 1, 3, gen_random_uuid(), 1, decode(repeat('00', 32), 'hex'), '\x00')`
		key    = `INSERT INTO data_key (ean, key_id, class, month, occupancy, kek_epoch, wrapped, mac) VALUES (1, gen_random_uuid(), 1, 1, 0, 1, '\x00', decode(repeat('00', 32), 'hex'))`
		file   = `INSERT INTO legal_file (ean, version, file, sealed_at) VALUES (1, 1, '\x00', now())`
		supp   = `INSERT INTO supplier (gln, version, record, sealed_at) VALUES (1, 1, '\x00', now())`
		supply = `INSERT INTO supply_period (ean, gln, from_day) VALUES (1, 1, '2026-01-01')`
		log    = `INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt) VALUES (1, gen_random_uuid(), 1, 1, '\x00', '', decode(repeat('00', 16), 'hex'))`
		entry  = `INSERT INTO control_entry (sequence, entry, head) VALUES (1, '\x00', '\x00')`
		beat   = `INSERT INTO control_heartbeat (head) VALUES ('\x00') ON CONFLICT (one) DO UPDATE SET head = EXCLUDED.head`
		idem   = `INSERT INTO idempotency_key (gln, key_digest, request, consent_id) VALUES (1, sha256('1'), sha256('1'), gen_random_uuid())`
		person = `INSERT INTO sealed_identity (ean, field, day, version, key_id, content_mac, ciphertext) VALUES (1, 9, '2026-01-01', 1, gen_random_uuid(), decode(repeat('00', 32), 'hex'), '\x00')`
		place  = `INSERT INTO identity_index (ean, day, blind_index) VALUES (1, '2026-01-01', decode(repeat('00', 32), 'hex')) ON CONFLICT DO NOTHING`
		tomb   = `INSERT INTO key_tombstone (ean, key_id, kek_epoch, sequence) VALUES (1, gen_random_uuid(), 1, NULL)`
	)
	tables := []string{
		"supplier", "metering_point", "legal_file", "supply_period", "consent", "data_key", "sealed_block", "ingest_batch", "access_log",
		"control_entry", "control_heartbeat", "key_tombstone", "goose_db_version", "idempotency_key", "sealed_identity", "identity_index",
		"journal_entry", "audit_statement", "audit_leaf", "audit_hash", "audit_checkpoint", "audit_cursor", "market_profile",
		"access_hour", "employee_point", "employee_day", "access_unusual", "audit_result", "portal_session", "portal_case", "sealed_block_default", "storage_month", "storage_change",
	}
	const (
		journal    = `INSERT INTO journal_entry (boot_id, sequence, entry) VALUES (gen_random_uuid(), 1, '\x00')`
		statement  = `INSERT INTO audit_statement (kind, boot_id, sequence, statement) VALUES (6, gen_random_uuid(), 1, '\x00')`
		auditLeaf  = `INSERT INTO audit_leaf (index, kind, id, number, version) VALUES (0, 1, gen_random_uuid(), 1, 0)`
		auditHash  = `INSERT INTO audit_hash (index, hash) VALUES (0, decode(repeat('00', 32), 'hex'))`
		checkpoint = `INSERT INTO audit_checkpoint (size, note) VALUES (1, '\x00')`
		market     = `INSERT INTO market_profile (digest, profile) VALUES (sha256('rules'), 'rules') ON CONFLICT DO NOTHING`
		mark       = `INSERT INTO change_mark (one) VALUES (true)`
		hour       = `INSERT INTO access_hour (gln, employee, at, requests, given, refused, failed, points, off_hours, last_at) VALUES (1, '', now(), 1, 1, 0, 0, 1, 0, now())`
		looked     = `INSERT INTO employee_point (ean, day, employee) VALUES (1, '2026-01-01', 'e')`
		breadth    = `INSERT INTO employee_day (employee, day, points) VALUES ('e', '2026-01-01', 1) ON CONFLICT (employee, day) DO UPDATE SET points = 2`
		unusual    = `INSERT INTO access_unusual (kind, gln, employee, from_at, to_at, count, usual) VALUES (1, 1, '', now(), now() + INTERVAL '1 hour', 1, 0)`
		result     = `INSERT INTO audit_result (whole, first, size, findings) VALUES (true, 0, 1, '[]')`
		session    = `INSERT INTO portal_session (id, subject, data, expires) VALUES (sha256('1'), sha256('1'), '\x00', now())`
		opened     = `INSERT INTO portal_case (session, id, data) VALUES (sha256('1'), decode(repeat('00', 16), 'hex'), '\x00')`
		cursor     = `INSERT INTO audit_cursor (kind, position) VALUES (1, '\x00') ON CONFLICT (kind) DO UPDATE SET position = EXCLUDED.position`
	)
	allowed := map[string][]string{
		migrations.RoleGateway: {
			log, idem, market, mark, "DELETE FROM consent", "DELETE FROM basis_day", "SELECT ean, arrived, changed FROM ingest_batch", "SELECT ean, record, receipt, recorded_at FROM access_log",
			"SELECT ciphertext, day, key_id FROM sealed_identity", "SELECT ean FROM identity_index WHERE blind_index = ''",
			"SELECT FROM sealed_block", "SELECT ciphertext FROM sealed_block", "SELECT FROM data_key", "SELECT FROM legal_file", "SELECT FROM supplier",
			"SELECT * FROM access_hour", "SELECT * FROM employee_day", "SELECT * FROM access_unusual", "SELECT * FROM audit_result", "SELECT note FROM audit_checkpoint",
		},
		migrations.RoleIssuer: {"SELECT record FROM supplier"},
		migrations.RoleIngest: {block, key, person, place, "SELECT content_mac, version FROM sealed_identity", "SELECT content_mac, version FROM sealed_block", "SELECT FROM data_key", "SELECT FROM legal_file"},
		migrations.RoleRegistrar: {
			file, supp, supply, "SELECT FROM legal_file", "DELETE FROM supply_period", "DELETE FROM consent", "DELETE FROM basis_day",
		},
		migrations.RoleAuditor: {
			hour, looked, breadth, unusual, result, "DELETE FROM access_hour", "DELETE FROM employee_point", "DELETE FROM audit_result",
			journal, statement, auditLeaf, auditHash, checkpoint, cursor, "SELECT record, receipt, salt FROM access_log", "SELECT FROM journal_entry",
			"SELECT ean, field, day, version, ciphertext FROM sealed_identity",
			"SELECT ean, field, day, version, ciphertext FROM sealed_block", "SELECT file FROM legal_file", "SELECT record FROM supplier", "SELECT entry FROM control_entry", "SELECT profile FROM market_profile",
		},
		migrations.RoleCustodian: {
			entry, beat, tomb, strings.Replace(key, "(), 1, 1, 0", "(), 1, 2, 0", 1), "SELECT FROM control_entry", "SELECT FROM control_heartbeat", "SELECT * FROM key_tombstone",
			"SELECT ciphertext FROM sealed_identity", "UPDATE sealed_identity SET key_id = key_id, ciphertext = ciphertext, content_mac = content_mac", "DELETE FROM identity_index WHERE ean = 1 AND day = '2026-01-01'",
			"SELECT ciphertext FROM sealed_block", "DELETE FROM data_key WHERE ean = 1", "UPDATE data_key SET kek_epoch = 1, wrapped = '\\x00', mac = mac",
			"UPDATE sealed_block SET key_id = key_id, ciphertext = ciphertext, content_mac = content_mac", "UPDATE key_tombstone SET sequence = 1",
		},
	}
	allowed[migrations.RolePortal] = []string{session, opened, "UPDATE portal_session SET data = data, expires = now()", "SELECT * FROM portal_session", "SELECT * FROM portal_case", "DELETE FROM portal_case", "DELETE FROM portal_session"}
	denied := map[string][]string{
		migrations.RolePortal: {
			block, key, file, supp, supply, log, entry, hour, "UPDATE portal_session SET id = id", "UPDATE portal_session SET subject = subject",
			"SELECT FROM legal_file", "SELECT FROM supplier", "SELECT FROM metering_point", "SELECT FROM supply_period", "SELECT FROM consent",
			"SELECT FROM data_key", "SELECT FROM sealed_block", "SELECT FROM access_log", "SELECT FROM access_hour",
		},
		migrations.RoleGateway: {
			person, place, "SELECT content_mac FROM sealed_identity",
			block, key, supply, "INSERT INTO change_mark (at) VALUES ('2020-01-01')", "INSERT INTO change_mark (oldest) VALUES ('1')", "DELETE FROM change_mark",
			"SELECT keys FROM ingest_batch", "INSERT INTO ingest_batch (ean, batch_id, keys, blocks) VALUES (1, gen_random_uuid(), 0, 0)", "DELETE FROM supply_period", "SELECT salt FROM access_log", log + " RETURNING salt", "COPY access_log TO STDOUT",
			"UPDATE supplier SET record = record", "DELETE FROM supplier", `INSERT INTO supplier (gln, version, record, sealed_at, arrived) VALUES (1, 1, '\x00', now(), '1')`,
			`INSERT INTO idempotency_key (gln, key_digest, request, consent_id, stored_at) VALUES (1, sha256('1'), sha256('1'), gen_random_uuid(), '2020-01-01')`,
			`INSERT INTO access_log (ean, recorded_at, interaction_id, gln, outcome, record, receipt, salt) VALUES (1, '2020-01-01', gen_random_uuid(), 1, 1, '', '', decode(repeat('00', 16), 'hex'))`,
		},
		migrations.RoleIssuer: {
			person, place, "SELECT FROM sealed_identity", "SELECT FROM identity_index",
			block, key, file, supp, supply, log,
			"SELECT FROM legal_file", "SELECT FROM metering_point", "SELECT FROM supply_period", "SELECT FROM consent",
			"SELECT FROM data_key", "SELECT FROM sealed_block", "SELECT FROM access_log",
		},
		migrations.RoleIngest: {
			file, supp, supply, log, "SELECT FROM identity_index", "SELECT blind_index FROM identity_index", place + " RETURNING blind_index", "SELECT ciphertext FROM sealed_identity",
			strings.Replace(place, "DO NOTHING", "(ean, day, blind_index) DO UPDATE SET blind_index = EXCLUDED.blind_index", 1),
			"SELECT ciphertext FROM sealed_block", "SELECT * FROM sealed_block", "COPY sealed_block TO STDOUT",
			block + " RETURNING ciphertext", "SELECT FROM access_log", "SELECT FROM supplier",
		},
		migrations.RoleRegistrar: {
			block, key, log, person, place, "SELECT FROM sealed_identity", "SELECT FROM identity_index",
			"SELECT FROM sealed_block", "SELECT FROM data_key", "SELECT FROM access_log",
		},
		migrations.RoleCustodian: {
			block, file, supp, supply, log, person, place, "SELECT blind_index FROM identity_index", "DELETE FROM sealed_identity",
			"UPDATE sealed_identity SET day = '2026-01-01'", "UPDATE sealed_identity SET version = 2", "UPDATE identity_index SET ean = 2",
			"DELETE FROM fact_mark", "INSERT INTO fact_mark (one, arrived) VALUES (true, '1')", "SELECT FROM metering_point", "SELECT FROM supply_period",
			"SELECT FROM consent", "SELECT FROM ingest_batch", "SELECT FROM access_log", "SELECT ean FROM access_log", "COPY access_log TO STDOUT",
			`INSERT INTO control_entry (sequence, entry, head, appended_at) VALUES (2, '\x00', '\x00', '2020-01-01')`,
			`INSERT INTO key_tombstone (ean, key_id, kek_epoch, deleted_at) VALUES (1, gen_random_uuid(), 1, '2020-01-01')`,
			entry + " ON CONFLICT (sequence) DO UPDATE SET entry = EXCLUDED.entry",
			"UPDATE data_key SET ean = 2", "UPDATE data_key SET key_id = gen_random_uuid()", "UPDATE data_key SET month = 1",
			"UPDATE sealed_block SET ean = 2", "UPDATE sealed_block SET day = '2026-01-01'", "UPDATE sealed_block SET field = 1",
			"UPDATE key_tombstone SET kek_epoch = 1", "UPDATE key_tombstone SET deleted_at = now()",
		},
	}
	denied[migrations.RoleIngest] = append(denied[migrations.RoleIngest], mark, "SELECT changed FROM ingest_batch", "SELECT FROM basis_day",
		"INSERT INTO ingest_batch (ean, batch_id, keys, blocks, arrived) VALUES (1, gen_random_uuid(), 0, 0, '1')")
	denied[migrations.RoleAuditor] = []string{
		block, key, file, supp, supply, log, entry, person, place, "SELECT FROM identity_index", "SELECT key_id FROM sealed_identity", "SELECT content_mac FROM sealed_identity",
		"SELECT FROM data_key", "SELECT * FROM sealed_block", "SELECT key_id FROM sealed_block", "SELECT content_mac FROM sealed_block", "SELECT FROM consent",
		`INSERT INTO journal_entry (boot_id, sequence, entry, arrived) VALUES (gen_random_uuid(), 1, '\x00', '1')`,
		`INSERT INTO audit_leaf (index, kind, id, number, version, logged_at) VALUES (1, 1, gen_random_uuid(), 1, 0, '2020-01-01')`,
		auditLeaf + " ON CONFLICT (index) DO UPDATE SET id = EXCLUDED.id", auditHash + " ON CONFLICT (index) DO UPDATE SET hash = EXCLUDED.hash",
		"UPDATE journal_entry SET entry = entry", "UPDATE audit_statement SET statement = statement", "UPDATE audit_leaf SET index = 1", "UPDATE audit_hash SET hash = hash",
		"UPDATE audit_checkpoint SET note = note", "UPDATE audit_cursor SET kind = 2",
		"UPDATE access_hour SET gln = 2", "UPDATE employee_point SET day = day", "UPDATE access_unusual SET kind = 2", "UPDATE audit_result SET findings = '[]'",
		"INSERT INTO audit_result (at, whole, first, size, findings) VALUES ('2020-01-01', true, 0, 1, '[]')",
	}
	denied[migrations.RoleGateway] = append(denied[migrations.RoleGateway],
		"SELECT FROM market_profile", market+" RETURNING digest", "INSERT INTO market_profile (digest, profile, first_used_at) VALUES (sha256('rules'), 'rules', '2020-01-01')",
		"INSERT INTO market_profile (digest, profile) VALUES (sha256('rules'), 'rules') ON CONFLICT (digest) DO UPDATE SET profile = 'others'",
		`INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt, arrived) VALUES (1, gen_random_uuid(), 1, 1, '', '', decode(repeat('00', 16), 'hex'), '1')`)
	denied[migrations.RoleRegistrar] = append(denied[migrations.RoleRegistrar],
		`INSERT INTO legal_file (ean, version, file, sealed_at, arrived) VALUES (2, 1, '\x00', now(), '1')`,
		`INSERT INTO supplier (gln, version, record, sealed_at, arrived) VALUES (2, 1, '\x00', now(), '1')`)
	month := column(t, d.Open(t, migrations.RoleOwner), `SELECT max(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = 'sealed_block'::regclass AND inhrelid <> 'sealed_block_default'::regclass`)[0]
	for role := range denied {
		if role != migrations.RoleGateway {
			denied[role] = append(denied[role], market)
		}
		if role != migrations.RolePortal {
			denied[role] = append(denied[role], session, opened, "SELECT FROM portal_session", "SELECT FROM portal_case", "DELETE FROM portal_session", "DELETE FROM portal_case")
		}
		if role != migrations.RoleAuditor {
			denied[role] = append(denied[role], "SELECT FROM market_profile", journal, statement, auditLeaf, auditHash, checkpoint, cursor,
				hour, looked, breadth, unusual, result, "UPDATE access_hour SET requests = 1", "UPDATE employee_day SET points = 1", "UPDATE access_unusual SET count = 1", "SELECT FROM employee_point",
				"SELECT FROM journal_entry", "SELECT FROM audit_statement", "SELECT FROM audit_leaf", "SELECT FROM audit_cursor")
			if role != migrations.RoleGateway {
				denied[role] = append(denied[role], "SELECT FROM audit_checkpoint", "SELECT FROM audit_hash")
			}
			if role != migrations.RoleCustodian {
				denied[role] = append(denied[role], "SELECT FROM control_entry")
			}
		}
		if role != migrations.RoleCustodian {
			denied[role] = append(denied[role], entry, beat, tomb, "SELECT FROM control_heartbeat", "SELECT FROM key_tombstone",
				"UPDATE data_key SET wrapped = wrapped", "UPDATE sealed_block SET ciphertext = ciphertext", "UPDATE sealed_block SET content_mac = content_mac")
		}
		for _, table := range tables {
			denied[role] = append(denied[role],
				"TRUNCATE "+table, "DROP TABLE "+table, "ALTER TABLE "+table+" ADD COLUMN x int",
				"CREATE TRIGGER x BEFORE INSERT ON "+table+" FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()")
			deletes := role == migrations.RoleRegistrar && (table == "supply_period" || table == "consent") ||
				role == migrations.RoleGateway && table == "consent" || role == migrations.RoleCustodian && (table == "data_key" || table == "identity_index") ||
				role == migrations.RoleAuditor && slices.Contains([]string{"access_hour", "employee_point", "employee_day", "access_unusual", "audit_result"}, table)
			deletes = deletes || role == migrations.RolePortal && (table == "portal_session" || table == "portal_case")
			if !deletes {
				denied[role] = append(denied[role], "DELETE FROM "+table)
			}
		}
		denied[role] = append(denied[role],
			"UPDATE supplier SET version = 9", "UPDATE metering_point SET commodity = 1", "UPDATE legal_file SET version = 9",
			"UPDATE supply_period SET gln = 1", "UPDATE consent SET gln = 1", "UPDATE data_key SET class = 1",
			"UPDATE sealed_block SET version = 9", "UPDATE access_log SET outcome = 1",
			"UPDATE control_entry SET entry = entry", "UPDATE control_entry SET head = head", "UPDATE control_heartbeat SET one = true",
			"UPDATE market_profile SET profile = profile", "UPDATE market_profile SET digest = digest",
			"CREATE TABLE mine (n int)", "CREATE TEMP TABLE mine (n int)", "CREATE SCHEMA mine", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
			"SELECT FROM sealed_block_default", "SELECT FROM "+month, "UPDATE "+month+" SET version = 9", "DELETE FROM "+month, "TRUNCATE "+month, "DROP TABLE "+month,
			strings.Replace(block, "INTO sealed_block ", "INTO "+month+" ", 1), "ALTER TABLE sealed_block DETACH PARTITION "+month,
			"CREATE TABLE mine PARTITION OF sealed_block FOR VALUES FROM ('2090-01-01') TO ('2090-02-01')",
			"SELECT FROM storage_month", "SELECT FROM storage_change", "INSERT INTO storage_change VALUES (1, 1, '2026-01-01', 1)", "SELECT sealed_block_changed()",
			"SET ROLE "+migrations.RoleOwner, "SET SESSION AUTHORIZATION "+migrations.RoleOwner,
			"CREATE ROLE mine", "ALTER ROLE "+role+" CREATEROLE", "CREATE DATABASE mine", "SELECT pg_read_file('PG_VERSION')")
	}
	for role, statements := range denied {
		db := d.Open(t, role)
		for _, s := range statements {
			_, err := db.ExecContext(t.Context(), s)
			var e *pq.Error
			switch {
			case err == nil:
				t.Errorf("%s was let do: %s", role, s)
			case !errors.As(err, &e) || e.Code != "42501": // insufficient_privilege
				t.Errorf("%s: refused for another reason: %s: %v", role, s, err)
			}
		}
	}
	for role, statements := range allowed {
		db := d.Open(t, role)
		for _, s := range statements {
			if _, err := db.ExecContext(t.Context(), s); err != nil {
				t.Errorf("%s cannot do: %s: %v", role, s, err)
			}
		}
	}
}

func TestOtherRolesCannotConnect(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.Open(t, devpg.Superuser)
	for role, want := range map[string]bool{"kluis_gateway": true, "kluis_issuer": true, "kluis_custodian": true, "pg_monitor": false, "pg_read_all_settings": false} {
		var may bool
		if err := db.QueryRowContext(t.Context(), `SELECT has_database_privilege($1, $2, 'CONNECT')`, role, d.Name()).Scan(&may); err != nil {
			t.Fatal(err)
		}
		if may != want {
			t.Errorf("%s may connect: %v, want %v", role, may, want)
		}
	}
}

func TestReplicasMigrateOnce(t *testing.T) {
	t.Parallel()
	d := pgtest.NewEmpty(t)
	const replicas = 4
	applied := make([]int, replicas)
	errs := make([]error, replicas)
	var wg sync.WaitGroup
	for i := range replicas {
		db := d.Open(t, migrations.RoleOwner)
		wg.Go(func() { applied[i], errs[i] = migrations.Up(t.Context(), db) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	slices.Sort(applied)
	if applied[replicas-1] == 0 || applied[replicas-2] != 0 {
		t.Errorf("migrations applied by the replicas: %v; want all by one", applied)
	}
	db := d.Open(t, migrations.RoleOwner)
	if got := column(t, db, `SELECT version_id::text FROM goose_db_version GROUP BY version_id HAVING count(*) > 1`); len(got) != 0 {
		t.Errorf("applied more than once: %v", got)
	}
	if n, err := migrations.Up(t.Context(), db); n != 0 || err != nil {
		t.Errorf("once more: %d, %v", n, err)
	}
	// The database's own privileges are the migration's work too.
	if got := column(t, db, `SELECT a.privilege_type FROM pg_database, aclexplode(datacl) a WHERE datname = current_database() AND a.grantee = 0`); len(got) != 0 {
		t.Errorf("PUBLIC may: %v", got)
	}
}

func TestUpRefusesAnotherThanTheOwner(t *testing.T) {
	t.Parallel()
	d := pgtest.NewEmpty(t)
	_, err := migrations.Up(t.Context(), d.Open(t, devpg.Superuser))
	if err == nil || !strings.Contains(err.Error(), migrations.RoleOwner) {
		t.Errorf("as the superuser: %v", err)
	}
}

func TestUpHonoursItsContext(t *testing.T) {
	t.Parallel()
	d := pgtest.NewEmpty(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := migrations.Up(ctx, d.Open(t, migrations.RoleOwner)); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// TestEnsureRoles has a cluster of its own: roles are shared by its databases.
func TestEnsureRoles(t *testing.T) {
	t.Parallel()
	cl := pgtest.Cluster(t, devpg.Config{Dir: pgtest.Dir(t), NoSync: true})
	open := func() *sql.DB {
		db, err := sql.Open("postgres", cl.URL(devpg.Superuser, "postgres"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}
	db := open()
	exec := func(stmt string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), stmt); err != nil {
			t.Fatal(err)
		}
	}
	if err := migrations.EnsureRoles(t.Context(), db); err != nil {
		t.Errorf("a second time: %v", err)
	}
	for name, c := range map[string][2]string{
		"a superuser":       {"ALTER ROLE kluis_gateway SUPERUSER", "ALTER ROLE kluis_gateway NOSUPERUSER"},
		"past row security": {"ALTER ROLE kluis_ingest BYPASSRLS", "ALTER ROLE kluis_ingest NOBYPASSRLS"},
		"a member":          {"GRANT kluis_owner TO kluis_gateway", "REVOKE kluis_owner FROM kluis_gateway"},
		"a reader of all":   {"GRANT pg_read_all_data TO kluis_issuer", "REVOKE pg_read_all_data FROM kluis_issuer"},
	} {
		exec(c[0])
		if err := migrations.EnsureRoles(t.Context(), db); !errors.Is(err, migrations.ErrRole) {
			t.Errorf("%s: %v, want ErrRole", name, err)
		}
		exec(c[1])
	}

	// Created by four at once, where none is left.
	exec("DROP DATABASE kluis")
	for _, r := range migrations.Roles() {
		exec("DROP ROLE " + r)
	}
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		db := open()
		wg.Go(func() { errs[i] = migrations.EnsureRoles(t.Context(), db) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}
