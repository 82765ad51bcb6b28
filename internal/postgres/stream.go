package postgres

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/meter"
)

// The statements for many metering points at once: each is one round trip, and
// descends an index for each metering point as the statement for one does. What
// belongs to which is said by the place in the arguments.
const (
	// LIMIT keeps each of these a descent, whatever the planner thinks of the
	// number of metering points.
	queryStoredFiles = `
		SELECT p.at, f.version, f.file
		FROM unnest($1::bigint[]) WITH ORDINALITY AS p (ean, at)
		CROSS JOIN LATERAL (
			SELECT version, file FROM legal_file l WHERE l.ean = p.ean ORDER BY l.version DESC LIMIT 2
		) f`
	queryVersions = `
		SELECT p.at, f.version
		FROM unnest($1::bigint[]) WITH ORDINALITY AS p (ean, at)
		CROSS JOIN LATERAL (
			SELECT version FROM legal_file l WHERE l.ean = p.ean ORDER BY l.version DESC LIMIT 1
		) f`
	queryCandidateFiles = `
		SELECT c.ean, f.version, f.file FROM (
			(SELECT DISTINCT ean FROM supply_period WHERE gln = $1 AND ean > $2 ORDER BY ean LIMIT $3)
			UNION
			(SELECT DISTINCT ean FROM consent WHERE gln = $1 AND ean > $2 ORDER BY ean LIMIT $3)
			ORDER BY ean LIMIT $3
		) c
		LEFT JOIN LATERAL (SELECT version, file FROM legal_file l WHERE l.ean = c.ean ORDER BY version DESC LIMIT 2) f ON true`
	// Of many metering points mostly the same is read: what is read is said once,
	// in $4 to $6, and each metering point names its part of that. Every run of
	// each is a descent as in queryBlocks; $7 and $8 are the days that all lie in.
	queryManyBlocks = manyBlocks + manyNewest
	queryManyAsOf   = manyBlocks + `
			  AND s.sealed_at <= $9::timestamptz` + manyNewest
	manyBlocks = `
		SELECT p.at, b.field, b.day - DATE '1970-01-01', b.version, b.resolution, uuid_send(b.key_id), b.ciphertext
		FROM unnest($1::bigint[], $2::int[], $3::int[]) WITH ORDINALITY AS p (ean, first, last, at)
		CROSS JOIN LATERAL unnest(($4::smallint[])[p.first:p.last], ($5::int[])[p.first:p.last], ($6::int[])[p.first:p.last]) AS run (field, from_day, to_day)
		CROSS JOIN LATERAL (
			SELECT DISTINCT ON (s.day) s.field, s.day, s.version, s.resolution, s.key_id, s.ciphertext
			FROM sealed_block s
			WHERE s.ean = p.ean AND s.field = run.field
			  AND s.day >= DATE '1970-01-01' + run.from_day AND s.day < DATE '1970-01-01' + run.to_day
			  AND s.day >= DATE '1970-01-01' + $7::int AND s.day < DATE '1970-01-01' + $8::int`
	manyNewest = `
			ORDER BY s.day DESC, s.version DESC LIMIT run.to_day - run.from_day
		) b`
	queryManyKeys = `
		SELECT w.at, uuid_send(k.key_id), k.class, k.month, k.occupancy, k.kek_epoch, k.wrapped, k.mac
		FROM unnest($1::bigint[], $2::uuid[]) WITH ORDINALITY AS w (ean, key_id, at)
		CROSS JOIN LATERAL (SELECT * FROM data_key d WHERE d.ean = w.ean AND d.key_id = w.key_id LIMIT 1) k`
	// Records, receipts and salts come as one value each, in pieces of which the
	// lengths are said: in an array each would be written out in hexadecimal.
	queryRecordMany = `
		INSERT INTO access_log (ean, interaction_id, gln, outcome, record, receipt, salt)
		SELECT r.ean, $1::uuid, $2::bigint, r.outcome,
		       substring($7::bytea FROM r.record_at FOR r.record_size),
		       substring($8::bytea FROM r.receipt_at FOR r.receipt_size),
		       substring($9::bytea FROM r.at::int * 16 - 15 FOR 16)
		FROM unnest($3::bigint[], $4::smallint[], $5::int[], $6::int[], $10::int[], $11::int[]) WITH ORDINALITY
		     AS r (ean, outcome, record_at, record_size, receipt_at, receipt_size, at)`
)

const (
	// MaxManyPoints and MaxManyBlocks bound one call for many metering points:
	// how many there may be, and how many stored days grants may read together.
	MaxManyPoints = 1000
	MaxManyBlocks = 20000
)

// manyStatements are those of a Gateway.
type manyStatements struct {
	files, versions, candidates, blocks, asOf, keys, record *sqlx.Stmt
}

func (m *manyStatements) all() map[**sqlx.Stmt]string {
	return map[**sqlx.Stmt]string{
		&m.files:      queryStoredFiles,
		&m.versions:   queryVersions,
		&m.candidates: queryCandidateFiles,
		&m.blocks:     queryManyBlocks,
		&m.asOf:       queryManyAsOf,
		&m.keys:       queryManyKeys,
		&m.record:     queryRecordMany,
	}
}

var errTooMany = errors.New("more at once than may be")

// each runs a statement for many and scans its rows: the first column, at, is
// the place of the metering point in the arguments, from 1; the index given to f
// is from 0.
func (g *Gateway) each(ctx context.Context, op string, st *sqlx.Stmt, n int, into []any, f func(i int) error, args ...any) error {
	rows, err := st.QueryxContext(ctx, args...)
	if err != nil {
		return wrap(ctx, op, err)
	}
	defer rows.Close()
	var at int64
	into = append([]any{&at}, into...)
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return wrap(ctx, op, err)
		}
		if at < 1 || at > int64(n) {
			return fmt.Errorf("postgres: %s: a row of none of the metering points", op)
		}
		if err := f(int(at) - 1); err != nil {
			return err
		}
	}
	return wrap(ctx, op, rows.Err())
}

func numbers[T interface{ Int64() int64 }](list []T) []int64 {
	out := make([]int64, len(list))
	for i, v := range list {
		out[i] = v.Int64()
	}
	return out
}

// LegalFiles returns the newest legal file of each metering point, and the one
// before, in the order asked for; of one that has none, an empty one. At most
// MaxManyPoints.
func (g *Gateway) LegalFiles(ctx context.Context, eans []meter.EAN) ([]authz.StoredFile, error) {
	const op = "legal files"
	if len(eans) > MaxManyPoints {
		return nil, fmt.Errorf("postgres: %s: %w", op, errTooMany)
	}
	out := make([]authz.StoredFile, len(eans))
	if len(eans) == 0 {
		return out, nil
	}
	var version int64
	var raw sql.RawBytes
	var a arena
	err := g.each(ctx, op, g.many.files, len(eans), []any{&version, &raw}, func(i int) error {
		addNewer(&out[i], version, a.keep(raw))
		return nil
	}, pq.Array(numbers(eans)))
	if err != nil {
		return nil, err
	}
	return out, nil
}

// addNewer takes one of the two newest rows, in whatever order they come.
func addNewer(f *authz.StoredFile, version int64, file []byte) {
	switch {
	case f.Sealed == nil:
		f.Version, f.Sealed = uint64(version), file
	case uint64(version) > f.Version:
		f.Previous = nil
		if uint64(version) == f.Version+1 {
			f.Previous = f.Sealed
		}
		f.Version, f.Sealed = uint64(version), file
	case uint64(version) == f.Version-1:
		f.Previous = file
	}
}

// Versions returns the newest version of each metering point's legal file, in
// the order asked for; 0 where there is none. At most MaxManyPoints.
func (g *Gateway) Versions(ctx context.Context, eans []meter.EAN) ([]uint64, error) {
	const op = "versions"
	if len(eans) > MaxManyPoints {
		return nil, fmt.Errorf("postgres: %s: %w", op, errTooMany)
	}
	out := make([]uint64, len(eans))
	if len(eans) == 0 {
		return out, nil
	}
	var version int64
	err := g.each(ctx, op, g.many.versions, len(eans), []any{&version}, func(i int) error {
		out[i] = uint64(version)
		return nil
	}, pq.Array(numbers(eans)))
	if err != nil {
		return nil, err
	}
	return out, nil
}

// PointBlocks is what is stored of one metering point: as Blocks returns it.
type PointBlocks struct {
	Keys   []envelope.KeyRecord
	Blocks []envelope.SealedBlock
}

// BlocksOfMany does for many grants what Blocks does for one; what it returns
// is parallel to them. The grants are of different metering points, at most
// MaxManyPoints, and read at most MaxManyBlocks stored days together: its memory
// is what those take. As of an instant, it returns of each day the newest version
// that was stored by then; zero is now.
func (g *Gateway) BlocksOfMany(ctx context.Context, grants []authz.Grant, asOf time.Time) ([]PointBlocks, error) {
	const op = "blocks"
	out := make([]PointBlocks, len(grants))
	want := make([]int, 0, len(grants))
	days := 0
	eans := make(map[meter.EAN]bool, len(grants))
	for i, grant := range grants {
		if grant.Empty() {
			continue
		}
		for _, r := range grant.Reads() {
			days += r.Days.Len()
		}
		if eans[grant.EAN()] {
			return nil, fmt.Errorf("postgres: %s: two grants of one metering point", op)
		}
		eans[grant.EAN()] = true
		want = append(want, i)
	}
	if len(grants) > MaxManyPoints || days > MaxManyBlocks {
		return nil, fmt.Errorf("postgres: %s: %w", op, errTooMany)
	}
	// Between the statements data keys may be replaced, or have been erased: see
	// together. Only the metering points of which one is missing are read again.
	missed := make(map[manyKey]bool)
	for try := 1; len(want) > 0; try++ {
		if try > readTries {
			return nil, fmt.Errorf("postgres: data keys: %w: they are being replaced", ErrUnavailable)
		}
		keys, err := g.manyCiphertexts(ctx, grants, want, asOf, out)
		if err != nil {
			return nil, err
		}
		if want, err = g.manyKeyRecords(ctx, keys, missed, out); err != nil {
			return nil, err
		}
	}
	for i := range out {
		slices.SortFunc(out[i].Blocks, func(a, b envelope.SealedBlock) int {
			return cmp.Or(cmp.Compare(a.Field, b.Field), cmp.Compare(a.Day, b.Day))
		})
	}
	return out, nil
}

// manyKey is a data key that blocks of a metering point name.
type manyKey struct {
	ean meter.EAN
	id  uuid.UUID
}

// pointKeys are the data keys that the blocks of the grant at index point name,
// in the order of their Key.
type pointKeys struct {
	point int
	ean   meter.EAN
	ids   []uuid.UUID
}

// manyCiphertexts fetches the blocks of the wanted grants into out; Key is an
// index into the ids it returns.
func (g *Gateway) manyCiphertexts(ctx context.Context, grants []authz.Grant, want []int, asOf time.Time, out []PointBlocks) ([]pointKeys, error) {
	a := manyRuns(grants, want)
	for i, p := range want {
		out[p] = PointBlocks{Blocks: make([]envelope.SealedBlock, 0, a.days[i])}
	}
	st := g.many.blocks
	args := []any{pq.Array(a.eans), pq.Array(a.first), pq.Array(a.last), pq.Array(a.fields), pq.Array(a.from), pq.Array(a.to), slices.Min(a.from), slices.Max(a.to)}
	if !asOf.IsZero() {
		st, args = g.many.asOf, append(args, asOf.UTC())
	}
	keys := make([]pointKeys, len(want))
	for i, p := range want {
		keys[i] = pointKeys{point: p, ean: grants[p].EAN()}
	}
	var (
		field, day, version, resolution int64
		keyID, ciphertext               sql.RawBytes
		ciphertexts                     arena
	)
	err := g.each(ctx, "blocks", st, len(want), []any{&field, &day, &version, &resolution, &keyID, &ciphertext}, func(i int) error {
		var id uuid.UUID
		copy(id[:], keyID)
		k := slices.Index(keys[i].ids, id) // one for each class and month
		if k < 0 {
			k = len(keys[i].ids)
			keys[i].ids = append(keys[i].ids, id)
		}
		p := &out[want[i]]
		p.Blocks = append(p.Blocks, envelope.SealedBlock{
			Field: meter.FieldCode(field), Day: meter.Day(day), Resolution: resolutionOf(resolution), Version: uint32(version),
			Key: k, Ciphertext: ciphertexts.keep(ciphertext),
		})
		return nil
	}, args...)
	return keys, err
}

// manyArgs are the arguments of queryManyBlocks: parallel to the wanted grants
// their metering points and, from 1, their first and last run.
type manyArgs struct {
	eans, first, last []int64
	days              []int // that each of them reads
	fields, from, to  []int64
}

func manyRuns(grants []authz.Grant, want []int) manyArgs {
	var a manyArgs
	var before []authz.FieldDays
	for _, p := range want {
		reads := grants[p].Reads()
		a.eans = append(a.eans, grants[p].EAN().Int64())
		if n := len(a.first); n > 0 && sameReads(reads, before) {
			a.first, a.last, a.days = append(a.first, a.first[n-1]), append(a.last, a.last[n-1]), append(a.days, a.days[n-1])
			continue
		}
		before = reads
		a.first = append(a.first, int64(len(a.fields))+1)
		days := 0
		for _, r := range reads {
			for _, run := range r.Days.Ranges() {
				a.fields, a.from, a.to = append(a.fields, int64(r.Field)), append(a.from, int64(run.From)), append(a.to, int64(run.To))
				days += run.Len()
			}
		}
		a.last, a.days = append(a.last, int64(len(a.fields))), append(a.days, days)
	}
	return a
}

func sameReads(a, b []authz.FieldDays) bool {
	return slices.EqualFunc(a, b, func(a, b authz.FieldDays) bool {
		return a.Field == b.Field && a.Days.Equal(b.Days)
	})
}

// manyKeyRecords fetches the data keys of blocks into out, and gives the blocks
// their places. It returns the grants whose blocks are to be read again: those of
// which a key is missing that was there a moment ago, for the first time; what is
// missing once more was erased.
func (g *Gateway) manyKeyRecords(ctx context.Context, keys []pointKeys, missed map[manyKey]bool, out []PointBlocks) (again []int, err error) {
	var eans []int64
	var ids []uuid.UUID
	var of []int // indexes into keys
	for i, k := range keys {
		for _, id := range k.ids {
			eans, ids, of = append(eans, k.ean.Int64()), append(ids, id), append(of, i)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	var (
		class, month, occupancy, epoch int64
		id, wrapped, mac               sql.RawBytes
		wraps                          arena
	)
	place := make([]int, len(ids)) // in the keys of the metering point, and one more
	err = g.each(ctx, "data keys", g.many.keys, len(ids), []any{&id, &class, &month, &occupancy, &epoch, &wrapped, &mac}, func(i int) error {
		k := envelope.KeyRecord{
			EAN: keys[of[i]].ean, Month: meter.Month(month), Occupancy: meter.Day(occupancy), Epoch: uint32(epoch), Wrapped: wraps.keep(wrapped),
		}
		if class > 0 && class <= 0xff {
			k.Class = meter.Class(class)
		}
		copy(k.ID[:], id)
		copy(k.MAC[:], mac)
		p := &out[keys[of[i]].point]
		p.Keys = append(p.Keys, k)
		place[i] = len(p.Keys)
		return nil
	}, pq.Array(eans), pq.Array(ids))
	if err != nil {
		return nil, err
	}
	next := 0
	for _, k := range keys {
		at := place[next : next+len(k.ids)]
		next += len(k.ids)
		read := false
		for j, id := range k.ids {
			if at[j]--; at[j] >= 0 {
				continue
			}
			at[j] = envelope.NoKey
			if lost := (manyKey{k.ean, id}); !missed[lost] {
				missed[lost], read = true, true
			}
		}
		if read {
			again = append(again, k.point)
			continue
		}
		p := &out[k.point]
		for b := range p.Blocks {
			p.Blocks[b].Key = at[p.Blocks[b].Key]
		}
	}
	return again, nil
}

// CandidateFiles lists metering points as Candidates does, with the version
// before of their legal files, too.
func (g *Gateway) CandidateFiles(ctx context.Context, gln meter.GLN, after meter.EAN, limit int) ([]Candidate, error) {
	const op = "candidates"
	if limit > MaxManyPoints {
		return nil, fmt.Errorf("postgres: %s: %w", op, errTooMany)
	}
	var out []Candidate
	for last := after.Int64(); limit > len(out); {
		want := limit - len(out)
		found, err := g.candidateFiles(ctx, gln, last, want)
		if err != nil {
			return nil, wrap(ctx, op, err)
		}
		for _, f := range found {
			// What is no EAN was put in the index by hand, and has no file.
			last = f.ean
			if ean, err := meter.EANFromInt64(f.ean); err == nil {
				out = append(out, Candidate{ean, f.StoredFile})
			}
		}
		if len(found) < want {
			break
		}
	}
	return out, nil
}

type candidateFile struct {
	ean int64
	authz.StoredFile
}

// candidateFiles makes the rows, in whatever order they come, a list ascending.
func (g *Gateway) candidateFiles(ctx context.Context, gln meter.GLN, after int64, limit int) ([]candidateFile, error) {
	rows, err := g.many.candidates.QueryxContext(ctx, gln.Int64(), after, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []candidateFile
	at := make(map[int64]int)
	var a arena
	for rows.Next() {
		var ean int64
		var version sql.NullInt64
		var raw sql.RawBytes
		if err := rows.Scan(&ean, &version, &raw); err != nil {
			return nil, err
		}
		i, known := at[ean]
		if !known {
			i = len(out)
			at[ean] = i
			out = append(out, candidateFile{ean: ean})
		}
		if version.Valid {
			addNewer(&out[i].StoredFile, version.Int64, a.keep(raw))
		}
	}
	slices.SortFunc(out, func(a, b candidateFile) int { return cmp.Compare(a.ean, b.ean) })
	return out, rows.Err()
}

// RecordMany appends the records of one interaction, each of another metering
// point, to the access log: all or none. It returns nil only once they are
// durable. Any error means that nothing may leave: they may be there or not.
func (g *Gateway) RecordMany(ctx context.Context, records []audit.Record) error {
	const op = "access records"
	if len(records) == 0 {
		return nil
	}
	if len(records) > MaxManyPoints {
		return fmt.Errorf("postgres: %s: %w", op, errTooMany)
	}
	var (
		first                                                       = &records[0]
		eans, outcomes, recordAt, recordSize, receiptAt, receiptEnd []int64
		encoded, receipts                                           = []byte{}, []byte{}
		salts                                                       = make([]byte, 16*len(records))
	)
	for i := range records {
		r := &records[i]
		if r.InteractionID != first.InteractionID || r.Supplier != first.Supplier {
			return fmt.Errorf("postgres: %s: of several interactions", op)
		}
		b, err := r.Encode()
		if err != nil {
			return fmt.Errorf("postgres: access record: %w", err)
		}
		eans, outcomes = append(eans, r.EAN.Int64()), append(outcomes, int64(r.Outcome))
		recordAt, recordSize = append(recordAt, int64(len(encoded))+1), append(recordSize, int64(len(b)))
		receiptAt, receiptEnd = append(receiptAt, int64(len(receipts))+1), append(receiptEnd, int64(len(r.Receipt)))
		encoded, receipts = append(encoded, b...), append(receipts, r.Receipt...)
	}
	rand.Read(salts) // never fails
	err := g.confirmed(ctx, func() error {
		res, err := g.many.record.ExecContext(ctx, uuid.UUID(first.InteractionID).String(), first.Supplier.Int64(),
			pq.Array(eans), pq.Array(outcomes), pq.Array(recordAt), pq.Array(recordSize), encoded, receipts, salts,
			pq.Array(receiptAt), pq.Array(receiptEnd))
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n != int64(len(records)) {
			return errors.Join(fmt.Errorf("%d rows were stored for %d records", n, len(records)), err)
		}
		return nil
	})
	if err = wrap(ctx, op, err); errors.Is(err, ErrConflict) {
		return fmt.Errorf("postgres: %s: %w: there is one of this interaction already", op, ErrUnavailable) // see Record
	}
	return err
}

// arena keeps copies of many short values in few pieces of memory.
type arena struct{ free []byte }

const arenaPiece = 64 << 10

func (a *arena) keep(b []byte) []byte {
	if cap(a.free)-len(a.free) < len(b) {
		a.free = make([]byte, 0, max(len(b), arenaPiece))
	}
	from := len(a.free)
	a.free = append(a.free, b...)
	return a.free[from:len(a.free):len(a.free)]
}
