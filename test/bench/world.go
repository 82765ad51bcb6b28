package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/google/uuid"
	_ "github.com/lib/pq" // the superuser's connection

	"kluis/cryptoserver/envelope"
	"kluis/internal/config"
	"kluis/meter"
)

// readyFile is what this program needs of what `kluis demo --ready-file`
// writes.
type readyFile struct {
	GatewayURL string `json:"gateway_url"`
	IssuerURL  string `json:"issuer_url"`
	CAFile     string `json:"ca_file"`
	Suppliers  []struct {
		ID              string `json:"id"`
		ClientID        string `json:"client_id"`
		CertificateFile string `json:"certificate_file"`
		KeyFile         string `json:"key_file"`
	} `json:"suppliers"`
	MeteringPoints []struct {
		EAN       string   `json:"ean"`
		Commodity string   `json:"commodity"`
		Access    []access `json:"access"`
	} `json:"metering_points"`
	DatabaseURL   string `json:"database_url"`
	Cryptoservers []struct {
		PID int `json:"pid"`
	} `json:"cryptoservers"`
	GatewayPID  int    `json:"gateway_pid"`
	AuditorPID  int    `json:"auditor_pid"`
	PostgresPID int    `json:"postgres_pid"`
	State       string `json:"state"`
}

type access struct {
	Supplier   string   `json:"supplier"`
	Purpose    string   `json:"purpose"`
	Fields     []string `json:"fields"`
	From       string   `json:"from"`
	To         string   `json:"to"`
	Resolution string   `json:"resolution"`
	Basis      string   `json:"basis"`
}

// world is a running demo, its pool twice: as configured, and once more with
// a key cache that keeps nothing.
type world struct {
	bin   string
	state string
	ready readyFile
	demo  *process
	cold  pool
	warm  pool
	db    *sql.DB // as superuser
}

// pool is one gateway and its cryptoservers.
type pool struct {
	url           string
	gateway       int
	cryptoservers []int
	started       []*process // by us
}

func startWorld(ctx context.Context, bin, dir string) (_ *world, err error) {
	w := &world{bin: bin, state: filepath.Join(dir, "state")}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stop())
		}
	}()
	if err := w.startDemo(ctx, dir); err != nil {
		return nil, err
	}
	w.warm = pool{url: w.ready.GatewayURL, gateway: w.ready.GatewayPID}
	for _, c := range w.ready.Cryptoservers {
		w.warm.cryptoservers = append(w.warm.cryptoservers, c.PID)
	}
	if w.db, err = sql.Open("postgres", w.ready.DatabaseURL); err != nil {
		return nil, err
	}
	return w, w.startCold(ctx, dir)
}

func (w *world) stop() error {
	var errs []error
	if w.db != nil {
		errs = append(errs, w.db.Close())
	}
	for _, p := range slices.Backward(w.cold.started) {
		errs = append(errs, p.stop())
	}
	if w.demo != nil {
		errs = append(errs, w.demo.stop())
	}
	return errors.Join(errs...)
}

func (w *world) startDemo(ctx context.Context, dir string) error {
	file := filepath.Join(dir, "ready.json")
	log, err := os.Create(filepath.Join(dir, "demo.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(w.bin, "kluis"), "demo", "--state", w.state, "--ready-file", file)
	cmd.Stderr = log
	if w.demo, err = launch(cmd); err != nil {
		return fmt.Errorf("%w: build everything first with make build", err)
	}
	for {
		b, err := os.ReadFile(file)
		if err == nil {
			return json.Unmarshal(b, &w.ready)
		}
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		select {
		case <-w.demo.exited:
			said, _ := os.ReadFile(log.Name())
			return fmt.Errorf("kluis demo ended: %w\n%s", w.demo.err, said)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// startCold runs a second pool on the same tokens, keys and database, in which
// a data key's handle lives for a nanosecond: each request unwraps its keys.
func (w *world) startCold(ctx context.Context, dir string) error {
	var addresses []string
	for i := range w.warm.cryptoservers {
		name := fmt.Sprintf("cryptoserver-%d", i+1)
		conf, err := config.Load[config.Cryptoserver](filepath.Join(w.state, name, "cryptoserver.yaml"))
		if err != nil {
			return err
		}
		conf.Listen, conf.JournalDir = "127.0.0.1:0", filepath.Join(dir, name+"-journal")
		conf.KeyCache.Lifetime = 1
		file := filepath.Join(dir, name+".yaml")
		if err := config.Write(file, conf); err != nil {
			return err
		}
		p, address, err := w.startServer(ctx, file+".log", w.cryptoserverEnv(i), "cryptoserver", "serve", "--config", file)
		if err != nil {
			return err
		}
		addresses = append(addresses, address)
		w.cold.cryptoservers = append(w.cold.cryptoservers, p.pid())
	}
	if err := w.startCustodian(ctx, dir, addresses); err != nil {
		return err
	}
	conf, err := config.Load[config.Gateway](filepath.Join(w.state, "gateway.yaml"))
	if err != nil {
		return err
	}
	conf.Listen, conf.MetricsListen = "127.0.0.1:0", "127.0.0.1:0"
	conf.Cryptoservers.Addresses = addresses
	file := filepath.Join(dir, "gateway.yaml")
	if err := config.Write(file, conf); err != nil {
		return err
	}
	p, address, err := w.startServer(ctx, file+".log", nil, "gateway", "--config", file)
	if err != nil {
		return err
	}
	w.cold.gateway, w.cold.url = p.pid(), "https://"+address
	return nil
}

// startCustodian runs a key custodian for the second pool, which the demo's
// does not know: without the control feed it would open nothing.
func (w *world) startCustodian(ctx context.Context, dir string, addresses []string) error {
	conf, err := config.Load[config.Operator](filepath.Join(w.state, "kluis.yaml"))
	if err != nil {
		return err
	}
	conf.Custodian.Addresses = addresses
	conf.FeedCopyFile = filepath.Join(dir, "feed")
	file := filepath.Join(dir, "custodian.yaml")
	if err := config.Write(file, conf); err != nil {
		return err
	}
	_, _, err = w.startServer(ctx, file+".log", nil, "kluis", "keys", "feed", "--config", file)
	return err
}

// softHSM is the setting by which SoftHSM finds the tokens of a cryptoserver.
func (w *world) softHSM(i int) string {
	return "SOFTHSM2_CONF=" + filepath.Join(w.state, fmt.Sprintf("cryptoserver-%d", i+1), "softhsm2.conf")
}

// cryptoserverEnv is that of a cryptoserver, as the demo's have it.
func (w *world) cryptoserverEnv(i int) []string {
	env := []string{w.softHSM(i)}
	if os.Getenv("GOMAXPROCS") == "" {
		env = append(env, fmt.Sprintf("GOMAXPROCS=%d", max(1, runtime.NumCPU()/len(w.warm.cryptoservers))))
	}
	return env
}

// startServer starts one of ours and waits for the line that says where it
// serves.
func (w *world) startServer(ctx context.Context, logFile string, env []string, args ...string) (*process, string, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, "", err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(w.bin, args[0]), args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = log
	r, wr, err := os.Pipe()
	if err != nil {
		return nil, "", err
	}
	cmd.Stdout = wr
	p, err := launch(cmd)
	if err := errors.Join(err, wr.Close()); err != nil {
		return nil, "", err
	}
	w.cold.started = append(w.cold.started, p)
	ready := make(chan string, 1)
	go func() {
		defer r.Close()
		s := bufio.NewScanner(r)
		for s.Scan() {
			var line struct{ Msg, Address string }
			if json.Unmarshal(s.Bytes(), &line) == nil && line.Msg == "ready" {
				ready <- line.Address
				break
			}
		}
		_, _ = io.Copy(io.Discard, r) // until it ends
	}()
	select {
	case address := <-ready:
		return p, address, nil
	case <-p.exited:
		said, _ := os.ReadFile(logFile)
		return nil, "", fmt.Errorf("%s ended: %w\n%s", args[0], p.err, said)
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
}

// subject is what is asked for: one metering point, one month, all registers
// by the day and both interval fields.
type subject struct {
	supplier int // index into ready.Suppliers
	ean      meter.EAN
	gln      meter.GLN
	days     meter.DayRange
	fields   []meter.Field
	keys     []envelope.KeyRecord
	ids      []envelope.BlockID
	items    []hsmItem
}

const purpose = "ENERGY_MANAGEMENT"

func (s *subject) path() string {
	q := url.Values{"purpose": {purpose}, "from": {s.days.From.String()}, "to": {s.days.To.String()}}
	return "/v1/metering-points/" + s.ean.String() + "/readings?" + q.Encode()
}

// marketProfile is the market profile of the demo.
func (w *world) marketProfile() (*meter.Profile, error) {
	yaml, err := os.ReadFile(filepath.Join(w.state, "profile", "nl.yaml"))
	if err != nil {
		return nil, err
	}
	return meter.ParseProfile(yaml)
}

// findSubject takes the last calendar month of 31 days that a supplier may
// read everything of.
func (w *world) findSubject(ctx context.Context, profile *meter.Profile) (*subject, error) {
	s := &subject{fields: profile.Fields(meter.Electricity)}
	if len(s.fields) != 6 {
		return nil, fmt.Errorf("the market profile has %d fields of electricity instead of 6", len(s.fields))
	}
	month := meter.DayOf(time.Now(), profile.Location()).Month() - 1
	for (month+1).First()-month.First() != 31 {
		month--
	}
	s.days = meter.DayRange{From: month.First(), To: (month + 1).First()}
	for i, supplier := range w.ready.Suppliers {
		for _, p := range w.ready.MeteringPoints {
			if s.ean != (meter.EAN{}) || p.Commodity != meter.Electricity.String() || !s.readable(supplier.ID, p.Access) {
				continue
			}
			s.supplier = i
			var err1, err2 error
			s.ean, err1 = meter.ParseEAN(p.EAN)
			s.gln, err2 = meter.ParseGLN(supplier.ID)
			if err := errors.Join(err1, err2); err != nil {
				return nil, err
			}
		}
	}
	if s.ean == (meter.EAN{}) {
		return nil, fmt.Errorf("the demo has no metering point of which all of %s may be read", s.days.From)
	}
	return s, w.readRows(ctx, s)
}

// readable says whether all fields may be read on all days, as stored.
func (s *subject) readable(supplier string, list []access) bool {
	for _, f := range s.fields {
		if !slices.ContainsFunc(list, func(a access) bool {
			finest := map[meter.Class]string{meter.Registers: "P1D", meter.Intervals: "PT15M"}[f.Class]
			return a.Supplier == supplier && a.Purpose == purpose && a.Resolution == finest && slices.Contains(a.Fields, f.Name) &&
				a.From <= s.days.From.String() && a.To >= s.days.To.String()
		}) {
			return false
		}
	}
	return true
}

// end is the day after the last block that is read of a field: registers have
// the closing read.
func (s *subject) end(f meter.Field) meter.Day {
	if f.Class == meter.Registers {
		return s.days.To + 1
	}
	return s.days.To
}

func (s *subject) blocks() int {
	n := 0
	for _, f := range s.fields {
		n += int(s.end(f) - s.days.From)
	}
	return n
}

// readRows prepares the blocks for the floor, as gateway and cryptoserver
// would, once.
func (w *world) readRows(ctx context.Context, s *subject) error {
	at := map[[16]byte]int{}
	for _, f := range s.fields {
		rows, err := w.db.QueryContext(ctx, `SELECT day - DATE '1970-01-01', version, resolution, ciphertext FROM sealed_block
			WHERE ean = $1 AND field = $2 AND day >= $3 AND day < $4 ORDER BY day`,
			s.ean.Int64(), int64(f.Code), s.days.From.String(), s.end(f).String())
		if err != nil {
			return err
		}
		for rows.Next() {
			var day, version, resolution int64
			var raw []byte
			if err := rows.Scan(&day, &version, &resolution, &raw); err != nil {
				return errors.Join(err, rows.Close())
			}
			c, err := envelope.ParseCiphertext(raw)
			if err != nil {
				return errors.Join(err, rows.Close())
			}
			if _, ok := at[c.KeyID]; !ok {
				at[c.KeyID] = len(s.keys)
				s.keys = append(s.keys, envelope.KeyRecord{ID: c.KeyID})
			}
			id := envelope.BlockID{EAN: s.ean, Field: f.Code, Day: meter.Day(day), Resolution: meter.Resolution(resolution),
				Version: uint32(version), KeyID: c.KeyID}
			s.ids = append(s.ids, id)
			s.items = append(s.items, hsmItem{Key: at[c.KeyID], IV: c.IV, AAD: id.AppendAAD(nil), Data: c.Body})
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
	}
	if len(s.items) != s.blocks() {
		return fmt.Errorf("%d blocks are stored instead of %d", len(s.items), s.blocks())
	}
	for i := range s.keys {
		k := &s.keys[i]
		if err := w.db.QueryRowContext(ctx, `SELECT wrapped, kek_epoch FROM data_key WHERE ean = $1 AND key_id = $2::uuid`,
			s.ean.Int64(), uuid.UUID(k.ID).String()).Scan(&k.Wrapped, &k.Epoch); err != nil {
			return err
		}
	}
	return nil
}

// tokenSetup is the loop's access to one cryptoserver's open token.
func (w *world) tokenSetup(i int) (hsmSetup, error) {
	conf, err := config.Load[config.Cryptoserver](filepath.Join(w.state, fmt.Sprintf("cryptoserver-%d", i+1), "cryptoserver.yaml"))
	if err != nil {
		return hsmSetup{}, err
	}
	return hsmSetup{Module: conf.Module, Label: conf.Tokens.Open[0].Label, PINFile: conf.Tokens.Open[0].PINFile}, nil
}

// rotateSetup is the loop's access to the first cryptoserver's rotate token.
func (w *world) rotateSetup() (hsmSetup, error) {
	conf, err := config.Load[config.Cryptoserver](filepath.Join(w.state, "cryptoserver-1", "cryptoserver.yaml"))
	if err != nil {
		return hsmSetup{}, err
	}
	t := conf.Tokens.Rotate[0]
	return hsmSetup{Module: conf.Module, Label: t.Label, PINFile: t.PINFile, Rotate: true}, nil
}

// sqlSetup is the floor's share of the database; it makes the table that the
// floor writes to. The row is the latest of the access log.
func (w *world) sqlSetup(ctx context.Context, s *subject, root string, conns int) (sqlSetup, error) {
	conf, err := config.Load[config.Gateway](filepath.Join(w.state, "gateway.yaml"))
	if err != nil {
		return sqlSetup{}, err
	}
	q := sqlSetup{Conns: conns, EAN: s.ean.Int64(), GLN: s.gln.Int64(), Blocks: s.blocks()}
	if q.DSN, err = config.DSN(conf.DatabaseURL, conf.DatabasePasswordFile); err != nil {
		return q, err
	}
	if q.Statements, err = readStatements(root, statementNames); err != nil {
		return q, err
	}
	if q.Statements, err = intoScratch(q.Statements); err != nil {
		return q, err
	}
	for _, f := range s.fields {
		q.Fields = append(q.Fields, int64(f.Code))
		q.From = append(q.From, int64(s.days.From))
		q.To = append(q.To, int64(s.end(f)))
	}
	for _, k := range s.keys {
		q.Keys = append(q.Keys, uuid.UUID(k.ID).String())
	}
	for _, statement := range []string{
		`CREATE TABLE ` + scratchTable + ` (LIKE access_log INCLUDING ALL)`,
		`GRANT INSERT ON ` + scratchTable + ` TO kluis_gateway`,
	} {
		if _, err := w.db.ExecContext(ctx, statement); err != nil {
			return q, err
		}
	}
	err = w.db.QueryRowContext(ctx, `SELECT record, receipt FROM access_log WHERE ean = $1 ORDER BY recorded_at DESC LIMIT 1`, q.EAN).
		Scan(&q.Record, &q.Receipt)
	return q, err
}

// tlsSetup is a plain handler that presents itself as the gateway does.
func (w *world) tlsSetup(size int) (tlsSetup, error) {
	conf, err := config.Load[config.Gateway](filepath.Join(w.state, "gateway.yaml"))
	if err != nil {
		return tlsSetup{}, err
	}
	is := conf.Issuers[0]
	return tlsSetup{TLS: conf.TLS, JWKSFile: is.JWKSFile, Issuer: is.URL, Audience: is.Audience, Size: size}, nil
}

// recorded counts the access records of the metering point.
func (w *world) recorded(ctx context.Context, s *subject) (n int, err error) {
	err = w.db.QueryRowContext(ctx, `SELECT count(*) FROM access_log WHERE ean = $1`, s.ean.Int64()).Scan(&n)
	return n, err
}
