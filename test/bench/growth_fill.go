package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/devpg"
	"kluis/meter"
	"kluis/migrations"
)

// facts are the histories that metering points have, one after the other, and
// the suppliers.
type facts struct {
	histories []history
	suppliers []supplierFact
}

// history is a legal file with all its versions, sealed.
type history struct {
	versions [][]byte
	at       []time.Time
	last     *authz.LegalFile
}

type supplierFact struct {
	gln      int64
	versions [][]byte
}

// parties of a history: the first supplies at last.
var parties = [2]int{0, 7}

// supplierOf is the supplier of a metering point.
func (f facts) supplierOf(n int) int64 { return f.party(n, 0) }

func (f facts) party(n, who int) int64 {
	return f.suppliers[(n/len(f.histories)+parties[who])%len(f.suppliers)].gln
}

// softSigner is a seal key made for this run.
type softSigner struct{ *ecdsa.PrivateKey }

func (s softSigner) KeyID() authz.KeyID { return authz.KeyIDOf(&s.PublicKey) }

func (s softSigner) SignDigest(digest [32]byte) (sig [64]byte, err error) {
	r, v, err := ecdsa.Sign(rand.Reader, s.PrivateKey, digest[:])
	if err != nil {
		return sig, err
	}
	r.FillBytes(sig[:32])
	v.FillBytes(sig[32:])
	return sig, nil
}

// newFacts makes three years of supply and consents, in four ways: with one
// supplier, with a switch, with a move, and with more of everything.
func newFacts(profile *meter.Profile) (f facts, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return f, err
	}
	signer := softSigner{key}
	for i := range growthSuppliers {
		gln, err := meter.ParseGLN(withCheckDigit(fmt.Sprintf("8719999%05d", i+1)))
		if err != nil {
			return f, err
		}
		s, err := newSupplierFact(gln, signer)
		if err != nil {
			return f, err
		}
		f.suppliers = append(f.suppliers, s)
	}
	ours, err1 := meter.GLNFromInt64(f.suppliers[parties[0]].gln)
	other, err2 := meter.GLNFromInt64(f.suppliers[parties[1]].gln)
	ean, err3 := meter.ParseEAN(withCheckDigit("87168700000000000"))
	if err := errors.Join(err1, err2, err3); err != nil {
		return f, err
	}
	now := time.Now()
	today := meter.DayOf(now, profile.Location())
	from := func(ago int) meter.DayRange { return meter.DayRange{From: today - meter.Day(ago), To: meter.MaxDay} }
	move := func(ago int) []dated { return []dated{{ago, authz.SetOccupancy{Days: from(ago)}, operator}} }
	supply := func(by meter.GLN, ago int) []dated {
		return []dated{{ago, authz.SetSupply{Supplier: by, Days: from(ago)}, operator}}
	}
	consents := byte(0)
	// One is asked for a year, and answered two days later.
	consent := func(to meter.GLN, ago int) []dated {
		consents++
		id, days := [16]byte{consents}, meter.DayRange{From: today - meter.Day(ago), To: today - meter.Day(ago) + 365}
		return []dated{
			{ago, authz.RequestConsent{ID: id, Supplier: to, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals}, Granularity: meter.PT15M,
				Days: days, ValidUntil: now.AddDate(0, 0, 365-ago), Evidence: fmt.Sprintf("contract 2026-%08d", consents)},
				authz.Actor{Kind: authz.BySupplier, Name: to.String()}},
			{ago - 2, authz.AcceptConsent{ID: id, Evidence: fmt.Sprintf("answer 2026-%08d", consents)}, authz.Actor{Kind: authz.ByCustomer, Name: "employee-0042"}},
		}
	}
	revoke := func(id byte, ago int) []dated { return []dated{{ago, authz.RevokeConsent{ID: [16]byte{id}}, operator}} }
	begin := []dated{{1100, authz.Register{EAN: ean, Commodity: meter.Electricity}, operator}, {1099, authz.SetOccupancy{Days: from(1095)}, operator}}
	for _, parts := range [][][]dated{
		{begin, supply(ours, 1095), consent(ours, 1090), consent(ours, 725), consent(ours, 360)},
		{begin, supply(other, 1095), consent(other, 1090), supply(ours, 700), consent(ours, 690), consent(ours, 325)},
		{begin, supply(other, 1095), consent(other, 1090), move(600), supply(ours, 599), consent(ours, 590), consent(ours, 225)},
		{begin, supply(ours, 1095), consent(ours, 1090), supply(other, 800), consent(other, 790), supply(ours, 500), consent(ours, 490), revoke(consents, 300), consent(ours, 125), consent(other, 20)},
	} {
		var h history
		for i, d := range slices.Concat(parts...) {
			at := now.AddDate(0, 0, -d.ago).Add(time.Duration(i) * time.Second)
			if h.last, err = authz.Apply(h.last, d.step, d.actor, at, profile.Location()); err != nil {
				return f, fmt.Errorf("%T %d days ago: %w", d.step, d.ago, err)
			}
			sealed, err := authz.Seal(h.last.Payload(), signer)
			if err != nil {
				return f, err
			}
			h.versions, h.at = append(h.versions, sealed), append(h.at, at)
		}
		f.histories = append(f.histories, h)
	}
	return f, nil
}

// dated is a step that somebody took so many days ago.
type dated struct {
	ago   int
	step  authz.Step
	actor authz.Actor
}

var operator = authz.Actor{Kind: authz.ByOperator, Name: "registrar"}

// newSupplierFact is a supplier whose certificate was renewed twice.
func newSupplierFact(gln meter.GLN, signer authz.Signer) (supplierFact, error) {
	out := supplierFact{gln: gln.Int64()}
	var s *authz.Supplier
	facts := authz.SupplierFacts{GLN: gln, Name: "Supplier " + gln.String(), Scopes: []string{"readings:read"}}
	for i := range 3 {
		facts.Certificates = append(facts.Certificates, authz.Certificate{Thumbprint: [32]byte{byte(i + 1)}, NotAfter: time.Now().AddDate(i, 0, 0)})
		var err error
		if s, err = authz.NewSupplier(s, facts, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Now().AddDate(i-3, 0, 0)); err != nil {
			return out, err
		}
		sealed, err := authz.Seal(s.Payload(), signer)
		if err != nil {
			return out, err
		}
		out.versions = append(out.versions, sealed)
	}
	return out, nil
}

// create makes a database with the schema; its connection is the owner's.
func (g *growth) create(ctx context.Context, name, wal string) (_ *sql.DB, err error) {
	super, err := g.as(devpg.Superuser, "postgres")
	if err != nil {
		return nil, err
	}
	err = migrations.EnsureRoles(ctx, super)
	// Filling writes a log of many gigabytes, so much of which may be kept; and
	// what vacuums while it is measured disturbs.
	for _, s := range []string{`ALTER SYSTEM SET max_wal_size = '` + wal + `'`, `ALTER SYSTEM SET autovacuum = off`, `SELECT pg_reload_conf()`} {
		if err == nil {
			_, err = super.ExecContext(ctx, s)
		}
	}
	if err = errors.Join(err, super.Close()); err != nil {
		return nil, err
	}
	if err := g.cluster.EnsureDatabase(ctx, name, migrations.RoleOwner); err != nil {
		return nil, err
	}
	db, err := g.as(migrations.RoleOwner, name)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	if _, err := migrations.Up(ctx, db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// fieldRows are what a day of each field is made of.
func (g *growth) fieldRows() (fields [][]any) {
	for _, f := range g.fields {
		resolution, values, size := meter.P1D, 1, 22
		if f.Class == meter.Intervals {
			resolution, values, size = meter.PT15M, 96, 493
		}
		fields = append(fields, []any{int(f.Code), int(f.Class), int(resolution), values, noise(size + envelope.CiphertextOverhead)})
	}
	return fields
}

// fill makes a database and all its rows: version after version and day after
// day, as they come in earnest, so that those of a metering point lie apart.
func (g *growth) fill(ctx context.Context, i int) (err error) {
	db, err := g.create(ctx, g.name(i), "8GB")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := g.fillFacts(ctx, db, g.points[i]); err != nil {
		return err
	}
	if err := g.fillReadings(ctx, db, g.points[i]); err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, `DROP TABLE bench_point, bench_gln, bench_version, bench_supply, bench_consent, bench_field`)
	if err == nil {
		_, err = db.ExecContext(ctx, `VACUUM (ANALYZE)`)
	}
	return err
}

// copyIn adds rows with COPY.
func copyIn(ctx context.Context, db *sql.DB, table string, columns []string, rows [][]any) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	st, err := tx.PrepareContext(ctx, "COPY "+table+" ("+strings.Join(columns, ", ")+") FROM STDIN")
	if err != nil {
		return err
	}
	for _, r := range rows {
		if _, err := st.ExecContext(ctx, r...); err != nil {
			return err
		}
	}
	if _, err := st.ExecContext(ctx); err != nil {
		return err
	}
	return errors.Join(st.Close(), tx.Commit())
}

func execAll(ctx context.Context, db *sql.DB, statements ...string) error {
	for _, s := range statements {
		if _, err := db.ExecContext(ctx, s); err != nil {
			s = strings.Join(strings.Fields(s), " ")
			return fmt.Errorf("%s: %w", s[:min(40, len(s))], err)
		}
	}
	return nil
}

// fillFacts multiplies the histories.
func (g *growth) fillFacts(ctx context.Context, db *sql.DB, points int) error {
	kinds, suppliers := len(g.facts.histories), len(g.facts.suppliers)
	if err := execAll(ctx, db,
		`CREATE UNLOGGED TABLE bench_point (n integer, ean bigint, kind integer, month boolean)`,
		`CREATE UNLOGGED TABLE bench_gln (i integer, gln bigint)`,
		`CREATE UNLOGGED TABLE bench_version (kind integer, version integer, file bytea, sealed_at timestamptz)`,
		`CREATE UNLOGGED TABLE bench_supply (kind integer, who integer, from_day date, to_day date)`,
		`CREATE UNLOGGED TABLE bench_consent (kind integer, who integer, state integer, from_day date, to_day date, valid_until timestamptz)`,
		fmt.Sprintf(`INSERT INTO bench_point SELECT n, %d + n::bigint * 10, n %% %d, n %% %d = 0 FROM generate_series(0, %d) AS n`,
			growthEAN(0), kinds, points/min(growthSample, points), points-1),
	); err != nil {
		return err
	}
	who := map[meter.GLN]int{}
	for i, p := range parties {
		gln, err := meter.GLNFromInt64(g.facts.suppliers[p].gln)
		if err != nil {
			return err
		}
		who[gln] = i
	}
	day := func(d meter.Day) any {
		if d == meter.MaxDay {
			return nil
		}
		return d.String()
	}
	var glns, records, versions, supply, consents [][]any
	most := 0
	for i, s := range g.facts.suppliers {
		glns = append(glns, []any{i, s.gln})
		for v, b := range s.versions {
			records = append(records, []any{s.gln, v + 1, b, time.Now()})
		}
	}
	for kind, h := range g.facts.histories {
		most = max(most, len(h.versions))
		for v := range h.versions {
			versions = append(versions, []any{kind, v + 1, h.versions[v], h.at[v]})
		}
		for _, p := range h.last.SupplyPeriods() {
			supply = append(supply, []any{kind, who[p.Supplier], p.Days.From.String(), day(p.Days.To)})
		}
		for _, c := range h.last.Consents() {
			consents = append(consents, []any{kind, who[c.Supplier], int(c.State), c.Days.From.String(), day(c.Days.To), c.ValidUntil})
		}
	}
	for _, t := range []struct {
		name, columns string
		rows          [][]any
	}{
		{"bench_gln", "i gln", glns}, {"supplier", "gln version record sealed_at", records}, {"bench_version", "kind version file sealed_at", versions},
		{"bench_supply", "kind who from_day to_day", supply}, {"bench_consent", "kind who state from_day to_day valid_until", consents},
	} {
		if err := copyIn(ctx, db, t.name, strings.Fields(t.columns), t.rows); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	statements := []string{`ANALYZE`, `INSERT INTO metering_point (ean, commodity) SELECT ean, 1 FROM bench_point`}
	for v := 1; v <= most; v++ {
		statements = append(statements, fmt.Sprintf(`INSERT INTO legal_file (ean, version, file, sealed_at)
			SELECT p.ean, v.version, v.file, v.sealed_at FROM bench_point p JOIN bench_version v USING (kind) WHERE v.version = %d`, v))
	}
	gln := fmt.Sprintf(`g.i = (p.n / %d + CASE x.who WHEN 0 THEN %d ELSE %d END) %% %d`, kinds, parties[0], parties[1], suppliers)
	return execAll(ctx, db, append(statements,
		`INSERT INTO supply_period (ean, gln, from_day, to_day)
			SELECT p.ean, g.gln, x.from_day, x.to_day FROM bench_point p JOIN bench_supply x USING (kind) JOIN bench_gln g ON `+gln,
		`INSERT INTO consent (ean, consent_id, gln, state, from_day, to_day, valid_until)
			SELECT p.ean, gen_random_uuid(), g.gln, x.state, x.from_day, x.to_day, x.valid_until
			FROM bench_point p JOIN bench_consent x USING (kind) JOIN bench_gln g ON `+gln)...)
}

// fillReadings makes blocks of a month for some metering points, and of its last
// days for all; their keys; and the access log.
func (g *growth) fillReadings(ctx context.Context, db *sql.DB, points int) error {
	statements := []string{`CREATE UNLOGGED TABLE bench_field (field integer, class integer, resolution integer, slots integer, ciphertext bytea)`}
	if err := execAll(ctx, db, statements...); err != nil {
		return err
	}
	if err := copyIn(ctx, db, "bench_field", []string{"field", "class", "resolution", "slots", "ciphertext"}, g.fieldRows()); err != nil {
		return err
	}
	statements = nil
	first := g.days.From.Month()
	for _, k := range growthKeys {
		month := first + k.month
		statements = append(statements, fmt.Sprintf(`INSERT INTO data_key (ean, key_id, class, month, occupancy, kek_epoch, wrapped, mac)
			SELECT ean, md5(ean || '/%d/%d')::uuid, %d, %d, 0, 1, decode(repeat('5c', 40), 'hex'), decode(repeat('5c', 32), 'hex') FROM bench_point`,
			k.class, month, k.class, month))
	}
	for d := g.days.From; d <= g.days.To; d++ {
		where := "p.month"
		if d > g.days.To-1-growthDays && d < g.days.To {
			where = "true"
		}
		if d == g.days.To { // closing reads
			where += fmt.Sprintf(" AND f.class = %d", meter.Registers)
		}
		statements = append(statements, fmt.Sprintf(`INSERT INTO sealed_block (ean, field, day, version, resolution, key_id, value_count, content_mac, ciphertext)
			SELECT p.ean, f.field, DATE '%s', 1, f.resolution, md5(p.ean || '/' || f.class || '/%d')::uuid, f.slots, decode(repeat('5c', 32), 'hex'), f.ciphertext
			FROM bench_point p CROSS JOIN bench_field f WHERE %s`, d, d.Month(), where))
	}
	if err := execAll(ctx, db, statements...); err != nil {
		return err
	}
	for range growthRecords {
		if _, err := db.ExecContext(ctx, `INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt)
			SELECT ean, gen_random_uuid(), $1, 1, $2, $3, decode(repeat('5c', 16), 'hex') FROM bench_point`,
			g.facts.suppliers[0].gln, growthRecord, growthReceipt); err != nil {
			return err
		}
	}
	return nil
}

// tables says how large they are.
func (g *growth) tables(ctx context.Context) ([]growthTable, error) {
	out := make([]growthTable, 0, 8)
	for _, name := range []string{"supplier", "legal_file", "supply_period", "consent", "data_key", "sealed_block", "access_log"} {
		out = append(out, growthTable{Name: name})
	}
	for i := range g.points {
		db, err := g.as(migrations.RoleOwner, g.name(i))
		if err != nil {
			return nil, err
		}
		for j := range out {
			t := &out[j]
			if err == nil {
				err = db.QueryRowContext(ctx, `SELECT sum(greatest(reltuples, 0))::bigint, sum(pg_total_relation_size(oid)) / 1e6 FROM pg_class WHERE relkind = 'r' AND (oid = $1::regclass OR oid IN (SELECT relid FROM pg_partition_tree($1::regclass)))`, t.Name).Scan(&t.Rows[i], &t.MB[i])
			}
		}
		if err := errors.Join(err, db.Close()); err != nil {
			return nil, err
		}
	}
	return out, nil
}
