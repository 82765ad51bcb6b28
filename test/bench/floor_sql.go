package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
)

// sqlSetup is the statements of one request, on plain connections: what the
// gateway asks for, nothing made of the answers, and a row of the size of its
// record committed.
type sqlSetup struct {
	DSN        string            `json:"dsn"`
	Statements map[string]string `json:"statements"` // by the names in statementNames
	Conns      int               `json:"conns"`

	EAN    int64    `json:"ean"`
	GLN    int64    `json:"gln"`
	Fields []int64  `json:"fields"` // runs of days, as the gateway asks for them
	From   []int64  `json:"from"`
	To     []int64  `json:"to"`
	Keys   []string `json:"keys"` // UUIDs
	Blocks int      `json:"blocks"`

	Record, Receipt []byte
}

// scratchTable takes the rows that the floor commits; it is like access_log.
const scratchTable = "bench_access_log"

// statementNames are those of one request, as internal/postgres calls them.
var statementNames = []string{"querySupplier", "queryStoredFile", "queryBlockColumns", "queryKeys", "queryRecord"}

// listNames are those of lists and dry runs besides, and blocks by the row.
var listNames = []string{"queryCandidates", "queryStored", "queryBlocks"}

// readStatements takes the gateway's statements from its source, so that the
// floor always runs the very same.
func readStatements(root string, names []string) (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(root, "internal", "postgres", "*.go"))
	if err != nil {
		return nil, err
	}
	values := map[string]ast.Expr{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			for i, name := range spec.Names {
				if i < len(spec.Values) {
					values[name.Name] = spec.Values[i]
				}
			}
			return true
		})
	}
	// A statement is a string, or put together of others.
	var text func(ast.Expr) string
	text = func(e ast.Expr) string {
		switch e := e.(type) {
		case *ast.BasicLit:
			s, _ := strconv.Unquote(e.Value)
			return s
		case *ast.Ident:
			return text(values[e.Name])
		case *ast.BinaryExpr:
			return text(e.X) + text(e.Y)
		}
		return ""
	}
	found := map[string]string{}
	for _, name := range names {
		found[name] = text(values[name])
	}
	out := map[string]string{}
	for _, name := range names {
		if found[name] == "" {
			return nil, fmt.Errorf("internal/postgres has no statement %s any more: the benchmark must follow", name)
		}
		out[name] = found[name]
	}
	return out, nil
}

// intoScratch has the statements write to the floor's own table.
func intoScratch(out map[string]string) (map[string]string, error) {
	record := strings.Replace(out["queryRecord"], "INTO access_log", "INTO "+scratchTable, 1)
	if record == out["queryRecord"] {
		return nil, errors.New("internal/postgres: queryRecord does not insert into access_log: the floor must follow")
	}
	out["queryRecord"] = record
	return out, nil
}

type sqlPart struct {
	sqlSetup
	db    *sql.DB
	conns []sqlConn
}

type sqlConn struct {
	conn *sql.Conn
	stmt map[string]*sql.Stmt
}

func newSQLPart(raw json.RawMessage) (worker, error) {
	p := &sqlPart{}
	if err := json.Unmarshal(raw, &p.sqlSetup); err != nil {
		return nil, err
	}
	var err error
	if p.db, err = openAsGateway(p.DSN); err != nil {
		return nil, err
	}
	ctx := context.Background()
	for range p.Conns {
		c := sqlConn{stmt: map[string]*sql.Stmt{}}
		if c.conn, err = p.db.Conn(ctx); err != nil {
			return nil, err
		}
		for name, query := range p.Statements {
			if c.stmt[name], err = c.conn.PrepareContext(ctx, query); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		p.conns = append(p.conns, c)
	}
	return p, nil
}

// openAsGateway sets connections up as the gateway does: anything else would
// flatter it.
func openAsGateway(dsn string) (*sql.DB, error) {
	cfg, err := pq.NewConfig(dsn)
	if err != nil {
		return nil, err
	}
	cfg.BinaryParameters = true
	cfg.Runtime = map[string]string{"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
	connector, err := pq.NewConnectorConfig(cfg)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

func (p *sqlPart) address() string { return "" }

func (p *sqlPart) close() error { return p.db.Close() }

func (p *sqlPart) work(o order) (partAnswer, error) {
	if o.Concurrency > len(p.conns) {
		return partAnswer{}, errors.New("more clients than connections")
	}
	var a partAnswer
	runtime.GC()
	cpu := selfCPU()
	var err error
	once := p.once
	if o.Record {
		once = p.commit
	}
	a.Took, a.Wall, err = repeat(o.For, o.Concurrency, func(i int) error { return once(&p.conns[i]) })
	a.CPU = selfCPU() - cpu
	return a, err
}

// once does the statements of one request, in their order.
func (p *sqlPart) once(c *sqlConn) error {
	ctx := context.Background()
	for _, q := range []struct {
		name string
		want int
		args []any
	}{
		{"querySupplier", 1, []any{p.GLN}},
		{"queryStoredFile", 2, []any{p.EAN}}, // and the version before
		{"queryBlockColumns", p.Blocks, []any{p.EAN, pq.Array(p.Fields), pq.Array(p.From), pq.Array(p.To), slices.Min(p.From), slices.Max(p.To)}},
		{"queryKeys", len(p.Keys), []any{p.EAN, pq.Array(p.Keys)}},
	} {
		n, err := fetch(ctx, c.stmt[q.name], q.args)
		if err == nil && n != q.want {
			err = fmt.Errorf("%d rows instead of %d", n, q.want)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", q.name, err)
		}
	}
	return p.commit(c)
}

// commit stores a record.
func (p *sqlPart) commit(c *sqlConn) error {
	var salt [16]byte
	rand.Read(salt[:]) // never fails
	_, err := c.stmt["queryRecord"].ExecContext(context.Background(), p.EAN, uuid.NewString(), p.GLN, int64(1), p.Record, p.Receipt, salt[:])
	return err
}

// fetch reads every row and looks at none, but to count those that came by the
// column.
func fetch(ctx context.Context, s *sql.Stmt, args []any) (int, error) {
	rows, err := s.QueryContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return 0, err
	}
	into := make([]any, len(columns))
	for i := range into {
		into[i] = new(sql.RawBytes)
	}
	n := 0
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return 0, err
		}
		n++
		if columns[0] == "string_agg" { // by the column: the first are fields, of two bytes
			n = len(*into[0].(*sql.RawBytes)) / 2
		}
	}
	return n, rows.Err()
}

// selfCPU is the CPU time of this process so far.
func selfCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // it cannot fail for ourselves
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
