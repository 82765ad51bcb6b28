package postgres_test

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func withCheckDigit(digits string) string {
	sum := 0
	for i := range digits {
		w := 1
		if (len(digits)-i)%2 == 1 {
			w = 3
		}
		sum += w * int(digits[i]-'0')
	}
	return fmt.Sprintf("%s%d", digits, (10-sum%10)%10)
}

func ean(n int) meter.EAN {
	return must(meter.ParseEAN(withCheckDigit(fmt.Sprintf("871685900%08d", n))))
}
func gln(n int) meter.GLN {
	return must(meter.ParseGLN(withCheckDigit(fmt.Sprintf("87123456%04d", n))))
}

func day(s string) meter.Day {
	if s == "" {
		return meter.MaxDay
	}
	return must(meter.ParseDay(s))
}
func days(from, to string) meter.DayRange { return meter.DayRange{From: day(from), To: day(to)} }

var profile = sync.OnceValue(func() *meter.Profile { return must(meter.ParseProfile(meter.NL())) })

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

type caller meter.GLN

func (c caller) Supplier() meter.GLN       { return meter.GLN(c) }
func (c caller) Employee() *authz.Employee { return nil }

var operator = authz.Actor{Kind: authz.ByOperator, Name: "operator"}

var (
	home, neighbour = ean(1), ean(2)
	alpha, beta     = gln(1), gln(2)
)

// file is a legal file with the steps taken, sealed by nobody: this package
// does not look inside.
func file(t testing.TB, of meter.EAN, steps ...authz.Step) *authz.LegalFile {
	t.Helper()
	f, err := authz.Apply(nil, authz.Register{EAN: of, Commodity: meter.Electricity}, operator, now.AddDate(-2, 0, 0), profile().Location())
	for _, s := range steps {
		if err != nil {
			t.Fatal(err)
		}
		f, err = authz.Apply(f, s, operator, f.SealedAt().Add(time.Microsecond), profile().Location())
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// supplied is the file of a home that alpha supplies since 2025, with consent
// for its intervals.
func supplied(t testing.TB, of meter.EAN) *authz.LegalFile {
	return file(t, of,
		authz.SetOccupancy{Days: days("2024-01-01", "")},
		authz.SetSupply{Supplier: alpha, Days: days("2025-01-01", "")},
		authz.GrantConsent{
			ID: [16]byte{1, byte(of.Int64() / 10)}, Supplier: alpha, Purpose: meter.EnergyManagement,
			Classes: []meter.Class{meter.Intervals}, Granularity: meter.PT15M,
			Days: days("2025-01-01", ""), ValidUntil: now.AddDate(1, 0, 0), Evidence: "letter",
		})
}

func grant(t testing.TB, of meter.EAN, purpose meter.Purpose, period meter.DayRange, fields ...meter.FieldCode) authz.Grant {
	t.Helper()
	g, _, err := authz.Decide(caller(alpha), authz.Request{EAN: of, Purpose: purpose, Days: period, Fields: fields}, supplied(t, of), profile(), now)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func config(d *pgtest.DB, role string) postgres.Config { return postgres.Config{DSN: d.URL(role)} }

func closing[T interface{ Close() error }](t testing.TB, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

func gateway(t testing.TB, d *pgtest.DB) *postgres.Gateway {
	g, err := postgres.NewGateway(t.Context(), config(d, migrations.RoleGateway))
	return closing(t, g, err)
}

func ingest(t testing.TB, d *pgtest.DB) *postgres.Ingest {
	i, err := postgres.NewIngest(t.Context(), config(d, migrations.RoleIngest))
	return closing(t, i, err)
}

func registrar(t testing.TB, d *pgtest.DB) *postgres.Registrar {
	r, err := postgres.NewRegistrar(t.Context(), config(d, migrations.RoleRegistrar))
	return closing(t, r, err)
}

// key is the data key of a month.
func key(of meter.EAN, c meter.Class, m meter.Month) envelope.KeyRecord {
	k := envelope.KeyRecord{EAN: of, Class: c, Month: m, Occupancy: day("2024-01-01"), Epoch: 1, Wrapped: make([]byte, 40)}
	k.ID = [16]byte{0xd0, byte(of.Int64() / 10), byte(c), byte(m >> 8), byte(m)}
	k.MAC = [32]byte{byte(c), byte(m)}
	k.Wrapped[0] = byte(m)
	return k
}

// block is a stored block whose ciphertext says which it is.
func block(of meter.EAN, f meter.FieldCode, d meter.Day, version uint32) postgres.Row {
	field, _ := profile().FieldByCode(f)
	r := postgres.Row{
		EAN: of, Field: f, Day: d, Version: version, Resolution: meter.P1D, KeyID: key(of, field.Class, d.Month()).ID, ValueCount: 1,
		ContentMAC: [32]byte{byte(f), byte(d >> 8), byte(d), byte(version)},
		Ciphertext: fmt.Appendf(nil, "%s/%d/%s/%d", of, f, d, version),
	}
	if field.Class == meter.Intervals {
		r.Resolution, r.ValueCount = meter.PT15M, 96
		r.Ciphertext = append(r.Ciphertext, make([]byte, 900)...)
	}
	return r
}

// seed stores a year of all fields, with corrections here and there.
func seed(t testing.TB, in *postgres.Ingest, of meter.EAN, period meter.DayRange) {
	t.Helper()
	var b postgres.Batch
	for m := period.From.Month(); m <= (period.To - 1).Month(); m++ {
		b.Keys = append(b.Keys, key(of, meter.Registers, m), key(of, meter.Intervals, m))
	}
	for d := period.From; d < period.To; d++ {
		for _, f := range []meter.FieldCode{1, 2, 3, 4, 6, 7} {
			for v := range uint32(1 + d%3) {
				b.Blocks = append(b.Blocks, block(of, f, d, v+1))
			}
		}
	}
	if err := in.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func record() audit.Record {
	return audit.Record{
		InteractionID: uuid.New(), At: now, Operation: audit.Readings, Supplier: alpha, EAN: home, Purpose: meter.EnergyManagement,
		Days: days("2026-01-01", "2026-02-01"), Fields: []meter.FieldCode{1}, Outcome: audit.Given,
		FileVersion: 3, Receipt: []byte("receipt"),
	}
}

func value(t testing.TB, db *sql.DB, query string, args ...any) string {
	t.Helper()
	var s sql.NullString
	if err := db.QueryRowContext(context.Background(), query, args...).Scan(&s); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return s.String
}

func openURL(url string) (*sql.DB, error) { return sql.Open("postgres", url) }
