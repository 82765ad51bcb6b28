package main

import (
	"context"
	"crypto/md5" // only to name rows
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
	"golang.org/x/sys/unix"

	"kluis/internal/devpg"
	"kluis/meter"
	"kluis/migrations"
)

// The database's part of a request is measured in two databases of one
// PostgreSQL, a small one and a large one, in turn. What is in them is made of
// a few histories: the facts of each are whole and sealed, with a key made for
// it, but stand under many metering points, of which they do not speak. A
// statement does not look into them.

const (
	growthSuppliers = 20
	growthSample    = 2000 // metering points that have a whole month of blocks
	growthPage      = 100  // of a list
	growthDays      = 2    // of blocks that all others have
	growthRecords   = 2    // of each metering point in the access log
	growthBuffers   = "4GB"

	growthBytes = 24 << 10 // on disk by metering point, generously
)

// An access record of a month of everything, and its receipt, are so long; that
// of a list is a part of it.
var growthRecord, growthReceipt = noise(580), noise(290)

const growthListed = 245

// noise is nothing that could be compressed.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}

// growthReport is all of it.
type growthReport struct {
	Date     time.Time             `json:"date"`
	Machine  string                `json:"machine"`
	Load     string                `json:"load_average"` // before, and after
	Version  string                `json:"postgresql"`
	Points   [2]int                `json:"metering_points"`
	Tables   []growthTable         `json:"tables"`
	Seconds  float64               `json:"filling_seconds"`
	Made     int                   `json:"requests"` // of each kind, in a round; cold half as many
	Pages    map[string][2]float64 `json:"pages"`
	Cold     growthRound           `json:"cold"`
	Cached   []growthRound         `json:"cached"`   // everything read once before
	Buffered []growthRound         `json:"buffered"` // and the indexes in PostgreSQL's own cache
}

type growthRound map[string][2]timing

type growthTable struct {
	Name string     `json:"name"`
	Rows [2]int64   `json:"rows"`
	MB   [2]float64 `json:"mb"` // with indexes
}

// timing is one statement, or the sum of those of a request.
type timing struct {
	Median float64 `json:"median_ms"`
	Mean   float64 `json:"mean_ms"`
	P99    float64 `json:"p99_ms"`
}

func newTiming(took []time.Duration) timing {
	slices.Sort(took)
	var sum time.Duration
	for _, t := range took {
		sum += t
	}
	n := len(took)
	return timing{Median: ms(took[n/2]), Mean: ms(sum) / float64(n), P99: ms(took[min(n-1, n*99/100)])}
}

// The statements that are timed.
const (
	partSupplier   = "  supplier record"
	partFile       = "  legal file"
	partBlocks     = "  blocks of a month"
	partKeys       = "  data keys"
	partRecord     = "  access record"
	partCandidates = "  a page of 100"
	partListRecord = "  its record"
	partStored     = "  stored days"
	partDryRecord  = "  record of the dry run"
)

// growthRequests are the requests they are of.
var growthRequests = []struct {
	name  string
	parts []string
}{
	{"readings request", []string{partSupplier, partFile, partBlocks, partKeys, partRecord}},
	{"list", []string{partSupplier, partCandidates, partListRecord}},
	{"dry run", []string{partSupplier, partFile, partStored, partDryRecord}},
}

// growthRows are the rows of the report: requests, each with the statements that
// none before it has.
func growthRows() (rows []string) {
	for _, r := range growthRequests {
		rows = append(rows, r.name)
		for _, p := range r.parts {
			if !slices.Contains(rows, p) {
				rows = append(rows, p)
			}
		}
	}
	return rows
}

func growthParts() []string {
	return slices.DeleteFunc(growthRows(), func(s string) bool { return !strings.HasPrefix(s, " ") })
}

// growth is a run.
type growth struct {
	options
	dir     string
	cluster *devpg.Cluster
	points  [2]int
	dbs     [2]*growthDB
	facts   facts
	days    meter.DayRange // a month
	fields  []meter.Field

	statements map[string]string
}

// growthDB is one of the databases, as the gateway sees it.
type growthDB struct {
	db   *sql.DB
	stmt map[string]*sql.Stmt
	took map[string][]time.Duration
}

func measureGrowth(ctx context.Context, o options, dir string, points [2]int) (_ *growthReport, err error) {
	g := &growth{options: o, dir: dir, points: points}
	if err := enoughDisk(dir, int64(points[0]+points[1])*growthBytes+2<<30); err != nil {
		return nil, err
	}
	r := &growthReport{Date: time.Now().UTC(), Machine: machine(), Load: loadAverage(), Points: points, Made: o.growthRequests}
	if err := g.start(ctx, ""); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(g.disconnect(), g.stop(), err) }()
	r.Version = g.cluster.Version()
	if err := g.prepare(); err != nil {
		return nil, err
	}
	began := time.Now()
	for i := range points {
		g.progressf("filling a database of %d metering points", points[i])
		if err := g.fill(ctx, i); err != nil {
			return nil, fmt.Errorf("%s: %w", g.name(i), err)
		}
	}
	r.Seconds = time.Since(began).Seconds()
	if r.Tables, err = g.tables(ctx); err != nil {
		return nil, err
	}

	data, err := g.dataDirectory(ctx)
	if err != nil {
		return nil, err
	}
	g.progressf("cold")
	if err := g.stop(); err != nil {
		return nil, err
	}
	if err := eachFile(data, forget); err != nil {
		return nil, err
	}
	if err := g.start(ctx, ""); err != nil {
		return nil, err
	}
	if err := g.connect(ctx); err != nil {
		return nil, err
	}
	if r.Cold, err = g.round(ctx, r.Made/2); err != nil {
		return nil, err
	}
	if r.Pages, err = g.pages(ctx, r.Made/2); err != nil {
		return nil, fmt.Errorf("pages: %w", err)
	}

	g.progressf("reading everything once")
	if err := eachFile(data, readOnce); err != nil {
		return nil, err
	}
	if r.Cached, err = g.warm(ctx, r.Made); err != nil {
		return nil, err
	}
	g.progressf("with %s of shared buffers", growthBuffers)
	if err := errors.Join(g.disconnect(), g.stop()); err != nil {
		return nil, err
	}
	if err := g.start(ctx, growthBuffers); err != nil {
		return nil, err
	}
	if err := g.prewarm(ctx); err != nil {
		return nil, fmt.Errorf("reading indexes into shared buffers: %w", err)
	}
	if err := g.connect(ctx); err != nil {
		return nil, err
	}
	if r.Buffered, err = g.warm(ctx, r.Made); err != nil {
		return nil, err
	}
	r.Load += "; after: " + loadAverage()
	return r, nil
}

// warm runs rounds, and one before them that does not count.
func (g *growth) warm(ctx context.Context, n int) ([]growthRound, error) {
	if _, err := g.round(ctx, n); err != nil {
		return nil, err
	}
	var out []growthRound
	for i := range g.rounds {
		g.progressf("round %d of %d", i+1, g.rounds)
		rd, err := g.round(ctx, n)
		if err != nil {
			return nil, err
		}
		out = append(out, rd)
	}
	return out, nil
}

// prewarm reads the indexes into PostgreSQL's own cache, where those of a server
// that runs for a while are.
func (g *growth) prewarm(ctx context.Context) error {
	for i := range g.points {
		db, err := g.as(devpg.Superuser, g.name(i))
		if err != nil {
			return err
		}
		_, err = db.ExecContext(ctx, `CREATE EXTENSION IF NOT EXISTS pg_prewarm`)
		if err == nil {
			_, err = db.ExecContext(ctx, `SELECT pg_prewarm(indexrelid) FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE c.relowner = $1::regrole AND c.relkind = 'r'`, migrations.RoleOwner)
		}
		if err := errors.Join(err, db.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (g *growth) progressf(format string, args ...any) {
	fmt.Fprintf(g.progress, "  "+format+"\n", args...)
}

// enoughDisk refuses to fill the disk.
func enoughDisk(dir string, want int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < want {
		return fmt.Errorf("%s has %d GB free, and %d GB are wanted: set TMPDIR to a larger disk, or take fewer metering points", dir, free>>30, want>>30)
	}
	return nil
}

func (g *growth) start(ctx context.Context, buffers string) (err error) {
	g.cluster, err = devpg.Start(ctx, devpg.Config{Dir: filepath.Join(g.dir, "postgres"), Roles: migrations.Roles(), SharedBuffers: buffers})
	return err
}

func (g *growth) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return g.cluster.Stop(ctx)
}

func (g *growth) name(i int) string { return fmt.Sprintf("growth_%d", g.points[i]) }

// as connects as a role.
func (g *growth) as(role, database string) (*sql.DB, error) {
	return sql.Open("postgres", g.cluster.URL(role, database))
}

// prepare makes what rows are made of.
func (g *growth) prepare() error {
	var err error
	if g.statements, err = readStatements(g.root, slices.Concat(statementNames, listNames)); err != nil {
		return err
	}
	profile, err := meter.ParseProfile(meter.NL())
	if err != nil {
		return err
	}
	g.fields = profile.Fields(meter.Electricity)
	month := meter.DayOf(time.Now(), profile.Location()).Month() - 1
	for (month+1).First()-month.First() != 31 {
		month--
	}
	g.days = meter.DayRange{From: month.First(), To: (month + 1).First()}
	g.facts, err = newFacts(profile)
	return err
}

func (g *growth) dataDirectory(ctx context.Context) (dir string, err error) {
	db, err := g.as(devpg.Superuser, "postgres")
	if err != nil {
		return "", err
	}
	defer db.Close()
	err = db.QueryRowContext(ctx, `SHOW data_directory`).Scan(&dir)
	return dir, err
}

// eachFile does something with every file of a database.
func eachFile(data string, do func(*os.File) error) error {
	return filepath.WalkDir(filepath.Join(data, "base"), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !d.Type().IsRegular() {
			return nil // temporary files come and go
		}
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return errors.Join(do(f), f.Close())
	})
}

// forget takes a file out of the operating system's cache; it must be written.
func forget(f *os.File) error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }

func readOnce(f *os.File) error {
	_, err := io.Copy(io.Discard, f)
	return err
}

// connect prepares the gateway's statements, each database on one connection.
func (g *growth) connect(ctx context.Context) error {
	for i := range g.points {
		d := &growthDB{stmt: map[string]*sql.Stmt{}}
		g.dbs[i] = d
		var err error
		if d.db, err = openAsGateway(g.cluster.URL(migrations.RoleGateway, g.name(i))); err != nil {
			return err
		}
		d.db.SetMaxOpenConns(1)
		for name, query := range g.statements {
			if d.stmt[name], err = d.db.PrepareContext(ctx, query); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

func (g *growth) disconnect() error {
	var errs []error
	for _, d := range g.dbs {
		if d != nil && d.db != nil {
			errs = append(errs, d.db.Close())
		}
	}
	return errors.Join(errs...)
}

// round makes so many requests of each kind to both databases, in turn.
func (g *growth) round(ctx context.Context, n int) (growthRound, error) {
	for _, d := range g.dbs {
		d.took = map[string][]time.Duration{}
	}
	for i := range n {
		for j := range g.dbs {
			for _, request := range growthRequests {
				if err := g.request(ctx, (i+j)%len(g.dbs), request.name, request.parts); err != nil {
					return nil, err
				}
			}
		}
	}
	r := growthRound{}
	for _, name := range growthRows() {
		r[name] = [2]timing{newTiming(g.dbs[0].took[name]), newTiming(g.dbs[1].took[name])}
	}
	return r, nil
}

// request does the statements of a request, in their order.
func (g *growth) request(ctx context.Context, which int, name string, parts []string) error {
	d := g.dbs[which]
	var sum time.Duration
	for _, part := range parts {
		took, err := g.statement(ctx, which, part)
		if err != nil {
			return fmt.Errorf("%s of%s: %w", name, part, err)
		}
		d.took[part] = append(d.took[part], took)
		sum += took
	}
	d.took[name] = append(d.took[name], sum)
	return nil
}

// statement does one. Facts and records are those of any metering point, blocks
// and keys of one that has a month of them.
func (g *growth) statement(ctx context.Context, which int, part string) (time.Duration, error) {
	points := g.points[which]
	n := mathrand.IntN(points)
	ean, gln := growthEAN(n), g.facts.supplierOf(n)
	read := growthEAN(mathrand.IntN(min(growthSample, points)) * (points / min(growthSample, points)))
	month := 4*32 + 2*31
	var name string
	var rows int // at least
	var args []any
	switch part {
	case partSupplier:
		name, rows, args = "querySupplier", 1, []any{gln}
	case partFile:
		name, rows, args = "queryStoredFile", 1, []any{ean}
	case partBlocks:
		name, rows, args = "queryBlocks", month, g.asked(read, g.days)
	case partKeys:
		name, rows, args = "queryKeys", len(growthKeys), []any{read, pq.Array(g.keysOf(read))}
	case partCandidates:
		name, rows, args = "queryCandidates", 1, []any{gln, growthEAN(mathrand.IntN(points / 2)), growthPage}
	case partStored:
		name, rows, args = "queryStored", 1, g.asked(read, meter.DayRange{From: g.days.To - 730, To: g.days.To})
	default:
		salt := noise(16)
		name = "queryRecord"
		switch part {
		case partRecord:
			args = []any{ean, uuid.NewString(), gln, int64(1), growthRecord, growthReceipt, salt}
		case partDryRecord:
			args = []any{ean, uuid.NewString(), gln, int64(1), growthRecord, []byte{}, salt}
		case partListRecord:
			args = []any{int64(0), uuid.NewString(), gln, int64(1), growthRecord[:growthListed], []byte{}, salt}
		}
	}
	began := time.Now()
	got, err := fetch(ctx, g.dbs[which].stmt[name], args)
	took := time.Since(began)
	if err == nil && got < rows {
		err = fmt.Errorf("%d rows instead of %d", got, rows)
	}
	return took, err
}

// asked are runs of days as the gateway asks for them.
func (g *growth) asked(ean int64, days meter.DayRange) []any {
	var fields, from, to []int64
	for _, f := range g.fields {
		end := days.To
		if f.Class == meter.Registers {
			end++ // the closing read
		}
		fields, from, to = append(fields, int64(f.Code)), append(from, int64(days.From)), append(to, int64(end))
	}
	return []any{ean, pq.Array(fields), pq.Array(from), pq.Array(to), slices.Min(from), slices.Max(to)}
}

// keysOf are the data keys of a month.
func (g *growth) keysOf(ean int64) (keys []string) {
	for _, k := range growthKeys {
		keys = append(keys, growthKeyID(ean, k.class, g.days.From.Month()+k.month))
	}
	return keys
}

// pages counts which pages of tables and indexes each statement looks at, found
// in a cache or not: that depends on no machine.
func (g *growth) pages(ctx context.Context, n int) (map[string][2]float64, error) {
	out := map[string][2]float64{}
	for i, d := range g.dbs {
		super, err := g.as(devpg.Superuser, g.name(i))
		if err != nil {
			return nil, err
		}
		looked := func() (n float64, err error) {
			if _, err := d.db.ExecContext(ctx, `SELECT pg_stat_force_next_flush()`); err != nil {
				return 0, err
			}
			err = super.QueryRowContext(ctx, `SELECT blks_hit + blks_read FROM pg_stat_database WHERE datname = current_database()`).Scan(&n)
			return n, err
		}
		// What looking itself costs is counted with nothing between.
		count := func(f func() error) (float64, error) {
			before, err1 := looked()
			err2 := f()
			after, err3 := looked()
			return after - before, errors.Join(err1, err2, err3)
		}
		if _, err := count(func() error { return nil }); err != nil { // catalogues, once
			return nil, errors.Join(err, super.Close())
		}
		own, err := count(func() error { return nil })
		for _, part := range growthParts() {
			var pages float64
			if err == nil {
				pages, err = count(func() error {
					for range n {
						if _, err := g.statement(ctx, i, part); err != nil {
							return err
						}
					}
					return nil
				})
			}
			x := out[part]
			x[i] = (pages - own) / float64(n)
			out[part] = x
		}
		if err := errors.Join(err, super.Close()); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// growthKeys are the data keys of a month: registers have their closing read
// under the key of the next.
var growthKeys = []struct {
	class meter.Class
	month meter.Month
}{{meter.Registers, 0}, {meter.Intervals, 0}, {meter.Registers, 1}}

// growthKeyID is the id that fill gives a data key.
func growthKeyID(ean int64, class meter.Class, month meter.Month) string {
	return uuid.UUID(md5.Sum(fmt.Appendf(nil, "%d/%d/%d", ean, class, month))).String()
}

// growthEAN is the number of a metering point; without a check digit.
func growthEAN(n int) int64 { return 871687_000000_000000 + int64(n)*10 }

func (r *growthReport) print(w io.Writer) {
	fmt.Fprintf(w, "%s\n%s, %s; load average before: %s\n", r.Date.Format("2006-01-02 15:04 MST"), r.Machine, r.Version, r.Load)
	size := func(i int) string { return thousands(r.Points[i]) }
	fmt.Fprintf(w, "\nTwo databases, of %s and of %s metering points, filled in %.0f s. Requests to both in turn: %d round(s) of %d of each kind, cold ones half as many; median of the rounds (least-greatest)\n",
		size(0), size(1), r.Seconds, len(r.Buffered), r.Made)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\trows\tMB with indexes\trows\tMB with indexes")
	for _, x := range r.Tables {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", x.Name, thousands(int(x.Rows[0])), figure(x.MB[0]), thousands(int(x.Rows[1])), figure(x.MB[1]))
	}
	t.Flush()

	fmt.Fprintln(w, "\nPages of tables and indexes that a statement looks at, in the mean")
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\t%s\t%s\n", size(0), size(1))
	for _, name := range growthParts() {
		fmt.Fprintf(t, "%s\t%.1f\t%.1f\n", name, r.Pages[name][0], r.Pages[name][1])
	}
	t.Flush()

	r.printTimes(w, fmt.Sprintf("%s of shared buffers, the indexes in them; everything else read once before, into the operating system's cache as far as there is room", growthBuffers), r.Buffered)
	r.printTimes(w, "64 MB of shared buffers; everything read once before", r.Cached)
	r.printTimes(w, "PostgreSQL just started, and nothing in any cache", []growthRound{r.Cold})
}

func (r *growthReport) printTimes(w io.Writer, what string, rounds []growthRound) {
	fmt.Fprintf(w, "\nMilliseconds: %s\n", what)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\t%s: median\tmean\t99%%\t%s: median\tmean\t99%%\tratio of medians\tof means\n", thousands(r.Points[0]), thousands(r.Points[1]))
	for _, name := range growthRows() {
		get := func(f func([2]timing) float64) string {
			v := make([]float64, len(rounds))
			for i, rd := range rounds {
				v[i] = f(rd[name])
			}
			return spread(v)
		}
		fmt.Fprint(t, name)
		for i := range r.Points {
			fmt.Fprintf(t, "\t%s\t%s\t%s", get(func(x [2]timing) float64 { return x[i].Median }),
				get(func(x [2]timing) float64 { return x[i].Mean }), get(func(x [2]timing) float64 { return x[i].P99 }))
		}
		fmt.Fprintf(t, "\t%s\t%s\n", get(func(x [2]timing) float64 { return x[1].Median / x[0].Median }), get(func(x [2]timing) float64 { return x[1].Mean / x[0].Mean }))
	}
	t.Flush()
}

// thousands groups a number's digits.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
