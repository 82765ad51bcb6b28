package postgres_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/internal/devpg"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

func TestRolesAreThoseOfTheMigrations(t *testing.T) {
	t.Parallel()
	if want := migrations.Roles()[1:]; !reflect.DeepEqual(postgres.Roles, want) {
		t.Errorf("%v, want %v", postgres.Roles, want)
	}
}

// A process that is given a stronger role's connection does not serve.
func TestOnlyItsOwnRole(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	for _, role := range []string{devpg.Superuser, migrations.RoleOwner, migrations.RoleIngest} {
		if g, err := postgres.NewGateway(t.Context(), config(d, role)); err == nil {
			g.Close()
			t.Errorf("the gateway serves as %s", role)
		} else if !strings.Contains(err.Error(), migrations.RoleGateway) {
			t.Errorf("as %s: %v", role, err)
		}
	}
	for name, start := range map[string]func(context.Context, postgres.Config) error{
		"issuer": func(ctx context.Context, c postgres.Config) error {
			_, err := postgres.NewIssuer(ctx, c)
			return err
		},
		"ingest": func(ctx context.Context, c postgres.Config) error {
			_, err := postgres.NewIngest(ctx, c)
			return err
		},
		"registrar": func(ctx context.Context, c postgres.Config) error {
			_, err := postgres.NewRegistrar(ctx, c)
			return err
		},
	} {
		if err := start(t.Context(), config(d, migrations.RoleGateway)); err == nil {
			t.Errorf("the %s serves as the gateway", name)
		}
	}
}

func TestRefusesToAcknowledgeWhatMayBeLost(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	for _, mode := range []string{"off", "local", "remote_write"} {
		c := config(d, migrations.RoleGateway)
		c.DSN += "&synchronous_commit=" + mode
		if g, err := postgres.NewGateway(t.Context(), c); err == nil {
			g.Close()
			t.Errorf("it serves with synchronous_commit %s", mode)
		} else if !strings.Contains(err.Error(), "synchronous_commit") {
			t.Errorf("%s: %v", mode, err)
		}
	}
	// A default of the role or the database does not weaken it either.
	if _, err := d.Open(t, devpg.Superuser).ExecContext(t.Context(), "ALTER DATABASE "+d.Name()+" SET synchronous_commit = off"); err != nil {
		t.Fatal(err)
	}
	gateway(t, d)
}

func TestConfiguration(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	for _, dsn := range []string{
		"postgres://kluis_gateway:" + secret + "@/x?sslmode=" + secret,
		"postgres://kluis_gateway:" + secret + "@[::1/x",
		"password=" + secret + " port=" + secret,
	} {
		_, err := postgres.NewGateway(t.Context(), postgres.Config{DSN: dsn})
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%v", err)
		}
	}
	d := pgtest.New(t)
	_, err := postgres.NewGateway(t.Context(), postgres.Config{DSN: strings.Replace(d.URL(migrations.RoleGateway), d.Name(), "nowhere", 1)})
	if err == nil || !strings.Contains(err.Error(), "3D000") {
		t.Errorf("no such database: %v", err)
	}
	_, err = postgres.NewGateway(t.Context(), config(pgtest.NewEmpty(t), migrations.RoleGateway))
	if err == nil || !strings.Contains(err.Error(), "migrated") {
		t.Errorf("no schema: %v", err)
	}
}

func TestSuppliers(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g, r := gateway(t, d), registrar(t, d)
	i, err := postgres.NewIssuer(t.Context(), config(d, migrations.RoleIssuer))
	i = closing(t, i, err)

	facts := authz.SupplierFacts{GLN: alpha, Name: "Alpha", Scopes: []string{"readings:read"}}
	v1 := must(authz.NewSupplier(nil, facts, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, now))
	v2 := must(authz.NewSupplier(v1, facts, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, now.Add(time.Second)))
	for name, get := range map[string]func(context.Context, meter.GLN) ([]byte, error){
		"gateway": g.Supplier, "issuer": i.Supplier, "registrar": r.Supplier,
	} {
		if b, err := get(t.Context(), alpha); b != nil || err != nil {
			t.Errorf("%s: of none there is %q, %v", name, b, err)
		}
	}
	for _, v := range []*authz.Supplier{v1, v2} {
		if err := r.StoreSupplier(t.Context(), v, fmt.Appendf(nil, "version %d", v.Version())); err != nil {
			t.Fatal(err)
		}
	}
	for name, get := range map[string]func(context.Context, meter.GLN) ([]byte, error){
		"gateway": g.Supplier, "issuer": i.Supplier, "registrar": r.Supplier,
	} {
		if b, err := get(t.Context(), alpha); string(b) != "version 2" || err != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if b, err := get(t.Context(), beta); b != nil || err != nil {
			t.Errorf("%s: of another: %q, %v", name, b, err)
		}
	}
	if err := r.StoreSupplier(t.Context(), v2, []byte("other")); !errors.Is(err, postgres.ErrConflict) {
		t.Errorf("the same version again: %v, want ErrConflict", err)
	}
	owner := d.Open(t, migrations.RoleOwner)
	if got := value(t, owner, `SELECT (extract(epoch FROM sealed_at) * 1000000)::bigint FROM supplier WHERE version = 2`); got != fmt.Sprint(v2.SealedAt().UnixMicro()) {
		t.Errorf("sealed_at is %s, want %d", got, v2.SealedAt().UnixMicro())
	}
}

func TestLegalFiles(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g, r := gateway(t, d), registrar(t, d)
	owner := d.Open(t, migrations.RoleOwner)

	f := supplied(t, home)
	if f, err := g.LegalFile(t.Context(), home); !reflect.DeepEqual(f, authz.StoredFile{}) || err != nil {
		t.Errorf("of none there is %+v, %v", f, err)
	}
	if err := r.StoreLegalFile(t.Context(), f, []byte("first")); err != nil {
		t.Fatal(err)
	}
	in := ingest(t, d)
	ofMany := func(ctx context.Context, e meter.EAN) (authz.StoredFile, error) {
		files, err := in.LegalFiles(ctx, []meter.EAN{ean(99), e})
		if len(files) != 2 || !reflect.DeepEqual(files[0], authz.StoredFile{}) {
			t.Errorf("of none there is %+v", files)
		}
		return files[1], err
	}
	for name, get := range map[string]func(context.Context, meter.EAN) (authz.StoredFile, error){
		"gateway": g.LegalFile, "registrar": r.LegalFile, "ingest": ofMany,
	} {
		if f, err := get(t.Context(), home); err != nil || f.Version != supplied(t, home).Version() || f.Previous != nil || string(f.Sealed) != "first" {
			t.Errorf("%s: %+v, %v", name, f, err) // the one before was not stored
		}
		if f, err := get(t.Context(), neighbour); !reflect.DeepEqual(f, authz.StoredFile{}) || err != nil {
			t.Errorf("%s: of another: %+v, %v", name, f, err)
		}
	}
	const supply = `SELECT string_agg(gln || ' ' || from_day || ' ' || coalesce(to_day::text, 'open'), '; ' ORDER BY from_day) FROM supply_period WHERE ean = $1`
	const consent = `SELECT string_agg(consent_id || ' ' || gln || ' ' || state || ' ' || from_day || ' ' || coalesce(to_day::text, 'open') || ' ' ||
		(extract(epoch FROM valid_until) * 1000000)::bigint, '; ') FROM consent WHERE ean = $1`
	until := now.AddDate(1, 0, 0).UnixMicro()
	c := f.Consents()[0]
	id := fmt.Sprintf("%x-%x-%x-%x-%x", c.ID[:4], c.ID[4:6], c.ID[6:8], c.ID[8:10], c.ID[10:])
	if got, want := value(t, owner, supply, home.Int64()), alpha.String()+" 2025-01-01 open"; got != want {
		t.Errorf("supply periods: %s, want %s", got, want)
	}
	if got, want := value(t, owner, consent, home.Int64()), fmt.Sprintf("%s %s 2 2025-01-01 open %d", id, alpha, until); got != want {
		t.Errorf("consents: %s, want %s", got, want)
	}
	if got := value(t, owner, `SELECT commodity FROM metering_point WHERE ean = $1`, home.Int64()); got != "1" {
		t.Errorf("commodity %s", got)
	}

	// The indexes of the next version replace those of this, also what
	// somebody added by hand, and no other metering point's.
	if err := r.StoreLegalFile(t.Context(), supplied(t, neighbour), []byte("neighbour")); err != nil {
		t.Fatal(err)
	}
	before := value(t, owner, supply, neighbour.Int64()) + value(t, owner, consent, neighbour.Int64())
	if _, err := owner.ExecContext(t.Context(), `INSERT INTO supply_period (ean, gln, from_day) VALUES ($1, $2, '2020-01-01')`, home.Int64(), gln(9).Int64()); err != nil {
		t.Fatal(err)
	}
	next := must(authz.Apply(f, authz.SetSupply{Supplier: beta, Days: days("2026-06-01", "")}, operator, now, profile().Location()))
	next = must(authz.Apply(next, authz.RevokeConsent{ID: c.ID}, operator, now.Add(time.Second), profile().Location()))
	if err := r.StoreLegalFile(t.Context(), next, []byte("second")); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%s 2025-01-01 2026-06-01; %s 2026-06-01 open", alpha, beta)
	if got := value(t, owner, supply, home.Int64()); got != want {
		t.Errorf("supply periods: %s, want %s", got, want)
	}
	if got := value(t, owner, consent, home.Int64()); !strings.HasPrefix(got, id+" "+alpha.String()+" 4 ") {
		t.Errorf("consents: %s, want revoked", got)
	}
	if got := value(t, owner, supply, neighbour.Int64()) + value(t, owner, consent, neighbour.Int64()); got != before {
		t.Errorf("the neighbour's indexes became %s", got)
	}
	if f, err := g.LegalFile(t.Context(), home); f.Version != next.Version() || string(f.Sealed) != "second" || err != nil {
		t.Errorf("current: %+v, %v", f, err)
	}

	// A version collides as a whole: the indexes stay as they are.
	other := must(authz.Apply(f, authz.SetSupply{Supplier: gln(3), Days: days("2026-07-01", "")}, operator, now, profile().Location()))
	other = must(authz.Apply(other, authz.SetOptOut{Days: days("2026-07-01", "")}, operator, now.Add(time.Second), profile().Location()))
	if err := r.StoreLegalFile(t.Context(), other, []byte("other")); !errors.Is(err, postgres.ErrConflict) {
		t.Errorf("the same version again: %v, want ErrConflict", err)
	}
	if got := value(t, owner, supply, home.Int64()); got != want {
		t.Errorf("after a collision the supply periods are %s", got)
	}
}

// Of two writers of one version exactly one wins, and the indexes are the
// winner's.
func TestWritersOfOneVersion(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	r := registrar(t, d)
	base := file(t, home, authz.SetOccupancy{Days: days("2024-01-01", "")})
	if err := r.StoreLegalFile(t.Context(), base, []byte("base")); err != nil {
		t.Fatal(err)
	}
	const writers = 6
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for i := range writers {
		f := must(authz.Apply(base, authz.SetSupply{Supplier: gln(i), Days: days("2026-06-01", "")}, operator, now, profile().Location()))
		wg.Go(func() { errs[i] = r.StoreLegalFile(t.Context(), f, []byte(gln(i).String())) })
	}
	wg.Wait()
	won := ""
	for i, err := range errs {
		switch {
		case err == nil && won == "":
			won = gln(i).String()
		case err == nil:
			t.Error("two writers of one version succeeded")
		case !errors.Is(err, postgres.ErrConflict):
			t.Errorf("%v, want ErrConflict", err)
		}
	}
	if f, err := r.LegalFile(t.Context(), home); string(f.Sealed) != won || err != nil {
		t.Errorf("current is %q, %v; want %s", f.Sealed, err, won)
	}
	if got := value(t, d.Open(t, migrations.RoleOwner), `SELECT string_agg(gln::text, ' ') FROM supply_period`); got != won {
		t.Errorf("the index says %s, want %s", got, won)
	}
}

func TestCandidates(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g, r := gateway(t, d), registrar(t, d)
	var want []meter.EAN
	for n := range 12 {
		steps := []authz.Step{authz.SetOccupancy{Days: days("2024-01-01", "")}}
		who := alpha
		if n%3 == 2 {
			who = beta
		} else {
			want = append(want, ean(n))
		}
		// Twice alpha, with beta between: still one candidate.
		steps = append(steps, authz.SetSupply{Supplier: who, Days: days("2025-01-01", "2025-06-01")},
			authz.SetSupply{Supplier: gln(7), Days: days("2025-06-01", "2025-07-01")},
			authz.SetSupply{Supplier: who, Days: days("2025-07-01", "")})
		if n%2 == 0 {
			steps = append(steps, authz.GrantConsent{ID: [16]byte{byte(n), 1}, Supplier: who, Purpose: meter.EnergyManagement,
				Classes: []meter.Class{meter.Intervals}, Granularity: meter.PT15M, Days: days("2025-01-01", ""), ValidUntil: now.AddDate(1, 0, 0), Evidence: "x"})
		}
		f := file(t, ean(n), steps...)
		if err := r.StoreLegalFile(t.Context(), f, []byte(f.EAN().String())); err != nil {
			t.Fatal(err)
		}
	}
	slices.SortFunc(want, func(a, b meter.EAN) int { return int(a.Int64() - b.Int64()) })
	for _, limit := range []int{1, 2, 3, 7, 8, 9, 100} {
		var got []meter.EAN
		var after meter.EAN
		for {
			page, err := g.Candidates(t.Context(), alpha, after, limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range page {
				if string(c.LegalFile.Sealed) != c.EAN.String() || c.LegalFile.Version == 0 {
					t.Errorf("%s comes with the file of %s", c.EAN, c.LegalFile.Sealed)
				}
				got = append(got, c.EAN)
				after = c.EAN
			}
			if len(page) > limit {
				t.Fatalf("%d for a limit of %d", len(page), limit)
			}
			if len(page) < limit {
				break
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("in pages of %d: %v, want %v", limit, got, want)
		}
	}

	// Rows put into the index by hand: one is no EAN, one has no legal file.
	owner := d.Open(t, migrations.RoleOwner)
	unknown := ean(99)
	for _, n := range []int64{1, 2, 3, unknown.Int64()} {
		if _, err := owner.ExecContext(t.Context(), `INSERT INTO supply_period (ean, gln, from_day) VALUES ($1, $2, '2020-01-01')`, n, alpha.Int64()); err != nil {
			t.Fatal(err)
		}
	}
	page, err := g.Candidates(t.Context(), alpha, meter.EAN{}, 9)
	if err != nil || len(page) != 9 {
		t.Fatalf("%d candidates, %v", len(page), err)
	}
	if last := page[8]; last.EAN != unknown || last.LegalFile.Sealed != nil {
		t.Errorf("the last is %v", last)
	}
}

func TestBlocksAreExactlyTheGrants(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g, in := gateway(t, d), ingest(t, d)
	year := days("2025-01-01", "2026-02-01")
	seed(t, in, home, year)
	seed(t, in, neighbour, year)

	for name, c := range map[string]struct {
		grant authz.Grant
		rows  int
	}{
		"a month of daily registers and intervals": {grant(t, home, meter.EnergyManagement, days("2025-03-01", "2025-04-01"), 1, 2, 3, 4, 6, 7), 4*32 + 2*31},
		"the day the clocks change":                {grant(t, home, meter.EnergyManagement, days("2025-03-30", "2025-03-31"), 1, 6), 2 + 1},
		"a year of month boundaries":               {grant(t, home, meter.Billing, days("2025-01-01", "2026-01-01"), 1, 2), 2 * 13},
		"before supply began":                      {grant(t, home, meter.EnergyManagement, days("2024-12-01", "2025-01-03"), 1, 6), 3 + 2},
		"beyond what is stored":                    {grant(t, home, meter.EnergyManagement, days("2026-01-30", "2026-02-10"), 6), 2},
	} {
		want := map[string]bool{}
		for _, r := range c.grant.Reads() {
			for dd := range r.Days.All() {
				if year.Contains(dd) {
					want[string(bytes.TrimRight(block(home, r.Field, dd, uint32(1+dd%3)).Ciphertext, "\x00"))] = true
				}
			}
		}
		if len(want) != c.rows {
			t.Errorf("%s: the grant reads %d stored days, want %d", name, len(want), c.rows)
		}
		keys, blocks, err := g.Blocks(t.Context(), c.grant)
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range blocks {
			is := string(bytes.TrimRight(b.Ciphertext, "\x00"))
			if !want[is] {
				t.Errorf("%s: got %s, which is not granted, not current, or twice", name, is)
			}
			delete(want, is)
			if !strings.HasSuffix(is, fmt.Sprintf("/%d/%s/%d", b.Field, b.Day, b.Version)) {
				t.Errorf("%s: %s comes as field %d day %s version %d", name, is, b.Field, b.Day, b.Version)
			}
			field, _ := profile().FieldByCode(b.Field)
			if b.Key < 0 || !reflect.DeepEqual(keys[b.Key], key(home, field.Class, b.Day.Month())) {
				t.Errorf("%s: %s has key %d of %v", name, is, b.Key, keys)
			}
			if wantRes := block(home, b.Field, b.Day, 1).Resolution; b.Resolution != wantRes {
				t.Errorf("%s: resolution %v, want %v", name, b.Resolution, wantRes)
			}
			if i > 0 && (blocks[i-1].Field > b.Field || blocks[i-1].Field == b.Field && blocks[i-1].Day >= b.Day) {
				t.Errorf("%s: not ascending at %d", name, i)
			}
		}
		for is := range want {
			t.Errorf("%s: %s is missing", name, is)
		}
	}

	if keys, blocks, err := g.Blocks(t.Context(), authz.Grant{}); len(keys)+len(blocks) != 0 || err != nil {
		t.Errorf("without a grant: %v, %v, %v", keys, blocks, err)
	}
}

// A destroyed key leaves its blocks without one, and an odd row is passed on
// to where it does not open.
func TestDamagedRows(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g := gateway(t, d)
	seed(t, ingest(t, d), home, days("2025-01-30", "2025-02-02"))
	owner := d.Open(t, migrations.RoleOwner)
	for _, stmt := range []string{
		fmt.Sprintf(`DELETE FROM data_key WHERE class = 1 AND month = %d`, day("2025-01-30").Month()),
		`UPDATE sealed_block SET resolution = -1 WHERE day = '2025-02-01' AND field = 6`,
	} {
		if _, err := owner.ExecContext(t.Context(), stmt); err != nil {
			t.Fatal(err)
		}
	}
	keys, blocks, err := g.Blocks(t.Context(), grant(t, home, meter.EnergyManagement, days("2025-01-30", "2025-02-02"), 1, 6))
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 3 {
		t.Errorf("%d keys, want 3", len(keys))
	}
	for _, b := range blocks {
		destroyed := b.Field == 1 && b.Day < day("2025-02-01")
		if (b.Key == envelope.NoKey) != destroyed {
			t.Errorf("field %d day %s has key %d", b.Field, b.Day, b.Key)
		}
		if odd := b.Field == 6 && b.Day == day("2025-02-01"); odd != (b.Resolution == 0) {
			t.Errorf("field %d day %s has resolution %d", b.Field, b.Day, b.Resolution)
		}
	}
}

// TestDaysIgnoreTimeZones: neither the session's zone nor the process's moves
// a day.
func TestDaysIgnoreTimeZones(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	for i, zone := range []string{"Pacific/Kiritimati", "Pacific/Niue", "Europe/Amsterdam"} {
		c := config(d, migrations.RoleIngest)
		c.DSN += "&timezone=" + zone
		in, err := postgres.NewIngest(t.Context(), c)
		in = closing(t, in, err)
		seed(t, in, ean(10+i), days("2025-10-25", "2025-10-28"))
		heads, err := in.Heads(t.Context(), []meter.EAN{ean(10 + i)}, []meter.FieldCode{1}, days("2025-10-26", "2025-10-27"))
		if err != nil || len(heads) != 1 || heads[0].Day != day("2025-10-26") {
			t.Errorf("%s: %v, %v", zone, heads, err)
		}
		if got := value(t, d.Open(t, migrations.RoleOwner), `SELECT string_agg(DISTINCT day::text, ' ' ORDER BY day::text) FROM sealed_block WHERE ean = $1`, ean(10+i).Int64()); got != "2025-10-25 2025-10-26 2025-10-27" {
			t.Errorf("%s: stored %s", zone, got)
		}
	}
}

func TestIngest(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in, g := ingest(t, d), gateway(t, d)
	period := days("2025-01-01", "2025-03-01")

	if at, err := g.LastStored(t.Context()); !at.IsZero() || err != nil {
		t.Errorf("nothing was stored yet: %v, %v", at, err)
	}
	if err := in.Commit(t.Context(), postgres.Batch{}); err != nil {
		t.Errorf("an empty batch: %v", err)
	}
	began := time.Now().Add(-time.Second)
	seed(t, in, home, period)
	seed(t, in, neighbour, period)
	if at, err := g.LastStored(t.Context()); at.Before(began) || time.Until(at) > time.Second || err != nil {
		t.Errorf("last stored at %v, %v", at, err)
	}

	heads, err := in.Heads(t.Context(), []meter.EAN{home}, []meter.FieldCode{6, 1, 6}, days("2025-01-31", "2025-02-02"))
	if err != nil || len(heads) != 4 {
		t.Fatalf("%d heads, %v", len(heads), err)
	}
	for _, h := range heads {
		b := block(home, h.Field, h.Day, uint32(1+h.Day%3))
		want := postgres.Head{EAN: home, Field: b.Field, Day: b.Day, Version: b.Version, Resolution: b.Resolution, ValueCount: b.ValueCount, KeyID: b.KeyID, ContentMAC: b.ContentMAC}
		if h != want {
			t.Errorf("head %+v, want %+v", h, want)
		}
	}
	if heads, err := in.Heads(t.Context(), []meter.EAN{ean(3)}, []meter.FieldCode{1}, period); len(heads) != 0 || err != nil {
		t.Errorf("of another there are %v, %v", heads, err)
	}

	month := day("2025-02-01").Month()
	keys, err := in.Keys(t.Context(), []meter.EAN{home}, month, month+5)
	if err != nil || len(keys) != 2 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	for _, k := range keys {
		if !reflect.DeepEqual(k, key(home, k.Class, month)) {
			t.Errorf("key %+v", k)
		}
	}

	// All or nothing.
	owner := d.Open(t, migrations.RoleOwner)
	const count = `SELECT (SELECT count(*) FROM sealed_block) || ' ' || (SELECT count(*) FROM data_key) || ' ' || (SELECT count(*) FROM ingest_batch)`
	before := value(t, owner, count)
	fresh := block(home, 1, day("2025-01-01"), 9)
	again := key(home, meter.Registers, month)
	again.ID[15] = 1
	for name, b := range map[string]postgres.Batch{
		"a version again":            {Blocks: []postgres.Row{fresh, block(home, 1, day("2025-01-02"), 1)}},
		"a key of the month again":   {Keys: []envelope.KeyRecord{again}, Blocks: []postgres.Row{fresh}},
		"the same block twice in it": {Blocks: []postgres.Row{fresh, fresh}},
	} {
		if err := in.Commit(t.Context(), b); !errors.Is(err, postgres.ErrConflict) {
			t.Errorf("%s: %v, want ErrConflict", name, err)
		}
		if got := value(t, owner, count); got != before {
			t.Errorf("%s: %s rows, before %s", name, got, before)
		}
	}
	bad := fresh
	bad.Ciphertext = make([]byte, 20000)
	err = in.Commit(t.Context(), postgres.Batch{Blocks: []postgres.Row{fresh, bad}})
	if err == nil || errors.Is(err, postgres.ErrUnavailable) || errors.Is(err, postgres.ErrConflict) {
		t.Errorf("a ciphertext too long: %v", err)
	}
	if got := value(t, owner, count); got != before {
		t.Errorf("a ciphertext too long: %s rows, before %s", got, before)
	}
}

// TestWritersOfOneMeteringPoint: batches over the same metering points, in any
// order, never deadlock, and each is stored whole or not at all.
func TestWritersOfOneMeteringPoint(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in := ingest(t, d)
	var keys postgres.Batch
	for n := range 4 {
		keys.Keys = append(keys.Keys, key(ean(n), meter.Registers, day("2025-01-01").Month()))
	}
	if err := in.Commit(t.Context(), keys); err != nil {
		t.Fatal(err)
	}
	const writers = 8
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for i := range writers {
		var b postgres.Batch
		for n := range 4 {
			b.Blocks = append(b.Blocks, block(ean((n+i)%4), 1, day("2025-01-01")+meter.Day(i/2), 1))
		}
		if i%2 == 1 {
			slices.Reverse(b.Blocks)
		}
		wg.Go(func() { errs[i] = in.Commit(t.Context(), b) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil && !errors.Is(err, postgres.ErrConflict) {
			t.Errorf("writer %d: %v", i, err)
		}
	}
	for i := range writers / 2 {
		if errs[2*i] != nil && errs[2*i+1] != nil {
			t.Errorf("both writers of day %d lost: %v, %v", i, errs[2*i], errs[2*i+1])
		}
	}
}

// A writer waits for another of the same metering point, and for no other.
func TestOneWriterAtATime(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in := ingest(t, d)
	month := meter.Day(20000).Month()
	if err := in.Commit(t.Context(), postgres.Batch{Keys: []envelope.KeyRecord{key(home, meter.Registers, month), key(neighbour, meter.Registers, month)}}); err != nil {
		t.Fatal(err)
	}
	tx, err := d.Open(t, migrations.RoleOwner).BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(t.Context(), `SELECT pg_advisory_xact_lock($1)`, home.Int64()); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(t.Context(), postgres.Batch{Blocks: []postgres.Row{block(neighbour, 1, 20000, 1)}}); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err = in.Commit(ctx, postgres.Batch{Blocks: []postgres.Row{block(neighbour, 1, 20001, 1), block(home, 1, 20000, 1)}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while another writes: %v", err)
	}
}

func TestTransact(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	in := ingest(t, d)
	owner := d.Open(t, migrations.RoleOwner)
	insert := func(ctx context.Context, tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO ingest_batch (ean, batch_id, keys, blocks) VALUES (1, gen_random_uuid(), 0, 0)`)
		return err
	}
	count := func() string { return value(t, owner, `SELECT count(*) FROM ingest_batch`) }

	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = in.Transact(t.Context(), func(ctx context.Context, tx *sqlx.Tx) error {
			if err := insert(ctx, tx); err != nil {
				t.Error(err)
			}
			panic("bug")
		})
	}()
	if got := count(); got != "0" {
		t.Errorf("after a panic %s rows are stored", got)
	}
	if used := in.Stats().InUse; used != 0 {
		t.Errorf("after a panic %d connections are in use", used)
	}

	mine := errors.New("mine")
	if err := in.Transact(t.Context(), func(ctx context.Context, tx *sqlx.Tx) error {
		return errors.Join(insert(ctx, tx), mine)
	}); err == nil {
		t.Error("the error was swallowed")
	}
	if got := count(); got != "0" {
		t.Errorf("after an error %s rows are stored", got)
	}

	// Rolled back for another's sake: again, a bounded number of times.
	for code, wantRuns := range map[string]int{"40001": 4, "40P01": 4, "23514": 1} {
		runs := 0
		err := in.Transact(t.Context(), func(ctx context.Context, tx *sqlx.Tx) error {
			runs++
			_, err := tx.ExecContext(ctx, `DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '`+code+`'; END $$`)
			return err
		})
		if runs != wantRuns {
			t.Errorf("SQLSTATE %s: %d runs, want %d", code, runs, wantRuns)
		}
		if again := code != "23514"; errors.Is(err, postgres.ErrUnavailable) != again {
			t.Errorf("SQLSTATE %s: %v", code, err)
		}
	}
	runs := 0
	if err := in.Transact(t.Context(), func(ctx context.Context, tx *sqlx.Tx) error {
		if runs++; runs == 1 {
			_, err := tx.ExecContext(ctx, `DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$`)
			return err
		}
		return insert(ctx, tx)
	}); err != nil || runs != 2 || count() != "1" {
		t.Errorf("the second run: %v, %d runs, %s rows", err, runs, count())
	}

	// Real deadlocks: every transaction gets through.
	var locks atomic.Int32
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i := range 2 {
		wg.Go(func() {
			errs[i] = in.Transact(t.Context(), func(ctx context.Context, tx *sqlx.Tx) error {
				if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, 1+i); err != nil {
					return err
				}
				locks.Add(1)
				for locks.Load() < 2 && ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				_, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, 2-i)
				return err
			})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Errorf("deadlock: %v", err)
	}
}

func TestRecord(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g := gateway(t, d)
	owner := d.Open(t, migrations.RoleOwner)
	opened := record()
	refused := record()
	refused.Outcome, refused.FileVersion, refused.Receipt = audit.NoRelation, 0, nil
	list := audit.Record{InteractionID: [16]byte{9}, At: now, Operation: audit.List, Supplier: alpha, Outcome: audit.Given}
	salts := map[string]bool{}
	for _, r := range []audit.Record{opened, refused, list} {
		if err := g.Record(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		var b, receipt, salt []byte
		var eanColumn, glnColumn, outcome int64
		var at time.Time
		err := owner.QueryRowContext(t.Context(), `SELECT record, receipt, salt, ean, gln, outcome, recorded_at FROM access_log WHERE ean = $1 AND interaction_id = $2`,
			r.EAN.Int64(), fmt.Sprintf("%x", r.InteractionID)).Scan(&b, &receipt, &salt, &eanColumn, &glnColumn, &outcome, &at)
		if err != nil {
			t.Fatal(err)
		}
		back, err := audit.Parse(b, receipt)
		if err != nil || !reflect.DeepEqual(back, r) {
			t.Errorf("stored %+v, %v", back, err)
		}
		if eanColumn != r.EAN.Int64() || glnColumn != alpha.Int64() || outcome != int64(r.Outcome) || time.Since(at) > time.Minute {
			t.Errorf("columns %d %d %d %v", eanColumn, glnColumn, outcome, at)
		}
		salts[string(salt)] = true
	}
	if len(salts) != 3 {
		t.Errorf("%d different salts of 3", len(salts))
	}

	// A second record of the interaction is not taken for the first.
	opened.Outcome = audit.Failed
	if err := g.Record(t.Context(), opened); !errors.Is(err, postgres.ErrUnavailable) {
		t.Errorf("a second record of one interaction: %v", err)
	}
	if err := g.Record(t.Context(), audit.Record{}); !errors.Is(err, audit.ErrRecord) {
		t.Errorf("no record at all: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Record(ctx, record()); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	if got := value(t, owner, `SELECT count(*) FROM access_log`); got != "3" {
		t.Errorf("%s records", got)
	}
}

// TestErrorsHoldNoData provokes errors whose PostgreSQL texts quote values.
func TestErrorsHoldNoData(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	owner := d.Open(t, migrations.RoleOwner)
	for _, stmt := range []string{
		`INSERT INTO metering_point (ean, commodity) VALUES (871685900000000015, 7)`,
		`INSERT INTO metering_point (ean, commodity) VALUES (871685900000000015, 1), (871685900000000015, 1)`,
		`SELECT '871685900000000015'::int`,
		`SELECT '871685900000000015 kWh'::bigint`,
		`DO $$ BEGIN RAISE EXCEPTION '871685900000000015' USING ERRCODE = '57P01'; END $$`,
		`DO $$ BEGIN RAISE EXCEPTION '871685900000000015'; END $$`,
	} {
		_, err := owner.ExecContext(t.Context(), stmt)
		if err == nil {
			t.Fatalf("%s: no error", stmt)
		}
		wrapped := postgres.Wrap(t.Context(), "test", err)
		for e := wrapped; e != nil; e = errors.Unwrap(e) {
			if strings.Contains(fmt.Sprintf("%+v", e), "871685900") {
				t.Errorf("%s: %+v", stmt, e)
			}
		}
	}
	var n int
	err := owner.QueryRowContext(t.Context(), `SELECT '871685900000000015 kWh'`).Scan(&n)
	if wrapped := postgres.Wrap(t.Context(), "test", err); strings.Contains(wrapped.Error(), "871685900") {
		t.Errorf("scan: %v", wrapped)
	}
	if postgres.Wrap(t.Context(), "test", nil) != nil {
		t.Error("nil becomes an error")
	}
	if err := postgres.Wrap(t.Context(), "test", sql.ErrConnDone); !errors.Is(err, postgres.ErrUnavailable) {
		t.Errorf("a closed connection: %v", err)
	}
}
