package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

// streamChunk is how many metering points are filled at a time.
const streamChunk = 250

// streamEAN is the nth metering point.
func streamEAN(n int) (meter.EAN, error) {
	return meter.ParseEAN(withCheckDigit(fmt.Sprintf("87198%012d", n)))
}

// streamNumber turns an EAN back.
func streamNumber(ean string) (n int, ok bool) {
	if len(ean) != 18 || ean[:5] != "87198" {
		return 0, false
	}
	for _, c := range ean[5:17] {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

func detailed(n int) bool { return n%streamDetail == 0 }

func (s *stream) sealSupplier(thumbprint [32]byte, notAfter time.Time) ([]byte, error) {
	record, err := authz.NewSupplier(nil, authz.SupplierFacts{
		GLN: s.gln, Name: "Benchmark", Scopes: []string{"readings:read"},
		Certificates: []authz.Certificate{{Thumbprint: thumbprint, NotAfter: notAfter}},
	}, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Now().Add(-time.Minute))
	if err != nil {
		return nil, err
	}
	return authz.Seal(record.Payload(), s.signer)
}

// fill goes on to so many metering points.
func (s *stream) fill(ctx context.Context, points int) error {
	from := s.filled
	if from == points {
		return nil
	}
	s.say("filling: %d metering points, %d months", points, streamMonth)
	var chunks []int
	for n := from; n < points; n += streamChunk {
		chunks = append(chunks, n)
	}
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		errs []error
		done int
	)
	next := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		if len(errs) > 0 || len(chunks) == 0 || ctx.Err() != nil {
			return 0, false
		}
		n := chunks[0]
		chunks = chunks[1:]
		return n, true
	}
	// The cryptoservers and PostgreSQL work meanwhile.
	for range runtime.NumCPU() + 1 {
		wg.Go(func() {
			for n, ok := next(); ok; n, ok = next() {
				err := s.fillChunk(ctx, n, min(n+streamChunk, points))
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				}
				before := done
				done += streamChunk
				if done/10_000 != before/10_000 {
					s.say("%d sealed", min(from+done, points))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return err
	}
	s.say("the other months, whose readings nobody asks for")
	if err := s.fillNoise(ctx, from, points); err != nil {
		return err
	}
	s.filled = points
	_, err := s.db.ExecContext(ctx, `VACUUM (ANALYZE)`)
	return err
}

// fillChunk makes metering points with their facts, and seals what is asked for.
func (s *stream) fillChunk(ctx context.Context, from, to int) error {
	var points, files, supply, consents, keys, blocks [][]any
	var eans []meter.EAN
	var specs []envelope.KeySpec
	for n := from; n < to; n++ {
		ean, err := streamEAN(n)
		if err != nil {
			return err
		}
		eans = append(eans, ean)
		points = append(points, []any{ean.Int64(), int(meter.Electricity)})
		versions, at, consent, err := s.history(ean, detailed(n))
		if err != nil {
			return err
		}
		for v, b := range versions {
			files = append(files, []any{ean.Int64(), v + 1, b, at[v], "0"})
		}
		supply = append(supply, []any{ean.Int64(), s.gln.Int64(), s.always.From.String()})
		if consent != nil {
			consents = append(consents, []any{ean.Int64(), uuid.UUID(consent.ID).String(), s.gln.Int64(), 2, s.always.From.String(), consent.ValidUntil})
		}
		specs = append(specs, s.keySpecs(ean, detailed(n))...)
	}
	minted, err := s.ingest.Mint(ctx, specs)
	if err != nil {
		return err
	}
	for _, k := range minted {
		keys = append(keys, []any{k.EAN.Int64(), uuid.UUID(k.ID).String(), int(k.Class), int(k.Month), int(k.Occupancy), int(k.Epoch), k.Wrapped, k.MAC[:]})
	}
	for i, ean := range eans {
		own := minted[:len(s.keySpecs(ean, detailed(from+i)))]
		minted = minted[len(own):]
		plain := s.readings(from+i, own)
		sealed, err := s.ingest.Seal(ctx, ean, own, plain)
		if err != nil {
			return err
		}
		for j, b := range plain {
			blocks = append(blocks, []any{ean.Int64(), int(b.Field), b.Block.Day.String(), int(b.Version), int(b.Block.Resolution), uuid.UUID(own[b.Key].ID).String(),
				len(b.Block.Values), sealed[j].ContentMAC[:], sealed[j].Ciphertext})
		}
	}
	for _, t := range []struct {
		table   string
		columns []string
		rows    [][]any
	}{
		{"metering_point", []string{"ean", "commodity"}, points},
		{"legal_file", []string{"ean", "version", "file", "sealed_at", "arrived"}, files}, // not in the audit log: see newSupplier
		{"supply_period", []string{"ean", "gln", "from_day"}, supply},
		{"consent", []string{"ean", "consent_id", "gln", "state", "from_day", "valid_until"}, consents},
		{"data_key", []string{"ean", "key_id", "class", "month", "occupancy", "kek_epoch", "wrapped", "mac"}, keys},
		{"sealed_block", []string{"ean", "field", "day", "version", "resolution", "key_id", "value_count", "content_mac", "ciphertext"}, blocks},
	} {
		if err := copyIn(ctx, s.db, t.table, t.columns, t.rows); err != nil {
			return fmt.Errorf("%s: %w", t.table, err)
		}
	}
	return nil
}

// history is a metering point's: the versions of its legal file, sealed.
func (s *stream) history(ean meter.EAN, detail bool) (versions [][]byte, at []time.Time, consent *authz.GrantConsent, err error) {
	steps := []authz.Step{
		authz.Register{EAN: ean, Commodity: meter.Electricity},
		authz.SetOccupancy{Days: s.always},
		authz.SetSupply{Supplier: s.gln, Days: s.always},
	}
	if detail {
		consent = &authz.GrantConsent{ID: [16]byte(uuid.New()), Supplier: s.gln, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
			Granularity: meter.PT15M, Days: s.always, ValidUntil: time.Now().AddDate(1, 0, 0), Evidence: "benchmark"}
		steps = append(steps, *consent)
	}
	var file *authz.LegalFile
	for i, step := range steps {
		t := time.Now().AddDate(0, 0, i-len(steps))
		if file, err = authz.Apply(file, step, operator, t, s.profile.Location()); err != nil {
			return nil, nil, nil, err
		}
		sealed, err := authz.Seal(file.Payload(), s.signer)
		if err != nil {
			return nil, nil, nil, err
		}
		versions, at = append(versions, sealed), append(at, t)
	}
	return versions, at, consent, nil
}

// keySpecs are the data keys of what is asked for.
func (s *stream) keySpecs(ean meter.EAN, detail bool) []envelope.KeySpec {
	specs := []envelope.KeySpec{
		{EAN: ean, Class: meter.Registers, Month: s.month, Occupancy: s.always.From},
		{EAN: ean, Class: meter.Registers, Month: s.month + 1, Occupancy: s.always.From},
	}
	if detail {
		specs = append(specs, envelope.KeySpec{EAN: ean, Class: meter.Intervals, Month: s.month, Occupancy: s.always.From})
	}
	return specs
}

// readings are those of a metering point that are asked for, under its keys.
func (s *stream) readings(n int, keys []envelope.KeyRecord) (out []envelope.PlainBlock) {
	for i, day := range []meter.Day{s.days.From, s.days.To} {
		for _, f := range registerFields {
			read := meter.Value(int64(n%9000)*1000 + int64(day)*7000 + int64(f))
			out = append(out, envelope.PlainBlock{Field: f, Version: 1, Key: i,
				Block: meter.Block{Day: day, Resolution: meter.P1D, Start: meter.Null, Values: []meter.Value{read}}})
		}
	}
	if len(keys) < 3 {
		return out
	}
	for _, f := range intervalFields {
		for day := s.days.From; day < s.days.To; day++ {
			b := meter.Block{Day: day, Resolution: meter.PT15M, Start: meter.Null}
			for i := range meter.Slots(day, meter.PT15M, s.profile.Location()) {
				b.Values = append(b.Values, meter.Value(50+(n+int(day)*31+i*17)%400)) // Wh
			}
			out = append(out, envelope.PlainBlock{Field: f, Version: 1, Key: 2, Block: b})
		}
	}
	return out
}

// fillNoise makes what lies in the way: reads of the other months, some days
// around the boundaries, and their keys.
func (s *stream) fillNoise(ctx context.Context, from, to int) error {
	if err := execAll(ctx, s.db, `CREATE UNLOGGED TABLE IF NOT EXISTS bench_point (ean bigint)`, `TRUNCATE bench_point`); err != nil {
		return err
	}
	rows := make([][]any, 0, to-from)
	for n := from; n < to; n++ {
		ean, err := streamEAN(n)
		if err != nil {
			return err
		}
		rows = append(rows, []any{ean.Int64()})
	}
	if err := copyIn(ctx, s.db, "bench_point", []string{"ean"}, rows); err != nil {
		return err
	}
	ciphertext := fmt.Sprintf(`decode('%x', 'hex')`, noise(22+envelope.CiphertextOverhead))
	var statements [][2]string
	for m := s.month - streamMonth + 1; m <= s.month+1; m++ {
		sealed := m >= s.month
		key := fmt.Sprintf(`md5(p.ean || '/%d')::uuid`, m)
		keys, days := "", []string{}
		if sealed { // the keys are there: a day of noise stands under the same
			key = fmt.Sprintf(`(SELECT k.key_id FROM data_key k WHERE k.ean = p.ean AND k.class = %d AND k.month = %d)`, meter.Registers, m)
		} else {
			keys = fmt.Sprintf(`INSERT INTO data_key (ean, key_id, class, month, occupancy, kek_epoch, wrapped, mac)
				SELECT p.ean, %s, %d, %d, %d, 1, decode(repeat('5c', 40), 'hex'), decode(repeat('5c', 32), 'hex') FROM bench_point p`, key, meter.Registers, m, s.always.From)
		}
		for d := range streamAround {
			if day := m.First() + meter.Day(d); !sealed || d > 0 {
				days = append(days, "DATE '"+day.String()+"'")
			}
		}
		blocks := ""
		if len(days) > 0 {
			blocks = fmt.Sprintf(`INSERT INTO sealed_block (ean, field, day, version, resolution, key_id, value_count, content_mac, ciphertext)
				SELECT p.ean, f.field, d.day, 1, %d, p.key_id, 1, decode(repeat('5c', 32), 'hex'), %s
				FROM (SELECT p.ean, %s AS key_id FROM bench_point p ORDER BY p.ean) p, unnest('{1,2,3,4}'::smallint[]) f (field), unnest(ARRAY[%s]) d (day)`,
				meter.P1D, ciphertext, key, strings.Join(days, ", "))
		}
		statements = append(statements, [2]string{keys, blocks})
	}
	var wg sync.WaitGroup
	errs := make([]error, len(statements))
	turn := make(chan struct{}, runtime.NumCPU())
	for i, st := range slices.Backward(statements) {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			for _, q := range st {
				if q != "" && errs[i] == nil {
					errs[i] = execAll(ctx, s.db, q)
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
