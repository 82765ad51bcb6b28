package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cryptoclient "kluis/cryptoserver/client"
	"kluis/internal/authn"
	"kluis/internal/config"
	"kluis/meter"
)

// The stream of readings of many metering points is measured against the real
// processes: those of a demo, whose database is filled with a portfolio of one
// more supplier. Its facts are sealed with a key made for the run, which is
// pinned beside the servers'; what is asked for is sealed by the cryptoservers;
// what only lies in the way is noise of the same size.

const (
	streamSmall = 10_000
	streamMonth = 13 // months of reads that every metering point has
	// streamAround is how many days of each month have daily reads, the first one
	// among them.
	streamAround = 2
	// streamDetail is the part of the metering points that has consent, and a month
	// of quarter-hours: one in so many.
	streamDetail = 20
	streamWhole  = 2_700_000 // metering points of a large grid operator
	streamRounds = 3
)

// stream is a running measurement.
type stream struct {
	options
	*world
	dir      string
	profile  *meter.Profile
	signer   softSigner
	gln      meter.GLN
	ingest   *cryptoclient.Client
	client   *client
	month    meter.Month // that is asked for
	days     meter.DayRange
	always   meter.DayRange
	filled   int
	kluis    map[string]int // process ids by name
	postgres int
}

func measureStream(ctx context.Context, o options, dir string) (_ *streamReport, err error) {
	s := &stream{options: o}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.start(ctx, dir); err != nil {
		return nil, err
	}
	r := s.newReport()
	for _, points := range slices.Compact([]int{min(streamSmall, o.stream), o.stream}) {
		began := time.Now()
		if err := s.fill(ctx, points); err != nil {
			return nil, fmt.Errorf("filling: %w", err)
		}
		d := streamDatabase{Points: points, FillSeconds: time.Since(began).Seconds()}
		if d.Tables, err = s.tables(ctx); err != nil {
			return nil, err
		}
		if err := s.restart(ctx); err != nil {
			return nil, err
		}
		for i := range streamRounds {
			if i > 0 && points < 1000 {
				break // a trial
			}
			run, err := s.measure(ctx, s.statement())
			if err != nil {
				return nil, fmt.Errorf("monthly statement: %w", err)
			}
			d.Statement = append(d.Statement, run)
		}
		if points == o.stream {
			run, err := s.measure(ctx, s.detail())
			if err != nil {
				return nil, fmt.Errorf("quarter-hours: %w", err)
			}
			d.Detail = append(d.Detail, run)
		}
		r.Databases = append(r.Databases, d)
	}
	if r.Floor, err = s.floor(ctx, r.last()); err != nil {
		return nil, fmt.Errorf("floor: %w", err)
	}
	return r, nil
}

func (s *stream) say(format string, args ...any) {
	fmt.Fprintf(s.progress, "  %s  "+format+"\n", append([]any{time.Now().Format("15:04:05")}, args...)...)
}

func (s *stream) close() error {
	err := s.leave()
	if s.world != nil {
		err = errors.Join(err, s.world.stop())
	}
	return err
}

// start runs a demo, and once more with one more key that facts may be sealed
// with.
func (s *stream) start(ctx context.Context, dir string) (err error) {
	s.world = &world{bin: s.options.bin, state: filepath.Join(dir, "state")}
	s.dir = dir
	s.say("starting a demo")
	if err := s.startDemo(ctx, dir); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	s.signer = softSigner{key}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	pinned, err := os.OpenFile(filepath.Join(s.state, "keys", "seal-keys.pem"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(pem.Encode(pinned, &pem.Block{Type: "PUBLIC KEY", Bytes: der}), pinned.Close()); err != nil {
		return err
	}
	if s.profile, err = s.marketProfile(); err != nil {
		return err
	}
	today := meter.DayOf(time.Now(), s.profile.Location())
	s.month = today.Month() - 1
	s.days = meter.DayRange{From: s.month.First(), To: (s.month + 1).First()}
	s.always = meter.DayRange{From: (s.month - streamMonth).First(), To: meter.MaxDay}
	if err := s.restart(ctx); err != nil {
		return err
	}
	// What vacuums while it is measured disturbs.
	if err := execAll(ctx, s.db, `ALTER SYSTEM SET max_wal_size = '4GB'`, `ALTER SYSTEM SET autovacuum = off`, `SELECT pg_reload_conf()`); err != nil {
		return err
	}
	return s.newSupplier(ctx)
}

// restart begins anew: with the keys that are pinned now, and without what the
// processes remember of what was sealed.
func (s *stream) restart(ctx context.Context) error {
	if err := s.leave(); err != nil {
		return err
	}
	if err := errors.Join(s.demo.stop(), os.Remove(filepath.Join(s.dir, "ready.json"))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := s.startDemo(ctx, s.dir)
	if err != nil {
		return err
	}
	if s.db, err = sql.Open("postgres", s.ready.DatabaseURL); err != nil {
		return err
	}
	operator, err := config.Load[config.Operator](filepath.Join(s.state, "kluis.yaml"))
	if err != nil {
		return err
	}
	conf, err := config.ClientTLS(operator.Ingest.TLS)
	if err != nil {
		return err
	}
	if s.ingest, err = cryptoclient.New(cryptoclient.Config{Addresses: operator.Ingest.Addresses, TLS: conf, Timeout: time.Minute}); err != nil {
		return err
	}
	lent := s.ready.Suppliers[0]
	if s.gln, err = meter.ParseGLN(withCheckDigit("871999900000")); err != nil {
		return err
	}
	if s.client, err = newClient(s.ready.CAFile, lent.CertificateFile, lent.KeyFile, s.ready.IssuerURL, s.gln.String()); err != nil {
		return err
	}
	s.client.http.Timeout = 0 // a stream takes what it takes
	return s.findProcesses()
}

// leave ends the connections to what runs.
func (s *stream) leave() error {
	var errs []error
	if s.ingest != nil {
		errs = append(errs, s.ingest.Close())
	}
	if s.world != nil && s.db != nil {
		errs = append(errs, s.db.Close())
	}
	s.ingest, s.db = nil, nil
	return errors.Join(errs...)
}

// newSupplier stores one whose certificate is lent by one of the demo's.
func (s *stream) newSupplier(ctx context.Context) error {
	lent := s.ready.Suppliers[0]
	cert, err := tls.LoadX509KeyPair(lent.CertificateFile, lent.KeyFile)
	if err != nil {
		return err
	}
	sealed, err := s.sealSupplier(authn.Thumbprint(cert.Leaf), cert.Leaf.NotAfter)
	if err != nil {
		return err
	}
	// Of before there was an audit log: what this run makes up is not in it.
	_, err = s.db.ExecContext(ctx, `INSERT INTO supplier (gln, version, record, sealed_at, arrived) VALUES ($1, 1, $2, now(), '0')`, s.gln.Int64(), sealed)
	return err
}

// findProcesses names the demo's by what they are told to be. The demo itself,
// which only starts them, is none of Kluis.
func (s *stream) findProcesses() error {
	pids, err := tree(s.demo.pid())
	if err != nil {
		return err
	}
	database, err := tree(s.ready.PostgresPID)
	if err != nil {
		return err
	}
	s.kluis, s.postgres = map[string]int{}, s.ready.PostgresPID
	for _, pid := range pids[1:] {
		if slices.Contains(database, pid) {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue // ended since
		}
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		name := filepath.Base(args[0])
		switch {
		case pid == s.ready.AuditorPID:
			name = auditorCPU
		case name == "kluis" && slices.Contains(args, "feed"):
			name = "custodian"
		case name == "cryptoserver":
			for i, c := range s.ready.Cryptoservers {
				if c.PID == pid {
					name = fmt.Sprintf("cryptoserver-%d", i+1)
				}
			}
		}
		if s.kluis[name] != 0 {
			return fmt.Errorf("two processes %s", name)
		}
		s.kluis[name] = pid
	}
	for _, name := range []string{"gateway", "issuer", "cryptoserver-1", "cryptoserver-2", "custodian", auditorCPU} {
		if s.kluis[name] == 0 {
			return fmt.Errorf("no process %s among those of the demo", name)
		}
	}
	return nil
}

// tables says how large they are. A partitioned one is the sum of its parts.
func (s *stream) tables(ctx context.Context) (out []streamTable, err error) {
	for _, name := range []string{"legal_file", "supply_period", "consent", "data_key", "sealed_block", "access_log"} {
		t := streamTable{Name: name}
		if err := s.db.QueryRowContext(ctx, `
			SELECT sum(greatest(reltuples, 0))::bigint, sum(pg_table_size(oid)) / 1e6, sum(pg_indexes_size(oid)) / 1e6 FROM pg_class
			WHERE relkind = 'r' AND (oid = $1::regclass OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = $1::regclass))`, name).Scan(&t.Rows, &t.MB, &t.IndexMB); err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}
