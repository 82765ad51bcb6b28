package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/url"
	"path/filepath"
	"text/tabwriter"
	"time"

	"kluis/authz"
	"kluis/cmd/kluis/backend"
	sealing "kluis/cryptoserver/client"
	"kluis/ingest"
	"kluis/internal/config"
	"kluis/internal/postgres"
	"kluis/meter"
	"kluis/migrations"
)

// The ingest of one day goes the way that kluis ingest goes: package ingest,
// cryptoservers on SoftHSM over mutual TLS, PostgreSQL with all its syncs. The
// cryptoservers and PostgreSQL are a demo's; the database is one of its own in
// that PostgreSQL, because its legal files are sealed with a key made for the
// run: to have the HSMs seal two for each metering point would take longer than
// what is measured.

const (
	ingestDatabase = "bench_ingest"
	ingestAtOnce   = 500 // metering points stored together
	ingestAlone    = 2000
)

// ingestReport is all of it.
type ingestReport struct {
	Date    time.Time  `json:"date"`
	Machine string     `json:"machine"`
	Load    string     `json:"load_average"`
	Points  int        `json:"metering_points"`
	Days    []ingested `json:"days"`
	TableMB float64    `json:"table_mb"`
	IndexMB float64    `json:"index_mb"`
}

// ingested is one day.
type ingested struct {
	What     string  `json:"what"`
	Points   int     `json:"metering_points"`
	Blocks   int     `json:"blocks"`
	Seconds  float64 `json:"seconds"`
	Ingest   float64 `json:"ingest_cpu_seconds"`
	Servers  float64 `json:"cryptoserver_cpu_seconds"`
	Database float64 `json:"postgresql_cpu_seconds"`
}

func measureIngest(ctx context.Context, o options, dir string, points int) (_ *ingestReport, err error) {
	if err := enoughDisk(dir, int64(points)*(30<<10)+2<<30); err != nil {
		return nil, err
	}
	r := &ingestReport{Date: time.Now().UTC(), Machine: machine(), Load: loadAverage(), Points: points}
	w := &world{bin: o.bin, state: filepath.Join(dir, "state")}
	defer func() { err = errors.Join(err, w.stop()) }()
	fmt.Fprintln(o.progress, "  starting a demo")
	if err := w.startDemo(ctx, dir); err != nil {
		return nil, err
	}
	profile, err := w.marketProfile()
	if err != nil {
		return nil, err
	}
	conf, err := config.Load[config.Operator](filepath.Join(w.state, "kluis.yaml"))
	if err != nil {
		return nil, err
	}
	eans := make([]meter.EAN, points)
	for i := range eans {
		if eans[i], err = meter.ParseEAN(withCheckDigit(fmt.Sprintf("87169999%09d", i))); err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(o.progress, "  registering %d metering points\n", points)
	keys, owner, err := w.register(ctx, conf, profile, eans)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, owner.Close()) }()

	store, err := postgres.NewIngest(ctx, postgres.Config{DSN: inDatabase(conf.IngestURL), StatementTimeout: time.Minute})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	tls, err := config.ClientTLS(conf.Ingest.TLS)
	if err != nil {
		return nil, err
	}
	servers, err := sealing.New(sealing.Config{Addresses: conf.Ingest.Addresses, TLS: tls, Timeout: time.Minute})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, servers.Close()) }()
	in := ingest.New(profile, keys, backend.IngestSealer{Sealer: servers}, backend.IngestStore{DB: store})

	today := meter.DayOf(time.Now(), profile.Location())
	first := today.Month().First()
	for _, d := range []struct {
		what   string
		day    meter.Day
		points []meter.EAN
		atOnce int
	}{
		{"first day of a month: two data keys each", (today.Month() - 1).First(), eans, ingestAtOnce},
		{"another day", first - 1, eans, ingestAtOnce},
		{"the same day once more", first - 1, eans, ingestAtOnce},
		{"each metering point by itself, some", first - 2, eans[:min(ingestAlone, points)], 1},
	} {
		fmt.Fprintf(o.progress, "  %s\n", d.what)
		x, err := w.ingestDay(ctx, in, profile, d.points, d.day, d.atOnce)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.what, err)
		}
		x.What = d.what
		r.Days = append(r.Days, x)
	}
	err = owner.QueryRowContext(ctx, `SELECT sum(pg_table_size(inhrelid)) / 1e6, sum(pg_indexes_size(inhrelid)) / 1e6 FROM pg_inherits WHERE inhparent = 'sealed_block'::regclass`).Scan(&r.TableMB, &r.IndexMB)
	r.Load += "; after: " + loadAverage()
	return r, err
}

// inDatabase is the URL of a role in the run's own database.
func inDatabase(of string) string {
	u, err := url.Parse(of)
	if err != nil {
		return of
	}
	u.Path = "/" + ingestDatabase
	return u.String()
}

// register makes the database, with a legal file of two versions of each
// metering point, and says which key they are sealed with.
func (w *world) register(ctx context.Context, conf config.Operator, profile *meter.Profile, eans []meter.EAN) (_ *authz.SealKeys, _ *sql.DB, err error) {
	super, err := sql.Open("postgres", w.ready.DatabaseURL)
	if err != nil {
		return nil, nil, err
	}
	_, err = super.ExecContext(ctx, `CREATE DATABASE `+ingestDatabase+` OWNER `+migrations.RoleOwner)
	if err := errors.Join(err, super.Close()); err != nil {
		return nil, nil, err
	}
	owner, err := sql.Open("postgres", inDatabase(conf.MigrateURL))
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, owner.Close())
		}
	}()
	if _, err := migrations.Up(ctx, owner); err != nil {
		return nil, nil, err
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	keys, err := authz.NewSealKeys(&private.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	signer := softSigner{private}
	at := time.Now().AddDate(-1, 0, 0)
	for from := 0; from < len(eans); from += 10_000 {
		var points, files [][]any
		for _, ean := range eans[from:min(from+10_000, len(eans))] {
			points = append(points, []any{ean.Int64(), 1})
			var f *authz.LegalFile
			for _, step := range []authz.Step{
				authz.Register{EAN: ean, Commodity: meter.Electricity},
				authz.SetOccupancy{Days: meter.DayRange{From: meter.DayOf(at, profile.Location()), To: meter.MaxDay}},
			} {
				if f, err = authz.Apply(f, step, operator, at.Add(time.Duration(len(files))*time.Second), profile.Location()); err != nil {
					return nil, nil, err
				}
				sealed, err := authz.Seal(f.Payload(), signer)
				if err != nil {
					return nil, nil, err
				}
				files = append(files, []any{ean.Int64(), int64(f.Version()), sealed, f.SealedAt()})
			}
		}
		err1 := copyIn(ctx, owner, "metering_point", []string{"ean", "commodity"}, points)
		err2 := copyIn(ctx, owner, "legal_file", []string{"ean", "version", "file", "sealed_at"}, files)
		if err := errors.Join(err1, err2); err != nil {
			return nil, nil, err
		}
	}
	_, err = owner.ExecContext(ctx, `ANALYZE`)
	return keys, owner, err
}

// dayOf makes a day of all fields.
func dayOf(profile *meter.Profile, ean meter.EAN, day meter.Day) ingest.Point {
	p := ingest.Point{EAN: ean}
	r := mathrand.New(mathrand.NewPCG(uint64(ean.Int64()), uint64(day)))
	for _, f := range profile.Fields(meter.Electricity) {
		b := meter.Block{Day: day, Resolution: meter.P1D, Start: meter.Null, Values: []meter.Value{meter.Value(1_000_000 + r.IntN(10_000_000))}}
		if f.Class == meter.Intervals {
			b.Resolution = meter.PT15M
			b.Values = make([]meter.Value, 4*int(((day + 1).Start(profile.Location()).Sub(day.Start(profile.Location()))).Hours()))
			for i := range b.Values {
				b.Values[i] = meter.Value(r.IntN(500))
			}
		}
		b.Quality = make([]meter.Quality, len(b.Values))
		p.Blocks = append(p.Blocks, ingest.FieldBlock{Field: f.Code, Block: b})
	}
	return p
}

// ingestDay has one day of all stored, in ascending order.
func (w *world) ingestDay(ctx context.Context, in *ingest.Ingester, profile *meter.Profile, eans []meter.EAN, day meter.Day, together int) (x ingested, err error) {
	cpu := func() (own, servers, database time.Duration, err error) {
		for _, c := range w.ready.Cryptoservers {
			t, err := cpuOf(c.PID)
			if err != nil {
				return 0, 0, 0, err
			}
			servers += t
		}
		database, err = cpuOfTree(w.ready.PostgresPID)
		return selfCPU(), servers, database, err
	}
	own, servers, database, err := cpu()
	if err != nil {
		return x, err
	}
	began := time.Now()
	counts, err := in.Many(ctx, func(yield func(ingest.Point) bool) {
		for _, e := range eans {
			if !yield(dayOf(profile, e, day)) {
				return
			}
		}
	}, ingest.Options{AtOnce: together})
	if err != nil {
		return x, err
	}
	x.Points, x.Seconds, x.Blocks = len(eans), time.Since(began).Seconds(), counts.Blocks
	own2, servers2, database2, err := cpu()
	x.Ingest, x.Servers, x.Database = (own2 - own).Seconds(), (servers2 - servers).Seconds(), (database2 - database).Seconds()
	if err == nil && x.Blocks != 6*len(eans) {
		err = fmt.Errorf("%d blocks instead of %d", x.Blocks, 6*len(eans))
	}
	return x, err
}

func (r *ingestReport) print(w io.Writer) {
	fmt.Fprintf(w, "%s\n%s; load average before: %s\n", r.Date.Format("2006-01-02 15:04 MST"), r.Machine, r.Load)
	fmt.Fprintf(w, "\nOne day of %s metering points, 4 registers and 96 quarter-hours of 2 fields each, %d metering points at a time\n", thousands(r.Points), ingestAtOnce)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tblocks\ts\tblocks/s\tmetering points/s\tCPU s: ingest\tcryptoservers\tPostgreSQL\tCPU us by block")
	for _, x := range r.Days {
		fmt.Fprintf(t, "%s\t%s\t%.1f\t%.0f\t%.0f\t%.1f\t%.1f\t%.1f\t%.0f\n", x.What, thousands(x.Blocks), x.Seconds, float64(x.Blocks)/x.Seconds, float64(x.Points)/x.Seconds,
			x.Ingest, x.Servers, x.Database, (x.Ingest+x.Servers+x.Database)*1e6/float64(x.Blocks))
	}
	t.Flush()
	fmt.Fprintf(w, "Blocks of both days: tables %.0f MB, indexes %.0f MB\n", r.TableMB, r.IndexMB)
}
