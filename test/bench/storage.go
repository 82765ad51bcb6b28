package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/lib/pq"

	"kluis/internal/devpg"
	"kluis/internal/postgres"
	"kluis/meter"
	"kluis/migrations"
)

// How blocks lie on the disk, before a month is put in order and after: three
// databases of one PostgreSQL, two of which got the blocks of each day in the
// order of the metering points, as ingest stores what it is given together, and
// a small one in any order. Every metering point has the whole month.

const (
	storageSample  = 1000 // consecutive metering points that are read
	storageBuffers = "512MB"

	// On disk by metering point, while the month is there twice, and its log.
	storageBytes = 190 << 10
)

// storageReport is all of it.
type storageReport struct {
	Date    time.Time     `json:"date"`
	Machine string        `json:"machine"`
	Load    string        `json:"load_average"`
	Version string        `json:"postgresql"`
	Days    int           `json:"days"`
	Tables  []storedTable `json:"databases"`
}

// storedTable is one database.
type storedTable struct {
	Points  int     `json:"metering_points"`
	Order   string  `json:"order_of_a_day"`
	Blocks  int64   `json:"blocks"`
	Seconds float64 `json:"filling_seconds"`
	Compact float64 `json:"compacting_seconds"`
	// Before and after.
	TableMB [2]float64             `json:"table_mb"`
	IndexMB [2]float64             `json:"index_mb"`
	Reads   map[string][2]readCost `json:"reads"`
}

// readCost is of one metering point, in the mean.
type readCost struct {
	Pages  float64 `json:"pages"`       // looked at, the same page again each time
	Fresh  float64 `json:"pages_fresh"` // of these not in PostgreSQL's cache, which was empty before the first
	ColdMS float64 `json:"cold_ms"`     // nothing in any cache before the first
	WarmMS float64 `json:"warm_ms"`     // median; read just before
}

// The reads that are measured.
const (
	readMonth     = "a month of everything"
	readStatement = "the monthly statement"
	readAnywhere  = "a month of everything, metering points anywhere"
)

// orders are how the blocks of a day arrive.
const (
	orderEAN = "by metering point"
	orderAny = "any"
)

type storageBench struct {
	growth
	order  [3]string
	points [3]int
}

func measureStorage(ctx context.Context, o options, dir string, points int) (_ *storageReport, err error) {
	b := &storageBench{growth: growth{options: o, dir: dir}}
	small := min(growthSmall, (points+1)/2)
	b.points, b.order = [3]int{small, small, points}, [3]string{orderAny, orderEAN, orderEAN}
	b.growth.points = [2]int{small, points}
	if err := enoughDisk(dir, int64(2*small+points)*storageBytes+2<<30); err != nil {
		return nil, err
	}
	r := &storageReport{Date: time.Now().UTC(), Machine: machine(), Load: loadAverage()}
	if err := b.start(ctx, storageBuffers); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(b.disconnect(), b.stop(), err) }()
	r.Version = b.cluster.Version()
	if err := b.prepare(); err != nil {
		return nil, err
	}
	r.Days = b.days.Len()
	for i := range b.points {
		if o.rounds == 1 && i < len(b.points)-1 {
			continue // to see that it works
		}
		t, err := b.table(ctx, i)
		if err != nil {
			return nil, fmt.Errorf("%s metering points, %s: %w", thousands(b.points[i]), b.order[i], err)
		}
		r.Tables = append(r.Tables, t)
	}
	r.Load += "; after: " + loadAverage()
	return r, nil
}

func (b *storageBench) name(i int) string { return fmt.Sprintf("storage_%d", i) }

// table fills a database, measures, puts its month in order, and measures again.
func (b *storageBench) table(ctx context.Context, i int) (t storedTable, err error) {
	t = storedTable{Points: b.points[i], Order: b.order[i], Reads: map[string][2]readCost{}}
	b.progressf("filling a database of %d metering points, in the order of a day: %s", t.Points, t.Order)
	began := time.Now()
	if err := b.fillMonth(ctx, i); err != nil {
		return t, err
	}
	t.Seconds = time.Since(began).Seconds()
	for after := range 2 {
		if after == 1 {
			b.progressf("putting the month in order")
			began := time.Now()
			if err := b.compact(ctx, i); err != nil {
				return t, err
			}
			t.Compact = time.Since(began).Seconds()
		}
		if err := b.sizes(ctx, i, after, &t); err != nil {
			return t, err
		}
		for _, what := range []string{readMonth, readStatement, readAnywhere} {
			c, err := b.read(ctx, i, what)
			if err != nil {
				return t, fmt.Errorf("%s: %w", what, err)
			}
			x := t.Reads[what]
			x[after] = c
			t.Reads[what] = x
		}
	}
	return t, b.drop(ctx, i)
}

func (b *storageBench) drop(ctx context.Context, i int) error {
	super, err := b.as(devpg.Superuser, "postgres")
	if err != nil {
		return err
	}
	_, err = super.ExecContext(ctx, `DROP DATABASE `+b.name(i)+` WITH (FORCE)`)
	return errors.Join(err, super.Close())
}

// fillMonth stores the month day after day, and the closing reads.
func (b *storageBench) fillMonth(ctx context.Context, i int) (err error) {
	db, err := b.create(ctx, b.name(i), "2GB")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	fields := `CREATE UNLOGGED TABLE bench_field (field integer, class integer, resolution integer, slots integer, ciphertext bytea)`
	point := fmt.Sprintf(`CREATE UNLOGGED TABLE bench_point AS SELECT %d + n::bigint * 10 AS ean FROM generate_series(0, %d) AS n`, growthEAN(0), b.points[i]-1)
	if err := execAll(ctx, db, fields, point); err != nil {
		return err
	}
	if err := copyIn(ctx, db, "bench_field", []string{"field", "class", "resolution", "slots", "ciphertext"}, b.fieldRows()); err != nil {
		return err
	}
	order := "p.ean, f.field"
	if b.order[i] == orderAny {
		order = "md5(p.ean || DATE '%[1]s'::text), f.field"
	}
	for d := b.days.From; d <= b.days.To; d++ {
		where := "true"
		if d == b.days.To {
			where = fmt.Sprintf("f.class = %d", meter.Registers)
		}
		if _, err := db.ExecContext(ctx, fmt.Sprintf(`INSERT INTO sealed_block (ean, field, day, version, resolution, key_id, value_count, content_mac, ciphertext)
			SELECT p.ean, f.field, DATE '%[1]s', 1, f.resolution, md5(p.ean || '/' || f.class || '/%[2]d')::uuid, f.slots, decode(repeat('5c', 32), 'hex'), f.ciphertext
			FROM bench_point p CROSS JOIN bench_field f WHERE %[3]s ORDER BY `+order, d, d.Month(), where)); err != nil {
			return err
		}
	}
	return execAll(ctx, db, `DROP TABLE bench_point, bench_field`, `VACUUM (ANALYZE)`)
}

// compact is what kluis storage compact does.
func (b *storageBench) compact(ctx context.Context, i int) (err error) {
	s, err := postgres.NewStorage(ctx, postgres.Config{DSN: b.cluster.URL(migrations.RoleOwner, b.name(i))})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return s.Compact(ctx, b.days.From.Month(), postgres.CompactOptions{})
}

func (b *storageBench) sizes(ctx context.Context, i, after int, t *storedTable) error {
	s, err := postgres.NewStorage(ctx, postgres.Config{DSN: b.cluster.URL(migrations.RoleOwner, b.name(i))})
	if err != nil {
		return err
	}
	months, _, err := s.Months(ctx)
	for _, m := range months {
		if m.Month == b.days.From.Month() {
			t.Blocks, t.TableMB[after], t.IndexMB[after] = m.Blocks, float64(m.TableBytes)/1e6, float64(m.IndexBytes)/1e6
		}
	}
	return errors.Join(err, s.Close())
}

// runs are what a read asks for.
func (b *storageBench) runs(what string) (fields, from, to []int64, rows int) {
	for _, f := range b.fields {
		first, end := int64(b.days.From), int64(b.days.To)
		switch {
		case what != readStatement && f.Class == meter.Registers:
			fields, from, to, rows = append(fields, int64(f.Code)), append(from, first), append(to, end+1), rows+b.days.Len()+1
		case what != readStatement:
			fields, from, to, rows = append(fields, int64(f.Code)), append(from, first), append(to, end), rows+b.days.Len()
		case f.Class == meter.Registers:
			fields, from, to, rows = append(fields, int64(f.Code), int64(f.Code)), append(from, first, end), append(to, first+1, end+1), rows+2
		}
	}
	return fields, from, to, rows
}

// read reads metering points, consecutive ones but for readAnywhere, one after the
// other: first with nothing in any cache, then three times with everything just
// read.
func (b *storageBench) read(ctx context.Context, i int, what string) (c readCost, err error) {
	n := min(storageSample, b.points[i]/2)
	first := mathrand.IntN(b.points[i] - n)
	sample := make([]int, n)
	for k := range sample {
		sample[k] = first + k
		if what == readAnywhere {
			sample[k] = mathrand.IntN(b.points[i])
		}
	}
	fields, from, to, rows := b.runs(what)
	data, err := b.dataDirectory(ctx)
	if err != nil {
		return c, err
	}
	if err := b.stop(); err != nil {
		return c, err
	}
	if err := eachFile(data, forget); err != nil {
		return c, err
	}
	if err := b.start(ctx, storageBuffers); err != nil {
		return c, err
	}
	super, err := b.as(devpg.Superuser, b.name(i))
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, super.Close()) }()
	db, err := openAsGateway(b.cluster.URL(migrations.RoleGateway, b.name(i)))
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	st, err := db.PrepareContext(ctx, b.statements["queryBlocks"])
	if err != nil {
		return c, err
	}
	one := func(k int) (time.Duration, error) {
		args := []any{growthEAN(k), pq.Array(fields), pq.Array(from), pq.Array(to), slices.Min(from), slices.Max(to)}
		began := time.Now()
		got, err := fetch(ctx, st, args)
		took := time.Since(began)
		if err == nil && got != rows {
			err = fmt.Errorf("%d rows instead of %d", got, rows)
		}
		return took, err
	}
	counted := func() (hit, read float64, err error) {
		if _, err := db.ExecContext(ctx, `SELECT pg_stat_force_next_flush()`); err != nil {
			return 0, 0, err
		}
		err = super.QueryRowContext(ctx, `SELECT sum(heap_blks_hit + idx_blks_hit), sum(heap_blks_read + idx_blks_read) FROM pg_statio_user_tables WHERE relname LIKE 'sealed_block%'`).Scan(&hit, &read)
		return hit, read, err
	}
	// Another metering point first: catalogues and the plan.
	other := (first + n + b.points[i]/4) % b.points[i]
	if other >= first && other < first+n {
		other = (first + b.points[i] - 1) % b.points[i]
	}
	if _, err := one(other); err != nil {
		return c, err
	}
	hit, fresh, err := counted()
	if err != nil {
		return c, err
	}
	var cold time.Duration
	for _, k := range sample {
		took, err := one(k)
		if err != nil {
			return c, err
		}
		cold += took
	}
	hit2, fresh2, err := counted()
	if err != nil {
		return c, err
	}
	var took []time.Duration
	for range 3 {
		for _, k := range sample {
			t, err := one(k)
			if err != nil {
				return c, err
			}
			took = append(took, t)
		}
	}
	return readCost{
		Pages: (hit2 + fresh2 - hit - fresh) / float64(n), Fresh: (fresh2 - fresh) / float64(n),
		ColdMS: ms(cold) / float64(n), WarmMS: newTiming(took).Median,
	}, nil
}

func (r *storageReport) print(w io.Writer) {
	fmt.Fprintf(w, "%s\n%s, %s; load average before: %s\n", r.Date.Format("2006-01-02 15:04 MST"), r.Machine, r.Version, r.Load)
	if len(r.Tables) > 0 {
		fmt.Fprintf(w, "\nA month of %d days, all fields; before it was put in order and after; %s of shared buffers; %s metering points read one by one, consecutive ones where nothing else is said\n", r.Days, storageBuffers, thousands(storageSample))
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "metering points\torder of a day\tblocks\ttable MB\tindex MB\tfilled in s\tput in order in s")
		for _, x := range r.Tables {
			fmt.Fprintf(t, "%s\t%s\t%s\t%.0f, %.0f\t%.0f, %.0f\t%.0f\t%.0f\n", thousands(x.Points), x.Order, thousands(int(x.Blocks)),
				x.TableMB[0], x.TableMB[1], x.IndexMB[0], x.IndexMB[1], x.Seconds, x.Compact)
		}
		t.Flush()
		fmt.Fprintln(w)
		t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "\tmetering points\torder of a day\tpages\tof these not in the cache\tms, nothing in any cache\tms, in the cache")
		for _, x := range r.Tables {
			for _, what := range slices.Sorted(maps.Keys(x.Reads)) {
				c := x.Reads[what]
				fmt.Fprintf(t, "%s\t%s\t%s\t%.1f, %.1f\t%.1f, %.1f\t%.2f, %.2f\t%.3f, %.3f\n", what, thousands(x.Points), x.Order,
					c[0].Pages, c[1].Pages, c[0].Fresh, c[1].Fresh, c[0].ColdMS, c[1].ColdMS, c[0].WarmMS, c[1].WarmMS)
			}
		}
		t.Flush()
	}
}
