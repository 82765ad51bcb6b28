package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"

	"kluis/cryptoserver/envelope"
	"kluis/internal/config"
	"kluis/meter"
)

// The floor of a stream is what cannot be saved: the gateway's own statements for
// the same rows, from plain connections; a loop in C over the same blocks, each
// key unwrapped; and a plain handler that sends as many bytes.

const (
	floorBatch  = 140 // metering points at a time, as the gateway takes them
	floorSample = 14  // batches that are gone through in turn
	floorTime   = 3 * time.Second
	floorPage   = 500 // metering points whose bytes are one answer of the handler
)

// streamStatements are those of one batch, as internal/postgres calls them.
var streamStatements = []string{"querySupplier", "queryStoredFiles", "queryManyBlocks", "queryManyKeys", "queryRecordMany"}

// streamSQL is the statements of the batches of a sample.
type streamSQL struct {
	DSN              string            `json:"dsn"`
	Statements       map[string]string `json:"statements"`
	GLN              int64             `json:"gln"`
	Fields, From, To []int64
	Batches          []streamSQLBatch `json:"batches"`
	Record, Receipt  []byte
}

type streamSQLBatch struct {
	EANs    []int64
	KeyEANs []int64
	Keys    []string
	Blocks  int // how many there are
}

type streamSQLPart struct {
	streamSQL
	db   *sql.DB
	conn *sql.Conn
	stmt map[string]*sql.Stmt
	next int
}

func newStreamSQLPart(raw json.RawMessage) (worker, error) {
	p := &streamSQLPart{stmt: map[string]*sql.Stmt{}}
	if err := json.Unmarshal(raw, &p.streamSQL); err != nil {
		return nil, err
	}
	var err error
	if p.db, err = openAsGateway(p.DSN); err != nil {
		return nil, err
	}
	ctx := context.Background()
	if p.conn, err = p.db.Conn(ctx); err != nil {
		return nil, err
	}
	for name, query := range p.Statements {
		if p.stmt[name], err = p.conn.PrepareContext(ctx, query); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return p, nil
}

func (p *streamSQLPart) address() string { return "" }

func (p *streamSQLPart) close() error { return p.db.Close() }

func (p *streamSQLPart) work(o order) (partAnswer, error) {
	var a partAnswer
	runtime.GC()
	cpu := selfCPU()
	var err error
	a.Took, a.Wall, err = repeat(o.For, 1, func(int) error {
		p.next++
		return p.once(&p.Batches[p.next%len(p.Batches)])
	})
	a.CPU = selfCPU() - cpu
	return a, err
}

// once does the statements of one batch.
func (p *streamSQLPart) once(b *streamSQLBatch) error {
	ctx := context.Background()
	first, last := make([]int64, len(b.EANs)), make([]int64, len(b.EANs))
	for i := range first {
		first[i], last[i] = 1, int64(len(p.Fields))
	}
	for _, q := range []struct {
		name string
		want int
		args []any
	}{
		{"querySupplier", 1, []any{p.GLN}},
		{"queryStoredFiles", 2 * len(b.EANs), []any{pq.Array(b.EANs)}}, // and the versions before
		{"queryManyBlocks", b.Blocks, []any{pq.Array(b.EANs), pq.Array(first), pq.Array(last), pq.Array(p.Fields), pq.Array(p.From), pq.Array(p.To), slices.Min(p.From), slices.Max(p.To)}},
		{"queryManyKeys", len(b.Keys), []any{pq.Array(b.KeyEANs), pq.Array(b.Keys)}},
	} {
		n, err := fetch(ctx, p.stmt[q.name], q.args)
		if err == nil && n != q.want {
			err = fmt.Errorf("%d rows instead of %d", n, q.want)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", q.name, err)
		}
	}
	return p.commit(ctx, b)
}

func (p *streamSQLPart) commit(ctx context.Context, b *streamSQLBatch) error {
	n := len(b.EANs)
	var outcomes, recordAt, recordSize, receiptAt, receiptSize []int64
	for i := range n {
		outcomes = append(outcomes, 1)
		recordAt, recordSize = append(recordAt, int64(i*len(p.Record))+1), append(recordSize, int64(len(p.Record)))
		receiptAt, receiptSize = append(receiptAt, int64(i*len(p.Receipt))+1), append(receiptSize, int64(len(p.Receipt)))
	}
	salts := make([]byte, 16*n)
	rand.Read(salts) // never fails
	_, err := p.stmt["queryRecordMany"].ExecContext(ctx, uuid.NewString(), p.GLN, pq.Array(b.EANs), pq.Array(outcomes), pq.Array(recordAt), pq.Array(recordSize),
		slices.Repeat(p.Record, n), slices.Repeat(p.Receipt, n), salts, pq.Array(receiptAt), pq.Array(receiptSize))
	return err
}

// streamFloor is the floor of a query: CPU per metering point, in microseconds.
type streamFloor struct {
	Query    string  `json:"query"`
	SQL      float64 `json:"sql_client_us"`
	Postgres float64 `json:"sql_postgresql_us"`
	PKCS11   float64 `json:"pkcs11_us"`
	TLS      float64 `json:"tls_us"`
	// Kept is what the module keeps of each data key that was unwrapped and
	// destroyed: bytes of resident memory that the loop's process grew by.
	Kept float64 `json:"module_keeps_bytes"`
}

func (f streamFloor) total() float64 { return f.SQL + f.Postgres + f.PKCS11 + f.TLS }

// floor measures that of each query in the last database.
func (s *stream) floor(ctx context.Context, d *streamDatabase) (out []streamFloor, err error) {
	if err := execAll(ctx, s.db, `CREATE TABLE `+scratchTable+` (LIKE access_log INCLUDING ALL)`, `GRANT INSERT ON `+scratchTable+` TO kluis_gateway`); err != nil {
		return nil, err
	}
	both := append(slices.Clone(registerFields), intervalFields...)
	for _, q := range []struct {
		name   string
		step   int // one in so many metering points
		run    streamRun
		fields []meter.FieldCode
		runs   []meter.DayRange
	}{
		{"monthly statement", 1, d.Statement[len(d.Statement)-1], both[:4], []meter.DayRange{{From: s.days.From, To: s.days.From + 1}, {From: s.days.To, To: s.days.To + 1}}},
		{"quarter-hours", streamDetail, d.Detail[len(d.Detail)-1], both[4:], []meter.DayRange{s.days}},
	} {
		s.say("floor of the %s", q.name)
		setup, loop, err := s.floorRows(ctx, q.step, q.fields, q.runs)
		if err != nil {
			return nil, err
		}
		f := streamFloor{Query: q.name}
		if err := s.floorSQL(setup, &f); err != nil {
			return nil, fmt.Errorf("SQL: %w", err)
		}
		p, err := startPart("hsm", loop, s.softHSM(0))
		if err != nil {
			return nil, err
		}
		a, kept, err := floorHSM(p)
		if err := errors.Join(err, p.in.Close(), p.stop()); err != nil {
			return nil, fmt.Errorf("PKCS#11: %w", err)
		}
		f.PKCS11 = float64(a.CPU.Microseconds()) / float64(len(a.Took)*len(setup.Batches[0].EANs))
		f.Kept = kept / float64(len(a.Took)*len(setup.Batches[0].Keys))
		if f.TLS, err = s.floorTLS(ctx, int(q.run.Bytes)/q.run.Points*min(floorPage, q.run.Points), min(floorPage, q.run.Points)); err != nil {
			return nil, fmt.Errorf("TLS: %w", err)
		}
		out = append(out, f)
	}
	return out, nil
}

// floorRows prepares the batches of a sample, and the blocks of the first.
func (s *stream) floorRows(ctx context.Context, step int, fields []meter.FieldCode, runs []meter.DayRange) (q streamSQL, loop hsmSetup, err error) {
	conf, err := config.Load[config.Gateway](filepath.Join(s.state, "gateway.yaml"))
	if err != nil {
		return q, loop, err
	}
	q.GLN = s.gln.Int64()
	if q.DSN, err = config.DSN(conf.DatabaseURL, conf.DatabasePasswordFile); err != nil {
		return q, loop, err
	}
	if q.Statements, err = readStatements(s.root, streamStatements); err != nil {
		return q, loop, err
	}
	record := strings.Replace(q.Statements["queryRecordMany"], "INTO access_log", "INTO "+scratchTable, 1)
	if record == q.Statements["queryRecordMany"] {
		return q, loop, errors.New("internal/postgres: queryRecordMany does not insert into access_log: the floor must follow")
	}
	q.Statements["queryRecordMany"] = record
	for _, f := range fields {
		for _, r := range runs {
			q.Fields, q.From, q.To = append(q.Fields, int64(f)), append(q.From, int64(r.From)), append(q.To, int64(r.To))
		}
	}
	if loop, err = s.tokenSetup(0); err != nil {
		return q, loop, err
	}
	batches := min(floorSample, max(1, s.filled/step/floorBatch))
	for b := range batches {
		// From all over the portfolio: each batch from a place of its own.
		var batch streamSQLBatch
		var keys []envelope.KeyRecord
		var items []hsmItem
		first := (s.filled / step) * b / batches
		for i := range min(floorBatch, s.filled/step) {
			ean, err := streamEAN((first + i) * step)
			if err != nil {
				return q, loop, err
			}
			batch.EANs = append(batch.EANs, ean.Int64())
			own, blocks, err := s.stored(ctx, ean, fields, runs)
			if err != nil {
				return q, loop, err
			}
			for _, k := range own {
				batch.KeyEANs, batch.Keys = append(batch.KeyEANs, ean.Int64()), append(batch.Keys, uuid.UUID(k.ID).String())
			}
			for _, item := range blocks {
				item.Key += len(keys)
				items = append(items, item)
			}
			keys = append(keys, own...)
		}
		batch.Blocks = len(items)
		q.Batches = append(q.Batches, batch)
		if b == 0 {
			loop.add(keys, items)
		}
	}
	err = s.db.QueryRowContext(ctx, `SELECT record, receipt FROM access_log WHERE ean = $1 ORDER BY recorded_at DESC LIMIT 1`, q.Batches[0].EANs[0]).Scan(&q.Record, &q.Receipt)
	return q, loop, err
}

// stored is what is read of a metering point.
func (s *stream) stored(ctx context.Context, ean meter.EAN, fields []meter.FieldCode, runs []meter.DayRange) (keys []envelope.KeyRecord, items []hsmItem, err error) {
	at := map[[16]byte]int{}
	for _, f := range fields {
		for _, run := range runs {
			rows, err := s.db.QueryContext(ctx, `SELECT day - DATE '1970-01-01', version, resolution, ciphertext FROM sealed_block
				WHERE ean = $1 AND field = $2 AND day >= $3 AND day < $4 ORDER BY day`, ean.Int64(), int64(f), run.From.String(), run.To.String())
			if err != nil {
				return nil, nil, err
			}
			for rows.Next() {
				var day, version, resolution int64
				var raw []byte
				if err := rows.Scan(&day, &version, &resolution, &raw); err != nil {
					return nil, nil, errors.Join(err, rows.Close())
				}
				c, err := envelope.ParseCiphertext(raw)
				if err != nil {
					return nil, nil, errors.Join(err, rows.Close())
				}
				if _, known := at[c.KeyID]; !known {
					at[c.KeyID] = len(keys)
					keys = append(keys, envelope.KeyRecord{ID: c.KeyID})
				}
				id := envelope.BlockID{EAN: ean, Field: f, Day: meter.Day(day), Resolution: meter.Resolution(resolution), Version: uint32(version), KeyID: c.KeyID}
				items = append(items, hsmItem{Key: at[c.KeyID], IV: c.IV, AAD: id.AppendAAD(nil), Data: c.Body})
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil {
				return nil, nil, err
			}
		}
	}
	for i := range keys {
		k := &keys[i]
		if err := s.db.QueryRowContext(ctx, `SELECT wrapped, kek_epoch FROM data_key WHERE ean = $1 AND key_id = $2::uuid`,
			ean.Int64(), uuid.UUID(k.ID).String()).Scan(&k.Wrapped, &k.Epoch); err != nil {
			return nil, nil, err
		}
	}
	return keys, items, nil
}

// floorHSM has the loop unwrap the keys for each round, and tells by how many
// bytes its process grew.
func floorHSM(p *part) (a partAnswer, grew float64, err error) {
	if _, err := p.work(order{For: floorTime / 3, Cold: true}); err != nil { // has what it needs
		return a, 0, err
	}
	before, err := memoryOf(p.pid())
	if err != nil {
		return a, 0, err
	}
	if a, err = p.work(order{For: floorTime, Cold: true}); err != nil {
		return a, 0, err
	}
	after, err := memoryOf(p.pid())
	return a, float64(after.Resident - before.Resident), err
}

func (s *stream) floorSQL(setup streamSQL, f *streamFloor) (err error) {
	p, err := startPart("streamsql", setup)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.in.Close(), p.stop()) }()
	if _, err := p.work(order{For: floorTime / 3}); err != nil { // warms up
		return err
	}
	before, err := cpuOfTree(s.postgres)
	if err != nil {
		return err
	}
	a, err := p.work(order{For: floorTime})
	if err != nil {
		return err
	}
	after, err := cpuOfTree(s.postgres)
	n := float64(len(a.Took) * len(setup.Batches[0].EANs))
	f.SQL, f.Postgres = float64(a.CPU.Microseconds())/n, float64((after-before).Microseconds())/n
	return err
}

// floorTLS is the CPU by metering point of a handler that sends as much as so
// many of them take.
func (s *stream) floorTLS(ctx context.Context, size, points int) (us float64, err error) {
	setup, err := s.tlsSetup(size)
	if err != nil {
		return 0, err
	}
	p, err := startPart("tls", setup)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.in.Close(), p.stop()) }()
	if err := s.client.authorise(ctx); err != nil {
		return 0, err
	}
	url := p.ready.Address + "/cached"
	if _, _, err := s.client.load(ctx, url, size, floorTime/3, 1); err != nil {
		return 0, err
	}
	before, err := cpuOf(p.pid())
	if err != nil {
		return 0, err
	}
	took, _, err := s.client.load(ctx, url, size, floorTime, 1)
	if err != nil {
		return 0, err
	}
	after, err := cpuOf(p.pid())
	return float64((after - before).Microseconds()) / float64(len(took)*points), err
}
